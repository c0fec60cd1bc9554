//! What becomes of offers, for their submitters.

use std::collections::HashMap;

use tokio::sync::watch;

use crate::model::unit::{End, Outcome};

/// What has become of an offer, for its submitter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Offered {
    /// The node has not answered.
    Waits,
    /// The node has accepted the work.
    Accepted,
    /// It was refused for this reason.
    Refused(String),
}

impl Offered {
    /// Returns what a submitter hears when a unit ends with this `outcome`.
    pub fn at_end(outcome: &Outcome) -> Self {
        match (&outcome.end, outcome.stopped) {
            (End::NotStarted(cause), None) => Self::Refused(cause.clone()),
            _ => Self::Accepted,
        }
    }
}

/// Tells submitters what becomes of their offers.
#[derive(Debug, Default)]
pub struct Offers {
    waiting: HashMap<String, watch::Sender<Offered>>,
    /// Refusals of units whose end is not on disk yet.
    refused: HashMap<String, String>,
}

impl Offers {
    /// Returns what tells a submitter what becomes of the offer of `unit`.
    pub fn watch(&mut self, unit: &str) -> watch::Receiver<Offered> {
        if let Some(cause) = self.refused.get(unit) {
            return watch::channel(Offered::Refused(cause.clone())).1;
        }
        self.waiting.retain(|_, sender| !sender.is_closed());
        let waits = || watch::channel(Offered::Waits).0;
        let sender = self.waiting.entry(unit.to_owned());
        sender.or_insert_with(waits).subscribe()
    }

    /// Returns whether `unit` was refused, and its end is not on disk yet.
    pub fn is_refused(&self, unit: &str) -> bool {
        self.refused.contains_key(unit)
    }

    /// Notes that the end of `unit` is on disk.
    pub fn settled(&mut self, unit: &str) {
        self.refused.remove(unit);
    }

    /// Tells the submitters of `unit`.
    pub fn tell(&mut self, unit: &str, offered: Offered) {
        if let Offered::Refused(cause) = &offered {
            self.refused.insert(unit.to_owned(), cause.clone());
        }
        if let Some(sender) = self.waiting.remove(unit) {
            // One that has gone needs no answer.
            let _ = sender.send(offered);
        }
    }
}
