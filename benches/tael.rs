//! How fast, as ratios within one run: against a bare loop that receives, parses and spawns
//! with no durability, against `mosquitto_sub | while read`, and against `mosquitto_pub`.
//!
//! `cargo bench` needs mosquitto, its clients and jq, for queues also RabbitMQ, amqp-tools and pika, for
//! requests paho and pyzmq, for the gateway webhook; `cargo bench -- NAME` runs one part.

// A measurement that fails panics.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

use std::fs;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Packet, PublishProperties};
use rumqttc::v5::{AsyncClient, Event, MqttOptions};
use tael::model::command::Command as Run;
use tael::model::condition::Condition;
use tael::model::env::Export;
use tael::model::event;
use tael::model::message::{Delivery, Message, Properties, Qos};
use tael::model::policy::Policy;
use tael::model::spec::Spec;
use tael::model::topic::Filter;
use tael::model::trigger::{Decision, Trigger};
use tael::store::ledger::{Done, Ledger, OnDisk, Op, Openable};
use tokio::runtime::Builder;

#[allow(dead_code)] // tests/it uses all of it
#[path = "../tests/common/mod.rs"]
mod common;
mod facts;
mod gateway;
mod pair;
mod queue;
mod requests;
mod work;

const TOPIC: &str = "bench/seq/status";
const FINISHED: &str = r#"{"status":"finished","sample":"S1","n":1}"#;
const STARTED: &str = r#"{"status":"started","sample":"S1","n":1}"#;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // What every contestant runs: this program, which says that it has begun.
    if let [ping, port, text @ ..] = &arguments[..]
        && ping == "ping"
    {
        text.iter().for_each(|text| println!("{text}"));
        let socket = UdpSocket::bind("127.0.0.1:0").expect("bind");
        socket
            .send_to(b"!", format!("127.0.0.1:{port}"))
            .expect("send");
        return;
    }
    // A task of a batch: a program that takes as long as its question says.
    if arguments == ["wait"] {
        let seconds = std::env::var("ATTR_S").expect("a task");
        let seconds = seconds.parse().expect("seconds");
        return std::thread::sleep(Duration::from_secs_f64(seconds));
    }
    // The bare loop, as a process of its own like the others.
    if let [bare, port, topic, jobs, command @ ..] = &arguments[..]
        && bare == "bare"
    {
        let (port, jobs) = (port.parse().expect("port"), jobs.parse().expect("jobs"));
        return bare_loop(port, topic, jobs, command);
    }
    let wanted = arguments.iter().find(|a| !a.starts_with("--"));
    let parts: [(&str, fn()); 29] = [
        ("decide", decide),
        ("ledger", ledger),
        ("latency", latency),
        ("burst", burst),
        ("accept", accept),
        ("drain", drain),
        ("start", start),
        ("ignore", ignore),
        ("idle", idle),
        ("message", message),
        ("nodes", nodes),
        ("triggers", triggers),
        ("status", status),
        ("stock", stock),
        ("waiting", waiting),
        ("work-submit", work::submit),
        ("work-results", work::results),
        ("work-units", work::units),
        ("queue-work", queue::work),
        ("queue-push", queue::pushes),
        ("facts-gather", facts::gather),
        ("facts-list", facts::list),
        ("facts-view", facts::view),
        ("pair", pair::pairs),
        ("gateway-webhooks", gateway::webhooks),
        ("gateway-streams", gateway::streams),
        ("requests-one", requests::one),
        ("requests-open", requests::open),
        ("requests-batch", requests::batches),
    ];
    for (name, part) in parts {
        if wanted.is_none_or(|wanted| name.contains(wanted.as_str())) {
            part();
        }
    }
    STATES.lock().expect("states").clear();
}

fn median(list: &mut [f64]) -> f64 {
    list.sort_by(f64::total_cmp);
    list[list.len() / 2]
}

fn ours(name: &str) -> &'static str {
    match name {
        "client" => env!("CARGO_BIN_EXE_tael-client"),
        _ => env!("CARGO_BIN_EXE_tael-message"),
    }
}

// --- Parts of the way ---

fn trigger() -> Trigger {
    Trigger {
        name: "bench".into(),
        filters: vec![Filter::new("bench/+/status").expect("filter")],
        conditions: vec![Condition::parse("status=finished").expect("condition")],
        export: Export::new(None, vec!["sample".into()]).expect("export"),
        passthrough: Vec::new(),
        queue: None,
        accept_retained: false,
        reply: None,
        absent: None,
        policy: Policy::default(),
        spec: Arc::new(Spec::new("bench", Run::direct("true").expect("command"))),
    }
}

fn decide() {
    let trigger = trigger();
    let delivery = Delivery {
        topic: TOPIC.into(),
        payload: FINISHED.into(),
        retained: false,
        duplicate: false,
        packet: 0,
        properties: Properties::default(),
    };
    const N: u32 = 200_000;
    let start = Instant::now();
    for _ in 0..N {
        let event = event::parse(std::hint::black_box(&delivery), 1 << 20).expect("event");
        assert_eq!(trigger.decide(&event, "me"), Decision::Run);
        std::hint::black_box(trigger.export.apply(&event.attributes));
    }
    println!("decide and export: {:?} an event", start.elapsed() / N);
}

