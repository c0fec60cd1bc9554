//! `tael pair`: bytes both ways, two ends and no third, and what ends them.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;
use tael::model::pair::{Pair, Side};

use crate::common::broker::is_mosquitto;
use crate::common::ports::free_port;
use crate::common::proxy::Proxy;
use crate::common::raw::{self, Heard, Raw};
use crate::common::{
    Process, Setup, World, bare_command, ended, has_program, ran, refuses, wait_until,
};

/// Bytes that a pair may hold on their way: a window of messages, the pipes of both ends, and what their
/// threads have in hand.
const HELD: usize = 32 * 16 * 1024 + 2 * 65_536 + 4 * 16 * 1024;

/// One end of a pair.
struct End {
    process: Process,
    input: Option<ChildStdin>,
    output: ChildStdout,
}

impl End {
    /// Starts an end of pair `name`.
    fn start(world: &World, name: &str, more: &[&str]) -> Self {
        let mut command = world.tael(["pair", name, "--root", "lab", "--json"]);
        command.args(more).env("TAEL_LOG", "warn");
        Self::by(world, command)
    }

    fn by(world: &World, mut command: Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = world.spawn(command);
        let input = process.child.stdin.take();
        let output = process.child.stdout.take().expect("stdout");
        Self {
            process,
            input,
            output,
        }
    }

    /// Starts both ends of pair `name`, and returns when they are one.
    fn two(world: &World, name: &str) -> (Self, Self) {
        let [x, y] = [(); 2].map(|()| Self::start(world, name, &[]));
        x.wait("paired");
        y.wait("paired");
        (x, y)
    }

    /// Returns its states so far.
    fn states(&self) -> Vec<Value> {
        let log = self.process.log_text();
        let lines = log.lines().filter(|line| line.starts_with('{'));
        lines
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()
    }

    /// Waits for a state, and returns it.
    #[track_caller]
    fn wait(&self, state: &str) -> Value {
        let mut found = None;
        let wait = || {
            wait_until(state, || {
                found = self.states().into_iter().find(|s| s["state"] == state);
                found.is_some()
            });
        };
        if let Err(e) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(wait)) {
            eprintln!("{}", self.process.log_text());
            std::panic::resume_unwind(e);
        }
        found.expect("state")
    }

    fn write(&mut self, bytes: &[u8]) {
        let input = self.input.as_mut().expect("open");
        input.write_all(bytes).expect("write");
    }

    fn read(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        let read = self.output.read_exact(&mut bytes);
        read.unwrap_or_else(|e| panic!("{e}: {}", self.process.log_text()));
        bytes
    }

    /// Closes its input; returns the rest of its output, and its exit code.
    fn finish(mut self) -> (Vec<u8>, i32) {
        drop(self.input.take());
        let mut rest = Vec::new();
        self.output.read_to_end(&mut rest).expect("read");
        let code = self.process.wait();
        (rest, code)
    }

    /// Waits until it has failed with `code`, and returns the cause.
    #[track_caller]
    fn failed(mut self, code: i32) -> String {
        let got = self.process.wait();
        let log = self.process.log_text();
        assert_eq!(got, code, "{log}");
        let last = self.states().pop().expect("a state");
        assert_eq!(
            (&last["state"], &last["code"]),
            (&"failed".into(), &code.into())
        );
        last["error"].as_str().expect("error").to_owned()
    }
}

/// Returns bytes that are no text and differ from place to place.
fn bytes(count: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let mut all = Vec::with_capacity(count + 8);
    while all.len() < count {
        all.extend(next());
    }
    all.truncate(count);
    all
}

#[test]
fn bytes_go_both_ways_through_a_pair() {
    let world = World::new();
    let (mut x, mut y) = End::two(&world, "p");
    let all: Vec<u8> = (0..=255).collect();
    x.write(&all);
    assert_eq!(y.read(256), all);
    y.write(b"\0back");
    assert_eq!(x.read(5), b"\0back");
    // The end of one direction does not end the other.
    drop(x.input.take());
    let mut rest = Vec::new();
    y.output.read_to_end(&mut rest).expect("read");
    assert_eq!(rest, b"");
    y.write(&all);
    assert_eq!(x.read(256), all);
    let with = x.wait("paired")["with"].clone();
    assert!(
        with["host"].is_string() && with["user"].is_string(),
        "{with}"
    );
    let sides = [&x, &y].map(|end| end.wait("paired")["side"].clone());
    assert_ne!(sides[0], sides[1]);
    let (rest, code) = y.finish();
    assert_eq!((rest, code), (Vec::new(), 0));
    let log = x.process.log.clone();
    assert_eq!(x.finish(), (Vec::new(), 0));
    let log = fs::read_to_string(log).expect("log");
    let last: Value = serde_json::from_str(log.lines().last().expect("line")).expect("json");
    assert_eq!(
        (
            &last["state"],
            &last["sent"],
            &last["received"],
            &last["code"]
        ),
        (&"ended".into(), &256.into(), &261.into(), &0.into())
    );
}

fn transfers(count: usize) {
    let world = World::new();
    let (mut x, y) = End::two(&world, "big");
    let all = Arc::new(bytes(count));
    let mut input = x.input.take().expect("stdin");
    let source = Arc::clone(&all);
    let writer = thread::spawn(move || input.write_all(&source).expect("write"));
    let (got, code) = y.finish();
    writer.join().expect("writer");
    assert!(got == *all, "{} bytes, or others", got.len());
    assert_eq!(code, 0);
    assert_eq!(x.finish(), (Vec::new(), 0));
}

#[test]
fn twenty_megabytes_arrive_byte_for_byte() {
    transfers(20_000_000);
}

#[test]
#[ignore = "takes long: .ci/run runs it"]
fn a_hundred_megabytes_arrive_byte_for_byte() {
    transfers(100_000_000);
}

