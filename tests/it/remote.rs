//! Work on another node: over the broker, without a client on this host.

use std::fs;
use std::process::{Command, Stdio};

use bytes::Bytes;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tael::model::remote::wire::{self, Answer, Done, Dropped, Manifest, Request, Target};
use tael::model::signature::{self, Claims, Signer};

use crate::common::broker::is_mosquitto;
use crate::common::nodes::{
    NODE, fixture_key, new_id, node_command, node_with, noise, private_key, random, sha256_of,
};
use crate::common::raw::{Raw, publish_with, request_properties};
use crate::common::{
    Process, Setup, World, ended, has_program, json_of, ran, ran_with, refuses, succeeds,
    wait_until,
};

/// Work types of the node.
const TYPES: &str = r#"
[[work]]
type = "cat"
command = "sh -c 'echo run >>$OUT/runs; cat'"
max-output = 0

[[work]]
type = "both"
command = "sh -c 'echo out; echo err >&2; exit 3'"

[[work]]
type = "wait"
command = "sh -c 'echo run >>$OUT/runs; echo begun; until [ -e $OUT/go ]; do sleep 0.02; done; echo done'"

[[work]]
type = "silent"
command = "sh -c 'echo run >>$OUT/runs; until [ -e $OUT/go ]; do sleep 0.02; done'"

[[work]]
type = "large"
command = "sh -c 'echo run >>$OUT/runs; head -c 2000000 /dev/zero; until [ -e $OUT/go ]; do sleep 0.02; done'"
max-output = 0

[[work]]
type = "words"
command = "printf '%s.'"
params = true
"#;

fn node(world: &World) -> Process {
    node_with(world, TYPES)
}

/// Returns `tael work VERB` for the node.
fn work(world: &World, verb: &str, words: &[&str]) -> Command {
    let mut command = world.tael(["work", verb, "--node", "node7", "--root", "lab"]);
    if verb == "submit" {
        command.arg("--direct");
    }
    command.args(words).env("TAEL_LOG", "warn");
    command
}

fn submit(world: &World, words: &[&str]) -> Command {
    work(world, "submit", words)
}

fn state(world: &World, unit: &str) -> Value {
    json_of(&mut work(world, "status", &[unit, "--json"]))
}

#[test]
fn work_on_another_node_runs_and_its_output_and_code_come_back() {
    let world = World::new();
    let node = node(&world);
    let (code, out, stderr) = ran(&mut submit(&world, &["-f", "both"]));
    assert_eq!((code, &*out, &*stderr), (3, "out\n", "err\n"));
    let (code, out, _) = ran(&mut submit(&world, &["-f", "cat", "-l", "hello"]));
    assert_eq!((code, &*out), (0, "hello\n"));
    let (code, out, _) = ran(&mut submit(&world, &["-f", "words", "a b", "$(id)"]));
    assert_eq!((code, &*out), (0, "a b.$(id)."));
    node.stop();
}

#[test]
fn a_payload_in_pieces_and_its_output_come_byte_for_byte() {
    let world = World::new();
    let node = node(&world);
    let bytes = noise(5_000_000);
    let path = world.file("payload", &bytes);
    let output = submit(&world, &["-f", "cat", "-p", &path])
        .output()
        .expect("submit");
    assert!(output.status.success(), "{output:?}");
    assert!(output.stdout == bytes, "{} bytes", output.stdout.len());
    // Standard input can be read once only.
    let mut command = submit(&world, &["-f", "cat", "-p", "-"]);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("spawn");
    let mut stdin = child.stdin.take().expect("stdin");
    let piece = bytes[..300_000].to_vec();
    std::thread::spawn(move || std::io::Write::write_all(&mut stdin, &piece));
    let output = child.wait_with_output().expect("wait");
    assert!(
        output.stdout == bytes[..300_000],
        "{} bytes",
        output.stdout.len()
    );
    assert_eq!(world.lines("runs").len(), 2);
    node.stop();
}

#[test]
fn the_same_id_is_the_same_unit_and_other_work_under_it_is_refused() {
    let world = World::new();
    let node = node(&world);
    let unit = new_id();
    for _ in 0..2 {
        let (code, out, stderr) = ran(&mut submit(&world, &["cat", "-l", "a", "--id", &unit]));
        assert_eq!((code, out.trim()), (0, &*unit), "{stderr}");
    }
    refuses(
        &mut submit(&world, &["cat", "-l", "b", "--id", &unit]),
        65,
        "other work has this id",
    );
    refuses(
        &mut submit(&world, &["both", "--id", &unit]),
        65,
        "other work has this id",
    );
    let (code, out, _) = ran(&mut work(&world, "results", &["-f", &unit]));
    assert_eq!((code, &*out), (0, "a\n"));
    assert_eq!(world.lines("runs").len(), 1);
    // The id of a unit that was released stays its own.
    succeeds(&mut work(&world, "release", &[&unit]));
    wait_until("it is released", || {
        ran(&mut work(&world, "status", &[&unit])).0 == 65
    });
    refuses(
        &mut submit(&world, &["cat", "-l", "b", "--id", &unit]),
        65,
        "other work has this id",
    );
    ran(&mut submit(&world, &["cat", "-l", "a", "--id", &unit]));
    // What is submitted now runs after all of that.
    let (code, ..) = ran(&mut submit(&world, &["-f", "cat", "-l", "sentinel"]));
    assert_eq!(code, 0);
    assert_eq!(world.lines("runs").len(), 2);
    node.stop();
}

#[test]
fn a_large_payload_that_comes_again_leaves_no_file() {
    let world = World::new();
    let node = node(&world);
    let unit = new_id();
    let path = world.file("payload", noise(200_000));
    let words = ["-f", "cat", "-p", &path, "--id", &unit];
    for _ in 0..2 {
        succeeds(&mut submit(&world, &words));
        let kept = fs::read_dir(world.home("node7").join("payloads")).expect("folder");
        assert_eq!(kept.count(), 1);
    }
    assert_eq!(world.lines("runs").len(), 1);
    node.stop();
}

