//! Runs outlive their client: they are adopted, canceled, released, and found lost.

use std::fs;
use std::path::PathBuf;

use crate::common::{World, children_of, ran, refuses, wait_until};
use serde_json::Value;

const SEQ: &str = "lab/seq/status";
const FINISHED: &[(&str, &str)] = &[("status", "finished")];

/// Runs until the file `go` is there, then exits with 7.
const WAITS: &str =
    r#"echo begun >>"$OUT/runs"; until [ -e "$OUT/go" ]; do sleep 0.02; done; exit 7"#;

fn units(world: &World) -> Vec<Value> {
    let (code, out, stderr) = ran(&mut world.tael(["work", "list", "--json"]));
    assert_eq!(code, 0, "{stderr}");
    serde_json::from_str(&out).expect("json")
}

fn only_unit(world: &World) -> String {
    let units = units(world);
    assert_eq!(units.len(), 1, "{units:?}");
    units[0]["unit"].as_str().expect("id").to_owned()
}

fn state(world: &World, unit: &str) -> String {
    let (code, out, stderr) = ran(&mut world.tael(["work", "status", unit, "--json"]));
    assert_eq!(code, 0, "{stderr}");
    let report: Value = serde_json::from_str(&out).expect("json");
    report["state"].as_str().expect("state").to_owned()
}

fn go(world: &World) {
    fs::write(world.path("go"), "").expect("go");
}

#[test]
fn a_run_survives_its_client_and_the_next_one_tells_its_end() {
    let world = World::new();
    let arguments = ["-t", SEQ, "-c", WAITS];
    let ears = world.ears(&["lab/#"]);
    let client = world.client("p", &arguments);
    world.message(SEQ, FINISHED);
    ears.status("p", "started");
    client.stop();
    assert_eq!(state(&world, &only_unit(&world)), "running");
    // A client adopts it while it runs, and is killed.
    let adopting = world.client("p", &arguments);
    wait_until("it is adopted", || adopting.log_text().contains("adopted"));
    adopting.kill();
    // It ends while there is no client.
    go(&world);
    let unit = only_unit(&world);
    wait_until("it has ended", || state(&world, &unit) == "failed");
    assert!(
        !ears.any(|m| m.status() == "failed"),
        "nobody is there to tell it"
    );
    let client = world.client("p", &arguments);
    let failed = ears.status("p", "failed");
    assert_eq!(failed.payload["return_code"], 7);
    assert_eq!(failed.payload["announce"], true);
    assert_eq!(ears.count("p", "started"), 1);
    assert_eq!(world.lines("runs").len(), 1);
    client.stop();
}

#[test]
fn an_adopted_run_is_settled_when_it_ends() {
    let world = World::new();
    let arguments = ["-t", SEQ, "-c", WAITS];
    let ears = world.ears(&["lab/#"]);
    let client = world.client("p", &arguments);
    world.message(SEQ, FINISHED);
    ears.status("p", "started");
    client.kill();
    let client = world.client("p", &arguments);
    // It has the only job, so the next event waits.
    world.message(SEQ, FINISHED);
    wait_until("the second event is accepted", || units(&world).len() == 2);
    assert_eq!(world.lines("runs").len(), 1);
    go(&world);
    ears.wait_all("both ends", |_| {
        (ears.count("p", "failed") == 2).then_some(())
    });
    assert_eq!(world.lines("runs").len(), 2);
    client.stop();
}

/// A command with a grandchild that ignores TERM and writes its process id to a file.
const FAMILY: &str = r#"
    (trap '' TERM; echo $BASHPID >"$OUT/grandchild.part"; mv "$OUT/grandchild.part" "$OUT/grandchild"
     while :; do sleep 0.05; done) &
    wait"#;

fn grandchild(world: &World) -> PathBuf {
    wait_until("the grandchild is there", || {
        world.path("grandchild").exists()
    });
    PathBuf::from(format!("/proc/{}", world.lines("grandchild")[0]))
}

