//! Quotas of compute, volume and network: limits by project, by user within a project (compute alone) and by default;
//! usage counted from the things themselves. Refuses to keep count in records: what is counted cannot drift.
//!
//! A check belongs into the transaction that makes the thing. Two requests at once could both find room; those that
//! must not go through `Ops::transact_room`, where each sees those that are on their way.

use super::{Draft, Ops, OpsError, OverQuota, View};
use crate::model::*;
use amphi_api::{ProjectId, UserId};
use std::collections::BTreeMap;

/// Greatest limit: nova's and cinder's MAX_INT.
pub const LIMIT_MAX: i64 = 0x7fff_ffff;

/// Limit and usage of one resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    pub limit: i64,
    pub used: u64,
}

/// Whether a project has room for so much more of each.
pub fn check(view: &View, project: ProjectId, asked: &[(Resource, u64)]) -> Result<(), OpsError> {
    check_for(view, project, None, asked)
}

/// [`check`], with the user's own limits within the project and of what is counted by user.
pub fn check_for(
    view: &View,
    project: ProjectId,
    user: Option<UserId>,
    asked: &[(Resource, u64)],
) -> Result<(), OpsError> {
    for (resource, more) in asked {
        let used = used(view, project, user, *resource);
        refuse_over(resource.word(), limit(view, project, user, resource.word()), used, *more)?;
    }
    Ok(())
}

/// Of what is limited within one thing (members of a group, items of metadata): `there` are already, `more` are asked.
pub fn check_within(
    view: &View,
    project: ProjectId,
    resource: Resource,
    there: u64,
    more: u64,
) -> Result<(), OpsError> {
    refuse_over(resource.word(), limit(view, project, None, resource.word()), there, more)
}

/// Of a volume type's own limits: `volumes_TYPE`, `gigabytes_TYPE`, `snapshots_TYPE`; the caller counts.
pub fn check_named(
    view: &View,
    project: ProjectId,
    word: &str,
    used: u64,
    more: u64,
) -> Result<(), OpsError> {
    refuse_over(word, limit(view, project, None, word), used, more)
}

fn refuse_over(word: &str, limit: i64, used: u64, asked: u64) -> Result<(), OpsError> {
    // Asking for nothing is never too much, even where a limit has been lowered below what is there.
    let room = u64::try_from(limit).map_or(u64::MAX, |limit| limit.saturating_sub(used));
    if asked == 0 || asked <= room {
        return Ok(());
    }
    Err(OverQuota { resource: word.to_owned(), asked, used, limit }.into())
}

/// What a project, or a user within it, may have: the user's limit, else the project's, else the default.
pub fn limit(view: &View, project: ProjectId, user: Option<UserId>, word: &str) -> i64 {
    let kept = |key| view.quotas.get(key).and_then(|row| row.limits.get(word).copied());
    user.and_then(|user| kept(QuotaKey::User(project, user)))
        .or_else(|| kept(QuotaKey::Project(project)))
        // The project that the cloud begins with is the operator's own: it has no limit but those that he sets.
        .or_else(|| (project == ProjectId::DEFAULT).then_some(NO_LIMIT))
        .unwrap_or_else(|| default_limit(view, word))
}

/// What projects have that are given nothing else. A volume type has no limit of its own (cinder/quota.py,
/// `VolumeTypeResource`, -1).
pub fn default_limit(view: &View, word: &str) -> i64 {
    let set = view.quotas.get(QuotaKey::Default).and_then(|row| row.limits.get(word).copied());
    let known = || Resource::ALL.iter().find(|r| r.word() == word).map(|r| r.default_limit());
    set.or_else(known).unwrap_or(NO_LIMIT)
}

