//! `tael gateway` and queues of RabbitMQ: a message is accepted when the broker has confirmed it.

use serde_json::{Value, json};

use crate::common::gateway::{Gateway, insist, post};
use crate::common::rabbit::{Rabbit, Vhost};
use crate::common::{World, bare_command, ran, wait_until};

/// Starts a gateway to the queues of `vhost`.
#[track_caller]
fn gateway(world: &World, vhost: &Vhost<'_>, arguments: &[&str]) -> Gateway {
    let url = vhost.url("q");
    let (broker, _) = url.rsplit_once('/').expect("URL");
    let mut command = world.tael(["gateway", "--root", "lab", "--listen", "127.0.0.1:0"]);
    command
        .args(["--rate", "0", "--timeout", "5s"])
        .args(arguments)
        .env("TAEL_QUEUE_BROKER", broker)
        .env("TAEL_QUEUE_PASSWORD", vhost.rabbit.password());
    Gateway::listening(world.spawn(command))
}

#[test]
fn messages_are_confirmed_or_refused() {
    let Some(rabbit) = Rabbit::shared() else {
        return;
    };
    let (world, vhost) = (World::new(), rabbit.vhost());
    vhost.declare_quorum("q");
    vhost.declare_with(
        "full",
        &json!({"x-max-length": 0, "x-overflow": "reject-publish"}),
    );
    let routes = "[[route]]\nname = \"hook\"\npath = \"/hooks/q\"\nqueue = \"q\"\n\
        map.a = { json = \"b.0\" }\n[[route]]\nname = \"gone\"\npath = \"/hooks/gone\"\nqueue = \"gone\"\n";
    let config = world.file("gateway.toml", routes);
    let queues = ["q", "missing", "full"]
        .map(|name| ["--allow-queue", name])
        .concat();
    let gateway = gateway(
        &world,
        &vhost,
        &[&queues[..], &["--config", &config]].concat(),
    );
    gateway.wait_health(200);
    let trace = (
        "traceparent",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    );
    let key = ("Idempotency-Key", "k-1");
    let answer = gateway.post("/q/q?x=1", &[trace, key], r#"{"y":2.50}"#);
    assert_eq!(answer.id(), "k-1");
    let taken = vhost.take("q", 1);
    assert_eq!(taken[0].body, br#"{"x":"1","y":2.50}"#);
    let properties = &taken[0].properties;
    for (name, value) in [
        ("content_type", json!("application/json")),
        ("delivery_mode", json!(2)),
        ("message_id", json!("k-1")),
        ("app_id", json!("tael")),
    ] {
        assert_eq!(properties[name], value, "{properties}");
    }
    assert_eq!(properties["headers"]["traceparent"], trace.1);
    let id = gateway.post("/hooks/q", &[], r#"{"b":["c"]}"#).id();
    let taken = vhost.take("q", 1);
    assert_eq!(taken[0].body, br#"{"a":"c"}"#);
    assert_eq!(taken[0].properties["message_id"], id.as_str());
    for (path, body, status, cause) in [
        ("/q/other", "{}", 403, "does not allow"),
        ("/q/gone", "{}", 403, "does not allow"),
        ("/q/missing", "{}", 404, "does not exist"),
        ("/hooks/gone", "{}", 404, "does not exist"),
        ("/q/full", "{}", 503, "is the queue full"),
        ("/q/q", "[]", 400, "not an object"),
    ] {
        let answer = gateway.post(path, &[], body);
        assert_eq!(answer.status, status, "{path}: {answer:?}");
        assert!(answer.body.contains(cause), "{path}: {answer:?}");
    }
    // An event of a workflow goes to the queue of its name.
    let call = |name: &str| {
        let body = format!(
            "<methodCall><methodName>workflowmgr.handleEvent</methodName><params><param><value>{name}\
             </value></param><param><value><struct><member><name>Run</name><value><int>7</int></value>\
             </member></struct></value></param></params></methodCall>"
        );
        gateway.post("/", &[], &body).body
    };
    assert!(call("q").contains("<boolean>1</boolean>"));
    let taken = vhost.take("q", 1);
    assert_eq!(taken[0].body, br#"{"Run":7}"#);
    assert!(call("missing").contains("<boolean>0</boolean>"));
    vhost.wait_counts("q", 0, 0);
    // The connection is lost, and made again.
    vhost.close_connections();
    wait_until("it is connected again", || {
        gateway.post("/q/q", &[], "{}").status == 202
    });
    gateway.process.stop();
    let refuses = |arguments: &[&str], code: i32, cause: &str| {
        let mut command = bare_command(&world.dir, "tael");
        let (found, out, said) = ran(command.arg("gateway").args(arguments).arg("--check"));
        let said = out + &said;
        assert_eq!(found, code, "{arguments:?}: {said}");
        assert!(said.contains(cause), "{arguments:?}: {said}");
    };
    refuses(&["--allow-queue", "q"], 64, "needs a broker");
    refuses(&["--workflows", "a/b"], 64, "");
    refuses(&["--events", "a/#"], 64, "--events");
}

#[test]
fn what_was_accepted_is_in_the_queue_through_a_kill_of_the_broker() {
    const POSTS: usize = 30;
    let Some(rabbit) = Rabbit::own() else { return };
    let (world, vhost) = (World::new(), rabbit.vhost());
    vhost.declare_quorum("q");
    let gateway = gateway(&world, &vhost, &["--allow-queue", "q"]);
    gateway.wait_health(200);
    let request = |n: usize| {
        let key = format!("k-{n}");
        post("/q/q", &[("Idempotency-Key", &key)], "{}")
    };
    let address = gateway.address.clone();
    let ids: Vec<String> = std::thread::scope(|scope| {
        let posting = scope.spawn(|| {
            let ids = (0..POSTS).map(|n| insist(&address, &request(n)).id());
            ids.collect()
        });
        wait_until("some are there", || vhost.counts("q").ready > 3);
        rabbit.kill9();
        assert_eq!(
            gateway
                .post("/q/q", &[("Idempotency-Key", "none")], "{}")
                .status,
            503
        );
        rabbit.restart();
        posting.join().expect("posts")
    });
    assert_eq!(ids.len(), POSTS);
    let count = u32::try_from(POSTS * 2).expect("number");
    let mut there: Vec<Value> = vhost
        .take("q", count)
        .iter()
        .map(|taken| taken.properties["message_id"].clone())
        .filter(|id| *id != "none")
        .collect();
    there.sort_by_key(ToString::to_string);
    there.dedup();
    let mut ids: Vec<Value> = ids.into_iter().map(Value::from).collect();
    ids.sort_by_key(ToString::to_string);
    assert_eq!(there, ids);
    gateway.process.stop();
}
