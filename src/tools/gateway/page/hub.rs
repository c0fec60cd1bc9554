//! The network as the one subscription of the gateway shows it, and all who look at it.

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::time::Instant;

use crate::model::drawing::svg;
use crate::model::gateway::rate::Caller;
use crate::model::message::{Delivery, Message, Properties, Qos};
use crate::model::page::{Change, Page, Refused, message};
use crate::model::topic::{Filter, check_who};
use crate::model::{json, marker};
use crate::net::http::{Response, event};
use crate::net::retained_end::{RetainedEnd, SILENCE};
use crate::os::host;
use crate::tools::gateway::blocking::Threads;
use crate::tools::gateway::budget::Budget;
use crate::tools::gateway::page::ledger;
use crate::tools::gateway::publisher::Link;
use crate::tools::work::Scope;

/// Maximum number of events that wait for the slowest reader. It is told how many it has missed.
const MAX_EVENTS: usize = 1_024;

/// Maximum number of events between a reader and its connection.
const MAX_QUEUED: usize = 16;

/// Maximum number of threads for ledgers and drawings.
const MAX_READS: usize = 2;

/// Maximum number of pipelines whose ledgers are read again at a time.
const MAX_LOCAL: usize = 64;

/// Maximum number of requests to pipelines that wait for their answers.
const MAX_REQUESTS: usize = 64;

/// Delay before the changes of a graph and of ledgers are told: they come in bursts.
const GATHER: Duration = Duration::from_millis(200);

/// Maximum age of what is shared among readers: ages of nodes are in it.
const AGE: Duration = Duration::from_secs(1);

/// Interval between two looks for beacons and nodes that have become silent.
const LOOK: Duration = Duration::from_secs(15);

#[derive(Debug)]
struct Event {
    is_message: bool,
    bytes: Bytes,
}

/// Everything at some time, for all who ask before it changes.
#[derive(Debug, Clone)]
struct Snapshot {
    number: u64,
    at: Instant,
    json: Bytes,
    event: Bytes,
}

/// The network, and who looks at it.
#[derive(Debug)]
pub struct Hub {
    page: Mutex<Page>,
    events: broadcast::Sender<Arc<Event>>,
    /// Number of the last event.
    number: AtomicU64,
    snapshot: Mutex<Option<Snapshot>>,
    link: Arc<Link>,
    scope: Scope,
    budget: Budget,
    host: String,
    /// Topic of the marker behind what the broker retains.
    marker: String,
    control: bool,
    reads: Threads,
    drawing: Mutex<Option<(u64, Bytes)>>,
    later: Mutex<Later>,
    requests: Mutex<HashMap<String, oneshot::Sender<Value>>>,
}

/// What will be done a little later.
#[derive(Debug, Default)]
struct Later {
    /// Version of the graph that was told last.
    told: u64,
    has_new_edges: bool,
    /// Pipelines of this host whose ledgers have changed.
    local: BTreeSet<String>,
    /// When new edges and local pipelines are told, if there are any.
    gathered: Option<Instant>,
    next_look: Option<Instant>,
    /// The end of what the broker retains; `None` after it, or without a connection.
    end: Option<RetainedEnd>,
}

impl Later {
    /// Notes that the broker has told everything that it retains.
    fn settle(&mut self, page: &mut Page) {
        self.end = None;
        if let Some(seconds) = page.settled(now()) {
            let look = Instant::now() + Duration::from_secs_f64(seconds);
            self.next_look = Some(self.next_look.map_or(look, |next| next.min(look)));
        }
    }

