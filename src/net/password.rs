//! The password for a broker: a text, or a file that is read again at every connection, so that it
//! can be changed while a daemon runs.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::model::text::BOM;

/// Maximum size of a password, bytes (MQTT 5.0, section 1.5.6).
const MAX_BYTES: usize = 65_535;

/// A text that never prints itself.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps `text`.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Returns the text.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Source of a password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Password {
    /// The password itself.
    Text(Secret),
    /// File that contains it.
    File(PathBuf),
}

impl Password {
    /// Returns the present password.
    ///
    /// # Errors
    /// When the file cannot be read or is empty (78).
    pub fn reveal(&self) -> Result<Secret> {
        match self {
            Self::Text(secret) => Ok(secret.clone()),
            Self::File(path) => read(path),
        }
    }
}

/// Reads a password from a file, without a byte order mark and the last line break.
fn read(path: &Path) -> Result<Secret> {
    let wrong =
        |cause: &str| Error::config(format!("read password from {}: {cause}", path.display()));
    let text = fs::read_to_string(path).map_err(|e| wrong(&e.to_string()))?;
    let password = text.strip_prefix(BOM).unwrap_or(&text);
    let password = password.strip_suffix('\n').unwrap_or(password);
    let password = password.strip_suffix('\r').unwrap_or(password);
    if password.is_empty() {
        return Err(wrong("the file is empty"));
    }
    if password.len() > MAX_BYTES {
        return Err(wrong(&format!("it is longer than {MAX_BYTES} bytes")));
    }
    Ok(Secret::new(password))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_and_one_line_break_are_no_part_of_it() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("password");
        let password = Password::File(path.clone());
        for (text, want) in [
            ("p w", Some("p w")),
            ("\u{feff}p\r\n", Some("p")),
            ("p\n\n", Some("p\n")),
            ("\u{feff}\n", None),
            ("", None),
        ] {
            fs::write(&path, text).expect("write");
            let read = password.reveal().ok();
            assert_eq!(read.as_ref().map(Secret::reveal), want, "{text:?}");
        }
        fs::write(&path, "x".repeat(MAX_BYTES + 1)).expect("write");
        assert!(password.reveal().is_err());
        fs::remove_file(&path).expect("remove");
        assert!(password.reveal().is_err());
    }
}
