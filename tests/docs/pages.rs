//! The pages: their blocks have kinds, their links have targets, and the first page is short.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Component, Path, PathBuf};

use crate::page::{ELSEWHERE, KINDS, Page, blocks, page, pages, root};

/// Maximum number of lines of the title page: a newcomer reads all of it.
const MAX_TITLE_LINES: usize = 150;

#[test]
fn no_block_is_left_out() {
    let mut seen = BTreeSet::new();
    for block in blocks() {
        let place = block.place();
        let elsewhere = ELSEWHERE
            .iter()
            .any(|(kind, page, _)| *kind == block.kind && *page == block.page);
        assert!(
            elsewhere || KINDS.contains(&block.kind.as_str()),
            "{place}: a block of the unknown kind '{}'",
            block.kind
        );
        assert!(!block.text.trim().is_empty(), "{place}");
        seen.insert(block.kind);
    }
    let elsewhere = ELSEWHERE.iter().map(|(kind, _, _)| kind);
    let all: BTreeSet<String> = KINDS
        .iter()
        .chain(elsewhere)
        .map(|kind| (*kind).to_owned())
        .collect();
    assert_eq!(seen, all, "a kind has no block");
}

#[test]
fn blocks_that_are_tested_elsewhere_are_run_there() {
    for (kind, page, test) in ELSEWHERE {
        let text = fs::read_to_string(root().join(test)).expect(test);
        let name = kind.split(' ').next_back().expect("a word");
        assert!(text.contains(page), "{test} does not read {page}");
        let run = [format!("\"{name}\""), format!("```{kind}\\n")];
        assert!(run.iter().any(|run| text.contains(run)), "{test}: {kind}");
    }
}

#[test]
fn the_title_page_is_short_and_lists_all_others() {
    let title = page("README.md");
    let lines = title.text.lines().count();
    assert!(lines <= MAX_TITLE_LINES, "README.md has {lines} lines");
    for page in pages().iter().skip(1) {
        let listed = title
            .text
            .lines()
            .any(|line| line.starts_with("- [") && line.contains(&format!("]({}): ", page.name)));
        assert!(listed, "README.md does not say what {} is about", page.name);
    }
}

/// Returns the lines outside blocks.
fn prose(page: &Page) -> impl Iterator<Item = &str> {
    let mut inside = false;
    page.text.lines().filter(move |line| {
        let fence = line.trim_start().starts_with("```");
        inside ^= fence;
        !inside && !fence
    })
}

/// Returns the anchors of the headings of a page, as GitHub makes them.
fn anchors(page: &Page) -> BTreeSet<String> {
    let headings = prose(page).filter_map(|line| line.strip_prefix('#'));
    headings
        .map(|heading| {
            let text = heading.trim_start_matches('#').trim().to_lowercase();
            let kept = text.replace(' ', "-");
            kept.chars()
                .filter(|c| c.is_alphanumeric() || "-_".contains(*c))
                .collect()
        })
        .collect()
}

/// Returns links without a scheme: file and anchor, of which either may be empty.
fn links(page: &Page) -> Vec<(String, String)> {
    let text = prose(page).collect::<Vec<_>>().join("\n");
    text.split("](")
        .skip(1)
        .filter_map(|rest| {
            let target = rest.split(')').next().unwrap_or_default();
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            (!target.contains("://")).then(|| (file.to_owned(), anchor.to_owned()))
        })
        .collect()
}

/// Returns `path` without `..`.
fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => assert!(plain.pop(), "{}", path.display()),
            part => plain.push(part),
        }
    }
    plain
}

#[test]
fn links_lead_to_files_and_headings() {
    let mut count = 0;
    for from in pages().into_iter().chain([page("CHANGELOG.md")]) {
        let folder = Path::new(&from.name).parent().expect("folder");
        for (file, anchor) in links(&from) {
            count += 1;
            let target = match file.as_str() {
                "" => PathBuf::from(&from.name),
                file => plain(&folder.join(file)),
            };
            let place = format!("{} links to {}#{anchor}", from.name, target.display());
            assert!(root().join(&target).exists(), "{place}: no such file");
            if !anchor.is_empty() {
                let there = anchors(&page(target.to_str().expect("UTF-8")));
                assert!(there.contains(&anchor), "{place}: {there:?}");
            }
        }
    }
    assert!(count > 30, "{count} links");
}

/// Returns the sources, with each string on one line and `…` for its placeholders.
fn sources() -> String {
    fn read(folder: &Path, text: &mut String) {
        for entry in fs::read_dir(folder).expect("src").flatten() {
            match entry.path() {
                path if path.is_dir() => read(&path, text),
                path => *text += &fs::read_to_string(path).expect("source"),
            }
        }
    }
    let mut text = String::new();
    read(&root().join("src"), &mut text);
    let joined = text.split("\\\n").map(str::trim_start);
    let joined = joined.collect::<Vec<_>>().concat();
    let mut plain = String::new();
    let mut rest = joined.as_str();
    while let Some((before, after)) = rest.split_once('{') {
        plain += before;
        rest = match after.split_once('}') {
            Some((name, after)) if !name.contains(['\n', '{', ' ']) => {
                plain += "…";
                after
            }
            _ => {
                plain.push('{');
                after
            }
        };
    }
    plain + rest
}

#[test]
fn log_lines_that_are_explained_exist() {
    let sources = sources();
    let page = page("docs/operations.md");
    let table = page.text.split_once("### By log line\n").expect("table").1;
    let rows: Vec<&str> = table
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split('`').next())
        .collect();
    assert!(rows.len() > 10, "{rows:?}");
    for row in rows {
        for part in row.split('…').filter(|part| part.trim().len() > 3) {
            assert!(sources.contains(part), "no log line has '{part}': {row}");
        }
    }
}