#[test]
fn a_unit_is_looked_at_canceled_and_released_from_anywhere() {
    let world = World::new();
    let node = node(&world);
    let out = succeeds(&mut submit(&world, &["wait", "--json"]));
    let submitted: Value = serde_json::from_str(&out).expect("json");
    assert_eq!(submitted["node"], "node7");
    let unit = submitted["unit"].as_str().expect("unit");
    wait_until("it runs", || state(&world, unit)["state"] == "running");
    assert_eq!(state(&world, unit)["type"], "wait");
    let early = &mut work(&world, "results", &[unit]);
    refuses(early, 125, "has not ended: it is running");
    let followed = work(&world, "results", &["-f", unit])
        .stdout(Stdio::piped())
        .spawn();
    let followed = followed.expect("spawn");
    succeeds(&mut work(&world, "cancel", &[unit]));
    // The output of a canceled unit ends.
    let (code, out, stderr) = ended(followed);
    assert_eq!((code, &*out), (128 + 15, "begun\n"), "{stderr}");
    assert_eq!(state(&world, unit)["state"], "canceled");
    refuses(&mut work(&world, "cancel", &[unit]), 65, "it has ended");
    refuses(
        &mut work(&world, "cancel", &[&new_id()]),
        65,
        "knows no such unit",
    );
    let (code, _, stderr) = ran(&mut work(&world, "release", &[unit]));
    assert_eq!((code, &*stderr), (0, ""));
    wait_until("it is released", || {
        ran(&mut work(&world, "status", &[unit])).0 == 65
    });
    // What is gone needs no release.
    let (code, _, stderr) = ran(&mut work(&world, "release", &[unit]));
    assert!(
        code == 0 && stderr.contains("knows no such unit"),
        "{stderr}"
    );
    node.stop();
}

#[test]
fn a_unit_is_released_with_its_run() {
    let world = World::new();
    let node = node(&world);
    let (_, out, _) = ran(&mut submit(&world, &["wait"]));
    let unit = out.trim();
    wait_until("it runs", || world.lines("runs").len() == 1);
    succeeds(&mut work(&world, "release", &[unit]));
    wait_until("it is released", || {
        ran(&mut work(&world, "status", &[unit])).0 == 65
    });
    let (code, ..) = ran(&mut submit(&world, &["-f", "--rm", "both"]));
    assert_eq!(code, 3);
    wait_until("both are released", || {
        let (_, out, _) = ran(&mut world.tael(["work", "list", "--json"]));
        out.trim() == "[]"
    });
    node.stop();
}

#[test]
fn what_a_node_does_not_take_is_refused_in_the_call() {
    let world = World::new();
    let types =
        format!("{TYPES}\n[[work]]\ntype = 'small'\ncommand = 'cat'\nmax-stdin = 3\nqueue = 1\n");
    let node = node_with(&world, &types);
    refuses(
        &mut submit(&world, &["nothing"]),
        65,
        "unknown work type nothing",
    );
    refuses(
        &mut submit(&world, &["cat", "word"]),
        65,
        "extra params provided but not allowed",
    );
    refuses(
        &mut submit(&world, &["cat", "--param", "a=b"]),
        65,
        "extra params",
    );
    refuses(
        &mut submit(&world, &["small", "-l", "abc"]),
        65,
        "the payload has 4 bytes",
    );
    let key = private_key(&world, "ed25519");
    refuses(
        &mut submit(&world, &["cat", "--signing-key", &key]),
        65,
        "did not expect a signature",
    );
    refuses(
        &mut work(&world, "status", &[&new_id()]),
        65,
        "unknown work unit ID",
    );
    refuses(
        &mut work(&world, "results", &[&new_id()]),
        125,
        "unknown work unit ID",
    );
    refuses(&mut work(&world, "status", &["M1XCD"]), 64, "no whole id");
    let mut other = world.tael([
        "work", "submit", "--node", "node8", "--root", "lab", "--direct",
    ]);
    other
        .args(["cat", "--timeout", "500ms"])
        .env("TAEL_LOG", "warn");
    let (code, _, stderr) = ran(&mut other);
    // Only mosquitto says that nobody listens.
    let wanted = if is_mosquitto() { 69 } else { 75 };
    assert_eq!(code, wanted, "{stderr}");
    let mut forger = Forger::new(&world, "ann");
    let hidden = Request::Submit(Manifest {
        params: vec!["a\0b".into()],
        ..manifest("words", b"")
    });
    let refused = forger.refused(&wire::write(&hidden, b""));
    assert!(refused.contains("a NUL character"), "{refused}");
    let (code, ..) = ran(&mut submit(&world, &["-f", "cat", "-l", "sentinel"]));
    assert_eq!(code, 0);
    assert_eq!(world.lines("runs").len(), 1);
    node.stop();
}

#[test]
fn a_cancel_that_overtakes_its_submission_wins() {
    let world = World::new();
    let node = node(&world);
    let unit = new_id();
    refuses(
        &mut work(&world, "cancel", &[&unit]),
        65,
        "knows no such unit",
    );
    let mut late = submit(&world, &["cat", "-l", "a", "--id", &unit]);
    refuses(&mut late, 65, "it was canceled");
    // In the middle of its payload.
    let mut forger = Forger::new(&world, "ann");
    let payload = noise(200_000);
    let manifest = manifest("cat", &payload);
    let unit = manifest.unit.clone();
    let want = forger.ask(&wire::write(&Request::Submit(manifest), b""));
    assert!(matches!(want, Answer::Want { offset: 0, .. }), "{want:?}");
    refuses(
        &mut work(&world, "cancel", &[&unit]),
        65,
        "knows no such unit",
    );
    let refused = forger.refused(&wire::write(
        &Request::Payload { unit, offset: 0 },
        &payload[..9],
    ));
    assert!(refused.contains("canceled"), "{refused}");
    let (code, ..) = ran(&mut submit(&world, &["-f", "cat", "-l", "sentinel"]));
    assert_eq!(code, 0);
    assert_eq!(world.lines("runs").len(), 1);
    node.stop();
}

