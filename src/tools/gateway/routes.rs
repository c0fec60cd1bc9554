//! Requests: who may send them, where they go, and their answers.

use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tracing::{debug, info};

use crate::model::event;
use crate::model::gateway::callers::{Tokens, host_of, is_same_origin};
use crate::model::gateway::parameters::{self, Wrong};
use crate::model::gateway::rate::{Caller, Rate};
use crate::model::gateway::topics::{Refusal, Topics};
use crate::model::json;
use crate::model::message::{Message, Properties, Qos, property};
use crate::model::text::{printable, printable_bytes};
use crate::model::url;
use crate::net::http::{Counts, Head, Response, Seat, Service};
use crate::net::mqtt::Audience;
use crate::os::host;
use crate::tools::gateway::metrics::{self, Metrics};
use crate::tools::gateway::publisher::{Failed, Job, Link};
use crate::tools::gateway::units::{Place, Units};

/// Time after which callers try again while the broker is away, seconds.
const RETRY_AFTER: &str = "5";

/// Maximum number of characters of a path in the log.
const SHOWN: usize = 200;

/// Header fields that may hold the id of an event, in the order in which they are looked at.
const ID_FIELDS: [&str; 2] = ["idempotency-key", "x-request-id"];

/// What the answers need.
#[derive(Debug)]
pub struct Gateway {
    /// Tokens, if callers need one.
    pub tokens: Option<RwLock<Tokens>>,
    /// Limit on requests for each caller, if there is one.
    pub rate: Option<Mutex<Rate>>,
    /// Host names by which callers without a token may reach us, in lower case.
    pub names: Vec<String>,
    /// Topics that callers may publish to.
    pub topics: Topics,
    /// Maximum time until the broker confirms a message.
    pub limit: Duration,
    /// Whether a message without a subscriber is a failure.
    pub need_listener: bool,
    /// Way to the broker.
    pub jobs: mpsc::Sender<Job>,
    /// State of the connection to the broker.
    pub link: Arc<Link>,
    /// Counters.
    pub metrics: Metrics,
    /// Numbers about connections.
    pub connections: Arc<Counts>,
    /// Units of this host.
    pub units: Units,
    /// Whether callers may do more than send messages and read.
    pub control: bool,
}

/// Where a request goes.
#[derive(Debug, PartialEq, Eq)]
enum Route {
    Health,
    Metrics,
    Topic(String),
    Unit(Place),
}

/// Returns where a request goes.
///
/// # Errors
/// The answer to one that goes nowhere.
fn route(head: &Head) -> Result<Route, Response> {
    let (found, methods): (_, &[&str]) = match head.path.as_str() {
        "/healthz" => (Some(Route::Health), &["GET", "HEAD"]),
        "/metrics" => (Some(Route::Metrics), &["GET", "HEAD"]),
        path => {
            if let Some(topic) = path.strip_prefix("/t/") {
                let topic = url::decoded(topic.as_bytes());
                let wrong = || Response::error(400, "the path is not percent-encoded text");
                (Some(Route::Topic(topic.ok_or_else(wrong)?)), &["POST"])
            } else if let Some((place, methods)) =
                path.strip_prefix("/units/").and_then(Place::parse)
            {
                (Some(Route::Unit(place)), methods)
            } else {
                (None, &[])
            }
        }
    };
    let Some(found) = found else {
        return Err(Response::error(404, "there is nothing here"));
    };
    match methods.contains(&head.method.as_str()) {
        true => Ok(found),
        false => {
            let allowed = methods.join(", ");
            let cause = format!("the method here is {allowed}");
            Err(Response::error(405, &cause).with("allow", allowed))
        }
    }
}

impl Service for Gateway {
    fn admit(&self, head: &Head) -> Result<(), Response> {
        let admitted = self.check(head);
        if let Err(refused) = &admitted {
            let (status, cause) = (refused.status, printable_bytes(refused.body.whole(), SHOWN));
            let path = printable(&head.path, SHOWN);
            debug!("{} {path}: {status} {cause}", head.method);
        }
        admitted
    }

    async fn answer(&self, head: Head, body: Bytes, seat: &Seat) -> Response {
        let response = match route(&head) {
            Ok(Route::Health) => self.health(),
            Ok(Route::Metrics) => {
                let text = self.metrics.text(&self.connections, self.link.state().0);
                Response::new(200, metrics::MEDIA, text)
            }
            Ok(Route::Topic(topic)) => self.publish(&head, topic, &body).await,
            Ok(Route::Unit(place)) => self.units.answer(&head, &place, seat).await,
            Err(refused) => refused,
        };
        let path = printable(&head.path, SHOWN);
        debug!("{} {path}: {}", head.method, response.status);
        response
    }

