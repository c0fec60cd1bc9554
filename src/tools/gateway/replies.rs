//! Answers for callers who wait for the run of their message.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use serde_json::{Map, Value, json};
use tokio::sync::oneshot;

use crate::model::digest::Sha256;
use crate::model::gateway::rate::Caller;
use crate::model::message::Delivery;
use crate::model::request::{Answer, reply_topic};
use crate::model::text::escaped_json;
use crate::model::topic::Filter;
use crate::net::http::{MAX_ENDING, MAX_LONG, Response};
use crate::os::host;
use crate::tools::gateway::budget::Budget;
use crate::tools::gateway::outgoing::Unsent;
use crate::tools::gateway::units::MAX_OUTPUT;

/// Maximum number of callers who wait: there are not more long answers.
const MAX_WAITING: usize = MAX_LONG + MAX_ENDING;

/// The callers who wait for one answer.
#[derive(Debug)]
struct Waiting {
    /// Correlation Data of the answer: the id of the event.
    id: String,
    callers: Vec<(Caller, oneshot::Sender<Bytes>)>,
}

/// All callers who wait, by the topics of their answers.
#[derive(Debug)]
pub struct Replies {
    root: String,
    client: String,
    budget: Budget,
    waiting: Mutex<HashMap<String, Waiting>>,
}

impl Replies {
    /// Returns those of a gateway for `root` that the broker knows as `client`. Answers take their memory
    /// from `budget`.
    #[must_use]
    pub fn new(root: &str, client: &str, budget: Budget) -> Self {
        Self {
            root: root.to_owned(),
            // Neither can be in a topic.
            client: client.replace(['+', '#'], "-"),
            budget,
            waiting: Mutex::default(),
        }
    }

    /// Returns the filters of the topics for answers: below the root, and below the first level of other
    /// topics that callers may publish to.
    #[must_use]
    pub fn filters(&self) -> Vec<Filter> {
        let roots = match self.root.contains('/') {
            true => vec!["+", self.root.as_str()],
            false => vec!["+"],
        };
        let filters = roots.into_iter();
        let filters = filters.map(|root| Filter::new(reply_topic(root, &self.client, "+")));
        filters.filter_map(Result::ok).collect()
    }

    /// Returns the topic for the answer to the event `id` with this payload on `topic`. An event that is
    /// sent again has its answer on the same topic: while its run goes on, a client answers there.
    #[must_use]
    pub fn topic(&self, topic: &str, id: &str, payload: &[u8]) -> String {
        let below = topic.strip_prefix(&self.root);
        let root = match below.is_some_and(|below| below.starts_with('/')) {
            true => &self.root,
            false => topic.split('/').next().unwrap_or_default(),
        };
        let mut digest = Sha256::default();
        for part in [topic.as_bytes(), id.as_bytes(), payload] {
            digest.part(part);
        }
        let mut request = [0; 16];
        request.copy_from_slice(&digest.finish()[..16]);
        reply_topic(root, &self.client, &host::id_from(request))
    }

    /// Returns what `caller` will be answered on `topic` to the event `id`.
    ///
    /// # Errors
    /// When too many others wait.
    pub fn expect(
        &self,
        caller: Caller,
        topic: &str,
        id: &str,
    ) -> Result<oneshot::Receiver<Bytes>, Unsent> {
        let mut waiting = self.waiting();
        waiting.retain(|_, one| {
            one.callers.retain(|(_, sender)| !sender.is_closed());
            !one.callers.is_empty()
        });
        let count: usize = waiting.values().map(|one| one.callers.len()).sum();
        if count >= MAX_WAITING {
            return Err(Unsent::away("too many callers wait for answers"));
        }
        let (sender, receiver) = oneshot::channel();
        let one = waiting.entry(topic.to_owned()).or_insert_with(|| Waiting {
            id: id.to_owned(),
            callers: Vec::new(),
        });
        one.callers.push((caller, sender));
        Ok(receiver)
    }

