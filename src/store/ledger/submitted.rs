//! Units of submitted work, and the files of their payloads.

use rusqlite::{Row, params};

use crate::error::Result;
use crate::store::ledger::failure::wrong;
use crate::store::ledger::reader::Reader;
use crate::store::ledger::records::{Record, WHOLE, whole};
use crate::store::ledger::rows::FILE_MARK;

/// Maximum number of units of submitted work to read at once. Their files are looked at too.
const PAGE: usize = 64;

/// Returns the names of the files that hold payloads, also of those that were released and may
/// not be removed yet.
///
/// # Errors
/// When the ledger cannot be read.
pub fn payload_files(reader: &Reader) -> Result<Vec<String>> {
    let sql = "SELECT file FROM payload WHERE file IS NOT NULL UNION ALL
               SELECT substr(unit, length(?1) + 1) FROM released
               WHERE substr(unit, 1, length(?1)) = ?1";
    reader
        .connection
        .prepare_cached(sql)
        .and_then(|mut query| {
            let names = query.query_map(params![FILE_MARK], |row| row.get(0))?;
            names.collect()
        })
        .map_err(wrong)
}

/// Returns whether the file of a payload can be removed.
///
/// # Errors
/// When the ledger cannot be read.
pub fn is_file_released(reader: &Reader, name: &str) -> Result<bool> {
    reader.is_released(&format!("{FILE_MARK}{name}"))
}

/// Returns whether work was submitted under the id `unit`: its unit is there, or was.
///
/// # Errors
/// When the ledger cannot be read.
pub fn is_submitted(reader: &Reader, unit: &str) -> Result<bool> {
    // Only submitted work has the id of its unit as that of its sender.
    let sql = "SELECT 1 FROM event WHERE sender = ?1 AND unit = ?1
               UNION ALL SELECT 1 FROM unit WHERE id = ?1 AND work IS NOT NULL";
    reader
        .connection
        .prepare_cached(sql)
        .and_then(|mut query| query.exists(params![unit]))
        .map_err(wrong)
}

/// Returns some units of submitted work after the one at `seq`, oldest first, and none after the
/// last.
///
/// # Errors
/// When the ledger cannot be read.
pub fn page(reader: &Reader, seq: i64) -> Result<Vec<Record>> {
    let sql = format!(
        "SELECT {WHOLE} FROM unit WHERE work IS NOT NULL AND seq > ?1
         ORDER BY seq LIMIT {PAGE}"
    );
    let record = |row: &Row<'_>| whole(&reader.connection, &reader.specs, row);
    reader
        .connection
        .prepare_cached(&sql)
        .and_then(|mut query| query.query_map(params![seq], record)?.collect())
        .map_err(wrong)
}

/// A released unit whose node must hear of that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Debt {
    /// The unit.
    pub unit: String,
    /// The node.
    pub node: String,
    /// Whether the node wants a signature.
    pub signed: bool,
}

/// Returns the released units whose nodes must hear of that; with `unit`, only this one.
///
/// # Errors
/// When the ledger cannot be read.
pub fn debts(reader: &Reader, unit: Option<&str>) -> Result<Vec<Debt>> {
    let debt = |row: &Row<'_>| {
        Ok(Debt {
            unit: row.get(0)?,
            node: row.get(1)?,
            signed: row.get(2)?,
        })
    };
    let all = "SELECT unit, node, signed FROM debt";
    let found = match unit {
        None => reader
            .connection
            .prepare_cached(all)
            .and_then(|mut query| query.query_map([], debt)?.collect()),
        Some(unit) => reader
            .connection
            .prepare_cached(&format!("{all} WHERE unit = ?1"))
            .and_then(|mut query| query.query_map(params![unit], debt)?.collect()),
    };
    found.map_err(wrong)
}

/// Returns the units that must be released, and may have ended.
///
/// # Errors
/// When the ledger cannot be read.
pub fn wanted_releases(reader: &Reader) -> Result<Vec<String>> {
    reader
        .connection
        .prepare_cached("SELECT id FROM unit WHERE wanted = 'release'")
        .and_then(|mut query| query.query_map([], |row| row.get(0))?.collect())
        .map_err(wrong)
}
