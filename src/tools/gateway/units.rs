//! `/units`: the units of this host, with their output as it comes.

use std::time::Duration;

use serde_json::{Map, Value, json};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep};

use crate::error::{Kind, Result as Outcome};
use crate::model::gateway::answer::waiting_time;
use crate::model::gateway::parameters::{self, Wrong};
use crate::model::gateway::rate::Caller;
use crate::net::http::{Head, Response, Seat, event};
use crate::store::unit_dir::stream::Stream;
use crate::tools::gateway::blocking::Threads;
use crate::tools::gateway::budget::Budget;
use crate::tools::gateway::output::{MAX_TEXT, Pieces};
use crate::tools::work::Scope;
use crate::tools::work::unit::{Following, Next, Now, Unit};

/// Maximum number of threads that read ledgers, and make answers.
const MAX_READS: usize = 8;

/// Maximum number of threads that read output for streams.
const MAX_STREAMED: usize = 4;

/// Time for a request that waits to answer with what it knows when others need its place.
const LAST_WORD: Duration = Duration::from_millis(200);

/// Maximum number of units that are being canceled.
const MAX_CANCELS: usize = 8;

/// Maximum time for a unit to end after it was canceled; the answer then says that it still runs.
const CANCEL: Duration = Duration::from_secs(20);

/// First and longest interval between two looks at a unit.
const FIRST_LOOK: Duration = Duration::from_millis(50);
const LAST_LOOK: Duration = Duration::from_secs(1);

/// Maximum number of bytes of each stream in the answer to a `wait`.
pub const MAX_OUTPUT: usize = 256 * 1024;

/// Parts of a stream on the way to a reader. It is the reader that makes the stream wait.
const MAX_PARTS: usize = 1;

/// Media type of output. Of what a command writes, nothing may run in a browser.
const MEDIA: &str = "text/plain; charset=utf-8";

/// Answer to an id that no unit has. Callers of `/t/` and `/q/` have got ids, too.
const NO_UNIT: &str =
    "there is no such unit here; ids of events, as /t/ and /q/ return, are not ids of units";

/// Where a request below `/units` goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Id of the unit.
    pub id: String,
    /// Its stream, if the request is for that.
    pub stream: Option<Stream>,
}

impl Place {
    /// Parses the end of a path, behind `/units/`, and returns it with its methods.
    #[must_use]
    pub fn parse(path: &str) -> Option<(Self, &'static [&'static str])> {
        let (id, stream) = match path.split_once('/') {
            None => (path, None),
            Some((id, "stdout")) => (id, Some(Stream::Stdout)),
            Some((id, "stderr")) => (id, Some(Stream::Stderr)),
            Some(_) => return None,
        };
        let methods: &[&str] = match stream {
            None => &["GET", "HEAD", "DELETE"],
            Some(_) => &["GET", "HEAD"],
        };
        let id = id.to_owned();
        Some((Self { id, stream }, methods))
    }
}

/// The units of this host.
#[derive(Debug, Clone)]
pub struct Units {
    scope: Scope,
    reads: Threads,
    streams: Threads,
    cancels: Threads,
    budget: Budget,
    stop: watch::Receiver<bool>,
}

impl Units {
    /// Returns those of `scope`. Large answers take their memory from `budget`. Requests that wait end when
    /// `stop` is true.
    #[must_use]
    pub fn new(scope: Scope, budget: Budget, stop: watch::Receiver<bool>) -> Self {
        Self {
            scope,
            reads: Threads::new(MAX_READS),
            streams: Threads::new(MAX_STREAMED),
            cancels: Threads::new(MAX_CANCELS),
            budget,
            stop,
        }
    }

