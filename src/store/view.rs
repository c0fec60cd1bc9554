//! A view: one SELECT over a copy of the network in memory.
//!
//! The text of a SELECT is that of an operator, and still may not do more than read the three tables:
//! not write, not open a file, and not run or grow without end. SQLite's "Defense Against The Dark Arts"
//! (sqlite.org/security.html) names the means.

use std::sync::{OnceLock, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::config::DbConfig;
use rusqlite::hooks::{AuthAction, AuthContext, Authorization};
use rusqlite::limits::Limit;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, ErrorCode, params};
use serde_json::{Number, Value, json};

use crate::error::{Error, Result};
use crate::model::facts::nodes::Nodes;
use crate::model::facts::presence::{self, Verdict};
use crate::model::facts::tree::{Facts, leaves, merge};
use crate::model::network::Network;

/// Maximum number of rows of a result.
pub const MAX_ROWS: usize = 10_000;

/// Maximum memory of the rows of a result, bytes. Each value of SQLite is within its own limit, and ten
/// thousand rows of them are not.
const MAX_RESULT: usize = 64 * 1024 * 1024;

/// About how much memory the digits of a number take, bytes.
const DIGITS: usize = 32;

/// Maximum time of a SELECT.
const MAX_TIME: Duration = Duration::from_secs(2);

/// Additional time for a step that does not look at the clock. Functions such as `instr` compare large
/// texts for many seconds in one step.
const MAX_STEP: Duration = Duration::from_secs(1);

/// Steps of SQLite between two looks at the clock.
const STEPS: i32 = 10_000;

/// Maximum memory of SQLite for a query, bytes, in addition to the copy of the network.
const MAX_HEAP: i64 = 64 * 1024 * 1024;

/// Maximum memory of the copy of the network, bytes. A value costs up to 256 bytes for its name, so the copy
/// may take many times what the broker retains.
const MAX_COPY: i64 = 256 * 1024 * 1024;

/// Maximum time to copy the network.
const MAX_COPY_TIME: Duration = Duration::from_secs(10);

/// Limits of SQLite: strings and rows, text of a SELECT, patterns of LIKE (one step each, without a
/// look at the clock), depth of expressions, SELECTs in one, steps of its program. They are near those of
/// services that run SQL of strangers.
const LIMITS: &[(Limit, i32)] = &[
    (Limit::SQLITE_LIMIT_LENGTH, 1_000_000),
    (Limit::SQLITE_LIMIT_SQL_LENGTH, 100_000),
    (Limit::SQLITE_LIMIT_COLUMN, 100),
    (Limit::SQLITE_LIMIT_LIKE_PATTERN_LENGTH, 50),
    (Limit::SQLITE_LIMIT_ATTACHED, 0),
    (Limit::SQLITE_LIMIT_EXPR_DEPTH, 100),
    (Limit::SQLITE_LIMIT_COMPOUND_SELECT, 5),
    (Limit::SQLITE_LIMIT_VDBE_OP, 25_000),
    (Limit::SQLITE_LIMIT_FUNCTION_ARG, 32),
    (Limit::SQLITE_LIMIT_VARIABLE_NUMBER, 100),
    (Limit::SQLITE_LIMIT_TRIGGER_DEPTH, 1),
    (Limit::SQLITE_LIMIT_WORKER_THREADS, 0),
];

/// Tables that a SELECT may read; the last two are functions for JSON.
const READABLE: &[&str] = &["node", "fact", "pipeline", "json_each", "json_tree"];

/// Beginnings of the names of tables about SQLite itself.
const INTERNAL: &[&str] = &["sqlite_", "pragma_"];

/// Functions that open files, load code, or make large values in one step.
const FORBIDDEN: &[&str] = &["load_extension", "fts3_tokenizer", "randomblob", "zeroblob"];

const SCHEMA: &str = "
CREATE TABLE node (name TEXT PRIMARY KEY, state TEXT, fresh INTEGER, age INTEGER, host TEXT, facts TEXT) STRICT;
CREATE TABLE fact (node TEXT, kind TEXT, name TEXT, value ANY, age INTEGER) STRICT;
CREATE TABLE pipeline (who TEXT PRIMARY KEY, host TEXT, state TEXT, last_status TEXT, last_code INTEGER, last_age INTEGER) STRICT;
";

