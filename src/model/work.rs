//! Work types: commands that a person starts by name, with parameters and a payload. A unit that was
//! started so is submitted work.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::model::env::sanitize;
use crate::model::policy::Policy;
use crate::model::spec::Spec;
use crate::model::variables::Variables;

/// Beginning of the names of their lanes, which differ so from those of triggers.
const LANE: &str = "work/";

/// Beginning of the names of the lanes of other nodes.
const NODE_LANE: &str = "node/";

/// Prefix of the variables that a submitter sets.
const PREFIX: &str = "WORK_";

/// Maximum length of the name of a type, bytes.
pub const MAX_NAME: usize = 64;

/// Refusal of parameters, as Receptor words it (`pkg/workceptor/command.go`).
pub const NO_PARAMS: &str = "extra params provided but not allowed";

/// Beginning of the refusal of work whose type a client does not have.
pub const UNKNOWN_TYPE: &str = "unknown work type";

/// Beginning of the refusal of a request about a unit that a node does not have.
pub const UNKNOWN_UNIT: &str = "unknown work unit ID";

/// Returns the name of the lane of a work type.
#[must_use]
pub fn lane_of(kind: &str) -> String {
    format!("{LANE}{kind}")
}

/// Returns the name of the lane of the work that `node` runs.
#[must_use]
pub fn lane_of_node(node: &str) -> String {
    format!("{NODE_LANE}{node}")
}

/// Returns the node that runs the work of a lane, if another one does.
#[must_use]
pub fn node_of_lane(lane: &str) -> Option<&str> {
    lane.strip_prefix(NODE_LANE)
}

/// A kind of work that may be submitted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkType {
    /// Its name.
    pub name: String,
    /// Whether submitters may give parameters.
    pub params: bool,
    /// Policy for signatures.
    pub signed: Signed,
    /// Policy of its lane.
    pub policy: Policy,
    /// Maximum number of units that wait. Further ones are refused.
    pub queue: usize,
    /// Maximum size of a payload, bytes.
    pub max_stdin: u64,
    /// Spec of its units, which carry it.
    pub spec: Arc<Spec>,
}

/// Policy for signatures of submissions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Signed {
    /// Only signed work is taken.
    Required,
    /// Work may be signed.
    Accepted,
    /// Signed work is refused.
    #[default]
    Never,
}

impl Signed {
    /// Parses the value of the option.
    ///
    /// # Errors
    /// A text for the user.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text {
            "required" => Ok(Self::Required),
            "accepted" => Ok(Self::Accepted),
            "never" => Ok(Self::Never),
            _ => Err(format!(
                "'{text}' is not a choice: required, accepted or never"
            )),
        }
    }

    /// Returns the value of the option.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Required => "required",
            Self::Accepted => "accepted",
            Self::Never => "never",
        }
    }
}

/// Maximum number of parameters of a submission.
const MAX_PARAMS: usize = 4096;

/// Parameters of a submission.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Params {
    /// Words for the command, after its own.
    pub words: Vec<String>,
    /// Names and values, for its environment.
    pub named: Vec<(String, String)>,
}

impl Params {
    /// Passes `part` the parts of a digest. Only equal parameters have equal parts.
    pub fn parts(&self, part: &mut impl FnMut(&[u8])) {
        part(&(self.words.len() as u64).to_be_bytes());
        self.words.iter().for_each(|word| part(word.as_bytes()));
        for (name, value) in &self.named {
            part(name.as_bytes());
            part(value.as_bytes());
        }
    }

    /// Returns the number of their bytes.
    #[must_use]
    pub fn size(&self) -> usize {
        let mut size = 0;
        self.parts(&mut |part| size += part.len());
        size
    }

    /// Returns whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.words.is_empty() && self.named.is_empty()
    }

    /// Returns the named ones as variables of the command: `WORK_` and the name in capitals.
    #[must_use]
    pub fn variables(&self) -> Variables {
        let variable = |(name, value): &(String, String)| {
            (PREFIX.to_owned() + &sanitize(name), value.as_str().into())
        };
        self.named.iter().map(variable).collect()
    }
}

/// Splits the parameters of a submission into words, as a shell would, without expanding anything.
///
/// # Errors
/// A text for the submitter: an open quote.
pub fn split(params: &str) -> Result<Vec<String>, String> {
    shell_words::split(params).map_err(|_| "params have an open quote".to_owned())
}

impl WorkType {
    /// Returns the refusal of work when its queue is full.
    #[must_use]
    pub fn is_full(&self) -> String {
        let name = &self.name;
        match self.queue {
            0 => format!("all jobs of type '{name}' are busy"),
            1 => format!("1 unit of type '{name}' waits"),
            queue => format!("{queue} units of type '{name}' wait"),
        }
    }

    /// Returns why it does not take work with these `params`, `signed` or not, if it does not.
    #[must_use]
    pub fn refusal(&self, params: &Params, signed: bool) -> Option<String> {
        if !self.params && !params.is_empty() {
            return Some(NO_PARAMS.to_owned());
        }
        if params.words.len() + params.named.len() > MAX_PARAMS {
            return Some(format!("there are more than {MAX_PARAMS} params"));
        }
        if params.words.iter().any(|word| word.contains('\0')) {
            return Some("params contain a NUL character".to_owned());
        }
        match (self.signed, signed) {
            (Signed::Required, false) => {
                Some(format!("work type '{}' takes signed work only", self.name))
            }
            (Signed::Never, true) => Some(format!(
                "work type '{}' did not expect a signature",
                self.name
            )),
            _ => None,
        }
    }
}

