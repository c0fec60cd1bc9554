//! Output of commands: kept in order, bounded, and shown without gaps as zeros.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Command;
use std::thread::JoinHandle;

use crate::common::pty::Terminal;
use crate::common::{self, World, ran, wait_until};
use serde_json::Value;

const SEQ: &str = "lab/seq/status";
const FINISHED: &[(&str, &str)] = &[("status", "finished")];

fn only_unit(world: &World) -> String {
    let (code, out, stderr) = ran(&mut world.tael(["work", "list", "--json"]));
    assert_eq!(code, 0, "{stderr}");
    let units: Value = serde_json::from_str(&out).expect("json");
    units[0]["unit"].as_str().expect("id").to_owned()
}

/// Returns the file of a stream of the only unit.
fn file(world: &World, stream: &str) -> PathBuf {
    let folder = world.state().join("p/units").join(only_unit(world));
    folder.join(stream)
}

fn results(world: &World, options: &[&str]) -> Command {
    let mut results = world.tael(["work", "results", &only_unit(world)]);
    results.args(options);
    results
}

fn follow(world: &World) -> JoinHandle<(i32, String, String)> {
    let mut results = results(world, &["--follow"]);
    std::thread::spawn(move || ran(&mut results))
}

fn go(world: &World) {
    fs::write(world.path("go"), "").expect("go");
}

#[test]
fn what_a_command_opens_anew_is_written_behind_what_it_wrote() {
    let world = World::new();
    let command = r#"
        echo one; echo first >&2
        until [ -e "$OUT/go" ]; do sleep 0.02; done
        echo two >/dev/stdout
        echo second >/dev/stderr
        echo third | tee /dev/stderr >/dev/null
        echo fourth >/proc/self/fd/2
        echo three"#;
    let ears = world.ears(&["lab/#"]);
    let client = world.client("p", &["-t", SEQ, "-c", command]);
    world.message(SEQ, FINISHED);
    ears.status("p", "started");
    let follower = follow(&world);
    go(&world);
    let (code, out, stderr) = follower.join().expect("follower");
    assert_eq!((code, out.as_str()), (0, "one\ntwo\nthree\n"), "{stderr}");
    let (_, stderr, _) = ran(&mut results(&world, &["--stderr"]));
    assert_eq!(stderr, "first\nsecond\nthird\nfourth\n");
    client.stop();
}

/// A command that writes more than is kept, and ends when the test lets it.
const LONG: &str = r#"printf HEAD; head -c 3000000 /dev/zero | tr '\0' x
    until [ -e "$OUT/go" ]; do sleep 0.02; done; printf TAIL"#;

#[test]
fn a_follower_is_told_of_what_is_missing_and_sees_no_zeros() {
    let world = World::new();
    let ears = world.ears(&["lab/#"]);
    let options = ["-t", SEQ, "-c", LONG, "--max-output", "65536"];
    let client = world.client("p", &options);
    world.message(SEQ, FINISHED);
    ears.status("p", "started");
    let stdout = file(&world, "stdout");
    wait_until("all is written", || {
        fs::metadata(&stdout).is_ok_and(|meta| meta.len() == 3_000_004)
    });
    // The reader follows it to its end.
    let (code, out, stderr) = ran(&mut results(&world, &[]));
    assert_eq!(code, 125, "{stderr}");
    assert!(stderr.contains("bytes were dropped here"), "{stderr}");
    assert!(out.starts_with("HEADx") && out.ends_with('x') && !out.contains('\0'));
    assert_eq!(out.len(), 65536);
    let follower = follow(&world);
    go(&world);
    let (code, out, stderr) = follower.join().expect("follower");
    assert_eq!(code, 0, "{stderr}");
    assert!(stderr.contains("bytes were dropped here"), "{stderr}");
    assert!(out.starts_with("HEADx") && out.ends_with("xTAIL") && !out.contains('\0'));
    client.stop();
}

