//! Options of a client that takes work from queues, without a broker.

use std::fs;
use std::process::Command;

use crate::common::{bare_command, ran};

/// A client that checks its configuration and exits.
fn check(dir: &tempfile::TempDir, arguments: &[&str]) -> Command {
    let mut command = bare_command(dir, "tael-client");
    command
        .env("TAEL_LOG", "warn")
        .args(["--who", "align", "-c", "true", "--check"])
        .args(arguments);
    command
}

#[test]
fn a_queue_is_a_source_without_a_topic() {
    let dir = tempfile::tempdir().expect("tempdir");
    let silent = (0, String::new(), String::new());
    for right in [
        &["--queue", "amqp://localhost/jobs"][..],
        &["--queue", "amqp://[::1]:1/a%2fb/jobs", "--settle", "done"],
        &["--queue", "amqp://127.0.0.1/jobs", "--prefetch", "2000"],
        &[
            "--queue",
            "amqp://localhost/jobs",
            "-t",
            "lab/a",
            "--when",
            "a=b",
        ],
        &[
            "--queue",
            "amqp://localhost/jobs",
            "-t",
            "lab/a",
            "--when",
            "",
        ],
        &["--queue", "amqp://localhost/jobs", "--declare", "quorum"],
        &["--queue", "amqp://localhost/jobs", "--dead-letter", "ill"],
    ] {
        assert_eq!(ran(&mut check(&dir, right)), silent, "{right:?}");
    }
    let mut remote = check(&dir, &["--queue", "amqp://ann@mq.example/lab/jobs"]);
    remote.env("TAEL_QUEUE_PASSWORD", "secret");
    assert_eq!(ran(&mut remote), silent);
}

#[test]
fn wrong_queues_are_named_in_a_line() {
    let dir = tempfile::tempdir().expect("tempdir");
    let jobs = "amqp://localhost/jobs";
    for (arguments, code, cause) in [
        (&["--queue", "jobs"][..], 64, "[queue]"),
        (&["--queue", "mqtt://h/jobs"], 64, "amqp or amqps"),
        (&["--queue", "amqp://localhost"], 64, "names no queue"),
        (
            &["--queue", "amqp://ann:s3cr3t@h/q"],
            64,
            "--queue-password-file",
        ),
        (&["--queue", "amqp://h/q"], 78, "no user is named"),
        (&["--queue", "amqp://ann@h/q"], 78, "TAEL_QUEUE_PASSWORD"),
        (&["--queue", jobs, "--settle", "ack"], 64, "accept or done"),
        (&["--queue", jobs, "--prefetch", "0"], 64, "1 to 2000"),
        (&["--queue", jobs, "--prefetch", "2001"], 64, "1 to 2000"),
        (
            &["--queue", jobs, "--declare", "stream"],
            64,
            "quorum or classic",
        ),
        (
            &["--queue", jobs, "--dead-letter", "jobs"],
            64,
            "its own dead-letter",
        ),
        (&["--queue", jobs, "--dead-letter", "amq.x"], 64, "reserved"),
        (
            &["--queue", jobs, "--absent", "5m"],
            64,
            "'absent' is about topics",
        ),
        (
            &["--queue", jobs, "-t", "lab/a"],
            64,
            "no default condition",
        ),
        (&["-t", "lab/a", "--settle", "done"], 64, "is about a queue"),
        (&["-t", "lab/a", "--prefetch", "2"], 64, "is about a queue"),
        (
            &["--queue", jobs, "--queue-cert", "c.pem"],
            64,
            "--queue-key",
        ),
        (
            &["--queue", jobs, "--queue-password-file", "/no"],
            78,
            "/no",
        ),
        (
            &["--queue", "amqps://localhost/q", "--queue-cafile", "/no"],
            78,
            "/no",
        ),
        (&[], 64, "or a queue"),
    ] {
        let (got, out, said) = ran(&mut check(&dir, arguments));
        assert_eq!((got, &*out), (code, ""), "{arguments:?}: {said}");
        assert_eq!(said.lines().count(), 1, "{arguments:?}: {said}");
        assert!(said.contains(cause), "{arguments:?}: {said}");
        assert!(!said.contains("s3cr3t"), "{said}");
    }
    let long = format!("amqp://localhost/{}", "q".repeat(251));
    let (code, _, said) = ran(&mut check(&dir, &["--queue", &long]));
    assert!(code == 64 && said.contains("dead-letter queue"), "{said}");
}

