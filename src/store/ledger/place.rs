//! Whether the ledger's files are still those that are written to.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The files of a ledger, by the inodes that they had when it was opened: one that is removed or
/// replaced can be written for ever, and nobody would find what is in it.
#[derive(Debug)]
pub struct Place {
    files: Vec<(PathBuf, (u64, u64))>,
}

fn inode(path: &Path) -> io::Result<(u64, u64)> {
    fs::metadata(path).map(|meta| (meta.dev(), meta.ino()))
}

impl Place {
    /// The ledger `path`, which is open, and its log if it has one.
    pub fn of(path: &Path) -> Self {
        let mut log = path.as_os_str().to_owned();
        log.push("-wal");
        let files = [path.to_owned(), log.into()].into_iter();
        let files = files.filter_map(|path| Some((path.clone(), inode(&path).ok()?)));
        Self {
            files: files.collect(),
        }
    }

    /// The first file that is no longer there, or not the same.
    pub fn lost(&self) -> Option<&Path> {
        let lost = |path: &Path, known| match inode(path) {
            Ok(inode) => inode != known,
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
        fs::write(&log, "").expect("write");
        assert_eq!(alone.lost(), None, "it has no log");
        let both = Place::of(&ledger);
        assert_eq!(both.lost(), None);
        fs::copy(&log, &copy).expect("copy");
        fs::rename(&copy, &log).expect("rename");
        assert_eq!(both.lost(), Some(log.as_path()));
        fs::remove_file(&ledger).expect("remove");
        assert_eq!(alone.lost(), Some(ledger.as_path()));
    }
}
