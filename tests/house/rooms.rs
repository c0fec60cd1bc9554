//! Rooms: floors inside the engine, no circles, and each type's methods in one file.

use std::collections::{BTreeMap, BTreeSet};

use super::{Source, none, sources};

/// The rooms and files of the engine, and their floors. `chain` leads an event through `client`, and
/// `service` is the loop around both; `observe` reads all parts, and the status reply reads it.
const ENGINE: &[(&str, usize)] = &[
    ("config", 0),
    ("pipeline", 1),
    ("commit", 2),
    ("link", 2),
    ("work", 3),
    ("report", 3),
    ("intake", 4),
    ("queue", 5),
    ("observe", 6),
    ("after", 6),
    ("preview", 6),
    ("control", 7),
    ("client", 8),
    ("opened", 8),
    ("repeats", 9),
    ("chain", 10),
    ("calls", 11),
    ("node", 11),
    ("requests", 11),
    ("deliveries", 11),
    ("service", 12),
];

/// Files of the engine that may name what the network is made of: the link, the client that holds
/// it and turns its events into ours, the receipt that a source wants back, the configuration, and
/// queues with their sessions.
const NETWORK: &[&str] = &[
    "engine/client.rs",
    "engine/commit/receipt.rs",
    "engine/config.rs",
    "engine/link.rs",
    "engine/queue/mod.rs",
    "engine/queue/source.rs",
];

/// Circles of imports inside a room, by their files. The list must not grow, nor name broken ones.
const CIRCLES: &[&[&str]] = &[];

/// Path of a module.
type Module = Vec<String>;

/// One `use` or path in the code, from `crate` on, and whether it is exported again (`pub use`).
struct Import {
    path: Module,
    public: bool,
}

/// Returns the code of `source` as one text, without comments and unit tests.
fn text(source: &Source) -> String {
    let lines: Vec<&str> = source
        .without_tests()
        .iter()
        .map(|(_, line)| line.as_str())
        .collect();
    lines.join("\n")
}

/// Returns the module of a file.
fn module(path: &str) -> Module {
    let path = path.strip_suffix(".rs").expect("a Rust file");
    let path = path.strip_suffix("/mod").unwrap_or(path);
    path.split('/').map(str::to_owned).collect()
}

/// Collects all paths in the tree of a `use`.
fn expand(prefix: &[String], tree: &str, found: &mut Vec<Module>) {
    let tree = tree.trim();
    let (head, inner) = match tree.split_once('{') {
        None => {
            let name = tree.split(" as ").next().unwrap_or(tree);
            let mut path = prefix.to_vec();
            path.extend(name.split("::").map(|part| part.trim().to_owned()));
            found.push(path);
            return;
        }
        Some((head, rest)) => (head, rest.trim_end().strip_suffix('}').expect("braces")),
    };
    let mut path = prefix.to_vec();
    let parts = head.split("::").map(str::trim).filter(|p| !p.is_empty());
    path.extend(parts.map(str::to_owned));
    let (mut depth, mut start) = (0, 0);
    for (at, c) in inner.char_indices().chain([(inner.len(), ',')]) {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                let part = &inner[start..at];
                if !part.trim().is_empty() {
                    expand(&path, part, found);
                }
                start = at + 1;
            }
            _ => {}
        }
    }
}

/// Returns `path`, as `own` writes it, from `crate` on; `None` if it is of another crate.
fn absolute(own: &[String], path: &[String], modules: &BTreeMap<Module, String>) -> Option<Module> {
    let first = path.first()?;
    match first.as_str() {
        "crate" => Some(path[1..].to_vec()),
        "self" => Some([own, &path[1..]].concat()),
        "super" => {
            let up = path.iter().take_while(|part| *part == "super").count();
            let base = &own[..own.len().checked_sub(up)?];
            Some([base, &path[up..]].concat())
        }
        _ => {
            let child = [own, std::slice::from_ref(first)].concat();
            modules.contains_key(&child).then(|| [own, path].concat())
        }
    }
}