#[test]
fn a_slow_reader_holds_the_writer() {
    let world = World::new();
    let (mut x, mut y) = End::two(&world, "slow");
    let all = Arc::new(bytes(HELD * 3));
    let mut input = x.input.take().expect("stdin");
    let written = Arc::new(AtomicUsize::new(0));
    let (source, count) = (Arc::clone(&all), Arc::clone(&written));
    let writer = thread::spawn(move || {
        for part in source.chunks(1024) {
            input.write_all(part).expect("write");
            count.fetch_add(part.len(), Ordering::Relaxed);
        }
    });
    wait_until("the window is full", || {
        written.load(Ordering::Relaxed) >= 32 * 16 * 1024
    });
    // The other direction goes on meanwhile, and takes longer than what could still go through.
    for n in 0..50u8 {
        y.write(&[n]);
        assert_eq!(x.read(1), [n]);
    }
    let held = written.load(Ordering::Relaxed);
    assert!(held <= HELD, "{held} bytes went into the pair");
    let (got, code) = y.finish();
    writer.join().expect("writer");
    assert!(got == *all && code == 0, "{} bytes", got.len());
    assert_eq!(x.finish().1, 0);
}

#[test]
fn a_third_end_is_refused_and_told_by_whom() {
    let world = World::new();
    let (mut x, mut y) = End::two(&world, "p");
    let mut third = world.tael(["pair", "p", "--root", "lab"]);
    third.env("TAEL_LOG", "warn");
    let holder = x.wait("paired")["with"].clone();
    let holder = format!(
        "{}@{}",
        holder["user"].as_str().expect("user"),
        holder["host"].as_str().expect("host")
    );
    let taken = format!("pair p: taken by {holder} and {holder} since ");
    refuses(&mut third, 73, &taken);
    // The two have not noticed, and a pair of another name or root is another one.
    x.write(b"still");
    assert_eq!(y.read(5), b"still");
    let other = End::start(&world, "q", &[]);
    other.wait("waiting");
    let mut elsewhere = world.tael(["pair", "p", "--root", "lab2", "--json"]);
    elsewhere.env("TAEL_LOG", "warn");
    let elsewhere = End::by(&world, elsewhere);
    elsewhere.wait("waiting");
    drop(x.input.take());
    assert_eq!(y.finish().1, 0);
    assert_eq!(x.finish().1, 0);
    // After that the name is free.
    let (x, y) = End::two(&world, "p");
    thread::scope(|scope| {
        scope.spawn(|| assert_eq!(x.finish().1, 0));
        assert_eq!(y.finish().1, 0);
    });
}

/// Five ends come at one instant, `rounds` times.
fn races(rounds: usize) {
    let world = World::new();
    for round in 0..rounds {
        // The names come again, right after their last pair.
        let name = format!("race{}", round % 3);
        let mut all: Vec<End> = (0..5).map(|_| End::start(&world, &name, &[])).collect();
        let mut lost = Vec::new();
        wait_until("three are refused", || {
            for place in (0..all.len()).rev() {
                if all[place].process.child.try_wait().expect("wait").is_some() {
                    lost.push(all.remove(place));
                }
            }
            lost.len() >= 3
        });
        for end in lost {
            let cause = end.failed(73);
            assert!(cause.contains("taken by"), "{round}: {cause}");
        }
        let [mut x, mut y] = <[End; 2]>::try_from(all).ok().expect("exactly two");
        x.write(b"from x");
        y.write(b"from y");
        drop((x.input.take(), y.input.take()));
        thread::scope(|scope| {
            scope.spawn(|| assert_eq!(x.finish(), (b"from y".to_vec(), 0), "{round}"));
            assert_eq!(y.finish(), (b"from x".to_vec(), 0), "{round}");
        });
    }
}

#[test]
fn of_five_contestants_exactly_two_become_a_pair() {
    races(20);
}

#[test]
#[ignore = "takes long: .ci/run runs it"]
fn of_five_contestants_exactly_two_become_a_pair_100_times() {
    races(100);
}

#[test]
fn a_broker_that_restarts_ends_both_ends() {
    let mut world = World::new();
    let (mut x, mut y) = End::two(&world, "p");
    x.write(b"before");
    assert_eq!(y.read(6), b"before");
    world.broker.kill();
    world.broker.restart();
    for end in [x, y] {
        let cause = end.failed(69);
        assert!(cause.contains("lost the broker"), "{cause}");
    }
    // The broker has no claims of them: new ends pair at once.
    let (x, y) = End::two(&world, "p");
    thread::scope(|scope| {
        scope.spawn(|| assert_eq!(x.finish().1, 0));
        assert_eq!(y.finish().1, 0);
    });
}

#[test]
#[ignore = "takes long: .ci/run runs it"]
fn a_broker_that_restarts_within_a_hundred_megabytes_ends_both_ends() {
    let mut world = World::new();
    let (mut x, mut y) = End::two(&world, "big");
    let all = Arc::new(bytes(100_000_000));
    let mut input = x.input.take().expect("stdin");
    let source = Arc::clone(&all);
    // It fails when its end has failed.
    let writer = thread::spawn(move || input.write_all(&source).is_err());
    let mut got = y.read(20_000_000);
    world.broker.kill();
    world.broker.restart();
    y.output.read_to_end(&mut got).expect("read");
    assert!(
        got.len() < all.len() && *got == all[..got.len()],
        "{} bytes",
        got.len()
    );
    assert!(x.failed(69).contains("lost the broker"));
    assert!(y.failed(69).contains("lost the broker"));
    assert!(writer.join().expect("writer"), "all was written");
}

