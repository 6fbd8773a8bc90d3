//! Subnets: ranges of addresses of a network. Subnets of one network never overlap.

use super::{Notes, is_yes, yes};
use crate::model::Record;
use amphi_api::{NetworkId, ProjectId, SubnetId};
use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SubnetRecord {
    pub id: SubnetId,
    pub project: ProjectId,
    pub network: NetworkId,
    pub name: String,
    /// Without host bits.
    pub cidr: IpNet,
    #[serde(default)]
    pub gateway: Option<IpAddr>,
    /// Where addresses are taken from; inside of `cidr`, in order, without overlap, without the gateway.
    pub pools: Vec<Pool>,
    #[serde(default)]
    pub dns: Vec<IpAddr>,
    #[serde(default)]
    pub routes: Vec<HostRoute>,
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub dhcp: bool,
    /// IPv6: `slaac`, `dhcpv6-stateful`, `dhcpv6-stateless`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ra_mode: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address_mode: Option<String>,
    /// Being deleted: gives no addresses any more.
    #[serde(default)]
    pub closing: bool,
    #[serde(default)]
    pub notes: Notes,
    pub created_at: Timestamp,
}

/// First and last address, both of them in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    pub start: IpAddr,
    pub end: IpAddr,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostRoute {
    pub destination: IpNet,
    pub nexthop: IpAddr,
}

impl Record for SubnetRecord {
    const PREFIX: &'static str = "/subnet/";
    const NOUN: &'static str = "subnet";
    type Id = SubnetId;
    fn id(&self) -> SubnetId {
        self.id
    }
    fn owner(&self) -> Option<(ProjectId, &str)> {
        Some((self.project, &self.name))
    }
}

impl SubnetRecord {
    pub fn is_v4(&self) -> bool {
        matches!(self.cidr, IpNet::V4(_))
    }

    /// Hosts make their address themselves, of prefix and MAC.
    pub fn self_addressed(&self) -> bool {
        let own = |mode: &Option<String>| matches!(mode.as_deref(), Some("slaac" | "dhcpv6-stateless"));
        own(&self.address_mode)
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6),
    }
}

fn address(like: IpAddr, number: u128) -> IpAddr {
    match like {
        // Callers stay within a pool, and with it within 32 bits.
        IpAddr::V4(_) => Ipv4Addr::from(number as u32).into(),
        IpAddr::V6(_) => Ipv6Addr::from(number).into(),
    }
}

impl Pool {
    pub fn contains(&self, wanted: IpAddr) -> bool {
        wanted.is_ipv4() == self.start.is_ipv4() && self.start <= wanted && wanted <= self.end
    }

    pub fn overlaps(&self, other: &Pool) -> bool {
        self.start <= other.end && other.start <= self.end
    }

    pub fn len(&self) -> u128 {
        (number(self.end) - number(self.start)).saturating_add(1)
    }

    pub fn is_empty(&self) -> bool {
        self.start > self.end
    }

    /// Addresses from `after` (none: the start) to the end, in order.
    pub fn addresses(&self, after: Option<IpAddr>) -> impl Iterator<Item = IpAddr> + '_ {
        let first = match after {
            Some(after) => number(after).checked_add(1),
            None => Some(number(self.start)),
        };
        let range = first.map(|first| first..=number(self.end));
        range.into_iter().flatten().map(|n| address(self.start, n))
    }
}

/// All host addresses of the subnet but the gateway's, as neutron has it: IPv4 without the first and the last address
/// (but for /31 and /32), IPv6 without the first (the routers' anycast address, RFC 4291).
pub fn default_pools(cidr: IpNet, gateway: Option<IpAddr>) -> Vec<Pool> {
    let (like, first, last) = (cidr.network(), number(cidr.network()), number(cidr.broadcast()));
    let (first, last) = match cidr {
        IpNet::V4(net) if net.prefix_len() < 31 => (first + 1, last - 1),
        IpNet::V6(net) if net.prefix_len() < 127 => (first + 1, last),
        _ => (first, last),
    };
    let gateway = gateway.map(number).filter(|n| (first..=last).contains(n));
    let pool = |start, end| Pool { start: address(like, start), end: address(like, end) };
    match gateway {
        None => vec![pool(first, last)],
        Some(gateway) => {
            let below = (gateway > first).then(|| pool(first, gateway - 1));
            let above = (gateway < last).then(|| pool(gateway + 1, last));
            below.into_iter().chain(above).collect()
        }
    }
}

/// The address that a host makes itself: prefix and modified EUI-64 of the MAC (RFC 4291, appendix A).
pub fn eui64(prefix: IpNet, mac: &str) -> Option<IpAddr> {
    let IpNet::V6(net) = prefix else { return None };
    let mut bytes = [0_u8; 6];
    let mut parts = mac.split(':');
    for byte in &mut bytes {
        *byte = u8::from_str_radix(parts.next()?, 16).ok()?;
    }
    let [a, b, c, d, e, f] = bytes;
    let host = u64::from_be_bytes([a ^ 2, b, c, 0xff, 0xfe, d, e, f]);
    Some(Ipv6Addr::from(u128::from(net.network()) | u128::from(host)).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pools_leave_the_gateway_out() {
        let table: [(&str, Option<&str>, &str); 7] = [
            ("10.0.0.0/24", Some("10.0.0.1"), "10.0.0.2-10.0.0.254"),
            ("10.0.0.0/24", None, "10.0.0.1-10.0.0.254"),
            ("10.0.0.0/24", Some("10.0.0.9"), "10.0.0.1-10.0.0.8 10.0.0.10-10.0.0.254"),
            ("10.0.0.0/30", Some("10.0.0.2"), "10.0.0.1-10.0.0.1"),
            ("10.0.0.0/31", None, "10.0.0.0-10.0.0.1"),
            ("fd00::/64", Some("fd00::1"), "fd00::2-fd00::ffff:ffff:ffff:ffff"),
            ("fd00::/126", Some("fd00::9"), "fd00::1-fd00::3"),
        ];
        for (cidr, gateway, want) in table {
            let pools = default_pools(cidr.parse().unwrap(), gateway.map(|g| g.parse().unwrap()));
            let got: Vec<String> = pools.iter().map(|p| format!("{}-{}", p.start, p.end)).collect();
            assert_eq!(got.join(" "), want, "{cidr} {gateway:?}");
        }
    }

    #[test]
    fn hosts_make_the_address_that_we_expect() {
        let got = eui64("2001:db8::/64".parse().unwrap(), "fa:16:3e:11:22:33");
        assert_eq!(got, Some("2001:db8::f816:3eff:fe11:2233".parse().unwrap()));
        assert_eq!(eui64("10.0.0.0/24".parse().unwrap(), "fa:16:3e:11:22:33"), None);
    }

    #[test]
    fn a_pool_goes_on_after_an_address() {
        let pool = Pool { start: "10.0.0.250".parse().unwrap(), end: "10.0.0.252".parse().unwrap() };
        let all: Vec<String> = pool.addresses(None).map(|a| a.to_string()).collect();
        assert_eq!(all, ["10.0.0.250", "10.0.0.251", "10.0.0.252"]);
        assert_eq!(pool.addresses(Some(pool.end)).count(), 0);
        assert_eq!(pool.len(), 3);
    }
}
