//! Subnets: made within a network, changed, deleted. Two subnets of a network never overlap.

use super::{Draft, Ops, OpsError, Reach, View, quotas};
use crate::model::network::{Notes, Pool, default_pools, legacy, owner};
use crate::model::{NetworkRecord, Resource, SubnetRecord};
use amphi_api::SubnetId;
use amphi_api::network::SubnetSpec;
use ipnet::IpNet;
use std::net::IpAddr;

/// Most name servers, host routes and pools of a subnet; neutron's defaults are 5, 20 and none.
pub const DNS_MAX: usize = 8;
pub const ROUTES_MAX: usize = 20;
pub const POOLS_MAX: usize = 64;

/// The subnet of the native face's one-subnet network.
pub(super) fn of_spec(network: &NetworkRecord, spec: &SubnetSpec) -> SubnetRecord {
    let gateway = Some(spec.effective_gateway());
    SubnetRecord {
        id: legacy::subnet_of(network.id),
        dns: spec.dns.clone(),
        dhcp: spec.dhcp,
        ..SubnetRecord::new(network, String::new(), spec.cidr.trunc(), gateway)
    }
}

impl SubnetRecord {
    /// With all of its addresses in pools.
    pub fn new(network: &NetworkRecord, name: String, cidr: IpNet, gateway: Option<IpAddr>) -> Self {
        Self {
            id: SubnetId::new(),
            project: network.project,
            network: network.id,
            name,
            cidr,
            gateway,
            pools: default_pools(cidr, gateway),
            dns: Vec::new(),
            routes: Vec::new(),
            dhcp: true,
            ra_mode: None,
            address_mode: None,
            closing: false,
            notes: Notes::default(),
            created_at: jiff::Timestamp::now(),
        }
    }
}

impl Ops {
    /// Subnets as they are given, all or none.
    pub async fn put_subnets(&self, reach: Reach, records: &[SubnetRecord]) -> Result<(), OpsError> {
        self.transact(|view| {
            let mut draft = Draft::default();
            if let Some(first) = records.first() {
                quotas::check(view, first.project, &[(Resource::Subnets, records.len() as u64)])?;
            }
            for (at, record) in records.iter().enumerate() {
                let network = reach.find(&view.networks, record.network)?;
                if network.closing {
                    return Err(OpsError::conflict(format!("network {} is being deleted", network.id)));
                }
                check(record)?;
                let present = view.subnets_of(network.id).map(|row| &*row.record);
                let beside = records[..at].iter().filter(|s| s.network == record.network);
                refuse_overlap(record, present.chain(beside))?;
                if !record.is_v4() && network.mtu < 1280 {
                    return Err(OpsError::conflict("IPv6 needs an MTU of 1280 bytes at least"));
                }
                draft.create(record);
            }
            let mut networks: Vec<_> = records.iter().map(|r| r.network).collect();
            networks.sort();
            networks.dedup();
            // Whoever makes another subnet at the same time must look again.
            for row in networks.into_iter().filter_map(|id| view.networks.get(id)) {
                draft.touch(row);
            }
            Ok((draft, ()))
        })
        .await
    }

    pub async fn update_subnet(
        &self,
        reach: Reach,
        id: SubnetId,
        edit: impl Fn(&mut SubnetRecord),
    ) -> Result<(), OpsError> {
        let edited = |view: &View, subnet: &mut SubnetRecord, _: &mut Draft| {
            let before = subnet.clone();
            edit(subnet);
            check(subnet)?;
            if before.gateway != subnet.gateway
                && let Some(gateway) = before.gateway
            {
                let taken = view.addresses(subnet.network).and_then(|book| book.port_at(gateway));
                let router = taken.and_then(|p| view.ports.get(p)).filter(|p| p.router().is_some());
                if let Some(port) = router {
                    return Err(OpsError::conflict(format!(
                        "gateway {gateway} is in use by port {}: a router has it",
                        port.id
                    )));
                }
            }
            Ok(())
        };
        self.amend(reach, |view| &view.subnets, id, edited).await
    }

    pub async fn delete_subnet(&self, reach: Reach, id: SubnetId) -> Result<(), OpsError> {
        self.transact(|view| {
            let row = reach.find(&view.subnets, id)?;
            refuse_used(view, row)?;
            let mut draft = Draft::default();
            if !row.closing {
                draft.update(row, &SubnetRecord { closing: true, ..(*row.record).clone() });
            }
            Ok((draft, ()))
        })
        .await?;
        self.transact(|view| {
            let row = reach.find(&view.subnets, id)?;
            let mut draft = Draft::default();
            let used = refuse_used(view, row);
            match &used {
                Ok(()) => {
                    draft.delete(row);
                    for port in view.ports_on(row.network) {
                        if port.fixed_ips.iter().any(|ip| ip.subnet == id) {
                            let mut record = (*port.record).clone();
                            for ip in record.fixed_ips.iter().filter(|ip| ip.subnet == id) {
                                draft.release(NetworkRecord::address_key(row.network, ip.address));
                            }
                            record.fixed_ips.retain(|ip| ip.subnet != id);
                            draft.update(port, &record);
                        }
                    }
                }
                Err(_) => draft.update(row, &SubnetRecord { closing: false, ..(*row.record).clone() }),
            }
            Ok((draft, used))
        })
        .await?
    }
}

