//! Requests: a question against `mosquitto_rr`, questions over one connection against paho, and a batch
//! on four workers against ZeroMQ.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Lines, Write};
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Packet, PublishProperties};
use rumqttc::v5::{AsyncClient, Event};
use tokio::runtime::Builder;

use crate::{Guard, Mosquitto, median, mosquitto, options, ours, spawn, state, this};

const ASK: &str = "bench/ask";
const TASKS: &str = "bench/tasks";

/// Number of questions of each contestant, in turn with the others.
const QUESTIONS: usize = 200;

/// Rounds of each batch, in turn with the others.
const ROUNDS: usize = 5;

/// Number of tasks of a batch.
const BATCH: usize = 100;

/// Time for those who do not say when they are connected.
const CONNECT: Duration = Duration::from_secs(1);

/// Longest wait for the next result of a batch.
const PATIENCE: Duration = Duration::from_secs(10);

/// Returns the program `script` of this folder; `None`, and says so, if `part` lacks `module`.
fn script(part: &str, module: &str, script: &str) -> Option<Command> {
    let installed = concat!(env!("CARGO_TARGET_TMPDIR"), "/../paho/bin/python");
    let python = match Path::new(installed).exists() {
        true => installed,
        false => "python3",
    };
    let mut import = Command::new(python);
    import.args(["-c", &format!("import {module}")]);
    let output = import.output();
    if !output.is_ok_and(|output| output.status.success()) {
        println!("{part}: not measured: {python} has no {module} (.ci/paho, pip install pyzmq)");
        return None;
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/requests");
    let mut command = Command::new(python);
    command.arg("-u").arg(path.join(script));
    Some(command)
}

/// A process with pipes.
struct Piped {
    stdin: Option<ChildStdin>,
    stdout: Lines<BufReader<ChildStdout>>,
    process: Guard,
}

impl Piped {
    fn start(command: &mut Command) -> Self {
        let piped = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0);
        let mut child = piped.spawn().expect("spawn");
        Self {
            stdin: child.stdin.take(),
            stdout: BufReader::new(child.stdout.take().expect("stdout")).lines(),
            process: Guard(child),
        }
    }

    fn line(&mut self) -> String {
        self.stdout.next().expect("a line").expect("a line")
    }

    fn ready(mut self) -> Self {
        assert_eq!(self.line(), "ready");
        self
    }

    fn write(&mut self, text: &str) {
        let stdin = self.stdin.as_mut().expect("stdin");
        stdin.write_all(text.as_bytes()).expect("write");
    }

    /// Returns the lines as they come, and the process.
    fn lines(self) -> (Receiver<String>, Guard) {
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in self.stdout.map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        (lines, self.process)
    }
}

/// Answers all questions with their payload, at once.
fn respond(port: u16) {
    let (ready, is_ready) = channel();
    let serve = async move {
        let (client, mut eventloop) = AsyncClient::new(options(port, "responder"), 64);
        let subscribed = client.subscribe(ASK, QoS::AtLeastOnce);
        subscribed.await.expect("subscribe");
        while let Ok(event) = eventloop.poll().await {
            match event {
                Event::Incoming(Packet::SubAck(_)) => ready.send(()).expect("ready"),
                Event::Incoming(Packet::Publish(question)) => {
                    let asked = question.properties.expect("a question");
                    let properties = PublishProperties {
                        correlation_data: asked.correlation_data,
                        ..PublishProperties::default()
                    };
                    let topic = asked.response_topic.expect("a question");
                    let (qos, body) = (QoS::AtLeastOnce, question.payload);
                    let answer =
                        client.publish_with_properties(topic, qos, false, body, properties);
                    answer.await.expect("publish");
                }
                _ => {}
            }
        }
    };
    let runtime = Builder::new_current_thread().enable_all().build();
    std::thread::spawn(move || runtime.expect("runtime").block_on(serve));
    is_ready.recv().expect("ready");
}

/// Returns `tael message --reply`.
fn message(broker: &Mosquitto, topic: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(ours("message"));
    command
        .env_clear()
        .args(["-H", "127.0.0.1", "-p", &broker.port.to_string()])
        .args(["-t", topic, "--reply"])
        .args(arguments);
    command
}

