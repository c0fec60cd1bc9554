//! Reads calls.

use std::borrow::Cow;

use quick_xml::events::Event;
use quick_xml::reader::Reader;

use crate::model::gateway::xmlrpc::{
    Call, Flaw, MAX_BYTES, MAX_DEPTH, MAX_ELEMENTS, MAX_METHOD, MAX_SHOWN, Value, is_allowed,
};
use crate::model::signature::base64;
use crate::model::text::printable;

/// Maximum length of an XML declaration, bytes.
const MAX_DECLARATION: usize = 256;

type Read<T> = Result<T, Flaw>;

/// Reads a call.
///
/// # Errors
/// Why it is none.
pub fn call(body: &[u8]) -> Read<Call> {
    if body.len() > MAX_BYTES {
        return Err(Flaw::TooLarge(body.len()));
    }
    let text = decode(body)?;
    if let Some(c) = text.chars().find(|c| !is_allowed(*c)) {
        return Err(Flaw::Character(c.into()));
    }
    let mut tokens = Tokens::new(&text);
    tokens.open("methodCall")?;
    tokens.open("methodName")?;
    let method = tokens.text_to_end()?;
    let method = check_method(method.trim())?;
    let mut params = Vec::new();
    if tokens.open_or_end("params")? {
        while tokens.open_or_end("param")? {
            params.push(tokens.value_element()?);
            tokens.end()?;
        }
        tokens.end()?;
    }
    match tokens.next()? {
        Token::Eof => Ok(Call { method, params }),
        other => Err(other.unexpected("the end")),
    }
}

/// Checks the name of a method.
fn check_method(name: &str) -> Read<String> {
    let may = |b: u8| b.is_ascii_alphanumeric() || b"_.:/".contains(&b);
    match (1..=MAX_METHOD).contains(&name.len()) && name.bytes().all(may) {
        true => Ok(name.to_owned()),
        false => Err(Flaw::wrong("name of a method", name)),
    }
}

/// Returns the text of `body`, in the encoding that its mark or its declaration names.
fn decode(body: &[u8]) -> Read<Cow<'_, str>> {
    let utf8 = |body| match std::str::from_utf8(body) {
        Ok(text) => Ok(Cow::Borrowed(text)),
        Err(_) => Err(Flaw::NotText),
    };
    if let Some(rest) = body.strip_prefix(b"\xef\xbb\xbf") {
        return utf8(rest);
    }
    if body.starts_with(b"\xfe\xff") || body.starts_with(b"\xff\xfe") || body.contains(&0) {
        return Err(Flaw::Encoding("UTF-16".to_owned()));
    }
    let body = body.trim_ascii_start();
    let Some(name) = declared(body) else {
        return utf8(body);
    };
    match name.to_ascii_lowercase().as_str() {
        "utf-8" | "utf8" | "us-ascii" | "ascii" => utf8(body),
        // Its bytes are the first characters of Unicode.
        "iso-8859-1" | "latin-1" | "latin1" | "iso_8859-1" => {
            Ok(body.iter().copied().map(char::from).collect())
        }
        _ => Err(Flaw::Encoding(printable(&name, MAX_SHOWN))),
    }
}

/// Returns the encoding that an XML declaration names.
fn declared(body: &[u8]) -> Option<String> {
    let head = body.get(..MAX_DECLARATION).unwrap_or(body);
    let head = String::from_utf8_lossy(head.strip_prefix(b"<?xml")?).into_owned();
    let (head, _) = head.split_once("?>")?;
    let (_, value) = head.split_once("encoding")?;
    let value = value.trim_start().strip_prefix('=')?.trim_start();
    let quote = value.chars().next().filter(|c| "'\"".contains(*c))?;
    let (name, _) = value.get(1..)?.split_once(quote)?;
    Some(name.to_owned())
}

