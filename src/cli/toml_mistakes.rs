//! Mistakes that leave a file no TOML, and how to write it.

use std::collections::BTreeMap;

use toml::Table;
use toml::de::DeTable;

/// Tables that are lists, which a table of the same name never is.
const LISTS: &[&str] = &["trigger", "view", "route"];

/// Returns the lines of `text` that are wrong, counted from 1, each with its first mistake; none if it is
/// TOML.
pub fn of(text: &str) -> BTreeMap<usize, String> {
    let mut found = BTreeMap::new();
    let Err(first) = text.parse::<Table>() else {
        return found;
    };
    let (_, all) = DeTable::parse_recoverable(text);
    for e in std::iter::once(&first).chain(&all) {
        let before = e.span().and_then(|span| text.get(..span.start));
        let line = before.unwrap_or_default().matches('\n').count() + 1;
        let singles = singles(text, line);
        if e.message().contains("duplicate key") && !singles.is_empty() {
            for (line, name) in singles {
                let cause = format!("write [[{name}]]: a {name} has two brackets");
                found.entry(line).or_insert(cause);
            }
            continue;
        }
        let hint = match e.message().starts_with("missing escaped value") {
            true => {
                "; a backslash begins an escape between double quotes: write it in 'single quotes'"
            }
            false => "",
        };
        let cause = format!("{}{hint}", e.message());
        found.entry(line).or_insert(cause);
    }
    found
}

/// Returns the name in the brackets of a header, and how many brackets it has.
fn header(line: &str) -> Option<(&str, usize)> {
    let inner = line.trim_start().strip_prefix('[')?;
    let (inner, count) = match inner.strip_prefix('[') {
        Some(inner) => (inner, 2),
        None => (inner, 1),
    };
    Some((inner.split(']').next()?.trim(), count))
}

/// Returns the lines that have one bracket instead of two, and the name, if `line` is in a table of a list.
fn singles(text: &str, line: usize) -> Vec<(usize, &str)> {
    let above: Vec<&str> = text.lines().take(line).collect();
    let own = above.into_iter().rev().find_map(header);
    let own = own.and_then(|(name, _)| name.split('.').next());
    let lines = text.lines().zip(1..);
    let headers = lines.filter_map(|(text, line)| Some((line, header(text)?)));
    let single = headers
        .filter(|(_, (name, count))| *count == 1 && Some(*name) == own && LISTS.contains(name));
    single.map(|(line, (name, _))| (line, name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_want_two_brackets_and_patterns_single_quotes() {
        let one = "name = \"a\"\npath = \"/a\"\n";
        let brackets = "write [[route]]";
        for (text, lines, cause) in [
            (
                format!("[route]\n{one}[route]\n{one}"),
                &[1, 4][..],
                brackets,
            ),
            (format!("[[route]]\n{one}[route]\n{one}"), &[4], brackets),
            (format!("[route]\n{one}[[route]]\n{one}"), &[1], brackets),
            (
                format!("[route]\n{one}[route.map]\na = 1\n[route]\n{one}[route.map]\na = 1\n"),
                &[1, 6],
                brackets,
            ),
            (
                "[trigger]\n[trigger]\n".to_owned(),
                &[1, 2],
                "write [[trigger]]",
            ),
            ("a = 1\na = 2\n".to_owned(), &[2], "duplicate key"),
            (
                "[work]\na = 1\n[work]\na = 2\n".to_owned(),
                &[3, 4],
                "duplicate key",
            ),
            ("a = \"\\d\"\n".to_owned(), &[1], "'single quotes'"),
        ] {
            let found = of(&text);
            let found_lines: Vec<usize> = found.keys().copied().collect();
            assert_eq!(found_lines, lines, "{text}: {found:?}");
            for told in found.values() {
                assert!(told.contains(cause), "{text}: {told}");
            }
        }
        assert!(of(&format!("[[route]]\n{one}[[route]]\n{one}")).is_empty());
    }
}
