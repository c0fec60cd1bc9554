//! Watches folders for what is written in them, without polling (`inotify(7)`).

use std::collections::HashSet;
use std::future::pending;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::os::hooks;

/// A watched folder, by its number.
pub type Watched = WatchDescriptor;

/// Mark of a system that had no room for a change.
const DROPPED: AddWatchFlags = AddWatchFlags::IN_Q_OVERFLOW;

/// The watched folders of a process. The system is asked for them when the first one is added.
#[derive(Debug, Default)]
pub struct Watch {
    descriptor: Option<AsyncFd<Descriptor>>,
    watched: HashSet<Watched>,
}

#[derive(Debug)]
struct Descriptor(Inotify);

impl AsRawFd for Descriptor {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl AsFd for Descriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Watch {
    /// Watches `folder`. What was written before is not reported.
    ///
    /// # Errors
    /// When there is no such folder, or the system has no more watches
    /// (`fs.inotify.max_user_watches`, `fs.inotify.max_user_instances`).
    pub fn add(&mut self, folder: &Path) -> io::Result<Watched> {
        if hooks::no_watches() && folder.exists() {
            return Err(Errno::EMFILE.into());
        }
        let watch = match &mut self.descriptor {
            Some(watch) => watch,
            none => {
                let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
                // SAFETY: `Descriptor` owns its descriptor, returns the same one whenever it is
                // asked, and keeps it open until it is dropped.
                let watch = unsafe {
                    AsyncFd::register_with_interest(Descriptor(inotify), Interest::READABLE)
                };
                none.insert(watch?)
            }
        };
        let changes = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MODIFY;
        let watched = watch.get_ref().0.add_watch(folder, changes)?;
        self.watched.insert(watched);
        Ok(watched)
    }

    /// Stops watching a folder.
    pub fn remove(&mut self, watched: Watched) {
        self.watched.remove(&watched);
        if let Some(watch) = &self.descriptor {
            // The system has removed it together with the folder.
            let _ = watch.get_ref().0.rm_watch(watched);
        }
    }

    /// Returns folders in which something was written; one may be among them several times. All are
    /// among them if the system has dropped a change. Cancel safe.
    pub async fn next(&mut self) -> Vec<Watched> {
        let Some(watch) = &self.descriptor else {
            return pending().await;
        };
        loop {
            let Ok(mut guard) = watch.readable().await else {
                return pending().await;
            };
            match guard.get_inner().0.read_events() {
                Ok(events) => {
                    let dropped = |event: &InotifyEvent| event.mask.contains(DROPPED);
                    return match events.iter().any(dropped) {
                        true => self.watched.iter().copied().collect(),
                        false => events.into_iter().map(|event| event.wd).collect(),
                    };
                }
                Err(Errno::EAGAIN) => guard.clear_ready(),
                Err(_) => return pending().await,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{File, OpenOptions};
    use std::io::Write;
    use std::time::Duration;
    use tokio::time::timeout;

    #[tokio::test]
    async fn what_is_written_in_a_watched_folder_is_reported() {
        let [watched, other] = [(); 2].map(|()| tempfile::tempdir().expect("tempdir"));
        let mut watch = Watch::default();
        let first = watch.add(watched.path()).expect("add");
        let second = watch.add(other.path()).expect("add");
        let path = watched.path().join("stdout");
        drop(File::create(&path).expect("create"));
        assert!(watch.next().await.iter().all(|wd| *wd == first));
        let mut file = OpenOptions::new().append(true).open(&path).expect("open");
        file.write_all(b"a").expect("write");
        assert!(watch.next().await.iter().all(|wd| *wd == first));
        watch.remove(first);
        file.write_all(b"b").expect("write");
        drop(File::create(other.path().join("sentinel")).expect("create"));
        let mut seen = Vec::new();
        while !seen.contains(&second) {
            let more = timeout(Duration::from_secs(10), watch.next()).await;
            seen.extend(more.expect("sentinel"));
        }
    }

    #[tokio::test]
    async fn nothing_is_reported_before_the_first_folder() {
        let mut watch = Watch::default();
        assert!(timeout(Duration::ZERO, watch.next()).await.is_err());
        assert!(watch.add(Path::new("/nowhere/at/all")).is_err());
    }

    /// The queue of the system has room for 16,384 changes by default. It drops later ones, and says so.
    #[tokio::test]
    async fn a_folder_whose_change_was_dropped_is_reported() {
        const MANY: usize = 20_000;
        let folders = [(); 3].map(|()| tempfile::tempdir().expect("tempdir"));
        let mut watch = Watch::default();
        let mut watched = folders.iter().map(|folder| {
            let path = folder.path().join("stdout");
            let file = File::create(&path).expect("create");
            (watch.add(folder.path()).expect("add"), file)
        });
        let mut next = || watched.next().expect("folder");
        let ((_, mut first), (_, mut second), (last, mut third)) = (next(), next(), next());
        // Equal changes in a row are one.
        for _ in 0..MANY {
            first.write_all(b"a").expect("write");
            second.write_all(b"a").expect("write");
        }
        third.write_all(b"a").expect("write");
        let mut seen = false;
        while !seen {
            let more = timeout(Duration::from_secs(10), watch.next()).await;
            seen = more.expect("it is reported").contains(&last);
        }
    }
}
