//! The configuration of a pipeline, and its state folder.

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

/// Time that the broker keeps messages while we are away.
pub const SESSION_EXPIRY: Duration = Duration::from_secs(7 * 24 * 3600);

/// Maximum time that the lock of a killed client may outlive it. A process that it was about to
/// start has a copy until it executes its program.
const LOCK_PATIENCE: Duration = Duration::from_millis(500);

/// Interval between two attempts.
const LOCK_LOOK: Duration = Duration::from_millis(20);

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
    /// Its triggers, at least one, of different names.
    pub triggers: Triggers,
    /// Maximum size of a payload, bytes.
    pub max_payload: usize,
    /// Bytes kept of each output stream of a run; 0 keeps all.
    pub max_output: u64,
    /// Time to remember ended units and events.
    pub keep: Duration,
    /// Maximum number of ended units to remember.
    pub keep_units: u64,
    /// Whether stopping the client cancels its runs.
    pub stop_units: bool,
    /// File for metrics.
    pub metrics: Option<PathBuf>,
    /// Broker, and our credentials.
    pub broker: BrokerOptions,
    /// Whether the operator has chosen the client identifier.
    pub chosen_id: bool,
}

/// Creates the missing folders of a pipeline.
///
/// # Errors
/// When one cannot be created (73).
pub(crate) fn make_folders(pipeline: &Path) -> Result<()> {
    create_private_dir(&pipeline.join("units"))?;
    create_private_dir(&pipeline.join(RUNNERS))
}

/// The state folder of a pipeline, locked by this process.
#[derive(Debug)]
pub struct Home {
    pub(crate) path: PathBuf,
    _lock: Lock,
}

impl Home {
    /// Creates and locks the folder of pipeline `who` below `state`. The inner error names the
    /// holder, if a client of that name runs already.
    ///
    /// # Errors
    /// When it cannot be created, or other users can change its content (73).
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
                // The signature only helps people, and a full disk must not prevent the start.
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
