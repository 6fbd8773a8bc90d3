//! Owns the guest's interfaces, addresses and routes, said to the kernel over rtnetlink (rtnetlink(7)) by hand: four
//! kinds of message, each a header, a fixed part and attributes. Refuses to ask anybody for an address.

use amphi_guest::config::{Interface, Route};
use nix::libc;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, sendto, socket,
};
use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};

/// Attributes of linux/if_link.h, if_addr.h and rtnetlink.h.
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_BOOT: u8 = 3;
const RT_SCOPE_UNIVERSE: u8 = 0;
const RT_SCOPE_LINK: u8 = 253;
const RTN_UNICAST: u8 = 1;
/// The address is taken as it is: nobody else can have it, the network sees to that.
const IFA_F_NODAD: u8 = 2;

/// A connection to the kernel's rtnetlink.
struct Kernel {
    socket: OwnedFd,
    sequence: u32,
}

impl Kernel {
    fn open() -> io::Result<Self> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        )?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Sends one message and waits for the kernel's yes.
    fn order(&mut self, doing: &str, kind: u16, flags: i32, body: &[u8]) -> io::Result<()> {
        self.sequence += 1;
        let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK | flags) as u16;
        let message = message(kind, flags, self.sequence, body);
        sendto(self.socket.as_raw_fd(), &message, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
        let mut answer = [0_u8; 8192];
        let length = recv(self.socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
        // struct nlmsgerr after the header: a negative errno, or 0.
        let code = answer[..length].get(16..20).and_then(|b| b.try_into().ok()).map_or(0, i32::from_ne_bytes);
        match -code {
            0 | libc::EEXIST => Ok(()),
            code => Err(io::Error::other(format!("{doing}: {}", io::Error::from_raw_os_error(code)))),
        }
    }
}

fn message(kind: u16, flags: u16, sequence: u32, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(16 + body.len());
    out.extend_from_slice(&(16 + body.len() as u32).to_ne_bytes());
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(&flags.to_ne_bytes());
    out.extend_from_slice(&sequence.to_ne_bytes());
    out.extend_from_slice(&0_u32.to_ne_bytes());
    out.extend_from_slice(body);
    out
}

fn attribute(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    out.extend_from_slice(&(4 + value.len() as u16).to_ne_bytes());
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(value);
    out.resize(out.len().next_multiple_of(4), 0);
}

fn bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(four) => four.octets().to_vec(),
        IpAddr::V6(six) => six.octets().to_vec(),
    }
}

fn family(address: IpAddr) -> u8 {
    (if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }) as u8
}

/// struct ifinfomsg: up or down, with attributes.
fn link(index: u32, up: bool, attributes: &[(u16, Vec<u8>)]) -> Vec<u8> {
    let mut out = vec![0_u8; 4];
    out.extend_from_slice(&index.to_ne_bytes());
    let flag = libc::IFF_UP as u32;
    out.extend_from_slice(&(if up { flag } else { 0 }).to_ne_bytes());
    out.extend_from_slice(&flag.to_ne_bytes());
    for (kind, value) in attributes {
        attribute(&mut out, *kind, value);
    }
    out
}

/// struct ifaddrmsg.
fn address(index: u32, address: IpAddr, prefix: u8) -> Vec<u8> {
    let mut out = vec![family(address), prefix, IFA_F_NODAD, RT_SCOPE_UNIVERSE];
    out.extend_from_slice(&index.to_ne_bytes());
    attribute(&mut out, IFA_LOCAL, &bytes(address));
    attribute(&mut out, IFA_ADDRESS, &bytes(address));
    out
}

/// struct rtmsg.
fn route(index: u32, metric: u32, to: IpAddr, prefix: u8, via: Option<IpAddr>) -> Vec<u8> {
    let scope = if via.is_some() || to.is_ipv6() { RT_SCOPE_UNIVERSE } else { RT_SCOPE_LINK };
    let mut out = vec![family(to), prefix, 0, 0, RT_TABLE_MAIN, RTPROT_BOOT, scope, RTN_UNICAST, 0, 0, 0, 0];
    if prefix > 0 {
        attribute(&mut out, RTA_DST, &bytes(to));
    }
    if let Some(via) = via {
        attribute(&mut out, RTA_GATEWAY, &bytes(via));
    }
    attribute(&mut out, RTA_OIF, &index.to_ne_bytes());
    if metric > 0 {
        attribute(&mut out, RTA_PRIORITY, &metric.to_ne_bytes());
    }
    out
}

