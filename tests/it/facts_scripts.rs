//! Scripts and files of a facts.d folder: those that fail are absent and named, the others are told.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};

use crate::common::{World, bare_command, ran, wait_until};

/// A folder of facts, without a broker.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        let folder = Self(tempfile::tempdir().expect("tempdir"));
        fs::create_dir_all(folder.path("state")).expect("folder");
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn file(&self, name: &str, text: impl AsRef<[u8]>) {
        fs::write(self.path(&format!("state/{name}")), text).expect("file");
    }

    /// Writes a script, by another process: see `World::script`.
    fn script(&self, name: &str, text: &str) {
        let mut install = Command::new("install");
        install
            .args(["-m", "755", "/dev/stdin"])
            .arg(self.path(&format!("state/{name}")));
        let text = format!("#!/bin/sh\n{text}\n");
        assert_eq!(crate::common::ran_with(&mut install, text.as_bytes()).0, 0);
    }

    /// Gathers: exit code, facts of kind `state`, what failed, and the log.
    fn gather(&self, arguments: &[&str]) -> (i32, Value, Vec<String>, String) {
        let mut command = bare_command(&self.0, "tael");
        command.args([
            "facts",
            "publish",
            "--dry-run",
            "--share",
            "state",
            "--log",
            "stderr",
            "--dir",
        ]);
        command.arg(self.0.path()).args(arguments);
        command.env("TAEL_LOG", "warn").env("SECRET_OF_OURS", "x");
        let (code, stdout, stderr) = ran(&mut command);
        let mut lines = stdout
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
        let facts = lines.next().expect("facts")["facts"].clone();
        let presence = lines.next().expect("presence");
        let failed = presence["failed"].as_array().expect("failed").iter();
        let failed = failed
            .map(|name| name.as_str().expect("name").to_owned())
            .collect();
        (code, facts, failed, stderr)
    }
}

