//! Messages that the broker sends again. Those with an id are known by id and content, those
//! without by the DUP flag of the broker and the content.

use std::process::Command;

use nix::sys::signal::Signal;

use crate::common::raw::{Heard, Raw, publish, publish_with, request_properties, user_properties};
use crate::common::scene::{CONTROL, RUN, Scene};
use crate::common::{Process, wait_until};

const SEQ: &[u8] = b"lab/seq/status";
const ONE: &[u8] = br#"{"status":"finished","n":1}"#;
const TWO: &[u8] = br#"{"status":"finished","n":2}"#;

fn command(scene: &Scene) -> Command {
    scene.command(&["-t", "lab/seq/#", "-c", RUN])
}

fn start(scene: &Scene) -> Process {
    scene.spawn(&mut command(scene))
}

/// Returns how many statuses the ledger holds until the broker has acknowledged them.
fn untold(scene: &Scene) -> i64 {
    let count = "SELECT count(*) FROM outbox";
    let count = scene.ledger().query_row(count, [], |row| row.get(0));
    count.expect("count")
}

/// Waits until the client has read all acknowledgements of its statuses.
#[track_caller]
fn all_told(scene: &Scene) {
    wait_until("all statuses are acknowledged", || untold(scene) == 0);
}

/// Waits for the end of a run. The retained `last` of an earlier one may come before.
fn finished(raw: &mut Raw) {
    raw.serve_until(|m| {
        m.topic.ends_with("/status") && m.text().contains(r#""status":"finished""#)
    });
}

/// Sends the request `raise`, and returns the unit that it makes when that has ended.
fn unit_of(scene: &Scene, raw: &mut Raw, raise: &[u8]) -> String {
    raw.send(&publish(CONTROL.as_bytes(), raise, Some(1), &[], false));
    finished(raw);
    all_told(scene);
    let unit = scene.ledger();
    let unit = unit.query_row("SELECT id FROM unit", [], |row| row.get(0));
    unit.expect("unit")
}

#[test]
fn a_foreign_message_that_comes_again_runs_once() {
    let scene = Scene::new();
    let client = start(&scene);
    let mut raw = scene.online();
    raw.send(&publish(SEQ, ONE, Some(1), &[], false));
    raw.serve_until_acknowledged(1);
    // The acknowledgement is lost with the connection, and the broker sends again.
    drop(raw);
    let mut raw = scene.online();
    raw.send(&publish(SEQ, ONE, Some(1), &[], true));
    raw.serve_until_acknowledged(1);
    // Without the DUP flag the same content is a new event.
    raw.send(&publish(SEQ, ONE, Some(2), &[], false));
    raw.serve_until_acknowledged(2);
    raw.send(&publish(SEQ, TWO, Some(3), &[], false));
    raw.serve_until_acknowledged(3);
    scene.have_run(&["1", "1", "2"]);
    // The client after a kill recognises it.
    client.kill();
    drop(raw);
    let _client = start(&scene);
    let mut raw = scene.online();
    raw.send(&publish(SEQ, TWO, Some(3), &[], true));
    raw.serve_until_acknowledged(3);
    // A message that the broker sent into a dead connection has the flag, and is new.
    let three = br#"{"status":"finished","n":3}"#;
    raw.send(&publish(SEQ, three, Some(4), &[], true));
    raw.serve_until_acknowledged(4);
    scene.have_run(&["1", "1", "2", "3"]);
}

/// Runs ONE under packet identifier 1, and waits until the broker knows our acknowledgement.
fn settle_one(scene: &Scene, raw: &mut Raw) {
    raw.send(&publish(SEQ, ONE, Some(1), &[], false));
    raw.serve_until_acknowledged(1);
    // The broker answers a later message of the client, so the acknowledgement has arrived.
    finished(raw);
    all_told(scene);
}

#[test]
fn an_equal_message_is_news_once_the_first_is_settled() {
    let scene = Scene::new();
    let _client = start(&scene);
    let mut raw = scene.online();
    settle_one(&scene, &mut raw);
    drop(raw);
    // Brokers may begin their numbers again with each connection.
    let mut raw = scene.online();
    settle_one(&scene, &mut raw);
    // Meanwhile the identifier carries another message, possibly an ignored one. Then a message equal
    // to the first is sent under it just before the connection ends.
    for other in [TWO, br#"{"status":"started"}"#] {
        raw.send(&publish(SEQ, other, Some(1), &[], false));
        raw.serve_until_acknowledged(1);
        if other == TWO {
            finished(&mut raw);
        }
        all_told(&scene);
        drop(raw);
        raw = scene.online();
        raw.send(&publish(SEQ, ONE, Some(1), &[], true));
        raw.serve_until_acknowledged(1);
        finished(&mut raw);
        all_told(&scene);
    }
    scene.have_run(&["1", "1", "2", "1", "1"]);
}

#[test]
fn a_broker_that_was_restored_from_an_older_save_makes_nothing_run_twice() {
    let scene = Scene::new();
    let client = start(&scene);
    let mut raw = scene.online();
    settle_one(&scene, &mut raw);
    drop(raw);
    // Its save is older than the acknowledgement, so it sends the message again with the flag.
    let mut raw = scene.online();
    raw.send(&publish(SEQ, ONE, Some(1), &[], true));
    raw.serve_until_acknowledged(1);
    client.kill();
    drop(raw);
    // Broker and client are killed again.
    let _client = start(&scene);
    let mut raw = scene.online();
    raw.send(&publish(SEQ, ONE, Some(1), &[], true));
    raw.serve_until_acknowledged(1);
    raw.send(&publish(SEQ, TWO, Some(2), &[], true));
    raw.serve_until_acknowledged(2);
    scene.have_run(&["1", "2"]);
}

#[test]
fn an_equal_message_to_a_client_that_was_gone_runs_though_the_broker_numbers_anew() {
    let scene = Scene::new();
    let mut client = start(&scene);
    let mut raw = scene.online();
    settle_one(&scene, &mut raw);
    for n in 2..=3 {
        // It is sent to a client that is killed, and then to the next one.
        client.kill();
        drop(raw);
        client = start(&scene);
        raw = scene.online();
        raw.send(&publish(SEQ, ONE, Some(1), &[], true));
        raw.serve_until_acknowledged(1);
        finished(&mut raw);
        all_told(&scene);
        scene.have_run(&vec!["1"; n]);
    }
}

#[test]
fn a_message_that_is_sent_three_times_runs_once() {
    let scene = Scene::new();
    let _client = start(&scene);
    let mut raw = scene.online();
    for again in [false, true, true] {
        if again {
            drop(raw);
            raw = scene.online();
        }
        raw.send(&publish(SEQ, ONE, Some(1), &[], again));
        raw.serve_until_acknowledged(1);
    }
    raw.send(&publish(SEQ, TWO, Some(2), &[], false));
    raw.serve_until_acknowledged(2);
    scene.have_run(&["1", "2"]);
}

#[test]
fn a_request_without_an_id_that_comes_again_is_done_once() {
    let scene = Scene::new();
    let mut command = command(&scene);
    command.args(["--when", "n=1"]);
    let _client = scene.spawn(&mut command);
    let control = CONTROL.as_bytes();
    let raise: &[u8] = br#"{"action":"raise","n":"2"}"#;
    let mut raw = scene.online();
    let unit = unit_of(&scene, &mut raw, raise);
    let retry = format!(r#"{{"action":"retry","unit":"{unit}","again":true}}"#);
    for (packet, request, again) in [
        (5, retry.as_bytes(), false),
        (5, retry.as_bytes(), true),
        (6, raise, false),
        (6, raise, true),
    ] {
        if again {
            drop(raw);
            raw = scene.online();
        }
        raw.send(&publish(control, request, Some(packet), &[], again));
        raw.serve_until_acknowledged(packet);
    }
    raw.send(&publish(SEQ, ONE, Some(9), &[], false));
    raw.serve_until_acknowledged(9);
    scene.have_run(&["2", "2", "2", "1"]);
}

#[test]
fn acknowledgements_go_in_the_order_of_arrival() {
    let scene = Scene::new();
    let _client = start(&scene);
    let mut raw = scene.online();
    // The first one waits for the disk. No trigger waits for the second one.
    let ignored: &[u8] = br#"{"status":"started"}"#;
    for (packet, payload) in [(1, ONE), (2, ignored), (3, TWO), (4, ignored)] {
        raw.send(&publish(SEQ, payload, Some(packet), &[], false));
    }
    let mut order = Vec::new();
    while order.len() < 4 {
        let (kind, body) = raw.receive();
        if kind == 0x40 {
            order.push(u16::from_be_bytes([body[0], body[1]]));
        }
    }
    assert_eq!(order, [1, 2, 3, 4]);
}

#[test]
fn a_message_with_an_id_runs_once_whatever_the_broker_calls_it() {
    let scene = Scene::new();
    let _client = start(&scene);
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
    scene.have_run(&["1", "1", "2", "2"]);
}

#[test]
fn equal_messages_that_were_not_acknowledged_each_run() {
    let scene = Scene::new();
    let mut dying = command(&scene);
    dying.env("TAEL_FAILPOINT", "commit.before");
    let mut dying = scene.spawn(&mut dying);
    let mut raw = scene.online();
    for packet in 1..=5 {
        raw.send(&publish(SEQ, ONE, Some(packet), &[], false));
    }
    assert_eq!(dying.wait(), 128 + 9);
    drop(raw);
    let _client = start(&scene);
    let mut raw = scene.online();
    for packet in 1..=5 {
        raw.send(&publish(SEQ, ONE, Some(packet), &[], true));
        raw.serve_until_acknowledged(packet);
    }
    scene.have_run(&["1"; 5]);
}

#[test]
fn what_a_client_leaves_while_it_stops_runs_once() {
    let scene = Scene::new();
    // It dies between the ledger and the acknowledgement.
    let mut dying = command(&scene);
    dying.env("TAEL_FAILPOINT", "commit.after");
    let mut dying = scene.spawn(&mut dying);
    let mut raw = scene.online();
    raw.send(&publish(SEQ, ONE, Some(1), &[], false));
    assert_eq!(dying.wait(), 128 + 9);
    drop(raw);
    // The next one runs it, and is stopped before the broker sends it again.
    let mut stopped = start(&scene);
    let mut raw = scene.broker.accept();
    let mut unanswered = Vec::new();
    loop {
        let (kind, body) = raw.receive();
        if kind >> 4 != 3 {
            raw.serve(kind, &body);
            continue;
        }
        let text = Heard::parse(kind, &body).0.text();
        unanswered.push((kind, body));
        if text.contains(r#""status":"finished""#) {
            break;
        }
    }
    stopped.signal(Signal::SIGTERM);
    wait_until("it stops", || stopped.log_text().contains("stopping"));
    raw.send(&publish(SEQ, ONE, Some(1), &[], true));
    // All that it has published is answered; then it says goodbye.
    for (kind, body) in unanswered {
        raw.serve(kind, &body);
    }
    raw.serve_until(|m| m.text().contains(r#""state":"offline""#));
    assert_eq!(stopped.wait(), 0);
    assert_eq!(untold(&scene), 0);
    drop(raw);
    let _client = start(&scene);
    let mut raw = scene.online();
    raw.send(&publish(SEQ, ONE, Some(1), &[], true));
    raw.serve_until_acknowledged(1);
    raw.send(&publish(SEQ, TWO, Some(2), &[], false));
    raw.serve_until_acknowledged(2);
    scene.have_run(&["1", "2"]);
}

#[test]
fn a_redelivery_that_waits_for_room_runs_once() {
    let scene = Scene::new();
    let client = start(&scene);
    let mut raw = scene.online();
    raw.send(&publish(SEQ, ONE, Some(1), &[], false));
    // The broker answers none of the statuses, and our acknowledgement is lost with the connection.
    hear_unanswered(&mut raw, |m| m.text().contains(r#""status":"finished""#));
    client.kill();
    drop(raw);
    assert!(untold(&scene) > 0);
    // The next client has no room for the message, while the broker answers the statuses.
    let mut full = command(&scene);
    full.env("TAEL_TEST_MAX_WAITING", "0");
    let full = scene.spawn(&mut full);
    let mut raw = scene.broker.accept();
    raw.send(&publish(SEQ, ONE, Some(1), &[], true));
    finished(&mut raw);
    all_told(&scene);
    full.kill();
    drop(raw);
    let _client = start(&scene);
    let mut raw = scene.online();
    raw.send(&publish(SEQ, ONE, Some(1), &[], true));
    raw.serve_until_acknowledged(1);
    raw.send(&publish(SEQ, TWO, Some(2), &[], false));
    raw.serve_until_acknowledged(2);
    scene.have_run(&["1", "2"]);
}

/// Waits for a publish that is `wanted`, without acknowledging any.
fn hear_unanswered(raw: &mut Raw, wanted: impl Fn(&Heard) -> bool) -> Heard {
    loop {
        let (kind, body) = raw.receive();
        if kind >> 4 == 3 {
            let (heard, _) = Heard::parse(kind, &body);
            if wanted(&heard) {
                return heard;
            }
        }
    }
}

#[test]
fn a_status_that_is_not_even_sent_is_no_answer_of_the_broker() {
    let scene = Scene::new();
    let mut command = command(&scene);
    command.args(["--payload-passthrough", "ATTR_LONG"]);
    let _client = scene.spawn(&mut command);
    // The largest packet that the broker takes has 1,000 bytes.
    let mut raw = scene.broker.accept_with(&[0x27, 0, 0, 3, 0xe8]);
    raw.serve_until(|m| m.topic.ends_with("/presence"));
    let long = format!(
        r#"{{"status":"finished","n":1,"long":"{}"}}"#,
        "x".repeat(1000)
    );
    raw.send(&publish(SEQ, long.as_bytes(), Some(1), &[], false));
    // The client itself has refused the whole status. The broker answers nothing from now on, and
    // the acknowledgement is lost with the connection.
    hear_unanswered(&mut raw, |m| m.text().contains(r#""status":"finished""#));
    drop(raw);
    let mut raw = scene.online();
    raw.send(&publish(SEQ, long.as_bytes(), Some(1), &[], true));
    raw.serve_until_acknowledged(1);
    raw.send(&publish(SEQ, TWO, Some(2), &[], false));
    raw.serve_until_acknowledged(2);
    scene.have_run(&["1", "2"]);
}

#[test]
fn a_repeated_request_is_answered_with_what_the_first_one_made() {
    let scene = Scene::new();
    let mut command = command(&scene);
    command.args(["--when", "n=1"]);
    let _client = scene.spawn(&mut command);
    let mut raw = scene.online();
    let control = CONTROL.as_bytes();
    let raise: &[u8] = br#"{"action":"raise","n":"2","fail":"1"}"#;
    let retry: &[u8] = br#"{"action":"retry"}"#;
    let mut packet = 0;
    let mut ask = |raw: &mut Raw, id: &str, request: &[u8]| -> serde_json::Value {
        packet += 1;
        let mut properties = request_properties("lab/infrastructure/reply/me", b"");
        properties.extend(user_properties(&[("tael-id", id)]));
        raw.send(&publish_with(
            control,
            request,
            Some(packet),
            &properties,
            false,
        ));
        let reply = raw.serve_until(|m| m.topic == "lab/infrastructure/reply/me");
        serde_json::from_slice(&reply.payload).expect("JSON")
    };
    let raised = ask(&mut raw, "R1", raise);
    let first = raised["unit"].as_str().expect("unit").to_owned();
    finished(&mut raw);
    assert_eq!(ask(&mut raw, "R1", raise), raised);
    // Another content under a copied id is another request.
    let other: &[u8] = br#"{"action":"raise","n":"3"}"#;
    assert_ne!(ask(&mut raw, "R1", other)["unit"], raised["unit"]);
    finished(&mut raw);
    let named = format!(r#"{{"action":"retry","unit":"{first}","again":true}}"#);
    let retried = ask(&mut raw, "R2", named.as_bytes());
    assert_eq!(retried["retries"], first.as_str());
    finished(&mut raw);
    all_told(&scene);
    // Its unit may be released meanwhile.
    let ledger = scene.ledger();
    ledger
        .execute("DELETE FROM unit WHERE id = ?1", [&first])
        .expect("delete");
    assert_eq!(ask(&mut raw, "R2", named.as_bytes()), retried);
    // A refused request can be made again.
    assert_eq!(ask(&mut raw, "R3", retry)["error"], "no run has failed");
    let units = ledger.query_row("SELECT group_concat(id) FROM unit", [], |row| row.get(0));
    let units: String = units.expect("units");
    let made = retried["unit"].as_str().expect("unit");
    assert!(units.contains(made), "{units}");
    raw.send(&publish(SEQ, ONE, Some(99), &[], false));
    raw.serve_until_acknowledged(99);
    scene.have_run(&["2", "3", "2", "1"]);
}

#[test]
fn a_request_that_comes_twice_at_once_is_done_once_and_answered_twice() {
    let scene = Scene::new();
    let _client = start(&scene);
    let mut raw = scene.online();
    let raise = br#"{"action":"raise","n":"2"}"#;
    let control = CONTROL.as_bytes();
    let mut properties = request_properties("lab/infrastructure/reply/me", b"");
    properties.extend(user_properties(&[("tael-id", "R1")]));
    // The second comes before the first is on disk.
    let both = [1, 2].map(|id| publish_with(control, raise, Some(id), &properties, false));
    raw.send(&both.concat());
    let [first, second] = [(); 2].map(|()| {
        let reply = raw.serve_until(|m| m.topic == "lab/infrastructure/reply/me");
        reply.text()
    });
    assert_eq!(first, second);
    assert!(first.contains(r#""unit":"#), "{first}");
    raw.send(&publish(SEQ, ONE, Some(3), &[], false));
    raw.serve_until_acknowledged(3);
    scene.have_run(&["2", "1"]);
}
