//! Which addresses a port gets: pure. An address asked for is checked; otherwise it is one that nobody has had for as long
//! as can be ([`AddressBook::free`]). The transaction then creates the address's key, so that nobody gets it twice.

use super::address_book::AddressBook;
use super::view::Row;
use super::{OpsError, View};
use crate::model::NetworkRecord;
use crate::model::network::{FixedIp, SubnetRecord, eui64};
use amphi_api::{PortId, SubnetId};
use ipnet::IpNet;
use std::net::IpAddr;

/// One address that is asked for: this one, any of this subnet, or this one of this subnet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FixedIpWish {
    pub subnet: Option<SubnetId>,
    pub address: Option<IpAddr>,
}

/// Who asks.
pub(super) struct Asker<'a> {
    pub mac: &'a str,
    /// The port, where it exists already: what it has is free for it.
    pub port: Option<PortId>,
    /// A router's interface may be the gateway itself.
    pub router: bool,
    /// The connection's place in the request: `networks[0]`.
    pub field: &'a str,
}

/// The port's addresses on the network. Nothing asked for: one of IPv4 and one of IPv6, as far as there are subnets.
pub(super) fn allocate(
    view: &View,
    network: &NetworkRecord,
    wishes: Option<&[FixedIpWish]>,
    asker: &Asker<'_>,
) -> Result<Vec<FixedIp>, OpsError> {
    let subnets: Vec<&Row<SubnetRecord>> =
        view.subnets_of(network.id).filter(|subnet| !subnet.closing).collect();
    let subnets: Vec<&SubnetRecord> = subnets.into_iter().map(|row| &*row.record).collect();
    let none = AddressBook::default();
    choose(network, &subnets, view.addresses(network.id).unwrap_or(&none), wishes, asker)
}

fn choose(
    network: &NetworkRecord,
    subnets: &[&SubnetRecord],
    book: &AddressBook,
    wishes: Option<&[FixedIpWish]>,
    asker: &Asker<'_>,
) -> Result<Vec<FixedIp>, OpsError> {
    let mut chosen: Vec<FixedIp> = Vec::new();
    match wishes {
        Some(wishes) => {
            for wish in wishes {
                let ip = one(network, subnets, book, &chosen, wish, asker)?;
                chosen.push(ip);
            }
        }
        None => {
            for v4 in [true, false] {
                let family: Vec<&SubnetRecord> =
                    subnets.iter().copied().filter(|s| s.is_v4() == v4).collect();
                if family.is_empty() {
                    continue;
                }
                let (own, given): (Vec<_>, Vec<_>) = family.into_iter().partition(|s| s.self_addressed());
                let found = given.iter().find_map(|s| {
                    free(s, book, &chosen, asker).map(|address| FixedIp { subnet: s.id, address })
                });
                if found.is_none() && !given.is_empty() {
                    return Err(full(network, asker));
                }
                chosen.extend(found);
                for subnet in own {
                    let address = self_made(subnet, book, asker)?;
                    chosen.push(FixedIp { subnet: subnet.id, address });
                }
            }
        }
    }
    Ok(chosen)
}

fn full(network: &NetworkRecord, asker: &Asker<'_>) -> OpsError {
    OpsError::taken(
        format!("{}.network", asker.field),
        format!("network '{}' has no free address", network.name),
    )
}

