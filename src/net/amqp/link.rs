//! A connection that a session takes messages from: what is declared on it, and what it consumes.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use crate::model::claim::EXCHANGE;
use crate::model::queue::Settle;
use crate::model::text::printable;
use crate::net::amqp::queue::{Heard, QueueEvent, QueueOptions};
use crate::net::amqp::share::Share;
use crate::net::amqp::{
    Channel, Connection, Declare, Failure, FailureKind, Happening, Server, Table, Value,
};

/// Time that the broker is asked to wait for an acknowledgement, milliseconds: 7 days, as for what it
/// keeps for us while we are away (`x-consumer-timeout`, RabbitMQ 3.12).
const CONSUMER_TIMEOUT: i64 = 7 * 24 * 3600 * 1000;

/// First version of RabbitMQ that reads `x-consumer-timeout`.
const FIRST_WITH_TIMEOUT: (u32, u32) = (3, 12);

/// Time after which a restart of the broker does not lose an acknowledgement any more: a classic queue
/// writes it to disk within a second.
const SETTLING: Duration = Duration::from_secs(5);

/// A connection that can be taken from.
pub struct Link {
    pub connection: Connection,
    pub channel: Channel,
    /// Brings claims of others and answers to ours.
    pub claims: Option<Claims>,
    /// Number of consumers so far, and whether the last one goes on.
    consumers: u64,
    pub consumes: bool,
    /// Messages that are acknowledged after their run.
    share: Share,
    /// Acknowledgements so far, those that were there when the next ping was planned, and its time.
    acknowledged: u64,
    planned: Option<(u64, Instant)>,
}

/// The exchange of claims.
pub struct Claims {
    channel: Channel,
    /// Our queue for answers.
    pub reply_to: String,
}

/// Adds to `failure` what can be done about it.
pub fn explained(mut failure: Failure, options: &QueueOptions) -> Failure {
    let queue = printable(&options.url.queue, 255);
    let advice = match failure.kind {
        FailureKind::Missing => {
            format!("does queue '{queue}' exist? create it, or give its type with --declare")
        }
        FailureKind::Mismatch if options.declare.is_some() => {
            format!("queue '{queue}' is declared otherwise: leave out --declare, or name its type")
        }
        _ => return failure,
    };
    failure.text = format!("{}; {advice}", failure.text);
    failure
}

impl Link {
    /// Connects. Returns warnings, too.
    pub async fn open(options: &QueueOptions) -> Result<(Self, Vec<String>), Failure> {
        let connection = Connection::open(&options.connection()).await?;
        let mut warnings = Vec::new();
        let queue = &options.url.queue;
        let declared = declare(&connection, queue, options).await;
        declared.map_err(|failure| explained(failure, options))?;
        if let Err(failure) = declare_dead(&connection, options).await {
            warnings.push(format!(
                "the dead-letter queue '{}' cannot be used: {failure}; dead letters wait in the ledger \
                 until it can",
                printable(&options.dead_letter, 255)
            ));
        }
        let claims = match Claims::open(&connection).await {
            Ok(claims) => Some(claims),
            Err(failure) => {
                warnings.push(format!(
                    "claims cannot be exchanged with other hosts: {failure}; a message that the broker \
                     delivers again may run here while it still runs there"
                ));
                None
            }
        };
        if options.settle == Settle::Done && ignores_timeouts(connection.server()) {
            warnings.push(
                "this RabbitMQ is older than 3.12, and has one time limit for all acknowledgements \
                 (consumer_timeout, 30 min by default): a run that takes longer is delivered again, to \
                 this host or another one; raise it, or use --settle accept"
                    .to_owned(),
            );
        }
        let channel = connection.channel().await?;
        if options.settle == Settle::Accept {
            channel.qos(1).await?;
        }
        let link = Self {
            connection,
            channel,
            claims,
            consumers: 0,
            consumes: false,
            share: Share::new(options.limit),
            acknowledged: 0,
            planned: None,
        };
        Ok((link, warnings))
    }

    fn tag(&self) -> String {
        format!("tael-{}", self.consumers)
    }

    /// Begins to consume, if there is room for a message.
    pub async fn consume(&mut self, options: &QueueOptions) -> Result<(), Failure> {
        if options.settle == Settle::Done {
            match self.share.begin() {
                Some(prefetch) => self.channel.qos(prefetch).await?,
                None => return Ok(()),
            }
        }
        self.consumers += 1;
        let arguments = Table::from([("x-consumer-timeout", Value::I64(CONSUMER_TIMEOUT))]);
        let (queue, tag) = (&options.url.queue, self.tag());
        self.channel
            .consume(queue, &tag, false, false, &arguments)
            .await?;
        self.consumes = true;
        Ok(())
    }

    /// Ends to consume, and waits until everything that the broker has delivered is here.
    pub async fn cancel_and_wait(&mut self) -> Result<(), Failure> {
        if self.consumers > 0 {
            self.cancel()?;
            self.channel.ping().await?;
        }
        Ok(())
    }

