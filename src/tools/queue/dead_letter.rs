//! A message in a dead-letter queue: what it says about its end, whether a client of Tael has put it
//! there or the broker.

use jiff::Timestamp;
use serde_json::{Value as Json, json};

use crate::model::letter::header;
use crate::model::text::printable;
use crate::net::amqp::{Delivery, ROUTES, Table, Value};

/// Prefix of the headers of our dead letters.
const OURS: &str = "x-tael-";

/// Header with the id of the message that a retried one had before.
pub const RETRY_OF: &str = "x-tael-retry-of";

/// Headers of the broker about dead letters and deliveries; a retried message has none of them.
const OF_BROKER: &[&str] = &[
    "x-death",
    "x-first-death-exchange",
    "x-first-death-queue",
    "x-first-death-reason",
    "x-last-death-exchange",
    "x-last-death-queue",
    "x-last-death-reason",
    "x-delivery-count",
    "x-acquired-count",
    "x-opt-deaths",
];

/// Maximum length of a text, characters.
const MAX_TEXT: usize = 4096;

/// What is known about a dead message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeadLetter {
    /// Its `message_id` in the dead-letter queue: the unit, if a client has put it there.
    pub id: Option<String>,
    /// Its `message_id` before.
    pub message_id: Option<String>,
    /// Queue that it came from.
    pub queue: Option<String>,
    /// Why it is dead, in a word.
    pub reason: Option<String>,
    /// The same for people.
    pub detail: Option<String>,
    /// Exit code of its command.
    pub exit: Option<i64>,
    /// Its unit.
    pub unit: Option<String>,
    /// Host that says so.
    pub host: Option<String>,
    /// Pipeline that says so.
    pub who: Option<String>,
    /// Last lines of the standard error of its command.
    pub stderr: Option<String>,
    /// When, seconds since 1970.
    pub at: Option<i64>,
    /// Number of deliveries from the dead-letter queue, if that counts them.
    pub deliveries: i64,
    /// Size of its body, bytes.
    pub size: u64,
}

fn text(headers: &Table, name: &str) -> Option<String> {
    let value = headers.get(name)?;
    let number = value.as_integer().map(|number| number.to_string());
    value.as_text().map(|text| text.into_owned()).or(number)
}

fn integer(headers: &Table, name: &str) -> Option<i64> {
    let value = headers.get(name)?;
    value.as_integer().or_else(|| value.as_text()?.parse().ok())
}

impl DeadLetter {
    /// Reads the headers of a message.
    #[must_use]
    pub fn of(delivery: &Delivery) -> Self {
        let headers = &delivery.properties.headers;
        let id = delivery.properties.message_id.clone();
        let size = u64::try_from(delivery.body.len()).unwrap_or(u64::MAX);
        let mut letter = Self {
            message_id: text(headers, header::MESSAGE_ID),
            queue: text(headers, header::QUEUE),
            reason: text(headers, header::REASON),
            detail: text(headers, header::DETAIL),
            exit: integer(headers, header::EXIT),
            unit: text(headers, header::UNIT),
            host: text(headers, header::HOST),
            who: text(headers, header::WHO),
            stderr: text(headers, header::STDERR),
            at: integer(headers, header::AT),
            deliveries: integer(headers, "x-delivery-count").unwrap_or_default(),
            size: delivery.oversized.unwrap_or(size),
            id,
        };
        if letter.reason.is_none() {
            letter.read_deaths(headers);
        }
        letter
    }

    /// Reads what the broker says about the last death
    /// (<https://www.rabbitmq.com/docs/dlx>, "Dead-Lettered Messages").
    fn read_deaths(&mut self, headers: &Table) {
        self.message_id = self.id.clone();
        self.queue = text(headers, "x-first-death-queue");
        self.reason = text(headers, "x-first-death-reason");
        let Some(Value::Array(deaths)) = headers.get("x-death") else {
            return;
        };
        if let Some(Value::Table(last)) = deaths.first() {
            self.queue = text(last, "queue").or_else(|| self.queue.take());
            self.reason = text(last, "reason").or_else(|| self.reason.take());
            if let Some(Value::Time(at)) = last.get("time") {
                self.at = i64::try_from(*at).ok();
            }
            let count = integer(last, "count").filter(|count| *count > 1);
            self.detail = Some(match count {
                Some(count) => format!("by the broker, {count} times"),
                None => "by the broker".to_owned(),
            });
        }
    }

    /// Returns whether `word` names it: its id, that before, or the beginning or end of one.
    #[must_use]
    pub fn is_named(&self, word: &str) -> bool {
        let ids = [&self.id, &self.message_id, &self.unit];
        let mut ids = ids.into_iter().flatten();
        ids.any(|id| id.starts_with(word) || id.ends_with(word))
    }

    /// Returns its id for people and programs; `-` if it has none.
    #[must_use]
    pub fn name(&self) -> &str {
        let id = self.id.as_deref().or(self.message_id.as_deref());
        id.unwrap_or("-")
    }

