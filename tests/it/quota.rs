//! The quota of the state folder: what is refused, and what is forgotten to make room.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::common::nodes::{client_command, connect_to};
use crate::common::{Process, World, json_of, ran, ran_with, refuses, succeeds, wait_until};

/// A small quota, and work that fills it.
const TYPES: &str = r#"
[client]
max-state = "16M"

[[work]]
type = "fill"
command = "sh -c 'head -c \"$1\" /dev/zero; echo run >>$OUT/runs' fill"
params = true
max-output = 0

[[work]]
type = "take"
command = "sh -c 'wc -c >>$OUT/runs'"

[[trigger]]
topic = "lab/seq/status"
command = "head -c ${ATTR_SIZE:-0} /dev/zero; echo event >>$OUT/runs"
"#;

/// Starts the client `node` with `text` as its file. Submitted work is fresh for `fresh` milliseconds.
fn node(world: &World, text: &str, fresh: u64) -> Process {
    let mut command = client_command(world, "node", text);
    command.env("TAEL_TEST_FRESH", fresh.to_string());
    world.online("node", command)
}

fn submit(world: &World, words: &[&str]) -> Command {
    let mut command = world.tael(["work", "submit"]);
    command.args(words);
    command
}

/// Submits over the broker.
fn direct(world: &World) -> Command {
    let mut command = submit(world, &["--node", "node", "--root", "lab", "--direct"]);
    command.env("TAEL_LOG", "warn");
    command
}

fn list(world: &World) -> Vec<Value> {
    let list = json_of(&mut world.tael(["work", "list", "--json"]));
    list.as_array().expect("list").clone()
}

/// Ids of all units, the oldest first.
fn units(world: &World) -> Vec<String> {
    let id = |unit: &Value| unit["unit"].as_str().expect("unit").to_owned();
    list(world).iter().map(id).collect()
}

/// Runs work whose output has this many bytes, and returns its unit when that has ended.
#[track_caller]
fn fill(world: &World, bytes: &str) -> String {
    let out = succeeds(&mut submit(world, &["fill", bytes]));
    let unit = out.trim().to_owned();
    wait_until("it has ended", || {
        let units = list(world);
        let own = units.iter().find(|own| own["unit"] == *unit);
        own.is_none_or(|own| !own["ended"].is_null())
    });
    unit
}

/// Returns the size on disk of everything in a folder.
fn size(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| {
            let own = entry.metadata().map_or(0, |meta| meta.blocks() * 512);
            let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
            own + if is_folder { size(&entry.path()) } else { 0 }
        })
        .sum()
}

fn payloads(world: &World) -> usize {
    fs::read_dir(world.home("node").join("payloads")).map_or(0, Iterator::count)
}

#[test]
fn a_full_state_refuses_work_and_events_still_run() {
    let world = World::new();
    let node = node(&world, TYPES, 600_000);
    let full = fill(&world, "17000000");
    refuses(
        &mut submit(&world, &["take"]),
        75,
        "of 16777216 bytes (--max-state)",
    );
    let mut remote = direct(&world);
    refuses(
        remote.args(["take", "-l", "a"]),
        75,
        "of 16777216 bytes (--max-state)",
    );
    // Work that another node shall run is kept here too.
    let refused = connect_to(&world, "node").ask("work submit other take");
    assert!(
        refused.starts_with("ERROR: try again: the state of the client has"),
        "{refused}"
    );
    world.message("lab/seq/status", &[("status", "finished")]);
    wait_until("the event runs", || world.lines("runs").len() == 2);
    wait_until("it is told that there is nothing to forget", || {
        node.log_text().contains("there is no run to forget")
    });
    assert!(
        units(&world).contains(&full),
        "its submitter may be about to fetch it"
    );
    succeeds(&mut world.tael(["work", "release", &full]));
    wait_until("there is room again", || {
        ran(&mut submit(&world, &["take", "-l", "sentinel"])).0 == 0
    });
    wait_until("it runs", || world.lines("runs").len() == 3);
    assert_eq!(world.lines("runs"), ["run", "event", "9"]);
    node.stop();
}

