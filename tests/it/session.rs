//! A session outlives connections and clients: what the broker holds for it, whose it is, and how it
//! ends.

use std::fs;
use std::path::PathBuf;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::common::raw::{Connect, Raw, Scripted, packet, publish, publish_with};
use crate::common::raw::{subscribe_filters, unsubscribe_filters};
use crate::common::scene::{CONTROL, RUN, SEQ, Scene, event};
use crate::common::{Process, World, bare_command, ran, refuses, spawn, wait_until};

fn file(scene: &Scene) -> PathBuf {
    scene.dir.path().join("p.toml")
}

/// Starts a client whose triggers are those of a file.
fn start_with_file(scene: &Scene) -> Process {
    scene.start(&["--config", file(scene).to_str().expect("path")])
}

/// Writes the file.
fn configure(scene: &Scene, options: &str, topics: &[&str]) {
    let mut text = format!("[client]\n{options}\n");
    for (n, topic) in topics.iter().enumerate() {
        text += &format!("[[trigger]]\nname = 't{n}'\ntopic = '{topic}'\ncommand = '''{RUN}'''\n");
    }
    fs::write(file(scene), text).expect("file");
}

/// Returns what the client has noted about its sessions.
fn record(scene: &Scene) -> Value {
    let text = fs::read_to_string(scene.home().join("session")).expect("file");
    serde_json::from_str(&text).expect("JSON")
}

/// Returns the filters of its first session.
fn recorded(scene: &Scene) -> Vec<String> {
    let filters = record(scene)["sessions"][0]["filters"].clone();
    serde_json::from_value(filters).expect("filters")
}

/// Returns the next packet of the peer, apart from acknowledgements and pings.
pub fn next(raw: &mut Raw) -> (u8, Vec<u8>) {
    loop {
        let (kind, body) = raw.receive();
        match kind >> 4 {
            4 => {}
            12 => raw.send(&packet(0xd0, &[])),
            _ => return (kind, body),
        }
    }
}

/// Waits for a SUBSCRIBE, and returns its body and filters.
#[track_caller]
pub fn subscribe(raw: &mut Raw) -> (Vec<u8>, Vec<String>) {
    let (kind, body) = next(raw);
    assert_eq!(kind, 0x82, "SUBSCRIBE");
    let filters = subscribe_filters(&body);
    (body, filters)
}

/// Answers a request with `codes`.
pub fn answer(raw: &mut Raw, kind: u8, request: &[u8], codes: &[u8]) {
    let body = [&request[..2], &[0], codes].concat();
    raw.send(&packet(kind, &body));
}

/// Grants all filters of the next SUBSCRIBE, and returns them.
#[track_caller]
pub fn grant(raw: &mut Raw) -> Vec<String> {
    let (body, filters) = subscribe(raw);
    answer(raw, 0x90, &body, &vec![1; filters.len()]);
    filters
}

/// Answers the next UNSUBSCRIBE, past publishes, and returns its filters.
#[track_caller]
pub fn unsubscribe(raw: &mut Raw) -> Vec<String> {
    loop {
        let (kind, body) = next(raw);
        if kind == 0xa2 {
            let filters = unsubscribe_filters(&body);
            answer(raw, 0xb0, &body, &vec![0; filters.len()]);
            return filters;
        }
        assert_eq!(kind >> 4, 3, "UNSUBSCRIBE");
        acknowledge(raw, &body);
    }
}

/// Acknowledges a PUBLISH at QoS 1.
fn acknowledge(raw: &mut Raw, body: &[u8]) {
    let topic = usize::from(u16::from_be_bytes([body[0], body[1]]));
    raw.send(&packet(0x40, &body[2 + topic..4 + topic]));
}

