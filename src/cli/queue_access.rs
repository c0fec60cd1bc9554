//! Options to log in at the brokers of work queues, and the `[queue]` table of a file.

use std::path::PathBuf;

use clap::{ArgMatches, Args};
use toml::Value;

use crate::cli::config::{Layer, Layers, QUEUE, texts};
use crate::cli::connection::{self, rank};
use crate::cli::mistakes::Mistakes;
use crate::error::{Error, Result};
use crate::model::near::nearest;
use crate::model::queue::{QueueBroker, QueueUrl};
use crate::model::text::printable;
use crate::net::options::{QueueAccess, Secret, TlsFiles};
use crate::net::password::Password;
use crate::net::tls;
use crate::os::paths;

/// Variable with the password for brokers of queues.
const PASSWORD: &str = "TAEL_QUEUE_PASSWORD";

/// Variable with the broker of queues that are only named.
const BROKER: &str = "TAEL_QUEUE_BROKER";

/// Maximum length of a user's name in a message, characters.
const MAX_USER: usize = 80;

/// Keys of the `[queue]` table, and what they mean.
pub const KEYS: &[(&str, &str)] = &[
    (
        "broker",
        "Broker and vhost of queues that are only named: amqp[s]://[user@]host[:port]/vhost",
    ),
    ("password-file", "File that holds the password"),
    (
        "cafile",
        "File of certificate authorities to trust with amqps, PEM",
    ),
    ("cert", "Our certificate for the broker, PEM"),
    ("key", "Key of our certificate, PEM"),
    (
        "management",
        "Address of the management API, for tael queue: http[s]://host:port",
    ),
];

/// Options to log in at the brokers of queues.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Queue")]
pub struct QueueLogin {
    /// File that holds the password for brokers of queues; or TAEL_QUEUE_PASSWORD
    #[arg(long, value_name = "FILE", global = true)]
    queue_password_file: Option<PathBuf>,
    /// Certificate authorities to trust with amqps, PEM [default: --cafile]
    #[arg(long, value_name = "FILE", global = true)]
    queue_cafile: Option<PathBuf>,
    /// Our certificate for brokers of queues, PEM
    #[arg(long, value_name = "FILE", global = true)]
    queue_cert: Option<PathBuf>,
    /// Key of that certificate, PEM
    #[arg(long, value_name = "FILE", global = true)]
    queue_key: Option<PathBuf>,
}

/// The `[queue]` table.
#[derive(Debug, Default)]
pub struct QueueTable<'a> {
    /// The file that has it.
    layer: Option<&'a Layer>,
    /// Broker of queues that are only named.
    pub broker: Option<QueueBroker>,
    password_file: Option<PathBuf>,
    cafile: Option<PathBuf>,
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
    /// Address of the management API.
    pub management: Option<String>,
}

impl<'a> QueueTable<'a> {
    /// Reads the table of the strongest file that has one; notes what is wrong with it.
    /// `TAEL_QUEUE_BROKER` replaces its broker.
    pub fn read(layers: &'a Layers, mistakes: &mut Mistakes) -> Self {
        let mut read = Self::of_file(layers, mistakes);
        // Crontabs and units unset a variable by making it empty.
        let broker = std::env::var(BROKER).ok().filter(|text| !text.is_empty());
        if let Some(text) = broker {
            let broker = QueueBroker::parse(&text);
            let broker = broker.map_err(|e| Error::usage(format!("{BROKER}: {e}")));
            read.broker = Some(mistakes.keep(broker).unwrap_or_default());
        }
        read
    }

    /// Reads the table of the strongest file that has one, without the environment.
    pub fn of_file(layers: &'a Layers, mistakes: &mut Mistakes) -> Self {
        let mut read = Self::default();
        let Some((layer, table)) = layers.queue() else {
            return read;
        };
        read.layer = Some(layer);
        for (key, value) in table {
            let mut wrong = |cause: String| mistakes.note(layer.wrong_at(&[QUEUE, key], cause));
            if !KEYS.iter().any(|(known, _)| known == key) {
                let known = || KEYS.iter().map(|(known, _)| *known);
                wrong(match nearest(key, known()) {
                    Some(near) => format!("unknown key '{key}'; did you mean '{near}'?"),
                    None => {
                        let known: Vec<&str> = known().collect();
                        format!("unknown key '{key}': [{QUEUE}] has {}", known.join(", "))
                    }
                });
                continue;
            }
            let text = match value {
                Value::String(_) => texts(value).map(|texts| texts.concat()),
                _ => None,
            };
            let Some(text) = text.filter(|text| !text.is_empty()) else {
                wrong(format!("'{key}' cannot be {value}"));
                continue;
            };
            match key.as_str() {
                // An empty one stands for the one that was meant: its queues are no mistakes.
                "broker" => {
                    let broker = QueueBroker::parse(&text).map_err(&mut wrong);
                    read.broker = Some(broker.unwrap_or_default());
                }
                "password-file" => read.password_file = Some(text.into()),
                "cafile" => read.cafile = Some(text.into()),
                "cert" => read.cert = Some(text.into()),
                "key" => read.key = Some(text.into()),
                _ => read.management = Some(text),
            }
        }
        read
    }

