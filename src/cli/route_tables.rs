//! `[[route]]` tables of a gateway.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::cli::config::Layers;
use crate::cli::connection::warn_of_open;
use crate::error::Result;
use crate::model::gateway::route::{Routes, Target};
use crate::model::gateway::secret;
use crate::model::gateway::work::Kind;
use crate::model::text::printable;

/// Maximum number of characters of a name in a mistake.
const SHOWN: usize = 80;

/// Table of a route.
pub const ROUTE: &str = "route";

/// What routes may lead to beside topics.
#[derive(Debug, Clone)]
pub struct Ends {
    /// Whether there is a broker of queues.
    pub has_queues: bool,
    /// Work that callers may submit.
    pub work: Vec<Kind>,
}

/// Reads the routes of the strongest file that has any. They lead to topics, and to these `ends`.
///
/// # Errors
/// The first mistake (78).
pub fn read(layers: &Layers, ends: &Ends) -> Result<Routes> {
    let Some((layer, list)) = layers.routes() else {
        return Ok(Routes::default());
    };
    let wrong = |n: usize, place: &[String], cause: String| {
        let n = n.to_string();
        let place = place.iter().map(String::as_str);
        let place: Vec<&str> = [ROUTE, n.as_str()].into_iter().chain(place).collect();
        layer.wrong_at(&place, cause)
    };
    let routes = Routes::read(list, &mut file)
        .map_err(|(n, mistake)| wrong(n, &mistake.place, format!("route: {mistake}")))?;
    for (n, route) in routes.all().iter().enumerate() {
        match &route.target {
            Target::Queue(_) if !ends.has_queues => {
                let cause = "route: queue: no broker of queues is named: see [queue]".to_owned();
                return Err(wrong(n, &["queue".to_owned()], cause));
            }
            Target::Work(kind) if !ends.work.contains(kind) => {
                let kind = printable(&kind.to_string(), SHOWN);
                let cause =
                    format!("route: work: '{kind}' is not allowed: add --allow-work {kind}");
                return Err(wrong(n, &["work".to_owned()], cause));
            }
            Target::Queue(_) | Target::Topic(_) | Target::Work(_) => {}
        }
    }
    Ok(routes)
}

/// Returns the content of a file with a secret, as far as a secret may have it.
fn file(path: &Path) -> Result<Vec<u8>, String> {
    let limit = u64::try_from(secret::MAX_BYTES).unwrap_or(u64::MAX);
    let mut content = Vec::new();
    let read = File::open(path).and_then(|file| file.take(limit + 3).read_to_end(&mut content));
    read.map_err(|e| format!("read {}: {e}", path.display()))?;
    warn_of_open("secret", path);
    Ok(content)
}
