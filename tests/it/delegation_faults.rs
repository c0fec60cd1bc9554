//! Work that a client gives to another node, when something dies, is cut off, or lies.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, Write};
use std::net::Shutdown;
use std::process::Command;

use bytes::Bytes;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tael::model::remote::wire::{self, Answer, Done, End, Request, State, StreamName};

use crate::common::broker::{Setup, is_mosquitto};
use crate::common::nodes::{
    NODE, Session, TYPES, ask, connect, connect_to, new_id, node, node_command, node_with, noise,
    random, results, sha256_of, started, status, submission, submit, submitter, submitter_command,
    wait,
};
use crate::common::proxy::Proxy;
use crate::common::raw::{Raw, packet, publish, subscribe_filters};
use crate::common::scene::Scene;
use crate::common::{Process, World, peak_memory, ran, wait_until};
use crate::faults::{Tmpfs, can_run};

/// A work type whose units write when there is a file.
const LATE: &str = r#"
[[work]]
type = "late"
command = "sh -c 'echo run >>$OUT/runs; until [ -e $OUT/go ]; do sleep 0.02; done; cat $OUT/noise'"
max-output = 0
jobs = 8
"#;

/// Starts the submitter with these variables in its environment.
fn submitter_with(world: &World, variables: &[(&str, &str)]) -> Process {
    let mut command = submitter_command(world);
    command.envs(variables.iter().copied());
    world.online("desk", command)
}

/// Submits work as the unit `id`. The submitter may die meanwhile.
fn try_submit(world: &World, id: &str, kind: &str, payload: &[u8]) -> Option<Value> {
    let request = submission("node7", &json!({"worktype": kind, "workUnitID": id}));
    let mut session = connect(world);
    writeln!(session.stream(), "{request}").ok()?;
    let mut asked = String::new();
    session.0.read_line(&mut asked).ok()?;
    session.stream().write_all(payload).ok()?;
    session.stream().shutdown(Shutdown::Write).ok()?;
    let mut answer = String::new();
    session.0.read_line(&mut answer).ok()?;
    serde_json::from_str(&answer).ok()
}

/// Asserts that a later unit runs, and that this many have run with it.
#[track_caller]
fn have_run(world: &World, runs: usize) {
    let last = started(world, "cat", b"sentinel");
    wait(world, &last, "Succeeded");
    assert_eq!(world.lines("runs").len(), runs + 1);
}

// --- Kills ---

#[test]
fn a_submitter_that_is_killed_at_any_step_gets_the_whole_output_once() {
    let payload = noise(200_000);
    for step in [
        "payload.after",
        "commit.before",
        "commit.after",
        "delegate.before",
        "offer.before",
        "offer.after",
        "piece.after",
        "accepted.before",
        "results.before",
        "results.after",
        "started.before",
        "wrote.after",
        "check.before",
        "check.after",
        "outcome.before",
        "settle.before",
        "settle.after",
        "thanks.before",
    ] {
        let world = World::new();
        let node = node(&world);
        let mut desk = submitter_with(&world, &[("TAEL_FAILPOINT", step)]);
        let unit = new_id();
        try_submit(&world, &unit, "cat", &payload);
        assert_eq!(desk.wait(), 128 + 9, "{step}: {}", desk.log_text());
        let desk = submitter(&world);
        // Who got no answer submits it again.
        let answer = try_submit(&world, &unit, "cat", &payload);
        assert!(answer.is_some_and(|a| a["unitid"] == *unit), "{step}");
        wait(&world, &unit, "Succeeded");
        assert!(results(&world, &unit) == payload, "{step}");
        have_run(&world, 1);
        desk.stop();
        node.stop();
    }
}

#[test]
fn a_node_that_is_killed_at_any_step_runs_the_work_of_a_submitter_once() {
    let payload = noise(200_000);
    for step in [
        "upload.before",
        "upload.after",
        "commit.before",
        "commit.after",
        "spawn.before",
        "started.before",
        "outcome.before",
        "settle.before",
        "settle.after",
    ] {
        let world = World::new();
        let mut command = node_command(&world, TYPES);
        command.env("TAEL_FAILPOINT", step);
        let mut first = world.online("node7", command);
        let desk = submitter(&world);
        let unit = new_id();
        assert!(
            try_submit(&world, &unit, "cat", &payload).is_some(),
            "{step}"
        );
        assert_eq!(first.wait(), 128 + 9, "{step}: {}", first.log_text());
        let second = node(&world);
        wait(&world, &unit, "Succeeded");
        assert!(results(&world, &unit) == payload, "{step}");
        have_run(&world, 1);
        desk.stop();
        second.stop();
    }
}