fn imports(source: &Source, modules: &BTreeMap<Module, String>) -> Vec<Import> {
    let own = module(&source.path);
    let text = text(source);
    let mut found = Vec::new();
    let mut add = |public, path: &[String]| {
        if let Some(path) = absolute(&own, path, modules) {
            found.push(Import { path, public });
        }
    };
    let mut rest = String::new();
    let mut statements = text.split(';');
    let last = statements.next_back().unwrap_or_default();
    for statement in statements {
        let at = statement
            .lines()
            .scan(0, |at, line| {
                let start = *at;
                *at += line.len() + 1;
                Some((start, line.trim_start()))
            })
            .filter(|(_, line)| {
                let line = line.strip_prefix("pub").map_or(*line, |rest| {
                    rest.split_once(") ")
                        .map_or(rest.trim_start(), |(_, rest)| rest)
                });
                line.starts_with("use ")
            })
            .last();
        let Some((at, line)) = at else {
            rest.push_str(statement);
            rest.push(';');
            continue;
        };
        rest.push_str(&statement[..at]);
        let public = line.starts_with("pub");
        let tree = statement[at..].split_once("use ").expect("a use").1;
        let mut paths = Vec::new();
        expand(&[], tree, &mut paths);
        paths.iter().for_each(|path| add(public, path));
    }
    rest.push_str(last);
    // Paths in the code itself.
    let words = rest.split(|c: char| !c.is_alphanumeric() && c != '_' && c != ':');
    for word in words.filter(|word| word.contains("::")) {
        let path: Vec<String> = word.split("::").map(str::to_owned).collect();
        add(false, &path);
    }
    found
}

/// Returns the imports of each file, below `src/`. A name that a `mod.rs` exports again counts for the
/// file that it comes from. That file may use the declarations of its `mod.rs`.
fn graph(all: &[Source]) -> BTreeMap<String, BTreeSet<String>> {
    let files = all
        .iter()
        .filter(|source| !source.path.ends_with("/tests.rs"));
    let modules: BTreeMap<Module, String> = files
        .clone()
        .map(|source| (module(&source.path), source.path.clone()))
        .collect();
    let mut handed_on = BTreeMap::new();
    for source in files.clone() {
        for import in imports(source, &modules) {
            if let (true, Some(name)) = (import.public, import.path.last()) {
                let mut alias = module(&source.path);
                alias.push(name.clone());
                handed_on.insert(alias, import.path);
            }
        }
    }
    let resolve = |path: &Module| {
        let mut path = path.clone();
        // A name is exported again in few rooms.
        for _ in 0..4 {
            let alias = (1..=path.len())
                .rev()
                .find_map(|n| handed_on.get(&path[..n]).map(|to| (n, to)));
            match alias {
                Some((n, to)) if to[..] != path[..n] => path = [to, &path[n..]].concat(),
                _ => break,
            }
        }
        (1..=path.len())
            .rev()
            .find_map(|n| modules.get(&path[..n]).cloned())
    };
    let mut graph = BTreeMap::new();
    for source in files {
        let own = module(&source.path);
        let mut used = BTreeSet::new();
        for import in imports(source, &modules) {
            let folder = source.path.ends_with("/mod.rs");
            let target = resolve(&import.path).filter(|to| *to != source.path);
            let Some(target) = target else { continue };
            let is_face = target.ends_with("/mod.rs") && own.starts_with(&module(&target));
            if !(is_face || import.public && folder) {
                used.insert(target);
            }
        }
        graph.insert(source.path.clone(), used);
    }
    graph
}

/// Returns the files that `from` reaches.
fn reached(from: &str, graph: &BTreeMap<String, BTreeSet<String>>) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut next: Vec<&String> = graph[from].iter().collect();
    while let Some(file) = next.pop() {
        if found.insert(file.clone()) {
            next.extend(graph.get(file).into_iter().flatten());
        }
    }
    found
}

