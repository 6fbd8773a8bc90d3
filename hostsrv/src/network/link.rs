//! Veth pairs over netlink. Owns the devices named by `host_device`/`guest_device` and no other.
//! A pair lives and dies as one: deleting either end, or the network namespace that holds the
//! guest's end, deletes both.

use std::future::Future;
use std::time::Duration;

use futures_util::TryStreamExt;
use rtnetlink::packet_route::link::{InfoData, InfoVeth, LinkAttribute};
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec, LinkVeth};

use super::{NetworkError, PortSpec, guest_device, host_device, is_host_device, offload, parse_mac};

/// Netlink answers in well under a millisecond unless the kernel's rtnl lock is held for long.
const BOUND: Duration = Duration::from_secs(5);

/// The kernel's devices in the network namespace where this was opened.
#[derive(Clone, Debug)]
pub struct Links {
    handle: Handle,
}

impl Links {
    /// Must be called within a tokio runtime.
    pub fn open() -> Result<Links, NetworkError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(|error| NetworkError::Link {
            doing: "open netlink for",
            device: "veth pairs".to_owned(),
            reason: error.to_string(),
        })?;
        tokio::spawn(connection);
        Ok(Links { handle })
    }

    /// Makes the port's pair afresh: the host's end up, the guest's with the port's MAC and without
    /// checksum offload, both with the MTU. An earlier pair of the same port goes first.
    /// Answers the guest's device.
    pub async fn ensure_pair(&self, spec: &PortSpec) -> Result<String, NetworkError> {
        let (host, guest) = (host_device(spec.port), guest_device(spec.port));
        let mac = parse_mac(&spec.mac).ok_or_else(|| NetworkError::Mac(spec.mac.clone()))?;
        let create = || {
            let peer = LinkMessageBuilder::<LinkUnspec>::new()
                .name(guest.clone())
                .address(mac.to_vec())
                .mtu(spec.mtu)
                .build();
            let pair = LinkVeth::new(&host, &guest)
                .mtu(spec.mtu)
                .up()
                .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
                .build();
            bounded("create", &host, self.handle.link().add(pair).execute())
        };
        match create().await {
            Err(Refusal::Errno(nix::libc::EEXIST)) => {
                self.remove(&host).await?;
                self.remove(&guest).await?;
                create().await
            }
            other => other,
        }
        .map_err(|refusal| refusal.into_error("create", &host))?;
        if let Err(error) = offload::disable_tx_checksum(&guest) {
            self.remove(&host).await?;
            return Err(NetworkError::Link {
                doing: "switch the checksum offload off on",
                device: guest,
                reason: error.to_string(),
            });
        }
        Ok(guest)
    }

    /// Moves a device into another network namespace, where it arrives down.
    pub(super) async fn hand_over(
        &self,
        device: &str,
        namespace: std::os::fd::BorrowedFd<'_>,
    ) -> Result<(), NetworkError> {
        let namespace = std::os::fd::AsRawFd::as_raw_fd(&namespace);
        let message = LinkUnspec::new_with_name(device).setns_by_fd(namespace).build();
        bounded("move", device, self.handle.link().set(message).execute())
            .await
            .map_err(|refusal| refusal.into_error("move", device))
    }

    /// Answers whether there was such a device.
    pub async fn remove(&self, device: &str) -> Result<bool, NetworkError> {
        let message = LinkUnspec::new_with_name(device).build();
        match bounded("delete", device, self.handle.link().del_with_message(message).execute()).await {
            Ok(()) => Ok(true),
            Err(Refusal::Errno(nix::libc::ENODEV)) => Ok(false),
            Err(refusal) => Err(refusal.into_error("delete", device)),
        }
    }

    /// Sets a device down: nothing passes it any more, in either direction.
    pub async fn switch_off(&self, device: &str) -> Result<(), NetworkError> {
        let message = LinkUnspec::new_with_name(device).down().build();
        let set = bounded("switch off", device, self.handle.link().set(message).execute()).await;
        set.map_err(|refusal| refusal.into_error("switch off", device))
    }

    /// The hosts' ends of all our pairs, sorted.
    pub async fn observe(&self) -> Result<Vec<String>, NetworkError> {
        let listing = self.handle.link().get().execute().try_collect::<Vec<_>>();
        let links = bounded("list", "devices", listing)
            .await
            .map_err(|refusal| refusal.into_error("list", "devices"))?;
        let names =
            links.into_iter().flat_map(|link| link.attributes).filter_map(|attribute| match attribute {
                LinkAttribute::IfName(name) if is_host_device(&name) => Some(name),
                _ => None,
            });
        let mut names: Vec<String> = names.collect();
        names.sort();
        Ok(names)
    }
}

/// Whether a device exists in this process's network namespace. Not by /sys/class/net, which shows
/// the namespace of whoever mounted /sys.
pub fn exists(device: &str) -> bool {
    nix::net::if_::if_nametoindex(device).is_ok()
}

pub(super) enum Refusal {
    /// Positive errno.
    Errno(i32),
    Other(String),
    Timeout,
}

impl Refusal {
    pub(super) fn into_error(self, doing: &'static str, device: &str) -> NetworkError {
        let device = device.to_owned();
        match self {
            Refusal::Timeout => NetworkError::LinkTimeout { doing, device, after: BOUND },
            Refusal::Other(reason) => NetworkError::Link { doing, device, reason },
            Refusal::Errno(errno) => {
                let reason = std::io::Error::from_raw_os_error(errno).to_string();
                NetworkError::Link { doing, device, reason }
            }
        }
    }
}

pub(super) async fn bounded<T>(
    doing: &'static str,
    device: &str,
    request: impl Future<Output = Result<T, rtnetlink::Error>>,
) -> Result<T, Refusal> {
    tracing::debug!(doing, device, "netlink");
    match tokio::time::timeout(BOUND, request).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(rtnetlink::Error::NetlinkError(error))) => Err(Refusal::Errno(-error.raw_code())),
        Ok(Err(error)) => Err(Refusal::Other(error.to_string())),
        Err(_) => Err(Refusal::Timeout),
    }
}
