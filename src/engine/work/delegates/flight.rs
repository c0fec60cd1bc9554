//! Requests that the broker has not taken yet.

use std::collections::HashMap;
use std::hash::Hash;

use crate::error::Error;
use crate::model::remote::wire::Request;

/// Units by the publishes of their requests, and whether it is an offer; `T` is a token of a publish.
#[derive(Debug)]
pub struct Flight<T>(HashMap<T, (String, bool)>);

impl<T> Default for Flight<T> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<T: Eq + Hash> Flight<T> {
    /// Notes that `token` carries a request about `unit`. Pieces and acknowledgements follow a request that
    /// was taken.
    pub fn sent(&mut self, token: T, unit: &str, request: &Request) {
        let is_offer = matches!(request, Request::Submit(_));
        if !matches!(request, Request::Payload { .. } | Request::Ack { .. }) {
            self.0.insert(token, (unit.to_owned(), is_offer));
        }
    }

    /// Notes that a publish is complete. Returns its unit, and whether it is its offer.
    pub fn published(&mut self, token: &T) -> Option<(String, bool)> {
        self.0.remove(token)
    }

    /// Notes that the connection is gone.
    pub fn went_offline(&mut self) {
        self.0.clear();
    }
}

/// Returns what people read of a unit whose request has not come to `node`, if it has not: `heard` is
/// whether anyone subscribes to its topic, or why the broker does not take it.
pub fn note(node: &str, heard: Result<bool, &Error>) -> Option<String> {
    match heard {
        Ok(true) => None,
        Ok(false) => Some(format!(
            "waits: no client with work types is called {node} below this root"
        )),
        Err(e) => Some(format!(
            "waits: the broker does not take requests to node {node}: {e}"
        )),
    }
}
