//! The event that a message of ours follows from, as the user properties of that message tell it.

use crate::model::event;
use crate::model::message::{Delivery, property};
use crate::model::unit::Unit;

/// The event that a message follows from. The receiver of that message goes on with the count.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cause<'a> {
    /// Id of the event.
    pub event: &'a str,
    /// Number of pipelines that it has passed.
    pub hops: u32,
    /// W3C trace context of the event, well-formed.
    pub traceparent: Option<&'a str>,
}

impl<'a> Cause<'a> {
    /// Returns the cause of what is said about `unit`.
    #[must_use]
    pub fn of(unit: &'a Unit) -> Self {
        Self {
            event: &unit.event,
            hops: unit.hops,
            traceparent: unit.traceparent.as_deref(),
        }
    }

    /// Returns the cause of what is said about a message, which is event `id`.
    #[must_use]
    pub fn of_message(delivery: &'a Delivery, id: &'a str) -> Self {
        let trace = delivery.properties.user(property::TRACEPARENT);
        Self {
            event: id,
            hops: event::hops(delivery),
            traceparent: trace.filter(|trace| event::is_traceparent(trace)),
        }
    }

    /// Returns what continues the count and the trace of the event.
    #[must_use]
    pub fn trail(&self) -> Vec<(String, String)> {
        let hops = self.hops.saturating_add(1).to_string();
        let mut trail = vec![(property::HOPS.to_owned(), hops)];
        let trace = self.traceparent.map(str::to_owned);
        trail.extend(trace.map(|trace| (property::TRACEPARENT.to_owned(), trace)));
        trail
    }

    /// Returns the user properties of a message with an `id` of its own, which `who` on `host` publishes.
    #[must_use]
    pub fn properties(&self, id: String, (who, host): (&str, &str)) -> Vec<(String, String)> {
        let mut user = vec![
            (property::ID.to_owned(), id),
            (property::CAUSE.to_owned(), self.event.to_owned()),
            (property::WHO.to_owned(), who.to_owned()),
            (property::HOST.to_owned(), host.to_owned()),
        ];
        user.extend(self.trail());
        user
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_goes_on_and_does_not_overflow() {
        for (hops, next) in [(0, "1"), (u32::MAX, "4294967295")] {
            let cause = Cause {
                hops,
                ..Cause::default()
            };
            assert_eq!(
                cause.trail(),
                [(property::HOPS.to_owned(), next.to_owned())]
            );
        }
        let cause = Cause {
            event: "e",
            hops: 4,
            traceparent: Some("t"),
        };
        let user = cause.properties("1".into(), ("w", "h"));
        let names: Vec<&str> = user.iter().map(|(name, _)| name.as_str()).collect();
        let wanted = "tael-id tael-cause tael-who tael-host tael-hops traceparent";
        assert_eq!(names.join(" "), wanted);
    }
}
