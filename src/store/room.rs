//! Room in the state folder of a pipeline: what it may hold, and what it holds.
//!
//! The size is a sum. It is measured now and then, and what comes and goes meanwhile is added and
//! subtracted, so that a submission costs no look at the disk.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

/// Size of a block of `st_blocks`, bytes (`stat(2)`).
const BLOCK: u64 = 512;

/// Room in the state folder, for all parts of a client.
#[derive(Debug, Default)]
pub struct Room {
    /// Maximum size, bytes; 0 is no limit.
    limit: AtomicU64,
    /// Size, bytes: what was measured, and what has come and gone since.
    used: AtomicI64,
    /// Bytes of payloads that are announced and not written yet.
    announced: AtomicU64,
    /// Largest number of bytes for which there was no room since the last look.
    wanted: AtomicU64,
    /// Number of submissions that were refused.
    refused: AtomicU64,
}

/// Size and limit of the state folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fill {
    /// Size, bytes, with payloads that are announced.
    pub used: u64,
    /// Maximum size, bytes.
    pub limit: u64,
    /// Number of submissions that were refused since the client started.
    pub refused: u64,
}

impl Room {
    /// Returns room of `limit` bytes; 0 is no limit.
    #[must_use]
    pub fn new(limit: u64) -> Arc<Self> {
        let room = Self::default();
        room.set_limit(limit);
        Arc::new(room)
    }

    /// Changes the limit.
    pub fn set_limit(&self, limit: u64) {
        self.limit.store(limit, Ordering::Relaxed);
    }

    /// Returns how full it is; `None` without a limit.
    #[must_use]
    pub fn fill(&self) -> Option<Fill> {
        let limit = self.limit.load(Ordering::Relaxed);
        let written = u64::try_from(self.used.load(Ordering::Relaxed)).unwrap_or(0);
        (limit > 0).then(|| Fill {
            used: written.saturating_add(self.announced.load(Ordering::Relaxed)),
            limit,
            refused: self.refused.load(Ordering::Relaxed),
        })
    }

    /// Returns the maximum size of a payload that may have `bytes`. One that takes more than three
    /// quarters of the limit would hardly find room: the ledger and other units take some.
    #[must_use]
    pub fn cap(&self, bytes: u64) -> u64 {
        self.fill()
            .map_or(bytes, |fill| bytes.min(fill.limit / 4 * 3))
    }

    /// Adds `bytes` that were written.
    pub fn grew(&self, bytes: u64) {
        self.used
            .fetch_add(i64::try_from(bytes).unwrap_or(i64::MAX), Ordering::Relaxed);
    }

    /// Subtracts `bytes` that were removed.
    pub fn shrank(&self, bytes: u64) {
        self.used
            .fetch_sub(i64::try_from(bytes).unwrap_or(i64::MAX), Ordering::Relaxed);
    }

    /// Returns the sum at the begin of a measurement.
    #[must_use]
    pub fn sum(&self) -> i64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Replaces the sum by what was `measured`, bytes; it was `before` when that began. What has come
    /// and gone meanwhile counts, although the measurement may have seen it.
    pub fn measured(&self, before: i64, measured: u64) {
        let measured = i64::try_from(measured).unwrap_or(i64::MAX);
        self.used
            .fetch_add(measured.saturating_sub(before), Ordering::Relaxed);
    }

    /// Returns the largest number of bytes for which there was no room since the last call; 0 if there
    /// was room for all.
    #[must_use]
    pub fn take_wanted(&self) -> u64 {
        self.wanted.swap(0, Ordering::Relaxed)
    }

    /// Returns whether there was no room for something since the last [`Room::take_wanted`].
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        self.wanted.load(Ordering::Relaxed) > 0
    }

    /// Returns why `bytes` more do not fit, if they don't. No bytes do not fit into a full folder.
    fn refusal(&self, bytes: u64) -> Option<String> {
        let Fill { used, limit, .. } = self.fill()?;
        let bytes = bytes.max(1);
        if used.saturating_add(bytes) <= limit {
            return None;
        }
        self.wanted.fetch_max(bytes, Ordering::Relaxed);
        self.refused.fetch_add(1, Ordering::Relaxed);
        Some(format!(
            "the state of the client has {used} of {limit} bytes (--max-state)"
        ))
    }

    /// Reserves room for a payload, of which `announced` bytes are to come.
    ///
    /// # Errors
    /// Why it does not fit, for its submitter.
    pub fn share(self: &Arc<Self>, announced: u64) -> Result<Share, String> {
        if let Some(refusal) = self.refusal(announced) {
            return Err(refusal);
        }
        self.announced.fetch_add(announced, Ordering::Relaxed);
        let mut share = self.reserve();
        share.announced = announced;
        Ok(share)
    }

    /// Returns the share of a payload whose size is not known.
    #[must_use]
    pub fn reserve(self: &Arc<Self>) -> Share {
        Share {
            room: Arc::clone(self),
            announced: 0,
            written: 0,
        }
    }
}

