//! Messages that the ledger holds until the broker has acknowledged them.

use std::collections::VecDeque;

use crate::net::mqtt::Token;
use crate::net::session::Session;
use crate::store::ledger::Queued;

/// Messages under way at one time.
const WINDOW: usize = 32;

#[derive(Debug)]
struct Row {
    queued: Queued,
    /// Of its publish, while that is under way on this connection.
    token: Option<Token>,
}

/// The outbox in memory, in the order of the ledger's.
#[derive(Debug, Default)]
pub struct Outbox {
    rows: VecDeque<Row>,
}

impl Outbox {
    /// Adds messages at the end.
    pub fn extend(&mut self, queued: impl IntoIterator<Item = Queued>) {
        let row = |queued| Row {
            queued,
            token: None,
        };
        self.rows.extend(queued.into_iter().map(row));
    }

    /// Publishes what may go out now, and tells `sent` of each.
    pub fn flush(&mut self, session: &mut Session, mut sent: impl FnMut(Token)) {
        let window = self.rows.iter_mut().take(WINDOW);
        for row in window.filter(|row| row.token.is_none()) {
            row.token = session.publish(row.queued.message.clone());
            let Some(token) = row.token else { return };
            sent(token);
        }
    }

    /// Forgets that anything was sent: the connection is gone.
    pub fn reset(&mut self) {
        for row in &mut self.rows {
            row.token = None;
        }
    }

    /// Takes out the message that the broker has dealt with.
    pub fn complete(&mut self, token: Token) -> Option<Queued> {
        let place = self.rows.iter().position(|row| row.token == Some(token))?;
        self.rows.remove(place).map(|row| row.queued)
    }

    /// How many messages wait.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }
}
