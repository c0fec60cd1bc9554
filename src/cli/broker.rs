//! The command lines of `tael broker` and `tael demo`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{ArgMatches, Args};
use tracing::warn;

use crate::cli::Tool;
use crate::cli::config::Layers;
use crate::cli::connection;
use crate::cli::help::Page;
use crate::cli::values::one_of;
use crate::error::{Error, Result};
use crate::model::text::BOM;
use crate::net::broker::{MAX_PACKET, Options};
use crate::net::options::{Secret, TlsFiles};
use crate::os::logging::Target;
use crate::os::process;
use crate::tools::{broker, demo};

/// Number of descriptors that a broker requests from the system.
const MAX_DESCRIPTORS: u64 = 16_384;

/// Smallest `--max-packet`, bytes: room for Tael's own messages.
const MIN_MAX_PACKET: u32 = 64 * 1024;

/// Largest `--max-packet`, bytes (MQTT 5.0, section 2.1.4).
const MAX_MAX_PACKET: u32 = 268_435_455;

/// Options of `tael broker`.
#[derive(Debug, Args)]
pub struct Broker {
    /// Address to listen on; port 0 selects a free one
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = address, default_value = "127.0.0.1:1883")]
    listen: SocketAddr,
    /// Folder for sessions and messages [default: memory, lost when the broker ends]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// File of USER:PASSWORD lines [default: every client may connect]
    #[arg(long, value_name = "FILE")]
    users: Option<PathBuf>,
    /// Certificate of the broker, PEM; turns TLS on
    #[arg(long, value_name = "FILE")]
    cert: Option<PathBuf>,
    /// Key of the certificate, PEM
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// Authorities that must have signed the certificates of clients, PEM
    #[arg(long, value_name = "FILE")]
    cafile: Option<PathBuf>,
    /// Maximum size of a packet, bytes
    #[arg(long, value_name = "BYTES", default_value_t = MAX_PACKET)]
    max_packet: u32,
    /// Print the URL of the broker when it accepts connections
    #[arg(long)]
    print_url: bool,
    /// Configuration file
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Target of log lines: auto, journald, stderr or none; TAEL_LOG sets the level
    #[arg(long, value_parser = one_of(Target::parse, connection::TARGETS), value_name = "TARGET", default_value = "auto")]
    log: Target,
}

impl Tool for Broker {
    const NAME: &'static str = "broker";
    const ABOUT: &'static str = "Run an MQTT broker for this machine";

    const HELP: Page = Page {
        first: &[],
        groups: &[],
        examples: &[
            "tael broker",
            "tael broker --data ~/broker --listen 127.0.0.1:1884",
        ],
    };

    const DAEMON: bool = true;

    fn run(self, _: &ArgMatches, _: &Layers) -> Result<ExitCode> {
        let identity = match (self.cert, self.key) {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => None,
            (cert, _) => return Err(connection::half_of_a_pair(cert.is_some())),
        };
        if self.cafile.is_some() && identity.is_none() {
            return Err(Error::usage("--cafile needs --cert and --key").about("cafile"));
        }
        let users = match &self.users {
            None => Vec::new(),
            Some(path) => {
                let text = std::fs::read_to_string(path).map_err(|e| {
                    Error::config(format!("read users from {}: {e}", path.display())).about("users")
                })?;
                connection::warn_of_open("users file", path);
                users(&text).map_err(|cause| {
                    Error::config(format!("read users from {}: {cause}", path.display()))
                })?
            }
        };
        let is_open = users.is_empty()
            && self.cafile.is_none()
            && !self.listen.ip().to_canonical().is_loopback();
        if is_open && identity.is_none() {
            let cause = format!(
                "listen on {}: that is open to others; give --users, or --cert, --key and --cafile",
                self.listen
            );
            return Err(Error::usage(cause).about("listen"));
        }
        if !(MIN_MAX_PACKET..=MAX_MAX_PACKET).contains(&self.max_packet) {
            let cause = format!("--max-packet has {MIN_MAX_PACKET} to {MAX_MAX_PACKET} bytes");
            return Err(Error::usage(cause).about("max-packet"));
        }
        let options = Options {
            listen: self.listen,
            data: self.data,
            users,
            tls: identity.map(|identity| TlsFiles {
                cafile: self.cafile,
                identity: Some(identity),
                ..TlsFiles::default()
            }),
            max_packet: self.max_packet,
            descriptors: process::raise_descriptor_limit(MAX_DESCRIPTORS),
        };
        if is_open {
            warn!(
                "listening on {} without --users and --cafile: all who reach it may connect",
                options.listen
            );
        }
        broker::run(options, self.print_url)
    }
}

fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse()
        .map_err(|_| format!("'{text}' is not an address with a port, such as 127.0.0.1:1883"))
}

fn users(text: &str) -> Result<Vec<(String, Secret)>, String> {
    let mut users = Vec::new();
    let text = text.strip_prefix(BOM).unwrap_or(text);
    for (n, line) in text.lines().enumerate() {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        match line.split_once(':') {
            Some((user, _)) if user.trim() != user => {
                return Err(format!("line {} has blanks around its user", n + 1));
            }
            Some((user, password)) if !user.is_empty() && !password.is_empty() => {
                users.push((user.to_owned(), Secret::new(password)));
            }
            _ => return Err(format!("line {} is not USER:PASSWORD", n + 1)),
        }
    }
    if users.is_empty() {
        return Err("it contains no user".into());
    }
    Ok(users)
}

/// Options of `tael demo`.
#[derive(Debug, Args)]
pub struct Demo {}

impl Tool for Demo {
    const NAME: &'static str = "demo";
    const ABOUT: &'static str = "Show two chained pipelines on a broker of their own";

    fn run(self, _: &ArgMatches, _: &Layers) -> Result<ExitCode> {
        demo::run()
    }
}
