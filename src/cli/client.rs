//! The command line of `tael client`.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::builder::Resettable;
use clap::{ArgMatches, Args, FromArgMatches};
use tracing::warn;

use crate::cli::Tool;
use crate::cli::config::Layers;
use crate::cli::connection::{self, Connection, Root};
use crate::cli::dry_run::DryRun;
use crate::cli::help::Page;
use crate::cli::mistakes::Mistakes;
use crate::cli::queue_access::{self, QueueLogin, QueueTable};
use crate::cli::signing;
use crate::cli::trigger::{self, TriggerOptions};
use crate::cli::values::one_of;
use crate::cli::view;
use crate::cli::work_type;
use crate::engine::config::Config;
use crate::error::{Error, Kind, Result};
use crate::model::duration;
use crate::model::message::Qos;
use crate::model::size;
use crate::model::topic::{self, DEFAULT_ROOT, Filter};
use crate::model::trigger::Trigger;
use crate::model::triggers::Triggers;
use crate::net::options::QueueAccess;
use crate::os::{host, paths};
use crate::tools::client::{self, Options};
use crate::tools::preflight::Place;
use crate::tools::queue::check::ask_queues;
use crate::tools::{dry_run, preflight};

/// Options of `tael client`.
#[derive(Debug, Args)]
pub struct Client {
    #[command(flatten)]
    trigger: TriggerOptions,
    /// Name of this pipeline
    #[arg(long, value_parser = pipeline_name, value_name = "NAME")]
    who: Option<String>,
    /// Report all mistakes in the configuration, and exit; starts and changes nothing
    #[arg(long)]
    check: bool,
    /// With --check: ask the broker too whether it accepts the client and its subscriptions
    #[arg(long, requires = "check")]
    connect: bool,
    #[command(flatten)]
    trial: DryRun,
    /// Exit with 0, in silence, when a client of this name runs already
    #[arg(long)]
    if_not_running: bool,
    /// Cancel the runs when the client is stopped [default: they keep running]
    #[arg(long)]
    stop_units: bool,
    /// Maximum size of a payload, bytes
    #[arg(long, value_name = "BYTES", default_value = "1048576")]
    max_payload: usize,
    /// Bytes to keep of each output stream of a run, half head, half tail; 0 keeps all
    #[arg(long, value_name = "BYTES", default_value = "16777216")]
    max_output: u64,
    /// Time to remember ended runs; their events are remembered for a week at least
    #[arg(long, value_parser = duration::parse, value_name = "DURATION", default_value = "30d")]
    keep: Duration,
    /// Maximum number of ended runs to remember
    #[arg(long, value_name = "N", default_value = "10000")]
    keep_units: u64,
    /// Maximum size of the state folder, such as 50G: when it is nearly full, ended runs are forgotten
    /// earlier; when it is full, submitted work is refused (75) [default: no limit]
    #[arg(long, value_parser = state_size, value_name = "SIZE")]
    max_state: Option<u64>,
    /// Topics that answers to requests may go to; repeatable [default: ROOT/infrastructure/#, and
    /// ROOT/infrastructure/replies/# with --reply]
    #[arg(long, value_name = "FILTER", action = clap::ArgAction::Append)]
    reply_to: Vec<String>,
    /// Path of a control socket, beside that in the state folder
    #[arg(long, value_name = "PATH")]
    control_socket: Option<PathBuf>,
    /// Mode of that socket, octal
    #[arg(long, value_name = "MODE", value_parser = octal, default_value = "0600", requires = "control_socket")]
    control_mode: u32,
    /// Run without a trigger and without a work type: only to submit work to other nodes
    #[arg(long)]
    submit_only: bool,
    /// Version that receptorctl gets, which warns of one that is not its own
    #[arg(long, value_name = "VERSION", default_value = env!("CARGO_PKG_VERSION"))]
    receptor_version: String,
    /// File for the textfile collector of Prometheus, NAME.prom
    #[arg(long, value_name = "FILE")]
    metrics: Option<PathBuf>,
    /// Quality of service of deliveries; 2 counts as 1, which loses nothing
    #[arg(short, long, value_parser = one_of(connection::qos, connection::QOS), default_value = "1")]
    qos: Qos,
    #[command(flatten)]
    queue_login: QueueLogin,
    #[command(flatten)]
    root: Root,
    #[command(flatten)]
    connection: Connection,
}

/// `tael-client`.
#[must_use]
pub fn main() -> ExitCode {
    super::single::<Client>()
}

