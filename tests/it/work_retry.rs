//! Runs that a person has run again, or has ended.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::thread;

use crate::common::{World, ran, refuses, wait_until};
use serde_json::Value;

const SEQ: &str = "lab/seq/status";

/// Fails until the file `fixed` is there.
const FAILS: &str = r#"echo "$TAEL_ATTEMPT $ATTR_N $(wc -c)" >>"$OUT/runs"; [ -e "$OUT/fixed" ]"#;

fn units(world: &World) -> Vec<Value> {
    let (code, out, stderr) = ran(&mut world.tael(["work", "list", "--json"]));
    assert_eq!(code, 0, "{stderr}");
    serde_json::from_str(&out).expect("json")
}

/// Waits until the units have these states, and returns their ids.
#[track_caller]
fn booked(world: &World, states: &[&str]) -> Vec<String> {
    let mut ids = Vec::new();
    wait_until(&format!("units are {states:?}"), || {
        let units = units(world);
        let text = |unit: &Value, key: &str| unit[key].as_str().expect("text").to_owned();
        ids = units.iter().map(|unit| text(unit, "unit")).collect();
        // A unit counts when its client has booked its end.
        let open = |unit: &Value| unit["ended"].is_null() && unit["started"].is_number();
        let is = units.iter().map(|unit| text(unit, "state"));
        is.eq(states.iter().copied()) && !units.iter().any(open)
    });
    ids
}

fn event(world: &World, n: &str) {
    world.message(SEQ, &[("status", "finished"), ("n", n)]);
}

/// Retries a run, and returns the id of the new one.
#[track_caller]
fn retried(world: &World, arguments: &[&str]) -> String {
    let mut command = world.tael(["work", "retry", "--json"]);
    let (code, out, stderr) = ran(command.args(arguments));
    assert_eq!(code, 0, "{stderr}");
    let answer: Value = serde_json::from_str(&out).expect("json");
    answer["unit"].as_str().expect("unit").to_owned()
}

#[test]
fn a_failed_run_is_retried_once_unless_a_person_insists() {
    let world = World::new();
    let client = world.client("p", &["-t", SEQ, "-c", FAILS]);
    let ears = world.ears(&["lab/#"]);
    event(&world, "7");
    let first = booked(&world, &["failed"]).remove(0);
    fs::write(world.path("fixed"), "").expect("fixed");
    let (code, out, stderr) = ran(&mut world.tael(["work", "retry"]));
    assert_eq!((code, stderr.as_str()), (0, ""));
    let second = booked(&world, &["failed", "succeeded"]).remove(1);
    assert_eq!(out, format!("p: tried again as unit {second}\n"));
    let finished = ears.status("p", "finished");
    assert_eq!(finished.properties["tael-cause"], units(&world)[0]["event"]);
    // Neither needs one, by whichever command.
    let retry = |unit: &str| world.tael(["work", "retry", unit]);
    let control = |arguments: &[&str]| world.control(&[&["p", "retry"], arguments].concat());
    refuses(&mut retry(&second), 65, "has succeeded: --again");
    refuses(
        &mut world.tael(["work", "retry"]),
        65,
        "--failed takes the newest one",
    );
    let was = format!("was retried as unit {second}: --again");
    refuses(&mut retry(&first), 65, &was);
    for (unit, text) in [(&second, "has succeeded: --again"), (&first, &was)] {
        let (code, _, stderr) = control(&[unit]);
        assert_eq!(code, 65);
        assert!(stderr.contains(text), "{stderr}");
    }
    // The last failed run was retried.
    assert_eq!(control(&[]).0, 65);
    retried(&world, &[&first, "--again"]);
    assert_eq!(control(&[&second, "--again"]).0, 0);
    let states = ["failed", "succeeded", "succeeded", "succeeded"];
    booked(&world, &states);
    event(&world, "sentinel");
    booked(&world, &[&states[..], &["succeeded"]].concat());
    let runs = world.lines("runs");
    let payload = runs[0].rsplit(' ').next().expect("bytes");
    let run = |attempt: u32| format!("{attempt} 7 {payload}");
    assert_eq!(runs[..4], [run(1), run(2), run(2), run(3)]);
    assert!(runs[4].starts_with("1 sentinel "), "{runs:?}");
    client.stop();
}

