//! Looks for the roots that exist, for commands without `--root`.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::error::{Error, Kind, Result};
use crate::model::roots::{Content, root_of};
use crate::model::topic::{DEFAULT_ROOT, Filter};
use crate::net::options::BrokerOptions;
use crate::net::retained::{Query, retained};
use crate::tools::listener;

/// Maximum time to wait for the first retained message, when the broker lets no marker through.
const PATIENCE: Duration = Duration::from_secs(2);

/// Returns the root below which `content` is, or the default one if it is below none. Needs `limit`
/// at most.
///
/// # Errors
/// 64 when it is below several; 69 when no broker answers; 77 when the broker lets us look for none.
pub fn resolve(broker: &BrokerOptions, content: &Content, limit: Duration) -> Result<String> {
    let found = super::runtime()?.block_on(find(broker, content, limit))?;
    let chosen = content.choose(&found).map_err(Error::usage)?;
    Ok(chosen.unwrap_or_else(|| DEFAULT_ROOT.to_owned()))
}

/// Returns where `content` is, for an error of a command that has not found it below `root`.
pub async fn hint(broker: &BrokerOptions, content: &Content, root: &str) -> String {
    // The error is about something else than this look.
    let found = find(broker, content, PATIENCE).await.unwrap_or_default();
    content
        .hint(root, &found)
        .unwrap_or_else(|| "is --root right?".to_owned())
}

/// Returns the roots below which `content` is.
async fn find(
    broker: &BrokerOptions,
    content: &Content,
    limit: Duration,
) -> Result<BTreeSet<String>> {
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
    let mut roots = BTreeSet::new();
    for delivery in &found.messages {
        if let Ok(topic) = std::str::from_utf8(&delivery.topic)
            && let Some((_, after)) = filters.iter().find(|(filter, _)| filter.matches(topic))
            && let Some(root) = root_of(topic, *after)
        {
            roots.insert(root.to_owned());
        }
    }
    Ok(roots)
}
