//! Requests, and their answers. A new action is a variant of [`crate::model::control::Action`] and
//! of [`Demand`].

use std::collections::VecDeque;
use std::sync::Arc;

use serde_json::{Map, Value};
use tracing::info;

use crate::engine::config::Config;
use crate::engine::intake::judge;
use crate::engine::intake::offer::Subject;
use crate::engine::pipeline::{Pipeline, now_ms};
use crate::engine::report::reply::{self, ReplyTo};
use crate::error::{Error, Kind};
use crate::model::control::{self, Action, Envelope};
use crate::model::event::{self, Attributes};
use crate::model::message::Delivery;
use crate::model::status;
use crate::model::trigger::Trigger;
use crate::model::unit::State;
use crate::os::host::new_id;
use crate::os::logging::SENDERS;
use crate::store::ledger::listing::with_part;
use crate::store::ledger::{Again, EventKey, Reader, Record, Refused, Totals};
use crate::store::mark;

/// Why a request is refused: the exit code for the requester, and a text for people.
pub type Refusal = (Kind, String);

/// A request.
#[derive(Debug)]
pub struct Request {
    delivery: Delivery,
    envelope: Envelope,
    action: Result<Action, String>,
    key: EventKey,
    /// Address of the answer.
    pub reply: Option<ReplyTo>,
}

/// What a request demands.
#[derive(Debug)]
pub enum Demand {
    /// An event that goes through the door like others. It is answered when it is on disk.
    Run(Box<Subject>),
    /// Nothing: it was performed before, and is answered again.
    Repeated(Value),
    /// The end of a unit that has not ended.
    Cancel {
        /// The unit.
        unit: String,
        /// Its lane.
        lane: String,
    },
    /// Nothing starts any more, or starts are allowed again.
    Pause(bool),
    /// A report, with the numbers of the ledger.
    Status(Totals),
    /// Nothing: it is refused.
    Refused(Refusal),
}

/// Builds the fields of an answer.
pub fn fields<const N: usize>(list: [(&str, Value); N]) -> Map<String, Value> {
    list.into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect()
}

/// Returns the answer to a request that changes nothing in the ledger.
pub fn answer(result: Result<Map<String, Value>, Refusal>) -> Value {
    match result {
        Ok(fields) => control::accepted(fields),
        Err((kind, cause)) => {
            info!(target: SENDERS, "control request refused: {cause}");
            control::refused(kind, &cause)
        }
    }
}

/// Stores whether the pipeline is paused, for the next start.
///
/// # Errors
/// When the mark cannot be changed.
pub fn remember_pause(pipeline: &Pipeline, paused: bool) -> Result<(), Refusal> {
    let mark = pipeline.paused_mark();
    let kept = match paused {
        true => mark::set(&mark),
        false => mark::clear(&mark),
    };
    kept.map_err(|e| (Kind::CannotCreate, format!("cannot store that: {e}")))
}

/// Maximum number of requests to cancel the only run that are remembered.
const MAX_CANCELED: usize = 64;

/// The last requests that have canceled the only run, and its unit, oldest first. The ledger does not
/// know them.
#[derive(Debug, Default)]
pub struct Canceled(VecDeque<(String, String)>);

impl Canceled {
    /// Returns the unit that `request` has canceled.
    fn by(&self, request: &str) -> Option<&str> {
        let mut known = self.0.iter();
        let (_, unit) = known.find(|(known, _)| known == request)?;
        Some(unit)
    }

    fn add(&mut self, request: &str, unit: &str) {
        if self.0.len() == MAX_CANCELED {
            self.0.pop_front();
        }
        self.0.push_back((request.to_owned(), unit.to_owned()));
    }
}

impl Request {
    /// Reads a message on the control topic. `again` has the times since which it may have been
    /// accepted. `None` if it is not a request. A request is about now: a retained one, which comes
    /// at every start, is a mistake, and an empty message clears it.
    pub fn read(pipeline: &Pipeline, delivery: Delivery, again: Again) -> Option<Self> {
        if delivery.retained || delivery.payload.is_empty() {
            return None;
        }
        let config = &pipeline.config;
        let (envelope, action) = control::parse(&delivery.payload, config.max_payload);
        let sender = judge::sender_id(&delivery).or(envelope.id.as_deref());
        let id = sender.filter(|id| event::is_id(id));
        let id = id.map_or_else(new_id, str::to_owned);
        let key = EventKey {
            request: true,
            ..judge::key(&delivery, id, sender, again)
        };
        Some(Self {
            reply: ReplyTo::of(config, &delivery, &envelope),
            key,
            action,
            envelope,
            delivery,
        })
    }

    /// Returns the message if it has lost its properties.
    pub fn without_properties(&self) -> Option<&Delivery> {
        let lost = self.envelope.present && self.delivery.properties.user.is_empty();
        lost.then_some(&self.delivery)
    }

