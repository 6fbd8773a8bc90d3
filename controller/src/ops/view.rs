//! One state of all records: tables by id, with indexes. Knows which host a change matters to, nothing more.

use super::address_book::AddressBook;
use super::ahead::Ahead;
use super::identity::Identity;
use super::named::Named;
use crate::model::*;
use crate::scheduler::Fleet;
use crate::store::{Change, Entry, Event, Revision};
use amphi_api::instance::FailoverPolicy;
use amphi_api::{
    ExchangeId, FloatingIpId, HostId, ImageId, InstanceId, NetworkId, PortId, ProjectId, SnapshotId,
    SubnetId, VolumeId,
};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::ops::Deref;
use std::sync::Arc;

/// A record as of a version.
#[derive(Clone, Debug)]
pub struct Row<R> {
    pub record: Arc<R>,
    /// For the compare of the transaction that changes it.
    pub version: u64,
}

impl<R> Deref for Row<R> {
    type Target = R;
    fn deref(&self) -> &R {
        &self.record
    }
}

/// All records of a kind, in order of id (and so of creation), by project and by name.
#[derive(Debug)]
pub struct Table<R: Record> {
    rows: BTreeMap<R::Id, Row<R>>,
    projects: HashMap<ProjectId, BTreeSet<R::Id>>,
    names: HashMap<(ProjectId, String), BTreeSet<R::Id>>,
}

impl<R: Record> Default for Table<R> {
    fn default() -> Self {
        Self { rows: BTreeMap::new(), projects: HashMap::new(), names: HashMap::new() }
    }
}

impl<R: Record> Table<R> {
    pub fn get(&self, id: R::Id) -> Option<&Row<R>> {
        self.rows.get(&id)
    }

    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Row<R>> {
        self.rows.values()
    }

    pub fn len(&self) -> usize {
        self.rows.len()
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Rows from an id on.
    pub fn from(&self, id: R::Id) -> impl Iterator<Item = &Row<R>> {
        self.rows.range(id..).map(|(_, row)| row)
    }

    /// How many a project has.
    pub fn count_of(&self, project: ProjectId) -> usize {
        self.projects.get(&project).map_or(0, BTreeSet::len)
    }

    pub fn of_project(&self, project: ProjectId) -> impl DoubleEndedIterator<Item = &Row<R>> {
        self.projects.get(&project).into_iter().flatten().filter_map(|id| self.rows.get(id))
    }

    /// Of a project, what comes after this id.
    pub fn of_project_after(
        &self,
        project: ProjectId,
        marker: Option<R::Id>,
    ) -> impl Iterator<Item = &Row<R>> {
        use std::ops::Bound::{Excluded, Unbounded};
        let range = (marker.map_or(Unbounded, Excluded), Unbounded);
        let ids = self.projects.get(&project).map(|ids| ids.range(range));
        ids.into_iter().flatten().filter_map(|id| self.rows.get(id))
    }

    /// Names are not unique.
    pub fn named<'a>(&'a self, project: ProjectId, name: &str) -> Vec<&'a Row<R>> {
        let ids = self.names.get(&(project, name.to_owned()));
        ids.into_iter().flatten().filter_map(|id| self.rows.get(id)).collect()
    }

    pub(super) fn put(&mut self, record: R, version: u64) -> (R::Id, Option<Row<R>>) {
        let id = record.id();
        let before = self.take(id);
        if let Some((project, name)) = record.owner() {
            self.projects.entry(project).or_default().insert(id);
            self.names.entry((project, name.to_owned())).or_default().insert(id);
        }
        self.rows.insert(id, Row { record: Arc::new(record), version });
        (id, before)
    }

    pub(super) fn take(&mut self, id: R::Id) -> Option<Row<R>> {
        let row = self.rows.remove(&id)?;
        if let Some((project, name)) = row.owner() {
            drop_from(&mut self.projects, &project, &id);
            drop_from(&mut self.names, &(project, name.to_owned()), &id);
        }
        Some(row)
    }
}

pub(super) fn drop_from<K: std::hash::Hash + Eq, V: Ord>(
    index: &mut HashMap<K, BTreeSet<V>>,
    key: &K,
    value: &V,
) {
    if let Some(set) = index.get_mut(key) {
        set.remove(value);
        if set.is_empty() {
            index.remove(key);
        }
    }
}

/// What a project's things add up to, kept as they come and go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    pub vcpus: u64,
    pub ram_mib: u64,
    /// Those in the recycle bin are not in it.
    pub volume_gib: u64,
    /// Volumes in the recycle bin, or on their way out.
    pub trashed_volumes: u64,
    pub snapshot_gib: u64,
}

/// The commits that last changed what some look at as a whole, so that they need not for any other.
#[derive(Clone, Copy, Debug, Default)]
struct Changed {
    /// Records of hosts.
    hosts: Revision,
    /// What the network is told of: see [`View::network_changed`].
    network: Revision,
}

