//! Commands without `--root` find it.

use std::process::Command;

use crate::common::{World, ran, refuses, wait_until};

const SEQ: &str = "lab/seq/status";

/// Publishes the presence of a pipeline that was stopped.
fn was_here(world: &World, root: &str, who: &str) {
    let topic = format!("{root}/infrastructure/pipelines/{who}/presence");
    let mut message = world.command("tael-message");
    message.args(["--retain", "-t", &topic, "state=offline", "host=h"]);
    assert_eq!(ran(&mut message).0, 0);
}

fn tael(world: &World, arguments: &[&str]) -> Command {
    let mut command = world.tael(arguments);
    command.env("TAEL_LOG", "warn");
    command
}

#[test]
fn the_only_root_is_found_and_several_are_named() {
    let world = World::new();
    let client = world.client("align", &["-t", SEQ, "-c", "true"]);
    let line = |arguments: &[&str]| {
        let (code, out, error) = ran(&mut tael(&world, arguments));
        assert_eq!((code, &*error), (0, ""), "{arguments:?}: {out}");
        out
    };
    assert!(line(&["status"]).contains("align"));
    assert!(line(&["control", "align", "raise", "s=1"]).contains("raised"));
    world.wait_report("align", "/units/succeeded", 1);
    wait_until("its end is retained", || {
        line(&["check", "--who", "align"]).contains("finished")
    });
    // Roots of several levels, and other pipelines, do not count for a name.
    was_here(&world, "site/two/test", "call");
    assert!(line(&["control", "align", "status"]).contains("align: on "));
    let (code, out, _) = ran(&mut tael(&world, &["check", "--who", "call"]));
    assert_eq!(code, 1, "{out}");
    assert!(out.contains("call is offline"), "{out}");
    let two = "pipelines are below lab, site/two/test: choose one by --root";
    refuses(&mut tael(&world, &["status"]), 64, two);
    was_here(&world, "test", "align");
    let both = "align is below lab, test: choose one by --root";
    refuses(&mut tael(&world, &["control", "align", "status"]), 64, both);
    let (code, out, _) = ran(&mut tael(&world, &["check", "--who", "align"]));
    assert_eq!(code, 3);
    assert!(out.contains(both), "{out}");
    client.stop();
}

#[test]
fn errors_name_the_root_that_is_right() {
    let world = World::new();
    let client = world.client("align", &["-t", SEQ, "-c", "true"]);
    let mut control = tael(&world, &["control", "align", "status", "--root", "tael"]);
    refuses(
        control.args(["--timeout", "1s"]),
        75,
        "align is below lab: --root lab",
    );
    let (code, out, _) = ran(&mut tael(
        &world,
        &["check", "--who", "align", "--root", "x"],
    ));
    assert_eq!(code, 2, "{out}");
    assert!(
        out.contains("below x; align is below lab: --root lab"),
        "{out}"
    );
    // A name that is nowhere.
    let mut control = tael(&world, &["control", "nobody", "status", "--timeout", "1s"]);
    refuses(&mut control, 75, "is --root right?");
    // A slip of one that is there, long before the end of the wait.
    let mut control = tael(&world, &["control", "algin", "status", "--timeout", "60s"]);
    let begun = std::time::Instant::now();
    refuses(&mut control, 75, "did you mean align below lab?");
    assert!(begun.elapsed() < std::time::Duration::from_secs(40));
    let (code, out, _) = ran(&mut tael(&world, &["check", "--who", "algin"]));
    assert_eq!(code, 2, "{out}");
    assert!(out.contains("did you mean align below lab?"), "{out}");
    refuses(
        &mut tael(&world, &["status", "--who", "algin"]),
        65,
        "did you mean align below lab?",
    );
    let (code, out, _) = ran(&mut tael(&world, &["status", "--who", "align"]));
    assert_eq!((code, out.lines().count()), (0, 2), "{out}");
    client.stop();
}

