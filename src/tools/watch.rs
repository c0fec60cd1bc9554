//! `tael watch`: shows messages live, one a line.

use std::env;
use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::time::Duration;

use jiff::Zoned;
use serde_json::{Map, Value, json};

use crate::error::Result;
use crate::model::event::{Attributes, attribute_text, attributes};
use crate::model::message::{Delivery, Qos, property};
use crate::model::text::{escaped_json, printable, printable_bytes};
use crate::model::topic::Filter;
use crate::model::{json, marker, moment};
use crate::net::options::BrokerOptions;
use crate::net::session::{Event, Session, Subscriptions};
use crate::os::signals::{self, Stop};
use crate::tools::listener;

/// Maximum length of one value on a line, characters.
const MAX_VALUE: usize = 120;

/// Maximum time of our end after a signal.
const FAREWELL: Duration = Duration::from_secs(5);

/// Options of the command.
#[derive(Debug, Clone)]
pub struct Options {
    /// Broker, and our credentials.
    pub broker: BrokerOptions,
    /// Filters to subscribe to.
    pub filters: Vec<Filter>,
    /// Highest QoS of deliveries, 1 at most.
    pub qos: Qos,
    /// Texts; messages whose topic or payload contains one are not shown.
    pub drop: Vec<String>,
    /// Whether to print one JSON object a line.
    pub json: bool,
    /// Number of lines after which it ends.
    pub count: Option<u64>,
}

/// Prints messages until it is stopped.
///
/// # Errors
/// When the broker refuses us.
pub fn run(options: &Options) -> Result<ExitCode> {
    signals::give_up_after(FAREWELL)?;
    super::runtime()?.block_on(watch(options))?;
    Ok(ExitCode::SUCCESS)
}

async fn watch(options: &Options) -> Result<()> {
    let mut stop = Stop::listen(false)?;
    let subscriptions = Subscriptions {
        required: options.filters.clone(),
        optional: Vec::new(),
        qos: options.qos.min(Qos::AtLeastOnce),
    };
    let mut session = Session::new(listener(&options.broker), subscriptions).announced();
    if options.count.is_none() {
        session = session.lasting();
    }
    let colour = io::stdout().is_terminal() && env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    let mut left = options.count.unwrap_or(u64::MAX);
    while left > 0 {
        let event = tokio::select! {
            () = stop.requested() => break,
            event = session.next() => event?,
        };
        if let Event::Received(received) = event {
            if !is_dropped(&received.delivery, &options.drop) {
                super::print(&if options.json {
                    json_line(&received.delivery)
                } else {
                    line(&received.delivery, colour, &clock())
                })?;
                left -= 1;
            }
            session.acknowledge(&received.ack);
        }
    }
    session.close().await;
    Ok(())
}

pub(super) fn clock() -> String {
    moment::clock(&Zoned::now())
}

fn is_dropped(delivery: &Delivery, drop: &[String]) -> bool {
    if marker::is_marker(&delivery.topic) {
        return true;
    }
    let topic = String::from_utf8_lossy(&delivery.topic);
    let payload = String::from_utf8_lossy(&delivery.payload);
    drop.iter()
        .any(|text| topic.contains(text.as_str()) || payload.contains(text.as_str()))
}