    /// Returns what the request demands; `has_room` is whether one more unit may wait.
    pub fn demand(
        &mut self,
        pipeline: &Pipeline,
        canceled: &mut Canceled,
        has_room: impl FnOnce() -> bool,
    ) -> Demand {
        if let Some(refused) = self.expired() {
            let key = self.key.clone();
            return Demand::Run(Box::new(Subject::Refused { key, refused }));
        }
        let action = std::mem::replace(&mut self.action, Ok(Action::Status));
        let runs = matches!(action, Ok(Action::Raise { .. } | Action::Retry { .. }));
        if runs && let Some(answer) = self.repeated(pipeline) {
            return Demand::Repeated(answer);
        }
        let room = || match has_room() {
            true => Ok(()),
            false => Err((Kind::TryAgain, "too many runs wait".to_owned())),
        };
        let demand = match action {
            Ok(Action::Raise {
                trigger,
                attributes,
            }) => room().and_then(|()| self.raise(pipeline, trigger.as_deref(), attributes)),
            Ok(Action::Retry { unit, again }) => {
                room().and_then(|()| self.retry(pipeline, unit.as_deref(), again))
            }
            Ok(Action::Cancel { unit: Some(unit) }) => {
                named(&pipeline.reader, &unit).and_then(|record| cancel(&record))
            }
            Ok(Action::Cancel { unit: None }) => self.cancel_only(pipeline, canceled),
            Ok(Action::Pause) => Ok(Demand::Pause(true)),
            Ok(Action::Resume) => Ok(Demand::Pause(false)),
            Ok(Action::Status) => {
                let totals = pipeline.reader.totals().map_err(unavailable);
                totals.map(Demand::Status)
            }
            Err(cause) => Err((Kind::Data, cause)),
        };
        demand.unwrap_or_else(Demand::Refused)
    }

    /// Returns why the request is too late, if it is. A broker that knows the expiry does not
    /// deliver it, independently of the clocks of hosts.
    fn expired(&self) -> Option<Refused> {
        if self.delivery.properties.message_expiry.is_some() {
            return None;
        }
        let late = (now_ms() / 1000).saturating_sub(self.envelope.expires?);
        (late > 0).then(|| Refused {
            code: control::EXPIRED,
            detail: format!("the request expired {late}s ago (or a clock is wrong)"),
            status: None,
            answer: None,
            letters: Vec::new(),
        })
    }

    /// Returns the answer to a request that was performed before. Its action may no longer be
    /// possible.
    fn repeated(&self, pipeline: &Pipeline) -> Option<Value> {
        // Without an id, the ledger recognises it when it accepts it.
        self.key.sender.as_ref()?;
        let known = pipeline.reader.known_request(&self.key).ok().flatten()?;
        let answer = reply::repeated(&known)?;
        info!(target: SENDERS, TAEL_EVENT = self.key.id, "request came again; not done again");
        Some(answer)
    }

    /// Cancels the only run. When the request comes again, another run may be the only one.
    fn cancel_only(&self, pipeline: &Pipeline, canceled: &mut Canceled) -> Result<Demand, Refusal> {
        let request = &self.key.id;
        if let Some(unit) = canceled.by(request) {
            info!(target: SENDERS, TAEL_EVENT = request, "request came again; not done again");
            let unit = fields([("unit", Value::from(unit))]);
            return Ok(Demand::Repeated(answer(Ok(unit))));
        }
        if self.delivery.duplicate {
            let cause =
                "the request came again, and may have canceled a run before; say which unit";
            return Err((Kind::Data, cause.to_owned()));
        }
        let record = only_running(pipeline)?;
        canceled.add(request, &record.unit.id);
        cancel(&record)
    }

    fn raise(
        &self,
        pipeline: &Pipeline,
        trigger: Option<&str>,
        attributes: Attributes,
    ) -> Result<Demand, Refusal> {
        let trigger = chosen(pipeline, trigger)?;
        let topic = String::from_utf8_lossy(&self.delivery.topic);
        let mut event = event::with_attributes(&self.delivery, &topic, attributes);
        event.id = Some(self.key.id.clone());
        event.hops = event.hops.max(self.envelope.hops);
        Ok(Demand::Run(Box::new(Subject::Event {
            key: self.key.clone(),
            trigger: trigger.name.clone(),
            event,
            reason: status::REASON_RAISED.to_owned(),
        })))
    }

