//! Instances: create, list, show. What is ordered of one that exists is in `orders`.

use super::list::find;
use super::view::Row;
use super::{
    Draft, FixedIpWish, ListQuery, Ops, OpsError, PortTarget, PortWish, View, networks, ports, resolve,
    sights,
};
use crate::model::*;
use crate::scheduler::{Request, place};
use amphi_api::host::Claims;
use amphi_api::instance::{
    BodyKind, Instance, InstanceAddress, InstanceCreate, InstanceNetwork, InstanceVolume, Power,
};
use amphi_api::{HostId, InstanceId, NetworkId, ProjectId, SecurityGroupId, VolumeId};
use jiff::Timestamp;

impl Ops {
    pub async fn create_instance(
        &self,
        scope: ProjectId,
        request: &InstanceCreate,
    ) -> Result<Instance, OpsError> {
        request.check()?;
        let id = self
            .transact_room(|view| {
                let decision = decide(view, scope, request, self.policy(), Timestamp::now())?;
                Ok((decision.0, decision.1))
            })
            .await?;
        self.instance(scope, id)
    }

    pub fn instance(&self, scope: ProjectId, id: InstanceId) -> Result<Instance, OpsError> {
        let view = self.world().read();
        Ok(instance_view(&view, find(&view.instances, scope, id)?))
    }

    pub fn instances(&self, scope: ProjectId, query: &ListQuery) -> Result<Vec<Instance>, OpsError> {
        let view = self.world().read();
        let rows = query.rows(&view.instances, scope, |_| true)?;
        Ok(rows.into_iter().map(|row| instance_view(&view, row)).collect())
    }
}

/// Everything of a new instance in one transaction: record, ports, addresses, volume, claim.
fn decide(
    view: &View,
    scope: ProjectId,
    request: &InstanceCreate,
    policy: &crate::scheduler::Policy,
    now: Timestamp,
) -> Result<(Draft, InstanceId), OpsError> {
    let mut draft = Draft::default();
    let id = InstanceId::new();
    let mut bodies = Vec::new();
    for (at, body) in request.bodies.iter().enumerate() {
        let (record, images) = resolve::body(view, scope, &format!("bodies[{at}]"), body)?;
        images.into_iter().for_each(|image| draft.guard(image));
        bodies.push(record);
    }
    let groups = security_groups(view, scope, &request.security_groups, &mut draft)?;
    let pinned = match &request.host {
        Some(text) => Some(resolve::host(view, "host", text)?.id),
        None => None,
    };
    let attached = existing_volume(view, scope, request.volume.as_ref())?;
    let new_gib = request.volume.as_ref().and_then(|v| v.size_gib).unwrap_or(0);
    let mut ports: Vec<PortRecord> = Vec::new();
    for (at, wanted) in request.networks.iter().enumerate() {
        let network = network_of(view, scope, &ports, wanted, at)?;
        let address = wanted.address.map(|a| vec![FixedIpWish { subnet: None, address: Some(a) }]);
        let wish = PortWish {
            instance: id,
            target: PortTarget::Network(network),
            fixed_ips: address,
            groups: &groups,
            egress_by_rule: false,
            field: format!("networks[{at}]"),
            now,
        };
        ports.push(ports::plan(view, scope, &wish, &mut draft)?);
    }
    let kinds: Vec<BodyKind> = bodies.iter().map(BodyRecord::kind).collect();
    let placement = place(
        &sights(view),
        &Request {
            vcpus: request.vcpus,
            memory_mib: request.memory_mib,
            volume_gib: new_gib,
            bodies: kinds.clone(),
            network: !ports.is_empty(),
            volume: request.volume.is_some(),
            pinned,
            volume_host: attached.map(|v| v.host),
            excluded: Vec::new(),
            ..Request::default()
        },
        policy,
    )?;
    let volume = match attached {
        Some(row) => {
            draft.update(row, &VolumeRecord { instance: Some(id), ..(*row.record).clone() });
            Some(row.id)
        }
        None if new_gib > 0 => {
            let record = new_volume(scope, request, new_gib, placement.host, id, now);
            draft.create(&record);
            Some(record.id)
        }
        None => None,
    };
    draft.claim(
        placement.host,
        Claims { vcpus: request.vcpus, memory_mib: request.memory_mib, volume_gib: new_gib, instances: 1 },
    );
    draft.create(&InstanceRecord {
        id,
        project: scope,
        name: request.name.clone(),
        vcpus: request.vcpus,
        memory_mib: request.memory_mib,
        bodies,
        ports: ports.iter().map(|p| p.id).collect(),
        security_groups: groups,
        volume,
        user_data: request.user_data.clone(),
        ssh_keys: request.ssh_keys.clone(),
        metadata: request.metadata.clone(),
        failover: request.failover,
        epoch: 1,
        host: Some(placement.host),
        body: kinds[placement.body],
        power: Power::On,
        restarts: 0,
        intent: Intent::Live,
        trash_volume: false,
        exchange: None,
        lost: Vec::new(),
        built: false,
        observed: None,
        created_at: now,
        updated_at: now,
    });
    Ok((draft, id))
}

