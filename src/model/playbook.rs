//! Playbooks: what several nodes are to do, in step. One line a step, in the language of
//! MQTT-Orchestrate and some words more.

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use crate::model::duration;
use crate::model::topic::check_name;

/// Something to be done.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// A command for nodes.
    Send {
        /// Their names, at least one.
        nodes: Vec<String>,
        /// The command and its words.
        message: String,
        /// Have them all begin so long from now, at one instant.
        at: Option<Duration>,
    },
    /// Wait until nodes, or a pipeline, say something.
    WaitFor {
        /// Their names, at least one.
        nodes: Vec<String>,
        /// What is waited for.
        status: String,
        /// How long at most.
        timeout: Option<Duration>,
    },
    /// Wait.
    Wait(Duration),
    /// Take one file from the network, while the next steps go on.
    Receive {
        /// TCP port.
        port: u16,
        /// Where it is put.
        file: String,
    },
    /// Raise a pipeline.
    Raise {
        /// Its name.
        who: String,
        /// Attributes.
        attributes: Vec<(String, String)>,
    },
    /// Run a command of the shell here.
    Run(String),
}

/// An action and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// Its line, from 1.
    pub line: usize,
    /// What is to be done.
    pub action: Action,
}

/// A whole playbook.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Playbook {
    /// The steps, in order.
    pub steps: Vec<Step>,
    /// What is done when a step fails.
    pub on_failure: Vec<Step>,
    /// Lines that were left out, being lenient: number and text.
    pub ignored: Vec<(usize, String)>,
}

/// What is wrong with a playbook, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrong {
    /// The line, from 1.
    pub line: usize,
    /// The character in it, from 1.
    pub column: usize,
    /// What.
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

/// States that a pipeline's status has; nodes shout.
pub const PIPELINE_STATES: &[&str] = &["started", "finished", "failed", "falsestart"];

/// Characters of a line at most.
const MAX_LINE: usize = 64 * 1024;

/// The first keyword of a line that the text is cut from, and what is left of it.
struct Words<'a> {
    whole: &'a str,
    rest: &'a str,
}

impl<'a> Words<'a> {
    fn new(whole: &'a str) -> Self {
        Self {
            whole,
            rest: whole.trim_start(),
        }
    }

    fn column(&self) -> usize {
        let at = self.whole.len() - self.rest.len();
        self.whole.get(..at).unwrap_or_default().chars().count() + 1
    }

    fn next(&mut self) -> Option<&'a str> {
        if self.rest.is_empty() {
            return None;
        }
        let end = self.rest.find(char::is_whitespace);
        let (word, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
        self.rest = rest.trim_start();
        Some(word)
    }
}

