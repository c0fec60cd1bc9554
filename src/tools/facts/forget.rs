//! `tael facts forget`: clears what the broker retains about nodes that are gone for good.

use std::process::ExitCode;

use jiff::Timestamp;

use crate::error::{Error, Result};
use crate::model::facts::kind::NodeTopics;
use crate::model::facts::nodes::Seen;
use crate::model::facts::presence::Verdict;
use crate::model::roots::Content;
use crate::model::text::printable;
use crate::tools::facts::collect::Source;
use crate::tools::{forget, roots};

/// Options of the command.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where nodes tell their facts.
    pub source: Source,
    /// Names of the nodes.
    pub nodes: Vec<String>,
    /// Whether to forget also a node whose facts are fresh.
    pub force: bool,
}

/// Forgets the nodes, and prints a line for each. If one must not be forgotten, forgets none.
///
/// # Errors
/// 65 when one is fresh or nothing is retained about it; those of the broker.
pub fn run(options: &Options) -> Result<ExitCode> {
    crate::tools::check_stdout()?;
    let source = &options.source;
    let topics = |name: &String| NodeTopics::new(&source.root, name).retained();
    let topics: Vec<String> = options.nodes.iter().flat_map(topics).collect();
    let now = Timestamp::now().as_second();
    let lines = crate::tools::runtime()?.block_on(async {
        let found = source.nodes(topics.clone(), false).await?;
        let mut lines = Vec::new();
        for name in &options.nodes {
            let Some(seen) = found.seen.get(name) else {
                let content = Content::Nodes(vec![name.clone()]);
                let hint = roots::hint(&source.broker, &content, &source.root).await;
                let root = &source.root;
                return Err(Error::data(format!(
                    "forget node {name}: nothing is retained about it below {root}; {hint}"
                )));
            };
            lines.push(may_forget(options, name, seen, now)?);
        }
        // The presence of a node comes last: without it, the node is not found any more.
        forget::clear(&source.broker, &topics, source.timeout).await?;
        Ok(lines)
    })?;
    for line in lines {
        crate::tools::print(&line)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Returns the line about a node that may be forgotten.
fn may_forget(options: &Options, name: &str, seen: &Seen, now: i64) -> Result<String> {
    let verdict = seen.verdict(now);
    let host = seen.presence.as_ref().map_or("", |presence| &presence.host);
    let on = match host {
        "" => String::new(),
        host => format!(" on {}", printable(host, 80)),
    };
    if verdict == Verdict::Fresh && !options.force {
        return Err(Error::data(format!(
            "forget node {name}: it is fresh{on}; stop its tael facts publish first, or give --force"
        )));
    }
    // Its age is not known: it may be there.
    let is_unknown = verdict == Verdict::Skewed || seen.presence.is_none();
    if is_unknown && !options.force {
        return Err(Error::data(format!(
            "forget node {name}: when it was there last is not known{on}; give --force if it is gone"
        )));
    }
    Ok(format!("forgot {name}, {}{on}", verdict.name()))
}