/// The network, for one SELECT.
#[derive(Debug)]
pub struct View {
    connection: Connection,
}

/// A result.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Rows {
    /// Names of the columns.
    pub columns: Vec<String>,
    /// The rows, up to [`MAX_ROWS`].
    pub rows: Vec<Vec<Value>>,
    /// Whether there are more.
    pub truncated: bool,
}

impl Rows {
    /// Returns each row as an object, made when it is asked for.
    pub fn objects(&self) -> impl Iterator<Item = Value> {
        self.rows.iter().map(|row| {
            let pairs = self.columns.iter().cloned().zip(row.iter().cloned());
            Value::Object(pairs.collect())
        })
    }
}

/// Checks that `sql` is a SELECT that [`View`] would run, over tables without rows. Does not run it.
///
/// # Errors
/// Why it is none.
pub fn compile(sql: &str) -> Result<(), String> {
    // A view may follow in this process, and then it is too late.
    counts_memory();
    let cause = |e: Error| {
        let text = e.to_string();
        text.strip_prefix("view: ").unwrap_or(&text).to_owned()
    };
    let deadline = Instant::now() + MAX_COPY_TIME;
    let mut view =
        View::within(&Nodes::default(), &Network::default(), 0, deadline).map_err(cause)?;
    let begun = Instant::now();
    let handler = move || begun.elapsed() > MAX_TIME;
    let limited = view.connection.progress_handler(STEPS, Some(handler));
    limited.map_err(|e| cause(bug(e)))?;
    let statement = prepare(&view.connection, sql).map_err(cause)?;
    for index in 1..=statement.parameter_count() {
        let name = statement.parameter_name(index).unwrap_or("?");
        if !name.starts_with(':') {
            return Err(format!(
                "{name} cannot get a value: --set KEY=VALUE gives one to :KEY"
            ));
        }
    }
    Ok(())
}

/// Returns `sql`, compiled.
fn prepare<'a>(connection: &'a Connection, sql: &str) -> Result<rusqlite::Statement<'a>> {
    let statement = connection.prepare(sql).map_err(failed)?;
    match statement.column_count() {
        0 => Err(Error::usage("view: it is not a SELECT")),
        _ => Ok(statement),
    }
}

/// Has SQLite count its memory, and returns whether it does. We build it without, and then no limit of
/// memory holds (sqlite.org/malloc.html). Only the first use of SQLite in a process can ask for it.
fn counts_memory() -> bool {
    static COUNTS: OnceLock<bool> = OnceLock::new();
    *COUNTS.get_or_init(|| {
        let option = rusqlite::ffi::SQLITE_CONFIG_MEMSTATUS;
        // SAFETY: the option takes an integer; SQLite refuses it when it is in use already. The commands
        // that come here have no other thread that uses it.
        let result = unsafe { rusqlite::ffi::sqlite3_config(option, 1) };
        result == rusqlite::ffi::SQLITE_OK
    })
}

/// Returns an error about our own use of SQLite.
fn bug(e: rusqlite::Error) -> Error {
    Error::bug(format!("copy the network for a view: {e}"))
}

impl View {
    /// Copies `nodes` and the pipelines of `network`, as they are at second `now`.
    ///
    /// # Errors
    /// 65 when they are too many to be copied in time, or for the memory that [`View::limited`] allows.
    pub fn new(nodes: &Nodes, network: &Network, now: i64) -> Result<Self> {
        Self::within(nodes, network, now, Instant::now() + MAX_COPY_TIME)
    }

    /// Does the same, and limits the memory that SQLite takes in this process from now on
    /// (`sqlite3_hard_heap_limit64`): first for the copy, then for the query.
    ///
    /// # Errors
    /// As [`View::new`].
    pub fn limited(nodes: &Nodes, network: &Network, now: i64) -> Result<Self> {
        if !counts_memory() {
            return Err(Error::bug("count the memory of a view"));
        }
        limit_memory(MAX_COPY)?;
        let view = Self::new(nodes, network, now)?;
        limit_memory(MAX_HEAP)?;
        Ok(view)
    }

