//! What a host should hold: a pure function of the records. What is not in here is not thereby ordered destroyed; only
//! the tombstones are.

use super::move_ends::has_not_left;
use super::move_volumes::carrier;
use super::{Ops, Row, View, volume_groups};
use crate::model::network::legacy;
use crate::model::*;
use amphi_api::image::{Image, ImageFormat, ImageState};
use amphi_api::instance::{BodyKind, BodySpec, ExchangePhase, Power, VmSpec};
use amphi_api::wire::WIRE_IMAGES;
use amphi_api::wire::{
    AddressDesired, AttachmentDesired, BodyDesired, CopyingDesired, ExportDesired, HostDesired,
    InstanceDesired, LeavingDesired, MemberDesired, PortDesired, RouteDesired, SnapshotDesired,
    VolumeDesired, VolumeSource,
};
use amphi_api::{HostId, ImageId, ProjectId, VolumeId};
use ipnet::IpNet;
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::net::SocketAddr;
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

    /// Where a host's agent takes connections of other hosts.
    pub fn listens_at(&self, host: HostId) -> Option<SocketAddr> {
        self.world().read().hosts.get(host).and_then(|row| row.spec.as_ref()?.moves_at)
    }

    /// Whether a body that belongs on the host is made of this blob.
    pub fn blob_allowed(&self, host: HostId, sha256: &str) -> bool {
        if self.lent.holds(host, sha256) {
            return true;
        }
        let view = self.world().read();
        let has = |id: &ImageId| {
            view.images.get(*id).is_some_and(|image| image.digests().any(|digest| digest == sha256))
        };
        let mut bodies = view.instances_on(host).flat_map(|row| {
            let next = next_body(&view, row);
            row.bodies.iter().chain(next).chain(&row.rescue).collect::<Vec<_>>()
        });
        let carries = |e: &Row<ExchangeRecord>| {
            let mut volumes = e.journey.iter().filter(|j| j.to == host).flat_map(|j| &j.volumes);
            volumes.any(|v| v.image.as_ref().is_some_and(has))
        };
        let waits = |twin: &Row<TwinRecord>| {
            let row = view.instances.get(twin.instance);
            row.is_some_and(|row| row.bodies.iter().any(|body| body.images.iter().any(has)))
        };
        let zone = view.zone_of(host);
        let coming = view.twins_on(host).any(waits)
            || view.prepulls.iter().any(|row| row.asks(host, zone) && has(&row.image))
            || view.journeys_of(host).any(|e| e.body.images.iter().any(has) || carries(e))
            || view
                .volumes_to(host)
                .any(|v| v.journey.as_ref().and_then(|j| j.image.as_ref()).is_some_and(has));
        let converts = |row: &Row<ImageRecord>| row.traits.conversion.as_ref().is_some_and(|c| has(&c.of));
        coming
            || view.exports_on(host).any(converts)
            || bodies.any(|body| body.images.iter().any(has))
            || view
                .kept_by(host)
                .flat_map(|group| view.volumes_on(group.id.place()))
                .chain(view.volumes_on(host))
                .any(|v| !v.made && v.source_image.as_ref().is_some_and(has))
    }
}

