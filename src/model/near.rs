//! Near misses: the name that a person may have meant.

/// Maximum number of names that are compared with a wanted one. A sender chooses how many there are.
const MAX_COMPARED: usize = 64;

/// Maximum length of a name that is compared, characters.
const MAX_CHARS: usize = 64;

/// Returns the one of `names` that is most like `wanted` and may be a slip of it: another case, or
/// few letters that are wrong, missing, too many or swapped. The name itself is no slip.
#[must_use]
pub fn nearest<'a>(wanted: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let names = names.into_iter().filter(|name| *name != wanted);
    let slips = names.take(MAX_COMPARED).filter_map(|name| {
        let distance = distance(wanted, name)?;
        let shorter = wanted.chars().count().min(name.chars().count());
        (distance <= most_slips(shorter)).then_some((distance, name))
    });
    slips.min_by_key(|(distance, _)| *distance).map(|(_, n)| n)
}

/// Maximum number of slips in a name of this length: in short ones every letter matters.
const fn most_slips(length: usize) -> usize {
    match length {
        0..=2 => 0,
        3..=7 => 1,
        _ => 2,
    }
}

/// Returns the number of slips between two names, regardless of case: the optimal string alignment
/// distance (Damerau 1964; Boytsov 2011, section 2.1). `None` if a name is too long.
fn distance(a: &str, b: &str) -> Option<usize> {
    let folded = |text: &str| -> Option<Vec<char>> {
        let letters: Vec<char> = text.chars().take(MAX_CHARS + 1).collect();
        let short = letters.len() <= MAX_CHARS;
        short.then(|| letters.iter().map(char::to_ascii_lowercase).collect())
    };
    let (a, b) = (folded(a)?, folded(b)?);
    // The last two rows of the table; the first row counts the letters of `b`.
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, y) in b.iter().enumerate() {
            let at = |row: &[usize], j: usize| row.get(j).copied().unwrap_or(usize::MAX - 1);
            let mut least = at(&last, j) + usize::from(x != y);
            least = least.min(at(&last, j + 1) + 1).min(at(&row, j) + 1);
            let swapped = i.checked_sub(1).and_then(|i| a.get(i)) == Some(y)
                && j.checked_sub(1).and_then(|j| b.get(j)) == Some(x);
            if i > 0 && j > 0 && swapped {
                least = least.min(at(&before, j - 1) + 1);
            }
            row.push(least);
        }
        before = std::mem::replace(&mut last, row);
    }
    last.last().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_are_counted() {
        for (a, b, count) in [
            ("sample", "SAMPLE", 0),
            ("SAMPEL", "SAMPLE", 1),
            ("SMPLE", "SAMPLE", 1),
            ("SAMPLEE", "SAMPLE", 1),
            ("SANPLE", "SAMPLE", 1),
            ("kitten", "sitting", 3),
            ("", "ab", 2),
            ("ca", "abc", 3),
        ] {
            assert_eq!(distance(a, b), Some(count), "{a} {b}");
            assert_eq!(distance(b, a), Some(count), "{b} {a}");
        }
        assert_eq!(distance(&"x".repeat(MAX_CHARS + 1), "x"), None);
    }

    #[test]
    fn only_slips_are_near() {
        let names = ["status", "SAMPEL", "lane", "date"];
        for (wanted, near) in [
            ("SAMPLE", Some("SAMPEL")),
            ("Status", Some("status")),
            ("stauts", Some("status")),
            ("status", None),
            ("state", None),
            ("run", None),
            ("", None),
            ("lanes", Some("lane")),
        ] {
            assert_eq!(nearest(wanted, names), near, "{wanted}");
        }
        assert_eq!(nearest("id", ["it", "ID"]), Some("ID"));
    }

    #[test]
    fn a_sender_cannot_make_it_slow() {
        let many: Vec<String> = (0..100_000).map(|n| format!("k{n}")).collect();
        let all = many.iter().map(String::as_str).chain(["sampel"]);
        assert_eq!(nearest("sample", all), None);
    }
}