/// How much a project has. Instances and what they take are counted by user too, where a user is given; key pairs are
/// counted by user alone. What is limited within one thing counts as 0.
pub fn used(view: &View, project: ProjectId, user: Option<UserId>, resource: Resource) -> u64 {
    let sums = view.sums_of(project);
    match resource {
        Resource::Instances => view.count_with_ahead(&view.instances, project) as u64,
        Resource::Cores => sums.vcpus,
        Resource::Ram => sums.ram_mib,
        Resource::KeyPairs => user.map_or(0, |user| view.key_pairs.count_of(ProjectId(user.0)) as u64),
        Resource::ServerGroups => match user {
            Some(user) => view.server_groups.of_project(project).filter(|g| g.user == user).count() as u64,
            None => view.count_with_ahead(&view.server_groups, project) as u64,
        },
        // What was deleted is no longer the project's to see, though its bytes wait in the recycle bin.
        Resource::Volumes => {
            (view.count_with_ahead(&view.volumes, project) as u64).saturating_sub(sums.trashed_volumes)
        }
        Resource::Snapshots => view.count_with_ahead(&view.snapshots, project) as u64,
        // Snapshots count, as they do where cinder's `no_snapshot_gb_quota` is off, its default.
        Resource::Gigabytes => sums.volume_gib + sums.snapshot_gib,
        Resource::Networks => view.networks.count_of(project) as u64,
        Resource::Ports => view.ports.count_of(project) as u64,
        Resource::SecurityGroups => view.groups.count_of(project) as u64,
        Resource::SecurityGroupRules => {
            view.groups.of_project(project).map(|group| group.rules.len() as u64).sum()
        }
        Resource::Subnets => view.subnets.count_of(project) as u64,
        Resource::Routers => view.routers.count_of(project) as u64,
        Resource::FloatingIps => view.floating_ips.count_of(project) as u64,
        Resource::ImageSizeTotal => super::image_bytes::used(view, project).div_ceil(1 << 20),
        _ => 0,
    }
}

/// Limits and usage of all that a service limits, by its words, in its order.
pub fn all(
    view: &View,
    service: QuotaService,
    project: ProjectId,
    user: Option<UserId>,
) -> Vec<(Resource, Quota)> {
    let quota = |resource: Resource| Quota {
        limit: limit(view, project, user, resource.word()),
        used: used(view, project, user, resource),
    };
    Resource::of(service).map(|resource| (resource, quota(resource))).collect()
}

impl Ops {
    /// Sets limits, by the services' words. Unless forced, none may be below what is there already; and a user's none
    /// above the project's (nova/api/openstack/compute/quota_sets.py).
    pub async fn set_quotas(
        &self,
        of: QuotaKey,
        limits: &BTreeMap<String, i64>,
        force: bool,
    ) -> Result<(), OpsError> {
        for (word, limit) in limits {
            if !(NO_LIMIT..=LIMIT_MAX).contains(limit) {
                return Err(OpsError::field(word, format!("must be -1 to {LIMIT_MAX}")));
            }
        }
        self.transact(|view| {
            if !force {
                limits.iter().try_for_each(|(word, limit)| allowed(view, of, word, *limit))?;
            }
            let row = view.quotas.get(of);
            let mut record =
                row.map_or_else(|| QuotaRecord { of, limits: BTreeMap::new() }, |row| (*row.record).clone());
            record.limits.extend(limits.iter().map(|(word, limit)| (word.clone(), *limit)));
            let mut draft = Draft::default();
            if row.is_none_or(|row| *row.record != record) {
                draft.put_record(row, &record);
            }
            Ok((draft, ()))
        })
        .await
    }

    /// Forgets the limits that `mine` says are the service's: the defaults hold again.
    pub async fn reset_quotas(&self, of: QuotaKey, mine: impl Fn(&str) -> bool) -> Result<(), OpsError> {
        self.transact(|view| {
            let mut draft = Draft::default();
            // With a project's limits those of its users go.
            let rows = view.quotas.iter().filter(|row| match (of, row.of) {
                (QuotaKey::Project(project), QuotaKey::User(owner, _)) => owner == project,
                (of, key) => of == key,
            });
            for row in rows.take(super::status::CHUNK) {
                let mut record = (*row.record).clone();
                record.limits.retain(|word, _| !mine(word));
                if record.limits.is_empty() {
                    draft.delete(row);
                } else if record != *row.record {
                    draft.update(row, &record);
                }
            }
            Ok((draft, ()))
        })
        .await
    }
}

/// Whether a limit may be set without force.
fn allowed(view: &View, of: QuotaKey, word: &str, wanted: i64) -> Result<(), OpsError> {
    let (project, user) = match of {
        QuotaKey::Default => return Ok(()),
        QuotaKey::Project(project) => (project, None),
        QuotaKey::User(project, user) => (project, Some(user)),
    };
    let known = Resource::ALL.iter().find(|r| r.word() == word);
    let used = known.map_or(0, |resource| used(view, project, user, *resource));
    if u64::try_from(wanted).is_ok_and(|wanted| wanted < used) {
        return Err(OpsError::field(
            word,
            format!("Quota limit {wanted} for {word} must be greater than or equal to already used {used}."),
        ));
    }
    let ceiling = limit(view, project, None, word);
    let above = ceiling != NO_LIMIT && (wanted == NO_LIMIT || wanted > ceiling);
    if user.is_some() && above {
        return Err(OpsError::field(
            word,
            format!("Quota limit {wanted} for {word} must be less than or equal to {ceiling}."),
        ));
    }
    Ok(())
}