#[test]
fn a_retry_without_a_client_runs_at_its_next_start() {
    let world = World::new();
    let arguments = ["-t", SEQ, "-c", FAILS];
    let client = world.client("p", &arguments);
    event(&world, "7");
    booked(&world, &["failed"]);
    client.stop();
    fs::write(world.path("fixed"), "").expect("fixed");
    let (code, _, stderr) = ran(&mut world.tael(["work", "retry", "latest"]));
    assert_eq!(code, 0, "{stderr}");
    assert!(
        stderr.contains("its client starts it when it is started"),
        "{stderr}"
    );
    assert_eq!(booked(&world, &["failed", "pending"]).len(), 2);
    refuses(
        &mut world.tael(["work", "retry", "--failed"]),
        65,
        "was not retried already",
    );
    refuses(
        &mut world.tael(["work", "retry"]),
        65,
        "has not ended: it is pending",
    );
    let client = world.client("p", &arguments);
    booked(&world, &["failed", "succeeded"]);
    event(&world, "sentinel");
    booked(&world, &["failed", "succeeded", "succeeded"]);
    assert_eq!(world.lines("runs").len(), 3);
    client.stop();
}

#[test]
fn many_retries_at_once_make_one_run() {
    let world = World::new();
    let client = world.client("p", &["-t", SEQ, "-c", FAILS]);
    event(&world, "7");
    booked(&world, &["failed"]);
    fs::write(world.path("fixed"), "").expect("fixed");
    let racers: Vec<_> = (0..8)
        .map(|_| {
            let mut retry = world.tael(["work", "retry", "--failed"]);
            thread::spawn(move || ran(&mut retry))
        })
        .collect();
    let ends: Vec<_> = racers
        .into_iter()
        .map(|racer| racer.join().expect("racer"))
        .collect();
    let won = ends.iter().filter(|(code, _, _)| *code == 0).count();
    assert_eq!(won, 1, "{ends:?}");
    assert!(
        ends.iter().all(|(code, _, _)| [0, 65].contains(code)),
        "{ends:?}"
    );
    booked(&world, &["failed", "succeeded"]);
    event(&world, "sentinel");
    booked(&world, &["failed", "succeeded", "succeeded"]);
    assert_eq!(world.lines("runs").len(), 3);
    client.stop();
}

#[test]
fn a_retry_that_is_killed_when_it_is_written_runs() {
    let world = World::new();
    let client = world.client("p", &["-t", SEQ, "-c", FAILS]);
    event(&world, "7");
    booked(&world, &["failed"]);
    fs::write(world.path("fixed"), "").expect("fixed");
    let mut retry = world.tael(["work", "retry", "--failed"]);
    retry.env("TAEL_FAILPOINT", "retry.after");
    assert_eq!(ran(&mut retry).0, -1, "a signal has ended it");
    booked(&world, &["failed", "succeeded"]);
    // One that is killed before names a run that is not there.
    let mut stream = UnixStream::connect(world.state().join("p/retries")).expect("connect");
    stream
        .write_all(b"01HQWWA400000000000000000Z\n")
        .expect("id");
    drop(stream);
    event(&world, "sentinel");
    booked(&world, &["failed", "succeeded", "succeeded"]);
    assert_eq!(world.lines("runs").len(), 3);
    client.stop();
}

