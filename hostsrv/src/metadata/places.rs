//! Where the host may speak to guests from: the namespaces of the service's places, and whom each knows. For whoever has to
//! ask a guest something; refuses to keep a place open that is closed.

use amphi_api::NetworkId;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

#[derive(Clone, Default)]
pub struct Places(Arc<Mutex<BTreeMap<NetworkId, Known>>>);

struct Known {
    namespace: Weak<File>,
    admitted: BTreeSet<Ipv4Addr>,
}

impl Places {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<NetworkId, Known>> {
        // Every change is a single insert or removal: a panic elsewhere leaves the map whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn opened(&self, network: NetworkId, namespace: &Arc<File>) {
        let known = Known { namespace: Arc::downgrade(namespace), admitted: BTreeSet::new() };
        self.lock().insert(network, known);
    }

    pub(super) fn closed(&self, network: NetworkId) {
        self.lock().remove(&network);
    }

    pub(super) fn admitted(&self, network: NetworkId, address: Ipv4Addr) {
        if let Some(known) = self.lock().get_mut(&network) {
            known.admitted.insert(address);
        }
    }

    pub(super) fn dismissed(&self, network: NetworkId, address: Ipv4Addr) {
        if let Some(known) = self.lock().get_mut(&network) {
            known.admitted.remove(&address);
        }
    }

    /// The network namespace from which this address is reached; none while there is no way to it.
    pub fn way_to(&self, network: NetworkId, address: Ipv4Addr) -> Option<Arc<File>> {
        let places = self.lock();
        let known = places.get(&network).filter(|known| known.admitted.contains(&address))?;
        known.namespace.upgrade()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whom_an_open_place_knows_is_reached() {
        let places = Places::default();
        let (network, address) = (NetworkId::new(), Ipv4Addr::new(10, 0, 0, 5));
        assert!(places.way_to(network, address).is_none());
        let namespace = Arc::new(File::open("/proc/self/ns/net").unwrap());
        places.opened(network, &namespace);
        assert!(places.way_to(network, address).is_none());
        places.admitted(network, address);
        assert!(places.way_to(network, address).is_some());
        places.dismissed(network, address);
        assert!(places.way_to(network, address).is_none());
        places.admitted(network, address);
        drop(namespace);
        assert!(places.way_to(network, address).is_none(), "it is not kept open");
        places.closed(network);
        assert!(places.way_to(network, address).is_none());
    }
}