#[test]
fn a_file_names_the_broker_of_queues() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (file, password) = (dir.path().join("tael.toml"), dir.path().join("password"));
    let path = file.to_str().expect("path");
    let check = || {
        let mut command = bare_command(&dir, "tael-client");
        command.env("TAEL_LOG", "warn");
        command.args(["--who", "align", "--config", path, "--check"]);
        command
    };
    let secret = password.to_str().expect("path");
    let triggers = "[[trigger]]\nqueue = 'jobs'\ncommand = 'true'\nsettle = 'done'\n\
                    [[trigger]]\ntopic = 'lab/a'\ncommand = 'true'\n";
    let good = format!(
        "[queue]\nbroker = 'amqp://ann@h/lab'\npassword-file = '{secret}'\n\
         management = 'http://h:15672'\n{triggers}"
    );
    fs::write(&password, "p\n").expect("password");
    fs::set_permissions(
        &password,
        std::os::unix::fs::PermissionsExt::from_mode(0o600),
    )
    .expect("mode");
    fs::write(&file, &good).expect("file");
    assert_eq!(ran(&mut check()), (0, String::new(), String::new()));
    // The environment wins.
    let (code, _, said) = ran(check().env("TAEL_QUEUE_BROKER", "amqp://h/a/b"));
    assert_eq!(code, 64, "{said}");
    assert!(said.contains("TAEL_QUEUE_BROKER"), "{said}");
    for (text, causes) in [
        (
            "[queue]\nbroker = 'amqp://ann:s3cr3t@h'\npasword-file = 'p'\nhost = 1\n",
            &[", line 2: ", "did you mean 'password-file'", ", line 4: "][..],
        ),
        ("[queue]\nbroker = 5\n", &["'broker' cannot be 5"]),
        (
            "[queue]\nbroker = 'amqp://ann@h'\npassword-file = '/no'\n",
            &[", line 3: read password from /no"],
        ),
        (
            "[queue]\nbroker = 'amqp://ann@h'\npassword-file = 'PASSWORD'\n\
             [[trigger]]\nqueue = 'amqp://bob@other/q'\nsettle = 'done'\ncommand = 'true'\n",
            &[
                "log in at amqp://bob@other:5672/%2f: the password of [queue] is that of user 'ann', not of 'bob'",
            ],
        ),
        ("[queue]\ncert = 'c'\n", &["'cert' and 'key' go together"]),
        ("", &["trigger 1: 'jobs' is not a queue URL"]),
    ] {
        let text = text.replace("PASSWORD", secret);
        fs::write(&file, format!("{text}{triggers}")).expect("file");
        let (code, _, said) = ran(&mut check());
        assert_eq!(code, 78, "{said}");
        // A file that cannot be read is no second mistake.
        assert!(!said.contains("has no password"), "{said}");
        for cause in causes {
            assert!(said.contains(cause), "{cause}: {said}");
        }
        assert!(!said.contains("s3cr3t"), "{said}");
    }
    // A password comes from systemd, too.
    let credentials = dir.path().join("credentials");
    fs::create_dir(&credentials).expect("folder");
    fs::rename(&password, credentials.join("tael-queue-password")).expect("credential");
    fs::write(
        &file,
        format!("[queue]\nbroker = 'amqp://ann@h'\n{triggers}"),
    )
    .expect("file");
    assert_eq!(ran(&mut check()).0, 78);
    let with = ran(check().env("CREDENTIALS_DIRECTORY", &credentials));
    assert_eq!(with, (0, String::new(), String::new()));
}

