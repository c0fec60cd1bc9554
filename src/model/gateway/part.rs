//! The parts of a request that rules test and attributes are made of.

use std::borrow::Cow;

use serde_json::Value;

use crate::model::event::attribute_text;
use crate::model::gateway::keys::{Keys, Wrong};
use crate::model::gateway::path::Path;
use crate::model::gateway::request::Request;
use crate::model::json;

/// Keys of a table that name a part.
pub const KEYS: &[&str] = &["header", "query", "json", "request"];

/// Maximum length of the name of a header field or a parameter, bytes.
const MAX_NAME: usize = 256;

/// A part of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// The header field of that name, in lower case.
    Header(String),
    /// The first parameter of that name in the query.
    Query(String),
    /// A value of the JSON document, or a field of the form.
    Json(Path),
    /// The method.
    Method,
    /// The path.
    Path,
    /// The body, as it came.
    Body,
    /// Address of the caller.
    Peer,
}

impl Part {
    /// Reads the part that a table names, if it names one.
    ///
    /// # Errors
    /// It names two, or in a wrong way.
    pub fn read(keys: &Keys<'_>) -> Result<Option<Self>, Wrong> {
        let Some(key) = keys.one_of(KEYS)? else {
            return Ok(None);
        };
        let name = keys.text(key)?.unwrap_or_default();
        if !(1..=MAX_NAME).contains(&name.len()) && key != "json" {
            return Err(keys.wrong(key, format!("a name has 1 to {MAX_NAME} bytes")));
        }
        Ok(Some(match key {
            "header" => {
                if !is_field(name) {
                    return Err(keys.wrong(key, "it is not the name of a header field"));
                }
                Self::Header(name.to_ascii_lowercase())
            }
            "query" => Self::Query(name.to_owned()),
            "json" => Self::Json(Path::parse(name).map_err(|cause| keys.wrong(key, cause))?),
            _ => match name {
                "method" => Self::Method,
                "path" => Self::Path,
                "body" => Self::Body,
                "peer" => Self::Peer,
                _ => {
                    return Err(keys.wrong(key, "it is none of method, path, body and peer"));
                }
            },
        }))
    }

    /// Returns the part as bytes to compare, if it is there. A JSON value that is no text is compact
    /// JSON, and `null` is empty.
    #[must_use]
    pub fn bytes<'a>(&self, request: &Request<'a>) -> Option<Cow<'a, [u8]>> {
        Some(match self {
            Self::Header(name) => request.headers.joined(name)?,
            Self::Query(name) => Cow::Borrowed(query(request, name)?.as_bytes()),
            Self::Json(path) => match path.find(request.payload)? {
                Value::String(text) => json::bytes_of(text),
                other => Cow::Owned(attribute_text(other).into_bytes()),
            },
            Self::Method => Cow::Borrowed(request.method.as_bytes()),
            Self::Path => Cow::Borrowed(request.path.as_bytes()),
            Self::Body => Cow::Borrowed(request.body),
            Self::Peer => Cow::Owned(request.peer?.to_canonical().to_string().into_bytes()),
        })
    }

    /// Returns the part as JSON, if it is there: a value of the document as it is, others as text.
    #[must_use]
    pub fn value(&self, request: &Request<'_>) -> Option<Value> {
        match self {
            Self::Json(path) => path.find(request.payload).cloned(),
            other => {
                let bytes = other.bytes(request)?;
                Some(Value::String(json::string_of(&bytes)))
            }
        }
    }
}

fn query<'a>(request: &Request<'a>, name: &str) -> Option<&'a str> {
    let mut all = request.query.iter();
    let found = all.find(|(own, _)| own == name);
    found.map(|(_, value)| value.as_str())
}

/// Returns whether `name` can be the name of a header field (RFC 9110, section 5.6.2).
#[must_use]
pub fn is_field(name: &str) -> bool {
    let may = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    !name.is_empty() && name.bytes().all(may)
}
