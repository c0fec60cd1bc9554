//! The pages and their blocks.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::{World, bare_command, binary};

/// How blocks are tested. A kind without a block fails.
pub const KINDS: &[&str] = &[
    // Commands of a newcomer: those that build nothing run here.
    "sh first",
    // The installed files exist.
    "sh install",
    // Commands that stay until they are stopped, in the order of the pages.
    "sh terminal",
    // Commands that end with 0.
    "sh run",
    // A script, the client that runs it, commands that end with 0, and commands with what a terminal
    // shows, in the order of docs/guide.md.
    "sh script",
    "sh client",
    "sh day",
    "text day",
    // Commands with their output, except numbers and names of hosts.
    "sh check",
    // Functions of a node, its command, a playbook for it, and a node in a file: the playbook runs.
    "sh functions",
    "sh nodes",
    "text playbook",
    "toml node",
    // A command line of a client: it comes online.
    "crontab",
    // `.ci/package` and `.ci/systemd` run these. Here, their files exist.
    "sh package",
    "sh systemd",
    "diff swap",
    "toml config",
    // Configuration and access rules of a broker: mosquitto starts with them, and its users may do what
    // the page says, if the suite runs against it.
    "conf mosquitto",
    "acl mosquitto",
    // The same with TLS, and a message over it.
    "conf tls",
    "sh tls",
    // A client of this name runs before, and has ended with 0 afterwards.
    "sh stop",
    // Session and retained messages of a client are gone afterwards.
    "sh leave",
    // Output of `tael demo`, except times, ids and names.
    "text demo",
    // All messages of one run, except numbers and names.
    "text wire",
    // A file of metrics, except times.
    "text metrics",
];

/// Kinds with their own test: kind, page, test.
pub const ELSEWHERE: &[(&str, &str, &str)] = &[
    ("sh running", "docs/backup.md", "tests/it/ledger.rs"),
    ("sh stopped", "docs/backup.md", "tests/it/ledger.rs"),
    ("sh restore", "docs/backup.md", "tests/it/ledger.rs"),
    ("sh certificates", "docs/tls.md", "tests/it/tls.rs"),
    ("text events", "docs/guide.md", "tests/it/events.rs"),
    ("toml work", "docs/work.md", "tests/it/work_types.rs"),
    ("sh work", "docs/work.md", "tests/it/work_types.rs"),
    ("toml receptor", "docs/work.md", "tests/it/work_types.rs"),
    ("toml queue", "docs/queues.md", "tests/it/queue_tools.rs"),
    ("sh queue", "docs/queues.md", "tests/it/queue_tools.rs"),
    ("sh dead", "docs/queues.md", "tests/it/queue_tools.rs"),
    ("sh fence", "docs/queues.md", "tests/it/queue_tools.rs"),
    ("sh policy", "docs/queues.md", "tests/it/queue_tools.rs"),
    ("sh facts", "docs/facts.md", "tests/it/facts_docs.rs"),
    ("sh told", "docs/facts.md", "tests/it/facts_docs.rs"),
    ("toml facts", "docs/facts.md", "tests/it/facts_docs.rs"),
    ("toml view", "docs/facts.md", "tests/it/facts_docs.rs"),
    ("sh view", "docs/facts.md", "tests/it/facts_docs.rs"),
    ("toml answer", "docs/requests.md", "tests/it/facts_docs.rs"),
    ("sh ask", "docs/requests.md", "tests/it/asking.rs"),
    (
        "sh answer",
        "docs/requests.md",
        "tests/it/asking_interop.rs",
    ),
    ("sh batch", "docs/requests.md", "tests/it/asking.rs"),
    ("sh promise", "docs/requests.md", "tests/it/asking.rs"),
    ("sh desk", "docs/work.md", "tests/it/kept.rs"),
    ("sh kept", "docs/work.md", "tests/it/kept.rs"),
    ("sh pair", "docs/requests.md", "tests/it/pair.rs"),
    ("toml hook", "docs/gateway.md", "tests/it/gateway_routes.rs"),
    ("sh hook", "docs/gateway.md", "tests/it/gateway_routes.rs"),
];

pub const BROKER: &str = "mqtt.lab.example";
pub const INSTALLED: &str = "/usr/local/bin/";

/// Reads a Markdown file of the package.
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

/// Returns the title page, then the others by name.
pub fn pages() -> Vec<Page> {
    let docs = fs::read_dir(root().join("docs")).expect("docs").flatten();
    let mut names: Vec<String> = docs
        .map(|entry| format!("docs/{}", entry.file_name().to_str().expect("UTF-8")))
        .collect();
    names.sort();
    names.insert(0, "README.md".into());
    names.iter().map(|name| page(name)).collect()
}

/// Returns all blocks, in order.
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

/// Returns the only block of a kind.
pub fn one(kind: &str) -> Block {
    let mut blocks = of_kind(kind);
    assert_eq!(blocks.len(), 1, "{kind}");
    blocks.remove(0)
}

impl Block {
    /// Returns its place, for messages.
    pub fn place(&self) -> String {
        format!("{}:{}", self.page, self.line)
    }
}

/// Returns the text of a block for this machine.
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

/// Returns `sh -c TEXT` in an empty home, with our binaries in PATH. It is pointed at the broker
/// unless the text names one.
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

/// Returns the text from `start` to a blank, without quotes.
pub fn word_after(text: &str, start: &str) -> String {
    let rest = text.split_once(start).expect(start).1.trim_start();
    let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
    rest[..end].trim_matches('"').to_owned()
}
