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
        // Other tests of this process would use their code again at once.
        let own = std::env::current_exe().expect("program");
        let mut alone = std::process::Command::new(own);
        alone.args(["--exact", "os::memory::tests::alone", "--ignored"]);
        let output = alone.output().expect("run");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains("1 passed"), "{text}");
    }

    #[test]
    #[ignore = "what_was_unmapped_is_used_again runs it, in a process of its own"]
    fn alone() {
        let mapping = || {
            let maps = fs::read_to_string("/proc/self/smaps").expect("smaps");
            let (start, length) = code(&maps, unmap_code as fn() as usize).expect("code");
            let line = format!("{start:x}-");
            let mut lines = maps.lines().skip_while(|text| !text.starts_with(&line));
            let rss = lines.find_map(|text| text.strip_prefix("Rss:"));
            let kib = rss.expect("Rss").trim().trim_end_matches(" kB");
            (start, length, kib.parse::<u64>().expect("number"))
        };
        let (start, length, _) = mapping();
        for page in (start..start + length).step_by(4096) {
            let byte = std::ptr::with_exposed_provenance::<u8>(page);
            // SAFETY: the address lies in a mapping of this process that can be read and stays.
            let _ = unsafe { byte.read_volatile() };
        }
        let before = mapping().2;
        give_back();
        let after = mapping().2;
        assert!(after < before / 2, "{after} of {before} KiB");
        assert!(!crate::os::host::hostname().is_empty());
    }
}
