//! `tael gateway` and webhooks: each sender is believed, each delivery runs once.

use nix::sys::signal::Signal;
use ring::hmac::{HMAC_SHA256, HMAC_SHA512, Key, sign};
use serde_json::json;
use tael::model::signature::base64;

use crate::common::gateway::{Answer, Gateway, post};
use crate::common::{World, bare_command, has_program, ran, wait_until};

/// GitHub, "Validating webhook deliveries": the values for tests.
const HUB_SECRET: &str = "It's a Secret to Everybody";
const HUB_BODY: &str = "Hello, World!";
const HUB_CODE: &str = "757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";

/// Standard Webhooks: the vector of its libraries.
const STANDARD_KEY: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const STANDARD_BODY: &str = r#"{"test": 2432232314}"#;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Returns the header field of GitHub for a body.
pub(super) fn hub(body: &str) -> String {
    let key = Key::new(HMAC_SHA256, HUB_SECRET.as_bytes());
    format!("sha256={}", hex(sign(&key, body.as_bytes()).as_ref()))
}

fn standard(id: &str, time: i64, body: &str) -> [(&'static str, String); 3] {
    let key = STANDARD_KEY.strip_prefix("whsec_").expect("prefix");
    let key = Key::new(HMAC_SHA256, &base64::decode_padded(key).expect("key"));
    let code = sign(&key, format!("{id}.{time}.{body}").as_bytes());
    let code = base64::encode_padded(code.as_ref());
    [
        ("webhook-id", id.to_owned()),
        ("webhook-timestamp", time.to_string()),
        ("webhook-signature", format!("v1,{code}")),
    ]
}

/// Writes a configuration file with `routes`; `SECRET/` stands for the folder of the secrets.
pub(super) fn config(world: &World, routes: &str) -> String {
    for (name, secret) in [
        ("hub", HUB_SECRET),
        ("standard", STANDARD_KEY),
        ("gitlab", "a token of gitlab"),
    ] {
        let file = world.file(name, format!("{secret}\n"));
        std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600))
            .expect("mode");
    }
    let folder = format!("{}/", world.dir.path().display());
    world.file("gateway.toml", routes.replace("SECRET/", &folder))
}

/// Sends `body` with these header fields only.
#[track_caller]
fn send(gateway: &Gateway, path: &str, fields: &[(&str, String)], body: &str) -> Answer {
    let fields: Vec<(&str, &str)> = fields.iter().map(|(n, v)| (*n, v.as_str())).collect();
    Answer::parse(&gateway.exchange(post(path, &fields, body)))
}

const SOURCES: &str = r#"
[[route]]
name = "hub"
path = "/hooks/hub"
source = "github"
secret-file = "SECRET/hub"
topic = "lab/hub"
map.text = { request = "body" }
[[route]]
name = "gitea"
path = "/hooks/gitea"
source = "gitea"
secret-file = "SECRET/hub"
topic = "lab/gitea"
map.text = { request = "body" }
[[route]]
name = "forgejo"
path = "/hooks/forgejo"
source = "forgejo"
secret-file = "SECRET/hub"
topic = "lab/forgejo"
map.text = { request = "body" }
[[route]]
name = "lab"
path = "/hooks/gitlab"
source = "gitlab"
secret-file = "SECRET/gitlab"
topic = "lab/gitlab"
map.text = { request = "body" }
[[route]]
name = "lab-signed"
path = "/hooks/gitlab-signed"
source = "gitlab"
secret-file = "SECRET/standard"
topic = "lab/gitlab-signed"
[[route]]
name = "standard"
path = "/hooks/standard"
source = "standard"
secret-file = "SECRET/standard"
topic = "lab/standard"
[[route]]
name = "code"
path = "/hooks/code"
source = "hmac-sha512"
header = "X-Signature"
prefix = "sha512="
encoding = "base64"
secret-file = "SECRET/hub"
topic = "lab/code"
map.text = { request = "body" }
[[route]]
name = "bearer"
path = "/hooks/bearer"
source = "bearer"
secret-file = "SECRET/gitlab"
topic = "lab/bearer"
map.text = { request = "body" }
"#;

