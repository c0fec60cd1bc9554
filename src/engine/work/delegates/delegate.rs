//! A unit that another node runs: what it is asked, and what its answers mean.
//!
//! Every request may be lost, and every answer may come twice. So each is asked again until it is
//! answered, and after every interruption. The node knows by the id of the unit what it has done.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use crate::engine::pipeline::{Pipeline, now_ms};
use crate::engine::work::delegates::ends::{canceled, lost, outcome};
use crate::engine::work::delegates::following::{Following, Took};
use crate::engine::work::delegates::offer::{Message, Offer};
use crate::error::{Error, Kind};
use crate::model::remote::wire::{self, Answer, Done, Request, StreamName, Target};
use crate::model::signature::hex;
use crate::model::text::printable;
use crate::model::unit::{End, Outcome, State, Stopped};
use crate::model::work::Work;
use crate::store::unit_dir::incoming::Incoming;
use crate::store::unit_dir::stream::Stream;

/// First and longest time without an answer after which a request is sent again.
const FIRST_WAIT: Duration = Duration::from_secs(10);
const LONGEST_WAIT: Duration = Duration::from_secs(10 * 60);

/// Longest time after which a request is sent again that was refused for a reason that passes: a full
/// queue has room when a run has ended.
const LONGEST_REFUSAL: Duration = Duration::from_secs(60);

/// A unit that another node runs.
#[derive(Debug)]
pub struct Delegate {
    /// The unit.
    pub unit: String,
    /// The node.
    pub node: String,
    /// Whether requests are signed.
    pub signed: bool,
    phase: Phase,
    cancel: Cancel,
    /// Whether the request of the phase must go out.
    asks: bool,
    /// Whether an acknowledgement must go out.
    acks: bool,
    /// When requests without an answer are sent again, and how long the next answer may take.
    again: Option<Instant>,
    wait: Duration,
    /// When the command was heard to have started.
    started: Option<(i64, Instant)>,
    /// What it waits for, as people read it.
    note: Option<String>,
}

/// What is said to the node.
#[derive(Debug)]
enum Phase {
    /// The work, until the node has accepted it.
    Offering(Offer),
    /// That we want its output and its end.
    Following(Box<Following>),
    /// Nothing: what came up to these offsets is being checked, for the second time if so.
    Checking { is_second: bool, at: [u64; 2] },
    /// That the unit was released.
    Releasing,
}

/// A wish of a person that the unit ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cancel {
    /// There is none.
    No,
    /// The node must hear of it.
    Wanted,
    /// It was asked.
    Asked,
    /// It knows.
    Known,
}

/// What follows an answer.
#[derive(Debug)]
pub enum Effect {
    /// The node has accepted the work.
    Accepted,
    /// Its command has started, at this time (milliseconds since 1970).
    Started(i64),
    /// There is more output.
    Wrote,
    /// It has ended.
    Ended(Outcome),
    /// It was refused for this reason, and has ended.
    Refused(String),
    /// People read this of it now; `None` is nothing.
    Note(Option<String>),
    /// What came must be checked against what the node says of its end.
    Check(Box<Incoming>, Box<wire::End>),
    /// All output is here, up to these offsets.
    Fetched([u64; 2]),
    /// The node knows that the unit was released.
    Paid,
}

