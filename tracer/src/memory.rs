//! What the C library is told about memory that is free. Without it (musl) nothing is.

#[cfg(target_env = "gnu")]
use nix::libc;

/// Much was needed once and is free now: the C library would keep it for later.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it touches nothing but what is free.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Blocks of some megabytes come and go from here on, as when a recording is read: without this each is mapped anew, and
/// the kernel clears its pages anew.
pub fn keep() {
    #[cfg(target_env = "gnu")]
    {
        /// The largest that the library takes.
        const LARGEST_BLOCK: i32 = 32 << 20;
        // SAFETY: these are bounds for what is allocated from here on.
        unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, LARGEST_BLOCK);
            libc::mallopt(libc::M_TRIM_THRESHOLD, 2 * LARGEST_BLOCK);
        }
    }
}
