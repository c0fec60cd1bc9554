//! The options that all commands share: the broker, the root, the log.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::parser::ValueSource;
use clap::{ArgAction, ArgMatches, Args, Command};
use tracing::warn;

use crate::cli::mistakes::Mistakes;
use crate::cli::values::one_of;
use crate::error::{Error, Kind, Result};
use crate::model::message::Qos;
use crate::model::roots::Content;
use crate::model::topic::{self, DEFAULT_ROOT};
use crate::model::url::plain_host;
use crate::model::{duration, text};
use crate::net::options::{
    BrokerOptions, BrokerUrl, Endpoint, KEEP_ALIVE, MAX_KEEP_ALIVE, MIN_KEEP_ALIVE, PORT, Secret,
    TLS_PORT, TlsFiles, parse_brokers,
};
use crate::net::password::Password;
use crate::net::tls;
use crate::os::host;
use crate::os::logging::Target;
use crate::os::paths;
use crate::tools::roots;

/// Targets of log lines.
pub const TARGETS: &[&str] = &["auto", "journald", "stderr", "none"];

/// Options that all commands share, by their long names. They are `TAEL_<NAME>` in the environment;
/// options of one command are `TAEL_<COMMAND>_<NAME>`.
pub const SHARED: &[&str] = &[
    "host",
    "port",
    "broker",
    "cluster",
    "username",
    "password-file",
    "password",
    "cafile",
    "capath",
    "tls-alpn",
    "tls-server-name",
    "cert",
    "key",
    "id",
    "keepalive",
    "qos",
    "root",
    "mqtt-env",
    "config",
    "log",
];

/// Returns whether a file may hold `key` as a shared option.
pub fn is_shared(key: &str) -> bool {
    // Commands with one identifier would take the session from each other.
    SHARED.contains(&key) && !["config", "password", "id"].contains(&key)
}

/// Returns the shared options that a file may hold.
pub fn shared() -> impl Iterator<Item = &'static str> {
    SHARED.iter().copied().filter(|key| is_shared(key))
}

/// Returns the environment variable of option `long` of `tool`, if it has one.
pub fn variable(tool: &str, long: &str) -> Option<String> {
    let name = match long {
        // TAEL_LOG is the level.
        "log" => "TAEL_LOG_TARGET".to_owned(),
        // Read separately, to know whether it shows in ps.
        "password" | "help" | "version" => return None,
        // They ask for another job, this once.
        "check" | "connect" | "dry-run" | "message" | "message-topic" | "message-property"
        | "message-retained" => return None,
        // Pairs of values do not fit into a variable.
        "attr" => return None,
        // Those of queues mean the same to the client and to tael queue.
        long if SHARED.contains(&long) || long.starts_with("queue-") => format!("TAEL_{long}"),
        long => format!("TAEL_{tool}_{long}"),
    };
    Some(name.to_uppercase().replace('-', "_"))
}

/// Gives every option its environment variable.
pub fn with_environment(command: Command, tool: &str) -> Command {
    command.mut_args(|arg| {
        let Some(name) = arg.get_long().and_then(|long| variable(tool, long)) else {
            return arg;
        };
        match arg.get_action() {
            ArgAction::Set | ArgAction::SetTrue | ArgAction::Append => {
                arg.env(name).hide_env_values(true)
            }
            _ => arg,
        }
    })
}

