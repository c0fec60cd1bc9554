//! Wrong options and a wrong environment: one clear line, and an exit code that shows where the
//! mistake is.

use std::fs;
use std::net::TcpListener;
use std::os::unix::ffi::OsStrExt;
use std::process::Command;
use std::thread;

use crate::common::ports::free_port;
use crate::common::raw::Scripted;
use crate::common::{self, Setup, World, bare_command, ran, ran_with, refuses, wait_until};
use tempfile::{TempDir, tempdir};

const SEQ: &str = "lab/seq/status";

/// Returns one of our binaries, without a broker.
fn tool(dir: &TempDir, name: &str, arguments: &[&str]) -> Command {
    let mut command = bare_command(dir, name);
    command
        .env("TAEL_LOG_TARGET", "stderr")
        .env("TAEL_LOG", "warn")
        .args(arguments);
    command
}

fn client(dir: &TempDir, arguments: &[&str]) -> Command {
    let mut command = tool(dir, "tael-client", &["--who", "x", "-t", SEQ, "-c", "true"]);
    command.args(arguments);
    command
}

fn message(dir: &TempDir, arguments: &[&str]) -> Command {
    let mut command = tool(dir, "tael-message", &["-t", SEQ]);
    command.args(arguments);
    command
}

#[test]
fn options_that_are_wrong_in_themselves() {
    let dir = tempdir().expect("tempdir");
    let steering = [
        "LD_PRELOAD",
        "ld-preload",
        "PATH",
        "IFS",
        "ENV",
        "BASH_ENV",
        "SHELLOPTS",
        "TAEL_WHO",
    ];
    for name in steering {
        refuses(
            &mut client(&dir, &["--envreq", "SAMPLE", name]),
            64,
            "steers a loader or a shell",
        );
    }
    let cases: [(&[&str], &str); 20] = [
        (&["--envprefix", "LD"], "prefix 'LD'"),
        (&["--envprefix", "1A"], "'1A' cannot begin"),
        (&["-t", "lab/#/status"], "# stands alone"),
        (&["-t", "lab/a+"], "+ stands alone"),
        (&["-t", ""], "filter is empty"),
        (&["-k", "2"], "keep-alive of 2s"),
        (&["-k", "20h"], "keep-alive of 20h"),
        (&["-q", "0"], "QoS 0"),
        (&["-q", "3"], "'3' is not a QoS"),
        (&["--when", "finished"], "not KEY=VALUE"),
        (&["--when", "status==x"], "write status=x"),
        (&["--jobs", "0"], "0 jobs"),
        (&["--jobs", "two"], "not a whole number"),
        (&["--overlap", "maybe"], "'maybe'"),
        (&["--timeout", "soon"], "'soon' is not a duration"),
        (&["--retained", "perhaps"], "'perhaps'"),
        (&["--payload-passthrough", "ts"], "'ts'"),
        (&["--no-shell", "--shell", "sh"], "cannot be used with"),
        (&["--root", "lab/+"], "root"),
        (&["--jbos", "2"], "--jobs"),
    ];
    for (arguments, text) in cases {
        refuses(&mut client(&dir, arguments), 64, text);
    }
    for who in ["a/b", "..", "#", "a\nb", ""] {
        let arguments = ["-t", SEQ, "-c", "true", "--who", who];
        refuses(&mut tool(&dir, "tael-client", &arguments), 64, "name");
    }
    for topic in ["lab/+/status", "lab/#", ""] {
        refuses(&mut tool(&dir, "tael-message", &["-t", topic]), 64, "topic");
    }
    refuses(&mut message(&dir, &["-k", "4s"]), 64, "keep-alive");
    refuses(&mut message(&dir, &["--log", "syslog"]), 64, "'syslog'");
    refuses(message(&dir, &[]).env("TAEL_LOG", "loud"), 64, "'loud'");
    refuses(&mut message(&dir, &["--cert", "x"]), 64, "--cert and --key");
    refuses(
        &mut tool(&dir, "tael", &["watch", "-t", "a#"]),
        64,
        "# stands alone",
    );
    refuses(&mut tool(&dir, "tael", &["dance"]), 64, "dance");
    refuses(&mut tool(&dir, "tael", &["mesage"]), 64, "mean message?");
    refuses(
        &mut tool(&dir, "tael-beacon", &["--interval", "1ms"]),
        64,
        "too short",
    );
    let pairs: [&[&str]; 4] = [
        &["--attr", "status", "finished", "sample"],
        &["status finished"],
        &["--attr", "status=finished", "S1"],
        &["--attr", "status"],
    ];
    for pair in pairs {
        let hint = "an attribute is sample=S1, or --attr sample S1";
        refuses(&mut message(&dir, pair), 64, hint);
    }
    for nameless in [&["--attr", "", "x"][..], &["--attr", "=x"], &["=x"]] {
        refuses(&mut message(&dir, nameless), 64, "needs a name");
    }
    let mut raise = tool(&dir, "tael", &["control", "x", "raise"]);
    refuses(raise.args(["--attr", "a=b", "c"]), 64, "argument 'c'");
    let mut retry = tool(&dir, "tael", &["control", "x", "retry", "U1", "U2"]);
    refuses(&mut retry, 64, "'U2' is one too many");
    for (qos, cause) in [("-q0", "QoS 0"), ("-q2", "QoS 2")] {
        let mut message = message(&dir, &[qos, "--need-listener"]);
        refuses(&mut message, 64, cause);
    }
    for (name, arguments) in [
        ("tael-message", &["-topic", "a"][..]),
        ("tael-client", &["--who", "x", "-topic", "a", "-c", "true"]),
        ("tael", &["watch", "-topic", "a"]),
        ("tael", &["work", "list", "-who", "a"]),
    ] {
        refuses(&mut tool(&dir, name, arguments), 64, "; did you mean --");
    }
    let mut few = Command::new("prlimit");
    few.args(["--nofile=8", "--"])
        .arg(common::binary("tael-client"));
    for (name, value) in client(&dir, &[]).get_envs() {
        few.env(name, value.unwrap_or_default());
    }
    few.args(["--who", "x", "-t", SEQ, "-c", "true"]);
    refuses(&mut few, 73, "ulimit -n");
    let escape = message(&dir, &["--timeout", "\x1b[31m"])
        .output()
        .expect("run");
    assert!(!escape.stderr.contains(&0x1b), "{escape:?}");
    let mut bytes = message(&dir, &["--attr", "a"]);
    refuses(bytes.arg(std::ffi::OsStr::from_bytes(b"\xff")), 64, "UTF-8");
}