    fn within(nodes: &Nodes, network: &Network, now: i64, deadline: Instant) -> Result<Self> {
        let mut connection = Connection::open_in_memory().map_err(bug)?;
        fill(&mut connection, nodes, network, now, deadline).map_err(not_copied)?;
        protect(&mut connection).map_err(bug)?;
        Ok(Self { connection })
    }

    /// Runs `sql`, a SELECT, with the values of `set`, each named as in `:node`. It has a thread of its
    /// own, which is left behind when a step takes too long: the process must end soon.
    ///
    /// # Errors
    /// 64 when it is wrong or does what is not allowed; 65 when it runs or grows past a limit.
    pub fn query_once(mut self, sql: String, set: Vec<(String, String)>) -> Result<Rows> {
        let (sender, receiver) = mpsc::sync_channel(1);
        let work = move || {
            // There is no receiver when it took too long.
            let _ = sender.send(self.query(&sql, &set));
        };
        let thread = thread::Builder::new().name("view".to_owned()).spawn(work);
        thread.map_err(|e| Error::bug(format!("start a thread for a view: {e}")))?;
        let found = receiver.recv_timeout(MAX_TIME + MAX_STEP);
        found.unwrap_or_else(|_| Err(too_long()))
    }

    /// Runs `sql` in this thread.
    fn query(&mut self, sql: &str, set: &[(String, String)]) -> Result<Rows> {
        let begun = Instant::now();
        let handler = move || begun.elapsed() > MAX_TIME;
        self.connection
            .progress_handler(STEPS, Some(handler))
            .map_err(bug)?;
        let mut statement = prepare(&self.connection, sql)?;
        for (name, value) in set {
            let index = statement
                .parameter_index(&format!(":{name}"))
                .map_err(failed)?;
            let Some(index) = index else {
                return Err(Error::usage(format!("view: the SELECT has no :{name}")));
            };
            statement.raw_bind_parameter(index, value).map_err(failed)?;
        }
        // Without a value it would be NULL, and the rows that are meant would be missing in silence.
        for index in 1..=statement.parameter_count() {
            let name = statement.parameter_name(index).unwrap_or("?");
            let given = |key: &str| set.iter().any(|(name, _)| name == key);
            if !name.strip_prefix(':').is_some_and(given) {
                return Err(Error::usage(format!(
                    "view: {name} in the SELECT has no value: --set KEY=VALUE gives one to :KEY"
                )));
            }
        }
        let columns = distinct(statement.column_names());
        let mut result = Rows {
            columns,
            ..Rows::default()
        };
        let count = result.columns.len();
        let mut room = MAX_RESULT;
        let mut rows = statement.raw_query();
        while let Some(row) = rows.next().map_err(failed)? {
            if result.rows.len() >= MAX_ROWS {
                result.truncated = true;
                break;
            }
            let mut cells = Vec::with_capacity(count);
            for n in 0..count {
                let value = row.get_ref(n).map_err(failed)?;
                room = room.checked_sub(memory(value)).ok_or_else(|| {
                    let limit = MAX_RESULT >> 20;
                    let cause = format!("its rows need more than {limit} MiB; narrow the SELECT");
                    Error::data(format!("view: {cause}"))
                })?;
                cells.push(json_of(value));
            }
            result.rows.push(cells);
        }
        Ok(result)
    }
}

/// Returns the names of columns; one that comes again gets a number, as SQLite gives it to the columns of a
/// SELECT in another: `name`, `name:1`. Otherwise one value would replace the other in an object.
fn distinct<'a>(names: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let names: Vec<&str> = names.into_iter().collect();
    let mut found: Vec<String> = Vec::with_capacity(names.len());
    for name in &names {
        let mut own = (*name).to_owned();
        let mut number = 0;
        while found.contains(&own) || (number > 0 && names.contains(&own.as_str())) {
            number += 1;
            own = format!("{name}:{number}");
        }
        found.push(own);
    }
    found
}

/// Limits the memory of SQLite to `more` bytes than it has now.
fn limit_memory(more: i64) -> Result<()> {
    // SAFETY: it only reads a counter.
    let used = unsafe { rusqlite::ffi::sqlite3_memory_used() };
    let limit = used.saturating_add(more);
    // SAFETY: it only sets a number.
    let before = unsafe { rusqlite::ffi::sqlite3_hard_heap_limit64(limit) };
    match before < 0 {
        true => Err(Error::bug("limit the memory of a view")),
        false => Ok(()),
    }
}

