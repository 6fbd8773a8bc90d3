//! What Docker holds of ours: containers as parts, parts as bodies. One list call tells most; details that only an
//! inspect tells are kept until an event says that they changed. Assembling is pure; nothing here changes a container.

use super::engine::Engine;
use super::labels::{self, Role, Tag};
use super::restarts::{Record, Restarts};
use super::sizing;
use super::start::gate;
use super::succession::{Standing, standing};
use super::throttle::{Device, Devices};
use crate::health::Outlook;
use crate::instance::limits::Held;
use crate::instance::{DriverError, ObservedBody, ObservedState};
use amphi_api::instance::{BodyKind, ComingMember, MemberStatus};
use amphi_api::{InstanceId, PortId};
use bollard::models::{
    ContainerState, ContainerSummary, ContainerSummaryStateEnum, EndpointSettings, MountPoint,
};
use bollard::query_parameters::ListContainersOptionsBuilder;
use futures_util::{StreamExt, TryStreamExt, stream};
use jiff::Timestamp;
use std::collections::{BTreeMap, HashMap};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Inspects under way at once.
const INSPECTS: usize = 8;

/// One container of ours.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    pub id: String,
    pub tag: Tag,
    pub state: PartState,
    /// Default where the container never ran.
    pub detail: Detail,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PartState {
    /// Made, never ran.
    Created,
    Running,
    Paused,
    Ended,
}

/// Times in microseconds since the epoch, as Docker tells them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Detail {
    pub started_us: Option<i64>,
    pub finished_us: Option<i64>,
    pub exit_code: Option<i64>,
    pub oom_killed: bool,
    /// The network namespace of its process: none where there is none, or where it cannot be seen.
    pub namespace: Option<u64>,
    /// Of its first process, while it runs.
    pub pid: Option<i64>,
    /// Networks that the container is in.
    pub endpoints: Vec<Endpoint>,
    /// What Docker and the kernel hold it to.
    pub held: Held,
    pub devices: Devices,
    /// Where what it writes into its root file system lies.
    pub upper: Option<PathBuf>,
    /// Ended by the kernel in its present run for want of memory.
    pub oom_kills: u64,
}

/// One network that a container is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Its name in Docker.
    pub network: String,
    /// None: no port of ours.
    pub port: Option<PortId>,
}

impl Part {
    pub fn is_anchor(&self) -> bool {
        matches!(self.tag.role, Role::Anchor { .. })
    }

    pub fn is_rescuer(&self) -> bool {
        matches!(self.tag.role, Role::Rescuer { .. })
    }

    /// A process of it is there.
    pub fn is_alive(&self) -> bool {
        matches!(self.state, PartState::Running | PartState::Paused)
    }

    /// How long its last run was.
    pub fn ran(&self) -> Duration {
        let ran = self.detail.finished_us.unwrap_or(0).saturating_sub(self.detail.started_us.unwrap_or(0));
        Duration::from_micros(ran.try_into().unwrap_or(0))
    }

    /// Whether it runs in the namespaces of an earlier run of this anchor. Times tell it only where nothing else does: the
    /// host's clock may have been set back since the anchor started.
    pub fn is_stale(&self, anchor: &Part) -> bool {
        self.is_alive()
            && match (self.detail.namespace, anchor.detail.namespace) {
                (Some(own), Some(present)) => own != present,
                _ => self.detail.started_us < anchor.detail.started_us,
            }
    }

    /// Whether it was started since this anchor was: what ran before belongs to an earlier run of the set.
    pub fn is_of_run(&self, anchor: &Part) -> bool {
        match self.is_alive() {
            true => !self.is_stale(anchor),
            false => self.detail.started_us.is_some() && self.detail.started_us >= anchor.detail.started_us,
        }
    }

