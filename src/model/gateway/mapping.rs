//! Which parts of a request become attributes of the event.
//!
//! ```toml
//! [route.map]
//! event = { header = "X-GitHub-Event" }
//! branch = { json = "ref" }
//! who = { query = "who", default = "unknown" }
//! merged_by = { json = "pull_request.merged_by.login", optional = true }
//! kind = { value = "push" }
//! ```

use std::fmt;

use serde_json::{Map, Number, Value as Json};
use toml::Value;

use crate::model::event::Attributes;
use crate::model::gateway::keys::{Keys, MAX_SHOWN, Wrong, Wrongs};
use crate::model::gateway::part::{KEYS, Part};
use crate::model::gateway::request::Request;
use crate::model::gateway::signature::SECRET_HEADERS;
use crate::model::json;
use crate::model::text::printable;

/// Maximum number of attributes that a route makes.
pub const MAX_ATTRIBUTES: usize = 128;

/// Maximum length of the name of an attribute, bytes.
const MAX_NAME: usize = 128;

/// Parameters of a query that hold a secret (RFC 6750, section 2.3; GitLab, "Token authentication").
const SECRET_PARAMETERS: &[&str] = &["access_token", "private_token"];

/// Member of the payloads of Gogs and of Gitea before 1.14 that holds the secret of the webhook.
const SECRET_MEMBER: &str = "secret";

/// Where an attribute comes from.
#[derive(Debug, Clone, PartialEq)]
enum Origin {
    /// A value of the configuration.
    Constant(Json),
    /// A part of the request. A `null` is missing.
    Part {
        part: Part,
        /// What it is if the part is missing.
        default: Option<Json>,
        /// Whether it may be missing.
        optional: bool,
    },
}

/// How a route makes the attributes of an event.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Mapping {
    /// Whether the members of the payload are attributes. Those of the list replace them.
    whole: bool,
    /// Whether the payload has a member with a secret.
    has_secret: bool,
    attributes: Vec<(String, Origin)>,
}

/// Why a request has no attributes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unmapped {
    /// Parts of these attributes are missing.
    Missing(Vec<String>),
    /// The payload is no JSON object and no form.
    NotAnObject,
    /// The attributes have more bytes than the limit.
    TooLarge {
        /// Size of the attributes as JSON, bytes.
        bytes: usize,
        /// The limit, bytes.
        limit: usize,
    },
}

impl fmt::Display for Unmapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing(names) => write!(
                f,
                "the request lacks what these attributes are made of: {}",
                names.join(", ")
            ),
            Self::NotAnObject => f.write_str("the body is neither a JSON object nor a form"),
            Self::TooLarge { bytes, limit } => {
                write!(f, "the attributes have {bytes} bytes, the limit is {limit}")
            }
        }
    }
}

impl Mapping {
    /// Reads a `map` table, if there is one. `whole` tells whether the payload is taken too (default:
    /// if there is no table), `own_header` which header holds the signature.
    /// Notes everything that is wrong.
    pub fn read(
        table: Option<Keys<'_>>,
        whole: Option<bool>,
        own_header: Option<&str>,
        has_secret: bool,
        wrongs: &mut Wrongs,
    ) -> Self {
        let mut mapping = Self {
            whole: whole.unwrap_or(table.is_none()),
            has_secret,
            attributes: Vec::new(),
        };
        for (name, value) in table.iter().flat_map(Keys::entries) {
            let Some(table) = &table else { break };
            if mapping.attributes.len() >= MAX_ATTRIBUTES {
                let cause = format!("there are more than {MAX_ATTRIBUTES} attributes");
                wrongs.note(table.wrong_table(cause));
                break;
            }
            let is_plain = !name.contains(|c: char| c.is_control());
            let place = table.place(&printable(name, MAX_SHOWN));
            if !(1..=MAX_NAME).contains(&name.len()) || !is_plain {
                let cause = format!(
                    "an attribute's name has 1 to {MAX_NAME} bytes and no control characters"
                );
                wrongs.note(Wrong { place, cause });
                continue;
            }
            let keys = Keys::of(value, place).map_err(|mut wrong| {
                if value.is_str() {
                    wrong.cause += &format!(
                        ": write {} = {{ value = {value} }}",
                        printable(name, MAX_SHOWN)
                    );
                }
                wrong
            });
            let origin = keys.and_then(|keys| read_origin(&keys, own_header));
            if let Some(origin) = wrongs.keep(origin) {
                let name = json::string_of(name.as_bytes());
                mapping.attributes.push((name, origin));
            }
        }
        mapping
    }

