//! Requests to pipelines that wait for their answers.

use std::collections::HashMap;
use std::sync::Mutex;

use serde_json::Value;
use tokio::sync::oneshot;

use crate::model::gateway::rate::Caller;
use crate::model::json;
use crate::model::message::Delivery;
use crate::tools::gateway::page::lock::lock;
use crate::tools::gateway::permits::{Permit, Permits};

/// Maximum number of requests that wait.
const MAX_REQUESTS: usize = 64;

/// The requests, by the topics of their answers.
#[derive(Debug)]
pub(super) struct Requests {
    waiting: Mutex<HashMap<String, Waiting>>,
    permits: Permits,
}

#[derive(Debug)]
struct Waiting {
    tell: oneshot::Sender<Value>,
    _permit: Permit,
}

impl Requests {
    pub fn new() -> Self {
        Self {
            waiting: Mutex::default(),
            permits: Permits::new(MAX_REQUESTS),
        }
    }

    /// Returns what `caller` will be answered on `topic`; `None` if it has its share of the requests that
    /// wait, or too many others wait.
    pub fn expect(&self, caller: Caller, topic: &str) -> Option<oneshot::Receiver<Value>> {
        let mut waiting = lock(&self.waiting);
        waiting.retain(|_, waiting| !waiting.tell.is_closed());
        let _permit = self.permits.try_take(Some(caller))?;
        let (tell, told) = oneshot::channel();
        waiting.insert(topic.to_owned(), Waiting { tell, _permit });
        Some(told)
    }

    /// Takes a message. If it is an answer, the caller that waits for it gets it.
    pub fn take(&self, delivery: &Delivery) {
        let topic = std::str::from_utf8(&delivery.topic).ok();
        let waiting = topic.and_then(|topic| lock(&self.waiting).remove(topic));
        if let Some(waiting) = waiting {
            // The caller may have left.
            let answer = json::parse(&delivery.payload).unwrap_or(Value::Null);
            let _ = waiting.tell.send(answer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_of_one_caller_leave_room_for_those_of_others() {
        let requests = Requests::new();
        let ask = |who: u8| {
            let caller = Caller::at(Some([127, 0, 0, who].into()));
            let all = (0..).map_while(|n| requests.expect(caller, &format!("lab/{who}/{n}")));
            all.collect::<Vec<_>>()
        };
        let first = ask(1);
        assert_eq!(first.len(), MAX_REQUESTS / 2);
        assert_eq!(ask(2).len(), MAX_REQUESTS / 3);
        // Those who have left do not count.
        drop(first);
        assert_eq!(ask(1).len(), MAX_REQUESTS / 2);
    }
}
