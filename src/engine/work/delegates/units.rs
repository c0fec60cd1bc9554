//! The units that other nodes run, those of which something may go out, and when something is due.

use std::collections::{HashMap, VecDeque};

use tokio::time::Instant;

use crate::engine::work::delegates::delegate::Delegate;
use crate::engine::work::delegates::effect::Effect;
use crate::engine::work::delegates::open_files::OpenFiles;
use crate::engine::work::delegates::phase::Phase;
use crate::engine::work::delegates::timers::Timers;

/// Units, and what follows for each of them.
pub type Effects = Vec<(String, Vec<Effect>)>;

/// The units by their ids. After each change, the next time at which something is due is found again.
#[derive(Debug, Default)]
pub struct Units {
    list: HashMap<String, Delegate>,
    /// Units of which something may go out.
    ready: VecDeque<String>,
    open_files: OpenFiles,
    timers: Timers,
}

impl Units {
    /// Adds a unit, of which something may go out. Returns whether it was here before.
    pub fn add(&mut self, delegate: Delegate) -> bool {
        self.timers.changed();
        self.ready.push_back(delegate.unit.clone());
        self.list.insert(delegate.unit.clone(), delegate).is_some()
    }

    /// Removes a unit.
    pub fn remove(&mut self, unit: &str) {
        self.timers.changed();
        self.list.remove(unit);
    }

    /// Returns a unit.
    pub fn get(&self, unit: &str) -> Option<&Delegate> {
        self.list.get(unit)
    }

    /// Returns a unit that changes.
    pub fn get_mut(&mut self, unit: &str) -> Option<&mut Delegate> {
        self.timers.changed();
        self.list.get_mut(unit)
    }

    /// Changes each unit of `node`, if `change` returns what follows.
    pub fn change_of(
        &mut self,
        node: &str,
        mut change: impl FnMut(&mut Delegate) -> Option<Vec<Effect>>,
    ) -> Effects {
        self.timers.changed();
        let units = self.list.values_mut().filter(|d| d.node == node);
        units
            .filter_map(|d| Some((d.unit.clone(), change(d)?)))
            .collect()
    }

    /// Notes that output of `unit` was written. The files of another one are closed, if too many are open.
    pub fn wrote(&mut self, unit: &str) {
        let idle = self.open_files.wrote(unit);
        let idle = idle.and_then(|idle| self.list.get_mut(&idle));
        if let Some(Phase::Following(following)) = idle.map(|delegate| &mut delegate.phase) {
            following.incoming.close();
        }
    }

    /// Returns the nodes of the units.
    pub fn nodes(&self) -> impl Iterator<Item = &str> {
        self.list.values().map(|d| d.node.as_str())
    }

    // --- What may go out ---

    /// Notes that something of `unit` may go out.
    pub fn is_ready(&mut self, unit: &str) {
        self.ready.push_back(unit.to_owned());
    }

    /// Notes that something of each unit may go out.
    pub fn are_ready(&mut self) {
        self.ready = self.list.keys().cloned().collect();
    }

    /// Asks the node of each unit again: the connection is new.
    pub fn ask_again(&mut self) {
        self.timers.changed();
        self.list.values_mut().for_each(Delegate::ask_again);
    }

    /// Returns the next unit of which something may go out.
    pub fn next_ready(&mut self) -> Option<String> {
        self.ready.pop_front()
    }

    /// Notes that what is next of `unit` did not go out, so that it goes out before others.
    pub fn is_next(&mut self, unit: String) {
        self.ready.push_front(unit);
    }

    // --- The time ---

    /// Notes that something may be due at another time: a node has changed.
    pub fn changed(&self) {
        self.timers.changed();
    }

    /// Returns when something is due, of the units or at `others`. `may_ask` is whether the node of a
    /// unit may be asked.
    pub fn wake(
        &self,
        may_ask: impl Fn(&Delegate) -> bool,
        others: impl Iterator<Item = Instant>,
    ) -> Option<Instant> {
        self.timers.next(|| {
            let again = self.list.values().filter(|d| may_ask(d));
            let again = again.filter_map(|d| d.outgoing.patience.until());
            let ends = self.list.values().filter_map(|d| d.phase.ends_unheard());
            again.chain(ends).chain(others).min()
        })
    }

    /// Does what is due at `now`. `may_ask` is whether the node of a unit may be asked.
    pub fn on_time(&mut self, now: Instant, may_ask: impl Fn(&Delegate) -> bool) -> Effects {
        self.timers.changed();
        let mut effects = Vec::new();
        for (unit, delegate) in &mut self.list {
            effects.push((unit.clone(), delegate.end_unheard()));
            if may_ask(delegate) && delegate.on_time(now) {
                self.ready.push_back(unit.clone());
                if delegate.phase.is_offered() && delegate.note.is_none() {
                    let note = format!("waits: node {} does not answer", delegate.node);
                    effects.push((unit.clone(), delegate.noted(Some(note))));
                }
            }
        }
        effects
    }
}
