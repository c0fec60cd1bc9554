//! The states of a unit, and the table of their changes.
//!
//! The ledger asks [`Stage::on`] before each change. A cell of the table is the next stage, the end
//! of the record of the unit, "too late", or illegal. A change is too late if it lost a race: an
//! operator may cancel a unit with `tael work` while its client starts it. An illegal change is a
//! bug in this program. Nothing is changed then, and the ledger logs an error.

use std::fmt;

/// State of a unit, as records and lists name it.
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
    /// Ended on request.
    Canceled,
}

impl State {
    /// Returns its name in records and lists.
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

    /// Returns the state of a name.
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

    /// Returns whether the unit has ended.
    #[must_use]
    pub const fn is_end(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Canceled)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A state, and whether the ledger knows that the command has started. Until then a unit that a
/// runner has may wait again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// It waits.
    Pending,
    /// A runner has it, and may not have started its command yet.
    Handed,
    /// Its command has started.
    Begun,
    /// Its command ended with 0.
    Succeeded,
    /// Its command ended otherwise, could not be started, or vanished.
    Failed,
    /// It was canceled.
    Canceled,
}

/// A change of a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It goes to a runner.
    Start,
    /// Its runner has not begun it: it waits again.
    TakeBack,
    /// Its command has started.
    Begin,
    /// It will not run.
    Drop,
    /// Its run has ended in this state, which is an end.
    End(State),
    /// Its record is deleted.
    Release,
    /// Its record is deleted, in every state.
    ForceRelease,
}

/// Result of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// The unit enters this stage.
    Stage(Stage),
    /// The ledger forgets it.
    Gone,
    /// Nothing changes: another change was faster.
    TooLate,
}

/// A change that this program must not request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IllegalChange {
    /// Stage of the unit.
    pub stage: Stage,
    /// The impossible change.
    pub change: Change,
}

impl fmt::Display for IllegalChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { stage, change } = self;
        write!(f, "illegal change of a unit that is {stage}: {change}")
    }
}

impl Stage {
    /// All stages, in the order of the life of a unit.
    pub const ALL: [Self; 6] = [
        Self::Pending,
        Self::Handed,
        Self::Begun,
        Self::Succeeded,
        Self::Failed,
        Self::Canceled,
    ];

    /// Returns the stage of a unit in `state`; `begun` is whether the start of its command is
    /// known.
    #[must_use]
    pub const fn of(state: State, begun: bool) -> Self {
        match state {
            State::Pending => Self::Pending,
            State::Running if begun => Self::Begun,
            State::Running => Self::Handed,
            State::Succeeded => Self::Succeeded,
            State::Failed => Self::Failed,
            State::Canceled => Self::Canceled,
        }
    }

    /// Returns the state for records.
    #[must_use]
    pub const fn state(self) -> State {
        match self {
            Self::Pending => State::Pending,
            Self::Handed | Self::Begun => State::Running,
            Self::Succeeded => State::Succeeded,
            Self::Failed => State::Failed,
            Self::Canceled => State::Canceled,
        }
    }

