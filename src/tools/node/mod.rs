//! `tael node`: runs the commands of a playbook, one after another.

mod shell;
mod worker;

use std::collections::VecDeque;
use std::path::PathBuf;
use std::pin::pin;
use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep_until, timeout_at};
use tracing::{debug, info, warn};

use crate::engine::report::outbox::{Loss, Outbox, shown};
use crate::error::{Error, Kind, Result};
use crate::model::event::is_id;
use crate::model::message::{Delivery, Message, Properties, Qos, property};
use crate::model::node::{self, Command};
use crate::model::text::printable;
use crate::model::topic::Filter;
use crate::net::mqtt::{Audience, Refused, Settings, Token};
use crate::net::options::BrokerOptions;
use crate::net::session::{Event, Session, Subscriptions};
use crate::os::host;
use crate::os::logging::SENDERS;
use crate::os::notify::Notify;
use crate::os::signals::Stop;
use crate::store::ledger::Queued;
use worker::{Said, Worker};

/// How a node runs commands.
#[derive(Debug, Clone)]
pub enum Means {
    /// Shell functions in this file.
    Functions(PathBuf),
    /// One line for the shell for each command.
    Lines(Vec<Line>),
}

/// Definition of a command.
#[derive(Debug, Clone)]
pub struct Line {
    /// Name of the command.
    pub name: String,
    /// The line; the words of the command are its `$1`, `$2`, ….
    pub run: String,
    /// Whether it continues in the background.
    pub background: bool,
    /// Status to publish when it is done.
    pub status: String,
}

/// Options of the command.
#[derive(Debug, Clone)]
pub struct Options {
    /// Broker and credentials; the client identifier is unique to this process.
    pub broker: BrokerOptions,
    /// Root of the topics of nodes.
    pub root: String,
    /// Name of the node.
    pub name: String,
    /// How it runs commands.
    pub means: Means,
    /// Folders from which files may be sent.
    pub allow: Vec<PathBuf>,
    /// Maximum time until the instant of a command.
    pub max_ahead: Duration,
    /// Time for commands to end after TERMINATE, and time between TERM and KILL.
    pub grace: Duration,
}

/// Time that the broker keeps commands without a connection.
const SESSION_EXPIRY: Duration = Duration::from_secs(3600);

/// Maximum time for the last statuses.
const FAREWELL: Duration = Duration::from_secs(5);

/// Maximum number of commands that wait. A playbook sends a few at once.
const MAX_WAITING: usize = 1024;

/// Maximum size of a packet with a command, bytes.
const MAX_PACKET: u32 = 256 * 1024;

/// Maximum length of the process name of another node, bytes. Ours has 31.
const MAX_INSTANCE: usize = 128;

/// Maximum number of remembered ids of commands, to recognise one that is sent again.
const MAX_KNOWN: usize = 1024;

/// Parses the functions or lines of a node without running them, and returns what is wrong with each.
#[must_use]
pub fn mistakes(means: &Means) -> Vec<(Option<&Line>, String)> {
    match means {
        Means::Functions(file) => {
            let parsed = shell::parse(Some(file), "");
            let wrong = |cause| (None, format!("read {}: {cause}", file.display()));
            parsed.map_err(wrong).err().into_iter().collect()
        }
        Means::Lines(lines) => {
            let parsed = lines.iter().map(|line| {
                // As the worker defines it.
                shell::parse(None, &format!("f() {{\n{}\n}}", line.run))
                    .map_err(|cause| (Some(line), cause))
            });
            parsed.filter_map(Result::err).collect()
        }
    }
}

/// Runs commands until it is told to end.
///
/// # Errors
/// When the functions cannot be read, or the broker refuses the node.
pub fn run(options: &Options) -> Result<ExitCode> {
    super::runtime()?.block_on(node(options))?;
    Ok(ExitCode::SUCCESS)
}

fn status(options: &Options, text: &str) -> Message {
    Message {
        topic: node::status_topic(&options.root, &options.name),
        payload: Bytes::from(text.to_owned()),
        qos: Qos::AtLeastOnce,
        retain: true,
        properties: Properties {
            user: vec![
                (property::HOST.to_owned(), host::hostname()),
                // One connection is one process.
                (node::INSTANCE.to_owned(), options.broker.client_id.clone()),
            ],
            ..Properties::default()
        },
    }
}

/// Recognises commands that the broker sends again.
#[derive(Default)]
struct Known(VecDeque<String>);

