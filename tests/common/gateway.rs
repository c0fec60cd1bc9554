//! A gateway, and what sends requests to it.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::Value;

use super::ports::free_port;
use super::{PATIENCE, Process, World, wait_until};

/// A gateway on a free port of this host.
pub struct Gateway {
    pub process: Process,
    pub address: String,
}

/// An answer.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    /// Header fields, in lower case.
    pub head: String,
    pub body: String,
}

impl Answer {
    /// Parses what a connection has brought until its end.
    #[track_caller]
    pub fn parse(text: &str) -> Self {
        let (head, body) = text.split_once("\r\n\r\n").expect(text);
        Self {
            status: head.get(9..12).expect(head).parse().expect(head),
            head: head.to_ascii_lowercase(),
            body: body.to_owned(),
        }
    }

    /// Returns its body, which is JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    /// Returns the id of an event that was accepted.
    #[track_caller]
    pub fn id(&self) -> String {
        assert_eq!(self.status, 202, "{self:?}");
        let body: Value = serde_json::from_str(&self.body).expect("JSON");
        body["id"].as_str().expect("id").to_owned()
    }
}

impl Gateway {
    /// Starts one, and returns when it listens.
    #[track_caller]
    pub fn start(world: &World, arguments: &[&str]) -> Self {
        // Tests that kill it start another one there.
        Self::on(world, &format!("127.0.0.1:{}", free_port()), arguments)
    }

    /// Starts one that listens on `address`.
    #[track_caller]
    pub fn on(world: &World, address: &str, arguments: &[&str]) -> Self {
        let mut command = world.tael(["gateway", "--root", "lab", "--listen", address]);
        // Tests look at it more often than callers do.
        if !arguments.contains(&"--rate") {
            command.args(["--rate", "0"]);
        }
        command.args(arguments);
        Self::listening(world.spawn(command))
    }

    /// Waits until `process` listens.
    #[track_caller]
    pub fn listening(process: Process) -> Self {
        let mut address = None;
        wait_until("the gateway listens", || {
            let log = process.log_text();
            let rest = log.split_once("listening on ").map(|(_, rest)| rest);
            address = rest
                .and_then(|rest| rest.split_once('\n'))
                .map(|(line, _)| line.trim().to_owned());
            address.is_some()
        });
        let address = address.expect("address");
        Self { process, address }
    }

    /// Starts one, and returns when it has reached the broker.
    #[track_caller]
    pub fn online(world: &World, arguments: &[&str]) -> Self {
        let gateway = Self::start(world, arguments);
        gateway.wait_health(200);
        gateway
    }

    #[track_caller]
    pub fn wait_health(&self, status: u16) {
        wait_until(&format!("/healthz is {status}"), || {
            self.get("/healthz").status == status
        });
    }

    #[track_caller]
    pub fn connect(&self) -> TcpStream {
        connect(&self.address).expect("connect")
    }

    /// Sends `request`, and returns all that comes.
    #[track_caller]
    pub fn exchange(&self, request: impl AsRef<[u8]>) -> String {
        exchange(&self.address, request.as_ref()).expect("answer")
    }

    /// Does so where what comes may be no text, or the end of the connection.
    pub fn exchange_bytes(&self, request: &[u8]) -> Vec<u8> {
        let mut stream = self.connect();
        let _ = stream.write_all(request);
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes);
        bytes
    }

    #[track_caller]
    pub fn get(&self, path: &str) -> Answer {
        let host = &self.address;
        let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        Answer::parse(&self.exchange(request))
    }

    /// Sends a request without a body, with more header fields.
    #[track_caller]
    pub fn ask(&self, line: &str, fields: &[(&str, &str)]) -> Answer {
        Answer::parse(&self.exchange(request(line, fields)))
    }

    /// Posts a JSON object, with more header fields.
    #[track_caller]
    pub fn post(&self, path: &str, fields: &[(&str, &str)], body: &str) -> Answer {
        Answer::parse(&self.exchange(post(path, fields, body)))
    }
}

/// A body in chunks (RFC 9112, section 7.1), without their sizes.
pub struct Chunked {
    stream: BufReader<TcpStream>,
    /// Bytes of this chunk that are still to come.
    left: usize,
    has_ended: bool,
}

impl Chunked {
    pub fn new(stream: BufReader<TcpStream>) -> Self {
        Self {
            stream,
            left: 0,
            has_ended: false,
        }
    }
}

impl Read for Chunked {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 && !self.has_ended {
            let mut line = String::new();
            // The first chunk has no other before it.
            while line.trim().is_empty() && self.stream.read_line(&mut line)? > 0 {}
            let size = usize::from_str_radix(line.trim(), 16);
            self.left = size.map_err(|_| io::ErrorKind::UnexpectedEof)?;
            self.has_ended = self.left == 0;
        }
        let room = buffer.len().min(self.left);
        let count = self.stream.read(&mut buffer[..room])?;
        self.left -= count;
        Ok(count)
    }
}

fn connect(address: &str) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn exchange(address: &str, request: &[u8]) -> std::io::Result<String> {
    let mut stream = connect(address)?;
    // A request that is refused early may not be read to its end.
    let _ = stream.write_all(request);
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// Returns a request without a body that ends its connection; `line` is method and path.
pub fn request(line: &str, fields: &[(&str, &str)]) -> String {
    let more: String = fields
        .iter()
        .map(|(n, v)| format!("{n}: {v}\r\n"))
        .collect();
    format!("{line} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{more}\r\n")
}

/// Returns a POST that ends its connection.
pub fn post(path: &str, fields: &[(&str, &str)], body: &str) -> String {
    let more: String = fields
        .iter()
        .map(|(n, v)| format!("{n}: {v}\r\n"))
        .collect();
    let length = body.len();
    format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{more}Content-Length: \
         {length}\r\n\r\n{body}"
    )
}

/// Posts as a careful sender does: until the gateway at `address` has accepted it.
#[track_caller]
pub fn insist(address: &str, request: &str) -> Answer {
    let mut accepted = None;
    wait_until("the request is accepted", || {
        let text = exchange(address, request.as_bytes()).unwrap_or_default();
        if text.contains("\r\n\r\n") {
            let answer = Answer::parse(&text);
            assert!([202, 503].contains(&answer.status), "{answer:?}");
            accepted = (answer.status == 202).then_some(answer);
        }
        if accepted.is_none() {
            std::thread::sleep(Duration::from_millis(20));
        }
        accepted.is_some()
    });
    accepted.expect("answer")
}
