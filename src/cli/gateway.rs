//! The command line of `tael gateway`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{ArgMatches, Args};

use crate::cli::Tool;
use crate::cli::config::Layers;
use crate::cli::connection::{self, Connection, Root, warn_of_open};
use crate::cli::help::Page;
use crate::cli::mistakes::Mistakes;
use crate::cli::queue_access::{self, QueueLogin, QueueTable};
use crate::cli::route_tables::{self, Ends};
use crate::error::{Error, Result};
use crate::model::duration;
use crate::model::gateway::topics::Topics;
use crate::model::gateway::work::Kind;
use crate::model::queue;
use crate::model::topic::{check_name, check_who};
use crate::net::amqp::AmqpOptions;
use crate::net::http::{Address, Identity};
use crate::net::options::TlsFiles;
use crate::os::{host, paths};
use crate::tools::gateway::{self, Contents, Options, Reread};
use crate::tools::work::Scope;

/// Shortest and longest `--timeout`. A broker needs some time, and callers wait no longer.
const MIN_TIMEOUT: Duration = Duration::from_millis(100);
const MAX_TIMEOUT: Duration = Duration::from_secs(300);

/// Options of `tael gateway`.
#[derive(Debug, Args)]
pub struct Gateway {
    /// Address to listen on, or unix:/PATH; repeatable. Addresses of others need --token-file or
    /// --tls-cert
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = Address::parse, default_value = "127.0.0.1:8787")]
    listen: Vec<Address>,
    /// File of tokens, one a line; callers then send one: Authorization: Bearer TOKEN
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Our certificate in PEM: callers then speak TLS, except on a Unix socket
    #[arg(long, value_name = "FILE")]
    tls_cert: Option<PathBuf>,
    /// Our private key in PEM
    #[arg(long, value_name = "FILE")]
    tls_key: Option<PathBuf>,
    /// Certificate authorities in PEM: callers then show a certificate of one
    #[arg(long, value_name = "FILE")]
    tls_client_ca: Option<PathBuf>,
    /// Topic filter to which callers may publish; repeatable [default: ROOT/#, without
    /// ROOT/infrastructure/#]
    #[arg(long, value_name = "FILTER")]
    allow: Vec<String>,
    /// Queue of the broker in [queue] in which callers may put messages; repeatable
    #[arg(long, value_name = "QUEUE")]
    allow_queue: Vec<String>,
    /// Topic below which events of XML-RPC are published that name no allowed queue [default: ROOT]
    #[arg(long, value_name = "TOPIC")]
    events: Option<String>,
    /// Client of this host whose runs XML-RPC counts and lists
    #[arg(long, value_name = "WHO")]
    workflows: Option<String>,
    /// Maximum number of requests a minute of one token, or of one address without; 0 for no limit
    #[arg(long, value_name = "N", default_value = "600")]
    rate: u32,
    /// Name by which callers without a token may reach the gateway, beside localhost; repeatable
    #[arg(long, value_name = "NAME")]
    server_name: Vec<String>,
    /// Maximum time until the broker has confirmed a message
    #[arg(long, value_parser = duration::parse_wait, value_name = "DURATION", default_value = "10s")]
    timeout: Duration,
    /// Answer 503 when no client subscribes to the topic, so far as the broker says; needs --no-page
    #[arg(long)]
    need_listener: bool,
    /// Work that callers may submit, localhost for this host; repeatable
    #[arg(long, value_name = "NODE/TYPE", value_parser = Kind::parse)]
    allow_work: Vec<Kind>,
    /// Have the client of this host sign work for other nodes with the key of its [signing]
    #[arg(long)]
    sign: bool,
    /// Let callers end runs and control pipelines; needs --token-file. Otherwise they only send
    /// messages and read
    #[arg(long)]
    control: bool,
    /// Serve no page, and subscribe to answers only
    #[arg(long)]
    no_page: bool,
    /// State folder with the runs that callers see [default: as that of a client]
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Report all mistakes in the configuration, and exit; listens on nothing
    #[arg(long)]
    check: bool,
    #[command(flatten)]
    root: Root,
    #[command(flatten)]
    queue: QueueLogin,
    #[command(flatten)]
    connection: Connection,
}