    /// Sets when what there is will be told, unless that is set.
    fn gather(&mut self) {
        if self.has_new_edges || !self.local.is_empty() {
            self.gathered.get_or_insert_with(|| Instant::now() + GATHER);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Adds the false starts that were heard, and that the ledger does not have.
fn add_false_starts(statuses: &mut Vec<Value>, heard: Vec<Value>) {
    let ts = |status: &Value| status.get("ts").and_then(Value::as_i64);
    let is_false = |status: &Value| status.get("status") == Some(&json!("falsestart"));
    for status in heard.into_iter().filter(is_false) {
        let is_known = |known: &Value| is_false(known) && ts(known) == ts(&status);
        if !statuses.iter().any(is_known) {
            // It stands before those that are older.
            let place = statuses.iter().position(|known| ts(known) <= ts(&status));
            statuses.insert(place.unwrap_or(statuses.len()), status);
        }
    }
}

fn now() -> f64 {
    let now = Timestamp::now();
    #[allow(clippy::cast_precision_loss)] // milliseconds of this millennium
    let seconds = now.as_millisecond() as f64 / 1000.0;
    seconds
}

impl Hub {
    /// Returns one without messages for the pipelines below `root`. `scope` has the ledgers of this host,
    /// `control` is whether callers may control pipelines, and large answers take their memory from `budget`.
    #[must_use]
    pub fn new(root: &str, link: Arc<Link>, scope: Scope, control: bool, budget: Budget) -> Self {
        Self {
            page: Mutex::new(Page::new(root)),
            events: broadcast::channel(MAX_EVENTS).0,
            number: AtomicU64::new(0),
            snapshot: Mutex::default(),
            link,
            scope,
            budget,
            host: host::hostname(),
            marker: marker::topic(root, &host::new_id()),
            control,
            reads: Threads::new(MAX_READS),
            drawing: Mutex::default(),
            later: Mutex::default(),
            requests: Mutex::default(),
        }
    }

    /// Returns the filter of the subscription.
    #[must_use]
    pub fn filter(&self) -> Option<Filter> {
        Filter::new(format!("{}/#", lock(&self.page).root())).ok()
    }

    /// Returns the root of the pipelines.
    #[must_use]
    pub fn root(&self) -> String {
        lock(&self.page).root().to_owned()
    }

    fn emit(&self, (name, data): Change) {
        let is_message = name == "message";
        // A message alone changes nothing.
        let id = match is_message {
            true => self.number.load(Ordering::Relaxed),
            false => self.number.fetch_add(1, Ordering::Relaxed) + 1,
        };
        if self.events.receiver_count() == 0 {
            return;
        }
        let bytes = event::encoded(name, Some(id), &data.to_string());
        // The last reader may have left.
        let _ = self.events.send(Arc::new(Event { is_message, bytes }));
    }

    /// Takes a message of the subscription.
    pub fn take(&self, delivery: &Delivery) {
        let now = now();
        let reply = std::str::from_utf8(&delivery.topic)
            .ok()
            .and_then(|topic| lock(&self.requests).remove(topic));
        if let Some(waiter) = reply {
            // The caller may have left.
            let _ = waiter.send(json::parse(&delivery.payload).unwrap_or(Value::Null));
        }
        // Readers that begin now see all of it or nothing.
        let mut page = lock(&self.page);
        let mut later = lock(&self.later);
        if delivery.topic == self.marker.as_bytes() {
            let has_all = |end: &mut RetainedEnd| end.marker(Instant::now());
            if later.end.as_mut().is_some_and(has_all) {
                later.settle(&mut page);
            }
            return;
        }
        if let Some(end) = later.end.as_mut().filter(|_| delivery.retained) {
            end.message(Instant::now());
        }
        let changes = page.take(delivery, now);
        // An event that waits, or a request, has no status of its own.
        let topic = String::from_utf8_lossy(&delivery.topic);
        let concerned = page.local_pipelines(Some(&topic)).map(str::to_owned);
        later.local.extend(concerned);
        self.tell(&page, &mut later, changes);
        if self.events.receiver_count() > 0 && !marker::is_marker(&delivery.topic) {
            self.emit(message(delivery, now));
        }
    }

    /// Tells changes of the page, and notes what follows from them.
    fn tell(&self, page: &Page, later: &mut Later, changes: Vec<Change>) {
        later.has_new_edges |= page.version() != later.told;
        later.told = page.version();
        for change in changes {
            let who = change.1.get("who").and_then(Value::as_str);
            if let Some(who) = who.filter(|_| change.0 == "pipeline")
                && page.host(who) == Some(&self.host)
            {
                later.local.insert(who.to_owned());
            }
            self.emit(change);
        }
        later.gather();
    }

    /// Takes it that the broker is connected. Returns the message that will come back behind all that it
    /// retains.
    #[must_use]
    pub fn connected(&self) -> Message {
        let mut page = lock(&self.page);
        page.connected();
        lock(&self.later).end = Some(RetainedEnd::new(Instant::now(), SILENCE));
        self.emit(("broker", self.broker_json()));
        Message {
            topic: self.marker.clone(),
            payload: Bytes::new(),
            qos: Qos::AtMostOnce,
            retain: false,
            properties: Properties::default(),
        }
    }

    /// Takes it that the broker is away.
    pub fn disconnected(&self) {
        let mut page = lock(&self.page);
        page.disconnected();
        lock(&self.later).end = None;
        self.emit(("broker", self.broker_json()));
    }

    fn broker_json(&self) -> Value {
        let (is_online, since) = self.link.state();
        let state = if is_online { "connected" } else { "away" };
        json!({ "state": state, "since": since.as_second() })
    }

    /// Takes a request that was refused: its path, its status, why, and where it came from.
    pub fn refuse(&self, path: &str, status: u16, cause: &str, peer: String) {
        let refused = Refused {
            ts: Timestamp::now().as_second(),
            path: path.to_owned(),
            status,
            cause: cause.to_owned(),
            peer,
        };
        let mut page = lock(&self.page);
        let change = page.refuse(refused);
        self.emit(change);
    }

    /// Returns when to call [`Hub::work`].
    #[must_use]
    pub fn due(&self) -> Instant {
        let mut later = lock(&self.later);
        let look = *later.next_look.get_or_insert_with(|| Instant::now() + LOOK);
        let gathered = later.gathered.unwrap_or(look);
        let end = later.end.map_or(look, |end| end.at());
        look.min(gathered).min(end)
    }

    /// Tells what was gathered, and looks for what has become silent.
    pub fn work(self: &Arc<Self>) {
        let mut page = lock(&self.page);
        let mut later = lock(&self.later);
        if std::mem::take(&mut later.has_new_edges) {
            self.emit(("edges", json!({})));
        }
        if later.end.is_some_and(|end| end.at() <= Instant::now()) {
            later.settle(&mut page);
        }
        if later.next_look.is_some_and(|at| at <= Instant::now()) {
            later.next_look = None;
            let changes = page.tick(now());
            // Work comes by other ways, too.
            let local = page.local_pipelines(None).map(str::to_owned);
            later.local.extend(local);
            self.tell(&page, &mut later, changes);
        }
        for _ in 0..MAX_LOCAL {
            let Some(who) = later.local.pop_first() else {
                break;
            };
            let hub = Arc::clone(self);
            tokio::spawn(async move { hub.refresh(who).await });
        }
        later.gathered = None;
        later.gather();
    }

    /// Reads the ledger of a pipeline again.
    async fn refresh(&self, who: String) {
        let Some(pipeline) = self.pipeline(&who) else {
            return;
        };
        let read = self.reads.run(move || ledger::live(&pipeline)).await;
        // What was heard has to do when there is no ledger, or it cannot be read.
        if let Ok((running, waiting)) = read {
            let mut page = lock(&self.page);
            if let Some(change) = page.local(&who, running, waiting) {
                self.emit(change);
            }
        }
    }

    /// Returns the folder of a pipeline of this host.
    fn pipeline(&self, who: &str) -> Option<PathBuf> {
        let is_here = lock(&self.page).host(who) == Some(&self.host);
        (is_here && check_who(who).is_ok()).then(|| self.scope.state.join(who))
    }

    /// Returns everything, as JSON; `None` without memory for it.
    #[must_use]
    pub fn network(&self) -> Option<Bytes> {
        Some(self.snapshot(&lock(&self.page))?.json)
    }

    /// Returns everything; `None` if there is no memory for it, because readers do not read. Many readers who
    /// come at once share it.
    fn snapshot(&self, page: &Page) -> Option<Snapshot> {
        let number = self.number.load(Ordering::Relaxed);
        let mut known = lock(&self.snapshot);
        if let Some(known) = known.as_ref()
            && known.number == number
            && known.at.elapsed() < AGE
        {
            return Some(known.clone());
        }
        // Its memory is free if no reader has it.
        *known = None;
        let mut all = page.json(now());
        if let Value::Object(map) = &mut all {
            map.insert("broker".to_owned(), self.broker_json());
            map.insert("control".to_owned(), self.control.into());
            map.insert("version".to_owned(), env!("CARGO_PKG_VERSION").into());
            map.insert("host".to_owned(), self.host.as_str().into());
        }
        let json = all.to_string();
        let event = event::encoded("network", Some(number), &json);
        let kept = |bytes: Bytes| Some(self.budget.try_reserve(None, bytes.len())?.keep(bytes));
        let snapshot = Snapshot {
            number,
            at: Instant::now(),
            event: kept(event)?,
            json: kept(json.into())?,
        };
        *known = Some(snapshot.clone());
        Some(snapshot)
    }

    /// Returns the events for a new reader: first everything, then what changes, with or without `messages`.
    pub fn stream(self: &Arc<Self>, messages: bool) -> mpsc::Receiver<Bytes> {
        let (sender, receiver) = mpsc::channel(MAX_QUEUED);
        let hub = Arc::clone(self);
        tokio::spawn(async move { hub.feed(messages, sender).await });
        receiver
    }

    /// Returns everything as an event, and the events that come after it.
    fn begin(&self) -> Option<(Bytes, broadcast::Receiver<Arc<Event>>)> {
        let page = lock(&self.page);
        let snapshot = self.snapshot(&page)?;
        let events = self.events.subscribe();
        drop(page);
        Some((snapshot.event, events))
    }

    /// Sends events until the reader leaves, or there is no memory: a browser connects again.
    async fn feed(&self, messages: bool, sender: mpsc::Sender<Bytes>) {
        let Some((first, mut events)) = self.begin() else {
            return;
        };
        if sender.send(first).await.is_err() {
            return;
        }
        loop {
            let next = tokio::select! {
                () = sender.closed() => return,
                next = events.recv() => next,
            };
            let bytes = match next {
                Ok(event) if event.is_message && !messages => continue,
                Ok(event) => event.bytes.clone(),
                Err(broadcast::error::RecvError::Closed) => return,
                Err(broadcast::error::RecvError::Lagged(count)) => {
                    let dropped = json!({ "n": count }).to_string();
                    if sender
                        .send(event::encoded("dropped", None, &dropped))
                        .await
                        .is_err()
                    {
                        return;
                    }
                    // States were among them.
                    let Some(again) = self.begin() else {
                        return;
                    };
                    events = again.1;
                    again.0
                }
            };
            if sender.send(bytes).await.is_err() {
                return;
            }
        }
    }

    /// Returns the drawing.
    ///
    /// # Errors
    /// The answer when it cannot be made.
    pub async fn graph(self: &Arc<Self>) -> Result<Response, Response> {
        let hub = Arc::clone(self);
        let drawn = move || {
            // One at a time: the next finds it ready.
            let mut drawing = lock(&hub.drawing);
            let (graph, version) = {
                let page = lock(&hub.page);
                if let Some((version, bytes)) = &*drawing
                    && *version == page.version()
                {
                    return Ok(bytes.clone());
                }
                (page.network().graph(page.root()), page.version())
            };
            let bytes = Bytes::from(svg(&graph).0);
            *drawing = Some((version, bytes.clone()));
            Ok(bytes)
        };
        let bytes = self.reads.run(drawn).await?;
        let policy = "default-src 'none'; style-src 'none'; sandbox";
        Ok(Response::new(200, "image/svg+xml", bytes).with("content-security-policy", policy))
    }

    /// Returns the last runs of a pipeline, and where they are from; `None` if it is unknown.
    pub async fn runs(&self, who: &str, limit: usize) -> Option<(&'static str, Vec<Value>)> {
        if let Some(pipeline) = self.pipeline(who) {
            let read = move || ledger::runs(&pipeline, limit);
            if let Ok(runs) = self.reads.run(read).await {
                return Some(("ledger", runs));
            }
        }
        let runs = lock(&self.page).runs(who, limit)?;
        Some(("heard", runs))
    }

    /// Returns the last statuses of a pipeline, and where they are from; `None` if it is unknown.
    pub async fn statuses(&self, who: &str, limit: usize) -> Option<(&'static str, Vec<Value>)> {
        if let Some(pipeline) = self.pipeline(who) {
            let read = move || ledger::statuses(&pipeline, limit);
            if let Ok(mut statuses) = self.reads.run(read).await {
                // Of an event that lacks what its trigger requires there is no run.
                let heard = lock(&self.page).statuses(who, limit).unwrap_or_default();
                add_false_starts(&mut statuses, heard);
                statuses.truncate(limit);
                return Some(("ledger", statuses));
            }
        }
        let statuses = lock(&self.page).statuses(who, limit)?;
        Some(("heard", statuses))
    }

    /// Returns an answer of `caller`, if there is memory for it.
    ///
    /// # Errors
    /// The answer when there is none.
    pub fn keep(&self, caller: Caller, answer: Response) -> Result<Response, Response> {
        self.budget.keep(caller, answer)
    }

    /// Returns what will be answered on `topic`; `None` if too many others wait.
    #[must_use]
    pub fn expect(&self, topic: &str) -> Option<oneshot::Receiver<Value>> {
        let mut requests = lock(&self.requests);
        requests.retain(|_, waiter| !waiter.is_closed());
        if requests.len() >= MAX_REQUESTS {
            return None;
        }
        let (sender, receiver) = oneshot::channel();
        requests.insert(topic.to_owned(), sender);
        Some(receiver)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::time::timeout;

    /// Returns the name of the next event.
    async fn next(events: &mut mpsc::Receiver<Bytes>) -> String {
        let event = timeout(Duration::from_secs(30), events.recv()).await;
        let event = event.expect("in time").expect("event");
        let text = String::from_utf8(event.to_vec()).expect("text");
        let name = text.strip_prefix("event: ").expect("name");
        name.split('\n').next().expect("line").to_owned()
    }

    #[tokio::test]
    async fn a_reader_that_is_too_slow_is_told_and_begins_again() {
        let scope = Scope {
            state: "/nowhere".into(),
            who: None,
        };
        let hub = Arc::new(Hub::new(
            "lab",
            Arc::new(Link::new()),
            scope,
            false,
            Budget::default(),
        ));
        let mut events = hub.stream(true);
        assert_eq!(next(&mut events).await, "network");
        let delivery = Delivery {
            topic: Bytes::from_static(b"lab/x"),
            payload: Bytes::from_static(b"{}"),
            retained: false,
            duplicate: false,
            packet: 0,
            properties: Properties::default(),
        };
        for _ in 0..=MAX_EVENTS + MAX_QUEUED {
            hub.take(&delivery);
        }
        // The first ones may be on their way.
        let mut name = next(&mut events).await;
        for _ in 0..=MAX_QUEUED {
            if name != "message" {
                break;
            }
            name = next(&mut events).await;
        }
        assert_eq!(name, "dropped");
        assert_eq!(next(&mut events).await, "network");
        hub.take(&delivery);
        assert_eq!(next(&mut events).await, "message");
    }

    #[test]
    fn false_starts_have_no_run() {
        let status = |name: &str, ts: i64| json!({ "status": name, "ts": ts });
        let mut statuses = vec![
            status("finished", 9),
            status("falsestart", 6),
            status("started", 5),
        ];
        let heard = ["falsestart", "finished", "falsestart", "falsestart"];
        let heard = heard.iter().zip([8, 7, 6, 1]);
        let heard = heard.map(|(name, ts)| status(name, ts)).collect();
        add_false_starts(&mut statuses, heard);
        let order: Vec<_> = statuses.iter().map(|s| s["ts"].clone()).collect();
        assert_eq!(order, [9, 8, 6, 5, 1]);
    }

    #[tokio::test]
    async fn readers_share_what_has_not_changed() {
        let scope = Scope {
            state: "/nowhere".into(),
            who: None,
        };
        let hub = Arc::new(Hub::new(
            "lab",
            Arc::new(Link::new()),
            scope,
            false,
            Budget::default(),
        ));
        let before = hub.network().expect("memory");
        let same = hub.network().expect("memory");
        assert_eq!(same.as_ptr(), before.as_ptr());
        // Also what no reader hears changes it.
        hub.refuse("/t/x", 403, "no", "unix".into());
        let after = hub.network().expect("memory");
        assert!(
            String::from_utf8_lossy(&after).contains("/t/x"),
            "{after:?}"
        );
    }
}
