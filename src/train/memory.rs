//! Keeps freed memory in the process.
#![expect(unsafe_code, reason = "mallopt is a C function")]

/// Tells glibc's allocator to keep what is freed. A training step frees and takes the same large blocks
/// again and again; given back to the system each time, every one of their pages is faulted in and
/// zeroed anew. Does nothing with other allocators.
pub fn keep_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: mallopt sets two integers of the allocator under its own lock; any value is allowed.
    unsafe {
        libc::mallopt(libc::M_MMAP_MAX, 0); // the threshold for mmap cannot be above 32 MiB
        libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
    }
}
