//! The command line of `tael queue`.

use std::io::{self, Read};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use clap::{ArgMatches, Args, Subcommand};
use jiff::Timestamp;
use serde_json::Value;

use crate::cli::config::Layers;
use crate::cli::connection::TARGETS;
use crate::cli::help::Page;
use crate::cli::mistakes::Mistakes;
use crate::cli::queue_access::{self, QueueLogin, QueueTable};
use crate::cli::values::one_of;
use crate::cli::{Tool, attr};
use crate::error::{Error, Result};
use crate::model::event::Attributes;
use crate::model::queue::{QueueType, QueueUrl, check_name};
use crate::model::{duration, json, status as message_text};
use crate::net::management::Address;
use crate::net::options::TlsFiles;
use crate::os::host;
use crate::os::logging;
use crate::tools::queue::bodies::{self, Bodies, MAX_BODY};
use crate::tools::queue::dead::{self, Action};
use crate::tools::queue::target::Target;
use crate::tools::queue::{drain, push, status};

/// Range of `--statistics-interval`.
const MIN_INTERVAL: Duration = Duration::from_secs(1);
const MAX_INTERVAL: Duration = Duration::from_secs(600);

/// Options of `tael queue`.
#[derive(Debug, Args)]
#[command(arg_required_else_help = true)]
pub struct Queue {
    #[command(subcommand)]
    verb: Verbs,
    /// Address of the management API [default: http://HOST:15672]
    #[arg(long, value_name = "URL", global = true)]
    management: Option<String>,
    /// The broker's collect_statistics_interval
    #[arg(long, value_parser = duration::parse, value_name = "DURATION", default_value = "5s", global = true)]
    statistics_interval: Duration,
    #[command(flatten)]
    login: QueueLogin,
    /// File of certificate authorities to trust, PEM
    #[arg(long, value_name = "FILE", global = true, hide = true)]
    cafile: Option<PathBuf>,
    /// Folder of certificate authorities to trust, PEM
    #[arg(long, value_name = "FOLDER", global = true, hide = true)]
    capath: Option<PathBuf>,
    /// Configuration file
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    /// Target of log lines: auto, journald, stderr or none; TAEL_LOG sets the level
    #[arg(long, value_parser = one_of(logging::Target::parse, TARGETS), value_name = "TARGET", default_value = "auto", global = true, hide = true)]
    log: logging::Target,
}

