//! When an event starts a command.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::model::condition::Condition;
use crate::model::env::Export;
use crate::model::event::{Event, MAX_HOPS, Refusal};
use crate::model::topic::Filter;

/// How a command is started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// `SHELL -c LINE`
    Shell {
        /// Path of the shell.
        shell: String,
        /// The line it runs.
        line: String,
    },
    /// Program and arguments, without a shell.
    Direct(Vec<String>),
}

impl Command {
    /// Splits `line` into words as a POSIX shell would, without expanding anything.
    ///
    /// # Errors
    /// A text for the user: no word, or an open quote.
    pub fn direct(line: &str) -> Result<Self, String> {
        match shell_words::split(line) {
            Ok(words) if !words.is_empty() => Ok(Self::Direct(words)),
            Ok(_) => Err("the command is empty".into()),
            Err(_) => Err(format!("command '{line}' has an open quote")),
        }
    }

    /// Program and arguments, ready to execute; never empty.
    ///
    /// A line for the standard shell that has no shell syntax in it is executed directly, as
    /// make does: the outcome is the same at half the cost.
    #[must_use]
    pub fn argv(&self) -> Vec<&str> {
        match self {
            Self::Shell { shell, line } if shell == DEFAULT_SHELL && is_plain(line) => {
                line.split_ascii_whitespace().collect()
            }
            _ => self.shell_argv(),
        }
    }

    /// Program and arguments, through the shell if there is one.
    #[must_use]
    pub fn shell_argv(&self) -> Vec<&str> {
        match self {
            Self::Shell { shell, line } => vec![shell, "-c", line],
            Self::Direct(words) => words.iter().map(String::as_str).collect(),
        }
    }

    /// The program that is executed, if it is named by an absolute path.
    #[must_use]
    pub fn program(&self) -> Option<PathBuf> {
        let program = PathBuf::from(self.argv().into_iter().next()?);
        // The line of a shell has one too, which is not for us to read.
        program.is_absolute().then_some(program)
    }

    /// The command as the operator wrote it.
    #[must_use]
    pub fn text(&self) -> String {
        match self {
            Self::Shell { line, .. } => line.clone(),
            Self::Direct(words) => shell_words::join(words),
        }
    }
}

/// The shell when none is chosen.
pub const DEFAULT_SHELL: &str = "/bin/sh";

/// Words that a shell executes itself: POSIX.1-2017 special built-ins, reserved words and
/// built-ins without a program of the same meaning; the list is make's, grown.
const BUILTINS: &[&str] = &[
    ".", ":", "alias", "bg", "break", "case", "cd", "command", "continue", "do", "done", "echo",
    "elif", "else", "esac", "eval", "exec", "exit", "export", "false", "fc", "fg", "fi", "for",
    "getopts", "hash", "if", "in", "jobs", "kill", "let", "local", "printf", "pwd", "read",
    "readonly", "return", "set", "shift", "source", "test", "then", "time", "times", "trap",
    "true", "type", "ulimit", "umask", "unalias", "unset", "until", "wait", "while", "function",
    "select", "[",
];

/// Whether a shell would do nothing with `line` but split it at blanks and execute it.
fn is_plain(line: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b" \t_-+./,:@%".contains(&b);
    line.bytes().all(plain)
        && line
            .split_ascii_whitespace()
            .next()
            .is_some_and(|first| !BUILTINS.contains(&first))
}

/// What happens to an event while all jobs of its trigger are busy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Overlap {
    /// It waits its turn.
    #[default]
    Queue,
    /// It is dropped.
    Skip,
    /// The oldest run is cancelled for it, and whatever waits is dropped.
    Replace,
    /// It waits, alone: one that waits already is dropped for it.
    Coalesce,
}

impl Overlap {
    /// Parses the option's value.
    ///
    /// # Errors
    /// A text for the user.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text {
            "queue" => Ok(Self::Queue),
            "skip" => Ok(Self::Skip),
            "replace" => Ok(Self::Replace),
            "coalesce" => Ok(Self::Coalesce),
            _ => Err(format!(
                "'{text}' is no overlap policy: queue, skip, replace or coalesce"
            )),
        }
    }
}

/// How many runs at once, and for how long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Runs of the trigger at one time, at least 1.
    pub jobs: usize,
    /// What happens to one event too many.
    pub overlap: Overlap,
    /// A run is cancelled after this time.
    pub timeout: Option<Duration>,
    /// Time between TERM and KILL when a run is cancelled.
    pub grace: Duration,
    /// Further tries of a run that failed.
    pub retries: u32,
    /// Wait before each of them.
    pub retry_delay: Duration,
    /// What happens to a run that vanished with its host or its runner.
    pub on_interrupt: OnInterrupt,
    /// Runs a minute that messages without a number of hops may start; 0 is no limit. Without, it
    /// is [`DEFAULT_LOOP_RATE`] for messages of pipelines.
    pub loop_rate: Option<u32>,
}

