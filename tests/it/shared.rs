//! Shared subscriptions: a worker takes its share while it is connected, and loses nothing of it when
//! it leaves.

use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tael::model::remote::wire::{self, Manifest, Request};

use crate::common::nodes::{new_id, sha256_of};
use crate::common::raw::{
    Raw, packet, publish, publish_with, request_properties, unsubscribe_filters,
};
use crate::common::scene::{RUN, SEQ, Scene, event};
use crate::common::{World, bare_command, refuses, wait_until};

const SHARED: &str = "$share/g/lab/seq/status";

#[test]
fn a_worker_that_is_stopped_takes_no_share() {
    let world = World::new();
    let worker = |who: &str| world.client(who, &["-t", SHARED, "-c", RUN]);
    let (a, b) = (worker("a"), worker("b"));
    a.stop();
    for n in 1..=20 {
        world.publish(SEQ, event(n), &[]);
    }
    wait_until("the other worker runs all", || {
        world.lines("runs").len() >= 20
    });
    let mut runs = world.lines("runs");
    runs.sort_by_key(|run| run.parse::<u32>().expect("number"));
    assert_eq!(runs, (1..=20).map(|n| n.to_string()).collect::<Vec<_>>());
    // When it is back, it gets none of the messages that the other one has run.
    let a = worker("a");
    let (code, _, stderr) = world.control(&["a", "raise", "--attr", "n", "end"]);
    assert_eq!(code, 0, "{stderr}");
    wait_until("the sentinel runs", || {
        world.lines("runs").last().is_some_and(|run| run == "end")
    });
    assert_eq!(world.lines("runs").len(), 21);
    a.stop();
    b.stop();
}

/// Returns the next packet of the peer, and answers its pings.
fn next(raw: &mut Raw) -> (u8, Vec<u8>) {
    loop {
        let (kind, body) = raw.receive();
        if kind >> 4 != 12 {
            return (kind, body);
        }
        raw.send(&packet(0xd0, &[]));
    }
}

/// Waits for an UNSUBSCRIBE, and returns its body. Acknowledgements before it go to `acks`.
#[track_caller]
fn unsubscribe(raw: &mut Raw, acks: &mut Vec<u16>) -> Vec<u8> {
    loop {
        let (kind, body) = next(raw);
        match kind {
            0x40 => acks.push(u16::from_be_bytes([body[0], body[1]])),
            0xa2 => return body,
            other => panic!("packet {other:#x} instead of an UNSUBSCRIBE"),
        }
    }
}

fn unsubscribed(raw: &mut Raw, request: &[u8]) {
    raw.send(&packet(0xb0, &[request[0], request[1], 0, 0]));
}

