//! MQTT 5 packets, byte by byte: for messages that other clients would not send.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Instant;

use super::{PATIENCE, wait_until};

/// A connection that sends any bytes.
pub struct Raw {
    stream: TcpStream,
}

/// Returns a string in MQTT's form, its length first.
pub fn string(bytes: &[u8]) -> Vec<u8> {
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

/// Returns a packet of `kind` (first byte) with `body`.
pub fn packet(kind: u8, body: &[u8]) -> Vec<u8> {
    [&[kind], &varint(body.len())[..], body].concat()
}

/// Returns a PUBLISH, at QoS 1 if it has a packet identifier, and otherwise at QoS 0.
pub fn publish(
    topic: &[u8],
    payload: &[u8],
    id: Option<u16>,
    properties: &[(&str, &str)],
    dup: bool,
) -> Vec<u8> {
    publish_with(topic, payload, id, &user_properties(properties), dup)
}

/// Returns a PUBLISH with encoded properties of any kind.
pub fn publish_with(
    topic: &[u8],
    payload: &[u8],
    id: Option<u16>,
    properties: &[u8],
    dup: bool,
) -> Vec<u8> {
    let mut body = string(topic);
    body.extend(id.map(u16::to_be_bytes).into_iter().flatten());
    body.extend(varint(properties.len()));
    body.extend(properties);
    body.extend(payload);
    let flags = if id.is_some() { 0x02 } else { 0 } | if dup { 0x08 } else { 0 };
    packet(0x30 | flags, &body)
}

/// Returns encoded user properties.
pub fn user_properties(list: &[(&str, &str)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, value) in list {
        out.push(0x26);
        out.extend(string(name.as_bytes()));
        out.extend(string(value.as_bytes()));
    }
    out
}

/// Returns the properties of a request whose answer goes to `topic`.
pub fn request_properties(topic: &str, correlation: &[u8]) -> Vec<u8> {
    let mut out = vec![0x08];
    out.extend(string(topic.as_bytes()));
    out.push(0x09);
    out.extend(string(correlation));
    out
}

/// A PUBLISH as it was received.
#[derive(Debug, Clone)]
pub struct Heard {
    pub topic: String,
    pub payload: Vec<u8>,
    pub user: Vec<(String, String)>,
    pub correlation: Vec<u8>,
    /// Response Topic; empty if there is none.
    pub reply: String,
    /// Message Expiry Interval, seconds.
    pub expiry: Option<u32>,
    pub retained: bool,
}

impl Heard {
    pub fn text(&self) -> String {
        String::from_utf8(self.payload.clone()).expect("text")
    }

    /// Returns the user property `name`.
    pub fn property(&self, name: &str) -> Option<&str> {
        let (_, value) = self.user.iter().find(|(key, _)| key == name)?;
        Some(value)
    }

    /// Parses the body of a PUBLISH. Also returns its packet identifier, if it has one.
    pub fn parse(kind: u8, body: &[u8]) -> (Self, Option<[u8; 2]>) {
        let mut rest = body;
        let topic = String::from_utf8(take_string(&mut rest)).expect("topic");
        let id = (kind & 0x06 != 0).then(|| [take(&mut rest), take(&mut rest)]);
        let length = take_varint(&mut rest);
        let (mut properties, payload) = rest.split_at(length);
        let (mut user, mut correlation) = (Vec::new(), Vec::new());
        let (mut reply, mut expiry) = (String::new(), None);
        let text = |bytes| String::from_utf8(bytes).expect("property");
        while !properties.is_empty() {
            match take(&mut properties) {
                0x01 => drop(take(&mut properties)),
                0x02 => {
                    let (number, rest) = properties.split_at(4);
                    expiry = Some(u32::from_be_bytes(number.try_into().expect("number")));
                    properties = rest;
                }
                0x03 => drop(take_string(&mut properties)),
                0x08 => reply = text(take_string(&mut properties)),
                0x09 => correlation = take_string(&mut properties),
                0x0b => drop(take_varint(&mut properties)),
                0x23 => properties = &properties[2..],
                0x26 => {
                    let name = text(take_string(&mut properties));
                    user.push((name, text(take_string(&mut properties))));
                }
                other => panic!("property {other:#x} in a PUBLISH"),
            }
        }
        let heard = Self {
            topic,
            payload: payload.to_vec(),
            user,
            correlation,
            reply,
            expiry,
            retained: kind & 0x01 != 0,
        };
        (heard, id)
    }
}

fn take(rest: &mut &[u8]) -> u8 {
    let (first, tail) = rest.split_first().expect("one more byte");
    *rest = tail;
    *first
}

fn take_varint(rest: &mut &[u8]) -> usize {
    let (mut value, mut shift) = (0, 0);
    loop {
        let byte = take(rest);
        value |= usize::from(byte & 0x7f) << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            return value;
        }
    }
}

