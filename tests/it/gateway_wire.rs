//! `tael gateway` and requests as clients of all kinds write them: a topic, XML-RPC and a route each take a
//! request whole, or not at all.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::common::gateway::{Answer, Gateway};
use crate::common::{Ears, World, wait_until};
use crate::gateway_routes::{config, hub};

const JSON: &str = r#"{"a":"b"}"#;

const CALL: &str = "<methodCall><methodName>workflowmgr.handleEvent</methodName><params><param>\
    <value>rpc</value></param><param><value><struct><member><name>a</name><value>b</value></member>\
    </struct></value></param></params></methodCall>";

const ROUTE: &str = "[[route]]\nname = \"hook\"\npath = \"/hooks/x\"\nsource = \"github\"\n\
    secret-file = \"SECRET/hub\"\ntopic = \"lab/hook\"\n";

/// What takes requests.
struct End {
    path: &'static str,
    topic: &'static str,
    /// Header fields beside `Host` and the length.
    fields: String,
    body: &'static str,
    /// Status of a request that was accepted.
    accepted: u16,
    /// Status of a request whose body is not the whole one.
    broken: u16,
}

fn ends() -> [End; 3] {
    let end = |path, topic, body| End {
        path,
        topic,
        fields: String::new(),
        body,
        accepted: 202,
        broken: 400,
    };
    [
        end("/t/lab/topic", "lab/topic", JSON),
        // A fault has this status, too.
        End {
            fields: "Content-Type: text/xml\r\n".to_owned(),
            accepted: 200,
            broken: 200,
            ..end("/RPC2", "lab/rpc", CALL)
        },
        End {
            fields: format!("X-Hub-Signature-256: {}\r\n", hub(JSON)),
            broken: 401,
            ..end("/hooks/x", "lab/hook", JSON)
        },
    ]
}

impl End {
    /// Returns a request with these fields before its body; it ends its connection.
    fn with(&self, more: &str, body: &str) -> String {
        let Self { path, fields, .. } = self;
        format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{fields}{more}\r\n{body}"
        )
    }

    fn request(&self) -> String {
        self.with(
            &format!("Content-Length: {}\r\n", self.body.len()),
            self.body,
        )
    }

    #[track_caller]
    fn is_accepted(&self, text: &str) {
        let answer = Answer::parse(text);
        assert_eq!(answer.status, self.accepted, "{}: {text}", self.path);
        assert!(!answer.body.contains("<fault>"), "{}: {text}", self.path);
    }

    #[track_caller]
    fn is_refused(&self, text: &str, status: u16) {
        assert!(
            text.starts_with(&format!("HTTP/1.1 {status} ")),
            "{}: {text}",
            self.path
        );
        assert!(
            status != 200 || text.contains("<fault>"),
            "{}: {text}",
            self.path
        );
    }
}

/// A gateway that has all ends, and what it has published.
struct Fixture {
    gateway: Gateway,
    ears: Ears,
    ends: [End; 3],
}

impl Fixture {
    #[track_caller]
    fn new(world: &World) -> Self {
        let config = config(world, ROUTE);
        let gateway = Gateway::online(world, &["--config", &config]);
        let ears = world.ears(&["lab/topic", "lab/rpc", "lab/hook"]);
        Self {
            gateway,
            ears,
            ends: ends(),
        }
    }

    /// Sends a last request to each end, and checks how many each has published before. A request without
    /// a body is an empty message of the topic, which does not count.
    #[track_caller]
    fn finish(self, counts: [usize; 3]) {
        for (end, count) in self.ends.iter().zip(counts) {
            end.is_accepted(&self.gateway.exchange(end.request()));
            let messages = || {
                let mut all = self.ears.all();
                all.retain(|m| m.topic == end.topic && m.payload != json!({}));
                all
            };
            wait_until("the last has come", || messages().len() > count);
            let messages = messages();
            assert_eq!(messages.len(), count + 1, "{}", end.path);
            for message in messages {
                assert_eq!(message.payload.to_string(), JSON, "{}", end.path);
            }
        }
        self.gateway.process.stop();
    }
}

/// Returns what comes until the connection ends.
#[track_caller]
fn rest(mut stream: impl Read) -> String {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).expect("answer");
    String::from_utf8_lossy(&bytes).into_owned()
}

#[test]
fn a_request_is_one_message_however_it_is_split() {
    let world = World::new();
    let fixture = Fixture::new(&world);
    let mut counts = [0; 3];
    for (end, count) in fixture.ends.iter().zip(&mut counts) {
        let request = end.request();
        for at in 1..request.len() {
            // Every byte of what is judged by its length, and each eighth of the rest.
            let is_edge = at + end.body.len() + 8 > request.len() || at % 8 == 0;
            if !is_edge && end.body.len() > 100 {
                continue;
            }
            let (first, second) = request.split_at(at);
            let mut stream = fixture.gateway.connect();
            stream.write_all(first.as_bytes()).expect("first");
            thread::sleep(Duration::from_millis(1));
            stream.write_all(second.as_bytes()).expect("second");
            end.is_accepted(&rest(stream));
            *count += 1;
        }
        let mut stream = fixture.gateway.connect();
        for byte in request.as_bytes() {
            stream.write_all(&[*byte]).expect("byte");
        }
        end.is_accepted(&rest(stream));
        *count += 1;
    }
    fixture.finish(counts);
}