#[test]
fn a_run_that_is_named_twice_runs_once() {
    let world = World::new();
    let client = world.client("p", &["-t", SEQ, "-c", FAILS]);
    event(&world, "7");
    booked(&world, &["failed"]);
    fs::write(world.path("fixed"), "").expect("fixed");
    assert_eq!(world.control(&["p", "pause"]).0, 0);
    let unit = retried(&world, &[]);
    let say = |line: &str| {
        let mut stream = UnixStream::connect(world.state().join("p/retries")).expect("connect");
        stream.write_all(line.as_bytes()).expect("write");
        stream
            .shutdown(std::net::Shutdown::Write)
            .expect("shutdown");
        let mut answer = String::new();
        stream
            .read_to_string(&mut answer)
            .map(|_| answer)
            .unwrap_or_default()
    };
    assert_eq!(say(&format!("{unit}\n")), "taken\n");
    // What is no line, or too long for one, gets no answer, and does no harm.
    for odd in ["", "half", &"x".repeat(10_000)] {
        assert_eq!(say(odd), "");
    }
    assert_eq!(say("unknown\n"), "taken\n");
    event(&world, "sentinel");
    booked(&world, &["failed", "pending", "pending"]);
    assert_eq!(world.control(&["p", "resume"]).0, 0);
    booked(&world, &["failed", "succeeded", "succeeded"]);
    assert_eq!(say(&format!("{unit}\n")), "taken\n", "it has ended");
    event(&world, "last");
    booked(&world, &["failed", "succeeded", "succeeded", "succeeded"]);
    assert_eq!(world.lines("runs").len(), 4);
    client.stop();
}

#[test]
fn what_has_not_ended_or_was_not_booked_is_not_retried() {
    let world = World::new();
    let command = r#"echo run >>"$OUT/runs"; until [ -e "$OUT/go" ]; do sleep 0.02; done; exit 3"#;
    let client = world.client("p", &["-t", SEQ, "-c", command]);
    event(&world, "7");
    wait_until("it runs", || world.lines("runs").len() == 1);
    refuses(
        &mut world.tael(["work", "retry"]),
        65,
        "has not ended: it is running",
    );
    client.kill();
    fs::write(world.path("go"), "").expect("go");
    wait_until("it has ended", || units(&world)[0]["state"] == "failed");
    refuses(
        &mut world.tael(["work", "retry"]),
        75,
        "has not booked its end",
    );
}

#[test]
fn a_run_that_a_person_has_ended_is_canceled_wherever_people_look() {
    let world = World::new();
    let command = r#"echo run >>"$OUT/runs"; until [ -e "$OUT/go" ]; do sleep 0.02; done; exit 3"#;
    let client = world.client("p", &["-t", SEQ, "-c", command]);
    let ears = world.ears(&["lab/#"]);
    event(&world, "7");
    wait_until("it runs", || world.lines("runs").len() == 1);
    let (code, _, stderr) = ran(&mut world.tael(["work", "cancel"]));
    assert_eq!(code, 0, "{stderr}");
    // The wire stays as it is, and a property tells.
    let failed = ears.status("p", "failed");
    assert_eq!(failed.payload["return_code"], 143);
    assert_eq!(failed.payload["announce"], true);
    assert_eq!(failed.properties["tael-end"], "canceled");
    let last = ears.wait("the last end", |m| m.topic.ends_with("/last"));
    assert_eq!(last.payload["end"], "canceled");
    booked(&world, &["canceled"]);
    let shown = |arguments: &[&str]| {
        let (code, out, stderr) = ran(&mut world.tael(arguments));
        assert_eq!(code, 0, "{arguments:?}: {out}{stderr}");
        out
    };
    assert!(shown(&["work", "list"]).contains("  canceled  "));
    assert!(shown(&["work", "status"]).contains("state          canceled\n"));
    let status = shown(&["status", "--root", "lab"]);
    assert!(
        status.contains("canceled") && !status.contains("failed"),
        "{status}"
    );
    let check = shown(&[
        "check", "--who", "p", "--root", "lab", "--failed", "critical",
    ]);
    assert!(check.contains("last run canceled "), "{check}");
    assert!(client.log_text().contains("canceled after "));
    // The next one that fails has failed.
    fs::write(world.path("go"), "").expect("go");
    event(&world, "8");
    let failed = ears.wait("a failure", |m| m.payload["return_code"] == 3);
    assert_eq!(failed.properties.get("tael-end"), None);
    ears.wait("the last end", |m| {
        m.topic.ends_with("/last")
            && m.payload["last"]["return_code"] == 3
            && m.payload.get("end").is_none()
    });
    client.stop();
}

