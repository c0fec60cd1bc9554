//! Forgets by age and by number, in bounded steps.

use rusqlite::{Connection, OptionalExtension, params};

use crate::store::ledger::rows::delete_unit;
use crate::store::ledger::state::WriterState;

/// Maximum number of units to forget in one step. Each has a folder to remove.
const UNITS: i64 = 64;

/// Maximum number of events to forget in one step.
const EVENTS: usize = 128;

/// Limits of what is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retention {
    /// Units that ended before this time are forgotten, milliseconds since 1970.
    pub units_since: i64,
    /// Maximum number of ended units. Those whose output was fetched are forgotten first, and the
    /// first to end first among them; then the first to end.
    pub units: u64,
    /// Events accepted before this time are forgotten, milliseconds since 1970, unless their unit
    /// has not ended.
    pub events_since: i64,
    /// Maximum number of events; the oldest whose units have ended are forgotten first. `None`
    /// skips the check, which reads each of them.
    pub events: Option<u64>,
    /// Maximum number of topics with a remembered retained message; checked together with the
    /// events.
    pub retained: u64,
    /// Maximum number of refused events among them.
    pub refused: u64,
}

/// Result of a step.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Whether there may be more to forget.
    pub more: bool,
    /// Number of events forgotten because there were too many.
    pub crowded_out: u64,
    /// Number of retained messages forgotten because there were too many.
    pub retained_out: u64,
    /// Number of refused events forgotten because there were too many.
    pub refused_out: u64,
    /// When the oldest remaining unit ended, milliseconds since 1970.
    pub oldest_unit: Option<i64>,
    /// When the oldest remaining event was accepted, milliseconds since 1970.
    pub oldest_event: Option<i64>,
}

/// Forgets a little of what is beyond the limits, and marks the folders of its units as released.
pub(super) fn prune(
    tx: &Connection,
    state: &mut WriterState,
    keep: &Retention,
) -> rusqlite::Result<Pruned> {
    let (units, more) = forget_units(tx, keep)?;
    let aged = forget_aged(tx, keep.events_since)?;
    let refused = forget_refused(tx, keep.refused)?;
    let (mut crowded, mut retained) = (0, 0);
    if let Some(events) = keep.events {
        crowded = forget_crowd(tx, events)?;
        retained = forget_retained(tx, keep.retained)?;
        state.forget_specs(tx)?;
    }
    let oldest = |sql: &str| {
        let mut query = tx.prepare_cached(sql)?;
        query.query_row([], |row| row.get(0)).optional()
    };
    let limit = EVENTS as u64;
    Ok(Pruned {
        more: more
            || units >= UNITS
            || [aged, refused, crowded, retained]
                .iter()
                .any(|n| *n >= limit),
        crowded_out: crowded,
        refused_out: refused,
        retained_out: retained,
        oldest_unit: oldest(
            "SELECT ended FROM unit WHERE ended IS NOT NULL ORDER BY ended LIMIT 1",
        )?,
        oldest_event: oldest("SELECT accepted FROM event ORDER BY seq LIMIT 1")?,
    })
}

fn count(tx: &Connection, sql: &str) -> rusqlite::Result<i64> {
    tx.prepare_cached(sql)?.query_row([], |row| row.get(0))
}

fn surplus(there: i64, keep: u64) -> i64 {
    there.saturating_sub(i64::try_from(keep).unwrap_or(i64::MAX))
}

/// Returns how many were forgotten, and whether there are more.
fn forget_units(tx: &Connection, keep: &Retention) -> rusqlite::Result<(i64, bool)> {
    // An index alone answers each.
    let ended = count(tx, "SELECT count(*) FROM unit WHERE ended IS NOT NULL")?;
    let aged = "SELECT seq FROM unit WHERE ended < ?2 ORDER BY ended LIMIT ?1";
    let mut gone = delete_units(tx, aged, params![UNITS, keep.units_since])?;
    let fetched = "SELECT seq FROM unit WHERE fetched IS NOT NULL ORDER BY fetched LIMIT ?1";
    let first = "SELECT seq FROM unit WHERE ended IS NOT NULL ORDER BY ended LIMIT ?1";
    for sql in [fetched, first] {
        let most = surplus(ended - gone, keep.units).min(UNITS - gone);
        if most > 0 {
            gone += delete_units(tx, sql, params![most])?;
        }
    }
    Ok((gone, surplus(ended - gone, keep.units) > 0))
}

