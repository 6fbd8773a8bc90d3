//! What a new instance is to be, names resolved; and its launch: placed, claimed, recorded.

use super::super::Origin;
use super::super::journal::Started;
use crate::model::*;
use crate::ops::asked;
use crate::ops::draft::guard_promises;
use crate::ops::orders::instance_claims;
use crate::ops::volumes::room;
use crate::ops::{Draft, FixedIpWish, OpsError, PortTarget, PortWish, View, ports, server_groups};
use crate::scheduler::{NoRoom, Placement, Policy, Request};
use amphi_api::failover::FailoverTerms;
use amphi_api::instance::{BodyKind, FailoverPolicy, Fault, Power};
use amphi_api::resize::Bandwidth;
use amphi_api::{
    HostId, ImageId, InstanceId, NetworkId, PortId, ProjectId, SecurityGroupId, SnapshotId, VolumeId,
};
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

#[derive(Debug)]
pub(in crate::ops) struct Plan {
    pub project: ProjectId,
    pub name: String,
    pub vcpus: u32,
    pub memory_mib: u64,
    /// The preferred first.
    pub bodies: Vec<BodyRecord>,
    pub nics: Vec<NicPlan>,
    pub groups: Vec<SecurityGroupId>,
    /// Nothing goes out but by a rule.
    pub egress_by_rule: bool,
    /// A set's shared volume, a VM's first data disk.
    pub own: Option<VolumePlan>,
    pub root: Option<VolumePlan>,
    pub further: Vec<VolumePlan>,
    pub user_data: Option<String>,
    pub ssh_keys: Vec<String>,
    pub metadata: BTreeMap<String, String>,
    pub failover: FailoverPolicy,
    pub failover_terms: FailoverTerms,
    /// What placement is asked beside the sizes.
    pub asked: Request,
    pub server: ServerTraits,
    pub no_room: NoRoomIs,
}

/// What it means that no host has room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::ops) enum NoRoomIs {
    Refused,
    /// The instance is there all the same, without a host and in ERROR, as nova has it.
    Told,
}

#[derive(Debug)]
pub(in crate::ops) struct NicPlan {
    pub target: PortTarget,
    pub fixed_ips: Option<Vec<FixedIpWish>>,
    pub tag: Option<String>,
    pub bandwidth: Bandwidth,
    /// Its place in the request.
    pub field: String,
}

#[derive(Debug)]
pub(in crate::ops) struct VolumePlan {
    pub start: VolumeStart,
    pub name: String,
    pub delete_on_termination: bool,
    pub device: Option<String>,
    pub tag: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::ops) enum VolumeStart {
    There(VolumeId),
    Blank(u64),
    Image(ImageId, u64),
    Snapshot(SnapshotId, u64),
}

impl NicPlan {
    fn network(&self, view: &View) -> Option<NetworkId> {
        match self.target {
            PortTarget::Network(id) => Some(id),
            PortTarget::Port(id) => view.ports.get(id).map(|port| port.network),
        }
    }
}

impl VolumePlan {
    fn new_gib(&self) -> u64 {
        match self.start {
            VolumeStart::There(_) => 0,
            VolumeStart::Blank(gib) | VolumeStart::Image(_, gib) | VolumeStart::Snapshot(_, gib) => gib,
        }
    }

    /// Where its bytes are, and how many GiB more it takes elsewhere.
    fn lies_on(&self, view: &View) -> Option<(HostId, u64)> {
        match self.start {
            VolumeStart::There(id) => {
                let row = view.volumes.get(id).filter(|v| !v.untouched || v.snapshots > 0)?;
                // Every host that sees the group has it at hand.
                if view.group_at(row.host).is_some() {
                    return None;
                }
                Some((row.host, row.size_gib))
            }
            VolumeStart::Snapshot(id, _) => view.snapshots.get(id).map(|s| (s.host, 0)),
            VolumeStart::Blank(_) | VolumeStart::Image(..) => None,
        }
    }
}