/// Returns why the network was not copied.
fn not_copied(e: rusqlite::Error) -> Error {
    let narrow = "name the nodes that it is about, by nodes = [...] in its [[view]]";
    match e.sqlite_error_code() {
        Some(ErrorCode::OutOfMemory) => Error::data(format!(
            "view: the copy of the network needs more than {} MiB; {narrow}",
            MAX_COPY >> 20
        )),
        Some(ErrorCode::OperationInterrupted) => Error::data(format!(
            "view: copying the network took more than {} s; {narrow}",
            MAX_COPY_TIME.as_secs()
        )),
        _ => bug(e),
    }
}

/// Fills the tables, until `deadline` at most.
fn fill(
    connection: &mut Connection,
    nodes: &Nodes,
    network: &Network,
    now: i64,
    deadline: Instant,
) -> rusqlite::Result<()> {
    // The code of a statement that was interrupted.
    let interrupted = || {
        let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_INTERRUPT);
        rusqlite::Error::SqliteFailure(code, None)
    };
    let in_time = || match Instant::now() < deadline {
        true => Ok(()),
        false => Err(interrupted()),
    };
    connection.execute_batch("PRAGMA temp_store=MEMORY;")?;
    let transaction = connection.transaction()?;
    transaction.execute_batch(SCHEMA)?;
    {
        let mut node = transaction.prepare("INSERT INTO node VALUES (?, ?, ?, ?, ?, ?)")?;
        let mut fact = transaction.prepare("INSERT INTO fact VALUES (?, ?, ?, ?, ?)")?;
        for (name, seen) in &nodes.seen {
            // One node tells a few thousand values at most.
            in_time()?;
            let verdict = seen.verdict(now);
            let host = seen
                .presence
                .as_ref()
                .map(|presence| presence.host.as_str());
            let fresh = verdict == Verdict::Fresh;
            let mut all = Facts::new();
            for (kind, told) in &seen.kinds {
                let age = presence::age(told.ts, now);
                let facts = told.facts();
                for (dotted, value) in leaves(&facts) {
                    put_fact(&mut fact, (name, kind.name(), &dotted), value, age)?;
                }
                merge(&mut all, facts);
            }
            let facts = Value::Object(all).to_string();
            let (state, age) = (verdict.name(), seen.age(now));
            node.execute(params![name, state, fresh, age, host, facts])?;
        }
        let mut pipeline = transaction.prepare("INSERT INTO pipeline VALUES (?, ?, ?, ?, ?, ?)")?;
        for seen in network.pipelines() {
            in_time()?;
            let field = |key: &str| seen.last.as_ref().and_then(|last| last.get(key));
            let status = field("status").and_then(Value::as_str);
            let code = field("return_code").and_then(Value::as_i64);
            let age = field("ts")
                .and_then(Value::as_i64)
                .and_then(|ts| presence::age(ts, now));
            pipeline.execute(params![seen.who, seen.host, seen.state, status, code, age])?;
        }
    }
    transaction.commit()
}

fn put_fact(
    statement: &mut rusqlite::Statement<'_>,
    (node, kind, name): (&str, &str, &str),
    value: &Value,
    age: Option<i64>,
) -> rusqlite::Result<()> {
    let mut put = |params: &dyn Fn(&mut rusqlite::Statement<'_>) -> rusqlite::Result<usize>| {
        params(statement).map(drop)
    };
    match value {
        Value::Null => put(&|s| s.execute(params![node, kind, name, None::<i64>, age])),
        Value::Bool(flag) => put(&|s| s.execute(params![node, kind, name, *flag, age])),
        Value::String(text) => put(&|s| s.execute(params![node, kind, name, text, age])),
        Value::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(whole), _) => put(&|s| s.execute(params![node, kind, name, whole, age])),
            (None, Some(float)) if !is_whole(number) => {
                put(&|s| s.execute(params![node, kind, name, float, age]))
            }
            // SQLite has no larger integers, and a float would be another number.
            (None, _) => put(&|s| s.execute(params![node, kind, name, number.to_string(), age])),
        },
        other => put(&|s| s.execute(params![node, kind, name, other.to_string(), age])),
    }
}

