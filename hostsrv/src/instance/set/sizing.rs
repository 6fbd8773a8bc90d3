//! Members take on other limits while they run: `docker update` for CPU, memory and processes, so that the container
//! itself carries them through its own and dockerd's restarts; control groups' files for rates of devices, which Docker
//! cannot change. All of a set's members or none: what would have less than it uses is refused before anything is
//! changed, and what was changed is taken back when a later member's engine call fails. Refuses to restart anything.

use super::ENGINE;
use super::cgroup::Groups;
use super::observed::{Part, PartState};
use super::roots;
use super::shared::Shared;
use super::throttle::{self, Devices, GROUPS};
use crate::instance::limits::{self, Held, Limits};
use crate::instance::{BodyPlan, DriverError, folders};
use amphi_api::resize::MemberUsage;
use amphi_api::set::SetSpec;
use bollard::models::{ContainerUpdateBody, HostConfig};
use std::collections::BTreeMap;
use std::path::Path;

/// The scheduler's default period, in microseconds (kernel documentation, sched-bwc).
pub const CPU_PERIOD: i64 = 100_000;
/// The kernel's weight of one CPU's worth of work.
const SHARES_PER_CPU: u64 = 1024;
/// Docker refuses a shares value below 2 (runc, cgroup v1).
const SHARES_MIN: u64 = 2;

/// Memory and CPU figures are far below 2^63.
fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// A container's own settings for these limits. Quota and period say the same as NanoCpus, which Docker refuses beyond
/// the host's own CPUs; memory with swap is as much as memory: no swap at all.
pub fn host_config(limits: &Limits) -> HostConfig {
    HostConfig {
        cpu_period: Some(CPU_PERIOD),
        cpu_quota: Some(signed(limits.cpu_centi) * (CPU_PERIOD / 100)),
        cpu_shares: Some(signed((limits.cpu_centi * SHARES_PER_CPU / 100).max(SHARES_MIN))),
        memory: Some(signed(limits.memory_bytes)),
        memory_swap: Some(signed(limits.memory_bytes)),
        memory_swappiness: Some(0),
        pids_limit: (limits.pids > 0).then(|| signed(limits.pids)),
        ..HostConfig::default()
    }
}

/// The same for a container that is there. Memory and memory with swap go together: Docker and the kernel each refuse a
/// memory above what it may have with swap, and runc writes the two in the order that holds on the way.
fn update_of(limits: &Limits) -> ContainerUpdateBody {
    let config = host_config(limits);
    ContainerUpdateBody {
        cpu_period: config.cpu_period,
        cpu_quota: config.cpu_quota,
        cpu_shares: config.cpu_shares,
        memory: config.memory,
        memory_swap: config.memory_swap,
        // -1: none.
        pids_limit: Some(config.pids_limit.unwrap_or(-1)),
        ..ContainerUpdateBody::default()
    }
}

/// What Docker holds a container to.
pub fn held(config: Option<&HostConfig>) -> Held {
    let Some(config) = config else { return Held::default() };
    let known = |number: Option<i64>| number.and_then(|n| u64::try_from(n).ok()).unwrap_or(0);
    let period = known(config.cpu_period).max(1);
    Held {
        cpu_centi: Some(known(config.cpu_quota) * 100 / period),
        memory_bytes: Some(known(config.memory)),
        pids: Some(known(config.pids_limit)),
        ..Held::default()
    }
}

/// Finds the groups of a process.
type GroupsOf = fn(i64) -> Option<Groups>;

/// The groups of a container's first process.
pub fn groups_of(pid: i64) -> Option<Groups> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    Groups::parse(&text, Path::new(GROUPS))
}

/// What one member's container is to be changed to.
#[derive(Debug)]
struct Change<'a> {
    part: &'a Part,
    name: &'a str,
    wanted: Limits,
    held: Held,
}