#[test]
fn a_cancel_outlives_the_kill_of_either_side() {
    // The node is killed when it has answered, and before it could forget the unit that waits.
    for (side, step) in [
        ("desk", "cancel.after"),
        ("desk", "check.after"),
        ("desk", "settle.before"),
        ("node7", "outcome.before"),
        ("node7", "settle.before"),
    ] {
        let world = World::new();
        let mut command = node_command(&world, TYPES);
        let mut variables = Vec::new();
        match side {
            "desk" => variables.push(("TAEL_FAILPOINT", step)),
            _ => drop(command.env("TAEL_FAILPOINT", step)),
        }
        let mut client = world.online("node7", command);
        let mut desk = submitter_with(&world, &variables);
        let unit = started(&world, "wait", b"");
        wait(&world, &unit, "Running");
        let mut session = connect(&world);
        session.send(&format!("work cancel {unit}"));
        if side == "desk" {
            assert_eq!(desk.wait(), 128 + 9, "{step}: {}", desk.log_text());
            desk = submitter(&world);
        } else {
            assert_eq!(client.wait(), 128 + 9, "{step}: {}", client.log_text());
            client = node(&world);
        }
        wait(&world, &unit, "Canceled");
        have_run(&world, 1);
        desk.stop();
        client.stop();
    }
}

#[test]
fn a_release_outlives_the_kill_of_the_submitter() {
    for step in ["debt.before", "debt.after", "paid.before"] {
        let world = World::new();
        let node = node(&world);
        let mut desk = submitter_with(&world, &[("TAEL_FAILPOINT", step)]);
        let unit = started(&world, "both", b"");
        wait(&world, &unit, "Failed");
        let folder = world.home("node7").join("units").join(&unit);
        assert!(folder.exists(), "{step}");
        let mut session = connect(&world);
        session.send(&format!("work release {unit}"));
        assert_eq!(desk.wait(), 128 + 9, "{step}: {}", desk.log_text());
        let desk = submitter(&world);
        wait_until(&format!("the node has released it: {step}"), || {
            !folder.exists()
        });
        assert!(ask(&world, &format!("work status {unit}")).starts_with("ERROR"));
        desk.stop();
        node.stop();
    }
}

#[test]
fn a_unit_whose_runner_is_killed_is_interrupted_on_both_sides() {
    let world = World::new();
    let types = "[[work]]\ntype = 'pid'\ncommand = \"sh -c 'echo run >>$OUT/runs; echo begun; echo $PPID >$OUT/runner; sleep 1000'\"\n";
    let client = node_with(&world, &format!("{TYPES}{types}"));
    let desk = submitter(&world);
    let unit = started(&world, "pid", b"");
    let runner = || world.lines("runner").first()?.parse::<i32>().ok();
    wait_until("it runs", || runner().is_some());
    wait(&world, &unit, "Running");
    kill(Pid::from_raw(runner().expect("pid")), Signal::SIGKILL).expect("kill");
    wait(&world, &unit, "Failed");
    let detail = status(&world, &unit)["Detail"].to_string();
    assert!(
        detail.contains("it ended with its host or its runner"),
        "{detail}"
    );
    assert_eq!(results(&world, &unit), b"begun\n");
    let mut there = world.tael(["work", "status", "--node", "node7", "--root", "lab", &unit]);
    let (_, there, _) = ran(there.arg("--json"));
    assert!(there.contains("interrupted"), "{there}");
    have_run(&world, 1);
    desk.stop();
    client.stop();
}

// --- Links ---

#[test]
fn a_link_that_is_cut_in_a_payload_and_in_its_output_loses_nothing() {
    for side in ["desk", "node7"] {
        let world = World::new();
        let link = Proxy::cutting(world.broker.port(), 800_000);
        let port = link.port().to_string();
        let mut there = node_command(&world, TYPES);
        let mut here = submitter_command(&world);
        match side {
            "desk" => here.env("TAEL_PORT", &port),
            _ => there.env("TAEL_PORT", &port),
        };
        let client = world.online("node7", there);
        let desk = world.online("desk", here);
        let payload = noise(1_500_000);
        let unit = new_id();
        assert!(
            try_submit(&world, &unit, "cat", &payload).is_some(),
            "{side}"
        );
        wait(&world, &unit, "Succeeded");
        assert!(results(&world, &unit) == payload, "{side}");
        assert!(link.cuts() >= 2, "{side}: {} cuts", link.cuts());
        have_run(&world, 1);
        desk.stop();
        client.stop();
    }
}

