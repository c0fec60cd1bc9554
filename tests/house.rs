//! The house: floors, rooms for the large libraries, and rules that no compiler checks.
//!
//! The floors, from the ground: `error`, `model`, `os`, `net` and `store`, `runner`, `engine`,
//! `tools`, `cli`, the binaries. A file uses lower floors and its own; `net` and `store` stand side by
//! side and do not know each other. `os` lies below them, because the ledger and the unit
//! folders live by the kernel's locks.
// A test that fails panics, and so may its helpers. clippy.toml covers the tests themselves only.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

#[path = "house/page.rs"]
mod page;
#[path = "house/promises.rs"]
mod promises;
#[path = "house/rooms.rs"]
mod rooms;
#[path = "house/walk.rs"]
mod walk;

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

/// Every room and its floor.
const FLOORS: &[(&str, usize)] = &[
    ("error", 0),
    ("model", 1),
    ("os", 2),
    ("net", 3),
    ("store", 3),
    ("runner", 4),
    ("engine", 5),
    ("tools", 6),
    ("cli", 7),
];

/// Libraries that only one room may know, so that another could take their place.
const ROOMS: &[(&str, &[&str])] = &[
    ("rumqttc", &["net/mqtt.rs", "net/mqtt/"]),
    ("mqtt5", &["net/broker.rs", "net/broker/"]),
    ("hyper", &["net/http/"]),
    ("rusqlite", &["store/ledger/", "store/view.rs"]),
    ("quick_xml", &["model/gateway/xmlrpc/"]),
    ("rust_sugiyama", &["model/drawing/"]),
    ("regex_lite", &["model/gateway/rules/"]),
];

/// Lints against code that would end a daemon, with the reports of its runs.
const LINTS: &[&str] = &[
    "expect_used",
    "indexing_slicing",
    "panic",
    "todo",
    "unimplemented",
    "unreachable",
    "unwrap_used",
];

/// Maximum number of lines of code in a file, without comments and unit tests: one sitting of
/// reading.
const MAX_LINES: usize = 450;

struct Source {
    /// Below `src/`.
    path: String,
    text: String,
    /// Lines without comments, numbered from 1.
    code: Vec<(usize, String)>,
}

fn package() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Returns the Rust files below `folder` of the package, in order.
fn rust_files(folder: &str) -> Vec<PathBuf> {
    fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).expect("folder") {
            let path = entry.expect("entry").path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|e| e == "rs") {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    walk(&package().join(folder), &mut found);
    found.sort();
    found
}

fn sources() -> Vec<Source> {
    let src = package().join("src");
    let found = rust_files("src");
    assert!(found.len() > 40, "the sources are elsewhere: {found:?}");
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).expect("source");
        let path = path.strip_prefix(&src).expect("below src");
        Source {
            path: path.to_str().expect("UTF-8").to_owned(),
            code: code(&text),
            text,
        }
    };
    found.into_iter().map(read).collect()
}

/// Returns the lines of `text` without line comments.
fn code(text: &str) -> Vec<(usize, String)> {
    let numbered = text.lines().zip(1..);
    let stripped = numbered.map(|(line, n)| {
        let code = match line.trim_start() {
            comment if comment.starts_with("//") => "",
            _ => line.split(" // ").next().unwrap_or_default(),
        };
        (n, code.to_owned())
    });
    stripped.collect()
}

impl Source {
    /// Returns its room; `None` for the map of the house and the binaries.
    fn room(&self) -> Option<&str> {
        let first = self.path.split('/').next().unwrap_or_default();
        let room = first.strip_suffix(".rs").unwrap_or(first);
        (!["lib", "main", "bin"].contains(&room)).then_some(room)
    }

