//! `tael work` and units that other nodes run and a client of this host keeps.

use std::fs;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::common::nodes::{
    self, accepted, connect, fixture_key, node_with, private_key, submitter,
};
use crate::common::{Process, World, ended, json_of, ran, ran_with, refuses, succeeds, wait_until};

/// One more work type of the node.
const WORDS: &str = r#"
[[work]]
type = "words"
command = "sh -c 'printf %s. \"$@\"; printf %s $WORK_KEY' words"
params = true
"#;

const ID: &str = "01JBV7Y3ZK8Q5W2N4T6R9M1XCD";

fn types() -> String {
    format!("{}{WORDS}", nodes::TYPES)
}

fn node(world: &World) -> Process {
    node_with(world, &types())
}

fn submit(world: &World, words: &[&str]) -> Command {
    let mut command = world.tael(["work", "submit", "--node", "node7"]);
    command.args(words);
    command
}

/// Submits work that is taken, and returns its unit.
#[track_caller]
fn unit(world: &World, words: &[&str]) -> String {
    accepted(&mut submit(world, words))
}

/// Returns `tael work VERB` for the units that the client keeps.
fn work(world: &World, words: &[&str]) -> Command {
    world.tael(["work", "--who", "desk"].iter().chain(words))
}

#[track_caller]
fn report(world: &World, unit: &str) -> Value {
    json_of(&mut work(world, &["status", "--json", unit]))
}

#[track_caller]
fn wait(world: &World, unit: &str, state: &str) {
    wait_until(&format!("{unit} is {state}"), || {
        report(world, unit)["state"] == state
    });
}

#[test]
fn a_client_of_this_host_gives_work_to_a_node_and_keeps_the_unit() {
    let world = World::new();
    let (node, desk) = (node(&world), submitter(&world));
    let (code, out, stderr) = ran(&mut submit(&world, &["-f", "both"]));
    assert_eq!((code, &*out, &*stderr), (3, "out\n", "err\n"));
    let (code, out, _) = ran(&mut submit(&world, &["-f", "cat", "-l", "hello"]));
    assert_eq!((code, &*out), (0, "hello\n"));
    let (code, out, _) = ran_with(&mut submit(&world, &["-f", "cat", "-p", "-"]), b"stdin");
    assert_eq!((code, &*out), (0, "stdin"));
    let words = ["-f", "--param", "key=v", "words", "--", "a b", "-x"];
    let (code, out, _) = ran(&mut submit(&world, &words));
    assert_eq!((code, &*out), (0, "a b.-x.v"));
    // The same id is the same unit, and other work cannot have it.
    let runs = world.lines("runs").len();
    let same = ["--id", ID, "--ttl", "1h", "cat", "-l", "once"];
    for _ in 0..2 {
        assert_eq!(unit(&world, &same), ID);
    }
    wait(&world, ID, "succeeded");
    let (code, out, _) = ran(&mut work(&world, &["results", ID]));
    assert_eq!((code, &*out), (0, "once\n"));
    let other = ["--id", ID, "cat", "-l", "other"];
    refuses(&mut submit(&world, &other), 65, "belongs to other work");
    let (code, out, _) = ran(&mut submit(&world, &["--json", "cat", "-l", "last"]));
    let taken: Value = serde_json::from_str(&out).expect("json");
    assert_eq!((code, &taken["node"]), (0, &"node7".into()));
    assert_eq!(
        (&taken["accepted"], &taken["pipeline"]),
        (&true.into(), &"desk".into())
    );
    wait(&world, taken["unit"].as_str().expect("unit"), "succeeded");
    assert_eq!(world.lines("runs").len(), runs + 2);
    // The list has the type, the submitter and the node.
    let (_, out, _) = ran(&mut work(&world, &["list", "--json"]));
    let list: Value = serde_json::from_str(&out).expect("json");
    let last = list.as_array().and_then(|list| list.last()).expect("last");
    assert_eq!(
        (&last["work_type"], &last["node"]),
        (&"cat".into(), &"node7".into())
    );
    let (_, out, _) = ran(&mut work(&world, &["list"]));
    assert!(
        out.contains("node=node7") && out.contains("work_type=both"),
        "{out}"
    );
    desk.stop();
    node.stop();
}

