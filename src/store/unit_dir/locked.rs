//! A unit's folder in the hands of its runner: locked, and open for writing.
//!
//! Creating files takes a file system longer than anything else between an event and its command.
//! A runner therefore creates the folder of its next unit while it is idle, in `runners/<pid>`,
//! and renames it when the unit comes; or it takes the folder of an earlier run that left nothing
//! in it.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::model::unit::Outcome;
use crate::store::unit_dir::UnitDir;
use crate::store::unit_dir::journal::Journal;
use crate::store::unit_dir::stream::{Stream, StreamFiles};

/// Returns where this process creates the folder of its next unit.
pub(super) fn own_folder(runners: &Path) -> PathBuf {
    runners.join(std::process::id().to_string())
}

fn create(folder: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(folder)
}

/// A unit's folder that this process has locked.
#[derive(Debug)]
pub struct LockedDir {
    dir: UnitDir,
    journal: Journal,
    streams: StreamFiles,
    /// Becomes readable when something was created in the folder.
    changes: Option<Inotify>,
}

impl LockedDir {
    /// Creates a folder for a unit to come in `runners`, the folder for that.
    ///
    /// # Errors
    /// As the file system.
    pub fn ahead(runners: &Path) -> io::Result<Self> {
        let dir = UnitDir::at(own_folder(runners));
        match create(dir.path()) {
            // An earlier process of this id has left it.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                fs::remove_dir_all(dir.path())?;
                create(dir.path())?;
            }
            other => other?,
        }
        let locked = Self::lock(&dir);
        if locked.is_err() {
            // Descriptors may be short, and these calls need none.
            let _ = fs::remove_file(dir.record());
            let _ = fs::remove_dir(dir.path());
        }
        locked
    }

    /// Locks the folder `dir`, and creates what is missing of it.
    fn open(dir: &UnitDir) -> io::Result<Self> {
        match create(dir.path()) {
            // A cancel before the unit began, or a runner that died there.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            other => other?,
        }
        Self::lock(dir)
    }

    /// Locks the folder `dir`, which exists.
    pub(super) fn lock(dir: &UnitDir) -> io::Result<Self> {
        Ok(Self {
            journal: Journal::open(&dir.record()).map_err(io::Error::other)?,
            streams: StreamFiles::default(),
            changes: None,
            dir: dir.clone(),
        })
    }

    /// Takes `unit`, with the folder that was created ahead if there is one. Waits for processes
    /// that look whether a runner works on it. Returns `None` if another runner has begun it.
    ///
    /// # Errors
    /// As the file system; the unit was not begun then.
    pub fn take(ahead: Option<Self>, unit: UnitDir) -> io::Result<Option<Self>> {
        if let Some(mut locked) = ahead {
            // This would replace an empty folder, but units' folders are not empty for long.
            if fs::rename(locked.dir.path(), unit.path()).is_ok() {
                locked.dir = unit;
                return Ok(Some(locked));
            }
            locked.discard();
        }
        let mut locked = Self::open(&unit)?;
        let notes = locked.journal.resume(&unit.record(), &unit.id())?;
        Ok((!notes.is_begun()).then_some(locked))
    }

    /// Takes the folder of a unit that does not run back to `runners`, for the next unit.
    #[must_use]
    pub fn withdraw(mut self, runners: &Path) -> Option<Self> {
        let back = UnitDir::at(own_folder(runners));
        if fs::rename(self.dir.path(), back.path()).is_ok() {
            // The runner that takes the unit up later has to see the mark.
            if back.is_marked_for(&self.dir) {
                let _ = self.dir.cancel();
            }
            self.dir = back;
            return Some(self);
        }
        self.discard();
        None
    }

    /// Removes the folder.
    pub fn discard(self) {
        let _ = self.dir.remove();
    }

    /// The unit's folder.
    #[must_use]
    pub const fn dir(&self) -> &UnitDir {
        &self.dir
    }

    /// Its record, open for writing.
    pub(super) fn record(&self) -> &File {
        self.journal.file()
    }

    /// Gives up the files of the streams.
    pub(super) fn give_streams(&mut self) -> StreamFiles {
        std::mem::take(&mut self.streams)
    }

    /// Releases the folder: its path, its record unless the kernel has closed it, and the files of
    /// its streams.
    pub(super) fn release(self) -> (UnitDir, Option<File>, StreamFiles) {
        (self.dir, self.journal.release(), self.streams)
    }

    /// Notes that the command may have started.
    ///
    /// # Errors
    /// As the file system.
    pub fn begin(&mut self) -> io::Result<()> {
        self.journal.begin(&self.dir.id())
    }

    /// Notes the process of the command: its id, when it started, and under which boot.
    ///
    /// # Errors
    /// As the file system.
    pub fn note_process(&mut self, pid: u32, start: u64, boot: &str) -> io::Result<()> {
        self.journal.process(&self.dir.id(), pid, start, boot)
    }

    /// Notes the outcome. It counts when its line is whole.
    ///
    /// # Errors
    /// As the file system.
    pub fn end(&mut self, outcome: &Outcome) -> io::Result<()> {
        self.journal.end(&self.dir.id(), outcome)
    }

    /// Notes that the file of a stream has a hole between its first `head` and its last `tail`
    /// bytes.
    ///
    /// # Errors
    /// As the file system.
    pub(super) fn note_hole(&mut self, stream: Stream, head: u64, tail: u64) -> io::Result<()> {
        self.journal.hole(&self.dir.id(), stream, head, tail)
    }

    /// Notes that the file of a stream holds its first `head` bytes only, for now.
    ///
    /// # Errors
    /// As the file system.
    pub(super) fn note_cut(&mut self, stream: Stream, head: u64) -> io::Result<()> {
        self.journal.cut(&self.dir.id(), stream, head)
    }

    /// Returns the standard input of a command: a file in memory that holds `payload`.
    ///
    /// # Errors
    /// As `memfd_create(2)` and `write(2)`.
    pub fn stdin(payload: &[u8]) -> io::Result<File> {
        let mut stdin = File::from(memfd_create("stdin", MFdFlags::MFD_CLOEXEC)?);
        stdin.write_all(payload)?;
        stdin.rewind()?;
        Ok(stdin)
    }

    /// Returns the file of a stream, open for appending.
    ///
    /// # Errors
    /// As `open(2)`.
    pub fn stream(&mut self, stream: Stream) -> io::Result<&File> {
        self.streams.open(self.dir.path(), stream)
    }

    /// Begins to watch the folder for new files, unless the system has no more watches
    /// (`fs.inotify.max_user_instances`). Earlier changes are not reported.
    pub fn watch(&mut self) {
        let watch = || {
            let changes = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
            changes.add_watch(self.dir.path(), AddWatchFlags::IN_CREATE)?;
            Ok::<_, Errno>(changes)
        };
        self.changes = watch().ok();
    }

    /// Becomes readable when something was created in the folder.
    #[must_use]
    pub fn changes(&self) -> Option<BorrowedFd<'_>> {
        self.changes.as_ref().map(AsFd::as_fd)
    }

    /// Whether the unit was canceled.
    #[must_use]
    pub fn is_canceled(&self) -> bool {
        if let Some(changes) = &self.changes {
            while changes.read_events().is_ok_and(|events| !events.is_empty()) {}
        }
        self.dir.is_canceled()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::model::unit::Trace;

    pub fn state() -> (tempfile::TempDir, PathBuf, UnitDir) {
        let state = tempfile::tempdir().expect("tempdir");
        for name in ["units", "runners"] {
            fs::create_dir(state.path().join(name)).expect("folder");
        }
        let unit = UnitDir::new(state.path(), "u1");
        let runners = state.path().join("runners");
        (state, runners, unit)
    }

    pub fn count(dir: &Path) -> usize {
        fs::read_dir(dir).expect("folder").count()
    }

    #[test]
    fn a_folder_tells_what_became_of_its_unit() {
        let (_state, runners, unit) = state();
        let ahead = LockedDir::ahead(&runners).expect("ahead");
        assert_eq!(unit.trace(), Ok(Trace::Fresh));
        let mut locked = LockedDir::take(Some(ahead), unit.clone())
            .expect("take")
            .expect("fresh");
        assert_eq!(count(&runners), 0, "it was renamed");
        locked.begin().expect("begun");
        assert_eq!(unit.trace(), Ok(Trace::Alive));
        locked.note_process(7, 8, "boot").expect("process");
        assert!(!locked.is_canceled());
        unit.cancel().expect("cancel");
        assert!(locked.is_canceled());
        drop(locked);
        assert_eq!(unit.trace(), Ok(Trace::Gone));
        assert_eq!(unit.notes().process("boot"), Some((7, 8)));
        assert_eq!(unit.notes().process("another"), None);
        unit.remove().expect("remove");
        unit.remove().expect("remove again");
    }

    #[test]
    fn what_was_begun_is_not_begun_again() {
        let (_state, runners, unit) = state();
        let take = |ahead| LockedDir::take(ahead, unit.clone()).expect("take");
        drop(take(None).expect("fresh"));
        assert_eq!(unit.trace(), Ok(Trace::Fresh), "it was only looked at");
        let ahead = LockedDir::ahead(&runners).expect("ahead");
        let mut locked = take(Some(ahead)).expect("fresh still");
        assert_eq!(count(&runners), 0, "the folder that is there is taken");
        locked.begin().expect("begun");
        let outcome = Outcome::interrupted(1);
        locked.end(&outcome).expect("end");
        drop(locked);
        assert_eq!(unit.trace(), Ok(Trace::Ended(outcome)));
        assert!(take(None).is_none());
    }

    #[test]
    fn a_unit_that_was_canceled_ahead_keeps_that() {
        let (_state, runners, unit) = state();
        unit.cancel().expect("cancel");
        let ahead = LockedDir::ahead(&runners).expect("ahead");
        let locked = LockedDir::take(Some(ahead), unit)
            .expect("take")
            .expect("fresh");
        assert!(locked.is_canceled());
    }

    #[test]
    fn a_folder_that_was_taken_in_vain_serves_the_next_unit() {
        let (state, runners, unit) = state();
        let take = |ahead, unit| LockedDir::take(ahead, unit).expect("take").expect("fresh");
        let locked = take(
            Some(LockedDir::ahead(&runners).expect("ahead")),
            unit.clone(),
        );
        let ahead = locked.withdraw(&runners);
        assert!(ahead.is_some() && !unit.path().exists());
        let other = |id| UnitDir::new(state.path(), id);
        let locked = take(ahead, other("u2"));
        locked.dir().cancel().expect("cancel");
        assert!(locked.is_canceled());
        let locked = take(locked.withdraw(&runners), other("u3"));
        assert!(!locked.is_canceled(), "the mark is not for the next");
        assert!(
            other("u2").is_canceled(),
            "except for the runner that takes it up again"
        );
        other("u2").remove().expect("remove");
        locked.discard();
        assert_eq!(count(&runners) + count(&state.path().join("units")), 0);
    }

    #[test]
    fn the_payload_is_there_to_read() {
        let stdin = LockedDir::stdin(b"\xff payload").expect("stdin");
        assert_eq!(io::read_to_string(stdin).ok(), None, "it is not UTF-8");
        let mut stdin = LockedDir::stdin(b"payload").expect("stdin");
        assert_eq!(io::read_to_string(&mut stdin).expect("read"), "payload");
    }

    #[test]
    fn a_cancel_while_a_folder_is_withdrawn_is_not_lost() {
        use std::sync::atomic::{AtomicBool, Ordering};
        let (_state, runners, unit) = state();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let canceling = scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    unit.cancel()?;
                }
                unit.cancel()
            });
            let mut ahead = None;
            for _ in 0..1000 {
                let locked = LockedDir::take(ahead.take(), unit.clone()).expect("take");
                ahead = locked.expect("fresh").withdraw(&runners);
            }
            done.store(true, Ordering::Relaxed);
            canceling.join().expect("thread").expect("cancel");
        });
        assert!(unit.is_canceled());
    }
}
