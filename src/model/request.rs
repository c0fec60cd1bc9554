//! Requests as their sender keeps them: which wait for an answer, which answer is whose, when to ask
//! again, and what became of all of them.
//!
//! Times are durations since the sender began, so that nothing here needs a clock.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash, Hasher as _};
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Map, Value, json};

use crate::model::answer::answer_property;
use crate::model::message::{Delivery, Message, property};
use crate::model::{duration, json};

/// Maximum number of requests that wait for an answer at the same time.
pub const MAX_IN_FLIGHT: usize = 64;

/// Maximum size of the payloads of these requests, bytes; a larger one waits alone.
const MAX_BYTES: usize = 16 * 1024 * 1024;

/// Maximum number of answers to one question.
pub const MAX_ANSWERS: u32 = 10_000;

/// Maximum number of times that a request is sent again because no answer came.
pub const MAX_RETRIES: u32 = 1000;

/// Maximum number of missing requests whose numbers are kept.
const MAX_MISSING: usize = 10_000;

/// Maximum number of ranges of missing requests that the summary names.
const MAX_NAMED: usize = 20;

/// Code of an answer whose own code cannot be read: `EX_DATAERR` of sysexits.h.
const UNREADABLE: u8 = 65;

/// Returns the topic on which client `id` waits for the answers to `request`. An access rule can tie
/// it to the client identifier.
#[must_use]
pub fn reply_topic(root: &str, id: &str, request: &str) -> String {
    format!("{root}/infrastructure/replies/{id}/{request}")
}

/// What a sender expects of each request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// Answers that complete it; with 0 the acknowledgement of the broker does.
    pub answers: u32,
    /// Maximum time for the answers to each try.
    pub timeout: Duration,
    /// Number of further tries.
    pub retries: u32,
}

impl Terms {
    /// Returns the maximum time for a request with all its tries.
    #[must_use]
    pub const fn patience(&self) -> Duration {
        self.timeout.saturating_mul(self.retries.saturating_add(1))
    }
}

/// What an answer says.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Answer {
    /// Exit code of the run; 0 if the answer has none.
    pub code: u8,
    /// Pipeline that answered.
    pub who: Option<String>,
    /// Its host.
    pub host: Option<String>,
    /// Why the code is not 0.
    pub error: Option<String>,
    /// Size of the whole output, as the answerer says it, if the payload is its beginning only.
    pub truncated: Option<String>,
    /// Id of the unit that has answered.
    pub unit: Option<String>,
    /// The payload.
    pub reply: Bytes,
}

impl Answer {
    /// Reads a message on the reply topic. Programs other than Tael send none of the properties.
    #[must_use]
    pub fn of(delivery: Delivery) -> Self {
        let user = |name| delivery.properties.user(name).map(str::to_owned);
        let (code, unreadable) = match user(answer_property::CODE) {
            None => (0, None),
            Some(text) => match text.parse() {
                Ok(code) => (code, None),
                Err(_) => (
                    UNREADABLE,
                    Some(format!("the code of the answer is '{text}', not 0 to 255")),
                ),
            },
        };
        Self {
            code,
            who: user(property::WHO),
            host: user(property::HOST),
            error: unreadable.or_else(|| user(answer_property::ERROR)),
            truncated: user(answer_property::TRUNCATED),
            unit: user(answer_property::UNIT),
            reply: delivery.payload,
        }
    }

    /// Returns who answered, as `NAME@HOST`, as far as the answer says.
    #[must_use]
    pub fn from(&self) -> Option<String> {
        match (&self.who, &self.host) {
            (Some(who), Some(host)) => Some(format!("{who}@{host}")),
            (who, host) => who.clone().or_else(|| host.clone()),
        }
    }

    /// Returns it as a JSON object, with the number of its request if there are several, and the time
    /// since that was sent.
    #[must_use]
    pub fn json(&self, number: Option<u64>, after: Duration) -> Value {
        let mut object = Map::new();
        let mut add = |key: &str, value| object.insert(key.to_owned(), value);
        if let Some(number) = number {
            add("n", json!(number));
        }
        add("code", json!(self.code));
        add("who", json!(self.who));
        add("host", json!(self.host));
        let ms = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
        add("ms", json!(ms));
        add("reply", Value::String(json::string_of(&self.reply)));
        if let Some(error) = &self.error {
            add("error", json!(error));
        }
        if let Some(size) = &self.truncated {
            add("truncated", json!(size.parse().unwrap_or(0_u64)));
        }
        if let Some(unit) = &self.unit {
            add("unit", json!(unit));
        }
        Value::Object(object)
    }

