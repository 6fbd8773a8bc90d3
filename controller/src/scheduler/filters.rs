//! The filters, each a plain function. A filter answers with its reason in words, figures included.
//!
//! CPU is counted in parts of a CPU, so that classes of service with different ratios share one host: what is set
//! aside for all of them, and for what has no class at the cloud's own ratio, stays within the CPUs that the host does
//! not keep for itself. Memory likewise.

use super::{HostSight, Policy, Request, affinity, match_specs};
use amphi_api::HostId;
use amphi_api::host::{Claims, EngineName, HostSpec, HostState};
use amphi_api::instance::BodyKind;
use amphi_api::placement::Qos;

/// vCPUs promised per CPU: nova's long-standing default of 16.
pub const CPU_OVERCOMMIT: u32 = 16;
/// Memory is promised once: what is promised twice ends in the OOM killer's hands.
pub const MEMORY_OVERCOMMIT_PERCENT: u32 = 100;
/// Bytes of a GiB.
pub(super) const GIB: u64 = 1 << 30;
/// Set to `true` on an aggregate, it lets instances of the class `best_effort` come to its hosts.
pub const BEST_EFFORT_KEY: &str = "amphi:best_effort";
/// Thousandths of a CPU, and of the cloud's ratio: what CPU is counted in is `1 / (1000 * cpu_overcommit)`.
const MILLI: u64 = 1000;
/// The least memory of an instance, in MiB.
pub(super) const LEAST_MEMORY: u64 = 16;

pub type Filter = fn(&HostSight, &Request, &Policy) -> Result<(), String>;

