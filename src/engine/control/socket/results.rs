//! Sends the output of a unit, as it is written.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use crate::engine::control::call::{Call, Output};
use crate::engine::control::socket::node::Node;
use crate::engine::control::socket::wire::Wire;
use crate::engine::report::followers::Stage;
use crate::model::remote::wire::StreamName;
use crate::model::unit::Outcome;
use crate::os::socket::HangUp;
use crate::store::unit_dir::both::{BothReader, Piece, both};
use crate::store::unit_dir::reader::{Chunk, Ended, OutputReader, output};
use crate::store::unit_dir::stream::Stream;

/// Interval between two looks at the output of a run whose runner an earlier client has started.
/// Other runners say when there is more.
const LOOK: Duration = Duration::from_millis(100);

/// Maximum number of chunks of output that are read at once.
const BATCH: usize = 4;

/// Sends the output of a unit until that has ended and all of it is sent. Returns why not, if it
/// cannot.
///
/// # Errors
/// When the requester has gone, or the output cannot be read.
pub async fn send(
    wire: &mut Wire,
    node: &Node,
    unit: String,
    from: u64,
    which: Option<StreamName>,
) -> io::Result<Option<String>> {
    let look = || node.ask(|answer| Call::Output(unit.clone(), answer));
    let mut run = match look().await {
        Ok(run) => run,
        Err(cause) => return Ok(Some(cause)),
    };
    wire.say(&format!("Streaming results for work unit {unit}\n"))
        .await?;
    let mut source = OutputSource::new(&run, from, which);
    let mut gone = None;
    loop {
        // First the state, then the output: what was written before the end is read.
        if !run.state.is_end() && *run.stage.borrow_and_update() != Stage::Open {
            match look().await {
                Ok(again) => run = again,
                // It was released.
                Err(_) => return Ok(None),
            }
        }
        let ended = run.state.is_end().then(|| run.outcome.clone());
        // A slow disk holds up this requester only.
        let read = spawn_blocking(move || {
            let read = source.read(ended.as_ref().map(Option::as_ref));
            (source, read)
        });
        let (back, read) = read.await.map_err(io::Error::other)?;
        source = back;
        let (chunks, ends) = read?;
        for chunk in &chunks {
            wire.send(chunk).await?;
        }
        if ends {
            // Standard error alone is not what a submitter waits for.
            if which != Some(StreamName::Stderr) {
                // A client that has much to do may forget it: the unit stays a little longer.
                let _ = node.calls.try_send(Call::Fetched(unit));
            }
            return Ok(None);
        }
        if !chunks.is_empty() {
            continue;
        }
        let gone = match &mut gone {
            Some(gone) => gone,
            None => gone.insert(HangUp::of(wire.stream())?),
        };
        tokio::select! {
            changed = run.stage.changed() => changed.map_err(io::Error::other)?,
            () = gone.wait() => return Ok(None),
            () = sleep(LOOK), if !run.is_told => {}
        }
    }
}

/// The output of a unit, for one requester.
enum OutputSource {
    One(Stream, OutputReader),
    /// With the number of bytes to pass over.
    Both(Box<BothReader>, u64),
}

impl OutputSource {
    fn new(run: &Output, from: u64, which: Option<StreamName>) -> Self {
        let one = |stream| Self::One(stream, output(&run.dir, stream, from));
        match which {
            Some(name) => one(name.into()),
            None => Self::Both(Box::new(both(&run.dir)), from),
        }
    }

    /// Reads what is there, and returns whether that is the end. Bytes that are missing are left out.
    fn read(&mut self, ended: Option<Option<&Outcome>>) -> io::Result<(Vec<Bytes>, bool)> {
        let mut chunks = Vec::new();
        while chunks.len() < BATCH {
            let chunk = match self {
                Self::One(stream, reader) => {
                    let of = |outcome| Ended::with(outcome, *stream);
                    reader.next(ended.map_or(Ended::No, of))?
                }
                Self::Both(reader, _) => match reader.next(ended)? {
                    Piece::Of(_, chunk) => chunk,
                    Piece::Unordered => continue,
                    Piece::Pending => Chunk::Pending,
                    Piece::End => Chunk::End,
                },
            };
            match chunk {
                Chunk::Bytes(bytes) => chunks.extend(self.behind(bytes)),
                Chunk::Gap(_) | Chunk::Truncated => {}
                Chunk::Pending => return Ok((chunks, false)),
                Chunk::End => return Ok((chunks, true)),
            }
        }
        Ok((chunks, false))
    }

    /// Returns what of `bytes` is not passed over.
    fn behind(&mut self, mut bytes: Bytes) -> Option<Bytes> {
        if let Self::Both(_, left) = self
            && *left > 0
        {
            let passed = usize::try_from(*left)
                .unwrap_or(usize::MAX)
                .min(bytes.len());
            *left -= passed as u64;
            bytes = bytes.split_off(passed);
        }
        (!bytes.is_empty()).then_some(bytes)
    }
}
