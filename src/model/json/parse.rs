//! Parses text into a value.

use serde_json::{Map, Number, Value};

use crate::model::json::{decode::decode, hold, push};

/// Maximum depth of nested arrays and objects, that of `serde_json`.
const MAX_DEPTH: u32 = 127;

/// Parses a JSON text. Of several members with one key the last one counts.
///
/// # Errors
/// A text for the user, with the cause and its place.
pub fn parse(bytes: &[u8]) -> Result<Value, String> {
    let text = decode(bytes)?;
    let mut parser = Parser { text: &text, at: 0 };
    let value = parser.document();
    value.map_err(|cause| {
        let before = text.get(..parser.at).unwrap_or(&text);
        let line = before.matches('\n').count() + 1;
        let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
        format!("{cause} at line {line}, column {column}")
    })
}

struct Parser<'a> {
    text: &'a str,
    /// Next byte to read.
    at: usize,
}

type Parsed<T> = Result<T, &'static str>;

const ENDS: &str = "it ends too early";

impl<'a> Parser<'a> {
    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    /// Consumes `word` if it comes next.
    fn takes(&mut self, word: &str) -> bool {
        let found = self.rest().starts_with(word);
        if found {
            self.at += word.len();
        }
        found
    }

    /// Skips the bytes for which `skipped` holds.
    fn skip(&mut self, skipped: impl Fn(u8) -> bool) -> usize {
        let rest = self.text.as_bytes().get(self.at..).unwrap_or_default();
        let count = rest.iter().take_while(|b| skipped(**b)).count();
        self.at += count;
        count
    }

    fn skip_space(&mut self) {
        self.skip(|b| matches!(b, b' ' | b'\t' | b'\n' | b'\r'));
    }

    fn document(&mut self) -> Parsed<Value> {
        let value = self.value(MAX_DEPTH)?;
        self.skip_space();
        match self.peek() {
            None => Ok(value),
            Some(_) => Err("there is more after its end"),
        }
    }

    /// Parses a value of at most `depth` more levels.
    fn value(&mut self, depth: u32) -> Parsed<Value> {
        const WORDS: [(&str, Value); 3] = [
            ("null", Value::Null),
            ("true", Value::Bool(true)),
            ("false", Value::Bool(false)),
        ];
        // Names of Python, PowerShell and JavaScript.
        const NUMBERS: [&str; 3] = ["NaN", "Infinity", "-Infinity"];
        self.skip_space();
        let first = self.peek().ok_or(ENDS)?;
        if matches!(first, b'N' | b'I' | b'-')
            && let Some(number) = NUMBERS.into_iter().find(|word| self.takes(word))
        {
            return Ok(Value::String(number.to_owned()));
        }
        match first {
            b'"' => self.string().map(Value::String),
            b'-' | b'0'..=b'9' => self.number(),
            b'[' | b'{' => {
                let depth = depth.checked_sub(1).ok_or("it is nested too deep")?;
                self.at += 1;
                match first {
                    b'[' => self.array(depth),
                    _ => self.object(depth),
                }
            }
            _ => {
                let found = WORDS.into_iter().find(|(word, _)| self.takes(word));
                found.map(|(_, value)| value).ok_or("a value is expected")
            }
        }
    }

    /// Returns whether a list has another item, after its `first` one or a later one.
    fn goes_on(&mut self, first: bool, end: u8) -> Parsed<bool> {
        self.skip_space();
        match self.peek().ok_or(ENDS)? {
            byte if byte == end => {
                self.at += 1;
                Ok(false)
            }
            b',' if !first => {
                self.at += 1;
                Ok(true)
            }
            _ if first => Ok(true),
            _ => Err("a comma is expected"),
        }
    }

    fn array(&mut self, depth: u32) -> Parsed<Value> {
        let mut list = Vec::new();
        while self.goes_on(list.is_empty(), b']')? {
            list.push(self.value(depth)?);
        }
        Ok(Value::Array(list))
    }