    /// It has ended in this run of the set, and its restart policy leaves it so.
    pub fn rests(&self, anchor: &Part) -> bool {
        self.state == PartState::Ended
            && self.is_of_run(anchor)
            && !self.tag.life.restart.restarts(self.detail.exit_code.unwrap_or(-1))
    }

    /// When it may start again, in microseconds since the epoch. An end that lies in the future was written by
    /// another clock: then at once.
    pub fn due_us(&self, record: Record, now_us: i64) -> i64 {
        let finished = self.detail.finished_us.unwrap_or(0);
        if finished > now_us {
            return now_us;
        }
        finished.saturating_add(record.delay(self.ran()).as_micros().try_into().unwrap_or(i64::MAX))
    }
}

/// What inspects told, by container id.
#[derive(Default)]
pub struct Sightings {
    known: Mutex<Known>,
    /// The device under members' root file systems.
    root: Option<Device>,
}

#[derive(Default)]
struct Known {
    /// Events are coming in, so that what is kept is known to be fresh.
    live: bool,
    /// Grows with every doubt: what was asked before it is not kept.
    doubts: u64,
    seen: HashMap<String, (PartState, Detail)>,
}

impl Sightings {
    pub fn on(root: Option<Device>) -> Self {
        Self { root, ..Self::default() }
    }

    /// From now on events tell what changes.
    pub fn follow(&self) {
        self.with(|known| (known.live, known.doubts) = (true, known.doubts + 1));
    }

    /// Events have ceased.
    pub fn lose(&self) {
        self.with(|known| {
            (known.live, known.doubts) = (false, known.doubts + 1);
            known.seen.clear();
        });
    }

    pub fn doubt(&self, container: &str) {
        self.with(|known| {
            known.doubts += 1;
            known.seen.remove(container);
        });
    }

    fn get(&self, container: &str, state: PartState) -> Option<Detail> {
        self.with(|known| {
            known.seen.get(container).filter(|(seen, _)| *seen == state).map(|(_, detail)| detail.clone())
        })
    }

    fn keep(&self, asked: u64, container: &str, state: PartState, detail: &Detail) {
        self.with(|known| {
            if known.live && known.doubts == asked {
                known.seen.insert(container.to_owned(), (state, detail.clone()));
            }
        });
    }

