//! Questions that commands ask: their loops end, a client takes those of its own commands, and one
//! without a payload is a question too.

use serde_json::json;

use crate::common::raw::{Heard, Raw, publish_with, request_properties, user_properties};
use crate::common::{Ears, World, binary, ran, wait_until};

const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// Maximum number of pipelines that an event may pass.
const MAX_HOPS: u32 = 32;

/// Returns the call of a tool in a command.
fn tool(name: &str) -> String {
    binary(name).display().to_string()
}

/// Sends a question to `topic` with an answer on `reply`, and these user properties.
fn ask(raw: &mut Raw, number: u16, topic: &str, payload: &str, reply: &str, user: &[(&str, &str)]) {
    let mut properties = request_properties(reply, b"data");
    properties.extend(user_properties(user));
    let payload = payload.as_bytes();
    raw.send(&publish_with(
        topic.as_bytes(),
        payload,
        Some(number),
        &properties,
        false,
    ));
}

/// Waits for a refusal of a loop by `who`, and returns the numbers of hops that its runs had.
#[track_caller]
fn ended_loop(world: &World, who: &str) -> Vec<u32> {
    wait_until("the end of the loop", || {
        world.report(who)["events"]["refused"].as_u64() > Some(0)
    });
    let hops = world.lines("hops");
    hops.iter().map(|n| n.parse().expect("number")).collect()
}

#[test]
fn a_loop_through_answers_ends_at_the_hop_limit() {
    let world = World::new();
    let options = [
        "-t",
        "lab/q",
        "--when",
        "",
        "--reply",
        "--reply-to",
        "lab/answers",
        "-c",
        r#"echo '{"ok":"1"}'"#,
    ];
    let one = world.client("one", &options);
    let again = format!(
        r#"echo "$TAEL_HOPS" >>"$OUT/hops"; {} -t lab/q --reply-to lab/answers go=1"#,
        tool("tael-message")
    );
    let two = world.client("two", &["-t", "lab/answers", "--when", "", "-c", &again]);
    let mut first = world.command("tael-message");
    let first = ran(first.args(["-t", "lab/q", "--reply-to", "lab/answers", "go=1"]));
    assert_eq!(first.0, 0, "{first:?}");
    // Each answer has passed one pipeline more than its question.
    let hops = ended_loop(&world, "two");
    assert_eq!(hops, (1..=MAX_HOPS).step_by(2).collect::<Vec<_>>());
    one.stop();
    two.stop();
}

