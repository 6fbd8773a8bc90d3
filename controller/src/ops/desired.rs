//! What a host should hold: a pure function of the records. What is not in here is not thereby ordered destroyed; only
//! the tombstones are.

use super::{Ops, Row, View};
use crate::model::*;
use amphi_api::instance::{BodySpec, ExchangePhase};
use amphi_api::wire::{
    AddressDesired, BodyDesired, HostDesired, InstanceDesired, PortDesired, RouteDesired, SnapshotDesired,
    VolumeDesired, VolumeSource,
};
use amphi_api::{HostId, ImageId};
use ipnet::IpNet;
use std::sync::Arc;
use tokio::sync::watch;

impl Ops {
    pub fn desired(&self, host: HostId) -> Arc<HostDesired> {
        Arc::new(desired(&self.world().read(), host))
    }

    /// Changes whenever the host's desired state may have changed.
    pub fn desired_generation(&self, host: HostId) -> watch::Receiver<u64> {
        self.world().generation(host)
    }

    /// Whether a body that belongs on the host is made of this blob.
    pub fn blob_allowed(&self, host: HostId, sha256: &str) -> bool {
        let view = self.world().read();
        let has = |id: &ImageId| {
            view.images.get(*id).is_some_and(|image| image.blobs.values().any(|b| b.sha256 == sha256))
        };
        let mut bodies = view.instances_on(host).flat_map(|row| {
            let next = next_body(&view, row);
            row.bodies.iter().chain(next).collect::<Vec<_>>()
        });
        bodies.any(|body| body.images.iter().any(has))
    }
}

/// The whole desired state of a host.
pub fn desired(view: &View, host: HostId) -> HostDesired {
    HostDesired {
        host,
        generation: view.generation(host),
        instances: view
            .instances_on(host)
            .filter(|row| row.intent == Intent::Live)
            .filter_map(|row| instance(view, row))
            .collect(),
        volumes: view
            .volumes_on(host)
            .filter(|row| row.intent == Intent::Live)
            .map(|row| VolumeDesired {
                id: row.id,
                size_bytes: row.size_gib * GIB,
                made: row.made,
                source: row.source.map(VolumeSource::Snapshot),
                trashed_at: row.trashed_at,
            })
            .collect(),
        snapshots: view
            .snapshots_on(host)
            .filter(|row| row.intent == Intent::Live)
            .map(|row| SnapshotDesired { id: row.id, made: row.made, volume: row.volume })
            .collect(),
        exports: Vec::new(),
        tombstones: view.tombstones_on(host).map(|row| row.order).collect(),
    }
}

fn instance(view: &View, row: &Row<InstanceRecord>) -> Option<InstanceDesired> {
    let Some(body) = row.body_of(row.body).and_then(|b| body(view, b)) else {
        // Left out, it is a stranger to the host, which touches no stranger.
        tracing::error!(instance = %row.id, "its body or an image of it has no record");
        return None;
    };
    Some(InstanceDesired {
        id: row.id,
        project: row.project,
        name: row.name.clone(),
        epoch: row.epoch,
        power: row.power,
        restarts: row.restarts,
        vcpus: row.vcpus,
        memory_mib: row.memory_mib,
        body,
        next_body: next_body(view, row).and_then(|b| self::body(view, b)),
        ports: row.ports.iter().filter_map(|id| port(view, view.ports.get(*id)?)).collect(),
        volume: row.volume,
        root_volume: None,
        attachments: Vec::new(),
        root: 0,
        rescue: None,
        user_data: row.user_data.clone(),
        ssh_keys: row.ssh_keys.clone(),
        metadata: row.metadata.clone(),
    })
}

/// The body to be made ready beside the running one.
fn next_body<'a>(view: &'a View, row: &InstanceRecord) -> Option<&'a BodyRecord> {
    let exchange = view.exchanges.get(row.exchange?)?;
    (exchange.phase == ExchangePhase::Preparing).then_some(&exchange.record.body)
}

fn body(view: &View, record: &BodyRecord) -> Option<BodyDesired> {
    let images: Option<Vec<_>> =
        record.images.iter().map(|id| view.images.get(*id).map(|row| row.view())).collect();
    let mut images = images?;
    Some(match &record.spec {
        BodySpec::Set(set) => BodyDesired::Set { set: set.clone(), images },
        BodySpec::Vm(vm) => BodyDesired::Vm { image: images.pop()?, root_gib: vm.root_gib },
    })
}

/// The port's primary address is its first; IPv4's gateway and name servers come before IPv6's.
fn port(view: &View, record: &PortRecord) -> Option<PortDesired> {
    let network = view.networks.get(record.network)?;
    let mut addresses = record.fixed_ips.iter().filter_map(|ip| {
        let subnet = view.subnets.get(ip.subnet)?;
        let address = IpNet::new(ip.address, subnet.cidr.prefix_len()).ok()?;
        Some((subnet, AddressDesired { subnet: subnet.cidr, address, gateway: subnet.gateway }))
    });
    let (subnet, first) = addresses.next()?;
    let rest: Vec<_> = addresses.collect();
    let subnets = || std::iter::once(subnet).chain(rest.iter().map(|(subnet, _)| *subnet));
    let mut dns: Vec<_> = Vec::new();
    for server in subnets().flat_map(|s| &s.dns) {
        if !dns.contains(server) {
            dns.push(*server);
        }
    }
    let routes = subnets().flat_map(|s| &s.routes);
    Some(PortDesired {
        id: record.id,
        network: record.network,
        subnet: first.subnet,
        mac: record.mac.clone(),
        address: first.address,
        gateway: first.gateway,
        dns,
        mtu: network.mtu,
        routes: routes.map(|r| RouteDesired { to: r.destination, via: r.nexthop }).collect(),
        further: rest.into_iter().map(|(_, address)| address).collect(),
    })
}
