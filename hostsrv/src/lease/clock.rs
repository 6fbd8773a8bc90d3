//! The host's clock for leases: it only goes forward, and does not stop while the machine sleeps.

use super::rule::Millis;
use nix::time::{ClockId, clock_gettime};

/// Milliseconds since the machine started (CLOCK_BOOTTIME).
pub fn now() -> Millis {
    // The kernel has this clock since 2.6.39; reading it cannot fail.
    let time = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("the kernel has CLOCK_BOOTTIME");
    time.tv_sec() as Millis * 1_000 + time.tv_nsec() as Millis / 1_000_000
}