fn one(
    network: &NetworkRecord,
    subnets: &[&SubnetRecord],
    book: &AddressBook,
    chosen: &[FixedIp],
    wish: &FixedIpWish,
    asker: &Asker<'_>,
) -> Result<FixedIp, OpsError> {
    let field = format!("{}.address", asker.field);
    let named = match wish.subnet {
        None => None,
        Some(id) => Some(subnets.iter().copied().find(|s| s.id == id).ok_or_else(|| {
            OpsError::field(format!("{}.subnet", asker.field), format!("no subnet {id} on the network"))
        })?),
    };
    match (named, wish.address) {
        (Some(subnet), None) if subnet.self_addressed() && !asker.router => {
            Ok(FixedIp { subnet: subnet.id, address: self_made(subnet, book, asker)? })
        }
        (Some(subnet), None) => free(subnet, book, chosen, asker)
            .map(|address| FixedIp { subnet: subnet.id, address })
            .ok_or_else(|| full(network, asker)),
        (None, None) => subnets
            .iter()
            .find_map(|s| free(s, book, chosen, asker).map(|address| FixedIp { subnet: s.id, address }))
            .ok_or_else(|| full(network, asker)),
        (named, Some(address)) => {
            let within = |s: &&SubnetRecord| s.cidr.contains(&address);
            let Some(subnet) = named.or_else(|| subnets.iter().copied().find(within)) else {
                let ranges: Vec<String> = subnets.iter().map(|s| s.cidr.to_string()).collect();
                return Err(OpsError::field(field, format!("{address} is outside of {}", ranges.join(", "))));
            };
            check(subnet, address, book, chosen, asker, &field)?;
            Ok(FixedIp { subnet: subnet.id, address })
        }
    }
}

fn check(
    subnet: &SubnetRecord,
    address: IpAddr,
    book: &AddressBook,
    chosen: &[FixedIp],
    asker: &Asker<'_>,
    field: &str,
) -> Result<(), OpsError> {
    let cidr = subnet.cidr;
    if !cidr.contains(&address) {
        return Err(OpsError::field(field, format!("{address} is outside of {cidr}")));
    }
    let edge = match cidr {
        IpNet::V4(net) => net.prefix_len() < 31 && (address == net.network() || address == net.broadcast()),
        IpNet::V6(net) => net.prefix_len() < 127 && address == net.network(),
    };
    if edge {
        return Err(OpsError::field(
            field,
            format!("{address} is the network or broadcast address of {cidr}"),
        ));
    }
    if subnet.gateway == Some(address) && !asker.router {
        return Err(OpsError::field(field, format!("{address} is the gateway")));
    }
    if chosen.iter().any(|ip| ip.address == address) {
        return Err(OpsError::field(field, format!("{address} is asked for twice")));
    }
    match book.port_at(address).filter(|port| Some(*port) != asker.port) {
        Some(port) => Err(OpsError::taken(field, format!("{address} is taken by port {port}"))),
        None => Ok(()),
    }
}

fn self_made(subnet: &SubnetRecord, book: &AddressBook, asker: &Asker<'_>) -> Result<IpAddr, OpsError> {
    let address = eui64(subnet.cidr, asker.mac)
        .ok_or_else(|| OpsError::Internal(format!("no address can be made of {}", asker.mac)))?;
    match book.port_at(address).filter(|port| Some(*port) != asker.port) {
        Some(port) => Err(OpsError::taken(
            format!("{}.address", asker.field),
            format!("{address} is taken by port {port}"),
        )),
        None => Ok(address),
    }
}

