//! How many events may wait, and what happens to those that come when no more may.
//!
//! Nothing is lost: they are not acknowledged, and the broker sends no more of them than its
//! window holds (Receive Maximum). What it keeps meanwhile is for its own limits.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;
use tracing::{info, warn};

use crate::engine::client::Pipeline;
use crate::engine::connect::RECEIVE_MAXIMUM;
use crate::net::session::SessionReceived;
use crate::os::hooks;
use crate::os::logging::SENDERS;

/// Maximum number of units that wait before no more events are accepted.
const MAX_UNITS: usize = 100_000;

/// Maximum size of their payloads, bytes.
const MAX_BYTES: u64 = 4 << 30;

/// Maximum number of messages that are held, and the bytes in memory: more than Receive Maximum
/// for a broker that takes it for a hint. Beyond, the connection is not read.
const MAX_HELD: usize = 2 * RECEIVE_MAXIMUM as usize;
const MAX_HELD_BYTES: usize = 64 << 20;

/// Time between two looks whether there is room again.
const LOOK: Duration = Duration::from_secs(1);

/// What waits, and the messages that may not.
#[derive(Debug)]
pub(crate) struct Backlog {
    max_units: usize,
    /// Upper bounds: as they were when they were last counted, with all that came since.
    units: usize,
    bytes: u64,
    /// When they are counted again, while there is no room.
    look: Option<Instant>,
    held: VecDeque<SessionReceived>,
    held_bytes: usize,
}

impl Default for Backlog {
    fn default() -> Self {
        Self {
            max_units: max_units(),
            // To be counted when the first event comes.
            units: usize::MAX,
            bytes: 0,
            look: None,
            held: VecDeque::new(),
            held_bytes: 0,
        }
    }
}

fn max_units() -> usize {
    hooks::max_waiting().unwrap_or(MAX_UNITS)
}

impl Backlog {
    /// A unit is on its way to the ledger, with a payload of `bytes`.
    pub fn came(&mut self, bytes: usize) {
        self.units = self.units.saturating_add(1);
        self.bytes = self.bytes.saturating_add(bytes as u64);
    }

    /// Whether more messages can be held.
    pub fn takes_more(&self) -> bool {
        self.held.len() < MAX_HELD && self.held_bytes < MAX_HELD_BYTES
    }

    /// When messages that are held may be taken.
    pub fn wake(&self) -> Option<Instant> {
        self.look.filter(|_| !self.held.is_empty())
    }

    /// The connection is gone: the broker sends again what was not acknowledged.
    pub fn disconnected(&mut self) {
        self.held.retain(|received| received.delivery.packet == 0);
        let bytes = self.held.iter().map(|received| received.delivery.memory());
        self.held_bytes = bytes.sum();
    }

    fn hold(&mut self, received: SessionReceived) {
        self.held_bytes += received.delivery.memory();
        self.held.push_back(received);
    }

    fn next(&mut self) -> Option<SessionReceived> {
        let received = self.held.pop_front()?;
        self.held_bytes -= received.delivery.memory();
        Some(received)
    }
}

impl Pipeline {
    /// Whether another event may wait.
    pub(crate) fn has_room(&mut self) -> bool {
        let backlog = &self.backlog;
        let below = backlog.units < backlog.max_units && backlog.bytes < MAX_BYTES;
        match backlog.look {
            Some(look) if Instant::now() < look => return false,
            None if below => return true,
            _ => {}
        }
        self.backlog.units = self.queue.waiting() + self.uncommitted;
        // What cannot be read now is not to stop what comes.
        self.backlog.bytes = self.reader.waiting_bytes().unwrap_or(0);
        let backlog = &mut self.backlog;
        let room = backlog.units < backlog.max_units && backlog.bytes < MAX_BYTES;
        let look = (!room).then(|| Instant::now() + LOOK);
        let before = std::mem::replace(&mut backlog.look, look);
        match (before, look) {
            (None, Some(_)) => warn!(
                "{} units wait, with payloads of {} bytes: no more events are accepted until some \
                 have begun; the broker keeps them, within its own limits{}",
                backlog.units,
                backlog.bytes,
                match self.queue.is_paused() {
                    true =>
                        ", and requests behind them: to resume, remove 'paused' from the state \
                             folder, and reload",
                    false => "",
                }
            ),
            (Some(_), None) => info!("events are accepted again"),
            _ => {}
        }
        room
    }

    /// Deals with a message that may start something, at once or when there is room.
    pub(crate) fn on_message(&mut self, received: SessionReceived) {
        if self.backlog.held.is_empty() && self.has_room() {
            return self.deal_with(&received);
        }
        // Nobody sends a message of QoS 0 again, and nobody has to.
        if received.delivery.packet == 0 && self.backlog.held.len() >= MAX_HELD / 2 {
            self.counts.ignored += 1;
            warn!(target: SENDERS, "a message of QoS 0 is dropped: too many events wait");
            return;
        }
        self.backlog.hold(received);
    }

    /// Takes the messages that were held, if there is room.
    pub(crate) fn take_held(&mut self) {
        while !self.backlog.held.is_empty() && self.keeps_up() && self.has_room() {
            if let Some(received) = self.backlog.next() {
                self.deal_with(&received);
            }
        }
    }

    fn deal_with(&mut self, received: &SessionReceived) {
        self.pressure.came(Instant::now());
        self.on_delivery(&received.delivery, received.ack.clone());
        self.pressure.served(Instant::now());
    }
}
