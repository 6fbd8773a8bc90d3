//! Shared volume groups: learned from the hosts that see them, each with one keeper; what is ordered of their volumes goes to
//! the keeper, and the right to have one active to the host of its instance.
//!
//! Refuses what would read a volume beside its holder: snapshots, copies and images of volumes in shared groups.

use super::{Draft, Ops, OpsError, Row, View};
use crate::model::*;
use amphi_api::failover::FailoverPhase;
use amphi_api::host::{EngineName, HostSpec};
use amphi_api::wire::GroupDesired;
use amphi_api::{HostId, VolumeGroupId, VolumeId};
use jiff::Timestamp;

/// The extra spec of a volume type that names the shared group that its volumes go to.
pub const GROUP_KEY: &str = "amphi:volume_group";

impl View {
    /// The shared group at this place; none: it is a host.
    pub fn group_at(&self, place: HostId) -> Option<&Row<VolumeGroupRecord>> {
        self.volume_groups.get(VolumeGroupId::from(place))
    }

    /// The shared group that the volume is in.
    pub fn group_of(&self, volume: VolumeId) -> Option<&Row<VolumeGroupRecord>> {
        self.group_at(self.volumes.get(volume)?.host)
    }

    /// Shared groups that volumes of the instance are in, as places.
    pub(super) fn reach_of(&self, record: &InstanceRecord) -> Vec<HostId> {
        let mut places: Vec<HostId> =
            record.volumes().filter_map(|id| Some(self.group_of(id)?.id.place())).collect();
        places.dedup();
        places
    }

    /// The hosts that see the group at this place.
    pub(super) fn hosts_seeing(&self, place: HostId) -> impl Iterator<Item = &Row<HostRecord>> {
        self.hosts.iter().filter(move |host| host.spec.as_ref().is_some_and(|spec| sees(spec, place)))
    }

    /// The shared groups that the host keeps.
    pub(super) fn kept_by(&self, host: HostId) -> impl Iterator<Item = &Row<VolumeGroupRecord>> {
        self.volume_groups.iter().filter(move |group| group.is_kept_by(host))
    }

    /// Whether the host's word counts for what lies at this place.
    pub(super) fn speaks_for(&self, host: HostId, place: HostId) -> bool {
        host == place || self.group_at(place).is_some_and(|group| group.is_kept_by(host))
    }
}

pub fn sees(spec: &HostSpec, place: HostId) -> bool {
    spec.shared_groups.iter().any(|group| group.id.place() == place)
}

/// The shared groups that a host says it sees, written down. Part of its hello.
pub(super) fn learn(view: &View, draft: &mut Draft, spec: &HostSpec, now: Timestamp) {
    for seen in &spec.shared_groups {
        match view.volume_groups.get(seen.id) {
            None => draft.create(&VolumeGroupRecord {
                id: seen.id,
                name: seen.name.clone(),
                size_bytes: seen.size_bytes,
                keeper: None,
                term: 0,
                retiring: false,
                created_at: now,
            }),
            Some(row) if row.size_bytes != seen.size_bytes => {
                draft
                    .update(row, &VolumeGroupRecord { size_bytes: seen.size_bytes, ..(*row.record).clone() });
            }
            Some(_) => {}
        }
    }
}

/// A host's part in every shared group that it sees.
pub(super) fn parts(view: &View, host: HostId, instances: &[&Row<InstanceRecord>]) -> Vec<GroupDesired> {
    let Some(spec) = view.hosts.get(host).and_then(|row| row.spec.as_ref()) else { return Vec::new() };
    // One that is shut out has no part in anything, whatever its records say that it keeps.
    let in_force = view.hosts.get(host).is_some_and(|row| row.barred_since.is_none());
    let groups = spec.shared_groups.iter().filter_map(|seen| view.volume_groups.get(seen.id));
    groups
        .map(|group| {
            let place = group.id.place();
            let keeps = in_force && group.is_kept_by(host);
            let here =
                |id: &VolumeId| in_force && view.volumes.get(*id).is_some_and(|v| v.host == place && v.made);
            let held = instances.iter().flat_map(|row| {
                let epoch = row.epoch;
                row.volumes().filter(here).map(move |id| (id, epoch))
            });
            let tombstones = view.tombstones_on(place).filter_map(|stone| match stone.order {
                amphi_api::wire::Tombstone::Volume { id } => Some(id),
                _ => None,
            });
            let kept = view.volumes_on(place).map(|row| row.id).chain(tombstones);
            GroupDesired {
                id: group.id,
                keeper: keeps.then_some(group.term),
                kept: kept.filter(|_| keeps).collect(),
                held: held.collect(),
            }
        })
        .collect()
}

