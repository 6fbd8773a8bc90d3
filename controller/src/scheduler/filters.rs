//! The filters and weights, each a plain function. A filter answers with its reason in words, figures included.

use super::{HostSight, Policy, Request, affinity, match_specs};
use amphi_api::host::{EngineName, HostSpec, HostState};
use amphi_api::instance::BodyKind;

/// vCPUs promised per CPU: nova's long-standing default of 16.
pub const CPU_OVERCOMMIT: u32 = 16;
/// Memory is promised once: what is promised twice ends in the OOM killer's hands.
pub const MEMORY_OVERCOMMIT_PERCENT: u32 = 100;
/// Bytes of a GiB.
const GIB: u64 = 1 << 30;

pub type Filter = fn(&HostSight, &Request, &Policy) -> Result<(), String>;
/// A greater weight is better; each is between 0 and 1, but for a server group's, which outweighs the others together.
pub type Weight = fn(&HostSight, &Request, &Policy) -> f64;

/// In the order in which their reasons are told.
pub const FILTERS: &[(&str, Filter)] = &[
    ("state", state),
    ("choice", choice),
    ("zone", zone),
    ("group", affinity::group),
    ("aggregates", match_specs::aggregates),
    ("cpu", cpu),
    ("memory", memory),
    ("volume", volume),
    ("network", network),
];

pub const WEIGHTS: &[(&str, Weight)] = &[
    ("free_cpu", free_cpu),
    ("free_memory", free_memory),
    ("free_volume", free_volume),
    ("group", affinity::together),
];

fn state(host: &HostSight, request: &Request, _: &Policy) -> Result<(), String> {
    match host.state {
        // A volume is no instance: a host that is being emptied still grows those it has.
        HostState::Up if host.spec.is_some() => match host.disabled {
            Some("") if !request.bodies.is_empty() => Err("is disabled".into()),
            Some(reason) if !request.bodies.is_empty() => Err(format!("is disabled: {reason}")),
            _ => Ok(()),
        },
        HostState::Up | HostState::Joined => Err("has not connected yet".into()),
        HostState::Down => Err("is down".into()),
    }
}

fn choice(host: &HostSight, request: &Request, _: &Policy) -> Result<(), String> {
    if request.pinned.is_some_and(|id| id != host.id) {
        return Err("is not the host asked for".into());
    }
    if request.volume_host.is_some_and(|id| id != host.id) {
        return Err("does not hold the volume".into());
    }
    if request.excluded.contains(&host.id) {
        return Err("is excluded".into());
    }
    if request.among.as_ref().is_some_and(|hosts| !hosts.contains(&host.id)) {
        return Err("runs none of the instances that it shall be beside".into());
    }
    Ok(())
}

fn zone(host: &HostSight, request: &Request, _: &Policy) -> Result<(), String> {
    match &request.zone {
        Some(zone) if zone != host.zone => Err(format!("is in zone '{}', not '{zone}'", host.zone)),
        _ => Ok(()),
    }
}

/// vCPUs that may be promised in all.
fn cpu_capacity(spec: &HostSpec, policy: &Policy) -> u32 {
    spec.cpus.saturating_sub(spec.reserved_cpus).max(1).saturating_mul(policy.cpu_overcommit)
}

fn cpu(host: &HostSight, request: &Request, policy: &Policy) -> Result<(), String> {
    let Some(spec) = host.spec else { return Ok(()) };
    if request.vcpus > spec.cpus {
        return Err(format!("has {} CPUs, {} are asked", spec.cpus, request.vcpus));
    }
    let (capacity, used) = (cpu_capacity(spec, policy), host.claims.vcpus);
    if u64::from(used) + u64::from(request.vcpus) > u64::from(capacity) {
        return Err(format!("{used} of {capacity} vCPUs are taken, {} are asked", request.vcpus));
    }
    Ok(())
}

/// Memory that may be promised in all, in MiB.
fn memory_capacity(spec: &HostSpec, policy: &Policy) -> u64 {
    spec.memory_mib.saturating_sub(spec.reserved_memory_mib) * u64::from(policy.memory_overcommit_percent)
        / 100
}

fn memory(host: &HostSight, request: &Request, policy: &Policy) -> Result<(), String> {
    let Some(spec) = host.spec else { return Ok(()) };
    let (capacity, used) = (memory_capacity(spec, policy), host.claims.memory_mib);
    if used.saturating_add(request.memory_mib) > capacity {
        return Err(format!("{used} of {capacity} MiB are taken, {} are asked", request.memory_mib));
    }
    Ok(())
}

fn volume(host: &HostSight, request: &Request, _: &Policy) -> Result<(), String> {
    let Some(spec) = host.spec else { return Ok(()) };
    if !request.volume && request.volume_gib == 0 {
        return Ok(());
    }
    engine(spec, EngineName::Lvm)?;
    if request.volume_gib == 0 {
        return Ok(());
    }
    let (capacity, used) = (spec.volume_group_bytes / GIB, host.claims.volume_gib);
    if used.saturating_add(request.volume_gib) > capacity {
        return Err(format!("{used} of {capacity} GiB are taken, {} are asked", request.volume_gib));
    }
    // What others than Amphi put into the group is in no claim.
    if spec.volume_group_free_bytes / GIB < request.volume_gib {
        let free = spec.volume_group_free_bytes / GIB;
        return Err(format!("{free} GiB of the volume group are free, {} are asked", request.volume_gib));
    }
    Ok(())
}

fn network(host: &HostSight, request: &Request, _: &Policy) -> Result<(), String> {
    let Some(spec) = host.spec else { return Ok(()) };
    if !request.network {
        return Ok(());
    }
    engine(spec, EngineName::Ovs)?;
    engine(spec, EngineName::Ovn)
}

/// Whether the host's engines run this kind of body.
pub(super) fn body_engine(host: &HostSight, kind: BodyKind) -> Result<(), String> {
    let Some(spec) = host.spec else { return Err("has not connected yet".into()) };
    match kind {
        BodyKind::Set => engine(spec, EngineName::Docker),
        BodyKind::Vm => engine(spec, EngineName::Libvirt),
    }
}

/// An engine the host does not speak of is missing, but for those it need not: qemu comes with libvirt.
fn engine(spec: &HostSpec, name: EngineName) -> Result<(), String> {
    let word = format!("{name:?}").to_lowercase();
    match spec.engines.iter().find(|e| e.name == name) {
        None => Err(format!("has no {word}")),
        Some(engine) => match &engine.trouble {
            None => Ok(()),
            Some(trouble) => Err(format!("{word}: {trouble}")),
        },
    }
}

fn share(free: u64, of: u64) -> f64 {
    if of == 0 { 0.0 } else { free as f64 / of as f64 }
}

fn free_cpu(host: &HostSight, _: &Request, policy: &Policy) -> f64 {
    host.spec.map_or(0.0, |spec| {
        let capacity = cpu_capacity(spec, policy);
        share(capacity.saturating_sub(host.claims.vcpus).into(), capacity.into())
    })
}

fn free_memory(host: &HostSight, _: &Request, policy: &Policy) -> f64 {
    host.spec.map_or(0.0, |spec| {
        let capacity = memory_capacity(spec, policy);
        share(capacity.saturating_sub(host.claims.memory_mib), capacity)
    })
}

fn free_volume(host: &HostSight, _: &Request, _: &Policy) -> f64 {
    host.spec.map_or(0.0, |spec| {
        let capacity = spec.volume_group_bytes / GIB;
        share(capacity.saturating_sub(host.claims.volume_gib), capacity)
    })
}