#[test]
#[ignore = "takes long: .ci/run runs it"]
fn a_claim_that_a_killed_broker_has_kept_is_forgotten() {
    let mut world = World::with(Setup {
        persistent: true,
        ..Setup::default()
    });
    let (x, y) = End::two(&world, "p");
    let id = x.wait("paired")["with"]["id"].clone();
    let id = id.as_str().expect("id").to_owned();
    let stored = world.path("broker/data/mosquitto.db");
    if is_mosquitto() {
        wait_until("the claim is on the disk of the broker", || {
            let stored = fs::read(&stored).unwrap_or_default();
            stored.windows(id.len()).any(|part| part == id.as_bytes())
        });
    }
    world.broker.kill();
    world.broker.restart();
    assert!(x.failed(69).contains("lost the broker"));
    assert!(y.failed(69).contains("lost the broker"));
    let mut alone = world.tael(["pair", "p", "--root", "lab", "--timeout", "1s"]);
    alone.env("TAEL_LOG", "warn");
    wait_until("the name is free", || {
        let (code, _, error) = ran(&mut alone);
        // A busy broker may not answer within the second.
        assert!([69, 73, 75].contains(&code), "{code}: {error}");
        code == 75
    });
}

#[test]
fn an_end_that_is_killed_ends_the_other() {
    let world = World::new();
    let (mut x, mut y) = End::two(&world, "p");
    x.write(b"before");
    assert_eq!(y.read(6), b"before");
    x.process.signal(Signal::SIGKILL);
    let cause = y.failed(69);
    assert!(cause.contains("it is gone"), "{cause}");
    // Its will has cleared its claim.
    let (x, y) = End::two(&world, "p");
    drop((x, y));
}

#[test]
fn a_link_that_breaks_ends_both_ends() {
    let world = World::new();
    let proxy = Proxy::new(world.broker.port());
    let mut command = world.tael(["pair", "p", "--root", "lab", "--json"]);
    command
        .env("TAEL_LOG", "warn")
        .env("TAEL_PORT", proxy.port().to_string());
    let x = End::by(&world, command);
    let y = End::start(&world, "p", &[]);
    x.wait("paired");
    y.wait("paired");
    proxy.cut();
    assert!(x.failed(69).contains("lost the broker"));
    assert!(y.failed(69).contains("it is gone"));
}

#[test]
fn an_end_that_is_cut_off_before_it_is_paired_looks_again() {
    let world = World::new();
    let proxy = Proxy::new(world.broker.port());
    let mut command = world.tael(["pair", "p", "--root", "lab", "--json"]);
    command
        .env("TAEL_LOG", "warn")
        .env("TAEL_PORT", proxy.port().to_string());
    let mut x = End::by(&world, command);
    x.wait("waiting");
    proxy.cut();
    wait_until("it waits again", || {
        let waiting = |s: &&Value| s["state"] == "waiting";
        x.states().iter().filter(waiting).count() == 2
    });
    let mut y = End::start(&world, "p", &[]);
    y.write(b"here");
    assert_eq!(x.read(4), b"here");
    drop(x.input.take());
    assert_eq!(y.finish().1, 0);
    assert_eq!(x.finish().1, 0);
}

/// Returns the user properties of a message between ends.
fn letter<'a>(
    kind: &'a str,
    from: &'a str,
    to: &'a str,
    number: &'a str,
) -> [(&'a str, &'a str); 4] {
    [
        ("tael-kind", kind),
        ("tael-from", from),
        ("tael-to", to),
        ("tael-number", number),
    ]
}

#[test]
fn strangers_on_the_topics_of_a_pair_are_dropped() {
    let world = World::new();
    let (mut x, mut y) = End::two(&world, "p");
    let id = |end: &End| {
        let with = end.wait("paired")["with"].clone();
        with["id"].as_str().expect("id").to_owned()
    };
    let (own, other) = (id(&y), id(&x));
    let topic = format!("lab/infrastructure/pairs/p/to/{other}");
    x.write(b"1");
    assert_eq!(y.read(1), b"1");
    let mut stranger = Raw::connect(world.broker.port());
    let big = vec![0; 100_000];
    for _ in 0..200 {
        stranger.publish(&topic, b"x", &[]);
        stranger.publish(&topic, b"x", &letter("data", "stranger", &other, "2"));
        stranger.publish(&topic, b"x", &letter("data", &own, "stranger", "2"));
        stranger.publish(&topic, b"x", &letter("leave", "stranger", &other, "0"));
        // Again, and too large.
        stranger.publish(&topic, b"x", &letter("data", &own, &other, "1"));
        stranger.publish(&topic, b"x", &letter("odd", &own, &other, "2"));
        stranger.publish(&topic, b"x", &letter("data", &own, &other, "two"));
    }
    stranger.publish(&topic, &big, &letter("data", &own, &other, "2"));
    x.write(b"2");
    assert_eq!(y.read(1), b"2");
    // A number that leaves some out ends the pair.
    stranger.publish(&topic, b"x", &letter("data", &own, &other, "9"));
    let cause = y.failed(69);
    assert!(cause.contains("a message of it is missing"), "{cause}");
    assert!(x.failed(69).contains("it has left"));
}

