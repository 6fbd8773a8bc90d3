//! Which ports lead from the integration bridge to bridges of physical networks: the far ends of the patch ports that
//! ovn-controller makes for a network's localnet port, and marks. Refuses to change anything.

use super::{NetworkError, Switch};
use amphi_ovsdb::{Monitored, Replica, Tables};
use std::collections::{BTreeMap, BTreeSet};

/// How ovn-controller marks both ends (ovn-controller(8)).
const MARK: &str = "ovn-localnet-port";

/// Bridges to physical networks by name, with the numbers of the ports by which guests' frames come in.
pub type Ways = BTreeMap<String, BTreeSet<u32>>;

impl Switch {
    /// What [`ways`] reads, and news of it.
    pub async fn watch_physical(&self) -> Result<Replica, NetworkError> {
        let monitored = Monitored::new()
            .table("Open_vSwitch", &["external_ids"])
            .table("Bridge", &["name", "ports"])
            .table("Port", &["interfaces", "external_ids"])
            .table("Interface", &["type", "ofport"]);
        self.client.monitor(monitored).await.map_err(|source| NetworkError::Switch {
            doing: "watch the physical networks".to_owned(),
            source,
        })
    }
}

/// Of each bridge in `ovn-bridge-mappings`.
pub fn ways(tables: &Tables) -> Ways {
    let mappings = tables
        .rows("Open_vSwitch")
        .find_map(|(_, root)| root.entry("external_ids", "ovn-bridge-mappings").map(str::to_owned))
        .unwrap_or_default();
    let bridges = mappings.split(',').filter_map(|pair| Some(pair.split_once(':')?.1.trim()));
    let found = bridges.filter_map(|name| Some((name, tables.find("Bridge", "name", name)?.1)));
    found
        .map(|(name, bridge)| {
            let ports = bridge.uuids("ports").into_iter().filter_map(|id| tables.row("Port", id));
            let marked = ports.filter(|port| port.entry("external_ids", MARK).is_some());
            let interfaces = marked.flat_map(|port| port.uuids("interfaces"));
            let patches = interfaces
                .filter_map(|id| tables.row("Interface", id))
                .filter(|interface| interface.str("type") == Some("patch"));
            let numbers = patches.filter_map(|patch| u32::try_from(patch.integer("ofport")?).ok());
            (name.to_owned(), numbers.collect())
        })
        .collect()
}