#[test]
fn a_payload_that_does_not_fit_is_refused_while_it_is_read() {
    let world = World::new();
    let node = node(&world, TYPES, 600_000);
    let large = vec![b'x'; 17 << 20];
    let (code, _, stderr) = ran_with(&mut submit(&world, &["take", "-p", "-"]), &large);
    assert_eq!(code, 65, "{stderr}");
    assert!(stderr.contains("larger than 12582912 bytes"), "{stderr}");
    fill(&world, "8800000");
    let medium = &large[..8 << 20];
    let (code, _, stderr) = ran_with(&mut submit(&world, &["take", "-p", "-"]), medium);
    assert_eq!(code, 75, "{stderr}");
    assert!(stderr.contains("(--max-state)"), "{stderr}");
    // Another node knows its length: no byte of it is sent.
    let path = world.path("payload");
    fs::write(&path, medium).expect("payload");
    let mut remote = direct(&world);
    remote.args(["take", "-p"]).arg(&path);
    refuses(&mut remote, 75, "(--max-state)");
    fs::write(&path, &large).expect("payload");
    refuses(&mut remote, 65, "and the node takes 12582912");
    assert_eq!(payloads(&world), 0, "nothing of them stays");
    // What fits is taken, on both ways.
    let small = &large[..1 << 20];
    fs::write(&path, small).expect("payload");
    succeeds(&mut remote);
    let (code, _, stderr) = ran_with(&mut submit(&world, &["take", "-p", "-"]), small);
    assert_eq!(code, 0, "{stderr}");
    wait_until("both run", || world.lines("runs").len() == 3);
    assert_eq!(world.lines("runs"), ["run", "1048576", "1048576"]);
    assert_eq!(payloads(&world), 2);
    node.stop();
}

#[test]
fn the_same_work_is_answered_again_in_a_full_state() {
    let world = World::new();
    let node = node(&world, TYPES, 600_000);
    let words = ["take", "-l", "a", "--id", "01JBV7Y3ZK8Q5W2N4T6R9M1XCD"];
    assert_eq!(ran(&mut submit(&world, &words)).0, 0);
    fill(&world, "17000000");
    refuses(&mut submit(&world, &["take"]), 75, "--max-state");
    succeeds(&mut submit(&world, &words));
    let mut remote = direct(&world);
    succeeds(remote.args(words));
    assert_eq!(world.lines("runs").len(), 2);
    node.stop();
}

#[test]
fn what_was_fetched_is_forgotten_first() {
    let world = World::new();
    let node = node(&world, TYPES, 0);
    let first = fill(&world, "3600000");
    let read = fill(&world, "3600000");
    let (code, out, _) = ran(&mut world.tael(["work", "results", &read]));
    assert!(code == 0 && out.len() == 3_600_000);
    assert_eq!(units(&world), [&*first, &*read]);
    // A reader of files is not known to the client; one of the control socket is.
    let mut followed = submit(&world, &["fill", "3600000", "-f"]);
    let (code, out, stderr) = ran(&mut followed);
    assert_eq!((code, out.len()), (0, 3_600_000), "{stderr}");
    let known = units(&world);
    let third = known[2].clone();
    let fourth = fill(&world, "3600000");
    wait_until("one is forgotten", || units(&world).len() == 3);
    assert_eq!(units(&world), [&*first, &*read, &*fourth], "not {third}");
    let fifth = fill(&world, "3600000");
    wait_until("another one is forgotten", || units(&world).len() == 3);
    assert_eq!(
        units(&world),
        [&*read, &*fourth, &*fifth],
        "the first to end"
    );
    // Another node that has all of it.
    let attach = ["work", "results", "--node", "node", "--root", "lab", "-f"];
    let (code, out, stderr) = ran(world.tael(attach).arg(&fourth));
    assert_eq!((code, out.len()), (0, 3_600_000), "{stderr}");
    let sixth = fill(&world, "3600000");
    wait_until("it is forgotten", || units(&world).len() == 3);
    assert_eq!(units(&world), [&*read, &*fifth, &*sixth]);
    let home = world.home("node");
    wait_until("their folders are gone", || size(&home) < 16 << 20);
    assert_eq!(
        fs::read_dir(home.join("units")).expect("units").count(),
        3,
        "each has output"
    );
    node.stop();
}