#[test]
fn all_answers_have_the_hops_and_the_trace_of_their_question() {
    let world = World::new();
    let reply = "lab/infrastructure/replies/me";
    let command =
        r#"echo x >>"$OUT/runs"; until [ -e "$OUT/go" ]; do sleep 0.02; done; exit "$CODE""#;
    let options = [
        "-t",
        "lab/q",
        "--when",
        "",
        "--reply",
        "--envreq",
        "code",
        "--timeout",
        "1h",
        "-c",
        command,
    ];
    let client = world.client("w", &options);
    let mut raw = Raw::connect(world.broker.port());
    raw.subscribe(&format!("{reply}/#"));
    let mut sent = 0;
    let mut question = |raw: &mut Raw, name: &str, payload: &str| {
        sent += 1;
        let topic = format!("{reply}/{name}");
        let user = [
            ("tael-id", name),
            ("tael-hops", "5"),
            ("traceparent", TRACE),
        ];
        ask(raw, sent, "lab/q", payload, &topic, &user);
    };
    let counted = |heard: &Heard, name: &str, code: &str| {
        assert_eq!(heard.topic, format!("{reply}/{name}"), "{heard:?}");
        assert_eq!(heard.property("tael-code"), Some(code), "{heard:?}");
        assert_eq!(heard.property("tael-hops"), Some("6"), "{heard:?}");
        assert_eq!(heard.property("traceparent"), Some(TRACE), "{heard:?}");
    };
    let hear = |raw: &mut Raw| raw.hear("an answer", |_| true);
    question(&mut raw, "refused", "{}");
    counted(&hear(&mut raw), "refused", "65");
    question(&mut raw, "unread", "no JSON");
    counted(&hear(&mut raw), "unread", "65");
    question(&mut raw, "end", r#"{"code":3}"#);
    wait_until("a run", || world.lines("runs").len() == 1);
    question(&mut raw, "dropped", r#"{"code":0}"#);
    world.wait_report("w", "/waiting", 1);
    let pending = ["work", "--who", "w", "list", "--json", "--state", "pending"];
    let pending = crate::common::json_of(&mut world.tael(pending));
    let unit = pending[0]["unit"].as_str().expect("unit");
    crate::common::succeeds(&mut world.tael(["work", "--who", "w", "cancel", unit]));
    counted(&hear(&mut raw), "dropped", "75");
    world.file("go", "");
    counted(&hear(&mut raw), "end", "3");
    question(&mut raw, "end", r#"{"code":3}"#);
    counted(&hear(&mut raw), "end", "3");
    client.stop();
}

#[test]
fn answers_to_requests_and_the_last_end_count_hops() {
    let world = World::new();
    let client = world.client("w", &["-t", "lab/q", "-c", "true"]);
    let mut raw = Raw::connect(world.broker.port());
    let reply = "lab/infrastructure/replies/me";
    raw.subscribe(reply);
    let last = "lab/infrastructure/pipelines/w/last";
    raw.subscribe(last);
    let control = "lab/infrastructure/pipelines/w/control";
    let user = [("tael-hops", "5")];
    ask(&mut raw, 1, control, r#"{"action":"status"}"#, reply, &user);
    let status = raw.hear("the status", |heard| heard.topic == reply);
    assert_eq!(status.property("tael-hops"), Some("6"), "{status:?}");
    ask(&mut raw, 2, control, r#"{"action":"raise"}"#, reply, &user);
    let raised = raw.hear("the answer", |heard| heard.topic == reply);
    assert_eq!(raised.property("tael-hops"), Some("6"), "{raised:?}");
    // The one in the payload goes over bridges that drop properties.
    let bridged = json!({"action": "raise", "tael-request": {"hops": 7}}).to_string();
    ask(&mut raw, 3, control, &bridged, reply, &[]);
    let bridged = raw.hear("the answer", |heard| heard.topic == reply);
    assert_eq!(bridged.property("tael-hops"), Some("8"), "{bridged:?}");
    raw.hear("the last end", |heard| {
        heard.topic == last && heard.property("tael-hops") == Some("8")
    });
    client.stop();
}

/// Returns how many messages `ears` have heard on `topic`.
fn heard_on(ears: &Ears, topic: &str) -> usize {
    ears.all().iter().filter(|m| m.topic == topic).count()
}

#[test]
fn a_client_answers_what_its_own_commands_ask() {
    let world = World::new();
    let ask = |topic: &str| {
        let message = tool("tael-message");
        format!("{message} -t {topic} --root lab --reply --timeout 20s x=1")
    };
    let outer = format!(r#"echo "outer of $({})""#, ask("lab/inner"));
    let config = format!(
        "[client]\nwho = \"w\"\nroot = \"lab\"\n\
         [[trigger]]\nname = \"outer\"\ntopic = \"lab/outer\"\nwhen = []\nreply = true\ncommand = '''{outer}'''\n\
         [[trigger]]\nname = \"inner\"\ntopic = \"lab/inner\"\nwhen = []\nreply = true\ncommand = 'echo \"inner at $TAEL_HOPS\"'\n"
    );
    world.file("w.toml", &config);
    let mut client = world.command("tael-client");
    client.arg("--config").arg(world.path("w.toml"));
    let client = world.online("w", client);
    let mut asking = world.command("tael-message");
    let asked = ran(asking.args(["-t", "lab/outer", "--reply", "--timeout", "20s", "x=1"]));
    assert_eq!(asked, (0, "outer of inner at 1\n".into(), String::new()));
    client.stop();
}

#[test]
fn a_client_that_asks_itself_ends_and_its_own_plain_messages_start_nothing() {
    let world = World::new();
    let ears = world.ears(&["lab/q", "lab/plain"]);
    let message = tool("tael-message");
    // It asks itself, and says on its own topic that it did.
    let command = format!(
        r#"echo "$TAEL_HOPS" >>"$OUT/hops"; {message} -t lab/q --reply-to lab/answers x=1; {message} -t lab/plain x=1"#
    );
    let client = world.client(
        "w",
        &[
            "-t",
            "lab/q",
            "-t",
            "lab/plain",
            "--when",
            "",
            "-c",
            &command,
        ],
    );
    world.message("lab/q", &[("x", "1")]);
    let hops = ended_loop(&world, "w");
    assert_eq!(hops, (0..=MAX_HOPS).collect::<Vec<_>>());
    ears.wait("its plain messages", |_| {
        heard_on(&ears, "lab/plain") == hops.len()
    });
    assert_eq!(world.lines("hops").len(), hops.len());
    client.stop();
}

#[test]
fn a_question_without_a_payload_is_answered() {
    let world = World::new();
    let options = [
        "-t",
        "lab/q",
        "--when",
        "",
        "--reply",
        "-c",
        "echo said; cat",
    ];
    let client = world.client("w", &options);
    let reply = "lab/infrastructure/replies/me";
    let mut raw = Raw::connect(world.broker.port());
    raw.subscribe(reply);
    ask(&mut raw, 1, "lab/q", "", reply, &[]);
    let heard = raw.hear("an answer", |_| true);
    assert_eq!(heard.payload, b"said\n");
    // It lacks all attributes.
    client.stop();
    let options = [
        "-t",
        "lab/q",
        "--when",
        "",
        "--reply",
        "--envreq",
        "x",
        "-c",
        "echo said",
    ];
    let client = world.client("w", &options);
    ask(&mut raw, 2, "lab/q", "", reply, &[]);
    let heard = raw.hear("an answer", |_| true);
    assert_eq!(heard.property("tael-code"), Some("65"), "{heard:?}");
    client.stop();
}

#[test]
fn a_worker_runs_the_tasks_that_its_own_commands_send() {
    let world = World::new();
    // The only worker gets all of them.
    let command = format!(
        r#"echo "$ATTR_N" >>"$OUT/tasks"; [ "$ATTR_N" = 2 ] || {} -t lab/tasks n=2"#,
        tool("tael-message")
    );
    let options = ["-t", "$share/pool/lab/tasks", "--when", "", "-c", &command];
    let worker = world.client("w", &options);
    world.message("lab/tasks", &[("n", "1")]);
    wait_until("both tasks", || world.lines("tasks").len() == 2);
    assert_eq!(world.lines("tasks"), ["1", "2"]);
    worker.stop();
}
