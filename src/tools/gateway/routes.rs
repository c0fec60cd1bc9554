//! Requests: who may send them, where they go, and their answers.

use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Instant;

use bytes::Bytes;
use serde_json::json;
use tracing::{debug, warn};

use crate::model::gateway::callers::{host_of, is_same_origin};
use crate::model::gateway::parameters::{self, Wrong};
use crate::model::gateway::rate::{Caller, Rate};
use crate::model::gateway::routes::{Found, Routes};
use crate::model::gateway::work::Kind;
use crate::model::text::printable;
use crate::model::url;
use crate::net::http::{Counts, Head, Response, Seat, Service};
use crate::os::logging::SENDERS;
use crate::tools::gateway::budget::Budget;
use crate::tools::gateway::hooks::{self, Hooks};
use crate::tools::gateway::metrics::{self, Metrics};
use crate::tools::gateway::outgoing::Outgoing;
use crate::tools::gateway::page::{self, Hub};
use crate::tools::gateway::policy::Policy;
use crate::tools::gateway::publisher::Link;
use crate::tools::gateway::replies;
use crate::tools::gateway::units::{self, Units};
use crate::tools::gateway::ways::Ways;
use crate::tools::gateway::work::Submissions;
use crate::tools::gateway::xmlrpc::Rpc;

/// Maximum number of characters of a path in the log.
const SHOWN: usize = 200;

/// What the answers need.
#[derive(Debug)]
pub struct Gateway {
    /// What callers may do.
    pub policy: RwLock<Arc<Policy>>,
    /// Limit on requests for each caller, if there is one.
    pub rate: Mutex<Option<Rate>>,
    /// Ways to the brokers.
    pub ways: Ways,
    /// Routes of the configuration file.
    pub hooks: Hooks,
    /// What calls of XML-RPC reach.
    pub rpc: Rpc,
    /// State of the connection to the broker.
    pub link: Arc<Link>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Numbers about connections.
    pub connections: Arc<Counts>,
    /// What the page shows, if there is one.
    pub page: Option<Arc<Hub>>,
    /// Units of this host.
    pub units: Units,
    /// Memory for large answers.
    pub budget: Budget,
    /// Work that callers submit.
    pub work: Submissions,
    /// Whether callers may do more than send messages and read.
    pub control: bool,
}

/// Where the attributes of a request go.
#[derive(Debug, PartialEq, Eq)]
enum To {
    Topic(String),
    Queue(String),
}

/// Where a request goes.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    Health,
    Metrics,
    Rpc,
    To(To),
    /// A unit of this host.
    Unit(units::Place),
    /// Work for a node.
    Work(Kind),
    /// The page, or what it shows.
    Page(page::Place),
    /// A route of the configuration file.
    Hook,
}

/// Returns where a request goes. The paths of `routes` are not among the others.
///
/// # Errors
/// The answer to one that goes nowhere.
fn place(head: &Head, routes: &Routes) -> Result<Place, Response> {
    let decoded = |name: &str| {
        let wrong = || Response::error(400, "the path is not percent-encoded text");
        url::decoded(name.as_bytes()).ok_or_else(wrong)
    };
    let path = head.path.as_str();
    let (found, methods): (_, &[&str]) = match path {
        "/healthz" => (Place::Health, &["GET", "HEAD"]),
        "/metrics" => (Place::Metrics, &["GET", "HEAD"]),
        "/RPC2" => (Place::Rpc, &["POST"]),
        // The page is there for others.
        "/" if head.method == "POST" => (Place::Rpc, &["POST"]),
        _ => {
            if let Some(topic) = path.strip_prefix("/t/") {
                (Place::To(To::Topic(decoded(topic)?)), &["POST"])
            } else if let Some(queue) = path.strip_prefix("/q/") {
                (Place::To(To::Queue(decoded(queue)?)), &["POST"])
            } else if let Some((unit, methods)) =
                path.strip_prefix("/units/").and_then(units::Place::parse)
            {
                (Place::Unit(unit), methods)
            } else if let Some(kind) = path.strip_prefix("/w/").and_then(Kind::of_path) {
                (Place::Work(kind), &["POST"])
            } else if let Some((shown, methods)) = page::Place::parse(path) {
                (Place::Page(shown), methods)
            } else {
                return match routes.find(&head.method, path) {
                    Found::Route(_) => Ok(Place::Hook),
                    Found::Method => Err(no_method(routes.allow(path))),
                    Found::None if routes.is_near(path) => Err(no_route()),
                    Found::None => Err(nothing()),
                };
            }
        }
    };
    match methods.contains(&head.method.as_str()) {
        true => Ok(found),
        false => Err(no_method(methods.join(", "))),
    }
}

