//! Amounts as shares of the set.

use super::text::{Tree, str_of};
use super::words::bytes;
use super::{Import, Size};
use amphi_api::set::{MemberOptions, RestartPolicy};

/// CPU and memory of a service in percent of the set, rounded up.
pub fn shares(place: &str, service: &Tree, size: Size, import: &mut Import) -> Result<MemberOptions, String> {
    let limits = &service["deploy"]["resources"]["limits"];
    let cpus = str_of(&limits["cpus"]).or_else(|| str_of(&service["cpus"]));
    let memory = str_of(&limits["memory"]).or_else(|| str_of(&service["mem_limit"]));
    let percent = |part: f64, whole: f64, what: &str, said: &str| -> Result<u32, String> {
        let share = (part * 100.0 / whole).ceil();
        match share {
            share if share <= 100.0 => Ok((share as u32).max(1)),
            _ => {
                Err(format!("{place} wants {said} {what}, more than the whole set has: make the set larger"))
            }
        }
    };
    let mut options = MemberOptions::default();
    if let Some(said) = cpus {
        let part: f64 = said.parse().map_err(|_| format!("{place}: '{said}' is no number of CPUs"))?;
        options.cpu = Some(percent(part, size.vcpus.into(), "CPUs", &said)?);
    }
    if let Some(said) = memory {
        let part = bytes(&said).ok_or_else(|| format!("{place}: '{said}' is no amount of memory"))?;
        options.mem = Some(percent(part as f64, (size.memory_mib << 20) as f64, "of memory", &said)?);
    }
    if !limits["pids"].is_badvalue() {
        import.leave(format!("{place}.deploy.resources.limits.pids"), "has no word in a set");
    }
    let resources = &service["deploy"]["resources"];
    if !resources["reservations"].is_badvalue() {
        import.leave(
            format!("{place}.deploy.resources.reservations"),
            "a set's resources are the instance's own; what stands behind them is its class (--qos)",
        );
    }
    Ok(options)
}

/// Of `deploy.restart_policy`.
pub fn restart(deploy: &Tree) -> Option<RestartPolicy> {
    Some(match str_of(&deploy["restart_policy"]["condition"])?.as_str() {
        "none" => RestartPolicy::Never,
        "on-failure" => RestartPolicy::OnFailure,
        _ => RestartPolicy::Always,
    })
}
