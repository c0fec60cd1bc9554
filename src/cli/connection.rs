//! The options that all commands share: the broker, the root, the log.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::parser::ValueSource;
use clap::{ArgAction, ArgMatches, Args, Command};
use tracing::warn;

use crate::error::{Error, Result};
use crate::model::message::Qos;
use crate::model::topic::{self, DEFAULT_ROOT};
use crate::model::{duration, text};
use crate::net::options::{
    BrokerOptions, KEEP_ALIVE, MAX_KEEP_ALIVE, MIN_KEEP_ALIVE, PORT, Secret, TLS_PORT, TlsFiles,
    parse_url, plain_host,
};
use crate::net::password::Password;
use crate::net::tls;
use crate::os::host;
use crate::os::logging::Target;
use crate::os::paths;

/// Options that all commands share, by their long names; they are `TAEL_<NAME>` in the
/// environment, where one command's are `TAEL_<COMMAND>_<NAME>`.
const SHARED: &[&str] = &[
    "host",
    "port",
    "broker",
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

/// Whether `key` names a shared option.
pub fn is_shared(key: &str) -> bool {
    // One identifier for several commands would have them take each other's session over.
    SHARED.contains(&key) && !["config", "password", "id"].contains(&key)
}

/// Gives every option its environment variable.
pub fn with_environment(command: Command, tool: &str) -> Command {
    command.mut_args(|arg| {
        let Some(long) = arg.get_long() else {
            return arg;
        };
        let name = match long {
            // `--log` has a variable of its own: TAEL_LOG is the level.
            "log" => "TAEL_LOG_TARGET".to_owned(),
            // Read apart, so that it is known whether it shows in ps.
            "password" | "help" | "version" => return arg,
            // Pairs of values do not fit into a variable.
            "attr" => return arg,
            long if SHARED.contains(&long) => format!("TAEL_{long}"),
            long => format!("TAEL_{tool}_{long}"),
        };
        let name = name.to_uppercase().replace('-', "_");
        match arg.get_action() {
            ArgAction::Set | ArgAction::SetTrue | ArgAction::Append => {
                arg.env(name).hide_env_values(true)
            }
            _ => arg,
        }
    })
}

/// Warns of variables that look like options of `tool` and are none: in a crontab the
/// environment is the configuration.
pub fn warn_of_variables(tool: &str, command: fn() -> Command) {
    let prefix = format!("TAEL_{}_", tool.to_uppercase());
    let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    let names: Vec<String> = names.filter(|name| name.starts_with(&prefix)).collect();
    if names.is_empty() {
        return;
    }
    let command = command();
    for name in names {
        let known = |arg: &clap::Arg| arg.get_env().is_some_and(|env| env == name.as_str());
        if !command.get_arguments().any(known) {
            let name = text::printable(&name, 80);
            warn!("{name} is in the environment, and no option of tael {tool} is called so");
        }
    }
}

/// The broker and who we are to it.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Broker")]
pub struct Connection {
    /// Name or address of the broker
    #[arg(short = 'H', long, default_value = "localhost")]
    host: String,
    /// Port of the broker [default: 1883; 8883 with TLS]
    #[arg(short, long)]
    port: Option<u16>,
    /// The broker as mqtt[s]://[user@]host[:port]
    #[arg(long, value_name = "URL")]
    broker: Option<String>,
    /// User name at the broker
    #[arg(short, long)]
    username: Option<String>,
    /// File that holds the password
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// Password; shows in ps, so better a file or TAEL_PASSWORD
    #[arg(short = 'P', long, value_name = "PASSWORD")]
    password: Option<String>,
    /// Certificate authorities to trust, PEM; turns TLS on
    #[arg(long, value_name = "FILE")]
    cafile: Option<PathBuf>,
    /// Folder of certificate authorities to trust, PEM; turns TLS on
    #[arg(long, value_name = "FOLDER")]
    capath: Option<PathBuf>,
    /// Protocol to name to the broker's TLS (ALPN), for example mqtt; turns TLS on
    #[arg(long, value_name = "PROTOCOL")]
    tls_alpn: Option<String>,
    /// Name that the broker's certificate must be for [default: the host]; turns TLS on
    #[arg(long, value_name = "NAME")]
    tls_server_name: Option<String>,
    /// Our certificate, PEM; turns TLS on
    #[arg(long, value_name = "FILE")]
    cert: Option<PathBuf>,
    /// The key of our certificate, PEM
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// Client identifier [default: one that fits]
    #[arg(short, long)]
    id: Option<String>,
    /// Keep-alive, 5 s to 65535 s
    #[arg(short, long, value_parser = duration::parse, value_name = "DURATION", default_value = "60s")]
    keepalive: Duration,
    /// Configuration file
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where log lines go: auto, journald, stderr or none; levels by TAEL_LOG
    #[arg(long, value_parser = Target::parse, value_name = "TARGET", default_value = "auto")]
    log: Target,
}

/// How strongly an option was asked for: by a flag, by the environment, or by a file.
fn rank(matches: &ArgMatches, id: &str) -> u8 {
    match matches.value_source(id) {
        Some(ValueSource::CommandLine) => 2,
        Some(ValueSource::EnvVariable) => 1,
        _ => 0,
    }
}

impl Connection {
    /// Checks the options; `default_id` is the client identifier when none
    /// is given.
    ///
    /// # Errors
    /// 64 for options that are wrong, 78 for a password that cannot be had.
    pub fn resolve(self, matches: &ArgMatches, default_id: String) -> Result<BrokerOptions> {
        if !(MIN_KEEP_ALIVE..=MAX_KEEP_ALIVE).contains(&self.keepalive) {
            return Err(Error::usage(format!(
                "keep-alive of {} s is out of range: {} s to {} s",
                self.keepalive.as_secs_f32(),
                MIN_KEEP_ALIVE.as_secs(),
                MAX_KEEP_ALIVE.as_secs()
            )));
        }
        let flags = ["host", "port"].map(|id| rank(matches, id) == 2);
        if rank(matches, "broker") == 2 && flags.contains(&true) {
            return Err(Error::usage(
                "--broker goes without --host and --port: it names both",
            ));
        }
        let url = match &self.broker {
            // A flag is stronger than a URL from the environment or a file.
            Some(_) if rank(matches, "host") > rank(matches, "broker") => None,
            Some(url) => Some(parse_url(url).map_err(Error::usage)?),
            None => None,
        };
        let password = self.password(matches)?;
        let identity = match (self.cert, self.key) {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => None,
            _ => return Err(Error::usage("--cert and --key go together: one is missing")),
        };
        let files = TlsFiles {
            cafile: self.cafile,
            capath: self.capath,
            identity,
            alpn: alpn(self.tls_alpn.as_deref())?,
            server_name: self.tls_server_name,
        };
        let tls = files != TlsFiles::default() || url.as_ref().is_some_and(|url| url.tls);
        let port = match &url {
            Some(url) if rank(matches, "port") <= rank(matches, "broker") => url.port,
            _ => self.port,
        };
        if port == Some(0) {
            return Err(Error::usage("port 0 is no port: 1 to 65535"));
        }
        let id = self.id.unwrap_or(default_id);
        if id.is_empty() || id.len() > 1024 || id.contains(char::is_control) {
            return Err(Error::usage(
                "the client identifier has 1 to 1024 bytes and no control characters",
            ));
        }
        let options = BrokerOptions {
            host: url
                .as_ref()
                .map_or_else(|| plain_host(&self.host), |url| url.host.clone()),
            port: port.unwrap_or(if tls { TLS_PORT } else { PORT }),
            tls: tls.then_some(files),
            username: self.username.or_else(|| url.and_then(|url| url.username)),
            password,
            client_id: id,
            keep_alive: self.keepalive,
        };
        let odd = |c: char| c.is_control() || c.is_whitespace() || c == '/';
        if options.host.is_empty() || options.host.contains(odd) {
            let hint = match options.host.contains("://") {
                true => "; a URL goes with --broker",
                false => "",
            };
            return Err(Error::usage(format!(
                "'{}' is no host{hint}",
                text::printable(&options.host, 80)
            )));
        }
        // An address of version 6 has several.
        if options.host.matches(':').count() == 1 {
            return Err(Error::usage(format!(
                "'{}' is no host: the port goes with -p",
                text::printable(&options.host, 80)
            )));
        }
        if let Some(files) = &options.tls {
            // Wrong files are told now, not after the first reconnect.
            tls::client_config(files)?;
            let name = files.server_name.as_deref().unwrap_or(&options.host);
            tls::server_name(name).map_err(Error::usage)?;
        }
        Ok(options)
    }

    /// Whether the client identifier is given.
    pub const fn has_id(&self) -> bool {
        self.id.is_some()
    }

    fn password(&self, matches: &ArgMatches) -> Result<Option<Password>> {
        if let Some(password) = &self.password {
            warn!("a password on the command line shows in ps: use --password-file");
            return Ok(Some(Password::Text(Secret::new(password))));
        }
        // An empty variable is how a crontab or a unit unsets one.
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
            // A file that cannot be read is told now, not after the first reconnect.
            password.reveal()?;
            warn_of_open("password file", path);
        }
        Ok(password)
    }
}

