//! Bytes through a pair, against the programs of mosquitto and a PAIR of ZeroMQ.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::{Guard, Mosquitto, median, mosquitto};

/// Bytes that go through.
const BYTES: usize = 100_000_000;

/// Bytes of a line for the programs of mosquitto, which pass lines on: as many as a message of a pair
/// has.
const LINE: usize = 16 * 1024;

/// Rounds of each contestant, in turn with the others.
const ROUNDS: usize = 3;

/// Number of empty pairs, for the time until two ends are one.
const EMPTY: usize = 20;

/// Returns how to start the program of this folder; `None`, and says so, without pyzmq.
fn zmq(role: &str, address: &str) -> Option<Command> {
    let installed = concat!(env!("CARGO_TARGET_TMPDIR"), "/../paho/bin/python");
    let python = match Path::new(installed).exists() {
        true => installed,
        false => "python3",
    };
    let imported = Command::new(python).args(["-c", "import zmq"]).output();
    if !imported.is_ok_and(|output| output.status.success()) {
        println!("pair: not measured beside ZeroMQ: {python} has no zmq (pip install pyzmq)");
        return None;
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/pair/zmq_pair.py");
    let mut command = Command::new(python);
    command.arg(path).args([role, address]);
    Some(command)
}

fn end(broker: &Mosquitto) -> Command {
    let mut end = Command::new(env!("CARGO_BIN_EXE_tael"));
    end.env_clear()
        .env("PATH", "/usr/bin:/bin")
        .args(["pair", "bench", "--root", "bench"])
        .args(["-H", "127.0.0.1", "-p", &broker.port.to_string()]);
    end
}

fn programs(broker: &Mosquitto) -> [Command; 2] {
    let program = |name: &str| {
        let mut command = Command::new(name);
        command.args([
            "-p",
            &broker.port.to_string(),
            "-q",
            "1",
            "-t",
            "bench/lines",
        ]);
        command
    };
    let (mut from, mut to) = (program("mosquitto_pub"), program("mosquitto_sub"));
    from.arg("-l");
    to.args(["-C", &(BYTES / LINE).to_string()]);
    [from, to]
}

fn start(command: &mut Command, input: Stdio) -> Child {
    command
        .stdin(input)
        .stdout(Stdio::piped())
        .process_group(0)
        .spawn()
        .unwrap_or_else(|e| panic!("{command:?}: {e}"))
}

/// Sends the bytes from `from` to `to`, which is started first. Returns the seconds from the first byte
/// in to the last byte out.
fn through(mut from: Command, mut to: Command) -> f64 {
    let mut to = start(&mut to, Stdio::null());
    let mut output = to.stdout.take().expect("stdout");
    let to = Guard(to);
    // Both are connected: nothing is lost, and only the bytes are measured.
    std::thread::sleep(Duration::from_secs(1));
    let mut from = start(&mut from, Stdio::piped());
    let mut input = from.stdin.take().expect("stdin");
    std::thread::sleep(Duration::from_secs(1));
    let begun = Instant::now();
    let writer = std::thread::spawn(move || {
        let mut line = vec![b'x'; LINE - 1];
        line.push(b'\n');
        for _ in 0..BYTES / LINE {
            input.write_all(&line).expect("write");
        }
    });
    let (mut buffer, mut count) = (vec![0; 1 << 16], 0);
    loop {
        match output.read(&mut buffer).expect("read") {
            0 => break,
            more => count += more,
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    assert_eq!(count, BYTES / LINE * LINE);
    writer.join().expect("writer");
    assert!(from.wait().expect("wait").success());
    drop(to);
    seconds
}

/// Bytes one way, and the time until two ends are a pair.
pub fn pairs() {
    let broker = mosquitto();
    let mut seconds = [const { Vec::new() }; 3];
    for _ in 0..ROUNDS {
        seconds[0].push(through(end(&broker), end(&broker)));
        let [from, to] = programs(&broker);
        seconds[1].push(through(from, to));
        let port = TcpListener::bind("127.0.0.1:0").expect("bind");
        let address = format!("tcp://{}", port.local_addr().expect("address"));
        drop(port);
        if let (Some(from), Some(to)) = (zmq("send", &address), zmq("receive", &address)) {
            seconds[2].push(through(from, to));
        }
    }
    let rates = seconds.map(|mut list| match list.is_empty() {
        true => f64::NAN,
        false => (BYTES / LINE * LINE) as f64 / 1e6 / median(&mut list),
    });
    let [ours, mosquitto, zmq] = rates;
    println!(
        "pair: {ours:.0} MB/s, {:.2} of mosquitto_pub -l | mosquitto_sub ({mosquitto:.0}), \
         {:.2} of ZeroMQ's PAIR without a broker ({zmq:.0})",
        ours / mosquitto,
        ours / zmq
    );
    let mut times = Vec::new();
    for _ in 0..EMPTY {
        let begun = Instant::now();
        let mut ends = [(); 2].map(|()| Guard(start(&mut end(&broker), Stdio::null())));
        for end in &mut ends {
            assert!(end.0.wait().expect("wait").success());
        }
        times.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    println!(
        "pair: {:.0} ms for two ends to start at one instant, become a pair and end",
        median(&mut times)
    );
}
