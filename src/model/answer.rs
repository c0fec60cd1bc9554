//! Answers to requests: what a run has written to its standard output, for those who ask with a
//! Response Topic (MQTT 5.0, section 4.10).

use bytes::Bytes;

use crate::model::cause::Cause;
use crate::model::message::{Message, Properties, Qos};
use crate::model::outcome::{End, Outcome, Stopped};
use crate::model::unit::{ReplyAddress, Unit};

/// User properties of an answer.
pub mod answer_property {
    /// Code of the run, as a shell reports it.
    pub const CODE: &str = "tael-code";
    /// Last line of its standard error, or why it did not run; only if the code is not 0.
    pub const ERROR: &str = "tael-error";
    /// Present, with the size of the whole output in bytes, if the payload is its beginning only.
    pub const TRUNCATED: &str = "tael-truncated";
    /// Id of the unit that answers; not there if no unit was made of the question.
    pub const UNIT: &str = "tael-unit";
}

/// Default maximum size of an answer, bytes.
pub const MAX_REPLY: usize = 256 << 10;

/// Largest maximum size of an answer, bytes. `tael message` takes packets of twice that size.
pub const MAX_MAX_REPLY: u64 = 1 << 20;

/// Maximum length of the text of an error, characters.
const MAX_ERROR: usize = 1000;

/// Code of an event that was refused: `EX_DATAERR` of sysexits.h.
pub const REFUSED: i32 = 65;
/// Code of a run that did not begin and will not: `EX_TEMPFAIL` of sysexits.h.
pub const DROPPED: i32 = 75;
/// Code of a run whose command could not be started (POSIX.1-2017, Shell Command Language, section
/// 2.8.2).
const NOT_STARTED: i32 = 126;
/// Code of a run that was ended by SIGTERM, as a shell reports it.
const ENDED: i32 = 128 + 15;

/// Returns whether a message is an answer.
#[must_use]
pub fn is_answer(message: &Message) -> bool {
    message.properties.user(answer_property::CODE).is_some()
}

/// Returns an answer without its output, for a broker that refuses the whole; `None` if it has none. It
/// says how long the output is.
#[must_use]
pub fn without_output(message: &Message) -> Option<Message> {
    if message.payload.is_empty() {
        return None;
    }
    let mut answer = message.clone();
    let size = std::mem::take(&mut answer.payload).len();
    if answer.properties.user(answer_property::TRUNCATED).is_none() {
        let name = answer_property::TRUNCATED.to_owned();
        answer.properties.user.push((name, size.to_string()));
    }
    Some(answer)
}

/// What an answer says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Answer {
    /// Code, as a shell reports it.
    pub code: i32,
    /// Why the code is not 0.
    pub error: Option<String>,
    /// The output, or its beginning.
    pub body: Bytes,
    /// Size of the whole output, if the body is its beginning only, bytes.
    pub whole: Option<u64>,
    /// Id of the unit, if there is one.
    pub unit: Option<String>,
}

/// Returns the code of a run that has ended.
#[must_use]
pub fn code(outcome: &Outcome) -> i32 {
    let end = outcome.reported();
    match (end.return_code(), outcome.stopped) {
        // Its command may have ended with 0 before it was stopped.
        (Some(0), Some(Stopped::Canceled | Stopped::TimedOut)) => ENDED,
        (Some(code), _) => code,
        (None, _) => NOT_STARTED,
    }
}

/// Returns why a run that has ended has not succeeded; `last` is the last line of its standard error.
#[must_use]
pub fn error(outcome: &Outcome, last: Option<String>) -> Option<String> {
    if code(outcome) == 0 {
        return None;
    }
    let end = outcome.reported();
    let stopped = match outcome.stopped {
        Some(Stopped::TimedOut) => Some("timed out".to_owned()),
        Some(Stopped::Canceled) => Some("canceled".to_owned()),
        None => None,
    };
    match end {
        End::Exited(_) => stopped.or(last).or_else(|| Some(end.to_string())),
        End::Signaled(_) | End::Interrupted | End::NotStarted(_) => {
            stopped.or_else(|| Some(end.to_string()))
        }
    }
}

impl Answer {
    /// Returns the answer about something that did not run.
    #[must_use]
    pub fn refusal(code: i32, error: &str) -> Self {
        Self {
            code,
            error: Some(error.to_owned()),
            ..Self::default()
        }
    }

