//! The test kit: real brokers, real clients, and subscribers.
//!
//! `TAEL_TEST_BROKER=mosquitto` runs the suite against mosquitto instead of the embedded
//! broker.

pub mod broker;
pub mod gateway;
pub mod nodes;
pub mod ports;
pub mod proxy;
pub mod pty;
pub mod rabbit;
pub mod raw;
pub mod scene;

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

pub use broker::{Broker, Setup};

/// Maximum wait of a test.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Interval between two checks of a condition.
const LOOK: Duration = Duration::from_millis(10);

/// Waits until `condition` holds.
#[track_caller]
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        thread::sleep(LOOK);
    }
}

/// Returns the path of one of our binaries.
pub fn binary(name: &str) -> PathBuf {
    let path = match name {
        "tael" => env!("CARGO_BIN_EXE_tael"),
        "tael-client" => env!("CARGO_BIN_EXE_tael-client"),
        "tael-message" => env!("CARGO_BIN_EXE_tael-message"),
        "tael-beacon" => env!("CARGO_BIN_EXE_tael-beacon"),
        other => panic!("no binary {other}"),
    };
    PathBuf::from(path)
}

/// A process that ends with its test, however that ends.
pub struct Process {
    pub child: Child,
    /// File with its stderr.
    pub log: PathBuf,
}

impl Process {
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).expect("signal");
    }

    /// Waits for its end, and returns the exit code; 128+signal if a signal has ended it.
    #[track_caller]
    pub fn wait(&mut self) -> i32 {
        use std::os::unix::process::ExitStatusExt;
        let mut status = None;
        wait_until("the process ends", || {
            status = self.child.try_wait().expect("wait");
            status.is_some()
        });
        let status = status.expect("status");
        status
            .code()
            .unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
    }

    /// Stops it with SIGTERM. It must exit with 0.
    #[track_caller]
    pub fn stop(mut self) {
        self.signal(Signal::SIGTERM);
        let code = self.wait();
        assert_eq!(code, 0, "log:\n{}", self.log_text());
    }

    pub fn kill(mut self) {
        self.signal(Signal::SIGKILL);
        self.wait();
    }

    pub fn log_text(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A broker, and a folder for state and other files of a test.
pub struct World {
    pub dir: tempfile::TempDir,
    pub broker: Broker,
}

impl Drop for World {
    /// Ends the runs that its clients have left: their runners outlive them, as they should.
    fn drop(&mut self) {
        let runners = format!("--tael-runner\0{}/", self.dir.path().display());
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            if !String::from_utf8_lossy(&line).contains(&runners) {
                continue;
            }
            let pid = entry.file_name().to_str().and_then(|pid| pid.parse().ok());
            let Some(runner) = pid else { continue };
            // Each command leads a group of its own.
            let commands = children_of(runner).into_iter().map(|command| -command);
            for group in commands.chain([runner.cast_signed()]) {
                let _ = kill(Pid::from_raw(group), Signal::SIGKILL);
            }
        }
    }
}

impl World {
    pub fn new() -> Self {
        Self::with(Setup::default())
    }

    pub fn with(setup: Setup) -> Self {
        let dir = tempfile::tempdir().expect("tempdir");
        let broker = Broker::start(dir.path(), setup);
        Self { dir, broker }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a file to the folder of the world, and returns its path.
    #[track_caller]
    pub fn file(&self, name: &str, contents: impl AsRef<[u8]>) -> String {
        let path = self.path(name);
        fs::write(&path, contents).expect(name);
        path.to_str().expect("path").to_owned()
    }

    pub fn state(&self) -> PathBuf {
        self.path("state")
    }

    /// Returns the state folder of pipeline `who`.
    pub fn home(&self, who: &str) -> PathBuf {
        self.state().join(who)
    }

    /// Creates the ledger of pipeline `who` as an earlier version has left it, by its SQL.
    pub fn earlier_ledger(&self, who: &str, sql: &str) -> rusqlite::Connection {
        let home = self.home(who);
        fs::create_dir_all(home.join("units")).expect("home");
        let ledger = rusqlite::Connection::open(home.join("ledger.db")).expect("ledger");
        ledger.execute_batch(sql).expect("fixture");
        ledger
    }

    /// Returns one of our commands, pointed at the broker, in a clean environment.
    pub fn command(&self, name: &str) -> Command {
        let mut command = bare_command(&self.dir, name);
        for (name, value) in self.broker.environment() {
            command.env(name, value);
        }
        command
    }

    /// Returns `tael` with `arguments`.
    pub fn tael<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        let mut command = self.command("tael");
        command.args(arguments);
        command
    }