#[test]
fn what_a_node_or_a_client_refuses_is_said() {
    let world = World::new();
    let cat = || submit(&world, &["cat"]);
    refuses(&mut cat(), 69, "--submit-only', or add --direct");
    let (node, desk) = (node(&world), submitter(&world));
    // Also when it is submitted again.
    for _ in 0..2 {
        let none = ["--id", ID, "none"];
        refuses(&mut submit(&world, &none), 65, "unknown work type none");
    }
    refuses(
        &mut submit(&world, &["cat", "word"]),
        65,
        "extra params provided",
    );
    refuses(
        &mut submit(&world, &["--sign", "cat"]),
        65,
        "no key to sign with",
    );
    let key = ["--signing-key", "k.pem", "cat"];
    refuses(
        &mut submit(&world, &key),
        64,
        "--signing-key goes with --direct",
    );
    refuses(
        &mut submit(&world, &["--verify", "cat"]),
        64,
        "--verify goes with --direct",
    );
    refuses(
        &mut submit(&world, &["--timeout", "5s", "cat"]),
        64,
        "--timeout goes with --direct",
    );
    refuses(
        &mut world.tael(["work", "submit", "--ttl", "1h", "cat"]),
        64,
        "--node",
    );
    // Of several clients, one for submissions is taken, and otherwise a person says which.
    desk.stop();
    let other = world.client("other", &["-t", "lab/x", "-c", "true"]);
    refuses(
        &mut cat(),
        64,
        "say with --who which keeps the unit: node7, other",
    );
    let mut named = submit(&world, &["-f", "--who", "other", "cat", "-l", "x"]);
    assert_eq!(ran(&mut named).1, "x\n");
    other.stop();
    node.stop();
}

#[test]
fn all_verbs_take_units_of_other_nodes() {
    let world = World::new();
    let (node, desk) = (node(&world), submitter(&world));
    let running = unit(&world, &["wait"]);
    wait(&world, &running, "running");
    // Its node has accepted it, as another attempt says.
    let again = ["--json", "--id", &running, "wait"];
    let (_, out, _) = ran(&mut submit(&world, &again));
    let again: Value = serde_json::from_str(&out).expect("json");
    assert_eq!(again["accepted"], true);
    let (code, _, stderr) = ran(&mut work(&world, &["results", &running]));
    assert_eq!(code, 125);
    assert!(stderr.contains("it is running"), "{stderr}");
    let mut follows = work(&world, &["results", "-f", &running]);
    let follows = follows.stdout(Stdio::piped()).spawn().expect("follow");
    succeeds(&mut work(&world, &["cancel", &running]));
    assert_eq!(report(&world, &running)["state"], "canceled");
    assert_eq!(ended(follows).1, "begun\n");
    refuses(&mut work(&world, &["cancel", &running]), 65, "it has ended");
    let folder = |unit: &str| world.home("node7").join("units").join(unit);
    assert!(folder(&running).exists());
    succeeds(&mut work(&world, &["release", &running]));
    wait_until("the node has released it", || !folder(&running).exists());
    // A release ends what runs.
    for verb in ["release", "force-release"] {
        let running = unit(&world, &["wait"]);
        wait(&world, &running, "running");
        succeeds(&mut work(&world, &[verb, &running]));
        refuses(&mut work(&world, &["status", &running]), 65, "find unit");
        wait_until("the node has released it", || !folder(&running).exists());
    }
    // Followed, and released at the end on both sides.
    let (code, out, _) = ran(&mut submit(
        &world,
        &["-f", "--rm", "--id", ID, "cat", "-l", "x"],
    ));
    assert_eq!((code, &*out), (0, "x\n"));
    refuses(&mut work(&world, &["status", ID]), 65, "find unit");
    wait_until("the node has released it", || !folder(ID).exists());
    desk.stop();
    node.stop();
}

