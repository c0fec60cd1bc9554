//! Faults around a client: of the broker, the link, the disk. No event is lost, and none runs twice.

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use crate::common::proxy::Proxy;
use crate::common::pty::Terminal;
use crate::common::raw::Raw;
use crate::common::{
    self, Process, Setup, World, children_of, has_program, has_root, nodes, ran, wait_until,
};
use nix::sys::signal::Signal;
use serde_json::Value;
use tael::os::lock::Lock;

const SEQ: &str = "lab/seq/status";
const RUN: &str = r#"echo "$ATTR_N" >>"$OUT/runs""#;

fn send(raw: &mut Raw, n: usize) {
    let payload = format!(r#"{{"status":"finished","n":{n}}}"#);
    raw.publish(
        SEQ,
        payload.as_bytes(),
        &[("tael-id", &format!("event-{n}"))],
    );
}

/// Waits until each of `events` has run, and checks that each ran once.
#[track_caller]
fn once_each(world: &World, client: &Process, events: usize) {
    wait_until("all have run", || {
        let runs: HashSet<String> = world.lines("runs").into_iter().collect();
        runs.len() >= events
    });
    assert_eq!(
        world.lines("runs").len(),
        events,
        "none has run twice:\n{}",
        client.log_text()
    );
}

/// Waits until the client has a runner. One that begins later would be traced as its child.
fn has_runner(client: &Process) {
    wait_until("it has a runner", || {
        !children_of(client.child.id()).is_empty()
    });
}

/// Waits until pipeline `p` has noted `count` successes and published all of them.
#[track_caller]
fn all_told(world: &World, count: u64) {
    wait_until("all is booked and told", || {
        let (code, out, _) =
            ran(&mut world.tael(["control", "p", "status", "--root", "lab", "--json"]));
        let status: Value = serde_json::from_str(&out).unwrap_or_default();
        code == 0 && status["units"]["succeeded"] == count && status["outbox"] == 0
    });
}

#[test]
fn a_broker_that_is_killed_under_load() {
    let mut world = World::with(Setup {
        persistent: true,
        ..Setup::default()
    });
    let client = world.client("p", &["-t", SEQ, "-c", RUN, "--jobs", "2", "-k", "5s"]);
    const EVENTS: usize = 60;
    for round in 1..=3 {
        let mut raw = Raw::connect(world.broker.port());
        // A broker that is killed may forget what it has acknowledged. A careful sender sends
        // again, and the ids show what is new.
        (0..round * EVENTS / 3).for_each(|n| send(&mut raw, n));
        world.broker.kill();
        world.broker.restart();
    }
    let mut raw = Raw::connect(world.broker.port());
    (0..EVENTS).for_each(|n| send(&mut raw, n));
    once_each(&world, &client, EVENTS);
    all_told(&world, EVENTS as u64);
    client.stop();
}

#[test]
fn a_broker_that_hangs_for_longer_than_the_keep_alive() {
    let world = World::new();
    let client = world.client("p", &["-t", SEQ, "-c", RUN, "-k", "5s"]);
    let mut raw = Raw::connect(world.broker.port());
    send(&mut raw, 0);
    once_each(&world, &client, 1);
    world.broker.signal(Signal::SIGSTOP);
    wait_until("the client notices", || {
        client.log_text().contains("lost 127.0.0.1")
    });
    world.broker.signal(Signal::SIGCONT);
    (1..4).for_each(|n| send(&mut raw, n));
    once_each(&world, &client, 4);
    all_told(&world, 4);
    client.stop();
}

/// Returns whether the test of `what` can run, which needs root and `program`. In CI it must.
pub fn can_run(what: &str, program: &str) -> bool {
    has_root(what) && has_program(program, what)
}

fn run(program: &str, arguments: &[&str]) {
    let (code, _, stderr) = ran(Command::new(program).args(arguments));
    assert_eq!(code, 0, "{program} {arguments:?}: {stderr}");
}

/// A network namespace with one end of a link, until the end of the test.
struct Namespace {
    name: String,
    link: String,
}

impl Namespace {
    fn new() -> Self {
        let pid = std::process::id();
        let ns = Self {
            name: format!("tael-{pid}"),
            link: format!("tael{pid}"),
        };
        let inner = format!("{}i", ns.link);
        run("ip", &["netns", "add", &ns.name]);
        run(
            "ip",
            &[
                "link", "add", &ns.link, "type", "veth", "peer", "name", &inner, "netns", &ns.name,
            ],
        );
        run("ip", &["addr", "add", "10.217.83.1/30", "dev", &ns.link]);
        run("ip", &["link", "set", &ns.link, "up"]);
        run(
            "ip",
            &[
                "-n",
                &ns.name,
                "addr",
                "add",
                "10.217.83.2/30",
                "dev",
                &inner,
            ],
        );
        run("ip", &["-n", &ns.name, "link", "set", &inner, "up"]);
        ns
    }

    fn link(&self, state: &str) {
        run("ip", &["link", "set", &self.link, state]);
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip")
            .args(["link", "del", &self.link])
            .status();
        let _ = Command::new("ip")
            .args(["netns", "del", &self.name])
            .status();
    }
}

#[test]
fn a_link_that_is_cut_and_comes_back() {
    if !can_run("a link is cut", "ip") {
        return;
    }
    let world = World::new();
    let namespace = Namespace::new();
    // The broker listens on loopback only.
    let relay = Proxy::at("10.217.83.1", world.broker.port());
    let mut command = Command::new("ip");
    command
        .args(["netns", "exec", &namespace.name])
        .arg(common::binary("tael-client"));
    for (name, value) in world.command("tael-client").get_envs() {
        command.env(name, value.unwrap_or_default());
    }
    command
        .env("TAEL_HOST", "10.217.83.1")
        .env("TAEL_PORT", relay.port().to_string());
    command.args([
        "--who", "p", "--root", "lab", "-t", SEQ, "-c", RUN, "-k", "5s",
    ]);
    let client = world.online("p", command);
    let mut raw = Raw::connect(world.broker.port());
    send(&mut raw, 0);
    once_each(&world, &client, 1);
    namespace.link("down");
    // One is sent into the dead link, and one after the client has noticed.
    send(&mut raw, 1);
    wait_until("the client notices", || {
        client.log_text().contains("lost 10.217.83.1")
    });
    send(&mut raw, 2);
    namespace.link("up");
    once_each(&world, &client, 3);
    all_told(&world, 3);
    client.stop();
}

/// A small file system for the state of a client.
pub struct Tmpfs<'a>(&'a Path);

