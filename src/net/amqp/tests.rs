//! The client against a scripted broker, which also does what no broker should.

use std::future::ready;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::oneshot;

use super::frame::{Frame, Kind, Output};
use super::method::{Method, bits};
use super::wire::{Reader, Ticket, Unused};
use super::*;

/// Maximum time for anything that must happen.
const PATIENCE: Duration = Duration::from_secs(30);

/// Maximum size of a frame that the scripted broker asks for, bytes.
const FRAME: usize = 4096;

/// The broker's side of a connection.
struct Broker {
    stream: TcpStream,
    input: Vec<u8>,
}

impl Broker {
    fn accept(listener: &TcpListener) -> Self {
        let (stream, _) = listener.accept().expect("accept");
        stream.set_read_timeout(Some(PATIENCE)).expect("timeout");
        stream.set_write_timeout(Some(PATIENCE)).expect("timeout");
        stream.set_nodelay(true).expect("nodelay");
        Self {
            stream,
            input: Vec::new(),
        }
    }

    /// Takes the protocol header, and greets.
    fn greet(&mut self) {
        let mut header = [0; 8];
        self.stream.read_exact(&mut header).expect("header");
        assert_eq!(&header, b"AMQP\0\0\x09\x01");
        self.send(
            0,
            &Method::ConnectionStart {
                major: 0,
                minor: 9,
                properties: Table::from([
                    ("product", "Scripted".into()),
                    ("version", "3.10.8".into()),
                    (
                        "capabilities",
                        Value::Table(Table::from([
                            ("basic.nack", true.into()),
                            ("other", false.into()),
                        ])),
                    ),
                ]),
                mechanisms: Bytes::from_static(b"AMQPLAIN PLAIN"),
                locales: Bytes::from_static(b"en_US"),
            },
        );
    }

    fn tune(&mut self, heartbeat: u16) {
        let frame_max = u32::try_from(FRAME).expect("size");
        self.send(
            0,
            &Method::ConnectionTune {
                channel_max: 5,
                frame_max,
                heartbeat,
            },
        );
    }

    /// Does the whole handshake, and asks for heartbeats each second.
    fn log_in(&mut self) {
        self.greet();
        self.expect();
        self.tune(1);
        assert!(matches!(
            self.expect(),
            (0, Method::ConnectionTuneOk { heartbeat: 1, .. })
        ));
        assert!(matches!(self.expect(), (0, Method::ConnectionOpen { .. })));
        self.send(0, &Method::ConnectionOpenOk { hosts: Unused });
    }

    fn raw(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("write");
    }

    fn send(&mut self, channel: u16, method: &Method) {
        let bytes = method_frame(channel, method);
        self.raw(&bytes);
    }

    fn content(&mut self, channel: u16, method: &Method, properties: &Properties, body: &[u8]) {
        let bytes = content_frames(channel, method, properties, body);
        self.raw(&bytes);
    }

    /// Delivers a message with this number and body.
    fn deliver(&mut self, channel: u16, tag: u64, body: &[u8]) {
        self.content(channel, &delivery(tag), &Properties::default(), body);
    }

    /// Returns the next frame; `None` at the end of the connection.
    fn frame(&mut self) -> Option<(Kind, u16, Vec<u8>)> {
        loop {
            let read = Frame::read(&self.input, 128 << 10).expect("a frame");
            if let Some((frame, size)) = read {
                let found = (frame.kind, frame.channel, frame.payload.to_vec());
                self.input.drain(..size);
                return Some(found);
            }
            let mut piece = [0; 64 << 10];
            match self.stream.read(&mut piece) {
                Ok(0) => return None,
                Ok(count) => self.input.extend_from_slice(&piece[..count]),
                Err(e) if e.kind() == ErrorKind::ConnectionReset => return None,
                Err(e) => panic!("the client sends nothing: {e}"),
            }
        }
    }

    /// Returns the next method, without heartbeats; `None` at the end of the connection.
    fn method(&mut self) -> Option<(u16, Method)> {
        loop {
            let (kind, channel, payload) = self.frame()?;
            match kind {
                Kind::Heartbeat => {}
                Kind::Method => {
                    let method = Method::read(&mut Reader::new(&payload)).expect("a method");
                    return Some((channel, method));
                }
                other => panic!("{other:?} is no method"),
            }
        }
    }

    #[track_caller]
    fn expect(&mut self) -> (u16, Method) {
        self.method().expect("the client ends the connection")
    }

    /// Opens the channel that the client asks for.
    fn channel(&mut self) -> u16 {
        match self.expect() {
            (number, Method::ChannelOpen { .. }) => {
                let id = Bytes::new();
                self.send(number, &Method::ChannelOpenOk { id });
                number
            }
            other => panic!("{other:?}"),
        }
    }

    /// Answers a call.
    fn answer(&mut self, channel: u16, method: &Method) {
        let answer = match method.clone() {
            Method::ChannelOpen { .. } => Method::ChannelOpenOk { id: Bytes::new() },
            Method::ChannelFlow { active } => Method::ChannelFlowOk { active },
            Method::ChannelClose { .. } => Method::ChannelCloseOk {},
            Method::ExchangeDeclare { .. } => Method::ExchangeDeclareOk {},
            Method::QueueDeclare { queue, .. } => Method::QueueDeclareOk {
                messages: u32::try_from(queue.len()).expect("length"),
                queue,
                consumers: 7,
            },
            Method::QueueBind { .. } => Method::QueueBindOk {},
            Method::QueuePurge { .. } => Method::QueuePurgeOk { messages: 3 },
            Method::QueueDelete { .. } => Method::QueueDeleteOk { messages: 4 },
            Method::BasicQos { .. } => Method::BasicQosOk {},
            Method::BasicConsume { tag, .. } => Method::BasicConsumeOk { tag },
            Method::BasicCancel { tag, .. } => Method::BasicCancelOk { tag },
            Method::ConfirmSelect { .. } => Method::ConfirmSelectOk {},
            Method::BasicGet { queue, .. } if queue == "empty" => {
                Method::BasicGetEmpty { cluster: Unused }
            }
            Method::BasicGet { .. } => {
                let got = Method::BasicGetOk {
                    tag: 9,
                    redelivered: true,
                    exchange: String::new(),
                    key: "q".into(),
                    messages: 2,
                };
                return self.content(channel, &got, &Properties::default(), b"got");
            }
            other => panic!("{} has no answer", other.name()),
        };
        self.send(channel, &answer);
    }

    /// Expects `connection.close` with `code`, and the end.
    #[track_caller]
    fn expect_close(&mut self, wanted: u16) {
        match self.expect() {
            (0, Method::ConnectionClose { code, .. }) => assert_eq!(code, wanted),
            other => panic!("{other:?}"),
        }
        self.expect_end();
    }

