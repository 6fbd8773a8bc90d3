//! Routers: made, changed, joined to subnets, given a way out, deleted. A router's legs are ports; whoever changes
//! what a router is joined to writes its record again, so that two who do so at once look at each other's work.

use super::addresses::{Asker, FixedIpWish, allocate};
use super::ports::{fresh_port, put_new, remove};
use super::view::Row;
use super::{Draft, Ops, OpsError, Reach, View, quotas};
use crate::model::network::{FixedIp, Gateway, HostRoute, owner};
use crate::model::{NetworkRecord, PortRecord, Resource, RouterRecord, SubnetRecord};
use amphi_api::{NetworkId, PortId, ProjectId, RouterId, SubnetId};
use jiff::Timestamp;
use uuid::Uuid;

/// Most extra routes of a router: neutron's default.
pub const ROUTES_MAX: usize = 30;

/// Ports that belong to no project.
pub const NOBODY: ProjectId = ProjectId(Uuid::nil());

/// The way out that is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayWish {
    pub network: NetworkId,
    /// None: as it is, or on.
    pub snat: Option<bool>,
    pub fixed_ips: Option<Vec<FixedIpWish>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leg {
    /// A new port with the subnet's gateway address.
    Subnet(SubnetId),
    /// This port, which is nobody's yet.
    Port(PortId),
    /// This port, which must be on this subnet.
    Both(PortId, SubnetId),
}

/// What was joined or parted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LegTaken {
    pub port: PortId,
    pub network: NetworkId,
    pub subnets: Vec<SubnetId>,
    pub project: ProjectId,
}

/// The parts of a change that are more than plain fields; none: leave it.
#[derive(Clone, Debug, Default)]
pub struct RouterChange {
    pub gateway: Option<Option<GatewayWish>>,
    pub routes: Option<Vec<HostRoute>>,
}

impl RouterRecord {
    pub fn new(project: ProjectId, name: String, now: Timestamp) -> Self {
        Self {
            id: RouterId::new(),
            project,
            name,
            admin_up: true,
            gateway: None,
            routes: Vec::new(),
            notes: Default::default(),
            created_at: now,
        }
    }
}

impl Ops {
    /// A router as it is given, with its way out.
    pub async fn put_router(
        &self,
        reach: Reach,
        record: &RouterRecord,
        change: &RouterChange,
    ) -> Result<(), OpsError> {
        self.transact(|view| {
            let mut draft = Draft::default();
            let mut record = record.clone();
            quotas::check(view, record.project, &[(Resource::Routers, 1)])?;
            apply(view, reach, &mut record, change, &mut draft)?;
            draft.create(&record);
            Ok((draft, ()))
        })
        .await
    }

    pub async fn update_router(
        &self,
        reach: Reach,
        id: RouterId,
        change: &RouterChange,
        edit: impl Fn(&mut RouterRecord),
    ) -> Result<(), OpsError> {
        let edited = |view: &View, router: &mut RouterRecord, draft: &mut Draft| {
            edit(router);
            apply(view, reach, router, change, draft)
        };
        self.amend(reach, |view| &view.routers, id, edited).await
    }

    pub async fn delete_router(&self, reach: Reach, id: RouterId) -> Result<(), OpsError> {
        self.transact(|view| {
            let row = reach.find(&view.routers, id)?;
            if legs(view, id).any(|port| port.device_owner == owner::ROUTER_INTERFACE) {
                return Err(OpsError::conflict(format!("router {id} still has ports")));
            }
            refuse_translating(view, id, |_| true)?;
            let mut draft = Draft::default();
            if let Some(port) = row.gateway.as_ref().and_then(|g| view.ports.get(g.port)) {
                remove(view, &mut draft, port);
            }
            draft.delete(row);
            Ok((draft, ()))
        })
        .await
    }

