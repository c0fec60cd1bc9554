//! Options of the client, and their effects.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::common::{Process, World, wait_until};
use nix::sys::signal::kill;
use nix::unistd::Pid;

const SEQ: &str = "lab/seq/status";

/// A command that writes to a file, and waits until the test lets it end.
const HOLD: &str =
    r#"echo "$ATTR_N" >>"$OUT/runs"; until [ -e "$OUT/go.$ATTR_N" ]; do sleep 0.02; done"#;

fn event(world: &World, n: &str) {
    world.message(SEQ, &[("status", "finished"), ("n", n)]);
}

fn go(world: &World, n: &str) {
    fs::write(world.path(&format!("go.{n}")), "").expect("go");
}

#[track_caller]
fn wait_run(world: &World, n: &str) {
    wait_until(&format!("{n} runs"), || {
        world.lines("runs").contains(&n.to_owned())
    });
}

fn alive(pid: &str) -> bool {
    let pid = pid.parse().expect("pid");
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // A zombie that was not reaped yet is dead.
    kill(Pid::from_raw(pid), None).is_ok() && !stat.contains(") Z ")
}

#[test]
fn two_jobs_run_at_once_and_no_third() {
    let world = World::new();
    let client = world.client("jobs", &["-t", SEQ, "-c", HOLD, "--jobs", "2"]);
    for n in ["1", "2", "3", "4"] {
        event(&world, n);
    }
    wait_run(&world, "1");
    wait_run(&world, "2");
    world.wait_report("jobs", "/waiting", 2);
    assert_eq!(
        world.report("jobs")["running"].as_array().map(Vec::len),
        Some(2)
    );
    go(&world, "2");
    wait_run(&world, "3");
    assert_eq!(world.lines("runs").len(), 3);
    for n in ["1", "3", "4"] {
        go(&world, n);
    }
    world.wait_report("jobs", "/units/succeeded", 4);
    client.stop();
}

/// Holds the first of three events in its run until the other two have come, and all others
/// not at all; what has run then, and how the first ended.
fn overlap(policy: &str) -> (Vec<String>, String) {
    let world = World::new();
    let arguments = ["-t", SEQ, "-c", HOLD, "--overlap", policy];
    let client = world.client("lap", &arguments);
    let ears = world.ears(&["lab/infrastructure/#"]);
    event(&world, "1");
    wait_run(&world, "1");
    for n in ["2", "3", "marker"] {
        go(&world, n);
    }
    event(&world, "2");
    event(&world, "3");
    world.wait_report("lap", "/events/accepted", 3);
    go(&world, "1");
    wait_until("all is quiet", || {
        let report = world.report("lap");
        report["waiting"] == 0 && report["units"]["running"] == 0 && report["units"]["pending"] == 0
    });
    event(&world, "marker");
    wait_run(&world, "marker");
    let end = ears.wait("the first end", |m| m.payload.get("return_code").is_some());
    client.stop();
    let mut runs = world.lines("runs");
    assert_eq!(runs.pop().as_deref(), Some("marker"));
    (
        runs,
        format!("{} {}", end.status(), end.payload["return_code"]),
    )
}

#[test]
fn overlapping_events_wait_are_skipped_replace_or_coalesce() {
    let (runs, end) = overlap("queue");
    assert_eq!(
        (runs, &*end),
        (vec!["1".into(), "2".into(), "3".into()], "finished 0")
    );
    let (runs, end) = overlap("skip");
    assert_eq!((runs, &*end), (vec!["1".to_owned()], "finished 0"));
    let (runs, end) = overlap("coalesce");
    assert_eq!(
        (runs, &*end),
        (vec!["1".into(), "3".to_owned()], "finished 0")
    );
    // The number of later runs depends on the time that the first one takes to end.
    let (runs, end) = overlap("replace");
    assert_eq!(end, "failed 143");
    assert_eq!(runs.first().map(String::as_str), Some("1"));
    assert_eq!(runs.last().map(String::as_str), Some("3"));
}

#[test]
fn a_time_out_ends_the_whole_process_group() {
    let world = World::new();
    let family =
        r#"sh -c 'echo $$ >>"$OUT/pids"; sleep 1000 & echo $! >>"$OUT/pids"; wait' & wait"#;
    let polite = world.client("polite", &["-t", SEQ, "-c", family, "--timeout", "500ms"]);
    let ears = world.ears(&["lab/infrastructure/#"]);
    event(&world, "1");
    let failed = ears.status("polite", "failed");
    assert_eq!(
        (&failed.payload["return_code"], &failed.payload["announce"]),
        (&143.into(), &true.into())
    );
    let pids = world.lines("pids");
    assert_eq!(pids.len(), 2);
    assert!(!pids.iter().any(|pid| alive(pid)), "{pids:?}");
    assert_eq!(world.report("polite")["units"]["failed"], 1);
    assert!(
        polite
            .log_text()
            .contains("killed by signal 15 (timed out)")
    );
    polite.stop();
    // A command that ignores TERM is killed after the grace period.
    fs::remove_file(world.path("pids")).expect("pids");
    let stubborn = format!("trap '' TERM; {family}; wait");
    let limits = ["--timeout", "500ms", "--grace", "300ms"];
    let client = world.client(
        "deaf",
        &[&["-t", SEQ, "-c", &stubborn][..], &limits].concat(),
    );
    event(&world, "2");
    assert_eq!(ears.status("deaf", "failed").payload["return_code"], 137);
    let pids = world.lines("pids");
    assert_eq!(pids.len(), 2);
    wait_until("all of them are gone", || {
        !pids.iter().any(|pid| alive(pid))
    });
    client.stop();
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut all = vec![dir.to_owned()];
    for entry in fs::read_dir(dir).expect("folder") {
        let entry = entry.expect("entry");
        match entry.file_type().expect("type").is_dir() {
            true => all.extend(files(&entry.path())),
            false => all.push(entry.path()),
        }
    }
    all
}

