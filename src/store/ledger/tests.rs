//! The ledger as a whole: pages that a commit writes, changes that it refuses, and what it reads
//! again.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rusqlite::{Connection, StatementStatus};

use super::*;
use crate::model::command::Command;
use crate::model::message::{Message, Properties, Qos, Route};
use crate::model::spec::Spec;
use crate::model::state::{Change, Stage};
use crate::model::unit::{End, Outcome, ReplyAddress, State, Unit};
use crate::model::work::{Delegation, Work};
use crate::store::ledger::state::WriterState;
use crate::store::ledger::write::MAX_DEBTS;
use crate::store::ledger::writer::commit;

struct Fixture {
    dir: tempfile::TempDir,
    connection: Connection,
    state: WriterState,
    spec: Arc<Spec>,
    events: u32,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("tempdir");
        let connection = schema::connect(&file(dir.path()), true).expect("ledger");
        let fast = "PRAGMA synchronous = OFF";
        connection.execute_batch(fast).expect("pragma");
        Self {
            connection,
            dir,
            state: WriterState::default(),
            spec: Arc::new(Spec::new("seq", Command::direct("true").expect("command"))),
            events: 0,
        }
    }

    fn commit(&mut self, ops: Vec<Op>) -> Vec<Done> {
        let batch: Vec<(Op, ())> = ops.into_iter().map(|op| (op, ())).collect();
        commit(&self.connection, &mut self.state, &batch).expect("commit")
    }

    fn one(&mut self, op: Op) -> Done {
        self.commit(vec![op]).remove(0)
    }

    fn reader(&self) -> Reader {
        Reader::open(self.dir.path()).expect("reader")
    }

    fn unit(&mut self, payload: usize) -> Unit {
        self.events += 1;
        let n = self.events;
        Unit {
            id: format!("01KA00000000000000000U{n:04}"),
            spec: Arc::clone(&self.spec),
            event: format!("01KA00000000000000000E{n:04}"),
            topic: "lab/seq/status".into(),
            reason: "lab/seq/status finished".into(),
            hops: 0,
            traceparent: None,
            attempt: 1,
            retry_of: None,
            due: 0,
            variables: vec![
                ("ATTR_STATUS".into(), "finished".into()),
                ("ATTR_SAMPLE".into(), "S1".into()),
            ],
            passthrough: serde_json::Map::new(),
            payload: Some(vec![b'x'; payload].into()),
            reply: None,
            origin: None,
            work: None,
        }
    }

    /// An event that `unit` answers, which starts at once; `sender` says whether it came with an id.
    fn accept(&self, unit: &Unit, start: bool, sender: bool) -> Op {
        let mut digest = [0; 32];
        // As a real one, it is far from that of the event before.
        let spread = self.events.wrapping_mul(0x9e37_79b9).to_be_bytes();
        digest[..4].copy_from_slice(&spread);
        Op::Accept {
            key: EventKey {
                id: unit.event.clone(),
                sender: sender.then(|| unit.event.clone()),
                digest,
                packet: u16::try_from(self.events).expect("packet"),
                is_new: sender,
                ..EventKey::default()
            },
            topic: unit.topic.clone(),
            at: i64::from(self.events),
            boot: "33da3343-b3d7-4867-a01a-54ab301797cc".into(),
            parts: vec![Part::Run {
                unit: Arc::new(unit.clone()),
                start,
                retained: false,
                first_retry: false,
            }],
        }
    }

    fn status() -> Message {
        Message {
            topic: "lab/infrastructure/pipelines/seq/status".into(),
            payload: vec![b'x'; 120].into(),
            qos: Qos::AtLeastOnce,
            retain: false,
            properties: Properties {
                user: vec![("tael-id".into(), "01KA000000000000000000000I".into())],
                ..Properties::default()
            },
        }
    }

    fn settle(&self, unit: &Unit) -> Op {
        let outcome = Outcome {
            end: End::Exited(0),
            ..Outcome::interrupted(1)
        };
        Op::Settle {
            unit: unit.id.clone(),
            state: State::Succeeded,
            outcome: Some(outcome),
            at: i64::from(self.events),
            note: None,
            statuses: vec![Self::status(), Self::status()],
            letters: Vec::new(),
            retry: None,
        }
    }

    /// Pages in the log, from its index (sqlite.org/walformat.html, section 2).
    fn frames(&self) -> u32 {
        let index: PathBuf = self.dir.path().join("ledger.db-shm");
        let mut number = [0; 4];
        let index = File::open(index).expect("index");
        index.read_exact_at(&mut number, 16).expect("header");
        u32::from_ne_bytes(number)
    }

    /// Pages that the commit of `op` writes.
    fn cost(&mut self, op: Op) -> u32 {
        let before = self.frames();
        self.one(op);
        // A commit that makes a full log begin anew is not asked for by the callers.
        self.frames() - before
    }
}