#[test]
fn a_broker_that_forgets_everything_loses_nothing_of_a_submitter() {
    let mut world = World::new();
    let client = node(&world);
    let desk = submitter(&world);
    let running = started(&world, "wait", b"");
    wait(&world, &running, "Running");
    let payload = noise(4_000_000);
    let large = new_id();
    assert!(try_submit(&world, &large, "cat", &payload).is_some());
    for _ in 0..3 {
        world.broker.kill();
        world.broker.restart();
        wait_until("both are back", || {
            ["node7", "desk"].iter().all(|who| {
                let (code, ..) = world.control(&[who, "status", "--timeout", "2s"]);
                code == 0
            })
        });
    }
    fs::write(world.path("go"), "").expect("go");
    wait(&world, &running, "Succeeded");
    wait(&world, &large, "Succeeded");
    assert!(results(&world, &large) == payload);
    assert_eq!(results(&world, &running), b"begun\ndone\n");
    have_run(&world, 2);
    desk.stop();
    client.stop();
}

// --- Disks ---

#[test]
fn output_goes_on_when_a_full_disk_has_space_again() {
    if !can_run("a disk is full", "mount") {
        return;
    }
    let world = World::new();
    let home = world.home("desk");
    let _tmpfs = Tmpfs::mount(&home, "8m");
    let bytes = noise(3_000_000);
    fs::write(world.path("noise"), &bytes).expect("noise");
    let client = node_with(&world, &format!("{TYPES}{LATE}"));
    let desk = submitter(&world);
    let unit = started(&world, "late", b"");
    wait(&world, &unit, "Running");
    let filler = home.join("filler");
    let mut dd = Command::new("dd");
    dd.args(["if=/dev/zero", "bs=4k"])
        .arg(format!("of={}", filler.display()));
    let _ = ran(&mut dd);
    fs::write(world.path("go"), "").expect("go");
    wait_until("the submitter says so", || {
        desk.log_text().contains("write its output")
    });
    fs::remove_file(&filler).expect("remove");
    wait(&world, &unit, "Succeeded");
    assert!(results(&world, &unit) == bytes);
    have_run(&world, 1);
    desk.stop();
    client.stop();
}

#[test]
fn a_ledger_of_the_version_before_gets_a_place_for_debts() {
    let world = World::new();
    let desk = submitter(&world);
    desk.stop();
    let ledger = rusqlite::Connection::open(world.home("desk").join("ledger.db")).expect("ledger");
    let version = ledger.pragma_query_value(None, "user_version", |row| row.get::<_, i64>(0));
    let earlier = version.expect("version") - 2;
    let earlier = format!(
        "DROP TABLE debt; DROP TABLE queue_open; DROP TABLE letter;
         ALTER TABLE unit DROP COLUMN origin; PRAGMA user_version = {earlier};"
    );
    ledger.execute_batch(&earlier).expect("earlier");
    drop(ledger);
    let (client, desk) = (node(&world), submitter(&world));
    let unit = started(&world, "both", b"");
    wait(&world, &unit, "Failed");
    let folder = world.home("node7").join("units").join(&unit);
    assert!(folder.exists());
    ask(&world, &format!("work release {unit}"));
    wait_until("the node has released it", || !folder.exists());
    desk.stop();
    client.stop();
}

// --- Time ---

#[test]
fn units_of_a_node_that_is_away_read_lost_until_it_is_back() {
    let world = World::new();
    let lost = [("TAEL_TEST_LOST", "300")];
    let client = node(&world);
    let desk = submitter_with(&world, &lost);
    let unit = started(&world, "wait", b"");
    wait(&world, &unit, "Running");
    client.kill();
    let detail = || {
        status(&world, &unit)["Detail"]
            .as_str()
            .expect("text")
            .to_owned()
    };
    wait_until("it reads lost", || {
        detail().contains("lost: node node7 is away")
    });
    // The news outlives the submitter, and so does the good one.
    desk.kill();
    let client = node(&world);
    let desk = submitter_with(&world, &lost);
    wait_until("it reads running", || !detail().contains("lost"));
    client.kill();
    wait_until("it reads lost", || {
        detail().contains("lost: node node7 is away")
    });
    let client = node(&world);
    wait_until("it reads running", || !detail().contains("lost"));
    fs::write(world.path("go"), "").expect("go");
    wait(&world, &unit, "Succeeded");
    have_run(&world, 1);
    desk.stop();
    client.stop();
}

