//! Ends of runs, and their line of JSON in the folder of the unit, in the ledger, and from the
//! runner to the client.

use std::fmt;

use serde_json::{Value, json};

use crate::model::state::State;

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The command exited with this code.
    Exited(i32),
    /// The command was killed by this signal.
    Signaled(i32),
    /// The command could not be started.
    NotStarted(String),
    /// The run vanished with its host or its runner, so that its end is unknown.
    Interrupted,
}

impl End {
    /// Returns the code that a shell would show: the exit code, or 128 plus the signal. A run that
    /// vanished counts as killed (137). A command that never started has none.
    ///
    /// Source: POSIX.1-2017, Shell Command Language, section 2.8.2; 128 is the choice of bash.
    #[must_use]
    pub const fn return_code(&self) -> Option<i32> {
        match self {
            Self::Exited(code) => Some(*code),
            Self::Signaled(signal) => Some(128 + *signal),
            Self::Interrupted => Some(128 + 9),
            Self::NotStarted(_) => None,
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(code) => write!(f, "exited with {code}"),
            Self::Signaled(signal) => write!(f, "killed by signal {signal}"),
            Self::NotStarted(cause) => write!(f, "not started: {cause}"),
            Self::Interrupted => f.write_str("interrupted"),
        }
    }
}

/// Why a runner ended a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// On request.
    Canceled,
    /// Its time was up.
    TimedOut,
}

/// Report of a runner about a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// How the command ended.
    pub end: End,
    /// Why the runner ended it, if it did.
    pub stopped: Option<Stopped>,
    /// When the command was started, milliseconds since 1970.
    pub started: i64,
    /// Duration of the run, microseconds on the monotonic clock.
    pub elapsed: u64,
    /// Largest resident set of the processes of the command, KiB (`getrusage(2)`).
    pub max_rss: u64,
    /// CPU time of the processes of the command, user and system, microseconds.
    pub cpu: u64,
    /// Bytes dropped from the middle of stdout and stderr.
    pub dropped: [u64; 2],
    /// Processes that could not be ended, for people; they may still run.
    pub remains: Option<String>,
    /// What else people must know of it: another node has lost it, or has other output.
    pub note: Option<String>,
}

impl Outcome {
    /// Returns the outcome of a unit whose command could not be started.
    pub fn not_started(cause: impl fmt::Display) -> Self {
        Self::without_run(End::NotStarted(cause.to_string()), 0)
    }

    /// Returns the outcome of a run that vanished; `started` is 0 if unknown.
    #[must_use]
    pub const fn interrupted(started: i64) -> Self {
        Self::without_run(End::Interrupted, started)
    }

    const fn without_run(end: End, started: i64) -> Self {
        Self {
            end,
            stopped: None,
            started,
            elapsed: 0,
            max_rss: 0,
            cpu: 0,
            dropped: [0, 0],
            remains: None,
            note: None,
        }
    }

    /// Returns the state of a unit with this outcome.
    #[must_use]
    pub const fn state(&self) -> State {
        match (self.stopped, &self.end) {
            (Some(Stopped::Canceled), _) => State::Canceled,
            (None, End::Exited(0)) => State::Succeeded,
            _ => State::Failed,
        }
    }

    /// Returns whether it was canceled before its command began.
    #[must_use]
    pub fn was_canceled_before_it_began(&self) -> bool {
        matches!(self.end, End::NotStarted(_)) && self.stopped == Some(Stopped::Canceled)
    }

    /// Returns the end that is published. A command that was stopped and still ended with 0 has not
    /// done its work, and counts as ended by the TERM.
    #[must_use]
    pub fn reported(&self) -> End {
        match (&self.end, self.stopped) {
            (End::Exited(0), Some(_)) => End::Signaled(15),
            (end, _) => end.clone(),
        }
    }
}

/// Returns an outcome as its file contains it.
#[must_use]
pub fn outcome_text(outcome: &Outcome) -> String {
    let end = match &outcome.end {
        End::Exited(code) => json!({"exited": code}),
        End::Signaled(signal) => json!({"signaled": signal}),
        End::NotStarted(cause) => json!({"not_started": cause}),
        End::Interrupted => json!("interrupted"),
    };
    let stopped = outcome.stopped.map(|stopped| match stopped {
        Stopped::Canceled => "canceled",
        Stopped::TimedOut => "timed-out",
    });
    let mut text = json!({
        "end": end,
        "stopped": stopped,
        "started_ms": outcome.started,
        "elapsed_us": outcome.elapsed,
        "max_rss_kib": outcome.max_rss,
        "cpu_us": outcome.cpu,
        "dropped_stdout": outcome.dropped[0],
        "dropped_stderr": outcome.dropped[1],
        "remains": outcome.remains,
    });
    if let (Some(note), Some(map)) = (&outcome.note, text.as_object_mut()) {
        map.insert("note".to_owned(), json!(note));
    }
    text.to_string()
}

