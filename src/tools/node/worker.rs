//! Runs the commands of a node, one after another.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, sleep_until};
use tracing::warn;

use crate::error::{Error, Kind, Result};
use crate::model::duration;
use crate::model::node::{Command, FAILED, TERMINATE};
use crate::model::text::printable;
use crate::net::transfer::{self, Sent};
use crate::os::logging::SENDERS;
use crate::tools::node::shell::Shell;
use crate::tools::node::{Means, Options};

/// A message of a worker.
#[derive(Debug)]
pub(super) enum Said {
    /// A status to publish.
    Status(String),
    /// It was told to end.
    Done,
}

/// Exit code of an unknown command, as in a shell (POSIX.1-2017, Shell Command Language, section
/// 2.8.2).
const NOT_FOUND: i32 = 127;

/// Exit code of a function that has ended its shell.
const SHELL_ENDED: i32 = 125;

/// Ends background processes, also at the end of the node.
const STOP_BACKGROUND: &str = r#"
tael_stop() {
    [ -z "${BACKGROUND[*]}" ] || kill -- "${BACKGROUND[@]/#/-}" 2>/dev/null
    BACKGROUND=()
}
trap 'tael_stop; exit 0' TERM
"#;

/// What a command calls, and the status after it.
#[derive(Debug, Clone)]
struct Call {
    function: String,
    status: String,
}

/// A worker with its shell.
pub(super) struct Worker {
    shell: Option<Shell>,
    functions: Option<PathBuf>,
    text: String,
    calls: HashMap<String, Call>,
    allow: Vec<PathBuf>,
    max_ahead: Duration,
    said: mpsc::UnboundedSender<Said>,
}

/// Until when earlier commands may run after TERMINATE; `None` before that.
pub(super) type Deadline = watch::Receiver<Option<Instant>>;

