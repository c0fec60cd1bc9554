//! MQTT 5 packets, byte by byte, for what no well-behaved client would send.

use std::io::{Read, Write};
use std::net::TcpStream;

use super::PATIENCE;

/// A connection that sends what it is told.
pub struct Raw {
    stream: TcpStream,
}

fn string(bytes: &[u8]) -> Vec<u8> {
    let mut out = u16::try_from(bytes.len())
        .expect("length")
        .to_be_bytes()
        .to_vec();
    out.extend(bytes);
    out
}

fn varint(mut n: usize) -> Vec<u8> {
    let mut out = Vec::new();
    loop {
        let byte = u8::try_from(n % 128).expect("byte");
        n /= 128;
        out.push(if n > 0 { byte | 0x80 } else { byte });
        if n == 0 {
            return out;
        }
    }
}

/// A packet of `kind` (first byte) with `body`.
pub fn packet(kind: u8, body: &[u8]) -> Vec<u8> {
    [&[kind], &varint(body.len())[..], body].concat()
}

/// A PUBLISH: QoS 0 without packet id, else QoS 1.
pub fn publish(
    topic: &[u8],
    payload: &[u8],
    id: Option<u16>,
    properties: &[(&str, &str)],
    dup: bool,
) -> Vec<u8> {
    let mut props = Vec::new();
    for (name, value) in properties {
        props.push(0x26);
        props.extend(string(name.as_bytes()));
        props.extend(string(value.as_bytes()));
    }
    let mut body = string(topic);
    body.extend(id.map(u16::to_be_bytes).into_iter().flatten());
    body.extend(varint(props.len()));
    body.extend(props);
    body.extend(payload);
    let flags = if id.is_some() { 0x02 } else { 0 } | if dup { 0x08 } else { 0 };
    packet(0x30 | flags, &body)
}

impl Raw {
    /// Connects to a broker with a clean start.
    pub fn connect(port: u16) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).expect("connect");
        let mut raw = Self::over(stream);
        let id = ulid::Ulid::generate().to_string();
        let mut body = string(b"MQTT");
        body.extend([5, 0x02, 0, 60, 0]);
        body.extend(string(id.as_bytes()));
        raw.send(&packet(0x10, &body));
        let (kind, body) = raw.receive();
        assert_eq!((kind, body[1]), (0x20, 0), "CONNACK");
        raw
    }

    /// Speaks over an open stream.
    pub fn over(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).expect("timeout");
        Self { stream }
    }

    pub fn send(&mut self, packet: &[u8]) {
        self.stream.write_all(packet).expect("send");
    }

    /// The next packet: first byte and body.
    pub fn receive(&mut self) -> (u8, Vec<u8>) {
        let mut byte = [0];
        self.stream.read_exact(&mut byte).expect("receive");
        let kind = byte[0];
        let (mut length, mut shift) = (0usize, 0);
        loop {
            self.stream.read_exact(&mut byte).expect("receive");
            length |= usize::from(byte[0] & 0x7f) << shift;
            shift += 7;
            if byte[0] & 0x80 == 0 {
                break;
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).expect("receive");
        (kind, body)
    }

    /// Publishes at QoS 1 and waits for the PUBACK.
    pub fn publish(&mut self, topic: &str, payload: &[u8], properties: &[(&str, &str)]) {
        self.send(&publish(
            topic.as_bytes(),
            payload,
            Some(1),
            properties,
            false,
        ));
        let (kind, _) = self.receive();
        assert_eq!(kind, 0x40, "PUBACK");
    }
}
