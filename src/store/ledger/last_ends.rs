//! When the runs of each lane ended last.

use std::collections::{HashMap, HashSet};

use crate::error::Result;
use crate::store::ledger::failure::wrong;
use crate::store::ledger::reader::Reader;

/// Maximum number of ended runs that are read to find when those of each lane ended last: as many as a
/// ledger remembers by default (`--keep-units`), read within 20 ms.
pub const MAX_ENDS: usize = 10_000;

/// When runs of one lane ended last, milliseconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastEnds {
    /// The lane.
    pub lane: String,
    /// The last end.
    pub last: i64,
    /// The last end of a run that succeeded.
    pub success: Option<i64>,
}

/// Returns when the runs of each lane ended last. Reads the newest ends until each lane of the
/// ledger has two, [`MAX_ENDS`] at most. The second value is whether older ones were not read.
///
/// # Errors
/// When the ledger cannot be read.
pub fn last_ends(reader: &Reader) -> Result<(Vec<LastEnds>, bool)> {
    read(reader).map_err(wrong)
}

fn read(reader: &Reader) -> rusqlite::Result<(Vec<LastEnds>, bool)> {
    let sql = "SELECT id, json_extract(content, '$.lane') FROM spec";
    let mut query = reader.connection.prepare_cached(sql)?;
    let lanes = query.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let lanes: HashMap<i64, String> = lanes.collect::<Result<_, _>>()?;
    // What has ended without an outcome was no run.
    let sql = "SELECT spec, ended, state = 'succeeded', outcome IS NOT NULL FROM unit
               WHERE ended IS NOT NULL ORDER BY ended DESC";
    let mut query = reader.connection.prepare_cached(sql)?;
    let mut rows = query.query([])?;
    let mut wanted: HashSet<&str> = lanes.values().map(String::as_str).collect();
    let mut ends: HashMap<&str, LastEnds> = HashMap::new();
    for _ in 0..MAX_ENDS {
        let Some(row) = rows.next()?.filter(|_| !wanted.is_empty()) else {
            return Ok((ends.into_values().collect(), false));
        };
        let (ended, succeeded, ran): (i64, bool, bool) = (row.get(1)?, row.get(2)?, row.get(3)?);
        let Some(lane) = lanes.get(&row.get(0)?).filter(|_| ran) else {
            continue;
        };
        let end = ends.entry(lane).or_insert_with(|| LastEnds {
            lane: lane.clone(),
            last: ended,
            success: None,
        });
        if succeeded {
            end.success.get_or_insert(ended);
            wanted.remove(lane.as_str());
        }
    }
    let more = rows.next()?.is_some();
    Ok((ends.into_values().collect(), more))
}
