//! A project as an OpenStack cloud of the Zed release shows it, and the plans that are made of it.

use super::super::plan::*;
use super::{Project, Wishes, plan};
use serde_json::{Value, json};
use std::collections::BTreeMap;

const PROJECT: &str = "5a1c8f0d5c0b4a4fa0e4c1d1d9a1f001";

fn list(value: Value) -> Vec<Value> {
    value.as_array().cloned().unwrap_or_default()
}

fn project() -> Project {
    let flavor = json!({"vcpus": 2, "ram": 2048, "disk": 20, "ephemeral": 0, "swap": 0, "original_name": "m1.small", "extra_specs": {}});
    let server = |id: &str, name: &str, image: Value| {
        json!({"id": id, "name": name, "status": "SHUTOFF", "image": image, "flavor": flavor, "key_name": "ann",
            "metadata": {"tier": name}, "tenant_id": PROJECT})
    };
    let port = |id: &str, server: &str, mac: &str, ip: &str| {
        json!({"id": id, "name": "", "network_id": "net-1", "mac_address": mac, "device_id": server,
            "device_owner": "compute:nova", "security_groups": ["sg-default", "sg-web"], "admin_state_up": true,
            "port_security_enabled": true, "fixed_ips": [{"subnet_id": "sub-1", "ip_address": ip}],
            "allowed_address_pairs": [], "extra_dhcp_opts": [], "binding:vnic_type": "normal"})
    };
    Project {
        id: PROJECT.into(),
        networks: list(json!([
            {"id": "net-1", "name": "shop", "project_id": PROJECT, "mtu": 1450, "admin_state_up": true,
                "port_security_enabled": true, "router:external": false, "shared": false},
            {"id": "net-2", "name": "public", "project_id": "another", "mtu": 1500, "router:external": true},
        ])),
        subnets: list(
            json!([{"id": "sub-1", "name": "shop-v4", "network_id": "net-1", "cidr": "10.0.5.0/24",
            "ip_version": 4, "gateway_ip": "10.0.5.1", "enable_dhcp": true, "dns_nameservers": ["10.0.5.2"],
            "host_routes": [], "allocation_pools": [{"start": "10.0.5.10", "end": "10.0.5.99"}],
            "ipv6_ra_mode": null, "ipv6_address_mode": null}]),
        ),
        ports: vec![
            port("port-1", "srv-1", "FA:16:3E:00:00:01", "10.0.5.11"),
            port("port-2", "srv-2", "fa:16:3e:00:00:02", "10.0.5.12"),
            json!({"id": "port-3", "network_id": "net-1", "device_id": "rtr-1", "device_owner": "network:router_interface",
                "mac_address": "fa:16:3e:00:00:03", "fixed_ips": [{"subnet_id": "sub-1", "ip_address": "10.0.5.1"}]}),
        ],
        groups: list(json!([
            {"id": "sg-default", "name": "default", "description": "", "security_group_rules": [
                {"id": "r1", "direction": "ingress", "ethertype": "IPv4", "protocol": null, "remote_group_id": "sg-default"}]},
            {"id": "sg-web", "name": "web", "description": "80", "security_group_rules": [
                {"id": "r2", "direction": "ingress", "ethertype": "IPv4", "protocol": "tcp", "port_range_min": 80,
                    "port_range_max": 80, "remote_ip_prefix": "0.0.0.0/0", "remote_group_id": null},
                {"id": "r3", "direction": "ingress", "ethertype": "IPv4", "remote_group_id": "elsewhere"}]},
        ])),
        routers: list(json!([{"id": "rtr-1", "name": "edge", "admin_state_up": true, "routes": [],
            "external_gateway_info": {"network_id": "net-2"}}])),
        floating_ips: list(json!([{"id": "fip-1", "floating_ip_address": "203.0.113.9"}])),
        key_pairs: list(json!([{"name": "ann", "public_key": "ssh-ed25519 AAAA ann\n"},
            {"name": "cert", "public_key": "-----BEGIN CERTIFICATE-----"}])),
        images: list(json!([
            {"id": "img-1", "name": "golden", "status": "active", "disk_format": "raw", "container_format": "bare",
                "size": 1000, "min_disk": 1, "min_ram": 0, "os_distro": "debian", "owner": PROJECT},
            {"id": "img-2", "name": "rescue", "status": "active", "disk_format": "iso", "container_format": "bare", "size": 9},
            {"id": "img-3", "name": "amphi-import openstack:disk:srv-1", "status": "active", "size": 9},
            {"id": "img-4", "name": "half", "status": "queued"},
        ])),
        volumes: list(json!([
            {"id": "vol-root", "name": "", "status": "in-use", "size": 10, "bootable": "true",
                "attachments": [{"server_id": "srv-2"}]},
            {"id": "vol-data", "name": "orders", "status": "in-use", "size": 5, "attachments": [{"server_id": "srv-2"}]},
            {"id": "vol-free", "name": "spare", "status": "available", "size": 1, "attachments": []},
            {"id": "vol-luks", "name": "secret", "status": "available", "size": 1, "encrypted": true},
        ])),
        servers: vec![server("srv-1", "web", json!({"id": "img-1"})), server("srv-2", "db", json!(""))],
        attachments: BTreeMap::from([(
            "srv-2".to_owned(),
            list(
                json!([{"volumeId": "vol-root", "device": "/dev/vda"}, {"volumeId": "vol-data", "device": "/dev/vdb"}]),
            ),
        )]),
    }
}

fn planned(project: &Project, wishes: Wishes) -> Plan {
    let plan = plan(project, &wishes, "old", Place::default(), Place::default());
    assert_eq!(plan.check(), Ok(()), "{}", plan.report());
    plan
}

