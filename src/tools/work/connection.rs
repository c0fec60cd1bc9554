//! A connection to the control socket of a client.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::engine::control::socket::SOCKET;
use crate::error::{Error, Kind, Result};
use crate::model::receptor::{Refusal, SUBMIT_ONLY, TRY_AGAIN};
use crate::model::text::printable;
use crate::os::socket;

/// Maximum time for a client to answer.
const ANSWER: Duration = Duration::from_secs(60);

/// Maximum time for a client to greet. One that is stopped holds up others for this time.
const GREETING: Duration = Duration::from_secs(5);

/// Time for which a client that has not answered in time is not asked again.
const SILENCE: Duration = Duration::from_secs(3);

/// What such a client has not done.
const LATE: &str = "it did not answer in time";

/// Folders of clients that have not answered in time, and when each may be asked again.
static SILENT: Mutex<BTreeMap<PathBuf, Instant>> = Mutex::new(BTreeMap::new());

fn silent() -> MutexGuard<'static, BTreeMap<PathBuf, Instant>> {
    SILENT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Notes that a client has not answered in time.
fn note_silence(folder: &Path) {
    let now = Instant::now();
    let mut silent = silent();
    silent.retain(|_, again| *again > now);
    silent.insert(folder.to_owned(), now + SILENCE);
}

/// Returns whether the client of the pipeline in `folder` has not answered in time a moment ago.
pub(super) fn is_silent(folder: &Path) -> bool {
    silent()
        .get(folder)
        .is_some_and(|again| *again > Instant::now())
}

/// Returns whether a client may be asked now. If it was silent, others ask it only when this attempt has
/// ended.
fn may_ask(folder: &Path) -> bool {
    let now = Instant::now();
    match silent().get_mut(folder) {
        Some(again) if *again > now => false,
        Some(again) => {
            *again = now + GREETING + SILENCE;
            true
        }
        None => true,
    }
}

fn is_late(e: &io::Error) -> bool {
    matches!(
        e.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
    )
}

/// Maximum length of a line of a client, bytes.
const MAX_ANSWER: u64 = 1024 * 1024;

/// A connection to a client.
pub(super) struct Connection {
    folder: PathBuf,
    /// Whether the client has not answered in time.
    was_late: bool,
    /// The stream, with what was read ahead.
    pub stream: BufReader<UnixStream>,
    /// What it is for, as the beginning of an error.
    pub task: String,
}

/// Why a client has not done what it was asked for.
#[derive(Debug)]
pub struct Refused {
    /// What its error is about.
    pub refusal: Refusal,
    /// The error for a person.
    pub error: Error,
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        let refusal = Refusal::Other;
        Self { refusal, error }
    }
}

impl From<Refused> for Error {
    fn from(refused: Refused) -> Self {
        refused.error
    }
}

/// What a client says of itself.
pub(super) struct About {
    /// The types of work that it has.
    pub types: Vec<String>,
    /// Whether it is there only to submit work to other nodes.
    pub submit_only: bool,
}

impl Connection {
    /// Connects to the client of the pipeline in `folder`. One that has not answered in time is not asked
    /// again for [`SILENCE`].
    ///
    /// # Errors
    /// When none runs, or it does not answer (69), or it serves no more connections (75).
    pub fn open(folder: &Path) -> Result<Self> {
        Self::open_within(folder, ANSWER)
    }

    /// Does the same for a client that must give each answer within `limit`.
    ///
    /// # Errors
    /// As [`Connection::open`].
    pub fn open_within(folder: &Path, limit: Duration) -> Result<Self> {
        let cannot = |cause: &dyn std::fmt::Display| {
            let cause = format!("ask the client in {}: {cause}", folder.display());
            Error::new(Kind::Unavailable, cause)
        };
        if !may_ask(folder) {
            return Err(cannot(&format_args!("{LATE}; try again in a few seconds")));
        }
        let connected = socket::connect(folder, SOCKET).and_then(|stream| {
            stream.set_nonblocking(false)?;
            stream.set_read_timeout(Some(limit.min(GREETING)))?;
            stream.set_write_timeout(Some(limit))?;
            Ok(stream)
        });
        let stream = connected.map_err(|e| match is_late(&e) {
            true => {
                note_silence(folder);
                cannot(&LATE)
            }
            false => {
                silent().remove(folder);
                cannot(&e)
            }
        })?;
        let mut connection = Self {
            folder: folder.to_owned(),
            was_late: false,
            stream: BufReader::new(stream),
            task: "work".to_owned(),
        };
        let greeting = connection.line();
        if !connection.was_late {
            silent().remove(folder);
        }
        greeting?;
        let stream = connection.stream.get_ref();
        stream
            .set_read_timeout(Some(limit))
            .map_err(|e| cannot(&e))?;
        Ok(connection)
    }

    /// Sends a request, and returns the line that answers it.
    ///
    /// # Errors
    /// What the client says (65, 75), or that it does not answer (69).
    pub fn ask(&mut self, request: &str) -> Result<String, Refused> {
        let sent = self
            .stream
            .get_mut()
            .write_all(format!("{request}\n").as_bytes());
        sent.map_err(|e| self.broken(&e))?;
        self.line()
    }

    /// Does the same with an answer of JSON.
    ///
    /// # Errors
    /// As [`Connection::ask`].
    pub fn ask_json(&mut self, request: &str) -> Result<Value> {
        let line = self.ask(request)?;
        serde_json::from_str(&line)
            .map_err(|e| Error::data(format!("read the answer of the client: {e}")))
    }

    /// Returns what the client says of itself.
    ///
    /// # Errors
    /// As [`Connection::ask`].
    pub fn about(&mut self) -> Result<About> {
        let status = self.ask_json("status")?;
        let own = status.pointer("/Advertisements/0");
        let own = |key| own.and_then(|own: &Value| own.get(key));
        let commands = own("WorkCommands").and_then(Value::as_array);
        let name = |command: &Value| Some(command.get("WorkType")?.as_str()?.to_owned());
        Ok(About {
            types: commands.into_iter().flatten().filter_map(name).collect(),
            submit_only: own("Tags").is_some_and(|tags| tags.get(SUBMIT_ONLY).is_some()),
        })
    }

    /// Returns the error of a connection that has failed.
    fn broken(&mut self, e: &io::Error) -> Error {
        let cause = match is_late(e) {
            true => {
                self.was_late = true;
                note_silence(&self.folder);
                LATE.to_owned()
            }
            false => e.to_string(),
        };
        Error::new(Kind::Unavailable, format!("ask the client: {cause}"))
    }

    /// Returns the next line.
    ///
    /// # Errors
    /// As [`Connection::ask`].
    pub fn line(&mut self) -> Result<String, Refused> {
        let mut line = String::new();
        let read = (&mut self.stream).take(MAX_ANSWER).read_line(&mut line);
        read.map_err(|e| self.broken(&e))?;
        let Some(line) = line.strip_suffix('\n') else {
            let cause = "ask the client: it has closed the connection";
            return Err(Error::new(Kind::Unavailable, cause).into());
        };
        let Some(cause) = line.strip_prefix("ERROR: ") else {
            return Ok(line.to_owned());
        };
        let kind = match cause.starts_with(TRY_AGAIN) {
            true => Kind::TryAgain,
            false => Kind::Data,
        };
        let text = format!("{}: {}", self.task, printable(cause, 2000));
        Err(Refused {
            refusal: Refusal::of(cause),
            error: Error::new(kind, text),
        })
    }
}
