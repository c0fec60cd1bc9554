//! The subscriptions of a session: sends requests to the broker, and evaluates its answers.

use std::collections::HashSet;
use std::time::Duration;

use tokio::time::Instant;
use tracing::warn;

use crate::error::Result;
use crate::model::message::Qos;
use crate::model::topic::Filter;
use crate::net::filter_table::{Ask, FilterTable};
use crate::net::identifiers::identifier;
use crate::net::mqtt::{Connection, Number, Subscribe};

/// Maximum time for the broker to answer a SUBSCRIBE or UNSUBSCRIBE.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Delay before the broker is asked again for a filter that it must grant and has refused.
const ASK_AGAIN: Duration = Duration::from_secs(20);

/// The subscriptions of a session.
#[derive(Debug, Clone)]
pub struct Subscriptions {
    /// Filters that the broker must grant.
    pub required: Vec<Filter>,
    /// Filters that the broker may refuse.
    pub optional: Vec<Filter>,
    /// Highest QoS of deliveries.
    pub qos: Qos,
}

impl Subscriptions {
    /// Returns all filters.
    #[must_use]
    pub fn all(&self) -> Vec<Filter> {
        [&self.required[..], &self.optional[..]].concat()
    }
}

/// Keeps the subscriptions at the broker equal to the wanted ones.
#[derive(Debug)]
pub struct Subscriber {
    wanted: Subscriptions,
    filters: FilterTable,
    /// The filters that were last reported to be in force.
    told: Option<Vec<Filter>>,
    /// A change that the broker has not answered completely, and its failure.
    change: Option<Result<()>>,
    /// Deadline for the answer of the broker.
    answer_by: Option<Instant>,
    /// When to request refused filters again.
    again_at: Option<Instant>,
    /// Whether messages carry the identifier of their subscription.
    identifies: bool,
    /// Identifiers of filters that the broker did not hold, while it holds some that are given up.
    fresh: HashSet<u32>,
}

impl Subscriber {
    /// Returns the subscriptions of a session before its first connection.
    pub fn new(wanted: Subscriptions) -> Self {
        Self {
            filters: FilterTable::new(&wanted.all()),
            wanted,
            told: None,
            change: None,
            answer_by: None,
            again_at: None,
            identifies: false,
            fresh: HashSet::new(),
        }
    }

    /// Adds filters that the broker may hold from an earlier process.
    pub fn know(&mut self, filters: Vec<Filter>) {
        self.filters.know(filters);
    }

    /// Returns the highest QoS of deliveries.
    pub const fn qos(&self) -> Qos {
        self.wanted.qos
    }

    /// Returns the deadline for the answer of the broker, if a request is pending.
    pub const fn answer_by(&self) -> Option<Instant> {
        self.answer_by
    }

    /// Begins a connection; `identifies` is whether the broker supports subscription identifiers.
    pub fn connected(&mut self, session_present: bool, identifies: bool) {
        self.identifies = identifies;
        self.fresh.clear();
        self.filters.connected(session_present);
    }

    /// Ends a connection. Returns the result of a change that the broker has not answered
    /// completely. The next connection makes it.
    pub fn disconnected(&mut self) -> Option<Result<()>> {
        self.answer_by = None;
        self.again_at = None;
        self.filters.disconnected();
        self.change.take()
    }

    /// Returns whether there is a connection.
    pub const fn is_connected(&self) -> bool {
        self.filters.is_connected()
    }

    /// Returns whether the broker holds the wanted filters and no others.
    pub fn is_settled(&self) -> bool {
        self.filters.is_settled()
    }

    /// Returns whether `identifier` is that of a filter that the broker did not hold before, while
    /// it may still hold others without identifier that are given up.
    pub fn is_fresh(&self, identifier: usize) -> bool {
        let identifier = u32::try_from(identifier);
        !self.is_settled() && identifier.is_ok_and(|id| self.fresh.contains(&id))
    }

    /// Returns whether the broker has refused `filter`.
    pub fn is_refused(&self, filter: &Filter) -> bool {
        self.filters.is_refused(filter)
    }

    /// Gives up all filters. Returns one of them.
    pub fn give_up(&mut self) -> Option<Filter> {
        let one = self.wanted.all().into_iter().next();
        self.wanted.required.clear();
        self.wanted.optional.clear();
        self.filters.want(&[]);
        one
    }

