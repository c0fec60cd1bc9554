//! `tael facts view`: SELECTs over nodes, facts and pipelines.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::common::broker::Setup;
use crate::common::raw::{self, Raw, Scripted, packet};
use crate::common::{World, has_program, ran, refuses};
use crate::facts::retain;

/// Publishes facts of kind `dynamic` of `node`.
pub fn node(world: &World, name: &str, host: &str, free: u32) {
    let topic = |last: &str| format!("lab/infrastructure/nodes/{name}/{last}");
    let facts = json!({"node": name, "kind": "dynamic", "ts": 1000, "facts": {"disk": {"root": {"free_percent": free}}}});
    retain(world, &topic("dynamic"), &facts.to_string());
    let ts = jiff::Timestamp::now().as_second();
    let presence =
        json!({"state": "online", "node": name, "host": host, "ts": ts, "interval": 300});
    retain(world, &topic("presence"), &presence.to_string());
}

fn view(world: &World, arguments: &[&str]) -> Command {
    let mut command = world.tael(["facts", "view", "--root", "lab"]);
    command.args(arguments).env("TAEL_LOG", "warn");
    command
}

#[track_caller]
fn shown(world: &World, arguments: &[&str]) -> String {
    let (code, stdout, stderr) = ran(&mut view(world, arguments));
    assert_eq!((code, &*stderr), (0, ""), "{stdout}");
    stdout
}

#[test]
fn a_select_is_shown_in_every_form() {
    let world = World::new();
    node(&world, "a", "h1", 5);
    node(&world, "b", "h2", 50);
    let presence = json!({"state": "online", "who": "align", "host": "h1"});
    retain(
        &world,
        "lab/infrastructure/pipelines/align/presence",
        &presence.to_string(),
    );
    let sql = "SELECT p.who, n.name FROM pipeline p JOIN node n USING (host) WHERE n.facts->>'$.disk.root.free_percent' < 10";
    assert_eq!(
        shown(&world, &[sql, "--json"]),
        "[{\"who\":\"align\",\"name\":\"a\"}]\n"
    );
    let sql = "SELECT name, facts->>'$.disk.root.free_percent' AS free FROM node ORDER BY name";
    assert_eq!(shown(&world, &[sql, "--csv"]), "name,free\na,5\nb,50\n");
    assert_eq!(shown(&world, &[sql, "--raw"]), "a\nb\n");
    let table: Vec<Vec<String>> = shown(&world, &[sql])
        .lines()
        .map(|line| line.split_whitespace().map(str::to_owned).collect())
        .collect();
    assert_eq!(table, [["NAME", "FREE"], ["a", "5"], ["b", "50"]]);
    let none = "SELECT name FROM node WHERE name = :name";
    assert_eq!(
        shown(&world, &[none, "--json", "--set", "name=x' OR 1 --"]),
        "[]\n"
    );
    assert_eq!(shown(&world, &[none, "--raw", "--set", "name=b"]), "b\n");
}

#[test]
fn a_named_view_is_published_when_its_rows_have_changed() {
    let world = World::new();
    node(&world, "a", "h1", 5);
    let sql =
        "SELECT name FROM node WHERE fresh AND facts->>'$.disk.root.free_percent' < 10 ORDER BY 1";
    let file = world.file(
        "tael.toml",
        format!("[[view]]\nname = 'full'\nsql = \"{sql}\"\n"),
    );
    let topic = "lab/infrastructure/views/full";
    let ears = world.ears(&[topic]);
    let publish = || shown(&world, &["full", "--publish", "--config", &file]);
    assert_eq!(publish(), "");
    let first = ears.wait("the view", |m| m.topic == topic);
    assert_eq!(first.payload["rows"], json!([{"name": "a"}]));
    assert_eq!(
        (&first.payload["view"], &first.payload["truncated"]),
        (&json!("full"), &json!(false))
    );
    // The same again is not published.
    publish();
    node(&world, "b", "h2", 7);
    publish();
    let second = ears.wait_all("two", |all| all.get(1).cloned());
    assert_eq!(
        second.payload["rows"],
        json!([{"name": "a"}, {"name": "b"}])
    );
    assert_eq!(ears.all().len(), 2);
    refuses(
        &mut view(&world, &["ful", "--config", &file]),
        64,
        "did you mean full?",
    );
}