#[test]
fn a_cancel_or_a_release_right_behind_its_submission_ends_the_unit() {
    let world = World::new();
    let node = node(&world);
    for kind in ["cancel", "release"] {
        let mut forger = Forger::new(&world, "ann");
        let manifest = manifest("silent", b"");
        let unit = manifest.unit.clone();
        let target = Target {
            unit: unit.clone(),
            signature: None,
        };
        let wish = match kind {
            "cancel" => Request::Cancel(target),
            _ => Request::Release(target),
        };
        // The node reads both before the first one is on disk.
        let packets = [Request::Submit(manifest), wish].map(|request| {
            let request = wire::write(&request, b"");
            forger.packet(&request)
        });
        forger.raw.send(&packets.concat());
        while !matches!(forger.heard(), Answer::Done { .. }) {}
        wait_until(&format!("the {kind} is done"), || {
            let (code, out, stderr) = ran(&mut work(&world, "status", &[&unit]));
            match kind {
                "cancel" => out.contains("canceled") || code == 65,
                _ => code == 65 && stderr.contains("unknown work unit"),
            }
        });
    }
    // Another one can run: none of them is left.
    let out = succeeds(&mut submit(&world, &["silent"]));
    let last = out.trim();
    wait_until("it runs", || state(&world, last)["state"] == "running");
    fs::write(world.path("go"), "").expect("go");
    wait_until("it ends", || state(&world, last)["state"] == "succeeded");
    node.stop();
}

// --- Kills and cuts ---

#[test]
fn output_goes_on_after_its_node_was_killed() {
    let world = World::new();
    let client = node(&world);
    let followed = submit(&world, &["-f", "wait"])
        .stdout(Stdio::piped())
        .spawn();
    let followed = followed.expect("spawn");
    wait_until("it runs", || world.lines("runs").len() == 1);
    client.kill();
    let client = node(&world);
    fs::write(world.path("go"), "").expect("go");
    let (code, out, stderr) = ended(followed);
    assert_eq!((code, &*out), (0, "begun\ndone\n"), "{stderr}");
    assert_eq!(world.lines("runs").len(), 1);
    client.stop();
}

#[test]
fn a_node_that_is_killed_at_any_step_runs_work_once() {
    let payload = noise(200_000);
    for step in [
        "commit.before",
        "commit.after",
        "upload.before",
        "upload.after",
        "spawn.before",
        "spawn.after",
        "settle.before",
        "settle.after",
    ] {
        let world = World::new();
        let path = world.file("payload", &payload);
        let mut command = node_command(&world, TYPES);
        command.env("TAEL_FAILPOINT", step);
        let mut client = world.online("node7", command);
        let mut command = submit(&world, &["-f", "cat", "-p", &path]);
        let submitter = command.stdout(Stdio::piped()).spawn().expect("spawn");
        assert_eq!(client.wait(), 128 + 9, "{step}: {}", client.log_text());
        let client = node(&world);
        let output = submitter.wait_with_output().expect("wait");
        assert!(output.status.success(), "{step}: {output:?}");
        assert!(
            output.stdout == payload,
            "{step}: {} bytes",
            output.stdout.len()
        );
        let (code, ..) = ran(&mut submit(&world, &["-f", "cat", "-l", "sentinel"]));
        assert_eq!(code, 0, "{step}");
        assert_eq!(world.lines("runs").len(), 2, "{step}");
        client.stop();
    }
}

#[test]
fn a_release_that_was_answered_outlives_its_node() {
    if !has_program("strace", "a commit is slow") {
        return;
    }
    let world = World::new();
    let client = node(&world);
    let unit = new_id();
    succeeds(&mut submit(&world, &["wait", "--id", &unit]));
    wait_until("it runs", || world.lines("runs").len() == 1);
    let mut strace = Command::new("strace");
    strace.args(["-f", "-e", "trace=fsync,fdatasync", "-e", "signal=none"]);
    strace.args(["-e", "inject=fsync,fdatasync:delay_enter=500000"]);
    strace.args(["-p", &client.child.id().to_string()]);
    let strace = world.spawn(strace);
    wait_until("strace is there", || strace.log_text().contains("attached"));
    succeeds(&mut work(&world, "release", &[&unit]));
    client.kill();
    drop(strace);
    let client = node(&world);
    wait_until("it is released", || {
        let (code, _, stderr) = ran(&mut work(&world, "status", &[&unit]));
        code == 65 && stderr.contains("unknown work unit")
    });
    client.stop();
}

#[test]
fn output_is_whole_when_the_broker_is_restarted_in_the_middle() {
    let mut world = World::with(Setup {
        persistent: true,
        ..Setup::default()
    });
    let client = node(&world);
    let bytes = noise(8_000_000);
    let path = world.file("payload", &bytes);
    let out = fs::File::create(world.path("out")).expect("out");
    let mut command = submit(&world, &["-f", "cat", "-p", &path]);
    let mut submitter = world.spawn({
        command.stdout(out);
        command
    });
    for size in [1, 2_000_000] {
        wait_until("output comes", || {
            let size_of = |meta: fs::Metadata| meta.len();
            fs::metadata(world.path("out")).map_or(0, size_of) >= size
        });
        world.broker.stop();
        world.broker.restart();
    }
    assert_eq!(submitter.wait(), 0, "{}", submitter.log_text());
    assert!(fs::read(world.path("out")).expect("out") == bytes);
    assert_eq!(world.lines("runs").len(), 1);
    client.stop();
}

/// Returns the size of the payloads that come in pieces.
fn arrived(world: &World) -> u64 {
    let folder = world.home("node7").join("payloads");
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.metadata().ok())
        .map(|meta| meta.len())
        .sum()
}

#[test]
fn a_payload_is_whole_when_node_and_broker_are_killed_in_the_middle() {
    let mut world = World::with(Setup {
        persistent: true,
        ..Setup::default()
    });
    let client = node(&world);
    let bytes = noise(20_000_000);
    let path = world.file("payload", &bytes);
    let out = fs::File::create(world.path("out")).expect("out");
    let mut command = submit(&world, &["-f", "cat", "-p", &path]);
    command.stdout(out);
    let mut submitter = world.spawn(command);
    wait_until("pieces come", || arrived(&world) > 1_000_000);
    world.broker.stop();
    world.broker.restart();
    wait_until("more comes", || arrived(&world) > 3_000_000);
    client.kill();
    let client = node(&world);
    assert_eq!(submitter.wait(), 0, "{}", submitter.log_text());
    assert!(fs::read(world.path("out")).expect("out") == bytes);
    assert_eq!(world.lines("runs").len(), 1);
    client.stop();
}

