//! Messages that the ledger holds until the broker has acknowledged them.

use std::collections::VecDeque;

use crate::model::message::Message;
use crate::net::session::Session;
use crate::store::ledger::Queued;

/// Messages under way at one time.
const WINDOW: usize = 32;

#[derive(Debug)]
struct Row {
    queued: Queued,
    sent: bool,
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
            sent: false,
        };
        self.rows.extend(queued.into_iter().map(row));
    }

    /// Publishes what may go out now, and tells `sent` of each.
    pub fn flush(&mut self, session: &mut Session, mut sent: impl FnMut(u64)) {
        for row in self.rows.iter_mut().take(WINDOW).filter(|row| !row.sent) {
            row.sent = session.publish(row.queued.message.clone(), row.queued.seq);
            if !row.sent {
                return;
            }
            sent(row.queued.seq);
        }
    }

    /// Forgets that anything was sent: the connection is gone.
    pub fn reset(&mut self) {
        for row in &mut self.rows {
            row.sent = false;
        }
    }

    /// Takes out the message that the broker has dealt with.
    pub fn complete(&mut self, seq: u64) -> Option<Message> {
        let place = self.rows.iter().position(|row| row.queued.seq == seq)?;
        self.rows.remove(place).map(|row| row.queued.message)
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
