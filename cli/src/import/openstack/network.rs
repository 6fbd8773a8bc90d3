//! Networks, subnets, security groups, routers of a project, with the addresses that they have. Pure.

use super::super::plan::*;
use super::plan::Draft;
use super::{called, flag, list, text};
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

/// These fields of a thing, where they have a value.
fn only(of: &Value, keys: &[&str]) -> Map<String, Value> {
    let some = |key: &&str| Some(((*key).to_owned(), of.get(*key).filter(|v| !v.is_null())?.clone()));
    keys.iter().filter_map(some).collect()
}

/// Ports of these servers.
pub fn ports_of<'a>(draft: &Draft<'a>, server: &Value) -> Vec<&'a Value> {
    let id = text(server, "id");
    draft.project.ports.iter().filter(|p| text(p, "device_id") == id).collect()
}

fn needed(draft: &Draft, servers: &[&Value], what: impl Fn(&Value) -> Vec<String>) -> BTreeSet<String> {
    servers.iter().flat_map(|s| ports_of(draft, s)).flat_map(what).collect()
}

pub fn networks(draft: &mut Draft, servers: &[&Value], whole: bool) {
    let used = needed(draft, servers, |port| vec![text(port, "network_id").to_owned()]);
    for network in &draft.project.networks {
        let (id, name) = (text(network, "id"), called(network));
        let own = text(network, "project_id") == draft.project.id;
        let outside = flag(network, "router:external") == Some(true);
        let wishes = draft.wishes;
        if let Some(there) = wishes.networks.get(id).or_else(|| wishes.networks.get(&name)) {
            draft.refs.insert(id.to_owned(), Ref::Id(there.clone()));
            draft.found(Fate::Mapped, "network", &name, format!("network {there} stands in its place"));
            continue;
        }
        if !(used.contains(id) || whole && own && !outside) {
            continue;
        }
        if !own || outside {
            let why = "is not the project's own: say what stands in its place, --network SOURCE=TARGET";
            draft.found(if used.contains(id) { Fate::Blocked } else { Fate::Left }, "network", &name, why);
            continue;
        }
        let mut body = only(network, &["admin_state_up", "port_security_enabled", "mtu"]);
        if let Some(mtu) = body.get("mtu").and_then(Value::as_u64)
            && !(576..=1442).contains(&mtu)
        {
            body.remove("mtu");
            let why = format!("frames of {mtu} bytes do not pass between hosts here: 1442 in its place");
            draft.found(Fate::Changed, "network", &name, why);
        }
        let made = draft.item("network", id, name, Make::Network { body });
        for subnet in draft.project.subnets.iter().filter(|s| text(s, "network_id") == id) {
            let mut body = only(
                subnet,
                &[
                    "cidr",
                    "ip_version",
                    "enable_dhcp",
                    "allocation_pools",
                    "dns_nameservers",
                    "host_routes",
                    "ipv6_ra_mode",
                    "ipv6_address_mode",
                ],
            );
            // None is a choice too: a subnet without a way out.
            body.insert("gateway_ip".into(), subnet.get("gateway_ip").cloned().unwrap_or(Value::Null));
            let make = Make::Subnet { network: made.clone(), body };
            draft.item("subnet", text(subnet, "id"), called(subnet), make);
        }
    }
}

