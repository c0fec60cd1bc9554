//! Signatures of requests for work: JSON Web Tokens (RFC 7519) of RS512 or EdDSA.
//!
//! A token allows one request: this operation on this unit at this node, with this content. Who has
//! seen it can use it for nothing else. The key decides the algorithm, and the token does not.

pub mod base64;
mod key;

use std::fmt::{self, Write as _};

use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub use key::{Algorithm, Signer, Verifier};

use crate::model::text::printable;

/// Maximum length of a token, bytes. A signature by an RSA key of 8192 bits has 1366.
pub const MAX_TOKEN: usize = 4096;

/// Maximum difference between the clocks of signer and verifier, seconds.
pub const MAX_SKEW: i64 = 60;

/// Maximum time for which a token can be used, seconds. A node remembers the ids of units for longer,
/// and so recognises a token that comes again.
pub const LIFETIME: i64 = 6 * 24 * 3600;

/// Returns `bytes` as lower-case hexadecimal digits.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// Operation that a token allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Operation {
    /// Run work.
    Submit,
    /// Read status and output.
    Results,
    /// End a run.
    Cancel,
    /// End a run, and delete what is kept of it.
    Release,
}

impl Operation {
    /// Its name in a token.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Submit => "submit",
            Self::Results => "results",
            Self::Cancel => "cancel",
            Self::Release => "release",
        }
    }
}

/// A request, as a token names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// The operation.
    pub op: Operation,
    /// Id of the unit.
    pub unit: String,
    /// Name of the node.
    pub aud: String,
    /// Topic to which the answers go.
    pub reply: String,
    /// Work and payload of a submission.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub work: Option<Work>,
}

/// Work and payload, as a token names them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Work {
    /// The work type.
    #[serde(rename = "type")]
    pub kind: String,
    /// SHA-256 of the parameters, hexadecimal.
    pub params: String,
    /// Length of the payload, bytes.
    pub length: u64,
    /// SHA-256 of the payload, hexadecimal.
    pub sha256: String,
}

/// Claims of a token (RFC 7519, section 4).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claims {
    /// The request.
    pub request: Request,
    /// When it was signed, seconds since 1970.
    pub iat: i64,
    /// From when on it is refused, seconds since 1970.
    pub exp: i64,
    /// Id of the token, for one use.
    pub jti: String,
}

/// Header of a token (RFC 7515, section 4). Others may change what a token means, and are refused.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    alg: String,
    #[serde(default)]
    typ: Option<String>,
    kid: String,
}

/// Returns the token by which `key` allows a request, as [`Claims`], or confirms another statement.
///
/// # Errors
/// When the key does not sign.
pub fn sign(key: &Signer, claims: &impl Serialize) -> Result<String, String> {
    let header = Header {
        alg: key.algorithm().name().into(),
        typ: Some("JWT".into()),
        kid: key.id().into(),
    };
    let part = |json: Result<Vec<u8>, serde_json::Error>| {
        json.map(|json| base64::encode(&json))
            .map_err(|e| e.to_string())
    };
    let mut token = part(serde_json::to_vec(&header))?;
    token.push('.');
    token.push_str(&part(serde_json::to_vec(claims))?);
    let signature = key.sign(token.as_bytes())?;
    token.push('.');
    token.push_str(&base64::encode(&signature));
    Ok(token)
}

/// Why a token is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// There is none, and the work type requires one.
    Missing,
    /// It is longer than [`MAX_TOKEN`].
    TooLong,
    /// It is no token.
    Malformed,
    /// Its header names this algorithm, which is not that of the key.
    Algorithm(String),
    /// It was made with a key that is not configured.
    UnknownKey,
    /// The signature is not that of the key.
    Forged,
    /// It has expired.
    Expired {
        /// When, seconds since 1970.
        expired: i64,
        /// Clock of the verifier, seconds since 1970.
        now: i64,
    },
    /// It was signed in the future.
    Early {
        /// When, seconds since 1970.
        signed: i64,
        /// Clock of the verifier, seconds since 1970.
        now: i64,
    },
    /// It can be used for longer than [`LIFETIME`].
    TooLasting,
    /// It allows another request: it names another value of this.
    Other(&'static str),
    /// It was used before.
    Used,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = |seconds| {
            Timestamp::from_second(seconds).map_or_else(|_| "never".into(), |at| at.to_string())
        };
        match self {
            Self::Missing => write!(f, "a signature is required: add --sign"),
            Self::TooLong => write!(f, "the signature is longer than {MAX_TOKEN} bytes"),
            Self::Malformed => write!(f, "the signature is no JSON Web Token"),
            Self::Algorithm(name) => write!(
                f,
                "the signature names the algorithm '{}', which is not that of its key",
                printable(name, 20)
            ),
            Self::UnknownKey => write!(
                f,
                "the key of the signature is not among those of [verify] keys"
            ),
            Self::Forged => write!(f, "the signature is not that of its key"),
            Self::Expired { expired, now } => write!(
                f,
                "the signature expired at {}, and it is {} here: compare the clocks",
                time(*expired),
                time(*now)
            ),
            Self::Early { signed, now } => write!(
                f,
                "the signature is from {}, and it is {} here: compare the clocks",
                time(*signed),
                time(*now)
            ),
            Self::TooLasting => write!(
                f,
                "the signature can be used for more than {} days",
                LIFETIME / 86_400
            ),
            Self::Other(what) => write!(f, "the signature is for another {what}"),
            Self::Used => write!(f, "the signature was used before"),
        }
    }
}