    /// Changes the subscriptions. Returns whether [`Subscriber::changed`] will report the result.
    pub fn change(&mut self, wanted: Subscriptions) -> bool {
        let asks = self.filters.want(&wanted.all());
        self.wanted = wanted;
        if asks && self.filters.is_connected() {
            self.change.get_or_insert(Ok(()));
        }
        self.change.is_some()
    }

    /// Sends the requests that may be sent now.
    pub fn ask(&mut self, connection: &Connection) {
        while let Some(ask) = self.filters.next() {
            self.answer_by
                .get_or_insert_with(|| Instant::now() + ANSWER_TIMEOUT);
            match ask {
                Ask::Subscribe {
                    number,
                    filters,
                    again,
                    identify,
                    fresh,
                } => {
                    let alone = filters.first().filter(|_| identify && self.identifies);
                    let identifier = alone.map(identifier);
                    self.fresh.extend(identifier.filter(|_| fresh));
                    connection.subscribe(Subscribe {
                        number,
                        filters,
                        qos: self.wanted.qos,
                        identifier,
                        retained: !again,
                    });
                }
                Ask::Unsubscribe { number, filter } => connection.unsubscribe(filter, number),
            }
        }
    }

    /// Returns when to request refused filters again, if any.
    pub const fn again_at(&self) -> Option<Instant> {
        self.again_at
    }

    /// Requests refused filters again.
    pub fn ask_again(&mut self) {
        self.again_at = None;
        self.filters.ask_again();
    }

    /// Takes the answer to a SUBSCRIBE. In a session that `goes_on`, a required filter that is
    /// refused is requested again later. Returns warnings, to log once each.
    ///
    /// # Errors
    /// When the broker refuses a required filter, unless that is part of a change or the session
    /// goes on.
    pub fn subscribed(
        &mut self,
        number: Number,
        results: Vec<Result<Qos>>,
        goes_on: bool,
    ) -> Result<Vec<String>> {
        let lower = |qos: &Qos| *qos < self.wanted.qos;
        let mut warnings = Vec::new();
        if results.iter().flatten().any(lower) {
            warnings
                .push("the broker grants a lower QoS than asked: messages may be lost".to_owned());
        }
        let results = results.into_iter().map(|result| result.map(drop));
        let refused = self.filters.subscribed(number, results.collect());
        self.progressed();
        for (filter, e) in refused {
            let e = e.context(format_args!("subscribe to '{filter}'"));
            // A wide filter may stand for several. It may fail only if all of them may.
            let needed = |required: &Filter| filter.covers(required);
            if !self.wanted.required.iter().any(needed) {
                warnings.push(format!("{e}; going on without"));
                continue;
            }
            if goes_on {
                self.again_at = Some(Instant::now() + ASK_AGAIN);
            }
            match &mut self.change {
                None if goes_on => warnings.push(format!("{e}; asking again until it is granted")),
                None => return Err(e),
                Some(result @ Ok(())) => *result = Err(e),
                Some(Err(_)) => warn!("{e}"),
            }
        }
        Ok(warnings)
    }

    /// Takes the answer to an UNSUBSCRIBE.
    pub fn unsubscribed(&mut self, number: Number) {
        self.filters.unsubscribed(number);
        self.progressed();
    }

    fn progressed(&mut self) {
        let waits = self.filters.is_waiting();
        self.answer_by = waits.then(|| Instant::now() + ANSWER_TIMEOUT);
    }

    /// Returns whether the broker has answered for all wanted filters.
    pub fn is_answered(&self) -> bool {
        self.filters.is_connected() && self.filters.is_answered()
    }

    /// Returns the result of a change, once, when the broker has answered it completely.
    pub fn changed(&mut self) -> Option<Result<()>> {
        if self.is_answered() {
            self.change.take()
        } else {
            None
        }
    }

    /// Returns the filters that the broker now holds, if they are the wanted ones and were not
    /// reported before.
    pub fn settled(&mut self) -> Option<Vec<Filter>> {
        if !self.filters.is_settled() {
            return None;
        }
        let held = self.filters.held();
        if self.told.as_ref() == Some(&held) {
            return None;
        }
        self.told = Some(held.clone());
        Some(held)
    }
}
