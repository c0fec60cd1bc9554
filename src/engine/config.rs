//! What an operator wants of a pipeline, and the folder that it lives in.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::error::Result;
use crate::model::text::printable;
use crate::model::topic::Filter;
use crate::model::triggers::Triggers;
use crate::net::options::BrokerOptions;
use crate::os::host::hostname;
use crate::os::lock::Lock;
use crate::store::private::{self, create_private_dir};
use crate::store::unit_dir::RUNNERS;

/// Maximum number of deliveries that the broker may have in flight, unacknowledged (MQTT 5.0,
/// section 3.1.2.11.3): as many as may wait for the ledger. A broker drops messages when more wait
/// for a client than its own limits allow (mosquitto: `max_queued_messages`, 1,000), and those
/// in flight do not count there. What they take in memory is bounded by bytes.
pub const RECEIVE_MAXIMUM: u16 = 4096;

/// How long the broker keeps what is sent while we are away.
pub const SESSION_EXPIRY: Duration = Duration::from_secs(7 * 24 * 3600);

/// How long the lock of a client that has just been killed may outlive it: a process that it
/// was about to start has a copy until it executes its program.
const LOCK_PATIENCE: Duration = Duration::from_millis(500);

/// How often it is tried meanwhile.
const LOCK_LOOK: Duration = Duration::from_millis(20);

/// A pipeline, as its operator wants it.
#[derive(Debug, Clone)]
pub struct Config {
    /// Its name.
    pub who: String,
    /// The root of its topics.
    pub root: String,
    /// This host.
    pub host: String,
    /// Where answers to requests may go.
    pub reply_to: Vec<Filter>,
    /// Its triggers, at least one, of different names.
    pub triggers: Triggers,
    /// The largest payload of an event, bytes.
    pub max_payload: usize,
    /// Bytes kept of each output stream of a run; 0 keeps all.
    pub max_output: u64,
    /// How long ended units and events are remembered.
    pub keep: Duration,
    /// How many units are remembered at most.
    pub keep_units: u64,
    /// Whether stopping the client cancels its runs.
    pub stop_units: bool,
    /// Where figures for a monitoring system are written.
    pub metrics: Option<PathBuf>,
    /// How to reach the broker.
    pub broker: BrokerOptions,
    /// Whether the operator has chosen the client identifier.
    pub chosen_id: bool,
}

/// Makes the folders of a pipeline that are not there.
///
/// # Errors
/// When one cannot be created (73).
pub(crate) fn make_folders(pipeline: &Path) -> Result<()> {
    create_private_dir(&pipeline.join("units"))?;
    create_private_dir(&pipeline.join(RUNNERS))
}

/// A pipeline's folder, held by this process alone.
#[derive(Debug)]
pub struct Home {
    pub(crate) path: PathBuf,
    _lock: Lock,
}

impl Home {
    /// Creates and locks the folder of pipeline `who` below `state`; the error within says who
    /// holds it, if a client of that name runs already.
    ///
    /// # Errors
    /// When it cannot be created, or others can change what is in it (73).
    pub fn acquire(state: &Path, who: &str) -> Result<Result<Self, String>> {
        let path = state.join(who);
        create_private_dir(state)?;
        private::check_root(state)?;
        create_private_dir(&path)?;
        private::check(&path)?;
        private::check_entries(&path)?;
        make_folders(&path)?;
        let deadline = Instant::now() + LOCK_PATIENCE;
        loop {
            let file = path.join("lock");
            if let Some(lock) = Lock::try_acquire(&file)? {
                // It only helps people, and a full disk is no reason not to start.
                let _ = lock.sign(&format!("pid {} on {}\n", std::process::id(), hostname()));
                return Ok(Ok(Self { path, _lock: lock }));
            }
            if Instant::now() >= deadline {
                let holder = Lock::signature(&file).map(|holder| printable(&holder, 200));
                return Ok(Err(holder.unwrap_or_else(|| "an unknown process".into())));
            }
            std::thread::sleep(LOCK_LOOK);
        }
    }
}
