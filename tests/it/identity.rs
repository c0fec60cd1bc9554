//! The identity of an event: its id and its content. Programs and bridges copy both.

use crate::common::raw::{Raw, publish};
use crate::common::scene::{RUN, SEQ, Scene};
use crate::common::{Process, World};

/// A command that also writes the name of its event.
const RUN_NAMED: &str = r#"echo "$ATTR_N $TAEL_EVENT" >>"$OUT/runs""#;

/// Waits for `count` runs, and returns the number and the event of each.
#[track_caller]
fn runs(world: &World, count: usize) -> Vec<(String, String)> {
    let lines = world.wait_lines("runs", count);
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
    let arguments = ["-t", "lab/+/status", "-c", RUN_NAMED];
    let client = world.client("copy", &arguments);
    // Node-RED changes a message under its id, and a bridge repeats one.
    let say = |n: &str| {
        let payload = format!(r#"{{"status":"finished","n":"{n}"}}"#);
        world.publish(SEQ, payload, &[("tael-id", "X")]);
    };
    ["1", "2", "3", "2", "1"].into_iter().for_each(say);
    // The topic is part of the content.
    let other = r#"{"status":"finished","n":"1"}"#;
    world.publish("lab/other/status", other, &[("tael-id", "X")]);
    world.wait_report("copy", "/units/succeeded", 4);
    client.stop();
    // The next client recognises them.
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
    // Each event has its own name. Only the first one has the id of its sender.
    let mut events: Vec<&str> = all.iter().map(|(_, event)| event.as_str()).collect();
    assert_eq!((events[0], events[5]), ("X", "Y"));
    events.sort_unstable();
    events.dedup();
    assert_eq!(events.len(), 6, "{all:?}");
    // An id that commands may not see still distinguishes events.
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
        RUN_NAMED,
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
    // An event that a wrong configuration refused runs once under the right one.
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

/// Starts a client that accepts retained messages.
fn start(scene: &Scene) -> (Process, Raw) {
    let client = scene.start(&["-t", "lab/#", "-c", RUN, "--retained", "accept"]);
    (client, scene.online())
}

/// Sends `n` on `topic`, as a retained message if `replayed`.
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
    let (client, mut raw) = start(&scene);
    let id = [("tael-id", "I")];
    say(&mut raw, "lab/a", 1, true, &[]);
    say(&mut raw, "lab/b", 2, true, &id);
    // It was delivered when it was published, and the broker has retained it.
    say(&mut raw, "lab/c", 3, false, &[]);
    client.kill();
    drop(raw);
    let (client, mut raw) = start(&scene);
    // While events are remembered, and after they are forgotten.
    for forgotten in [false, true] {
        if forgotten {
            let deleted = scene.ledger().execute("DELETE FROM event", []);
            deleted.expect("forget");
        }
        say(&mut raw, "lab/a", 1, true, &[]);
        say(&mut raw, "lab/b", 2, true, &id);
        say(&mut raw, "lab/c", 3, true, &[]);
    }
    // Another content is a new event, and so is the same content published again.
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
    let (client, mut raw) = start(&scene);
    say(&mut raw, "lab/a", 1, true, &[]);
    say(&mut raw, "lab/a", 2, false, &[]);
    say(&mut raw, "lab/a", 2, true, &[]);
    client.kill();
    drop(raw);
    // The broker has kept nothing for the client, and the topic has its earlier content again.
    let runs = ["1", "2", "1", "3", "4"];
    for (n, so_far) in [(3, 4), (4, 5)] {
        let (client, mut raw) = start(&scene);
        say(&mut raw, "lab/a", 1, true, &[]);
        say(&mut raw, "lab/b", n, true, &[]);
        scene.have_run(&runs[..so_far]);
        client.kill();
    }
}

#[test]
fn an_empty_message_that_clears_a_retained_one_is_no_event() {
    let scene = Scene::new();
    let (client, mut raw) = start(&scene);
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
    world.earlier_ledger("p", include_str!("../fixtures/ledger-v1.sql"));
    let client = world.client("p", &["-t", SEQ, "-c", RUN_NAMED]);
    world.wait_report("p", "/units/succeeded", 1);
    // The old ledger does not have its content.
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
    let arguments = ["-t", SEQ, "-c", RUN_NAMED, "--retained", "accept"];
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
    // It waits for the client, and the topic retains it.
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