#[test]
fn files_and_scripts_of_both_forms_are_told() {
    let folder = Folder::new();
    folder.file("a.json", r#"{"x":[1,2]}"#);
    folder.file("b.fact", r#"{"y":null}"#);
    folder.file("c", r#"{"z":"w"}"#);
    folder.file(".hidden", "no JSON");
    folder.file("a.json.dpkg-old", "no JSON");
    folder.script("d.sh", "echo '{\"from\":\"script\"}'");
    folder.script("e", "echo one=1; echo 'two = b c '; echo '# comment'");
    folder.script(
        "env",
        "env | grep -v '^PWD=' | sed 's/=.*/=1/' | sort; pwd | sed 's/^/folder=/'",
    );
    let (code, facts, failed, log) = folder.gather(&[]);
    assert_eq!((code, &failed[..], &*log), (0, &[][..], ""));
    assert_eq!(facts["a"], json!({"x": [1, 2]}));
    assert_eq!(
        (&facts["b"], &facts["c"]),
        (&json!({"y": null}), &json!({"z": "w"}))
    );
    assert_eq!(
        (&facts["d"], &facts["e"]),
        (
            &json!({"from": "script"}),
            &json!({"one": "1", "two": "b c"})
        )
    );
    // A clean environment, and no folder of ours.
    let names: Vec<&String> = facts["env"].as_object().expect("names").keys().collect();
    let foreign = names
        .iter()
        .any(|name| name.starts_with("TAEL") || name.starts_with("SECRET") || *name == "OUT");
    assert!(!foreign && facts["env"]["folder"] == "/", "{facts}");
}

#[test]
fn what_fails_is_absent_and_named_and_the_others_are_told() {
    let folder = Folder::new();
    folder.file("good.json", r#"{"ok":true}"#);
    folder.file("list.json", "[1]");
    folder.file("broken.json", "{");
    folder.file("ini.fact", "[section]\nkey=value\n");
    folder.file("facts.yaml", "a: 1\n");
    folder.file(
        "large.json",
        format!("{{\"a\":\"{}\"}}", "x".repeat(70_000)),
    );
    folder.script("fails", "echo a=1; echo 'no controller' >&2; exit 3");
    folder.script("dies", "kill -9 $$");
    folder.script("floods", "yes a=b | head -c 10000000");
    folder.script("binary", "head -c 1000 /dev/urandom; printf 'a=\\377\\n'");
    folder.script("nojson", "echo '{\"a\": nan}'");
    folder.script("nopair", "echo hello");
    folder.script("noloader", "");
    fs::write(folder.path("state/noloader"), "#!/no/such\n").expect("script");
    let many: serde_json::Map<String, Value> =
        (0..1100).map(|n| (format!("k{n}"), json!(n))).collect();
    folder.file("zmany.json", Value::Object(many).to_string());
    let (code, facts, failed, log) = folder.gather(&[]);
    assert_eq!(code, 65);
    assert_eq!(facts["good"], json!({"ok": true}));
    for name in [
        "list",
        "broken",
        "ini",
        "facts.yaml",
        "large",
        "fails",
        "dies",
        "floods",
        "binary",
        "nojson",
        "nopair",
        "noloader",
    ] {
        let full = format!("state/{name}");
        assert!(failed.contains(&full), "{full}: {failed:?}");
        assert!(facts.get(name).is_none(), "{name}");
        assert!(
            log.contains(&format!("facts: {full} is left out")),
            "{full}: {log}"
        );
    }
    assert!(log.contains("it exited with 3: no controller"), "{log}");
    assert!(log.contains("it printed more than 64 KiB"), "{log}");
    assert!(log.contains("state/ini is left out: it is INI"), "{log}");
    for cause in [
        "noloader is left out: it cannot be started: No such file",
        "dies is left out: it was ended by signal 9",
    ] {
        assert!(log.contains(cause), "{cause}: {log}");
    }
    // Too many keys: the first ones are told.
    let told = facts["zmany"].as_object().expect("some").len();
    assert!((900..=1000).contains(&told), "{told}");
    assert!(
        failed.last().is_some_and(|last| last.starts_with("and ")),
        "{failed:?}"
    );
    assert!(
        log.contains("some are left out, the others are told"),
        "{log}"
    );
}

#[test]
fn a_script_that_hangs_is_killed_with_all_it_has_started() {
    let folder = Folder::new();
    let pids = folder.path("pids");
    let pids = pids.to_str().expect("path");
    folder.file("good.json", r#"{"ok":true}"#);
    // One hangs, one leaves a child in its group with its pipes, one leaves one in another session.
    folder.script(
        "hangs",
        &format!("echo $$ >>{pids}; sleep 1000 & echo $! >>{pids}; wait"),
    );
    folder.script(
        "leaves",
        &format!("sleep 1000 & echo $! >>{pids}; echo a=1"),
    );
    folder.script(
        "flees",
        &format!("setsid sleep 1000 & sleep 0.2; echo $! >>{pids}; echo a=1"),
    );
    folder.script(
        "deaf",
        &format!("trap '' TERM INT HUP; echo $$ >>{pids}; while :; do sleep 1; done"),
    );
    let begun = Instant::now();
    let (code, facts, failed, log) = folder.gather(&[]);
    assert_eq!(code, 65);
    // Four at a time: not one after the other.
    assert!(
        begun.elapsed() < Duration::from_secs(30),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(failed, ["state/deaf", "state/hangs"]);
    assert!(
        log.contains("state/hangs is left out: it ran too long"),
        "{log}"
    );
    assert_eq!(
        (&facts["leaves"], &facts["flees"]),
        (&json!({"a": "1"}), &json!({"a": "1"}))
    );
    assert_eq!(facts["good"]["ok"], true);
    let list = fs::read_to_string(pids).expect("pids");
    assert_eq!(list.lines().count(), 5, "{list}");
    for pid in list.lines() {
        wait_until("it is gone", || {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.is_empty() || stat.contains(") Z ")
        });
    }
}

#[test]
fn what_others_may_write_is_refused() {
    let folder = Folder::new();
    let open = |name: &str, mode: u32| {
        fs::set_permissions(folder.path(name), fs::Permissions::from_mode(mode)).expect("mode");
    };
    folder.file("good.json", r#"{"ok":true}"#);
    folder.file("group.json", r#"{"ok":true}"#);
    folder.script("world", "echo a=1; : >\"$0.ran\"");
    open("state/group.json", 0o664);
    open("state/world", 0o757);
    let (code, facts, failed, log) = folder.gather(&[]);
    assert_eq!(
        (code, &failed[..]),
        (
            65,
            &["state/group".to_owned(), "state/world".to_owned()][..]
        )
    );
    assert!(facts.get("good").is_some() && facts.get("world").is_none());
    assert!(
        log.contains("group or others may write it: chmod go-w"),
        "{log}"
    );
    assert!(!folder.path("state/world.ran").exists(), "it has run");
    open("state", 0o777);
    let (code, facts, failed, _) = folder.gather(&[]);
    let name = folder.0.path().file_name().expect("name");
    let name = format!("state/{}", name.display());
    assert_eq!((code, failed), (65, vec![name]));
    assert!(facts.get("good").is_none(), "{facts}");
}

#[test]
fn there_are_bounds_on_files() {
    let folder = Folder::new();
    for n in 0..70 {
        folder.file(&format!("f{n:02}.json"), r#"{"ok":true}"#);
    }
    let (code, facts, failed, _) = folder.gather(&[]);
    assert_eq!((code, failed.len()), (65, 6), "{failed:?}");
    let told = (0..70).filter(|n| facts.get(format!("f{n:02}")).is_some());
    assert_eq!(told.count(), 64);
}

#[test]
fn a_daemon_ends_its_scripts_when_it_stops() {
    let world = World::new();
    let folder = world.path("own/state");
    fs::create_dir_all(&folder).expect("folder");
    let pid = world.path("pid");
    let text = format!("#!/bin/sh\necho $$ >{}\nexec sleep 1000\n", pid.display());
    let script = world.script("hangs", &text);
    fs::rename(script, folder.join("hangs")).expect("rename");
    let mut command = world.tael(["facts", "publish", "--root", "lab", "--node", "n", "--dir"]);
    command.arg(world.path("own"));
    let process = world.spawn(command);
    wait_until("the script runs", || !world.lines("pid").is_empty());
    process.stop();
    let pid = world.lines("pid").concat();
    assert!(
        !PathBuf::from(format!("/proc/{pid}")).exists(),
        "it still runs"
    );
}

#[test]
fn scripts_end_with_a_command_that_is_killed() {
    for arguments in [&["--dry-run"][..], &["--once"], &[]] {
        let world = World::new();
        let folder = world.path("own/state");
        fs::create_dir_all(&folder).expect("folder");
        let pids = world.path("pids");
        let pids = pids.display();
        // One waits, with a child in its group; one has fled into another session, and is deaf.
        let waits = format!("#!/bin/sh\nsleep 1000 & echo $! >>{pids}\necho $$ >>{pids}\nwait\n");
        let flees = format!(
            "#!/bin/sh\nsetsid sh -c 'trap \"\" TERM HUP INT; echo $$ >>{pids}; while :; do sleep 1; done' &\nexec sleep 1000\n"
        );
        for (name, text) in [("waits", waits), ("flees", flees)] {
            let script = world.script(name, &text);
            fs::rename(script, folder.join(name)).expect("rename");
        }
        let mut command = world.tael(["facts", "publish", "--root", "lab", "--node", "n", "--dir"]);
        command.arg(world.path("own")).args(arguments);
        let process = world.spawn(command);
        wait_until("the scripts run", || world.lines("pids").len() == 3);
        process.kill();
        for pid in world.lines("pids") {
            wait_until("it is gone", || {
                let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
                stat.is_empty() || stat.contains(") Z ")
            });
        }
    }
}

#[test]
fn a_script_cannot_escape_by_killing_its_guard() {
    let folder = Folder::new();
    let pids = folder.path("pids");
    let pids = pids.to_str().expect("path");
    folder.file("good.json", r#"{"ok":true}"#);
    folder.script(
        "kills",
        &format!(
            "setsid sleep 1000 & echo $! >>{pids}; echo $$ >>{pids}; kill -9 $PPID; sleep 1000"
        ),
    );
    let (code, facts, failed, log) = folder.gather(&[]);
    assert_eq!(
        (code, &failed[..]),
        (65, &["state/kills".to_owned()][..]),
        "{log}"
    );
    assert_eq!(facts["good"]["ok"], true);
    for pid in fs::read_to_string(pids).expect("pids").lines() {
        wait_until("it is gone", || {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.is_empty() || stat.contains(") Z ")
        });
    }
}

/// Returns the state of a process, as in `/proc/PID/stat`; empty if it is gone.
fn state_of(pid: &str) -> String {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat
        .rsplit(") ")
        .next()
        .and_then(|rest| rest.split(' ').next());
    state.unwrap_or_default().to_owned()
}

#[test]
fn a_guard_that_was_stopped_ends_its_script_when_its_parent_is_killed() {
    let world = World::new();
    let folder = world.path("own/state");
    fs::create_dir_all(&folder).expect("folder");
    let pids = world.path("pids");
    let pids = pids.display();
    let text = format!(
        "#!/bin/sh\nsetsid sh -c 'trap \"\" TERM HUP INT; echo $$ >>{pids}; while :; do sleep 1; done' &\n\
         echo $$ >>{pids}\necho $PPID >{pids}.guard\nexec sleep 1000\n"
    );
    let script = world.script("flees", &text);
    fs::rename(script, folder.join("flees")).expect("rename");
    let mut command = world.tael(["facts", "publish", "--dry-run", "--root", "lab", "--dir"]);
    command.arg(world.path("own"));
    let process = world.spawn(command);
    wait_until("the script runs", || {
        world.lines("pids").len() == 2 && !world.lines("pids.guard").is_empty()
    });
    let guard = world.lines("pids.guard").concat();
    let pid = nix::unistd::Pid::from_raw(guard.parse().expect("pid"));
    kill(pid, Signal::SIGSTOP).expect("stop");
    wait_until("it stands", || state_of(&guard) == "T");
    process.kill();
    // The kernel sends both if no other process of its session is above it.
    let _ = kill(pid, Signal::SIGHUP);
    let _ = kill(pid, Signal::SIGCONT);
    for pid in world.lines("pids").iter().chain([&guard]) {
        wait_until("it is gone", || matches!(&*state_of(pid), "" | "Z"));
    }
}

#[test]
fn a_script_has_the_default_signals() {
    let folder = Folder::new();
    folder.script("signals", "grep SigIgn /proc/self/status | tr ':\t' '= '");
    let (code, facts, _, log) = folder.gather(&[]);
    assert_eq!((code, &*log), (0, ""));
    let ignored = facts["signals"]["SigIgn"].as_str().expect("a mask");
    let ignored = u64::from_str_radix(ignored, 16).expect("a mask");
    // HUP, INT and TERM.
    assert_eq!(ignored & 0x4003, 0, "{ignored:x}");
}
