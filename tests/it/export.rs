//! Environment and standard input of a command.

use std::collections::BTreeMap;
use std::fs;

use crate::common::raw::Raw;
use crate::common::{self, Process, World, wait_until};

const SEQ: &str = "lab/seq/status";

/// A command that writes its environment, arguments and standard input to files.
const TAKE: &str = r#"#!/bin/sh
env -0 >"$OUT/env"
printf '%s\0' "$@" >"$OUT/arguments"
cat >"$OUT/stdin"
"#;

/// A client whose command writes down what it gets.
struct Recorder {
    world: World,
    client: Process,
    runs: usize,
}

impl Recorder {
    /// Starts it with `arguments` for the command and `options` for the client.
    fn new(arguments: &str, options: &[&str]) -> Self {
        let world = World::new();
        let take = world.script("take", TAKE);
        let command = format!("{} {arguments}", take.display());
        let base = ["-t", SEQ, "--when", "", "-c", &command];
        let client = world.client("env", &[&base[..], options].concat());
        Self {
            world,
            client,
            runs: 0,
        }
    }

    /// Returns the environment of the command for an event with this payload.
    #[track_caller]
    fn run(&mut self, payload: impl AsRef<[u8]>) -> BTreeMap<String, String> {
        self.world
            .publish(SEQ, payload, &[("tael-id", &format!("E{}", self.runs))]);
        self.runs += 1;
        let done = self.runs;
        self.world.wait_report("env", "/units/succeeded", done);
        self.list("env")
            .iter()
            .filter_map(|line| line.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect()
    }

    fn list(&self, name: &str) -> Vec<String> {
        let text = fs::read_to_string(self.world.path(name)).expect(name);
        text.split_terminator('\0').map(str::to_owned).collect()
    }

    /// Returns the attributes that were left out, by the log.
    fn left_out(&self, key: &str) -> usize {
        let line = format!("attribute '{key}' is left out of the environment");
        self.client.log_text().matches(&line).count()
    }
}

fn starting<'a>(env: &'a BTreeMap<String, String>, start: &str) -> Vec<(&'a str, &'a str)> {
    env.iter()
        .filter(|(name, _)| name.starts_with(start))
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect()
}