    #[track_caller]
    fn expect_end(&mut self) {
        if let Some((channel, method)) = self.method() {
            panic!("{} on channel {channel}", method.name());
        }
    }
}

fn method_frame(channel: u16, method: &Method) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut out = Output {
        bytes: &mut bytes,
        max: 128 << 10,
    };
    out.method(channel, method).expect("it fits");
    bytes
}

fn content_frames(channel: u16, method: &Method, properties: &Properties, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut out = Output {
        bytes: &mut bytes,
        max: FRAME,
    };
    out.content(channel, method, properties, body)
        .expect("it fits");
    bytes
}

/// Returns a frame with any payload.
fn any_frame(kind: u8, channel: u16, payload: &[u8]) -> Vec<u8> {
    let size = u32::try_from(payload.len()).expect("size");
    let head = [&[kind][..], &channel.to_be_bytes(), &size.to_be_bytes()].concat();
    [&head[..], payload, &[0xce]].concat()
}

fn delivery(tag: u64) -> Method {
    Method::BasicDeliver {
        consumer: "c".into(),
        tag,
        redelivered: false,
        exchange: String::new(),
        key: "q".into(),
    }
}

fn wait<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("runtime");
    let limited = async {
        let limited = tokio::time::timeout(2 * PATIENCE, future).await;
        limited.expect("it hangs")
    };
    runtime.block_on(limited)
}

/// Runs `script` as the broker, and `client` against it.
fn talk<T>(
    script: impl FnOnce(&mut Broker) + Send + 'static,
    client: impl AsyncFnOnce(AmqpOptions) -> T,
) -> T {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listen");
    let port = listener.local_addr().expect("address").port();
    let broker = thread::spawn(move || script(&mut Broker::accept(&listener)));
    let done = wait(client(AmqpOptions::new("127.0.0.1", port)));
    broker.join().expect("the broker");
    done
}

/// As [`talk`], after the login.
fn session<T>(
    script: impl FnOnce(&mut Broker) + Send + 'static,
    client: impl AsyncFnOnce(Connection) -> T,
) -> T {
    let script = |broker: &mut Broker| {
        broker.log_in();
        script(broker);
    };
    talk(script, async |options| {
        client(Connection::open(&options).await.expect("open")).await
    })
}

/// Polls `future` once, and drops it.
async fn abandon<T>(future: impl Future<Output = T>) {
    tokio::select! {
        biased;
        _ = future => panic!("it does not wait"),
        () = ready(()) => {}
    }
}

fn message(body: impl Into<Bytes>) -> Publish {
    Publish {
        routing_key: "q".into(),
        mandatory: true,
        body: body.into(),
        ..Publish::default()
    }
}

#[track_caller]
fn body(happening: Happening) -> (u64, Bytes) {
    match happening {
        Happening::Delivery(delivery) => (delivery.tag, delivery.body),
        other => panic!("{other:?}"),
    }
}

// The login.

#[test]
fn the_login_says_who_we_are_and_what_we_can() {
    let script = |broker: &mut Broker| {
        broker.greet();
        let (
            0,
            Method::ConnectionStartOk {
                properties,
                mechanism,
                response,
                ..
            },
        ) = broker.expect()
        else {
            panic!("start-ok");
        };
        assert_eq!(mechanism, "PLAIN");
        assert_eq!(&response[..], b"\0ann\0s3cret");
        let name = properties.get("connection_name").and_then(Value::as_text);
        assert_eq!(name.as_deref(), Some("worker@host"));
        let Some(Value::Table(capabilities)) = properties.get("capabilities") else {
            panic!("capabilities");
        };
        for name in ["consumer_cancel_notify", "connection.blocked", "basic.nack"] {
            assert_eq!(capabilities.get(name), Some(&Value::Bool(true)), "{name}");
        }
        broker.tune(0);
        let tuned = broker.expect();
        let wanted = Method::ConnectionTuneOk {
            channel_max: 5,
            frame_max: 4096,
            // It is ours, because the broker asks for none.
            heartbeat: 7,
        };
        assert_eq!(tuned, (0, wanted));
        let (0, Method::ConnectionOpen { vhost, .. }) = broker.expect() else {
            panic!("open");
        };
        assert_eq!(vhost, "lab/1");
        broker.send(0, &Method::ConnectionOpenOk { hosts: Unused });
        broker.expect_end();
    };
    talk(script, async |options| {
        let options = AmqpOptions {
            username: Some("ann".into()),
            password: Some(crate::net::password::Password::Text(
                crate::net::password::Secret::new("s3cret"),
            )),
            vhost: "lab/1".into(),
            heartbeat: Duration::from_secs(7),
            name: "worker@host".into(),
            ..options
        };
        let connection = Connection::open(&options).await.expect("open");
        assert_eq!(connection.server().product, "Scripted");
        assert_eq!(connection.server().release(), Some((3, 10)));
        assert!(connection.server().can("basic.nack") && !connection.server().can("other"));
    });
}

#[test]
fn a_refused_login_and_a_missing_host_say_so() {
    for (step, code, text, word) in [
        (1, 403, "ACCESS_REFUSED - Login was refused", "another user"),
        (2, 530, "NOT_ALLOWED - vhost x not found", "vhost x"),
    ] {
        let script = move |broker: &mut Broker| {
            broker.greet();
            broker.expect();
            if step == 2 {
                broker.tune(5);
                broker.expect();
                broker.expect();
            }
            let close = Method::ConnectionClose {
                code,
                text: text.into(),
                class: 0,
                method: 0,
            };
            broker.send(0, &close);
            assert_eq!(broker.expect(), (0, Method::ConnectionCloseOk {}));
            broker.expect_end();
        };
        let failure = talk(script, async |options| {
            Connection::open(&options).await.err().expect("refused")
        });
        assert_eq!(failure.kind, FailureKind::Denied);
        assert_eq!(failure.code, Some(code));
        assert!(
            failure.text.contains(text) && failure.text.contains(word),
            "{failure}"
        );
        assert_eq!(crate::error::Error::from(failure).exit_code(), 77);
    }
}

