//! The command line of `tael node`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{ArgMatches, Args};
use toml::Value;

use crate::cli::Tool;
use crate::cli::config::{Layer, Layers};
use crate::cli::connection::{self, Connection, Root};
use crate::error::{Error, Result};
use crate::model::{duration, topic};
use crate::tools::node::{self, Line, Means, Options};

/// Options of `tael node`.
#[derive(Debug, Args)]
pub struct Node {
    /// Name of the node
    #[arg(value_name = "NAME")]
    name: String,
    /// File of bash functions: startFunction, stopFunction, initFunction [default: the
    /// [command.NAME] tables of a configuration file]
    #[arg(long, value_name = "FILE")]
    functions: Option<PathBuf>,
    /// Folder that SENDFILE may send from; may be repeated
    #[arg(long, value_name = "DIR", action = clap::ArgAction::Append)]
    allow_dir: Vec<PathBuf>,
    /// How far ahead a command may be that begins AT an instant; others wait for it
    #[arg(long, value_parser = duration::parse, value_name = "DURATION", default_value = "10m")]
    max_ahead: Duration,
    /// Time that commands have to come to their end once TERMINATE has come, and then between
    /// TERM and KILL
    #[arg(long, value_parser = duration::parse, value_name = "DURATION", default_value = "10s")]
    grace: Duration,
    #[command(flatten)]
    root: Root,
    #[command(flatten)]
    connection: Connection,
}

impl Tool for Node {
    const NAME: &'static str = "node";
    const ABOUT: &'static str = "Do what a playbook says, one command after another";
    const DAEMON: bool = true;

    fn run(self, matches: &ArgMatches, layers: &Layers) -> Result<ExitCode> {
        let broker = self.connection.resolve(matches, connection::random_id())?;
        topic::check_who(&self.name)
            .map_err(|e| Error::usage(format!("start node: {}", e.replace("pipeline", "node"))))?;
        let means = match (self.functions, layers.commands()) {
            (Some(file), _) => {
                let absolute = std::path::absolute(&file)
                    .ok()
                    .filter(|path| path.is_file());
                Means::Functions(absolute.ok_or_else(|| {
                    let file = file.display();
                    Error::config(format!("read {file}: there is no such file"))
                })?)
            }
            (None, Some((layer, table))) => Means::Lines(lines(layer, table)?),
            (None, None) => {
                return Err(Error::usage(
                    "start node: give --functions FILE, or [command.NAME] tables in a --config file",
                ));
            }
        };
        node::run(&Options {
            broker,
            root: self.root.resolve()?,
            name: self.name,
            means,
            allow: self.allow_dir,
            max_ahead: self.max_ahead,
            grace: self.grace,
        })
    }
}

/// The `[command.NAME]` tables of a file.
fn lines(layer: &Layer, table: &toml::Table) -> Result<Vec<Line>> {
    let mut lines = Vec::new();
    for (name, value) in table {
        let wrong = |cause: String| layer.wrong(format_args!("command {name}: {cause}"));
        let Value::Table(table) = value else {
            return Err(wrong("it is not a table".into()));
        };
        if ["SENDFILE", "TERMINATE"].contains(&name.as_str()) {
            return Err(wrong("every node has that one itself".into()));
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
                    return Err(wrong(format!("'{key}' cannot be {value}")));
                }
                _ => {
                    let known = "run, background and status";
                    return Err(wrong(format!("unknown key '{key}': it has {known}")));
                }
            }
        }
        if line.run.trim().is_empty() {
            return Err(wrong("there is nothing to run".into()));
        }
        lines.push(line);
    }
    Ok(lines)
}
