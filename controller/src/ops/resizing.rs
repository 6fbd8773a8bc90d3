//! Another size for an instance that is there, taken on while it runs: size, members' limits, volume and bandwidth in one
//! transaction with what is claimed of its host. What would be less than is used is refused by what its host measures
//! now; the host looks again when it carries the order out, and keeps the former limits where it has to. Refuses moves:
//! an instance that does not fit where it is stays as it is (`servers::resize` has those).

use super::instances::instance_view;
use super::list::find;
use super::orders::instance_claims;
use super::volumes::{room, usable};
use super::{AskError, Draft, Ops, OpsError, Row, View, networks, quotas, sights, updates, volume_groups};
use crate::model::*;
use crate::scheduler::{Policy, Request, place};
use amphi_api::instance::{BodyKind, BodySpec, Instance, Power};
use amphi_api::resize::{Beyond, InstanceResize, NetworkBandwidth};
use amphi_api::set::{MemberOptions, SetSpec};
use amphi_api::wire::{Answer, Ask, BodyState};
use amphi_api::{HostId, InstanceId, ProjectId};
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};

/// What members would be held to: memory in bytes, processes, MiB of the root file system; 0: no limit.
type Ceilings = BTreeMap<String, (u64, u64, u64)>;

/// A decision, and whom to ask before it counts.
struct Decided {
    draft: Draft,
    /// The host that runs the set whose members would have less.
    measure: Option<(HostId, Ceilings)>,
}

impl Ops {
    pub async fn resize_instance(
        &self,
        scope: ProjectId,
        id: InstanceId,
        request: &InstanceResize,
    ) -> Result<Instance, OpsError> {
        request.check()?;
        let measure =
            decide(&self.world().read(), scope, id, request, self.policy(), Timestamp::now())?.measure;
        if let Some((host, ceilings)) = measure {
            self.refuse_below_use(host, id, request, &ceilings).await?;
        }
        self.transact_room(|view| {
            Ok((decide(view, scope, id, request, self.policy(), Timestamp::now())?.draft, ()))
        })
        .await?;
        let view = self.world().read();
        Ok(instance_view(&view, find(&view.instances, scope, id)?))
    }

    async fn refuse_below_use(
        &self,
        host: HostId,
        instance: InstanceId,
        request: &InstanceResize,
        ceilings: &Ceilings,
    ) -> Result<(), OpsError> {
        let members = match self.links.ask(host, Ask::Usage { instance }).await {
            Ok(Answer::Usage { members }) => members,
            Ok(Answer::ConsoleLog { .. } | Answer::Figures { .. }) => Vec::new(),
            Err(AskError::Fault(fault)) => return Err(OpsError::conflict(fault.message)),
            Err(error @ (AskError::NoLink | AskError::Timeout)) => {
                return Err(OpsError::Unavailable(format!("what is in use cannot be known: {error}")));
            }
        };
        let beyond = members.iter().find_map(|used| {
            let (memory, pids, root_mib) = *ceilings.get(&used.name)?;
            Some((&used.name, used.beyond(memory, pids, root_mib)?))
        });
        beyond.map_or(Ok(()), |(member, beyond)| {
            Err(OpsError::taken(at_fault(request, member, &beyond), beyond.why))
        })
    }
}

/// The field of the order that takes too much away. A member's memory is its share of the set's: less of either is less of it.
fn at_fault(request: &InstanceResize, member: &str, beyond: &Beyond) -> String {
    let shared = |options: &MemberOptions| options.mem.is_none() && options.heap_mib.is_none();
    let whole = request.memory_mib.is_some() && request.members.get(member).is_none_or(shared);
    match beyond.option {
        "mem" if whole => "memory_mib".to_owned(),
        option => format!("members.{member}.{option}"),
    }
}

fn decide(
    view: &View,
    scope: ProjectId,
    id: InstanceId,
    request: &InstanceResize,
    policy: &Policy,
    now: Timestamp,
) -> Result<Decided, OpsError> {
    let row = find(&view.instances, scope, id)?;
    let host = may_change(row)?;
    let mut record = (*row.record).clone();
    record.vcpus = request.vcpus.unwrap_or(row.vcpus);
    record.memory_mib = request.memory_mib.unwrap_or(row.memory_mib);
    change_members(&mut record, request)?;
    if let Some(flavor) = &mut record.server.flavor {
        (flavor.vcpus, flavor.ram_mib) = (record.vcpus, record.memory_mib);
    }
    let mut draft = Draft::default();
    let more_gib = grow_volume(view, scope, row, request, &mut draft)?;
    fits(view, row, &record, host, more_gib, policy)?;
    limit_networks(view, scope, row, &request.networks, &mut draft)?;
    if row.body == BodyKind::Vm && runs(row) && record.memory_mib < row.memory_mib {
        gives_back(row, record.memory_mib)?;
        record.memory_kept_mib = Some(row.memory_mib.max(row.memory_kept_mib.unwrap_or(0)));
    }
    let measure = ceilings(row, &record).filter(|_| runs(row)).map(|ceilings| (host, ceilings));
    if record != *row.record {
        record.resizes += 1;
        record.updated_at = now;
        if instance_claims(row) != instance_claims(&record) {
            draft.unclaim(host, instance_claims(row));
            draft.claim(host, instance_claims(&record));
        }
        draft.update(row, &record);
        updates::redescribe(view, row, &record, &mut draft);
    }
    Ok(Decided { draft, measure })
}