#[derive(Debug, Default)]
pub struct View {
    revision: Revision,
    /// Generations of hosts not in here are `floor`.
    generations: HashMap<HostId, Revision>,
    floor: Revision,
    changed: Changed,
    host_names: HashMap<String, HostId>,
    pub(super) ahead: Ahead,
    /// The hosts in the order of placement, with all that is claimed or about to be.
    pub(crate) fleet: Fleet,
    pub hosts: Table<HostRecord>,
    pub joins: Table<JoinRecord>,
    pub networks: Table<NetworkRecord>,
    pub subnets: Table<SubnetRecord>,
    pub ports: Table<PortRecord>,
    pub routers: Table<RouterRecord>,
    pub floating_ips: Table<FloatingIpRecord>,
    pub qos_policies: Table<QosPolicyRecord>,
    pub groups: Table<SecurityGroupRecord>,
    pub images: Table<ImageRecord>,
    pub blobs: Table<BlobRecord>,
    pub manifests: Table<ManifestRecord>,
    /// Who names which blob.
    pub(super) named: Named,
    pub instances: Table<InstanceRecord>,
    pub volumes: Table<VolumeRecord>,
    pub snapshots: Table<SnapshotRecord>,
    pub volume_groups: Table<VolumeGroupRecord>,
    pub volume_types: Table<VolumeTypeRecord>,
    pub volume_transfers: Table<VolumeTransferRecord>,
    pub exchanges: Table<ExchangeRecord>,
    pub failovers: Table<FailoverRecord>,
    pub tombstones: Table<TombstoneRecord>,
    pub twins: Table<TwinRecord>,
    pub rollouts: Table<RolloutRecord>,
    pub revisions: Table<RevisionRecord>,
    pub claims: Table<ClaimRecord>,
    pub actions: Table<ActionRecord>,
    pub migrations: Table<MigrationRecord>,
    pub identity: Identity,
    pub flavors: Table<FlavorRecord>,
    pub key_pairs: Table<KeyPairRecord>,
    pub server_groups: Table<ServerGroupRecord>,
    pub scaling_groups: Table<ScalingGroupRecord>,
    pub aggregates: Table<AggregateRecord>,
    pub quotas: Table<QuotaRecord>,
    pub past_instances: Table<PastInstanceRecord>,
    pub repositories: Table<RepositoryRecord>,
    pub links: Table<LinkRecord>,
    pub tags: Table<TagRecord>,
    pub peers: Table<PeerRecord>,
    pub replications: Table<ReplicationRecord>,
    pub replication_policies: Table<ReplicationPolicyRecord>,
    pub prepulls: Table<PrepullRecord>,
    pub host_images: Table<HostImagesRecord>,
    sums: HashMap<ProjectId, Sums>,
    instances_on: HashMap<HostId, BTreeSet<InstanceId>>,
    volumes_on: HashMap<HostId, BTreeSet<VolumeId>>,
    snapshots_on: HashMap<HostId, BTreeSet<SnapshotId>>,
    exports_on: HashMap<HostId, BTreeSet<ImageId>>,
    journeys_of: HashMap<HostId, BTreeSet<ExchangeId>>,
    twins_on: HashMap<HostId, BTreeSet<InstanceId>>,
    /// Instances whose policy asks for a twin.
    twinned: BTreeSet<InstanceId>,
    volumes_to: HashMap<HostId, BTreeSet<VolumeId>>,
    addresses: HashMap<NetworkId, AddressBook>,
    macs: HashSet<(NetworkId, String)>,
    subnets_of: HashMap<NetworkId, BTreeSet<SubnetId>>,
    ports_on: HashMap<NetworkId, BTreeSet<PortId>>,
    ports_of: HashMap<String, BTreeSet<PortId>>,
    floating_of: HashMap<PortId, BTreeSet<FloatingIpId>>,
}

impl View {
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// The commit that last changed a host's record.
    pub fn hosts_changed(&self) -> Revision {
        self.changed.hosts
    }

    /// The commit that last changed what the network is told: its own records, hosts, and where instances are.
    pub fn network_changed(&self) -> Revision {
        self.changed.network
    }

    /// A record of this kind changes; an instance's change is judged where it is seen.
    fn note(&mut self, kind: &str) {
        match kind {
            HostRecord::PREFIX => self.changed = Changed { hosts: self.revision, network: self.revision },
            NetworkRecord::PREFIX
            | SubnetRecord::PREFIX
            | PortRecord::PREFIX
            | RouterRecord::PREFIX
            | FloatingIpRecord::PREFIX
            | QosPolicyRecord::PREFIX
            | SecurityGroupRecord::PREFIX
            | ExchangeRecord::PREFIX => self.changed.network = self.revision,
            _ => {}
        }
    }

    /// The commit that last changed what the host should hold. After a start, the commit that was the last then: no
    /// generation that anyone has sent before is higher.
    pub fn generation(&self, host: HostId) -> Revision {
        self.generations.get(&host).copied().unwrap_or(self.floor)
    }

    pub fn instances_on(&self, host: HostId) -> impl Iterator<Item = &Row<InstanceRecord>> {
        self.instances_on.get(&host).into_iter().flatten().filter_map(|id| self.instances.get(*id))
    }

    pub fn volumes_on(&self, host: HostId) -> impl Iterator<Item = &Row<VolumeRecord>> {
        self.volumes_on.get(&host).into_iter().flatten().filter_map(|id| self.volumes.get(*id))
    }

    pub fn snapshots_on(&self, host: HostId) -> impl Iterator<Item = &Row<SnapshotRecord>> {
        self.snapshots_on.get(&host).into_iter().flatten().filter_map(|id| self.snapshots.get(*id))
    }

    /// Images whose bytes the host is to hand over.
    pub fn exports_on(&self, host: HostId) -> impl Iterator<Item = &Row<ImageRecord>> {
        self.exports_on.get(&host).into_iter().flatten().filter_map(|id| self.images.get(*id))
    }

