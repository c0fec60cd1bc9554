//! The memory of this process.

use std::fs;

use nix::libc;

/// Gives back what only the start has used: memory that the allocator keeps, half a megabyte, and
/// most pages of the program, which stay in the page cache.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it touches free memory of the allocator only, under the allocator's own locks
    // (malloc_trim(3)).
    unsafe {
        libc::malloc_trim(0);
    }
    unmap_code();
}

/// Unmaps the code of the program. The kernel maps again what is used, which takes some
/// microseconds for each 64 KiB. Of a client that waits for events that is a small part: the rest
/// reads options, files and certificates.
fn unmap_code() {
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    if let Some((start, length)) = code(&maps, unmap_code as fn() as usize) {
        // SAFETY: the kernel reads the unchanged pages of a private mapping of a file from the file
        // when they are used again (madvise(2), MADV_DONTNEED). It does the same at any time when
        // memory is short.
        unsafe {
            let start = std::ptr::with_exposed_provenance_mut(start);
            libc::madvise(start, length, libc::MADV_DONTNEED);
        }
    }
}

/// Returns the mapping in `maps` (`proc_pid_maps(5)`) that contains `address`, if it is a file's,
/// private, and cannot be written to: its first address and its length, bytes.
fn code(maps: &str, address: usize) -> Option<(usize, usize)> {
    maps.lines().find_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let (start, end) = fields.next()?.split_once('-')?;
        let start = usize::from_str_radix(start, 16).ok()?;
        let end = usize::from_str_radix(end, 16).ok()?;
        let private = fields.next()? == "r-xp";
        let file = fields.nth(3)?.starts_with('/');
        let here = (start..end).contains(&address);
        (private && file && here).then(|| (start, end - start))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_from_a_file_is_unmapped() {
        let maps = "1000-3000 r--p 00000000 fe:00 7 /usr/bin/tael\n\
                    3000-6000 r-xp 00002000 fe:00 7 /usr/bin/tael (deleted)\n\
                    6000-7000 rw-p 00005000 fe:00 7 /usr/bin/tael\n\
                    7000-8000 r-xp 00000000 00:00 0 [vdso]\n\
                    8000-9000 r-xp 00000000 00:00 0 \n";
        assert_eq!(code(maps, 0x3000), Some((0x3000, 0x3000)));
        assert_eq!(code(maps, 0x5fff), Some((0x3000, 0x3000)));
        for other in [0xfff, 0x2fff, 0x6000, 0x7000, 0x8000, 0x9000] {
            assert_eq!(code(maps, other), None, "{other:x}");
        }
    }

    #[test]
    fn what_was_unmapped_is_used_again() {
        let resident = || {
            let maps = fs::read_to_string("/proc/self/smaps").expect("smaps");
            let ours = code(&maps, unmap_code as fn() as usize).expect("code").0;
            let start = format!("{ours:x}-");
            let mut lines = maps.lines().skip_while(|line| !line.starts_with(&start));
            let rss = lines
                .find_map(|line| line.strip_prefix("Rss:"))
                .expect("Rss");
            let kib = rss.trim().trim_end_matches(" kB");
            kib.parse::<u64>().expect("number")
        };
        let before = resident();
        // Other tests of this process use their code again at once.
        let is_given_back = || {
            give_back();
            resident() < before / 2
        };
        let given_back = (0..100).any(|_| is_given_back());
        assert!(given_back, "{} of {before} KiB", resident());
        assert!(!crate::os::host::hostname().is_empty());
    }
}
