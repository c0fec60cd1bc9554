//! `tael gateway`: requests of each kind that were accepted run once, while the gateway, the client or the
//! broker is killed. Work has tests of its own.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::ops::Range;
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::json;

use crate::common::gateway::{Answer, Gateway, post};
use crate::common::rabbit::Rabbit;
use crate::common::{PATIENCE, Process, Setup, World, wait_until};
use crate::gateway_routes::{config, hub};

/// Number of requests while one of them is killed.
const REQUESTS: usize = 30;

/// A command that notes the number of its event.
const NOTE: &str = "echo $ATTR_N >>$OUT/ran";

/// What becomes of a request that is sent once.
#[derive(Debug, PartialEq, Eq)]
enum Sent {
    Accepted,
    Refused,
    /// The gateway has gone before it answered.
    Unknown,
}

/// Returns whether an answer accepts its request.
fn is_accepted(text: &str) -> bool {
    text.contains("\r\n\r\n")
        && match Answer::parse(text) {
            answer if answer.status == 200 => answer.body.contains("<boolean>1</boolean>"),
            answer => answer.status == 202,
        }
}

/// Sends a request once; waits before that until the gateway is there.
#[track_caller]
fn send(address: &str, request: &str) -> Sent {
    let mut stream = None;
    wait_until("the gateway is there", || {
        stream = TcpStream::connect(address).ok();
        stream.is_some()
    });
    let mut stream = stream.expect("stream");
    stream.set_read_timeout(Some(PATIENCE)).expect("timeout");
    let mut bytes = Vec::new();
    let written = stream.write_all(request.as_bytes());
    let _ = written.and_then(|()| stream.read_to_end(&mut bytes).map(drop));
    let text = String::from_utf8_lossy(&bytes);
    match text.contains("\r\n\r\n") {
        true if is_accepted(&text) => Sent::Accepted,
        true => Sent::Refused,
        false => Sent::Unknown,
    }
}

/// Sends a request until it is accepted.
#[track_caller]
fn insist(address: &str, request: &str) {
    wait_until("the request is accepted", || {
        let sent = send(address, request);
        if sent != Sent::Accepted {
            thread::sleep(Duration::from_millis(20));
        }
        sent == Sent::Accepted
    });
}

/// Sends requests, and kills something when some of them have run.
#[track_caller]
fn meanwhile<T: Send>(
    world: &World,
    numbers: Range<usize>,
    each: impl Fn(usize) -> T + Send,
    kill: impl FnOnce(),
) -> Vec<T> {
    let before = world.lines("ran").len();
    thread::scope(|scope| {
        let sending = scope.spawn(move || numbers.map(each).collect());
        wait_until("some have run", || world.lines("ran").len() > before + 3);
        kill();
        sending.join().expect("requests")
    })
}

fn kill(process: &mut Process) {
    process.signal(Signal::SIGKILL);
    process.wait();
}

/// Waits until all of `wanted` and the last one have run, and checks that each has run once.
#[track_caller]
fn once_each(world: &World, last: usize, wanted: impl IntoIterator<Item = usize>) {
    let wanted: BTreeSet<usize> = wanted.into_iter().chain([last]).collect();
    let ran = || -> Vec<usize> {
        let lines = world.lines("ran").into_iter();
        lines.map(|line| line.parse().expect("number")).collect()
    };
    wait_until("all have run", || {
        let ran: BTreeSet<usize> = ran().into_iter().collect();
        wanted.is_subset(&ran)
    });
    let mut ran = ran();
    ran.sort_unstable();
    assert_eq!(ran, wanted.into_iter().collect::<Vec<_>>());
}

fn persistent() -> World {
    World::with(Setup {
        persistent: true,
        ..Setup::default()
    })
}

fn client(world: &World, topic: &str) -> Process {
    world.client("p", &["-t", topic, "--when", "", "-c", NOTE, "--jobs", "8"])
}

/// Returns a call of `handleEvent`, with a key if the caller has one.
fn call(name: &str, n: usize, key: Option<&str>) -> String {
    let body = format!(
        "<methodCall><methodName>workflowmgr.handleEvent</methodName><params><param><value>{name}\
         </value></param><param><value><struct><member><name>n</name><value>{n}</value></member>\
         </struct></value></param></params></methodCall>"
    );
    let key = key.map(|key| ("Idempotency-Key", key));
    let fields: Vec<_> = [("Content-Type", "text/xml")]
        .into_iter()
        .chain(key)
        .collect();
    post("/RPC2", &fields, &body)
}

/// Has each kind of request of a topic accepted while gateway, client and broker are killed.
#[track_caller]
fn through_kills(
    topic: &str,
    options: &[&str],
    mut world: World,
    request: impl Fn(usize) -> String + Sync,
) {
    let mut client = client(&world, topic);
    let mut gateway = Gateway::online(&world, options);
    let address = gateway.address.clone();
    let each = |n: usize| insist(&address, &request(n));
    meanwhile(&world, 0..REQUESTS, each, || {
        kill(&mut gateway.process);
        gateway = Gateway::on(&world, &address, options);
    });
    meanwhile(&world, REQUESTS..2 * REQUESTS, each, || {
        kill(&mut client);
        client = self::client(&world, topic);
    });
    let all = 2 * REQUESTS..3 * REQUESTS;
    let before = world.lines("ran").len();
    thread::scope(|scope| {
        let numbers = all.clone();
        let sending = scope.spawn(move || numbers.for_each(each));
        let ran = world.path("ran");
        wait_until("some have run", || {
            let text = std::fs::read_to_string(&ran).unwrap_or_default();
            text.lines().count() > before + 3
        });
        world.broker.kill();
        world.broker.restart();
        sending.join().expect("requests");
    });
    // A broker that is killed may forget what it has acknowledged.
    all.for_each(each);
    // And senders may send all again.
    (0..REQUESTS).for_each(each);
    let last = 3 * REQUESTS;
    each(last);
    once_each(&world, last, 0..last);
    gateway.process.stop();
    client.stop();
}

