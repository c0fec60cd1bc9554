//! Triggers: which events start which command.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::model::condition::Condition;
use crate::model::env::Export;
use crate::model::event::{Event, MAX_HOPS, Refusal};
use crate::model::topic::Filter;

/// The command of a trigger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// `SHELL -c LINE`
    Shell {
        /// Path of the shell.
        shell: String,
        /// Line for the shell.
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

    /// Returns program and arguments to execute; never empty.
    ///
    /// A line for the standard shell without shell syntax is executed directly, as make does. The
    /// result is the same, at half the cost.
    #[must_use]
    pub fn argv(&self) -> Vec<&str> {
        match self {
            Self::Shell { shell, line } if shell == DEFAULT_SHELL && is_plain(line) => {
                line.split_ascii_whitespace().collect()
            }
            _ => self.shell_argv(),
        }
    }

    /// Returns program and arguments, with the shell if there is one.
    #[must_use]
    pub fn shell_argv(&self) -> Vec<&str> {
        match self {
            Self::Shell { shell, line } => vec![shell, "-c", line],
            Self::Direct(words) => words.iter().map(String::as_str).collect(),
        }
    }

    /// Returns the program, if its path is absolute.
    #[must_use]
    pub fn program(&self) -> Option<PathBuf> {
        let program = PathBuf::from(self.argv().into_iter().next()?);
        // The line of a shell names one too, but parsing it is the job of the shell.
        program.is_absolute().then_some(program)
    }

    /// Returns the command as the operator wrote it.
    #[must_use]
    pub fn text(&self) -> String {
        match self {
            Self::Shell { line, .. } => line.clone(),
            Self::Direct(words) => shell_words::join(words),
        }
    }
}

/// Default shell.
pub const DEFAULT_SHELL: &str = "/bin/sh";

/// Words that a shell executes itself: POSIX.1-2017 special built-ins, reserved words, and
/// built-ins without a program of the same meaning. The list extends that of make.
const BUILTINS: &[&str] = &[
    ".", ":", "alias", "bg", "break", "case", "cd", "command", "continue", "do", "done", "echo",
    "elif", "else", "esac", "eval", "exec", "exit", "export", "false", "fc", "fg", "fi", "for",
    "getopts", "hash", "if", "in", "jobs", "kill", "let", "local", "printf", "pwd", "read",
    "readonly", "return", "set", "shift", "source", "test", "then", "time", "times", "trap",
    "true", "type", "ulimit", "umask", "unalias", "unset", "until", "wait", "while", "function",
    "select", "[",
];

/// Returns whether a shell would only split `line` at blanks and execute it.
fn is_plain(line: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b" \t_-+./,:@%".contains(&b);
    line.bytes().all(plain)
        && line
            .split_ascii_whitespace()
            .next()
            .is_some_and(|first| !BUILTINS.contains(&first))
}

/// Policy for an event while all jobs of its trigger are busy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Overlap {
    /// It waits its turn.
    #[default]
    Queue,
    /// It is dropped.
    Skip,
    /// It replaces the oldest run, which is canceled; waiting events are dropped.
    Replace,
    /// It replaces the event that waits.
    Coalesce,
}

impl Overlap {
    /// Parses the value of the option.
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
                "'{text}' is not an overlap policy: queue, skip, replace or coalesce"
            )),
        }
    }
}

/// How the runs of a trigger are started and ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Maximum number of concurrent runs, at least 1.
    pub jobs: usize,
    /// Policy for an event while all jobs are busy.
    pub overlap: Overlap,
    /// Maximum time of a run; then it is canceled.
    pub timeout: Option<Duration>,
    /// Time between TERM and KILL when a run is canceled.
    pub grace: Duration,
    /// Number of times to retry a failed run.
    pub retries: u32,
    /// Delay before each retry.
    pub retry_delay: Duration,
    /// Policy for a run that vanished with its host or its runner.
    pub on_interrupt: OnInterrupt,
    /// Maximum number of runs a minute that messages without a number of hops start; 0 for no
    /// limit. `None` means [`DEFAULT_LOOP_RATE`] for messages of pipelines.
    pub loop_rate: Option<u32>,
}

/// Default number of runs a minute that messages of pipelines without a number of hops start.
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

/// Policy for a run that vanished, so that its end is unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnInterrupt {
    /// The run has failed.
    #[default]
    Fail,
    /// The run has failed, and its event runs again.
    Rerun,
}

impl OnInterrupt {
    /// Parses the value of the option.
    ///
    /// # Errors
    /// A text for the user.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text {
            "fail" => Ok(Self::Fail),
            "rerun" => Ok(Self::Rerun),
            _ => Err(format!("'{text}' is not a choice: fail or rerun")),
        }
    }
}

/// Topic filters, conditions, a command and a policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trigger {
    /// Name for people; unique in its client.
    pub name: String,
    /// Filters for its events; at least one.
    pub filters: Vec<Filter>,
    /// Conditions, all of which must hold.
    pub conditions: Vec<Condition>,
    /// Command to run.
    pub command: Command,
    /// Attributes that the command finds in its environment.
    pub export: Export,
    /// Names of variables that the statuses repeat.
    pub passthrough: Vec<String>,
    /// Whether retained messages count as events.
    pub accept_retained: bool,
    /// Working directory of the command; by default that of the client.
    pub cwd: Option<PathBuf>,
    /// File of variables, read at the start of each run.
    pub env_file: Option<PathBuf>,
    /// Silence after which it runs, instead of running for each event.
    pub absent: Option<Duration>,
    /// Policy for its runs.
    pub policy: Policy,
}

/// Decision about an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Run the command.
    Run,
    /// It is not for this trigger.
    Ignore,
    /// It should run and cannot.
    Refuse(Refusal),
}

/// Why an event does not fit a trigger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Objection<'a> {
    /// No filter matches its topic.
    Topic,
    /// It is a retained message.
    Retained,
    /// The pipeline itself has published it.
    Own,
    /// This condition does not hold.
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

    /// Decides the same for an event whose topic matches.
    #[must_use]
    pub fn decide_on_topic(&self, event: &Event, who: &str) -> Decision {
        if self.absent.is_none() && self.means_on_topic(event, who) {
            self.admit(event)
        } else {
            Decision::Ignore
        }
    }

    /// Returns whether conditions and origin of `event`, whose topic matches, fit the trigger of
    /// pipeline `who`.
    #[must_use]
    pub fn means_on_topic(&self, event: &Event, who: &str) -> bool {
        self.objection_on_topic(event, who).is_none()
    }

    /// Returns whether topic, conditions and origin of `event` fit the trigger.
    #[must_use]
    pub fn means(&self, event: &Event, who: &str) -> bool {
        self.objection(event, who).is_none()
    }

    /// Returns why `event` does not fit the trigger of pipeline `who`, if it does not.
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

    /// Decides about an event whose topic and conditions need no check, such as one that an
    /// operator has raised.
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
