//! Work that people submit: types, parameters, payloads, identity.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::common::nodes::accepted;
use crate::common::{Process, World, ended, json_of, ran, ran_with, refuses, succeeds, wait_until};

/// Types of the tests, and their commands.
const TYPES: &str = r#"
[[work]]
type = "upper"
command = "tr a-z A-Z"

[[work]]
type = "exit"
command = "sh -c 'exit $0'"
params = true

[[work]]
type = "note"
command = "sh -c 'echo $TAEL_UNIT >>$OUT/runs'"

[[work]]
type = "show"
command = "sh -c 'printf %s\\\\n \"$@\"; env | grep -E ^WORK_\\|^TAEL_ | sort >&2' show"
params = true
"#;

/// Writes the configuration file of the client `node`, and returns its path.
fn config(world: &World, text: &str) -> String {
    world.file("node.toml", text)
}

/// Starts the client `node` with the types of `text`.
fn node(world: &World, text: &str) -> Process {
    world.client("node", &["--config", &config(world, text)])
}

fn submit(world: &World, arguments: &[&str]) -> Command {
    let mut command = world.tael(["work", "submit"]);
    command.args(arguments);
    command
}

/// Submits work that is accepted, and returns its unit.
#[track_caller]
fn unit(world: &World, arguments: &[&str]) -> String {
    accepted(&mut submit(world, arguments))
}

fn report(world: &World, unit: &str) -> Value {
    json_of(&mut world.tael(["work", "status", "--json", unit]))
}

/// Waits until the ledger has the end of `unit`, and returns its state.
#[track_caller]
fn end(world: &World, unit: &str) -> String {
    let mut state = String::new();
    wait_until("the unit has ended", || {
        let report = report(world, unit);
        state = report["state"].as_str().expect("state").to_owned();
        !report["ended"].is_null()
    });
    state
}

