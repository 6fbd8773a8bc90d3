//! Floating IPs: taken of an external network, made to stand for a port's address, let go.

use super::addresses::{Asker, FixedIpWish, allocate};
use super::ports::{fresh_port, put_new, remove};
use super::routers::{NOBODY, between};
use super::{Draft, Ops, OpsError, Reach, View, quotas};
use crate::model::network::{Target, owner};
use crate::model::{FloatingIpRecord, NetworkRecord, PortRecord, Resource};
use amphi_api::{FloatingIpId, NetworkId, PortId, SubnetId};
use jiff::Timestamp;
use std::net::IpAddr;

/// The port that a floating IP is to stand for; no address: its first of IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TargetWish {
    pub port: PortId,
    pub address: Option<IpAddr>,
}

/// A floating IP that is asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct FloatingIpWish {
    pub network: NetworkId,
    pub subnet: Option<SubnetId>,
    pub address: Option<IpAddr>,
    pub target: Option<TargetWish>,
    pub description: String,
}

impl Ops {
    pub async fn create_floating_ip(
        &self,
        reach: Reach,
        wish: &FloatingIpWish,
    ) -> Result<FloatingIpId, OpsError> {
        self.transact(|view| {
            let mut draft = Draft::default();
            let now = Timestamp::now();
            quotas::check(view, reach.project, &[(Resource::FloatingIps, 1)])?;
            let network = view
                .networks
                .get(wish.network)
                .filter(|n| n.external || n.shared || reach.owns(&*n.record))
                .ok_or_else(|| OpsError::not_found::<NetworkRecord>(wish.network))?;
            if !network.external {
                return Err(OpsError::field(
                    "floating_network_id",
                    format!("network {} is not a valid external network", network.id),
                ));
            }
            if network.closing {
                return Err(OpsError::conflict(format!("network {} is being deleted", network.id)));
            }
            draft.guard(network);
            let id = FloatingIpId::new();
            let (port_id, mac) = fresh_port(view, network.id);
            let mut holder = PortRecord::new(port_id, NOBODY, network.id, mac, now);
            holder.device_id = id.to_string();
            holder.device_owner = owner::FLOATING_IP.into();
            let asker = Asker { mac: &holder.mac, port: None, router: false, field: "floating_ip_address" };
            let wishes = match (wish.subnet, wish.address) {
                (None, None) => vec![first_v4(view, network)?],
                (subnet, address) => vec![FixedIpWish { subnet, address }],
            };
            holder.fixed_ips = allocate(view, network, Some(&wishes), &asker)?;
            let Some(address) = holder.address().filter(IpAddr::is_ipv4) else {
                return Err(OpsError::field("floating_network_id", "has no IPv4 subnet"));
            };
            put_new(view, &holder, &mut draft);
            let mut record = FloatingIpRecord {
                id,
                project: reach.project,
                network: network.id,
                address,
                holder: port_id,
                target: None,
                notes: Default::default(),
                created_at: now,
            };
            record.notes.description = wish.description.clone();
            if let Some(target) = wish.target {
                record.target = Some(aim(view, reach, &record, target, &mut draft)?);
            }
            draft.create(&record);
            Ok((draft, id))
        })
        .await
    }

    /// `target`: none leaves it, none within lets go.
    pub async fn update_floating_ip(
        &self,
        reach: Reach,
        id: FloatingIpId,
        target: Option<Option<TargetWish>>,
        edit: impl Fn(&mut FloatingIpRecord),
    ) -> Result<(), OpsError> {
        let edited = |view: &View, ip: &mut FloatingIpRecord, draft: &mut Draft| {
            edit(ip);
            match target {
                None => {}
                Some(None) => ip.target = None,
                Some(Some(wish)) => ip.target = Some(aim(view, reach, ip, wish, draft)?),
            }
            Ok(())
        };
        self.amend(reach, |view| &view.floating_ips, id, edited).await
    }

    pub async fn delete_floating_ip(&self, reach: Reach, id: FloatingIpId) -> Result<(), OpsError> {
        self.transact(|view| {
            let row = reach.find(&view.floating_ips, id)?;
            let mut draft = Draft::default();
            if let Some(holder) = view.ports.get(row.holder) {
                remove(view, &mut draft, holder);
            }
            draft.delete(row);
            Ok((draft, ()))
        })
        .await
    }
}

/// Any address of the network's first IPv4 subnet with a free one.
fn first_v4(view: &View, network: &NetworkRecord) -> Result<FixedIpWish, OpsError> {
    let mut subnets = view.subnets_of(network.id).filter(|s| s.is_v4() && !s.closing);
    match (subnets.next(), subnets.next()) {
        (None, _) => Err(OpsError::field("floating_network_id", "has no IPv4 subnet")),
        // One of several: let the allocation look through them.
        (Some(_), Some(_)) => Ok(FixedIpWish::default()),
        (Some(one), None) => Ok(FixedIpWish { subnet: Some(one.id), address: None }),
    }
}

/// The target, which must be reached over a router and have no other floating IP of that network.
fn aim(
    view: &View,
    reach: Reach,
    ip: &FloatingIpRecord,
    wish: TargetWish,
    draft: &mut Draft,
) -> Result<Target, OpsError> {
    let port = reach.find(&view.ports, wish.port)?;
    let mut v4 = port.fixed_ips.iter().filter(|fixed| fixed.address.is_ipv4());
    let fixed = match wish.address {
        Some(address) => v4.find(|fixed| fixed.address == address),
        None => v4.next(),
    };
    let fixed = fixed.ok_or_else(|| {
        OpsError::field("fixed_ip_address", format!("port {} does not have this fixed IPv4 address", port.id))
    })?;
    let router = between(view, port, fixed.subnet, ip.network).ok_or_else(|| OpsError::NotFound {
        noun: "external gateway for floating IP of subnet",
        id: fixed.subnet.to_string(),
    })?;
    let other = |other: &&super::Row<FloatingIpRecord>| {
        other.id != ip.id
            && other.network == ip.network
            && other.target.is_some_and(|t| t.address == fixed.address)
    };
    if let Some(other) = view.floating_ips_of(port.id).find(other) {
        return Err(OpsError::conflict(format!(
            "cannot associate floating IP {} with port {}: fixed IP {} already has floating IP {}",
            ip.address, port.id, fixed.address, other.address
        )));
    }
    draft.guard(port);
    if let Some(row) = view.routers.get(router) {
        // Whoever parts the router at the same time must look again.
        draft.touch(row);
    }
    Ok(Target { port: port.id, address: fixed.address, router })
}
