//! Attributes out of a query and a body: a JSON object or the fields of a form.

use serde_json::{Map, Value};

use crate::model::json;
use crate::model::url;

/// Maximum number of parameters of a query or a form.
const MAX_PARAMETERS: usize = 1000;

/// Media type of forms.
const FORM: &str = "application/x-www-form-urlencoded";

/// Media type of JSON.
const JSON: &str = "application/json";

/// Why there are no attributes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wrong {
    /// The body has a media type that is not read: a text for the caller.
    Media(String),
    /// The query or the body is wrong: a text for the caller.
    Data(String),
}

/// Returns the attributes of a request: the parameters of its query, and the members of its body,
/// which win. A body without a `media` type is JSON.
///
/// # Errors
/// What is wrong.
pub fn attributes(
    query: &str,
    media: Option<&str>,
    body: &[u8],
) -> Result<Map<String, Value>, Wrong> {
    let mut attributes = strings(decoded(query.as_bytes(), "query")?);
    if body.is_empty() {
        return Ok(attributes);
    }
    let own = match kind(media)? {
        Kind::Json => match json::parse(body) {
            Ok(Value::Object(object)) => object,
            Ok(_) => return Err(Wrong::Data("the body is JSON, but not an object".into())),
            Err(cause) => return Err(Wrong::Data(format!("the body is not JSON: {cause}"))),
        },
        // What `curl -d` sends.
        Kind::Form if body.trim_ascii_start().starts_with(b"{") => {
            return Err(Wrong::Data(format!(
                "the body looks like JSON, but was sent as a form: add Content-Type: {JSON}"
            )));
        }
        Kind::Form => strings(decoded(body, "form")?),
    };
    attributes.extend(own);
    Ok(attributes)
}

/// Returns a body as JSON: a document, or the fields of a form. Where `member` names a field of the form,
/// the document is the text of that field. An empty body is an empty object. Without a `media` type, a
/// body that is not JSON is `null`, as one of another media type is.
///
/// # Errors
/// What is wrong.
pub fn payload(media: Option<&str>, body: &[u8], member: Option<&str>) -> Result<Value, Wrong> {
    if body.is_empty() {
        return Ok(Value::Object(Map::new()));
    }
    let parse = |body: &[u8]| {
        let wrong = |cause| Wrong::Data(format!("the body is not JSON: {cause}"));
        json::parse(body).map_err(wrong)
    };
    Ok(match kind(media) {
        Ok(Kind::Json) if media.is_none() => parse(body).unwrap_or_default(),
        Ok(Kind::Json) => parse(body)?,
        Ok(Kind::Form) => {
            let fields = decoded(body, "form")?;
            let document = fields
                .iter()
                .find(|(name, _)| Some(name.as_str()) == member);
            match document {
                Some((_, text)) => parse(text.as_bytes())?,
                None => Value::Object(strings(fields)),
            }
        }
        Err(_) => Value::Null,
    })
}

enum Kind {
    Json,
    Form,
}

/// Returns the kind of a body by its media type, without the parameters of that.
fn kind(media: Option<&str>) -> Result<Kind, Wrong> {
    let Some(media) = media else {
        return Ok(Kind::Json);
    };
    let plain = media.split(';').next().unwrap_or_default().trim();
    let plain = plain.to_ascii_lowercase();
    match plain.as_str() {
        JSON => Ok(Kind::Json),
        FORM => Ok(Kind::Form),
        // RFC 6839, section 3.1.
        other if other.starts_with("application/") && other.ends_with("+json") => Ok(Kind::Json),
        _ => Err(Wrong::Media(format!(
            "a body has the media type {JSON} or {FORM}"
        ))),
    }
}

/// Returns `query` without the parameter `name`.
#[must_use]
pub fn without(query: &str, name: &str) -> String {
    let is_it = |part: &&str| {
        let own = part.split('=').next().unwrap_or_default();
        decoded_part(own.as_bytes()).as_deref() == Some(name)
    };
    let rest: Vec<&str> = query.split('&').filter(|part| !is_it(part)).collect();
    rest.join("&")
}

fn strings(pairs: Vec<(String, String)>) -> Map<String, Value> {
    let pairs = pairs.into_iter();
    pairs
        .map(|(name, value)| (name, Value::String(value)))
        .collect()
}

