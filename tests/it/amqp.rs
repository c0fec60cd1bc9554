//! The AMQP client against a real RabbitMQ.

use std::time::{Duration, Instant};

use bytes::Bytes;
use tael::net::amqp::{
    AmqpOptions, Channel, Connection, Declare, Failure, FailureKind, Happening, PERSISTENT,
    Properties, Publish, Table, Value,
};
use tael::net::options::TlsFiles;
use tael::net::password::{Password, Secret};

use crate::common::proxy::Proxy;
use crate::common::rabbit::{Rabbit, Vhost};
use crate::common::{PATIENCE, wait_until};

/// Number of messages in a load.
const MESSAGES: u64 = 2000;

/// Maximum number of messages without a confirm.
const WINDOW: u64 = 200;

fn options(vhost: &Vhost<'_>) -> AmqpOptions {
    AmqpOptions {
        username: Some("tael".into()),
        password: Some(Password::Text(Secret::new(vhost.rabbit.password()))),
        vhost: vhost.name.clone(),
        name: "test@here".into(),
        ..AmqpOptions::new("127.0.0.1", vhost.rabbit.port())
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

async fn open(vhost: &Vhost<'_>) -> Connection {
    Connection::open(&options(vhost)).await.expect("open")
}

fn message(queue: &str, body: impl Into<Bytes>) -> Publish {
    Publish {
        routing_key: queue.into(),
        mandatory: true,
        properties: Properties {
            delivery_mode: Some(PERSISTENT),
            ..Properties::default()
        },
        body: body.into(),
        ..Publish::default()
    }
}

fn durable(kind: &str) -> Declare {
    Declare {
        durable: true,
        arguments: Table::from([("x-queue-type", kind.into())]),
        ..Declare::default()
    }
}

/// Publishes messages that contain their number, and waits until all are confirmed.
async fn load(channel: &Channel, queue: &str, count: u64) -> Result<(), Failure> {
    channel.confirm_select().await?;
    let (mut sent, mut confirmed) = (0, 0);
    while confirmed < count {
        while sent < count && sent - confirmed < WINDOW {
            sent = channel.publish(&message(queue, sent.to_string())).await?;
        }
        match channel.next().await {
            Happening::Confirmed {
                number,
                multiple: true,
                ok: true,
            } => confirmed = number,
            Happening::Confirmed { ok: true, .. } => confirmed += 1,
            Happening::Closed(failure) => return Err(failure),
            other => panic!("{other:?}"),
        }
    }
    Ok(())
}

#[test]
fn thousands_of_messages_are_confirmed_delivered_and_acknowledged() {
    let Some(rabbit) = Rabbit::shared() else {
        return;
    };
    let vhost = rabbit.vhost();
    for kind in ["quorum", "classic"] {
        wait(async {
            let connection = open(&vhost).await;
            assert_eq!(connection.server().product, "RabbitMQ");
            assert!(connection.server().release().is_some());
            assert!(connection.server().can("basic.nack"));
            let channel = connection.channel().await.expect("channel");
            let (name, _) = channel
                .declare(kind, &durable(kind))
                .await
                .expect("declare");
            assert_eq!(name, kind);
            load(&channel, kind, MESSAGES).await.expect("confirms");
            let figures = channel.declare_passive(kind).await.expect("figures");
            assert_eq!(u64::from(figures.messages), MESSAGES);
            channel.qos(50).await.expect("qos");
            let week = Table::from([("x-consumer-timeout", Value::I64(604_800_000))]);
            channel
                .consume(kind, "worker", false, false, &week)
                .await
                .expect("consume");
            for number in 0..MESSAGES {
                match channel.next().await {
                    Happening::Delivery(delivery) => {
                        assert_eq!(&delivery.body[..], number.to_string().as_bytes());
                        assert!(!delivery.redelivered && delivery.unreadable.is_none());
                        channel.ack(delivery.tag, false).expect("ack");
                    }
                    other => panic!("{other:?}"),
                }
            }
            channel.ping().await.expect("the broker has the last ack");
            channel.cancel("worker").await.expect("cancel");
            channel.close().await;
            connection.close().await;
        });
        vhost.wait_counts(kind, 0, 0);
    }
    wait_until("the broker shows the name of the connection", || {
        rabbit.log().contains("test@here")
    });
}

#[test]
fn what_the_broker_refuses_says_why() {
    let Some(rabbit) = Rabbit::shared() else {
        return;
    };
    let vhost = rabbit.vhost();
    vhost.declare("q");
    vhost.declare("theirs");
    let user = vhost.user(["", "q", "q"]);
    wait(async {
        let connection = open(&vhost).await;
        let refused = async |kind, code, word: &str, call: AsyncCall| {
            let channel = connection.channel().await.expect("channel");
            let failure = call(channel.clone()).await.expect_err("refused");
            assert_eq!(
                (failure.kind, failure.code),
                (kind, Some(code)),
                "{failure}"
            );
            assert!(
                failure.text.contains(word) && failure.is_channel_only(),
                "{failure}"
            );
            assert_eq!(channel.ack(1, false), Err(failure));
        };
        refused(FailureKind::Missing, 404, "no queue 'x'", |channel| {
            Box::pin(async move { channel.declare_passive("x").await.map(drop) })
        })
        .await;
        refused(FailureKind::Mismatch, 406, "x-queue-type", |channel| {
            Box::pin(async move { channel.declare("q", &durable("quorum")).await.map(drop) })
        })
        .await;
        refused(
            FailureKind::Mismatch,
            406,
            "unknown delivery tag",
            |channel| {
                Box::pin(async move {
                    channel.ack(7, false).expect("it is queued");
                    channel.ping().await
                })
            },
        )
        .await;
        // The connection has survived all that.
        let channel = connection.channel().await.expect("channel");
        channel.declare_passive("q").await.expect("declare");

        let limited = AmqpOptions {
            username: Some(user),
            ..options(&vhost)
        };
        let connection = Connection::open(&limited).await.expect("open");
        let channel = connection.channel().await.expect("channel");
        channel.get("q").await.expect("permitted");
        let failure = channel.get("theirs").await.expect_err("not permitted");
        assert_eq!(
            (failure.kind, failure.code),
            (FailureKind::Denied, Some(403))
        );

        let wrong = AmqpOptions {
            password: Some(Password::Text(Secret::new("wrong"))),
            ..options(&vhost)
        };
        let missing = AmqpOptions {
            vhost: "missing".into(),
            ..options(&vhost)
        };
        for (options, code) in [(wrong, 403), (missing, 530)] {
            let failure = Connection::open(&options).await.err().expect("refused");
            assert_eq!(
                (failure.kind, failure.code),
                (FailureKind::Denied, Some(code))
            );
            assert!(!failure.is_passing());
        }
    });
}

/// A call on a channel.
type AsyncCall =
    fn(Channel) -> std::pin::Pin<Box<dyn Future<Output = Result<(), Failure>> + 'static>>;

#[test]
fn messages_come_back_that_no_queue_takes_and_that_no_caller_takes() {
    let Some(rabbit) = Rabbit::shared() else {
        return;
    };
    let vhost = rabbit.vhost();
    vhost.declare_quorum("q");
    wait(async {
        let connection = open(&vhost).await;
        let channel = connection.channel().await.expect("channel");
        channel.confirm_select().await.expect("confirms");
        channel
            .publish(&message("nowhere", "lost"))
            .await
            .expect("publish");
        match channel.next().await {
            Happening::Returned(returned) => {
                assert_eq!((returned.code, &returned.body[..]), (312, &b"lost"[..]));
            }
            other => panic!("{other:?}"),
        }
        let confirmed = channel.next().await;
        assert!(matches!(
            confirmed,
            Happening::Confirmed {
                number: 1,
                ok: true,
                ..
            }
        ));

        // It is delivered again and again if it cannot be read, in clients that need text.
        let mut poison = message("q", vec![0xff; 300_000]);
        poison.properties.headers = Table::from([
            ("binary", Value::Text(Bytes::from_static(b"\xff\xfe\0"))),
            ("bytes", Value::Binary(Bytes::from_static(b"\0"))),
            (
                "list",
                Value::Array(vec![Value::Void, 1_i64.into(), true.into()]),
            ),
        ]);
        poison.properties.message_id = Some("id".into());
        channel.publish(&poison).await.expect("publish");
        assert!(matches!(
            channel.next().await,
            Happening::Confirmed { ok: true, .. }
        ));
        {
            let mut get = Box::pin(channel.get("q"));
            tokio::select! {
                biased;
                _ = &mut get => panic!("it does not wait"),
                () = std::future::ready(()) => {}
            }
            // Its answer has come when that of the next call has.
            channel.ping().await.expect("ping");
        }
        let delivery = loop {
            // It is on its way back.
            if let Some(delivery) = channel.get("q").await.expect("get") {
                break delivery;
            }
        };
        assert!(delivery.redelivered);
        assert_eq!(delivery.unreadable, None);
        assert_eq!(delivery.body, poison.body);
        assert_eq!(delivery.properties.message_id.as_deref(), Some("id"));
        for (name, value) in poison.properties.headers.iter() {
            assert_eq!(
                delivery.properties.headers.get(&name),
                Some(value),
                "{name}"
            );
        }
        channel.nack(delivery.tag, false).expect("nack");
        channel.ping().await.expect("ping");
        assert_eq!(channel.get("q").await, Ok(None));

        channel
            .consume("q", "c", false, true, &Table::new())
            .await
            .expect("consume");
        let other = connection.channel().await.expect("channel");
        other.delete("q").await.expect("delete");
        assert_eq!(channel.next().await, Happening::Canceled("c".into()));
    });
}

/// Makes a call of some kind, which may be dropped at any moment.
async fn any_call(
    connection: &Connection,
    channel: &Channel,
    number: usize,
) -> Result<(), Failure> {
    match number % 9 {
        0 => channel.declare_passive("q").await.map(drop),
        1 => channel.declare("q", &durable("classic")).await.map(drop),
        2 => channel.qos(5).await,
        3 => match channel.get("q").await? {
            Some(delivery) => channel.nack(delivery.tag, true),
            None => Ok(()),
        },
        4 => {
            let tag = number.to_string();
            channel
                .consume("q", &tag, false, false, &Table::new())
                .await?;
            channel.cancel(&tag).await
        }
        5 => channel.cancel(&(number - 1).to_string()).await,
        6 => channel.publish(&message("other", "x")).await.map(drop),
        7 => connection.channel().await?.ping().await,
        _ => channel.ping().await,
    }
}

#[test]
fn calls_that_are_dropped_at_random_leave_the_connection_whole() {
    const WAITING: u64 = 20;
    let Some(rabbit) = Rabbit::shared() else {
        return;
    };
    let vhost = rabbit.vhost();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("runtime");
    runtime.block_on(async {
        let connection = std::sync::Arc::new(open(&vhost).await);
        let channel = connection.channel().await.expect("channel");
        for queue in ["q", "other"] {
            let declared = channel.declare(queue, &durable("classic")).await;
            declared.expect("declare");
        }
        load(&channel, "q", WAITING).await.expect("load");
        let taking = channel.clone();
        let taker = tokio::spawn(async move {
            loop {
                match taking.next().await {
                    Happening::Delivery(delivery) => {
                        // The channel may have been closed by the end of the test.
                        let _ = taking.nack(delivery.tag, true);
                    }
                    Happening::Closed(failure) => break failure,
                    _ => {}
                }
            }
        });
        let callers = (0..4_usize).map(|caller| {
            let (connection, channel) = (std::sync::Arc::clone(&connection), channel.clone());
            tokio::spawn(async move {
                let mut done = 0;
                for round in 0..400_usize {
                    let limit = Duration::from_micros(fastrand::u64(0..3000));
                    let call = any_call(&connection, &channel, round * 4 + caller);
                    match tokio::time::timeout(limit, call).await {
                        Ok(Ok(())) => done += 1,
                        Ok(Err(failure)) => panic!("{failure}"),
                        Err(_) => {}
                    }
                }
                done
            })
        });
        for caller in callers.collect::<Vec<_>>() {
            let done = caller.await.expect("no panic");
            assert!(
                (1..400).contains(&done),
                "{done} of 400 calls had an answer"
            );
        }
        channel.ping().await.expect("ping");
        let figures = channel.declare_passive("q").await.expect("figures");
        assert!(u64::from(figures.messages) <= WAITING);
        channel.close().await;
        let failure = taker.await.expect("no panic");
        assert_eq!(failure.kind, FailureKind::Closed);
        // Channels that were dropped while they opened are closed, and have not filled the connection.
        let other = connection.channel().await.expect("channel");
        other.ping().await.expect("ping");
    });
    vhost.wait_counts("q", WAITING, 0);
}

#[test]
fn a_link_that_is_cut_anywhere_is_only_a_lost_link() {
    const COUNT: usize = 100;
    let Some(rabbit) = Rabbit::shared() else {
        return;
    };
    let vhost = rabbit.vhost();
    vhost.declare("q");
    // The cuts are within the login, methods, headers and bodies.
    let link = Proxy::cutting(rabbit.port(), 61);
    let mut missing: Vec<usize> = (0..COUNT).collect();
    let mut attempts = 0;
    wait(async {
        let publish = async |missing: &mut Vec<usize>| {
            let options = AmqpOptions {
                port: link.port(),
                ..options(&vhost)
            };
            let connection = Connection::open(&options).await?;
            let channel = connection.channel().await?;
            channel.confirm_select().await?;
            while let Some(number) = missing.last() {
                channel.publish(&message("q", number.to_string())).await?;
                match channel.next().await {
                    Happening::Confirmed { ok: true, .. } => _ = missing.pop(),
                    Happening::Closed(failure) => return Err(failure),
                    other => panic!("{other:?}"),
                }
            }
            Ok(())
        };
        while let Err(failure) = publish(&mut missing).await {
            assert!(failure.is_passing(), "{failure}");
            attempts += 1;
            assert!(attempts < 1000, "{failure}");
        }
    });
    assert!(attempts > 20 && link.cuts() > 20, "{attempts}");
    let mut found: Vec<usize> = vhost
        .take("q", u32::MAX)
        .iter()
        .map(|delivery| {
            String::from_utf8_lossy(&delivery.body)
                .parse()
                .expect("number")
        })
        .collect();
    found.sort_unstable();
    found.dedup();
    assert_eq!(found, (0..COUNT).collect::<Vec<_>>());
}

#[test]
fn a_broker_that_is_killed_is_noticed_at_once() {
    let Some(rabbit) = Rabbit::own() else {
        return;
    };
    let vhost = rabbit.vhost();
    wait(async {
        let connection = open(&vhost).await;
        let channel = connection.channel().await.expect("channel");
        channel
            .declare("q", &durable("quorum"))
            .await
            .expect("declare");
        rabbit.kill9();
        let before = Instant::now();
        let failure = connection.closed().await;
        assert!(before.elapsed() < Duration::from_secs(1));
        assert_eq!(failure.kind, FailureKind::Unreachable);
        assert_eq!(channel.ack(1, false), Err(failure.clone()));
        assert_eq!(channel.next().await, Happening::Closed(failure));
        let failure = Connection::open(&options(&vhost))
            .await
            .err()
            .expect("dead");
        assert_eq!(failure.kind, FailureKind::Unreachable);
        rabbit.restart();
        let connection = open(&vhost).await;
        let channel = connection.channel().await.expect("channel");
        channel.declare_passive("q").await.expect("it is durable");
        rabbit.shut_down();
        let failure = connection.closed().await;
        assert_eq!(
            (failure.kind, failure.code),
            (FailureKind::Unreachable, Some(320))
        );
    });
}

#[test]
fn a_broker_that_is_frozen_is_given_up_within_three_heartbeats() {
    const HEARTBEAT: Duration = Duration::from_secs(2);
    let Some(rabbit) = Rabbit::own() else {
        return;
    };
    let vhost = rabbit.vhost();
    wait(async {
        let options = AmqpOptions {
            heartbeat: HEARTBEAT,
            ..options(&vhost)
        };
        let connection = Connection::open(&options).await.expect("open");
        // Heartbeats alone keep it.
        let kept = tokio::time::timeout(3 * HEARTBEAT, connection.closed()).await;
        assert!(kept.is_err(), "{kept:?}");
        rabbit.freeze();
        let before = Instant::now();
        let failure = connection.closed().await;
        let took = before.elapsed();
        rabbit.thaw();
        assert_eq!(failure.kind, FailureKind::Unreachable);
        assert!(took <= 3 * HEARTBEAT, "{took:?}");
    });
}

#[test]
fn an_alarm_blocks_publishers_and_says_so() {
    let Some(rabbit) = Rabbit::own() else {
        return;
    };
    let vhost = rabbit.vhost();
    vhost.declare("q");
    wait(async {
        let connection = open(&vhost).await;
        let channel = connection.channel().await.expect("channel");
        channel.confirm_select().await.expect("confirms");
        rabbit.memory_alarm(true);
        // The broker blocks a connection that publishes, a moment after the alarm.
        let (published, reason) = loop {
            let published = channel.publish(&message("q", "x")).await.expect("publish");
            let changed = connection.changed(false);
            if let Ok(reason) = tokio::time::timeout(Duration::from_millis(100), changed).await {
                break (published, reason.expect("blocked"));
            }
        };
        assert!(reason.contains("memory"), "{reason}");
        assert_eq!(connection.blocked(), Some(reason));
        rabbit.memory_alarm(false);
        assert_eq!(connection.changed(true).await, None);
        loop {
            match channel.next().await {
                Happening::Confirmed {
                    number, ok: true, ..
                } if number == published => break,
                Happening::Confirmed { ok: true, .. } => {}
                other => panic!("{other:?}"),
            }
        }
        connection.close().await;
        assert_eq!(vhost.counts("q").ready, published);
    });
}

#[test]
fn tls_proves_who_the_broker_is() {
    let Some(rabbit) = Rabbit::own_with("", true) else {
        return;
    };
    let vhost = rabbit.vhost();
    let certificates = rabbit.certificates.as_ref().expect("certificates");
    let with = |cafile: Option<&str>, host: &str, port| AmqpOptions {
        host: host.into(),
        port,
        tls: Some(TlsFiles {
            cafile: cafile.map(|name| certificates.path(name).into()),
            ..TlsFiles::default()
        }),
        ..options(&vhost)
    };
    wait(async {
        let good = with(Some("ca.pem"), "localhost", rabbit.tls_port());
        let connection = Connection::open(&good).await.expect("open");
        let channel = connection.channel().await.expect("channel");
        channel
            .declare("q", &durable("classic"))
            .await
            .expect("declare");
        load(&channel, "q", WINDOW).await.expect("confirms");
        let large = message("q", vec![b'x'; 3 << 20]);
        channel.publish(&large).await.expect("publish");
        assert!(matches!(
            channel.next().await,
            Happening::Confirmed { ok: true, .. }
        ));
        connection.close().await;

        for (options, kind, word) in [
            (
                with(Some("other-ca.pem"), "localhost", rabbit.tls_port()),
                FailureKind::Refused,
                "authority that is not trusted",
            ),
            (
                with(Some("ca.pem"), "127.0.0.1", rabbit.tls_port()),
                FailureKind::Refused,
                "not for '127.0.0.1'",
            ),
            (
                with(Some("missing"), "localhost", rabbit.tls_port()),
                FailureKind::Config,
                "missing",
            ),
            (
                with(Some("ca.pem"), "localhost", rabbit.port()),
                FailureKind::Refused,
                "amqp://",
            ),
            (
                AmqpOptions {
                    tls: None,
                    ..with(None, "localhost", rabbit.tls_port())
                },
                FailureKind::Refused,
                "amqps://",
            ),
        ] {
            let failure = Connection::open(&options).await.err().expect("refused");
            assert_eq!(failure.kind, kind, "{failure}");
            assert!(failure.text.contains(word), "{failure}");
        }
    });
}
