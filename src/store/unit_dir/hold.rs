//! A runner's hold on the folder of the unit that it works on.
//!
//! To make files takes a file system longer than anything else that stands between an event
//! and its command. So a runner makes the folder of its next unit while it has nothing to do,
//! in `runners/<pid>`, and renames it when the unit comes; or it takes that of a run before,
//! which has left nothing in it.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::model::outcome::outcome_text;
use crate::model::unit::Outcome;
use crate::os::lock::Lock;
use crate::store::unit_dir::{BEGUN, ENDED, PROCESS, Stream, UnitDir, noted};

/// The mode of what is in a folder.
pub(super) const MODE: u32 = 0o600;

/// Where this process makes the folder of a unit to come.
pub(super) fn own_folder(runners: &Path) -> PathBuf {
    runners.join(std::process::id().to_string())
}

/// A unit's folder in the hands of its runner: locked, and open.
#[derive(Debug)]
pub struct Hold {
    pub(super) dir: UnitDir,
    pub(super) lock: Lock,
    /// Bytes of the record that are whole.
    whole: u64,
    pub(super) stdout: File,
    pub(super) stderr: File,
    /// Tells that something was added to the folder.
    changes: Option<Inotify>,
}

impl Hold {
    /// Makes a folder for a unit to come in `runners`, the folder for that.
    ///
    /// # Errors
    /// As the file system.
    pub fn ahead(runners: &Path) -> io::Result<Self> {
        let path = own_folder(runners);
        // One that had our number has left it.
        match fs::remove_dir_all(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let dir = UnitDir::at(path);
        let hold = Self::open(&dir);
        if hold.is_err() {
            let _ = dir.remove();
        }
        hold
    }

    pub(super) fn open(dir: &UnitDir) -> io::Result<Self> {
        match DirBuilder::new().mode(0o700).create(dir.path()) {
            // Somebody has canceled the unit before it began, or a runner has died there.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            other => other?,
        }
        let append = |stream: Stream| {
            let mut options = OpenOptions::new();
            options.append(true).create(true).mode(MODE);
            options.open(dir.path().join(stream.file()))
        };
        Ok(Self {
            lock: Lock::acquire(&dir.record()).map_err(io::Error::other)?,
            whole: 0,
            stdout: append(Stream::Stdout)?,
            stderr: append(Stream::Stderr)?,
            changes: None,
            dir: dir.clone(),
        })
    }

    /// Reads what the record holds, to go on behind it; whether the unit was begun.
    fn read_record(&mut self) -> io::Result<bool> {
        let mut bytes = Vec::new();
        File::open(self.dir.record())?.read_to_end(&mut bytes)?;
        let text = String::from_utf8_lossy(&bytes);
        // Half a line, which a power failure has left, is written over.
        let whole = bytes.iter().rposition(|b| *b == b'\n');
        self.whole = whole.map_or(0, |at| at as u64 + 1);
        Ok(noted(&text, BEGUN, &self.dir.id()).is_some())
    }

    /// Takes `unit`, with the folder that was made ahead if there is one; waits for whoever
    /// looks whether somebody works on it. `None` if another runner has begun it already.
    ///
    /// # Errors
    /// As the file system; nothing was begun then.
    pub fn take(ahead: Option<Self>, unit: UnitDir) -> io::Result<Option<Self>> {
        if let Some(mut hold) = ahead {
            // An empty folder would be replaced, but none of ours ever is for long.
            if fs::rename(hold.dir.path(), unit.path()).is_ok() {
                hold.dir = unit;
                return Ok(Some(hold));
            }
            hold.discard();
        }
        let mut hold = Self::open(&unit)?;
        let begun = hold.read_record()?;
        Ok((!begun).then_some(hold))
    }

    /// Takes the folder of a unit that is not to run back to `runners`, for the next one.
    #[must_use]
    pub fn withdraw(mut self, runners: &Path) -> Option<Self> {
        let back = UnitDir::at(own_folder(runners));
        if fs::rename(self.dir.path(), back.path()).is_ok() {
            // Whoever takes the unit up later has to see that.
            if back.is_marked_for(&self.dir) {
                let _ = self.dir.cancel();
            }
            self.dir = back;
            return Some(self);
        }
        self.discard();
        None
    }

    /// Removes the folder: nothing came.
    pub fn discard(self) {
        let _ = self.dir.remove();
    }

    /// The unit's folder.
    #[must_use]
    pub const fn dir(&self) -> &UnitDir {
        &self.dir
    }

    fn note(&mut self, text: &str) -> io::Result<()> {
        let file = self.lock.file();
        let noted = file.write_all_at(text.as_bytes(), self.whole);
        match noted {
            Ok(()) => self.whole += text.len() as u64,
            // Half a line would be taken for the beginning of the next.
            Err(_) => file.set_len(self.whole)?,
        }
        noted
    }

    /// Notes that the command may have started. That is only believed under the same boot, so
    /// it needs no sync.
    ///
    /// # Errors
    /// As the file system.
    pub fn begin(&mut self) -> io::Result<()> {
        self.note(&format!("{BEGUN} {}\n", self.dir.id()))
    }

    /// Notes the process of the command: its id, when it was started, and under which boot.
    ///
    /// # Errors
    /// As the file system.
    pub fn note_process(&mut self, pid: u32, start: u64, boot: &str) -> io::Result<()> {
        let id = self.dir.id();
        self.note(&format!("{PROCESS} {id} {pid} {start} {boot}\n"))
    }

    /// Notes the outcome; it counts when its line is whole.
    ///
    /// # Errors
    /// As the file system.
    pub fn end(&mut self, outcome: &Outcome) -> io::Result<()> {
        let id = self.dir.id();
        self.note(&format!("{ENDED} {id} {}\n", outcome_text(outcome)))
    }

    /// What a command is to read: `payload`.
    ///
    /// # Errors
    /// As `memfd_create(2)` and `write(2)`.
    pub fn stdin(payload: &[u8]) -> io::Result<File> {
        let mut stdin = File::from(memfd_create("stdin", MFdFlags::MFD_CLOEXEC)?);
        stdin.write_all(payload)?;
        stdin.rewind()?;
        Ok(stdin)
    }

    /// The file of a stream, to be written at its end.
    #[must_use]
    pub const fn stream(&self, stream: Stream) -> &File {
        match stream {
            Stream::Stdout => &self.stdout,
            Stream::Stderr => &self.stderr,
        }
    }

    /// Notes that the file of a stream has a hole between its first `head` and its last `tail`
    /// bytes.
    ///
    /// # Errors
    /// As the file system.
    pub(super) fn note_hole(&mut self, stream: Stream, head: u64, tail: u64) -> io::Result<()> {
        let (word, id) = (stream.hole(), self.dir.id());
        self.note(&format!("{word} {id} {head} {tail}\n"))
    }

    /// Notes that bytes are missing from the file of a stream behind its first `head`.
    ///
    /// # Errors
    /// As the file system.
    pub(super) fn note_cut(&mut self, stream: Stream, head: u64) -> io::Result<()> {
        let (word, id) = (stream.cut(), self.dir.id());
        self.note(&format!("{word} {id} {head}\n"))
    }

    /// Begins to watch the folder for changes, unless the system grants no more of that
    /// (`fs.inotify.max_user_instances`). What has changed before is not told.
    pub fn watch(&mut self) {
        let watch = || {
            let changes = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
            changes.add_watch(self.dir.path(), AddWatchFlags::IN_CREATE)?;
            Ok::<_, Errno>(changes)
        };
        self.changes = watch().ok();
    }

    /// Becomes readable when the folder has changed.
    #[must_use]
    pub fn changes(&self) -> Option<BorrowedFd<'_>> {
        self.changes.as_ref().map(AsFd::as_fd)
    }

