//! A session in this process, without a client, and a broker that the test plays.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

use crate::common::PATIENCE;
use crate::common::raw::{Raw, Scripted, packet, publish};
use crate::session::{answer, grant, next, subscribe, unsubscribe};
use tael::error::Error;
use tael::model::message::{Message, Properties, Qos};
use tael::model::topic::Filter;
use tael::net::mqtt::{Refuser, Settings, Token};
use tael::net::options::{BrokerOptions, KEEP_ALIVE};
use tael::net::session::{Event, Session, SessionAck, SessionReceived, Subscriptions};

/// An order of a test to the session.
enum Order {
    Subscribe(Subscriptions),
    Acknowledge(SessionAck),
    Publish(Message),
    Leave,
    Close,
}

/// A report of the session to the test.
#[derive(Debug)]
enum Seen {
    Event(Event),
    /// The answer to a publish: its token, if it was taken.
    Taken(Option<Token>),
    /// The session has ended with an error.
    Failed(Error),
    /// It has said goodbye.
    Closed,
}

/// A session that runs in a thread of its own.
struct Driver {
    orders: UnboundedSender<Order>,
    seen: mpsc::Receiver<Seen>,
}

impl Driver {
    /// A session that requires `filters`, and would like to have `lab/control`.
    fn start(broker: &Scripted, filters: &[&str]) -> Self {
        let settings = Settings {
            broker: BrokerOptions {
                host: "127.0.0.1".into(),
                port: broker.port(),
                others: Vec::new(),
                tls: None,
                username: None,
                password: None,
                client_id: "driver".into(),
                keep_alive: KEEP_ALIVE,
            },
            session_expiry: Duration::from_secs(60),
            clean_start: false,
            will: None,
            max_packet: 1 << 20,
            receive_maximum: 100,
        };
        let wanted = subscriptions(filters);
        let (orders, mut requests) = unbounded_channel();
        let (tell, seen) = mpsc::channel();
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("runtime");
            runtime.block_on(async {
                let mut session = Session::new(settings, wanted);
                // A test that has ended does not listen.
                loop {
                    tokio::select! {
                        order = requests.recv() => match order {
                            None => return,
                            Some(Order::Subscribe(wanted)) => {
                                session.subscribe(wanted);
                            }
                            Some(Order::Acknowledge(ack)) => {
                                session.acknowledge(&ack);
                            }
                            Some(Order::Publish(message)) => {
                                let _ = tell.send(Seen::Taken(session.publish(message)));
                            }
                            Some(Order::Leave) => session.leave(),
                            Some(Order::Close) => {
                                session.close().await;
                                let _ = tell.send(Seen::Closed);
                                return;
                            }
                        },
                        event = session.next() => match event {
                            Ok(event) => {
                                let _ = tell.send(Seen::Event(event));
                            }
                            Err(e) => {
                                let _ = tell.send(Seen::Failed(e));
                                return;
                            }
                        },
                    }
                }
            });
        });
        Self { orders, seen }
    }

    fn order(&self, order: Order) {
        self.orders.send(order).expect("the session runs");
    }

    fn subscribe(&self, filters: &[&str]) {
        self.order(Order::Subscribe(subscriptions(filters)));
    }

    /// Returns its next report, except what the broker holds.
    #[track_caller]
    fn next(&self) -> Seen {
        loop {
            match self
                .seen
                .recv_timeout(PATIENCE)
                .expect("it tells something")
            {
                Seen::Event(Event::Holds(_)) => {}
                other => return other,
            }
        }
    }

    #[track_caller]
    fn online(&self) {
        let seen = self.next();
        assert!(matches!(seen, Seen::Event(Event::Online)), "{seen:?}");
    }

    #[track_caller]
    fn offline(&self) {
        let seen = self.next();
        assert!(matches!(seen, Seen::Event(Event::Offline)), "{seen:?}");
    }

    #[track_caller]
    fn received(&self) -> SessionReceived {
        match self.next() {
            Seen::Event(Event::Received(received)) => received,
            other => panic!("{other:?}"),
        }
    }

    /// Returns the result of a change of the subscriptions.
    #[track_caller]
    fn changed(&self) -> Result<(), String> {
        match self.next() {
            Seen::Event(Event::Subscribed(result)) => result.map_err(|e| e.to_string()),
            other => panic!("{other:?}"),
        }
    }
}

fn subscriptions(filters: &[&str]) -> Subscriptions {
    let filter = |text: &&str| Filter::new(*text).expect("filter");
    Subscriptions {
        required: filters.iter().map(filter).collect(),
        optional: vec![filter(&"lab/control")],
        qos: Qos::AtLeastOnce,
    }
}

