//! `tael queue` with a real RabbitMQ.

use std::collections::HashSet;
use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::common::pty::Terminal;
use crate::common::rabbit::{Rabbit, Vhost};
use crate::common::{Process, World, bare_command, has_program, ran, refuses, spawn, wait_until};

/// Number of messages in a load.
const MESSAGES: usize = 2000;

/// A virtual host, and a folder for the commands.
struct Lab<'a> {
    vhost: Vhost<'a>,
    dir: tempfile::TempDir,
}

impl<'a> Lab<'a> {
    fn new(rabbit: &'a Rabbit) -> Self {
        Self {
            vhost: rabbit.vhost(),
            dir: tempfile::tempdir().expect("tempdir"),
        }
    }

    /// Returns `tael queue VERB QUEUE …`.
    fn queue(&self, verb: &str, queue: &str, arguments: &[&str]) -> Command {
        let url = self.vhost.url(queue);
        let mut command = bare_command(&self.dir, "tael");
        self.log_in(&mut command);
        command.args(["queue", verb, &url]).args(arguments);
        command
    }

    fn log_in(&self, command: &mut Command) {
        let api = self.vhost.rabbit.api();
        command
            .env("TAEL_LOG", "warn")
            .env("TAEL_QUEUE_PASSWORD", api.password)
            .env(
                "TAEL_QUEUE_MANAGEMENT",
                format!("http://127.0.0.1:{}", api.port),
            )
            .env("TAEL_QUEUE_STATISTICS_INTERVAL", "1s");
    }

    /// Runs it; returns its stdout, after exit code 0 and without a word on stderr.
    #[track_caller]
    fn done(&self, verb: &str, queue: &str, arguments: &[&str]) -> String {
        let (code, out, error) = ran(&mut self.queue(verb, queue, arguments));
        assert_eq!((code, &*error), (0, ""), "{verb} {arguments:?}: {out}");
        out
    }

    #[track_caller]
    fn json(&self, verb: &str, queue: &str, arguments: &[&str]) -> Value {
        let arguments = [arguments, &["--json"]].concat();
        serde_json::from_str(&self.done(verb, queue, &arguments)).expect("JSON")
    }

    fn start(&self, mut command: Command) -> Process {
        spawn(&self.dir, command.stdout(Stdio::null()))
    }
}

/// Runs a command with this standard input.
fn fed(command: &mut Command, input: &[u8]) -> (i32, String, String) {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().expect("spawn");
    let mut stdin = child.stdin.take().expect("stdin");
    // It may end before it has read all.
    let _ = stdin.write_all(input);
    drop(stdin);
    let output = child.wait_with_output().expect("wait");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    (
        output.status.code().unwrap_or(-1),
        text(output.stdout),
        text(output.stderr),
    )
}

#[test]
fn what_is_pushed_is_durable_and_has_an_id() {
    let Some(rabbit) = Rabbit::shared() else {
        return;
    };
    let lab = Lab::new(rabbit);
    refuses(
        &mut lab.queue("push", "q", &["a=b"]),
        65,
        "--declare quorum",
    );
    assert_eq!(
        lab.done(
            "push",
            "q",
            &["--declare", "quorum", "a=b", "--attr", "c", "d"]
        ),
        ""
    );
    assert_eq!(
        lab.done("push", "q", &["-m", "no JSON", "--priority", "3"]),
        ""
    );
    let (code, out, error) = fed(&mut lab.queue("push", "q", &["-m", "-"]), b"\xff");
    assert_eq!((code, &*out, &*error), (0, "", ""));
    let lines = b"{\"n\":1}\n\n{\"n\":2}\r\nlast";
    let (code, out, error) = fed(&mut lab.queue("push", "q", &["-l", "--json"]), lines);
    assert_eq!((code, &*error), (0, ""));
    assert_eq!(out, "{\"queue\":\"q\",\"confirmed\":3}\n");
    let taken = lab.vhost.take("q", 10);
    let bodies: Vec<&[u8]> = taken.iter().map(|d| d.body.as_slice()).collect();
    assert_eq!(
        bodies[1..],
        [
            &b"no JSON"[..],
            b"\xff",
            b"{\"n\":1}",
            b"{\"n\":2}",
            b"last"
        ]
    );
    let first: Value = serde_json::from_slice(bodies[0]).expect("JSON");
    let keys: Vec<&String> = first.as_object().expect("object").keys().collect();
    assert_eq!(keys, ["user", "c", "a", "ts"]);
    let kinds = taken
        .iter()
        .map(|d| d.properties["content_type"].as_str().expect("type"));
    let kinds: Vec<&str> = kinds.collect();
    let (json, text) = ("application/json", "text/plain");
    assert_eq!(
        kinds,
        [json, text, "application/octet-stream", json, json, text]
    );
    let mut ids = HashSet::new();
    for delivery in &taken {
        let properties = &delivery.properties;
        assert_eq!(
            (&properties["delivery_mode"], &properties["app_id"]),
            (&json!(2), &json!("tael"))
        );
        assert!(
            properties["timestamp"]
                .as_u64()
                .is_some_and(|at| at > 1_700_000_000)
        );
        assert!(properties.get("reply_to").is_none());
        ids.insert(properties["message_id"].as_str().expect("id").to_owned());
    }
    assert_eq!(ids.len(), taken.len());
    assert_eq!(taken[1].properties["priority"], 3);
    // It is a quorum queue, and stays one.
    assert_eq!(lab.vhost.queue("q").expect("queue")["type"], "quorum");
    refuses(
        &mut lab.queue("push", "q", &["--declare", "classic", "a=b"]),
        78,
        "leave --declare out",
    );
}