#[test]
fn options_that_are_missing() {
    let dir = tempdir().expect("tempdir");
    let cases: [(&str, &[&str], &str); 6] = [
        ("tael-client", &["-t", SEQ, "-c", "true"], "--who"),
        ("tael-client", &["--who", "x", "-c", "true"], "-t"),
        ("tael-client", &["--who", "x", "-t", SEQ], "-c"),
        ("tael-client", &["--who", "x"], "[[trigger]]"),
        ("tael-message", &["--attr", "a", "b"], "-t"),
        ("tael-message", &["-t", SEQ, "--attr", "a"], "--attr"),
    ];
    for (name, arguments, text) in cases {
        refuses(&mut tool(&dir, name, arguments), 64, text);
    }
}

#[test]
fn broker_urls() {
    let dir = tempdir().expect("tempdir");
    for url in [
        "http://broker.example",
        "mqtt://",
        "mqtt://@host",
        "mqtt://host:0",
        "mqtt://host:99999",
        "mqtt://host/path",
        "mqtt://ho st",
        "broker.example,",
        "a,mqtts://b",
    ] {
        refuses(&mut message(&dir, &["--broker", url]), 64, "broker");
    }
    let mut secret = message(&dir, &["--broker", "mqtt://ann:hunter2@host"]);
    let (code, _, stderr) = ran(&mut secret);
    assert_eq!(code, 64);
    assert!(
        stderr.contains("password") && !stderr.contains("hunter2"),
        "{stderr}"
    );
}