/// The usual number of pages, and the most.
fn usual(mut costs: Vec<u32>) -> (u32, u32) {
    costs.sort_unstable();
    (costs[costs.len() / 2], costs[costs.len() - 1])
}

#[test]
fn the_commits_of_an_event_write_few_pages() {
    for sender in [true, false] {
        let mut ledger = Fixture::new();
        let (mut accepted, mut settled, mut sent) = (vec![], vec![], vec![]);
        for n in 0..200u64 {
            let checkpoint = "PRAGMA wal_checkpoint(PASSIVE)";
            let copied = ledger.connection.query_row(checkpoint, [], |_| Ok(()));
            copied.expect("checkpoint");
            // The next writer begins the log anew.
            ledger
                .connection
                .execute_batch("UPDATE link SET answered = 1")
                .expect("begin");
            let unit = ledger.unit(60);
            let op = ledger.accept(&unit, true, sender);
            accepted.push(ledger.cost(op));
            let op = ledger.settle(&unit);
            settled.push(ledger.cost(op));
            sent.push(ledger.cost(Op::Sent {
                list: vec![2 * n + 1, 2 * n + 2],
                answered: -1,
            }));
        }
        // What the identifier carried is one more, if only that tells the message from others.
        let evidence = u32::from(!sender);
        let (usual_accept, most_accept) = usual(accepted);
        assert!(
            usual_accept <= 5 + evidence,
            "{usual_accept} pages to accept and start"
        );
        assert!(most_accept <= 14, "{most_accept} pages at most");
        let (usual_settle, most_settle) = usual(settled);
        assert!(usual_settle <= 4, "{usual_settle} pages to settle");
        assert!(most_settle <= 9, "{most_settle} pages at most");
        assert!(usual(sent).0 <= 2, "pages to note that statuses were sent");
    }
}

#[test]
fn a_unit_that_waits_can_be_taken_back() {
    let mut ledger = Fixture::new();
    let unit = ledger.unit(10);
    let op = ledger.accept(&unit, false, true);
    ledger.one(op);
    let back = Op::Unstart {
        unit: unit.id.clone(),
    };
    let stays = Done::Changed {
        applied: false,
        queued: Vec::new(),
        letters: Vec::new(),
    };
    assert_eq!(ledger.one(back), stays);
}

#[test]
fn releases_that_nodes_have_not_heard_of_have_a_bound() {
    let mut ledger = Fixture::new();
    let mut unit = ledger.unit(10);
    unit.work = Some(Arc::new(Work {
        kind: "echo".into(),
        params: Vec::new(),
        submitter: "ann@host".into(),
        signed: false,
        file: None,
        delegation: Some(Box::new(Delegation {
            node: "node7".into(),
            named: Vec::new(),
            length: 0,
            sha256: "00".repeat(32),
            expires: None,
        })),
    }));
    ledger.one(ledger.accept(&unit, true, true));
    ledger.one(ledger.settle(&unit));
    let full = format!(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {MAX_DEBTS})
         INSERT INTO debt SELECT printf('00%024d', i), 'node8', 0 FROM n"
    );
    ledger.connection.execute_batch(&full).expect("full");
    let (unit, force) = (unit.id, true);
    ledger.one(Op::Release {
        unit: unit.clone(),
        force,
    });
    let debts = submitted::debts(&ledger.reader(), None).expect("debts");
    assert_eq!(debts.len(), usize::try_from(MAX_DEBTS).expect("bound"));
    // The oldest is gone.
    assert_eq!(debts[0].unit, format!("00{:024}", 2));
    let last = debts.last().expect("debts");
    assert_eq!((&last.unit, last.node.as_str()), (&unit, "node7"));
}

