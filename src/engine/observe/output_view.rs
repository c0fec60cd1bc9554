//! What a person at a terminal sees of runs: what each is about, and the output of its command.
//!
//! A thread reads the output as `tael work results --follow` does, from the folders of the units. So
//! a terminal that stands still holds up neither a run nor the client.

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::Duration;

use tracing::{info, warn};

use crate::engine::work::Ended;
use crate::model::about::about;
use crate::model::text::printable;
use crate::model::trigger::ONLY_TRIGGER;
use crate::model::unit::{Unit, short_id};
use crate::os::hooks;
use crate::os::logging::{self, STACK};
use crate::store::unit_dir::UnitDir;
use crate::store::unit_dir::reader::{self, Chunk, OutputReader, output};
use crate::store::unit_dir::stream::Stream;

/// Interval between two looks at the output of runs. Without a run there is none.
const LOOK: Duration = Duration::from_millis(100);

/// Maximum number of runs whose output is shown at a time.
const MAX_RUNS: usize = 32;

/// Maximum number of starts and ends that wait for the thread.
const MAX_WAITING: usize = 256;

/// Maximum number of bytes of a stream that are shown at one look, and at the end of a run.
const MAX_STEP: usize = 64 * 1024;
const MAX_LAST: usize = 256 * 1024;

/// Maximum time for what is left to show when the client ends. A disk may not answer, and a terminal
/// may stand still.
const TO_END: Duration = Duration::from_secs(2);

/// Maximum length of a line of output, bytes; a longer one is broken.
const MAX_LINE: usize = 2000;

/// Shows runs on the terminal of the log.
#[derive(Debug, Default)]
pub struct OutputView {
    /// The thread, from the first run on.
    thread: Option<(SyncSender<Order>, Receiver<Gone>)>,
}

/// What a channel says when the thread has gone: nothing but that it is closed.
#[derive(Debug)]
enum Gone {}

#[derive(Debug)]
enum Order {
    Begin { unit: Box<Unit>, dir: UnitDir },
    End { ended: Box<Ended>, dir: UnitDir },
}

impl OutputView {
    /// Returns a view if the log goes to a terminal and shows more than warnings.
    pub fn open() -> Option<Self> {
        logging::is_watched().then(Self::default)
    }

    /// Logs the start of a run before its output.
    pub fn started(&mut self, unit: &Unit, dir: UnitDir) {
        if self.thread.is_none() {
            let (orders, to_do) = sync_channel(MAX_WAITING);
            let thread = thread::Builder::new().name("output".into());
            let (goes, gone) = sync_channel::<Gone>(0);
            let thread = thread.stack_size(STACK).spawn(move || {
                show(&to_do);
                drop(goes);
            });
            // Without a thread, the log has start and end of the run.
            self.thread = thread.ok().map(|_| (orders, gone));
        }
        let unit = Box::new(unit.clone());
        if let Err(Order::Begin { unit, .. }) = self.give(Order::Begin { unit, dir }) {
            begin(&unit);
        }
    }

    /// Logs the end of a run after its output.
    pub fn ended(&self, ended: &Ended, dir: UnitDir) {
        let ended = Box::new(ended.clone());
        if let Err(Order::End { ended, dir }) = self.give(Order::End { ended, dir }) {
            ended.log(|| Some(dir));
        }
    }

    /// Gives the thread an order; returns it if it has no room or there is no thread.
    fn give(&self, order: Order) -> Result<(), Order> {
        let Some((orders, _)) = &self.thread else {
            return Err(order);
        };
        orders.try_send(order).map_err(|e| match e {
            TrySendError::Full(order) | TrySendError::Disconnected(order) => order,
        })
    }
}

impl Drop for OutputView {
    fn drop(&mut self) {
        if let Some((orders, gone)) = self.thread.take() {
            // It goes when it has done the orders so far.
            drop(orders);
            let _ = gone.recv_timeout(TO_END);
        }
    }
}

/// A run that is shown.
struct Shown {
    unit: String,
    streams: [Followed; 2],
}

/// A stream of a run, and the beginning of its next line.
struct Followed {
    stream: Stream,
    reader: OutputReader,
    line: Vec<u8>,
}