/// A stranger may read and write all topics of a pair. It writes, in the name of one end and with the seal
/// of an earlier message, a message of `kind`; `change` makes what it writes of that.
fn forged(kind: &str, change: impl Fn(&mut Vec<(String, String)>)) {
    let world = World::new();
    let mut stranger = Raw::connect(world.broker.port());
    stranger.subscribe("lab/infrastructure/pairs/p/to/+");
    let (mut x, mut y) = End::two(&world, "p");
    let to = x.wait("paired")["with"]["id"].clone();
    let topic = Pair::new("lab", "p").letters(to.as_str().expect("id"));
    x.write(b"1");
    assert_eq!(y.read(1), b"1");
    let is_data = |m: &Heard| m.user.contains(&("tael-kind".into(), "data".into()));
    let mut user = stranger
        .hear("data", |m| m.topic == topic && is_data(m))
        .user;
    for (name, value) in &mut user {
        if name == "tael-kind" {
            kind.clone_into(value);
        }
    }
    change(&mut user);
    let user: Vec<(&str, &str)> = user.iter().map(|(n, v)| (&**n, &**v)).collect();
    stranger.send(&raw::publish(
        topic.as_bytes(),
        b"forged",
        Some(1),
        &user,
        false,
    ));
    let cause = y.failed(69);
    assert!(cause.contains("does not have its seal"), "{kind}: {cause}");
    let mut rest = Vec::new();
    x.output.read_to_end(&mut rest).expect("read");
    assert_eq!(rest, b"");
    assert!(x.failed(69).contains("it has left"), "{kind}");
}

fn set(user: &mut [(String, String)], name: &str, to: &str) {
    let found = user.iter_mut().find(|(n, _)| n == name);
    to.clone_into(&mut found.expect(name).1);
}

#[test]
fn bytes_that_another_program_writes_in_the_name_of_an_end_break_the_pair() {
    forged("data", |user| set(user, "tael-number", "2"));
    forged("data", |user| {
        set(user, "tael-number", "2");
        user.retain(|(name, _)| name != "tael-seal");
    });
}

#[test]
fn an_end_of_input_that_another_program_writes_breaks_the_pair() {
    forged("end", |user| set(user, "tael-number", "2"));
}

#[test]
fn acknowledgements_that_another_program_writes_break_the_pair() {
    for kind in ["ack", "stop"] {
        forged(kind, |user| set(user, "tael-number", "0"));
    }
}

#[test]
fn a_hello_with_another_key_breaks_the_pair() {
    forged("hello", |user| {
        user.push(("tael-key".into(), "A".repeat(43)));
    });
}

#[test]
fn a_claim_that_others_write_over_is_written_again() {
    let world = World::new();
    let (mut x, mut y) = End::two(&world, "p");
    let state = x.wait("paired");
    let topic = format!(
        "lab/infrastructure/pairs/p/{}",
        state["side"].as_str().expect("side")
    );
    let own = y.wait("paired")["with"]["id"].clone();
    let ears = world.ears(&[&topic]);
    for junk in ["{}", r#"{"id":"z","user":"eve","host":"h","since":1}"#, ""] {
        let before = ears.all().len();
        // QoS 1, retained.
        let mut packet = raw::publish(topic.as_bytes(), junk.as_bytes(), Some(1), &[], false);
        packet[0] |= 1;
        let mut stranger = Raw::connect(world.broker.port());
        stranger.send(&packet);
        assert_eq!(stranger.receive().0, 0x40);
        ears.wait_all("the claim again", |all| {
            let after = all.get(before..)?;
            let junk_at = after.iter().position(|m| m.payload["id"] != own)?;
            after[junk_at..]
                .iter()
                .find(|m| m.payload["id"] == own)
                .map(drop)
        });
    }
    x.write(b"still");
    assert_eq!(y.read(5), b"still");
    let mut third = world.tael(["pair", "p", "--root", "lab"]);
    refuses(third.env("TAEL_LOG", "warn"), 73, "taken by");
    drop(x.input.take());
    assert_eq!(y.finish().1, 0);
    assert_eq!(x.finish().1, 0);
}

#[test]
fn access_rules_refuse_an_end() {
    if !has_program("mosquitto", "access rules") {
        return;
    }
    let world = World::with(Setup {
        rules: Some("topic read lab/#\ntopic readwrite lab/infrastructure/replies/#\n"),
        ..Setup::default()
    });
    let mut end = world.tael(["pair", "p", "--root", "lab"]);
    let place = "publish to 'lab/infrastructure/pairs/p/";
    refuses(end.env("TAEL_LOG", "warn"), 77, place);
}

#[test]
fn an_end_that_stays_alone_gives_up() {
    let world = World::new();
    let ears = world.ears(&["lab/infrastructure/pairs/#"]);
    let mut alone = world.tael(["pair", "p", "--root", "lab", "--timeout", "1s"]);
    alone.env("TAEL_LOG", "warn");
    refuses(
        &mut alone,
        75,
        "pair p: no other end came within 1s; has it the same name, broker and root, 'lab'?",
    );
    // It has cleared its claim.
    ears.wait_all("a claim and its end", |all| {
        let claim = all.iter().position(|m| m.payload["host"].is_string())?;
        all[claim..].iter().find(|m| m.payload == "").map(drop)
    });
    refuses(
        alone.env("TAEL_PORT", free_port().to_string()),
        69,
        "is the broker running?",
    );
}

#[test]
fn a_signal_clears_the_claim_and_tells_the_other_end() {
    let world = World::new();
    let ears = world.ears(&["lab/infrastructure/pairs/#"]);
    let mut alone = End::start(&world, "alone", &[]);
    alone.wait("waiting");
    alone.process.signal(Signal::SIGTERM);
    assert_eq!(alone.process.wait(), 130);
    let (mut x, y) = End::two(&world, "p");
    x.process.signal(Signal::SIGINT);
    assert_eq!(x.process.wait(), 130);
    assert!(y.failed(69).contains("it has left"));
    for name in ["alone/", "p/"] {
        ears.wait_all("claims that are cleared", |all| {
            let of = format!("lab/infrastructure/pairs/{name}");
            let all: Vec<_> = all.iter().filter(|m| m.topic.starts_with(&of)).collect();
            let last = |side: &str| all.iter().rev().find(|m| m.topic == format!("{of}{side}"));
            let empty = |side| last(side).is_none_or(|m| m.payload == "");
            (!all.is_empty() && empty("a") && empty("b")).then_some(())
        });
    }
}