/// The protocols that `--tls-alpn` names, separated by commas (RFC 7301: 1 to 255 bytes each).
fn alpn(text: Option<&str>) -> Result<Vec<String>> {
    let names: Vec<String> = text
        .map(|text| text.split(',').map(str::to_owned).collect())
        .unwrap_or_default();
    match names.iter().find(|name| !(1..=255).contains(&name.len())) {
        Some(_) => Err(Error::usage(
            "--tls-alpn takes names of 1 to 255 bytes, separated by commas",
        )),
        None => Ok(names),
    }
}

/// A client identifier that nobody else has.
pub fn random_id() -> String {
    format!("tael-{}", host::new_id())
}

/// Warns of a file with secrets that others may read.
pub fn warn_of_open(what: &str, path: &Path) {
    let mode = fs::metadata(path).map(|meta| meta.permissions().mode());
    if mode.is_ok_and(|mode| mode & 0o007 != 0) {
        warn!(
            "{what} {} is open to everybody: chmod 600 it",
            path.display()
        );
    }
}

/// The first topic level that everything lives under.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Broker")]
pub struct Root {
    /// Root of Tael's topics; --mqtt-env is the same
    #[arg(long, visible_alias = "mqtt-env", value_name = "TOPIC")]
    pub root: Option<String>,
}

impl Root {
    /// The root, checked; `tael` if there is none.
    pub fn resolve(self) -> Result<String> {
        let root = self.root.unwrap_or_else(|| DEFAULT_ROOT.into());
        topic::check_root(&root).map_err(Error::usage)?;
        Ok(root)
    }
}

/// Parses a QoS.
pub fn qos(text: &str) -> Result<Qos, String> {
    text.parse()
        .ok()
        .and_then(Qos::from_number)
        .ok_or_else(|| format!("'{text}' is no QoS: 0, 1 or 2"))
}

const _: () = assert!(KEEP_ALIVE.as_secs() == 60, "the default in the help");
