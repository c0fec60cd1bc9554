//! Folders to which no other user may write. A user who can put a link there decides where we
//! write, and the owner of a folder can replace its content.

use std::fs::{self, DirBuilder, Metadata};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;

use nix::unistd::geteuid;

use crate::error::{Error, Result};

/// Write permission of the group and of others (`inode(7)`).
const OTHERS_WRITE: u32 = 0o022;

/// Write permission of all users.
const ALL_WRITE: u32 = 0o002;

/// Only the owners of files may rename and remove them.
const STICKY: u32 = 0o1000;

/// Creates `path` and its parents with mode 0700.
///
/// # Errors
/// When it cannot be created (73), or not now (75).
pub fn create_private_dir(path: &Path) -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|e| Error::state(&e, format!("create folder {}: {e}", path.display())))
}

fn refused(path: &Path, cause: &str) -> Error {
    Error::cannot_create(format!("use state folder {}: {cause}", path.display()))
}

fn look(path: &Path, found: std::io::Result<Metadata>) -> Result<Metadata> {
    found.map_err(|e| Error::state(&e, refused(path, &e.to_string()).to_string()))
}

fn belongs(owner: u32) -> String {
    let ours = geteuid();
    format!("it belongs to user {owner}, and this is user {ours}; start the client as its owner")
}

/// Checks the folder that contains the state folders. It must belong to us or root, and only owners
/// may replace its entries. It may be a link.
///
/// # Errors
/// Why it is not safe (73).
pub fn check_root(path: &Path) -> Result<()> {
    let meta = look(path, fs::metadata(path))?;
    if ![geteuid().as_raw(), 0].contains(&meta.uid()) {
        return Err(refused(path, &belongs(meta.uid())));
    }
    if meta.mode() & ALL_WRITE != 0 && meta.mode() & STICKY == 0 {
        return Err(refused(path, "every user may write to it: chmod o-w"));
    }
    Ok(())
}

/// Checks a folder of ours: it must not be a link, must belong to us, and no other user may write
/// to it.
///
/// # Errors
/// Why it is not safe (73).
pub fn check(path: &Path) -> Result<()> {
    let meta = look(path, fs::symlink_metadata(path))?;
    if !meta.is_dir() {
        return Err(refused(path, "it is a link or a file, not a folder"));
    }
    if meta.uid() != geteuid().as_raw() {
        return Err(refused(path, &belongs(meta.uid())));
    }
    if meta.mode() & OTHERS_WRITE != 0 {
        return Err(refused(path, "other users may write to it: chmod go-w"));
    }
    Ok(())
}

/// Checks the entries of a folder of ours: no links, and none of other users except root.
///
/// # Errors
/// What is not safe (73).
pub fn check_entries(path: &Path) -> Result<()> {
    let entries = fs::read_dir(path).map_err(|e| refused(path, &e.to_string()))?;
    for entry in entries {
        let entry = entry.map_err(|e| refused(path, &e.to_string()))?;
        let inside = entry.path();
        let meta = match entry.metadata() {
            Ok(meta) => meta,
            // SQLite removes its own files at any time.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            Err(e) => return Err(refused(&inside, &e.to_string())),
        };
        if meta.is_symlink() {
            let cause = format!("{} is a link; put back what it leads to", inside.display());
            return Err(refused(path, &cause));
        }
        if ![geteuid().as_raw(), 0].contains(&meta.uid()) {
            let cause = format!("{}: {}", inside.display(), belongs(meta.uid()));
            return Err(refused(path, &cause));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    #[track_caller]
    fn refuses(checked: Result<()>, cause: &str) {
        let error = checked.expect_err(cause);
        assert_eq!(error.exit_code(), 73);
        assert!(error.to_string().contains(cause), "{error}");
    }

    fn mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("mode");
    }

    #[test]
    fn folders_that_others_can_change_are_refused() {
        let dir = tempfile::tempdir().expect("tempdir");
        let (ours, link) = (dir.path().join("ours"), dir.path().join("link"));
        fs::create_dir(&ours).expect("folder");
        mode(&ours, 0o755);
        symlink(&ours, &link).expect("link");
        check_root(&link).expect("a root may be a link");
        refuses(check(&link), "a link");
        check(&ours).expect("ours");
        for wrong in [0o777, 0o775, 0o1777] {
            mode(&ours, wrong);
            refuses(check(&ours), "other users may write");
        }
        check_root(&ours).expect("sticky");
        mode(&ours, 0o777);
        refuses(check_root(&ours), "every user may write");
        mode(&ours, 0o700);
        fs::write(ours.join("file"), "").expect("file");
        check_entries(&ours).expect("ours");
        symlink("/etc/passwd", ours.join("lock")).expect("link");
        refuses(check_entries(&ours), "is a link");
        fs::remove_file(ours.join("lock")).expect("removed");
        // Only root can change owners.
        if geteuid().is_root() {
            chown(ours.join("file"), Some(65534), None).expect("chown");
            refuses(check_entries(&ours), "belongs to user 65534");
            chown(&ours, Some(65534), None).expect("chown");
            refuses(check(&ours), "belongs to user 65534");
            refuses(check_root(&ours), "belongs to user 65534");
        }
    }
}
