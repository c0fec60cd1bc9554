//! A client that is killed at every step, and at random times. The command of each event with an id
//! runs once, and its end is published.

use std::collections::{HashMap, HashSet};

use crate::common::raw::Raw;
use crate::common::{Ears, World, wait_until};

const SEQ: &str = "lab/seq/status";
const RUN: &str = r#"echo "$ATTR_N" >>"$OUT/runs""#;

fn send(raw: &mut Raw, n: usize) {
    let payload = format!(r#"{{"status":"finished","n":{n}}}"#);
    let id = format!("event-{n}");
    raw.publish(SEQ, payload.as_bytes(), &[("tael-id", &id)]);
}

/// Returns the ids of the `finished` statuses of each event. A status that was published twice has
/// one id.
fn ends(ears: &Ears) -> HashMap<String, HashSet<String>> {
    let mut ends: HashMap<String, HashSet<String>> = HashMap::new();
    for message in ears
        .all()
        .iter()
        .filter(|m| m.status() == "finished" && m.topic != SEQ)
    {
        let text = |key: &str| {
            message.properties[key]
                .as_str()
                .expect("property")
                .to_owned()
        };
        ends.entry(text("tael-cause"))
            .or_default()
            .insert(text("tael-id"));
    }
    ends
}

/// Waits for the statuses of all `events`, and checks that each ran and was published once.
#[track_caller]
fn once_each(world: &World, ears: &Ears, events: usize) {
    ears.wait_all("all ends", |_| (ends(ears).len() >= events).then_some(()));
    let mut runs: Vec<usize> = world
        .lines("runs")
        .iter()
        .map(|n| n.parse().expect("n"))
        .collect();
    runs.sort_unstable();
    assert_eq!(
        runs,
        (0..events).collect::<Vec<_>>(),
        "each event runs exactly once"
    );
    for (event, told) in ends(ears) {
        assert_eq!(told.len(), 1, "the end of {event} is told once");
    }
    assert!(
        !ears.any(|m| m.status() == "failed"),
        "nothing was interrupted"
    );
}

fn killed_at(point: &str) {
    let world = World::new();
    let arguments = ["-t", SEQ, "-c", RUN];
    // The session exists before the first message.
    world.client("p", &arguments).stop();
    let ears = world.ears(&["lab/#"]);
    let mut dying = world.command("tael-client");
    dying.args(["--who", "p", "--root", "lab"]).args(arguments);
    dying.env("TAEL_FAILPOINT", point);
    let mut dying = world.online("p", dying);
    let mut raw = Raw::connect(world.broker.port());
    send(&mut raw, 0);
    assert_eq!(dying.wait(), 128 + 9, "{point} is reached");
    let client = world.client("p", &arguments);
    send(&mut raw, 1);
    once_each(&world, &ears, 2);
    client.stop();
}

macro_rules! killed_at {
    ($($name:ident: $point:literal),* $(,)?) => {
        $(#[test] fn $name() { killed_at($point); })*
    };
}

killed_at! {
    killed_before_the_commit: "commit.before",
    killed_after_the_commit: "commit.after",
    killed_after_the_acknowledgement: "ack.after",
    killed_before_the_spawn: "spawn.before",
    killed_after_the_spawn: "spawn.after",
    killed_before_the_start_is_booked: "started.before",
    killed_before_the_outcome_is_booked: "outcome.before",
    killed_before_the_settlement: "settle.before",
    killed_after_the_settlement: "settle.after",
    killed_before_the_publish: "publish.before",
    killed_after_the_publish: "publish.after",
}

/// Kills the client repeatedly while `events` come.
fn killed_under_load(events: usize, kills: usize) {
    let world = World::new();
    let arguments = ["-t", SEQ, "-c", RUN, "--jobs", "3", "--log", "none"];
    world.client("p", &arguments).stop();
    let ears = world.ears(&["lab/infrastructure/#"]);
    let port = world.broker.port();
    let sender = std::thread::spawn(move || {
        let mut raw = Raw::connect(port);
        (0..events).for_each(|n| send(&mut raw, n));
    });
    let mut seed = 42_u64;
    for kill in 1..=kills {
        let mut command = world.command("tael-client");
        command
            .args(["--who", "p", "--root", "lab"])
            .args(arguments);
        let client = world.spawn(command);
        // The place between two kills differs each time.
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let step = usize::try_from(seed >> 33).expect("usize") % (events / kills);
        let until = (kill - 1) * events / kills + step;
        wait_until("some more have run", || world.lines("runs").len() >= until);
        client.kill();
    }
    let client = world.client("p", &arguments);
    sender.join().expect("sender");
    once_each(&world, &ears, events);
    client.stop();
}

#[test]
fn killed_at_random_under_load() {
    killed_under_load(500, 25);
}

#[test]
#[ignore = "a soak of many minutes; run it with --ignored"]
fn killed_at_random_for_long() {
    killed_under_load(20_000, 400);
}