/// The room of one payload. It is given back when this is dropped, unless the payload was kept.
#[derive(Debug)]
pub struct Share {
    room: Arc<Room>,
    announced: u64,
    written: u64,
}

impl Share {
    /// Adds `bytes` that are about to be written.
    ///
    /// # Errors
    /// Why those that were not announced do not fit, for the submitter.
    pub fn grow(&mut self, bytes: u64) -> Result<(), String> {
        let known = bytes.min(self.announced);
        let more = bytes - known;
        if more > 0
            && let Some(refusal) = self.room.refusal(more)
        {
            return Err(refusal);
        }
        self.announced -= known;
        self.room.announced.fetch_sub(known, Ordering::Relaxed);
        self.written += bytes;
        self.room.grew(bytes);
        Ok(())
    }

    /// Lets what was written stay.
    pub fn keep(mut self) {
        self.written = 0;
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.room
            .announced
            .fetch_sub(self.announced, Ordering::Relaxed);
        self.room.shrank(self.written);
    }
}

/// Returns the size on disk of a file, or of a folder with everything in it, bytes. Counts nothing that
/// is gone or cannot be read, and follows no link.
#[must_use]
pub fn size(path: &Path) -> u64 {
    let of = |meta: io::Result<fs::Metadata>| meta.map_or(0, |meta| meta.blocks() * BLOCK);
    let meta = fs::symlink_metadata(path);
    let mut folders = Vec::new();
    if meta.as_ref().is_ok_and(fs::Metadata::is_dir) {
        folders.push(path.to_owned());
    }
    let mut sum = of(meta);
    // A list instead of a recursion: a command may nest folders as deeply as it likes.
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                folders.push(entry.path());
            }
            sum += of(entry.metadata());
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    fn used(room: &Room) -> u64 {
        room.fill().expect("limit").used
    }

    #[test]
    fn payloads_take_room_until_they_are_dropped() {
        let room = Room::new(100);
        let mut announced = room.share(60).expect("room");
        assert_eq!(used(&room), 60);
        let refusal = room.share(41).expect_err("no room");
        assert!(refusal.contains("60 of 100 bytes"), "{refusal}");
        assert!(room.is_wanted() && room.take_wanted() == 41 && !room.is_wanted());
        announced.grow(50).expect("announced");
        assert_eq!(used(&room), 60, "it is the same bytes");
        let mut unknown = room.share(0).expect("room");
        unknown.grow(40).expect("room");
        unknown.grow(1).expect_err("no room");
        room.share(0).expect_err("full");
        drop(unknown);
        assert_eq!(used(&room), 60);
        announced.grow(10).expect("announced");
        announced.keep();
        assert_eq!(used(&room), 60);
        assert_eq!(room.fill().expect("limit").refused, 3);
        room.set_limit(0);
        assert!(room.share(u64::MAX / 4).is_ok(), "no limit");
    }

    #[test]
    fn a_measurement_replaces_the_sum_but_not_what_came_meanwhile() {
        let room = Room::new(1000);
        room.grew(500);
        let before = room.sum();
        room.grew(30);
        room.shrank(10);
        room.measured(before, 100);
        assert_eq!(used(&room), 120);
        room.shrank(500);
        assert_eq!(used(&room), 0, "never less than nothing");
    }

    #[test]
    fn a_folder_is_as_large_as_what_is_in_it() {
        let dir = tempfile::tempdir().expect("tempdir");
        let nested = dir.path().join("a/b");
        fs::create_dir_all(&nested).expect("folders");
        let before = size(dir.path());
        fs::write(nested.join("file"), vec![1; 100_000]).expect("file");
        std::os::unix::fs::symlink("/", nested.join("link")).expect("link");
        let grown = size(dir.path()) - before;
        assert!((100_000..200_000).contains(&grown), "{grown}");
        assert!(size(&nested.join("file")) >= 100_000);
        assert_eq!(size(&nested.join("none")), 0);
    }
}