#[test]
fn a_reader_that_leaves_ends_the_pair() {
    let world = World::new();
    let (x, mut y) = End::two(&world, "p");
    let End {
        mut process,
        output,
        input,
    } = x;
    drop(output);
    y.write(b"unread");
    assert_eq!(process.wait(), 141, "{}", process.log_text());
    drop(input);
    let cause = y.failed(69);
    assert!(cause.contains("it has left"), "{cause}");
}

/// Returns what comes back from the end of `line` after it got `input`, the exit code of that end, and
/// this end.
fn through(line: &str, input: &[u8]) -> (Vec<u8>, i32, i32) {
    let world = World::new();
    let mut command = End::start(&world, "p", &["-c", line]);
    let mut x = End::start(&world, "p", &[]);
    x.wait("paired");
    // A command that takes nothing may have closed its input.
    let _ = x.input.as_mut().expect("stdin").write_all(input);
    let (got, code) = x.finish();
    (got, command.process.wait(), code)
}

#[test]
fn a_command_is_an_end() {
    let all = bytes(300_000);
    // A command that ends when it has taken all has taken all.
    for round in 0..20 {
        let (got, command, own) = through("cat", &all);
        assert_eq!((command, own), (0, 0), "{round}");
        assert!(got == all, "{round}: {} of {} bytes", got.len(), all.len());
    }
    // Its code is passed on, and so is a death by signal.
    assert_eq!(through("cat; exit 3", b"x"), (b"x".to_vec(), 3, 69));
    assert_eq!(through("cat; kill -9 $$", b"x"), (b"x".to_vec(), 137, 69));
    assert_eq!(through("no-such-command-at-all", b"").1, 127);
}

#[test]
fn a_command_that_fails_is_an_error_of_the_other_end() {
    let world = World::new();
    let last = |log: &str| -> Value {
        let line = log.lines().last().expect("line");
        serde_json::from_str(line).expect("json")
    };
    // That it comes at once, or takes nothing, changes nothing.
    for (line, code, ours) in [
        ("cat; exit 3", 3, 69),
        ("cat; kill -9 $$", 137, 69),
        ("exec >&-; cat; exit 4", 4, 69),
        ("cat; exit 0", 0, 0),
        ("exit 0", 0, 0),
        ("exit 5", 5, 69),
    ] {
        let mut command = End::start(&world, "p", &["-c", line]);
        let x = End::start(&world, "p", &[]);
        x.wait("paired");
        let log = x.process.log.clone();
        assert_eq!(x.finish().1, ours, "{line}");
        assert_eq!(command.process.wait(), code, "{line}");
        let ended = last(&fs::read_to_string(log).expect("log"));
        assert_eq!(
            (&ended["state"], &ended["code"], &ended["other_code"]),
            (&"ended".into(), &ours.into(), &code.into()),
            "{line}"
        );
        let ended = last(&command.process.log_text());
        assert_eq!(
            (&ended["code"], &ended["other_code"]),
            (&code.into(), &Value::Null)
        );
    }
    // A code of one's own comes first.
    for (own, expected) in [("true", 69), ("exit 6", 6)] {
        let mut x = End::start(&world, "p", &["-c", own]);
        let mut y = End::start(&world, "p", &["-c", "cat >/dev/null; exit 3"]);
        assert_eq!((x.process.wait(), y.process.wait()), (expected, 3));
    }
    // Without --json it says so.
    let mut command = End::start(&world, "p", &["-c", "cat >/dev/null; exit 3"]);
    let mut x = world.tael(["pair", "p", "--root", "lab"]);
    x.stdin(Stdio::null()).env("TAEL_LOG", "warn");
    let mut x = world.spawn(x);
    assert_eq!((x.wait(), command.process.wait()), (69, 3));
    let log = x.log_text();
    assert!(
        log.starts_with("tael: pair p: the command of the other end, ")
            && log.ends_with(", has ended with code 3\n"),
        "{log}"
    );
    // A command that closes its output, and goes on, is waited for; the end of its output is passed on.
    let go = world.path("go");
    let line = format!(
        "exec >&-; cat >/dev/null; until [ -e {} ]; do sleep 0.01; done; exit 4",
        go.display()
    );
    let mut command = End::start(&world, "p", &["-c", &line]);
    let mut x = End::start(&world, "p", &[]);
    let mut rest = Vec::new();
    x.output.read_to_end(&mut rest).expect("read");
    assert!(rest.is_empty());
    drop(x.input.take());
    fs::write(go, "").expect("write");
    assert_eq!((x.process.wait(), command.process.wait()), (69, 4));
}

#[test]
fn each_of_two_commands_learns_how_the_other_has_ended() {
    let world = World::new();
    let (from, to) = (world.path("from"), world.path("to"));
    fs::create_dir(&from).expect("folder");
    fs::create_dir(&to).expect("folder");
    fs::write(from.join("reads"), bytes(300_000)).expect("write");
    // The one that writes has ended long before the other one.
    let write = format!("tar c -C {} .", from.display());
    for (read, code, ours) in [
        (format!("tar x -C {}; sleep 0.3", to.display()), 0, 0),
        (
            format!("tar x -C {}; sleep 0.3; exit 2", to.display()),
            2,
            69,
        ),
        ("exec >&-; cat >/dev/null; sleep 0.3; exit 2".into(), 2, 69),
    ] {
        let mut x = End::start(&world, "p", &["-c", &write]);
        let mut y = End::start(&world, "p", &["-c", &read]);
        assert_eq!((x.process.wait(), y.process.wait()), (ours, code), "{read}");
        assert_eq!(x.states().pop().expect("state")["other_code"], code);
        assert_eq!(y.states().pop().expect("state")["other_code"], 0);
    }
}

