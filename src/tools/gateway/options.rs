//! Options of the gateway, and what the files hold that they name.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tracing::warn;

use crate::error::{Error, Result};
use crate::model::certificate;
use crate::model::gateway::callers::Tokens;
use crate::model::gateway::routes::Routes;
use crate::model::gateway::topics::Topics;
use crate::model::gateway::work::Kind;
use crate::net::amqp::AmqpOptions;
use crate::net::http::{Address, Identity, Tls};
use crate::net::options::BrokerOptions;
use crate::tools::gateway::tokens;
use crate::tools::work::Scope;

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
    /// Queues that callers may put messages in, and their broker.
    pub queues: Option<(Vec<String>, AmqpOptions)>,
    /// Topic below which events of XML-RPC are published.
    pub events: String,
    /// Folder of the client whose runs XML-RPC reports.
    pub workflows: Option<PathBuf>,
}

impl Options {
    /// Returns an address that others reach, if no caller has to show who it is.
    #[must_use]
    pub fn open_to_all(&self) -> Option<&Address> {
        let is_known = self.token_file.is_some()
            || self.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some());
        let mut open = self.listen.iter().filter(|_| !is_known);
        open.find(|address| !address.is_local())
    }
}

/// What the files hold that the options name.
#[derive(Debug)]
pub struct Contents {
    /// Tokens of callers; `None` if they need none.
    pub tokens: Result<Option<Tokens>>,
    /// Our TLS; `None` without it.
    pub tls: Result<Option<Tls>>,
    /// Routes of the configuration file, or all mistakes in them.
    pub routes: Result<Routes, Vec<Error>>,
}

impl Contents {
    /// Reads the files.
    #[must_use]
    pub fn read(
        token_file: Option<&Path>,
        tls: Option<&Identity>,
        routes: Result<Routes, Vec<Error>>,
    ) -> Self {
        Self {
            tokens: token_file.map(tokens::read).transpose(),
            tls: tls.map(read_tls).transpose(),
            routes,
        }
    }

    /// Returns everything that is wrong with them.
    #[must_use]
    pub fn mistakes(&self) -> Vec<Error> {
        let tokens = self.tokens.as_ref().err();
        let tls = self.tls.as_ref().err();
        let routes = self.routes.as_ref().err().into_iter().flatten();
        let all = tokens.into_iter().chain(tls).chain(routes);
        all.cloned().collect()
    }
}

/// Reads our certificate and key, and warns if the certificate ends soon.
///
/// # Errors
/// When a file is missing or wrong, or they do not fit (78).
pub fn read_tls(files: &Identity) -> Result<Tls> {
    let tls = Tls::read(files)?;
    let now = Timestamp::now().as_second();
    let ending = tls
        .not_after()
        .and_then(|end| certificate::ending(end, now));
    if let Some(said) = ending {
        warn!("certificate {} {said}", files.cert.display());
    }
    Ok(tls)
}

/// Reads the options and the files again, for a reload.
#[derive(Clone)]
pub struct Reread(pub Arc<dyn Fn() -> Result<(Options, Contents)> + Send + Sync>);

impl fmt::Debug for Reread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reread")
    }
}