    /// Returns an error about `key`, which this table has.
    fn wrong(&self, key: &str, error: Error) -> Error {
        match self.layer {
            Some(layer) => layer.wrong_at(&[QUEUE, key], error),
            None => error,
        }
    }
}

impl QueueLogin {
    /// Returns how to log in, by the options and then by `table`; `ca` names the certificate
    /// authorities if neither does. Notes what is wrong.
    pub fn resolve(
        self,
        matches: &ArgMatches,
        table: &QueueTable<'_>,
        ca: TlsFiles,
        mistakes: &mut Mistakes,
    ) -> QueueAccess {
        let (password, password_of) = self.password(matches, table, mistakes);
        let own = self.queue_cert.is_some() || self.queue_key.is_some();
        let (cert, key) = match own {
            true => (self.queue_cert, self.queue_key),
            false => (table.cert.clone(), table.key.clone()),
        };
        let identity = match (cert, key) {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => None,
            (cert, _) if own => {
                let given = if cert.is_some() {
                    "queue-cert"
                } else {
                    "queue-key"
                };
                let cause = "--queue-cert and --queue-key go together: one is missing";
                mistakes.note(Error::usage(cause).about(given));
                None
            }
            (cert, _) => {
                let key = if cert.is_some() { "cert" } else { "key" };
                let cause = Error::config("'cert' and 'key' go together: one is missing");
                mistakes.note(table.wrong(key, cause));
                None
            }
        };
        let cafile = self.queue_cafile.or_else(|| table.cafile.clone());
        QueueAccess {
            username: table
                .broker
                .as_ref()
                .and_then(|broker| broker.username.clone()),
            password,
            password_of,
            tls: TlsFiles {
                capath: ca.capath.filter(|_| cafile.is_none()),
                cafile: cafile.or(ca.cafile),
                identity,
                ..TlsFiles::default()
            },
        }
    }

    /// Returns the password, if there is one, and whose it is if it is not for all users. Notes a file that
    /// cannot be read.
    fn password(
        &self,
        matches: &ArgMatches,
        table: &QueueTable<'_>,
        mistakes: &mut Mistakes,
    ) -> (Option<Password>, Option<String>) {
        let from_env = std::env::var(PASSWORD).ok();
        let from_env = from_env.filter(|password| !password.is_empty());
        let text = from_env.map(|password| Password::Text(Secret::new(password)));
        if rank(matches, "queue_password_file") < 2 && text.is_some() {
            return (text, None);
        }
        let owner = || {
            let broker = table.broker.as_ref();
            broker.and_then(|broker| broker.username.clone())
        };
        let (path, owner, is_of_table) = match (&self.queue_password_file, &table.password_file) {
            (Some(path), _) => (path.clone(), None, false),
            // The other brokers that a command line names must not learn it.
            (None, Some(path)) => (path.clone(), owner(), true),
            (None, None) => match paths::queue_credential() {
                Some(path) => (path, None, false),
                None => return (None, None),
            },
        };
        let password = Password::File(path.clone());
        // A file that cannot be read is reported now, not after the first reconnect.
        match password.reveal() {
            Ok(_) => connection::warn_of_open("password file", &path),
            Err(e) if is_of_table => mistakes.note(table.wrong("password-file", e)),
            Err(e) => mistakes.note(e.about("queue-password-file")),
        }
        (Some(password), owner)
    }
}

/// Checks that `access` does for the broker of `url`.
///
/// # Errors
/// When there is no user, no password, or a file for TLS is wrong (78).
pub fn check(access: &QueueAccess, url: &QueueUrl) -> Result<()> {
    let about = |cause: &str| Error::config(format!("log in at {}: {cause}", url.broker()));
    if url.tls {
        tls::client_config(&access.tls).map_err(|e| e.about_prefixed("queue-"))?;
        tls::server_name(&url.host).map_err(|e| about(&e))?;
    }
    let has_certificate = url.tls && access.tls.identity.is_some();
    match access.login(url) {
        _ if has_certificate => Ok(()),
        Some((_, Some(_))) => Ok(()),
        Some((user, None)) if access.password_of.is_some() => Err(about(&format!(
            "the password of [{QUEUE}] is that of user '{}', not of '{}': give TAEL_QUEUE_PASSWORD or \
             --queue-password-file",
            printable(access.password_of.as_deref().unwrap_or_default(), MAX_USER),
            printable(&user, MAX_USER)
        ))),
        Some((user, None)) => Err(about(&format!(
            "user '{}' has no password: give TAEL_QUEUE_PASSWORD or --queue-password-file",
            printable(&user, MAX_USER)
        ))),
        None => Err(about(
            "no user is named: write amqp://USER@HOST/VHOST/QUEUE",
        )),
    }
}
