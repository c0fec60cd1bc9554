//! The options of `tael work submit`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use crate::cli::work_node::{NodeOptions, whole_id};
use crate::error::{Error, Result};
use crate::model::duration;
use crate::model::text::printable;
use crate::os::host;
use crate::tools::work::node::Submit;
use crate::tools::work::submit::{Away, Payload, Submission};

/// The options of `tael work submit`.
#[derive(Debug, Args)]
pub struct SubmitOptions {
    /// Type of the work
    #[arg(value_name = "TYPE")]
    kind: String,
    /// Words for its command, if the type takes parameters; after -- they may begin with a dash
    #[arg(value_name = "PARAM")]
    words: Vec<String>,
    /// Send a file as its payload; - is standard input
    #[arg(short, long, value_name = "FILE", group = "what")]
    payload: Option<PathBuf>,
    /// Send a text and a line break as its payload
    #[arg(
        short = 'l',
        long,
        value_name = "TEXT",
        group = "what",
        allow_hyphen_values = true
    )]
    payload_literal: Option<String>,
    /// Send no payload [default]
    #[arg(short, long, group = "what")]
    no_payload: bool,
    /// Parameter, WORK_KEY in the environment of its command; repeatable
    #[arg(long, value_name = "KEY=VALUE", action = clap::ArgAction::Append)]
    param: Vec<String>,
    /// Print its output until it ends, and exit with its code
    #[arg(short, long)]
    follow: bool,
    /// With --follow: release it then
    #[arg(long, requires = "follow")]
    rm: bool,
    /// Id of the unit, a ULID: the same work under the same id is the same unit
    #[arg(long, value_name = "ULID")]
    id: Option<String>,
    /// Print a JSON object
    #[arg(long, conflicts_with = "follow")]
    json: bool,
    /// With --node: the node alone keeps the unit. By default a client of this host keeps it too: it
    /// asks again until the node is there, and has the output
    #[arg(long, requires = "node")]
    pub direct: bool,
    /// With --node: time after which the node does not accept the work any more
    #[arg(long, value_parser = duration::parse, value_name = "DURATION", requires = "node")]
    ttl: Option<Duration>,
    /// With --direct: maximum time to wait until the work is accepted [default: 60s]
    #[arg(long, value_parser = duration::parse, value_name = "DURATION")]
    timeout: Option<Duration>,
    #[command(flatten)]
    pub node: NodeOptions,
}

/// Maximum time to wait until a node accepts work that it alone keeps, unless `--timeout` is given.
const ACCEPTED: Duration = Duration::from_secs(60);

/// Splits a parameter.
fn pair(text: &str) -> Result<(String, String)> {
    match text.split_once('=') {
        Some((key, value)) => Ok((key.to_owned(), value.to_owned())),
        None => {
            let text = printable(text, 80);
            Err(Error::usage(format!("--param '{text}' is not KEY=VALUE")))
        }
    }
}

impl SubmitOptions {
    /// Returns the work.
    ///
    /// # Errors
    /// 64 if a parameter is not KEY=VALUE, or an option goes with --direct only.
    pub fn submission(self) -> Result<Submission> {
        if self.timeout.is_some() {
            return Err(Error::usage("--timeout goes with --direct"));
        }
        let ttl = self.ttl;
        let away = self
            .node
            .kept()?
            .map(|(node, sign)| Away { node, sign, ttl });
        let named = self.param.iter().map(|text| pair(text));
        Ok(Submission {
            kind: self.kind,
            words: self.words,
            named: named.collect::<Result<_>>()?,
            payload: match (self.payload, self.payload_literal) {
                (Some(path), _) if path.as_os_str() == "-" => Payload::Stdin,
                (Some(path), _) => Payload::File(path),
                (None, Some(text)) => Payload::Text(text),
                (None, None) => Payload::Nothing,
            },
            id: self.id,
            follow: self.follow,
            release: self.rm,
            json: self.json,
            away,
        })
    }

    /// Maximum time to wait until the node accepts the work.
    pub fn timeout(&self) -> Duration {
        self.timeout.unwrap_or(ACCEPTED)
    }

    /// Returns the work for a node that alone keeps the unit.
    ///
    /// # Errors
    /// 64 if an option is wrong.
    pub fn direct(mut self) -> Result<Submit> {
        self.node = NodeOptions::default();
        self.timeout = None;
        let ttl = self.ttl;
        let mut work = self.submission()?;
        let unit = match work.id.take() {
            Some(unit) => whole_id(Some(unit))?,
            None => host::new_id(),
        };
        Ok(Submit { work, unit, ttl })
    }
}