#[test]
fn what_is_no_broker_is_called_by_its_name() {
    let big_table = {
        // A greeting that never ends.
        let mut bytes = vec![1, 0, 0];
        bytes.extend((1_u32 << 30).to_be_bytes());
        bytes
    };
    let silent = method_frame(
        0,
        &Method::ConnectionTune {
            channel_max: 0,
            frame_max: 0,
            heartbeat: 0,
        },
    );
    for (bytes, kind, word) in [
        (
            &b"HTTP/1.1 400 Bad Request\r\n\r\n"[..],
            FailureKind::Refused,
            "HTTP",
        ),
        (
            b"\x15\x03\x03\0\x02\x02\x46",
            FailureKind::Refused,
            "amqps://",
        ),
        (b"AMQP\x03\x01\0\0", FailureKind::Refused, "AMQP 1.0.0"),
        (b"AMQP\0\0\x08\0", FailureKind::Refused, "AMQP 0.8.0"),
        (b"SSH-2.0-x\r\n", FailureKind::Refused, "SSH"),
        (
            b"220 mail.example ESMTP\r\n",
            FailureKind::Refused,
            "220 mail",
        ),
        (b"", FailureKind::Unreachable, "AMQP 0-9-1"),
        (b"\x01", FailureKind::Unreachable, "AMQP 0-9-1"),
        (&big_table, FailureKind::Unreachable, "larger"),
        (&silent, FailureKind::Unreachable, "ConnectionTune"),
    ] {
        let greeting = bytes.to_vec();
        let script = move |broker: &mut Broker| {
            let mut header = [0; 8];
            broker.stream.read_exact(&mut header).expect("header");
            broker.raw(&greeting);
        };
        let failure = talk(script, async |options| {
            Connection::open(&options).await.err().expect("no broker")
        });
        assert_eq!(failure.kind, kind, "{failure}");
        assert!(failure.text.contains(word), "{failure}");
    }
}

#[test]
fn a_login_has_a_time_limit() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listen");
    let port = listener.local_addr().expect("address").port();
    let options = AmqpOptions::new("127.0.0.1", port);
    let limit = Duration::from_millis(200);
    let failure = wait(handshake::open(&options, limit))
        .err()
        .expect("silence");
    assert_eq!(failure.kind, FailureKind::Unreachable);
    assert!(failure.text.contains("greeting: no answer"), "{failure}");
}

#[test]
fn a_port_without_a_broker_is_unreachable() {
    let port = {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listen");
        listener.local_addr().expect("address").port()
    };
    let failure = wait(Connection::open(&AmqpOptions::new("127.0.0.1", port)));
    let failure = failure.err().expect("refused");
    assert_eq!(failure.kind, FailureKind::Unreachable);
    assert_eq!(failure.text, "connection refused");
    assert_eq!(crate::error::Error::from(failure).exit_code(), 69);
}

// Calls.

/// Answers everything until the connection ends; returns the methods that need no answer.
fn answer_all(broker: &mut Broker) -> Vec<(u16, Method)> {
    let mut others = Vec::new();
    while let Some((channel, method)) = broker.method() {
        match method {
            Method::BasicAck { .. } | Method::BasicNack { .. } => others.push((channel, method)),
            Method::BasicCancel { no_wait: true, .. } => others.push((channel, method)),
            Method::ConnectionClose { .. } => broker.send(0, &Method::ConnectionCloseOk {}),
            method => broker.answer(channel, &method),
        }
    }
    others
}

#[test]
fn calls_have_their_answers() {
    let script = |broker: &mut Broker| {
        let others = answer_all(broker);
        let nack = Method::BasicNack {
            tag: 5,
            bits: bits::REQUEUE,
        };
        let ack = Method::BasicAck {
            tag: 9,
            multiple: true,
        };
        let cancel = Method::BasicCancel {
            tag: "d".into(),
            no_wait: true,
        };
        assert_eq!(others, [(1, ack), (1, nack), (1, cancel)]);
    };
    session(script, async |connection| {
        let channel = connection.channel().await.expect("channel");
        let figures = Declared {
            messages: 5,
            consumers: 7,
        };
        assert_eq!(channel.declare_passive("queue").await, Ok(figures));
        let named = channel.declare("queue", &Declare::default()).await;
        assert_eq!(named, Ok(("queue".to_owned(), figures)));
        channel
            .declare_exchange("e", "direct", true, false)
            .await
            .expect("exchange");
        channel.bind("q", "e", "k").await.expect("bind");
        channel.qos(5).await.expect("qos");
        channel
            .consume("q", "c", false, false, &Table::new())
            .await
            .expect("consume");
        channel.cancel("c").await.expect("cancel");
        assert_eq!(channel.get("empty").await, Ok(None));
        let got = channel.get("q").await.expect("get").expect("a message");
        assert_eq!(
            (got.tag, &got.body[..], got.remaining),
            (9, &b"got"[..], Some(2))
        );
        assert!(got.redelivered);
        channel.ack(9, true).expect("ack");
        channel.nack(5, true).expect("nack");
        channel.cancel_nowait("d").expect("cancel");
        channel.confirm_select().await.expect("confirms");
        assert_eq!(channel.purge("q").await, Ok(3));
        assert_eq!(channel.delete("q").await, Ok(4));
        channel.ping().await.expect("ping");
        channel.close().await;
        connection.close().await;
    });
}

#[test]
fn a_call_that_is_dropped_changes_nothing_for_the_next() {
    let script = |broker: &mut Broker| {
        let others = answer_all(broker);
        // A message that its caller has not taken goes back, both times.
        let back = |(_, method): &(u16, Method)| {
            let wanted = Method::BasicNack {
                tag: 9,
                bits: bits::REQUEUE,
            };
            *method == wanted
        };
        assert!(others.len() == 2 && others.iter().all(back), "{others:?}");
    };
    session(script, async |connection| {
        abandon(connection.channel()).await;
        let channel = connection.channel().await.expect("channel");
        for after_answer in [false, true] {
            macro_rules! dropped {
                ($call:expr) => {{
                    let mut call = Box::pin($call);
                    abandon(&mut call).await;
                    if after_answer {
                        // The answer is there, and its caller does not take it.
                        channel.ping().await.expect("ping");
                    }
                    drop(call);
                    let figures = channel.declare_passive("next").await.expect("next");
                    assert_eq!(figures.messages, 4);
                }};
            }
            let (declare, table) = (Declare::default(), Table::new());
            dropped!(channel.declare_passive("queue"));
            dropped!(channel.declare("queue", &declare));
            dropped!(channel.declare_exchange("e", "direct", true, false));
            dropped!(channel.bind("q", "e", "k"));
            dropped!(channel.qos(5));
            dropped!(channel.consume("q", "c", false, false, &table));
            dropped!(channel.cancel("c"));
            dropped!(channel.get("empty"));
            dropped!(channel.get("q"));
            dropped!(channel.confirm_select());
            dropped!(channel.purge("q"));
            dropped!(channel.delete("q"));
            dropped!(channel.ping());
            dropped!(channel.next());
            dropped!(connection.closed());
            dropped!(connection.changed(false));
        }
        // A dropped close closes, and its number is free again.
        abandon(channel.close()).await;
        for _ in 0..20 {
            let channel = connection.channel().await.expect("channel");
            channel.ping().await.expect("ping");
        }
        connection.close().await;
    });
}