#[test]
fn a_node_that_is_killed_again_and_again_runs_each_work_once() {
    const UNITS: usize = 24;
    let world = World::new();
    let types = TYPES.replace("max-output = 0", "max-output = 0\njobs = 4");
    let mut client = node_with(&world, &types);
    let payload = noise(150_000);
    let path = world.file("payload", &payload);
    let mut submitters: Vec<Process> = (0..UNITS)
        .map(|n| {
            let out = fs::File::create(world.path(&format!("out{n}"))).expect("out");
            // Half of the payloads come with their manifests.
            let payload = match n % 2 {
                0 => ["-p", &path],
                _ => ["-l", "short"],
            };
            let mut command = submit(&world, &["-f", "cat"]);
            command.args(payload).stdout(out);
            world.spawn(command)
        })
        .collect();
    for runs in [1, 5, 10, 15, 20] {
        wait_until("more have run", || world.lines("runs").len() >= runs);
        client.kill();
        client = node_with(&world, &types);
    }
    for (n, submitter) in submitters.iter_mut().enumerate() {
        assert_eq!(submitter.wait(), 0, "{}", submitter.log_text());
        let out = fs::read(world.path(&format!("out{n}"))).expect("out");
        let expected: &[u8] = if n % 2 == 0 { &payload } else { b"short\n" };
        assert!(out == expected, "{n}: {} bytes", out.len());
    }
    let (code, ..) = ran(&mut submit(&world, &["-f", "cat", "-l", "sentinel"]));
    assert_eq!(code, 0);
    assert_eq!(world.lines("runs").len(), UNITS + 1);
    client.stop();
}

/// `TAEL_TEST_SEED` selects who is killed, in which order.
#[test]
fn units_run_once_and_their_output_is_whole_whoever_is_killed() {
    const UNITS: usize = 40;
    const KILLS: usize = 16;
    let seed = std::env::var("TAEL_TEST_SEED").map_or(7, |seed| seed.parse().expect("seed"));
    let mut number = seed;
    let mut world = World::with(Setup {
        persistent: true,
        ..Setup::default()
    });
    let types = r#"
[[work]]
type = "large"
command = "sh -c 'echo $TAEL_UNIT >>$OUT/runs; cat; cat $OUT/noise; echo end >&2'"
max-output = 0
jobs = 4
"#;
    let noise = noise(256 * 1024);
    fs::write(world.path("noise"), &noise).expect("noise");
    let mut client = node_with(&world, types);
    let ids: Vec<String> = (0..UNITS).map(|_| new_id()).collect();
    let start = |world: &World, n: usize| {
        let out = fs::File::create(world.path(&format!("out{n}"))).expect("out");
        let text = format!("unit {n}");
        let mut command = submit(world, &["-f", "large", "-l", &text, "--id", &ids[n]]);
        command.stdout(out);
        world.spawn(command)
    };
    let mut submitters: Vec<Process> = (0..UNITS).map(|n| start(&world, n)).collect();
    let mut killed = [0; 3];
    for kill in 0..KILLS {
        wait_until(&format!("more have run, with seed {seed}"), || {
            world.lines("runs").len() >= kill * UNITS / KILLS
        });
        let victim = random(&mut number, 3);
        killed[victim] += 1;
        match victim {
            0 => {
                client.kill();
                client = node_with(&world, types);
            }
            1 => {
                world.broker.kill();
                world.broker.restart();
            }
            _ => {
                let n = random(&mut number, UNITS);
                submitters[n].signal(Signal::SIGKILL);
                submitters[n].wait();
                submitters[n] = start(&world, n);
            }
        }
    }
    assert!(!killed.contains(&0), "seed {seed} kills {killed:?}");
    let is_whole = |n: usize, out: &[u8]| {
        let expected = [format!("unit {n}\n").as_bytes(), &noise].concat();
        assert!(
            out == expected,
            "seed {seed}: unit {n}: {} bytes",
            out.len()
        );
    };
    for (n, submitter) in submitters.iter_mut().enumerate() {
        let code = submitter.wait();
        assert_eq!(code, 0, "seed {seed}: unit {n}: {}", submitter.log_text());
        is_whole(n, &fs::read(world.path(&format!("out{n}"))).expect("out"));
    }
    for (n, unit) in ids.iter().enumerate() {
        let output = work(&world, "results", &["-f", unit])
            .output()
            .expect("results");
        assert!(output.status.success(), "seed {seed}: {output:?}");
        is_whole(n, &output.stdout);
    }
    let (code, ..) = ran(&mut submit(
        &world,
        &["-f", "large", "-l", "sentinel", "--id", &new_id()],
    ));
    assert_eq!(code, 0);
    let mut runs = world.lines("runs");
    runs.sort();
    runs.dedup();
    assert_eq!(world.lines("runs").len(), UNITS + 1, "seed {seed}");
    assert_eq!(runs.len(), UNITS + 1, "seed {seed}");
    client.stop();
}

#[test]
fn output_comes_although_the_system_has_no_more_watches() {
    let world = World::new();
    let mut command = node_command(&world, TYPES);
    command.env("TAEL_TEST_NO_WATCHES", "1");
    let client = world.online("node7", command);
    let mut command = submit(&world, &["-f", "wait"]);
    command.stdout(fs::File::create(world.path("out")).expect("out"));
    let mut submitter = world.spawn(command);
    let out = || fs::read_to_string(world.path("out")).expect("out");
    wait_until("output comes while it runs", || out() == "begun\n");
    assert!(client.log_text().contains("cannot watch its folder"));
    fs::write(world.path("go"), "").expect("go");
    assert_eq!(submitter.wait(), 0, "{}", submitter.log_text());
    assert_eq!(out(), "begun\ndone\n");
    client.stop();
}

#[test]
fn a_submitter_that_was_killed_attaches_again() {
    let world = World::new();
    let client = node(&world);
    let unit = new_id();
    let mut command = submit(&world, &["-f", "wait", "--id", &unit]);
    command.stdout(Stdio::null());
    let submitter = world.spawn(command);
    wait_until("it runs", || world.lines("runs").len() == 1);
    submitter.kill();
    fs::write(world.path("go"), "").expect("go");
    let (code, out, _) = ran(&mut submit(&world, &["-f", "wait", "--id", &unit]));
    assert_eq!((code, &*out), (0, "begun\ndone\n"));
    let (code, ..) = ran(&mut submit(&world, &["-f", "cat", "-l", "sentinel"]));
    assert_eq!(code, 0);
    assert_eq!(world.lines("runs").len(), 2);
    client.stop();
}