#[test]
fn cancelling_ends_the_whole_family() {
    let world = World::new();
    let client = world.client(
        "p",
        &[
            "-t",
            SEQ,
            "--shell",
            "/bin/bash",
            "-c",
            FAMILY,
            "--grace",
            "200ms",
        ],
    );
    let ears = world.ears(&["lab/#"]);
    world.message(SEQ, FINISHED);
    let grandchild = grandchild(&world);
    let unit = only_unit(&world);
    let (code, out, stderr) = ran(&mut world.tael(["work", "cancel", &unit]));
    assert_eq!((code, out.as_str(), stderr.as_str()), (0, "", ""));
    wait_until("the grandchild is gone", || !grandchild.exists());
    assert_eq!(ears.status("p", "failed").payload["return_code"], 128 + 15);
    wait_until("it is booked", || state(&world, &unit) == "canceled");
    refuses(
        &mut world.tael(["work", "cancel", &unit]),
        65,
        "it has ended: canceled",
    );
    client.stop();
}

#[test]
fn work_goes_on_without_a_client() {
    let world = World::new();
    let arguments = [
        "-t",
        SEQ,
        "-c",
        r#"echo out; echo err >&2; until [ -e "$OUT/go" ]; do sleep 0.02; done; echo end; exit 7"#,
    ];
    let ears = world.ears(&["lab/#"]);
    let client = world.client("p", &arguments);
    world.message(SEQ, FINISHED);
    ears.status("p", "started");
    world.message(SEQ, FINISHED);
    wait_until("both are accepted", || units(&world).len() == 2);
    client.stop();
    let list = units(&world);
    let id = |n: usize| list[n]["unit"].as_str().expect("id").to_owned();
    let (running, waiting) = (id(0), id(1));
    assert_eq!(
        (state(&world, &running), state(&world, &waiting)),
        ("running".into(), "pending".into())
    );

    wait_until("there is output", || {
        ran(&mut world.tael(["work", "results", &running])).1 == "out\n"
    });
    refuses(
        world.tael(["work", "results", &waiting]).arg("--stderr"),
        125,
        "has not ended",
    );
    // A unit that waits can be canceled and then released. One that has not ended cannot be released.
    assert_eq!(ran(&mut world.tael(["work", "cancel", &waiting])).0, 0);
    assert_eq!(state(&world, &waiting), "canceled");
    assert_eq!(ran(&mut world.tael(["work", "release", &waiting])).0, 0);
    refuses(
        &mut world.tael(["work", "status", &waiting]),
        65,
        "there is none",
    );

    let mut follow = world.tael(["work", "results", &running, "--follow", "--from", "2"]);
    let follower = std::thread::spawn(move || ran(&mut follow));
    go(&world);
    let (code, out, _) = follower.join().expect("follower");
    assert_eq!((code, out.as_str()), (7, "t\nend\n"));
    let stderr = ran(&mut world.tael(["work", "results", &running, "--stderr"]));
    assert_eq!((stderr.0, stderr.1.as_str()), (7, "err\n"));
    refuses(
        &mut world.tael(["work", "release", &running]),
        75,
        "has not booked its end",
    );
    let client = world.client("p", &arguments);
    ears.status("p", "failed");
    wait_until("it is booked", || {
        ran(&mut world.tael(["work", "release", &running])).0 == 0
    });
    assert_eq!(units(&world), Vec::<Value>::new());
    assert_eq!(
        fs::read_dir(world.state().join("p/units"))
            .expect("units")
            .count(),
        0
    );
    client.stop();
}

#[test]
fn results_are_by_default_those_of_the_newest_run_that_has_begun() {
    let world = World::new();
    let command = format!("echo output; {WAITS}");
    let client = world.client("p", &["-t", SEQ, "-c", &command]);
    let results = |which: &[&str]| {
        let mut command = world.tael(["work", "results"]);
        ran(command.args(which)).1
    };
    // Without another one it is the one that waits.
    world.control(&["p", "pause"]);
    world.message(SEQ, FINISHED);
    wait_until("it is accepted", || units(&world).len() == 1);
    let waiting = only_unit(&world);
    let (code, _, stderr) = ran(&mut world.tael(["work", "results"]));
    assert_eq!(code, 125, "{stderr}");
    assert!(stderr.contains(&waiting), "{stderr}");
    world.control(&["p", "resume"]);
    wait_until("it runs", || world.lines("runs").len() == 1);
    world.message(SEQ, FINISHED);
    wait_until("another one waits", || units(&world).len() == 2);
    // The runner may not have written it yet.
    wait_until("its output is there", || results(&[]) == "output\n");
    assert_eq!(results(&["latest"]), "output\n");
    let second = units(&world)[1]["unit"].as_str().expect("id").to_owned();
    assert_eq!(results(&[&second]), "");
    // One that was dropped has no output either.
    assert_eq!(ran(&mut world.tael(["work", "cancel", &second])).0, 0);
    assert_eq!(results(&[]), "output\n");
    go(&world);
    client.stop();
}