/// Nothing follows.
struct Nothing;

impl OnDisk for Nothing {
    fn on_disk(&self, _: &Done) {}
}

fn ledger() {
    let (mut ledger, _reader): (Ledger<Nothing>, _) = Openable::find(&state())
        .and_then(Ledger::open)
        .expect("ledger");
    let post = || {
        Op::Post(Message {
            topic: TOPIC.into(),
            payload: FINISHED.into(),
            qos: Qos::AtLeastOnce,
            retain: false,
            properties: Properties::default(),
        })
    };
    Builder::new_current_thread()
        .build()
        .expect("runtime")
        .block_on(async {
            for (what, batch, rounds) in [("alone", 1, 1000), ("64 at a time", 64, 100)] {
                let start = Instant::now();
                for _ in 0..rounds {
                    (0..batch).for_each(|_| ledger.submit(post(), Nothing));
                    for _ in 0..batch {
                        ledger.committed().await.expect("committed");
                    }
                }
                let rate = f64::from(batch * rounds) / start.elapsed().as_secs_f64();
                println!("ledger, {what}: {rate:.0} operations a second");
            }
        });
}

// --- Contestants ---

struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        // A pipeline of the shell's dies with its group.
        let group = nix::unistd::Pid::from_raw(self.0.id().cast_signed());
        let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL);
        let _ = self.0.wait();
    }
}

fn spawn(command: &mut Command) -> Guard {
    use std::os::unix::process::CommandExt;
    let command = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .process_group(0);
    Guard(
        command
            .spawn()
            .unwrap_or_else(|e| panic!("{command:?}: {e}")),
    )
}

struct Mosquitto {
    port: u16,
    _process: Guard,
    _dir: tempfile::TempDir,
}

fn mosquitto() -> Mosquitto {
    mosquitto_with(
        "max_queued_messages 1000000\nmax_inflight_messages 1000\nset_tcp_nodelay true\n",
    )
}

fn mosquitto_with(options: &str) -> Mosquitto {
    let dir = tempfile::tempdir().expect("tempdir");
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let port = listener.local_addr().expect("address").port();
    drop(listener);
    let config = dir.path().join("mosquitto.conf");
    let text = format!("listener {port} 127.0.0.1\nallow_anonymous true\n{options}");
    fs::write(&config, text).expect("config");
    let process = spawn(
        Command::new("mosquitto")
            .arg("-c")
            .arg(&config)
            .stderr(Stdio::null()),
    );
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        std::thread::yield_now();
    }
    Mosquitto {
        port,
        _process: process,
        _dir: dir,
    }
}

fn options(port: u16, id: &str) -> MqttOptions {
    let mut options = MqttOptions::new(id, "127.0.0.1", port);
    let mut network = rumqttc::NetworkOptions::new();
    network.set_tcp_nodelay(true);
    options.set_network_options(network);
    options.set_outgoing_inflight_upper_limit(1000);
    options.set_max_packet_size(Some(1 << 20));
    options
}

/// Receives, parses, spawns; `jobs` at a time, nothing kept. With no command it only receives
/// and parses, and says `!` to the port in its place for every thousandth message.
fn bare_loop(port: u16, topic: &str, jobs: usize, command: &[String]) {
    Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("runtime")
        .block_on(async {
            let (client, mut eventloop) = AsyncClient::new(options(port, topic), 64);
            client
                .subscribe(topic, QoS::AtLeastOnce)
                .await
                .expect("subscribe");
            let mut running: Vec<Child> = Vec::new();
            let (mut seen, socket) = (0, UdpSocket::bind("127.0.0.1:0").expect("bind"));
            loop {
                let Event::Incoming(Packet::Publish(publish)) =
                    eventloop.poll().await.expect("poll")
                else {
                    continue;
                };
                let value: serde_json::Value =
                    serde_json::from_slice(&publish.payload).expect("json");
                if let [only_count] = command {
                    seen += 1;
                    if seen % 1000 == 0 {
                        socket
                            .send_to(b"!", format!("127.0.0.1:{only_count}"))
                            .expect("send");
                    }
                } else if value["status"] == "finished" {
                    while running.len() >= jobs {
                        running.retain_mut(|child| child.try_wait().expect("wait").is_none());
                        std::thread::yield_now();
                    }
                    let child = Command::new(&command[0])
                        .args(&command[1..])
                        .env("ATTR_SAMPLE", value["sample"].as_str().unwrap_or_default())
                        .stdin(Stdio::null())
                        .stdout(Stdio::null())
                        .spawn();
                    running.push(child.expect("spawn"));
                    running.retain_mut(|child| child.try_wait().expect("wait").is_none());
                }
            }
        });
}

/// Publishes to the contestants.
struct Publisher {
    runtime: tokio::runtime::Runtime,
    client: AsyncClient,
}

impl Publisher {
    fn new(port: u16) -> Self {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("runtime");
        let (client, mut eventloop) = AsyncClient::new(options(port, "publisher"), 100_000);
        runtime.spawn(async move { while eventloop.poll().await.is_ok() {} });
        Self { runtime, client }
    }

    fn send(&self, payload: &'static str) {
        self.send_to(TOPIC, payload);
    }

