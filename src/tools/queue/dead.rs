//! `tael queue dead`: lists, retries and drops messages of a dead-letter queue.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::timeout;
use tracing::warn;

use crate::error::{Error, Kind, Result};
use crate::model::duration;
use crate::model::table::{Colour, Column, Layout};
use crate::model::text::printable;
use crate::net::amqp::{
    Channel, Connection, Delivery, Failure, Happening, PERSISTENT, Properties, Publish,
};
use crate::os::host;
use crate::os::terminal::Terminal;
use crate::tools::queue::dead_letter::{DeadLetter, retried};
use crate::tools::queue::target::{Target, goodbye, shown};
use crate::tools::{check_stdout, print, print_json, runtime};

/// Maximum time to connect.
const CONNECT: Duration = Duration::from_secs(10);

/// Maximum number of messages that are held at once, while they are listed or looked for.
const MAX_HELD: u64 = 10_000;

/// Maximum size of the bodies of wanted messages that are held, bytes.
const MAX_HELD_BYTES: usize = 256 * 1024 * 1024;

/// Number of deliveries from which a list may soon reach the limit of a quorum queue: by default it is
/// 20 from RabbitMQ 4.0 on, and each list counts until 4.2
/// (<https://www.rabbitmq.com/docs/quorum-queues>, "Poison Message Handling").
const MANY_DELIVERIES: i64 = 10;

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Print them.
    List,
    /// Publish them to their queue again.
    Retry,
    /// Delete them.
    Drop,
}

impl Action {
    /// Names of all.
    pub const NAMES: &[&str] = &["list", "retry", "drop"];

    /// Parses a name.
    ///
    /// # Errors
    /// A text for the user.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text {
            "list" => Ok(Self::List),
            "retry" => Ok(Self::Retry),
            "drop" => Ok(Self::Drop),
            _ => Err(format!(
                "'{}' is not an action: list, retry or drop",
                printable(text, 80)
            )),
        }
    }

    /// Returns what it did, for people.
    const fn done(self) -> &'static str {
        match self {
            Self::List => "listed",
            Self::Retry => "retried",
            Self::Drop => "dropped",
        }
    }
}

/// Options of the command.
#[derive(Debug)]
pub struct Options {
    /// The queue that the messages came from.
    pub target: Target,
    /// Name of the dead-letter queue.
    pub dead_letter: String,
    /// What to do.
    pub action: Action,
    /// Ids of the messages, or their beginnings or ends; none for all.
    pub ids: Vec<String>,
    /// Maximum time for the broker to confirm a message.
    pub timeout: Duration,
    /// Whether to print JSON.
    pub json: bool,
}

/// Lists, retries or drops messages.
///
/// # Errors
/// 65 when a queue or a message does not exist, 69, 75 and 77 when the broker does not do it.
pub fn run(options: &Options) -> Result<ExitCode> {
    check_stdout()?;
    runtime()?.block_on(async {
        let connection = options.target.connect(CONNECT).await?;
        let desk = Desk::open(options, &connection).await?;
        let done = desk.work().await;
        let given_back = desk.give_back().await;
        goodbye(connection).await;
        done.and(given_back).map(|()| ExitCode::SUCCESS)
    })
}

/// The work on a dead-letter queue.
struct Desk<'a> {
    options: &'a Options,
    /// Channel that takes messages.
    taken: Channel,
    /// Channel that publishes them again.
    publishes: Channel,
    /// Number of messages that were in the queue at the beginning. Later ones may be ours.
    count: u64,
    /// Deliveries that are not acknowledged.
    held: RefCell<BTreeSet<u64>>,
}

/// A message, and what it says.
struct Held {
    letter: DeadLetter,
    delivery: Delivery,
}

impl<'a> Desk<'a> {
    async fn open(options: &'a Options, connection: &Connection) -> Result<Self> {
        let missing = |failure| options.target.failed(&options.dead_letter, failure);
        let figures = Target::figures(connection, &options.dead_letter).await;
        let count = u64::from(figures.map_err(missing)?.messages);
        if options.action == Action::Retry {
            let queue = &options.target.url.queue;
            let there = Target::figures(connection, queue).await;
            there.map_err(|failure| options.target.failed(queue, failure))?;
        }
        let channels = async {
            let taken = connection.channel().await?;
            let publishes = connection.channel().await?;
            publishes.confirm_select().await?;
            Ok((taken, publishes))
        };
        let (taken, publishes) = channels
            .await
            .map_err(|f: Failure| options.target.refused(f))?;
        Ok(Self {
            options,
            taken,
            publishes,
            count,
            held: RefCell::default(),
        })
    }

    fn failed(&self, failure: Failure) -> Error {
        self.options
            .target
            .failed(&self.options.dead_letter, failure)
    }

