//! The records → all that OVN should know: a pure function.
//!
//! A port may be bound by the chassis of its instance's host and by no other. A port of an instance that is being
//! deleted stays where it is until the host has let it go.

use crate::model::network::{self, QosKind, owner};
use crate::model::*;
use crate::network::{
    FloatingSpec, GroupSpec, LegSpec, LimitSpec, NetworkSpec, PortKind, PortSpec, RouterSpec, RuleSpec,
    SubnetSpec, Topology,
};
use crate::ops::View;
use amphi_api::instance::{BodySpec, ExchangePhase};
use amphi_api::{QosRuleId, RouterId};
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use uuid::Uuid;

/// Most hosts that stand by to carry a router's way out: neutron's bound too.
const GATEWAY_CHASSIS_MAX: usize = 5;

pub fn topology(view: &View) -> Topology {
    let mut floating: BTreeMap<RouterId, Vec<FloatingSpec>> = BTreeMap::new();
    for ip in view.floating_ips.iter() {
        if let Some(target) = ip.target {
            let spec = FloatingSpec { id: ip.id, outside: ip.address, inside: target.address };
            floating.entry(target.router).or_default().push(spec);
        }
    }
    Topology {
        networks: view.networks.iter().map(|row| network(view, row)).collect(),
        subnets: view.subnets.iter().filter_map(|row| subnet(view, row)).collect(),
        ports: view.ports.iter().filter_map(|row| port(view, row)).collect(),
        groups: view.groups.iter().map(|row| group(row)).collect(),
        routers: (view.routers.iter())
            .map(|row| router(view, row, floating.remove(&row.id).unwrap_or_default()))
            .collect(),
    }
}

fn network(view: &View, row: &NetworkRecord) -> NetworkSpec {
    let tag = row.provider.segment().and_then(|n| u16::try_from(n).ok());
    NetworkSpec {
        id: row.id,
        name: row.name.clone(),
        tunnel_key: row.provider.segment().filter(|_| row.provider.physical().is_none()),
        physical: row.provider.physical().map(|name| (name.to_owned(), tag)),
        metadata: view.subnets_of(row.id).any(|subnet| subnet.is_v4()),
    }
}

fn subnet(view: &View, row: &SubnetRecord) -> Option<SubnetSpec> {
    Some(SubnetSpec {
        id: row.id,
        cidr: row.cidr,
        gateway: row.gateway,
        dns: row.dns.clone(),
        routes: row.routes.iter().map(|r| (r.destination, r.nexthop)).collect(),
        dhcp: row.dhcp,
        stateless: row.self_addressed(),
        mtu: view.networks.get(row.network)?.mtu,
    })
}

fn port(view: &View, row: &PortRecord) -> Option<PortSpec> {
    let kind = match row.device_owner.as_str() {
        // An address that only stands for another.
        owner::FLOATING_IP => return None,
        owner::ROUTER_INTERFACE | owner::ROUTER_GATEWAY => PortKind::Router,
        _ => PortKind::Instance,
    };
    let network = view.networks.get(row.network)?;
    let instance = row.instance.and_then(|id| view.instances.get(id));
    let host = match instance {
        Some(instance) => instance.host.and_then(|id| view.hosts.get(id)),
        None => view.host_named(&row.binding_host),
    };
    let option = |o: &network::DhcpOption| {
        let (name, value) = dhcp_option(&o.name, &o.value)?;
        Some((o.version, name, value))
    };
    Some(PortSpec {
        id: row.id,
        network: row.network,
        mac: row.mac.clone(),
        addresses: row.fixed_ips.iter().map(|ip| (ip.subnet, ip.address)).collect(),
        chassis: host.and_then(|h| h.spec.as_ref()).map(|s| {
            match instance.and_then(|i| crosses_to(view, i)) {
                // Both may bind it while its guest goes over: the new one is wired before the guest runs there.
                Some(other) => format!("{},{other}", s.chassis),
                None => s.chassis.clone(),
            }
        }),
        groups: row.security_groups.clone(),
        egress_by_rule: row.egress_by_rule,
        up: row.admin_up && network.admin_up,
        open: !row.port_security,
        pairs: row.allowed_pairs.iter().map(|p| (p.address, p.mac.clone())).collect(),
        dhcp_options: row.dhcp_options.iter().filter_map(option).collect(),
        probed: instance.map(|i| probed(view, row, i)).unwrap_or_default(),
        limits: if kind == PortKind::Instance { limits(view, row, network) } else { Vec::new() },
        kind,
    })
}

