//! The command line of `tael play`.

use std::fs::File;
use std::io::{self, Read};
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{ArgMatches, Args};

use crate::cli::Tool;
use crate::cli::config::Layers;
use crate::cli::connection::{self, Connection, Root};
use crate::cli::help::Page;
use crate::cli::mistakes::Mistakes;
use crate::error::{Error, Kind, Result};
use crate::model::duration;
use crate::model::network_address::Network;
use crate::model::playbook::Playbook;
use crate::model::roots::Content;
use crate::tools::play::{self, Options};

/// Options of `tael play`.
#[derive(Debug, Args)]
pub struct Play {
    /// File of the playbook
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Report all mistakes in the playbook, and exit; sends nothing
    #[arg(long)]
    check: bool,
    /// Maximum time of a WAITFOR without TIMEOUT, and of a transfer
    #[arg(long, value_parser = duration::parse, value_name = "DURATION", default_value = "10m")]
    timeout: Duration,
    /// Compare the whole status of a node with that of WAITFOR, not a part of it
    #[arg(long)]
    exact: bool,
    /// Ignore lines of unknown keywords
    #[arg(long)]
    lenient: bool,
    /// Folder that RECEIVE may write files to; repeatable [default: the working directory]
    #[arg(long, value_name = "DIR", action = clap::ArgAction::Append)]
    allow_dir: Vec<PathBuf>,
    /// Maximum size of a file for RECEIVE, bytes
    #[arg(long, value_name = "BYTES", default_value_t = 1 << 30)]
    max_file: u64,
    /// Address on which RECEIVE waits for files [default: every address]
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<IpAddr>,
    /// Address or network, such as 192.0.2.0/24, that RECEIVE takes files from; repeatable
    /// [default: every address]
    #[arg(long, value_name = "ADDRESS", value_parser = Network::parse, action = clap::ArgAction::Append)]
    from: Vec<Network>,
    /// End the nodes on Ctrl-C, not only what runs on them
    #[arg(long)]
    terminate: bool,
    /// File for a report of all steps: JUnit for a name that ends in .xml, otherwise JSON
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    #[command(flatten)]
    root: Root,
    #[command(flatten)]
    connection: Connection,
}

/// Maximum time to look for the root.
const CONNECT: Duration = Duration::from_secs(10);

/// Maximum size of a playbook, bytes.
const MAX_FILE: u64 = 4 * 1024 * 1024;

impl Tool for Play {
    const NAME: &'static str = "play";
    const ABOUT: &'static str = "Run a playbook over several nodes, step by step";

    const HELP: Page = Page {
        first: &[
            "check",
            "timeout",
            "exact",
            "terminate",
            "report",
            "broker",
            "username",
            "password-file",
            "root",
        ],
        groups: &[],
        examples: &[
            "tael play playbook --root testlab --check",
            "tael play playbook --root testlab --report run.xml",
        ],
    };

    fn run(self, matches: &ArgMatches, _: &Layers) -> Result<ExitCode> {
        let broker = self.connection.resolve(matches, connection::random_id())?;
        let name = self.file.display().to_string();
        let wrong = |cause: &dyn std::fmt::Display| {
            Error::new(Kind::Data, format!("read playbook {name}: {cause}"))
        };
        let mut text = String::new();
        let read = File::open(&self.file)
            .and_then(|file| file.take(MAX_FILE + 1).read_to_string(&mut text));
        // As every file that the command line names.
        let missing = |e: io::Error| match e.kind() {
            io::ErrorKind::InvalidData => wrong(&e),
            _ => Error::config(format!("read playbook {name}: {e}")),
        };
        let size = read.map_err(missing)? as u64;
        if size > MAX_FILE {
            return Err(wrong(&format!("it has more than {MAX_FILE} bytes")));
        }
        if self.check {
            let (playbook, mistakes) = Playbook::check(&text, self.lenient);
            let mut list = Mistakes::default();
            mistakes
                .iter()
                .for_each(|mistake| list.note(wrong(mistake)));
            play::show_ignored(&playbook)?;
            let steps = playbook.steps.len();
            list.name(format!(
                "{name}: {steps} step{}",
                if steps == 1 { "" } else { "s" }
            ));
            return list.report();
        }
        let playbook = Playbook::parse(&text, self.lenient).map_err(|e| wrong(&e))?;
        let content = Content::Playbook {
            nodes: playbook.nodes().into_iter().collect(),
            pipelines: playbook.pipelines().into_iter().collect(),
        };
        let allow = match self.allow_dir {
            list if list.is_empty() => vec![PathBuf::from(".")],
            list => list,
        };
        let root = self.root.find(&broker, &content, CONNECT)?;
        play::run(&Options {
            broker,
            root,
            name,
            playbook,
            timeout: self.timeout,
            exact: self.exact,
            allow,
            max_file: self.max_file,
            listen: self.listen,
            from: self.from,
            report: self.report,
            terminate: self.terminate,
        })
    }
}