#[test]
fn who_may_not_push_is_told_so() {
    let Some(rabbit) = Rabbit::shared() else {
        return;
    };
    let lab = Lab::new(rabbit);
    lab.vhost.declare("q");
    let mut wrong = lab.queue("push", "q", &["a=b"]);
    refuses(wrong.env("TAEL_QUEUE_PASSWORD", "wrong"), 77, "refused");
    // Nothing is counted when nothing was pushed.
    let mut nowhere = lab.queue("push", "nowhere", &["a=b", "--wait"]);
    refuses(&mut nowhere, 65, "there is no such queue");
    let mut wrong = lab.queue("drain", "q", &[]);
    refuses(
        wrong.env("TAEL_QUEUE_PASSWORD", "wrong"),
        77,
        "(401): the password",
    );
    let plain = format!("https://127.0.0.1:{}", rabbit.api().port);
    let mut tls = lab.queue("drain", "q", &["--management", &plain]);
    refuses(
        &mut tls,
        69,
        "it does not speak TLS on this port: write http://",
    );
    let user = lab.vhost.user(["^$", "^$", ".*"]);
    let url = lab.vhost.url_at(rabbit.port(), &user, "q");
    let mut denied = bare_command(&lab.dir, "tael");
    lab.log_in(&mut denied);
    refuses(
        denied.args(["queue", "push", &url, "a=b"]),
        77,
        "ACCESS_REFUSED",
    );
    let mut other = bare_command(&lab.dir, "tael");
    lab.log_in(&mut other);
    let nowhere = format!("amqp://tael@127.0.0.1:{}/nowhere/q", rabbit.port());
    refuses(
        other.args(["queue", "push", &nowhere, "a=b"]),
        77,
        "nowhere",
    );
    assert_eq!(lab.vhost.counts("q").ready, 0);
    // Rights to write are enough.
    let user = lab.vhost.user(["^$", ".*", "^$"]);
    let url = lab.vhost.url_at(rabbit.port(), &user, "q");
    let mut writer = bare_command(&lab.dir, "tael");
    lab.log_in(&mut writer);
    assert_eq!(ran(writer.args(["queue", "push", &url, "a=b"])).0, 0);
    assert_eq!(lab.vhost.counts("q").ready, 1);
}

