//! A configuration that is read again while the client runs.

use tokio::signal::unix::Signal;
use tracing::{error, info, warn};

use crate::engine::client::{Pipeline, now_ms};
use crate::engine::config::Config;
use crate::engine::connect;
use crate::engine::work::job::warn_of_what_is_missing;
use crate::error::{Error, Result};
use crate::net::options::BrokerOptions;
use crate::os::folder;

/// A request for a reload, and where the new configuration comes from.
pub struct Reload {
    /// Comes with each request.
    pub requests: Signal,
    /// Reads the configuration.
    pub read: Box<dyn Fn() -> Result<Config>>,
}

impl std::fmt::Debug for Reload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reload").finish_non_exhaustive()
    }
}

impl Pipeline {
    /// Takes up a new configuration, without losing the session; what is wrong with it changes
    /// nothing.
    pub(crate) fn reload(&mut self, read: impl Fn() -> Result<Config>) {
        self.health.notify.reloading();
        // The configuration may have been named relative to it.
        let _ = folder::find();
        self.look_for_pause();
        let reloaded = read().and_then(|config| self.take_over(config));
        if let Err(e) = &reloaded {
            error!("reload: {e}; going on as before");
        }
        if !matches!(reloaded, Ok(true)) {
            self.health.notify.ready();
        }
    }

    /// Pauses or resumes as the mark in the state folder says: a request to resume comes behind all
    /// events that the broker keeps, and never if there is no room for these.
    fn look_for_pause(&mut self) {
        let Ok(paused) = self.paused_mark().try_exists() else {
            return;
        };
        if paused != self.queue.is_paused() {
            self.queue.pause(paused);
            info!("{}", if paused { "paused" } else { "resumed" });
            if self.is_online() {
                self.tell_presence();
            }
        }
    }

    /// Returns whether the broker has to answer first.
    fn take_over(&mut self, config: Config) -> Result<bool> {
        let old = &self.config;
        let fixed = [
            ("who", old.who == config.who),
            ("root", old.root == config.root),
            // Our identifier follows from who we are.
            (
                "broker",
                old.broker
                    == BrokerOptions {
                        client_id: old.broker.client_id.clone(),
                        ..config.broker.clone()
                    },
            ),
            ("metrics", old.metrics == config.metrics),
        ];
        for (name, same) in fixed {
            if !same {
                warn!("reload: a new {name} needs a restart; it stays as it was");
            }
        }
        let config = Config {
            who: old.who.clone(),
            root: old.root.clone(),
            host: old.host.clone(),
            broker: old.broker.clone(),
            chosen_id: old.chosen_id,
            ..config
        };
        if old.triggers.are_shared() != config.triggers.are_shared() {
            return Err(Error::config(
                "a change to or from shared subscriptions needs a restart",
            ));
        }
        warn_of_what_is_missing(&config);
        let subscriptions = connect::subscriptions(&config, &self.topics)?;
        connect::will_hold(&mut self.identity, &config, &subscriptions)?;
        self.config = config;
        self.queue.reconfigure(&self.config.triggers);
        let known = self.reader.heard()?;
        self.silence
            .take_up(&self.config.triggers, &known, now_ms());
        info!("reloaded; {} triggers", self.config.triggers.len());
        let asked = self.session.subscribe(subscriptions);
        let settings = connect::settings(&self.config, &self.topics, self.since);
        self.session.reconfigure(settings);
        if self.is_online() {
            self.tell_presence();
        }
        Ok(asked)
    }

    /// The broker has answered the subscriptions of a reload.
    pub(crate) fn on_subscribed(&mut self, result: Result<()>) {
        if let Err(e) = result {
            error!("reload: {e}; events of that filter do not come");
        }
        self.health.notify.ready();
    }
}
