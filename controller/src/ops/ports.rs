//! Ports: made with an instance or alone, changed, deleted. An address and a MAC are keys of their own in the store,
//! written in the port's transaction: nobody gets one twice.

use super::addresses::{Asker, FixedIpWish, allocate};
use super::list::find;
use super::view::Row;
use super::{Draft, ListQuery, Ops, OpsError, Reach, View, groups, quotas};
use crate::model::network::{FixedIp, owner};
use crate::model::*;
use amphi_api::network::Port;
use amphi_api::resize::Bandwidth;
use amphi_api::{InstanceId, NetworkId, PortId, ProjectId, SecurityGroupId};
use jiff::Timestamp;

/// Most addresses of a port, and most of its address pairs.
pub const FIXED_IPS_MAX: usize = 16;
pub const PAIRS_MAX: usize = 64;

/// What an instance wants to be connected to.
#[derive(Clone, Debug)]
pub struct PortWish<'a> {
    pub instance: InstanceId,
    pub target: PortTarget,
    /// None: one address of each family.
    pub fixed_ips: Option<Vec<FixedIpWish>>,
    /// Of a new port.
    pub groups: &'a [SecurityGroupId],
    /// Of a new port: nothing goes out but by a rule.
    pub egress_by_rule: bool,
    /// Of a new port.
    pub bandwidth: Bandwidth,
    /// The connection's place in the request: `networks[0]`.
    pub field: String,
    pub now: Timestamp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortTarget {
    /// A new port on this network.
    Network(NetworkId),
    /// This port, which is nobody's yet; it stays when the instance goes.
    Port(PortId),
}

/// The port that an instance gets, written into the draft with the keys that keep its addresses from everybody else.
pub(super) fn plan(
    view: &View,
    scope: ProjectId,
    wish: &PortWish<'_>,
    draft: &mut Draft,
) -> Result<PortRecord, OpsError> {
    let mut port = match wish.target {
        PortTarget::Port(id) => {
            let field = format!("{}.port", wish.field);
            let row =
                find(&view.ports, scope, id).map_err(|_| OpsError::field(&field, format!("no port {id}")))?;
            if row.instance.is_some() || !row.device_id.is_empty() {
                return Err(OpsError::taken(field, format!("port {id} is in use")));
            }
            if row.fixed_ips.is_empty() {
                return Err(OpsError::field(field, format!("port {id} has no address")));
            }
            let mut port = (*row.record).clone();
            hold(&mut port, wish);
            draft.update(row, &port);
            return Ok(port);
        }
        PortTarget::Network(id) => {
            let place = format!("{}.network", wish.field);
            let network = Reach::of(scope)
                .network(view, id)
                .map_err(|_| OpsError::field(&place, format!("no network '{id}'")))?;
            if network.closing {
                return Err(OpsError::field(place, format!("network '{}' is being deleted", network.name)));
            }
            if network.external && !network.shared && network.project != scope {
                return Err(OpsError::field(place, format!("network '{}' is external", network.name)));
            }
            draft.guard(network);
            quotas::check(view, scope, &[(Resource::Ports, 1)])?;
            let (id, mac) = fresh_port(view, network.id);
            let mut port = PortRecord::new(id, scope, network.id, mac, wish.now);
            port.port_security = network.port_security;
            port.bandwidth = wish.bandwidth;
            let asker = Asker { mac: &port.mac, port: None, router: false, field: &wish.field };
            port.fixed_ips = allocate(view, network, wish.fixed_ips.as_deref(), &asker)?;
            if port.fixed_ips.is_empty() {
                return Err(OpsError::field(place, format!("network '{}' has no subnet", network.name)));
            }
            port
        }
    };
    hold(&mut port, wish);
    port.owned = true;
    port.egress_by_rule = wish.egress_by_rule;
    if port.port_security {
        port.security_groups = wish.groups.to_vec();
    }
    put_new(view, &port, draft);
    Ok(port)
}

