//! Other programs and Tael on the same queue of RabbitMQ: OODT's clients (small scripts of ours that
//! send and expect exactly what those do), pika, and Debian's amqp-tools.

use std::process::Command;

use crate::common::rabbit::{Rabbit, Vhost};
use crate::common::{Process, World, has_program, ran_with, succeeds, wait_until};
use serde_json::{Value, json};

/// What a workflow manager does with an event: it notes the metadata.
const NOTE: &str = r#"cat >>"$OUT/noted""#;

/// A command that writes the attribute `n` of its event to a file.
const RUN: &str = r#"echo "$ATTR_N" >>"$OUT/runs""#;

/// Runs OODT's producer, which must succeed.
#[track_caller]
fn produce(vhost: &Vhost<'_>, arguments: &[&str]) -> bool {
    let Some(mut producer) = vhost.script("oodt_producer.py") else {
        return false;
    };
    succeeds(producer.args(["--pace", "0.01"]).args(arguments));
    true
}

/// Starts OODT's consumer of the queue `wf` with a command in place of the workflow manager. It takes
/// two messages, and more only when there is a file `go`.
fn consumer(vhost: &Vhost<'_>, world: &World, command: &str) -> Option<Process> {
    let mut consumer = vhost.script("oodt_consumer.py")?;
    let running = r#"[ -e "$OUT/go" ] && echo 0 || cat "$OUT/noted" 2>/dev/null | wc -l"#;
    consumer
        .args(["--pace", "0.05", "--running", running, "wf", "2", command])
        .env("OUT", world.dir.path());
    Some(world.spawn(consumer))
}

/// Starts a pika worker of the queue `wf` that notes what it gets.
fn worker(vhost: &Vhost<'_>, world: &World, jobs: &str, command: &str) -> Option<Process> {
    let mut worker = vhost.script("pika_worker.py")?;
    worker
        .args(["wf", jobs, "sh", "-c", command])
        .env("OUT", world.dir.path());
    Some(world.spawn(worker))
}

/// Has pika publish these bodies to the queue `wf`.
#[track_caller]
fn publish(vhost: &Vhost<'_>, bodies: &[&str]) -> bool {
    let Some(mut publisher) = vhost.script("pika_publisher.py") else {
        return false;
    };
    let text = bodies.join("\n") + "\n";
    let (code, _, stderr) = ran_with(publisher.arg("wf"), text.as_bytes());
    assert_eq!(code, 0, "{stderr}");
    true
}

/// Starts a client of the queue `wf`.
#[track_caller]
fn client(vhost: &Vhost<'_>, world: &World, command: &str, arguments: &[&str]) -> Process {
    let (url, password) = (vhost.url("wf"), vhost.rabbit.password_file());
    let mut all = vec!["--queue", &url, "--queue-password-file", &password];
    all.extend(["-c", command]);
    all.extend(arguments);
    world.client("worker", &all)
}

/// Waits until a file of the world has so many lines, and returns them in order.
#[track_caller]
fn lines(world: &World, name: &str, count: usize) -> Vec<String> {
    let mut lines = world.wait_lines(name, count);
    lines.sort();
    lines
}

/// Waits until the queue `wf` is empty and nothing is held.
#[track_caller]
fn drained(vhost: &Vhost<'_>) {
    vhost.wait_counts("wf", 0, 0);
}

// --- The scripts among themselves ---

