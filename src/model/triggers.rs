//! The triggers of a client, found by the topic of a message or by name.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::Arc;

use crate::model::filter_index::FilterIndex;
use crate::model::spec::Spec;
use crate::model::topic::Filter;
use crate::model::trigger::Trigger;

/// Triggers in the order of the configuration.
#[derive(Debug, Clone, Default)]
pub struct Triggers {
    list: Vec<Trigger>,
    names: HashMap<String, usize>,
    /// Places of those that wait for events, and of those that wait for silence.
    events: FilterIndex,
    silences: FilterIndex,
}

impl Triggers {
    /// Indexes the triggers of a configuration, which have different names.
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

    /// Returns whether they use shared subscriptions, `$share/GROUP/…`.
    #[must_use]
    pub fn are_shared(&self) -> bool {
        let mut filters = self.list.iter().flat_map(|trigger| &trigger.filters);
        filters.any(Filter::is_shared)
    }

    /// Returns whether another pipeline with the same triggers would get a part of their events: from
    /// shared subscriptions and queues. Otherwise it gets all of them, too.
    #[must_use]
    pub fn share_events(&self) -> bool {
        let mut filters = self.list.iter().flat_map(|trigger| &trigger.filters);
        !self.list.is_empty() && filters.all(Filter::is_shared)
    }

    /// Returns a shared filter and another one, if there are both.
    #[must_use]
    pub fn mixed(&self) -> Option<(&Filter, &Filter)> {
        let filters = || self.list.iter().flat_map(|trigger| &trigger.filters);
        let shared = filters().find(|filter| filter.is_shared())?;
        let own = filters().find(|filter| !filter.is_shared())?;
        Some((shared, own))
    }

    /// Returns the trigger called `name`.
    #[must_use]
    pub fn named(&self, name: &str) -> Option<&Trigger> {
        self.names.get(name).and_then(|place| self.list.get(*place))
    }

    /// Returns the spec by which a unit that carries `own` runs: that of its trigger, as the
    /// configuration is now. If the trigger is gone, it is its own.
    #[must_use]
    pub fn spec_for<'a>(&'a self, own: &'a Arc<Spec>) -> &'a Arc<Spec> {
        self.named(&own.lane).map_or(own, |trigger| &trigger.spec)
    }

    /// Returns the triggers that a message on `topic` may start, in order.
    pub fn waiting_for(&self, topic: &str) -> impl Iterator<Item = &Trigger> {
        let found = self.events.matching(topic).into_iter();
        found.filter_map(|place| self.list.get(place))
    }

    /// Returns the triggers whose silence a message on `topic` may end, in order.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::command::Command;
    use crate::model::env::Export;
    use crate::model::policy::Policy;
    use std::time::Duration;

    fn trigger(name: &str, filters: &[&str], absent: Option<Duration>) -> Trigger {
        let filters = filters.iter().map(|f| Filter::new(*f).expect("filter"));
        Trigger {
            name: name.into(),
            filters: filters.collect(),
            conditions: Vec::new(),
            export: Export::new(None, Vec::new()).expect("export"),
            passthrough: Vec::new(),
            queue: None,
            accept_retained: false,
            reply: None,
            absent,
            policy: Policy::default(),
            spec: Arc::new(Spec::new("t", Command::Direct(vec!["true".into()]))),
        }
    }

    #[test]
    fn a_topic_finds_its_triggers_in_the_order_of_the_configuration() {
        let triggers = Triggers::new(vec![
            trigger("z", &["lab/+/status", "lab/#"], None),
            trigger("quiet", &["lab/a/status"], Some(Duration::from_secs(1))),
            trigger("other", &["other"], None),
            trigger("a", &["$share/g/lab/a/status"], None),
        ]);
        let names = |found: Vec<&Trigger>| -> Vec<String> {
            found.iter().map(|t| t.name.clone()).collect()
        };
        assert_eq!(
            names(triggers.waiting_for("lab/a/status").collect()),
            ["z", "a"]
        );
        assert_eq!(
            names(triggers.listening_to("lab/a/status").collect()),
            ["quiet"]
        );
        assert_eq!(names(triggers.waiting_for("nothing").collect()), [""; 0]);
        assert_eq!(
            triggers.named("other").map(|t| t.name.as_str()),
            Some("other")
        );
        assert!(triggers.named("none").is_none() && triggers.are_shared());
        let (shared, own) = triggers.mixed().expect("both");
        assert_eq!(
            (shared.as_str(), own.as_str()),
            ("$share/g/lab/a/status", "lab/+/status")
        );
    }

    #[test]
    fn a_unit_follows_its_trigger_until_that_is_gone() {
        let known = |line: &str| Arc::new(Spec::new("a", Command::Direct(vec![line.into()])));
        let (old, new) = (known("old"), known("new"));
        let with = |spec: &Arc<Spec>| Trigger {
            spec: Arc::clone(spec),
            ..trigger("a", &["lab/a"], None)
        };
        assert_eq!(Triggers::new(vec![with(&new)]).spec_for(&old), &new);
        let others = Triggers::new(vec![trigger("b", &["lab/a"], None)]);
        assert_eq!(others.spec_for(&old), &old);
    }
}
