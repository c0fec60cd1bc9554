//! A request as routes see it.

use std::borrow::Cow;
use std::net::IpAddr;

use serde_json::Value;

/// The fields of a header section, names in lower case. A name may come more than once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Headers(Vec<(String, Vec<u8>)>);

/// The values of one name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Only<'a> {
    /// There is none.
    None,
    /// There is one.
    One(&'a [u8]),
    /// There are several.
    Several,
}

impl<N: AsRef<str>, V: Into<Vec<u8>>> FromIterator<(N, V)> for Headers {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(fields: I) -> Self {
        let fields = fields.into_iter();
        Self(
            fields
                .map(|(name, value)| (name.as_ref().to_ascii_lowercase(), value.into()))
                .collect(),
        )
    }
}

impl Headers {
    fn all<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        let fields = self.0.iter();
        fields.filter_map(move |(own, value)| {
            own.eq_ignore_ascii_case(name).then_some(value.as_slice())
        })
    }

    /// Returns the value of a name that may come once only. A proxy and the gateway could otherwise
    /// believe different ones.
    #[must_use]
    pub fn only(&self, name: &str) -> Only<'_> {
        let mut all = self.all(name);
        match (all.next(), all.next()) {
            (None, _) => Only::None,
            (Some(one), None) => Only::One(one),
            (Some(_), Some(_)) => Only::Several,
        }
    }

    /// Returns all values of a name, joined as RFC 9110 (section 5.3) allows.
    #[must_use]
    pub fn joined(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        let mut all = self.all(name);
        let first = all.next()?;
        Some(all.fold(Cow::Borrowed(first), |joined, next| {
            let mut joined = joined.into_owned();
            joined.extend_from_slice(b", ");
            joined.extend_from_slice(next);
            Cow::Owned(joined)
        }))
    }
}

/// A request as it came: nothing of it is decoded, as it is not known yet who has sent it.
#[derive(Debug, Clone, Copy)]
pub struct Incoming<'a> {
    /// Its method, in upper case.
    pub method: &'a str,
    /// Its path.
    pub path: &'a str,
    /// Its query, percent-encoded.
    pub query: &'a str,
    /// Its header fields.
    pub headers: &'a Headers,
    /// Address of the caller; `None` on a Unix socket.
    pub peer: Option<IpAddr>,
    /// Its body.
    pub body: &'a [u8],
}

/// A request whose head and body have been read.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// Its method, in upper case.
    pub method: &'a str,
    /// Its path, decoded.
    pub path: &'a str,
    /// The parameters of its query, decoded, in their order.
    pub query: &'a [(String, String)],
    /// Its header fields.
    pub headers: &'a Headers,
    /// Address of the caller. Without one (a Unix socket) no rule about addresses holds.
    pub peer: Option<IpAddr>,
    /// Its body, byte for byte: signatures cover it.
    pub body: &'a [u8],
    /// The body as JSON, or the fields of a form; `null` for other bodies.
    pub payload: &'a Value,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_headers_have_no_case_and_may_repeat() {
        let headers: Headers = [("X-A", "1"), ("x-b", "2"), ("x-a", "3")]
            .into_iter()
            .collect();
        assert_eq!(headers.only("x-B"), Only::One(b"2"));
        assert_eq!(headers.only("X-a"), Only::Several);
        assert_eq!(headers.only("x-c"), Only::None);
        assert_eq!(headers.joined("X-A").as_deref(), Some(&b"1, 3"[..]));
        assert_eq!(headers.joined("x-c"), None);
    }
}
