//! Work for other nodes: requests on the work topic of the pipeline, and their answers.

mod action;
mod answers;
mod digest;
mod list;
mod permission;
mod sender;
mod senders;
mod untold;
mod uploads;
mod wish;

use std::path::Path;

use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot};
use tokio::task::spawn_blocking;
use tokio::time::Instant;
use tracing::warn;

use crate::engine::commit::receipt::{Receipt, Submitted, Submitter};
use crate::engine::intake::backlog::TOO_MANY;
use crate::engine::intake::offer::Subject;
use crate::engine::intake::source::Source;
use crate::engine::intake::submission::{Payload, Submission};
use crate::engine::pipeline::Pipeline;
use crate::engine::report::reply::ReplyTo;
use crate::error::{Error, Kind};
use crate::model::control::Envelope;
use crate::model::digest::sha256;
use crate::model::message::{Delivery, Message};
use crate::model::remote::wire::{self, Answer, Manifest, Request, Target};
use crate::model::signature::hex;
use crate::model::text::printable;
use crate::model::work::{PayloadFile, WorkType};
use crate::os::hooks;
use crate::os::logging::SENDERS;
use crate::store::ledger::submitted::is_submitted;
use crate::store::ledger::{CANCELED, EventKey, Record, Refused};
use crate::store::payload_file;
use crate::store::room::{Room, Share};
pub use action::Action;
use action::Actions;
use answers::{answer, refuse, state, unknown};
use permission::allow;
use sender::{Finished, Identity};
use senders::Senders;
use untold::Untold;
use uploads::{DIGEST, Progress, Upload, Uploads};
use wish::{Wish, after_ahead, end};

/// Work for other nodes. `T` identifies a publish.
#[derive(Debug)]
pub struct Remote<T> {
    uploads: Uploads,
    senders: Senders<T>,
    untold: Untold,
    told: mpsc::UnboundedSender<Told>,
    tells: mpsc::UnboundedReceiver<Told>,
}

/// What a task has found out.
#[derive(Debug)]
enum Told {
    /// A payload is on disk, and has its share of the room there.
    Stored(Box<Manifest>, ReplyTo, Result<(Payload, Share), Error>),
    /// A submission was judged; its message is acknowledged with the answer.
    Judged(String, ReplyTo, Receipt, Submitted),
    /// A unit that was not here does not run when it comes, unless it had come meanwhile.
    Ahead(Wish, Target, ReplyTo, Receipt),
}

impl<T> Default for Remote<T> {
    fn default() -> Self {
        let (told, tells) = mpsc::unbounded_channel();
        Self {
            uploads: Uploads::default(),
            senders: Senders::default(),
            untold: Untold::default(),
            told,
            tells,
        }
    }
}

impl<T: Copy + Eq + std::hash::Hash> Remote<T> {
    // --- Requests ---

    /// Takes a message on the work topic. `has_room` returns why no further unit of a type may wait, if
    /// so.
    pub fn on_request(
        &mut self,
        pipeline: &Pipeline,
        delivery: &Delivery,
        receipt: Receipt,
        has_room: impl FnOnce(&WorkType) -> Result<(), String>,
    ) -> Actions {
        let settled = |receipt| vec![Action::Settle(receipt)];
        // A retained request would come at every start, and an empty message clears it.
        if delivery.retained || delivery.payload.is_empty() {
            return settled(receipt);
        }
        let Some(reply) = ReplyTo::of(&pipeline.config, delivery, &Envelope::default()) else {
            warn!(target: SENDERS, "request for work refused: it has no Response Topic for the answer");
            return settled(receipt);
        };
        let (request, body) = match wire::read_request(&delivery.payload) {
            Ok(read) => read,
            Err(e) => {
                let refused = refuse(&reply, "", &Error::data(format!("read the request: {e}")));
                return vec![refused, Action::Settle(receipt)];
            }
        };
        let unit = request.unit().to_owned();
        let done = match self.demand(pipeline, request, &reply, body, has_room) {
            Ok(Demand::Inline(submission, share)) => {
                let home = &pipeline.home.path;
                return self.submit(home, *submission, share, reply, receipt);
            }
            Ok(Demand::Wish(wish, record)) => return end(wish, &record, &reply, receipt),
            Ok(Demand::Ahead(wish, target)) => {
                return self.end_ahead(wish, target, reply, receipt);
            }
            Ok(Demand::Actions(actions)) => Ok(actions),
            Err(e) => Err(e),
        };
        let mut actions = done.unwrap_or_else(|e| vec![refuse(&reply, &unit, &e)]);
        actions.push(Action::Settle(receipt));
        actions
    }

