//! The day of docs/guide.md: its blocks in their order, on one host.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde_json::Value;

use crate::common::pty::Terminal;
use crate::common::{Process, World, ran, wait_until};
use crate::page::{Block, blocks, here, sh};

/// Columns of the terminal: nothing on the page is wider.
const COLUMNS: u16 = 120;

/// Returns what stays the same from day to day: no times, spans, ids and names of hosts. Columns are as
/// wide as their widest cell.
fn alike(text: &str, host: &str) -> Vec<String> {
    let word = |word: &str| {
        let (name, value) = match word.split_once('=') {
            Some((name, value)) => (format!("{name}="), value),
            None => (String::new(), word),
        };
        let is_id = value.len() == 6
            && value
                .bytes()
                .all(|b| b.is_ascii_digit() || b.is_ascii_uppercase());
        let is_code = value.len() <= 3 && value.bytes().all(|b| b.is_ascii_digit());
        let begins = value.starts_with(|c: char| c.is_ascii_digit());
        match value {
            _ if is_id || (begins && !is_code) => format!("{name}0"),
            value if value.trim_end_matches(',') == host => value.replace(host, "node7"),
            _ => word.to_owned(),
        }
    };
    let line = |line: &str| {
        line.split_whitespace()
            .map(word)
            .collect::<Vec<_>>()
            .join(" ")
    };
    text.lines()
        .map(line)
        .filter(|line| !line.is_empty())
        .collect()
}

/// Waits until the client has taken `sent` messages, and nothing runs or waits.
fn settled(world: &World, sent: u64) {
    wait_until("the client has settled", || {
        let report = world.report("align");
        let number = |pointer: &str| {
            report
                .pointer(pointer)
                .and_then(Value::as_u64)
                .expect(pointer)
        };
        let taken: u64 = ["accepted", "refused", "ignored"]
            .iter()
            .map(|result| number(&format!("/events/{result}")))
            .sum();
        taken >= sent && number("/units/running") + number("/units/pending") == 0
    });
}

/// Runs the commands of a block on a terminal, and compares what it shows.
fn shows(world: &World, block: &Block, sent: u64) {
    let host = fs::read_to_string("/proc/sys/kernel/hostname").expect("hostname");
    for part in format!("\n{}", block.text).split("\n$ ").skip(1) {
        let (command, shown) = part.split_once('\n').expect("what it prints");
        let wanted = alike(shown, host.trim());
        let printed = || {
            let mut shell = sh(world, command);
            shell.env("NO_COLOR", "1");
            let (_, screen) = Terminal::start(shell, COLUMNS).end();
            alike(&screen, host.trim())
        };
        let mut found = printed();
        // The last end of a pipeline is retained a moment after it.
        if command.starts_with("tael status") || command.starts_with("tael check") {
            wait_until(command, || {
                found = printed();
                found == wanted
            });
        }
        assert_eq!(found, wanted, "{}: {command}", block.place());
        settled(world, sent);
    }
}

#[test]
fn the_day_goes_as_the_guide_tells() {
    let world = World::new();
    let mut client: Option<Process> = None;
    let (mut sent, mut count) = (0, 0);
    for block in blocks()
        .iter()
        .filter(|block| block.page == "docs/guide.md")
    {
        match block.kind.as_str() {
            "sh script" => {
                let file = world.path("align.sh");
                fs::write(&file, &block.text).expect("align.sh");
                fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).expect("chmod");
            }
            "sh client" => {
                let command = sh(&world, &format!("exec {}", block.text));
                client = Some(world.online("align", command));
            }
            "toml config" => {
                fs::write(world.path("tael.toml"), here(&world, &block.text)).expect("tael.toml");
            }
            "sh day" => {
                let (code, out, error) = ran(&mut sh(&world, &block.text));
                assert_eq!(code, 0, "{}: {out}{error}", block.place());
                sent += block.text.matches("tael message ").count() as u64;
                settled(&world, sent);
            }
            "text day" => shows(&world, block, sent),
            "text events" => continue,
            other => panic!("{}: {other}", block.place()),
        }
        count += 1;
    }
    assert!(count > 10, "{count} blocks");
    client.expect("a client").stop();
}