impl<'a> Tmpfs<'a> {
    pub fn mount(path: &'a Path, size: &str) -> Self {
        fs::create_dir_all(path).expect("mount point");
        let options = format!("size={size},mode=0700");
        run(
            "mount",
            &[
                "-t",
                "tmpfs",
                "-o",
                &options,
                "tael-test",
                path.to_str().expect("path"),
            ],
        );
        Self(path)
    }
}

impl Drop for Tmpfs<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0).status();
    }
}

#[test]
fn a_disk_that_is_full_for_a_while() {
    if !can_run("a disk is full", "mount") {
        return;
    }
    let world = World::new();
    let state = world.state();
    let _tmpfs = Tmpfs::mount(&state, "4m");
    let client = world.client("p", &["-t", SEQ, "-c", RUN]);
    let mut raw = Raw::connect(world.broker.port());
    send(&mut raw, 0);
    once_each(&world, &client, 1);
    all_told(&world, 1);
    // This fills it to the last page.
    let filler = state.join("filler");
    let _ = ran(Command::new("dd")
        .args(["if=/dev/zero", "bs=4k"])
        .arg(format!("of={}", filler.display())));
    (1..20).for_each(|n| send(&mut raw, n));
    wait_until("the client says so", || {
        let log = client.log_text();
        log.contains("cannot write to the ledger") || log.contains("runs wait until that passes")
    });
    fs::remove_file(&filler).expect("remove");
    once_each(&world, &client, 20);
    all_told(&world, 20);
    client.stop();

    // A client that starts while it is full asks to be started again, with or without state.
    let _ = ran(Command::new("dd")
        .args(["if=/dev/zero", "bs=4k"])
        .arg(format!("of={}", filler.display())));
    for who in ["p", "new", "newer"] {
        let mut command = world.command("tael-client");
        command.args(["--who", who, "--root", "lab", "-t", SEQ, "-c", RUN]);
        let output = command.output().expect("client");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(75), "{who}: {stderr}");
    }
    fs::remove_file(&filler).expect("remove");
    let client = world.client("p", &["-t", SEQ, "-c", RUN]);
    send(&mut raw, 20);
    once_each(&world, &client, 21);
    client.stop();
}