#[test]
fn runs_of_triggers_go_in_the_order_of_their_ends_and_those_without_output_stay() {
    let world = World::new();
    let node = node(&world, TYPES, 0);
    for (n, size) in ["0", "5000000", "5000000", "5000000", "5000000"]
        .iter()
        .enumerate()
    {
        world.message("lab/seq/status", &[("status", "finished"), ("size", size)]);
        wait_until("it has run", || world.lines("runs").len() == n + 1);
    }
    let home = world.home("node");
    wait_until("there is room", || size(&home) < 15_000_000);
    wait_until("two are forgotten", || units(&world).len() == 3);
    let bytes: Vec<u64> = units(&world)
        .iter()
        .map(|unit| size(&home.join("units").join(unit)))
        .collect();
    assert_eq!(bytes[0], 0, "the first one has no output: {bytes:?}");
    assert!(bytes[1] > 4_900_000 && bytes[2] > 4_900_000, "{bytes:?}");
    node.stop();
}

#[test]
fn a_reload_changes_the_quota_and_the_size_is_in_the_metrics() {
    let world = World::new();
    let metrics = world.path("node.prom");
    let types = TYPES.replace(
        "max-state = \"16M\"\n",
        &format!("metrics = \"{}\"\n", metrics.display()),
    );
    let limited = types.replace("[client]\n", "[client]\nmax-state = 20971520\n");
    let node = node(&world, &types, 600_000);
    fill(&world, "30000000");
    let (code, _, stderr) = ran(&mut submit(&world, &["take"]));
    assert_eq!(code, 0, "no limit: {stderr}");
    fs::write(world.path("node.toml"), limited).expect("config");
    node.signal(Signal::SIGHUP);
    wait_until("the limit holds", || {
        ran(&mut submit(&world, &["take"])).0 == 75
    });
    wait_until("the metrics tell", || {
        let text = fs::read_to_string(&metrics).unwrap_or_default();
        let figure = |name: &str| -> Option<u64> {
            let line = text.lines().find(|line| line.starts_with(name))?;
            line.rsplit(' ').next()?.parse().ok()
        };
        figure("tael_state_limit_bytes") == Some(20_971_520)
            && figure("tael_state_bytes").is_some_and(|bytes| bytes > 30_000_000)
            && figure("tael_state_refusals_total").is_some_and(|count| count > 0)
    });
    let (_, out, _) = world.control(&["node", "status", "--json"]);
    let status: Value = serde_json::from_str(&out).expect("json");
    assert_eq!(status["disk"]["limit"], 20_971_520, "{out}");
    fs::write(world.path("node.toml"), types).expect("config");
    node.signal(Signal::SIGHUP);
    wait_until("the limit is gone", || {
        ran(&mut submit(&world, &["take"])).0 == 0
    });
    node.stop();
}

#[test]
fn a_quota_has_a_size() {
    let world = World::new();
    for (size, cause) in [
        ("1M", "1048576 bytes are too few: write 16M or more"),
        ("much", "'much' is not a size: write 50G, 512M or a number"),
    ] {
        let mut client = world.command("tael-client");
        client.args([
            "--who",
            "p",
            "-t",
            "lab/a",
            "-c",
            "true",
            "--max-state",
            size,
        ]);
        refuses(&mut client, 64, cause);
    }
}
