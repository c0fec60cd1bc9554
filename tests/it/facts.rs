//! `tael facts`: what nodes tell, and how others read it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::common::pty::Terminal;
use crate::common::raw::{self, Raw};
use crate::common::{Process, World, bare_command, ended, ran, refuses, spawn, wait_until};

/// Topics of the node `seq1`.
const SEQ1: &str = "lab/infrastructure/nodes/seq1";

/// Returns `tael facts publish` for the node `seq1`, with the folder `facts.d` of the world.
fn publish(world: &World, arguments: &[&str]) -> Command {
    let folder = world.path("facts.d");
    for kind in ["common", "static", "dynamic", "state"] {
        fs::create_dir_all(folder.join(kind)).expect("folder");
    }
    let mut command = world.tael(["facts", "publish", "--root", "lab", "--node", "seq1"]);
    command.arg("--dir").arg(folder).args(arguments);
    command.env("TAEL_LOG", "warn");
    command
}

/// Writes a fact of kind `state`.
fn state(world: &World, name: &str, text: &str) {
    let folder = world.path("facts.d/state");
    fs::create_dir_all(&folder).expect("folder");
    fs::write(folder.join(name), text).expect("fact");
}

/// Publishes once, and returns the outcome.
#[track_caller]
fn once(world: &World, arguments: &[&str]) -> Value {
    let mut command = publish(world, &["--once", "--json"]);
    let (code, stdout, stderr) = ran(command.args(arguments));
    assert_eq!((code, &*stderr), (0, ""), "{stdout}");
    serde_json::from_str(&stdout).expect("JSON")
}

/// Shows `seq1`, which must be there.
#[track_caller]
fn show(world: &World) -> Value {
    let (code, stdout, stderr) = shown(world, &["seq1", "--json"]);
    assert_eq!((code, &*stderr), (0, ""), "{stdout}");
    let list: Value = serde_json::from_str(&stdout).expect("JSON");
    list[0].clone()
}

fn shown(world: &World, arguments: &[&str]) -> (i32, String, String) {
    let mut command = world.tael(["facts", "show", "--root", "lab", "--log", "none"]);
    ran(command.args(arguments))
}

/// Retains `payload` as it is; an empty one clears.
pub fn retain(world: &World, topic: &str, payload: &str) {
    let mut raw = Raw::connect(world.broker.port());
    let mut packet = raw::publish(topic.as_bytes(), payload.as_bytes(), Some(1), &[], false);
    packet[0] |= 1;
    raw.send(&packet);
    assert_eq!(raw.receive().0, 0x40, "PUBACK");
}

