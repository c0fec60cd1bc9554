//! `tael work list`: the units of all pipelines in one order, streamed.

use std::process::ExitCode;

use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};
use serde_json::Value;

use crate::error::Result;
use crate::model::about::About;
use crate::model::table::{Colour, Column, Layout};
use crate::model::text::{escaped_json, printable};
use crate::model::unit::short_id;
use crate::model::{duration, json, moment};
use crate::os::logging::say;
use crate::os::terminal::Terminal;
use crate::store::ledger::listing::Listed;
use crate::tools::work::show::{Times, report};
use crate::tools::work::walk::{Filter, Row, Walk};
use crate::tools::work::{Scope, elsewhere, state_name};

/// Number of rows that decide about the widths of columns: a large screen.
const SAMPLE: usize = 60;

/// Number of bytes that are printed at once.
const CHUNK: usize = 16 * 1024;

/// Maximum length of a command and of one value, characters. A terminal shows less.
const MAX_TEXT: usize = 1000;
const MAX_VALUE: usize = 200;

/// State of a failed unit that was retried, in a table.
const RETRIED: &str = "retried";

/// The columns. On a terminal, names and attributes shrink before the command is gone.
const COLUMNS: &[Column] = &[
    Column::whole("UNIT"),
    Column::whole("STARTED"),
    Column::text("PIPELINE", 8, 20),
    Column::whole("STATE"),
    Column::number("ELAPSED"),
    Column::number("EXIT"),
    Column::text("ABOUT", 12, 24),
    Column::text("COMMAND", 8, usize::MAX),
];

/// Prints the units that `filter` selects.
///
/// # Errors
/// When stdout cannot be written.
pub(super) fn list(scope: &Scope, filter: &Filter) -> Result<ExitCode> {
    let mut walk = Walk::new(scope, filter)?;
    let printed = match filter.json {
        true => print_json(&mut walk)?,
        false => print_table(&mut walk)?,
    };
    let wanted = filter.newest != Some(0) && !filter.json;
    if printed == 0 && wanted && walk.unreadable.is_none() {
        let folder = scope.state.display();
        let what = match walk.sources.is_empty() {
            true => format!("no pipeline has run here: there is no ledger in {folder}"),
            false => format!("no run to list in {folder}"),
        };
        say(&format!("{what}{}", elsewhere(scope)));
    }
    let code = walk.unreadable.map(|e| ExitCode::from(e.exit_code()));
    Ok(code.unwrap_or(ExitCode::SUCCESS))
}

/// Output that is printed in chunks.
#[derive(Default)]
struct Chunks(String);

impl Chunks {
    fn add(&mut self, text: &str) -> Result<()> {
        self.0 += text;
        if self.0.len() >= CHUNK {
            self.flush()
        } else {
            Ok(())
        }
    }

    fn flush(&mut self) -> Result<()> {
        let text = std::mem::take(&mut self.0);
        if text.is_empty() {
            Ok(())
        } else {
            crate::tools::print_part(&text)
        }
    }
}

fn print_json(walk: &mut Walk<'_>) -> Result<usize> {
    let (mut out, mut rows) = (Chunks::default(), 0);
    while let Some(row) = walk.next()? {
        let Some(source) = walk.sources.get(row.source) else {
            continue;
        };
        let state = (row.state, row.outcome.as_ref());
        let mut report = report(&source.who, &source.pipeline, &row.listed.record, state);
        if let Value::Object(report) = &mut report {
            let about = row
                .listed
                .about
                .into_iter()
                .map(|(name, value)| (name, value.into()));
            report.insert("about".to_owned(), Value::Object(about.collect()));
            if row.retried {
                report.insert("retried".to_owned(), true.into());
            }
        }
        let start = if rows == 0 { "[" } else { "," };
        out.add(&format!("{start}{}", escaped_json(&json::to_text(&report))))?;
        rows += 1;
        if rows == SAMPLE {
            out.flush()?;
        }
    }
    out.add(if rows == 0 { "[]\n" } else { "]\n" })?;
    out.flush()?;
    Ok(rows)
}

