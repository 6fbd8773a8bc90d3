//! Asks for an interface's address (RFC 2131, RFC 2132), for machines that run from a disk of their own: nobody wrote the address
//! into their description. Owns the packets and the waiting; refuses to believe lengths in what comes.

use crate::calls::random;
use nix::sys::socket::{setsockopt, sockopt};
use std::ffi::OsString;
use std::io;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::time::{Duration, Instant};

const COOKIE: [u8; 4] = [99, 130, 83, 99];
const DISCOVER: u8 = 1;
const OFFER: u8 = 2;
const REQUEST: u8 = 3;
const ACK: u8 = 5;
/// For one answer.
const ANSWER: Duration = Duration::from_secs(2);

/// What was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    pub address: Ipv4Addr,
    pub prefix: u8,
    pub gateway: Option<IpAddr>,
    /// Destination, prefix, by whom; in the place of the gateway (RFC 3442).
    pub routes: Vec<(Ipv4Addr, u8, Ipv4Addr)>,
    pub dns: Vec<IpAddr>,
    pub mtu: Option<u16>,
    pub seconds: u32,
    server: Option<Ipv4Addr>,
}

fn packet(kind: u8, id: [u8; 4], mac: [u8; 6], wanted: Option<&Lease>) -> Vec<u8> {
    let mut out = vec![0; 236];
    out[..4].copy_from_slice(&[1, 1, 6, 0]);
    out[4..8].copy_from_slice(&id);
    // Answers to everybody: this machine has no address to send them to.
    out[10] = 0x80;
    out[28..34].copy_from_slice(&mac);
    out.extend_from_slice(&COOKIE);
    out.extend_from_slice(&[53, 1, kind]);
    if let Some(wanted) = wanted {
        out.extend_from_slice(&[50, 4]);
        out.extend_from_slice(&wanted.address.octets());
        if let Some(server) = wanted.server {
            out.extend_from_slice(&[54, 4]);
            out.extend_from_slice(&server.octets());
        }
    }
    // Mask, router, servers of names, MTU, routes.
    out.extend_from_slice(&[55, 5, 1, 3, 6, 26, 121, 255]);
    // As short as the oldest relays take it.
    out.resize(out.len().max(300), 0);
    out
}

fn four(bytes: &[u8]) -> Option<Ipv4Addr> {
    Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes.get(..4)?).ok()?))
}

/// An answer of this kind to this question; none: it is another one, or broken.
fn read(bytes: &[u8], kind: u8, id: [u8; 4], mac: [u8; 6]) -> Option<Lease> {
    if bytes.first() != Some(&2)
        || bytes.get(4..8)? != id
        || bytes.get(28..34)? != mac
        || bytes.get(236..240)? != COOKIE
    {
        return None;
    }
    let mut lease = Lease {
        address: four(bytes.get(16..)?)?,
        prefix: 24,
        gateway: None,
        routes: Vec::new(),
        dns: Vec::new(),
        mtu: None,
        seconds: 3600,
        server: None,
    };
    let (mut rest, mut said) = (&bytes[240..], 0);
    loop {
        match *rest {
            [] | [255, ..] => break,
            [0, ..] => rest = &rest[1..],
            [option, length, ..] => {
                let value = rest.get(2..2 + usize::from(length))?;
                rest = &rest[2 + usize::from(length)..];
                match option {
                    53 => said = *value.first()?,
                    1 => lease.prefix = u32::from(four(value)?).leading_ones() as u8,
                    3 => lease.gateway = four(value).map(IpAddr::V4),
                    6 => lease.dns = value.chunks_exact(4).filter_map(four).map(IpAddr::V4).collect(),
                    26 => lease.mtu = Some(u16::from_be_bytes(value.get(..2)?.try_into().ok()?)),
                    51 => lease.seconds = u32::from(four(value)?),
                    54 => lease.server = four(value),
                    121 => lease.routes = routes(value)?,
                    _ => {}
                }
            }
            [_] => return None,
        }
    }
    let fits = said == kind && !lease.address.is_unspecified() && !lease.address.is_multicast();
    fits.then_some(lease)
}

