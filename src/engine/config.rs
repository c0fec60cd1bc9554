//! The configuration of a pipeline.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::model::event::Refusal;
use crate::model::follow::{Followed, follow};
use crate::model::meaning::Rules;
use crate::model::policy::Policy;
use crate::model::signature::{Keys, Signer};
use crate::model::spec::Spec;
use crate::model::topic::{Filter, PipelineTopics};
use crate::model::triggers::Triggers;
use crate::model::unit::Unit;
use crate::model::work::WorkTypes;
use crate::net::options::{BrokerOptions, QueueAccess};

/// Maximum number of deliveries that the broker may have in flight, unacknowledged (MQTT 5.0,
/// section 3.1.2.11.3): as many as may wait for the ledger. A broker drops messages when more wait
/// for a client than its own limits allow (mosquitto: `max_queued_messages`, 1,000), and those
/// in flight do not count there. What they take in memory is bounded by bytes.
pub const RECEIVE_MAXIMUM: u16 = 4096;

/// Time that the broker keeps messages while we are away.
pub const SESSION_EXPIRY: Duration = Duration::from_secs(7 * 24 * 3600);

/// Configuration of a pipeline.
#[derive(Debug, Clone)]
pub struct Config {
    /// Its name.
    pub who: String,
    /// The root of its topics.
    pub root: String,
    /// This host.
    pub host: String,
    /// Topics to which answers may go.
    pub reply_to: Vec<Filter>,
    /// Topics to which the output of runs may go, for those who ask.
    pub answers_to: Vec<Filter>,
    /// Its triggers, of different names. Without work types there is at least one.
    pub triggers: Triggers,
    /// Its work types, of different names; the lane of none is that of a trigger.
    pub work: WorkTypes,
    /// Keys that sign work for it.
    pub verify: Keys,
    /// Key that confirms ends of work of other nodes.
    pub signer: Option<Arc<Signer>>,
    /// Maximum size of a payload, bytes.
    pub max_payload: usize,
    /// Bytes kept of each output stream of a run; 0 keeps all.
    pub max_output: u64,
    /// Time to remember ended units and events.
    pub keep: Duration,
    /// Maximum number of ended units to remember.
    pub keep_units: u64,
    /// Maximum size of its state folder, bytes; 0 is no limit.
    pub max_state: u64,
    /// Whether stopping the client cancels its runs.
    pub stop_units: bool,
    /// Path of a second control socket, and its mode.
    pub control_socket: Option<(PathBuf, u32)>,
    /// Whether it is there only to submit work to other nodes.
    pub submit_only: bool,
    /// Version of Receptor that the control socket says it has.
    pub receptor_version: String,
    /// File for metrics.
    pub metrics: Option<PathBuf>,
    /// Broker, and our credentials.
    pub broker: BrokerOptions,
    /// How to log in at the brokers of its queues.
    pub queues: QueueAccess,
    /// Whether the operator has chosen the client identifier.
    pub chosen_id: bool,
}

impl Config {
    /// Returns what decisions about messages need; `topics` are those of the pipeline.
    #[must_use]
    pub fn rules<'a>(&'a self, topics: &'a PipelineTopics) -> Rules<'a> {
        Rules {
            who: &self.who,
            topics,
            triggers: &self.triggers,
            max_payload: self.max_payload,
        }
    }

    /// Returns the spec by which a unit that carries `own` runs: that of its trigger or work type, as
    /// the configuration is now. If that is gone, it is its own.
    #[must_use]
    pub fn spec_for<'a>(&'a self, own: &'a Arc<Spec>) -> &'a Arc<Spec> {
        match self.work.of_lane(&own.lane) {
            Some(kind) => &kind.spec,
            None => self.triggers.spec_for(own),
        }
    }

    /// Makes `unit`, which has its payload, run as the configuration says now; see [`follow`].
    ///
    /// # Errors
    /// When the event lacks what its trigger requires.
    pub fn follow(&self, unit: &mut Unit) -> Result<Followed, Refusal> {
        match self.triggers.named(unit.lane()) {
            Some(trigger) if unit.work.is_none() => follow(trigger, unit),
            _ => {
                unit.spec = Arc::clone(self.spec_for(&unit.spec));
                Ok(Followed::AsAccepted)
            }
        }
    }

    /// Returns the lanes of its triggers and work types, and their policies.
    pub fn lanes(&self) -> impl Iterator<Item = (&str, &Policy)> {
        let triggers = self.triggers.iter().map(|t| (t.name.as_str(), &t.policy));
        let work = self.work.iter().map(|w| (w.spec.lane.as_str(), &w.policy));
        triggers.chain(work)
    }
}