    fn send_to(&self, topic: &str, payload: &'static str) {
        let properties = PublishProperties {
            user_properties: vec![("tael-id".into(), ulid::Ulid::generate().to_string())],
            ..PublishProperties::default()
        };
        let sent = self.client.publish_with_properties(
            topic,
            QoS::AtLeastOnce,
            false,
            payload,
            properties,
        );
        self.runtime.block_on(sent).expect("publish");
    }
}

fn this() -> String {
    std::env::current_exe()
        .expect("exe")
        .to_str()
        .expect("path")
        .to_owned()
}

fn client(port: u16, topic: &str, state: &Path, jobs: usize, command: &str) -> Guard {
    spawn(&mut client_command(port, topic, state, jobs, command))
}

fn client_command(port: u16, topic: &str, state: &Path, jobs: usize, command: &str) -> Command {
    let mut client = Command::new(ours("client"));
    client
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("STATE_DIRECTORY", state)
        .args(["--who", &topic.replace('/', "-"), "--log", "none"])
        .args(["-H", "127.0.0.1", "-p", &port.to_string()])
        .args(["-t", topic, "--jobs", &jobs.to_string(), "-c", command]);
    client
}

/// Folders for what clients keep, removed at the very end: on a file system without a journal
/// ext4 does not give the inode of a deleted file away again for five minutes, and looks at each
/// of them whenever it makes a file.
static STATES: Mutex<Vec<tempfile::TempDir>> = Mutex::new(Vec::new());

fn state() -> PathBuf {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("tempdir");
    let path = dir.path().to_owned();
    STATES.lock().expect("states").push(dir);
    path
}

/// Sends until the contestant is awake, and lets it come to rest.
fn wake(publisher: &Publisher, topic: &str, socket: &UdpSocket) {
    let short = Some(Duration::from_millis(100));
    socket.set_read_timeout(short).expect("timeout");
    let mut byte = [0];
    loop {
        publisher.send_to(topic, FINISHED);
        if socket.recv(&mut byte).is_ok() {
            break;
        }
    }
    while socket.recv(&mut byte).is_ok() {}
    socket
        .set_read_timeout(Some(Duration::from_secs(60)))
        .expect("timeout");
}

fn round_trip(publisher: &Publisher, topic: &str, socket: &UdpSocket) -> f64 {
    // Not in lockstep with anything.
    std::thread::sleep(Duration::from_micros(fastrand::u64(5_000..15_000)));
    let start = Instant::now();
    publisher.send_to(topic, FINISHED);
    let mut byte = [0];
    socket.recv(&mut byte).expect("the command begins");
    start.elapsed().as_secs_f64() * 1000.0
}

fn latency() {
    let broker = mosquitto();
    let socket = UdpSocket::bind("127.0.0.1:0").expect("bind");
    let port = socket.local_addr().expect("address").port().to_string();
    let publisher = Publisher::new(broker.port);
    let ping = format!("{} ping {port}", this());
    let through_sh = format!("X=1; {ping}");
    let home = state();
    let names = [
        "bare loop, direct",
        "tael client, direct",
        "bare loop, sh",
        "tael client, sh",
        "mosquitto_sub | while read … jq",
    ];
    // All at once, each with a topic of its own, and ten messages for one after the other: what
    // the machine does meanwhile concerns them all.
    let topics = [0, 1, 2, 3, 4].map(|n| format!("bench/{n}/status"));
    let bare = |topic: &str, command: &[&str]| {
        let mut bare = Command::new(this());
        bare.args(["bare", &broker.port.to_string(), topic, "1"]);
        spawn(bare.args(command))
    };
    let words: Vec<&str> = ping.split(' ').collect();
    let sub = format!(
        r#"mosquitto_sub -h 127.0.0.1 -p {} -q 1 -t {} | while read -r line; do
           [ "$(printf %s "$line" | jq -r .status)" = finished ] && {ping} </dev/null; done"#,
        broker.port, topics[4]
    );
    let _contestants = [
        bare(&topics[0], &words),
        client(broker.port, &topics[1], &home, 1, &ping),
        bare(&topics[2], &["/bin/sh", "-c", &through_sh]),
        client(broker.port, &topics[3], &home, 1, &through_sh),
        spawn(Command::new("bash").args(["-c", &sub])),
    ];
    for topic in &topics {
        wake(&publisher, topic, &socket);
    }
    let mut times = [const { Vec::new() }; 5];
    for _ in 0..20 {
        for (times, topic) in times.iter_mut().zip(&topics) {
            times.extend((0..10).map(|_| round_trip(&publisher, topic, &socket)));
        }
    }
    let mut medians = Vec::new();
    for (name, times) in names.iter().zip(&mut times) {
        let m = median(times);
        println!(
            "publish to first instruction, {name}: {m:.2} ms (5 %: {:.2}, 95 %: {:.2})",
            times[10], times[190]
        );
        medians.push(m);
    }
    println!(
        "  ratio to the bare loop, direct: {:.2} (target 1.25)",
        medians[1] / medians[0]
    );
    println!(
        "  ratio to the bare loop, sh: {:.2} (target 1.25)",
        medians[3] / medians[2]
    );
    println!(
        "  ratio to mosquitto_sub: {:.3} (target 0.1)",
        medians[1] / medians[4]
    );
}