#[test]
fn force_release_does_not_ask() {
    let world = World::new();
    let client = world.client("p", &["-t", SEQ, "-c", WAITS]);
    world.message(SEQ, FINISHED);
    wait_until("it runs", || world.lines("runs").len() == 1);
    client.kill();
    let unit = only_unit(&world);
    let (code, _, stderr) = ran(&mut world.tael(["work", "force-release", &unit]));
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(units(&world), Vec::<Value>::new());
    refuses(
        &mut world.tael(["work", "force-release", &unit]),
        65,
        "there is none",
    );
}

/// Leaves a unit whose runner was killed together with its client.
fn orphan(world: &World, arguments: &[&str]) -> String {
    let client = world.client("p", arguments);
    world.message(SEQ, FINISHED);
    wait_until("it runs", || world.lines("runs").len() == 1);
    let unit = only_unit(world);
    wait_until("its process is noted", || {
        record(world, &unit).contains("\nprocess ")
    });
    let runners = runners_of(client.child.id());
    client.kill();
    for runner in runners {
        let pid = nix::unistd::Pid::from_raw(runner);
        // The idle runner has left with its client.
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::SIGKILL);
        wait_until("the runner is gone", || {
            nix::sys::signal::kill(pid, None).is_err()
        });
    }
    unit
}

fn record(world: &World, unit: &str) -> String {
    let units = world.state().join("p/units");
    fs::read_to_string(units.join(unit).join("outcome")).expect("record")
}

fn runners_of(client: u32) -> Vec<i32> {
    children_of(client)
}

#[test]
fn a_run_that_vanished_is_told_as_interrupted() {
    let world = World::new();
    let arguments = ["-t", SEQ, "-c", WAITS];
    let unit = orphan(&world, &arguments);
    let ears = world.ears(&["lab/#"]);
    let client = world.client("p", &arguments);
    let failed = ears.status("p", "failed");
    assert_eq!(failed.payload["reason"], "interrupted");
    assert_eq!(failed.payload["announce"], true);
    assert_eq!(state(&world, &unit), "failed");
    // The command does not go on without a supervisor.
    assert!(client.log_text().contains("had lost its supervisor"));
    let text = record(&world, &unit);
    let process = text.lines().find_map(|l| l.strip_prefix("process "));
    let pid = process.and_then(|p| p.split(' ').nth(1)).expect("pid");
    wait_until("the command is gone", || {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.is_empty() || stat.contains(") Z ")
    });
    client.stop();
}

#[test]
fn a_run_that_vanished_runs_again_if_wanted() {
    let world = World::new();
    let arguments = ["-t", SEQ, "-c", WAITS, "--on-interrupt", "rerun"];
    orphan(&world, &arguments);
    go(&world);
    let ears = world.ears(&["lab/#"]);
    let client = world.client("p", &arguments);
    ears.wait("the second end", |m| m.payload["return_code"] == 7);
    assert_eq!(world.lines("runs").len(), 2);
    client.stop();
}

#[test]
fn a_reboot_is_told_from_a_restart() {
    let world = World::new();
    let arguments = ["-t", SEQ, "-c", WAITS];
    // The unit was handed over and never begun. Under the same boot that is certain. After a reboot
    // it may have begun: a power failure can lose the record.
    for (boot, reruns) in [("same", true), ("other", false)] {
        let _ = fs::remove_file(world.path("runs"));
        let who = format!("p-{boot}");
        let with_boot = |boot: &str| {
            let mut command = world.command("tael-client");
            command
                .args(["--who", &who, "--root", "lab"])
                .args(arguments);
            command.env("TAEL_TEST_BOOT_ID", boot);
            command
        };
        let mut dying = with_boot("same");
        dying.env("TAEL_FAILPOINT", "spawn.before");
        let mut dying = world.online(&who, dying);
        world.message(SEQ, FINISHED);
        dying.wait();
        let ears = world.ears(&["lab/#"]);
        go(&world);
        let client = world.online(&who, with_boot(boot));
        let failed = ears.status(&who, "failed");
        if reruns {
            assert_eq!(failed.payload["return_code"], 7);
            assert_eq!(world.lines("runs").len(), 1);
        } else {
            assert_eq!(failed.payload["reason"], "interrupted");
            assert_eq!(world.lines("runs").len(), 0);
        }
        client.stop();
    }
}

