//! Observers of a client.

use std::path::PathBuf;

use tokio::time::Instant;

use crate::engine::observe::health::{Health, Signs};
use crate::engine::observe::metrics::Metrics;
use crate::engine::observe::snapshot::Snapshot;
use crate::model::unit::Outcome;
use crate::os::notify::Notify;

/// The service manager and the metrics file.
#[derive(Debug)]
pub struct Observer {
    /// The service manager.
    pub health: Health,
    metrics: Option<Metrics>,
}

impl Observer {
    /// Returns an observer for a service manager and a metrics file, if there are any.
    pub fn new(notify: Notify, metrics: Option<PathBuf>) -> Self {
        Self {
            health: Health::new(notify),
            metrics: metrics.map(Metrics::new),
        }
    }

    /// Returns whether there is an observer.
    pub fn looks(&self) -> bool {
        self.health.is_heard() || self.metrics.is_some()
    }

    /// Returns when an observer has work without an event.
    pub fn wake(&self) -> Option<Instant> {
        let metrics = self.metrics.as_ref().and_then(Metrics::wake);
        [self.health.wake(), metrics].into_iter().flatten().min()
    }

    /// Counts a run that has ended.
    pub fn count(&mut self, outcome: &Outcome) {
        if let Some(metrics) = &mut self.metrics {
            metrics.count(outcome);
        }
    }

    /// Reports changes, and that we are alive.
    pub fn show(&mut self, snapshot: &Snapshot<'_>, signs: Signs) {
        self.health.show(snapshot, signs);
        if let Some(metrics) = &mut self.metrics {
            metrics.show(snapshot, false);
        }
    }

    /// Reports the final state of the client.
    pub fn show_last(&mut self, snapshot: &Snapshot<'_>) {
        if let Some(metrics) = &mut self.metrics {
            metrics.show(snapshot, true);
        }
    }
}
