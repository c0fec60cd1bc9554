//! The gateway: webhooks against adnanh/webhook, which keeps nothing, and the streams of 200 browsers.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ring::hmac::{HMAC_SHA256, Key, sign};
use rumqttc::v5::mqttbytes::QoS;
use tokio::io::AsyncReadExt;
use tokio::runtime::Builder;

use crate::{
    Guard, Mosquitto, Publisher, cpu_of_threads, median, mosquitto, mosquitto_with, spawn, state,
};

const SECRET: &str = "a secret of the benchmark";

const BODY: &str =
    r#"{"ref":"refs/heads/main","after":"0d1a26e67d8f5eaf1f6ba5c57fc3c7d91ac0fd1c"}"#;

/// Number of requests one after another, of each contestant in turn with the others.
const ALONE: usize = 200;

/// Number of requests at once, and of the connections that send them.
const MANY: usize = 2000;
const CONNECTIONS: usize = 16;

/// Rounds of the requests at once, in turn with the others.
const ROUNDS: usize = 3;

/// Number of browsers, and of the messages that each gets.
const BROWSERS: usize = 200;
const MESSAGES: usize = 1000;

/// Interval between two messages.
const PACE: Duration = Duration::from_millis(2);

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    listener.local_addr().expect("address").port()
}

/// Starts a gateway on `port`, and returns when it has reached the broker.
fn gateway(broker: &Mosquitto, state: &Path, port: u16, options: &[&str]) -> Guard {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tael"));
    command
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("STATE_DIRECTORY", state)
        .args(["gateway", "--root", "bench", "--rate", "0", "--log", "none"])
        .args(["--listen", &format!("127.0.0.1:{port}")])
        .args(["-H", "127.0.0.1", "-p", &broker.port.to_string()])
        .args(options);
    let guard = spawn(&mut command);
    let health = "GET /healthz HTTP/1.0\r\nHost: localhost\r\n\r\n";
    let is_online = || {
        let mut text = String::new();
        let asked = TcpStream::connect(("127.0.0.1", port)).and_then(|mut stream| {
            stream.write_all(health.as_bytes())?;
            stream.read_to_string(&mut text)
        });
        asked.is_ok() && text.starts_with("HTTP/1.1 200") || text.starts_with("HTTP/1.0 200")
    };
    while !is_online() {
        std::thread::sleep(Duration::from_millis(10));
    }
    guard
}

/// A connection of a sender, which stays.
struct Sender {
    stream: BufReader<TcpStream>,
    path: &'static str,
    signature: String,
}

impl Sender {
    fn connect(port: u16, path: &'static str) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).expect("connect");
        stream.set_nodelay(true).expect("nodelay");
        let code = sign(&Key::new(HMAC_SHA256, SECRET.as_bytes()), BODY.as_bytes());
        let code: String = code.as_ref().iter().map(|b| format!("{b:02x}")).collect();
        Self {
            stream: BufReader::new(stream),
            path,
            signature: format!("sha256={code}"),
        }
    }

    /// Delivers the webhook `id`, and returns how long the answer took, milliseconds.
    fn deliver(&mut self, id: &str) -> f64 {
        let Self {
            path, signature, ..
        } = self;
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
             X-Hub-Signature-256: {signature}\r\nX-GitHub-Delivery: {id}\r\nContent-Length: {}\r\n\r\n{BODY}",
            BODY.len()
        );
        let begun = Instant::now();
        let stream = self.stream.get_mut();
        stream.write_all(request.as_bytes()).expect("request");
        let (mut line, mut length) = (String::new(), 0);
        self.stream.read_line(&mut line).expect("status");
        assert!(line.starts_with("HTTP/1.1 20"), "{line}");
        loop {
            line.clear();
            self.stream.read_line(&mut line).expect("field");
            let lower = line.to_ascii_lowercase();
            if let Some(number) = lower.strip_prefix("content-length:") {
                length = number.trim().parse().expect("length");
            }
            if line.trim().is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).expect("body");
        begun.elapsed().as_secs_f64() * 1000.0
    }
}

/// Delivers many webhooks over some connections, and returns the answers in a second.
fn rate(port: u16, path: &'static str, round: usize) -> f64 {
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for connection in 0..CONNECTIONS {
            scope.spawn(move || {
                let mut sender = Sender::connect(port, path);
                for n in (connection..MANY).step_by(CONNECTIONS) {
                    sender.deliver(&format!("{round}-{n}"));
                }
            });
        }
    });
    MANY as f64 / begun.elapsed().as_secs_f64()
}

/// Number of units that have ended in the ledger of the client `who`.
fn ended(state: &Path, who: &str) -> i64 {
    let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
    let ledger = rusqlite::Connection::open_with_flags(state.join(who).join("ledger.db"), flags);
    let sql = "SELECT count(*) FROM unit WHERE ended IS NOT NULL";
    let count = ledger.map(|ledger| ledger.query_row(sql, [], |row| row.get(0)).unwrap_or(0));
    count.unwrap_or(0)
}