fn show(orders: &Receiver<Order>) {
    let mut shown: Vec<Shown> = Vec::new();
    loop {
        let order = match shown.is_empty() {
            true => orders.recv().map_err(|_| RecvTimeoutError::Disconnected),
            false => orders.recv_timeout(LOOK),
        };
        match order {
            Ok(Order::Begin { unit, dir }) => {
                begin(&unit);
                if shown.len() < MAX_RUNS {
                    shown.push(Shown::new(&unit.id, &dir));
                } else {
                    info!(
                        TAEL_UNIT = unit.id,
                        "its output is not shown: that of {MAX_RUNS} runs is"
                    );
                }
            }
            Ok(Order::End { ended, dir }) => {
                let place = shown.iter().position(|run| run.unit == ended.unit.id);
                match place.map(|place| shown.swap_remove(place)) {
                    Some(mut run) => {
                        run.end(&ended);
                        ended.log(|| None);
                    }
                    None => ended.log(|| Some(dir)),
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        hooks::slow_read();
        for followed in shown.iter_mut().flat_map(|run| &mut run.streams) {
            // The end of the run is another chance.
            let _ = followed.copy(reader::Ended::No, MAX_STEP);
        }
    }
}

/// Logs what a run is about.
fn begin(unit: &Unit) {
    let about = about(&unit.spec.required, &unit.variables, &unit.passthrough);
    let about: Vec<String> = about
        .into_iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    let name = Some(unit.lane()).filter(|lane| *lane != ONLY_TRIGGER);
    let words: Vec<&str> = ["started"]
        .into_iter()
        .chain(name)
        .chain(about.iter().map(String::as_str))
        .collect();
    info!(
        TAEL_UNIT = unit.id,
        TAEL_EVENT = unit.event,
        TAEL_TOPIC = unit.topic,
        "{}",
        words.join(" ")
    );
}

impl Shown {
    fn new(unit: &str, dir: &UnitDir) -> Self {
        let follow = |stream| Followed {
            stream,
            reader: output(dir, stream, 0),
            line: Vec::new(),
        };
        let streams = [Stream::Stdout, Stream::Stderr].map(follow);
        let mut shown = Self {
            unit: unit.to_owned(),
            streams,
        };
        for followed in &mut shown.streams {
            followed.line = followed.prefix(unit);
        }
        shown
    }

    /// Shows the rest of the output.
    fn end(&mut self, ended: &Ended) {
        for followed in &mut self.streams {
            let whole = reader::Ended::with(Some(&ended.outcome), followed.stream);
            match followed.copy(whole, MAX_LAST) {
                Ok(true) => {}
                Ok(false) => info!(
                    TAEL_UNIT = self.unit,
                    "and more: tael work results {}",
                    short_id(&self.unit)
                ),
                Err(e) => warn!(TAEL_UNIT = self.unit, "cannot read its output: {e}"),
            }
            followed.flush();
        }
    }
}

impl Followed {
    /// The start of each line: the end of the id, and the stream.
    fn prefix(&self, unit: &str) -> Vec<u8> {
        let mark = match self.stream {
            Stream::Stdout => '|',
            Stream::Stderr => '!',
        };
        format!("{} {mark} ", short_id(unit)).into_bytes()
    }

    /// Shows what comes next of the stream, about `limit` bytes at most. Returns whether that was
    /// all so far.
    fn copy(&mut self, ended: reader::Ended, limit: usize) -> io::Result<bool> {
        let mut copied = 0;
        while copied < limit {
            match self.reader.next(ended)? {
                Chunk::Bytes(bytes) => {
                    copied += bytes.len();
                    bytes.iter().for_each(|byte| self.add(*byte));
                }
                Chunk::Gap(Some(bytes)) => self.note(&format!("[{bytes} bytes were dropped]")),
                Chunk::Gap(None) => self.note("[the rest was dropped]"),
                Chunk::Truncated => self.note("[another program has cut the output off]"),
                Chunk::Pending | Chunk::End => return Ok(true),
            }
        }
        Ok(false)
    }

    fn add(&mut self, byte: u8) {
        if byte != b'\n' {
            self.line.push(byte);
        }
        if byte == b'\n' || self.line.len() >= MAX_LINE {
            self.print();
        }
    }

    fn note(&mut self, text: &str) {
        self.flush();
        text.bytes().for_each(|byte| self.add(byte));
        self.print();
    }

    /// Shows a last line without its end.
    fn flush(&mut self) {
        if self.line.len() > PREFIX {
            self.print();
        }
    }

    /// Shows the line, and begins the next one.
    fn print(&mut self) {
        let line = String::from_utf8_lossy(&self.line);
        let line = line.strip_suffix('\r').unwrap_or(&line);
        logging::show(&printable(line, MAX_LINE));
        self.line.truncate(PREFIX);
    }
}

/// Length of the start of a line, bytes.
const PREFIX: usize = 9;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_of_a_line_has_its_length() {
        let dir = UnitDir::at("/nowhere".into());
        let shown = Shown::new("01ARZ3NDEKTSV4RRFFQ69G5FAV", &dir);
        let starts: Vec<_> = shown.streams.iter().map(|s| s.line.clone()).collect();
        assert_eq!(starts, [b"9G5FAV | ", b"9G5FAV ! "]);
        assert!(starts.iter().all(|start| start.len() == PREFIX));
    }
}