    pub fn spawn(&self, mut command: Command) -> Process {
        spawn(&self.dir, &mut command)
    }

    /// Starts a client called `who`, and returns when it is online.
    #[track_caller]
    pub fn client(&self, who: &str, arguments: &[&str]) -> Process {
        let mut command = self.command("tael-client");
        command
            .args(["--who", who, "--root", "lab"])
            .args(arguments);
        self.online(who, command)
    }

    /// Starts the client `who` by `command`, and returns when it is online.
    #[track_caller]
    pub fn online(&self, who: &str, command: Command) -> Process {
        let presence = format!("lab/infrastructure/pipelines/{who}/presence");
        let ears = self.ears(&[&presence]);
        let mut process = self.spawn(command);
        let deadline = Instant::now() + PATIENCE;
        while !ears.any(|m| m.payload["state"] == "online" && !m.retained) {
            if let Some(status) = process.child.try_wait().expect("wait") {
                panic!("client ended with {status}:\n{}", process.log_text());
            }
            assert!(
                Instant::now() < deadline,
                "client does not come online:\n{}",
                process.log_text()
            );
            thread::sleep(LOOK);
        }
        process
    }

    /// Publishes with `tael-message`, which must succeed and print nothing.
    #[track_caller]
    pub fn message(&self, topic: &str, attributes: &[(&str, &str)]) {
        let mut command = self.command("tael-message");
        command.args(["-t", topic]);
        for (key, value) in attributes {
            command.args(["--attr", key, value]);
        }
        // A broker may say that no client subscribes to it.
        command.env("TAEL_LOG", "error");
        let output = command.output().expect("tael-message");
        assert!(output.status.success(), "{output:?}");
        assert!(
            output.stdout.is_empty() && output.stderr.is_empty(),
            "{output:?}"
        );
    }

