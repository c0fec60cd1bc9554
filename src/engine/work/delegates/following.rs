//! Output of a unit that another node runs, as it comes.

use std::sync::Arc;

use bytes::Bytes;

use crate::engine::pipeline::Pipeline;
use crate::error::Error;
use crate::model::remote::assembly::{Assembly, Fit, Gap, Piece};
use crate::model::remote::wire::{self, StreamName};
use crate::model::unit::State;
use crate::model::work::Work;
use crate::store::unit_dir::incoming::Incoming;
use crate::store::unit_dir::stream::Stream;

/// Maximum number of ends in a row that tell of more output than comes. Then the output that is here
/// is all of it.
const MAX_SHORT_ENDS: u32 = 5;

/// Number of answers in a row that the node does not have the unit after which that is believed. A
/// broker may deliver answers to earlier requests again.
const MAX_UNKNOWN: u32 = 5;

/// Output that comes.
#[derive(Debug)]
pub struct Following {
    /// Whether the node has the work.
    pub offered: Taken,
    /// State that the node has told.
    pub state: Option<State>,
    pub incoming: Incoming,
    /// What has come of stdout and stderr.
    pub pieces: [Assembly; 2],
    /// Whether it has come from its beginning a second time.
    pub is_second: bool,
    /// Whether output came again since the last that was new.
    is_repeated: bool,
    /// Number of ends since the last new output that told of more.
    short_ends: u32,
    /// Number of answers since the last state that the node does not have the unit.
    unknown: u32,
}

/// Whether a node has work that was offered.
#[derive(Debug, Default)]
pub enum Taken {
    /// It has.
    #[default]
    Yes,
    /// It may have; otherwise it gets the work.
    Perhaps(Arc<Work>),
    /// It may have; otherwise the unit fails, for this reason.
    Fails(String),
}

/// What became of a piece of output.
pub enum Took {
    /// It is written.
    Next { is_ack_due: bool },
    /// It was here. It is the first such since the last that was new if so.
    Known { is_first: bool },
    /// What comes before it is missing.
    Early,
}

impl Following {
    /// Continues the output of `unit` where its files end.
    ///
    /// # Errors
    /// As the file system.
    pub fn open(pipeline: &Pipeline, unit: &str) -> std::io::Result<Self> {
        let incoming = Incoming::open(pipeline.dir(unit))?;
        let pieces = incoming.sizes().map(Assembly::from);
        Ok(Self::from(incoming, pieces, false))
    }

    /// Continues behind the `pieces` that are here; for the second time if so.
    pub const fn from(incoming: Incoming, pieces: [Assembly; 2], is_second: bool) -> Self {
        Self {
            offered: Taken::Yes,
            state: None,
            pieces,
            incoming,
            is_second,
            is_repeated: false,
            short_ends: 0,
            unknown: 0,
        }
    }

    /// Notes that the node has the unit.
    pub fn is_there(&mut self) {
        (self.offered, self.unknown) = (Taken::Yes, 0);
    }

    /// Notes an answer that the node, which had the unit, does not have it. Returns whether it may be an
    /// answer to an earlier request.
    pub const fn may_be_there(&mut self) -> bool {
        self.unknown += 1;
        self.unknown < MAX_UNKNOWN
    }

    /// Offsets of the next bytes of stdout and stderr.
    pub fn at(&self) -> [u64; 2] {
        self.pieces.map(|pieces| pieces.offset())
    }

    /// Takes a piece. One that cannot be written did not come.
    ///
    /// # Errors
    /// As the file system.
    pub fn take(&mut self, stream: StreamName, offset: u64, bytes: Bytes) -> Result<Took, Error> {
        let stream = Stream::from(stream);
        let Some(pieces) = self.pieces.get_mut(stream as usize) else {
            return Ok(Took::Known { is_first: false });
        };
        // What cannot be written did not come.
        let before = *pieces;
        Ok(match pieces.take(offset, bytes) {
            Piece::Next(bytes) => {
                if let Err(e) = self.incoming.write(stream, &bytes) {
                    *pieces = before;
                    self.incoming.close();
                    return Err(Error::state(&e, format!("{e}")));
                }
                (self.is_repeated, self.short_ends) = (false, 0);
                Took::Next {
                    is_ack_due: pieces.is_ack_due(),
                }
            }
            Piece::Known => Took::Known {
                is_first: !std::mem::replace(&mut self.is_repeated, true),
            },
            Piece::Early => Took::Early,
        })
    }

    /// Takes a gap of `bytes` bytes; `None` is one up to the end. One that cannot be noted did not come.
    ///
    /// # Errors
    /// As the file system.
    pub fn skip(
        &mut self,
        stream: StreamName,
        offset: u64,
        bytes: Option<u64>,
    ) -> Result<Took, Error> {
        let stream = Stream::from(stream);
        let Some(pieces) = self.pieces.get_mut(stream as usize) else {
            return Ok(Took::Known { is_first: false });
        };
        let before = *pieces;
        let gap = match bytes {
            Some(bytes) => pieces.skip(offset, bytes),
            None => pieces.cut(offset),
        };
        match gap {
            Gap::Next => {}
            Gap::Known => {
                let is_first = !std::mem::replace(&mut self.is_repeated, true);
                return Ok(Took::Known { is_first });
            }
            Gap::Early => return Ok(Took::Early),
        }
        if let Err(e) = self.incoming.skip(stream) {
            *pieces = before;
            return Err(e);
        }
        (self.is_repeated, self.short_ends) = (false, 0);
        // Missing bytes count in the window of the node.
        Ok(Took::Next {
            is_ack_due: pieces.is_ack_due(),
        })
    }

    /// Returns how many ends in a row have told of more output than is here, with this one; `None` if
    /// all is here, or will not come.
    pub fn short_ends(&mut self, end: &wire::End) -> Option<u32> {
        if !fits(&self.pieces, end).contains(&Fit::Short) || self.short_ends >= MAX_SHORT_ENDS {
            return None;
        }
        self.short_ends += 1;
        Some(self.short_ends)
    }
}

/// Returns how `pieces` of stdout and stderr fit the `end` of their unit.
pub fn fits(pieces: &[Assembly; 2], end: &wire::End) -> [Fit; 2] {
    let [stdout, stderr] = pieces;
    let ([out_length, err_length], [out_dropped, err_dropped]) = (end.lengths, end.dropped);
    [
        stdout.fits(out_length, out_dropped),
        stderr.fits(err_length, err_dropped),
    ]
}
