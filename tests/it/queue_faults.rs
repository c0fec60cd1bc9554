//! Queues of RabbitMQ while hosts, links and brokers fail.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::common::proxy::Proxy;
use crate::common::rabbit::{Rabbit, Vhost};
use crate::common::{PATIENCE, Process, World, json_of, ran, wait_until};
use crate::faults::{Tmpfs, can_run};

/// A command that records its start, works until there is a file, and records its end.
const UNTIL_GO: &str = r#"echo "$ATTR_SAMPLE $TAEL_WHO $TAEL_FENCE" >> "$OUT/runs"
until [ -e "$OUT/go" ]; do sleep 0.02; done; echo "$ATTR_SAMPLE" >> "$OUT/ends""#;

/// A command that works for a random time of less than 300 ms.
const SHORT: &str = r#"echo "$ATTR_SAMPLE $TAEL_WHO $TAEL_FENCE" >> "$OUT/runs"
sleep "0.$(od -An -N1 -tu1 /dev/urandom | tr -d ' ')"; echo "$ATTR_SAMPLE" >> "$OUT/ends""#;

/// Time that an unknown message that comes again waits, in these tests.
const GRACE: Duration = Duration::from_millis(2500);

/// A host: a pipeline with a state folder of its own, and a link to the broker that can be cut.
struct Host<'a> {
    world: &'a World,
    vhost: &'a Vhost<'a>,
    who: &'static str,
    link: Proxy,
    arguments: Vec<&'static str>,
}

impl<'a> Host<'a> {
    fn new(
        world: &'a World,
        vhost: &'a Vhost<'a>,
        who: &'static str,
        arguments: &[&'static str],
    ) -> Self {
        Self {
            world,
            vhost,
            who,
            link: Proxy::new(vhost.rabbit.port()),
            arguments: arguments.to_vec(),
        }
    }

    fn command(&self) -> Command {
        let url = self.vhost.url_at(self.link.port(), "tael", "q");
        let (vhost, world) = (self.vhost, self.world);
        let mut command = vhost.worker_command(world, self.who, &url, &self.arguments);
        command.env("TAEL_TEST_QUEUE_GRACE", GRACE.as_millis().to_string());
        command
    }

    /// Starts its client.
    #[track_caller]
    fn start(&self) -> Process {
        self.world.online(self.who, self.command())
    }

    /// Waits until it takes from the queue, or does not.
    #[track_caller]
    fn takes(&self, online: bool) {
        self.world.wait_report(self.who, "/queues/0/online", online);
    }
}

fn publish(vhost: &Vhost<'_>, sample: &str, properties: &Value) {
    let body = json!({"sample": sample}).to_string();
    vhost.publish("q", body, properties);
}

fn with_id() -> Value {
    json!({"message_id": ulid::Ulid::generate().to_string()})
}

#[test]
fn a_broker_that_dies_loses_no_message_and_repeats_no_run() {
    let Some(rabbit) = Rabbit::own() else { return };
    for (settle, quorum) in [
        ("accept", false),
        ("accept", true),
        ("done", false),
        ("done", true),
    ] {
        let (vhost, world) = (rabbit.vhost(), World::new());
        match quorum {
            true => vhost.declare_quorum("q"),
            false => vhost.declare("q"),
        }
        for n in 0..8 {
            let properties = if n % 2 == 0 { with_id() } else { json!({}) };
            publish(&vhost, &n.to_string(), &properties);
        }
        let options = ["--settle", settle, "--jobs", "3", "-c", UNTIL_GO];
        let host = Host::new(&world, &vhost, "w", &options);
        let client = host.start();
        world.wait_lines("runs", 3);
        rabbit.kill9();
        host.takes(false);
        rabbit.restart();
        host.takes(true);
        publish(&vhost, "sentinel", &with_id());
        world.file("go", "");
        let ends = world.wait_lines("ends", 9);
        vhost.wait_counts("q", 0, 0);
        assert_eq!(world.lines("runs").len(), 9, "{ends:?}");
        client.stop();
    }
}

#[test]
fn messages_outlast_a_disk_that_is_full_for_a_while() {
    let Some(rabbit) = Rabbit::shared() else {
        return;
    };
    if !can_run("a disk is full", "mount") {
        return;
    }
    for settle in ["accept", "done"] {
        let (vhost, world) = (rabbit.vhost(), World::new());
        vhost.declare_quorum("q");
        let state = world.state();
        let _tmpfs = Tmpfs::mount(&state, "4m");
        let host = Host::new(&world, &vhost, "a", &["--settle", settle, "-c", SHORT]);
        let client = host.start();
        publish(&vhost, "before", &with_id());
        world.wait_lines("ends", 1);
        let filler = state.join("filler");
        let mut dd = Command::new("dd");
        dd.args(["if=/dev/zero", "bs=4k"]);
        let _ = ran(dd.arg(format!("of={}", filler.display())));
        for n in 0..10 {
            let properties = if n % 2 == 0 { with_id() } else { json!({}) };
            publish(&vhost, &n.to_string(), &properties);
        }
        wait_until("the client says so", || {
            let log = client.log_text();
            log.contains("cannot write to the ledger")
                || log.contains("runs wait until that passes")
        });
        fs::remove_file(&filler).expect("remove");
        world.wait_lines("ends", 11);
        vhost.wait_counts("q", 0, 0);
        publish(&vhost, "sentinel", &with_id());
        let ends = world.wait_lines("ends", 12);
        let samples: BTreeSet<&String> = ends.iter().collect();
        assert_eq!((ends.len(), samples.len()), (12, 12), "{ends:?}");
        assert_eq!(world.lines("runs").len(), 12);
        client.stop();
    }
}

/// Returns two hosts, of which the first runs a message.
fn two_hosts<'a>(world: &'a World, vhost: &'a Vhost<'a>) -> [Host<'a>; 2] {
    vhost.declare_quorum("q");
    let options = ["--settle", "done", "-c", UNTIL_GO];
    ["a", "b"].map(|who| Host::new(world, vhost, who, &options))
}

