//! `tael work submit`: starts work of a type that a running client has.

use std::fs::{self, File};
use std::io::{self, BufRead, Read, Write};
use std::net::Shutdown;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use crate::engine::control::socket::SOCKET;
use crate::error::{Error, Kind, Result};
use crate::model::duration;
use crate::model::receptor::{self, LOCALHOST, Refusal, SUBMITTED};
use crate::model::text::printable;
use crate::os::logging::say;
use crate::os::socket;
use crate::os::stdout::stdout;
use crate::os::terminal::Terminal;
pub use crate::tools::work::connection::Refused;
use crate::tools::work::connection::{About, Connection, is_silent};
use crate::tools::work::parameters;
use crate::tools::work::{LOOK, Scope};

/// Maximum time for a client that has stopped to come back, while its output is followed.
const RETURN: Duration = Duration::from_secs(60);

/// Maximum time for a client to say which types it has. One that is stopped holds up work for others for
/// this time.
const TYPES: Duration = Duration::from_secs(5);

/// Number of bytes of a payload to send at once.
const CHUNK: usize = 64 * 1024;

/// Work to submit.
#[derive(Debug, Clone)]
pub struct Submission {
    /// Its type.
    pub kind: String,
    /// Words for its command.
    pub words: Vec<String>,
    /// Parameters for its environment.
    pub named: Vec<(String, String)>,
    /// Its payload.
    pub payload: Payload,
    /// Id of the unit, if it is chosen.
    pub id: Option<String>,
    /// Whether to print its output until it ends.
    pub follow: bool,
    /// Whether to release it then.
    pub release: bool,
    /// Print a JSON object.
    pub json: bool,
    /// The other node that runs it, if one does.
    pub away: Option<Away>,
}

/// The node that runs work, while a client of this host keeps the unit.
#[derive(Debug, Clone)]
pub struct Away {
    /// Its name.
    pub node: String,
    /// Whether the client signs its requests.
    pub sign: bool,
    /// Time after which the node does not accept the work any more.
    pub ttl: Option<Duration>,
}

/// The payload of work.
#[derive(Debug, Clone)]
pub enum Payload {
    /// None.
    Nothing,
    /// This text.
    Text(String),
    /// The content of this file.
    File(PathBuf),
    /// What standard input has.
    Stdin,
}

/// A client that runs.
struct Client {
    who: String,
    folder: PathBuf,
}

/// Work that a client has taken.
struct Taken {
    unit: String,
    /// Whether the node that runs it has accepted it.
    accepted: bool,
}

/// Work that was submitted.
#[derive(Debug, Clone)]
pub struct Started {
    /// Its unit.
    pub unit: String,
    /// The pipeline of the client that keeps it.
    pub who: String,
    /// Whether the node that runs it has accepted it.
    pub accepted: bool,
}

/// Submits work with this payload, and returns when the ledger of a client has it.
///
/// # Errors
/// When no client runs (69), none has the type, or it refuses the work (65), or too much waits (75).
pub fn start(scope: &Scope, work: &Submission, payload: &mut dyn Read) -> Result<Started, Refused> {
    parameters::check(&work.named)?;
    let client = find(scope, work)?;
    let Taken { unit, accepted } = client.submit(work, payload)?;
    let who = client.who;
    Ok(Started {
        unit,
        who,
        accepted,
    })
}

/// Submits work, and follows it if that is wanted.
///
/// # Errors
/// When no client runs (69), none has the type, or it refuses the work (65), or too much waits (75).
/// While it is followed every error is 125: other codes may be that of the command.
pub(super) fn submit(scope: &Scope, work: &Submission) -> Result<ExitCode> {
    crate::tools::check_stdout()?;
    let mut payload = open(&work.payload)?;
    parameters::check(&work.named)?;
    let client = find(scope, work)?;
    let Taken { unit, accepted } = client.submit(work, &mut payload)?;
    if !work.follow {
        match (work.json, &work.away) {
            (false, _) => crate::tools::print(&unit)?,
            (true, None) => crate::tools::print_json(
                &json!({"unit": unit, "pipeline": client.who, "type": work.kind}),
            )?,
            (true, Some(away)) => crate::tools::print_json(&json!({
                "unit": unit,
                "pipeline": client.who,
                "type": work.kind,
                "node": away.node,
                "accepted": accepted,
            }))?,
        }
    }
    if Terminal::of_stderr().is_terminal() {
        if work.follow {
            say(&format!("unit {unit} of {}", client.who));
        }
        if let (Some(away), false) = (&work.away, accepted) {
            say(&format!(
                "unit {unit}: node {} has not accepted it yet; {} asks again until it does",
                away.node, client.who
            ));
        }
    }
    if !work.follow {
        return Ok(ExitCode::SUCCESS);
    }
    // Output that was not seen whole stays.
    let code = client
        .follow(&unit)
        .map_err(|e| e.into_kind(Kind::NoCode))?;
    if work.release {
        let released = client
            .connect()
            .and_then(|mut connection| Ok(connection.ask(&format!("work release {unit}"))?));
        if let Err(e) = released {
            say(&format!("release unit {unit}: {e}"));
        }
    }
    Ok(code)
}