    /// Returns what a second answer of the same run has in common with the first. The last line of its
    /// standard error may be gone by then.
    fn digest(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        let same = Self {
            error: None,
            ..self.clone()
        };
        same.hash(&mut hasher);
        hasher.finish()
    }
}

/// An answer that counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heard {
    /// Number of the request.
    pub number: u64,
    /// Time since the request was first sent.
    pub after: Duration,
    /// The answer.
    pub answer: Answer,
}

/// A request without all of its answers.
#[derive(Debug)]
struct Open {
    number: u64,
    message: Message,
    begun: Duration,
    /// When it was first sent.
    sent: Option<Duration>,
    /// Times that it was sent.
    sendings: u32,
    /// Tries that are over.
    tries: u32,
    /// Whether it must be sent.
    waits: bool,
    /// Whether a client may have it, as far as the broker says.
    reached: bool,
    /// Number of its answers.
    count: u32,
    /// Digests of them, if there are several.
    answers: BTreeSet<u64>,
}

impl Open {
    /// Returns when the present try is over.
    fn due(&self, terms: &Terms) -> Duration {
        let tries = self.tries.saturating_add(1);
        self.begun
            .saturating_add(terms.timeout.saturating_mul(tries))
    }
}

/// What became of the requests.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Requests that were sent.
    pub sent: u64,
    /// Requests with all their answers, or acknowledged if they need none.
    pub complete: u64,
    /// Answers with another code than 0.
    pub failed: u64,
    /// Answers that came, also to requests that lack some.
    pub answers: u64,
    /// Highest code.
    pub code: u8,
    /// Whether a request had no subscriber.
    pub unheard: bool,
    missing: u64,
    /// Numbers of the missing ones, up to [`MAX_MISSING`].
    numbers: BTreeSet<u64>,
}

impl Tally {
    /// Returns the number of requests without all their answers.
    #[must_use]
    pub const fn missing(&self) -> u64 {
        self.missing
    }

    fn miss(&mut self, number: u64) {
        self.missing += 1;
        if self.numbers.len() < MAX_MISSING {
            self.numbers.insert(number);
        }
    }

    /// Returns the summary after `elapsed`: `100 sent, 98 answered, 0 failed, 2 missing (17, 42), 31.49 s`.
    #[must_use]
    pub fn summary(&self, terms: &Terms, elapsed: Duration) -> String {
        let mut text = match terms.answers {
            0 => format!("{} sent, {} accepted", self.sent, self.complete),
            _ => format!(
                "{} sent, {} answered, {} failed",
                self.sent, self.complete, self.failed
            ),
        };
        if self.missing > 0 {
            let _ = write!(text, ", {} missing ({})", self.missing, self.ranges());
        }
        let _ = write!(text, ", {:.2} s", elapsed.as_secs_f64());
        text
    }

    /// Returns the numbers of the missing requests: `3, 5-9`.
    fn ranges(&self) -> String {
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        for number in &self.numbers {
            match ranges.last_mut() {
                Some((_, last)) if *last + 1 == *number => *last = *number,
                _ => ranges.push((*number, *number)),
            }
        }
        let named = ranges.iter().take(MAX_NAMED);
        let mut parts: Vec<String> = named
            .clone()
            .map(|(first, last)| match first == last {
                true => first.to_string(),
                false => format!("{first}-{last}"),
            })
            .collect();
        let named: u64 = named.map(|(first, last)| last - first + 1).sum();
        if named < self.missing {
            parts.push(format!("and {} more", self.missing - named));
        }
        parts.join(", ")
    }
}

/// The requests of one sender.
#[derive(Debug)]
pub struct Requests {
    terms: Terms,
    /// By their ids.
    open: BTreeMap<String, Open>,
    last: u64,
    tally: Tally,
}

impl Requests {
    /// Returns a sender without requests.
    #[must_use]
    pub fn new(terms: Terms) -> Self {
        Self {
            terms,
            open: BTreeMap::new(),
            last: 0,
            tally: Tally::default(),
        }
    }

    /// Returns whether one more may begin.
    #[must_use]
    pub fn has_room(&self) -> bool {
        let sizes = self.open.values().map(|open| open.message.payload.len());
        self.open.len() < MAX_IN_FLIGHT && sizes.sum::<usize>() < MAX_BYTES
    }

    /// Returns whether no request waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// Returns what became of the requests so far.
    #[must_use]
    pub const fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Returns the number of requests that have begun.
    #[must_use]
    pub const fn begun(&self) -> u64 {
        self.last
    }