#[test]
fn a_node_whose_answers_the_broker_refuses_gets_work_when_they_are_allowed() {
    let scene = Scene::new();
    let desk = scene.start(&["--submit-only"]);
    let mut raw = scene.online();
    let open = || Session::open(&scene.home().join("control"), "p");
    let mut session = open();
    let asked = session.ask(&submission("node7", &json!({"worktype": "cat"})));
    assert!(!asked.starts_with("ERROR"), "{asked}");
    session.pay(b"work");
    // Returns the body of the next SUBSCRIBE. No work goes out before it.
    let subscribes = |raw: &mut Raw| loop {
        let (kind, body) = raw.receive();
        if kind >> 4 == 8 {
            return body;
        }
        let heard = raw.serve(kind, &body);
        assert!(
            heard.is_none_or(|m| !m.topic.ends_with("/work")),
            "an offer"
        );
    };
    let body = subscribes(&mut raw);
    let codes = subscribe_filters(&body);
    let codes = codes
        .iter()
        .map(|filter| match filter.ends_with("/presence") {
            true => 1,
            false => 0x87,
        });
    let codes: Vec<u8> = codes.collect();
    raw.send(&packet(
        0x90,
        &[&[body[0], body[1], 0], &codes[..]].concat(),
    ));
    let answer: Value = serde_json::from_str(&session.line()).expect("answer");
    let unit = answer["unitid"].as_str().expect("unit");
    wait_until("the refusal is told", || {
        let status = open().ask_json(&format!("work status {unit}"));
        status["Detail"]
            .to_string()
            .contains("the broker refuses '")
    });
    let pong = open().ask("ping node7");
    assert!(pong.contains("the broker refuses '"), "{pong}");
    desk.signal(Signal::SIGHUP);
    let body = subscribes(&mut raw);
    raw.serve(0x82, &body);
    let offer = raw.serve_until(|m| m.topic.ends_with("/work"));
    let (request, payload) = wire::read_request(&offer.payload.into()).expect("request");
    assert!(matches!(request, Request::Submit(_)), "{request:?}");
    assert_eq!(&payload[..], b"work");
}

/// Time to live of work that no node gets, seconds: longer than a submission waits for its node, which
/// is refused otherwise.
const TTL: i64 = 4;

fn ttl() -> Value {
    json!({"worktype": "cat", "ttl": format!("{TTL}s")})
}

#[test]
fn work_whose_time_is_up_before_its_node_comes_fails_and_never_runs() {
    let world = World::new();
    let desk = submitter(&world);
    let answer = submit(&world, &ttl(), b"late").expect("submitted");
    assert_eq!(answer["result"], "Job Submitted");
    let unit = answer["unitid"].as_str().expect("unit").to_owned();
    let second = jiff::Timestamp::now().as_second();
    wait_until("the time is up", || {
        jiff::Timestamp::now().as_second() > second + TTL
    });
    let client = node(&world);
    wait(&world, &unit, "Failed");
    let detail = status(&world, &unit)["Detail"].to_string();
    // mosquitto says that nobody has heard the offer, and then it ends without the node.
    let why = match is_mosquitto() {
        true => "its time was up",
        false => "after its time",
    };
    assert!(detail.contains(why), "{detail}");
    have_run(&world, 0);
    desk.stop();
    client.stop();
}

#[test]
fn work_for_a_node_that_is_away_ends_when_its_time_is_up() {
    let world = World::new();
    let desk = submitter(&world);
    let client = node(&world);
    // Then the submitter hears of the node.
    let first = started(&world, "both", b"");
    wait(&world, &first, "Failed");
    let knows = || ask(&world, "status").contains("\"NodeID\":\"node7\"");
    wait_until("the submitter knows that node7 is there", knows);
    client.stop();
    wait_until("the submitter knows that node7 is away", || !knows());
    let late = submit(&world, &ttl(), b"late");
    let late = late.expect("submitted")["unitid"]
        .as_str()
        .expect("unit")
        .to_owned();
    wait(&world, &late, "Failed");
    let detail = status(&world, &late)["Detail"].to_string();
    assert!(detail.contains("its time was up"), "{detail}");
    let wanted = submit(&world, &json!({"worktype": "cat"}), b"no").expect("submitted");
    let wanted = wanted["unitid"].as_str().expect("unit").to_owned();
    let answer = ask(&world, &format!("work cancel {wanted}"));
    assert_eq!(answer, json!({"cancelled": wanted}).to_string());
    let client = node(&world);
    have_run(&world, 0);
    desk.stop();
    client.stop();
}

#[test]
fn work_that_was_accepted_in_time_runs_however_late_the_answer_comes() {
    let world = World::new();
    let mut command = node_command(&world, TYPES);
    command.env("TAEL_FAILPOINT", "commit.after");
    let mut first = world.online("node7", command);
    let desk = submitter(&world);
    let keys = json!({"worktype": "cat", "ttl": "4s"});
    let answer = submit(&world, &keys, b"in time").expect("submitted");
    let unit = answer["unitid"].as_str().expect("unit").to_owned();
    assert_eq!(first.wait(), 128 + 9);
    let second = jiff::Timestamp::now().as_second();
    wait_until("the time is up", || {
        jiff::Timestamp::now().as_second() > second + 4
    });
    let client = node(&world);
    wait(&world, &unit, "Succeeded");
    assert_eq!(results(&world, &unit), b"in time");
    have_run(&world, 1);
    desk.stop();
    client.stop();
}

// --- Ids ---

