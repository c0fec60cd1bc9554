//! `tael gateway`: HTTP requests become messages.

mod blocking;
mod budget;
mod hooks;
mod metrics;
mod outgoing;
mod output;
mod page;
mod publisher;
mod queue_publisher;
mod replies;
mod routes;
mod tokens;
mod units;
mod ways;
mod work;
mod workflows;
mod xmlrpc;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

use crate::error::Result;
use crate::model::gateway::rate::Rate;
use crate::model::gateway::topics::Topics;
use crate::model::gateway::work::Kind;
use crate::model::message::Qos;
use crate::net::amqp::AmqpOptions;
use crate::net::http::{Address, Counts, Identity, Listener, Times, Tls, serve};
use crate::net::options::BrokerOptions;
use crate::net::session::{Event, Session, Subscriptions};
use crate::os::notify::Notify;
use crate::os::signals::{self, Stop};
use crate::tools::listener;
use crate::tools::work::Scope;
use budget::Budget;
use hooks::Hooks;
use page::Hub;
use publisher::{Link, Publisher, jobs};
use replies::Replies;
use routes::Gateway;
use units::Units;
use ways::{Queues, Ways};
use work::Submissions;
use workflows::Workflows;
use xmlrpc::Rpc;

pub use hooks::ReadRoutes;
pub use tokens::read as read_tokens;

/// Options of the command.
#[derive(Debug, Clone)]
pub struct Options {
    /// Broker, and our credentials.
    pub broker: BrokerOptions,
    /// Addresses to listen on, one at least.
    pub listen: Vec<Address>,
    /// File of the tokens of callers; `None` if they need none.
    pub token_file: Option<PathBuf>,
    /// Files of our TLS; `None` without it.
    pub tls: Option<Identity>,
    /// Names by which callers without a token may reach us, beside those of the addresses.
    pub names: Vec<String>,
    /// Topics that callers may publish to.
    pub topics: Topics,
    /// Maximum number of requests of a caller in a minute; 0 for no limit.
    pub rate: u32,
    /// Maximum time until the broker confirms a message.
    pub timeout: Duration,
    /// Whether a message without a subscriber is a failure.
    pub need_listener: bool,
    /// Root of the pipelines.
    pub root: String,
    /// Whether there is a page that shows them.
    pub page: bool,
    /// Where the units of this host are.
    pub scope: Scope,
    /// Work that callers may submit.
    pub work: Vec<Kind>,
    /// Whether clients of this host sign work for other nodes.
    pub sign: bool,
    /// Whether callers with a token may end units and control pipelines.
    pub control: bool,
    /// Routes of the configuration file, at the start and at each reload.
    pub routes: ReadRoutes,
    /// Queues that callers may put messages in, and their broker.
    pub queues: Option<(Vec<String>, AmqpOptions)>,
    /// Topic below which events of XML-RPC are published.
    pub events: String,
    /// Folder of the client whose runs XML-RPC reports.
    pub workflows: Option<PathBuf>,
}

impl Options {
    /// Returns an address that others reach, if no caller has to show who it is.
    fn open_to_all(&self) -> Option<&Address> {
        let is_known = self.token_file.is_some()
            || self.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some());
        let mut open = self.listen.iter().filter(|_| !is_known);
        open.find(|address| !address.is_local())
    }
}

/// Maximum time of threads that still read when the gateway ends.
const LAST_READS: Duration = Duration::from_secs(5);

/// Serves until it is stopped.
///
/// # Errors
/// When an address cannot be used (73, 75) or the tokens cannot be read (78). Of the connection to
/// the broker final failures only.
pub fn run(options: &Options) -> Result<ExitCode> {
    let runtime = super::runtime()?;
    let ended = runtime.block_on(gateway(options));
    // A read of a folder that does not answer must not hold up the end.
    runtime.shutdown_timeout(LAST_READS);
    ended.map(|()| ExitCode::SUCCESS)
}

/// Returns the names by which callers reach these listeners.
fn names(options: &Options, listeners: &[Listener]) -> Vec<String> {
    let mut names = vec!["localhost".to_owned()];
    for listener in listeners {
        if let Address::Tcp(address) = listener.address() {
            names.push(address.ip().to_string());
        }
    }
    let given = options.names.iter();
    names.extend(given.map(|name| name.to_ascii_lowercase()));
    names
}

