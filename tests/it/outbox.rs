//! Statuses at a broker that refuses them: for now, for good, or by ending the connection.

use crate::common::raw::{Heard, Raw, Scripted, packet, publish};
use crate::common::{Process, bare_command, spawn};

fn client(dir: &tempfile::TempDir, broker: &Scripted) -> Process {
    let mut command = bare_command(dir, "tael-client");
    command.args([
        "--who",
        "p",
        "--root",
        "lab",
        "-t",
        "lab/seq/status",
        "-c",
        "true",
    ]);
    command.args(["-H", "127.0.0.1", "-p", &broker.port().to_string()]);
    spawn(dir, &mut command)
}

fn send_event(raw: &mut Raw, id: &str) {
    let payload = br#"{"status":"finished"}"#;
    raw.send(&publish(
        b"lab/seq/status",
        payload,
        Some(7),
        &[("tael-id", id)],
        false,
    ));
}

/// Serves the client until it publishes something on a topic that ends so; that is unanswered.
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
    let dir = tempfile::tempdir().expect("tempdir");
    let broker = Scripted::listen();
    let client = client(&dir, &broker);
    let mut raw = broker.accept();
    raw.serve_until(|m| m.topic.ends_with("/presence"));
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
        raw = broker.accept();
    }
    assert!((2..=3).contains(&connections), "{connections}");
    let log = client.log_text();
    assert!(log.contains("ends every connection"), "{log}");
    assert!(
        log.contains("/status' (") && log.contains(" bytes)"),
        "{log}"
    );
    // What was set aside does not come again: the next is of the next event.
    send_event(&mut raw, "E2");
    let (next, _) = next_on(&mut raw, "/status");
    assert_eq!(next.property("tael-cause"), Some("E2"));
}

#[test]
fn a_status_that_is_refused_for_now_goes_out_again_on_the_same_connection() {
    let dir = tempfile::tempdir().expect("tempdir");
    let broker = Scripted::listen();
    let client = client(&dir, &broker);
    let mut raw = broker.accept();
    raw.serve_until(|m| m.topic.ends_with("/presence"));
    send_event(&mut raw, "E1");
    let (first, id) = next_on(&mut raw, "/status");
    // Quota exceeded, with the broker's own words.
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
