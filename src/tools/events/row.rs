//! A row of `tael events`: a message and what became of it, or the end of its run.

use std::time::Duration;

use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};
use serde_json::{Value, json};

use crate::model::note::{Fate, Note};
use crate::model::table::{Colour, Column};
use crate::model::text::printable;
use crate::model::trigger::ONLY_TRIGGER;
use crate::model::unit::State;
use crate::model::{duration, moment};
use crate::os::terminal::Terminal;
use crate::store::ledger::received::{Now, Received, RunEnd};

/// Maximum length of a cell, characters.
const MAX_CELL: usize = 500;

/// Maximum number of lines of a reason on a terminal.
pub const MAX_WHY_LINES: usize = 6;

/// Result of a row about the end of a run.
const ENDED: &str = "ended";

/// The columns. The reason is what people look for: the topic is cut first, and the reason goes on below
/// itself.
pub const COLUMNS: [Column; WIDTH] = [
    Column::whole("TIME"),
    Column::whole("RESULT"),
    // A trigger follows the name.
    Column::text("PIPELINE", 8, 24).middle(),
    Column::text("TOPIC", 10, 32).middle(),
    Column::text("WHY", 32, usize::MAX),
];

/// Number of columns.
pub const WIDTH: usize = 5;

/// What is known about the run of a message.
#[derive(Debug, Clone)]
enum Run {
    /// Nothing: there is none, or the client has just made it.
    New,
    /// Its present state, and a note about that for people.
    Is(State, Option<String>),
    /// The ledger has it no longer.
    Released,
    /// Its end, in a row that follows that of its message; `None` if it was released.
    End(Option<Box<RunEnd>>),
}

/// A row.
#[derive(Debug, Clone)]
pub struct Row {
    /// Number of the pipeline.
    pub who: usize,
    /// The note about the message. Its time is that of the row.
    pub note: Note,
    run: Run,
    /// The last retry of its run, and the state of that.
    retry: Option<(String, State)>,
}

impl Row {
    /// Returns the row of what a client of pipeline `who` tells.
    pub const fn told(who: usize, note: Note) -> Self {
        Self {
            who,
            note,
            run: Run::New,
            retry: None,
        }
    }

    /// Returns the row of a record of the ledger of pipeline `who`.
    pub fn recorded(who: usize, record: Received) -> Self {
        let Received {
            note, unit, retry, ..
        } = record;
        let run = match unit {
            Some((state, text)) => Run::Is(state, text),
            None if note.unit.is_some() => Run::Released,
            None => Run::New,
        };
        Self {
            who,
            note,
            run,
            retry,
        }
    }

    /// Returns the row of the end of the run that `note` is about.
    pub fn end(who: usize, note: Note, now: Now) -> Self {
        let at = now.ended_at();
        let at = at.unwrap_or_else(|| Timestamp::now().as_millisecond());
        let end = match now {
            Now::Ended(end) => Some(end),
            Now::Open | Now::Released => None,
        };
        Self {
            who,
            note: Note { at, ..note },
            run: Run::End(end),
            retry: None,
        }
    }

    /// Returns whether its run has not ended, as far as is known.
    pub const fn is_open(&self) -> bool {
        match &self.run {
            Run::New => self.note.unit.is_some() && matches!(self.note.fate, Fate::Accepted),
            Run::Is(state, _) => !state.is_end(),
            Run::Released | Run::End(_) => false,
        }
    }