#[test]
fn a_command_that_ends_ends_the_pair() {
    let world = World::new();
    let mut command = End::start(&world, "p", &["-c", "echo done"]);
    let mut x = End::start(&world, "p", &[]);
    // Our input stays open.
    assert_eq!(x.read(5), b"done\n");
    assert_eq!(command.process.wait(), 0);
    assert_eq!(x.process.wait(), 0, "{}", x.process.log_text());
}

#[test]
fn what_a_command_does_not_take_is_an_error_of_the_end_that_sent_it() {
    let world = World::new();
    let much = world.path("much");
    fs::write(&much, bytes(3_000_000)).expect("write");
    // However little of it was sent when the command ended.
    for (line, code, cause) in [
        ("head -c 1 >/dev/null", 0, "it has not taken everything"),
        ("exit 0", 0, "it has not taken everything"),
        (
            "exit 2",
            2,
            "its command has ended with code 2, and has not taken everything",
        ),
        (
            "exec <&-; sleep 0.2; exit 2",
            2,
            "its command has ended with code 2, and has not taken everything",
        ),
    ] {
        let mut command = End::start(&world, "q", &["-c", line]);
        let mut x = world.tael(["pair", "q", "--root", "lab", "--json"]);
        x.stdin(fs::File::open(&much).expect("open"));
        x.stdout(Stdio::piped());
        let mut process = world.spawn(x);
        let output = process.child.stdout.take().expect("stdout");
        let x = End {
            process,
            input: None,
            output,
        };
        assert_eq!(command.process.wait(), code, "{line}");
        let error = x.failed(69);
        assert!(error.contains(cause), "{line}: {error}");
    }
}

#[test]
fn output_of_a_command_that_has_ended_waits_for_a_slow_reader() {
    let world = World::new();
    let all = bytes(2 * HELD);
    let (half, end) = (world.path("half"), world.path("end"));
    fs::write(&half, &all).expect("write");
    // The last of it is written by a process that outlives the command.
    let line = format!(
        "cat {0} & wait; (sleep 1; cat {0}; touch {1}) &",
        half.display(),
        end.display()
    );
    let mut command = End::start(&world, "p", &["-c", &line]);
    let mut x = End::start(&world, "p", &[]);
    x.wait("paired");
    let first = x.read(all.len());
    // Longer than the command's output may be silent after its end: no condition shows that the copy is
    // still there.
    thread::sleep(Duration::from_secs(4));
    assert!(!end.exists(), "nothing waits for us");
    let (rest, code) = x.finish();
    assert!(
        first == all && rest == all,
        "{} of {}",
        rest.len(),
        all.len()
    );
    assert_eq!((code, command.process.wait()), (0, 0));
}

#[test]
fn a_command_ends_with_its_pair() {
    let world = World::new();
    let started = world.path("started");
    let line = format!("echo $$ >{}; exec sleep 600", started.display());
    let command = End::start(&world, "p", &["-c", &line]);
    let x = End::start(&world, "p", &[]);
    wait_until("the command runs", || world.lines("started").len() == 1);
    let pid = world.lines("started")[0].clone();
    x.process.kill();
    assert!(command.failed(69).contains("it is gone"));
    assert!(
        !fs::exists(format!("/proc/{pid}")).expect("proc"),
        "it is left"
    );
}

#[test]
fn netcat_connects_a_port() {
    if !has_program("nc", "a port behind a pair") {
        return;
    }
    let listener = TcpListener::bind("127.0.0.1:0").expect("port");
    let port = listener.local_addr().expect("address").port();
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("accept");
        let mut got = Vec::new();
        stream.read_to_end(&mut got).expect("read");
        got.reverse();
        stream.write_all(&got).expect("write");
    });
    let (got, code, own) = through(&format!("nc -N 127.0.0.1 {port}"), b"abc");
    server.join().expect("server");
    assert_eq!((got, code, own), (b"cba".to_vec(), 0, 0));
}

/// Returns a search path on which `tael` is found.
fn path_with_tael(world: &World) -> String {
    let tael = world.command("tael");
    let folder = std::path::Path::new(tael.get_program()).parent();
    let path = std::env::var("PATH").expect("PATH");
    format!("{}:{path}", folder.expect("folder").display())
}

#[test]
fn the_lines_of_the_page_copy_a_folder() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/requests.md");
    let page = fs::read_to_string(page).expect("page");
    let blocks: Vec<&str> = page.split("```sh pair\n").skip(1).collect();
    assert_eq!(blocks.len(), 1);
    let block = blocks[0].split("```").next().expect("block");
    let lines: Vec<&str> = block.lines().collect();
    assert_eq!(lines.len(), 2, "{block}");
    let world = World::new();
    let all = bytes(200_000);
    fs::create_dir_all(world.path("from/run7/deep")).expect("folder");
    fs::create_dir(world.path("to")).expect("folder");
    fs::write(world.path("from/run7/deep/reads"), &all).expect("file");
    let path = path_with_tael(&world);
    let mut ends: Vec<Process> = ["from", "to"]
        .into_iter()
        .zip(lines)
        .map(|(folder, line)| {
            let mut sh = Command::new("bash");
            sh.args(["-o", "pipefail", "-c", line])
                .current_dir(world.path(folder))
                .env("PATH", &path)
                .envs(world.broker.environment())
                .stdin(Stdio::null());
            world.spawn(sh)
        })
        .collect();
    for end in &mut ends {
        assert_eq!(end.wait(), 0, "{}", end.log_text());
    }
    assert!(fs::read(world.path("to/run7/deep/reads")).expect("file") == all);
}

