//! Submitted work: a person starts a command of the configuration by the name of its type.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Map, json};

use crate::engine::config::Config;
use crate::engine::intake::offer::Subject;
use crate::model::command::Command;
use crate::model::digest::{Sha256, sha256};
use crate::model::signature::hex;
use crate::model::spec::Spec;
use crate::model::unit::Unit;
use crate::model::work::{Delegation, Params, PayloadFile, Work, lane_of, lane_of_node};
use crate::store::ledger::EventKey;

/// Work of a submitter, with its whole payload.
#[derive(Debug)]
pub struct Submission {
    /// Id of the unit, a ULID.
    pub id: String,
    /// Whether no earlier unit can have the id.
    pub is_new: bool,
    /// Name of the work type.
    pub kind: String,
    /// Parameters.
    pub params: Params,
    /// Who submits it: `user@host`.
    pub submitter: String,
    /// Whether it is signed.
    pub signed: bool,
    /// Payload: the standard input of the command.
    pub payload: Payload,
    /// The other node that runs it, if one does.
    pub node: Option<Away>,
}

/// The other node that runs submitted work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Away {
    /// Its name.
    pub node: String,
    /// From when on it must not accept the work any more, seconds since 1970.
    pub expires: Option<i64>,
}

/// The payload of a submission.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Payload {
    /// It is small, and goes into the ledger.
    Inline(Bytes),
    /// It is in a file, with this SHA-256. The file is on disk.
    File(PayloadFile, [u8; 32]),
}

impl Payload {
    /// Returns its size, bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Inline(bytes) => bytes.len() as u64,
            Self::File(file, _) => file.bytes,
        }
    }

    fn digest(&self) -> [u8; 32] {
        match self {
            Self::Inline(bytes) => sha256(bytes),
            Self::File(_, digest) => *digest,
        }
    }
}

impl Submission {
    /// Returns the SHA-256 of type, parameters and payload: the same under one id is the same work.
    fn digest(&self) -> [u8; 32] {
        let mut digest = Sha256::default();
        if let Some(away) = &self.node {
            digest.part(away.node.as_bytes());
        }
        digest.part(self.kind.as_bytes());
        self.params.parts(&mut |part| digest.part(part));
        digest.part(&self.payload.digest());
        digest.finish()
    }

    /// Returns what it offers; `None` if the configuration has no such type any more.
    #[must_use]
    pub fn subject(self, config: &Config) -> Option<Subject> {
        let spec = match &self.node {
            Some(away) => Arc::new(away.spec(&self.kind, &self.params)),
            None => Arc::clone(&config.work.named(&self.kind)?.spec),
        };
        let topic = match &self.node {
            Some(away) => lane_of_node(&away.node),
            None => lane_of(&self.kind),
        };
        let key = EventKey {
            id: self.id.clone(),
            sender: Some(self.id.clone()),
            digest: self.digest(),
            is_new: self.is_new,
            ..EventKey::default()
        };
        let node = self.node.as_ref().map(|away| ("node", json!(away.node)));
        let delegation = self.node.map(|away| {
            Box::new(Delegation {
                node: away.node,
                named: self.params.named.clone(),
                length: self.payload.bytes(),
                sha256: hex(&self.payload.digest()),
                expires: away.expires,
            })
        });
        let (payload, file) = match self.payload {
            Payload::Inline(bytes) => (bytes, None),
            Payload::File(file, _) => (Bytes::new(), Some(file)),
        };
        let about = [
            ("work_type", json!(self.kind)),
            ("submitter", json!(self.submitter)),
        ];
        let about = about.into_iter().chain(node);
        let about = about.map(|(key, value)| (key.to_owned(), value));
        let variables = self.params.variables();
        let work = Work {
            kind: self.kind,
            params: self.params.words,
            submitter: self.submitter,
            signed: self.signed,
            file,
            delegation,
        };
        let unit = Unit {
            event: self.id.clone(),
            id: self.id,
            spec,
            topic,
            reason: work.to_string(),
            hops: 0,
            traceparent: None,
            attempt: 1,
            retry_of: None,
            due: 0,
            variables,
            passthrough: Map::from_iter(about),
            payload: Some(payload),
            reply: None,
            origin: None,
            work: Some(Arc::new(work)),
        };
        Some(Subject::Submitted {
            key,
            unit: Arc::new(unit),
        })
    }
}

impl Away {
    /// Returns the spec of work of type `kind`. Only people read its command; the node has the limits.
    fn spec(&self, kind: &str, params: &Params) -> Spec {
        let words = [kind.to_owned()].into_iter().chain(params.words.clone());
        Spec::new(&lane_of_node(&self.node), Command::Direct(words.collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn submission() -> Submission {
        Submission {
            id: "01JBV7Y3ZK8Q5W2N4T6R9M1XCD".into(),
            is_new: true,
            kind: "echo".into(),
            params: Params {
                words: vec!["a".into(), "b".into()],
                named: Vec::new(),
            },
            submitter: "ann@host".into(),
            signed: false,
            payload: Payload::Inline(Bytes::from_static(b"abc")),
            node: None,
        }
    }

    #[test]
    fn the_same_work_has_the_same_digest_and_other_work_another() {
        let same = submission().digest();
        let in_a_file = Payload::File(
            PayloadFile {
                name: "f".into(),
                bytes: 3,
            },
            submission().payload.digest(),
        );
        let filed = Submission {
            payload: in_a_file,
            submitter: "bob@host".into(),
            ..submission()
        };
        assert_eq!(filed.digest(), same, "who submits it, and how, is no part");
        let params = |words: &[&str], named: &[(&str, &str)]| Params {
            words: words.iter().map(|word| (*word).to_owned()).collect(),
            named: named
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
        };
        let others = [
            Submission {
                node: Some(Away {
                    node: "node7".into(),
                    expires: None,
                }),
                ..submission()
            },
            Submission {
                kind: "other".into(),
                ..submission()
            },
            Submission {
                params: params(&["a b"], &[]),
                ..submission()
            },
            Submission {
                params: params(&[], &[("a", "b")]),
                ..submission()
            },
            Submission {
                payload: Payload::Inline(Bytes::from_static(b"abd")),
                ..submission()
            },
        ];
        for other in others {
            assert_ne!(other.digest(), same, "{other:?}");
        }
    }
}