fn take_string(rest: &mut &[u8]) -> Vec<u8> {
    let length = usize::from(u16::from_be_bytes([take(rest), take(rest)]));
    let (text, tail) = rest.split_at(length);
    *rest = tail;
    text.to_vec()
}

/// Returns a CONNECT with clean start; without user name if that is empty.
pub fn connect_packet(user: &str, password: &str) -> Vec<u8> {
    let id = ulid::Ulid::generate().to_string();
    let mut body = string(b"MQTT");
    let flags = if user.is_empty() { 0x02 } else { 0xc2 };
    body.extend([5, flags, 0, 60, 0]);
    body.extend(string(id.as_bytes()));
    if !user.is_empty() {
        body.extend(string(user.as_bytes()));
        body.extend(string(password.as_bytes()));
    }
    packet(0x10, &body)
}

impl Raw {
    /// Connects to a broker, with clean start.
    pub fn connect(port: u16) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).expect("connect");
        let mut raw = Self::over(stream);
        raw.send(&connect_packet("", ""));
        let (kind, body) = raw.receive();
        assert_eq!((kind, body[1]), (0x20, 0), "CONNACK");
        raw
    }

    /// Uses an open stream.
    pub fn over(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).expect("timeout");
        Self { stream }
    }

    /// Returns the same connection, for another thread.
    pub fn clone_stream(&self) -> Self {
        let stream = self.stream.try_clone().expect("clone");
        Self { stream }
    }

    /// Sends, and returns whether the peer is still there.
    pub fn try_send(&mut self, packet: &[u8]) -> bool {
        self.stream.write_all(packet).is_ok()
    }

    pub fn send(&mut self, packet: &[u8]) {
        self.stream.write_all(packet).expect("send");
    }

    /// Returns the next packet: first byte and body.
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

    /// Publishes at QoS 1, and waits for the PUBACK.
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

    /// Subscribes to `filter` at QoS 1.
    pub fn subscribe(&mut self, filter: &str) {
        let mut body = vec![0, 1, 0];
        body.extend(string(filter.as_bytes()));
        body.push(1);
        self.send(&packet(0x82, &body));
        let (kind, _) = self.receive();
        assert_eq!(kind, 0x90, "SUBACK");
    }

    /// Returns the next message that is `wanted`.
    #[track_caller]
    pub fn hear(&mut self, what: &str, wanted: impl Fn(&Heard) -> bool) -> Heard {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (kind, body) = self.receive();
            if kind >> 4 == 3 {
                let (heard, id) = Heard::parse(kind, &body);
                if let Some(id) = id {
                    self.send(&packet(0x40, &id));
                }
                if wanted(&heard) {
                    return heard;
                }
            }
            assert!(Instant::now() < deadline, "never heard: {what}");
        }
    }

    /// Answers as a broker until the peer has acknowledged our PUBLISH `id`. Returns the messages
    /// that came before.
    #[track_caller]
    pub fn serve_until_acknowledged(&mut self, id: u16) -> Vec<Heard> {
        let (mut said, deadline) = (Vec::new(), Instant::now() + PATIENCE);
        loop {
            // Its pings alone would keep us here without end.
            assert!(Instant::now() < deadline, "{id} is not acknowledged");
            let (kind, body) = self.receive();
            if kind == 0x40 && body[..2] == id.to_be_bytes() {
                return said;
            }
            said.extend(self.serve(kind, &body));
        }
    }

    /// Answers as a broker until the peer publishes a message that is `wanted`.
    #[track_caller]
    pub fn serve_until(&mut self, wanted: impl Fn(&Heard) -> bool) -> Heard {
        let deadline = Instant::now() + PATIENCE;
        loop {
            assert!(Instant::now() < deadline, "the peer does not say it");
            let (kind, body) = self.receive();
            if let Some(heard) = self.serve(kind, &body).filter(&wanted) {
                return heard;
            }
        }
    }

    /// Answers as a broker, up to the next SUBSCRIBE of the peer.
    #[track_caller]
    pub fn serve_subscription(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            assert!(Instant::now() < deadline, "the peer does not subscribe");
            let (kind, body) = self.receive();
            self.serve(kind, &body);
            if kind >> 4 == 8 {
                return;
            }
        }
    }

    /// Answers one packet as a broker. Returns the message, if it is one.
    pub fn serve(&mut self, kind: u8, body: &[u8]) -> Option<Heard> {
        match kind >> 4 {
            // One reason code for each filter, which its options follow.
            8 => {
                let mut rest = &body[2..];
                let properties = take_varint(&mut rest);
                rest = &rest[properties..];
                let mut answer = vec![body[0], body[1], 0];
                while !rest.is_empty() {
                    let _filter = take_string(&mut rest);
                    let _options = take(&mut rest);
                    answer.push(1);
                }
                self.send(&packet(0x90, &answer));
            }
            // One reason code for each filter.
            10 => {
                let mut answer = vec![body[0], body[1], 0];
                answer.extend(unsubscribe_filters(body).iter().map(|_| 0));
                self.send(&packet(0xb0, &answer));
            }
            12 => self.send(&packet(0xd0, &[])),
            3 => {
                let (heard, id) = Heard::parse(kind, body);
                if let Some(id) = id {
                    self.send(&packet(0x40, &id));
                }
                return Some(heard);
            }
            _ => {}
        }
        None
    }
}