    /// Takes the next message of our queue; those of other queues stay where they are, for us, until the
    /// end.
    async fn next(&self, left: &mut u64) -> Result<Option<Held>> {
        while let Some(less) = left.checked_sub(1) {
            *left = less;
            let got = self.taken.get(&self.options.dead_letter).await;
            let Some(delivery) = got.map_err(|failure| self.failed(failure))? else {
                return Ok(None);
            };
            self.held.borrow_mut().insert(delivery.tag);
            let letter = DeadLetter::of(&delivery);
            let queue = &self.options.target.url.queue;
            // Several queues may share a dead-letter queue.
            if letter.queue.as_ref().is_none_or(|from| from == queue) {
                return Ok(Some(Held { letter, delivery }));
            }
        }
        Ok(None)
    }

    /// Gives back what it holds. From RabbitMQ 4.3 on that does not count towards the delivery limit of a
    /// quorum queue, unlike the end of a connection.
    async fn give_back(&self) -> Result<()> {
        let held = self.held.take();
        let mut given = held.into_iter().map(|tag| self.taken.nack(tag, true));
        let given = given.try_for_each(|given| given);
        given.map_err(|failure| self.failed(failure))?;
        let handled = self.taken.ping().await;
        handled.map_err(|failure| self.failed(failure))
    }

    async fn work(&self) -> Result<()> {
        let is_all = self.options.ids.is_empty();
        match self.options.action {
            Action::List => self.list().await,
            action if is_all => self.act_on_all(action).await,
            action => self.act_on_named(action).await,
        }
    }

    async fn list(&self) -> Result<()> {
        let (mut letters, mut left) = (Vec::new(), self.count.min(MAX_HELD));
        let named = |letter: &DeadLetter| {
            let ids = &self.options.ids;
            ids.is_empty() || ids.iter().any(|id| letter.is_named(id))
        };
        while let Some(held) = self.next(&mut left).await? {
            if named(&held.letter) {
                letters.push(held.letter);
            }
        }
        if let more @ 1.. = self.count.saturating_sub(MAX_HELD) {
            warn!("the oldest {MAX_HELD} messages are listed; {more} more are in the queue");
        }
        let most = letters.iter().map(|letter| letter.deliveries).max();
        if let Some(most @ MANY_DELIVERIES..) = most {
            warn!(
                "a message was delivered {most} times from queue '{}': a quorum queue drops it at its \
                 delivery-limit, and until RabbitMQ 4.2 each list counts",
                shown(&self.options.dead_letter)
            );
        }
        if self.options.json {
            let list = letters.iter().map(DeadLetter::json).collect();
            return print_json(&Value::Array(list));
        }
        for line in table(&letters) {
            print(&line)?;
        }
        Ok(())
    }

    /// Acts on all messages, one after the other.
    async fn act_on_all(&self, action: Action) -> Result<()> {
        let (mut left, mut done) = (self.count, 0_u64);
        while let Some(held) = self.next(&mut left).await? {
            self.act(action, held).await?;
            done += 1;
        }
        match self.options.json {
            true => Ok(()),
            false => print(&format!("{done} {}", action.done())),
        }
    }

    /// Looks for the messages that are named, then acts on them.
    async fn act_on_named(&self, action: Action) -> Result<()> {
        let ids = &self.options.ids;
        let (mut found, mut bytes) = (Vec::<Held>::new(), 0);
        let mut left = self.count.min(MAX_HELD);
        while let Some(held) = self.next(&mut left).await? {
            if ids.iter().any(|id| held.letter.is_named(id)) {
                bytes += held.delivery.body.len();
                found.push(held);
            }
            if bytes > MAX_HELD_BYTES {
                return Err(Error::data(format!(
                    "{} messages: those that fit have more than {} MiB: name fewer",
                    action.done(),
                    MAX_HELD_BYTES >> 20
                )));
            }
        }
        for id in ids {
            let count = found.iter().filter(|held| held.letter.is_named(id)).count();
            let (id, queue) = (printable(id, 80), shown(&self.options.dead_letter));
            let cause = match count {
                1 => continue,
                0 if self.count > MAX_HELD => format!(
                    "none of the oldest {MAX_HELD} messages of queue '{queue}' is called '{id}'"
                ),
                0 => format!("no message of queue '{queue}' is called '{id}'"),
                n => format!("{n} messages of queue '{queue}' fit '{id}': name it whole"),
            };
            return Err(Error::data(cause));
        }
        for held in found {
            self.act(action, held).await?;
        }
        Ok(())
    }

