//! The state of a pipeline on disk, opened, before there is a client.

use jiff::Timestamp;
use tokio::task::yield_now;

use crate::engine::after::After;
use crate::engine::commit::Commits;
use crate::engine::config::Config;
use crate::engine::control::retry_socket::RetrySocket;
use crate::engine::control::socket::ControlSocket;
use crate::engine::intake::Intake;
use crate::engine::link::Token;
use crate::engine::observe::Observer;
use crate::engine::observe::event_socket;
use crate::engine::pipeline::Pipeline;
use crate::engine::report::Reports;
use crate::engine::work::recovery::{self, Left};
use crate::error::Result;
use crate::os::notify::Notify;
use crate::os::socket::Served;
use crate::store::aside::sweep;
use crate::store::home::Home;
use crate::store::ledger::Openable;
use crate::store::ledger::submitted::{Debt, debts, wanted_releases};
use crate::store::payload_file;

/// The opened state of a pipeline.
pub struct Opened {
    pub commits: Commits<After>,
    pub pipeline: Pipeline,
    pub reports: Reports<Token>,
    pub intake: Intake<Token>,
    pub observer: Observer,
    /// Tells readers what becomes of messages.
    pub events: Option<Served>,
    pub retries: RetrySocket,
    /// Brings submitted work, and questions about it.
    pub control: ControlSocket,
    /// What an earlier client has left.
    pub left: Vec<Left>,
    /// Units that must be released when they have ended.
    pub wanted: Vec<String>,
    /// Released units whose nodes must hear of that.
    pub debts: Vec<Debt>,
}

impl Opened {
    /// Opens the state of a pipeline. Between two steps, others have their turn.
    ///
    /// # Errors
    /// When it cannot be opened or read.
    pub async fn open(
        config: Config,
        home: Home,
        notify: Notify,
        since: Timestamp,
        found: Openable,
    ) -> Result<Self> {
        yield_now().await;
        let (commits, reader) = Commits::open(found)?;
        yield_now().await;
        let pipeline = Pipeline::new(config, home, reader, since);
        let reports = Reports::open(&pipeline)?;
        yield_now().await;
        let intake = Intake::open(&pipeline)?;
        yield_now().await;
        let events = event_socket::open(&pipeline.home.path, &intake.recent);
        // What another process writes from now on is named here, or found below.
        let retries = RetrySocket::open(&pipeline.home.path);
        yield_now().await;
        let replaced = sweep(&pipeline.home.path, &pipeline.reader)?;
        payload_file::sweep(&pipeline.home.path, &pipeline.reader, replaced)?;
        // The sweep would take the payload of a submission for one that was not accepted.
        let control = ControlSocket::open(&pipeline)?;
        let left = recovery::survey(&pipeline)?;
        let wanted = wanted_releases(&pipeline.reader)?;
        let debts = debts(&pipeline.reader, None)?;
        yield_now().await;
        let metrics = pipeline.config.metrics.clone();
        let observer = Observer::open(notify, metrics, &pipeline.reader)?;
        Ok(Self {
            commits,
            pipeline,
            reports,
            intake,
            observer,
            events,
            retries,
            control,
            left,
            wanted,
            debts,
        })
    }
}
