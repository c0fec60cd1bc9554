//! Takes over a configuration that has changed while the gateway runs.

use tokio::sync::watch;
use tracing::{error, info, warn};

use crate::error::{Error, Result};
use crate::model::gateway::callers::Tokens;
use crate::model::gateway::rate::Rate;
use crate::model::gateway::routes::Routes;
use crate::net::http::{Identity, Tls};
use crate::tools::gateway::options::{Contents, Options, Reread, read_tls};
use crate::tools::gateway::policy::Policy;
use crate::tools::gateway::routes::Gateway;

/// Returns the names by which callers reach us: those of the listeners, and those of the `options`.
#[must_use]
pub fn names(own: &[String], options: &Options) -> Vec<String> {
    let given = options.names.iter().map(|name| name.to_ascii_lowercase());
    own.iter().cloned().chain(given).collect()
}

/// Returns the queues that callers may use, if there is a broker of queues.
#[must_use]
pub fn queues(options: &Options, has_broker: bool) -> Vec<String> {
    let queues = options.queues.as_ref().filter(|_| has_broker);
    queues.map_or_else(Vec::new, |(queues, _)| queues.clone())
}

/// Reloads of the configuration.
#[derive(Debug)]
pub struct Reload {
    /// Options that apply now.
    present: Options,
    /// Names of the listeners.
    own_names: Vec<String>,
    reread: Reread,
}

impl Reload {
    /// Begins with the `options` of the start.
    #[must_use]
    pub const fn new(options: Options, own_names: Vec<String>, reread: Reread) -> Self {
        Self {
            present: options,
            own_names,
            reread,
        }
    }

    /// Reads the configuration again. Applies what can be applied, and warns of the rest. A part with a
    /// mistake stays as it was: a wrong route must not keep a token that was withdrawn.
    pub fn run(&mut self, gateway: &Gateway, identity: Option<&watch::Sender<Tls>>) {
        match (self.reread.0)() {
            Ok((options, contents)) => self.take_over(gateway, identity, options, contents),
            Err(e) => {
                warn!("reload: {e}; keeping the options and routes of before");
                let files = (
                    self.present.token_file.as_deref(),
                    self.present.tls.as_ref(),
                );
                let contents = Contents::read(files.0, files.1, Ok(Routes::default()));
                let before = gateway.policy();
                let tokens = tokens(before.tokens.clone(), contents.tokens);
                gateway.renew(Policy {
                    tokens,
                    ..Policy::clone(&before)
                });
                show(gateway, identity, contents.tls);
            }
        }
    }

    fn take_over(
        &mut self,
        gateway: &Gateway,
        identity: Option<&watch::Sender<Tls>>,
        new: Options,
        contents: Contents,
    ) {
        for name in fixed(&self.present, &new) {
            warn!("reload: a new {name} needs a restart; it stays as it was");
        }
        let before = gateway.policy();
        let token_file = match contents.tokens {
            Ok(Some(_)) => new.token_file.clone(),
            _ => self.present.token_file.clone(),
        };
        gateway.renew(Policy {
            tokens: tokens(before.tokens.clone(), contents.tokens),
            names: names(&self.own_names, &new),
            topics: new.topics.clone(),
            queues: queues(&new, gateway.ways.queues.is_some()),
            work: new.work.clone(),
        });
        if self.present.rate != new.rate {
            gateway.renew_rate(Rate::of(new.rate));
        }
        match contents.routes {
            Ok(routes) => {
                info!("reloaded; {} routes", routes.all().len());
                gateway.hooks.renew(routes);
            }
            Err(wrong) => wrong
                .iter()
                .for_each(|e| warn!("reload: {e}; keeping the routes of before")),
        }
        let tls = match (&self.present.tls, new.tls.clone()) {
            (Some(present), Some(new))
                if present.client_ca.is_some() && new.client_ca.is_none() =>
            {
                warn!(
                    "reload: without tls-client-ca callers would need no certificate, a change \
                     that needs a restart; they still need one"
                );
                let files = Identity {
                    client_ca: present.client_ca.clone(),
                    ..new
                };
                show(gateway, identity, read_tls(&files).map(Some));
                Some(files)
            }
            (Some(_), Some(new)) => {
                show(gateway, identity, contents.tls);
                Some(new)
            }
            (present, _) => {
                show(
                    gateway,
                    identity,
                    present.as_ref().map(read_tls).transpose(),
                );
                present.clone()
            }
        };
        self.present = Options {
            token_file,
            tls,
            names: new.names,
            topics: new.topics,
            rate: new.rate,
            work: new.work,
            ..self.present.clone()
        };
    }
}

/// Returns the options that differ and need a restart.
fn fixed(old: &Options, new: &Options) -> Vec<&'static str> {
    let queue_broker =
        |options: &Options| options.queues.as_ref().map(|(_, broker)| broker.clone());
    let all = [
        ("listen", old.listen == new.listen),
        ("root", old.root == new.root),
        ("broker", old.broker.is_same_broker(&new.broker)),
        ("broker of queues", queue_broker(old) == queue_broker(new)),
        ("tls-cert", old.tls.is_some() == new.tls.is_some()),
        ("timeout", old.timeout == new.timeout),
        ("need-listener", old.need_listener == new.need_listener),
        ("no-page", old.page == new.page),
        ("state", old.scope.state == new.scope.state),
        ("sign", old.sign == new.sign),
        ("control", old.control == new.control),
        ("events", old.events == new.events),
        ("workflows", old.workflows == new.workflows),
    ];
    let changed = all.into_iter().filter(|(_, is_same)| !is_same);
    changed.map(|(name, _)| name).collect()
}

/// Returns the tokens that apply after those `before`. Callers never need less than before: the addresses
/// to listen on stay, and may be open to others.
fn tokens(before: Option<Tokens>, read: Result<Option<Tokens>>) -> Option<Tokens> {
    match (before, read) {
        (before, Ok(Some(tokens))) => {
            match before {
                Some(_) => info!("the tokens are read again"),
                None => info!("callers need a token from now on"),
            }
            Some(tokens)
        }
        (None, Ok(None)) => None,
        (Some(before), Ok(None)) => {
            warn!(
                "reload: without token-file callers would need no token, a change that needs a restart; the \
                 tokens of before stay"
            );
            Some(before)
        }
        (Some(before), Err(e)) => {
            warn!("reload: {e}; keeping the tokens of before");
            Some(before)
        }
        (None, Err(e)) => {
            error!("reload: {e}; callers need NO token, as before");
            None
        }
    }
}

/// Shows callers the certificate that was read.
fn show(
    gateway: &Gateway,
    identity: Option<&watch::Sender<Tls>>,
    read: Result<Option<Tls>, Error>,
) {
    match (identity, read) {
        (Some(identity), Ok(Some(tls))) => {
            gateway.metrics.certificate(tls.not_after());
            drop(identity.send_replace(tls));
        }
        (None, _) | (_, Ok(None)) => {}
        (Some(_), Err(e)) => warn!("reload: {e}; keeping the certificate of before"),
    }
}