    fn object(&mut self, depth: u32) -> Parsed<Value> {
        let mut map = Map::new();
        while self.goes_on(map.is_empty(), b'}')? {
            self.skip_space();
            let key = match self.peek().ok_or(ENDS)? {
                b'"' => self.string()?,
                _ => return Err("a key is expected"),
            };
            self.skip_space();
            if !self.takes(":") {
                return Err(self.peek().map_or(ENDS, |_| "a colon is expected"));
            }
            map.insert(key, self.value(depth)?);
        }
        Ok(Value::Object(map))
    }

    /// Parses a number, and keeps its digits.
    fn number(&mut self) -> Parsed<Value> {
        const WRONG: &str = "a digit is expected";
        let start = self.at;
        self.takes("-");
        match self.peek() {
            Some(b'0') => self.at += 1,
            _ => self.digits()?,
        }
        if self.takes(".") {
            self.digits()?;
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.digits()?;
        }
        let number: Number = self.text[start..self.at].parse().map_err(|_| WRONG)?;
        Ok(Value::Number(number))
    }

    fn digits(&mut self) -> Parsed<()> {
        match self.skip(|b| b.is_ascii_digit()) {
            0 => Err(self.peek().map_or(ENDS, |_| "a digit is expected")),
            _ => Ok(()),
        }
    }

    /// Parses a string, from its first quote.
    fn string(&mut self) -> Parsed<String> {
        self.at += 1;
        let mut text = String::new();
        loop {
            let start = self.at;
            // In UTF-8, held bytes begin with the byte F4, and few other characters do.
            self.skip(|b| !matches!(b, b'"' | b'\\' | 0..b' ' | 0xf4));
            text.push_str(&self.text[start..self.at]);
            match self.peek().ok_or(ENDS)? {
                b'"' => {
                    self.at += 1;
                    return Ok(text);
                }
                b'\\' => {
                    self.at += 1;
                    self.escape(&mut text)?;
                }
                0xf4 => {
                    let c = self.rest().chars().next().ok_or(ENDS)?;
                    push(&mut text, c);
                    self.at += c.len_utf8();
                }
                _ => return Err("a control character needs an escape"),
            }
        }
    }

    /// Parses an escape, after its backslash.
    fn escape(&mut self, text: &mut String) -> Parsed<()> {
        let byte = self.peek().ok_or(ENDS)?;
        self.at += 1;
        text.push(match byte {
            b'"' => '"',
            b'\\' => '\\',
            b'/' => '/',
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => {
                let unit = self.unit()?;
                self.unicode(text, unit)?;
                return Ok(());
            }
            _ => {
                self.at -= 1;
                return Err("there is no such escape");
            }
        });
        Ok(())
    }

    /// Adds the character that begins with the UTF-16 code `unit`.
    fn unicode(&mut self, text: &mut String, unit: u16) -> Parsed<()> {
        match unit {
            0xd800..=0xdbff if self.rest().starts_with("\\u") => {
                let after_first = self.at;
                self.at += 2;
                let second = self.unit()?;
                match char::decode_utf16([unit, second]).next() {
                    Some(Ok(c)) => push(text, c),
                    _ => {
                        text.push(char::REPLACEMENT_CHARACTER);
                        self.at = after_first;
                    }
                }
            }
            0xdc80..=0xdcff => hold(text, unit.to_le_bytes()[0]),
            _ => push(
                text,
                char::from_u32(unit.into()).unwrap_or(char::REPLACEMENT_CHARACTER),
            ),
        }
        Ok(())
    }

