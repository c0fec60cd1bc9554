//! Work queues on RabbitMQ: a queue that is worked off, against `amqp-consume`, and messages that are
//! pushed, against pika.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::rabbit::{Rabbit, Vhost};
use crate::{Guard, Mosquitto, median, mosquitto, ours, spawn, state};

/// Number of messages of a round.
const MESSAGES: u64 = 2000;

/// Rounds of each contestant, in turn with the others.
const ROUNDS: usize = 3;

/// Returns a broker; `None`, and says so, without one.
fn rabbit(part: &str) -> Option<Rabbit> {
    let rabbit = Rabbit::own();
    if rabbit.is_none() {
        println!("{part}: not measured: rabbitmq-server is not installed");
    }
    rabbit
}

/// Returns the bodies of the messages, a line each: 200 bytes.
fn bodies() -> String {
    (0..MESSAGES)
        .map(|n| format!("{{\"n\":\"{n:04}\",\"sample\":\"{:0>176}\"}}\n", n))
        .collect()
}

/// Runs `command` with the bodies on its standard input. It must succeed.
fn fed(command: &mut Command) -> f64 {
    let start = Instant::now();
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("spawn");
    let mut stdin = child.stdin.take().expect("stdin");
    stdin.write_all(bodies().as_bytes()).expect("write");
    drop(stdin);
    assert!(child.wait().expect("wait").success(), "{command:?}");
    start.elapsed().as_secs_f64()
}

/// Returns `tael queue push` of lines to the queue `q`.
fn push(vhost: &Vhost<'_>) -> Command {
    let mut push = Command::new(env!("CARGO_BIN_EXE_tael"));
    push.env_clear()
        .env("PATH", "/usr/bin:/bin")
        .args(["queue", "push", &vhost.url("q"), "-l"])
        .args(["--queue-password-file", &vhost.rabbit.password_file()]);
    push
}

/// Waits until no message waits, and none is held.
fn until_empty(vhost: &Vhost<'_>) {
    loop {
        let counts = vhost.counts("q");
        if counts.ready + counts.unacked == 0 {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Starts `amqp-consume`, which hands each message to `/bin/cat`.
fn consume(vhost: &Vhost<'_>, prefetch: &str) -> Guard {
    let mut consume = Command::new("amqp-consume");
    consume
        .args(["-u", &vhost.open_url(), "-q", "q", "-p", prefetch])
        .args(["--", "/bin/cat"])
        // It complains when it is ended.
        .stderr(Stdio::null());
    spawn(&mut consume)
}

/// Starts a client that does the same, and acknowledges when the run has ended.
fn client(vhost: &Vhost<'_>, mqtt: &Mosquitto, home: &Path, jobs: &str) -> Guard {
    let mut client = Command::new(ours("client"));
    client
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("STATE_DIRECTORY", home)
        .args(["--who", "bench", "--root", "bench", "--log", "none"])
        .args(["-H", "127.0.0.1", "-p", &mqtt.port.to_string()])
        .args(["--queue", &vhost.url("q"), "--settle", "done"])
        .args(["--queue-password-file", &vhost.rabbit.password_file()])
        .args(["--jobs", jobs, "--no-shell", "-c", "/bin/cat"]);
    spawn(&mut client)
}

/// Works a queue of 2,000 messages off, one and four at a time: from the start of the workers until
/// all is acknowledged.
pub fn work() {
    let Some(rabbit) = rabbit("queue-work") else {
        return;
    };
    let (vhost, mqtt) = (rabbit.vhost(), mosquitto());
    vhost.declare_quorum("q");
    for jobs in [1, 4] {
        let mut seconds = [const { Vec::new() }; 2];
        for _ in 0..ROUNDS {
            for (ours, seconds) in seconds.iter_mut().enumerate() {
                fed(&mut push(&vhost));
                let start = Instant::now();
                let workers: Vec<Guard> = match ours {
                    0 if jobs == 1 => vec![consume(&vhost, "50")],
                    0 => (0..jobs).map(|_| consume(&vhost, "1")).collect(),
                    _ => vec![client(&vhost, &mqtt, &state(), &jobs.to_string())],
                };
                until_empty(&vhost);
                seconds.push(start.elapsed().as_secs_f64());
                drop(workers);
            }
        }
        let [theirs, ours] = seconds.map(|mut list| MESSAGES as f64 / median(&mut list));
        println!(
            "queue, {jobs} at a time: {ours:.0} messages a second, {:.2} of amqp-consume x{jobs} ({theirs:.0})",
            ours / theirs
        );
    }
}

/// Pushes 2,000 lines, each confirmed: from the start of the program to its end.
pub fn pushes() {
    let Some(rabbit) = rabbit("queue-push") else {
        return;
    };
    let vhost = rabbit.vhost();
    vhost.declare_quorum("q");
    let mut seconds = [const { Vec::new() }; 2];
    for _ in 0..ROUNDS {
        let Some(mut pika) = vhost.script("pika_publisher.py") else {
            return println!("queue-push: not measured: pika is not installed (.ci/rabbitmq)");
        };
        seconds[0].push(fed(pika.arg("q")));
        assert_eq!(vhost.counts("q").ready, MESSAGES);
        vhost.purge("q");
        seconds[1].push(fed(&mut push(&vhost)));
        assert_eq!(vhost.counts("q").ready, MESSAGES);
        vhost.purge("q");
    }
    let [theirs, ours] = seconds.map(|mut list| MESSAGES as f64 / median(&mut list));
    println!(
        "queue push: {ours:.0} confirmed messages a second, {:.1} of pika ({theirs:.0})",
        ours / theirs
    );
}