    fn with<T>(&self, work: impl FnOnce(&mut Known) -> T) -> T {
        // What is kept can always be asked again: a panic elsewhere is no reason to stop.
        work(&mut self.known.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// All parts of one instance, or of all. Forgets containers that are gone when asked for all.
    pub async fn collect(
        &self,
        engine: &Engine,
        instance: Option<InstanceId>,
    ) -> Result<Vec<Part>, DriverError> {
        let label = match instance {
            Some(instance) => format!("{}={instance}", labels::INSTANCE),
            None => labels::INSTANCE.to_owned(),
        };
        let filters = HashMap::from([("label", vec![label.as_str()])]);
        let options = ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
        let listed = engine
            .call("list containers", engine.limits.call, |docker| async move {
                docker.list_containers(Some(options)).await
            })
            .await?;
        if instance.is_none() {
            let ids: std::collections::HashSet<&str> =
                listed.iter().filter_map(|one| one.id.as_deref()).collect();
            self.with(|known| known.seen.retain(|id, _| ids.contains(id.as_str())));
        }
        let parts = stream::iter(listed.into_iter().filter_map(read_summary))
            .map(|part| self.inspect(engine, part))
            .buffered(INSPECTS)
            .try_collect::<Vec<_>>()
            .await?;
        Ok(parts.into_iter().flatten().collect())
    }

    /// None: gone meanwhile.
    async fn inspect(&self, engine: &Engine, mut part: Part) -> Result<Option<Part>, DriverError> {
        if part.state == PartState::Created {
            return Ok(Some(part));
        }
        if let Some(detail) = self.get(&part.id, part.state) {
            part.detail = detail;
            return Ok(Some(part));
        }
        let asked = self.with(|known| known.doubts);
        let id = part.id.clone();
        let doing = format!("inspect container {id}");
        let found =
            engine
                .find(&doing, engine.limits.call, |docker| async move {
                    docker.inspect_container(&id, None).await
                })
                .await?;
        let Some(found) = found else { return Ok(None) };
        let Some(state) = found.state else { return Ok(None) };
        let networks = found.network_settings.and_then(|settings| settings.networks).unwrap_or_default();
        // It may have ended since it was listed.
        part.state = match (state.running, state.paused) {
            (Some(true), Some(true)) => PartState::Paused,
            (Some(true), _) => PartState::Running,
            _ => PartState::Ended,
        };
        part.detail = Detail { endpoints: read_endpoints(networks), ..read_detail(&state) };
        let member = !part.is_anchor();
        let detail = &mut part.detail;
        detail.held = sizing::held(found.host_config.as_ref());
        let pid = detail.pid.filter(|_| member);
        let at = volume_in(found.mounts.unwrap_or_default());
        detail.devices = sizing::io_of(self.root.as_deref(), pid, at.as_deref(), &mut detail.held);
        let upper = found.graph_driver.and_then(|driver| driver.data.get("UpperDir").map(PathBuf::from));
        detail.upper = upper;
        let groups = pid.and_then(sizing::groups_of);
        detail.oom_kills = groups.map_or(0, |groups| groups.oom_kills());
        self.keep(asked, &part.id, part.state, &part.detail);
        Ok(Some(part))
    }
}

fn read_summary(summary: ContainerSummary) -> Option<Part> {
    let tag = Tag::read(summary.labels.as_ref()?)?;
    let state = match summary.state? {
        ContainerSummaryStateEnum::CREATED => PartState::Created,
        ContainerSummaryStateEnum::RUNNING => PartState::Running,
        ContainerSummaryStateEnum::PAUSED => PartState::Paused,
        _ => PartState::Ended,
    };
    Some(Part { id: summary.id?, tag, state, detail: Detail::default() })
}

fn read_detail(state: &ContainerState) -> Detail {
    // Docker writes the year 1 for "never".
    let time = |text: &Option<String>| {
        let us = text.as_ref()?.parse::<Timestamp>().ok()?.as_microsecond();
        (us > 0).then_some(us)
    };
    Detail {
        started_us: time(&state.started_at),
        finished_us: time(&state.finished_at),
        exit_code: state.exit_code,
        oom_killed: state.oom_killed.unwrap_or(false),
        namespace: state.pid.filter(|pid| *pid > 0).and_then(namespace_of),
        pid: state.pid.filter(|pid| *pid > 0),
        ..Detail::default()
    }
}

/// Where the set's volume is in a container, or a part of it.
fn volume_in(mounts: Vec<MountPoint>) -> Option<String> {
    let ours = |mount: &MountPoint| {
        mount.driver.as_deref() == Some(super::render::DRIVER)
            || mount.source.as_deref().is_some_and(|source| source.contains("/parts/"))
    };
    mounts.into_iter().find(ours)?.destination
}

/// The inode of a process's network namespace (namespaces(7)).
fn namespace_of(pid: i64) -> Option<u64> {
    std::fs::metadata(format!("/proc/{pid}/ns/net")).ok().map(|namespace| namespace.ino())
}

fn read_endpoints(networks: HashMap<String, EndpointSettings>) -> Vec<Endpoint> {
    let mut endpoints: Vec<Endpoint> = networks
        .into_iter()
        .map(|(network, settings)| Endpoint {
            network,
            port: settings.driver_opts.and_then(|opts| opts.get(labels::PORT)?.parse().ok()),
        })
        .collect();
    endpoints.sort_by(|a, b| a.network.cmp(&b.network));
    endpoints
}

/// What is known of a part beside what Docker tells: what probes say, what it is held to, why it is not to start.
pub struct Seen<'a> {
    pub outlook: &'a dyn Fn(&Part) -> Outlook,
    pub held: &'a dyn Fn(&Part) -> Held,
    pub over: &'a dyn Fn(&Part) -> Option<String>,
}

/// The bodies that these parts make, each instance's epochs apart.
pub fn assemble(parts: &[Part], restarts: &Restarts, seen: &Seen<'_>, now_us: i64) -> Vec<ObservedBody> {
    let mut bodies: BTreeMap<(InstanceId, u64), Vec<&Part>> = BTreeMap::new();
    for part in parts {
        bodies.entry((part.tag.instance, part.tag.epoch)).or_default().push(part);
    }
    bodies
        .into_iter()
        .map(|((instance, epoch), parts)| body(instance, epoch, &parts, restarts, seen, now_us))
        .collect()
}

fn body(
    instance: InstanceId,
    epoch: u64,
    parts: &[&Part],
    restarts: &Restarts,
    seen: &Seen<'_>,
    now_us: i64,
) -> ObservedBody {
    let anchor = parts.iter().copied().find(|part| part.is_anchor());
    let runs = anchor.filter(|anchor| anchor.is_alive());
    let rescued = parts.iter().any(|part| part.is_rescuer());
    let mut expected: BTreeMap<(u32, String), Vec<&Part>> = BTreeMap::new();
    for part in parts {
        match &part.tag.role {
            Role::Anchor { .. } if rescued => {}
            Role::Anchor { members } | Role::Rescuer { members, .. } => {
                for member in members {
                    expected.entry(member.clone()).or_default();
                }
            }
            Role::Member { .. } => {}
        }
        // Beside a rescue's, the set's own members only wait.
        if let Some((index, name)) = part.tag.role.member().filter(|_| part.is_rescuer() == rescued) {
            expected.entry((index, name.to_owned())).or_default().push(part);
        }
    }
    let expected: BTreeMap<(u32, String), Standing<'_>> =
        expected.into_iter().map(|(member, parts)| (member, standing(&parts))).collect();
    let alive = runs.is_some();
    let all_paused = alive
        && !expected.is_empty()
        && expected.values().all(|one| one.present.is_some_and(|part| part.state == PartState::Paused));
    let mut members = Vec::new();
    let mut held = BTreeMap::new();
    let mut troubles = Vec::new();
    let mut waits_for: Option<String> = None;
    for ((index, name), place) in expected {
        let part = place.present;
        let record = part.map(|part| restarts.get(&part.id)).unwrap_or_default();
        let outlook = part.map(seen.outlook).unwrap_or_default();
        let rests = runs.zip(part).is_some_and(|(anchor, part)| part.rests(anchor));
        let trouble = runs.filter(|_| !all_paused).and_then(|anchor| match &waits_for {
            Some(first) if part.is_none_or(|part| !part.is_alive() && !part.is_of_run(anchor)) => {
                Some(format!("waits for {first}"))
            }
            _ => match part.and_then(seen.over) {
                Some(over) => Some(format!("was ended: {over}")),
                None => trouble(part, anchor, record, now_us),
            },
        });
        let ended = part.filter(|part| part.state == PartState::Ended);
        members.push(MemberStatus {
            running: alive && trouble.is_none() && !rests,
            restarts: record.restarts,
            exit_code: ended.map_or(record.exit_code, |part| part.detail.exit_code),
            started_at_us: part.and_then(|part| part.detail.started_us),
            index,
            name: name.clone(),
            ready: outlook.ready.map(|ready| ready && alive && trouble.is_none()),
            finished: rests,
            out_of_memory: ended.map_or(record.out_of_memory, |part| part.detail.oom_killed),
            reason: outlook.reason.or_else(|| part.and_then(|part| out_of_memory(part, record))),
            generation: part.map_or(0, |part| part.tag.generation),
            former: place.former.map(|former| former.tag.generation),
            gap_ms: place.gap_ms(),
            coming: place.coming.map(|part| coming(part, restarts.get(&part.id), (seen.outlook)(part))),
        });
        held.extend(
            part.filter(|part| part.state != PartState::Created)
                .map(|part| (name.clone(), (seen.held)(part))),
        );
        if let Some((anchor, part)) = runs.zip(part).filter(|_| waits_for.is_none()) {
            waits_for = gate(part, anchor, outlook.ready == Some(true)).map(|to| format!("{name} {to}"));
        }
        troubles.extend(trouble.map(|trouble| format!("member {name} {trouble}")));
    }
    let state = match runs {
        None => ObservedState::Stopped,
        Some(_) if all_paused => ObservedState::Paused,
        Some(_) if troubles.is_empty() => ObservedState::Running,
        Some(_) => ObservedState::Degraded,
    };
    let trouble = (!troubles.is_empty()).then(|| troubles.join("; "));
    let ports = runs.map(|anchor| anchor.detail.endpoints.iter().filter_map(|e| e.port).collect());
    ObservedBody {
        instance,
        kind: BodyKind::Set,
        epoch,
        state,
        ports: ports.unwrap_or_default(),
        // Told by the kernel, not by Docker.
        volumes: Vec::new(),
        away: false,
        rescued,
        members,
        agent: None,
        held,
        trouble,
    }
}

/// How the kernel ended something in it for want of memory, with the limit.
fn out_of_memory(part: &Part, record: Record) -> Option<String> {
    let limit = part.detail.held.memory_bytes.map(|bytes| format!(", limit {} MiB", bytes >> 20));
    let limit = limit.unwrap_or_default();
    let ended = if part.is_alive() { record.out_of_memory } else { part.detail.oom_killed };
    match (ended, part.detail.oom_kills) {
        (true, _) => Some(format!("OOM killed{limit}")),
        (false, 0) => None,
        (false, kills) => Some(format!("{kills} of its processes OOM killed{limit}")),
    }
}

/// A member's next container, beside the present one.
fn coming(part: &Part, record: Record, outlook: Outlook) -> ComingMember {
    let ended = part.state == PartState::Ended;
    ComingMember {
        generation: part.tag.generation,
        running: part.state == PartState::Running,
        ready: outlook.ready,
        restarts: record.restarts,
        exit_code: if ended { part.detail.exit_code } else { record.exit_code },
        broken: part.state == PartState::Created && outlook.reason.is_some(),
        reason: outlook.reason,
    }
}

/// Why a member of a set whose anchor runs is not as it should be.
fn trouble(part: Option<&Part>, anchor: &Part, record: Record, now_us: i64) -> Option<String> {
    let Some(part) = part else { return Some("is missing".to_owned()) };
    match part.state {
        PartState::Created => Some("has not started".to_owned()),
        PartState::Running if part.is_stale(anchor) => {
            Some("runs without the network: its anchor was started anew".to_owned())
        }
        PartState::Running => None,
        PartState::Paused => Some("is paused".to_owned()),
        PartState::Ended if part.rests(anchor) => {
            let code = part.detail.exit_code.unwrap_or(-1);
            let why = if part.detail.oom_killed { ", out of memory" } else { "" };
            (code != 0).then(|| format!("ended with exit code {code}{why} and is not to start again"))
        }
        PartState::Ended => {
            let code = part.detail.exit_code.unwrap_or(-1);
            let why = if part.detail.oom_killed { ", out of memory" } else { "" };
            let due = part.due_us(record, now_us);
            let when = if due <= now_us {
                "now".to_owned()
            } else {
                // Whole seconds, so that the text stays the same until the time has come.
                let due = Timestamp::from_second(due.div_euclid(1_000_000) + 1).unwrap_or(Timestamp::MAX);
                format!("at {due}")
            };
            Some(format!(
                "ended with exit code {code}{why} after {} restarts; it is to start again {when}",
                record.restarts
            ))
        }
    }
}

#[cfg(test)]
mod tests;
