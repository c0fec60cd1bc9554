//! `tael work list`: the units of all pipelines in one order, streamed.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};
use serde_json::Value;

use crate::error::{Error, Result};
use crate::model::about::About;
use crate::model::table::{Colour, Column, Layout};
use crate::model::text::{escaped_json, printable};
use crate::model::unit::{Outcome, State, short_id};
use crate::model::{duration, json, moment};
use crate::os::logging::say;
use crate::os::terminal::Terminal;
use crate::store::ledger::Reader;
use crate::store::ledger::listing::{Listed, Listing, Selection, lanes};
use crate::tools::work::show::{Times, report};
use crate::tools::work::{Scope, effective, elsewhere, pipelines};

/// Number of rows that decide about the widths of columns: a large screen.
const SAMPLE: usize = 60;

/// Number of bytes that are printed at once.
const CHUNK: usize = 16 * 1024;

/// Maximum number of ledgers that stay open while the list is printed. Others are opened for each
/// page.
const MAX_OPEN: usize = 64;

/// Maximum length of a command and of one value, characters. A terminal shows less.
const MAX_TEXT: usize = 1000;
const MAX_VALUE: usize = 200;

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

/// Which units to list, and how.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// States to list; empty for all.
    pub states: Vec<State>,
    /// Lists what waited or ran within this time.
    pub since: Option<Duration>,
    /// Maximum number of units, the newest ones.
    pub newest: Option<u64>,
    /// Text that a row contains; in any case if it has no capitals.
    pub grep: Option<String>,
    /// As one JSON array.
    pub json: bool,
}

/// A unit, and its present state.
struct Row {
    source: usize,
    listed: Listed,
    state: State,
    outcome: Option<Outcome>,
}

/// The units of one pipeline.
struct Source {
    who: String,
    pipeline: PathBuf,
    reader: Option<Reader>,
    /// Whether it has several triggers.
    several: bool,
    page: VecDeque<Listed>,
    /// Number of the last unit of the page.
    at: i64,
    /// Whether there is no further page.
    done: bool,
    /// Whether it could not be read.
    broken: bool,
}

/// The direction of a walk through the units.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    /// Newest last.
    Forward,
    /// Newest first.
    Back,
}

/// A walk through the units of all pipelines, in the order of their acceptance.
struct Walk<'a> {
    filter: &'a Filter,
    selection: Selection,
    sources: Vec<Source>,
    direction: Direction,
    /// The first pipeline that could not be read.
    unreadable: Option<Error>,
}

impl<'a> Walk<'a> {
    fn new(scope: &Scope, filter: &'a Filter) -> Result<Self> {
        let now = Timestamp::now().as_millisecond();
        let since = filter.since.map(|since| {
            let since = i64::try_from(since.as_millis()).unwrap_or(i64::MAX);
            now.saturating_sub(since)
        });
        let source = |(who, pipeline)| Source {
            who,
            pipeline,
            reader: None,
            several: false,
            page: VecDeque::new(),
            at: 0,
            done: false,
            broken: false,
        };
        let mut walk = Self {
            filter,
            selection: Selection {
                states: filter.states.clone(),
                since,
            },
            sources: pipelines(scope)?.into_iter().map(source).collect(),
            direction: Direction::Forward,
            unreadable: None,
        };
        if let Some(newest) = filter.newest {
            walk.skip_to_last(newest)?;
        }
        Ok(walk)
    }

    /// Goes to the first one of the last `count` units.
    fn skip_to_last(&mut self, count: u64) -> Result<()> {
        self.turn(Direction::Back, |_| i64::MAX);
        let mut starts: Vec<i64> = vec![i64::MAX; self.sources.len()];
        let mut left = count;
        while left > 0 {
            let Some(row) = self.next()? else { break };
            if let Some(start) = starts.get_mut(row.source) {
                *start = row.listed.record.seq - 1;
            }
            left -= 1;
        }
        self.turn(Direction::Forward, |n| {
            starts.get(n).copied().unwrap_or(i64::MAX)
        });
        Ok(())
    }