/// Places the instance and writes all of it into the draft.
pub(in crate::ops) fn launch(
    view: &View,
    origin: &Origin,
    plan: Plan,
    policy: &Policy,
    now: Timestamp,
    draft: &mut Draft,
) -> Result<InstanceId, OpsError> {
    let id = InstanceId::new();
    let mut asked = plan.asked.clone();
    let volumes = || plan.own.iter().chain(&plan.root).chain(&plan.further);
    asked.vcpus = plan.vcpus;
    asked.memory_mib = plan.memory_mib;
    asked.volume_gib = volumes().map(VolumePlan::new_gib).sum();
    asked.volume = volumes().next().is_some();
    let shared = |v: &VolumePlan| match v.start {
        VolumeStart::There(id) => Some(view.group_of(id)?.id.place()),
        _ => None,
    };
    asked.reach = volumes().filter_map(shared).collect();
    asked.bodies = plan.bodies.iter().map(BodyRecord::kind).collect();
    asked.guest_kit = asked::wants_kit(&plan.bodies);
    asked.network = !plan.nics.is_empty();
    if let Some(group) = plan.server.group {
        asked.group = Some(server_groups::join(view, draft, plan.project, group, id)?);
    }
    let mut record = blank(id, &plan, now);
    asked.qos = plan.server.qos;
    asked.images = plan.bodies.first().map(|b| b.images.clone()).unwrap_or_default();
    asked.physical = asked::physical(view, plan.nics.iter().filter_map(|nic| nic.network(view)));
    asked.scheduler = asked::scheduler(view, plan.project, plan.server.scheduler.as_deref())?;
    match placed(view, &mut asked, &plan) {
        Ok(placement) => {
            record.host = Some(placement.host);
            record.body = asked.bodies[placement.body];
            connect(view, &plan, &mut record, draft, now)?;
            equip(view, plan, &mut record, placement.host, policy, draft, now)?;
            draft.claim(placement.host, instance_claims(&record));
            let before = record.clone();
            let started = Started { view, origin, before: &before, now };
            started.task(draft, &mut record, Task::Build, "create");
        }
        Err(no_room) if plan.no_room == NoRoomIs::Told => {
            guard_promises(view, draft);
            let before = record.clone();
            let started = Started { view, origin, before: &before, now };
            started.failed(draft, &record, "create", "No valid host was found.");
            record.server.failure = Some(Fault {
                code: "no_room".into(),
                message: format!("No valid host was found. {no_room}"),
                since: now,
            });
        }
        Err(no_room) => return Err(no_room.into()),
    }
    draft.create(&record);
    Ok(id)
}

/// Where its volumes are, the root's host first; where there is no room, anywhere, and the volumes travel.
fn placed(view: &View, asked: &mut Request, plan: &Plan) -> Result<Placement, NoRoom> {
    let all = plan.root.iter().chain(&plan.own).chain(&plan.further);
    let lying: Vec<(HostId, u64)> = all.filter_map(|v| v.lies_on(view)).collect();
    // What a dead host has cannot travel: the refusal says so.
    if let Some((dead, _)) = lying.iter().find(|(host, _)| !view.host_up(*host)) {
        return view.fleet.place(&Request { volume_host: Some(*dead), ..asked.clone() });
    }
    let fresh_gib = asked.volume_gib;
    for (host, _) in &lying {
        let comes = lying.iter().filter(|(at, _)| at != host).map(|(_, gib)| gib).sum::<u64>();
        let near = Request { volume_host: Some(*host), volume_gib: fresh_gib + comes, ..asked.clone() };
        if let Ok(placement) = view.fleet.place(&near) {
            *asked = near;
            return Ok(placement);
        }
    }
    asked.volume_gib += lying.iter().map(|(_, gib)| gib).sum::<u64>();
    view.fleet.place(asked)
}

fn blank(id: InstanceId, plan: &Plan, now: Timestamp) -> InstanceRecord {
    InstanceRecord {
        id,
        project: plan.project,
        name: plan.name.clone(),
        vcpus: plan.vcpus,
        memory_mib: plan.memory_mib,
        bodies: plan.bodies.clone(),
        ports: Vec::new(),
        security_groups: plan.groups.clone(),
        volume: None,
        root_volume: None,
        attachments: Vec::new(),
        leaving: Vec::new(),
        user_data: plan.user_data.clone(),
        ssh_keys: plan.ssh_keys.clone(),
        metadata: plan.metadata.clone(),
        failover: plan.failover,
        failover_terms: plan.failover_terms,
        epoch: 1,
        host: None,
        body: plan.bodies.first().map_or(BodyKind::Vm, BodyRecord::kind),
        power: Power::On,
        restarts: 0,
        resizes: 0,
        memory_kept_mib: None,
        root: 0,
        rescue: None,
        shelved: None,
        resize: None,
        task: None,
        server: plan.server.clone(),
        intent: Intent::Live,
        trash_volume: false,
        exchange: None,
        generations: Default::default(),
        member_restarts: Default::default(),
        rolling: None,
        lost: Vec::new(),
        built: false,
        observed: None,
        created_at: now,
        updated_at: now,
    }
}

