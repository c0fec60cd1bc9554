//! A message that the broker sends again: known by its id, or for senders that give none by
//! the broker's word and the content.

mod common;

use std::process::Command;

use common::raw::{Raw, Scripted, publish};
use common::{Process, bare_command, spawn, wait_until};

const SEQ: &[u8] = b"lab/seq/status";
const RUN: &str = r#"echo "$ATTR_N" >>"$OUT/runs""#;
const ONE: &[u8] = br#"{"status":"finished","n":1}"#;
const TWO: &[u8] = br#"{"status":"finished","n":2}"#;

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

    fn command(&self) -> Command {
        let mut command = bare_command(&self.dir, "tael-client");
        command
            .args(["--who", "p", "--root", "lab", "-t", "lab/seq/#", "-c", RUN])
            .args(["-H", "127.0.0.1", "-p", &self.broker.port().to_string()]);
        command
    }

    /// A connection whose client is online.
    fn online(&self) -> Raw {
        let mut raw = self.broker.accept();
        raw.serve_until(|m| m.topic.ends_with("/presence"));
        raw
    }

    fn start(&self) -> Process {
        spawn(&self.dir, &mut self.command())
    }

    fn runs(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.dir.path().join("runs")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    #[track_caller]
    fn have_run(&self, wanted: &[&str]) {
        wait_until("as many have run", || self.runs().len() >= wanted.len());
        assert_eq!(self.runs(), wanted);
    }
}

#[test]
fn a_foreign_message_that_comes_again_runs_once() {
    let scene = Scene::new();
    let client = scene.start();
    let mut raw = scene.online();
    raw.send(&publish(SEQ, ONE, Some(1), &[], false));
    raw.serve_until_acknowledged(1);
    // The acknowledgement is lost with the connection, and the broker sends again.
    drop(raw);
    let mut raw = scene.online();
    raw.send(&publish(SEQ, ONE, Some(1), &[], true));
    raw.serve_until_acknowledged(1);
    // The same content is news if the broker has not sent it before.
    raw.send(&publish(SEQ, ONE, Some(2), &[], false));
    raw.serve_until_acknowledged(2);
    raw.send(&publish(SEQ, TWO, Some(3), &[], false));
    raw.serve_until_acknowledged(3);
    scene.have_run(&["1", "1", "2"]);
    // A client that is killed knows it too.
    client.kill();
    drop(raw);
    let _client = scene.start();
    let mut raw = scene.online();
    raw.send(&publish(SEQ, TWO, Some(3), &[], true));
    raw.serve_until_acknowledged(3);
    // One that the broker sent into a dead connection comes with the mark, and is new.
    let three = br#"{"status":"finished","n":3}"#;
    raw.send(&publish(SEQ, three, Some(4), &[], true));
    raw.serve_until_acknowledged(4);
    scene.have_run(&["1", "1", "2", "3"]);
}

#[test]
fn a_message_with_an_id_runs_once_whatever_the_broker_says() {
    let scene = Scene::new();
    let _client = scene.start();
    let mut raw = scene.online();
    let mut send = |packet: u16, id: &str, payload: &[u8]| {
        raw.send(&publish(
            SEQ,
            payload,
            Some(packet),
            &[("tael-id", id)],
            false,
        ));
        raw.serve_until_acknowledged(packet);
    };
    send(1, "a", ONE);
    send(2, "a", ONE);
    send(3, "b", ONE);
    send(4, "a", TWO);
    send(5, "c", TWO);
    scene.have_run(&["1", "1", "2"]);
}

#[test]
fn equal_messages_that_were_not_acknowledged_each_run() {
    let scene = Scene::new();
    let mut dying = scene.command();
    dying.env("TAEL_FAILPOINT", "commit.before");
    let mut dying = spawn(&scene.dir, &mut dying);
    let mut raw = scene.online();
    for packet in 1..=5 {
        raw.send(&publish(SEQ, ONE, Some(packet), &[], false));
    }
    assert_eq!(dying.wait(), 128 + 9);
    drop(raw);
    let _client = scene.start();
    let mut raw = scene.online();
    for packet in 1..=5 {
        raw.send(&publish(SEQ, ONE, Some(packet), &[], true));
        raw.serve_until_acknowledged(packet);
    }
    scene.have_run(&["1"; 5]);
}
