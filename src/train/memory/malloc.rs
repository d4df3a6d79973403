//! Keeps freed memory in the process, or gives it back.
#![expect(unsafe_code, reason = "mallopt and malloc_trim are C functions")]

/// Tells glibc's allocator to keep what is freed. A training step frees and takes the same large
/// blocks again and again; given back to the system each time, every one of their pages is faulted
/// in and zeroed anew. What was freed before goes back first: it lies in pieces. Does nothing with
/// other allocators.
pub fn keep_memory() {
    give_back_memory();
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: mallopt sets two integers of the allocator under its own lock, any value is allowed.
    unsafe {
        libc::mallopt(libc::M_MMAP_MAX, 0); // the threshold for mmap cannot be above 32 MiB
        libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
    }
}

/// Gives what is free back to the system, for what lies in pieces too small for what comes next.
/// Does nothing with other allocators than glibc's.
pub fn give_back_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: malloc_trim gives back pages that are free, under the allocator's own lock.
    unsafe {
        libc::malloc_trim(0);
    }
}
