//! Answers of the other side of a connection, and how our commands report them.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::common::raw::{Scripted, packet, string};
use crate::common::{Certificates, PATIENCE, bare_command, ran};

/// Returns a Reason String as a property.
fn reason(text: &str) -> Vec<u8> {
    [&[0x1f], &string(text.as_bytes())[..]].concat()
}

/// Returns `tael message` to `port`, with an hour to try again.
fn message(dir: &tempfile::TempDir, port: u16) -> Command {
    let mut command = bare_command(dir, "tael-message");
    command.args(["-t", "lab/seq/status", "--attr", "status", "finished"]);
    command.args(["-H", "127.0.0.1", "-p", &port.to_string()]);
    command.env("TAEL_MESSAGE_TIMEOUT", "1h");
    command
}

/// Asserts that `command` ends with `code` and one line of an error that contains `text`, while `serve`
/// answers.
#[track_caller]
fn ends_while(command: &mut Command, code: i32, text: &str, serve: impl FnOnce() + Send) {
    thread::scope(|scope| {
        scope.spawn(serve);
        let (got, stdout, stderr) = ran(command);
        assert_eq!((got, stdout.as_str()), (code, ""), "{stderr}");
        let errors: Vec<&str> = stderr.lines().filter(|l| l.starts_with("tael:")).collect();
        assert_eq!(errors.len(), 1, "{stderr}");
        assert!(errors[0].contains(text), "{stderr:?} lacks {text:?}");
    });
}

#[test]
fn a_code_that_is_unknown_refuses_that_message() {
    let dir = tempfile::tempdir().expect("tempdir");
    // mosquitto answers "packet too large" in a PUBACK, for its message_size_limit. The standard has
    // no such code there. 0xee is no code.
    for (qos, answer, code, text) in [
        ("1", [0x40, 0x95], 65, "packet too large (0x95)"),
        ("2", [0x50, 0x95], 65, "packet too large (0x95)"),
        ("1", [0x40, 0xee], 65, "(0xee)"),
        ("2", [0x50, 0xee], 65, "(0xee)"),
        ("1", [0x40, 0x87], 77, "not authorised"),
    ] {
        let broker = Scripted::listen();
        let mut command = message(&dir, broker.port());
        ends_while(command.args(["--qos", qos]), code, text, || {
            let mut raw = broker.accept();
            let (kind, body) = raw.receive();
            assert_eq!(kind >> 4, 3, "PUBLISH");
            let topic = usize::from(u16::from_be_bytes([body[0], body[1]]));
            let said = reason("no \u{1b}[31mroom");
            let length = u8::try_from(said.len()).expect("short");
            let start = [body[topic + 2], body[topic + 3], answer[1], length];
            raw.send(&packet(answer[0], &[&start[..], &said].concat()));
            // It is shown, with its control characters escaped.
            while !matches!(raw.receive().0 >> 4, 14) {}
        });
    }
}

#[test]
fn a_broker_that_turns_us_away_is_quoted() {
    let dir = tempfile::tempdir().expect("tempdir");
    for (answer, code, text) in [
        (0x87, 77, "not authorised"),
        (0x86, 77, "bad user name or password"),
        (0x85, 69, "--id"),
        (0x84, 69, "does not speak MQTT 5"),
        (0xee, 69, "(0xee)"),
    ] {
        let broker = Scripted::listen();
        let mut command = message(&dir, broker.port());
        ends_while(&mut command, code, text, || {
            broker.answer_with(answer, &reason("tenant \u{7} closed"));
        });
        let broker = Scripted::listen();
        let mut command = message(&dir, broker.port());
        ends_while(&mut command, code, r"tenant \u{7} closed", || {
            broker.answer_with(answer, &reason("tenant \u{7} closed"));
        });
    }
}

#[test]
fn a_broker_that_sends_us_elsewhere_says_where() {
    let dir = tempfile::tempdir().expect("tempdir");
    let broker = Scripted::listen();
    let reference = [&[0x1c], &string(b"b2.example:1883")[..]].concat();
    ends_while(
        &mut message(&dir, broker.port()),
        69,
        "'b2.example:1883'",
        || {
            broker.answer_with(0x9d, &reference);
        },
    );
}