    /// Moves under way from the host or to it.
    pub fn journeys_of(&self, host: HostId) -> impl Iterator<Item = &Row<ExchangeRecord>> {
        self.journeys_of.get(&host).into_iter().flatten().filter_map(|id| self.exchanges.get(*id))
    }

    /// Twins that wait on the host.
    pub fn twins_on(&self, host: HostId) -> impl Iterator<Item = &Row<TwinRecord>> {
        self.twins_on.get(&host).into_iter().flatten().filter_map(|id| self.twins.get(*id))
    }

    /// Instances that ask for a twin, and those that have one.
    pub fn twins_due(&self) -> impl Iterator<Item = InstanceId> {
        let left = self.twins.iter().map(|twin| twin.instance).filter(|id| !self.twinned.contains(id));
        self.twinned.iter().copied().chain(left)
    }

    /// Where the instance's twin waits.
    fn twin_host(&self, id: InstanceId) -> Option<HostId> {
        self.twins.get(id)?.place.as_ref().map(|place| place.host)
    }

    /// Volumes on their way to the host, in other hosts' hands so far.
    pub fn volumes_to(&self, host: HostId) -> impl Iterator<Item = &Row<VolumeRecord>> {
        self.volumes_to.get(&host).into_iter().flatten().filter_map(|id| self.volumes.get(*id))
    }

    /// Volumes on their way to any host.
    pub fn volumes_travelling(&self) -> impl Iterator<Item = &Row<VolumeRecord>> {
        self.volumes_to.values().flatten().filter_map(|id| self.volumes.get(*id))
    }

    /// What was done to an instance, the oldest first; also of one that is gone.
    pub fn actions_of(&self, instance: InstanceId) -> impl Iterator<Item = &Row<ActionRecord>> {
        self.actions.from(ActionKey::first(instance)).take_while(move |a| a.instance == instance)
    }

    /// The descriptions that an instance had, the oldest first.
    pub fn revisions_of(&self, instance: InstanceId) -> impl Iterator<Item = &Row<RevisionRecord>> {
        let first = RevisionKey { instance, number: 0 };
        self.revisions.from(first).take_while(move |r| r.instance == instance)
    }

    pub fn tombstones_on(&self, host: HostId) -> impl Iterator<Item = &Row<TombstoneRecord>> {
        self.tombstones.from(TombstoneKey::first(host)).take_while(move |t| t.host == host)
    }

    /// Who has which address of a network.
    pub fn addresses(&self, network: NetworkId) -> Option<&AddressBook> {
        self.addresses.get(&network)
    }

    /// A network's subnets, in order of creation.
    pub fn subnets_of(&self, network: NetworkId) -> impl Iterator<Item = &Row<SubnetRecord>> {
        self.subnets_of.get(&network).into_iter().flatten().filter_map(|id| self.subnets.get(*id))
    }

    pub fn ports_on(&self, network: NetworkId) -> impl Iterator<Item = &Row<PortRecord>> {
        self.ports_on.get(&network).into_iter().flatten().filter_map(|id| self.ports.get(*id))
    }

    /// Ports by `device_id`: a router's, an instance's.
    pub fn ports_of(&self, device: &str) -> impl Iterator<Item = &Row<PortRecord>> {
        self.ports_of.get(device).into_iter().flatten().filter_map(|id| self.ports.get(*id))
    }

    /// Floating IPs that stand for an address of the port.
    pub fn floating_ips_of(&self, port: PortId) -> impl Iterator<Item = &Row<FloatingIpRecord>> {
        self.floating_of.get(&port).into_iter().flatten().filter_map(|id| self.floating_ips.get(*id))
    }

    pub fn mac_taken(&self, network: NetworkId, mac: &str) -> bool {
        self.macs.contains(&(network, mac.to_owned()))
    }

    /// What the project's instances, volumes and snapshots add up to.
    pub fn sums_of(&self, project: ProjectId) -> Sums {
        let durable = self.sums.get(&project).copied().unwrap_or_default();
        self.sums_ahead(project).fold(durable, |a, b| Sums {
            vcpus: a.vcpus + b.vcpus,
            ram_mib: a.ram_mib + b.ram_mib,
            volume_gib: a.volume_gib + b.volume_gib,
            trashed_volumes: a.trashed_volumes + b.trashed_volumes,
            snapshot_gib: a.snapshot_gib + b.snapshot_gib,
        })
    }

    /// One thing's share of its project's sums changes: `before` is what it was, `now` what it is.
    fn tally<R>(
        &mut self,
        before: Option<(ProjectId, R)>,
        now: Option<(ProjectId, R)>,
        sum: fn(&mut Sums, R, bool),
    ) {
        if let Some((project, part)) = before {
            let sums = self.sums.entry(project).or_default();
            sum(sums, part, false);
            if *sums == Sums::default() {
                self.sums.remove(&project);
            }
        }
        if let Some((project, part)) = now {
            sum(self.sums.entry(project).or_default(), part, true);
        }
    }

    pub fn host_named(&self, name: &str) -> Option<&Row<HostRecord>> {
        self.hosts.get(*self.host_names.get(name)?)
    }

    /// Takes the loaded entries for the state at this revision.
    pub(super) fn settle(&mut self, revision: Revision) {
        self.revision = revision;
        self.changed = Changed { hosts: revision, network: revision };
        self.floor = revision;
        self.generations.clear();
    }

