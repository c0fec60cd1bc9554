//! Questions while those who ask, those who answer, and the broker are killed: each runs once, and is
//! answered.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::common::raw::{Raw, publish_with, request_properties, user_properties};
use crate::common::{PATIENCE, Process, Setup, World, ended, ran, wait_until};

const ASK: &str = "lab/ask";
const REPLY: &str = "lab/infrastructure/replies/me/1";

fn persistent() -> World {
    World::with(Setup {
        persistent: true,
        ..Setup::default()
    })
}

/// Returns a client `w` that answers with the output of `command`.
fn answerer(world: &World, command: &str, options: &[&str]) -> Command {
    let mut client = world.command("tael-client");
    client
        .args([
            "--who", "w", "--root", "lab", "-t", ASK, "--when", "", "--reply",
        ])
        .args(options)
        .args(["-c", command])
        .env("TAEL_LOG", "info");
    client
}

/// Returns one who asks, and asks again.
fn asker(world: &World, arguments: &[&str]) -> Command {
    let mut asker = world.command("tael-message");
    asker
        .args(["-t", ASK, "--reply", "--timeout", "2s", "--retries", "1000"])
        .args(arguments)
        .env("TAEL_LOG", "off")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    asker
}

/// The client is killed at `place` with the broker, and the one who asks stays.
fn killed_at(place: &str) {
    let mut world = persistent();
    let command = r#"echo "$ATTR_N" >>"$OUT/runs"; echo "said $ATTR_N""#;
    // The session exists before the question.
    world.online("w", answerer(&world, command, &[])).stop();
    let mut dying = answerer(&world, command, &[]);
    dying.env("TAEL_FAILPOINT", place);
    let mut dying = world.online("w", dying);
    let asking = asker(&world, &["n=1"]).spawn().expect("tael message");
    assert_eq!(dying.wait(), 128 + 9, "{place} is reached");
    world.broker.kill();
    world.broker.restart();
    let client = world.online("w", answerer(&world, command, &[]));
    assert_eq!(ended(asking), (0, "said 1\n".into(), String::new()));
    let sentinel = ran(&mut asker(&world, &["n=2"]));
    assert_eq!(sentinel, (0, "said 2\n".into(), String::new()));
    assert_eq!(world.lines("runs"), ["1", "2"], "{place}");
    client.stop();
}