    /// Returns it as JSON.
    #[must_use]
    pub fn json(&self) -> Json {
        json!({
            "id": self.id,
            "message_id": self.message_id,
            "queue": self.queue,
            "reason": self.reason,
            "detail": self.detail,
            "exit": self.exit,
            "unit": self.unit,
            "host": self.host,
            "who": self.who,
            "stderr": self.stderr,
            "at": self.at,
            "size": self.size,
        })
    }

    /// Returns when it has died, in local time.
    #[must_use]
    pub fn time(&self) -> String {
        let at = self.at.and_then(|at| Timestamp::from_second(at).ok());
        at.map_or_else(
            || "-".to_owned(),
            |at| {
                let zoned = at.to_zoned(jiff::tz::TimeZone::system());
                zoned.strftime("%Y-%m-%d %H:%M:%S").to_string()
            },
        )
    }

    /// Returns the reason, the exit code and the detail, for people.
    #[must_use]
    pub fn cause(&self) -> String {
        let shown = |text: &str| printable(text, MAX_TEXT);
        let reason = shown(self.reason.as_deref().unwrap_or("unknown"));
        match (&self.detail, self.exit) {
            (Some(detail), _) => format!("{reason}: {}", shown(detail)),
            (None, Some(exit)) => format!("{reason}: exit code {exit}"),
            (None, None) => reason,
        }
    }

    /// Returns the last line of the standard error, for people.
    #[must_use]
    pub fn last_words(&self) -> Option<String> {
        let line = self.stderr.as_deref()?.trim_end().lines().next_back()?;
        Some(printable(line, MAX_TEXT))
    }
}

/// Returns the headers for a retry of the message that had `headers`.
#[must_use]
pub fn retried(headers: &Table, letter: &DeadLetter) -> Table {
    let mut kept = Table::new();
    for (name, value) in headers.iter() {
        let others = OF_BROKER.iter().chain(&ROUTES);
        if !name.starts_with(OURS) && !others.into_iter().any(|other| *other == name) {
            kept.push(&name, value.clone());
        }
    }
    let before = letter.message_id.as_deref().or(letter.id.as_deref());
    if let Some(before) = before {
        kept.push(RETRY_OF, before);
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::amqp::Properties;
    use bytes::Bytes;

    fn delivery(headers: Table) -> Delivery {
        Delivery {
            consumer: String::new(),
            tag: 1,
            redelivered: false,
            exchange: String::new(),
            routing_key: "q.dead".into(),
            properties: Properties {
                message_id: Some("UNIT".into()),
                headers,
                ..Properties::default()
            },
            body: Bytes::from_static(b"{}"),
            oversized: None,
            unreadable: None,
            remaining: None,
        }
    }

    #[test]
    fn letters_of_clients() {
        let mut headers = Table::new();
        for (name, value) in [
            ("x-tael-queue", "q"),
            ("x-tael-message-id", "M1"),
            ("x-tael-reason", "failed"),
            ("x-tael-detail", "exit code 3"),
            ("x-tael-exit", "3"),
            ("x-tael-stderr", "a\nb: \u{1b}[1m\n"),
            ("x-tael-at", "1700000000"),
            ("sample", "S1"),
        ] {
            headers.push(name, value);
        }
        headers.push("x-delivery-count", Value::I64(2));
        headers.push("CC", Value::Array(vec!["q".into()]));
        let letter = DeadLetter::of(&delivery(headers.clone()));
        assert_eq!(letter.message_id.as_deref(), Some("M1"));
        assert_eq!((letter.exit, letter.at), (Some(3), Some(1_700_000_000)));
        assert_eq!(letter.cause(), "failed: exit code 3");
        assert_eq!(letter.last_words().as_deref(), Some("b: \\u{1b}[1m"));
        assert_eq!(letter.deliveries, 2);
        for word in ["UNIT", "UN", "IT", "M1"] {
            assert!(letter.is_named(word), "{word}");
        }
        assert!(!letter.is_named("q"));
        let kept = retried(&headers, &letter);
        let names: Vec<String> = kept.iter().map(|(name, _)| name.into_owned()).collect();
        assert_eq!(names, ["sample", RETRY_OF]);
    }

    #[test]
    fn letters_of_the_broker() {
        let mut death = Table::new();
        death.push("queue", "q");
        death.push("reason", "rejected");
        death.push("count", Value::I64(3));
        death.push("time", Value::Time(5));
        let mut headers = Table::new();
        headers.push("x-death", Value::Array(vec![Value::Table(death)]));
        headers.push("x-first-death-queue", "other");
        let letter = DeadLetter::of(&delivery(headers.clone()));
        assert_eq!(letter.queue.as_deref(), Some("q"));
        assert_eq!(letter.cause(), "rejected: by the broker, 3 times");
        assert_eq!(
            (letter.at, letter.message_id.as_deref()),
            (Some(5), Some("UNIT"))
        );
        assert_eq!(retried(&headers, &letter).len(), 1);
        // Anything may be in such a queue.
        let bare = DeadLetter::of(&delivery(Table::new()));
        assert_eq!(bare.cause(), "unknown");
    }
}