#[test]
fn what_a_select_may_not_do_is_refused() {
    let world = World::new();
    node(&world, "a", "h1", 5);
    let target = world.path("x.db");
    let attach = format!("ATTACH '{}' AS x", target.display());
    for (sql, code, text) in [
        (&*attach, 64, "it may only read"),
        ("DELETE FROM node WHERE 1", 64, "it may only read"),
        ("SELECT * FROM nodes", 64, "no such table: nodes"),
        ("SELECT name FROM node; SELECT 2", 64, "view: "),
        (
            "SELECT readfile('/etc/passwd') AS x",
            64,
            "no such function",
        ),
        (
            "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c) SELECT count(*) FROM c",
            65,
            "it ran longer than 2 s",
        ),
        (
            "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c) \
             SELECT DISTINCT n || printf('%.90000c', 'x') FROM c ORDER BY 1",
            65,
            "view: it ",
        ),
        ("SELECT name FROM node WHERE name = 'x' AND 1", 0, ""),
        (
            "SELECT name FROM node WHERE name = :x",
            64,
            ":x in the SELECT has no value",
        ),
        (
            "SELECT name FROM node WHERE name = ?",
            64,
            "? in the SELECT",
        ),
    ] {
        if code == 0 {
            assert_eq!(shown(&world, &[sql, "--json"]), "[]\n", "{sql}");
        } else {
            refuses(&mut view(&world, &[sql]), code, text);
        }
    }
    refuses(
        &mut view(&world, &["SELECT 1 AS x", "--set", "y=1"]),
        64,
        "the SELECT has no :y",
    );
    refuses(
        &mut view(&world, &["SELECT 1 AS x", "--publish"]),
        64,
        "--publish takes the name",
    );
    let home = world.path("config/tael/tael.toml");
    let mut unknown = view(&world, &["unknown"]);
    unknown.env("XDG_CONFIG_HOME", world.path("config"));
    refuses(&mut unknown, 64, "there is no such view");
    if !Path::new("/etc/tael/tael.toml").exists() {
        let places = format!("there is no file {}, and no /etc/tael", home.display());
        refuses(&mut unknown, 64, &places);
    }
    let file = world.file("none.toml", "root = 'lab'\n");
    let cause = format!("there is no [[view]] in {file}");
    refuses(
        &mut view(&world, &["unknown", "--config", &file]),
        64,
        &cause,
    );
    assert!(!target.exists(), "a file was written");
}

#[test]
fn wrong_tables_of_views_are_named_by_their_lines() {
    let world = World::new();
    for (text, cause) in [
        (
            "[[view]]\nname = 'x'\nsqll = 'SELECT 1'\n",
            "line 3: unknown key 'sqll'; did you mean 'sql'?",
        ),
        (
            "[[view]]\nname = 'x y'\nsql = 'SELECT 1'\n",
            "'name' has 1 to 64 letters",
        ),
        ("[[view]]\nname = 'x'\n", "a view has 'name' and 'sql'"),
        (
            "[[view]]\nname = 'x'\nsql = 'SELECT 1'\nnodes = ['a/b']\n",
            "'a/b' cannot name a node",
        ),
    ] {
        let file = world.file("tael.toml", text);
        refuses(&mut view(&world, &["x", "--config", &file]), 78, cause);
    }
}

