//! Work: from its submission to its first output, its results, and units that say nothing.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Packet, PublishProperties};
use rumqttc::v5::{AsyncClient, Event};
use tael::model::remote::wire::{self, Answer, Manifest, Request};
use tokio::runtime::Builder;

use crate::{Guard, Mosquitto, median, mosquitto, options, ours, spawn, state};

/// Name of the node.
const NODE: &str = "bench";

/// Size of the output that is read, bytes.
const SIZE: u64 = 1 << 30;

/// Size of the messages of the programs of mosquitto, bytes.
const PIECE: usize = 256 * 1024;

const TYPES: &str = r#"
[[work]]
type = "echo"
command = "echo begun"

[[work]]
type = "copy"
command = "cat"
params = true
max-output = 0

[[work]]
type = "wait"
command = "sleep 1000000"
jobs = 1000
"#;

/// A client with work types.
struct Node {
    broker: Mosquitto,
    home: PathBuf,
    client: Guard,
}

impl Node {
    fn new() -> Self {
        let (broker, home) = (mosquitto(), state());
        let config = home.join("node.toml");
        fs::write(&config, TYPES).expect("config");
        let mut client = Command::new(ours("client"));
        client.env_clear().env("PATH", "/usr/bin:/bin");
        client.env("STATE_DIRECTORY", &home);
        client.args(["--who", NODE, "--root", "lab", "--log", "none"]);
        client.args(["-H", "127.0.0.1", "-p", &broker.port.to_string()]);
        client
            .arg("--stop-units")
            .arg("--control-socket")
            .arg(home.join("c"));
        client.arg("--config").arg(&config);
        let client = spawn(&mut client);
        let node = Self {
            broker,
            home,
            client,
        };
        let start = Instant::now();
        while !node
            .tael(&["submit", "-f", "echo"])
            .status()
            .expect("tael")
            .success()
        {
            assert!(
                start.elapsed() < Duration::from_secs(20),
                "the node runs nothing"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        node
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut tael = Command::new(env!("CARGO_BIN_EXE_tael"));
        tael.env_clear().env("PATH", "/usr/bin:/bin");
        tael.env("STATE_DIRECTORY", &self.home)
            .arg("work")
            .args(words);
        tael.args(["--log", "none"]);
        tael.stdin(Stdio::null()).stdout(Stdio::null());
        tael
    }

    /// Returns `tael work` on this host.
    fn tael(&self, words: &[&str]) -> Command {
        let mut tael = self.command(words);
        tael.args(["--who", NODE]).stderr(Stdio::null());
        tael
    }

    /// Returns `tael work` on another host.
    fn remote(&self, words: &[&str]) -> Command {
        let mut tael = self.command(words);
        tael.args(["--node", NODE, "--root", "lab", "--broker"]);
        tael.arg(format!("mqtt://127.0.0.1:{}", self.broker.port));
        tael
    }

    fn connect(&self) -> BufReader<UnixStream> {
        let stream = UnixStream::connect(self.home.join("c")).expect("control socket");
        let mut session = BufReader::new(stream);
        line(&mut session);
        session
    }

    /// Submits a unit through the control socket, and returns the connection when its output follows.
    fn follow(&self, kind: &str) -> BufReader<UnixStream> {
        let mut session = self.connect();
        ask(&mut session, &format!("work submit {NODE} {kind}"));
        let stream = session.get_mut();
        stream.shutdown(Shutdown::Write).expect("half");
        let started: serde_json::Value = serde_json::from_str(&line(&mut session)).expect("json");
        let unit = started["unitid"].as_str().expect("unit");
        let mut session = self.connect();
        ask(&mut session, &format!("work results {unit}"));
        session
    }

    fn folder(&self, unit: &str) -> PathBuf {
        self.home.join(NODE).join("units").join(unit)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Its units end with it.
        let pid = nix::unistd::Pid::from_raw(self.client.0.id().cast_signed());
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let _ = self.client.0.wait();
    }
}

fn line(session: &mut BufReader<UnixStream>) -> String {
    let mut line = String::new();
    session.read_line(&mut line).expect("line");
    line
}

fn ask(session: &mut BufReader<UnixStream>, request: &str) {
    writeln!(session.get_mut(), "{request}").expect("request");
    let line = line(session);
    assert!(!line.starts_with("ERROR"), "{line}");
}

/// Time until the first byte can be read, milliseconds.
fn first_byte(start: Instant, mut from: impl Read) -> f64 {
    from.read_exact(&mut [0]).expect("output");
    let time = start.elapsed().as_secs_f64() * 1000.0;
    io::copy(&mut from, &mut io::sink()).expect("the rest");
    time
}

/// From the submission of work to the first byte of its output.
pub fn submit() {
    const ROUNDS: usize = 100;
    let node = Node::new();
    let words = ["submit", "-f", "echo"];
    let by_program = |mut command: Command| {
        let start = Instant::now();
        let mut child = command.stdout(Stdio::piped()).spawn().expect("spawn");
        let time = first_byte(start, child.stdout.take().expect("stdout"));
        assert!(child.wait().expect("wait").success());
        time
    };
    let mut direct = words.to_vec();
    direct.push("--direct");
    let ways: [(&str, &dyn Fn() -> f64); 4] = [
        ("echo, without Tael", &|| {
            let mut echo = Command::new("echo");
            by_program({
                echo.arg("begun");
                echo
            })
        }),
        ("control socket", &|| {
            let start = Instant::now();
            first_byte(start, node.follow("echo"))
        }),
        ("tael work submit -f", &|| by_program(node.tael(&words))),
        ("tael work submit -f --node --direct", &|| {
            by_program(node.remote(&direct))
        }),
    ];
    let mut times = [const { Vec::new() }; 4];
    for _ in 0..ROUNDS {
        for (times, (_, way)) in times.iter_mut().zip(ways) {
            // Not in lockstep with anything.
            std::thread::sleep(Duration::from_micros(fastrand::u64(2_000..6_000)));
            times.push(way());
        }
    }
    let mut medians = Vec::new();
    for ((name, _), times) in ways.iter().zip(&mut times) {
        let m = median(times);
        println!(
            "submit to first byte of output, {name}: {m:.2} ms (5 %: {:.2}, 95 %: {:.2})",
            times[ROUNDS / 20],
            times[ROUNDS - ROUNDS / 20]
        );
        medians.push(m);
    }
    println!(
        "  control socket: {:.2} ms (target 5); another node: {:.2} ms (target 10)",
        medians[1], medians[3]
    );
}

/// Reads all that a program writes. Returns its rate, MB a second.
fn rate(command: &mut Command, size: u64) -> f64 {
    let start = Instant::now();
    let mut child = command.stdout(Stdio::piped()).spawn().expect("spawn");
    let read = drain(child.stdout.take().expect("stdout"));
    assert!(child.wait().expect("wait").success(), "{command:?}");
    assert_eq!(read, size);
    size as f64 / 1e6 / start.elapsed().as_secs_f64()
}

fn drain(mut from: impl Read) -> u64 {
    let (mut all, mut buffer) = (0, vec![0; PIECE]);
    loop {
        match from.read(&mut buffer).expect("read") {
            0 => return all,
            n => all += n as u64,
        }
    }
}

/// How fast a large output is read, here and from another node.
pub fn results() {
    let node = Node::new();
    let large = node.home.join("large");
    let mut file = File::create(&large).expect("large");
    let piece: Vec<u8> = (0..PIECE).map(|_| fastrand::u8(..)).collect();
    for _ in 0..SIZE / PIECE as u64 {
        file.write_all(&piece).expect("large");
    }
    drop(file);
    let unit = ulid::Ulid::generate().to_string();
    let path = large.display().to_string();
    let mut submit = node.tael(&["submit", "-f", "copy", "--id", &unit, &path]);
    let through = rate(&mut submit, SIZE);
    println!("1 GB of output, as it is written: {through:.0} MB/s");
    fs::remove_file(&large).expect("large");
    let stdout = node.folder(&unit).join("stdout");
    let (mut cats, mut sockets, mut programs) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..5 {
        cats.push(rate(Command::new("cat").arg(&stdout), SIZE));
        programs.push(rate(&mut node.tael(&["results", &unit]), SIZE));
        let start = Instant::now();
        let mut session = node.connect();
        ask(&mut session, &format!("work results {unit}"));
        assert_eq!(drain(session), SIZE);
        sockets.push(SIZE as f64 / 1e6 / start.elapsed().as_secs_f64());
    }
    let [cat, socket, program] = [cats, sockets, programs].map(|mut rates| median(&mut rates));
    println!("1 GB of results: cat {cat:.0}, control socket {socket:.0}, tael {program:.0} MB/s");
    println!(
        "  control socket to cat: {:.2} (target 0.33 or more); tael to cat: {:.2}",
        socket / cat,
        program / cat
    );
    let (mut theirs, mut ours) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        theirs.push(mosquittos(&node, &piece));
        ours.push(rate(&mut node.remote(&["results", &unit]), SIZE));
    }
    let [theirs, ours] = [theirs, ours].map(|mut rates| median(&mut rates));
    println!("1 GB over mosquitto: its own programs {theirs:.0}, tael {ours:.0} MB/s");
    println!("  ratio: {:.2} (target 0.5 or more)", ours / theirs);
}

/// Sends messages with the programs of mosquitto, as many as are [`SIZE`]. Returns the rate, MB a
/// second.
fn mosquittos(node: &Node, piece: &[u8]) -> f64 {
    let (port, path) = (node.broker.port.to_string(), node.home.join("piece"));
    fs::write(&path, piece).expect("piece");
    let count = SIZE / PIECE as u64;
    let mut sub = Command::new("mosquitto_sub");
    sub.args(["-p", &port, "-q", "1", "-t", "bench/piece", "-N"]);
    sub.args(["-C", &count.to_string()]).stdout(Stdio::piped());
    let mut sub = sub.spawn().expect("mosquitto_sub");
    std::thread::sleep(Duration::from_millis(300));
    let start = Instant::now();
    let mut publish = Command::new("mosquitto_pub");
    publish.args(["-p", &port, "-q", "1", "-t", "bench/piece", "-f"]);
    publish.arg(&path).args(["--repeat", &count.to_string()]);
    let mut publish = publish.spawn().expect("mosquitto_pub");
    assert_eq!(drain(sub.stdout.take().expect("stdout")), SIZE);
    let time = start.elapsed().as_secs_f64();
    assert!(publish.wait().expect("wait").success());
    assert!(sub.wait().expect("wait").success());
    SIZE as f64 / 1e6 / time
}

/// Value of `key` in a file of a process.
fn number(path: &Path, key: &str) -> u64 {
    let text = fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with(key));
    let value = line.and_then(|line| line.split_whitespace().nth(1));
    value.and_then(|value| value.parse().ok()).unwrap_or(0)
}