    fn answered(&self, status: u16) {
        self.metrics.answered(status);
    }
}

impl Gateway {
    /// Replaces the tokens.
    pub fn renew(&self, tokens: Tokens) {
        if let Some(own) = &self.tokens {
            *own.write().unwrap_or_else(PoisonError::into_inner) = tokens;
            info!("the tokens are read again");
        }
    }

    fn check(&self, head: &Head) -> Result<(), Response> {
        let host = head.field("host").unwrap_or_default();
        // A page of another site reaches us under its own name, by DNS. A Unix socket it cannot reach.
        let is_named = self.names.contains(&host_of(host));
        if self.tokens.is_none() && head.peer.is_some() && !is_named {
            let cause = "the gateway is not called so: see --server-name";
            return Err(Response::error(403, cause));
        }
        let reads = ["GET", "HEAD"].contains(&head.method.as_str());
        let origin = head.fields.iter().find(|(name, _)| name == "origin");
        let is_foreign = origin.is_some_and(|(_, origin)| {
            let origin = std::str::from_utf8(origin).unwrap_or_default();
            !is_same_origin(origin, host)
        });
        if !reads && is_foreign {
            return Err(Response::error(403, "pages of other sites may not do that"));
        }
        let address = Caller::at(head.peer);
        if let Some(tokens) = &self.tokens
            && head.path != "/healthz"
        {
            let tokens = tokens.read().unwrap_or_else(PoisonError::into_inner);
            let given = head.field("authorization");
            let Some(place) = given.and_then(|given| tokens.find(given)) else {
                // Guesses are limited too.
                self.limit(address)?;
                let refused =
                    Response::error(401, "a token is needed: Authorization: Bearer TOKEN");
                return Err(refused.with("www-authenticate", "Bearer"));
            };
            self.limit(Caller::Token(place))?;
        } else {
            self.limit(address)?;
        }
        match route(head)? {
            Route::Topic(topic) => self.topics.check(&topic).map_err(|refusal| match refusal {
                Refusal::Wrong(cause) => Response::error(400, &cause),
                Refusal::Forbidden(cause) => Response::error(403, &cause),
            }),
            Route::Unit(_) if !reads => self.controls(),
            Route::Unit(_) | Route::Health | Route::Metrics => Ok(()),
        }
    }

    /// Looks whether callers may control what runs. They have shown a token then.
    fn controls(&self) -> Result<(), Response> {
        match self.control && self.tokens.is_some() {
            true => Ok(()),
            false => Err(Response::error(
                403,
                "the gateway only reads: see --control",
            )),
        }
    }