#[test]
fn configuration_files() {
    let dir = tempdir().expect("tempdir");
    let file = dir.path().join("tael.toml");
    let path = file.to_str().expect("path");
    let folder = dir.path().to_str().expect("path");
    refuses(
        &mut message(&dir, &["--config", "/nowhere/tael.toml"]),
        78,
        "/nowhere/tael.toml",
    );
    refuses(&mut message(&dir, &["--config", folder]), 78, folder);
    refuses(message(&dir, &[]).env("TAEL_CONFIG", folder), 78, folder);
    let trigger = "[[trigger]]\ntopic = 'a'\ncommand = 'b'\n";
    let twice = format!("{trigger}name = 'n'\n{trigger}name = 'n'\n");
    let cases: [(&str, &str); 15] = [
        ("host = 'a'\n\nport 1883\n", "line 3"),
        ("hots = 'a'\n", "unknown key 'hots'"),
        ("password = 'secret'\n", "unknown key 'password'"),
        ("[client]\njbos = 2\n", "unknown key 'jbos'"),
        ("[client]\njobs = true\n", "'jobs' cannot be true"),
        ("[client]\njobs = 'many'\n", "'many'"),
        ("keepalive = 'soon'\n", "'soon'"),
        ("[client]\nno-shell = 'yes'\n", "'no-shell' cannot be"),
        (&format!("{trigger}jbos = 2\n"), "unknown key 'jbos'"),
        (&format!("{trigger}jobs = 'many'\n"), "'many'"),
        (
            &format!("{trigger}retained = true\n"),
            "'retained' cannot be true",
        ),
        (
            "[[trigger]]\ntopic = 'a#'\ncommand = 'b'\n",
            "# stands alone",
        ),
        (
            "[[trigger]]\ntopic = 'a'\n",
            "trigger 1: there is no command",
        ),
        (&format!("{trigger}envreq = ['LD_PRELOAD']\n"), "LD_PRELOAD"),
        (&twice, "two triggers are called 'n'"),
    ];
    for (text, cause) in cases {
        fs::write(&file, text).expect("write");
        let mut command = tool(&dir, "tael-client", &["--who", "x", "--config", path]);
        refuses(&mut command, 78, cause);
        assert!(ran(&mut command).2.contains(path), "{cause}");
    }
}

#[test]
fn payloads_that_are_no_object() {
    let dir = tempdir().expect("tempdir");
    for bad in ["finished", "[]", "1", r#"{"a":}"#, ""] {
        refuses(&mut message(&dir, &["-m", bad]), 65, "payload");
    }
    for bad in [&b"finished"[..], b"[1]", b"{\"a\":\"\xff\"}", b"{} {}"] {
        for arguments in [&[][..], &["-m", "-"]] {
            let (code, stdout, stderr) = ran_with(&mut message(&dir, arguments), bad);
            assert_eq!(
                (code, &*stdout, stderr.lines().count()),
                (65, "", 1),
                "{stderr}"
            );
        }
    }
}

#[test]
fn passwords() {
    let world = World::new();
    // It works, and warns once that other users see it.
    let mut shown = world.command("tael-message");
    shown
        .env("TAEL_LOG_TARGET", "stderr")
        .args(["-t", SEQ, "-u", "ann", "-P", "hunter2"]);
    let (code, stdout, stderr) = ran(&mut shown);
    assert_eq!(
        (code, &*stdout, stderr.lines().count()),
        (0, "", 1),
        "{stderr}"
    );
    assert!(
        stderr.contains("in ps") && !stderr.contains("hunter2"),
        "{stderr}"
    );
    let empty = world.path("empty");
    fs::write(&empty, "\n").expect("write");
    for (file, cause) in [
        ("/nowhere", "/nowhere"),
        (empty.to_str().expect("path"), "empty"),
    ] {
        refuses(
            &mut message(&world.dir, &["--password-file", file]),
            78,
            cause,
        );
    }
}

#[test]
fn a_second_client_of_one_name() {
    let world = World::new();
    let first = world.client("only", &["-t", SEQ, "-c", "true"]);
    let second = || {
        let mut command = world.command("tael-client");
        command.args(["--who", "only", "-t", SEQ, "-c", "true"]);
        command
    };
    refuses(&mut second(), 73, "'only' runs already");
    let quiet = ran(second().arg("--if-not-running"));
    assert_eq!(quiet, (0, String::new(), String::new()));
    first.kill();
    // A lock of a dead process is free.
    let mut third = second();
    third.args(["--if-not-running", "--root", "lab"]);
    world.online("only", third).stop();
}

