//! Tells a port's neighbours where its addresses are now: a gratuitous ARP for each IPv4 address (RFC 5227, section 3), an
//! unsolicited neighbour advertisement for each IPv6 address (RFC 4861, section 7.2.6). They are handed to the switch as if
//! the body had sent them, so that a guest of either kind needs no part in it and OVN's rules hold for them. The frames are
//! pure; the switch is spoken to by OpenFlow 1.3 on its management socket, one message each.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

const BROADCAST: [u8; 6] = [0xff; 6];
/// Ethernet's shortest frame without its checksum, in bytes.
const FRAME_MIN: usize = 60;

/// OpenFlow 1.3's number, its messages' and its reserved names (OpenFlow Switch Specification 1.3.5, appendix A).
const VERSION: u8 = 4;
const HELLO: u8 = 0;
const ERROR: u8 = 1;
const PACKET_OUT: u8 = 13;
const BARRIER_REQUEST: u8 = 20;
const BARRIER_REPLY: u8 = 21;
const NO_BUFFER: u32 = u32::MAX;
/// Through the flow tables, from the first on.
const TABLE: u32 = 0xffff_fff9;
/// Longest message that is taken from the switch, in bytes.
const MESSAGE_MAX: usize = 1 << 12;

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

/// Sends frames through the switch's tables as if they came in by this port of it. The caller bounds the time.
pub async fn send(socket: &Path, ofport: u32, frames: &[Vec<u8>]) -> io::Result<()> {
    let mut stream = UnixStream::connect(socket).await?;
    let mut bytes = message(HELLO, 1, &[]);
    for (at, frame) in frames.iter().enumerate() {
        bytes.extend(message(PACKET_OUT, 2 + at as u32, &packet_out(ofport, frame)));
    }
    // Answered when all of it is done, after any complaint.
    bytes.extend(message(BARRIER_REQUEST, u32::MAX, &[]));
    stream.write_all(&bytes).await?;
    loop {
        let mut head = [0; 8];
        stream.read_exact(&mut head).await?;
        let length = usize::from(u16::from_be_bytes([head[2], head[3]]));
        if !(head.len()..=MESSAGE_MAX).contains(&length) {
            return Err(io::Error::other(format!("the switch sent a message of {length} bytes")));
        }
        let mut body = vec![0; length - head.len()];
        stream.read_exact(&mut body).await?;
        match head[1] {
            BARRIER_REPLY => return Ok(()),
            ERROR => return Err(io::Error::other(format!("the switch refused: {:02x?}", body.get(..4)))),
            _ => {}
        }
    }
}

fn packet_out(ofport: u32, frame: &[u8]) -> Vec<u8> {
    // One action: output (type 0, 16 bytes) to the tables.
    let mut action = [0_u8; 16];
    action[2..4].copy_from_slice(&16_u16.to_be_bytes());
    action[4..8].copy_from_slice(&TABLE.to_be_bytes());
    let mut body = [NO_BUFFER.to_be_bytes(), ofport.to_be_bytes()].concat();
    body.extend(16_u16.to_be_bytes());
    body.extend([0; 6]);
    body.extend(action);
    body.extend(frame);
    body
}

/// A header of 8 bytes and what it is about.
fn message(kind: u8, id: u32, body: &[u8]) -> Vec<u8> {
    let length = (8 + body.len()) as u16;
    [&[VERSION, kind][..], &length.to_be_bytes(), &id.to_be_bytes(), body].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [0xfa, 0x16, 0x3e, 1, 2, 3];

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn frames_as_neighbours_read_them() {
        let addresses = ["10.0.0.5".parse().unwrap(), "fd00::5".parse().unwrap()];
        let [arp, na] = frames(MAC, &addresses).try_into().unwrap();
        let head = "fffffffffffffa163e0102030806";
        let body = "0001080006040001fa163e0102030a0000050000000000000a000005";
        assert_eq!(hex(&arp), format!("{head}{body}{}", "00".repeat(18)));
        let (own, all) = ("fd000000000000000000000000000005", "ff020000000000000000000000000001");
        let plain = format!("333300000001fa163e01020386dd6000000000203aff{own}{all}8800");
        let rest = format!("20000000{own}0201fa163e010203");
        assert!(hex(&na).starts_with(&plain) && hex(&na).ends_with(&rest), "{}", hex(&na));
        // Summed with its checksum in it, all is ones.
        let mut summed = na[22..54].to_vec();
        summed.extend([0, 0, 0, 32, 0, 0, 0, 58]);
        summed.extend(&na[54..]);
        assert_eq!(checksum(&summed), 0);
    }

    #[tokio::test]
    async fn the_switch_gets_whole_messages_and_its_refusal_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("br-int.mgmt");
        for (answer, fine) in [(BARRIER_REPLY, true), (ERROR, false)] {
            let _ = std::fs::remove_file(&socket);
            let listener = tokio::net::UnixListener::bind(&socket).unwrap();
            let switch = tokio::spawn(async move {
                let (mut stream, _) = listener.accept().await.unwrap();
                stream.write_all(&message(HELLO, 9, &[0, 1, 0, 8, 0, 0, 0, 0x7e])).await.unwrap();
                let mut kinds = Vec::new();
                while kinds.last() != Some(&BARRIER_REQUEST) {
                    let mut head = [0; 8];
                    stream.read_exact(&mut head).await.unwrap();
                    let mut body = vec![0; usize::from(u16::from_be_bytes([head[2], head[3]])) - 8];
                    stream.read_exact(&mut body).await.unwrap();
                    kinds.push(head[1]);
                    if head[1] == PACKET_OUT {
                        let expected =
                            format!("ffffffff00000007001000000000000000000010fffffff9{}", "00".repeat(8));
                        assert_eq!(hex(&body[..32]), expected);
                        assert_eq!(body.len(), 32 + FRAME_MIN);
                    }
                }
                stream.write_all(&message(answer, u32::MAX, &[0, 1, 0, 2])).await.unwrap();
                kinds
            });
            let sent = send(&socket, 7, &frames(MAC, &["10.0.0.5".parse().unwrap()])).await;
            assert_eq!(sent.is_ok(), fine, "{sent:?}");
            assert_eq!(switch.await.unwrap(), [HELLO, PACKET_OUT, BARRIER_REQUEST]);
        }
    }
}
