//! A client takes work from queues of RabbitMQ.

use std::fs;

use serde_json::{Value, json};

use crate::common::rabbit::{Rabbit, Vhost};
use crate::common::{Process, World, json_of, succeeds, wait_until};

/// A command that records its attributes, and the queue.
const RECORD: &str =
    r#"echo "$ATTR_SAMPLE $TAEL_QUEUE $TAEL_REDELIVERED $TAEL_FENCE" >> "$OUT/runs""#;

/// A command that records that it runs, and works until there is a file.
const UNTIL_GO: &str =
    r#"echo "$ATTR_SAMPLE" >> "$OUT/runs"; until [ -e "$OUT/go" ]; do sleep 0.02; done"#;

/// Waits until the client `who` takes from its queue.
#[track_caller]
fn takes(world: &World, who: &str) {
    world.wait_report(who, "/queues/0/online", true);
}

fn publish(vhost: &Vhost<'_>, queue: &str, sample: &str) {
    let id = ulid::Ulid::generate().to_string();
    publish_with(vhost, queue, sample, &json!({"message_id": id}));
}

fn publish_with(vhost: &Vhost<'_>, queue: &str, sample: &str, properties: &Value) {
    vhost.publish(queue, json!({"sample": sample}).to_string(), properties);
}

/// Returns a configuration whose trigger takes from a queue; `rest` is the rest of the trigger.
fn takes_from(rabbit: &Rabbit, url: &str, rest: &str) -> String {
    let password = rabbit.password_file();
    format!(
        "[client]\nqueue-password-file = '{password}'\n[[trigger]]\nname = 'a'\nqueue = '{url}'\n{rest}\n"
    )
}

#[track_caller]
fn runs(world: &World, count: usize) -> Vec<String> {
    let lines = world.wait_lines("runs", count);
    assert_eq!(lines.len(), count, "{lines:?}");
    lines
}

fn counts(vhost: &Vhost<'_>, queue: &str) -> (u64, u64) {
    let counts = vhost.counts(queue);
    (counts.ready, counts.unacked)
}

#[test]
fn each_message_runs_once_in_both_modes_and_types() {
    let Some(rabbit) = Rabbit::shared() else {
        return;
    };
    let vhost = rabbit.vhost();
    vhost.declare("classic");
    vhost.declare_quorum("quorum");
    for queue in ["classic", "quorum"] {
        for settle in ["accept", "done"] {
            let world = World::new();
            let ears = world.ears(&["lab/infrastructure/pipelines/w/status"]);
            for sample in ["a", "b"] {
                publish(&vhost, queue, sample);
            }
            // Equal messages without an id are different ones.
            for _ in 0..3 {
                publish_with(&vhost, queue, "c", &json!({}));
            }
            let worker = vhost.worker(&world, "w", queue, &["--settle", settle, "-c", RECORD]);
            let mut lines = runs(&world, 5);
            publish(&vhost, queue, "d");
            lines = [lines, runs(&world, 6)[5..].to_vec()].concat();
            let wanted = ["a", "b", "c", "c", "c", "d"].map(|s| format!("{s} {queue} 0 0"));
            assert_eq!(lines, wanted, "{settle}");
            vhost.wait_counts(queue, 0, 0);
            wait_until("six ends", || ears.count("w", "finished") == 6);
            let end = ears.status("w", "started");
            assert_eq!(end.payload["reason"], format!("message of queue {queue}"));
            worker.stop();
        }
    }
}

#[test]
fn an_id_is_one_event_however_often_it_is_sent() {
    let Some(rabbit) = Rabbit::shared() else {
        return;
    };
    let (vhost, world) = (rabbit.vhost(), World::new());
    vhost.declare("q");
    let worker = vhost.worker(&world, "w", "q", &["-c", RECORD]);
    for _ in 0..3 {
        publish_with(&vhost, "q", "same", &json!({"message_id": "1"}));
    }
    // The same id with another body is another event.
    publish_with(&vhost, "q", "other", &json!({"message_id": "1"}));
    let lines = runs(&world, 2);
    assert_eq!(lines, ["same q 0 0", "other q 0 0"]);
    vhost.wait_counts("q", 0, 0);
    world.wait_report("w", "/events/duplicate", 2);
    worker.stop();
}

