//! A unit that another node runs, and what the answers of that node mean. What the node is asked is in
//! `outgoing`.

use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;

use crate::engine::pipeline::{Pipeline, now_ms};
use crate::engine::work::delegates::effect::Effect;
use crate::engine::work::delegates::ends::{canceled, effects, is_same, lost};
use crate::engine::work::delegates::following::{Following, Taken, Took, fits};
use crate::engine::work::delegates::offer::{Message, Offer};
use crate::engine::work::delegates::outgoing::{Cancel, Outgoing};
use crate::engine::work::delegates::phase::Phase;
use crate::error::{Error, Kind};
use crate::model::remote::assembly::Assembly;
use crate::model::remote::wire::{self, Answer, Done, StreamName};
use crate::model::signature::hex;
use crate::model::text::printable;
use crate::model::unit::{Outcome, State};
use crate::model::work::{UNKNOWN_UNIT, Work};
use crate::store::unit_dir::incoming::Incoming;

/// A unit that another node runs.
#[derive(Debug)]
pub struct Delegate {
    /// The unit.
    pub unit: String,
    /// The node.
    pub node: String,
    /// Whether requests are signed.
    pub signed: bool,
    /// What is said to the node now.
    pub phase: Phase,
    /// What must be said.
    pub outgoing: Outgoing,
    /// Whether output cannot be written. What comes is passed over until it is asked for again.
    is_full: bool,
    /// Whether output could not be written, and none was written since.
    lacks_space: bool,
    /// When the command was heard to have started.
    started: Option<(i64, Instant)>,
    /// What it waits for, as people read it.
    pub note: Option<String>,
}

impl Delegate {
    fn new(unit: &str, node: &str, signed: bool, phase: Phase) -> Self {
        Self {
            unit: unit.to_owned(),
            node: node.to_owned(),
            signed,
            phase,
            outgoing: Outgoing::default(),
            is_full: false,
            lacks_space: false,
            started: None,
            note: None,
        }
    }

    /// Returns a unit that is `work`, which is offered to `node`.
    pub fn offered(unit: &str, node: &str, work: Arc<Work>) -> Self {
        let signed = work.signed;
        Self::new(unit, node, signed, Phase::Offering(Offer::of(work)))
    }

    /// Returns a unit that an earlier client may have offered. `started` is whether the node has run
    /// its command.
    ///
    /// # Errors
    /// When its folder cannot be read.
    pub fn found(
        pipeline: &Pipeline,
        unit: &str,
        node: &str,
        work: Arc<Work>,
        started: Option<i64>,
    ) -> std::io::Result<Self> {
        let signed = work.signed;
        let mut following = Following::open(pipeline, unit)?;
        if started.is_none() && following.incoming.sizes() == [0, 0] {
            following.offered = Taken::Perhaps(work);
        }
        let phase = Phase::Following(Box::new(following));
        let mut delegate = Self::new(unit, node, signed, phase);
        delegate.started = started.map(|at| (at, Instant::now()));
        // The ledger may have one of the earlier client.
        delegate.note = Some(String::new());
        Ok(delegate)
    }

    /// Returns a released unit, of which `node` must hear that.
    pub fn released(unit: &str, node: &str, signed: bool) -> Self {
        Self::new(unit, node, signed, Phase::Releasing)
    }

    /// Returns whether the ledger does not know it any more.
    pub const fn is_released(&self) -> bool {
        matches!(self.phase, Phase::Releasing)
    }

    /// Notes that a person wants its end, or that its time may be up. Returns what follows at once: of work
    /// that no node can have heard of, none must hear.
    pub fn cancel(&mut self) -> Vec<Effect> {
        self.outgoing.want_end();
        match self.phase.is_unheard() {
            true => vec![Effect::Ended(canceled(None))],
            false => Vec::new(),
        }
    }

    /// Ends it, if its time is up and no node can have heard of it.
    pub fn end_unheard(&self) -> Vec<Effect> {
        if !self.phase.is_late() || !self.phase.is_unheard() {
            return Vec::new();
        }
        let cause = format!("its time was up before node {} could hear of it", self.node);
        vec![Effect::Ended(Outcome::not_started(cause))]
    }

    // --- Asking ---