#[test]
fn tools_for_queues_say_what_is_wrong_in_a_line() {
    let dir = tempfile::tempdir().expect("tempdir");
    let tael = |arguments: &[&str]| {
        let mut command = bare_command(&dir, "tael");
        command.env("TAEL_LOG", "warn").arg("queue").args(arguments);
        command
    };
    let away = "amqp://127.0.0.1:1/jobs";
    for (arguments, code, cause) in [
        (&["push", "jobs", "a=b"][..], 64, "[queue]"),
        (&["push", away], 64, "there is no message"),
        (&["push", away, "word"], 64, "sample=S1"),
        (&["push", away, "ts=1"], 64, "the time of sending"),
        (&["push", away, "-m", "x", "a=b"], 64, "cannot be used with"),
        (
            &["push", away, "-l", "--count", "2"],
            64,
            "cannot be used with",
        ),
        (&["push", away, "a=b", "--count", "0"], 64, "0"),
        (
            &["push", away, "a=b", "--declare", "stream"],
            64,
            "quorum or classic",
        ),
        (
            &["push", "amqp://ann:s3cr3t@h/q", "a=b"],
            64,
            "--queue-password-file",
        ),
        (
            &["push", "amqp://ann@h/q", "a=b"],
            78,
            "TAEL_QUEUE_PASSWORD",
        ),
        (
            &["push", away, "a=b", "--timeout", "0.5s"],
            69,
            "is the broker running?",
        ),
        (
            &["status", away, "--timeout", "0.5s"],
            69,
            "is the broker running?",
        ),
        (&["status", away, "--management", "h:1"], 64, "no scheme"),
        (&["status", away, "--dead-letter", "amq.x"], 64, "reserved"),
        (
            &["drain", away, "--management", "http://127.0.0.1:1"],
            69,
            "management API",
        ),
        (
            &["drain", away, "--statistics-interval", "0s"],
            64,
            "1s to 10m",
        ),
        (&["dead", away, "retry"], 64, "--all"),
        (&["dead", away, "drop"], 64, "--all"),
        (&["dead", away, "burn"], 64, "list, retry or drop"),
        (
            &["dead", away, "drop", "x", "--all"],
            64,
            "cannot be used with",
        ),
        (&["dead", away, "drop", ""], 64, "an id is empty"),
    ] {
        let (got, out, said) = ran(&mut tael(arguments));
        assert_eq!((got, &*out), (code, ""), "{arguments:?}: {said}");
        assert_eq!(said.lines().count(), 1, "{arguments:?}: {said}");
        assert!(said.contains(cause), "{arguments:?}: {said}");
        assert!(!said.contains("s3cr3t"), "{said}");
    }
}

#[test]
fn a_dry_run_tries_a_message_of_a_queue() {
    let dir = tempfile::tempdir().expect("tempdir");
    let try_it = |arguments: &[&str]| {
        let mut command = bare_command(&dir, "tael-client");
        command.env("TAEL_LOG", "warn").args([
            "--who",
            "align",
            "-c",
            "/bin/true",
            "--queue",
            "amqp://mq.example/jobs",
            "--dry-run",
        ]);
        ran(command.args(arguments))
    };
    // Java callers of OODT send lists.
    let (code, out, said) = try_it(&["-m", r#"{"sample":["S1"]}"#]);
    assert_eq!((code, &*said), (0, ""), "{out}");
    for part in [
        "trigger 'default': runs",
        "ATTR_SAMPLE=S1",
        "TAEL_QUEUE=jobs",
        "TAEL_FENCE=0",
    ] {
        assert!(out.contains(part), "{part}: {out}");
    }
    let (code, out, _) = try_it(&["-m", "["]);
    assert!(code == 65 && out.contains("refused: "), "{out}");
    let (code, out, _) = try_it(&["-m", "{}", "--when", "sample=S1"]);
    assert!(code == 65 && out.contains("sample"), "{out}");
}
