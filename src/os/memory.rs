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
    unmap_program();
}

/// Unmaps the code and the constants of the program. The kernel maps again what is used, which takes
/// some microseconds for each 64 KiB. Of a client that waits for events that is a small part: the
/// rest reads options, files and certificates, and tells the loader where to put what.
fn unmap_program() {
    let maps = fs::read_to_string("/proc/self/smaps").unwrap_or_default();
    for (start, length) in unchanged(&maps, unmap_program as fn() as usize) {
        // SAFETY: the kernel reads the unchanged pages of a private mapping of a file from the file
        // when they are used again (madvise(2), MADV_DONTNEED). It does the same at any time when
        // memory is short.
        unsafe {
            let start = std::ptr::with_exposed_provenance_mut(start);
            libc::madvise(start, length, libc::MADV_DONTNEED);
        }
    }
}

/// A mapping of `proc_pid_smaps(5)`.
struct Mapping<'a> {
    start: usize,
    end: usize,
    /// Whether it is private and cannot be written to.
    constant: bool,
    /// Its file, if it has one.
    file: &'a str,
    /// Bytes that are no longer those of the file, KiB: the loader has written them before it took
    /// the permission away. `None` if the kernel does not say.
    changed: Option<u64>,
}

/// Returns the mapping that a line of `proc_pid_smaps(5)` begins, or `None` if it tells more of one.
fn begins(line: &str) -> Option<Mapping<'_>> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let permissions = fields.next()?;
    Some(Mapping {
        start: usize::from_str_radix(start, 16).ok()?,
        end: usize::from_str_radix(end, 16).ok()?,
        constant: permissions.starts_with("r-") && permissions.ends_with('p'),
        file: fields
            .nth(3)
            .filter(|file| file.starts_with('/'))
            .unwrap_or_default(),
        changed: None,
    })
}

/// Returns the mappings in `smaps` that are of the same file as the code at `address`, and whose
/// pages are all those of the file: their first addresses and lengths, bytes.
fn unchanged(smaps: &str, address: usize) -> Vec<(usize, usize)> {
    let mut mappings: Vec<Mapping<'_>> = Vec::new();
    for line in smaps.lines() {
        if let Some(mapping) = begins(line) {
            mappings.push(mapping);
        } else if let (Some(mapping), Some((key, value))) =
            (mappings.last_mut(), line.split_once(':'))
            && matches!(key, "Anonymous" | "Swap")
        {
            let size = value.trim().trim_end_matches(" kB");
            // What cannot be read may have changed.
            let size: u64 = size.parse().unwrap_or(1);
            mapping.changed = Some(mapping.changed.unwrap_or(0) + size);
        }
    }
    let here = |mapping: &&Mapping<'_>| (mapping.start..mapping.end).contains(&address);
    let Some(file) = mappings.iter().find(here).map(|code| code.file) else {
        return Vec::new();
    };
    let same = |mapping: &&Mapping<'_>| {
        mapping.constant && mapping.changed == Some(0) && !file.is_empty() && mapping.file == file
    };
    let range = |mapping: &Mapping<'_>| (mapping.start, mapping.end - mapping.start);
    mappings.iter().filter(same).map(range).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_unchanged_pages_of_the_program_are_unmapped() {
        let smaps = "1000-3000 r--p 00000000 fe:00 7 /usr/bin/tael\n\
                     Rss:                  8 kB\nAnonymous:            0 kB\nSwap: 0 kB\n\
                     3000-6000 r-xp 00002000 fe:00 7 /usr/bin/tael (deleted)\n\
                     Anonymous:            0 kB\n\
                     6000-7000 r--p 00005000 fe:00 7 /usr/bin/tael\n\
                     Anonymous:            4 kB\n\
                     7000-8000 r--p 00006000 fe:00 7 /usr/bin/tael\n\
                     Anonymous:            0 kB\nSwap:                 4 kB\n\
                     8000-9000 rw-p 00007000 fe:00 7 /usr/bin/tael\n\
                     Anonymous:            0 kB\n\
                     9000-a000 r--s 00000000 fe:00 7 /usr/bin/tael\n\
                     Anonymous:            0 kB\n\
                     9000-a000 r--p 00000000 fe:00 7 /usr/bin/tael\n\
                     a000-b000 r--p 00000000 fe:00 8 /usr/lib/libc.so.6\n\
                     Anonymous:            0 kB\n\
                     b000-c000 r-xp 00000000 00:00 0 [vdso]\n\
                     c000-d000 r-xp 00000000 00:00 0 \n";
        for code in [0x3000, 0x5fff] {
            assert_eq!(unchanged(smaps, code), [(0x1000, 0x2000), (0x3000, 0x3000)]);
        }
        for other in [0xfff, 0xb000, 0xc000, 0xd000] {
            assert_eq!(unchanged(smaps, other), [], "{other:x}");
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
        // The mapping with the code, and how much of it is in memory, KiB.
        let mapping = || {
            let address = unmap_program as fn() as usize;
            let maps = fs::read_to_string("/proc/self/smaps").expect("smaps");
            let mut ranges = unchanged(&maps, address).into_iter();
            let here =
                |&(start, length): &(usize, usize)| (start..start + length).contains(&address);
            let (start, length) = ranges.find(here).expect("code");
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