    /// Subscribes to `filters`, and returns when the subscription is in force.
    #[track_caller]
    pub fn ears(&self, filters: &[&str]) -> Ears {
        let mut command = self.tael(["watch", "--json", "--qos", "1"]);
        for filter in filters {
            command.args(["-t", filter]);
        }
        // Messages under one more filter show when the subscription is in force.
        let ready = format!("ready/{}", ulid::Ulid::generate());
        command.args(["-t", &ready]).stdout(Stdio::piped());
        let mut process = self.spawn(command);
        let stdout = process.child.stdout.take().expect("stdout");
        let heard = Arc::new((Mutex::new(Vec::new()), Condvar::new()));
        let writer = Arc::clone(&heard);
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let message = Message::parse(&line);
                writer.0.lock().expect("lock").push(message);
                writer.1.notify_all();
            }
        });
        let ears = Ears {
            heard,
            ready: ready.clone(),
            _process: process,
        };
        let deadline = Instant::now() + PATIENCE;
        while !ears
            .heard
            .0
            .lock()
            .expect("lock")
            .iter()
            .any(|m: &Message| m.topic == ready)
        {
            assert!(
                Instant::now() < deadline,
                "cannot listen: {}",
                ears._process.log_text()
            );
            self.message(&ready, &[]);
            let heard = ears.heard.0.lock().expect("lock");
            let _unused = ears.heard.1.wait_timeout(heard, LOOK * 20).expect("lock");
        }
        ears
    }

    /// Publishes `payload` as it is: `tael message` would refuse some.
    pub fn publish(&self, topic: &str, payload: impl AsRef<[u8]>, properties: &[(&str, &str)]) {
        raw::Raw::connect(self.broker.port()).publish(topic, payload.as_ref(), properties);
    }

    /// Runs `tael control` with `arguments`. Returns exit code, stdout, and stderr.
    pub fn control(&self, arguments: &[&str]) -> (i32, String, String) {
        let mut command = self.tael(["control", "--root", "lab", "--log", "none"]);
        ran(command.args(arguments))
    }

    /// Returns the status report of pipeline `who`.
    #[track_caller]
    pub fn report(&self, who: &str) -> Value {
        let (code, stdout, stderr) = self.control(&[who, "status", "--json"]);
        assert_eq!(code, 0, "{stderr}");
        serde_json::from_str(&stdout).expect("one JSON object")
    }

    /// Waits until the status report of pipeline `who` has `value` at `pointer`.
    #[track_caller]
    pub fn wait_report(&self, who: &str, pointer: &str, value: impl Into<Value>) {
        let value = value.into();
        wait_until(&format!("{pointer} of {who} is {value}"), || {
            self.report(who).pointer(pointer) == Some(&value)
        });
    }

    /// Writes an executable script to the folder of the world.
    ///
    /// Another process writes it. Otherwise a process that another test starts at this moment would
    /// hold our descriptor, and the kernel executes no file that is open for writing.
    pub fn script(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        let mut install = Command::new("install");
        install.args(["-m", "755", "/dev/stdin"]).arg(&path);
        let (code, _, stderr) = ran_with(&mut install, text.as_bytes());
        assert_eq!(code, 0, "{stderr}");
        path
    }

    /// Returns the lines of a file; none if there is no file.
    pub fn lines(&self, name: &str) -> Vec<String> {
        let text = fs::read_to_string(self.path(name)).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// Waits until a file has at least `count` lines, and returns them.
    #[track_caller]
    pub fn wait_lines(&self, name: &str, count: usize) -> Vec<String> {
        wait_until(&format!("{name} has {count} lines"), || {
            self.lines(name).len() >= count
        });
        self.lines(name)
    }
}

/// Returns one of our commands in a clean environment.
pub fn bare_command(dir: &tempfile::TempDir, name: &str) -> Command {
    let mut command = Command::new(binary(name));
    command
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("HOME", dir.path())
        .env("XDG_STATE_HOME", dir.path())
        .env("STATE_DIRECTORY", dir.path().join("state"))
        .env("TAEL_LOG_TARGET", "stderr")
        .env("TAEL_LOG", "debug")
        .env("OUT", dir.path())
        .stdin(Stdio::null());
    if name == "tael-message" {
        command
            .env("TAEL_LOG_TARGET", "auto")
            .env("TAEL_LOG", "warn");
    }
    command
}