#[test]
fn ssh_goes_through_a_pair() {
    let needs = [
        ("ssh", "ssh through a pair"),
        ("sshd", "ssh through a pair"),
    ];
    let root = nix::unistd::geteuid().is_root();
    if !needs
        .iter()
        .all(|(program, what)| has_program(program, what))
    {
        return;
    }
    let world = World::new();
    for key in ["host", "user"] {
        let mut make = Command::new("ssh-keygen");
        make.args(["-q", "-t", "ed25519", "-N", "", "-f"])
            .arg(world.path(key));
        assert_eq!(ran(&mut make).0, 0);
    }
    if root {
        // Its service makes it (`sshd(8)`).
        fs::create_dir_all("/run/sshd").expect("/run/sshd");
    }
    let dir = world.dir.path().display();
    let config = world.file(
        "sshd_config",
        format!(
            "HostKey {dir}/host\nAuthorizedKeysFile {dir}/user.pub\nStrictModes no\nUsePAM no\n\
             PidFile none\nPermitRootLogin yes\n"
        ),
    );
    let sshd = ran(Command::new("sh").args(["-c", "command -v sshd"])).1;
    let line = format!("exec {} -i -e -f {config}", sshd.trim());
    let _server = End::by(
        &world,
        world.tael(["pair", "rescue", "--json", "-c", &line]),
    );
    // The example logs in.
    let path = path_with_tael(&world);
    let mut ssh = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/pair.sh"));
    ssh.args(["ssh", "rescue", "-F", "none", "-o", "BatchMode=yes"])
        .args([
            "-o",
            "StrictHostKeyChecking=no",
            "-o",
            "UserKnownHostsFile=/dev/null",
        ])
        .arg("-i")
        .arg(world.path("user"))
        .env("PATH", path)
        .arg("seq1")
        .arg("echo through; exit 5")
        .env("TAEL_LOG", "warn")
        .stdin(Stdio::null());
    ssh.envs(world.broker.environment());
    let (code, out, error) = ran(&mut ssh);
    assert_eq!((code, &*out), (5, "through\n"), "{error}");
}

#[test]
fn a_pair_checks_its_options() {
    let dir = World::new();
    let pair = |more: &[&str]| {
        let mut command = dir.tael(["pair"]);
        command.args(more).env("TAEL_LOG", "warn");
        command
    };
    refuses(&mut pair(&["a/b"]), 64, "'a/b' cannot name a pair");
    refuses(&mut pair(&["p", "--id", "x"]), 64, "pair takes no --id");
    refuses(&mut pair(&["p", "-c", " "]), 64, "the command is empty");
    refuses(&mut pair(&["p", "--root", "a/#"]), 64, "root");
    refuses(&mut pair(&["p", "--timeout", "soon"]), 64, "soon");
    refuses(
        &mut pair(&["p", "--broker", "mqtt://a,mqtt://b"]),
        64,
        "--cluster",
    );
}

/// Connects with a client identifier, with clean start.
fn raw_as(world: &World, id: &str) -> Raw {
    let stream = TcpStream::connect(("127.0.0.1", world.broker.port())).expect("connect");
    let mut raw = Raw::over(stream);
    let mut body = raw::string(b"MQTT");
    body.extend([5, 2, 0, 60, 0]);
    body.extend(raw::string(id.as_bytes()));
    raw.send(&raw::packet(0x10, &body));
    assert_eq!(raw.receive().0, 0x20);
    raw
}

#[test]
fn a_contestant_that_has_looked_long_ago_takes_no_side() {
    let world = World::new();
    let pair = Pair::new("lab", "p");
    // It has looked, and both sides were free.
    let mut late = raw_as(&world, &pair.claim_client());
    let (mut x, mut y) = End::two(&world, "p");
    let junk = br#"{"id":"0","user":"late","host":"h","since":1}"#;
    for side in [Side::A, Side::B] {
        let mut claim = raw::publish(pair.claim(side).as_bytes(), junk, Some(1), &[], false);
        claim[0] |= 1;
        late.try_send(&claim);
    }
    let ears = world.ears(&["lab/infrastructure/pairs/p/+"]);
    ears.wait_all("both claims", |all| {
        let of = |side| all.iter().any(|m| m.topic == pair.claim(side));
        (of(Side::A) && of(Side::B)).then_some(())
    });
    assert!(ears.all().iter().all(|m| m.payload["user"] != "late"));
    x.write(b"still");
    assert_eq!(y.read(5), b"still");
    // Others that come, and go, change nothing either.
    for _ in 0..3 {
        drop(raw_as(&world, &pair.claim_client()));
        refuses(
            world
                .tael(["pair", "p", "--root", "lab"])
                .env("TAEL_LOG", "warn"),
            73,
            "taken by",
        );
    }
    y.write(b"back");
    assert_eq!(x.read(4), b"back");
    drop(x.input.take());
    assert_eq!(y.finish().1, 0);
    assert_eq!(x.finish().1, 0);
}

#[test]
fn full_pipes_both_ways_wait_and_go_on() {
    let world = World::new();
    let (mut x, mut y) = End::two(&world, "full");
    let all = Arc::new(bytes(HELD * 2));
    let written = Arc::new(AtomicUsize::new(0));
    // Each writes all before it reads.
    let writers: Vec<_> = [&mut x, &mut y]
        .map(|end| {
            let mut input = end.input.take().expect("stdin");
            let (source, count) = (Arc::clone(&all), Arc::clone(&written));
            thread::spawn(move || {
                for part in source.chunks(1024) {
                    input.write_all(part).expect("write");
                    count.fetch_add(part.len(), Ordering::Relaxed);
                }
            })
        })
        .into();
    wait_until("both windows are full", || {
        written.load(Ordering::Relaxed) >= 2 * 32 * 16 * 1024
    });
    let read = |mut end: End| {
        let mut got = Vec::new();
        end.output.read_to_end(&mut got).expect("read");
        assert!(got == *all, "{} bytes", got.len());
        assert_eq!(end.process.wait(), 0);
    };
    thread::scope(|scope| {
        scope.spawn(|| read(x));
        read(y);
    });
    writers.into_iter().for_each(|w| w.join().expect("writer"));
}

