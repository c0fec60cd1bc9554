//! Those who ask, and stand still: nothing reads their answers, or they are stopped.

use std::fs;
use std::io::Read as _;
use std::process::Child;
use std::thread::sleep;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::asking::start;
use crate::blocked_output::full_pipe;
use crate::common::raw::{Heard, Raw, publish_with, string};
use crate::common::{World, ended, wait_until};

const ASK: &str = "lab/ask";

/// Number of tasks.
const TASKS: usize = 40;

/// Maximum time for the answer to each; nothing else in these tests takes as long.
const TIMEOUT: Duration = Duration::from_secs(3);

/// Starts who asks `lines`, and has 3 s for each answer.
fn asks(world: &World, options: &[&str], lines: &str) -> Child {
    let options = [&["--reply", "--timeout", "3s"], options].concat();
    start(world.command("tael-message"), &options, lines)
}

fn pid(child: &Child) -> Pid {
    Pid::from_raw(child.id().cast_signed())
}

/// Returns the questions, which wait for their answers.
fn asked(raw: &mut Raw, count: usize) -> Vec<Heard> {
    let question = |_| raw.hear("a question", |heard| heard.topic == ASK);
    (0..count).map(question).collect()
}

/// Answers each of `questions` with `size` bytes.
fn answer(raw: &mut Raw, questions: &[Heard], size: usize) {
    for question in questions {
        let mut properties = vec![0x09];
        properties.extend(string(&question.correlation));
        let payload = vec![b'x'; size];
        let reply = question.reply.as_bytes();
        raw.send(&publish_with(reply, &payload, None, &properties, false));
    }
}

#[track_caller]
fn all_are_answered(child: Child) {
    let (code, stdout, stderr) = ended(child);
    assert!(
        stderr.contains("40 sent, 40 answered, 0 failed,"),
        "{stderr}"
    );
    assert_eq!((code, stdout.lines().count()), (0, TASKS), "{stderr}");
}

#[test]
fn answers_that_are_read_slowly_are_not_missing() {
    let world = World::new();
    let mut raw = Raw::connect(world.broker.port());
    raw.subscribe(ASK);
    let mut child = asks(&world, &["-l"], &"{}\n".repeat(TASKS));
    let questions = asked(&mut raw, TASKS);
    // More than a pipe holds; the others come when it waits for the reader.
    answer(&mut raw, &questions[..5], 30_000);
    let stdout = child.stdout.as_mut().expect("stdout");
    stdout.read_exact(&mut [0]).expect("it prints");
    answer(&mut raw, &questions[5..], 30_000);
    // By then each would be missing.
    sleep(TIMEOUT + Duration::from_secs(1));
    all_are_answered(child);
}

#[test]
fn answers_that_come_while_the_asker_is_stopped_are_not_missing() {
    let world = World::new();
    let mut raw = Raw::connect(world.broker.port());
    raw.subscribe(ASK);
    let child = asks(&world, &["-l"], &"{}\n".repeat(TASKS));
    let questions = asked(&mut raw, TASKS);
    kill(pid(&child), Signal::SIGSTOP).expect("stop");
    answer(&mut raw, &questions, 30_000);
    sleep(TIMEOUT + Duration::from_secs(1));
    kill(pid(&child), Signal::SIGCONT).expect("continue");
    all_are_answered(child);
}

#[test]
fn what_does_not_come_after_a_standstill_is_missing() {
    let world = World::new();
    let mut raw = Raw::connect(world.broker.port());
    raw.subscribe(ASK);
    let child = asks(&world, &[], "");
    asked(&mut raw, 1);
    kill(pid(&child), Signal::SIGSTOP).expect("stop");
    sleep(TIMEOUT + Duration::from_secs(1));
    kill(pid(&child), Signal::SIGCONT).expect("continue");
    let (code, stdout, stderr) = ended(child);
    assert_eq!((code, &*stdout), (75, ""), "{stderr}");
}

#[test]
fn signals_end_an_asker_whose_output_nothing_reads() {
    let world = World::new();
    let mut raw = Raw::connect(world.broker.port());
    raw.subscribe(ASK);
    for (options, signal) in [
        (&[][..], Signal::SIGTERM),
        (&["-l"], Signal::SIGINT),
        (&["-l"], Signal::SIGTERM),
    ] {
        let mut child = asks(&world, options, "{}\n");
        let questions = asked(&mut raw, 1);
        // More than a pipe holds.
        answer(&mut raw, &questions, 300_000);
        let mut stdout = child.stdout.take().expect("stdout");
        stdout.read_exact(&mut [0]).expect("it prints");
        kill(pid(&child), signal).expect("signal");
        wait_until("it ends", || child.try_wait().expect("wait").is_some());
    }
}

#[test]
fn a_signal_ends_an_asker_whose_short_answer_finds_no_room() {
    let world = World::new();
    let mut raw = Raw::connect(world.broker.port());
    raw.subscribe(ASK);
    let (reader, writer) = full_pipe();
    let mut command = world.command("tael-message");
    command.args(["-t", ASK, "--reply"]).stdout(writer);
    let mut asker = world.spawn(command);
    let questions = asked(&mut raw, 1);
    answer(&mut raw, &questions, 1);
    // A thread of this name ends it.
    wait_until("it is about to print", || {
        let tasks = fs::read_dir(format!("/proc/{}/task", asker.pid())).expect("tasks");
        let mut names = tasks
            .flatten()
            .map(|task| fs::read_to_string(task.path().join("comm")));
        names.any(|name| name.is_ok_and(|name| name.trim() == "give-up"))
    });
    asker.signal(Signal::SIGTERM);
    assert_eq!(asker.wait(), 143);
    drop(reader);
}