    /// Applies a commit; returns the hosts whose desired state it changed.
    pub(super) fn apply(&mut self, change: Change) -> BTreeSet<HostId> {
        let mut touched = BTreeSet::new();
        self.revision = change.revision;
        for event in change.events {
            let (key, result) = match event {
                Event::Put(entry) => (entry.key.clone(), self.put(entry)),
                Event::Deleted { key } => (key.clone(), Ok(self.delete(&key))),
            };
            match result {
                Ok(hosts) => touched.extend(hosts),
                Err(error) => tracing::error!(%key, %error, "a record cannot be read; its last state stays"),
            }
        }
        // What changes in a shared group concerns every host that sees it.
        let groups: Vec<HostId> = touched.iter().copied().filter(|id| self.group_at(*id).is_some()).collect();
        for place in groups {
            let keeper = self.group_at(place).and_then(|group| group.keeper);
            let hosts: Vec<HostId> = self.hosts_seeing(place).map(|host| host.id).chain(keeper).collect();
            touched.extend(hosts);
        }
        for host in &touched {
            self.generations.insert(*host, change.revision);
        }
        touched
    }

    pub(super) fn put(&mut self, entry: Entry) -> Result<Vec<HostId>, serde_json::Error> {
        let mut touched = Vec::new();
        let (value, version) = (entry.value, entry.version);
        self.ahead.arrived(&entry.key);
        let kind = kind_of(&entry.key);
        self.note(kind);
        macro_rules! read {
            () => {
                serde_json::from_value(value)?
            };
        }
        match kind {
            HostRecord::PREFIX => {
                let (id, before) = self.hosts.put(read!(), version);
                let told = |h: &HostRecord| (h.hellos, h.barred_since.is_some());
                if before.map(|b| told(&b)) != self.hosts.get(id).map(|h| told(h)) {
                    touched.push(id);
                }
                if let Some(row) = self.hosts.get(id) {
                    self.host_names.insert(row.name.clone(), id);
                }
                self.regroup(id);
            }
            JoinRecord::PREFIX => drop(self.joins.put(read!(), version)),
            RolloutRecord::PREFIX => drop(self.rollouts.put(read!(), version)),
            RevisionRecord::PREFIX => drop(self.revisions.put(read!(), version)),
            NetworkRecord::PREFIX => drop(self.networks.put(read!(), version)),
            SecurityGroupRecord::PREFIX => drop(self.groups.put(read!(), version)),
            ImageRecord::PREFIX => {
                let (id, before) = self.images.put(read!(), version);
                self.named.image(before.as_deref(), self.images.get(id).map(|row| &**row));
                touched.extend(self.remark(id, before.as_ref()));
                let now = self.images.get(id).and_then(|i| i.exporting_host());
                let before = before.and_then(|b| b.exporting_host());
                touched.extend(self.export_moves(id, before, now));
            }
            BlobRecord::PREFIX => {
                let (id, before) = self.blobs.put(read!(), version);
                self.named.blob(before.as_deref(), self.blobs.get(id).map(|row| &**row));
            }
            ManifestRecord::PREFIX => {
                let (id, before) = self.manifests.put(read!(), version);
                self.named.manifest(before.as_deref(), self.manifests.get(id).map(|row| &**row));
            }
            ActionRecord::PREFIX => drop(self.actions.put(read!(), version)),
            MigrationRecord::PREFIX => drop(self.migrations.put(read!(), version)),
            FailoverRecord::PREFIX => drop(self.failovers.put(read!(), version)),
            ClaimRecord::PREFIX => {
                let (host, _) = self.claims.put(read!(), version);
                self.reclaim(host);
            }
            FlavorRecord::PREFIX => drop(self.flavors.put(read!(), version)),
            KeyPairRecord::PREFIX => drop(self.key_pairs.put(read!(), version)),
            ServerGroupRecord::PREFIX => drop(self.server_groups.put(read!(), version)),
            ScalingGroupRecord::PREFIX => {
                let (id, before) = self.scaling_groups.put(read!(), version);
                if let Some(now) = self.scaling_groups.get(id)
                    && before.is_some_and(|b| b.measures() != now.measures())
                {
                    let instances = now.slots.values().filter_map(|slot| self.instances.get(slot.instance));
                    touched.extend(instances.filter_map(|row| row.host));
                }
            }
            AggregateRecord::PREFIX => {
                let (id, before) = self.aggregates.put(read!(), version);
                let mut hosts = before.map(|b| b.hosts.clone()).unwrap_or_default();
                hosts.extend(self.aggregates.get(id).iter().flat_map(|a| &a.hosts));
                touched.extend(hosts.iter().filter(|_| self.has_zoned_prepulls()));
                hosts.into_iter().for_each(|host| self.regroup(host));
            }
            QuotaRecord::PREFIX => drop(self.quotas.put(read!(), version)),
            VolumeGroupRecord::PREFIX => {
                let (id, _) = self.volume_groups.put(read!(), version);
                touched.push(id.place());
            }
            VolumeTypeRecord::PREFIX => drop(self.volume_types.put(read!(), version)),
            VolumeTransferRecord::PREFIX => drop(self.volume_transfers.put(read!(), version)),
            PastInstanceRecord::PREFIX => drop(self.past_instances.put(read!(), version)),
            RepositoryRecord::PREFIX => drop(self.repositories.put(read!(), version)),
            LinkRecord::PREFIX => {
                let (id, before) = self.links.put(read!(), version);
                self.named.link(before.as_deref(), self.links.get(id).map(|row| &**row));
            }
            TagRecord::PREFIX => drop(self.tags.put(read!(), version)),
            PeerRecord::PREFIX => drop(self.peers.put(read!(), version)),
            ReplicationRecord::PREFIX => drop(self.replications.put(read!(), version)),
            ReplicationPolicyRecord::PREFIX => drop(self.replication_policies.put(read!(), version)),
            PortRecord::PREFIX => {
                let (id, before) = self.ports.put(read!(), version);
                if let Some(before) = before {
                    self.forget_port(&before);
                    let kept: Vec<IpAddr> =
                        self.ports.get(id).iter().flat_map(|now| now.addresses()).collect();
                    self.release_addresses(&before, |address| !kept.contains(&address));
                }
                if let Some(port) = self.ports.get(id) {
                    let book = self.addresses.entry(port.network).or_default();
                    port.fixed_ips.iter().for_each(|ip| book.give(ip.address, id, Some(ip.subnet)));
                    self.macs.insert((port.network, port.mac.clone()));
                    self.ports_on.entry(port.network).or_default().insert(id);
                    if !port.device_id.is_empty() {
                        self.ports_of.entry(port.device_id.clone()).or_default().insert(id);
                    }
                    let host = port.instance.and_then(|id| self.instances.get(id)).and_then(|i| i.host);
                    touched.extend(host);
                    touched.extend(port.instance.and_then(|id| self.twin_host(id)));
                }
            }
            SubnetRecord::PREFIX => {
                let (id, _) = self.subnets.put(read!(), version);
                let Some(subnet) = self.subnets.get(id) else { return Ok(touched) };
                let network = subnet.network;
                self.subnets_of.entry(network).or_default().insert(id);
                touched.extend(self.hosts_on(network));
            }
            RouterRecord::PREFIX => drop(self.routers.put(read!(), version)),
            QosPolicyRecord::PREFIX => drop(self.qos_policies.put(read!(), version)),
            FloatingIpRecord::PREFIX => {
                let (id, before) = self.floating_ips.put(read!(), version);
                if let Some(target) = before.and_then(|b| b.target) {
                    drop_from(&mut self.floating_of, &target.port, &id);
                }
                if let Some(target) = self.floating_ips.get(id).and_then(|f| f.target) {
                    self.floating_of.entry(target.port).or_default().insert(id);
                }
            }
            InstanceRecord::PREFIX => {
                let (id, before) = self.instances.put(read!(), version);
                let Some(now) = self.instances.get(id) else { return Ok(touched) };
                if before.as_ref().is_none_or(|b| now.matters(b)) {
                    touched.extend(now.host);
                    touched.extend(before.as_ref().and_then(|b| b.host));
                    touched.extend(self.twin_host(id));
                }
                match now.failover {
                    FailoverPolicy::Twin => self.twinned.insert(id),
                    _ => self.twinned.remove(&id),
                };
                let (host, part) = (now.host, instance_part(now));
                if before.as_ref().is_none_or(|b| {
                    // With its bodies go the probes that OVN lets through.
                    (b.host, b.exchange, &b.bodies) != (now.host, now.exchange, &now.bodies)
                }) {
                    self.changed.network = self.revision;
                }
                if before
                    .as_ref()
                    .is_none_or(|b| (b.host, b.body, &b.bodies) != (now.host, now.body, &now.bodies))
                {
                    let present = made_of(now);
                    if let Some((host, images)) = before.as_ref().and_then(|b| made_of(b)) {
                        self.fleet.count_images(host, &images, false);
                    }
                    if let Some((host, images)) = present {
                        self.fleet.count_images(host, &images, true);
                    }
                }
                let (was, is) = (before.as_ref().and_then(|b| b.starting_on()), now.starting_on());
                if was != is {
                    was.into_iter().for_each(|host| self.fleet.count_starting(host, false));
                    is.into_iter().for_each(|host| self.fleet.count_starting(host, true));
                }
                if let Some(host) = before.as_ref().and_then(|b| b.host) {
                    drop_from(&mut self.instances_on, &host, &id);
                }
                if let Some(host) = host {
                    self.instances_on.entry(host).or_default().insert(id);
                }
                self.tally(before.as_ref().map(|b| instance_part(b)), Some(part), sum_instance);
            }
            VolumeRecord::PREFIX => {
                let (id, before) = self.volumes.put(read!(), version);
                let Some(now) = self.volumes.get(id) else { return Ok(touched) };
                // In a shared group, the holder grows a volume after the keeper has made it larger.
                let size = |v: &VolumeRecord| v.observed.as_ref().map(|seen| seen.size_bytes);
                let grown = || before.as_ref().map(|b| size(b)) != Some(size(now));
                if before.as_ref().is_none_or(|b| now.matters(b))
                    || (self.group_at(now.host).is_some() && grown())
                {
                    touched.push(now.host);
                }
                let (host, part) = (now.host, volume_part(now));
                if let Some(old) = before.as_ref().map(|b| b.host).filter(|old| *old != host) {
                    drop_from(&mut self.volumes_on, &old, &id);
                    touched.push(old);
                }
                self.volumes_on.entry(host).or_default().insert(id);
                let goes_to = |v: &VolumeRecord| v.journey.as_ref().map(|j| j.to);
                let (was, is) = (before.as_ref().and_then(|b| goes_to(b)), goes_to(now));
                if before.as_ref().is_none_or(|b| now.matters(b)) {
                    touched.extend(was.into_iter().chain(is));
                }
                was.iter().for_each(|to| drop_from(&mut self.volumes_to, to, &id));
                if let Some(to) = is {
                    self.volumes_to.entry(to).or_default().insert(id);
                }
                self.tally(before.map(|b| volume_part(&b)), Some(part), sum_volume);
            }
            SnapshotRecord::PREFIX => {
                let (id, before) = self.snapshots.put(read!(), version);
                let Some(now) = self.snapshots.get(id) else { return Ok(touched) };
                if before.as_ref().is_none_or(|b| now.matters(b)) {
                    touched.push(now.host);
                }
                let (host, part) = (now.host, (now.project, now.size_gib));
                self.snapshots_on.entry(host).or_default().insert(id);
                self.tally(before.map(|b| (b.project, b.size_gib)), Some(part), sum_snapshot);
            }
            ExchangeRecord::PREFIX => {
                let (id, before) = self.exchanges.put(read!(), version);
                let Some(now) = self.exchanges.get(id) else { return Ok(touched) };
                touched.extend(self.instances.get(now.instance).and_then(|i| i.host));
                let hosts =
                    |e: &ExchangeRecord| e.journey.as_ref().map(|j| [j.from, j.to]).into_iter().flatten();
                let open: Vec<HostId> = hosts(now).filter(|_| !now.ended()).collect();
                let closed: Vec<HostId> = before.iter().flat_map(|b| hosts(b)).collect();
                touched.extend(open.iter().chain(&closed));
                for host in closed {
                    drop_from(&mut self.journeys_of, &host, &id);
                }
                for host in open {
                    self.journeys_of.entry(host).or_default().insert(id);
                }
            }
            TwinRecord::PREFIX => {
                let (id, before) = self.twins.put(read!(), version);
                let host = |t: &Row<TwinRecord>| t.place.as_ref().map(|place| place.host);
                let (was, now) = (before.as_ref().and_then(host), self.twin_host(id));
                let told = self.twins.get(id).is_none_or(|now| before.is_none_or(|b| now.matters(&b)));
                touched.extend(was.into_iter().chain(now).filter(|_| told));
                self.twin_moves(id, was, now);
            }
            TombstoneRecord::PREFIX => touched.push(self.tombstones.put(read!(), version).0.host),
            PrepullRecord::PREFIX => {
                let (id, before) = self.prepulls.put(read!(), version);
                let now = self.prepulls.get(id).cloned();
                touched.extend(self.asked_to_fetch(before.iter().chain(&now)));
            }
            HostImagesRecord::PREFIX => {
                let (id, before) = self.host_images.put(read!(), version);
                let now = self.host_images.get(id).cloned();
                self.recount_held(id, before.as_deref(), now.as_deref());
            }
            kind if Identity::owns(kind) => self.identity.put(kind, value, version)?,
            // Keys that only reserve something are known by the records beside them.
            _ => {}
        }
        Ok(touched)
    }

