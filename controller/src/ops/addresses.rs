//! Which address a port gets: pure. An address asked for is checked, otherwise the one after the highest taken, or
//! else the lowest free one. The transaction then creates the address's key, so that nobody gets it twice.

use super::OpsError;
use crate::model::NetworkRecord;
use amphi_api::PortId;
use ipnet::{IpNet, Ipv4Net};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

type Taken = BTreeMap<IpAddr, PortId>;

/// The port's address on the network. `field` is the connection's place in the request: `networks[0]`.
pub(super) fn allocate(
    network: &NetworkRecord,
    taken: Option<&Taken>,
    wanted: Option<IpAddr>,
    field: &str,
) -> Result<IpAddr, OpsError> {
    let IpNet::V4(subnet) = network.subnet.cidr else {
        return Err(OpsError::Internal(format!("network {} is not IPv4", network.id)));
    };
    let gateway = network.subnet.effective_gateway();
    match wanted {
        Some(address) => check(subnet, gateway, taken, address, &format!("{field}.address")),
        None => free(subnet, gateway, taken).map(IpAddr::V4).ok_or_else(|| {
            OpsError::taken(
                format!("{field}.network"),
                format!("network '{}' has no free address", network.name),
            )
        }),
    }
}

fn check(
    subnet: Ipv4Net,
    gateway: IpAddr,
    taken: Option<&Taken>,
    address: IpAddr,
    field: &str,
) -> Result<IpAddr, OpsError> {
    let IpAddr::V4(v4) = address else {
        return Err(OpsError::field(field, "must be an IPv4 address"));
    };
    if !subnet.contains(&v4) {
        return Err(OpsError::field(field, format!("{v4} is outside of {subnet}")));
    }
    if v4 == subnet.network() || v4 == subnet.broadcast() {
        return Err(OpsError::field(field, format!("{v4} is the network or broadcast address of {subnet}")));
    }
    if address == gateway {
        return Err(OpsError::field(field, format!("{v4} is the gateway")));
    }
    match taken.and_then(|t| t.get(&address)) {
        Some(port) => Err(OpsError::taken(field, format!("{v4} is taken by port {port}"))),
        None => Ok(address),
    }
}

fn free(subnet: Ipv4Net, gateway: IpAddr, taken: Option<&Taken>) -> Option<Ipv4Addr> {
    let first = u32::from(subnet.network()) + 1;
    let last = u32::from(subnet.broadcast()) - 1;
    let is_free = |n: &u32| {
        let address = IpAddr::V4(Ipv4Addr::from(*n));
        address != gateway && taken.is_none_or(|t| !t.contains_key(&address))
    };
    let highest = taken.and_then(|t| t.last_key_value()).and_then(|(address, _)| match address {
        IpAddr::V4(v4) => Some(u32::from(*v4)),
        IpAddr::V6(_) => None,
    });
    let after = highest.map_or(first, |n| n + 1);
    // At most one step for the gateway; then from the bottom.
    let found = (after..=last).take(2).find(is_free).or_else(|| (first..=last).find(is_free));
    found.map(Ipv4Addr::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use amphi_api::network::SubnetSpec;
    use amphi_api::{NetworkId, ProjectId};

    fn network(cidr: &str, gateway: Option<&str>) -> NetworkRecord {
        NetworkRecord {
            id: NetworkId::new(),
            project: ProjectId::DEFAULT,
            name: "n".into(),
            subnet: SubnetSpec {
                cidr: cidr.parse().unwrap(),
                gateway: gateway.map(|g| g.parse().unwrap()),
                dns: Vec::new(),
                dhcp: true,
            },
            mtu: 1442,
            closing: false,
            created_at: jiff::Timestamp::UNIX_EPOCH,
        }
    }

    fn taken(addresses: &[&str]) -> Taken {
        addresses.iter().map(|a| (a.parse().unwrap(), PortId::new())).collect()
    }

    #[test]
    fn free_addresses() {
        type Row = (&'static str, Option<&'static str>, &'static [&'static str], Option<&'static str>);
        let table: [Row; 7] = [
            ("10.0.0.0/29", None, &[], Some("10.0.0.2")),
            ("10.0.0.0/29", None, &["10.0.0.2"], Some("10.0.0.3")),
            ("10.0.0.0/29", None, &["10.0.0.4"], Some("10.0.0.5")),
            ("10.0.0.0/29", None, &["10.0.0.6"], Some("10.0.0.2")),
            ("10.0.0.0/29", Some("10.0.0.4"), &["10.0.0.3"], Some("10.0.0.5")),
            ("10.0.0.0/29", Some("10.0.0.6"), &["10.0.0.5", "10.0.0.1"], Some("10.0.0.2")),
            ("10.0.0.0/29", None, &["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"], None),
        ];
        for (cidr, gateway, used, want) in table {
            let got = allocate(&network(cidr, gateway), Some(&taken(used)), None, "networks[0]");
            match want {
                Some(want) => assert_eq!(got, Ok(want.parse().unwrap()), "{used:?}"),
                None => assert!(
                    matches!(got, Err(OpsError::Conflict { field: Some(ref f), .. }) if f == "networks[0].network")
                ),
            }
        }
    }

    #[test]
    fn wanted_addresses() {
        let net = network("10.0.0.0/24", None);
        let used = taken(&["10.0.0.9"]);
        let ask = |a: &str| allocate(&net, Some(&used), Some(a.parse().unwrap()), "networks[1]");
        assert_eq!(ask("10.0.0.10"), Ok("10.0.0.10".parse().unwrap()));
        for bad in ["10.0.1.1", "10.0.0.0", "10.0.0.255", "10.0.0.1", "::1"] {
            assert!(
                matches!(ask(bad), Err(OpsError::Field(ref e)) if e.field == "networks[1].address"),
                "{bad}"
            );
        }
        assert!(matches!(ask("10.0.0.9"), Err(OpsError::Conflict { .. })));
    }
}