    /// Returns the code above its unit tests; none in a file with tests only.
    fn without_tests(&self) -> &[(usize, String)] {
        if self.path.ends_with("/tests.rs") {
            return &[];
        }
        let tests = self
            .code
            .windows(2)
            .position(|two| two[0].1 == "#[cfg(test)]" && two[1].1.contains("mod tests"));
        &self.code[..tests.unwrap_or(self.code.len())]
    }
}

fn floor(room: &str) -> Option<usize> {
    let found = FLOORS.iter().find(|(name, _)| *name == room);
    found.map(|(_, floor)| *floor)
}

/// Returns the names after `start` in `line`, where that begins a path.
fn paths_after<'a>(line: &'a str, start: &str) -> Vec<&'a str> {
    let mut names = Vec::new();
    for (at, _) in line.match_indices(start) {
        let before = line[..at].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') {
            continue;
        }
        let rest = &line[at + start.len()..];
        let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_');
        names.push(&rest[..end.unwrap_or(rest.len())]);
    }
    names
}

/// Fails with all complaints at once.
#[track_caller]
fn none(complaints: &[String], rule: &str) {
    let mut list = String::new();
    for complaint in complaints {
        let _ = write!(list, "\n  {complaint}");
    }
    assert!(complaints.is_empty(), "{rule}:{list}");
}

#[test]
fn files_use_lower_floors_only() {
    let mut complaints = Vec::new();
    for source in sources() {
        let Some(room) = source.room() else { continue };
        let Some(own) = floor(room) else {
            complaints.push(format!("{}: room '{room}' has no floor", source.path));
            continue;
        };
        for (n, line) in &source.code {
            let place = format!("{}:{n}", source.path);
            if line.contains("super::super") {
                complaints.push(format!("{place}: write crate::, so that the floor shows"));
            }
            for used in paths_after(line, "crate::") {
                match floor(used) {
                    None => complaints.push(format!("{place}: 'crate::{used}' is no room")),
                    Some(theirs) if used != room && theirs >= own => {
                        complaints.push(format!("{place}: {room} uses {used}"));
                    }
                    Some(_) => {}
                }
            }
        }
    }
    none(&complaints, "a file uses lower floors and its own");
}

#[test]
fn binaries_only_open_the_door() {
    let mut complaints = Vec::new();
    let all = sources();
    let binaries = all
        .iter()
        .filter(|source| source.path == "main.rs" || source.path.starts_with("bin/"));
    for source in binaries {
        let code = source.code.iter().filter(|(_, line)| !line.is_empty());
        if code.count() != 3 {
            complaints.push(format!("{}: more than one line", source.path));
        }
        for (n, line) in &source.code {
            for used in paths_after(line, "tael::") {
                if used != "cli" {
                    complaints.push(format!("{}:{n}: uses {used}", source.path));
                }
            }
        }
    }
    none(&complaints, "a binary is one line that calls the cli");
}

#[test]
fn libraries_stay_in_their_rooms() {
    let mut complaints = Vec::new();
    for source in sources() {
        for (library, rooms) in ROOMS {
            if rooms.iter().any(|room| source.path.starts_with(room)) {
                continue;
            }
            for (n, line) in &source.code {
                let words = line.split(|c: char| !c.is_alphanumeric() && c != '_');
                if words.into_iter().any(|word| word == *library) {
                    complaints.push(format!("{}:{n}: names {library}", source.path));
                }
            }
        }
    }
    none(&complaints, "a library is known to one room");
}