#[test]
fn dropped_output_is_told() {
    let world = World::new();
    let types = "[[work]]\ntype = 'cat'\ncommand = 'cat'\nmax-output = 100000\n";
    let client = node_with(&world, types);
    let bytes = noise(3_000_000);
    let path = world.file("payload", &bytes);
    let mut command = submit(&world, &["cat", "-p", &path]);
    let (_, out, stderr) = ran(&mut command);
    let unit = out.trim();
    wait_until(&format!("it ends: {stderr}"), || {
        state(&world, unit)["state"] == "succeeded"
    });
    let output = work(&world, "results", &[unit]).output().expect("results");
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        output.status.success() && stderr.contains("bytes were dropped here"),
        "{stderr}"
    );
    let (head, tail) = output.stdout.split_at(output.stdout.len() / 2);
    assert!(bytes.starts_with(&head[..40_000]) && bytes.ends_with(&tail[tail.len() - 40_000..]));
    client.stop();
}

/// Readers of output that is dropped meanwhile get the same end: one that has it from before, one
/// whose node was killed since, and one that comes late.
#[test]
fn readers_of_output_that_is_dropped_get_the_same_end() {
    const LIMIT: usize = 100_000;
    const TYPES: &str = r#"
[[work]]
type = "chatty"
command = "sh -c 'cat $OUT/first; until [ -e $OUT/go ]; do sleep 0.02; done; cat $OUT/second'"
max-output = 100000
"#;
    let world = World::new();
    let client = node_with(&world, TYPES);
    let bytes = noise(3_060_000);
    let (first, second) = bytes.split_at(60_000);
    fs::write(world.path("first"), first).expect("first");
    fs::write(world.path("second"), second).expect("second");
    let tail = &bytes[bytes.len() - LIMIT / 2..];
    let kept = [&bytes[..LIMIT / 2], tail].concat();
    let unit = new_id();
    let follow = |verb: &str, words: &[&str], n: u8| {
        let out = fs::File::create(world.path(&format!("out{n}"))).expect("out");
        let mut command = work(&world, verb, words);
        command.stdout(out);
        world.spawn(command)
    };
    let out = |n: u8| fs::read(world.path(&format!("out{n}"))).expect("out");
    let mut early = follow("submit", &["-f", "chatty", "--id", &unit], 0);
    wait_until("the first bytes come", || out(0).len() == first.len());
    client.kill();
    let client = node_with(&world, TYPES);
    let mut forger = Forger::new(&world, "reader");
    let results = wire::write(&results(&unit, [0, 0]), b"");
    forger.send(&results);
    let mut received = 0;
    while received < first.len() {
        if let (Answer::Output { .. }, body) = forger.heard_with_body() {
            received += body.len();
        }
    }
    fs::write(world.path("go"), "").expect("go");
    assert_eq!(early.wait(), 0, "{}", early.log_text());
    assert!(out(0).starts_with(first) && out(0).ends_with(tail));
    let mut late = follow("results", &[&unit], 1);
    assert_eq!(late.wait(), 0, "{}", late.log_text());
    assert!(out(1) == kept, "{} bytes", out(1).len());
    // What was dropped is acknowledged as what has come.
    let at = [bytes.len() as u64, 0];
    let unit = unit.clone();
    let has_all = wire::write(
        &Request::Ack {
            unit,
            at,
            end: false,
        },
        b"",
    );
    let mut end = |request: &[u8]| {
        forger.send(request);
        loop {
            match forger.heard() {
                Answer::End(end) => return end,
                Answer::Gap { .. } => forger.send(&has_all),
                _ => {}
            }
        }
    };
    // The first one goes on behind the bytes that it has from before.
    let first_end = end(&has_all);
    assert_eq!(first_end, end(&results));
    assert_eq!(first_end.sha256[0], sha256_of(&kept));
    assert_eq!(first_end.lengths, at);
    let dropped = Dropped {
        offset: LIMIT as u64 / 2,
        bytes: Some((bytes.len() - LIMIT) as u64),
    };
    assert_eq!(first_end.dropped, [Some(dropped), None]);
    client.stop();
}

#[test]
fn a_requester_hears_that_its_unit_is_gone() {
    let world = World::new();
    let client = node(&world);
    let unit = new_id();
    succeeds(&mut submit(&world, &["large", "--id", &unit]));
    let mut forger = Forger::new(&world, "reader");
    // It acknowledges nothing, and so lacks output when the unit goes.
    let first = forger.ask(&wire::write(&results(&unit, [0, 0]), b""));
    assert!(matches!(first, Answer::State(_)), "{first:?}");
    succeeds(&mut work(&world, "release", &[&unit]));
    let refused = loop {
        match forger.heard() {
            Answer::Refused { error, .. } => break error,
            Answer::Output { .. } => {}
            other => panic!("{other:?}"),
        }
    };
    assert!(refused.contains("unknown work unit"), "{refused}");
    client.stop();
}

/// Returns the request for all results of a unit from these offsets on.
fn results(unit: &str, from: [u64; 2]) -> Request {
    Request::Results {
        unit: unit.into(),
        from,
        signature: None,
    }
}

// --- Signatures ---

fn signer(name: &str) -> Signer {
    Signer::from_pem(&fs::read(fixture_key(name)).expect("key")).expect("key")
}

/// Starts a node that takes signed work only, by two keys.
fn signed_node(world: &World) -> Process {
    let keys = [fixture_key("rsa-pkcs1.pub"), fixture_key("ed25519.pub")];
    let types = format!(
        "[verify]\nkeys = {keys:?}\n{}\n[[work]]\ntype = 'other'\ncommand = 'true'\nsigned = 'required'\n",
        TYPES.replace("max-output = 0", "signed = 'required'")
    );
    node_with(world, &types)
}

/// Runs signed work to its end. The lane has one job, so what came before has run too.
#[track_caller]
fn signed_sentinel(world: &World) {
    let key = private_key(world, "ed25519");
    let words = ["-f", "cat", "-l", "sentinel", "--signing-key", &key];
    succeeds(&mut submit(world, &words));
}

