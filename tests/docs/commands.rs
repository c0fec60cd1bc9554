//! cron, systemd, the package, configuration files and options.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use tael::error::Kind;

use crate::common::{World, bare_command, binary, ran};
use crate::page::{here, of_kind, one, page, pages, root, sh, word_after};

#[test]
fn crontab_lines_bring_a_client_online() {
    for block in of_kind("crontab") {
        let world = World::new();
        let mut variables = Vec::new();
        let mut clients = 0;
        for line in block.text.lines() {
            let start = line.split_whitespace().next().expect("a line");
            if let Some((name, value)) = start.split_once('=') {
                variables.push((name.to_owned(), here(&world, value)));
                continue;
            }
            let fields = if start.starts_with('@') { 1 } else { 5 };
            let command = line.splitn(fields + 1, ' ').last().expect("a command");
            assert!(!command.contains('%'), "cron ends a command there: {line}");
            let mut cron = sh(&world, &format!("exec {command}"));
            for name in world.broker.environment() {
                cron.env_remove(name.0);
            }
            cron.envs(variables.iter().map(|(name, value)| (name, value)));
            world.online(&word_after(command, "--who"), cron).stop();
            clients += 1;
        }
        assert!(clients > 0, "{}", block.place());
    }
}

#[test]
fn a_second_client_of_the_name_leaves_quietly() {
    let block = of_kind("crontab").pop().expect("crontab");
    let line = block.text.lines().last().expect("a line");
    assert!(line.contains("--if-not-running"), "{line}");
    let command = line.splitn(6, ' ').last().expect("a command");
    let world = World::new();
    let start = || sh(&world, &format!("exec {command}"));
    let client = world.online("align", start());
    assert_eq!(
        ran(start().env("TAEL_LOG", "warn")),
        (0, String::new(), String::new())
    );
    client.stop();
}

#[test]
fn a_client_of_crons_stops_as_the_page_says() {
    let world = World::new();
    let line = "exec tael-client -t lab/seq/status -c true --who align";
    let mut client = world.online("align", sh(&world, line));
    let (code, out, error) = ran(&mut sh(&world, &one("sh stop").text));
    assert_eq!(code, 0, "{out}{error}");
    assert_eq!(client.wait(), 0);
}

#[test]
fn the_package_has_what_the_page_names() {
    let package = root();
    let manifest = fs::read_to_string(package.join("Cargo.toml")).expect("Cargo.toml");
    let script = fs::read_to_string(package.join(".ci/package")).expect(".ci/package");
    for block in of_kind("sh package") {
        for line in block.text.lines().filter(|line| !line.starts_with("sudo ")) {
            let command = line.trim_start_matches("cargo ");
            let done = script.contains(command.split(" --").next().expect("a command"));
            assert!(done, "{}: {line}", block.place());
        }
    }
    for block in of_kind("sh systemd") {
        for word in block.text.split_whitespace() {
            if let Some(path) = word.strip_prefix("/usr/share/") {
                assert!(
                    manifest.contains(&format!("\"usr/share/{path}\"")),
                    "{word}"
                );
            }
        }
    }
    // Every unit on the page exists.
    let operations = page("docs/operations.md").text;
    for unit in ["client@", "check@", "beacon", "broker", "facts", "gateway"] {
        assert!(operations.contains(&format!("| `tael-{unit}")), "{unit}");
        let file = package.join(format!("systemd/tael-{unit}.service"));
        assert!(file.exists(), "{}", file.display());
    }
    for page in ["README.md", "docs/*.md"] {
        assert!(manifest.contains(&format!("[\"{page}\", ")), "{page}");
    }
}

#[test]
fn the_file_makes_a_client_with_its_triggers() {
    for block in of_kind("toml config") {
        let world = World::new();
        let file = world.path("tael.toml");
        fs::write(&file, here(&world, &block.text)).expect("file");
        let mut command = bare_command(&world.dir, "tael-client");
        command.arg("--config").arg(&file);
        let who = word_after(&block.text, "who =");
        let client = world.online(&who, command);
        // It has read the triggers: a request must name one of them.
        let mut raise = bare_command(&world.dir, "tael");
        raise.args(["control", &who, "raise", "--config"]).arg(file);
        let (code, _, error) = ran(raise.env("TAEL_LOG", "warn"));
        assert_eq!(code, 64, "{error}");
        for line in block.text.lines() {
            if let Some(name) = line.strip_prefix("name = ") {
                assert!(error.contains(name.trim_matches('"')), "{error}");
            }
        }
        client.stop();
    }
}

/// Returns the long options in `text`.
fn long_options(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '-');
    words
        .filter(|word| word.starts_with("--") && word.len() > 2 && !word.ends_with('-'))
        .map(str::to_owned)
        .collect()
}

