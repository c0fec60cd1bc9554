//! Log lines: journald for daemons, short lines on stderr for people. Neither can block the
//! process.

mod journal;
mod limit;
mod queue;

use std::fmt::{self, Write as _};
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use jiff::Zoned;
use nix::sys::stat::{SFlag, fstat};
use rustix::event::{PollFd, PollFlags, poll};
use tracing::callsite::Identifier;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Subscriber, enabled};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

use crate::error::{Error, Kind, Result};
use crate::model::text::printable;
use crate::model::unit::{short_id, short_ids};
use crate::model::{duration, moment};
use crate::os::host::is_id;
use limit::{Limit, MAX_NOTES, MAX_WARNINGS, Summary};
use queue::{Queue, Sink};

pub use queue::STACK;

/// The `target` of lines that senders can cause; they are limited.
pub const SENDERS: &str = "tael::senders";

/// Maximum length of a line and of each of its fields, characters. They contain text of senders.
const MAX_LINE: usize = 2000;

/// Maximum time to write the last lines at the end of the process.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Target of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Target {
    /// stderr on a terminal, otherwise journald if it listens, otherwise warnings to stderr.
    #[default]
    Auto,
    /// `systemd-journald`, in its native protocol.
    Journald,
    /// stderr.
    Stderr,
    /// Nowhere.
    None,
}

impl Target {
    /// Parses the value of the option.
    ///
    /// # Errors
    /// A text for the user.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "journald" => Ok(Self::Journald),
            "stderr" => Ok(Self::Stderr),
            "none" => Ok(Self::None),
            _ => Err(format!(
                "'{text}' is not a log target: auto, journald, stderr or none"
            )),
        }
    }
}

/// Starts the log of this process. `level` overrides the default: info for a `daemon` on a terminal
/// or in the journal, otherwise warnings. `who` is the pipeline of all entries in the journal.
///
/// # Errors
/// When journald is required and does not listen, or the level is unknown.
pub fn init(target: Target, level: Option<&str>, daemon: bool, who: Option<&str>) -> Result<()> {
    let level = level
        .map(|text| {
            text.parse::<LevelFilter>().map_err(|_| {
                Error::usage(format!(
                    "'{text}' is not a log level: error, warn, info, debug or off"
                ))
            })
        })
        .transpose()?;
    let terminal = io::stderr().is_terminal();
    let journald = match target {
        Target::None => return Ok(()),
        Target::Stderr => false,
        Target::Auto => !terminal && journal::open(who).is_ok(),
        Target::Journald => {
            journal::open(who).map_err(|e| {
                // It may be starting, or restarting.
                let message = format!("log to journald: {e}; try --log stderr");
                Error::new(Kind::TryAgain, message)
            })?;
            true
        }
    };
    let (form, usual) = if journald {
        (Form::Journal, LevelFilter::INFO)
    } else if daemon && (terminal || target == Target::Stderr) {
        (Form::Lines { terminal }, LevelFilter::INFO)
    } else {
        (Form::Lines { terminal }, LevelFilter::WARN)
    };
    let _ = FORM.set(form);
    let layer = Recorder.with_filter(OurOwn(level.unwrap_or(usual)));
    tracing::subscriber::set_global_default(tracing_subscriber::registry().with(layer))
        .map_err(|e| Error::bug(format!("start logging: {e}")))
}

/// Prints `text` on one line of stderr, independently of the log. On a terminal ids in it are short.
pub fn say(text: &str) {
    let short = io::stderr().is_terminal().then(|| short_ids(text));
    let text = short.as_deref().unwrap_or(text);
    STDERR.push(format!("tael: {}\n", printable(text, MAX_LINE)).into_bytes());
    flush();
}

/// Returns whether a person watches the log: it goes to a terminal, and shows more than warnings.
#[must_use]
pub fn is_watched() -> bool {
    matches!(FORM.get(), Some(Form::Lines { terminal: true })) && enabled!(Level::INFO)
}

/// Shows a printable line of a run beside the log; never blocks.
pub fn show(line: &str) {
    STDERR.push(format!("{line}\n").into_bytes());
}

/// Writes the lines that wait for stderr, within a bounded time, before other output goes on.
pub fn flush() {
    STDERR.flush(LAST_WORDS);
}

/// Writes the lines that wait, within a bounded time, before the process ends.
pub fn finish() {
    summarize(true);
    STDERR.flush(LAST_WORDS);
    journal::JOURNAL.flush(LAST_WORDS);
}

/// Passes lines of Tael up to a level, and warnings of libraries at debug.
struct OurOwn(LevelFilter);

impl<S> tracing_subscriber::layer::Filter<S> for OurOwn {
    fn enabled(&self, meta: &tracing::Metadata<'_>, _: &Context<'_, S>) -> bool {
        *meta.level() <= self.0
            && (meta.target().starts_with("tael")
                || (self.0 >= LevelFilter::DEBUG && *meta.level() <= Level::WARN))
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.0)
    }
}

/// Form of log lines.
#[derive(Debug, Clone, Copy)]
enum Form {
    /// `12:34:56 warning: message (name=value)` on stderr.
    Lines { terminal: bool },
    /// Fields for journald.
    Journal,
}

/// How this process logs, after [`init`].
static FORM: OnceLock<Form> = OnceLock::new();

/// Lines that wait for stderr.
static STDERR: Queue = Queue::new(Sink {
    write: write_stderr,
    never_blocks: is_on_disk,
    is_ready: || is_ready(Some(Duration::ZERO)),
    lost: |count| line(&Record::new(Level::WARN, lost(count)), false).into_bytes(),
});

