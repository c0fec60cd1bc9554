//! Messages of work between nodes. A message is a header of one line of JSON, which names its kind,
//! and bytes after it. docs/protocol.md describes all of them.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::model::digest::Sha256;
use crate::model::remote::{MAX_HEADER, MAX_PIECE};
use crate::model::signature::{self, Claims, LIFETIME, MAX_SKEW, Operation, Signer, hex};
use crate::model::unit::is_ulid;
use crate::model::work::{Delegation, Params, Work};

/// Length of a SHA-256 in hexadecimal digits.
const HEX_SHA256: usize = 64;

/// A request to a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// Run work. The payload follows, if it has at most [`MAX_PIECE`] bytes.
    Submit(Manifest),
    /// A piece of a payload, which follows.
    Payload {
        /// The unit.
        unit: String,
        /// Its place in the payload.
        offset: u64,
    },
    /// Send output from these offsets of stdout and stderr on, and the end.
    Results {
        /// The unit.
        unit: String,
        /// The offsets.
        from: [u64; 2],
        /// Signature, if the work was signed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        signature: Option<String>,
    },
    /// Output up to these offsets of stdout and stderr has come.
    Ack {
        /// The unit.
        unit: String,
        /// The offsets.
        at: [u64; 2],
        /// Whether the end has come, too, and is on disk or was shown.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        end: bool,
    },
    /// End the unit.
    Cancel(Target),
    /// End the unit if it still runs, and delete what is kept of it.
    Release(Target),
    /// Tell the state of the unit.
    Status(Target),
    /// List the units of submitted work, oldest first.
    List {
        /// Place behind which the list begins: 0, or that of the last answer.
        after: i64,
        /// Signature, for a list with the units of signed work.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        signature: Option<String>,
    },
}

/// The unit of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// Its id.
    pub unit: String,
    /// Signature, if the work was signed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<String>,
}

impl Target {
    /// Returns the target `unit`, without a signature.
    #[must_use]
    pub fn of(unit: &str) -> Self {
        Self {
            unit: unit.to_owned(),
            signature: None,
        }
    }
}

/// Work that is submitted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Id of the unit, which the submitter chooses.
    pub unit: String,
    /// The work type.
    #[serde(rename = "type")]
    pub kind: String,
    /// Words for the command.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub params: Vec<String>,
    /// Names and values for the environment of the command.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub variables: Vec<(String, String)>,
    /// Who submits it: `user@host`.
    pub submitter: String,
    /// Length of the payload, bytes.
    pub length: u64,
    /// SHA-256 of the payload, hexadecimal.
    pub sha256: String,
    /// From when on the work must not be accepted any more, seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<i64>,
    /// Signature.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<String>,
}

impl Manifest {
    /// Returns the manifest of `unit`, which is `work` that the node of the delegation runs.
    #[must_use]
    pub fn of(unit: &str, work: &Work, delegation: &Delegation) -> Self {
        Self {
            unit: unit.to_owned(),
            kind: work.kind.clone(),
            params: work.params.clone(),
            variables: delegation.named.clone(),
            submitter: work.submitter.clone(),
            length: delegation.length,
            sha256: delegation.sha256.clone(),
            expires: delegation.expires,
            signature: None,
        }
    }

    /// Returns whether the payload follows the header.
    #[must_use]
    pub const fn is_inline(&self) -> bool {
        self.length <= MAX_PIECE as u64
    }

    /// Returns the parameters.
    #[must_use]
    pub fn parameters(&self) -> Params {
        Params {
            words: self.params.clone(),
            named: self.variables.clone(),
        }
    }

    /// Returns what a signature names of it.
    #[must_use]
    pub fn signed(&self) -> signature::Work {
        let mut params = Sha256::default();
        self.parameters().parts(&mut |bytes| params.part(bytes));
        signature::Work {
            kind: self.kind.clone(),
            params: hex(&params.finish()),
            length: self.length,
            sha256: self.sha256.clone(),
        }
    }
}

impl Request {
    /// Returns the unit that it is about; nothing for a list.
    #[must_use]
    pub fn unit(&self) -> &str {
        match self {
            Self::List { .. } => "",
            Self::Submit(manifest) => &manifest.unit,
            Self::Payload { unit, .. } | Self::Results { unit, .. } | Self::Ack { unit, .. } => {
                unit
            }
            Self::Cancel(target) | Self::Release(target) | Self::Status(target) => &target.unit,
        }
    }