/// Names of the files of payloads.
fn files(world: &World) -> Vec<PathBuf> {
    let entries = fs::read_dir(world.home("node").join("payloads"));
    let entries = entries.into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

#[test]
fn a_client_without_a_trigger_runs_what_is_submitted() {
    let world = World::new();
    let client = node(&world, TYPES);
    let ears = world.ears(&["tael/#", "lab/#"]);
    let (code, out, stderr) = ran(&mut submit(&world, &["upper", "-l", "hello", "-f"]));
    assert_eq!((code, out.as_str(), stderr.as_str()), (0, "HELLO\n", ""));
    let finished = ears.status("node", "finished");
    assert_eq!(finished.payload["work_type"], "upper");
    let submitter = finished.payload["submitter"].as_str().expect("submitter");
    assert!(submitter.contains('@'), "{submitter}");
    let started = ears.status("node", "started");
    assert_eq!(
        started.payload["reason"],
        format!("submitted by {submitter}")
    );
    let (_, out, _) = ran(&mut world.tael(["work", "list", "--json"]));
    let list: Value = serde_json::from_str(&out).expect("json");
    let [listed] = &list.as_array().expect("list")[..] else {
        panic!("{list}");
    };
    let expected = [
        ("kind", "work"),
        ("work_type", "upper"),
        ("submitter", submitter),
        ("state", "succeeded"),
        ("pipeline", "node"),
    ];
    for (key, value) in expected {
        assert_eq!(listed[key], value, "{key}");
    }
    let presence = ears.wait("presence", |m| m.topic.ends_with("/node/presence"));
    assert_eq!(presence.payload["work"][0]["type"], "upper");
    client.stop();
}

#[test]
fn the_code_of_the_command_is_that_of_submit() {
    let world = World::new();
    let _client = node(
        &world,
        &format!(
            "{TYPES}\n[[work]]\ntype = \"die\"\ncommand = \"sh -c 'kill -TERM $$'\"\n\
         [[work]]\ntype = \"none\"\ncommand = \"/nowhere/program\"\n"
        ),
    );
    for (arguments, expected) in [
        (&["exit", "7", "-f"][..], 7),
        (&["exit", "0", "-f"], 0),
        (&["die", "-f"], 128 + 15),
        (&["none", "-f"], 127),
    ] {
        let (code, _, stderr) = ran(&mut submit(&world, arguments));
        assert_eq!(code, expected, "{arguments:?}: {stderr}");
    }
    // Without a reader's knowledge, the unit is gone afterwards.
    let (code, ..) = ran(&mut submit(&world, &["exit", "3", "-f", "--rm"]));
    assert_eq!(code, 3);
    let (_, out, _) = ran(&mut world.tael(["work", "list", "--json"]));
    let list: Value = serde_json::from_str(&out).expect("json");
    assert_eq!(list.as_array().expect("list").len(), 4);
}

#[test]
fn parameters_are_words_and_variables_that_nothing_evaluates() {
    let world = World::new();
    let _client = node(&world, TYPES);
    let words = ["a b", "$(id)", "'", "*"];
    let mut arguments = vec!["show", "-f", "--param", "the key=x;y $HOME"];
    arguments.push("--");
    arguments.extend(words);
    let (code, out, stderr) = ran(&mut submit(&world, &arguments));
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(out.lines().collect::<Vec<_>>(), words);
    let has = |line: &str| stderr.lines().any(|known| known == line);
    assert!(has("WORK_THE_KEY=x;y $HOME"), "{stderr}");
    assert!(has("TAEL_WORK_TYPE=show") && has("TAEL_WHO=node") && has("TAEL_ATTEMPT=1"));
    assert!(stderr.contains("TAEL_UNIT=01") && !stderr.contains("TAEL_TOPIC"));
    let no = "extra params provided but not allowed";
    refuses(&mut submit(&world, &["upper", "a"]), 65, no);
    refuses(&mut submit(&world, &["upper", "--param", "a=b"]), 65, no);
    refuses(
        &mut submit(&world, &["show", "--param", "node=b"]),
        64,
        "'node'",
    );
    refuses(
        &mut submit(&world, &["show", "--param", "b"]),
        64,
        "is not KEY=VALUE",
    );
}

#[test]
fn without_a_client_or_a_type_the_error_says_what_to_do() {
    let world = World::new();
    refuses(
        &mut submit(&world, &["upper"]),
        69,
        "start one with 'tael client --config FILE'",
    );
    refuses(
        &mut submit(&world, &["upper", "--who", "node"]),
        69,
        "no client called 'node' runs",
    );
    let _client = node(&world, TYPES);
    refuses(
        &mut submit(&world, &["lower"]),
        65,
        "no client has type 'lower': node has upper, exit, note, show",
    );
    refuses(
        &mut submit(&world, &["lower", "--who", "node"]),
        65,
        "unknown work type lower; node has upper, exit, note, show",
    );
    refuses(
        &mut submit(&world, &["upper", "-p", "/no/file"]),
        78,
        "read payload /no/file",
    );
    let (code, _, stderr) = world.control(&["node", "raise"]);
    assert_eq!(code, 65);
    assert!(stderr.contains("there is no trigger to raise"), "{stderr}");
    refuses(
        &mut submit(&world, &["upper", "--id", "x"]),
        65,
        "is not a ULID",
    );
    let _other = world.client("other", &["--config", &config(&world, TYPES)]);
    refuses(
        &mut submit(&world, &["upper"]),
        64,
        "say which with --who: node, other",
    );
}

#[test]
fn the_same_work_under_one_id_runs_once() {
    let world = World::new();
    let _client = node(&world, TYPES);
    let id = "01JBV7Y3ZK8Q5W2N4T6R9M1XCD";
    let again = || unit(&world, &["note", "-l", "x", "--id", id]);
    assert_eq!(again(), id);
    assert_eq!(again(), id);
    assert_eq!(end(&world, id), "succeeded");
    assert_eq!(again(), id, "also after its end");
    let other = "belongs to other work";
    refuses(
        &mut submit(&world, &["note", "-l", "y", "--id", id]),
        65,
        other,
    );
    refuses(
        &mut submit(&world, &["upper", "-l", "x", "--id", id]),
        65,
        other,
    );
    succeeds(&mut world.tael(["work", "release", id]));
    assert_eq!(again(), id, "and when it is released");
    refuses(
        &mut submit(&world, &["note", "-l", "y", "--id", id]),
        65,
        other,
    );
    let last = unit(&world, &["note"]);
    end(&world, &last);
    assert_eq!(world.lines("runs"), [id, &last]);
}

#[test]
fn an_id_of_a_run_of_a_trigger_is_taken() {
    let world = World::new();
    let text = format!("{TYPES}\n[[trigger]]\ntopic = \"lab/seq/status\"\ncommand = \"true\"\n");
    let _client = node(&world, &text);
    world.message("lab/seq/status", &[("status", "finished")]);
    let mut id = String::new();
    wait_until("the trigger has run", || {
        let (_, out, _) = ran(&mut world.tael(["work", "list", "--json"]));
        let list: Value = serde_json::from_str(&out).expect("json");
        id = list[0]["unit"].as_str().unwrap_or_default().to_owned();
        !id.is_empty()
    });
    refuses(
        &mut submit(&world, &["note", "--id", &id]),
        65,
        "belongs to other work",
    );
    // The ledger goes on.
    let unit = unit(&world, &["note"]);
    assert_eq!(end(&world, &unit), "succeeded");
}

#[test]
fn a_large_payload_is_a_file_until_its_last_unit_is_released() {
    let world = World::new();
    let text = r#"
        [[work]]
        type = "count"
        command = "sh -c 'wc -c; [ $TAEL_ATTEMPT -gt 1 ]'"
        retries = 1
        retry-delay = "0s"
        max-stdin = 3000000
    "#;
    let _client = node(&world, text);
    let payload = vec![b'x'; 3_000_000];
    let (code, out, stderr) = ran_with(&mut submit(&world, &["count", "-p", "-"]), &payload);
    assert_eq!(code, 0, "{stderr}");
    let first = out.trim().to_owned();
    assert_eq!(end(&world, &first), "failed");
    let (_, out, _) = ran(&mut world.tael(["work", "status", "--payload", &first]));
    assert!(out.len() == payload.len() && files(&world).len() == 1);
    let mut second = String::new();
    wait_until("it is tried again", || {
        let (_, out, _) = ran(&mut world.tael(["work", "list", "--json"]));
        let list: Value = serde_json::from_str(&out).expect("json");
        second = list[1]["unit"].as_str().unwrap_or_default().to_owned();
        !second.is_empty()
    });
    assert_eq!(end(&world, &second), "succeeded");
    for unit in [&first, &second] {
        let (_, out, _) = ran(&mut world.tael(["work", "results", unit]));
        assert_eq!(out.trim(), "3000000");
    }
    assert_eq!(report(&world, &second)["payload_bytes"], 3_000_000);
    let release = |unit: &str| {
        succeeds(&mut world.tael(["work", "release", unit]));
    };
    release(&first);
    assert_eq!(files(&world).len(), 1, "the retry has it too");
    release(&second);
    assert_eq!(files(&world).len(), 0);
    // One byte more is refused, and leaves nothing.
    let (code, _, stderr) = ran_with(
        &mut submit(&world, &["count", "-p", "-"]),
        &vec![b'x'; 3_000_001],
    );
    assert_eq!(code, 65);
    assert!(stderr.contains("larger than 3000000 bytes"), "{stderr}");
    assert_eq!(files(&world).len(), 0);
}

#[test]
fn a_payload_whose_sender_is_killed_is_not_run() {
    let world = World::new();
    let client = node(&world, TYPES);
    for size in [1000, 100_000] {
        let mut command = submit(&world, &["note", "-p", "-"]);
        let mut sender = command.stdin(Stdio::piped()).spawn().expect("spawn");
        let mut stdin = sender.stdin.take().expect("stdin");
        stdin.write_all(&vec![b'x'; size]).expect("write");
        if size > 16 * 1024 {
            wait_until("the payload arrives", || files(&world).len() == 1);
        }
        sender.kill().expect("kill");
        ended(sender);
    }
    let last = unit(&world, &["note"]);
    end(&world, &last);
    assert_eq!(world.lines("runs"), [last]);
    wait_until("the file is gone", || files(&world).is_empty());
    client.stop();
}

#[test]
fn a_payload_that_cannot_be_read_is_said_at_once_and_not_run() {
    let world = World::new();
    let client = node(&world, TYPES);
    let begun = Instant::now();
    let (code, _, stderr) = ran(&mut submit(&world, &["note", "-p", "/"]));
    assert_eq!(code, 65, "{stderr}");
    assert!(stderr.contains("read payload"), "{stderr}");
    // The client would wait a minute for the end of the payload.
    assert!(begun.elapsed() < Duration::from_secs(30));
    let last = unit(&world, &["note"]);
    end(&world, &last);
    assert_eq!(world.lines("runs"), [last]);
    client.stop();
}

#[test]
fn a_client_that_is_killed_around_the_commit_runs_the_work_once() {
    for (place, size) in [
        ("payload.after", 100_000),
        ("commit.before", 100_000),
        ("commit.after", 100_000),
        ("commit.after", 10),
        ("spawn.after", 10),
    ] {
        let world = World::new();
        let path = config(&world, TYPES);
        let mut command = world.command("tael-client");
        command.args(["--who", "node", "--root", "lab", "--config", &path]);
        command.env("TAEL_FAILPOINT", place);
        let mut client = world.online("node", command);
        let id = "01JBV7Y3ZK8Q5W2N4T6R9M1XCD";
        let again = || {
            ran_with(
                &mut submit(&world, &["note", "-p", "-", "--id", id]),
                &vec![b'x'; size],
            )
        };
        let (code, ..) = again();
        assert!(code == 69 || code == 75, "{place}: {code}");
        assert_eq!(client.wait(), 128 + 9, "{place}");
        let _client = node(&world, TYPES);
        if place == "payload.after" {
            assert_eq!(files(&world).len(), 0, "{place}");
        }
        let (code, out, stderr) = again();
        assert_eq!((code, out.trim()), (0, id), "{place}: {stderr}");
        assert_eq!(end(&world, id), "succeeded", "{place}");
        let last = unit(&world, &["note"]);
        end(&world, &last);
        assert_eq!(world.lines("runs"), [id, &last], "{place}");
        assert_eq!(
            files(&world).len(),
            usize::from(size > 16 * 1024),
            "{place}"
        );
    }
}

#[test]
fn work_whose_acceptance_is_not_known_runs_once_under_the_id_of_the_error() {
    for place in ["commit.before", "commit.after"] {
        let world = World::new();
        let path = config(&world, TYPES);
        let mut command = world.command("tael-client");
        command.args(["--who", "node", "--root", "lab", "--config", &path]);
        command.env("TAEL_FAILPOINT", place);
        let mut client = world.online("node", command);
        let (code, _, stderr) = ran(&mut submit(&world, &["note"]));
        assert_eq!(client.wait(), 128 + 9, "{place}");
        assert_eq!(code, 69, "{place}: {stderr}");
        let (_, id) = stderr.trim().rsplit_once("--id ").expect("an id");
        let _client = node(&world, TYPES);
        assert_eq!(unit(&world, &["note", "--id", id]), id, "{place}");
        assert_eq!(end(&world, id), "succeeded", "{place}");
        let last = unit(&world, &["note"]);
        end(&world, &last);
        assert_eq!(world.lines("runs"), [id, &last], "{place}");
    }
}

#[test]
fn a_client_that_does_not_answer_is_named_and_holds_up_no_other() {
    let world = World::new();
    let stopped = node(&world, TYPES);
    stopped.signal(Signal::SIGSTOP);
    let begun = Instant::now();
    for arguments in [&["upper"][..], &["upper", "--who", "node"]] {
        let (code, _, stderr) = ran(&mut submit(&world, arguments));
        assert_eq!(code, 69, "{stderr}");
        let cause = "the client 'node' does not answer";
        assert!(stderr.contains(cause), "{stderr}");
    }
    let other = world.path("other.toml");
    fs::write(&other, "[[work]]\ntype = \"pass\"\ncommand = \"cat\"\n").expect("config");
    let client = world.client("other", &["--config", other.to_str().expect("path")]);
    let (code, out, stderr) = ran(&mut submit(&world, &["pass", "-l", "x", "-f"]));
    assert_eq!((code, out.as_str()), (0, "x\n"), "{stderr}");
    // An answer may take a minute.
    assert!(begun.elapsed() < Duration::from_secs(50));
    stopped.signal(Signal::SIGCONT);
    stopped.stop();
    client.stop();
}

#[test]
fn a_full_queue_refuses_and_takes_again() {
    let world = World::new();
    let text = r#"
        [[work]]
        type = "wait"
        command = "sh -c 'until [ -e $OUT/go ]; do sleep 0.02; done'"
        queue = 2
    "#;
    let _client = node(&world, text);
    let units: Vec<String> = (0..3).map(|_| unit(&world, &["wait"])).collect();
    let full = "try again: 2 units of type 'wait' wait";
    refuses(&mut submit(&world, &["wait"]), 75, full);
    succeeds(&mut world.tael(["work", "cancel", &units[2]]));
    let mut taken = String::new();
    wait_until("there is room again", || {
        let (code, out, _) = ran(&mut submit(&world, &["wait"]));
        taken = out.trim().to_owned();
        code == 0
    });
    refuses(&mut submit(&world, &["wait"]), 75, full);
    fs::write(world.path("go"), "").expect("go");
    for unit in [&units[0], &units[1], &taken] {
        assert_eq!(end(&world, unit), "succeeded");
    }
}

/// Submits to the client `node` over the broker.
fn direct(world: &World, arguments: &[&str]) -> Command {
    let mut command = submit(world, &["--node", "node", "--root", "lab", "--direct"]);
    command.args(arguments).env("TAEL_LOG", "warn");
    command
}

/// How work may be submitted: on the control socket, or over the broker.
const WAYS: [fn(&World, &[&str]) -> Command; 2] = [submit, direct];

#[test]
fn a_type_runs_as_many_units_as_it_has_jobs_and_says_when_its_queue_is_full() {
    for way in WAYS {
        let world = World::new();
        let text = r#"
            [[work]]
            type = "wait"
            command = "sh -c 'echo $TAEL_UNIT >>$OUT/runs; until [ -e $OUT/go ]; do sleep 0.02; done'"
            jobs = 2
            queue = 1
        "#;
        let _client = node(&world, text);
        let started = || {
            let out = succeeds(&mut way(&world, &["wait"]));
            out.trim().to_owned()
        };
        let [first, second, third] = [started(), started(), started()];
        wait_until("two run", || world.lines("runs").len() == 2);
        let full = "1 unit of type 'wait' waits";
        refuses(&mut way(&world, &["wait"]), 75, full);
        assert_eq!(report(&world, &third)["state"], "pending");
        fs::write(world.path("go"), "").expect("go");
        for unit in [&first, &second, &third] {
            assert_eq!(end(&world, unit), "succeeded");
        }
        assert_eq!(world.lines("runs").len(), 3, "the refused one does not run");
    }
}

#[test]
fn a_payload_a_run_and_its_output_have_the_limits_of_their_type() {
    let text = r#"
        [[work]]
        type = "small"
        command = "sh -c 'cat; echo run >>$OUT/runs'"
        max-stdin = 5

        [[work]]
        type = "slow"
        command = "sleep 600"
        timeout = "100ms"

        [[work]]
        type = "chatty"
        command = "sh -c 'head -c 30000 /dev/zero | tr \\\\0 a; head -c 30000 /dev/zero | tr \\\\0 b'"
        max-output = 20000
    "#;
    for (way, large) in WAYS.into_iter().zip([
        "the payload is larger than 5 bytes",
        "the payload has 6 bytes, and the node takes 5",
    ]) {
        let world = World::new();
        let _client = node(&world, text);
        refuses(&mut way(&world, &["small", "-l", "12345"]), 65, large);
        let (code, out, stderr) = ran(&mut way(&world, &["small", "-l", "1234", "-f"]));
        assert_eq!((code, out.as_str()), (0, "1234\n"), "{stderr}");
        assert_eq!(world.lines("runs").len(), 1);
        let (code, _, stderr) = ran(&mut way(&world, &["slow", "-f"]));
        assert_eq!(code, 128 + 15, "{stderr}");
        let out = succeeds(&mut way(&world, &["chatty", "-f"]));
        let count = |letter| out.bytes().filter(|byte| *byte == letter).count();
        // A reader that is fast enough gets more than what is kept.
        assert!(count(b'a') >= 10_000 && count(b'b') >= 10_000);
        let (_, list, _) = ran(&mut world.tael(["work", "list", "--json"]));
        let list: Value = serde_json::from_str(&list).expect("json");
        let unit = |place: usize| list[place]["unit"].as_str().expect("unit");
        let slow = report(&world, unit(1));
        assert_eq!(slow["state"], "failed");
        assert_eq!(slow["note"], "timed out", "{slow}");
        let (_, out, stderr) = ran(&mut world.tael(["work", "results", unit(2)]));
        assert_eq!(out, ["a".repeat(10_000), "b".repeat(10_000)].concat());
        assert!(stderr.contains("40000 bytes were dropped here"), "{stderr}");
    }
}

#[test]
fn a_type_and_a_trigger_of_one_name_are_two() {
    let world = World::new();
    let text = r#"
        [[trigger]]
        name = "both"
        topic = "lab/seq/status"
        command = "echo trigger >>$OUT/runs; sleep 600"

        [[work]]
        type = "both"
        command = "sh -c 'echo work >>$OUT/runs'"
    "#;
    let _client = node(&world, text);
    world.message("lab/seq/status", &[("status", "finished")]);
    wait_until("the trigger runs", || world.lines("runs") == ["trigger"]);
    let unit = unit(&world, &["both"]);
    assert_eq!(end(&world, &unit), "succeeded", "it has a job of its own");
    succeeds(&mut world.tael(["work", "cancel"]));
}

#[test]
fn a_reload_adds_and_removes_types() {
    let world = World::new();
    let client = node(&world, TYPES);
    let more = format!("{TYPES}\n[[work]]\ntype = \"more\"\ncommand = \"echo more\"\n");
    config(&world, &more);
    client.signal(nix::sys::signal::Signal::SIGHUP);
    wait_until("the type is there", || {
        let (code, out, _) = ran(&mut submit(&world, &["more", "-f"]));
        (code, out.as_str()) == (0, "more\n")
    });
    config(&world, TYPES);
    client.signal(nix::sys::signal::Signal::SIGHUP);
    wait_until("the type is gone", || {
        ran(&mut submit(&world, &["more"])).0 == 65
    });
}

#[test]
fn the_page_about_work_does_what_it_says() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/work.md");
    let page = fs::read_to_string(page).expect("page");
    let block = |kind: &str, name: &str| {
        let rest = page.split_once(&format!("```{kind} {name}\n"));
        let rest = rest.expect(name).1;
        rest.split("```").next().expect(name).to_owned()
    };
    let world = World::new();
    let path = config(&world, &block("toml", "work"));
    let _client = world.client("node7", &["--config", &path]);
    let commands = page.split("```sh work\n").skip(1);
    let commands = commands.filter_map(|rest| rest.split("```").next());
    for line in commands.flat_map(str::lines) {
        let words = shell_words::split(line).expect(line);
        let (code, out, stderr) = ran(&mut world.tael(&words[1..]));
        assert_eq!(code, 0, "{line}: {stderr}");
        if line.contains("align") {
            assert!(out.starts_with("aligning S12 for mice"), "{out}");
        }
    }
    let path = config(&world, &block("toml", "receptor"));
    let mut check = world.tael([
        "client", "--check", "--config", &path, "-t", "lab/a", "-c", "true",
    ]);
    succeeds(&mut check);
    // The reports of users of Receptor are tests.
    let table = page
        .split_once("What users of Receptor report")
        .expect("table")
        .1;
    let sources = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it");
    let mut tests = String::new();
    for entry in fs::read_dir(sources).expect("tests").flatten() {
        if entry.path().is_file() {
            tests += &fs::read_to_string(entry.path()).expect("test");
        }
    }
    let names = table
        .split('`')
        .filter(|name| name.len() > 20 && !name.contains([' ', '\n']));
    let names: Vec<&str> = names.collect();
    assert!(names.len() > 10);
    for name in names {
        assert!(
            tests.contains(&format!("fn {name}()")),
            "no test is called {name}"
        );
    }
}