#[test]
fn nodes_are_asked_for_by_name_where_the_file_says_so() {
    let world = World::new();
    for name in ["a", "b", "c"] {
        node(&world, name, "h", 5);
    }
    let file = world.file(
        "tael.toml",
        "[[view]]\nname = 'some'\nsql = 'SELECT name FROM node ORDER BY 1'\nnodes = ['a', 'c']\n",
    );
    assert_eq!(
        shown(&world, &["some", "--raw", "--config", &file]),
        "a\nc\n"
    );
}

#[test]
fn the_inventory_of_the_examples_is_one_for_ansible() {
    let world = World::new();
    node(&world, "a", "a.lab", 5);
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/facts");
    let file = examples.join("views.toml");
    let script = fs::read_to_string(examples.join("inventory.sh")).expect("script");
    assert!(script.contains("tael facts view ansible --raw"), "{script}");
    let file = file.to_str().expect("path");
    let text = shown(&world, &["ansible", "--raw", "--config", file]);
    let inventory: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(inventory["all"]["hosts"], json!(["a"]));
    let vars = &inventory["_meta"]["hostvars"]["a"];
    assert_eq!(
        (
            &vars["ansible_host"],
            &vars["tael_facts"]["disk"]["root"]["free_percent"]
        ),
        (&json!("a.lab"), &json!(5))
    );
    assert_eq!(shown(&world, &["full", "--raw", "--config", file]), "a\n");
    // A group for each operating system.
    let facts = json!({"node": "a", "kind": "common", "ts": 1, "facts": {"os": {"id": "debian"}, "ok": true}});
    retain(
        &world,
        "lab/infrastructure/nodes/a/common",
        &facts.to_string(),
    );
    let text = shown(&world, &["ansible", "--raw", "--config", file]);
    let inventory: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(inventory["os_debian"]["hosts"], json!(["a"]));
    let vars = &inventory["_meta"]["hostvars"]["a"];
    assert_eq!(vars["tael_facts"]["ok"], true);
    let sql = "SELECT facts->>'$.ok' AS a, facts->'$.ok' AS b FROM node";
    assert_eq!(shown(&world, &[sql, "--csv"]), "a,b\n1,true\n");
}

/// Retains `count` messages of nodes, five of each, and of ten nodes one that names another node.
fn flood(world: &World, count: u32) {
    let mut raw = Raw::connect(world.broker.port());
    let ts = jiff::Timestamp::now().as_second();
    let mut packets = Vec::new();
    for n in 0..count {
        let own = format!("n{:05}", n / 5);
        let name = if n % 50 >= 45 { "victim" } else { &own };
        let last = ["presence", "common", "static", "dynamic", "state"][n as usize % 5];
        let payload = match last {
            "presence" => {
                json!({"state": "online", "node": name, "host": "h", "ts": ts, "interval": 300})
            }
            kind => json!({"node": name, "kind": kind, "ts": ts, "facts": {"n": n}}),
        };
        let topic = format!("lab/infrastructure/nodes/{own}/{last}");
        let id = (n + 1 == count).then_some(1);
        let mut packet = raw::publish(
            topic.as_bytes(),
            payload.to_string().as_bytes(),
            id,
            &[],
            false,
        );
        packet[0] |= 1;
        packets.extend(packet);
        if packets.len() > 100_000 || id.is_some() {
            raw.send(&packets);
            packets.clear();
        }
    }
    assert_eq!(raw.receive().0, 0x40, "PUBACK");
}