#[test]
fn another_name_shares_events_or_runs_them_too() {
    let world = World::new();
    let shared = "$share/g/lab/seq/status";
    for (who, topic, hint) in [
        ("own", SEQ, "which runs every event too"),
        ("shared", shared, "which takes a share of the events"),
    ] {
        let first = world.client(who, &["-t", topic, "-c", "true"]);
        let mut second = world.command("tael-client");
        second.args(["--who", who, "-t", topic, "-c", "true"]);
        refuses(&mut second, 73, hint);
        // In a state folder of its own.
        let mut apart = world.command("tael-client");
        apart.args(["--who", who, "-t", topic, "-c", "true"]);
        apart.env("STATE_DIRECTORY", world.path("apart"));
        refuses(&mut apart, 73, hint);
        first.stop();
    }
}

#[test]
fn filters_that_are_hardly_meant_are_warned_of() {
    let world = World::new();
    let warning = |stderr: &str| stderr.contains("was it $share in double quotes?");
    let options = ["--who", "doubted", "--root", "lab", "-c", "true", "-t"];
    let mut check = world.tael(["client", "--check"]);
    let (code, _, stderr) = ran(check.args(options).arg("/g/lab/seq"));
    assert!(code == 0 && warning(&stderr), "{stderr}");
    let mut check = world.tael(["client", "--check"]);
    let (code, _, stderr) = ran(check.args(options).arg("$share/g/lab/seq"));
    assert!(code == 0 && !stderr.contains("filter"), "{stderr}");
    let client = world.client("doubted", &["-t", "/g/lab/seq", "-c", "true"]);
    wait_until("it warns", || warning(&client.log_text()));
    client.stop();
    let mut kept = world.tael(["message", "-t", "lab/kept", "--retain", "a=1"]);
    assert_eq!(ran(&mut kept).0, 0);
    let mut watch = world.tael(["watch", "-t", "/g/lab/seq", "lab/kept", "-n", "1"]);
    let (code, shown, stderr) = ran(&mut watch);
    assert!(code == 0 && shown.contains("lab/kept"), "{shown}{stderr}");
    assert!(warning(&stderr), "{stderr}");
}

#[test]
fn no_place_for_state() {
    let dir = tempdir().expect("tempdir");
    let mut homeless = client(&dir, &[]);
    for name in ["STATE_DIRECTORY", "XDG_STATE_HOME", "HOME"] {
        homeless.env_remove(name);
    }
    refuses(&mut homeless, 73, "STATE_DIRECTORY");
    let file = dir.path().join("file");
    fs::write(&file, "").expect("write");
    refuses(
        client(&dir, &[]).env("STATE_DIRECTORY", &file),
        73,
        "create folder",
    );
}

#[test]
fn no_broker_and_brokers_that_do_not_answer() {
    let dir = tempdir().expect("tempdir");
    let to = |port: u16, name: &str, arguments: &[&str]| {
        let port = port.to_string();
        let mut command = tool(&dir, name, arguments);
        command
            .args(["-H", "127.0.0.1", "-p", &port, "--timeout", "1s"])
            .env("TAEL_LOG_TARGET", "none");
        command
    };
    let all = |port: u16, code: i32, text: &str| {
        refuses(&mut to(port, "tael-message", &["-t", SEQ]), code, text);
        refuses(&mut to(port, "tael-beacon", &["--once"]), code, text);
        refuses(
            &mut to(port, "tael", &["control", "x", "status"]),
            code,
            text,
        );
    };
    let port = free_port();
    let listener = TcpListener::bind(("127.0.0.1", port)).expect("listen");
    // The system accepts the connection, and no one answers: there is no broker.
    all(port, 69, &format!("127.0.0.1:{port}"));
    drop(listener);
    all(port, 69, &format!("127.0.0.1:{port}"));
    // A broker that acknowledges nothing: the message may have arrived.
    for (name, arguments) in [
        ("tael-message", &["-t", SEQ][..]),
        ("tael-beacon", &["--once"]),
    ] {
        let broker = Scripted::listen();
        let mut command = to(broker.port(), name, arguments);
        let deaf = thread::spawn(move || broker.accept());
        refuses(&mut command, 75, "may or may not have arrived");
        drop(deaf.join().expect("client"));
    }
}