/// Returns whether JSON has written `number` as an integer.
fn is_whole(number: &Number) -> bool {
    !number.to_string().contains(['.', 'e', 'E'])
}

/// Takes every right from the connection but that to read.
fn protect(connection: &mut Connection) -> rusqlite::Result<()> {
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false)?;
    // Later the authorizer would refuse their constructors.
    drop(connection.prepare("SELECT * FROM json_each('[]'), json_tree('[]')")?);
    connection.authorizer(Some(authorize))?;
    for (limit, value) in LIMITS {
        connection.set_limit(*limit, *value)?;
    }
    Ok(())
}

fn authorize(context: AuthContext<'_>) -> Authorization {
    let allowed = match context.action {
        AuthAction::Select | AuthAction::Recursive => true,
        AuthAction::Function { function_name } => {
            let lower = function_name.to_ascii_lowercase();
            !FORBIDDEN.contains(&lower.as_str())
        }
        // Without a column it counts rows; without a database it reads what the SELECT has named itself.
        AuthAction::Read {
            table_name,
            column_name,
        } => {
            let lower = table_name.to_ascii_lowercase();
            let is_internal = INTERNAL.iter().any(|start| lower.starts_with(start));
            let is_own = column_name.is_empty() || context.database_name.is_none();
            READABLE.contains(&table_name) || (is_own && !is_internal)
        }
        _ => false,
    };
    match allowed {
        true => Authorization::Allow,
        false => Authorization::Deny,
    }
}

fn too_long() -> Error {
    Error::data(format!(
        "view: it ran longer than {} s; narrow the SELECT",
        MAX_TIME.as_secs()
    ))
}

/// Returns an error about a SELECT.
fn failed(e: rusqlite::Error) -> Error {
    let too_much = |what: String| Error::data(format!("view: {what}"));
    match e.sqlite_error_code() {
        Some(ErrorCode::OperationInterrupted) => too_long(),
        Some(ErrorCode::OutOfMemory) => too_much(format!(
            "it needs more than {} MiB; narrow the SELECT",
            MAX_HEAP >> 20
        )),
        Some(ErrorCode::TooBig) => too_much("a value or the SELECT is too large".to_owned()),
        Some(ErrorCode::AuthorizationForStatementDenied) => Error::usage(
            "view: it may only read the tables node, fact and pipeline, json_each and json_tree",
        ),
        _ => {
            let cause = match &e {
                rusqlite::Error::SqliteFailure(_, Some(text)) => text.clone(),
                rusqlite::Error::SqlInputError { msg, .. } => msg.clone(),
                other => other.to_string(),
            };
            Error::usage(format!("view: {cause}"))
        }
    }
}

/// Returns about how much memory a value takes as JSON, bytes.
fn memory(value: ValueRef<'_>) -> usize {
    let more = match value {
        ValueRef::Null => 0,
        ValueRef::Integer(_) | ValueRef::Real(_) => DIGITS,
        ValueRef::Text(text) | ValueRef::Blob(text) => text.len(),
    };
    size_of::<Value>() + more
}