/// Answers until the client publishes that it is online.
fn online(raw: &mut Raw) {
    raw.serve_until(|m| m.topic.ends_with("/presence") && m.text().contains(r#""online""#));
}

/// Sends an event, and waits until it is acknowledged and its run is the last one.
#[track_caller]
fn sentinel(scene: &Scene, raw: &mut Raw, topic: &str, n: u32) {
    let id = u16::try_from(n).expect("small");
    raw.send(&publish(
        topic.as_bytes(),
        event(n).as_bytes(),
        Some(id),
        &[],
        false,
    ));
    raw.serve_until_acknowledged(id);
    let last = n.to_string();
    wait_until("the sentinel runs", || scene.runs().last() == Some(&last));
}

#[test]
fn a_client_that_comes_back_with_another_topic_drops_the_old_ones() {
    let world = World::new();
    let old = world.client("p", &["-t", "lab/+/status", "-c", RUN]);
    world.publish(SEQ, event(1), &[]);
    wait_until("it runs", || world.lines("runs") == ["1"]);
    old.stop();
    // Both filters match the first message, and only the old one matches the second.
    world.publish(SEQ, event(2), &[]);
    world.publish("lab/other/status", event(3), &[]);
    let new = world.client("p", &["-t", "lab/seq/#", "-c", RUN]);
    wait_until("what waited runs", || world.lines("runs").len() == 2);
    for n in 4..10 {
        world.publish(SEQ, event(n), &[]);
        world.publish("lab/other/status", event(100 + n), &[]);
    }
    world.publish("lab/seq/end", event(10), &[]);
    let all: Vec<String> = [1, 2, 4, 5, 6, 7, 8, 9, 10].map(|n| n.to_string()).into();
    wait_until("the sentinel runs", || {
        world.lines("runs").len() >= all.len()
    });
    assert_eq!(world.lines("runs"), all);
    // The broker has dropped the old filter. Only the first messages came under it.
    let ignored = world.report("p")["events"]["ignored"].as_u64();
    assert!(ignored.is_some_and(|n| n <= 2), "{ignored:?}");
    new.stop();
}

#[test]
fn a_client_that_comes_back_under_another_root_drops_the_old_control_topic() {
    let world = World::new();
    let command = |root: &str| {
        let mut command = world.command("tael-client");
        command.args(["--who", "p", "--root", root, "-t", SEQ, "-c", RUN]);
        command
    };
    let record = || -> Value {
        let text = fs::read_to_string(world.state().join("p/session")).unwrap_or_default();
        serde_json::from_str(&text).unwrap_or_default()
    };
    let holds = |root: &str| {
        let control = format!("{root}/infrastructure/pipelines/p/control");
        let mut wanted = [control.as_str(), SEQ];
        wanted.sort_unstable();
        let wanted = serde_json::json!(wanted);
        wait_until("the file holds what is in force", || {
            let session = &record()["sessions"][0];
            session["filters"] == wanted && session["session"] == true
        });
    };
    let old = world.spawn(command("lab"));
    holds("lab");
    old.stop();
    let new = world.spawn(command("other"));
    holds("other");
    new.stop();
}

#[test]
fn workers_that_move_to_a_shared_subscription_share() {
    let world = World::new();
    let worker = |who: &str, topic: &str| world.client(who, &["-t", topic, "-c", RUN]);
    let before = [worker("a", SEQ), worker("b", SEQ)];
    before.into_iter().for_each(Process::stop);
    let shared = format!("$share/g/{SEQ}");
    let now = [worker("a", &shared), worker("b", &shared)];
    for n in 1..=20 {
        world.publish(SEQ, event(n), &[]);
    }
    // A sentinel for each of them, after all shared messages.
    wait_until("all have run", || world.lines("runs").len() >= 20);
    for who in ["a", "b"] {
        let (code, _, stderr) = world.control(&[who, "raise", "--attr", "n", "end"]);
        assert_eq!(code, 0, "{stderr}");
    }
    let ends = |runs: &[String]| runs.iter().filter(|run| *run == "end").count();
    wait_until("the sentinels run", || ends(&world.lines("runs")) == 2);
    let mut runs = world.lines("runs");
    runs.retain(|run| run != "end");
    runs.sort_by_key(|run| run.parse::<u32>().expect("number"));
    let all: Vec<String> = (1..=20).map(|n| n.to_string()).collect();
    assert_eq!(runs, all);
    now.into_iter().for_each(Process::stop);
}

#[test]
fn old_filters_go_after_the_new_ones_and_copies_do_not_run() {
    let scene = Scene::new();
    let first = scene.start(&["-t", "lab/+/status", "-c", RUN]);
    let (mut raw, _) = scene.broker.greet(false, &[]);
    let granted = grant(&mut raw);
    assert_eq!(granted, ["lab/+/status", CONTROL].map(str::to_owned));
    online(&mut raw);
    drop(raw);
    first.kill();
    let _second = scene.start(&["-t", "lab/seq/#", "-c", RUN]);
    let (mut raw, _) = scene.broker.greet(true, &[]);
    let (body, filters) = subscribe(&mut raw);
    assert_eq!(filters, ["lab/seq/#"]);
    let (control, filters) = subscribe(&mut raw);
    assert_eq!(filters, [CONTROL]);
    // The file names all filters that the broker may hold, before each SUBSCRIBE.
    assert_eq!(recorded(&scene).len(), 3, "{:?}", recorded(&scene));
    // Its property: a subscription identifier.
    let new = &body[3..3 + usize::from(body[2])];
    assert_eq!(new.first(), Some(&0x0b), "no subscription identifier");
    // The broker has queued two equal messages under the old filter. Then come messages that match
    // both filters, in either order.
    let mut packets = 0;
    let mut send = |raw: &mut Raw, n: u32, subscription: &[u8]| {
        packets += 1;
        let (topic, text) = (SEQ.as_bytes(), event(n));
        raw.send(&publish_with(
            topic,
            text.as_bytes(),
            Some(packets),
            subscription,
            false,
        ));
    };
    send(&mut raw, 1, &[]);
    send(&mut raw, 1, &[]);
    answer(&mut raw, 0x90, &body, &[1]);
    answer(&mut raw, 0x90, &control, &[1]);
    for (n, subscriptions) in [(2, [&[][..], new]), (3, [new, &[]])] {
        for subscription in subscriptions {
            send(&mut raw, n, subscription);
        }
    }
    assert_eq!(unsubscribe(&mut raw), ["lab/+/status"]);
    sentinel(&scene, &mut raw, SEQ, 9);
    assert_eq!(scene.runs(), ["1", "1", "2", "3", "9"]);
    wait_until("the file says so", || {
        recorded(&scene) == [CONTROL, "lab/seq/#"]
    });
}

#[test]
fn equal_messages_before_and_after_a_change_of_topics_both_run() {
    let world = World::new();
    let start = |topics: [&str; 2]| world.client("p", &["-t", topics[0], topics[1], "-c", RUN]);
    let (new, both) = ([SEQ, "lab/new"], ["lab/seq/+", "lab/+/status"]);
    start([SEQ, "lab/old"]).stop();
    let mut count = 0;
    // The replaced topic matches other messages, or these. Or nothing changes.
    for topics in [new, new, both, both, new] {
        world.publish(SEQ, event(1), &[]);
        let client = start(topics);
        count += 1;
        wait_until("what was queued runs", || {
            world.lines("runs").len() == count
        });
        world.publish(SEQ, event(1), &[]);
        world.publish(SEQ, event(9), &[]);
        wait_until("the sentinel runs", || {
            world.lines("runs").last().is_some_and(|run| run == "9")
        });
        count += 2;
        assert_eq!(world.lines("runs").len(), count, "{topics:?}");
        client.stop();
    }
}

#[test]
fn a_reload_before_the_answer_to_subscribe_counts() {
    let scene = Scene::new();
    configure(&scene, "", &["lab/one"]);
    let client = start_with_file(&scene);
    let (mut raw, _) = scene.broker.greet(false, &[]);
    let (first, filters) = subscribe(&mut raw);
    assert_eq!(filters, ["lab/one", CONTROL].map(str::to_owned));
    configure(&scene, "", &["lab/two"]);
    client.signal(Signal::SIGHUP);
    let (second, filters) = subscribe(&mut raw);
    assert_eq!(filters, ["lab/two"]);
    // After a second change the broker answers in another order.
    configure(&scene, "", &["lab/two", "lab/three"]);
    client.signal(Signal::SIGHUP);
    let (third, filters) = subscribe(&mut raw);
    assert_eq!(filters, ["lab/three"]);
    for (body, count) in [(third, 1), (first, 2), (second, 1)] {
        answer(&mut raw, 0x90, &body, &vec![1; count]);
    }
    assert_eq!(unsubscribe(&mut raw), ["lab/one"]);
    sentinel(&scene, &mut raw, "lab/two", 1);
    sentinel(&scene, &mut raw, "lab/three", 2);
    wait_until("the file says so", || {
        recorded(&scene) == [CONTROL, "lab/three", "lab/two"]
    });
    // The next connection subscribes to all filters.
    drop(raw);
    let (mut raw, _) = scene.broker.greet(true, &[]);
    let mut filters = grant(&mut raw);
    filters.sort();
    assert_eq!(
        filters,
        [CONTROL, "lab/three", "lab/two"].map(str::to_owned)
    );
    online(&mut raw);
    client.stop_with(raw);
}

#[test]
fn a_reload_while_there_is_no_connection_counts() {
    let scene = Scene::new();
    configure(&scene, "", &["lab/one"]);
    let client = start_with_file(&scene);
    let (mut raw, _) = scene.broker.greet(false, &[]);
    grant(&mut raw);
    online(&mut raw);
    drop(raw);
    wait_until("it has noticed", || client.log_text().contains("lost 127"));
    configure(&scene, "", &["lab/two"]);
    client.signal(Signal::SIGHUP);
    wait_until("it has read that", || {
        client.log_text().contains("reloaded")
    });
    let (mut raw, _) = scene.broker.greet(true, &[]);
    assert_eq!(grant(&mut raw), ["lab/two"]);
    assert_eq!(grant(&mut raw), [CONTROL], "it was granted before");
    assert_eq!(unsubscribe(&mut raw), ["lab/one"]);
    sentinel(&scene, &mut raw, "lab/two", 1);
    client.stop_with(raw);
}

#[test]
fn copies_that_a_broken_connection_brings_again_do_not_run() {
    let scene = Scene::new();
    let client = scene.start(&["-t", "lab/+/status", "lab/seq/+", "-c", RUN]);
    let send = |raw: &mut Raw, again: bool| {
        for subscription in [1, 2] {
            let packet = u16::from(subscription);
            let (text, id) = (event(1), [0x0b, subscription]);
            let topic = SEQ.as_bytes();
            raw.send(&publish_with(
                topic,
                text.as_bytes(),
                Some(packet),
                &id,
                again,
            ));
        }
        raw.serve_until_acknowledged(2);
    };
    let (mut raw, _) = scene.broker.greet(false, &[]);
    online(&mut raw);
    send(&mut raw, false);
    // A connection loses the acknowledgements of both, and the next one only that of the copy.
    for both in [true, false] {
        drop(raw);
        (raw, _) = scene.broker.greet(true, &[]);
        online(&mut raw);
        if both {
            send(&mut raw, true);
        } else {
            let id = [0x0b, 2];
            raw.send(&publish_with(
                SEQ.as_bytes(),
                event(1).as_bytes(),
                Some(2),
                &id,
                true,
            ));
            raw.serve_until_acknowledged(2);
        }
    }
    sentinel(&scene, &mut raw, SEQ, 9);
    assert_eq!(scene.runs(), ["1", "9"]);
    client.stop_with(raw);
}

#[test]
fn a_reload_tells_the_broker_how_large_a_packet_may_be() {
    let scene = Scene::new();
    configure(&scene, "max-payload = 1000", &["lab/one"]);
    let client = start_with_file(&scene);
    let (mut raw, before) = scene.broker.greet(false, &[]);
    grant(&mut raw);
    online(&mut raw);
    configure(&scene, "max-payload = 500000", &["lab/one"]);
    client.signal(Signal::SIGHUP);
    let disconnect = loop {
        let (kind, body) = next(&mut raw);
        if kind == 0xe0 {
            break body;
        }
        acknowledge(&mut raw, &body);
    };
    assert!(
        disconnect.is_empty() || disconnect[0] == 0,
        "a normal goodbye"
    );
    drop(raw);
    let (mut raw, after) = scene.broker.greet(true, &[]);
    assert!(after.max_packet > before.max_packet + 400_000, "{after:?}");
    assert_eq!(after.client_id, before.client_id);
    assert!(!after.clean_start && after.session_expiry == before.session_expiry);
    grant(&mut raw);
    online(&mut raw);
    let large = format!(
        r#"{{"status":"finished","n":1,"x":"{}"}}"#,
        "x".repeat(4000)
    );
    raw.send(&publish(b"lab/one", large.as_bytes(), Some(1), &[], false));
    raw.serve_until_acknowledged(1);
    wait_until("it runs", || scene.runs() == ["1"]);
    client.stop_with(raw);
}

#[test]
fn the_client_identifier_belongs_to_the_state_folder() {
    let scene = Scene::new();
    let host = nix::unistd::gethostname().expect("host");
    let host = host.to_str().expect("UTF-8");
    let id = |arguments: &[&str]| {
        let mut all = vec!["-t", SEQ, "-c", "true"];
        all.extend(arguments);
        let client = scene.start(&all);
        let (mut raw, connect) = scene.broker.greet(false, &[]);
        while grant(&mut raw).len() < 2 {}
        online(&mut raw);
        client.stop_with(raw);
        connect.client_id
    };
    let first = id(&[]);
    assert!(first.starts_with("tael-p-") && first.len() <= 64, "{first}");
    assert_eq!(record(&scene)["id"], first.as_str());
    assert_eq!(id(&[]), first);
    assert_eq!(id(&["--id", "chosen"]), "chosen");
    assert_eq!(id(&[]), first, "a chosen one is not kept");
    // The identifier does not depend on the ledger.
    let home = scene.home();
    for name in ["ledger.db", "ledger.db-wal", "ledger.db-shm"] {
        let _ = fs::remove_file(home.join(name));
    }
    assert_eq!(id(&[]), first);
    // Earlier versions kept no file and used the name of the host. The broker may still hold
    // messages for that.
    fs::remove_file(home.join("session")).expect("file");
    let earlier = format!("tael-p-{host}");
    assert_eq!(id(&[]), earlier);
    assert_eq!(record(&scene)["id"], earlier.as_str());
    // Another folder is another client.
    fs::remove_dir_all(&home).expect("folder");
    let other = id(&[]);
    assert!(other != first && other != earlier, "{other}");
}

#[test]
fn a_session_file_that_cannot_be_read_stops_the_start() {
    let scene = Scene::new();
    let file = scene.home().join("session");
    fs::create_dir_all(file.parent().expect("folder")).expect("folder");
    for (text, code) in [("{\"id\":", 73), ("", 73), ("{\"version\":99}", 78)] {
        fs::write(&file, text).expect("file");
        let mut command = scene.command(&["-t", SEQ, "-c", "true"]);
        command.env("TAEL_LOG", "warn");
        refuses(&mut command, code, "session file");
        assert_eq!(fs::read_to_string(&file).expect("file"), text);
    }
}

#[test]
fn a_session_that_the_broker_has_lost_is_said_loudly() {
    let scene = Scene::new();
    let arguments = ["-t", SEQ, "-c", "true"];
    let lost = |process: &Process| process.log_text().matches("has lost the session").count();
    let connect = |present: bool| -> (Raw, Connect) {
        let (mut raw, connect) = scene.broker.greet(present, &[]);
        grant(&mut raw);
        online(&mut raw);
        (raw, connect)
    };
    let client = scene.start(&arguments);
    let (raw, _) = connect(false);
    drop(raw);
    let (raw, _) = connect(true);
    assert_eq!(lost(&client), 0, "{}", client.log_text());
    drop(raw);
    let (raw, _) = connect(false);
    assert_eq!(lost(&client), 1, "{}", client.log_text());
    client.stop_with(raw);
    // A new process notices it, too.
    let client = scene.start(&arguments);
    let (raw, _) = connect(false);
    assert_eq!(lost(&client), 1, "{}", client.log_text());
    client.stop_with(raw);
}

#[test]
fn two_clients_of_one_pipeline_or_identifier_notice_each_other_on_a_host() {
    let world = World::new();
    let other_folder = |who: &str| {
        let mut command = world.command("tael-client");
        command
            .env("STATE_DIRECTORY", world.path("other"))
            .env("TAEL_LOG", "warn")
            .args(["--who", who, "--root", "lab", "-t", SEQ, "-c", "true"]);
        command
    };
    let wait = format!(r#"{RUN}; until [ -e "$OUT/go" ]; do sleep 0.05; done"#);
    let arguments = ["-t", SEQ, "-c", &wait, "--id", "one"];
    let first = world.client("p", &arguments);
    let holder = format!("process {} of user ", first.child.id());
    refuses(&mut other_folder("p"), 73, &holder);
    let (code, out, stderr) = ran(other_folder("p").arg("--if-not-running"));
    assert_eq!((code, out.as_str(), stderr.as_str()), (0, "", ""));
    refuses(other_folder("q").args(["--id", "one"]), 73, &holder);
    // Another identifier is free, and a run that outlives its client holds none.
    world.publish(SEQ, event(1), &[]);
    wait_until("it runs", || world.lines("runs") == ["1"]);
    world.online("q", other_folder("q")).stop();
    first.kill();
    world.online("p", other_folder("p")).stop();
    fs::write(world.path("go"), "").expect("go");
}

#[test]
fn a_node_of_a_known_identifier_does_nothing_that_was_sent_to_an_earlier_one() {
    let world = World::new();
    let functions = world.path("functions.sh");
    fs::write(
        &functions,
        "startFunction() { echo \"$1\" >>\"$OUT/calls\"; }\n",
    )
    .expect("file");
    let node = |name: &str| {
        let mut command = world.tael(["node", name, "--root", "lab", "--id", "fixed"]);
        command.arg("--functions").arg(&functions);
        let ears = world.ears(&["lab/+/STATUS"]);
        let node = world.spawn(command);
        ears.wait("it is alive", |m| m.payload == "ALIVE" && !m.retained);
        node
    };
    let old = node("old");
    world.publish("lab/old/COMMAND", "START a", &[]);
    wait_until("it does it", || world.lines("calls") == ["a"]);
    old.kill();
    world.publish("lab/old/COMMAND", "START b", &[]);
    let new = node("new");
    world.publish("lab/old/COMMAND", "START c", &[]);
    world.publish("lab/new/COMMAND", "START d", &[]);
    wait_until("the sentinel is done", || world.lines("calls").len() >= 2);
    assert_eq!(world.lines("calls"), ["a", "d"]);
    new.kill();
}

#[test]
fn a_message_that_two_filters_match_runs_once() {
    let world = World::new();
    let client = world.client("p", &["-t", "lab/seq/+", "lab/+/status", "-c", RUN]);
    // Equal messages are separate events.
    for n in [1, 1, 1, 2, 1] {
        world.publish(SEQ, event(n), &[]);
    }
    world.publish("lab/seq/end", event(9), &[]);
    wait_until("the sentinel runs", || {
        world.lines("runs").last().is_some_and(|run| run == "9")
    });
    assert_eq!(world.lines("runs"), ["1", "1", "1", "2", "1", "9"]);
    client.stop();
}

trait StopWith {
    fn stop_with(self, raw: Raw);
}

impl StopWith for Process {
    /// Stops a client of a scripted broker, which answers until then.
    fn stop_with(mut self, mut raw: Raw) {
        self.signal(Signal::SIGTERM);
        raw.serve_until(|m| m.text().contains(r#""offline""#));
        drop(raw);
        assert_eq!(self.wait(), 0, "{}", self.log_text());
    }
}

#[test]
fn thousands_of_triggers_connect_and_each_gets_its_events() {
    let world = World::new();
    let mut text = String::new();
    for n in 0..3000 {
        text += &format!(
            "[[trigger]]\nname = 'trigger {n}'\ntopic = ['lab/{n}/status', 'lab/again/{n}']\n\
             command = '''{RUN}'''\n"
        );
    }
    let file = world.path("p.toml");
    fs::write(&file, text).expect("file");
    let mut command = world.command("tael-client");
    command
        .args(["--who", "p", "--root", "lab", "--config"])
        .arg(&file);
    let client = world.online("p", command);
    for topic in [
        "lab/0/status",
        "lab/2999/status",
        "lab/again/1500",
        "lab/9999/status",
    ] {
        world.publish(topic, event(1), &[]);
    }
    world.publish("lab/7/status", event(2), &[]);
    wait_until("all run", || world.lines("runs").len() >= 4);
    let mut runs = world.lines("runs");
    runs.sort();
    assert_eq!(runs, ["1", "1", "1", "2"]);
    client.stop();
}

#[test]
fn a_client_that_cannot_read_its_state_leaves_no_will_with_the_broker() {
    let dir = tempfile::tempdir().expect("tempdir");
    let broker = Scripted::listen();
    let client = || {
        let mut command = bare_command(&dir, "tael-client");
        command.args(["--who", "p", "-t", "lab/one", "-c", "true"]);
        command.args(["-H", "127.0.0.1", "-p", &broker.port().to_string()]);
        spawn(&dir, &mut command)
    };
    let first = client();
    let mut raw = broker.accept();
    raw.serve_until(|m| m.topic.ends_with("/presence"));
    first.kill();
    let ledger = dir.path().join("state/p/ledger.db");
    let ledger = rusqlite::Connection::open(ledger).expect("ledger");
    ledger.execute_batch("DROP TABLE silence").expect("drop");
    drop(ledger);
    let mut second = client();
    let (mut raw, _) = broker.greet(true, &[]);
    // Its first requests may come before.
    let mut kind = 0;
    while kind != 0xe0 {
        kind = next(&mut raw).0;
    }
    assert_eq!(second.wait(), 73, "{}", second.log_text());
}

#[test]
fn a_client_that_is_stopped_before_it_is_online_leaves_no_will_with_the_broker() {
    let dir = tempfile::tempdir().expect("tempdir");
    for is_greeted in [false, true] {
        let broker = Scripted::listen();
        let mut command = bare_command(&dir, "tael-client");
        command.args(["--who", "p", "-t", "lab/one", "-c", "true"]);
        command.args(["-H", "127.0.0.1", "-p", &broker.port().to_string()]);
        let mut client = spawn(&dir, &mut command);
        let greeting = packet(0x20, &[0, 0, 0]);
        let (mut raw, _) = broker.hear_connect();
        if is_greeted {
            raw.send(&greeting);
            subscribe(&mut raw);
        }
        client.signal(Signal::SIGTERM);
        wait_until("it stops", || client.log_text().contains("stopping"));
        if !is_greeted {
            raw.send(&greeting);
        }
        let mut kind = 0;
        while kind != 0xe0 {
            kind = next(&mut raw).0;
        }
        assert_eq!(client.wait(), 0, "{}", client.log_text());
    }
}
