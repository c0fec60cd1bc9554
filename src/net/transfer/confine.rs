//! Files and folders below allowed folders. The place of an open file decides, not where its name
//! leads before or after.

use std::ffi::{OsStr, OsString};
use std::fmt::Display;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, openat, renameat};
use nix::libc;
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};

const ELSEWHERE: &str = "it is in no folder of --allow-dir";

/// Returns a path that opens the same file again.
fn by_descriptor(file: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// Returns whether the open `file` is below one of `folders`.
fn is_inside(file: &File, folders: &[PathBuf]) -> io::Result<bool> {
    let real = fs::read_link(by_descriptor(file))?;
    let inside = |folder: &PathBuf| folder.canonicalize().is_ok_and(|f| real.starts_with(f));
    Ok(folders.iter().any(inside))
}

/// Opens the file at `path` for reading, and for emptying if `truncate`, if it is a plain file
/// below one of `folders`. Before that is known it is not opened for access: opening a device may
/// act on it, and opening a FIFO wakes or blocks the process at its other end.
///
/// # Errors
/// A text for the user.
pub fn open_confined(path: &Path, folders: &[PathBuf], truncate: bool) -> Result<File, String> {
    let wrong = |e: &dyn Display| format!("{}: {e}", path.display());
    let mut found = File::options();
    found.read(true).custom_flags(libc::O_PATH);
    let found = found.open(path).map_err(|e| wrong(&e))?;
    if !is_inside(&found, folders).map_err(|e| wrong(&e))? {
        return Err(wrong(&ELSEWHERE));
    }
    if !found.metadata().is_ok_and(|meta| meta.is_file()) {
        return Err(wrong(&"it is not a plain file"));
    }
    let mut options = File::options();
    options.read(true).write(truncate);
    // Another process may hold a lease on it (`fcntl(2)`).
    options.custom_flags(libc::O_NONBLOCK);
    options.open(by_descriptor(&found)).map_err(|e| wrong(&e))
}

/// Place for a file: a name in an open folder. If the folder is moved meanwhile, or replaced by a
/// link, the file does not go elsewhere.
#[derive(Debug)]
pub struct Target {
    folder: File,
    name: OsString,
    part: OsString,
}

impl Target {
    /// Returns the place for `path`, if its folder is one of `folders` or below.
    ///
    /// # Errors
    /// A text for the user.
    pub fn new(path: &Path, folders: &[PathBuf]) -> Result<Self, String> {
        let wrong = |e: &dyn Display| format!("{}: {e}", path.display());
        let name = path.file_name().ok_or_else(|| wrong(&"it has no name"))?;
        let parent = match path.parent() {
            Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
            Some(parent) => parent,
            None => return Err(wrong(&"it has no folder")),
        };
        let mut folder = File::options();
        folder.read(true).custom_flags(libc::O_DIRECTORY);
        let folder = folder.open(parent).map_err(|e| wrong(&e))?;
        if !is_inside(&folder, folders).map_err(|e| wrong(&e))? {
            return Err(wrong(&ELSEWHERE));
        }
        Ok(Self {
            folder,
            name: name.to_owned(),
            part: OsString::from(format!(".{}.part", ulid::Ulid::generate())),
        })
    }

    /// Creates the file under a temporary name, for the time of the transfer.
    pub(super) fn create(&self) -> io::Result<File> {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
        let mode = Mode::from_bits_truncate(0o666);
        let file = openat(&self.folder, self.part.as_os_str(), flags, mode)?;
        Ok(File::from(file))
    }

    /// Gives the file its name, which it keeps after a power failure.
    pub(super) fn keep(&self) -> io::Result<()> {
        let (part, name): (&OsStr, &OsStr) = (&self.part, &self.name);
        renameat(&self.folder, part, &self.folder, name)?;
        self.folder.sync_all()
    }

    /// Removes an incomplete file.
    pub fn discard(&self) {
        // Mostly it has its name already, or was never created.
        let _ = unlinkat(
            &self.folder,
            self.part.as_os_str(),
            UnlinkatFlags::NoRemoveDir,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    /// Returns folders `in`, with a file and a link to `out`, and `out`, with a secret.
    fn folders() -> (tempfile::TempDir, PathBuf, PathBuf) {
        let dir = tempfile::tempdir().expect("tempdir");
        let (inside, outside) = (dir.path().join("in"), dir.path().join("out"));
        fs::create_dir(&inside).expect("folder");
        fs::create_dir(&outside).expect("folder");
        fs::write(outside.join("secret"), "").expect("file");
        fs::write(inside.join("file"), "").expect("file");
        std::os::unix::fs::symlink(&outside, inside.join("link")).expect("link");
        (dir, inside, outside)
    }

    #[test]
    fn nothing_leaves_its_folder() {
        let (_dir, inside, outside) = folders();
        let allowed = [inside.clone()];
        let may_send = |path: &Path| open_confined(path, &allowed, true).is_ok();
        let may_put = |path: &Path| Target::new(path, &allowed).is_ok();
        assert!(may_send(&inside.join("file")) && may_put(&inside.join("new")));
        nix::unistd::mkfifo(&inside.join("fifo"), Mode::S_IRUSR).expect("fifo");
        for path in [
            "../out/secret",
            "link/secret",
            "no/where",
            "..",
            ".",
            "fifo",
        ] {
            assert!(!may_send(&inside.join(path)), "{path}");
        }
        for path in ["../out/new", "link/new", "no/where", "..", "file/new"] {
            assert!(!may_put(&inside.join(path)), "{path}");
        }
        assert!(!may_send(&outside.join("secret")));
        assert!(open_confined(&inside.join("file"), &[], false).is_err());
    }

    #[test]
    fn what_may_not_be_sent_is_not_opened() {
        let (_dir, inside, outside) = folders();
        let fifo = outside.join("fifo");
        nix::unistd::mkfifo(&fifo, Mode::S_IRWXU).expect("fifo");
        // Writing without waiting needs a reader, and there may have been none.
        let mut writing = File::options();
        writing.write(true).custom_flags(libc::O_NONBLOCK);
        let stop = std::sync::atomic::AtomicBool::new(false);
        let seen = std::thread::scope(|scope| {
            let watching = scope.spawn(|| {
                let mut seen = false;
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    seen |= writing.open(&fifo).is_ok();
                }
                seen
            });
            for _ in 0..2000 {
                assert!(open_confined(&fifo, std::slice::from_ref(&inside), false).is_err());
            }
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
            watching.join().expect("watcher")
        });
        assert!(!seen);
    }

    #[test]
    fn a_folder_that_is_swapped_meanwhile_leads_nowhere_else() {
        let (dir, inside, outside) = folders();
        let sub = inside.join("sub");
        fs::create_dir(&sub).expect("folder");
        let target = Target::new(&sub.join("new"), &[inside]).expect("target");
        let moved = dir.path().join("moved");
        fs::rename(&sub, &moved).expect("move");
        std::os::unix::fs::symlink(&outside, &sub).expect("link");
        let mut file = target.create().expect("created");
        file.write_all(b"text").expect("written");
        target.keep().expect("kept");
        assert!(!outside.join("new").exists());
        assert_eq!(fs::read(moved.join("new")).expect("file"), b"text");
        target.discard();
        assert_eq!(fs::read_dir(&moved).expect("folder").count(), 1);
    }
}
