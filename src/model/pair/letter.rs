//! The messages of two ends: their kinds, and what their user properties say.

use crate::model::event::MAX_ID_BYTES;
use crate::model::json;
use crate::model::message::Properties;

/// Names of the user properties. Those that Tael knows survive any number of others.
mod property {
    /// Id of the sender, from its claim.
    pub const FROM: &str = "tael-from";
    /// Id of the receiver, from its claim.
    pub const TO: &str = "tael-to";
    /// Number of the message.
    pub const NUMBER: &str = "tael-number";
    /// Kind of the message.
    pub const KIND: &str = "tael-kind";
    /// Public key of the sender, in its hello.
    pub const KEY: &str = "tael-key";
    /// What shows that the sender has written the message, in all others.
    pub const SEAL: &str = "tael-seal";
}

/// Maximum size of a public key and of a seal, as text, bytes.
const MAX_PROOF_BYTES: usize = 64;

/// Kind of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The sender has seen the claim of the receiver, and pairs with it.
    Hello,
    /// Bytes of the sender's input. Its number follows the one before, from 1.
    Data,
    /// The sender's input has ended. It has a number, like data. Its payload is empty, or says how the
    /// command of the sender has ended.
    End,
    /// The sender's output has taken all messages up to the number.
    Ack,
    /// The sender's output takes nothing after the number.
    Stop,
    /// The sender leaves before the pair has ended.
    Leave,
}

impl Kind {
    const ALL: [Self; 6] = [
        Self::Hello,
        Self::Data,
        Self::End,
        Self::Ack,
        Self::Stop,
        Self::Leave,
    ];

    /// Returns its name.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Hello => "hello",
            Self::Data => "data",
            Self::End => "end",
            Self::Ack => "ack",
            Self::Stop => "stop",
            Self::Leave => "leave",
        }
    }

    /// Returns the property that has the proof of such a message.
    const fn proof(self) -> &'static str {
        match self {
            Self::Hello => property::KEY,
            _ => property::SEAL,
        }
    }
}

/// A message of one end to the other, without its payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Letter {
    /// Its kind.
    pub kind: Kind,
    /// Id of the sender.
    pub from: String,
    /// Id of the receiver.
    pub to: String,
    /// Its number; what it means depends on the kind. 0 without a meaning.
    pub number: u64,
    /// Public key of the sender in a hello, otherwise the seal; empty in a leave.
    pub proof: String,
}

/// What an end message says, beside that there are no further parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The sender has no command, or does not know how it has ended.
    Plain,
    /// Its command has closed its output, and still runs: another end message follows.
    Runs,
    /// Its command has ended with this exit code, or 128 and the number of its signal.
    Exited(u8),
}

impl End {
    /// Returns the payload of the message.
    #[must_use]
    pub fn payload(self) -> String {
        match self {
            Self::Plain => String::new(),
            Self::Runs => r#"{"code":null}"#.into(),
            Self::Exited(code) => format!(r#"{{"code":{code}}}"#),
        }
    }

    /// Returns what the payload of an end message says; text that no end has written is [`Self::Plain`].
    #[must_use]
    pub fn from_payload(payload: &[u8]) -> Self {
        let Ok(value) = json::parse(payload) else {
            return Self::Plain;
        };
        match value.get("code") {
            Some(code) if code.is_null() => Self::Runs,
            Some(code) => code
                .as_u64()
                .and_then(|code| u8::try_from(code).ok())
                .map_or(Self::Plain, Self::Exited),
            None => Self::Plain,
        }
    }
}

impl Letter {
    /// Returns its properties.
    #[must_use]
    pub fn properties(self) -> Properties {
        let user = [
            (property::KIND, self.kind.name().to_owned()),
            (property::FROM, self.from),
            (property::TO, self.to),
            (property::NUMBER, self.number.to_string()),
            (self.kind.proof(), self.proof),
        ];
        let has_content = |(_, value): &(&str, String)| !value.is_empty();
        Properties {
            user: user
                .into_iter()
                .filter(has_content)
                .map(|(name, value)| (name.to_owned(), value))
                .collect(),
            ..Properties::default()
        }
    }

    /// Reads the properties of a message; `None` if no end has sent it.
    #[must_use]
    pub fn parse(properties: &Properties) -> Option<Self> {
        let id = |name| properties.user(name).filter(|id| id.len() <= MAX_ID_BYTES);
        let kind = properties.user(property::KIND)?;
        let kind = Kind::ALL.into_iter().find(|one| one.name() == kind)?;
        let proof = properties.user(kind.proof()).unwrap_or_default();
        if proof.len() > MAX_PROOF_BYTES {
            return None;
        }
        Some(Self {
            kind,
            from: id(property::FROM)?.to_owned(),
            to: id(property::TO)?.to_owned(),
            number: properties.user(property::NUMBER)?.parse().ok()?,
            proof: proof.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_letter_is_read_as_it_was_written() {
        for kind in Kind::ALL {
            let letter = Letter {
                kind,
                from: "x".into(),
                to: "y".into(),
                number: u64::MAX,
                proof: "p".into(),
            };
            assert_eq!(Letter::parse(&letter.clone().properties()), Some(letter));
        }
    }

    #[test]
    fn an_end_may_say_how_its_command_has_ended() {
        for end in [End::Plain, End::Runs, End::Exited(0), End::Exited(143)] {
            assert_eq!(End::from_payload(end.payload().as_bytes()), end);
        }
        for payload in [
            r#"{"code":256}"#,
            r#"{"code":"1"}"#,
            r#"{"code":-1}"#,
            "1",
            "{}",
            "{",
        ] {
            assert_eq!(
                End::from_payload(payload.as_bytes()),
                End::Plain,
                "{payload}"
            );
        }
    }

    #[test]
    fn what_no_end_has_sent_is_no_letter() {
        let letter = Letter {
            kind: Kind::Data,
            from: "x".into(),
            to: "y".into(),
            number: 1,
            proof: "p".into(),
        };
        let good = letter.properties();
        for (place, value) in [
            (0, "other".to_owned()),
            (1, "x".repeat(MAX_ID_BYTES + 1)),
            (3, "-1".to_owned()),
            (3, "18446744073709551616".to_owned()),
            (3, String::new()),
            (4, "x".repeat(MAX_PROOF_BYTES + 1)),
        ] {
            let mut bad = good.clone();
            bad.user[place].1 = value;
            assert_eq!(Letter::parse(&bad), None, "{bad:?}");
        }
        for place in 0..4 {
            let mut bad = good.clone();
            bad.user.remove(place);
            assert_eq!(Letter::parse(&bad), None, "{bad:?}");
        }
        assert_eq!(Letter::parse(&Properties::default()), None);
    }
}