#[test]
fn what_newcomers_do_wrong_is_one_line_that_says_what_to_do() {
    let dir = tempdir().expect("tempdir");
    let taken = TcpListener::bind(("127.0.0.1", 0)).expect("bind");
    let taken = taken.local_addr().expect("address").to_string();
    fs::write(dir.path().join("key.pem"), "no PEM").expect("write");
    fs::write(dir.path().join("binary"), [0xff, 0xfe]).expect("write");
    let (none, key) = ("/nowhere/file", dir.path().join("key.pem"));
    let key = key.to_str().expect("path");
    let binary = dir.path().join("binary");
    let binary = binary.to_str().expect("path");
    let table: &[(&[&str], i32, &str)] = &[
        (
            &["mesage"],
            64,
            "there is no command 'mesage'; did you mean message?",
        ),
        (
            &["work", "lst"],
            64,
            "there is no command 'lst'; did you mean list?",
        ),
        (&["message"], 64, "send message: give a topic with -t"),
        (
            &["message", "-t", "a", "--atr", "b"],
            64,
            "did you mean --attr?",
        ),
        (
            &["message", "-t", "a/#", "b=c"],
            64,
            "has a wildcard (+ or #)",
        ),
        (
            &["message", "-t", "a", "-p", "x"],
            64,
            "'--port <PORT>': it is not a whole number\n",
        ),
        (
            &["message", "-t", "a", "-q", "3"],
            64,
            "'3' is not a QoS: 0, 1 or 2\n",
        ),
        (
            &["message", "-t", "a", "--timeout", "soon"],
            64,
            "write 10s, 5m, 1h30m or 2d\n",
        ),
        (
            &["message", "-t", "a", "--broker", "http://h"],
            64,
            "mqtt or mqtts",
        ),
        (
            &["message", "-t", "a", "--broker", "h:99999"],
            64,
            "'99999' in the broker URL",
        ),
        (
            &["message", "-t", "a", "-H", "h:1883"],
            64,
            "the port goes with -p",
        ),
        (
            &["message", "-t", "a", "-H", "127.0.0.1", "-p", "1"],
            69,
            "is the broker running?",
        ),
        (
            &["message", "-t", "a", "-H", "no.invalid", "--timeout", "5s"],
            69,
            "look up 'no.invalid'",
        ),
        (
            &["message", "-t", "a", "--password-file", none],
            78,
            "read password from /nowhere/file: No such file or directory\n",
        ),
        (
            &["client", "--who", "p", "--config", binary],
            78,
            "binary: it is not text in UTF-8\n",
        ),
        (&["play", binary], 65, "binary: it is not text in UTF-8\n"),
        (
            &["node", "n", "--functions", "/"],
            78,
            "read /: it is not a file",
        ),
        (
            &["message", "-t", "a", "--cafile", none],
            78,
            "read certificate authorities from /nowhere/file: No such file or directory\n",
        ),
        (
            &["message", "-t", "a", "--cert", key],
            64,
            "--cert and --key go together",
        ),
        (
            &["control"],
            64,
            "<WHO> and <ACTION> are missing; see --help",
        ),
        (&["control", "p"], 64, "<ACTION> is missing; see --help"),
        (&["control", "p", "statu"], 64, "did you mean status?"),
        (
            &["control", "p", "stop"],
            64,
            "raise, retry, cancel, pause, resume or status",
        ),
        (
            &["control", "raise", "p"],
            64,
            "the pipeline comes first: tael control p raise",
        ),
        (
            &["control", "p", "raise", "a", "b"],
            64,
            "an attribute is sample=S1",
        ),
        (&["control", "p", "pause", "a"], 64, "pause takes no unit"),
        (&["status", "--jsn"], 64, "did you mean --json?"),
        (&["status", "--graph", "png"], 64, "mermaid, dot or svg\n"),
        (
            &["check", "--who"],
            3,
            "a value is required for '--who <NAME>'",
        ),
        (&["watch", "--count", "x"], 64, "it is not a whole number\n"),
        (&["forget"], 64, "<WHO>... is missing; see --help"),
        (
            &["work", "list", "--state", "runing"],
            64,
            "pending, running, succeeded",
        ),
        (&["work", "results", "NOPE"], 125, "see 'tael work list'"),
        (&["events", "--who", "nobody"], 65, "it has no ledger in "),
        (
            &["play", none],
            78,
            "read playbook /nowhere/file: No such file or directory\n",
        ),
        (&["node", "n"], 64, "give --functions FILE"),
        (&["client", "--who", "p"], 64, "give -t FILTER and -c CMD"),
        (&["client", "--who", "p", "-t", "a"], 64, "give one with -c"),
        (
            &["client", "--who", "p", "-t", "a", "-c", "b", "--connect"],
            64,
            "--check is missing",
        ),
        (&["completions", "tcsh"], 64, "bash, zsh or fish\n"),
    ];
    for (arguments, code, text) in table {
        let mut command = tool(&dir, "tael", arguments);
        if arguments[0] == "check" {
            // A monitoring system reads stdout.
            let (got, out, error) = ran(&mut command);
            assert_eq!((got, &*error), (*code, ""), "{arguments:?}: {out}");
            assert!(out.contains(text) && out.lines().count() == 1, "{out}");
            continue;
        }
        refuses(&mut command, *code, text);
    }
    if cfg!(feature = "embedded-broker") {
        for (more, code, text) in [
            (&["--listen", &taken][..], 69, "choose another --listen"),
            (&["--listen", "h"], 64, "such as 127.0.0.1:1883\n"),
            (
                &["--users", none],
                78,
                "read users from /nowhere/file: No such file",
            ),
            (&["--cert", key], 64, "--cert and --key go together"),
            (
                &["--cert", key, "--key", key],
                78,
                "it holds no certificate in PEM",
            ),
        ] {
            let mut broker = tool(&dir, "tael", &["broker", "--listen", "127.0.0.1:0"]);
            if more[0] == "--listen" {
                broker = tool(&dir, "tael", &["broker"]);
            }
            refuses(broker.args(more), code, text);
        }
    }
}

