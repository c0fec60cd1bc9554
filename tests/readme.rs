//! The README is true: every fenced block is run, or compared with what really happens.
//!
//! A block says by its info string how it is tested; [`KINDS`] lists them all, and a block of
//! no kind fails. The host `mqtt.lab.example` stands for the test's broker, and
//! `/usr/local/bin/` for the folder of the binaries.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use common::broker::is_mosquitto;
use common::{World, bare_command, binary, ran, wait_until};

/// How blocks are tested. A kind that no block has is dead, and fails too.
const KINDS: &[&str] = &[
    // The newcomer's commands: those that build nothing but ourselves run here.
    "sh first",
    // What is installed exists.
    "sh install",
    // Commands that stay until they are stopped, in the order of the page.
    "sh terminal",
    // Commands that end with 0.
    "sh run",
    // Commands with what they print, but for figures and names of hosts.
    "sh check",
    // A node's functions, its command, a playbook for it, and a node in a file: played.
    "sh functions",
    "sh nodes",
    "text playbook",
    "toml node",
    // A client's line: it comes online.
    "crontab",
    // What `.ci/package` and `.ci/systemd` do: here, the files that are named exist.
    "sh package",
    "sh systemd",
    "diff swap",
    "toml config",
    // A broker's configuration: mosquitto starts with it where the suite runs against it.
    "conf mosquitto",
    // What `tael demo` prints, but for times, ids and names.
    "text demo",
];

const BROKER: &str = "mqtt.lab.example";
const INSTALLED: &str = "/usr/local/bin/";

struct Block {
    line: usize,
    kind: String,
    text: String,
}

fn readme() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    fs::read_to_string(path).expect("README.md")
}

/// All blocks, in order.
fn blocks() -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut open: Option<Block> = None;
    for (line, n) in readme().lines().zip(1..) {
        let fence = line.trim_start().strip_prefix("```");
        match (&mut open, fence) {
            (None, Some(kind)) => {
                open = Some(Block {
                    line: n,
                    kind: kind.to_owned(),
                    text: String::new(),
                });
            }
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (Some(block), None) => block.text += &format!("{line}\n"),
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "a block is not closed");
    blocks
}

fn of_kind(kind: &str) -> Vec<Block> {
    assert!(KINDS.contains(&kind), "{kind}");
    blocks()
        .into_iter()
        .filter(|block| block.kind == kind)
        .collect()
}

/// A block's text on this machine.
fn here(world: &World, text: &str) -> String {
    let bin = binary("tael");
    let bin = bin.parent().expect("folder").to_str().expect("UTF-8");
    let port = world.broker.port();
    text.replace(INSTALLED, &format!("{bin}/"))
        .replace(
            &format!("--host {BROKER}"),
            &format!("--host 127.0.0.1 --port {port}"),
        )
        .replace(BROKER, &format!("127.0.0.1:{port}"))
}

/// `sh -c TEXT` in an empty home, with our binaries to be found; pointed at the broker, unless
/// the text names one itself.
fn sh(world: &World, text: &str) -> Command {
    let bin = binary("tael");
    let bin = bin.parent().expect("folder").display();
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new("/bin/sh");
    command.args(["-euc", &here(world, text)]);
    command.env_clear().current_dir(world.dir.path());
    for (name, value) in bare_command(&world.dir, "tael").get_envs() {
        command.env(name, value.unwrap_or_default());
    }
    command
        .env_remove("STATE_DIRECTORY")
        .env_remove("XDG_STATE_HOME")
        .env("PATH", format!("{bin}:{path}"));
    if !text.contains(BROKER) {
        command.envs(world.broker.environment());
    }
    command
}

/// What follows `start` up to a blank, without quotes.
fn word_after(text: &str, start: &str) -> String {
    let rest = text.split_once(start).expect(start).1.trim_start();
    let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
    rest[..end].trim_matches('"').to_owned()
}

#[test]
fn no_block_is_left_out() {
    let mut seen = BTreeSet::new();
    for block in blocks() {
        assert!(
            KINDS.contains(&block.kind.as_str()),
            "README.md:{}: a block of the unknown kind '{}'",
            block.line,
            block.kind
        );
        assert!(!block.text.trim().is_empty(), "README.md:{}", block.line);
        seen.insert(block.kind);
    }
    let all: BTreeSet<String> = KINDS.iter().map(|kind| (*kind).to_owned()).collect();
    assert_eq!(seen, all, "a kind has no block");
}