    fn delete(&mut self, key: &str) -> Vec<HostId> {
        let kind = kind_of(key);
        let id = &key[kind.len()..];
        self.note(kind);
        match kind {
            HostRecord::PREFIX => {
                if let Some(old) = remove(&mut self.hosts, id) {
                    self.host_names.remove(&old.name);
                    self.fleet.remove(old.id);
                }
            }
            JoinRecord::PREFIX => drop(remove(&mut self.joins, id)),
            RolloutRecord::PREFIX => drop(remove(&mut self.rollouts, id)),
            RevisionRecord::PREFIX => drop(remove(&mut self.revisions, id)),
            NetworkRecord::PREFIX => {
                if let Some(old) = remove(&mut self.networks, id) {
                    self.addresses.remove(&old.id);
                }
            }
            SecurityGroupRecord::PREFIX => drop(remove(&mut self.groups, id)),
            ImageRecord::PREFIX => {
                let before = remove(&mut self.images, id);
                self.named.image(before.as_deref(), None);
                if let Some(old) = before {
                    let mut touched = self.export_moves(old.id, old.exporting_host(), None);
                    touched.extend(self.remark(old.id, Some(&old)));
                    return touched;
                }
            }
            BlobRecord::PREFIX => {
                let before = remove(&mut self.blobs, id);
                self.named.blob(before.as_deref(), None);
            }
            ManifestRecord::PREFIX => {
                let before = remove(&mut self.manifests, id);
                self.named.manifest(before.as_deref(), None);
            }
            ActionRecord::PREFIX => drop(remove(&mut self.actions, id)),
            MigrationRecord::PREFIX => drop(remove(&mut self.migrations, id)),
            FailoverRecord::PREFIX => drop(remove(&mut self.failovers, id)),
            ClaimRecord::PREFIX => {
                if let Some(old) = remove(&mut self.claims, id) {
                    self.reclaim(old.host);
                }
            }
            FlavorRecord::PREFIX => drop(remove(&mut self.flavors, id)),
            KeyPairRecord::PREFIX => drop(remove(&mut self.key_pairs, id)),
            ServerGroupRecord::PREFIX => drop(remove(&mut self.server_groups, id)),
            ScalingGroupRecord::PREFIX => drop(remove(&mut self.scaling_groups, id)),
            AggregateRecord::PREFIX => {
                let hosts = remove(&mut self.aggregates, id).map(|old| old.hosts.clone()).unwrap_or_default();
                hosts.iter().for_each(|host| self.regroup(*host));
                return hosts.into_iter().filter(|_| self.has_zoned_prepulls()).collect();
            }
            QuotaRecord::PREFIX => drop(remove(&mut self.quotas, id)),
            VolumeGroupRecord::PREFIX => drop(remove(&mut self.volume_groups, id)),
            VolumeTypeRecord::PREFIX => drop(remove(&mut self.volume_types, id)),
            VolumeTransferRecord::PREFIX => drop(remove(&mut self.volume_transfers, id)),
            PastInstanceRecord::PREFIX => drop(remove(&mut self.past_instances, id)),
            RepositoryRecord::PREFIX => drop(remove(&mut self.repositories, id)),
            LinkRecord::PREFIX => {
                let before = remove(&mut self.links, id);
                self.named.link(before.as_deref(), None);
            }
            TagRecord::PREFIX => drop(remove(&mut self.tags, id)),
            PeerRecord::PREFIX => drop(remove(&mut self.peers, id)),
            ReplicationRecord::PREFIX => drop(remove(&mut self.replications, id)),
            ReplicationPolicyRecord::PREFIX => drop(remove(&mut self.replication_policies, id)),
            ExchangeRecord::PREFIX => {
                let journey = remove(&mut self.exchanges, id).and_then(|e| Some((e.id, e.journey.clone()?)));
                for (id, host) in journey.iter().flat_map(|(id, j)| [(id, j.from), (id, j.to)]) {
                    drop_from(&mut self.journeys_of, &host, id);
                }
                return journey.iter().flat_map(|(_, j)| [j.from, j.to]).collect();
            }
            PortRecord::PREFIX => {
                if let Some(port) = remove(&mut self.ports, id) {
                    self.forget_port(&port);
                    self.release_addresses(&port, |_| true);
                }
            }
            SubnetRecord::PREFIX => {
                if let Some(old) = remove(&mut self.subnets, id) {
                    drop_from(&mut self.subnets_of, &old.network, &old.id);
                    if let Some(book) = self.addresses.get_mut(&old.network) {
                        book.forget_subnet(&old);
                    }
                }
            }
            RouterRecord::PREFIX => drop(remove(&mut self.routers, id)),
            QosPolicyRecord::PREFIX => drop(remove(&mut self.qos_policies, id)),
            FloatingIpRecord::PREFIX => {
                if let Some(old) = remove(&mut self.floating_ips, id)
                    && let Some(target) = old.target
                {
                    drop_from(&mut self.floating_of, &target.port, &old.id);
                }
            }
            InstanceRecord::PREFIX => {
                if let Some(old) = remove(&mut self.instances, id) {
                    if let Some(host) = old.host {
                        drop_from(&mut self.instances_on, &host, &old.id);
                    }
                    if let Some((host, images)) = made_of(&old) {
                        self.fleet.count_images(host, &images, false);
                    }
                    if let Some(host) = old.starting_on() {
                        self.fleet.count_starting(host, false);
                    }
                    self.twinned.remove(&old.id);
                    self.tally(Some(instance_part(&old)), None, sum_instance);
                    return old.host.into_iter().chain(self.twin_host(old.id)).collect();
                }
            }
            VolumeRecord::PREFIX => {
                if let Some(old) = remove(&mut self.volumes, id) {
                    drop_from(&mut self.volumes_on, &old.host, &old.id);
                    let to = old.journey.as_ref().map(|j| j.to);
                    to.iter().for_each(|to| drop_from(&mut self.volumes_to, to, &old.id));
                    self.tally(Some(volume_part(&old)), None, sum_volume);
                    return to.into_iter().chain([old.host]).collect();
                }
            }
            SnapshotRecord::PREFIX => {
                if let Some(old) = remove(&mut self.snapshots, id) {
                    drop_from(&mut self.snapshots_on, &old.host, &old.id);
                    self.tally(Some((old.project, old.size_gib)), None, sum_snapshot);
                    return vec![old.host];
                }
            }
            TwinRecord::PREFIX => {
                if let Some(old) = remove(&mut self.twins, id) {
                    let host = old.place.as_ref().map(|place| place.host);
                    self.twin_moves(old.instance, host, None);
                    return host.into_iter().collect();
                }
            }
            PrepullRecord::PREFIX => {
                let old = remove(&mut self.prepulls, id);
                return self.asked_to_fetch(old.iter());
            }
            HostImagesRecord::PREFIX => {
                if let Some(old) = remove(&mut self.host_images, id) {
                    self.recount_held(old.host, Some(&old), None);
                }
            }
            TombstoneRecord::PREFIX => {
                return remove(&mut self.tombstones, id).map(|old| old.host).into_iter().collect();
            }
            kind if Identity::owns(kind) => self.identity.delete(kind, id),
            _ => {}
        }
        Vec::new()
    }