/// RabbitMQ answers in another order otherwise, or crashes the channel.
#[test]
fn a_channel_sends_a_call_when_the_one_before_has_its_answer() {
    let script = |broker: &mut Broker| {
        let channel = broker.channel();
        let (_, consume) = broker.expect();
        assert!(matches!(consume, Method::BasicConsume { .. }));
        // An acknowledgement needs no answer, and does not wait.
        assert!(matches!(broker.expect().1, Method::BasicAck { tag: 1, .. }));
        broker.answer(channel, &consume);
        let early = Method::BasicCancel {
            tag: "a".into(),
            no_wait: true,
        };
        assert_eq!(
            broker.expect(),
            (channel, early),
            "when the consumer has begun"
        );
        let mut calls = 0;
        while let Some((channel, method)) = broker.method() {
            let more = broker.input.len();
            assert_eq!(more, 0, "{} and more at once", method.name());
            broker.answer(channel, &method);
            calls += 1;
        }
        assert_eq!(calls, 4);
    };
    session(script, async |connection| {
        let channel = connection.channel().await.expect("channel");
        let table = Table::new();
        abandon(channel.consume("q", "a", false, false, &table)).await;
        channel.cancel_nowait("a").expect("cancel");
        // It is dropped before it is sent.
        abandon(channel.purge("q")).await;
        channel.ack(1, false).expect("ack");
        let done = tokio::join!(
            channel.consume("q", "b", false, false, &table),
            channel.cancel("b"),
            channel.get("q"),
            channel.ping(),
        );
        assert_eq!((done.0, done.1, done.3), (Ok(()), Ok(()), Ok(())));
        assert!(done.2.expect("get").is_some());
        let failure = channel.consume("q", "", false, false, &table).await;
        assert_eq!(failure.expect_err("no tag").kind, FailureKind::Invalid);
    });
}

#[test]
fn a_publish_that_is_dropped_while_it_waits_has_published_nothing() {
    let (read, wait_to_read) = std::sync::mpsc::channel::<()>();
    let script = move |broker: &mut Broker| {
        let channel = broker.channel();
        wait_to_read.recv().expect("read");
        let mut bodies = Vec::new();
        let mut size = 0;
        while let Some((kind, _, payload)) = broker.frame() {
            match kind {
                Kind::Body => {
                    size += payload.len();
                    bodies.push(payload[0]);
                }
                Kind::Method => match Method::read(&mut Reader::new(&payload)).expect("method") {
                    Method::BasicPublish { .. } => {}
                    other => broker.answer(channel, &other),
                },
                Kind::Header | Kind::Heartbeat => {}
            }
        }
        assert_eq!(size, 40 << 20);
        assert!(!bodies.contains(&b'd'));
    };
    session(script, async |connection| {
        let channel = connection.channel().await.expect("channel");
        let large = message(vec![b'k'; 40 << 20]);
        assert_eq!(channel.publish(&large).await, Ok(0));
        abandon(channel.publish(&message("dropped"))).await;
        read.send(()).expect("send");
        channel.ping().await.expect("ping");
    });
}

#[test]
fn names_that_do_not_fit_are_not_sent() {
    let script = |broker: &mut Broker| {
        assert_eq!(answer_all(broker), []);
    };
    session(script, async |connection| {
        let channel = connection.channel().await.expect("channel");
        let long = "x".repeat(256);
        let failure = channel.declare_passive(&long).await.expect_err("too long");
        assert_eq!(failure.kind, FailureKind::Invalid);
        assert!(failure.is_channel_only());
        let mut large = message("x");
        large.properties.headers.push("h", "y".repeat(FRAME));
        let failure = channel.publish(&large).await.expect_err("too large");
        assert!(failure.text.contains("4096 bytes"), "{failure}");
        channel.confirm_select().await.expect("confirms");
        let failure = channel.publish(&large).await.expect_err("too large");
        assert_eq!(failure.kind, FailureKind::Invalid);
        channel.ping().await.expect("the channel is open");
    });
}

#[test]
fn a_channel_without_an_answer_can_be_closed() {
    let script = |broker: &mut Broker| {
        broker.channel();
        assert!(matches!(broker.expect().1, Method::ChannelFlow { .. }));
        let (channel, close) = broker.expect();
        assert!(matches!(close, Method::ChannelClose { .. }));
        broker.answer(channel, &close);
        assert_eq!(answer_all(broker), []);
    };
    session(script, async |connection| {
        let channel = connection.channel().await.expect("channel");
        for _ in 0..1000 {
            abandon(channel.ping()).await;
        }
        let same = channel.clone();
        let (waiting, ()) = tokio::join!(same.ping(), channel.close());
        assert_eq!(waiting.expect_err("closed").kind, FailureKind::Closed);
        let other = connection.channel().await.expect("channel");
        other.ping().await.expect("ping");
    });
}

#[test]
fn a_connection_has_as_many_channels_as_the_broker_allows() {
    let script = |broker: &mut Broker| {
        answer_all(broker);
    };
    session(script, async |connection| {
        let mut channels = Vec::new();
        for _ in 0..5 {
            channels.push(connection.channel().await.expect("channel"));
        }
        let failure = connection.channel().await.err().expect("one too many");
        assert_eq!(failure.kind, FailureKind::Full);
        channels.pop().expect("channel").close().await;
        connection.channel().await.expect("one is free");
    });
}

// Messages.