/// Numbers, the host and the user differ from run to run.
fn masked(line: &str) -> String {
    let words = line.split(' ').map(|word| match word.split_once('@') {
        Some((who, _)) if who == "align" || who == "report" => format!("{who}@"),
        Some(_) => "@".to_owned(),
        None => word.to_owned(),
    });
    let line = words.collect::<Vec<_>>().join(" ");
    let mut masked = String::new();
    for c in line.chars() {
        match c {
            c if !c.is_ascii_digit() => masked.push(c),
            _ if masked.ends_with('0') => {}
            _ => masked.push('0'),
        }
    }
    masked
}

#[test]
#[cfg_attr(
    not(feature = "embedded-broker"),
    ignore = "there is no `tael demo` and no `tael broker`"
)]
fn the_first_commands_do_what_they_show() {
    let mut commands = Vec::new();
    for block in of_kind("sh first") {
        commands.extend(block.text.lines().map(str::to_owned));
    }
    // The first is run here, without its build; the second runs this.
    assert_eq!(commands, ["cargo run --release -- demo", "cargo test"]);
    let dir = tempfile::tempdir().expect("tempdir");
    let (code, out, error) = ran(bare_command(&dir, "tael")
        .arg("demo")
        .env("TAEL_LOG", "warn"));
    assert_eq!((code, error.as_str()), (0, ""), "{out}");
    let shown: Vec<String> = of_kind("text demo")
        .iter()
        .flat_map(|block| block.text.lines())
        .map(masked)
        .collect();
    let printed: Vec<String> = out.lines().map(masked).collect();
    assert_eq!(printed, shown);
}

#[test]
fn what_is_installed_is_there() {
    for block in of_kind("sh install") {
        let mut lines = block.text.lines();
        assert_eq!(lines.next(), Some("cargo build --release"));
        let words: Vec<&str> = lines.flat_map(str::split_whitespace).collect();
        let (first, files) = words.split_at(2);
        assert_eq!(first, ["sudo", "install"]);
        let (folder, files) = files.split_last().expect("a folder");
        assert_eq!(*folder, INSTALLED);
        for file in files {
            let name = file.strip_prefix("target/release/").expect(file);
            let (code, out, _) = ran(Command::new(binary(name)).arg("--version"));
            let version = format!("{name} {}\n", env!("CARGO_PKG_VERSION"));
            assert_eq!((code, out), (0, version));
        }
        assert_eq!(files.len(), 4);
    }
}