/// Returns the answer to a request for a path that is not there.
fn nothing() -> Response {
    let cause = "there is nothing here: topics are /t/TOPIC, queues /q/QUEUE, work is /w/NODE/TYPE, and \
                 units are /units/ID";
    Response::error(404, cause)
}

/// Returns the answer to a request for a path that looks like that of a route.
fn no_route() -> Response {
    Response::error(404, "no route has this path")
}

/// Returns the answer to a request with another method than those.
fn no_method(allowed: String) -> Response {
    let cause = format!("the method here is {allowed}");
    Response::error(405, &cause).with("allow", allowed)
}

impl Service for Gateway {
    fn admit(&self, head: &Head) -> Result<(), Response> {
        let admitted = self.check(head);
        if let Err(refused) = &admitted {
            let (status, cause) = (refused.status, printable(&refused.cause(), SHOWN));
            let path = printable(&head.path, SHOWN);
            let routes = self.hooks.routes();
            // A sender that has the wrong path may get 401 or 403 before.
            let is_lost = matches!(routes.find(&head.method, &head.path), Found::None);
            match is_lost && routes.is_near(&head.path) && place(head, &routes).is_err() {
                true => warn!(
                    target: SENDERS,
                    "no route has the path '{path}': refused a request with {status}"
                ),
                false => debug!("{} {path}: {status} {cause}", head.method),
            }
            self.refused(head, refused);
        }
        admitted
    }

    async fn answer(&self, head: Head, body: Bytes, seat: &Seat) -> Response {
        let routes = self.hooks.routes();
        let response = match place(&head, &routes) {
            Ok(Place::Health) => self.health(),
            Ok(Place::Metrics) => {
                let text = self.metrics.text(&self.connections, self.link.state().0);
                Response::new(200, metrics::MEDIA, text)
            }
            Ok(Place::Rpc) => {
                let policy = self.policy();
                let caller = seat.caller();
                let rpc = self.rpc.answer((&head, &body), &policy, &self.ways, caller);
                let kept = self.budget.keep(seat, rpc.await);
                kept.await.unwrap_or_else(|refused| refused)
            }
            Ok(Place::To(to)) => {
                let accepted = self.accept(&head, to, &body, seat).await;
                accepted.unwrap_or_else(|refused| refused)
            }
            Ok(Place::Work(kind)) => {
                let answered = self.work.answer((&head, body), &kind, &self.units, seat);
                answered.await.unwrap_or_else(|refused| refused)
            }
            Ok(Place::Unit(unit)) => self.units.answer(&head, &unit, seat).await,
            Ok(Place::Page(shown)) => self.page(&head, &shown, &body, seat).await,
            Ok(Place::Hook) => self.hook(&routes, &head, &body, seat).await,
            Err(refused) => refused,
        };
        if response.status >= 400 {
            self.refused(&head, &response);
        }
        let path = printable(&head.path, SHOWN);
        debug!("{} {path}: {}", head.method, response.status);
        response
    }

    fn answered(&self, status: u16) {
        self.metrics.answered(status);
    }
}