/// Its ports. One per network: the two bodies could not tell two of them apart alike.
fn connect(
    view: &View,
    plan: &Plan,
    record: &mut InstanceRecord,
    draft: &mut Draft,
    now: Timestamp,
) -> Result<(), OpsError> {
    let mut seen = BTreeSet::new();
    let mut tags: BTreeMap<PortId, String> = BTreeMap::new();
    for nic in &plan.nics {
        let wish = PortWish {
            instance: record.id,
            target: nic.target,
            fixed_ips: nic.fixed_ips.clone(),
            groups: &plan.groups,
            egress_by_rule: plan.egress_by_rule,
            bandwidth: nic.bandwidth,
            field: nic.field.clone(),
            now,
        };
        if let PortTarget::Network(network) = nic.target
            && !seen.insert(network)
        {
            return Err(twice(view, network, &nic.field));
        }
        let port = ports::plan(view, plan.project, &wish, draft)?;
        if matches!(nic.target, PortTarget::Port(_)) && !seen.insert(port.network) {
            return Err(twice(view, port.network, &nic.field));
        }
        tags.extend(nic.tag.clone().map(|tag| (port.id, tag)));
        record.ports.push(port.id);
    }
    record.server.port_tags = tags;
    Ok(())
}

fn twice(view: &View, network: amphi_api::NetworkId, field: &str) -> OpsError {
    let name = view.networks.get(network).map(|n| n.name.clone()).unwrap_or_default();
    OpsError::field(format!("{field}.network"), format!("network '{name}' is named twice"))
}

/// Its volumes, made or taken.
fn equip(
    view: &View,
    plan: Plan,
    record: &mut InstanceRecord,
    host: HostId,
    policy: &Policy,
    draft: &mut Draft,
    now: Timestamp,
) -> Result<(), OpsError> {
    let mut claimed = 0;
    let mut take = |volume: &VolumePlan, draft: &mut Draft| -> Result<VolumeId, OpsError> {
        claimed += volume.new_gib();
        volume_of(view, volume, record.id, plan.project, host, policy, draft, now)
    };
    let own = plan.own.as_ref().map(|v| take(v, draft)).transpose()?;
    let root = plan.root.as_ref().map(|v| take(v, draft)).transpose()?;
    let mut further = Vec::new();
    for volume in &plan.further {
        further.push((take(volume, draft)?, volume));
    }
    (record.volume, record.root_volume) = (own, root);
    record.server.root_ends_with_it = plan.root.as_ref().is_some_and(|v| v.delete_on_termination);
    for (id, volume) in further {
        let device = super::super::attach::free_device(record, volume.device.as_deref())?;
        record.attachments.push(Attachment {
            id: Uuid::now_v7(),
            volume: id,
            device,
            tag: volume.tag.clone(),
            delete_on_termination: volume.delete_on_termination,
            read_only: view.volumes.get(id).is_some_and(|row| row.traits.read_only == Some(true)),
            since: now,
        });
    }
    if claimed > 0 {
        draft.claim(host, room(claimed));
    }
    Ok(())
}

#[allow(clippy::too_many_arguments)]
fn volume_of(
    view: &View,
    plan: &VolumePlan,
    instance: InstanceId,
    project: ProjectId,
    host: HostId,
    policy: &Policy,
    draft: &mut Draft,
    now: Timestamp,
) -> Result<VolumeId, OpsError> {
    let mut record = VolumeRecord {
        id: VolumeId::new(),
        project,
        name: plan.name.clone(),
        size_gib: plan.new_gib(),
        host,
        source: None,
        source_image: None,
        source_volume: None,
        untouched: false,
        instance: Some(instance),
        made: false,
        trashed_at: None,
        intent: Intent::Live,
        snapshots: 0,
        observed: None,
        traits: VolumeTraits::default(),
        journey: None,
        created_at: now,
    };
    match plan.start {
        VolumeStart::There(id) => {
            let row = view.volumes.get(id).ok_or_else(|| OpsError::not_found::<VolumeRecord>(id))?;
            super::super::attach::take_volume(view, draft, row, instance, host, policy, now)?;
            return Ok(id);
        }
        VolumeStart::Blank(_) => {}
        VolumeStart::Image(id, _) => {
            record.source_image = Some(id);
            record.traits.bootable = true;
            record.traits.image = view.images.get(id).map(|row| image_metadata(row)).unwrap_or_default();
        }
        VolumeStart::Snapshot(id, _) => {
            record.source = Some(id);
            if let Some(row) = view.snapshots.get(id) {
                draft.guard(row);
                let afar = Some(row.host).filter(|from| *from != host);
                record.journey = afar.map(|from| VolumeJourney::new(from, host, now));
            }
        }
    }
    draft.create(&record);
    Ok(record.id)
}