/// The whole desired state of a host.
pub fn desired(view: &View, host: HostId) -> HostDesired {
    let live = |row: &&Row<InstanceRecord>| row.intent == Intent::Live && !waits(view, row);
    let instances: Vec<_> = view.instances_on(host).filter(live).collect();
    let groups = volume_groups::parts(view, host, &instances);
    let kept = groups.iter().filter(|group| group.keeper.is_some());
    let kept: Vec<HostId> = kept.map(|group| group.id.place()).collect();
    let held = groups.iter().filter(|group| group.keeper.is_none()).flat_map(|group| group.held.keys());
    HostDesired {
        host,
        generation: view.generation(host),
        shut_out: view.hosts.get(host).is_some_and(|h| h.barred_since.is_some()),
        instances: instances
            .iter()
            .copied()
            .filter_map(|row| match holds_still(view, row) {
                true => instance(view, &InstanceRecord { power: Power::Off, ..(*row.record).clone() }),
                false => instance(view, row),
            })
            .collect(),
        expected: view
            .journeys_of(host)
            .filter_map(|e| expected(view, e, host))
            .chain(view.twins_on(host).filter_map(|row| twin(view, row, host)))
            .collect(),
        volumes: std::iter::once(&host)
            .chain(&kept)
            .flat_map(|place| view.volumes_on(*place))
            .filter(|row| row.intent == Intent::Live && !is_unborn(row) && is_readable(view, row, host))
            .map(|row| VolumeDesired {
                id: row.id,
                size_bytes: row.size_gib * GIB,
                made: row.made,
                source: volume_source(view, row),
                trashed_at: row.trashed_at,
            })
            .chain(held.filter_map(|id| holds(view.volumes.get(*id)?)))
            .chain(view.journeys_of(host).flat_map(|e| arrivals(view, e, host)))
            .chain(view.volumes_to(host).filter(|row| row.host != host).filter_map(|row| {
                let journey = row.journey.as_ref().filter(|j| j.shipped)?;
                arrival(view, row, journey.image)
            }))
            .collect(),
        snapshots: view
            .snapshots_on(host)
            .filter(|row| row.intent == Intent::Live)
            .map(|row| SnapshotDesired { id: row.id, made: row.made, volume: row.volume })
            .collect(),
        exports: view.exports_on(host).filter_map(|row| export(row)).collect(),
        tombstones: std::iter::once(&host)
            .chain(&kept)
            .flat_map(|place| view.tombstones_on(*place))
            .map(|row| row.order)
            .collect(),
        groups,
        measured: instances.iter().filter(|row| is_measured(view, row)).map(|row| row.id).collect(),
        images: super::prepull::desired(view, host),
    }
}

/// Whether a group scales by what the instance uses.
fn is_measured(view: &View, row: &InstanceRecord) -> bool {
    let group = row.server.scaling.and_then(|place| view.scaling_groups.get(place.group));
    group.is_some_and(|group| group.measures())
}

/// A volume of a shared group that the host has for an instance, as large as the keeper has said that it is.
fn holds(row: &VolumeRecord) -> Option<VolumeDesired> {
    let size_bytes = row.observed.as_ref()?.size_bytes.min(row.size_gib * GIB);
    Some(VolumeDesired { id: row.id, size_bytes, made: true, source: None, trashed_at: None })
}

/// Whether this host may not have it yet: it is in the middle of a move and the other host is not clear, or a volume that it
/// starts with is on its way.
fn waits(view: &View, row: &InstanceRecord) -> bool {
    let phase = row.exchange.and_then(|id| view.exchanges.get(id)).map(|e| e.phase);
    let away = |id: VolumeId| !is_here(view, row, id);
    matches!(phase, Some(ExchangePhase::Leaving | ExchangePhase::Returning))
        || row.volume.into_iter().chain(row.root_volume).any(away)
        || (!row.built && row.attachments.iter().any(|a| away(a.volume)))
}

/// Whether one of its volumes is on its host. What no record knows is its host's to miss.
fn is_here(view: &View, row: &InstanceRecord, volume: VolumeId) -> bool {
    view.volumes.get(volume).is_none_or(|volume| match (&volume.journey, view.group_at(volume.host)) {
        // Another host may be making it.
        (None, Some(_)) => volume.made,
        (None, None) => true,
        (Some(_), _) => volume.made && Some(volume.host) == row.host,
    })
}

/// Whether it is stopped so that its volumes can be read.
fn holds_still(view: &View, row: &InstanceRecord) -> bool {
    let phase = row.exchange.and_then(|id| view.exchanges.get(id)).map(|e| e.phase);
    matches!(phase, Some(ExchangePhase::Stopping | ExchangePhase::Copying))
}