    fn retry(
        &self,
        pipeline: &Pipeline,
        unit: Option<&str>,
        again: bool,
    ) -> Result<Demand, Refusal> {
        let reader = &pipeline.reader;
        let record = match unit {
            Some(unit) => named(reader, unit)?,
            None => {
                let last = reader.last_failed().map_err(unavailable)?;
                last.ok_or_else(|| (Kind::Data, "no run has failed".to_owned()))?
            }
        };
        if !record.state.is_end() {
            return Err((Kind::Data, format!("unit {} has not ended", record.unit.id)));
        }
        if !again {
            let id = &record.unit.id;
            let retried = reader.retry_of(id).map_err(unavailable)?;
            if let Some(cause) = control::needs_no_retry(record.state, retried.as_deref()) {
                return Err((Kind::Data, format!("unit {id} {cause}")));
            }
        }
        // The request is the new event; the unit keeps the original one.
        let mut unit = record.unit.retried(new_id(), record.accepted, now_ms());
        // The unit may be released before this one is in the ledger.
        let payload = reader.payload(&record.unit.id);
        let released = || (Kind::Data, format!("there is no unit '{}'", record.unit.id));
        unit.payload = Some(payload.map_err(unavailable)?.ok_or_else(released)?);
        let followed = pipeline.config.follow(&mut unit);
        followed.map_err(|refusal| {
            let id = &record.unit.id;
            (Kind::Data, format!("retry unit {id}: {refusal}"))
        })?;
        Ok(Demand::Run(Box::new(Subject::Again {
            key: self.key.clone(),
            unit: Arc::new(unit),
            first: !again,
        })))
    }
}

fn unavailable(e: Error) -> Refusal {
    (e.kind(), e.to_string())
}

fn chosen<'a>(pipeline: &'a Pipeline, name: Option<&str>) -> Result<&'a Trigger, Refusal> {
    match (name, &pipeline.config.triggers[..]) {
        (Some(name), _) => pipeline
            .trigger(name)
            .ok_or_else(|| (Kind::Data, format!("there is no trigger '{name}'"))),
        (None, [only]) => Ok(only),
        (None, []) => {
            let cause =
                "there is no trigger to raise: 'tael work submit TYPE' starts work of its types";
            Err((Kind::Data, cause.to_owned()))
        }
        (None, all) => {
            let names: Vec<&str> = all.iter().map(|t| t.name.as_str()).collect();
            let names = names.join(", ");
            Err((Kind::Usage, format!("say which trigger to raise: {names}")))
        }
    }
}

/// Maximum number of units that a refusal names.
const MAX_CANDIDATES: usize = 4;

/// Maximum length of what a request calls a unit, bytes.
const MAX_NAME: usize = 128;

/// Returns the unit that is called `name`, or whose id begins or ends so.
fn named(reader: &Reader, name: &str) -> Result<Record, Refusal> {
    let none = || (Kind::Data, format!("there is no unit '{name}'"));
    if name.is_empty() || name.len() > MAX_NAME {
        return Err((Kind::Data, "no unit is called so".to_owned()));
    }
    if let Some(record) = reader.unit(name).map_err(unavailable)? {
        return Ok(record);
    }
    let found = with_part(reader, name, MAX_CANDIDATES + 1).map_err(unavailable)?;
    match &found[..] {
        [] => Err(none()),
        // What is found by a part lacks variables.
        [only] => reader
            .unit(&only.unit.id)
            .map_err(unavailable)?
            .ok_or_else(none),
        several => {
            let list = candidates(several, |unit| unit.to_owned());
            let cause = format!("'{name}' is a part of several ids: {list}: write more of it");
            Err((Kind::Data, cause))
        }
    }
}

/// Returns some of the units for a refusal, each as `text` of its id, and whether there are more.
fn candidates(found: &[Record], text: impl Fn(&str) -> String) -> String {
    let ids = found.iter().take(MAX_CANDIDATES);
    let mut list: Vec<String> = ids.map(|record| text(&record.unit.id)).collect();
    if found.len() > MAX_CANDIDATES {
        list.push("…".to_owned());
    }
    list.join(", ")
}

fn cancel(record: &Record) -> Result<Demand, Refusal> {
    let unit = record.unit.id.clone();
    if record.state.is_end() {
        return Err((
            Kind::Data,
            format!("unit {unit} has ended: {}", record.state),
        ));
    }
    Ok(Demand::Cancel {
        lane: record.unit.lane().to_owned(),
        unit,
    })
}

/// Returns the unit that runs, if only one does.
fn only_running(pipeline: &Pipeline) -> Result<Record, Refusal> {
    let Config { who, root, .. } = &pipeline.config;
    let command = |unit: &str| format!("'tael control {who} cancel {unit} --root {root}'");
    let page = pipeline.reader.live_page(State::Running, 0);
    let mut running = page.map_err(unavailable)?;
    match (running.pop(), running.is_empty()) {
        (None, _) => {
            let cause = format!(
                "no run is running; {} drops one that waits",
                command("UNIT")
            );
            Err((Kind::Data, cause))
        }
        (Some(only), true) => Ok(only),
        (Some(last), false) => {
            running.push(last);
            let list = candidates(&running, command);
            let cause = format!("more than one run is running; say which: {list}");
            Err((Kind::Data, cause))
        }
    }
}