    /// Ends to consume.
    pub fn cancel(&mut self) -> Result<(), Failure> {
        if std::mem::take(&mut self.consumes) {
            self.channel.cancel_nowait(&self.tag())?;
        }
        Ok(())
    }

    /// Notes a delivery.
    pub fn came(&mut self, tag: u64) {
        self.share.came(tag);
    }

    /// Notes that a delivery is acknowledged or given back. Returns whether a new consumer could take more.
    pub fn went(&mut self, tag: u64) -> bool {
        self.share.went(tag)
    }

    pub fn acknowledge(&mut self, tag: u64) -> Result<(), Failure> {
        self.channel.ack(tag, false)?;
        self.acknowledged += 1;
        if self.planned.is_none() {
            self.planned = Some((self.acknowledged, Instant::now() + SETTLING));
        }
        Ok(())
    }

    /// Returns when [`Link::ping`] has work.
    pub fn planned(&self) -> Option<Instant> {
        self.planned.map(|(_, at)| at)
    }

    /// Asks the broker whether it has handled acknowledgements that have settled there. Returns how
    /// many it has.
    pub async fn ping(&mut self) -> Result<u64, Failure> {
        let number = self.planned.take().map_or(0, |(number, _)| number);
        self.channel.ping().await?;
        if self.acknowledged > number {
            self.planned = Some((self.acknowledged, Instant::now() + SETTLING));
        }
        Ok(number)
    }

    /// Asks the broker whether it has handled all acknowledgements. Returns how many those are. A restart
    /// of the broker may lose the last ones.
    pub async fn ping_now(&mut self) -> Result<u64, Failure> {
        let number = self.acknowledged;
        self.channel.ping().await?;
        self.planned = None;
        Ok(number)
    }
}

/// Returns whether a broker does not read `x-consumer-timeout`.
fn ignores_timeouts(server: &Server) -> bool {
    let mut parts = server.version.split('.').map(str::parse);
    let version = (parts.next(), parts.next());
    matches!(version, (Some(Ok(major)), Some(Ok(minor))) if (major, minor) < FIRST_WITH_TIMEOUT)
}

/// Returns the arguments that declare a queue of a type.
fn declaration(kind: &str) -> Declare {
    let kind = Value::Text(kind.to_owned().into());
    Declare {
        durable: true,
        arguments: Table::from([("x-queue-type", kind)]),
        ..Declare::default()
    }
}

/// Declares `queue`, or checks that it is there. A failure costs a channel of its own.
async fn declare(
    connection: &Connection,
    queue: &str,
    options: &QueueOptions,
) -> Result<(), Failure> {
    let channel = connection.channel().await?;
    match options.declare {
        Some(kind) => {
            channel.declare(queue, &declaration(kind.name())).await?;
        }
        None => {
            channel.declare_passive(queue).await?;
        }
    }
    channel.close().await;
    Ok(())
}

/// Checks that the dead-letter queue is there, and makes it otherwise.
async fn declare_dead(connection: &Connection, options: &QueueOptions) -> Result<(), Failure> {
    let channel = connection.channel().await?;
    let failure = match channel.declare_passive(&options.dead_letter).await {
        Ok(_) => {
            channel.close().await;
            return Ok(());
        }
        Err(failure) => failure,
    };
    if failure.kind != FailureKind::Missing {
        return Err(failure);
    }
    let channel = connection.channel().await?;
    let declare = match options.declare {
        Some(kind) => declaration(kind.name()),
        None => Declare {
            durable: true,
            ..Declare::default()
        },
    };
    channel.declare(&options.dead_letter, &declare).await?;
    channel.close().await;
    Ok(())
}

impl Claims {
    async fn open(connection: &Connection) -> Result<Self, Failure> {
        let channel = connection.channel().await?;
        channel
            .declare_exchange(EXCHANGE, "fanout", true, false)
            .await?;
        let declare = Declare {
            exclusive: true,
            auto_delete: true,
            ..Declare::default()
        };
        let (reply_to, _) = channel.declare("", &declare).await?;
        channel.bind(&reply_to, EXCHANGE, "").await?;
        channel
            .consume(&reply_to, "claims", true, true, &Table::default())
            .await?;
        Ok(Self { channel, reply_to })
    }

    /// Returns the next claim or answer, and its event; `None` if no more come. Cancel safe.
    pub async fn next(claims: &mut Option<Self>) -> Option<(Bytes, fn(Heard) -> QueueEvent)> {
        let Some(claims) = claims else {
            return std::future::pending().await;
        };
        loop {
            match claims.channel.next().await {
                // An answer comes by the default exchange.
                Happening::Delivery(delivery) if delivery.exchange == EXCHANGE => {
                    return Some((delivery.body, QueueEvent::Claim));
                }
                Happening::Delivery(delivery) => return Some((delivery.body, QueueEvent::Answer)),
                Happening::Closed(_) | Happening::Canceled(_) => return None,
                Happening::Confirmed { .. } | Happening::Returned(_) => {}
            }
        }
    }
}