/// Opens the payload.
fn open(payload: &Payload) -> Result<Box<dyn Read>> {
    Ok(match payload {
        Payload::Nothing => Box::new(io::empty()),
        Payload::Text(text) => Box::new(io::Cursor::new(format!("{text}\n"))),
        Payload::Stdin => Box::new(io::stdin()),
        Payload::File(path) => {
            let file = File::open(path)
                .map_err(|e| Error::config(format!("read payload {}: {e}", path.display())))?;
            Box::new(file)
        }
    })
}

/// Returns the client for `work`: that of the scope; otherwise the only one that runs and has the type,
/// or, for work of another node, the only one, or the only one that is there for that.
fn find(scope: &Scope, work: &Submission) -> Result<Client, Refused> {
    let state = scope.state.display();
    if let Some(who) = &scope.who {
        let client = Client {
            who: who.clone(),
            folder: scope.state.join(who),
        };
        return match client.about() {
            Ok(_) => Ok(client),
            Err(e) if client.is_there() => Err(silent(who, &e).into()),
            Err(_) => Err(unavailable(format!(
                "submit work: no client called '{who}' runs in {state}: start it with \
                 'tael client --who {who} --config FILE'"
            ))
            .into()),
        };
    }
    let (mut running, mut quiet) = (Vec::new(), None);
    let entries = fs::read_dir(&scope.state).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.map(|entry| entry.file_name()).collect();
    names.sort();
    for name in names {
        let client = Client {
            who: name.to_string_lossy().into_owned(),
            folder: scope.state.join(&name),
        };
        match client.about() {
            Ok(about) => running.push((client, about)),
            Err(e) if client.is_there() => {
                quiet.get_or_insert_with(|| silent(&client.who, &e));
            }
            Err(_) => {}
        }
    }
    match &work.away {
        Some(away) => Ok(keeper(scope, &away.node, running, quiet)?),
        None => having(scope, &work.kind, running, quiet),
    }
}

/// Returns the only one of the `running` clients that has the type `kind`. `quiet` is the error about
/// one that does not answer.
fn having(
    scope: &Scope,
    kind: &str,
    running: Vec<(Client, About)>,
    quiet: Option<Error>,
) -> Result<Client, Refused> {
    let shown = printable(kind, 80);
    let state = scope.state.display();
    let has = |(_, about): &(Client, About)| about.types.iter().any(|known| known == kind);
    let (mut having, others): (Vec<_>, Vec<_>) = running.into_iter().partition(has);
    if having.len() > 1 {
        return Err(Error::usage(format!(
            "submit work: several clients have type '{shown}': say which with --who: {}",
            names(&having)
        ))
        .into());
    }
    if having.is_empty()
        && let Some(e) = quiet
    {
        return Err(e.into());
    }
    let found = having.pop().map(|(client, _)| client);
    let other = |(client, about): &(Client, About)| {
        let types = list(&about.types);
        format!("{} has {types}", client.who)
    };
    found.ok_or_else(|| match others.is_empty() {
        true => unavailable(format!(
            "submit work: no client runs in {state}: start one with 'tael client --config FILE', \
             whose file has [[work]] and type = \"{shown}\""
        ))
        .into(),
        false => Refused {
            refusal: Refusal::UnknownType,
            error: Error::data(format!(
                "submit work: no client has type '{shown}': {}",
                others.iter().map(other).collect::<Vec<_>>().join("; ")
            )),
        },
    })
}

/// Returns the one of the `running` clients that keeps units of `node`. `quiet` is the error about one
/// that does not answer.
fn keeper(
    scope: &Scope,
    node: &str,
    mut running: Vec<(Client, About)>,
    quiet: Option<Error>,
) -> Result<Client> {
    if running.len() > 1 {
        let is_for_it = |(_, about): &(Client, About)| about.submit_only;
        if running.iter().filter(|client| is_for_it(client)).count() == 1 {
            running.retain(is_for_it);
        }
    }
    if running.len() > 1 {
        return Err(Error::usage(format!(
            "submit work to node {node}: several clients run here: say with --who which keeps the \
             unit: {}",
            names(&running)
        )));
    }
    let state = scope.state.display();
    let none = || {
        unavailable(format!(
            "submit work to node {node}: no client runs in {state} that keeps the unit: start one \
             with 'tael client --who NAME --submit-only', or add --direct: then the node alone \
             keeps it"
        ))
    };
    let found = running.pop().map(|(client, _)| client);
    found.ok_or_else(|| quiet.unwrap_or_else(none))
}

