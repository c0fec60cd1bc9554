//! How clients on several hosts agree on a message of a queue that the broker delivers again.
//!
//! The client that gets it claims it. One that still runs it, or has run it, says so. Claims and answers
//! are JSON, in messages of the broker of the queue.

use serde::{Deserialize, Serialize};

use crate::model::variables::from_hex;

/// Name of the exchange that all claims go through.
pub const EXCHANGE: &str = "tael.claims";

/// A claim of a message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// Identifies the claim. It is published again with the same number.
    pub claim: String,
    /// Name of the queue.
    pub queue: String,
    /// `message_id` of the message, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// SHA-256 of queue, sender and body, in hexadecimal digits.
    pub digest: String,
    /// Queue for the answers.
    pub reply_to: String,
}

impl Claim {
    /// Returns the digest; `None` if it is none.
    #[must_use]
    pub fn digest(&self) -> Option<[u8; 32]> {
        from_hex(&self.digest)?.try_into().ok()
    }
}

/// What a client knows of a claimed message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fate {
    /// Its unit waits or runs.
    Running,
    /// Its unit has ended, or it was refused.
    Done,
}

/// Answer to a claim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Identifies the claim.
    pub claim: String,
    /// What became of the message.
    pub fate: Fate,
    /// The host that says so, for people.
    pub host: String,
}
