//! Work that a client gives to another node, and keeps: the submitter's half.

use std::fs;
use std::thread;

use serde_json::json;

use crate::common::broker::is_mosquitto;
use crate::common::nodes::{
    ask, connect, node, node_with, noise, results, started, status, submit, submitter, wait,
};
use crate::common::{World, json_of, ran, wait_until};

#[test]
fn work_for_another_node_is_a_unit_here() {
    let world = World::new();
    let (node, desk) = (node(&world), submitter(&world));
    let answer = submit(&world, &json!({"worktype": "both"}), b"").expect("submitted");
    assert_eq!(answer["result"], "Job Started");
    let unit = answer["unitid"].as_str().expect("unit").to_owned();
    wait(&world, &unit, "Failed");
    let status = status(&world, &unit);
    assert_eq!(status["Detail"], "exit status 3");
    assert_eq!(status["ExitCode"], 3);
    assert_eq!(status["WorkType"], "remote");
    assert_eq!(status["ExtraData"]["RemoteNode"], "node7");
    assert_eq!(status["ExtraData"]["RemoteWorkType"], "both");
    assert_eq!(status["ExtraData"]["RemoteUnitID"], *unit);
    let output = String::from_utf8(results(&world, &unit)).expect("text");
    assert!(["out\nerr\n", "err\nout\n"].contains(&&*output), "{output}");
    // Large payloads and output, small ones, and none.
    for size in [0, 1, 70_000, 3_000_000] {
        let payload = noise(size);
        let unit = started(&world, "cat", &payload);
        assert!(results(&world, &unit) == payload, "{size} bytes");
        wait(&world, &unit, "Succeeded");
    }
    assert_eq!(world.lines("runs").len(), 4);
    desk.stop();
    node.stop();
}

/// Whether the ledger of `who` says that the output of `unit` was fetched.
fn is_fetched(world: &World, who: &str, unit: &str) -> bool {
    let ledger = world.home(who).join("ledger.db");
    let ledger = rusqlite::Connection::open(ledger).expect("ledger");
    let sql = "SELECT fetched IS NOT NULL FROM unit WHERE id = ?1";
    ledger
        .query_row(sql, [unit], |row| row.get(0))
        .expect("unit")
}

#[test]
fn a_node_hears_that_its_output_is_on_the_disk_of_the_submitter() {
    let world = World::new();
    let (node, desk) = (node(&world), submitter(&world));
    let waits = started(&world, "wait", b"");
    for (kind, payload) in [("cat", noise(3_000_000)), ("both", Vec::new())] {
        let unit = started(&world, kind, &payload);
        wait_until("the node knows", || is_fetched(&world, "node7", &unit));
        assert_ne!(status(&world, &unit)["StateName"], "Running");
        assert!(!is_fetched(&world, "desk", &unit), "its own is not read");
        results(&world, &unit);
        wait_until("and now it is", || is_fetched(&world, "desk", &unit));
    }
    wait(&world, &waits, "Running");
    assert!(
        !is_fetched(&world, "node7", &waits),
        "what runs is not all there"
    );
    fs::write(world.path("go"), "").expect("go");
    wait_until("it has ended", || is_fetched(&world, "node7", &waits));
    desk.stop();
    node.stop();
}

#[test]
fn a_refusal_of_the_node_fails_the_submission() {
    let world = World::new();
    let (node, desk) = (node(&world), submitter(&world));
    let refusal = submit(&world, &json!({"worktype": "none"}), b"").expect_err("refused");
    assert!(refusal.contains("unknown work type none"), "{refusal}");
    let refusal = submit(&world, &json!({"worktype": "cat", "params": "x"}), b"");
    let refusal = refusal.expect_err("refused");
    assert!(refusal.contains("extra params"), "{refusal}");
    desk.stop();
    node.stop();
}