    fn demand(
        &mut self,
        pipeline: &Pipeline,
        request: Request,
        reply: &ReplyTo,
        body: Bytes,
        has_room: impl FnOnce(&WorkType) -> Result<(), String>,
    ) -> Result<Demand, Error> {
        let record = match &request {
            Request::Submit(_)
            | Request::Payload { .. }
            | Request::Ack { .. }
            | Request::List { .. } => None,
            other => {
                let record = pipeline.reader.unit(other.unit())?;
                record.filter(|record| record.unit.work.is_some())
            }
        };
        allow(pipeline, &request, reply, record.as_ref())?;
        let unit = request.unit().to_owned();
        let actions = match request {
            Request::Submit(manifest) => {
                return self.on_manifest(pipeline, manifest, reply, body, has_room);
            }
            Request::Payload { offset, .. } => self.on_piece(&unit, reply, offset, body),
            Request::Results { from, .. } => {
                let record = record.ok_or_else(|| unknown(&unit))?;
                self.senders
                    .begin(pipeline.dir(&unit), &record, reply.clone(), from)
                    .map_err(|e| Error::new(Kind::TryAgain, e))?;
                Vec::new()
            }
            Request::Ack { at, end, .. } => {
                let has_all = self.senders.acked(&unit, reply, at, end);
                has_all
                    .then_some(Action::Fetched(unit))
                    .into_iter()
                    .collect()
            }
            Request::Status(_) => {
                let record = record.ok_or_else(|| unknown(&unit))?;
                vec![answer(reply, &Answer::State(state(&record)))]
            }
            Request::List { after, signature } => {
                vec![answer(
                    reply,
                    &list::page(pipeline, after, signature.is_some())?,
                )]
            }
            Request::Cancel(target) => return Ok(Demand::of(Wish::Cancel, target, record)),
            Request::Release(target) => return Ok(Demand::of(Wish::Release, target, record)),
        };
        Ok(Demand::Actions(actions))
    }

    fn on_manifest(
        &mut self,
        pipeline: &Pipeline,
        manifest: Manifest,
        reply: &ReplyTo,
        body: Bytes,
        has_room: impl FnOnce(&WorkType) -> Result<(), String>,
    ) -> Result<Demand, Error> {
        let config = &pipeline.config;
        let kind = config.work.named(&manifest.kind).ok_or_else(|| {
            let kind = printable(&manifest.kind, 80);
            Error::data(format!("{} {kind}", crate::model::work::UNKNOWN_TYPE))
        })?;
        if let Some(cause) = kind.refusal(&manifest.parameters(), manifest.signature.is_some()) {
            return Err(Error::data(cause));
        }
        let most = pipeline.room.cap(kind.max_stdin);
        if manifest.length > most {
            return Err(Error::data(format!(
                "the payload has {} bytes, and the node takes {most}",
                manifest.length
            )));
        }
        // What was accepted before is not judged again by what is true now, and takes no room.
        let is_known = is_submitted(&pipeline.reader, &manifest.unit)?;
        let share = |bytes| match is_known {
            true => Ok(Room::new(0).reserve()),
            false => pipeline.room.share(bytes).map_err(later),
        };
        if !is_known {
            let late = manifest.expires.map(|at| Timestamp::now().as_second() - at);
            if let Some(late) = late.filter(|late| *late > 0) {
                return Err(Error::new(
                    Kind::TryAgain,
                    format!("it came {late}s after its time (or a clock is wrong)"),
                ));
            }
            has_room(kind).map_err(later)?;
        }
        if !manifest.is_inline() {
            let unit = manifest.unit.clone();
            let home = &pipeline.home.path;
            let offset = self.uploads.begin(home, manifest, reply.clone(), share)?;
            let want = answer(reply, &Answer::Want { unit, offset });
            return Ok(Demand::Actions(vec![want]));
        }
        if hex(&sha256(&body)) != manifest.sha256 {
            return Err(Error::data(DIGEST));
        }
        let share = share(manifest.length)?;
        let submission = submission(manifest, Payload::Inline(body));
        Ok(Demand::Inline(Box::new(submission), share))
    }