/// Deletes the units whose numbers `sql` finds. Returns how many.
fn delete_units(
    tx: &Connection,
    sql: &str,
    params: impl rusqlite::Params,
) -> rusqlite::Result<i64> {
    let found: Vec<i64> = tx
        .prepare_cached(sql)?
        .query_map(params, |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    for seq in &found {
        delete_unit(tx, *seq)?;
    }
    Ok(i64::try_from(found.len()).unwrap_or(i64::MAX))
}

/// The unit of an event has not ended: a redelivery must be recognised.
const RUNS_YET: &str = "EXISTS (SELECT 1 FROM unit WHERE unit.id = event.unit
                                AND unit.ended IS NULL)";

/// Deletes the oldest events while `goes` allows it for number and time, except those whose unit
/// has not ended.
fn forget_oldest(tx: &Connection, goes: impl Fn(i64, i64) -> bool) -> rusqlite::Result<u64> {
    let sql = format!("SELECT seq, accepted, {RUNS_YET} FROM event ORDER BY seq");
    let mut gone = Vec::new();
    {
        let mut query = tx.prepare_cached(&sql)?;
        let mut rows = query.query([])?;
        while gone.len() < EVENTS
            && let Some(row) = rows.next()?
        {
            let (seq, accepted, runs_yet): (i64, i64, bool) =
                (row.get(0)?, row.get(1)?, row.get(2)?);
            if !goes(seq, accepted) {
                break;
            }
            if !runs_yet {
                gone.push(seq);
            }
        }
    }
    let mut delete = tx.prepare_cached("DELETE FROM event WHERE seq = ?1")?;
    for seq in &gone {
        delete.execute(params![seq])?;
    }
    Ok(gone.len() as u64)
}

fn forget_aged(tx: &Connection, since: i64) -> rusqlite::Result<u64> {
    forget_oldest(tx, |_, accepted| accepted < since)
}

fn forget_refused(tx: &Connection, keep: u64) -> rusqlite::Result<u64> {
    // The time of the newest event beyond the limit: `keep` events are newer.
    let boundary = "SELECT accepted FROM event WHERE refusal IS NOT NULL
                    ORDER BY accepted DESC LIMIT 1 OFFSET ?1";
    let keep = i64::try_from(keep).unwrap_or(i64::MAX);
    let mut query = tx.prepare_cached(boundary)?;
    let found: Option<i64> = query
        .query_row(params![keep], |row| row.get(0))
        .optional()?;
    let Some(at) = found else { return Ok(0) };
    let sql = "DELETE FROM event WHERE seq IN
                   (SELECT seq FROM event WHERE refusal IS NOT NULL AND accepted <= ?1
                    ORDER BY accepted LIMIT ?2)";
    let rows = tx
        .prepare_cached(sql)?
        .execute(params![at, EVENTS as i64])?;
    Ok(rows as u64)
}

fn forget_crowd(tx: &Connection, keep: u64) -> rusqlite::Result<u64> {
    let keep = i64::try_from(keep).unwrap_or(i64::MAX);
    // There are at most as many as numbers between the first and the last.
    let span =
        "SELECT coalesce((SELECT max(seq) FROM event) - (SELECT min(seq) FROM event) + 1, 0)";
    if count(tx, span)? <= keep {
        return Ok(0);
    }
    // The number of the newest event beyond the limit: `keep` events are newer.
    let boundary = "SELECT seq FROM event ORDER BY seq DESC LIMIT 1 OFFSET ?1";
    let mut query = tx.prepare_cached(boundary)?;
    let found: Option<i64> = query
        .query_row(params![keep], |row| row.get(0))
        .optional()?;
    match found {
        Some(last) => forget_oldest(tx, |seq, _| seq <= last),
        None => Ok(0),
    }
}