#[test]
fn an_illegal_change_changes_nothing() {
    let mut ledger = Fixture::new();
    let unit = ledger.unit(10);
    let op = ledger.accept(&unit, true, true);
    ledger.one(op);
    let settle = ledger.settle(&unit);
    assert!(matches!(
        ledger.one(settle.clone()),
        Done::Changed { applied: true, .. }
    ));
    let before = ledger.reader().unit(&unit.id).expect("read");
    let illegal = |change| Done::Illegal {
        unit: unit.id.clone(),
        change: crate::model::state::IllegalChange {
            stage: Stage::Succeeded,
            change,
        },
    };
    assert_eq!(ledger.one(settle), illegal(Change::End(State::Succeeded)));
    let back = Op::Unstart {
        unit: unit.id.clone(),
    };
    assert_eq!(ledger.one(back), illegal(Change::TakeBack));
    let started = Op::Started {
        unit: unit.id.clone(),
        at: 1,
        status: Fixture::status(),
    };
    assert_eq!(ledger.one(started), illegal(Change::Begin));
    assert_eq!(ledger.reader().unit(&unit.id).expect("read"), before);
    assert_eq!(
        ledger.reader().waiting_messages(),
        Ok(2),
        "of the first end"
    );
}

#[test]
fn a_unit_is_read_with_what_it_carries() {
    let mut ledger = Fixture::new();
    let reply = ReplyAddress {
        route: Route::Broker,
        topic: "lab/infrastructure/reply".into(),
        correlation: Some(vec![0xff].into()),
        request: Some("R1".into()),
        at_end: None,
    };
    // One payload lies in the row, the other one in a table.
    for payload in [0, 60, 5000] {
        let unit = Unit {
            reply: Some(reply.clone()),
            ..ledger.unit(payload)
        };
        let op = ledger.accept(&unit, false, true);
        ledger.one(op);
        let reader = ledger.reader();
        let read = reader.unit(&unit.id).expect("read").expect("unit");
        let bytes = unit.payload.clone().unwrap_or_default();
        assert_eq!(reader.payload(&unit.id), Ok(Some(bytes)));
        assert_eq!(
            read.unit,
            Unit {
                payload: None,
                ..unit
            }
        );
        assert_eq!(read.state, State::Pending);
    }
    assert_eq!(ledger.reader().waiting_bytes(), Ok(5060));
    let specs = "SELECT count(*) FROM spec";
    let count = ledger
        .connection
        .query_row(specs, [], |row| row.get::<_, i64>(0));
    assert_eq!(count, Ok(1), "stored once");
}

#[test]
fn a_unit_carries_what_it_started_with() {
    let mut ledger = Fixture::new();
    let unit = ledger.unit(10);
    let op = ledger.accept(&unit, false, true);
    ledger.one(op);
    let other = Unit {
        spec: Arc::new(Spec::new("seq", Command::direct("false").expect("command"))),
        variables: vec![("OTHER".to_owned(), "1".into())],
        passthrough: serde_json::Map::new(),
        payload: None,
        ..unit
    };
    ledger.one(Op::Start {
        unit: Arc::new(other.clone()),
        anew: true,
        boot: "boot".into(),
    });
    let read = ledger
        .reader()
        .unit(&other.id)
        .expect("read")
        .expect("unit");
    assert_eq!((read.state, read.unit), (State::Running, other));
}