#[test]
fn a_killed_broker_loses_no_message_of_a_push() {
    let Some(rabbit) = Rabbit::own() else { return };
    let lab = Lab::new(&rabbit);
    lab.vhost.declare_quorum("q");
    let feed = r#"seq 1 1000; i=1000
        until [ -e "$OUT/go" ]; do i=$((i + 1)); echo "$i"; sleep 0.02; done
        seq $((i + 1)) 2000"#;
    let line =
        format!("({feed}) | \"$TAEL\" queue push \"$URL\" -l --timeout 2m --json >\"$OUT/end\"");
    let mut push = Command::new("sh");
    push.args(["-c", &line]);
    lab.log_in(&mut push);
    push.env("TAEL", crate::common::binary("tael"))
        .env("URL", lab.vhost.url("q"))
        .env("OUT", lab.dir.path());
    let mut push = lab.start(push);
    wait_until("some are there", || lab.vhost.counts("q").ready > 200);
    fs::write(lab.dir.path().join("go"), "").expect("go");
    rabbit.kill9();
    rabbit.restart();
    assert_eq!(push.wait(), 0, "{}", push.log_text());
    assert!(
        push.log_text().contains("reconnecting"),
        "{}",
        push.log_text()
    );
    let end = fs::read_to_string(lab.dir.path().join("end")).expect("end");
    assert_eq!(
        end,
        format!("{{\"queue\":\"q\",\"confirmed\":{MESSAGES}}}\n")
    );
    let taken = lab.vhost.take("q", u32::MAX);
    let mut pairs = HashSet::new();
    for delivery in &taken {
        let id = delivery.properties["message_id"].as_str().expect("id");
        pairs.insert((
            String::from_utf8_lossy(&delivery.body).into_owned(),
            id.to_owned(),
        ));
    }
    // One that is there twice has the same id.
    let bodies: HashSet<&String> = pairs.iter().map(|(body, _)| body).collect();
    assert_eq!((bodies.len(), pairs.len()), (MESSAGES, MESSAGES));
}

#[test]
fn a_broker_short_of_memory_is_waited_for() {
    let Some(rabbit) = Rabbit::own() else { return };
    let lab = Lab::new(&rabbit);
    lab.vhost.declare("q");
    rabbit.memory_alarm(true);
    lab.vhost.declare("other");
    let (code, out, error) = ran(&mut lab.queue("push", "other", &["a=b", "--timeout", "3s"]));
    assert_eq!((code, &*out), (75, ""), "{error}");
    assert!(error.contains("takes no messages"), "{error}");
    let push = lab.queue("push", "q", &["a=b"]);
    let mut push = lab.start(push);
    wait_until("it says so", || {
        push.log_text().contains("takes no messages")
    });
    rabbit.memory_alarm(false);
    assert_eq!(push.wait(), 0, "{}", push.log_text());
    assert_eq!(push.log_text().lines().count(), 1, "{}", push.log_text());
    lab.vhost.wait_counts("q", 1, 0);
}

#[test]
fn a_full_queue_is_waited_for() {
    let Some(rabbit) = Rabbit::shared() else {
        return;
    };
    let lab = Lab::new(rabbit);
    lab.vhost.declare("q");
    lab.vhost
        .policy("q", &json!({"max-length": 2, "overflow": "reject-publish"}));
    lab.done("push", "q", &["a=b", "--count", "2"]);
    let mut push = lab.start(lab.queue("push", "q", &["a=b", "--count", "2"]));
    wait_until("it says so", || push.log_text().contains("max-length"));
    assert_eq!(lab.vhost.take("q", 2).len(), 2);
    assert_eq!(push.wait(), 0, "{}", push.log_text());
    lab.vhost.wait_counts("q", 2, 0);
    let (code, _, error) = ran(&mut lab.queue("push", "q", &["a=b", "--timeout", "2s"]));
    assert_eq!(code, 75, "{error}");
}

#[test]
fn a_status_has_counts_of_both_queues() {
    let Some(rabbit) = Rabbit::shared() else {
        return;
    };
    let lab = Lab::new(rabbit);
    refuses(&mut lab.queue("status", "q", &[]), 65, "no such queue");
    lab.vhost.declare_quorum("q");
    lab.vhost.policy("q", &json!({"delivery-limit": 5}));
    lab.done("push", "q", &["a=b", "--count", "3"]);
    let status = lab.json("status", "q", &[]);
    assert_eq!(
        (&status["ready"], &status["dead"]),
        (&json!(3), &Value::Null)
    );
    lab.vhost.declare("q.dead");
    lab.vhost.publish("q.dead", "x", &json!({}));
    let status = lab.json("status", "q", &[]);
    assert_eq!(
        (&status["dead"], &status["type"]),
        (&json!(1), &json!("quorum"))
    );
    let text = lab.done("status", "q", &[]);
    assert!(
        text.contains("dead letters  1 in q.dead") && text.contains("RabbitMQ"),
        "{text}"
    );
    // Without the API it says what is missing.
    let mut without = lab.queue("status", "q", &["--management", "http://127.0.0.1:1"]);
    let (code, out, error) = ran(&mut without);
    assert_eq!((code, error.lines().count()), (0, 1), "{error}");
    assert!(
        out.contains("ready         3") && error.contains("unacked"),
        "{out}{error}"
    );
}

