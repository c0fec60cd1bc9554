//! The commands of docs/facts.md, its folder shared with Ansible, and its file.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::common::{World, binary, ran, refuses, succeeds};
use crate::facts_views::node;

const PAGE: &str = "docs/facts.md";

/// Returns the blocks of the page in this `language` and of this kind.
fn blocks(language: &str, kind: &str) -> Vec<String> {
    blocks_of(PAGE, language, kind)
}

fn blocks_of(name: &str, language: &str, kind: &str) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    let page = fs::read_to_string(path).expect(name);
    let start = format!("```{language} {kind}\n");
    let all: Vec<String> = page
        .split(&start)
        .skip(1)
        .map(|rest| rest.split("```").next().expect("end").to_owned())
        .collect();
    assert!(!all.is_empty(), "{name} has no {kind}");
    all
}

/// Runs `text` in a shell that finds our binaries.
fn sh(world: &World, text: &str) -> (i32, String, String) {
    let folder = world.path("facts.d");
    let text = text.replace("/etc/tael/facts.d", folder.to_str().expect("path"));
    let mut command = world.tael([""; 0]);
    let bin = binary("tael");
    let path = format!("{}:/usr/bin:/bin", bin.parent().expect("folder").display());
    let environment: Vec<_> = command
        .get_envs()
        .map(|(k, v)| (k.to_owned(), v.map(ToOwned::to_owned)))
        .collect();
    command = std::process::Command::new("sh");
    command
        .env_clear()
        .args(["-e", "-c", &text])
        .current_dir(world.dir.path());
    for (key, value) in environment {
        if let Some(value) = value {
            command.env(key, value);
        }
    }
    command
        .env("PATH", path)
        .env("TAEL_LOG", "warn")
        .env("TAEL_LOG_TARGET", "stderr");
    command.env("TAEL_FACTS_DIR", folder);
    ran(&mut command)
}

#[test]
fn the_page_tells_facts_and_shows_them() {
    let world = World::new();
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/facts");
    let copied = std::process::Command::new("cp")
        .arg("-r")
        .arg(examples.join("facts.d"))
        .arg(world.path("facts.d"))
        .status();
    assert!(copied.expect("cp").success());
    let chmod = std::process::Command::new("chmod")
        .args(["-R", "go-w"])
        .arg(world.path("facts.d"))
        .status();
    assert!(chmod.expect("chmod").success());
    for block in blocks("sh", "facts") {
        let (code, stdout, stderr) = sh(&world, &block);
        assert_eq!((code, &*stderr), (0, ""), "{block}{stdout}");
    }
    for block in blocks("sh", "told") {
        let (code, stdout, stderr) = sh(&world, &block);
        assert_eq!((code, &*stderr), (0, ""), "{block}");
        assert!(stdout.contains("site.rack"), "{block}{stdout}");
    }
}

#[test]
fn the_table_of_the_page_is_read() {
    let world = World::new();
    for block in blocks("toml", "facts") {
        let file = world.file("tael.toml", &block);
        let mut command = world.tael(["facts", "publish", "--dry-run", "--config", &file]);
        // A folder without own facts.
        let none = world.path("none");
        fs::create_dir_all(&none).expect("folder");
        command.env("TAEL_LOG", "warn").arg("--dir").arg(none);
        let (code, stdout, stderr) = ran(&mut command);
        assert_eq!((code, &*stderr), (0, ""), "{stdout}");
        let first: Value =
            serde_json::from_str(stdout.lines().next().expect("a line")).expect("JSON");
        if block.contains("[facts]") {
            assert_eq!(first["node"], "seq1");
        }
    }
}

