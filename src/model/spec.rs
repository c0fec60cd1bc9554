//! What a unit runs, and its limits. Each unit carries its spec, so that it can run when its
//! trigger is gone from the configuration.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::command::Command;
use crate::model::duration::{millis, millis_if_any};
use crate::model::env::Export;
use crate::model::policy::Retries;

/// The common part of all runs of one lane. The ledger holds it as JSON, once for all units that
/// carry it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// The queue that its units wait in. The lane of a trigger has its name.
    pub lane: String,
    /// Command to run.
    pub command: Command,
    /// Working directory of the command; by default that of the client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<PathBuf>,
    /// File of variables, read at the start of each run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env_file: Option<PathBuf>,
    /// Bounds of a run.
    #[serde(default)]
    pub limits: Limits,
    /// Policy after a failed run.
    #[serde(default)]
    pub retries: Retries,
    /// Names of the variables that the trigger requires: they say what a run is about.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub required: Vec<String>,
    /// How variables and passthrough attributes of its units were made; `None` in a ledger of an
    /// earlier version, and for work types.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exports: Option<Exports>,
}

/// What a trigger takes from the attributes of its events.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Exports {
    /// For the environment of the command.
    pub export: Export,
    /// Names of the variables that the statuses repeat.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub passthrough: Vec<String>,
}

/// Bounds of a run. The ledger holds times in milliseconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Maximum time of a run; then it is canceled.
    #[serde(with = "millis_if_any", skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Duration>,
    /// Time between TERM and KILL when a run is canceled.
    #[serde(with = "millis")]
    pub grace: Duration,
    /// Maximum size kept of each output stream, bytes; 0 keeps all.
    pub max_output: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            timeout: None,
            grace: Duration::from_secs(10),
            max_output: 16 << 20,
        }
    }
}

impl Spec {
    /// Returns a spec for `lane` with the default limits.
    #[must_use]
    pub fn new(lane: &str, command: Command) -> Self {
        Self {
            lane: lane.to_owned(),
            command,
            cwd: None,
            env_file: None,
            limits: Limits::default(),
            retries: Retries::default(),
            required: Vec::new(),
            exports: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::policy::OnInterrupt;

    #[test]
    fn the_ledger_reads_what_it_has_written() {
        let small = Spec::new("t", Command::direct("true").expect("command"));
        let whole = Spec {
            cwd: Some("/data".into()),
            env_file: Some("/etc/conda.env".into()),
            limits: Limits {
                timeout: Some(Duration::from_secs(5)),
                grace: Duration::from_millis(1500),
                max_output: 0,
            },
            retries: Retries {
                limit: 3,
                delay: Duration::from_secs(30),
                on_interrupt: OnInterrupt::Rerun,
            },
            required: vec!["SAMPLE".into()],
            exports: Some(Exports {
                export: Export::new(Some("X".into()), vec!["SAMPLE".into()]).expect("export"),
                passthrough: vec!["SAMPLE".into()],
            }),
            ..small.clone()
        };
        for spec in [small, whole] {
            let text = serde_json::to_string(&spec).expect("write");
            assert_eq!(
                serde_json::from_str::<Spec>(&text).expect(&text),
                spec,
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_not_said_is_the_default() {
        let text = r#"{"lane":"t","command":{"text":"a"},"later":1}"#;
        let spec: Spec = serde_json::from_str(text).expect("read");
        assert_eq!(spec, Spec::new("t", Command::Recorded("a".into())));
        assert!(serde_json::from_str::<Spec>(r#"{"lane":"t"}"#).is_err());
    }
}