    pub async fn add_leg(&self, reach: Reach, id: RouterId, leg: Leg) -> Result<LegTaken, OpsError> {
        self.transact(|view| {
            let row = reach.find(&view.routers, id)?;
            let mut draft = Draft::default();
            let port = match leg {
                Leg::Subnet(subnet) => new_leg(view, reach, row, subnet, &mut draft)?,
                Leg::Port(port) | Leg::Both(port, _) => {
                    let port = reach.find(&view.ports, port)?;
                    if !port.device_id.is_empty() || port.instance.is_some() {
                        return Err(OpsError::conflict(format!(
                            "port {} is in use by device {}",
                            port.id, port.device_id
                        )));
                    }
                    if port.fixed_ips.is_empty() {
                        return Err(OpsError::field(
                            "port_id",
                            "a port of a router needs an address: port has no fixed IPs",
                        ));
                    }
                    let mut record = (*port.record).clone();
                    record.device_id = id.to_string();
                    record.device_owner = owner::ROUTER_INTERFACE.into();
                    record.security_groups.clear();
                    refuse_overlap(view, row, &record)?;
                    draft.update(port, &record);
                    record
                }
            };
            draft.touch(row);
            Ok((draft, taken(row, &port)))
        })
        .await
    }

    pub async fn remove_leg(&self, reach: Reach, id: RouterId, leg: Leg) -> Result<LegTaken, OpsError> {
        self.transact(|view| {
            let row = reach.find(&view.routers, id)?;
            let on =
                |port: &PortRecord, subnet: SubnetId| port.fixed_ips.iter().any(|ip| ip.subnet == subnet);
            let inside = legs(view, id).filter(|port| port.device_owner == owner::ROUTER_INTERFACE);
            let found: Vec<_> = inside
                .filter(|port| match leg {
                    Leg::Subnet(subnet) => on(port, subnet),
                    Leg::Port(wanted) => port.id == wanted,
                    Leg::Both(wanted, subnet) => port.id == wanted && on(port, subnet),
                })
                .collect();
            let Some(port) = found.first() else {
                return Err(OpsError::NotFound {
                    noun: "router interface",
                    id: match leg {
                        Leg::Subnet(subnet) => subnet.to_string(),
                        Leg::Port(port) | Leg::Both(port, _) => port.to_string(),
                    },
                });
            };
            let subnets: Vec<SubnetId> = port.fixed_ips.iter().map(|ip| ip.subnet).collect();
            let within = |address| {
                let cidrs = subnets.iter().filter_map(|s| view.subnets.get(*s));
                cidrs.into_iter().any(|s| s.cidr.contains(&address))
            };
            refuse_translating(view, id, within)?;
            if let Some(route) = row.routes.iter().find(|route| within(route.nexthop)) {
                return Err(OpsError::conflict(format!(
                    "the interface is required by the route to {}",
                    route.destination
                )));
            }
            let mut draft = Draft::default();
            remove(view, &mut draft, port);
            draft.touch(row);
            Ok((draft, taken(row, &port.record)))
        })
        .await
    }
}

fn taken(router: &RouterRecord, port: &PortRecord) -> LegTaken {
    LegTaken {
        port: port.id,
        network: port.network,
        subnets: port.fixed_ips.iter().map(|ip| ip.subnet).collect(),
        project: router.project,
    }
}

/// The router's ports, its gateway's among them.
pub(super) fn legs(view: &View, router: RouterId) -> impl Iterator<Item = &Row<PortRecord>> {
    let device = router.to_string();
    let ports: Vec<_> = view.ports_of(&device).filter(|p| p.router() == Some(router)).collect();
    ports.into_iter()
}

/// The router that joins the subnet to the external network.
pub(super) fn between(
    view: &View,
    inside: &PortRecord,
    address: SubnetId,
    outer: NetworkId,
) -> Option<RouterId> {
    let mut routers = view
        .ports_on(inside.network)
        .filter(|p| p.device_owner == owner::ROUTER_INTERFACE)
        .filter(|p| p.fixed_ips.iter().any(|ip| ip.subnet == address))
        .filter_map(|p| p.router());
    routers.find(|id| {
        let gateway = view.routers.get(*id).and_then(|r| r.gateway.clone());
        gateway.is_some_and(|g| g.network == outer)
    })
}