    /// Returns the message to `address` about the event of `cause`, with `id` as its own id. `by` is the
    /// pipeline that answers, and its host.
    #[must_use]
    pub fn message(
        self,
        address: &ReplyAddress,
        (id, cause): (String, Cause<'_>),
        by: (&str, &str),
    ) -> Message {
        let mut user = cause.properties(id, by);
        user.push((answer_property::CODE.to_owned(), self.code.to_string()));
        if let Some(error) = self.error {
            let error: String = error.chars().take(MAX_ERROR).collect();
            user.push((answer_property::ERROR.to_owned(), error));
        }
        if let Some(whole) = self.whole {
            user.push((answer_property::TRUNCATED.to_owned(), whole.to_string()));
        }
        if let Some(unit) = self.unit {
            user.push((answer_property::UNIT.to_owned(), unit));
        }
        let correlation = address.correlation.as_ref();
        Message {
            topic: address.topic.clone(),
            payload: self.body,
            qos: Qos::AtLeastOnce,
            retain: false,
            properties: Properties {
                user,
                correlation_data: correlation.map(|data| Bytes::from(data.as_bytes().to_vec())),
                ..Properties::default()
            },
        }
    }
}

/// Returns the address of the requester who waits for the end of `unit`, if there is one.
#[must_use]
pub fn requester(unit: &Unit) -> Option<&ReplyAddress> {
    unit.reply.as_ref().filter(|reply| reply.at_end.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::message::Route;

    fn ended(end: End, stopped: Option<Stopped>) -> Outcome {
        Outcome {
            end,
            stopped,
            ..Outcome::interrupted(0)
        }
    }

    #[test]
    fn codes_are_those_of_a_shell_and_errors_say_the_most() {
        let last = || Some("last line".to_owned());
        for (end, stopped, want, why) in [
            (End::Exited(0), None, 0, None),
            (End::Exited(3), None, 3, Some("last line")),
            (End::Signaled(9), None, 137, Some("killed by signal 9")),
            (End::Interrupted, None, 137, Some("interrupted")),
            (
                End::NotStarted("x".into()),
                None,
                126,
                Some("not started: x"),
            ),
            (
                End::Exited(0),
                Some(Stopped::TimedOut),
                143,
                Some("timed out"),
            ),
            (
                End::Signaled(15),
                Some(Stopped::Canceled),
                143,
                Some("canceled"),
            ),
        ] {
            let outcome = ended(end, stopped);
            assert_eq!(code(&outcome), want, "{outcome:?}");
            assert_eq!(error(&outcome, last()).as_deref(), why, "{outcome:?}");
        }
    }

    #[test]
    fn an_answer_can_go_without_its_output() {
        let address = ReplyAddress {
            route: Route::Broker,
            topic: "lab/r".into(),
            correlation: None,
            request: None,
            at_end: None,
        };
        let said = |whole| {
            let answer = Answer {
                body: Bytes::from_static(b"{\"a\":1}"),
                whole,
                ..Answer::default()
            };
            answer.message(&address, ("1".into(), Cause::default()), ("w", "h"))
        };
        for (whole, size) in [(None, "7"), (Some(900), "900")] {
            let whole = said(whole);
            assert!(is_answer(&whole));
            let short = without_output(&whole).expect("an answer");
            assert!(short.payload.is_empty());
            assert_eq!(
                short.properties.user(answer_property::TRUNCATED),
                Some(size)
            );
            assert_eq!(without_output(&short), None);
        }
    }

    #[test]
    fn an_answer_repeats_the_correlation_data() {
        let address = ReplyAddress {
            route: Route::Broker,
            topic: "lab/infrastructure/replies/a/1".into(),
            correlation: Some(vec![0, 255].into()),
            request: None,
            at_end: None,
        };
        let answer = Answer::refusal(REFUSED, &"x".repeat(5000));
        let message = answer.message(&address, ("1".into(), Cause::default()), ("w", "h"));
        assert_eq!(
            message.properties.correlation_data.as_deref(),
            Some(&[0, 255][..])
        );
        assert_eq!(message.properties.user(answer_property::CODE), Some("65"));
        let error = message.properties.user(answer_property::ERROR);
        assert_eq!(error.map(str::len), Some(MAX_ERROR));
        assert_eq!(message.properties.user(answer_property::TRUNCATED), None);
        assert_eq!(message.properties.user(answer_property::UNIT), None);
        let answer = Answer {
            unit: Some("U1".into()),
            ..Answer::default()
        };
        let message = answer.message(&address, ("1".into(), Cause::default()), ("w", "h"));
        assert_eq!(message.properties.user(answer_property::UNIT), Some("U1"));
    }
}