/// Webhooks that run `true`: answered, and all of ours run.
pub fn webhooks() {
    if Command::new("webhook").arg("-version").output().is_err() {
        println!("gateway-webhooks: not measured: there is no webhook (apt install webhook)");
        return;
    }
    let dir = tempfile::tempdir().expect("tempdir");
    let persistence = format!(
        "max_queued_messages 1000000\nmax_inflight_messages 1000\nset_tcp_nodelay true\n\
         persistence true\npersistence_location {}/\n",
        dir.path().display()
    );
    let broker = mosquitto_with(&persistence);
    let home = state();
    let secret = dir.path().join("secret");
    fs::write(&secret, SECRET).expect("secret");
    let route = |name: &str, target: &str| {
        format!(
            "[[route]]\nname = \"{name}\"\npath = \"/hooks/{name}\"\nsource = \"github\"\n\
             secret-file = \"{}\"\n{target}\nmap.commit = {{ json = \"after\" }}\n",
            secret.display()
        )
    };
    let routes =
        route("topic", "topic = \"bench/hook\"") + &route("work", "work = \"localhost/true\"");
    let config = dir.path().join("gateway.toml");
    fs::write(&config, routes).expect("routes");
    let types = "[[work]]\ntype = \"true\"\ncommand = \"true\"\njobs = 8\nqueue = 100000\n\
        [[trigger]]\nname = \"hook\"\ntopic = \"bench/hook\"\nwhen = []\ncommand = \"true\"\njobs = 8\n";
    let client = dir.path().join("client.toml");
    fs::write(&client, types).expect("types");
    let mut command = Command::new(crate::ours("client"));
    command
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("STATE_DIRECTORY", &home)
        .args(["--who", "bench", "--root", "bench", "--log", "none"])
        // More than all of them, which are counted.
        .args(["--keep-units", "100000"])
        .args([
            "-H",
            "127.0.0.1",
            "-p",
            &broker.port.to_string(),
            "--config",
        ])
        .arg(&client);
    let _client = spawn(&mut command);
    let port = free_port();
    let options = [
        "--no-page",
        "--need-listener",
        "--allow-work",
        "localhost/true",
        "--config",
        config.to_str().expect("path"),
    ];
    let _gateway = gateway(&broker, &home, port, &options);
    let hooks = dir.path().join("hooks.json");
    let hook = serde_json::json!([{
        "id": "bench", "execute-command": "/bin/true", "trigger-rule": {"match": {
            "type": "payload-hmac-sha256", "secret": SECRET,
            "parameter": {"source": "header", "name": "X-Hub-Signature-256"},
        }},
    }]);
    fs::write(&hooks, hook.to_string()).expect("hooks");
    let theirs = free_port();
    let mut command = Command::new("webhook");
    command
        .args(["-ip", "127.0.0.1", "-port", &theirs.to_string(), "-hooks"])
        .arg(&hooks);
    let _webhook = spawn(command.stderr(Stdio::null()));
    while TcpStream::connect(("127.0.0.1", theirs)).is_err() {
        std::thread::sleep(Duration::from_millis(10));
    }
    let contestants = [
        ("webhook", theirs, "/hooks/bench"),
        ("tael gateway, topic", port, "/hooks/topic"),
        ("tael gateway, work", port, "/hooks/work"),
    ];
    // Until the client is there.
    wait_for_client(port);
    let mut senders = contestants.map(|(_, port, path)| Sender::connect(port, path));
    let mut times = [const { Vec::new() }; 3];
    for n in 0..ALONE {
        for (times, sender) in times.iter_mut().zip(&mut senders) {
            std::thread::sleep(Duration::from_millis(2));
            times.push(sender.deliver(&format!("alone-{n}")));
        }
    }
    let mut rates = [const { Vec::new() }; 3];
    let mut all = Vec::new();
    for round in 0..ROUNDS {
        for (rates, (name, port, path)) in rates.iter_mut().zip(contestants) {
            let before = ended(&home, "bench");
            let begun = Instant::now();
            rates.push(rate(port, path, round));
            if name == "webhook" {
                // Its processes end before the next one begins.
                std::thread::sleep(Duration::from_secs(1));
                continue;
            }
            let wanted = before + i64::try_from(MANY).expect("number");
            let deadline = Instant::now() + Duration::from_secs(60);
            while ended(&home, "bench") < wanted {
                assert!(Instant::now() < deadline, "some have not run");
                std::thread::sleep(Duration::from_millis(10));
            }
            all.push(MANY as f64 / begun.elapsed().as_secs_f64());
        }
    }
    let mut medians = Vec::new();
    for ((name, ..), (times, rates)) in contestants.iter().zip(times.iter_mut().zip(&mut rates)) {
        let (ms, rate) = (median(times), median(rates));
        println!(
            "{name}: {ms:.2} ms to an answer (95 %: {:.2}), {rate:.0} answers a second on {CONNECTIONS} connections",
            times[ALONE * 95 / 100]
        );
        medians.push((ms, rate));
    }
    println!("  ours that have run: {:.0} a second", median(&mut all));
    for (what, (ms, rate)) in ["topic", "work"].iter().zip(&medians[1..]) {
        println!(
            "  ratio to webhook, {what}: {:.2} of its time, {:.2} of its rate",
            ms / medians[0].0,
            rate / medians[0].1
        );
    }
}