#[test]
fn the_view_of_the_page_sees_what_its_table_shares() {
    let world = World::new();
    let file = world.file("tael.toml", blocks("toml", "facts").concat());
    let folder = world.path("own");
    for kind in ["dynamic", "state"] {
        fs::create_dir_all(folder.join(kind)).expect("folder");
    }
    let own = [
        ("dynamic/disk", r#"{"root":{"free_percent":5}}"#),
        ("state/reboot_required", r#"{"ok":true}"#),
    ];
    for (name, text) in own {
        fs::write(folder.join(name), text).expect("fact");
    }
    let facts = |arguments: &[&str]| {
        let mut command = world.tael(["facts"]);
        command
            .args(arguments)
            .args(["--config", &file])
            .env("TAEL_LOG", "warn");
        command
    };
    succeeds(facts(&["publish", "--once"]).arg("--dir").arg(&folder));
    let full: Value =
        serde_json::from_str(&succeeds(&mut facts(&["view", "full", "--json"]))).expect("JSON");
    assert_eq!(full, json!([{"name": "seq1", "free": 5}]));
    // An own file in the place of a single value.
    let select = "SELECT facts->'$.reboot_required' FROM node";
    let told = succeeds(&mut facts(&["view", select, "--raw"]));
    assert_eq!(told.trim(), r#"{"ok":true}"#);
}

/// Returns `tael client` with `file`, whose commands find `tael`.
fn client(world: &World, file: &str) -> Command {
    let bin = binary("tael");
    let bin = bin.parent().expect("folder").display();
    let path = format!("{bin}:{}", std::env::var("PATH").expect("PATH"));
    let mut command = world.tael(["client", "--config", file]);
    command.env("PATH", path);
    command
}

#[test]
fn a_view_answers_those_who_ask() {
    let world = World::new();
    node(&world, "seq1", "h1", 5);
    node(&world, "seq2", "h2", 50);
    let path = world.path("desk.toml");
    let path = path.to_str().expect("path");
    let block = blocks("toml", "view").concat();
    assert!(block.contains("--config /etc/tael/desk.toml"), "{block}");
    // The test has a broker of its own.
    let broker = block.lines().find(|line| line.starts_with("broker = "));
    let file = block.replace(broker.expect("a broker"), "");
    let file = file.replace("/etc/tael/desk.toml", path);
    let wrong = "[[trigger]]\nname = 'wrong'\ntopic = 'lab/ask/wrong'\nwhen = []\nreply = true\n";
    let command =
        format!("command = 'tael facts view --config {path} \"SELECT colour FROM node\"'\n");
    let file = world.file("desk.toml", format!("{file}{wrong}{command}"));
    let desk = world.online("desk", client(&world, &file));
    let (code, stdout, stderr) = sh(&world, &blocks("sh", "view").concat());
    let rows: Value = serde_json::from_str(&stdout).unwrap_or_default();
    let want = json!([{"name": "disk.root.free_percent", "value": 5}]);
    assert_eq!((code, &rows), (0, &want), "{stdout}{stderr}");
    let ask = |topic: &str, attributes: &[&str]| {
        let mut command = world.command("tael-message");
        command
            .args(["-t", topic, "--reply", "--timeout", "20s"])
            .args(attributes);
        command
    };
    // Values are bound, whatever they look like to a shell or to SQL.
    for hostile in [
        "x' OR 1 --",
        "$(touch pwned)",
        "\"; touch pwned; \"",
        "--publish",
        "",
    ] {
        let set = format!("node={hostile}");
        assert_eq!(
            succeeds(&mut ask("lab/ask/space", &[&set])),
            "[]\n",
            "{hostile}"
        );
    }
    assert!(!world.path("pwned").exists());
    // A mistake reaches the one who asks: code and line.
    refuses(&mut ask("lab/ask/space", &["other=x"]), 65, "NODE");
    refuses(&mut ask("lab/ask/wrong", &[]), 64, "no such column: colour");
    desk.stop();
}

#[test]
fn the_page_about_requests_names_a_view() {
    let world = World::new();
    let answer = blocks_of("docs/requests.md", "toml", "answer").concat();
    let own = blocks("toml", "view").concat();
    assert!(own.contains(answer.trim()), "{answer}");
    let file = world.file(
        "x.toml",
        format!("root = 'lab'\n[client]\nwho = 'x'\n{answer}"),
    );
    succeeds(client(&world, &file).arg("--check"));
}