#[test]
fn a_host_that_comes_back_in_time_keeps_its_run() {
    let Some(rabbit) = Rabbit::shared() else {
        return;
    };
    for properties in [json!({"message_id": "1"}), json!({})] {
        let (vhost, world) = (rabbit.vhost(), World::new());
        let [a, b] = two_hosts(&world, &vhost);
        let first = a.start();
        publish(&vhost, "m", &properties);
        assert_eq!(world.wait_lines("runs", 1), ["m a 0"]);
        let second = b.start();
        b.takes(true);
        a.link.close();
        // The other host has got it, and waits.
        world.wait_report("b", "/queues/0/held", 1);
        a.link.open();
        a.takes(true);
        // Longer than the other one would wait.
        sleep(2 * GRACE);
        world.wait_report("b", "/queues/0/held", 1);
        world.file("go", "");
        world.wait_lines("ends", 1);
        vhost.wait_counts("q", 0, 0);
        publish(&vhost, "sentinel", &with_id());
        let runs = world.wait_lines("runs", 2);
        assert!(runs[1].starts_with("sentinel "), "{runs:?}");
        first.stop();
        second.stop();
    }
}

#[test]
fn a_message_of_a_host_that_is_gone_runs_elsewhere_with_a_higher_fence() {
    let Some(rabbit) = Rabbit::shared() else {
        return;
    };
    let (vhost, world) = (rabbit.vhost(), World::new());
    let [a, b] = two_hosts(&world, &vhost);
    let first = a.start();
    publish(&vhost, "m", &with_id());
    world.wait_lines("runs", 1);
    let second = b.start();
    b.takes(true);
    a.link.close();
    first.kill();
    let runs = world.wait_lines("runs", 2);
    assert_eq!(runs, ["m a 0", "m b 1"]);
    world.file("go", "");
    world.wait_lines("ends", 2);
    vhost.wait_counts("q", 0, 0);
    // It is back, its run has ended, and nothing is left to do.
    a.link.open();
    let first = a.start();
    a.takes(true);
    publish(&vhost, "sentinel", &with_id());
    let runs = world.wait_lines("runs", 3);
    assert!(runs[2].starts_with("sentinel "), "{runs:?}");
    first.stop();
    second.stop();
}

#[test]
fn accepted_messages_of_a_dead_host_wait_for_it() {
    let Some(rabbit) = Rabbit::shared() else {
        return;
    };
    let (vhost, world) = (rabbit.vhost(), World::new());
    vhost.declare_quorum("q");
    let options = ["--prefetch", "3", "-c", UNTIL_GO];
    let [a, b] = ["a", "b"].map(|who| Host::new(&world, &vhost, who, &options));
    let first = a.start();
    for n in 0..3 {
        publish(&vhost, &n.to_string(), &with_id());
    }
    world.wait_lines("runs", 1);
    vhost.wait_counts("q", 0, 0);
    first.kill();
    let second = b.start();
    b.takes(true);
    publish(&vhost, "sentinel", &with_id());
    let runs = world.wait_lines("runs", 2);
    assert!(runs[1].starts_with("sentinel b"), "{runs:?}");
    world.file("go", "");
    let first = a.start();
    world.wait_lines("ends", 4);
    assert_eq!(world.lines("runs").len(), 4);
    first.stop();
    second.stop();
}

