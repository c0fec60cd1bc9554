//! Units that have ended, in the order in which they are forgotten to make room.

use rusqlite::{Row, params};

use crate::error::Result;
use crate::store::ledger::failure::wrong;
use crate::store::ledger::reader::Reader;

/// A unit that may be forgotten.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forgettable {
    /// Its id.
    pub id: String,
    /// Size of its payload in the ledger, bytes.
    pub payload: u64,
    /// Name of the file of its payload.
    pub file: Option<String>,
}

/// Passes units that have ended to `take` until that returns `false`: first those whose output was
/// fetched, then all others, in both cases the first to end first. Leaves out submitted work that ended
/// at `fresh`, milliseconds since 1970, or later.
///
/// # Errors
/// When the ledger cannot be read.
pub fn oldest(
    reader: &Reader,
    fresh: i64,
    mut take: impl FnMut(Forgettable) -> bool,
) -> Result<()> {
    let forgettable = |row: &Row<'_>| {
        Ok(Forgettable {
            id: row.get(0)?,
            payload: row.get::<_, Option<i64>>(1)?.unwrap_or(0).cast_unsigned(),
            file: row.get(2)?,
        })
    };
    for which in [
        "unit.fetched IS NOT NULL AND unit.ended < ?1 ORDER BY unit.fetched",
        "unit.fetched IS NULL AND unit.ended IS NOT NULL
         AND (unit.work IS NULL OR unit.ended < ?1) ORDER BY unit.ended",
    ] {
        let sql = format!(
            "SELECT unit.id, length(payload.bytes), payload.file
             FROM unit LEFT JOIN payload ON payload.id = unit.payload WHERE {which}"
        );
        let mut query = reader.connection.prepare_cached(&sql).map_err(wrong)?;
        let units = query
            .query_map(params![fresh], forgettable)
            .map_err(wrong)?;
        for unit in units {
            if !take(unit.map_err(wrong)?) {
                return Ok(());
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::ledger::schema::connect;

    #[test]
    fn what_was_fetched_goes_first_and_fresh_work_stays() {
        let dir = tempfile::tempdir().expect("tempdir");
        let db = connect(&crate::store::ledger::file(dir.path()), true).expect("ledger");
        // Id, time of its end, whether it is submitted work, whether it was fetched, its payload.
        for (id, ended, work, fetched, payload) in [
            ("old", Some(1), false, false, Some(7)),
            ("unread", Some(2), true, false, None),
            ("read later", Some(4), true, true, None),
            ("read", Some(3), true, true, None),
            ("young", Some(90), false, false, None),
            ("young work", Some(91), true, false, None),
            ("young and read", Some(92), true, true, None),
            ("running", None, true, false, None),
        ] {
            db.execute(
                "INSERT INTO unit (id, spec, event, topic, reason, hops, attempt, due, state,
                     accepted, ended, payload, variables, passthrough, work, fetched)
                 VALUES (?1, 1, '', '', '', 0, 1, 0, iif(?2 IS NULL, 'running', 'failed'), 0, ?2,
                     ?5, '[]', '{}', iif(?3, '{}', NULL), iif(?4, ?2, NULL))",
                params![id, ended, work, fetched, payload],
            )
            .expect("unit");
        }
        db.execute_batch("INSERT INTO payload (id, bytes, file) VALUES (7, zeroblob(10), 'f')")
            .expect("payload");
        let reader = Reader::open(dir.path()).expect("reader");
        let mut found = Vec::new();
        let all = oldest(&reader, 90, |unit| {
            found.push(unit);
            true
        });
        all.expect("read");
        let ids: Vec<&str> = found.iter().map(|unit| unit.id.as_str()).collect();
        assert_eq!(ids, ["read", "read later", "old", "unread", "young"]);
        let old = &found[2];
        assert_eq!((old.payload, old.file.as_deref()), (10, Some("f")));
        let mut count = 0;
        let first = oldest(&reader, 90, |_| {
            count += 1;
            false
        });
        assert_eq!((first, count), (Ok(()), 1));
    }
}
