//! Output of a unit that another node runs, as it comes.

use std::sync::Arc;

use bytes::Bytes;

use crate::engine::pipeline::Pipeline;
use crate::error::Error;
use crate::model::remote::assembly::{Assembly, Piece};
use crate::model::work::Work;
use crate::store::unit_dir::incoming::Incoming;
use crate::store::unit_dir::stream::Stream;

/// Output that comes.
#[derive(Debug)]
pub struct Following {
    /// The work, if the node may not have accepted it.
    pub offered: Option<Arc<Work>>,
    pub incoming: Incoming,
    pieces: [Assembly; 2],
    /// Whether it has come from its beginning a second time.
    pub is_second: bool,
}

/// What became of a piece of output.
pub enum Took {
    /// It is written.
    Next { is_ack_due: bool },
    /// It was here.
    Known,
    /// What comes before it is missing.
    Early,
}

impl Following {
    /// Continues the output of `unit` where its files end.
    ///
    /// # Errors
    /// As the file system.
    pub fn open(pipeline: &Pipeline, unit: &str) -> std::io::Result<Self> {
        Incoming::open(pipeline.dir(unit)).map(|incoming| Self::from(incoming, false))
    }

    /// Continues behind what is here; for the second time if so.
    pub fn from(incoming: Incoming, is_second: bool) -> Self {
        Self {
            offered: None,
            pieces: incoming.sizes().map(Assembly::from),
            incoming,
            is_second,
        }
    }

    /// Offsets of the next bytes of stdout and stderr.
    pub fn at(&self) -> [u64; 2] {
        self.pieces.map(|pieces| pieces.offset())
    }

    /// Takes a piece. One that cannot be written did not come.
    ///
    /// # Errors
    /// As the file system.
    pub fn take(&mut self, stream: Stream, offset: u64, bytes: Bytes) -> std::io::Result<Took> {
        let Some(pieces) = self.pieces.get_mut(stream as usize) else {
            return Ok(Took::Known);
        };
        // What cannot be written did not come.
        let before = *pieces;
        Ok(match pieces.take(offset, bytes) {
            Piece::Next(bytes) => {
                if let Err(e) = self.incoming.write(stream, &bytes) {
                    *pieces = before;
                    return Err(e);
                }
                Took::Next {
                    is_ack_due: pieces.is_ack_due(),
                }
            }
            Piece::Known => Took::Known,
            Piece::Early => Took::Early,
        })
    }

    /// Takes a gap of `bytes` bytes; `None` is one up to the end.
    ///
    /// # Errors
    /// As the file system.
    pub fn skip(&mut self, stream: Stream, offset: u64, bytes: Option<u64>) -> Result<(), Error> {
        let Some(pieces) = self.pieces.get_mut(stream as usize) else {
            return Ok(());
        };
        let before = *pieces;
        // Of a gap up to the end, the end of the unit tells the length.
        let bytes = bytes.unwrap_or(u64::MAX);
        if pieces.skip(offset, bytes)
            && let Err(e) = self.incoming.skip(stream)
        {
            *pieces = before;
            return Err(e);
        }
        Ok(())
    }
}