/// How often each thread of a process has gone to sleep.
fn sleeps(pid: u32) -> HashMap<OsString, u64> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("tasks");
    let of = |task: fs::DirEntry| {
        let status = task.path().join("status");
        (
            task.file_name(),
            number(&status, "voluntary_ctxt_switches:"),
        )
    };
    tasks.flatten().map(of).collect()
}

/// How often the threads of a process that are left have gone to sleep since.
fn woke(pid: u32, since: &HashMap<OsString, u64>) -> u64 {
    let now = sleeps(pid);
    let of = |(task, count): (&OsString, &u64)| count - since.get(task).unwrap_or(&0);
    now.iter().map(of).sum()
}

/// Proportional set size of a process, KiB.
fn memory(pid: u32) -> u64 {
    number(Path::new(&format!("/proc/{pid}/smaps_rollup")), "Pss:")
}

/// Units that run, say nothing, and are followed by one requester: what they cost.
pub fn units() {
    const UNITS: usize = 1000;
    const LOOK: Duration = Duration::from_secs(20);
    let node = Node::new();
    let pid = node.client.0.id();
    std::thread::sleep(Duration::from_secs(1));
    let before = memory(pid);
    let (work, reply) = (
        "lab/infrastructure/pipelines/bench/work",
        "lab/infrastructure/pipelines/bench/reply/bench",
    );
    let mut alone = 0;
    Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("runtime")
        .block_on(async {
            let (client, mut eventloop) =
                AsyncClient::new(options(node.broker.port, "bench"), 10_000);
            client
                .subscribe(reply, QoS::AtLeastOnce)
                .await
                .expect("subscribe");
            let send = async |request: &Request| {
                let properties = PublishProperties {
                    response_topic: Some(reply.into()),
                    ..PublishProperties::default()
                };
                let payload = wire::write(request, b"");
                let sent = client.publish_with_properties(
                    work,
                    QoS::AtLeastOnce,
                    false,
                    payload,
                    properties,
                );
                sent.await.expect("publish");
            };
            let empty = ring::digest::digest(&ring::digest::SHA256, b"");
            let empty: String = empty
                .as_ref()
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect();
            for _ in 0..UNITS {
                send(&Request::Submit(Manifest {
                    unit: ulid::Ulid::generate().to_string(),
                    kind: "wait".into(),
                    params: Vec::new(),
                    variables: Vec::new(),
                    submitter: "bench@host".into(),
                    length: 0,
                    sha256: empty.clone(),
                    expires: None,
                    signature: None,
                }))
                .await;
            }
            let mut accepted = Vec::new();
            let mut running = 0;
            while running < UNITS {
                let Event::Incoming(Packet::Publish(publish)) =
                    eventloop.poll().await.expect("poll")
                else {
                    continue;
                };
                match wire::read_answer(&publish.payload).expect("answer").0 {
                    Answer::Accepted { unit } => accepted.push(unit),
                    Answer::State(state) => running += usize::from(state.state == "running"),
                    other => panic!("{other:?}"),
                }
                if accepted.len() == UNITS && alone == 0 {
                    alone = settled(pid);
                    for unit in std::mem::take(&mut accepted) {
                        let results = Request::Results {
                            unit,
                            from: [0, 0],
                            signature: None,
                        };
                        send(&results).await;
                    }
                }
            }
        });
    let followed = settled(pid);
    let per_unit = |kib: u64, since: u64| (kib as f64 - since as f64) / UNITS as f64;
    println!(
        "{UNITS} running units: {alone} KiB, {:.1} KiB of the client each; followed {followed} KiB, {:.1} KiB more each",
        per_unit(alone, before),
        per_unit(followed, alone)
    );
    let runners: Vec<u64> = children(pid).map(memory).collect();
    println!(
        "{} runners: {:.0} KiB each",
        runners.len(),
        per_unit(runners.iter().sum(), 0)
    );
    let since = sleeps(pid);
    std::thread::sleep(LOOK);
    println!(
        "wake-ups of the client in {LOOK:?} while {UNITS} silent units are followed: {} (keep-alive 60 s)",
        woke(pid, &since)
    );
}

/// The children of a process. Not every kernel lists them (CONFIG_PROC_CHILDREN).
fn children(pid: u32) -> impl Iterator<Item = u32> {
    let all = fs::read_dir("/proc").expect("proc").flatten();
    let all = all.filter_map(|process| process.file_name().to_str()?.parse::<u32>().ok());
    let parent = format!("PPid:\t{pid}");
    all.filter(move |child| {
        let status = fs::read_to_string(format!("/proc/{child}/status")).unwrap_or_default();
        status.lines().any(|line| line == parent)
    })
}

/// Memory of a process when it has come to rest, KiB.
fn settled(pid: u32) -> u64 {
    loop {
        let since = sleeps(pid);
        std::thread::sleep(Duration::from_secs(1));
        if woke(pid, &since) < 5 {
            return memory(pid);
        }
    }
}
