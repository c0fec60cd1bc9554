//! The payload of work for another node.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use bytes::{Bytes, BytesMut};

use crate::engine::pipeline::Pipeline;
use crate::error::{Error, Kind, Result};
use crate::model::remote::MAX_PIECE;
use crate::model::work::Work;
use crate::store::payload_file;

/// A payload that can be read from every offset.
#[derive(Debug)]
pub enum Payload {
    /// It is small, and was read from the ledger.
    Inline(Bytes),
    /// It is this file.
    File(File),
}

impl Payload {
    /// Opens the payload of `unit`, which is `work`.
    ///
    /// # Errors
    /// 65 if it is gone; otherwise another attempt may find it.
    pub fn open(pipeline: &Pipeline, unit: &str, work: &Work) -> Result<Self> {
        let Some(name) = work.file_name() else {
            let payload = pipeline.reader.payload(unit)?;
            return match payload {
                Some(bytes) => Ok(Self::Inline(bytes)),
                None => Err(Error::data("read its payload: it was released")),
            };
        };
        let path = payload_file::path(&pipeline.home.path, name);
        let file = File::open(&path).map_err(|e| {
            let kind = match e.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied => Kind::Data,
                _ => Kind::TryAgain,
            };
            Error::new(kind, format!("read its payload {}: {e}", path.display()))
        })?;
        Ok(Self::File(file))
    }

    /// Returns at most [`MAX_PIECE`] bytes from `offset` on.
    ///
    /// # Errors
    /// 65 if there are none, 75 if they cannot be read.
    pub fn piece(&self, offset: u64) -> Result<Bytes> {
        let piece = match self {
            Self::Inline(bytes) => {
                let start = usize::try_from(offset).unwrap_or(usize::MAX);
                let end = start.saturating_add(MAX_PIECE).min(bytes.len());
                match start < end {
                    true => bytes.slice(start..end),
                    false => Bytes::new(),
                }
            }
            Self::File(file) => {
                let mut piece = BytesMut::zeroed(MAX_PIECE);
                let read = file.read_at(&mut piece, offset);
                let read =
                    read.map_err(|e| Error::new(Kind::TryAgain, format!("read its payload: {e}")))?;
                piece.truncate(read);
                piece.freeze()
            }
        };
        match piece.is_empty() {
            true => Err(Error::data("read its payload: it has become shorter")),
            false => Ok(piece),
        }
    }
}
