//! Receptor's control protocol: its requests, and the lines that answer them.
//!
//! A request is a line: words, or a JSON object with the key `command`. Source: Receptor,
//! `pkg/controlsvc` and `pkg/workceptor/controlsvc.go`, and its client `receptorctl` 1.6.9.

pub mod go;

use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::model::json;
use crate::model::remote::wire::StreamName;
use crate::model::text::printable;
use crate::model::unit::is_ulid;
use crate::model::work::{NO_PARAMS, UNKNOWN_TYPE};

/// Maximum length of a request, bytes, without its end. Receptor has no limit.
pub const MAX_LINE: usize = 64 * 1024;

/// Name of the node for the client that is asked.
pub const LOCALHOST: &str = "localhost";

/// Name of the service that speaks this protocol.
pub const SERVICE: &str = "control";

/// Error for a node that does not answer.
pub const NO_ROUTE: &str = "no route to node";

/// Tag of a client that is there only to submit work to other nodes. Receptor has no such tag.
pub const SUBMIT_ONLY: &str = "submit-only";

/// Result of a submission: the work is on disk here, and its node has not accepted it yet.
pub const SUBMITTED: &str = "Job Submitted";

/// Result of a submission that its node has accepted.
pub const STARTED: &str = "Job Started";

/// Maximum length of a text of a requester in an answer, characters.
const MAX_SHOWN: usize = 200;

/// Beginning of an error that another attempt may not meet.
pub const TRY_AGAIN: &str = "try again: ";

/// Beginning of the error about work whose id is that of other work.
const OTHER_WORK: &str = "work unit ID ";

/// End of that error.
const BELONGS: &str = " belongs to other work";

/// A request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// The state of the node.
    Status {
        /// Keys of the answer; empty for all.
        fields: Vec<String>,
    },
    /// Whether a node answers.
    Ping(String),
    /// The way to a node.
    Traceroute(String),
    /// A connection to a service of a node.
    Connect {
        /// The node.
        node: String,
        /// The service.
        service: String,
    },
    /// The configuration is read again.
    Reload,
    /// Work is submitted. Its payload follows.
    Submit(Box<Submit>),
    /// A list of the units of submitted work, or one of them.
    List(Option<String>),
    /// The state of a unit.
    UnitStatus(String),
    /// The output of a unit.
    Results {
        /// The unit.
        unit: String,
        /// First byte.
        from: u64,
        /// Which output.
        output: Option<StreamName>,
    },
    /// The end of a unit.
    Cancel(String),
    /// The end of a unit, and of all that is kept of it.
    Release {
        /// The unit.
        unit: String,
        /// Whether not to wait for its end.
        force: bool,
    },
}

/// What an error is about, for programs that do something about it. The protocol has texts only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Another attempt may succeed.
    TryAgain,
    /// The id is that of other work.
    OtherWork,
    /// The client does not have the type.
    UnknownType,
    /// The type takes no parameters.
    NoParams,
    /// Something else.
    Other,
}

impl Refusal {
    /// Reads the text of an error, without the word that begins its line. A text that a requester has
    /// chosen can stand behind a known beginning only.
    #[must_use]
    pub fn of(cause: &str) -> Self {
        let id = cause.strip_prefix(OTHER_WORK);
        let id = id.and_then(|rest| rest.strip_suffix(BELONGS));
        // The node that was to run it has refused it.
        let away = cause
            .strip_prefix("unit ")
            .and_then(|rest| rest.split_once(": "));
        let away = away.filter(|(unit, _)| is_ulid(unit));
        let cause = away.map_or(cause, |(_, cause)| cause);
        match () {
            () if cause.starts_with(TRY_AGAIN) => Self::TryAgain,
            () if id.is_some_and(is_ulid) => Self::OtherWork,
            () if cause.starts_with(UNKNOWN_TYPE) => Self::UnknownType,
            () if cause == NO_PARAMS => Self::NoParams,
            () => Self::Other,
        }
    }
}

