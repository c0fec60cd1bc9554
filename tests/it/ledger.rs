//! The ledger and the folders of runs: what is kept and removed, and how a restart and a restored copy
//! fit them.

use std::fs;
use std::path::{Path, PathBuf};

use crate::common::raw::Raw;
use crate::common::{Process, World, has_program, ran, refuses, wait_until};
use rusqlite::Connection;
use serde_json::Value;

const SEQ: &str = "lab/seq/status";
const FINISHED: &[(&str, &str)] = &[("status", "finished")];

fn units(world: &World) -> Vec<Value> {
    let (code, out, stderr) = ran(&mut world.tael(["work", "list", "--json"]));
    assert_eq!(code, 0, "{stderr}");
    serde_json::from_str(&out).expect("json")
}

fn home(world: &World) -> PathBuf {
    world.state().join("p")
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

/// Waits until the only client of the world has noted `count` ends.
fn booked(world: &World, count: usize) {
    wait_until("all are booked", || {
        let ended = |unit: &&Value| unit["ended"].is_number();
        units(world).iter().filter(ended).count() == count
    });
}

/// Starts a client that runs `command` for each of `count` messages, and stops it afterwards.
fn runs(world: &World, command: &str, count: usize) {
    let client = world.client("p", &["-t", SEQ, "-c", command]);
    let before = units(world).len();
    (0..count).for_each(|_| world.message(SEQ, FINISHED));
    booked(world, before + count);
    client.stop();
}

#[test]
fn a_ledger_of_the_fifth_version_becomes_a_new_one() {
    let world = World::new();
    world.earlier_ledger("p", include_str!("../fixtures/ledger-v5.sql"));
    let ears = world.ears(&["lab/#"]);
    let run = r#"echo "$TAEL_ATTEMPT $SAMPLE $(cat)" >>"$OUT/runs""#;
    let client = world.client("p", &["-t", SEQ, "-c", run]);
    ears.wait("the old status", |m| m.topic == "lab/old");
    booked(&world, 4);
    assert_eq!(world.lines("runs"), ["2 S1 failed payload", "1 S4 "]);
    let states: Vec<String> = units(&world)
        .iter()
        .map(|unit| unit["state"].as_str().expect("state").to_owned())
        .collect();
    // The second one was begun under another boot.
    assert_eq!(states, ["failed", "failed", "succeeded", "succeeded"]);
    assert_eq!(units(&world)[0]["note"], "a note");
    assert_eq!(units(&world)[2]["retry_of"], units(&world)[0]["unit"]);
    // A run that has ended can still be retried with its payload.
    let first = units(&world)[1]["unit"].as_str().expect("id").to_owned();
    let (code, _, stderr) = world.control(&["p", "retry", &first]);
    assert_eq!(code, 0, "{stderr}");
    wait_until("it has run", || {
        world
            .lines("runs")
            .last()
            .is_some_and(|line| line == "2 S2 running payload")
    });
    client.stop();
}

#[test]
fn a_ledger_that_is_moved_away_takes_no_output_with_it() {
    let world = World::new();
    runs(&world, "echo result", 2);
    let ids: Vec<String> = names(&home(&world).join("units"));
    assert_eq!(ids.len(), 2);
    fs::rename(home(&world).join("ledger.db"), world.path("away")).expect("move");
    let client = world.client("p", &["-t", SEQ, "-c", "true"]);
    let aside = home(&world).join("units-aside");
    assert!(
        client.log_text().contains("does not know 2 of the runs"),
        "{}",
        client.log_text()
    );
    for id in &ids {
        let text = fs::read_to_string(aside.join(id).join("stdout"));
        assert_eq!(text.expect("output"), "result\n");
    }
    client.stop();
    // A second time, there is nothing to move.
    let client = world.client("p", &["-t", SEQ, "-c", "true"]);
    assert!(!client.log_text().contains("does not know"));
    assert_eq!(names(&aside).len(), 2);
    client.stop();
}

#[test]
fn an_older_backup_that_is_put_back_deletes_nothing() {
    let world = World::new();
    runs(&world, "echo first", 1);
    let ledger = home(&world).join("ledger.db");
    // A clean stop leaves a single file with everything.
    assert!(!home(&world).join("ledger.db-wal").exists());
    fs::copy(&ledger, world.path("backup")).expect("backup");
    let known = names(&home(&world).join("units"));
    runs(&world, "echo second", 1);
    fs::copy(world.path("backup"), &ledger).expect("restore");
    let client = world.client("p", &["-t", SEQ, "-c", "true"]);
    assert_eq!(units(&world).len(), 1);
    assert_eq!(names(&home(&world).join("units")), known);
    let aside = home(&world).join("units-aside");
    let later = names(&aside);
    assert_eq!(later.len(), 1);
    let text = fs::read_to_string(aside.join(&later[0]).join("stdout"));
    assert_eq!(text.expect("output"), "second\n");
    client.stop();
}

#[test]
fn a_run_that_goes_on_is_not_set_aside() {
    let world = World::new();
    let run = r#"echo >"$OUT/begun"; until [ -e "$OUT/go" ]; do sleep 0.02; done; echo end"#;
    let client = world.client("p", &["-t", SEQ, "-c", run]);
    world.message(SEQ, FINISHED);
    let folder = home(&world).join("units");
    wait_until("it has begun", || world.path("begun").exists());
    client.stop();
    fs::remove_file(home(&world).join("ledger.db")).expect("remove");
    let client = world.client("p", &["-t", SEQ, "-c", "true"]);
    let running = names(&folder);
    assert_eq!(running.len(), 1);
    fs::write(world.path("go"), "").expect("go");
    wait_until("it ends", || {
        let text = fs::read_to_string(folder.join(&running[0]).join("stdout"));
        text.is_ok_and(|text| text == "end\n")
    });
    client.stop();
}

#[test]
fn what_was_released_goes_after_a_kill_and_what_is_beside_it_stays() {
    let world = World::new();
    runs(&world, "echo result", 3);
    let ids = names(&home(&world).join("units"));
    // A client that was killed after it had forgotten a unit leaves this.
    let db = Connection::open(home(&world).join("ledger.db")).expect("ledger");
    db.execute("DELETE FROM unit WHERE id = ?1", [&ids[0]])
        .expect("delete");
    db.execute("INSERT INTO released (unit) VALUES (?1)", [&ids[0]])
        .expect("mark");
    drop(db);
    let runners = home(&world).join("runners");
    fs::create_dir(runners.join("mine")).expect("folder");
    fs::create_dir(runners.join("gone-01KA0000000000000000000001")).expect("folder");
    let client = world.client("p", &["-t", SEQ, "-c", "true"]);
    let folder = home(&world).join("units");
    wait_until("it is removed", || names(&folder).len() == 2);
    assert!(!names(&folder).contains(&ids[0]));
    assert!(!home(&world).join("units-aside").exists());
    assert!(runners.join("mine").exists());
    client.stop();
    assert!(!names(&runners).iter().any(|name| name.starts_with("gone-")));
    let db = Connection::open(home(&world).join("ledger.db")).expect("ledger");
    let marks = db.query_row("SELECT count(*) FROM released", [], |row| {
        row.get::<_, i64>(0)
    });
    assert_eq!(marks.expect("count"), 0, "the mark goes with the folder");
}

#[test]
fn ended_runs_are_forgotten_while_the_client_goes_on() {
    let world = World::new();
    let arguments = ["-t", SEQ, "-c", "echo x", "--keep", "1s"];
    let client = world.client("p", &arguments);
    let ears = world.ears(&["lab/infrastructure/#"]);
    world.message(SEQ, FINISHED);
    ears.status("p", "finished");
    wait_until("it is forgotten", || units(&world).is_empty());
    wait_until("its folder goes", || {
        names(&home(&world).join("units")).is_empty()
    });
    client.stop();
}

/// Returns the blocks of docs/backup.md that are marked `name`.
fn backup_block(name: &str) -> String {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/backup.md");
    let text = fs::read_to_string(page).expect("docs/backup.md");
    let begin = format!("```sh {name}\n");
    let blocks = text.split(&begin).skip(1);
    let blocks = blocks.map(|rest| rest.split("```").next().expect("block"));
    let script: String = blocks.collect();
    assert!(!script.is_empty(), "no block {name}");
    script
}

fn run_backup_block(world: &World, name: &str) {
    let mut shell = std::process::Command::new("/bin/sh");
    shell.args(["-euc", &backup_block(name)]);
    shell
        .env("STATE", world.state())
        .env("BACKUP", world.path("backup"));
    let (code, _, stderr) = ran(&mut shell);
    assert_eq!(code, 0, "{name}: {stderr}");
}

#[test]
fn a_backup_is_made_and_restored_as_the_docs_say() {
    if !has_program("sqlite3", "a backup") {
        return;
    }
    let world = World::new();
    fs::create_dir(world.path("backup")).expect("folder");
    let run = r#"echo "$ATTR_N" >>"$OUT/runs"; echo "$ATTR_N""#;
    let start = || {
        let mut command = world.command("tael-client");
        command.args(["--who", "align", "--root", "lab", "-t", SEQ, "-c", run]);
        command
    };
    let send = |n: &str| world.message(SEQ, &[("status", "finished"), ("n", n)]);
    let client = world.online("align", start());
    send("1");
    booked(&world, 1);
    run_backup_block(&world, "running");
    for copy in ["ledger.db", "small.db"] {
        let copy = Connection::open(world.path("backup").join(copy)).expect("copy");
        let ended = "SELECT count(*) FROM unit WHERE state = 'succeeded'";
        let count = copy.query_row(ended, [], |row| row.get::<_, i64>(0));
        assert_eq!(count.expect("count"), 1);
    }
    send("2");
    booked(&world, 2);
    client.stop();
    run_backup_block(&world, "stopped");
    let client = world.online("align", start());
    send("3");
    booked(&world, 3);
    client.stop();
    run_backup_block(&world, "restore");
    let client = world.spawn(start());
    wait_until("it is there", || world.control(&["align", "status"]).0 == 0);
    world.wait_report("align", "/paused", true);
    assert_eq!(units(&world).len(), 2);
    assert_eq!(names(&world.state().join("align/units-aside")).len(), 1);
    let (code, _, stderr) = world.control(&["align", "resume"]);
    assert_eq!(code, 0, "{stderr}");
    send("4");
    booked(&world, 3);
    assert_eq!(
        world.lines("runs"),
        ["1", "2", "3", "4"],
        "none has run again"
    );
    client.stop();
}

#[test]
fn damage_that_nobody_has_looked_for_is_noticed_when_it_is_read() {
    let world = World::new();
    let arguments = ["-t", SEQ, "-c", "cat >/dev/null"];
    let client = world.client("p", &arguments);
    let mut raw = Raw::connect(world.broker.port());
    let filler = "x".repeat(800_000);
    for n in 0..8 {
        let payload = format!(r#"{{"status":"finished","filler":"{filler}"}}"#);
        raw.publish(
            SEQ,
            payload.as_bytes(),
            &[("tael-id", &format!("event-{n}"))],
        );
    }
    booked(&world, 8);
    client.stop();
    // It is too large for a whole check after a clean stop.
    let ledger = home(&world).join("ledger.db");
    let mut bytes = fs::read(&ledger).expect("ledger");
    assert!(bytes.len() > 5 << 20);
    bytes[4096..].fill(0xa5);
    fs::write(&ledger, &bytes).expect("damage");
    let mut command = world.command("tael-client");
    command
        .args(["--who", "p", "--root", "lab"])
        .args(arguments);
    refuses(&mut command, 73, "malformed");
    let now = fs::read(&ledger).expect("ledger");
    assert!(now == bytes, "it is as it was");
}

/// Returns the maximum memory of a process so far, KiB.
fn peak(process: &Process) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", process.child.id()));
    let status = status.expect("status");
    let line = status
        .lines()
        .find(|line| line.starts_with("VmHWM"))
        .expect("VmHWM");
    line.split_whitespace()
        .nth(1)
        .expect("number")
        .parse()
        .expect("number")
}

/// Waits until `count` events wait. The request comes after them, and may take long.
fn waiting(world: &World, count: usize) {
    wait_until("all wait", || {
        let (_, out, _) = world.control(&["p", "status", "--json"]);
        let status: Value = serde_json::from_str(&out).unwrap_or_default();
        status["waiting"] == count
    });
}

/// Publishes events of 800 KB, which wait.
const LARGE: usize = 200;

#[test]
fn large_events_that_wait_take_disk_space_and_no_memory() {
    let world = World::new();
    let run = r#"wc -c >>"$OUT/runs"; until [ -e "$OUT/go" ]; do sleep 0.02; done"#;
    let arguments = ["-t", SEQ, "-c", run, "--log", "none"];
    let client = world.client("p", &arguments);
    let mut raw = Raw::connect(world.broker.port());
    let filler = "x".repeat(800_000);
    for n in 0..LARGE {
        let payload = format!(r#"{{"status":"finished","n":{n},"filler":"{filler}"}}"#);
        raw.publish(
            SEQ,
            payload.as_bytes(),
            &[("tael-id", &format!("event-{n}"))],
        );
    }
    waiting(&world, LARGE - 1);
    client.kill();
    // The memory that a process starts with counts as well.
    let limit = 64 * 1024;
    let client = world.client("p", &arguments);
    waiting(&world, LARGE - 1);
    assert!(peak(&client) < limit, "{} KB at the start", peak(&client));
    let command = world.tael(["work", "list", "--json"]);
    let mut gauge = std::process::Command::new("/bin/sh");
    gauge.args(["-c", r#"ulimit -v 200000; exec "$@""#, "sh"]);
    gauge.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        gauge.env(name, value.unwrap_or_default());
    }
    let (code, out, stderr) = ran(&mut gauge);
    assert_eq!(code, 0, "{stderr}");
    let listed: Vec<Value> = serde_json::from_str(&out).expect("json");
    assert_eq!(listed.len(), LARGE);
    let (code, _, stderr) = world.control(&["p", "status"]);
    assert_eq!(code, 0, "{stderr}");
    fs::write(world.path("go"), "").expect("go");
    wait_until("all have run", || world.lines("runs").len() == LARGE);
    assert!(
        world
            .lines("runs")
            .iter()
            .all(|line| line.parse::<usize>().is_ok_and(|n| n > 800_000))
    );
    assert!(peak(&client) < limit, "{} KB while they run", peak(&client));
    client.stop();
}

#[test]
fn the_file_shrinks_when_large_events_are_forgotten() {
    let world = World::new();
    let client = world.client("p", &["-t", SEQ, "-c", "cat >/dev/null"]);
    let mut raw = Raw::connect(world.broker.port());
    let filler = "x".repeat(800_000);
    for n in 0..20 {
        let payload = format!(r#"{{"status":"finished","filler":"{filler}"}}"#);
        raw.publish(
            SEQ,
            payload.as_bytes(),
            &[("tael-id", &format!("event-{n}"))],
        );
    }
    booked(&world, 20);
    client.stop();
    let size = || {
        fs::metadata(home(&world).join("ledger.db"))
            .expect("ledger")
            .len()
    };
    assert!(size() > 15_000_000, "{}", size());
    let client = world.client("p", &["-t", SEQ, "-c", "true", "--keep-units", "1"]);
    wait_until("they are forgotten", || units(&world).len() == 1);
    wait_until("the file shrinks", || size() < 4_000_000);
    client.stop();
}

#[test]
fn events_that_find_no_room_stay_with_the_broker_and_none_is_lost() {
    let world = World::new();
    let run = r#"echo "$ATTR_N" >>"$OUT/runs"; until [ -e "$OUT/go" ]; do sleep 0.02; done"#;
    let start = || {
        let mut command = world.command("tael-client");
        command.args(["--who", "p", "--root", "lab", "-t", SEQ, "-c", run]);
        command.env("TAEL_TEST_MAX_WAITING", "10");
        command
    };
    let client = world.online("p", start());
    let mut raw = Raw::connect(world.broker.port());
    let mut send = |n: usize| {
        let payload = format!(r#"{{"status":"finished","n":{n}}}"#);
        raw.publish(
            SEQ,
            payload.as_bytes(),
            &[("tael-id", &format!("event-{n}"))],
        );
    };
    (0..40).for_each(&mut send);
    // One runs, and some are on their way when the last one finds room.
    wait_until("it is full", || {
        client.log_text().contains("no more events are accepted")
    });
    // The last ones may still be on their way to the disk.
    let accepted = || world.report("p")["events"]["accepted"].as_u64();
    wait_until("as many as find room are accepted", || {
        accepted().is_some_and(|accepted| accepted >= 10)
    });
    assert!(accepted() < Some(40), "{:?}", accepted());
    // Requests are still answered, except those for more runs.
    let (code, _, stderr) = world.control(&["p", "raise"]);
    assert_eq!(code, 75, "{stderr}");
    client.kill();
    // The next client finds it full as well, and the broker keeps the rest.
    let client = world.online("p", start());
    send(40);
    wait_until("it is full", || {
        client.log_text().contains("no more events are accepted")
    });
    fs::write(world.path("go"), "").expect("go");
    wait_until("all have run", || world.lines("runs").len() >= 41);
    send(41);
    wait_until("the last one runs", || {
        world.lines("runs").contains(&"41".into())
    });
    let mut runs: Vec<usize> = world
        .lines("runs")
        .iter()
        .map(|n| n.parse().expect("number"))
        .collect();
    runs.sort_unstable();
    assert_eq!(runs, (0..42).collect::<Vec<_>>());
    client.stop();
}

#[test]
fn a_long_outbox_is_published_in_order_and_once() {
    const STATUSES: usize = 1500;
    let world = World::new();
    runs(&world, "true", 1);
    let db = Connection::open(home(&world).join("ledger.db")).expect("ledger");
    let sql = format!(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {STATUSES})
         INSERT INTO outbox (topic, payload, qos, retain, properties)
             SELECT 'lab/old', CAST('{{\"n\":' || i || '}}' AS BLOB), 1, 0, '[]' FROM n"
    );
    db.execute_batch(&sql).expect("fill");
    drop(db);
    let ears = world.ears(&["lab/old", "lab/infrastructure/pipelines/p/status"]);
    let client = world.client("p", &["-t", SEQ, "-c", "true"]);
    // It is published after all earlier ones.
    world.message(SEQ, FINISHED);
    ears.status("p", "finished");
    let told: Vec<u64> = ears
        .all()
        .iter()
        .filter(|m| m.topic == "lab/old")
        .map(|m| m.payload["n"].as_u64().expect("n"))
        .collect();
    assert_eq!(told.len(), STATUSES);
    assert!(told.is_sorted(), "in order");
    client.stop();
}

#[test]
fn a_full_client_that_is_paused_resumes_at_a_reload() {
    let world = World::new();
    let mut command = world.command("tael-client");
    command.args(["--who", "p", "--root", "lab", "-t", SEQ, "-c"]);
    command.arg(r#"echo "$ATTR_N" >>"$OUT/runs""#);
    command.env("TAEL_TEST_MAX_WAITING", "100");
    let client = world.online("p", command);
    assert_eq!(world.control(&["p", "pause"]).0, 0);
    let mut raw = Raw::connect(world.broker.port());
    for n in 1..=300 {
        let payload = format!(r#"{{"status":"finished","n":{n}}}"#);
        raw.publish(SEQ, payload.as_bytes(), &[]);
    }
    wait_until("it is full", || {
        client.log_text().contains("remove 'paused'")
    });
    let mark = world.state().join("p/paused");
    fs::remove_file(mark).expect("mark");
    client.signal(nix::sys::signal::Signal::SIGHUP);
    wait_until("all have run", || world.lines("runs").len() >= 300);
    client.stop();
}

/// The unit of the fixture that was running, and the two that waited.
const RUNNING: &str = "01M8BB9R880VTQMSEEQMP28H0J";
const WAITING: [&str; 2] = ["01M8BB9R8JP3TJCYY3ZHNZHHH3", "01M8BB9R8QVP2W24SVTNWGHMZH"];

fn unit(world: &World, id: &str) -> Value {
    let all = units(world);
    let found = all.iter().find(|unit| unit["unit"] == id);
    found.expect("unit").clone()
}

#[test]
fn a_ledger_of_the_seventh_version_becomes_a_new_one_while_its_run_goes_on() {
    let world = World::new();
    world.earlier_ledger("p", include_str!("../fixtures/ledger-v7.sql"));
    // A runner has the unit.
    let folder = home(&world).join("units").join(RUNNING);
    fs::create_dir_all(&folder).expect("folder");
    let record = folder.join("outcome");
    fs::write(&record, format!("begun {RUNNING}\n")).expect("record");
    for stream in ["stdout", "stderr"] {
        fs::write(folder.join(stream), "").expect("stream");
    }
    let runner = tael::os::lock::Lock::acquire(&record).expect("lock");
    let ears = world.ears(&["lab/#"]);
    let run = r#"echo "$ATTR_N $(cat)" >>"$OUT/runs""#;
    let config = world.path("p.toml");
    let kept = "[[trigger]]\nname = \"kept\"\ntopic = \"lab/kept/status\"\ncommand = \"true\"\n\
                retained = \"accept\"\n";
    let seq = format!("[[trigger]]\nname = \"seq\"\ntopic = \"{SEQ}\"\ncommand = '''{run}'''\n");
    fs::write(&config, format!("{kept}{seq}")).expect("config");
    let mut command = world.command("tael-client");
    command
        .args(["--who", "p", "--root", "lab", "--config"])
        .arg(&config);
    let client = world.online("p", command);
    let told = ears.wait("the old status", |m| {
        m.properties["tael-id"] == "01M8BB9SMG89N0Z6P6TB33PXPF"
    });
    assert_eq!(told.payload["return_code"], 0);
    assert_eq!(unit(&world, RUNNING)["state"], "running");
    for waiting in WAITING {
        assert_eq!(
            unit(&world, waiting)["state"],
            "pending",
            "its lane has one job"
        );
    }
    // Events that have run are known by id, by the last content of the topic, and by packet identifier.
    let again = r#"{"user":"root","status":"finished","n":"bad","code":"3","ts":1795677281}"#;
    world.publish(SEQ, again, &[("tael-id", "01M8BB9Q7JT4N40DSJACKJ3Y9V")]);
    world.wait_report("p", "/events/duplicate", 1);
    let outcome = r#"{"end":{"exited":0},"stopped":null,"started_ms":4102444882575,"elapsed_us":1,"max_rss_kib":1,"cpu_us":1,"dropped_stdout":0,"dropped_stderr":0,"remains":null}"#;
    fs::write(
        &record,
        format!("begun {RUNNING}\nended {RUNNING} {outcome}\n"),
    )
    .expect("record");
    drop(runner);
    wait_until("all have run", || world.lines("runs").len() == 2);
    booked(&world, 8);
    let runs = world.lines("runs");
    let waiting =
        r#"waiting {"user":"root","status":"finished","n":"waiting","code":"0","ts":1795677282}"#;
    assert_eq!(
        runs,
        [
            waiting,
            r#"plain {"status":"finished","n":"plain","code":"0"}"#
        ]
    );
    assert_eq!(unit(&world, RUNNING)["state"], "succeeded");
    client.stop();
    let db = Connection::open(home(&world).join("ledger.db")).expect("ledger");
    let packets: Vec<i64> = {
        let mut query = db
            .prepare("SELECT packet FROM mqtt_packet ORDER BY packet")
            .expect("query");
        let rows = query.query_map([], |row| row.get(0)).expect("rows");
        rows.collect::<Result<_, _>>().expect("packets")
    };
    // The message above has taken the place of one.
    assert!(
        packets.iter().all(|packet| [4, 5, 9].contains(packet)),
        "{packets:?}"
    );
    let retained = "SELECT count(*) FROM retained WHERE trigger = 'kept'";
    let count = db.query_row(retained, [], |row| row.get::<_, i64>(0));
    assert_eq!(count.expect("count"), 1);
}

#[test]
fn a_unit_whose_trigger_is_gone_runs_by_what_it_carries() {
    let world = World::new();
    let config = world.path("p.toml");
    let start = || {
        let mut command = world.command("tael-client");
        command
            .args(["--who", "p", "--root", "lab", "--config"])
            .arg(&config);
        world.online("p", command)
    };
    let other = "[[trigger]]\nname = \"other\"\ntopic = \"lab/other/status\"\ncommand = \"true\"\n";
    let seq = |name: &str, word: &str| {
        format!(
            "{other}[[trigger]]\nname = \"{name}\"\ntopic = \"{SEQ}\"\nretries = 1\n\
             retry-delay = \"0s\"\nenvprefix = \"X\"\n\
             command = '''echo \"{word} $X_N $TAEL_ATTEMPT\" >>\"$OUT/runs\"; [ \"$X_N\" != 1 ]'''\n"
        )
    };
    fs::write(&config, seq("seq", "old")).expect("config");
    let client = start();
    assert_eq!(world.control(&["p", "pause"]).0, 0);
    for n in ["1", "2"] {
        world.message(SEQ, &[("status", "finished"), ("n", n)]);
    }
    waiting(&world, 2);
    client.kill();
    fs::write(&config, other).expect("config");
    let client = start();
    waiting(&world, 2);
    assert_eq!(world.control(&["p", "resume"]).0, 0);
    booked(&world, 3);
    assert_eq!(world.lines("runs"), ["old 1 1", "old 2 1", "old 1 2"]);
    client.stop();
    // A retry, and a unit that waits, follow the trigger if there is one.
    fs::write(&config, seq("seq", "corrected")).expect("config");
    let client = start();
    assert_eq!(world.control(&["p", "retry"]).0, 0);
    wait_until("it runs", || world.lines("runs").len() == 4);
    assert_eq!(world.lines("runs")[3], "corrected 1 3");
    assert_eq!(world.control(&["p", "pause"]).0, 0);
    world.message(SEQ, &[("status", "finished"), ("n", "3")]);
    waiting(&world, 1);
    client.kill();
    fs::write(&config, seq("seq", "newer")).expect("config");
    let client = start();
    assert_eq!(world.control(&["p", "resume"]).0, 0);
    wait_until("it runs", || world.lines("runs").len() == 5);
    assert_eq!(world.lines("runs")[4], "newer 3 1");
    client.stop();
}

#[test]
fn a_run_that_waits_or_is_retried_exports_as_its_trigger_does_now() {
    let world = World::new();
    let config = world.path("p.toml");
    let ears = world.ears(&["lab/infrastructure/#"]);
    let start = || {
        let mut command = world.command("tael-client");
        command
            .args(["--who", "p", "--root", "lab", "--config"])
            .arg(&config);
        world.online("p", command)
    };
    let write = |word: &str, more: &str| {
        let text = format!(
            "[[trigger]]\nname = \"t\"\ntopic = \"{SEQ}\"\n{more}\n\
             command = '''echo \"{word} [$SAMPLE] [$ATTR_SAMPLE]\" >>\"$OUT/runs\"; [ {word} != old ]'''\n"
        );
        fs::write(&config, text).expect("config");
    };
    let send = |sample: &str| {
        world.message(SEQ, &[("status", "finished"), ("sample", sample)]);
    };
    write("old", "");
    let client = start();
    send("S7");
    booked(&world, 1);
    let failed = units(&world)[0]["unit"].as_str().expect("unit").to_owned();
    assert_eq!(world.control(&["p", "pause"]).0, 0);
    send("S8");
    world.message(SEQ, FINISHED);
    let raised = world.control(&["p", "raise", "sample=S9"]);
    assert_eq!(raised.0, 0, "{raised:?}");
    waiting(&world, 3);
    client.kill();
    write(
        "new",
        "envreq = [\"SAMPLE\"]\npayload-passthrough = [\"SAMPLE\"]\nretries = 2\nretry-delay = \"0s\"",
    );
    let client = start();
    assert_eq!(world.control(&["p", "resume"]).0, 0);
    booked(&world, 4);
    ears.status("p", "falsestart");
    let retried = world.control(&["p", "retry", &failed]);
    assert_eq!(retried.0, 0, "{retried:?}");
    booked(&world, 5);
    let new = ["old [] [S7]", "new [S8] []", "new [S9] []", "new [S7] []"];
    assert_eq!(world.lines("runs"), new);
    ears.wait("S7 in a status", |m| m.payload["SAMPLE"] == "S7");
    // The event without a sample runs at no attempt, and a person hears why.
    let all = units(&world);
    let lacks = |unit: &&Value| {
        let note = unit["note"].as_str();
        note.is_some_and(|note| note.contains("it lacks the required attribute SAMPLE"))
    };
    let lacking = all.iter().find(lacks).expect("a false start");
    let lacking = lacking["unit"].as_str().expect("unit");
    let refused = world.control(&["p", "retry", lacking]);
    assert_eq!(refused.0, 65, "{refused:?}");
    assert!(
        refused.2.contains("it lacks the required attribute SAMPLE"),
        "{refused:?}"
    );
    // The same after a reload.
    assert_eq!(world.control(&["p", "pause"]).0, 0);
    send("S10");
    waiting(&world, 1);
    write("newer", "");
    client.signal(nix::sys::signal::Signal::SIGHUP);
    wait_until("it is reloaded", || client.log_text().contains("reloaded;"));
    assert_eq!(world.control(&["p", "resume"]).0, 0);
    booked(&world, 6);
    assert_eq!(world.lines("runs")[4..], ["newer [] [S10]"]);
    assert_eq!(ears.count("p", "falsestart"), 1);
    client.stop();
}

#[test]
fn a_unit_of_an_earlier_version_whose_trigger_is_gone_says_why_it_does_not_run() {
    let world = World::new();
    world.earlier_ledger("p", include_str!("../fixtures/ledger-v7.sql"));
    let ears = world.ears(&["lab/#"]);
    let client = world.client("p", &["-t", "lab/other/status", "-c", "true"]);
    ears.status("p", "falsestart");
    booked(&world, 8);
    let note = unit(&world, WAITING[0])["note"]
        .as_str()
        .expect("note")
        .to_owned();
    assert!(note.contains("no trigger 'seq' any more"), "{note}");
    client.stop();
}