#[test]
fn one_id_at_two_submitters_is_one_unit_and_other_work_under_it_is_refused() {
    let world = World::new();
    let client = node(&world);
    let desk = submitter(&world);
    let other = world.client("other", &["--submit-only"]);
    let unit = new_id();
    let submit_at = |who: &str, payload: &[u8]| {
        let mut session = connect_to(&world, who);
        let keys = json!({"worktype": "cat", "workUnitID": unit});
        session.ask(&submission("node7", &keys));
        session.pay(payload);
        session.line()
    };
    assert!(submit_at("desk", b"same").contains("Job Started"));
    assert!(submit_at("other", b"same").contains("Job Started"));
    wait(&world, &unit, "Succeeded");
    let refused = submit_at("other", b"changed");
    assert!(refused.contains("belongs to other work"), "{refused}");
    let third = world.client("third", &["--submit-only"]);
    let refused = submit_at("third", b"changed");
    assert!(refused.contains("other work has this id"), "{refused}");
    let mut session = connect_to(&world, "other");
    session.follow(&unit, 0);
    assert_eq!(session.rest(), b"same");
    have_run(&world, 1);
    for process in [desk, other, third, client] {
        process.stop();
    }
}

#[test]
fn a_payload_that_is_gone_fails_its_unit_and_a_folder_from_a_backup_runs_nothing_again() {
    let world = World::new();
    let desk = submitter(&world);
    let payload = noise(100_000);
    let gone = new_id();
    let answer = try_submit(&world, &gone, "cat", &payload).expect("submitted");
    assert_eq!(answer["result"], "Job Submitted");
    let home = world.home("desk");
    for file in fs::read_dir(home.join("payloads")).expect("payloads") {
        fs::remove_file(file.expect("file").path()).expect("remove");
    }
    desk.kill();
    let desk = submitter(&world);
    let client = node(&world);
    wait(&world, &gone, "Failed");
    let detail = status(&world, &gone)["Detail"].to_string();
    assert!(detail.contains("read its payload"), "{detail}");
    // A backup of the moment when it ran.
    let unit = started(&world, "wait", b"");
    wait(&world, &unit, "Running");
    desk.kill();
    let backup = world.path("backup");
    let copy = |from: &std::path::Path, to: &std::path::Path| {
        let mut cp = Command::new("cp");
        assert_eq!(ran(cp.arg("-a").arg(from).arg(to)).0, 0);
    };
    copy(&home, &backup);
    let desk = submitter(&world);
    fs::write(world.path("go"), "").expect("go");
    wait(&world, &unit, "Succeeded");
    desk.kill();
    fs::remove_dir_all(&home).expect("remove");
    copy(&backup, &home);
    let desk = submitter(&world);
    wait(&world, &unit, "Succeeded");
    assert_eq!(results(&world, &unit), b"begun\ndone\n");
    have_run(&world, 1);
    desk.stop();
    client.stop();
}

// --- Nodes that lie, and brokers that drop ---

/// A node that a test plays.
struct Played {
    raw: Raw,
    id: u16,
}

impl Played {
    fn new(world: &World) -> Self {
        let mut raw = Raw::connect(world.broker.port());
        raw.subscribe(&format!("{NODE}/work"));
        Self { raw, id: 1000 }
    }

    /// Returns the next request for which `wanted` returns something.
    #[track_caller]
    fn hear<T>(&mut self, what: &str, wanted: impl Fn(Request) -> Option<T>) -> T {
        loop {
            let heard = self.raw.hear(what, |m| m.topic.ends_with("/work"));
            assert_eq!(heard.reply, format!("{NODE}/reply/desk"));
            let (request, _) = wire::read_request(&Bytes::from(heard.payload)).expect("request");
            if let Some(found) = wanted(request) {
                return found;
            }
        }
    }

    fn say(&mut self, answer: &Answer, body: &[u8]) {
        self.id += 1;
        let topic = format!("{NODE}/reply/desk");
        let message = wire::write(answer, body);
        let packet = publish(topic.as_bytes(), &message, Some(self.id), &[], false);
        self.raw.send(&packet);
    }

    /// Accepts the next unit, and returns it when its output is asked for.
    fn accept(&mut self) -> String {
        let unit = self.hear("a submission", |request| match request {
            Request::Submit(manifest) => Some(manifest.unit),
            _ => None,
        });
        self.say(&Answer::Accepted { unit: unit.clone() }, b"");
        assert_eq!(self.asked(), [0, 0]);
        self.state(&unit, "running");
        unit
    }

    /// Returns the offsets from which output is asked for next.
    fn asked(&mut self) -> [u64; 2] {
        self.hear("a request for output", |request| match request {
            Request::Results { from, .. } => Some(from),
            _ => None,
        })
    }

    fn state(&mut self, unit: &str, state: &str) {
        self.say(&Answer::State(state_of(unit, state, None)), b"");
    }