/// A part of the document. Comments and instructions are left out, and adjacent texts are one.
#[derive(Debug, PartialEq, Eq)]
enum Token {
    Open(String),
    /// The end of the element that was opened last.
    End,
    Text(String),
    Eof,
}

impl Token {
    fn unexpected(&self, wanted: &str) -> Flaw {
        let found = match self {
            Self::Open(name) => format!("the element '{}'", printable(name, MAX_SHOWN)),
            Self::End => "the end of an element".to_owned(),
            Self::Text(text) => format!("the text '{}'", printable(text.trim(), MAX_SHOWN)),
            Self::Eof => "the end".to_owned(),
        };
        Flaw::Grammar(format!("{found} comes where {wanted} is expected"))
    }
}

struct Tokens<'a> {
    reader: Reader<&'a [u8]>,
    /// What was read too far.
    next: Option<Token>,
    elements: usize,
    /// Number of open elements.
    open: usize,
}

impl<'a> Tokens<'a> {
    fn new(text: &'a str) -> Self {
        let mut reader = Reader::from_str(text);
        let config = reader.config_mut();
        config.expand_empty_elements = true;
        config.check_end_names = true;
        Self {
            reader,
            next: None,
            elements: 0,
            open: 0,
        }
    }

    /// Returns the next part with text.
    fn part(&mut self) -> Read<Token> {
        if let Some(token) = self.next.take() {
            return Ok(token);
        }
        let mut text = String::new();
        let token = loop {
            match self.event(&mut text)? {
                None => {}
                Some(token) => break token,
            }
        };
        if text.is_empty() {
            return Ok(token);
        }
        self.next = Some(token);
        Ok(Token::Text(text))
    }

    /// Reads an event. Text is added to `text`.
    fn event(&mut self, text: &mut String) -> Read<Option<Token>> {
        let event = self.reader.read_event();
        match event.map_err(|e| Flaw::Xml(printable(&e.to_string(), 2 * MAX_SHOWN)))? {
            Event::Start(start) => {
                self.elements += 1;
                if self.elements > MAX_ELEMENTS {
                    return Err(Flaw::TooMany);
                }
                self.open += 1;
                // Apache gives its extensions a prefix (`ex:nil`).
                let name = start.local_name().into_inner().to_owned();
                return Ok(Some(Token::Open(name)));
            }
            Event::End(_) => {
                self.open = self.open.saturating_sub(1);
                return Ok(Some(Token::End));
            }
            Event::Eof if self.open > 0 => {
                return Err(Flaw::Xml("it ends too early".to_owned()));
            }
            Event::Eof => return Ok(Some(Token::Eof)),
            Event::Text(part) => text.push_str(&part.xml10_content()),
            Event::CData(part) => text.push_str(&part.xml10_content()),
            Event::GeneralRef(name) => text.push(referred(&name)?),
            Event::DocType(_) => return Err(Flaw::DocumentType),
            // Elements that are empty come as a start and an end.
            Event::Empty(_) | Event::Comment(_) | Event::Decl(_) | Event::PI(_) => {}
        }
        Ok(None)
    }

    /// Returns the next part, without white space between elements.
    fn next(&mut self) -> Read<Token> {
        match self.part()? {
            Token::Text(text) if text.trim().is_empty() => self.part(),
            token => Ok(token),
        }
    }

    /// Reads the start of the element `name`.
    fn open(&mut self, name: &str) -> Read<()> {
        match self.next()? {
            Token::Open(found) if found == name => Ok(()),
            other => Err(other.unexpected(&format!("'{name}'"))),
        }
    }

    /// Reads the start of the element `name`, or the end of the element around it.
    fn open_or_end(&mut self, name: &str) -> Read<bool> {
        match self.next()? {
            Token::Open(found) if found == name => Ok(true),
            Token::End => Ok(false),
            other => Err(other.unexpected(&format!("'{name}' or an end"))),
        }
    }

    fn end(&mut self) -> Read<()> {
        match self.next()? {
            Token::End => Ok(()),
            other => Err(other.unexpected("the end of an element")),
        }
    }

