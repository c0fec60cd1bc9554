//! What becomes of offers, for their submitters.

use std::collections::HashMap;

use tokio::sync::watch;

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

/// Tells submitters what becomes of their offers.
#[derive(Debug, Default)]
pub struct Offers(HashMap<String, watch::Sender<Offered>>);

impl Offers {
    /// Returns what tells a submitter what becomes of the offer of `unit`.
    pub fn watch(&mut self, unit: &str) -> watch::Receiver<Offered> {
        self.0.retain(|_, sender| !sender.is_closed());
        let waits = || watch::channel(Offered::Waits).0;
        let sender = self.0.entry(unit.to_owned()).or_insert_with(waits);
        sender.subscribe()
    }

    /// Tells the submitters of `unit`.
    pub fn tell(&mut self, unit: &str, offered: Offered) {
        if let Some(sender) = self.0.remove(unit) {
            // One that has gone needs no answer.
            let _ = sender.send(offered);
        }
    }
}
