//! What is said to the node of a unit.

use tokio::time::Instant;

use crate::engine::work::delegates::following::{Following, Taken};
use crate::engine::work::delegates::offer::Offer;
use crate::model::remote::assembly::Assembly;
use crate::model::remote::wire::Request;

/// Correlation Data of requests, which their answers repeat: requests that belong together have the same.
const OFFER: &[u8] = b"offer";
const RESULTS: &[u8] = b"results";
pub const CANCEL: &[u8] = b"cancel";
const RELEASE: &[u8] = b"release";

/// Returns the Correlation Data of a request about a unit. A question about none has its own.
pub const fn mark(request: &Request) -> &'static [u8] {
    match request {
        Request::Submit(_) | Request::Payload { .. } => OFFER,
        Request::Results { .. } | Request::Ack { .. } => RESULTS,
        Request::Cancel(_) => CANCEL,
        Request::Release(_) => RELEASE,
        Request::Status(_) | Request::List { .. } => b"",
    }
}

/// What is said to the node.
#[derive(Debug)]
pub enum Phase {
    /// The work, until the node has accepted it.
    Offering(Offer),
    /// That we want its output and its end.
    Following(Box<Following>),
    /// Nothing: these pieces are being checked, for the second time if so.
    Checking {
        pieces: [Assembly; 2],
        is_second: bool,
    },
    /// That the unit was released.
    Releasing,
}

impl Phase {
    /// Returns whether the node may not have accepted the work.
    pub fn is_offered(&self) -> bool {
        match self {
            Self::Following(following) => !matches!(following.offered, Taken::Yes),
            phase => matches!(phase, Self::Offering(_)),
        }
    }

    /// Notes that no client has got the offer that was sent last.
    pub const fn was_not_heard(&mut self) {
        if let Self::Offering(offer) = self {
            offer.sends = offer.sends.saturating_sub(1);
        }
    }

    /// Returns whether no node can have heard of the unit.
    pub const fn is_unheard(&self) -> bool {
        matches!(self, Self::Offering(offer) if offer.sends == 0)
    }

    /// Returns whether the node must not accept the work any more.
    pub fn is_late(&self) -> bool {
        matches!(self, Self::Offering(offer) if offer.is_late())
    }

    /// Returns when the unit ends because its time is up and no node can have heard of it.
    pub fn ends_unheard(&self) -> Option<Instant> {
        match self {
            Self::Offering(offer) => offer.ends_unheard(),
            _ => None,
        }
    }

    /// Returns whether an answer with this `mark` answers a request of this phase, as far as its node says.
    pub fn is_asked(&self, mark: Option<&[u8]>) -> bool {
        mark.is_none_or(|mark| mark == self.mark())
    }

    /// Returns the Correlation Data of its requests.
    const fn mark(&self) -> &'static [u8] {
        match self {
            Self::Offering(_) => OFFER,
            Self::Following(_) => RESULTS,
            Self::Releasing => RELEASE,
            Self::Checking { .. } => b"",
        }
    }
}
