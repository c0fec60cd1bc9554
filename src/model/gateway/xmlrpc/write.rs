//! Writes responses. They are ASCII: other characters become references, which every parser and
//! every idea of the encoding understands.

use std::fmt::Write as _;

use crate::model::gateway::xmlrpc::{Value, is_allowed};
use crate::model::signature::base64;

const HEAD: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<methodResponse>";
const TAIL: &str = "</methodResponse>\n";

/// Returns the response of a method that has succeeded.
#[must_use]
pub fn response(value: &Value) -> String {
    let mut out = String::from(HEAD);
    out.push_str("<params><param>");
    put(&mut out, value);
    out.push_str("</param></params>");
    out.push_str(TAIL);
    out
}

/// Returns the response of a method that has failed.
#[must_use]
pub fn fault(code: i32, text: &str) -> String {
    let members = vec![
        ("faultCode".to_owned(), Value::Int(code.into())),
        ("faultString".to_owned(), Value::Text(text.to_owned())),
    ];
    let mut out = String::from(HEAD);
    out.push_str("<fault>");
    put(&mut out, &Value::Struct(members));
    out.push_str("</fault>");
    out.push_str(TAIL);
    out
}

/// Adds a value with its element.
pub(super) fn put(out: &mut String, value: &Value) {
    out.push_str("<value>");
    match value {
        Value::Nil => out.push_str("<nil/>"),
        Value::Bool(value) => element(out, "boolean", if *value { "1" } else { "0" }),
        Value::Int(number) => {
            // Old parsers know `int` only.
            let name = i32::try_from(*number).map_or("i8", |_| "int");
            element(out, name, &number.to_string());
        }
        // Without an exponent, as the specification wants it.
        Value::Double(number) if number.is_finite() => {
            element(out, "double", &number.to_string());
        }
        Value::Double(number) => element(out, "string", &number.to_string()),
        Value::Text(text) => element(out, "string", text),
        Value::Time(text) => element(out, "dateTime.iso8601", text),
        Value::Bytes(bytes) => element(out, "base64", &base64::encode_padded(bytes)),
        Value::Struct(members) => {
            out.push_str("<struct>");
            for (name, value) in members {
                out.push_str("<member>");
                element(out, "name", name);
                put(out, value);
                out.push_str("</member>");
            }
            out.push_str("</struct>");
        }
        Value::Array(values) => {
            out.push_str("<array><data>");
            for value in values {
                put(out, value);
            }
            out.push_str("</data></array>");
        }
    }
    out.push_str("</value>");
}

fn element(out: &mut String, name: &str, text: &str) {
    let _ = write!(out, "<{name}>");
    escape(out, text);
    let _ = write!(out, "</{name}>");
}

/// Adds text. Characters that XML does not allow become U+FFFD.
fn escape(out: &mut String, text: &str) {
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\t' | '\n' | ' '..='~' => out.push(c),
            // A parser would turn a carriage return into a line feed.
            c if is_allowed(c) => {
                let _ = write!(out, "&#{};", u32::from(c));
            }
            _ => out.push_str("&#65533;"),
        }
    }
}