    /// Whether somebody has asked for the end of the unit.
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
        let ahead = Hold::ahead(&runners).expect("ahead");
        assert_eq!(unit.trace(), Ok(Trace::Fresh));
        let mut hold = Hold::take(Some(ahead), unit.clone())
            .expect("take")
            .expect("fresh");
        assert_eq!(count(&runners), 0, "it was renamed");
        hold.begin().expect("begun");
        assert_eq!(unit.trace(), Ok(Trace::Alive));
        hold.note_process(7, 8, "boot").expect("process");
        assert!(!hold.is_canceled());
        unit.cancel().expect("cancel");
        assert!(hold.is_canceled());
        drop(hold);
        assert_eq!(unit.trace(), Ok(Trace::Gone));
        assert_eq!(unit.read_process("boot"), Some((7, 8)));
        assert_eq!(unit.read_process("another"), None);
        unit.remove().expect("remove");
        unit.remove().expect("remove again");
    }

    #[test]
    fn what_was_begun_is_not_begun_again() {
        let (_state, runners, unit) = state();
        let take = |ahead| Hold::take(ahead, unit.clone()).expect("take");
        drop(take(None).expect("fresh"));
        assert_eq!(unit.trace(), Ok(Trace::Fresh), "it was only looked at");
        let ahead = Hold::ahead(&runners).expect("ahead");
        let mut hold = take(Some(ahead)).expect("fresh still");
        assert_eq!(count(&runners), 0, "the folder that is there is taken");
        hold.begin().expect("begun");
        let outcome = Outcome::interrupted(1);
        hold.end(&outcome).expect("end");
        drop(hold);
        assert_eq!(unit.trace(), Ok(Trace::Ended(outcome)));
        assert!(take(None).is_none());
    }

    #[test]
    fn a_unit_that_was_canceled_ahead_keeps_that() {
        let (_state, runners, unit) = state();
        unit.cancel().expect("cancel");
        let ahead = Hold::ahead(&runners).expect("ahead");
        let hold = Hold::take(Some(ahead), unit).expect("take").expect("fresh");
        assert!(hold.is_canceled());
    }

    #[test]
    fn a_folder_that_was_taken_in_vain_serves_the_next_unit() {
        let (state, runners, unit) = state();
        let take = |ahead, unit| Hold::take(ahead, unit).expect("take").expect("fresh");
        let hold = take(Some(Hold::ahead(&runners).expect("ahead")), unit.clone());
        let ahead = hold.withdraw(&runners);
        assert!(ahead.is_some() && !unit.path().exists());
        let other = |id| UnitDir::new(state.path(), id);
        let hold = take(ahead, other("u2"));
        hold.dir().cancel().expect("cancel");
        assert!(hold.is_canceled());
        let hold = take(hold.withdraw(&runners), other("u3"));
        assert!(!hold.is_canceled(), "the mark is not for the next");
        assert!(other("u2").is_canceled(), "but for who takes it up again");
        other("u2").remove().expect("remove");
        hold.discard();
        assert_eq!(count(&runners) + count(&state.path().join("units")), 0);
    }

    #[test]
    fn the_payload_is_there_to_read() {
        let stdin = Hold::stdin(b"\xff payload").expect("stdin");
        assert_eq!(io::read_to_string(stdin).ok(), None, "it is not UTF-8");
        let mut stdin = Hold::stdin(b"payload").expect("stdin");
        assert_eq!(io::read_to_string(&mut stdin).expect("read"), "payload");
    }
}