    fn output(&mut self, unit: &str, offset: u64, bytes: &[u8]) {
        let (unit, stream) = (unit.to_owned(), StreamName::Stdout);
        let output = Answer::Output {
            unit,
            stream,
            offset,
        };
        self.say(&output, bytes);
    }

    fn end(&mut self, unit: &str, length: u64, sha256: &str) {
        self.say(&Answer::End(end_of(unit, length, sha256)), b"");
    }

    /// Waits until the submitter has the end of `unit` on disk.
    fn thanked(&mut self, unit: &str) {
        self.hear("the last acknowledgement", |request| match request {
            Request::Ack { unit: of, end, .. } => (end && of == unit).then_some(()),
            _ => None,
        });
    }
}

fn state_of(unit: &str, state: &str, code: Option<u8>) -> State {
    State {
        unit: unit.to_owned(),
        kind: "cat".into(),
        state: state.into(),
        detail: state.into(),
        code,
        submitter: "ann@host".into(),
        started: None,
        elapsed: None,
    }
}

fn end_of(unit: &str, length: u64, sha256: &str) -> End {
    End {
        state: state_of(unit, "succeeded", Some(0)),
        lengths: [length, 0],
        sha256: [sha256.to_owned(), sha256_of(b"")],
        dropped: [None, None],
        signature: None,
    }
}

/// Submits work to the played node. The answer of the submitter comes later, on the connection.
fn offer(world: &World) -> (String, Session) {
    let unit = new_id();
    let mut session = connect(world);
    session.ask(&submission(
        "node7",
        &json!({"worktype": "cat", "workUnitID": unit}),
    ));
    session.close_half();
    (unit, session)
}

#[test]
fn what_a_broker_drops_comes_again_and_is_asked_for_once() {
    let world = World::new();
    let mut node = Played::new(&world);
    let desk = submitter(&world);
    let (unit, _session) = offer(&world);
    assert_eq!(node.accept(), unit);
    let bytes = noise(400_000);
    let pieces: Vec<(u64, &[u8])> = (0..).step_by(40_000).zip(bytes.chunks(40_000)).collect();
    // The second piece is lost; all later ones come too early.
    for (n, (offset, piece)) in pieces.iter().enumerate() {
        if n != 1 {
            node.output(&unit, *offset, piece);
        }
    }
    assert_eq!(node.asked(), [40_000, 0]);
    node.state(&unit, "running");
    for (offset, piece) in &pieces[1..9] {
        node.output(&unit, *offset, piece);
    }
    // The last piece is lost, and the node hears nothing: it says again what it has said.
    node.state(&unit, "running");
    let again = node.hear("one request", |request| match request {
        Request::Results { from, .. } => Some(from),
        _ => None,
    });
    assert_eq!(again, [360_000, 0]);
    node.state(&unit, "running");
    // The end comes before the last piece.
    node.end(&unit, 400_000, &sha256_of(&bytes));
    assert_eq!(node.asked(), [360_000, 0]);
    node.state(&unit, "running");
    node.output(&unit, 360_000, pieces[9].1);
    node.end(&unit, 400_000, &sha256_of(&bytes));
    node.thanked(&unit);
    wait(&world, &unit, "Succeeded");
    assert!(results(&world, &unit) == bytes);
    // A node that has not heard that says it again, and is answered again.
    node.end(&unit, 400_000, &sha256_of(&bytes));
    node.thanked(&unit);
    desk.stop();
}