#[derive(Debug, Subcommand)]
enum Verbs {
    /// Put messages on a queue; exit with 0 when the broker has confirmed and routed each
    Push(PushOptions),
    /// Show what is in a queue, who takes from it, and what died
    Status {
        /// Queue: amqp[s]://[user@]host[:port]/VHOST/QUEUE, or a name if [queue] has a broker
        queue: String,
        /// Name of its dead-letter queue [default: QUEUE.dead]
        #[arg(long, value_name = "NAME")]
        dead_letter: Option<String>,
        /// Maximum time until the broker answers
        #[arg(long, value_parser = duration::parse_wait, value_name = "DURATION", default_value = "10s")]
        timeout: Duration,
        /// Print a JSON object
        #[arg(long)]
        json: bool,
    },
    /// Wait until a queue is empty and no consumer holds its messages
    ///
    /// It needs the management API. Clients of Tael that acknowledge a message when they accept it (--settle accept) hold none while they
    /// run it: tael queue push --wait waits for ends.
    Drain {
        /// Queue: amqp[s]://[user@]host[:port]/VHOST/QUEUE, or a name if [queue] has a broker
        queue: String,
        /// Maximum time to wait; then the exit code is 75 [default: no limit]
        #[arg(long, value_parser = duration::parse, value_name = "DURATION")]
        timeout: Option<Duration>,
        /// Print a JSON object
        #[arg(long)]
        json: bool,
    },
    /// List, retry or drop messages that have died. A list marks them as redelivered
    Dead {
        /// Queue that they came from
        queue: String,
        /// Action: list, retry or drop
        #[arg(value_parser = one_of(Action::parse, Action::NAMES))]
        action: Action,
        /// Their ids, or the beginnings or ends of their ids
        #[arg(value_name = "ID")]
        ids: Vec<String>,
        /// Take all
        #[arg(long, conflicts_with = "ids")]
        all: bool,
        /// Name of the dead-letter queue [default: QUEUE.dead]
        #[arg(long, value_name = "NAME")]
        dead_letter: Option<String>,
        /// Maximum time until the broker has confirmed a message
        #[arg(long, value_parser = duration::parse_wait, value_name = "DURATION", default_value = "10s")]
        timeout: Duration,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// Options of `tael queue push`.
#[derive(Debug, Args)]
struct PushOptions {
    /// Queue: amqp[s]://[user@]host[:port]/VHOST/QUEUE, or a name if [queue] has a broker
    queue: String,
    /// Attributes without --attr. The first = ends the key; a key with = in it needs -m
    #[arg(value_name = "KEY=VALUE")]
    pairs: Vec<String>,
    /// One attribute; repeatable. Also written --attr KEY=VALUE
    #[arg(short, long, num_args = 2, value_names = ["KEY", "VALUE"], action = clap::ArgAction::Append, allow_hyphen_values = true)]
    attr: Vec<String>,
    /// Whole body of the message, as it is; - reads it from standard input
    #[arg(short = 'm', long, value_name = "TEXT", allow_hyphen_values = true, conflicts_with_all = ["attr", "pairs"])]
    payload: Option<String>,
    /// Push each line of standard input that is not empty as a message
    #[arg(short, long, conflicts_with_all = ["attr", "pairs", "payload", "count"])]
    lines: bool,
    /// Number of equal messages
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u64).range(1..))]
    count: u64,
    /// Priority of the messages, if the queue has priorities
    #[arg(long, value_name = "N")]
    priority: Option<u8>,
    /// Declare the queue as quorum or classic [default: it must be there]
    #[arg(long, value_parser = one_of(QueueType::parse, QueueType::NAMES), value_name = "TYPE")]
    declare: Option<QueueType>,
    /// Wait until each message has ended: exit with 1 if some have failed, and list them
    #[arg(long)]
    wait: bool,
    /// Maximum time for everything; then the exit code is 75 [default: 60s without a confirm, no limit
    /// for the ends]
    #[arg(long, value_parser = duration::parse, value_name = "DURATION")]
    timeout: Option<Duration>,
    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

impl PushOptions {
    /// Returns the bodies of the messages.
    fn bodies(&mut self) -> Result<Bodies> {
        if self.lines {
            return Bodies::lines();
        }
        let body = match self.payload.take() {
            Some(text) if text == "-" => stdin()?,
            Some(text) => Bytes::from(text),
            None => {
                let attr = std::mem::take(&mut self.attr);
                let pairs = attr::pairs(attr, std::mem::take(&mut self.pairs))?;
                if pairs.is_empty() {
                    return Err(Error::usage(format!(
                        "push to queue: there is no message: {}, or give -m TEXT, or -l for lines",
                        attr::HINT
                    )));
                }
                let mut attributes = Attributes::new();
                let reserved = [("ts", "the time of sending, which is set for you")];
                attr::add(&mut attributes, pairs, &reserved)?;
                let text = message_text::message(&host::username(), attributes, Timestamp::now());
                Bytes::from(json::to_text(&Value::Object(text)))
            }
        };
        bodies::check(body.len()).map_err(|e| e.context("push to queue"))?;
        Ok(Bodies::Same(body, self.count))
    }
}

/// Returns all of standard input.
fn stdin() -> Result<Bytes> {
    let mut input = Vec::new();
    let limit = u64::try_from(MAX_BODY).unwrap_or(u64::MAX) + 1;
    let read = io::stdin().lock().take(limit).read_to_end(&mut input);
    read.map_err(|e| Error::data(format!("read message from standard input: {e}")))?;
    Ok(Bytes::from(input))
}