/// Options that name the broker, and us to the broker.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Broker")]
pub struct Connection {
    /// Name or address of the broker
    #[arg(short = 'H', long, default_value = "localhost")]
    host: String,
    /// Port of the broker [default: 1883; 8883 with TLS]
    #[arg(short, long)]
    port: Option<u16>,
    /// Broker: [mqtt[s]://][user@]host[:port], or several of a cluster: a,b
    #[arg(long, value_parser = broker_urls, value_name = "URL")]
    broker: Option<String>,
    /// The brokers of --broker are one cluster, which shares the sessions of its clients
    #[arg(long)]
    cluster: bool,
    /// User name at the broker
    #[arg(short, long)]
    username: Option<String>,
    /// File that holds the password
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// Password; other users see it in ps: prefer --password-file or TAEL_PASSWORD
    #[arg(short = 'P', long, value_name = "PASSWORD")]
    password: Option<String>,
    /// File of certificate authorities to trust, PEM; turns TLS on
    #[arg(long, value_name = "FILE")]
    cafile: Option<PathBuf>,
    /// Folder of certificate authorities to trust, PEM; turns TLS on
    #[arg(long, value_name = "FOLDER")]
    capath: Option<PathBuf>,
    /// Protocols to offer in the TLS handshake (ALPN), such as mqtt; turns TLS on
    #[arg(long, value_name = "PROTOCOL")]
    tls_alpn: Option<String>,
    /// Name in the certificate of the broker [default: the host]; turns TLS on
    #[arg(long, value_name = "NAME")]
    tls_server_name: Option<String>,
    /// Our certificate for the broker, PEM; turns TLS on
    #[arg(long, value_name = "FILE")]
    cert: Option<PathBuf>,
    /// Key of our certificate, PEM
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// MQTT client identifier [default: one of its own]
    #[arg(short, long)]
    id: Option<String>,
    /// Keep-alive interval, 5s to 65535s
    #[arg(short, long, value_parser = duration::parse, value_name = "DURATION", default_value = "60s")]
    keepalive: Duration,
    /// Configuration file
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Target of log lines: auto, journald, stderr or none; TAEL_LOG sets the level
    #[arg(long, value_parser = one_of(Target::parse, TARGETS), value_name = "TARGET", default_value = "auto")]
    log: Target,
}

/// Returns how strong the source of an option is: a flag, the environment, or a file.
pub fn rank(matches: &ArgMatches, id: &str) -> u8 {
    match matches.value_source(id) {
        Some(ValueSource::CommandLine) => 2,
        Some(ValueSource::EnvVariable) => 1,
        _ => 0,
    }
}

impl Connection {
    /// Checks the options; `default_id` is the client identifier if none is given.
    ///
    /// # Errors
    /// The first mistake: 64 for wrong options, 78 for a password or certificate that cannot be
    /// read.
    pub fn resolve(self, matches: &ArgMatches, default_id: String) -> Result<BrokerOptions> {
        let mut mistakes = Mistakes::default();
        let options = self.resolve_all(matches, default_id, &mut mistakes);
        mistakes.or_first(options)
    }

