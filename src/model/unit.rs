//! A unit of work: one durable run of a command, its states and how it ends.

use std::fmt;

use bytes::Bytes;

use crate::model::event::Attributes;
use crate::model::variables::Variables;

/// Where a unit is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Accepted, waiting its turn.
    Pending,
    /// Handed to a runner.
    Running,
    /// Ended with code 0.
    Succeeded,
    /// Ended otherwise, or lost.
    Failed,
    /// Ended because somebody asked for it.
    Canceled,
}

impl State {
    /// Its name in records and listings.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Canceled => "canceled",
        }
    }

    /// The state of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [
            Self::Pending,
            Self::Running,
            Self::Succeeded,
            Self::Failed,
            Self::Canceled,
        ]
        .into_iter()
        .find(|state| state.name() == name)
    }

    /// Whether the unit has ended.
    #[must_use]
    pub const fn is_end(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Canceled)
    }

    /// Whether a unit may go from this state to `next`: the whole table.
    #[must_use]
    pub const fn may_become(self, next: Self) -> bool {
        match (self, next) {
            // Started; dropped before its start.
            (Self::Pending, Self::Running | Self::Canceled)
            // Never begun after all, found so by a later client.
            | (Self::Running, Self::Pending)
            // Ended.
            | (Self::Running, Self::Succeeded | Self::Failed | Self::Canceled)
            // Could not be started.
            | (Self::Pending, Self::Failed) => true,
            (Self::Pending, Self::Pending | Self::Succeeded)
            | (Self::Running, Self::Running)
            | (Self::Succeeded | Self::Failed | Self::Canceled, _) => false,
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The command exited with this code.
    Exited(i32),
    /// The command was killed by this signal.
    Signaled(i32),
    /// The command could not be started at all.
    NotStarted(String),
    /// The run vanished, with its host or its runner, and nobody saw how it ended.
    Interrupted,
}

impl End {
    /// The code a shell would show: the exit code, or 128 plus the signal. A run that
    /// vanished counts as killed (137), one that never was has none.
    ///
    /// Source: POSIX.1-2017, Shell Command Language, section 2.8.2; bash's choice of 128.
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

/// Why a runner ended a command before it ended itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// Somebody asked for it.
    Canceled,
    /// Its time was up.
    TimedOut,
}

/// What a runner reports of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// How the command ended.
    pub end: End,
    /// Whether the runner had to end it.
    pub stopped: Option<Stopped>,
    /// When the command was started, milliseconds since the epoch.
    pub started: i64,
    /// How long it ran, microseconds on the monotonic clock.
    pub elapsed: u64,
    /// Largest resident set of the command's processes, KiB (`getrusage(2)`).
    pub max_rss: u64,
    /// CPU time of the command's processes, user and system, microseconds.
    pub cpu: u64,
    /// Bytes dropped from the middle of stdout and stderr.
    pub dropped: [u64; 2],
    /// What of the run could not be ended, for people; it may be running still.
    pub remains: Option<String>,
}

impl Outcome {
    /// The outcome of a unit whose command could not be started.
    pub fn not_started(cause: impl fmt::Display) -> Self {
        Self::without_run(End::NotStarted(cause.to_string()), 0)
    }

    /// The outcome of a run that vanished; `started` is 0 if that is not known.
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
        }
    }

    /// The state of a unit with this outcome.
    #[must_use]
    pub const fn state(&self) -> State {
        match (self.stopped, &self.end) {
            (Some(Stopped::Canceled), _) => State::Canceled,
            (None, End::Exited(0)) => State::Succeeded,
            _ => State::Failed,
        }
    }

    /// Whether somebody has asked for its end, and nothing was begun.
    #[must_use]
    pub fn was_canceled_before_it_began(&self) -> bool {
        matches!(self.end, End::NotStarted(_)) && self.stopped == Some(Stopped::Canceled)
    }

    /// The end that others are told: a command that was stopped and still ended with 0 has
    /// not done its job, and counts as ended by the TERM.
    #[must_use]
    pub fn reported(&self) -> End {
        match (&self.end, self.stopped) {
            (End::Exited(0), Some(_)) => End::Signaled(15),
            (end, _) => end.clone(),
        }
    }
}