fn hold(port: &mut PortRecord, wish: &PortWish<'_>) {
    port.instance = Some(wish.instance);
    port.device_id = wish.instance.to_string();
    port.device_owner = owner::INSTANCE.into();
}

/// A new port and its keys; its subnets must stay as they are.
pub(super) fn put_new(view: &View, port: &PortRecord, draft: &mut Draft) {
    draft.create(port);
    draft.reserve(NetworkRecord::mac_key(port.network, &port.mac), port.id);
    reserve_addresses(view, port.network, port.id, &port.fixed_ips, draft);
}

fn reserve_addresses(view: &View, network: NetworkId, port: PortId, ips: &[FixedIp], draft: &mut Draft) {
    for ip in ips {
        draft.reserve(NetworkRecord::address_key(network, ip.address), port);
        if let Some(subnet) = view.subnets.get(ip.subnet) {
            draft.guard(subnet);
        }
    }
}

/// The port goes, with its keys; floating IPs that stand for it stand for nothing any more.
pub(super) fn remove(view: &View, draft: &mut Draft, port: &Row<PortRecord>) {
    draft.delete(port);
    for address in port.addresses() {
        draft.release(NetworkRecord::address_key(port.network, address));
    }
    draft.release(NetworkRecord::mac_key(port.network, &port.mac));
    for floating in view.floating_ips_of(port.id) {
        let mut record = (*floating.record).clone();
        record.target = None;
        record.notes.updated_at = Some(Timestamp::now());
        draft.update(floating, &record);
    }
}

/// The instance lets go of a port: one that was made with it goes, another is nobody's again.
pub(super) fn release(view: &View, draft: &mut Draft, port: &Row<PortRecord>) {
    if port.owned {
        return remove(view, draft, port);
    }
    let mut record = (*port.record).clone();
    record.instance = None;
    record.device_id.clear();
    record.device_owner.clear();
    record.binding_host.clear();
    draft.update(port, &record);
}

/// An id whose MAC is free on the network. Three random bytes: another draw is needed about once in 16 million / ports.
pub(super) fn fresh_port(view: &View, network: NetworkId) -> (PortId, String) {
    loop {
        let id = PortId::new();
        let mac = mac_of(id);
        if !view.mac_taken(network, &mac) {
            return (id, mac);
        }
    }
}

/// What is asked of a port beside its plain fields.
#[derive(Clone, Debug, Default)]
pub struct PortChange {
    /// In place of all that it has.
    pub fixed_ips: Option<Vec<FixedIpWish>>,
    /// Lower case.
    pub mac: Option<String>,
    /// None at creation: the project's `default`.
    pub groups: Option<Vec<SecurityGroupId>>,
}

impl Ops {
    pub fn port(&self, scope: ProjectId, id: PortId) -> Result<Port, OpsError> {
        Ok(port_view(find(&self.world().read().ports, scope, id)?))
    }

    /// All of the project, or those of one instance.
    pub fn ports(
        &self,
        scope: ProjectId,
        instance: Option<InstanceId>,
        query: &ListQuery,
    ) -> Result<Vec<Port>, OpsError> {
        let view = self.world().read();
        let keep = |p: &PortRecord| instance.is_none_or(|id| p.instance == Some(id));
        let rows = query.rows(&view.ports, scope, keep)?;
        Ok(rows.into_iter().map(|row| port_view(row)).collect())
    }

    /// A port of the project's own use. `edit` sets the plain fields.
    pub async fn create_port(
        &self,
        reach: Reach,
        network: NetworkId,
        change: &PortChange,
        edit: impl Fn(&mut PortRecord) + Sync,
    ) -> Result<PortId, OpsError> {
        self.transact(|view| {
            let mut draft = Draft::default();
            let id = create(view, reach, network, change, &edit, &mut draft)?;
            Ok((draft, id))
        })
        .await
    }