#[test]
fn each_sender_is_believed_by_its_own_vector() {
    let world = World::new();
    let config = config(&world, SOURCES);
    let tokens = world.file("tokens", "a token of the gateway\n".replace(' ', "-"));
    // Senders have no token of the gateway, and name it as they like.
    let gateway = Gateway::online(&world, &["--config", &config, "--token-file", &tokens]);
    let ears = world.ears(&["lab/#"]);
    let now = jiff::Timestamp::now().as_second();
    let plain = ("Content-Type", "text/plain".to_owned());
    let code = sign(
        &Key::new(HMAC_SHA512, HUB_SECRET.as_bytes()),
        HUB_BODY.as_bytes(),
    );
    let code = base64::encode_padded(code.as_ref());
    let one = |name: &'static str, value: &str| vec![plain.clone(), (name, value.to_owned())];
    let good = [
        (
            "hub",
            one("X-Hub-Signature-256", &format!("sha256={HUB_CODE}")),
            HUB_BODY,
        ),
        ("gitea", one("X-Gitea-Signature", HUB_CODE), HUB_BODY),
        (
            "gitea",
            one("X-Hub-Signature-256", &format!("sha256={HUB_CODE}")),
            HUB_BODY,
        ),
        ("forgejo", one("X-Forgejo-Signature", HUB_CODE), HUB_BODY),
        (
            "gitlab",
            one("X-Gitlab-Token", "a token of gitlab"),
            HUB_BODY,
        ),
        (
            "gitlab-signed",
            standard("m1", now, STANDARD_BODY).to_vec(),
            STANDARD_BODY,
        ),
        (
            "standard",
            standard("m2", now, STANDARD_BODY).to_vec(),
            STANDARD_BODY,
        ),
        (
            "code",
            one("X-Signature", &format!("sha512={code}")),
            HUB_BODY,
        ),
        (
            "bearer",
            one("Authorization", "Bearer a token of gitlab"),
            HUB_BODY,
        ),
    ];
    for (path, fields, body) in &good {
        let url = format!("/hooks/{path}");
        let answer = send(&gateway, &url, fields, body);
        let id = answer.id();
        let message = ears.wait("the message", |m| m.properties["tael-id"] == id.as_str());
        assert_eq!(message.topic, format!("lab/{path}"));
        let want = match *body {
            HUB_BODY => json!({ "text": HUB_BODY }),
            _ => json!({ "test": 2_432_232_314_u64 }),
        };
        assert_eq!(message.payload, want);
        // Another body, and none of the fields.
        let forged = [*body, " "].concat();
        let is_token = ["gitlab", "bearer"].contains(path);
        if !is_token {
            assert_eq!(send(&gateway, &url, fields, &forged).status, 401, "{path}");
        }
        let bare = send(&gateway, &url, &[], body);
        assert_eq!(bare.status, 401, "{path}");
        assert!(!bare.body.contains("X-") && bare.body.contains("missing or wrong"));
    }
    // The vector of the libraries is right, and too old, as a request that was recorded is.
    let old = [
        ("webhook-id", "msg_p5jXN8AQM9LWM0D4loKWxJek".to_owned()),
        ("webhook-timestamp", "1614265330".to_owned()),
        (
            "webhook-signature",
            "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=".to_owned(),
        ),
    ];
    assert_eq!(
        send(&gateway, "/hooks/standard", &old, STANDARD_BODY).status,
        401
    );
    // Also with the level of the default.
    wait_until("the log names the cause", || {
        let line = "warning: route standard: refused a request: it was sent";
        gateway.process.log_text().contains(line)
    });
    for time in [now - 400, now + 400] {
        let fields = standard("m3", time, STANDARD_BODY);
        let answer = send(&gateway, "/hooks/standard", &fields, STANDARD_BODY);
        assert_eq!(answer.status, 401, "{time}");
    }
    // Other paths still need the gateway's token.
    assert_eq!(gateway.post("/t/lab/last", &[], "{}").status, 401);
    let token = [("Authorization", "Bearer a-token-of-the-gateway")];
    gateway.post("/t/lab/last", &token, "{}").id();
    ears.wait("the last", |m| m.topic == "lab/last");
    assert_eq!(ears.all().len(), good.len() + 1);
    let log = gateway.process.log_text();
    for secret in [HUB_SECRET, STANDARD_KEY, "a token of gitlab"] {
        assert!(!log.contains(secret), "{log}");
    }
    gateway.process.stop();
}

