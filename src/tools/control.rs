//! `tael control`: asks a running client to do something, and waits for its answer.

use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use serde_json::Value;
use tokio::time::{Instant, sleep_until, timeout};

use crate::error::{Error, Kind, Result};
use crate::model::control::{Action, Envelope, refusal};
use crate::model::message::{Message, Properties, Qos, property};
use crate::model::roots::Content;
use crate::model::table::{self, Colour};
use crate::model::text::{escaped_json, printable};
use crate::model::topic::{Filter, PipelineTopics};
use crate::model::{duration, json};
use crate::net::mqtt::{Audience, Refused, Settings};
use crate::net::options::BrokerOptions;
use crate::net::session::{Event, Session, Subscriptions};
use crate::os::host;
use crate::os::logging::say;
use crate::os::terminal::Terminal;
use crate::tools::message::{origin, sender};
use crate::tools::roots;

/// Maximum size of an answer, bytes.
const MAX_REPLY: u32 = 1024 * 1024;

/// Time without a sign of the client after which the broker is asked whether it has ever been there.
const UNSEEN: Duration = Duration::from_secs(1);

/// Options of the command.
#[derive(Debug, Clone)]
pub struct Options {
    /// Broker, and our credentials.
    pub broker: BrokerOptions,
    /// The root of its topics.
    pub root: String,
    /// Topics of the pipeline.
    pub topics: PipelineTopics,
    /// Name of the pipeline.
    pub who: String,
    /// Action of the request.
    pub action: Action,
    /// Maximum time to wait for the answer.
    pub timeout: Duration,
    /// Whether to print the answer as JSON.
    pub json: bool,
}

/// Sends the request, and prints the answer.
///
/// # Errors
/// 75 when no client answers in time, 69 when no broker does; otherwise the code of the answer.
pub fn run(options: &Options) -> Result<ExitCode> {
    super::check_stdout()?;
    let answer = super::runtime()?.block_on(ask(options))?;
    if answer.get("ok") == Some(&Value::Bool(true)) {
        super::print(&shown(options, &answer))?;
        return Ok(ExitCode::SUCCESS);
    }
    if options.json {
        super::print_json(&answer)?;
    }
    let cause = super::text(&answer, "error").unwrap_or("without a reason");
    let (action, who) = (options.action.name(), &options.who);
    say(&format!("{action} {who}: {}", printable(cause, 500)));
    Ok(ExitCode::from(refusal(&answer).exit_code()))
}