/// Returns the mistakes in the options and triggers of a configuration file called `path` that holds
/// `text`, a line each. Reads no file, no flag and no environment; files and hosts that it names are
/// not looked for.
#[must_use]
pub fn mistakes_in(path: &Path, text: &str) -> Vec<String> {
    let mut mistakes = Mistakes::default();
    let Some(layers) = mistakes.keep(Layers::of_text(path, text)) else {
        return mistakes.lines();
    };
    let bare = super::command::<Client>()
        .no_binary_name(true)
        .mut_args(|arg| arg.env(Resettable::Reset));
    let command = layers.apply_all(bare, &mut mistakes);
    let matches = command.try_get_matches_from([""; 0]);
    let matches = matches.map_err(|e| Error::usage(super::usage_line(&e)));
    if let Some(matches) = mistakes.keep(matches)
        && let Ok(client) = Client::from_arg_matches(&matches)
    {
        let has_work = client.submit_only || work_type::are_there(&layers);
        let table = QueueTable::of_file(&layers, &mut mistakes);
        let broker = table.broker.as_ref();
        let options = client.trigger;
        let triggers = trigger::all(options, &matches, &layers, has_work, broker, &mut mistakes);
        let triggers = triggers.unwrap_or_default();
        let _ = work_type::all(&layers, client.max_output, &triggers, &mut mistakes);
    }
    mistakes.lines()
}

/// Largest `--max-payload`, bytes: four of them must fit into an MQTT packet.
const MAX_MAX_PAYLOAD: usize = 64 * 1024 * 1024;

impl Tool for Client {
    const NAME: &'static str = "client";
    const ABOUT: &'static str = "Run a command for every event, once, and publish how it ended";

    const HELP: Page = Page {
        first: &[
            "topic", "queue", "when", "envreq", "command", "jobs", "timeout", "who", "broker",
        ],
        groups: &[
            (
                "Trigger",
                &[
                    "topic",
                    "queue",
                    "when",
                    "envreq",
                    "envprefix",
                    "retained",
                    "absent",
                    "loop-rate",
                ],
            ),
            (
                "Command",
                &[
                    "command",
                    "shell",
                    "no-shell",
                    "cwd",
                    "env-file",
                    "payload-passthrough",
                ],
            ),
            (
                "Policy",
                &[
                    "jobs",
                    "overlap",
                    "timeout",
                    "grace",
                    "retries",
                    "retry-delay",
                    "on-interrupt",
                ],
            ),
            (
                "State",
                &[
                    "who",
                    "if-not-running",
                    "stop-units",
                    "max-payload",
                    "max-output",
                    "keep",
                    "keep-units",
                    "max-state",
                    "control-socket",
                    "control-mode",
                    "receptor-version",
                    "metrics",
                ],
            ),
            (
                "Trial",
                &[
                    "check",
                    "connect",
                    "dry-run",
                    "message",
                    "message-topic",
                    "message-property",
                    "message-retained",
                ],
            ),
            ("Queue", &["settle", "prefetch", "dead-letter", "declare"]),
            ("Broker", &["reply-to", "qos"]),
        ],
        examples: &[
            "tael client -t lab/seq/status -c /opt/lab/align.sh --who align --envreq SAMPLE",
            "tael client -t lab/test/beacon/status --absent 11m -c /opt/lab/tell.sh --who guard",
            "tael client --queue amqp://ann@mq.lab/lab/align --jobs 4 -c /opt/lab/align.sh --who align",
            "tael client --config /etc/tael/align.toml --who align --check",
            "tael client -t lab/seq/status -c ./align.sh --who align --dry-run -m '{\"status\":\"Finished\"}'",
        ],
    };

    const DAEMON: bool = true;

    const CHECK: Option<fn(Self, &ArgMatches, &Layers, &mut Mistakes)> =
        Some(|client, matches, layers, mistakes| {
            let connect = client.connect;
            let (config, can_connect) = client.draft(matches, layers, mistakes);
            client::warn(&config);
            mistakes.name(subject(&config, matches, layers));
            // A start does not look at them: only `tael facts view` does.
            view::all(layers, mistakes);
            if let Some(state) = mistakes.keep(paths::state_dir()) {
                for finding in preflight::look(&config, &state) {
                    let (key, cause) = (finding.key, finding.cause);
                    let mistake = match (finding.place, layers.with_key("client", key)) {
                        (Place::Trigger(place), _) => {
                            trigger::wrong(layers, &config.triggers, place, key, &cause)
                        }
                        (Place::Work(place), _) => {
                            work_type::wrong(layers, &config.work, place, key, &cause)
                        }
                        (Place::Client, Some(layer)) => layer.wrong_at(&["client", key], cause),
                        (Place::Client, None) => Error::config(cause),
                    };
                    match finding.is_doubt {
                        true => warn!("{mistake}"),
                        false => mistakes.note(mistake),
                    }
                }
            }
            if connect && can_connect {
                let answers = preflight::ask_broker(&config, &connection::random_id());
                for answer in answers.into_iter().chain(ask_queues(&config)) {
                    if let Some(line) = mistakes.keep(answer) {
                        mistakes.note_right(line);
                    }
                }
            }
        });

