//! Messages that the broker delivers again, and that this client does not know. Another client may run
//! them, so they wait a while and are claimed.

use tokio::time::{Duration, Instant};

use crate::engine::commit::receipt::Tag;
use crate::engine::intake::queued::Queued;
use crate::model::claim::{Claim, Fate};
use crate::model::signature::hex;
use crate::os::host::new_id;

/// A message that waits.
#[derive(Debug)]
pub struct Held {
    /// The message.
    pub message: Queued,
    /// Its delivery.
    pub tag: Tag,
    claim: String,
    /// When it runs here, unless another client says that it runs or has run there.
    until: Instant,
    /// When it is claimed again.
    next: Instant,
}

/// The messages of one queue that wait: no more than its prefetch.
#[derive(Debug)]
pub struct HeldMessages {
    list: Vec<Held>,
    grace: Duration,
    interval: Duration,
}

impl HeldMessages {
    /// Returns none, which will wait for `grace` each and be claimed at `interval`s.
    pub const fn new(grace: Duration, interval: Duration) -> Self {
        Self {
            list: Vec::new(),
            grace,
            interval,
        }
    }

    /// Makes a message wait.
    pub fn add(&mut self, message: Queued, tag: Tag) {
        let now = Instant::now();
        self.list.push(Held {
            message,
            tag,
            claim: new_id(),
            until: now + self.grace,
            next: now,
        });
    }

    /// Returns how many wait.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Returns whether `claim` is ours.
    pub fn has_claim(&self, claim: &str) -> bool {
        self.list.iter().any(|held| held.claim == claim)
    }

    /// Notes what another client says to a claim. Returns the message if it has run there.
    pub fn answered(&mut self, claim: &str, fate: Fate) -> Option<Held> {
        let place = self.list.iter().position(|held| held.claim == claim)?;
        match fate {
            Fate::Done => Some(self.list.swap_remove(place)),
            Fate::Running => {
                let held = self.list.get_mut(place)?;
                held.until = Instant::now() + self.grace;
                None
            }
        }
    }

    /// Returns the claims that are due.
    pub fn claims(&mut self) -> Vec<Claim> {
        let now = Instant::now();
        let due = self.list.iter_mut().filter(|held| held.next <= now);
        let claim = |held: &mut Held| {
            held.next = now + self.interval;
            Claim {
                claim: held.claim.clone(),
                queue: held.message.source.url.queue.clone(),
                id: held.message.delivery.message_id.clone(),
                digest: hex(&held.message.digest()),
                reply_to: String::new(),
            }
        };
        due.map(claim).collect()
    }

    /// Returns the messages that have waited long enough.
    pub fn due(&mut self) -> Vec<Held> {
        let now = Instant::now();
        self.list.extract_if(.., |held| held.until <= now).collect()
    }

    /// Forgets all: the broker has them.
    pub fn clear(&mut self) {
        self.list.clear();
    }

    /// Returns when something is due.
    pub fn wake(&self) -> Option<Instant> {
        self.list.iter().map(|held| held.until.min(held.next)).min()
    }
}