#[test]
fn each_run_keeps_its_streams_for_its_owner_alone() {
    let world = World::new();
    let command = r#"cat; echo "to $ATTR_N" >&2"#;
    // Even umask 0 must not open anything to others.
    let mut generous = std::process::Command::new("sh");
    let plain = world.command("tael-client");
    generous
        .env_clear()
        .args(["-c", r#"umask 000; exec "$0" "$@""#])
        .arg(plain.get_program());
    for (name, value) in plain.get_envs() {
        generous.env(name, value.unwrap_or_default());
    }
    generous.args([
        "--who", "keep", "--root", "lab", "-t", SEQ, "-c", command, "--when", "",
    ]);
    let client = world.online("keep", generous);
    world.publish(SEQ, r#"{"n":1}"#, &[]);
    world.publish(SEQ, r#"{"n":2}"#, &[]);
    world.wait_report("keep", "/units/succeeded", 2);
    let units = files(&world.state().join("keep/units"));
    let texts = |name: &str| -> Vec<String> {
        let all = units.iter().filter(|path| path.ends_with(name));
        let mut all: Vec<_> = all
            .map(|path| fs::read_to_string(path).expect(name))
            .collect();
        all.sort();
        all
    };
    assert_eq!(texts("stdout"), [r#"{"n":1}"#, r#"{"n":2}"#]);
    assert_eq!(texts("stderr"), ["to 1\n", "to 2\n"]);
    for path in files(&world.state()) {
        let meta = fs::metadata(&path).expect("metadata");
        let want = if meta.is_dir() { 0o700 } else { 0o600 };
        assert_eq!(
            meta.permissions().mode() & 0o777,
            want,
            "{}",
            path.display()
        );
        assert_eq!(meta.uid(), nix::unistd::Uid::effective().as_raw());
    }
    client.stop();
}

#[test]
fn the_last_lines_of_a_failed_run_are_logged() {
    let world = World::new();
    let command = r#"for n in 1 2 3 4 5 6 7 8 9 10 11 12; do printf 'line\033[31m %s.\n' $n >&2; done; exit $ATTR_N"#;
    let client = world.client("tail", &["-t", SEQ, "-c", command]);
    let log = |client: &Process, n: &str, count: &str| {
        event(&world, n);
        world.wait_report("tail", count, 1);
        client.log_text()
    };
    let good = log(&client, "0", "/units/succeeded");
    assert!(!good.contains("stderr:"), "{good}");
    let bad = log(&client, "3", "/units/failed");
    assert!(bad.contains("exited with 3"), "{bad}");
    let tail: Vec<&str> = bad
        .lines()
        .filter(|line| line.contains("stderr: line"))
        .collect();
    assert_eq!(tail.len(), 10, "{bad}");
    assert!(
        tail[0].contains(r"line\u{1b}[31m 3.") && tail[9].contains(" 12."),
        "{bad}"
    );
    client.stop();
}

#[test]
fn a_client_that_is_there_before_its_broker_waits_for_it() {
    let mut world = World::new();
    world.broker.stop();
    let mut command = world.command("tael-client");
    command.args(["--who", "early", "--root", "lab", "-t", SEQ, "-c", HOLD]);
    let client = world.spawn(command);
    wait_until("it has tried", || client.log_text().contains("127.0.0.1"));
    world.broker.restart();
    wait_until("it is online", || {
        client.log_text().contains("connected to")
    });
    event(&world, "1");
    go(&world, "1");
    wait_run(&world, "1");
    // Otherwise its command would wait without end for a file in a removed folder.
    wait_until("it has ended", || {
        client.log_text().contains("finished after")
    });
    client.stop();
}

#[test]
fn a_client_whose_broker_is_away_leaves_and_keeps_what_is_to_be_told() {
    let mut world = World::new();
    let arguments = ["-t", SEQ, "-c", HOLD];
    let client = world.client("p", &arguments);
    event(&world, "1");
    wait_run(&world, "1");
    world.broker.stop();
    wait_until("it has noticed", || client.log_text().contains("lost 127"));
    go(&world, "1");
    wait_until("it has ended", || {
        client.log_text().contains("finished after")
    });
    let log = client.log.clone();
    client.stop();
    let log = fs::read_to_string(log).expect("log");
    assert!(log.contains(" for the next start"), "{log}");
    world.broker.restart();
    let ears = world.ears(&["lab/#"]);
    let client = world.client("p", &arguments);
    ears.status("p", "finished");
    client.stop();
}

#[test]
fn the_debug_log_says_what_a_message_lacks() {
    let world = World::new();
    let client = world.client("p", &["-t", SEQ, "-c", "true", "--when", "lane=1"]);
    world.message(SEQ, &[("lane", "2")]);
    wait_until("it says so", || {
        client
            .log_text()
            .contains("ignored: 'lane' is '2', not '1'")
    });
    client.stop();
}
