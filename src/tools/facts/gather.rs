//! Gathers the facts of this host: built-in ones, and those of files and scripts.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use tracing::{debug, info, warn};

use crate::model::facts::bounds::{Rules, bound};
use crate::model::facts::kind::Kind;
use crate::model::facts::round::Gathered;
use crate::model::facts::tree::{Facts, merge};
use crate::model::text::printable;
use crate::os::facts::Host;
use crate::os::terminal::Terminal;
use crate::tools::facts::folder;

/// Maximum number of failed facts whose causes are logged at a time.
const MAX_LOGGED: usize = 64;

/// What is gathered.
#[derive(Debug, Clone)]
pub struct Sources {
    /// Folders of the operator; that of the host if there are none.
    pub folders: Vec<PathBuf>,
    /// Kinds to share.
    pub share: Vec<Kind>,
    /// What is told of them.
    pub rules: Rules,
}

/// Facts that failed, or were left out, and were logged: a daemon says so once.
#[derive(Debug, Default)]
pub struct Logged {
    /// Names, and why.
    facts: BTreeSet<(String, String)>,
    /// Patterns that hid nothing.
    idle: BTreeSet<String>,
}

impl Sources {
    /// Gathers the facts of those of `kinds` that are shared. This takes as long as scripts may; they
    /// are ended when `ends` is set.
    pub fn gather(&self, kinds: &[Kind], logged: &mut Logged, ends: &AtomicBool) -> Gathered {
        let kinds: Vec<Kind> = kinds
            .iter()
            .filter(|kind| self.share.contains(kind))
            .copied()
            .collect();
        let host = Host::default();
        let mut gathered = Gathered::default();
        for kind in &kinds {
            gathered.kinds.insert(*kind, host.facts(*kind));
        }
        let mut failed: Vec<(String, String)> = Vec::new();
        for found in folder::read(&self.folders, &kinds, ends) {
            match found.facts {
                Ok(facts) => {
                    let told = gathered.kinds.get(&found.kind);
                    if told.is_some_and(|told| told.contains_key(&found.name)) {
                        let (kind, name) = (found.kind.name(), printable(&found.name, 80));
                        debug!("facts: {kind}/{name} is one of this host already: it is replaced");
                    }
                    let own = Facts::from_iter([(found.name, facts.into())]);
                    merge(gathered.kinds.entry(found.kind).or_default(), own);
                }
                Err(why) => failed.push((format!("{}/{}", found.kind.name(), found.name), why)),
            }
        }
        // Facts of some kinds only say nothing about a pattern.
        if self.share.iter().all(|kind| kinds.contains(kind)) {
            logged.log_idle(&self.rules.idle(&gathered.kinds));
        }
        let mut secret = Vec::new();
        for (kind, facts) in &mut gathered.kinds {
            let bounded = bound(*kind, std::mem::take(facts), &self.rules);
            *facts = bounded.facts;
            failed.extend(bounded.failed);
            secret.extend(bounded.secret);
        }
        logged.log(&kinds, &failed, &secret);
        gathered.failed = failed.into_iter().map(|(name, _)| name).collect();
        gathered
    }
}

impl Logged {
    /// Logs patterns that hide nothing, each once.
    fn log_idle(&mut self, patterns: &[&str]) {
        for pattern in patterns {
            if self.idle.insert((*pattern).to_owned()) {
                let pattern = printable(pattern, 120);
                let idle = format!("facts: --hide '{pattern}' matches no fact of this host");
                // One file may be that of many hosts: no reason for mails of cron.
                match Terminal::of_stderr().is_terminal() {
                    true => warn!("{idle}"),
                    false => info!("{idle}"),
                }
            }
        }
    }

    /// Logs what is new, and forgets what of `kinds` is good again.
    fn log(&mut self, kinds: &[Kind], failed: &[(String, String)], secret: &[String]) {
        self.facts.retain(|(name, why)| {
            let other = !kinds.iter().any(|kind| {
                name.strip_prefix(kind.name())
                    .is_some_and(|rest| rest.starts_with(['/', '.']))
            });
            other || secret.contains(name) || failed.iter().any(|f| (&f.0, &f.1) == (name, why))
        });
        for (name, why) in failed.iter().take(MAX_LOGGED) {
            if self.facts.insert((name.clone(), why.clone())) {
                warn!("facts: {name} is left out: {why}");
            }
        }
        let more = failed.len().saturating_sub(MAX_LOGGED);
        if more > 0 {
            debug!("facts: {more} more are left out");
        }
        for name in secret.iter().take(MAX_LOGGED) {
            if self.facts.insert((name.clone(), String::new())) {
                warn!(
                    "facts: {name} is left out: its name looks secret; --allow '{name}' tells it, \
                     --hide '{name}' ends this warning"
                );
            }
        }
    }
}
