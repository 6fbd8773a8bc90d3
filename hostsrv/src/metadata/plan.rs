//! What places the service should have, and the steps from what it has. Pure.

use amphi_api::NetworkId;
use amphi_api::wire::HostDesired;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

/// Who may ask on one network: addresses and their MACs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Neighbours {
    /// Of the network, in bytes.
    pub mtu: u32,
    pub by_address: BTreeMap<Ipv4Addr, String>,
}

/// By network.
pub type Held = BTreeMap<NetworkId, Neighbours>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    Open { network: NetworkId, mtu: u32 },
    Close { network: NetworkId },
    Admit { network: NetworkId, address: Ipv4Addr, mac: String },
    Dismiss { network: NetworkId, address: Ipv4Addr },
}

/// Every network with IPv4 on which an instance of this host has a port.
pub fn wanted(desired: &HostDesired) -> Held {
    let mut held = Held::new();
    for port in desired.instances.iter().flat_map(|instance| &instance.ports) {
        let all = std::iter::once(port.address).chain(port.further.iter().map(|further| further.address));
        for address in all {
            let IpAddr::V4(address) = address.addr() else { continue };
            let network = held.entry(port.network).or_default();
            network.mtu = port.mtu;
            network.by_address.insert(address, port.mac.clone());
        }
    }
    held
}

/// `on_bridge`: networks of which the bridge has a place, in use or left over. Closing comes first.
pub fn plan(wanted: &Held, held: &Held, on_bridge: &BTreeSet<NetworkId>) -> Vec<Step> {
    // Another MTU is another pair of devices; a place that the bridge has lost is made anew.
    let sound = |network: &NetworkId| {
        held.get(network).filter(|held| {
            on_bridge.contains(network) && wanted.get(network).is_some_and(|wanted| wanted.mtu == held.mtu)
        })
    };
    let known: BTreeSet<NetworkId> = held.keys().chain(on_bridge).copied().collect();
    let stale = known.into_iter().filter(|network| {
        // What is left over of a wanted place is taken over by opening it.
        sound(network).is_none() && (held.contains_key(network) || !wanted.contains_key(network))
    });
    let mut steps: Vec<Step> = stale.map(|network| Step::Close { network }).collect();
    for (&network, wanted) in wanted {
        let nobody = BTreeMap::new();
        let present = match sound(&network) {
            Some(held) => &held.by_address,
            None => {
                steps.push(Step::Open { network, mtu: wanted.mtu });
                &nobody
            }
        };
        let gone = present.keys().filter(|address| !wanted.by_address.contains_key(address));
        steps.extend(gone.map(|&address| Step::Dismiss { network, address }));
        let new = wanted.by_address.iter().filter(|(address, mac)| present.get(address) != Some(mac));
        steps.extend(new.map(|(&address, mac)| Step::Admit { network, address, mac: mac.clone() }));
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    const A: NetworkId = NetworkId(Uuid::from_u128(0xa));
    const B: NetworkId = NetworkId(Uuid::from_u128(0xb));

    /// A network, its MTU, its neighbours' last numbers and MACs.
    type Line<'a> = (NetworkId, u32, &'a [(u8, &'a str)]);

    fn held(networks: &[Line]) -> Held {
        let one = |(network, mtu, neighbours): &Line| {
            let by_address =
                neighbours.iter().map(|(n, mac)| (Ipv4Addr::new(10, 0, 0, *n), (*mac).to_owned()));
            (*network, Neighbours { mtu: *mtu, by_address: by_address.collect() })
        };
        networks.iter().map(one).collect()
    }

    fn told(steps: &[Step]) -> Vec<String> {
        let name = |network: &NetworkId| if *network == A { "a" } else { "b" };
        let line = |step: &Step| match step {
            Step::Open { network, mtu } => format!("open {} {mtu}", name(network)),
            Step::Close { network } => format!("close {}", name(network)),
            Step::Admit { network, address, mac } => format!("admit {} {address} {mac}", name(network)),
            Step::Dismiss { network, address } => format!("dismiss {} {address}", name(network)),
        };
        steps.iter().map(line).collect()
    }

    #[test]
    fn from_what_is_to_what_should_be() {
        let nothing = Held::new();
        let one = held(&[(A, 1400, &[(5, "m5")])]);
        let other = held(&[(A, 1400, &[(5, "m9"), (6, "m6")])]);
        let wider = held(&[(A, 1500, &[(5, "m5")])]);
        let both = held(&[(A, 1400, &[(5, "m5")]), (B, 1400, &[])]);
        for (wanted, present, bridge, steps) in [
            (&one, &nothing, &[][..], &["open a 1400", "admit a 10.0.0.5 m5"][..]),
            (&one, &one, &[A], &[]),
            // The bridge has lost it.
            (&one, &one, &[], &["close a", "open a 1400", "admit a 10.0.0.5 m5"]),
            (&wider, &one, &[A], &["close a", "open a 1500", "admit a 10.0.0.5 m5"]),
            (&nothing, &one, &[A], &["close a"]),
            // Left by an earlier process: taken over where it is wanted, else cleared.
            (&one, &nothing, &[A, B], &["close b", "open a 1400", "admit a 10.0.0.5 m5"]),
            (&other, &one, &[A], &["admit a 10.0.0.5 m9", "admit a 10.0.0.6 m6"]),
            (&one, &other, &[A], &["dismiss a 10.0.0.6", "admit a 10.0.0.5 m5"]),
            (&one, &both, &[A, B], &["close b"]),
        ] {
            let bridge: BTreeSet<NetworkId> = bridge.iter().copied().collect();
            assert_eq!(told(&plan(wanted, present, &bridge)), steps, "{wanted:?} {present:?} {bridge:?}");
        }
    }
}
