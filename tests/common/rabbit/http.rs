//! A client of RabbitMQ's management API: one HTTP/1.0 request a connection, JSON in and out.

use std::io::{self, Read, Write};
use std::net::TcpStream;

use serde_json::Value;

use super::super::PATIENCE;

/// Where the API listens, and as whom it is asked.
pub struct Api {
    pub port: u16,
    pub user: String,
    pub password: String,
}

impl Api {
    /// Sends a request for `path` below `/api/`. Returns the status code and the body, `Null` if it
    /// is empty or no JSON.
    pub fn ask(&self, method: &str, path: &str, body: &Value) -> io::Result<(u16, Value)> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        let body = match body {
            Value::Null => String::new(),
            body => body.to_string(),
        };
        let credentials = base64(format!("{}:{}", self.user, self.password).as_bytes());
        let request = format!(
            "{method} /api/{path} HTTP/1.0\r\nAuthorization: Basic {credentials}\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes())?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let text = String::from_utf8_lossy(&answer);
        let malformed = || io::Error::new(io::ErrorKind::InvalidData, "no HTTP answer");
        let (head, body) = text.split_once("\r\n\r\n").ok_or_else(malformed)?;
        let code = head.split(' ').nth(1).and_then(|code| code.parse().ok());
        let body = serde_json::from_str(body).unwrap_or(Value::Null);
        Ok((code.ok_or_else(malformed)?, body))
    }
}

/// Returns `text` as one part of a path: other bytes than letters, digits and `-_.~` are escaped
/// (RFC 3986).
pub fn escaped(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                char::from(byte).to_string()
            }
            _ => format!("%{byte:02x}"),
        })
        .collect()
}

/// Digits of base64 (RFC 4648).
const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Returns `bytes` in base64, with padding.
pub fn base64(bytes: &[u8]) -> String {
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let mut bits = 0;
        for at in 0..3 {
            bits = bits << 8 | u32::from(group.get(at).copied().unwrap_or(0));
        }
        for digit in 0..4 {
            let index = bits >> (18 - 6 * digit) & 63;
            text.push(if digit > group.len() {
                '='
            } else {
                char::from(DIGITS[index as usize])
            });
        }
    }
    text
}

/// Returns the bytes of `text` in base64.
pub fn from_base64(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let (mut bits, mut held) = (0_u32, 0);
    for digit in text.trim_end_matches('=').bytes() {
        let value = DIGITS.iter().position(|d| *d == digit).expect("base64");
        bits = bits << 6 | u32::try_from(value).expect("digit");
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push((bits >> held) as u8);
        }
    }
    bytes
}
