//! Observers of a client.

use std::path::PathBuf;

use tokio::time::Instant;
use tracing::info;

use crate::engine::observe::health::{Health, Signs};
use crate::engine::observe::metrics::Metrics;
use crate::engine::observe::output_view::OutputView;
use crate::engine::observe::snapshot::Snapshot;
use crate::engine::pipeline::Pipeline;
use crate::engine::work::Ended;
use crate::error::Result;
use crate::model::unit::{Outcome, Unit};
use crate::os::notify::Notify;
use crate::store::ledger::Reader;

/// The service manager, the metrics file, and a person at a terminal.
#[derive(Debug)]
pub struct Observer {
    /// The service manager.
    pub health: Health,
    metrics: Option<Metrics>,
    view: Option<OutputView>,
}

impl Observer {
    /// Returns an observer for a service manager and a metrics file, if there are any. The ledger is
    /// read for the latter.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn open(notify: Notify, metrics: Option<PathBuf>, reader: &Reader) -> Result<Self> {
        let metrics = metrics.map(|path| Metrics::open(path, reader));
        Ok(Self {
            health: Health::new(notify),
            metrics: metrics.transpose()?,
            view: OutputView::open(),
        })
    }

    /// Returns whether there is an observer.
    pub fn looks(&self) -> bool {
        self.health.is_heard() || self.metrics.is_some()
    }

    /// Returns when an observer has work without an event.
    pub fn wake(&self) -> Option<Instant> {
        let metrics = self.metrics.as_ref().map(Metrics::wake);
        [self.health.wake(), metrics].into_iter().flatten().min()
    }

    /// Logs the start of a run.
    pub fn started(&mut self, unit: &Unit, pipeline: &Pipeline) {
        match &mut self.view {
            Some(view) => view.started(unit, pipeline.dir(&unit.id)),
            None => info!(
                TAEL_UNIT = unit.id,
                TAEL_EVENT = unit.event,
                TAEL_TOPIC = unit.topic,
                "started"
            ),
        }
    }

    /// Logs the end of a run.
    pub fn ended(&self, ended: &Ended, pipeline: &Pipeline) {
        let dir = || pipeline.dir(&ended.unit.id);
        match &self.view {
            Some(view) => view.ended(ended, dir()),
            None => ended.log(|| Some(dir())),
        }
    }

    /// Counts a run of `trigger` that has ended at `at`, milliseconds since 1970.
    pub fn count(&mut self, trigger: &str, outcome: &Outcome, at: i64) {
        if let Some(metrics) = &mut self.metrics {
            metrics.count(trigger, outcome, at);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::after::After;
    use crate::store::ledger::{Ledger, Openable};

    #[test]
    fn only_a_metrics_file_wakes_an_idle_client() {
        let dir = tempfile::tempdir().expect("tempdir");
        let (_writer, reader) = Openable::find(dir.path())
            .and_then(Ledger::<After>::open)
            .expect("ledger");
        let wake = |metrics: Option<PathBuf>| {
            let observer = Observer::open(Notify::from_environment(), metrics, &reader);
            observer.expect("observer").wake()
        };
        assert_eq!(wake(None), None);
        assert!(wake(Some("/nowhere".into())).is_some());
    }
}