impl Known {
    /// Returns whether the message has an id that came before.
    fn again(&mut self, delivery: &Delivery) -> bool {
        let Some(id) = delivery
            .properties
            .user(property::ID)
            .filter(|id| is_id(id))
        else {
            return false;
        };
        if self.0.iter().any(|known| known == id) {
            return true;
        }
        if self.0.len() == MAX_KNOWN {
            self.0.pop_front();
        }
        self.0.push_back(id.to_owned());
        false
    }
}

/// Other nodes of our name.
#[derive(Default)]
struct Doubles(Vec<String>);

impl Doubles {
    /// Warns, once each, of another node that publishes under our name.
    fn look(&mut self, delivery: &Delivery, options: &Options) {
        let instance = delivery.properties.user(node::INSTANCE);
        let Some(instance) = instance.filter(|id| id.len() <= MAX_INSTANCE) else {
            return;
        };
        let speaks = !delivery.retained && delivery.payload != node::LOST.as_bytes();
        let new = instance != options.broker.client_id && !self.0.iter().any(|i| i == instance);
        if speaks && new && self.0.len() < MAX_KNOWN {
            self.0.push(instance.to_owned());
            let host = delivery.properties.user(property::HOST).unwrap_or("?");
            warn!(target: SENDERS,
                "another node is called '{}', on {}: both run every command",
                options.name,
                printable(host, 80)
            );
        }
    }
}

/// Handles the answer of the broker to a status.
fn published(outbox: &mut Outbox<Token>, token: Token, result: Result<Audience, Refused>) {
    let given_up = match result {
        Ok(_) => {
            outbox.complete(token);
            None
        }
        Err(Refused(e, _)) if matches!(e.kind(), Kind::TryAgain | Kind::NotAuthorised) => {
            let waits = match e.kind() {
                Kind::TryAgain => outbox.retry(token),
                _ => outbox.refuse(token),
            };
            if let Some(waits) = waits.filter(|waits| waits.first) {
                let status = shown(waits.message);
                warn!("status {status} waits: {e}; it is published when the broker takes it");
            }
            None
        }
        Err(Refused(e, _)) => outbox.complete(token).map(|status| (status, e)),
    };
    if let Some((status, e)) = given_up {
        warn!("status {} is given up: {e}", shown(&status.message));
    }
}

/// Publishes statuses in flight again, except one that ends every connection.
fn connection_lost(outbox: &mut Outbox<Token>, session: &Session) {
    let loss = match session.is_packet_at_fault() {
        true => Loss::Packet,
        false => Loss::Link,
    };
    if let Some(guilty) = outbox.lost(loss) {
        let status = shown(&guilty.message);
        warn!("status {status} is given up: it ends every connection that it is sent on");
    }
}