const PUSH: &str = r#"
[[route]]
name = "push"
path = "/hooks/push"
method = ["POST", "PUT"]
source = "github"
secret-file = "SECRET/hub"
topic = "lab/hook"
rule = [
    { header = "X-GitHub-Event", value = "push" },
    { or = [
        { json = "ref", regex = "^refs/heads/(main|release/.*)$" },
        { query = "force", exists = true },
    ] },
    { ip = ["127.0.0.0/8", "::1"] },
    { not = { json = "deleted", value = true } },
]
[route.map]
event = { header = "X-GitHub-Event" }
branch = { json = "ref" }
author = { json = "commits.0.author.name", default = "unknown" }
force = { query = "force", optional = true }
kind = { value = "git" }
[route.answer]
status = 200
message = "<ok/>"
type = "application/xml"
mismatch = 200
[[route]]
name = "open"
path = "/hooks/open"
method = "GET"
topic = "lab/open"
map.sample = { query = "sample" }
"#;

#[test]
fn a_delivery_runs_once_and_brings_what_its_route_maps() {
    let world = World::new();
    let config = config(&world, PUSH);
    let client = world.client(
        "p",
        &[
            "-t", "lab/hook", "--when", "", "-c",
            "echo $TAEL_EVENT $ATTR_EVENT $ATTR_BRANCH $ATTR_AUTHOR $ATTR_FORCE $ATTR_KIND >>$OUT/ran",
        ],
    );
    let gateway = Gateway::online(&world, &["--config", &config]);
    let deliver = |id: &str, event: &str, body: &str, path: &str, media: &str| {
        let fields = [
            ("X-Hub-Signature-256", hub(body)),
            ("X-GitHub-Delivery", id.to_owned()),
            ("X-GitHub-Event", event.to_owned()),
            ("Content-Type", media.to_owned()),
        ];
        send(&gateway, path, &fields, body)
    };
    let main = r#"{"ref":"refs/heads/main","commits":[{"author":{"name":"Ann"}}]}"#;
    let json = "application/json";
    for _ in 0..3 {
        let answer = deliver("72d3162e-1", "push", main, "/hooks/push", json);
        assert_eq!((answer.status, answer.body.as_str()), (200, "<ok/>"));
        assert!(
            answer.head.contains("content-type: application/xml"),
            "{answer:?}"
        );
    }
    // As a form, whose field holds the document.
    let form = "payload=%7B%22ref%22%3A%22refs%2Fheads%2Frelease%2F1%22%7D";
    let answer = deliver(
        "d2",
        "push",
        form,
        "/hooks/push",
        "application/x-www-form-urlencoded",
    );
    assert_eq!(answer.body, "<ok/>");
    let side = r#"{"ref":"refs/heads/side"}"#;
    let answer = deliver("d3", "push", side, "/hooks/push?force=1", json);
    assert_eq!(answer.body, "<ok/>");
    for (id, event, body) in [
        ("d4", "ping", main),
        ("d5", "push", side),
        ("d6", "push", r#"{"ref":"refs/heads/main","deleted":true}"#),
    ] {
        let answer = deliver(id, event, body, "/hooks/push", json);
        assert_eq!(answer.status, 200, "{answer:?}");
        assert!(answer.body.contains("ignored"), "{answer:?}");
    }
    // The configuration expects them: they are no warnings.
    wait_until("the log has them", || {
        let log = gateway.process.log_text();
        log.matches(" route push: ignored a request: ").count() == 3
    });
    let log = gateway.process.log_text();
    assert!(!log.contains("warning: route push"), "{log}");
    let answer = deliver("d7", "push", "{", "/hooks/push", json);
    assert_eq!(answer.status, 400, "{answer:?}");
    assert_eq!(gateway.get("/hooks/push").status, 405);
    assert_eq!(gateway.get("/hooks/none").status, 404);
    let ears = world.ears(&["lab/open"]);
    assert_eq!(gateway.get("/hooks/open").status, 400);
    gateway.get("/hooks/open?sample=S%201").id();
    let message = ears.wait("the open one", |m| m.topic == "lab/open");
    assert_eq!(message.payload, json!({ "sample": "S 1" }));
    let last = deliver("last", "push", main, "/hooks/push", json);
    assert_eq!(last.status, 200);
    wait_until("the last has run", || {
        world
            .lines("ran")
            .iter()
            .any(|line| line.contains("push:last"))
    });
    let mut runs = world.lines("ran");
    runs.sort();
    let want = [
        "push:72d3162e-1 push refs/heads/main Ann git",
        "push:d2 push refs/heads/release/1 unknown git",
        "push:d3 push refs/heads/side unknown 1 git",
        "push:last push refs/heads/main Ann git",
    ];
    assert_eq!(runs, want);
    gateway.process.stop();
    client.stop();
}

#[test]
fn a_wrong_file_keeps_the_routes_and_is_judged_before_a_start() {
    let mut world = World::new();
    let route =
        |path: &str| format!("[[route]]\nname = \"a\"\npath = \"{path}\"\ntopic = \"lab/a\"\n");
    let file = config(&world, &route("/hooks/a"));
    let gateway = Gateway::online(&world, &["--config", &file]);
    gateway.post("/hooks/a", &[], "{}").id();
    let reload = |text: &str| {
        world.file("gateway.toml", text);
        gateway.process.signal(Signal::SIGHUP);
    };
    reload(&route("hooks/b"));
    wait_until("the wrong file is told", || {
        gateway
            .process
            .log_text()
            .contains("keeping the routes of before")
    });
    gateway.post("/hooks/a", &[], "{}").id();
    reload(&route("/hooks/b"));
    wait_until("the new path is there", || {
        gateway.post("/hooks/b", &[], "{}").status == 202
    });
    assert_eq!(gateway.post("/hooks/a", &[], "{}").status, 404);
    // The broker goes: the sender is told, and sends again.
    world.broker.stop();
    gateway.wait_health(503);
    let answer = gateway.post("/hooks/b", &[], "{}");
    assert_eq!(answer.status, 503, "{answer:?}");
    assert!(answer.head.contains("retry-after"), "{answer:?}");
    gateway.process.stop();
    let judged = |text: &str| {
        let file = config(&world, text);
        let mut command = bare_command(&world.dir, "tael");
        command.args(["gateway", "--check", "--config", &file]);
        let (code, out, said) = ran(&mut command);
        (code, out + &said)
    };
    assert_eq!(judged(SOURCES).0, 0, "{}", judged(SOURCES).1);
    assert_eq!(judged(PUSH).0, 0, "{}", judged(PUSH).1);
    let example = include_str!("../../examples/gateway.toml");
    let folder = format!("{}/", world.dir.path().display());
    for name in ["github", "gitea", "sequencer", "build"] {
        world.file(&format!("{name}.secret"), HUB_SECRET);
    }
    world.file("sequencer.secret.old", HUB_SECRET);
    world.file("gitlab.secret", STANDARD_KEY);
    let (code, said) = judged(&example.replace("/etc/tael/", &folder));
    assert_eq!(code, 0, "{said}");
    for (text, line, cause) in [
        (route("hooks/b"), 3, "a path begins with /"),
        (
            route("/hooks/b") + "rule = { header = \"x\" }",
            5,
            "needs one of value",
        ),
        (
            route("/hooks/b") + "source = \"github\"",
            5,
            "github needs 'secret-file'",
        ),
        (
            route("/hooks/b") + "secret-file = \"SECRET/hub\"",
            5,
            "belongs to a 'source'",
        ),
        (
            route("/b").replace("topic", "queue"),
            4,
            "no broker of queues",
        ),
        (
            route("/b").replace("topic = \"lab/a\"", "work = \"n/t\""),
            4,
            "'n/t' is not allowed: add --allow-work n/t",
        ),
        (route("/b") + "answer = { status = 500 }", 5, "200 to 299"),
        (
            route("/b") + "answer = { wait = \"2h\" }",
            5,
            "one hour is the maximum",
        ),
        (
            route("/b") + "answer = { wait = \"1m\", message = \"ok\" }",
            5,
            "beside 'wait'",
        ),
        (
            route("/b").replace("[[route]]", "[route]"),
            1,
            "two brackets",
        ),
    ] {
        let (code, said) = judged(&text);
        assert_eq!(code, 78, "{text}: {said}");
        assert!(said.contains(cause), "{text}: {said}");
        assert!(said.contains(&format!("line {line}")), "{text}: {said}");
        assert!(!said.contains(HUB_SECRET));
    }
}

/// Returns the only block of a kind in docs/gateway.md.
fn block(fence: &str) -> &'static str {
    let page = include_str!("../../docs/gateway.md");
    let mut parts = page.split(fence).skip(1);
    let block = parts.next().and_then(|rest| rest.split("```").next());
    assert!(parts.next().is_none(), "two blocks: {fence}");
    block.expect("a block")
}

