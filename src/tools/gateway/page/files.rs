//! The files of the page, which the binary holds.

use std::hash::{DefaultHasher, Hash, Hasher};

use bytes::Bytes;

use crate::net::http::{Body, Head, Response};

/// What the page may load and do: its own files, and requests to the gateway. Nothing of a payload can
/// run or load anything.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
    connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// A file of the page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum File {
    /// The document.
    Index,
    /// Its style sheet.
    Style,
    /// Its script.
    Script,
    /// Its icon.
    Icon,
}

impl File {
    /// Parses a path.
    #[must_use]
    pub fn parse(path: &str) -> Option<Self> {
        match path {
            "/" => Some(Self::Index),
            "/page.css" => Some(Self::Style),
            "/page.js" => Some(Self::Script),
            "/icon.svg" => Some(Self::Icon),
            _ => None,
        }
    }

    const fn content(self) -> (&'static str, &'static [u8]) {
        match self {
            Self::Index => ("text/html; charset=utf-8", include_bytes!("index.html")),
            Self::Style => ("text/css; charset=utf-8", include_bytes!("page.css")),
            Self::Script => ("text/javascript; charset=utf-8", include_bytes!("page.js")),
            Self::Icon => ("image/svg+xml", include_bytes!("icon.svg")),
        }
    }

    /// Answers a request for it. A browser that has it already gets 304.
    #[must_use]
    pub fn answer(self, head: &Head) -> Response {
        let (media, bytes) = self.content();
        let mut hasher = DefaultHasher::new();
        bytes.hash(&mut hasher);
        let tag = format!("\"{:016x}\"", hasher.finish());
        let known = head.field("if-none-match").unwrap_or_default();
        let is_known = known
            .split(',')
            .any(|one| one.trim().trim_start_matches("W/") == tag);
        let (status, body) = match is_known {
            true => (304, Bytes::new()),
            false => (200, Bytes::from_static(bytes)),
        };
        Response {
            status,
            fields: vec![
                ("content-type", media.to_owned()),
                ("cache-control", "no-cache".to_owned()),
                ("etag", tag),
                ("content-security-policy", POLICY.to_owned()),
                ("x-content-type-options", "nosniff".to_owned()),
                ("referrer-policy", "no-referrer".to_owned()),
                ("cross-origin-opener-policy", "same-origin".to_owned()),
            ],
            body: Body::Whole(body),
        }
    }
}