fn burst() {
    const EVENTS: usize = 2000;
    let socket = UdpSocket::bind("127.0.0.1:0").expect("bind");
    let port = socket.local_addr().expect("address").port().to_string();
    let ping = format!("{} ping {port}", this());
    let mut rates = Vec::new();
    for name in ["bare loop", "tael client", "tael client with output"] {
        let broker = mosquitto();
        let home = state();
        let publisher = Publisher::new(broker.port);
        let ping = match name.ends_with("output") {
            true => format!("{ping} begun"),
            false => ping.clone(),
        };
        let _contestant = if name == "bare loop" {
            let command = ping.split(' ');
            spawn(
                Command::new(this())
                    .args(["bare", &broker.port.to_string(), TOPIC, "2"])
                    .args(command),
            )
        } else {
            client(broker.port, TOPIC, &home, 2, &ping)
        };
        wake(&publisher, TOPIC, &socket);
        let start = Instant::now();
        (0..EVENTS).for_each(|_| publisher.send(FINISHED));
        let mut byte = [0];
        for _ in 0..EVENTS {
            socket.recv(&mut byte).expect("none is lost");
        }
        let rate = EVENTS as f64 / start.elapsed().as_secs_f64();
        println!("{EVENTS} events at once, 2 jobs, {name}: {rate:.0} a second");
        rates.push(rate);
    }
    println!(
        "  ratio to the bare loop: {:.2} (target 0.5 or more); with output {:.2}",
        rates[1] / rates[0],
        rates[2] / rates[0]
    );
}

/// What an event costs until it is acknowledged, without its run: the pipeline is paused.
fn accept() {
    const EVENTS: i64 = 20_000;
    let broker = mosquitto();
    let home = state();
    let folder = home.join(TOPIC.replace('/', "-"));
    fs::create_dir(&folder).expect("folder");
    fs::write(folder.join("paused"), "").expect("paused");
    let publisher = Publisher::new(broker.port);
    let client = client(broker.port, TOPIC, &home, 1, "true");
    let accepted = || -> i64 {
        let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
        let ledger = rusqlite::Connection::open_with_flags(folder.join("ledger.db"), flags).ok();
        let sql = "SELECT count(*) FROM unit";
        let count = ledger.map(|ledger| ledger.query_row(sql, [], |row| row.get(0)).unwrap_or(0));
        count.unwrap_or(0)
    };
    while accepted() == 0 {
        publisher.send(FINISHED);
        std::thread::sleep(Duration::from_millis(50));
    }
    std::thread::sleep(Duration::from_millis(300));
    let (before, count) = (cpu_of_threads(client.0.id()), accepted());
    let start = Instant::now();
    (0..EVENTS).for_each(|_| publisher.send(FINISHED));
    while accepted() < count + EVENTS {
        std::thread::sleep(Duration::from_millis(20));
    }
    let rate = EVENTS as f64 / start.elapsed().as_secs_f64();
    std::thread::sleep(Duration::from_millis(100));
    let after = cpu_of_threads(client.0.id());
    println!("{EVENTS} events accepted and not run: {rate:.0} a second");
    for (name, time) in after {
        let since = before.iter().find(|(n, _)| *n == name);
        let micros = (time - since.map_or(0.0, |(_, time)| *time)) * 1e6 / EVENTS as f64;
        println!("  processor time of thread {name}: {micros:.1} µs an event");
    }
}

/// User and system time of each thread of a process, seconds, by its name.
fn cpu_of_threads(pid: u32) -> Vec<(String, f64)> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("tasks");
    let threads = tasks.map(|task| {
        let path = task.expect("task").path();
        let name = fs::read_to_string(path.join("comm")).expect("comm");
        // Nanoseconds on the processor (Documentation/scheduler/sched-stats.rst).
        let stat = fs::read_to_string(path.join("schedstat")).expect("schedstat");
        let nanos: f64 = stat.split(' ').next().expect("time").parse().expect("time");
        (name.trim().to_owned(), nanos / 1e9)
    });
    threads.collect()
}