fn routes(mut value: &[u8]) -> Option<Vec<(Ipv4Addr, u8, Ipv4Addr)>> {
    let mut all = Vec::new();
    while let Some((prefix, rest)) = value.split_first() {
        let significant = usize::from(prefix.div_ceil(8));
        let mut to = [0; 4];
        to.get_mut(..significant)?.copy_from_slice(rest.get(..significant)?);
        let via = four(rest.get(significant..)?)?;
        all.push((Ipv4Addr::from(to), (*prefix).min(32), via));
        value = &rest[significant + 4..];
    }
    Some(all)
}

/// One question and its answer, until there is one.
pub fn lease(interface: &str, mac: [u8; 6]) -> io::Result<Lease> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 68))?;
    setsockopt(&socket, sockopt::BindToDevice, &OsString::from(interface))?;
    socket.set_broadcast(true)?;
    let mut id = [0; 4];
    random(&mut id)?;
    let ask = |kind, wanted: Option<&Lease>, answer| -> io::Result<Option<Lease>> {
        socket.send_to(&packet(kind, id, mac, wanted), (Ipv4Addr::BROADCAST, 67))?;
        let until = Instant::now() + ANSWER;
        let mut buffer = [0; 1500];
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            socket.set_read_timeout(Some(left))?;
            match socket.recv(&mut buffer) {
                Ok(got) => {
                    if let Some(lease) = read(&buffer[..got], answer, id, mac) {
                        return Ok(Some(lease));
                    }
                }
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                }
                Err(error) => return Err(error),
            }
        }
    };
    loop {
        if let Some(offer) = ask(DISCOVER, None, OFFER)?
            && let Some(lease) = ask(REQUEST, Some(&offer), ACK)?
        {
            return Ok(lease);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];

    fn answer(options: &[u8]) -> Vec<u8> {
        let mut out = packet(0, [1, 2, 3, 4], MAC, None);
        out[0] = 2;
        out[16..20].copy_from_slice(&[10, 7, 0, 9]);
        out.truncate(240);
        out.extend_from_slice(options);
        out
    }

    #[test]
    fn an_offer_is_read() {
        let options = [
            53, 1, 5, 0, 1, 4, 255, 255, 240, 0, 3, 4, 10, 7, 0, 1, 6, 8, 1, 1, 1, 1, 8, 8, 8, 8, 26, 2, 5,
            0x78, 51, 4, 0, 0, 14, 16, 54, 4, 10, 7, 0, 2, 121, 14, 32, 169, 254, 169, 254, 0, 0, 0, 0, 0,
            10, 7, 0, 1, 255,
        ];
        let lease = read(&answer(&options), ACK, [1, 2, 3, 4], MAC).unwrap();
        assert_eq!((lease.address, lease.prefix, lease.mtu), ([10, 7, 0, 9].into(), 20, Some(1400)));
        assert_eq!((lease.dns.len(), lease.seconds, lease.server), (2, 3600, Some([10, 7, 0, 2].into())));
        let (service, any) = (Ipv4Addr::new(169, 254, 169, 254), Ipv4Addr::UNSPECIFIED);
        assert_eq!(lease.routes, [(service, 32, any), (any, 0, [10, 7, 0, 1].into())]);
        assert_eq!(read(&answer(&options), OFFER, [1, 2, 3, 4], MAC), None, "another kind");
        assert_eq!(read(&answer(&options), ACK, [9; 4], MAC), None, "another's");
        assert_eq!(read(&answer(&options), ACK, [1, 2, 3, 4], [9; 6]), None, "another's");
    }

    #[test]
    fn lengths_are_not_believed() {
        for options in [
            &[53][..],
            &[53, 200, 5],
            &[53, 0],
            &[53, 1, 5, 1, 1, 255],
            &[53, 1, 5, 121, 1, 33],
            &[53, 1, 5, 121, 2, 8, 1],
        ] {
            assert_eq!(read(&answer(options), ACK, [1, 2, 3, 4], MAC), None, "{options:?}");
        }
        let whole = answer(&[53, 1, 5, 255]);
        for length in 0..240 {
            assert_eq!(read(&whole[..length], ACK, [1, 2, 3, 4], MAC), None, "{length}");
        }
        assert!(read(&whole, ACK, [1, 2, 3, 4], MAC).is_some());
    }
}