#[test]
fn a_node_that_lies_gets_one_end_and_no_memory() {
    let world = World::new();
    let mut node = Played::new(&world);
    let desk = submitter(&world);
    let wrong = sha256_of(b"other bytes");
    let detail = |unit: &str| status(&world, unit)["Detail"].to_string();

    // Its digest is wrong, twice.
    let (unit, _session) = offer(&world);
    node.accept();
    node.output(&unit, 0, b"abc");
    node.end(&unit, 3, &wrong);
    assert_eq!(node.asked(), [0, 0]);
    node.state(&unit, "running");
    node.output(&unit, 0, b"abc");
    node.end(&unit, 3, &wrong);
    node.thanked(&unit);
    wait(&world, &unit, "Succeeded");
    assert_eq!(results(&world, &unit), b"abc");
    let row = |unit: &str| {
        let mut show = world.tael(["work", "status", unit, "--json"]);
        ran(&mut show).1
    };
    assert!(
        row(&unit).contains("differs from that on node node7"),
        "{}",
        row(&unit)
    );

    // It tells of more than it sends, by far.
    let (unit, _session) = offer(&world);
    node.accept();
    for round in 0..2 {
        node.output(&unit, 0, b"abc");
        for _ in 0..8 {
            node.end(&unit, u64::MAX, &wrong);
        }
        if round == 0 {
            // The first short end makes the submitter ask, too.
            while node.asked() != [0, 0] {}
            node.state(&unit, "running");
        }
    }
    node.thanked(&unit);
    wait(&world, &unit, "Succeeded");

    // Offsets of another world, units of others, states that are none, gaps without end.
    let (unit, _session) = offer(&world);
    node.accept();
    node.output(&unit, 1 << 30, &noise(60_000));
    assert_eq!(node.asked(), [0, 0]);
    node.output(&unit, u64::MAX, b"x");
    node.state(&new_id(), "running");
    node.state("", "");
    node.state(&unit, "no state at all");
    for n in 0..2000 {
        let gap = Answer::Gap {
            unit: unit.clone(),
            stream: StreamName::Stdout,
            offset: n * 2,
            bytes: Some(1),
        };
        node.say(&gap, b"");
        node.output(&unit, n * 2 + 1, b"y");
    }
    let done = Answer::Done {
        unit: unit.clone(),
        result: Done::Released,
    };
    node.say(&done, b"");
    let mut end = end_of(&unit, 4000, &sha256_of(&vec![b'y'; 2000]));
    end.state = state_of(&unit, "failed", Some(255));
    end.state.detail = format!("killed by signal {}", i32::MAX);
    node.say(&Answer::End(end), b"");
    node.thanked(&unit);
    wait(&world, &unit, "Failed");
    let record = world.home("desk").join("units").join(&unit).join("outcome");
    let size = fs::metadata(record).expect("record").len();
    assert!(size < 1000, "{size} bytes");

    // Refused after all.
    let (unit, _session) = offer(&world);
    node.accept();
    for _ in 0..3 {
        let refused = Answer::Refused {
            unit: unit.clone(),
            code: 65,
            error: "no such unit\u{1b}[31m".into(),
        };
        node.say(&refused, b"");
    }
    wait(&world, &unit, "Failed");
    assert!(
        detail(&unit).contains("lost: node node7: no such unit"),
        "{}",
        detail(&unit)
    );
    let peak = peak_memory(&desk);
    assert!(peak < 200 << 20, "{peak} bytes");
    desk.stop();
}

/// A submitter that asks for output again after a restart of the broker gets an answer to each request.
#[test]
fn late_answers_that_a_unit_is_unknown_change_nothing() {
    let world = World::new();
    let mut node = Played::new(&world);
    let desk = submitter(&world);
    let unknown = |node: &mut Played, unit: &str| {
        let refused = Answer::Refused {
            unit: unit.to_owned(),
            code: 65,
            error: format!("unknown work unit ID {unit}"),
        };
        node.say(&refused, b"");
    };
    let (unit, _session) = offer(&world);
    node.hear("a submission", |request| match request {
        Request::Submit(manifest) => Some(manifest.unit),
        _ => None,
    });
    unknown(&mut node, &unit);
    unknown(&mut node, &unit);
    node.say(&Answer::Accepted { unit: unit.clone() }, b"");
    assert_eq!(node.asked(), [0, 0]);
    unknown(&mut node, &unit);
    assert_eq!(node.asked(), [0, 0]);
    node.state(&unit, "running");
    node.output(&unit, 0, b"abc");
    node.end(&unit, 3, &sha256_of(b"abc"));
    node.thanked(&unit);
    wait(&world, &unit, "Succeeded");
    assert_eq!(results(&world, &unit), b"abc");

    // A node that has really lost a unit says so each time.
    let (unit, _session) = offer(&world);
    node.accept();
    for _ in 0..4 {
        unknown(&mut node, &unit);
        assert_eq!(node.asked(), [0, 0]);
    }
    unknown(&mut node, &unit);
    wait(&world, &unit, "Failed");
    desk.stop();
}

#[test]
fn output_that_its_node_has_lost_in_the_middle_ends() {
    let world = World::new();
    let mut node = Played::new(&world);
    let desk = submitter(&world);
    let (unit, _session) = offer(&world);
    node.accept();
    node.output(&unit, 0, b"abc");
    let gap = Answer::Gap {
        unit: unit.clone(),
        stream: StreamName::Stdout,
        offset: 3,
        bytes: None,
    };
    node.say(&gap, b"");
    // The node is there again: it is asked from where output is missing, and says so again.
    node.raw
        .publish(&format!("{NODE}/presence"), br#"{"state":"online"}"#, &[]);
    assert_eq!(node.asked(), [3, 0]);
    node.say(&gap, b"");
    node.state(&unit, "running");
    node.end(&unit, 10, &sha256_of(b"abc"));
    node.thanked(&unit);
    wait(&world, &unit, "Succeeded");
    assert!(results(&world, &unit).starts_with(b"abc"));
    desk.stop();
}

// --- All of it ---

fn variable(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |text| text.parse().expect("number"))
}

