//! Owns the config drive's files: OpenStack's layout, rendered into names and texts. Both kinds of body get
//! the same: a VM on a small disk, a set's members in a directory; the metadata service answers out of them too. Pure:
//! the same order gives the same bytes.

use super::{BodyPlan, PortAttachment, name_servers};
use amphi_api::validate::hostname;
use amphi_api::wire::InstanceDesired;
use amphi_api::{InstanceId, ProjectId};
use serde_json::{Map, Value, json};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// Where guests look. cloud-init takes the newest dated version that it knows (`cloudinit/sources/helpers/openstack.py`)
/// and its ds-identify believes in a directory only if it holds a dated one. 2015-10-15 is OpenStack's first version with
/// network_data.json, and what every cloud-init since knows.
const VERSIONS: [&str; 2] = ["latest", "2015-10-15"];

/// Whom the files tell of: an instance as it is ordered, whatever its body.
pub struct Guest<'a> {
    pub instance: InstanceId,
    pub project: ProjectId,
    pub name: &'a str,
    /// eth0's first.
    pub ports: Cow<'a, [PortAttachment]>,
    pub user_data: Option<&'a str>,
    pub ssh_keys: &'a [String],
    pub metadata: &'a BTreeMap<String, String>,
}

impl<'a> From<&'a BodyPlan> for Guest<'a> {
    fn from(plan: &'a BodyPlan) -> Self {
        Self {
            instance: plan.instance,
            project: plan.project,
            name: &plan.name,
            ports: Cow::Borrowed(&plan.ports),
            user_data: plan.user_data.as_deref(),
            ssh_keys: &plan.ssh_keys,
            metadata: &plan.metadata,
        }
    }
}

impl<'a> From<&'a InstanceDesired> for Guest<'a> {
    fn from(desired: &'a InstanceDesired) -> Self {
        Self {
            instance: desired.id,
            project: desired.project,
            name: &desired.name,
            ports: desired.ports.iter().map(PortAttachment::from).collect(),
            user_data: desired.user_data.as_deref(),
            ssh_keys: &desired.ssh_keys,
            metadata: &desired.metadata,
        }
    }
}

/// The drive's files: path below the drive, with `/`, and bytes.
pub fn files<'a>(guest: impl Into<Guest<'a>>) -> Vec<(String, Vec<u8>)> {
    let guest = &guest.into();
    let text = |value: Value| format!("{value:#}\n").into_bytes();
    let user_data = guest.user_data.map(|data| data.as_bytes().to_vec());
    let mut files = Vec::new();
    for version in VERSIONS {
        let path = |name: &str| format!("openstack/{version}/{name}");
        files.push((path("meta_data.json"), text(meta_data(guest))));
        files.push((path("network_data.json"), text(network_data(guest))));
        files.push((path("vendor_data.json"), text(json!({}))));
        files.extend(user_data.clone().map(|data| (path("user_data"), data)));
    }
    files.push(("ec2/latest/meta-data.json".to_owned(), text(ec2_meta_data(guest))));
    files.extend(user_data.map(|data| ("ec2/latest/user-data".to_owned(), data)));
    files
}

/// `ec2/latest/meta-data.json`: of what nova writes there, that which Amphi knows.
fn ec2_meta_data(guest: &Guest<'_>) -> Value {
    let host = hostname(guest.name);
    let keys = guest.ssh_keys.iter().enumerate();
    let keys: Map<String, Value> = keys
        .map(|(at, key)| (at.to_string(), json!({"_name": format!("{at}=key-{at}"), "openssh-key": key})))
        .collect();
    let address = guest.ports.iter().map(|port| port.address.addr()).find(IpAddr::is_ipv4);
    json!({
        "instance-id": guest.instance,
        "hostname": host,
        "local-hostname": host,
        "local-ipv4": address,
        "public-keys": keys,
    })
}

/// `meta_data.json` as nova writes it (docs.openstack.org/nova, "Metadata service").
fn meta_data(guest: &Guest<'_>) -> Value {
    let named: Vec<(String, &String)> =
        guest.ssh_keys.iter().enumerate().map(|(at, key)| (format!("key-{at}"), key)).collect();
    let public: Map<String, Value> = named.iter().map(|(name, key)| (name.clone(), json!(key))).collect();
    let keys: Vec<Value> =
        named.iter().map(|(name, key)| json!({"name": name, "type": "ssh", "data": key})).collect();
    json!({
        "uuid": guest.instance,
        "name": guest.name,
        "hostname": hostname(guest.name),
        "project_id": guest.project,
        "launch_index": 0,
        "meta": guest.metadata,
        "public_keys": public,
        "keys": keys,
    })
}

