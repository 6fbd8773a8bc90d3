//! The host's side of the network: veth pairs, the integration bridge, and Docker's network and
//! IPAM drivers. A VM's tap is libvirt's; here it is only observed.
//!
//! Owns the names on a host (CONFIG: `va…`/`vc…`) and everything on the bridge that carries an
//! `iface-id` of ours. Refuses to allocate anything: addresses, MACs and port ids come from
//! outside. What a port may send is OVN's business.

pub mod announce;
pub mod gate;
pub mod link;
mod offload;
pub mod openflow;
pub mod ovs;
pub mod place;
pub mod plugin;
pub mod sweep;
pub mod wiring;

use std::time::Duration;

use ipnet::IpNet;
use std::net::IpAddr;
use uuid::Uuid;

pub use gate::Flows;
pub use link::Links;
pub use ovs::Switch;
pub use place::Place;
pub use wiring::Wiring;

/// A port as it is wired on this host.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct PortSpec {
    pub port: Uuid,
    /// Lower case, colon-separated.
    pub mac: String,
    pub addresses: Vec<IpNet>,
    pub gateway: Option<IpAddr>,
    pub mtu: u32,
}

/// The host's end of a port's veth pair: `va` and the last 11 hex digits of the port's id, 13 of
/// the 15 bytes that the kernel allows. The last, since ids begin with their time of making: the
/// first 11 are the same for all ports made within 16 ms.
pub fn host_device(port: Uuid) -> String {
    format!("va{}", &port.simple().to_string()[21..])
}

/// The guest's end.
pub fn guest_device(port: Uuid) -> String {
    format!("vc{}", &port.simple().to_string()[21..])
}

/// Whether a device's name is one that `host_device` gives.
pub fn is_host_device(name: &str) -> bool {
    let digits =
        |rest: &str| rest.len() == 11 && rest.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    name.strip_prefix("va").is_some_and(digits)
}

/// The bytes of `aa:bb:cc:dd:ee:ff`.
pub fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut bytes = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut bytes {
        let part = parts.next().filter(|part| part.len() == 2)?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    parts.next().is_none().then_some(bytes)
}

#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    #[error("cannot {doing}: {source}")]
    Switch { doing: String, source: amphi_ovsdb::Error },
    /// The database has no root row: `ovs-vsctl init` never ran.
    #[error("cannot {doing}: the switch's database is empty")]
    Uninitialised { doing: String },
    #[error("cannot {doing}: there is no bridge {bridge}")]
    NoBridge { doing: String, bridge: String },
    /// The row is there, ovs-vswitchd could not make a port of it.
    #[error("the switch took {device} but cannot use it: {error}")]
    Unusable { device: String, error: String },
    #[error("cannot announce port {port}: {source}")]
    Unannounced { port: Uuid, source: std::io::Error },
    /// Two bodies would share one port.
    #[error("port {port} is plugged already, as {device}")]
    Occupied { port: Uuid, device: String },
    #[error("device {device} is on the switch, but not on bridge {bridge}")]
    Elsewhere { device: String, bridge: String },
    /// Somebody kept changing the same rows.
    #[error("cannot {doing}: the switch's rows changed {attempts} times meanwhile")]
    Contended { doing: String, attempts: u32 },
    #[error("cannot {doing} {device}: {reason}")]
    Link { doing: &'static str, device: String, reason: String },
    #[error("cannot {doing} {device} within {after:?}")]
    LinkTimeout { doing: &'static str, device: String, after: Duration },
    #[error("`{0}` is no MAC address")]
    Mac(String),
}

impl NetworkError {
    /// The engine is away or slow; the same call may succeed later.
    pub fn is_transient(&self) -> bool {
        match self {
            NetworkError::Switch { source, .. } => source.is_transient(),
            NetworkError::Contended { .. } | NetworkError::LinkTimeout { .. } => true,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_the_kernel_and_are_recognised() {
        let port: Uuid = "7a1c0f3e-6d2a-4f4e-9d5c-0123456789ab".parse().unwrap();
        assert_eq!(
            (host_device(port).as_str(), guest_device(port).as_str()),
            ("va123456789ab", "vc123456789ab")
        );
        assert!(is_host_device("va7a1c0f3e6d2"));
        for other in ["vc7a1c0f3e6d2", "va7a1c0f3e6d", "va7a1c0f3e6d2a", "vaxxxxxxxxxxx", "vnet0", "va"] {
            assert!(!is_host_device(other), "{other}");
        }
    }

    #[test]
    fn macs() {
        assert_eq!(parse_mac("0a:00:27:ff:00:01"), Some([10, 0, 39, 255, 0, 1]));
        for bad in ["", "0a:00:27:ff:00", "0a:00:27:ff:00:01:02", "0a:00:27:ff:00:1", "0g:00:27:ff:00:01"] {
            assert_eq!(parse_mac(bad), None, "{bad}");
        }
    }
}