#[test]
fn rooms_have_no_circle_of_imports() {
    let graph = graph(&sources());
    assert!(graph["engine/chain.rs"].contains("engine/intake/source.rs"));
    assert!(
        graph["engine/client.rs"].contains("engine/work/units.rs"),
        "handed on"
    );
    let reaches: BTreeMap<&String, BTreeSet<String>> = graph
        .keys()
        .map(|file| (file, reached(file, &graph)))
        .collect();
    let mut circles = BTreeSet::new();
    for (file, reached) in &reaches {
        if reached.contains(*file) {
            let with = reached
                .iter()
                .filter(|other| reaches[other].contains(*file));
            circles.insert(with.cloned().collect::<Vec<String>>());
        }
    }
    let known: BTreeSet<Vec<String>> = CIRCLES
        .iter()
        .map(|circle| circle.iter().map(|file| (*file).to_owned()).collect())
        .collect();
    let new = circles.difference(&known).map(|c| c.join(", "));
    none(&new.collect::<Vec<_>>(), "these files import each other");
    let mended = known.difference(&circles).map(|c| c.join(", "));
    none(&mended.collect::<Vec<_>>(), "take them out of CIRCLES");
}

#[test]
fn rooms_of_the_engine_use_lower_floors_only() {
    let mut complaints = Vec::new();
    let floor = |room: &str| {
        ENGINE
            .iter()
            .find(|(name, _)| *name == room)
            .map(|(_, n)| *n)
    };
    for (file, used) in graph(&sources()) {
        let room = |path: &str| {
            let rest = path.strip_prefix("engine/")?;
            let first = rest.split('/').next()?;
            let room = first.strip_suffix(".rs").unwrap_or(first);
            (room != "mod").then(|| room.to_owned())
        };
        let Some(own) = room(&file) else { continue };
        let Some(own_floor) = floor(&own) else {
            complaints.push(format!("{file}: room '{own}' has no floor"));
            continue;
        };
        for other in used {
            match room(&other) {
                Some(theirs) if theirs != own && floor(&theirs) >= Some(own_floor) => {
                    complaints.push(format!("{file} uses {other}"));
                }
                _ => {}
            }
        }
    }
    none(
        &complaints,
        "a room of the engine uses lower floors and its own",
    );
}

#[test]
fn the_engine_names_the_network_at_its_door_only() {
    let mut complaints = Vec::new();
    for source in sources() {
        let named = source.path.starts_with("engine/") && text(&source).contains("crate::net::");
        if named && !NETWORK.contains(&source.path.as_str()) {
            complaints.push(source.path);
        }
    }
    none(
        &complaints,
        "these files need not know what an event came over",
    );
}

#[test]
fn methods_stand_beside_their_type() {
    let mut found = BTreeSet::new();
    for source in sources() {
        if source.path.ends_with("/tests.rs") {
            continue;
        }
        let text = text(&source);
        for line in text.lines().filter(|line| line.starts_with("impl")) {
            if line.contains(" for ") || !line.ends_with('{') {
                continue;
            }
            // Skip the parameters of the impl.
            let mut depth = 0;
            let rest = line["impl".len()..].trim_start_matches(|c| {
                match c {
                    '<' => depth += 1,
                    '>' => depth -= 1,
                    _ => return depth > 0,
                }
                true
            });
            let rest = rest.trim_start();
            let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_');
            let name = &rest[..end.unwrap_or(rest.len())];
            let declared = ["struct", "enum"].iter().any(|kind| {
                text.split(&format!("{kind} {name}"))
                    .skip(1)
                    .any(|rest| !rest.starts_with(|c: char| c.is_alphanumeric() || c == '_'))
            });
            if !declared {
                found.insert((source.path.clone(), name.to_owned()));
            }
        }
    }
    let shown = |(file, name): &(String, String)| format!("{file}: {name}");
    let found: Vec<String> = found.iter().map(shown).collect();
    none(&found, "methods stand in the file of their type");
}
