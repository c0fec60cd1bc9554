//! The pages and their blocks.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::{World, bare_command, binary};

/// How blocks are tested. A kind that no block has is dead, and fails too.
pub const KINDS: &[&str] = &[
    // The newcomer's commands: those that build nothing but ourselves run here.
    "sh first",
    // What is installed exists.
    "sh install",
    // Commands that stay until they are stopped, in the order of the pages.
    "sh terminal",
    // Commands that end with 0.
    "sh run",
    // Commands with what they print, but for figures and names of hosts.
    "sh check",
    // A node's functions, its command, a playbook for it, and a node in a file: played.
    "sh functions",
    "sh nodes",
    "text playbook",
    "toml node",
    // A client's line: it comes online.
    "crontab",
    // What `.ci/package` and `.ci/systemd` do: here, the files that are named exist.
    "sh package",
    "sh systemd",
    "diff swap",
    "toml config",
    // A broker's configuration and its access rules: mosquitto starts with them, and its users may
    // do what the page says, where the suite runs against it.
    "conf mosquitto",
    "acl mosquitto",
    // The same with TLS, and a message over it.
    "conf tls",
    "sh tls",
    // A client of the name runs before, and has ended in good order afterwards.
    "sh stop",
    // A client's session and its retained messages are gone afterwards.
    "sh leave",
    // What `tael demo` prints, but for times, ids and names.
    "text demo",
    // All messages of one run, but for figures and names.
    "text wire",
    // A file of metrics, but for times.
    "text metrics",
];

/// Kinds whose blocks another test runs: kind, page, test.
pub const ELSEWHERE: &[(&str, &str, &str)] = &[
    ("sh running", "docs/backup.md", "tests/it/ledger.rs"),
    ("sh stopped", "docs/backup.md", "tests/it/ledger.rs"),
    ("sh restore", "docs/backup.md", "tests/it/ledger.rs"),
    ("sh certificates", "docs/tls.md", "tests/it/tls.rs"),
    ("text events", "docs/guide.md", "tests/it/events.rs"),
];

pub const BROKER: &str = "mqtt.lab.example";
pub const INSTALLED: &str = "/usr/local/bin/";

/// A Markdown file, by its path from the package's root.
pub struct Page {
    pub name: String,
    pub text: String,
}

pub struct Block {
    pub page: String,
    pub line: usize,
    pub kind: String,
    pub text: String,
}

pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

pub fn page(name: &str) -> Page {
    Page {
        name: name.to_owned(),
        text: fs::read_to_string(root().join(name)).expect(name),
    }
}

/// The title page, then the others by name.
pub fn pages() -> Vec<Page> {
    let docs = fs::read_dir(root().join("docs")).expect("docs").flatten();
    let mut names: Vec<String> = docs
        .map(|entry| format!("docs/{}", entry.file_name().to_str().expect("UTF-8")))
        .collect();
    names.sort();
    names.insert(0, "README.md".into());
    names.iter().map(|name| page(name)).collect()
}

/// All blocks, in order.
pub fn blocks() -> Vec<Block> {
    let mut blocks = Vec::new();
    for page in pages() {
        let mut open: Option<Block> = None;
        for (line, n) in page.text.lines().zip(1..) {
            let fence = line.trim_start().strip_prefix("```");
            match (&mut open, fence) {
                (None, Some(kind)) => {
                    open = Some(Block {
                        page: page.name.clone(),
                        line: n,
                        kind: kind.to_owned(),
                        text: String::new(),
                    });
                }
                (Some(_), Some(_)) => blocks.extend(open.take()),
                (Some(block), None) => block.text += &format!("{line}\n"),
                (None, None) => {}
            }
        }
        assert!(open.is_none(), "{}: a block is not closed", page.name);
    }
    blocks
}

pub fn of_kind(kind: &str) -> Vec<Block> {
    assert!(KINDS.contains(&kind), "{kind}");
    blocks()
        .into_iter()
        .filter(|block| block.kind == kind)
        .collect()
}

/// The only block of a kind.
pub fn one(kind: &str) -> Block {
    let mut blocks = of_kind(kind);
    assert_eq!(blocks.len(), 1, "{kind}");
    blocks.remove(0)
}

impl Block {
    /// Where it is, for messages.
    pub fn place(&self) -> String {
        format!("{}:{}", self.page, self.line)
    }
}

/// A block's text on this machine.
pub fn here(world: &World, text: &str) -> String {
    let bin = binary("tael");
    let bin = bin.parent().expect("folder").to_str().expect("UTF-8");
    let port = world.broker.port();
    text.replace(INSTALLED, &format!("{bin}/"))
        .replace(
            &format!("--host {BROKER}"),
            &format!("--host 127.0.0.1 --port {port}"),
        )
        .replace(&format!("-h {BROKER}"), &format!("-h 127.0.0.1 -p {port}"))
        .replace(BROKER, &format!("127.0.0.1:{port}"))
}

/// `sh -c TEXT` in an empty home, with our binaries to be found; pointed at the broker, unless
/// the text names one itself.
pub fn sh(world: &World, text: &str) -> Command {
    let bin = binary("tael");
    let bin = bin.parent().expect("folder").display();
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new("/bin/sh");
    command.args(["-euc", &here(world, text)]);
    command.env_clear().current_dir(world.dir.path());
    for (name, value) in bare_command(&world.dir, "tael").get_envs() {
        command.env(name, value.unwrap_or_default());
    }
    command
        .env_remove("STATE_DIRECTORY")
        .env_remove("XDG_STATE_HOME")
        .env("PATH", format!("{bin}:{path}"));
    if !text.contains(BROKER) {
        command.envs(world.broker.environment());
    }
    command
}

/// What follows `start` up to a blank, without quotes.
pub fn word_after(text: &str, start: &str) -> String {
    let rest = text.split_once(start).expect(start).1.trim_start();
    let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
    rest[..end].trim_matches('"').to_owned()
}