/// The host that it is on; refused while something else decides on its size or place.
fn may_change(row: &InstanceRecord) -> Result<HostId, OpsError> {
    let refuse = |why: &str| Err(OpsError::conflict(why));
    if row.intent == Intent::Deleting {
        return refuse("the instance is being deleted");
    }
    if row.server.locked.is_some() {
        return refuse("the instance is locked");
    }
    if let Some(exchange) = row.exchange {
        return Err(OpsError::conflict(format!("exchange {exchange} is in progress; wait for its end")));
    }
    if let Some(rolling) = &row.rolling {
        // Its steps write the descriptions that it began with over whatever else is ordered.
        return Err(updates::under_way(rolling));
    }
    if let Some(pending) = &row.task {
        return Err(OpsError::conflict(format!("it is {}; wait for its end", pending.task.word())));
    }
    if row.resize.is_some() {
        return refuse("a resize to another flavor is not confirmed yet");
    }
    if row.shelved.is_some() {
        return refuse("the instance is shelved; unshelve it");
    }
    row.host.ok_or_else(|| OpsError::conflict("no host has room for the instance"))
}

/// Refuses what a running VM's guest cannot give back, however little it uses.
fn gives_back(row: &InstanceRecord, memory_mib: u64) -> Result<(), OpsError> {
    let refuse = |why: String| Err(OpsError::taken("memory_mib", why));
    let Some(range) = row.current().and_then(|seen| seen.size.memory) else {
        return refuse(format!(
            "a VM that runs keeps its {} MiB here: stop it, then make it smaller",
            row.memory_mib
        ));
    };
    if memory_mib < range.least_mib {
        return refuse(format!(
            "it was started with {} MiB, and keeps them while it runs: stop it, then make it smaller",
            range.least_mib
        ));
    }
    Ok(())
}

fn runs(row: &InstanceRecord) -> bool {
    row.power != Power::Off
        && row.current().is_none_or(|o| !matches!(o.state, BodyState::Stopped | BodyState::Absent))
}

/// The set's members with their new options; every share decided again, and heaps as large as before at most.
fn change_members(record: &mut InstanceRecord, request: &InstanceResize) -> Result<(), OpsError> {
    let sets = |body: &BodyRecord| matches!(body.spec, BodySpec::Set(_));
    if !request.members.is_empty() && !record.bodies.iter().any(sets) {
        return Err(OpsError::field("members", "a vm has no members"));
    }
    let (memory_mib, has_volume) = (record.memory_mib, record.volume.is_some());
    for (at, body) in record.bodies.iter_mut().enumerate() {
        let BodySpec::Set(set) = &mut body.spec else { continue };
        for (name, options) in &request.members {
            let known: Vec<String> = set.members.iter().map(|m| m.effective_name()).collect();
            let Some(at) = known.iter().position(|known| known == name) else {
                let why = format!("there is no such member; there are {}", known.join(", "));
                return Err(OpsError::field(format!("members.{name}"), why));
            };
            if !options.io.volume.is_none() && !has_volume {
                let field = format!("members.{name}.io.volume");
                return Err(OpsError::field(field, "the instance has no volume"));
            }
            set.members[at].options = *options;
        }
        if !request.members.is_empty() {
            set.check().map_err(OpsError::Field)?;
            *set = set.normalized();
        }
        set.check_memory(memory_mib).map_err(|e| e.under(&format!("bodies[{at}].set")))?;
    }
    if let (false, Some(set)) = (request.members.is_empty(), record.body_of(BodyKind::Set).cloned()) {
        updates::put_body(record, set);
    }
    Ok(())
}