/// Work that is submitted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Submit {
    /// Node that is to run it.
    pub node: String,
    /// Its type.
    pub kind: String,
    /// Words for the command, not split yet.
    pub params: String,
    /// Words for the command that are split already, after those.
    pub words: Vec<String>,
    /// Other parameters, by name.
    pub named: Vec<(String, String)>,
    /// Time for a remote start.
    pub ttl: Option<String>,
    /// Whether this client is to sign it.
    pub sign: bool,
    /// Signature of another node.
    pub signature: Option<String>,
    /// TLS settings towards another node.
    pub tls_client: Option<String>,
    /// Id of the unit, if the submitter has chosen one.
    pub id: Option<String>,
}

/// Parses a request, which is a line without its end. `None` for an empty one, which is not
/// answered.
///
/// # Errors
/// A text for the requester.
pub fn parse(line: &[u8]) -> Result<Option<Request>, String> {
    // Receptor drops every one.
    let line: Vec<u8> = line.iter().copied().filter(|byte| *byte != b'\r').collect();
    match line.first() {
        None => Ok(None),
        Some(b'{') => from_json(&line).map(Some),
        Some(_) => {
            let line = String::from_utf8(line).map_err(|_| "the line is not UTF-8".to_owned())?;
            from_words(&line).map(Some)
        }
    }
}

fn from_words(line: &str) -> Result<Request, String> {
    let mut words = line.split(' ');
    let command = words.next().unwrap_or_default().to_ascii_lowercase();
    let mut next = |what: &str| {
        let word = words.next().filter(|word| !word.is_empty());
        word.map(str::to_owned).ok_or_else(|| format!("no {what}"))
    };
    Ok(match command.as_str() {
        "status" => Request::Status { fields: Vec::new() },
        "reload" => Request::Reload,
        "ping" => Request::Ping(next("ping target")?),
        "traceroute" => Request::Traceroute(next("traceroute target")?),
        "connect" => Request::Connect {
            node: next("node to connect to")?,
            service: next("service to connect to")?,
        },
        "work" => {
            let subcommand = next("work subcommand")?;
            return work_from_words(&subcommand, words);
        }
        _ => return Err("Unknown command".into()),
    })
}

fn work_from_words<'a>(
    subcommand: &str,
    mut words: impl Iterator<Item = &'a str>,
) -> Result<Request, String> {
    let rest: Vec<&str> = words.by_ref().collect();
    let word = |place: usize| rest.get(place).copied().filter(|word| !word.is_empty());
    let unit = || word(0).map(str::to_owned).ok_or("missing work unit ID");
    Ok(match subcommand.to_ascii_lowercase().as_str() {
        "submit" => Request::Submit(Box::new(Submit {
            node: word(0).ok_or("missing node")?.to_owned(),
            kind: word(1).ok_or("missing work type")?.to_owned(),
            params: rest.get(2..).unwrap_or_default().join(" "),
            ..Submit::default()
        })),
        "list" => Request::List(word(0).map(str::to_owned)),
        "status" => Request::UnitStatus(unit()?),
        "results" => Request::Results {
            unit: unit()?,
            from: match word(1) {
                Some(from) => offset(from)?,
                None => 0,
            },
            output: None,
        },
        "cancel" => Request::Cancel(unit()?),
        "release" => Request::Release {
            unit: unit()?,
            force: false,
        },
        "force-release" => Request::Release {
            unit: unit()?,
            force: true,
        },
        _ => return Err("bad command".into()),
    })
}

fn offset(text: &str) -> Result<u64, String> {
    let wrong = || {
        format!(
            "start position '{}' is no offset",
            printable(text, MAX_SHOWN)
        )
    };
    text.parse().map_err(|_| wrong())
}