async fn node(options: &Options) -> Result<()> {
    let mut stop = Stop::listen(false)?;
    let notify = Notify::from_environment();
    let (commands, command_rx) = mpsc::channel(MAX_WAITING);
    let (said_tx, mut said) = mpsc::unbounded_channel();
    let worker = tokio::select! {
        worker = Worker::start(options, said_tx) => worker?,
        // It may wait without a limit.
        () = stop.requested() => return Ok(()),
    };
    let filter = Filter::new(node::command_topic(&options.root, &options.name))
        .map_err(|e| Error::new(Kind::Usage, e))?;
    // Shows another node of the same name.
    let own = Filter::new(node::status_topic(&options.root, &options.name))
        .map_err(|e| Error::new(Kind::Usage, e))?;
    let settings = Settings {
        broker: options.broker.clone(),
        session_expiry: SESSION_EXPIRY,
        clean_start: true,
        will: Some(status(options, node::LOST)),
        max_packet: MAX_PACKET,
        receive_maximum: 64,
    };
    let subscriptions = Subscriptions {
        required: vec![filter.clone(), own.clone()],
        optional: Vec::new(),
        qos: Qos::AtLeastOnce,
    };
    let mut session = Session::new(settings, subscriptions).lasting();
    let mut outbox = Outbox::default();
    let mut seq = 0;
    let mut say = |outbox: &mut Outbox<Token>, text: &str| {
        seq += 1;
        let message = status(options, text);
        outbox.extend([Queued { seq, message }]);
        if outbox.overflow().is_some() && outbox.dropped() == 1 {
            warn!("too many statuses wait for the broker: the oldest are dropped");
        }
    };
    say(&mut outbox, node::ALIVE);
    let mut lost = false;
    let mut known = Known::default();
    let mut doubles = Doubles::default();
    let (quit, quit_rx) = oneshot::channel();
    let (terminate, deadline) = watch::channel(None);
    let working = tokio::spawn(worker.work(command_rx, deadline, quit_rx));
    loop {
        outbox.flush(|message| session.publish(message.clone()));
        let again = outbox.wake();
        tokio::select! {
            biased;
            () = stop.requested() => break,
            () = sleep_until(again.unwrap_or_else(Instant::now)), if again.is_some() => {}
            words = said.recv() => match words {
                Some(Said::Status(text)) => {
                    info!(target: SENDERS, "{text}");
                    say(&mut outbox, &text);
                }
                Some(Said::Done) | None => break,
            },
            event = session.next() => match event? {
                Event::Online => {
                    notify.ready();
                    info!("node '{}' accepts commands", options.name);
                    if std::mem::take(&mut lost) && outbox.is_empty() {
                        // The broker has published that we are gone.
                        say(&mut outbox, node::ALIVE);
                    }
                }
                Event::Offline => {
                    lost = true;
                    connection_lost(&mut outbox, &session);
                }
                Event::Published(token, result) => published(&mut outbox, token, result),
                Event::Subscribed(_) | Event::Holds(_) | Event::Left => {}
                Event::Received(received) => {
                    let delivery = &received.delivery;
                    if delivery.topic == own.as_str().as_bytes() {
                        doubles.look(delivery, options);
                    } else if delivery.topic != filter.as_str().as_bytes() {
                        debug!("not for this node: the session had another name before");
                    } else if !delivery.retained && !known.again(delivery) {
                        let at = delivery.properties.user(node::AT);
                        let sent = Command::parse(&delivery.payload, at).and_then(|command| {
                            let ends = command.name == node::TERMINATE;
                            if ends {
                                // It overtakes commands that wait for their instant or have no end.
                                terminate.send_if_modified(|until| {
                                    until.is_none() && {
                                        *until = Some(Instant::now() + options.grace);
                                        true
                                    }
                                });
                            }
                            let full = |_| format!("more than {MAX_WAITING} commands wait");
                            commands.try_send(command).or_else(|e| match ends {
                                true => Ok(()),
                                false => Err(full(e)),
                            })
                        });
                        if let Err(cause) = sent {
                            warn!(target: SENDERS, "command refused: {cause}");
                            let code = Kind::Data.exit_code();
                            say(&mut outbox, &format!("{} {code}", node::FAILED));
                        }
                    }
                    session.acknowledge(&received.ack);
                }
            },
        }
    }
    notify.stopping();
    // Running commands end with us in any case.
    drop(quit);
    let grace = options.grace;
    let mut ending = pin!(async move {
        if let Ok(worker) = working.await {
            // Without the thread it is ended with the runtime.
            let _ = spawn_blocking(move || worker.end(grace)).await;
        }
    });
    // That may take longer than the broker waits for a sign of life, and statuses go out meanwhile.
    let mut is_over = false;
    while !is_over {
        while let Ok(Said::Status(text)) = said.try_recv() {
            say(&mut outbox, &text);
        }
        outbox.flush(|message| session.publish(message.clone()));
        tokio::select! {
            biased;
            () = &mut ending => is_over = true,
            event = session.next() => match event {
                Ok(Event::Published(token, result)) => published(&mut outbox, token, result),
                Ok(Event::Offline) => connection_lost(&mut outbox, &session),
                Ok(_) => {}
                Err(e) => {
                    ending.await;
                    return Err(e);
                }
            },
        }
    }
    while let Ok(Said::Status(text)) = said.try_recv() {
        say(&mut outbox, &text);
    }
    say(&mut outbox, node::TERMINATED);
    let deadline = Instant::now() + FAREWELL;
    let told = async {
        while !outbox.is_empty() {
            outbox.flush(|message| session.publish(message.clone()));
            match session.next().await? {
                Event::Published(token, _) => {
                    outbox.complete(token);
                }
                Event::Offline => connection_lost(&mut outbox, &session),
                _ => {}
            }
        }
        Ok::<(), Error>(())
    };
    if timeout_at(deadline, told).await.is_err() {
        warn!("the broker did not acknowledge the last statuses in time");
    }
    session.close().await;
    Ok(())
}