#[test]
fn the_example_of_work_does_what_it_says() {
    let package = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let example = fs::read_to_string(package.join("examples/work.toml")).expect("example");
    let keys = package.join("tests/fixtures/keys");
    let world = World::new();
    let here = format!("mqtt://127.0.0.1:{}", world.broker.port());
    let public = keys.join("ed25519.pub.pem").display().to_string();
    // A private key is read only if no other user can.
    let private = world.path("ann.pem");
    fs::copy(keys.join("ed25519.pem"), &private).expect("key");
    fs::set_permissions(&private, fs::Permissions::from_mode(0o600)).expect("mode");
    let private = private.to_str().expect("path");
    let mut text = example.clone();
    for (shown, own) in [
        ("mqtt://mqtt.lab.example", here.as_str()),
        ("/etc/tael/ann.pub.pem", &public),
        ("/etc/tael/node7.pem", private),
    ] {
        assert!(text.contains(shown), "{shown}");
        text = text.replace(shown, own);
    }
    let path = config(&world, &text);
    let mut check = world.tael(["client", "--check", "--config", &path]);
    succeeds(&mut check);
    // What is commented out is a key too.
    let key = |line: &&str| {
        let name = line
            .strip_prefix('#')
            .and_then(|line| line.split(" = ").next());
        name.is_some_and(|name| !name.contains(' ')) || line.starts_with("#[")
    };
    let all: Vec<&str> = text
        .lines()
        .map(|line| if key(&line) { &line[1..] } else { line })
        .filter(|line| !line.starts_with("env-file") && !line.starts_with("cwd"))
        .collect();
    let all = config(&world, &all.join("\n"));
    let (code, out, stderr) = ran(&mut world.tael(["client", "--check", "--config", &all]));
    assert_eq!(code, 0, "{out}{stderr}");
    let path = config(&world, &text);
    let _client = world.client("node7", &["--config", &path]);
    let lines = example.lines().filter_map(|line| line.strip_prefix("#   "));
    let lines = lines.filter(|line| line.starts_with("tael "));
    let mut outputs = Vec::new();
    for line in lines {
        let line = line.replace("ann.pem", private);
        let line = line.split(" #").next().expect("a command");
        let words = shell_words::split(line).expect("words");
        let (code, out, stderr) = ran(world.tael(&words[1..]).env("TAEL_LOG", "warn"));
        assert_eq!(code, 0, "{line}: {stderr}");
        outputs.push(out);
    }
    assert_eq!(outputs, ["HELLO\n", "HELLO\n", "aligning S12 for mice\n"]);
    let unsigned = [
        "--node", "node7", "--root", "lab", "--direct", "align", "S12",
    ];
    refuses(
        submit(&world, &unsigned).env("TAEL_LOG", "warn"),
        77,
        "a signature is required",
    );
}