    fn turn(&mut self, direction: Direction, at: impl Fn(usize) -> i64) {
        self.direction = direction;
        for (n, source) in self.sources.iter_mut().enumerate() {
            source.page.clear();
            source.at = at(n);
            source.done = source.broken;
        }
    }

    /// Returns the next unit that the filter lets through.
    fn next(&mut self) -> Result<Option<Row>> {
        loop {
            self.fill();
            let key = |listed: &Listed| (listed.record.accepted, listed.record.unit.id.clone());
            let heads = self.sources.iter().enumerate();
            let heads = heads.filter_map(|(n, source)| Some((key(source.page.front()?), n)));
            let first = match self.direction {
                Direction::Forward => heads.min(),
                Direction::Back => heads.max(),
            };
            let Some((_, n)) = first else {
                return Ok(None);
            };
            let Some(source) = self.sources.get_mut(n) else {
                return Ok(None);
            };
            let Some(listed) = source.page.pop_front() else {
                return Ok(None);
            };
            let (state, outcome) = match effective(&source.pipeline, &listed.record) {
                Ok(now) => now,
                Err(e) => {
                    say(&e.to_string());
                    self.unreadable.get_or_insert(e);
                    continue;
                }
            };
            let row = Row {
                source: n,
                listed,
                state,
                outcome,
            };
            if self.lets_through(&row) {
                return Ok(Some(row));
            }
        }
    }

    /// Reads the next page of those sources that have none.
    fn fill(&mut self) {
        let keeps_open = self.sources.len() <= MAX_OPEN;
        for source in &mut self.sources {
            if source.done || !source.page.is_empty() {
                continue;
            }
            let mut read = || {
                let reader = match source.reader.take() {
                    Some(reader) => reader,
                    None => {
                        let reader = Reader::open(&source.pipeline)?;
                        source.several = lanes(&reader)? > 1;
                        reader
                    }
                };
                let listing = Listing::new(&reader, &self.selection);
                let page = match self.direction {
                    Direction::Forward => listing.after(source.at),
                    Direction::Back => listing.before(source.at),
                };
                source.reader = keeps_open.then_some(reader);
                page
            };
            match read() {
                Ok(page) => {
                    source.done = page.is_empty();
                    source.at = page.last().map_or(source.at, |last| last.record.seq);
                    source.page = page.into();
                }
                // It does not hide the others.
                Err(e) => {
                    (source.done, source.broken) = (true, true);
                    say(&e.to_string());
                    self.unreadable.get_or_insert(e);
                }
            }
        }
    }

    fn lets_through(&self, row: &Row) -> bool {
        let states = &self.filter.states;
        if !states.is_empty() && !states.contains(&row.state) {
            return false;
        }
        let Some(wanted) = &self.filter.grep else {
            return true;
        };
        let (record, unit) = (&row.listed.record, &row.listed.record.unit);
        let who = self
            .sources
            .get(row.source)
            .map_or("", |source| &*source.who);
        let command = unit.spec.command.text();
        let texts = [
            &*unit.id,
            who,
            unit.lane(),
            &unit.topic,
            &unit.event,
            &command,
            row.state.name(),
        ];
        let texts = texts.into_iter().chain(record.note.as_deref());
        let any_case = !wanted.contains(char::is_uppercase);
        let contains = |text: &str| match any_case {
            true => text.to_lowercase().contains(wanted.as_str()),
            false => text.contains(wanted.as_str()),
        };
        let about = |(name, value): &(String, String)| contains(&format!("{name}={value}"));
        texts.into_iter().any(contains) || row.listed.about.iter().any(about)
    }
}

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
    if printed == 0 && !filter.json && walk.unreadable.is_none() {
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
    let none = || "-".to_owned();
    let about = match about_text(about, word, separator) {
        text if text.is_empty() => none(),
        text => text,
    };
    [
        id,
        started.unwrap_or_else(none),
        word(&pipeline),
        row.state.name().to_owned(),
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