#[test]
fn failed_runs_are_tried_again() {
    let world = World::new();
    let command = r#"echo "$TAEL_ATTEMPT" >>"$OUT/runs"; [ "$TAEL_ATTEMPT" = 3 ]"#;
    let client = world.client(
        "p",
        &[
            "-t",
            SEQ,
            "-c",
            command,
            "--retries",
            "5",
            "--retry-delay",
            "50ms",
        ],
    );
    let ears = world.ears(&["lab/#"]);
    world.message(SEQ, FINISHED);
    ears.status("p", "finished");
    assert_eq!(world.lines("runs"), ["1", "2", "3"]);
    assert_eq!(ears.count("p", "failed"), 2);
    let units = units(&world);
    assert_eq!(units[2]["retry_of"], units[1]["unit"]);
    assert_eq!(units[2]["event"], units[0]["event"]);
    client.stop();
}

#[test]
fn output_is_bounded_and_says_so() {
    let world = World::new();
    let command = r#"printf HEAD; head -c 3000000 /dev/zero | tr '\0' x; printf TAIL"#;
    let client = world.client("p", &["-t", SEQ, "-c", command, "--max-output", "65536"]);
    let ears = world.ears(&["lab/#"]);
    world.message(SEQ, FINISHED);
    ears.status("p", "finished");
    let unit = only_unit(&world);
    let (code, out, stderr) = ran(&mut world.tael(["work", "results", &unit]));
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(out.len(), 65536);
    assert!(out.starts_with("HEADx") && out.ends_with("xTAIL"));
    assert!(!out.contains('\0'), "the hole is not shown");
    assert!(stderr.contains("2934472 bytes were dropped"), "{stderr}");
    client.stop();
}

#[test]
fn old_units_are_forgotten() {
    let world = World::new();
    let arguments = ["-t", SEQ, "-c", "true", "--keep-units", "1"];
    let client = world.client("p", &arguments);
    let ears = world.ears(&["lab/#"]);
    (0..3).for_each(|_| world.message(SEQ, FINISHED));
    ears.wait_all("all ends", |_| {
        (ears.count("p", "finished") == 3).then_some(())
    });
    wait_until("all are booked", || {
        units(&world).iter().all(|u| u["state"] == "succeeded")
    });
    client.stop();
    world.client("p", &arguments).stop();
    assert_eq!(units(&world).len(), 1);
    assert_eq!(
        fs::read_dir(world.state().join("p/units"))
            .expect("units")
            .count(),
        1
    );
    // Age is a limit as well: at the next start all units are too old.
    let arguments = ["-t", SEQ, "-c", "true", "--keep", "1ms"];
    world.client("p", &arguments).stop();
    assert_eq!(units(&world), Vec::<Value>::new());
}

