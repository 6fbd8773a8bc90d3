//! Network interfaces and security groups of an instance that exists.

use super::attach::leave;
use super::journal::note;
use super::{NicWish, Origin, allowed, unlocked};
use crate::model::*;
use crate::ops::{Draft, FixedIpWish, Ops, OpsError, PortTarget, PortWish, View, groups, ports, resolve};
use amphi_api::{InstanceId, PortId, SecurityGroupId};
use jiff::Timestamp;

const STATES: &[VmState] = &[VmState::Active, VmState::Paused, VmState::Stopped];
/// Most ports of one instance.
const PORTS_MAX: usize = 8;

impl Ops {
    pub async fn attach_interface(
        &self,
        origin: &Origin,
        id: InstanceId,
        wish: &NicWish,
    ) -> Result<PortId, OpsError> {
        self.transact(|view| attach(view, origin, id, wish, Timestamp::now())).await
    }

    pub async fn detach_interface(
        &self,
        origin: &Origin,
        id: InstanceId,
        port: PortId,
    ) -> Result<(), OpsError> {
        self.transact(|view| Ok((detach(view, origin, id, port, Timestamp::now())?, ()))).await
    }

    /// A security group on, or off, all ports of the instance. By name or id.
    pub async fn server_security_group(
        &self,
        origin: &Origin,
        id: InstanceId,
        group: &str,
        on: bool,
    ) -> Result<(), OpsError> {
        self.transact(|view| Ok((regroup(view, origin, id, group, on, Timestamp::now())?, ()))).await
    }
}

fn attach(
    view: &View,
    origin: &Origin,
    id: InstanceId,
    wish: &NicWish,
    now: Timestamp,
) -> Result<(Draft, PortId), OpsError> {
    let row = allowed(view, origin, id, "attach_interface", STATES, now)?;
    if row.ports.len() + row.leaving.len() >= PORTS_MAX {
        return Err(OpsError::conflict(format!("an instance has at most {PORTS_MAX} ports")));
    }
    let mut draft = Draft::default();
    let here = |network| {
        let mut held = row.ports.iter().filter_map(|id| view.ports.get(*id));
        held.any(|p| p.network == network)
    };
    let target = match (wish.port, wish.network) {
        (Some(port), _) => PortTarget::Port(port),
        (None, Some(network)) => PortTarget::Network(network),
        // As nova: the one that it is not on yet.
        (None, None) => {
            let mut own = view.networks.of_project(row.project).filter(|n| !n.closing && !here(n.id));
            match (own.next(), own.next()) {
                (Some(one), None) => PortTarget::Network(one.id),
                (None, _) => return Err(OpsError::field("net_id", "no network is left to attach to")),
                (Some(_), Some(_)) => {
                    return Err(OpsError::conflict(
                        "Multiple possible networks found, use a Network ID to be more specific.",
                    ));
                }
            }
        }
    };
    let groups = if row.security_groups.is_empty() {
        vec![groups::default_of(view, row.project, &mut draft)]
    } else {
        row.security_groups.clone()
    };
    let wanted = wish.fixed_ip.map(|address| vec![FixedIpWish { subnet: None, address: Some(address) }]);
    let asked = PortWish {
        instance: id,
        target,
        fixed_ips: wanted,
        groups: &groups,
        egress_by_rule: row.server.flavor.is_some(),
        bandwidth: Default::default(),
        field: "interfaceAttachment".into(),
        now,
    };
    let port = ports::plan(view, row.project, &asked, &mut draft)?;
    if here(port.network) {
        return Err(OpsError::conflict("the instance is on this network already"));
    }
    let mut record = (*row.record).clone();
    record.ports.push(port.id);
    if let Some(tag) = &wish.tag {
        record.server.port_tags.insert(port.id, tag.clone());
    }
    record.updated_at = now;
    draft.update(row, &record);
    note(&mut draft, origin, &record, "attach_interface", "compute_attach_interface", now);
    Ok((draft, port.id))
}

fn detach(
    view: &View,
    origin: &Origin,
    id: InstanceId,
    port: PortId,
    now: Timestamp,
) -> Result<Draft, OpsError> {
    let row = crate::ops::list::find(&view.instances, origin.project, id)?;
    if !row.ports.contains(&port) {
        return Err(OpsError::not_found::<PortRecord>(port));
    }
    let row = allowed(view, origin, id, "detach_interface", STATES, now)?;
    let mut draft = Draft::default();
    let mut record = (*row.record).clone();
    record.ports.retain(|p| *p != port);
    record.server.port_tags.remove(&port);
    leave(view, &mut draft, &mut record, Leaving::Port(port));
    record.updated_at = now;
    draft.update(row, &record);
    note(&mut draft, origin, &record, "detach_interface", "compute_detach_interface", now);
    Ok(draft)
}

fn regroup(
    view: &View,
    origin: &Origin,
    id: InstanceId,
    group: &str,
    on: bool,
    now: Timestamp,
) -> Result<Draft, OpsError> {
    let row = unlocked(view, origin, id)?;
    let found = resolve::named(&view.groups, row.project, "name", group)
        .map_err(|_| OpsError::NotFound { noun: "security group", id: group.to_owned() })?;
    let mut draft = Draft::default();
    draft.guard(found);
    let change = |groups: &mut Vec<SecurityGroupId>| {
        let had = groups.contains(&found.id);
        if on && !had {
            groups.push(found.id);
        } else if !on {
            groups.retain(|g| *g != found.id);
        }
        had
    };
    let mut record = (*row.record).clone();
    let mut had = change(&mut record.security_groups);
    for port in row.ports.iter().filter_map(|id| view.ports.get(*id)).filter(|p| p.port_security) {
        let mut changed = (*port.record).clone();
        had |= change(&mut changed.security_groups);
        if changed != *port.record {
            draft.update(port, &changed);
        }
    }
    if !on && !had {
        return Err(OpsError::NotFound { noun: "security group of the instance", id: group.to_owned() });
    }
    record.updated_at = now;
    draft.update(row, &record);
    Ok(draft)
}
