//! A small HTTP/1.1 server (RFC 9110, RFC 9112) with limits, over one library. The tools see requests
//! and responses only.

mod address;
mod body;
mod connection;
mod door;
pub mod event;
mod io;
mod seat;
mod table;
#[cfg(test)]
mod tests;
mod timer;
mod tls;

use std::net::IpAddr;
use std::time::Duration;

use bytes::Bytes;
use serde_json::json;
use tokio::sync::mpsc;

use crate::model::text::escaped_json;

pub use address::Address;
pub use body::{Body, Parts};
pub use door::{Listener, serve};
pub use seat::{Counts, Seat};
pub use tls::{Identity, Tls};

/// Maximum number of connections, without those with a long answer. Others wait. While callers want more,
/// none has more than its fair share of these and of the two that follow. A caller is an address; all
/// peers of a Unix socket are one.
pub const MAX_CONNECTIONS: usize = 64;

/// Maximum number of connections that wait for a place. Others are answered with 503, and closed.
pub const MAX_QUEUED: usize = 256;

/// Maximum number of connections with a long answer: streams, and requests that wait for an end. Others
/// are answered with 503.
pub const MAX_LONG: usize = 256;

/// Maximum number of long answers that give way to those of others and have not ended yet. They are there
/// beside [`MAX_LONG`].
pub const MAX_ENDING: usize = 64;

/// Maximum size of the request line and the header fields together, bytes; more is answered with 431.
pub const MAX_HEAD: usize = 16 * 1024;

/// Maximum number of header fields; more is answered with 431.
pub const MAX_FIELDS: usize = 100;

/// Maximum size of a body, bytes; more is answered with 413.
pub const MAX_BODY: usize = 1024 * 1024;

/// Minimum rate at which clients read answers of known length, bytes per second.
pub const MIN_RATE: usize = 64 * 1024;

/// Maximum times of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    /// Until the head of a request is there. It starts with the connection, or with the end of the
    /// answer before, so it limits idle connections too.
    pub head: Duration,
    /// For which a connection waits for a place when there are too many; then it is answered with 503.
    pub queue: Duration,
    /// For which the head of a request may not be there while others wait for the place.
    pub idle: Duration,
    /// For which a client with more than its share may let us wait, for a head, a body, or to read an
    /// answer, while others wait for the place.
    pub rush: Duration,
    /// Until the body is there, from the end of the head; later is answered with 408.
    pub body: Duration,
    /// For which a client may read nothing of an answer that waits for it. It has to have read an answer of
    /// known length after this time and one second for each [`MIN_RATE`] bytes.
    pub stall: Duration,
    /// Without an event after which a stream of events shows that it is alive.
    pub alive: Duration,
    /// For which a connection is read after an answer that ends it, so that the client gets that
    /// answer (RFC 9112, section 9.6).
    pub linger: Duration,
    /// Until the answers that are being made have ended, when the server stops.
    pub stop: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            head: Duration::from_secs(10),
            queue: Duration::from_secs(5),
            idle: Duration::from_secs(1),
            rush: Duration::from_millis(250),
            body: Duration::from_secs(10),
            stall: Duration::from_secs(10),
            alive: Duration::from_secs(15),
            linger: Duration::from_secs(1),
            stop: Duration::from_secs(5),
        }
    }
}

/// Request line and header fields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// Method, as it came.
    pub method: String,
    /// Path, as it came: not decoded.
    pub path: String,
    /// Query without its `?`, not decoded; empty if there is none.
    pub query: String,
    /// Header fields in order; names in lower case.
    pub fields: Vec<(String, Vec<u8>)>,
    /// Address of the client; `None` on a Unix socket.
    pub peer: Option<IpAddr>,
}

impl Head {
    /// Returns the first field called `name`, in lower case, if it is text.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&str> {
        let found = self.fields.iter().find(|(own, _)| own == name);
        found.and_then(|(_, value)| std::str::from_utf8(value).ok())
    }
}

/// An answer.
#[derive(Debug)]
pub struct Response {
    /// Status code, 200 to 599.
    pub status: u16,
    /// Header fields. The server adds the length and the date.
    pub fields: Vec<(&'static str, String)>,
    /// Body.
    pub body: Body,
}

impl Response {
    /// Returns an answer with a text of that media type.
    pub fn new(status: u16, media: impl Into<String>, body: impl Into<Bytes>) -> Self {
        Self {
            status,
            fields: vec![
                ("content-type", media.into()),
                ("cache-control", "no-store".to_owned()),
                ("x-content-type-options", "nosniff".to_owned()),
            ],
            body: Body::Whole(body.into()),
        }
    }

    /// Returns an answer with a body that comes part by part.
    #[must_use]
    pub fn parts(media: &'static str, parts: Parts) -> Self {
        Self {
            body: Body::Parts(parts),
            ..Self::new(200, media, Bytes::new())
        }
    }

    /// Returns an answer with the bytes that come from a channel.
    #[must_use]
    pub fn stream(media: &'static str, bytes: mpsc::Receiver<Bytes>) -> Self {
        let body = Body::Stream {
            bytes,
            is_events: false,
        };
        Self {
            body,
            ..Self::new(200, media, Bytes::new())
        }
    }

    /// Returns an answer with events, as [`event::encoded`] makes them, that come from a channel.
    #[must_use]
    pub fn events(events: mpsc::Receiver<Bytes>) -> Self {
        let body = Body::Stream {
            bytes: events,
            is_events: true,
        };
        let empty = Self::new(200, "text/event-stream", Bytes::new());
        // Otherwise nginx keeps events back.
        let empty = empty.with("x-accel-buffering", "no");
        Self { body, ..empty }
    }

    /// Returns an answer with a JSON object.
    #[must_use]
    pub fn json(status: u16, value: &serde_json::Value) -> Self {
        let text = escaped_json(&value.to_string());
        Self::new(status, "application/json", text + "\n")
    }

    /// Returns the answer of an error, which is one line.
    #[must_use]
    pub fn error(status: u16, cause: &str) -> Self {
        Self::json(status, &json!({ "error": cause }))
    }

    /// Returns the cause that the answer of an error names; an empty text if it is no such answer.
    #[must_use]
    pub fn cause(&self) -> String {
        let body: serde_json::Value = serde_json::from_slice(self.body.whole()).unwrap_or_default();
        let cause = body.get("error").and_then(serde_json::Value::as_str);
        cause.unwrap_or_default().to_owned()
    }

    /// Adds a header field.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.fields.push((name, value.into()));
        self
    }

    /// Ends the connection after this answer.
    #[must_use]
    fn last(self) -> Self {
        self.with("connection", "close")
    }
}

/// What a server does with requests.
pub trait Service: Send + Sync + 'static {
    /// Looks at a request before its body is read.
    ///
    /// # Errors
    /// The answer to a request that is refused; its body is not read.
    fn admit(&self, head: &Head) -> Result<(), Response>;

    /// Answers a request that was admitted. An answer that waits long takes another `seat` first. It
    /// is dropped when its client leaves then.
    fn answer(&self, head: Head, body: Bytes, seat: &Seat)
    -> impl Future<Output = Response> + Send;

    /// Looks at every answer that goes out, refusals of the server included.
    fn answered(&self, status: u16);
}
