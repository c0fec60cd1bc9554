//! XML-RPC: calls are read, responses and faults are written.
//!
//! Source: the specification of 1999 (xmlrpc.com/spec), what Apache XML-RPC 2 and 3 and Python's
//! `xmlrpc.client` send in addition (bare strings, `nil`, `i8`, exponents), and the fault codes of
//! "Specification for Fault Code Interoperability". There is no document type and no entity but the
//! five of XML, so that a small text cannot become a large one.

mod read;
mod write;

use std::fmt;

use serde_json::{Map, Number, Value as Json};

use crate::model::event::Attributes;
use crate::model::json;
use crate::model::signature::base64;
use crate::model::text::printable;

pub use read::call;
pub use write::{fault, response};

/// Maximum size of a call, bytes.
pub const MAX_BYTES: usize = 1024 * 1024;

/// Maximum depth of structs and arrays in each other.
pub const MAX_DEPTH: usize = 32;

/// Maximum number of elements of a call.
pub const MAX_ELEMENTS: usize = 10_000;

/// Maximum length of the name of a method, bytes.
pub const MAX_METHOD: usize = 256;

/// Maximum number of characters of a text that are shown in a message.
const MAX_SHOWN: usize = 60;

/// A value of XML-RPC.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// `nil`, an extension.
    Nil,
    /// `boolean`.
    Bool(bool),
    /// `i4` or `int`, and the extensions `i1`, `i2` and `i8`.
    Int(i64),
    /// `double`; it is finite.
    Double(f64),
    /// `string`, or a value without a type.
    Text(String),
    /// `dateTime.iso8601`, as it was written.
    Time(String),
    /// `base64`.
    Bytes(Vec<u8>),
    /// `struct`; a name can come more than once.
    Struct(Vec<(String, Value)>),
    /// `array`.
    Array(Vec<Value>),
}

/// A call of a method.
#[derive(Debug, Clone, PartialEq)]
pub struct Call {
    /// Name of the method.
    pub method: String,
    /// Its parameters.
    pub params: Vec<Value>,
}

/// Why a text is no call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Flaw {
    /// It has so many bytes.
    TooLarge(usize),
    /// It is declared in an encoding that is not supported.
    Encoding(String),
    /// It is not in the encoding that it declares.
    NotText,
    /// It has a character that XML does not allow.
    Character(u32),
    /// It is not well-formed.
    Xml(String),
    /// It has a document type.
    DocumentType,
    /// It has an entity of its own.
    Entity(String),
    /// Its values are nested too deep.
    TooDeep,
    /// It has too many elements.
    TooMany,
    /// It is XML, but no call.
    Grammar(String),
    /// A value is not what its type says.
    Wrong {
        /// The type.
        kind: &'static str,
        /// The value, printable.
        text: String,
    },
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLarge(bytes) => {
                write!(f, "the call has {bytes} bytes, the limit is {MAX_BYTES}")
            }
            Self::Encoding(name) => write!(
                f,
                "the encoding '{name}' is not supported: use UTF-8 or ISO-8859-1"
            ),
            Self::NotText => f.write_str("the call is not in the encoding that it declares"),
            Self::Character(code) => write!(f, "XML does not allow the character U+{code:04X}"),
            Self::Xml(cause) => write!(f, "the call is not well-formed XML: {cause}"),
            Self::DocumentType => f.write_str("a document type is not allowed"),
            Self::Entity(name) => write!(f, "the entity '{name}' is not allowed"),
            Self::TooDeep => write!(f, "values are nested too deep, the limit is {MAX_DEPTH}"),
            Self::TooMany => write!(f, "it has too many elements, the limit is {MAX_ELEMENTS}"),
            Self::Grammar(cause) => f.write_str(cause),
            Self::Wrong { kind, text } => write!(f, "'{text}' is no {kind}"),
        }
    }
}

impl Flaw {
    /// Returns its fault code.
    #[must_use]
    pub const fn code(&self) -> i32 {
        match self {
            Self::Encoding(_) => -32701,
            Self::Character(_) | Self::NotText => -32702,
            Self::Xml(_) | Self::DocumentType | Self::Entity(_) => -32700,
            Self::TooLarge(_)
            | Self::TooDeep
            | Self::TooMany
            | Self::Grammar(_)
            | Self::Wrong { .. } => -32600,
        }
    }

    fn wrong(kind: &'static str, text: &str) -> Self {
        let text = printable(text, MAX_SHOWN);
        Self::Wrong { kind, text }
    }
}

/// Returns whether XML allows a character (XML 1.0, section 2.2).
const fn is_allowed(c: char) -> bool {
    matches!(c, '\t' | '\n' | '\r' | ' '..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..)
}

impl Value {
    /// Returns the value as JSON: bytes become Base64, times stay as they were written. Of two
    /// members with one name the last one counts.
    #[must_use]
    pub fn to_json(&self) -> Json {
        match self {
            Self::Nil => Json::Null,
            Self::Bool(value) => Json::Bool(*value),
            Self::Int(number) => Json::Number((*number).into()),
            Self::Double(number) => Number::from_f64(*number).map_or(Json::Null, Json::Number),
            Self::Text(text) | Self::Time(text) => Json::String(json::string_of(text.as_bytes())),
            Self::Bytes(bytes) => Json::String(base64::encode_padded(bytes)),
            Self::Struct(members) => Json::Object(object(members)),
            Self::Array(values) => Json::Array(values.iter().map(Self::to_json).collect()),
        }
    }

    /// Returns a struct as the attributes of an event.
    #[must_use]
    pub fn to_attributes(&self) -> Option<Attributes> {
        match self {
            Self::Struct(members) => Some(object(members)),
            _ => None,
        }
    }

    /// Returns the name of its type.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Nil => "nil",
            Self::Bool(_) => "boolean",
            Self::Int(_) => "int",
            Self::Double(_) => "double",
            Self::Text(_) => "string",
            Self::Time(_) => "dateTime.iso8601",
            Self::Bytes(_) => "base64",
            Self::Struct(_) => "struct",
            Self::Array(_) => "array",
        }
    }
}

fn object(members: &[(String, Value)]) -> Map<String, Json> {
    let members = members.iter();
    members
        .map(|(name, value)| (json::string_of(name.as_bytes()), value.to_json()))
        .collect()
}

#[cfg(test)]
mod tests;