fn security_groups(
    view: &View,
    scope: ProjectId,
    names: &[String],
    draft: &mut Draft,
) -> Result<Vec<SecurityGroupId>, OpsError> {
    let mut groups: Vec<SecurityGroupId> = Vec::new();
    for (at, text) in names.iter().enumerate() {
        let field = format!("security_groups[{at}]");
        let row = resolve::named(&view.groups, scope, &field, text)?;
        if row.closing {
            return Err(OpsError::field(field, format!("security group '{text}' is being deleted")));
        }
        draft.guard(row);
        if !groups.contains(&row.id) {
            groups.push(row.id);
        }
    }
    Ok(groups)
}

fn existing_volume<'a>(
    view: &'a View,
    scope: ProjectId,
    wanted: Option<&InstanceVolume>,
) -> Result<Option<&'a Row<VolumeRecord>>, OpsError> {
    let Some(id) = wanted.and_then(|v| v.id) else { return Ok(None) };
    let row = find(&view.volumes, scope, id)
        .map_err(|_| OpsError::field("volume.id", format!("no volume {id}")))?;
    if row.intent == Intent::Deleting || row.trashed_at.is_some() {
        return Err(OpsError::taken("volume.id", format!("volume {id} is in the recycle bin; restore it")));
    }
    if let Some(instance) = row.instance {
        return Err(OpsError::taken("volume.id", format!("volume {id} belongs to instance {instance}")));
    }
    Ok(Some(row))
}

fn new_volume(
    scope: ProjectId,
    request: &InstanceCreate,
    size_gib: u64,
    host: HostId,
    instance: InstanceId,
    now: Timestamp,
) -> VolumeRecord {
    let name = request.volume.as_ref().and_then(|v| v.name.clone());
    VolumeRecord {
        id: VolumeId::new(),
        project: scope,
        name: name.unwrap_or_else(|| request.name.clone()),
        size_gib,
        host,
        source: None,
        instance: Some(instance),
        made: false,
        trashed_at: None,
        intent: Intent::Live,
        snapshots: 0,
        observed: None,
        created_at: now,
    }
}

/// One port per network: the two bodies could not tell two of them apart alike.
fn network_of(
    view: &View,
    scope: ProjectId,
    earlier: &[PortRecord],
    wanted: &InstanceNetwork,
    at: usize,
) -> Result<NetworkId, OpsError> {
    let field = format!("networks[{at}].network");
    let network = networks::named(view, scope, &field, &wanted.network)?;
    if earlier.iter().any(|p| p.network == network.id) {
        return Err(OpsError::field(field, format!("network '{}' is named twice", network.name)));
    }
    Ok(network.id)
}

/// An instance as clients see it.
pub(super) fn instance_view(view: &View, record: &InstanceRecord) -> Instance {
    let ports = record.ports.iter().filter_map(|id| view.ports.get(*id));
    let addresses = ports.flat_map(|port| {
        let name = view.networks.get(port.network).map(|n| n.name.clone()).unwrap_or_default();
        port.addresses().map(move |address| InstanceAddress {
            port: port.id,
            network: port.network,
            network_name: name.clone(),
            mac: port.mac.clone(),
            address,
        })
    });
    let current = record.current();
    Instance {
        id: record.id,
        project: record.project,
        name: record.name.clone(),
        state: state_of(record, record.host.is_none_or(|host| view.host_up(host))),
        body: record.body,
        power: record.power,
        epoch: record.epoch,
        host: record.host,
        host_name: record.host.and_then(|host| view.host_name(host)),
        vcpus: record.vcpus,
        memory_mib: record.memory_mib,
        bodies: record.bodies.iter().map(|b| b.spec.clone()).collect(),
        addresses: addresses.collect(),
        security_groups: record.security_groups.clone(),
        volume: record.volume,
        members: current.map(|o| o.members.clone()).unwrap_or_default(),
        metadata: record.metadata.clone(),
        failover: record.failover,
        fault: current.and_then(|o| o.fault.clone()),
        lost: record.lost.clone(),
        created_at: record.created_at,
        updated_at: record.updated_at,
    }
}
