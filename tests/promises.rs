//! Every row of the table of failures in docs/guarantees.md names the tests that show it.

use std::fs;
use std::path::Path;

#[test]
fn every_promise_names_a_test() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("docs/guarantees.md")).expect("page");
    let table = page
        .split_once("## What happens when…")
        .expect("the table")
        .1;
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
