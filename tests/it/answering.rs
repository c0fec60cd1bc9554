//! Triggers that answer those who ask: the output of a run goes to a Response Topic.

use std::time::Duration;

use crate::common::raw::{Heard, Raw, publish_with, request_properties, user_properties};
use crate::common::{Process, Setup, World, json_of, succeeds, wait_until};

const ASK: &str = "lab/ask";
const REPLIES: &str = "lab/infrastructure/replies";

/// One who asks.
struct Asker {
    raw: Raw,
    asked: u16,
}

impl Asker {
    fn new(world: &World) -> Self {
        let mut raw = Raw::connect(world.broker.port());
        raw.subscribe(&format!("{REPLIES}/#"));
        Self { raw, asked: 0 }
    }

    /// Asks, with `name` as Correlation Data, as id and as the end of the Response Topic.
    fn ask(&mut self, name: &str, payload: &str) {
        self.ask_for(name, payload, &format!("{REPLIES}/me/{name}"), None);
    }

    /// Asks, with an answer on `topic`; the question expires after so many seconds.
    fn ask_for(&mut self, name: &str, payload: &str, topic: &str, expiry: Option<u32>) {
        self.asked += 1;
        let mut properties = request_properties(topic, name.as_bytes());
        properties.extend(user_properties(&[("tael-id", name)]));
        if let Some(expiry) = expiry {
            properties.push(0x02);
            properties.extend(expiry.to_be_bytes());
        }
        let packet = publish_with(
            ASK.as_bytes(),
            payload.as_bytes(),
            Some(self.asked),
            &properties,
            false,
        );
        self.raw.send(&packet);
    }

    /// Returns the next answer, which must be that to `name`.
    #[track_caller]
    fn answer(&mut self, name: &str) -> Heard {
        let heard = self.raw.hear("an answer", |_| true);
        assert_eq!(heard.topic, format!("{REPLIES}/me/{name}"), "{heard:?}");
        assert_eq!(heard.correlation, name.as_bytes(), "{heard:?}");
        heard
    }
}

/// Starts a client that answers.
fn answerer(world: &World, arguments: &[&str]) -> Process {
    let mut command = world.command("tael-client");
    command
        .args([
            "--who", "w", "--root", "lab", "-t", ASK, "--when", "", "--reply",
        ])
        .args(arguments)
        .env("OUT", world.dir.path());
    world.online("w", command)
}

/// Returns code and error of an answer.
fn end(heard: &Heard) -> (&str, Option<&str>) {
    let code = heard.property("tael-code").expect("code");
    (code, heard.property("tael-error"))
}

