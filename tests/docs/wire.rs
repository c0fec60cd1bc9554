//! Messages, checks and metrics on the pages.

use std::fs;

use serde_json::Value;

use crate::common::{World, ran, wait_until};
use crate::page::{of_kind, one};

#[test]
fn checks_say_what_they_are_said_to_say() {
    let figures = |text: &str| {
        let masked: String = text
            .chars()
            .map(|c| if c.is_ascii_digit() { '0' } else { c })
            .collect();
        let words = masked.split_whitespace().scan(false, |host, word| {
            let is_host = std::mem::replace(host, word == "on");
            let figure = !is_host
                && word.starts_with('0')
                && word.trim_end_matches(',').ends_with(['s', 'm', 'h']);
            let end = if word.ends_with(',') { "," } else { "" };
            Some(match (is_host, figure) {
                (true, _) => format!("HOST{end}"),
                (_, true) => format!("TIME{end}"),
                _ => word.to_owned(),
            })
        });
        let mut words: Vec<String> = words.collect();
        words.dedup();
        let text = words.join(" ");
        text.replace("=00000s", "=0s")
            .replace("=00s", "=0s")
            .replace("=000s", "=0s")
    };
    let world = World::new();
    let mut beacon = world.command("tael-beacon");
    assert_eq!(ran(beacon.args(["--once", "--root", "lab"])).0, 0);
    let client = world.client("align", &["-t", "lab/seq/status", "-c", "true"]);
    world.message("lab/seq/status", &[("status", "finished")]);
    let check = |command: &str| {
        let words = command.strip_prefix("tael ").expect("tael");
        ran(world.tael(words.split(' ')).env("TAEL_LOG", "warn")).1
    };
    wait_until("the end is retained", || {
        check("tael check --who align --root lab").contains("last run finished")
    });
    client.kill();
    wait_until("the client is lost", || {
        check("tael check --who align --root lab").contains("is lost")
    });
    for block in of_kind("sh check") {
        let mut lines = block.text.lines();
        while let Some(command) = lines.next() {
            let command = command.strip_prefix("$ ").expect("a command");
            let printed = lines.next().expect("what it prints");
            assert_eq!(
                figures(&check(command)),
                figures(printed),
                "{}",
                block.place()
            );
        }
    }
}

/// Returns a message for comparison, with fixed numbers, hosts and users.
fn alike(value: &mut Value) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                match key.as_str() {
                    "host" | "user" | "version" | "time_elapsed" => *value = "some".into(),
                    "since" | "until" | "ts" | "last_success" => *value = 0.into(),
                    _ => alike(value),
                }
            }
        }
        Value::Array(list) => list.iter_mut().for_each(alike),
        _ => {}
    }
}

#[test]
fn a_run_publishes_what_the_protocol_says() {
    let shown: Vec<(String, Value)> = one("text wire")
        .text
        .lines()
        .map(|line| {
            let (topic, payload) = line.split_once(' ').expect("a topic");
            let mut payload = serde_json::from_str(payload).expect(line);
            alike(&mut payload);
            (topic.to_owned(), payload)
        })
        .collect();
    let world = World::new();
    let ears = world.ears(&["lab/#"]);
    let passed = ["--payload-passthrough", "SAMPLE"];
    let run = ["-t", "lab/seq/status", "-c", "true"];
    let client = world.client("align", &[&run[..], &passed].concat());
    world.message(
        "lab/seq/status",
        &[("status", "finished"), ("sample", "S1")],
    );
    let last = "lab/infrastructure/pipelines/align/last";
    ears.wait("the last end", |m| m.topic == last);
    client.stop();
    ears.wait("offline", |m| m.payload["state"] == "offline");
    let heard: Vec<(String, Value)> = ears
        .all()
        .into_iter()
        .map(|mut message| {
            alike(&mut message.payload);
            (message.topic, message.payload)
        })
        .collect();
    // Messages of one topic come in order. `last` may come before or after the status.
    let sorted = |mut list: Vec<(String, Value)>| {
        list.sort_by(|a, b| a.0.cmp(&b.0));
        list
    };
    assert_eq!(sorted(heard), sorted(shown));
}

#[test]
fn metrics_are_those_of_the_page() {
    let figures = |text: &str| -> Vec<String> {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        lines
            .map(|line| match line.rsplit_once(' ') {
                Some((name, _)) if name.contains("_seconds") => name.to_owned(),
                _ => line.to_owned(),
            })
            .collect()
    };
    let shown = figures(&one("text metrics").text);
    let world = World::new();
    let file = world.path("tael.prom");
    let metrics = ["--metrics", file.to_str().expect("UTF-8")];
    let run = ["-t", "lab/seq/status", "-c", "true"];
    let client = world.client("align", &[&run[..], &metrics].concat());
    world.message("lab/seq/status", &[("status", "finished")]);
    let mut written = Vec::new();
    wait_until("the run is in the file", || {
        written = figures(&fs::read_to_string(&file).unwrap_or_default());
        written.contains(&r#"tael_units_total{who="align",end="succeeded"} 1"#.to_owned())
            && written.contains(&r#"tael_outbox_messages{who="align"} 0"#.to_owned())
    });
    assert_eq!(written, shown);
    client.stop();
}
