//! The triggers of a client, found by the topic of a message or by name.

use std::collections::HashMap;
use std::ops::Deref;

use crate::model::filter_index::FilterIndex;
use crate::model::trigger::Trigger;

/// Triggers in the order of the configuration.
#[derive(Debug, Clone, Default)]
pub struct Triggers {
    list: Vec<Trigger>,
    names: HashMap<String, usize>,
    /// Those that wait for events, and those that wait for silence.
    events: FilterIndex,
    silences: FilterIndex,
}

impl Triggers {
    /// The triggers of a configuration; their names differ.
    #[must_use]
    pub fn new(list: Vec<Trigger>) -> Self {
        let mut triggers = Self::default();
        for (place, trigger) in list.iter().enumerate() {
            triggers.names.insert(trigger.name.clone(), place);
            let index = match trigger.absent {
                None => &mut triggers.events,
                Some(_) => &mut triggers.silences,
            };
            for filter in &trigger.filters {
                index.insert(filter.unshared(), place);
            }
        }
        triggers.list = list;
        triggers
    }

    /// The trigger called `name`.
    #[must_use]
    pub fn named(&self, name: &str) -> Option<&Trigger> {
        self.names.get(name).and_then(|place| self.list.get(*place))
    }

    /// Triggers that a message on `topic` may start, in order.
    pub fn waiting_for(&self, topic: &str) -> impl Iterator<Item = &Trigger> {
        let found = self.events.matching(topic).into_iter();
        found.filter_map(|place| self.list.get(place))
    }

    /// Triggers that a message on `topic` may tell that there is no silence, in order.
    pub fn listening_to(&self, topic: &str) -> impl Iterator<Item = &Trigger> {
        let found = self.silences.matching(topic).into_iter();
        found.filter_map(|place| self.list.get(place))
    }
}

impl Deref for Triggers {
    type Target = [Trigger];

    fn deref(&self) -> &[Trigger] {
        &self.list
    }
}

impl<'a> IntoIterator for &'a Triggers {
    type Item = &'a Trigger;
    type IntoIter = std::slice::Iter<'a, Trigger>;

    fn into_iter(self) -> Self::IntoIter {
        self.list.iter()
    }
}