#[test]
fn a_worker_takes_what_the_broker_still_has_for_it() {
    let scene = Scene::new();
    let mut worker = scene.start(&["-t", SHARED, "-c", RUN]);
    let (mut raw, connect) = scene.broker.greet(false, &[]);
    assert_eq!(connect.session_expiry, 0);
    assert!(!connect.clean_start, "an earlier session is continued");
    raw.serve_until(|m| m.text().contains(r#""online""#));
    worker.signal(Signal::SIGTERM);
    let mut acks = Vec::new();
    let mut given_up = Vec::new();
    let send = |raw: &mut Raw, n: u16| {
        let text = event(n.into());
        raw.send(&publish(
            SEQ.as_bytes(),
            text.as_bytes(),
            Some(n),
            &[],
            false,
        ));
    };
    // One message comes before the answers.
    let first = unsubscribe(&mut raw, &mut acks);
    send(&mut raw, 1);
    let second = unsubscribe(&mut raw, &mut acks);
    for request in [&first, &second] {
        given_up.extend(unsubscribe_filters(request));
        unsubscribed(&mut raw, request);
    }
    assert!(given_up.contains(&SHARED.to_owned()), "{given_up:?}");
    // More come after them. The worker asks until no message comes.
    for n in [2, 3] {
        let request = unsubscribe(&mut raw, &mut acks);
        assert!(acks.contains(&(n - 1)), "{acks:?} before it asks for more");
        send(&mut raw, n);
        unsubscribed(&mut raw, &request);
    }
    let request = unsubscribe(&mut raw, &mut acks);
    assert_eq!(acks, [1, 2, 3]);
    unsubscribed(&mut raw, &request);
    raw.serve_until(|m| m.text().contains(r#""offline""#));
    assert_eq!(next(&mut raw).0, 0xe0, "DISCONNECT");
    drop(raw);
    assert_eq!(worker.wait(), 0, "{}", worker.log_text());
    // They wait for its next start.
    let _worker = scene.start(&["-t", SHARED, "-c", RUN]);
    let _raw = scene.online();
    scene.have_run(&["1", "2", "3"]);
}

#[test]
fn a_worker_without_room_takes_what_it_holds_before_it_leaves() {
    let scene = Scene::new();
    let start = || {
        let mut worker = scene.command(&["-t", SHARED, "-c", RUN]);
        let worker = scene.spawn(worker.env("TAEL_TEST_MAX_WAITING", "1"));
        (worker, scene.online())
    };
    let paused = scene.home().join("paused");
    fs::create_dir_all(scene.home()).expect("folder");
    fs::write(&paused, "").expect("mark");
    let (mut worker, mut raw) = start();
    for n in 1..=3 {
        let text = event(n.into());
        let message = publish(SEQ.as_bytes(), text.as_bytes(), Some(n), &[], false);
        raw.send(&message);
    }
    // One may wait, and the others are held.
    raw.serve_until_acknowledged(1);
    wait_until("there is no room", || {
        worker.log_text().contains("no more events are accepted")
    });
    worker.signal(Signal::SIGTERM);
    let mut acks = Vec::new();
    loop {
        let (kind, body) = next(&mut raw);
        match kind {
            0x40 => acks.push(u16::from_be_bytes([body[0], body[1]])),
            0xe0 => break,
            _ => drop(raw.serve(kind, &body)),
        }
    }
    assert_eq!(acks, [2, 3]);
    assert_eq!(worker.wait(), 0, "{}", worker.log_text());
    fs::remove_file(&paused).expect("mark");
    let _again = start();
    scene.have_run(&["1", "2", "3"]);
}

#[test]
fn a_client_is_a_worker_or_none() {
    let scene = Scene::new();
    let mut mixed = scene.command(&["-t", SHARED, "-t", "lab/other", "-c", RUN]);
    mixed.env("TAEL_LOG", "warn");
    refuses(&mut mixed, 64, "is shared and 'lab/other' is not");
    let file = scene.dir.path().join("p.toml");
    let table = |topic: &str| format!("[[trigger]]\ntopic = '{topic}'\ncommand = 'true'\n");
    fs::write(&file, table(SHARED) + &table("lab/other")).expect("file");
    let mut mixed = bare_command(&scene.dir, "tael-client");
    mixed.args(["--who", "p", "--config"]).arg(&file);
    mixed.env("TAEL_LOG", "warn");
    refuses(&mut mixed, 78, "is shared and 'lab/other' is not");
    // A reload does not change that either.
    fs::write(&file, table(SHARED)).expect("file");
    let worker = scene.start(&["--config", file.to_str().expect("path")]);
    let _raw = scene.online();
    fs::write(&file, table("lab/other")).expect("file");
    worker.signal(Signal::SIGHUP);
    wait_until("it says so", || {
        worker.log_text().contains("needs a restart")
    });
}

/// A worker that leaves answers the requests for work that it has taken.
#[test]
fn a_worker_that_leaves_answers_who_has_submitted_work() {
    let scene = Scene::new();
    let config = scene.dir.path().join("p.toml");
    let text = format!(
        "[[trigger]]\ntopic = '{SHARED}'\ncommand = 'true'\n[[work]]\ntype = 'cat'\ncommand = 'cat'\n"
    );
    fs::write(&config, text).expect("config");
    let mut worker = scene.start(&["--config", config.to_str().expect("path")]);
    let mut raw = scene.online();
    worker.signal(Signal::SIGTERM);
    let mut acks = Vec::new();
    let first = unsubscribe(&mut raw, &mut acks);
    let reply = "lab/infrastructure/pipelines/desk/reply/p";
    let request = Request::Submit(Manifest {
        unit: new_id(),
        kind: "cat".into(),
        params: Vec::new(),
        variables: Vec::new(),
        submitter: "ann@host".into(),
        length: 1,
        sha256: sha256_of(b"a"),
        expires: None,
        signature: None,
    });
    let properties = request_properties(reply, b"offer");
    raw.send(&publish_with(
        b"lab/infrastructure/pipelines/p/work",
        &wire::write(&request, b"a"),
        Some(1),
        &properties,
        false,
    ));
    unsubscribed(&mut raw, &first);
    let begin = Instant::now();
    loop {
        let (kind, body) = next(&mut raw);
        match kind {
            0x40 => acks.push(u16::from_be_bytes([body[0], body[1]])),
            0xa2 => unsubscribed(&mut raw, &body),
            0xe0 => break,
            _ => drop(raw.serve(kind, &body)),
        }
    }
    assert_eq!(acks, [1]);
    assert_eq!(worker.wait(), 0, "{}", worker.log_text());
    let took = begin.elapsed();
    assert!(
        took < Duration::from_secs(20),
        "it has waited in vain: {took:?}"
    );
}