pub(super) async fn ask(options: &Options) -> Result<Value> {
    let reply_topic = options.topics.reply(&host::new_id());
    let wrong = |e| Error::usage(format!("control {}: {e}", options.who));
    let subscriptions = Subscriptions {
        required: vec![Filter::new(&reply_topic).map_err(wrong)?],
        // A stopped client does not answer.
        optional: vec![Filter::new(options.topics.presence()).map_err(wrong)?],
        qos: Qos::AtLeastOnce,
    };
    let settings = Settings {
        max_packet: MAX_REPLY,
        ..sender(&options.broker)
    };
    let deadline = Instant::now().checked_add(options.timeout);
    let properties = Properties {
        user: origin(),
        response_topic: Some(reply_topic.clone()),
        correlation_data: Some(Bytes::from(host::new_id())),
        message_expiry: None,
    };
    let mut request = Message {
        topic: options.topics.control(),
        payload: Bytes::from(
            options
                .action
                .payload(&envelope(&properties, options.timeout)),
        ),
        qos: Qos::AtLeastOnce,
        retain: false,
        properties,
    };
    let mut session = Session::new(settings, subscriptions).announced();
    let mut reached = false;
    let (mut sent, mut seen, mut stopped) = (false, false, false);
    // Until then a client that is there is seen.
    let mut unseen = None;
    let answered = async {
        loop {
            let event = tokio::select! {
                event = session.next() => event?,
                () = sleep_until(unseen.unwrap_or_else(Instant::now)), if unseen.is_some() => {
                    unseen = None;
                    // Under our identifier the look would take over the session that waits.
                    let apart = BrokerOptions {
                        client_id: format!("tael-{}", host::new_id()),
                        ..options.broker.clone()
                    };
                    let known = roots::pipelines(&apart, options.timeout).await;
                    if known.is_ok_and(|known| known.lack(&options.who)) {
                        return Ok(None);
                    }
                    continue;
                }
            };
            match event {
                // After a broken connection it is sent again, and its id is known.
                Event::Online => {
                    reached = true;
                    let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
                    request.properties.message_expiry = left.map(duration::whole_seconds);
                    session.publish(request.clone());
                }
                Event::Published(_, Err(Refused(e, _))) => {
                    return Err(e.context(format_args!("publish to '{}'", request.topic)));
                }
                Event::Received(received) if received.delivery.topic == reply_topic.as_bytes() => {
                    let answer = json::parse(&received.delivery.payload);
                    let wrong = |e| Error::data(format!("read the answer: {e}"));
                    return answer.map(Some).map_err(wrong);
                }
                Event::Published(_, Ok(Audience::None)) => {
                    return Ok(None);
                }
                Event::Published(_, Ok(Audience::Possible)) => {
                    if !sent && !seen {
                        unseen = Instant::now().checked_add(UNSEEN);
                    }
                    sent = true;
                }
                Event::Received(received) => {
                    (seen, unseen) = (true, None);
                    let presence = json::parse(&received.delivery.payload).unwrap_or_default();
                    stopped = super::text(&presence, "state") == Some("offline");
                }
                Event::Subscribed(_) | Event::Holds(_) | Event::Left | Event::Offline => {}
            }
            if sent && stopped {
                let cause = "that client is stopped; the broker may keep the request for it";
                return Err(Error::new(
                    Kind::TryAgain,
                    format!("{} {}: {cause}", options.action.name(), options.who),
                ));
            }
        }
    };
    let answer = timeout(options.timeout, answered).await;
    let cause = match answer {
        Ok(answer) => match answer? {
            Some(answer) => {
                session.close().await;
                return Ok(answer);
            }
            None => "no client listens".to_owned(),
        },
        Err(_) if reached => format!("no answer within {}", duration::text(options.timeout)),
        Err(_) => return Err(session.unreachable(options.timeout)),
    };
    session.close().await;
    let content = Content::Pipeline(options.who.clone());
    let hint = roots::hint(&options.broker, &content, &options.root).await;
    let (action, who) = (options.action.name(), &options.who);
    let topic = options.topics.control();
    Err(Error::new(
        Kind::TryAgain,
        format!("{action} {who}: {cause} on {topic}; does that client run? {hint}"),
    ))
}

/// Returns the properties of a request for its payload, for bridges that drop them. After `timeout`
/// the requester waits no more.
pub(super) fn envelope(properties: &Properties, timeout: Duration) -> Envelope {
    let user = |name| properties.user(name);
    let now = Timestamp::now().as_second();
    Envelope {
        id: user(property::ID).map(str::to_owned),
        reply_to: properties.response_topic.clone(),
        expires: Some(now.saturating_add(duration::whole_seconds(timeout).into())),
        hops: user(property::HOPS)
            .and_then(|hops| hops.parse().ok())
            .unwrap_or(0),
        present: true,
    }
}

fn shown(options: &Options, answer: &Value) -> String {
    if options.json {
        return escaped_json(&json::to_text(answer));
    }
    let who = &options.who;
    let terminal = Terminal::of_stdout();
    let unit = || {
        let id = super::text(answer, "unit").unwrap_or("?");
        printable(terminal.id(id), 80)
    };
    match &options.action {
        Action::Raise { .. } => format!("{who}: raised as unit {}", unit()),
        Action::Retry { .. } => format!("{who}: tried again as unit {}", unit()),
        Action::Cancel { .. } => format!("{who}: canceling unit {}", unit()),
        Action::Pause => format!("{who}: paused"),
        Action::Resume => format!("{who}: resumed"),
        Action::Status => match terminal.width {
            Some(width) => status_lines(who, answer, terminal, width),
            None => status_line(who, answer),
        },
    }
}

