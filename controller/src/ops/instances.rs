//! Instances: create, list, show. What is ordered of one that exists is in `orders`.

use super::list::find;
use super::servers::Origin;
use super::servers::create::{NicPlan, NoRoomIs, Plan, VolumePlan, VolumeStart, launch};
use super::view::Row;
use super::{Draft, FixedIpWish, ListQuery, Ops, OpsError, PortTarget, View, networks, resolve};
use crate::model::*;
use crate::scheduler::Request;
use amphi_api::instance::{BodySpec, Instance, InstanceAddress, InstanceCreate, InstanceVolume};
use amphi_api::resize::Condition;
use amphi_api::unread::NEEDS_NEWER_AGENT;
use amphi_api::wire::BodyState;
use amphi_api::{InstanceId, ProjectId, SecurityGroupId};
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
                let mut draft = Draft::default();
                let asked = Request::default();
                let place = None;
                let id =
                    plan(view, scope, request, self.policy(), (asked, place), Timestamp::now(), &mut draft)?;
                Ok((draft, id))
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

/// The native order as a plan, and its launch. What placement is asked beside what the request says, and of which scaling
/// group it is.
pub(super) fn plan(
    view: &View,
    scope: ProjectId,
    request: &InstanceCreate,
    policy: &crate::scheduler::Policy,
    (asked, scaling): (Request, Option<ScalingPlace>),
    now: Timestamp,
    draft: &mut Draft,
) -> Result<InstanceId, OpsError> {
    let mut bodies = Vec::new();
    for (at, body) in request.bodies.iter().enumerate() {
        let (record, images) = resolve::body(view, scope, &format!("bodies[{at}]"), body)?;
        images.into_iter().for_each(|image| draft.guard(image));
        bodies.push(record);
    }
    let groups = security_groups(view, scope, &request.security_groups, draft)?;
    let pinned = match &request.host {
        Some(text) => Some(resolve::host(view, "host", text)?.id),
        None => None,
    };
    let attached = existing_volume(view, scope, request.volume.as_ref())?;
    let own = request.volume.as_ref().map(|wanted| VolumePlan {
        start: match attached {
            Some(row) => VolumeStart::There(row.id),
            None => VolumeStart::Blank(wanted.size_gib.unwrap_or(0)),
        },
        name: wanted.name.clone().unwrap_or_else(|| request.name.clone()),
        delete_on_termination: false,
        device: None,
        tag: None,
    });
    let mut nics = Vec::new();
    for (at, wanted) in request.networks.iter().enumerate() {
        let field = format!("networks[{at}]");
        let network = networks::named(view, scope, &format!("{field}.network"), &wanted.network)?.id;
        let fixed_ips = wanted.address.map(|a| vec![FixedIpWish { subnet: None, address: Some(a) }]);
        if let Some(port) = wanted.port.and_then(|id| view.ports.get(id))
            && port.network != network
        {
            let why = format!("port {} is not on network '{}'", port.id, wanted.network);
            return Err(OpsError::field(format!("{field}.port"), why));
        }
        nics.push(NicPlan {
            target: wanted.port.map_or(PortTarget::Network(network), PortTarget::Port),
            fixed_ips,
            tag: None,
            bandwidth: wanted.bandwidth,
            field,
        });
    }
    let asked_at = |body: &BodySpec| matches!(body, BodySpec::Vm(vm) if !vm.probes.is_default());
    if let Some(at) = request.bodies.iter().position(asked_at) {
        let v4 = |nic: &NicPlan| match nic.target {
            PortTarget::Network(id) => view.subnets_of(id).any(|subnet| subnet.is_v4()),
            PortTarget::Port(_) => true,
        };
        if !nics.iter().any(v4) {
            let why = "a VM is asked at its first IPv4 address, and none of its networks has IPv4";
            return Err(OpsError::field(format!("bodies[{at}].vm.probes"), why));
        }
    }
    let plan = Plan {
        project: scope,
        name: request.name.clone(),
        vcpus: request.vcpus,
        memory_mib: request.memory_mib,
        bodies,
        nics,
        groups,
        egress_by_rule: false,
        own,
        root: None,
        further: Vec::new(),
        user_data: request.user_data.clone(),
        ssh_keys: request.ssh_keys.clone(),
        metadata: request.metadata.clone(),
        failover: request.failover,
        failover_terms: request.failover_terms,
        asked: Request { pinned, ..asked },
        server: ServerTraits {
            qos: request.qos,
            scheduler: request.scheduler.clone(),
            scaling,
            ..ServerTraits::default()
        },
        no_room: NoRoomIs::Refused,
    };
    launch(view, &Origin::native(scope), plan, policy, now, draft)
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

/// What is ordered of the body and the host's agent does not know.
fn passed_over(view: &View, record: &InstanceRecord) -> Option<Condition> {
    let spec = record.host.and_then(|id| view.hosts.get(id))?.spec.as_ref()?;
    let BodySpec::Vm(vm) = &record.body_of(record.body)?.spec else { return None };
    (!vm.probes.is_default() && spec.wire < 1).then(|| {
        let why = format!(
            "the agent of {} does not know a VM's probes: nobody asks it; upgrade the agent",
            spec.name
        );
        Condition::new(NEEDS_NEWER_AGENT, why)
    })
}

fn is_alive(state: BodyState) -> bool {
    !matches!(state, BodyState::Stopped | BodyState::Absent)
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
            bandwidth: port.bandwidth,
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
        agent: current.and_then(|o| o.agent.clone()),
        ready: current.and_then(|o| o.ready),
        reason: current.and_then(|o| o.reason.clone()),
        metadata: record.metadata.clone(),
        failover: record.failover,
        qos: record.server.qos,
        failover_terms: record.failover_terms,
        twin: super::twins::told(view, record),
        fault: fault_of(record, record.host.and_then(|id| view.hosts.get(id)).map(|row| &*row.record)),
        resizing: current.is_some_and(|o| is_alive(o.state) && o.size.resizes < record.resizes),
        conditions: current
            .map(|o| o.size.conditions.clone())
            .unwrap_or_default()
            .into_iter()
            .chain(passed_over(view, record))
            .collect(),
        lost: record.lost.clone(),
        created_at: record.created_at,
        updated_at: record.updated_at,
    }
}