/// Returns the name of the dead-letter queue of `url`.
fn dead_letter(given: Option<String>, url: &QueueUrl) -> Result<String> {
    let name = given.unwrap_or_else(|| url.dead_letter());
    let checked = check_name(&name);
    checked.map_err(|e| Error::usage(format!("--dead-letter: {e}")))?;
    Ok(name)
}

impl Tool for Queue {
    const NAME: &'static str = "queue";
    const ABOUT: &'static str = "Put work on queues of RabbitMQ, and wait until it is done";

    const HELP: Page = Page {
        first: &[
            "management",
            "statistics-interval",
            "queue-password-file",
            "queue-cafile",
            "config",
        ],
        groups: &[],
        examples: &[
            "tael queue push amqp://ann@mq.lab/lab/align sample=S1 --wait",
            "tael queue push align -l --declare quorum <samples.json",
            "tael queue status amqp://ann@mq.lab/lab/align",
            "tael queue drain align --timeout 12h",
            "tael queue dead align list",
            "tael queue dead align retry --all",
        ],
    };

    fn run(self, matches: &ArgMatches, layers: &Layers) -> Result<ExitCode> {
        let Self {
            verb,
            management,
            statistics_interval: interval,
            login,
            cafile,
            capath,
            ..
        } = self;
        let is_odd = !(MIN_INTERVAL..=MAX_INTERVAL).contains(&interval);
        if is_odd {
            return Err(Error::usage(
                "--statistics-interval is out of range: 1s to 10m",
            ));
        }
        let ca = TlsFiles {
            cafile,
            capath,
            ..TlsFiles::default()
        };
        let target = |text: &str| target(text, interval, management, login, ca, matches, layers);
        match verb {
            Verbs::Push(mut options) => {
                let target = target(&options.queue)?;
                push::run(push::Options {
                    target,
                    bodies: options.bodies()?,
                    priority: options.priority,
                    declare: options.declare,
                    wait: options.wait,
                    timeout: options.timeout,
                    json: options.json,
                })
            }
            Verbs::Status {
                queue,
                dead_letter: dead,
                timeout,
                json,
            } => {
                let target = target(&queue)?;
                status::run(&status::Options {
                    dead_letter: dead_letter(dead, &target.url)?,
                    target,
                    timeout,
                    json,
                })
            }
            Verbs::Drain {
                queue,
                timeout,
                json,
            } => drain::run(&drain::Options {
                target: target(&queue)?,
                timeout,
                json,
            }),
            Verbs::Dead {
                queue,
                action,
                ids,
                all,
                dead_letter: dead,
                timeout,
                json,
            } => {
                if ids.is_empty() && !all && action != Action::List {
                    return Err(Error::usage(
                        "dead letters: name messages by their ids, or give --all",
                    ));
                }
                if ids.iter().any(String::is_empty) {
                    return Err(Error::usage("dead letters: an id is empty"));
                }
                let target = target(&queue)?;
                dead::run(&dead::Options {
                    dead_letter: dead_letter(dead, &target.url)?,
                    target,
                    action,
                    ids,
                    timeout,
                    json,
                })
            }
        }
    }
}

/// Returns the queue that `text` names, and how to reach it.
fn target(
    text: &str,
    interval: Duration,
    management: Option<String>,
    login: QueueLogin,
    ca: TlsFiles,
    matches: &ArgMatches,
    layers: &Layers,
) -> Result<Target> {
    let mut mistakes = Mistakes::default();
    let table = QueueTable::read(layers, &mut mistakes);
    let url = QueueUrl::parse_or_name(text, table.broker.as_ref()).map_err(Error::usage);
    let url = mistakes.keep(url);
    let management = management.or_else(|| table.management.clone());
    let address = management.map(|text| Address::parse(&text).map_err(Error::usage));
    let address = address.and_then(|address| mistakes.keep(address));
    let access = login.resolve(matches, &table, ca, &mut mistakes);
    if let Some(url) = &url {
        mistakes.keep(queue_access::check(&access, url));
    }
    mistakes.or_first(url.map(|url| Target {
        url,
        access,
        management: address,
        interval,
    }))
}