#[test]
fn a_node_that_is_away_gets_the_work_when_it_comes() {
    let world = World::new();
    let desk = submitter(&world);
    let answer = submit(&world, &json!({"worktype": "cat"}), b"later").expect("submitted");
    assert_eq!(answer["result"], "Job Submitted");
    let unit = answer["unitid"].as_str().expect("unit").to_owned();
    assert_eq!(status(&world, &unit)["StateName"], "Pending");
    desk.kill();
    let desk = submitter(&world);
    let node = node(&world);
    wait(&world, &unit, "Succeeded");
    assert_eq!(results(&world, &unit), b"later");
    assert_eq!(world.lines("runs").len(), 1);
    desk.stop();
    node.stop();
}

#[test]
fn either_side_may_be_killed_while_it_runs() {
    let world = World::new();
    let (node_process, desk) = (node(&world), submitter(&world));
    let unit = started(&world, "wait", b"");
    wait(&world, &unit, "Running");
    desk.kill();
    let desk = submitter(&world);
    wait(&world, &unit, "Running");
    node_process.kill();
    let node_process = node(&world);
    fs::write(world.path("go"), "").expect("go");
    wait(&world, &unit, "Succeeded");
    assert_eq!(results(&world, &unit), b"begun\ndone\n");
    assert_eq!(world.lines("runs").len(), 1);
    desk.stop();
    node_process.stop();
}

#[test]
fn a_cancel_and_a_release_reach_the_node() {
    let world = World::new();
    let (node, desk) = (node(&world), submitter(&world));
    let unit = started(&world, "wait", b"");
    wait(&world, &unit, "Running");
    let answer = ask(&world, &format!("work cancel {unit}"));
    assert_eq!(answer, json!({"cancelled": unit}).to_string());
    assert_eq!(status(&world, &unit)["StateName"], "Canceled");
    assert_eq!(results(&world, &unit), b"begun\n");
    let folder = world.home("node7").join("units").join(&unit);
    assert!(folder.exists());
    let answer = ask(&world, &format!("work release {unit}"));
    assert_eq!(answer, json!({"released": unit}).to_string());
    wait_until("the node has released it", || !folder.exists());
    desk.stop();
    node.stop();
}

#[test]
fn more_units_write_than_files_stay_open() {
    /// Maximum number of units whose files stay open.
    const MAX_OPEN: usize = 32;
    /// The output of each unit comes in two pieces.
    const HOLD: &str = r#"
[[work]]
type = "hold"
command = "sh -c 'echo begun; until [ -e $OUT/go ]; do sleep 0.2; done; echo done'"
jobs = 40
"#;
    let world = World::new();
    let desk = submitter(&world);
    let client = node_with(&world, HOLD);
    let units: Vec<String> = (0..MAX_OPEN + 4)
        .map(|_| started(&world, "hold", b""))
        .collect();
    for unit in &units {
        wait_until("it has begun", || status(&world, unit)["StdoutSize"] == 6);
    }
    let descriptors = fs::read_dir(format!("/proc/{}/fd", desk.pid())).expect("descriptors");
    let targets = descriptors.filter_map(|fd| fs::read_link(fd.expect("descriptor").path()).ok());
    let open = targets.filter(|target| target.ends_with("stdout")).count();
    assert!((1..=MAX_OPEN).contains(&open), "{open} files are open");
    fs::write(world.path("go"), "").expect("go");
    for unit in &units {
        wait(&world, unit, "Succeeded");
        assert_eq!(results(&world, unit), b"begun\ndone\n");
    }
    desk.stop();
    client.stop();
}

