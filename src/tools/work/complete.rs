//! Words that shells complete: ids of units, types of work, and names of pipelines.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::time::Duration;

use crate::error::Result;
use crate::store::ledger::Reader;
use crate::store::ledger::listing::{Listing, Selection};
use crate::tools::work::connection::Connection;
use crate::tools::work::{Scope, pipelines};

/// Maximum number of ids to offer, the newest ones.
const MAX_UNITS: usize = 100;

/// Maximum time for a client to say which types of work it has. A person waits for all of them.
const ANSWER: Duration = Duration::from_millis(500);

/// Returns the types of work that running clients have. Leaves out clients that do not answer.
///
/// # Errors
/// When the state cannot be read.
pub fn types(scope: &Scope) -> Result<Vec<String>> {
    let mut found = BTreeSet::new();
    for (_, pipeline) in pipelines(scope)? {
        let about = Connection::open_within(&pipeline, ANSWER).and_then(|mut c| c.about());
        found.extend(about.into_iter().flat_map(|about| about.types));
    }
    Ok(found.into_iter().collect())
}

/// Returns the names of the pipelines.
///
/// # Errors
/// When the state cannot be read.
pub fn names(scope: &Scope) -> Result<Vec<String>> {
    Ok(pipelines(scope)?.into_iter().map(|(who, _)| who).collect())
}

/// Returns the ids of the newest units, newest first. Leaves out pipelines that cannot be read.
///
/// # Errors
/// When the state cannot be read.
pub fn units(scope: &Scope) -> Result<Vec<String>> {
    let selection = Selection {
        states: Vec::new(),
        since: None,
    };
    let mut found = Vec::new();
    for (_, pipeline) in pipelines(scope)? {
        let page = Reader::open(&pipeline)
            .and_then(|reader| Listing::new(&reader, &selection).before(i64::MAX));
        let page = page.unwrap_or_default().into_iter();
        found.extend(page.map(|listed| (listed.record.accepted, listed.record.unit.id)));
    }
    found.sort_by_key(|found| Reverse(found.0));
    Ok(found
        .into_iter()
        .take(MAX_UNITS)
        .map(|(_, id)| id)
        .collect())
}
