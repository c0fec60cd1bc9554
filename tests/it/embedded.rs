//! What strangers can do to the embedded broker. All of it is about `tael broker`, so that nothing
//! here runs against another one.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::common::raw::{Raw, connect_packet, packet, publish, publish_with};
use crate::common::{
    self, Certificates, PATIENCE, Process, bare_command, ran, refuses, spawn, wait_until,
};

/// An embedded broker, and its port.
fn broker(dir: &tempfile::TempDir, arguments: &[&str]) -> (Process, u16) {
    started(
        dir,
        bare_command(dir, "tael").args(["broker"]).args(arguments),
    )
}

fn started(dir: &tempfile::TempDir, command: &mut Command) -> (Process, u16) {
    command
        .args(["--print-url", "--listen", "127.0.0.1:0"])
        .env("TAEL_CONFIG", "/dev/null")
        .stdout(Stdio::piped());
    let mut broker = spawn(dir, command);
    let mut url = String::new();
    let stdout = broker.child.stdout.take().expect("stdout");
    BufReader::new(stdout).read_line(&mut url).expect("url");
    let port = url.trim().rsplit_once(':').expect("port").1;
    let port = port.parse().expect("number");
    (broker, port)
}

fn users(dir: &tempfile::TempDir) -> String {
    let users = dir.path().join("users");
    fs::write(&users, "ann:secret\n").expect("users");
    users.to_str().expect("path").to_owned()
}

fn message(dir: &tempfile::TempDir, port: u16) -> Command {
    let mut command = bare_command(dir, "tael-message");
    command
        .args(["-t", "lab/t", "-H", "127.0.0.1", "-p", &port.to_string()])
        .args(["-u", "ann"])
        .env("TAEL_PASSWORD", "secret");
    command
}

/// Returns the reason code of the CONNACK for a user name and password, and the time that it took.
fn guess(port: u16, user: &str, password: &str) -> (u8, Duration) {
    let begun = Instant::now();
    let stream = TcpStream::connect(("127.0.0.1", port)).expect("connect");
    let mut raw = Raw::over(stream);
    raw.send(&connect_packet(user, password));
    let (kind, body) = raw.receive();
    assert_eq!(kind, 0x20, "CONNACK");
    (body[1], begun.elapsed())
}

#[test]
fn guessers_do_not_keep_others_out() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (broker, port) = broker(&dir, &["--users", &users(&dir)]);
    let guesser = |n: usize| {
        thread::spawn(move || {
            let user = if n.is_multiple_of(2) { "ann" } else { "eve" };
            guess(port, user, "wrong")
        })
    };
    let guessers: Vec<_> = (0..40).map(guesser).collect();
    // A client with the right password is accepted while the others wait for their answers.
    let (code, took) = guess(port, "ann", "secret");
    assert_eq!(code, 0);
    let mut fastest = PATIENCE;
    for guesser in guessers {
        let (code, waited) = guesser.join().expect("guesser");
        assert_eq!(code, 0x86, "bad user name or password");
        fastest = fastest.min(waited);
    }
    // The answers for known and unknown names are delayed. That for the right password was not.
    assert!(fastest >= Duration::from_secs(1), "{fastest:?}");
    assert!(took < fastest, "{took:?}, the guessers {fastest:?}");
    assert!(broker.log_text().contains("wrong user names or passwords"));
    let (code, _, stderr) = ran(&mut message(&dir, port));
    assert_eq!(code, 0, "{stderr}");
    broker.stop();
}

/// Returns the CONNECT of `user` with client identifier `id`, Clean Start, and a session that lasts.
fn lasting(id: &str, user: &str, password: &str) -> Vec<u8> {
    let field = |text: &str| {
        [
            &[0, u8::try_from(text.len()).expect("short")],
            text.as_bytes(),
        ]
        .concat()
    };
    let head = [
        0, 4, b'M', b'Q', b'T', b'T', 5, 0xc2, 0, 60, 5, 0x11, 0, 0, 1, 0,
    ];
    let body = [&head[..], &field(id), &field(user), &field(password)].concat();
    packet(0x10, &body)
}