impl Playbook {
    /// Parses the whole text; a last line without newline counts. With `lenient`, lines of
    /// unknown keywords are left out.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn parse(text: &str, lenient: bool) -> Result<Self, Wrong> {
        let mut playbook = Self::default();
        let mut variables = HashMap::new();
        for (n, raw) in text.lines().enumerate() {
            let line = raw.trim_end();
            if line.trim_start().is_empty() || line.trim_start().starts_with('#') {
                continue;
            }
            let wrong = |column: usize, cause: String| Wrong {
                line: n + 1,
                column,
                cause,
            };
            if line.len() > MAX_LINE {
                let cause = format!("it has {} bytes, {MAX_LINE} at most", line.len());
                return Err(wrong(1, cause));
            }
            if let Some(c) = line.chars().find(|c| c.is_control() && *c != '\t') {
                let column = line.chars().position(|other| other == c).unwrap_or(0) + 1;
                return Err(wrong(column, "a control character".into()));
            }
            // What was not SET is the shell's there.
            let after = line.trim_start();
            let after = after.strip_prefix("ON FAILURE ").unwrap_or(after);
            let shell = after.trim_start().starts_with("RUN ");
            let line =
                expand(line, &variables, shell).map_err(|(column, cause)| wrong(column, cause))?;
            let mut words = Words::new(&line);
            let failure = words.rest.strip_prefix("ON FAILURE ");
            if failure.is_some() {
                words.next();
                words.next();
            }
            let column = words.column();
            let keyword = words.next().unwrap_or_default();
            if keyword == "SET" {
                let name = words.next().unwrap_or_default();
                if !is_variable(name) {
                    return Err(wrong(
                        column,
                        "SET has a name and a value: SET NAME VALUE".into(),
                    ));
                }
                variables.insert(name.to_owned(), words.rest.to_owned());
                continue;
            }
            let parsed = action(keyword, &mut words);
            let parsed = parsed.map_err(|cause| (words.column(), cause));
            match parsed {
                Ok(Some(action)) => {
                    let step = Step {
                        line: n + 1,
                        action,
                    };
                    match failure {
                        Some(_) => playbook.on_failure.push(step),
                        None => playbook.steps.push(step),
                    }
                }
                Ok(None) if lenient => playbook.ignored.push((n + 1, line.clone())),
                Ok(None) => return Err(wrong(column, unknown(keyword))),
                Err((column, cause)) => return Err(wrong(column, cause)),
            }
        }
        Ok(playbook)
    }

    /// All nodes that are named.
    #[must_use]
    pub fn nodes(&self) -> Vec<String> {
        let mut all: Vec<String> = Vec::new();
        for step in self.steps.iter().chain(&self.on_failure) {
            let nodes = match &step.action {
                Action::Send { nodes, .. } => nodes,
                Action::WaitFor { nodes, status, .. } if !is_pipeline_state(status) => nodes,
                _ => continue,
            };
            for node in nodes {
                if !all.contains(node) {
                    all.push(node.clone());
                }
            }
        }
        all
    }

    /// All pipelines that are waited for.
    #[must_use]
    pub fn pipelines(&self) -> Vec<String> {
        let mut all: Vec<String> = Vec::new();
        for step in self.steps.iter().chain(&self.on_failure) {
            if let Action::WaitFor { nodes, status, .. } = &step.action
                && is_pipeline_state(status)
            {
                all.extend(
                    nodes
                        .iter()
                        .filter(|n| !all.contains(n))
                        .cloned()
                        .collect::<Vec<_>>(),
                );
            }
        }
        all
    }
}

/// Whether a WAITFOR of `status` is about a pipeline.
#[must_use]
pub fn is_pipeline_state(status: &str) -> bool {
    PIPELINE_STATES.contains(&status)
}

fn unknown(keyword: &str) -> String {
    let upper = keyword.to_uppercase();
    let known = ["SEND", "WAITFOR", "WAIT", "RECEIVE", "RAISE", "RUN", "SET"];
    if known.contains(&upper.as_str()) {
        return format!("'{keyword}' is written {upper}");
    }
    format!(
        "'{keyword}' is no keyword: {}, ON FAILURE",
        known.join(", ")
    )
}

fn is_variable(name: &str) -> bool {
    let letter = |b: u8| b.is_ascii_alphabetic() || b == b'_';
    name.bytes().next().is_some_and(letter) && name.bytes().all(|b| letter(b) || b.is_ascii_digit())
}

/// Replaces `$NAME` and `${NAME}` by what SET has said; `$$` is a dollar. A dollar before
/// anything else stands for itself; so does, for a `shell`, a name that was not SET.
fn expand(
    line: &str,
    variables: &HashMap<String, String>,
    shell: bool,
) -> Result<String, (usize, String)> {
    let mut out = String::new();
    let mut rest = line;
    while let Some(at) = rest.find('$') {
        let (before, from) = rest.split_at(at);
        out.push_str(before);
        let after = &from[1..];
        let column = line[..line.len() - from.len()].chars().count() + 1;
        if let Some(more) = after.strip_prefix('$') {
            out.push('$');
            rest = more;
            continue;
        }
        let braced = after
            .strip_prefix('{')
            .and_then(|text| text.split_once('}'));
        let bare = after.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        let (name, more) = match braced {
            Some((name, more)) => (name, more),
            None => after.split_at(bare.unwrap_or(after.len())),
        };
        if !is_variable(name) || (shell && !variables.contains_key(name)) {
            out.push('$');
            rest = after;
            continue;
        }
        let value = variables.get(name).ok_or_else(|| {
            (
                column,
                format!("${name} was not SET before; a dollar is $$"),
            )
        })?;
        out.push_str(value);
        rest = more;
    }
    out.push_str(rest);
    Ok(out)
}