#[test]
fn facts_are_repaired_once_and_then_kept() {
    let world = World::new();
    state(&world, "raid.json", r#"{"ok":true,"disks":{"a":"good"}}"#);
    let told = once(&world, &["--share", "state", "--share", "common"]);
    assert_eq!(
        told,
        json!({"outcome": "repaired", "changed": ["common", "state"], "failed": []})
    );
    let told = once(&world, &["--share", "state", "--share", "common"]);
    assert_eq!(
        told,
        json!({"outcome": "kept", "changed": [], "failed": []})
    );
    let seen = show(&world);
    assert_eq!(
        (&seen["node"], &seen["state"], &seen["fresh"]),
        (&json!("seq1"), &json!("fresh"), &json!(true))
    );
    assert_eq!(
        seen["facts"]["state"]["raid"],
        json!({"disks": {"a": "good"}, "ok": true})
    );
    assert_eq!(seen["facts"]["common"]["tael"], env!("CARGO_PKG_VERSION"));
    // What the broker has lost is told again, and what is shared no more is cleared.
    retain(&world, &format!("{SEQ1}/state"), "");
    assert_eq!(
        once(&world, &["--share", "state"])["changed"],
        json!(["common", "state"])
    );
    let seen = show(&world);
    assert!(seen["facts"].get("common").is_none(), "{seen}");
    assert_eq!(seen["facts"]["state"]["raid"]["ok"], true);
}

#[test]
fn an_unchanged_round_publishes_a_small_presence_only() {
    let world = World::new();
    once(&world, &["--share", "static"]);
    let ears = world.ears(&["lab/#"]);
    ears.wait("retained", |m| m.topic.ends_with("/presence"));
    once(&world, &["--share", "static"]);
    world.message("lab/sentinel", &[]);
    ears.wait("the sentinel", |m| m.topic == "lab/sentinel");
    let told: Vec<_> = ears
        .all()
        .into_iter()
        .filter(|m| !m.retained && m.topic.starts_with(SEQ1))
        .collect();
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(told[0].topic, format!("{SEQ1}/presence"));
    assert!(
        told[0].payload.to_string().len() < 400,
        "{}",
        told[0].payload
    );
}

#[test]
fn a_changed_fact_starts_an_ordinary_trigger() {
    let world = World::new();
    state(&world, "raid.json", r#"{"ok":true,"n":1}"#);
    once(&world, &["--share", "state"]);
    let topic = format!("{SEQ1}/changed");
    let client = world.client(
        "mail",
        &[
            "-t",
            &topic,
            "--when",
            "status=changed",
            "--when",
            "name=raid.ok",
            "-c",
            r#"echo "$ATTR_NODE $ATTR_NAME $ATTR_WAS $ATTR_IS" >>"$OUT/mails""#,
        ],
    );
    let ears = world.ears(&[&topic]);
    state(&world, "raid.json", r#"{"ok":false,"n":2}"#);
    once(&world, &["--share", "state"]);
    // The same again is no change.
    once(&world, &["--share", "state"]);
    state(&world, "raid.json", r#"{"ok":true,"n":2}"#);
    once(&world, &["--share", "state"]);
    wait_until("two mails", || world.lines("mails").len() == 2);
    assert_eq!(
        world.lines("mails"),
        ["seq1 raid.ok true false", "seq1 raid.ok false true"]
    );
    ears.wait_all("three changes", |all| (all.len() == 3).then_some(()));
    client.stop();
}

#[test]
fn changes_beyond_the_bound_are_counted() {
    let world = World::new();
    let many = |value: u32| {
        let all: serde_json::Map<String, Value> = (0..100)
            .map(|n| (format!("n{n:03}"), json!(value)))
            .collect();
        Value::Object(all).to_string()
    };
    state(&world, "many.json", &many(1));
    once(&world, &["--share", "state"]);
    let ears = world.ears(&[&format!("{SEQ1}/changed")]);
    state(&world, "many.json", &many(2));
    once(&world, &["--share", "state"]);
    let last = ears.wait("the rest", |m| m.payload.get("more").is_some());
    assert_eq!(last.payload["more"], 36);
    assert_eq!(ears.all().len(), 65);
}

#[test]
fn own_facts_are_found_from_where_one_is_and_mistakes_are_named() {
    let dir = tempfile::tempdir().expect("tempdir");
    let own = |path: &str, text: &str, mode: u32| {
        let path = dir.path().join("own").join(path);
        fs::create_dir_all(path.parent().expect("folder")).expect("folder");
        fs::write(&path, text).expect("fact");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("mode");
    };
    own("state/script", "#!/bin/sh\necho x=1\n", 0o755);
    own("state/still", "#!/bin/sh\necho x=1\n", 0o644);
    own("state/prose", "#!/bin/sh\necho '{x'\n", 0o755);
    own("lab/site", "{}", 0o644);
    own(".git/config", "{}", 0o644);
    let mut command = bare_command(&dir, "tael");
    // A script runs elsewhere, and --dry-run takes what cron has.
    command.current_dir(dir.path()).env("TAEL_LOG", "warn");
    command.args(["facts", "publish", "--dry-run", "--once", "--dir", "own"]);
    let (code, stdout, stderr) = ran(command.args(["--log", "stderr"]));
    assert_eq!(code, 65, "{stderr}");
    let lines = stdout
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"));
    let lines: Vec<Value> = lines.collect();
    assert_eq!(lines[3]["facts"]["script"], json!({"x": "1"}), "{stderr}");
    for (name, cause) in [
        ("still", "a script that prints facts needs chmod +x"),
        ("prose", "its output is not JSON"),
        ("lab", "own/lab is none of common, static, dynamic, state"),
    ] {
        let mut said = stderr
            .lines()
            .filter(|line| line.contains(&format!("/{name} is left out")));
        assert!(
            said.next().is_some_and(|line| line.contains(cause)),
            "{name}: {stderr}"
        );
    }
    assert_eq!(stderr.matches("is left out").count(), 3, "{stderr}");
}

#[test]
fn a_folder_that_others_may_write_leads_to_no_script() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (open, real) = (dir.path().join("open"), dir.path().join("real"));
    let ran_file = dir.path().join("ran");
    for folder in [&open, &real] {
        fs::create_dir(folder).expect("folder");
    }
    let script = real.join("halt");
    fs::write(
        &script,
        format!("#!/bin/sh\ntouch {}\n", ran_file.display()),
    )
    .expect("script");
    let mode = |path: &std::path::Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("mode");
    };
    mode(&script, 0o755);
    mode(&real, 0o755);
    mode(&open, 0o777);
    std::os::unix::fs::symlink(&real, open.join("static")).expect("link");
    let mut command = bare_command(&dir, "tael");
    command
        .args(["facts", "publish", "--dry-run", "--dir"])
        .arg(&open);
    let (code, _, stderr) = ran(&mut command);
    assert_eq!(code, 65, "{stderr}");
    let cause = format!(
        "static/open is left out: folder {}: group or others may",
        open.display()
    );
    assert!(stderr.contains(&cause), "{stderr}");
    assert!(!ran_file.exists(), "{stderr}");
    // The way is the reason, not the folder.
    mode(&open, 0o755);
    ran(&mut command);
    assert!(ran_file.exists());
}

#[test]
fn children_of_the_shell_that_became_the_program_live_on() {
    let dir = tempfile::tempdir().expect("tempdir");
    let folder = dir.path().join("own");
    fs::create_dir(&folder).expect("folder");
    let script = folder.join("s");
    fs::write(&script, "#!/bin/sh\necho a=1\n").expect("script");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("mode");
    let mut command = Command::new("sh");
    let tael = bare_command(&dir, "tael").get_program().to_owned();
    let line =
        "sleep 600 >/dev/null 2>&1 & echo $! >pid; exec \"$0\" facts publish --dry-run --dir own";
    command.current_dir(dir.path()).args(["-c", line]).arg(tael);
    let (code, stdout, stderr) = ran(&mut command);
    assert!(code == 0 && stdout.contains("\"a\""), "{stderr}");
    let pid = fs::read_to_string(dir.path().join("pid")).expect("pid");
    let kill = ran(Command::new("kill").arg(pid.trim()));
    assert_eq!(kill.0, 0, "it is gone: {}", kill.2);
}

#[test]
fn options_of_our_own_facts_are_refused_where_others_are_shown() {
    let dir = tempfile::tempdir().expect("tempdir");
    let facts = |arguments: &[&str]| {
        let mut command = bare_command(&dir, "tael");
        command
            .args(["facts", "-p", "1", "--root", "lab"])
            .args(arguments);
        command
    };
    refuses(
        &mut facts(&["show", "--node", "seq2"]),
        64,
        "tael facts show NODE",
    );
    refuses(&mut facts(&["--keep", "3d", "show"]), 64, "--keep is about");
    refuses(
        &mut facts(&["view", "SELECT 1", "--dir", "/"]),
        64,
        "--dir is about",
    );
}

#[test]
fn who_is_stopped_while_scripts_run_ends_them() {
    let dir = tempfile::tempdir().expect("tempdir");
    let folder = dir.path().join("own");
    fs::create_dir(&folder).expect("folder");
    let (script, pid) = (folder.join("s"), dir.path().join("pid"));
    let text = format!(
        "#!/bin/sh\necho $$ >{0}.new; mv {0}.new {0}\nexec sleep 600\n",
        pid.display()
    );
    fs::write(&script, text).expect("script");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("mode");
    for mode in ["--once", "--dry-run"] {
        let _ = fs::remove_file(&pid);
        let mut command = bare_command(&dir, "tael");
        command
            .args([
                "facts", "publish", "--root", "lab", "-p", "1", mode, "--dir",
            ])
            .arg(&folder);
        let mut process = spawn(&dir, &mut command);
        wait_until("the script runs", || pid.exists());
        process.signal(Signal::SIGTERM);
        assert_eq!(process.wait(), 143, "{mode}: {}", process.log_text());
        let script = fs::read_to_string(&pid).expect("pid");
        let there = format!("/proc/{}", script.trim());
        assert!(!fs::exists(&there).expect("proc"), "{mode}: it is left");
    }
}

#[test]
fn a_dry_run_prints_what_would_be_told_and_connects_nowhere() {
    let dir = tempfile::tempdir().expect("tempdir");
    let folder = dir.path().join("own");
    fs::create_dir(&folder).expect("folder");
    fs::write(folder.join("raid.fact"), r#"{"ok":true,"api_token":"x"}"#).expect("fact");
    let mut command = bare_command(&dir, "tael");
    command.args([
        "facts",
        "publish",
        "--dry-run",
        "--node",
        "seq1",
        "-p",
        "1",
        "--dir",
    ]);
    command
        .arg(&folder)
        .args(["--hide", "static.interfaces", "--log", "stderr"]);
    command.env("TAEL_LOG", "warn");
    let (code, stdout, stderr) = ran(&mut command);
    assert_eq!(code, 0, "{stderr}");
    assert!(
        stderr.contains("static.raid.api_token is left out"),
        "{stderr}"
    );
    let lines: Vec<Value> = stdout
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let kinds: Vec<&str> = lines
        .iter()
        .filter_map(|line| line["kind"].as_str())
        .collect();
    assert_eq!(kinds, ["common", "static", "dynamic", "state"]);
    assert_eq!(lines[1]["facts"]["raid"], json!({"ok": true}));
    assert!(lines[1]["facts"].get("interfaces").is_none() && lines[1]["facts"]["cpus"].is_number());
    assert_eq!(lines[4]["state"], "online");
    // Nothing that may be secret: neither the environment nor the id of the machine.
    let id = fs::read_to_string("/etc/machine-id").unwrap_or_default();
    assert!(
        id.trim().is_empty() || !stdout.contains(id.trim()),
        "{stdout}"
    );
    assert!(
        !stdout.contains(dir.path().to_str().expect("path")),
        "{stdout}"
    );
}

#[test]
fn the_table_of_a_file_says_what_is_told() {
    let world = World::new();
    let file = world.file(
        "tael.toml",
        "root = 'lab'\n[facts]\nnode = 'seq9'\nshare = ['common', 'state']\nhide = ['common.os.*']\n",
    );
    let mut command = world.tael(["facts", "publish", "--once", "--config", &file]);
    let (code, _, stderr) = ran(command.env("TAEL_LOG", "warn"));
    assert_eq!((code, &*stderr), (0, ""));
    let (code, stdout, _) = shown(&world, &["seq9", "--json"]);
    let list: Value = serde_json::from_str(&stdout).expect("JSON");
    let facts = list[0]["facts"].as_object().expect("facts");
    assert_eq!(
        (code, facts.keys().collect::<Vec<_>>()),
        (0, vec![&"common".to_owned(), &"state".to_owned()])
    );
    assert!(facts["common"].get("os").is_none(), "{stdout}");
}

#[test]
fn lists_are_for_people_and_for_programs() {
    let world = World::new();
    once(&world, &["--share", "common"]);
    let stale = json!({"state": "online", "node": "old", "host": "h2", "ts": 1000, "interval": 60});
    retain(
        &world,
        "lab/infrastructure/nodes/old/presence",
        &stale.to_string(),
    );
    let lost = json!({"state": "lost", "node": "gone", "host": "h3", "ts": 1000});
    retain(
        &world,
        "lab/infrastructure/nodes/gone/presence",
        &lost.to_string(),
    );
    let (code, stdout, stderr) = shown(&world, &[]);
    assert_eq!((code, &*stderr), (0, ""));
    let rows: Vec<Vec<&str>> = stdout
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(rows[0][..4], ["NODE", "STATE", "AGO", "HOST"]);
    let states: Vec<_> = rows[1..].iter().map(|row| (row[0], row[1])).collect();
    assert_eq!(
        states,
        [("gone", "lost"), ("old", "stale"), ("seq1", "fresh")]
    );
    let (_, stdout, _) = shown(&world, &["--stale", "--json"]);
    let list: Vec<Value> = serde_json::from_str(&stdout).expect("JSON");
    let names: Vec<&Value> = list.iter().map(|node| &node["node"]).collect();
    assert_eq!(names, ["gone", "old"]);
    let (code, stdout, _) = shown(&world, &["seq1"]);
    assert_eq!(code, 0);
    assert!(
        stdout
            .lines()
            .any(|line| line.starts_with("common") && line.contains("os.id")),
        "{stdout}"
    );
    // The facts of a node that is not fresh are shown, and it is said.
    let (code, _, stderr) = shown(&world, &["gone"]);
    assert!(code == 0 && stderr.contains("not fresh: lost"), "{stderr}");
    let (code, _, stderr) = shown(&world, &["seq2"]);
    assert!(
        code == 65 && stderr.contains("did you mean seq1?"),
        "{stderr}"
    );
}

#[test]
fn nodes_that_lie_about_their_names_are_ignored_and_named() {
    let world = World::new();
    once(&world, &["--share", "common"]);
    let facts = json!({"node": "seq1", "kind": "static", "ts": 1, "facts": {"cpus": 99}});
    retain(
        &world,
        "lab/infrastructure/nodes/liar/static",
        &facts.to_string(),
    );
    let presence = json!({"state": "online", "node": "seq1", "host": "x", "ts": 1});
    retain(
        &world,
        "lab/infrastructure/nodes/liar/presence",
        &presence.to_string(),
    );
    retain(
        &world,
        "lab/infrastructure/nodes/noise/state",
        "no JSON \u{1b}[2J",
    );
    let (code, stdout, stderr) = shown(&world, &["--json"]);
    assert_eq!(code, 0);
    let list: Vec<Value> = serde_json::from_str(&stdout).expect("JSON");
    let names: Vec<&Value> = list.iter().map(|node| &node["node"]).collect();
    assert_eq!(names, ["seq1"]);
    assert!(
        stderr.contains("ignored lab/infrastructure/nodes/") && stderr.contains("and 2 more"),
        "{stderr}"
    );
    // What a stranger retains for our node is repaired.
    retain(&world, &format!("{SEQ1}/common"), "no JSON");
    assert_eq!(once(&world, &["--share", "common"])["outcome"], "repaired");
}

#[test]
fn the_name_of_another_machine_is_refused_while_it_is_fresh() {
    let world = World::new();
    let presence = |ago: i64| {
        let ts = jiff::Timestamp::now().as_second() - ago;
        let text = json!({"state": "online", "node": "seq1", "host": "twin", "ts": ts, "interval": 300, "machine": "0"});
        retain(&world, &format!("{SEQ1}/presence"), &text.to_string());
    };
    let mut show = publish(&world, &["--dry-run"]);
    let (_, told, _) = ran(&mut show);
    let own: Value = serde_json::from_str(told.lines().last().expect("presence")).expect("JSON");
    if own["machine"] == "" {
        eprintln!("this host has no machine id: nothing to compare");
        return;
    }
    presence(10);
    let mut command = publish(&world, &["--once"]);
    refuses(
        &mut command,
        73,
        "another machine tells those of seq1: host twin, 1",
    );
    let mut daemon = world.spawn(publish(&world, &[]));
    assert_eq!(daemon.wait(), 73);
    presence(1000);
    assert_eq!(once(&world, &["--share", "common"])["outcome"], "repaired");
    // A time that is still to come does not hold the name for ever.
    presence(-1000);
    assert_eq!(once(&world, &["--share", "common"])["outcome"], "kept");
}

#[test]
fn a_node_of_the_future_is_not_fresh() {
    let world = World::new();
    let now = jiff::Timestamp::now().as_second();
    let tell = |name: &str, ts: Value, interval: Value| {
        let topic = |last: &str| format!("lab/infrastructure/nodes/{name}/{last}");
        let presence = json!({"state": "online", "node": name, "host": "h", "ts": ts, "interval": interval, "machine": "0"});
        retain(&world, &topic("presence"), &presence.to_string());
        let facts = json!({"node": name, "kind": "state", "ts": ts, "facts": {"a": 1}});
        retain(&world, &topic("state"), &facts.to_string());
    };
    tell("good", json!(now), json!(300));
    tell("soon", json!(now + 600), json!(300));
    tell("last", json!(i64::MAX), json!(300));
    tell("long", json!(now - 400 * 86_400), json!(i64::MAX));
    tell("past", json!(i64::MIN), json!(300));
    for (name, ts) in [
        ("huge", json!(u64::MAX)),
        ("real", json!(1e300)),
        ("text", json!("1")),
    ] {
        tell(name, ts, json!(300));
    }
    let (code, stdout, stderr) = shown(&world, &["--json"]);
    let list: Vec<Value> = serde_json::from_str(&stdout).expect("JSON");
    let states: Vec<(&str, &str, bool)> = list
        .iter()
        .map(|node| {
            let text = |key: &str| node[key].as_str().unwrap_or_default();
            (text("node"), text("state"), node["age"].is_null())
        })
        .collect();
    assert_eq!(
        (code, states),
        (
            0,
            vec![
                ("good", "fresh", false),
                ("last", "skewed", true),
                ("long", "stale", false),
                ("past", "stale", false),
                ("soon", "skewed", true),
            ]
        )
    );
    assert!(stderr.contains("and 5 more"), "{stderr}");
    let (_, stdout, _) = shown(&world, &["--stale"]);
    assert!(
        stdout.contains("skewed (clock 9m ") || stdout.contains("skewed (clock 10m "),
        "{stdout}"
    );
    assert!(!stdout.contains("good"), "{stdout}");
    // No condition on an age holds for them.
    let sql = "SELECT n.name FROM node n JOIN fact f ON f.node = n.name WHERE n.fresh OR n.age < 60 OR f.age < 60 ORDER BY 1";
    let mut view = world.tael([
        "facts", "view", "--root", "lab", "--raw", "--log", "none", sql,
    ]);
    assert_eq!(ran(&mut view).1, "good\n");
}

/// Starts a daemon that tells facts, and returns when it has told them.
fn daemon(world: &World, arguments: &[&str]) -> Process {
    let ears = world.ears(&[&format!("{SEQ1}/presence")]);
    let mut command = publish(world, arguments);
    command.env("TAEL_LOG", "info");
    let process = world.spawn(command);
    ears.wait("online", |m| !m.retained && m.payload["state"] == "online");
    process
}

#[test]
fn a_daemon_looks_again_and_says_when_it_leaves() {
    let world = World::new();
    state(&world, "raid.json", r#"{"ok":true}"#);
    let process = daemon(&world, &["--interval", "1s", "--keep", "1h"]);
    let ears = world.ears(&[&format!("{SEQ1}/#")]);
    state(&world, "raid.json", r#"{"ok":false}"#);
    ears.wait("the change", |m| {
        m.payload["status"] == "changed" && m.payload["is"] == json!(false)
    });
    ears.wait("the state", |m| {
        m.topic.ends_with("/state") && m.payload["facts"]["raid"]["ok"] == json!(false)
    });
    assert_eq!(show(&world)["state"], "fresh");
    // What another client clears is told again.
    retain(&world, &format!("{SEQ1}/static"), "");
    ears.wait("told again", |m| {
        !m.retained && m.topic.ends_with("/static") && m.payload["kind"] == "static"
    });
    process.stop();
    let seen = show(&world);
    assert_eq!(
        (&seen["state"], &seen["fresh"]),
        (&json!("offline"), &json!(false))
    );
    assert_eq!(seen["facts"]["state"]["raid"]["ok"], false);
}

#[test]
fn a_round_says_its_outcome_on_a_terminal_only() {
    let world = World::new();
    for outcome in ["repaired", "kept"] {
        // These do not change meanwhile.
        let terminal = Terminal::start(publish(&world, &["--once", "--share", "common"]), 80);
        assert_eq!(terminal.end(), (0, format!("{outcome}\n")));
    }
    let mut quiet = publish(&world, &["--once"]);
    assert_eq!(
        ran(quiet.env("TAEL_LOG", "warn")),
        (0, String::new(), String::new())
    );
}

#[test]
fn a_second_daemon_of_a_node_is_refused() {
    let world = World::new();
    let first = daemon(&world, &[]);
    refuses(
        &mut publish(&world, &[]),
        73,
        "those of seq1 are told below lab already: process",
    );
    let quiet = ran(&mut publish(&world, &["--if-not-running"]));
    assert_eq!(quiet, (0, String::new(), String::new()));
    // A round beside it does not say that the node has left.
    once(&world, &[]);
    assert_eq!(show(&world)["state"], "fresh");
    // Another node, and another root, are others.
    let mut other = world.tael(["facts", "publish", "--root", "lab", "--node", "seq2"]);
    other.env("TAEL_LOG", "warn");
    let other = world.spawn(other);
    wait_until("the other node", || shown(&world, &["seq2"]).0 == 0);
    other.stop();
    first.kill();
    // The lock of a dead process is free.
    daemon(&world, &["--if-not-running"]).stop();
}

#[test]
fn a_daemon_that_dies_is_lost_and_its_facts_stay() {
    let world = World::new();
    let process = daemon(&world, &["--share", "common"]);
    process.kill();
    wait_until("it is lost", || show(&world)["state"] == "lost");
    assert!(show(&world)["facts"]["common"]["kernel"].is_string());
}

#[test]
fn a_daemon_tells_everything_again_to_a_broker_that_has_lost_it() {
    let mut world = World::new();
    state(&world, "raid.json", r#"{"ok":true}"#);
    let process = daemon(&world, &["--share", "state"]);
    world.broker.kill();
    world.broker.restart();
    let seen = || {
        let (_, stdout, _) = shown(&world, &["seq1", "--json"]);
        serde_json::from_str::<Value>(&stdout).unwrap_or_default()
    };
    wait_until("it is told again", || {
        seen()[0]["facts"]["state"]["raid"]["ok"] == true
    });
    process.stop();
}

#[test]
fn a_broker_that_is_away_is_no_kept_promise() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut command = bare_command(&dir, "tael");
    command.args([
        "facts",
        "publish",
        "--once",
        "--timeout",
        "300ms",
        "-H",
        "127.0.0.1",
        "-p",
        "1",
    ]);
    command.args(["--share", "common", "--log", "none"]);
    let (code, stdout, stderr) = ran(&mut command);
    assert_eq!((code, &*stdout), (69, ""), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
}

#[test]
fn facts_expire_with_the_last_word_of_a_dead_node() {
    let world = World::new();
    once(
        &world,
        &["--share", "common", "--interval", "1s", "--keep", "3s"],
    );
    assert_eq!(show(&world)["node"], "seq1");
    wait_until("the broker forgets it", || shown(&world, &["seq1"]).0 == 65);
}

#[test]
fn a_pattern_that_hides_nothing_is_named_once() {
    let world = World::new();
    state(&world, "raid.json", r#"{"ok":true}"#);
    let hide = [
        "--hide",
        "state.raid.*",
        "--hide",
        "state.riad.*",
        "--hide",
        "static.x",
    ];
    let mut command = publish(&world, &["--once", "--share", "common,state"]);
    let (code, _, stderr) = ran(command.args(hide).env("TAEL_LOG", "info"));
    assert_eq!(code, 0, "{stderr}");
    let cause = "--hide 'state.riad.*' matches no fact of this host";
    assert_eq!(stderr.matches("matches no fact").count(), 1, "{stderr}");
    assert!(stderr.contains(cause), "{stderr}");
    let kinds = show(&world)["facts"].clone();
    assert!(
        kinds.get("static").is_none() && kinds["state"].get("raid").is_none(),
        "{kinds}"
    );
    // A daemon says so once, not at each round.
    let arguments = [&["--share", "common,state", "--interval", "1s"], &hide[..]].concat();
    let looked = || show(&world)["ts"].as_i64().expect("ts");
    let process = daemon(&world, &arguments);
    for _ in 0..3 {
        let ts = looked();
        wait_until("another round", || looked() > ts);
    }
    let log = process.log_text();
    assert_eq!(log.matches(cause).count(), 1, "{log}");
    process.stop();
}

#[test]
fn options_that_make_no_sense_are_refused() {
    let dir = tempfile::tempdir().expect("tempdir");
    for (arguments, code, text) in [
        (
            &["publish", "--node", "a/b"][..],
            64,
            "'a/b' cannot name a node",
        ),
        (
            &["publish", "--interval", "0s"],
            64,
            "the interval is out of range",
        ),
        (
            &["publish", "--interval", "1h", "--keep", "2h"],
            64,
            "--keep is too short: 3 intervals",
        ),
        (
            &["publish", "--once", "--hide", "interfaces.*"],
            64,
            "--hide 'interfaces.*' matches no fact: names begin with a kind (common, static, dynamic, state), \
             such as 'static.interfaces.*'",
        ),
        (
            &["publish", "--dry-run", "--allow", "state"],
            64,
            "such as 'state.*'",
        ),
        (
            &["publish", "--share", "common,secrets"],
            64,
            "'secrets' is not a kind of facts",
        ),
        (
            &["publish", "--share", "secrets"],
            64,
            "'secrets' is not a kind of facts",
        ),
        (
            &["publish", "--dry-run", "--dir", "/no/such"],
            78,
            "read facts in /no/such",
        ),
        (
            &["publish", "--once", "--root", "a/#"],
            64,
            "the root cannot be used",
        ),
        (&["show", "a+b"], 64, "'a+b' cannot name a node"),
    ] {
        let mut command = bare_command(&dir, "tael");
        command.arg("facts").args(arguments).args(["--log", "none"]);
        refuses(&mut command, code, text);
    }
}

#[test]
fn a_daemon_stops_at_once_with_and_without_a_broker() {
    let world = World::new();
    let mut process = daemon(&world, &["--share", "common"]);
    process.signal(Signal::SIGINT);
    assert_eq!(process.wait(), 0, "{}", process.log_text());
    let mut away = publish(&world, &["-H", "127.0.0.1"]);
    away.env("TAEL_PORT", "1").env("TAEL_LOG", "info");
    let away = world.spawn(away);
    wait_until("it has begun", || {
        away.log_text().contains("telling the facts of seq1")
    });
    // It waits for a broker without a limit.
    away.stop();
}

#[test]
fn the_root_is_found_where_one_has_nodes() {
    let world = World::new();
    let tell = |root: &str| {
        let mut command = world.tael([
            "facts", "publish", "--once", "--node", "seq1", "--root", root,
        ]);
        command.args(["--share", "common", "--log", "none"]);
        assert_eq!(ran(&mut command).0, 0);
    };
    let run = |arguments: &[&str]| {
        let mut command = world.tael(["facts"]);
        command.args(arguments).env("TAEL_LOG", "warn");
        ran(&mut command)
    };
    tell("lab/deep");
    let (code, stdout, stderr) = run(&["show", "--json"]);
    assert!(
        code == 0 && stdout.contains("\"node\":\"seq1\""),
        "{stdout}{stderr}"
    );
    assert!(run(&["show", "seq1"]).1.contains("kernel"));
    let select = ["view", "SELECT name FROM node", "--raw"];
    assert_eq!(run(&select).1, "seq1\n");
    let (code, _, stderr) = run(&["show", "seq2"]);
    let cause = "no such node tells any below lab/deep; did you mean seq1?";
    assert!(code == 65 && stderr.contains(cause), "{code} {stderr}");
    let (code, _, stderr) = run(&["forget", "other"]);
    let cause = "nothing is retained about it below lab/deep";
    assert!(code == 65 && stderr.contains(cause), "{code} {stderr}");
    tell("other");
    let (code, _, stderr) = run(&["show", "seq2"]);
    let cause = "nodes are below lab/deep, other: choose one by --root";
    assert!(code == 64 && stderr.contains(cause), "{code} {stderr}");
    let (code, _, stderr) = run(&select);
    let cause = "nodes or pipelines are below lab/deep, other: choose one by --root";
    assert!(code == 64 && stderr.contains(cause), "{code} {stderr}");
}

#[test]
fn a_node_that_is_gone_is_forgotten() {
    let world = World::new();
    let forget = |arguments: &[&str]| {
        let mut command = world.tael(["facts", "forget", "--root", "lab"]);
        command.args(arguments).env("TAEL_LOG", "warn");
        command
    };
    once(&world, &["--share", "common"]);
    refuses(
        &mut forget(&["seq1"]),
        65,
        "forget node seq1: it is fresh on ",
    );
    refuses(
        &mut forget(&["seq9"]),
        65,
        "forget node seq9: nothing is retained",
    );
    let presence = json!({"state": "offline", "node": "gone", "host": "h", "ts": 1});
    let prefix = "lab/infrastructure/nodes/gone";
    retain(&world, &format!("{prefix}/presence"), &presence.to_string());
    let facts = json!({"node": "gone", "kind": "static", "ts": 1, "facts": {"a": 1}});
    retain(&world, &format!("{prefix}/static"), &facts.to_string());
    // None is forgotten if one must not be.
    // Facts alone do not say when their node was there last.
    retain(
        &world,
        "lab/infrastructure/nodes/mute/state",
        &json!({"node": "mute", "kind": "state", "ts": 1, "facts": {"a": 1}}).to_string(),
    );
    refuses(&mut forget(&["mute"]), 65, "is not known; give --force");
    refuses(&mut forget(&["gone", "seq1"]), 65, "it is fresh");
    assert_eq!(shown(&world, &["gone"]).0, 0);
    let (code, stdout, _) = ran(&mut forget(&["gone"]));
    assert_eq!((code, &*stdout), (0, "forgot gone, offline on h\n"));
    let ears = world.ears(&["lab/infrastructure/nodes/#"]);
    ears.wait("what is retained", |m| {
        m.topic == format!("{SEQ1}/presence")
    });
    world.message("lab/infrastructure/nodes/sentinel", &[]);
    ears.wait("the sentinel", |m| m.topic.ends_with("/sentinel"));
    assert!(ears.all().iter().all(|m| !m.topic.starts_with(prefix)));
    let (code, stdout, _) = ran(&mut forget(&["--force", "seq1"]));
    assert!(
        code == 0 && stdout.starts_with("forgot seq1, fresh on "),
        "{stdout}"
    );
    assert_eq!(shown(&world, &["seq1"]).0, 65);
}

#[test]
fn facts_that_a_broker_without_acknowledgements_drops_are_not_told() {
    let world = World::new();
    let broker = raw::Scripted::listen();
    for comes_back in [true, false] {
        let mut command = publish(&world, &["--once", "--json", "--share", "common"]);
        command
            .args(["--timeout", "3s", "-H", "127.0.0.1", "-p"])
            .arg(broker.port().to_string())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped());
        let child = command.spawn().expect("tael facts");
        // Maximum QoS: 0.
        let mut raw = broker.accept_with(&[0x24, 0]);
        raw.serve_subscription();
        let marker = raw.serve_until(|heard| !heard.topic.starts_with(SEQ1));
        let back = |raw: &mut Raw, heard: &raw::Heard| {
            let topic = heard.topic.as_bytes();
            raw.send(&raw::publish(topic, &heard.payload, None, &[], false));
        };
        back(&mut raw, &marker);
        loop {
            let told = raw.serve_until(|heard| heard.topic.starts_with(SEQ1));
            if comes_back {
                back(&mut raw, &told);
            }
            if told.topic.ends_with("/presence") {
                break;
            }
        }
        let (code, stdout, stderr) = ended(child);
        match comes_back {
            true => assert!(code == 0 && stdout.contains("repaired"), "{stderr}"),
            false => assert_eq!((code, &*stdout), (75, ""), "{stderr}"),
        }
    }
}
