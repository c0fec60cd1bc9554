//! Messages, senders and users of a broker that mean harm, or do it by mistake.

use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::common::rabbit::{Rabbit, Vhost};
use crate::common::{World, wait_until};

/// A command that records its sample, and ends as the message says.
const RECORD: &str = r#"echo "$ATTR_SAMPLE" >> "$OUT/runs"; exit "${ATTR_EXIT:-0}""#;

/// Returns the client `w` of `user`, which takes from `q`.
fn command_of(world: &World, vhost: &Vhost<'_>, user: &str, arguments: &[&str]) -> Command {
    let url = vhost.url_at(vhost.rabbit.port(), user, "q");
    vhost.worker_command(world, "w", &url, arguments)
}

fn publish(vhost: &Vhost<'_>, body: &Value, properties: &Value) {
    vhost.publish("q", body.to_string(), properties);
}

#[test]
fn a_dead_letter_goes_to_no_queue_that_the_message_names() {
    let Some(rabbit) = Rabbit::shared() else {
        return;
    };
    let (vhost, world) = (rabbit.vhost(), World::new());
    for queue in ["q", "other"] {
        vhost.declare(queue);
    }
    let worker = vhost.worker(&world, "w", "q", &["-c", RECORD]);
    let headers = json!({"CC": ["q", "other"], "x-delivery-count": 7, "theirs": 1});
    let properties = json!({"message_id": "m", "headers": headers});
    // The broker gives both queues their copies.
    publish(&vhost, &json!({"sample": "m", "exit": 3}), &properties);
    vhost.wait_counts("other", 1, 0);
    vhost.wait_counts("q.dead", 1, 0);
    publish(&vhost, &json!({"sample": "sentinel"}), &json!({}));
    wait_until("the sentinel", || {
        world.lines("runs").contains(&"sentinel".to_owned())
    });
    vhost.wait_counts("q", 0, 0);
    assert_eq!(world.wait_lines("runs", 2), ["m", "sentinel"]);
    vhost.wait_counts("other", 1, 0);
    let dead = vhost.take("q.dead", 5);
    assert_eq!(dead.len(), 1);
    assert_eq!(dead[0].properties["headers"]["theirs"], 1);
    worker.stop();
}

#[test]
fn addresses_for_reports_that_lead_nowhere_stop_no_other_letters() {
    let Some(rabbit) = Rabbit::shared() else {
        return;
    };
    let (vhost, world) = (rabbit.vhost(), World::new());
    for queue in ["q", "replies"] {
        vhost.declare(queue);
    }
    let worker = vhost.worker(&world, "w", "q", &["-c", RECORD]);
    let long = "x".repeat(255);
    let odd = "\u{1}\n\u{fffd}ä".repeat(20);
    let addresses = [
        "amq.rabbitmq.reply-to.g1h2AA5yZXBseUAxMjM0NTY3OAAAAAAAAAAAAAAAAA==.x",
        "amq.rabbitmq.reply-to.",
        "amq.rabbitmq.reply-to.%%%",
        &long,
        &odd,
        "gone",
    ];
    for (n, address) in addresses.iter().enumerate() {
        let properties = json!({"message_id": n.to_string(), "reply_to": address});
        publish(&vhost, &json!({"sample": n, "exit": n % 2}), &properties);
    }
    let properties = json!({"message_id": "last", "reply_to": "replies"});
    publish(&vhost, &json!({"sample": "last"}), &properties);
    world.wait_lines("runs", addresses.len() + 1);
    vhost.wait_counts("replies", 1, 0);
    vhost.wait_counts("q.dead", 3, 0);
    vhost.wait_counts("q", 0, 0);
    world.wait_report("w", "/queues/0/letters", 0);
    worker.stop();
}

#[test]
fn dead_letters_that_the_broker_does_not_take_stop_no_reports() {
    let Some(rabbit) = Rabbit::shared() else {
        return;
    };
    let (vhost, world) = (rabbit.vhost(), World::new());
    for queue in ["q", "replies"] {
        vhost.declare(queue);
    }
    let worker = vhost.worker(&world, "w", "q", &["--jobs", "20", "-c", RECORD]);
    vhost.delete("q.dead");
    for _ in 0..400 {
        vhost.publish("q", b"poison", &json!({}));
    }
    let properties = json!({"message_id": "last", "reply_to": "replies"});
    publish(&vhost, &json!({"sample": "last"}), &properties);
    world.wait_lines("runs", 1);
    vhost.wait_counts("q", 0, 0);
    vhost.wait_counts("replies", 1, 0);
    let log = worker.log_text();
    let said = log.matches("does not take a message").count();
    assert_eq!(said, 1, "{log}");
    worker.stop();
}

#[test]
fn a_user_who_may_not_read_is_said_to_once() {
    let Some(rabbit) = Rabbit::shared() else {
        return;
    };
    let (vhost, world) = (rabbit.vhost(), World::new());
    vhost.declare("q");
    for settle in ["accept", "done"] {
        let user = vhost.user([".*", ".*", "^(amq\\.|tael\\.)"]);
        let options = ["--settle", settle, "-c", RECORD];
        let worker = world.online("w", command_of(&world, &vhost, &user, &options));
        wait_until("five connections", || {
            rabbit
                .log()
                .matches(&format!("user '{user}' authenticated"))
                .count()
                >= 5
        });
        let log = worker.log_text();
        assert_eq!(log.matches("ACCESS_REFUSED").count(), 1, "{log}");
        assert_eq!(log.matches("taking from queue").count(), 0, "{log}");
        worker.stop();
    }
}