#[test]
fn a_drain_waits_for_what_consumers_hold() {
    let Some(rabbit) = Rabbit::shared() else {
        return;
    };
    if !has_program("amqp-consume", "a worker of others") {
        return;
    }
    let lab = Lab::new(rabbit);
    lab.vhost.declare("q");
    lab.done("push", "q", &["a=b"]);
    let (code, _, error) = ran(&mut lab.queue("drain", "q", &["--timeout", "2s"]));
    assert_eq!(code, 75, "{error}");
    refuses(&mut lab.queue("drain", "other", &[]), 65, "no such queue");
    let mut worker = Command::new("amqp-consume");
    let until = "cat >/dev/null; until [ -e \"$OUT/go\" ]; do sleep 0.02; done";
    worker
        .args([
            "-u",
            &lab.vhost.open_url(),
            "-q",
            "q",
            "-c",
            "1",
            "--",
            "sh",
            "-c",
            until,
        ])
        .env("OUT", lab.dir.path());
    let mut worker = lab.start(worker);
    lab.vhost.wait_counts("q", 0, 1);
    let mut drain = lab.start(lab.queue("drain", "q", &[]));
    wait_until("the API knows", || {
        lab.vhost
            .queue("q")
            .is_some_and(|q| q["messages_unacknowledged"] == 1)
    });
    assert!(
        drain.child.try_wait().expect("wait").is_none(),
        "{}",
        drain.log_text()
    );
    fs::write(lab.dir.path().join("go"), "").expect("go");
    assert_eq!(worker.wait(), 0);
    assert_eq!(drain.wait(), 0, "{}", drain.log_text());
    lab.vhost.wait_counts("q", 0, 0);
}

#[test]
fn a_push_waits_for_workers_of_others() {
    let Some(rabbit) = Rabbit::shared() else {
        return;
    };
    if !has_program("amqp-consume", "a worker of others") {
        return;
    }
    let lab = Lab::new(rabbit);
    lab.vhost.declare("q");
    let mut worker = Command::new("amqp-consume");
    worker.args([
        "-u",
        &lab.vhost.open_url(),
        "-q",
        "q",
        "-c",
        "5",
        "--",
        "cat",
    ]);
    let mut worker = lab.start(worker);
    let end = lab.json("push", "q", &["a=b", "--count", "5", "--wait"]);
    let want = json!({
        "queue": "q", "confirmed": 5, "finished": 0, "failed": 0, "canceled": 0, "unreported": 5,
        "left": 0, "failures": []
    });
    assert_eq!(end, want);
    assert_eq!(worker.wait(), 0);
    // Its own queue is gone.
    let queues = rabbit
        .api()
        .ask("GET", "queues", &Value::Null)
        .expect("queues")
        .1;
    let names = queues
        .as_array()
        .expect("queues")
        .iter()
        .filter(|q| q["vhost"] == lab.vhost.name);
    let names: Vec<&Value> = names.map(|queue| &queue["name"]).collect();
    assert_eq!(names, ["q"]);
}

/// Starts a client that takes from `queue` in `world`.
fn client(lab: &Lab<'_>, world: &World, queue: &str, arguments: &[&str]) -> Process {
    let mut command = world.command("tael-client");
    lab.log_in(&mut command);
    command
        .env("TAEL_LOG", "info")
        .args([
            "--who",
            "align",
            "--root",
            "lab",
            "--queue",
            &lab.vhost.url(queue),
        ])
        .args(arguments);
    world.online("align", command)
}

