//! Playbooks: steps for several nodes, one on each line, in the language of MQTT-Orchestrate with a
//! few additions.

mod parse;

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use crate::model::duration;

/// The action of a step.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Send a command to nodes.
    Send {
        /// Their names, at least one.
        nodes: Vec<String>,
        /// The command and its words.
        message: String,
        /// Delay until the instant at which all begin.
        at: Option<Duration>,
    },
    /// Wait for a status of nodes or of a pipeline.
    WaitFor {
        /// Their names, at least one.
        nodes: Vec<String>,
        /// Status to wait for.
        status: String,
        /// Maximum time to wait.
        timeout: Option<Duration>,
    },
    /// Wait.
    Wait(Duration),
    /// Receive one file over TCP, while the next steps go on.
    Receive {
        /// TCP port.
        port: u16,
        /// Path to write it to.
        file: String,
    },
    /// Raise a pipeline.
    Raise {
        /// Its name.
        who: String,
        /// Attributes.
        attributes: Vec<(String, String)>,
    },
    /// Run a command of the shell on this host.
    Run(String),
}

/// An action and its line.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// Number of the line, from 1.
    pub line: usize,
    /// The action.
    pub action: Action,
}

/// A whole playbook.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Playbook {
    /// The steps, in order.
    pub steps: Vec<Step>,
    /// Steps to run when a step fails.
    pub on_failure: Vec<Step>,
    /// Lines that were ignored with `lenient`: number and text.
    pub ignored: Vec<(usize, String)>,
}

/// A mistake in a playbook, and its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrong {
    /// Number of the line, from 1.
    pub line: usize,
    /// Number of the character in it, from 1.
    pub column: usize,
    /// The mistake.
    pub cause: String,
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "line {}, column {}: {}",
            self.line, self.column, self.cause
        )
    }
}

/// Statuses of pipelines that a WAITFOR may name; statuses of nodes are in capitals.
pub const PIPELINE_STATES: &[&str] = &["started", "finished", "failed", "falsestart"];

impl Playbook {
    /// Parses the whole text; a last line without newline counts. With `lenient`, lines of unknown
    /// keywords are ignored.
    ///
    /// # Errors
    /// The first mistake.
    pub fn parse(text: &str, lenient: bool) -> Result<Self, Wrong> {
        let (playbook, wrong) = parse::parse(text, lenient);
        wrong.into_iter().next().map_or(Ok(playbook), Err)
    }

    /// Returns every mistake in the text, and the playbook of the other lines.
    #[must_use]
    pub fn check(text: &str, lenient: bool) -> (Self, Vec<Wrong>) {
        parse::parse(text, lenient)
    }

    /// Returns all nodes that the playbook names.
    #[must_use]
    pub fn nodes(&self) -> BTreeSet<String> {
        self.names(|action| match action {
            Action::Send { nodes, .. } => Some(nodes),
            Action::WaitFor { nodes, status, .. } => (!is_pipeline_state(status)).then_some(nodes),
            _ => None,
        })
    }

    /// Returns all pipelines that it waits for.
    #[must_use]
    pub fn pipelines(&self) -> BTreeSet<String> {
        self.names(|action| match action {
            Action::WaitFor { nodes, status, .. } => is_pipeline_state(status).then_some(nodes),
            _ => None,
        })
    }

    fn names(&self, of: impl Fn(&Action) -> Option<&Vec<String>>) -> BTreeSet<String> {
        let steps = self.steps.iter().chain(&self.on_failure);
        let names = steps.filter_map(|step| of(&step.action));
        names.flatten().cloned().collect()
    }
}