#[test]
fn no_more_is_taken_than_jobs_are_free() {
    let Some(rabbit) = Rabbit::shared() else {
        return;
    };
    for (settle, unacked) in [("accept", 0), ("done", 2)] {
        let (vhost, world) = (rabbit.vhost(), World::new());
        vhost.declare_quorum("q");
        for n in 0..7 {
            publish(&vhost, "q", &n.to_string());
        }
        let options = ["--settle", settle, "--jobs", "2", "-c", UNTIL_GO];
        let first = vhost.worker(&world, "first", "q", &options);
        runs(&world, 2);
        vhost.wait_counts("q", 5, unacked);
        // The rest is there for others.
        let second = vhost.worker(&world, "second", "q", &options);
        runs(&world, 4);
        vhost.wait_counts("q", 3, 2 * unacked);
        world.file("go", "");
        let mut samples = runs(&world, 7);
        samples.sort();
        assert_eq!(samples, ["0", "1", "2", "3", "4", "5", "6"]);
        vhost.wait_counts("q", 0, 0);
        first.stop();
        second.stop();
    }
}

#[test]
fn a_prefetch_takes_more_than_the_jobs() {
    let Some(rabbit) = Rabbit::shared() else {
        return;
    };
    for (settle, unacked) in [("accept", 0), ("done", 4)] {
        let (vhost, world) = (rabbit.vhost(), World::new());
        vhost.declare("q");
        for n in 0..7 {
            publish(&vhost, "q", &n.to_string());
        }
        let options = ["--settle", settle, "--prefetch", "4", "-c", UNTIL_GO];
        let worker = vhost.worker(&world, "w", "q", &options);
        runs(&world, 1);
        vhost.wait_counts("q", 3, unacked);
        let consumers = vhost.consumers("q");
        if settle == "done" {
            let timeout = &consumers[0]["arguments"]["x-consumer-timeout"];
            assert_eq!(
                (timeout, &consumers[0]["prefetch"]),
                (&json!(604_800_000), &json!(4))
            );
        }
        world.file("go", "");
        runs(&world, 7);
        vhost.wait_counts("q", 0, 0);
        worker.stop();
    }
}

