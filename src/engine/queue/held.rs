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

    /// Returns the claims that are due. If they are so late that this process was stopped meanwhile, the
    /// broker may have given the messages to others, which may run them: they wait again.
    pub fn claims(&mut self) -> Vec<Claim> {
        let now = Instant::now();
        let stopped = self.grace * 2 / 3;
        for held in &mut self.list {
            if now.saturating_duration_since(held.next) >= stopped {
                held.until = now + self.grace;
            }
        }
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

    /// Forgets all. Returns their deliveries.
    pub fn clear(&mut self) -> impl Iterator<Item = Tag> {
        self.list.drain(..).map(|held| held.tag)
    }

    /// Returns when something is due.
    pub fn wake(&self) -> Option<Instant> {
        self.list.iter().map(|held| held.until.min(held.next)).min()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::queue::{QueueSource, QueueUrl, Settle};
    use crate::model::queue_delivery::QueueDelivery;

    const GRACE: Duration = Duration::from_secs(30);
    const INTERVAL: Duration = Duration::from_secs(3);

    fn held() -> HeldMessages {
        let source = QueueSource {
            url: QueueUrl::parse("amqp://h/%2f/q").expect("URL"),
            settle: Settle::Done,
            prefetch: None,
            dead_letter: None,
            declare: None,
        };
        let message = Queued {
            trigger: String::new(),
            source: Arc::new(source),
            delivery: QueueDelivery::default(),
        };
        let tag = Tag {
            connection: 1,
            number: 1,
        };
        let mut held = HeldMessages::new(GRACE, INTERVAL);
        held.add(message, tag);
        held
    }

    /// Lets time pass.
    fn pass(held: &mut HeldMessages, time: Duration) {
        for held in &mut held.list {
            held.until -= time;
            held.next -= time;
        }
    }

    #[test]
    fn a_message_runs_after_a_grace_of_claims() {
        let mut held = held();
        for _ in 0..10 {
            assert_eq!(held.claims().len(), 1);
            assert_eq!(held.due().len(), 0);
            pass(&mut held, INTERVAL);
        }
        assert_eq!(held.due().len(), 1);
    }

    #[test]
    fn a_process_that_was_stopped_claims_again_before_it_runs_a_message() {
        let mut held = held();
        held.claims();
        pass(&mut held, GRACE + INTERVAL);
        assert_eq!(held.claims().len(), 1);
        assert_eq!(held.due().len(), 0);
        for _ in 0..10 {
            pass(&mut held, INTERVAL);
            held.claims();
        }
        assert_eq!(held.due().len(), 1);
    }
}
