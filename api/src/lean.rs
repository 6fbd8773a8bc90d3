//! Keeps the allocator's own memory small. glibc gives each thread an arena of its own and lets its threshold for large
//! blocks grow with them, so that what was freed once stays with the process for good.
#![allow(unsafe_code)]

use nix::libc;

/// Arenas: threads share them. Most work is done by as many threads as there are cores, and those are few.
const ARENAS: i32 = 2;
/// From this size on a block is mapped for itself and goes back at once, in bytes. Bytes that pass through are read in
/// smaller pieces: mapping each of them anew took a seventh of the time of a download.
const LARGE: i32 = 256 << 10;
/// More than this much that is free at a heap's end goes back, in bytes. Less would go and come with each piece.
const TRIM: i32 = 2 << 20;

/// To be called first, while there is one thread.
pub fn keep_small() {
    // Sound: mallopt takes two numbers and changes how glibc allocates from now on; nothing else runs yet. It refuses
    // only what it does not know, and then all stays as it was.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, ARENAS);
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
        libc::mallopt(libc::M_TRIM_THRESHOLD, TRIM);
    }
}