#[test]
fn a_transaction_that_failed_leaves_no_number_of_a_spec_behind() {
    let mut ledger = Fixture::new();
    let unit = ledger.unit(10);
    let accept = ledger.accept(&unit, false, true);
    // The same unit cannot come twice.
    let twice = Unit {
        event: "other".into(),
        ..unit.clone()
    };
    let twice = ledger.accept(&twice, false, true);
    let batch = [(accept.clone(), ()), (twice, ())];
    commit(&ledger.connection, &mut ledger.state, &batch).expect_err("it is there");
    ledger.one(accept);
    let read = ledger.reader().unit(&unit.id).expect("read").expect("unit");
    assert_eq!(read.unit.spec, ledger.spec);
}

#[test]
fn numbers_of_messages_are_not_used_again_while_the_client_runs() {
    let mut ledger = Fixture::new();
    let post = |ledger: &mut Fixture| match ledger.one(Op::Post(Fixture::status())) {
        Done::Changed { queued, .. } => queued[0].seq,
        other => panic!("{other:?}"),
    };
    assert_eq!(post(&mut ledger), 1);
    ledger.one(Op::Sent {
        list: vec![1],
        answered: 0,
    });
    assert_eq!(post(&mut ledger), 2);
    // Another program has written to the table.
    let sql = "INSERT INTO outbox (seq, topic, payload, qos, retain, properties)
               VALUES (9, 'x', x'', 1, 0, '[]')";
    ledger.connection.execute_batch(sql).expect("insert");
    assert_eq!(post(&mut ledger), 10);
    // A client has read the messages, and published them.
    ledger.state = WriterState::of(&ledger.connection).expect("state");
    ledger
        .connection
        .execute_batch("DELETE FROM outbox")
        .expect("delete");
    assert_eq!(post(&mut ledger), 11);
}

#[test]
fn ids_that_no_unit_has_are_found() {
    let mut ledger = Fixture::new();
    for _ in 0..3 {
        let unit = ledger.unit(10);
        let op = ledger.accept(&unit, false, true);
        ledger.one(op);
    }
    let ids = |list: &[&str]| -> Vec<String> { list.iter().map(|id| (*id).to_owned()).collect() };
    let known = "01KA00000000000000000U0002";
    let all = ids(&["0", known, "01KA00000000000000000U00025", "1"]);
    assert_eq!(
        ledger.reader().unknown(&all),
        Ok(vec![&*all[0], &*all[2], &*all[3]])
    );
    assert_eq!(ledger.reader().unknown(&[]), Ok(vec![]));
    assert_eq!(ledger.reader().unknown(&ids(&[known])), Ok(vec![]));
}

/// Questions that the client asks at its start, or for each event.
#[test]
fn no_question_of_the_start_reads_all_units_or_events() {
    let ledger = Fixture::new();
    let plan = |sql: &str| -> String {
        let sql = format!("EXPLAIN QUERY PLAN {sql}");
        let mut query = ledger.connection.prepare(&sql).expect("plan");
        let parameters: Vec<i64> = vec![1; query.parameter_count()];
        let lines = query.query_map(rusqlite::params_from_iter(parameters), |row| row.get(3));
        let lines: rusqlite::Result<Vec<String>> = lines.expect("plan").collect();
        lines.expect("plan").join("; ")
    };
    for (sql, index) in [
        (
            "SELECT seq FROM unit WHERE ended IS NULL AND state = ?1 AND seq > ?2 ORDER BY seq",
            "unit_live",
        ),
        (
            "SELECT state, count(*) FROM unit WHERE ended IS NULL GROUP BY state",
            "unit_live",
        ),
        (
            "SELECT state, count(*) FROM unit WHERE ended IS NOT NULL GROUP BY state",
            "unit_ended",
        ),
        (
            "SELECT seq FROM unit WHERE ended IS NOT NULL AND outcome IS NOT NULL
             ORDER BY ended DESC, seq DESC LIMIT 1",
            "unit_ended",
        ),
        (
            "SELECT max(sender) FROM event WHERE sender >= ?1 AND sender < ?2",
            "event_sender",
        ),
    ] {
        let plan = plan(sql);
        // Only runs that ended in the same millisecond are sorted.
        let sorts = plan.contains("B-TREE FOR ORDER BY");
        assert!(plan.contains(index) && !sorts, "{sql}: {plan}");
    }
}

