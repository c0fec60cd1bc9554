//! Holes in files: the middle of a long stream, given back to the file system.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};

use crate::os::hooks;
use crate::store::unit_dir::stream::MODE;

/// Makes the range a hole in `file`, which keeps its size.
///
/// # Errors
/// As `fallocate(2)`.
pub(super) fn punch(file: &File, start: u64, end: u64) -> io::Result<()> {
    if hooks::no_holes() {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let range = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    loop {
        match fallocate(file, flags, range(start), range(end - start)) {
            Err(Errno::EINTR) => {}
            other => return Ok(other?),
        }
    }
}

/// Whether files in `folder` can have holes. Creates and removes a file there.
///
/// # Errors
/// As the file system.
pub fn can_have_holes(folder: &Path) -> io::Result<bool> {
    let path = folder.join(format!("probe-{}", std::process::id()));
    let mut options = File::options();
    options.write(true).create(true).truncate(true).mode(MODE);
    let probed = options.open(&path).and_then(|mut file| {
        file.write_all(&[1; 8192])?;
        Ok(punch(&file, 0, 4096).is_ok())
    });
    let _ = fs::remove_file(path);
    probed
}