macro_rules! killed_at {
    ($($name:ident: $place:literal),* $(,)?) => {
        $(#[test] fn $name() { killed_at($place); })*
    };
}

killed_at! {
    both_killed_before_the_commit: "commit.before",
    both_killed_after_the_commit: "commit.after",
    both_killed_after_the_acknowledgement: "ack.after",
    both_killed_before_the_spawn: "spawn.before",
    both_killed_after_the_spawn: "spawn.after",
    both_killed_before_the_start_is_booked: "started.before",
    both_killed_before_the_outcome_is_booked: "outcome.before",
    both_killed_before_the_settlement: "settle.before",
    both_killed_after_the_settlement: "settle.after",
}

/// Asks with an id of its own. The packet identifier is `number`.
fn ask(raw: &mut Raw, number: u16, id: &str) {
    let mut properties = request_properties(REPLY, id.as_bytes());
    properties.extend(user_properties(&[("tael-id", id)]));
    let packet = publish_with(ASK.as_bytes(), b"{}", Some(number), &properties, false);
    raw.send(&packet);
}

/// Returns a new connection of one who hears the answers.
fn come_back(world: &World) -> Raw {
    let mut raw = Raw::connect(world.broker.port());
    raw.subscribe(REPLY);
    raw
}

#[test]
fn one_who_asks_and_dies_may_ask_again_with_the_same_id() {
    let world = World::new();
    let command = r#"echo "$TAEL_EVENT" >>"$OUT/runs"
until [ -e "$OUT/go-$TAEL_EVENT" ]; do sleep 0.02; done; echo "$TAEL_EVENT" >>"$OUT/ends"
echo "$TAEL_EVENT""#;
    let client = world.online("w", answerer(&world, command, &["--jobs", "2"]));
    let steps = ["sent", "accepted", "runs", "answered"];
    for (n, step) in steps.into_iter().enumerate() {
        let mut raw = come_back(&world);
        ask(&mut raw, 1, step);
        let go = || world.file(&format!("go-{step}"), "");
        if step != "sent" {
            raw.serve_until_acknowledged(1);
        }
        if ["runs", "answered"].contains(&step) {
            wait_until("it runs", || world.lines("runs").len() == n + 1);
        }
        if step == "answered" {
            go();
            raw.hear("an answer", |_| true);
        }
        drop(raw);
        let mut raw = come_back(&world);
        ask(&mut raw, 1, step);
        go();
        let answer = raw.hear("an answer", |_| true);
        assert_eq!(answer.text(), format!("{step}\n"));
        wait_until("it has ended", || world.lines("ends").len() == n + 1);
    }
    world.file("go-last", "");
    let mut raw = come_back(&world);
    ask(&mut raw, 1, "last");
    raw.hear("the last answer", |heard| heard.text() == "last\n");
    let runs = world.lines("runs");
    assert_eq!(runs, [&steps[..], &["last"]].concat());
    client.stop();
}

#[test]
fn one_who_asks_and_dies_stops_nothing() {
    let world = World::new();
    let command = r#"echo "$ATTR_N" >>"$OUT/runs"; sleep 0.3; echo "$ATTR_N" >>"$OUT/ends"
echo "$ATTR_N""#;
    let client = world.online("w", answerer(&world, command, &[]));
    let ears = world.ears(&[ASK]);
    for (n, step) in ["published", "runs", "ended"].into_iter().enumerate() {
        let asking = world.spawn(asker(&world, &[&format!("n={n}")]));
        ears.wait("the question", |m| m.payload["n"] == *n.to_string());
        let file = match step {
            "runs" => Some("runs"),
            "ended" => Some("ends"),
            _ => None,
        };
        if let Some(file) = file {
            wait_until(step, || world.lines(file).len() == n + 1);
        }
        asking.kill();
    }
    let sentinel = ran(&mut asker(&world, &["n=last"]));
    assert_eq!(sentinel, (0, "last\n".into(), String::new()));
    assert_eq!(world.lines("runs"), ["0", "1", "2", "last"]);
    client.stop();
}

// --- At random ---

/// Number of requests.
const REQUESTS: u64 = 1000;

/// Number of kills.
const KILLS: usize = 24;

/// Who is killed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Victim {
    Asker,
    Answerer,
    Broker,
}

/// Batches that ask until each request has an answer, one after another.
struct Askers {
    number: usize,
    process: Process,
}

impl Askers {
    fn new(world: &World) -> Self {
        Self {
            number: 1,
            process: Self::start(world, 1, &(1..=REQUESTS).collect()),
        }
    }

    /// Starts a batch with `requests`, whose answers go to a file with its number.
    fn start(world: &World, number: usize, requests: &BTreeSet<u64>) -> Process {
        let line = |n: &u64| format!("{{\"n\":\"{n}\"}}\n");
        let lines: String = requests.iter().map(line).collect();
        let input = world.file(&format!("requests-{number}"), lines);
        let answers = File::create(world.path(&format!("answers-{number}")));
        let mut command = asker(world, &["-l"]);
        command
            .stdin(File::open(input).expect("requests"))
            .stdout(answers.expect("answers"));
        world.spawn(command)
    }