#[test]
#[cfg_attr(
    not(feature = "embedded-broker"),
    ignore = "there is no `tael demo` and no `tael broker`"
)]
fn options_commands_and_variables_exist() {
    let help = |arguments: &[&str]| ran(Command::new(binary("tael")).args(arguments)).1;
    let reference = page("docs/reference.md").text;
    let all: String = pages().into_iter().map(|page| page.text).collect();
    let overview = help(&["--help"]);
    let listed = overview.split_once("Commands:\n").expect("commands").1;
    let listed = listed.split("\n\n").next().unwrap_or_default();
    let commands = listed
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter(|command| *command != "help");
    let mut helps = String::new();
    for command in commands {
        assert!(
            reference.contains(&format!("| `tael {command}")),
            "{command}"
        );
        helps += &help(&[command, "--help"]);
    }
    for verb in [
        "submit", "list", "status", "results", "cancel", "retry", "release",
    ] {
        helps += &help(&["work", verb, "--help"]);
    }
    let cargo = ["--release", "--no-default-features"].map(str::to_owned);
    for verb in ["push", "status", "drain", "dead"] {
        helps += &help(&["queue", verb, "--help"]);
    }
    for verb in ["publish", "show", "view"] {
        helps += &help(&["facts", verb, "--help"]);
    }
    let known = &long_options(&helps) | &BTreeSet::from(cargo);
    let others = [
        "--help",
        "--bins",
        "--locked",
        "--path",
        "--prefix",
        "--no-build",
        // Of rabbitmqctl.
        "--apply-to",
        // Of receptorctl.
        "--node",
        "--now",
        "--user",
    ]
    .map(str::to_owned);
    let known = &known | &BTreeSet::from(others);
    let unknown: Vec<_> = long_options(&all).difference(&known).cloned().collect();
    assert!(unknown.is_empty(), "no command has {unknown:?}");

    // The manual pages list the variables.
    let folder = tempfile::tempdir().expect("tempdir");
    let manual = folder.path().to_str().expect("path");
    help(&["man", manual]);
    let pages = fs::read_dir(manual).expect("pages").flatten();
    let manual: String = pages
        .map(|entry| fs::read_to_string(entry.path()).expect("page"))
        .collect();
    let all = page("docs/reference.md").text;
    let section = all.split_once("\n## Environment").expect("section").1;
    let section = section.split("\n## ").next().unwrap_or_default();
    let words = section.split(|c: char| !c.is_ascii_uppercase() && c != '_');
    for name in words.filter(|word| word.starts_with("TAEL_") && !word.ends_with('_')) {
        assert!(manual.contains(name), "no command reads {name}");
    }
}

/// Maximum number of lines of a first help page, with the prompt.
const SCREEN: usize = 25;

#[test]
fn help_fits_a_screen_and_its_examples_work() {
    let help = |arguments: &[&str]| ran(Command::new(binary("tael")).args(arguments)).1;
    let overview = help(&["-h"]);
    let listed = overview.split_once("Commands:\n").expect("commands").1;
    let commands = listed
        .lines()
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_whitespace().next())
        .filter(|command| *command != "help");
    let mut count = 0;
    for command in commands {
        let first = help(&[command, "-h"]);
        assert!(first.lines().count() < SCREEN, "{first}");
        let whole = help(&[command, "--help"]);
        let examples = whole.split_once("Examples:\n").map_or("", |(_, rest)| rest);
        for line in examples.lines().take_while(|line| line.starts_with("  ")) {
            let own = line
                .split(" | ")
                .find(|part| part.trim().starts_with("tael "));
            let own = own.and_then(|part| part.split(" >").next());
            let own = own.and_then(|part| part.split(" <").next()).expect(line);
            let words = shell_words::split(own).expect("words");
            // Help comes only after options that exist.
            let (code, out, error) = ran(Command::new(binary("tael"))
                .args(&words[1..])
                .arg("--help")
                .env("TAEL_CONFIG", ""));
            assert_eq!(code, 0, "{line}: {error}");
            assert!(out.contains("Usage"), "{line}");
            count += 1;
        }
    }
    assert!(count > 15, "{count} examples");
    for group in ["Trigger:", "Command:", "Policy:", "State:", "Broker:"] {
        let shown = |flag| help(&["client", flag]).lines().any(|line| line == group);
        assert!(shown("-h") && shown("--help"), "{group}");
    }
}

#[test]
fn exit_codes_are_all_explained() {
    let codes = |name: &str, section: &str| -> BTreeSet<u8> {
        let text = page(name).text;
        let section = text.split_once(section).expect("section").1;
        let section = section.split("\n#").next().unwrap_or_default();
        let rows = section.lines().filter_map(|line| line.strip_prefix("| "));
        rows.filter_map(|row| row.split(' ').next()?.parse().ok())
            .collect()
    };
    let errors = BTreeSet::from([
        Kind::Usage.exit_code(),
        Kind::Data.exit_code(),
        Kind::Unavailable.exit_code(),
        Kind::Bug.exit_code(),
        Kind::CannotCreate.exit_code(),
        Kind::TryAgain.exit_code(),
        Kind::NotAuthorised.exit_code(),
        Kind::Config.exit_code(),
    ]);
    let others = BTreeSet::from([0, Kind::NoCode.exit_code()]);
    assert_eq!(
        codes("docs/reference.md", "\n## Exit codes\n"),
        &errors | &others
    );
    assert_eq!(codes("docs/operations.md", "\n### By exit code\n"), errors);
}
