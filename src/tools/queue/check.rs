//! What `tael client --check --connect` asks the brokers of queues. Nothing is declared that is not there.

use std::time::Duration;

use crate::engine::config::Config;
use crate::error::Result;
use crate::model::queue::QueueSource;
use crate::net::amqp::{Connection, Failure, FailureKind};
use crate::tools::queue::target::{Target, goodbye};
use crate::tools::runtime;

/// Maximum time for a broker to answer.
const ANSWER: Duration = Duration::from_secs(10);

/// Asks the broker of each queue of a pipeline whether it accepts the client, and whether the queue is
/// there as it should be. Returns a line for each queue that is right.
pub fn ask_queues(config: &Config) -> Vec<Result<String>> {
    let sources = config.triggers.iter();
    let sources: Vec<&QueueSource> = sources
        .filter_map(|trigger| trigger.queue.as_deref())
        .collect();
    if sources.is_empty() {
        return Vec::new();
    }
    let ask = async {
        let mut answers = Vec::new();
        for source in sources {
            answers.push(ask(config, source).await);
        }
        answers
    };
    match runtime() {
        Ok(runtime) => runtime.block_on(ask),
        Err(e) => vec![Err(e)],
    }
}

async fn ask(config: &Config, source: &QueueSource) -> Result<String> {
    let target = Target {
        url: source.url.clone(),
        access: config.queues.clone(),
        management: None,
        interval: ANSWER,
    };
    let connection = target.connect(ANSWER).await?;
    let found = look(&target, &connection, source).await;
    goodbye(connection).await;
    let found = found.map_err(|failure| target.failed(&source.url.queue, failure))?;
    let (broker, queue) = (source.url.broker(), target.shown());
    Ok(match found {
        Some(messages) => format!("{broker} has queue '{queue}', {messages} messages are ready"),
        None => format!("{broker} has no queue '{queue}' yet: the client declares it"),
    })
}

/// Returns how many messages are ready; nothing if the client will declare the queue.
async fn look(
    target: &Target,
    connection: &Connection,
    source: &QueueSource,
) -> Result<Option<u32>, Failure> {
    let figures = match Target::figures(connection, &source.url.queue).await {
        Err(failure) if failure.kind == FailureKind::Missing && source.declare.is_some() => {
            return Ok(None);
        }
        figures => figures?,
    };
    // It is there: to declare it shows whether it has this type, and changes nothing.
    target.declare(connection, source.declare).await?;
    match Target::figures(connection, &source.dead_letter()).await {
        Ok(_) => {}
        // The client declares it.
        Err(failure) if failure.kind == FailureKind::Missing => {}
        Err(failure) => return Err(failure),
    }
    Ok(Some(figures.messages))
}