/// See [`crate::instance::sizing::BodySizing::resize`].
pub async fn resize(
    shared: &Shared,
    plan: &BodyPlan,
    set: &SetSpec,
    parts: &[Part],
) -> Result<(), DriverError> {
    if plan.rescue.is_some() {
        return Ok(());
    }
    let wanted = limits::of_set(set, plan.vcpus, plan.memory_mib);
    let ordered = |part: &Part, name: &str| {
        part.tag.epoch == plan.epoch && part.tag.generation == plan.generation_of(name)
    };
    let mut changes = changes(parts, &wanted, ordered, |part| shared.held(part));
    let mut used = Vec::with_capacity(changes.len());
    for change in &changes {
        used.push(match change.wanted.shrinks(&change.held) {
            true => measure(change.part, groups_of, counts_root(&change.held)).await?,
            false => None,
        });
    }
    if let Some(why) = beyond(&changes, &used) {
        return Err(DriverError::LimitsRefused { message: format!("{why}; the present limits stay") });
    }
    // What gets less first, so that the members together never have more than the set.
    changes
        .sort_by_key(|change| std::cmp::Reverse(change.held.memory_bytes > Some(change.wanted.memory_bytes)));
    for (at, change) in changes.iter().enumerate() {
        if let Err(error) = apply(shared, change).await {
            // This one may be half changed. Backwards: who got more gives it back before who got less has it again.
            for done in changes[..=at].iter().rev() {
                let before = before(done);
                shared.roots.set_limit(&done.part.id, done.held.root_mib.unwrap_or(done.wanted.root_mib));
                if let Err(error) = update(shared, done.part, &before).await {
                    tracing::warn!(%error, member = done.name, "its former limits cannot be brought back");
                }
            }
            return Err(error);
        }
    }
    Ok(())
}

/// The containers that are held to other limits than they should be. `ordered`: one is made for the description that its
/// member shall have; those beside it, of which there are some during an update, keep what they were made with.
fn changes<'a>(
    parts: &'a [Part],
    wanted: &BTreeMap<String, Limits>,
    ordered: impl Fn(&Part, &str) -> bool,
    held: impl Fn(&Part) -> Held,
) -> Vec<Change<'a>> {
    let mut changes = Vec::new();
    for part in parts.iter().filter(|part| part.state != PartState::Created && !part.is_rescuer()) {
        let Some((_, name)) = part.tag.role.member().filter(|(_, name)| ordered(part, name)) else {
            continue;
        };
        let Some(wanted) = wanted.get(name).copied() else { continue };
        let held = held(part);
        if !wanted.is_held(&held) {
            changes.push(Change { part, name, wanted, held });
        }
    }
    changes
}