#[test]
fn every_attribute_is_exported_under_attr_unless_told_otherwise() {
    let mut recorder = Recorder::new("", &[]);
    let env = recorder.run(
        r#"{"status":"finished","run-id":7,"x":1.50,"on":true,"none":null,
            "list":[1, "a b"],"map":{"k" : null},"ä.b":"é","":"empty"}"#,
    );
    let want = [
        ("ATTR_", "empty"),
        ("ATTR_LIST", r#"[1,"a b"]"#),
        ("ATTR_MAP", r#"{"k":null}"#),
        ("ATTR_NONE", ""),
        ("ATTR_ON", "true"),
        ("ATTR_RUN_ID", "7"),
        ("ATTR_STATUS", "finished"),
        ("ATTR_X", "1.50"),
        ("ATTR___B", "é"),
    ];
    assert_eq!(starting(&env, "ATTR_"), want);
    for bare in ["STATUS", "RUN_ID", "X", "LIST"] {
        assert!(!env.contains_key(bare), "{bare}");
    }
    recorder.client.stop();
}

#[test]
fn a_prefix_of_ones_own_replaces_attr() {
    let mut recorder = Recorder::new("", &["--envprefix", "lims_1"]);
    let env = recorder.run(r#"{"status":"finished","sample":"S1"}"#);
    let want = [("lims_1_SAMPLE", "S1"), ("lims_1_STATUS", "finished")];
    assert_eq!(starting(&env, "lims_1_"), want);
    assert!(starting(&env, "ATTR_").is_empty());
    assert!(!env.contains_key("SAMPLE"));
    recorder.client.stop();
}

#[test]
fn required_attributes_are_bare_and_alone() {
    let mut recorder = Recorder::new("", &["--envreq", "sample", "RUN_ID"]);
    let env = recorder.run(r#"{"sample":"S1","run-id":null,"lane":"3"}"#);
    assert_eq!((&*env["SAMPLE"], &*env["RUN_ID"]), ("S1", ""));
    assert!(!env.contains_key("LANE") && starting(&env, "ATTR_").is_empty());
    recorder.client.stop();
}

#[test]
fn required_attributes_and_a_prefix_together() {
    let mut recorder = Recorder::new("", &["--envreq", "sample", "--envprefix", "A"]);
    let env = recorder.run(r#"{"sample":"S1","lane":"3"}"#);
    assert_eq!(env["SAMPLE"], "S1");
    assert_eq!(starting(&env, "A_"), [("A_LANE", "3"), ("A_SAMPLE", "S1")]);
    assert!(!env.contains_key("LANE"));
    recorder.client.stop();
}

#[test]
fn the_client_says_what_it_runs_for() {
    let mut recorder = Recorder::new("", &[]);
    // A sender cannot set it instead.
    let env = recorder.run(r#"{"TAEL_WHO":"forged","TAEL_EVENT":"forged"}"#);
    assert_eq!(env["TAEL_TOPIC"], SEQ);
    assert_eq!(env["TAEL_REASON"], "lab/seq/status finished");
    assert_eq!(env["TAEL_WHO"], "env");
    assert_eq!(env["TAEL_EVENT"], "E0");
    assert_eq!(env["TAEL_ATTEMPT"], "1");
    assert_eq!(env["ATTR_TAEL_WHO"], "forged");
    let unit = recorder
        .world
        .state()
        .join("env/units")
        .join(&env["TAEL_UNIT"]);
    assert!(unit.is_dir(), "{}", unit.display());
    recorder.client.stop();
}

#[test]
fn standard_input_is_the_payload_byte_for_byte() {
    let mut recorder = Recorder::new("", &[]);
    let payload = " {\n\"b\" : 1.50, \"a\":\"\\u00e9\\u0000\", \"a\": \"é\" }\r\n\n";
    recorder.run(payload);
    let stdin = fs::read(recorder.world.path("stdin")).expect("stdin");
    assert_eq!(stdin, payload.as_bytes());
    recorder.client.stop();
}

#[test]
fn what_cannot_be_a_value_is_left_out_and_the_run_goes_on() {
    let mut recorder = Recorder::new("", &["--max-payload", "4194304"]);
    let env = recorder.run(r#"{"nul":"a\u0000b","good":"1"}"#);
    assert_eq!(starting(&env, "ATTR_"), [("ATTR_GOOD", "1")]);
    assert_eq!(recorder.left_out("nul"), 1);
    // ATTR_BIG= and the final NUL count against the limit of the system.
    let most = 128 * 1024 - "ATTR_BIG=\0".len();
    for (length, passed) in [(most, true), (most + 1, false)] {
        let env = recorder.run(format!(r#"{{"big":"{}","good":"2"}}"#, "x".repeat(length)));
        assert_eq!(
            env.get("ATTR_BIG").is_some_and(|v| v.len() == length),
            passed,
            "{length}"
        );
        assert_eq!(env["ATTR_GOOD"], "2");
    }
    assert_eq!(recorder.left_out("big"), 1);
    // Each of these fits, but not all together.
    let many: Vec<String> = (0..30)
        .map(|n| format!(r#""k{n}":"{}""#, "y".repeat(100_000)))
        .collect();
    let env = recorder.run(format!(r#"{{{}}}"#, many.join(",")));
    assert_eq!(starting(&env, "ATTR_K").len(), 10);
    assert_eq!(recorder.left_out("k19"), 1);
    let log = recorder.client.log_text();
    assert!(log.contains("and 10 more attributes are left out"), "{log}");
    recorder.client.stop();
}

#[test]
fn ninety_thousand_attributes_are_as_many_as_fit() {
    let world = World::new();
    let client = world.client("p", &["-t", SEQ, "-c", r#"echo ran >>"$OUT/runs""#]);
    let attributes: Vec<String> = (0..90_000).map(|n| format!(r#""k{n}":1"#)).collect();
    let payload = format!(r#"{{"status":"finished",{}}}"#, attributes.join(","));
    world.publish(SEQ, payload, &[]);
    wait_until("it runs", || !world.lines("runs").is_empty());
    let log = client.log_text();
    assert!(log.contains("more attributes are left out"));
    assert!(log.matches("left out of the environment").count() < 100);
    client.stop();
}

/// Returns `count` attributes whose environment entries have a few bytes each.
fn small(count: usize) -> String {
    let attributes: Vec<String> = (0..count).map(|n| format!(r#""{n:x}":"""#)).collect();
    format!(r#"{{"status":"finished",{}}}"#, attributes.join(","))
}

#[test]
fn three_hundred_thousand_attributes_are_as_many_as_the_system_allows() {
    // With the usual stack limit, with a small one, and with large inherited variables. An unoptimised
    // binary reads its options with 400 KiB of stack.
    for prepare in [
        "",
        "ulimit -s 1024;",
        r#"v=$(printf %0100000d 0); for n in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do export "V$n=$v"; done;"#,
    ] {
        let world = World::new();
        let tael = common::binary("tael-client");
        let mut command = world.command("tael-client");
        let environment: Vec<_> = command
            .get_envs()
            .filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned())))
            .collect();
        let script = format!("{prepare} exec {} \"$@\"", tael.display());
        let options = ["--who", "p", "--root", "lab", "-t", SEQ, "--envprefix", "A"];
        command = std::process::Command::new("/bin/sh");
        command
            .env_clear()
            .envs(environment)
            .args(["-c", &script, "sh"])
            .args(options)
            .args([
                "--max-payload",
                "8388608",
                "-c",
                r#"env | grep -c ^A_ >>"$OUT/runs""#,
            ])
            .stdin(std::process::Stdio::null());
        let client = world.online("p", command);
        world.publish(SEQ, small(300_000), &[("tael-id", "E0")]);
        wait_until("it runs", || !world.lines("runs").is_empty());
        let exported: usize = world.lines("runs")[0].parse().expect("number");
        assert!((1000..150_000).contains(&exported), "{prepare}: {exported}");
        assert!(client.log_text().contains("left out"), "{prepare}");
        client.stop();
    }
}

#[test]
fn ids_and_traces_of_senders_are_checked_before_commands_find_them() {
    let mut recorder = Recorder::new("", &[]);
    let id = "x$(touch $OUT/pwned)";
    let properties = [("tael-id", id), ("traceparent", id)];
    recorder.world.publish(SEQ, "{}", &properties);
    recorder.runs = 1;
    recorder.world.wait_report("env", "/units/succeeded", 1);
    let ours = recorder.list("env");
    let event = ours
        .iter()
        .find_map(|entry| entry.strip_prefix("TAEL_EVENT="));
    assert_eq!(event.expect("id").len(), 26, "an id of our own");
    assert!(!ours.iter().any(|entry| entry.starts_with("TRACEPARENT=")));
    recorder.client.stop();
}

#[test]
fn of_attributes_with_one_name_the_first_is_exported() {
    let mut recorder = Recorder::new("", &[]);
    let env = recorder.run(r#"{"run-id":"1","RUN.ID":"2","run_id":"3"}"#);
    assert_eq!(starting(&env, "ATTR_"), [("ATTR_RUN_ID", "1")]);
    assert_eq!(
        (recorder.left_out("RUN.ID"), recorder.left_out("run_id")),
        (1, 1)
    );
    recorder.client.stop();
}

#[test]
fn no_sender_reaches_the_loader_or_the_shell() {
    let mut recorder = Recorder::new("", &[]);
    let env = recorder.run(
        r#"{"LD_PRELOAD":"/nowhere/evil.so","PATH":"/nowhere","IFS":"x","BASH_ENV":"/nowhere","ENV":"/nowhere"}"#,
    );
    assert_eq!(env["ATTR_LD_PRELOAD"], "/nowhere/evil.so");
    assert_eq!(env["ATTR_PATH"], "/nowhere");
    for name in ["LD_PRELOAD", "IFS", "BASH_ENV", "ENV"] {
        assert!(!env.contains_key(name), "{name}");
    }
    assert_eq!(env["PATH"], std::env::var("PATH").expect("PATH"));
    recorder.client.stop();
}

/// Values that would have an effect if a shell ever read them as code.
const HOSTILE: [&str; 8] = [
    r#"$(touch "$OUT/pwned")"#,
    r#"`touch "$OUT/pwned"`"#,
    r#"; touch "$OUT/pwned""#,
    "\ntouch \"$OUT/pwned\"\n",
    r#"'; touch "$OUT/pwned"; '"#,
    r#""; touch "$OUT/pwned"; ""#,
    r#"&& touch "$OUT/pwned" #"#,
    r#"| touch "$OUT/pwned""#,
];

#[test]
fn json_as_python_and_powershell_write_it() {
    let command = r#"env -0 >"$OUT/env.new"; cat >"$OUT/stdin"; mv "$OUT/env.new" "$OUT/env""#;
    let world = World::new();
    let options = ["--when", "x=NaN", "--payload-passthrough", "ATTR_FILE"];
    let base = ["-t", SEQ, "-c", command];
    let client = world.client("p", &[&base[..], &options].concat());
    let text = concat!(
        r#"{"x":NaN,"list":[-Infinity,1e400],"file":"a\udcfcb","other":"\ud800","#,
        r#""map":{"k":"\udcff"},"$serde_json::private::Number":"1"}"#
    );
    let utf16: Vec<u8> = std::iter::once(0xfeff)
        .chain(text.encode_utf16())
        .flat_map(u16::to_le_bytes)
        .collect();
    let marked = ["\u{feff}", text].concat();
    let mut raw = Raw::connect(world.broker.port());
    raw.subscribe("lab/infrastructure/pipelines/p/status");
    for (n, payload) in [text.as_bytes(), marked.as_bytes(), &utf16]
        .into_iter()
        .enumerate()
    {
        world.publish(SEQ, payload, &[("tael-id", &format!("E{n}"))]);
        world.wait_report("p", "/units/succeeded", n + 1);
        let env = fs::read(world.path("env")).expect("env");
        let has = |entry: &[u8]| env.split(|b| *b == 0).any(|e| e == entry);
        assert!(has(b"ATTR_X=NaN"));
        assert!(has(br#"ATTR_LIST=["-Infinity",1e+400]"#));
        assert!(has(b"ATTR_FILE=a\xfcb"));
        assert!(has("ATTR_OTHER=\u{fffd}".as_bytes()));
        assert!(has(br#"ATTR_MAP={"k":"\udcff"}"#));
        assert!(has(b"ATTR__SERDE_JSON__PRIVATE__NUMBER=1"));
        assert_eq!(fs::read(world.path("stdin")).expect("stdin"), payload);
        let status = raw.hear("the end", |heard| heard.text().contains("finished"));
        let passed = r#""ATTR_FILE":"a\udcfcb""#;
        assert!(status.text().contains(passed), "{}", status.text());
    }
    client.stop();
}

#[test]
fn hostile_values_are_values() {
    // Quoted and bare, in a shell and without one, as an argument and as a name.
    let shells: [(&str, &[&str]); 3] = [
        (r#""$ATTR_V" $ATTR_V"#, &[]),
        (r#""$ATTR_V" $ATTR_V"#, &["--shell", "sh"]),
        (r"'$ATTR_V' $ATTR_V", &["--no-shell"]),
    ];
    for (arguments, options) in shells {
        let mut recorder = Recorder::new(arguments, options);
        for value in HOSTILE {
            let payload = serde_json::json!({"v": value, value: "key"}).to_string();
            let env = recorder.run(payload);
            assert_eq!(env["ATTR_V"], value);
            let expanded = !options.contains(&"--no-shell");
            let first = if expanded { value } else { "$ATTR_V" };
            assert_eq!(recorder.list("arguments")[0], first, "{options:?}");
        }
        assert!(!recorder.world.path("pwned").exists(), "{options:?}");
        recorder.client.stop();
    }
}

#[test]
fn without_a_shell_words_are_split_and_nothing_else() {
    let line = r#"a 'b c' "d\"e" $HOME `x` *; >x && y"#;
    let mut recorder = Recorder::new(line, &["--no-shell"]);
    recorder.run("{}");
    let want = ["a", "b c", "d\"e", "$HOME", "`x`", "*;", ">x", "&&", "y"];
    assert_eq!(recorder.list("arguments"), want);
    recorder.client.stop();
}

#[test]
fn a_file_of_variables_may_hold_values_that_are_not_utf8() {
    let world = World::new();
    let file = world.path("variables");
    let command = r#"printf '%s' "$SAMPLE" >"$OUT/sample""#;
    let path = file.to_str().expect("UTF-8");
    let client = world.client("p", &["-t", SEQ, "-c", command, "--env-file", path]);
    // As `env -0` prints them, and as people write them.
    for (n, text) in [(1, &b"A=1\0SAMPLE=caf\xe9\0"[..]), (2, b"SAMPLE='\xfc'\n")] {
        fs::write(&file, text).expect("variables");
        let id = format!("E{n}");
        world.publish(SEQ, r#"{"status":"finished"}"#, &[("tael-id", &id)]);
        world.wait_report("p", "/units/succeeded", n);
        let got = fs::read(world.path("sample")).expect("sample");
        assert_eq!(got, if n == 1 { &b"caf\xe9"[..] } else { b"\xfc" });
    }
    client.stop();
}