/// The work types of a client, in the order of the configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WorkTypes(Vec<WorkType>);

impl WorkTypes {
    /// Takes the types of a configuration, which have different names.
    #[must_use]
    pub const fn new(list: Vec<WorkType>) -> Self {
        Self(list)
    }

    /// Returns the type called `name`.
    #[must_use]
    pub fn named(&self, name: &str) -> Option<&WorkType> {
        self.0.iter().find(|known| known.name == name)
    }

    /// Returns the type of a lane.
    #[must_use]
    pub fn of_lane(&self, lane: &str) -> Option<&WorkType> {
        self.named(lane.strip_prefix(LANE)?)
    }
}

impl std::ops::Deref for WorkTypes {
    type Target = [WorkType];

    fn deref(&self) -> &[WorkType] {
        &self.0
    }
}

impl<'a> IntoIterator for &'a WorkTypes {
    type Item = &'a WorkType;
    type IntoIter = std::slice::Iter<'a, WorkType>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

/// What a unit of submitted work carries beside its spec. The ledger holds it as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Work {
    /// Name of its type.
    #[serde(rename = "type")]
    pub kind: String,
    /// Words for the command, after its own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub params: Vec<String>,
    /// Who has submitted it: `user@host`.
    pub submitter: String,
    /// Whether the submission was signed, or is signed for another node. Requests about the unit must be
    /// signed as well.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub signed: bool,
    /// File of its payload, if that is too large for the ledger.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<PayloadFile>,
    /// The node that runs it, if another one does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delegation: Option<Box<Delegation>>,
}

/// What another node is told of work that it runs for this one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delegation {
    /// Name of the node.
    pub node: String,
    /// Names and values for the environment of the command, as the submitter has given them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub named: Vec<(String, String)>,
    /// Length of the payload, bytes.
    pub length: u64,
    /// SHA-256 of the payload, hexadecimal.
    pub sha256: String,
    /// From when on the node must not accept it any more, seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<i64>,
}

/// A payload in a file of its own, in the folder of the pipeline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PayloadFile {
    /// Name of the file.
    pub name: String,
    /// Its size.
    pub bytes: u64,
}

impl Work {
    /// Returns the name of the file of its payload, if it has one.
    #[must_use]
    pub fn file_name(&self) -> Option<&str> {
        self.file.as_ref().map(|file| file.name.as_str())
    }
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "submitted by {}", self.submitter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::command::Command;

    fn work_type(params: bool, signed: Signed) -> WorkType {
        WorkType {
            name: "echo".into(),
            params,
            signed,
            policy: Policy::default(),
            queue: 1,
            max_stdin: 1,
            spec: Arc::new(Spec::new("work/echo", Command::Direct(vec!["echo".into()]))),
        }
    }

    #[test]
    fn a_type_is_found_by_its_name_and_by_its_lane() {
        let types = WorkTypes::new(vec![work_type(false, Signed::Never)]);
        assert!(types.named("echo").is_some() && types.of_lane(&lane_of("echo")).is_some());
        assert!(types.named("work/echo").is_none());
        assert!(types.of_lane("echo").is_none(), "the lane of a trigger");
    }

    #[test]
    fn what_a_type_does_not_allow_is_refused() {
        let none = Params::default();
        let words = Params {
            words: split("-n 'a b'").expect("words"),
            ..Params::default()
        };
        assert_eq!(words.words, ["-n", "a b"]);
        assert!(split("a 'b").is_err());
        let named = Params {
            named: vec![("the key".into(), "$(id)".into())],
            ..Params::default()
        };
        assert_eq!(
            named.variables(),
            [("WORK_THE_KEY".to_owned(), "$(id)".into())]
        );
        for params in [&words, &named] {
            let refusal = work_type(false, Signed::Never).refusal(params, false);
            assert_eq!(refusal.as_deref(), Some(NO_PARAMS));
            assert_eq!(work_type(true, Signed::Never).refusal(params, false), None);
        }
        let refused = |policy, signed| work_type(false, policy).refusal(&none, signed).is_some();
        assert!(refused(Signed::Required, false) && refused(Signed::Never, true));
        assert!(!refused(Signed::Required, true) && !refused(Signed::Never, false));
        assert!(!refused(Signed::Accepted, true) && !refused(Signed::Accepted, false));
        for policy in [Signed::Required, Signed::Accepted, Signed::Never] {
            assert_eq!(Signed::parse(policy.name()), Ok(policy));
        }
        assert!(Signed::parse("maybe").is_err());
    }

    #[test]
    fn the_ledger_reads_what_it_has_written() {
        let small = Work {
            kind: "echo".into(),
            params: Vec::new(),
            submitter: "ann@host".into(),
            signed: false,
            file: None,
            delegation: None,
        };
        let whole = Work {
            params: vec!["a b".into()],
            signed: true,
            file: Some(PayloadFile {
                name: "f".into(),
                bytes: 7,
            }),
            delegation: Some(Box::new(Delegation {
                node: "node7".into(),
                named: vec![("a".into(), "b".into())],
                length: 7,
                sha256: "00".repeat(32),
                expires: Some(1),
            })),
            ..small.clone()
        };
        for work in [small, whole] {
            let text = serde_json::to_string(&work).expect("write");
            assert_eq!(serde_json::from_str::<Work>(&text).expect("read"), work);
        }
    }
}