    /// Returns the present state of its run.
    fn state(&self) -> Option<&'static str> {
        match &self.run {
            Run::New => None,
            Run::Is(state, _) => Some(state.name()),
            Run::Released | Run::End(None) => Some("released"),
            Run::End(Some(end)) => Some(end.state.name()),
        }
    }

    fn result(&self) -> &'static str {
        match &self.run {
            Run::End(_) => ENDED,
            _ => self.note.fate.name(),
        }
    }

    /// Returns the colour of its result: that of the last retry, if its run was retried.
    pub fn colour(&self) -> Option<Colour> {
        let retry = self.retry.as_ref().map(|(_, state)| state.name());
        match (self.note.fate, retry.or(self.state())) {
            (Fate::Refused, _) => Some(Colour::Red),
            (Fate::Accepted, Some("released")) => Some(Colour::Faint),
            (Fate::Accepted, Some(state)) => Colour::of_state(state),
            (Fate::Accepted, None) => Some(Colour::Green),
            (Fate::Duplicate | Fate::Ignored, _) => Some(Colour::Faint),
        }
    }

    /// Returns it as one JSON object. `who` is the name of the pipeline.
    pub fn json(&self, who: &str) -> Value {
        let note = &self.note;
        #[allow(clippy::cast_precision_loss)] // milliseconds since 1970 stay below 2^53
        let time = note.at as f64 / 1000.0;
        let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let text = match &self.run {
            Run::Is(_, text) => text.clone(),
            Run::End(end) => end.as_ref().and_then(|end| end.note.clone()),
            Run::New | Run::Released => None,
        };
        let why = match &self.run {
            Run::End(end) => end.as_ref().and_then(|end| cause(end)),
            _ => given(&note.why),
        };
        let mut row = json!({
            "time": time,
            "pipeline": who,
            "trigger": given(&note.trigger),
            "result": self.result(),
            "why": why,
            "topic": note.topic,
            "event": given(&note.event),
            "unit": note.unit,
            "state": self.state(),
            "note": text,
            "taken": note.aside || note.fate == Fate::Accepted,
        });
        if let (Some((retry, state)), Value::Object(row)) = (&self.retry, &mut row) {
            row.insert("retry".to_owned(), json!(retry));
            row.insert("retry_state".to_owned(), json!(state.name()));
        }
        if let (Run::End(Some(end)), Value::Object(row)) = (&self.run, &mut row) {
            let outcome = end.outcome.as_ref();
            let elapsed = outcome.map(|o| Duration::from_micros(o.elapsed).as_secs_f64());
            let code = outcome.and_then(|o| o.reported().return_code());
            row.insert("elapsed".to_owned(), json!(elapsed));
            row.insert("return_code".to_owned(), json!(code));
            row.insert("retry".to_owned(), json!(end.retry));
        }
        row
    }

    /// Returns its cells. `who` is the name of the pipeline; `is_paused` returns whether that starts
    /// nothing now. In a pipe each cell except the last is one word.
    pub fn cells(
        &self,
        who: &str,
        is_paused: impl FnOnce() -> bool,
        terminal: Terminal,
    ) -> [String; WIDTH] {
        let note = &self.note;
        let at = Timestamp::from_millisecond(note.at).unwrap_or_default();
        let at = at.to_zoned(TimeZone::system());
        let at = match terminal.is_terminal() {
            true => moment::near(&at, &Zoned::now()),
            false => moment::word(&at),
        };
        let who = match &*note.trigger {
            "" | ONLY_TRIGGER => who.to_owned(),
            trigger => format!("{who}/{trigger}"),
        };
        let word = |text: &str| {
            let text = printable(text, MAX_CELL);
            match terminal.is_terminal() {
                true => text,
                false => text.replace(' ', "\\u{20}"),
            }
        };
        [
            at,
            self.result().to_owned(),
            word(&who),
            word(&note.topic),
            printable(&self.why(is_paused, terminal), MAX_CELL),
        ]
    }

    /// Returns what became of it, and why.
    fn why(&self, is_paused: impl FnOnce() -> bool, terminal: Terminal) -> String {
        let note = &self.note;
        let Some(unit) = &note.unit else {
            return note.why.clone();
        };
        let shown = terminal.id(unit);
        if note.fate != Fate::Accepted {
            return note.why.replace(unit, shown);
        }
        let unit = match &self.run {
            Run::End(Some(end)) => return ended(shown, end, terminal),
            Run::New => format!("unit {shown}"),
            Run::Is(State::Pending, _) if is_paused() => {
                format!("unit {shown} waits: the pipeline is paused")
            }
            Run::Is(State::Pending, _) => format!("unit {shown} waits"),
            Run::Is(state, None) => format!("unit {shown} {state}"),
            Run::Is(state, Some(text)) => format!("unit {shown} {state}: {text}"),
            Run::Released | Run::End(None) => format!("unit {shown} released"),
        };
        let unit = match &self.retry {
            None => unit,
            Some((retry, State::Pending)) => {
                format!("{unit}; unit {} will try again", terminal.id(retry))
            }
            Some((retry, state)) => {
                format!(
                    "{unit}; tried again as unit {}: {state}",
                    terminal.id(retry)
                )
            }
        };
        match note.why.is_empty() || matches!(self.run, Run::End(_)) {
            true => unit,
            false => format!("{}: {unit}", note.why),
        }
    }
}

/// Returns why a run has not succeeded.
fn cause(end: &RunEnd) -> Option<String> {
    let outcome = || Some(end.outcome.as_ref()?.end.to_string());
    match end.state {
        State::Failed => end.note.clone().or_else(outcome),
        _ => end.note.clone(),
    }
}

