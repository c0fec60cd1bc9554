//! Disks and file systems.

use std::fs;
use std::path::Path;

use nix::sys::statvfs::statvfs;

use crate::os::facts::{below, escaped, tenths};

/// Maximum number of disks, and of file systems, that become facts.
const MAX_DISKS: usize = 32;

/// Size of a sector in `sysfs`, bytes. It is the same for every disk.
const SECTOR: u64 = 512;

/// Kinds of block devices that are no disks.
const NO_DISKS: &[&str] = &["loop", "ram", "zram", "dm-", "md", "sr", "fd", "nbd"];

/// A disk.
pub(super) struct Disk {
    pub name: String,
    /// 10^9 bytes.
    pub size_gb: f64,
}

/// Returns the disks below `folder`, which is `/sys/block`.
pub(super) fn devices(folder: &Path) -> Vec<Disk> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.retain(|name| !NO_DISKS.iter().any(|other| name.starts_with(other)));
    names.sort();
    let disks = names.into_iter().take(MAX_DISKS).filter_map(|name| {
        let size = fs::read_to_string(folder.join(&name).join("size")).ok()?;
        let sectors: u64 = size.trim().parse().ok()?;
        let size_gb = tenths(sectors.saturating_mul(SECTOR) as f64 / 1e9);
        (sectors > 0).then_some(Disk { name, size_gb })
    });
    disks.collect()
}

/// Space of a file system.
pub(super) struct Space {
    /// Its mount point as a name: `root`, `home`, `srv_data`.
    pub name: String,
    /// 10^9 bytes.
    pub size_gb: f64,
    /// Share that users without privileges may still fill.
    pub free_percent: u64,
}

/// A line of `/proc/self/mountinfo` (`proc_pid_mountinfo(5)`).
struct Mount<'a> {
    point: &'a str,
    kind: &'a str,
    source: &'a str,
    /// Options of the file system, not of this mount.
    options: &'a str,
}

fn mounts(text: &str) -> impl Iterator<Item = Mount<'_>> {
    text.lines().filter_map(|line| {
        let (mount, system) = line.split_once(" - ")?;
        let mut system = system.split(' ');
        Some(Mount {
            point: mount.split(' ').nth(4)?,
            kind: system.next()?,
            source: system.next()?,
            options: system.next().unwrap_or_default(),
        })
    })
}

/// Returns the space of the local file systems in `text`, that of `/proc/self/mountinfo`. Others are
/// not asked: a file server that is away would never answer.
pub(super) fn spaces(text: &str, root: &Path) -> Vec<Space> {
    let mut seen: Vec<&str> = Vec::new();
    let mut spaces: Vec<Space> = Vec::new();
    for mount in mounts(text) {
        let is_local = mount.source.starts_with("/dev/") && !mount.kind.starts_with("fuse");
        // A device that is mounted again elsewhere, as for containers, is the same space.
        let is_new = mount.point == "/" || (is_local && !seen.contains(&mount.source));
        let is_small = matches!(mount.kind, "squashfs" | "iso9660" | "devtmpfs");
        // A space in a path is an octal escape there.
        if !is_new || is_small || mount.point.contains('\\') || spaces.len() >= MAX_DISKS {
            continue;
        }
        seen.push(mount.source);
        let Ok(stat) = statvfs(&below(root, mount.point)) else {
            continue;
        };
        // Types differ by platform.
        #[allow(clippy::useless_conversion)]
        let (blocks, free, available, size) = (
            u64::from(stat.blocks()),
            u64::from(stat.blocks_free()),
            u64::from(stat.blocks_available()),
            u64::from(stat.fragment_size()),
        );
        // As df(1): what is reserved for root counts for neither side.
        let usable = blocks.saturating_sub(free).saturating_add(available);
        if usable == 0 {
            continue;
        }
        let name = match mount.point.trim_matches('/') {
            "" => "root".to_owned(),
            point => escaped(&point.replace('/', "_")),
        };
        // Over a mount point, the last one is seen.
        spaces.retain(|space| space.name != name);
        spaces.push(Space {
            name,
            size_gb: tenths(blocks.saturating_mul(size) as f64 / 1e9),
            free_percent: available.saturating_mul(100) / usable,
        });
    }
    spaces
}

/// Returns whether the file system of `/` is read-only; `None` if it is not listed. A mount may be
/// read-only although its file system is not: services see `/` so (`ProtectSystem=`).
pub(super) fn is_root_read_only(text: &str) -> Option<bool> {
    let root = mounts(text).filter(|mount| mount.point == "/").last()?;
    Some(root.options.split(',').any(|option| option == "ro"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_local_file_systems_are_asked() {
        let dir = tempfile::tempdir().expect("tempdir");
        fs::create_dir_all(dir.path().join("srv/data.1")).expect("folder");
        let text = "\
22 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw
23 22 0:5 / /proc rw - proc proc rw
24 22 8:2 / /srv/data.1 rw - xfs /dev/sdb1 rw
25 22 8:2 /x /var/lib/x rw - xfs /dev/sdb1 rw
26 22 0:9 / /net rw - nfs4 server:/ rw
27 22 0:9 / /gone rw - ext4 /dev/sdc1 rw
";
        let found = spaces(text, dir.path());
        let names: Vec<&str> = found.iter().map(|space| space.name.as_str()).collect();
        assert_eq!(names, ["root", "srv_data_1"]);
        assert!(
            found
                .iter()
                .all(|space| space.free_percent <= 100 && space.size_gb >= 0.0)
        );
        assert_eq!(is_root_read_only(text), Some(false));
        assert_eq!(
            is_root_read_only("1 0 8:1 / / rw - ext4 /dev/sda1 ro,x\n"),
            Some(true)
        );
        assert_eq!(is_root_read_only(""), None);
    }
}
