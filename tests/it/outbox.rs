//! Statuses that the broker refuses: for now, for good, or by ending the connection.

use crate::common::raw::{Heard, Raw, packet, publish};
use crate::common::scene::{SEQ, Scene};

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