/// What a unit needs to start, and what its statuses repeat.
#[derive(Debug, Clone, PartialEq)]
pub struct Unit {
    /// Its id, a ULID.
    pub id: String,
    /// Name of the trigger that it belongs to.
    pub trigger: String,
    /// Id of the event that it answers.
    pub event: String,
    /// Topic of the event.
    pub topic: String,
    /// Why it runs, for people: `<topic> finished`.
    pub reason: String,
    /// Pipelines passed by the event so far.
    pub hops: u32,
    /// W3C trace context to pass on.
    pub traceparent: Option<String>,
    /// Which try this is for its event, from 1.
    pub attempt: u32,
    /// The unit that this one tries again.
    pub retry_of: Option<String>,
    /// Not to be started before this time, milliseconds since the epoch.
    pub due: i64,
    /// What is exported to the command.
    pub variables: Variables,
    /// What is copied into the statuses.
    pub passthrough: Attributes,
    /// The command's standard input; `None` while only the ledger holds it.
    pub payload: Option<Bytes>,
    /// The command, for people.
    pub command: String,
}

impl Unit {
    /// Bytes of what is exported to the command.
    #[must_use]
    pub fn exported_bytes(&self) -> usize {
        let variables = self.variables.iter();
        variables
            .map(|(name, value)| name.len() + value.len())
            .sum()
    }
}

/// What the unit's folder says about a run that another client may have begun.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trace {
    /// Nothing was begun.
    Fresh,
    /// A runner holds its lock.
    Alive,
    /// It has ended.
    Ended(Outcome),
    /// It was begun, and neither runner nor outcome is left.
    Gone,
}

/// What a restarted client does with a unit that has not ended in the ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recovery {
    /// Queue it.
    Queue,
    /// Wait for its runner.
    Adopt,
    /// Book its end.
    Settle(Outcome),
    /// Book it as interrupted.
    Interrupted,
}

/// Decides what becomes of a unit found in `state` with `trace`; `same_boot` says whether the
/// host has been up since it was handed to a runner, `told` whether its start was booked.
///
/// After a power failure the folder may have forgotten the last seconds, so a unit that was
/// handed over under another boot counts as begun.
#[must_use]
pub fn recover(state: State, trace: Trace, same_boot: bool, told: bool) -> Recovery {
    match (trace, state) {
        (Trace::Alive, _) => Recovery::Adopt,
        (Trace::Ended(outcome), _) => Recovery::Settle(outcome),
        (Trace::Gone, _) => Recovery::Interrupted,
        // Its folder has been removed if its start is known.
        (Trace::Fresh, State::Running) if !same_boot || told => Recovery::Interrupted,
        (Trace::Fresh, _) => Recovery::Queue,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [State; 5] = [
        State::Pending,
        State::Running,
        State::Succeeded,
        State::Failed,
        State::Canceled,
    ];

    #[test]
    fn ends_are_final_and_names_round_trip() {
        for state in ALL {
            assert_eq!(State::from_name(state.name()), Some(state));
            for next in ALL {
                assert!(
                    !(state.is_end() && state.may_become(next)),
                    "{state} {next}"
                );
            }
        }
        assert_eq!(State::from_name("lost"), None);
        assert!(!State::Pending.may_become(State::Succeeded));
    }

    #[test]
    fn a_restarted_client_runs_nothing_twice() {
        let outcome = Outcome {
            end: End::Exited(0),
            ..Outcome::interrupted(1)
        };
        for state in [State::Pending, State::Running] {
            for boot in [true, false] {
                assert_eq!(recover(state, Trace::Alive, boot, false), Recovery::Adopt);
                assert_eq!(
                    recover(state, Trace::Gone, boot, false),
                    Recovery::Interrupted
                );
                let ended = Trace::Ended(outcome.clone());
                let settle = Recovery::Settle(outcome.clone());
                assert_eq!(recover(state, ended, boot, false), settle);
            }
        }
        let fresh = |state, boot| recover(state, Trace::Fresh, boot, false);
        assert_eq!(fresh(State::Pending, true), Recovery::Queue);
        assert_eq!(fresh(State::Pending, false), Recovery::Queue);
        assert_eq!(fresh(State::Running, true), Recovery::Queue);
        assert_eq!(fresh(State::Running, false), Recovery::Interrupted);
        let removed = recover(State::Running, Trace::Fresh, true, true);
        assert_eq!(removed, Recovery::Interrupted);
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