/// The group that a new volume is to go to: the one named, else its type's.
pub(super) fn wanted<'a>(
    view: &'a View,
    named: Option<&str>,
    kind: &VolumeTypeRecord,
) -> Result<Option<&'a Row<VolumeGroupRecord>>, OpsError> {
    let of_type = kind.extra_specs.get(GROUP_KEY).map(String::as_str);
    let Some(text) = named.or(of_type) else { return Ok(None) };
    let found = view.volume_groups.iter().find(|g| g.name == text || g.id.to_string() == text);
    let unknown = || OpsError::field("group", format!("no host sees a shared volume group '{text}'"));
    found.map(Some).ok_or_else(unknown)
}

/// Whether the group has room for so much more. Room is promised of the group as a whole, whoever has its volumes.
pub(super) fn room_in(view: &View, group: &VolumeGroupRecord, gib: u64) -> Result<(), OpsError> {
    let (capacity, used) = (group.size_bytes / GIB, view.claims_of(group.id.place()).volume_gib);
    if used.saturating_add(gib) <= capacity {
        return Ok(());
    }
    Err(OpsError::conflict(format!(
        "shared volume group '{}': {used} of {capacity} GiB are taken, {gib} are asked",
        group.name
    )))
}

/// Refuses what needs a volume's bytes read beside whoever has it active.
pub(super) fn refuse_copies(view: &View, volume: &VolumeRecord) -> Result<(), OpsError> {
    match view.group_at(volume.host) {
        None => Ok(()),
        Some(group) => Err(OpsError::conflict(format!(
            "the volume is in the shared volume group '{}': it has no snapshots and no copies there",
            group.name
        ))),
    }
}

fn keeper_sight(view: &View, group: &VolumeGroupRecord) -> KeeperSight {
    let Some(host) = group.keeper.and_then(|id| view.hosts.get(id)) else { return KeeperSight::Gone };
    let barring = |f: &Row<FailoverRecord>| f.host == host.id && f.phase == FailoverPhase::Barring;
    if host.barred_since.is_some() {
        let shut_out = !view.failovers.iter().any(barring);
        return if shut_out { KeeperSight::Gone } else { KeeperSight::Fit };
    }
    let seen = host.spec.as_ref().is_some_and(|spec| sees(spec, group.id.place()));
    if host.is_up() && (!seen || host.maintenance.is_some()) { KeeperSight::Unfit } else { KeeperSight::Fit }
}

/// The host that would be the group's next keeper: any that is well will do.
fn candidate(view: &View, group: &VolumeGroupRecord) -> Option<HostId> {
    let lvm = |spec: &HostSpec| {
        spec.engines.iter().any(|engine| engine.name == EngineName::Lvm && engine.trouble.is_none())
    };
    let fit = |host: &&Row<HostRecord>| {
        host.is_up()
            && host.barred_since.is_none()
            && host.maintenance.is_none()
            && group.keeper != Some(host.id)
            && host.spec.as_ref().is_some_and(lvm)
    };
    view.hosts_seeing(group.id.place()).filter(fit).map(|host| host.id).min()
}

fn step(view: &View, group: &VolumeGroupRecord) -> VolumeGroupRecord {
    group.kept(keeper_sight(view, group), candidate(view, group))
}

impl Ops {
    /// Sees to it that every shared group has a keeper. For the failover's task.
    pub async fn keep_groups(&self) -> Result<(), OpsError> {
        let due: Vec<VolumeGroupId> = {
            let view = self.world().read();
            let due = view.volume_groups.iter().filter(|group| step(&view, group) != *group.record);
            due.map(|group| group.id).collect()
        };
        for id in due {
            let (name, keeper, term) = self
                .transact(|view| {
                    let mut draft = Draft::default();
                    let Some(row) = view.volume_groups.get(id) else {
                        return Ok((draft, Default::default()));
                    };
                    let record = step(view, row);
                    if record != *row.record {
                        // Nothing was said of these hosts in between.
                        let hosts = row.keeper.into_iter().chain(record.keeper);
                        hosts.filter_map(|id| view.hosts.get(id)).for_each(|host| draft.guard(host));
                        draft.update(row, &record);
                    }
                    Ok((draft, (record.name, record.keeper, record.term)))
                })
                .await?;
            tracing::info!(group = name, ?keeper, term, "the keeper of a shared volume group");
        }
        Ok(())
    }
}