fn find<'a>(plan: &'a Plan, key: &str) -> &'a Make {
    &plan.items.iter().find(|i| i.key == key).unwrap_or_else(|| panic!("no {key} in\n{}", plan.report())).make
}

fn fates(plan: &Plan, fate: Fate) -> String {
    let all = plan.findings.iter().filter(|f| f.fate == fate);
    all.map(|f| format!("{} {}: {}\n", f.what, f.name, f.why)).collect()
}

#[test]
fn a_whole_project() {
    let plan = planned(&project(), Wishes { images: true, ..Wishes::default() });
    assert_eq!(fates(&plan, Fate::Blocked), "");
    let Make::Network { body } = find(&plan, "network/net-1") else { panic!() };
    assert_eq!(body.get("mtu"), None, "1450 does not pass here");
    let Make::Port(port) = find(&plan, "port/port-1") else { panic!() };
    assert_eq!(port.mac.as_deref(), Some("fa:16:3e:00:00:01"));
    assert_eq!(port.addresses[0].address.to_string(), "10.0.5.11");
    assert_eq!(port.groups.as_ref().map(Vec::len), Some(2));
    let Make::Instance(web) = find(&plan, "server/srv-1") else { panic!() };
    assert_eq!((web.vcpus, web.memory_mib, web.root_gib, web.stopped), (2, 2048, Some(20), true));
    assert_eq!(web.ssh_keys, ["ssh-ed25519 AAAA ann"]);
    let Make::Instance(db) = find(&plan, "server/srv-2") else { panic!() };
    assert_eq!((db.root_gib, &db.volume), (Some(10), &Some(Ref::Item("volume/vol-data".into()))));
    let Make::Image(root) = find(&plan, "disk/srv-2") else { panic!() };
    assert_eq!(root.bytes, Bytes::Volume { id: "vol-root".into(), server: Some("srv-2".into()) });
    let Make::Rules { rules, .. } = find(&plan, "rules/sg-web") else { panic!() };
    assert_eq!(rules.len(), 1);
    let left = fates(&plan, Fate::Left);
    for word in ["203.0.113.9", "rule r3", "key pair cert", "image half", "volume secret"] {
        assert!(left.contains(word), "{word}: {left}");
    }
    let changed = fates(&plan, Fate::Changed);
    for word in [
        "security group default",
        "router edge",
        "image rescue",
        "volume spare",
        "server db: boots from a volume",
    ] {
        assert!(changed.contains(word), "{word}: {changed}");
    }
    let keys: Vec<_> = plan.items.iter().map(|i| i.key.as_str()).collect();
    assert!(keys.contains(&"leg/rtr-1/sub-1") && keys.contains(&"image/img-1"), "{keys:?}");
    assert!(
        !keys.iter().any(|k| k.contains("img-3") || k.contains("vol-luks") || *k == "volume/vol-root"),
        "{keys:?}"
    );
    let at = |key: &str| keys.iter().position(|k| *k == key).unwrap();
    assert!(at("clear/vol-data") > at("server/srv-2"), "its image stays until the volume is in hand");
}

#[test]
fn one_server_and_what_it_needs() {
    let wishes = Wishes { servers: ["web".to_owned()].into(), images: true, ..Wishes::default() };
    let plan = planned(&project(), wishes);
    let keys: Vec<_> = plan.items.iter().map(|i| i.key.as_str()).collect();
    assert_eq!(
        keys,
        [
            "network/net-1",
            "subnet/sub-1",
            "group/sg-default",
            "group/sg-web",
            "rules/sg-default",
            "rules/sg-web",
            "keypair/ann",
            "disk/srv-1",
            "port/port-1",
            "server/srv-1"
        ]
    );
    let none = planned(&project(), Wishes { servers: ["nobody".to_owned()].into(), ..Wishes::default() });
    assert!(fates(&none, Fate::Blocked).contains("nobody"));
}

#[test]
fn networks_that_are_somebody_else_s() {
    let mut there = project();
    there.networks[0]["project_id"] = json!("another");
    assert!(fates(&planned(&there, Wishes::default()), Fate::Blocked).contains("--network"));
    let wishes = Wishes { networks: [("shop".to_owned(), "t-1".to_owned())].into(), ..Wishes::default() };
    let plan = planned(&there, wishes);
    assert_eq!(fates(&plan, Fate::Blocked), "");
    let Make::Port(port) = find(&plan, "port/port-1") else { panic!() };
    assert_eq!((&port.network, &port.addresses[0].subnet), (&Ref::Id("t-1".into()), &None));
    assert!(fates(&plan, Fate::Mapped).contains("network shop"));
}

#[test]
fn servers_that_run_or_cannot_come() {
    let with = |change: &dyn Fn(&mut Value), shutdown: bool| {
        let mut there = project();
        change(&mut there.servers[0]);
        planned(&there, Wishes { shutdown, ..Wishes::default() })
    };
    let runs = |s: &mut Value| s["status"] = json!("ACTIVE");
    assert!(fates(&with(&runs, false), Fate::Blocked).contains("--shutdown"));
    let plan = with(&runs, true);
    assert!(plan.shutdown && fates(&plan, Fate::Blocked).is_empty());
    let Make::Instance(web) = find(&plan, "server/srv-1") else { panic!() };
    assert!(!web.stopped, "it ran");
    let old = |s: &mut Value| s["flavor"] = json!({"id": "1"});
    assert!(fates(&with(&old, false), Fate::Blocked).contains("2.47"));
    let broken = |s: &mut Value| s["status"] = json!("ERROR");
    assert!(fates(&with(&broken, false), Fate::Left).contains("is ERROR"));
    let mut there = project();
    there.images[0]["hw_firmware_type"] = json!("uefi");
    assert!(fates(&planned(&there, Wishes::default()), Fate::Blocked).contains("UEFI"));
}
