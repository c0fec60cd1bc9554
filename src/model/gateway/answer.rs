//! How a route answers.
//!
//! ```toml
//! [route.answer]
//! status = 200
//! message = "thank you"
//! type = "text/plain"
//! mismatch = 200
//! ```
//!
//! With `wait = "30s"` the end of the run is the answer.

use std::time::Duration;

use toml::Value;

use crate::model::duration;
use crate::model::gateway::keys::{Keys, Wrong, Wrongs};

/// Maximum length of the body of an answer, bytes.
pub const MAX_MESSAGE: usize = 64 * 1024;

/// Maximum time for which a caller waits for an end.
const MAX_WAIT: Duration = Duration::from_secs(3600);

/// Maximum length of a media type, bytes.
const MAX_TYPE: usize = 128;

/// Status of an accepted request, unless the route has another one.
const ACCEPTED: u16 = 202;

/// Status of a request for which the rule does not hold, unless the route has another one.
const MISMATCH: u16 = 403;

/// Media type of a message, unless the route has another one.
const TEXT: &str = "text/plain; charset=utf-8";

/// Answers of a route. Errors that the sender can mend by sending again keep their own status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Status of an accepted request, 200 to 299.
    pub status: u16,
    /// Status of a request for which the rule does not hold, 200 to 299 or 400 to 499.
    pub mismatch: u16,
    /// Body for an accepted request, and its media type. By default it is JSON with the id of the event.
    pub message: Option<(String, String)>,
    /// Time for which the sender waits for the end of the run, if it does.
    pub wait: Option<Duration>,
}

/// Parses the time for which a caller waits for an end.
///
/// # Errors
/// A text for the caller.
pub fn waiting_time(text: &str) -> Result<Duration, String> {
    match duration::parse(text) {
        Ok(limit) if limit <= MAX_WAIT => Ok(limit),
        Ok(_) => Err("one hour is the maximum".to_owned()),
        Err(cause) => Err(cause),
    }
}

impl Default for Answer {
    fn default() -> Self {
        Self {
            status: ACCEPTED,
            mismatch: MISMATCH,
            message: None,
            wait: None,
        }
    }
}

impl Answer {
    /// Reads an `answer` table. Notes everything that is wrong with it.
    pub fn read(keys: &Keys<'_>, wrongs: &mut Wrongs) -> Option<Self> {
        let others = keys.others(&["status", "message", "type", "mismatch", "wait"]);
        others.for_each(|wrong| wrongs.note(wrong));
        let wait = wrongs.keep(wait(keys));
        let message = wrongs.keep(message(keys));
        let is_success = |status| (200..300).contains(&status);
        let status = wrongs.keep(status(keys, "status", is_success, "200 to 299"));
        let is_refusal = |status| (400..500).contains(&status);
        let mismatch = wrongs.keep(self::status(
            keys,
            "mismatch",
            |status| is_success(status) || is_refusal(status),
            "200 to 299 or 400 to 499",
        ));
        Some(Self {
            status: status?.unwrap_or(ACCEPTED),
            mismatch: mismatch?.unwrap_or(MISMATCH),
            message: message?,
            wait: wait?,
        })
    }
}

/// Returns the status at `key`, if there is one. It `may` be in `range`.
fn status(
    keys: &Keys<'_>,
    key: &str,
    may: impl Fn(u16) -> bool,
    range: &str,
) -> Result<Option<u16>, Wrong> {
    let Some(value) = keys.get(key) else {
        return Ok(None);
    };
    let status = match value {
        Value::Integer(number) => u16::try_from(*number).ok().filter(|s| may(*s)),
        _ => None,
    };
    let status = status.ok_or_else(|| keys.wrong(key, format!("a status here is {range}")));
    status.map(Some)
}

/// Returns the time for which a sender waits, if it does.
fn wait(keys: &Keys<'_>) -> Result<Option<Duration>, Wrong> {
    let wait = keys.text("wait")?.map(waiting_time).transpose();
    let wait = wait.map_err(|cause| keys.wrong("wait", cause))?;
    if wait.is_some()
        && let Some(other) = keys.one_of(&["status", "message"])?
    {
        // The run decides.
        return Err(keys.wrong(other, "it cannot stand beside 'wait'"));
    }
    Ok(wait)
}

/// Returns the body for an accepted request and its media type, if the route has one.
fn message(keys: &Keys<'_>) -> Result<Option<(String, String)>, Wrong> {
    let media = keys.text("type")?;
    let is_plain = |b: u8| (b' '..=b'~').contains(&b);
    if media.is_some_and(|media| media.len() > MAX_TYPE || !media.bytes().all(is_plain)) {
        return Err(keys.wrong("type", "it is not a media type"));
    }
    let message = keys.text("message")?;
    if message.is_some_and(|message| message.len() > MAX_MESSAGE) {
        let cause = format!("it has more than {MAX_MESSAGE} bytes");
        return Err(keys.wrong("message", cause));
    }
    if media.is_some() && message.is_none() {
        return Err(keys.wrong("type", "it belongs to a 'message', which is missing"));
    }
    Ok(message.map(|text| (text.to_owned(), media.unwrap_or(TEXT).to_owned())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Answer, Wrong> {
        let table: toml::Table = text.parse().expect(text);
        let mut wrongs = Wrongs::default();
        let table = Value::Table(table);
        let keys = Keys::of(&table, Vec::new()).expect("table");
        let answer = Answer::read(&keys, &mut wrongs);
        match wrongs.all().into_iter().next() {
            Some(wrong) => Err(wrong),
            None => Ok(answer.expect("no mistake")),
        }
    }

    #[test]
    fn answers_have_defaults_and_bounds() {
        assert_eq!(read("").as_ref(), Ok(&Answer::default()));
        let own = read("status = 200\nmessage = 'ok'\nmismatch = 200").expect("answer");
        assert_eq!((own.status, own.mismatch), (200, 200));
        let message = own.message.expect("message");
        assert_eq!((message.0.as_str(), message.1.as_str()), ("ok", TEXT));
        let long = format!("message = '{}'", "x".repeat(MAX_MESSAGE + 1));
        for (text, place) in [
            ("status = 500", "status"),
            ("status = 'ok'", "status"),
            ("status = -1", "status"),
            ("mismatch = 302", "mismatch"),
            ("mismatch = 503", "mismatch"),
            ("message = 1", "message"),
            ("type = 'a/b'", "type"),
            ("message = ''\ntype = \"a\\r\\nb: c\"", "type"),
            ("code = 1", "code"),
            (long.as_str(), "message"),
        ] {
            let wrong = read(text).expect_err(text);
            assert_eq!(wrong.place.join("."), place, "{text}");
        }
    }
}
