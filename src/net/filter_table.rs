//! What a session is subscribed to: what its holder wants, what the broker has granted, and
//! what the broker may still hold from before. Decides which SUBSCRIBE or UNSUBSCRIBE is next.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use crate::error::{Error, Kind, Result};
use crate::model::topic::{self, Filter};
use crate::net::mqtt::Number;

/// Maximum number of filters in one SUBSCRIBE: AWS IoT closes the connection beyond.
pub const MAX_FILTERS: usize = 8;

/// Maximum number of SUBSCRIBE and UNSUBSCRIBE packets that wait for their answers. The library
/// has few packet identifiers, and publishes take some.
const MAX_UNDER_WAY: usize = 16;

/// Number of the first request; the last ones are the largest subscription identifiers (MQTT
/// 5.0, section 3.8.2.1.2).
const FIRST: Number = 1;
const LAST: Number = 268_435_455;

/// What the broker does with a filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// It may hold the filter: an earlier connection has subscribed to it. The field says
    /// whether this process has seen that granted.
    Held(bool),
    /// A SUBSCRIBE is under way. The field says whether it may hold the filter already.
    Subscribing(bool),
    Granted,
    /// It has refused the filter on this connection. The field is as before.
    Refused(bool),
    /// An UNSUBSCRIBE is under way.
    Unsubscribing,
}

/// A request to the broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    /// Subscribe to these.
    Subscribe {
        /// Names the answer.
        number: Number,
        /// At most [`MAX_FILTERS`].
        filters: Vec<Filter>,
        /// Whether this process has had all of them granted before.
        again: bool,
        /// Whether messages should tell that this subscription brings them.
        identify: bool,
    },
    /// Unsubscribe from this.
    Unsubscribe {
        /// Names the answer.
        number: Number,
        /// The filter.
        filter: Filter,
    },
}

/// The filters of a session.
#[derive(Debug)]
pub struct FilterTable {
    /// No filter that another one covers.
    wanted: Vec<Filter>,
    is_wanted: HashSet<Filter>,
    /// Those of the wanted that match topics of others too.
    overlapping: HashSet<Filter>,
    states: BTreeMap<Filter, State>,
    to_subscribe: VecDeque<Filter>,
    to_unsubscribe: VecDeque<Filter>,
    under_way: HashMap<Number, Vec<Filter>>,
    subscribing: usize,
    next: Number,
    connected: bool,
}

impl FilterTable {
    /// A table of a session that wants `filters`.
    pub fn new(filters: &[Filter]) -> Self {
        let mut table = Self {
            wanted: Vec::new(),
            is_wanted: HashSet::new(),
            overlapping: HashSet::new(),
            states: BTreeMap::new(),
            to_subscribe: VecDeque::new(),
            to_unsubscribe: VecDeque::new(),
            under_way: HashMap::new(),
            subscribing: 0,
            next: FIRST,
            connected: false,
        };
        table.want(filters);
        table
    }

    /// Adds filters that the broker may hold from an earlier process.
    pub fn know(&mut self, filters: impl IntoIterator<Item = Filter>) {
        for filter in filters {
            self.states.entry(filter).or_insert(State::Held(false));
        }
        self.plan();
    }

    /// Changes what is wanted. Returns whether the broker has to be asked for any of it. What it
    /// has refused is asked for again: its rules may be others by now.
    pub fn want(&mut self, filters: &[Filter]) -> bool {
        self.states.retain(|_, state| match *state {
            State::Refused(held) => {
                *state = State::Held(false);
                held
            }
            _ => true,
        });
        self.wanted = topic::minimal(filters);
        self.is_wanted = self.wanted.iter().cloned().collect();
        self.overlapping = topic::overlapping(&self.wanted);
        self.plan();
        !self.is_answered()
    }

    /// Begins a connection.
    pub fn connected(&mut self, session_present: bool) {
        self.disconnected();
        if !session_present {
            self.states.clear();
        }
        // What a broker has granted may be gone when it was restored from an older state, so
        // that every connection subscribes anew.
        for state in self.states.values_mut() {
            if *state == State::Granted {
                *state = State::Held(true);
            }
        }
        self.connected = true;
        self.plan();
    }

    /// Ends a connection: its requests get no answers.
    pub fn disconnected(&mut self) {
        self.connected = false;
        self.under_way.clear();
        self.subscribing = 0;
        self.states.retain(|_, state| {
            let held = match *state {
                State::Refused(held) => held,
                _ => true,
            };
            if !matches!(state, State::Granted | State::Held(_)) {
                *state = State::Held(false);
            }
            held
        });
        self.plan();
    }

    /// Whether a connection stands.
    pub const fn is_connected(&self) -> bool {
        self.connected
    }