/// Returns `TIME  TOPIC  STATUS  WHO  KEY=VALUE …`, with a `!` before announced statuses. Retained
/// messages are marked, because they may be old.
pub(super) fn line(delivery: &Delivery, colour: bool, clock: &str) -> String {
    let mut topic = printable_bytes(&delivery.topic, 200);
    if delivery.retained {
        topic += "  (retained)";
    }
    let Ok(mut attributes) = attributes(&delivery.payload, usize::MAX) else {
        let payload = printable_bytes(&delivery.payload, 400);
        return format!("{clock}  {topic}  {payload}");
    };
    let announce = attributes.shift_remove("announce") == Some(Value::Bool(true));
    let status = ["status", "state", "action"]
        .into_iter()
        .find_map(|key| attributes.shift_remove(key))
        .map_or_else(|| "-".to_owned(), |v| printable(&attribute_text(&v), 40));
    let who = who(delivery, &mut attributes);
    let mut words = vec![
        clock.to_owned(),
        topic,
        if announce {
            format!("! {status}")
        } else {
            status.clone()
        },
        who,
    ];
    let rest: Vec<String> = attributes
        .iter()
        .map(|(key, value)| {
            let text = attribute_text(value);
            format!(
                "{}={}",
                printable(&json::lossy(key), 60),
                printable(&text, MAX_VALUE)
            )
        })
        .collect();
    if !rest.is_empty() {
        words.push(rest.join(" "));
    }
    let line = words.join("  ");
    match (colour, announce, status.as_str()) {
        (true, true, _) => format!("\x1b[1;31m{line}\x1b[0m"),
        (true, false, "finished") => format!("\x1b[32m{line}\x1b[0m"),
        (true, false, "started") => format!("\x1b[36m{line}\x1b[0m"),
        _ => line,
    }
}

fn who(delivery: &Delivery, attributes: &mut Attributes) -> String {
    let user = attributes.shift_remove("user").map(|v| attribute_text(&v));
    let who = delivery.properties.user(property::WHO).map(str::to_owned);
    match (who.or(user), delivery.properties.user(property::HOST)) {
        (Some(who), Some(host)) => printable(&format!("{who}@{host}"), 100),
        (Some(who), None) => printable(&who, 100),
        (None, Some(host)) => printable(&format!("@{host}"), 100),
        (None, None) => "-".into(),
    }
}

fn json_line(delivery: &Delivery) -> String {
    let payload = json::parse(&delivery.payload)
        .unwrap_or_else(|_| json!(String::from_utf8_lossy(&delivery.payload)));
    let mut properties = Map::new();
    for (name, value) in &delivery.properties.user {
        properties.insert(name.clone(), json!(value));
    }
    let line = json!({
        "time": Zoned::now().timestamp().to_string(),
        "topic": String::from_utf8_lossy(&delivery.topic),
        "retained": delivery.retained,
        "payload": payload,
        "properties": properties,
    });
    escaped_json(&json::to_text(&line))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn delivery(payload: &str) -> Delivery {
        Delivery {
            topic: Bytes::from("lab/seq/status"),
            payload: Bytes::from(payload.to_owned()),
            retained: false,
            duplicate: false,
            packet: 0,
            properties: crate::model::message::Properties {
                user: vec![
                    (property::WHO.into(), "seq".into()),
                    (property::HOST.into(), "h1".into()),
                ],
                ..Default::default()
            },
        }
    }

    #[test]
    fn lines_are_readable() {
        let show = |payload| line(&delivery(payload), false, "12:00:00");
        assert_eq!(
            show(r#"{"status":"finished","return_code":0,"announce":false,"sample":"S 1"}"#),
            "12:00:00  lab/seq/status  finished  seq@h1  return_code=0 sample=S 1"
        );
        assert_eq!(
            show(r#"{"status":"failed","announce":true}"#),
            "12:00:00  lab/seq/status  ! failed  seq@h1"
        );
        assert_eq!(show("\x1b[2J"), "12:00:00  lab/seq/status  \\u{1b}[2J");
        let red = line(
            &delivery(r#"{"status":"failed","announce":true}"#),
            true,
            "t",
        );
        assert!(red.starts_with("\x1b[1;31m") && red.ends_with("\x1b[0m"));
        let old = Delivery {
            retained: true,
            ..delivery(r#"{"status":"finished"}"#)
        };
        assert_eq!(
            line(&old, false, "t"),
            "t  lab/seq/status  (retained)  finished  seq@h1"
        );
    }

    #[test]
    fn dropped_by_topic_or_payload() {
        let d = delivery(r#"{"status":"test"}"#);
        for (text, want) in [("test", true), ("seq", true), ("other", false)] {
            assert_eq!(is_dropped(&d, &[text.to_owned()]), want, "{text}");
        }
    }
}
