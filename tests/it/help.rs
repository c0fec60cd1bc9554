//! Help, manual pages, completions, and readers that leave.

use std::collections::BTreeSet;
use std::fs;
use std::io::pipe;
use std::process::{Command, Stdio};

use crate::common::{World, bare_command, ran};

/// The commands that `tael --help` lists.
fn commands(dir: &tempfile::TempDir) -> Vec<String> {
    let (_, overview, _) = ran(bare_command(dir, "tael").arg("--help"));
    let listed = overview.split_once("Commands:\n").expect("commands").1;
    let listed = listed.lines().take_while(|line| !line.is_empty());
    let names = listed.filter_map(|line| line.split_whitespace().next());
    names
        .filter(|name| *name != "help")
        .map(str::to_owned)
        .collect()
}

/// Runs `command` with a stdout that has no reader: exit code and stderr.
fn unread(command: &mut Command) -> (i32, String) {
    let (reader, writer) = pipe().expect("pipe");
    drop(reader);
    let child = command.stdout(writer).stderr(Stdio::piped()).spawn();
    let output = child.expect("spawn").wait_with_output().expect("wait");
    let error = String::from_utf8(output.stderr).expect("text");
    (output.status.code().unwrap_or(-1), error)
}

#[test]
fn a_closed_pipe_is_quiet() {
    let world = World::new();
    let client = world.client(
        "align",
        &["-t", "lab/a", "-c", "echo x; echo y", "--when", ""],
    );
    world.message("lab/a", &[]);
    world.wait_report("align", "/units/succeeded", 1);
    let mut lines: Vec<Vec<String>> = Vec::new();
    let mut add = |line: &str| lines.push(line.split(' ').map(str::to_owned).collect());
    for name in commands(&world.dir) {
        add(&format!("{name} --help"));
        add(&format!("{name} -h"));
    }
    for line in [
        "--help",
        "-V",
        "version",
        "completions bash",
        "completions zsh",
        "completions fish",
        "complete pipelines",
        "work list",
        "work list --json",
        "work status",
        "work results",
        "work --help",
        "work list --help",
        "status",
        "status --json",
        "status --graph",
        "control align status --root lab",
        "control align status --root lab --json",
        "check --who align --root lab",
    ] {
        add(line);
    }
    for words in lines {
        let mut command = world.tael(&words);
        let (code, error) = unread(command.env("TAEL_LOG", "warn"));
        assert_eq!((code, &*error), (141, ""), "{words:?}");
    }
    for name in ["tael-client", "tael-message", "tael-beacon"] {
        let (code, error) = unread(world.command(name).arg("--help"));
        assert_eq!((code, &*error), (141, ""), "{name}");
    }
    client.stop();
}

#[test]
fn versions_are_the_same_everywhere() {
    let dir = tempfile::tempdir().expect("tempdir");
    let version = concat!(env!("CARGO_PKG_VERSION"), "\n");
    for arguments in [&["version"][..], &["-V"], &["--version"]] {
        let (code, out, _) = ran(bare_command(&dir, "tael").args(arguments));
        assert_eq!((code, out), (0, format!("tael {version}")));
    }
    for name in ["tael-client", "tael-message", "tael-beacon"] {
        let (code, out, _) = ran(bare_command(&dir, name).arg("-V"));
        assert_eq!((code, out), (0, format!("{name} {version}")));
    }
}