    /// Notes that what was sent may be lost: the connection is new, or the node is back.
    pub fn ask_again(&mut self) {
        self.is_full = false;
        self.outgoing.ask_again(&mut self.phase);
    }

    /// Sends requests without an answer again, if it is time. Returns whether it is.
    pub fn on_time(&mut self, now: Instant) -> bool {
        let is_due = self.outgoing.is_due(now);
        if is_due {
            let patience = self.outgoing.patience;
            self.ask_again();
            self.outgoing.patience.go_on(patience);
        }
        is_due
    }

    /// Returns what goes out next, if anything does. [`Delegate::sent`] must follow.
    ///
    /// # Errors
    /// As [`Outgoing::next`].
    pub fn next(&mut self, pipeline: &Pipeline) -> Result<Option<Message>, Error> {
        self.outgoing.next(pipeline, &self.unit, &mut self.phase)
    }

    /// Notes that this went out.
    pub fn sent(&mut self, message: &Message) {
        self.outgoing.sent(message, &mut self.phase);
    }

    // --- Answers ---

    /// Takes an answer of the node, with what follows its header. An answer may be one to an earlier
    /// request.
    pub fn on_answer(&mut self, pipeline: &Pipeline, answer: Answer, body: Bytes) -> Vec<Effect> {
        match answer {
            // It comes again when it is asked for.
            Answer::Output { .. } | Answer::Gap { .. } | Answer::End(_) if self.is_full => {
                Vec::new()
            }
            Answer::Accepted { .. } => match &self.phase {
                Phase::Offering(_) => self.follow(pipeline),
                _ => Vec::new(),
            },
            Answer::Want { offset, .. } => {
                if let Phase::Offering(offer) = &mut self.phase {
                    offer.wants(offset);
                    // The last answer is about the whole payload.
                    self.outgoing.patience.begin();
                    self.outgoing.patience.wait();
                }
                Vec::new()
            }
            Answer::Lost { .. } => {
                // Each piece on its way gets this answer.
                if let Phase::Offering(offer) = &mut self.phase
                    && !std::mem::replace(&mut offer.is_fresh, true)
                {
                    self.outgoing.ask();
                }
                Vec::new()
            }
            Answer::Refused { code, error, .. } => self.refused(code, &error),
            Answer::Done { result, .. } => self.done(result),
            Answer::State(state) => self.is_in(&state.state),
            Answer::Output { stream, offset, .. } => {
                let mut effects = self.began();
                effects.extend(self.output(stream, offset, body));
                effects
            }
            Answer::Gap {
                stream,
                offset,
                bytes,
                ..
            } => self.gap(stream, offset, bytes),
            Answer::End(end) => self.end(end),
            Answer::Units { .. } => Vec::new(),
        }
    }

    /// Notes an answer to the request of the phase.
    fn was_answered(&mut self) {
        if !self.is_full {
            self.outgoing.was_answered();
        }
    }

    /// Asks for output, because the node has the work.
    fn follow(&mut self, pipeline: &Pipeline) -> Vec<Effect> {
        match Following::open(pipeline, &self.unit) {
            Ok(following) => {
                self.phase = Phase::Following(Box::new(following));
                self.was_answered();
                self.outgoing.ask();
                let mut effects = self.noted(None);
                effects.push(Effect::Accepted);
                effects
            }
            // The next answer to the offer is the same.
            Err(e) => self.cannot_write(&e),
        }
    }

    /// Asks again later, because something is missing here or there.
    fn short_of(&mut self, cause: &std::fmt::Arguments<'_>) -> Vec<Effect> {
        self.outgoing.patience.refused();
        self.noted(Some(format!("waits: {cause}")))
    }

    /// Asks for output again later, because it cannot be written.
    fn cannot_write(&mut self, error: &dyn std::fmt::Display) -> Vec<Effect> {
        (self.is_full, self.lacks_space) = (true, true);
        self.outgoing.acknowledge_nothing();
        // Space may be there soon, and the node is not to blame.
        self.outgoing.patience.begin();
        self.short_of(&format_args!("write its output: {error}"))
    }

    /// Sets what people read of it.
    pub fn noted(&mut self, note: Option<String>) -> Vec<Effect> {
        match self.note == note {
            true => Vec::new(),
            false => {
                self.note.clone_from(&note);
                vec![Effect::Note(note)]
            }
        }
    }