/// Volumes that come to the host, as far as their bytes can be had.
fn arrivals(view: &View, exchange: &ExchangeRecord, host: HostId) -> Vec<VolumeDesired> {
    let Some(journey) = exchange.journey.as_ref().filter(|j| j.to == host) else { return Vec::new() };
    if journey.copy.is_some() && has_not_left(exchange.phase) {
        return journey.volumes.iter().filter_map(|one| vessel(view, one)).collect();
    }
    if journey.live && matches!(exchange.phase, ExchangePhase::Preparing | ExchangePhase::Crossing) {
        return journey.volumes.iter().filter_map(|one| shell(view, one)).collect();
    }
    if exchange.phase != ExchangePhase::Copying {
        return Vec::new();
    }
    journey.volumes.iter().filter_map(|one| arrival(view, view.volumes.get(one.volume)?, one.image)).collect()
}

/// Whether it waits for bytes that cannot be had yet.
fn is_unborn(row: &VolumeRecord) -> bool {
    !row.made && row.journey.as_ref().is_some_and(|j| j.is_birth(row) && !j.shipped)
}

/// Whether the host's agent can read what the volume begins with. A word that it does not know would cost the host its whole
/// order; so an older one is not told of the volume, which is made when the agent is a newer one.
fn is_readable(view: &View, row: &VolumeRecord, host: HostId) -> bool {
    let image = row.source_image.filter(|_| !row.made).and_then(|id| view.images.get(id));
    let knows = || view.hosts.get(host).and_then(|h| h.spec.as_ref()).is_some_and(|s| s.wire >= WIRE_IMAGES);
    !image.is_some_and(|image| image.format.is_foreign_disk()) || knows()
}

/// A volume to be written with the bytes that the image carries.
fn arrival(view: &View, row: &VolumeRecord, image: Option<ImageId>) -> Option<VolumeDesired> {
    let image = Box::new(carrier(view, image)?.view());
    let blank = row.source.is_none() && row.source_image.is_none() && row.source_volume.is_none();
    Some(VolumeDesired {
        id: row.id,
        size_bytes: row.size_gib * GIB,
        made: false,
        source: Some(VolumeSource::Moved { image, blank }),
        trashed_at: None,
    })
}

/// A volume whose bytes come with a body that runs: as large, and empty.
fn shell(view: &View, one: &VolumeMove) -> Option<VolumeDesired> {
    let row = view.volumes.get(one.volume)?;
    let blank = row.source.is_none() && row.source_image.is_none() && row.source_volume.is_none();
    Some(VolumeDesired {
        id: row.id,
        size_bytes: row.size_gib * GIB,
        made: one.arrived,
        source: (!blank).then_some(VolumeSource::Crossing),
        trashed_at: None,
    })
}

/// A volume whose bytes come in passes, its file system among them.
fn vessel(view: &View, one: &VolumeMove) -> Option<VolumeDesired> {
    Some(VolumeDesired { source: Some(VolumeSource::Crossing), ..shell(view, one)? })
}

/// The pass over its bytes that is due.
fn copying(view: &View, row: &InstanceRecord) -> Option<CopyingDesired> {
    let exchange = view.exchanges.get(row.exchange?)?;
    let journey = exchange.journey.as_ref().filter(|j| row.host == Some(j.from))?;
    let copy = journey.copy.as_ref()?;
    let last = exchange.phase == ExchangePhase::Copying;
    let due = match exchange.phase {
        ExchangePhase::CopyingAhead => !copy.is_enough(),
        // Even when it is done: nothing of the body is touched until it leaves or the order is gone.
        _ => last,
    };
    Some(CopyingDesired {
        exchange: exchange.id,
        to: journey.to,
        address: view.hosts.get(journey.to).and_then(|h| h.spec.as_ref()?.moves_at)?,
        epoch: row.epoch + 1,
        pass: copy.next(),
        over: copy.is_whole(),
        last,
        volumes: journey.volumes.iter().map(|v| v.volume).collect(),
        root: copy.root,
    })
    .filter(|_| due)
}

