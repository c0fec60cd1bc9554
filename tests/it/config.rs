//! Options from flags, the environment and files; triggers and their conditions.

use std::fs;
use std::path::Path;

use crate::common::{World, bare_command, ran, refuses};

const SEQ: &str = "lab/seq/status";

#[test]
fn several_triggers_of_one_file() {
    let world = World::new();
    let config = r#"
        [client]
        who = "many"
        root = "lab"
        [[trigger]]
        name = "align"
        topic = ["lab/seq/status", "lab/more/status"]
        command = 'echo "align $SAMPLE" >>"$OUT/runs"'
        envreq = ["SAMPLE"]
        payload-passthrough = ["SAMPLE"]
        [[trigger]]
        topic = "lab/+/status"
        command = 'echo "all $A_SAMPLE" >>"$OUT/runs"'
        when = []
        envprefix = "A"
        retained = "accept"
        [[trigger]]
        topic = "lab/third/status"
        command = "touch '$OUT/$HOME'"
        no-shell = true
    "#;
    fs::write(world.path("tael.toml"), config).expect("config");
    let mut command = world.command("tael-client");
    command.arg("--config").arg(world.path("tael.toml"));
    let client = world.online("many", command);
    let ears = world.ears(&["lab/infrastructure/#"]);
    world.message("lab/other/status", &[("sample", "1")]);
    world.wait_report("many", "/units/succeeded", 1);
    world.message(
        "lab/more/status",
        &[("status", "finished"), ("sample", "2")],
    );
    world.wait_report("many", "/units/succeeded", 3);
    let mut runs = world.lines("runs");
    runs[1..].sort();
    assert_eq!(runs, ["all 1", "align 2", "all 2"]);
    // The report may be faster than the broker.
    ears.wait("the end of align", |m| {
        m.status() == "finished" && m.payload["SAMPLE"] == "2"
    });
    // One trigger accepts the event, and another one refuses it.
    world.message(SEQ, &[("status", "finished")]);
    ears.status("many", "falsestart");
    world.wait_report("many", "/units/succeeded", 4);
    // A request has to name the trigger.
    let (code, _, stderr) = world.control(&["many", "raise"]);
    assert_eq!(code, 64, "{stderr}");
    assert!(stderr.contains("align, 2, 3"), "{stderr}");
    let raise = [
        "many",
        "raise",
        "--trigger",
        "align",
        "--attr",
        "sample",
        "5",
    ];
    assert_eq!(world.control(&raise).0, 0);
    world.wait_report("many", "/units/succeeded", 5);
    assert_eq!(world.lines("runs").last().expect("run"), "align 5");
    assert_eq!(world.control(&["many", "raise", "--trigger", "none"]).0, 65);
    // Only the trigger whose file is missing fails.
    world.message("lab/third/status", &[("status", "finished")]);
    let failed = ears.status("many", "failed");
    assert_eq!(failed.payload["return_code"], 1);
    client.stop();
}

#[test]
fn flags_win_over_the_environment_and_both_over_files() {
    let world = World::new();
    let ears = world.ears(&["from/#"]);
    let port = world.broker.port();
    let write = |path: &Path, text: String| {
        fs::create_dir_all(path.parent().expect("folder")).expect("folder");
        fs::write(path, text).expect("config");
    };
    let users = world.path("xdg/tael/tael.toml");
    write(
        &users,
        format!("host = '127.0.0.1'\nport = {port}\n[message]\ntopic = 'from/user'\n"),
    );
    let named = world.path("named.toml");
    write(
        &named,
        format!(
            "host = '127.0.0.1'\nport = {port}\n[message]\ntopic = 'from/named'\n[client]\njobs = 1\n"
        ),
    );
    let message = || {
        let mut command = bare_command(&world.dir, "tael-message");
        command.env("XDG_CONFIG_HOME", world.path("xdg"));
        command
    };
    let with = |config: bool, env: bool, flag: bool| {
        let mut command = message();
        if config {
            command.arg("--config").arg(&named);
        }
        if env {
            command.env("TAEL_MESSAGE_TOPIC", "from/env");
        }
        if flag {
            command.args(["-t", "from/flag"]);
        }
        assert_eq!(ran(&mut command), (0, String::new(), String::new()));
    };
    with(false, false, false);
    with(true, false, false);
    with(true, true, false);
    with(true, true, true);
    ears.wait_all("all four", |all| (all.len() == 4).then_some(()));
    let topics: Vec<String> = ears.all().into_iter().map(|m| m.topic).collect();
    assert_eq!(topics, ["from/user", "from/named", "from/env", "from/flag"]);
    // The same for options that all commands share.
    let nowhere = ["--timeout", "0.2s"];
    refuses(
        message().env("TAEL_PORT", "1").args(nowhere),
        69,
        "127.0.0.1:1",
    );
    refuses(
        message()
            .env("TAEL_BROKER", "mqtt://127.0.0.1:2")
            .args(nowhere),
        69,
        "127.0.0.1:2",
    );
    let mut flag = message();
    flag.env("TAEL_PORT", "1").args(["-p", &port.to_string()]);
    assert_eq!(ran(&mut flag).0, 0);
    let mut host = message();
    host.env("TAEL_BROKER", "mqtt://nowhere.invalid")
        .args(["-H", "127.0.0.1"]);
    assert_eq!(ran(&mut host).0, 0);
}

