//! `/v2.0/extensions`: which of neutron's extensions are there. Clients read the aliases.

use crate::faces::openstack::answers::Refusal;
use axum::Json;
use axum::extract::Path;
use serde_json::{Value, json};

/// Alias, name, description.
const EXTENSIONS: [(&str, &str, &str); 35] = [
    ("agent", "agent", "The agents of the hosts."),
    ("allowed-address-pairs", "Allowed Address Pairs", "Provides allowed address pairs"),
    ("availability_zone", "Availability Zone", "The availability zone extension."),
    ("binding", "Port Binding", "Expose port bindings of a virtual port to external application"),
    (
        "ext-gw-mode",
        "Neutron L3 Configurable external gateway mode",
        "Source NAT of a router's gateway can be switched off.",
    ),
    ("external-net", "Neutron external network", "Adds external network attribute to network resource."),
    ("extra_dhcp_opt", "Neutron Extra DHCP options", "Extra options configuration for DHCP."),
    ("extraroute", "Neutron Extra Route", "Extra routes configuration for L3 router"),
    (
        "extraroute-atomic",
        "Atomically add/remove extra routes",
        "Edit extra routes of a router on server side by atomically adding/removing extra routes",
    ),
    (
        "fip-port-details",
        "Floating IP Port Details Extension",
        "Add port_details attribute to Floating IP resource",
    ),
    (
        "ip-substring-filtering",
        "IP address substring filtering",
        "Provides IP address substring filtering when listing ports",
    ),
    ("net-mtu", "Network MTU", "Provides MTU attribute for a network resource."),
    (
        "net-mtu-writable",
        "Network MTU (writable)",
        "Provides a writable MTU attribute for a network resource.",
    ),
    (
        "network-ip-availability",
        "Network IP Availability",
        "Provides IP availability data for each network and subnet.",
    ),
    ("network_availability_zone", "Network Availability Zone", "Availability zone support for network."),
    ("pagination", "Pagination support", "Extension that indicates that pagination is enabled."),
    ("port-security", "Port Security", "Provides port security"),
    (
        "port-security-groups-filtering",
        "Port filtering on security groups",
        "Provides security groups filtering when listing ports",
    ),
    ("project-id", "project_id field enabled", "Extension that indicates that project_id field is enabled."),
    ("provider", "Provider Network", "Expose mapping of virtual networks to physical networks"),
    ("qos", "Quality of Service", "The Quality of Service extension."),
    (
        "qos-bw-limit-direction",
        "Direction for QoS bandwidth limit rule",
        "Allow to configure QoS bandwidth limit rule with specific direction: ingress or egress",
    ),
    (
        "quota_details",
        "Quota details management support",
        "Expose functions for quotas usage statistics per project",
    ),
    ("quotas", "Quota management support", "Expose functions for quotas management per project"),
    (
        "router",
        "Neutron L3 Router",
        "Router abstraction for basic L3 forwarding between L2 Neutron networks and access to external networks via a NAT gateway.",
    ),
    ("router_availability_zone", "Router Availability Zone", "Availability zone support for router."),
    ("security-group", "security-group", "The security groups extension."),
    (
        "security-groups-normalized-cidr",
        "Normalized CIDR field for security group rules",
        "Add new field with normalized remote_ip_prefix to SG rules",
    ),
    ("sorting", "Sorting support", "Extension that indicates that sorting is enabled."),
    (
        "standard-attr-description",
        "standard-attr-description",
        "Extension to add descriptions to standard attributes",
    ),
    (
        "standard-attr-revisions",
        "Resource revision numbers",
        "This extension will display the revision number of neutron resources.",
    ),
    (
        "standard-attr-tag",
        "Tag support for resources with standard attribute: network, subnet, port, router, floatingip, security_group, policy",
        "Enables to set tag on resources with standard attribute.",
    ),
    (
        "standard-attr-timestamp",
        "Resource timestamps",
        "Adds created_at and updated_at fields to all Neutron resources that have Neutron standard attributes.",
    ),
    (
        "stateful-security-group",
        "Stateful security group",
        "Indicates if the security group is stateful or not",
    ),
    (
        "tag-ext",
        "Tag support for resources: subnet, port, router",
        "Extends tag support to more L2 and L3 resources.",
    ),
];

fn shown((alias, name, description): (&str, &str, &str)) -> Value {
    // Nobody reads the time; it has to be one.
    json!({"alias": alias, "name": name, "description": description, "updated": "2016-01-01T00:00:00-00:00", "links": []})
}

pub async fn list() -> Json<Value> {
    Json(json!({"extensions": EXTENSIONS.map(shown).to_vec()}))
}

pub async fn show(Path(alias): Path<String>) -> Result<Json<Value>, Refusal> {
    let found = EXTENSIONS.into_iter().find(|(known, ..)| *known == alias);
    let found = found.ok_or_else(|| Refusal::not_found("extension", alias).kind("ExtensionNotFound"))?;
    Ok(Json(json!({"extension": shown(found)})))
}