#[test]
fn a_ledger_that_meets_a_limit_of_file_sizes() {
    let world = World::new();
    let tael = world.command("tael-client");
    let mut command = Command::new("sh");
    let variables = tael.get_envs();
    command
        .env_clear()
        .envs(variables.filter_map(|(name, value)| Some((name, value?))));
    command.args(["-c", r#"ulimit -S -f 800; exec "$@""#, "sh"]);
    command
        .arg(tael.get_program())
        .args(["--who", "p", "--root", "lab", "-t", SEQ, "-c", RUN]);
    // The first log line then comes from the thread of the ledger.
    command.env("TAEL_LOG", "warn");
    let mut client = world.online("p", command);
    let mut raw = Raw::connect(world.broker.port());
    (0..100).for_each(|n| send(&mut raw, n));
    wait_until("the client says so", || {
        client.log_text().contains("cannot write to the ledger")
    });
    assert!(
        client.child.try_wait().expect("wait").is_none(),
        "{}",
        client.log_text()
    );
    let pid = client.child.id().to_string();
    run("prlimit", &["--fsize=unlimited", "--pid", &pid]);
    once_each(&world, &client, 100);
    client.stop();
}

#[test]
fn a_disk_that_fails_to_sync_for_a_while() {
    if !can_run("fsync fails", "strace") {
        return;
    }
    let world = World::new();
    let client = world.client("p", &["-t", SEQ, "-c", RUN]);
    has_runner(&client);
    let mut strace = Command::new("strace");
    strace.args(["-f", "-e", "trace=fsync,fdatasync", "-e", "signal=none"]);
    strace.args(["-e", "inject=fsync,fdatasync:error=EIO:when=1..6"]);
    strace.args(["-p", &client.child.id().to_string()]);
    let strace = world.spawn(strace);
    wait_until("strace is there", || strace.log_text().contains("attached"));
    let mut raw = Raw::connect(world.broker.port());
    (0..5).for_each(|n| send(&mut raw, n));
    wait_until("the client says so", || {
        client.log_text().contains("cannot write to the ledger")
    });
    once_each(&world, &client, 5);
    all_told(&world, 5);
    assert!(
        client
            .log_text()
            .contains("the ledger can be written again")
    );
    drop(strace);
    client.stop();
}

#[test]
fn a_state_on_a_network_file_system() {
    let world = World::new();
    let mut command = world.command("tael-client");
    command.args(["--who", "p", "--root", "lab", "-t", SEQ, "-c", RUN]);
    command.env("TAEL_TEST_NETWORK_FS", "1");
    let client = world.online("p", command);
    let mut raw = Raw::connect(world.broker.port());
    (0..5).for_each(|n| send(&mut raw, n));
    once_each(&world, &client, 5);
    all_told(&world, 5);
    let told = client.log_text().matches("without WAL").count();
    assert_eq!(told, 1, "said once");
    let wal = world.state().join("p/ledger.db-wal");
    assert!(!wal.exists(), "there is no shared memory for one");
    client.stop();
}

/// Harms the files of a running client. It exits with the code that makes a service manager restart
/// it, and the next client loses nothing.
fn ledger_lost(harm: impl FnOnce(&Path)) {
    let world = World::new();
    let arguments = ["-t", SEQ, "-c", RUN];
    let mut client = world.client("p", &arguments);
    let mut raw = Raw::connect(world.broker.port());
    send(&mut raw, 0);
    once_each(&world, &client, 1);
    all_told(&world, 1);
    harm(&world.home("p"));
    send(&mut raw, 1);
    assert_eq!(client.wait(), 75, "{}", client.log_text());
    // The event was not acknowledged, and no run began that the next client would not find.
    let client = world.client("p", &arguments);
    once_each(&world, &client, 2);
    client.stop();
}

#[test]
fn a_ledger_that_is_removed_under_its_client() {
    ledger_lost(|p| fs::remove_file(p.join("ledger.db")).expect("remove"));
}

#[test]
fn a_ledgers_log_that_is_cut_off_under_its_client() {
    ledger_lost(|p| {
        let log = fs::File::options()
            .write(true)
            .open(p.join("ledger.db-wal"));
        log.expect("log").set_len(0).expect("cut");
    });
}

#[test]
fn a_lock_that_is_removed_under_its_client() {
    ledger_lost(|p| fs::remove_file(p.join("lock")).expect("remove"));
}

#[test]
fn a_state_folder_that_is_mounted_over_a_running_client() {
    if !can_run("a state folder is mounted late", "mount") {
        return;
    }
    let world = World::new();
    let state = world.state();
    let mut client = world.client("p", &["-t", SEQ, "-c", RUN]);
    let mut raw = Raw::connect(world.broker.port());
    let mount = Tmpfs::mount(&state, "16m");
    send(&mut raw, 0);
    assert_eq!(client.wait(), 75, "{}", client.log_text());
    let client = world.client("p", &["-t", SEQ, "-c", RUN]);
    send(&mut raw, 1);
    wait_until("it runs", || world.lines("runs").contains(&"1".into()));
    client.stop();
    drop(mount);
}

#[test]
fn a_backup_that_copies_and_cuts_the_log_is_no_alarm() {
    let world = World::new();
    let client = world.client("p", &["-t", SEQ, "-c", RUN]);
    let mut raw = Raw::connect(world.broker.port());
    let ledger = world.state().join("p/ledger.db");
    for n in 0..3 {
        send(&mut raw, n);
        once_each(&world, &client, n + 1);
        all_told(&world, n as u64 + 1);
        // As `sqlite3` and replication programs do. It waits for other writers.
        let other = rusqlite::Connection::open(&ledger).expect("ledger");
        let sql = "PRAGMA wal_checkpoint(TRUNCATE)";
        wait_until("the log is cut off", || {
            other
                .query_row(sql, [], |row| row.get::<_, i64>(0))
                .expect("checkpoint")
                == 0
        });
    }
    send(&mut raw, 3);
    once_each(&world, &client, 4);
    all_told(&world, 4);
    let log = world.state().join("p/ledger.db-wal");
    wait_until("the log has its size again", || {
        fs::metadata(&log).is_ok_and(|meta| meta.len() == 2 << 20)
    });
    client.stop();
}

#[test]
fn a_process_that_is_killed_before_it_becomes_its_command() {
    if !can_run("a commit is slow", "strace") {
        return;
    }
    let world = World::new();
    let client = world.client("p", &["-t", SEQ, "-c", RUN]);
    let pid = client.child.id();
    has_runner(&client);
    let mut strace = Command::new("strace");
    strace.args(["-f", "-e", "trace=fsync,fdatasync", "-e", "signal=none"]);
    strace.args(["-e", "inject=fsync,fdatasync:delay_enter=1000000"]);
    strace.args(["-p", &pid.to_string()]);
    let strace = world.spawn(strace);
    wait_until("strace is there", || strace.log_text().contains("attached"));
    let mut raw = Raw::connect(world.broker.port());
    send(&mut raw, 0);
    let mut waiting = None;
    wait_until("it is made ready", || {
        let runners = children_of(pid).into_iter();
        waiting = runners
            .flat_map(|runner| children_of(runner.cast_unsigned()))
            .next();
        waiting.is_some()
    });
    let waiting = nix::unistd::Pid::from_raw(waiting.expect("process"));
    nix::sys::signal::kill(waiting, Signal::SIGKILL).expect("kill");
    drop(strace);
    once_each(&world, &client, 1);
    all_told(&world, 1);
    send(&mut raw, 1);
    once_each(&world, &client, 2);
    assert!(client.log_text().contains("it was killed before it began"));
    client.stop();
}

/// Reads of large files go on beside the loop. A disk that does not answer would otherwise hold up a
/// stop without end.
#[test]
fn a_stop_does_not_wait_for_a_read_that_hangs() {
    let world = World::new();
    let node = nodes::node(&world);
    let hangs = world.file("hangs", "");
    let mut desk = nodes::submitter_command(&world);
    desk.env("TAEL_TEST_SLOW_READ", &hangs);
    let desk = world.online("desk", desk);
    nodes::started(&world, "cat", b"payload");
    wait_until("the check of its output hangs", || {
        fs::read_to_string(&hangs).is_ok_and(|text| !text.is_empty())
    });
    desk.stop();
    fs::remove_file(&hangs).expect("remove");
    node.stop();
}

/// Another client could read the ledger before the last commits, and would not know of their units.
#[test]
fn a_lock_is_held_as_long_as_the_ledger_is_written() {
    const LONG: Duration = Duration::from_secs(1);
    let world = World::new();
    let ears = world.ears(&["lab/infrastructure/pipelines/p/presence"]);
    let mut client = world.client("p", &["-t", SEQ, "-c", RUN]);
    let home = world.home("p");
    let db = rusqlite::Connection::open(home.join("ledger.db")).expect("ledger");
    // To copy the log, the client waits for the other writer.
    db.execute_batch("BEGIN IMMEDIATE").expect("lock");
    client.signal(Signal::SIGTERM);
    ears.wait("it says goodbye", |m| m.payload["state"] == "offline");
    let is_held = || Lock::is_held(fs::File::open(home.join("lock")).expect("lock")).expect("look");
    let begin = Instant::now();
    while begin.elapsed() < LONG {
        assert!(is_held(), "the ledger is still open");
        thread::sleep(Duration::from_millis(5));
    }
    db.execute_batch("ROLLBACK").expect("free");
    assert_eq!(client.wait(), 0, "{}", client.log_text());
    assert!(!is_held());
}

/// The broker would call a client online that is gone.
#[test]
fn a_client_whose_ledger_hangs_says_goodbye() {
    let world = World::new();
    let ears = world.ears(&["lab/infrastructure/pipelines/p/presence"]);
    let mut client = world.client("p", &["-t", SEQ, "-c", RUN]);
    let db = rusqlite::Connection::open(world.home("p").join("ledger.db")).expect("ledger");
    db.execute_batch("BEGIN IMMEDIATE").expect("lock");
    send(&mut Raw::connect(world.broker.port()), 0);
    // It has got the event before this request.
    world.report("p");
    client.signal(Signal::SIGTERM);
    ears.wait("it says goodbye", |m| m.payload["state"] == "offline");
    client.wait();
    db.execute_batch("ROLLBACK").expect("free");
    // What it could not accept comes again.
    let client = world.client("p", &["-t", SEQ, "-c", RUN]);
    once_each(&world, &client, 1);
    client.stop();
}

/// A person at a terminal ends it: the output of runs is shown beside the loop.
#[test]
fn a_stop_at_a_terminal_does_not_wait_for_output_that_cannot_be_read() {
    let world = World::new();
    let hangs = world.path("hangs");
    let ours = world.command("tael-client");
    let mut client = Command::new("env");
    client.env_clear();
    for (name, value) in ours.get_envs() {
        client.envs(value.map(|value| (name, value)));
    }
    // The terminal of the tests asks for warnings only.
    client.args(["-u", "TAEL_LOG"]).arg(ours.get_program());
    client.args(["--who", "p", "--root", "lab", "-t", SEQ, "-c", RUN]);
    client.env("TAEL_TEST_SLOW_READ", &hangs);
    let mut terminal = Terminal::start(client, 100);
    terminal.wait_for("connected to");
    fs::write(&hangs, "").expect("file");
    send(&mut Raw::connect(world.broker.port()), 0);
    wait_until("a read hangs", || {
        fs::read_to_string(&hangs).is_ok_and(|text| !text.is_empty())
    });
    terminal.press("\x03");
    let (code, text) = terminal.end();
    assert_eq!(code, 0, "{text}");
}
