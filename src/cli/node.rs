//! The command line of `tael node`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{ArgMatches, Args};
use toml::Value;

use crate::cli::Tool;
use crate::cli::config::{Layer, Layers};
use crate::cli::connection::{self, Connection, Root};
use crate::cli::help::Page;
use crate::cli::mistakes::Mistakes;
use crate::error::{Error, Result};
use crate::model::duration;
use crate::model::near::nearest;
use crate::model::topic::{self, DEFAULT_ROOT};
use crate::tools::node::{self, Line, Means, Options};

/// Options of `tael node`.
#[derive(Debug, Args)]
pub struct Node {
    /// Name of the node
    #[arg(value_name = "NAME")]
    name: String,
    /// Report all mistakes in the configuration, and exit; starts nothing
    #[arg(long)]
    check: bool,
    /// File of bash functions: startFunction, stopFunction, initFunction [default: the
    /// [command.NAME] tables of a configuration file]
    #[arg(long, value_name = "FILE")]
    functions: Option<PathBuf>,
    /// Folder that SENDFILE may send from; repeatable
    #[arg(long, value_name = "DIR", action = clap::ArgAction::Append)]
    allow_dir: Vec<PathBuf>,
    /// Maximum time until the instant of a command with AT; other commands wait for it
    #[arg(long, value_parser = duration::parse, value_name = "DURATION", default_value = "10m")]
    max_ahead: Duration,
    /// Time for commands to end after TERMINATE, and again between TERM and KILL
    #[arg(long, value_parser = duration::parse, value_name = "DURATION", default_value = "10s")]
    grace: Duration,
    #[command(flatten)]
    root: Root,
    #[command(flatten)]
    connection: Connection,
}

impl Tool for Node {
    const NAME: &'static str = "node";
    const ABOUT: &'static str = "Run a playbook node on this host";

    const HELP: Page = Page {
        first: &[
            "functions",
            "allow-dir",
            "check",
            "broker",
            "username",
            "password-file",
            "root",
        ],
        groups: &[],
        examples: &["tael node router --root testlab --functions router.sh"],
    };
    const DAEMON: bool = true;

    const CHECK: Option<fn(Self, &ArgMatches, &Layers, &mut Mistakes)> =
        Some(|node, matches, layers, mistakes| {
            if let Some(options) = node.options(matches, layers, mistakes) {
                mistakes.name(match &options.means {
                    Means::Functions(file) => format!("{}: {}", options.name, file.display()),
                    Means::Lines(lines) => {
                        let s = if lines.len() == 1 { "" } else { "s" };
                        format!("{}: {} command{s}", options.name, lines.len())
                    }
                });
                // A start would only find the first of them.
                for (line, cause) in node::mistakes(&options.means) {
                    let layer = layers.commands().map(|(layer, _)| layer);
                    mistakes.note(match line.zip(layer) {
                        Some((line, layer)) => {
                            let cause = format!("command {}: {cause}", line.name);
                            layer.wrong_at(&["command", &line.name, "run"], cause)
                        }
                        None => Error::config(cause),
                    });
                }
            }
        });

    fn run(self, matches: &ArgMatches, layers: &Layers) -> Result<ExitCode> {
        let mut mistakes = Mistakes::default();
        let options = self.options(matches, layers, &mut mistakes);
        node::run(&mistakes.or_first(options)?)
    }
}

impl Node {
    /// Returns the node that the options describe, unless a mistake leaves none; notes every
    /// mistake.
    fn options(
        self,
        matches: &ArgMatches,
        layers: &Layers,
        mistakes: &mut Mistakes,
    ) -> Option<Options> {
        let id = connection::random_id();
        mistakes.keep(self.connection.check_session(matches));
        let broker = self.connection.resolve_all(matches, id, mistakes);
        if let Err(e) = topic::check_who(&self.name) {
            let e = e.replace("pipeline", "node");
            mistakes.note(Error::usage(format!("start node: {e}")));
        }
        let means = match (self.functions, layers.commands()) {
            (Some(file), _) => {
                let absolute = std::path::absolute(&file)
                    .ok()
                    .filter(|path| path.is_file());
                if absolute.is_none() {
                    let (path, file) = (&file, file.display());
                    let cause = match path.exists() {
                        true => "it is not a file",
                        false => "there is no such file",
                    };
                    mistakes
                        .note(Error::config(format!("read {file}: {cause}")).about("functions"));
                }
                absolute.map(Means::Functions)
            }
            (None, Some((layer, table))) => Some(Means::Lines(lines(layer, table, mistakes))),
            (None, None) => {
                mistakes.note(Error::usage(
                    "start node: give --functions FILE, or [command.NAME] tables in a --config file",
                ));
                None
            }
        };
        // After a mistake the commands are still of interest.
        let root = mistakes.keep(self.root.resolve());
        Some(Options {
            broker: broker.unwrap_or_else(Connection::unused),
            root: root.unwrap_or_else(|| DEFAULT_ROOT.to_owned()),
            name: self.name,
            means: means?,
            allow: self.allow_dir,
            max_ahead: self.max_ahead,
            grace: self.grace,
        })
    }
}

/// Returns the `[command.NAME]` tables of a file; notes what is wrong with them.
fn lines(layer: &Layer, table: &toml::Table, mistakes: &mut Mistakes) -> Vec<Line> {
    let mut lines = Vec::new();
    for (name, value) in table {
        let mut wrong = |key: &str, cause: String| {
            let cause = format!("command {name}: {cause}");
            mistakes.note(layer.wrong_at(&["command", name, key], cause));
        };
        let Value::Table(table) = value else {
            wrong("", "it is not a table".into());
            continue;
        };
        if ["SENDFILE", "TERMINATE"].contains(&name.as_str()) {
            wrong(
                "",
                "every node has a command of that name: choose another".into(),
            );
        }
        let mut line = Line {
            name: name.clone(),
            run: String::new(),
            background: false,
            status: match name.as_str() {
                "START" => "STARTED".to_owned(),
                "STOP" => "STOPPED".to_owned(),
                other => format!("{other} DONE"),
            },
        };
        for (key, value) in table {
            match (key.as_str(), value) {
                ("run", Value::String(text)) => line.run.clone_from(text),
                ("status", Value::String(text)) => line.status.clone_from(text),
                ("background", Value::Boolean(on)) => line.background = *on,
                ("run" | "status" | "background", _) => {
                    wrong(key, format!("'{key}' cannot be {value}"));
                }
                _ => {
                    let keys = ["run", "background", "status"];
                    let hint = match nearest(key, keys) {
                        Some(near) => format!("; did you mean '{near}'?"),
                        None => ": it has run, background and status".to_owned(),
                    };
                    wrong(key, format!("unknown key '{key}'{hint}"));
                }
            }
        }
        let empty = |run: &Value| run.as_str().is_some_and(|text| text.trim().is_empty());
        if table.get("run").is_none_or(empty) {
            wrong("run", "there is nothing to run".into());
        }
        lines.push(line);
    }
    lines
}
