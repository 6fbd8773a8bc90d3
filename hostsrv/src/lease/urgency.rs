//! The lease process's rank among all that runs on the host: it needs next to no time, but that at once. A host whose guests
//! leave it none would fence itself, and a page that has to come back from a swap is as late. So it asks for real-time
//! scheduling and for its memory to stay, as corosync does (corosync.conf(5), `sched_rr`), and takes the best niceness where
//! the first is refused. Refuses to fail: what it cannot have is told, and the lease is kept as well as it goes.

#![allow(unsafe_code)]

use nix::errno::Errno;
use nix::libc;

/// The lowest real-time priority: before everything that has none, after whatever else has one.
const PRIORITY: libc::c_int = 1;
const BEST_NICENESS: libc::c_int = -20;

/// What the kernel granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rank {
    /// `SCHED_RR`.
    RealTime,
    /// As the others, with the best niceness.
    Nice,
    /// As it was started.
    Ordinary,
}

/// For the calling thread, and so for all that it starts from now on: call it before there are others.
pub fn claim() {
    match scheduling() {
        (Rank::RealTime, _) => {}
        (rank, Some(why)) => tracing::warn!(
            ?rank,
            "the lease process does not run in real time, and may be late on a busy host: {why} (it needs CAP_SYS_NICE, and \
             a control group with cpu.rt_runtime_us where the kernel has RT_GROUP_SCHED)"
        ),
        (_, None) => {}
    }
    if let Err(why) = stay_in_memory() {
        tracing::warn!("the lease process may be swapped out: {why} (it needs CAP_IPC_LOCK)");
    }
}

fn scheduling() -> (Rank, Option<Errno>) {
    let parameters = libc::sched_param { sched_priority: PRIORITY };
    // SAFETY: 0 is the calling thread; the kernel reads the parameters, which outlive the call.
    let done = unsafe { libc::sched_setscheduler(0, libc::SCHED_RR, &raw const parameters) };
    let Err(why) = Errno::result(done) else { return (Rank::RealTime, None) };
    // SAFETY: plain numbers.
    let done = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, BEST_NICENESS) };
    (if Errno::result(done).is_ok() { Rank::Nice } else { Rank::Ordinary }, Some(why))
}

/// Pages stay once they are there; what was never touched (the ends of stacks) costs nothing.
fn stay_in_memory() -> Result<(), Errno> {
    // SAFETY: plain flags.
    let done = unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT) };
    Errno::result(done).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Policy and niceness of the calling thread, as the kernel tells them (proc(5), `/proc/pid/stat`, fields 41 and 19).
    fn seen() -> (u32, i32) {
        let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        (fields[41 - 3].parse().unwrap(), fields[19 - 3].parse().unwrap())
    }

    #[test]
    fn the_rank_is_the_one_that_the_kernel_tells_and_goes_to_new_threads() {
        std::thread::spawn(|| {
            let before = seen();
            let (rank, why) = scheduling();
            let heir = std::thread::spawn(seen).join().unwrap();
            let expected = match rank {
                Rank::RealTime => (libc::SCHED_RR as u32, before.1),
                Rank::Nice => (before.0, BEST_NICENESS),
                Rank::Ordinary => before,
            };
            assert_eq!((seen(), heir), (expected, expected), "{rank:?} {why:?}");
            assert_eq!(why.is_none(), rank == Rank::RealTime);
        })
        .join()
        .unwrap();
    }
}