/// Runs a minute that messages of pipelines without a number of hops may start.
pub const DEFAULT_LOOP_RATE: u32 = 60;

impl Default for Policy {
    fn default() -> Self {
        Self {
            jobs: 1,
            overlap: Overlap::default(),
            timeout: None,
            grace: Duration::from_secs(10),
            retries: 0,
            retry_delay: Duration::ZERO,
            on_interrupt: OnInterrupt::default(),
            loop_rate: None,
        }
    }
}

/// What happens to a run that vanished, and nobody saw how it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnInterrupt {
    /// It has failed.
    #[default]
    Fail,
    /// It has failed, and its event runs once more.
    Rerun,
}

impl OnInterrupt {
    /// Parses the option's value.
    ///
    /// # Errors
    /// A text for the user.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text {
            "fail" => Ok(Self::Fail),
            "rerun" => Ok(Self::Rerun),
            _ => Err(format!("'{text}' is no choice: fail or rerun")),
        }
    }
}

/// Topic filters, conditions, a command and a policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trigger {
    /// What people call it; unique in its client.
    pub name: String,
    /// Where its events come from; at least one.
    pub filters: Vec<Filter>,
    /// All must hold.
    pub conditions: Vec<Condition>,
    /// What is run.
    pub command: Command,
    /// What the command finds in its environment.
    pub export: Export,
    /// Names from that environment that are copied into the statuses.
    pub passthrough: Vec<String>,
    /// Whether retained messages count as events.
    pub accept_retained: bool,
    /// Where it runs; the client's own working directory without.
    pub cwd: Option<PathBuf>,
    /// A file of variables, read when a run starts.
    pub env_file: Option<PathBuf>,
    /// Runs when nothing comes for so long, in place of when something does.
    pub absent: Option<Duration>,
    /// How it is run.
    pub policy: Policy,
}

/// What a trigger makes of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Run the command.
    Run,
    /// Nothing to do with it.
    Ignore,
    /// It should have run and cannot.
    Refuse(Refusal),
}

/// Why a trigger does not wait for an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Objection<'a> {
    /// No filter matches its topic.
    Topic,
    /// It is a retained message.
    Retained,
    /// The pipeline has sent it itself.
    Own,
    /// This does not hold.
    Condition(&'a Condition),
}

impl fmt::Display for Objection<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Topic => f.write_str("its topic is another one"),
            Self::Retained => f.write_str("it is retained, and --retained is 'ignore'"),
            Self::Own => f.write_str("it is the pipeline's own"),
            Self::Condition(condition) => write!(f, "{condition} does not hold"),
        }
    }
}

impl Trigger {
    /// Decides what pipeline `who` does with `event`.
    #[must_use]
    pub fn decide(&self, event: &Event, who: &str) -> Decision {
        if self.absent.is_none() && self.means(event, who) {
            self.admit(event)
        } else {
            Decision::Ignore
        }
    }

    /// The same for an event whose topic is known to match.
    #[must_use]
    pub fn decide_on_topic(&self, event: &Event, who: &str) -> Decision {
        if self.absent.is_none() && self.means_on_topic(event, who) {
            self.admit(event)
        } else {
            Decision::Ignore
        }
    }

    /// Whether conditions and origin of `event`, whose topic matches, are those that the trigger
    /// of pipeline `who` waits for.
    #[must_use]
    pub fn means_on_topic(&self, event: &Event, who: &str) -> bool {
        self.objection_on_topic(event, who).is_none()
    }

    /// Whether topic, conditions and origin of `event` are those that the trigger waits for.
    #[must_use]
    pub fn means(&self, event: &Event, who: &str) -> bool {
        self.objection(event, who).is_none()
    }