/// Decodes the parameters of a query or a form, which `what` names (URL Standard, section 5.1).
/// Of several with one name all are returned.
///
/// # Errors
/// When there are too many, or one is not text.
pub fn decoded(text: &[u8], what: &str) -> Result<Vec<(String, String)>, Wrong> {
    let parts = text.split(|b| *b == b'&').filter(|part| !part.is_empty());
    let mut pairs = Vec::new();
    for part in parts {
        if pairs.len() == MAX_PARAMETERS {
            let cause = format!("the {what} has more than {MAX_PARAMETERS} parameters");
            return Err(Wrong::Data(cause));
        }
        let mut halves = part.splitn(2, |b| *b == b'=');
        let mut half = || decoded_part(halves.next().unwrap_or_default());
        match (half(), half()) {
            (Some(name), Some(value)) => pairs.push((name, value)),
            _ => {
                let cause = format!("the {what} is not percent-encoded text in UTF-8");
                return Err(Wrong::Data(cause));
            }
        }
    }
    Ok(pairs)
}

/// Decodes a part of a form: `%XX`, and `+` as a space.
fn decoded_part(text: &[u8]) -> Option<String> {
    let spaced = text.iter().map(|b| if *b == b'+' { b' ' } else { *b });
    url::decoded(&spaced.collect::<Vec<u8>>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::url::percent_encoded;
    use proptest::prelude::*;

    fn of(query: &str, media: Option<&str>, body: &str) -> Result<String, Wrong> {
        let found = attributes(query, media, body.as_bytes())?;
        Ok(json::to_text(&Value::Object(found)))
    }

    #[test]
    fn a_parameter_is_left_out() {
        for (query, rest) in [
            ("", ""),
            ("wait=1m", ""),
            ("a=1&wait=1m&b=wait", "a=1&b=wait"),
            ("w%61it=1m&wait&waits=1", "waits=1"),
            ("a=%ff&wait=%ff", "a=%ff"),
        ] {
            assert_eq!(without(query, "wait"), rest, "{query}");
        }
    }

    #[test]
    fn queries_forms_and_objects_are_attributes() {
        let form = Some("Application/X-WWW-Form-Urlencoded; charset=utf-8");
        for (query, media, body, want) in [
            ("", None, "", "{}"),
            (
                "a=b&c=d%20e+f&&g",
                None,
                "",
                r#"{"a":"b","c":"d e f","g":""}"#,
            ),
            ("%C3%A4=%26", None, "", r#"{"ä":"&"}"#),
            ("a=1&b=2", None, r#"{"a":3}"#, r#"{"a":3,"b":"2"}"#),
            (
                "",
                Some("application/json; charset=utf-8"),
                r#"{"a":[1.50]}"#,
                r#"{"a":[1.50]}"#,
            ),
            ("", Some("application/cloudevents+json"), "{}", "{}"),
            ("a=1", form, "a=2&b=x%3Dy=z", r#"{"a":"2","b":"x=y=z"}"#),
        ] {
            let found = of(query, media, body);
            assert_eq!(found.as_deref(), Ok(want), "{query} {media:?} {body}");
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        let form = Some(FORM);
        for (query, media, body, want) in [
            ("%", None, "", "the query is not percent-encoded"),
            ("a=%zz", None, "", "the query is not percent-encoded"),
            ("a=%+1", None, "", "the query is not percent-encoded"),
            ("%ff", None, "", "the query is not percent-encoded"),
            ("", None, "[]", "not an object"),
            ("", None, "a=b", "not JSON"),
            ("", None, "{\"a\":1} x", "not JSON"),
            ("", form, r#"{"a":1}"#, "looks like JSON"),
            ("", form, "%f", "the form is not percent-encoded"),
        ] {
            let Err(Wrong::Data(said)) = of(query, media, body) else {
                panic!("{query} {body} passes");
            };
            assert!(said.contains(want), "{said}");
        }
        for media in [
            "text/plain",
            "multipart/form-data; boundary=x",
            "",
            "application/xml",
        ] {
            let refused = of("", Some(media), "{}");
            assert!(matches!(refused, Err(Wrong::Media(_))), "{media}");
            // Without a body its type does not matter.
            assert!(of("", Some(media), "").is_ok(), "{media}");
        }
        let many = "a&".repeat(MAX_PARAMETERS);
        assert!(of(&many, None, "").is_ok());
        assert!(of(&(many + "b"), None, "").is_err());
    }

    proptest! {
        #[test]
        fn encoded_parameters_come_back(name in ".{1,20}", value in ".{0,20}") {
            let query = format!("{}={}", percent_encoded(&name, ""), percent_encoded(&value, ""));
            let pairs = decoded(query.as_bytes(), "query").expect("pairs");
            prop_assert_eq!(pairs, vec![(name, value)]);
        }

        #[test]
        fn no_bytes_are_too_much(text in prop::collection::vec(any::<u8>(), 0..60)) {
            let _ = decoded(&text, "query");
        }
    }
}