#[test]
fn the_scripts_of_oodt_send_and_take_what_oodt_does() {
    let Some(rabbit) = Rabbit::shared() else {
        return;
    };
    let (world, vhost) = (World::new(), rabbit.vhost());
    if !produce(&vhost, &["wf", "3", "Dataset=abc", "Project=Zürich"]) {
        return;
    }
    let queue = vhost.queue("wf").expect("queue");
    assert_eq!(queue["type"], "classic");
    assert_eq!(queue["durable"], true);
    let message = vhost.take("wf", 1).remove(0);
    assert_eq!(message.exchange, "oodt-exchange");
    assert_eq!(message.key, "wf");
    let metadata = json!({"Dataset": "abc", "Project": "Zürich"});
    assert_eq!(
        String::from_utf8_lossy(&message.body),
        r#"{"Dataset": "abc", "Project": "Zürich"}"#
    );
    let mut properties = message.properties;
    let app_id = properties.as_object_mut().expect("object").remove("app_id");
    assert_eq!(app_id.and_then(|id| Some(id.as_str()?.len())), Some(36));
    let expected =
        json!({"content_type": "application/json", "delivery_mode": 2, "headers": metadata});
    assert_eq!(properties, expected);

    world.file("go", "");
    let taker = consumer(&vhost, &world, NOTE).expect("consumer");
    produce(&vhost, &["--java", "wf", "1", "Files=a,b"]);
    let noted = lines(&world, "noted", 3);
    drained(&vhost);
    let line = r#"{"Dataset": "abc", "Project": "Zürich"}"#;
    assert_eq!(noted, [line, line, r#"{"Files": ["a", "b"]}"#]);
    taker.kill();
}

#[test]
fn the_consumer_of_oodt_returns_what_is_refused_and_dies_of_other_bodies() {
    let Some(rabbit) = Rabbit::shared() else {
        return;
    };
    let (world, vhost) = (World::new(), rabbit.vhost());
    if !produce(&vhost, &["wf", "1", "n=1"]) {
        return;
    }
    // The same message comes again and again, until it is accepted.
    let refusing = r#"cat >>"$OUT/noted"; [ "$(wc -l <"$OUT/noted")" -ge 3 ]"#;
    world.file("go", "");
    let mut taker = consumer(&vhost, &world, refusing).expect("consumer");
    assert_eq!(lines(&world, "noted", 3).len(), 3);
    drained(&vhost);
    vhost.publish("wf", "no JSON", &json!({}));
    assert_eq!(taker.wait(), 1, "{}", taker.log_text());
    vhost.wait_counts("wf", 1, 0);
    assert!(vhost.take("wf", 1)[0].redelivered);
    assert_eq!(world.lines("noted").len(), 3);
}

#[test]
fn the_scripts_of_pika_confirm_and_settle() {
    let Some(rabbit) = Rabbit::shared() else {
        return;
    };
    let (world, vhost) = (World::new(), rabbit.vhost());
    vhost.declare("dead");
    let target = json!({"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "dead"});
    vhost.declare_with("wf", &target);
    if !publish(&vhost, &["1", "2", "ill", "4"]) {
        return;
    }
    let first = vhost.peek("wf", 1).remove(0);
    assert_eq!(first.properties["message_id"], "pika-1");
    let command = r#"read -r n || true; echo "$n" >>"$OUT/noted"; [ "$n" != ill ]"#;
    let taker = worker(&vhost, &world, "2", command).expect("worker");
    assert_eq!(lines(&world, "noted", 4), ["1", "2", "4", "ill"]);
    drained(&vhost);
    vhost.wait_counts("dead", 1, 0);
    assert_eq!(vhost.take("dead", 1)[0].body, b"ill");
    taker.kill();
}

// --- Others to Tael ---

#[test]
fn messages_of_oodt_run_once_each_in_both_modes() {
    let Some(rabbit) = Rabbit::shared() else {
        return;
    };
    for mode in ["accept", "done"] {
        let (world, vhost) = (World::new(), rabbit.vhost());
        // Its messages have no id, and these five are equal.
        if !produce(&vhost, &["wf", "5", "n=1"]) {
            return;
        }
        let client = client(&vhost, &world, RUN, &["--settle", mode, "--jobs", "2"]);
        assert_eq!(lines(&world, "runs", 5), ["1"; 5], "{mode}");
        produce(&vhost, &["wf", "1", "n=sentinel"]);
        let runs = lines(&world, "runs", 6);
        assert_eq!(runs, ["1", "1", "1", "1", "1", "sentinel"], "{mode}");
        drained(&vhost);
        client.stop();
    }
}

#[test]
fn values_of_oodt_are_exported_from_strings_and_from_lists() {
    let Some(rabbit) = Rabbit::shared() else {
        return;
    };
    let (world, vhost) = (World::new(), rabbit.vhost());
    vhost.declare("wf");
    let command = r#"printf '%s|%s|%s|%s\n' "$TAEL_QUEUE" "$Dataset" "$ATTR_FILES" "$TAEL_REDELIVERED" >>"$OUT/runs""#;
    let command = command.replace("$Dataset", "$ATTR_DATASET");
    let client = client(&vhost, &world, &command, &["--when", "Dataset=Zürich"]);
    if !produce(&vhost, &["wf", "1", "Dataset=Zürich", "Files=a"]) {
        return;
    }
    assert_eq!(lines(&world, "runs", 1), ["wf|Zürich|a|0"]);
    produce(
        &vhost,
        &["--java", "wf", "1", "Dataset=Zürich", "Files=a,b"],
    );
    let expected = [r#"wf|Zürich|["a","b"]|0"#, "wf|Zürich|a|0"];
    assert_eq!(lines(&world, "runs", 2), expected);
    drained(&vhost);
    client.stop();
}

#[test]
fn a_consumer_of_oodt_and_a_client_share_a_queue() {
    let Some(rabbit) = Rabbit::shared() else {
        return;
    };
    let (world, vhost) = (World::new(), rabbit.vhost());
    vhost.declare("wf");
    let Some(taker) = consumer(&vhost, &world, NOTE) else {
        return;
    };
    let run = r#"echo "$ATTR_N" >>"$OUT/runs"; until [ -e "$OUT/go" ]; do sleep 0.02; done"#;
    let client = client(&vhost, &world, run, &["--settle", "done", "--jobs", "2"]);
    for n in 0..12 {
        vhost.publish("wf", format!(r#"{{"n": "{n}"}}"#), &json!({}));
    }
    // Neither takes more than it can run.
    lines(&world, "noted", 2);
    vhost.wait_counts("wf", 8, 2);
    world.file("go", "");
    drained(&vhost);
    wait_until("each was taken", || {
        world.lines("noted").len() + world.lines("runs").len() >= 12
    });
    let mut all: Vec<u32> = world
        .lines("noted")
        .iter()
        .map(|line| serde_json::from_str::<Value>(line).expect("json")["n"].clone())
        .map(|n| n.as_str().expect("text").parse().expect("number"))
        .chain(world.lines("runs").iter().map(|n| n.parse().expect("n")))
        .collect();
    all.sort_unstable();
    assert_eq!(all, (0..12).collect::<Vec<u32>>());
    client.stop();
    taker.kill();
}

#[test]
fn messages_of_pika_and_amqp_publish_run_and_others_are_put_aside() {
    let Some(rabbit) = Rabbit::shared() else {
        return;
    };
    if !has_program("amqp-publish", "a foreign publisher") {
        return;
    }
    let (world, vhost) = (World::new(), rabbit.vhost());
    vhost.declare_quorum("wf");
    vhost.declare_quorum("wf.dead");
    let client = client(&vhost, &world, RUN, &["--settle", "done"]);
    if !publish(&vhost, &[r#"{"n": 1}"#, "no JSON", r#"{"n": 2}"#]) {
        return;
    }
    assert_eq!(lines(&world, "runs", 2), ["1", "2"]);
    let mut other = Command::new("amqp-publish");
    other.args(["-u", &vhost.open_url(), "-r", "wf", "-b", r#"{"n": 3}"#]);
    succeeds(&mut other);
    assert_eq!(lines(&world, "runs", 3), ["1", "2", "3"]);
    drained(&vhost);
    vhost.wait_counts("wf.dead", 1, 0);
    let dead = vhost.take("wf.dead", 1).remove(0);
    assert_eq!(dead.body, b"no JSON");
    let headers = &dead.properties["headers"];
    assert_eq!(headers["x-tael-message-id"], "pika-2", "{headers}");
    assert_eq!(headers["x-tael-reason"], "unreadable", "{headers}");
    client.stop();
}

// --- Tael to others ---

/// Pushes to the queue `wf` by `tael queue push`, which must succeed.
#[track_caller]
fn push(vhost: &Vhost<'_>, world: &World, arguments: &[&str], input: &str) {
    let mut command = world.tael(["queue", "push", &vhost.url("wf")]);
    command
        .args(["--queue-password-file", &vhost.rabbit.password_file()])
        .args(arguments);
    let (code, _, stderr) = ran_with(&mut command, input.as_bytes());
    assert_eq!(code, 0, "{stderr}");
}

#[test]
fn pushed_messages_are_taken_by_the_consumer_of_oodt() {
    let Some(rabbit) = Rabbit::shared() else {
        return;
    };
    let (world, vhost) = (World::new(), rabbit.vhost());
    vhost.declare("wf");
    let Some(taker) = consumer(&vhost, &world, NOTE) else {
        return;
    };
    world.file("go", "");
    let body = r#"{"Dataset": "Zürich"}"#;
    push(&vhost, &world, &["-m", body, "--count", "2"], "");
    push(&vhost, &world, &["--attr", "Dataset", "abc"], "");
    let noted = lines(&world, "noted", 3);
    assert_eq!(noted[..2], [body, body]);
    let attributes: Value = serde_json::from_str(&noted[2]).expect("json");
    assert_eq!(attributes["Dataset"], "abc");
    drained(&vhost);
    taker.kill();
}

#[test]
fn pushed_messages_are_taken_by_pika_and_amqp_consume() {
    let Some(rabbit) = Rabbit::shared() else {
        return;
    };
    if !has_program("amqp-consume", "a foreign consumer") {
        return;
    }
    let (world, vhost) = (World::new(), rabbit.vhost());
    vhost.declare_quorum("wf");
    let command = r#"(cat; echo) >>"$OUT/noted""#;
    let Some(taker) = worker(&vhost, &world, "1", command) else {
        return;
    };
    push(&vhost, &world, &["-l"], "{\"n\":1}\nno JSON\n{\"n\":2}\n");
    let expected = ["no JSON", r#"{"n":1}"#, r#"{"n":2}"#];
    assert_eq!(lines(&world, "noted", 3), expected);
    drained(&vhost);
    taker.kill();

    push(&vhost, &world, &["-l"], "a\nb\n");
    let mut other = Command::new("amqp-consume");
    other.args(["-u", &vhost.open_url(), "-q", "wf", "-c", "2", "--"]);
    other
        .args(["sh", "-c", command])
        .env("OUT", world.dir.path());
    succeeds(&mut other);
    assert_eq!(world.lines("noted")[3..], ["a", "b"]);
    drained(&vhost);
}
