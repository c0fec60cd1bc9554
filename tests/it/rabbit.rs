//! The test kit's RabbitMQ, and links to it, do what tests rely on.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::common::proxy::Proxy;
use crate::common::rabbit::{Rabbit, Vhost};
use crate::common::{PATIENCE, Process, World, has_program, ran, succeeds, wait_until};
use serde_json::{Value, json};

/// What a client of AMQP 0-9-1 sends first.
const GREETING: &[u8] = b"AMQP\0\0\x09\x01";

/// A command that works until there is a file, or the folder of the test is gone.
const UNTIL_GO: &str = r#"until [ -e "$OUT/go" ] || ! [ -d "$OUT" ]; do sleep 0.02; done"#;

/// Connects to a port, greets the broker, and returns the connection if it answers.
fn greeted(port: u16) -> Option<TcpStream> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).expect("timeout");
    stream.write_all(GREETING).ok()?;
    // A frame of a method on channel 0: connection.start.
    let mut head = [0; 3];
    stream.read_exact(&mut head).ok()?;
    assert_eq!(head, [1, 0, 0]);
    Some(stream)
}

/// Starts `amqp-consume`, which holds `count` messages while its command works on the first one.
fn holder(vhost: &Vhost<'_>, world: &World, queue: &str, count: u32, command: &str) -> Process {
    let mut consumer = Command::new("amqp-consume");
    consumer
        .args(["-u", &vhost.open_url(), "-q", queue])
        .args(["-p", &count.to_string(), "--", "sh", "-c", command])
        .env("OUT", world.dir.path())
        .stdout(Stdio::null());
    world.spawn(consumer)
}

#[test]
fn rabbit_counts_messages_exactly_and_keeps_them_through_a_kill() {
    let Some(rabbit) = Rabbit::own() else { return };
    let vhost = rabbit.vhost();
    vhost.declare("classic");
    vhost.declare_quorum("quorum");
    for queue in ["classic", "quorum"] {
        for n in 0..10 {
            vhost.publish(queue, n.to_string(), &json!({}));
        }
        assert_eq!(vhost.counts(queue).ready, 10);
    }
    rabbit.kill9();
    rabbit.restart();
    for queue in ["classic", "quorum"] {
        vhost.wait_counts(queue, 10, 0);
        let first = vhost.take(queue, 1);
        assert_eq!(first[0].body, b"0");
        vhost.wait_counts(queue, 9, 0);
    }
    rabbit.shut_down();
    rabbit.restart();
    vhost.wait_counts("classic", 9, 0);
    vhost.wait_counts("quorum", 9, 0);
}

#[test]
fn rabbit_gives_back_what_was_published() {
    let Some(rabbit) = Rabbit::shared() else {
        return;
    };
    let vhost = rabbit.vhost();
    let url = vhost.url("q");
    let (host, name) = url.rsplit_once("/lab%2f").expect("vhost");
    assert_eq!(host, format!("amqp://tael@127.0.0.1:{}", rabbit.port()));
    assert!(name.ends_with("/q"), "{url}");
    assert_eq!(url, vhost.url_at(rabbit.port(), "tael", "q"));
    let password = std::fs::read_to_string(rabbit.password_file()).expect("file");
    assert_eq!(password, rabbit.password());

    vhost.declare("q");
    let body: Vec<u8> = (0..=255).collect();
    let properties = json!({
        "message_id": "m1",
        "priority": 3,
        "headers": {"Dataset": "abc", "Run": 7, "Files": ["a", "b"]},
    });
    vhost.publish("q", &body, &properties);
    let seen = vhost.peek("q", 5);
    assert!(seen.len() == 1 && !seen[0].redelivered, "{seen:?}");
    let taken = vhost.take("q", 5);
    assert!(taken.len() == 1 && taken[0].redelivered, "{taken:?}");
    assert_eq!(taken[0].body, body);
    assert_eq!(taken[0].key, "q");
    assert_eq!(taken[0].exchange, "");
    let mut expected = properties;
    expected["delivery_mode"] = 2.into();
    assert_eq!(taken[0].properties, expected);

    vhost.bind("oodt-exchange", "q");
    assert!(vhost.publish_to("oodt-exchange", "q", b"1", &json!({})));
    assert!(!vhost.publish_to("oodt-exchange", "other", b"1", &json!({})));
    assert_eq!(vhost.peek("q", 1)[0].exchange, "oodt-exchange");
    vhost.purge("q");
    vhost.wait_counts("q", 0, 0);
    assert!(vhost.queue("q").is_some_and(|q| q["type"] == "classic"));
    vhost.delete("q");
    assert_eq!(vhost.queue("q"), None);
}

#[test]
fn rabbit_shows_and_closes_connections() {
    let Some(rabbit) = Rabbit::shared() else {
        return;
    };
    if !has_program("amqp-consume", "a foreign consumer") {
        return;
    }
    let world = World::new();
    let vhost = rabbit.vhost();
    vhost.declare_quorum("q");
    for _ in 0..5 {
        vhost.publish("q", "x", &json!({}));
    }
    let mut consumer = holder(&vhost, &world, "q", 2, UNTIL_GO);
    vhost.wait_counts("q", 3, 2);
    let consumers = vhost.consumers("q");
    assert_eq!(consumers[0]["prefetch"], 2, "{consumers:?}");
    let connections = vhost.connections();
    assert_eq!(connections[0]["user"], "tael", "{connections:?}");
    assert_eq!(rabbit.vhost().connections(), Vec::<Value>::new());
    assert_eq!(vhost.close_connections(), 1);
    vhost.wait_counts("q", 5, 0);
    wait_until("it is gone", || vhost.connections().is_empty());
    world.file("go", "");
    assert_ne!(consumer.wait(), 0);
}

