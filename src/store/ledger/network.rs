//! Detects network file systems.

use std::path::Path;

use nix::sys::statfs::statfs;

use crate::os::hooks;

/// Returns whether `path` is on a network file system (magic numbers: `statfs(2)`).
pub(super) fn on_network(path: &Path) -> bool {
    const NFS: i64 = 0x6969;
    const SMB: i64 = 0x517b;
    const SMB2: i64 = 0xfe53_4d42;
    const CIFS: i64 = 0xff53_4d42;
    const AFS: i64 = 0x5346_414f;
    const CODA: i64 = 0x7375_7245;
    const CEPH: i64 = 0x00c3_6400;
    const LUSTRE: i64 = 0x0bd0_0bd0;
    const GPFS: i64 = 0x4750_4653;
    const V9FS: i64 = 0x0102_1997;
    if hooks::network_fs() {
        return true;
    }
    let folder = path.parent().unwrap_or(path);
    statfs(folder).is_ok_and(|fs| {
        #[allow(clippy::unnecessary_cast)] // its width differs between targets
        let kind = fs.filesystem_type().0 as i64;
        [NFS, SMB, SMB2, CIFS, AFS, CODA, CEPH, LUSTRE, GPFS, V9FS].contains(&kind)
    })
}
