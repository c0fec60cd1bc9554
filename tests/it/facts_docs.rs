//! The commands of docs/facts.md, its folder shared with Ansible, and its file.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::common::{World, binary, ran};

const PAGE: &str = "docs/facts.md";

/// Returns the blocks of the page in this `language` and of this kind.
fn blocks(language: &str, kind: &str) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(PAGE);
    let page = fs::read_to_string(path).expect(PAGE);
    let start = format!("```{language} {kind}\n");
    let all: Vec<String> = page
        .split(&start)
        .skip(1)
        .map(|rest| rest.split("```").next().expect("end").to_owned())
        .collect();
    assert!(!all.is_empty(), "{PAGE} has no {kind}");
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
