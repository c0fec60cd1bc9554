//! What becomes of the folder of a unit that has ended.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::unistd::geteuid;

use crate::os::lock::is_open_elsewhere;
use crate::store::unit_dir::hold::{Hold, MODE, own_folder};
use crate::store::unit_dir::{Stream, UnitDir};

/// The folder of a unit that has ended.
#[derive(Debug)]
pub struct RecycledDir {
    dir: UnitDir,
    record: Option<File>,
}

impl RecycledDir {
    /// Lets go of a unit that has ended, but for the files of its streams, stdout and stderr.
    #[must_use]
    pub fn with_streams(hold: Hold) -> (Self, [File; 2]) {
        let spent = Self {
            dir: hold.dir,
            record: hold.lock.release(),
        };
        (spent, [hold.stdout, hold.stderr])
    }

    /// Has the disk hold the outcome.
    pub fn sync(&self) {
        if let Some(record) = &self.record {
            // The outcome is there, and nobody could be told that it may not stay.
            let _ = record.sync_data();
        }
    }

    /// Takes the folder to `runners` for the next unit, if the run has left nothing in it and
    /// nobody has it open, as a process that outlives its command may. Nothing is to be known
    /// from it any more: the ledger holds the outcome.
    #[must_use]
    pub fn reuse(self, runners: &Path) -> Option<Hold> {
        // Silent at first sight?
        let look = |stream: Stream| fs::symlink_metadata(self.dir.path().join(stream.file()));
        let silent = |stream| look(stream).is_ok_and(|meta| meta.is_file() && meta.len() == 0);
        if !silent(Stream::Stdout) || !silent(Stream::Stderr) {
            return None;
        }
        // Nobody finds the way to what is in it from now on.
        let dir = UnitDir::at(own_folder(runners));
        fs::rename(self.dir.path(), dir.path()).ok()?;
        let taken = again(&dir);
        if taken.is_none() {
            let _ = fs::rename(dir.path(), self.dir.path());
        }
        taken
    }
}

/// The folder `dir` as if it had just been made; `None` if it is not like that.
fn again(dir: &UnitDir) -> Option<Hold> {
    let record = dir.record();
    let known = [Stream::Stdout, Stream::Stderr].map(|stream| dir.path().join(stream.file()));
    let entries = fs::read_dir(dir.path()).ok()?.flatten();
    let mut paths = entries.map(|entry| entry.path());
    if !record.exists() || !paths.all(|path| path == record || known.contains(&path)) {
        return None;
    }
    let hold = Hold::open(dir).ok()?;
    for stream in [&hold.stdout, &hold.stderr, hold.lock.file()] {
        let meta = stream.metadata().ok()?;
        let (mode, owner) = (meta.mode() & 0o7777, meta.uid());
        if !meta.is_file() || mode != MODE || meta.nlink() != 1 || owner != geteuid().as_raw() {
            return None;
        }
    }
    for stream in [&hold.stdout, &hold.stderr] {
        if is_open_elsewhere(stream) || stream.metadata().ok()?.len() > 0 {
            return None;
        }
    }
    hold.lock.file().set_len(0).ok()?;
    Some(hold)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::unit::{Outcome, Trace};
    use crate::store::unit_dir::hold::tests::{count, state};
    use std::io::Write;
    use std::os::unix::fs::FileExt;

    /// The folder of a unit that has ended as `run` says.
    fn spent(runners: &Path, unit: &UnitDir, run: impl FnOnce(&mut Hold)) -> RecycledDir {
        let mut hold = Hold::take(None, unit.clone()).expect("take").expect("new");
        hold.begin().expect("begun");
        run(&mut hold);
        hold.end(&Outcome::interrupted(1)).expect("end");
        assert_eq!(count(runners), 0);
        RecycledDir::with_streams(hold).0
    }

    #[test]
    fn the_folder_of_a_silent_run_serves_another_unit() {
        let (state, runners, unit) = state();
        let spent = spent(&runners, &unit, |_| {});
        let ahead = spent.reuse(&runners);
        assert!(ahead.is_some() && !unit.path().exists());
        assert_eq!(unit.trace(), Ok(Trace::Fresh));
        let next = UnitDir::new(state.path(), "u2");
        let mut hold = Hold::take(ahead, next.clone()).expect("take").expect("new");
        hold.begin().expect("begun");
        drop(hold);
        assert_eq!(next.trace(), Ok(Trace::Gone));
    }

    #[test]
    fn a_folder_with_anything_in_it_or_about_it_stays() {
        let (_state, runners, unit) = state();
        let file = |name: &str| unit.path().join(name);
        let left = |what: &str, run: &dyn Fn(&mut Hold)| {
            let spent = spent(&runners, &unit, |hold| run(hold));
            assert!(spent.reuse(&runners).is_none(), "{what}");
            assert_eq!(count(&runners), 0, "{what}");
            assert!(matches!(unit.trace(), Ok(Trace::Ended(_))), "{what}");
            unit.remove().expect("remove");
        };
        left("output", &|hold| {
            hold.stderr.write_all(b"x").expect("write")
        });
        left("a file", &|_| fs::write(file("core"), "").expect("write"));
        left("a link", &|hold| {
            let name = hold.dir.path().with_extension("linked");
            let _ = fs::remove_file(&name);
            fs::hard_link(file("stdout"), name).expect("link");
        });
        left("a mode", &|_| {
            use std::os::unix::fs::PermissionsExt;
            let open = fs::Permissions::from_mode(0o644);
            fs::set_permissions(file("stdout"), open).expect("mode");
        });
        left("a mark", &|hold| hold.dir.cancel().expect("cancel"));
        let spent = spent(&runners, &unit, |_| {});
        let follower = File::open(file("stdout")).expect("open");
        assert!(spent.reuse(&runners).is_none(), "somebody reads");
        drop(follower);
    }

    #[test]
    fn what_another_unit_has_left_in_a_record_is_not_believed() {
        let (_state, runners, unit) = state();
        let old = spent(&runners, &unit, |_| {});
        let path = unit.path().with_file_name("u12");
        fs::rename(unit.path(), &path).expect("rename");
        let next = UnitDir::at(path);
        assert_eq!(next.trace(), Ok(Trace::Fresh));
        // And half a line, as after a power failure.
        let record = old.record.expect("record");
        let size = record.metadata().expect("size").len();
        record.write_all_at(b"begun u12 and", size).expect("half");
        assert_eq!(next.trace(), Ok(Trace::Fresh));
        let mut hold = Hold::take(None, next.clone()).expect("take").expect("new");
        hold.begin().expect("begun");
        drop(hold);
        assert_eq!(next.trace(), Ok(Trace::Gone));
        assert_eq!(
            UnitDir::at(next.path().with_file_name("u1")).trace(),
            Ok(Trace::Fresh)
        );
    }
}