fn from_json(line: &[u8]) -> Result<Request, String> {
    let Ok(Value::Object(mut map)) = json::parse(line) else {
        return Err("the line is not a JSON object".into());
    };
    let text = |map: &mut Map<String, Value>, key: &str| match map.remove(key) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(format!("value of '{key}' is not a string")),
    };
    let needed = |map: &mut Map<String, Value>, key: &str| {
        let found = text(map, key)?.filter(|text| !text.is_empty());
        found.ok_or_else(|| format!("field {key} missing"))
    };
    let command = needed(&mut map, "command")?.to_ascii_lowercase();
    Ok(match command.as_str() {
        "status" => Request::Status {
            fields: match map.remove("requested_fields") {
                Some(Value::Array(list)) => list
                    .iter()
                    .filter_map(Value::as_str)
                    .map(str::to_owned)
                    .collect(),
                _ => Vec::new(),
            },
        },
        "reload" => Request::Reload,
        "ping" => Request::Ping(needed(&mut map, "target")?),
        "traceroute" => Request::Traceroute(needed(&mut map, "target")?),
        "connect" => Request::Connect {
            node: needed(&mut map, "node")?,
            service: needed(&mut map, "service")?,
        },
        "work" => {
            let subcommand = needed(&mut map, "subcommand")?.to_ascii_lowercase();
            let unit = |map: &mut Map<String, Value>| needed(map, "unitid");
            match subcommand.as_str() {
                "submit" => Request::Submit(Box::new(submit(map)?)),
                "list" => Request::List(text(&mut map, "unitid")?),
                "status" => Request::UnitStatus(unit(&mut map)?),
                "results" => Request::Results {
                    unit: unit(&mut map)?,
                    from: match map.remove("startpos") {
                        None | Some(Value::Null) => 0,
                        Some(Value::String(text)) => offset(&text)?,
                        Some(number) => whole(&number)?,
                    },
                    output: match text(&mut map, "stream")?.as_deref() {
                        None => None,
                        Some("stdout") => Some(StreamName::Stdout),
                        Some("stderr") => Some(StreamName::Stderr),
                        Some(_) => return Err("stream is stdout or stderr".into()),
                    },
                },
                "cancel" => Request::Cancel(unit(&mut map)?),
                "release" | "force-release" => Request::Release {
                    unit: unit(&mut map)?,
                    force: subcommand == "force-release",
                },
                _ => return Err("bad command".into()),
            }
        }
        _ => return Err("Unknown command".into()),
    })
}

/// Returns a number of JSON as an offset: an integer, or a float without a fraction.
fn whole(number: &Value) -> Result<u64, String> {
    if let Some(number) = number.as_u64() {
        return Ok(number);
    }
    // Up to here a float holds every integer.
    const MAX: f64 = 9_007_199_254_740_992.0;
    match number.as_f64() {
        Some(float) if float.fract() == 0.0 && (0.0..=MAX).contains(&float) => {
            offset(&format!("{float:.0}"))
        }
        _ => offset(&json::to_text(number)),
    }
}

/// Takes the keys of a submission. Every other key is a parameter.
fn submit(mut map: Map<String, Value>) -> Result<Submit, String> {
    // `tael work submit` passes words as they are.
    let words = match map.remove("words") {
        None => Vec::new(),
        Some(Value::Array(list)) => {
            let words = list.iter().map(|word| word.as_str().map(str::to_owned));
            let words: Option<Vec<String>> = words.collect();
            words.ok_or("value of 'words' is not a list of strings")?
        }
        Some(_) => return Err("value of 'words' is not a list of strings".into()),
    };
    let mut submit = Submit {
        words,
        ..Submit::default()
    };
    for (key, value) in map {
        let Value::String(value) = value else {
            return Err(format!(
                "value of '{}' is not a string",
                printable(&key, MAX_SHOWN)
            ));
        };
        match key.as_str() {
            "node" => submit.node = value,
            "worktype" => submit.kind = value,
            "params" => submit.params = value,
            "ttl" => submit.ttl = Some(value),
            "signwork" => submit.sign = value == "true",
            "signature" => submit.signature = Some(value).filter(|text| !text.is_empty()),
            "tlsclient" => submit.tls_client = Some(value).filter(|text| !text.is_empty()),
            "workUnitID" => submit.id = Some(value).filter(|text| !text.is_empty()),
            _ => submit.named.push((key, value)),
        }
    }
    for (value, key) in [(&submit.node, "node"), (&submit.kind, "worktype")] {
        if value.is_empty() {
            return Err(format!("field {key} missing"));
        }
    }
    Ok(submit)
}