#[test]
fn what_is_wanted_while_the_node_is_away_is_done_when_it_comes() {
    let world = World::new();
    let (node_process, desk) = (node(&world), submitter(&world));
    let [running, ended] = ["wait", "both"].map(|kind| started(&world, kind, b""));
    wait(&world, &running, "Running");
    wait(&world, &ended, "Failed");
    let ears = world.ears(&["lab/infrastructure/pipelines/node7/presence"]);
    node_process.kill();
    // What it is sent before is in the queue of the broker.
    wait_until("node7 is lost", || {
        ears.any(|m| m.payload["state"] == "lost")
    });
    let answer = submit(&world, &json!({"worktype": "cat"}), b"never").expect("submitted");
    let offered = answer["unitid"].as_str().expect("unit").to_owned();
    let answer = ask(&world, &format!("work cancel {running}"));
    assert_eq!(answer, json!({"cancel pending": running}).to_string());
    // No node can have heard of it, unless the news of the loss came after the offer.
    let answer = ask(&world, &format!("work cancel {offered}"));
    let ends = ["cancelled", "cancel pending"].map(|end| json!({end: offered}).to_string());
    assert!(ends.contains(&answer), "{answer}");
    let answer = ask(&world, &format!("work force-release {ended}"));
    assert_eq!(answer, json!({"released": ended}).to_string());
    desk.kill();
    let desk = submitter(&world);
    let node_process = node(&world);
    wait(&world, &running, "Canceled");
    wait(&world, &offered, "Canceled");
    let folder = world.home("node7").join("units").join(&ended);
    wait_until("the debt is paid", || !folder.exists());
    // Nothing has run that was canceled before it came.
    assert_eq!(world.lines("runs").len(), 1);
    desk.stop();
    node_process.stop();
}

#[test]
fn other_nodes_are_asked_through_the_socket() {
    let world = World::new();
    let (node, desk) = (node(&world), submitter(&world));
    let mut session = connect(&world);
    let own = session.ask_json("status");
    assert_eq!(own["RoutingTable"], json!({}));
    let pong = session.ask_json("ping node7");
    assert_eq!(
        (&pong["Success"], &pong["From"]),
        (&json!(true), &json!("node7"))
    );
    assert!(pong["Time"].as_u64().is_some_and(|time| time > 0), "{pong}");
    let hops = session.ask_json("traceroute node7");
    assert_eq!(
        (&hops["0"]["From"], &hops["1"]["From"]),
        (&json!("desk"), &json!("node7"))
    );
    // One that has answered is known.
    let own = session.ask_json("status");
    assert_eq!(own["KnownConnectionCosts"], json!({"desk": {"node7": 1}}));
    assert_eq!(own["RoutingTable"], json!({"node7": "node7"}));
    assert_eq!(own["Connections"], json!([{"NodeID": "node7", "Cost": 1}]));
    assert_eq!(own["Advertisements"][1]["NodeID"], "node7");
    // Names that are no node's do not stay.
    let lost = json!({"Success": false, "Error": "no route to node"});
    thread::scope(|scope| {
        for n in 0..70 {
            let world = &world;
            scope.spawn(move || {
                let pong = ask(world, &format!("ping nobody{n}"));
                assert!(pong.contains("\"Success\":false"), "{pong}");
            });
        }
    });
    assert_eq!(session.ask_json("ping no/body"), lost);
    assert_eq!(session.ask_json("ping node7")["Success"], true);
    // A connection to the node, about units of all submitters.
    let units = ["both", "wait"].map(|kind| started(&world, kind, b""));
    wait(&world, &units[0], "Failed");
    wait(&world, &units[1], "Running");
    assert_eq!(session.ask("connect node7 control "), "Connecting");
    assert_eq!(session.line(), "Receptor Control, node node7");
    let list = session.ask_json("work list");
    let state = |unit: &str| (list[unit]["State"].clone(), list[unit]["Detail"].clone());
    assert_eq!(state(&units[0]), (json!(3), json!("exit status 3")));
    assert_eq!(state(&units[1]), (json!(1), json!("Running")));
    assert_eq!(list[&units[0]]["WorkType"], "both");
    let status = session.ask_json(&format!("work status {}", units[0]));
    assert_eq!(status, list[&units[0]]);
    let one = session.ask_json(&format!("work list {}", units[0]));
    assert_eq!(one[&units[0]], list[&units[0]]);
    let cancel = format!("work cancel {}", units[1]);
    assert_eq!(session.ask_json(&cancel), json!({"cancelled": units[1]}));
    let release = format!("work release {}", units[0]);
    assert_eq!(session.ask_json(&release), json!({"released": units[0]}));
    for (request, error) in [
        ("work status nope", "unknown work unit nope"),
        (
            "work status 01JBV7Y3ZK8Q5W2N4T6R9M1XCD",
            "unknown work unit",
        ),
        ("status", "asked over the broker: work list, status"),
    ] {
        let answer = session.ask(request);
        assert!(
            answer.starts_with("ERROR: ") && answer.contains(error),
            "{answer}"
        );
    }
    wait(&world, &units[1], "Canceled");
    // A node that is gone.
    node.kill();
    let mut session = connect(&world);
    wait_until("the node is away", || {
        session.ask_json("ping node7") == lost
    });
    assert_eq!(session.ask_json("status")["Connections"], json!([]));
    assert_eq!(
        ask(&world, "connect node7 control "),
        "ERROR: no route to node 'node7'"
    );
    desk.stop();
}