#[test]
fn signed_work_runs_and_needs_a_signature_for_everything() {
    let world = World::new();
    let node = signed_node(&world);
    refuses(&mut submit(&world, &["cat"]), 77, "a signature is required");
    for key in ["rsa-pkcs1", "ed25519"] {
        let key = private_key(&world, key);
        let signed = ["--signing-key", &*key];
        let out = succeeds(&mut submit(
            &world,
            &["cat", "-l", "a", signed[0], signed[1]],
        ));
        let unit = out.trim();
        for (verb, code) in [
            ("status", 77),
            ("results", 125),
            ("cancel", 77),
            ("release", 77),
        ] {
            refuses(
                &mut work(&world, verb, &[unit]),
                code,
                "a signature is required",
            );
        }
        let (code, out, stderr) = ran(&mut work(
            &world,
            "results",
            &["-f", unit, signed[0], signed[1]],
        ));
        assert_eq!((code, &*out), (0, "a\n"), "{stderr}");
        succeeds(&mut work(&world, "release", &[unit, signed[0], signed[1]]));
    }
    let stranger = private_key(&world, "rsa-pkcs8");
    let mut foreign = submit(&world, &["cat", "--signing-key", &stranger]);
    refuses(&mut foreign, 77, "not among those of [verify] keys");
    assert_eq!(world.lines("runs").len(), 2);
    node.stop();
}

#[test]
fn the_signing_key_may_stand_in_a_file() {
    let world = World::new();
    let node = signed_node(&world);
    let key = private_key(&world, "ed25519");
    let config = world.file("submitter.toml", format!("[signing]\nkey = '{key}'\n"));
    let (code, out, stderr) = ran(&mut submit(
        &world,
        &["--config", &config, "--sign", "-f", "cat", "-l", "a"],
    ));
    assert_eq!((code, &*out), (0, "a\n"), "{stderr}");
    refuses(
        &mut submit(&world, &["--sign", "cat"]),
        78,
        "there is no key",
    );
    node.stop();
}

#[test]
fn an_end_that_no_known_key_has_signed_is_refused_if_wanted() {
    let world = World::new();
    let key = private_key(&world, "ed25519");
    let verify = |name: &str| {
        let text = format!("[verify]\nkeys = ['{}']\n", fixture_key(name));
        let config = world.file("submitter.toml", text);
        let mut command = submit(&world, &["-f", "both", "--verify", "--config", &config]);
        ran(&mut command)
    };
    let types = format!("[signing]\nkey = '{key}'\n{TYPES}");
    let client = node_with(&world, &types);
    let (code, out, stderr) = verify("ed25519.pub");
    assert_eq!((code, &*out, &*stderr), (3, "out\n", "err\n"));
    let (code, _, stderr) = verify("rsa-pkcs1.pub");
    assert_eq!(code, 125);
    assert!(
        stderr.contains("not among those of [verify] keys"),
        "{stderr}"
    );
    client.stop();
    let client = node(&world);
    let (code, _, stderr) = verify("ed25519.pub");
    assert!(
        code == 125 && stderr.contains("it is not signed"),
        "{stderr}"
    );
    client.stop();
}

#[test]
fn the_units_of_a_node_are_listed_page_by_page() {
    const UNITS: usize = 70;
    let world = World::new();
    let types = TYPES.replace("params = true", "params = true\njobs = 8");
    let client = node_with(&world, &types);
    let list = |words: &[&str]| ran(&mut work(&world, "list", words));
    let (code, out, stderr) = list(&[]);
    assert_eq!((code, &*out), (0, ""), "{stderr}");
    assert!(stderr.contains("no unit to list on node node7"), "{stderr}");
    assert_eq!(list(&["--json"]).1, "[]\n");
    // Units that another node sends are kept as those of a submitter of this host are.
    let ids: Vec<String> = (0..UNITS)
        .map(|_| {
            let words = ["work", "submit", "--who", "node7", "words", "a"];
            let (code, id, stderr) = ran(&mut world.tael(words));
            assert_eq!(code, 0, "{stderr}");
            id.trim().to_owned()
        })
        .collect();
    let failed = new_id();
    let (code, ..) = ran(&mut submit(&world, &["-f", "both", "--id", &failed]));
    assert_eq!(code, 3);
    wait_until("all have ended", || {
        list(&[]).1.matches(" succeeded ").count() == UNITS
    });
    let (_, out, _) = list(&[]);
    let lines: Vec<&str> = out.lines().collect();
    assert!(lines[0].starts_with("UNIT"), "{out}");
    let listed: Vec<&str> = lines[1..]
        .iter()
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    let all: Vec<&str> = ids.iter().chain([&failed]).map(String::as_str).collect();
    assert_eq!(listed, all);
    let (_, out, _) = list(&["--json"]);
    let units: Value = serde_json::from_str(&out).expect("json");
    let units = units.as_array().expect("array");
    assert_eq!(units.len(), UNITS + 1);
    assert_eq!(units[UNITS], state(&world, &failed));
    let (_, out, _) = list(&["--failed"]);
    assert!(out.lines().count() == 2 && out.contains(&failed), "{out}");
    refuses(
        &mut work(&world, "list", &["-n", "3"]),
        64,
        "do not go with --node",
    );
    client.stop();
}

#[test]
fn a_list_has_units_of_signed_work_only_if_it_is_signed() {
    let world = World::new();
    let client = signed_node(&world);
    let open = new_id();
    let (code, _, stderr) = ran(&mut submit(&world, &["-f", "both", "--id", &open]));
    assert_eq!(code, 3, "{stderr}");
    let secret = new_id();
    let key = private_key(&world, "ed25519");
    let sign = ["--signing-key", &key];
    let mut command = submit(&world, &["-f", "cat", "-l", "a", "--id", &secret]);
    succeeds(command.args(sign));
    let (code, out, _) = ran(&mut work(&world, "list", &[]));
    assert!(
        code == 0 && out.contains(&open) && !out.contains(&secret),
        "{out}"
    );
    let (code, out, _) = ran(&mut work(&world, "list", &sign));
    assert!(
        code == 0 && out.contains(&open) && out.contains(&secret),
        "{out}"
    );
    client.stop();
}

#[test]
fn a_requester_hears_when_a_silent_unit_starts() {
    let world = World::new();
    let client = node(&world);
    let (_, first, stderr) = ran(&mut submit(&world, &["silent"]));
    let (_, unit, _) = ran(&mut submit(&world, &["silent"]));
    let unit = unit.trim();
    assert!(!unit.is_empty(), "{stderr}");
    let mut forger = Forger::new(&world, "reader");
    let results = results(unit, [0, 0]);
    let hears = |answer, expected: &str| match answer {
        Answer::State(state) if state.unit == unit => assert_eq!(state.state, expected),
        other => panic!("{other:?}"),
    };
    hears(forger.ask(&wire::write(&results, b"")), "pending");
    succeeds(&mut work(&world, "cancel", &[first.trim()]));
    hears(forger.heard(), "running");
    client.kill();
    let client = node(&world);
    hears(forger.ask(&wire::write(&results, b"")), "running");
    fs::write(world.path("go"), "").expect("go");
    match forger.heard() {
        Answer::End(end) => assert_eq!(end.state.state, "succeeded"),
        other => panic!("{other:?}"),
    }
    client.stop();
}

