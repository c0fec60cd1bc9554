//! Numbers about the gateway, in the text format of Prometheus (version 0.0.4).

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::net::http::Counts;

/// Media type of the text.
pub const MEDIA: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Counters since the start.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Answers, by their status.
    answers: Mutex<BTreeMap<u16, u64>>,
    /// Answers of routes, by their names and statuses.
    routes: Mutex<BTreeMap<(String, u16), u64>>,
    /// Messages that the broker has confirmed.
    pub confirmed: AtomicU64,
    /// Second since 1970 after which our certificate is not valid; 0 without one.
    not_after: AtomicU64,
    /// Messages that were not confirmed: the broker was away, late, or has refused them.
    pub unconfirmed: AtomicU64,
}

impl Metrics {
    /// Counts an answer.
    pub fn answered(&self, status: u16) {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        *answers.entry(status).or_default() += 1;
    }

    /// Counts an answer of a route, which is counted as an answer as well.
    pub fn routed(&self, route: &str, status: u16) {
        let mut routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        *routes.entry((route.to_owned(), status)).or_default() += 1;
    }

    /// Notes when our certificate ends, in seconds since 1970.
    pub fn certificate(&self, not_after: Option<i64>) {
        let end = not_after.and_then(|end| u64::try_from(end).ok());
        self.not_after.store(end.unwrap_or(0), Ordering::Relaxed);
    }

    /// Returns the text.
    #[must_use]
    pub fn text(&self, connections: &Counts, is_online: bool) -> String {
        let mut text = String::new();
        let mut one = |name: &str, kind: &str, help: &str, value: u64| {
            let _ = write!(
                text,
                "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n"
            );
        };
        let of = |number: &AtomicU64| number.load(Ordering::Relaxed);
        one(
            "tael_gateway_broker_connected",
            "gauge",
            "Whether the broker is connected.",
            u64::from(is_online),
        );
        one(
            "tael_gateway_connections",
            "gauge",
            "Open HTTP connections.",
            of(&connections.open),
        );
        one(
            "tael_gateway_long_answers",
            "gauge",
            "Streams and waiting requests.",
            of(&connections.long),
        );
        one(
            "tael_gateway_connections_refused_total",
            "counter",
            "HTTP connections beyond the limit.",
            of(&connections.refused),
        );
        one(
            "tael_gateway_connections_ousted_total",
            "counter",
            "HTTP connections that gave way to those of other callers.",
            of(&connections.ousted),
        );
        one(
            "tael_gateway_confirmed_total",
            "counter",
            "Messages that the broker has confirmed.",
            of(&self.confirmed),
        );
        one(
            "tael_gateway_unconfirmed_total",
            "counter",
            "Messages that the broker has not confirmed.",
            of(&self.unconfirmed),
        );
        let not_after = of(&self.not_after);
        if not_after > 0 {
            one(
                "tael_gateway_certificate_not_after_seconds",
                "gauge",
                "Time after which the certificate of the gateway is not valid, seconds since 1970.",
                not_after,
            );
        }
        let name = "tael_gateway_answers_total";
        let _ = write!(
            text,
            "# HELP {name} Answers, by their status.\n# TYPE {name} counter\n"
        );
        let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        for (status, count) in answers.iter() {
            let _ = writeln!(text, "{name}{{code=\"{status}\"}} {count}");
        }
        let name = "tael_gateway_route_answers_total";
        let _ = write!(
            text,
            "# HELP {name} Answers of routes, by route and status.\n# TYPE {name} counter\n"
        );
        let routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        for ((route, status), count) in routes.iter() {
            let _ = writeln!(
                text,
                "{name}{{route=\"{route}\",code=\"{status}\"}} {count}"
            );
        }
        let name = "tael_gateway_build_info";
        let version = env!("CARGO_PKG_VERSION");
        let _ = write!(
            text,
            "# HELP {name} Version of the gateway.\n# TYPE {name} gauge\n{name}{{version=\"{version}\"}} 1\n"
        );
        text
    }
}