/// Where an instance goes while it runs.
fn leaving(view: &View, row: &InstanceRecord) -> Option<LeavingDesired> {
    let exchange = view.exchanges.get(row.exchange?)?;
    let journey = exchange.journey.as_ref().filter(|j| j.live && row.host == Some(j.from))?;
    if exchange.phase != ExchangePhase::Crossing {
        return None;
    }
    let address = view.hosts.get(journey.to).and_then(|h| h.spec.as_ref()?.moves_at);
    Some(LeavingDesired {
        exchange: exchange.id,
        to: journey.to,
        // A host that takes none any more: nowhere to go, and so nothing goes.
        address: address.unwrap_or((std::net::Ipv4Addr::UNSPECIFIED, 0).into()),
        epoch: row.epoch + 1,
        recalled: journey.recalled.is_some() || address.is_none(),
    })
}

/// An instance that comes to the host next, as it will be there.
fn expected(view: &View, exchange: &ExchangeRecord, host: HostId) -> Option<InstanceDesired> {
    if exchange.journey.as_ref()?.to != host {
        return None;
    }
    let row = view.instances.get(exchange.instance)?;
    let mut record = (*row.record).clone();
    match exchange.phase {
        ExchangePhase::Preparing
        | ExchangePhase::Crossing
        | ExchangePhase::CopyingAhead
        | ExchangePhase::Stopping
        | ExchangePhase::Copying => {
            record.epoch += 1;
            record.body = exchange.to;
        }
        ExchangePhase::Leaving => {}
        _ => return None,
    }
    let from = |is: fn(&JourneyRecord) -> bool| exchange.journey.as_ref().filter(|j| is(j)).map(|j| j.from);
    let desired = instance(view, &record)?;
    Some(InstanceDesired {
        leaving: None,
        copying: None,
        arriving_from: from(|j| j.live),
        copied_from: from(|j| j.copy.is_some()).filter(|_| has_not_left(exchange.phase)),
        ..desired
    })
}

/// The body that waits here for its instance's host to be lost. What comes here by a move or is here already is said
/// elsewhere.
fn twin(view: &View, twin: &TwinRecord, host: HostId) -> Option<InstanceDesired> {
    let place = twin.placed_on(host)?;
    let row = view.instances.get(twin.instance).filter(|row| row.intent == Intent::Live)?;
    let comes = |e: &Row<ExchangeRecord>| {
        e.instance == row.id && e.journey.as_ref().is_some_and(|j| j.to == host || j.from == host)
    };
    if row.host == Some(host) || view.journeys_of(host).any(comes) {
        return None;
    }
    let record = InstanceRecord {
        epoch: place.epoch,
        body: place.body,
        power: Power::On,
        exchange: None,
        // What is not replaced is in a shared group: named, and active nowhere but where its holder runs.
        volume: place.volume.map(|(id, _)| id).or(row.volume),
        ..(*row.record).clone()
    };
    Some(InstanceDesired { twin: true, ..instance(view, &record)? })
}

fn instance(view: &View, row: &InstanceRecord) -> Option<InstanceDesired> {
    let Some(body) = row.body_of(row.body).and_then(|b| body(view, b, row.root_volume.is_some())) else {
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
        resizes: row.resizes,
        vcpus: row.vcpus,
        memory_mib: row.memory_mib,
        body,
        next_body: next_body(view, row).and_then(|b| self::body(view, b, row.root_volume.is_some())),
        ports: row.ports.iter().filter_map(|id| port(view, view.ports.get(*id)?)).collect(),
        volume: row.volume,
        root_volume: row.root_volume,
        attachments: row
            .attachments
            .iter()
            .filter(|a| is_here(view, row, a.volume))
            .map(|a| AttachmentDesired { volume: a.volume, device: a.device.clone(), read_only: a.read_only })
            .collect(),
        root: row.root,
        rescue: row.rescue.as_ref().and_then(|b| self::body(view, b, false)),
        user_data: row.user_data.clone(),
        ssh_keys: row.ssh_keys.clone(),
        metadata: row.metadata.clone(),
        leaving: leaving(view, row),
        arriving_from: None,
        copying: copying(view, row),
        copied_from: None,
        twin: false,
        members: members(row),
    })
}

