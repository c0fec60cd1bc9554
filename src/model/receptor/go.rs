//! States, ends and durations as Receptor prints them, which is written in Go.

use std::fmt::Write as _;
use std::time::Duration;

use crate::model::outcome::{End, Outcome, Stopped};
use crate::model::state::State;

/// Returns the number and the name that Receptor has for a state.
#[must_use]
pub const fn state(state: State) -> (u8, &'static str) {
    match state {
        State::Pending => (0, "Pending"),
        State::Running => (1, "Running"),
        State::Succeeded => (2, "Succeeded"),
        State::Failed => (3, "Failed"),
        State::Canceled => (4, "Canceled"),
    }
}

/// Returns a time, seconds since 1970, as Go prints it; none is the zero time of Go.
#[must_use]
pub fn time(at: Option<i64>) -> String {
    let at = at.and_then(|at| jiff::Timestamp::from_second(at).ok());
    at.map_or_else(|| "0001-01-01T00:00:00Z".into(), |at| at.to_string())
}

/// Names of signals as Go prints them (`syscall.Signal.String`, Linux).
const SIGNALS: &[(i32, &str)] = &[
    (1, "hangup"),
    (2, "interrupt"),
    (3, "quit"),
    (4, "illegal instruction"),
    (6, "aborted"),
    (8, "floating point exception"),
    (9, "killed"),
    (11, "segmentation fault"),
    (13, "broken pipe"),
    (14, "alarm clock"),
    (15, "terminated"),
];

/// Returns what people read of a unit: how its command has ended, as Go prints it, or why it has not.
#[must_use]
pub fn detail(state: State, outcome: Option<&Outcome>, note: Option<&str>) -> String {
    match (state, outcome) {
        // Of a unit on another node, the note says what it waits for.
        (State::Pending | State::Running, _) if note.is_some() => {
            note.unwrap_or_default().to_owned()
        }
        (State::Pending, _) => "Waiting for a job".into(),
        (State::Running, _) => "Running".into(),
        (State::Canceled, _) => "Canceled".into(),
        (_, None) => note.unwrap_or("it did not run").to_owned(),
        (_, Some(outcome)) => {
            let end = match &outcome.end {
                End::Exited(code) => format!("exit status {code}"),
                End::Signaled(number) => {
                    let known = SIGNALS.iter().find(|(known, _)| known == number);
                    match known {
                        Some((_, name)) => format!("signal: {name}"),
                        None => format!("signal: signal {number}"),
                    }
                }
                End::NotStarted(cause) => format!("not started: {cause}"),
                End::Interrupted => outcome
                    .note
                    .clone()
                    .unwrap_or_else(|| "lost: it ended with its host or its runner".into()),
            };
            match outcome.stopped {
                Some(Stopped::TimedOut) => format!("timed out: {end}"),
                _ => end,
            }
        }
    }
}

/// Returns `time` as Go prints a duration: `123µs`, `1.5ms`, `2m0s` (`time.Duration.String`).
#[must_use]
pub fn duration(time: Duration) -> String {
    let nanos = time.as_nanos();
    let fraction = |unit: u128, name: &str| {
        let mut text = format!("{}", nanos / unit);
        let rest = nanos % unit;
        if rest > 0 {
            let digits = unit.ilog10() as usize;
            let digits = format!("{rest:0digits$}");
            let _ = write!(text, ".{}", digits.trim_end_matches('0'));
        }
        text + name
    };
    match nanos {
        0 => "0s".into(),
        1..1_000 => format!("{nanos}ns"),
        1_000..1_000_000 => fraction(1_000, "µs"),
        1_000_000..1_000_000_000 => fraction(1_000_000, "ms"),
        _ if time.as_secs() < 60 => fraction(1_000_000_000, "s"),
        _ => {
            let seconds = time.as_secs();
            let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
            let hours = if hours > 0 {
                format!("{hours}h")
            } else {
                String::new()
            };
            format!("{hours}{minutes}m{}s", seconds % 60)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_read_as_go_prints_them() {
        let ended = |end| Outcome {
            end,
            ..Outcome::interrupted(1)
        };
        let of = |outcome: &Outcome| detail(outcome.state(), Some(outcome), None);
        assert_eq!(of(&ended(End::Exited(0))), "exit status 0");
        assert_eq!(of(&ended(End::Exited(3))), "exit status 3");
        assert_eq!(of(&ended(End::Signaled(9))), "signal: killed");
        assert_eq!(of(&ended(End::Signaled(40))), "signal: signal 40");
        let timed_out = Outcome {
            stopped: Some(Stopped::TimedOut),
            ..ended(End::Signaled(15))
        };
        assert_eq!(of(&timed_out), "timed out: signal: terminated");
        assert_eq!(detail(State::Canceled, None, Some("dropped")), "Canceled");
    }

    #[test]
    fn durations_read_as_go_prints_them() {
        let cases = [
            (0, "0s"),
            (999, "999ns"),
            (1_500, "1.5µs"),
            (123_000, "123µs"),
            (1_500_000, "1.5ms"),
            (2_000_000_000, "2s"),
            (120_000_000_000, "2m0s"),
            (3_661_000_000_000, "1h1m1s"),
        ];
        for (nanos, text) in cases {
            assert_eq!(duration(Duration::from_nanos(nanos)), text);
        }
    }
}