#[test]
fn a_flood_of_retained_messages_is_bounded_and_said() {
    if !has_program("mosquitto", "a flood of retained messages") {
        return;
    }
    // The embedded broker retains fewer.
    let world = World::with(Setup {
        rules: Some("topic readwrite #\n"),
        ..Setup::default()
    });
    flood(&world, 100_000);
    let show = |arguments: &[&str]| {
        let mut command = world.tael(["facts", "show", "--root", "lab"]);
        command.args(arguments).env("TAEL_LOG", "warn");
        let begun = Instant::now();
        let found = ran(&mut command);
        let took = begun.elapsed();
        assert!(took < Duration::from_secs(60), "{took:?}");
        found
    };
    let cut = "the broker retains more than 20000 messages or 64 MiB there: the rest is left out";
    // As many presences as may come: the lies among them are ignored, and count too.
    let (code, stdout, stderr) = show(&[]);
    assert_eq!((code, stdout.lines().count()), (0, 18_001), "{stderr}");
    assert!(
        stderr.contains("ignored lab/infrastructure/nodes/n"),
        "{stderr}"
    );
    assert!(!stdout.contains("victim"), "another node speaks for it");
    let (code, stdout, stderr) = show(&["--json"]);
    let list: Value = serde_json::from_str(&stdout).expect("JSON");
    let length = list.as_array().expect("list").len();
    assert!(code == 0 && (1..20_000).contains(&length), "{length}");
    assert!(stderr.contains(cut), "{stderr}");
    // One is found among them.
    let (code, stdout, stderr) = show(&["n19000", "--json"]);
    assert_eq!((code, &*stderr), (0, ""));
    let list: Value = serde_json::from_str(&stdout).expect("JSON");
    assert_eq!(list[0]["facts"]["state"], json!({"n": 95_004}));
    let mut select = view(&world, &["SELECT count(*) AS c FROM fact", "--json"]);
    let (code, stdout, stderr) = ran(&mut select);
    let rows: Value = serde_json::from_str(&stdout).expect("JSON");
    let rows = rows[0]["c"].as_i64().expect("count");
    assert!(code == 0 && (1..=20_000).contains(&rows), "{rows}");
    assert!(stderr.contains(cut), "{stderr}");
}

#[test]
fn a_network_that_is_too_large_to_copy_is_refused() {
    if !has_program("mosquitto", "nodes with long names of facts") {
        return;
    }
    // The embedded broker retains fewer.
    let world = World::with(Setup {
        rules: Some("topic readwrite #\n"),
        ..Setup::default()
    });
    let values: serde_json::Map<String, Value> =
        (0..1000).map(|n| (format!("{n:03}"), json!(n))).collect();
    let facts = json!({"x".repeat(250): values});
    let mut raw = Raw::connect(world.broker.port());
    for n in 0..1500 {
        let name = format!("n{n}");
        let topic = format!("lab/infrastructure/nodes/{name}/static");
        let payload = json!({"node": name, "kind": "static", "ts": 1, "facts": facts}).to_string();
        let mut packet = raw::publish(topic.as_bytes(), payload.as_bytes(), Some(1), &[], false);
        packet[0] |= 1;
        raw.send(&packet);
        assert_eq!(raw.receive().0, 0x40, "PUBACK");
    }
    let mut select = view(&world, &["SELECT count(*) AS c FROM fact", "--raw"]);
    let (code, stdout, stderr) = ran(&mut select);
    assert_eq!((code, &*stdout), (65, ""), "{stderr}");
    assert!(
        stderr.contains("view: the copy of the network needs")
            || stderr.contains("view: copying the network took"),
        "{stderr}"
    );
}