#[test]
fn rabbit_refuses_users_without_rights_and_takes_policies() {
    let Some(rabbit) = Rabbit::shared() else {
        return;
    };
    if !has_program("amqp-publish", "a foreign publisher") {
        return;
    }
    let vhost = rabbit.vhost();
    vhost.declare_quorum("q");
    let user = vhost.user(["", "", "q"]);
    let publish = |user: &str| {
        let url = vhost.open_url().replace("//tael:", &format!("//{user}:"));
        let mut command = Command::new("amqp-publish");
        command.args(["-u", &url, "-r", "q", "-b", "x"]);
        command
    };
    let (_, _, refused) = ran(&mut publish(&user));
    assert!(refused.contains("403"), "{refused}");
    succeeds(&mut publish("tael"));
    vhost.wait_counts("q", 1, 0);

    vhost.declare("dead");
    let target =
        json!({"dead-letter-exchange": "", "dead-letter-routing-key": "dead", "max-length": 0});
    vhost.policy("q", &target);
    vhost.wait_counts("dead", 1, 0);
}

#[test]
fn rabbit_takes_back_what_is_held_for_too_long() {
    let Some(rabbit) = Rabbit::own() else { return };
    if !has_program("amqp-consume", "a foreign consumer") {
        return;
    }
    let world = World::new();
    let vhost = rabbit.vhost();
    vhost.declare_quorum("q");
    vhost.publish("q", "x", &json!({}));
    rabbit.set_consumer_timeout(Duration::from_secs(2));
    let consumer = holder(&vhost, &world, "q", 1, UNTIL_GO);
    vhost.wait_counts("q", 0, 1);
    // The consumer does not hear of it while it works, and the broker waits for its answer.
    // Versions end this line in different ways.
    wait_until("its time is over", || {
        rabbit.log().contains("timed out waiting for")
    });
    consumer.kill();
    world.file("go", "");
    vhost.wait_counts("q", 1, 0);
    let taken = vhost.take("q", 1);
    assert!(taken[0].redelivered);
    assert_eq!(taken[0].properties["headers"]["x-delivery-count"], 1);
}

#[test]
fn rabbit_blocks_publishers_while_its_memory_is_short() {
    let Some(rabbit) = Rabbit::own() else { return };
    let vhost = rabbit.vhost();
    let blocked = || {
        let alarms = rabbit.eval("length(rabbit_alarm:get_alarms()).");
        alarms.as_u64().expect("number")
    };
    assert_eq!(blocked(), 0);
    rabbit.memory_alarm(true);
    assert_eq!(blocked(), 1);
    rabbit.memory_alarm(false);
    assert_eq!(blocked(), 0);
    vhost.declare("q");
    vhost.publish("q", "x", &json!({}));
    vhost.wait_counts("q", 1, 0);
}

#[test]
fn rabbit_can_be_frozen_and_speaks_tls() {
    let Some(rabbit) = Rabbit::own_with("heartbeat = 7\n", true) else {
        return;
    };
    assert_eq!(rabbit.eval("application:get_env(rabbit, heartbeat, 0)."), 7);
    rabbit.freeze();
    // The kernel still accepts connections.
    let mut stream = TcpStream::connect(("127.0.0.1", rabbit.port())).expect("connect");
    stream.write_all(GREETING).expect("write");
    let wait = Some(Duration::from_millis(300));
    stream.set_read_timeout(wait).expect("timeout");
    assert!(stream.read(&mut [0; 8]).is_err());
    rabbit.thaw();
    stream.set_read_timeout(Some(PATIENCE)).expect("timeout");
    assert_eq!(stream.read(&mut [0; 8]).expect("read"), 8);

    if !has_program("openssl", "TLS") {
        return;
    }
    let certificates = rabbit.certificates.as_ref().expect("certificates");
    let mut command = Command::new("openssl");
    command
        .args(["s_client", "-verify_return_error", "-connect"])
        .arg(format!("localhost:{}", rabbit.tls_port()))
        .args(["-CAfile", &certificates.path("ca.pem")])
        .stdin(Stdio::null());
    let text = succeeds(&mut command);
    assert!(text.contains("Verification: OK"), "{text}");
}

#[test]
fn rabbit_is_reached_over_a_link_that_is_cut_stalled_and_slow() {
    let Some(rabbit) = Rabbit::shared() else {
        return;
    };
    let link = Proxy::new(rabbit.port());
    let mut stream = greeted(link.port()).expect("it passes");
    link.cut();
    assert_eq!(link.cuts(), 1);
    let mut rest = Vec::new();
    // The broker has said the rest of its greeting, or the cut was faster.
    let _ = stream.read_to_end(&mut rest);
    greeted(link.port()).expect("new connections pass");
    link.close();
    assert!(greeted(link.port()).is_none());
    link.open();
    link.stall();
    let mut stalled = TcpStream::connect(("127.0.0.1", link.port())).expect("connect");
    stalled.write_all(GREETING).expect("write");
    let wait = Some(Duration::from_millis(300));
    stalled.set_read_timeout(wait).expect("timeout");
    assert!(stalled.read(&mut rest[..]).is_err() || rest.is_empty());
    link.open();
    stalled.set_read_timeout(Some(PATIENCE)).expect("timeout");
    assert_eq!(stalled.read(&mut [0; 3]).expect("read"), 3);
    // Its greeting has some hundred bytes.
    link.slow(1000);
    let begun = std::time::Instant::now();
    greeted(link.port()).expect("it passes slowly");
    assert!(begun.elapsed() > Duration::from_millis(100));
}