/// An address that hosts make themselves goes with its subnet; any other keeps it.
fn refuse_used(view: &View, subnet: &SubnetRecord) -> Result<(), OpsError> {
    let uses =
        |p: &&super::Row<crate::model::PortRecord>| p.fixed_ips.iter().any(|ip| ip.subnet == subnet.id);
    let users = view.ports_on(subnet.network).filter(uses);
    let keeps = |p: &&super::Row<crate::model::PortRecord>| {
        !subnet.self_addressed() || p.device_owner == owner::ROUTER_INTERFACE || p.instance.is_some()
    };
    match users.filter(keeps).map(|p| p.id.to_string()).collect::<Vec<_>>().as_slice() {
        [] => Ok(()),
        ports => Err(OpsError::conflict(format!(
            "unable to complete operation on subnet {}: one or more ports have an IP allocation from this subnet: {}",
            subnet.id,
            ports.join(", ")
        ))),
    }
}

fn refuse_overlap<'a>(
    record: &SubnetRecord,
    mut others: impl Iterator<Item = &'a SubnetRecord>,
) -> Result<(), OpsError> {
    let overlaps = |o: &&SubnetRecord| record.cidr.contains(&o.cidr) || o.cidr.contains(&record.cidr);
    match others.find(overlaps) {
        None => Ok(()),
        Some(other) => Err(OpsError::field(
            "cidr",
            format!(
                "requested subnet with cidr {} overlaps with another subnet: {} of {}",
                record.cidr, other.cidr, other.id
            ),
        )),
    }
}

/// All that can be known without other records.
fn check(subnet: &SubnetRecord) -> Result<(), OpsError> {
    let cidr = subnet.cidr;
    if cidr != cidr.trunc() {
        return Err(OpsError::field("cidr", format!("has host bits set; did you mean {}?", cidr.trunc())));
    }
    let odd =
        |a: IpAddr| a.is_multicast() || a.is_loopback() || (a.is_unspecified() && cidr.prefix_len() == 0);
    if odd(cidr.addr()) {
        return Err(OpsError::field("cidr", "must be a network of unicast addresses"));
    }
    if !subnet.is_v4()
        && cidr.prefix_len() != 64
        && (subnet.self_addressed() || subnet.ra_mode.as_deref() == Some("slaac"))
    {
        return Err(OpsError::field(
            "cidr",
            "hosts make their own addresses with a prefix length of 64 only",
        ));
    }
    if subnet.is_v4() && (subnet.ra_mode.is_some() || subnet.address_mode.is_some()) {
        return Err(OpsError::field("ipv6_ra_mode", "goes with IPv6 only"));
    }
    if let (Some(ra), Some(address)) = (&subnet.ra_mode, &subnet.address_mode)
        && ra != address
    {
        return Err(OpsError::field(
            "ipv6_address_mode",
            format!("ipv6_ra_mode '{ra}' with ipv6_address_mode '{address}' is not possible"),
        ));
    }
    if !subnet.dhcp && (subnet.ra_mode.is_some() || subnet.address_mode.is_some()) {
        return Err(OpsError::field("ipv6_ra_mode", "needs enable_dhcp"));
    }
    if let Some(gateway) = subnet.gateway {
        if gateway.is_ipv4() != subnet.is_v4() {
            return Err(OpsError::field("gateway_ip", format!("{gateway} is not of the family of {cidr}")));
        }
        let edge = subnet.is_v4()
            && cidr.prefix_len() < 31
            && (gateway == cidr.network() || gateway == cidr.broadcast());
        if edge {
            return Err(OpsError::field("gateway_ip", format!("{gateway} is no host address of {cidr}")));
        }
        if let Some(pool) = subnet.pools.iter().find(|p| p.contains(gateway)) {
            return Err(OpsError::taken(
                "gateway_ip",
                format!("gateway {gateway} conflicts with allocation pool {}-{}", pool.start, pool.end),
            ));
        }
    }
    check_pools(cidr, &subnet.pools)?;
    for (at, server) in subnet.dns.iter().enumerate() {
        if server.is_ipv4() != subnet.is_v4() {
            return Err(OpsError::field(
                "dns_nameservers",
                format!("{server} is not of the family of {cidr}"),
            ));
        }
        if subnet.dns[..at].contains(server) {
            return Err(OpsError::field("dns_nameservers", format!("{server} stands there twice")));
        }
    }
    if subnet.dns.len() > DNS_MAX {
        return Err(OpsError::field("dns_nameservers", format!("at most {DNS_MAX} name servers")));
    }
    if subnet.routes.len() > ROUTES_MAX {
        return Err(OpsError::field("host_routes", format!("at most {ROUTES_MAX} routes")));
    }
    for route in &subnet.routes {
        let v4 = matches!(route.destination, IpNet::V4(_));
        if v4 != subnet.is_v4() || route.nexthop.is_ipv4() != subnet.is_v4() {
            return Err(OpsError::field("host_routes", "is not of the subnet's family"));
        }
    }
    Ok(())
}

fn check_pools(cidr: IpNet, pools: &[Pool]) -> Result<(), OpsError> {
    if pools.len() > POOLS_MAX {
        return Err(OpsError::field("allocation_pools", format!("at most {POOLS_MAX} pools")));
    }
    for (at, pool) in pools.iter().enumerate() {
        let inside = cidr.contains(&pool.start) && cidr.contains(&pool.end);
        if !inside || pool.is_empty() {
            return Err(OpsError::field(
                "allocation_pools",
                format!("the pool {}-{} does not lie within {cidr}", pool.start, pool.end),
            ));
        }
        if let Some(other) = pools[..at].iter().find(|other| other.overlaps(pool)) {
            return Err(OpsError::taken(
                "allocation_pools",
                format!("{}-{} overlaps with {}-{}", pool.start, pool.end, other.start, other.end),
            ));
        }
    }
    Ok(())
}