fn message(bytes: usize) -> Message {
    Message {
        topic: "lab/status".into(),
        payload: Bytes::from(vec![b'x'; bytes]),
        qos: Qos::AtLeastOnce,
        retain: false,
        properties: Properties::default(),
    }
}

fn send(raw: &mut Raw, topic: &str, id: u16) {
    raw.send(&publish(topic.as_bytes(), b"{}", Some(id), &[], false));
}

/// Waits for an acknowledgement, and returns its packet identifier.
#[track_caller]
fn acknowledged(raw: &mut Raw) -> u16 {
    let (kind, body) = raw.receive();
    assert_eq!(kind, 0x40, "PUBACK");
    u16::from_be_bytes([body[0], body[1]])
}

#[test]
fn a_subscribe_holds_few_filters() {
    let broker = Scripted::listen();
    let topics: Vec<String> = (0..30).map(|n| format!("lab/{n}")).collect();
    let topics: Vec<&str> = topics.iter().map(String::as_str).collect();
    let driver = Driver::start(&broker, &topics);
    let (mut raw, _) = broker.greet(false, &[]);
    let mut asked = Vec::new();
    while asked.len() < 31 {
        let filters = grant(&mut raw);
        assert!(filters.len() <= 8, "{filters:?}");
        asked.extend(filters);
    }
    driver.online();
    asked.sort();
    asked.dedup();
    assert_eq!(asked.len(), 31);
}

#[test]
fn a_broker_without_subscription_identifiers_gets_none() {
    let broker = Scripted::listen();
    let driver = Driver::start(&broker, &["lab/+/status", "lab/seq/+"]);
    // Subscription Identifiers Available: 0 (MQTT 5.0, section 3.2.2.3.12).
    let (mut raw, _) = broker.greet(false, &[0x29, 0]);
    let mut filters = Vec::new();
    while filters.len() < 3 {
        let (body, asked) = subscribe(&mut raw);
        assert_eq!(body[2], 0, "no properties");
        answer(&mut raw, 0x90, &body, &vec![1; asked.len()]);
        filters.extend(asked);
    }
    driver.online();
    // Copies cannot be distinguished from separate messages.
    for id in [1, 2] {
        send(&mut raw, "lab/seq/status", id);
        assert_eq!(driver.received().delivery.packet, id);
    }
}

#[test]
fn a_filter_that_is_refused_after_two_reloads_is_the_one_that_is_named() {
    let broker = Scripted::listen();
    let driver = Driver::start(&broker, &["lab/one"]);
    let (mut raw, _) = broker.greet(false, &[]);
    grant(&mut raw);
    driver.online();
    let mut asked = Vec::new();
    for topics in [
        &["lab/one", "lab/two"][..],
        &["lab/one", "lab/two", "lab/three"],
    ] {
        driver.subscribe(topics);
        asked.push(subscribe(&mut raw));
    }
    assert_eq!(asked[0].1, ["lab/two"]);
    assert_eq!(asked[1].1, ["lab/three"]);
    answer(&mut raw, 0x90, &asked[0].0, &[0x87]);
    answer(&mut raw, 0x90, &asked[1].0, &[1]);
    let refused = driver.changed().expect_err("refused");
    assert!(refused.contains("'lab/two'"), "{refused}");
    assert!(!refused.contains("lab/three"), "{refused}");
    // No more is reported about it.
    send(&mut raw, "lab/three", 1);
    assert_eq!(driver.received().delivery.topic, "lab/three");
}

#[test]
fn a_reload_asks_again_for_what_was_refused() {
    let broker = Scripted::listen();
    let driver = Driver::start(&broker, &["lab/one"]);
    let (mut raw, _) = broker.greet(false, &[]);
    grant(&mut raw);
    driver.online();
    // Then the operator allows it at the broker, and reloads the client.
    for code in [0x87, 1] {
        driver.subscribe(&["lab/one", "lab/two"]);
        let (body, filters) = subscribe(&mut raw);
        assert_eq!(filters, ["lab/two"]);
        answer(&mut raw, 0x90, &body, &[code]);
        assert_eq!(driver.changed().is_ok(), code == 1);
    }
}