impl Tool for Gateway {
    const NAME: &'static str = "gateway";
    const ABOUT: &'static str =
        "Make events of HTTP requests and webhooks, and show the network on a page";

    const HELP: Page = Page {
        first: &[
            "listen",
            "token-file",
            "allow",
            "rate",
            "broker",
            "username",
            "password-file",
            "root",
        ],
        groups: &[],
        examples: &[
            "tael gateway --root lab",
            "tael gateway --root lab --listen 0.0.0.0:8787 --token-file /etc/tael/tokens",
            "tael gateway --root lab --allow lab/git/# --no-page --need-listener",
        ],
    };

    const DAEMON: bool = true;

    const CHECK: Option<fn(Self, &ArgMatches, &Layers, &mut Mistakes)> =
        Some(|gateway, matches, layers, mistakes| {
            let (_, contents) = gateway.read(matches, layers, mistakes);
            for mistake in contents.mistakes() {
                mistakes.note(mistake);
            }
        });

    fn run(self, matches: &ArgMatches, layers: &Layers) -> Result<ExitCode> {
        let mut mistakes = Mistakes::default();
        let (options, contents) = self.read(matches, layers, &mut mistakes);
        let reread = Reread(Arc::new(|| {
            let (gateway, matches, layers) = super::again::<Self>()?;
            let mut mistakes = Mistakes::default();
            let (options, contents) = gateway.read(&matches, &layers, &mut mistakes);
            let options = mistakes.or_first(options);
            let options = options.map_err(|e| super::located::<Self>(e, &matches, &layers))?;
            Ok((options, contents))
        }));
        gateway::run(mistakes.or_first(options)?, contents, reread)
    }
}

impl Gateway {
    /// Returns what the gateway does, unless a mistake leaves nothing, and what the files hold that it
    /// names. Notes every mistake in the options.
    fn read(
        self,
        matches: &ArgMatches,
        layers: &Layers,
        mistakes: &mut Mistakes,
    ) -> (Option<Options>, Contents) {
        let queues = self.queues(matches, layers, mistakes);
        let root = mistakes.keep(self.root.clone().resolve());
        let topics = root.as_ref().and_then(|root| {
            let topics = Topics::new(root, &self.allow);
            let wrong = |e| Error::usage(format!("use --allow: {e}")).about("allow");
            mistakes.keep(topics.map_err(wrong))
        });
        let ends = Ends {
            has_queues: queues.is_some(),
            work: &self.allow_work,
            topics: topics.as_ref(),
        };
        let routes = route_tables::read(layers, &ends);
        let tls = self.tls(mistakes);
        if let Some(files) = &tls {
            warn_of_open("private key", &files.key);
        }
        if let Some(file) = &self.token_file {
            warn_of_open("token file", file);
        }
        let contents = Contents::read(self.token_file.as_deref(), tls.as_ref(), routes);
        let roots = (root, topics);
        let options = self.options(matches, queues, roots, tls, mistakes);
        (options, contents)
    }

    /// Returns the files of our TLS, if there is any. They may come from flags, the environment and files,
    /// so only here is it known which are missing.
    fn tls(&self, mistakes: &mut Mistakes) -> Option<Identity> {
        let pair = match (&self.tls_cert, &self.tls_key) {
            (Some(cert), Some(key)) => Some((cert.clone(), key.clone())),
            (None, None) => {
                if self.tls_client_ca.is_some() {
                    let cause = "--tls-client-ca needs --tls-cert and --tls-key";
                    mistakes.note(Error::usage(cause).about("tls-client-ca"));
                }
                None
            }
            (cert, _) => {
                let given = if cert.is_some() {
                    "tls-cert"
                } else {
                    "tls-key"
                };
                let cause = "--tls-cert and --tls-key go together: one is missing";
                mistakes.note(Error::usage(cause).about(given));
                None
            }
        };
        let (cert, key) = pair?;
        Some(Identity {
            cert,
            key,
            client_ca: self.tls_client_ca.clone(),
        })
    }

