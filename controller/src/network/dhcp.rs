//! A subnet's answers to DHCP in OVN's options (ovn-nb(5), "DHCP_Options"). Pure.

use super::SubnetSpec;
use super::render::{Table, owned, row_id};
use amphi_api::network::METADATA_ADDRESS;
use amphi_ovsdb::{Row, Value};
use ipnet::IpNet;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// Lease of an address, in seconds: a day, since the address never changes.
const LEASE_SECONDS: u32 = 86_400;
/// Where answers come from on a network without a gateway.
const SERVER: &str = "169.254.169.253";

/// The row; `own` options stand in place of the subnet's.
pub fn row(subnet: &SubnetSpec, own: &[(&str, &str)], what: &str) -> Row {
    let mut options = match subnet.cidr {
        IpNet::V4(_) => v4(subnet),
        IpNet::V6(_) => v6(subnet),
    };
    options.extend(own.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    Row::new()
        .with("cidr", subnet.cidr.to_string())
        .with("options", Value::map(options))
        .with("external_ids", owned(what))
}

fn v4(subnet: &SubnetSpec) -> BTreeMap<String, String> {
    let server = subnet.gateway.map_or_else(|| SERVER.to_owned(), |gateway| gateway.to_string());
    let mut options = BTreeMap::from([
        ("server_id".to_owned(), server),
        ("server_mac".to_owned(), server_mac(subnet)),
        ("lease_time".to_owned(), LEASE_SECONDS.to_string()),
        ("mtu".to_owned(), subnet.mtu.to_string()),
    ]);
    if let Some(gateway) = subnet.gateway {
        options.insert("router".to_owned(), gateway.to_string());
    }
    let mut routes: Vec<String> = subnet.routes.iter().map(|(to, via)| format!("{to},{via}")).collect();
    // The metadata service is a neighbour: RFC 3442 says so by a router of zeroes. A route of the subnet's own prevails.
    let service = IpNet::from(IpAddr::V4(METADATA_ADDRESS));
    if subnet.routes.iter().all(|(to, _)| *to != service) {
        routes.insert(0, format!("{service},0.0.0.0"));
    }
    // A client that takes this option ignores the router option (RFC 3442).
    routes.extend(subnet.gateway.map(|gateway| format!("0.0.0.0/0,{gateway}")));
    options.insert("classless_static_route".to_owned(), format!("{{{}}}", routes.join(", ")));
    servers(subnet, &mut options);
    options
}

fn v6(subnet: &SubnetSpec) -> BTreeMap<String, String> {
    let mut options = BTreeMap::from([("server_id".to_owned(), server_mac(subnet))]);
    if subnet.stateless {
        options.insert("dhcpv6_stateless".to_owned(), "true".to_owned());
    }
    servers(subnet, &mut options);
    options
}

fn servers(subnet: &SubnetSpec, options: &mut BTreeMap<String, String>) {
    let dns: Vec<String> = subnet.dns.iter().map(ToString::to_string).collect();
    let text = match dns.as_slice() {
        [] => return,
        [one] => one.clone(),
        many => format!("{{{}}}", many.join(", ")),
    };
    options.insert("dns_server".to_owned(), text);
}

/// The address that DHCP answers come from: locally administered, made of the subnet's id.
fn server_mac(subnet: &SubnetSpec) -> String {
    let b = row_id(Table::DhcpOptions, &subnet.id.to_string()).into_bytes();
    format!("0a:{:02x}:{:02x}:{:02x}:{:02x}:{:02x}", b[0], b[1], b[2], b[3], b[4])
}