    /// Answers a request that was admitted.
    pub async fn answer(&self, head: &Head, place: &Place, seat: &Seat) -> Response {
        let answered = match (place.stream, head.method.as_str()) {
            (None, "DELETE") => self.cancel(&place.id, seat.caller()).await,
            (None, _) => self.report(head, &place.id, seat).await,
            (Some(stream), _) => self.output(head, &place.id, stream, seat).await,
        };
        answered.unwrap_or_else(|refused| refused)
    }

    /// Finds a unit.
    async fn find(&self, id: &str, caller: Caller) -> Result<Unit, Response> {
        let (scope, wanted) = (self.scope.clone(), id.to_owned());
        let found = move || match Unit::find(&scope, &wanted) {
            Err(e) if e.kind() == Kind::Data => Ok(None),
            found => found.map(Some),
        };
        let none = || Response::error(404, NO_UNIT);
        self.reads.run(Some(caller), found).await?.ok_or_else(none)
    }

    async fn report(&self, head: &Head, id: &str, seat: &Seat) -> Result<Response, Response> {
        if let Some(limit) = wait(&query(head)?)? {
            return self.ended(id, limit, seat).await;
        }
        let unit = self.find(id, seat.caller()).await?;
        let reported = self.reads.run(Some(seat.caller()), move || unit.report());
        let report = reported.await?;
        let answer = Response::json(200, &report);
        self.budget.keep(seat, answer).await
    }

    async fn cancel(&self, id: &str, caller: Caller) -> Result<Response, Response> {
        let mut unit = self.find(id, caller).await?;
        let canceled = move || match unit.cancel(CANCEL) {
            Ok(now) => Ok(answer_of(200, unit.id(), &now, Map::new())),
            Err(e) if e.kind() == Kind::Data => Ok(Response::error(409, &e.to_string())),
            Err(e) if e.kind() == Kind::TryAgain => {
                let now = unit.look()?;
                let more = [
                    ("pending".to_owned(), true.into()),
                    ("note".to_owned(), e.to_string().into()),
                ];
                Ok(answer_of(202, unit.id(), &now, more.into_iter().collect()))
            }
            Err(e) => Err(e),
        };
        self.cancels.run(Some(caller), canceled).await
    }

    /// Waits until a unit ends, and answers with its end and output; with 202 if it does not end
    /// within `limit`, or others need the `seat`.
    ///
    /// # Errors
    /// The answer when it cannot be read, or too many others wait.
    pub async fn ended(
        &self,
        id: &str,
        limit: Duration,
        seat: &Seat,
    ) -> Result<Response, Response> {
        seat.lengthen()?;
        let gives_way = async {
            seat.ousted().await;
            sleep(LAST_WORD).await;
        };
        tokio::select! {
            biased;
            answered = self.end(id, limit, seat) => answered,
            // It may be there, and can be asked for.
            () = gives_way => Ok(Response::json(202, &json!({ "unit": id, "id": id, "pending": true }))),
        }
    }