    /// What about `event` is not as the trigger of pipeline `who` waits for it.
    #[must_use]
    pub fn objection(&self, event: &Event, who: &str) -> Option<Objection<'_>> {
        let meant = |filter: &Filter| filter.matches(&event.topic);
        if self.filters.iter().any(meant) {
            self.objection_on_topic(event, who)
        } else {
            Some(Objection::Topic)
        }
    }

    fn objection_on_topic(&self, event: &Event, who: &str) -> Option<Objection<'_>> {
        let fails = |condition: &&Condition| !condition.holds(event);
        if event.retained && !self.accept_retained {
            Some(Objection::Retained)
        } else if event.who.as_deref() == Some(who) {
            Some(Objection::Own)
        } else {
            let failing = self.conditions.iter().find(fails);
            failing.map(Objection::Condition)
        }
    }

    /// What becomes of an event whose topic and conditions are not in question, as when it
    /// is raised by hand.
    #[must_use]
    pub fn admit(&self, event: &Event) -> Decision {
        if event.hops > MAX_HOPS {
            return Decision::Refuse(Refusal::Loop(event.hops));
        }
        let missing = self.export.missing(&event.attributes);
        if missing.is_empty() {
            Decision::Run
        } else {
            Decision::Refuse(Refusal::Missing(missing))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use serde_json::{Value, json};

    fn event(topic: &str, payload: Value) -> Event {
        Event {
            topic: topic.into(),
            payload: Bytes::from(payload.to_string()),
            attributes: payload.as_object().cloned().expect("object"),
            id: None,
            who: None,
            hops: 0,
            traceparent: None,
            retained: false,
        }
    }

    fn trigger() -> Trigger {
        Trigger {
            name: "t".into(),
            filters: vec![Filter::new("lab/+/status").expect("filter")],
            conditions: vec![Condition::parse("status=finished").expect("condition")],
            command: Command::direct("true").expect("command"),
            export: Export::new(None, vec!["sample".into()]).expect("export"),
            passthrough: vec![],
            accept_retained: false,
            cwd: None,
            env_file: None,
            absent: None,
            policy: Policy::default(),
        }
    }

    #[test]
    fn an_event_runs_when_topic_and_conditions_hold() {
        let good = event("lab/seq/status", json!({"status": "finished", "sample": 1}));
        assert_eq!(trigger().decide(&good, "me"), Decision::Run);
        for other in [
            event("lab/status", json!({"status": "finished", "sample": 1})),
            event("lab/seq/status", json!({"status": "started", "sample": 1})),
            event("lab/seq/status", json!({"sample": 1})),
            Event {
                retained: true,
                ..good.clone()
            },
            Event {
                who: Some("me".into()),
                ..good.clone()
            },
        ] {
            assert_eq!(
                trigger().decide(&other, "me"),
                Decision::Ignore,
                "{other:?}"
            );
        }
        let retained = Event {
            retained: true,
            ..good
        };
        let accepting = Trigger {
            accept_retained: true,
            ..trigger()
        };
        assert_eq!(accepting.decide(&retained, "me"), Decision::Run);
        let started = event("lab/seq/status", json!({"status": "started"}));
        let why = trigger().objection(&started, "me").map(|o| o.to_string());
        assert_eq!(why.as_deref(), Some("status=finished does not hold"));
    }

    #[test]
    fn a_meant_event_that_cannot_run_is_refused() {
        let lacking = event("lab/seq/status", json!({"status": "finished"}));
        assert_eq!(
            trigger().decide(&lacking, "me"),
            Decision::Refuse(Refusal::Missing(vec!["sample".into()]))
        );
        let mut looping = event("lab/seq/status", json!({"status": "finished", "sample": 1}));
        looping.hops = MAX_HOPS;
        assert_eq!(trigger().decide(&looping, "me"), Decision::Run);
        looping.hops += 1;
        assert_eq!(
            trigger().decide(&looping, "me"),
            Decision::Refuse(Refusal::Loop(33))
        );
    }

    #[test]
    fn only_plain_lines_go_without_a_shell() {
        let argv = |line: &str| {
            let command = Command::Shell {
                shell: DEFAULT_SHELL.into(),
                line: line.into(),
            };
            command.argv().join("|")
        };
        assert_eq!(argv("run-it --lane=1"), "/bin/sh|-c|run-it --lane=1");
        assert_eq!(argv(" ./run-it\t-x a/b.c "), "./run-it|-x|a/b.c");
        for line in [
            "a; b", "a $B", "a 'b'", "a | b", "A=1 b", "a *", "~/a", "echo a", "a\nb", "", "a #b",
            "a é",
        ] {
            assert_eq!(argv(line), format!("/bin/sh|-c|{line}"));
        }
    }

    #[test]
    fn words_are_split_and_never_expanded() {
        let command = Command::direct("run 'a b' $HOME `x`").expect("command");
        assert_eq!(command.argv(), ["run", "a b", "$HOME", "`x`"]);
        assert!(Command::direct(" ").is_err() && Command::direct("a 'b").is_err());
    }
}