/// Prints the two medians.
fn compare(what: &str, theirs: (&str, &mut [f64]), ours: &mut [f64], target: f64) {
    let (name, theirs) = (theirs.0, median(theirs.1));
    let ours = median(ours);
    println!("{what}: {ours:.2} ms, {name}: {theirs:.2} ms");
    println!("  ratio: {:.2} (target {target} or less)", ours / theirs);
}

/// One question, from the start of the program to its end.
pub fn one() {
    let broker = mosquitto();
    respond(broker.port);
    let mut rr = Command::new("mosquitto_rr");
    rr.args(["-h", "127.0.0.1", "-p", &broker.port.to_string()])
        .args(["-V", "5", "-q", "1", "-t", ASK, "-m", "{}"])
        .args(["-e", "bench/infrastructure/replies/rr/1"]);
    let mut contestants = [rr, message(&broker, ASK, &["-m", "{}"])];
    let mut times = [const { Vec::new() }; 2];
    for _ in 0..QUESTIONS {
        for (command, times) in contestants.iter_mut().zip(&mut times) {
            let start = Instant::now();
            let output = command.stdin(Stdio::null()).output().expect("run");
            times.push(start.elapsed().as_secs_f64() * 1000.0);
            assert!(output.status.success() && output.stdout.starts_with(b"{"));
        }
    }
    let [mut theirs, mut ours] = times;
    let theirs = ("mosquitto_rr", &mut theirs[..]);
    compare("tael message --reply", theirs, &mut ours, 1.0);
}

/// One question at a time over an open connection, from a line to its answer.
pub fn open() {
    let broker = mosquitto();
    respond(broker.port);
    let part = "requests-open";
    let Some(mut paho) = script(part, "paho.mqtt", "paho_requester.py") else {
        return;
    };
    paho.arg(broker.port.to_string())
        .args([ASK, "bench/infrastructure/replies/paho/1"]);
    let mut tael = message(&broker, ASK, &["-l"]);
    let mut contestants = [
        Piped::start(&mut paho).ready(),
        Piped::start(tael.stderr(Stdio::null())),
    ];
    let mut times = [const { Vec::new() }; 2];
    for round in 0..QUESTIONS * 5 {
        for (contestant, times) in contestants.iter_mut().zip(&mut times) {
            let start = Instant::now();
            contestant.write("{\"n\":1}\n");
            contestant.line();
            if round > 0 {
                times.push(start.elapsed().as_secs_f64() * 1000.0);
            }
        }
    }
    let [mut theirs, mut ours] = times;
    compare(
        "tael message -l --reply",
        ("paho", &mut theirs[..]),
        &mut ours,
        1.2,
    );
}

/// Returns the milliseconds of each task: 1 to 100, so that each of four has about as much to do.
fn tasks() -> impl Iterator<Item = usize> {
    (0..BATCH).map(|n| n * 37 % BATCH + 1)
}

/// What became of a batch.
struct Done {
    seconds: f64,
    tasks: usize,
}