/// The TCP ports at which a VM is asked: over its first port with IPv4.
fn probed(view: &View, row: &PortRecord, instance: &InstanceRecord) -> BTreeSet<u16> {
    let mut ports = instance.ports.iter().filter_map(|id| view.ports.get(*id));
    let first = ports.find(|port| port.addresses().any(|a| a.is_ipv4()));
    if first.is_none_or(|port| port.id != row.id) {
        return BTreeSet::new();
    }
    let asked = |body: &BodyRecord| match &body.spec {
        BodySpec::Vm(vm) => vm.probes.tcp_ports(),
        BodySpec::Set(_) => BTreeSet::new(),
    };
    instance.bodies.iter().flat_map(asked).collect()
}

/// The chassis that an instance goes to while it runs.
fn crosses_to<'a>(view: &'a View, instance: &InstanceRecord) -> Option<&'a str> {
    let exchange = instance.exchange.and_then(|id| view.exchanges.get(id))?;
    let journey = exchange.journey.as_ref().filter(|j| j.live && instance.host == Some(j.from))?;
    let to = view.hosts.get(journey.to).filter(|_| exchange.phase == ExchangePhase::Crossing)?;
    to.spec.as_ref().map(|spec| spec.chassis.as_str())
}

/// An option in dnsmasq's words, which OpenStack's clients use, in OVN's (ovn-nb(5), "DHCP_Options"). None: OVN has no
/// such option.
fn dhcp_option(name: &str, value: &str) -> Option<(String, String)> {
    let quoted = |value: &str| format!("\"{}\"", value.replace(['"', '\\'], ""));
    let list = |value: &str| {
        let parts: Vec<&str> = value.split(',').map(str::trim).collect();
        let sound = parts.iter().all(|p| p.parse::<IpAddr>().is_ok());
        sound
            .then(|| if parts.len() == 1 { parts[0].to_owned() } else { format!("{{{}}}", parts.join(", ")) })
    };
    let (name, value) = match name {
        "mtu" | "26" => ("mtu", value.parse::<u16>().ok()?.to_string()),
        "router" | "3" => ("router", list(value)?),
        "dns-server" | "dns_server" | "6" => ("dns_server", list(value)?),
        "ntp-server" | "ntp_server" | "42" => ("ntp_server", list(value)?),
        "domain-name" | "domain_name" | "15" => ("domain_name", quoted(value)),
        "bootfile-name" | "bootfile_name" | "67" => ("bootfile_name", quoted(value)),
        "tftp-server" | "tftp_server" | "66" => ("tftp_server", quoted(value)),
        "server-ip-address" | "tftp-server-address" | "150" => ("tftp_server_address", list(value)?),
        _ => return None,
    };
    Some((name.to_owned(), value))
}

/// The limits of the port's own policy, or else of its network's.
fn limits(view: &View, port: &PortRecord, network: &NetworkRecord) -> Vec<LimitSpec> {
    let policy = port.qos.or(network.qos).and_then(|id| view.qos_policies.get(id));
    let limit = |rule: &network::QosRule| match rule.kind {
        QosKind::BandwidthLimit { max_kbps, max_burst_kbps, direction } => {
            LimitSpec { id: rule.id, direction, bandwidth: Some((max_kbps, max_burst_kbps)), dscp: None }
        }
        QosKind::DscpMarking { dscp_mark } => LimitSpec {
            id: rule.id,
            direction: amphi_api::network::Direction::Egress,
            bandwidth: None,
            dscp: Some(dscp_mark),
        },
    };
    let own = own_limits(port);
    let others = policy.map(|row| row.rules.iter().map(limit).collect::<Vec<_>>()).unwrap_or_default();
    let taken = |limit: &LimitSpec| {
        limit.bandwidth.is_some() && own.iter().any(|own| own.direction == limit.direction)
    };
    let others: Vec<_> = others.into_iter().filter(|limit| !taken(limit)).collect();
    own.into_iter().chain(others).collect()
}

/// The port's own bandwidth. A limit's id is the port's with its last bit for the direction: no record stands for it.
fn own_limits(port: &PortRecord) -> Vec<LimitSpec> {
    use amphi_api::network::Direction::{Egress, Ingress};
    let both = [(Ingress, port.bandwidth.ingress_kbps, 0), (Egress, port.bandwidth.egress_kbps, 1)];
    let limit = |(direction, kbps, bit): (_, Option<u32>, u128)| {
        let id = QosRuleId(Uuid::from_u128(port.id.0.as_u128() & !1 | bit));
        // Half a second's worth at once: less starves TCP.
        let bandwidth = kbps.map(|kbps| (kbps, (kbps / 2).max(64)));
        bandwidth.map(|_| LimitSpec { id, direction, bandwidth, dscp: None })
    };
    both.into_iter().filter_map(limit).collect()
}

