//! `tael gateway`: SIGHUP applies what can be applied, and says what needs a restart.

use nix::sys::signal::Signal;

use crate::common::gateway::Gateway;
use crate::common::{World, wait_until};

const A: &str = "aaaaaaaaaaaaaaaa";

/// A route that is there after a reload, to know that it has been done.
fn done(n: usize) -> String {
    format!(
        "[[route]]\nname = \"done{n}\"\npath = \"/hooks/done{n}\"\ntopic = \"lab/done\"\nanswer.status = 200\n"
    )
}

/// A gateway whose file changes.
struct Changing<'a> {
    world: &'a World,
    gateway: Gateway,
    count: usize,
}

impl<'a> Changing<'a> {
    fn start(world: &'a World, text: &str) -> Self {
        let file = world.file("gateway.toml", text);
        let mut command = world.tael(["gateway", "--root", "lab", "--config", &file]);
        if !text.contains("listen") {
            command.args(["--listen", "127.0.0.1:0"]);
        }
        let gateway = Gateway::listening(world.spawn(command));
        gateway.wait_health(200);
        Self {
            world,
            gateway,
            count: 0,
        }
    }

    /// Reloads `text`, and returns what the gateway has said about it.
    #[track_caller]
    fn reload(&mut self, text: &str) -> String {
        self.count += 1;
        let before = self.gateway.process.log_text().len();
        self.world
            .file("gateway.toml", format!("{text}\n{}", done(self.count)));
        self.gateway.process.signal(Signal::SIGHUP);
        let mut said = String::new();
        wait_until("it has reloaded", || {
            said = self.gateway.process.log_text()[before..].to_owned();
            said.contains("reloaded; ") || said.contains("keeping the ")
        });
        said
    }

    fn post(&self, path: &str, fields: &[(&str, &str)]) -> u16 {
        self.gateway.post(path, fields, "{}").status
    }
}

#[test]
fn a_reload_applies_topics_queues_work_rate_names_and_routes_that_need_them() {
    let world = World::new();
    let mut gateway = Changing::start(&world, "[gateway]\nrate = 0\n");
    assert_eq!(gateway.post("/t/lab/a", &[]), 202);
    assert_eq!(gateway.post("/w/localhost/note", &[]), 403);
    let said = gateway.reload(
        "[gateway]\nrate = 0\nallow = [\"lab/b/#\", \"other/#\"]\nallow-work = \"localhost/note\"\n\
         server-name = \"Gate.Example\"\n\
         [[route]]\nname = \"work\"\npath = \"/hooks/work\"\nwork = \"localhost/note\"\n",
    );
    assert!(!said.contains("needs a restart"), "{said}");
    assert_eq!(gateway.post("/t/lab/a", &[]), 403);
    assert_eq!(gateway.post("/t/lab/b", &[]), 202);
    assert_eq!(gateway.post("/t/other/b", &[]), 202);
    // It is allowed; there is no client that could take it.
    assert_eq!(gateway.post("/w/localhost/note", &[]), 503);
    assert_eq!(gateway.post("/hooks/work", &[]), 503);
    let named = "POST /t/lab/b HTTP/1.1\r\nHost: gate.example\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
    let answer = gateway.gateway.exchange(named);
    assert!(answer.starts_with("HTTP/1.1 202"), "{answer}");
    // What a kept route needs may be withdrawn.
    let said = gateway.reload(
        "[gateway]\nrate = 0\n\
         [[route]]\nname = \"work\"\npath = \"/hooks/work\"\nwork = \"localhost/note\"\n",
    );
    assert!(said.contains("keeping the routes of before"), "{said}");
    assert_eq!(gateway.post("/hooks/work", &[]), 403);
    assert_eq!(gateway.post("/w/localhost/note", &[]), 403);
    assert_eq!(gateway.post("/t/lab/a", &[]), 202);
    gateway.reload("[gateway]\nrate = 2\n");
    let codes = [0; 3].map(|_| gateway.post("/t/lab/a", &[]));
    assert_eq!(codes, [202, 202, 429]);
    gateway.gateway.process.stop();
}

#[test]
fn a_token_file_that_is_new_applies_and_one_that_goes_does_not_open_the_gateway() {
    let world = World::new();
    let tokens = world.file("tokens", format!("{A}\n"));
    let mut gateway = Changing::start(&world, "[gateway]\nrate = 0\n");
    assert_eq!(gateway.post("/t/lab/a", &[]), 202);
    let with = format!("[gateway]\nrate = 0\ntoken-file = \"{tokens}\"\n");
    // One that cannot be read is an error, not a whisper.
    let said = gateway.reload("[gateway]\nrate = 0\ntoken-file = \"/nowhere\"\n");
    assert!(
        said.contains("error: reload: read tokens from /nowhere"),
        "{said}"
    );
    assert!(said.contains("callers need NO token"), "{said}");
    gateway.reload(&with);
    let bearer = format!("Bearer {A}");
    let known = [("authorization", bearer.as_str())];
    assert_eq!(gateway.post("/t/lab/a", &[]), 401);
    assert_eq!(gateway.post("/t/lab/a", &known), 202);
    let said = gateway.reload("[gateway]\nrate = 0\n");
    assert!(said.contains("the tokens of before stay"), "{said}");
    assert_eq!(gateway.post("/t/lab/a", &[]), 401);
    assert_eq!(gateway.post("/t/lab/a", &known), 202);
    // A mistake elsewhere does not keep a token that was withdrawn.
    gateway.reload(&with);
    let other = "bbbbbbbbbbbbbbbb";
    world.file("tokens", format!("{other}\n"));
    gateway.reload(&with.replace("rate = 0", "rate = \"x\""));
    wait_until("the token is withdrawn", || {
        gateway.post("/t/lab/a", &known) == 401
    });
    let bearer = format!("Bearer {other}");
    assert_eq!(gateway.post("/t/lab/a", &[("authorization", &bearer)]), 202);
    gateway.gateway.process.stop();
}

#[test]
fn a_reload_names_what_needs_a_restart() {
    let world = World::new();
    let listen = "listen = \"127.0.0.1:0\"\n";
    let mut gateway = Changing::start(&world, &format!("[gateway]\nrate = 0\n{listen}"));
    let said = gateway.reload(&format!("[gateway]\nrate = 0\n{listen}"));
    assert!(!said.contains("restart"), "{said}");
    let said = gateway.reload(
        "[gateway]\nrate = 0\nlisten = \"127.0.0.1:1\"\nno-page = true\ntimeout = \"3s\"\nevents = \"lab/e\"\n",
    );
    for name in ["listen", "no-page", "timeout", "events"] {
        let line = format!("a new {name} needs a restart");
        assert!(said.contains(&line), "{line}: {said}");
    }
    assert_eq!(gateway.post("/t/lab/a", &[]), 202);
    gateway.gateway.process.stop();
}

#[test]
fn a_sender_with_a_wrong_path_is_told_and_logged() {
    let world = World::new();
    let gateway = Changing::start(&world, &format!("[gateway]\nrate = 0\n{}", done(0)));
    let answer = gateway.gateway.post("/hooks/done", &[], "{}");
    assert_eq!(answer.status, 404);
    assert!(answer.body.contains("no route has this path"), "{answer:?}");
    wait_until("it is a warning", || {
        let log = gateway.gateway.process.log_text();
        log.contains("warning: no route has the path '/hooks/done'")
    });
    assert_eq!(gateway.post("/hooks/done0", &[]), 200);
    gateway.gateway.process.stop();
}
