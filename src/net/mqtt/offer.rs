//! The offer of a broker in its CONNACK (MQTT 5.0, section 3.2.2.3), and what it lacks for the
//! promises of Tael.

use std::time::Duration;

use crate::model::duration;
use crate::model::message::Qos;
use crate::model::topic::Filter;

/// Offer of a broker; the defaults are those of the standard.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools)] // each is a property of its own on the wire
pub struct Offer {
    /// Whether it still had our session.
    pub session_present: bool,
    /// Time that it keeps the session, if it differs from our request.
    pub session_expiry: Option<Duration>,
    /// Maximum number of unacknowledged publishes that it accepts.
    pub receive_maximum: u16,
    /// Highest QoS that it accepts.
    pub maximum_qos: Qos,
    /// Whether it retains messages.
    pub retain: bool,
    /// Maximum size of a packet that it accepts, bytes.
    pub maximum_packet: u32,
    /// Client identifier that it gave us.
    pub assigned_id: Option<String>,
    /// Maximum number of topic aliases that it accepts; we use none.
    pub alias_maximum: u16,
    /// Whether filters may have wildcards.
    pub wildcards: bool,
    /// Whether subscriptions may have identifiers.
    pub subscription_ids: bool,
    /// Whether filters may be shared.
    pub shared: bool,
    /// Keep-alive that it requires instead of ours; zero for none.
    pub keep_alive: Option<Duration>,
    /// Another server that it names.
    pub server_reference: Option<String>,
}

impl Default for Offer {
    fn default() -> Self {
        Self {
            session_present: false,
            session_expiry: None,
            receive_maximum: u16::MAX,
            maximum_qos: Qos::ExactlyOnce,
            retain: true,
            maximum_packet: u32::MAX,
            assigned_id: None,
            alias_maximum: 0,
            wildcards: true,
            subscription_ids: true,
            shared: true,
            keep_alive: None,
            server_reference: None,
        }
    }
}

impl Offer {
    /// Returns whether the broker acknowledges messages: it takes more than QoS 0.
    #[must_use]
    pub fn acknowledges(&self) -> bool {
        self.maximum_qos > Qos::AtMostOnce
    }

    /// Returns the shortfalls, one clause each, for a session of `session_expiry` with deliveries
    /// at `qos` under the identifier `client_id`.
    #[must_use]
    pub fn shortfalls(&self, session_expiry: Duration, qos: Qos, client_id: &str) -> Vec<String> {
        let mut list = Vec::new();
        if let Some(kept) = self.session_expiry.filter(|kept| *kept < session_expiry) {
            list.push(format!(
                "it keeps the session for {}, not for {}: messages are lost when this client is away \
                 for longer",
                duration::text(kept),
                duration::text(session_expiry)
            ));
        }
        if let Some(id) = self.assigned_id.as_ref().filter(|id| *id != client_id) {
            list.push(format!(
                "it calls this client '{id}', not '{client_id}': the session is not found again"
            ));
        }
        if self.maximum_qos == Qos::AtMostOnce && qos > Qos::AtMostOnce {
            list.push("it takes QoS 0 only: messages may be lost".to_owned());
        }
        if !self.retain {
            list.push(
                "it keeps no retained messages: presence, last ends and last beats are not found \
                 later"
                    .to_owned(),
            );
        }
        list
    }

    /// Returns why the broker would end the connection because of `filter`, if it would.
    #[must_use]
    pub fn objection(&self, filter: &Filter) -> Option<&'static str> {
        let shared = filter.as_str().starts_with("$share/");
        if shared && !self.shared {
            Some("the broker takes no shared subscriptions")
        } else if !self.wildcards && filter.as_str().contains(['+', '#']) {
            Some("the broker takes no wildcards in filters")
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WEEK: Duration = Duration::from_secs(7 * 24 * 3600);

    #[test]
    fn a_broker_that_offers_all_falls_short_of_nothing() {
        let more = Offer {
            session_expiry: Some(WEEK * 2),
            assigned_id: Some("c".into()),
            maximum_qos: Qos::AtLeastOnce,
            ..Offer::default()
        };
        for offer in [Offer::default(), more] {
            let none: [String; 0] = [];
            assert_eq!(offer.shortfalls(WEEK, Qos::AtLeastOnce, "c"), none);
        }
    }

    #[test]
    fn each_shortfall_is_a_clause() {
        let offer = Offer {
            session_expiry: Some(Duration::from_secs(60)),
            assigned_id: Some("other".into()),
            maximum_qos: Qos::AtMostOnce,
            retain: false,
            ..Offer::default()
        };
        let list = offer.shortfalls(WEEK, Qos::AtLeastOnce, "c");
        for (clause, word) in list.iter().zip(["1m", "'other'", "QoS 0", "retained"]) {
            assert!(clause.contains(word), "{clause}");
        }
        assert_eq!(list.len(), 4);
        // A client that needs no more than the offer loses nothing.
        let list = offer.shortfalls(Duration::ZERO, Qos::AtMostOnce, "other");
        assert_eq!(list.len(), 1);
    }

    #[test]
    fn filters_that_would_cost_the_connection() {
        let filter = |text: &str| Filter::new(text.to_owned()).expect("filter");
        let offer = Offer {
            wildcards: false,
            shared: false,
            ..Offer::default()
        };
        assert_eq!(offer.objection(&filter("a/b")), None);
        assert!(offer.objection(&filter("a/+")).is_some());
        assert!(offer.objection(&filter("$share/g/a")).is_some());
        assert_eq!(Offer::default().objection(&filter("$share/g/a/#")), None);
    }
}