#[test]
fn a_ledger_of_the_first_version_becomes_a_new_one() {
    let world = World::new();
    world.earlier_ledger("p", include_str!("../fixtures/ledger-v1.sql"));
    let ears = world.ears(&["lab/#"]);
    let client = world.client(
        "p",
        &["-t", SEQ, "-c", r#"echo "$SAMPLE $(cat)" >>"$OUT/runs""#],
    );
    // The unit that waited runs, and the status that waited is published.
    ears.status("p", "finished");
    ears.wait("the old status", |m| {
        m.topic == "lab/old" && m.properties["tael-id"] == "old-1"
    });
    assert_eq!(world.lines("runs"), ["S1 old payload"]);
    assert_eq!(units(&world)[0]["retry_of"], Value::Null);
    client.stop();
}

#[test]
fn a_ledger_that_cannot_be_used_is_not_touched() {
    let world = World::new();
    let home = world.state().join("p");
    fs::create_dir_all(home.join("units")).expect("home");
    let path = home.join("ledger.db");
    let client = || {
        let mut command = world.command("tael-client");
        command.args(["--who", "p", "-t", SEQ, "-c", "true"]);
        command
    };
    let check = |code: i32, text: &str| {
        let before = fs::read(&path).expect("ledger");
        refuses(&mut client(), code, text);
        assert_eq!(fs::read(&path).expect("ledger"), before, "{text}");
    };
    fs::write(
        &path,
        "no database at all, but long enough for a header ".repeat(99),
    )
    .expect("write");
    check(73, "file is not a database");
    fs::remove_file(&path).expect("remove");
    let newer = rusqlite::Connection::open(&path).expect("ledger");
    newer
        .pragma_update(None, "user_version", 999)
        .expect("pragma");
    drop(newer);
    check(78, "newer");
    fs::remove_file(&path).expect("remove");
    let foreign = rusqlite::Connection::open(&path).expect("ledger");
    foreign
        .execute_batch("CREATE TABLE other (x)")
        .expect("table");
    drop(foreign);
    check(73, "not a ledger of Tael");
}

#[test]
fn a_ledger_that_is_damaged_inside_is_not_written_to() {
    for killed in [false, true] {
        let world = World::new();
        let arguments = ["-t", SEQ, "-c", r#"echo ran >>"$OUT/runs""#];
        let client = world.client("p", &arguments);
        world.message(SEQ, FINISHED);
        wait_until("it is booked", || {
            units(&world).iter().any(|u| u["state"] == "succeeded")
        });
        // With a write-ahead log, and without.
        if killed {
            client.stop();
            world.client("p", &arguments).kill();
        } else {
            client.stop();
        }
        world.message(SEQ, FINISHED);
        let files = || {
            // Reading makes SQLite create an empty log.
            let read = |name| fs::read(world.state().join("p").join(name)).unwrap_or_default();
            [read("ledger.db"), read("ledger.db-wal")]
        };
        let [sound, log] = files();
        let path = world.state().join("p/ledger.db");
        let mut damaged = sound.clone();
        // Page 1 holds the schema.
        for byte in damaged.iter_mut().skip(4096) {
            *byte ^= 0x55;
        }
        fs::write(&path, &damaged).expect("damage");
        let mut command = world.command("tael-client");
        refuses(command.args(["--who", "p"]).args(arguments), 73, "ledger");
        assert!(files() == [damaged, log], "killed: {killed}");
        assert_eq!(world.lines("runs").len(), 1);
        // The broker still has the event.
        fs::write(&path, sound).expect("repair");
        let client = world.client("p", &arguments);
        wait_until("the event runs", || world.lines("runs").len() == 2);
        client.stop();
    }
}

#[test]
fn no_command_writes_to_a_ledger_that_is_damaged() {
    let world = World::new();
    let client = world.client("p", &["-t", SEQ, "-c", "exit 3"]);
    world.message(SEQ, FINISHED);
    wait_until("it is booked", || {
        units(&world).iter().any(|u| u["state"] == "failed")
    });
    client.stop();
    let path = world.home("p").join("ledger.db");
    let ledger = rusqlite::Connection::open(&path).expect("ledger");
    let sql = "SELECT rootpage FROM sqlite_schema WHERE name = 'event_sender'";
    let page: u32 = ledger.query_row(sql, [], |row| row.get(0)).expect("page");
    let page = page as usize;
    drop(ledger);
    // A page that none of these commands reads.
    let mut damaged = fs::read(&path).expect("ledger");
    damaged[(page - 1) * 4096..page * 4096].fill(0);
    fs::write(&path, &damaged).expect("damage");
    let unit = only_unit(&world);
    for verb in [["retry", "--failed"], ["release", &unit]] {
        let mut command = world.tael(["work"]);
        refuses(command.args(verb), 73, "damaged");
        assert!(fs::read(&path).expect("ledger") == damaged, "{verb:?}");
    }
}

#[test]
fn two_clients_of_one_name() {
    let world = World::new();
    let client = world.client("p", &["-t", SEQ, "-c", "true"]);
    let mut second = world.command("tael-client");
    second.args(["--who", "p", "-t", SEQ, "-c", "true"]);
    let holder = format!("pid {} on ", client.child.id());
    refuses(&mut second, 73, &holder);
    let (code, out, stderr) = ran(second.arg("--if-not-running"));
    assert_eq!((code, out.as_str(), stderr.as_str()), (0, "", ""));
    client.stop();
}

#[test]
fn an_adopted_run_that_is_released_does_not_run_again() {
    let world = World::new();
    let arguments = ["-t", SEQ, "-c", WAITS];
    let client = world.client("p", &arguments);
    world.message(SEQ, FINISHED);
    wait_until("it runs", || world.lines("runs").len() == 1);
    client.kill();
    let client = world.client("p", &arguments);
    wait_until("it is adopted", || client.log_text().contains("adopted"));
    let unit = only_unit(&world);
    let (code, _, stderr) = ran(&mut world.tael(["work", "force-release", &unit]));
    assert_eq!(code, 0, "{stderr}");
    // Only the next event runs.
    go(&world);
    let ears = world.ears(&["lab/#"]);
    world.message(SEQ, FINISHED);
    ears.status("p", "failed");
    assert_eq!(world.lines("runs").len(), 2);
    assert_eq!(units(&world).len(), 1);
    client.stop();
}

#[test]
fn a_run_that_takes_its_supervisor_down_is_not_repeated_for_ever() {
    let world = World::new();
    let command = r#"echo run >>"$OUT/runs"; [ -n "$ATTR_CALM" ] || kill -9 $PPID"#;
    let client = world.client("p", &["-t", SEQ, "-c", command, "--on-interrupt", "rerun"]);
    let ears = world.ears(&["lab/#"]);
    world.message(SEQ, FINISHED);
    ears.wait_all("all its ends", |_| {
        (ears.count("p", "failed") == 4).then_some(())
    });
    world.message(SEQ, &[("status", "finished"), ("calm", "yes")]);
    ears.status("p", "finished");
    assert_eq!(world.lines("runs").len(), 5);
    client.stop();
}

#[test]
fn a_ledger_that_cannot_be_read_does_not_hide_the_others() {
    let world = World::new();
    let client = world.client("good", &["-t", SEQ, "-c", "true"]);
    let ears = world.ears(&["lab/#"]);
    world.message(SEQ, FINISHED);
    ears.status("good", "finished");
    client.stop();
    let bad = world.state().join("bad");
    fs::create_dir_all(&bad).expect("folder");
    fs::write(bad.join("ledger.db"), "no database ".repeat(999)).expect("ledger");
    let (code, out, stderr) = ran(&mut world.tael(["work", "list", "--json"]));
    let units: Vec<Value> = serde_json::from_str(&out).expect("json");
    assert_eq!((code, units.len()), (73, 1), "{stderr}");
    assert!(stderr.contains("bad/ledger.db"), "{stderr}");
    let unit = units[0]["unit"].as_str().expect("unit");
    assert_eq!(ran(&mut world.tael(["work", "results", unit])).0, 0);
    refuses(
        &mut world.tael(["work", "status", "elsewhere"]),
        73,
        "bad/ledger.db",
    );
}

#[test]
fn what_somebody_else_has_put_among_the_units_stays() {
    let world = World::new();
    let units = world.state().join("p/units");
    fs::create_dir_all(units.join("lost+found")).expect("folder");
    fs::write(units.join("notes"), "mine").expect("file");
    let client = world.client("p", &["-t", SEQ, "-c", "true"]);
    client.stop();
    assert!(units.join("lost+found").is_dir() && units.join("notes").is_file());
}

#[test]
fn a_retry_does_not_wait_for_a_clock_that_has_stepped_back() {
    let world = World::new();
    let command = r#"echo "$TAEL_ATTEMPT" >>"$OUT/runs"; exit 1"#;
    let arguments = |delay| {
        [
            "-t",
            SEQ,
            "-c",
            command,
            "--retries",
            "1",
            "--retry-delay",
            delay,
        ]
    };
    let client = world.client("p", &arguments("6h"));
    let ears = world.ears(&["lab/#"]);
    world.message(SEQ, FINISHED);
    ears.status("p", "failed");
    client.stop();
    // It is due in six hours, by a clock that was right then, and a wait of 10 ms is meant now.
    let client = world.client("p", &arguments("10ms"));
    wait_until("it is tried again", || world.lines("runs").len() == 2);
    client.stop();
}

#[test]
fn a_command_that_says_try_again_is_told_from_one_that_has_not_ended() {
    let world = World::new();
    let command = r#"until [ -e "$OUT/go" ]; do sleep 0.02; done; exit 75"#;
    let client = world.client("p", &["-t", SEQ, "-c", command]);
    let ears = world.ears(&["lab/#"]);
    world.message(SEQ, FINISHED);
    ears.status("p", "started");
    let unit = only_unit(&world);
    let mut results = world.tael(["work", "results", &unit]);
    refuses(&mut results, 125, "has not ended");
    go(&world);
    ears.status("p", "failed");
    assert_eq!(ran(&mut results).0, 75);
    refuses(
        &mut world.tael(["work", "results", "nothing"]),
        125,
        "there is none",
    );
    client.stop();
}