#[test]
fn what_cannot_run_goes_to_the_dead_letter_queue_and_stops_nothing() {
    let Some(rabbit) = Rabbit::shared() else {
        return;
    };
    for settle in ["accept", "done"] {
        let (vhost, world) = (rabbit.vhost(), World::new());
        vhost.declare("q");
        let options = [
            "--settle",
            settle,
            "--when",
            "kind=good",
            "--envreq",
            "SAMPLE",
            "--max-payload",
            "1000",
            "-c",
            r#"echo "$SAMPLE" >> "$OUT/runs""#,
        ];
        let worker = vhost.worker(&world, "w", "q", &options);
        let large = format!("{{\"a\":\"{}\"}}", "x".repeat(2000));
        let binary: Vec<u8> = (0..=255).collect();
        let bodies: [(&[u8], &str); 7] = [
            (b"", "unreadable"),
            (b"not json", "unreadable"),
            (b"[1]", "unreadable"),
            (&binary, "unreadable"),
            (large.as_bytes(), "unreadable"),
            (br#"{"kind":"bad"}"#, "unwanted"),
            (br#"{"kind":"good"}"#, "refused"),
        ];
        for (n, (body, _)) in bodies.iter().enumerate() {
            let properties = json!({
                "message_id": n.to_string(),
                "correlation_id": "c",
                "priority": 2,
                "headers": {"theirs": n},
            });
            vhost.publish("q", body, &properties);
        }
        vhost.publish("q", br#"{"kind":"good","sample":"s1"}"#, &json!({}));
        assert_eq!(runs(&world, 1), ["s1"]);
        vhost.wait_counts("q", 0, 0);
        vhost.wait_counts("q.dead", 7, 0);
        let dead = vhost.take("q.dead", 10);
        for (n, (body, reason)) in bodies.iter().enumerate() {
            let letter = &dead[n];
            assert_eq!(letter.body, *body, "{n}");
            let headers = &letter.properties["headers"];
            assert_eq!(headers["x-tael-reason"], *reason, "{n}");
            assert_eq!(headers["x-tael-queue"], "q");
            assert_eq!(headers["x-tael-message-id"], n.to_string());
            assert_eq!(headers["theirs"], n);
            assert!(
                !headers["x-tael-detail"]
                    .as_str()
                    .expect("detail")
                    .is_empty()
            );
            let properties = &letter.properties;
            assert_eq!(properties["correlation_id"], "c");
            assert_eq!(
                (&properties["priority"], &properties["delivery_mode"]),
                (&json!(2), &json!(2))
            );
            assert_ne!(properties["message_id"], n.to_string());
        }
        world.wait_report("w", "/events/refused", 7);
        worker.stop();
    }
}

#[test]
fn a_run_that_fails_for_good_is_dead_and_its_sender_hears_of_each_end() {
    let Some(rabbit) = Rabbit::shared() else {
        return;
    };
    for settle in ["accept", "done"] {
        let (vhost, world) = (rabbit.vhost(), World::new());
        for queue in ["q", "replies"] {
            vhost.declare(queue);
        }
        let command = r#"echo "$ATTR_SAMPLE" >> "$OUT/runs"; echo "why $ATTR_SAMPLE" >&2; exit "$ATTR_SAMPLE""#;
        let options = [
            "--settle",
            settle,
            "--retries",
            "1",
            "--retry-delay",
            "0s",
            "-c",
            command,
        ];
        let worker = vhost.worker(&world, "w", "q", &options);
        for (id, code) in [("good", "0"), ("bad", "3")] {
            let properties = json!({"message_id": id, "reply_to": "replies"});
            publish_with(&vhost, "q", code, &properties);
        }
        publish_with(
            &vhost,
            "q",
            "0",
            &json!({"message_id": "x", "reply_to": "gone"}),
        );
        let mut lines = runs(&world, 4);
        lines.sort();
        assert_eq!(lines, ["0", "0", "3", "3"]);
        vhost.wait_counts("q", 0, 0);
        vhost.wait_counts("replies", 2, 0);
        vhost.wait_counts("q.dead", 1, 0);
        let mut replies: Vec<Value> = vhost
            .take("replies", 5)
            .iter()
            .map(|reply| {
                assert_eq!(reply.properties["type"], "tael.completion");
                // A worker that takes it goes on with the count.
                assert_eq!(reply.properties["headers"]["tael-hops"], "1");
                let body: Value = serde_json::from_slice(&reply.body).expect("JSON");
                assert_eq!(reply.properties["correlation_id"], body["id"]);
                body
            })
            .collect();
        replies.sort_by_key(|reply| reply["id"].to_string());
        assert_eq!(
            (
                &replies[0]["id"],
                &replies[0]["status"],
                &replies[0]["return_code"]
            ),
            (&json!("bad"), &json!("failed"), &json!(3))
        );
        assert_eq!(
            (
                &replies[1]["id"],
                &replies[1]["status"],
                &replies[1]["return_code"]
            ),
            (&json!("good"), &json!("finished"), &json!(0))
        );
        let dead = vhost.take("q.dead", 5);
        let headers = &dead[0].properties["headers"];
        assert_eq!(headers["x-tael-reason"], "failed");
        assert_eq!(headers["x-tael-exit"], "3");
        assert_eq!(headers["x-tael-stderr"], "why 3");
        assert_eq!(headers["x-tael-unit"], replies[0]["unit"]);
        worker.stop();
    }
}

#[test]
fn a_canceled_run_is_not_dead_and_its_sender_hears_of_it() {
    let Some(rabbit) = Rabbit::shared() else {
        return;
    };
    for settle in ["accept", "done"] {
        let (vhost, world) = (rabbit.vhost(), World::new());
        for queue in ["q", "replies"] {
            vhost.declare(queue);
        }
        let options = ["--settle", settle, "--prefetch", "2", "-c", UNTIL_GO];
        let worker = vhost.worker(&world, "w", "q", &options);
        for id in ["1", "2"] {
            publish_with(
                &vhost,
                "q",
                id,
                &json!({"message_id": id, "reply_to": "replies"}),
            );
        }
        runs(&world, 1);
        world.wait_report("w", "/waiting", 1);
        // The second one waits, the first one runs.
        for state in ["pending", "running"] {
            let words = ["work", "--who", "w", "list", "--json", "--state", state];
            let list = json_of(&mut world.tael(words));
            let unit = list[0]["unit"].as_str().expect("id").to_owned();
            succeeds(&mut world.tael(["work", "--who", "w", "cancel", &unit]));
        }
        vhost.wait_counts("q", 0, 0);
        vhost.wait_counts("replies", 2, 0);
        for reply in vhost.take("replies", 3) {
            let reply: Value = serde_json::from_slice(&reply.body).expect("JSON");
            assert_eq!(reply["status"], "canceled", "{reply}");
        }
        assert_eq!(counts(&vhost, "q.dead"), (0, 0));
        worker.stop();
    }
}

#[test]
fn lists_of_one_value_are_values_and_the_payload_is_the_body() {
    let Some(rabbit) = Rabbit::shared() else {
        return;
    };
    let (vhost, world) = (rabbit.vhost(), World::new());
    vhost.declare("q");
    let command = r#"echo "$ATTR_DATASET $ATTR_FILES" >> "$OUT/runs"; cat > "$OUT/body""#;
    let options = ["--when", "Dataset=abc", "-c", command];
    let worker = vhost.worker(&world, "w", "q", &options);
    let body = r#"{"Dataset":["abc"],"Files":["a","b"]}"#;
    vhost.publish("q", body, &json!({"headers": {"Dataset": ["abc"]}}));
    assert_eq!(runs(&world, 1), [r#"abc ["a","b"]"#]);
    wait_until("the body is there", || {
        fs::read_to_string(world.path("body")).is_ok_and(|text| text == body)
    });
    worker.stop();
}

#[test]
fn a_message_that_comes_again_is_bound_to_its_run() {
    let Some(rabbit) = Rabbit::shared() else {
        return;
    };
    for (settle, kills) in [("accept", false), ("done", false), ("done", true)] {
        let (vhost, world) = (rabbit.vhost(), World::new());
        vhost.declare_quorum("q");
        let options = ["--settle", settle, "--jobs", "5", "-c", UNTIL_GO];
        let mut client = vhost.worker(&world, "w", "q", &options);
        publish(&vhost, "q", "with id");
        // Equal ones without an id.
        for _ in 0..3 {
            publish_with(&vhost, "q", "equal", &json!({}));
        }
        runs(&world, 4);
        let unacked = if settle == "done" { 4 } else { 0 };
        vhost.wait_counts("q", 0, unacked);
        for _ in 0..2 {
            if kills {
                client.kill();
                client = vhost.worker(&world, "w", "q", &options);
            } else {
                assert!(vhost.close_connections() > 0);
                takes(&world, "w");
            }
            vhost.wait_counts("q", 0, unacked);
        }
        publish(&vhost, "q", "sentinel");
        let lines = runs(&world, 5);
        assert_eq!(lines[4], "sentinel", "{lines:?}");
        world.file("go", "");
        vhost.wait_counts("q", 0, 0);
        runs(&world, 5);
        client.stop();
    }
}

#[test]
fn a_run_that_ended_without_a_connection_is_not_run_again() {
    let Some(rabbit) = Rabbit::shared() else {
        return;
    };
    for id in [json!({}), json!({"message_id": "1"})] {
        let (vhost, world) = (rabbit.vhost(), World::new());
        vhost.declare_quorum("q");
        let options = ["--settle", "done", "-c", UNTIL_GO];
        let client = vhost.worker(&world, "w", "q", &options);
        publish_with(&vhost, "q", "a", &id);
        runs(&world, 1);
        client.kill();
        // Its run ends meanwhile.
        world.file("go", "");
        vhost.wait_counts("q", 1, 0);
        let client = vhost.worker(&world, "w", "q", &options);
        vhost.wait_counts("q", 0, 0);
        publish(&vhost, "q", "sentinel");
        assert_eq!(runs(&world, 2), ["a", "sentinel"]);
        client.stop();
    }
}

#[test]
fn queues_that_cannot_be_used_are_said_and_taken_from_later() {
    let Some(rabbit) = Rabbit::shared() else {
        return;
    };
    let (vhost, world) = (rabbit.vhost(), World::new());
    let said = |worker: &Process, text: &str| {
        wait_until(text, || worker.log_text().contains(text));
    };
    // Not there.
    let url = vhost.url("q");
    let command = vhost.worker_command(&world, "w", &url, &["-c", RECORD]);
    let missing = world.online("w", command);
    said(&missing, "does queue 'q' exist?");
    vhost.declare("q");
    publish(&vhost, "q", "a");
    runs(&world, 1);
    missing.stop();
    // Declared otherwise.
    let options = ["--declare", "quorum", "-c", RECORD];
    let command = vhost.worker_command(&world, "w", &url, &options);
    let otherwise = world.online("w", command);
    said(&otherwise, "is declared otherwise");
    vhost.delete("q");
    takes(&world, "w");
    publish(&vhost, "q", "b");
    runs(&world, 2);
    // Deleted while it is consumed: it comes back by the declaration.
    vhost.delete("q");
    wait_until("the queue is there again", || vhost.queue("q").is_some());
    takes(&world, "w");
    publish(&vhost, "q", "c");
    runs(&world, 3);
    otherwise.stop();
    // Not allowed.
    let user = vhost.user(["^$", "^$", "^$"]);
    let url = vhost.url_at(rabbit.port(), &user, "q");
    let command = vhost.worker_command(&world, "w", &url, &["-c", RECORD]);
    let denied = world.online("w", command);
    said(&denied, "ACCESS_REFUSED");
    denied.stop();
    // May read only: no dead letters, and no claims.
    let user = vhost.user(["^$", "^$", "^q$"]);
    let url = vhost.url_at(rabbit.port(), &user, "q");
    let command = vhost.worker_command(&world, "w", &url, &["-c", RECORD]);
    let reader = world.online("w", command);
    takes(&world, "w");
    publish(&vhost, "q", "d");
    runs(&world, 4);
    vhost.publish("q", b"poison", &json!({}));
    publish(&vhost, "q", "e");
    runs(&world, 5);
    vhost.wait_counts("q", 0, 0);
    reader.stop();
    // The dead letter has stayed in the ledger.
    let command = vhost.worker_command(&world, "w", &vhost.url("q"), &["-c", RECORD]);
    let allowed = world.online("w", command);
    takes(&world, "w");
    assert_eq!(counts(&vhost, "q"), (0, 0));
    allowed.stop();
}

#[test]
fn a_paused_client_takes_nothing() {
    let Some(rabbit) = Rabbit::shared() else {
        return;
    };
    for settle in ["accept", "done"] {
        let (vhost, world) = (rabbit.vhost(), World::new());
        vhost.declare("q");
        let worker = vhost.worker(&world, "w", "q", &["--settle", settle, "-c", RECORD]);
        world.control(&["w", "pause"]);
        wait_until("no consumer is left", || vhost.consumers("q").is_empty());
        publish(&vhost, "q", "a");
        vhost.wait_counts("q", 1, 0);
        world.control(&["w", "resume"]);
        runs(&world, 1);
        vhost.wait_counts("q", 0, 0);
        worker.stop();
    }
}

#[test]
fn a_client_that_resumes_holds_no_more_than_its_prefetch() {
    let Some(rabbit) = Rabbit::shared() else {
        return;
    };
    let (vhost, world) = (rabbit.vhost(), World::new());
    vhost.declare("q");
    let command = r#"echo "$ATTR_SAMPLE" >> "$OUT/runs"; until [ -e "$OUT/go$ATTR_SAMPLE" ]; do sleep 0.02; done"#;
    let options = ["--settle", "done", "--jobs", "2", "-c", command];
    let worker = vhost.worker(&world, "w", "q", &options);
    for n in 0..6 {
        publish(&vhost, "q", &n.to_string());
    }
    vhost.wait_counts("q", 4, 2);
    let pause = || {
        world.control(&["w", "pause"]);
        wait_until("no consumer is left", || vhost.consumers("q").is_empty());
        world.control(&["w", "resume"]);
    };
    let free = |runs: &[u32]| {
        for n in runs {
            world.file(&format!("go{n}"), "");
        }
    };
    (0..2).for_each(|_| pause());
    // One that ends makes room for one.
    free(&[0]);
    runs(&world, 3);
    vhost.wait_counts("q", 3, 2);
    pause();
    free(&[1, 2]);
    runs(&world, 5);
    vhost.wait_counts("q", 1, 2);
    // Nothing is left of the pause.
    free(&[3, 4, 5]);
    runs(&world, 6);
    vhost.wait_counts("q", 0, 0);
    wait_until("it takes two again", || {
        let consumers = vhost.consumers("q");
        consumers.iter().any(|consumer| consumer["prefetch"] == 2)
    });
    worker.stop();
}

#[test]
fn a_wrong_password_is_said_and_a_new_one_is_read() {
    let Some(rabbit) = Rabbit::shared() else {
        return;
    };
    let (vhost, world) = (rabbit.vhost(), World::new());
    vhost.declare("q");
    let file = world.file("password", "wrong");
    let mut command = world.command("tael-client");
    command
        .args(["--who", "w", "--root", "lab", "--queue", &vhost.url("q")])
        .args(["--queue-password-file", &file, "-c", RECORD])
        .env("OUT", world.dir.path());
    let worker = world.online("w", command);
    wait_until("the refusal is said", || {
        worker.log_text().contains("ACCESS_REFUSED")
    });
    world.file("password", rabbit.password());
    takes(&world, "w");
    publish(&vhost, "q", "a");
    runs(&world, 1);
    let log = worker.log_text();
    assert!(
        !log.contains("wrong\n") && !log.contains(rabbit.password()),
        "{log}"
    );
    worker.stop();
}

#[test]
fn a_reload_takes_from_other_queues() {
    let Some(rabbit) = Rabbit::shared() else {
        return;
    };
    let (vhost, world) = (rabbit.vhost(), World::new());
    vhost.declare("one");
    vhost.declare("two");
    let config = |queue: &str| {
        let rest = format!("command = '''{RECORD}'''");
        takes_from(rabbit, &vhost.url(queue), &rest)
    };
    let file = world.file("tael.toml", config("one"));
    let mut command = world.command("tael-client");
    command
        .args(["--who", "w", "--root", "lab", "--config", &file])
        .env("OUT", world.dir.path());
    let worker = world.online("w", command);
    takes(&world, "w");
    publish(&vhost, "one", "a");
    runs(&world, 1);
    world.file("tael.toml", config("two"));
    worker.signal(nix::sys::signal::Signal::SIGHUP);
    world.wait_report("w", "/queues/0/queue", "two");
    takes(&world, "w");
    wait_until("the first queue is left", || {
        vhost.consumers("one").is_empty()
    });
    publish(&vhost, "two", "b");
    publish(&vhost, "one", "stays");
    assert_eq!(runs(&world, 2)[1], "b two 0 0");
    vhost.wait_counts("one", 1, 0);
    worker.stop();
}

#[test]
fn a_queue_that_is_left_keeps_its_runs_until_they_end() {
    let Some(rabbit) = Rabbit::shared() else {
        return;
    };
    let (vhost, world) = (rabbit.vhost(), World::new());
    vhost.declare("one");
    vhost.declare("two");
    let config = |queue: &str| {
        let rest = format!("settle = 'done'\nprefetch = 3\ncommand = '''{UNTIL_GO}'''");
        takes_from(rabbit, &vhost.url(queue), &rest)
    };
    let file = world.file("tael.toml", config("one"));
    let mut command = world.command("tael-client");
    command
        .args(["--who", "w", "--root", "lab", "--config", &file])
        .env("OUT", world.dir.path());
    let worker = world.online("w", command);
    takes(&world, "w");
    let connections = vhost.connections().len();
    for sample in ["a", "b", "c", "d", "e"] {
        publish(&vhost, "one", sample);
    }
    vhost.wait_counts("one", 2, 3);
    runs(&world, 1);
    let reload = |queue: &str| {
        world.file("tael.toml", config(queue));
        worker.signal(nix::sys::signal::Signal::SIGHUP);
        world.wait_report("w", "/queues/0/queue", queue);
        takes(&world, "w");
    };
    reload("two");
    wait_until("the first queue is left", || {
        vhost.consumers("one").is_empty()
    });
    // All of them have units, and no other host may run those.
    assert_eq!(counts(&vhost, "one"), (2, 3));
    // The session goes on when the queue is named again.
    reload("one");
    reload("two");
    assert_eq!(counts(&vhost, "one"), (2, 3));
    fs::write(world.path("go"), "").expect("go");
    vhost.wait_counts("one", 2, 0);
    assert_eq!(runs(&world, 3), ["a", "b", "c"]);
    wait_until("its connection is closed", || {
        vhost.connections().len() == connections
    });
    publish(&vhost, "two", "f");
    assert_eq!(runs(&world, 4)[3], "f");
    worker.stop();
}

#[test]
fn topics_and_queues_share_a_trigger() {
    let Some(rabbit) = Rabbit::shared() else {
        return;
    };
    let (vhost, world) = (rabbit.vhost(), World::new());
    vhost.declare("q");
    let options = [
        "-t",
        "lab/seq/status",
        "--when",
        "status=finished",
        "-c",
        RECORD,
    ];
    let worker = vhost.worker(&world, "w", "q", &options);
    world.message(
        "lab/seq/status",
        &[("status", "finished"), ("sample", "topic")],
    );
    assert_eq!(runs(&world, 1), ["topic   "]);
    let body = json!({"status": "finished", "sample": "queue"}).to_string();
    vhost.publish("q", body, &json!({}));
    assert_eq!(runs(&world, 2)[1], "queue q 0 0");
    worker.stop();
}

#[test]
fn a_stop_gives_back_what_is_not_accepted() {
    let Some(rabbit) = Rabbit::shared() else {
        return;
    };
    let (vhost, world) = (rabbit.vhost(), World::new());
    vhost.declare("q");
    let options = ["--settle", "done", "--stop-units", "-c", UNTIL_GO];
    let worker = vhost.worker(&world, "w", "q", &options);
    publish(&vhost, "q", "a");
    publish(&vhost, "q", "b");
    runs(&world, 1);
    vhost.wait_counts("q", 1, 1);
    worker.stop();
    // The run was canceled, and that is its end.
    vhost.wait_counts("q", 1, 0);
}