/// Returns the filters in the body of a SUBSCRIBE.
pub fn subscribe_filters(body: &[u8]) -> Vec<String> {
    let mut rest = &body[2..];
    let properties = take_varint(&mut rest);
    rest = &rest[properties..];
    let mut filters = Vec::new();
    while !rest.is_empty() {
        filters.push(String::from_utf8(take_string(&mut rest)).expect("filter"));
        take(&mut rest);
    }
    filters
}

/// Returns the filters in the body of an UNSUBSCRIBE.
pub fn unsubscribe_filters(body: &[u8]) -> Vec<String> {
    let mut rest = &body[2..];
    let properties = take_varint(&mut rest);
    rest = &rest[properties..];
    let mut filters = Vec::new();
    while !rest.is_empty() {
        filters.push(String::from_utf8(take_string(&mut rest)).expect("filter"));
    }
    filters
}

/// The parts of a CONNECT that tests read.
#[derive(Debug, Clone)]
pub struct Connect {
    pub clean_start: bool,
    /// Session Expiry Interval, seconds.
    pub session_expiry: u32,
    pub max_packet: u32,
    pub receive_maximum: u16,
    pub client_id: String,
}

impl Connect {
    fn parse(body: &[u8]) -> Self {
        let mut rest = body;
        let number = |bytes: &[u8]| u32::from_be_bytes(bytes[..4].try_into().expect("number"));
        assert_eq!(take_string(&mut rest), b"MQTT");
        let (_version, flags) = (take(&mut rest), take(&mut rest));
        rest = &rest[2..];
        let length = take_varint(&mut rest);
        let (mut properties, tail) = rest.split_at(length);
        rest = tail;
        let (mut session_expiry, mut max_packet) = (0, u32::MAX);
        let mut receive_maximum = u16::MAX;
        while !properties.is_empty() {
            match take(&mut properties) {
                0x11 => session_expiry = number(properties),
                0x27 => max_packet = number(properties),
                kind @ (0x21 | 0x22) => {
                    if kind == 0x21 {
                        receive_maximum = u16::from_be_bytes([properties[0], properties[1]]);
                    }
                    properties = &properties[2..];
                    continue;
                }
                other => panic!("property {other:#x} in a CONNECT"),
            }
            properties = &properties[4..];
        }
        let client_id = String::from_utf8(take_string(&mut rest)).expect("identifier");
        Self {
            clean_start: flags & 0x02 != 0,
            session_expiry,
            max_packet,
            receive_maximum,
            client_id,
        }
    }
}

