//! Notes about messages: what became of each, and why. `tael events` shows them.

use serde::{Deserialize, Serialize};

use crate::model::status;

/// What became of a message for a trigger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fate {
    /// It is an event, and made a unit.
    Accepted,
    /// It came before.
    Duplicate,
    /// It should have run and could not.
    Refused,
    /// The trigger does not wait for it.
    Ignored,
}

impl Fate {
    /// All of them, in the order of the help.
    pub const ALL: [Self; 4] = [
        Self::Accepted,
        Self::Duplicate,
        Self::Refused,
        Self::Ignored,
    ];

    /// Returns its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Duplicate => "duplicate",
            Self::Refused => "refused",
            Self::Ignored => "ignored",
        }
    }
}

/// A note about a message. Its texts may be those of a sender.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// When it came, milliseconds since 1970.
    pub at: i64,
    /// What became of it.
    pub fate: Fate,
    /// Name of the trigger; empty if it is about all.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub trigger: String,
    /// Its topic.
    pub topic: String,
    /// Id of the event, if it is one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub event: String,
    /// Unit that it made, now or before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// Why, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub why: String,
    /// Whether another trigger took the message.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub aside: bool,
}

/// Reason of a run that `tael control WHO raise` has started.
pub const RAISED: &str = "raised by hand";

/// Reason of a run that a person has had run again.
pub const RETRIED: &str = "retried by hand";

/// Returns why a unit was made, for the note about its event; empty if a message of `topic` made it, as
/// a rule. `reason` is that of the unit. A retry with an event of its own is that of a person.
#[must_use]
pub fn occasion(reason: &str, topic: &str, is_retry: bool) -> String {
    match reason {
        _ if is_retry => RETRIED.to_owned(),
        status::REASON_RAISED => RAISED.to_owned(),
        reason if reason == status::reason_finished(topic) => String::new(),
        other => other.to_owned(),
    }
}

/// Maximum length of a reason in a note, bytes: about that, a character is whole.
const MAX_WHY: usize = 1000;

impl Note {
    /// Returns an upper estimate of the memory that it holds, bytes.
    #[must_use]
    pub fn memory(&self) -> usize {
        let unit = self.unit.as_ref().map_or(0, String::len);
        let texts = [&self.trigger, &self.topic, &self.event, &self.why];
        size_of::<Self>() + unit + texts.map(String::len).iter().sum::<usize>()
    }

    /// Returns the note with a reason of bounded length.
    #[must_use]
    pub fn bounded(mut self) -> Self {
        if self.why.len() > MAX_WHY {
            let mut ends = (0..=MAX_WHY).rev();
            let end = ends.find(|end| self.why.is_char_boundary(*end));
            self.why.truncate(end.unwrap_or(0));
            self.why.push('…');
        }
        self
    }
}

/// A line that a running client sends to those who ask for its notes: one JSON object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Line {
    /// A note.
    Note(Note),
    /// The notes so far are complete; what follows comes as it happens. `forgotten` older notes did
    /// not fit into memory.
    Live {
        /// Number of older notes.
        forgotten: u64,
    },
    /// This many notes are missing here: the reader was too slow.
    Lost {
        /// Number of notes.
        count: u64,
    },
    /// There are too many readers already.
    Full,
    /// A line of a later version.
    #[serde(other)]
    Unknown,
}

impl Line {
    /// Returns the line as it is sent, with its line break.
    #[must_use]
    pub fn to_text(&self) -> String {
        // Strings and numbers always have a JSON form.
        let mut text = serde_json::to_string(self).unwrap_or_default();
        text.push('\n');
        text
    }

    /// Reads a line; `None` if it is not one.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_as_they_are_written() {
        let note = Note {
            at: 1,
            fate: Fate::Ignored,
            trigger: "t".into(),
            topic: "lab/\u{1b}\n".into(),
            event: String::new(),
            unit: None,
            why: "status is 'x'".into(),
            aside: true,
        };
        for line in [
            Line::Note(note.clone()),
            Line::Note(Note {
                unit: Some("u".into()),
                event: "e".into(),
                aside: false,
                ..note
            }),
            Line::Live { forgotten: 3 },
            Line::Lost { count: 4 },
            Line::Full,
        ] {
            let text = line.to_text();
            assert_eq!(text.matches('\n').count(), 1);
            assert_eq!(Line::parse(&text), Some(line), "{text}");
        }
        assert_eq!(Line::parse(r#"{"kind":"later"}"#), Some(Line::Unknown));
        assert_eq!(Line::parse("{"), None);
    }

    #[test]
    fn what_is_not_the_rule_has_a_reason() {
        let finished = "lab/seq/status finished";
        let silent = "lab/seq/status silent for 1h";
        for (reason, is_retry, why) in [
            (finished, false, ""),
            (finished, true, RETRIED),
            (status::REASON_RAISED, false, RAISED),
            (status::REASON_RAISED, true, RETRIED),
            (silent, false, silent),
        ] {
            assert_eq!(
                occasion(reason, "lab/seq/status", is_retry),
                why,
                "{reason}"
            );
        }
    }

    #[test]
    fn a_reason_has_a_bound() {
        let note = Note {
            at: 0,
            fate: Fate::Refused,
            trigger: String::new(),
            topic: String::new(),
            event: String::new(),
            unit: None,
            why: "é".repeat(MAX_WHY),
            aside: false,
        };
        let bounded = note.bounded();
        assert!(bounded.why.len() <= MAX_WHY + 3 && bounded.why.ends_with("é…"));
    }
}