#[test]
fn one_id_with_two_bodies_is_two_messages() {
    let Some(rabbit) = Rabbit::shared() else {
        return;
    };
    for settle in ["accept", "done"] {
        let (vhost, world) = (rabbit.vhost(), World::new());
        vhost.declare("q");
        let worker = vhost.worker(&world, "w", "q", &["--settle", settle, "-c", RECORD]);
        for sample in ["a", "b"] {
            publish(
                &vhost,
                &json!({"sample": sample}),
                &json!({"message_id": "1"}),
            );
        }
        assert_eq!(world.wait_lines("runs", 2), ["a", "b"]);
        vhost.wait_counts("q", 0, 0);
        worker.stop();
    }
}

#[test]
fn messages_whose_runs_are_skipped_are_settled_and_reported() {
    let Some(rabbit) = Rabbit::shared() else {
        return;
    };
    for overlap in ["skip", "replace", "coalesce"] {
        for settle in ["accept", "done"] {
            let (vhost, world) = (rabbit.vhost(), World::new());
            for queue in ["q", "replies"] {
                vhost.declare(queue);
            }
            let wait = r#"sleep 1; echo "$ATTR_SAMPLE" >> "$OUT/ends""#;
            let options = [
                "--settle",
                settle,
                "--overlap",
                overlap,
                "--prefetch",
                "10",
                "-c",
                wait,
            ];
            let worker = vhost.worker(&world, "w", "q", &options);
            for n in 0..5 {
                let properties = json!({"message_id": n.to_string(), "reply_to": "replies"});
                publish(&vhost, &json!({"sample": n}), &properties);
            }
            wait_until("five reports", || vhost.counts("replies").ready == 5);
            vhost.wait_counts("q", 0, 0);
            let replies: Vec<Value> = vhost
                .take("replies", 9)
                .iter()
                .map(|reply| serde_json::from_slice(&reply.body).expect("JSON"))
                .collect();
            let mut ids: Vec<String> = replies.iter().map(|r| r["id"].to_string()).collect();
            ids.sort();
            ids.dedup();
            assert_eq!(ids.len(), 5, "{overlap} {settle}");
            let finished = replies.iter().filter(|r| r["status"] == "finished");
            let ends = world.lines("ends").len();
            assert_eq!(finished.count(), ends, "{overlap} {settle}");
            worker.stop();
        }
    }
}

#[test]
fn hostile_headers_stop_nothing() {
    let Some(rabbit) = Rabbit::shared() else {
        return;
    };
    let (vhost, world) = (rabbit.vhost(), World::new());
    vhost.declare("q");
    let worker = vhost.worker(&world, "w", "q", &["-c", RECORD]);
    let mut deep = json!(1);
    for _ in 0..60 {
        deep = json!({"t": [deep]});
    }
    let headers = [
        json!({"x": "y".repeat(70_000)}),
        json!({"x": "y".repeat(30_000)}),
        json!({"deep": deep}),
        json!({"x-tael-reason": "mine", "x-death": [{"count": 3}]}),
        json!({"tael-hops": 1e30}),
        json!({"tael-hops": -5}),
        json!({"tael-hops": 4_000_000_000_u64}),
        json!({"many": vec![1; 20_000]}),
        json!({"traceparent": "\n\u{0}x"}),
    ];
    for (n, headers) in headers.iter().enumerate() {
        let properties = json!({
            "message_id": format!("{n}\n\u{1b}[31m").repeat(20),
            "headers": headers,
            "correlation_id": "\u{0}".repeat(200),
            "user_id": "tael",
            "expiration": "600000",
            "priority": 255,
            "type": "t", "app_id": "a", "content_encoding": "e",
        });
        publish(&vhost, &json!({"sample": n, "exit": 1}), &properties);
    }
    publish(&vhost, &json!({"sample": "last"}), &json!({}));
    wait_until("the last one runs", || {
        world.lines("runs").contains(&"last".to_owned())
    });
    wait_until("all dead letters", || {
        vhost.counts("q.dead").ready == headers.len() as u64
    });
    world.wait_report("w", "/queues/0/letters", 0);
    vhost.wait_counts("q", 0, 0);
    let log = worker.log_text();
    assert!(!log.contains('\u{1b}'), "{log}");
    worker.stop();
}

#[test]
fn a_run_that_ends_during_a_long_pause_is_not_repeated() {
    let Some(rabbit) = Rabbit::shared() else {
        return;
    };
    let (vhost, world) = (rabbit.vhost(), World::new());
    vhost.declare("q");
    let wait = r#"echo "$ATTR_SAMPLE" >> "$OUT/runs"
        until [ -e "$OUT/go" ]; do sleep 0.02; done; echo >> "$OUT/ends""#;
    let mut command = command_of(&world, &vhost, "tael", &["--settle", "done", "-c", wait]);
    // A lost message is expected for two seconds.
    command.env("TAEL_TEST_QUEUE_GRACE", "100");
    let worker = world.online("w", command);
    publish(&vhost, &json!({"sample": "m"}), &json!({}));
    world.wait_lines("runs", 1);
    world.control(&["w", "pause"]);
    wait_until("no consumer is left", || vhost.consumers("q").is_empty());
    vhost.close_connections();
    vhost.wait_counts("q", 1, 0);
    world.wait_report("w", "/queues/0/online", true);
    world.file("go", "");
    wait_until("it has ended", || world.lines("ends").len() == 1);
    std::thread::sleep(Duration::from_secs(5));
    world.control(&["w", "resume"]);
    vhost.wait_counts("q", 0, 0);
    publish(&vhost, &json!({"sample": "sentinel"}), &json!({}));
    assert_eq!(world.wait_lines("runs", 2), ["m", "sentinel"]);
    worker.stop();
}
