//! Tells a port's neighbours where its addresses are now: a gratuitous ARP for each IPv4 address (RFC 5227, section 3), an
//! unsolicited neighbour advertisement for each IPv6 address (RFC 4861, section 7.2.6). They are handed to the switch as if
//! the body had sent them, so that a guest of either kind needs no part in it and OVN's rules hold for them. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const BROADCAST: [u8; 6] = [0xff; 6];
/// Ethernet's shortest frame without its checksum, in bytes.
pub(super) const FRAME_MIN: usize = 60;

/// One frame for each address.
pub fn frames(mac: [u8; 6], addresses: &[IpAddr]) -> Vec<Vec<u8>> {
    let frame = |address: &IpAddr| match address {
        IpAddr::V4(address) => arp(mac, *address),
        IpAddr::V6(address) => advertisement(mac, *address),
    };
    addresses.iter().map(frame).collect()
}

/// A request for the own address.
fn arp(mac: [u8; 6], address: Ipv4Addr) -> Vec<u8> {
    let mut frame = ethernet(BROADCAST, mac, 0x0806);
    // Ethernet, IPv4, lengths of their addresses, request.
    frame.extend([0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(mac);
    frame.extend(address.octets());
    frame.extend([0; 6]);
    frame.extend(address.octets());
    frame.resize(FRAME_MIN, 0);
    frame
}

/// To all nodes, overriding what they know.
fn advertisement(mac: [u8; 6], address: Ipv6Addr) -> Vec<u8> {
    let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    // Type, code, checksum, flags (override), the target, its link-layer address as an option of 8 bytes.
    let mut message = vec![136, 0, 0, 0, 0x20, 0, 0, 0];
    message.extend(address.octets());
    message.extend([2, 1]);
    message.extend(mac);
    let length = message.len() as u16;
    // RFC 4443, section 2.3: over addresses, length and next header too.
    let mut summed = [address.octets(), all_nodes.octets()].concat();
    summed.extend(u32::from(length).to_be_bytes());
    summed.extend([0, 0, 0, 58]);
    summed.extend(&message);
    message[2..4].copy_from_slice(&checksum(&summed).to_be_bytes());
    let mut frame = ethernet([0x33, 0x33, 0, 0, 0, 1], mac, 0x86dd);
    frame.extend([0x60, 0, 0, 0]);
    frame.extend(length.to_be_bytes());
    // ICMPv6, and the hop limit that shows that it comes from the link.
    frame.extend([58, 255]);
    frame.extend(address.octets());
    frame.extend(all_nodes.octets());
    frame.extend(message);
    frame
}

fn ethernet(to: [u8; 6], from: [u8; 6], kind: u16) -> Vec<u8> {
    [&to[..], &from[..], &kind.to_be_bytes()[..]].concat()
}

/// The Internet checksum (RFC 1071) of an even number of bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [0xfa, 0x16, 0x3e, 1, 2, 3];

    #[test]
    fn frames_as_neighbours_read_them() {
        let addresses = ["10.0.0.5".parse().unwrap(), "fd00::5".parse().unwrap()];
        let [arp, na] = frames(MAC, &addresses).try_into().unwrap();
        let head = "fffffffffffffa163e0102030806";
        let body = "0001080006040001fa163e0102030a0000050000000000000a000005";
        assert_eq!(hex::encode(&arp), format!("{head}{body}{}", "00".repeat(18)));
        let (own, all) = ("fd000000000000000000000000000005", "ff020000000000000000000000000001");
        let plain = format!("333300000001fa163e01020386dd6000000000203aff{own}{all}8800");
        let rest = format!("20000000{own}0201fa163e010203");
        assert!(
            hex::encode(&na).starts_with(&plain) && hex::encode(&na).ends_with(&rest),
            "{}",
            hex::encode(&na)
        );
        // Summed with its checksum in it, all is ones.
        let mut summed = na[22..54].to_vec();
        summed.extend([0, 0, 0, 32, 0, 0, 0, 58]);
        summed.extend(&na[54..]);
        assert_eq!(checksum(&summed), 0);
    }
}