#[test]
fn every_command_verb_and_file_has_a_manual_page() {
    let dir = tempfile::tempdir().expect("tempdir");
    let pages = dir.path().join("man");
    assert_eq!(ran(bare_command(&dir, "tael").arg("man").arg(&pages)).0, 0);
    let mut wanted =
        BTreeSet::from(["tael.1", "tael.toml.5", "tael-playbook.5"].map(str::to_owned));
    wanted.extend(commands(&dir).iter().map(|name| format!("tael-{name}.1")));
    for verb in [
        "list",
        "status",
        "results",
        "cancel",
        "retry",
        "release",
        "force-release",
    ] {
        wanted.insert(format!("tael-work-{verb}.1"));
    }
    let there: BTreeSet<String> = fs::read_dir(&pages)
        .expect("pages")
        .map(|entry| {
            entry
                .expect("entry")
                .file_name()
                .into_string()
                .expect("name")
        })
        .collect();
    let missing: Vec<_> = wanted.difference(&there).collect();
    assert!(missing.is_empty(), "{missing:?}");
    for name in there {
        let text = fs::read_to_string(pages.join(&name)).expect("page");
        for section in ["EXIT STATUS", "FILES", "SEE ALSO"] {
            assert_eq!(
                text.matches(&format!(".SH \"{section}\"")).count(),
                1,
                "{name}: {section}"
            );
        }
        let plain = [
            "tael-man.1",
            "tael-completions.1",
            "tael-version.1",
            "tael-demo.1",
        ];
        let has = text.contains(".SH \"EXAMPLES\"");
        assert!(has || plain.contains(&&*name), "{name} has no examples");
    }
    // The formats of files are whole.
    let page = |name: &str| {
        let text = fs::read_to_string(pages.join(name)).expect("page");
        text.replace("\\-", "-")
    };
    let config = page("tael.toml.5");
    for key in [
        "\\fBkeepalive\\fR",
        "\\fBenvreq\\fR",
        "[client]",
        "max-output",
        "\\fBrun\\fR",
    ] {
        assert!(config.contains(key), "{key}");
    }
    assert!(!config.contains("\\fBpassword\\fR"), "no file may hold it");
    let playbook = page("tael-playbook.5");
    for word in [
        "SEND",
        "WAITFOR",
        "WAIT",
        "RECEIVE",
        "RAISE",
        "RUN",
        "SET",
        "ON FAILURE",
        "SENDFILE",
    ] {
        assert!(playbook.contains(&format!("\\fB{word} ")), "{word}");
    }
    let check = page("tael-check.1");
    assert!(check.contains("\\fB3\\fR") && !check.contains("\\fB64\\fR"));
    let client = page("tael-client.1");
    assert!(client.contains("TAEL_CLIENT_JOBS") && client.contains("TAEL_HOST"));
}

/// What bash offers for the last of `words`.
fn completed(world: &World, words: &[&str]) -> Vec<String> {
    let script = world.path("tael.bash");
    let (code, text, _) = ran(world.tael(["completions", "bash"]).env_remove("TAEL_LOG"));
    assert_eq!(code, 0);
    fs::write(&script, text).expect("script");
    let tael = crate::common::binary("tael");
    let mut bash = Command::new("bash");
    let line = r#"
        source "$1"; shift
        COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
        _tael_live "$1" "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
        printf '%s\n' "${COMPREPLY[@]}""#;
    bash.args(["--norc", "-c", line, "bash"])
        .arg(script)
        .arg(tael);
    bash.args(words).env("STATE_DIRECTORY", world.state());
    let (code, out, error) = ran(&mut bash);
    assert_eq!((code, &*error), (0, ""), "{words:?}");
    out.lines().map(str::to_owned).collect()
}

#[test]
fn shells_complete_values_units_and_pipelines() {
    let world = World::new();
    let client = world.client("align", &["-t", "lab/a", "-c", "true", "--when", ""]);
    world.message("lab/a", &[]);
    world.wait_report("align", "/units/succeeded", 1);
    let offered = |words: &[&str]| completed(&world, words);
    assert_eq!(
        offered(&["client", "--overlap", ""]),
        ["queue", "skip", "replace", "coalesce"]
    );
    assert_eq!(offered(&["watch", "--log", "jour"]), ["journald"]);
    assert_eq!(offered(&["control", "al"]), ["align"]);
    assert_eq!(offered(&["work", "list", "--who", ""]), ["align"]);
    let units = offered(&["work", "results", ""]);
    assert_eq!(units.len(), 1, "{units:?}");
    let (code, line, _) = ran(&mut world.tael(["work", "status", &units[0], "--json"]));
    assert_eq!(code, 0, "{line}");
    for verb in ["cancel", "retry"] {
        assert_eq!(offered(&["work", verb, &units[0][..10]]), units);
    }
    assert!(offered(&["work", "results", "--fo"]).contains(&"--follow".to_owned()));
    assert!(
        !offered(&["work", "submit", ""]).contains(&units[0]),
        "a type and no unit"
    );
    let types = world.path("types.toml");
    let text =
        "[[work]]\ntype = 'upper'\ncommand = 'cat'\n[[work]]\ntype = 'up.2'\ncommand = 'cat'\n";
    fs::write(&types, text).expect("types");
    let node = world.client("node", &["--config", types.to_str().expect("path")]);
    assert_eq!(offered(&["work", "submit", ""]), ["up.2", "upper"]);
    assert_eq!(offered(&["work", "submit", "upp"]), ["upper"]);
    node.stop();
    assert!(!offered(&["work", "submit", "upp"]).contains(&"upper".to_owned()));
    client.stop();
    // Without state, and with state that cannot be read, it says nothing.
    for state in ["nowhere", "tael.bash"] {
        let mut complete = world.tael(["complete", "units"]);
        complete.env("STATE_DIRECTORY", world.path(state));
        assert_eq!(ran(&mut complete), (0, String::new(), String::new()));
    }
    let zsh = ran(&mut world.tael(["completions", "zsh"])).1;
    let fish = ran(&mut world.tael(["completions", "fish"])).1;
    for function in ["units", "pipelines", "types"] {
        assert!(zsh.contains(&format!(":_tael_{function}'")), "{function}");
    }
    assert!(fish.contains("tael complete types"));
    assert!(fish.contains("tael complete units") && fish.contains("-l who -x"));
}