#[test]
fn the_tour_by_hand_goes_as_told() {
    let world = World::new();
    let ears = world.ears(&["lab/#"]);
    let mut terminals = Vec::new();
    let mut runs = 0;
    for block in blocks() {
        match block.kind.as_str() {
            "sh terminal" => {
                let mut command = sh(&world, &format!("exec {}", block.text));
                if block.text.starts_with("tael client") {
                    terminals.push(world.online("align", command));
                } else if block.text.starts_with("tael broker") {
                    // The port of MQTT may be taken here; the tour goes on with the test's own.
                    command.env("TAEL_BROKER_LISTEN", "127.0.0.1:0");
                    if cfg!(feature = "embedded-broker") {
                        let broker = world.spawn(command);
                        wait_until("the broker listens", || {
                            broker.log_text().contains("listening on")
                        });
                        broker.stop();
                    }
                } else {
                    assert!(block.text.starts_with("tael watch"), "{}", block.text);
                    let out = world.path("watched");
                    command.stdout(fs::File::create(&out).expect("file"));
                    let watch = world.spawn(command);
                    // What is retained is there to be seen.
                    wait_until("watch shows something", || {
                        world.lines("watched").iter().any(|l| l.contains("online"))
                    });
                    watch.stop();
                }
            }
            "sh run" => {
                let (code, out, error) = ran(&mut sh(&world, &block.text));
                assert_eq!(code, 0, "README.md:{}: {out}{error}", block.line);
                runs += block.text.matches("--attr status finished").count();
                ears.wait_all("the run's end", |_| {
                    (ears.count("align", "finished") == runs).then_some(())
                });
            }
            _ => {}
        }
    }
    assert_eq!(world.lines("aligned"), ["S1", "S2"]);
    assert!(runs > 0 && !terminals.is_empty());
    for terminal in terminals {
        terminal.stop();
    }
}

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
        assert!(clients > 0, "README.md:{}", block.line);
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
fn the_package_has_what_the_page_names() {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let manifest = fs::read_to_string(package.join("Cargo.toml")).expect("Cargo.toml");
    let script = fs::read_to_string(package.join(".ci/package")).expect(".ci/package");
    for block in of_kind("sh package") {
        for line in block.text.lines().filter(|line| !line.starts_with("sudo ")) {
            let command = line.trim_start_matches("cargo ");
            let done = script.contains(command.split(" --").next().expect("a command"));
            assert!(done, "README.md:{}: {line}", block.line);
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
    // Every unit and every file that is linked is there.
    let readme = readme();
    for unit in ["client@", "check@", "beacon", "broker"] {
        assert!(readme.contains(&format!("| `tael-{unit}")), "{unit}");
        let file = package.join(format!("systemd/tael-{unit}.service"));
        assert!(file.exists(), "{}", file.display());
    }
    for rest in readme.split("](").skip(1) {
        let target = rest.split(')').next().unwrap_or_default();
        if !target.contains(':') {
            assert!(package.join(target).exists(), "{target}");
        }
    }
}

#[test]
fn the_scripts_are_swapped_by_their_names_alone() {
    let world = World::new();
    let ears = world.ears(&["lab/#"]);
    for block in of_kind("diff swap") {
        let lines: Vec<&str> = block.text.lines().collect();
        for pair in lines.chunks(2) {
            let [old, new] = pair else {
                panic!("a line is alone: {pair:?}");
            };
            let old = old.strip_prefix('-').expect("an old line");
            let new = new.strip_prefix('+').expect("a new line");
            let names = [
                ("/opt/tael/mqtt-client.py", "/usr/local/bin/tael-client"),
                ("/opt/tael/mqtt-message.py", "/usr/local/bin/tael-message"),
            ];
            let swapped = names
                .iter()
                .fold(old.to_owned(), |line, (from, to)| line.replace(from, to));
            assert_eq!(swapped, new);
            let line = new.strip_prefix("@reboot ").unwrap_or(new);
            let mut command = sh(&world, &format!("exec {line}"));
            if new.contains("tael-client") {
                world.online(&word_after(new, "--who"), command).stop();
            } else {
                let (code, out, error) = ran(command.env("TAEL_LOG", "warn"));
                assert_eq!((code, out.as_str(), error.as_str()), (0, "", ""));
                ears.wait("the message", |m| m.topic == word_after(new, "-t"));
            }
        }
    }
}

#[test]
fn the_playbook_plays_on_its_nodes() {
    use std::os::unix::fs::PermissionsExt;
    let one = |kind: &str| of_kind(kind).into_iter().next().expect(kind);
    let world = World::new();
    // What the functions run is not installed everywhere.
    let bin = world.path("bin");
    fs::create_dir(&bin).expect("bin");
    let stand_in = bin.join("iperf3");
    fs::write(&stand_in, "#!/bin/sh\nexec sleep 600\n").expect("iperf3");
    fs::set_permissions(&stand_in, fs::Permissions::from_mode(0o755)).expect("mode");
    let path = format!("{}:/usr/bin:/bin", bin.display());
    fs::write(world.path("router.sh"), one("sh functions").text).expect("functions");
    fs::write(world.path("node.toml"), one("toml node").text).expect("node");
    fs::write(world.path("playbook"), one("text playbook").text).expect("playbook");
    let line = here(&world, &one("sh nodes").text);
    let arguments = line.trim().strip_prefix("tael ").expect("tael");
    let mut router = world.tael(arguments.split(' '));
    router.current_dir(world.dir.path()).env("PATH", &path);
    let _router = world.spawn(router);
    let mut laptop = world.tael(["node", "laptop", "--config", "node.toml"]);
    laptop.current_dir(world.dir.path()).env("PATH", &path);
    let _laptop = world.spawn(laptop);
    let mut play = world.tael(["play", "playbook", "--root", "testlab"]);
    let (code, out, stderr) = ran(play.current_dir(world.dir.path()));
    assert_eq!(code, 0, "{out}{stderr}");
    let result = fs::read_to_string(world.path("result.txt")).expect("result");
    assert_eq!(result, "measured\n");
}

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
                "line {}",
                block.line
            );
        }
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
        // It has read the triggers: it refuses to guess which of them to raise.
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

