//! Text of senders that hides, reorders or restyles what people read. No output shows it as it is.

use crate::common::{World, ran, wait_until};
use nix::sys::signal::Signal;
use serde_json::json;

/// One of each kind: controls, direction marks, zero width, separators, tags, selectors,
/// noncharacters.
const HIDDEN: &str = "\u{1b}\u{85}\u{ad}\u{200b}\u{200d}\u{200f}\u{202e}\u{2028}\u{2029}\u{2066}\
                      \u{feff}\u{fffe}\u{fdd0}\u{e0041}\u{e0100}\u{1ffff}";

#[track_caller]
fn shows_none(what: &str, text: &str) {
    assert!(!text.is_empty(), "{what} says nothing");
    let found: Vec<char> = text.chars().filter(|c| HIDDEN.contains(*c)).collect();
    assert!(found.is_empty(), "{what} shows {found:?}");
}

#[test]
fn no_output_shows_hidden_characters() {
    let world = World::new();
    let init = "%%{init: {'theme':'dark'}}%%";
    let text = format!("{init}{HIDDEN}");
    let presence = json!({
        "state": text, "who": "p", "host": text, "version": text, "since": 5,
        "triggers": [{"name": text, "topics": [text], "absent": null}],
    });
    let mut command = world.tael(["message", "--retain", "-t"]);
    command.arg("lab/infrastructure/pipelines/p/presence");
    assert_eq!(ran(command.args(["-m", &presence.to_string()])).0, 0);
    for form in [
        &[][..],
        &["--json"],
        &["--graph", "mermaid"],
        &["--graph", "dot"],
        &["--graph", "svg"],
    ] {
        let mut status = world.tael(["status", "--root", "lab"]);
        let (code, out, stderr) = ran(status.args(form).env("TAEL_LOG", "warn"));
        assert_eq!((code, stderr.as_str()), (0, ""), "{form:?}");
        shows_none(&format!("status {form:?}"), &out);
        assert!(!form.contains(&"mermaid") || !out.contains("%%{"), "{out}");
    }
    for json in [false, true] {
        let mut watch = world.tael(["watch", "-t", "lab/#", "-n", "1"]);
        watch.args(json.then_some("--json"));
        let (code, out, _) = ran(&mut watch);
        assert_eq!(code, 0);
        shows_none("watch", &out);
    }
    let mut client = world.client("q", &["-t", "lab/x/#", "--when", "", "-c", "true"]);
    // A refused event, and an attribute that is left out, on topics that brokers accept.
    let topic = "lab/x/\u{200b}\u{202e}\u{e0041}";
    let payload = json!({"key\u{202e}\u{2028}": format!("a\0{HIDDEN}")}).to_string();
    world.publish(topic, payload, &[]);
    world.publish(topic, format!("junk{HIDDEN}"), &[]);
    wait_until("both are judged", || {
        let events = world.report("q")["events"].clone();
        events["accepted"] == 1 && events["refused"] == 1
    });
    client.signal(Signal::SIGTERM);
    assert_eq!(client.wait(), 0);
    let log = client.log_text();
    assert!(
        log.contains("event refused") && log.contains("left out"),
        "{log}"
    );
    shows_none("the log", &log);
}