#[test]
fn a_pause_of_the_network_is_not_the_end_of_what_the_broker_retains() {
    let world = World::new();
    let broker = Scripted::listen();
    let show = |arguments: &[&str]| {
        let mut command = world.tael(["facts"]);
        command.args(arguments).args(["--root", "lab"]);
        command.env("TAEL_PORT", broker.port().to_string());
        ran(command.env("TAEL_HOST", "127.0.0.1"))
    };
    let retained = |kind: &str, payload: Value| {
        let topic = format!("lab/infrastructure/nodes/seq1/{kind}");
        let payload = payload.to_string();
        let mut packet = raw::publish(topic.as_bytes(), payload.as_bytes(), None, &[], false);
        packet[0] |= 1;
        packet
    };
    let ts = jiff::Timestamp::now().as_second();
    let state = json!({"node": "seq1", "kind": "state", "ts": ts, "facts": {"ok": true}});
    let presence =
        json!({"state": "online", "node": "seq1", "host": "h", "ts": ts, "interval": 300});
    for (arguments, code, wanted) in [
        (&["show"][..], 0, "fresh"),
        (&["forget", "seq1"], 65, "it is fresh"),
    ] {
        let (found, stdout, stderr) = thread::scope(|scope| {
            let asking = scope.spawn(|| show(arguments));
            let mut raw = broker.accept();
            let mut has_paused = false;
            loop {
                let (kind, body) = raw.receive();
                match kind >> 4 {
                    // What a lost packet costs.
                    8 if !has_paused => {
                        has_paused = true;
                        raw.serve(kind, &body);
                        raw.send(&retained("state", state.clone()));
                        thread::sleep(Duration::from_secs(1));
                        raw.send(&retained("presence", presence.clone()));
                    }
                    // The marker comes back.
                    3 => raw.send(&packet(0x30, &body)),
                    14 => break,
                    _ => drop(raw.serve(kind, &body)),
                }
            }
            asking.join().expect("tael")
        });
        let said = format!("{stdout}{stderr}");
        assert_eq!(found, code, "{arguments:?}: {said}");
        assert!(said.contains(wanted), "{arguments:?}: {said}");
    }
}

/// Returns the command that publishes the number of rows of `table`, from what `broker` retains.
fn publishing_a_view(world: &World, broker: &Scripted, table: &str) -> Command {
    let view = format!("[[view]]\nname = 'all'\nsql = 'SELECT count(*) AS n FROM {table}'\n");
    let file = world.file("tael.toml", view);
    let mut command = world.tael(["facts", "view", "all", "--publish", "--timeout", "2s"]);
    command
        .args(["--root", "lab", "--config", &file])
        .env("TAEL_HOST", "127.0.0.1")
        .env("TAEL_PORT", broker.port().to_string());
    command
}

#[test]
fn what_did_not_come_in_time_is_not_published() {
    let world = World::new();
    let broker = Scripted::listen();
    let mut command = publishing_a_view(&world, &broker, "node");
    let (code, _, stderr) = thread::scope(|scope| {
        let viewing = scope.spawn(|| ran(&mut command));
        let mut raw = broker.accept();
        let ts = jiff::Timestamp::now().as_second();
        let (kind, body) = raw.receive();
        raw.serve(kind, &body);
        let payload = json!({"state": "online", "node": "n", "ts": ts}).to_string();
        let topic = b"lab/infrastructure/nodes/n/presence";
        let mut packet = raw::publish(topic, payload.as_bytes(), None, &[], false);
        packet[0] |= 1;
        // It never comes to an end.
        while !viewing.is_finished() && raw.try_send(&packet) {
            thread::sleep(Duration::from_millis(10));
        }
        viewing.join().expect("tael")
    });
    assert_eq!(code, 65, "{stderr}");
    assert!(stderr.contains("nothing is published"), "{stderr}");
}

#[test]
fn facts_that_are_asked_for_again_and_do_not_come_in_time_are_not_published() {
    let world = World::new();
    let broker = Scripted::listen();
    let mut command = publishing_a_view(&world, &broker, "fact");
    let (code, _, stderr) = thread::scope(|scope| {
        let viewing = scope.spawn(|| ran(&mut command));
        let ts = jiff::Timestamp::now().as_second();
        let kinds = json!({"state": "0123456789ab", "static": "0123456789ab"});
        let payload = json!({"state": "online", "node": "n", "ts": ts, "kinds": kinds}).to_string();
        let presence = raw::publish(
            b"lab/infrastructure/nodes/n/presence",
            payload.as_bytes(),
            None,
            &[],
            false,
        );
        let facts = json!({"node": "n", "kind": "state", "ts": ts, "facts": {"a": 1}}).to_string();
        let state = raw::publish(
            b"lab/infrastructure/nodes/n/state",
            facts.as_bytes(),
            None,
            &[],
            false,
        );
        let retained = |mut packet: Vec<u8>| {
            packet[0] |= 1;
            packet
        };
        // The first time all of it comes, and the end.
        let mut first = broker.accept();
        loop {
            let (kind, body) = first.receive();
            match kind >> 4 {
                8 => {
                    first.serve(kind, &body);
                    first.send(&retained(presence.clone()));
                }
                3 => first.send(&packet(0x30, &body)),
                14 => break,
                _ => drop(first.serve(kind, &body)),
            }
        }
        // The second time there is no end.
        let mut second = broker.accept();
        let (kind, body) = second.receive();
        second.serve(kind, &body);
        let state = retained(state);
        while !viewing.is_finished() && second.try_send(&state) {
            thread::sleep(Duration::from_millis(10));
        }
        viewing.join().expect("tael")
    });
    assert_eq!(code, 65, "{stderr}");
    assert!(stderr.contains("nothing is published"), "{stderr}");
}