// --- Answers ---

/// Returns the line that greets a requester.
#[must_use]
pub fn greeting(node: &str) -> String {
    format!("Receptor Control, node {node}\n")
}

/// Returns the line of an error.
#[must_use]
pub fn error(cause: &str) -> String {
    // It ends at the first line break, and a text of a requester may have one.
    format!("ERROR: {}\n", printable(cause, 2000))
}

/// Returns the line of a JSON answer.
#[must_use]
pub fn line(answer: &Value) -> String {
    let mut line = json::to_text(answer);
    line.push('\n');
    line
}

/// Beginning of the line that asks for a payload.
const CREATED: &str = "Work unit created with ID ";

/// Returns the line that asks for the payload of unit `id`.
#[must_use]
pub fn send_payload(id: &str) -> String {
    format!("{CREATED}{id}. Send stdin data and EOF.\n")
}

/// Returns the unit whose payload `line` asks for.
#[must_use]
pub fn asks_for(line: &str) -> Option<&str> {
    let (unit, _) = line.strip_prefix(CREATED)?.split_once('.')?;
    Some(unit)
}

/// Returns the error for work whose `id` is that of other work.
#[must_use]
pub fn other_work(id: &str) -> String {
    format!("{OTHER_WORK}{id}{BELONGS}")
}

/// Returns the error for a unit that does not exist.
#[must_use]
pub fn unknown_unit(id: &str) -> String {
    format!("unknown work unit {}", printable(id, MAX_SHOWN))
}

/// Returns the error for a unit that was released.
#[must_use]
pub fn released_unit(id: &str) -> String {
    format!("{}: it was released", unknown_unit(id))
}

