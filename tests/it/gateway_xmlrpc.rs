//! `tael gateway` and XML-RPC: workflow clients as they are drive a client of Tael.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use tael::model::signature::base64;

use crate::common::gateway::{Answer, Gateway, post};
use crate::common::{World, has_program, wait_until};

/// Runs the workflow client against a gateway, and returns what it prints.
#[track_caller]
fn workflow_client(url: &str, arguments: &[&str], input: &str) -> Option<Value> {
    if !has_program("python3", "a workflow client") {
        return None;
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut command = Command::new("python3");
    command
        .arg(path.join("tests/interop/gateway/workflow_client.py"))
        .arg(url)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().expect("python3");
    let mut stdin = child.stdin.take().expect("stdin");
    stdin.write_all(input.as_bytes()).expect("input");
    drop(stdin);
    let output = child.wait_with_output().expect("output");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    Some(serde_json::from_slice(&output.stdout).expect("JSON"))
}

/// Sends a call, and returns the code of its fault.
#[track_caller]
fn fault(gateway: &Gateway, body: impl AsRef<[u8]>) -> i64 {
    let body = body.as_ref();
    let mut request = post("/RPC2", &[("Content-Type", "text/xml")], "").into_bytes();
    let text = String::from_utf8(request).expect("text");
    let length = format!("Content-Length: {}", body.len());
    request = text.replace("Content-Length: 0", &length).into_bytes();
    request.extend_from_slice(body);
    let answer = Answer::parse(&gateway.exchange(request));
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(answer.head.contains("content-type: text/xml"), "{answer:?}");
    let (_, rest) = answer
        .body
        .split_once("<name>faultCode</name><value><int>")
        .expect(&answer.body);
    rest.split('<')
        .next()
        .and_then(|code| code.parse().ok())
        .expect("code")
}

#[test]
fn python_calls_every_method() {
    let mut world = World::new();
    let client = world.client("flow", &["-t", "lab/none", "--when", "", "-c", "true"]);
    let gateway = Gateway::online(&world, &["--workflows", "flow"]);
    let ears = world.ears(&["lab/#"]);
    let url = format!("http://{}", gateway.address);
    let Some(answer) = workflow_client(&url, &["calls"], "") else {
        return;
    };
    let unsupported = |method: &str| {
        json!([
            1,
            format!("<type 'exceptions.Exception'>:method \"{method}\" is not supported")
        ])
    };
    assert_eq!(answer["event"], true);
    assert_eq!(
        answer["unknown"],
        unsupported("workflowmgr.getWorkflowById")
    );
    assert_eq!(answer["listing"], unsupported("system.listMethods"));
    for (name, cause) in [
        ("other", "allows"),
        ("wildcard", "wildcard"),
        ("arity", "takes exactly 2 arguments (1 given)"),
        ("kind", "takes a string, not a int"),
        ("metadata", "struct"),
    ] {
        assert_eq!(answer[name][0], 1, "{name}: {answer}");
        let text = answer[name][1].as_str().expect("text");
        assert!(text.contains(cause), "{name}: {text}");
    }
    assert_eq!(answer["running"], 0);
    assert_eq!(answer["finished"], 0);
    assert_eq!(answer["instances"], 0);
    let message = ears.wait("the event", |m| m.topic == "lab/seq/status");
    let want = json!({
        "Dataset": ["abc"], "Run": 7, "Share": 0.5, "Good": true, "Empty": {}, "None": null,
        "Name": "Zoë <&> 猫", "When": "20261127T06:00:00", "Bytes": base64::encode_padded(b"\0\xff"),
    });
    assert_eq!(message.payload, want);
    // A broker that is away is a fault, which a consumer takes for "try again", and never true.
    world.broker.stop();
    gateway.wait_health(503);
    let call = "<methodCall><methodName>workflowmgr.handleEvent</methodName><params>\
        <param><value>a</value></param><param><value><struct></struct></value></param></params></methodCall>";
    assert_eq!(fault(&gateway, call), 1);
    gateway.process.stop();
    client.stop();
}

#[test]
fn an_unchanged_consumer_drives_a_client() {
    const JOBS: usize = 8;
    let world = World::new();
    let client = world.client(
        "flow",
        &[
            "-t",
            "lab/events/align",
            "--when",
            "",
            "--jobs",
            "4",
            "-c",
            "sleep 0.1; echo $ATTR_RUN >>$OUT/ran",
        ],
    );
    let options = ["--workflows", "flow", "--events", "lab/events"];
    let gateway = Gateway::online(&world, &options);
    let input: String = (0..JOBS)
        .map(|n| format!("{{\"Run\":\"{n}\"}}\n"))
        .collect();
    let url = format!("http://{}/", gateway.address);
    let Some(answer) = workflow_client(&url, &["drive", "align", "2"], &input) else {
        return;
    };
    // It counts what waits, too: it never hands over more than it wants.
    assert!(answer["highest"].as_u64().expect("number") <= 2, "{answer}");
    wait_until("all have run", || world.lines("ran").len() >= JOBS);
    let mut runs = world.lines("ran");
    runs.sort();
    let want: Vec<String> = (0..JOBS).map(|n| n.to_string()).collect();
    assert_eq!(runs, want);
    gateway.process.stop();
    client.stop();
}

#[test]
fn hostile_calls_are_faults_and_the_gateway_goes_on() {
    let world = World::new();
    let tokens = world.file("tokens", "a-token-of-the-gateway\n");
    let gateway = Gateway::online(&world, &[]);
    let nested = "<value><array><data>".repeat(50_000);
    let entity = "<!DOCTYPE a [<!ENTITY a \"aaaaaaaaaa\"><!ENTITY b \"&a;&a;&a;&a;&a;\">]>\
        <methodCall><methodName>&b;</methodName></methodCall>";
    let call = |head: &[u8], name: &[u8]| {
        [
            head,
            b"<methodCall><methodName>",
            name,
            b"</methodName></methodCall>",
        ]
        .concat()
    };
    let declared = |name: &str| format!("<?xml version=\"1.0\" encoding=\"{name}\"?>").into_bytes();
    let many = "<param><value>a</value></param>".repeat(6_000);
    for (body, code) in [
        (Vec::new(), -32600),
        (b"{}".to_vec(), -32600),
        (entity.into(), -32700),
        (
            format!("<methodCall><methodName>a</methodName><params><param>{nested}").into(),
            -32600,
        ),
        (
            format!("<methodCall><methodName>a</methodName><params>{many}</params></methodCall>")
                .into(),
            -32600,
        ),
        (call(&declared("UTF-16"), b"a"), -32701),
        (call(&declared("EBCDIC-CP-US"), b"a"), -32701),
        (call(b"\xff\xfe", b"a"), -32701),
        (call(&declared("UTF-8"), b"\xe4"), -32702),
        (call(b"", b"a\x01"), -32702),
        (call(b"", b"&#0;"), -32702),
        // Apache declares it, and it is read.
        (call(&declared("ISO-8859-1"), b"a"), 1),
    ] {
        let shown = String::from_utf8_lossy(&body[..body.len().min(80)]).into_owned();
        assert_eq!(fault(&gateway, body), code, "{shown}");
    }
    for path in ["/RPC3", "/RPC2/"] {
        assert_eq!(gateway.post(path, &[], "").status, 404, "{path}");
    }
    assert_eq!(gateway.get("/RPC2").status, 405);
    let foreign = [("Origin", "http://evil.example")];
    assert_eq!(gateway.post("/RPC2", &foreign, "").status, 403);
    gateway.process.stop();
    // Old clients send a token as a password.
    let gateway = Gateway::online(&world, &["--token-file", &tokens]);
    assert_eq!(gateway.post("/RPC2", &[], "").status, 401);
    let url = format!("http://oodt:a-token-of-the-gateway@{}", gateway.address);
    if let Some(answer) = workflow_client(&url, &["event"], "") {
        assert_eq!(answer["event"], true);
    }
    gateway.process.stop();
}