    /// Takes a message. If it is an answer, those who wait for it get it.
    pub fn take(&self, delivery: &Delivery) {
        let Ok(topic) = std::str::from_utf8(&delivery.topic) else {
            return;
        };
        let mut waiting = self.waiting();
        // A retained message is older than the question.
        let is_answer = |one: &Waiting| {
            let id = delivery.properties.correlation_data.as_deref();
            !delivery.retained && id == Some(one.id.as_bytes())
        };
        if !waiting.get(topic).is_some_and(is_answer) {
            return;
        }
        let Some(one) = waiting.remove(topic) else {
            return;
        };
        // All share it, and it counts once for each caller. One without memory for it is told, as after its
        // time, to ask again.
        let body = body(&one.id, &Answer::of(delivery.clone()));
        let mut kept: HashMap<Caller, Option<Bytes>> = HashMap::new();
        for (caller, sender) in one.callers {
            let own = kept.entry(caller).or_insert_with(|| {
                let reserved = self.budget.try_reserve(caller, body.len())?;
                Some(reserved.keep(body.clone()))
            });
            if let Some(own) = own {
                // It may have left.
                let _ = sender.send(own.clone());
            }
        }
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<String, Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns what a caller is told of the answer to event `id`.
fn body(id: &str, answer: &Answer) -> Bytes {
    let beginning = answer.reply.get(..MAX_OUTPUT);
    let output = String::from_utf8_lossy(beginning.unwrap_or(&answer.reply));
    let is_cut = beginning.is_some_and(|part| part.len() < answer.reply.len());
    let mut body = Map::new();
    body.insert("id".to_owned(), id.into());
    body.insert("code".to_owned(), answer.code.into());
    body.insert("output".to_owned(), output.into());
    let truncated = is_cut || answer.truncated.is_some();
    body.insert("truncated".to_owned(), truncated.into());
    body.insert("who".to_owned(), json!(answer.who));
    body.insert("host".to_owned(), json!(answer.host));
    for (key, text) in [("error", &answer.error), ("unit", &answer.unit)] {
        if let Some(text) = text {
            body.insert(key.to_owned(), json!(text));
        }
    }
    let text = escaped_json(&Value::Object(body).to_string());
    (text + "\n").into()
}

/// Returns the answer for a caller who has waited for the run of the event `id`; 202 if no answer has
/// come in its time.
#[must_use]
pub fn response(id: &str, body: Option<&Bytes>) -> Response {
    match body {
        Some(body) => Response::new(200, "application/json", body.clone()),
        None => Response::json(202, &json!({ "id": id, "pending": true })),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::message::Properties;
    use crate::tools::gateway::budget::MAX_ANSWERS;

    /// A caller for whom it does not matter which one it is.
    const ANY: Caller = Caller::Local;

    fn answer(topic: &str, id: &'static str, retained: bool) -> Delivery {
        Delivery {
            topic: Bytes::copy_from_slice(topic.as_bytes()),
            payload: "out".into(),
            retained,
            duplicate: false,
            packet: 0,
            properties: Properties {
                correlation_data: Some(id.into()),
                ..Properties::default()
            },
        }
    }

    #[test]
    fn answers_go_to_those_who_wait_for_them() {
        let replies = Replies::new("lab", "gw", Budget::default());
        let topic = replies.topic("lab/a", "e1", b"{}");
        let [mut first, mut second] =
            [(); 2].map(|()| replies.expect(ANY, &topic, "e1").expect("room"));
        let other = replies.topic("lab/a", "e1", b"{ }");
        assert_ne!(other, topic, "another event");
        for stranger in [
            answer(&other, "e1", false),
            answer(&topic, "e2", false),
            answer(&topic, "e1", true),
        ] {
            replies.take(&stranger);
            assert!(first.try_recv().is_err(), "{stranger:?}");
        }
        replies.take(&answer(&topic, "e1", false));
        for receiver in [&mut first, &mut second] {
            let body = receiver.try_recv().expect("answer");
            let body: Value = serde_json::from_slice(&body).expect("JSON");
            let told = (
                &body["id"],
                &body["code"],
                &body["output"],
                &body["truncated"],
            );
            assert_eq!(
                told,
                (&json!("e1"), &json!(0), &json!("out"), &json!(false))
            );
        }
        replies.take(&answer(&topic, "e1", false));
    }

    #[test]
    fn callers_share_the_beginning_of_a_long_answer() {
        let replies = Replies::new("lab", "gw", Budget::default());
        let [mut first, mut second] =
            [(); 2].map(|()| replies.expect(ANY, "t", "e1").expect("room"));
        for (length, is_cut) in [(MAX_OUTPUT, false), (MAX_OUTPUT + 1, true)] {
            replies.take(&Delivery {
                payload: vec![b'x'; length].into(),
                ..answer("t", "e1", false)
            });
            let [one, same] = [&mut first, &mut second].map(|own| own.try_recv().expect("answer"));
            assert_eq!(one.as_ptr(), same.as_ptr());
            let body: Value = serde_json::from_slice(&one).expect("JSON");
            assert_eq!(body["output"].as_str().map(str::len), Some(MAX_OUTPUT));
            assert_eq!(body["truncated"], is_cut);
            [first, second] = [(); 2].map(|()| replies.expect(ANY, "t", "e1").expect("room"));
        }
    }

    #[test]
    fn a_reply_counts_for_each_caller_that_waits_for_it() {
        let budget = Budget::default();
        let replies = Replies::new("lab", "gw", budget.clone());
        let caller = |last| Caller::at(Some([127, 0, 0, last].into()));
        let mut held = Vec::new();
        let mut count = |who| {
            for n in 0..MAX_ANSWERS / MAX_OUTPUT {
                let mut one = replies.expect(caller(who), "t", "e1").expect("room");
                replies.take(&Delivery {
                    payload: vec![b'x'; MAX_OUTPUT].into(),
                    ..answer("t", "e1", false)
                });
                match one.try_recv() {
                    Ok(body) => held.push(body),
                    Err(_) => return n,
                }
            }
            usize::MAX
        };
        let half = MAX_ANSWERS / 2 / MAX_OUTPUT;
        assert!((half - 2..=half).contains(&count(1)), "its share");
        assert!(count(2) > 0, "others have theirs");
    }

    #[test]
    fn callers_have_a_limit_and_those_who_left_do_not_count() {
        let replies = Replies::new("lab", "gw", Budget::default());
        let mut all: Vec<_> = (0..MAX_WAITING)
            .map(|n| replies.expect(ANY, "t", &n.to_string()).expect("room"))
            .collect();
        assert_eq!(
            replies
                .expect(ANY, "u", "e")
                .map(drop)
                .expect_err("full")
                .status,
            503
        );
        all.clear();
        assert!(replies.expect(ANY, "u", "e").is_ok());
        assert_eq!(replies.waiting().len(), 1);
    }

    #[test]
    fn every_topic_for_answers_is_subscribed_to() {
        for (root, topic) in [
            ("lab", "lab/a"),
            ("lab", "labor/a"),
            ("a/b", "a/b/c"),
            ("a/b", "a/x"),
        ] {
            let replies = Replies::new(root, "g+w", Budget::default());
            let reply = replies.topic(topic, "e", b"{}");
            let filters = replies.filters();
            assert!(
                filters.iter().any(|f| f.matches(&reply)),
                "{reply} {filters:?}"
            );
        }
    }
}