#[test]
fn what_is_asked_while_no_client_runs_reaches_the_node_later() {
    let world = World::new();
    let (node, process) = (node(&world), submitter(&world));
    let running = unit(&world, &["wait"]);
    let [ended, forced] = ["both", "wait"].map(|kind| unit(&world, &[kind]));
    wait(&world, &running, "running");
    wait(&world, &forced, "running");
    wait(&world, &ended, "failed");
    process.kill();
    let (code, out, _) = ran(&mut work(&world, &["results", &ended]));
    assert_eq!((code, &*out), (3, "out\n"));
    let later = "node node7 is told when the client desk runs";
    refuses(&mut work(&world, &["cancel", &running]), 75, later);
    refuses(&mut work(&world, &["release", &running]), 75, later);
    succeeds(&mut work(&world, &["release", &ended]));
    succeeds(&mut work(&world, &["force-release", &forced]));
    let folder = |unit: &str| world.home("node7").join("units").join(unit);
    assert!(folder(&ended).exists() && folder(&forced).exists());
    let process = submitter(&world);
    wait(&world, &running, "canceled");
    wait_until("the node has released both", || {
        !folder(&ended).exists() && !folder(&forced).exists()
    });
    process.stop();
    node.stop();
}

#[test]
fn a_retry_goes_to_the_node_again() {
    let world = World::new();
    let (node, process) = (node(&world), submitter(&world));
    let first = unit(&world, &["--ttl", "1h", "cat", "-l", "again"]);
    wait(&world, &first, "succeeded");
    let retry = |unit: &str| {
        let out = succeeds(&mut work(&world, &["retry", "--again", "--json", unit]));
        let retried: Value = serde_json::from_str(&out).expect("json");
        retried["unit"].as_str().expect("unit").to_owned()
    };
    let second = retry(&first);
    wait(&world, &second, "succeeded");
    // Also if no client runs, and when the first one is gone.
    process.kill();
    let third = retry(&second);
    succeeds(&mut work(&world, &["release", &first]));
    assert_eq!(report(&world, &third)["state"], "pending");
    let process = submitter(&world);
    wait(&world, &third, "succeeded");
    for unit in [&second, &third] {
        let (code, out, _) = ran(&mut work(&world, &["results", unit]));
        assert_eq!((code, &*out), (0, "again\n"));
    }
    assert_eq!(world.lines("runs").len(), 3);
    process.stop();
    node.stop();
}

#[test]
fn a_unit_shows_what_it_waits_for_and_that_its_node_is_lost() {
    let world = World::new();
    let (process, node) = (submitter(&world), node(&world));
    let running = unit(&world, &["wait"]);
    wait(&world, &running, "running");
    node.kill();
    let (code, out, _) = ran(&mut submit(&world, &["--json", "cat"]));
    let taken: Value = serde_json::from_str(&out).expect("json");
    assert_eq!((code, &taken["accepted"]), (0, &false.into()));
    let waiting = taken["unit"].as_str().expect("unit");
    assert_eq!(report(&world, waiting)["state"], "pending");
    assert_eq!(report(&world, &running)["state"], "running");
    // The client notes it after a minute.
    process.kill();
    let ledger = rusqlite::Connection::open(world.home("desk").join("ledger.db")).expect("ledger");
    let note = "lost: node node7 is away (noted 2026-01-01T00:00:00Z)";
    ledger
        .execute("UPDATE unit SET note = ?1", [note])
        .expect("note");
    drop(ledger);
    for unit in [waiting, &running] {
        let report = report(&world, unit);
        assert_eq!(
            (&report["state"], &report["note"]),
            (&"lost".into(), &note.into())
        );
    }
    let (_, out, _) = ran(&mut work(&world, &["list", "--grep", "lost"]));
    assert_eq!(out.matches(" lost ").count(), 2, "{out}");
    let (code, _, stderr) = ran(&mut work(&world, &["results", &running]));
    assert!(code == 125 && stderr.contains("it is lost"), "{stderr}");
    let (process, node) = (submitter(&world), self::node(&world));
    wait(&world, waiting, "succeeded");
    succeeds(&mut work(&world, &["cancel", &running]));
    process.stop();
    node.stop();
}