    /// The host's availability zone.
    pub fn zone_of(&self, id: HostId) -> &str {
        let own = self.aggregates.iter().filter(|a| a.hosts.contains(&id));
        own.filter_map(|a| a.zone.as_deref()).next_back().unwrap_or(DEFAULT_ZONE)
    }

    /// The host's record, zone or aggregates have changed: placement sees it anew.
    fn regroup(&mut self, id: HostId) {
        let Some(row) = self.hosts.get(id) else { return };
        let aggregates = self.aggregates.iter().filter(|a| a.hosts.contains(&id));
        let metadata = aggregates.flat_map(|aggregate| aggregate.metadata.clone()).collect();
        let (claims, zone) = (self.claims_of(id), self.zone_of(id).to_owned());
        self.fleet.set_host(row.record.clone(), claims, zone, metadata);
    }

    /// What is claimed of the host has changed, or is about to.
    pub(super) fn reclaim(&mut self, host: HostId) {
        let claims = self.claims_of(host);
        self.fleet.set_claims(host, claims);
    }

    fn twin_moves(&mut self, id: InstanceId, was: Option<HostId>, now: Option<HostId>) {
        if let Some(host) = was {
            drop_from(&mut self.twins_on, &host, &id);
        }
        if let Some(host) = now {
            self.twins_on.entry(host).or_default().insert(id);
        }
    }