    /// Returns what a signature must allow, and the signature. `None` if the request continues one
    /// that was allowed.
    #[must_use]
    pub fn allowance(&self, node: &str, reply: &str) -> Option<(signature::Request, Option<&str>)> {
        let (op, signature, work) = match self {
            Self::Submit(manifest) => {
                let work = Some(manifest.signed());
                (Operation::Submit, &manifest.signature, work)
            }
            Self::Results { signature, .. } => (Operation::Results, signature, None),
            Self::Status(target) => (Operation::Results, &target.signature, None),
            Self::List { signature, .. } => (Operation::Results, signature, None),
            Self::Cancel(target) => (Operation::Cancel, &target.signature, None),
            Self::Release(target) => (Operation::Release, &target.signature, None),
            Self::Payload { .. } | Self::Ack { .. } => return None,
        };
        let request = signature::Request {
            op,
            unit: self.unit().to_owned(),
            aud: node.to_owned(),
            reply: reply.to_owned(),
            work,
        };
        Some((request, signature.as_deref()))
    }

    /// Signs it for `node` with `key` at `now` (seconds since 1970), for `life`. `jti` is for one use.
    /// The answer goes to `reply`. A request that continues another one needs no signature.
    ///
    /// # Errors
    /// When the key cannot sign.
    pub fn sign_with(
        &mut self,
        key: &Signer,
        (node, reply): (&str, &str),
        (now, life): (i64, Option<Duration>),
        jti: String,
    ) -> Result<(), String> {
        let Some((request, _)) = self.allowance(node, reply) else {
            return Ok(());
        };
        let seconds = |life: Duration| i64::try_from(life.as_secs()).unwrap_or(i64::MAX);
        let life = life.map_or(LIFETIME, |life| {
            seconds(life).saturating_add(MAX_SKEW).min(LIFETIME)
        });
        let claims = Claims {
            request,
            iat: now,
            exp: now + life,
            jti,
        };
        self.sign(signature::sign(key, &claims)?);
        Ok(())
    }

    /// Sets the signature.
    pub fn sign(&mut self, token: String) {
        match self {
            Self::Submit(Manifest { signature, .. })
            | Self::Results { signature, .. }
            | Self::List { signature, .. }
            | Self::Cancel(Target { signature, .. })
            | Self::Release(Target { signature, .. })
            | Self::Status(Target { signature, .. }) => *signature = Some(token),
            Self::Payload { .. } | Self::Ack { .. } => {}
        }
    }

    /// Checks what the type does not say. `body` is the number of bytes that follow.
    fn check(&self, body: u64) -> Result<(), String> {
        let unit = self.unit();
        if !matches!(self, Self::List { .. }) && !is_ulid(unit) {
            return Err("its unit is no ULID".into());
        }
        match self {
            Self::Submit(manifest) => {
                let sha256 = &manifest.sha256;
                let is_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
                if sha256.len() != HEX_SHA256 || !sha256.bytes().all(is_hex) {
                    return Err("its sha256 is no SHA-256 in hexadecimal digits".into());
                }
                let expected = match manifest.is_inline() {
                    true => manifest.length,
                    false => 0,
                };
                match body == expected {
                    true => Ok(()),
                    false => Err(format!("{body} bytes follow it, and not {expected}")),
                }
            }
            Self::Payload { .. } if body == 0 => Err("no bytes follow it".into()),
            Self::Payload { .. } => Ok(()),
            _ if body > 0 => Err("bytes follow it".into()),
            _ => Ok(()),
        }
    }
}

/// An answer of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// The work is on disk and runs once, now or later.
    Accepted {
        /// The unit.
        unit: String,
    },
    /// The request is refused.
    Refused {
        /// The unit.
        unit: String,
        /// Exit code for the requester.
        code: u8,
        /// Cause, for people.
        error: String,
    },
    /// The payload is here up to this offset. The submitter sends up to [`super::WINDOW`] bytes more.
    Want {
        /// The unit.
        unit: String,
        /// The offset.
        offset: u64,
    },
    /// The node knows nothing of the payload, of which a piece came: it was started anew. The
    /// submitter begins again.
    Lost {
        /// The unit.
        unit: String,
    },
    /// Output, which follows.
    Output {
        /// The unit.
        unit: String,
        /// The stream.
        stream: StreamName,
        /// Its place in the stream.
        offset: u64,
    },
    /// Output that was dropped, because there was too much.
    Gap {
        /// The unit.
        unit: String,
        /// The stream.
        stream: StreamName,
        /// Its place in the stream.
        offset: u64,
        /// Number of missing bytes; `None` if all from here on are missing.
        bytes: Option<u64>,
    },
    /// The unit has ended, and its output was sent.
    End(End),
    /// The state of the unit.
    State(State),
    /// Some units of submitted work, oldest first.
    Units {
        /// The place that the request named.
        after: i64,
        /// The units.
        units: Vec<State>,
        /// Place behind which the list goes on; `None` at its end.
        next: Option<i64>,
    },
    /// A cancel or release has this result.
    Done {
        /// The unit.
        unit: String,
        /// The result.
        result: Done,
    },
}

/// A stream of output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StreamName {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl StreamName {
    /// Both, in the order of pairs.
    pub const BOTH: [Self; 2] = [Self::Stdout, Self::Stderr];
}