async fn gateway(options: &Options) -> Result<()> {
    let mut stop = Stop::listen(true)?;
    let mut reload = signals::reload()?;
    let notify = Notify::from_environment();
    // Twice within the time that the manager allows (`sd_watchdog_enabled(3)`).
    let mut watchdog = notify.watchdog().map(|limit| (limit / 2, Instant::now()));
    let token_file = options.token_file.as_deref();
    let tokens = token_file.map(tokens::read).transpose()?;
    let tls = options.tls.as_ref().map(Tls::read).transpose()?;
    let (identity, tls) = tls.map(watch::channel).unzip();
    if let Some(open) = options.open_to_all() {
        warn!(
            "listening on {open} without tokens and certificates of clients: all who reach it may publish"
        );
    }
    let mut listeners = Vec::new();
    for address in &options.listen {
        let listener = Listener::open(address).await?;
        info!("listening on {}", listener.address());
        listeners.push(listener);
    }
    let (jobs, mut waiting) = jobs();
    let link = Arc::new(Link::new());
    let connections = Arc::<Counts>::default();
    let (stopping, stopped) = watch::channel(false);
    let metrics = Arc::<metrics::Metrics>::default();
    let hooks = Hooks::new((options.routes.0)()?);
    let queues = options.queues.clone().map(|(allowed, broker)| {
        let (puts, waiting) = mpsc::channel(queue_publisher::MAX_WAITING);
        tokio::spawn(queue_publisher::run(broker, waiting));
        Queues { allowed, puts }
    });
    let control = options.control && options.token_file.is_some();
    let budget = Budget::default();
    let hub = options.page.then(|| {
        let (scope, budget) = (options.scope.clone(), budget.clone());
        Arc::new(Hub::new(
            &options.root,
            Arc::clone(&link),
            scope,
            control,
            budget,
        ))
    });
    let replies = Replies::new(&options.root, &options.broker.client_id, budget.clone());
    let replies = Arc::new(replies);
    let gateway = Arc::new(Gateway {
        tokens: tokens.map(RwLock::new),
        rate: (options.rate > 0).then(|| Mutex::new(Rate::new(options.rate, options.rate))),
        names: names(options, &listeners),
        topics: options.topics.clone(),
        ways: Ways {
            jobs,
            queues,
            limit: options.timeout,
            need_listener: options.need_listener,
            metrics: Arc::clone(&metrics),
            replies: Arc::clone(&replies),
            link: Arc::clone(&link),
            stop: stopped.clone(),
        },
        hooks,
        rpc: Rpc {
            events: options.events.clone(),
            workflows: options.workflows.clone().map(Workflows::new),
        },
        link: Arc::clone(&link),
        metrics,
        connections: Arc::clone(&connections),
        page: hub.clone(),
        units: Units::new(options.scope.clone(), budget.clone(), stopped.clone()),
        budget,
        work: Submissions::new(options.scope.clone(), options.work.clone(), options.sign),
        control: options.control,
    });
    let times = Times::default();
    let server = serve(
        listeners,
        Arc::clone(&gateway),
        times,
        connections,
        tls,
        stopped,
    );
    let mut server = tokio::spawn(server);
    // Without it the gateway still publishes.
    let mut heard = Subscriptions {
        required: Vec::new(),
        optional: replies.filters(),
        qos: Qos::AtLeastOnce,
    };
    if let Some(hub) = &hub {
        heard.optional.extend(hub.filter());
        // Otherwise the broker would keep all messages of the network until the gateway has them.
        heard.qos = Qos::AtMostOnce;
    }
    let mut session = Session::new(listener(&options.broker), heard).lasting();
    let mut publisher = Publisher::default();
    loop {
        let is_stopping = *stopping.borrow();
        let due = hub.as_ref().map(|hub| hub.due());
        tokio::select! {
            biased;
            // The last answers have gone out.
            _ = &mut server => break,
            () = stop.requested(), if !is_stopping => {
                notify.stopping();
                info!("stopping");
                stopping.send_replace(true);
            }
            _ = reload.recv(), if !is_stopping => {
                notify.reloading();
                if let Some(file) = token_file {
                    match tokens::read(file) {
                        Ok(tokens) => gateway.renew(tokens),
                        Err(e) => warn!("{e}; keeping the tokens of before"),
                    }
                }
                match (options.routes.0)() {
                    Ok(routes) => gateway.hooks.renew(routes),
                    Err(e) => warn!("{e}; keeping the routes of before"),
                }
                if let (Some(files), Some(identity)) = (&options.tls, &identity) {
                    match Tls::read(files) {
                        Ok(tls) => drop(identity.send_replace(tls)),
                        Err(e) => warn!("{e}; keeping the certificate of before"),
                    }
                }
                notify.ready();
            }
            () = sleep_until(watchdog.map_or_else(Instant::now, |(_, at)| at)), if watchdog.is_some() => {
                watchdog = watchdog.map(|(pause, _)| (pause, Instant::now() + pause));
                if !session.is_stalled() {
                    notify.alive();
                }
            }
            event = session.next() => {
                let event = event?;
                publisher.handle(&link, &event);
                if matches!(event, Event::Online) {
                    notify.ready();
                }
                if let Some(hub) = &hub {
                    match &event {
                        Event::Online => drop(session.publish(hub.connected())),
                        Event::Offline => hub.disconnected(),
                        Event::Received(received) => hub.take(&received.delivery),
                        _ => {}
                    }
                }
                if let Event::Received(received) = &event {
                    replies.take(&received.delivery);
                    session.acknowledge(&received.ack);
                }
            }
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                hub.iter().for_each(Hub::work);
            }
            Some(job) = waiting.recv() => publisher.send(&mut session, &link, job),
        }
    }
    session.close().await;
    Ok(())
}
