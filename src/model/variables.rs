//! Values of environment variables: bytes without a NUL, mostly UTF-8.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use serde::de::{self, MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Key of the JSON object that carries a value that is not UTF-8.
const BYTES: &str = "bytes";

/// Names and values for the environment of a command.
pub type Variables = Vec<(String, Value)>;

/// The value of one variable, as a command gets it.
///
/// In JSON it is a string. JSON cannot hold a value that is not UTF-8. It is the object
/// `{"bytes":"<hexadecimal digits>"}` instead.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Value(OsString);

impl Value {
    /// Returns the value for the system.
    #[must_use]
    pub fn as_os_str(&self) -> &OsStr {
        &self.0
    }

    /// Returns its bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    /// Returns the number of its bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns whether it has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns it as text; bytes that are not UTF-8 become U+FFFD.
    #[must_use]
    pub fn to_text(&self) -> String {
        self.0.to_string_lossy().into_owned()
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self(text.into())
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl From<Vec<u8>> for Value {
    fn from(bytes: Vec<u8>) -> Self {
        Self(OsString::from_vec(bytes))
    }
}

impl PartialEq<str> for Value {
    fn eq(&self, other: &str) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl PartialEq<&str> for Value {
    fn eq(&self, other: &&str) -> bool {
        self == *other
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if let Some(text) = self.0.to_str() {
            return serializer.serialize_str(text);
        }
        let digits: String = self.as_bytes().iter().map(|b| format!("{b:02x}")).collect();
        let mut map = serializer.serialize_map(Some(1))?;
        map.serialize_entry(BYTES, &digits)?;
        map.end()
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;

        impl<'de> Visitor<'de> for Either {
            type Value = Value;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a string, or {{\"{BYTES}\":\"<hexadecimal digits>\"}}")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Value, E> {
                Ok(text.into())
            }

            fn visit_string<E: de::Error>(self, text: String) -> Result<Value, E> {
                Ok(text.into())
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
                let wrong = || de::Error::invalid_type(de::Unexpected::Map, &self);
                let (key, digits): (String, String) = map.next_entry()?.ok_or_else(wrong)?;
                let bytes = from_hex(&digits).filter(|_| key == BYTES);
                let bytes = bytes.ok_or_else(wrong)?;
                match map.next_key::<String>()? {
                    None => Ok(bytes.into()),
                    Some(_) => Err(wrong()),
                }
            }
        }

        deserializer.deserialize_any(Either)
    }
}

pub fn from_hex(digits: &str) -> Option<Vec<u8>> {
    let digit = |b: u8| char::from(b).to_digit(16);
    let pairs = digits.as_bytes().chunks(2).map(|pair| match *pair {
        [high, low] => u8::try_from(digit(high)? * 16 + digit(low)?).ok(),
        _ => None,
    });
    pairs.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn json_holds_text_as_text_and_other_bytes_as_digits() {
        let json = |value: Value| serde_json::to_string(&value).expect("json");
        assert_eq!(json("ü \"x\"\n".into()), r#""ü \"x\"\n""#);
        assert_eq!(json(b"a\xfcb".to_vec().into()), r#"{"bytes":"61fc62"}"#);
        // Values of an earlier version can be read.
        let old: Variables = serde_json::from_str(r#"[["A","1"],["B",""]]"#).expect("read");
        assert!(old[0].1 == "1" && old[1].1.is_empty());
    }

    #[test]
    fn what_is_no_value_is_refused() {
        for json in [
            "1",
            "null",
            "{}",
            r#"{"bytes":"6"}"#,
            r#"{"bytes":"6g"}"#,
            r#"{"bytes":1}"#,
            r#"{"text":"61"}"#,
            r#"{"bytes":"61","more":"62"}"#,
        ] {
            assert!(serde_json::from_str::<Value>(json).is_err(), "{json}");
        }
    }

    proptest! {
        #[test]
        fn every_value_comes_back(bytes in any::<Vec<u8>>(), text in any::<String>()) {
            let variables = vec![
                ("A".to_owned(), Value::from(bytes)),
                ("B".to_owned(), Value::from(text)),
            ];
            let json = serde_json::to_string(&variables).expect("json");
            prop_assert_eq!(serde_json::from_str::<Variables>(&json).expect("read"), variables);
        }
    }
}
