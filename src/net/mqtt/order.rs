//! Which publish the library has sent under which packet identifier.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use crate::net::mqtt::Token;

/// Tokens of publishes in the order in which the library was given them.
#[derive(Debug, Clone, Default)]
pub(super) struct Order(Arc<Mutex<VecDeque<Token>>>);

impl Order {
    pub fn push(&self, token: Token) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push_back(token);
    }

    pub fn pop(&self) -> Option<Token> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop_front()
    }
}