fn unavailable(cause: String) -> Error {
    Error::new(Kind::Unavailable, cause)
}

fn names(clients: &[(Client, About)]) -> String {
    let names = clients.iter().map(|(client, _)| client.who.as_str());
    names.collect::<Vec<_>>().join(", ")
}

/// Sends all of `payload`. The inner error is that of the stream.
///
/// # Errors
/// When the payload cannot be read (65).
fn send(payload: &mut dyn Read, stream: &mut dyn Write) -> Result<io::Result<()>> {
    let mut chunk = vec![0; CHUNK];
    loop {
        let read = match payload.read(&mut chunk) {
            Ok(0) => return Ok(Ok(())),
            Ok(read) => read,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(Error::data(format!("read payload: {e}"))),
        };
        if let Err(e) = stream.write_all(chunk.get(..read).unwrap_or_default()) {
            return Ok(Err(e));
        }
    }
}

/// Returns the error about a client that runs and does not say which types it has.
fn silent(who: &str, cause: &Error) -> Error {
    let who = printable(who, 80);
    Error::new(
        cause.kind(),
        format!("submit work: the client '{who}' does not answer: {cause}"),
    )
}

/// Returns names of types for people.
fn list(types: &[String]) -> String {
    match types.is_empty() {
        true => "none".to_owned(),
        false => types.join(", "),
    }
}

impl Client {
    fn connect(&self) -> Result<Connection> {
        Connection::open(&self.folder)
    }

    /// Returns whether it runs, although it may not answer.
    fn is_there(&self) -> bool {
        is_silent(&self.folder) || socket::connect(&self.folder, SOCKET).is_ok()
    }

    /// Returns what it says of itself.
    fn about(&self) -> Result<About> {
        Connection::open_within(&self.folder, TYPES)?.about()
    }

    /// Submits work.
    fn submit(&self, work: &Submission, payload: &mut dyn Read) -> Result<Taken, Refused> {
        let mut connection = self.connect()?;
        let node = work.away.as_ref().map(|away| away.node.as_str());
        connection.task = format!(
            "submit work of type '{}' to {}",
            printable(&work.kind, 80),
            node.unwrap_or(&self.who)
        );
        let mut request = Map::new();
        for (key, value) in [
            ("command", "work"),
            ("subcommand", "submit"),
            ("node", node.unwrap_or(LOCALHOST)),
            ("worktype", &work.kind),
        ] {
            request.insert(key.to_owned(), value.into());
        }
        if !work.words.is_empty() {
            request.insert("words".to_owned(), json!(work.words));
        }
        if let Some(id) = &work.id {
            request.insert("workUnitID".to_owned(), json!(id));
        }
        if let Some(away) = &work.away {
            if let Some(ttl) = away.ttl {
                request.insert("ttl".to_owned(), duration::text(ttl).into());
            }
            if away.sign {
                request.insert("signwork".to_owned(), "true".into());
            }
        }
        for (key, value) in &work.named {
            request.insert(key.clone(), json!(value));
        }
        let asked = connection.ask(&Value::Object(request).to_string());
        let asked = asked.map_err(|e| self.explained(e, node.is_some()))?;
        let stream = connection.stream.get_mut();
        // Without its end, the client starts nothing.
        let sent = send(payload, stream)?.and_then(|()| stream.shutdown(Shutdown::Write));
        // A client that refuses a payload says why.
        let answer = connection.line();
        let answer = match (answer, sent) {
            (Ok(answer), _) => answer,
            (Err(_), Err(e)) => {
                let cause = format!("send the payload: {e}");
                return Err(Error::new(Kind::TryAgain, cause).into());
            }
            // It may be in the ledger.
            (Err(Refused { error: e, .. }), Ok(())) if e.kind() == Kind::Unavailable => {
                let unit = receptor::asks_for(&asked).unwrap_or("?");
                let cause = format!("{e}; it may have the work: submit it again with --id {unit}");
                return Err(Error::new(e.kind(), cause).into());
            }
            (Err(e), Ok(())) => return Err(self.explained(e, node.is_some())),
        };
        let answer: Value = serde_json::from_str(&answer).unwrap_or_default();
        let unit = answer.get("unitid").and_then(Value::as_str);
        let unit = unit.ok_or_else(|| Error::data("submit work: the client sent no unit"))?;
        Ok(Taken {
            unit: unit.to_owned(),
            accepted: answer.get("result").and_then(Value::as_str) != Some(SUBMITTED),
        })
    }