    fn plan(&mut self) {
        let open =
            |filter: &&Filter| matches!(self.states.get(*filter), None | Some(State::Held(_)));
        self.to_subscribe = self.wanted.iter().filter(open).cloned().collect();
        let gone = self.states.iter().filter(|(filter, state)| {
            !self.is_wanted.contains(*filter)
                && !matches!(state, State::Subscribing(_) | State::Unsubscribing)
        });
        self.to_unsubscribe = gone.map(|(filter, _)| filter.clone()).collect();
    }

    /// The next request; `None` while there is nothing to ask for, or too much is under way.
    /// Filters are given up after all that are wanted have been answered, so that nothing is
    /// missed that two of them match.
    pub fn next(&mut self) -> Option<Ask> {
        if !self.connected || self.under_way.len() >= MAX_UNDER_WAY {
            return None;
        }
        if let Some(first) = self.to_subscribe.pop_front() {
            return Some(self.subscribe(first));
        }
        if self.subscribing > 0 {
            return None;
        }
        let filter = self.to_unsubscribe.pop_front()?;
        self.states.insert(filter.clone(), State::Unsubscribing);
        let number = self.number(vec![filter.clone()]);
        Some(Ask::Unsubscribe { number, filter })
    }

    fn subscribe(&mut self, first: Filter) -> Ask {
        let again = self.was_granted(&first);
        // Copies of one message can be told apart when each subscription has its own identifier.
        let alone = self.overlapping.contains(&first);
        let identify = alone || !self.to_unsubscribe.is_empty();
        let mut filters = vec![first];
        while !alone
            && filters.len() < MAX_FILTERS
            && let Some(next) = self.to_subscribe.front()
            && !self.overlapping.contains(next)
            && self.was_granted(next) == again
        {
            filters.extend(self.to_subscribe.pop_front());
        }
        for filter in &filters {
            let held = self.states.contains_key(filter);
            self.states.insert(filter.clone(), State::Subscribing(held));
        }
        self.subscribing += 1;
        Ask::Subscribe {
            number: self.number(filters.clone()),
            filters,
            again,
            identify,
        }
    }

    fn was_granted(&self, filter: &Filter) -> bool {
        self.states.get(filter) == Some(&State::Held(true))
    }

    fn number(&mut self, filters: Vec<Filter>) -> Number {
        let number = self.next;
        self.next = if number == LAST { FIRST } else { number + 1 };
        self.under_way.insert(number, filters);
        number
    }

    /// Takes the answer to a SUBSCRIBE. Returns the filters that are refused, and why.
    pub fn subscribed(&mut self, number: Number, results: Vec<Result<()>>) -> Vec<(Filter, Error)> {
        let Some(filters) = self.under_way.remove(&number) else {
            return Vec::new();
        };
        self.subscribing = self.subscribing.saturating_sub(1);
        let mut refused = Vec::new();
        let mut results = results.into_iter();
        for filter in filters {
            let held = self.states.get(&filter) == Some(&State::Subscribing(true));
            let missing = || Err(Error::new(Kind::Unavailable, "the broker has not answered"));
            match results.next().unwrap_or_else(missing) {
                Ok(()) => {
                    self.states.insert(filter.clone(), State::Granted);
                }
                Err(e) => {
                    self.states.insert(filter.clone(), State::Refused(held));
                    refused.push((filter.clone(), e));
                }
            }
            if !self.is_wanted.contains(&filter) {
                self.to_unsubscribe.push_back(filter);
            }
        }
        refused
    }

    /// Asks once more for the wanted filters that are refused.
    pub fn ask_again(&mut self) {
        let wanted = &self.is_wanted;
        self.states.retain(|filter, state| match *state {
            State::Refused(held) if wanted.contains(filter) => {
                *state = State::Held(false);
                held
            }
            _ => true,
        });
        self.plan();
    }

    /// Takes the answer to an UNSUBSCRIBE.
    pub fn unsubscribed(&mut self, number: Number) {
        for filter in self.under_way.remove(&number).into_iter().flatten() {
            self.states.remove(&filter);
            if self.is_wanted.contains(&filter) {
                self.to_subscribe.push_back(filter);
            }
        }
    }

    /// Whether the broker has answered for everything that is wanted.
    pub fn is_answered(&self) -> bool {
        self.to_subscribe.is_empty()
            && self.subscribing == 0
            && !self
                .under_way
                .values()
                .flatten()
                .any(|f| self.is_wanted.contains(f))
    }

    /// Whether the broker holds what is wanted and nothing else.
    pub fn is_settled(&self) -> bool {
        self.connected
            && self.to_subscribe.is_empty()
            && self.to_unsubscribe.is_empty()
            && self.under_way.is_empty()
    }

    /// Whether a request waits for its answer.
    pub fn is_waiting(&self) -> bool {
        !self.under_way.is_empty()
    }

