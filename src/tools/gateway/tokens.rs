//! The file of tokens.

use std::fs;
use std::path::Path;

use crate::error::{Error, Result};
use crate::model::gateway::callers::Tokens;

/// Reads the tokens of the file at `path`.
///
/// # Errors
/// When it cannot be read or is wrong (78).
pub fn read(path: &Path) -> Result<Tokens> {
    let wrong =
        |cause: &str| Error::config(format!("read tokens from {}: {cause}", path.display()));
    let text = fs::read_to_string(path).map_err(|e| wrong(&e.to_string()))?;
    Tokens::parse(&text).map_err(|cause| wrong(&cause))
}