    /// Returns what follows when a request cannot be made.
    pub fn cannot(&mut self, pipeline: &Pipeline, error: &Error) -> Vec<Effect> {
        if error.kind() != Kind::Data {
            self.outgoing.ask_nothing();
            return self.short_of(&format_args!("{error}"));
        }
        match &self.phase {
            // The node may have accepted it, and then tells how it ends.
            Phase::Offering(offer) if offer.sends > 0 => {
                match Following::open(pipeline, &self.unit) {
                    Ok(mut following) => {
                        following.offered = Taken::Fails(error.to_string());
                        self.phase = Phase::Following(Box::new(following));
                        self.outgoing.ask();
                        Vec::new()
                    }
                    Err(e) => self.cannot_write(&e),
                }
            }
            _ => vec![Effect::Ended(Outcome::not_started(error))],
        }
    }

    fn refused(&mut self, code: u8, error: &str) -> Vec<Effect> {
        let kind = Kind::from_exit_code(code).unwrap_or(Kind::Data);
        let cause = format!("node {}: {}", self.node, printable(error, 500));
        let may_pass = kind != Kind::Data;
        let is_unknown = error.starts_with(UNKNOWN_UNIT);
        match &mut self.phase {
            // It answers an earlier request for output: an offer is never answered so.
            Phase::Offering(_) if is_unknown => Vec::new(),
            Phase::Offering(offer) => {
                if self.outgoing.cancel != Cancel::No {
                    return vec![Effect::Ended(canceled(None))];
                }
                offer.rest();
                if kind == Kind::TryAgain && !offer.is_late() {
                    return self.short_of(&format_args!("{cause}"));
                }
                vec![Effect::Ended(Outcome::not_started(cause))]
            }
            Phase::Following(following) if !may_pass => {
                match std::mem::take(&mut following.offered) {
                    Taken::Perhaps(work) => {
                        self.phase = Phase::Offering(Offer::of(work));
                        self.outgoing.ask();
                        Vec::new()
                    }
                    Taken::Fails(cause) => vec![Effect::Ended(Outcome::not_started(cause))],
                    Taken::Yes if is_unknown && following.may_be_there() => {
                        self.outgoing.ask();
                        Vec::new()
                    }
                    Taken::Yes => vec![Effect::Ended(lost(&cause, self.started))],
                }
            }
            Phase::Following(_) => self.short_of(&format_args!("{cause}")),
            Phase::Releasing if may_pass => self.short_of(&format_args!("{cause}")),
            // It answers an earlier request.
            Phase::Checking { .. } | Phase::Releasing => Vec::new(),
        }
    }

    /// Takes the result of a cancel or a release.
    fn done(&mut self, result: Done) -> Vec<Effect> {
        match (&self.phase, result) {
            (Phase::Releasing, Done::Released | Done::Unknown) => vec![Effect::Paid],
            // They answer an earlier cancel.
            (Phase::Releasing, Done::Canceled | Done::Ended) => Vec::new(),
            _ if self.outgoing.cancel == Cancel::No => Vec::new(),
            // It has used the id up, so that the work does not run later.
            (Phase::Offering(_) | Phase::Following(_), Done::Unknown) => {
                self.outgoing.cancel = Cancel::Known;
                vec![Effect::Ended(canceled(self.started))]
            }
            _ => {
                self.outgoing.cancel = Cancel::Known;
                // The node has the work, and answers so to an offer.
                if matches!(self.phase, Phase::Offering(_)) {
                    self.outgoing.ask();
                }
                self.outgoing.rest();
                Vec::new()
            }
        }
    }

    fn is_in(&mut self, state: &str) -> Vec<Effect> {
        let Phase::Following(following) = &mut self.phase else {
            return Vec::new();
        };
        following.is_there();
        let state = State::from_name(state);
        let is_news = std::mem::replace(&mut following.state, state) != state;
        match (self.outgoing.patience.is_unanswered(), is_news) {
            (true, _) => self.was_answered(),
            // The node misses an acknowledgement, and we may miss output.
            (false, false) => self.outgoing.ask(),
            (false, true) => {}
        }
        let mut effects = match self.lacks_space {
            true => Vec::new(),
            false => self.noted(None),
        };
        if state == Some(State::Running) {
            effects.extend(self.began());
        }
        effects
    }