/// Returns a value of SQLite as JSON.
fn json_of(value: ValueRef<'_>) -> Value {
    match value {
        ValueRef::Null => Value::Null,
        ValueRef::Integer(whole) => json!(whole),
        ValueRef::Real(float) => Number::from_f64(float).map_or(Value::Null, Value::Number),
        ValueRef::Text(text) | ValueRef::Blob(text) => {
            Value::String(String::from_utf8_lossy(text).into_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind as ErrorKind;
    use crate::model::facts::kind::Kind;
    use crate::model::facts::presence::State;
    use crate::model::facts::round::{Node, payload};

    /// A view over `count` nodes with a disk each, and one pipeline.
    fn view(count: i64) -> View {
        let mut nodes = Nodes::default();
        for n in 0..count {
            let name = format!("n{n:03}");
            let free: Facts = json!({"disk": {"root": {"free_percent": n}}, "ok": n % 2 == 0, "tags": ["a", "b"]})
                .as_object()
                .cloned()
                .expect("object");
            let topic = |last: &str| format!("lab/infrastructure/nodes/{name}/{last}");
            let text = payload(&name, Kind::Dynamic, 900, &free).to_string();
            nodes.add("lab", &topic("dynamic"), text.as_bytes());
            let node = Node {
                name: name.clone(),
                host: format!("h{n}"),
                version: "1".into(),
                machine: String::new(),
                interval: 60,
                keep: 1000,
                share: Vec::new(),
            };
            let presence = node
                .presence(State::Online, 1000 - n * 100)
                .payload()
                .to_string();
            nodes.add("lab", &topic("presence"), presence.as_bytes());
        }
        let mut network = Network::default();
        let presence = json!({"state": "online", "who": "align", "host": "h1"});
        let topic = "lab/infrastructure/pipelines/align/presence";
        network.add("lab", topic, presence.as_object().expect("object"));
        View::new(&nodes, &network, 1000).expect("view")
    }

    fn rows(sql: &str) -> Vec<Value> {
        let found = view(20).query(sql, &[]).map_err(|e| e.to_string());
        found.expect(sql).objects().collect()
    }

    fn refused(sql: &str) -> (ErrorKind, String) {
        let e = view(20).query(sql, &[]).expect_err(sql);
        (e.kind(), e.to_string())
    }

    #[test]
    fn a_number_that_sqlite_does_not_have_is_a_text() {
        let long = "7".repeat(4000);
        let values = [
            ("9223372036854775807", json!(i64::MAX)),
            ("-9223372036854775808", json!(i64::MIN)),
            ("9223372036854775808", json!("9223372036854775808")),
            ("-9223372036854775809", json!("-9223372036854775809")),
            ("18446744073709551616", json!("18446744073709551616")),
            (&long, json!(long)),
            ("1.5", json!(1.5)),
            ("1e3", json!(1000.0)),
            ("1e999", json!("1e+999")),
        ];
        for (text, value) in values {
            let mut nodes = Nodes::default();
            let facts: Facts = serde_json::from_str(&format!(r#"{{"n":{text}}}"#)).expect(text);
            let text = payload("seq1", Kind::Dynamic, 900, &facts).to_string();
            nodes.add(
                "lab",
                "lab/infrastructure/nodes/seq1/dynamic",
                text.as_bytes(),
            );
            let mut view = View::new(&nodes, &Network::default(), 1000).expect("view");
            let found = view.query("SELECT value AS v FROM fact WHERE name = 'n'", &[]);
            let found = found.map_err(|e| e.to_string()).expect("rows");
            let rows: Vec<Value> = found.objects().collect();
            assert_eq!(rows, [json!({"v": value})]);
        }
    }

    #[test]
    fn a_select_joins_nodes_facts_and_pipelines() {
        let sql = "SELECT p.who, n.name FROM pipeline p JOIN node n USING (host)
            WHERE n.facts->>'$.disk.root.free_percent' < 10";
        assert_eq!(rows(sql), [json!({"who": "align", "name": "n001"})]);
        let sql = "SELECT name, facts->>'$.disk.root.free_percent' AS free FROM node WHERE fresh AND free < 10 ORDER BY 1";
        assert_eq!(
            rows(sql),
            [
                json!({"name": "n000", "free": 0}),
                json!({"name": "n001", "free": 1})
            ]
        );
        let sql =
            "SELECT value, age FROM fact WHERE node = 'n003' AND name = 'disk.root.free_percent'";
        assert_eq!(rows(sql), [json!({"value": 3, "age": 100})]);
        assert_eq!(rows("SELECT count(*) AS c FROM node"), [json!({"c": 20})]);
        let sql = "WITH t AS (SELECT j.value AS tag FROM node, json_each(facts, '$.tags') AS j) SELECT tag, count(*) AS c FROM t GROUP BY 1";
        assert_eq!(
            rows(sql),
            [json!({"tag": "a", "c": 20}), json!({"tag": "b", "c": 20})]
        );
        let sql = "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < 3) SELECT max(n) AS m FROM c";
        assert_eq!(rows(sql), [json!({"m": 3})]);
        assert_eq!(
            rows("SELECT name FROM node WHERE name = 'none'"),
            [] as [Value; 0]
        );
    }

    #[test]
    fn a_network_that_is_not_copied_in_time_is_refused() {
        let mut nodes = Nodes::default();
        let facts = Facts::from_iter([("a".to_owned(), json!(1))]);
        let text = payload("n", Kind::State, 900, &facts).to_string();
        let topic = "lab/infrastructure/nodes/n/state";
        nodes.add("lab", topic, text.as_bytes());
        let late = View::within(&nodes, &Network::default(), 1000, Instant::now());
        let e = late.expect_err("late");
        assert_eq!(e.kind(), ErrorKind::Data);
        assert!(e.to_string().contains("took more than 10 s"), "{e}");
        let memory = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_NOMEM);
        let e = not_copied(rusqlite::Error::SqliteFailure(memory, None));
        assert_eq!(e.kind(), ErrorKind::Data);
        assert!(e.to_string().contains("more than 256 MiB"), "{e}");
    }

    #[test]
    fn equal_columns_and_large_numbers_are_not_lost() {
        assert_eq!(
            distinct(["a", "b", "a", "a:1", "a"]),
            ["a", "b", "a:2", "a:1", "a:3"]
        );
        let sql = "SELECT n.name, p.who AS name FROM node n JOIN pipeline p USING (host)";
        assert_eq!(rows(sql), [json!({"name": "n001", "name:1": "align"})]);
        let mut nodes = Nodes::default();
        let numbers = json!({"a": u64::MAX, "b": i64::MAX, "c": 0.5});
        let numbers = numbers.as_object().expect("object");
        let text = payload("n", Kind::State, 900, numbers).to_string();
        let topic = "lab/infrastructure/nodes/n/state";
        nodes.add("lab", topic, text.as_bytes());
        let mut view = View::new(&nodes, &Network::default(), 1000).expect("view");
        let found = view.query("SELECT value FROM fact ORDER BY name", &[]);
        assert_eq!(
            found.expect("rows").rows,
            [
                [json!(u64::MAX.to_string())],
                [json!(i64::MAX)],
                [json!(0.5)]
            ]
        );
    }

    #[test]
    fn values_are_bound_and_never_text_of_the_select() {
        let sql = "SELECT name FROM node WHERE name = :node";
        let with =
            |name: &str, value: &str| view(3).query(sql, &[(name.to_owned(), value.to_owned())]);
        assert_eq!(with("node", "n001").expect("rows").rows, [[json!("n001")]]);
        assert_eq!(with("node", "x' OR 1 --").expect("rows").rows.len(), 0);
        assert_eq!(
            with("other", "x").expect_err("unknown").kind(),
            ErrorKind::Usage
        );
    }

    #[test]
    fn nothing_but_reading_is_allowed() {
        let dir = tempfile::tempdir().expect("tempdir");
        let file = dir.path().join("x.db");
        let file = file.to_str().expect("path");
        for sql in [
            format!("ATTACH '{file}' AS x"),
            format!("VACUUM INTO '{file}'"),
            "DELETE FROM node".to_owned(),
            "INSERT INTO node (name) VALUES ('x')".to_owned(),
            "INSERT INTO node (name) VALUES ('x') RETURNING name".to_owned(),
            "CREATE TABLE t (a)".to_owned(),
            "CREATE TEMP TABLE t AS SELECT 1".to_owned(),
            "DROP TABLE node".to_owned(),
            "PRAGMA database_list".to_owned(),
            "PRAGMA hard_heap_limit=0".to_owned(),
            "SELECT * FROM pragma_database_list".to_owned(),
            "SELECT count(*) FROM pragma_database_list".to_owned(),
            "SELECT * FROM sqlite_schema".to_owned(),
            "SELECT count(*) FROM sqlite_schema".to_owned(),
            "SELECT sql FROM sqlite_master".to_owned(),
            "SELECT load_extension('/lib/x.so')".to_owned(),
            "SELECT RandomBlob(10)".to_owned(),
            "SELECT length(zeroblob(10))".to_owned(),
            "SELECT readfile('/etc/passwd')".to_owned(),
            "BEGIN".to_owned(),
            "SELECT 1; SELECT 2".to_owned(),
            "SELEKT".to_owned(),
            String::new(),
            "SELECT a FROM node".to_owned(),
        ] {
            let (kind, text) = refused(&sql);
            assert_eq!(kind, ErrorKind::Usage, "{sql}: {text}");
            assert!(!text.contains('\n'), "{text}");
        }
        assert!(
            std::fs::read_dir(dir.path()).expect("dir").next().is_none(),
            "a file was written"
        );
    }

    #[test]
    fn a_select_is_compiled_without_a_network() {
        for sql in [
            "SELECT name FROM node WHERE name = :node",
            "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c) SELECT count(*) FROM c",
        ] {
            assert_eq!(compile(sql), Ok(()), "{sql}");
        }
        for (sql, cause) in [
            ("SELEC", "syntax error"),
            ("", "not a SELECT"),
            ("SELECT nam FROM node", "no such column"),
            ("DELETE FROM node", "may only read"),
            ("SELECT randomblob(1)", "randomblob"),
            ("SELECT name FROM node WHERE name = ?", "cannot get a value"),
            ("SELECT name FROM node WHERE name = @node", "@node cannot"),
        ] {
            let found = compile(sql).expect_err(sql);
            assert!(found.contains(cause), "{sql}: {found}");
        }
    }

    #[test]
    fn bombs_end_at_a_limit() {
        for sql in [
            "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c) SELECT count(*) FROM c",
            "SELECT count(*) FROM fact a, fact b, fact c, fact d, fact e, fact f",
            "SELECT printf('%.2000000c', 'x')",
            "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < 10000) SELECT printf('%.900000c', 'x') FROM c",
            "WITH RECURSIVE c(t) AS (SELECT 'xx' UNION ALL SELECT t || t FROM c) SELECT max(length(t)) FROM c",
        ] {
            let begun = Instant::now();
            let (kind, text) = refused(sql);
            assert_eq!(kind, ErrorKind::Data, "{sql}: {text}");
            assert!(begun.elapsed() < Duration::from_secs(20), "{sql}");
        }
        // The next one is not affected.
        assert_eq!(rows("SELECT count(*) AS c FROM node"), [json!({"c": 20})]);
    }

    #[test]
    fn a_step_that_does_not_look_at_the_clock_is_left_behind() {
        // Several, of which one alone may be done in time on a fast machine.
        let step =
            |n: u32| format!("instr(printf('%.90000{n}c', 'a'), printf('%.450000c', 'a') || 'b')");
        let steps: Vec<String> = (0..6).map(step).collect();
        let sql = format!("SELECT {}", steps.join(" + "));
        let begun = Instant::now();
        let found = view(20).query_once(sql, Vec::new());
        assert_eq!(found.map_err(|e| e.kind()), Err(ErrorKind::Data));
        assert!(
            begun.elapsed() < Duration::from_secs(8),
            "{:?}",
            begun.elapsed()
        );
        let found = view(20).query_once("SELECT count(*) FROM node".to_owned(), Vec::new());
        assert_eq!(found.expect("rows").rows, [[json!(20)]]);
    }

    #[test]
    fn rows_are_bounded_by_their_memory() {
        let rows = |width: usize, count: usize| {
            let cells = vec![format!("printf('%.{width}c', 'x')"); 10].join(", ");
            let sql = format!(
                "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < {count}) SELECT {cells} FROM c"
            );
            view(1).query(&sql, &[])
        };
        let e = rows(90_000, 80).expect_err("72 MB");
        assert_eq!(e.kind(), ErrorKind::Data);
        assert!(
            e.to_string().contains("its rows need more than 64 MiB"),
            "{e}"
        );
        assert_eq!(rows(90_000, 60).expect("54 MB").rows.len(), 60);
        // Small values take more than their text.
        assert!(memory(ValueRef::Null) >= size_of::<Value>());
        assert!(memory(ValueRef::Integer(1)) > size_of::<Value>());
    }

    #[test]
    fn many_rows_are_truncated() {
        let sql = "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < 20000) SELECT n FROM c";
        let found = view(1).query(sql, &[]).expect("rows");
        assert_eq!((found.rows.len(), found.truncated), (MAX_ROWS, true));
    }
}