fn ignore() {
    const MESSAGES: usize = 20_000;
    let socket = UdpSocket::bind("127.0.0.1:0").expect("bind");
    let port = socket.local_addr().expect("address").port().to_string();
    let mut rates = Vec::new();
    for name in ["bare loop", "tael client"] {
        let broker = mosquitto();
        let home = state();
        let publisher = Publisher::new(broker.port);
        let ping = format!("{} ping {port}", this());
        let (contestant, counts) = if name == "bare loop" {
            let bare = spawn(Command::new(this()).args([
                "bare",
                &broker.port.to_string(),
                TOPIC,
                "1",
                &port,
            ]));
            // It says that it is there after a thousand.
            socket
                .set_read_timeout(Some(Duration::from_millis(100)))
                .expect("timeout");
            let mut byte = [0];
            while socket.recv(&mut byte).is_err() {
                (0..100).for_each(|_| publisher.send(STARTED));
            }
            while socket.recv(&mut byte).is_ok() {}
            socket
                .set_read_timeout(Some(Duration::from_secs(60)))
                .expect("timeout");
            (bare, MESSAGES / 1000)
        } else {
            let ours = client(broker.port, TOPIC, &home, 1, &ping);
            wake(&publisher, TOPIC, &socket);
            (ours, 1)
        };
        let written = || {
            let io = fs::read_to_string(format!("/proc/{}/io", contestant.0.id())).expect("io");
            let line = io
                .lines()
                .find(|line| line.starts_with("write_bytes"))
                .expect("line")
                .to_owned();
            line.rsplit(' ')
                .next()
                .expect("number")
                .parse::<u64>()
                .expect("number")
        };
        let before = written();
        let start = Instant::now();
        (0..MESSAGES).for_each(|_| publisher.send(STARTED));
        let mut byte = [0];
        if counts == 1 {
            let disk = written() - before;
            // The event behind them all tells when they have been looked at.
            publisher.send(FINISHED);
            socket.recv(&mut byte).expect("the last one runs");
            println!("messages that match nothing: {disk} bytes written to disk meanwhile");
        } else {
            for _ in 0..counts {
                socket.recv(&mut byte).expect("all are seen");
            }
        }
        let rate = MESSAGES as f64 / start.elapsed().as_secs_f64();
        println!("messages that match nothing, {name}: {rate:.0} a second");
        rates.push(rate);
    }
    println!(
        "  ratio to the bare loop: {:.2} (target 0.5 or more)",
        rates[1] / rates[0]
    );
}

fn idle() {
    let broker = mosquitto();
    let socket = UdpSocket::bind("127.0.0.1:0").expect("bind");
    let port = socket.local_addr().expect("address").port().to_string();
    let publisher = Publisher::new(broker.port);
    let home = state();
    let client = client(
        broker.port,
        TOPIC,
        &home,
        1,
        &format!("{} ping {port}", this()),
    );
    wake(&publisher, TOPIC, &socket);
    let pid = client.0.id();
    // Not every kernel lists children (CONFIG_PROC_CHILDREN).
    let parent = |stat: &str| {
        let (_, rest) = stat.rsplit_once(") ")?;
        rest.split(' ').nth(1)?.parse::<u32>().ok()
    };
    let processes = fs::read_dir("/proc").expect("proc").flatten();
    let children = processes.filter(|process| {
        let stat = fs::read_to_string(process.path().join("stat")).unwrap_or_default();
        parent(&stat) == Some(pid)
    });
    let children = children.filter_map(|child| child.file_name().into_string().ok());
    let all: Vec<String> = std::iter::once(pid.to_string()).chain(children).collect();
    let number = |pid: &str, file: &str, key: &str| -> u64 {
        let text = fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
        let line = text
            .lines()
            .find(|line| line.starts_with(key))
            .unwrap_or_default()
            .to_owned();
        line.split_whitespace()
            .nth(1)
            .and_then(|n| n.parse().ok())
            .unwrap_or(0)
    };
    let pss: Vec<u64> = all
        .iter()
        .map(|pid| number(pid, "smaps_rollup", "Pss:"))
        .collect();
    let own = number(&all[all.len() - 1], "smaps_rollup", "Private_Dirty:");
    println!(
        "idle client and its warm runner: {pss:?} KiB proportional, {} KiB together (target under 6144); the runner's own {own} KiB",
        pss.iter().sum::<u64>()
    );
    let switches = || -> u64 {
        let tasks = |pid: &String| {
            let tasks = fs::read_dir(format!("/proc/{pid}/task"))
                .expect("tasks")
                .flatten();
            tasks
                .map(|t| {
                    let path = format!("{pid}/task/{}", t.file_name().to_string_lossy());
                    number(&path, "status", "voluntary_ctxt_switches:")
                })
                .sum::<u64>()
        };
        all.iter().map(tasks).sum()
    };
    std::thread::sleep(Duration::from_secs(12));
    let before = switches();
    std::thread::sleep(Duration::from_secs(30));
    println!(
        "wake-ups of an idle client in 30 s: {} (keep-alive 60 s)",
        switches() - before
    );
}

fn message() {
    let broker = mosquitto();
    let port = broker.port.to_string();
    let time = |command: &mut Command| {
        let start = Instant::now();
        let status = command.stdin(Stdio::null()).status().expect("run");
        assert!(status.success());
        start.elapsed().as_secs_f64() * 1000.0
    };
    let mut tael = Command::new(ours("message"));
    tael.args([
        "-H",
        "127.0.0.1",
        "-p",
        &port,
        "-t",
        TOPIC,
        "--attr",
        "status",
        "finished",
    ]);
    let mut pub_ = Command::new("mosquitto_pub");
    pub_.args([
        "-h",
        "127.0.0.1",
        "-p",
        &port,
        "-q",
        "2",
        "-V",
        "5",
        "-t",
        TOPIC,
        "-m",
        FINISHED,
    ]);
    let (mut a, mut b) = (Vec::new(), Vec::new());
    for _ in 0..50 {
        a.push(time(&mut tael));
        b.push(time(&mut pub_));
    }
    let (a, b) = (median(&mut a), median(&mut b));
    println!("tael-message: {a:.2} ms, mosquitto_pub: {b:.2} ms, both at QoS 2");
    println!("  ratio: {:.2} (target 1 or less)", a / b);
}

// --- Nodes ---