#[test]
fn conditions_must_all_hold_and_none_lets_everything_pass() {
    let world = World::new();
    let note = |file: &str| format!(r#"echo "$ATTR_N" >>"$OUT/{file}""#);
    let both = ["--when", "status=failed", "--when", "n=2"];
    let strict = world.client(
        "both",
        &[&["-t", SEQ, "-c", &note("both")][..], &both].concat(),
    );
    let any = world.client("any", &["-t", SEQ, "-c", &note("any"), "--when", ""]);
    for (status, n) in [
        ("failed", "1"),
        ("finished", "2"),
        ("failed", "2"),
        ("failed", "3"),
    ] {
        world.message(SEQ, &[("status", status), ("n", n)]);
    }
    world.wait_report("any", "/units/succeeded", 4);
    world.wait_report("both", "/events/ignored", 3);
    world.wait_report("both", "/units/succeeded", 1);
    assert_eq!(world.lines("both"), ["2"]);
    assert_eq!(world.lines("any"), ["1", "2", "2", "3"]);
    strict.stop();
    any.stop();
}

#[test]
fn a_check_reports_every_mistake_and_touches_nothing() {
    let dir = tempfile::tempdir().expect("tempdir");
    let file = dir.path().join("align.toml");
    let path = file.to_str().expect("path");
    let check = |name: &str, words: &[&str]| {
        let mut command = bare_command(&dir, name);
        command.env("TAEL_LOG_TARGET", "stderr").args(words);
        // No process listens there.
        ran(command.args(["--check", "-p", "1"]))
    };
    let right = "root = 'lab'\n[client]\nwho = 'align'\n\
                 [[trigger]]\ntopic = 'lab/a'\ncommand = 'true'\n\
                 [[trigger]]\ntopic = 'lab/b'\ncommand = 'true'\n";
    fs::write(&file, right).expect("file");
    let silent = (0, String::new(), String::new());
    assert_eq!(check("tael-client", &["--config", path]), silent);
    assert_eq!(check("tael", &["client", "--config", path]), silent);
    // Each mistake is a line that names the file.
    let mistakes = [
        ("keepalive = 'soon'\nhots = 'a'\n", ["'soon'", "'hots'"]),
        (
            "[client]\njbos = 2\nmax-output = 'all'\n",
            ["'jbos'", "'all'"],
        ),
        (
            "[[trigger]]\ntopic = 'a#'\ncommand = ''\n",
            ["trigger 1: there is no command", "# stands"],
        ),
        (
            "[[trigger]]\ncommand = 'b'\njobs = 'x'\nretries = 'y'\nodd = 1\n",
            ["'x'", "'y'"],
        ),
        (
            "[[trigger]]\ntopic = 'a'\ncommand = 'b'\nwhen = ['no']\nenvreq = ['PATH']\n",
            ["'no'", "PATH"],
        ),
    ];
    for (text, causes) in mistakes {
        fs::write(&file, text).expect("file");
        let (code, out, said) = check("tael-client", &["--who", "align", "--config", path]);
        assert_eq!((code, out), (78, String::new()), "{said}");
        for cause in causes {
            let line = said.lines().find(|line| line.contains(cause));
            assert!(
                line.is_some_and(|line| line.contains(path)),
                "{cause}: {said}"
            );
        }
    }
    // The command line wins over them.
    let words = [
        "--config",
        "/nowhere/align.toml",
        "--keepalive",
        "1s",
        "--qos",
        "0",
    ];
    let (code, _, said) = check("tael-client", &words);
    assert_eq!(code, 78, "{said}");
    for cause in ["/nowhere/align.toml", "keep-alive of 1s", "QoS 0"] {
        assert!(said.contains(cause), "{cause}: {said}");
    }
    // These may stand in the file.
    assert!(
        !said.contains("--who") && !said.contains("-t FILTER"),
        "{said}"
    );
    let (code, _, said) = check(
        "tael-client",
        &["--who", "a", "-t", "a", "-c", "true", "-q", "0"],
    );
    assert_eq!(code, 64, "{said}");
    // A folder that is missing on this host is a mistake.
    let words = ["--who", "a", "-t", "a", "-c", "true", "--cwd", "/nowhere"];
    let (code, _, said) = check("tael-client", &words);
    assert_eq!(code, 78, "{said}");
    assert!(said.contains("--cwd: cannot use folder /nowhere"), "{said}");
    // Beacons and nodes have it, too.
    assert_eq!(check("tael-beacon", &["--root", "lab"]), silent);
    let (code, _, said) = check("tael-beacon", &["--interval", "1ms", "--keepalive", "1s"]);
    assert_eq!(code, 64, "{said}");
    assert!(
        said.contains("interval") && said.contains("keep-alive"),
        "{said}"
    );
    fs::write(&file, "[command.START]\nrun = 'true'\n").expect("file");
    assert_eq!(check("tael", &["node", "n", "--config", path]), silent);
    fs::write(&file, "[command.A]\nruns = 'true'\n[command.B]\nrun = 1\n").expect("file");
    let (code, _, said) = check("tael", &["node", "n", "--config", path]);
    assert_eq!(code, 78, "{said}");
    assert!(
        said.contains("'runs'; did you mean 'run'?") && said.contains("command B"),
        "{said}"
    );
    assert!(said.contains(", line 2: command A: "), "{said}");
    assert!(said.contains(", line 4: command B: "), "{said}");
    assert!(!said.contains("--help"), "{said}");
    // It creates no state and no lock.
    fs::remove_file(&file).expect("file");
    let left = fs::read_dir(dir.path()).expect("folder").count();
    assert_eq!(left, 0);
}

/// Runs `words` with a file that holds `text`, below a comment. Asserts that a check, if the command has one,
/// and a start refuse it, with the `line` of the mistake and its `cause`.
#[track_caller]
fn refused_at(dir: &tempfile::TempDir, words: &[&str], text: &str, line: usize, cause: &str) {
    let file = dir.path().join("late.toml");
    fs::write(&file, format!("# A comment.\n{text}")).expect("file");
    let place = format!("use {}, line {line}: ", file.display());
    let has_check = ["client", "beacon", "node", "gateway"].contains(&words[0]);
    for more in [&[][..], &["--check"]] {
        if !more.is_empty() && !has_check {
            continue;
        }
        let mut command = bare_command(dir, "tael");
        command.args(words).args(more).arg("--config").arg(&file);
        let (code, out, said) = ran(&mut command);
        assert_eq!((code, out.as_str()), (78, ""), "{words:?} {text}: {said}");
        let told = said.lines().find(|line| line.contains(cause));
        assert!(
            told.is_some_and(|told| told.contains(&place)),
            "{words:?} {more:?} {text}: {cause} in {said}"
        );
    }
}

#[test]
fn a_value_that_is_judged_late_has_its_line() {
    let dir = tempfile::tempdir().expect("tempdir");
    let client = &["client", "--who", "p", "-t", "lab/a", "-c", "true"][..];
    let gateway = &["gateway", "--listen", "127.0.0.1:0"][..];
    let beacon = &["beacon", "--once"][..];
    fs::write(dir.path().join("node.sh"), "").expect("file");
    let node = dir.path().join("node.sh");
    let node = &["node", "n", "--functions", node.to_str().expect("path")];
    // What all commands share.
    for (text, cause) in [
        ("keepalive = '1s'", "out of range"),
        ("cert = 'a.pem'", "go together"),
        ("key = 'a.pem'", "go together"),
        ("port = 0", "port 0"),
        ("host = 'a b'", "is not a host"),
        ("broker = 'mqtt://a:b:c'", "is not a port"),
        ("tls-alpn = 'mqtt,'", "--tls-alpn"),
        ("tls-server-name = 'a b'", "'a b'"),
        ("cafile = '/nowhere/ca.pem'", "/nowhere/ca.pem"),
        ("capath = '/nowhere/folder'", "/nowhere/folder"),
        (
            "cert = '/nowhere/c.pem'\nkey = '/nowhere/k.pem'",
            "/nowhere/c.pem",
        ),
        ("password-file = '/nowhere/password'", "/nowhere/password"),
        ("root = 'lab/#'", "root"),
        ("mqtt-env = 'lab/#'", "root"),
    ] {
        for words in [client, beacon, node, gateway] {
            refused_at(&dir, words, text, 2, cause);
        }
    }
    // What one command has, in its own table.
    for (words, text, cause) in [
        (client, "qos = 0", "QoS 0"),
        (client, "keepalive = '1s'", "out of range"),
        (client, "max-payload = 0", "--max-payload"),
        (client, "reply-to = 'a#'", "--reply-to"),
        (client, "queue-cert = 'c.pem'", "go together"),
        (client, "queue-password-file = '/nowhere/q'", "/nowhere/q"),
        (beacon, "topic = 'a/#'", "send beacon"),
        (beacon, "interval = '1ms'", "interval"),
        (gateway, "allow = 'a#'", "--allow"),
        (gateway, "workflows = 'a/b'", "a/b"),
        (gateway, "events = 'a/#'", "--events"),
        (gateway, "control = true", "--control"),
        (gateway, "need-listener = true", "--need-listener"),
        (gateway, "timeout = '1ms'", "--timeout"),
        (
            gateway,
            "tls-cert = '/nowhere/c.pem'\ntls-key = '/nowhere/k.pem'",
            "/nowhere/c.pem",
        ),
        (gateway, "allow-queue = 'q'", "--allow-queue"),
        (&["gateway"], "listen = '0.0.0.0:0'", "open to others"),
        (&["node", "n"], "functions = '/nowhere/f'", "/nowhere/f"),
        (&["message", "-t", "a"], "reply-to = 'a#'", "--reply-to"),
        (
            &["message", "--reply", "x=1"],
            "topic = 'a/#'",
            "send message",
        ),
        (&["facts", "publish"], "interval = '1ms'", "interval"),
        (&["facts", "publish"], "keep = '1s'", "--keep"),
        (&["events"], "lines = 100000000", "--lines"),
        (&["watch"], "topic = 'a#'", "watch"),
    ] {
        let text = format!("[{}]\n{text}", words[0]);
        refused_at(&dir, words, &text, 3, cause);
    }
    // A trigger in the options of the client.
    let text = "[client]\ntopic = 'a'\ncommand = 'true'\njobs = 0";
    refused_at(&dir, &["client", "--who", "p"], text, 5, "0 jobs");
    let text = "[queue]\nbroker = 'amqps://u@h'\ncafile = '/nowhere/q.pem'";
    refused_at(
        &dir,
        &["client", "--who", "p", "--queue", "q", "-c", "true"],
        text,
        4,
        "/nowhere/q.pem",
    );
    // A start tells the line of a value that is no value, too.
    refused_at(&dir, client, "keepalive = 'soon'", 2, "'soon'");
    // The command line and the environment are no files, though a file has the option.
    let file = dir.path().join("right.toml");
    fs::write(&file, "keepalive = '60s'\n").expect("file");
    let mut command = bare_command(&dir, "tael");
    command.args(client).args(["--keepalive", "1s", "--config"]);
    refuses(
        command.arg(&file).env("TAEL_LOG", "error"),
        64,
        "tael: a keep-alive of 1s",
    );
}
