//! Limits of waiting events, and what happens beyond them.
//!
//! No event is lost. Further events are not acknowledged, and the broker sends no more than its
//! window holds (Receive Maximum). Its own limits decide what it keeps meanwhile.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;
use tracing::{info, warn};

use crate::engine::commit::receipt::Receipt;
use crate::engine::config::RECEIVE_MAXIMUM;
use crate::engine::intake::offer::Offer;
use crate::engine::pipeline::Pipeline;
use crate::engine::work::lanes::Lanes;
use crate::os::hooks;
use crate::os::logging::SENDERS;

/// Maximum number of units that wait. Beyond it no events are accepted.
const MAX_UNITS: usize = 100_000;

/// Refusal of work when too many units wait, or too many bytes.
pub const TOO_MANY: &str = "too many units wait";

/// Maximum size of their payloads, bytes.
const MAX_BYTES: u64 = 4 << 30;

/// Maximum number of messages that are held, and of their bytes in memory: more than Receive
/// Maximum, which some brokers treat as a hint. Beyond it the connection is not read.
const MAX_HELD: usize = 2 * RECEIVE_MAXIMUM as usize;
const MAX_HELD_BYTES: usize = 64 << 20;

/// Interval between two checks for room.
const LOOK: Duration = Duration::from_secs(1);

/// Load of other parts of the client.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// Number of units that wait, and of changes that wait for the ledger.
    pub units: usize,
    /// Whether the pipeline is paused.
    pub paused: bool,
}

impl Load {
    /// Returns what waits in `lanes`, and for the ledger.
    pub fn of(lanes: &Lanes, uncommitted: usize) -> Self {
        Self {
            units: lanes.waiting() + uncommitted,
            paused: lanes.is_paused(),
        }
    }
}

/// Waiting units, and offers that must wait for room.
#[derive(Debug)]
pub struct Backlog {
    max_units: usize,
    /// Upper bounds: the last count, and everything since.
    units: usize,
    bytes: u64,
    /// When to count again, while there is no room.
    look: Option<Instant>,
    held: VecDeque<Offer>,
    held_bytes: usize,
    /// Whether there is room for everything.
    is_open: bool,
}

impl Default for Backlog {
    fn default() -> Self {
        Self {
            max_units: hooks::max_waiting().unwrap_or(MAX_UNITS),
            // Counted when the first event comes.
            units: usize::MAX,
            bytes: 0,
            look: None,
            held: VecDeque::new(),
            held_bytes: 0,
            is_open: false,
        }
    }
}

impl Backlog {
    /// Notes a unit with a payload of `bytes`, which is being written to the ledger.
    pub fn came(&mut self, bytes: usize) {
        self.units = self.units.saturating_add(1);
        self.bytes = self.bytes.saturating_add(bytes as u64);
    }

    /// Returns whether more messages can be held.
    pub fn takes_more(&self) -> bool {
        self.held.len() < MAX_HELD && self.held_bytes < MAX_HELD_BYTES
    }

    /// Returns when held messages may be taken.
    pub fn wake(&self) -> Option<Instant> {
        self.look.filter(|_| !self.held.is_empty())
    }

    /// Notes that the connection is gone: the broker sends again what was not acknowledged.
    pub fn disconnected(&mut self) {
        self.held.retain(|offer| !offer.comes_again());
        self.held_bytes = self.held.iter().map(Offer::memory).sum();
    }

    /// Finds room for everything from now on: the session ends, and with it what is not taken. The
    /// time of the stop is the limit.
    pub fn open(&mut self) {
        self.is_open = true;
        if self.look.is_some() {
            warn!("the last events of this worker are accepted, although too many runs wait");
        }
    }

    /// Returns whether an offer is held. Later ones must not overtake it.
    pub fn holds(&self) -> bool {
        !self.held.is_empty()
    }

    /// Holds an offer until there is room. An offer that does not come again is dropped if too many
    /// are held, and its receipt is returned, because other acknowledgements wait behind it.
    pub fn hold(&mut self, offer: Offer) -> Option<Receipt> {
        if !offer.comes_again() && self.held.len() >= MAX_HELD / 2 {
            warn!(target: SENDERS, "a message of QoS 0 is dropped: too many events wait");
            return Some(offer.receipt);
        }
        self.held_bytes += offer.memory();
        self.held.push_back(offer);
        None
    }

    /// Takes the first held offer.
    pub fn next(&mut self) -> Option<Offer> {
        let offer = self.held.pop_front()?;
        self.held_bytes -= offer.memory();
        Some(offer)
    }

    /// Returns whether another event may wait, with the present `load`.
    pub fn has_room(&mut self, pipeline: &Pipeline, load: impl FnOnce() -> Load) -> bool {
        if self.is_open {
            return true;
        }
        let below = self.units < self.max_units && self.bytes < MAX_BYTES;
        match self.look {
            Some(look) if Instant::now() < look => return false,
            None if below => return true,
            _ => {}
        }
        let Load { units, paused } = load();
        self.units = units;
        // A failed read must not stop new events.
        self.bytes = pipeline.reader.waiting_bytes().unwrap_or(0);
        let room = self.units < self.max_units && self.bytes < MAX_BYTES;
        let look = (!room).then(|| Instant::now() + LOOK);
        let before = std::mem::replace(&mut self.look, look);
        match (before, look) {
            (None, Some(_)) => warn!(
                "{} runs wait, with payloads of {} bytes: no more events are accepted until some \
                 have begun; the broker keeps them, within its own limits{}",
                self.units,
                self.bytes,
                match paused {
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::intake::offer::Subject;
    use crate::model::message::{Delivery, Properties};
    use bytes::Bytes;

    fn offer(packet: u16) -> Offer {
        Offer {
            subject: Subject::Message(Delivery {
                topic: Bytes::from_static(b"t"),
                payload: Bytes::from_static(b"{}"),
                retained: false,
                duplicate: false,
                packet,
                properties: Properties::default(),
            }),
            reply: None,
            receipt: Receipt::None,
        }
    }

    #[test]
    fn a_dropped_message_gives_its_receipt_back_and_what_is_held_stays_in_order() {
        let mut backlog = Backlog::default();
        for _ in 0..MAX_HELD / 2 {
            assert!(backlog.hold(offer(0)).is_none());
        }
        assert!(backlog.hold(offer(0)).is_some(), "no broker sends it again");
        assert!(backlog.hold(offer(7)).is_none(), "the broker does");
        backlog.disconnected();
        assert_eq!(backlog.held.len(), MAX_HELD / 2, "it comes again");
        while backlog.next().is_some() {}
        assert_eq!(backlog.held_bytes, 0);
    }
}
