//! Renders a plan into the bodies that Docker's API takes. Pure; golden-tested. Refuses to ask the engine anything.
//!
//! Written for API 1.41 and later. A port's MAC travels as the driver's own option, because where Docker wants it
//! moved between API versions and further endpoints never had a place for it before 1.44.

use super::labels::{self, Life, network_name};
use super::{member, mounts, sizing};
use crate::instance::{BodyPlan, PortAttachment, limits};
use amphi_api::network::METADATA_ADDRESS;
use amphi_api::set::{LogSpec, MemberSpec, SetSpec};
use amphi_api::validate::hostname;
use bollard::models::{
    ContainerCreateBody, EndpointIpamConfig, EndpointSettings, HostConfig, Ipam, IpamConfig,
    NetworkConnectRequest, NetworkCreateRequest, NetworkingConfig, RestartPolicy, RestartPolicyNameEnum,
};
use ipnet::IpNet;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::net::IpAddr;
use std::path::PathBuf;

/// The name of our network, IPAM and volume drivers.
pub(super) const DRIVER: &str = "amphi";
/// A shell that ends at once on SIGTERM and reaps whatever is left to it as the first process.
const ANCHOR_SCRIPT: &str = "trap 'exit 0' TERM INT; while :; do sleep 86400 & wait; done";

/// Facts of the host and of its image store that a rendering depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Of the built-in anchor image.
    pub anchor_image: String,
    /// Whether containers can be given every capability; see [`super::SetOptions::privileged_anchor`].
    pub privileged_anchor: bool,
    /// The members' images, parallel to the set's members.
    pub member_images: Vec<String>,
    /// Host paths of what members are offered: see [`mounts::CONFIG_DRIVE`] and [`mounts::AUTHORIZED_KEYS`].
    pub config_drive: PathBuf,
    pub authorized_keys: PathBuf,
    /// Host path of the set's [`mounts::RESOLV_CONF`].
    pub resolv_conf: PathBuf,
    /// The host's directory below which further volumes come and go; see [`mounts::VOLUMES`].
    pub volumes: PathBuf,
    /// Folder of the members' config files; see [`super::files::of_member`].
    pub files: PathBuf,
    /// Folder in which directories of the volume are mounted for members: `<member>-<place in the list>`.
    pub parts: PathBuf,
}

/// A set as Docker is told it.
#[derive(Clone, Debug, PartialEq)]
pub struct RenderedSet {
    pub anchor: Rendered,
    /// The anchor's ports beyond the first, in order: network name and request. To be connected before it starts.
    pub connects: Vec<(String, NetworkConnectRequest)>,
    /// In start order.
    pub members: Vec<RenderedMember>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct RenderedMember {
    pub name: String,
    pub index: u32,
    pub container: Rendered,
}

/// One container.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rendered {
    pub name: String,
    /// The hash in its [`labels::SPEC`] label.
    pub spec: String,
    pub body: ContainerCreateBody,
}

/// The whole set. `set` is what runs of the plan, normalized.
pub fn render(plan: &BodyPlan, set: &SetSpec, facts: &Facts) -> RenderedSet {
    RenderedSet {
        anchor: anchor(plan, set, facts),
        connects: connects(plan),
        members: members(plan, set, facts),
    }
}

/// The anchor alone, which needs no member's image.
pub fn anchor(plan: &BodyPlan, set: &SetSpec, facts: &Facts) -> Rendered {
    render_anchor(plan, plan.own_set(set), facts)
}

/// Its ports beyond the first.
pub fn connects(plan: &BodyPlan) -> Vec<(String, NetworkConnectRequest)> {
    plan.ports.iter().skip(1).map(|port| render_connect(plan, port, false)).collect()
}

/// The members alone, in start order.
pub fn members(plan: &BodyPlan, set: &SetSpec, facts: &Facts) -> Vec<RenderedMember> {
    let mut members: Vec<RenderedMember> = set
        .members
        .iter()
        .zip(&facts.member_images)
        .map(|(member, image)| RenderedMember {
            name: member.effective_name(),
            index: member.index,
            container: render_member(plan, set, member, image, facts),
        })
        .collect();
    members.sort_by_key(|member| member.index);
    members
}

