//! The rank of what keeps leases among all that runs on a machine, at either end: it needs next to no time, but that at once.
//! A host whose guests leave it none would fence itself, and a controller that starts fifty instances would have it do so. So
//! it asks for real-time scheduling and, where little is held, for its memory to stay, as corosync does (corosync.conf(5),
//! `sched_rr`), and takes the best niceness where the first is refused. Refuses to fail: what it cannot have it returns, to be
//! told, and the lease is kept as well as it goes.

#![allow(unsafe_code)]

use nix::errno::Errno;
use nix::libc;

/// The lowest real-time priority: before everything that has none, after whatever else has one.
const PRIORITY: libc::c_int = 1;
const BEST_NICENESS: libc::c_int = -20;

/// What the kernel granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rank {
    /// `SCHED_RR`.
    RealTime,
    /// As the others, with the best niceness.
    Nice,
    /// As it was started.
    Ordinary,
}

impl std::fmt::Display for Rank {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::RealTime => "SCHED_RR",
            Self::Nice => "niceness -20 instead",
            Self::Ordinary => "and no better niceness either",
        })
    }
}

/// Real time for the calling thread, and so for all that it starts from now on. Else what to tell: who is late on a busy
/// machine is for the caller to say.
pub fn real_time() -> Result<(), String> {
    match scheduling() {
        (Rank::RealTime, _) => Ok(()),
        (rank, why) => Err(format!(
            "no real time, {rank}: {} (it needs CAP_SYS_NICE, and a control group with cpu.rt_runtime_us where the kernel has \
             RT_GROUP_SCHED)",
            why.unwrap_or(Errno::UnknownErrno)
        )),
    }
}

/// The process's memory stays: pages once they are there; what was never touched (the ends of stacks) costs nothing.
pub fn stay_in_memory() -> Result<(), String> {
    let flags = libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT;
    // SAFETY: plain flags.
    let done = unsafe { libc::mlockall(flags) };
    Errno::result(done).map(drop).map_err(|why| format!("{why} (it needs CAP_IPC_LOCK)"))
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