/// Clippy checks this. An exception is an `expect` at one item, with its reason.
#[test]
fn nothing_panics_outside_tests() {
    let manifest = fs::read_to_string(package().join("Cargo.toml")).expect("Cargo.toml");
    let lints = manifest.split_once("[lints.clippy]").expect("lints").1;
    let lints = lints.split("\n[").next().unwrap_or_default();
    let mut complaints = Vec::new();
    for lint in LINTS {
        if !lints.contains(&format!("\n{lint} = \"deny\"\n")) {
            complaints.push(format!("Cargo.toml: {lint} is not denied"));
        }
    }
    for source in sources() {
        for (start, rule) in [
            ("allow(", "say `expect`, at one item"),
            ("#[expect(", "say why"),
        ] {
            let attributes = source.text.split(start).skip(1);
            for attribute in attributes.filter_map(|text| text.split(")]").next()) {
                let named = |lint: &&str| attribute.contains(&format!("clippy::{lint}"));
                let reason = start == "#[expect(" && attribute.contains("reason = \"");
                if LINTS.iter().any(named) && !reason {
                    complaints.push(format!("{}: {attribute}: {rule}", source.path));
                }
            }
        }
    }
    none(&complaints, "errors are returned");
}

#[test]
fn test_hooks_live_in_one_file() {
    let mut complaints = Vec::new();
    for source in sources() {
        if source.path == "os/hooks.rs" {
            continue;
        }
        for (n, line) in source.without_tests() {
            let hooks = ["debug_assertions", "TAEL_TEST", "TAEL_FAILPOINT"];
            if hooks.iter().any(|hook| line.contains(hook)) {
                complaints.push(format!("{}:{n}: {}", source.path, line.trim()));
            }
        }
    }
    none(
        &complaints,
        "os/hooks.rs says what keeps hooks out of release builds",
    );
}

#[test]
fn stderr_has_one_writer() {
    let mut complaints = Vec::new();
    for source in sources() {
        for (n, line) in source.without_tests() {
            if line.contains("eprintln!(") {
                complaints.push(format!("{}:{n}", source.path));
            }
        }
    }
    none(&complaints, "os::logging::say cannot block, and escapes");
}

#[test]
fn files_are_read_in_one_sitting() {
    let mut complaints = Vec::new();
    for source in sources() {
        let code = source.without_tests().iter();
        let lines = code.filter(|(_, line)| !line.trim().is_empty()).count();
        if lines > MAX_LINES {
            complaints.push(format!("{}: {lines} lines", source.path));
        }
    }
    none(
        &complaints,
        &format!("a file has {MAX_LINES} lines of code at most"),
    );
}

#[test]
fn every_unsafe_says_why_it_is_safe() {
    let mut complaints = Vec::new();
    for source in sources() {
        let lines: Vec<&str> = source.text.lines().collect();
        for (n, line) in &source.code {
            let words = line.split(|c: char| !c.is_alphanumeric() && c != '_');
            if !words.into_iter().any(|word| word == "unsafe") {
                continue;
            }
            // The comment right above, whatever its length.
            let above = lines[..n - 1].iter().rev().map(|line| line.trim_start());
            let mut comment = above.take_while(|line| line.starts_with("//"));
            // Its demands on callers, or why it is safe.
            let asks = line.contains("unsafe fn ");
            let wanted = if asks { "/// # Safety" } else { "// SAFETY: " };
            if !comment.any(|line| line.starts_with(wanted)) {
                complaints.push(format!("{}:{n}", source.path));
            }
        }
    }
    none(&complaints, "unsafe has a SAFETY comment right above");
}

#[test]
fn the_map_names_every_room() {
    let map = fs::read_to_string(package().join("src/lib.rs")).expect("lib.rs");
    for (room, _) in FLOORS {
        assert!(map.contains(&format!("pub mod {room};")), "{room}");
        assert!(map.contains(&format!("[`{room}`]")), "{room} in the docs");
    }
}

#[test]
fn the_changelog_names_this_version() {
    let changelog = fs::read_to_string(package().join("CHANGELOG.md")).expect("CHANGELOG.md");
    let heading = format!("## [{}]", env!("CARGO_PKG_VERSION"));
    let first = changelog
        .lines()
        .find(|line| line.starts_with("## [") && !line.starts_with("## [Unreleased]"));
    assert!(
        first.is_some_and(|line| line.starts_with(&heading)),
        "the newest version is {first:?}, not {heading}"
    );
}