#[test]
fn chunks_pipelines_and_old_clients_are_read_alike() {
    let world = World::new();
    let fixture = Fixture::new(&world);
    let gateway = &fixture.gateway;
    for end in &fixture.ends {
        // A byte a chunk, with an extension and a trailer.
        let chunks: String = end
            .body
            .chars()
            .map(|c| format!("1;x=y\r\n{c}\r\n"))
            .collect();
        let chunked = end.with(
            "Transfer-Encoding: chunked\r\n",
            &format!("{chunks}0\r\nTrailer: t\r\n\r\n"),
        );
        end.is_accepted(&gateway.exchange(chunked));
        let old = end.request().replace("HTTP/1.1", "HTTP/1.0");
        end.is_accepted(&gateway.exchange(old.replace("Connection: close\r\n", "")));
        // Without a length, an old request has no body: what follows is not read.
        let (head, body) = old.split_once("\r\n\r\n").expect("head");
        let length = format!("Content-Length: {}", end.body.len());
        let bare = format!("{}\r\n\r\n{body}", head.replace(&length, "X: y"));
        let text = gateway.exchange(bare);
        match end.path {
            "/t/lab/topic" => end.is_accepted(&text),
            _ => end.is_refused(&text.replace("HTTP/1.0", "HTTP/1.1"), end.broken),
        }
    }
    // All in one packet, answered in their order.
    let pipeline: String = fixture.ends.iter().map(End::request).collect();
    let kept = pipeline.replace("Connection: close\r\n", "");
    let last = "GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let text = gateway.exchange(kept + last);
    let statuses: Vec<&str> = text
        .match_indices("HTTP/1.1 ")
        .map(|(at, start)| &text[at + start.len()..at + start.len() + 3])
        .collect();
    assert_eq!(statuses, ["202", "200", "202", "200"], "{text}");
    fixture.finish([3; 3]);
}

#[test]
fn a_wrong_length_is_refused_and_publishes_nothing() {
    let world = World::new();
    let fixture = Fixture::new(&world);
    let gateway = &fixture.gateway;
    for end in &fixture.ends {
        let (body, length) = (end.body, end.body.len());
        let other = length - 1;
        for fields in [
            format!("Content-Length: -{length}\r\n"),
            format!("Content-Length: +{length}\r\n"),
            format!("Content-Length: {length}x\r\n"),
            format!("Content-Length: 0x{length:x}\r\n"),
            "Content-Length: \r\n".to_owned(),
            "Content-Length: 18446744073709551616\r\n".to_owned(),
            format!("Content-Length: {length}, {other}\r\n"),
            format!("Content-Length: {length}\r\nContent-Length: {other}\r\n"),
            format!("Content-Length: {other}\r\nContent-Length: {length}\r\n"),
            format!("Content-Length : {length}\r\n"),
            "Transfer-Encoding: identity\r\n".to_owned(),
            "Transfer-Encoding: chunked, identity\r\n".to_owned(),
            "Transfer-Encoding: xchunked\r\n".to_owned(),
        ] {
            let text = gateway.exchange(end.with(&fields, body));
            end.is_refused(&text, 400);
            assert_eq!(text.matches("HTTP/1.1 ").count(), 1, "{fields}: {text}");
        }
        let chunked = "Transfer-Encoding: chunked\r\n";
        for chunks in [
            format!("-{length:x}\r\n{body}\r\n0\r\n\r\n"),
            format!("{:x}\r\n{body}\r\n0\r\n\r\n", length + 1),
            format!("{other:x}\r\n{body}\r\n0\r\n\r\n"),
            format!("ffffffffffffffff1\r\n{body}\r\n0\r\n\r\n"),
            format!("0x{length:x}\r\n{body}\r\n0\r\n\r\n"),
        ] {
            end.is_refused(&gateway.exchange(end.with(chunked, &chunks)), 400);
        }
        // Longer than what comes before the caller says that it is all.
        for (fields, body) in [
            (
                format!("Content-Length: {}\r\n", length + 1),
                body.to_owned(),
            ),
            (chunked.to_owned(), format!("{length:x}\r\n{body}\r\n")),
        ] {
            let mut stream = gateway.connect();
            stream
                .write_all(end.with(&fields, &body).as_bytes())
                .expect("request");
            stream.shutdown(Shutdown::Write).expect("shutdown");
            end.is_refused(&rest(stream), 400);
        }
        // Shorter: the rest is no request, or one that is not answered on a connection that ends.
        let short = end.with(&format!("Content-Length: {other}\r\n"), body);
        end.is_refused(&gateway.exchange(&short), end.broken);
        let text = gateway.exchange(short.replace("Connection: close\r\n", ""));
        end.is_refused(&text, end.broken);
        // With both lengths, a request hides no other one from a proxy before us.
        let hidden = end.request();
        for fields in [
            format!("Content-Length: {}\r\n{chunked}", hidden.len() + 5),
            format!("{chunked}Content-Length: {}\r\n", hidden.len() + 5),
        ] {
            let bytes = end.with(&fields, &format!("0\r\n\r\n{hidden}"));
            let text = gateway.exchange(bytes.replacen("Connection: close\r\n", "", 1));
            assert_eq!(text.matches("HTTP/1.1 ").count(), 1, "{fields}: {text}");
        }
    }
    fixture.finish([0; 3]);
}