/// Returns the maximum memory of `process` so far, bytes.
pub fn peak_memory(process: &Process) -> usize {
    let status = fs::read_to_string(format!("/proc/{}/status", process.pid())).expect("status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
    kib.expect("VmHWM").trim().parse::<usize>().expect("number") * 1024
}

/// Starts `command`, with its stderr in a file of its own.
pub fn spawn(dir: &tempfile::TempDir, command: &mut Command) -> Process {
    let log = dir.path().join(format!("log-{}", ulid::Ulid::generate()));
    let child = command
        .stderr(fs::File::create(&log).expect("log"))
        .spawn()
        .expect("spawn");
    Process { child, log }
}

/// A received message.
#[derive(Debug, Clone)]
pub struct Message {
    pub topic: String,
    pub retained: bool,
    pub payload: Value,
    pub properties: Value,
}

impl Message {
    fn parse(line: &str) -> Self {
        let value: Value = serde_json::from_str(line).expect(line);
        Self {
            topic: value["topic"].as_str().expect("topic").to_owned(),
            retained: value["retained"] == true,
            payload: value["payload"].clone(),
            properties: value["properties"].clone(),
        }
    }

    pub fn status(&self) -> &str {
        self.payload["status"].as_str().unwrap_or_default()
    }
}

/// A subscriber that remembers all messages.
pub struct Ears {
    heard: Arc<(Mutex<Vec<Message>>, Condvar)>,
    ready: String,
    _process: Process,
}

impl Ears {
    /// Returns all messages so far.
    pub fn all(&self) -> Vec<Message> {
        let heard = self.heard.0.lock().expect("lock");
        heard
            .iter()
            .filter(|m| m.topic != self.ready)
            .cloned()
            .collect()
    }

    pub fn any(&self, condition: impl Fn(&Message) -> bool) -> bool {
        self.all().iter().any(condition)
    }

    /// Waits for a message that meets `condition`, and returns the first.
    #[track_caller]
    pub fn wait(&self, what: &str, condition: impl Fn(&Message) -> bool) -> Message {
        self.wait_all(what, |all| all.iter().find(|m| condition(m)).cloned())
    }

    /// Waits until `condition` returns something for all messages so far.
    #[track_caller]
    pub fn wait_all<T>(&self, what: &str, condition: impl Fn(&[Message]) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let all = self.all();
            if let Some(found) = condition(&all) {
                return found;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "never heard: {what}; heard: {all:#?}");
            let heard = self.heard.0.lock().expect("lock");
            let _unused = self
                .heard
                .1
                .wait_timeout(heard, left.min(LOOK * 10))
                .expect("lock");
        }
    }

    /// Waits for this `status` of pipeline `who`.
    #[track_caller]
    pub fn status(&self, who: &str, status: &str) -> Message {
        let topic = format!("lab/infrastructure/pipelines/{who}/status");
        self.wait(&format!("{status} of {who}"), |m| {
            m.topic == topic && m.status() == status
        })
    }

    /// Returns how often pipeline `who` has published `status`.
    pub fn count(&self, who: &str, status: &str) -> usize {
        let topic = format!("lab/infrastructure/pipelines/{who}/status");
        self.all()
            .iter()
            .filter(|m| m.topic == topic && m.status() == status)
            .count()
    }
}

/// Returns the children of process `pid`, also those that have ended and were not reaped.
pub fn children_of(pid: u32) -> Vec<i32> {
    let entries = fs::read_dir("/proc").expect("proc").flatten();
    let children = entries.filter_map(|entry| {
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        let (_, rest) = stat.rsplit_once(") ")?;
        let parent: u32 = rest.split(' ').nth(1)?.parse().ok()?;
        (parent == pid).then(|| entry.file_name().to_str()?.parse().ok())?
    });
    children.collect()
}

/// Returns whether the test of `what` can run, which needs `program`. In CI it must.
pub fn has_program(program: &str, what: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let there = std::env::split_paths(&path).any(|folder| folder.join(program).is_file());
    can_run(there, program, what)
}

/// Returns whether the test of `what` can run, which needs root. In CI it must.
pub fn has_root(what: &str) -> bool {
    can_run(nix::unistd::geteuid().is_root(), "root", what)
}

/// Returns whether the test of `what` can run, as it says if it cannot. In CI it must.
pub fn can_run(can: bool, needs: &str, what: &str) -> bool {
    assert!(
        can || std::env::var_os("CI").is_none(),
        "{what}: needs {needs}"
    );
    if !can {
        // The thread of a test has the name of the test. What `eprintln!` prints would be seen only if
        // the test failed.
        let thread = thread::current();
        let test = thread.name().unwrap_or("a test");
        let _ = writeln!(std::io::stderr(), "skipped: {test}: {what} needs {needs}");
    }
    can
}