    /// Counts a request of `caller`.
    fn limit(&self, caller: Caller) -> Result<(), Response> {
        let Some(rate) = &self.rate else {
            return Ok(());
        };
        let mut rate = rate.lock().unwrap_or_else(PoisonError::into_inner);
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

    /// Publishes the attributes of a request, and answers when the broker has them.
    async fn publish(&self, head: &Head, topic: String, body: &[u8]) -> Response {
        let media = head.field("content-type");
        let attributes = match parameters::attributes(&head.query, media, body) {
            Ok(attributes) => attributes,
            Err(Wrong::Media(cause)) => return Response::error(415, &cause),
            Err(Wrong::Data(cause)) => return Response::error(400, &cause),
        };
        let id = match id_of(head) {
            Ok(id) => id,
            Err(cause) => return Response::error(400, cause),
        };
        let mut user = vec![
            (property::ID.to_owned(), id.clone()),
            (property::HOST.to_owned(), host::hostname()),
        ];
        let trace = head
            .field(property::TRACEPARENT)
            .filter(|t| event::is_traceparent(t));
        user.extend(trace.map(|trace| (property::TRACEPARENT.to_owned(), trace.to_owned())));
        let message = Message {
            topic,
            payload: json::to_text(&Value::Object(attributes)).into(),
            qos: Qos::AtLeastOnce,
            retain: false,
            properties: Properties {
                user,
                ..Properties::default()
            },
        };
        let result = self.confirmed(message).await;
        let counter = match result {
            Ok(_) => &self.metrics.confirmed,
            Err(_) => &self.metrics.unconfirmed,
        };
        counter.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let away = |cause: &str| Response::error(503, cause).with("retry-after", RETRY_AFTER);
        match result {
            Ok(Audience::None) if self.need_listener => {
                away("no client subscribes to the topic, so the broker dropped the message")
            }
            Ok(_) => Response::json(202, &json!({ "id": id })),
            Err(Some(Failed::Away)) => {
                away("the broker is away, or went away before it confirmed the message")
            }
            Err(Some(Failed::Busy)) => away("too many messages wait for the broker"),
            Err(Some(Failed::Unable(cause))) => away(&cause),
            Err(Some(Failed::Refused(cause))) => Response::error(403, &cause),
            Err(Some(Failed::TooLarge(cause))) => Response::error(413, &cause),
            Err(None) => away("the broker has not confirmed the message in time"),
        }
    }

    /// Publishes `message`, and returns when the broker has confirmed it. `None` is the error when
    /// it does not in time.
    async fn confirmed(&self, message: Message) -> Result<Audience, Option<Failed>> {
        let (reply, result) = oneshot::channel();
        let sent = async {
            // The loop that takes them ends with the process.
            let gone = || Some(Failed::Away);
            self.jobs
                .send(Job { message, reply })
                .await
                .map_err(|_| gone())?;
            result.await.map_err(|_| gone())?.map_err(Some)
        };
        timeout(self.limit, sent).await.unwrap_or(Err(None))
    }
}

/// Returns the id of the event that a request is: that of the caller, or a new one. The id that a
/// proxy has given is taken only if it can be one.
///
/// # Errors
/// When the caller has chosen one that cannot be an id.
fn id_of(head: &Head) -> Result<String, &'static str> {
    for name in ID_FIELDS {
        let Some((_, given)) = head.fields.iter().find(|(own, _)| own == name) else {
            continue;
        };
        match std::str::from_utf8(given)
            .ok()
            .filter(|id| event::is_id(id))
        {
            Some(id) => return Ok(id.to_owned()),
            None if name == "idempotency-key" => {
                return Err("an Idempotency-Key has 1 to 64 letters, digits or . _ : -");
            }
            None => {}
        }
    }
    Ok(host::new_id())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tools::work::Scope;

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

    fn gateway(tokens: Option<&str>, rate: u32) -> Gateway {
        let tokens = tokens.map(|text| Tokens::parse(text).expect("tokens"));
        Gateway {
            tokens: tokens.map(RwLock::new),
            rate: (rate > 0).then(|| Mutex::new(Rate::new(rate, rate))),
            names: vec!["localhost".into(), "127.0.0.1".into()],
            topics: Topics::new("lab", &[]).expect("topics"),
            limit: Duration::from_secs(1),
            need_listener: false,
            jobs: crate::tools::gateway::publisher::jobs().0,
            link: Arc::new(Link::new()),
            metrics: Metrics::default(),
            connections: Arc::default(),
            units: Units::new(
                Scope {
                    state: "/nowhere".into(),
                    who: None,
                },
                tokio::sync::watch::channel(false).1,
            ),
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
        ] {
            let post = head("POST", "/t/lab/a", fields);
            assert_eq!(status(&gateway, &post), want, "{fields:?}");
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
        gateway.renew(Tokens::parse(b).expect("tokens"));
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
    fn paths_and_methods() {
        let gateway = gateway(None, 0);
        for (method, path, want) in [
            ("GET", "/healthz", 0),
            ("HEAD", "/metrics", 0),
            ("POST", "/healthz", 405),
            ("GET", "/t/lab/a", 405),
            ("PUT", "/t/lab/a", 405),
            ("CONNECT", "", 404),
            ("GET", "/", 404),
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
        let refused = gateway.admit(&head("PUT", "/healthz", &[LOCAL]));
        let refused = refused.expect_err("wrong method");
        assert!(
            refused.fields.contains(&("allow", "GET, HEAD".into())),
            "{refused:?}"
        );
    }

    #[test]
    fn callers_may_choose_the_id() {
        let of = |fields: &[(&str, &str)]| id_of(&head("POST", "/", fields));
        assert_eq!(of(&[("idempotency-key", "a-1")]).as_deref(), Ok("a-1"));
        assert_eq!(of(&[("x-request-id", "b")]).as_deref(), Ok("b"));
        let both = [("x-request-id", "b"), ("idempotency-key", "a")];
        assert_eq!(of(&both).as_deref(), Ok("a"));
        for wrong in ["", "a b", "ä", &"a".repeat(event::MAX_ID_BYTES + 1)] {
            assert!(of(&[("idempotency-key", wrong)]).is_err(), "{wrong}");
            let new = of(&[("x-request-id", wrong)]).expect("a new one");
            assert!(event::is_id(&new) && new != wrong);
        }
    }
}