fn refuse_translating(
    view: &View,
    router: RouterId,
    within: impl Fn(std::net::IpAddr) -> bool,
) -> Result<(), OpsError> {
    let mut targets = view.floating_ips.iter().filter_map(|ip| ip.target.map(|t| (ip, t)));
    match targets.find(|(_, t)| t.router == router && within(t.address)) {
        Some((ip, _)) => {
            Err(OpsError::conflict(format!("floating IP {} ({}) needs the router", ip.address, ip.id)))
        }
        None => Ok(()),
    }
}

fn new_leg(
    view: &View,
    reach: Reach,
    router: &RouterRecord,
    subnet: SubnetId,
    draft: &mut Draft,
) -> Result<PortRecord, OpsError> {
    let visible = |s: &&Row<SubnetRecord>| {
        reach.owns(&*s.record) || view.networks.get(s.network).is_some_and(|n| n.shared)
    };
    let subnet = view
        .subnets
        .get(subnet)
        .filter(visible)
        .filter(|s| !s.closing)
        .ok_or_else(|| OpsError::not_found::<SubnetRecord>(subnet))?;
    let gateway = subnet
        .gateway
        .ok_or_else(|| OpsError::field("subnet_id", "subnet for router interface must have a gateway IP"))?;
    let network = view
        .networks
        .get(subnet.network)
        .ok_or_else(|| OpsError::not_found::<NetworkRecord>(subnet.network))?;
    draft.guard(network);
    let (id, mac) = fresh_port(view, network.id);
    let mut port = PortRecord::new(id, router.project, network.id, mac, Timestamp::now());
    port.device_id = router.id.to_string();
    port.device_owner = owner::ROUTER_INTERFACE.into();
    port.fixed_ips = vec![FixedIp { subnet: subnet.id, address: gateway }];
    refuse_overlap(view, router, &port)?;
    let asker = Asker { mac: &port.mac, port: None, router: true, field: "subnet_id" };
    let wish = FixedIpWish { subnet: Some(subnet.id), address: Some(gateway) };
    port.fixed_ips = allocate(view, network, Some(&[wish]), &asker)?;
    put_new(view, &port, draft);
    Ok(port)
}

/// No two legs of a router may be on one subnet, or on ranges that overlap.
fn refuse_overlap(view: &View, router: &RouterRecord, port: &PortRecord) -> Result<(), OpsError> {
    for other in legs(view, router.id).flat_map(|leg| &leg.fixed_ips) {
        for own in &port.fixed_ips {
            if own.subnet == other.subnet {
                return Err(OpsError::field(
                    "subnet_id",
                    format!("router already has a port on subnet {}", own.subnet),
                ));
            }
            let (Some(a), Some(b)) = (view.subnets.get(own.subnet), view.subnets.get(other.subnet)) else {
                continue;
            };
            if a.cidr.contains(&b.cidr) || b.cidr.contains(&a.cidr) {
                return Err(OpsError::field(
                    "subnet_id",
                    format!("cidr {} of subnet {} overlaps with {} of subnet {}", a.cidr, a.id, b.cidr, b.id),
                ));
            }
        }
    }
    Ok(())
}

fn apply(
    view: &View,
    reach: Reach,
    router: &mut RouterRecord,
    change: &RouterChange,
    draft: &mut Draft,
) -> Result<(), OpsError> {
    if let Some(gateway) = &change.gateway {
        set_gateway(view, reach, router, gateway.as_ref(), draft)?;
    }
    if let Some(routes) = &change.routes {
        check_routes(view, router, routes)?;
        router.routes = routes.clone();
    }
    Ok(())
}