    async fn end(&self, id: &str, limit: Duration, seat: &Seat) -> Result<Response, Response> {
        let deadline = Instant::now() + limit;
        let mut unit = self.find(id, seat.caller()).await?;
        let mut pause = FIRST_LOOK;
        let mut stop = self.stop.clone();
        loop {
            let looked = move || {
                let now = unit.look()?;
                Ok((unit, now))
            };
            let now;
            (unit, now) = self.reads.run(Some(seat.caller()), looked).await?;
            if now.is_end {
                return self.whole(unit, now, seat).await;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || *stop.borrow() || seat.is_ousted() {
                let more = [("pending".to_owned(), true.into())];
                return Ok(answer_of(202, id, &now, more.into_iter().collect()));
            }
            tokio::select! {
                () = sleep(pause.min(left)) => {}
                _ = stop.wait_for(|stop| *stop) => {}
                () = seat.ousted() => {}
            }
            pause = (pause * 2).min(LAST_LOOK);
        }
    }

    /// Answers with the end and the output of a unit.
    async fn whole(&self, unit: Unit, now: Now, seat: &Seat) -> Result<Response, Response> {
        let caller = seat.caller();
        let budget = self.budget.clone();
        let made = move || {
            let answer = whole(&unit, &now)?;
            let size = answer.body.whole().len();
            Ok(match budget.try_reserve(caller, size) {
                Some(reserved) => Ok(reserved.keep_answer(answer)),
                None => Err((unit, now, size)),
            })
        };
        match self.reads.run(Some(caller), made).await? {
            Ok(answer) => Ok(answer),
            // It is made again when there is memory for it.
            Err((unit, now, size)) => {
                let reserved = self.budget.reserve(seat, size).await?;
                let made = self.reads.run(Some(caller), move || whole(&unit, &now));
                let answer = made.await?;
                Ok(reserved.keep_answer(answer))
            }
        }
    }

    async fn output(
        &self,
        head: &Head,
        id: &str,
        stream: Stream,
        seat: &Seat,
    ) -> Result<Response, Response> {
        let query = query(head)?;
        let accept = head.field("accept").unwrap_or_default();
        let is_live = accept.contains("text/event-stream");
        // A browser that connects again says where it was.
        let last = head.field("last-event-id").filter(|_| is_live);
        let from = last.or_else(|| query.get("from").and_then(Value::as_str));
        let from: u64 = from.map_or(Ok(0), |text| {
            let wrong = || Response::error(400, "'from' is a number of bytes");
            text.parse().map_err(|_| wrong())
        })?;
        if is_live {
            // First, so that many who come at once leave room.
            seat.lengthen()?;
        }
        let unit = self.find(id, seat.caller()).await?;
        let mut following = unit.follow(stream, from);
        let reads = (self.streams.clone(), seat.caller());
        if is_live {
            let (sender, events) = mpsc::channel(MAX_PARTS);
            tokio::spawn(live(reads, following, sender));
            return Ok(Response::events(events));
        }
        let first = move || {
            let first = following.advance()?;
            let second = match first {
                Next::Bytes(..) | Next::Gap(..) | Next::Truncated => following.advance()?,
                Next::Pending | Next::End(_) => Next::Pending,
            };
            Ok((following, first, second))
        };
        let (following, first, second) = self.reads.run(Some(seat.caller()), first).await?;
        let bytes = |next| match next {
            Next::Bytes(_, bytes) => bytes,
            _ => bytes::Bytes::new(),
        };
        let answer = match second {
            Next::Pending | Next::End(_) => Response::new(200, MEDIA, bytes(first)),
            second => {
                seat.lengthen()?;
                let (sender, parts) = mpsc::channel(MAX_PARTS);
                let begun = [bytes(first), bytes(second)];
                tokio::spawn(so_far(reads, following, begun, sender));
                Response::stream(MEDIA, parts)
            }
        };
        let policy = "default-src 'none'; sandbox";
        Ok(answer.with("content-security-policy", policy))
    }
}

/// Sends what there is of a stream after `begun`.
async fn so_far(
    (reads, caller): (Threads, Caller),
    mut following: Following,
    begun: [bytes::Bytes; 2],
    sender: mpsc::Sender<bytes::Bytes>,
) {
    for bytes in begun {
        if !bytes.is_empty() && sender.send(bytes).await.is_err() {
            return;
        }
    }
    loop {
        let next = move || following.advance().map(|next| (following, next));
        let next = reads.run(Some(caller), next).await;
        let bytes = match next {
            Ok((rest, Next::Bytes(_, bytes))) => {
                following = rest;
                bytes
            }
            Ok((rest, Next::Gap(..))) => {
                following = rest;
                continue;
            }
            // What was sent cannot be taken back.
            Ok((_, Next::Truncated | Next::Pending | Next::End(_))) | Err(_) => return,
        };
        if sender.send(bytes).await.is_err() {
            return;
        }
    }
}

/// Sends a stream as events until its end, or until the reader leaves.
async fn live(
    (reads, caller): (Threads, Caller),
    mut following: Following,
    sender: mpsc::Sender<bytes::Bytes>,
) {
    let mut pieces = Pieces::default();
    let mut pause = FIRST_LOOK;
    loop {
        let next = move || following.advance().map(|next| (following, next));
        let next = reads.run(Some(caller), next).await;
        let (rest, next) = match next {
            Ok(next) => next,
            Err(refused) => {
                let cause = String::from_utf8_lossy(refused.body.whole());
                let _ = sender
                    .send(event::encoded("error", None, cause.trim_end()))
                    .await;
                return;
            }
        };
        following = rest;
        let (events, is_end) = match next {
            Next::Bytes(mut from, bytes) => {
                // As events they are larger, so the next ones are made when these have gone out.
                for part in bytes.chunks(MAX_TEXT) {
                    for event in pieces.add(from, part) {
                        if sender.send(event).await.is_err() {
                            return;
                        }
                    }
                    from += part.len() as u64;
                }
                pause = FIRST_LOOK;
                continue;
            }
            Next::Gap(from, missing) => {
                let mut events = pieces.flush();
                let gap = json!({ "from": from, "bytes": missing });
                events.push(event::json("gap", None, &gap));
                (events, false)
            }
            Next::Truncated => {
                pieces = Pieces::default();
                (vec![event::encoded("truncated", None, "{}")], false)
            }
            Next::End(now) => {
                let mut events = pieces.flush();
                events.push(event::json("end", None, &now.json()));
                (events, true)
            }
            Next::Pending => (Vec::new(), false),
        };
        match events.is_empty() {
            true => {
                tokio::select! {
                    () = sender.closed() => return,
                    () = sleep(pause) => {}
                }
                pause = (pause * 2).min(LAST_LOOK);
            }
            false => pause = FIRST_LOOK,
        }
        for event in events {
            if sender.send(event).await.is_err() {
                return;
            }
        }
        if is_end {
            return;
        }
    }
}

/// Returns the parameters of the query.
///
/// # Errors
/// The answer to one that is wrong.
pub fn query(head: &Head) -> Result<Map<String, Value>, Response> {
    parameters::attributes(&head.query, None, b"").map_err(|wrong| match wrong {
        Wrong::Media(cause) | Wrong::Data(cause) => Response::error(400, &cause),
    })
}

/// Returns for how long the caller waits, if it does.
///
/// # Errors
/// The answer to one that is wrong.
pub fn wait(query: &Map<String, Value>) -> Result<Option<Duration>, Response> {
    let Some(text) = query.get("wait").and_then(Value::as_str) else {
        return Ok(None);
    };
    let wrong = |cause| Response::error(400, &format!("'wait': {cause}"));
    waiting_time(text).map(Some).map_err(wrong)
}

/// Returns the answer about a unit that has ended, with its output.
fn whole(unit: &Unit, now: &Now) -> Outcome<Response> {
    let mut more = Map::new();
    let mut is_cut = false;
    for (name, stream) in [("output", Stream::Stdout), ("stderr", Stream::Stderr)] {
        let (bytes, more_of_it) = unit.beginning(stream, now, MAX_OUTPUT)?;
        is_cut |= more_of_it;
        let text = String::from_utf8_lossy(&bytes).into_owned();
        more.insert(name.to_owned(), text.into());
    }
    more.insert("truncated".to_owned(), is_cut.into());
    Ok(answer_of(200, unit.id(), now, more))
}

fn answer_of(status: u16, id: &str, now: &Now, more: Map<String, Value>) -> Response {
    let mut body = Map::new();
    body.insert("unit".to_owned(), id.into());
    body.insert("id".to_owned(), id.into());
    body.insert("state".to_owned(), now.state.into());
    body.insert("code".to_owned(), now.code.into());
    body.extend(more);
    Response::json(status, &Value::Object(body))
}