#[test]
fn messages_and_their_bodies_come_whole_and_in_order() {
    let large = vec![b'x'; 3 * FRAME];
    let wanted = large.clone();
    let (seen, all_seen) = oneshot::channel();
    let script = move |broker: &mut Broker| {
        let channel = broker.channel();
        broker.deliver(channel, 1, b"");
        // Byte by byte.
        let frames = content_frames(channel, &delivery(2), &Properties::default(), b"slow");
        for byte in frames {
            broker.raw(&[byte]);
        }
        broker.deliver(channel, 3, &large);
        let ack = Method::BasicAck {
            tag: 4,
            multiple: true,
        };
        broker.send(channel, &ack);
        let nack = Method::BasicNack { tag: 5, bits: 0 };
        broker.send(channel, &nack);
        let returned = Method::BasicReturn {
            code: 312,
            text: "NO_ROUTE".into(),
            exchange: String::new(),
            key: "q".into(),
        };
        broker.content(channel, &returned, &Properties::default(), b"back");
        let cancel = Method::BasicCancel {
            tag: "c".into(),
            no_wait: false,
        };
        broker.send(channel, &cancel);
        assert_eq!(
            broker.expect(),
            (channel, Method::BasicCancelOk { tag: "c".into() })
        );
        let flow = Method::ChannelFlow { active: true };
        broker.send(channel, &flow);
        assert_eq!(
            broker.expect(),
            (channel, Method::ChannelFlowOk { active: true })
        );
        seen.send(()).expect("send");
        broker.expect_end();
    };
    session(script, async |connection| {
        let channel = connection.channel().await.expect("channel");
        assert_eq!(body(channel.next().await), (1, Bytes::new()));
        assert_eq!(body(channel.next().await), (2, Bytes::from_static(b"slow")));
        assert_eq!(body(channel.next().await), (3, Bytes::from(wanted)));
        for (number, multiple, ok) in [(4, true, true), (5, false, false)] {
            let confirmed = Happening::Confirmed {
                number,
                multiple,
                ok,
            };
            assert_eq!(channel.next().await, confirmed);
        }
        match channel.next().await {
            Happening::Returned(returned) => {
                assert_eq!((returned.code, &returned.body[..]), (312, &b"back"[..]));
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(channel.next().await, Happening::Canceled("c".into()));
        abandon(channel.next()).await;
        all_seen.await.expect("the broker has seen the answers");
    });
}

#[test]
fn bodies_are_split_and_numbered() {
    let (seen, all_seen) = oneshot::channel();
    let script = |broker: &mut Broker| {
        let channel = broker.channel();
        let (_, confirm) = broker.expect();
        broker.answer(channel, &confirm);
        for size in [0, 10_000, 1] {
            let (_, publish) = broker.expect();
            let wanted = Method::BasicPublish {
                ticket: Ticket,
                exchange: String::new(),
                key: "q".into(),
                bits: bits::MANDATORY,
            };
            assert_eq!(publish, wanted);
            let (kind, _, header) = broker.frame().expect("header");
            assert_eq!(kind, Kind::Header);
            let head = properties::Head::read(&header).expect("head");
            assert_eq!(head.size, size);
            let mut left = size;
            while left > 0 {
                let (kind, _, piece) = broker.frame().expect("body");
                assert!(kind == Kind::Body && piece.len() + 8 <= FRAME);
                left -= u64::try_from(piece.len()).expect("size");
            }
        }
        seen.send(()).expect("send");
        broker.expect_end();
    };
    session(script, async |connection| {
        let channel = connection.channel().await.expect("channel");
        channel.confirm_select().await.expect("confirms");
        assert_eq!(channel.publish(&message("")).await, Ok(1));
        let large = message(vec![b'x'; 10_000]);
        assert_eq!(channel.publish(&large).await, Ok(2));
        assert_eq!(channel.publish(&message("x")).await, Ok(3));
        all_seen.await.expect("the broker has seen the bodies");
    });
}

/// Returns the payload of a header for a body of 1 byte, with `flags` and what follows.
fn header(flags: u16, rest: &[u8]) -> Vec<u8> {
    let size = 1_u64.to_be_bytes();
    [&[0, 60, 0, 0][..], &size, &flags.to_be_bytes(), rest].concat()
}

#[test]
fn headers_that_cannot_be_read_do_not_stop_a_message() {
    let deep = {
        let mut table = Table::new();
        table.push("leaf", true);
        for _ in 0..31 {
            table = Table::from([("t", Value::Table(table))]);
        }
        let mut bytes = Vec::new();
        wire::Field::put(&table, &mut bytes).expect("it fits");
        // Two more by hand.
        for _ in 0..2 {
            let inner = [b"\x01tF", &bytes[..]].concat();
            let size = u32::try_from(inner.len()).expect("size");
            bytes = [&size.to_be_bytes()[..], &inner].concat();
        }
        bytes
    };
    let id = 1 << 7;
    let headers = 1 << 13;
    let flawed = vec![
        (
            "too deep",
            header(headers | id, &[&deep[..], b"\x01i"].concat()),
            true,
        ),
        (
            "unknown type",
            header(headers | id, b"\0\0\0\x03\x01a?\x01i"),
            true,
        ),
        (
            "entry that is cut",
            header(headers | id, b"\0\0\0\x04\x01aS\0\x01i"),
            true,
        ),
        (
            "longer than the frame",
            header(headers | id, b"\xff\xff\xff\xff\x01i"),
            false,
        ),
        ("no UTF-8", header(id | 1 << 15, b"\x01\xff\x01i"), true),
        ("text that is cut", header(id, b"\x05i"), false),
        (
            "unknown properties",
            header(id | 1, b"\x80\0\x01i???"),
            true,
        ),
        ("endless flags", header(1, &[0xff; 20]), false),
    ];
    let script = {
        let flawed = flawed.clone();
        move |broker: &mut Broker| {
            let channel = broker.channel();
            for (_, payload, _) in &flawed {
                broker.send(channel, &delivery(1));
                let frames = [any_frame(2, channel, payload), any_frame(3, channel, b"b")];
                broker.raw(&frames.concat());
            }
            // A name of the method itself.
            let mut bytes = method_frame(channel, &delivery(1));
            let at = bytes.iter().rposition(|b| *b == b'q').expect("key");
            bytes[at] = 0xff;
            broker.raw(&bytes);
            let plain = [
                any_frame(2, channel, &header(0, b"")),
                any_frame(3, channel, b"b"),
            ];
            broker.raw(&plain.concat());
            // Binary headers are no flaw.
            let binary = b"\0\0\0\x07\x01bS\0\0\0\x02\xff\0";
            let size = u32::try_from(binary.len() - 4).expect("size").to_be_bytes();
            let binary = header(1 << 13, &[&size, &binary[4..]].concat());
            broker.send(channel, &delivery(2));
            broker.raw(&[any_frame(2, channel, &binary), any_frame(3, channel, b"b")].concat());
            broker.expect_end();
        }
    };
    session(script, async |connection| {
        let channel = connection.channel().await.expect("channel");
        let next = async || match channel.next().await {
            Happening::Delivery(delivery) => delivery,
            other => panic!("{other:?}"),
        };
        for (what, _, has_id) in &flawed {
            let delivery = next().await;
            assert_eq!(&delivery.body[..], b"b", "{what}");
            assert!(delivery.unreadable.is_some(), "{what}");
            let id = has_id.then(|| "i".to_owned());
            assert_eq!(delivery.properties.message_id, id, "{what}");
        }
        let delivery = next().await;
        assert_eq!(delivery.routing_key, "\u{fffd}");
        assert!(delivery.unreadable.is_some());
        let delivery = next().await;
        let value = delivery.properties.headers.get("b");
        assert_eq!(value, Some(&Value::Text(Bytes::from_static(b"\xff\0"))));
        assert_eq!(delivery.unreadable, None);
    });
}

#[test]
fn a_body_beyond_the_limit_is_skipped() {
    const PIECE: usize = 4000;
    let size = content::MAX_BODY + 1;
    let script = move |broker: &mut Broker| {
        let channel = broker.channel();
        broker.send(channel, &delivery(1));
        let mut head = header(0, b"");
        head[4..12].copy_from_slice(&size.to_be_bytes());
        broker.raw(&any_frame(2, channel, &head));
        let full = any_frame(3, channel, &[b'x'; PIECE]).repeat(100);
        let mut left = usize::try_from(size).expect("size");
        while left > 100 * PIECE {
            broker.raw(&full);
            left -= 100 * PIECE;
        }
        while left > 0 {
            let piece = left.min(PIECE);
            broker.raw(&any_frame(3, channel, &vec![b'x'; piece]));
            left -= piece;
        }
        broker.deliver(channel, 2, b"next");
        broker.expect_end();
    };
    session(script, async |connection| {
        let channel = connection.channel().await.expect("channel");
        match channel.next().await {
            Happening::Delivery(delivery) => {
                assert_eq!(delivery.oversized, Some(size));
                assert!(delivery.body.is_empty());
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(body(channel.next().await), (2, Bytes::from_static(b"next")));
    });
}

// Ends.

#[test]
fn a_channel_that_the_broker_closes_says_why_for_ever_and_sends_nothing() {
    let cases = [
        (404, FailureKind::Missing, 78),
        (406, FailureKind::Mismatch, 78),
        (403, FailureKind::Denied, 77),
        (405, FailureKind::Refused, 69),
    ];
    for (code, kind, exit) in cases {
        let script = move |broker: &mut Broker| {
            let channel = broker.channel();
            broker.deliver(channel, 1, b"before");
            let (_, call) = broker.expect();
            assert!(matches!(call, Method::QueueDeclare { .. }));
            let close = Method::ChannelClose {
                code,
                text: "NO\u{1b}".into(),
                class: 50,
                method: 10,
            };
            broker.send(channel, &close);
            assert_eq!(broker.expect(), (channel, Method::ChannelCloseOk {}));
            // The next is another channel, and nothing on this one.
            let (other, open) = broker.expect();
            assert!(
                other != channel && matches!(open, Method::ChannelOpen { .. }),
                "{open:?}"
            );
            broker.answer(other, &open);
            answer_all(broker);
        };
        session(script, async |connection| {
            let channel = connection.channel().await.expect("channel");
            // The second call waits for the answer to the first.
            let calls = (channel.declare_passive("q"), channel.ping());
            let (declared, pinged) = tokio::join!(calls.0, calls.1);
            let failure = declared.expect_err("refused");
            assert_eq!(pinged, Err(failure.clone()));
            assert_eq!((failure.kind, failure.code), (kind, Some(code)));
            assert_eq!(failure.text, "the broker refuses: NO\\u{1b}");
            assert!(failure.is_channel_only() && !failure.is_passing());
            assert_eq!(crate::error::Error::from(failure.clone()).exit_code(), exit);
            let same = Err::<(), _>(failure.clone());
            assert_eq!(channel.ack(1, false), same);
            assert_eq!(channel.nack(1, true), same);
            assert_eq!(channel.cancel_nowait("c"), same);
            assert_eq!(channel.ping().await, same);
            assert_eq!(channel.get("q").await.map(drop), same);
            assert_eq!(channel.publish(&message("x")).await.map(drop), same);
            assert_eq!(
                body(channel.next().await),
                (1, Bytes::from_static(b"before"))
            );
            for _ in 0..2 {
                assert_eq!(channel.next().await, Happening::Closed(failure.clone()));
            }
            let other = connection.channel().await.expect("the connection lives");
            other.ping().await.expect("ping");
        });
    }
}

#[test]
fn a_publisher_that_waits_learns_that_its_channel_is_closed() {
    let script = |broker: &mut Broker| {
        let channel = broker.channel();
        let close = Method::ChannelClose {
            code: 404,
            text: "no exchange".into(),
            class: 60,
            method: 40,
        };
        broker.send(channel, &close);
        while broker.frame().is_some() {}
    };
    session(script, async |connection| {
        let channel = connection.channel().await.expect("channel");
        loop {
            // Each waits for room, or fails.
            if let Err(failure) = channel.publish(&message(vec![0; 9 << 20])).await {
                assert_eq!(failure.code, Some(404));
                break;
            }
        }
    });
}

#[test]
fn a_connection_that_the_broker_closes_gives_everyone_the_same_reason() {
    for (code, kind) in [
        (320, FailureKind::Unreachable),
        (540, FailureKind::Refused),
        (541, FailureKind::Unreachable),
        (530, FailureKind::Denied),
    ] {
        let script = move |broker: &mut Broker| {
            broker.channel();
            broker.expect();
            let close = Method::ConnectionClose {
                code,
                text: "CLOSED".into(),
                class: 0,
                method: 0,
            };
            broker.send(0, &close);
            assert_eq!(broker.expect(), (0, Method::ConnectionCloseOk {}));
            broker.expect_end();
        };
        session(script, async |connection| {
            let channel = connection.channel().await.expect("channel");
            let failure = channel.ping().await.expect_err("closed");
            assert_eq!((failure.kind, failure.code), (kind, Some(code)));
            assert_eq!(failure.is_passing(), kind == FailureKind::Unreachable);
            assert!(!failure.is_channel_only());
            assert_eq!(connection.closed().await, failure);
            assert_eq!(channel.next().await, Happening::Closed(failure.clone()));
            assert_eq!(channel.ack(1, false), Err(failure.clone()));
            assert_eq!(connection.channel().await.err(), Some(failure));
            connection.close().await;
        });
    }
}

#[test]
fn a_connection_that_is_cut_fails() {
    session(
        |broker: &mut Broker| {
            broker.channel();
            broker.expect();
        },
        async |connection| {
            let channel = connection.channel().await.expect("channel");
            let failure = channel.ping().await.expect_err("cut");
            assert_eq!(failure.kind, FailureKind::Unreachable);
            assert_eq!(connection.closed().await, failure);
        },
    );
}

#[test]
fn a_broker_that_breaks_the_protocol_is_left() {
    let plain = header(0, b"");
    let over = [
        method_frame(1, &delivery(1)),
        any_frame(2, 1, &plain),
        any_frame(3, 1, b"two"),
    ];
    let within = [method_frame(1, &delivery(1)), method_frame(1, &delivery(2))];
    let twice = [
        method_frame(1, &delivery(1)),
        any_frame(2, 1, &plain),
        any_frame(2, 1, &plain),
    ];
    let early = [method_frame(1, &delivery(1)), any_frame(3, 1, b"b")];
    let cut_header = [method_frame(1, &delivery(1)), any_frame(2, 1, &plain[..8])];
    let got = Method::BasicGetOk {
        tag: 1,
        redelivered: false,
        exchange: String::new(),
        key: String::new(),
        messages: 0,
    };
    let mut no_end = method_frame(1, &delivery(1));
    *no_end.last_mut().expect("end") = 0;
    let cases = [
        ("unknown channel", method_frame(3, &delivery(1)), 504),
        ("content of nothing", any_frame(2, 1, &plain), 505),
        ("more body than announced", over.concat(), 501),
        ("method within a message", within.concat(), 505),
        ("second header", twice.concat(), 505),
        ("body before its header", early.concat(), 505),
        ("header without a size", cut_header.concat(), 501),
        ("frame that is too large", any_frame(3, 1, &[0; FRAME]), 501),
        ("unknown kind", any_frame(4, 1, b""), 501),
        ("no end", no_end, 501),
        ("unknown method", any_frame(1, 1, &[0, 99, 0, 99]), 501),
        (
            "method that is cut",
            any_frame(1, 1, &[0, 60, 0, 60, 9]),
            501,
        ),
        ("message without a call", method_frame(1, &got), 503),
        (
            "answer to nothing",
            method_frame(1, &Method::BasicQosOk {}),
            503,
        ),
        (
            "close-ok to nothing",
            method_frame(1, &Method::ChannelCloseOk {}),
            503,
        ),
        (
            "a client's method",
            method_frame(
                1,
                &Method::BasicQos {
                    size: 0,
                    count: 0,
                    global: false,
                },
            ),
            503,
        ),
        ("content on channel 0", any_frame(2, 0, &plain), 505),
        (
            "call on channel 0",
            method_frame(0, &Method::BasicQosOk {}),
            503,
        ),
        (
            "close-ok of nothing",
            method_frame(0, &Method::ConnectionCloseOk {}),
            503,
        ),
    ];
    for (what, bytes, code) in cases {
        let (seen, all_seen) = oneshot::channel();
        let script = move |broker: &mut Broker| {
            broker.channel();
            broker.raw(&bytes);
            broker.expect_close(code);
            seen.send(()).expect("send");
        };
        session(script, async |connection| {
            let channel = connection.channel().await.expect("channel");
            let failure = connection.closed().await;
            assert_eq!(failure.kind, FailureKind::Unreachable, "{what}");
            assert!(
                failure.text.contains("breaks the protocol"),
                "{what}: {failure}"
            );
            assert_eq!(channel.next().await, Happening::Closed(failure), "{what}");
            all_seen.await.expect("the goodbye needs a handle");
        });
    }
}

#[test]
fn wrong_answers_break_the_protocol() {
    let (seen, all_seen) = oneshot::channel();
    let script = |broker: &mut Broker| {
        let channel = broker.channel();
        broker.expect();
        broker.send(channel, &Method::QueueBindOk {});
        broker.expect_close(503);
        seen.send(()).expect("send");
    };
    session(script, async |connection| {
        let channel = connection.channel().await.expect("channel");
        let failure = channel.qos(1).await.expect_err("no answer");
        assert_eq!(failure.kind, FailureKind::Unreachable);
        all_seen.await.expect("the goodbye needs a handle");
    });
}

#[test]
fn both_sides_may_close_a_channel_at_once() {
    let script = |broker: &mut Broker| {
        let channel = broker.channel();
        // It crosses the client's.
        assert!(matches!(broker.expect(), (1, Method::ChannelClose { .. })));
        broker.deliver(channel, 1, b"late");
        broker.send(channel, &Method::BasicQosOk {});
        let close = Method::ChannelClose {
            code: 406,
            text: "late".into(),
            class: 0,
            method: 0,
        };
        broker.send(channel, &close);
        assert_eq!(broker.expect(), (channel, Method::ChannelCloseOk {}));
        broker.send(channel, &Method::ChannelCloseOk {});
        assert_eq!(broker.channel(), channel, "its number is free");
        answer_all(broker);
    };
    session(script, async |connection| {
        let channel = connection.channel().await.expect("channel");
        let same = channel.clone();
        channel.close().await;
        let failure = same.ping().await.expect_err("closed");
        assert_eq!(failure.kind, FailureKind::Closed);
        assert_eq!(same.next().await, Happening::Closed(failure));
        drop(same);
        let channel = connection.channel().await.expect("channel");
        channel.ping().await.expect("ping");
    });
}

#[test]
fn the_last_handle_ends_the_connection_at_once() {
    let (seen, all_seen) = oneshot::channel();
    let script = |broker: &mut Broker| {
        let channel = broker.channel();
        let call = broker.expect();
        assert!(matches!(call, (1, Method::ChannelFlow { .. })));
        broker.answer(channel, &call.1);
        while broker.method().is_some() {}
        seen.send(()).expect("send");
    };
    session(script, async |connection| {
        let channel = connection.channel().await.expect("channel");
        drop(connection);
        channel.ping().await.expect("a channel keeps it alive");
        drop(channel);
        all_seen.await.expect("the broker has seen the end");
    });
}

#[test]
fn a_close_is_orderly_and_has_a_limit() {
    for answers in [true, false] {
        let script = move |broker: &mut Broker| {
            broker.channel();
            let close = broker.expect();
            assert!(matches!(
                close,
                (0, Method::ConnectionClose { code: 200, .. })
            ));
            match answers {
                true => broker.send(0, &Method::ConnectionCloseOk {}),
                false => beat_until(broker, || false),
            }
            broker.expect_end();
        };
        session(script, async |connection| {
            let channel = connection.channel().await.expect("channel");
            let before = Instant::now();
            connection.close().await;
            let took = before.elapsed();
            match answers {
                true => assert!(took < CLOSE_TIMEOUT, "{took:?}"),
                false => assert!(took >= CLOSE_TIMEOUT, "{took:?}"),
            }
            let failure = channel.ping().await.expect_err("closed");
            assert_eq!(failure.kind, FailureKind::Closed);
        });
    }
}

// Time.

#[test]
fn a_silent_broker_is_given_up() {
    let script = |broker: &mut Broker| {
        broker.channel();
        while broker.frame().is_some() {}
    };
    session(script, async |connection| {
        let channel = connection.channel().await.expect("channel");
        let before = Instant::now();
        let failure = channel.ping().await.expect_err("silence");
        assert_eq!(failure.kind, FailureKind::Unreachable);
        assert!(failure.text.contains("silent for 2s"), "{failure}");
        assert!(before.elapsed() < Duration::from_secs(10));
    });
}

#[test]
fn heartbeats_keep_an_idle_connection_alive() {
    let script = |broker: &mut Broker| {
        let channel = broker.channel();
        let mut beats = 0;
        while beats < 8 {
            let (kind, _, _) = broker.frame().expect("the client ends it");
            assert_eq!(kind, Kind::Heartbeat);
            beats += 1;
            broker.raw(&frame::HEARTBEAT);
        }
        broker.deliver(channel, 1, b"alive");
        while broker.frame().is_some() {}
    };
    session(script, async |connection| {
        let channel = connection.channel().await.expect("channel");
        let before = Instant::now();
        assert_eq!(
            body(channel.next().await),
            (1, Bytes::from_static(b"alive"))
        );
        // Twice an interval, so that the broker's own limit is never near.
        let took = before.elapsed();
        assert!(took > Duration::from_secs(3), "{took:?}");
    });
}

/// Sends heartbeats, and reads nothing, until `done`.
fn beat_until(broker: &mut Broker, done: impl Fn() -> bool) {
    while !done() && broker.stream.write_all(&frame::HEARTBEAT).is_ok() {
        thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn a_broker_that_takes_nothing_is_given_up() {
    let (ended, wait_to_end) = std::sync::mpsc::channel::<()>();
    let script = move |broker: &mut Broker| {
        broker.channel();
        beat_until(broker, || wait_to_end.try_recv().is_ok());
    };
    session(script, async |connection| {
        let channel = connection.channel().await.expect("channel");
        let failure = loop {
            if let Err(failure) = channel.publish(&message(vec![0; 1 << 20])).await {
                break failure;
            }
        };
        assert_eq!(failure.kind, FailureKind::Unreachable);
        assert!(failure.text.contains("takes nothing for 2s"), "{failure}");
        ended.send(()).expect("send");
    });
}

#[test]
fn acknowledgements_that_the_broker_does_not_take_are_limited() {
    let (ended, wait_to_end) = std::sync::mpsc::channel::<()>();
    let script = move |broker: &mut Broker| {
        broker.channel();
        beat_until(broker, || wait_to_end.try_recv().is_ok());
    };
    session(script, async |connection| {
        let channel = connection.channel().await.expect("channel");
        // They fill the output while the task has no turn.
        let failure = loop {
            if let Err(failure) = channel.ack(1, false) {
                break failure;
            }
        };
        assert_eq!(failure.kind, FailureKind::Unreachable);
        assert_eq!(connection.closed().await, failure);
        ended.send(()).expect("send");
    });
}

#[test]
fn a_broker_that_blocks_publishers_is_waited_for() {
    let (waited, wait_to_read) = std::sync::mpsc::channel::<()>();
    let script = move |broker: &mut Broker| {
        broker.channel();
        let reason = "low on\nmemory".to_owned();
        broker.send(0, &Method::ConnectionBlocked { reason });
        beat_until(broker, || wait_to_read.try_recv().is_ok());
        broker.send(0, &Method::ConnectionUnblocked {});
        while broker.frame().is_some() {}
    };
    session(script, async |connection| {
        let channel = connection.channel().await.expect("channel");
        let reason = Some("low on\\nmemory".to_owned());
        assert_eq!(connection.changed(false).await, reason);
        assert_eq!(connection.blocked(), reason);
        let publish = async {
            for _ in 0..64 {
                let large = message(vec![0; 1 << 20]);
                channel.publish(&large).await.expect("publish");
            }
        };
        let unblock = async {
            // Longer than a broker is waited for that has not said so.
            tokio::time::sleep(Duration::from_secs(4)).await;
            waited.send(()).expect("send");
            assert_eq!(connection.changed(true).await, None);
        };
        tokio::join!(publish, unblock);
    });
}

#[test]
fn a_slow_user_stops_the_reading_and_nothing_else() {
    const BODY: usize = 1 << 20;
    const COUNT: u64 = 160;
    let (told, tell) = std::sync::mpsc::channel::<usize>();
    let script = move |broker: &mut Broker| {
        let channel = broker.channel();
        let payload = vec![b'x'; BODY];
        let mut reader = Broker {
            stream: broker.stream.try_clone().expect("clone"),
            input: Vec::new(),
        };
        let beats = thread::spawn(move || {
            let mut beats = 0;
            while let Some((kind, _, _)) = reader.frame() {
                beats += usize::from(kind == Kind::Heartbeat);
            }
            told.send(beats).expect("send");
        });
        for tag in 1..=COUNT {
            broker.deliver(channel, tag, &payload);
        }
        beats.join().expect("heartbeats");
    };
    session(script, async |connection| {
        let channel = connection.channel().await.expect("channel");
        tokio::time::sleep(Duration::from_secs(4)).await;
        let held = connection.held();
        assert!((64 << 20..68 << 20).contains(&held), "{held}");
        for tag in 1..=COUNT {
            assert_eq!(body(channel.next().await).0, tag);
        }
        assert_eq!(connection.held(), 0);
    });
    let beats = tell.recv_timeout(PATIENCE).expect("heartbeats");
    assert!(beats >= 4, "{beats} heartbeats in 4 s");
}

#[test]
fn a_call_of_a_slow_user_has_its_answer() {
    const BODY: usize = 1 << 20;
    const COUNT: u64 = 100;
    let script = move |broker: &mut Broker| {
        let channel = broker.channel();
        let payload = vec![b'x'; BODY];
        for tag in 1..=COUNT {
            broker.deliver(channel, tag, &payload);
        }
        answer_all(broker);
    };
    session(script, async |connection| {
        let channel = connection.channel().await.expect("channel");
        while connection.held() < 64 << 20 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        // Its answer is behind the deliveries that are not read.
        channel.cancel("c").await.expect("cancel");
        for tag in 1..=COUNT {
            assert_eq!(body(channel.next().await).0, tag);
        }
    });
}

#[test]
fn a_channel_that_is_dropped_frees_what_waits_for_it() {
    let script = |broker: &mut Broker| {
        let channel = broker.channel();
        broker.deliver(channel, 1, &[b'x'; 100_000]);
        answer_all(broker);
    };
    session(script, async |connection| {
        let channel = connection.channel().await.expect("channel");
        while connection.held() < 100_000 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        drop(channel);
        assert_eq!(connection.held(), 0);
        let channel = connection.channel().await.expect("channel");
        channel.ping().await.expect("ping");
    });
}