/// Returns the answer to a ping of node `from` that took `time`.
#[must_use]
pub fn pong(from: &str, time: Duration) -> Value {
    let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    json!({"Success": true, "From": from, "Time": nanos, "TimeStr": go::duration(time)})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Request, String> {
        parse(line.as_bytes()).map(|request| request.expect("a request"))
    }

    #[test]
    fn words_and_json_mean_the_same() {
        let unit = || "U1".to_owned();
        let cases = [
            (
                "status",
                r#"{"command":"status"}"#,
                Request::Status { fields: vec![] },
            ),
            ("ReLoad", r#"{"command":"reload"}"#, Request::Reload),
            (
                "ping n",
                r#"{"command":"ping","target":"n"}"#,
                Request::Ping("n".into()),
            ),
            (
                "traceroute n",
                r#"{"command":"traceroute","target":"n"}"#,
                Request::Traceroute("n".into()),
            ),
            (
                "connect n control ",
                r#"{"command":"connect","node":"n","service":"control","tlsclient":""}"#,
                Request::Connect {
                    node: "n".into(),
                    service: "control".into(),
                },
            ),
            (
                "work list",
                r#"{"command":"work","subcommand":"list"}"#,
                Request::List(None),
            ),
            (
                "work list U1",
                r#"{"command":"work","subcommand":"list","unitid":"U1"}"#,
                Request::List(Some(unit())),
            ),
            (
                "work status U1",
                r#"{"command":"work","subcommand":"status","unitid":"U1"}"#,
                Request::UnitStatus(unit()),
            ),
            (
                "work results U1 7",
                r#"{"command":"work","subcommand":"results","unitid":"U1","startpos":7.0}"#,
                Request::Results {
                    unit: unit(),
                    from: 7,
                    output: None,
                },
            ),
            (
                "work cancel U1\r",
                r#"{"command":"work","subcommand":"cancel","unitid":"U1"}"#,
                Request::Cancel(unit()),
            ),
            (
                "work force-release U1",
                r#"{"command":"work","subcommand":"force-release","unitid":"U1"}"#,
                Request::Release {
                    unit: unit(),
                    force: true,
                },
            ),
            (
                "work submit n t a 'b c'",
                r#"{"command":"work","subcommand":"submit","node":"n","worktype":"t","params":"a 'b c'"}"#,
                Request::Submit(Box::new(Submit {
                    node: "n".into(),
                    kind: "t".into(),
                    params: "a 'b c'".into(),
                    ..Submit::default()
                })),
            ),
        ];
        for (words, json, request) in cases {
            assert_eq!(parsed(words), Ok(request.clone()), "{words}");
            assert_eq!(parsed(json), Ok(request), "{json}");
        }
        assert_eq!(parse(b""), Ok(None));
        assert_eq!(parse(b"\r"), Ok(None));
    }

    #[test]
    fn every_key_of_a_submission_is_taken() {
        let line = r#"{"command": "work", "subcommand": "submit", "node": "localhost", "worktype": "t",
            "ttl": "1h", "signwork": "true", "tlsclient": "x", "workUnitID": "U", "k": "v",
            "words": ["a b"]}"#;
        let Ok(Request::Submit(submit)) = parsed(line) else {
            panic!("not a submission");
        };
        let expected = Submit {
            node: "localhost".into(),
            kind: "t".into(),
            ttl: Some("1h".into()),
            sign: true,
            tls_client: Some("x".into()),
            id: Some("U".into()),
            named: vec![("k".into(), "v".into())],
            words: vec!["a b".into()],
            ..Submit::default()
        };
        assert_eq!(*submit, expected);
    }

    #[test]
    fn an_error_says_what_it_is_about() {
        const ID: &str = "01JBV7Y3ZK8Q5W2N4T6R9M1XCD";
        for (cause, refusal) in [
            (other_work(ID), Refusal::OtherWork),
            (other_work("x"), Refusal::Other),
            (format!("{TRY_AGAIN}{}", other_work(ID)), Refusal::TryAgain),
            (
                format!("{UNKNOWN_TYPE} {}", other_work(ID)),
                Refusal::UnknownType,
            ),
            (format!("unit {ID}: {UNKNOWN_TYPE} t"), Refusal::UnknownType),
            (format!("unit {ID}: {NO_PARAMS}"), Refusal::NoParams),
            (NO_PARAMS.to_owned(), Refusal::NoParams),
            (format!("unit x: {NO_PARAMS}"), Refusal::Other),
            ("type belongs to other work".to_owned(), Refusal::Other),
        ] {
            assert_eq!(Refusal::of(&cause), refusal, "{cause}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let cases = [
            ("frobnicate", "Unknown command"),
            (r#"{"command":"frobnicate"}"#, "Unknown command"),
            ("work frobnicate", "bad command"),
            (r#"{"command":"work","subcommand":"x"}"#, "bad command"),
            (r#"{"command":"#, "the line is not a JSON object"),
            ("work results U1 -1", "start position '-1' is no offset"),
            (
                r#"{"command":"work","subcommand":"results","unitid":"U1","startpos":1.5}"#,
                "start position '1.5' is no offset",
            ),
            ("work cancel", "missing work unit ID"),
            (
                r#"{"command":"work","subcommand":"submit","node":"n","worktype":"t","k":1}"#,
                "value of 'k' is not a string",
            ),
            (
                r#"{"command":"work","subcommand":"submit","node":"n"}"#,
                "field worktype missing",
            ),
        ];
        for (line, cause) in cases {
            assert_eq!(parsed(line), Err(cause.to_owned()), "{line}");
        }
        assert!(parse(b"ping \xff").is_err());
        assert_eq!(error("a\nb"), "ERROR: a\\nb\n", "one line");
    }
}
