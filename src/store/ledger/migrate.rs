//! Tables of the ledger, and the upgrade of older files.

use rusqlite::{Connection, TransactionBehavior};

/// Marks the file as ours (`Tael` in ASCII; SQLite's `application_id`).
pub(super) const APPLICATION_ID: i32 = 0x5461_656c;

/// Step `n` upgrades a file of version `n` to version `n + 1`. Steps are never changed.
const MIGRATIONS: &[&str] = &[
    "CREATE TABLE event (
        trigger TEXT NOT NULL,
        id TEXT NOT NULL,
        digest BLOB,
        topic TEXT NOT NULL,
        accepted INTEGER NOT NULL,
        unit TEXT,
        refusal TEXT,
        detail TEXT,
        PRIMARY KEY (trigger, id)
    ) WITHOUT ROWID;
    CREATE INDEX event_digest ON event (digest, accepted) WHERE digest IS NOT NULL;
    CREATE INDEX event_accepted ON event (accepted);
    CREATE TABLE unit (
        seq INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        trigger TEXT NOT NULL,
        event TEXT NOT NULL,
        topic TEXT NOT NULL,
        reason TEXT NOT NULL,
        hops INTEGER NOT NULL,
        traceparent TEXT,
        attempt INTEGER NOT NULL,
        due INTEGER NOT NULL,
        variables TEXT NOT NULL,
        passthrough TEXT NOT NULL,
        payload BLOB NOT NULL,
        command TEXT NOT NULL,
        state TEXT NOT NULL,
        boot TEXT,
        accepted INTEGER NOT NULL,
        started INTEGER,
        ended INTEGER,
        outcome TEXT,
        note TEXT
    );
    CREATE INDEX unit_live ON unit (state) WHERE state IN ('pending', 'running');
    CREATE INDEX unit_ended ON unit (ended) WHERE ended IS NOT NULL;
    CREATE TABLE outbox (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        topic TEXT NOT NULL,
        payload BLOB NOT NULL,
        qos INTEGER NOT NULL,
        retain INTEGER NOT NULL,
        properties TEXT NOT NULL
    );",
    "ALTER TABLE unit ADD COLUMN retry_of TEXT;",
    "ALTER TABLE event ADD COLUMN packet INTEGER NOT NULL DEFAULT 0;",
    "CREATE TABLE silence (
        trigger TEXT PRIMARY KEY,
        heard INTEGER NOT NULL,
        fired INTEGER NOT NULL
    ) WITHOUT ROWID;",
    "CREATE TABLE link (answered INTEGER NOT NULL);
    INSERT INTO link VALUES (0);",
    // An event is the id of its sender and its digest; an empty digest matches any.
    "CREATE TABLE event_of_digest (
        seq INTEGER PRIMARY KEY,
        trigger TEXT NOT NULL,
        id TEXT NOT NULL,
        sender TEXT,
        digest BLOB NOT NULL,
        topic TEXT NOT NULL,
        accepted INTEGER NOT NULL,
        packet INTEGER NOT NULL,
        unit TEXT,
        refusal TEXT,
        detail TEXT
    );
    INSERT INTO event_of_digest
            (trigger, id, sender, digest, topic, accepted, packet, unit, refusal, detail)
        SELECT trigger, id, CASE WHEN digest IS NULL THEN id END, coalesce(digest, x''), topic,
            accepted, packet, unit, refusal, detail
        FROM event ORDER BY accepted;
    DROP TABLE event;
    ALTER TABLE event_of_digest RENAME TO event;
    CREATE INDEX event_sender ON event (sender, digest) WHERE sender IS NOT NULL;
    CREATE INDEX event_digest ON event (digest, accepted) WHERE sender IS NULL;
    CREATE INDEX event_accepted ON event (accepted, packet);
    CREATE TABLE retained (
        trigger TEXT NOT NULL,
        topic TEXT NOT NULL,
        sender TEXT,
        digest BLOB NOT NULL,
        unit TEXT,
        at INTEGER NOT NULL,
        PRIMARY KEY (trigger, topic)
    ) WITHOUT ROWID;",
    // Payloads get a table of their own, so that queries for units do not read past them. The large
    // columns of a unit are last, so that the others are read without them.
    "CREATE TABLE payload (id INTEGER PRIMARY KEY, bytes BLOB NOT NULL);
    INSERT INTO payload SELECT seq, payload FROM unit WHERE length(payload) > 0 ORDER BY seq;
    CREATE TABLE unit_new (
        seq INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        trigger TEXT NOT NULL,
        event TEXT NOT NULL,
        topic TEXT NOT NULL,
        reason TEXT NOT NULL,
        hops INTEGER NOT NULL,
        traceparent TEXT,
        attempt INTEGER NOT NULL,
        retry_of TEXT,
        due INTEGER NOT NULL,
        state TEXT NOT NULL,
        boot TEXT,
        accepted INTEGER NOT NULL,
        started INTEGER,
        ended INTEGER,
        outcome TEXT,
        note TEXT,
        command TEXT NOT NULL,
        payload INTEGER,
        variables TEXT NOT NULL,
        passthrough TEXT NOT NULL
    );
    INSERT INTO unit_new
        SELECT seq, id, trigger, event, topic, reason, hops, traceparent, attempt, retry_of, due,
            state, boot, accepted, started, ended, outcome, note, command,
            CASE WHEN length(payload) > 0 THEN seq END, variables, passthrough
        FROM unit ORDER BY seq;
    DROP TABLE unit;
    ALTER TABLE unit_new RENAME TO unit;
    CREATE INDEX unit_state ON unit (state);
    CREATE INDEX unit_ended ON unit (ended) WHERE ended IS NOT NULL;
    CREATE INDEX unit_shares ON unit (payload) WHERE payload <> seq;
    CREATE INDEX event_refused ON event (accepted) WHERE refusal IS NOT NULL;
    CREATE TABLE released (seq INTEGER PRIMARY KEY AUTOINCREMENT, unit TEXT NOT NULL UNIQUE);",
    // Units carry their specs, and wait in lanes. Small payloads are in the row of their unit. A
    // table of its own holds what an MQTT broker may send again. Events are pruned in the order of
    // their numbers, which is that of their times.
    "CREATE TABLE spec (id INTEGER PRIMARY KEY, content TEXT NOT NULL UNIQUE);
    INSERT INTO spec (content)
        SELECT DISTINCT json_object('lane', trigger, 'command', json_object('text', command))
        FROM unit;
    CREATE TABLE unit_new (
        seq INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        spec INTEGER NOT NULL,
        event TEXT NOT NULL,
        topic TEXT NOT NULL,
        reason TEXT NOT NULL,
        hops INTEGER NOT NULL,
        traceparent TEXT,
        attempt INTEGER NOT NULL,
        retry_of TEXT,
        due INTEGER NOT NULL,
        state TEXT NOT NULL,
        boot TEXT,
        accepted INTEGER NOT NULL,
        started INTEGER,
        ended INTEGER,
        outcome TEXT,
        note TEXT,
        payload INTEGER,
        reply TEXT,
        variables TEXT NOT NULL,
        passthrough TEXT NOT NULL,
        body BLOB
    );
    INSERT INTO unit_new
        SELECT unit.seq, unit.id, spec.id, event, topic, reason, hops, traceparent, attempt, retry_of,
            due, state, boot, accepted, started,
            CASE WHEN state NOT IN ('pending', 'running') THEN coalesce(ended, started, accepted) END,
            outcome, note, payload, NULL, variables, passthrough, NULL
        FROM unit JOIN spec ON spec.content =
            json_object('lane', trigger, 'command', json_object('text', command))
        ORDER BY unit.seq;
    DROP TABLE unit;
    ALTER TABLE unit_new RENAME TO unit;
    CREATE INDEX unit_live ON unit (state) WHERE ended IS NULL;
    CREATE INDEX unit_ended ON unit (ended, state) WHERE ended IS NOT NULL;
    CREATE INDEX unit_shares ON unit (payload) WHERE payload <> seq;
    CREATE TABLE mqtt_packet (
        packet INTEGER PRIMARY KEY,
        digest BLOB NOT NULL,
        accepted INTEGER NOT NULL
    );
    INSERT INTO mqtt_packet
        SELECT packet, digest, accepted FROM
            (SELECT packet, digest, accepted, sender,
                row_number() OVER (PARTITION BY packet ORDER BY accepted DESC, seq DESC) AS place
            FROM event WHERE packet <> 0)
        WHERE place = 1 AND sender IS NULL;
    CREATE TABLE event_new (
        seq INTEGER PRIMARY KEY,
        trigger TEXT NOT NULL,
        id TEXT NOT NULL,
        sender TEXT,
        digest BLOB NOT NULL,
        topic TEXT NOT NULL,
        accepted INTEGER NOT NULL,
        unit TEXT,
        refusal TEXT,
        detail TEXT
    );
    INSERT INTO event_new
            (trigger, id, sender, digest, topic, accepted, unit, refusal, detail)
        SELECT trigger, id, sender, digest, topic, accepted, unit, refusal, detail
        FROM event ORDER BY accepted, seq;
    DROP TABLE event;
    ALTER TABLE event_new RENAME TO event;
    CREATE INDEX event_sender ON event (sender, digest) WHERE sender IS NOT NULL;
    CREATE INDEX event_digest ON event (digest, accepted) WHERE sender IS NULL;
    CREATE INDEX event_refused ON event (accepted) WHERE refusal IS NOT NULL;
    CREATE TABLE outbox_new (
        seq INTEGER PRIMARY KEY,
        route TEXT NOT NULL DEFAULT 'broker',
        topic TEXT NOT NULL,
        payload BLOB NOT NULL,
        qos INTEGER NOT NULL,
        retain INTEGER NOT NULL,
        properties TEXT NOT NULL
    );
    INSERT INTO outbox_new (seq, topic, payload, qos, retain, properties)
        SELECT seq, topic, payload, qos, retain, properties FROM outbox ORDER BY seq;
    DROP TABLE outbox;
    ALTER TABLE outbox_new RENAME TO outbox;",
    // Submitted work; a payload may be a file; what a person wants of a unit once it has ended.
    "ALTER TABLE unit ADD COLUMN work TEXT;
    ALTER TABLE unit ADD COLUMN wanted TEXT;
    ALTER TABLE payload ADD COLUMN file TEXT;
    CREATE INDEX unit_wanted ON unit (wanted) WHERE wanted IS NOT NULL;
    CREATE INDEX unit_work ON unit (seq) WHERE work IS NOT NULL;",
    // Submitted work whose output was fetched, and when it ended: it is forgotten first.
    "ALTER TABLE unit ADD COLUMN fetched INTEGER;
    CREATE INDEX unit_fetched ON unit (fetched) WHERE fetched IS NOT NULL;",
    // Releases that other nodes must hear of.
    "CREATE TABLE debt (
        unit TEXT PRIMARY KEY,
        node TEXT NOT NULL,
        signed INTEGER NOT NULL
    ) WITHOUT ROWID;",
    // Messages of queues that made units, or may come again; letters for queues.
    "ALTER TABLE unit ADD COLUMN origin TEXT;
    CREATE TABLE queue_open (
        unit TEXT PRIMARY KEY,
        source TEXT NOT NULL,
        digest BLOB NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE letter (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        source TEXT NOT NULL,
        key TEXT NOT NULL,
        unit TEXT,
        dead INTEGER NOT NULL,
        properties TEXT NOT NULL,
        body BLOB NOT NULL
    );
    CREATE INDEX letter_source ON letter (source, seq);",
];

/// Maximum content of a ledger that is rewritten so that it can shrink, bytes.
const MAX_VACUUMED: i64 = 64 << 20;

/// Returns the version that this program writes.
pub(super) fn current() -> i32 {
    i32::try_from(MIGRATIONS.len()).unwrap_or(i32::MAX)
}

/// Makes a ledger of an earlier version able to give free pages back, unless rewriting it would
/// take too long.
pub(super) fn let_shrink(connection: &Connection) -> rusqlite::Result<()> {
    let pragma = |name: &str| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let used = pragma("page_count")? - pragma("freelist_count")?;
    if pragma("auto_vacuum")? == 0 && used * pragma("page_size")? <= MAX_VACUUMED {
        connection.execute_batch("PRAGMA auto_vacuum = INCREMENTAL; VACUUM")?;
    }
    Ok(())
}

pub(super) fn migrate(connection: &mut Connection) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let version: i32 = transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if version == current() {
        return Ok(());
    }
    let done = usize::try_from(version).unwrap_or(0);
    for step in MIGRATIONS.iter().skip(done) {
        transaction.execute_batch(step)?;
    }
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    transaction.pragma_update(None, "user_version", current())?;
    transaction.commit()
}
