//! Whether a request comes from its sender: the signatures and tokens of webhooks.
//!
//! Sources: GitHub, "Validating webhook deliveries"; Gitea and Forgejo, "Webhooks"; GitLab,
//! "Webhooks" (secret token, signing token); Standard Webhooks 1.0.0; RFC 6750 (bearer tokens).

use std::fmt;

use ring::hmac::{self, Algorithm, HMAC_SHA256, HMAC_SHA512, Key};

use crate::model::digest::Sha256;
use crate::model::event::is_id;
use crate::model::gateway::request::{Headers, Only};
use crate::model::gateway::secret::{self, Secret};
use crate::model::signature::{base64, hex};
use crate::model::variables::from_hex;

/// Maximum difference between the time of a request and ours, seconds. A recorded request
/// can be sent again for this time; the id of its delivery tells that it has come before.
pub const MAX_AGE: i64 = 5 * 60;

/// Maximum number of secrets of a route: the new one and old ones.
pub const MAX_SECRETS: usize = 8;

/// Maximum number of signatures in one header field: a sender signs with its new key and old ones.
const MAX_SIGNATURES: usize = 16;

/// Maximum length of a delivery id, bytes; senders use 36 to 40.
const MAX_DELIVERY: usize = 1024;

/// Prefix of keys of Standard Webhooks.
const KEY_PREFIX: &str = "whsec_";

/// Header fields of Standard Webhooks: id, time and signatures.
const STANDARD_ID: &str = "webhook-id";
const STANDARD_TIME: &str = "webhook-timestamp";
const STANDARD_SIGNATURE: &str = "webhook-signature";

/// Header field with the digest of GitHub, which Gitea and Forgejo send too.
const HUB: &str = "x-hub-signature-256";

/// Header field with the secret token of GitLab.
const GITLAB_TOKEN: &str = "x-gitlab-token";

/// Header field of GitLab that is the same each time it sends a message again.
const IDEMPOTENCY: &str = "idempotency-key";

/// Header fields that hold a secret, or what a secret has signed, in lower case. No route passes
/// them on.
pub const SECRET_HEADERS: &[&str] = &[
    "authorization",
    "cookie",
    "cookie2",
    "proxy-authorization",
    "set-cookie",
    "webhook-signature",
    "x-api-key",
    "x-auth-token",
    "x-forgejo-signature",
    "x-gitea-signature",
    "x-gitlab-token",
    "x-gogs-signature",
    "x-hub-signature",
    "x-hub-signature-256",
];

/// How bytes are written in a header field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// Hexadecimal digits.
    Hex,
    /// Base64 (RFC 4648, section 4).
    Base64,
}

impl Encoding {
    /// Names of the encodings.
    pub const NAMES: &[&str] = &["hex", "base64"];

    /// Parses a name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "hex" => Some(Self::Hex),
            "base64" => Some(Self::Base64),
            _ => None,
        }
    }

    fn decode(self, text: &str) -> Option<Vec<u8>> {
        match self {
            Self::Hex => from_hex(text),
            Self::Base64 => base64::decode_padded(text),
        }
    }
}

/// Digest of an authentication code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hash {
    /// SHA-256.
    Sha256,
    /// SHA-512.
    Sha512,
}

impl Hash {
    const fn algorithm(self) -> Algorithm {
        match self {
            Self::Sha256 => HMAC_SHA256,
            Self::Sha512 => HMAC_SHA512,
        }
    }
}

/// An authentication code (HMAC) of the body in a header field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Code {
    /// Its digest.
    pub hash: Hash,
    /// Name of the field, in lower case.
    pub header: String,
    /// Text before the code, such as `sha256=`.
    pub prefix: String,
    /// How the code is written.
    pub encoding: Encoding,
}

/// How a sender shows who it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scheme {
    /// GitHub: HMAC-SHA256 of the body.
    GitHub,
    /// Gitea and Forgejo: HMAC-SHA256 of the body.
    Gitea,
    /// GitLab: a signing token (`whsec_…`) is the key of Standard Webhooks, another secret stands in
    /// the request.
    GitLab,
    /// Standard Webhooks: HMAC-SHA256 of id, time and body.
    Standard,
    /// HMAC of the body, in a field of its own.
    Code(Code),
    /// `Authorization: Bearer`.
    Bearer,
}

impl Scheme {
    /// Names of the schemes in a route.
    pub const NAMES: &[&str] = &[
        "github",
        "gitea",
        "forgejo",
        "gitlab",
        "standard",
        "hmac-sha256",
        "hmac-sha512",
        "bearer",
    ];

    /// Returns the header fields that may hold the id of a delivery, the first one that is there
    /// counts. GitLab sends one from version 17.4 on.
    const fn delivery_fields(&self) -> &'static [&'static str] {
        match self {
            Self::GitHub => &["x-github-delivery"],
            Self::Gitea => &["x-forgejo-delivery", "x-gitea-delivery"],
            Self::GitLab => &[STANDARD_ID, IDEMPOTENCY],
            Self::Standard => &[STANDARD_ID],
            Self::Code(_) | Self::Bearer => &[],
        }
    }
}

