//! What is said to the node of a unit.

use crate::engine::work::delegates::following::{Following, Taken};
use crate::engine::work::delegates::offer::Offer;
use crate::model::message::Delivery;
use crate::model::remote::assembly::Fit;

/// What is said to the node.
#[derive(Debug)]
pub enum Phase {
    /// The work, until the node has accepted it.
    Offering(Offer),
    /// That we want its output and its end.
    Following(Box<Following>),
    /// Nothing: what came up to these offsets, and fits the end so, is being checked, for the second time
    /// if so.
    Checking {
        at: [u64; 2],
        fits: [Fit; 2],
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
}

impl Phase {
    /// Returns whether `delivery` answers a request of this phase, as far as its node says.
    pub fn is_asked(&self, delivery: &Delivery) -> bool {
        let mark = delivery.properties.correlation_data.as_deref();
        mark.is_none_or(|mark| mark == self.mark())
    }

    /// Returns the Correlation Data of its requests; see [`mark`](super::node::mark).
    const fn mark(&self) -> &'static [u8] {
        match self {
            Self::Offering(_) => b"offer",
            Self::Following(_) => b"results",
            Self::Releasing => b"release",
            Self::Checking { .. } => b"",
        }
    }
}

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
