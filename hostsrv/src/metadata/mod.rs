//! The metadata service: what a guest may ask about itself at 169.254.169.254, the same as its config drive says.
//!
//! On every network with IPv4 that an instance here has a port on, the host keeps a place of its own
//! ([`crate::network::place`]) at OVN's `localport` of that network, and serves HTTP there. Who asks is known by network and
//! address; OVN lets no port send from another's address, and where port security is off the answer still goes to the MAC
//! of the address's own port.
//!
//! One loop: observe the bridge, plan (pure), execute. Needs no controller: it goes by the desired state in the ledger.
//! Refuses: anything but reading, anybody who is no instance of this host, and to keep state of its own.

mod answers;
mod places;
mod plan;
mod serve;

pub use places::Places;

use crate::network::{Links, NetworkError, Place, PortSpec, Switch, Wiring};
use amphi_api::NetworkId;
use amphi_api::network::{METADATA_ADDRESS, metadata_mac, metadata_port};
use amphi_api::wire::HostDesired;
use ipnet::IpNet;
use plan::{Held, Neighbours, Step};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// How often the bridge is looked at although nothing was ordered.
const PERIOD: Duration = Duration::from_secs(10);
/// After something went wrong, it is tried again after this.
const RETRY: Duration = Duration::from_secs(1);
/// The label on the bridge by which our places are known, its value the network's id.
const LABEL: &str = "amphi-metadata";
const HTTP: u16 = 80;

/// The desired state of the host, kept current.
pub type Orders = watch::Receiver<Option<Arc<HostDesired>>>;

/// Runs until the process ends. `places`: what is open is noted there.
pub async fn keep(switch: Arc<Switch>, mut orders: Orders, places: Places) {
    let links = match Links::open() {
        Ok(links) => links,
        Err(error) => {
            tracing::error!("guests are not told about themselves: {error}");
            return;
        }
    };
    let mut service = Service {
        wiring: Wiring { links, switch: (*switch).clone() },
        orders: orders.clone(),
        open: BTreeMap::new(),
        places,
    };
    let mut looked = Instant::now() - PERIOD;
    let mut trouble = false;
    loop {
        let wanted = orders.borrow_and_update().as_deref().map(plan::wanted);
        let due = trouble || looked.elapsed() >= PERIOD;
        if let Some(wanted) = wanted.filter(|wanted| due || *wanted != service.held()) {
            looked = Instant::now();
            trouble = service.round(&wanted).await.is_err();
        }
        let pause = if trouble { RETRY } else { PERIOD };
        if let Ok(Err(_)) = tokio::time::timeout(pause, orders.changed()).await {
            return;
        }
    }
}

struct Open {
    place: Place,
    neighbours: Neighbours,
    /// Serves; aborted when dropped.
    _serving: JoinSet<()>,
}

struct Service {
    wiring: Wiring,
    orders: Orders,
    open: BTreeMap<NetworkId, Open>,
    places: Places,
}

/// Something was not done and is worth another try soon; it has been said in the log.
struct Trouble;

impl Service {
    fn held(&self) -> Held {
        self.open.iter().map(|(network, open)| (*network, open.neighbours.clone())).collect()
    }

    async fn round(&mut self, wanted: &Held) -> Result<(), Trouble> {
        let on_bridge = match self.look().await {
            Ok(on_bridge) => on_bridge,
            Err(error) => {
                tracing::debug!("cannot look for places on the bridge: {error}");
                return Err(Trouble);
            }
        };
        let mut outcome = Ok(());
        for step in plan::plan(wanted, &self.held(), &on_bridge) {
            if let Err(error) = self.carry_out(&step).await {
                tracing::warn!(?step, "guests may not hear about themselves: {error}");
                outcome = Err(Trouble);
            }
        }
        outcome
    }

    /// The networks that have a living place of ours on the bridge, and those that have what is left of one.
    async fn look(&self) -> Result<BTreeSet<NetworkId>, NetworkError> {
        let attached = self.wiring.switch.observe().await?;
        let network = |id: &String| id.parse::<NetworkId>().ok();
        Ok(attached.iter().filter_map(|port| port.external_ids.get(LABEL).and_then(network)).collect())
    }

    async fn carry_out(&mut self, step: &Step) -> Result<(), NetworkError> {
        match step {
            Step::Open { network, mtu } => {
                let spec = PortSpec {
                    port: metadata_port(*network).0,
                    mac: metadata_mac(*network),
                    addresses: vec![IpNet::from(IpAddr::V4(METADATA_ADDRESS))],
                    gateway: None,
                    mtu: *mtu,
                };
                let labels = BTreeMap::from([(LABEL.to_owned(), network.to_string())]);
                let (place, listener) = Place::open(&self.wiring, spec, labels, HTTP).await?;
                let mut serving = JoinSet::new();
                serving.spawn(serve::serve(listener, *network, self.orders.clone()));
                let neighbours = Neighbours { mtu: *mtu, ..Neighbours::default() };
                self.places.opened(*network, place.namespace());
                self.open.insert(*network, Open { place, neighbours, _serving: serving });
                tracing::debug!(%network, "guests can ask about themselves");
            }
            Step::Close { network } => {
                self.places.closed(*network);
                if let Some(open) = self.open.remove(network) {
                    drop(open._serving);
                    open.place.close(&self.wiring).await?;
                } else {
                    self.wiring.detach(metadata_port(*network).0).await?;
                }
            }
            Step::Admit { network, address, mac } => {
                let Some(open) = self.open.get_mut(network) else { return Ok(()) };
                open.place.admit(*address, mac).await?;
                open.neighbours.by_address.insert(*address, mac.clone());
                self.places.admitted(*network, *address);
            }
            Step::Dismiss { network, address } => {
                let Some(open) = self.open.get_mut(network) else { return Ok(()) };
                open.place.dismiss(*address).await?;
                open.neighbours.by_address.remove(address);
                self.places.dismissed(*network, *address);
            }
        }
        Ok(())
    }
}