#[test]
fn usage_lines_name_what_is_required() {
    let dir = tempfile::tempdir().expect("tempdir");
    for (name, arguments, usage) in [
        (
            "tael",
            &["client", "-h"][..],
            "Usage: tael client [OPTIONS] --who NAME -t FILTER... -c CMD\n",
        ),
        (
            "tael-client",
            &["-h"],
            "Usage: tael-client [OPTIONS] --who NAME -t FILTER... -c CMD\n",
        ),
        (
            "tael-message",
            &["--help"],
            "Usage: tael-message [OPTIONS] -t TOPIC [KEY=VALUE]...\n",
        ),
    ] {
        let (code, out, _) = ran(bare_command(&dir, name).args(arguments));
        assert_eq!(code, 0);
        assert!(out.contains(usage), "{out}");
        // The environment is one sentence.
        assert!(!out.contains("[env:"), "{out}");
    }
    let (_, out, _) = ran(bare_command(&dir, "tael").args(["client", "--help"]));
    let words: Vec<&str> = out.split_whitespace().collect();
    let text = words.join(" ");
    assert!(
        text.contains("from the environment (--topic is TAEL_CLIENT_TOPIC; "),
        "{text}"
    );
}

#[test]
fn verbs_that_show_facts_do_not_offer_options_that_they_refuse() {
    let dir = tempfile::tempdir().expect("tempdir");
    let help = |arguments: &[&str]| ran(bare_command(&dir, "tael").arg("facts").args(arguments)).1;
    for verb in ["show", "view", "forget", "publish"] {
        let (short, long) = (help(&[verb, "-h"]), help(&[verb, "--help"]));
        let is_own = verb == "publish";
        assert_eq!(short.contains("--dir"), is_own, "{short}");
        assert_eq!(long.contains("--keep <"), is_own, "{long}");
        let more = format!("All options, and examples: tael facts {verb} --help");
        assert!(short.contains(&more), "{short}");
        assert!(short.lines().count() <= 24, "{short}");
    }
    // They are refused, and a file may still have them.
    let file = dir.path().join("tael.toml");
    fs::write(&file, "[facts]\nnode = 'n'\nkeep = '40d'\n").expect("file");
    let mut show = bare_command(&dir, "tael");
    show.args(["facts", "show", "--dir", "/x"]);
    let (code, _, stderr) = ran(&mut show);
    assert_eq!(code, 64, "{stderr}");
    let mut publish = bare_command(&dir, "tael");
    publish.args(["facts", "publish", "--dry-run", "--config"]);
    let (_, stdout, stderr) = ran(publish.arg(&file));
    assert!(stdout.contains("\"node\":\"n\""), "{stdout}{stderr}");
    let mut show = bare_command(&dir, "tael");
    show.args(["facts", "show", "-p", "1", "--timeout", "1s", "--config"]);
    let (code, _, stderr) = ran(show.arg(&file));
    assert_eq!(code, 69, "{stderr}");
}

#[test]
fn verbs_end_their_help_with_examples() {
    let dir = tempfile::tempdir().expect("tempdir");
    let help = |arguments: &[&str]| ran(bare_command(&dir, "tael").args(arguments)).1;
    let listed = help(&["work", "--help"]);
    let listed = listed.split_once("Commands:\n").expect("verbs").1;
    let verbs = listed.lines().take_while(|line| !line.trim().is_empty());
    let verbs: Vec<&str> = verbs
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|verb| *verb != "help")
        .collect();
    assert!(verbs.len() >= 6, "{verbs:?}");
    for verb in verbs {
        let text = help(&["work", verb, "--help"]);
        let examples = text.split_once("\nExamples:\n  ").expect("examples").1;
        for line in examples.lines() {
            let words = line.trim().strip_prefix("tael ").expect("a command");
            let words: Vec<&str> = words.split(' ').chain(["--help"]).collect();
            assert_eq!(words[..2], ["work", verb]);
            let (code, out, error) = ran(bare_command(&dir, "tael").args(&words));
            assert!(code == 0 && out.contains("Usage"), "{line}: {error}");
        }
    }
}
