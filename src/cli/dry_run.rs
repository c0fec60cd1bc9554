//! The options of `tael client --dry-run`: a message to try.

use std::io::{self, Read};

use bytes::Bytes;
use clap::Args;

use crate::error::{Error, Result};
use crate::model::message::{Delivery, Properties};
use crate::model::topic::{self, Filter};
use crate::model::trigger::Trigger;
use crate::tools::dry_run::Trial;

/// Options of a dry run.
#[derive(Debug, Args)]
pub struct DryRun {
    /// Print which triggers would run what for the message of -m, or why not, and exit; runs and
    /// changes nothing, and needs no broker
    #[arg(long)]
    dry_run: bool,
    /// Payload of the message of a dry run; - reads it from standard input
    #[arg(
        short,
        long,
        value_name = "JSON",
        requires = "dry_run",
        allow_hyphen_values = true
    )]
    message: Option<String>,
    /// Topic of the message of a dry run [default: -t]
    #[arg(long, value_name = "TOPIC", requires = "dry_run")]
    message_topic: Option<String>,
    /// User property of the message of a dry run; repeatable
    #[arg(long, value_name = "NAME=VALUE", requires = "dry_run", action = clap::ArgAction::Append)]
    message_property: Vec<String>,
    /// The message of a dry run is retained
    #[arg(long, requires = "dry_run")]
    message_retained: bool,
}

fn wrong(cause: &str) -> Error {
    Error::usage(format!("dry run: {cause}"))
}

impl DryRun {
    /// Returns whether it is asked for.
    pub const fn is_wanted(&self) -> bool {
        self.dry_run
    }

    /// Returns the message, with a payload of `limit` bytes at most. Its topic is the only one of
    /// `topics` unless another option names it.
    ///
    /// # Errors
    /// 64 for wrong options, 65 when standard input cannot be read.
    pub fn message(&self, topics: &[String], limit: usize) -> Result<Tried> {
        let Some(message) = &self.message else {
            return Err(wrong("give the message with -m, and its topic with -t"));
        };
        let payload = payload(message, limit)?;
        let topic = match (&self.message_topic, topics) {
            (Some(topic), _) => topic.clone(),
            // The group of a shared subscription is no part of the topic.
            (None, [one]) => match Filter::new(one) {
                Ok(filter) => filter.unshared().to_owned(),
                Err(_) => one.clone(),
            },
            (None, []) => return Ok(Tried::Body(payload.into())),
            (None, _) => return Err(wrong("give the topic of the message with --message-topic")),
        };
        topic::check_name(&topic).map_err(|e| wrong(&format!("{e}: use --message-topic")))?;
        let property = |text: &String| match text.split_once('=') {
            Some((name, value)) => Ok((name.to_owned(), value.to_owned())),
            None => Err(wrong(&format!("property '{text}' is not NAME=VALUE"))),
        };
        let user = self.message_property.iter().map(property);
        Ok(Tried::Delivery(Delivery {
            topic: topic.into(),
            payload: payload.into(),
            retained: self.message_retained,
            duplicate: false,
            packet: 0,
            properties: Properties {
                user: user.collect::<Result<_>>()?,
                ..Properties::default()
            },
        }))
    }
}

/// A message to try.
#[derive(Debug)]
pub enum Tried {
    /// A message on a topic.
    Delivery(Delivery),
    /// The body of a message without a topic.
    Body(Bytes),
}

impl Tried {
    /// Returns the message for `triggers`: without a topic it is one of their queues.
    ///
    /// # Errors
    /// 64 when there is neither a topic nor a queue.
    pub fn resolve(self, triggers: &[Trigger]) -> Result<Trial> {
        match self {
            Self::Delivery(delivery) => Ok(Trial::Topic(delivery)),
            Self::Body(body) if triggers.iter().any(|trigger| trigger.queue.is_some()) => {
                Ok(Trial::Queue(body))
            }
            Self::Body(_) => Err(wrong("give the topic of the message with -t")),
        }
    }
}

/// Returns a payload that is an argument, or comes from standard input.
fn payload(message: &str, limit: usize) -> Result<Vec<u8>> {
    if message != "-" {
        return Ok(message.as_bytes().to_vec());
    }
    let mut input = Vec::new();
    let limit = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    let read = io::stdin().lock().take(limit).read_to_end(&mut input);
    read.map_err(|e| Error::data(format!("read message from standard input: {e}")))?;
    Ok(input)
}