    fn options(
        self,
        matches: &ArgMatches,
        queues: Option<(Vec<String>, AmqpOptions)>,
        (root, topics): (Option<String>, Option<Topics>),
        tls: Option<Identity>,
        mistakes: &mut Mistakes,
    ) -> Option<Options> {
        let workflows = self.workflows.as_ref().and_then(|who| {
            let checked = check_who(who);
            mistakes.keep(checked.map_err(|e| Error::usage(e).about("workflows")))?;
            Some(mistakes.keep(paths::state_dir())?.join(who))
        });
        let id = connection::random_id();
        let broker = self.connection.resolve_all(matches, id, mistakes);
        let events = self.events.clone().or_else(|| root.clone());
        let events = events.unwrap_or_default();
        if self.events.is_some() {
            let checked = check_name(&events);
            let wrong = |e| Error::usage(format!("use --events: {e}")).about("events");
            mistakes.keep(checked.map_err(wrong));
        }
        // Half a pair is a mistake of its own.
        let is_closed = self.token_file.is_some() || self.tls_cert.is_some() || tls.is_some();
        let open = self.listen.iter().find(|address| !address.is_local());
        if let Some(open) = open.filter(|_| !is_closed) {
            let cause = format!(
                "listen on {open}: that is open to others; give --token-file or --tls-cert"
            );
            mistakes.note(Error::usage(cause).about("listen"));
        }
        if self.control && self.token_file.is_none() {
            mistakes.note(Error::usage("--control needs --token-file").about("control"));
        }
        if self.need_listener && !self.no_page {
            let cause = "--need-listener: the page of this gateway is a subscriber of everything below the \
                         root: add --no-page";
            mistakes.note(Error::usage(cause).about("need-listener"));
        }
        // A service without a home still starts.
        let state = self.state.map_or_else(paths::state_dir, Ok);
        let state = state.unwrap_or_else(|_| paths::SERVICE_STATE.into());
        if !(MIN_TIMEOUT..=MAX_TIMEOUT).contains(&self.timeout) {
            mistakes.note(Error::usage("--timeout is 100ms to 5m").about("timeout"));
        }
        Some(Options {
            broker: broker?,
            listen: self.listen,
            token_file: self.token_file,
            tls,
            names: self.server_name,
            topics: topics?,
            rate: self.rate,
            timeout: self.timeout,
            need_listener: self.need_listener,
            root: root?,
            page: !self.no_page,
            scope: Scope { state, who: None },
            work: self.allow_work,
            sign: self.sign,
            control: self.control,
            queues,
            events,
            workflows,
        })
    }

    /// Returns the queues that callers may use and their broker, if one is named.
    fn queues(
        &self,
        matches: &ArgMatches,
        layers: &Layers,
        mistakes: &mut Mistakes,
    ) -> Option<(Vec<String>, AmqpOptions)> {
        let table = QueueTable::read(layers, mistakes);
        let Some(broker) = &table.broker else {
            if !self.allow_queue.is_empty() {
                let cause = "--allow-queue needs a broker of queues: set TAEL_QUEUE_BROKER, or broker \
                             below [queue]";
                mistakes.note(Error::usage(cause).about("allow-queue"));
            }
            return None;
        };
        for name in &self.allow_queue {
            let checked = queue::check_name(name);
            let wrong = |e| Error::usage(format!("use --allow-queue: {e}")).about("allow-queue");
            mistakes.keep(checked.map_err(wrong));
        }
        let login = self.queue.clone();
        let access = login.resolve(matches, &table, TlsFiles::default(), mistakes);
        // Each queue of the broker is reached alike.
        let url = broker.queue("queue").ok()?;
        mistakes.keep(queue_access::check(&access, &url));
        let name = format!("tael gateway {}@{}", host::username(), host::hostname());
        let options = AmqpOptions::of(&url, &access, name);
        Some((self.allow_queue.clone(), options))
    }
}