pub fn groups(draft: &mut Draft, servers: &[&Value], whole: bool) {
    let strings = |port: &Value| -> Vec<String> {
        list(port, "security_groups").iter().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let mut used = needed(draft, servers, strings);
    // Groups that rules of needed ones name are needed too.
    loop {
        let before = used.clone();
        for group in draft.project.groups.iter().filter(|g| before.contains(text(g, "id"))) {
            let named = list(group, "security_group_rules").iter().map(|r| text(r, "remote_group_id"));
            used.extend(named.filter(|id| !id.is_empty()).map(str::to_owned));
        }
        if used.len() == before.len() {
            break;
        }
    }
    let coming: Vec<&Value> =
        draft.project.groups.iter().filter(|g| whole || used.contains(text(g, "id"))).collect();
    for group in &coming {
        let mut name = called(group);
        if name == "default" {
            let why =
                "every project has its own 'default': it comes as 'default-imported', and ports name it";
            draft.found(Fate::Changed, "security group", "default", why);
            name = "default-imported".into();
        }
        let description = text(group, "description").to_owned();
        draft.item("group", text(group, "id"), name, Make::SecurityGroup { description });
    }
    for group in coming {
        let id = text(group, "id");
        let mut rules = Vec::new();
        for rule in list(group, "security_group_rules") {
            let remote = text(rule, "remote_group_id");
            let remote_group = draft.of(remote);
            if (!remote.is_empty() && remote_group.is_none())
                || !text(rule, "remote_address_group_id").is_empty()
            {
                draft.found(Fate::Left, "rule", text(rule, "id"), "names a group that does not come along");
                continue;
            }
            rules.push(Rule { body: only(rule, &RULE_FIELDS), remote_group });
        }
        let Some(of) = draft.of(id) else { continue };
        let item = Item {
            key: format!("rules/{id}"),
            name: called(group),
            mark: format!("openstack:rules:{id}"),
            there: None,
            make: Make::Rules { group: of, rules },
        };
        draft.items.push(item);
    }
}

pub fn routers(draft: &mut Draft, whole: bool) {
    if !whole {
        return;
    }
    for router in &draft.project.routers {
        let (id, name) = (text(router, "id"), called(router));
        let outer = router.pointer("/external_gateway_info/network_id").and_then(Value::as_str);
        let outside = outer.and_then(|id| draft.of(id));
        if outer.is_some() && outside.is_none() {
            let why = "its way out is not carried: say which network stands for it, --network SOURCE=TARGET";
            draft.found(Fate::Changed, "router", &name, why);
        }
        if !list(router, "routes").is_empty() {
            draft.found(Fate::Left, "router", &name, "its own routes are not carried");
        }
        let make = Make::Router { body: only(router, &["admin_state_up"]), outside };
        let made = draft.item("router", id, name.clone(), make);
        let legs = draft.project.ports.iter().filter(|p| {
            text(p, "device_id") == id
                && text(p, "device_owner").starts_with("network:")
                && text(p, "device_owner").contains("router_interface")
                || text(p, "device_id") == id
                    && text(p, "device_owner") == "network:ha_router_replicated_interface"
        });
        for leg in legs {
            for ip in list(leg, "fixed_ips") {
                let (subnet, address) = (text(ip, "subnet_id"), text(ip, "ip_address"));
                let gateway = draft.project.subnets.iter().find(|s| text(s, "id") == subnet);
                let gateway = gateway.map(|s| text(s, "gateway_ip")).unwrap_or_default();
                let Some(to) = draft.of(subnet) else {
                    draft.found(
                        Fate::Left,
                        "router",
                        &name,
                        format!("its leg {address} is on a subnet that does not come"),
                    );
                    continue;
                };
                if gateway != address {
                    let why = format!("its leg {address} is not the subnet's gateway: add it by hand");
                    draft.found(Fate::Left, "router", &name, why);
                    continue;
                }
                let item = Item {
                    key: format!("leg/{id}/{subnet}"),
                    name: format!("{name} {address}"),
                    mark: format!("openstack:leg:{id}:{subnet}"),
                    there: None,
                    make: Make::RouterLeg { router: made.clone(), subnet: to },
                };
                draft.items.push(item);
            }
        }
    }
}

/// A server's port with its MAC and addresses. None where its network does not come; that is said.
pub fn port(draft: &mut Draft, server: &str, port: &Value) -> Option<Connection> {
    let (id, network) = (text(port, "id"), text(port, "network_id"));
    let mac = text(port, "mac_address").to_ascii_lowercase();
    let Some(to) = draft.of(network) else {
        draft.found(Fate::Left, "port", &format!("{server} {mac}"), "its network does not come");
        return None;
    };
    let mapped = matches!(to, Ref::Id(_));
    let mut addresses = Vec::new();
    for ip in list(port, "fixed_ips") {
        let Ok(address) = text(ip, "ip_address").parse() else { continue };
        // On a network that stands in for another the address may be anything: it is asked for all the same.
        addresses.push(Fixed { subnet: draft.of(text(ip, "subnet_id")), address });
    }
    if mapped {
        let why = "MAC and addresses are asked for on the network in its place; where that refuses them, the run says so";
        draft.found(Fate::Changed, "port", &format!("{server} {mac}"), why);
    }
    let secured = flag(port, "port_security_enabled") != Some(false);
    let names = list(port, "security_groups").iter().filter_map(Value::as_str);
    let groups: Vec<Ref> = names.filter_map(|id| draft.of(id)).collect();
    let mut body = only(port, &["admin_state_up", "port_security_enabled"]);
    if mapped {
        body.remove("port_security_enabled");
    }
    let pairs = list(port, "allowed_address_pairs");
    if !pairs.is_empty() && secured {
        body.insert("allowed_address_pairs".into(), json!(pairs));
    }
    let options = list(port, "extra_dhcp_opts");
    if !options.is_empty() {
        body.insert("extra_dhcp_opts".into(), json!(options));
    }
    let kind = text(port, "binding:vnic_type");
    if !matches!(kind, "" | "normal") {
        draft.found(
            Fate::Changed,
            "port",
            &format!("{server} {mac}"),
            format!("{kind} becomes a plain port"),
        );
    }
    let make =
        PortMake { network: to.clone(), mac: Some(mac), addresses, groups: secured.then_some(groups), body };
    let made = draft.item("port", id, called(port), Make::Port(make));
    Some(Connection { network: to, port: made })
}