#[test]
fn mosquitto_starts_with_that_configuration() {
    for block in of_kind("conf mosquitto") {
        let has = |line: &str| block.text.lines().any(|l| l == line);
        assert!(has("persistence true") && has("allow_anonymous false"));
        assert!(block.text.contains("\nmax_queued_messages "));
        assert!(block.text.contains("\nmax_inflight_messages "));
        if !is_mosquitto() {
            // The suite runs without an installed broker too; then this is all that is known.
            continue;
        }
        let world = World::new();
        let users = world.path("passwd");
        let (code, _, error) = ran(Command::new("mosquitto_passwd")
            .args(["-b", "-c"])
            .arg(&users)
            .args(["ann", "secret"]));
        assert_eq!(code, 0, "{error}");
        let store = world.path("store");
        fs::create_dir(&store).expect("store");
        let port = {
            let free = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("bind");
            free.local_addr().expect("address").port()
        };
        let mut text = block.text.clone();
        for (from, to) in [
            ("listener 1883", format!("listener {port} 127.0.0.1")),
            ("/var/lib/mosquitto/", format!("{}/", store.display())),
            ("/etc/mosquitto/passwd", users.display().to_string()),
        ] {
            assert!(text.contains(from), "{from}");
            text = text.replace(from, &to);
        }
        if nix::unistd::Uid::effective().is_root() {
            // Else it gives up the right to read its own files.
            text += "user root\n";
        }
        let file = world.path("mosquitto.conf");
        fs::write(&file, text).expect("file");
        let mut mosquitto = Command::new("mosquitto");
        mosquitto.arg("-c").arg(file);
        let mosquitto = world.spawn(mosquitto);
        let message = |password: &str| {
            let mut command = bare_command(&world.dir, "tael-message");
            let broker = format!("mqtt://ann@127.0.0.1:{port}");
            command.args(["--broker", &broker, "-t", "lab/seq/status"]);
            ran(command.env("TAEL_PASSWORD", password)).0
        };
        wait_until("mosquitto takes a message", || message("secret") == 0);
        assert_eq!(message("wrong"), 77);
        mosquitto.stop();
    }
}

/// The long options in `text`.
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
    let readme = readme();
    let overview = help(&["--help"]);
    let listed = overview.split_once("Commands:\n").expect("commands").1;
    let listed = listed.split("\n\n").next().unwrap_or_default();
    let commands = listed
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter(|command| *command != "help");
    let mut helps = String::new();
    for command in commands {
        assert!(readme.contains(&format!("| `tael {command}")), "{command}");
        helps += &help(&[command, "--help"]);
    }
    helps += &help(&["work", "results", "--help"]);
    let cargo = ["--release", "--no-default-features"].map(str::to_owned);
    let known = &long_options(&helps) | &BTreeSet::from(cargo);
    let others = ["--help", "--bins", "--no-build", "--now", "--user"].map(str::to_owned);
    let known = &known | &BTreeSet::from(others);
    let unknown: Vec<_> = long_options(&readme).difference(&known).cloned().collect();
    assert!(unknown.is_empty(), "no command has {unknown:?}");

    // Those of the section on the environment; the others are what a command finds.
    let section = readme
        .split_once("### In the environment")
        .expect("section");
    let section = section.1.split("\n### ").next().unwrap_or_default();
    let words = section.split(|c: char| !c.is_ascii_uppercase() && c != '_');
    for name in words.filter(|word| word.starts_with("TAEL_") && !word.ends_with('_')) {
        assert!(helps.contains(name), "no command reads {name}");
    }
}
