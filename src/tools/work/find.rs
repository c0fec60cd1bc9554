//! Finds the unit that a person means.

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::error::{Error, Result};
use crate::model::moment;
use crate::model::text::printable;
use crate::model::unit::State;
use crate::store::ledger::listing::{Listing, Selection, with_part};
use crate::store::ledger::{Reader, Record};
use crate::tools::work::{Found, Scope, away, effective, elsewhere, pipelines};

/// Word for the newest unit.
const LATEST: &str = "latest";

/// Maximum number of units that an error names.
const MAX_CANDIDATES: usize = 4;

/// The unit that a person means.
#[derive(Debug, Clone, Default)]
pub struct Which {
    /// Its id, an end of its id, or `latest`; `None` for the newest.
    pub unit: Option<String>,
    /// Whether only failed units count for the newest.
    pub failed: bool,
}

impl Which {
    /// Returns the unit called `unit`.
    pub(super) fn named(unit: &str) -> Self {
        Self {
            unit: Some(unit.to_owned()),
            failed: false,
        }
    }

    /// Whether it names no unit by its id.
    #[must_use]
    pub fn is_newest(&self) -> bool {
        self.unit.as_deref().is_none_or(|unit| unit == LATEST)
    }
}

/// A unit that a person may mean, and its pipeline.
struct Candidate {
    who: String,
    pipeline: PathBuf,
    record: Record,
}

impl Candidate {
    /// Returns its pipeline and start, for people.
    fn place(&self) -> String {
        let at = self.record.started.unwrap_or(self.record.accepted);
        let at = Timestamp::from_millisecond(at).unwrap_or(Timestamp::UNIX_EPOCH);
        let at = moment::text(&at.to_zoned(TimeZone::system()));
        format!("{}, {at}", self.who)
    }

    fn found(self) -> Result<Found> {
        let reader = Reader::open(&self.pipeline)?;
        Ok(Found {
            who: self.who,
            pipeline: self.pipeline,
            reader,
            record: self.record,
        })
    }
}

/// Reads the pipelines one after the other. One that cannot be read does not hide the others.
fn search(
    scope: &Scope,
    mut look: impl FnMut(&Reader, &mut dyn FnMut(Record)) -> Result<()>,
) -> Result<(Vec<Candidate>, Option<Error>)> {
    let (mut found, mut unreadable) = (Vec::new(), None);
    for (who, pipeline) in pipelines(scope)? {
        let looked = Reader::open(&pipeline).and_then(|reader| {
            let mut records = Vec::new();
            look(&reader, &mut |record| records.push(record))?;
            Ok(records)
        });
        match looked {
            Ok(records) => found.extend(records.into_iter().map(|record| Candidate {
                who: who.clone(),
                pipeline: pipeline.clone(),
                record,
            })),
            Err(e) => unreadable = unreadable.or(Some(e)),
        }
    }
    Ok((found, unreadable))
}

/// Returns the unit that `which` means.
///
/// # Errors
/// When there is none (65), several could be meant (65), or one that could be it cannot be read.
pub(super) fn find(scope: &Scope, which: &Which) -> Result<Found> {
    match which.unit.as_deref() {
        Some(unit) if unit != LATEST => named(scope, unit),
        _ => newest(scope, which.failed),
    }
}

/// As [`find`], but the newest unit is one that has begun, if there is one: others have no output.
///
/// # Errors
/// As [`find`].
pub(super) fn find_begun(scope: &Scope, which: &Which) -> Result<Found> {
    if which.is_newest() && !which.failed {
        let begun = |pipeline: &Path, record: &Record| {
            let (state, outcome) = effective(pipeline, record)?;
            Ok(match state {
                State::Pending => false,
                // Otherwise it was dropped while it waited.
                State::Canceled => outcome.is_some(),
                _ => true,
            })
        };
        if let (Some(newest), _) = newest_of(scope, &Selection::default(), begun)? {
            return newest.found();
        }
    }
    find(scope, which)
}