/// Waits until a client answers for work.
fn wait_for_client(port: u16) {
    let request =
        "POST /w/localhost/true?wait=1m HTTP/1.0\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n";
    loop {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("connect");
        stream.write_all(request.as_bytes()).expect("request");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("answer");
        if text.contains("\"succeeded\"") {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Memory of a process, KiB (`proc_pid_status(5)`).
fn resident(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    let line = text.lines().find(|line| line.starts_with("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().nth(1));
    number
        .and_then(|number| number.parse().ok())
        .expect("memory")
}

/// Processor time of all threads of a process, seconds.
fn seconds(pid: u32) -> f64 {
    cpu_of_threads(pid).iter().map(|(_, time)| time).sum()
}

/// Publishes the messages, and returns the processor time of the gateway for each, microseconds, when `seen`
/// of them have come.
fn told(publisher: &Publisher, gateway: &Guard, done: impl Fn() -> bool) -> f64 {
    let before = seconds(gateway.0.id());
    for n in 0..MESSAGES {
        let payload = format!(r#"{{"status":"finished","sample":"S{n}"}}"#);
        let sent = publisher
            .client
            .publish("bench/seq/status", QoS::AtMostOnce, false, payload);
        publisher.runtime.block_on(sent).expect("publish");
        std::thread::sleep(PACE);
    }
    let deadline = Instant::now() + Duration::from_secs(30);
    while !done() {
        assert!(Instant::now() < deadline, "some messages have not come");
        std::thread::sleep(Duration::from_millis(5));
    }
    (seconds(gateway.0.id()) - before) * 1e6 / MESSAGES as f64
}

/// The page in 200 browsers: memory, and processor time for a message.
pub fn streams() {
    let broker = mosquitto();
    let home = state();
    let port = free_port();
    let gateway = gateway(&broker, &home, port, &[]);
    let publisher = Publisher::new(broker.port);
    // Without a reader a message is taken, and told to none.
    let rest = || std::thread::sleep(Duration::from_millis(300));
    rest();
    let idle = resident(gateway.0.id());
    let pause = Instant::now();
    let without = told(&publisher, &gateway, || pause.elapsed() > PACE * 1000);
    let counts: Arc<Vec<AtomicUsize>> =
        Arc::new((0..BROWSERS).map(|_| AtomicUsize::new(0)).collect());
    let begun = Arc::new(AtomicUsize::new(0));
    let runtime = Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("runtime");
    let began = || begun.load(Ordering::Relaxed);
    for n in 0..BROWSERS {
        let (counts, begun) = (Arc::clone(&counts), Arc::clone(&begun));
        runtime.spawn(async move {
            let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port))
                .await
                .expect("connect");
            let request = "GET /api/stream HTTP/1.1\r\nHost: localhost\r\n\r\n";
            tokio::io::AsyncWriteExt::write_all(&mut stream, request.as_bytes())
                .await
                .expect("request");
            let (mut bytes, mut line) = (vec![0; 64 * 1024], Vec::new());
            loop {
                let count = stream.read(&mut bytes).await.expect("events");
                assert!(count > 0, "the stream has ended");
                for byte in &bytes[..count] {
                    if *byte != b'\n' {
                        line.push(*byte);
                        continue;
                    }
                    match line.trim_ascii() {
                        b"event: message" => drop(counts[n].fetch_add(1, Ordering::Relaxed)),
                        b"event: network" => drop(begun.fetch_add(1, Ordering::Relaxed)),
                        b"event: dropped" => panic!("a reader was too slow"),
                        _ => {}
                    }
                    line.clear();
                }
            }
        });
        // One after another: the gateway has 64 places for those that do not stream yet.
        while began() <= n {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    rest();
    let open = resident(gateway.0.id());
    let all = || {
        counts
            .iter()
            .all(|count| count.load(Ordering::Relaxed) >= MESSAGES)
    };
    let with = told(&publisher, &gateway, all);
    let after = resident(gateway.0.id());
    println!("a gateway without readers: {idle} KiB, {without:.0} µs of processor time a message");
    println!(
        "{BROWSERS} browsers: {open} KiB, after {MESSAGES} messages {after} KiB ({:.1} KiB each); \
         {with:.0} µs a message, {:.2} µs for each browser",
        (after.saturating_sub(idle)) as f64 / BROWSERS as f64,
        (with - without) / BROWSERS as f64
    );
}
