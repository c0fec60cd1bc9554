//! Questions that commands ask, and their answers: their loops end.

use serde_json::json;

use crate::common::raw::{Heard, Raw, publish_with, request_properties, user_properties};
use crate::common::{World, binary, ran, wait_until};

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