    fn began(&mut self) -> Vec<Effect> {
        if self.started.is_some() || !matches!(self.phase, Phase::Following(_)) {
            return Vec::new();
        }
        let at = now_ms();
        self.started = Some((at, Instant::now()));
        vec![Effect::Started(at)]
    }

    fn output(&mut self, stream: StreamName, offset: u64, body: Bytes) -> Vec<Effect> {
        let Phase::Following(following) = &mut self.phase else {
            return Vec::new();
        };
        following.is_there();
        let took = following.take(stream, offset, body);
        self.took(took)
    }

    /// Returns what follows output that came.
    fn took(&mut self, took: Result<Took, Error>) -> Vec<Effect> {
        match took {
            Ok(Took::Next { is_ack_due }) => {
                if is_ack_due {
                    self.outgoing.acknowledge();
                }
                let mut effects = vec![Effect::Wrote];
                if std::mem::take(&mut self.lacks_space) {
                    effects.extend(self.noted(None));
                }
                effects
            }
            // An earlier request was delivered late. The node goes on from here.
            Ok(Took::Known { is_first }) => {
                if is_first {
                    self.outgoing.acknowledge();
                }
                Vec::new()
            }
            Ok(Took::Early) => {
                // Each piece on its way comes too early, until the node hears of it.
                self.outgoing.ask_unless_asked();
                Vec::new()
            }
            Err(e) => self.cannot_write(&e),
        }
    }

    fn gap(&mut self, stream: StreamName, offset: u64, bytes: Option<u64>) -> Vec<Effect> {
        let Phase::Following(following) = &mut self.phase else {
            return Vec::new();
        };
        let took = following.skip(stream, offset, bytes);
        self.took(took)
    }

    fn end(&mut self, end: wire::End) -> Vec<Effect> {
        let Phase::Following(following) = &mut self.phase else {
            return Vec::new();
        };
        match following.short_ends(&end) {
            None => {}
            // It may have been on its way before we asked.
            Some(1) => {
                self.outgoing.ask_unless_asked();
                return Vec::new();
            }
            Some(_) => {
                self.outgoing.patience.refused();
                return Vec::new();
            }
        }
        let checking = Phase::Checking {
            pieces: following.pieces,
            is_second: following.is_second,
        };
        let Phase::Following(following) = std::mem::replace(&mut self.phase, checking) else {
            return Vec::new();
        };
        self.outgoing.ask_nothing();
        self.outgoing.acknowledge_nothing();
        self.outgoing.was_answered();
        let mut incoming = following.incoming;
        incoming.close();
        vec![Effect::Check(Box::new(incoming), Box::new(end))]
    }

    /// Continues when the output was checked: `digests` are those of what is here.
    pub fn checked(
        &mut self,
        mut incoming: Incoming,
        end: &wire::End,
        digests: std::io::Result<[[u8; 32]; 2]>,
    ) -> Vec<Effect> {
        // It may have been released meanwhile.
        let Phase::Checking { pieces, is_second } = self.phase else {
            return Vec::new();
        };
        let digests = match digests {
            Ok(digests) => digests.map(|digest| hex(&digest)),
            Err(e) => return self.follow_again(incoming, pieces, is_second, &e),
        };
        let is_same = is_same(fits(&pieces, end), &digests, end);
        if !is_same && !is_second {
            // A power failure may have left zeros at the end of a file.
            if let Err(e) = incoming.begin_again() {
                return self.follow_again(incoming, pieces, false, &e);
            }
            self.phase = Phase::Following(Box::new(Following::from(
                incoming,
                [Assembly::default(); 2],
                true,
            )));
            self.outgoing.ask();
            return Vec::new();
        }
        effects(end, incoming.sizes(), is_same, &self.node, self.started)
    }

    /// Asks for the end again later: these pieces could not be checked.
    fn follow_again(
        &mut self,
        incoming: Incoming,
        pieces: [Assembly; 2],
        is_second: bool,
        error: &std::io::Error,
    ) -> Vec<Effect> {
        self.phase = Phase::Following(Box::new(Following::from(incoming, pieces, is_second)));
        self.cannot_write(error)
    }
}