    /// Checks the options, and notes every mistake.
    pub fn resolve_all(
        self,
        matches: &ArgMatches,
        default_id: String,
        mistakes: &mut Mistakes,
    ) -> Option<BrokerOptions> {
        if !(MIN_KEEP_ALIVE..=MAX_KEEP_ALIVE).contains(&self.keepalive) {
            let cause = format!(
                "a keep-alive of {} is out of range: {}s to {}s",
                duration::text(self.keepalive),
                MIN_KEEP_ALIVE.as_secs(),
                MAX_KEEP_ALIVE.as_secs()
            );
            mistakes.note(Error::usage(cause).about("keepalive"));
        }
        let flags = ["host", "port"].map(|id| rank(matches, id) == 2);
        if rank(matches, "broker") == 2 && flags.contains(&true) {
            mistakes.note(Error::usage(
                "--broker goes without --host and --port: it names both",
            ));
        }
        let urls = match &self.broker {
            // A flag is stronger than a URL from the environment or a file.
            Some(_) if rank(matches, "host") > rank(matches, "broker") => None,
            Some(text) => {
                let from = match rank(matches, "broker") {
                    1 => "TAEL_BROKER: ",
                    _ => "",
                };
                let wrong = |e| Error::usage(format!("{from}{e}"));
                mistakes.keep(parse_brokers(text).map_err(wrong))
            }
            None => None,
        };
        let mut urls = urls.unwrap_or_default().into_iter();
        let (url, others) = (urls.next(), urls);
        let password = mistakes.keep(self.password(matches)).flatten();
        let identity = match (self.cert, self.key) {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => None,
            (cert, _) => {
                mistakes.note(half_of_a_pair(cert.is_some()));
                None
            }
        };
        let files = TlsFiles {
            cafile: self.cafile,
            capath: self.capath,
            identity,
            alpn: mistakes
                .keep(alpn(self.tls_alpn.as_deref()))
                .unwrap_or_default(),
            server_name: self.tls_server_name,
        };
        let tls = files != TlsFiles::default() || url.as_ref().is_some_and(|url| url.tls);
        let own_port = |url: &BrokerUrl| match rank(matches, "port") <= rank(matches, "broker") {
            true => url.port,
            false => self.port,
        };
        let port = url.as_ref().map_or(self.port, own_port);
        let usual = if tls { TLS_PORT } else { PORT };
        let others: Vec<Endpoint> = others
            .map(|url| (url.host.clone(), own_port(&url).unwrap_or(usual)))
            .collect();
        if port == Some(0) {
            mistakes.note(Error::usage("port 0 is not a port: 1 to 65535").about("port"));
        }
        let id = self.id.unwrap_or(default_id);
        if id.is_empty() || id.len() > 1024 || id.contains(char::is_control) {
            mistakes.note(Error::usage(
                "the client identifier has 1 to 1024 bytes and no control characters",
            ));
        }
        let named = url.is_some();
        let options = BrokerOptions {
            host: url
                .as_ref()
                .map_or_else(|| plain_host(&self.host), |url| url.host.clone()),
            port: port.unwrap_or(usual),
            others,
            tls: tls.then_some(files),
            username: self.username.or_else(|| url.and_then(|url| url.username)),
            password,
            client_id: id,
            keep_alive: self.keepalive,
        };
        let named = if named { "broker" } else { "host" };
        for turn in 0..options.count() {
            mistakes.keep(check_host(options.at(turn).0).map_err(|e| e.about(named)));
        }
        if let Some(files) = &options.tls {
            // Wrong files are reported now, not after the first reconnect.
            mistakes.keep(tls::client_config(files));
            for turn in 0..options.count() {
                let name = files.server_name.as_deref().unwrap_or(options.at(turn).0);
                let option = files
                    .server_name
                    .as_ref()
                    .map_or(named, |_| "tls-server-name");
                let checked = tls::server_name(name);
                mistakes.keep(checked.map_err(|e| Error::usage(e).about(option)));
            }
        }
        Some(options)
    }

    /// Refuses several brokers for a client whose messages wait in a session at the broker, unless the
    /// operator says that they share it: each would keep a part of the messages.
    ///
    /// # Errors
    /// 64, or 78 if a file names the brokers.
    pub fn check_session(&self, matches: &ArgMatches) -> Result<()> {
        let several = self.broker.as_ref().is_some_and(|text| text.contains(','));
        let used = rank(matches, "host") <= rank(matches, "broker");
        if !several || !used || self.cluster {
            return Ok(());
        }
        let kind = match rank(matches, "broker") {
            0 => Kind::Config,
            _ => Kind::Usage,
        };
        let cause = "several brokers would split the session of this client: each would keep a part \
                     of the messages; name one, or add --cluster if they share sessions";
        Err(Error::new(kind, cause).about("broker"))
    }

    /// Returns a broker that is never asked.
    pub fn unused() -> BrokerOptions {
        BrokerOptions {
            host: String::new(),
            port: PORT,
            others: Vec::new(),
            tls: None,
            username: None,
            password: None,
            client_id: String::new(),
            keep_alive: KEEP_ALIVE,
        }
    }

    /// Returns the certificate authorities to trust.
    pub fn authorities(&self) -> TlsFiles {
        TlsFiles {
            cafile: self.cafile.clone(),
            capath: self.capath.clone(),
            ..TlsFiles::default()
        }
    }

    /// Returns whether the operator has chosen the client identifier.
    pub const fn has_id(&self) -> bool {
        self.id.is_some()
    }

    fn password(&self, matches: &ArgMatches) -> Result<Option<Password>> {
        if let Some(password) = &self.password {
            warn!("other users see a password on the command line in ps: use --password-file");
            return Ok(Some(Password::Text(Secret::new(password))));
        }
        // Crontabs and units unset a variable by making it empty.
        let from_env = std::env::var("TAEL_PASSWORD").ok();
        let from_env = from_env.filter(|password| !password.is_empty());
        let text = from_env.map(|password| Password::Text(Secret::new(password)));
        let file = self.password_file.clone();
        let credential = || paths::credential_password().map(Password::File);
        let file = file.map(Password::File);
        let password = if rank(matches, "password_file") == 2 {
            file
        } else {
            text.or(file).or_else(credential)
        };
        if let Some(password @ Password::File(path)) = &password {
            // A file that cannot be read is reported now, not after the first reconnect.
            password.reveal().map_err(|e| match &self.password_file {
                Some(file) if file == path => e.about("password-file"),
                _ => e,
            })?;
            warn_of_open("password file", path);
        }
        Ok(password)
    }
}