/// `TAEL_TEST_UNITS` and `TAEL_TEST_OUTPUT` make it larger, and `TAEL_TEST_SEED` selects who is killed,
/// in which order.
#[test]
fn delegated_units_run_once_and_their_output_is_whole_whoever_is_killed() {
    let units = variable("TAEL_TEST_UNITS", 20);
    let size = variable("TAEL_TEST_OUTPUT", 100_000);
    let seed = variable("TAEL_TEST_SEED", 7) as u64;
    let kills = (units / 2).clamp(8, 60);
    let mut number = seed;
    let mut world = World::with(Setup {
        persistent: true,
        ..Setup::default()
    });
    let types = r#"
[[work]]
type = "large"
command = "sh -c 'echo $PPID >$OUT/runner-$TAEL_UNIT; echo $TAEL_UNIT >>$OUT/runs; cat; cat $OUT/noise; echo end >&2; rm $OUT/runner-$TAEL_UNIT'"
max-output = 0
jobs = 4
"#;
    let noise = noise(size);
    fs::write(world.path("noise"), &noise).expect("noise");
    let mut client = node_with(&world, types);
    let mut desk = submitter(&world);
    let ids: Vec<String> = (0..units).map(|_| new_id()).collect();
    let payload = |n: usize| {
        let mut payload = format!("unit {n}\n").into_bytes();
        // Half of the payloads come in pieces.
        if n % 2 == 1 {
            payload.extend(&noise[..size.min(80_000)]);
        }
        payload
    };
    let mut submitted = 0;
    let mut killed: HashMap<&str, usize> = HashMap::new();
    for round in 0..=kills {
        let due = units * (round + 1) / (kills + 1);
        while submitted < due {
            let (unit, payload) = (&ids[submitted], payload(submitted));
            wait_until("it is submitted", || {
                try_submit(&world, unit, "large", &payload).is_some()
            });
            submitted += 1;
        }
        if round == kills {
            break;
        }
        wait_until(&format!("more have run, with seed {seed}"), || {
            world.lines("runs").len() * 2 >= submitted
        });
        let victim = ["node7", "desk", "broker", "runner"][random(&mut number, 4)];
        *killed.entry(victim).or_default() += 1;
        match victim {
            "node7" => {
                client.kill();
                client = node_with(&world, types);
            }
            "desk" => {
                desk.kill();
                desk = submitter(&world);
            }
            "broker" => {
                world.broker.kill();
                world.broker.restart();
            }
            _ => {
                // The runner of a unit that runs now, if one does.
                let files = fs::read_dir(world.path("")).expect("folder").flatten();
                let runners =
                    files.filter(|f| f.file_name().to_string_lossy().starts_with("runner-"));
                let pid =
                    runners.filter_map(|f| fs::read_to_string(f.path()).ok()?.trim().parse().ok());
                if let Some(pid) = pid.last() {
                    // It may be gone, and its id be that of another process.
                    let line = fs::read_to_string(format!("/proc/{pid}/cmdline"));
                    let runners = world.home("node7").join("runners");
                    if line.is_ok_and(|line| line.contains(&*runners.to_string_lossy())) {
                        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
                    }
                }
            }
        }
    }
    let mut interrupted = 0;
    for (n, unit) in ids.iter().enumerate() {
        wait_until(&format!("unit {n} ends, with seed {seed}"), || {
            let state = status(&world, unit)["StateName"].clone();
            state == "Succeeded" || state == "Failed"
        });
        let status = status(&world, unit);
        let output = results(&world, unit);
        let expected = [&payload(n)[..], &noise, b"end\n"].concat();
        if status["StateName"] == "Succeeded" {
            // Both streams are one there, in the order of their coming.
            assert_eq!(output.len(), expected.len(), "seed {seed}: unit {n}");
            let place = output.windows(4).rposition(|bytes| bytes == b"end\n");
            let place = place.expect("stderr");
            let whole = [&output[..place], &output[place + 4..]].concat();
            assert!(
                whole == expected[..expected.len() - 4],
                "seed {seed}: unit {n}"
            );
        } else {
            let detail = status["Detail"].to_string();
            assert!(
                detail.contains("or its runner"),
                "seed {seed}: unit {n}: {detail}"
            );
            interrupted += 1;
        }
    }
    assert!(interrupted <= killed.get("runner").copied().unwrap_or(0));
    println!("{units} units of {size} bytes, killed: {killed:?}, interrupted: {interrupted}");
    let last = started(&world, "large", b"sentinel");
    wait(&world, &last, "Succeeded");
    let mut runs = world.lines("runs");
    assert_eq!(runs.len(), units + 1, "seed {seed}");
    runs.sort();
    runs.dedup();
    assert_eq!(runs.len(), units + 1, "seed {seed}");
    desk.stop();
    client.stop();
}