    /// Acts on one message, and acknowledges it then.
    async fn act(&self, action: Action, held: Held) -> Result<()> {
        let Held { letter, delivery } = held;
        let tag = delivery.tag;
        let mut object = json!({"id": letter.name(), "action": action.done()});
        if action == Action::Retry {
            let id = self.publish(&letter, delivery).await?;
            if let Some(object) = object.as_object_mut() {
                object.insert("message_id".to_owned(), json!(id));
            }
        }
        let acked = self.taken.ack(tag, false);
        acked.map_err(|failure| self.failed(failure))?;
        self.held.borrow_mut().remove(&tag);
        match self.options.json {
            true => print_json(&object),
            false if !self.options.ids.is_empty() => print(&format!(
                "{} {}",
                action.done(),
                printable(letter.name(), 80)
            )),
            false => Ok(()),
        }
    }

    /// Publishes a message to its queue under a new id, which is returned: under its old one the client
    /// that has run it would not run it again.
    async fn publish(&self, letter: &DeadLetter, delivery: Delivery) -> Result<String> {
        let id = host::new_id();
        let queue = &self.options.target.url.queue;
        let headers = retried(&delivery.properties.headers, letter);
        let correlation = delivery.properties.correlation_id.clone();
        let wants_report = delivery.properties.reply_to.is_some();
        let before = || letter.message_id.clone().filter(|_| wants_report);
        let publish = Publish {
            routing_key: queue.clone(),
            mandatory: true,
            properties: Properties {
                message_id: Some(id.clone()),
                // A sender that waits knows the message by its old id.
                correlation_id: correlation.or_else(before),
                delivery_mode: Some(PERSISTENT),
                headers,
                expiration: None,
                user_id: None,
                ..delivery.properties
            },
            body: delivery.body,
            ..Publish::default()
        };
        let failed = |failure| self.options.target.failed(queue, failure);
        let confirmed = async {
            let number = self.publishes.publish(&publish).await.map_err(failed)?;
            self.confirmed(number).await
        };
        let limit = self.options.timeout;
        timeout(limit, confirmed).await.unwrap_or_else(|_| {
            Err(Error::new(
                Kind::TryAgain,
                format!(
                    "retry '{}': the broker has not confirmed it within {}; is it short of memory or \
                     disk?",
                    printable(letter.name(), 80),
                    duration::text(limit)
                ),
            ))
        })?;
        Ok(id)
    }

    /// Waits for the confirm of message `wanted`, the only one that is on its way.
    async fn confirmed(&self, wanted: u64) -> Result<()> {
        let queue = self.options.target.shown();
        loop {
            match self.publishes.next().await {
                Happening::Confirmed { number, ok, .. } if number == wanted && ok => return Ok(()),
                Happening::Confirmed { number, .. } if number == wanted => {
                    let cause = format!("the broker does not take it: is queue '{queue}' full?");
                    return Err(Error::new(Kind::TryAgain, format!("retry: {cause}")));
                }
                Happening::Returned(returned) => {
                    return Err(Error::data(format!(
                        "retry: the broker cannot route it to queue '{queue}' ({})",
                        returned.code
                    )));
                }
                Happening::Closed(failure) => {
                    return Err(self
                        .options
                        .target
                        .failed(&self.options.target.url.queue, failure));
                }
                Happening::Confirmed { .. } | Happening::Delivery(_) | Happening::Canceled(_) => {}
            }
        }
    }
}

/// Returns the lines of a table of dead letters, the oldest first.
fn table(letters: &[DeadLetter]) -> Vec<String> {
    let columns = [
        Column::text("ID", 8, 40),
        Column::text("WHEN", 19, 19),
        Column::text("WHERE", 8, 40),
        Column::text("WHY", 12, 80),
        Column::text("LAST WORDS", 10, usize::MAX),
    ];
    let terminal = Terminal::of_stdout();
    let cell = |text: Option<String>| printable(&text.unwrap_or_else(|| "-".into()), 400);
    let rows: Vec<[String; 5]> = letters
        .iter()
        .map(|letter| {
            let place = letter.who.as_ref().zip(letter.host.as_ref());
            [
                printable(terminal.id(letter.name()), 80),
                letter.time(),
                cell(place.map(|(who, host)| format!("{who}@{host}"))),
                cell(Some(letter.cause())),
                cell(letter.last_words()),
            ]
        })
        .collect();
    let texts = rows.iter().map(|row| row.iter().map(String::as_str));
    let layout = Layout::fit(&columns, texts, terminal.width);
    let colours = [None, None, None, Some(Colour::Red), None];
    let lines = rows.iter().map(|row| {
        let cells = row.iter().zip(colours);
        layout.line(cells.map(|(text, colour)| (text.as_str(), colour.filter(|_| terminal.colour))))
    });
    std::iter::once(layout.heading()).chain(lines).collect()
}