#[test]
fn headers_without_end_are_refused_and_heard() {
    let world = World::new();
    let fixture = Fixture::new(&world);
    let gateway = &fixture.gateway;
    let length = |end: &End| format!("Content-Length: {}\r\n", end.body.len());
    for end in &fixture.ends {
        let many: String = (0..10_000).map(|n| format!("X-{n}: y\r\n")).collect();
        let few: String = (0..200).map(|n| format!("X-{n}: y\r\n")).collect();
        let large = format!("X: {}\r\n", "y".repeat(1_000_000));
        let name = format!("{}: y\r\n", "X".repeat(1_000_000));
        for fields in [many, few, large, name] {
            let text = gateway.exchange(end.with(&(fields + &length(end)), end.body));
            end.is_refused(&text, 431);
        }
        let query = format!("{}?{} HTTP", end.path, "q".repeat(1_000_000));
        let line = end
            .request()
            .replacen(&format!("{} HTTP", end.path), &query, 1);
        let text = gateway.exchange(line);
        let status = text.get(9..12).unwrap_or_default();
        assert!(
            ["400", "414", "431"].contains(&status),
            "{}: {text}",
            end.path
        );
    }
    assert!(gateway.process.log_text().len() < 1_000_000);
    fixture.finish([0; 3]);
}

#[test]
fn callers_who_drip_lose_their_connection_and_hold_up_no_others() {
    /// Number of slow callers of each kind.
    const SLOW: usize = 8;
    let world = World::new();
    let fixture = Fixture::new(&world);
    let gateway = &fixture.gateway;
    let begun = Instant::now();
    let texts: Vec<(bool, String)> = thread::scope(|scope| {
        let mut slow = Vec::new();
        for end in &fixture.ends {
            let head = end.with("Content-Length: 100000\r\n", "");
            for n in 0..SLOW {
                // A head that never ends, or a body.
                let is_body = n % 2 == 0;
                let start = match is_body {
                    true => head.clone(),
                    false => head.trim_end().to_owned() + "\r\nX: ",
                };
                slow.push(scope.spawn(move || {
                    let mut stream = gateway.connect();
                    stream.write_all(start.as_bytes()).expect("start");
                    let mut reader = stream.try_clone().expect("stream");
                    let dripping = thread::spawn(move || {
                        while stream.write_all(b"x").is_ok() {
                            thread::sleep(Duration::from_millis(100));
                        }
                    });
                    let mut text = Vec::new();
                    // The end may be a reset: bytes come after it.
                    let _ = reader.read_to_end(&mut text);
                    let _ = reader.shutdown(Shutdown::Both);
                    dripping.join().expect("drip");
                    (is_body, String::from_utf8_lossy(&text).into_owned())
                }));
            }
        }
        // All of them are there for as long as this takes.
        let count = SLOW * fixture.ends.len();
        let open = || {
            let metrics = gateway.get("/metrics").body;
            let line = metrics
                .lines()
                .find_map(|line| line.strip_prefix("tael_gateway_connections "));
            line.expect("line").parse::<usize>().expect("number")
        };
        wait_until("all are there", || open() > count);
        for end in &fixture.ends {
            end.is_accepted(&gateway.exchange(end.request()));
        }
        // They were there all the time, unless this machine is slow.
        assert!(open() > count || begun.elapsed() > Duration::from_secs(8));
        slow.into_iter()
            .map(|one| one.join().expect("slow"))
            .collect()
    });
    assert!(
        begun.elapsed() < Duration::from_secs(40),
        "{:?}",
        begun.elapsed()
    );
    for (is_body, text) in texts {
        match is_body {
            true => assert!(text.starts_with("HTTP/1.1 408 "), "{text}"),
            false => assert!(
                text.is_empty() || text.starts_with("HTTP/1.1 408 "),
                "{text}"
            ),
        }
    }
    fixture.finish([1; 3]);
}
