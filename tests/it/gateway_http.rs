//! `tael gateway` and clients that are slow, broken or many. The tests of its server in process have
//! more cases and shorter limits.

use std::io::{Read, Write};
use std::thread;
use std::time::Duration;

use crate::common::gateway::{Answer, Gateway, post};
use crate::common::{World, wait_until};

#[test]
fn a_request_split_at_every_byte_is_one_message() {
    let world = World::new();
    let gateway = Gateway::online(&world, &[]);
    let ears = world.ears(&["lab/#"]);
    let request = post("/t/lab/split", &[], r#"{"a":"b"}"#);
    let mut stream = gateway.connect();
    for byte in request.as_bytes() {
        stream.write_all(&[*byte]).expect("byte");
    }
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("answer");
    let mut ids = vec![Answer::parse(&text).id()];
    for at in 1..request.len() {
        let (first, second) = request.split_at(at);
        let mut stream = gateway.connect();
        stream.write_all(first.as_bytes()).expect("first");
        thread::sleep(Duration::from_millis(1));
        stream.write_all(second.as_bytes()).expect("second");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("answer");
        ids.push(Answer::parse(&text).id());
    }
    let chunked = "POST /t/lab/last HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
        Transfer-Encoding: chunked\r\n\r\n5\r\n{\"a\":\r\n4\r\n\"b\"}\r\n0\r\n\r\n";
    ids.push(Answer::parse(&gateway.exchange(chunked)).id());
    ears.wait("the last", |m| m.topic == "lab/last");
    let heard: Vec<String> = ears
        .all()
        .iter()
        .map(|m| {
            assert_eq!(m.payload.to_string(), r#"{"a":"b"}"#);
            m.properties["tael-id"].as_str().expect("id").to_owned()
        })
        .collect();
    assert_eq!(heard, ids);
    gateway.process.stop();
}

#[test]
fn slow_and_broken_clients_cost_nothing() {
    let world = World::new();
    let gateway = Gateway::online(&world, &[]);
    let host = "Host: localhost\r\n";
    // Three for each: no request, half a head, half a body, half a chunk, a pipeline that stops.
    let mut slow = Vec::new();
    for start in [
        String::new(),
        format!("POST /t/lab/a HTTP/1.1\r\n{host}"),
        format!("POST /t/lab/a HTTP/1.1\r\n{host}Content-Length: 9\r\n\r\n{{"),
        format!("POST /t/lab/a HTTP/1.1\r\n{host}Transfer-Encoding: chunked\r\n\r\n9\r\n{{"),
        format!("GET /healthz HTTP/1.1\r\n{host}\r\nGET /hea"),
    ] {
        for _ in 0..3 {
            let mut stream = gateway.connect();
            stream.write_all(start.as_bytes()).expect("start");
            slow.push(stream);
        }
    }
    for (request, status) in [
        ("\0\0\0\0\r\n\r\n".to_owned(), 400),
        (
            format!("POST /t/lab/a HTTP/1.1\r\n{host}Content-Length: x\r\n\r\n"),
            400,
        ),
        (
            format!("POST /t/lab/a HTTP/1.1\r\n{host}Content-Length: 2000000\r\n\r\n"),
            413,
        ),
        (
            format!("POST /t/lab/a HTTP/1.1\r\n{host}Transfer-Encoding: chunked\r\n\r\nx\r\n"),
            400,
        ),
        (
            format!("GET / HTTP/1.1\r\n{host}A: {}\r\n\r\n", "a".repeat(20_000)),
            431,
        ),
        ("GET /healthz HTTP/1.1\r\n\r\n".to_owned(), 400),
        (
            "GET /healthz HTTP/1.0\r\nHost: localhost\r\n\r\n".to_owned(),
            200,
        ),
    ] {
        let answer = Answer::parse(&gateway.exchange(&request));
        assert_eq!(answer.status, status, "{request:.80}: {answer:?}");
    }
    // Others are served meanwhile, and the slow ones are gone in the end.
    let open = || {
        let metrics = gateway.get("/metrics").body;
        let line = metrics
            .lines()
            .find_map(|line| line.strip_prefix("tael_gateway_connections "));
        line.expect("line").parse::<u32>().expect("number")
    };
    assert!(open() >= 15);
    wait_until("the slow ones are gone", || open() == 1);
    for mut stream in slow {
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("end");
        assert!(!text.contains(" 202 "), "{text}");
    }
    assert!(gateway.process.log_text().len() < 1_000_000);
    gateway.process.stop();
}

#[test]
fn connections_beyond_the_limit_are_served_when_others_are_idle() {
    let world = World::new();
    let gateway = Gateway::online(&world, &[]);
    let request = "POST /t/lab/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}";
    let mut open = Vec::new();
    for n in 0..100 {
        let mut stream = gateway.connect();
        stream.write_all(request.as_bytes()).expect("request");
        let mut start = [0; 12];
        stream.read_exact(&mut start).expect("answer");
        let start = String::from_utf8_lossy(&start);
        assert_eq!(start, "HTTP/1.1 202", "connection {n}");
        // It stays open, as those of browsers.
        open.push(stream);
    }
    let metrics = gateway.get("/metrics").body;
    assert!(
        metrics.contains("\ntael_gateway_connections_refused_total 0\n"),
        "{metrics}"
    );
    drop(open);
    gateway.process.stop();
}
