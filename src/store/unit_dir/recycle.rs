//! The folder of a unit that has ended, and how it serves another unit.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::unistd::geteuid;

use crate::store::unit_dir::UnitDir;
use crate::store::unit_dir::locked::{LockedDir, own_folder};
use crate::store::unit_dir::output::Rest;
use crate::store::unit_dir::stream::MODE;

/// The folder of a unit that has ended.
#[derive(Debug)]
pub struct EndedDir {
    dir: UnitDir,
    record: Option<File>,
    /// Whether the command has written nothing.
    silent: bool,
}

impl EndedDir {
    /// Releases the folder `locked` of a unit that has ended; `rest` is the output of processes that
    /// outlive its command.
    #[must_use]
    pub fn new(locked: LockedDir, rest: Option<&Rest>) -> Self {
        let (dir, record, files) = locked.release();
        Self {
            dir,
            record,
            silent: files.is_empty() && rest.is_none(),
        }
    }

    /// Writes the outcome to disk.
    pub fn sync(&self) {
        if let Some(record) = &self.record {
            // The outcome is written, and there is no one to report to that it may not last.
            let _ = record.sync_data();
        }
    }

    /// Takes the folder to `runners` for the next unit, if the run has left nothing in it. The
    /// ledger has to hold the outcome: the folder loses it.
    #[must_use]
    pub fn recycle(self, runners: &Path) -> Option<LockedDir> {
        if !self.silent {
            return None;
        }
        // From now on no other process finds its way to it.
        let dir = UnitDir::at(own_folder(runners));
        fs::rename(self.dir.path(), dir.path()).ok()?;
        let taken = again(&dir);
        if taken.is_none() {
            let _ = fs::rename(dir.path(), self.dir.path());
        }
        taken
    }
}

/// Returns the folder `dir` as if it were new; `None` if it holds anything but the record.
fn again(dir: &UnitDir) -> Option<LockedDir> {
    let record = dir.record();
    let mut entries = fs::read_dir(dir.path()).ok()?.flatten();
    let only = entries.next()?;
    if only.path() != record || entries.next().is_some() {
        return None;
    }
    let locked = LockedDir::lock(dir).ok()?;
    let meta = locked.record().metadata().ok()?;
    let (mode, owner) = (meta.mode() & 0o7777, meta.uid());
    if !meta.is_file() || mode != MODE || meta.nlink() != 1 || owner != geteuid().as_raw() {
        return None;
    }
    locked.record().set_len(0).ok()?;
    Some(locked)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::unit::{Outcome, Trace};
    use crate::store::unit_dir::locked::tests::{count, state};
    use crate::store::unit_dir::stream::Stream;
    use std::io::Write;
    use std::os::unix::fs::FileExt;

    /// Returns the folder of a unit that has ended as `run` describes.
    fn ended(runners: &Path, unit: &UnitDir, run: impl FnOnce(&mut LockedDir)) -> EndedDir {
        let mut locked = take(None, unit);
        locked.begin().expect("begun");
        run(&mut locked);
        locked.end(&Outcome::interrupted(1)).expect("end");
        assert_eq!(count(runners), 0);
        EndedDir::new(locked, None)
    }

    fn take(ahead: Option<LockedDir>, unit: &UnitDir) -> LockedDir {
        let taken = LockedDir::take(ahead, unit.clone()).expect("take");
        taken.expect("new")
    }

    #[test]
    fn the_folder_of_a_silent_run_serves_another_unit() {
        let (state, runners, unit) = state();
        let ahead = ended(&runners, &unit, |_| {}).recycle(&runners);
        assert!(ahead.is_some() && !unit.path().exists());
        assert_eq!(unit.trace(), Ok(Trace::Fresh));
        let next = UnitDir::new(state.path(), "u2");
        take(ahead, &next).begin().expect("begun");
        assert_eq!(next.trace(), Ok(Trace::Gone));
    }

    #[test]
    fn a_folder_with_anything_in_it_or_about_it_stays() {
        let (_state, runners, unit) = state();
        let file = |name: &str| unit.path().join(name);
        let left = |what: &str, run: &dyn Fn(&mut LockedDir)| {
            let ended = ended(&runners, &unit, |locked| run(locked));
            assert!(ended.recycle(&runners).is_none(), "{what}");
            assert_eq!(count(&runners), 0, "{what}");
            assert!(matches!(unit.trace(), Ok(Trace::Ended(_))), "{what}");
            unit.remove().expect("remove");
        };
        left("output", &|locked| {
            let mut stderr = locked.stream(Stream::Stderr).expect("stderr");
            stderr.write_all(b"x").expect("write");
        });
        left("a file", &|_| fs::write(file("core"), "").expect("write"));
        left("a link", &|locked| {
            let name = locked.dir().path().with_extension("linked");
            fs::hard_link(file("outcome"), name).expect("link");
        });
        left("a mode", &|_| {
            use std::os::unix::fs::PermissionsExt;
            let open = fs::Permissions::from_mode(0o644);
            fs::set_permissions(file("outcome"), open).expect("mode");
        });
        left("a mark", &|locked| locked.dir().cancel().expect("cancel"));
    }

    #[test]
    fn what_another_unit_has_left_in_a_record_is_not_believed() {
        let (_state, runners, unit) = state();
        let old = ended(&runners, &unit, |_| {});
        let path = unit.path().with_file_name("u12");
        fs::rename(unit.path(), &path).expect("rename");
        let next = UnitDir::at(path);
        assert_eq!(next.trace(), Ok(Trace::Fresh));
        // And half a line, as after a power failure.
        let record = old.record.expect("record");
        let size = record.metadata().expect("size").len();
        record.write_all_at(b"begun u12 and", size).expect("half");
        assert_eq!(next.trace(), Ok(Trace::Fresh));
        take(None, &next).begin().expect("begun");
        assert_eq!(next.trace(), Ok(Trace::Gone));
        assert_eq!(
            UnitDir::at(next.path().with_file_name("u1")).trace(),
            Ok(Trace::Fresh)
        );
    }
}
