//! Checks that the files of the ledger are still the open ones, and contain all commits.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::store::ledger::schema::{WAL_SIZE, log_of};

/// Size of the header of the log, and of each frame, bytes (sqlite.org/fileformat2.html, section
/// 4).
const LOG_HEADER: u64 = 32;
const FRAME_HEADER: u64 = 24;

/// The files of a ledger at the time of opening. A removed or replaced file can be written without
/// an error, and no reader would find the content. The same holds for the lock that keeps a second
/// client away.
#[derive(Debug)]
pub struct Place {
    files: Vec<(PathBuf, (u64, u64))>,
    log: Option<Log>,
}

/// The log, which backups may copy into the ledger and truncate.
#[derive(Debug)]
struct Log {
    path: PathBuf,
    /// The index of the log, which all users of the ledger share.
    index: File,
}

/// State of the files.
#[derive(Debug, PartialEq, Eq)]
pub enum Found<'a> {
    /// They are unchanged.
    Intact,
    /// Another program has copied the log into the ledger and truncated it.
    CopiedLog,
    /// This file is missing, is another one, or lacks commits.
    Lost(&'a Path),
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::metadata(path).map(|meta| (meta.dev(), meta.ino()))
}

impl Place {
    /// Notes the ledger `path`, which is open, its log if it has one, and the lock beside it.
    pub fn of(path: &Path) -> Self {
        let log = log_of(path);
        let files = [path.to_owned(), log.clone(), path.with_file_name("lock")].into_iter();
        let files = files.filter_map(|path| Some((path.clone(), identity(&path).ok()?)));
        let mut index = path.as_os_str().to_owned();
        index.push("-shm");
        let index = File::open(PathBuf::from(index)).ok();
        Self {
            files: files.collect(),
            log: index.map(|index| Log { path: log, index }),
        }
    }

    /// Returns the state of the files.
    pub fn look(&self) -> Found<'_> {
        let mut log_size = None;
        for (path, known) in &self.files {
            // SQLite notices what cannot be read here.
            match fs::metadata(path) {
                Ok(meta) if (meta.dev(), meta.ino()) == *known => {
                    let log = self.log.as_ref().filter(|log| log.path == *path);
                    log_size = log.map(|_| meta.len()).or(log_size);
                }
                Err(e) if e.kind() != io::ErrorKind::NotFound => {}
                _ => return Found::Lost(path),
            }
        }
        let (Some(log), Some(size)) = (&self.log, log_size) else {
            return Found::Intact;
        };
        match needed(&log.index) {
            Ok(needed) if size < needed => Found::Lost(&log.path),
            _ if size < WAL_SIZE => Found::CopiedLog,
            _ => Found::Intact,
        }
    }
}

/// Returns the minimum size of the log, bytes: up to the last frame of a commit, if not all frames
/// are in the ledger. The index of the log has it (sqlite.org/walformat.html, section 2).
fn needed(index: &File) -> io::Result<u64> {
    let mut header = [0; 100];
    index.read_exact_at(&mut header, 0)?;
    let number = |at: usize| {
        let bytes = header.get(at..).and_then(|rest| rest.first_chunk());
        bytes.map_or(0, |bytes| u64::from(u32::from_ne_bytes(*bytes)))
    };
    let page = match u16::from_ne_bytes([header[14], header[15]]) {
        1 => 65_536,
        size => u64::from(size),
    };
    let (frames, copied) = (number(16), number(96));
    Ok(match frames > copied {
        true => LOG_HEADER + frames * (FRAME_HEADER + page),
        false => 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rusqlite::Connection;

    fn ledger() -> (tempfile::TempDir, PathBuf, Connection) {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("ledger.db");
        let db = Connection::open(&path).expect("open");
        let text = "PRAGMA journal_mode = WAL; CREATE TABLE t (x); INSERT INTO t VALUES (1)";
        db.execute_batch(text).expect("table");
        fs::write(dir.path().join("lock"), "").expect("lock");
        // The size that the client gives it.
        let log = File::options().write(true).open(log_of(&path));
        log.expect("log").set_len(WAL_SIZE).expect("fill");
        (dir, path, db)
    }

    #[test]
    fn files_that_are_removed_or_replaced_are_lost() {
        let (dir, path, _db) = ledger();
        let [copy, lock] = ["copy", "lock"].map(|n| dir.path().join(n));
        let place = Place::of(&path);
        assert_eq!(place.look(), Found::Intact);
        fs::copy(&path, &copy).expect("copy");
        fs::rename(&path, dir.path().join("moved")).expect("move");
        assert_eq!(place.look(), Found::Lost(&path));
        fs::rename(&copy, &path).expect("replace");
        assert_eq!(place.look(), Found::Lost(&path), "it is another file");
        let place = Place::of(&path);
        fs::remove_file(&lock).expect("remove");
        assert_eq!(place.look(), Found::Lost(&lock));
    }

    #[test]
    fn a_log_that_is_cut_off_is_lost_unless_the_ledger_holds_all_of_it() {
        let (_dir, path, db) = ledger();
        let place = Place::of(&path);
        let log = File::options()
            .write(true)
            .open(log_of(&path))
            .expect("log");
        let needed = needed(&place.log.as_ref().expect("log").index).expect("needed");
        assert!(needed > 4096 && needed < WAL_SIZE, "{needed}");
        let whole = fs::read(log_of(&path)).expect("read");
        log.set_len(needed).expect("cut");
        assert_eq!(place.look(), Found::CopiedLog, "nothing of it is needed");
        log.set_len(needed - 1).expect("cut");
        assert_eq!(place.look(), Found::Lost(&log_of(&path)));
        log.write_all_at(&whole, 0).expect("grow");
        // As `sqlite3` and backup programs do.
        let other = Connection::open(&path).expect("open");
        let sql = "PRAGMA wal_checkpoint(TRUNCATE)";
        let done: i64 = other.query_row(sql, [], |row| row.get(0)).expect("copy");
        assert_eq!((done, log.metadata().expect("size").len()), (0, 0));
        assert_eq!(place.look(), Found::CopiedLog);
        db.execute("INSERT INTO t VALUES (2)", []).expect("insert");
        log.set_len(0).expect("cut");
        assert_eq!(place.look(), Found::Lost(&log_of(&path)));
    }
}
