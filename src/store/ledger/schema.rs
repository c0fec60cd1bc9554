//! Checks and opens the file of the ledger.

use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags};
use tracing::warn;

use crate::error::{Error, Kind, Result};
use crate::store::ledger::migrate::{APPLICATION_ID, current, let_shrink, migrate};
use crate::store::ledger::network::on_network;

/// Number of pages in the log at which they are copied into the ledger.
const WAL_PAGES: u64 = 500;

/// Size of the log at rest, bytes; it has room for [`WAL_PAGES`] of 4 KiB with their headers.
pub(super) const WAL_SIZE: u64 = 2 << 20;

/// Maximum number of prepared statements: more than there are. With 16, the default of the library,
/// each event prepared some of them again.
pub(super) const STATEMENTS: usize = 64;

/// Maximum time to wait for the write lock of another process.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// Maximum size of a ledger that is read from end to end after a start, bytes; and the maximum
/// after it was closed in good order. Larger ones take seconds; SQLite notices damage in them when
/// it reads a damaged page.
const MAX_CHECKED: u64 = 64 << 20;
const MAX_CHECKED_CLOSED: u64 = 4 << 20;

/// Options that differ between builds of SQLite and could change the behaviour of the ledger. The
/// flags in `.cargo/config.toml`, which `cargo install` does not read, only make it smaller and
/// faster.
const OPTIONS: &[(DbConfig, bool)] = &[
    (DbConfig::SQLITE_DBCONFIG_ENABLE_FKEY, false),
    (DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false),
    (DbConfig::SQLITE_DBCONFIG_ENABLE_VIEW, false),
    // Another user may have put the file there.
    (DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false),
    // The plan of a statement does not depend on its parameters. Otherwise SQLite, which has no
    // statistics of a ledger, compiles some of them again at each use (sqlite.org/queryplanner-ng.html).
    (DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true),
];

fn wrong(path: &Path, kind: Kind, cause: &dyn std::fmt::Display) -> Error {
    Error::new(kind, format!("open ledger {}: {cause}", path.display()))
}

/// A shortage or disturbance may be over at the next start.
pub(super) fn failed(path: &Path, cause: &rusqlite::Error) -> Error {
    let kind = match cause.sqlite_error_code() {
        Some(
            ErrorCode::DiskFull
            | ErrorCode::SystemIoFailure
            | ErrorCode::DatabaseBusy
            | ErrorCode::DatabaseLocked
            | ErrorCode::OutOfMemory,
        ) => Kind::TryAgain,
        _ => Kind::CannotCreate,
    };
    wrong(path, kind, cause)
}

/// Returns the file of the ledger in the folder of a pipeline.
#[must_use]
pub fn file(pipeline: &Path) -> PathBuf {
    pipeline.join("ledger.db")
}

/// Returns the log beside the ledger `path`.
pub(super) fn log_of(path: &Path) -> PathBuf {
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    log.into()
}

/// Returns whether all pages of the ledger `path` must be read.
fn is_to_be_read_whole(path: &Path) -> bool {
    let size = |path: &Path| std::fs::metadata(path).map_or(0, |meta| meta.len());
    let closed = size(&log_of(path)) == 0;
    size(path)
        <= if closed {
            MAX_CHECKED_CLOSED
        } else {
            MAX_CHECKED
        }
}

/// Returns the error for a ledger that cannot be opened or read.
fn unusable(path: &Path, cause: &rusqlite::Error) -> Error {
    match cause.sqlite_error_code() {
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => wrong(
            path,
            Kind::CannotCreate,
            &format_args!("{cause}: move it away to start afresh"),
        ),
        _ => failed(path, cause),
    }
}

fn open_to_look(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    Ok(connection)
}

/// A ledger that was looked at.
#[derive(Debug)]
pub struct Looked {
    /// Whether it has the current version.
    pub current: bool,
    /// While it is open, the next connection need not read the whole log again.
    _connection: Connection,
}

/// Checks the kind and the version of a ledger without changing it, which takes the same time for
/// all sizes.
///
/// # Errors
/// When there is none (73), it is not a ledger or its head is damaged (73), or newer than this
/// program (78).
pub fn check(path: &Path) -> Result<Looked> {
    // SQLite would wait for the writer of a FIFO.
    if std::fs::symlink_metadata(path).is_ok_and(|what| !what.is_file() && !what.is_symlink()) {
        return Err(wrong(path, Kind::CannotCreate, &"it is not a regular file"));
    }
    let unusable = |e: rusqlite::Error| unusable(path, &e);
    let connection = open_to_look(path).map_err(unusable)?;
    let pragma = |name: &str| connection.pragma_query_value(None, name, |row| row.get::<_, i32>(0));
    let version = pragma("user_version").map_err(unusable)?;
    if version > current() {
        return Err(wrong(
            path,
            Kind::Config,
            &format_args!(
                "it has version {version}, written by a newer Tael; this one knows {}: upgrade",
                current()
            ),
        ));
    }
    let id = pragma("application_id").map_err(unusable)?;
    let tables: i64 = connection
        .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
        .map_err(unusable)?;
    if tables > 0 && id != APPLICATION_ID {
        return Err(wrong(
            path,
            Kind::CannotCreate,
            &"it is not a ledger of Tael",
        ));
    }
    Ok(Looked {
        current: version == current(),
        _connection: connection,
    })
}