#[test]
fn an_answer_is_the_output_with_the_code_of_the_run() {
    let world = World::new();
    let command =
        r#"echo "$ATTR_A"; echo x >> "$OUT/runs"; echo "why $ATTR_A" >&2; exit "$ATTR_CODE""#;
    let client = answerer(&world, &["-c", command]);
    let mut asker = Asker::new(&world);
    asker.ask("1", r#"{"a":"one","code":"0"}"#);
    let good = asker.answer("1");
    assert_eq!((&*good.payload, end(&good)), (&b"one\n"[..], ("0", None)));
    assert_eq!(good.property("tael-cause"), Some("1"));
    assert_eq!(good.property("tael-who"), Some("w"));
    assert!(!good.retained && good.property("tael-truncated").is_none());
    asker.ask("2", r#"{"a":"two","code":"3"}"#);
    let bad = asker.answer("2");
    assert_eq!(
        (&*bad.payload, end(&bad)),
        (&b"two\n"[..], ("3", Some("why two")))
    );
    // The same question is answered again, and not run.
    asker.ask("2", r#"{"a":"two","code":"3"}"#);
    let again = asker.answer("2");
    assert_eq!(
        (&again.payload, again.property("tael-code")),
        (&bad.payload, Some("3"))
    );
    // Both name the unit, and others another one.
    let unit = bad.property("tael-unit");
    assert!(unit.is_some_and(|unit| unit.len() == 26), "{bad:?}");
    assert_eq!(unit, again.property("tael-unit"));
    assert_ne!(unit, good.property("tael-unit"));
    asker.ask("3", "not json");
    let refused = asker.answer("3");
    assert_eq!(refused.property("tael-unit"), None);
    let (code, error) = end(&refused);
    assert!(
        code == "65" && error.is_some_and(|e| e.contains("not JSON")),
        "{refused:?}"
    );
    asker.ask("4", r#"{"a":"end","code":"0"}"#);
    asker.answer("4");
    assert_eq!(world.lines("runs").len(), 3);
    client.stop();
}

#[test]
fn an_answer_goes_only_where_answers_go() {
    let world = World::new();
    let client = answerer(&world, &["-c", r#"echo said; echo x >> "$OUT/runs""#]);
    let ears = world.ears(&["lab/#", "other/#"]);
    let mut asker = Asker::new(&world);
    for (n, topic) in [
        "lab/infrastructure/pipelines/q/status",
        "lab/infrastructure/x",
        "lab/seq/status",
        "other/replies/1",
        "lab/infrastructure/replies/+",
    ]
    .into_iter()
    .enumerate()
    {
        // A broker may refuse a wrong topic.
        if !topic.contains('+') {
            asker.ask_for(&format!("no-{n}"), "{}", topic, None);
        }
    }
    asker.ask("last", "{}");
    asker.answer("last");
    assert_eq!(world.lines("runs").len(), 5, "they are plain events");
    let said = |m: &crate::common::Message| m.payload == "said\n" || m.payload == "said";
    let topics: Vec<String> = ears
        .all()
        .into_iter()
        .filter(said)
        .map(|m| m.topic)
        .collect();
    assert!(
        topics.iter().all(|topic| topic.ends_with("/last")),
        "{topics:?}"
    );
    client.stop();
    let own = answerer(&world, &["--reply-to", "other/#", "-c", "echo said"]);
    let mut raw = Raw::connect(world.broker.port());
    raw.subscribe("other/#");
    asker.ask_for("own", "{}", "other/replies/1", None);
    let heard = raw.hear("an answer", |_| true);
    assert_eq!(heard.payload, b"said\n");
    own.stop();
}

#[test]
fn a_long_answer_is_its_beginning_and_says_so() {
    let world = World::new();
    let options = ["--max-reply", "1K", "-c", "head -c 3000 /dev/zero"];
    let client = answerer(&world, &options);
    let mut asker = Asker::new(&world);
    asker.ask("1", "{}");
    let answer = asker.answer("1");
    assert_eq!(answer.payload, vec![0; 1024]);
    assert_eq!(answer.property("tael-truncated"), Some("3000"));
    client.stop();
}

#[test]
fn what_does_not_run_is_answered_too() {
    let world = World::new();
    let command =
        r#"echo x >> "$OUT/runs"; until [ -e "$OUT/go" ]; do sleep 0.02; done; echo done"#;
    let client = answerer(&world, &["--timeout", "1h", "-c", command]);
    let mut asker = Asker::new(&world);
    asker.ask("runs", "{}");
    wait_until("a run", || world.lines("runs").len() == 1);
    for name in ["waits", "expires", "later"] {
        let expiry = (name == "expires").then_some(2);
        let topic = format!("{REPLIES}/me/{name}");
        asker.ask_for(name, "{}", &topic, expiry);
    }
    world.wait_report("w", "/waiting", 3);
    let list =
        json_of(&mut world.tael(["work", "--who", "w", "list", "--json", "--state", "pending"]));
    let units = list.as_array().expect("list");
    let waits = units.iter().find(|unit| unit["event"] == "waits");
    let waits = waits.and_then(|unit| unit["unit"].as_str()).expect("unit");
    succeeds(&mut world.tael(["work", "--who", "w", "cancel", waits]));
    let canceled = asker.answer("waits");
    assert_eq!(end(&canceled).0, "75", "{canceled:?}");
    // The next one has given up when its turn comes.
    std::thread::sleep(Duration::from_secs(3));
    world.file("go", "");
    assert_eq!(asker.answer("runs").payload, b"done\n");
    let expired = asker.answer("expires");
    let error = end(&expired).1.expect("error");
    assert!(error.contains("waits no longer"), "{error}");
    assert_eq!(asker.answer("later").payload, b"done\n");
    assert_eq!(world.lines("runs").len(), 2);
    client.stop();
}

#[test]
fn a_retry_is_answered_at_its_last_end_only() {
    let world = World::new();
    let command = r#"echo x >> "$OUT/runs"; echo "$TAEL_ATTEMPT"; [ "$TAEL_ATTEMPT" = 3 ]"#;
    let options = ["--retries", "5", "--retry-delay", "0s", "-c", command];
    let client = answerer(&world, &options);
    let mut asker = Asker::new(&world);
    asker.ask("1", "{}");
    let answer = asker.answer("1");
    assert_eq!((&*answer.payload, end(&answer)), (&b"3\n"[..], ("0", None)));
    asker.ask("1", "{}");
    assert_eq!(asker.answer("1").payload, b"3\n");
    assert_eq!(world.lines("runs").len(), 3);
    client.stop();
}

/// At each step of the way: the client is killed, and its successor answers.
#[test]
fn an_accepted_request_is_answered_once_over_kills() {
    for place in [
        "commit.after",
        "ack.after",
        "spawn.before",
        "spawn.after",
        "settle.before",
        "settle.after",
        "publish.before",
    ] {
        let world = World::new();
        let command = |world: &World| {
            let mut command = world.command("tael-client");
            command
                .args([
                    "--who", "w", "--root", "lab", "-t", ASK, "--when", "", "--reply",
                ])
                .args(["-c", r#"echo x >> "$OUT/runs"; echo said"#])
                .env("OUT", world.dir.path());
            command
        };
        let mut failing = command(&world);
        failing.env("TAEL_FAILPOINT", place);
        // The presence alone passes the points that every publish passes.
        let mut client = match place {
            "publish.before" => world.online("w", command(&world)),
            _ => world.online("w", failing),
        };
        let mut asker = Asker::new(&world);
        asker.ask("1", "{}");
        match place {
            "publish.before" => client.kill(),
            _ => {
                client.wait();
            }
        }
        let client = world.online("w", command(&world));
        assert_eq!(asker.answer("1").payload, b"said\n", "{place}");
        asker.ask("2", "{}");
        assert_eq!(asker.answer("2").payload, b"said\n", "{place}: once");
        assert_eq!(world.lines("runs").len(), 2, "{place}");
        client.stop();
    }
}

#[test]
fn answers_that_find_no_room_wait_without_their_output() {
    const QUESTIONS: usize = 6;
    let mut world = World::with(Setup {
        persistent: true,
        ..Setup::default()
    });
    let command = r#"echo x >> "$OUT/runs"; until [ -e "$OUT/go" ]; do sleep 0.02; done
        head -c 2000 /dev/zero"#;
    let mut client = world.command("tael-client");
    client
        .args(["--who", "w", "--root", "lab", "-t", ASK, "--when", ""])
        .args(["--reply", "--jobs", "6", "-c", command])
        .env("TAEL_TEST_MAX_OUTBOX", "8000");
    let client = world.online("w", client);
    let mut asker = Asker::new(&world);
    for n in 0..QUESTIONS {
        asker.ask(&format!("{n}"), "{}");
    }
    wait_until("the runs", || world.lines("runs").len() == QUESTIONS);
    world.broker.kill();
    world.file("go", "");
    let ledger = world.home("w").join("ledger.db");
    let ledger = rusqlite::Connection::open(ledger).expect("ledger");
    let answers = || -> Vec<(usize, String)> {
        let sql = "SELECT length(payload), properties FROM outbox WHERE topic LIKE ?1";
        let mut query = ledger.prepare(sql).expect("SQL");
        let rows = query.query_map([format!("{REPLIES}/%")], |row| {
            Ok((row.get::<_, i64>(0)?.cast_unsigned() as usize, row.get(1)?))
        });
        rows.expect("rows").map(|row| row.expect("row")).collect()
    };
    wait_until("all ends", || answers().len() == QUESTIONS);
    let (whole, short): (Vec<_>, Vec<_>) = answers().into_iter().partition(|(size, _)| *size > 0);
    assert!((1..=4).contains(&whole.len()), "{whole:?}");
    for (_, properties) in &short {
        assert!(properties.contains("tael-truncated") && properties.contains("2000"));
    }
    drop(ledger);
    world.broker.restart();
    world.wait_report("w", "/outbox", 0);
    client.stop();
}