#[test]
fn retained_messages_that_the_broker_does_not_keep_are_refused_at_once() {
    let dir = tempfile::tempdir().expect("tempdir");
    let broker = Scripted::listen();
    let mut command = message(&dir, broker.port());
    ends_while(command.arg("-r"), 65, "keeps no retained messages", || {
        // Retain Available 0 (MQTT 5.0, section 3.2.2.3.5).
        let mut raw = broker.accept_with(&[0x25, 0]);
        assert_eq!(raw.receive().0 >> 4, 14, "nothing but a DISCONNECT");
    });
}

/// Listens, answers the first bytes with `greeting`, and closes the connection.
fn stranger(listener: &TcpListener, greeting: &[u8]) {
    let (mut stream, _) = listener.accept().expect("accept");
    stream.set_read_timeout(Some(PATIENCE)).expect("timeout");
    let mut some = [0; 16];
    let _ = stream.read(&mut some);
    let _ = stream.write_all(greeting);
    let mut rest = Vec::new();
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let _ = stream.read_to_end(&mut rest);
}

#[test]
fn what_speaks_no_mqtt_5_is_called_by_its_name() {
    let dir = tempfile::tempdir().expect("tempdir");
    let begin = Instant::now();
    for (greeting, text) in [
        // CONNACK of MQTT 3.1.1, code 1: unacceptable protocol version.
        (&b"\x20\x02\x00\x01"[..], "does not speak MQTT 5"),
        (b"\x15\x03\x03\x00\x02\x02\x46", "the port speaks TLS"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "WebSocket"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "an SSH server"),
        (b"220 mail.example ESMTP\r\n", "'220 mail.example ESMTP'"),
    ] {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("listen");
        let port = listener.local_addr().expect("address").port();
        ends_while(&mut message(&dir, port), 69, text, || {
            stranger(&listener, greeting)
        });
        // A daemon that has never been online ends, too.
        let mut daemon = bare_command(&dir, "tael-beacon");
        daemon.args(["-H", "127.0.0.1", "-p", &port.to_string()]);
        ends_while(&mut daemon, 69, text, || stranger(&listener, greeting));
    }
    assert!(begin.elapsed() < PATIENCE, "none was tried again");
}

#[test]
fn plain_text_where_tls_was_wanted_is_told() {
    let dir = tempfile::tempdir().expect("tempdir");
    let certificates = Certificates::make(dir.path());
    let broker = TcpListener::bind(("127.0.0.1", 0)).expect("listen");
    let port = broker.local_addr().expect("address").port();
    let mut command = message(&dir, port);
    command.args(["--cafile", &certificates.path("ca.pem")]);
    // A broker takes the first bytes of TLS for a broken CONNECT, and answers in MQTT.
    let text = "does not speak TLS on this port: use mqtt://";
    ends_while(&mut command, 69, text, || {
        stranger(&broker, &[0xe0, 1, 0x81])
    });
}

#[test]
fn one_that_closes_without_a_word_is_asked_about() {
    closes_without_a_word(&[], true, "without an answer to CONNECT");
}

#[test]
fn one_that_resets_the_connection_is_asked_about() {
    closes_without_a_word(&[], false, "without an answer to CONNECT");
    let tls = [("TAEL_TLS_SERVER_NAME", "localhost")];
    closes_without_a_word(&tls, true, "does that port speak TLS?");
    closes_without_a_word(&tls, false, "does that port speak TLS?");
}

/// A server that closes each connection. One that `reads` before does not reset the connection.
fn closes_without_a_word(environment: &[(&str, &str)], reads: bool, want: &str) {
    let dir = tempfile::tempdir().expect("tempdir");
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("listen");
    let port = listener.local_addr().expect("address").port();
    listener.set_nonblocking(true).expect("nonblocking");
    let mut command = message(&dir, port);
    command.env("TAEL_MESSAGE_TIMEOUT", "1s");
    command.envs(environment.iter().copied());
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                let Ok((mut stream, _)) = listener.accept() else {
                    thread::sleep(Duration::from_millis(1));
                    continue;
                };
                // Closing a connection with unread bytes resets it.
                stream.set_nonblocking(false).expect("blocking");
                if reads {
                    let _ = stream.read(&mut [0; 4096]);
                } else {
                    // More bytes than one are unread.
                    let _ = stream.read(&mut [0; 1]);
                }
            }
        });
        let (code, _, stderr) = ran(&mut command);
        over.store(true, Ordering::Relaxed);
        // A reset may pass: it tries again until its timeout, and reports the last cause.
        assert_eq!(code, 69, "{stderr}");
        assert!(stderr.contains(want), "{stderr}");
        assert!(!stderr.contains("is the broker running"), "{stderr}");
    });
}