    /// Parses four hexadecimal digits.
    fn unit(&mut self) -> Parsed<u16> {
        let hexadecimal = |text: &str| text.bytes().all(|b| b.is_ascii_hexdigit());
        let rest = self.rest();
        match rest.get(..4) {
            Some(digits) if hexadecimal(digits) => {
                self.at += 4;
                u16::from_str_radix(digits, 16).map_err(|_| ENDS)
            }
            _ if hexadecimal(rest) => Err(ENDS),
            _ => Err("a hexadecimal digit is expected"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn parsed(text: &str) -> Value {
        parse(text.as_bytes()).expect(text)
    }

    #[test]
    fn numbers_that_json_does_not_have_are_text() {
        let list = parsed("[NaN, Infinity,-Infinity , {\"a\":NaN}]");
        assert_eq!(list, json!(["NaN", "Infinity", "-Infinity", {"a": "NaN"}]));
        for bad in [
            "nan",
            "NAN",
            "-NaN",
            "+Infinity",
            "Infinit",
            "NaNN",
            "[inf]",
        ] {
            assert!(parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn numbers_keep_their_digits() {
        for text in [
            "1e400",
            "-0",
            "0.10",
            "1E+5",
            "123456789012345678901234567890",
        ] {
            assert_eq!(
                parsed(text).to_string(),
                serde(text).expect("number").to_string()
            );
        }
        assert_eq!(parsed("1e400").to_string(), "1e+400");
    }

    #[test]
    fn keys_that_the_library_keeps_for_itself_are_keys() {
        for key in [
            "$serde_json::private::Number",
            "$serde_json::private::RawValue",
        ] {
            let text = format!(r#"{{"{key}":"1","a":{{"{key}":"x"}}}}"#);
            assert_eq!(parsed(&text).to_string(), text);
        }
    }

    #[test]
    fn errors_say_where() {
        for (text, want) in [
            ("", "it ends too early at line 1, column 1"),
            ("{\"ä\":\n x}", "a value is expected at line 2, column 2"),
            ("{} {}", "there is more after its end at line 1, column 4"),
            ("[1,]", "a value is expected at line 1, column 4"),
            ("{\"a\":1,}", "a key is expected at line 1, column 8"),
            ("[1 2]", "a comma is expected at line 1, column 4"),
            ("01", "there is more after its end at line 1, column 2"),
            ("\"\\x\"", "there is no such escape at line 1, column 3"),
            (
                "\"\\u12\"",
                "a hexadecimal digit is expected at line 1, column 4",
            ),
        ] {
            assert_eq!(parse(text.as_bytes()).expect_err(text), want, "{text}");
        }
        let deep = format!("{}{}", "[".repeat(128), "]".repeat(128));
        let error = parse(deep.as_bytes()).expect_err("deep");
        assert_eq!(error, "it is nested too deep at line 1, column 128");
    }

    /// Returns what `serde_json` reads, for texts without its private keys.
    fn serde(text: &str) -> Option<Value> {
        serde_json::from_str(text).ok()
    }

    /// JSON, or almost.
    fn almost_json() -> impl Strategy<Value = String> {
        let token = prop_oneof![
            r#"[\[\]{},: \n]"#,
            r#""([a-zé😀]|\\u00[0-9a-f]{2}|\\ud83d\\ude0[0-9]|\\[nt"\\/bfrx]){0,3}""#,
            r"-?(0|[1-9][0-9]{0,2})(\.[0-9]{1,2})?([eE][+-]?[0-9]{1,3})?",
            "true|false|null|tru|01|-|1\\.",
        ];
        proptest::collection::vec(token, 0..12).prop_map(|tokens| tokens.concat())
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::vec((any::<String>(), inner), 0..4)
                    .prop_map(|list| Value::Object(list.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn json_means_what_it_meant(value in any_json(), pretty in any::<bool>()) {
            let text = if pretty { format!("{value:#}") } else { value.to_string() };
            prop_assert_eq!(crate::model::json::to_text(&parsed(&text)), value.to_string());
        }

        #[test]
        fn what_the_library_refuses_is_refused(text in almost_json()) {
            let ours = parse(text.as_bytes()).ok().map(|v| v.to_string());
            prop_assert_eq!(ours, serde(&text).map(|v| v.to_string()), "{}", text);
        }

        #[test]
        fn depth_is_bounded_as_it_was(depth in 100_usize..140, inner in "(1|\\{\\}|x)") {
            let text = format!("{}{inner}{}", "[".repeat(depth), "]".repeat(depth));
            prop_assert_eq!(parse(text.as_bytes()).is_ok(), serde(&text).is_some());
        }

        #[test]
        fn nothing_makes_it_panic(bytes in any::<Vec<u8>>(), text in r#"[\[{"\\udcf8NaN,:0-9é\u{10fffc}\n]{0,40}"#) {
            let _ = parse(&bytes);
            let _ = parse(text.as_bytes());
            for cut in 0..text.len() {
                let _ = parse(&text.as_bytes()[..cut]);
            }
        }
    }
}