#[test]
fn a_run_that_is_longer_than_the_limit_for_acknowledgements_ends_once() {
    let Some(rabbit) = Rabbit::own() else { return };
    rabbit.set_consumer_timeout(Duration::from_secs(5));
    for settle in ["accept", "done"] {
        let (vhost, world) = (rabbit.vhost(), World::new());
        vhost.declare_quorum("q");
        publish(&vhost, "long", &with_id());
        let options = ["--settle", settle, "-c", UNTIL_GO];
        let host = Host::new(&world, &vhost, "w", &options);
        let client = host.start();
        world.wait_lines("runs", 1);
        sleep(Duration::from_secs(15));
        world.file("go", "");
        world.wait_lines("ends", 1);
        vhost.wait_counts("q", 0, 0);
        publish(&vhost, "sentinel", &with_id());
        let runs = world.wait_lines("runs", 2);
        assert!(runs[1].starts_with("sentinel"), "{runs:?}");
        client.stop();
    }
}

#[test]
fn a_broker_short_of_memory_gets_its_dead_letters_later() {
    let Some(rabbit) = Rabbit::own() else { return };
    let (vhost, world) = (rabbit.vhost(), World::new());
    vhost.declare("q");
    vhost.publish("q", b"poison", &json!({}));
    for n in 0..3 {
        publish(&vhost, &n.to_string(), &with_id());
    }
    rabbit.memory_alarm(true);
    let options = ["--settle", "done", "--prefetch", "2", "-c", SHORT];
    let host = Host::new(&world, &vhost, "w", &options);
    let client = host.start();
    // The others go on.
    world.wait_lines("ends", 3);
    wait_until("the block is said", || {
        client.log_text().contains("takes no messages now")
    });
    vhost.wait_counts("q", 0, 1);
    rabbit.memory_alarm(false);
    vhost.wait_counts("q.dead", 1, 0);
    vhost.wait_counts("q", 0, 0);
    client.stop();
}

#[test]
fn a_limit_of_deliveries_ends_no_run() {
    let Some(rabbit) = Rabbit::shared() else {
        return;
    };
    let (vhost, world) = (rabbit.vhost(), World::new());
    vhost.declare_quorum("q");
    vhost.policy("q", &json!({"delivery-limit": 1}));
    let options = ["--settle", "done", "-c", UNTIL_GO];
    let host = Host::new(&world, &vhost, "w", &options);
    let client = host.start();
    publish(&vhost, "m", &with_id());
    world.wait_lines("runs", 1);
    for _ in 0..3 {
        vhost.close_connections();
        host.takes(true);
    }
    world.file("go", "");
    world.wait_lines("ends", 1);
    publish(&vhost, "sentinel", &with_id());
    assert_eq!(world.wait_lines("runs", 2).len(), 2);
    vhost.wait_counts("q", 0, 0);
    client.stop();
}

/// No id tells them apart, and the client is killed twice at each step.
#[test]
fn equal_messages_without_an_id_are_counted_right_over_kills() {
    let Some(rabbit) = Rabbit::shared() else {
        return;
    };
    for settle in ["accept", "done"] {
        for place in [
            "commit.before",
            "commit.after",
            "ack.after",
            "settle.before",
            "settle.after",
        ] {
            // A kill now and then hits the milliseconds in which an acknowledgement is on its way.
            let mut tries = (0..3).map(|_| equal_messages(rabbit, settle, place));
            assert!(tries.any(|runs| runs == 6), "{settle} {place}");
        }
    }
}

/// Returns how many of six equal messages run when the client is killed twice at `place`.
fn equal_messages(rabbit: &Rabbit, settle: &'static str, place: &str) -> usize {
    let command = r#"echo "$ATTR_SAMPLE" >> "$OUT/runs"; sleep 0.2; echo x >> "$OUT/ends""#;
    let (vhost, world) = (rabbit.vhost(), World::new());
    vhost.declare_quorum("q");
    for _ in 0..6 {
        publish(&vhost, "equal", &json!({}));
    }
    let options = ["--settle", settle, "--jobs", "3", "-c", command];
    let host = Host::new(&world, &vhost, "w", &options);
    for _ in 0..2 {
        let mut failing = host.command();
        failing.env("TAEL_FAILPOINT", place);
        world.spawn(failing).wait();
    }
    let client = host.start();
    vhost.wait_counts("q", 0, 0);
    publish(&vhost, "sentinel", &with_id());
    // It starts after the others, which may write later, and of which one may be missing.
    wait_until("all have ended", || {
        if !world.lines("runs").iter().any(|line| line == "sentinel") {
            return false;
        }
        let list = json_of(&mut world.tael(["work", "list", "--json"]));
        let list = list.as_array().cloned().unwrap_or_default();
        let goes_on = |unit: &Value| unit["state"] == "pending" || unit["state"] == "running";
        !list.iter().any(goes_on)
    });
    let runs = world.lines("runs").len();
    assert!(runs <= 7, "{settle} {place}: {runs} runs");
    client.stop();
    runs - 1
}