/// The Docker network of a port. Overlapping subnets of different networks are told apart by the IPAM option.
pub fn render_network(port: &PortAttachment) -> NetworkCreateRequest {
    let id = port.network.to_string();
    let mut options = pairs([("amphi.mtu", port.mtu.to_string())]);
    if port.gateway.is_none() {
        options.insert("amphi.gateway".to_owned(), "none".to_owned());
    }
    NetworkCreateRequest {
        name: network_name(port),
        driver: Some(DRIVER.to_owned()),
        ipam: Some(Ipam {
            driver: Some(DRIVER.to_owned()),
            config: Some(vec![IpamConfig {
                subnet: Some(port.subnet.trunc().to_string()),
                gateway: port.gateway.map(|gateway| gateway.to_string()),
                ..Default::default()
            }]),
            options: Some(pairs([(labels::NETWORK, id.clone())])),
        }),
        enable_ipv6: Some(port.subnet.addr().is_ipv6()),
        options: Some(options),
        labels: Some(pairs([(labels::NETWORK, id)])),
        ..Default::default()
    }
}

fn render_anchor(plan: &BodyPlan, set: &SetSpec, facts: &Facts) -> Rendered {
    let host = hostname(&plan.name);
    let anchor = &set.anchor;
    // Docker itself writes the name with the address of every port into /etc/hosts, in no fixed order, but after what it
    // is given here: so the name is eth0's address first, as it is in a VM.
    let address = plan.ports.first().map_or(IpAddr::from([127, 0, 0, 1]), |port| port.address.addr());
    let endpoints = plan.ports.first().map(|port| NetworkingConfig {
        endpoints_config: Some(HashMap::from([(network_name(port), render_endpoint(port, true))])),
    });
    let sysctls: HashMap<String, String> =
        anchor.sysctls.iter().map(|(key, value)| (dotted(key), value.clone())).collect();
    let members = labels::write_members(set.members.iter().map(|m| (m.index, m.name.as_str())));
    let body = ContainerCreateBody {
        hostname: Some(host.clone()),
        image: Some(facts.anchor_image.clone()),
        entrypoint: Some(vec!["/bin/busybox".to_owned(), "sh".to_owned(), "-c".to_owned()]),
        cmd: Some(vec![ANCHOR_SCRIPT.to_owned()]),
        labels: Some(labels_of(plan, labels::ANCHOR, [(labels::MEMBERS, members)])),
        networking_config: endpoints,
        host_config: Some(HostConfig {
            network_mode: Some(plan.ports.first().map_or_else(|| "none".to_owned(), network_name)),
            ipc_mode: Some("shareable".to_owned()),
            privileged: Some(facts.privileged_anchor),
            // Docker applies them in the anchor's namespaces before its first instruction and refuses the start
            // when one cannot be applied, so no member ever runs without them.
            sysctls: Some(sysctls).filter(|sysctls| !sysctls.is_empty()),
            extra_hosts: Some(
                std::iter::once(format!("{host}:{address}"))
                    .chain(anchor.hosts.iter().map(|(name, address)| format!("{name}:{address}")))
                    .collect(),
            ),
            shm_size: anchor.shm_mib.map(|size| signed(size << 20)),
            mounts: Some(mounts::of_anchor(plan, set, facts)),
            log_config: Some(member::log_config(&LogSpec::default())),
            ..common_host_config()
        }),
        ..Default::default()
    };
    labelled(labels::anchor_name(plan.instance), body)
}

