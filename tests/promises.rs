//! Every row of the README's table of failures names the tests that show it.

use std::fs;
use std::path::Path;

#[test]
fn every_promise_names_a_test() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = fs::read_to_string(root.join("README.md")).expect("README");
    let table = readme
        .split_once("## What happens when…")
        .and_then(|(_, rest)| rest.split_once("\n## "))
        .expect("the table")
        .0;
    let tests: String = fs::read_dir(root.join("tests"))
        .expect("tests")
        .flatten()
        .filter(|entry| entry.path().extension().is_some_and(|e| e == "rs"))
        .map(|entry| fs::read_to_string(entry.path()).expect("test"))
        .collect();
    let rows: Vec<&str> = table
        .lines()
        .filter(|line| line.starts_with("| "))
        .skip(2)
        .collect();
    assert!(rows.len() > 10, "{rows:?}");
    for row in rows {
        let names = row
            .trim_end_matches(" |")
            .rsplit(" | ")
            .next()
            .expect("cell");
        for name in names.split(", ") {
            let name = name.trim_matches('`');
            let there = tests.contains(&format!("fn {name}()"))
                || tests.contains(&format!("    {name}: \""));
            assert!(there, "no test is called '{name}': {row}");
        }
    }
}
