//! The memory of this process.

/// Gives memory that the start has freed back to the system. The allocator would keep half a
/// megabyte of it for good (`malloc_trim(3)`).
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it touches free memory of the allocator only, under the allocator's own locks.
    unsafe {
        nix::libc::malloc_trim(0);
    }
}