fn print_table(walk: &mut Walk<'_>) -> Result<usize> {
    let terminal = Terminal::of_stdout();
    let mut first = Vec::new();
    while first.len() < SAMPLE
        && let Some(row) = walk.next()?
    {
        first.push(cells(walk, &row, terminal));
    }
    if first.is_empty() {
        return Ok(0);
    }
    let rows = first.iter().map(|row| row.iter().map(String::as_str));
    let layout = Layout::fit(COLUMNS, rows, terminal.width);
    let (mut out, mut count) = (Chunks::default(), first.len());
    let line = |row: &[String; 8]| {
        let state = |n: usize, text: &str| {
            (n == 3 && terminal.colour)
                .then(|| Colour::of_state(text))
                .flatten()
        };
        let cells = row.iter().enumerate();
        layout.line(cells.map(|(n, text)| (text.as_str(), state(n, text)))) + "\n"
    };
    out.add(&(layout.heading() + "\n"))?;
    for row in first {
        out.add(&line(&row))?;
    }
    out.flush()?;
    while let Some(row) = walk.next()? {
        out.add(&line(&cells(walk, &row, terminal)))?;
        count += 1;
    }
    out.flush()?;
    Ok(count)
}

/// Returns the cells of a row. On a terminal they are short. Otherwise each, except the last, is one
/// word for `awk`.
fn cells(walk: &Walk<'_>, row: &Row, terminal: Terminal) -> [String; 8] {
    let Listed { record, about } = &row.listed;
    let unit = &record.unit;
    let times = Times::of(record, row.state, row.outcome.as_ref());
    let local = |at: i64| {
        let at = Timestamp::from_millisecond(at).unwrap_or(Timestamp::UNIX_EPOCH);
        at.to_zoned(TimeZone::system())
    };
    let source = walk.sources.get(row.source);
    let mut pipeline = source.map_or("", |source| &*source.who).to_owned();
    if source.is_some_and(|source| source.several) {
        pipeline = format!("{pipeline}/{}", unit.lane());
    }
    let exit = row
        .outcome
        .as_ref()
        .and_then(|outcome| outcome.reported().return_code());
    let exit = exit.map(|code| code.to_string());
    let id = printable(&unit.id, MAX_VALUE);
    let (id, started, elapsed, separator) = match terminal.is_terminal() {
        true => (
            short_id(&id).to_owned(),
            times
                .started
                .map(|at| moment::near(&local(at), &Zoned::now())),
            times.elapsed.map(duration::brief),
            " ",
        ),
        false => (
            id,
            times.started.map(|at| moment::word(&local(at))),
            times
                .elapsed
                .map(|elapsed| duration::rough(elapsed).replace(' ', "")),
            ",",
        ),
    };
    let word = |text: &str| {
        let text = printable(text, MAX_VALUE);
        match terminal.is_terminal() {
            true => text,
            false => text.replace(' ', "\\u{20}"),
        }
    };
    let state = match row.retried {
        true => RETRIED,
        false => state_name(record, row.state),
    };
    let none = || "-".to_owned();
    let about = match about_text(about, word, separator) {
        text if text.is_empty() => none(),
        text => text,
    };
    [
        id,
        started.unwrap_or_else(none),
        word(&pipeline),
        state.to_owned(),
        elapsed.unwrap_or_else(none),
        exit.unwrap_or_else(none),
        about,
        printable(&unit.spec.command.text(), MAX_TEXT),
    ]
}

fn about_text(about: &About, word: impl Fn(&str) -> String, separator: &str) -> String {
    let pairs = about
        .iter()
        .map(|(name, value)| format!("{}={}", word(name), word(value)));
    pairs.collect::<Vec<_>>().join(separator)
}
