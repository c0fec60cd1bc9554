//! What must be said to the node of a unit, and when it is said again.
//!
//! Every request may be lost, and every answer may come twice. So each request is sent again until it
//! is answered, and after every interruption. The node knows by the id of the unit what it has done.

use bytes::Bytes;
use tokio::time::Instant;

use crate::engine::pipeline::Pipeline;
use crate::engine::work::delegates::offer::Message;
use crate::engine::work::delegates::patience::Patience;
use crate::engine::work::delegates::phase::Phase;
use crate::error::Error;
use crate::model::remote::wire::{Request, Target};

/// A wish of a person that the unit ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cancel {
    /// There is none.
    No,
    /// The node must hear of it.
    Wanted,
    /// It was asked.
    Asked,
    /// It knows.
    Known,
}

/// What must be said to the node of a unit.
#[derive(Debug)]
pub struct Outgoing {
    /// Whether a person wants its end.
    pub cancel: Cancel,
    /// Whether the request of the phase must go out.
    asks: bool,
    /// Whether an acknowledgement must go out.
    acks: bool,
    /// When requests without an answer are sent again.
    pub patience: Patience,
}

impl Default for Outgoing {
    fn default() -> Self {
        Self {
            cancel: Cancel::No,
            asks: true,
            acks: false,
            patience: Patience::default(),
        }
    }
}

impl Outgoing {
    /// Makes the request of the phase go out.
    pub const fn ask(&mut self) {
        self.asks = true;
    }

    /// Makes it go out, unless it waits for its answer.
    pub const fn ask_unless_asked(&mut self) {
        self.asks |= !self.patience.is_unanswered();
    }

    /// Makes no request of the phase go out, until it is time to ask again.
    pub const fn ask_nothing(&mut self) {
        self.asks = false;
    }

    /// Makes an acknowledgement go out.
    pub const fn acknowledge(&mut self) {
        self.acks = true;
    }

    /// Makes none go out.
    pub const fn acknowledge_nothing(&mut self) {
        self.acks = false;
    }

    /// Notes that a person wants the end of the unit.
    pub fn want_end(&mut self) {
        if self.cancel == Cancel::No {
            self.cancel = Cancel::Wanted;
        }
    }

    /// Notes that what was sent in this `phase` may be lost.
    pub fn ask_again(&mut self, phase: &mut Phase) {
        self.asks = true;
        self.patience.begin();
        // A node that was killed may have forgotten what it has answered.
        if self.cancel != Cancel::No {
            self.cancel = Cancel::Wanted;
        }
        if let Phase::Offering(offer) = phase {
            offer.is_fresh = true;
        }
    }

    /// Returns whether it is time to send requests without an answer again.
    pub fn is_due(&self, now: Instant) -> bool {
        self.patience.until().is_some_and(|at| at <= now)
    }

    /// Notes an answer to the request of the phase.
    pub fn was_answered(&mut self) {
        self.patience.answered();
        self.rest();
    }

    /// Waits for no answer, if there is none to come.
    pub fn rest(&mut self) {
        if self.cancel != Cancel::Asked {
            self.patience.rest();
        }
    }

    /// Returns what goes out next about `unit` in this `phase`, if anything does. [`Outgoing::sent`] must
    /// follow.
    ///
    /// # Errors
    /// As [`Payload`](super::payload::Payload).
    pub fn next(
        &self,
        pipeline: &Pipeline,
        unit: &str,
        phase: &mut Phase,
    ) -> Result<Option<Message>, Error> {
        let none = |request| Ok(Some((request, Bytes::new())));
        if self.cancel == Cancel::Wanted && !matches!(phase, Phase::Checking { .. }) {
            return none(Request::Cancel(Target::of(unit)));
        }
        match phase {
            Phase::Offering(offer) => offer.next(pipeline, unit, self.asks),
            Phase::Following(following) if self.asks => none(Request::Results {
                unit: unit.to_owned(),
                from: following.at(),
                signature: None,
            }),
            Phase::Following(following) if self.acks => none(Request::Ack {
                unit: unit.to_owned(),
                at: following.at(),
                end: false,
            }),
            Phase::Releasing if self.asks => none(Request::Release(Target::of(unit))),
            Phase::Following(_) | Phase::Checking { .. } | Phase::Releasing => Ok(None),
        }
    }

    /// Notes that this went out in this `phase`.
    pub fn sent(&mut self, (request, body): &Message, phase: &mut Phase) {
        match request {
            Request::Cancel(_) => self.cancel = Cancel::Asked,
            Request::Ack { .. } => {
                self.acks = false;
                return;
            }
            // The answer is awaited from the last piece on.
            Request::Payload { .. } => {
                if let Phase::Offering(offer) = phase {
                    offer.sent += body.len() as u64;
                }
                self.patience.wait();
                return;
            }
            _ => {
                self.asks = false;
                self.patience.asked();
            }
        }
        if let (Request::Submit(_), Phase::Offering(offer)) = (request, phase) {
            offer.sends += 1;
        }
        self.patience.wait_longer();
    }
}
