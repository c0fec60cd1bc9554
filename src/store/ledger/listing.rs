//! Lists of units, a page at a time.

use std::collections::HashMap;

use rusqlite::{Row as SqlRow, params};
use serde_json::Map;
use tracing::debug;

use crate::error::Result;
use crate::model::about::{About, about};
use crate::model::unit::State;
use crate::store::ledger::failure::wrong;
use crate::store::ledger::reader::Reader;
use crate::store::ledger::records::{NARROW, Record, WHOLE, record, whole};

/// Maximum number of units in a page.
const PAGE: usize = 64;

/// Maximum number of attempts for an event to read.
const MAX_ATTEMPTS: usize = 100;

/// Maximum number of retries of a ledger that a list knows, the newest ones.
const MAX_RETRIES: usize = 100_000;

/// Which units a list holds. Units that have not ended in the ledger are in every list, because their
/// folders know more.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// States of the ended ones; empty for all.
    pub states: Vec<State>,
    /// Earliest end, milliseconds since 1970.
    pub since: Option<i64>,
}

/// A unit of a list.
#[derive(Debug, Clone, PartialEq)]
pub struct Listed {
    /// The unit, without variables, payload and passthrough attributes.
    pub record: Record,
    /// What its run is about.
    pub about: About,
}

/// Lists of the units of a ledger. Nothing stays open between two pages: a long-lived reader would
/// keep the log from being copied.
#[derive(Debug)]
pub struct Listing<'a> {
    reader: &'a Reader,
    selection: &'a Selection,
}

impl<'a> Listing<'a> {
    /// Returns the list of the units of `reader` in `selection`.
    #[must_use]
    pub const fn new(reader: &'a Reader, selection: &'a Selection) -> Self {
        Self { reader, selection }
    }

    /// Returns some units after the one at `seq`, oldest first, and none after the last.
    ///
    /// # Errors
    /// When the ledger cannot be read; likewise below.
    pub fn after(&self, seq: i64) -> Result<Vec<Listed>> {
        self.page("seq > ?1", "seq", seq)
    }

    /// Returns some units before the one at `seq`, newest first, and none before the first.
    ///
    /// # Errors
    /// As [`Listing::after`].
    pub fn before(&self, seq: i64) -> Result<Vec<Listed>> {
        self.page("seq < ?1", "seq DESC", seq)
    }

    fn page(&self, place: &str, order: &str, seq: i64) -> Result<Vec<Listed>> {
        let sql = format!(
            "SELECT {WHOLE} FROM unit WHERE {place}
             AND (ended IS NULL OR ((?2 IS NULL OR ended >= ?2)
                                    AND (?3 = '' OR instr(?3, ' ' || state || ' ') > 0)))
             ORDER BY {order} LIMIT {PAGE}"
        );
        let states = self.selection.states.iter();
        let mut states: String = states.map(|state| format!(" {}", state.name())).collect();
        if !states.is_empty() {
            states.push(' ');
        }
        let Reader { connection, specs } = self.reader;
        let listed = |row: &SqlRow<'_>| {
            let mut record = whole(connection, specs, row)?;
            let unit = &mut record.unit;
            let about = about(&unit.spec.required, &unit.variables, &unit.passthrough);
            // A page has a bounded size.
            (unit.variables, unit.passthrough) = (Vec::new(), Map::new());
            Ok(Listed { record, about })
        };
        connection
            .prepare_cached(&sql)
            .and_then(|mut query| {
                let page = params![seq, self.selection.since, states];
                query.query_map(page, listed)?.collect()
            })
            .map_err(wrong)
    }
}

/// Returns at most `limit` units whose ids begin or end with `part`, in any case.
///
/// # Errors
/// When the ledger cannot be read.
pub fn with_part(reader: &Reader, part: &str, limit: usize) -> Result<Vec<Record>> {
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    // The ids alone are searched, in their index.
    let sql = format!(
        "SELECT {NARROW} FROM unit WHERE id IN
             (SELECT id FROM unit WHERE upper(substr(id, 1, length(?1))) = upper(?1)
                 OR upper(substr(id, -length(?1))) = upper(?1) LIMIT ?2)
         ORDER BY seq"
    );
    records(reader, &sql, params![part, limit])
}

/// Returns the attempts for the event of `unit` in its lane, in order, the first ones if there are
/// too many.
///
/// # Errors
/// When the ledger cannot be read.
pub fn attempts(reader: &Reader, unit: &Record) -> Result<Vec<Record>> {
    let sql = format!(
        "SELECT {NARROW} FROM unit WHERE event = ?1 AND spec IN
             (SELECT id FROM spec WHERE json_extract(content, '$.lane') = ?2)
         ORDER BY seq LIMIT {MAX_ATTEMPTS}"
    );
    records(reader, &sql, params![unit.unit.event, unit.unit.lane()])
}

/// The units of a ledger that were retried.
#[derive(Debug, Default)]
pub struct Retried {
    /// Whether a retry of the unit, or a retry of that, has succeeded.
    made_good: HashMap<String, bool>,
}

impl Retried {
    /// Reads them. No index has what retries a unit, so that this reads the whole table once.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn read(reader: &Reader) -> Result<Self> {
        let sql = format!(
            "SELECT retry_of, id, state FROM unit WHERE retry_of IS NOT NULL
             ORDER BY seq DESC LIMIT {MAX_RETRIES}"
        );
        let mut made_good = HashMap::new();
        let mut read = || {
            let mut query = reader.connection.prepare_cached(&sql)?;
            let mut rows = query.query([])?;
            // A retry comes after its unit, so that what became of the retry is known already.
            while let Some(row) = rows.next()? {
                let (unit, retry): (String, String) = (row.get(0)?, row.get(1)?);
                let state: String = row.get(2)?;
                let good = state == State::Succeeded.name()
                    || made_good.get(&retry).copied().unwrap_or(false);
                *made_good.entry(unit).or_insert(false) |= good;
            }
            if made_good.len() >= MAX_RETRIES {
                debug!("more than {MAX_RETRIES} retries: the oldest are unknown to the list");
            }
            Ok(())
        };
        read().map_err(wrong)?;
        Ok(Self { made_good })
    }

    /// Returns whether `unit` was retried.
    #[must_use]
    pub fn has(&self, unit: &str) -> bool {
        self.made_good.contains_key(unit)
    }

    /// Returns whether a retry of `unit` has succeeded.
    #[must_use]
    pub fn is_made_good(&self, unit: &str) -> bool {
        self.made_good.get(unit).copied().unwrap_or(false)
    }
}

/// Returns the number of lanes that units wait or have waited in.
///
/// # Errors
/// When the ledger cannot be read.
pub fn lanes(reader: &Reader) -> Result<u64> {
    let sql = "SELECT count(DISTINCT json_extract(content, '$.lane')) FROM spec";
    let count = reader
        .connection
        .query_row(sql, [], |row| row.get::<_, i64>(0));
    count.map(i64::cast_unsigned).map_err(wrong)
}

fn records(reader: &Reader, sql: &str, params: impl rusqlite::Params) -> Result<Vec<Record>> {
    let Reader { connection, specs } = reader;
    let record = |row: &SqlRow<'_>| record(connection, specs, row);
    connection
        .prepare_cached(sql)
        .and_then(|mut query| query.query_map(params, record)?.collect())
        .map_err(wrong)
}
