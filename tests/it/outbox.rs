//! Statuses that the broker refuses: for now, for good, or by ending the connection.

use std::thread::sleep;
use std::time::Duration;

use crate::common::broker::Setup;
use crate::common::raw::{Heard, Raw, packet, publish};
use crate::common::scene::{SEQ, Scene};
use crate::common::{World, has_program, wait_until};
use nix::sys::signal::Signal;

fn send_event(raw: &mut Raw, id: &str) {
    let payload = br#"{"status":"finished"}"#;
    let properties = [("tael-id", id)];
    raw.send(&publish(
        SEQ.as_bytes(),
        payload,
        Some(7),
        &properties,
        false,
    ));
}

/// Serves the client until it publishes on a topic that ends with `end`. That is not acknowledged.
#[track_caller]
fn next_on(raw: &mut Raw, end: &str) -> (Heard, [u8; 2]) {
    loop {
        let (kind, body) = raw.receive();
        if kind >> 4 == 3 {
            let (heard, id) = Heard::parse(kind, &body);
            if heard.topic.ends_with(end) {
                return (heard, id.expect("QoS 1"));
            }
        }
        raw.serve(kind, &body);
    }
}

#[test]
fn a_status_that_ends_every_connection_is_set_aside() {
    let scene = Scene::new();
    let client = scene.start(&["-t", SEQ, "-c", "true"]);
    let mut raw = scene.online();
    send_event(&mut raw, "E1");
    let mut connections = 0;
    loop {
        let (heard, id) = next_on(&mut raw, "/status");
        if heard.text().contains(r#""status":"finished""#) {
            raw.send(&packet(0x40, &id));
            break;
        }
        // Packet too large.
        raw.send(&packet(0xe0, &[0x95, 0]));
        connections += 1;
        raw = scene.broker.accept();
    }
    assert!((2..=3).contains(&connections), "{connections}");
    let log = client.log_text();
    assert!(log.contains("ends every connection"), "{log}");
    assert!(
        log.contains("/status' (") && log.contains(" bytes)"),
        "{log}"
    );
    // A status that was set aside does not come again. The next one is of the next event.
    send_event(&mut raw, "E2");
    let (next, _) = next_on(&mut raw, "/status");
    assert_eq!(next.property("tael-cause"), Some("E2"));
}

#[test]
fn a_status_that_is_refused_for_now_goes_out_again_on_the_same_connection() {
    let scene = Scene::new();
    let client = scene.start(&["-t", SEQ, "-c", "true"]);
    let mut raw = scene.online();
    send_event(&mut raw, "E1");
    let (first, id) = next_on(&mut raw, "/status");
    // Quota exceeded, with a Reason String.
    let said = [&[0x97, 10, 0x1f, 0, 7][..], b"4 a day"].concat();
    raw.send(&packet(0x40, &[&id[..], &said].concat()));
    let mut seen = Vec::new();
    loop {
        let (heard, id) = next_on(&mut raw, "/status");
        raw.send(&packet(0x40, &id));
        let again = heard.property("tael-id") == first.property("tael-id");
        seen.push(heard);
        if again {
            break;
        }
    }
    assert!(seen.len() <= 2, "{seen:?}");
    let log = client.log_text();
    assert!(log.contains("quota exceeded (0x97): '4 a day'"), "{log}");
}