    /// Decides what `change` makes of a unit. This is the whole table.
    ///
    /// # Errors
    /// When this program must not request the change.
    pub const fn on(self, change: Change) -> Result<Next, IllegalChange> {
        use Stage::{Begun, Canceled, Failed, Handed, Pending, Succeeded};
        let next = match (self, change) {
            (Pending, Change::Start) => Next::Stage(Handed),
            // An operator has dropped it while its client was about to start it.
            (Canceled, Change::Start) => Next::TooLate,

            (Handed, Change::TakeBack) => Next::Stage(Pending),
            // It waits: its runner was ready before its start was on disk and its client died, or
            // its payload could not be read for the start.
            (Pending, Change::TakeBack) => Next::TooLate,

            (Handed, Change::Begin) => Next::Stage(Begun),

            (Pending, Change::Drop) => Next::Stage(Canceled),
            // Its client was faster.
            (Handed | Begun | Succeeded | Failed | Canceled, Change::Drop) => Next::TooLate,

            // A ledger that was restored from a backup has units that wait, and have ended since.
            (Pending | Handed | Begun, Change::End(State::Succeeded)) => Next::Stage(Succeeded),
            (Pending | Handed | Begun, Change::End(State::Failed)) => Next::Stage(Failed),
            (Pending | Handed | Begun, Change::End(State::Canceled)) => Next::Stage(Canceled),

            (Succeeded | Failed | Canceled, Change::Release) => Next::Gone,
            // An operator requested it while its client retried it.
            (Pending | Handed | Begun, Change::Release) => Next::TooLate,
            (_, Change::ForceRelease) => Next::Gone,

            (Handed | Begun | Succeeded | Failed, Change::Start)
            | (Begun | Succeeded | Failed | Canceled, Change::TakeBack)
            | (Pending | Begun | Succeeded | Failed | Canceled, Change::Begin)
            | (_, Change::End(State::Pending | State::Running))
            | (Succeeded | Failed | Canceled, Change::End(_)) => {
                return Err(IllegalChange {
                    stage: self,
                    change,
                });
            }
        };
        Ok(next)
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Handed => "running, not begun",
            Self::Begun => "running, begun",
            Self::Pending | Self::Succeeded | Self::Failed | Self::Canceled => self.state().name(),
        })
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Start => "start",
            Self::TakeBack => "take back",
            Self::Begin => "begin",
            Self::Drop => "drop",
            Self::End(State::Succeeded) => "succeed",
            Self::End(State::Failed) => "fail",
            Self::End(State::Canceled) => "cancel",
            Self::End(State::Pending | State::Running) => "end without an end",
            Self::Release => "release",
            Self::ForceRelease => "force-release",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CHANGES: [Change; 9] = [
        Change::Start,
        Change::TakeBack,
        Change::Begin,
        Change::Drop,
        Change::End(State::Succeeded),
        Change::End(State::Failed),
        Change::End(State::Canceled),
        Change::Release,
        Change::ForceRelease,
    ];

    fn cell(stage: Stage, change: Change) -> String {
        match stage.on(change) {
            Ok(Next::Stage(next)) => next.to_string(),
            Ok(Next::Gone) => "gone".into(),
            Ok(Next::TooLate) => "too late".into(),
            Err(_) => "—".into(),
        }
    }

    /// The table as docs/design.md shows it.
    fn table() -> String {
        let stages = Stage::ALL.map(|stage| stage.to_string());
        let mut lines = vec![format!("| | {} |", stages.join(" | "))];
        lines.push(format!("| --- |{}", " --- |".repeat(Stage::ALL.len())));
        for change in CHANGES {
            let cells = Stage::ALL.map(|stage| cell(stage, change));
            lines.push(format!("| {change} | {} |", cells.join(" | ")));
        }
        lines.join("\n")
    }

    #[test]
    fn every_cell_is_as_the_documentation_shows_it() {
        let page = include_str!("../../docs/design.md");
        let table = table();
        assert!(
            page.contains(&table),
            "docs/design.md lacks this table:\n{table}"
        );
    }

    #[test]
    fn names_and_stages_round_trip() {
        for stage in Stage::ALL {
            let state = stage.state();
            assert_eq!(State::from_name(state.name()), Some(state));
            assert_eq!(Stage::of(state, stage == Stage::Begun), stage);
        }
        assert_eq!(State::from_name("lost"), None);
        let illegal = Stage::Failed.on(Change::Begin).expect_err("illegal");
        let text = "illegal change of a unit that is failed: begin";
        assert_eq!(illegal.to_string(), text);
    }

    proptest! {
        /// For every sequence of changes: a unit ends once and stays ended, its command starts once
        /// for each time that a runner gets it, and a unit that has not ended is released by force
        /// only.
        #[test]
        fn a_unit_ends_once_and_stays_ended(walk in proptest::collection::vec(0..9usize, 1..60)) {
            let (mut stage, mut ends, mut handed, mut started) = (Stage::Pending, 0, 0, 0);
            for change in walk.into_iter().map(|n| CHANGES[n]) {
                let next = match stage.on(change) {
                    Ok(Next::Stage(next)) => next,
                    Ok(Next::Gone) => {
                        prop_assert!(stage.state().is_end() || change == Change::ForceRelease);
                        break;
                    }
                    Ok(Next::TooLate) => continue,
                    Err(illegal) => {
                        prop_assert_eq!(illegal, IllegalChange { stage, change });
                        continue;
                    }
                };
                prop_assert!(!stage.state().is_end(), "{} went on to {}", stage, next);
                ends += i32::from(next.state().is_end());
                handed += i32::from(next == Stage::Handed);
                started += i32::from(next == Stage::Begun);
                prop_assert!(ends <= 1 && started <= handed);
                if next == Stage::Pending {
                    prop_assert_eq!(stage, Stage::Handed, "a command may have started");
                }
                stage = next;
            }
        }
    }
}
