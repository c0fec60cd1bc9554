//! Who may call: tokens, and the names by which a browser may reach the gateway.

use std::borrow::Cow;
use std::net::Ipv6Addr;

use crate::model::gateway::secret::{Secret, basic_password, bearer};
use crate::model::text::BOM;

/// Minimum length of a token, bytes. A shorter one can be guessed.
pub const MIN_TOKEN: usize = 16;

/// Maximum number of tokens.
pub const MAX_TOKENS: usize = 100;

/// The tokens of a file.
#[derive(Debug, Clone, PartialEq)]
pub struct Tokens(Vec<Secret>);

impl Tokens {
    /// Reads tokens, one a line. Empty lines and lines that start with # do not count.
    ///
    /// # Errors
    /// A text for the user, which does not show a token.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut tokens = Vec::new();
        let text = text.strip_prefix(BOM).unwrap_or(text);
        for (line, n) in text.lines().zip(1..) {
            let token = line.trim_ascii();
            if token.is_empty() || token.starts_with('#') {
                continue;
            }
            if token.len() < MIN_TOKEN {
                return Err(format!(
                    "the token in line {n} is shorter than {MIN_TOKEN} characters"
                ));
            }
            if !token.bytes().all(|b| b.is_ascii_graphic()) {
                return Err(format!("the token in line {n} is not one word of ASCII"));
            }
            let token = Secret::new(token.as_bytes());
            tokens.push(token.map_err(|cause| format!("line {n}: {cause}"))?);
        }
        match tokens.len() {
            0 => Err("it holds no token".to_owned()),
            1..=MAX_TOKENS => Ok(Self(tokens)),
            count => Err(format!("it holds {count} tokens, {MAX_TOKENS} are allowed")),
        }
    }

    /// Returns the place of the token that an `Authorization` field holds: as a bearer's (RFC 6750,
    /// section 2.1), or as the password of any user, which is what old clients can send. All tokens are compared, so that the time tells nothing.
    #[must_use]
    pub fn find(&self, authorization: &str) -> Option<usize> {
        let field = authorization.as_bytes();
        let given = bearer(field).map(Cow::Borrowed);
        let given = given.or_else(|| basic_password(field).map(Cow::Owned))?;
        let all = self.0.iter().enumerate();
        all.fold(None, |found, (place, token)| match token.is(&given) {
            true => found.or(Some(place)),
            false => found,
        })
    }
}

/// Returns the host of a `Host` field (RFC 9110, section 7.2), without its port, in lower case; `None` if the
/// field is wrong.
#[must_use]
pub fn host_of(authority: &str) -> Option<String> {
    let (host, rest) = match authority.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
    };
    let is_wrong = match authority.starts_with('[') {
        true => host.parse::<Ipv6Addr>().is_err(),
        // RFC 3986, section 3.2.2.
        false => {
            host.contains(|c: char| !c.is_ascii_alphanumeric() && !"-._~%!$&'()*+,;=".contains(c))
        }
    };
    let port = match rest {
        "" => "",
        rest => rest.strip_prefix(':')?,
    };
    let is_port = port.bytes().all(|b| b.is_ascii_digit())
        && (port.is_empty() || port.parse::<u16>().is_ok());
    let host = host.to_ascii_lowercase();
    (!is_wrong && is_port).then(|| host.strip_suffix('.').unwrap_or(&host).to_owned())
}

/// Returns whether an `Origin` field (RFC 6454, section 7) is that of a page of the host and port
/// that a `Host` field names. Pages of others must not make a browser post.
#[must_use]
pub fn is_same_origin(origin: &str, host: &str) -> bool {
    let authority = origin.split_once("://").map(|(_, authority)| authority);
    authority.is_some_and(|authority| authority.eq_ignore_ascii_case(host))
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "aaaaaaaaaaaaaaaa";
    const B: &str = "bbbbbbbbbbbbbbbb";

    #[test]
    fn tokens_are_found_by_their_place() {
        let text = format!("\u{feff}# for git\n{A}\r\n\n  {B}\n");
        let tokens = Tokens::parse(&text).expect("tokens");
        for (field, place) in [
            (format!("Bearer {A}"), Some(0)),
            (format!("bearer  {B} "), Some(1)),
            (format!("Bearer {A}{B}"), None),
            (format!("Basic {A}"), None),
            (format!("Bearer{A}"), None),
            ("Basic YW55OmFhYWFhYWFhYWFhYWFhYWE=".to_owned(), Some(0)),
            ("basic OmFhYWFhYWFhYWFhYWFhYWE=".to_owned(), Some(0)),
            ("Basic YWFhYWFhYWFhYWFhYWFhYQ==".to_owned(), None),
            ("Basic YW55Og==".to_owned(), None),
            ("Bearer ".to_owned(), None),
            (A.to_owned(), None),
            ("Bearer # for git".to_owned(), None),
        ] {
            assert_eq!(tokens.find(&field), place, "{field}");
        }
    }

    #[test]
    fn files_without_good_tokens_are_refused() {
        let many = format!("{A}\n").repeat(MAX_TOKENS + 1);
        for wrong in [
            "",
            "# only\n",
            "short",
            "aaaaaaaa aaaaaaaa",
            "aaaaaaaaaaaaaaaä",
            &many,
        ] {
            let said = Tokens::parse(wrong).expect_err(wrong);
            assert!(!said.contains("aaaa"), "{said}");
        }
    }

    #[test]
    fn hosts_and_origins() {
        for (field, host) in [
            ("localhost", "localhost"),
            ("LocalHost.:8787", "localhost"),
            ("127.0.0.1:80", "127.0.0.1"),
            ("[::1]:80", "::1"),
            ("[::1]", "::1"),
            ("localhost:", "localhost"),
            ("tael_gw:65535", "tael_gw"),
            ("", ""),
        ] {
            assert_eq!(host_of(field).as_deref(), Some(host), "{field}");
        }
        for wrong in [
            "localhost:evil",
            "localhost:80:80",
            "localhost:65536",
            "localhost:+80",
            "localhost:80.evil.example",
            "evil@localhost",
            "local host",
            "localhost/x",
            "[::1",
            "[::1]evil",
            "[::1]:evil",
            "[localhost]",
            "::1",
            "h\u{e4}",
        ] {
            assert_eq!(host_of(wrong), None, "{wrong}");
        }
        assert!(is_same_origin("http://localhost:8787", "LOCALHOST:8787"));
        for origin in [
            "null",
            "http://localhost",
            "http://evil.example",
            "localhost:8787",
            "",
        ] {
            assert!(!is_same_origin(origin, "localhost:8787"), "{origin}");
        }
    }
}