// --- At random ---

/// One at a time: each has a broker of its own.
static CHAOS: Mutex<()> = Mutex::new(());

/// Number of messages.
const MESSAGES: usize = 500;

/// Number of failures.
const MAX_FAILURES: u32 = 10;

/// What fails next, and for how long.
fn fail(rabbit: &Rabbit, hosts: &[Host<'_>], clients: &mut [Process], turn: u32) {
    let place = fastrand::usize(..hosts.len());
    let (host, client) = (&hosts[place], &mut clients[place]);
    match turn % 4 {
        0 | 2 => {
            client.signal(Signal::SIGKILL);
            client.wait();
            *client = host.world.spawn(host.command());
        }
        1 => host.link.cut(),
        _ => {
            rabbit.kill9();
            rabbit.restart();
        }
    }
}

/// Runs all messages under failures, and returns the hosts and fences of each message's runs.
fn chaos(settle: &'static str, names: &[&'static str]) -> Option<BTreeMap<String, Vec<String>>> {
    let _turn = CHAOS.lock().unwrap_or_else(PoisonError::into_inner);
    let rabbit = Rabbit::own()?;
    let (vhost, world) = (rabbit.vhost(), World::new());
    vhost.declare_quorum("q");
    for n in 0..MESSAGES {
        let properties = if n % 5 == 0 { json!({}) } else { with_id() };
        publish(&vhost, &n.to_string(), &properties);
    }
    let options = ["--settle", settle, "--jobs", "4", "-c", SHORT];
    let hosts: Vec<Host<'_>> = names
        .iter()
        .map(|who| Host::new(&world, &vhost, who, &options))
        .collect();
    let mut clients: Vec<Process> = hosts.iter().map(Host::start).collect();
    let mut turn = 0;
    let deadline = Instant::now() + 4 * PATIENCE;
    let distinct = |name: &str| {
        let mut samples: Vec<String> = world.lines(name);
        samples.sort();
        samples.dedup();
        samples.len()
    };
    while distinct("ends") < MESSAGES {
        assert!(
            Instant::now() < deadline,
            "{} of {MESSAGES} have ended; the queue has {:?}\n{}",
            distinct("ends"),
            vhost.counts("q"),
            clients[0].log_text()
        );
        sleep(Duration::from_millis(fastrand::u64(200..900)));
        if turn < MAX_FAILURES {
            fail(&rabbit, &hosts, &mut clients, turn);
        }
        turn += 1;
    }
    vhost.wait_counts("q", 0, 0);
    let mut runs: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in world.lines("runs") {
        let (sample, run) = line.split_once(' ').expect("sample");
        runs.entry(sample.to_owned())
            .or_default()
            .push(run.to_owned());
    }
    clients.into_iter().for_each(Process::stop);
    Some(runs)
}

#[test]
fn one_host_runs_each_message_once_under_failures() {
    for settle in ["accept", "done"] {
        let Some(runs) = chaos(settle, &["a"]) else {
            return;
        };
        assert_eq!(runs.len(), MESSAGES, "{settle}");
        let twice: Vec<_> = runs.iter().filter(|(_, runs)| runs.len() > 1).collect();
        assert!(twice.is_empty(), "{settle}: {twice:?}");
    }
}

#[test]
fn two_hosts_repeat_only_what_a_dead_host_ran() {
    for settle in ["accept", "done"] {
        let Some(runs) = chaos(settle, &["a", "b"]) else {
            return;
        };
        assert_eq!(runs.len(), MESSAGES, "{settle}");
        for (sample, runs) in &runs {
            let fence = |run: &String| -> (String, u32) {
                let (who, fence) = run.split_once(' ').expect("host");
                (who.to_owned(), fence.parse().expect("fence"))
            };
            let runs: Vec<_> = runs.iter().map(fence).collect();
            for pair in runs.windows(2) {
                let [(first, low), (second, high)] = pair else {
                    continue;
                };
                assert_ne!(first, second, "{settle} {sample}: {runs:?}");
                assert!(low < high, "{settle} {sample}: {runs:?}");
            }
        }
    }
}
