//! A place of the host's own on a logical network: a network namespace that holds nothing but one port's device, and a
//! listening socket in it. Guests reach it over the integration bridge like a neighbour; it has no way to the host's own
//! network nor from there, and forwards nothing.
//!
//! The namespace has no name: the device, the sockets and this process hold it, so that it ends with the process
//! however that ends, and the kernel takes the veth pair away. What a crash leaves is a row on the bridge without a device,
//! which the next opening takes over and the sweep clears.
//!
//! Whom it may speak to is told one by one, address and MAC: its answers to an address go to that MAC alone, whatever
//! anybody says by ARP, and to anybody else there is no route.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::os::fd::AsFd;
use std::sync::Arc;

use futures_util::TryStreamExt;
use nix::sched::{CloneFlags, unshare};
use rtnetlink::packet_route::link::LinkAttribute;
use rtnetlink::packet_route::neighbour::NeighbourState;
use rtnetlink::packet_route::route::RouteScope;
use rtnetlink::{Handle, LinkUnspec, RouteMessageBuilder};

use super::link::bounded;
use super::wiring::SETTLE;
use super::{NetworkError, PortSpec, Wiring, host_device, parse_mac};

/// An open place. Dropping it ends the namespace once its sockets are closed too; [`Place::close`] also takes the port off
/// the bridge.
#[derive(Debug)]
pub struct Place {
    spec: PortSpec,
    device: String,
    index: u32,
    inside: Handle,
    namespace: Arc<File>,
}

impl Place {
    /// Held as long as the place is open.
    pub fn namespace(&self) -> &Arc<File> {
        &self.namespace
    }

    /// Makes the namespace with the port's IPv4 addresses and a socket that listens on a TCP port there. On failure
    /// nothing is left.
    pub async fn open(
        wiring: &Wiring,
        spec: PortSpec,
        labels: BTreeMap<String, String>,
        tcp: u16,
    ) -> Result<(Place, TcpListener), NetworkError> {
        let failed = |error: io::Error| NetworkError::Link {
            doing: "make a namespace for",
            device: spec.port.to_string(),
            reason: error.to_string(),
        };
        let room = Room::make(tcp).await.map_err(failed)?;
        // What an earlier process left has the same name.
        wiring.switch.let_go(&host_device(spec.port), SETTLE).await?;
        let device = wiring.attach(&spec, labels).await?;
        let namespace = Arc::new(room.namespace);
        let place = Place { spec, device, index: 0, inside: room.inside, namespace: namespace.clone() };
        match place.furnish(wiring, &namespace).await {
            Ok(index) => Ok((Place { index, ..place }, room.listener)),
            Err(error) => {
                let undone = wiring.detach(place.spec.port).await;
                if let Err(error) = undone {
                    tracing::warn!(%error, port = %place.spec.port, "left behind for the next sweep");
                }
                Err(error)
            }
        }
    }

    /// Answers the device's number in the namespace.
    async fn furnish(&self, wiring: &Wiring, namespace: &File) -> Result<u32, NetworkError> {
        wiring.links.hand_over(&self.device, namespace.as_fd()).await?;
        let listing = self.inside.link().get().execute().try_collect::<Vec<_>>();
        let links = self.told("look for", listing).await?;
        let named = |attribute: &LinkAttribute| matches!(attribute, LinkAttribute::IfName(name) if *name == self.device);
        let found = links.iter().find(|link| link.attributes.iter().any(named));
        let index = found.map(|link| link.header.index).ok_or_else(|| NetworkError::Link {
            doing: "find",
            device: self.device.clone(),
            reason: "it did not arrive in its namespace".to_owned(),
        })?;
        let up = LinkUnspec::new_with_index(index).up().build();
        self.told("switch on", self.inside.link().set(up).execute()).await?;
        for address in self.spec.addresses.iter().filter(|address| address.addr().is_ipv4()) {
            let add = self.inside.address().add(index, address.addr(), address.prefix_len());
            self.told("give its address to", add.execute()).await?;
        }
        Ok(index)
    }

    /// Lets an address be answered, at this MAC.
    pub async fn admit(&self, address: Ipv4Addr, mac: &str) -> Result<(), NetworkError> {
        let mac = parse_mac(mac).ok_or_else(|| NetworkError::Mac(mac.to_owned()))?;
        let neighbour = self
            .inside
            .neighbours()
            .add(self.index, IpAddr::V4(address))
            .link_layer_address(&mac)
            .state(NeighbourState::Permanent)
            .replace();
        self.told("add a neighbour to", neighbour.execute()).await?;
        let route = self.inside.route().add(self.route(address)).replace();
        self.told("add a route to", route.execute()).await
    }

    /// Answers it no more.
    pub async fn dismiss(&self, address: Ipv4Addr) -> Result<(), NetworkError> {
        self.told("take a route from", self.inside.route().del(self.route(address)).execute()).await
    }

    fn route(&self, address: Ipv4Addr) -> rtnetlink::packet_route::route::RouteMessage {
        RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(address, 32)
            .output_interface(self.index)
            .scope(RouteScope::Link)
            .build()
    }

    /// Takes it off the bridge. The sockets are the caller's to close.
    pub async fn close(self, wiring: &Wiring) -> Result<(), NetworkError> {
        wiring.detach(self.spec.port).await
    }

    async fn told<T>(
        &self,
        doing: &'static str,
        request: impl Future<Output = Result<T, rtnetlink::Error>>,
    ) -> Result<T, NetworkError> {
        bounded(doing, &self.device, request).await.map_err(|refusal| refusal.into_error(doing, &self.device))
    }
}

/// A network namespace as it is made: empty, with netlink and a socket in it.
struct Room {
    namespace: File,
    inside: Handle,
    listener: TcpListener,
}

impl Room {
    /// In a thread of its own, since a namespace belongs to a thread; sockets stay in the one they were made in.
    async fn make(tcp: u16) -> io::Result<Room> {
        let runtime = tokio::runtime::Handle::current();
        let (say, hear) = tokio::sync::oneshot::channel();
        std::thread::Builder::new().name("place".to_owned()).spawn(move || {
            // Whoever waited has left: then the room goes with its sockets.
            let _ = say.send(Self::within(&runtime, tcp));
        })?;
        hear.await.map_err(|_| io::Error::other("its thread ended early"))?
    }

    fn within(runtime: &tokio::runtime::Handle, tcp: u16) -> io::Result<Room> {
        unshare(CloneFlags::CLONE_NEWNET)?;
        // A new namespace takes IPv4's settings from the machine's first one (Documentation/admin-guide/sysctl/net.rst,
        // devconf_inherit_init_net), which may well be a router.
        quiet("/proc/sys/net/ipv4/ip_forward", "0")?;
        for scope in ["all", "default"] {
            // Without IPv6 there is no such file.
            let file = format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6");
            if std::path::Path::new(&file).exists() {
                quiet(&file, "1")?;
            }
        }
        let namespace = File::open("/proc/thread-self/ns/net")?;
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, tcp))?;
        listener.set_nonblocking(true)?;
        let _within = runtime.enter();
        let (connection, inside, _) = rtnetlink::new_connection()?;
        runtime.spawn(connection);
        Ok(Room { namespace, inside, listener })
    }
}

/// Writes a setting of this thread's namespace, unless it says so already: where settings are read-only that may do.
fn quiet(file: &str, value: &str) -> io::Result<()> {
    if std::fs::read_to_string(file)?.trim() == value {
        return Ok(());
    }
    std::fs::write(file, value)
}