    pub async fn update_port(
        &self,
        reach: Reach,
        id: PortId,
        change: &PortChange,
        edit: impl Fn(&mut PortRecord),
    ) -> Result<(), OpsError> {
        self.amend(
            reach,
            |view| &view.ports,
            id,
            |view, port, draft| {
                let network = view
                    .networks
                    .get(port.network)
                    .ok_or_else(|| OpsError::Internal(format!("port {id} is on no network")))?;
                edit(port);
                if let Some(groups) = &change.groups {
                    port.security_groups = groups::check(view, reach, groups, draft)?;
                }
                if let Some(mac) = change.mac.as_ref().filter(|mac| **mac != port.mac) {
                    if port.instance.is_some() {
                        return Err(OpsError::conflict(format!("port {id} is in use; its MAC stays")));
                    }
                    refuse_mac(view, port.network, mac)?;
                    draft.release(NetworkRecord::mac_key(port.network, &port.mac));
                    draft.reserve(NetworkRecord::mac_key(port.network, mac), id);
                    port.mac = mac.clone();
                }
                if let Some(wishes) = &change.fixed_ips {
                    let before = std::mem::take(&mut port.fixed_ips);
                    let wishes = kept(&before, wishes);
                    let asker = Asker {
                        mac: &port.mac,
                        port: Some(id),
                        router: port.router().is_some(),
                        field: "fixed_ips",
                    };
                    port.fixed_ips = allocate(view, network, Some(&wishes), &asker)?;
                    let has = |ips: &[FixedIp], ip: &FixedIp| ips.iter().any(|i| i.address == ip.address);
                    for gone in before.iter().filter(|ip| !has(&port.fixed_ips, ip)) {
                        draft.release(NetworkRecord::address_key(port.network, gone.address));
                    }
                    let new: Vec<FixedIp> =
                        port.fixed_ips.iter().filter(|ip| !has(&before, ip)).copied().collect();
                    reserve_addresses(view, port.network, id, &new, draft);
                    if port.instance.is_some() && port.fixed_ips.is_empty() {
                        return Err(OpsError::conflict(format!(
                            "port {id} is an instance's; it needs an address"
                        )));
                    }
                    refuse_lost_target(view, port)?;
                }
                check(view, reach, port, draft)
            },
        )
        .await
    }

    pub async fn delete_port(&self, reach: Reach, id: PortId) -> Result<(), OpsError> {
        self.transact(|view| {
            let row = reach.find(&view.ports, id)?;
            if row.is_of_network() && in_use(view, row) {
                return Err(OpsError::conflict(format!(
                    "port {id} cannot be deleted directly via the port API: has device owner {}",
                    row.device_owner
                )));
            }
            let mut draft = Draft::default();
            if let Some(instance) = row.instance.and_then(|id| view.instances.get(id)) {
                let mut record = (*instance.record).clone();
                record.ports.retain(|port| *port != id);
                draft.update(instance, &record);
            }
            remove(view, &mut draft, row);
            Ok((draft, ()))
        })
        .await
    }
}

/// Whether what a port of the cloud's own belongs to is still there.
fn in_use(view: &View, port: &PortRecord) -> bool {
    match port.device_owner.as_str() {
        owner::FLOATING_IP => port.device_id.parse().is_ok_and(|id| view.floating_ips.get(id).is_some()),
        _ => port.router().is_some_and(|id| view.routers.get(id).is_some()),
    }
}

