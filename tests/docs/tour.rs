//! The first commands, a pipeline by hand, installation, and replacing scripts.

use std::fs;
use std::process::Command;

use crate::common::{World, bare_command, binary, ran, wait_until};
use crate::page::{INSTALLED, blocks, of_kind, sh, word_after};

/// Replaces numbers, the host and the user, which differ from run to run.
fn masked(line: &str) -> String {
    // Columns are as wide as their widest cell.
    let words = line
        .split_whitespace()
        .map(|word| match word.split_once('@') {
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
    // The first block runs here, without its build. The second one runs this test.
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
                    // The port of MQTT may be taken here, so the tour uses the broker of the test.
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
                    // The retained messages show.
                    wait_until("watch shows something", || {
                        world.lines("watched").iter().any(|l| l.contains("online"))
                    });
                    watch.stop();
                }
            }
            "sh run" => {
                let (code, out, error) = ran(&mut sh(&world, &block.text));
                assert_eq!(code, 0, "{}: {out}{error}", block.place());
                let ways = ["status=finished", "--attr status finished"];
                runs += ways
                    .map(|way| block.text.matches(way).count())
                    .iter()
                    .sum::<usize>();
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
