//! Marks: empty files whose existence is the information, also after a power failure.

use std::fs::{self, File};
use std::io;
use std::path::Path;

/// Syncs the folder of `mark`.
fn sync_folder(mark: &Path) -> io::Result<()> {
    match mark.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

/// Sets `mark`, and syncs it to the disk.
///
/// # Errors
/// As the file system.
pub fn set(mark: &Path) -> io::Result<()> {
    let mut options = File::options();
    options.write(true).create(true).truncate(false);
    options.open(mark)?.sync_all()?;
    sync_folder(mark)
}

/// Removes `mark` if it exists, and syncs that to the disk.
///
/// # Errors
/// As the file system.
pub fn clear(mark: &Path) -> io::Result<()> {
    match fs::remove_file(mark) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
        Ok(()) => sync_folder(mark),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_set_and_cleared_as_often_as_one_likes() {
        let dir = tempfile::tempdir().expect("tempdir");
        let mark = dir.path().join("mark");
        for _ in 0..2 {
            set(&mark).expect("set");
            assert!(mark.exists());
        }
        for _ in 0..2 {
            clear(&mark).expect("cleared");
            assert!(!mark.exists());
        }
        assert!(set(&dir.path().join("none/mark")).is_err());
    }
}