    /// Begins the next request, whose answers repeat `id`.
    pub fn begin(&mut self, id: String, message: Message, now: Duration) {
        self.last += 1;
        let open = Open {
            number: self.last,
            message,
            begun: now,
            sent: None,
            sendings: 0,
            tries: 0,
            waits: true,
            reached: false,
            count: 0,
            answers: BTreeSet::new(),
        };
        self.open.insert(id, open);
    }

    /// Returns the next request to send, with its id. The broker drops it when the sender waits no
    /// more.
    pub fn to_send(&mut self, now: Duration) -> Option<(String, Message)> {
        let waiting = self.open.iter_mut().filter(|(_, open)| open.waits);
        let (id, open) = waiting.min_by_key(|(_, open)| open.number)?;
        open.waits = false;
        open.sendings += 1;
        if open.sent.is_none() {
            open.sent = Some(now);
            self.tally.sent += 1;
        }
        let mut message = open.message.clone();
        if self.terms.answers > 0 {
            let end = open.begun.saturating_add(self.terms.patience());
            let left = duration::whole_seconds(end.saturating_sub(now));
            message.properties.message_expiry = Some(left);
        }
        Some((id.clone(), message))
    }

    /// Takes back a request that there was no room to send.
    pub fn not_sent(&mut self, id: &str) {
        if let Some(open) = self.open.get_mut(id) {
            open.waits = true;
        }
    }

    /// Has all open requests sent again: the connection was lost, and answers with it.
    pub fn send_again(&mut self) {
        self.open.values_mut().for_each(|open| open.waits = true);
    }

    /// Notes that the broker has the request `id`, and whether it knows that no client subscribes.
    /// Without a further try, such a request is over.
    pub fn published(&mut self, id: &str, unheard: bool) {
        let Some(open) = self.open.get_mut(id) else {
            return;
        };
        open.reached |= !unheard;
        if !open.reached && open.tries >= self.terms.retries {
            self.tally.unheard = true;
            self.tally.miss(open.number);
            self.open.remove(id);
        } else if self.terms.answers == 0 && open.reached {
            self.tally.complete += 1;
            self.open.remove(id);
        }
    }

    /// Returns whether the request `id` has a further try when the present one is over.
    #[must_use]
    pub fn has_tries(&self, id: &str) -> bool {
        let open = self.open.get(id);
        open.is_some_and(|open| open.tries < self.terms.retries)
    }

    /// Ends the request `id`, which the broker refuses: it is missing. Returns its number.
    pub fn refused(&mut self, id: &str) -> Option<u64> {
        let open = self.open.remove(id)?;
        self.tally.miss(open.number);
        Some(open.number)
    }

    /// Takes a message on the reply topic. `None` if it is no answer to an open request, or one that
    /// has come before.
    pub fn answered(&mut self, delivery: Delivery, now: Duration) -> Option<Heard> {
        // A retained message is older than our requests.
        if delivery.retained || self.terms.answers == 0 {
            return None;
        }
        let id = delivery.properties.correlation_data.clone()?;
        let id = std::str::from_utf8(&id).ok()?;
        let open = self.open.get_mut(id)?;
        let answer = Answer::of(delivery);
        // Who is asked again says the same again.
        let is_copy = self.terms.answers > 1 && !open.answers.insert(answer.digest());
        if is_copy && open.sendings > 1 {
            return None;
        }
        open.count += 1;
        self.tally.answers += 1;
        self.tally.code = self.tally.code.max(answer.code);
        self.tally.failed += u64::from(answer.code != 0);
        let heard = Heard {
            number: open.number,
            after: now.saturating_sub(open.sent.unwrap_or(open.begun)),
            answer,
        };
        if open.count >= self.terms.answers {
            self.tally.complete += 1;
            self.open.remove(id);
        }
        Some(heard)
    }

    /// Returns when the next try of a request is over.
    #[must_use]
    pub fn due(&self) -> Option<Duration> {
        self.open.values().map(|open| open.due(&self.terms)).min()
    }

    /// Lets all open requests wait longer, for a time in which the sender could not read answers.
    pub fn postpone(&mut self, time: Duration) {
        for open in self.open.values_mut() {
            open.begun = open.begun.saturating_add(time);
        }
    }

    /// Ends tries that are over: the requests are sent again, or are missing.
    pub fn tick(&mut self, now: Duration) {
        let Self {
            terms, open, tally, ..
        } = self;
        open.retain(|_, open| {
            while open.due(terms) <= now {
                if open.tries >= terms.retries {
                    tally.miss(open.number);
                    return false;
                }
                open.tries += 1;
                open.waits = true;
            }
            true
        });
    }