/// Returns when TERMINATE has come, with the time until which commands may run.
async fn told_to_end(mut deadline: Deadline) -> Instant {
    loop {
        if let Some(until) = *deadline.borrow_and_update() {
            return until;
        }
        if deadline.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

impl Worker {
    /// Starts the shell, and returns when it is ready for calls.
    ///
    /// # Errors
    /// When there is no bash (69), or the functions cannot be read or `initFunction` fails (78).
    pub async fn start(options: &Options, said: mpsc::UnboundedSender<Said>) -> Result<Self> {
        let call = |name: &str, function: &str, status: &str| {
            let call = Call {
                function: function.to_owned(),
                status: status.to_owned(),
            };
            (name.to_owned(), call)
        };
        let (functions, text, calls) = match &options.means {
            Means::Functions(file) => {
                let calls = [
                    call("START", "startFunction", "STARTED"),
                    call("STOP", "stopFunction", "STOPPED"),
                ];
                (Some(file.clone()), String::new(), calls.into())
            }
            Means::Lines(lines) => {
                let mut text = "BACKGROUND=()\n".to_owned();
                let mut calls = HashMap::new();
                for (n, line) in lines.iter().enumerate() {
                    let function = format!("tael_command_{n}");
                    // This is text of the operator; text of a sender is in the arguments.
                    let body = match line.background {
                        // It has a process group of its own, so that all of it can be ended.
                        true => {
                            format!("set -m; {{ {}\n}} & BACKGROUND+=(\"$!\"); set +m", line.run)
                        }
                        false => line.run.clone(),
                    };
                    text += &format!("{function}() {{\n{body}\n}}\n");
                    calls.extend([call(&line.name, &function, &line.status)]);
                }
                text += STOP_BACKGROUND;
                if !calls.contains_key("STOP") {
                    calls.extend([call("STOP", "tael_stop", "STOPPED")]);
                }
                (None, text, calls)
            }
        };
        let mut worker = Self {
            shell: None,
            functions,
            text,
            calls,
            allow: options.allow.clone(),
            max_ahead: options.max_ahead,
            said,
        };
        let code = worker.start_shell().await?;
        if code != Some(0) {
            worker.end(options.grace);
            let what = match options.means {
                Means::Functions(ref file) => file.display().to_string(),
                Means::Lines(_) => "the commands of the configuration".to_owned(),
            };
            let cause = match code {
                Some(code) => format!("initFunction has failed with {code}"),
                None => "the shell could not read it".to_owned(),
            };
            return Err(Error::config(format!("use {what}: {cause}")));
        }
        Ok(worker)
    }

    async fn start_shell(&mut self) -> Result<Option<i32>> {
        let functions = self.functions.as_deref().unwrap_or(Path::new(""));
        let mut shell = Shell::start(functions, &self.text)
            .map_err(|e| Error::new(Kind::Unavailable, format!("start bash: {e}")))?;
        let code = shell.reply().await;
        self.shell = Some(shell);
        Ok(code)
    }

    fn say(&self, text: impl Into<String>) {
        // The node may be ending, and not listen any more.
        let _ = self.said.send(Said::Status(text.into()));
    }

    /// Runs commands until it is told to end: by a command, by `terminate` or by `quit`. Returns
    /// itself, to be ended.
    pub async fn work(
        mut self,
        mut commands: mpsc::Receiver<Command>,
        terminate: Deadline,
        mut quit: oneshot::Receiver<()>,
    ) -> Self {
        let overdue = async { sleep_until(told_to_end(terminate.clone()).await).await };
        tokio::pin!(overdue);
        loop {
            let command = tokio::select! {
                biased;
                _ = &mut quit => return self,
                () = &mut overdue => break,
                command = commands.recv() => command,
            };
            let Some(command) = command else { return self };
            if command.name == TERMINATE {
                break;
            }
            tokio::select! {
                biased;
                _ = &mut quit => return self,
                () = &mut overdue => break,
                () = self.carry_out(&command, &terminate) => {}
            }
        }
        self.say(format!("Command {TERMINATE} received"));
        let _ = self.said.send(Said::Done);
        self
    }

    async fn carry_out(&mut self, command: &Command, terminate: &Deadline) {
        self.say(format!(
            "Command {} received",
            printable(&command.name, 200)
        ));
        if let Some(at) = command.at {
            let left = at.saturating_sub(Timestamp::now().as_millisecond());
            let left = Duration::from_millis(u64::try_from(left).unwrap_or(0));
            if left > self.max_ahead {
                warn!(
                    target: SENDERS,
                    "refused a command that begins in {}: --max-ahead allows {}",
                    duration::rough(left),
                    duration::text(self.max_ahead)
                );
                return self.say(format!("{FAILED} {}", Kind::Data.exit_code()));
            }
            tokio::select! {
                biased;
                _ = told_to_end(terminate.clone()) => {
                    return self.say(format!("{FAILED} {}", Kind::TryAgain.exit_code()));
                }
                () = sleep(left) => {}
            }
        }
        let done = if command.name == "SENDFILE" {
            self.say("SENDING FILE");
            self.send_file(&command.words).await
        } else {
            match self.calls.get(&command.name).cloned() {
                Some(call) => self.call(&call, &command.words).await,
                None => {
                    warn!(target: SENDERS, "'{}' is not a command of this node", printable(&command.name, 80));
                    Err(NOT_FOUND)
                }
            }
        };
        match done {
            Ok(status) => self.say(status),
            Err(code) => self.say(format!("{FAILED} {code}")),
        }
    }

    async fn call(&mut self, call: &Call, words: &[String]) -> Result<String, i32> {
        if self.shell.is_none() {
            match self.start_shell().await {
                Ok(Some(0)) => {}
                other => {
                    warn!("the shell cannot be started again: {other:?}");
                    return Err(SHELL_ENDED);
                }
            }
        }
        let Some(shell) = &mut self.shell else {
            return Err(SHELL_ENDED);
        };
        let code = match shell.call(&call.function, words) {
            Ok(()) => shell.reply().await,
            Err(_) => None,
        };
        match code {
            Some(0) => Ok(call.status.clone()),
            Some(code) => Err(code),
            None => {
                warn!(
                    target: SENDERS,
                    "{} has ended the shell; the next command starts a new one",
                    call.function
                );
                if let Some(shell) = self.shell.take() {
                    shell.end(Duration::ZERO);
                }
                Err(SHELL_ENDED)
            }
        }
    }

    async fn send_file(&self, words: &[String]) -> Result<String, i32> {
        let refused = |cause: String, kind: Kind| {
            warn!(target: SENDERS, "file not sent: {cause}");
            Err(i32::from(kind.exit_code()))
        };
        let (file, address, port, how) = match words {
            [file, address, port] => (file, address, port, ""),
            [file, address, port, how, ..] => (file, address, port, how.as_str()),
            _ => return refused("SENDFILE has FILE ADDRESS PORT".into(), Kind::Data),
        };
        let Ok(port) = port.parse() else {
            return refused(
                format!("'{}' is not a port", printable(port, 20)),
                Kind::Data,
            );
        };
        let truncate = how == "TRUNCATE";
        let file = match transfer::open_confined(Path::new(file), &self.allow, truncate) {
            Ok(file) => file,
            Err(cause) => return refused(printable(&cause, 300), Kind::NotAuthorised),
        };
        match transfer::send(file, address.clone(), port, truncate).await {
            Ok(Sent::Whole) => Ok("SENT FILE".to_owned()),
            Ok(Sent::NotEmptied(cause)) => {
                refused(format!("sent, but not emptied: {cause}"), Kind::TryAgain)
            }
            Err(e) => refused(e.to_string(), Kind::Unavailable),
        }
    }

    /// Ends the shell, and what it has started.
    pub fn end(self, grace: Duration) {
        if let Some(shell) = self.shell {
            shell.end(grace);
        }
    }
}
