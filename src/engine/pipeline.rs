//! Facts about the pipeline of a client. Its parts read them, and only a reload changes them.

use std::path::PathBuf;
use std::sync::Arc;

use jiff::Timestamp;
use tokio::time::Instant;

use crate::engine::config::Config;
use crate::model::topic::PipelineTopics;
use crate::model::trigger::Trigger;
use crate::os::process::boot_id;
use crate::store::home::Home;
use crate::store::ledger::Reader;
use crate::store::room::Room;
use crate::store::unit_dir::UnitDir;

/// A pipeline, for all parts of its client.
#[derive(Debug)]
pub struct Pipeline {
    /// Its configuration.
    pub config: Config,
    /// Its folder.
    pub home: Home,
    /// Room in it.
    pub room: Arc<Room>,
    /// Its own topics.
    pub topics: PipelineTopics,
    /// When this client started.
    pub since: Timestamp,
    /// Reads the ledger beside the thread that writes it.
    pub reader: Reader,
    /// Id of this boot of the host.
    pub boot: String,
    /// Start of the clock of [`Pipeline::ticks`].
    begin: Instant,
}

/// Name of the file that marks a pipeline as paused, in its folder.
pub const PAUSED: &str = "paused";

/// Returns the time of the host, milliseconds since 1970.
pub fn now_ms() -> i64 {
    Timestamp::now().as_millisecond()
}

impl Pipeline {
    /// Returns what is known of the pipeline in the folder `home`, whose ledger `reader` reads, for a
    /// client that has started at `since`.
    pub fn new(config: Config, home: Home, reader: Reader, since: Timestamp) -> Self {
        Self {
            topics: PipelineTopics::new(&config.root, &config.who),
            since,
            reader,
            boot: boot_id(),
            begin: Instant::now(),
            room: Room::new(config.max_state),
            config,
            home,
        }
    }

    /// Returns milliseconds on a clock that never goes back, above 0.
    pub fn ticks(&self) -> i64 {
        let elapsed = self.begin.elapsed().as_millis();
        i64::try_from(elapsed).unwrap_or(i64::MAX - 1) + 1
    }

    /// Returns the trigger called `name`.
    pub fn trigger(&self, name: &str) -> Option<&Trigger> {
        self.config.triggers.named(name)
    }

    /// Returns the folder of `unit`.
    pub fn dir(&self, unit: &str) -> UnitDir {
        UnitDir::new(&self.home.path, unit)
    }

    /// Returns the file that marks the pipeline as paused.
    pub fn paused_mark(&self) -> PathBuf {
        self.home.path.join(PAUSED)
    }
}