/// How far apart ten nodes on this machine begin, told at once and told an instant.
fn nodes() {
    const NODES: usize = 10;
    const ROUNDS: usize = 10;
    let broker = mosquitto();
    let home = state();
    let file = |name: &str| home.join(name);
    let begun = file("begun");
    let functions = format!(
        "startFunction() {{ echo \"$1 $EPOCHREALTIME\" >>'{}'; }}\n",
        begun.display()
    );
    fs::write(file("functions"), functions).expect("functions");
    let port = broker.port.to_string();
    let names: Vec<String> = (0..NODES).map(|n| format!("n{n}")).collect();
    let tael = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tael"));
        command
            .args(arguments)
            .args(["--root", "bench", "-H", "127.0.0.1", "-p", &port]);
        command.args(["--log", "none"]);
        command
    };
    let functions = file("functions").display().to_string();
    let _nodes: Vec<Guard> = names
        .iter()
        .map(|name| spawn(&mut tael(&["node", name, "--functions", &functions])))
        .collect();
    let all = names.join(",");
    let mut spreads = Vec::new();
    for (what, at) in [("told at once", ""), ("told an instant", " AT +300ms")] {
        let mut text = format!("WAITFOR {all} ALIVE\n");
        for round in 0..ROUNDS {
            text += &format!("SEND {all} START {round}{at}\nWAITFOR {all} STARTED\n");
            if round == 0 {
                text += "WAIT 0.5\n";
            }
        }
        let _ = fs::remove_file(&begun);
        fs::write(file("playbook"), text).expect("playbook");
        let playbook = file("playbook").display().to_string();
        let played = tael(&["play", &playbook]).stdout(Stdio::null()).status();
        assert!(played.expect("play").success());
        let mut rounds = vec![Vec::new(); ROUNDS];
        for line in fs::read_to_string(&begun).expect("begun").lines() {
            let (round, time) = line.split_once(' ').expect("round");
            let time: f64 = time.replace(',', ".").parse().expect("time");
            rounds[round.parse::<usize>().expect("round")].push(time * 1000.0);
        }
        let mut apart: Vec<f64> = rounds
            .iter()
            .map(|times| {
                assert_eq!(times.len(), NODES);
                let last = times.iter().copied().fold(f64::MIN, f64::max);
                last - times.iter().copied().fold(f64::MAX, f64::min)
            })
            .collect();
        let m = median(&mut apart);
        println!(
            "{NODES} nodes {what}: first and last begin {m:.2} ms apart ({:.2} to {:.2})",
            apart[0],
            apart[ROUNDS - 1]
        );
        spreads.push(m);
    }
    println!("  an instant: {:.2} ms (target 5 or less)", spreads[1]);
}

// --- Scale ---

/// What one ignored message costs a client with many triggers, each on a topic of its own.
fn triggers() {
    const MESSAGES: u32 = 10_000;
    let socket = UdpSocket::bind("127.0.0.1:0").expect("bind");
    let port = socket.local_addr().expect("address").port();
    let mut costs = Vec::new();
    for count in [1, 100, 10_000] {
        let broker = mosquitto();
        let home = state();
        let publisher = Publisher::new(broker.port);
        let command = format!("{} ping {port}", this());
        let tables = (1..=count).map(|n| {
            format!("[[trigger]]\nname = \"t{n}\"\ntopic = \"bench/{n}/status\"\ncommand = \"{command}\"\n")
        });
        let config = home.join("tael.toml");
        let text = format!("root = \"bench\"\n{}", tables.collect::<String>());
        fs::write(&config, text).expect("config");
        let client = spawn(
            Command::new(ours("client"))
                .env_clear()
                .env("PATH", "/usr/bin:/bin")
                .env("STATE_DIRECTORY", &home)
                .args(["--who", "bench", "-H", "127.0.0.1", "--log", "none"])
                .args(["-p", &broker.port.to_string(), "--config"])
                .arg(&config),
        );
        // The last one: a search from the front would come to it last.
        let topic = format!("bench/{count}/status");
        wake(&publisher, &topic, &socket);
        let before = cpu(client.0.id());
        (0..MESSAGES).for_each(|_| publisher.send_to(&topic, STARTED));
        publisher.send_to(&topic, FINISHED);
        socket.recv(&mut [0]).expect("the last one runs");
        let cost = (cpu(client.0.id()) - before) * 1e6 / f64::from(MESSAGES);
        println!("an ignored message, {count} triggers: {cost:.1} µs of processor time");
        costs.push(cost);
    }
    println!(
        "  10,000 triggers to 1: {:.2} (target 1.25 or less)",
        costs[2] / costs[0]
    );
}

/// User and system time of a process, seconds (`proc_pid_stat(5)`, fields 14 and 15).
fn cpu(pid: u32) -> f64 {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).expect("stat");
    let (_, rest) = text.rsplit_once(')').expect("name");
    let ticks = |n: usize| -> f64 {
        let field = rest.split_whitespace().nth(n).expect("field");
        field.parse().expect("ticks")
    };
    // The kernel reports hundredths of a second on every architecture (`USER_HZ`).
    (ticks(11) + ticks(12)) / 100.0
}

