//! Parses the text of a playbook into steps.

use std::collections::HashMap;

use crate::model::duration;
use crate::model::playbook::{Action, Playbook, Step, Wrong};
use crate::model::text::BOM;
use crate::model::topic::check_name;

/// Maximum length of a line, characters.
const MAX_LINE: usize = 64 * 1024;

/// The words of a line: one is cut off, the rest is left.
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

/// The playbook so far, and what it needs to read the next line.
struct Reading {
    playbook: Playbook,
    variables: HashMap<String, String>,
    lenient: bool,
}

/// Parses the whole text as [`Playbook::parse`] does, and returns every mistake as well.
pub(super) fn parse(text: &str, lenient: bool) -> (Playbook, Vec<Wrong>) {
    let mut reading = Reading {
        playbook: Playbook::default(),
        variables: HashMap::new(),
        lenient,
    };
    let text = text.strip_prefix(BOM).unwrap_or(text);
    let lines = text.lines().zip(1..);
    let wrong = lines.filter_map(|(raw, line)| {
        let read = reading.line(line, raw.trim_end());
        read.err().map(|(column, cause)| Wrong {
            line,
            column,
            cause,
        })
    });
    let wrong = wrong.collect();
    (reading.playbook, wrong)
}

impl Reading {
    /// Reads line number `n`.
    ///
    /// # Errors
    /// The column and the cause of a mistake.
    fn line(&mut self, n: usize, line: &str) -> Result<(), (usize, String)> {
        if line.trim_start().is_empty() || line.trim_start().starts_with('#') {
            return Ok(());
        }
        if line.len() > MAX_LINE {
            let cause = format!("it has {} bytes, {MAX_LINE} at most", line.len());
            return Err((1, cause));
        }
        let control = |c: char| c.is_control() && c != '\t';
        if let Some(column) = line.chars().position(control) {
            return Err((column + 1, "a control character".into()));
        }
        // There, the shell expands names that were not SET.
        let after = line.trim_start();
        let after = after.strip_prefix("ON FAILURE ").unwrap_or(after);
        let shell = after.trim_start().starts_with("RUN ");
        let line = expand(line, &self.variables, shell)?;
        if line.len() > MAX_LINE {
            let cause = format!(
                "with its variables it has {} bytes, {MAX_LINE} at most",
                line.len()
            );
            return Err((1, cause));
        }
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
            let named = is_variable(name);
            let value = words.rest;
            let complete = named && !value.is_empty() && !value.starts_with('=');
            if named {
                // Lines that use it are not mistakes if this one is.
                let value = if complete { value } else { name };
                self.variables.insert(name.to_owned(), value.to_owned());
            }
            return match complete {
                true => Ok(()),
                false => Err((column, "SET has a name and a value: SET NAME VALUE".into())),
            };
        }
        let action = action(keyword, &mut words).map_err(|cause| (words.column(), cause))?;
        match action {
            Some(action) => {
                let step = Step { line: n, action };
                match failure {
                    Some(_) => self.playbook.on_failure.push(step),
                    None => self.playbook.steps.push(step),
                }
            }
            None if self.lenient => self.playbook.ignored.push((n, line.clone())),
            None => return Err((column, unknown(keyword))),
        }
        Ok(())
    }
}

fn unknown(keyword: &str) -> String {
    let upper = keyword.to_uppercase();
    if upper == "ON" {
        return "ON FAILURE has a step after it, such as ON FAILURE RUN ./tidy.sh".to_owned();
    }
    let known = ["SEND", "WAITFOR", "WAIT", "RECEIVE", "RAISE", "RUN", "SET"];
    if known.contains(&upper.as_str()) {
        return format!("'{keyword}' is written {upper}");
    }
    format!(
        "'{keyword}' is not a keyword: {}, ON FAILURE",
        known.join(", ")
    )
}

fn is_variable(name: &str) -> bool {
    let letter = |b: u8| b.is_ascii_alphabetic() || b == b'_';
    name.bytes().next().is_some_and(letter) && name.bytes().all(|b| letter(b) || b.is_ascii_digit())
}

/// Replaces `$NAME` and `${NAME}` by the value of SET, and `$$` by a dollar. Other dollars stay. In
/// a line for a `shell`, names that were not SET stay too.
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
            let hint = if name.is_empty() {
                "; no blanks after a comma"
            } else {
                ""
            };
            return Err(format!("'{name}' is not a name{hint}"));
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
            if at.is_none()
                && let Some((_, time)) = message.rsplit_once(" AT ")
            {
                if duration::parse(time).is_ok() {
                    return Err(format!("an instant is written AT +{time}"));
                }
                // A last word after AT can only be meant as an instant.
                if !time.trim().contains(char::is_whitespace) {
                    return Err(format!(
                        "'{}' is not an instant: AT +500ms; a word AT of the command is quoted: 'AT'",
                        time.trim()
                    ));
                }
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
            if status.split_whitespace().any(|word| word == "TIMEOUT") {
                return Err("a limit is written at the end, with a time: TIMEOUT 30s".into());
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