fn names(word: Option<&str>) -> Result<Vec<String>, String> {
    let word = word.ok_or("a name is missing")?;
    let names: Vec<String> = word.split(',').map(str::to_owned).collect();
    for name in &names {
        if name.is_empty() || name.contains('/') {
            return Err(format!("'{name}' is no name"));
        }
        check_name(name)?;
    }
    Ok(names)
}

fn action(keyword: &str, words: &mut Words<'_>) -> Result<Option<Action>, String> {
    let action = match keyword {
        "SEND" => {
            let nodes = names(words.next())?;
            let (message, at) = match words.rest.rsplit_once(" AT +") {
                Some((message, at)) => (message.trim_end(), Some(duration::parse(at)?)),
                None => (words.rest, None),
            };
            if message.is_empty() {
                return Err("a message is missing: SEND NODE MESSAGE".into());
            }
            Action::Send {
                nodes,
                message: message.to_owned(),
                at,
            }
        }
        "WAITFOR" => {
            let nodes = names(words.next())?;
            let (status, timeout) = match words.rest.rsplit_once(" TIMEOUT ") {
                Some((status, limit)) => (status.trim_end(), Some(duration::parse(limit)?)),
                None => (words.rest, None),
            };
            if status.is_empty() {
                return Err("a status is missing: WAITFOR NODE STATUS".into());
            }
            Action::WaitFor {
                nodes,
                status: status.to_owned(),
                timeout,
            }
        }
        "WAIT" => {
            let word = words.rest;
            if word.is_empty() {
                return Err("a time is missing: WAIT 7, WAIT 0.5, WAIT 5m".into());
            }
            Action::Wait(duration::parse(word)?)
        }
        "RECEIVE" => {
            let port = words.next().and_then(|word| word.parse().ok());
            let port = port.filter(|port| *port > 0);
            let port = port.ok_or("a port is missing: RECEIVE PORT FILE")?;
            if words.rest.is_empty() {
                return Err("a file is missing: RECEIVE PORT FILE".into());
            }
            Action::Receive {
                port,
                file: words.rest.to_owned(),
            }
        }
        "RAISE" => {
            let who = names(words.next())?;
            let [who] = &who[..] else {
                return Err("RAISE is for one pipeline".into());
            };
            let mut attributes = Vec::new();
            for word in shell_words::split(words.rest).map_err(|e| e.to_string())? {
                match word.split_once('=') {
                    Some((key, value)) if !key.is_empty() => {
                        attributes.push((key.to_owned(), value.to_owned()));
                    }
                    _ => return Err(format!("'{word}' is not KEY=VALUE")),
                }
            }
            Action::Raise {
                who: who.clone(),
                attributes,
            }
        }
        "RUN" if words.rest.is_empty() => return Err("a command is missing: RUN COMMAND".into()),
        "RUN" => Action::Run(words.rest.to_owned()),
        _ => return Ok(None),
    };
    Ok(Some(action))
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
        assert_eq!(playbook.nodes(), ["a", "b"]);
        assert_eq!(playbook.pipelines(), ["align"]);
    }

    #[test]
    fn errors_say_where() {
        for (text, line, column, cause) in [
            ("WAIT 1\nSEEND a b", 2, 1, "no keyword"),
            ("send a b", 1, 1, "is written SEND"),
            ("SEND", 1, 5, "a name is missing"),
            ("SEND a", 1, 7, "a message is missing"),
            ("SEND a/b START", 1, 10, "is no name"),
            ("SEND a,,b START", 1, 11, "is no name"),
            ("SEND a+ START", 1, 9, ""),
            ("WAITFOR a", 1, 10, "a status is missing"),
            ("  WAIT soon", 1, 8, "no duration"),
            ("RECEIVE x y", 1, 11, "a port"),
            ("RECEIVE 70000 y", 1, 15, "a port"),
            ("RECEIVE 6000", 1, 13, "a file"),
            ("RUN", 1, 4, "a command"),
            ("SEND a b $C", 1, 10, "$C was not SET"),
            ("SEND a x\u{7}y", 1, 9, "control"),
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
