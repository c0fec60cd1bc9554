//! docs/design.md: the walk through the files, and the five questions of a stranger.

use std::fs;

use super::package;

/// Returns the lines of the section `heading` of docs/design.md.
fn section(heading: &str) -> Vec<String> {
    let text = fs::read_to_string(package().join("docs/design.md")).expect("design.md");
    let level = heading.split(' ').next().expect("a level").len();
    let mut lines = text.lines().skip_while(|line| *line != heading);
    assert!(lines.next().is_some(), "no section '{heading}'");
    let ends = |line: &str| {
        let marks = line.chars().take_while(|c| *c == '#').count();
        (1..=level).contains(&marks)
    };
    lines
        .take_while(|line| !ends(line))
        .map(str::to_owned)
        .collect()
}

/// Returns the quoted texts of a line.
fn quoted(line: &str) -> Vec<&str> {
    line.split('`').skip(1).step_by(2).collect()
}

/// Returns the steps of a walk: a file, and the name in it that the step is about.
fn steps(heading: &str) -> Vec<(String, String)> {
    let lines = section(heading);
    let steps = lines.iter().filter(|line| {
        let number = line.split(". ").next().unwrap_or_default();
        !number.is_empty() && number.chars().all(|c| c.is_ascii_digit())
    });
    steps
        .map(|line| match quoted(line)[..] {
            [file, name, ..] => (file.to_owned(), name.to_owned()),
            _ => panic!("{heading}: a step quotes a file and a name first: {line}"),
        })
        .collect()
}

/// Returns whether `text` has `name` as a word.
fn names(text: &str, name: &str) -> bool {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(name).any(|(at, _)| {
        !text[..at].ends_with(is_word) && !text[at + name.len()..].starts_with(is_word)
    })
}

#[test]
fn the_walks_lead_through_files_that_name_the_next() {
    for heading in ["### An event", "### A payload byte", "### A status"] {
        let steps = steps(heading);
        assert!(steps.len() > 5, "{heading}: {steps:?}");
        let mut before: Vec<(String, String)> = Vec::new();
        for (file, name) in steps {
            let text = fs::read_to_string(package().join(&file))
                .unwrap_or_else(|e| panic!("{heading}: {file}: {e}"));
            assert!(names(&text, &name), "{heading}: {file} has no {name}");
            let led = before.iter().any(|(_, text)| names(text, &name));
            assert!(
                led || before.is_empty(),
                "{heading}: no file before {file} names {name}"
            );
            before.push((file, text));
        }
    }
}

#[test]
fn the_five_questions_are_answered_with_one_path_each() {
    let section = section("## A stranger's five questions");
    let rows: Vec<&String> = section.iter().filter(|line| line.contains('`')).collect();
    assert_eq!(rows.len(), 5, "{rows:?}");
    for row in rows {
        let [path] = quoted(row)[..] else {
            panic!("one path: {row}");
        };
        assert!(package().join(path).exists(), "{path}: {row}");
    }
}