    fn run(self, matches: &ArgMatches, layers: &Layers) -> Result<ExitCode> {
        if self.trial.is_wanted() {
            return self.dry_run(matches, layers);
        }
        let if_not_running = self.if_not_running;
        let mut mistakes = Mistakes::default();
        let (config, _) = self.draft(matches, layers, &mut mistakes);
        client::run(Options {
            config: mistakes.or_first(Some(config))?,
            state: paths::state_dir()?,
            if_not_running,
            reread: Box::new(|| {
                let (client, matches, layers) = super::again::<Self>()?;
                let mut mistakes = Mistakes::default();
                let (config, _) = client.draft(&matches, &layers, &mut mistakes);
                let config = mistakes.or_first(Some(config));
                config.map_err(|e| super::located::<Self>(e, &matches, &layers))
            }),
        })
    }
}

impl Client {
    /// Prints what the client would do with a message.
    fn dry_run(mut self, matches: &ArgMatches, layers: &Layers) -> Result<ExitCode> {
        // With a command, -t is the filter of its trigger.
        let own_trigger = trigger::is_by_hand(matches, "command");
        let topics = match own_trigger {
            true => self.trigger.topic.clone(),
            false => std::mem::take(&mut self.trigger.topic),
        };
        let message = self.trial.message(&topics, self.max_payload)?;
        let mut mistakes = Mistakes::default();
        let (config, _) = self.draft(matches, layers, &mut mistakes);
        let config = mistakes.or_first(Some(config))?;
        dry_run::run(&config, &message.resolve(&config.triggers)?)
    }

    /// Returns the pipeline that the options describe, and whether the options of the broker are
    /// right; notes every mistake. After a mistake the pipeline is incomplete: of use for looking for
    /// more mistakes only.
    fn draft(
        self,
        matches: &ArgMatches,
        layers: &Layers,
        mistakes: &mut Mistakes,
    ) -> (Config, bool) {
        let who = self.who.unwrap_or_default();
        if who.is_empty() {
            mistakes.note_missing(Error::usage(
                "start client: name the pipeline with --who, or who below [client]",
            ));
        }
        let host = host::hostname();
        let chosen_id = self.connection.has_id();
        // The identifier of versions that kept none in the state folder.
        let id = format!("tael-{who}-{host}");
        let authorities = self.connection.authorities();
        let before = mistakes.count();
        let broker = match self.trial.is_wanted() {
            true => Some(Connection::unused()),
            false => {
                mistakes.keep(self.connection.check_session(matches));
                self.connection.resolve_all(matches, id, mistakes)
            }
        };
        let can_connect = mistakes.count() == before;
        if self.qos == Qos::AtMostOnce {
            mistakes.note(Error::usage("QoS 0 loses events: a client takes 1").about("qos"));
        }
        if !(1..=MAX_MAX_PAYLOAD).contains(&self.max_payload) {
            let cause = format!("--max-payload has 1 to {MAX_MAX_PAYLOAD} bytes");
            mistakes.note(Error::usage(cause).about("max-payload"));
        }
        let has_work = self.submit_only || work_type::are_there(layers);
        let table = QueueTable::read(layers, mistakes);
        let broker_of_queues = table.broker.as_ref();
        let triggers = trigger::all(
            self.trigger,
            matches,
            layers,
            has_work,
            broker_of_queues,
            mistakes,
        );
        let mut triggers = triggers.unwrap_or_default();
        let work = work_type::all(layers, self.max_output, &triggers, mistakes);
        for trigger in &mut triggers {
            Arc::make_mut(&mut trigger.spec).limits.max_output = self.max_output;
        }
        let queues = match self.trial.is_wanted() {
            true => QueueAccess::default(),
            false => {
                let access = self
                    .queue_login
                    .resolve(matches, &table, authorities, mistakes);
                check_logins(&access, &triggers, mistakes);
                access
            }
        };
        let triggers = Triggers::new(triggers);
        if let Some((shared, own)) = triggers.mixed() {
            // A client has one session. The session of a worker ends with it, so that others get
            // its share. Other sessions last until the next start.
            let kind = match triggers.len() {
                1 => Kind::Usage,
                _ => Kind::Config,
            };
            mistakes.note(Error::new(
                kind,
                format!(
                    "start client: '{shared}' is shared and '{own}' is not: start a client of \
                     another --who for one of them"
                ),
            ));
        }
        let root = mistakes.keep(root(self.root, &triggers));
        let mut topics = |below: &str| -> Vec<Filter> {
            let mut texts = self.reply_to.clone();
            if texts.is_empty() {
                texts.extend(
                    root.iter()
                        .map(|root| format!("{root}/infrastructure/{below}")),
                );
            }
            let wrong = |e| Error::usage(format!("--reply-to: {e}")).about("reply-to");
            let filter = |text: String| Filter::new(text).map_err(wrong);
            let filters = texts.into_iter().map(filter);
            filters.filter_map(|filter| mistakes.keep(filter)).collect()
        };
        let (reply_to, answers_to) = (topics("#"), topics("replies/#"));
        let config = Config {
            reply_to,
            answers_to,
            root: root.unwrap_or_else(|| DEFAULT_ROOT.to_owned()),
            who,
            host,
            triggers,
            work,
            verify: signing::verify(layers, mistakes),
            signer: signing::of_client(layers, mistakes).map(Arc::new),
            max_payload: self.max_payload,
            max_output: self.max_output,
            keep: self.keep,
            keep_units: self.keep_units,
            max_state: self.max_state.unwrap_or(0),
            stop_units: self.stop_units,
            control_socket: self.control_socket.map(|path| {
                let path = mistakes.keep(absolute_socket(&path)).unwrap_or(path);
                (path, self.control_mode)
            }),
            submit_only: self.submit_only,
            receptor_version: self.receptor_version,
            metrics: self.metrics,
            broker: broker.unwrap_or_else(Connection::unused),
            queues,
            chosen_id,
        };
        (config, can_connect)
    }
}