fn by_mac(mac: &str) -> io::Result<(String, u32)> {
    for entry in fs::read_dir("/sys/class/net")?.flatten() {
        let of =
            |what: &str| fs::read_to_string(entry.path().join(what)).unwrap_or_default().trim().to_owned();
        if of("address").eq_ignore_ascii_case(mac) {
            return Ok((
                entry.file_name().to_string_lossy().into_owned(),
                of("ifindex").parse().unwrap_or(0),
            ));
        }
    }
    Err(io::Error::other(format!("no interface has the address {mac}")))
}

/// Brings up loopback and every interface, named eth0, eth1 … in order.
pub fn bring_up(interfaces: &[Interface]) -> io::Result<()> {
    let mut kernel = Kernel::open()?;
    kernel.order("lo up", libc::RTM_NEWLINK, 0, &link(1, true, &[]))?;
    let mut found = Vec::new();
    for (at, interface) in interfaces.iter().enumerate() {
        let (name, index) = by_mac(&interface.mac)?;
        // Out of the way first: names may have to change places.
        if name != format!("eth{at}") {
            let aside = format!("amphi{at}\0").into_bytes();
            kernel.order(
                &format!("{name} renamed"),
                libc::RTM_NEWLINK,
                0,
                &link(index, false, &[(IFLA_IFNAME, aside)]),
            )?;
        }
        found.push((index, interface));
    }
    for (at, (index, interface)) in found.iter().enumerate() {
        let name = format!("eth{at}");
        let mut attributes = vec![(IFLA_IFNAME, format!("{name}\0").into_bytes())];
        attributes.extend(mtu(interface));
        // The name while it is down, then up.
        kernel.order(&format!("{name} named"), libc::RTM_NEWLINK, 0, &link(*index, false, &attributes))?;
        kernel.order(&format!("{name} up"), libc::RTM_NEWLINK, 0, &link(*index, true, &[]))?;
        // Only the first interface's default route counts.
        let metric = if at == 0 { 0 } else { *index };
        dress(&mut kernel, &name, (*index, metric), interface)?;
    }
    Ok(())
}

fn mtu(interface: &Interface) -> Option<(u16, Vec<u8>)> {
    (interface.mtu != 0).then(|| (IFLA_MTU, interface.mtu.to_ne_bytes().to_vec()))
}

/// Gives an interface that is up, and was named, its addresses and routes.
pub fn add(interface: &Interface) -> io::Result<()> {
    let (name, index) = by_mac(&interface.mac)?;
    let mut kernel = Kernel::open()?;
    let mtu: Vec<_> = mtu(interface).into_iter().collect();
    kernel.order(&format!("{name} up"), libc::RTM_NEWLINK, 0, &link(index, true, &mtu))?;
    dress(&mut kernel, &name, (index, 0), interface)
}

fn dress(
    kernel: &mut Kernel,
    name: &str,
    (index, metric): (u32, u32),
    interface: &Interface,
) -> io::Result<()> {
    let create = libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
    for (ip, prefix) in &interface.addresses {
        kernel.order(
            &format!("{ip}/{prefix} on {name}"),
            libc::RTM_NEWADDR,
            create,
            &address(index, *ip, *prefix),
        )?;
    }
    let none = |ip: &IpAddr| if ip.is_ipv4() { IpAddr::from([0; 4]) } else { IpAddr::from([0_u8; 16]) };
    let defaults = interface.gateways.iter().map(|via| Route { to: none(via), prefix: 0, via: Some(*via) });
    for Route { to, prefix, via } in interface.routes.iter().cloned().chain(defaults) {
        let body = route(index, metric, to, prefix, via);
        kernel.order(&format!("the route to {to}/{prefix}"), libc::RTM_NEWROUTE, create, &body)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_have_the_kernel_s_layout() {
        let body = route(2, 0, "169.254.169.254".parse().unwrap(), 32, None);
        let all = message(libc::RTM_NEWROUTE, 5, 7, &body);
        assert_eq!(u32::from_ne_bytes(all[..4].try_into().unwrap()) as usize, all.len());
        assert_eq!(all.len(), 16 + 12 + 8 + 8);
        assert_eq!(all[16..28], [2, 32, 0, 0, 254, 3, 253, 1, 0, 0, 0, 0]);
        assert_eq!(all[28..36], [8, 0, 1, 0, 169, 254, 169, 254]);
        let named = link(3, false, &[(IFLA_IFNAME, b"eth0\0".to_vec())]);
        assert_eq!(named.len(), 16 + 12);
        assert_eq!(address(2, "10.0.0.5".parse().unwrap(), 24)[..4], [2, 24, 2, 0]);
    }
}