    /// An image's bytes are to come from another host than before; both should look.
    fn export_moves(&mut self, id: ImageId, before: Option<HostId>, now: Option<HostId>) -> Vec<HostId> {
        if before == now {
            return Vec::new();
        }
        if let Some(host) = before {
            drop_from(&mut self.exports_on, &host, &id);
        }
        if let Some(host) = now {
            self.exports_on.entry(host).or_default().insert(id);
        }
        before.into_iter().chain(now).collect()
    }

    /// Whether a record of this key, of a kind that quotas count, is in its table.
    pub(super) fn has(&self, key: &str) -> bool {
        fn there<R: Record>(table: &Table<R>, key: &str) -> bool {
            key.strip_prefix(R::PREFIX)
                .and_then(|id| id.parse().ok())
                .is_some_and(|id| table.get(id).is_some())
        }
        there(&self.instances, key)
            || there(&self.volumes, key)
            || there(&self.snapshots, key)
            || there(&self.server_groups, key)
    }

    /// Takes an address that is free; false where it is taken.
    pub(super) fn hold_address(&mut self, network: NetworkId, address: IpAddr, port: PortId) -> bool {
        let subnet = self.subnets_of(network).find(|s| s.cidr.contains(&address)).map(|s| s.id);
        let book = self.addresses.entry(network).or_default();
        let free = book.port_at(address).is_none();
        if free {
            book.give(address, port, subnet);
        }
        free
    }

