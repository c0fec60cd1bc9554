//! The command line of `tael control`.

use std::process::ExitCode;
use std::time::Duration;

use clap::{ArgMatches, Args};

use crate::cli::Tool;
use crate::cli::attr;
use crate::cli::config::Layers;
use crate::cli::connection::{self, Connection, Root};
use crate::cli::help::Page;
use crate::cli::values::one_of;
use crate::error::{Error, Result};
use crate::model::control::{ACTIONS, Action, RESERVED};
use crate::model::event::Attributes;
use crate::model::near::nearest;
use crate::model::roots::Content;
use crate::model::text::printable;
use crate::model::{duration, topic};
use crate::tools::control::{self, Options};

/// Actions, as [`ACTIONS`] names them.
const NAMES: &[&str] = &["raise", "retry", "cancel", "pause", "resume", "status"];

/// Options of `tael control`.
#[derive(Debug, Args)]
pub struct Control {
    /// Name of the pipeline
    who: String,
    /// Action: raise, retry, cancel, pause, resume or status
    #[arg(value_parser = one_of(any, NAMES))]
    action: String,
    /// Run to retry or cancel, by its id or the end of it; with raise, attributes as KEY=VALUE
    #[arg(value_name = "UNIT")]
    words: Vec<String>,
    /// One attribute of the raised event; repeatable. Also written --attr KEY=VALUE
    #[arg(short, long, num_args = 2, value_names = ["KEY", "VALUE"], action = clap::ArgAction::Append, allow_hyphen_values = true)]
    attr: Vec<String>,
    /// Trigger to raise, if the client has several
    #[arg(long, value_name = "NAME")]
    trigger: Option<String>,
    /// With retry: run it also if it has succeeded, or was retried already
    #[arg(long)]
    again: bool,
    /// Maximum time to wait for the answer
    #[arg(long, value_parser = duration::parse_wait, value_name = "DURATION", default_value = "10s")]
    timeout: Duration,
    /// Print the answer as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    root: Root,
    #[command(flatten)]
    connection: Connection,
}

/// The error for an unknown action comes later: it lists what each one takes.
fn any(text: &str) -> Result<String, String> {
    Ok(text.to_owned())
}

impl Tool for Control {
    const NAME: &'static str = "control";
    const ABOUT: &'static str = "Ask a running client to do something, and wait for its answer";

    const HELP: Page = Page {
        first: &[
            "attr",
            "trigger",
            "timeout",
            "json",
            "broker",
            "username",
            "password-file",
            "root",
        ],
        groups: &[],
        examples: &[
            "tael control align status --root lab",
            "tael control align raise sample=S1 --root lab",
            "tael control align cancel 01JBV7Y3ZK8Q5W2N4T6R9M1XCD --root lab",
        ],
    };

    fn run(self, matches: &ArgMatches, _: &Layers) -> Result<ExitCode> {
        let broker = self.connection.resolve(matches, connection::random_id())?;
        topic::check_who(&self.who).map_err(Error::usage)?;
        let content = Content::Pipeline(self.who.clone());
        let given = !self.attr.is_empty() || self.trigger.is_some();
        if self.again && self.action != "retry" {
            return Err(Error::usage("--again goes with retry only"));
        }
        let (pairs, mut words) = match self.action.as_str() {
            "raise" => (attr::pairs(self.attr, self.words)?, Vec::new().into_iter()),
            _ => (Vec::new(), self.words.into_iter()),
        };
        let unit = words.next();
        if let Some(word) = words.next() {
            let (action, word) = (&self.action, printable(&word, 80));
            return Err(Error::usage(format!(
                "{action} takes one unit: '{word}' is one too many"
            )));
        }
        let action = match (self.action.as_str(), unit) {
            ("raise", _) => Action::Raise {
                trigger: self.trigger,
                attributes: attributes(pairs)?,
            },
            (_, _) if given => {
                return Err(Error::usage("--attr and --trigger go with raise only"));
            }
            ("retry", unit) => Action::Retry {
                unit,
                again: self.again,
            },
            ("cancel", unit) => Action::Cancel { unit },
            ("pause", None) => Action::Pause,
            ("resume", None) => Action::Resume,
            ("status", None) => Action::Status,
            ("pause" | "resume" | "status", Some(_)) => {
                return Err(Error::usage(format!("{} takes no unit", self.action)));
            }
            (other, _) => {
                let who = self.who.as_str();
                let swapped = NAMES.contains(&who) && !NAMES.contains(&other);
                return Err(Error::usage(
                    match (nearest(other, NAMES.iter().copied()), swapped) {
                        (_, true) => {
                            format!("the pipeline comes first: tael control {other} {who}")
                        }
                        (Some(near), _) => {
                            format!("there is no action '{other}'; did you mean {near}?")
                        }
                        (None, _) => format!("there is no action '{other}': {ACTIONS}"),
                    },
                ));
            }
        };
        let root = self.root.find(&broker, &content, self.timeout)?;
        control::run(&Options {
            broker,
            topics: topic::PipelineTopics::new(&root, &self.who),
            root,
            who: self.who,
            action,
            timeout: self.timeout,
            json: self.json,
        })
    }
}

fn attributes(pairs: Vec<String>) -> Result<Attributes> {
    let mut attributes = Attributes::new();
    let reserved = RESERVED.map(|name| (name, "part of the request"));
    attr::add(&mut attributes, pairs, &reserved)?;
    Ok(attributes)
}