/// State of a unit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// The unit.
    pub unit: String,
    /// Its work type.
    #[serde(rename = "type")]
    pub kind: String,
    /// Its state: `pending`, `running`, `succeeded`, `failed` or `canceled`.
    pub state: String,
    /// The same, for people.
    pub detail: String,
    /// Exit code, 128 and more for a signal, if its command has ended.
    pub code: Option<u8>,
    /// Who has submitted it.
    pub submitter: String,
    /// When its command was started, milliseconds since 1970 on the clock of the node, if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started: Option<i64>,
    /// How long it has run, microseconds, if it has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub elapsed: Option<u64>,
}

/// End of a unit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// Its last state.
    pub state: State,
    /// Lengths of stdout and stderr, bytes, with what was dropped.
    pub lengths: [u64; 2],
    /// SHA-256 of stdout and stderr, hexadecimal, without what was dropped.
    pub sha256: [String; 2],
    /// What was dropped of stdout and stderr.
    #[serde(default, skip_serializing_if = "is_nothing")]
    pub dropped: [Option<Dropped>; 2],
    /// Token that confirms it, if the node has a key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<String>,
}

/// Bytes of a stream that the node does not keep, because there were too many.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dropped {
    /// Offset of the first one.
    pub offset: u64,
    /// Their number; `None` if all from here on are missing, and were not counted.
    pub bytes: Option<u64>,
}

fn is_nothing(dropped: &[Option<Dropped>; 2]) -> bool {
    dropped.iter().all(Option::is_none)
}

/// What a node confirms of the end of a unit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Confirmation {
    /// Name of the node.
    node: String,
    /// The unit.
    unit: String,
    /// Its work type.
    #[serde(rename = "type")]
    kind: String,
    /// Its last state.
    state: String,
    /// Its exit code.
    code: Option<u8>,
    /// Lengths of stdout and stderr.
    lengths: [u64; 2],
    /// SHA-256 of stdout and stderr.
    sha256: [String; 2],
    /// What was dropped of them.
    #[serde(default, skip_serializing_if = "is_nothing")]
    dropped: [Option<Dropped>; 2],
}

impl End {
    /// Returns what `node` confirms of it.
    #[must_use]
    pub fn confirmation(&self, node: &str) -> Confirmation {
        Confirmation {
            node: node.to_owned(),
            unit: self.state.unit.clone(),
            kind: self.state.kind.clone(),
            state: self.state.state.clone(),
            code: self.state.code,
            lengths: self.lengths,
            sha256: self.sha256.clone(),
            dropped: self.dropped,
        }
    }
}

/// Result of a cancel or release.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Done {
    /// The command gets its signal.
    Canceled,
    /// It had ended before.
    Ended,
    /// It is deleted, or will be when it has ended.
    Released,
    /// The node knows no such unit: it has none to end or to delete.
    Unknown,
}

impl Answer {
    /// Returns the unit that it is about; nothing for a list.
    #[must_use]
    pub fn unit(&self) -> &str {
        match self {
            Self::Units { .. } => "",
            Self::Accepted { unit }
            | Self::Lost { unit }
            | Self::Refused { unit, .. }
            | Self::Want { unit, .. }
            | Self::Output { unit, .. }
            | Self::Gap { unit, .. }
            | Self::Done { unit, .. } => unit,
            Self::End(end) => &end.state.unit,
            Self::State(state) => &state.unit,
        }
    }
}

/// Returns the message with `header`, followed by `body`.
#[must_use]
pub fn write(header: &impl Serialize, body: &[u8]) -> Bytes {
    // The headers have no maps with other keys than strings, and nothing else fails.
    let header = serde_json::to_vec(header).unwrap_or_default();
    let mut message = BytesMut::with_capacity(header.len() + 1 + body.len());
    message.put_slice(&header);
    message.put_u8(b'\n');
    message.put_slice(body);
    message.freeze()
}

fn read<T: DeserializeOwned>(message: &Bytes) -> Result<(T, Bytes), String> {
    let end = message
        .iter()
        .take(MAX_HEADER + 1)
        .position(|b| *b == b'\n');
    let end = end.ok_or_else(|| format!("it has no line of at most {MAX_HEADER} bytes"))?;
    let header = message.get(..end).unwrap_or_default();
    let header = serde_json::from_slice(header).map_err(|e| format!("its header is wrong: {e}"))?;
    let body = message.slice(end + 1..);
    match body.len() > MAX_PIECE {
        true => Err(format!("more than {MAX_PIECE} bytes follow its header")),
        false => Ok((header, body)),
    }
}

/// Reads a request, and the bytes that follow its header.
///
/// # Errors
/// A text for the requester.
pub fn read_request(message: &Bytes) -> Result<(Request, Bytes), String> {
    let (request, body) = read::<Request>(message)?;
    request.check(body.len() as u64)?;
    Ok((request, body))
}

/// Reads an answer, and the bytes that follow its header.
///
/// # Errors
/// A text for people.
pub fn read_answer(message: &Bytes) -> Result<(Answer, Bytes), String> {
    read(message)
}