/// Returns whether stderr is a file on a disk. If that disk hangs, everything else of ours hangs
/// too.
fn is_on_disk() -> bool {
    let kind = |mode| SFlag::from_bits_truncate(mode) & SFlag::S_IFMT;
    fstat(io::stderr()).is_ok_and(|stat| kind(stat.st_mode) == SFlag::S_IFREG)
}

/// Returns the line about lost log lines.
fn lost(count: u64) -> String {
    format!("{count} log lines were lost: they were not taken in time")
}

/// Returns whether stderr accepts a line, after `wait` at most, or without a limit.
fn is_ready(wait: Option<Duration>) -> bool {
    let stderr = io::stderr();
    let mut polled = [PollFd::new(&stderr, PollFlags::OUT)];
    let wait = wait.map(|wait| wait.try_into().unwrap_or_default());
    poll(&mut polled, wait.as_ref()).is_ok_and(|ready| ready > 0)
}

/// Writes to stderr without the lock of the standard library, for which others may wait.
fn write_stderr(mut line: &[u8]) -> io::Result<()> {
    while !line.is_empty() {
        match nix::unistd::write(io::stderr().as_fd(), line) {
            Ok(written) => line = line.get(written..).unwrap_or_default(),
            Err(nix::Error::EINTR) => {}
            // Another process that shares it has made it non-blocking.
            Err(nix::Error::EAGAIN) => {
                is_ready(None);
            }
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// A log line in parts.
#[derive(Debug)]
struct Record {
    level: Level,
    message: String,
    fields: Vec<(&'static str, String)>,
    target: &'static str,
    file: Option<&'static str>,
    line: Option<u32>,
}

impl Record {
    /// Returns a line of the log itself.
    const fn new(level: Level, message: String) -> Self {
        Self {
            level,
            message,
            fields: Vec::new(),
            target: "tael",
            file: None,
            line: None,
        }
    }

    fn write(&self) {
        match FORM.get() {
            Some(Form::Lines { terminal }) => STDERR.push(line(self, *terminal).into_bytes()),
            Some(Form::Journal) => journal::write(self),
            None => {}
        }
    }
}

/// Formats a record as a line: with the time of day for a `terminal`, otherwise with the date too.
fn line(record: &Record, terminal: bool) -> String {
    let level = match record.level {
        Level::ERROR => "error: ",
        Level::WARN => "warning: ",
        Level::INFO => "",
        Level::DEBUG | Level::TRACE => "debug: ",
    };
    let mut text = record.message.clone();
    for (n, (name, value)) in record.fields.iter().enumerate() {
        let start = if n == 0 { " (" } else { " " };
        // A person types the end of an id; programs get all of it.
        let is_id = terminal && ["TAEL_UNIT", "TAEL_EVENT"].contains(name) && is_id(value);
        let value = if is_id { short_id(value) } else { value };
        let name = name.trim_start_matches("TAEL_").to_lowercase();
        let _ = write!(text, "{start}{name}={value}");
    }
    if !record.fields.is_empty() {
        text.push(')');
    }
    let now = match terminal {
        true => moment::clock(&Zoned::now()),
        false => moment::text(&Zoned::now()),
    };
    format!("{now} {level}{}\n", printable(&text, MAX_LINE))
}

/// Makes records of events.
struct Recorder;

impl<S: Subscriber> Layer<S> for Recorder {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let meta = event.metadata();
        let mut record = Record {
            target: meta.target(),
            file: meta.file(),
            line: meta.line(),
            ..Record::new(*meta.level(), String::new())
        };
        event.record(&mut record);
        if meta.target() != SENDERS || *meta.level() > Level::INFO {
            return record.write();
        }
        let kind = meta.callsite();
        let most = match record.level {
            Level::INFO => MAX_NOTES,
            _ => MAX_WARNINGS,
        };
        if counted(|c| c.limit.allows(kind, most, &record.message, Instant::now())) {
            record.write();
        } else {
            summarize_later();
        }
    }
}

impl Visit for Record {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            let _ = write!(self.message, "{value:?}");
        } else {
            self.fields.push((field.name(), format!("{value:?}")));
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }
}

/// Counted lines of senders, and whether a thread waits to summarize them.
static LIMIT: Mutex<Option<Counted>> = Mutex::new(None);

struct Counted {
    limit: Limit<Identifier>,
    has_thread: bool,
}

fn counted<T>(work: impl FnOnce(&mut Counted) -> T) -> T {
    let mut counted = LIMIT.lock().unwrap_or_else(PoisonError::into_inner);
    work(counted.get_or_insert_with(|| Counted {
        limit: Limit::new(),
        has_thread: false,
    }))
}

/// Starts a thread that logs the summaries. It ends when there are none, so that an idle process
/// has no such thread.
fn summarize_later() {
    counted(|counted| {
        if !counted.has_thread {
            let thread = thread::Builder::new().name("log-summary".into());
            // Without a thread, the summary comes at the end of the process.
            counted.has_thread = thread.spawn(summarize_in_time).is_ok();
        }
    });
}

fn summarize_in_time() {
    loop {
        let due = counted(|counted| {
            let due = counted.limit.due();
            counted.has_thread = due.is_some();
            due
        });
        let Some(due) = due else { return };
        thread::sleep(due.saturating_duration_since(Instant::now()));
        summarize(false);
    }
}

/// Logs the summaries that are due, or all of them `at_the_end`.
fn summarize(at_the_end: bool) {
    let summaries = counted(|counted| counted.limit.summaries(Instant::now(), at_the_end));
    for Summary {
        count,
        within,
        example,
    } in summaries
    {
        let within = duration::rough(within.max(Duration::from_secs(1)));
        let text = format!("and {count} more like it in {within}, the last one: {example}");
        Record::new(Level::WARN, text).write();
    }
}