#[test]
fn a_push_waits_for_reports_of_clients() {
    let Some(rabbit) = Rabbit::shared() else {
        return;
    };
    let (lab, world) = (Lab::new(rabbit), World::new());
    lab.vhost.declare_quorum("q");
    let line = r#"echo "no $ATTR_N" >&2; exit "$ATTR_N""#;
    let client = client(&lab, &world, "q", &["-c", line, "--jobs", "4"]);
    let good = lab.done("push", "q", &["n=0", "--count", "20", "--wait"]);
    assert_eq!(good, "20 finished\n");
    let (code, out, error) = ran(&mut lab.queue("push", "q", &["n=3", "--count", "2", "--wait"]));
    assert_eq!((code, &*error), (1, ""), "{out}");
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines.len(), 3, "{out}");
    assert!(
        lines[0].starts_with("failed ") && lines[0].contains("(align on "),
        "{out}"
    );
    assert_eq!(lines[2], "0 finished, 2 failed");
    // A message that cannot be read has failed, too.
    let (code, out, _) = ran(&mut lab.queue("push", "q", &["-m", "[", "--wait", "--json"]));
    let end: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(
        (code, &end["failed"], &end["left"]),
        (1, &json!(1), &json!(0)),
        "{out}"
    );
    let id = end["failures"][0]["id"].as_str().expect("id");
    assert!(!id.is_empty());
    client.stop();

    // All three are dead, with their reasons.
    let dead = lab.json("dead", "q", &["list"]);
    let dead = dead.as_array().expect("list");
    assert_eq!(dead.len(), 3, "{dead:?}");
    assert_eq!(
        (&dead[0]["reason"], &dead[0]["exit"]),
        (&json!("failed"), &json!(3))
    );
    assert_eq!(
        (&dead[0]["who"], &dead[0]["queue"]),
        (&json!("align"), &json!("q"))
    );
    assert_eq!(dead[0]["stderr"], "no 3");
    assert_eq!(
        (&dead[2]["reason"], &dead[2]["message_id"]),
        (&json!("unreadable"), &json!(id))
    );
    let table = lab.done("dead", "q", &["list"]);
    assert!(
        table.contains("failed: ") && table.contains("no 3"),
        "{table}"
    );
    lab.vhost.wait_counts("q.dead", 3, 0);
    // One is dropped, one is retried.
    refuses(
        &mut lab.queue("dead", "q", &["drop", "nothing"]),
        65,
        "nothing",
    );
    lab.done("dead", "q", &["drop", id]);
    let unit = dead[0]["id"].as_str().expect("id");
    let retried = lab.json("dead", "q", &["retry", unit]);
    assert_eq!(retried["id"], unit);
    lab.vhost.wait_counts("q.dead", 1, 0);
    lab.vhost.wait_counts("q", 1, 0);
    let again = lab.vhost.peek("q", 1).remove(0).properties;
    assert_eq!(again["message_id"], retried["message_id"]);
    assert_ne!(again["message_id"], dead[0]["message_id"]);
    assert_eq!(again["correlation_id"], dead[0]["message_id"]);
    assert_eq!(again["headers"]["x-tael-retry-of"], dead[0]["message_id"]);
    assert!(again["headers"].get("x-tael-reason").is_none(), "{again}");
    assert!(
        again["reply_to"]
            .as_str()
            .is_some_and(|to| to.starts_with("tael.reply."))
    );
    let out = lab.done("dead", "q", &["retry", "--all"]);
    assert_eq!(out, "1 retried\n");
    lab.vhost.wait_counts("q.dead", 0, 0);
    lab.vhost.wait_counts("q", 2, 0);
}

#[test]
fn a_push_that_waits_survives_a_broker_and_can_be_interrupted() {
    let Some(rabbit) = Rabbit::own() else { return };
    let (lab, world) = (Lab::new(&rabbit), World::new());
    lab.vhost.declare_quorum("q");
    let until = r#"until [ -e "$OUT/go" ]; do sleep 0.02; done"#;
    let client = client(&lab, &world, "q", &["-c", until, "--jobs", "2"]);
    let end = lab.dir.path().join("end");
    let mut push = lab.queue("push", "q", &["a=b", "--count", "2", "--wait", "--json"]);
    push.stdout(fs::File::create(&end).expect("file"));
    let mut push = spawn(&lab.dir, &mut push);
    world.wait_report("align", "/units/running", 2);
    // It has no time limit, but a person.
    let (code, _, error) = ran(&mut lab.queue("push", "q", &["a=b", "--wait", "--timeout", "2s"]));
    assert_eq!(code, 75, "{error}");
    assert!(error.contains("1 left"), "{error}");
    let mut other = lab.start(lab.queue("push", "q", &["a=b", "--wait"]));
    lab.vhost.wait_counts("q", 2, 0);
    other.signal(Signal::SIGINT);
    assert_eq!(other.wait(), 130);
    assert!(other.log_text().contains("1 left"), "{}", other.log_text());
    // An empty queue is no end: the client may run what it has accepted.
    lab.vhost.take("q", 2);
    wait_until("it knows of the client", || {
        push.log_text().contains("not reported")
    });
    rabbit.kill9();
    rabbit.restart();
    fs::write(world.path("go"), "").expect("go");
    assert_eq!(push.wait(), 0, "{}", push.log_text());
    // All are reported: it did not take an empty queue for the end.
    let end: Value = serde_json::from_slice(&fs::read(&end).expect("end")).expect("JSON");
    assert_eq!(
        (&end["finished"], &end["unreported"]),
        (&json!(2), &json!(0))
    );
    world.wait_report("align", "/units/succeeded", 2);
    client.stop();
}