#[test]
fn a_requester_hears_of_the_start_before_the_first_output() {
    let world = World::new();
    let client = node(&world);
    fs::write(world.path("go"), "").expect("go");
    // The lane has one job.
    let units: Vec<String> = (0..20).map(|_| new_id()).collect();
    let mut forger = Forger::new(&world, "reader");
    for unit in &units {
        let manifest = Manifest {
            unit: unit.clone(),
            ..manifest("wait", b"")
        };
        forger.send(&wire::write(&Request::Submit(manifest), b""));
        forger.send(&wire::write(&results(unit, [0, 0]), b""));
    }
    let mut heard: Vec<(String, &str)> = Vec::new();
    let mut ends = 0;
    while ends < units.len() {
        let answer = forger.heard();
        let what = match &answer {
            Answer::State(state) => match &*state.state {
                "pending" => "pending",
                "running" => "running",
                _ => "ended",
            },
            Answer::Output { .. } => "output",
            Answer::End(_) => "end",
            // It was not on disk yet.
            Answer::Refused { .. } => {
                forger.send(&wire::write(&results(answer.unit(), [0, 0]), b""));
                continue;
            }
            _ => continue,
        };
        ends += usize::from(what == "end");
        heard.push((answer.unit().to_owned(), what));
    }
    for unit in &units {
        let of = heard.iter().filter(|(of, _)| of == unit);
        let mut of: Vec<&str> = of.map(|(_, what)| *what).collect();
        of.dedup();
        match of[..] {
            ["pending", "running", "output", "end"] | ["running" | "ended", "output", "end"] => {}
            _ => panic!("{of:?}"),
        }
    }
    client.stop();
}

/// A requester that writes its messages itself.
struct Forger {
    raw: Raw,
    reply: String,
    next: u16,
}

impl Forger {
    fn new(world: &World, name: &str) -> Self {
        let mut raw = Raw::connect(world.broker.port());
        let reply = format!("{NODE}/reply/{name}");
        raw.subscribe(&reply);
        Self {
            raw,
            reply,
            next: 100,
        }
    }

    fn packet(&mut self, message: &[u8]) -> Vec<u8> {
        self.next += 1;
        let properties = request_properties(&self.reply, b"");
        let topic = format!("{NODE}/work");
        publish_with(
            topic.as_bytes(),
            message,
            Some(self.next),
            &properties,
            false,
        )
    }

    fn send(&mut self, message: &[u8]) {
        let packet = self.packet(message);
        self.raw.send(&packet);
    }

    fn ask(&mut self, message: &[u8]) -> Answer {
        self.send(message);
        self.heard()
    }

    /// Returns the next answer.
    fn heard(&mut self) -> Answer {
        self.heard_with_body().0
    }

    /// Returns the next answer, and what follows its header.
    fn heard_with_body(&mut self) -> (Answer, Bytes) {
        let reply = self.reply.clone();
        let heard = self.raw.hear("the answer", |m| m.topic == reply);
        wire::read_answer(&Bytes::from(heard.payload)).expect("answer")
    }

    /// Asks, and returns the cause of the refusal.
    #[track_caller]
    fn refused(&mut self, message: &[u8]) -> String {
        match self.ask(message) {
            Answer::Refused { error, .. } => error,
            other => panic!("{other:?}"),
        }
    }
}

fn manifest(kind: &str, payload: &[u8]) -> Manifest {
    Manifest {
        unit: new_id(),
        kind: kind.into(),
        params: Vec::new(),
        variables: Vec::new(),
        submitter: "ann@host".into(),
        length: payload.len() as u64,
        sha256: sha256_of(payload),
        expires: None,
        signature: None,
    }
}

/// Returns the request with a token, whose claims were changed.
fn signed(
    key: &str,
    mut request: Request,
    reply: &str,
    change: impl FnOnce(&mut Claims),
) -> Request {
    let now = jiff::Timestamp::now().as_second();
    let (asked, _) = request.allowance("node7", reply).expect("signed");
    let mut claims = Claims {
        request: asked,
        iat: now,
        exp: now + 600,
        jti: new_id(),
    };
    change(&mut claims);
    request.sign(signature::sign(&signer(key), &claims).expect("sign"));
    request
}

#[test]
fn an_end_is_about_the_whole_output_wherever_its_reader_begins() {
    let world = World::new();
    let client = node(&world);
    let bytes = noise(300_000);
    let path = world.file("payload", &bytes);
    let unit = new_id();
    let submission = ["-f", "cat", "-p", &path, "--id", &unit];
    let output = submit(&world, &submission).output().expect("submit");
    assert!(output.status.success(), "{output:?}");
    let mut forger = Forger::new(&world, "reader");
    // From the middle, the beginning, the middle again, and the end.
    for from in [200_000, 0, 123_456, 300_000] {
        forger.send(&wire::write(&results(&unit, [from, 0]), b""));
        let (mut at, reply) = (from, forger.reply.clone());
        let end = loop {
            let heard = forger.raw.hear("output", |m| m.topic == reply);
            match wire::read_answer(&Bytes::from(heard.payload)).expect("answer") {
                (Answer::Output { offset, .. }, body) => {
                    assert_eq!(offset, at);
                    at += body.len() as u64;
                }
                (Answer::End(end), _) => break end,
                (Answer::State(state), _) => assert_eq!(state.state, "succeeded"),
                (other, _) => panic!("{other:?}"),
            }
        };
        assert_eq!((at, end.lengths), (300_000, [300_000, 0]), "{from}");
        assert_eq!(end.sha256, [sha256_of(&bytes), sha256_of(b"")], "{from}");
    }
    client.stop();
}

