//! One unit, for other faces of this program than the command line. Everything here blocks.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};

use crate::error::{Error, Kind, Result};
use crate::model::unit::{Outcome, State, Trace, is_ulid};
use crate::store::ledger::{Reader, Record};
use crate::store::unit_dir::UnitDir;
use crate::store::unit_dir::reader::{Chunk, Ended, OutputReader, output};
use crate::store::unit_dir::stream::Stream;
use crate::tools::work::find::{Which, find};
use crate::tools::work::{Found, Scope, away, effective, show, state_name};

/// A unit of this host. It holds no file open.
#[derive(Debug)]
pub struct Unit {
    who: String,
    pipeline: PathBuf,
    record: Record,
}

/// The present state of a unit.
#[derive(Debug, Clone)]
pub struct Now {
    /// Name of its state.
    pub state: &'static str,
    /// Whether it has ended.
    pub is_end: bool,
    /// Exit code of its command, as it is reported.
    pub code: Option<i32>,
    outcome: Option<Outcome>,
}

impl Unit {
    /// Returns the unit with this id.
    ///
    /// # Errors
    /// When there is none (65), or one that could be it cannot be read.
    pub fn find(scope: &Scope, id: &str) -> Result<Self> {
        if !is_ulid(id) {
            return Err(Error::data(format!("'{id}' is no id of a unit")));
        }
        let found = find(scope, &Which::named(id))?;
        Ok(Self {
            who: found.who,
            pipeline: found.pipeline,
            record: found.record,
        })
    }

    /// Returns its id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.record.unit.id
    }

    fn found(&self) -> Result<Found> {
        let mut found = Found {
            who: self.who.clone(),
            pipeline: self.pipeline.clone(),
            reader: Reader::open(&self.pipeline)?,
            record: self.record.clone(),
        };
        found.refresh()?;
        Ok(found)
    }

    /// Returns everything known about it, as `tael work status --json` does.
    ///
    /// # Errors
    /// When its state cannot be read, or it has been released.
    pub fn report(&self) -> Result<Value> {
        show::whole_report(&self.found()?)
    }

    /// Returns its present state. While it runs here, its folder tells that alone.
    ///
    /// # Errors
    /// When its state cannot be read, or it has been released.
    pub fn look(&mut self) -> Result<Now> {
        let is_here = away(&self.record).is_none() && !self.record.state.is_end();
        if is_here && self.dir().trace()? == Trace::Alive {
            return Ok(Now {
                state: State::Running.name(),
                is_end: false,
                code: None,
                outcome: None,
            });
        }
        if !self.record.state.is_end() {
            self.record = self.found()?.record;
        }
        let (state, outcome) = effective(&self.pipeline, &self.record)?;
        Ok(Now {
            state: state_name(&self.record, state),
            is_end: state.is_end(),
            code: outcome.as_ref().and_then(|o| o.reported().return_code()),
            outcome,
        })
    }

    /// Ends it, and returns its state then.
    ///
    /// # Errors
    /// When it has ended before (65), has not ended within `limit` (75) or only in part (77).
    pub fn cancel(&mut self, limit: Duration) -> Result<Now> {
        let mut found = self.found()?;
        let state = found.state()?;
        if state.is_end() {
            let id = self.id();
            return Err(Error::data(format!("unit {id} has ended: {state}")));
        }
        found.cancel(limit)?;
        found.ended_whole()?;
        // Its client may have booked the end while its runner still holds the folder.
        self.record = found.record;
        self.look()
    }

    fn dir(&self) -> UnitDir {
        UnitDir::new(&self.pipeline, self.id())
    }

    /// Reads a stream of it, from byte `from` on.
    #[must_use]
    pub fn follow(self, stream: Stream, from: u64) -> Following {
        let reader = output(&self.dir(), stream, from);
        Following {
            unit: self,
            stream,
            reader,
        }
    }

    /// Returns the first `limit` bytes of a stream of the unit, which is as `now` says, and whether
    /// there are more. Missing bytes are left out.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn beginning(&self, stream: Stream, now: &Now, limit: usize) -> Result<(Vec<u8>, bool)> {
        let mut reader = output(&self.dir(), stream, 0);
        let ended = now.ended(stream);
        let (mut bytes, mut is_gapped) = (Vec::new(), false);
        loop {
            match reader.next(ended).map_err(|e| unreadable(self.id(), &e))? {
                Chunk::Bytes(chunk) => {
                    let room = limit.saturating_sub(bytes.len());
                    bytes.extend_from_slice(chunk.get(..room).unwrap_or(&chunk));
                    if chunk.len() > room {
                        return Ok((bytes, true));
                    }
                }
                Chunk::Gap(_) => is_gapped = true,
                Chunk::Truncated => bytes.clear(),
                Chunk::Pending | Chunk::End => return Ok((bytes, is_gapped)),
            }
        }
    }
}

impl Now {
    /// Returns whether a stream has ended, and how much of it is missing.
    fn ended(&self, stream: Stream) -> Ended {
        match self.is_end {
            true => Ended::with(self.outcome.as_ref(), stream),
            false => Ended::No,
        }
    }
}

fn unreadable(unit: &str, cause: &std::io::Error) -> Error {
    Error::new(
        Kind::CannotCreate,
        format!("read output of unit {unit}: {cause}"),
    )
}

/// A stream of a unit that is read as it comes.
#[derive(Debug)]
pub struct Following {
    unit: Unit,
    stream: Stream,
    reader: OutputReader,
}

/// What comes next of a stream.
#[derive(Debug)]
pub enum Next {
    /// Bytes, of which the first has this offset.
    Bytes(u64, Bytes),
    /// At this offset bytes are missing: so many, or all to the end.
    Gap(u64, Option<u64>),
    /// Another program has cut the output off: it comes again from its start.
    Truncated,
    /// Nothing yet.
    Pending,
    /// The end: the unit has ended so, and everything was read.
    End(Now),
}

impl Following {
    /// Returns what comes next.
    ///
    /// # Errors
    /// When it cannot be read, or the unit has been released.
    pub fn advance(&mut self) -> Result<Next> {
        // First the state, then the output: what was written before the end is read.
        let now = self.unit.look()?;
        let from = self.reader.offset();
        let next = self.reader.next(now.ended(self.stream));
        Ok(match next.map_err(|e| unreadable(self.unit.id(), &e))? {
            Chunk::Bytes(bytes) => Next::Bytes(from, bytes),
            Chunk::Gap(missing) => Next::Gap(from, missing),
            Chunk::Truncated => Next::Truncated,
            Chunk::Pending => Next::Pending,
            Chunk::End => match now.is_end {
                true => Next::End(now),
                // The rest was dropped; the run goes on.
                false => Next::Pending,
            },
        })
    }
}

impl Now {
    /// Returns it for programs.
    #[must_use]
    pub fn json(&self) -> Value {
        json!({ "state": self.state, "code": self.code })
    }
}
