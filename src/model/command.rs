//! A command, and how the system executes it.

use serde::{Deserialize, Serialize};

/// A command. The ledger holds it as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// `SHELL -c LINE`
    #[serde(rename = "shell")]
    Shell {
        /// Path of the shell.
        shell: String,
        /// Line for the shell.
        line: String,
    },
    /// Program and arguments, without a shell.
    #[serde(rename = "argv")]
    Direct(Vec<String>),
    /// Only the text, from an earlier version. It cannot be run.
    #[serde(rename = "text")]
    Recorded(String),
}

impl Command {
    /// Splits `line` into words as a POSIX shell would, without expanding anything.
    ///
    /// # Errors
    /// A text for the user: no word, or an open quote.
    pub fn direct(line: &str) -> Result<Self, String> {
        match shell_words::split(line) {
            Ok(words) if !words.is_empty() => Ok(Self::Direct(words)),
            Ok(_) => Err("the command is empty".into()),
            Err(_) => Err(format!("command '{line}' has an open quote")),
        }
    }

    /// Returns program and arguments to execute; none if only the text is known.
    ///
    /// A line for the standard shell without shell syntax is executed directly, as make does. The
    /// result is the same, at half the cost.
    #[must_use]
    pub fn argv(&self) -> Vec<&str> {
        match self {
            Self::Shell { shell, line } if shell == DEFAULT_SHELL && is_plain(line) => {
                line.split_ascii_whitespace().collect()
            }
            _ => self.shell_argv(),
        }
    }

    /// Returns program and arguments, with the shell if there is one.
    #[must_use]
    pub fn shell_argv(&self) -> Vec<&str> {
        match self {
            Self::Shell { shell, line } => vec![shell, "-c", line],
            Self::Direct(words) => words.iter().map(String::as_str).collect(),
            Self::Recorded(_) => Vec::new(),
        }
    }

    /// Returns the first word of the line of a shell, if it is the program: the shell would not
    /// change it, and does not execute it itself.
    #[must_use]
    pub fn first_word(&self) -> Option<&str> {
        let Self::Shell { line, .. } = self else {
            return None;
        };
        let line = line.trim_start();
        let ends = |c: char| c.is_ascii_whitespace() || ";|&<>".contains(c);
        let word = line.split(ends).next().unwrap_or_default();
        is_plain(word).then_some(word)
    }

    /// Returns the command as the operator wrote it.
    #[must_use]
    pub fn text(&self) -> String {
        match self {
            Self::Shell { line, .. } => line.clone(),
            Self::Direct(words) => shell_words::join(words),
            Self::Recorded(text) => text.clone(),
        }
    }
}

/// Default shell.
pub const DEFAULT_SHELL: &str = "/bin/sh";

/// Words that a shell executes itself: POSIX.1-2017 special built-ins, reserved words, and
/// built-ins without a program of the same meaning. The list extends that of make.
const BUILTINS: &[&str] = &[
    ".", ":", "alias", "bg", "break", "case", "cd", "command", "continue", "do", "done", "echo",
    "elif", "else", "esac", "eval", "exec", "exit", "export", "false", "fc", "fg", "fi", "for",
    "getopts", "hash", "if", "in", "jobs", "kill", "let", "local", "printf", "pwd", "read",
    "readonly", "return", "set", "shift", "source", "test", "then", "time", "times", "trap",
    "true", "type", "ulimit", "umask", "unalias", "unset", "until", "wait", "while", "function",
    "select", "[",
];

/// Returns whether a shell would only split `line` at blanks and execute it.
fn is_plain(line: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b" \t_-+./,:@%".contains(&b);
    line.bytes().all(plain)
        && line
            .split_ascii_whitespace()
            .next()
            .is_some_and(|first| !BUILTINS.contains(&first))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_lines_go_without_a_shell() {
        let argv = |line: &str| {
            let command = Command::Shell {
                shell: DEFAULT_SHELL.into(),
                line: line.into(),
            };
            command.argv().join("|")
        };
        assert_eq!(argv("run-it --lane=1"), "/bin/sh|-c|run-it --lane=1");
        assert_eq!(argv(" ./run-it\t-x a/b.c "), "./run-it|-x|a/b.c");
        for line in [
            "a; b", "a $B", "a 'b'", "a | b", "A=1 b", "a *", "~/a", "echo a", "a\nb", "", "a #b",
            "a é",
        ] {
            assert_eq!(argv(line), format!("/bin/sh|-c|{line}"));
        }
    }

    #[test]
    fn the_program_of_a_line_is_known_if_it_is_plain() {
        let first = |line: &str| {
            let command = Command::Shell {
                shell: DEFAULT_SHELL.into(),
                line: line.into(),
            };
            command.first_word().map(str::to_owned)
        };
        for line in [
            "/opt/a.sh \"$X\"",
            " /opt/a.sh",
            "/opt/a.sh; b",
            "/opt/a.sh>x",
        ] {
            assert_eq!(first(line).as_deref(), Some("/opt/a.sh"), "{line}");
        }
        for line in [
            "", "$X a", "cd /", "X=1 a", "'a' b", "(a)", "{ a; }", "~/a", "! a",
        ] {
            assert_eq!(first(line), None, "{line}");
        }
    }

    #[test]
    fn words_are_split_and_never_expanded() {
        let command = Command::direct("run 'a b' $HOME `x`").expect("command");
        assert_eq!(command.argv(), ["run", "a b", "$HOME", "`x`"]);
        assert!(Command::direct(" ").is_err() && Command::direct("a 'b").is_err());
    }

    #[test]
    fn the_ledger_reads_what_it_has_written() {
        let shell = Command::Shell {
            shell: "/bin/bash".into(),
            line: "a | b".into(),
        };
        for (command, json) in [
            (shell, r#"{"shell":{"shell":"/bin/bash","line":"a | b"}}"#),
            (
                Command::direct("a 'b c'").expect("command"),
                r#"{"argv":["a","b c"]}"#,
            ),
            (Command::Recorded("a".into()), r#"{"text":"a"}"#),
        ] {
            assert_eq!(serde_json::to_string(&command).expect("write"), json);
            assert_eq!(
                serde_json::from_str::<Command>(json).expect("read"),
                command
            );
        }
        assert!(Command::Recorded("a".into()).argv().is_empty());
    }
}
