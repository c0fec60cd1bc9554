//! A payload that can be read several times.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use crate::error::{Error, Kind, Result};
use crate::model::digest::{Sha256, sha256};
use crate::model::remote::MAX_PIECE;
use crate::model::signature::hex;
use crate::os::host;
use crate::tools::work::submit::Payload as Source;

/// A payload that can be read several times.
pub struct Payload {
    file: Option<File>,
    /// The bytes, if they go with the manifest.
    pub inline: Vec<u8>,
    /// Length, bytes.
    pub length: u64,
    /// SHA-256, hexadecimal.
    pub sha256: String,
}

impl Payload {
    /// Opens the payload, and reads it once.
    ///
    /// # Errors
    /// When it cannot be read: 78 for a file, otherwise 65.
    pub fn read(source: &Source) -> Result<Self> {
        let (file, what) = match source {
            Source::Nothing => return Ok(Self::inline(Vec::new())),
            Source::Text(text) => return Ok(Self::inline(format!("{text}\n").into_bytes())),
            Source::Stdin => (copied(&mut io::stdin().lock()), "standard input".to_owned()),
            Source::File(path) => {
                let file = File::open(path).and_then(|mut file| match file.metadata()?.is_file() {
                    true => Ok(file),
                    // It can be read once only.
                    false => copied(&mut file),
                });
                (file, path.display().to_string())
            }
        };
        let kind = match source {
            Source::File(_) => Kind::Config,
            _ => Kind::Data,
        };
        let wrong = |e: io::Error| Error::new(kind, format!("read payload from {what}: {e}"));
        let mut file = file.map_err(wrong)?;
        let (mut digest, mut length) = (Sha256::default(), 0);
        let mut piece = vec![0; MAX_PIECE];
        loop {
            let size = file.read_at(&mut piece, length).map_err(wrong)?;
            if size == 0 {
                break;
            }
            digest.update(piece.get(..size).unwrap_or_default());
            length += size as u64;
        }
        if length <= MAX_PIECE as u64 {
            let mut inline = Vec::new();
            io::Seek::rewind(&mut file).map_err(wrong)?;
            file.read_to_end(&mut inline).map_err(wrong)?;
            return Ok(Self::inline(inline));
        }
        Ok(Self {
            file: Some(file),
            inline: Vec::new(),
            length,
            sha256: hex(&digest.finish()),
        })
    }

    fn inline(bytes: Vec<u8>) -> Self {
        Self {
            file: None,
            length: bytes.len() as u64,
            sha256: hex(&sha256(&bytes)),
            inline: bytes,
        }
    }

    /// Returns the piece at `offset`.
    pub fn piece(&self, offset: u64) -> Result<Vec<u8>> {
        let wrong = |e: io::Error| Error::data(format!("read payload: {e}"));
        let mut piece = vec![0; MAX_PIECE];
        let size = match &self.file {
            Some(file) => file.read_at(&mut piece, offset).map_err(wrong)?,
            None => 0,
        };
        if size == 0 {
            return Err(Error::data("read payload: it has become shorter"));
        }
        piece.truncate(size);
        Ok(piece)
    }
}

/// Copies what can be read once only into a file without a name.
fn copied(from: &mut impl Read) -> io::Result<File> {
    let path = std::env::temp_dir().join(format!("tael-{}", host::new_id()));
    let mut options = OpenOptions::new();
    let mut file = options
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)?;
    fs::remove_file(&path)?;
    io::copy(from, &mut file)?;
    Ok(file)
}