fn free(subnet: &SubnetRecord, book: &AddressBook, chosen: &[FixedIp], asker: &Asker<'_>) -> Option<IpAddr> {
    if subnet.self_addressed() && !asker.router {
        return self_made(subnet, book, asker).ok();
    }
    let usable = |address| subnet.gateway != Some(address) && chosen.iter().all(|ip| ip.address != address);
    book.free(subnet, usable)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::network::default_pools;
    use amphi_api::{NetworkId, ProjectId};
    use std::collections::BTreeMap;

    fn network() -> NetworkRecord {
        NetworkRecord {
            id: NetworkId::new(),
            project: ProjectId::DEFAULT,
            name: "n".into(),
            mtu: 1442,
            closing: false,
            shared: false,
            external: false,
            admin_up: true,
            port_security: true,
            provider: Default::default(),
            qos: None,
            is_default: false,
            notes: Default::default(),
            created_at: jiff::Timestamp::UNIX_EPOCH,
        }
    }

    fn subnet(cidr: &str, gateway: Option<&str>) -> SubnetRecord {
        let cidr: IpNet = cidr.parse().unwrap();
        let gateway = gateway.map(|g| g.parse().unwrap());
        SubnetRecord {
            id: SubnetId::new(),
            project: ProjectId::DEFAULT,
            network: NetworkId::new(),
            name: String::new(),
            cidr,
            gateway,
            pools: default_pools(cidr, gateway),
            dns: Vec::new(),
            routes: Vec::new(),
            dhcp: true,
            ra_mode: None,
            address_mode: None,
            closing: false,
            notes: Default::default(),
            created_at: jiff::Timestamp::UNIX_EPOCH,
        }
    }

    /// Given in this order; with a minus, released again.
    fn book(subnet: &SubnetRecord, addresses: &[&str]) -> AddressBook {
        let mut book = AddressBook::default();
        for text in addresses {
            match text.strip_prefix('-') {
                Some(text) => {
                    let address = text.parse().unwrap();
                    book.release(address, book.port_at(address).unwrap());
                }
                None => book.give(text.parse().unwrap(), PortId::new(), Some(subnet.id)),
            }
        }
        book
    }

    const ASKER: Asker<'static> =
        Asker { mac: "fa:16:3e:11:22:33", port: None, router: false, field: "networks[0]" };

    #[test]
    fn free_addresses() {
        type Row = (&'static str, Option<&'static str>, &'static [&'static str], Option<&'static str>);
        let one = Some("10.0.0.1");
        let table: [Row; 13] = [
            ("10.0.0.0/29", one, &[], Some("10.0.0.2")),
            ("10.0.0.0/29", one, &["10.0.0.2"], Some("10.0.0.3")),
            ("10.0.0.0/29", one, &["10.0.0.4"], Some("10.0.0.5")),
            ("10.0.0.0/29", one, &["10.0.0.6"], Some("10.0.0.2")),
            ("10.0.0.0/29", Some("10.0.0.4"), &["10.0.0.3"], Some("10.0.0.5")),
            ("10.0.0.0/29", Some("10.0.0.4"), &["10.0.0.6"], Some("10.0.0.1")),
            // The one given last is what counts, not the highest; what was released comes last, the first of it first.
            ("10.0.0.0/29", one, &["10.0.0.5", "10.0.0.2"], Some("10.0.0.3")),
            ("10.0.0.0/29", one, &["10.0.0.2", "-10.0.0.2"], Some("10.0.0.3")),
            (
                "10.0.0.0/29",
                one,
                &["10.0.0.4", "10.0.0.5", "10.0.0.6", "10.0.0.2", "10.0.0.3", "-10.0.0.5", "-10.0.0.4"],
                Some("10.0.0.5"),
            ),
            ("fd00::/64", Some("fd00::1"), &["fd00::2", "fd00::3", "-fd00::3", "-fd00::2"], Some("fd00::4")),
            ("10.0.0.0/29", Some("10.0.0.6"), &["10.0.0.5", "10.0.0.1"], Some("10.0.0.2")),
            ("10.0.0.0/29", one, &["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"], None),
            ("fd00::/64", Some("fd00::1"), &["fd00::2"], Some("fd00::3")),
        ];
        for (cidr, gateway, used, want) in table {
            let subnet = subnet(cidr, gateway);
            let got = choose(&network(), &[&subnet], &book(&subnet, used), None, &ASKER);
            match want {
                Some(want) => {
                    assert_eq!(got.unwrap()[0].address, want.parse::<IpAddr>().unwrap(), "{used:?}")
                }
                None => assert!(
                    matches!(got, Err(OpsError::Conflict { field: Some(ref f), .. }) if f == "networks[0].network")
                ),
            }
        }
    }

    #[test]
    fn one_of_each_family_and_every_self_made_one() {
        let (a, b) = (subnet("10.0.0.0/29", None), subnet("10.0.1.0/29", None));
        let mut own = subnet("fd00::/64", Some("fd00::1"));
        own.address_mode = Some("slaac".into());
        let given = subnet("fd01::/64", Some("fd01::1"));
        let got = choose(&network(), &[&a, &b, &own, &given], &AddressBook::default(), None, &ASKER).unwrap();
        let got: Vec<String> = got.iter().map(|ip| ip.address.to_string()).collect();
        assert_eq!(got, ["10.0.0.1", "fd01::2", "fd00::f816:3eff:fe11:2233"]);
        // The second subnet when the first is full.
        let full = book(&a, &["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"]);
        let got = choose(&network(), &[&a, &b], &full, None, &ASKER).unwrap();
        assert_eq!(got[0].subnet, b.id);
    }

    #[test]
    fn wanted_addresses() {
        let subnet = subnet("10.0.0.0/24", Some("10.0.0.1"));
        let used = book(&subnet, &["10.0.0.9"]);
        let ask = |asker: &Asker<'_>, a: &str| {
            let wish = FixedIpWish { subnet: None, address: Some(a.parse().unwrap()) };
            choose(&network(), &[&subnet], &used, Some(&[wish]), asker)
        };
        assert_eq!(ask(&ASKER, "10.0.0.10").unwrap()[0].address.to_string(), "10.0.0.10");
        for bad in ["10.0.1.1", "10.0.0.0", "10.0.0.255", "10.0.0.1", "::1"] {
            assert!(
                matches!(ask(&ASKER, bad), Err(OpsError::Field(ref e)) if e.field == "networks[0].address"),
                "{bad}"
            );
        }
        assert!(matches!(ask(&ASKER, "10.0.0.9"), Err(OpsError::Conflict { .. })));
        let holder = used.port_at("10.0.0.9".parse().unwrap());
        assert!(ask(&Asker { port: holder, ..ASKER }, "10.0.0.9").is_ok());
        assert!(ask(&Asker { router: true, ..ASKER }, "10.0.0.1").is_ok());
        let twice = FixedIpWish { subnet: None, address: Some("10.0.0.10".parse().unwrap()) };
        assert!(
            choose(&network(), &[&subnet], &AddressBook::default(), Some(&[twice.clone(), twice]), &ASKER)
                .is_err()
        );
    }

    /// However ports come and go, an address rests while every other free one is given.
    #[test]
    fn what_is_released_rests_longest() {
        let subnet = subnet("10.0.0.0/26", Some("10.0.0.1"));
        let mut book = AddressBook::default();
        let mut held: std::collections::VecDeque<(IpAddr, PortId)> = Default::default();
        let mut rests: BTreeMap<IpAddr, usize> = BTreeMap::new();
        for round in 0..1000 {
            let ip = choose(&network(), &[&subnet], &book, None, &ASKER).unwrap()[0].address;
            if let Some(since) = rests.remove(&ip) {
                // 61 addresses, three held: each gives way to 57 others before it comes again.
                assert!(round - since >= 57, "{ip} after {} others", round - since);
            }
            let port = PortId::new();
            book.give(ip, port, Some(subnet.id));
            held.push_back((ip, port));
            if held.len() > 3 {
                // Not always the eldest.
                let (ip, port) = held.remove(round % 3).unwrap();
                book.release(ip, port);
                rests.insert(ip, round);
            }
        }
        let full: Vec<IpAddr> = (0..58)
            .map(|_| {
                let ip = choose(&network(), &[&subnet], &book, None, &ASKER).unwrap()[0].address;
                book.give(ip, PortId::new(), Some(subnet.id));
                ip
            })
            .collect();
        assert_eq!(full.len() + held.len(), 61);
        assert!(choose(&network(), &[&subnet], &book, None, &ASKER).is_err());
    }
}