fn forget_retained(tx: &Connection, keep: u64) -> rusqlite::Result<u64> {
    let surplus = surplus(count(tx, "SELECT count(*) FROM retained")?, keep);
    if surplus <= 0 {
        return Ok(0);
    }
    let sql = "DELETE FROM retained WHERE (trigger, topic) IN
                   (SELECT trigger, topic FROM retained ORDER BY at LIMIT ?1)";
    let rows = tx
        .prepare_cached(sql)?
        .execute(params![surplus.min(EVENTS as i64)])?;
    Ok(rows as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::ledger::Reader;
    use crate::store::ledger::schema::connect;
    use rusqlite::Connection;

    const KEEP: Retention = Retention {
        units_since: 0,
        units: u64::MAX,
        events_since: 0,
        events: Some(u64::MAX),
        refused: u64::MAX,
        retained: u64::MAX,
    };

    fn ledger() -> (tempfile::TempDir, Connection) {
        let dir = tempfile::tempdir().expect("tempdir");
        let db = connect(&crate::store::ledger::file(dir.path()), true).expect("ledger");
        (dir, db)
    }

    /// Units 1 to `count` with a payload each, and their events. The odd ones are retries of the
    /// ones before. All but the last ended at the time of their number.
    fn fill(db: &Connection, count: i64) {
        let sql = format!(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count})
             INSERT INTO unit SELECT i, 'u' || i, i % 100, 'e' || i, '', '', 0, NULL, 1, NULL, 0,
                 iif(i < {count}, 'failed', 'pending'), NULL, i, NULL, iif(i < {count}, i, NULL),
                 NULL, NULL, i - (i % 2 = 0), NULL, '[]', '{{}}', NULL, NULL, NULL, NULL, NULL
             FROM n;
             INSERT INTO spec SELECT DISTINCT spec, spec FROM unit;
             INSERT INTO payload (id, bytes) SELECT seq, zeroblob(10) FROM unit WHERE payload = seq;
             INSERT INTO event (trigger, id, digest, topic, accepted, unit, refusal)
                 SELECT 't', event, x'', '', accepted, id, NULL FROM unit
                 UNION ALL SELECT '', 'r' || seq, x'', '', seq, NULL, 'json' FROM unit
                 ORDER BY accepted;"
        );
        db.execute_batch(&sql).expect("fill");
    }

    /// Prunes until nothing is left to do. Returns the results of all steps.
    fn run(db: &mut Connection, keep: &Retention) -> Vec<Pruned> {
        let mut steps = Vec::new();
        loop {
            let tx = db.transaction().expect("transaction");
            let step = prune(&tx, &mut WriterState::default(), keep).expect("prune");
            tx.commit().expect("commit");
            steps.push(step);
            assert!(steps.len() < 100, "it ends");
            if !steps[steps.len() - 1].more {
                return steps;
            }
        }
    }

    fn number(db: &Connection, sql: &str) -> i64 {
        db.query_row(sql, [], |row| row.get(0)).expect(sql)
    }

    #[test]
    fn units_go_by_age_and_by_number_in_small_steps() {
        let (_dir, mut db) = ledger();
        fill(&db, 301);
        let by_age = Retention {
            units_since: 101,
            ..KEEP
        };
        let steps = run(&mut db, &by_age);
        assert_eq!(steps.len(), 2, "64 and 36");
        assert_eq!(number(&db, "SELECT min(seq) FROM unit"), 101);
        assert_eq!(steps[1].oldest_unit, Some(101));
        let by_number = Retention { units: 50, ..KEEP };
        assert!(run(&mut db, &by_number).len() > 2);
        assert_eq!(
            number(&db, "SELECT count(*) FROM unit"),
            51,
            "and the one that waits"
        );
        assert_eq!(number(&db, "SELECT count(*) FROM released"), 250);
        let orphans = "SELECT count(*) FROM payload WHERE id NOT IN (SELECT payload FROM unit)";
        assert_eq!(number(&db, orphans), 0);
        let without = "SELECT count(*) FROM unit WHERE payload NOT IN (SELECT id FROM payload)";
        assert_eq!(number(&db, without), 0);
    }

    #[test]
    fn units_whose_output_was_fetched_go_first_by_number_and_not_by_age() {
        let (_dir, mut db) = ledger();
        fill(&db, 101);
        db.execute_batch("UPDATE unit SET fetched = ended WHERE seq IN (90, 50)")
            .expect("fetched");
        let left = |db: &Connection| {
            let list = "SELECT group_concat(seq) FROM (SELECT seq FROM unit ORDER BY seq LIMIT 3)";
            let list = db.query_row(list, [], |row| row.get::<_, String>(0));
            (
                list.expect("list"),
                number(db, "SELECT count(*) FROM unit WHERE seq IN (90, 50)"),
            )
        };
        let by_age = Retention {
            units_since: 3,
            ..KEEP
        };
        run(&mut db, &by_age);
        assert_eq!(left(&db), ("3,4,5".into(), 2));
        for (units, first, fetched) in [(97, "3,4,5", 1), (96, "3,4,5", 0), (94, "5,6,7", 0)] {
            run(&mut db, &Retention { units, ..KEEP });
            assert_eq!(left(&db), (first.into(), fetched));
        }
        // 90 of 94 units go in small steps.
        assert!(run(&mut db, &Retention { units: 4, ..KEEP }).len() > 1);
        assert_eq!(left(&db).0, "97,98,99");
    }

    #[test]
    fn a_payload_stays_for_as_long_as_a_unit_has_it() {
        let (dir, mut db) = ledger();
        fill(&db, 3);
        // Units 1 and 2 share one.
        let first = Retention {
            units_since: 2,
            ..KEEP
        };
        run(&mut db, &first);
        let reader = Reader::open(dir.path()).expect("reader");
        assert!(!reader.holds("u1").expect("holds") && reader.is_released("u1").expect("is"));
        let payload = reader.payload("u2").expect("payload").expect("unit");
        assert_eq!(payload.len(), 10);
        assert_eq!(reader.payload("u1"), Ok(None));
    }

    #[test]
    fn retained_messages_go_by_number() {
        let (_dir, mut db) = ledger();
        let sql = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 300)
                   INSERT INTO retained (trigger, topic, digest, at) SELECT 't', i, x'', i FROM n";
        db.execute_batch(sql).expect("fill");
        let keep = Retention {
            retained: 10,
            ..KEEP
        };
        let out: u64 = run(&mut db, &keep).iter().map(|s| s.retained_out).sum();
        assert_eq!(
            (out, number(&db, "SELECT min(at) FROM retained")),
            (290, 291)
        );
    }

    #[test]
    fn events_go_by_age_and_by_number_but_not_while_their_unit_waits() {
        let (_dir, mut db) = ledger();
        fill(&db, 301);
        let by_age = Retention {
            events_since: 1000,
            ..KEEP
        };
        let steps = run(&mut db, &by_age);
        assert!(steps.len() > 2 && steps.iter().all(|step| step.crowded_out == 0));
        assert_eq!(number(&db, "SELECT count(*) FROM event"), 1);
        assert_eq!(
            number(&db, "SELECT accepted FROM event"),
            301,
            "its unit waits"
        );

        let (_dir, mut db) = ledger();
        fill(&db, 301);
        let refused = Retention {
            refused: 20,
            ..KEEP
        };
        let out: u64 = run(&mut db, &refused).iter().map(|s| s.refused_out).sum();
        assert_eq!(out, 281);
        assert_eq!(
            number(
                &db,
                "SELECT min(accepted) FROM event WHERE refusal = 'json'"
            ),
            282
        );
        assert_eq!(
            number(&db, "SELECT count(*) FROM event WHERE unit IS NOT NULL"),
            301
        );
        let events = Retention {
            events: Some(100),
            ..KEEP
        };
        run(&mut db, &events);
        assert_eq!(number(&db, "SELECT count(*) FROM event"), 100);
    }
}
