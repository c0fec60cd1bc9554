//! The queue for the reports of the workers.

use std::cell::RefCell;
use std::convert::Infallible;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{sleep, timeout};
use tracing::warn;

use crate::error::{Error, Result};
use crate::model::letter::COMPLETION;
use crate::net::amqp::{Channel, Connection, Declare, Delivery, Failure, Happening, Table, Value};
use crate::net::backoff::backoff;
use crate::os::host;
use crate::tools::queue::tally::{Report, Tally};
use crate::tools::queue::target::{MAX_DOUBLINGS, Target, goodbye};

/// Time after which the broker deletes the queue if we do not come back, milliseconds.
const EXPIRES: i64 = 3600 * 1000;

/// Maximum number of reports to hold.
const PREFETCH: u16 = 500;

/// Maximum time to delete the queue at the end.
const DELETE: Duration = Duration::from_secs(2);

/// Tag of our consumer.
const TAG: &str = "reports";

/// A queue for reports, which outlives a connection.
#[derive(Debug)]
pub struct Replies {
    name: String,
}

impl Replies {
    /// Returns one with a name of its own; it is not declared.
    #[must_use]
    pub fn new() -> Self {
        Self {
            name: format!("tael.reply.{}", host::new_id()),
        }
    }

    /// Returns its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Declares the queue and consumes it, over `connection`.
    ///
    /// # Errors
    /// The failure.
    pub async fn open(&self, connection: &Connection) -> Result<Channel, Failure> {
        let channel = connection.channel().await?;
        let mut arguments = Table::new();
        arguments.push("x-queue-type", "classic");
        arguments.push("x-expires", Value::I64(EXPIRES));
        let declare = Declare {
            durable: true,
            arguments,
            ..Declare::default()
        };
        channel.declare(&self.name, &declare).await?;
        channel.qos(PREFETCH).await?;
        channel
            .consume(&self.name, TAG, false, false, &Table::new())
            .await?;
        Ok(channel)
    }

    /// Returns the error for a `failure` of [`Self::open`].
    #[must_use]
    pub fn failed(&self, target: &Target, failure: Failure) -> Error {
        Error::from(failure).context(format_args!(
            "declare '{}' at {} for reports; --wait needs the rights to configure, write and read \
             tael.reply.*",
            self.name,
            target.url.broker()
        ))
    }

    /// Notes reports in `tally` until it fails for good. Begins on the connection `first`. Tells `news`
    /// of each.
    ///
    /// # Errors
    /// When another connection would fail too.
    pub async fn collect(
        &self,
        target: &Target,
        first: (Connection, Channel),
        tally: &RefCell<Tally>,
        news: &Notify,
    ) -> Result<Infallible> {
        let mut open = Some(first);
        let mut failures = 0;
        loop {
            let failure = match open.take() {
                Some((connection, channel)) => {
                    failures = 0;
                    let failure = listen(&channel, tally, news).await;
                    drop(connection);
                    failure
                }
                None => match self.reopen(target).await {
                    Ok(again) => {
                        open = Some(again);
                        continue;
                    }
                    Err(failure) => Some(failure),
                },
            };
            let cause = match failure {
                Some(failure) if !failure.is_passing() => return Err(self.failed(target, failure)),
                Some(failure) => failure.text,
                None => "the queue was deleted".to_owned(),
            };
            if failures == 0 {
                warn!(
                    "lost queue '{}' for reports: {cause}; coming back",
                    self.name
                );
            }
            sleep(backoff(failures.min(MAX_DOUBLINGS))).await;
            failures += 1;
        }
    }

    async fn reopen(&self, target: &Target) -> Result<(Connection, Channel), Failure> {
        let connection = Connection::open(&target.options()).await?;
        let channel = self.open(&connection).await?;
        Ok((connection, channel))
    }

    /// Deletes the queue, within a bounded time. Otherwise the broker deletes it later.
    pub async fn delete(&self, target: &Target) {
        let delete = async {
            if let Ok(connection) = Connection::open(&target.options()).await {
                if let Ok(channel) = connection.channel().await {
                    let _ = channel.delete(&self.name).await;
                }
                goodbye(connection).await;
            }
        };
        let _ = timeout(DELETE, delete).await;
    }
}

/// Notes reports until the channel ends; returns why, or nothing if the queue was deleted.
async fn listen(channel: &Channel, tally: &RefCell<Tally>, news: &Notify) -> Option<Failure> {
    loop {
        match channel.next().await {
            Happening::Delivery(delivery) => {
                if let Some((id, report)) = report(&delivery) {
                    tally.borrow_mut().ended(&id, report);
                    news.notify_one();
                }
                if let Err(failure) = channel.ack(delivery.tag, false) {
                    return Some(failure);
                }
            }
            Happening::Canceled(_) => return None,
            Happening::Closed(failure) => return Some(failure),
            Happening::Confirmed { .. } | Happening::Returned(_) => {}
        }
    }
}

/// Returns what a message reports, and the id of the message that it is about; `None` if it is not a
/// report of Tael.
fn report(delivery: &Delivery) -> Option<(String, Report)> {
    if delivery.properties.kind.as_deref() != Some(COMPLETION) {
        return None;
    }
    let report: Report = serde_json::from_slice(&delivery.body).ok()?;
    let id = delivery.properties.correlation_id.clone();
    Some((id.or_else(|| report.id.clone())?, report))
}
