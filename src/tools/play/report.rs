//! Results of all steps, for people and for programs.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::model::text::{escaped_json, printable};

/// Maximum length of a text in a report, characters.
const MAX_TEXT: usize = 2000;

/// Result of one step.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Outcome {
    pub line: usize,
    pub step: String,
    pub took: Duration,
    /// Why it failed, if it did.
    pub failure: Option<String>,
}

/// Writes a report: JUnit XML for a name that ends in .xml, otherwise JSON.
pub(super) fn write(path: &Path, playbook: &str, outcomes: &[Outcome]) -> Result<()> {
    let xml = path
        .extension()
        .is_some_and(|e| e.eq_ignore_ascii_case("xml"));
    let text = if xml {
        junit(playbook, outcomes)
    } else {
        format!("{}\n", escaped_json(&json(playbook, outcomes).to_string()))
    };
    fs::write(path, text)
        .map_err(|e| Error::cannot_create(format!("write report {}: {e}", path.display())))
}

fn json(playbook: &str, outcomes: &[Outcome]) -> Value {
    let steps: Vec<Value> = outcomes
        .iter()
        .map(|o| {
            json!({
                "line": o.line,
                "step": o.step,
                "held": o.failure.is_none(),
                "seconds": o.took.as_secs_f64(),
                "failure": o.failure,
            })
        })
        .collect();
    json!({
        "playbook": playbook,
        "held": outcomes.iter().all(|o| o.failure.is_none()),
        "steps": steps,
    })
}

/// Returns the form that test tools agree on (its schema: github.com/testmoapp/junitxml).
fn junit(playbook: &str, outcomes: &[Outcome]) -> String {
    let failures = outcomes.iter().filter(|o| o.failure.is_some()).count();
    let total: Duration = outcomes.iter().map(|o| o.took).sum();
    let mut out = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
         <testsuite name=\"{}\" tests=\"{}\" failures=\"{failures}\" time=\"{:.3}\">\n",
        escaped(playbook),
        outcomes.len(),
        total.as_secs_f64()
    );
    for o in outcomes {
        let (name, seconds) = (escaped(&o.step), o.took.as_secs_f64());
        // Writing to a string cannot fail.
        let _ = write!(
            out,
            "  <testcase name=\"line {}: {name}\" time=\"{seconds:.3}\"",
            o.line
        );
        let _ = match &o.failure {
            Some(cause) => writeln!(out, "><failure message=\"{}\"/></testcase>", escaped(cause)),
            None => writeln!(out, "/>"),
        };
    }
    out + "</testsuite>\n"
}

fn escaped(text: &str) -> String {
    let mut out = String::new();
    // [`printable`] escapes all characters that XML cannot hold (XML 1.0, section 2.2).
    for c in printable(text, MAX_TEXT).chars() {
        match c {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_are_well_formed() {
        let outcome = |failure: Option<&str>| Outcome {
            line: 3,
            step: "SEND a \"<x>\"".into(),
            took: Duration::from_millis(1500),
            failure: failure.map(str::to_owned),
        };
        let outcomes = [outcome(None), outcome(Some("a & b"))];
        let xml = junit("p", &outcomes);
        for part in [
            "tests=\"2\" failures=\"1\" time=\"3.000\"",
            "name=\"line 3: SEND a &quot;&lt;x&gt;&quot;\" time=\"1.500\"/>",
            "><failure message=\"a &amp; b\"/></testcase>",
        ] {
            assert!(xml.contains(part), "{part} in {xml}");
        }
        let odd = escaped("\0\u{b}\u{fffe}\u{ffff}\u{1b}\u{2028}\u{d7ff}\u{1fffe}");
        let in_xml = |c: char| matches!(c, '\t' | '\n' | '\r' | ' '..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..);
        assert!(odd.chars().all(in_xml), "{odd}");
        let value = json("p", &outcomes);
        assert_eq!(value["held"], false);
        assert_eq!(value["steps"][1]["failure"], "a & b");
    }
}
