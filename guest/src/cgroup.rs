//! Owns the members' shares: one control group (version 2) each below `/run/cgroup/members`. Refuses to decide them.

use amphi_guest::config::Member;
use std::fs;
use std::io;
use std::path::PathBuf;

const ROOT: &str = "/run/cgroup";
/// Microseconds over which CPU time is counted: the kernel's own default.
const PERIOD_US: u64 = 100_000;

fn folder(member: &str) -> PathBuf {
    PathBuf::from(format!("{ROOT}/members/{member}"))
}

/// Lets the members' groups have controllers.
pub fn settle() -> io::Result<()> {
    fs::create_dir_all(format!("{ROOT}/members"))?;
    for group in [ROOT.to_owned(), format!("{ROOT}/members")] {
        for controller in ["cpu", "memory", "pids", "io"] {
            // A controller that this kernel lacks holds nobody back.
            if let Err(error) = fs::write(format!("{group}/cgroup.subtree_control"), format!("+{controller}"))
            {
                crate::say(&format!("control group {group} has no {controller}: {error}"));
            }
        }
    }
    Ok(())
}

/// Makes the member's group with its limits.
pub fn make(member: &Member) -> io::Result<()> {
    fs::create_dir_all(folder(&member.name))?;
    hold(&member.name, member.cpu_centi, member.memory_bytes)?;
    set(&member.name, "pids.max", if member.pids > 0 { member.pids.to_string() } else { "max".into() })
}

/// Holds what is in the group to a share of the machine. 0: no limit.
pub fn hold(member: &str, cpu_centi: u64, memory_bytes: u64) -> io::Result<()> {
    if cpu_centi > 0 {
        // A hundredth of a CPU is a hundredth of the period.
        set(member, "cpu.max", format!("{} {PERIOD_US}", cpu_centi * PERIOD_US / 100))?;
        set(member, "cpu.weight", cpu_centi.clamp(1, 10_000).to_string())?;
    }
    if memory_bytes > 0 {
        let used = used(member);
        if used > memory_bytes {
            // The kernel would end something in it.
            return Err(io::Error::other(format!(
                "it uses {used} bytes of memory, more than {memory_bytes}"
            )));
        }
        set(member, "memory.max", memory_bytes.to_string())?;
    }
    Ok(())
}

/// Memory that cannot be had back without harm.
fn used(member: &str) -> u64 {
    let text = fs::read_to_string(folder(member).join("memory.stat")).unwrap_or_default();
    let kept = ["anon ", "shmem ", "kernel "];
    let number =
        |line: &str| kept.iter().find_map(|name| line.strip_prefix(name)?.trim().parse::<u64>().ok());
    text.lines().filter_map(number).sum()
}

fn set(member: &str, file: &str, value: String) -> io::Result<()> {
    fs::write(folder(member).join(file), &value)
        .map_err(|error| io::Error::other(format!("{file} {value}: {error}")))
}

/// The calling process joins it.
pub fn join(member: &str) -> io::Result<()> {
    fs::write(folder(member).join("cgroup.procs"), "0")
}

/// How often the kernel has ended something in it for want of memory.
pub fn out_of_memory(member: &str) -> u64 {
    let text = fs::read_to_string(folder(member).join("memory.events")).unwrap_or_default();
    let kills = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
    kills.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
}

/// Ends everything in it.
pub fn kill(member: &str) {
    // A group that is gone has nobody in it.
    let _gone = fs::write(folder(member).join("cgroup.kill"), "1");
}