/// Reads the text of [`outcome_text`].
#[must_use]
pub fn parse_outcome(bytes: &[u8]) -> Option<Outcome> {
    let value: Value = serde_json::from_slice(bytes).ok()?;
    let number = |key: &str| value.get(key).and_then(Value::as_u64);
    let text = |key: &str| match value.get(key) {
        None | Some(Value::Null) => Some(None),
        Some(text) => text.as_str().map(|text| Some(text.to_owned())),
    };
    let code = |v: &Value| v.as_i64().and_then(|n| i32::try_from(n).ok());
    let end = value.get("end")?;
    let end = match end.as_object().and_then(|o| o.iter().next()) {
        Some((kind, v)) => match kind.as_str() {
            "exited" => End::Exited(code(v)?),
            "signaled" => End::Signaled(code(v)?),
            "not_started" => End::NotStarted(v.as_str()?.to_owned()),
            _ => return None,
        },
        None if end == "interrupted" => End::Interrupted,
        None => return None,
    };
    let stopped = match value.get("stopped")? {
        Value::Null => None,
        v => match v.as_str()? {
            "canceled" => Some(Stopped::Canceled),
            "timed-out" => Some(Stopped::TimedOut),
            _ => return None,
        },
    };
    Some(Outcome {
        end,
        stopped,
        started: value.get("started_ms")?.as_i64()?,
        elapsed: number("elapsed_us")?,
        max_rss: number("max_rss_kib")?,
        cpu: number("cpu_us")?,
        dropped: [number("dropped_stdout")?, number("dropped_stderr")?],
        // Earlier versions did not write them.
        remains: text("remains")?,
        note: text("note")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn outcomes() -> impl Strategy<Value = Outcome> {
        let end = prop_oneof![
            any::<i32>().prop_map(End::Exited),
            (1..64).prop_map(End::Signaled),
            any::<String>().prop_map(End::NotStarted),
            Just(End::Interrupted),
        ];
        let stopped = prop_oneof![
            Just(None),
            Just(Some(Stopped::Canceled)),
            Just(Some(Stopped::TimedOut))
        ];
        (
            end,
            stopped,
            any::<(i64, u64, u64, u64, [u64; 2], [Option<String>; 2])>(),
        )
            .prop_map(
                |(end, stopped, (started, elapsed, max_rss, cpu, dropped, [remains, note]))| {
                    Outcome {
                        end,
                        stopped,
                        started,
                        elapsed,
                        max_rss,
                        cpu,
                        dropped,
                        remains,
                        note,
                    }
                },
            )
    }

    proptest! {
        #[test]
        fn outcomes_are_read_as_written(outcome in outcomes()) {
            prop_assert_eq!(parse_outcome(outcome_text(&outcome).as_bytes()), Some(outcome));
        }

        #[test]
        fn half_an_outcome_is_none(outcome in outcomes(), cut in 0.0..1.0f64) {
            let text = outcome_text(&outcome);
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
            let part = &text.as_bytes()[..(text.len() as f64 * cut) as usize];
            prop_assert_eq!(parse_outcome(part), None);
        }
    }

    #[test]
    fn outcomes_have_states_and_codes() {
        let outcome = |end, stopped| Outcome {
            end,
            stopped,
            ..Outcome::interrupted(0)
        };
        let state = |end, stopped| outcome(end, stopped).state();
        assert_eq!(state(End::Exited(0), None), State::Succeeded);
        assert_eq!(state(End::Exited(1), None), State::Failed);
        assert_eq!(
            state(End::Signaled(15), Some(Stopped::Canceled)),
            State::Canceled
        );
        assert_eq!(
            state(End::Signaled(15), Some(Stopped::TimedOut)),
            State::Failed
        );
        let calm = outcome(End::Exited(0), Some(Stopped::TimedOut));
        assert_eq!(
            (calm.state(), calm.reported()),
            (State::Failed, End::Signaled(15))
        );
        assert_eq!(End::Signaled(9).return_code(), Some(137));
        assert_eq!(End::Interrupted.return_code(), Some(137));
        assert_eq!(End::NotStarted(String::new()).return_code(), None);
    }
}
