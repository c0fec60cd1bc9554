//! Keys of signatures, from the tables `[signing]` and `[verify]` of files.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::cli::config::Layers;
use crate::cli::connection::warn_of_open;
use crate::cli::mistakes::Mistakes;
use crate::error::{Error, Result};
use crate::model::signature::{Keys, Signer, Verifier};

/// Maximum number of keys whose signatures are taken.
const MAX_KEYS: usize = 64;

/// Maximum size of a file with a key, bytes.
const MAX_FILE: u64 = 64 * 1024;

fn read<T>(path: &Path, what: &str, parse: fn(&[u8]) -> Result<T, String>) -> Result<T> {
    let wrong = |cause: String| Error::config(format!("read {what} {}: {cause}", path.display()));
    let mut pem = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_FILE).read_to_end(&mut pem))
        .map_err(|e| wrong(e.to_string()))?;
    parse(&pem).map_err(wrong)
}

/// Returns the keys of `[verify] keys`; notes what is wrong (78).
pub fn verify(layers: &Layers, mistakes: &mut Mistakes) -> Keys {
    let files = mistakes.keep(layers.files_of("verify", "keys"));
    let files = files.unwrap_or_default();
    if files.len() > MAX_KEYS {
        let cause = format!(
            "[verify] names {} keys, and {MAX_KEYS} are allowed",
            files.len()
        );
        mistakes.note(Error::config(cause));
    }
    let keys = files.iter().take(MAX_KEYS);
    let keys = keys.filter_map(|file| mistakes.keep(read(file, "public key", Verifier::from_pem)));
    Keys(keys.collect())
}

/// Returns the key of `[signing] key`, if the files of a client have that table; notes what is wrong
/// (78).
pub fn of_client(layers: &Layers, mistakes: &mut Mistakes) -> Option<Signer> {
    let files = mistakes.keep(layers.files_of("signing", "key"))?;
    match files.is_empty() {
        true => None,
        false => mistakes.keep(signer(layers, None)),
    }
}

/// Returns the key of `file`, otherwise that of `[signing] key`.
///
/// # Errors
/// When there is none, or it cannot be used (78).
pub fn signer(layers: &Layers, file: Option<PathBuf>) -> Result<Signer> {
    let file = match file {
        Some(file) => file,
        None => {
            let mut files = layers.files_of("signing", "key")?.into_iter();
            match (files.next(), files.next()) {
                (Some(file), None) => file,
                (Some(_), Some(_)) => {
                    return Err(Error::config(
                        "[signing] key names several files: one signs",
                    ));
                }
                (None, _) => {
                    return Err(Error::config(
                        "sign: there is no key: name one by --signing-key, or as key below [signing]",
                    ));
                }
            }
        }
    };
    warn_of_open("private key", &file);
    read(&file, "private key", Signer::from_pem)
}