    fn on_piece(&mut self, unit: &str, reply: &ReplyTo, offset: u64, body: Bytes) -> Actions {
        match self.uploads.take(unit, reply, offset, body) {
            Progress::Quiet => Vec::new(),
            Progress::Want(offset) => {
                let unit = unit.to_owned();
                vec![answer(reply, &Answer::Want { unit, offset })]
            }
            Progress::Refused(e) => vec![refuse(reply, unit, &e)],
            Progress::Unknown => {
                let unit = unit.to_owned();
                vec![answer(reply, &Answer::Lost { unit })]
            }
            Progress::Whole(upload) => {
                let told = self.told.clone();
                // To sync takes as long as the disk needs. A client that stops does not need it.
                drop(spawn_blocking(move || {
                    let Upload {
                        manifest,
                        reply,
                        file,
                        share,
                        sha256,
                        ..
                    } = *upload;
                    hooks::failpoint("upload.before");
                    let stored = match file.keep() {
                        Ok((name, bytes)) => {
                            let file = PayloadFile { name, bytes };
                            Ok((Payload::File(file, sha256), share))
                        }
                        Err(e) => Err(Error::state(&e, format!("write the payload: {e}"))),
                    };
                    hooks::failpoint("upload.after");
                    let _ = told.send(Told::Stored(Box::new(manifest), reply, stored));
                }));
                Vec::new()
            }
        }
    }

    /// Returns a receipt whose progress is `told` to this.
    fn receipt(&self, told: impl FnOnce(Submitted) -> Told + Send + 'static) -> Receipt {
        let (submitter, judged) = oneshot::channel();
        let sender = self.told.clone();
        drop(tokio::spawn(async move {
            // Without an answer the client stops, and the request comes again.
            if let Ok(became) = judged.await {
                let _ = sender.send(told(became));
            }
        }));
        Receipt::Submitted(Submitter(submitter))
    }

    /// Submits work, whose payload has its `share` of the room in the folder `home`. The message of its
    /// request is acknowledged with the answer.
    fn submit(
        &self,
        home: &Path,
        submission: Submission,
        share: Share,
        reply: ReplyTo,
        receipt: Receipt,
    ) -> Actions {
        let unit = submission.id.clone();
        let file = match &submission.payload {
            Payload::Inline(_) => None,
            Payload::File(file, _) => Some((home.to_owned(), file.name.clone())),
        };
        let receipt = self.receipt(move |became| {
            match (&became, &file) {
                (Submitted::Accepted, _) => share.keep(),
                // The next start removes one that stays.
                (_, Some((home, name))) => drop(payload_file::remove(home, name)),
                (_, None) => {}
            }
            Told::Judged(unit, reply, receipt, became)
        });
        let source = Source::Submission(Box::new(submission), receipt);
        vec![Action::Submit(Box::new(source))]
    }

    /// Uses up the id of a unit that is not here: its submission may come later, and does not run then.
    fn end_ahead(
        &mut self,
        wish: Wish,
        target: Target,
        reply: ReplyTo,
        receipt: Receipt,
    ) -> Actions {
        let unit = target.unit.clone();
        let refused = self.uploads.remove(&unit).map(|submitter| {
            let cause = Error::data("it was canceled before its payload was whole");
            refuse(&submitter, &unit, &cause)
        });
        let key = EventKey {
            id: unit.clone(),
            sender: Some(unit.clone()),
            request: true,
            ..EventKey::default()
        };
        let subject = Subject::Refused {
            key,
            refused: Refused {
                code: CANCELED,
                detail: format!("unit {unit} was canceled before it came"),
                status: None,
                answer: None,
                letters: Vec::new(),
            },
        };
        let receipt = self.receipt(move |_| Told::Ahead(wish, target, reply, receipt));
        let source = Source::Request(Box::new(subject), None, receipt);
        refused
            .into_iter()
            .chain([Action::Submit(Box::new(source))])
            .collect()
    }

    // --- What follows ---