/// Why a request is not believed. All of them are answered alike.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// A header field is missing.
    Missing(String),
    /// A header field comes more than once.
    Repeated(String),
    /// A header field does not have the form of the sender.
    Malformed(String),
    /// No secret of the route matches.
    Wrong,
    /// It was sent that number of seconds ago.
    Old(i64),
    /// It was sent that number of seconds from now.
    Early(i64),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing(field) => write!(f, "the header {field} is missing"),
            Self::Repeated(field) => write!(f, "the header {field} comes more than once"),
            Self::Malformed(field) => write!(f, "the header {field} has a wrong form"),
            Self::Wrong => f.write_str("the signature or token is wrong: is the secret the same?"),
            Self::Old(age) => write!(
                f,
                "it was sent {age} s ago, the limit is {MAX_AGE} s: are the clocks right?"
            ),
            Self::Early(ahead) => write!(
                f,
                "it is {ahead} s ahead of our time, the limit is {MAX_AGE} s: are the clocks right?"
            ),
        }
    }
}

impl Refusal {
    /// Returns a short name for counters.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Missing(_) => "signature-missing",
            Self::Repeated(_) | Self::Malformed(_) => "signature-malformed",
            Self::Wrong => "signature-wrong",
            Self::Old(_) | Self::Early(_) => "signature-time",
        }
    }
}

/// One secret in the form that its scheme needs.
#[derive(Debug, Clone)]
enum Proof {
    /// Compared with what the request holds.
    Token(Secret),
    /// Key of an authentication code of the body.
    Body(Key),
    /// Key of an authentication code of id, time and body.
    Standard(Key),
}

/// Decides whether a request comes from its sender.
#[derive(Debug, Clone)]
pub struct Verifier {
    scheme: Scheme,
    /// Header field with the id of a delivery, for senders without one of their own.
    id_header: Option<String>,
    proofs: Vec<Proof>,
}

impl Verifier {
    /// Makes a verifier of a scheme and the secrets that it takes.
    ///
    /// # Errors
    /// A text for the user: there is no secret, there are too many, or one is not a key.
    pub fn new(
        scheme: Scheme,
        id_header: Option<String>,
        secrets: &[Secret],
    ) -> Result<Self, String> {
        if secrets.is_empty() {
            return Err("it has no secret".to_owned());
        }
        if secrets.len() > MAX_SECRETS {
            return Err(format!(
                "it has {} secrets, the limit is {MAX_SECRETS}",
                secrets.len()
            ));
        }
        let proofs = secrets.iter().map(|secret| proof(&scheme, secret));
        Ok(Self {
            proofs: proofs.collect::<Result<_, _>>()?,
            scheme,
            id_header,
        })
    }

    /// Returns the header field that holds the proof, in lower case, if the route has named it.
    #[must_use]
    pub fn own_header(&self) -> Option<&str> {
        match &self.scheme {
            Scheme::Code(code) => Some(&code.header),
            _ => None,
        }
    }

    /// Verifies a request at the time `now`, in seconds since 1970. Returns the id of its delivery,
    /// if the sender gives one.
    ///
    /// # Errors
    /// Why it is not believed.
    pub fn verify(
        &self,
        headers: &Headers,
        body: &[u8],
        now: i64,
    ) -> Result<Option<String>, Refusal> {
        let mut first = None;
        for proof in &self.proofs {
            let verified = match proof {
                Proof::Token(secret) => self.verify_token(secret, headers),
                Proof::Body(key) => self.verify_body(key, headers, body),
                Proof::Standard(key) => verify_standard(key, headers, body, now),
            };
            match verified {
                Ok(()) => return self.delivery(headers),
                // A right signature at a wrong time tells more than a wrong one.
                Err(refusal @ (Refusal::Old(_) | Refusal::Early(_))) => return Err(refusal),
                Err(refusal) => first = first.or(Some(refusal)),
            }
        }
        Err(first.unwrap_or(Refusal::Wrong))
    }

    fn verify_token(&self, secret: &Secret, headers: &Headers) -> Result<(), Refusal> {
        let given = match self.scheme {
            Scheme::Bearer => token(headers)?,
            _ => field(headers, GITLAB_TOKEN)?,
        };
        match secret.is(given) {
            true => Ok(()),
            false => Err(Refusal::Wrong),
        }
    }

    fn verify_body(&self, key: &Key, headers: &Headers, body: &[u8]) -> Result<(), Refusal> {
        let (name, prefix, encoding) = match &self.scheme {
            Scheme::Code(code) => (code.header.as_str(), code.prefix.as_str(), code.encoding),
            Scheme::Gitea => {
                let own = ["x-forgejo-signature", "x-gitea-signature"];
                let own = own.iter().find(|name| headers.only(name) != Only::None);
                own.map_or((HUB, "sha256=", Encoding::Hex), |name| {
                    (*name, "", Encoding::Hex)
                })
            }
            _ => (HUB, "sha256=", Encoding::Hex),
        };
        let text = text(field(headers, name)?, name)?;
        let given = text.strip_prefix(prefix);
        let given = given.and_then(|given| encoding.decode(given));
        let given = given.ok_or_else(|| Refusal::Malformed(name.to_owned()))?;
        hmac::verify(key, body, &given).map_err(|_| Refusal::Wrong)
    }

