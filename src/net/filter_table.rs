//! The subscriptions of a session: filters that its holder wants, filters that the broker has
//! granted, and filters that the broker may still hold from before. Decides the next SUBSCRIBE or
//! UNSUBSCRIBE.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use crate::error::{Error, Kind, Result};
use crate::model::topic::{self, Filter};
use crate::net::mqtt::Number;

/// Maximum number of filters in one SUBSCRIBE; AWS IoT closes the connection for more.
pub const MAX_FILTERS: usize = 8;

/// Maximum number of SUBSCRIBE and UNSUBSCRIBE packets that wait for their answers. The library has
/// few packet identifiers, and publishes need some.
const MAX_UNDER_WAY: usize = 16;

/// Number of the first request.
const FIRST: Number = 1;

/// State of a filter at the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The broker may hold it: an earlier connection has subscribed. The field is whether this
    /// process has seen that granted.
    Held(bool),
    /// A SUBSCRIBE is in flight. The field is whether the broker may hold the filter already.
    Subscribing(bool),
    Granted,
    /// The broker has refused it on this connection. The field is as before.
    Refused(bool),
    /// An UNSUBSCRIBE is in flight.
    Unsubscribing,
}

/// A request to the broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    /// Subscribe to filters.
    Subscribe {
        /// Number of the answer.
        number: Number,
        /// At most [`MAX_FILTERS`].
        filters: Vec<Filter>,
        /// Whether all of them were granted to this process before.
        again: bool,
        /// Whether messages must carry an identifier of this subscription, to one filter.
        identify: bool,
        /// Whether the broker did not hold the filter, while it still holds some that are given up.
        fresh: bool,
    },
    /// Unsubscribe from a filter.
    Unsubscribe {
        /// Number of the answer.
        number: Number,
        /// The filter.
        filter: Filter,
    },
}

/// The filters of a session.
#[derive(Debug)]
pub struct FilterTable {
    /// Wanted filters, without those that another one covers.
    wanted: Vec<Filter>,
    is_wanted: HashSet<Filter>,
    /// Wanted filters that match topics of others too.
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
    /// Returns the table of a session that wants `filters`.
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

    /// Changes the wanted filters. Returns whether the broker has to answer. Refused filters are
    /// requested again, because its rules may have changed.
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
        let before = std::mem::take(&mut self.overlapping);
        self.overlapping = topic::overlapping(&self.wanted);
        // These need an identifier now.
        for filter in self.overlapping.difference(&before) {
            if let Some(state @ State::Granted) = self.states.get_mut(filter) {
                *state = State::Held(true);
            }
        }
        self.plan();
        !self.is_answered()
    }

    /// Begins a connection.
    pub fn connected(&mut self, session_present: bool) {
        self.disconnected();
        if !session_present {
            self.states.clear();
        }
        // A broker that was restored from an older state may have lost what it granted. So every
        // connection subscribes again.
        for state in self.states.values_mut() {
            if *state == State::Granted {
                *state = State::Held(true);
            }
        }
        self.connected = true;
        self.plan();
    }

    /// Ends a connection; its requests get no answers.
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

    /// Returns whether there is a connection.
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

    /// Returns the next request; `None` if there is none, or too many are in flight. Unwanted
    /// filters are given up after all wanted ones are answered, so that no message is missed that
    /// two of them match.
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
        let fresh = self.is_fresh(&first);
        // Copies of one message can be recognised if each subscription has its own identifier.
        let identify = fresh || self.overlapping.contains(&first);
        let mut filters = vec![first];
        while !identify
            && filters.len() < MAX_FILTERS
            && let Some(next) = self.to_subscribe.front()
            && !self.overlapping.contains(next)
            && !self.is_fresh(next)
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
            fresh,
        }
    }

    fn is_fresh(&self, filter: &Filter) -> bool {
        !self.to_unsubscribe.is_empty() && !self.states.contains_key(filter)
    }

    fn was_granted(&self, filter: &Filter) -> bool {
        self.states.get(filter) == Some(&State::Held(true))
    }

    fn number(&mut self, filters: Vec<Filter>) -> Number {
        let number = self.next;
        self.next = number.checked_add(1).unwrap_or(FIRST);
        self.under_way.insert(number, filters);
        number
    }

    /// Takes the answer to a SUBSCRIBE. Returns the refused filters, with their causes.
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

    /// Requests the wanted filters again that were refused.
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

    /// Returns whether the broker has answered for all wanted filters.
    pub fn is_answered(&self) -> bool {
        self.to_subscribe.is_empty()
            && self.subscribing == 0
            && !self
                .under_way
                .values()
                .flatten()
                .any(|f| self.is_wanted.contains(f))
    }

    /// Returns whether the broker holds the wanted filters and no others.
    pub fn is_settled(&self) -> bool {
        self.connected
            && self.to_subscribe.is_empty()
            && self.to_unsubscribe.is_empty()
            && self.under_way.is_empty()
    }

    /// Returns whether the broker has refused `filter`.
    pub fn is_refused(&self, filter: &Filter) -> bool {
        matches!(self.states.get(filter), Some(State::Refused(_)))
    }

    /// Returns whether a request waits for its answer.
    pub fn is_waiting(&self) -> bool {
        !self.under_way.is_empty()
    }

    /// Returns the filters that the broker may hold, in order.
    pub fn held(&self) -> Vec<Filter> {
        let held = self
            .states
            .iter()
            .filter(|(_, state)| **state != State::Refused(false));
        held.map(|(filter, _)| filter.clone()).collect()
    }
}

#[cfg(test)]
mod tests;