    /// Adds what to do to the refusal of a client.
    fn explained(&self, refused: Refused, is_away: bool) -> Refused {
        let Refused { refusal, error } = refused;
        let hint = match refusal {
            Refusal::NoParams => {
                "; its [[work]] table allows words and --param with params = true".to_owned()
            }
            Refusal::UnknownType if !is_away => match self.about() {
                Ok(about) => format!("; {} has {}", self.who, list(&about.types)),
                Err(_) => String::new(),
            },
            Refusal::UnknownType | Refusal::TryAgain | Refusal::OtherWork | Refusal::Other => {
                String::new()
            }
        };
        let error = Error::new(error.kind(), format!("{error}{hint}"));
        Refused { refusal, error }
    }

    fn status(&self, unit: &str) -> Result<Value> {
        self.connect()?.ask_json(&format!("work status {unit}"))
    }

    /// Prints the output of `unit` until it has ended, and returns the exit code of its command.
    fn follow(&self, unit: &str) -> Result<ExitCode> {
        let mut out =
            stdout().map_err(|e| Error::cannot_create(format!("write to stdout: {e}")))?;
        let (copied, stderr) = thread::scope(|scope| {
            let stderr = scope.spawn(|| self.copy(unit, "stderr", &mut io::stderr()));
            let copied = self.copy(unit, "stdout", &mut out);
            (copied, stderr.join())
        });
        copied?;
        stderr.unwrap_or_else(|_| Err(Error::bug("follow: the thread of stderr has failed")))?;
        let status = self.status(unit)?;
        if let Some(code) = status.get("ExitCode").and_then(Value::as_i64) {
            return Ok(crate::tools::exit_code(code));
        }
        let detail = status.get("Detail").and_then(Value::as_str);
        say(&format!(
            "unit {unit}: {}",
            printable(detail.unwrap_or("it did not run"), 500)
        ));
        Ok(ExitCode::from(Kind::NoCode.exit_code()))
    }

    /// Copies one stream of `unit` to `out`. A client may stop and start meanwhile.
    fn copy(&self, unit: &str, stream: &str, out: &mut dyn Write) -> Result<()> {
        let (mut from, mut is_last) = (0, false);
        let mut deadline = Instant::now() + RETURN;
        loop {
            let copied = self.copy_on(unit, stream, &mut from, out);
            let ended = copied.and_then(|()| {
                let state = self.status(unit)?.get("State").and_then(Value::as_u64);
                // From 2 on it has ended.
                Ok(state.is_some_and(|state| state >= 2))
            });
            match ended {
                Ok(_) if is_last => return Ok(()),
                // There may be more since the connection was cut.
                Ok(ended) => {
                    is_last = ended;
                    deadline = Instant::now() + RETURN;
                }
                Err(e) if matches!(e.kind(), Kind::Unavailable | Kind::TryAgain) => {
                    if Instant::now() >= deadline {
                        return Err(Error::new(
                            Kind::TryAgain,
                            format!(
                                "follow unit {unit}: {e}; it goes on: 'tael work results -f {unit}'"
                            ),
                        ));
                    }
                    thread::sleep(LOOK);
                }
                Err(e) => return Err(e),
            }
        }
    }

    /// Copies the stream from byte `from` on, which moves on, until the client closes the connection.
    fn copy_on(&self, unit: &str, stream: &str, from: &mut u64, out: &mut dyn Write) -> Result<()> {
        let mut connection = self.connect()?;
        let request = json!({
            "command": "work",
            "subcommand": "results",
            "unitid": unit,
            "stream": stream,
            "startpos": *from,
        });
        connection.ask(&request.to_string())?;
        // A command may be silent for as long as it likes.
        let socket = connection.stream.get_ref();
        let cut = |e: io::Error| Error::new(Kind::TryAgain, format!("read its output: {e}"));
        socket.set_read_timeout(None).map_err(cut)?;
        loop {
            let there = connection.stream.fill_buf().map_err(cut)?;
            if there.is_empty() {
                return Ok(());
            }
            let written = out.write_all(there).and_then(|()| out.flush());
            written.map_err(|e| {
                crate::tools::ended_by_reader(&e);
                Error::cannot_create(format!("write to {stream}: {e}"))
            })?;
            let used = there.len();
            *from += used as u64;
            connection.stream.consume(used);
        }
    }
}
