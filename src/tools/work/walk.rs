//! A walk through the units of all pipelines.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;

use crate::error::{Error, Result};
use crate::model::unit::{Outcome, State};
use crate::os::logging::say;
use crate::store::ledger::Reader;
use crate::store::ledger::listing::{Listed, Listing, Retried, Selection, lanes};
use crate::tools::work::{Scope, effective, pipelines, state_name};

/// Maximum number of ledgers that stay open while the list is printed. Others are opened for each
/// page.
const MAX_OPEN: usize = 64;

/// Failed units that a list leaves out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LeaveOut {
    /// None.
    #[default]
    Nothing,
    /// Those with a retry that has succeeded.
    MadeGood,
    /// Those with a retry.
    Retried,
}

/// Which units to list, and how.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// States to list; empty for all.
    pub states: Vec<State>,
    /// Failed units to leave out.
    pub leave_out: LeaveOut,
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
pub(super) struct Row {
    /// Place of its pipeline among the sources.
    pub source: usize,
    /// What the ledger holds.
    pub listed: Listed,
    /// Its state.
    pub state: State,
    /// How it ended, if it has.
    pub outcome: Option<Outcome>,
    /// Whether it has failed, and was retried.
    pub retried: bool,
}

/// The units of one pipeline.
pub(super) struct Source {
    /// Its name.
    pub who: String,
    /// Its folder.
    pub pipeline: PathBuf,
    reader: Option<Reader>,
    /// Whether it has several triggers.
    pub several: bool,
    /// Those that were retried, once they are needed.
    retried: Option<Retried>,
    page: VecDeque<Listed>,
    /// Number of the last unit of the page.
    at: i64,
    /// Whether there is no further page.
    done: bool,
    /// Whether it could not be read.
    broken: bool,
}

impl Source {
    /// Returns its units that were retried.
    fn retried(&mut self) -> Result<&Retried> {
        let retried = match (self.retried.take(), &self.reader) {
            (Some(retried), _) => retried,
            (None, Some(reader)) => Retried::read(reader)?,
            (None, None) => Retried::read(&Reader::open(&self.pipeline)?)?,
        };
        Ok(self.retried.insert(retried))
    }
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
pub(super) struct Walk<'a> {
    filter: &'a Filter,
    selection: Selection,
    /// The pipelines.
    pub sources: Vec<Source>,
    direction: Direction,
    /// The first pipeline that could not be read.
    pub unreadable: Option<Error>,
}

impl<'a> Walk<'a> {
    pub fn new(scope: &Scope, filter: &'a Filter) -> Result<Self> {
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
            retried: None,
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
    pub fn next(&mut self) -> Result<Option<Row>> {
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
            let (mut retried, mut made_good) = (false, false);
            if state == State::Failed {
                match source.retried() {
                    Ok(all) => {
                        let unit = &listed.record.unit.id;
                        (retried, made_good) = (all.has(unit), all.is_made_good(unit));
                    }
                    Err(e) => {
                        say(&e.to_string());
                        self.unreadable.get_or_insert(e);
                        continue;
                    }
                }
            }
            let left_out = match self.filter.leave_out {
                LeaveOut::Nothing => false,
                LeaveOut::MadeGood => made_good,
                LeaveOut::Retried => retried,
            };
            let row = Row {
                source: n,
                listed,
                state,
                outcome,
                retried,
            };
            if !left_out && self.lets_through(&row) {
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
            state_name(record, row.state),
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