#[test]
fn a_status_that_access_rules_refuse_waits_and_others_overtake_it() {
    let scene = Scene::new();
    let client = scene.start(&["-t", SEQ, "-c", "true"]);
    let mut raw = scene.online();
    send_event(&mut raw, "E1");
    let (refused, id) = next_on(&mut raw, "/status");
    let name = refused.property("tael-id").map(str::to_owned);
    // Not authorised.
    raw.send(&packet(0x40, &[&id[..], &[0x87, 0]].concat()));
    send_event(&mut raw, "E2");
    for (event, status) in [("E1", "finished"), ("E2", "started"), ("E2", "finished")] {
        let (heard, id) = next_on(&mut raw, "/status");
        assert_eq!(heard.property("tael-cause"), Some(event), "it is held up");
        assert!(heard.text().contains(&format!(r#""status":"{status}""#)));
        raw.send(&packet(0x40, &id));
    }
    // At a reload.
    client.signal(Signal::SIGHUP);
    let (again, id) = next_on(&mut raw, "/status");
    assert_eq!(again.property("tael-id").map(str::to_owned), name);
    raw.send(&packet(0x40, &[&id[..], &[0x87, 0]].concat()));
    // At a reconnect.
    drop(raw);
    let mut raw = scene.online();
    let (again, id) = next_on(&mut raw, "/status");
    assert_eq!(again.property("tael-id").map(str::to_owned), name);
    raw.send(&packet(0x40, &id));
    send_event(&mut raw, "E3");
    let (next, _) = next_on(&mut raw, "/status");
    assert_eq!(next.property("tael-cause"), Some("E3"), "it came once");
    let log = client.log_text();
    assert_eq!(log.matches("not authorised (0x87)").count(), 1, "{log}");
    let unit = scene
        .ledger()
        .query_row("SELECT id FROM unit ORDER BY seq LIMIT 1", [], |row| {
            row.get::<_, String>(0)
        });
    assert!(log.contains(&unit.expect("unit")), "{log}");
}

/// Rules that forbid the statuses of `p`, and nothing else.
const NO_STATUS: &str = "topic read #
topic write ready/#
topic write lab/seq/status
topic write lab/infrastructure/pipelines/p/presence
topic write lab/infrastructure/pipelines/p/last
";

#[test]
fn what_access_rules_refuse_is_published_when_they_are_corrected() {
    if !has_program("mosquitto", "access rules") {
        return;
    }
    let world = World::with(Setup {
        rules: Some(NO_STATUS),
        ..Setup::default()
    });
    let ears = world.ears(&["lab/#"]);
    let client = world.client("p", &["-t", SEQ, "-c", "true"]);
    world.message(SEQ, &[("status", "finished")]);
    wait_until("both are refused", || {
        let log = client.log_text();
        log.matches("/status' waits: the broker refused it").count() == 2
    });
    assert_eq!(ears.count("p", "started") + ears.count("p", "finished"), 0);
    // A client that stops does not wait for them, and the next one has them.
    client.stop();
    let client = world.client("p", &["-t", SEQ, "-c", "true"]);
    world.broker.rule("topic readwrite #\n");
    // The broker reads the rules at some time after its signal.
    wait_until("both are published", || {
        client.signal(Signal::SIGHUP);
        ears.count("p", "finished") > 0
    });
    world.message(SEQ, &[("status", "finished")]);
    wait_until("the next run has ended", || {
        ears.count("p", "finished") == 2
    });
    assert_eq!(ears.count("p", "started"), 2, "each came once");
    client.stop();
}

/// A node waits for the broker, and for nothing else, while one status is on its way and another one may go
/// out as soon as that is answered.
#[test]
fn statuses_of_a_node_that_are_refused_for_now_go_out_again() {
    let scene = Scene::new();
    let functions = scene.dir.path().join("functions");
    std::fs::write(&functions, "").expect("functions");
    let functions = functions.to_str().expect("path");
    let _node = scene.spawn(&mut scene.program("tael", &["node", "n", "--functions", functions]));
    let mut raw = scene.broker.accept();
    let (_, alive) = next_on(&mut raw, "/STATUS");
    raw.send(&packet(0x40, &alive));
    raw.send(&publish(b"lab/n/COMMAND", b"UNKNOWN", Some(7), &[], false));
    let refused = [(); 2].map(|()| next_on(&mut raw, "/STATUS"));
    for (_, id) in &refused {
        // Quota exceeded.
        raw.send(&packet(0x40, &[&id[..], &[0x97, 0]].concat()));
    }
    for (first, _) in &refused {
        let (again, id) = next_on(&mut raw, "/STATUS");
        assert_eq!(again.text(), first.text());
        // The other one may go out by now.
        sleep(Duration::from_millis(1500));
        raw.send(&packet(0x40, &id));
    }
}