/// Public keys, of which each may have signed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Keys(pub Vec<Verifier>);

impl Keys {
    /// Checks that `token` allows `request`. `now` is in seconds since 1970. The caller still makes
    /// sure that it is used once.
    ///
    /// # Errors
    /// When it does not.
    pub fn verify(&self, token: &str, request: &Request, now: i64) -> Result<Claims, Refusal> {
        let claims: Claims = self.opened(token)?;
        claims.is_current(now)?;
        claims.request.is_for(request)?;
        Ok(claims)
    }

    /// Returns the statement that `token` confirms.
    ///
    /// # Errors
    /// When no key has signed it, or it is another kind of statement.
    pub fn confirmed<T: DeserializeOwned>(&self, token: &str) -> Result<T, Refusal> {
        self.opened(token)
    }

    fn opened<T: DeserializeOwned>(&self, token: &str) -> Result<T, Refusal> {
        if token.len() > MAX_TOKEN {
            return Err(Refusal::TooLong);
        }
        let (signed, signature) = token.rsplit_once('.').ok_or(Refusal::Malformed)?;
        let (header, claims) = signed.split_once('.').ok_or(Refusal::Malformed)?;
        let header: Header = part(header)?;
        if header.typ.as_deref().is_some_and(|typ| typ != "JWT") {
            return Err(Refusal::Malformed);
        }
        let key = self.0.iter().find(|key| key.id() == header.kid);
        let key = key.ok_or(Refusal::UnknownKey)?;
        if header.alg != key.algorithm().name() {
            return Err(Refusal::Algorithm(header.alg));
        }
        let signature = base64::decode(signature).ok_or(Refusal::Malformed)?;
        if !key.verifies(signed.as_bytes(), &signature) {
            return Err(Refusal::Forged);
        }
        part(claims)
    }
}

fn part<T: DeserializeOwned>(text: &str) -> Result<T, Refusal> {
    let json = base64::decode(text).ok_or(Refusal::Malformed)?;
    serde_json::from_slice(&json).map_err(|_| Refusal::Malformed)
}

impl Claims {
    /// Checks the times against the clock of the verifier.
    fn is_current(&self, now: i64) -> Result<(), Refusal> {
        if self.exp.saturating_add(MAX_SKEW) <= now {
            return Err(Refusal::Expired {
                expired: self.exp,
                now,
            });
        }
        if self.iat > now.saturating_add(MAX_SKEW) {
            return Err(Refusal::Early {
                signed: self.iat,
                now,
            });
        }
        match self.exp.saturating_sub(self.iat) > LIFETIME {
            true => Err(Refusal::TooLasting),
            false => Ok(()),
        }
    }
}

impl Request {
    /// Checks that it is `other`, and names the first difference.
    fn is_for(&self, other: &Self) -> Result<(), Refusal> {
        let work =
            |of: fn(&Work) -> String| (self.work.as_ref().map(of), other.work.as_ref().map(of));
        let (kind, params) = (
            work(|work| work.kind.clone()),
            work(|work| work.params.clone()),
        );
        let payload = work(|work| format!("{} {}", work.length, work.sha256));
        let equal = [
            ("operation", self.op == other.op),
            ("unit", self.unit == other.unit),
            ("node", self.aud == other.aud),
            ("work type", kind.0 == kind.1),
            ("set of parameters", params.0 == params.1),
            ("payload", payload.0 == payload.1),
            ("requester", self.reply == other.reply),
        ];
        match equal.into_iter().find(|(_, equal)| !equal) {
            Some((what, _)) => Err(Refusal::Other(what)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