    /// Makes the attributes of a request.
    ///
    /// # Errors
    /// Why there are none.
    pub fn apply(&self, request: &Request<'_>, limit: usize) -> Result<Attributes, Unmapped> {
        let mut attributes = match (self.whole, request.payload) {
            (false, _) => Map::new(),
            (true, Json::Object(members)) => members.clone(),
            (true, _) => return Err(Unmapped::NotAnObject),
        };
        if self.has_secret && self.whole {
            attributes.remove(SECRET_MEMBER);
        }
        let mut missing = Vec::new();
        for (name, origin) in &self.attributes {
            let value = match origin {
                Origin::Constant(value) => Some(value.clone()),
                Origin::Part {
                    part,
                    default,
                    optional,
                } => {
                    // Senders write null for what there is not: GitLab's checkout_sha of a deleted branch.
                    let value = part.value(request).filter(|value| !value.is_null());
                    let value = value.or_else(|| default.clone());
                    if value.is_none() && !optional {
                        missing.push(printable(&json::lossy(name), MAX_SHOWN));
                    }
                    value
                }
            };
            if let Some(value) = value {
                attributes.insert(name.clone(), value);
            }
        }
        if !missing.is_empty() {
            return Err(Unmapped::Missing(missing));
        }
        let attributes = Json::Object(attributes);
        let bytes = json::to_text(&attributes).len();
        match attributes {
            Json::Object(attributes) if bytes <= limit => Ok(attributes),
            _ => Err(Unmapped::TooLarge { bytes, limit }),
        }
    }
}

fn read_origin(keys: &Keys<'_>, own_header: Option<&str>) -> Result<Origin, Wrong> {
    keys.only(&[KEYS, &["value", "default", "optional"]].concat())?;
    let value = keys.get("value");
    let value = value.map(|value| constant(keys, "value", value));
    let part = Part::read(keys)?;
    match (part, value.transpose()?) {
        (Some(_), Some(_)) => Err(keys.wrong("value", "it cannot stand beside a part")),
        (None, Some(value)) => match keys.one_of(&["default", "optional"])? {
            Some(key) => Err(keys.wrong(key, "a value is always there")),
            None => Ok(Origin::Constant(value)),
        },
        (Some(part), None) => {
            check_secret(keys, &part, own_header)?;
            let default = keys.get("default");
            let default = default.map(|value| constant(keys, "default", value));
            let optional = keys.flag("optional")?.unwrap_or(false);
            Ok(Origin::Part {
                part,
                default: default.transpose()?,
                optional,
            })
        }
        (None, None) => {
            Err(keys.wrong_table("it has one of header, query, json, request and value"))
        }
    }
}

/// Checks that a part is not a secret: events are readable by all that the broker lets in.
fn check_secret(keys: &Keys<'_>, part: &Part, own_header: Option<&str>) -> Result<(), Wrong> {
    let cause = "it holds a secret or a signature, which is not passed on";
    match part {
        Part::Header(name)
            if SECRET_HEADERS.contains(&name.as_str()) || Some(name.as_str()) == own_header =>
        {
            Err(keys.wrong("header", cause))
        }
        Part::Query(name) if SECRET_PARAMETERS.contains(&name.as_str()) => {
            Err(keys.wrong("query", cause))
        }
        _ => Ok(()),
    }
}