    /// Ends all requests: those without all their answers are missing.
    pub fn give_up(&mut self) {
        for open in std::mem::take(&mut self.open).into_values() {
            self.tally.miss(open.number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::message::{Properties, Qos};

    const S: Duration = Duration::from_secs(1);

    fn terms(answers: u32, retries: u32) -> Terms {
        Terms {
            answers,
            timeout: 10 * S,
            retries,
        }
    }

    fn message() -> Message {
        Message {
            topic: "lab/ask".into(),
            payload: Bytes::new(),
            qos: Qos::AtLeastOnce,
            retain: false,
            properties: Properties::default(),
        }
    }

    fn delivery(id: &str, user: &[(&str, &str)], payload: &str) -> Delivery {
        let user = user.iter().map(|(k, v)| ((*k).into(), (*v).into()));
        Delivery {
            topic: Bytes::from("r"),
            payload: Bytes::from(payload.to_owned()),
            retained: false,
            duplicate: false,
            packet: 1,
            properties: Properties {
                user: user.collect(),
                correlation_data: Some(Bytes::from(id.to_owned())),
                ..Properties::default()
            },
        }
    }

    fn asked(terms: Terms, ids: &[&str]) -> Requests {
        let mut requests = Requests::new(terms);
        for id in ids {
            requests.begin((*id).into(), message(), Duration::ZERO);
            let (sent, _) = requests.to_send(Duration::ZERO).expect("to send");
            assert_eq!(sent, *id);
        }
        assert_eq!(requests.to_send(Duration::ZERO), None);
        requests
    }

    fn expiry(requests: &mut Requests, now: Duration) -> Option<u32> {
        requests.to_send(now)?.1.properties.message_expiry
    }

    #[test]
    fn answers_are_matched_in_any_order_by_their_correlation_data() {
        let mut requests = asked(terms(1, 0), &["a", "b", "c"]);
        let heard = requests.answered(delivery("b", &[("tael-code", "3")], "x"), S);
        let heard = heard.expect("answer");
        assert_eq!((heard.number, heard.after, heard.answer.code), (2, S, 3));
        // A second answer, a stranger's, a retained one, and one without the data.
        assert_eq!(requests.answered(delivery("b", &[], "y"), S), None);
        assert_eq!(requests.answered(delivery("d", &[], ""), S), None);
        let mut odd = delivery("a", &[], "");
        odd.retained = true;
        assert_eq!(requests.answered(odd.clone(), S), None);
        odd.retained = false;
        odd.properties.correlation_data = Some(Bytes::from(&b"\xff"[..]));
        assert_eq!(requests.answered(odd.clone(), S), None);
        odd.properties.correlation_data = None;
        assert_eq!(requests.answered(odd, S), None);
        let heard = requests.answered(delivery("a", &[], "z"), 2 * S);
        assert_eq!(heard.map(|heard| heard.number), Some(1));
        requests.tick(10 * S);
        assert!(requests.is_empty());
        let summary = requests.tally().summary(&terms(1, 0), 1490 * S / 1000);
        assert_eq!(
            summary,
            "3 sent, 2 answered, 1 failed, 1 missing (3), 1.49 s"
        );
        assert_eq!(requests.tally().code, 3);
    }

    #[test]
    fn a_request_expires_with_the_patience_of_its_sender() {
        let mut requests = Requests::new(terms(1, 2));
        requests.begin("a".into(), message(), Duration::ZERO);
        assert_eq!(expiry(&mut requests, Duration::ZERO), Some(30));
        assert_eq!(requests.due(), Some(10 * S));
        requests.tick(10 * S);
        assert_eq!(expiry(&mut requests, 10 * S), Some(20));
        // Two tries have passed without a connection.
        requests.tick(25 * S);
        assert_eq!(expiry(&mut requests, 26 * S + S / 2), Some(4));
        assert_eq!(expiry(&mut requests, 26 * S), None);
        requests.send_again();
        assert_eq!(expiry(&mut requests, 30 * S), Some(1));
        requests.tick(30 * S);
        assert!(requests.is_empty());
        assert_eq!((requests.tally().sent, requests.tally().missing()), (1, 1));
    }

    #[test]
    fn one_question_takes_several_answers_and_copies_count_once() {
        let mut requests = asked(terms(3, 1), &["a"]);
        let from = |host: &str| delivery("a", &[("tael-who", "w"), ("tael-host", host)], "ok");
        assert!(requests.answered(from("1"), S).is_some());
        assert!(requests.answered(from("2"), S).is_some());
        requests.tick(10 * S);
        assert!(requests.to_send(10 * S).is_some());
        assert_eq!(requests.answered(from("1"), 11 * S), None);
        assert!(!requests.is_empty());
        assert!(requests.answered(from("3"), 11 * S).is_some());
        assert!(requests.is_empty());
        assert_eq!(requests.tally().complete, 1);
        // Before it is asked again, two of one name are two.
        let mut requests = asked(terms(2, 0), &["a"]);
        assert!(requests.answered(from("1"), S).is_some());
        assert!(requests.answered(from("1"), S).is_some());
        assert!(requests.is_empty());
    }

    #[test]
    fn a_request_without_subscribers_ends_with_its_last_try() {
        let mut requests = asked(terms(1, 1), &["a"]);
        requests.published("a", true);
        assert!(!requests.is_empty());
        requests.tick(10 * S);
        assert!(requests.to_send(10 * S).is_some());
        requests.published("a", true);
        assert!(requests.is_empty() && requests.tally().unheard);
        assert_eq!(requests.tally().missing(), 1);
        // The one who has it may still answer.
        let mut requests = asked(terms(1, 0), &["a"]);
        requests.published("a", false);
        requests.send_again();
        requests.published("a", true);
        assert!(!requests.is_empty());
    }

    #[test]
    fn an_acknowledgement_is_enough_without_answers() {
        let mut requests = asked(terms(0, 0), &["a", "b"]);
        assert_eq!(requests.answered(delivery("a", &[], ""), S), None);
        requests.published("a", false);
        assert!(!requests.is_empty());
        requests.give_up();
        let summary = requests.tally().summary(&terms(0, 0), S);
        assert_eq!(summary, "2 sent, 1 accepted, 1 missing (2), 1.00 s");
        // It is not dropped for our lack of patience.
        let mut requests = Requests::new(terms(0, 0));
        requests.begin("a".into(), message(), S);
        assert_eq!(expiry(&mut requests, S), None);
    }

    #[test]
    fn missing_numbers_are_named_up_to_a_bound() {
        let mut tally = Tally::default();
        for number in [1, 2, 3, 7, 9, 10] {
            tally.miss(number);
        }
        assert_eq!(tally.ranges(), "1-3, 7, 9-10");
        (0..30).for_each(|n| tally.miss(20 + 2 * n));
        assert!(
            tally.ranges().ends_with(", 50, 52, and 13 more"),
            "{}",
            tally.ranges()
        );
    }

    #[test]
    fn answers_become_json() {
        let user = [
            ("tael-who", "zip"),
            ("tael-host", "n3"),
            ("tael-code", "2"),
            ("tael-error", "no"),
            ("tael-truncated", "300000"),
            ("tael-unit", "u1"),
        ];
        let answer = Answer::of(delivery("a", &user, "x\n"));
        assert_eq!(answer.from().as_deref(), Some("zip@n3"));
        assert_eq!(
            json::to_text(&answer.json(Some(17), 812 * S / 1000)),
            r#"{"n":17,"code":2,"who":"zip","host":"n3","ms":812,"reply":"x\n","error":"no","truncated":300000,"unit":"u1"}"#
        );
        // Of a program that knows nothing of Tael.
        let answer = Answer::of(delivery("a", &[], "World"));
        assert_eq!(
            json::to_text(&answer.json(None, Duration::ZERO)),
            r#"{"code":0,"who":null,"host":null,"ms":0,"reply":"World"}"#
        );
        for odd in ["256", "-1", "x", ""] {
            let answer = Answer::of(delivery("a", &[("tael-code", odd)], ""));
            assert_eq!(answer.code, 65);
            assert!(answer.error.is_some_and(|error| error.contains(odd)));
        }
    }

    #[test]
    fn there_is_room_for_some() {
        let mut requests = Requests::new(terms(1, 0));
        for n in 0..MAX_IN_FLIGHT {
            assert!(requests.has_room());
            requests.begin(n.to_string(), message(), Duration::ZERO);
        }
        assert!(!requests.has_room());
        // In the order of their numbers.
        let sent: Vec<String> =
            std::iter::from_fn(|| Some(requests.to_send(Duration::ZERO)?.0)).collect();
        assert_eq!(sent.len(), MAX_IN_FLIGHT);
        assert!(sent.iter().zip(0..).all(|(id, n)| *id == n.to_string()));
    }
}