/// Waits for the results, each a line with the name of its worker, and kills `victim` after five of it.
fn results(start: Instant, lines: &Receiver<String>, victim: Option<(&str, Guard)>) -> Done {
    let (mut tasks, mut of_victim, mut victim) = (0, 0, victim);
    while tasks < BATCH
        && let Ok(line) = lines.recv_timeout(PATIENCE)
    {
        tasks += 1;
        if let Some((name, guard)) = victim.take() {
            of_victim += usize::from(line.contains(name));
            if of_victim < 5 {
                victim = Some((name, guard));
            }
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    Done { seconds, tasks }
}

/// Returns a batch of ZeroMQ, with workers in this `role`.
fn zeromq(part: &str, role: &str, kills: bool) -> Option<Done> {
    let address = || {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        format!("tcp://{}", listener.local_addr().expect("address"))
    };
    let (source, sink) = (address(), address());
    let start = |arguments: &[&str]| {
        let mut command = script(part, "zmq", "zmq_batch.py")?;
        command.args(arguments);
        Some(command)
    };
    let (results_of, _sink) = Piped::start(&mut start(&["sink", &sink])?).ready().lines();
    let mut ventilator = Piped::start(&mut start(&["ventilator", &source])?).ready();
    let mut workers = Vec::new();
    for name in ["worker1", "worker2", "worker3", "worker4"] {
        let arguments = [role, name, &source, &sink, &this()];
        let program = usize::from(role == "starter");
        workers.push(spawn(&mut start(&arguments[..4 + program])?));
    }
    // ZeroMQ does not say when they are connected.
    std::thread::sleep(CONNECT);
    let lines: String = tasks().map(|ms| format!("{ms}\n")).collect();
    let begun = Instant::now();
    ventilator.write(&lines);
    drop(ventilator.stdin.take());
    let victim = kills.then(|| ("worker1", workers.remove(0)));
    Some(results(begun, &results_of, victim))
}

/// Waits until so many clients are online.
fn online(broker: &Mosquitto, count: usize) {
    let mut sub = Command::new("mosquitto_sub");
    sub.args(["-h", "127.0.0.1", "-p", &broker.port.to_string()])
        .args([
            "-t",
            "bench/infrastructure/pipelines/+/presence",
            "-F",
            "%t %p",
        ]);
    let mut sub = Piped::start(&mut sub);
    let mut topics = BTreeSet::new();
    while topics.len() < count {
        let line = sub.line();
        if line.contains("online") {
            topics.insert(line.split(' ').next().map(str::to_owned));
        }
    }
}

/// Returns a batch of ours, whose workers run `command` for each task.
fn batch(command: &str, kills: bool) -> Done {
    let (broker, home) = (mosquitto(), state());
    let mut workers = Vec::new();
    for name in ["worker1", "worker2", "worker3", "worker4"] {
        let mut client = Command::new(ours("client"));
        client
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("STATE_DIRECTORY", &home)
            .args(["--who", name, "--root", "bench", "--log", "none"])
            .args(["-H", "127.0.0.1", "-p", &broker.port.to_string()])
            .args([
                "-t",
                &format!("$share/pool/{TASKS}"),
                "--when",
                "",
                "--reply",
            ])
            .args(["-c", command]);
        workers.push(spawn(&mut client));
    }
    online(&broker, workers.len());
    let line = |ms| format!("{{\"s\":\"{:.3}\"}}\n", ms as f64 / 1000.0);
    let lines: String = tasks().map(line).collect();
    let retries = ["-l", "--timeout", "3s", "--retries", "9"];
    let mut asking = message(&broker, TASKS, &retries);
    let mut asking = Piped::start(asking.stderr(Stdio::null()));
    // It is connected, as theirs are, and does not say so either.
    std::thread::sleep(CONNECT);
    let begun = Instant::now();
    asking.write(&lines);
    drop(asking.stdin.take());
    let (results_of, mut asking) = asking.lines();
    let victim = kills.then(|| ("worker1", workers.remove(0)));
    let done = results(begun, &results_of, victim);
    assert!(asking.0.wait().expect("wait").success());
    done
}

/// A batch of 100 tasks of 1 to 100 ms on four workers, of which one is killed after five the second
/// time. The workers of ZeroMQ wait themselves, as its guide has it, or start the program that ours start.
pub fn batches() {
    let part = "requests-batch";
    let program = format!("{} wait", this());
    // The shell becomes the task.
    let line = "exec sleep $ATTR_S";
    let mut times = [const { Vec::new() }; 4];
    for _ in 0..ROUNDS {
        let (Some(waiting), Some(starting)) = (
            zeromq(part, "worker", false),
            zeromq(part, "starter", false),
        ) else {
            return;
        };
        let all = [
            batch(&program, false),
            waiting,
            starting,
            batch(line, false),
        ];
        for (times, done) in times.iter_mut().zip(all) {
            assert_eq!(done.tasks, BATCH);
            times.push(done.seconds * 1000.0);
        }
    }
    let [mut ours, mut waiting, mut starting, mut shell] = times;
    let what = "100 tasks on four workers";
    let name = "ZeroMQ, whose workers only wait";
    compare(what, (name, &mut waiting[..]), &mut ours, 1.05);
    let through = "100 tasks on four workers, each a line for sh";
    compare(through, (name, &mut waiting[..]), &mut shell, 1.1);
    let name = "ZeroMQ, whose workers start the same program";
    compare(what, (name, &mut starting[..]), &mut ours, 1.05);
    let Some(theirs) = zeromq(part, "worker", true) else {
        return;
    };
    let ours = batch(&program, true);
    println!(
        "the same, one of them killed after five: {} answered in {:.1} s; ZeroMQ {}, and waits for the others",
        ours.tasks, ours.seconds, theirs.tasks
    );
    assert_eq!(ours.tasks, BATCH);
}