/// How long one look at all pipelines of a root takes.
fn status() {
    let broker = mosquitto();
    let publisher = Publisher::new(broker.port);
    let port = broker.port.to_string();
    let mut published = 0;
    for count in [10, 1000] {
        for n in published..count {
            let topic = format!("bench/infrastructure/pipelines/p{n}/presence");
            let presence = serde_json::json!({
                "state": "online", "who": format!("p{n}"), "host": "h", "version": "1",
                "since": 1_700_000_000, "triggers": [
                    {"name": "t", "topics": [format!("bench/{n}/status")], "when": ["status=finished"]},
                ],
            });
            let sent =
                publisher
                    .client
                    .publish(topic, QoS::AtLeastOnce, true, presence.to_string());
            publisher.runtime.block_on(sent).expect("publish");
        }
        published = count;
        let look = || {
            let start = Instant::now();
            let output = Command::new(env!("CARGO_BIN_EXE_tael"))
                .args(["status", "--json", "--root", "bench", "--log", "none"])
                .args(["-H", "127.0.0.1", "-p", &port])
                .output()
                .expect("tael status");
            let seen = String::from_utf8_lossy(&output.stdout)
                .matches("\"who\"")
                .count();
            (start.elapsed().as_secs_f64() * 1000.0, seen)
        };
        // Until the broker has all of them.
        while look().1 < count {}
        let mut times: Vec<f64> = (0..10).map(|_| look().0).collect();
        println!(
            "one look at {count} pipelines: {:.1} ms",
            median(&mut times)
        );
    }
}

/// A burst to a client of mosquitto as it is shipped, which keeps 1,000 messages for a client that
/// is slower than its senders and drops the rest.
fn stock() {
    const EVENTS: usize = 2000;
    const ROUNDS: usize = 5;
    let socket = UdpSocket::bind("127.0.0.1:0").expect("bind");
    let port = socket.local_addr().expect("address").port();
    let ping = format!("{} ping {port}", this());
    let mut all = 0;
    for jobs in [1, 2, 8] {
        let lost = (0..ROUNDS).map(|_| {
            let broker = mosquitto_with("");
            let home = state();
            let publisher = Publisher::new(broker.port);
            let _client = client(broker.port, TOPIC, &home, jobs, &ping);
            wake(&publisher, TOPIC, &socket);
            (0..EVENTS).for_each(|_| publisher.send(FINISHED));
            let patience = Some(Duration::from_secs(3));
            socket.set_read_timeout(patience).expect("timeout");
            let run = (0..EVENTS).take_while(|_| socket.recv(&mut [0]).is_ok());
            EVENTS - run.count()
        });
        let lost: Vec<usize> = lost.collect();
        all += lost.iter().sum::<usize>();
        println!("{EVENTS} events at once at stock limits, {jobs} jobs: {lost:?} lost");
    }
    println!("  lost: {all} (target 0)");
}

/// Starts a client with 10,000 waiting events of 800 KB, and lists them. Takes 8 GB of disk space.
fn waiting() {
    const EVENTS: usize = 10_000;
    let broker = mosquitto();
    let home = state();
    let peak = |pid: u32| -> u64 {
        let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with("VmHWM:"));
        let number = line.and_then(|line| line.split_whitespace().nth(1));
        number.and_then(|number| number.parse().ok()).unwrap_or(0)
    };
    fill(&broker, &home, EVENTS, "pending", 800_000);
    fs::write(folder(&home).join("paused"), "").expect("paused");
    let (client, time) = until_ready(&broker, &home);
    let memory = peak(client.0.id());
    println!(
        "start with {EVENTS} waiting events of 800 KB: {:.0} ms, {memory} KiB at most",
        time * 1000.0
    );
    let start = Instant::now();
    let mut list = Command::new(env!("CARGO_BIN_EXE_tael"));
    list.env("STATE_DIRECTORY", &home)
        .args(["work", "list", "--json"]);
    let mut list = list.stdout(Stdio::null()).spawn().expect("list");
    let mut most = memory;
    let status = loop {
        if let Some(status) = list.try_wait().expect("wait") {
            break status;
        }
        most = most.max(peak(list.id()));
        std::thread::sleep(Duration::from_millis(1));
    };
    assert!(status.success(), "tael work list: {status}");
    println!("list of them: {:.1?}", start.elapsed());
    println!("  memory: {most} KiB at most (target under 65536)");
}

/// The folder of the client that [`client`] starts for [`TOPIC`].
fn folder(home: &Path) -> PathBuf {
    home.join(TOPIC.replace('/', "-"))
}

