//! `tael client --dry-run`: prints what a client would do with a message. Nothing runs.

use std::process::ExitCode;

use bytes::Bytes;

use crate::engine::config::Config;
use crate::engine::preview::{Verdict, preview, preview_queued};
use crate::error::{Kind, Result};
use crate::model::message::Delivery;
use crate::model::text::printable;
use crate::runner::Job;

/// Maximum length of a line, characters.
const MAX_SHOWN: usize = 2000;

/// Variables that each run has anew.
const NEW: &[&str] = &["TAEL_UNIT", "TAEL_EVENT"];

/// A message to try.
#[derive(Debug)]
pub enum Trial {
    /// One on a topic.
    Topic(Delivery),
    /// The body of one in the queue of each trigger that has one.
    Queue(Bytes),
}

/// Prints what each trigger of the pipeline makes of the message. Returns 65 if none would run.
///
/// # Errors
/// When stdout cannot be written.
pub fn run(config: &Config, trial: &Trial) -> Result<ExitCode> {
    let mut runs = false;
    let previews = match trial {
        Trial::Topic(delivery) => preview(config, delivery),
        Trial::Queue(body) => preview_queued(config, body),
    };
    for one in previews {
        let name = match &*one.trigger {
            "" => "all triggers".to_owned(),
            name => format!("trigger '{}'", printable(name, MAX_SHOWN)),
        };
        let line = match &one.verdict {
            Verdict::Runs(_) => format!("{name}: runs"),
            Verdict::CannotStart(why) => format!("{name}: cannot start: {why}"),
            Verdict::Refuses(why) => format!("{name}: refused: {why}"),
            Verdict::Ignores(why) => format!("{name}: ignored: {why}"),
        };
        super::print(&printable(&line, MAX_SHOWN))?;
        if let Verdict::Runs(job) = &one.verdict {
            runs = true;
            show(job)?;
        }
    }
    for kind in &config.work {
        let line = format!(
            "work type '{0}': no message starts it: tael work submit {0}",
            kind.name
        );
        super::print(&line)?;
    }
    Ok(match runs {
        true => ExitCode::SUCCESS,
        false => ExitCode::from(Kind::Data.exit_code()),
    })
}

/// Prints what a run would execute, where, and which variables Tael adds.
fn show(job: &Job) -> Result<()> {
    let line = |name: &str, text: &str| {
        super::print(&format!("  {name:<8} {}", printable(text, MAX_SHOWN)))
    };
    line("command", &shell_words::join(&job.argv))?;
    if let Some(cwd) = &job.cwd {
        line("folder", &cwd.to_string_lossy())?;
    }
    line("stdin", &format!("the payload, {} bytes", job.stdin))?;
    for (name, value) in &job.variables {
        let value = match NEW.contains(&name.as_str()) {
            true => "(a new id)".to_owned(),
            false => value.to_text(),
        };
        super::print(&printable(&format!("  {name}={value}"), MAX_SHOWN))?;
    }
    Ok(())
}