/// Returns how the run of `unit` has ended.
fn ended(unit: &str, end: &RunEnd, terminal: Terminal) -> String {
    let elapsed = end.outcome.as_ref().map(|outcome| {
        let elapsed = Duration::from_micros(outcome.elapsed);
        format!(" after {}", duration::text(elapsed))
    });
    let cause = cause(end).map(|cause| format!(": {cause}"));
    let retry = end.retry.as_ref().map(|retry| {
        let retry = terminal.id(retry);
        format!("; tried again as unit {retry}")
    });
    format!(
        "unit {unit} {}{}{}{}",
        end.state,
        elapsed.unwrap_or_default(),
        cause.unwrap_or_default(),
        retry.unwrap_or_default()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::unit::{End, Outcome};

    const UNIT: &str = "01JBV7Y3ZK8Q5W2N4T6R9M1XCD";

    fn accepted(why: &str) -> Note {
        Note {
            at: 0,
            fate: Fate::Accepted,
            trigger: String::new(),
            topic: "lab/seq/status".to_owned(),
            event: "e".to_owned(),
            unit: Some(UNIT.to_owned()),
            why: why.to_owned(),
            aside: false,
        }
    }

    fn why(row: &Row) -> String {
        let terminal = Terminal {
            width: Some(80),
            colour: false,
        };
        row.why(|| true, terminal)
    }

    #[test]
    fn a_row_says_what_became_of_the_run() {
        let failed = (State::Failed, Some("timed out".to_owned()));
        for (unit, reason, shown, open) in [
            (
                Some((State::Running, None)),
                "",
                "unit 9M1XCD running",
                true,
            ),
            (
                Some((State::Pending, None)),
                "raised by hand",
                "raised by hand: unit 9M1XCD waits: the pipeline is paused",
                true,
            ),
            (Some(failed), "", "unit 9M1XCD failed: timed out", false),
            (None, "", "unit 9M1XCD released", false),
        ] {
            let (seq, note) = (1, accepted(reason));
            let retry = None;
            let row = Row::recorded(
                0,
                Received {
                    seq,
                    note,
                    unit,
                    retry,
                },
            );
            assert_eq!((&*why(&row), row.is_open()), (shown, open));
        }
        let retried = |state| {
            let retry = "01JBV7Y3ZK8Q5W2N4T6RABCDEF".to_owned();
            let record = Received {
                seq: 1,
                note: accepted(""),
                unit: Some((State::Failed, None)),
                retry: Some((retry, state)),
            };
            Row::recorded(0, record)
        };
        let row = retried(State::Succeeded);
        let text = "unit 9M1XCD failed; tried again as unit ABCDEF: succeeded";
        assert_eq!(
            (&*why(&row), row.colour()),
            (text, Colour::of_state("succeeded"))
        );
        let json = row.json("p");
        assert_eq!(
            (&json["state"], &json["retry_state"]),
            (&json!("failed"), &json!("succeeded"))
        );
        assert_eq!(
            why(&retried(State::Pending)),
            "unit 9M1XCD failed; unit ABCDEF will try again"
        );
        let row = Row::told(0, accepted("retried by hand"));
        assert_eq!(why(&row), "retried by hand: unit 9M1XCD");
        assert!(row.is_open());
        let note = Note {
            fate: Fate::Duplicate,
            ..accepted(&format!("it came before, and made unit {UNIT}"))
        };
        let row = Row::told(0, note);
        assert_eq!(why(&row), "it came before, and made unit 9M1XCD");
        assert!(!row.is_open());
    }

    #[test]
    fn a_row_says_how_the_run_ended() {
        let outcome = |end| Outcome {
            end,
            elapsed: 1_500_000,
            ..Outcome::interrupted(1)
        };
        let end = |state, end: Option<End>, note: Option<&str>, retry: Option<&str>| {
            let end = RunEnd {
                state,
                at: 7000,
                outcome: end.map(outcome),
                note: note.map(str::to_owned),
                retry: retry.map(str::to_owned),
            };
            Row::end(0, accepted("raised by hand"), Now::Ended(Box::new(end)))
        };
        let exited = |code| Some(End::Exited(code));
        let row = end(State::Succeeded, exited(0), None, None);
        assert_eq!(why(&row), "unit 9M1XCD succeeded after 1.5s");
        let retry = Some("01JBV7Y3ZK8Q5W2N4T6RABCDEF");
        let row = end(State::Failed, exited(3), None, retry);
        let text = "unit 9M1XCD failed after 1.5s: exited with 3; tried again as unit ABCDEF";
        assert_eq!((&*why(&row), row.is_open()), (text, false));
        let json = row.json("p");
        assert_eq!(
            (&json["result"], &json["state"], &json["time"]),
            (&json!("ended"), &json!("failed"), &json!(7.0))
        );
        assert_eq!(
            (&json["return_code"], &json["elapsed"], &json["retry"]),
            (&json!(3), &json!(1.5), &json!(retry))
        );
        let row = end(
            State::Failed,
            Some(End::Signaled(15)),
            Some("timed out"),
            None,
        );
        assert_eq!(why(&row), "unit 9M1XCD failed after 1.5s: timed out");
        let row = end(State::Canceled, None, Some("canceled by tael work"), None);
        assert_eq!(why(&row), "unit 9M1XCD canceled: canceled by tael work");
        let row = Row::end(0, accepted(""), Now::Released);
        assert_eq!(why(&row), "unit 9M1XCD released");
        assert_eq!(row.json("p")["state"], "released");
    }
}
