//! Files of variables: `NAME=VALUE` lines as `EnvironmentFile=` of `systemd.exec(5)` has them,
//! or what `env -0` prints.

/// Parses the text of a file of variables.
///
/// Lines that are empty or begin with `#` or `;` say nothing; `export ` before a name is left
/// out; a value may stand in single quotes, or in double ones, where a backslash takes the
/// next character as it is. Nothing is expanded. In a file with NUL characters these end the
/// entries, and names that no shell could use, such as exported functions, are left out.
///
/// # Errors
/// A text for the user that names the line.
pub fn parse(text: &str) -> Result<Vec<(String, String)>, String> {
    if text.contains('\0') {
        let entries = text.split('\0').filter_map(|entry| entry.split_once('='));
        return Ok(entries
            .filter(|(name, _)| is_name(name))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect());
    }
    let mut variables = Vec::new();
    for (n, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        let wrong = |cause: &str| format!("line {}: {cause}", n + 1);
        let (name, value) = line
            .split_once('=')
            .ok_or_else(|| wrong("it is not NAME=VALUE"))?;
        let name = name.strip_prefix("export ").unwrap_or(name).trim();
        if !is_name(name) {
            return Err(wrong(&format!("'{name}' is no name of a variable")));
        }
        let value = unquote(value.trim()).ok_or_else(|| wrong("a quote is not closed"))?;
        variables.push((name.to_owned(), value));
    }
    Ok(variables)
}

fn is_name(name: &str) -> bool {
    let letter = |b: u8| b.is_ascii_alphabetic() || b == b'_';
    name.bytes().next().is_some_and(letter) && name.bytes().all(|b| letter(b) || b.is_ascii_digit())
}

fn unquote(value: &str) -> Option<String> {
    if let Some(rest) = value.strip_prefix('\'') {
        return rest.strip_suffix('\'').map(str::to_owned);
    }
    let Some(rest) = value.strip_prefix('"') else {
        return Some(value.to_owned());
    };
    let (mut text, mut characters) = (String::new(), rest.chars());
    loop {
        match characters.next()? {
            '"' => return characters.as_str().is_empty().then_some(text),
            '\\' => text.push(characters.next()?),
            other => text.push(other),
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
            "# conda\n\nexport PATH=/opt/conda/bin:/bin\n A = 'x y' \nB=\"q\\\"\\\\$HOME\"\nC=\n";
        let want = [
            ("PATH", "/opt/conda/bin:/bin"),
            ("A", "x y"),
            ("B", "q\"\\$HOME"),
            ("C", ""),
        ];
        let want = want.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(parse(text).expect("parsed"), want);
    }

    #[test]
    fn errors_name_the_line() {
        for (text, want) in [
            ("A=1\nnothing", "line 2: it is not NAME=VALUE"),
            ("1A=1", "line 1: '1A' is no name"),
            ("A='x", "line 1: a quote"),
            ("A=\"x\"y", "line 1: a quote"),
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.contains(want), "{error}");
        }
    }

    proptest! {
        #[test]
        fn what_env_prints_is_read_back(
            list in proptest::collection::vec(("[A-Z_][A-Z0-9_]{0,8}", "[^\0]{0,20}"), 1..9)
        ) {
            let text: String = list.iter().map(|(n, v)| format!("{n}={v}\0")).collect();
            let text = format!("BASH_FUNC_module%%=() {{\n x=1\n}}\0{text}");
            prop_assert_eq!(parse(&text), Ok(list));
        }
    }
}