/// The numbers of a status answer, as parts of sentences.
struct Numbers<'a>(&'a Value);

impl Numbers<'_> {
    fn at(&self, path: &str) -> u64 {
        self.0.pointer(path).and_then(Value::as_u64).unwrap_or(0)
    }

    fn host(&self) -> String {
        printable(super::text(self.0, "host").unwrap_or("?"), 80)
    }

    fn uptime(&self) -> String {
        duration::text(Duration::from_secs(self.at("/uptime")))
    }

    fn is_paused(&self) -> bool {
        self.0.get("paused") == Some(&Value::Bool(true))
    }

    /// Returns the ids of the units that run.
    fn running(&self) -> impl ExactSizeIterator<Item = &str> {
        let list = self.0.get("running").and_then(Value::as_array);
        let list = list.map_or(&[][..], Vec::as_slice).iter();
        list.map(|unit| unit.as_str().unwrap_or("?"))
    }

    fn runs(&self) -> String {
        format!(
            "{} running, {} waiting, {} succeeded, {} failed, {} canceled",
            self.running().len(),
            self.at("/waiting"),
            self.at("/units/succeeded"),
            self.at("/units/failed"),
            self.at("/units/canceled"),
        )
    }

    fn events(&self) -> String {
        format!(
            "{} accepted, {} duplicate, {} refused, {} ignored",
            self.at("/events/accepted"),
            self.at("/events/duplicate"),
            self.at("/events/refused"),
            self.at("/events/ignored"),
        )
    }
}

/// Returns the status for a program: one line.
fn status_line(who: &str, answer: &Value) -> String {
    let numbers = Numbers(answer);
    let paused = if numbers.is_paused() { ", paused" } else { "" };
    format!(
        "{who}: on {} for {}{paused}, {}; events: {}; {} statuses to send",
        numbers.host(),
        numbers.uptime(),
        numbers.runs(),
        numbers.events(),
        numbers.at("/outbox"),
    )
}

/// Maximum number of runs that a status names on a terminal.
const MAX_NAMED: usize = 8;

/// Returns the status for a person: a line for each subject, cut to `width` columns.
fn status_lines(who: &str, answer: &Value, terminal: Terminal, width: usize) -> String {
    let numbers = Numbers(answer);
    let state = match numbers.is_paused() {
        true => "paused",
        false => "online",
    };
    let colour = Colour::of_state(state);
    let mut units: Vec<String> = numbers
        .running()
        .take(MAX_NAMED)
        .map(|id| printable(terminal.id(id), 80))
        .collect();
    if numbers.running().len() > MAX_NAMED {
        units.push("…".to_owned());
    }
    let statuses = format!("{} to send", numbers.at("/outbox"));
    let rows = [
        ("pipeline", who.to_owned()),
        ("state", state.to_owned()),
        ("host", numbers.host()),
        ("uptime", numbers.uptime()),
        ("runs", numbers.runs()),
        ("running", units.join(" ")),
        ("events", numbers.events()),
        ("statuses", statuses),
    ];
    let lines = rows.iter().filter(|(_, text)| !text.is_empty());
    let lines = lines.map(|(name, text)| {
        let text = table::cut(text, width.saturating_sub(NAMES + 2));
        let colour = colour.filter(|_| *name == "state" && terminal.colour);
        let text = colour.map_or(text.clone(), |colour| colour.paint(&text));
        format!("{name:NAMES$}  {text}")
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// Width of the names of the subjects of a status, columns.
const NAMES: usize = 8;
