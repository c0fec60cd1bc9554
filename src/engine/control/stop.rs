//! How a pipeline leaves.

use std::time::Duration;

use tokio::time::{Instant, timeout, timeout_at};
use tracing::{info, warn};

use crate::engine::client::{Pipeline, Then};
use crate::engine::connect;
use crate::error::{Error, Result};
use crate::model::status::Presence;
use crate::net::session::Event;

/// How long the reports that are still to be told may hold up a stop.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

/// How long folders that are being removed may hold up a stop.
const CLEANUP_TIMEOUT: Duration = Duration::from_secs(1);

/// Maximum time for a worker to take what the broker has for it.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(30);

impl Pipeline {
    /// Leaves in good order: units stay with their runners, what is to be told is told within
    /// a bounded time.
    pub(crate) async fn stop(mut self) -> Result<()> {
        info!("stopping; {} units go on", self.live.len());
        let mut deadline = Instant::now() + FLUSH_TIMEOUT;
        let wait_for_units = self.config.stop_units;
        self.health.notify.stopping();
        self.queue.pause(true);
        self.cleanup.leave();
        for op in self.silence.unwritten() {
            self.submit(op, Then::Nothing);
        }
        self.cancels_all = wait_for_units;
        if wait_for_units {
            let grace = self
                .config
                .triggers
                .iter()
                .map(|t| t.spec.limits.grace)
                .max();
            deadline += grace.unwrap_or_default();
            for unit in self.live.keys() {
                self.signal(unit);
            }
        } else {
            self.runners.dismiss();
        }
        let mut presence = Some(connect::presence(
            &self.config,
            &self.topics,
            Presence::Offline,
            self.since,
        ));
        let (mut token, mut farewell) = (None, false);
        // The session of a worker ends with it, and with that what the broker has for it.
        let mut leaving = self.config.triggers.are_shared() && self.is_online();
        if leaving {
            deadline = deadline.max(Instant::now() + LEAVE_TIMEOUT);
            self.session.leave();
        }
        loop {
            self.flush_later();
            let units_done = self.live.is_empty() || !wait_for_units;
            // Without a broker there is nobody to tell, and the ledger keeps it.
            let away = !self.is_online();
            leaving &= !away;
            let told =
                self.uncommitted == 0 && units_done && !leaving && (away || self.outbox.is_empty());
            if told && (away || farewell) {
                break;
            }
            self.flush_outbox()?;
            self.last.flush();
            self.tell_last();
            if told && let Some(message) = presence.take() {
                token = self.publish(message.clone());
                if token.is_none() {
                    presence = Some(message);
                }
            }
            let step = async {
                tokio::select! {
                    committed = self.ledger.committed() => {
                        self.on_committed(committed.map_err(|f| f.0)?);
                    }
                    report = self.runners.next() => self.on_report(report),
                    Some(unit) = self.adopted.1.recv() => self.on_unknown(&unit),
                    Some(removed) = self.cleanup.next() => self.on_removed(removed),
                    event = self.session.next() => match event? {
                        // Unacknowledged, it comes again to the next client.
                        Event::Received(_) if !leaving => {}
                        Event::Left => leaving = false,
                        event => {
                            if let Event::Published(published, _) = &event {
                                farewell |= Some(*published) == token;
                            }
                            self.on_session(event);
                        }
                    },
                }
                Ok::<(), Error>(())
            };
            match timeout_at(deadline, step).await {
                Ok(result) => result?,
                Err(_) => break,
            }
        }
        if leaving {
            warn!("the broker has more for this worker than it could take: that is lost");
        }
        if !self.outbox.is_empty() {
            info!("{} statuses wait for the next start", self.outbox.len());
        }
        self.check_metrics(true);
        // A mark that stays has the next client look for folders that are gone.
        if self.cleanup.is_removing()
            && let Ok(Some(removed)) = timeout(CLEANUP_TIMEOUT, self.cleanup.next()).await
        {
            self.on_removed(removed);
        }
        self.session.close().await;
        // The last one to leave copies the log.
        drop(self.reader);
        if !self.ledger.close().await {
            warn!("the ledger was not closed in time; the next start looks at all of it");
        }
        Ok(())
    }
}