/// Returns the error of a certificate without a key, or of a key without a certificate.
pub fn half_of_a_pair(is_cert: bool) -> Error {
    let given = if is_cert { "cert" } else { "key" };
    Error::usage("--cert and --key go together: one is missing").about(given)
}

/// Checks that `host` is the name or address of a host, and nothing more.
fn check_host(host: &str) -> Result<()> {
    let odd = |c: char| c.is_control() || c.is_whitespace() || c == '/';
    // An address of version 6 has several colons.
    let hint = match host {
        _ if host.contains("://") => "; a URL goes with --broker",
        _ if host.is_empty() || host.contains(odd) => "",
        _ if host.matches(':').count() == 1 => ": the port goes with -p",
        _ => return Ok(()),
    };
    let host = text::printable(host, 80);
    Err(Error::usage(format!("'{host}' is not a host{hint}")))
}

/// Returns the protocols that `--tls-alpn` names, separated by commas (RFC 7301: 1 to 255 bytes each).
fn alpn(text: Option<&str>) -> Result<Vec<String>> {
    let names: Vec<String> = text
        .map(|text| text.split(',').map(str::to_owned).collect())
        .unwrap_or_default();
    match names.iter().find(|name| !(1..=255).contains(&name.len())) {
        Some(_) => Err(Error::usage(
            "--tls-alpn takes names of 1 to 255 bytes, separated by commas",
        )
        .about("tls-alpn")),
        None => Ok(names),
    }
}

/// Returns a client identifier that no other client has.
pub fn random_id() -> String {
    format!("tael-{}", host::new_id())
}

/// Warns of a file with secrets that others may read.
pub fn warn_of_open(what: &str, path: &Path) {
    let mode = fs::metadata(path).map(|meta| meta.permissions().mode());
    if mode.is_ok_and(|mode| mode & 0o007 != 0) {
        warn!(
            "every user can read {what} {}: chmod 600 it",
            path.display()
        );
    }
}

/// The first levels of Tael's own topics.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Broker")]
pub struct Root {
    /// First levels of Tael's own topics; also --mqtt-env
    #[arg(long, visible_alias = "mqtt-env", value_name = "TOPIC")]
    pub root: Option<String>,
}

impl Root {
    /// Checks the root if one is given; otherwise looks for the one below which `content` is, for
    /// `limit` at most.
    ///
    /// # Errors
    /// 64 for a wrong root, or when several fit; 69 and 77 when the broker does not answer.
    pub fn find(
        self,
        broker: &BrokerOptions,
        content: &Content,
        limit: Duration,
    ) -> Result<String> {
        match self.root {
            Some(_) => self.resolve(),
            None => roots::resolve(broker, content, limit),
        }
    }

    /// Checks the root, and returns it; `tael` by default.
    pub fn resolve(self) -> Result<String> {
        let root = self.root.unwrap_or_else(|| DEFAULT_ROOT.into());
        topic::check_root(&root).map_err(|e| Error::usage(e).about("root"))?;
        Ok(root)
    }
}

/// The levels of quality of service.
pub const QOS: &[&str] = &["0", "1", "2"];

/// Checks the addresses of brokers.
fn broker_urls(text: &str) -> Result<String, String> {
    parse_brokers(text).map(|_| text.to_owned())
}

/// Parses a QoS.
pub fn qos(text: &str) -> Result<Qos, String> {
    text.parse()
        .ok()
        .and_then(Qos::from_number)
        .ok_or_else(|| format!("'{text}' is not a QoS: 0, 1 or 2"))
}

const _: () = assert!(KEEP_ALIVE.as_secs() == 60, "the default in the help");