/// Returns whether a WAITFOR of `status` is about a pipeline.
#[must_use]
pub fn is_pipeline_state(status: &str) -> bool {
    PIPELINE_STATES.contains(&status)
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dollars = |text: &str| text.replace('$', "$$");
        match self {
            Self::Send { nodes, message, at } => {
                write!(f, "SEND {} {}", dollars(&nodes.join(",")), dollars(message))?;
                at.map_or(Ok(()), |at| write!(f, " AT +{}", duration::text(at)))
            }
            Self::WaitFor {
                nodes,
                status,
                timeout,
            } => {
                write!(
                    f,
                    "WAITFOR {} {}",
                    dollars(&nodes.join(",")),
                    dollars(status)
                )?;
                timeout.map_or(Ok(()), |t| write!(f, " TIMEOUT {}", duration::text(t)))
            }
            Self::Wait(time) => write!(f, "WAIT {}", duration::text(*time)),
            Self::Receive { port, file } => write!(f, "RECEIVE {port} {}", dollars(file)),
            Self::Raise { who, attributes } => {
                write!(f, "RAISE {}", dollars(who))?;
                for (key, value) in attributes {
                    let word = format!("{key}={value}");
                    write!(f, " {}", dollars(&shell_words::quote(&word)))?;
                }
                Ok(())
            }
            Self::Run(command) => write!(f, "RUN {}", dollars(command)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Result<Playbook, Wrong> {
        Playbook::parse(text, false)
    }

    #[test]
    fn all_keywords() {
        let text = "# a comment\n\nSET PORT 5201\nSEND a,b START $PORT ${PORT}x $$1 AT +500ms\n\
                    WAITFOR a,b STARTED TIMEOUT 30s\nWAITFOR align finished\nWAIT 0.5\nWAIT 5m\n\
                    RECEIVE 6000 test.txt\nRAISE align K=V 'L=x y'\nRUN echo $HOME; true\n\
                    ON FAILURE SEND a STOP";
        let playbook = parse(text).expect("parsed");
        let lines: Vec<String> = playbook
            .steps
            .iter()
            .map(|s| s.action.to_string())
            .collect();
        assert_eq!(
            lines,
            [
                "SEND a,b START 5201 5201x $$1 AT +500ms",
                "WAITFOR a,b STARTED TIMEOUT 30s",
                "WAITFOR align finished",
                "WAIT 500ms",
                "WAIT 5m",
                "RECEIVE 6000 test.txt",
                "RAISE align 'K=V' 'L=x y'",
                "RUN echo $$HOME; true",
            ]
        );
        assert_eq!(playbook.steps[0].line, 4);
        assert_eq!(playbook.on_failure[0].action.to_string(), "SEND a STOP");
        assert!(playbook.nodes().iter().eq(["a", "b"]));
        assert!(playbook.pipelines().iter().eq(["align"]));
    }

    #[test]
    fn errors_say_where() {
        for (text, line, column, cause) in [
            ("WAIT 1\nSEEND a b", 2, 1, "not a keyword"),
            ("send a b", 1, 1, "is written SEND"),
            ("SEND", 1, 5, "a name is missing"),
            ("SEND a", 1, 7, "a message is missing"),
            ("SEND a/b START", 1, 10, "is not a name"),
            ("SEND a,,b START", 1, 11, "is not a name"),
            ("SEND a+ START", 1, 9, ""),
            ("WAITFOR a", 1, 10, "a status is missing"),
            ("  WAIT soon", 1, 8, "not a duration"),
            ("RECEIVE x y", 1, 11, "a port"),
            ("RECEIVE 70000 y", 1, 15, "a port"),
            ("RECEIVE 6000", 1, 13, "a file"),
            ("RUN", 1, 4, "a command"),
            ("SEND a b $C", 1, 10, "$C was not SET"),
            ("SEND a x\u{7}y", 1, 9, "control"),
            ("SEND a START AT soon", 1, 8, "'soon' is not an instant"),
            ("SEND a START AT 5s", 1, 8, "AT +5s"),
            ("SET 1 2", 1, 1, "SET has"),
            ("RAISE a b", 1, 9, "KEY=VALUE"),
        ] {
            let wrong = parse(text).expect_err(text);
            assert_eq!(
                (wrong.line, wrong.column),
                (line, column),
                "{text}: {wrong}"
            );
            assert!(wrong.cause.contains(cause), "{text}: {wrong}");
        }
        for fine in ["SEND a MEET 'AT' noon", "SEND a MEET AT noon sharp"] {
            assert!(parse(fine).is_ok(), "{fine}");
        }
        let text = "SEND a\nSET X\nSEND b $X\n\nSEEK c\nWAIT 1\nWAIT soon";
        let (playbook, wrong) = Playbook::check(text, false);
        let lines: Vec<usize> = wrong.iter().map(|wrong| wrong.line).collect();
        // The mistake in a SET is none of the lines that use it.
        assert_eq!(lines, [1, 2, 5, 7], "{wrong:?}");
        assert_eq!(playbook.steps.len(), 2);
        let lenient = Playbook::parse("HELLO there\nWAIT 1", true).expect("lenient");
        assert_eq!(lenient.ignored, [(1, "HELLO there".to_owned())]);
        assert_eq!(lenient.steps.len(), 1);
        assert!(parse(&format!("SEND a {}", "x".repeat(1 << 20))).is_err());
    }

    fn actions() -> impl Strategy<Value = Action> {
        let name = "[a-z][a-z0-9_-]{0,6}";
        let nodes = proptest::collection::vec(name, 1..4);
        // Without words of the language in them.
        let text = "[A-Za-z0-9$;&|'\"(){}<>*?!~-]{1,8}( [a-z0-9$;.=]{1,5}){0,3}";
        let time = (1u64..100_000).prop_map(Duration::from_millis);
        prop_oneof![
            (nodes.clone(), text, proptest::option::of(time.clone()))
                .prop_map(|(nodes, message, at)| Action::Send { nodes, message, at }),
            (nodes, text, proptest::option::of(time.clone())).prop_map(
                |(nodes, status, timeout)| Action::WaitFor {
                    nodes,
                    status,
                    timeout
                }
            ),
            time.prop_map(Action::Wait),
            (1u16.., text).prop_map(|(port, file)| Action::Receive { port, file }),
            (
                name,
                proptest::collection::vec(("[a-z]{1,5}", "[ -~]{0,8}"), 0..3)
            )
                .prop_map(|(who, attributes)| Action::Raise { who, attributes }),
            text.prop_map(Action::Run),
        ]
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_back(list in proptest::collection::vec(actions(), 1..8)) {
            let text: Vec<String> = list.iter().map(Action::to_string).collect();
            let playbook = parse(&text.join("\n")).expect("parsed");
            let read: Vec<Action> = playbook.steps.into_iter().map(|s| s.action).collect();
            prop_assert_eq!(read, list);
        }

        #[test]
        fn nothing_makes_the_parser_fall_over(text in "(SEND|WAIT|WAITFOR|SET|RUN|\\PC){0,6}[ \\n$a-z\\PC]{0,40}") {
            let _ = parse(&text);
            let _ = Playbook::parse(&text, true);
        }
    }
}