fn group(row: &SecurityGroupRecord) -> GroupSpec {
    let rule = |r: &RuleRecord| RuleSpec {
        id: r.id,
        direction: r.direction,
        family: r.family,
        protocol: r.number(),
        min: r.port_min,
        max: r.port_max,
        remote: r.remote,
        remote_group: r.remote_group,
    };
    GroupSpec {
        id: row.id,
        free_egress: row.free_egress,
        stateful: row.stateful,
        rules: row.rules.iter().map(rule).collect(),
    }
}

fn router(view: &View, row: &RouterRecord, floating: Vec<FloatingSpec>) -> RouterSpec {
    let device = row.id.to_string();
    let mut routes: Vec<(IpNet, IpAddr)> = row.routes.iter().map(|r| (r.destination, r.nexthop)).collect();
    let (mut legs, mut snat) = (Vec::new(), Vec::new());
    let outside = row.gateway.as_ref().and_then(|g| view.ports.get(g.port));
    let outer = outside.and_then(|port| port.addresses().find(IpAddr::is_ipv4));
    for port in view.ports_of(&device).filter(|port| port.router() == Some(row.id)) {
        let Some(network) = view.networks.get(port.network) else { continue };
        let is_gateway = row.gateway.as_ref().is_some_and(|g| g.port == port.id);
        let mut addresses = Vec::new();
        let mut advertise = None;
        for ip in &port.fixed_ips {
            let Some(subnet) = view.subnets.get(ip.subnet) else { continue };
            addresses.extend(IpNet::new(ip.address, subnet.cidr.prefix_len()).ok());
            if is_gateway {
                let any = match ip.address {
                    IpAddr::V4(_) => IpNet::new(Ipv4Addr::UNSPECIFIED.into(), 0),
                    IpAddr::V6(_) => IpNet::new(Ipv6Addr::UNSPECIFIED.into(), 0),
                };
                routes.extend(any.ok().zip(subnet.gateway));
            } else {
                advertise = advertise.or_else(|| subnet.ra_mode.as_ref().map(|mode| mode.replace('-', "_")));
                let translated = row.gateway.as_ref().is_some_and(|g| g.snat) && subnet.is_v4();
                snat.extend(outer.filter(|_| translated).map(|outer| (subnet.cidr, outer)));
            }
        }
        if addresses.is_empty() {
            continue;
        }
        legs.push(LegSpec {
            port: port.id,
            mac: port.mac.clone(),
            addresses,
            chassis: if is_gateway { gateway_chassis(view, row.id, network) } else { Vec::new() },
            advertise,
            mtu: network.mtu,
        });
    }
    RouterSpec { id: row.id, name: row.name.clone(), up: row.admin_up, legs, routes, snat, floating }
}

/// The hosts that reach the outer network, each router in an order of its own, so that the work is shared.
fn gateway_chassis(view: &View, router: RouterId, outer: &NetworkRecord) -> Vec<String> {
    let reaches = |spec: &&amphi_api::host::HostSpec| match outer.provider.physical() {
        Some(name) => spec.physical_networks.iter().any(|n| n == name),
        None => true,
    };
    let specs = view.hosts.iter().filter_map(|host| host.spec.as_ref()).filter(reaches);
    let mut names: Vec<String> = specs.map(|spec| spec.chassis.clone()).collect();
    names.sort_by_cached_key(|name| Uuid::new_v5(&router.0, name.as_bytes()));
    names.truncate(GATEWAY_CHASSIS_MAX);
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::tests::{Cloud, P};
    use serde_json::json;

    #[tokio::test]
    async fn a_port_s_own_bandwidth_is_a_limit_each_way() {
        let (cloud, h1, _) = Cloud::furnished().await;
        let made = cloud.create(json!({"host": "h1"})).await.unwrap();
        cloud.obey(h1).await;
        let name = &made.addresses[0].network_name;
        let wish = json!({"networks": [{"network": name, "bandwidth": {"ingress_kbps": 10_000, "egress_kbps": 5_000}}]});
        cloud.ops.resize_instance(P, made.id, &serde_json::from_value(wish).unwrap()).await.unwrap();
        let topology = topology(&cloud.ops.world().read());
        let limits: Vec<_> = topology.ports.iter().flat_map(|p| &p.limits).map(|l| l.bandwidth).collect();
        assert_eq!(limits, [Some((10_000, 5_000)), Some((5_000, 2_500))]);
    }
}
