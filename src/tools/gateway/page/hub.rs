//! The network as the one subscription of the gateway shows it, and all who look at it.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::model::drawing::svg;
use crate::model::gateway::rate::Caller;
use crate::model::marker;
use crate::model::message::{Delivery, Message, Properties, Qos};
use crate::model::page::{Change, Page, Refused, message};
use crate::model::topic::{Filter, check_who};
use crate::net::http::{Response, Seat};
use crate::net::retained_end::{RetainedEnd, SILENCE};
use crate::os::host;
use crate::tools::gateway::blocking::Threads;
use crate::tools::gateway::budget::Budget;
use crate::tools::gateway::page::feed::{Feed, Source};
use crate::tools::gateway::page::ledger;
use crate::tools::gateway::page::lock::lock;
use crate::tools::gateway::page::requests::Requests;
use crate::tools::gateway::page::snapshots::Draft;
use crate::tools::gateway::publisher::Link;
use crate::tools::work::Scope;

/// Maximum number of threads for ledgers and drawings.
const MAX_READS: usize = 4;

/// Maximum number of pipelines whose ledgers are read again at a time.
const MAX_LOCAL: usize = 64;

/// Delay before the changes of a graph and of ledgers are told: they come in bursts.
const GATHER: Duration = Duration::from_millis(200);

/// Interval between two looks for beacons and nodes that have become silent.
const LOOK: Duration = Duration::from_secs(15);

/// The network, and who looks at it.
#[derive(Debug)]
pub struct Hub {
    page: Mutex<Page>,
    /// What readers get. Changes are added under the lock of the page.
    feed: Arc<Feed>,
    /// Who starts whom, as JSON, of that version of the graph.
    edges: Mutex<Option<(u64, Bytes)>>,
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
    requests: Requests,
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
            feed: Arc::new(Feed::new()),
            edges: Mutex::default(),
            link,
            scope,
            budget,
            host: host::hostname(),
            marker: marker::topic(root, &host::new_id()),
            control,
            reads: Threads::new(MAX_READS),
            drawing: Mutex::default(),
            later: Mutex::default(),
            requests: Requests::new(),
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