fn create(
    view: &View,
    reach: Reach,
    network: NetworkId,
    change: &PortChange,
    edit: &(dyn Fn(&mut PortRecord) + Sync),
    draft: &mut Draft,
) -> Result<PortId, OpsError> {
    let network = reach.network(view, network)?;
    if network.closing {
        return Err(OpsError::conflict(format!("network {} is being deleted", network.id)));
    }
    draft.guard(network);
    quotas::check(view, reach.project, &[(Resource::Ports, 1)])?;
    let (id, mut mac) = fresh_port(view, network.id);
    if let Some(wanted) = &change.mac {
        refuse_mac(view, network.id, wanted)?;
        mac = wanted.clone();
    }
    let mut port = PortRecord::new(id, reach.project, network.id, mac, Timestamp::now());
    port.port_security = network.port_security;
    edit(&mut port);
    if change.fixed_ips.as_ref().is_some_and(|ips| ips.len() > FIXED_IPS_MAX) {
        return Err(OpsError::field("fixed_ips", format!("at most {FIXED_IPS_MAX} addresses")));
    }
    let router = port.device_owner == owner::ROUTER_INTERFACE;
    let asker = Asker { mac: &port.mac, port: None, router, field: "fixed_ips" };
    port.fixed_ips = allocate(view, network, change.fixed_ips.as_deref(), &asker)?;
    port.security_groups = match &change.groups {
        Some(groups) => groups::check(view, Reach { project: port.project, ..reach }, groups, draft)?,
        None if port.port_security && !port.is_of_network() => {
            vec![groups::default_of(view, port.project, draft)]
        }
        None => Vec::new(),
    };
    check(view, reach, &port, draft)?;
    put_new(view, &port, draft);
    Ok(id)
}

fn refuse_mac(view: &View, network: NetworkId, mac: &str) -> Result<(), OpsError> {
    if view.mac_taken(network, mac) {
        return Err(OpsError::taken("mac_address", format!("MAC {mac} is in use on network {network}")));
    }
    Ok(())
}

/// Wishes for any address of a subnet, turned into wishes for those that the port has there.
fn kept(before: &[FixedIp], wishes: &[FixedIpWish]) -> Vec<FixedIpWish> {
    let mut left: Vec<FixedIp> = before.to_vec();
    left.retain(|ip| wishes.iter().all(|w| w.address != Some(ip.address)));
    let keep = |wish: &FixedIpWish| {
        let at = left.iter().position(|ip| wish.address.is_none() && wish.subnet == Some(ip.subnet));
        match at {
            Some(at) => FixedIpWish { address: Some(left.remove(at).address), ..wish.clone() },
            None => wish.clone(),
        }
    };
    wishes.iter().map(keep).collect()
}

fn refuse_lost_target(view: &View, port: &PortRecord) -> Result<(), OpsError> {
    for floating in view.floating_ips_of(port.id) {
        if floating.target.is_some_and(|t| port.addresses().all(|a| a != t.address)) {
            return Err(OpsError::conflict(format!(
                "floating IP {} stands for an address that the port would lose",
                floating.address
            )));
        }
    }
    Ok(())
}

/// What a port may be, whoever made it so.
fn check(view: &View, reach: Reach, port: &PortRecord, draft: &mut Draft) -> Result<(), OpsError> {
    if port.allowed_pairs.len() > PAIRS_MAX {
        return Err(OpsError::field("allowed_address_pairs", format!("at most {PAIRS_MAX} pairs")));
    }
    for (at, pair) in port.allowed_pairs.iter().enumerate() {
        if port.allowed_pairs[..at].contains(pair) {
            return Err(OpsError::field("allowed_address_pairs", "one pair stands there twice"));
        }
    }
    if !port.port_security && !port.security_groups.is_empty() {
        return Err(OpsError::conflict("a port without port security cannot have security groups"));
    }
    if !port.port_security && !port.allowed_pairs.is_empty() {
        return Err(OpsError::conflict("a port without port security cannot have address pairs"));
    }
    if let Some(policy) = port.qos {
        draft.guard(reach.policy(view, policy)?);
    }
    Ok(())
}

fn port_view(record: &PortRecord) -> Port {
    Port {
        id: record.id,
        network: record.network,
        instance: record.instance,
        mac: record.mac.clone(),
        address: record.address(),
        further_addresses: record.addresses().skip(1).collect(),
        security_groups: record.security_groups.clone(),
    }
}