#[test]
fn where_files_have_no_holes_the_end_is_kept_and_the_disk_is_bounded() {
    let world = World::new();
    let ears = world.ears(&["lab/#"]);
    let mut command = world.command("tael-client");
    command.env("TAEL_TEST_NO_HOLES", "1");
    command.args(["--who", "p", "--root", "lab", "-t", SEQ, "-c", LONG]);
    command.args(["--max-output", "65536"]);
    let client = world.online("p", command);
    // A client looks at its state while it connects.
    wait_until("the log says that the end is kept", || {
        client.log_text().contains("cannot have holes")
    });
    world.message(SEQ, FINISHED);
    ears.status("p", "started");
    let stdout = file(&world, "stdout");
    wait_until("it was cut", || {
        fs::metadata(&stdout).is_ok_and(|meta| meta.len() == 32768)
    });
    go(&world);
    ears.status("p", "finished");
    let (code, out, stderr) = ran(&mut results(&world, &[]));
    assert_eq!(code, 0, "{stderr}");
    assert!(
        stderr.contains("2934472 bytes were dropped here"),
        "{stderr}"
    );
    assert!(out.starts_with("HEADx") && out.ends_with("xTAIL"));
    assert_eq!(out.len(), 65536);
    assert_eq!(fs::metadata(&stdout).expect("meta").len(), 65536);
    client.stop();
}

#[test]
fn a_file_that_becomes_shorter_is_noticed() {
    let world = World::new();
    let ears = world.ears(&["lab/#"]);
    let command = r#"echo a long line; until [ -e "$OUT/go" ]; do sleep 0.02; done; echo more"#;
    let client = world.client("p", &["-t", SEQ, "-c", command]);
    world.message(SEQ, FINISHED);
    ears.status("p", "started");
    let stdout = file(&world, "stdout");
    wait_until("it is written", || {
        fs::metadata(&stdout).is_ok_and(|meta| meta.len() > 0)
    });
    let mut follower = results(&world, &["--follow"]);
    let shown = File::create(world.path("shown")).expect("file");
    let mut follower = common::spawn(&world.dir, follower.stdout(shown));
    wait_until("it is shown", || world.lines("shown").len() == 1);
    File::create(&stdout).expect("cut");
    wait_until("it is noticed", || {
        follower.log_text().contains("has become shorter")
    });
    go(&world);
    assert_eq!(follower.wait(), 0);
    assert_eq!(world.lines("shown"), ["a long line", "more"]);
    client.stop();
}

#[test]
fn a_terminal_shows_what_runs_are_about_and_what_they_write() {
    let world = World::new();
    let line =
        r#"echo "aligning $SAMPLE"; echo oops >&2; printf 'red\033[31m'; test "$SAMPLE" = S1"#;
    let ours = world.command("tael-client");
    let mut command = Command::new("env");
    command.env_clear();
    for (name, value) in ours.get_envs() {
        command.envs(value.map(|value| (name, value)));
    }
    // As a person has it: the terminal of the tests asks for warnings only.
    command.args(["-u", "TAEL_LOG"]).arg(ours.get_program());
    command.args(["--who", "p", "--root", "lab", "-t", "lab/seq/status"]);
    command.args(["-c", line, "--envreq", "SAMPLE"]);
    let mut terminal = Terminal::start(command, 120);
    terminal.wait_for("connected to");
    terminal.wait_for("waiting for messages on lab/seq/status");
    for (sample, end) in [("S1", "finished after"), ("S2", "failed after")] {
        world.message(
            "lab/seq/status",
            &[("status", "finished"), ("SAMPLE", sample)],
        );
        terminal.wait_for(end);
        let screen = terminal.text();
        let place = |text: &str| {
            screen
                .find(text)
                .unwrap_or_else(|| panic!("{text}: {screen}"))
        };
        let shown = place(&format!(" | aligning {sample}"));
        assert!(
            place(&format!("started SAMPLE={sample}")) < shown,
            "{screen}"
        );
        assert!(shown < place(end), "{screen}");
        // The start of each line is the end of the id, by which the run can be named.
        let unit = &screen[shown - 6..shown];
        assert!(screen.contains(&format!("{unit} ! oops")), "{screen}");
        assert!(
            screen.contains(&format!(r"{unit} | red\u{{1b}}[31m")),
            "{screen}"
        );
        assert!(screen.contains(&format!("unit={unit}")), "{screen}");
        let (_, results, _) = ran(&mut world.tael(["work", "results", unit]));
        assert!(results.contains(&format!("aligning {sample}")), "{results}");
    }
    let screen = terminal.text();
    assert_eq!(
        screen.matches("started").count(),
        2,
        "a line each: {screen}"
    );
    assert!(
        !screen.contains("stderr: "),
        "it was shown before: {screen}"
    );
    terminal.press("\u{3}");
    assert_eq!(terminal.end().0, 0);
}