/// Returns a value of the configuration as JSON.
fn constant(keys: &Keys<'_>, key: &str, value: &Value) -> Result<Json, Wrong> {
    Ok(match value {
        Value::String(text) => Json::String(json::string_of(text.as_bytes())),
        Value::Integer(number) => Json::Number((*number).into()),
        Value::Float(number) => {
            let number = Number::from_f64(*number);
            let number = number.ok_or_else(|| keys.wrong(key, "it is not a finite number"));
            Json::Number(number?)
        }
        Value::Boolean(flag) => Json::Bool(*flag),
        Value::Datetime(time) => Json::String(time.to_string()),
        Value::Array(list) => {
            let values = list.iter().map(|one| constant(keys, key, one));
            Json::Array(values.collect::<Result<_, _>>()?)
        }
        Value::Table(table) => {
            let members = table.iter().map(|(name, one)| {
                let name = json::string_of(name.as_bytes());
                Ok((name, constant(keys, key, one)?))
            });
            Json::Object(members.collect::<Result<_, _>>()?)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::gateway::request::Headers;
    use serde_json::json;

    fn mapping(
        table: Option<Keys<'_>>,
        whole: Option<bool>,
        own_header: Option<&str>,
        has_secret: bool,
    ) -> Result<Mapping, Wrong> {
        let mut wrongs = Wrongs::default();
        let mapping = Mapping::read(table, whole, own_header, has_secret, &mut wrongs);
        wrongs.all().into_iter().next().map_or(Ok(mapping), Err)
    }

    fn read(text: &str) -> Result<Mapping, Wrong> {
        let table: Value = text.parse::<toml::Table>().expect("TOML").into();
        let keys = Keys::of(&table, vec!["map".to_owned()])?;
        mapping(Some(keys), None, Some("x-signature"), false)
    }

    fn apply(mapping: &Mapping, payload: &Json, limit: usize) -> Result<Json, Unmapped> {
        let headers: Headers = [("X-Event", &b"push"[..]), ("X-Raw", b"a\xff")]
            .into_iter()
            .collect();
        let query = [("who", "a"), ("who", "b")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        let request = Request {
            method: "POST",
            path: "/hook",
            query: &query,
            headers: &headers,
            peer: "::ffff:192.0.2.1".parse().ok(),
            body: b"body",
            payload,
        };
        mapping.apply(&request, limit).map(Json::Object)
    }

    #[test]
    fn parts_keep_their_types() {
        let mapping = read(
            r#"
            event = { header = "x-event" }
            raw = { header = "X-Raw" }
            who = { query = "who" }
            id = { json = "a.0.id" }
            list = { json = "a" }
            none = { json = "none", default = 1 }
            method = { request = "method" }
            path = { request = "path" }
            body = { request = "body" }
            peer = { request = "peer" }
            kind = { value = [1, 0.5, true, "x", { y = 1979-05-27 }] }
            gone = { json = "gone", optional = true }
            other = { header = "X-Other", default = { a = [] } }
            "#,
        )
        .expect("mapping");
        let number: Json = "12345678901234567890".parse().expect("number");
        let payload = json!({"a": [{"id": number}], "none": null, "secret": "s"});
        assert_eq!(
            apply(&mapping, &payload, 1000),
            Ok(json!({
                "event": "push", "raw": json::string_of(b"a\xff"), "who": "a", "id": number,
                "list": [{"id": number}], "none": 1, "method": "POST", "path": "/hook",
                "body": "body", "peer": "192.0.2.1",
                "kind": [1, 0.5, true, "x", {"y": "1979-05-27"}], "other": {"a": []},
            }))
        );
    }

    #[test]
    fn a_text_for_a_table_is_told_how_to_be_one() {
        let table: Value = "status = 'finished'"
            .parse::<toml::Table>()
            .expect("TOML")
            .into();
        let keys = Keys::of(&table, vec!["map".to_owned()]).expect("table");
        let mut wrongs = Wrongs::default();
        Mapping::read(Some(keys), None, None, false, &mut wrongs);
        let said = format!("{wrongs:?}");
        assert!(
            said.contains(r#"write status = { value = \"finished\" }"#),
            "{said}"
        );
    }

    #[test]
    fn what_is_missing_is_named() {
        let mapping = read("a = { json = 'x' }\nb = { query = 'y' }\nc = { value = 1 }");
        let mapping = mapping.expect("mapping");
        let refused = apply(&mapping, &json!({"x": null}), 1000);
        assert_eq!(
            refused,
            Err(Unmapped::Missing(vec!["a".to_owned(), "b".to_owned()]))
        );
        let refused = apply(&mapping, &json!("x"), 1000).expect_err("both are missing");
        assert!(refused.to_string().ends_with(": a, b"), "{refused}");
    }

    #[test]
    fn the_payload_is_taken_whole_without_a_map() {
        let payload = json!({"a": 1, "secret": "s"});
        let whole = mapping(None, None, None, false).expect("mapping");
        assert_eq!(apply(&whole, &payload, 1000), Ok(payload.clone()));
        for other in [json!([1]), json!(null), json!("x")] {
            assert_eq!(apply(&whole, &other, 1000), Err(Unmapped::NotAnObject));
        }
        let gitea = mapping(None, None, None, true).expect("mapping");
        assert_eq!(apply(&gitea, &payload, 1000), Ok(json!({"a": 1})));
        let none = mapping(None, Some(false), None, false).expect("mapping");
        assert_eq!(apply(&none, &json!(null), 1000), Ok(json!({})));
        // Attributes of the map replace members.
        let table: Value = toml::toml! { a = { value = 2 } }.into();
        let keys = Keys::of(&table, Vec::new()).expect("table");
        let both = mapping(Some(keys), Some(true), None, false).expect("mapping");
        assert_eq!(
            apply(&both, &payload, 1000),
            Ok(json!({"a": 2, "secret": "s"}))
        );
    }

    #[test]
    fn attributes_are_bounded() {
        let whole = mapping(None, None, None, false).expect("mapping");
        let payload = json!({"a": "xy"});
        assert!(apply(&whole, &payload, 10).is_ok());
        let refused = apply(&whole, &payload, 9);
        assert_eq!(
            refused,
            Err(Unmapped::TooLarge {
                bytes: 10,
                limit: 9
            })
        );
        let many = |count: usize| {
            let lines = (0..count).map(|n| format!("a{n} = {{ value = 1 }}\n"));
            read(&lines.collect::<String>())
        };
        assert!(many(MAX_ATTRIBUTES).is_ok() && many(MAX_ATTRIBUTES + 1).is_err());
    }

    #[test]
    fn secrets_are_never_mapped() {
        for name in SECRET_HEADERS.iter().chain(&["x-signature"]) {
            for name in [(*name).to_owned(), name.to_uppercase()] {
                let wrong = read(&format!("a = {{ header = '{name}' }}")).expect_err(&name);
                assert_eq!(wrong.place, ["map", "a", "header"]);
            }
        }
        assert!(read("a = { query = 'access_token' }").is_err());
    }

    #[test]
    fn mistakes_name_their_key() {
        for (text, place) in [
            ("a = 1", "map.a"),
            ("a = {}", "map.a"),
            ("a = { json = 'x', query = 'y' }", "map.a.json"),
            ("a = { json = 'x', value = 1 }", "map.a.value"),
            ("a = { json = 'x..y' }", "map.a.json"),
            ("a = { json = 1 }", "map.a.json"),
            ("a = { header = 'a b' }", "map.a.header"),
            ("a = { header = '' }", "map.a.header"),
            ("a = { query = '' }", "map.a.query"),
            ("a = { request = 'x' }", "map.a.request"),
            ("a = { value = nan }", "map.a.value"),
            ("a = { value = 1, optional = true }", "map.a.optional"),
            ("a = { json = 'x', optional = 1 }", "map.a.optional"),
            ("a = { json = 'x', defalt = 1 }", "map.a.defalt"),
            ("'' = { value = 1 }", "map."),
            ("\"a\\n\" = { value = 1 }", "map.a\\n"),
        ] {
            let line = read(text).expect_err(text).to_string();
            assert!(line.starts_with(&format!("{place}: ")), "{text}: {line}");
            assert!(!line.contains('\n'), "{line}");
        }
    }
}