/// Returns what a check was about: the file of the triggers, or the pipeline, and how many there are.
fn subject(config: &Config, matches: &ArgMatches, layers: &Layers) -> String {
    let count = config.triggers.len();
    let s = if count == 1 { "" } else { "s" };
    let is_one = ["topic", "queue", "command"]
        .iter()
        .any(|id| trigger::is_by_hand(matches, id));
    let of_file = layers
        .triggers()
        .filter(|(_, tables)| !is_one && !tables.is_empty());
    let name = of_file.map_or(config.who.clone(), |(layer, _)| {
        layer.path.display().to_string()
    });
    let work = match config.work.len() {
        0 => String::new(),
        1 => ", 1 work type".to_owned(),
        n => format!(", {n} work types"),
    };
    format!("{name}: {count} trigger{s}{work}")
}

/// Notes what `access` lacks for the brokers of the queues that `triggers` have.
fn check_logins(access: &QueueAccess, triggers: &[Trigger], mistakes: &mut Mistakes) {
    let mut seen = HashSet::new();
    let queues = triggers.iter().filter_map(|trigger| trigger.queue.as_ref());
    // One that could not be read has no host.
    for queue in queues.filter(|queue| !queue.url.host.is_empty()) {
        if seen.insert(queue.url.queue_broker()) {
            mistakes.keep(queue_access::check(access, &queue.url));
        }
    }
}

/// Returns the path of a socket from the root on: a client may be started anywhere.
fn absolute_socket(path: &Path) -> Result<PathBuf> {
    let found = std::path::absolute(path);
    found.map_err(|e| Error::usage(format!("--control-socket {}: {e}", path.display())))
}

/// Checks the name of a pipeline. An empty one counts as missing.
fn pipeline_name(text: &str) -> Result<String, String> {
    match text.is_empty() {
        true => Ok(String::new()),
        false => topic::check_who(text).map(|()| text.to_owned()),
    }
}

/// Smallest `--max-state`, bytes: the ledger and its log take some of it.
const MIN_MAX_STATE: u64 = 16 << 20;

/// Parses the maximum size of the state folder; 0 is no limit.
fn state_size(text: &str) -> Result<u64, String> {
    match size::parse(text)? {
        bytes @ 1..MIN_MAX_STATE => Err(format!("{bytes} bytes are too few: write 16M or more")),
        bytes => Ok(bytes),
    }
}

/// Parses the mode of a socket.
fn octal(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o777 => Ok(mode),
        _ => Err(format!("'{text}' is not a mode, such as 0660")),
    }
}

/// Returns the root; by default the first level of the first topic.
fn root(given: Root, triggers: &[Trigger]) -> Result<String> {
    let mut filters = triggers.iter().flat_map(|trigger| &trigger.filters);
    let first = filters.next().and_then(Filter::first_level);
    Root {
        root: given
            .root
            .or_else(|| Some(first.unwrap_or(DEFAULT_ROOT).to_owned())),
    }
    .resolve()
}