#[test]
fn a_webhook_without_an_answer_is_sent_again_and_runs_once_through_kills() {
    const ROUTE: &str = "[[route]]\nname = \"hook\"\npath = \"/hooks/x\"\nsource = \"github\"\n\
        secret-file = \"SECRET/hub\"\ntopic = \"lab/hook\"\n";
    let world = persistent();
    let config = config(&world, ROUTE);
    through_kills("lab/hook", &["--config", &config], world, |n| {
        let body = json!({ "n": n }).to_string();
        let (signature, id) = (hub(&body), format!("d-{n}"));
        let fields = [
            ("X-Hub-Signature-256", signature.as_str()),
            ("X-GitHub-Delivery", &id),
        ];
        post("/hooks/x", &fields, &body)
    });
}

#[test]
fn a_call_with_a_key_runs_once_through_kills() {
    let options = ["--events", "lab/events"];
    through_kills("lab/events/align", &options, persistent(), |n| {
        call("align", n, Some(&format!("k-{n}")))
    });
}

#[test]
fn a_call_that_was_true_runs_once_through_kills_and_others_at_most_once() {
    let world = persistent();
    let options = ["--events", "lab/events"];
    let mut client = client(&world, "lab/events/align");
    let mut gateway = Gateway::online(&world, &options);
    let address = gateway.address.clone();
    // Clients of OODT have no key, and do not send again.
    let each = |n: usize| (n, send(&address, &call("align", n, None)));
    let mut sent = meanwhile(&world, 0..REQUESTS, each, || {
        kill(&mut gateway.process);
        gateway = Gateway::on(&world, &address, &options);
    });
    gateway.wait_health(200);
    sent.extend(meanwhile(&world, REQUESTS..2 * REQUESTS, each, || {
        kill(&mut client);
        client = self::client(&world, "lab/events/align");
    }));
    let last = 2 * REQUESTS;
    insist(&address, &call("align", last, None));
    let accepted = || sent.iter().filter(|(_, sent)| *sent == Sent::Accepted);
    assert!(accepted().count() > REQUESTS, "{sent:?}");
    wait_until("the last and all accepted have run", || {
        let ran = world.lines("ran");
        let mut wanted = accepted().map(|(n, _)| *n).chain([last]);
        wanted.all(|n| ran.contains(&n.to_string()))
    });
    let ran = world.lines("ran");
    for (n, sent) in &sent {
        let count = ran.iter().filter(|line| **line == n.to_string()).count();
        match sent {
            Sent::Accepted => assert_eq!(count, 1, "{n}"),
            Sent::Unknown => assert!(count <= 1, "{n}"),
            // It was published for the broker to refuse, or not at all.
            Sent::Refused => assert!(count <= 1, "{n}"),
        }
    }
    gateway.process.stop();
    client.stop();
}

#[test]
fn a_message_for_a_queue_runs_once_through_kills() {
    let Some(rabbit) = Rabbit::own() else { return };
    let (world, vhost) = (World::new(), rabbit.vhost());
    vhost.declare_quorum("q");
    let options = ["--allow-queue", "q"];
    let start = |address: &str| {
        let url = vhost.url("q");
        let (broker, _) = url.rsplit_once('/').expect("URL");
        let mut command = world.tael(["gateway", "--root", "lab", "--listen", address]);
        command
            .args(["--rate", "0", "--timeout", "5s"])
            .args(options)
            .env("TAEL_QUEUE_BROKER", broker)
            .env("TAEL_QUEUE_PASSWORD", rabbit.password());
        Gateway::listening(world.spawn(command))
    };
    let mut worker = vhost.worker(&world, "w", "q", &["-c", NOTE, "--jobs", "8"]);
    let mut gateway = start("127.0.0.1:0");
    let address = gateway.address.clone();
    // By a path, and as an event of a workflow.
    let request = |n: usize| {
        let key = format!("k-{n}");
        match n % 2 {
            0 => post(
                "/q/q",
                &[("Idempotency-Key", &key)],
                &json!({ "n": n }).to_string(),
            ),
            _ => call("q", n, Some(&key)),
        }
    };
    let each = |n: usize| insist(&address, &request(n));
    meanwhile(&world, 0..REQUESTS, each, || {
        kill(&mut gateway.process);
        gateway = start(&address);
    });
    meanwhile(&world, REQUESTS..2 * REQUESTS, each, || {
        kill(&mut worker);
        worker = vhost.worker(&world, "w", "q", &["-c", NOTE, "--jobs", "8"]);
    });
    meanwhile(&world, 2 * REQUESTS..3 * REQUESTS, each, || {
        rabbit.kill9();
        rabbit.restart();
    });
    // Senders may send again what they have an answer for.
    (0..REQUESTS).for_each(each);
    let last = 3 * REQUESTS;
    each(last);
    once_each(&world, last, 0..last);
    vhost.wait_counts("q", 0, 0);
    gateway.process.stop();
    worker.stop();
}