#[test]
fn a_client_without_a_name_learns_that_the_broker_wants_one() {
    let world = World::with(Setup {
        password: Some("secret".into()),
        ..Setup::default()
    });
    let hint = "no user name was given: give --username USER and --password-file FILE";
    let mut anonymous = world.command("tael-message");
    anonymous
        .env_remove("TAEL_USERNAME")
        .env_remove("TAEL_PASSWORD");
    refuses(anonymous.args(["-t", SEQ]), 77, hint);
    let mut wrong = world.command("tael-message");
    let (code, _, error) = ran(wrong.env("TAEL_PASSWORD", "wrong").args(["-t", SEQ]));
    assert_eq!(code, 77, "{error}");
    assert!(error.contains("bad user name or password") || error.contains("not authorised"));
    assert!(!error.contains("no user name was given"), "{error}");
}

#[test]
fn a_stray_word_gets_the_hint_that_fits() {
    let dir = tempfile::tempdir().expect("tempdir");
    for (arguments, hint) in [
        (&["check", "align"][..], "did you mean --who align?"),
        (&["events", "align"], "did you mean --who align?"),
        (&["status", "align"], "did you mean --who align?"),
        (&["work", "list", "align"], "did you mean --who align?"),
        (&["results"], "did you mean tael work results?"),
        (
            &["client", "--when", "status=failed", "sample=S1"],
            "give each condition with a --when of its own",
        ),
        (&["client", "-c", "echo", "hi"], "needs quotes"),
        (&["client", "-c", "ls", "-N", "/"], "needs quotes"),
        (
            &["pair", "cc", "-c", "nc", "-N", "localhost", "22"],
            "unexpected argument '-N' found; a value with blanks needs quotes",
        ),
        (&["pair", "cc", "-c", "nc x", "-N"], "needs quotes"),
        (&["status", "a=b"], "needs quotes"),
        (
            &["message", "-t", "x", "-l", "jobs"],
            "-l reads standard input: <jobs",
        ),
        (
            &["broker", "-p", "1884"],
            "did you mean --listen 127.0.0.1:1884?",
        ),
        (
            &["broker", "--port=1884"],
            "did you mean --listen 127.0.0.1:1884?",
        ),
        (
            &["broker", "-p1884"],
            "did you mean --listen 127.0.0.1:1884?",
        ),
        (
            &["broker", "--host", "0.0.0.0"],
            "did you mean --listen ADDRESS:PORT?",
        ),
        (
            &["message", "-t", "a", "status=finished", "status=failed"],
            "'status' is given twice",
        ),
        (&["client", "--who", "re/port"], "cannot name a pipeline"),
        (
            &[
                "client",
                "--who",
                "p",
                "-t",
                "a",
                "-c",
                "true",
                "--envreq",
                "status=finished",
            ],
            "is a condition",
        ),
        (
            &[
                "client", "--who", "p", "-t", "a", "-c", "true", "--envreq", "A B",
            ],
            "has blanks",
        ),
    ] {
        let mut command = tool(&dir, "tael", arguments);
        let (code, out, stderr) = ran(&mut command);
        // A monitoring plugin has other codes, and says all on standard output.
        let plugin = arguments[0] == "check";
        assert_eq!(code, if plugin { 3 } else { 64 }, "{arguments:?}: {stderr}");
        let text = if plugin { &out } else { &stderr };
        assert!(text.contains(hint), "{arguments:?}: {text}");
    }
    let book = dir.path().join("book");
    std::fs::write(&book, "ON FAILURE\n").expect("playbook");
    let (_, _, stderr) = ran(&mut tool(
        &dir,
        "tael",
        &["play", "--check", book.to_str().expect("path")],
    ));
    assert!(
        stderr.contains("ON FAILURE has a step after it"),
        "{stderr}"
    );
}