/// Returns how many bytes of stdout are missing here.
fn dropped(world: &World, unit: &str) -> u64 {
    let mut command = world.tael(["work", "status", "--who", "desk", unit, "--json"]);
    json_of(&mut command)["dropped_stdout"]
        .as_u64()
        .expect("dropped_stdout")
}

#[test]
fn output_that_the_node_drops_ends_and_is_not_told_twice() {
    let world = World::new();
    let (node_process, mut desk) = (node(&world), Some(submitter(&world)));
    let sizes = [900_000, 1_500_000, 3_000_000, 20_000_000];
    // Followed as it comes; then fetched when it has ended.
    for is_late in [false, true] {
        let mut units = Vec::new();
        for size in sizes {
            let payload = noise(size);
            units.push((started(&world, "loud", &payload), payload));
        }
        if is_late {
            for (unit, _) in &units {
                wait(&world, unit, "Running");
            }
            desk.take().expect("desk").kill();
        }
        let reader = (!is_late).then(|| {
            let (world, unit) = (&world, units[3].0.clone());
            let mut session = connect(world);
            session.follow(&unit, 0);
            session
        });
        fs::write(world.path("go"), "").expect("go");
        if is_late {
            wait_until("the node has ended all", || {
                let (_, out, _) = ran(&mut world.tael(["work", "list", "--who", "node7"]));
                out.lines().count() > 2 * sizes.len() && !out.contains("running")
            });
            desk = Some(submitter(&world));
        }
        for (unit, payload) in &units {
            wait(&world, unit, "Succeeded");
            let output = results(&world, unit);
            let missing = usize::try_from(dropped(&world, unit)).expect("size");
            let length = payload.len();
            assert_eq!(output.len() + missing, length, "of {length}");
            let half = 500_000.min(length / 2);
            assert!(output[..half] == payload[..half], "the head of {length}");
            let (end, whole) = (output.len() - half, length - half);
            assert!(output[end..] == payload[whole..], "the tail of {length}");
        }
        if let Some(mut session) = reader {
            let output = session.rest();
            let payload = &units[3].1;
            assert!(output.len() <= payload.len(), "{} bytes", output.len());
            assert!(output[..500_000] == payload[..500_000]);
        }
        fs::remove_file(world.path("go")).expect("go");
    }
    desk.expect("desk").stop();
    node_process.stop();
}

#[test]
fn a_unit_says_what_it_waits_for() {
    let world = World::new();
    let desk = submitter(&world);
    let waits = |kind: &str, note: &str| {
        let answer = submit(&world, &json!({"worktype": kind}), b"").expect("submitted");
        let unit = answer["unitid"].as_str().expect("unit").to_owned();
        wait_until(note, || {
            let detail = status(&world, &unit)["Detail"].to_string();
            detail.contains(note)
        });
        assert_eq!(status(&world, &unit)["StateName"], "Pending");
        unit
    };
    // The embedded broker does not say that nobody subscribes.
    let unheard =
        is_mosquitto().then(|| waits("both", "no client with work types is called node7"));
    let node_process = node(&world);
    if let Some(unheard) = &unheard {
        wait(&world, unheard, "Failed");
    }
    node_process.stop();
    let away = waits("both", "node node7 is away");
    let node_process = node(&world);
    wait(&world, &away, "Failed");
    assert_eq!(status(&world, &away)["Detail"], "exit status 3");
    desk.stop();
    node_process.stop();
}