/// Reads every page of a ledger without changing it, except one that is too large for that.
///
/// # Errors
/// When it is damaged (73) or cannot be read.
pub fn check_pages(path: &Path) -> Result<()> {
    if !is_to_be_read_whole(path) {
        return Ok(());
    }
    let sound = open_to_look(path)
        .and_then(|ledger| ledger.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)));
    let sound: String = sound.map_err(|e| unusable(path, &e))?;
    if sound != "ok" {
        return Err(wrong(
            path,
            Kind::CannotCreate,
            &format_args!("it is damaged ({sound}): move it away to start afresh"),
        ));
    }
    Ok(())
}

/// Opens a ledger for writing; `create` creates or upgrades it.
///
/// # Errors
/// When it cannot be opened or upgraded.
pub fn connect(path: &Path, create: bool) -> Result<Connection> {
    let unusable = |e: rusqlite::Error| failed(path, &e);
    let mut flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    if create {
        flags |= OpenFlags::SQLITE_OPEN_CREATE;
        // SQLite would use the umask. The files beside it get the mode of this one.
        let private = std::fs::OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(path);
        private.map_err(|e| Error::state(&e, format!("open ledger {}: {e}", path.display())))?;
    }
    let mut connection = Connection::open_with_flags(path, flags).map_err(unusable)?;
    connection.busy_timeout(BUSY_TIMEOUT).map_err(unusable)?;
    for (option, on) in OPTIONS {
        connection.set_db_config(*option, *on).map_err(unusable)?;
    }
    // WAL needs shared memory, which network file systems do not have (sqlite.org/wal.html).
    let journal = if on_network(path) { "DELETE" } else { "WAL" };
    if create && std::fs::metadata(path).is_ok_and(|meta| meta.len() == 0) {
        // This lets a new file give its free pages back. It must come first, and would write again
        // to a file that can.
        let pragma = "PRAGMA auto_vacuum = INCREMENTAL";
        connection.execute_batch(pragma).map_err(unusable)?;
    }
    if create || journal == "DELETE" {
        // This may write to a file from another file system, which a client has not checked yet.
        let pragma = format!("PRAGMA journal_mode = {journal}");
        connection.execute_batch(&pragma).map_err(unusable)?;
    }
    let pragmas = format!(
        "PRAGMA synchronous = FULL;
         PRAGMA cache_size = -256;
         PRAGMA wal_autocheckpoint = {WAL_PAGES};
         PRAGMA journal_size_limit = {WAL_SIZE};"
    );
    connection.execute_batch(&pragmas).map_err(unusable)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    // A reader must not copy the log when it closes, nor must a writer that has found damage.
    copy_log_on_close(&connection, false).map_err(unusable)?;
    if create {
        if journal == "DELETE" {
            warn!(
                "{} is on a network file system: the ledger works without WAL, and slower",
                path.display()
            );
        }
        migrate(&mut connection).map_err(unusable)?;
        if let Err(e) = let_shrink(&connection) {
            warn!("{} does not shrink: {e}", path.display());
        }
    }
    Ok(connection)
}

/// Sets whether SQLite copies the log into the ledger when `connection`, the last one, is closed.
/// The file that replaces a truncated log must not be copied.
pub(super) fn copy_log_on_close(connection: &Connection, copy: bool) -> rusqlite::Result<()> {
    let option = DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE;
    connection.set_db_config(option, !copy).map(drop)
}

/// Gives the log its full size at once. To sync a file that grows, a file system must also sync its
/// metadata, and with it all files that were created meanwhile.
pub(super) fn fill_wal(
    connection: &mut Connection,
    path: &Path,
) -> Result<(), Box<dyn std::error::Error>> {
    // No other process appends to it while we hold the write lock.
    let behavior = rusqlite::TransactionBehavior::Immediate;
    let _transaction = connection.transaction_with_behavior(behavior)?;
    let log = log_of(path);
    let file = std::fs::OpenOptions::new().write(true).open(log)?;
    let used = file.metadata()?.len();
    // Frames of zeroes end the log when it is read: they do not have its salt
    // (sqlite.org/fileformat2.html, section 4.1).
    let zeroes = vec![0; usize::try_from(WAL_SIZE.saturating_sub(used))?];
    let filled = file
        .write_all_at(&zeroes, used)
        .and_then(|()| file.sync_all());
    if filled.is_err() {
        file.set_len(used)?;
    }
    Ok(filled?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fifo_in_the_place_of_a_ledger_is_refused_at_once() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("ledger.db");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("mkfifo");
        let error = check(&path).expect_err("no file");
        assert!(error.to_string().contains("not a regular file"), "{error}");
    }

    #[test]
    fn no_build_of_sqlite_decides_what_the_ledger_does() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("ledger.db");
        for create in [true, false] {
            let connection = connect(&path, create).expect("connect");
            let pragma = |name: &str| -> String {
                let text = |row: &rusqlite::Row<'_>| row.get::<_, rusqlite::types::Value>(0);
                let value = connection.pragma_query_value(None, name, text);
                match value.expect(name) {
                    rusqlite::types::Value::Integer(number) => number.to_string(),
                    rusqlite::types::Value::Text(text) => text,
                    other => format!("{other:?}"),
                }
            };
            let expected = [
                ("foreign_keys", "0"),
                ("trusted_schema", "0"),
                ("journal_mode", "wal"),
                ("synchronous", "2"),
                ("auto_vacuum", "2"),
                ("page_size", "4096"),
                ("cache_size", "-256"),
            ];
            for (name, value) in expected {
                assert_eq!(pragma(name), value, "{name}");
            }
        }
    }
}