#[test]
fn letters_of_the_broker_are_listed_and_retried() {
    let Some(rabbit) = Rabbit::shared() else {
        return;
    };
    let lab = Lab::new(rabbit);
    lab.vhost.declare("ill");
    lab.vhost.declare_with(
        "q",
        &json!({
            "x-message-ttl": 1, "x-dead-letter-exchange": "", "x-dead-letter-routing-key": "ill"
        }),
    );
    lab.vhost.declare_with(
        "other",
        &json!({
            "x-message-ttl": 1, "x-dead-letter-exchange": "", "x-dead-letter-routing-key": "ill"
        }),
    );
    lab.done("push", "q", &["a=b"]);
    lab.done("push", "other", &["a=b"]);
    lab.vhost.wait_counts("ill", 2, 0);
    let dead = lab.json("dead", "q", &["list", "--dead-letter", "ill"]);
    assert_eq!(
        dead.as_array().expect("list").len(),
        1,
        "only those of q: {dead}"
    );
    assert_eq!(
        (&dead[0]["reason"], &dead[0]["queue"]),
        (&json!("expired"), &json!("q"))
    );
    assert_eq!(
        lab.done("dead", "q", &["drop", "--all", "--dead-letter", "ill"]),
        "1 dropped\n"
    );
    lab.vhost.wait_counts("ill", 1, 0);
    // Where nothing has died there may be no queue.
    refuses(
        &mut lab.queue("dead", "q", &["list"]),
        65,
        "no message of 'q' has died",
    );
}

/// The page about queues.
const PAGE: &str = include_str!("../../docs/queues.md");

/// Returns the only block of a kind on the page about queues (docs/queues.md).
fn block(language: &str, name: &str) -> &'static str {
    let fence = format!("```{language} {name}\n");
    let mut parts = PAGE.split(fence.as_str()).skip(1);
    let block = parts.next().and_then(|rest| rest.split("```").next());
    assert!(parts.next().is_none(), "two blocks: {name}");
    block.unwrap_or_else(|| panic!("no block: {name}"))
}

/// Runs a block with `tael` in its path, and the broker of the page replaced.
#[track_caller]
fn run_block(lab: &Lab<'_>, text: &str) -> String {
    let bin = crate::common::binary("tael");
    let bin = bin.parent().expect("folder").to_str().expect("path");
    let url = lab.vhost.url("");
    let text = text.replace("amqp://ann@mq.lab.example/lab/", &url);
    let mut sh = bare_command(&lab.dir, "tael");
    let path = format!("{bin}:{}", std::env::var("PATH").expect("PATH"));
    lab.log_in(&mut sh);
    let mut command = Command::new("sh");
    command
        .args(["-e", "-c", &text])
        .current_dir(lab.dir.path());
    for (name, value) in sh.get_envs() {
        command.env(name, value.unwrap_or_default());
    }
    let (code, out, error) = ran(command.env("PATH", path));
    assert_eq!((code, &*error), (0, ""), "{text}: {out}");
    out
}

