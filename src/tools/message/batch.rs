//! A message for each line of standard input, over one connection.

use std::process::ExitCode;

use crate::error::{Kind, Result};
use crate::os::logging::{flush, show};
use crate::tools::check_stdout;
use crate::tools::lines::lines;
use crate::tools::message::ask::{End, Exchange, INTERRUPTED, Source, too_late};
use crate::tools::message::{Options, Task, unheard};

/// Publishes the messages, and prints a summary on standard error. Returns the highest code of the
/// answers, or 75 if some are missing.
///
/// # Errors
/// 65 when a line is no JSON object, 69 when there was no broker for too long or no client
/// subscribes. The answers to earlier lines are printed, and the summary too.
pub(super) async fn batch(options: &Options) -> Result<ExitCode> {
    let asks = matches!(options.task, Task::Ask(_));
    if asks {
        check_stdout()?;
    }
    let source = Source::Lines(lines()?, options.attributes.clone());
    let mut exchange = Exchange::new(options, source)?;
    let end = exchange.run().await;
    exchange.requests.give_up();
    if exchange.was_online() {
        show(&exchange.summary());
        flush();
    }
    let tally = exchange.requests.tally();
    let (is_unheard, code) = (tally.unheard, tally.code);
    let (sent, missing) = (tally.sent, tally.missing());
    let result = match end {
        Err(error) => Err(error),
        Ok(End::Interrupted) => Ok(ExitCode::from(INTERRUPTED)),
        Ok(End::Unreachable) => Err(exchange.unreachable()),
        Ok(End::Done) => match exchange.problem.take() {
            Some(problem) => Err(problem),
            None if is_unheard => Err(unheard(options)),
            None if missing > 0 && asks => Err(too_late(
                options,
                &format!("{missing} of {sent} tasks have not been answered"),
                "do workers listen there, and is that long enough for a task to wait at its worker and to run?",
            )),
            None if missing > 0 => Ok(ExitCode::from(Kind::TryAgain.exit_code())),
            None => Ok(ExitCode::from(code)),
        },
    };
    exchange.close().await;
    result
}
