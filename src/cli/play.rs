//! The command line of `tael play`.

use std::fs::File;
use std::io::Read;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{ArgMatches, Args};

use crate::cli::Tool;
use crate::cli::config::Layers;
use crate::cli::connection::{self, Connection, Root};
use crate::error::{Error, Kind, Result};
use crate::model::duration;
use crate::model::network_address::Network;
use crate::model::playbook::Playbook;
use crate::tools::play::{self, Options};

/// Options of `tael play`.
#[derive(Debug, Args)]
pub struct Play {
    /// The playbook
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Look for mistakes, and do nothing
    #[arg(long)]
    check: bool,
    /// How long a WAITFOR lasts that does not say so, and a file may be on its way
    #[arg(long, value_parser = duration::parse, value_name = "DURATION", default_value = "10m")]
    timeout: Duration,
    /// What is waited for must be all that a node says, not a part of it
    #[arg(long)]
    exact: bool,
    /// Leave out lines of unknown keywords
    #[arg(long)]
    lenient: bool,
    /// Folder that RECEIVE may put files into; may be repeated [default: the working directory]
    #[arg(long, value_name = "DIR", action = clap::ArgAction::Append)]
    allow_dir: Vec<PathBuf>,
    /// Largest file that RECEIVE takes, bytes
    #[arg(long, value_name = "BYTES", default_value_t = 1 << 30)]
    max_file: u64,
    /// Address on which RECEIVE waits for files [default: every address]
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<IpAddr>,
    /// Address or network, such as 192.0.2.0/24, that RECEIVE takes files from; may be repeated
    /// [default: anybody]
    #[arg(long, value_name = "ADDRESS", value_parser = Network::parse, action = clap::ArgAction::Append)]
    from: Vec<Network>,
    /// Write what became of each step: JUnit for a name that ends in .xml, else JSON
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    #[command(flatten)]
    root: Root,
    #[command(flatten)]
    connection: Connection,
}

/// Bytes of a playbook at most.
const MAX_FILE: u64 = 4 * 1024 * 1024;

impl Tool for Play {
    const NAME: &'static str = "play";
    const ABOUT: &'static str = "Have several nodes do a playbook, in step";

    fn run(self, matches: &ArgMatches, _: &Layers) -> Result<ExitCode> {
        let broker = self.connection.resolve(matches, connection::random_id())?;
        let root = self.root.resolve()?;
        let name = self.file.display().to_string();
        let wrong = |cause: &dyn std::fmt::Display| {
            Error::new(Kind::Data, format!("read playbook {name}: {cause}"))
        };
        let mut text = String::new();
        let read = File::open(&self.file)
            .and_then(|file| file.take(MAX_FILE + 1).read_to_string(&mut text));
        let size = read.map_err(|e| wrong(&e))? as u64;
        if size > MAX_FILE {
            return Err(wrong(&format!("it has more than {MAX_FILE} bytes")));
        }
        let playbook = Playbook::parse(&text, self.lenient).map_err(|e| wrong(&e))?;
        if self.check {
            return play::check(&playbook);
        }
        let allow = match self.allow_dir {
            list if list.is_empty() => vec![PathBuf::from(".")],
            list => list,
        };
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
        })
    }
}