#[test]
fn acknowledgements_go_in_order_and_on_their_own_connection() {
    let broker = Scripted::listen();
    let driver = Driver::start(&broker, &["lab/one"]);
    let (mut raw, _) = broker.greet(false, &[]);
    grant(&mut raw);
    driver.online();
    for id in 1..=4 {
        send(&mut raw, "lab/one", id);
    }
    let acks: Vec<_> = (1..=4).map(|_| driver.received().ack).collect();
    for n in [2, 0, 1] {
        driver.order(Order::Acknowledge(acks[n].clone()));
    }
    let order: Vec<_> = (0..3).map(|_| acknowledged(&mut raw)).collect();
    assert_eq!(order, [1, 2, 3]);
    drop(raw);
    driver.offline();
    let (mut raw, _) = broker.greet(true, &[]);
    grant(&mut raw);
    driver.online();
    // The last acknowledgement is void: the broker delivers the message again.
    driver.order(Order::Acknowledge(acks[3].clone()));
    driver.order(Order::Publish(message(1)));
    assert_eq!(next_of_any_kind(&mut raw) >> 4, 3, "no PUBACK before it");
    send(&mut raw, "lab/one", 9);
    let Seen::Taken(Some(_)) = driver.next() else {
        panic!("it is online");
    };
    let again = driver.received();
    driver.order(Order::Acknowledge(again.ack));
    assert_eq!(acknowledged(&mut raw), 9);
}

/// Returns the kind of the next packet, without PINGREQ.
fn next_of_any_kind(raw: &mut Raw) -> u8 {
    loop {
        match raw.receive().0 {
            0xc0 => raw.send(&packet(0xd0, &[])),
            kind => return kind,
        }
    }
}

#[test]
fn a_publish_is_taken_online_only_and_refused_here_if_it_is_too_large() {
    let broker = Scripted::listen();
    let driver = Driver::start(&broker, &["lab/one"]);
    driver.order(Order::Publish(message(1)));
    assert!(matches!(driver.next(), Seen::Taken(None)), "not connected");
    // Maximum Packet Size: 200 (MQTT 5.0, section 3.2.2.3.6).
    let (mut raw, _) = broker.greet(false, &[0x27, 0, 0, 0, 200]);
    grant(&mut raw);
    driver.online();
    driver.order(Order::Publish(message(1000)));
    let Seen::Taken(Some(large)) = driver.next() else {
        panic!("online");
    };
    match driver.next() {
        Seen::Event(Event::Published(token, Err(refused))) => {
            assert_eq!((token, refused.1), (large, Refuser::Local));
        }
        other => panic!("{other:?}"),
    }
    driver.order(Order::Publish(message(10)));
    let Seen::Taken(Some(small)) = driver.next() else {
        panic!("online");
    };
    let (kind, body) = next(&mut raw);
    assert_eq!(kind >> 4, 3, "PUBLISH");
    let topic = usize::from(u16::from_be_bytes([body[0], body[1]]));
    raw.send(&packet(0x40, &body[2 + topic..4 + topic]));
    match driver.next() {
        Seen::Event(Event::Published(token, Ok(_))) => assert_eq!(token, small),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_session_that_leaves_takes_what_the_broker_still_has() {
    let broker = Scripted::listen();
    let driver = Driver::start(&broker, &["lab/one"]);
    let (mut raw, _) = broker.greet(false, &[]);
    grant(&mut raw);
    driver.online();
    driver.order(Order::Leave);
    // It unsubscribes from each filter. A message comes before the answers.
    let asked: Vec<_> = (0..2).map(|_| next(&mut raw)).collect();
    send(&mut raw, "lab/one", 1);
    for (kind, body) in asked {
        assert_eq!(kind, 0xa2, "UNSUBSCRIBE");
        answer(&mut raw, 0xb0, &body, &[0]);
    }
    let last = driver.received();
    driver.order(Order::Acknowledge(last.ack));
    assert_eq!(acknowledged(&mut raw), 1);
    // It unsubscribes once more: the answer comes after the last message.
    unsubscribe(&mut raw);
    let seen = driver.next();
    assert!(matches!(seen, Seen::Event(Event::Left)), "{seen:?}");
    driver.order(Order::Close);
    assert_eq!(next(&mut raw).0, 0xe0, "DISCONNECT");
    assert!(matches!(driver.next(), Seen::Closed));
}

#[test]
fn a_refusal_ends_a_session_that_was_never_online() {
    let broker = Scripted::listen();
    let driver = Driver::start(&broker, &["lab/one"]);
    // Not authorized (MQTT 5.0, section 3.2.2.2).
    let _refused = broker.answer_with(0x87, &[]);
    match driver.next() {
        Seen::Failed(e) => assert_eq!(e.exit_code(), 77, "{e}"),
        other => panic!("{other:?}"),
    }
}