/// A broker that a test plays: real ones would refuse much of it.
pub struct Scripted {
    listener: TcpListener,
}

impl Scripted {
    pub fn listen() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("listen");
        listener.set_nonblocking(true).expect("nonblocking");
        Self { listener }
    }

    /// Waits for a client, and returns the connection as a server of something else would have it.
    pub fn accept_as_stranger(&self) -> TcpStream {
        let mut accepted = None;
        wait_until("a client connects", || {
            accepted = self.listener.accept().ok();
            accepted.is_some()
        });
        let (stream, _) = accepted.expect("connection");
        stream.set_nonblocking(false).expect("blocking");
        stream
    }

    pub fn port(&self) -> u16 {
        self.listener.local_addr().expect("address").port()
    }

    /// Waits for a client, and accepts it.
    #[track_caller]
    pub fn accept(&self) -> Raw {
        self.accept_with(&[])
    }

    /// Waits for a client, and accepts it with these properties in the CONNACK.
    #[track_caller]
    pub fn accept_with(&self, properties: &[u8]) -> Raw {
        self.greet(false, properties).0
    }

    /// Waits for a client, and accepts it. Also returns its Maximum Packet Size, bytes.
    #[track_caller]
    pub fn accept_limit(&self) -> (Raw, usize) {
        let (raw, connect) = self.greet(false, &[]);
        (raw, connect.max_packet as usize)
    }

    /// Waits for a client, and accepts it with this Session Present flag.
    #[track_caller]
    pub fn greet(&self, session_present: bool, properties: &[u8]) -> (Raw, Connect) {
        self.answer(u8::from(session_present), 0, properties)
    }

    /// Waits for a client, and answers its CONNECT with this reason code and these properties.
    #[track_caller]
    pub fn answer_with(&self, code: u8, properties: &[u8]) -> (Raw, Connect) {
        self.answer(0, code, properties)
    }

    #[track_caller]
    fn answer(&self, flags: u8, code: u8, properties: &[u8]) -> (Raw, Connect) {
        let (mut raw, body) = self.hear_connect();
        let length = u8::try_from(properties.len()).expect("short");
        raw.send(&packet(
            0x20,
            &[&[flags, code, length], properties].concat(),
        ));
        (raw, Connect::parse(&body))
    }

    /// Waits for a client, and returns its CONNECT without an answer.
    #[track_caller]
    pub fn hear_connect(&self) -> (Raw, Vec<u8>) {
        let mut stream = None;
        wait_until("a client connects", || {
            stream = self.listener.accept().ok();
            stream.is_some()
        });
        let (stream, _) = stream.expect("client");
        stream.set_nonblocking(false).expect("blocking");
        let mut raw = Raw::over(stream);
        let (kind, body) = raw.receive();
        assert_eq!(kind, 0x10, "CONNECT");
        (raw, body)
    }
}