impl Delegate {
    fn new(unit: &str, node: &str, signed: bool, phase: Phase) -> Self {
        Self {
            unit: unit.to_owned(),
            node: node.to_owned(),
            signed,
            phase,
            cancel: Cancel::No,
            asks: true,
            acks: false,
            again: None,
            wait: FIRST_WAIT,
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
            following.offered = Some(work);
        }
        let phase = Phase::Following(Box::new(following));
        let mut delegate = Self::new(unit, node, signed, phase);
        delegate.started = started.map(|at| (at, Instant::now()));
        // The ledger may have one of the earlier client.
        delegate.note = Some(String::new());
        if pipeline.dir(unit).is_canceled() {
            delegate.cancel = Cancel::Wanted;
        }
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

    /// Notes that a person wants its end.
    pub fn cancel(&mut self) {
        if self.cancel == Cancel::No {
            self.cancel = Cancel::Wanted;
        }
    }

    // --- Asking ---

    /// Notes that what was sent may be lost: the connection is new, or the node is back.
    pub fn ask_again(&mut self) {
        self.asks = true;
        self.again = None;
        self.wait = FIRST_WAIT;
        if self.cancel == Cancel::Asked {
            self.cancel = Cancel::Wanted;
        }
        if let Phase::Offering(offer) = &mut self.phase {
            offer.is_fresh = true;
        }
    }

    /// Returns when requests without an answer are sent again.
    pub const fn again(&self) -> Option<Instant> {
        self.again
    }

    /// Sends requests without an answer again, if it is time. Returns whether it is.
    pub fn on_time(&mut self, now: Instant) -> bool {
        let is_due = self.again.is_some_and(|at| at <= now);
        if is_due {
            let wait = self.wait;
            self.ask_again();
            self.wait = wait;
        }
        is_due
    }

    fn wait_for_answer(&mut self) {
        self.again = Some(Instant::now() + self.wait);
        self.wait = self.wait.saturating_mul(2).min(LONGEST_WAIT);
    }

    /// Notes that the node answers. A cancel has an answer of its own.
    const fn was_answered(&mut self) {
        self.wait = FIRST_WAIT;
        if !matches!(self.cancel, Cancel::Asked) {
            self.again = None;
        }
    }

    fn target(&self) -> Target {
        Target {
            unit: self.unit.clone(),
            signature: None,
        }
    }

    /// Returns what goes out next, if anything does. [`Delegate::sent`] must follow.
    ///
    /// # Errors
    /// As [`Payload`].
    pub fn next(&mut self, pipeline: &Pipeline) -> Result<Option<Message>, Error> {
        let none = |request| Ok(Some((request, Bytes::new())));
        if self.cancel == Cancel::Wanted && !matches!(self.phase, Phase::Checking { .. }) {
            return none(Request::Cancel(self.target()));
        }
        match &mut self.phase {
            Phase::Offering(offer) => offer.next(pipeline, &self.unit, self.asks),
            Phase::Following(following) if self.asks => none(Request::Results {
                unit: self.unit.clone(),
                from: following.at(),
                signature: None,
            }),
            Phase::Following(following) if self.acks => none(Request::Ack {
                unit: self.unit.clone(),
                at: following.at(),
            }),
            Phase::Releasing if self.asks => none(Request::Release(self.target())),
            Phase::Following(_) | Phase::Checking { .. } | Phase::Releasing => Ok(None),
        }
    }

    /// Notes that this went out.
    pub fn sent(&mut self, (request, body): &Message) {
        match request {
            Request::Cancel(_) => self.cancel = Cancel::Asked,
            Request::Ack { .. } => {
                self.acks = false;
                return;
            }
            Request::Payload { .. } => {
                if let Phase::Offering(offer) = &mut self.phase {
                    offer.sent += body.len() as u64;
                }
            }
            _ => self.asks = false,
        }
        self.wait_for_answer();
    }

    // --- Answers ---

    /// Takes an answer of the node, with what follows its header.
    pub fn on_answer(&mut self, pipeline: &Pipeline, answer: Answer, body: Bytes) -> Vec<Effect> {
        // A refusal that passes is met less and less often.
        if !matches!(answer, Answer::Refused { .. }) {
            self.was_answered();
        }
        match answer {
            Answer::Accepted { .. } => match &self.phase {
                Phase::Offering(_) => self.follow(pipeline),
                _ => Vec::new(),
            },
            Answer::Want { offset, .. } => {
                if let Phase::Offering(offer) = &mut self.phase {
                    offer.wants(offset);
                }
                Vec::new()
            }
            Answer::Lost { .. } => {
                if let Phase::Offering(offer) = &mut self.phase {
                    (offer.is_fresh, self.asks) = (true, true);
                }
                Vec::new()
            }
            Answer::Refused { code, error, .. } => self.refused(code, &error),
            Answer::Done { result, .. } => self.done(result),
            Answer::State(state) => self.is_in(&state.state),
            Answer::Output { stream, offset, .. } => {
                let mut effects = self.began();
                effects.extend(self.output(file_of(stream), offset, body));
                effects
            }
            Answer::Gap {
                stream,
                offset,
                bytes,
                ..
            } => self.gap(file_of(stream), offset, bytes),
            Answer::End(end) => self.end(end),
            Answer::Units { .. } => Vec::new(),
        }
    }

    /// Asks for output, because the node has the work.
    fn follow(&mut self, pipeline: &Pipeline) -> Vec<Effect> {
        match Following::open(pipeline, &self.unit) {
            Ok(following) => {
                self.phase = Phase::Following(Box::new(following));
                self.asks = true;
                let mut effects = self.noted(None);
                effects.push(Effect::Accepted);
                effects
            }
            // The next answer to the offer is the same.
            Err(e) => self.short_of(&format_args!("write its output: {e}")),
        }
    }

    /// Asks again later, because something is missing here or there.
    fn short_of(&mut self, cause: &std::fmt::Arguments<'_>) -> Vec<Effect> {
        self.wait = self.wait.min(LONGEST_REFUSAL);
        self.wait_for_answer();
        self.noted(Some(format!("waits: {cause}")))
    }

    /// Sets what people read of it.
    pub fn noted(&mut self, note: Option<String>) -> Vec<Effect> {
        match self.note == note || self.is_released() {
            true => Vec::new(),
            false => {
                self.note.clone_from(&note);
                vec![Effect::Note(note)]
            }
        }
    }

    /// Returns what follows when a request cannot be made.
    pub fn cannot(&mut self, error: &Error) -> Vec<Effect> {
        match error.kind() {
            Kind::Data => vec![Effect::Ended(Outcome::not_started(error))],
            _ => {
                self.asks = false;
                self.short_of(&format_args!("{error}"))
            }
        }
    }

    fn refused(&mut self, code: u8, error: &str) -> Vec<Effect> {
        let kind = Kind::from_exit_code(code).unwrap_or(Kind::Data);
        let cause = format!("node {}: {}", self.node, printable(error, 500));
        let may_pass = kind != Kind::Data;
        match &mut self.phase {
            Phase::Offering(offer) => {
                if self.cancel != Cancel::No {
                    return vec![Effect::Ended(canceled())];
                }
                let late = offer.is_late();
                if kind == Kind::TryAgain && !late {
                    return self.short_of(&format_args!("{cause}"));
                }
                self.phase = Phase::Checking {
                    is_second: true,
                    at: [0, 0],
                };
                vec![
                    Effect::Refused(cause.clone()),
                    Effect::Ended(Outcome::not_started(cause)),
                ]
            }
            Phase::Following(following) if !may_pass => match following.offered.take() {
                Some(work) => {
                    self.phase = Phase::Offering(Offer::of(work));
                    self.asks = true;
                    Vec::new()
                }
                None => vec![Effect::Ended(lost(&cause))],
            },
            Phase::Following(_) => self.short_of(&format_args!("{cause}")),
            Phase::Checking { .. } => Vec::new(),
            Phase::Releasing if may_pass => self.short_of(&format_args!("{cause}")),
            Phase::Releasing => vec![Effect::Paid],
        }
    }

    /// Takes the result of a cancel or a release.
    fn done(&mut self, result: Done) -> Vec<Effect> {
        match (&self.phase, result) {
            (Phase::Releasing, Done::Canceled) => Vec::new(),
            (Phase::Releasing, _) => vec![Effect::Paid],
            _ if self.cancel == Cancel::No => Vec::new(),
            // It has used the id up, so that the work does not run later.
            (Phase::Offering(_) | Phase::Following(_), Done::Unknown) => {
                self.cancel = Cancel::Known;
                vec![Effect::Ended(match self.started {
                    Some((at, _)) => Outcome {
                        stopped: Some(Stopped::Canceled),
                        ..Outcome::interrupted(at)
                    },
                    None => canceled(),
                })]
            }
            _ => {
                self.cancel = Cancel::Known;
                self.again = None;
                // The node has the work, and answers so to an offer.
                self.asks |= matches!(self.phase, Phase::Offering(_));
                Vec::new()
            }
        }
    }

    fn is_in(&mut self, state: &str) -> Vec<Effect> {
        if let Phase::Following(following) = &mut self.phase {
            following.offered = None;
        }
        let mut effects = self.noted(None);
        if State::from_name(state) == Some(State::Running) {
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

    fn output(&mut self, stream: Stream, offset: u64, body: Bytes) -> Vec<Effect> {
        let Phase::Following(following) = &mut self.phase else {
            return Vec::new();
        };
        following.offered = None;
        match following.take(stream, offset, body) {
            Ok(Took::Next { is_ack_due }) => {
                self.acks |= is_ack_due;
                vec![Effect::Wrote]
            }
            // An earlier request was delivered late. The node goes on from here.
            Ok(Took::Known) => {
                self.acks = true;
                Vec::new()
            }
            Ok(Took::Early) => {
                self.asks = true;
                Vec::new()
            }
            Err(e) => self.short_of(&format_args!("write its output: {e}")),
        }
    }

    fn gap(&mut self, stream: Stream, offset: u64, bytes: Option<u64>) -> Vec<Effect> {
        let Phase::Following(following) = &mut self.phase else {
            return Vec::new();
        };
        match following.skip(stream, offset, bytes) {
            Ok(()) => vec![Effect::Wrote],
            Err(e) => self.short_of(&format_args!("{e}")),
        }
    }

    fn end(&mut self, end: wire::End) -> Vec<Effect> {
        let Phase::Following(following) = &self.phase else {
            return Vec::new();
        };
        let at = following.at();
        // What is missing of a stream is missing up to its end, or comes again.
        let is_here = at.iter().zip(end.lengths).all(|(at, length)| *at >= length);
        if !is_here {
            self.asks = true;
            return Vec::new();
        }
        let checking = Phase::Checking {
            is_second: following.is_second,
            at,
        };
        let Phase::Following(following) = std::mem::replace(&mut self.phase, checking) else {
            return Vec::new();
        };
        self.asks = false;
        let incoming = following.incoming;
        vec![Effect::Check(Box::new(incoming), Box::new(end))]
    }

    /// Continues when the output was checked: `digests` are those of what is here.
    pub fn checked(
        &mut self,
        mut incoming: Incoming,
        end: &wire::End,
        digests: std::io::Result<[[u8; 32]; 2]>,
    ) -> Vec<Effect> {
        let (is_second, at) = match self.phase {
            Phase::Checking { is_second, at } => (is_second, at),
            _ => (false, [0, 0]),
        };
        let follows =
            |incoming, is_second| Phase::Following(Box::new(Following::from(incoming, is_second)));
        let digests = match digests {
            Ok(digests) => digests.map(|digest| hex(&digest)),
            Err(e) => {
                self.phase = follows(incoming, is_second);
                return self.short_of(&format_args!("write its output: {e}"));
            }
        };
        let is_same = digests == end.sha256;
        if !is_same && !is_second {
            // A power failure may have left zeros at the end of a file.
            if let Err(e) = incoming.begin_again() {
                self.phase = follows(incoming, is_second);
                return self.short_of(&format_args!("write its output: {e}"));
            }
            self.phase = follows(incoming, true);
            self.asks = true;
            return Vec::new();
        }
        let sizes = incoming.sizes();
        let mut outcome = outcome(&end.state, self.started);
        for ((dropped, length), size) in outcome.dropped.iter_mut().zip(end.lengths).zip(sizes) {
            *dropped = length.saturating_sub(size);
        }
        if !is_same {
            let node = &self.node;
            outcome.remains = Some(format!("its output differs from that on node {node}"));
        }
        let mut effects = Vec::new();
        if is_same {
            effects.push(Effect::Fetched(at));
        }
        // A run that was too short to be seen has started, too.
        if !matches!(outcome.end, End::NotStarted(_)) && self.started.is_none() {
            effects.push(Effect::Started(outcome.started));
        }
        effects.push(Effect::Ended(outcome));
        effects
    }
}

/// Returns the stream whose file holds this output.
const fn file_of(stream: StreamName) -> Stream {
    match stream {
        StreamName::Stdout => Stream::Stdout,
        StreamName::Stderr => Stream::Stderr,
    }
}