/// Retains `payload` on many `topics`.
fn retain_all(world: &World, messages: impl Iterator<Item = (String, String)>) {
    let mut raw = Raw::connect(world.broker.port());
    for (topic, payload) in messages {
        let mut packet = raw::publish(topic.as_bytes(), payload.as_bytes(), Some(1), &[], false);
        packet[0] |= 1;
        raw.send(&packet);
        assert_eq!(raw.receive().0, 0x40, "PUBACK");
    }
}

#[test]
fn trees_of_facts_do_not_fill_the_memory_of_readers() {
    if !has_program("mosquitto", "many large facts") {
        return;
    }
    // The embedded broker retains fewer.
    let world = World::with(Setup {
        rules: Some("topic readwrite #\n"),
        ..Setup::default()
    });
    let kinds = ["common", "static", "dynamic", "state"];
    let topic = |n: usize| {
        let (node, kind) = (format!("n{}", n / 4), kinds[n % 4]);
        (
            format!("lab/infrastructure/nodes/{node}/{kind}"),
            node,
            kind,
        )
    };
    let told = |n: usize, facts: &str| {
        let (topic, node, kind) = topic(n);
        let start = format!("{{\"node\":\"{node}\",\"kind\":\"{kind}\",\"ts\":1");
        (topic, format!("{start},\"facts\":{facts}}}"))
    };
    // Within the bounds, and forty times as large as trees.
    let deep = format!("{}1{}", "{\"\":".repeat(7), "}".repeat(7));
    let deep: Vec<String> = (0..999).map(|n| format!("\"{n}\":{deep}")).collect();
    let deep = format!("{{{}}}", deep.join(","));
    // Beyond them.
    let empty = format!("{{\"a\":[{}]}}", vec!["[[],[]]"; 6000].join(","));
    let pipeline = |n: usize| {
        let last = format!(
            "{{\"last\":{{\"status\":\"failed\",\"x\":[{}]}}}}",
            vec!["[0]"; 10_000].join(",")
        );
        (format!("lab/infrastructure/pipelines/p{n}/last"), last)
    };
    let honest = (0..400).map(|n| told(n, &deep));
    let lies = (400..440).map(|n| told(n, &empty));
    retain_all(&world, honest.chain(lies).chain((0..45).map(pipeline)));
    let limited = |arguments: &[&str]| {
        let tael = world.tael([""; 0]);
        let mut command = Command::new("sh");
        for (name, value) in tael.get_envs() {
            value.map(|value| command.env(name, value));
        }
        // Of address space, kB: stacks and arenas of threads are part of it.
        command.args(["-c", "ulimit -v 1000000; exec \"$@\"", "sh"]);
        command.arg(tael.get_program()).args(arguments);
        command.args(["--root", "lab"]).env("TAEL_LOG", "warn");
        ran(&mut command)
    };
    let (code, stdout, stderr) = limited(&["facts", "show", "--json"]);
    let list: Value = serde_json::from_str(&stdout).expect("JSON");
    assert_eq!(
        (code, list.as_array().expect("list").len()),
        (0, 100),
        "{stderr}"
    );
    assert!(stderr.contains("and 39 more"), "{stderr}");
    let count = "SELECT count(*) FROM fact";
    let (code, stdout, stderr) = limited(&["facts", "view", count, "--raw"]);
    let is_whole = code == 0 && stdout == "399600\n";
    let is_refused = code == 65 && stderr.contains("view: ");
    assert!(is_whole || is_refused, "{code}: {stdout}{stderr}");
    let (code, _, stderr) = limited(&["status", "--json"]);
    assert_eq!(code, 0, "{stderr}");
    assert!(
        stderr.contains("more than 128 MiB: some are left out"),
        "{stderr}"
    );
}