#[test]
fn forged_signatures_are_refused_in_the_call() {
    let world = World::new();
    let node = signed_node(&world);
    let mut forger = Forger::new(&world, "ann");
    let reply = forger.reply.clone();
    let submit = || Request::Submit(manifest("cat", b"a"));
    type Change = fn(&mut Claims);
    let forged: [(&str, &str, Change); 9] = [
        ("rsa-pkcs8", "not among those", |_| {}),
        ("ed25519", "another node", |c| {
            c.request.aud = "node8".into()
        }),
        ("ed25519", "another operation", |c| {
            c.request.op = signature::Operation::Cancel
        }),
        ("ed25519", "another unit", |c| c.request.unit = new_id()),
        ("ed25519", "another requester", |c| c.request.reply += "x"),
        ("ed25519", "another work type", |c| {
            c.request.work.as_mut().expect("work").kind = "other".into();
        }),
        ("ed25519", "another payload", |c| {
            c.request.work.as_mut().expect("work").sha256 = sha256_of(b"b");
        }),
        ("ed25519", "compare the clocks", |c| c.exp = c.iat - 61),
        ("ed25519", "compare the clocks", |c| c.iat += 3600),
    ];
    for (key, cause, change) in forged {
        let request = signed(key, submit(), &reply, change);
        let refused = forger.refused(&wire::write(&request, b"a"));
        assert!(refused.contains(cause), "{cause}: {refused}");
    }
    // Without its signature.
    let request = signed("ed25519", submit(), &reply, |_| {});
    let Request::Submit(whole) = &request else {
        panic!("{request:?}");
    };
    let token = whole.signature.clone().expect("token");
    let (signed, _) = token.rsplit_once('.').expect("token");
    let unsigned = Request::Submit(Manifest {
        signature: Some(format!("{signed}.")),
        ..whole.clone()
    });
    let refused = forger.refused(&wire::write(&unsigned, b"a"));
    assert!(refused.contains("not that of its key"), "{refused}");
    assert!(matches!(
        forger.ask(&wire::write(&request, b"a")),
        Answer::Accepted { .. }
    ));
    signed_sentinel(&world);
    assert_eq!(world.lines("runs").len(), 2);
    node.stop();
}

#[test]
fn a_replayed_signature_runs_nothing_again() {
    let world = World::new();
    let node = signed_node(&world);
    let (mut ann, mut eve) = (Forger::new(&world, "ann"), Forger::new(&world, "eve"));
    let request = Request::Submit(manifest("cat", b"a"));
    let unit = request.unit().to_owned();
    let request = signed("ed25519", request, &ann.reply, |_| {});
    let message = wire::write(&request, b"a");
    assert!(matches!(ann.ask(&message), Answer::Accepted { .. }));
    // Another requester gets nothing, and with other content not even the first one does.
    let refused = eve.refused(&message);
    assert!(refused.contains("another requester"), "{refused}");
    let Request::Submit(whole) = &request else {
        panic!("{request:?}");
    };
    let other = Manifest {
        params: vec!["x".into()],
        ..whole.clone()
    };
    let refused = ann.refused(&wire::write(&Request::Submit(other), b"a"));
    assert!(refused.contains("another set of parameters"), "{refused}");
    // The same message again, as a broker may deliver it, is the same unit: also after its release.
    assert!(matches!(ann.ask(&message), Answer::Accepted { .. }));
    let target = Target {
        unit: unit.clone(),
        signature: None,
    };
    let status = |ann: &mut Forger| {
        let reply = ann.reply.clone();
        let request = signed("ed25519", Request::Status(target.clone()), &reply, |_| {});
        ann.ask(&wire::write(&request, b""))
    };
    wait_until(
        "it ends",
        || matches!(status(&mut ann), Answer::State(s) if s.state == "succeeded"),
    );
    let reply = ann.reply.clone();
    let release = signed("ed25519", Request::Release(target.clone()), &reply, |_| {});
    let released = ann.ask(&wire::write(&release, b""));
    assert!(
        matches!(
            released,
            Answer::Done {
                result: Done::Released,
                ..
            }
        ),
        "{released:?}"
    );
    wait_until("it is released", || {
        matches!(status(&mut ann), Answer::Refused { .. })
    });
    ann.ask(&message);
    signed_sentinel(&world);
    assert_eq!(world.lines("runs").len(), 2);
    node.stop();
}

// --- Bad input ---

#[test]
fn what_is_no_request_is_refused_and_the_node_goes_on() {
    let world = World::new();
    let node = node(&world);
    let mut forger = Forger::new(&world, "eve");
    let whole = wire::write(&Request::Submit(manifest("cat", b"a")), b"a");
    let mut bodies: Vec<Vec<u8>> = vec![
        b"x".to_vec(),
        b"\n".to_vec(),
        b"{}\n".to_vec(),
        b"{\"submit\":{}}\n".to_vec(),
        vec![b'x'; 200_000],
        whole[..whole.len() - 1].to_vec(),
        [&whole[..], b"b"].concat(),
        wire::write(&Request::Submit(manifest("cat", b"a")), b"b").to_vec(),
    ];
    let odd = json!({"cancel": {"unit": "../../etc/passwd"}});
    bodies.push(format!("{odd}\n").into_bytes());
    for body in bodies {
        let refused = forger.refused(&body);
        assert!(!refused.is_empty());
    }
    // Pieces that nobody has announced are asked for from the start.
    let piece = Request::Payload {
        unit: new_id(),
        offset: 7,
    };
    let lost = forger.ask(&wire::write(&piece, b"x"));
    assert!(matches!(lost, Answer::Lost { .. }), "{lost:?}");
    // Without a Response Topic there is nobody to tell.
    world.publish(&format!("{NODE}/work"), b"x", &[]);
    let (code, out, _) = ran_with(&mut submit(&world, &["-f", "cat", "-p", "-"]), b"sentinel");
    assert_eq!((code, &*out), (0, "sentinel"));
    assert_eq!(world.lines("runs").len(), 1);
    node.stop();
}

#[test]
fn work_that_comes_too_late_does_not_run() {
    let world = World::new();
    let node = node(&world);
    let mut forger = Forger::new(&world, "ann");
    let late = Manifest {
        expires: Some(jiff::Timestamp::now().as_second() - 5),
        ..manifest("cat", b"a")
    };
    let refused = forger.refused(&wire::write(&Request::Submit(late), b"a"));
    assert!(refused.contains("after its time"), "{refused}");
    let (code, ..) = ran(&mut submit(
        &world,
        &["-f", "--ttl", "1h", "cat", "-l", "sentinel"],
    ));
    assert_eq!(code, 0);
    assert_eq!(world.lines("runs").len(), 1);
    node.stop();
}
