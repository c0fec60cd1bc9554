//! Names of the parameters of work.

use crate::error::{Error, Result};
use crate::model::text::printable;

/// Keys of a submission that are no parameters.
const RESERVED: &[&str] = &[
    "command",
    "subcommand",
    "node",
    "worktype",
    "params",
    "words",
    "ttl",
    "signwork",
    "signature",
    "tlsclient",
    "workUnitID",
];

/// Checks the names of parameters.
///
/// # Errors
/// When one cannot be a name (64).
pub(super) fn check(named: &[(String, String)]) -> Result<()> {
    for (key, _) in named {
        if RESERVED.contains(&key.as_str()) || key.is_empty() {
            let key = printable(key, 80);
            return Err(Error::usage(format!(
                "--param: '{key}' cannot be the name of a parameter"
            )));
        }
    }
    Ok(())
}
