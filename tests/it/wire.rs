//! The exact bytes of topics, payloads and properties: other clients read them.

use std::process::Command;

use crate::common::raw::{Heard, Raw, Scripted, packet, publish_with, request_properties};
use crate::common::{self, World, ran, ran_with, refuses, wait_until};
use jiff::Timestamp;
use jiff::tz::TimeZone;

const SEQ: &str = "lab/seq/status";
const ELAPSED: &str = r#""time_elapsed":"0:00:0E""#;

/// Returns the payload with fixed values for those that differ between runs: integer seconds in `ts`,
/// and the fraction of the time of a short run.
fn masked(heard: &Heard) -> String {
    let text = heard.text();
    let text = mask(&text, r#""ts":"#, "T", |c| c.is_ascii_digit());
    let fraction = |c: char| c.is_ascii_digit() || c == '.';
    mask(&text, r#""time_elapsed":"0:00:0"#, "E", fraction)
}

fn mask(text: &str, before: &str, mark: &str, replaced: impl Fn(char) -> bool) -> String {
    match text.split_once(before) {
        None => text.to_owned(),
        Some((head, tail)) => {
            let rest = tail.trim_start_matches(replaced);
            assert!(rest.len() < tail.len(), "{before} of {text}");
            format!("{head}{before}{mark}{rest}")
        }
    }
}

fn ears(world: &World, filter: &str) -> Raw {
    let mut raw = Raw::connect(world.broker.port());
    raw.subscribe(filter);
    raw
}

fn status_topic(who: &str) -> String {
    format!("lab/infrastructure/pipelines/{who}/status")
}

fn next(raw: &mut Raw) -> String {
    masked(&raw.hear("a message", |_| true))
}

#[test]
fn statuses_of_a_good_and_of_bad_ends() {
    let world = World::new();
    let ends = r#"case "$ATTR_HOW" in exit) exit 3;; kill) kill -9 $$;; term) kill $$;; esac"#;
    let pass = ["--payload-passthrough", "ATTR_HOW", "ATTR_NONE"];
    let client = world.client("ends", &[&["-t", SEQ, "-c", ends][..], &pass].concat());
    let mut raw = ears(&world, &status_topic("ends"));
    for (how, status, code) in [
        ("well", "finished", 0),
        ("exit", "failed", 3),
        ("kill", "failed", 137),
        ("term", "failed", 143),
    ] {
        world.message(SEQ, &[("status", "finished"), ("how", how)]);
        assert_eq!(
            next(&mut raw),
            format!(
                r#"{{"status":"started","announce":false,"reason":"lab/seq/status finished","ATTR_HOW":"{how}","ts":T}}"#
            )
        );
        let announce = code != 0;
        assert_eq!(
            next(&mut raw),
            format!(
                r#"{{"status":"{status}","return_code":{code},"announce":{announce},{ELAPSED},"ATTR_HOW":"{how}","ts":T}}"#
            )
        );
    }
    client.stop();
}

#[test]
fn names_to_pass_through_are_upper_cased() {
    let world = World::new();
    let cases: [(&str, &[&str], &str); 4] = [
        ("a", &["--envreq", "date"], "DATE"),
        ("b", &[], "DATE"),
        ("c", &["--envprefix", "seq"], "DATE"),
        ("d", &["--envreq", "DATE", "--envprefix", "seq"], "DATE"),
    ];
    for (who, export, key) in cases {
        let pass = ["-t", SEQ, "-c", "true", "--payload-passthrough", "date"];
        let client = world.client(who, &[&pass[..], export].concat());
        let mut raw = ears(&world, &status_topic(who));
        world.message(SEQ, &[("status", "finished"), ("date", "20260301")]);
        let started = next(&mut raw);
        let passed = format!(r#""{key}":"20260301","ts":T}}"#);
        assert!(started.ends_with(&passed), "{who}: {started}");
        client.stop();
    }
}

#[test]
fn a_falsestart_has_nulls_and_what_can_be_passed_through() {
    let world = World::new();
    let arguments = ["-t", SEQ, "-c", "true", "--envreq", "SAMPLE", "LANE"];
    let pass = ["--payload-passthrough", "SAMPLE", "LANE"];
    let client = world.client("gate", &[&arguments[..], &pass].concat());
    let mut raw = ears(&world, &status_topic("gate"));
    world.message(SEQ, &[("status", "finished"), ("sample", "S1")]);
    assert_eq!(
        next(&mut raw),
        r#"{"status":"falsestart","return_code":null,"announce":true,"time_elapsed":null,"SAMPLE":"S1","ts":T}"#
    );
    // No command was started: the next status is of the next event.
    world.message(
        SEQ,
        &[("status", "finished"), ("lane", "1"), ("sample", "S2")],
    );
    assert_eq!(
        next(&mut raw),
        r#"{"status":"started","announce":false,"reason":"lab/seq/status finished","SAMPLE":"S2","LANE":"1","ts":T}"#
    );
    client.stop();
}

#[test]
fn a_raised_run_says_so_and_the_reply_comes_where_it_is_wanted() {
    let world = World::new();
    let client = world.client("hand", &["-t", SEQ, "-c", "true"]);
    let mut statuses = ears(&world, &status_topic("hand"));
    let mut replies = ears(&world, "lab/infrastructure/replies/mine");
    let control = "lab/infrastructure/pipelines/hand/control";
    let properties = request_properties("lab/infrastructure/replies/mine", b"\x00\xff42");
    let request = br#"{"action":"raise","sample":"S1"}"#;
    let mut raw = Raw::connect(world.broker.port());
    raw.send(&publish_with(
        control.as_bytes(),
        request,
        Some(1),
        &properties,
        false,
    ));
    let reply = replies.hear("the reply", |_| true);
    assert_eq!(reply.correlation, b"\x00\xff42");
    let text = reply.text();
    assert!(text.starts_with(r#"{"ok":true,"unit":""#), "{text}");
    assert_eq!(
        next(&mut statuses),
        r#"{"status":"started","announce":false,"reason":"manually raised by control message","ts":T}"#
    );
    // A message that is no request is answered, too.
    let bad = br#"{"action":"dance"}"#;
    raw.send(&publish_with(
        control.as_bytes(),
        bad,
        Some(2),
        &properties,
        false,
    ));
    let text = replies.hear("the refusal", |_| true).text();
    assert!(
        text.starts_with(r#"{"ok":false,"error":"there is no action 'dance'"#),
        "{text}"
    );
    assert!(text.ends_with(r#","code":65}"#), "{text}");
    client.stop();
}

#[test]
fn presence_is_retained_and_the_broker_tells_a_loss() {
    let world = World::new();
    let presence = "lab/infrastructure/pipelines/here/presence";
    let retained = |state: &str| {
        let heard = ears(&world, presence).hear("presence", |m| m.retained);
        let text = heard.text();
        let host = nix::unistd::gethostname()
            .expect("host")
            .into_string()
            .expect("host");
        let start = format!(
            r#"{{"state":"{state}","who":"here","host":"{host}","version":"{}","since":"#,
            env!("CARGO_PKG_VERSION")
        );
        assert!(text.starts_with(&start), "{text}");
        let end = match state {
            // The broker publishes the will, which it has from the CONNECT.
            "lost" => "}",
            _ => {
                r#","trigger_count":1,"triggers":[{"name":"default","topics":["lab/seq/status"],"when":["status=finished"]}]}"#
            }
        };
        assert!(text.ends_with(end), "{text}");
        assert_eq!(text.contains("triggers"), state != "lost", "{text}");
    };
    let arguments = ["-t", SEQ, "-c", "true"];
    let client = world.client("here", &arguments);
    retained("online");
    client.stop();
    retained("offline");
    let client = world.client("here", &arguments);
    let mut raw = ears(&world, presence);
    client.kill();
    raw.hear("the will", |m| m.text().starts_with(r#"{"state":"lost","#));
    retained("lost");
}

#[test]
fn metadata_rides_in_user_properties() {
    let world = World::new();
    let client = world.client("meta", &["-t", SEQ, "-c", "true"]);
    let mut raw = ears(&world, "lab/#");
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let given = [
        ("tael-id", "E1"),
        ("tael-hops", "4"),
        ("traceparent", trace),
    ];
    world.publish(SEQ, r#"{"status":"finished"}"#, &given);
    let mut ids = vec!["E1".to_owned()];
    for _ in ["started", "finished"] {
        let status = raw.hear("status", |m| m.topic == status_topic("meta"));
        let property = |name| status.property(name).expect(name);
        assert_eq!(property("tael-cause"), "E1");
        assert_eq!(property("tael-who"), "meta");
        assert_eq!(property("tael-hops"), "5");
        assert_eq!(property("traceparent"), trace);
        let host = nix::unistd::gethostname().expect("host");
        assert_eq!(property("tael-host"), host.to_str().expect("host"));
        let id = property("tael-id").to_owned();
        assert!(ulid::Ulid::from_string(&id).is_ok(), "{id}");
        assert!(!ids.contains(&id), "{id} again");
        ids.push(id);
    }
    // The message of a person has an id and a host, and no pipeline.
    world.message("lab/other", &[]);
    let message = raw.hear("message", |m| m.topic == "lab/other");
    assert!(ulid::Ulid::from_string(message.property("tael-id").expect("id")).is_ok());
    assert!(message.property("tael-host").is_some());
    for absent in ["tael-who", "tael-cause", "tael-hops", "traceparent"] {
        assert_eq!(message.property(absent), None);
    }
    client.stop();
}

#[test]
fn a_client_does_not_answer_itself() {
    let world = World::new();
    // Its filter matches its own statuses, and its command publishes more of them.
    let again = format!(
        r#"echo "$ATTR_N" >>"$OUT/runs"; {} -t lab/again --attr status finished --attr n again"#,
        common::binary("tael-message").display()
    );
    let client = world.client("self", &["-t", "lab/#", "-c", &again]);
    let mut raw = ears(&world, "lab/again");
    world.message(SEQ, &[("status", "finished"), ("n", "1")]);
    let own = raw.hear("the command's message", |_| true);
    assert_eq!(own.property("tael-who"), Some("self"));
    assert_eq!(own.property("tael-hops"), Some("1"));
    let ears = world.ears(&["lab/#"]);
    world.publish(
        SEQ,
        r#"{"status":"finished","n":"forged"}"#,
        &[("tael-who", "self")],
    );
    world.message(SEQ, &[("status", "finished"), ("n", "2")]);
    ears.wait_all("the marker's end", |_| {
        (ears.count("self", "finished") >= 1).then_some(())
    });
    wait_until("both have run", || {
        world.lines("runs").contains(&"2".to_owned())
    });
    world.wait_report("self", "/units/succeeded", 2);
    assert_eq!(world.lines("runs"), ["1", "2"]);
    client.stop();
}

#[test]
fn an_event_in_a_loop_is_refused_in_silence() {
    let world = World::new();
    let client = world.client(
        "loop",
        &["-t", SEQ, "-c", r#"echo "$ATTR_N" >>"$OUT/runs""#],
    );
    let ears = world.ears(&[&status_topic("loop")]);
    for (n, hops) in [("32", "32"), ("33", "33"), ("0", "0")] {
        let payload = format!(r#"{{"status":"finished","n":"{n}"}}"#);
        world.publish(SEQ, payload, &[("tael-hops", hops)]);
    }
    ears.wait("the marker's end", |m| {
        m.status() == "finished" && m.properties["tael-hops"] == "1"
    });
    assert_eq!(world.lines("runs"), ["32", "0"]);
    // A status of it would be part of the loop as well.
    assert_eq!(ears.all().len(), 4);
    assert_eq!(world.report("loop")["events"]["refused"], 1);
    let log = client.log_text();
    assert_eq!(
        log.matches("passed through 33 pipelines").count(),
        1,
        "{log}"
    );
    client.stop();
}

#[test]
fn retained_messages_are_no_news_unless_wanted() {
    let world = World::new();
    let mut old = world.command("tael-message");
    old.args([
        "-t", SEQ, "-r", "--attr", "status", "finished", "--attr", "n", "old",
    ]);
    assert_eq!(ran(&mut old), (0, String::new(), String::new()));
    let ears = world.ears(&["lab/infrastructure/#"]);
    let run = |who: &str, more: &[&str]| {
        let command = format!(r#"echo "$ATTR_N" >>"$OUT/{who}""#);
        let client = world.client(
            who,
            &[&["-t", "lab/+/status", "-c", &command][..], more].concat(),
        );
        world.message("lab/new/status", &[("status", "finished"), ("n", "new")]);
        wait_until("the new one has run", || {
            world.lines(who).contains(&"new".to_owned())
        });
        client
    };
    run("ignores", &[]).stop();
    assert_eq!(world.lines("ignores"), ["new"]);
    run("accepts", &["--retained", "accept"]).stop();
    assert_eq!(world.lines("accepts"), ["old", "new"]);
    // The broker delivers it at every start, and it stays one event.
    let client = run("accepts", &["--retained", "accept"]);
    ears.wait_all("the third end", |_| {
        (ears.count("accepts", "finished") == 3).then_some(())
    });
    assert_eq!(world.lines("accepts"), ["old", "new", "new"]);
    client.stop();
}

fn message(world: &World, arguments: &[&str]) -> Command {
    let mut command = world.command("tael-message");
    command.args(["-t", SEQ]).args(arguments);
    command
}

#[test]
fn a_message_has_its_user_first_and_its_time_last() {
    let world = World::new();
    let user = nix::unistd::User::from_uid(nix::unistd::Uid::effective());
    let user = user.expect("user").expect("user").name;
    let mut raw = ears(&world, SEQ);
    let mut sent = |input: &str, arguments: &[&str]| {
        let done = ran_with(&mut message(&world, arguments), input.as_bytes());
        assert_eq!(done, (0, String::new(), String::new()));
        next(&mut raw)
    };
    let with = |rest: &str| format!(r#"{{"user":"{user}",{rest}"ts":T}}"#);
    assert_eq!(sent("", &[]), with(""));
    assert_eq!(
        sent("", &["--attr", "n", "1", "--attr", "status", "finished"]),
        with(r#""n":"1","status":"finished","#)
    );
    assert_eq!(
        sent("", &["--attr", "n", "1", "--attr", "user", "bob"]),
        r#"{"user":"bob","n":"1","ts":T}"#
    );
    // A whole object keeps its types and digits. Attributes win over it, and our time over both.
    assert_eq!(
        sent(
            "",
            &["-m", r#"{"ts":5,"x":1.50,"l":[null]}"#, "--attr", "l", "-1"]
        ),
        with(r#""x":1.50,"l":"-1","#)
    );
    assert_eq!(
        sent(r#" {"big":12345678901234567890123} "#, &[]),
        with(r#""big":12345678901234567890123,"#)
    );
    assert_eq!(
        sent(r#"{"a":{"b":1}}"#, &["-m", "-"]),
        with(r#""a":{"b":1},"#)
    );
    refuses(&mut message(&world, &["--attr", "ts", "1"]), 64, "'ts'");
}

#[test]
fn a_beat_has_date_status_and_time_and_nothing_else() {
    let world = World::new();
    let mut raw = ears(&world, "+/test/beacon/status");
    let utc = |format| {
        Timestamp::now()
            .to_zoned(TimeZone::UTC)
            .strftime(format)
            .to_string()
    };
    let whole = r#"{"date":"%Y%m%d","status":"finished","time":"%H%M%S"}"#;
    let mut beat = |topic: &str, before: &str| {
        let heard = raw.hear("a beat", |_| true);
        assert_eq!((heard.topic.as_str(), heard.retained), (topic, false));
        assert!(ulid::Ulid::from_string(heard.property("tael-id").expect("id")).is_ok());
        let (text, after) = (heard.text(), utc(whole));
        // They have one length, so that they sort like times.
        assert_eq!(text.len(), after.len(), "{text}");
        assert!(*before <= *text && text <= after, "{before} {text} {after}");
    };
    let before = utc(whole);
    let once = ran(world.command("tael-beacon").arg("--once"));
    assert_eq!(once, (0, String::new(), String::new()));
    beat("tael/test/beacon/status", &before);
    let mut command = world.tael(["beacon", "--interval", "200ms", "--mqtt-env", "lab"]);
    command.env("TAEL_LOG", "warn");
    let daemon = world.spawn(command);
    for _ in 0..3 {
        beat("lab/test/beacon/status", &before);
    }
    daemon.stop();
}

#[test]
fn a_message_too_large_for_the_broker_does_not_stop_the_client() {
    let dir = tempfile::tempdir().expect("tempdir");
    let broker = common::raw::Scripted::listen();
    let mut command = common::bare_command(&dir, "tael-client");
    command
        .args([
            "--who",
            "p",
            "--root",
            "lab",
            "-t",
            "lab/seq/status",
            "-c",
            "true",
        ])
        .args(["--envreq", "SAMPLE", "--payload-passthrough", "SAMPLE"])
        .args(["-H", "127.0.0.1", "-p", &broker.port().to_string()]);
    let client = common::spawn(&dir, &mut command);
    // Maximum Packet Size 1000, MQTT 5.0, section 3.2.2.3.6.
    let mut raw = broker.accept_with(&[0x27, 0, 0, 0x03, 0xe8]);
    raw.serve_until(|m| m.topic.ends_with("/presence"));
    let event = |sample: &str| format!(r#"{{"status":"finished","sample":"{sample}"}}"#);
    let mut send = |packet: u16, sample: &str| {
        let payload = event(sample);
        raw.send(&common::raw::publish(
            b"lab/seq/status",
            payload.as_bytes(),
            Some(packet),
            &[],
            false,
        ));
    };
    send(1, &"x".repeat(950));
    send(2, "S1");
    // Both are published, the first one without the attribute that makes it too large.
    let end =
        |m: &Heard| m.topic.ends_with("/status") && m.text().contains(r#""status":"finished""#);
    let first = raw.serve_until(end).text();
    assert!(
        first.contains("time_elapsed") && !first.contains("SAMPLE"),
        "{first}"
    );
    assert!(raw.serve_until(end).text().contains("S1"));
    assert!(client.log_text().contains("the broker takes 1000"));
    client.stop();
}

#[test]
fn what_a_sender_writes_cannot_forge_a_log_line() {
    let world = World::new();
    let client = world.client("p", &["-t", "lab/seq/status", "-c", "true"]);
    let (code, _, _) = common::ran(&mut world.tael([
        "control",
        "p",
        "cancel",
        "x\u{1b}]0;title\u{7}\n2026-01-01 00:00:00 error: forged",
        "--root",
        "lab",
    ]));
    assert_eq!(code, 65);
    let log = client.log_text();
    assert!(
        log.contains("there is no unit 'x\\u{1b}]0;title\\u{7}\\n2026"),
        "{log}"
    );
    assert!(
        !log.lines().any(|line| line.starts_with("2026-01-01")),
        "{log}"
    );
    client.stop();
}

/// Starts a client of a broker that the test plays.
fn client_of(dir: &tempfile::TempDir, broker: &Scripted) -> common::Process {
    let mut command = common::bare_command(dir, "tael-client");
    command.args(["--who", "p", "--root", "lab", "-t", SEQ, "-c", "true"]);
    command.args(["-H", "127.0.0.1", "-p", &broker.port().to_string()]);
    common::spawn(dir, &mut command)
}

#[test]
fn a_broker_that_does_not_answer_the_subscription_is_left() {
    let dir = tempfile::tempdir().expect("tempdir");
    let broker = Scripted::listen();
    let client = client_of(&dir, &broker);
    let mut silent = broker.accept();
    assert_eq!(silent.receive().0 >> 4, 8, "SUBSCRIBE");
    let mut next = broker.accept();
    next.serve_until(|m| m.topic.ends_with("/presence"));
    assert!(
        client
            .log_text()
            .contains("has not answered a subscription")
    );
}

#[test]
fn a_presence_that_is_refused_is_said_once() {
    let dir = tempfile::tempdir().expect("tempdir");
    let broker = Scripted::listen();
    let client = client_of(&dir, &broker);
    for _ in 0..2 {
        let mut raw = broker.accept();
        let (kind, body) = raw.receive();
        assert_eq!(kind >> 4, 8, "SUBSCRIBE");
        raw.send(&packet(0x90, &[body[0], body[1], 0, 1, 1]));
        let (kind, body) = raw.receive();
        assert_eq!(kind >> 4, 3, "PUBLISH");
        let (heard, id) = Heard::parse(kind, &body);
        assert!(heard.topic.ends_with("/presence"));
        let id = id.expect("QoS 1");
        // Not authorized (MQTT 5.0, section 3.4.2.1).
        raw.send(&packet(0x40, &[id[0], id[1], 0x87]));
        wait_until("the client says so", || {
            client.log_text().contains("not authorised")
        });
    }
    let log = client.log_text();
    assert_eq!(
        log.matches("cannot publish the presence").count(),
        1,
        "{log}"
    );
}

#[test]
fn a_request_that_wants_its_reply_where_brokers_cut_off_does_not_cost_the_connection() {
    let world = World::new();
    let client = world.client("p", &["-t", SEQ, "-c", "true"]);
    let control = "lab/infrastructure/pipelines/p/control";
    let deep = vec!["a"; 250].join("/");
    let properties = request_properties(&deep, b"1");
    let mut raw = Raw::connect(world.broker.port());
    raw.send(&publish_with(
        control.as_bytes(),
        br#"{"action":"pause"}"#,
        Some(1),
        &properties,
        false,
    ));
    assert_eq!(raw.receive().0, 0x40, "PUBACK");
    world.wait_report("p", "/paused", true);
    let log = client.log_text();
    assert_eq!(log.matches("connected to").count(), 1, "{log}");
    client.stop();
}