    pub(super) fn let_go_of_address(&mut self, network: NetworkId, address: IpAddr, port: PortId) {
        if let Some(book) = self.addresses.get_mut(&network) {
            book.release(address, port);
        }
    }

    fn release_addresses(&mut self, port: &PortRecord, which: impl Fn(IpAddr) -> bool) {
        if let Some(book) = self.addresses.get_mut(&port.network) {
            port.addresses().filter(|address| which(*address)).for_each(|a| book.release(a, port.id));
        }
    }

    fn forget_port(&mut self, port: &PortRecord) {
        self.macs.remove(&(port.network, port.mac.clone()));
        drop_from(&mut self.ports_on, &port.network, &port.id);
        drop_from(&mut self.ports_of, &port.device_id, &port.id);
    }

    /// The hosts of the instances that have a port on the network.
    fn hosts_on(&self, network: NetworkId) -> BTreeSet<HostId> {
        let instances = self.ports_on(network).filter_map(|port| port.instance);
        let places = |id| [self.instances.get(id).and_then(|i| i.host), self.twin_host(id)];
        instances.flat_map(places).flatten().collect()
    }
}

/// Where a body is and which images it is made of.
fn made_of(record: &InstanceRecord) -> Option<(HostId, Vec<ImageId>)> {
    Some((record.host?, record.body_of(record.body)?.images.clone()))
}

fn instance_part(record: &InstanceRecord) -> (ProjectId, (u64, u64)) {
    (record.project, (record.vcpus.into(), record.memory_mib))
}

fn sum_instance(sums: &mut Sums, (vcpus, ram_mib): (u64, u64), more: bool) {
    count(&mut sums.vcpus, vcpus, more);
    count(&mut sums.ram_mib, ram_mib, more);
}

fn volume_part(record: &VolumeRecord) -> (ProjectId, (u64, u64)) {
    (record.project, if record.seen() { (record.size_gib, 0) } else { (0, 1) })
}

fn sum_volume(sums: &mut Sums, (gib, trashed): (u64, u64), more: bool) {
    count(&mut sums.volume_gib, gib, more);
    count(&mut sums.trashed_volumes, trashed, more);
}

fn sum_snapshot(sums: &mut Sums, gib: u64, more: bool) {
    count(&mut sums.snapshot_gib, gib, more);
}

fn count(sum: &mut u64, part: u64, more: bool) {
    *sum = if more { sum.saturating_add(part) } else { sum.saturating_sub(part) };
}

pub(super) fn remove<R: Record>(table: &mut Table<R>, id: &str) -> Option<Row<R>> {
    id.parse().ok().and_then(|id| table.take(id))
}

/// `/kind/` of a key.
fn kind_of(key: &str) -> &str {
    let rest = key.get(1..).unwrap_or_default();
    rest.find('/').map_or(key, |at| &key[..at + 2])
}
