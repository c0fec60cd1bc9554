//! What goes out for a request, and why it does not.

use serde_json::Value;

use crate::model::event::{self, Attributes};
use crate::model::json;
use crate::model::message::property;
use crate::net::http::{Head, Response};
use crate::os::host;

/// Time after which callers try again while a broker is away, seconds.
const RETRY_AFTER: &str = "5";

/// What is published for a request.
#[derive(Debug, Clone, PartialEq)]
pub struct Outgoing {
    /// Attributes of the event.
    pub attributes: Attributes,
    /// Id of the event.
    pub id: String,
    /// The caller's `traceparent`, if it is one.
    pub trace: Option<String>,
}

/// Why something is not published for certain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsent {
    /// Status of the answer: 503 if the caller may send again, otherwise 403, 404 or 413.
    pub status: u16,
    /// A text for the caller.
    pub cause: String,
}

impl Unsent {
    /// Returns one that may pass.
    pub fn away(cause: impl Into<String>) -> Self {
        let cause = cause.into();
        Self { status: 503, cause }
    }

    /// Returns one that stays.
    pub fn refused(status: u16, cause: impl Into<String>) -> Self {
        let cause = cause.into();
        Self { status, cause }
    }

    /// Returns the answer.
    #[must_use]
    pub fn response(&self) -> Response {
        let response = Response::error(self.status, &self.cause);
        match self.status {
            503 => response.with("retry-after", RETRY_AFTER),
            _ => response,
        }
    }
}

impl Outgoing {
    /// Returns the event of a request, whose id is that of the caller or a new one.
    ///
    /// # Errors
    /// When the caller has chosen one that cannot be an id.
    pub fn of(head: &Head, attributes: Attributes) -> Result<Self, &'static str> {
        Ok(Self::with_id(head, attributes, id_of(head)?))
    }

    /// Returns the event `id` of a request.
    #[must_use]
    pub fn with_id(head: &Head, attributes: Attributes, id: String) -> Self {
        let trace = head.field(property::TRACEPARENT);
        Self {
            attributes,
            id,
            trace: trace
                .filter(|t| event::is_traceparent(t))
                .map(str::to_owned),
        }
    }

    /// Returns the payload.
    #[must_use]
    pub fn payload(self) -> String {
        json::to_text(&Value::Object(self.attributes))
    }

    /// Returns what is known beside the payload.
    #[must_use]
    pub fn properties(&self) -> Vec<(String, String)> {
        let mut list = vec![
            (property::ID.to_owned(), self.id.clone()),
            (property::HOST.to_owned(), host::hostname()),
        ];
        let trace = self.trace.iter();
        list.extend(trace.map(|trace| (property::TRACEPARENT.to_owned(), trace.clone())));
        list
    }
}

/// Returns the `Idempotency-Key` of a request, if it has one.
///
/// # Errors
/// When it cannot be an id.
pub fn key_of(head: &Head) -> Result<Option<&str>, &'static str> {
    match id_in(head, "idempotency-key") {
        Some(None) => Err("an Idempotency-Key has 1 to 64 letters, digits or . _ : -"),
        key => Ok(key.flatten()),
    }
}

/// Returns the id of the event that a request is: that of the caller, or a new one. The id that a
/// proxy has given is taken only if it can be one.
fn id_of(head: &Head) -> Result<String, &'static str> {
    let key = key_of(head)?;
    let id = key.or_else(|| id_in(head, "x-request-id").flatten());
    Ok(id.map_or_else(host::new_id, str::to_owned))
}

/// Returns the first field called `name`: the id, or `None` in it if that cannot be one.
fn id_in<'a>(head: &'a Head, name: &str) -> Option<Option<&'a str>> {
    let (_, given) = head.fields.iter().find(|(own, _)| own == name)?;
    let id = std::str::from_utf8(given).ok();
    Some(id.filter(|id| event::is_id(id)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(fields: &[(&str, &str)]) -> Head {
        let fields = fields.iter();
        Head {
            method: "POST".into(),
            path: "/".into(),
            query: String::new(),
            fields: fields.map(|(n, v)| ((*n).into(), (*v).into())).collect(),
            peer: None,
        }
    }

    #[test]
    fn callers_may_choose_the_id() {
        let of = |fields: &[(&str, &str)]| id_of(&head(fields));
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