#[test]
fn all_mistakes_in_the_views_of_a_file_are_told_where_views_matter() {
    let world = World::new();
    let file = world.file(
        "views.toml",
        "[[trigger]]\ntopic = 'a/b'\ncommand = 'true'\n\
         [[view]]\nname = 'one'\nsql = 'SELEC'\n\
         [[view]]\nname = 'two'\nsql = 'SELECT name FROM node'\nnode = 'x'\n\
         [[view]]\nname = 'two'\nsql = 'SELECT name FROM node WHERE name = ?'\nroot = 'lab'\n\
         [[view]]\nsql = 1\n[[view]]\nname = 'last'\nsql = 'SELECT 1'\n",
    );
    let want = [
        "line 6: 'sql' cannot run: near \"SELEC\": syntax error",
        "line 10: unknown key 'node'; did you mean 'nodes'?",
        "line 12: another [[view]] is called 'two'",
        "line 13: 'sql' cannot run: ? cannot get a value",
        "line 14: unknown key 'root': it stands in a [[view]]; options that all commands share go above",
        "line 16: 'sql' cannot be 1",
        "line 16: a view has 'name' and 'sql': 'name' is missing",
    ];
    let mut check = world.tael(["client", "--who", "checked", "--check", "--config", &file]);
    let mut used = view(&world, &["last", "--config", &file]);
    for command in [&mut check, &mut used] {
        let (code, stdout, stderr) = ran(command);
        assert_eq!((code, &*stdout), (78, ""), "{stderr}");
        let mut lines: Vec<&str> = stderr.lines().collect();
        lines.retain(|line| !line.contains("WARN"));
        assert_eq!(lines.len(), want.len(), "{stderr}");
        for part in want {
            assert!(
                lines.iter().any(|line| line.contains(part)),
                "{part}: {stderr}"
            );
        }
    }
    // A SELECT of the command line is none of the file's views.
    node(&world, "a", "h1", 5);
    let sql = "SELECT name FROM node";
    assert_eq!(shown(&world, &[sql, "--raw", "--config", &file]), "a\n");
    // A client asks no view.
    let mut command = world.tael(["client", "--config", &file]);
    command.args(["--who", "started", "--root", "lab"]);
    world.online("started", command).stop();
}

#[test]
fn a_view_of_a_root_without_nodes_says_so() {
    let world = World::new();
    node(&world, "a", "h1", 5);
    let sql = "SELECT name FROM node WHERE name = 'b'";
    for form in ["--csv", "--raw"] {
        let empty = |root: &str| {
            let mut command = world.tael(["facts", "view", "--root", root, sql, form]);
            ran(command.env("TAEL_LOG", "warn"))
        };
        let (code, _, stderr) = empty("lba");
        assert_eq!(code, 0, "{stderr}");
        assert!(
            stderr.contains("no node tells facts below lba: is --root right?"),
            "{stderr}"
        );
        // Here none is selected.
        assert_eq!(empty("lab").2, "");
    }
    let mut json = world.tael(["facts", "view", "--root", "lba", sql, "--json"]);
    assert_eq!(
        ran(json.env("TAEL_LOG", "warn")),
        (0, "[]\n".to_owned(), String::new())
    );
}
