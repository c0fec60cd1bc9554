//! Whether the ledger's files are still those that are written to.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::store::ledger::schema::WAL_SIZE;

/// The files of a ledger, as they were when it was opened. One that is removed or replaced can be
/// written for ever, and nobody would find what is in it; a log that is cut off loses what it
/// held. The same goes for the lock that keeps a second client away.
#[derive(Debug)]
pub struct Place {
    files: Vec<(PathBuf, Seen)>,
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    device: u64,
    inode: u64,
    /// Up to [`WAL_SIZE`], below which no file of a ledger becomes shorter.
    bytes: u64,
}

fn look(path: &Path) -> io::Result<Seen> {
    fs::metadata(path).map(|meta| Seen {
        device: meta.dev(),
        inode: meta.ino(),
        bytes: meta.len().min(WAL_SIZE),
    })
}

impl Place {
    /// The ledger `path`, which is open, its log if it has one, and the lock beside it.
    pub fn of(path: &Path) -> Self {
        let mut log = path.as_os_str().to_owned();
        log.push("-wal");
        let files = [path.to_owned(), log.into(), path.with_file_name("lock")].into_iter();
        let files = files.filter_map(|path| Some((path.clone(), look(&path).ok()?)));
        Self {
            files: files.collect(),
        }
    }

    /// The first file that is no longer there, not the same, or cut off.
    pub fn lost(&self) -> Option<&Path> {
        let lost = |path: &Path, known: Seen| match look(path) {
            Ok(now) => {
                (now.device, now.inode) != (known.device, known.inode) || now.bytes < known.bytes
            }
            Err(e) => e.kind() == io::ErrorKind::NotFound,
        };
        let mut lost = self.files.iter().filter(|(path, known)| lost(path, *known));
        lost.next().map(|(path, _)| path.as_path())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_are_removed_or_replaced_are_lost() {
        let dir = tempfile::tempdir().expect("tempdir");
        let [ledger, log, copy] = ["ledger", "ledger-wal", "copy"].map(|n| dir.path().join(n));
        fs::write(&ledger, "").expect("write");
        let alone = Place::of(&ledger);
        fs::write(&log, "log").expect("write");
        assert_eq!(alone.lost(), None, "it has no log");
        let both = Place::of(&ledger);
        assert_eq!(both.lost(), None);
        fs::write(&log, "longer").expect("write");
        assert_eq!(both.lost(), None);
        fs::write(&log, "").expect("write");
        assert_eq!(both.lost(), Some(log.as_path()));
        fs::write(&log, "log").expect("write");
        fs::copy(&log, &copy).expect("copy");
        fs::rename(&copy, &log).expect("rename");
        assert_eq!(both.lost(), Some(log.as_path()));
        fs::remove_file(&ledger).expect("remove");
        assert_eq!(alone.lost(), Some(ledger.as_path()));
    }
}