    /// The filters that the broker may hold, in order.
    pub fn held(&self) -> Vec<Filter> {
        let held = self
            .states
            .iter()
            .filter(|(_, state)| **state != State::Refused(false));
        held.map(|(filter, _)| filter.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filters(list: &[&str]) -> Vec<Filter> {
        let filters = list.iter().map(|f| Filter::new(*f).expect("filter"));
        filters.collect()
    }

    fn texts(filters: &[Filter]) -> Vec<&str> {
        filters.iter().map(Filter::as_str).collect()
    }

    /// Answers everything that is asked for, and returns that: `+` for SUBSCRIBE.
    fn settle(table: &mut FilterTable) -> Vec<String> {
        let mut asked = Vec::new();
        while let Some(ask) = table.next() {
            match ask {
                Ask::Subscribe {
                    number, filters, ..
                } => {
                    asked.push(format!("+{}", texts(&filters).join(" ")));
                    table.subscribed(number, filters.iter().map(|_| Ok(())).collect());
                }
                Ask::Unsubscribe { number, filter } => {
                    asked.push(format!("-{filter}"));
                    table.unsubscribed(number);
                }
            }
        }
        assert!(table.is_settled() && table.is_answered());
        asked
    }

    #[test]
    fn what_is_not_wanted_goes_after_what_is() {
        let mut table = FilterTable::new(&filters(&["a", "b"]));
        table.know(filters(&["a", "old/1", "old/2"]));
        assert_eq!(table.next(), None, "there is no connection");
        table.connected(true);
        let Some(Ask::Subscribe {
            number,
            filters: asked,
            identify: true,
            again: false,
        }) = table.next()
        else {
            panic!("not subscribed")
        };
        assert_eq!(texts(&asked), ["a", "b"]);
        assert_eq!(table.next(), None, "not before the answer");
        assert_eq!(texts(&table.held()), ["a", "b", "old/1", "old/2"]);
        let none = table.subscribed(number, vec![Ok(()), Ok(())]);
        assert!(none.is_empty() && table.is_answered() && !table.is_settled());
        assert_eq!(settle(&mut table), ["-old/1", "-old/2"]);
        assert_eq!(texts(&table.held()), ["a", "b"]);
        // The broker may be another one with an older state.
        table.disconnected();
        table.connected(true);
        assert_eq!(settle(&mut table), ["+a b"]);
        table.connected(false);
        assert!(table.held().is_empty());
        assert_eq!(settle(&mut table), ["+a b"]);
    }

    #[test]
    fn changes_before_the_answers_come_out_right() {
        let mut table = FilterTable::new(&filters(&["a"]));
        table.connected(false);
        let Some(Ask::Subscribe { number: first, .. }) = table.next() else {
            panic!("not subscribed")
        };
        assert!(table.want(&filters(&["b"])));
        let Some(Ask::Subscribe { number: second, .. }) = table.next() else {
            panic!("not subscribed")
        };
        assert!(table.want(&filters(&["c", "a"])));
        // The answers come in the other order; what is refused is named.
        let refused = table.subscribed(second, vec![Err(Error::data("no"))]);
        assert_eq!(refused[0].0.as_str(), "b");
        table.subscribed(first, vec![Ok(())]);
        assert_eq!(table.subscribed(first, vec![Ok(())]), []);
        assert_eq!(settle(&mut table), ["+c", "-b"]);
        assert_eq!(texts(&table.held()), ["a", "c"]);
        // One that is wanted again while the broker is to drop it is subscribed to anew.
        assert!(!table.want(&filters(&["c"])));
        let Some(Ask::Unsubscribe { number, .. }) = table.next() else {
            panic!("not unsubscribed")
        };
        assert!(table.want(&filters(&["a", "c"])));
        assert_eq!(table.next(), None);
        table.unsubscribed(number);
        assert_eq!(settle(&mut table), ["+a"]);
    }

    #[test]
    fn requests_are_small_and_few_at_a_time() {
        let names: Vec<String> = (0..1000).map(|n| format!("t/{n}")).collect();
        let all: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut table = FilterTable::new(&filters(&all));
        table.connected(false);
        let mut numbers = Vec::new();
        while let Some(Ask::Subscribe {
            number,
            filters,
            identify: false,
            ..
        }) = table.next()
        {
            assert_eq!(filters.len(), MAX_FILTERS);
            numbers.push(number);
        }
        assert_eq!(numbers.len(), MAX_UNDER_WAY);
        for number in numbers {
            assert!(table.subscribed(number, Vec::new()).len() == MAX_FILTERS);
        }
        assert_eq!(settle(&mut table).len(), 1000 / MAX_FILTERS - MAX_UNDER_WAY);
        assert_eq!(table.held().len(), 1000 - MAX_UNDER_WAY * MAX_FILTERS);
    }

    #[test]
    fn filters_with_topics_in_common_are_told_apart() {
        let mut table = FilterTable::new(&filters(&["a/+", "+/b", "c"]));
        table.connected(false);
        let mut alone = Vec::new();
        while let Some(ask) = table.next() {
            if let Ask::Subscribe {
                filters, identify, ..
            } = ask
            {
                alone.push((filters.len(), identify));
            }
        }
        assert_eq!(alone, [(1, true), (1, true), (1, false)]);
    }
}