#[test]
fn the_page_about_queues_is_true() {
    let Some(rabbit) = Rabbit::shared() else {
        return;
    };
    let (lab, world) = (Lab::new(rabbit), World::new());
    let out = run_block(&lab, block("sh", "queue"));
    assert!(
        out.contains("ready         4") && out.contains("quorum"),
        "{out}"
    );
    let vhost = lab.vhost.url("");
    let here = |text: &str| {
        text.replace("amqp://ann@mq.lab.example/lab", vhost.trim_end_matches('/'))
            .replace("/etc/tael/queue-password", &rabbit.password_file())
            .replace("/opt/lab/align.sh", "exit 3")
    };
    let file = world.path("tael.toml");
    fs::write(&file, here(block("toml", "queue"))).expect("file");
    let path = file.to_str().expect("path").to_owned();
    let client = || {
        let mut command = world.command("tael-client");
        command.args(["--config", &path]);
        command
    };
    let running = world.online("align", client());
    lab.vhost.wait_counts("align", 0, 0);
    lab.vhost.wait_counts("align.dead", 4, 0);
    running.stop();
    let out = run_block(&lab, block("sh", "dead"));
    assert!(
        out.contains("failed") && out.ends_with("4 retried\n"),
        "{out}"
    );
    lab.vhost.wait_counts("align", 4, 0);
    // The example has no mistakes either.
    fs::write(&file, here(include_str!("../../examples/queue.toml"))).expect("file");
    let checked = ran(client().env("TAEL_LOG", "warn").arg("--check"));
    assert_eq!(checked, (0, String::new(), String::new()));
    // The broker takes the policies.
    for line in block("sh", "policy").lines() {
        let words = shell_words::split(line).expect("words");
        assert_eq!(words[..4], ["rabbitmqctl", "set_policy", "-p", "lab"]);
        assert_eq!(words[7..], ["--apply-to", "queues"]);
        let definition: Value = serde_json::from_str(&words[6]).expect("JSON");
        let policy = json!({"pattern": words[5], "definition": definition, "apply-to": "queues"});
        let vhost = lab.vhost.name.replace('/', "%2f");
        let path = format!("policies/{vhost}/{}", words[4]);
        let (code, answer) = rabbit.api().ask("PUT", &path, &policy).expect("answer");
        assert!((200..300).contains(&code), "{line}: {code} {answer}");
    }
    // The fence keeps the results of two runs apart.
    let fence = block("sh", "fence").replace("/data/", "./");
    for n in ["0", "1"] {
        let run = format!("align() {{ echo {n}; }}; SAMPLE=S1 TAEL_FENCE={n}\n{fence}");
        run_block(&lab, &run);
        let result = fs::read_to_string(lab.dir.path().join(format!("S1.{n}"))).expect("result");
        assert_eq!(result, format!("{n}\n"));
    }
}

#[test]
fn a_check_asks_the_broker_of_queues_and_declares_nothing() {
    let Some(rabbit) = Rabbit::shared() else {
        return;
    };
    let (lab, world) = (Lab::new(rabbit), World::new());
    let check = |arguments: &[&str]| {
        let mut command = world.command("tael-client");
        lab.log_in(&mut command);
        let url = lab.vhost.url("q");
        command.args([
            "--who", "align", "--root", "lab", "-c", "true", "--queue", &url,
        ]);
        command.args(["--check", "--connect"]).args(arguments);
        command
    };
    refuses(&mut check(&[]), 65, "no such queue");
    let silent = (0, String::new(), String::new());
    assert_eq!(ran(&mut check(&["--declare", "quorum"])), silent);
    assert!(lab.vhost.queue("q").is_none() && lab.vhost.queue("q.dead").is_none());
    lab.vhost.declare("q");
    assert_eq!(ran(&mut check(&["--declare", "classic"])), silent);
    refuses(&mut check(&["--declare", "quorum"]), 78, "inequivalent arg");
    refuses(
        check(&[]).env("TAEL_QUEUE_PASSWORD", "wrong"),
        77,
        "refused",
    );
}

#[test]
fn a_terminal_shows_how_far_a_push_is() {
    let Some(rabbit) = Rabbit::shared() else {
        return;
    };
    let lab = Lab::new(rabbit);
    lab.vhost.declare("q");
    let push = lab.queue("push", "q", &["a=b", "--count", "3", "--wait"]);
    let mut terminal = Terminal::start(push, 80);
    terminal.wait_for("[------------------------] 0 finished, 3 left");
    terminal.press("\x03");
    let (code, screen) = terminal.end();
    assert_eq!(code, 130, "{screen}");
    assert!(!screen.contains("[---"), "the line stays: {screen}");
    let said = "interrupted: 3 messages are confirmed, 0 finished, 3 left";
    assert!(screen.contains(said), "{screen}");
    lab.vhost.wait_counts("q", 3, 0);
}