fn set_gateway(
    view: &View,
    reach: Reach,
    router: &mut RouterRecord,
    wish: Option<&GatewayWish>,
    draft: &mut Draft,
) -> Result<(), OpsError> {
    let before = router.gateway.take();
    let moves = |wish: &GatewayWish| before.as_ref().is_none_or(|b| b.network != wish.network);
    if let Some(before) = &before
        && wish.is_none_or(moves)
    {
        refuse_translating(view, router.id, |_| true)?;
        if let Some(port) = view.ports.get(before.port) {
            remove(view, draft, port);
        }
    }
    let Some(wish) = wish else { return Ok(()) };
    let network = view
        .networks
        .get(wish.network)
        .filter(|n| n.external || n.shared || reach.owns(&*n.record))
        .ok_or_else(|| OpsError::not_found::<NetworkRecord>(wish.network))?;
    if !network.external {
        return Err(OpsError::field(
            "external_gateway_info",
            format!("network {} is not an external network", network.id),
        ));
    }
    let snat = wish.snat.unwrap_or(before.as_ref().is_none_or(|b| b.snat));
    if let Some(before) = before.filter(|b| b.network == wish.network) {
        if let (Some(wishes), Some(port)) = (&wish.fixed_ips, view.ports.get(before.port)) {
            let asker =
                Asker { mac: &port.mac, port: Some(port.id), router: true, field: "external_fixed_ips" };
            let mut record = (*port.record).clone();
            record.fixed_ips = allocate(view, network, Some(wishes), &asker)?;
            let has = |ips: &[FixedIp], ip: &FixedIp| ips.iter().any(|i| i.address == ip.address);
            for gone in port.fixed_ips.iter().filter(|ip| !has(&record.fixed_ips, ip)) {
                draft.release(NetworkRecord::address_key(network.id, gone.address));
            }
            for new in record.fixed_ips.iter().filter(|ip| !has(&port.fixed_ips, ip)) {
                draft.reserve(NetworkRecord::address_key(network.id, new.address), port.id);
            }
            if record != *port.record {
                draft.update(port, &record);
            }
        }
        router.gateway = Some(Gateway { snat, ..before });
        return Ok(());
    }
    draft.guard(network);
    let (id, mac) = fresh_port(view, network.id);
    let mut port = PortRecord::new(id, NOBODY, network.id, mac, Timestamp::now());
    port.device_id = router.id.to_string();
    port.device_owner = owner::ROUTER_GATEWAY.into();
    let asker = Asker { mac: &port.mac, port: None, router: false, field: "external_gateway_info" };
    port.fixed_ips = allocate(view, network, wish.fixed_ips.as_deref(), &asker)?;
    put_new(view, &port, draft);
    router.gateway = Some(Gateway { network: network.id, port: id, snat });
    Ok(())
}

fn check_routes(view: &View, router: &RouterRecord, routes: &[HostRoute]) -> Result<(), OpsError> {
    if routes.len() > ROUTES_MAX {
        return Err(OpsError::field("routes", format!("at most {ROUTES_MAX} routes")));
    }
    let legs: Vec<_> = legs(view, router.id).collect();
    for (at, route) in routes.iter().enumerate() {
        let wrong = |why: &str| {
            OpsError::field(
                "routes",
                format!("invalid format for routes: {} via {}: {why}", route.destination, route.nexthop),
            )
        };
        if routes[..at].contains(route) {
            return Err(wrong("it stands there twice"));
        }
        let ips = || legs.iter().flat_map(|leg| &leg.fixed_ips);
        let reached =
            ips().filter_map(|ip| view.subnets.get(ip.subnet)).any(|s| s.cidr.contains(&route.nexthop));
        if !reached {
            return Err(wrong("the nexthop is not connected with router"));
        }
        if ips().any(|ip| ip.address == route.nexthop) {
            return Err(wrong("the nexthop is used by router"));
        }
    }
    Ok(())
}