impl Gateway {
    /// Returns what callers may do now.
    #[must_use]
    pub fn policy(&self) -> Arc<Policy> {
        Arc::clone(&self.policy.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Replaces what callers may do.
    pub fn renew(&self, policy: Policy) {
        *self.policy.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(policy);
    }

    /// Replaces the limit on requests; each caller begins anew.
    pub fn renew_rate(&self, rate: Option<Rate>) {
        *self.rate.lock().unwrap_or_else(PoisonError::into_inner) = rate;
    }

    /// Answers a request on one of `routes`.
    async fn hook(&self, routes: &Routes, head: &Head, body: &[u8], seat: &Seat) -> Response {
        let Found::Route(route) = routes.find(&head.method, &head.path) else {
            return nothing();
        };
        // A reload since the admission may have taken away what the route asked its callers for.
        if !route.has_sender()
            && let Err(refused) = self.known(head, false)
        {
            return refused;
        }
        let policy = self.policy();
        let ends = hooks::Ends {
            policy: &policy,
            ways: &self.ways,
            work: &self.work,
            units: &self.units,
            seat,
        };
        let answered = hooks::answer(route, head, body, ends).await;
        let answered = answered.unwrap_or_else(|refused| refused);
        self.metrics.routed(&route.name, answered.status);
        answered
    }

    fn check(&self, head: &Head) -> Result<(), Response> {
        let has_sender = self.hooks.has_sender(head);
        match has_sender {
            // Its signature or token is looked at when the body is there.
            true => self.limit(Caller::at(head.peer))?,
            false => self.known(head, true)?,
        }
        match place(head, &self.hooks.routes())? {
            Place::To(To::Topic(topic)) => self.policy().check_topic(&topic),
            Place::To(To::Queue(queue)) => self.policy().check_queue(&queue),
            Place::Work(kind) => self.policy().check_work(&kind),
            Place::Unit(_) | Place::Page(_) if !matches!(head.method.as_str(), "GET" | "HEAD") => {
                self.controls()
            }
            Place::Unit(_)
            | Place::Page(_)
            | Place::Health
            | Place::Metrics
            | Place::Rpc
            | Place::Hook => Ok(()),
        }
    }

    /// Checks that a caller may call at all; counts it if `counts`.
    fn known(&self, head: &Head, counts: bool) -> Result<(), Response> {
        let policy = self.policy();
        let limit = |caller| match counts {
            true => self.limit(caller),
            false => Ok(()),
        };
        let host = head.field("host").unwrap_or_default();
        // A page of another site reaches us under its own name, by DNS. A Unix socket it cannot reach.
        let is_named = host_of(host).is_some_and(|host| policy.names.contains(&host));
        if policy.tokens.is_none() && head.peer.is_some() && !is_named {
            let cause = "the gateway is not called so: see --server-name";
            return Err(Response::error(403, cause));
        }
        // A route may publish for a GET, which an image on any page can send.
        let routes = self.hooks.routes();
        let is_route = matches!(routes.find(&head.method, &head.path), Found::Route(_));
        let reads = ["GET", "HEAD"].contains(&head.method.as_str()) && !is_route;
        let is_foreign = head.fields.iter().any(|(name, value)| {
            let value = std::str::from_utf8(value).unwrap_or_default();
            match name.as_str() {
                "origin" => !is_same_origin(value, host),
                "sec-fetch-site" => ["cross-site", "same-site"].contains(&value),
                _ => false,
            }
        });
        if !reads && is_foreign {
            return Err(Response::error(403, "pages of other sites may not do that"));
        }
        let address = Caller::at(head.peer);
        if let Some(tokens) = &policy.tokens
            && head.path != "/healthz"
            && !page::Place::parse(&head.path).is_some_and(|(place, _)| place.is_open())
        {
            let given = head.field("authorization");
            let Some(place) = given.and_then(|given| tokens.find(given)) else {
                // Guesses are limited too.
                limit(address)?;
                let refused =
                    Response::error(401, "a token is needed: Authorization: Bearer TOKEN");
                return Err(refused.with("www-authenticate", "Bearer"));
            };
            limit(Caller::Token(place))?;
        } else {
            limit(address)?;
        }
        Ok(())
    }

    /// Looks whether callers may control what runs. They have shown a token then.
    fn controls(&self) -> Result<(), Response> {
        match self.control && self.policy().tokens.is_some() {
            true => Ok(()),
            false => Err(Response::error(
                403,
                "the gateway only reads: see --control",
            )),
        }
    }

    /// Notes for the page that a request was refused.
    fn refused(&self, head: &Head, answer: &Response) {
        // Its 503 is about the broker. The page itself asks without a token first, to learn whether it needs one,
        // and for pipelines and units that may not be here.
        let is_asking = match answer.status {
            401 => head.field("authorization").is_none(),
            404 => true,
            _ => false,
        } && matches!(
            place(head, &self.hooks.routes()),
            Ok(Place::Page(_) | Place::Unit(_))
        ) && matches!(head.method.as_str(), "GET" | "HEAD");
        let hub = self.page.as_ref();
        let Some(hub) = hub.filter(|_| head.path != "/healthz" && !is_asking) else {
            return;
        };
        let peer = head
            .peer
            .map_or_else(|| "unix".to_owned(), |peer| peer.to_string());
        hub.refuse(&head.path, answer.status, &answer.cause(), peer);
    }

    /// Answers a request of the page.
    async fn page(&self, head: &Head, place: &page::Place, body: &[u8], seat: &Seat) -> Response {
        let Some(hub) = &self.page else {
            return Response::error(404, "there is no page: the gateway runs with --no-page");
        };
        page::answer(hub, (head, body), place, &self.ways, seat).await
    }

    /// Counts a request of `caller`.
    fn limit(&self, caller: Caller) -> Result<(), Response> {
        let mut rate = self.rate.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(rate) = rate.as_mut() else {
            return Ok(());
        };
        rate.take(caller, Instant::now()).map_err(|wait| {
            let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
            let refused = Response::error(429, "too many requests: see --rate");
            refused.with("retry-after", seconds.to_string())
        })
    }

    fn health(&self) -> Response {
        let (is_online, since) = self.link.state();
        let status = if is_online { 200 } else { 503 };
        let broker = if is_online { "connected" } else { "away" };
        Response::json(
            status,
            &json!({ "broker": broker, "since": since.as_second() }),
        )
    }

    /// Publishes the attributes of a request to a topic or a queue, and answers when the broker has
    /// them; from a topic with the answer of a client if the caller waits.
    async fn accept(
        &self,
        head: &Head,
        to: To,
        body: &[u8],
        seat: &Seat,
    ) -> Result<Response, Response> {
        let (query, limit) = match to {
            To::Topic(_) => (
                parameters::without(&head.query, "wait"),
                units::wait(&units::query(head)?)?,
            ),
            To::Queue(_) => (head.query.clone(), None),
        };
        let media = head.field("content-type");
        let attributes =
            parameters::attributes(&query, media, body).map_err(|wrong| match wrong {
                Wrong::Media(cause) => Response::error(415, &cause),
                Wrong::Data(cause) => Response::error(400, &cause),
            })?;
        let outgoing = Outgoing::of(head, attributes);
        let outgoing = outgoing.map_err(|cause| Response::error(400, cause))?;
        let id = outgoing.id.clone();
        let sent = match (to, limit) {
            (To::Topic(topic), None) => self.ways.publish(topic, outgoing).await,
            (To::Topic(topic), Some(limit)) => {
                seat.lengthen()?;
                let answer = self.ways.ask(topic, outgoing, limit, seat).await;
                let answer = answer.map_err(|unsent| unsent.response())?;
                return Ok(replies::response(&id, answer.as_ref()));
            }
            (To::Queue(queue), _) => self.ways.put(queue, outgoing).await,
        };
        sent.map_err(|unsent| unsent.response())?;
        Ok(Response::json(202, &json!({ "id": id })))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::gateway::callers::Tokens;
    use crate::model::gateway::topics::Topics;
    use crate::tools::work::Scope;
    use std::time::Duration;
    use tokio::sync::mpsc;

    fn head(method: &str, path: &str, fields: &[(&str, &str)]) -> Head {
        let fields = fields.iter();
        Head {
            method: method.into(),
            path: path.into(),
            query: String::new(),
            fields: fields.map(|(n, v)| ((*n).into(), (*v).into())).collect(),
            peer: Some([127, 0, 0, 1].into()),
        }
    }

    fn routes() -> Routes {
        let text = "[[route]]\nname = 'push'\npath = '/hooks/push'\ntopic = 'lab/push'\n\
            source = 'github'\nsecret-file = 's'\n\
            [[route]]\nname = 'open'\npath = '/hooks/open'\ntopic = 'lab/o'\nmethod = 'GET'";
        let table: toml::Table = text.parse().expect("TOML");
        let list = table.get("route").and_then(toml::Value::as_array);
        Routes::read(
            list.expect("routes"),
            &mut |_| Ok(b"secret".to_vec()),
            &|_| Ok(()),
        )
        .expect("routes")
    }

    fn gateway(tokens: Option<&str>, rate: u32) -> Gateway {
        let tokens = tokens.map(|text| Tokens::parse(text).expect("tokens"));
        let scope = Scope {
            state: "/nowhere".into(),
            who: None,
        };
        let work = Kind::parse("localhost/note").expect("kind");
        let link = Arc::new(Link::new());
        Gateway {
            policy: RwLock::new(Arc::new(Policy {
                tokens,
                names: vec!["localhost".into(), "127.0.0.1".into()],
                topics: Topics::new("lab", &[]).expect("topics"),
                queues: vec!["align".into()],
                work: vec![work],
            })),
            rate: Mutex::new(Rate::of(rate)),
            ways: Ways {
                jobs: crate::tools::gateway::publisher::jobs().0,
                queues: Some(mpsc::channel(1).0),
                limit: Duration::from_secs(1),
                need_listener: false,
                metrics: Arc::default(),
                replies: Arc::new(replies::Replies::new("lab", "gateway", Budget::default())),
                link: Arc::clone(&link),
                stop: tokio::sync::watch::channel(false).1,
            },
            hooks: Hooks::new(routes()),
            rpc: Rpc {
                events: "lab".into(),
                workflows: None,
            },
            link,
            metrics: Arc::default(),
            connections: Arc::default(),
            page: None,
            budget: Budget::default(),
            units: Units::new(
                scope.clone(),
                Budget::default(),
                tokio::sync::watch::channel(false).1,
            ),
            work: Submissions::new(scope, false),
            control: false,
        }
    }

    #[track_caller]
    fn status(gateway: &Gateway, head: &Head) -> u16 {
        gateway
            .admit(head)
            .map_or_else(|refused| refused.status, |()| 0)
    }

    const LOCAL: (&str, &str) = ("host", "localhost:8787");

    #[test]
    fn without_tokens_only_its_own_names_reach_it() {
        let gateway = gateway(None, 0);
        for (fields, want) in [
            (&[LOCAL][..], 0),
            (&[("host", "127.0.0.1")], 0),
            (&[("host", "evil.example")], 403),
            (&[("host", "")], 403),
            (&[], 403),
            (&[LOCAL, ("origin", "http://localhost:8787")], 0),
            (&[LOCAL, ("origin", "http://evil.example")], 403),
            (&[LOCAL, ("origin", "null")], 403),
            (
                &[
                    LOCAL,
                    ("origin", "http://localhost:8787"),
                    ("origin", "http://evil.example"),
                ],
                403,
            ),
            (&[LOCAL, ("sec-fetch-site", "same-origin")], 0),
            (&[LOCAL, ("sec-fetch-site", "none")], 0),
            (&[LOCAL, ("sec-fetch-site", "same-site")], 403),
            (&[LOCAL, ("sec-fetch-site", "cross-site")], 403),
        ] {
            // A route publishes for a GET, too.
            for (method, path) in [("POST", "/t/lab/a"), ("GET", "/hooks/open")] {
                let request = head(method, path, fields);
                assert_eq!(status(&gateway, &request), want, "{method} {fields:?}");
            }
        }
        let get = head(
            "GET",
            "/healthz",
            &[LOCAL, ("origin", "http://evil.example")],
        );
        assert_eq!(
            status(&gateway, &get),
            0,
            "no answer allows others to read it"
        );
        let unix = Head {
            peer: None,
            ..head("POST", "/t/lab/a", &[("host", "x")])
        };
        assert_eq!(status(&gateway, &unix), 0);
    }

    #[test]
    fn tokens_are_needed_and_renewed() {
        let (a, b) = ("aaaaaaaaaaaaaaaa", "bbbbbbbbbbbbbbbb");
        let gateway = gateway(Some(a), 0);
        let with = |token: &str| {
            let bearer = format!("Bearer {token}");
            head(
                "POST",
                "/t/lab/a",
                &[("host", "any"), ("authorization", &bearer)],
            )
        };
        assert_eq!(status(&gateway, &with(a)), 0);
        assert_eq!(status(&gateway, &with(b)), 401);
        assert_eq!(status(&gateway, &head("POST", "/t/lab/a", &[LOCAL])), 401);
        // Not even what there is shows.
        assert_eq!(status(&gateway, &head("GET", "/none", &[LOCAL])), 401);
        assert_eq!(status(&gateway, &head("GET", "/metrics", &[LOCAL])), 401);
        assert_eq!(status(&gateway, &head("GET", "/healthz", &[LOCAL])), 0);
        gateway.renew(Policy {
            tokens: Some(Tokens::parse(b).expect("tokens")),
            ..Policy::clone(&gateway.policy())
        });
        assert_eq!(
            (status(&gateway, &with(a)), status(&gateway, &with(b))),
            (401, 0)
        );
    }

    #[test]
    fn guesses_and_requests_are_limited_for_each_caller() {
        let token = "aaaaaaaaaaaaaaaa";
        let gateway = gateway(Some(token), 2);
        let bearer = format!("Bearer {token}");
        let good = head("POST", "/t/lab/a", &[("authorization", &bearer)]);
        let guess = head("POST", "/t/lab/a", &[("authorization", "Bearer x")]);
        let codes = |head: &Head| [0; 3].map(|_: u16| status(&gateway, head));
        assert_eq!(codes(&guess), [401, 401, 429]);
        assert_eq!(codes(&good), [0, 0, 429]);
        let refused = gateway.admit(&good).expect_err("too many");
        let after = refused
            .fields
            .iter()
            .find(|(name, _)| *name == "retry-after");
        let after: u64 = after.expect("field").1.parse().expect("number");
        assert!((1..=30).contains(&after), "{after}");
    }

    #[test]
    fn routes_with_a_sender_need_no_token_of_ours() {
        let gateway = gateway(Some("aaaaaaaaaaaaaaaa"), 2);
        let push = head("POST", "/hooks/push", &[("host", "any")]);
        let codes = [0; 3].map(|_: u16| status(&gateway, &push));
        assert_eq!(codes, [0, 0, 429], "they are limited");
        let gateway = self::gateway(Some("aaaaaaaaaaaaaaaa"), 0);
        assert_eq!(status(&gateway, &head("GET", "/hooks/open", &[LOCAL])), 401);
        // Without its sender it is a path as others.
        assert_eq!(status(&gateway, &head("PUT", "/hooks/push", &[LOCAL])), 401);
        let gateway = self::gateway(None, 0);
        assert_eq!(status(&gateway, &push), 0);
        let open = head("GET", "/hooks/open", &[("host", "evil.example")]);
        assert_eq!(status(&gateway, &open), 403);
    }

    #[test]
    fn paths_and_methods() {
        let gateway = gateway(None, 0);
        for (method, path, want) in [
            ("GET", "/healthz", 0),
            ("HEAD", "/metrics", 0),
            ("POST", "/healthz", 405),
            ("GET", "/t/lab/a", 405),
            ("PUT", "/t/lab/a", 405),
            ("CONNECT", "", 404),
            ("GET", "/", 0),
            ("POST", "/", 0),
            ("POST", "/RPC2", 0),
            ("PUT", "/RPC2", 405),
            ("POST", "/q/align", 0),
            ("POST", "/q/%61lign", 0),
            ("POST", "/q/other", 403),
            ("POST", "/q/", 403),
            ("GET", "/q/align", 405),
            ("POST", "/hooks/push", 0),
            ("PUT", "/hooks/push", 405),
            ("POST", "/hooks/%70ush", 404),
            ("GET", "/hooks/open", 0),
            ("POST", "/hooks/open", 405),
            ("POST", "/t", 404),
            ("POST", "/t/", 400),
            ("POST", "/t/lab/%", 400),
            ("POST", "/t/lab/%ff", 400),
            ("POST", "/t/lab/%00", 400),
            ("POST", "/t/lab/%23", 400),
            ("POST", "/t/lab/a%2Fb", 0),
            ("POST", "/t/lab/../x", 0),
            ("POST", "/t/other/a", 403),
            ("POST", "/t/$SYS/a", 403),
            ("POST", "/t/lab/infrastructure/pipelines/x/control", 403),
            ("POST", "/w/localhost/note", 0),
            ("POST", "/w/localhost/other", 403),
            ("POST", "/w/other/note", 403),
            ("POST", "/w/localhost", 404),
            ("GET", "/w/localhost/note", 405),
            ("GET", "/units/01JBV7Y3ZK8Q5W2N4T6R9M1XCD", 0),
            ("GET", "/units/01JBV7Y3ZK8Q5W2N4T6R9M1XCD/stdout", 0),
            ("GET", "/units/01JBV7Y3ZK8Q5W2N4T6R9M1XCD/x", 404),
            ("DELETE", "/units/01JBV7Y3ZK8Q5W2N4T6R9M1XCD/stdout", 405),
            ("DELETE", "/units/01JBV7Y3ZK8Q5W2N4T6R9M1XCD", 403),
            ("POST", "/t/lab/%69nfrastructure/pipelines/x/control", 403),
        ] {
            let found = status(&gateway, &head(method, path, &[LOCAL]));
            assert_eq!(found, want, "{method} {path}");
        }
        for (path, cause) in [
            ("/hooks/psh", "no route has this path"),
            ("/lab/a", "topics are /t/TOPIC"),
            ("/w/localhost", "work is /w/NODE/TYPE"),
            ("/w/localhost/other", "add --allow-work localhost/other"),
            ("/w/node7/note", "the client of this host is 'localhost'"),
        ] {
            let refused = gateway.admit(&head("POST", path, &[LOCAL]));
            let told = refused.expect_err(path).cause();
            assert!(told.contains(cause), "{path}: {told}");
        }
        let refused = gateway.admit(&head("PUT", "/healthz", &[LOCAL]));
        let refused = refused.expect_err("wrong method");
        assert!(
            refused.fields.contains(&("allow", "GET, HEAD".into())),
            "{refused:?}"
        );
    }
}
