//! Commands to a node, and its statuses: plain text, as in MQTT-Orchestrate.

use crate::model::text::printable;

/// Status of a node that is there.
pub const ALIVE: &str = "ALIVE";
/// Status that the broker publishes for a node that has vanished.
pub const LOST: &str = "LOST";
/// Last status of a node that was told to end.
pub const TERMINATED: &str = "TERMINATED";
/// The command that ends a node.
pub const TERMINATE: &str = "TERMINATE";
/// The command that begins what a node runs.
pub const START: &str = "START";
/// The command that ends it.
pub const STOP: &str = "STOP";
/// Status of a node that has ended it.
pub const STOPPED: &str = "STOPPED";
/// First word of the status of a command that failed; its exit code follows.
pub const FAILED: &str = "FAILED";

/// User property of a command: when it begins, milliseconds since 1970.
pub const AT: &str = "tael-at";

/// User property of a status: the process that published it.
pub const INSTANCE: &str = "tael-instance";

/// Maximum size of a command, bytes.
pub const MAX_COMMAND: usize = 64 * 1024;

/// A command and its words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// The first word.
    pub name: String,
    /// The other words.
    pub words: Vec<String>,
    /// When it begins, milliseconds since 1970.
    pub at: Option<i64>,
}

impl Command {
    /// Splits a command into words, as a shell would, and evaluates nothing.
    ///
    /// # Errors
    /// A text for the log.
    pub fn parse(payload: &[u8], at: Option<&str>) -> Result<Self, String> {
        if payload.len() > MAX_COMMAND {
            return Err(format!(
                "it has {} bytes, {MAX_COMMAND} at most",
                payload.len()
            ));
        }
        let text = std::str::from_utf8(payload).map_err(|_| "it is not UTF-8".to_owned())?;
        if text.contains('\0') {
            return Err("it contains a NUL character".to_owned());
        }
        let mut words = shell_words::split(text)
            .map_err(|_| format!("it has an open quote: {}", printable(text, 80)))?;
        if words.is_empty() {
            return Err("it is empty".to_owned());
        }
        Ok(Self {
            name: words.remove(0),
            words,
            at: at.and_then(|at| at.parse().ok()),
        })
    }
}

/// Returns the topic on which node `name` below `root` receives commands.
#[must_use]
pub fn command_topic(root: &str, name: &str) -> String {
    format!("{root}/{name}/COMMAND")
}

/// Returns the topic of its statuses, which are retained.
#[must_use]
pub fn status_topic(root: &str, name: &str) -> String {
    format!("{root}/{name}/STATUS")
}

/// Returns the exit code in the status of a command that failed.
#[must_use]
pub fn failure(status: &str) -> Option<i32> {
    let rest = status.strip_prefix(FAILED)?;
    Some(rest.trim().parse().unwrap_or(1))
}

/// Returns the meaning of the exit code of a command that failed.
#[must_use]
pub fn explain(code: i32) -> String {
    let text = match code {
        65 => "the node does not understand the command, or its instant is too far away",
        69 => "the node cannot reach the receiver of the file",
        75 => "the file is in use, or the node was told to end first",
        77 => "the node may not send that file; see its --allow-dir",
        125 => "the function ended its shell",
        127 => "the node does not know the command, or finds no program of that name",
        129..=192 => return format!("killed by signal {}", code - 128),
        code => return format!("the command ended with {code}"),
    };
    text.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn commands_are_words() {
        let parse = |text: &str| Command::parse(text.as_bytes(), Some("7"));
        let command = parse("START 127.0.0.1  'a b' \"$(id)\" ; rm -rf /").expect("command");
        assert_eq!(command.name, "START");
        assert_eq!(
            command.words,
            ["127.0.0.1", "a b", "$(id)", ";", "rm", "-rf", "/"]
        );
        assert_eq!(command.at, Some(7));
        for bad in ["", "  ", "START 'x", "START a\0b"] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
        assert!(Command::parse(&[b'x'; MAX_COMMAND + 1], None).is_err());
        assert!(Command::parse(b"\xff", None).is_err());
        assert_eq!((failure("FAILED 3"), failure("STARTED")), (Some(3), None));
        assert_eq!(explain(3), "the command ended with 3");
        assert_eq!(explain(137), "killed by signal 9");
    }

    proptest! {
        #[test]
        fn quoted_words_arrive_as_they_are(words in proptest::collection::vec("[^\0]{0,12}", 1..6)) {
            prop_assume!(!words[0].is_empty());
            let text = shell_words::join(&words);
            let command = Command::parse(text.as_bytes(), None).expect("command");
            let mut all = vec![command.name];
            all.extend(command.words);
            prop_assert_eq!(all, words);
        }
    }
}
