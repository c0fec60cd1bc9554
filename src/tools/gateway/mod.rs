//! `tael gateway`: HTTP requests become messages.

mod blocking;
mod budget;
mod hooks;
mod metrics;
mod options;
mod outgoing;
mod output;
mod page;
mod permits;
mod policy;
mod publisher;
mod queue_publisher;
mod reload;
mod replies;
mod routes;
mod tokens;
mod units;
mod ways;
mod work;
mod workflows;
mod xmlrpc;

use std::process::ExitCode;
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

use crate::error::Result;
use crate::model::gateway::rate::Rate;
use crate::model::message::Qos;
use crate::net::http::{Address, Counts, Listener, Times, Tls, serve};
use crate::net::session::{Event, Session, Subscriptions};
use crate::os::notify::Notify;
use crate::os::signals::{self, Stop};
use crate::tools::listener;
use budget::Budget;
use hooks::Hooks;
use page::Hub;
use policy::Policy;
use publisher::{Link, Publisher, jobs};
use reload::Reload;
use replies::Replies;
use routes::Gateway;
use units::Units;
use ways::Ways;
use work::Submissions;
use workflows::Workflows;
use xmlrpc::Rpc;

pub use options::{Contents, Options, Reread};

/// Maximum time of threads that still read when the gateway ends.
const LAST_READS: Duration = Duration::from_secs(5);

/// Serves until it is stopped.
///
/// # Errors
/// When an address cannot be used (73, 75) or the tokens cannot be read (78). Of the connection to
/// the broker final failures only.
pub fn run(options: Options, contents: Contents, reread: Reread) -> Result<ExitCode> {
    let runtime = super::runtime()?;
    let ended = runtime.block_on(gateway(options, contents, reread));
    // A read of a folder that does not answer must not hold up the end.
    runtime.shutdown_timeout(LAST_READS);
    ended.map(|()| ExitCode::SUCCESS)
}

/// Returns the names that these listeners have by themselves.
fn names(listeners: &[Listener]) -> Vec<String> {
    let mut names = vec!["localhost".to_owned()];
    for listener in listeners {
        if let Address::Tcp(address) = listener.address() {
            names.push(address.ip().to_string());
        }
    }
    names
}

async fn gateway(options: Options, contents: Contents, reread: Reread) -> Result<()> {
    if let Some(first) = contents.mistakes().into_iter().next() {
        return Err(first);
    }
    let mut stop = Stop::listen(true)?;
    let mut reload = signals::reload()?;
    let notify = Notify::from_environment();
    let mut watchdog = notify.watchdog();
    let tls = contents.tls?;
    let not_after = tls.as_ref().and_then(Tls::not_after);
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
    metrics.certificate(not_after);
    let hooks = Hooks::new(contents.routes.unwrap_or_default());
    let queues = options.queues.clone().map(|(_, broker)| {
        let (puts, waiting) = mpsc::channel(queue_publisher::MAX_WAITING);
        tokio::spawn(queue_publisher::run(broker, waiting));
        puts
    });
    let own_names = names(&listeners);
    let policy = Policy {
        tokens: contents.tokens?,
        names: reload::names(&own_names, &options),
        topics: options.topics.clone(),
        queues: reload::queues(&options, queues.is_some()),
        work: options.work.clone(),
    };
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
        policy: RwLock::new(Arc::new(policy)),
        rate: Mutex::new(Rate::of(options.rate)),
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
        work: Submissions::new(options.scope.clone(), options.sign),
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
    let mut renewal = Reload::new(options, own_names, reread);
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
                renewal.run(&gateway, identity.as_ref());
                notify.ready();
            }
            () = watchdog.due() => {
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