#[test]
fn the_page_about_work_says_how_a_client_keeps_units_of_nodes() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/work.md");
    let page = fs::read_to_string(page).expect("page");
    let block = |kind: &str| {
        let rest = page.split_once(&format!("```sh {kind}\n"));
        let lines = rest.expect(kind).1.split("```").next().expect(kind).lines();
        let words = lines.map(|line| shell_words::split(line).expect(line));
        words.collect::<Vec<_>>()
    };
    let world = World::new();
    let types = "[[work]]\ntype = \"upper\"\ncommand = \"tr a-z A-Z\"\n";
    let node = node_with(&world, types);
    let mut client = world.command("tael");
    client.args(&block("desk").first().expect("client")[1..]);
    let desk = world.online("desk", client);
    for words in block("kept") {
        let (code, _, stderr) = ran(&mut world.tael(&words[1..]));
        assert_eq!(code, 0, "{words:?}: {stderr}");
    }
    desk.stop();
    node.stop();
}

#[test]
fn a_client_signs_what_it_asks_of_a_node() {
    let world = World::new();
    let types = format!(
        "[verify]\nkeys = [{:?}]\n{}\n[[work]]\ntype = 'free'\ncommand = 'true'\n",
        fixture_key("ed25519.pub"),
        types().replace("jobs = 8", "jobs = 8\nsigned = 'required'")
    );
    let node = || node_with(&world, &types);
    let process = node();
    let key = private_key(&world, "ed25519");
    let config = world.file("desk.toml", format!("[signing]\nkey = {key:?}\n"));
    let signing = ["--submit-only", "--config", &config];
    let signer = world.client("desk", &signing);
    refuses(&mut submit(&world, &["cat"]), 65, "a signature is required");
    refuses(
        &mut submit(&world, &["--sign", "free"]),
        65,
        "did not expect a signature",
    );
    let (code, out, stderr) = ran(&mut submit(&world, &["--sign", "-f", "cat", "-l", "a"]));
    assert_eq!((code, &*out), (0, "a\n"), "{stderr}");
    let unit = unit(&world, &["--sign", "wait"]);
    wait(&world, &unit, "running");
    // The node wants a signature for everything about it.
    let unsigned = ["work", "cancel", "--node", "node7", "--root", "lab", &unit];
    let mut unsigned = world.tael(unsigned);
    refuses(
        unsigned.env("TAEL_LOG", "warn"),
        77,
        "a signature is required",
    );
    let mut session = connect(&world);
    session.send("connect node7 control\nwork list");
    let lines = [(); 3].map(|()| session.line());
    assert!(lines[2].contains(&unit), "{lines:?}");
    succeeds(&mut work(&world, &["cancel", &unit]));
    let (_, out, _) = ran(&mut work(&world, &["results", &unit]));
    assert_eq!(out, "begun\n");
    succeeds(&mut work(&world, &["release", &unit]));
    let folder = world.home("node7").join("units").join(&unit);
    wait_until("the node has released it", || !folder.exists());
    // A client without its key says what is missing, and goes on with it.
    process.kill();
    let waiting = self::unit(&world, &["--sign", "cat", "-l", "later"]);
    signer.kill();
    let bare = submitter(&world);
    let process = node();
    wait_until("the unit says what it waits for", || {
        let report = report(&world, &waiting);
        let note = report["note"].as_str().unwrap_or_default();
        note.contains("no key to sign with")
    });
    bare.stop();
    let signer = world.client("desk", &signing);
    wait(&world, &waiting, "succeeded");
    signer.stop();
    process.stop();
}