    /// Reads text and the end of its element.
    fn text_to_end(&mut self) -> Read<String> {
        match self.part()? {
            Token::End => Ok(String::new()),
            Token::Text(text) => match self.part()? {
                Token::End => Ok(text),
                other => Err(other.unexpected("the end of an element")),
            },
            other => Err(other.unexpected("text")),
        }
    }

    /// Reads the element `value`.
    fn value_element(&mut self) -> Read<Value> {
        self.open("value")?;
        self.value(0)
    }

    /// Reads a value behind the start of its element, and the end of that.
    fn value(&mut self, depth: usize) -> Read<Value> {
        let name = match self.part()? {
            Token::End => return Ok(Value::Text(String::new())),
            Token::Text(text) => match self.part()? {
                Token::End => return Ok(Value::Text(text)),
                Token::Open(name) if text.trim().is_empty() => name,
                other => return Err(other.unexpected("the end of an element")),
            },
            Token::Open(name) => name,
            other @ Token::Eof => return Err(other.unexpected("a value")),
        };
        let value = match name.as_str() {
            "struct" | "array" if depth >= MAX_DEPTH => return Err(Flaw::TooDeep),
            "struct" => self.members(depth + 1)?,
            "array" => self.array(depth + 1)?,
            scalar => self.scalar(scalar)?,
        };
        self.end()?;
        Ok(value)
    }

    fn members(&mut self, depth: usize) -> Read<Value> {
        let mut members = Vec::new();
        while self.open_or_end("member")? {
            let (mut name, mut value) = (None, None);
            loop {
                match self.next()? {
                    Token::Open(part) if part == "name" && name.is_none() => {
                        name = Some(self.text_to_end()?);
                    }
                    Token::Open(part) if part == "value" && value.is_none() => {
                        value = Some(self.value(depth)?);
                    }
                    Token::End => break,
                    other => return Err(other.unexpected("a name or a value")),
                }
            }
            let (Some(name), Some(value)) = (name, value) else {
                let cause = "a member of a struct has a name and a value";
                return Err(Flaw::Grammar(cause.to_owned()));
            };
            members.push((name, value));
        }
        Ok(Value::Struct(members))
    }

    fn array(&mut self, depth: usize) -> Read<Value> {
        let mut values = Vec::new();
        self.open("data")?;
        while self.open_or_end("value")? {
            values.push(self.value(depth)?);
        }
        self.end()?;
        Ok(Value::Array(values))
    }

    /// Reads a value without parts behind the start of its element, and the end of that.
    fn scalar(&mut self, kind: &str) -> Read<Value> {
        let known = [
            "string",
            "int",
            "i4",
            "i8",
            "i1",
            "i2",
            "boolean",
            "double",
            "float",
            "base64",
            "nil",
            "dateTime.iso8601",
            "dateTime",
        ];
        if !known.contains(&kind) {
            let kind = printable(kind, MAX_SHOWN);
            return Err(Flaw::Grammar(format!("the type '{kind}' is not known")));
        }
        let text = self.text_to_end()?;
        let plain = text.trim();
        let found = match kind {
            "string" => return Ok(Value::Text(text)),
            "int" | "i4" => ("int", int(plain, 32)),
            "i8" => ("i8", int(plain, 64)),
            "i1" => ("i1", int(plain, 8)),
            "i2" => ("i2", int(plain, 16)),
            "boolean" => ("boolean (0 or 1)", boolean(plain)),
            "double" | "float" => ("finite number", double(plain)),
            "base64" => ("base64", bytes(plain)),
            "nil" => ("nil", plain.is_empty().then_some(Value::Nil)),
            _ => (
                "dateTime.iso8601",
                is_time(plain).then(|| Value::Time(plain.to_owned())),
            ),
        };
        let (kind, value) = found;
        value.ok_or_else(|| Flaw::wrong(kind, plain))
    }
}

