//! A client, and a broker that does what a test tells it.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use super::raw::{Raw, Scripted};
use super::{Process, bare_command, spawn, wait_until};

/// Topic of the messages that start runs.
pub const SEQ: &str = "lab/seq/status";

/// Control topic of the client.
pub const CONTROL: &str = "lab/infrastructure/pipelines/p/control";

/// A command that writes the attribute `n` of its event to a file.
pub const RUN: &str = r#"echo "$ATTR_N" >>"$OUT/runs""#;

/// Returns the payload of an event.
pub fn event(n: u32) -> String {
    format!(r#"{{"status":"finished","n":{n}}}"#)
}

/// A folder for a client, and its broker.
pub struct Scene {
    pub dir: tempfile::TempDir,
    pub broker: Scripted,
}

impl Scene {
    pub fn new() -> Self {
        Self {
            dir: tempfile::tempdir().expect("tempdir"),
            broker: Scripted::listen(),
        }
    }

    /// Returns our program `name` with `arguments`, pointed at the broker and the root `lab`.
    pub fn program(&self, name: &str, arguments: &[&str]) -> Command {
        let mut command = bare_command(&self.dir, name);
        command
            .args(arguments)
            .args(["--root", "lab", "-H", "127.0.0.1"])
            .args(["-p", &self.broker.port().to_string()]);
        command
    }

    /// Returns the command of the client, pipeline `p`.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.program("tael-client", &["--who", "p"]);
        command.args(arguments);
        command
    }

    /// Starts the client.
    pub fn start(&self, arguments: &[&str]) -> Process {
        self.spawn(&mut self.command(arguments))
    }

    /// Starts `command`.
    pub fn spawn(&self, command: &mut Command) -> Process {
        spawn(&self.dir, command)
    }

    /// Accepts a client, and returns its connection when it is online.
    #[track_caller]
    pub fn online(&self) -> Raw {
        let mut raw = self.broker.accept();
        raw.serve_until(|m| m.topic.ends_with("/presence"));
        raw
    }

    /// Returns the state folder of the client.
    pub fn home(&self) -> PathBuf {
        self.dir.path().join("state/p")
    }

    /// Returns the ledger of the client.
    pub fn ledger(&self) -> rusqlite::Connection {
        rusqlite::Connection::open(self.home().join("ledger.db")).expect("ledger")
    }

    /// Returns what [`RUN`] has written.
    pub fn runs(&self) -> Vec<String> {
        let text = fs::read_to_string(self.dir.path().join("runs")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// Waits for as many runs as are `wanted`, and compares all.
    #[track_caller]
    pub fn have_run(&self, wanted: &[&str]) {
        wait_until("as many have run", || self.runs().len() >= wanted.len());
        assert_eq!(self.runs(), wanted);
    }
}
