//! The weights, each a plain function between 0 and 1. What a scheduler makes of them is said by its factors.

use super::filters::{GIB, cpu_room, memory_room};
use super::{HostSight, Policy, Request};

fn share(free: u64, of: u64) -> f64 {
    if of == 0 { 0.0 } else { free as f64 / of as f64 }
}

pub(super) fn free_cpu(host: &HostSight, policy: &Policy) -> f64 {
    host.spec.map_or(0.0, |spec| {
        let (capacity, used) = cpu_room(spec, &host.claims, policy);
        share(capacity.saturating_sub(used), capacity)
    })
}

pub(super) fn free_memory(host: &HostSight, policy: &Policy) -> f64 {
    host.spec.map_or(0.0, |spec| {
        let (capacity, used) = memory_room(spec, &host.claims, policy);
        share(capacity.saturating_sub(used), capacity)
    })
}

pub(super) fn free_volume(host: &HostSight, _: &Policy) -> f64 {
    host.spec.map_or(0.0, |spec| {
        let capacity = spec.volume_group_bytes / GIB;
        share(capacity.saturating_sub(host.claims.volume_gib), capacity)
    })
}

/// Starts that a host has before it, beyond which one more makes no difference.
const STARTS: u32 = 20;

/// How much the host is about to start anyway: what comes now waits behind it.
pub(super) fn starting(host: &HostSight, _: &Policy) -> f64 {
    f64::from(host.starting.min(STARTS)) / f64::from(STARTS)
}

/// How many of the images are in the host's cache already, of all.
pub(super) fn images(host: &HostSight, request: &Request) -> f64 {
    let Some(here) = host.images else { return 0.0 };
    let there = request.images.iter().filter(|id| here.contains_key(id)).count();
    share(there as u64, request.images.len() as u64)
}
