//! Looks for the roots that exist, for commands without `--root`.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::error::{Error, Kind, Result};
use crate::model::near::nearest;
use crate::model::roots::{Content, root_of};
use crate::model::text::printable;
use crate::model::topic::{DEFAULT_ROOT, Filter, PipelineTopic};
use crate::net::options::BrokerOptions;
use crate::net::retained::{Query, retained};
use crate::tools::listener;

/// Maximum time to wait for the first retained message, when the broker lets no marker through.
const PATIENCE: Duration = Duration::from_secs(2);

/// Returns the root below which `content` is, otherwise that of what is [wider](Content::wider); the default one if
/// neither is below any. Needs `limit` at most for each.
///
/// # Errors
/// 64 when it is below several; 69 when no broker answers; 77 when the broker lets us look for none.
pub fn resolve(broker: &BrokerOptions, content: &Content, limit: Duration) -> Result<String> {
    let runtime = super::runtime()?;
    let look = |content: &Content| -> Result<Option<String>> {
        let found = runtime.block_on(find(broker, content, limit))?;
        content.choose(&found).map_err(Error::usage)
    };
    let chosen = match (look(content)?, content.wider()) {
        (None, Some(wider)) => look(&wider)?,
        (chosen, _) => chosen,
    };
    Ok(chosen.unwrap_or_else(|| DEFAULT_ROOT.to_owned()))
}

/// Returns where `content` is, for an error of a command that has not found it below `root`.
pub async fn hint(broker: &BrokerOptions, content: &Content, root: &str) -> String {
    // The error is about something else than this look.
    let found = find(broker, content, PATIENCE).await.unwrap_or_default();
    if let Some(hint) = content.hint(root, &found) {
        return hint;
    }
    let near = match content {
        Content::Pipeline(who) => match pipelines(broker, PATIENCE).await {
            Ok(known) if known.0.is_empty() => {
                let none = "the broker knows no pipeline at all: are --broker and --root right?";
                Some(none.to_owned())
            }
            Ok(known) => known.nearest(who),
            Err(_) => None,
        },
        _ => None,
    };
    near.unwrap_or_else(|| "is --root right?".to_owned())
}

/// The pipelines about which a broker retains something: their roots and names.
#[derive(Debug, Default)]
pub struct Pipelines(BTreeSet<(String, String)>);

impl Pipelines {
    /// Returns whether there are some, but none called `who`.
    pub fn lack(&self, who: &str) -> bool {
        !self.0.is_empty() && !self.0.iter().any(|(_, known)| known == who)
    }

    /// Returns a hint to a pipeline whose name is nearly `who`.
    pub fn nearest(&self, who: &str) -> Option<String> {
        let near = nearest(who, self.0.iter().map(|(_, known)| known.as_str()))?;
        let roots = self.0.iter().filter(|(_, known)| known == near);
        let roots: Vec<String> = roots.map(|(root, _)| printable(root, 80)).collect();
        let (near, roots) = (printable(near, 80), roots.join(", "));
        Some(format!("did you mean {near} below {roots}?"))
    }
}

/// Returns the pipelines below all roots.
pub async fn pipelines(broker: &BrokerOptions, limit: Duration) -> Result<Pipelines> {
    let mut known = BTreeSet::new();
    for (topic, _) in seen(broker, &Content::Pipelines, limit).await? {
        if let Some(topic) = PipelineTopic::parse(&topic) {
            known.insert((topic.root.to_owned(), topic.who.to_owned()));
        }
    }
    Ok(Pipelines(known))
}

/// Returns the roots below which `content` is.
async fn find(
    broker: &BrokerOptions,
    content: &Content,
    limit: Duration,
) -> Result<BTreeSet<String>> {
    let seen = seen(broker, content, limit).await?;
    let roots = seen
        .iter()
        .filter_map(|(topic, after)| root_of(topic, *after));
    Ok(roots.map(str::to_owned).collect())
}

/// Returns the topics of the retained messages that show `content`, each with its number of levels
/// after the root.
async fn seen(
    broker: &BrokerOptions,
    content: &Content,
    limit: Duration,
) -> Result<Vec<(String, usize)>> {
    let mut filters = Vec::new();
    for (filter, after) in content.filters() {
        filters.push((Filter::new(filter).map_err(Error::usage)?, after));
    }
    let query = Query {
        filters: filters.iter().map(|(filter, _)| filter.clone()).collect(),
        root: DEFAULT_ROOT.to_owned(),
        limit,
        patience: PATIENCE.min(limit),
    };
    let found = retained(listener(broker), query).await.map_err(|e| {
        let refused = e.kind() == Kind::NotAuthorised;
        match refused {
            true => Error::new(e.kind(), format!("look for roots: {e}; give --root")),
            false => e,
        }
    })?;
    let mut seen = Vec::new();
    for delivery in &found.messages {
        if let Ok(topic) = std::str::from_utf8(&delivery.topic)
            && let Some((_, after)) = filters.iter().find(|(filter, _)| filter.matches(topic))
        {
            seen.push((topic.to_owned(), *after));
        }
    }
    Ok(seen)
}