#[test]
fn a_session_belongs_to_its_user() {
    let dir = tempfile::tempdir().expect("tempdir");
    let file = dir.path().join("two-users");
    fs::write(&file, "ann:secret\nbob:other\n").expect("users");
    let (broker, port) = broker(&dir, &["--users", file.to_str().expect("path")]);
    let connect = |id: &str, user: &str, password: &str| {
        let stream = TcpStream::connect(("127.0.0.1", port)).expect("connect");
        let mut raw = Raw::over(stream);
        raw.send(&lasting(id, user, password));
        let (kind, body) = raw.receive();
        assert_eq!(kind, 0x20, "CONNACK");
        (body[1], raw)
    };
    let (code, mut ann) = connect("worker", "ann", "secret");
    assert_eq!(code, 0);
    assert_eq!(
        connect("worker", "bob", "other").0,
        0x87,
        "she is connected"
    );
    ann.send(&[0xc0, 0]);
    assert_eq!(ann.receive().0, 0xd0, "PINGRESP");
    drop(ann);
    assert_eq!(
        connect("worker", "bob", "other").0,
        0x87,
        "her session lasts"
    );
    assert_eq!(connect("worker", "ann", "secret").0, 0);
    // The ends of a pair share an identifier, and may be of different users.
    let shared = format!("tael-pair-{}", "0f".repeat(10));
    assert_eq!(connect(&shared, "ann", "secret").0, 0);
    assert_eq!(connect(&shared, "bob", "other").0, 0);
    broker.stop();
}

/// Returns the processor time of `process` so far, in ticks of 10 ms.
fn ticks(process: &Process) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", process.pid())).expect("stat");
    let rest = stat.rsplit_once(") ").expect("name").1;
    let field = |n: usize| rest.split(' ').nth(n).expect("field").parse::<u64>();
    field(11).expect("utime") + field(12).expect("stime")
}

#[test]
fn a_broker_that_is_full_does_not_spin_and_serves_those_it_has() {
    let dir = tempfile::tempdir().expect("tempdir");
    let tael = common::binary("tael");
    let script = format!("ulimit -n 64; exec {} broker \"$@\"", tael.display());
    let mut command = Command::new("sh");
    command.args(["-c", &script, "sh"]);
    command.env("TAEL_LOG_TARGET", "stderr");
    let (broker, port) = started(&dir, &mut command);
    let mut known = Raw::connect(port);
    // These send nothing, and connections beyond the limit are closed.
    let open = |_| TcpStream::connect(("127.0.0.1", port)).expect("connect");
    let crowd: Vec<TcpStream> = (0..200).map(open).collect();
    wait_until("the broker says that it is full", || {
        broker.log_text().contains("too many clients")
    });
    let before = ticks(&broker);
    let begun = Instant::now();
    let mut served = 0;
    while begun.elapsed() < Duration::from_secs(1) {
        known.publish("lab/t", b"{}", &[]);
        served += 1;
        thread::sleep(Duration::from_millis(20));
    }
    let used = ticks(&broker) - before;
    assert!(served > 10, "{served}");
    assert!(used < 50, "{used} hundredths of a second in one");
    drop(crowd);
    wait_until("there is room again", || {
        let stream = TcpStream::connect(("127.0.0.1", port)).expect("connect");
        stream.set_read_timeout(Some(PATIENCE)).expect("timeout");
        let mut stream = stream;
        let answer = stream
            .write_all(&connect_packet("", ""))
            .and_then(|()| stream.read_exact(&mut [0; 4]));
        answer.is_ok()
    });
    broker.stop();
}

#[test]
fn a_client_that_does_not_finish_its_handshake_keeps_nobody_out() {
    let dir = tempfile::tempdir().expect("tempdir");
    let certificates = Certificates::make(dir.path());
    let path = |name: &str| certificates.path(name);
    let (cert, key) = (path("server.pem"), path("server.key"));
    let (broker, port) = broker(&dir, &["--cert", &cert, "--key", &key]);
    // It sends neither TLS nor anything else.
    let silent = TcpStream::connect(("127.0.0.1", port)).expect("connect");
    let mut command = bare_command(&dir, "tael-message");
    command
        .args(["-t", "lab/t", "-H", "localhost", "-p", &port.to_string()])
        .args(["--cafile", &path("ca.pem"), "--timeout", "8s"]);
    let (code, _, stderr) = ran(&mut command);
    assert_eq!(code, 0, "{stderr}");
    drop(silent);
    broker.stop();
}