#[test]
fn last_ends_are_found_without_reading_every_run() {
    const RUNS: i64 = 100_000;
    let fixture = Fixture::new();
    let ledger = &fixture.connection;
    for (id, lane) in [(1, "busy"), (2, "broken"), (3, "rare"), (4, "new")] {
        let spec = format!(r#"{{"lane":"{lane}"}}"#);
        let insert = "INSERT INTO spec (id, content) VALUES (?1, ?2)";
        ledger.execute(insert, (id, spec)).expect("spec");
    }
    // The last run of "rare" was long ago, "broken" never succeeds, "new" was dropped before it ran.
    let insert = "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < ?1)
        INSERT INTO unit (id, spec, event, topic, reason, hops, attempt, due, accepted, state,
                ended, outcome, variables, passthrough)
            SELECT n, CASE WHEN n = 7 THEN 3 WHEN n = ?1 THEN 4 ELSE 1 + n % 2 END, 'e', 't', 'r',
                0, 1, 0, n, CASE WHEN n = ?1 THEN 'canceled' WHEN n % 2 THEN 'failed'
                ELSE 'succeeded' END, n, CASE WHEN n < ?1 THEN '{}' END, printf('%.*c', 300, 'x'), '{}'
            FROM n";
    ledger.execute(insert, [RUNS]).expect("units");
    let reader = fixture.reader();
    let ends = || {
        let (ends, more) = last_ends::last_ends(&reader).expect("ends");
        let mut ends: Vec<_> = ends
            .into_iter()
            .map(|end| (end.lane, end.last, end.success))
            .collect();
        ends.sort();
        (ends, more)
    };
    let found = vec![
        ("broken".to_owned(), RUNS - 1, None),
        ("busy".to_owned(), RUNS - 2, Some(RUNS - 2)),
    ];
    assert_eq!(ends(), (found, true), "those of \"rare\" are too old");
    // Other tests take processor time, from both.
    let (mut quickest, mut every_run) = (Duration::MAX, Duration::MAX);
    for _ in 0..20 {
        let begun = Instant::now();
        ends();
        quickest = quickest.min(begun.elapsed());
        let begun = Instant::now();
        let longest = "SELECT max(length(variables)) FROM unit";
        let longest = ledger.query_row(longest, [], |row| row.get::<_, i64>(0));
        assert_eq!(longest, Ok(300));
        every_run = every_run.min(begun.elapsed());
    }
    assert!(quickest < every_run, "{quickest:?}, {every_run:?}");
    // Within the bound all of them are found.
    let keep = "DELETE FROM unit WHERE ended > ?1";
    ledger.execute(keep, [20]).expect("delete");
    let found = vec![
        ("broken".to_owned(), 19, None),
        ("busy".to_owned(), 20, Some(20)),
        ("rare".to_owned(), 7, None),
    ];
    assert_eq!(ends(), (found, false));
}

/// It would cost more than what it reads.
#[test]
fn no_question_is_compiled_again_for_other_parameters() {
    let mut ledger = Fixture::new();
    let units = [(); 3].map(|()| ledger.unit(10));
    for unit in &units {
        ledger.one(ledger.accept(unit, false, true));
    }
    let reader = ledger.reader();
    let sql = reader::with_payload();
    for unit in &units {
        assert!(reader.unit_with_payload(&unit.id).expect("read").is_some());
        let query = reader.connection.prepare_cached(&sql).expect("cached");
        let used = query.get_status(StatementStatus::Run);
        let compiled_again = query.get_status(StatementStatus::RePrepare);
        assert!(used > 0 && compiled_again == 0, "{used} {compiled_again}");
    }
}
