//! Questions to other nodes that are about no unit of ours: whether they answer, and which units they have.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use tokio::sync::oneshot;
use tracing::warn;

use crate::engine::pipeline::Pipeline;
use crate::engine::work::delegates::node::Nodes;
use crate::error::Kind;
use crate::model::message::{Delivery, Message};
use crate::model::receptor::{NO_ROUTE, TRY_AGAIN};
use crate::model::remote::wire::{self, Answer, Request};
use crate::os::host::new_id;
use crate::os::logging::SENDERS;

/// The way of an answer to who asks: what the node says, or an error for the requester.
pub type Asker = oneshot::Sender<Result<Answer, String>>;

/// Maximum number of nodes that are known because someone has asked for them. Those that no one asks any
/// more make room.
const MAX_ASKED: usize = 64;

/// A question; `T` is a token of a publish.
#[derive(Debug)]
struct Question<T> {
    /// The node.
    node: String,
    /// What it is asked.
    request: Request,
    /// Whether it is signed, if we have a key; once it was sent, whether it was signed.
    signed: bool,
    asker: Asker,
    /// The publish that has carried it.
    sent: Option<T>,
}

/// The questions without an answer. Connections of the control socket ask one at a time, and give up after
/// a bounded time: that bounds their number.
#[derive(Debug)]
pub struct Questions<T> {
    list: HashMap<Bytes, Question<T>>,
    /// Those that were not sent.
    ready: Vec<Bytes>,
}

impl<T> Default for Questions<T> {
    fn default() -> Self {
        Self {
            list: HashMap::new(),
            ready: Vec::new(),
        }
    }
}

impl<T: Copy + Eq> Questions<T> {
    /// Takes a question.
    pub fn add(&mut self, node: String, request: Request, signed: bool, asker: Asker) {
        self.list.retain(|_, question| !question.asker.is_closed());
        self.put(Question {
            node,
            request,
            signed,
            asker,
            sent: None,
        });
    }

    fn put(&mut self, question: Question<T>) {
        let id = Bytes::from(new_id());
        self.list.insert(id.clone(), question);
        self.ready.push(id);
    }

    /// Makes room for `node` among the `nodes`: forgets those that no one asks and that have no unit, if
    /// too many are there for questions only. `with_units` have units.
    ///
    /// # Errors
    /// When that many are being asked.
    pub fn make_room<'a>(
        &self,
        nodes: &mut Nodes,
        node: &str,
        with_units: impl Iterator<Item = &'a str>,
    ) -> Result<(), String> {
        if nodes.contains_key(node) || nodes.len() < MAX_ASKED {
            return Ok(());
        }
        let with_units: HashSet<&str> = with_units.collect();
        let is_extra = |name: &String| !with_units.contains(name.as_str());
        if nodes.keys().filter(|name| is_extra(name)).count() < MAX_ASKED {
            return Ok(());
        }
        let open = self.list.values().filter(|asked| !asked.asker.is_closed());
        let asked: HashSet<&str> = open.map(|question| question.node.as_str()).collect();
        nodes.retain(|name, _| !is_extra(name) || asked.contains(name.as_str()));
        match nodes.keys().filter(|name| is_extra(name)).count() < MAX_ASKED {
            true => Ok(()),
            false => {
                warn!(target: SENDERS, "more than {MAX_ASKED} nodes are asked at once");
                Err(format!("{TRY_AGAIN}{MAX_ASKED} nodes are being asked"))
            }
        }
    }

    /// Sends what was not sent. `publish` returns nothing if one does not go out. Returns whether all
    /// went out that can.
    pub fn send(
        &mut self,
        pipeline: &Pipeline,
        nodes: &Nodes,
        mut publish: impl FnMut(Message) -> Option<T>,
    ) -> bool {
        let mut goes = true;
        for id in std::mem::take(&mut self.ready) {
            let Some(question) = self.list.get_mut(&id) else {
                continue;
            };
            let Some(node) = nodes.get(&question.node) else {
                self.answer(&id, Err(NO_ROUTE.to_owned()));
                continue;
            };
            if !goes || !node.is_subscribed {
                self.ready.push(id);
                continue;
            }
            if let Some(refusal) = node.refusal() {
                self.answer(&id, Err(refusal));
                continue;
            }
            question.signed &= pipeline.config.signer.is_some();
            let asked = (question.request.clone(), Bytes::new());
            let mut message = match node.request(pipeline, question.signed, &asked) {
                Ok(message) => message,
                Err(e) => {
                    self.answer(&id, Err(e.to_string()));
                    continue;
                }
            };
            message.properties.correlation_data = Some(id.clone());
            question.sent = publish(message);
            if question.sent.is_none() {
                goes = false;
                self.ready.push(id);
            }
        }
        goes
    }

    /// Notes that no subscriber has got what was sent.
    pub fn not_heard(&mut self, token: T) {
        let sent = |question: &Question<T>| question.sent == Some(token);
        self.end(sent, NO_ROUTE);
    }

    /// Notes that `node` is away.
    pub fn is_away(&mut self, node: &str) {
        self.end(|question| question.node == node, NO_ROUTE);
    }

    /// Notes that the connection is gone: answers may be lost.
    pub fn went_offline(&mut self) {
        self.end(|_| true, &format!("{TRY_AGAIN}the broker is away"));
    }

    /// Takes the answer of `node`. Returns whether it is one of these. A question whose signature is
    /// refused goes out again without: the node may not know the key, and unsigned work needs none.
    pub fn take(&mut self, node: &str, delivery: &Delivery) -> bool {
        let Some(id) = &delivery.properties.correlation_data else {
            return false;
        };
        let asked = self.list.get(id);
        let Some(asked) = asked.filter(|question| question.node == node) else {
            return false;
        };
        let answer = wire::read_answer(&delivery.payload);
        let answer = answer.map(|(answer, _)| answer);
        let refused = |answer: &Answer| match answer {
            Answer::Refused { code, .. } => *code == Kind::NotAuthorised.exit_code(),
            _ => false,
        };
        if asked.signed
            && answer.as_ref().is_ok_and(refused)
            && let Some(question) = self.list.remove(id)
        {
            self.put(Question {
                signed: false,
                sent: None,
                ..question
            });
            return true;
        }
        self.answer(
            id,
            answer.map_err(|e| format!("read the answer of the node: {e}")),
        );
        true
    }

    fn end(&mut self, which: impl Fn(&Question<T>) -> bool, cause: &str) {
        let ids = self.list.iter().filter(|(_, question)| which(question));
        let ids: Vec<Bytes> = ids.map(|(id, _)| id.clone()).collect();
        for id in ids {
            self.answer(&id, Err(cause.to_owned()));
        }
    }

    fn answer(&mut self, id: &Bytes, answer: Result<Answer, String>) {
        if let Some(question) = self.list.remove(id) {
            // Who has gone needs no answer.
            let _ = question.asker.send(answer);
        }
    }
}
