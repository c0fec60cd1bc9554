//! What follows once a change is on disk.

use std::sync::Arc;

use tokio::time::Instant;
use tracing::{debug, info, warn};

use crate::engine::client::{Pipeline, Then};
use crate::engine::intake::judge::Admission;
use crate::engine::report::reply;
use crate::os::hooks;
use crate::os::logging::SENDERS;
use crate::store::ledger::{Acceptance, Committed, Done, Part};

impl Pipeline {
    pub(crate) fn on_committed(&mut self, committed: Committed<Then>) {
        self.uncommitted -= 1;
        match (committed.then, committed.done) {
            (
                Then::Accepted {
                    admission,
                    words: _,
                    ack,
                    reply,
                    bytes,
                },
                Done::Accepted { parts, queued },
            ) => {
                self.uncommitted_bytes -= bytes;
                self.redelivery.accepted();
                self.names.arrived(&admission.key);
                hooks::failpoint("commit.after");
                if let Some(ack) = ack {
                    self.session.acknowledge(&ack);
                    self.pressure.served(Instant::now());
                }
                hooks::failpoint("ack.after");
                self.outbox.extend(queued);
                if let Some(reply) = reply
                    && let Some(answer) = reply::accepted(&admission.parts, &parts)
                {
                    self.publish(reply.message(answer));
                }
                self.on_accepted(*admission, &parts);
            }
            (Then::Start(unit, _), Done::Changed { applied: true, .. }) => {
                self.dispatch(Arc::unwrap_or_clone(unit), None);
            }
            (Then::Start(unit, _), Done::Changed { .. } | Done::Illegal { .. }) => {
                self.runners.dropped(&unit.id);
                self.queue.remove(unit.lane(), &unit.id);
            }
            (Then::Settled { retry, last }, Done::Changed { applied, queued }) => {
                hooks::failpoint("settle.after");
                self.outbox.extend(queued);
                if applied {
                    self.last.set(*last);
                }
                if let (Some(retry), true) = (retry, applied) {
                    self.wait(&retry.spec, &retry.id, retry.due);
                }
            }
            (Then::Nothing, Done::Changed { queued, .. }) => self.outbox.extend(queued),
            (Then::Nothing, Done::Pruned(pruned)) => self.on_pruned(&pruned),
            (then, done) => debug!("unexpected: {then:?} brought {done:?}"),
        }
    }

    fn on_accepted(&mut self, admission: Admission, became: &[Acceptance]) {
        let (event, topic) = (admission.key.id, admission.topic);
        for (part, became) in admission.parts.into_iter().zip(became) {
            let fresh = *became == Acceptance::Fresh;
            if let Part::Run {
                unit, start: false, ..
            } = &part
                && unit.due == 0
            {
                self.queue.came(unit.lane());
            }
            match part {
                Part::Run { unit, start, .. } if !fresh => {
                    self.counts.duplicates += 1;
                    info!(target: SENDERS,
                        TAEL_EVENT = event,
                        TAEL_TOPIC = topic,
                        "event came again; not run"
                    );
                    if start {
                        self.runners.dropped(&unit.id);
                        self.queue.remove(unit.lane(), &unit.id);
                    }
                }
                Part::Run { unit, start, .. } => {
                    self.counts.accepted += 1;
                    debug!(
                        TAEL_EVENT = event,
                        TAEL_TOPIC = topic,
                        TAEL_UNIT = unit.id,
                        "accepted"
                    );
                    if start {
                        self.dispatch(Arc::unwrap_or_clone(unit), None);
                    } else if unit.due > 0 {
                        self.wait_in_pace(unit.lane(), &unit.id, unit.due);
                    } else {
                        self.arrive(&unit);
                    }
                }
                Part::Refuse { .. } if !fresh => {
                    self.counts.duplicates += 1;
                    debug!(
                        TAEL_EVENT = event,
                        TAEL_TOPIC = topic,
                        "refused event came again"
                    );
                }
                Part::Refuse { refused, .. } => {
                    self.counts.refused += 1;
                    self.one_more_to_keep();
                    warn!(target: SENDERS,
                        TAEL_EVENT = event,
                        TAEL_TOPIC = topic,
                        "event refused: {}",
                        refused.detail
                    );
                }
            }
        }
    }
}
