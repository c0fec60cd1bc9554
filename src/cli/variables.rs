//! Variables of the environment that were meant as options, and are not.

use clap::Command;
use tracing::warn;

use crate::cli::config::{QUEUE, TABLES};
use crate::cli::connection::{SHARED, variable};
use crate::model::near::nearest;
use crate::model::text;

/// Variables that are not those of an option: `tael` reads them, or sets them for a run.
const OTHER_VARIABLES: &[&str] = &[
    "TAEL_LOG",
    "TAEL_PASSWORD",
    "TAEL_TOPIC",
    "TAEL_REASON",
    "TAEL_WHO",
    "TAEL_UNIT",
    "TAEL_EVENT",
    "TAEL_ATTEMPT",
    "TAEL_HOPS",
    "TAEL_QUEUE",
    "TAEL_REDELIVERED",
    "TAEL_FENCE",
    "TAEL_QUEUE_PASSWORD",
    "TAEL_QUEUE_BROKER",
];

/// Warns of variables that look like options of `tool` and are not: in a crontab the environment is
/// the configuration. A run has variables that were meant for its client: there it says nothing.
pub fn warn_of_variables(tool: &str, command: fn() -> Command) {
    if ["TAEL_UNIT", "TAEL_EVENT"]
        .map(std::env::var_os)
        .iter()
        .all(Option::is_some)
    {
        return;
    }
    let prefix = format!("TAEL_{}_", tool.to_uppercase());
    let shared: Vec<String> = SHARED
        .iter()
        .filter_map(|long| variable(tool, long))
        .collect();
    let is_known =
        |name: &str| shared.iter().any(|known| known == name) || OTHER_VARIABLES.contains(&name);
    let of_another = |name: &str| {
        let tools = TABLES
            .iter()
            .chain([&QUEUE])
            .map(|tool| format!("TAEL_{}_", tool.to_uppercase()));
        !name.starts_with(&prefix) && tools.into_iter().any(|start| name.starts_with(&start))
    };
    let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    let ours = names.filter(|name| name.starts_with("TAEL_"));
    let names: Vec<String> = ours
        .filter(|name| !is_known(name) && !of_another(name))
        .collect();
    if names.is_empty() {
        return;
    }
    let command = command();
    let own = command
        .get_arguments()
        .filter_map(|arg| arg.get_env()?.to_str());
    let own: Vec<&str> = own.collect();
    for name in names.iter().filter(|name| !own.contains(&name.as_str())) {
        let known = own.iter().copied().chain(OTHER_VARIABLES.iter().copied());
        let close = known.filter(|known| known.len().abs_diff(name.len()) <= MAX_SLIPS);
        let hint = nearest(name, close).map(|near| format!("; did you mean {near}?"));
        let name = text::printable(name, 80);
        let is_own = name.starts_with(&prefix);
        match hint {
            hint if is_own => {
                let hint = hint.unwrap_or_default();
                warn!("{name} is in the environment, but tael {tool} has no such option{hint}");
            }
            Some(hint) => warn!("{name} is in the environment, but no option is called so{hint}"),
            // It may be of another program.
            None => {}
        }
    }
}

/// Maximum difference of length between a variable and the one that was meant.
const MAX_SLIPS: usize = 2;
