//! What URLs of brokers have in common: user, host and port, and percent-encoding.

use std::fmt::Write as _;

/// User, host and port of a URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authority {
    /// User name.
    pub username: Option<String>,
    /// Name or address, without brackets.
    pub host: String,
    /// TCP port.
    pub port: Option<u16>,
}

/// What is wrong with an authority.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// It has a password, which other users would see in ps.
    Password,
    /// Its brackets do not fit.
    Brackets,
    /// Its parts are none of a user, a host and a port.
    Shape,
    /// Another cause, as a text for the user.
    Other(String),
}

/// Parses `[user@]host[:port]`; the user may be percent-encoded, an address of version 6 stands in
/// brackets. `url` is the kind of URL, for people.
///
/// # Errors
/// What is wrong; it never holds a password.
pub fn parse_authority(text: &str, url: &str) -> Result<Authority, Fault> {
    let (username, address) = match text.rsplit_once('@') {
        None => (None, text),
        Some((user, _)) if user.contains(':') => return Err(Fault::Password),
        Some((user, address)) => (Some(user), address),
    };
    let (host, port) = match address.strip_prefix('[') {
        Some(v6) => match v6.split_once(']') {
            Some((host, "")) => (host, None),
            Some((host, port)) if port.starts_with(':') => (host, port.get(1..)),
            _ => return Err(Fault::Brackets),
        },
        None => match address.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (address, None),
        },
    };
    let bad_host = |c: char| "/?#[]@ ".contains(c) || c.is_control();
    if host.is_empty() || host.contains(bad_host) || username == Some("") {
        return Err(Fault::Shape);
    }
    let port = port
        .map(|port| match port.parse::<u16>() {
            Ok(port) if port > 0 => Ok(port),
            _ => Err(Fault::Other(format!("'{port}' in the {url} is not a port"))),
        })
        .transpose()?;
    let decoded = |user| percent_decoded(user, url).map_err(Fault::Other);
    Ok(Authority {
        username: username.map(decoded).transpose()?,
        host: match address.starts_with('[') {
            true => plain_host(&format!("[{host}]")),
            false => host.to_owned(),
        },
        port,
    })
}

/// Decodes `%XX` (RFC 3986, section 2.1) in a part of a URL; `url` is its kind, for people.
///
/// # Errors
/// A text for the user.
pub fn percent_decoded(text: &str, url: &str) -> Result<String, String> {
    let wrong = || format!("'{text}' in the {url} is not percent-encoded text");
    decoded(text.as_bytes()).ok_or_else(wrong)
}

/// Decodes `%XX`; `None` if that is not text in UTF-8.
#[must_use]
pub fn decoded(text: &[u8]) -> Option<String> {
    let digit = |b: u8| {
        char::from(b)
            .to_digit(16)
            .and_then(|d| u8::try_from(d).ok())
    };
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, tail @ ..] = rest {
        rest = tail;
        match (first, tail) {
            (b'%', [high, low, tail @ ..]) => {
                bytes.push(digit(*high)? << 4 | digit(*low)?);
                rest = tail;
            }
            (b'%', _) => return None,
            (byte, _) => bytes.push(*byte),
        }
    }
    String::from_utf8(bytes).ok()
}

/// Encodes a part of a URL: all but unreserved characters (RFC 3986, section 2.3) and those of `also`
/// become `%xx`.
#[must_use]
pub fn percent_encoded(text: &str, also: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        let c = char::from(byte);
        match c.is_ascii_alphanumeric() || "-._~".contains(c) || also.contains(c) {
            true => out.push(c),
            false => {
                let _ = write!(out, "%{byte:02x}");
            }
        }
    }
    out
}

/// Removes the brackets of an address of version 6, and the escape of its scope (RFC 6874).
#[must_use]
pub fn plain_host(host: &str) -> String {
    let inner = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    match inner {
        Some(inner) => inner.replacen("%25", "%", 1),
        None => host.to_owned(),
    }
}

/// Returns a host as it stands in a URL: an address of version 6 in brackets.
#[must_use]
pub fn bracketed(host: &str) -> String {
    match host.contains(':') {
        true => format!("[{}]", host.replacen('%', "%25", 1)),
        false => host.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn hosts_without_brackets() {
        for (given, plain) in [
            ("[::1]", "::1"),
            ("::1", "::1"),
            ("[fe80::1%25eth0]", "fe80::1%eth0"),
            ("fe80::1%eth0", "fe80::1%eth0"),
            ("[h", "[h"),
            ("h", "h"),
        ] {
            assert_eq!(plain_host(given), plain);
        }
    }

    proptest! {
        #[test]
        fn what_is_encoded_can_be_decoded(text in ".{0,40}") {
            let encoded = percent_encoded(&text, "");
            prop_assert!(encoded.is_ascii());
            prop_assert_eq!(percent_decoded(&encoded, "URL"), Ok(text));
        }

        #[test]
        fn hosts_come_back(host in "[a-z0-9.-]{1,20}|[0-9a-f:]{0,10}:(%[a-z0-9]{1,5})?") {
            let authority = parse_authority(&bracketed(&host), "URL");
            prop_assert_eq!(authority.map(|authority| authority.host), Ok(host));
        }
    }
}