fn named(scope: &Scope, unit: &str) -> Result<Found> {
    let whole = |reader: &Reader, found: &mut dyn FnMut(Record)| {
        reader
            .unit(unit)
            .map(|record| record.into_iter().for_each(found))
    };
    let (mut found, mut unreadable) = search(scope, whole)?;
    if found.is_empty() && !unit.is_empty() {
        let part = |reader: &Reader, found: &mut dyn FnMut(Record)| {
            let records = with_part(reader, unit, MAX_CANDIDATES + 1)?;
            records.into_iter().for_each(found);
            Ok(())
        };
        (found, unreadable) = search(scope, part)?;
    }
    let is_same =
        |pair: &[Candidate]| matches!(pair, [a, b] if a.record.unit.id == b.record.unit.id);
    if found.len() > 1 && found.windows(2).all(is_same) {
        // Node and submitter may be of one host. The submitter tells the node.
        let is_kept = |candidate: &Candidate| away(&candidate.record).is_some();
        if found.iter().filter(|candidate| is_kept(candidate)).count() == 1 {
            found.retain(is_kept);
        }
    }
    let unit = printable(unit, 80);
    if found.len() > 1 {
        let list = candidates(&found, |c| format!("{} ({})", c.record.unit.id, c.place()));
        return Err(Error::data(format!(
            "find unit '{unit}': it is a part of several ids: {list}: write more of it"
        )));
    }
    let found = found.pop().ok_or_else(|| {
        unreadable.unwrap_or_else(|| {
            let (state, elsewhere) = (scope.state.display(), elsewhere(scope));
            Error::data(format!(
                "find unit '{unit}': there is none in {state}{elsewhere}; see 'tael work list'"
            ))
        })
    })?;
    // Those found by a part lack variables.
    let mut found = found.found()?;
    found.refresh()?;
    Ok(found)
}

fn newest(scope: &Scope, failed: bool) -> Result<Found> {
    let selection = Selection {
        states: failed.then_some(State::Failed).into_iter().collect(),
        since: None,
    };
    let wanted = |pipeline: &Path, record: &Record| {
        Ok(!failed || effective(pipeline, record)?.0 == State::Failed)
    };
    let (newest, unreadable) = newest_of(scope, &selection, wanted)?;
    let newest = newest.ok_or_else(|| {
        unreadable.unwrap_or_else(|| {
            let what = if failed { "has failed" } else { "is there" };
            let (state, elsewhere) = (scope.state.display(), elsewhere(scope));
            Error::data(format!(
                "find the newest run: none {what} in {state}{elsewhere}"
            ))
        })
    })?;
    newest.found()
}

/// Returns the newest unit of `selection` that is `wanted`, and why a pipeline could not be read.
fn newest_of(
    scope: &Scope,
    selection: &Selection,
    wanted: impl Fn(&Path, &Record) -> Result<bool>,
) -> Result<(Option<Candidate>, Option<Error>)> {
    let (mut newest, mut unreadable) = (None::<Candidate>, None);
    for (who, pipeline) in pipelines(scope)? {
        let last = || {
            let reader = Reader::open(&pipeline)?;
            let mut seq = i64::MAX;
            loop {
                let page = Listing::new(&reader, selection).before(seq)?;
                let Some(last) = page.last() else {
                    return Ok(None);
                };
                seq = last.record.seq;
                for listed in page {
                    if wanted(&pipeline, &listed.record)? {
                        // The page lacks variables.
                        return reader.unit(&listed.record.unit.id);
                    }
                }
            }
        };
        match last() {
            Ok(Some(record)) => {
                let later = newest
                    .as_ref()
                    .is_none_or(|n| n.record.accepted < record.accepted);
                if later {
                    newest = Some(Candidate {
                        who,
                        pipeline,
                        record,
                    });
                }
            }
            Ok(None) => {}
            Err(e) => unreadable = unreadable.or(Some(e)),
        }
    }
    Ok((newest, unreadable))
}

/// Returns the unit that runs, if only one does.
///
/// # Errors
/// When none runs, or several do (65); or one of the pipelines cannot be read.
pub(super) fn only_running(scope: &Scope) -> Result<Found> {
    let running = |reader: &Reader, found: &mut dyn FnMut(Record)| {
        let mut seq = 0;
        loop {
            let page = reader.live_page(State::Running, seq)?;
            let Some(last) = page.last() else {
                return Ok(());
            };
            seq = last.seq;
            page.into_iter().for_each(&mut *found);
        }
    };
    let (found, unreadable) = search(scope, running)?;
    let mut running = Vec::new();
    for found in found {
        if !effective(&found.pipeline, &found.record)?.0.is_end() {
            running.push(found);
        }
    }
    if running.len() > 1 {
        let command = |running: &Candidate| {
            let (id, text) = (&running.record.unit.id, running.place());
            format!("'tael work cancel {id}' ({text})")
        };
        let (number, list) = (running.len(), candidates(&running, command));
        return Err(Error::data(format!(
            "cancel: {number} runs are running: say which: {list}"
        )));
    }
    match (running.pop(), unreadable) {
        (Some(found), None) => found.found(),
        (_, Some(e)) => Err(e),
        (None, None) => Err(Error::data(format!(
            "cancel: no run is running in {}{}; 'tael work cancel UNIT' drops one that waits",
            scope.state.display(),
            elsewhere(scope)
        ))),
    }
}

/// Returns some of the units for an error, and how many more there are.
fn candidates(found: &[Candidate], text: impl Fn(&Candidate) -> String) -> String {
    let mut list: Vec<String> = found.iter().take(MAX_CANDIDATES).map(text).collect();
    if found.len() > MAX_CANDIDATES {
        list.push("…".to_owned());
    }
    list.join(", ")
}