#[test]
fn all_that_failed_last_night_are_retried_once() {
    let world = World::new();
    let client = world.client("p", &["-t", SEQ, "-c", FAILS]);
    for n in ["1", "2", "3", "4"] {
        event(&world, n);
    }
    let first = booked(&world, &["failed"; 4]);
    fs::write(world.path("fixed"), "").expect("fixed");
    let retry = |arguments: &[&str]| {
        let mut command = world.tael(["work", "retry"]);
        let (code, out, stderr) = ran(command.args(arguments));
        (code, out.lines().count(), stderr)
    };
    // One after the other, the newest first, and none twice.
    let newest = retried(&world, &["--failed"]);
    let answer = units(&world);
    let of = |id: &str| answer.iter().find(|unit| unit["unit"] == *id);
    assert_eq!(of(&newest).expect("retry")["retry_of"], *first[3]);
    // Several units, of which one needs none.
    let (code, lines, stderr) = retry(&[&first[3], &first[0]]);
    assert_eq!((code, lines), (65, 1), "{stderr}");
    assert!(stderr.contains("was retried as unit"), "{stderr}");
    let (code, lines, stderr) = retry(&["--failed", "--grep", "n=7"]);
    assert_eq!((code, lines), (65, 0), "{stderr}");
    let (code, lines, stderr) = retry(&["--failed", "--since", "1d"]);
    assert_eq!((code, lines, stderr.as_str()), (0, 2, ""));
    for arguments in [&["--failed", "--all"][..], &["--failed"]] {
        let (code, lines, stderr) = retry(arguments);
        assert_eq!((code, lines), (65, 0), "{stderr}");
        assert!(stderr.contains("was not retried already"), "{stderr}");
    }
    let states = [["failed"; 4], ["succeeded"; 4]].concat();
    booked(&world, &states);
    event(&world, "sentinel");
    booked(&world, &[&states[..], &["succeeded"]].concat());
    assert_eq!(world.lines("runs").len(), 9);
    // Nothing is left to do, and the list says so; all four are still there.
    let listed = |arguments: &[&str]| {
        let mut command = world.tael(["work", "list"]);
        let (code, out, _) = ran(command.args(arguments));
        assert_eq!(code, 0);
        out.lines().skip(1).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(listed(&["--failed"]), [""; 0]);
    let failed = listed(&["--state", "failed"]);
    assert_eq!(failed.len(), 4);
    assert!(failed.iter().all(|row| row.contains(" retried ")));
    for wrong in [&["--all"][..], &["--failed", "--all", "--again"]] {
        assert_eq!(retry(wrong).0, 64, "{wrong:?}");
    }
    client.stop();
}

#[test]
fn a_retry_that_fails_again_stays_in_the_list() {
    let world = World::new();
    let client = world.client("p", &["-t", SEQ, "-c", FAILS, "--retries", "1"]);
    event(&world, "1");
    let ids = booked(&world, &["failed", "failed"]);
    let mut list = world.tael(["work", "list", "--failed"]);
    let (_, out, _) = ran(&mut list);
    let states: Vec<&str> = out
        .lines()
        .skip(1)
        .filter_map(|row| row.split_whitespace().nth(3))
        .collect();
    assert_eq!(states, ["retried", "failed"]);
    fs::write(world.path("fixed"), "").expect("fixed");
    let (code, _, stderr) = ran(&mut world.tael(["work", "retry", "--failed", "--all"]));
    assert_eq!(code, 0, "{stderr}");
    let all = booked(&world, &["failed", "failed", "succeeded"]);
    assert_eq!(units(&world)[2]["retry_of"], *ids[1], "{all:?}");
    let (_, out, _) = ran(&mut world.tael(["work", "list", "--failed", "--json"]));
    assert_eq!(out, "[]\n");
    client.stop();
}