#[test]
fn the_first_webhook_of_the_page_runs_its_command_once() {
    if !has_program("curl", "the webhook of docs/gateway.md")
        || !has_program("openssl", "the webhook of docs/gateway.md")
    {
        return;
    }
    let world = World::new();
    config(&world, "");
    std::fs::rename(world.path("hub"), world.path("github.secret")).expect("the secret");
    let secret = world.path("github.secret");
    let text =
        block("```toml hook\n").replace("\"github.secret\"", &format!("'{}'", secret.display()));
    let file = world.file("gateway.toml", text);
    let ears = world.ears(&["lab/#"]);
    let out = world.path("built");
    let command = format!("echo \"$COMMIT $TAEL_EVENT\" >>{}", out.display());
    let trigger = ["-t", "lab/git/push", "--envreq", "COMMIT", "-c", &command];
    let client = world.client("build", &trigger);
    let gateway = Gateway::online(&world, &["--config", &file]);
    let sent = block("```sh hook\n").replace("localhost:8787", &gateway.address);
    for _ in 0..2 {
        let mut sh = std::process::Command::new("sh");
        sh.args(["-euc", &sent]).current_dir(world.dir.path());
        let (code, out, error) = ran(&mut sh);
        assert_eq!(
            (code, out.trim_end()),
            (0, r#"{"id":"github:d-1"}"#),
            "{error}"
        );
    }
    // Another one, behind the second.
    let other = sent.replace("1f2e3d", "4a5b6c").replace("d-1", "d-2");
    let mut sh = std::process::Command::new("sh");
    sh.args(["-euc", &other]).current_dir(world.dir.path());
    assert_eq!(ran(&mut sh).0, 0);
    ears.wait_all("both ends", |_| {
        (ears.count("build", "finished") == 2).then_some(())
    });
    assert_eq!(
        world.lines("built"),
        ["1f2e3d github:d-1", "4a5b6c github:d-2"]
    );
    let metrics = gateway.get("/metrics").body;
    let line = r#"tael_gateway_route_answers_total{route="github",code="202"} 3"#;
    assert!(metrics.lines().any(|own| own == line), "{metrics}");
    let version = format!(
        "tael_gateway_build_info{{version=\"{}\"}} 1",
        env!("CARGO_PKG_VERSION")
    );
    assert!(metrics.contains(&version), "{metrics}");
    gateway.process.stop();
    client.stop();
}