    /// Takes a message of the subscription.
    pub fn take(&self, delivery: &Delivery) {
        let now = now();
        self.requests.take(delivery);
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
        if self.feed.is_read() && !marker::is_marker(&delivery.topic) {
            self.feed.emit(message(delivery, now));
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
            self.feed.emit(change);
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
        self.feed.emit(("broker", self.broker_json()));
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
        self.feed.emit(("broker", self.broker_json()));
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
        let change = page.refuse(&refused);
        self.feed.emit(change);
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
            self.feed.emit(("edges", json!({})));
        }
        if later.end.is_some_and(|end| end.at() <= Instant::now()) {
            later.settle(&mut page);
        }
        if later.next_look.is_some_and(|at| at <= Instant::now()) {
            later.next_look = None;
            self.feed.forget();
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
        let read = self.reads.run(None, move || ledger::live(&pipeline)).await;
        // What was heard has to do when there is no ledger, or it cannot be read.
        if let Ok((running, waiting)) = read {
            let mut page = lock(&self.page);
            if let Some(change) = page.local(&who, running, waiting) {
                self.feed.emit(change);
            }
        }
    }

    /// Returns the folder of a pipeline of this host.
    fn pipeline(&self, who: &str) -> Option<PathBuf> {
        let is_here = lock(&self.page).host(who) == Some(&self.host);
        (is_here && check_who(who).is_ok()).then(|| self.scope.state.join(who))
    }

    /// Returns everything, as JSON: as new as the request.
    ///
    /// # Errors
    /// The answer when it cannot be made.
    pub async fn network(self: &Arc<Self>) -> Result<Response, Response> {
        self.feed.network(Arc::clone(self)).await
    }

    /// Returns the events for a new reader: first everything, then what changes, with or without `messages`.
    ///
    /// # Errors
    /// The answer when it cannot be made.
    pub async fn stream(
        self: &Arc<Self>,
        messages: bool,
    ) -> Result<mpsc::Receiver<Bytes>, Response> {
        self.feed.stream(messages, Arc::clone(self)).await
    }

    /// Returns the drawing.
    ///
    /// # Errors
    /// The answer when it cannot be made.
    pub async fn graph(self: &Arc<Self>, caller: Caller) -> Result<Response, Response> {
        let hub = Arc::clone(self);
        let drawn = move || {
            // One at a time: the next finds it ready.
            let mut drawing = lock(&hub.drawing);
            let (network, root, version) = {
                let page = lock(&hub.page);
                if let Some((version, bytes)) = &*drawing
                    && *version == page.version()
                {
                    return Ok(bytes.clone());
                }
                (
                    page.network().clone(),
                    page.root().to_owned(),
                    page.version(),
                )
            };
            let bytes = Bytes::from(svg(&network.graph(&root)).0);
            *drawing = Some((version, bytes.clone()));
            Ok(bytes)
        };
        let bytes = self.reads.run(Some(caller), drawn).await?;
        let policy = "default-src 'none'; style-src 'none'; sandbox";
        Ok(Response::new(200, "image/svg+xml", bytes).with("content-security-policy", policy))
    }

    /// Returns the last runs of a pipeline, and where they are from; `None` if it is unknown.
    pub async fn runs(
        &self,
        who: &str,
        limit: usize,
        caller: Caller,
    ) -> Option<(&'static str, Vec<Value>)> {
        if let Some(pipeline) = self.pipeline(who) {
            let read = move || ledger::runs(&pipeline, limit);
            if let Ok(runs) = self.reads.run(Some(caller), read).await {
                return Some(("ledger", runs));
            }
        }
        let runs = lock(&self.page).runs(who, limit)?;
        Some(("heard", runs))
    }

    /// Returns the last statuses of a pipeline, and where they are from; `None` if it is unknown.
    pub async fn statuses(
        &self,
        who: &str,
        limit: usize,
        caller: Caller,
    ) -> Option<(&'static str, Vec<Value>)> {
        if let Some(pipeline) = self.pipeline(who) {
            let read = move || ledger::statuses(&pipeline, limit);
            if let Ok(mut statuses) = self.reads.run(Some(caller), read).await {
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

    /// Returns whether the broker has told of all pipelines, and of none called `who`.
    #[must_use]
    pub fn is_unknown(&self, who: &str) -> bool {
        let page = lock(&self.page);
        let has_all = self.link.state().0 && lock(&self.later).end.is_none();
        has_all && page.host(who).is_none() && page.runs(who, 0).is_none()
    }

    /// Returns an answer of the caller that has the `seat`, when there is memory for it.
    ///
    /// # Errors
    /// The answer when there is none.
    pub async fn keep(&self, seat: &Seat, answer: Response) -> Result<Response, Response> {
        self.budget.keep(seat, answer).await
    }

    /// Returns what `caller` will be answered on `topic`; `None` if too many requests wait.
    #[must_use]
    pub fn expect(&self, caller: Caller, topic: &str) -> Option<oneshot::Receiver<Value>> {
        self.requests.expect(caller, topic)
    }
}

impl Source for Arc<Hub> {
    /// Has the lock of the page for a short time only.
    fn write(&self, draft: &mut Draft) {
        let known = lock(&self.edges).clone();
        let version = known.as_ref().map(|(version, _)| *version);
        let (pieces, broker) = {
            let page = lock(&self.page);
            self.feed.mark(draft);
            (page.pieces(version, now()), self.broker_json())
        };
        let edges = match pieces.edges() {
            (version, Some(edges)) => {
                *lock(&self.edges) = Some((version, edges.clone()));
                edges
            }
            (_, None) => known.map(|(_, edges)| edges).unwrap_or_default(),
        };
        let more = [
            ("broker", broker),
            ("control", self.control.into()),
            ("version", env!("CARGO_PKG_VERSION").into()),
            ("host", self.host.as_str().into()),
        ];
        let more = more.map(|(key, value)| (key.to_owned(), value));
        pieces.write(&more.into_iter().collect(), &edges, &mut |part| {
            draft.write(part);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tools::gateway::page::feed::MAX_QUEUED;
    use crate::tools::gateway::page::log::MAX_EVENTS;
    use crate::tools::gateway::page::snapshots::Snapshot;
    use std::collections::HashMap;
    use tokio::time::timeout;

    fn hub() -> Arc<Hub> {
        let scope = Scope {
            state: "/nowhere".into(),
            who: None,
        };
        let budget = Budget::default();
        Arc::new(Hub::new("lab", Arc::new(Link::new()), scope, false, budget))
    }

    fn delivery(topic: &str, payload: &str) -> Delivery {
        Delivery {
            topic: Bytes::from(topic.to_owned()),
            payload: Bytes::from(payload.to_owned()),
            retained: false,
            duplicate: false,
            packet: 0,
            properties: Properties::default(),
        }
    }

    /// A stream of events, as a browser reads it.
    struct Stream {
        bytes: mpsc::Receiver<Bytes>,
        text: String,
    }

    impl Stream {
        async fn open(hub: &Arc<Hub>) -> Self {
            let bytes = hub.stream(true).await.expect("stream");
            let text = String::new();
            Self { bytes, text }
        }

        /// Returns the name, the id and the data of the next event.
        async fn next(&mut self) -> (String, Option<u64>, Value) {
            loop {
                if let Some((event, rest)) = self.text.split_once("\n\n") {
                    let field = |name: &str| {
                        let mut lines = event.lines();
                        lines.find_map(|line| line.strip_prefix(name).map(str::to_owned))
                    };
                    let name = field("event: ").expect("name");
                    let id = field("id: ").map(|id| id.parse().expect("number"));
                    let data = field("data: ").expect("data");
                    let data = serde_json::from_str(&data).expect("JSON");
                    self.text = rest.to_owned();
                    return (name, id, data);
                }
                let more = timeout(Duration::from_secs(30), self.bytes.recv()).await;
                let more = more.expect("in time").expect("event");
                self.text += std::str::from_utf8(&more).expect("text");
            }
        }
    }

    /// Returns everything.
    async fn network(hub: &Arc<Hub>) -> Arc<Snapshot> {
        let asked = Instant::now();
        let got = hub.feed.snapshots().get(|own| own.is_after(asked), {
            let hub = Arc::clone(hub);
            move |draft| hub.write(draft)
        });
        got.await.expect("snapshot")
    }

    #[tokio::test]
    async fn a_reader_that_is_too_slow_is_told_and_begins_again() {
        let hub = hub();
        let mut events = Stream::open(&hub).await;
        assert_eq!(events.next().await.0, "network");
        let message = delivery("lab/x", "{}");
        for _ in 0..=MAX_EVENTS + MAX_QUEUED {
            hub.take(&message);
        }
        // The first ones may be on their way.
        let mut name = events.next().await.0;
        for _ in 0..=MAX_QUEUED {
            if name != "message" {
                break;
            }
            name = events.next().await.0;
        }
        assert_eq!(name, "dropped");
        assert_eq!(events.next().await.0, "network");
        // It has the place of a snapshot that is shared; what came after that follows.
        hub.take(&delivery("lab/y", "{}"));
        let is_last = |event: &(String, Option<u64>, Value)| event.2["topic"] == "lab/y";
        while !is_last(&events.next().await) {}
    }

    #[tokio::test]
    async fn readers_that_share_a_snapshot_miss_nothing_and_get_nothing_twice() {
        let hub = hub();
        let place = "lab/infrastructure/pipelines";
        let tell = |hub: &Hub, n: usize| {
            let presence = json!({ "state": "online", "since": n }).to_string();
            let topic = format!("{place}/p{}/presence", n % 50);
            hub.take(&delivery(&topic, &presence));
        };
        let mut readers = Vec::new();
        for n in 0..400 {
            tell(&hub, n);
            if n % 10 == 0 {
                // Many share what a thread has made some changes ago.
                readers.push(Stream::open(&hub).await);
            }
        }
        let last = hub.feed.number();
        let mut shared = std::collections::HashSet::new();
        for events in &mut readers {
            let (name, id, all) = events.next().await;
            let mut known = id.expect("number");
            assert_eq!(name, "network");
            shared.insert(known);
            let mut since: HashMap<String, Value> = HashMap::new();
            for pipeline in all["pipelines"].as_array().expect("list") {
                let who = pipeline["who"].as_str().expect("name").to_owned();
                since.insert(who, pipeline["since"].clone());
            }
            while known < last {
                let (name, id, data) = events.next().await;
                if name == "message" {
                    continue;
                }
                assert_eq!((name.as_str(), id), ("pipeline", Some(known + 1)));
                known += 1;
                let who = data["who"].as_str().expect("name").to_owned();
                since.insert(who, data["since"].clone());
            }
            for n in 350..400 {
                assert_eq!(since[&format!("p{}", n % 50)], n);
            }
        }
        assert!(shared.len() < readers.len(), "none was shared");
    }

    #[tokio::test]
    async fn refused_requests_do_not_make_snapshots() {
        let hub = hub();
        let _reader = Stream::open(&hub).await;
        let before = lock_latest(&hub);
        for _ in 0..10 {
            hub.refuse("/t/x", 403, "no", "unix".into());
            Stream::open(&hub).await;
        }
        assert!(Arc::ptr_eq(&before, &lock_latest(&hub)));
    }

    fn lock_latest(hub: &Hub) -> Arc<Snapshot> {
        hub.feed.snapshots().latest().expect("snapshot")
    }

    #[tokio::test]
    async fn an_answer_is_as_new_as_its_request() {
        let hub = hub();
        let text = |own: &Snapshot| {
            let chunks = (0..own.count()).map(|n| own.chunk(n).expect("chunk"));
            chunks
                .map(|chunk| String::from_utf8_lossy(&chunk).into_owned())
                .collect::<String>()
        };
        for n in 0..3 {
            let path = format!("/t/{n}");
            hub.refuse(&path, 403, "no", "unix".into());
            let all = text(&*network(&hub).await);
            assert!(all.contains(&path), "{all}");
            // What has not changed is shared.
            let before = hub.feed.snapshots().latest().expect("snapshot");
            assert!(hub.network().await.is_ok());
            assert!(Arc::ptr_eq(
                &before,
                &hub.feed.snapshots().latest().expect("snapshot")
            ));
        }
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
}