fn render_member(
    plan: &BodyPlan,
    set: &SetSpec,
    member: &MemberSpec,
    image: &str,
    facts: &Facts,
) -> Rendered {
    let anchor = format!("container:{}", labels::anchor_name(plan.instance));
    let name = member.effective_name();
    let limits = limits::of_set(set, plan.vcpus, plan.memory_mib);
    let limits = limits.get(&name).copied().unwrap_or_default();
    let timezone = plan.own_set(set).anchor.timezone.as_deref();
    let mut command = member.command.iter().cloned();
    let body = ContainerCreateBody {
        image: Some(image.to_owned()),
        env: Some(member::env(member, timezone)),
        entrypoint: command.next().map(|program| vec![program]),
        cmd: match (member.command.is_empty(), member.args.is_empty()) {
            (false, _) => Some(command.collect()),
            (true, false) => Some(member.args.clone()),
            (true, true) => None,
        },
        user: member.user.clone(),
        working_dir: member.directory.clone(),
        stop_signal: member.stop.signal.as_deref().map(member::signal),
        labels: Some(member_labels(plan, set, member, &name)),
        host_config: Some(HostConfig {
            network_mode: Some(anchor.clone()),
            ipc_mode: Some(anchor),
            mounts: Some(mounts::of_member(plan, set, member, &name, timezone, facts)),
            ulimits: member::ulimits(member),
            cap_add: member::capabilities(&member.capabilities.add),
            cap_drop: member::capabilities(&member.capabilities.drop),
            readonly_rootfs: member.read_only.then_some(true),
            tmpfs: member::tmpfs(member),
            log_config: Some(member::log_config(&member.log)),
            restart_policy: common_host_config().restart_policy,
            ..sizing::host_config(&limits)
        }),
        ..Default::default()
    };
    labelled(member_container(plan, &name), body)
}

/// The container's name of a member of what runs.
pub fn member_container(plan: &BodyPlan, member: &str) -> String {
    if plan.rescue.is_some() {
        labels::rescuer_name(plan.instance, member)
    } else {
        labels::generation_name(plan.instance, member, plan.generation_of(member))
    }
}

fn common_host_config() -> HostConfig {
    HostConfig {
        restart_policy: Some(RestartPolicy {
            name: Some(RestartPolicyNameEnum::NO),
            maximum_retry_count: None,
        }),
        ..Default::default()
    }
}

/// One port of the anchor, by itself.
pub fn render_connect(
    plan: &BodyPlan,
    port: &PortAttachment,
    first: bool,
) -> (String, NetworkConnectRequest) {
    let request = NetworkConnectRequest {
        container: labels::anchor_name(plan.instance),
        endpoint_config: Some(render_endpoint(port, first)),
    };
    (network_name(port), request)
}

/// Only eth0 may carry the default route: Docker would choose among several by the network's name.
fn render_endpoint(port: &PortAttachment, first: bool) -> EndpointSettings {
    let address = port.address.addr();
    let mut driver_opts = pairs([
        (labels::PORT, port.id.to_string()),
        ("amphi.mac", port.mac.clone()),
        ("amphi.mtu", port.mtu.to_string()),
    ]);
    let gateway =
        port.gateway.filter(|_| first).map_or_else(|| "none".to_owned(), |gateway| gateway.to_string());
    let second = port.second_family();
    let gateway6 = second.filter(|_| first).and_then(|second| second.gateway);
    let gateways = match (gateway.as_str(), gateway6) {
        (_, None) => gateway,
        ("none", Some(six)) => six.to_string(),
        (four, Some(six)) => format!("{four},{six}"),
    };
    driver_opts.insert("amphi.gateway".to_owned(), gateways);
    if let Some(second) = second {
        driver_opts.insert("amphi.address6".to_owned(), second.address.to_string());
    }
    let mut routes: Vec<String> = port.routes.iter().map(|r| format!("{} via {}", r.to, r.via)).collect();
    // As DHCP tells a VM: the metadata service is a neighbour. On eth0 alone, since nobody has one route twice.
    let service = IpNet::from(IpAddr::V4(METADATA_ADDRESS));
    if first && address.is_ipv4() && port.routes.iter().all(|route| route.to != service) {
        routes.push(service.to_string());
    }
    if !routes.is_empty() {
        driver_opts.insert("amphi.routes".to_owned(), routes.join(";"));
    }
    EndpointSettings {
        ipam_config: Some(EndpointIpamConfig {
            ipv4_address: address.is_ipv4().then(|| address.to_string()),
            ipv6_address: address.is_ipv6().then(|| address.to_string()),
            ..Default::default()
        }),
        driver_opts: Some(driver_opts),
        ..Default::default()
    }
}