    /// Returns what follows a request; cancel safe.
    pub async fn next(&mut self, pipeline: &Pipeline) -> Actions {
        let told = tokio::select! {
            Some(told) = self.tells.recv() => told,
            () = self.senders.next() => return Vec::new(),
        };
        match told {
            Told::Stored(manifest, reply, Ok((payload, share))) => {
                let submission = submission(*manifest, payload);
                self.submit(&pipeline.home.path, submission, share, reply, Receipt::None)
            }
            Told::Stored(manifest, reply, Err(e)) => vec![refuse(&reply, &manifest.unit, &e)],
            Told::Ahead(wish, target, reply, receipt) => {
                after_ahead(pipeline, wish, target, &reply, receipt)
            }
            Told::Judged(unit, reply, receipt, became) => {
                let action = match became {
                    Submitted::Accepted | Submitted::Known => {
                        answer(&reply, &Answer::Accepted { unit })
                    }
                    Submitted::Taken => {
                        let cause = "other work has this id, or it was canceled or released";
                        refuse(&reply, &unit, &Error::data(cause))
                    }
                    Submitted::Full => refuse(&reply, &unit, &later(TOO_MANY.to_owned())),
                    Submitted::Gone => {
                        let cause = "the node has no such work type any more";
                        refuse(&reply, &unit, &Error::data(cause))
                    }
                };
                vec![action, Action::Settle(receipt)]
            }
        }
    }

    /// Notes that the command of a unit has started.
    pub fn started(&mut self, unit: &str) {
        if self.senders.has(unit) {
            self.senders.started(unit);
        }
    }

    /// Notes that a unit has ended, or was released.
    pub fn ended(&mut self, pipeline: &Pipeline, unit: &str) {
        if self.senders.has(unit) {
            match pipeline.reader.unit(unit) {
                Ok(record) => {
                    let ended = record.as_ref().and_then(Finished::of);
                    self.senders.ended(unit, ended.as_ref());
                }
                Err(e) => {
                    warn!(
                        TAEL_UNIT = unit,
                        "cannot tell another node of its end: {e}; trying again"
                    );
                    self.untold.add(unit, Instant::now());
                }
            }
        }
    }

    /// Notes that a publish is complete: `heard` is whether anyone subscribes to it, or why the broker
    /// does not take it.
    pub fn published(&mut self, token: T, heard: Result<bool, &Error>) {
        self.senders.published(token, heard);
    }

    /// Returns when something is due.
    pub fn wake(&self) -> Option<Instant> {
        let times = [self.senders.wake(), self.uploads.wake(), self.untold.wake()];
        times.into_iter().flatten().min()
    }

    /// Does what is due.
    pub fn on_time(&mut self, pipeline: &Pipeline) {
        self.senders.on_time();
        let now = Instant::now();
        self.uploads.on_time(now);
        for unit in self.untold.take_due(now) {
            self.ended(pipeline, &unit);
        }
    }

    /// Notes that there is a connection.
    pub const fn went_online(&mut self) {
        self.senders.went_online();
    }

    /// Notes that the connection is gone.
    pub fn went_offline(&mut self) {
        self.senders.went_offline();
    }

    /// Sends output. `publish` returns `None` if nothing goes out now.
    pub fn send(&mut self, node: Identity<'_>, publish: impl FnMut(Message) -> Option<T>) {
        self.senders.send(node, publish);
    }
}

/// Returns the refusal of work that may be taken later.
fn later(cause: String) -> Error {
    Error::new(Kind::TryAgain, format!("{cause}: try again"))
}

/// What a request demands.
enum Demand {
    /// These actions.
    Actions(Actions),
    /// Work, whose payload came with the request, and its share of the room.
    Inline(Box<Submission>, Share),
    /// The end of a unit.
    Wish(Wish, Box<Record>),
    /// The end of a unit that is not here.
    Ahead(Wish, Target),
}

impl Demand {
    fn of(wish: Wish, target: Target, record: Option<Record>) -> Self {
        match record {
            Some(record) => Self::Wish(wish, Box::new(record)),
            None => Self::Ahead(wish, target),
        }
    }
}

fn submission(manifest: Manifest, payload: Payload) -> Submission {
    Submission {
        params: manifest.parameters(),
        id: manifest.unit,
        is_new: false,
        kind: manifest.kind,
        submitter: manifest.submitter,
        signed: manifest.signature.is_some(),
        payload,
        node: None,
    }
}