    /// Returns the id of a delivery.
    fn delivery(&self, headers: &Headers) -> Result<Option<String>, Refusal> {
        let own = self.scheme.delivery_fields().iter().copied();
        let mut names = self.id_header.as_deref().into_iter().chain(own);
        let Some(name) = names.find(|name| headers.only(name) != Only::None) else {
            return Ok(None);
        };
        let id = text(field(headers, name)?, name)?;
        match (1..=MAX_DELIVERY).contains(&id.len()) {
            true => Ok(Some(id.to_owned())),
            false => Err(Refusal::Malformed(name.to_owned())),
        }
    }
}

/// Returns the id of the event of a delivery. A sender gives the same id to several routes, each of
/// which makes an event of its own. An id that cannot be part of one ([`is_id`]) is hashed.
#[must_use]
pub fn event_id(route: &str, delivery: &str) -> String {
    let plain = format!("{route}:{delivery}");
    if is_id(&plain) && !route.contains(':') {
        return plain;
    }
    let mut digest = Sha256::default();
    digest.part(route.as_bytes());
    digest.part(delivery.as_bytes());
    hex(&digest.finish())
}

/// Returns the token of the `Authorization` field.
///
/// # Errors
/// The field is missing, or has another form.
fn token(headers: &Headers) -> Result<&[u8], Refusal> {
    const NAME: &str = "authorization";
    let value = field(headers, NAME)?;
    secret::bearer(value).ok_or_else(|| Refusal::Malformed(NAME.to_owned()))
}

fn proof(scheme: &Scheme, secret: &Secret) -> Result<Proof, String> {
    let text = secret.text().unwrap_or_default();
    // A field is read without them, so that no request would have it.
    let token = || match secret.has_outer_blanks() {
        true => Err("the secret begins or ends with a blank, which no header field carries"),
        false => Ok(Proof::Token(secret.clone())),
    };
    Ok(match scheme {
        Scheme::Bearer => token()?,
        Scheme::GitLab if !text.starts_with(KEY_PREFIX) => token()?,
        Scheme::GitLab | Scheme::Standard => {
            // The prefix is for people: other senders leave it out.
            let digits = text.strip_prefix(KEY_PREFIX).unwrap_or(text);
            let key = base64::decode_padded(digits).filter(|key| !key.is_empty());
            let key = key.ok_or("the secret is no key of Standard Webhooks: it is not Base64")?;
            Proof::Standard(Key::new(HMAC_SHA256, &key))
        }
        Scheme::GitHub | Scheme::Gitea => Proof::Body(secret.key(HMAC_SHA256)),
        Scheme::Code(code) => Proof::Body(secret.key(code.hash.algorithm())),
    })
}

fn field<'a>(headers: &'a Headers, name: &str) -> Result<&'a [u8], Refusal> {
    match headers.only(name) {
        Only::One(value) => Ok(value),
        Only::None => Err(Refusal::Missing(name.to_owned())),
        Only::Several => Err(Refusal::Repeated(name.to_owned())),
    }
}

fn text<'a>(value: &'a [u8], name: &str) -> Result<&'a str, Refusal> {
    let text = std::str::from_utf8(value.trim_ascii());
    text.map_err(|_| Refusal::Malformed(name.to_owned()))
}

/// Verifies a request of Standard Webhooks: one of its signatures is right, and so is its time,
/// which is signed.
fn verify_standard(key: &Key, headers: &Headers, body: &[u8], now: i64) -> Result<(), Refusal> {
    let malformed = |name: &str| Refusal::Malformed(name.to_owned());
    let id = field(headers, STANDARD_ID)?;
    let time = text(field(headers, STANDARD_TIME)?, STANDARD_TIME)?;
    let signatures = text(field(headers, STANDARD_SIGNATURE)?, STANDARD_SIGNATURE)?;
    let is_number = time.bytes().all(|b| b.is_ascii_digit());
    let sent: Option<i64> = time.parse().ok().filter(|_| is_number);
    let sent = sent.ok_or_else(|| malformed(STANDARD_TIME))?;
    let message = [id, b".", time.as_bytes(), b".", body].concat();
    let mut count = 0;
    let is_right = signatures
        .split(' ')
        .filter(|one| !one.is_empty())
        .take(MAX_SIGNATURES)
        .filter_map(|one| one.strip_prefix("v1,"))
        .filter_map(base64::decode_padded)
        .any(|code| {
            count += 1;
            hmac::verify(key, &message, &code).is_ok()
        });
    if !is_right {
        return Err(match count {
            0 => malformed(STANDARD_SIGNATURE),
            _ => Refusal::Wrong,
        });
    }
    let age = now.saturating_sub(sent);
    match age {
        ..0 if age < -MAX_AGE => Err(Refusal::Early(age.saturating_neg())),
        _ if age > MAX_AGE => Err(Refusal::Old(age)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