#[test]
fn retained_messages_full_of_properties_do_not_fill_the_memory_of_the_broker() {
    let dir = tempfile::tempdir().expect("tempdir");
    let data = dir.path().join("data");
    let data = data.to_str().expect("path");
    for arguments in [&[][..], &["--data", data]] {
        let (broker, port) = broker(&dir, arguments);
        let mut raw = Raw::connect(port);
        let pair = [0x26, 0, 1, b'a', 0, 1, b'b'];
        let properties = pair.repeat(2 * 1024 * 1024 / pair.len());
        for n in 0..6 {
            let topic = format!("lab/{n}");
            let mut packet = publish_with(topic.as_bytes(), b"{}", Some(1), &properties, false);
            packet[0] |= 1;
            raw.send(&packet);
            assert_eq!(raw.receive().0, 0x40, "PUBACK");
        }
        let mut small = publish(b"lab/small", b"{}", Some(1), &[("a", "b")], false);
        small[0] |= 1;
        raw.send(&small);
        assert_eq!(raw.receive().0, 0x40, "PUBACK");
        // A small message is still retained.
        let mut other = Raw::connect(port);
        other.subscribe("lab/+");
        let heard = other.hear("a retained message", |m| m.retained);
        assert_eq!(heard.topic, "lab/small");
        let peak = common::peak_memory(&broker);
        assert!(peak < 400 << 20, "{} MB", peak >> 20);
        assert!(broker.log_text().contains("is not retained"));
        broker.stop();
    }
}

#[test]
fn a_packet_larger_than_the_broker_takes_is_refused() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (broker, port) = broker(&dir, &["--max-packet", "100000"]);
    let large = "x".repeat(120_000);
    let mut command = message(&dir, port);
    command.args(["--attr", "a", &large]);
    refuses(&mut command, 65, "100000");
    let (code, _, stderr) = ran(&mut message(&dir, port));
    assert_eq!(code, 0, "{stderr}");
    broker.stop();
    let mut wrong = bare_command(&dir, "tael");
    refuses(
        wrong.args(["broker", "--max-packet", "5"]),
        64,
        "--max-packet",
    );
}

/// docs/broker.md says so.
#[test]
fn it_does_not_say_that_no_client_subscribes() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (broker, port) = broker(&dir, &[]);
    let mut message = bare_command(&dir, "tael-message");
    message.args(["-t", "lab/t", "-H", "127.0.0.1", "-p", &port.to_string()]);
    let (code, _, stderr) = ran(message.arg("--need-listener"));
    assert_eq!((code, stderr.as_str()), (0, ""));
    broker.stop();
}

#[test]
fn a_retained_message_expires_after_a_restart_too() {
    let dir = tempfile::tempdir().expect("folder");
    let data = dir.path().join("data").to_str().expect("path").to_owned();
    let (old, port) = broker(&dir, &["--data", &data]);
    let mut raw = Raw::connect(port);
    let expiry = |seconds: u32| [&[0x02][..], &seconds.to_be_bytes()].concat();
    // The second is too far away for this test, the third does not expire.
    for (topic, properties) in [
        ("kept/1", expiry(2)),
        ("kept/2", expiry(3600)),
        ("kept/3", Vec::new()),
    ] {
        let mut message = publish_with(topic.as_bytes(), b"x", Some(1), &properties, false);
        message[0] |= 1;
        raw.send(&message);
        assert_eq!(raw.receive().0, 0x40);
    }
    old.kill();
    let (_broker, port) = broker(&dir, &["--data", &data]);
    let retained = || {
        let mut raw = Raw::connect(port);
        raw.subscribe("kept/#");
        // The fence comes after the retained messages.
        raw.send(&publish(b"kept/fence", b"", None, &[], false));
        let mut all = Vec::new();
        loop {
            let heard = raw.hear("a message", |_| true);
            if heard.topic == "kept/fence" {
                return all;
            }
            all.push((heard.topic.clone(), heard.expiry));
        }
    };
    wait_until("the first is forgotten", || {
        !retained().iter().any(|(topic, _)| topic == "kept/1")
    });
    let mut all = retained();
    all.sort();
    let [(second, left), (third, none)] = &all[..] else {
        panic!("{all:?}");
    };
    assert_eq!((second.as_str(), third.as_str()), ("kept/2", "kept/3"));
    // The time before the restart counts.
    assert!(left.is_some_and(|left| left < 3600), "{left:?}");
    assert_eq!(*none, None);
}