fn labels_of<const N: usize>(
    plan: &BodyPlan,
    member: &str,
    more: [(&str, String); N],
) -> HashMap<String, String> {
    let mut all = pairs([
        (labels::INSTANCE, plan.instance.to_string()),
        (labels::EPOCH, plan.epoch.to_string()),
        (labels::PROJECT, plan.project.to_string()),
        (labels::NAME, plan.name.clone()),
        (labels::KIND, "set".to_owned()),
        (labels::MEMBER, member.to_owned()),
        // Said of each, so that no image's own label counts.
        (labels::RESCUE, "no".to_owned()),
    ]);
    all.extend(pairs(more));
    all
}

fn member_labels(plan: &BodyPlan, set: &SetSpec, member: &MemberSpec, name: &str) -> HashMap<String, String> {
    let mut all = labels_of(plan, name, [(labels::INDEX, member.index.to_string())]);
    if plan.rescue.is_some() {
        let members = labels::write_members(set.members.iter().map(|m| (m.index, m.name.as_str())));
        all.extend(pairs([(labels::RESCUE, "yes".to_owned()), (labels::MEMBERS, members)]));
    }
    let generation = plan.generation_of(name);
    if generation > 0 {
        all.extend(pairs([(labels::GENERATION, generation.to_string())]));
    }
    all.extend(Life::of(member).write().map(|life| (labels::LIFE.to_owned(), life)));
    all
}

fn labelled(name: String, mut body: ContainerCreateBody) -> Rendered {
    let spec = spec_hash(&body);
    body.labels.get_or_insert_default().insert(labels::SPEC.to_owned(), spec.clone());
    Rendered { name, spec, body }
}

/// The first 16 hexadecimal digits of the SHA-256 of the body as JSON with sorted keys, without what a container takes on
/// while it is there: one that was resized is made as it would be made.
fn spec_hash(body: &ContainerCreateBody) -> String {
    let mut value = serde_json::to_value(body).unwrap_or(Value::Null);
    if let Some(config) = value.get_mut("HostConfig").and_then(Value::as_object_mut) {
        for taken_on in ["CpuPeriod", "CpuQuota", "CpuShares", "Memory", "MemorySwap", "PidsLimit"] {
            config.remove(taken_on);
        }
    }
    let mut hash = hex::encode(Sha256::digest(sorted(value).to_string()));
    hash.truncate(16);
    hash
}

/// Keys in order, whatever map serde_json is built with.
fn sorted(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut entries: Vec<(String, Value)> = map.into_iter().map(|(k, v)| (k, sorted(v))).collect();
            entries.sort_by(|a, b| a.0.cmp(&b.0));
            Value::Object(entries.into_iter().collect())
        }
        Value::Array(list) => Value::Array(list.into_iter().map(sorted).collect()),
        plain => plain,
    }
}

/// Docker takes sysctl keys with dots; sysctl(8) also reads slashes, and where they come first a dot is part of a
/// name (`net/ipv4/conf/eth0.5/forwarding`).
fn dotted(key: &str) -> String {
    match key.find(['.', '/']).map(|at| key.as_bytes()[at]) {
        Some(b'/') => key
            .chars()
            .map(|c| {
                if c == '/' {
                    '.'
                } else if c == '.' {
                    '/'
                } else {
                    c
                }
            })
            .collect(),
        _ => key.to_owned(),
    }
}

pub(super) fn pairs<const N: usize>(pairs: [(&str, String); N]) -> HashMap<String, String> {
    pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

/// Memory and CPU figures are far below 2^63.
pub(super) fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
