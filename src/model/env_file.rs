//! Files of variables: lines of `NAME=VALUE` as for `EnvironmentFile=` of `systemd.exec(5)`, or the
//! output of `env -0`.

use crate::model::text::printable_bytes;
use crate::model::variables::{Value, Variables};

/// Maximum number of characters to show of a wrong name.
const MAX_NAME_SHOWN: usize = 80;

/// Parses a file of variables. Names are ASCII; values are bytes in any encoding.
///
/// Empty lines and lines that begin with `#` or `;` are ignored, and so is `export ` before a name.
/// A value may stand in single quotes, or in double quotes, where a backslash escapes the next
/// character. Nothing is expanded. In a file with NUL characters these end the entries, and names
/// that no shell could use are ignored, such as exported functions.
///
/// # Errors
/// A text for the user that names the line.
pub fn parse(text: &[u8]) -> Result<Variables, String> {
    if text.contains(&0) {
        let entries = text.split(|b| *b == 0).filter_map(split);
        let entries = entries.filter_map(|(name, value)| Some((name_of(name)?, value)));
        return Ok(entries
            .map(|(name, value)| (name, value.to_vec().into()))
            .collect());
    }
    let mut variables = Vec::new();
    for (n, line) in text.split(|b| *b == b'\n').enumerate() {
        let line = line.trim_ascii();
        if line.is_empty() || line.starts_with(b"#") || line.starts_with(b";") {
            continue;
        }
        let wrong = |cause: &str| format!("line {}: {cause}", n + 1);
        let (name, value) = split(line).ok_or_else(|| wrong("it is not NAME=VALUE"))?;
        let name = name.strip_prefix(b"export ").unwrap_or(name).trim_ascii();
        let name = name_of(name).ok_or_else(|| {
            let name = printable_bytes(name, MAX_NAME_SHOWN);
            wrong(&format!("'{name}' is not the name of a variable"))
        })?;
        let value = unquote(value.trim_ascii()).ok_or_else(|| wrong("a quote is not closed"))?;
        variables.push((name, value));
    }
    Ok(variables)
}

/// Splits an entry into name and value.
fn split(entry: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut parts = entry.splitn(2, |b| *b == b'=');
    Some((parts.next()?, parts.next()?))
}

/// Returns `name` if a shell could use it.
fn name_of(name: &[u8]) -> Option<String> {
    let letter = |b: &u8| b.is_ascii_alphabetic() || *b == b'_';
    let is_name =
        name.first().is_some_and(letter) && name.iter().all(|b| letter(b) || b.is_ascii_digit());
    is_name.then(|| String::from_utf8_lossy(name).into_owned())
}

fn unquote(value: &[u8]) -> Option<Value> {
    if let Some(rest) = value.strip_prefix(b"'") {
        return rest.strip_suffix(b"'").map(|inner| inner.to_vec().into());
    }
    let Some(rest) = value.strip_prefix(b"\"") else {
        return Some(value.to_vec().into());
    };
    let (mut text, mut bytes) = (Vec::new(), rest.iter());
    loop {
        match bytes.next()? {
            b'"' => return bytes.as_slice().is_empty().then(|| text.into()),
            b'\\' => text.push(*bytes.next()?),
            other => text.push(*other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lines_as_people_write_them() {
        let text =
            b"# conda\n\nexport PATH=/opt/conda/bin:/bin\n A = 'x y' \nB=\"q\\\"\\\\$HOME\"\nC=\nD=caf\xe9\n";
        let want = [
            ("PATH", "/opt/conda/bin:/bin"),
            ("A", "x y"),
            ("B", "q\"\\$HOME"),
            ("C", ""),
        ];
        let mut want = want
            .map(|(name, value)| (name.to_owned(), value.into()))
            .to_vec();
        want.push(("D".to_owned(), b"caf\xe9".to_vec().into()));
        assert_eq!(parse(text).expect("parsed"), want);
    }

    #[test]
    fn errors_name_the_line() {
        for (text, want) in [
            ("A=1\nnothing", "line 2: it is not NAME=VALUE"),
            ("1A=1", "line 1: '1A' is not the name"),
            ("A='x", "line 1: a quote"),
            ("A=\"x\"y", "line 1: a quote"),
        ] {
            let error = parse(text.as_bytes()).expect_err(text);
            assert!(error.contains(want), "{error}");
        }
    }

    proptest! {
        #[test]
        fn what_env_prints_is_read_back(
            list in proptest::collection::vec(("[A-Z_][A-Z0-9_]{0,8}", proptest::collection::vec(1u8.., 0..20)), 1..9)
        ) {
            let mut text = b"BASH_FUNC_module%%=() {\n x=1\n}\0".to_vec();
            for (name, value) in &list {
                text.extend([name.as_bytes(), b"=", value, b"\0"].concat());
            }
            let list: Variables = list.into_iter().map(|(n, v)| (n, v.into())).collect();
            prop_assert_eq!(parse(&text), Ok(list));
        }
    }
}
