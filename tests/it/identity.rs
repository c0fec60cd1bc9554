//! What an event is: an id and a content, whatever programs and bridges do with either.

use std::fs;
use std::process::Command;

use crate::common::raw::{Raw, Scripted, publish};
use crate::common::{Process, World, bare_command, spawn, wait_until};

const SEQ: &str = "lab/seq/status";
const RUN: &str = r#"echo "$ATTR_N $TAEL_EVENT" >>"$OUT/runs""#;

/// Waits for the last of `runs`, and returns what they wrote: number and event.
#[track_caller]
fn runs(world: &World, count: usize) -> Vec<(String, String)> {
    wait_until("as many have run", || world.lines("runs").len() >= count);
    let lines = world.lines("runs");
    assert_eq!(lines.len(), count, "{lines:?}");
    let pair = |line: &String| {
        let (n, event) = line.split_once(' ').expect("two words");
        (n.to_owned(), event.to_owned())
    };
    lines.iter().map(pair).collect()
}

#[test]
fn different_messages_under_one_copied_id_each_run_and_copies_do_not() {
    let world = World::new();
    let arguments = ["-t", "lab/+/status", "-c", RUN];
    let client = world.client("copy", &arguments);
    // As Node-RED sends what it has changed, and a bridge what it has seen twice.
    let say = |n: &str| {
        let payload = format!(r#"{{"status":"finished","n":"{n}"}}"#);
        world.publish(SEQ, payload, &[("tael-id", "X")]);
    };
    ["1", "2", "3", "2", "1"].into_iter().for_each(say);
    // Another topic is another content.
    let other = r#"{"status":"finished","n":"1"}"#;
    world.publish("lab/other/status", other, &[("tael-id", "X")]);
    world.wait_report("copy", "/units/succeeded", 4);
    client.stop();
    // The next client knows them too.
    let client = world.client("copy", &arguments);
    ["3", "4", "2"].into_iter().for_each(say);
    world.publish(
        SEQ,
        r#"{"status":"finished","n":"last"}"#,
        &[("tael-id", "Y")],
    );
    let all = runs(&world, 6);
    let numbers: Vec<&str> = all.iter().map(|(n, _)| n.as_str()).collect();
    assert_eq!(numbers, ["1", "2", "3", "1", "4", "last"]);
    // Each event has a name of its own; the first one, and only it, its sender's.
    let mut events: Vec<&str> = all.iter().map(|(_, event)| event.as_str()).collect();
    assert_eq!((events[0], events[5]), ("X", "Y"));
    events.sort_unstable();
    events.dedup();
    assert_eq!(events.len(), 6, "{all:?}");
    // An id that commands may not see tells events apart all the same.
    let odd = |n: &str| {
        let payload = format!(r#"{{"status":"finished","n":"{n}"}}"#);
        world.publish(SEQ, payload, &[("tael-id", "run 7/$(x)")]);
    };
    ["5", "6", "5", "6"].into_iter().for_each(odd);
    say("7");
    let last = runs(&world, 9).split_off(6);
    let numbers: Vec<&str> = last.iter().map(|(n, _)| n.as_str()).collect();
    assert_eq!(numbers, ["5", "6", "7"]);
    assert!(last.iter().all(|(_, event)| event.len() == 26), "{last:?}");
    let log = client.log_text();
    assert!(
        log.contains("tael-id 'X' came again with another content"),
        "{log}"
    );
    client.stop();
}

#[test]
fn a_refused_event_does_not_use_its_id_up() {
    let world = World::new();
    let picky = [
        "-t",
        SEQ,
        "-c",
        RUN,
        "--envreq",
        "sample",
        "--envprefix",
        "ATTR",
    ];
    let client = world.client("picky", &picky);
    let bad = r#"{"status":"finished","n":"1"}"#;
    let good = r#"{"status":"finished","n":"1","sample":"S"}"#;
    world.publish(SEQ, bad, &[("tael-id", "X")]);
    world.publish(SEQ, bad, &[("tael-id", "X")]);
    world.publish(SEQ, "no JSON", &[("tael-id", "Y")]);
    world.publish(SEQ, good, &[("tael-id", "X")]);
    world.publish(SEQ, good.replace('1', "2"), &[("tael-id", "Y")]);
    world.wait_report("picky", "/units/succeeded", 2);
    let events = world.report("picky")["events"].clone();
    assert_eq!(
        (&events["refused"], &events["duplicate"]),
        (&2.into(), &1.into())
    );
    client.stop();
    // What was refused for a wrong configuration runs under the right one, once.
    let client = world.client("picky", &picky[..4]);
    world.publish(SEQ, bad, &[("tael-id", "X")]);
    world.publish(SEQ, bad, &[("tael-id", "X")]);
    world.publish(SEQ, good.replace('1', "3"), &[("tael-id", "Z")]);
    let runs = runs(&world, 4);
    assert_eq!(runs[0], ("1".into(), "X".into()));
    assert_eq!(runs[1], ("2".into(), "Y".into()));
    assert_eq!((&*runs[2].0, &*runs[3].0), ("1", "3"));
    client.stop();
}

/// A client over a scripted broker, that takes retained messages.
struct Scene {
    dir: tempfile::TempDir,
    broker: Scripted,
}

impl Scene {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().expect("tempdir"),
            broker: Scripted::listen(),
        }
    }

    fn start(&self) -> (Process, Raw) {
        let mut command: Command = bare_command(&self.dir, "tael-client");
        command
            .args(["--who", "p", "--root", "lab", "-t", "lab/#", "-c"])
            .arg(r#"echo "$ATTR_N" >>"$OUT/runs""#)
            .args(["--retained", "accept", "-H", "127.0.0.1"])
            .args(["-p", &self.broker.port().to_string()]);
        let client = spawn(&self.dir, &mut command);
        let mut raw = self.broker.accept();
        raw.serve_until(|m| m.topic.ends_with("/presence"));
        (client, raw)
    }

    #[track_caller]
    fn have_run(&self, wanted: &[&str]) {
        let runs = || fs::read_to_string(self.dir.path().join("runs")).unwrap_or_default();
        wait_until("as many have run", || {
            runs().lines().count() >= wanted.len()
        });
        assert_eq!(runs().lines().collect::<Vec<_>>(), wanted);
    }
}

/// Sends `n` for `topic`, as what the broker has retained if `replayed`.
fn say(raw: &mut Raw, topic: &str, n: u16, replayed: bool, id: &[(&str, &str)]) {
    let payload = format!(r#"{{"status":"finished","n":{n}}}"#);
    let mut packet = publish(topic.as_bytes(), payload.as_bytes(), Some(n), id, false);
    packet[0] |= u8::from(replayed);
    raw.send(&packet);
    raw.serve_until_acknowledged(n);
}

#[test]
fn a_retained_message_runs_once_for_each_content() {
    let scene = Scene::new();
    let (client, mut raw) = scene.start();
    let id = [("tael-id", "I")];
    say(&mut raw, "lab/a", 1, true, &[]);
    say(&mut raw, "lab/b", 2, true, &id);
    // It came as it was published, or while the client was away, and is retained since.
    say(&mut raw, "lab/c", 3, false, &[]);
    client.kill();
    drop(raw);
    let (client, mut raw) = scene.start();
    // As long as events are remembered, and longer.
    for forgotten in [false, true] {
        if forgotten {
            let ledger = scene.dir.path().join("state/p/ledger.db");
            let ledger = rusqlite::Connection::open(ledger).expect("ledger");
            ledger.execute("DELETE FROM event", []).expect("forget");
        }
        say(&mut raw, "lab/a", 1, true, &[]);
        say(&mut raw, "lab/b", 2, true, &id);
        say(&mut raw, "lab/c", 3, true, &[]);
    }
    // Another content is news, and so is the same one that is published again.
    say(&mut raw, "lab/a", 4, true, &[]);
    say(&mut raw, "lab/a", 4, false, &[]);
    say(&mut raw, "lab/a", 4, true, &[]);
    say(&mut raw, "lab/a", 5, true, &[]);
    scene.have_run(&["1", "2", "3", "4", "4", "5"]);
    client.kill();
}

#[test]
fn a_retained_message_that_says_again_what_an_earlier_one_said_is_news() {
    let scene = Scene::new();
    let (client, mut raw) = scene.start();
    say(&mut raw, "lab/a", 1, true, &[]);
    say(&mut raw, "lab/a", 2, false, &[]);
    say(&mut raw, "lab/a", 2, true, &[]);
    client.kill();
    drop(raw);
    // The broker has kept nothing for the client, and the topic is back at what it said before.
    let runs = ["1", "2", "1", "3", "4"];
    for (n, so_far) in [(3, 4), (4, 5)] {
        let (client, mut raw) = scene.start();
        say(&mut raw, "lab/a", 1, true, &[]);
        say(&mut raw, "lab/b", n, true, &[]);
        scene.have_run(&runs[..so_far]);
        client.kill();
    }
}

#[test]
fn an_empty_message_that_clears_a_retained_one_is_no_event() {
    let scene = Scene::new();
    let (client, mut raw) = scene.start();
    for (packet, topic) in [(1, "lab/a"), (2, "lab/infrastructure/pipelines/p/control")] {
        raw.send(&publish(topic.as_bytes(), b"", Some(packet), &[], false));
        let said = raw.serve_until_acknowledged(packet);
        assert!(said.is_empty(), "{said:?}");
    }
    say(&mut raw, "lab/a", 3, false, &[]);
    scene.have_run(&["3"]);
    let log = client.log_text();
    assert!(!log.contains("refused"), "{log}");
    assert!(log.contains("its payload is empty"), "{log}");
    client.kill();
}

#[test]
fn an_event_of_an_older_ledger_is_known_by_its_id() {
    let world = World::new();
    let home = world.state().join("p");
    fs::create_dir_all(home.join("units")).expect("home");
    let old = rusqlite::Connection::open(home.join("ledger.db")).expect("ledger");
    old.execute_batch(include_str!("../fixtures/ledger-v1.sql"))
        .expect("fixture");
    drop(old);
    let client = world.client("p", &["-t", SEQ, "-c", RUN]);
    world.wait_report("p", "/units/succeeded", 1);
    // Nobody knows what it said.
    world.publish(
        SEQ,
        r#"{"status":"finished","n":"1"}"#,
        &[("tael-id", "event-1")],
    );
    world.publish(
        SEQ,
        r#"{"status":"finished","n":"2"}"#,
        &[("tael-id", "event-2")],
    );
    world.wait_report("p", "/units/succeeded", 2);
    let events: Vec<String> = runs(&world, 2)
        .into_iter()
        .map(|(_, event)| event)
        .collect();
    assert_eq!(events, ["event-1", "event-2"]);
    client.stop();
}

#[test]
fn a_retained_message_that_came_while_the_client_was_away_runs_once() {
    let world = World::new();
    let arguments = ["-t", SEQ, "-c", RUN, "--retained", "accept"];
    let client = world.client("late", &arguments);
    let retain = |payload: &[u8]| {
        let mut raw = Raw::connect(world.broker.port());
        let mut packet = publish(SEQ.as_bytes(), payload, Some(1), &[], false);
        packet[0] |= 1;
        raw.send(&packet);
        assert_eq!(raw.receive().0, 0x40, "PUBACK");
    };
    retain(br#"{"status":"finished","n":"1"}"#);
    world.wait_report("late", "/units/succeeded", 1);
    client.stop();
    retain(br#"{"status":"finished","n":"2"}"#);
    // It waits for the client, and is what the topic retains.
    world.client("late", &arguments).stop();
    let client = world.client("late", &arguments);
    world.publish(SEQ, r#"{"status":"finished","n":"3"}"#, &[]);
    let numbers: Vec<String> = runs(&world, 3).into_iter().map(|(n, _)| n).collect();
    assert_eq!(numbers, ["1", "2", "3"]);
    retain(b"");
    world.publish(SEQ, r#"{"status":"finished","n":"4"}"#, &[]);
    world.wait_report("late", "/units/succeeded", 4);
    assert_eq!(world.report("late")["events"]["refused"], 0);
    client.stop();
}