/// What the running set's members would be held to, where one of them would have less than now.
fn ceilings(row: &InstanceRecord, record: &InstanceRecord) -> Option<Ceilings> {
    let of = |record: &InstanceRecord| -> Option<Ceilings> {
        match record.body_of(record.body).map(|body| &body.spec)? {
            BodySpec::Set(set) => Some(ceilings_of(set, record.memory_mib)),
            BodySpec::Vm(_) => None,
        }
    };
    let (before, after) = (of(row)?, of(record)?);
    let less = |before: u64, after: u64| after > 0 && (before == 0 || after < before);
    let shrinks = after.iter().any(|(name, (memory, pids, root))| {
        let was = before.get(name).copied().unwrap_or_default();
        *memory < was.0 || less(was.1, *pids) || less(was.2, *root)
    });
    shrinks.then_some(after)
}

fn ceilings_of(set: &SetSpec, memory_mib: u64) -> Ceilings {
    let memory = set.memory_limits(memory_mib);
    let each = set.members.iter().zip(memory).map(|(member, memory)| {
        let options = &member.options;
        (member.effective_name(), (memory, options.pids.unwrap_or(0), options.root_mib.unwrap_or(0)))
    });
    each.collect()
}

/// The instance's own volume; how many GiB more it takes.
fn grow_volume(
    view: &View,
    scope: ProjectId,
    row: &InstanceRecord,
    request: &InstanceResize,
    draft: &mut Draft,
) -> Result<u64, OpsError> {
    let Some(gib) = request.volume_gib else { return Ok(0) };
    let none = || OpsError::field("volume_gib", "the instance has no volume of its own");
    let volume = view.volumes.get(row.volume.ok_or_else(none)?).ok_or_else(none)?;
    usable(volume)?;
    super::move_volumes::refuse_moving(view, volume)?;
    if gib < volume.size_gib {
        return Err(OpsError::field(
            "volume_gib",
            format!(
                "volume '{}' has {} GiB, and XFS, which it carries, never becomes smaller",
                volume.name, volume.size_gib
            ),
        ));
    }
    let more = gib - volume.size_gib;
    if more == 0 {
        return Ok(0);
    }
    quotas::check_within(view, scope, Resource::PerVolumeGigabytes, 0, gib)?;
    quotas::check(view, scope, &[(Resource::Gigabytes, more)])?;
    draft.update(volume, &VolumeRecord { size_gib: gib, ..(*volume.record).clone() });
    draft.claim(volume.host, room(more));
    match view.group_at(volume.host) {
        Some(group) => volume_groups::room_in(view, group, more).map(|()| 0),
        None => Ok(more),
    }
}

/// Whether its host has room for what is more than now: as if it came anew to a host that it had left.
fn fits(
    view: &View,
    row: &InstanceRecord,
    record: &InstanceRecord,
    host: HostId,
    more_gib: u64,
    policy: &Policy,
) -> Result<(), OpsError> {
    let more_vcpus = u64::from(record.vcpus.saturating_sub(row.vcpus));
    let more_memory = record.memory_mib.saturating_sub(row.memory_mib);
    quotas::check(view, row.project, &[(Resource::Cores, more_vcpus), (Resource::Ram, more_memory)])?;
    if more_vcpus == 0 && more_memory == 0 && more_gib == 0 {
        return Ok(());
    }
    let mut sights = sights(view);
    sights.retain(|sight| sight.id == host);
    for sight in &mut sights {
        sight.claims = sight.claims.minus(instance_claims(row));
    }
    let asked = Request {
        vcpus: record.vcpus,
        memory_mib: record.memory_mib,
        qos: record.server.qos,
        volume_gib: more_gib,
        pinned: Some(host),
        ..Request::default()
    };
    place(&sights, &asked, policy)?;
    Ok(())
}

/// The connections' bandwidth, on their ports.
fn limit_networks(
    view: &View,
    scope: ProjectId,
    row: &InstanceRecord,
    wanted: &[NetworkBandwidth],
    draft: &mut Draft,
) -> Result<(), OpsError> {
    let mut seen = BTreeSet::new();
    for (at, one) in wanted.iter().enumerate() {
        let field = format!("networks[{at}].network");
        let network = networks::named(view, scope, &field, &one.network)?.id;
        let mut ports = row.ports.iter().filter_map(|id| view.ports.get(*id));
        let port: &Row<PortRecord> = ports.find(|port| port.network == network).ok_or_else(|| {
            OpsError::field(&field, format!("the instance is not connected to '{}'", one.network))
        })?;
        if !seen.insert(port.id) {
            return Err(OpsError::field(field, format!("network '{}' is named twice", one.network)));
        }
        if port.bandwidth != one.bandwidth {
            draft.update(port, &PortRecord { bandwidth: one.bandwidth, ..(*port.record).clone() });
        }
    }
    Ok(())
}