#[test]
fn a_check_gives_each_mistake_of_a_file_its_line() {
    let dir = tempfile::tempdir().expect("tempdir");
    let file = dir.path().join("t.toml");
    let script = dir.path().join("report.sh");
    std::fs::write(&script, "").expect("script");
    let check = |text: &str| {
        std::fs::write(&file, text).expect("file");
        let path = file.to_str().expect("path");
        ran(&mut tool(
            &dir,
            "tael",
            &["client", "--config", path, "--check"],
        ))
        .2
    };
    let trigger = "[[trigger]]\ntopic = 'a'\n";
    for (text, causes) in [
        (
            format!(
                "broker = 'mqtt://h:99999'\n[client]\nwho = 're/port'\n{trigger}command = 'true'\n"
            ),
            &[
                "line 1: ",
                "'99999' in the broker URL",
                "line 3: ",
                "cannot name",
            ][..],
        ),
        (
            "[[triger]]\ntopic = 'a'\n[client]\nwho = 'p'\n".to_owned(),
            &["did you mean [[trigger]]?"],
        ),
        (
            "[view]\nname = 'x'\nsql = 'SELECT 1'\n".to_owned(),
            &["line 1: a view is written [[view]], with two brackets"],
        ),
        (
            "[trigger]\ntopic = 'a'\n[route]\npath = 'a'\n[work]\nname = 'w'\n".to_owned(),
            &[
                "a trigger is written [[trigger]], with two",
                "a route is written [[route]], with two",
                "a work type is written [[work]], with two",
            ],
        ),
        (
            "[[views]]\nname = 'x'\n".to_owned(),
            &["did you mean [[view]]?"],
        ),
        (
            "[[client]]\nwho = 'p'\n[[command]]\n[[queue]]\nbroker = 'x'\n".to_owned(),
            &[
                "'client' is a table: [client], with one bracket",
                "a command is written [command.NAME], with one bracket",
                "'queue' is a table: [queue], with one",
            ],
        ),
        (
            "[client]\nwho = 'p'\n[[client.trigger]]\ntopic = 'a'\n[[client.views]]\n".to_owned(),
            &[
                "a trigger is written [[trigger]], outside of other tables",
                "a view is written [[view]], outside of other tables",
            ],
        ),
        (
            "a = \n[client]\nb = \n".to_owned(),
            &["line 1: ", "line 3: "],
        ),
        (
            format!(
                "[client]\nwho = 'p'\n{trigger}command = '{}/./report.sh'\n",
                dir.path().display()
            ),
            &["/report.sh is not executable"],
        ),
    ] {
        let stderr = check(&text);
        assert!(!stderr.contains("/./"), "{stderr}");
        for cause in causes {
            assert!(stderr.contains(cause), "{cause}: {stderr}");
        }
    }
}