/// In the order in which their reasons are told.
pub const FILTERS: &[(&str, Filter)] = &[
    ("state", state),
    ("choice", choice),
    ("zone", zone),
    ("group", affinity::group),
    ("aggregates", match_specs::aggregates),
    ("qos", qos),
    ("cpu", cpu),
    ("memory", memory),
    ("volume", volume),
    ("network", network),
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
    let sees = |place: &HostId| {
        host.spec.is_some_and(|spec| spec.shared_groups.iter().any(|group| group.id.place() == *place))
    };
    if !request.reach.iter().all(sees) {
        return Err("does not see the shared volume group".into());
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

fn qos(host: &HostSight, request: &Request, _: &Policy) -> Result<(), String> {
    let allowed =
        || host.best_effort || host.metadata.iter().any(|(k, v)| k == BEST_EFFORT_KEY && v == "true");
    if request.qos == Qos::BestEffort && !allowed() {
        return Err("takes no best_effort instances".into());
    }
    Ok(())
}

/// CPUs that are for instances.
fn cpus(spec: &HostSpec) -> u32 {
    spec.cpus.saturating_sub(spec.reserved_cpus).max(1)
}

/// What there is and what is taken, in the same small unit.
pub(super) fn cpu_room(spec: &HostSpec, claims: &Claims, policy: &Policy) -> (u64, u64) {
    let ratio = u64::from(policy.cpu_overcommit);
    let plain = u64::from(claims.vcpus.saturating_sub(claims.classed.vcpus));
    (u64::from(cpus(spec)) * MILLI * ratio, claims.classed.cpu_milli * ratio + plain * MILLI)
}

fn cpu(host: &HostSight, request: &Request, policy: &Policy) -> Result<(), String> {
    let Some(spec) = host.spec else { return Ok(()) };
    if request.vcpus > spec.cpus {
        return Err(format!("has {} CPUs, {} are asked", spec.cpus, request.vcpus));
    }
    let (capacity, used) = cpu_room(spec, &host.claims, policy);
    let ask = Claims::of_instance(request.vcpus, request.memory_mib, request.qos);
    let (_, asked) = cpu_room(spec, &ask, policy);
    if used + asked <= capacity {
        return Ok(());
    }
    if host.claims.classed.vcpus == 0 && request.qos == Qos::Standard {
        let (capacity, used) = (cpus(spec).saturating_mul(policy.cpu_overcommit), host.claims.vcpus);
        return Err(format!("{used} of {capacity} vCPUs are taken, {} are asked", request.vcpus));
    }
    let unit = (MILLI * u64::from(policy.cpu_overcommit)) as f64;
    let (used, asked) = (used as f64 / unit, asked as f64 / unit);
    Err(format!(
        "{used:.2} of {} CPUs are set aside, {} vCPUs of class {} ask {asked:.2}",
        cpus(spec),
        request.vcpus,
        request.qos
    ))
}

/// What there is and what is taken, in hundredths of a MiB times the cloud's ratio.
pub(super) fn memory_room(spec: &HostSpec, claims: &Claims, policy: &Policy) -> (u64, u64) {
    let percent = u64::from(policy.memory_overcommit_percent);
    let plain = claims.memory_mib.saturating_sub(claims.classed.memory_mib);
    let capacity = spec.memory_mib.saturating_sub(spec.reserved_memory_mib);
    (capacity * percent, claims.classed.memory_share_mib * percent + plain * 100)
}

fn memory(host: &HostSight, request: &Request, policy: &Policy) -> Result<(), String> {
    let Some(spec) = host.spec else { return Ok(()) };
    let there = spec.memory_mib.saturating_sub(spec.reserved_memory_mib);
    if request.memory_mib > there && request.qos != Qos::Standard {
        return Err(format!("has {there} MiB for instances, {} are asked", request.memory_mib));
    }
    let (capacity, used) = memory_room(spec, &host.claims, policy);
    let ask = Claims::of_instance(request.vcpus, request.memory_mib, request.qos);
    let (_, asked) = memory_room(spec, &ask, policy);
    if used.saturating_add(asked) <= capacity {
        return Ok(());
    }
    if host.claims.classed.memory_mib == 0 && request.qos == Qos::Standard {
        let capacity = capacity / 100;
        let used = host.claims.memory_mib;
        return Err(format!("{used} of {capacity} MiB are taken, {} are asked", request.memory_mib));
    }
    let percent = u64::from(policy.memory_overcommit_percent);
    Err(format!(
        "{} of {there} MiB are set aside, {} MiB of class {} ask {}",
        used.div_ceil(percent),
        request.memory_mib,
        request.qos,
        asked.div_ceil(percent)
    ))
}

/// Whether the host takes not even the smallest instance that something is set aside for.
pub(super) fn exhausted(host: &HostSight, policy: &Policy) -> bool {
    let Some(spec) = host.spec else { return true };
    if host.state != HostState::Up || host.disabled.is_some() {
        return true;
    }
    let (cpu, cpu_used) = cpu_room(spec, &host.claims, policy);
    let (memory, memory_used) = memory_room(spec, &host.claims, policy);
    // The least of CPU: a vCPU at the cloud's ratio or at ten to one, whichever is less.
    let least = MILLI.min(100 * u64::from(policy.cpu_overcommit));
    cpu_used + least > cpu || memory_used + LEAST_MEMORY * 100 * 2 / 3 > memory
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
    engine(spec, EngineName::Ovn)?;
    match request.physical.iter().find(|name| !spec.physical_networks.contains(name)) {
        Some(name) => Err(format!("has no bridge to the physical network '{name}'")),
        None => Ok(()),
    }
}

/// Whether the host's engines run this kind of body.
pub(super) fn body_engine(host: &HostSight, kind: BodyKind) -> Result<(), String> {
    let Some(spec) = host.spec else { return Err("has not connected yet".into()) };
    if spec.engines.iter().any(|e| e.name == EngineName::Ledger) {
        engine(spec, EngineName::Ledger)?;
    }
    match kind {
        BodyKind::Set => engine(spec, EngineName::Docker),
        BodyKind::Vm => engine(spec, EngineName::Libvirt),
    }
}

/// Whether the host has what a set starts from that runs as a VM, where one does.
pub(super) fn kit(host: &HostSight, kind: BodyKind, request: &Request) -> Result<(), String> {
    let lacks = kind == BodyKind::Vm && request.guest_kit && host.spec.is_some_and(|spec| !spec.guest_kit);
    if lacks { Err("has no guest kit, with which sets run as VMs".into()) } else { Ok(()) }
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