/// Runs `command`. Returns exit code, stdout, and stderr.
#[track_caller]
pub fn ran(command: &mut Command) -> (i32, String, String) {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    ended(command.spawn().expect("spawn"))
}

/// Runs `command` with `input` on its standard input, and returns the same.
#[track_caller]
pub fn ran_with(command: &mut Command, input: &[u8]) -> (i32, String, String) {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("spawn");
    // It may refuse its arguments before it reads.
    let _ = child.stdin.take().expect("stdin").write_all(input);
    ended(child)
}

/// Waits for the end of `child`, and kills it after [`PATIENCE`]. Returns exit code, stdout, and
/// stderr.
pub fn ended(child: Child) -> (i32, String, String) {
    let pid = Pid::from_raw(child.id().cast_signed());
    let (end, waiting) = mpsc::channel::<()>();
    thread::spawn(move || {
        if waiting.recv_timeout(PATIENCE) == Err(mpsc::RecvTimeoutError::Timeout) {
            let _ = kill(pid, Signal::SIGKILL);
        }
    });
    let output = child.wait_with_output().expect("wait");
    drop(end);
    (
        output.status.code().unwrap_or(-1),
        String::from_utf8_lossy(&output.stdout).into_owned(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

/// Asserts that a command exits with 0, and returns its stdout.
#[track_caller]
pub fn succeeds(command: &mut Command) -> String {
    let (code, stdout, stderr) = ran(command);
    assert_eq!(code, 0, "{command:?}: {stderr}");
    stdout
}

/// Asserts that a command exits with 0, and returns the JSON on its stdout.
#[track_caller]
pub fn json_of(command: &mut Command) -> Value {
    serde_json::from_str(&succeeds(command)).expect("json")
}

/// Asserts that a command fails with exit `code`, an empty stdout, and one line on stderr that
/// contains `text`.
#[track_caller]
pub fn refuses(command: &mut Command, code: i32, text: &str) {
    let (got, stdout, stderr) = ran(command);
    assert_eq!(got, code, "{command:?}: {stderr}");
    assert_eq!(stdout, "", "{command:?}");
    assert_eq!(stderr.lines().count(), 1, "{command:?}: {stderr}");
    assert!(
        stderr.contains(text),
        "{command:?}: {stderr:?} lacks {text:?}"
    );
}

/// Certificates for TLS tests: an authority with a server and a client, and a stranger.
pub struct Certificates {
    pub dir: PathBuf,
}

impl Certificates {
    pub fn make(dir: &Path) -> Self {
        use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
        let dir = dir.join("tls");
        fs::create_dir_all(&dir).expect("tls");
        let write = |name: &str, text: String| fs::write(dir.join(name), text).expect("write");
        for (authority, leaf) in [("ca", "client"), ("other-ca", "stranger")] {
            let key = KeyPair::generate().expect("key");
            let mut params = CertificateParams::new(Vec::new()).expect("params");
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params
                .distinguished_name
                .push(rcgen::DnType::CommonName, authority);
            let certificate = params.self_signed(&key).expect("certificate");
            write(&format!("{authority}.pem"), certificate.pem());
            let issuer = Issuer::new(params, key);
            for name in [leaf, "server"] {
                if name == "server" && authority != "ca" {
                    continue;
                }
                let key = KeyPair::generate().expect("key");
                let mut names = CertificateParams::new(vec!["localhost".into()]).expect("params");
                names
                    .distinguished_name
                    .push(rcgen::DnType::CommonName, name);
                let signed = names.signed_by(&key, &issuer).expect("certificate");
                write(&format!("{name}.pem"), signed.pem());
                write(&format!("{name}.key"), key.serialize_pem());
            }
        }
        Self { dir }
    }

    pub fn path(&self, name: &str) -> String {
        self.dir.join(name).to_str().expect("path").to_owned()
    }
}