/// Returns the character of a reference.
fn referred(name: &str) -> Read<char> {
    let c = match name {
        "amp" => '&',
        "lt" => '<',
        "gt" => '>',
        "quot" => '"',
        "apos" => '\'',
        _ => {
            let wrong = || Flaw::Entity(printable(name, MAX_SHOWN));
            let digits = name.strip_prefix('#').ok_or_else(wrong)?;
            let (digits, base) = match digits.strip_prefix('x') {
                Some(digits) => (digits, 16),
                None => (digits, 10),
            };
            let is_plain = digits.bytes().all(|b| char::from(b).is_digit(base));
            let code = u32::from_str_radix(digits, base).ok();
            let code = code.filter(|_| is_plain).ok_or_else(wrong)?;
            let c = char::from_u32(code).filter(|c| is_allowed(*c));
            c.ok_or(Flaw::Character(code))?
        }
    };
    Ok(c)
}

/// Reads a whole number of `bits` bits.
fn int(text: &str, bits: u32) -> Option<Value> {
    let number: i64 = text.parse().ok()?;
    let unused = 64 - bits;
    (number << unused >> unused == number).then_some(Value::Int(number))
}

fn boolean(text: &str) -> Option<Value> {
    match text {
        "0" => Some(Value::Bool(false)),
        "1" => Some(Value::Bool(true)),
        _ => None,
    }
}

/// Reads a number that is finite. Python writes exponents.
fn double(text: &str) -> Option<Value> {
    let is_plain = text
        .bytes()
        .all(|b| b.is_ascii_digit() || b"+-.eE".contains(&b));
    let number: f64 = text.parse().ok().filter(|_| is_plain)?;
    number.is_finite().then_some(Value::Double(number))
}

/// Reads Base64, which may be broken into lines.
fn bytes(text: &str) -> Option<Value> {
    let text: String = text.split_ascii_whitespace().collect();
    base64::decode_padded(&text).map(Value::Bytes)
}

/// Returns whether `text` is a time of ISO 8601 as senders write it: `19980717T14:08:55`, with
/// hyphens in the date, a fraction of a second and a zone where they give one.
fn is_time(text: &str) -> bool {
    fn number(text: &mut &str, width: usize, most: u32) -> Option<()> {
        let (digits, rest) = text.split_at_checked(width)?;
        let is_number = digits.bytes().all(|b| b.is_ascii_digit());
        let number: u32 = digits.parse().ok().filter(|_| is_number)?;
        *text = rest;
        (number <= most).then_some(())
    }
    fn sign(text: &mut &str, sign: &str) -> Option<()> {
        *text = text.strip_prefix(sign)?;
        Some(())
    }
    fn parts(mut text: &str) -> Option<()> {
        let text = &mut text;
        number(text, 4, 9999)?;
        let hyphen = if text.starts_with('-') { "-" } else { "" };
        sign(text, hyphen)?;
        number(text, 2, 12)?;
        sign(text, hyphen)?;
        number(text, 2, 31)?;
        sign(text, "T")?;
        number(text, 2, 24)?;
        sign(text, ":")?;
        number(text, 2, 59)?;
        sign(text, ":")?;
        number(text, 2, 60)?;
        if let Some(rest) = text.strip_prefix('.') {
            *text = rest.trim_start_matches(|c: char| c.is_ascii_digit());
        }
        match text.chars().next() {
            None => return Some(()),
            Some('Z') => sign(text, "Z")?,
            Some('+' | '-') => {
                *text = text.get(1..)?;
                number(text, 2, 24)?;
                if let Some(rest) = text.strip_prefix(':') {
                    *text = rest;
                }
                if !text.is_empty() {
                    number(text, 2, 59)?;
                }
            }
            Some(_) => return None,
        }
        text.is_empty().then_some(())
    }
    text.len() <= 40 && parts(text).is_some()
}