/// `network_data.json` as nova writes it: links, their static addresses, name servers.
fn network_data(guest: &Guest<'_>) -> Value {
    let links: Vec<Value> = guest
        .ports
        .iter()
        .map(|port| {
            json!({"id": port.id, "vif_id": port.id, "type": "ovs", "mtu": port.mtu, "ethernet_mac_address": port.mac})
        })
        .collect();
    let addresses =
        guest.ports.iter().enumerate().flat_map(|(at, port)| {
            port.addresses().map(move |(address, gateway)| (at, port, address, gateway))
        });
    let networks: Vec<Value> = addresses
        .enumerate()
        .map(|(number, (at, port, address, gateway))| {
            let any = if address.addr().is_ipv4() { "0.0.0.0" } else { "::" };
            // Only eth0's gateway becomes the default route: a second one would only compete.
            let default = gateway
                .filter(|_| at == 0)
                .map(|gateway| json!({"network": any, "netmask": any, "gateway": gateway}));
            let further = port.routes.iter().filter(|route| route.via.is_ipv4() == address.addr().is_ipv4());
            let further = further.filter(|route| address.contains(&route.via)).map(|route| {
                json!({"network": route.to.network(), "netmask": route.to.netmask(), "gateway": route.via})
            });
            let routes: Vec<Value> = default.into_iter().chain(further).collect();
            json!({
                "id": format!("network{number}"),
                "network_id": port.network,
                "link": port.id,
                "type": if address.addr().is_ipv4() { "ipv4" } else { "ipv6" },
                "ip_address": address.addr(),
                "netmask": address.netmask(),
                "routes": routes,
            })
        })
        .collect();
    let services: Vec<Value> =
        name_servers(&guest.ports).iter().map(|s| json!({"type": "dns", "address": s})).collect();
    json!({"links": links, "networks": networks, "services": services})
}

#[cfg(test)]
mod tests {
    use super::super::vm::sample;
    use super::*;
    use amphi_api::image::ImageFormat;

    #[test]
    fn golden_texts() {
        let plan = sample::plan(ImageFormat::KernelInitramfs);
        let guest = Guest::from(&plan);
        insta::assert_json_snapshot!("meta_data", meta_data(&guest));
        insta::assert_json_snapshot!("network_data", network_data(&guest));
        insta::assert_json_snapshot!("ec2_meta_data", ec2_meta_data(&guest));
    }

    #[test]
    fn two_ports_have_one_default_route_and_each_server_once() {
        let mut plan = sample::plan(ImageFormat::KernelInitramfs);
        let mut second = plan.ports[0].clone();
        second.address = "2001:db8::5/64".parse().unwrap();
        second.gateway = Some("2001:db8::1".parse().unwrap());
        plan.ports.push(second);
        let data = network_data(&Guest::from(&plan));
        assert_eq!(data["networks"][1]["type"], "ipv6");
        assert_eq!(data["networks"][1]["routes"], json!([]));
        assert_eq!(data["services"].as_array().unwrap().len(), 1);
    }

    #[test]
    fn every_version_says_the_same() {
        let mut plan = sample::plan(ImageFormat::KernelInitramfs);
        for user_data in [None, Some("#!/bin/sh".to_owned())] {
            plan.user_data = user_data;
            let files = files(&plan);
            let of = |folder: &str| -> Vec<(String, Vec<u8>)> {
                let below =
                    files.iter().filter_map(|(path, bytes)| Some((path.strip_prefix(folder)?, bytes)));
                below.map(|(name, bytes)| (name.to_owned(), bytes.clone())).collect()
            };
            let names: Vec<String> = of("openstack/latest/").into_iter().map(|(name, _)| name).collect();
            let with_data = ["meta_data.json", "network_data.json", "vendor_data.json", "user_data"];
            assert_eq!(names, with_data[..if plan.user_data.is_some() { 4 } else { 3 }]);
            assert_eq!(of("openstack/latest/"), of("openstack/2015-10-15/"));
            assert_eq!(of("ec2/latest/user-data").len(), usize::from(plan.user_data.is_some()));
        }
    }
}