#[test]
fn check_finds_the_mistakes_of_work_types() {
    let world = World::new();
    let text = r#"
        [[work]]
        type = "a b"
        command = "true"

        [[work]]
        type = "x"
        comand = "true"

        [[work]]
        type = "x"
        command = "true 'open"
        jobs = 0
        signed = "sometimes"

        [[work]]
        type = "y"
        command = "no-such-program-here"
    "#;
    let path = config(&world, text);
    let mut check = world.tael(["client", "--who", "node", "--check", "--config", &path]);
    let (code, out, stderr) = ran(&mut check);
    assert_eq!(code, 78, "{stderr}");
    let all = out + &stderr;
    for expected in [
        "line 3: work type 1: its 'type' has 1 to 64",
        "line 8: work type 2: unknown key 'comand'; did you mean 'command'?",
        "work type 3: command 'true 'open' has an open quote",
        "work type 3: 0 jobs are out of range",
        "'sometimes' is not a choice: required, accepted or never",
        "two work types are called 'x'",
        "line 18: work type 4: ",
    ] {
        assert!(all.contains(expected), "{expected} in\n{all}");
    }
    let path = config(&world, TYPES);
    let mut dry_run = world.tael(["client", "--who", "node", "--dry-run", "--config", &path]);
    let (code, out, _) = ran(dry_run.args(["-t", "lab/a", "-m", "{}"]));
    assert_eq!(code, 65);
    assert!(
        out.contains("work type 'upper': no message starts it"),
        "{out}"
    );
    let (code, _, stderr) =
        ran(&mut world.tael(["client", "--who", "node", "--check", "--config", &path]));
    assert_eq!(code, 0, "{stderr}");
}
