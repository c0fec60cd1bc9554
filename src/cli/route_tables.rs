//! `[[route]]` tables of a gateway.

use std::env;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use tracing::warn;

use crate::cli::config::Layers;
use crate::cli::connection::warn_of_open;
use crate::error::{Error, Result};
use crate::model::gateway::route::Target;
use crate::model::gateway::routes::Routes;
use crate::model::gateway::secret;
use crate::model::gateway::topics::Topics;
use crate::model::gateway::work::Kind;
use crate::model::text::printable;

/// Maximum number of characters of a name in a mistake.
const SHOWN: usize = 80;

/// Table of a route.
pub const ROUTE: &str = "route";

/// What routes may lead to.
#[derive(Debug, Clone, Copy)]
pub struct Ends<'a> {
    /// Whether there is a broker of queues.
    pub has_queues: bool,
    /// Work that callers may submit.
    pub work: &'a [Kind],
    /// Topics that callers may publish to; `None` if they are wrong.
    pub topics: Option<&'a Topics>,
}

impl Ends<'_> {
    /// Checks that a route may lead to `target`.
    fn check(self, target: &Target) -> Result<(), String> {
        match target {
            Target::Queue(_) if !self.has_queues => {
                Err("no broker of queues is named: see [queue]".to_owned())
            }
            Target::Work(kind) if !self.work.contains(kind) => {
                let kind = printable(&kind.to_string(), SHOWN);
                Err(format!("'{kind}' is not allowed: add --allow-work {kind}"))
            }
            Target::Topic(topic) => self
                .topics
                .map_or(Ok(()), |topics| topics.check_route(topic)),
            Target::Queue(_) | Target::Work(_) => Ok(()),
        }
    }
}

/// Reads the routes of the strongest file that has any. They lead to these `ends`. Warns of topics that
/// are not below the root.
///
/// # Errors
/// All mistakes (78).
pub fn read(layers: &Layers, ends: &Ends<'_>) -> Result<Routes, Vec<Error>> {
    let Some((layer, list)) = layers.routes() else {
        return Ok(Routes::default());
    };
    let wrong = |n: usize, place: &[String], cause: String| {
        let n = n.to_string();
        let place = place.iter().map(String::as_str);
        let place: Vec<&str> = [ROUTE, n.as_str()].into_iter().chain(place).collect();
        layer.wrong_at(&place, cause)
    };
    let read = Routes::read(list, &mut file, &|target| ends.check(target));
    let routes = read.map_err(|wrongs| -> Vec<Error> {
        let wrongs = wrongs.into_iter();
        wrongs
            .map(|(n, mistake)| wrong(n, &mistake.place, format!("route: {mistake}")))
            .collect()
    })?;
    for (n, route) in routes.all().iter().enumerate() {
        if let (Target::Topic(topic), Some(topics)) = (&route.target, ends.topics)
            && !topics.is_expected(topic)
        {
            let cause = format!(
                "route: topic: '{}' is not below the root, so the page does not show it",
                printable(topic, SHOWN)
            );
            warn!("{}", wrong(n, &["topic".to_owned()], cause));
        }
    }
    Ok(routes)
}

/// Returns the content of a file with a secret, as far as a secret may have it.
fn file(path: &Path) -> Result<Vec<u8>, String> {
    let limit = u64::try_from(secret::MAX_BYTES).unwrap_or(u64::MAX);
    let mut content = Vec::new();
    let read = File::open(path).and_then(|file| file.take(limit + 3).read_to_end(&mut content));
    read.map_err(|e| {
        let shown = path.display();
        match env::current_dir().ok().filter(|_| path.is_relative()) {
            Some(folder) => format!("read {shown} in {}: {e}", folder.display()),
            None => format!("read {shown}: {e}"),
        }
    })?;
    warn_of_open("secret", path);
    Ok(content)
}