/// Has a client make its ledger in `home`, and fills that with units in a state, with a payload
/// of so many bytes each.
fn fill(broker: &Mosquitto, home: &Path, count: usize, state: &str, bytes: usize) {
    drop(until_ready(broker, home));
    let ledger = rusqlite::Connection::open(folder(home).join("ledger.db")).expect("ledger");
    // A unit to copy, of all that the ledger holds for one today.
    let publisher = Publisher::new(broker.port);
    let (client, _) = until_ready(broker, home);
    publisher.send(FINISHED);
    let ended = || -> i64 {
        let sql = "SELECT count(*) FROM unit WHERE ended IS NOT NULL";
        ledger.query_row(sql, [], |row| row.get(0)).expect("count")
    };
    while ended() == 0 {
        std::thread::sleep(Duration::from_millis(20));
    }
    drop(client);
    let columns: Vec<String> = ledger
        .prepare("SELECT name FROM pragma_table_info('unit')")
        .expect("columns")
        .query_map([], |row| row.get(0))
        .expect("columns")
        .collect::<Result<_, _>>()
        .expect("columns");
    let value = |name: &String| match name.as_str() {
        "seq" => "n.i".to_owned(),
        "id" => "printf('01BENCH%019d', n.i)".to_owned(),
        "payload" => "n.i".to_owned(),
        // A payload that is small lies here.
        "body" => "NULL".to_owned(),
        "state" => format!("'{state}'"),
        "boot" | "started" | "ended" | "outcome" if state == "pending" => "NULL".to_owned(),
        "ended" => "unit.ended - n.i".to_owned(),
        other => format!("unit.{other}"),
    };
    let values: Vec<String> = columns.iter().map(value).collect();
    let sql = format!(
        "WITH RECURSIVE n(i) AS (SELECT 1001 UNION ALL SELECT i + 1 FROM n WHERE i < 1000 + {count})
         INSERT INTO unit ({}) SELECT {} FROM n, (SELECT * FROM unit LIMIT 1) AS unit;
         INSERT INTO payload SELECT seq, zeroblob({bytes}) FROM unit WHERE seq > 1000;
         PRAGMA wal_checkpoint(TRUNCATE)",
        columns.join(", "),
        values.join(", ")
    );
    ledger.execute_batch(&sql).expect("fill");
    // What is still to be written would keep the disk from the client that starts next.
    let synced = Command::new("sync").status().expect("sync");
    assert!(synced.success(), "sync: {synced}");
}

/// Starts a client for [`TOPIC`], and returns it with the seconds until it was subscribed.
fn until_ready(broker: &Mosquitto, home: &Path) -> (Guard, f64) {
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join("notify");
    let socket = std::os::unix::net::UnixDatagram::bind(&path).expect("bind");
    let start = Instant::now();
    let client =
        spawn(client_command(broker.port, TOPIC, home, 2, "true").env("NOTIFY_SOCKET", &path));
    let mut message = [0; 4096];
    loop {
        let size = socket.recv(&mut message).expect("sd_notify");
        if message[..size].windows(7).any(|word| word == b"READY=1") {
            return (client, start.elapsed().as_secs_f64());
        }
    }
}

/// How long a client takes to be subscribed that finds 10,000 ended units, next to `mosquitto_sub`.
fn start() {
    const UNITS: usize = 10_000;
    let broker = mosquitto();
    let home = state();
    fill(&broker, &home, UNITS, "succeeded", 100);
    let publisher = Publisher::new(broker.port);
    let retained = publisher
        .client
        .publish("bench/retained", QoS::AtLeastOnce, true, "x");
    publisher.runtime.block_on(retained).expect("publish");
    let port = broker.port.to_string();
    let sub = || {
        let start = Instant::now();
        let mut sub = Command::new("mosquitto_sub");
        sub.args(["-p", &port, "-t", "bench/retained", "-C", "1", "-q", "1"]);
        assert!(sub.stdout(Stdio::null()).status().expect("sub").success());
        start.elapsed().as_secs_f64()
    };
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..10 {
        let (client, time) = until_ready(&broker, &home);
        ours.push(time);
        drop(client);
        theirs.push(sub());
    }
    let (ours, theirs) = (median(&mut ours) * 1000.0, median(&mut theirs) * 1000.0);
    println!(
        "start to subscribed, {UNITS} ended units: {ours:.1} ms; mosquitto_sub: {theirs:.1} ms"
    );
    println!("  ratio to mosquitto_sub: {:.2} (target 1)", ours / theirs);
}

/// How fast events run that wait when the client starts.
fn drain() {
    const EVENTS: i64 = 2000;
    for jobs in [2, 8] {
        let broker = mosquitto();
        let home = state();
        let folder = folder(&home);
        fs::create_dir(&folder).expect("folder");
        fs::write(folder.join("paused"), "").expect("paused");
        let publisher = Publisher::new(broker.port);
        let waiting = client(broker.port, TOPIC, &home, jobs, "true");
        let count = |which: &str| -> i64 {
            let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
            let ledger =
                rusqlite::Connection::open_with_flags(folder.join("ledger.db"), flags).ok();
            let sql = format!("SELECT count(*) FROM unit {which}");
            let count =
                ledger.map(|ledger| ledger.query_row(&sql, [], |row| row.get(0)).unwrap_or(0));
            count.unwrap_or(0)
        };
        while count("") == 0 {
            publisher.send(FINISHED);
            std::thread::sleep(Duration::from_millis(50));
        }
        (0..EVENTS).for_each(|_| publisher.send(FINISHED));
        while count("") < EVENTS {
            std::thread::sleep(Duration::from_millis(20));
        }
        drop(waiting);
        fs::remove_file(folder.join("paused")).expect("resume");
        let all = count("");
        let start = Instant::now();
        let _client = client(broker.port, TOPIC, &home, jobs, "true");
        while count("WHERE ended IS NOT NULL") < all {
            std::thread::sleep(Duration::from_millis(20));
        }
        let rate = all as f64 / start.elapsed().as_secs_f64();
        println!("{all} events that wait at the start, {jobs} jobs: {rate:.0} a second");
    }
}
