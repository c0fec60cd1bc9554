//! Every row of the table of failures in docs/guarantees.md names the tests that show it.

use std::fs;

use super::{package, rust_files};

#[test]
fn every_promise_names_a_test() {
    let page = fs::read_to_string(package().join("docs/guarantees.md")).expect("page");
    let table = page
        .split_once("## What happens when…")
        .expect("the table")
        .1;
    let tests: String = rust_files("tests")
        .iter()
        .map(|path| fs::read_to_string(path).expect("test"))
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