/// What of the changes takes away more than is left. `used`: by each change's own container, where it was measured.
fn beyond(changes: &[Change<'_>], used: &[Option<MemberUsage>]) -> Option<String> {
    changes.iter().zip(used).find_map(|(change, used)| {
        let Limits { memory_bytes, pids, root_mib, .. } = change.wanted;
        used.as_ref()?.beyond(memory_bytes, pids, root_mib).map(|beyond| beyond.why)
    })
}

/// Whether what is written counts when an order is carried out. A first limit looks the same as one that this process has
/// not told a new container, or any after its own start: whoever is over that one is ended, and must not go free by it.
/// Before a first limit is ordered, the controller asks for what is written.
fn counts_root(held: &Held) -> bool {
    held.root_mib.is_some_and(|limit| limit > 0)
}

fn before(change: &Change<'_>) -> Limits {
    Limits {
        cpu_centi: change.held.cpu_centi.unwrap_or(change.wanted.cpu_centi),
        memory_bytes: change.held.memory_bytes.unwrap_or(change.wanted.memory_bytes),
        pids: change.held.pids.unwrap_or(0),
        ..change.wanted
    }
}

async fn apply(shared: &Shared, change: &Change<'_>) -> Result<(), DriverError> {
    let Change { part, wanted, held, .. } = change;
    let docker = Held { io_root: None, io_volume: None, root_mib: None, ..*held };
    if !wanted.is_held(&docker) {
        update(shared, part, wanted).await?;
    }
    shared.roots.set_limit(&part.id, wanted.root_mib);
    if let Some(pid) = part.detail.pid.filter(|_| part.is_alive()) {
        let (devices, io) = (part.detail.devices.clone(), wanted.io);
        let hold = move || match groups_of(pid) {
            Some(groups) => throttle::hold(&groups, &devices, &io),
            None => Ok(()),
        };
        folders::blocking("limit the rates of a member's devices", hold).await?;
    }
    shared.sightings.doubt(&part.id);
    Ok(())
}

async fn update(shared: &Shared, part: &Part, limits: &Limits) -> Result<(), DriverError> {
    let id = part.id.as_str();
    let doing = format!("change the limits of container {id}");
    let body = update_of(limits);
    let updated =
        shared
            .engine
            .call(&doing, shared.engine.limits.call, |docker| async move {
                docker.update_container(id, body).await
            })
            .await;
    shared.sightings.doubt(id);
    match updated {
        // The kernel could not take the memory back: more is used than it looked.
        Err(DriverError::EngineRefused { message, .. }) if message.contains("resource busy") => {
            let mib = limits.memory_bytes >> 20;
            let message = format!("{ENGINE} cannot hold it to {mib} MiB: {message}; the present limits stay");
            Err(DriverError::LimitsRefused { message })
        }
        other => other,
    }
}

/// What these parts use now, those that run. What they have written counts too, limit or not: somebody asks because there
/// may be one.
pub async fn usage(parts: &[Part]) -> Result<Vec<MemberUsage>, DriverError> {
    usage_by(parts, groups_of).await
}

async fn usage_by(parts: &[Part], groups: GroupsOf) -> Result<Vec<MemberUsage>, DriverError> {
    let mut all = Vec::new();
    for part in parts {
        all.extend(measure(part, groups, true).await?);
    }
    Ok(all)
}

/// What one part uses now. None: it does not run, or is no member.
async fn measure(part: &Part, groups: GroupsOf, root: bool) -> Result<Option<MemberUsage>, DriverError> {
    let (Some((_, name)), Some(pid)) = (part.tag.role.member(), part.detail.pid) else { return Ok(None) };
    if !part.is_alive() {
        return Ok(None);
    }
    let used = move || Ok(groups(pid).map(|groups| groups.used()));
    let Some((memory_bytes, pids)) = folders::blocking("measure a member", used).await? else {
        return Ok(None);
    };
    let root_bytes = match part.detail.upper.clone().filter(|_| root) {
        Some(upper) => Some(roots::written(upper).await?),
        None => None,
    };
    Ok(Some(MemberUsage { name: name.to_owned(), memory_bytes, pids, root_bytes }))
}

impl Shared {
    /// What a part is held to now, as far as it can be held at all.
    pub fn held(&self, part: &Part) -> Held {
        Held { root_mib: Some(self.roots.limit(&part.id)), running: part.is_alive(), ..part.detail.held }
    }
}

/// The devices that a container writes to, and the rates that they are held to. `volume`: where the set's volume is in it.
pub fn io_of(root: Option<&str>, pid: Option<i64>, volume: Option<&str>, held: &mut Held) -> Devices {
    let Some(pid) = pid else { return Devices::default() };
    let under = |at: &str| {
        throttle::device_under(&Path::new(&format!("/proc/{pid}/root")).join(at.trim_start_matches('/')))
    };
    let devices = Devices { root: root.map(str::to_owned), volume: volume.and_then(under) };
    if let Some(groups) = groups_of(pid) {
        (held.io_root, held.io_volume) = throttle::held(&groups, &devices);
        held.io_buffered = matches!(groups, Groups::Unified(_));
    }
    devices
}

#[cfg(test)]
mod tests {
    use super::super::labels::{Role, Tag};
    use super::super::observed::Detail;
    use super::*;
    use amphi_api::InstanceId;

    const LIMITS: Limits = Limits {
        cpu_centi: 320,
        memory_bytes: 256 << 20,
        pids: 64,
        root_mib: 0,
        io: amphi_api::set::MemberIo {
            root: amphi_api::set::IoLimit {
                read_bps: None,
                write_bps: None,
                read_iops: None,
                write_iops: None,
            },
            volume: amphi_api::set::IoLimit {
                read_bps: None,
                write_bps: None,
                read_iops: None,
                write_iops: None,
            },
        },
    };

    #[test]
    fn docker_is_told_what_it_tells() {
        let config = host_config(&LIMITS);
        assert_eq!(
            (config.cpu_quota, config.cpu_shares, config.pids_limit),
            (Some(320_000), Some(3276), Some(64))
        );
        assert_eq!((config.memory, config.memory_swap), (Some(256 << 20), Some(256 << 20)));
        assert!(LIMITS.is_held(&held(Some(&config))), "{:?}", held(Some(&config)));
        let free = Limits { pids: 0, ..LIMITS };
        assert!(free.is_held(&held(Some(&host_config(&free)))));
        let unlimited = HostConfig { pids_limit: Some(-1), ..host_config(&free) };
        assert!(free.is_held(&held(Some(&unlimited))));
        assert!(!LIMITS.is_held(&held(Some(&unlimited))));
        assert!(LIMITS.is_held(&held(None)), "what is not told is not compared");
        let tiny = host_config(&Limits { cpu_centi: 0, ..LIMITS });
        assert_eq!(tiny.cpu_shares, Some(2));
    }

    /// A container of member `web`.
    fn part(id: &str, generation: u64, state: PartState, memory_mib: u64) -> Part {
        let tag = Tag {
            instance: InstanceId(uuid::Uuid::nil()),
            epoch: 1,
            role: Role::Member { index: 0, name: "web".to_owned() },
            spec: String::new(),
            generation,
            life: Default::default(),
        };
        let held = Held { memory_bytes: Some(memory_mib << 20), ..Held::default() };
        Part { id: id.to_owned(), tag, state, detail: Detail { held, ..Detail::default() } }
    }

    fn ids(changes: &[Change<'_>]) -> Vec<String> {
        changes.iter().map(|change| change.part.id.clone()).collect()
    }

    #[test]
    fn only_the_container_that_is_ordered_takes_on_limits() {
        use PartState::{Created, Ended, Running};
        let wanted = BTreeMap::from([("web".to_owned(), LIMITS)]);
        let old = |state| part("old", 0, state, 128);
        let table: Vec<(&str, Vec<Part>, u64, &[&str])> = vec![
            ("alone", vec![old(Running)], 0, &["old"]),
            ("as it should be", vec![part("old", 0, Running, 256)], 0, &[]),
            ("its next is not made", vec![old(Running)], 2, &[]),
            ("its next is made", vec![old(Running), part("new", 2, Created, 128)], 2, &[]),
            ("both run", vec![old(Running), part("new", 2, Running, 128)], 2, &["new"]),
            ("it is kept, stopped", vec![part("new", 2, Running, 128), old(Ended)], 2, &["new"]),
            ("it comes back", vec![part("new", 2, Running, 128), old(Ended)], 0, &["old"]),
        ];
        for (what, parts, generation, changed) in table {
            let ordered = |part: &Part, _: &str| part.tag.generation == generation;
            let found = changes(&parts, &wanted, ordered, |part| part.detail.held);
            assert_eq!(ids(&found), changed, "{what}");
        }
    }

    #[test]
    fn what_a_container_uses_is_its_own() {
        let parts = [part("idle", 0, PartState::Ended, 512), part("busy", 0, PartState::Running, 512)];
        let wanted = BTreeMap::from([("web".to_owned(), LIMITS)]);
        let found = changes(&parts, &wanted, |_, _| true, |part| part.detail.held);
        assert_eq!(ids(&found), ["idle", "busy"]);
        let used = |mib: u64| {
            let used = MemberUsage { name: "web".into(), memory_bytes: mib << 20, ..MemberUsage::default() };
            Some(used)
        };
        assert_eq!(beyond(&found, &[None, used(200)]), None);
        let told = beyond(&found, &[used(200), used(300)]).expect("the second one's use");
        assert!(told.contains("uses 300 MiB of memory, more than 256 MiB"), "{told}");
    }

    #[tokio::test]
    async fn what_is_written_counts_without_a_limit() {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join("x"), vec![1; 1 << 20]).expect("a file");
        let mut member = part("a", 0, PartState::Running, 256);
        (member.detail.pid, member.detail.upper) = (Some(7), Some(dir.path().to_owned()));
        let groups: GroupsOf = |_| Some(Groups::Unified("/nowhere".into()));
        let used = usage_by(std::slice::from_ref(&member), groups).await.expect("a measure");
        assert!(used.len() == 1 && used[0].root_bytes >= Some(1 << 20), "{used:?}");
        assert_eq!(used[0].beyond(256 << 20, 0, 2), None, "{used:?}");
        std::fs::write(dir.path().join("y"), vec![1; 2 << 20]).expect("another file");
        let used = usage_by(std::slice::from_ref(&member), groups).await.expect("a measure");
        let why = used[0].beyond(256 << 20, 0, 2).expect("too much for a first limit").why;
        assert!(why.contains("in its root file system, more than 2 MiB"), "{why}");
        member.state = PartState::Ended;
        let used = usage_by(std::slice::from_ref(&member), groups).await.expect("a measure");
        assert!(used.is_empty(), "what does not run uses nothing: {used:?}");
    }

    #[test]
    fn a_first_limit_of_the_root_is_told_to_whoever_is_over_it() {
        for (limit, counts) in [(None, false), (Some(0), false), (Some(8), true)] {
            assert_eq!(counts_root(&Held { root_mib: limit, ..Held::default() }), counts, "{limit:?}");
        }
    }

    #[test]
    fn a_change_says_memory_with_swap_and_takes_a_pids_limit_away() {
        let update = update_of(&Limits { pids: 0, ..LIMITS });
        assert_eq!((update.memory, update.memory_swap), (Some(256 << 20), Some(256 << 20)));
        assert_eq!(update.pids_limit, Some(-1));
        assert_eq!(update_of(&LIMITS).pids_limit, Some(64));
    }
}