    /// Returns the requests that have their answers, each with the id of the run that has answered.
    #[track_caller]
    fn answered(&self, world: &World) -> BTreeMap<u64, String> {
        let mut answered = BTreeMap::new();
        for number in 1..=self.number {
            let text = std::fs::read_to_string(world.path(&format!("answers-{number}")));
            let text = text.expect("answers");
            // One that is killed may leave the beginning of a line.
            let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
            for line in whole.lines() {
                let answer: Value = serde_json::from_str(line).expect(line);
                assert_eq!(answer["code"], 0, "{line}");
                let reply = answer["reply"].as_str().expect("reply").trim_end();
                let (n, id) = reply.split_once(' ').expect("number and id");
                let before = answered.insert(n.parse().expect("number"), id.to_owned());
                assert_eq!(before, None, "{line}: it is answered once");
            }
        }
        answered
    }

    /// Kills the batch, and starts another one with the requests that lack an answer.
    #[track_caller]
    fn kill(&mut self, world: &World) {
        self.process.signal(Signal::SIGKILL);
        self.process.wait();
        let answered = self.answered(world);
        let missing = (1..=REQUESTS).filter(|n| !answered.contains_key(n));
        self.number += 1;
        self.process = Self::start(world, self.number, &missing.collect());
    }
}

/// Asks all requests while `victims` are killed in turn. Returns how many batches there were.
#[track_caller]
fn thousand(victims: &[Victim]) -> (World, usize) {
    let mut world = persistent();
    let command = r#"echo "$ATTR_N $TAEL_EVENT" >>"$OUT/runs"
sleep "0.0$(od -An -N1 -tu1 /dev/urandom | tr -d ' ')"; echo "$ATTR_N $TAEL_EVENT""#;
    let options = ["--jobs", "8"];
    let mut client = world.online("w", answerer(&world, command, &options));
    let mut askers = Askers::new(&world);
    let deadline = Instant::now() + 3 * PATIENCE;
    let mut victims = victims.iter().cycle().take(KILLS);
    loop {
        assert!(
            Instant::now() < deadline,
            "{} are answered\n{}",
            askers.answered(&world).len(),
            client.log_text()
        );
        sleep(Duration::from_millis(fastrand::u64(50..600)));
        if let Some(status) = askers.process.child.try_wait().expect("wait") {
            assert_eq!(status.code(), Some(0), "{}", askers.process.log_text());
            break;
        }
        match victims.next() {
            None => {}
            Some(Victim::Asker) => askers.kill(&world),
            Some(Victim::Answerer) => {
                client.signal(Signal::SIGKILL);
                client.wait();
                client = world.spawn(answerer(&world, command, &options));
            }
            Some(Victim::Broker) => {
                world.broker.kill();
                world.broker.restart();
            }
        }
    }
    let sentinel = ran(&mut asker(&world, &["n=0"]));
    assert_eq!(sentinel.0, 0, "{}", sentinel.2);
    world.wait_report("w", "/waiting", 0);
    world.wait_report("w", "/running", Value::Array(Vec::new()));
    client.stop();
    // Each question has run once, and each run of an answer is one of those.
    let runs: Vec<String> = world.lines("runs");
    let answered = askers.answered(&world);
    let ids: BTreeSet<&str> = runs.iter().map(String::as_str).collect();
    assert_eq!(ids.len(), runs.len(), "no question has run twice");
    assert!(answered.keys().copied().eq(1..=REQUESTS));
    for (n, id) in &answered {
        assert!(ids.contains(&*format!("{n} {id}")), "{n} {id} has run");
    }
    (world, askers.number)
}

#[test]
fn a_thousand_requests_run_once_while_client_and_broker_are_killed() {
    let (world, _) = thousand(&[Victim::Answerer, Victim::Broker]);
    assert_eq!(world.lines("runs").len(), 1001);
}

#[test]
fn a_thousand_requests_are_answered_while_who_asks_is_killed_too() {
    let (world, batches) = thousand(&[Victim::Asker, Victim::Answerer, Victim::Broker]);
    // What a killed batch has asked is asked again as another question.
    let runs = world.lines("runs").len();
    assert!(
        runs <= 1001 + 64 * (batches - 1),
        "{runs} runs of {batches} batches"
    );
}