/// What more is ordered of a set's members than that they run.
fn members(row: &InstanceRecord) -> BTreeMap<String, MemberDesired> {
    if row.body != BodyKind::Set {
        return BTreeMap::new();
    }
    let former = row.rolling.as_ref().map(|r| &r.former);
    let kept = former.into_iter().flat_map(BTreeMap::keys);
    let names = row.generations.keys().chain(row.member_restarts.keys()).chain(kept);
    let count = |map: &BTreeMap<String, u64>, name: &str| map.get(name).copied().unwrap_or(0);
    let one = |name: &String| MemberDesired {
        generation: count(&row.generations, name),
        former: former.and_then(|f| f.get(name)).copied(),
        restarts: count(&row.member_restarts, name),
    };
    names.map(|name| (name.clone(), one(name))).collect()
}

/// What a volume that is not there yet begins with.
fn volume_source(view: &View, row: &VolumeRecord) -> Option<VolumeSource> {
    if let Some(journey) = row.journey.as_ref().filter(|j| j.is_birth(row) && !row.made) {
        let image = Box::new(carrier(view, journey.image)?.view());
        return Some(VolumeSource::Moved { image, blank: false });
    }
    if let Some(snapshot) = row.source {
        return Some(VolumeSource::Snapshot(snapshot));
    }
    if let Some(volume) = row.source_volume {
        return Some(VolumeSource::Volume(volume));
    }
    let image = view.images.get(row.source_image?)?;
    Some(VolumeSource::Image(Box::new(image.view())))
}

fn export(row: &ImageRecord) -> Option<ExportDesired> {
    let source = row.export.as_ref()?.source.clone();
    Some(ExportDesired { image: row.id, format: row.format, source })
}

/// The body to be made ready beside the running one.
fn next_body<'a>(view: &'a View, row: &InstanceRecord) -> Option<&'a BodyRecord> {
    let exchange = view.exchanges.get(row.exchange?)?;
    (exchange.phase == ExchangePhase::Preparing && exchange.journey.is_none())
        .then_some(&exchange.record.body)
}

/// `from_volume`: a VM boots from a volume, and needs no image.
fn body(view: &View, record: &BodyRecord, from_volume: bool) -> Option<BodyDesired> {
    let images: Option<Vec<_>> =
        record.images.iter().map(|id| view.images.get(*id).map(|row| row.view())).collect();
    let mut images = images?;
    Some(match &record.spec {
        BodySpec::Set(set) => BodyDesired::Set { set: set.clone(), images },
        BodySpec::Vm(VmSpec { set: Some(set), .. }) => BodyDesired::SetVm { set: set.clone(), images },
        BodySpec::Vm(vm) => {
            let image = images.pop().or_else(|| from_volume.then(no_image))?;
            BodyDesired::Vm { image, root_gib: vm.root_gib, probes: vm.probes.clone() }
        }
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
        segment: Some(subnet.id).filter(|id| *id != legacy::subnet_of(network.id)),
        routes: routes.map(|r| RouteDesired { to: r.destination, via: r.nexthop }).collect(),
        further: rest.into_iter().map(|(_, address)| address).collect(),
    })
}

/// What stands in the place of the image of a VM whose disk is a volume: no bytes at all.
fn no_image() -> Image {
    Image {
        id: ImageId(uuid::Uuid::nil()),
        project: ProjectId::DEFAULT,
        name: String::new(),
        format: ImageFormat::Raw,
        cmdline: String::new(),
        state: ImageState::Active,
        layers: Vec::new(),
        blobs: Default::default(),
        created_at: Timestamp::UNIX_EPOCH,
    }
}