#[test]
fn beacons_and_playbooks_find_their_root() {
    let world = World::new();
    let mut beacon = world.command("tael-beacon");
    assert_eq!(ran(beacon.args(["--once", "--root", "far/lab"])).0, 0);
    let (code, out, error) = ran(&mut tael(&world, &["check"]));
    assert_eq!(code, 0, "{out}{error}");
    assert!(out.contains("far/lab/test/beacon/status beat"), "{out}");
    let (code, out, _) = ran(&mut tael(&world, &["check", "--root", "lab"]));
    assert_eq!(code, 2);
    assert!(
        out.contains("beacons are below far/lab: --root far/lab"),
        "{out}"
    );
    // A node that is up, below a root that is not the default.
    let functions = world.path("functions");
    std::fs::write(&functions, "startFunction() { :; }\n").expect("functions");
    let mut node = world.tael(["node", "n1", "--root", "bench"]);
    node.arg("--functions").arg(functions);
    let ears = world.ears(&["bench/#"]);
    let node = world.spawn(node);
    ears.wait("it is up", |m| m.topic == "bench/n1/STATUS");
    let playbook = world.path("playbook");
    std::fs::write(&playbook, "SEND n1 START\nWAITFOR n1 STARTED\n").expect("playbook");
    let (code, out, error) = ran(tael(&world, &["play"]).arg(&playbook));
    assert_eq!(code, 0, "{out}{error}");
    node.stop();
}

#[test]
fn forgetting_finds_the_root() {
    let world = World::new();
    was_here(&world, "site/two", "align");
    was_here(&world, "site/two", "sort");
    was_here(&world, "lab", "call");
    let (code, out, error) = ran(&mut tael(&world, &["forget", "align", "sort"]));
    assert_eq!((code, &*error), (0, ""), "{out}");
    assert_eq!(
        out,
        "forgot align, offline on h\nforgot sort, offline on h\n"
    );
    // Each name is looked for where the first one is.
    was_here(&world, "site/two", "align");
    let elsewhere = "forget call: nothing is retained about it below site/two; call is below lab: \
                     --root lab";
    refuses(
        &mut tael(&world, &["forget", "align", "call"]),
        65,
        elsewhere,
    );
    // One that is below several roots is not forgotten where another name happens to be.
    was_here(&world, "lab", "sort");
    was_here(&world, "site/two", "sort");
    let several = "sort is below lab, site/two: choose one by --root";
    for names in [["sort", "align"], ["align", "sort"]] {
        refuses(
            &mut tael(&world, &["forget", names[0], names[1]]),
            64,
            several,
        );
    }
    for root in ["lab", "site/two"] {
        let (code, out, _) = ran(&mut tael(&world, &["forget", "sort", "--root", root]));
        assert_eq!((code, out.as_str()), (0, "forgot sort, offline on h\n"));
    }
    let both = "pipelines are below lab, site/two: choose one by --root";
    refuses(&mut tael(&world, &["status", "--prune", "1s"]), 64, both);
    let (code, out, _) = ran(&mut tael(&world, &["forget", "align"]));
    assert_eq!((code, out.as_str()), (0, "forgot align, offline on h\n"));
    let nowhere = "forget nobody: nothing is retained about it below tael; is --root right?";
    refuses(&mut tael(&world, &["forget", "nobody"]), 65, nowhere);
    // The only root that is left. It is not said since when the pipeline is gone.
    let (code, _, error) = ran(&mut tael(&world, &["status", "--prune", "1s"]));
    assert_eq!(code, 0, "{error}");
    assert!(error.contains("left alone"), "{error}");
    assert!(error.contains("call (offline)"), "{error}");
}

#[test]
fn a_broker_without_pipelines_is_said() {
    let world = World::new();
    let none = "the broker knows no pipeline at all: are --broker and --root right?";
    let mut status = tael(&world, &["status", "--who", "seq"]);
    refuses(&mut status, 65, none);
    let mut control = tael(&world, &["control", "seq", "status", "--timeout", "1s"]);
    refuses(&mut control, 75, none);
}