#[test]
fn forged_claims_and_hellos_make_no_pair() {
    let world = World::new();
    let pair = Pair::new("lab", "p");
    let mut x = End::start(&world, "p", &[]);
    x.wait("waiting");
    let ears = world.ears(&["lab/infrastructure/pairs/p/a"]);
    let claim = ears.wait_all("its claim", |all| all.first().cloned());
    let own = claim.payload["id"].as_str().expect("id").to_owned();
    let mut stranger = Raw::connect(world.broker.port());
    let letters = pair.letters(&own);
    for n in 0..1000 {
        let from = format!("stranger{n}");
        stranger.publish(&letters, b"x", &letter("hello", &from, &own, "0"));
        stranger.publish(&letters, b"x", &letter("leave", &from, &own, "0"));
        stranger.publish(&letters, b"x", &letter("data", &from, &own, "1"));
    }
    // A claim of an end that does not exist, and ids that are no level of a topic.
    for id in ["+", "#", "a/b", "0"] {
        let forged = format!(r#"{{"id":"{id}","user":"eve","host":"h","since":1}}"#);
        for topic in [pair.claim(Side::B), pair.presence("0")] {
            let mut packet = raw::publish(topic.as_bytes(), forged.as_bytes(), Some(1), &[], false);
            packet[0] |= 1;
            stranger.send(&packet);
            assert_eq!(stranger.receive().0, 0x40);
        }
    }
    // The one who forged it is gone.
    let mut packet = raw::publish(pair.presence("0").as_bytes(), b"", Some(1), &[], false);
    packet[0] |= 1;
    stranger.send(&packet);
    assert_eq!(stranger.receive().0, 0x40);
    assert!(x.states().iter().all(|state| state["state"] == "waiting"));
    let mut y = End::start(&world, "p", &[]);
    y.write(b"real");
    assert_eq!(x.read(4), b"real");
    drop(x.input.take());
    assert_eq!(y.finish().1, 0);
    assert_eq!(x.finish().1, 0);
}

#[test]
#[ignore = "takes long: .ci/run runs it"]
fn an_end_that_stands_still_for_half_a_minute_goes_on() {
    let world = World::new();
    let (mut x, mut y) = End::two(&world, "p");
    x.process.signal(Signal::SIGSTOP);
    y.write(b"meanwhile");
    thread::sleep(Duration::from_secs(30));
    let mut third = world.tael(["pair", "p", "--root", "lab"]);
    refuses(third.env("TAEL_LOG", "warn"), 73, "taken by");
    x.process.signal(Signal::SIGCONT);
    assert_eq!(x.read(9), b"meanwhile");
    drop(x.input.take());
    assert_eq!(y.finish().1, 0);
    assert_eq!(x.finish().1, 0);
}

#[test]
#[ignore = "takes long: .ci/run runs it"]
fn an_end_that_stands_still_for_too_long_ends_and_joins_no_other_pair() {
    let world = World::new();
    // The broker takes it for gone after one and a half keep-alives.
    let mut x = End::start(&world, "p", &["-k", "5"]);
    let mut y = End::start(&world, "p", &["-k", "5"]);
    x.wait("paired");
    y.wait("paired");
    x.process.signal(Signal::SIGSTOP);
    y.write(b"never read");
    assert!(y.failed(69).contains("it is gone"));
    // The side is free: two others are a pair, and bytes of before reach none of them.
    let (mut z, mut w) = End::two(&world, "p");
    z.write(b"new");
    assert_eq!(w.read(3), b"new");
    let _ = x.input.as_mut().expect("open").write_all(b"late");
    x.process.signal(Signal::SIGCONT);
    let mut rest = Vec::new();
    x.output.read_to_end(&mut rest).expect("read");
    assert!(b"never read".starts_with(&rest), "{rest:?}");
    let cause = x.failed(69);
    assert!(
        cause.contains("lost the broker") || cause.contains("it is gone"),
        "{cause}"
    );
    w.write(b"still");
    assert_eq!(z.read(5), b"still");
    drop(z.input.take());
    assert_eq!(w.finish(), (Vec::new(), 0));
    assert_eq!(z.finish(), (Vec::new(), 0));
}

#[test]
fn a_pair_on_a_broker_of_small_packets_sends_smaller_parts() {
    if !has_program("mosquitto", "a broker of small packets") {
        return;
    }
    let world = World::with(Setup {
        max_packet: Some(4000),
        ..Setup::default()
    });
    let (mut x, y) = End::two(&world, "small");
    let sent: Vec<u8> = (0..200_000_u32).map(|n| (n % 251) as u8).collect();
    let bytes = sent.clone();
    let mut input = x.input.take().expect("open");
    let writer = thread::spawn(move || input.write_all(&bytes));
    let (got, code) = y.finish();
    writer.join().expect("writer").expect("write");
    assert!(got == sent, "{} of {}", got.len(), sent.len());
    assert_eq!((code, x.finish().1), (0, 0));
}

#[test]
fn a_pair_says_that_the_packets_of_a_broker_are_too_small() {
    let dir = tempfile::tempdir().expect("tempdir");
    let broker = raw::Scripted::listen();
    let mut command = bare_command(&dir, "tael");
    command
        .args(["pair", "small", "--root", "lab", "-H", "127.0.0.1", "-p"])
        .arg(broker.port().to_string())
        .stdin(Stdio::null());
    let child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("tael pair");
    // Maximum Packet Size: 1000.
    let mut raw = broker.accept_with(&[&[0x27][..], &1000_u32.to_be_bytes()].concat());
    raw.serve_subscription();
    let (code, _, stderr) = ended(child);
    assert_eq!(code, 69, "{stderr}");
    assert!(stderr.contains("packets of 1000 bytes at most"), "{stderr}");
}
