//! Server groups: create, delete, and what placement needs to know of one.

use super::list::find;
use super::quotas;
use super::{Draft, Ops, OpsError, View};
use crate::model::*;
use crate::scheduler::GroupAsk;
use amphi_api::{HostId, InstanceId, ProjectId, ServerGroupId, UserId};
use jiff::Timestamp;
use std::collections::BTreeMap;

/// What is asked of a new group.
#[derive(Clone, Debug)]
pub struct ServerGroupSpec {
    pub name: String,
    pub policy: GroupPolicy,
    /// Only of an anti-affine group.
    pub max_server_per_host: Option<u32>,
}

impl Ops {
    pub async fn create_server_group(
        &self,
        scope: ProjectId,
        user: UserId,
        spec: &ServerGroupSpec,
    ) -> Result<ServerGroupRecord, OpsError> {
        if spec.max_server_per_host.is_some() && spec.policy != GroupPolicy::AntiAffinity {
            return Err(OpsError::field("rules", "Only anti-affinity policy supports rules."));
        }
        if spec.max_server_per_host == Some(0) {
            return Err(OpsError::field("rules.max_server_per_host", "must be at least 1"));
        }
        let record = ServerGroupRecord {
            id: ServerGroupId(uuid::Uuid::now_v7()),
            project: scope,
            user,
            name: spec.name.clone(),
            policy: spec.policy,
            max_server_per_host: spec.max_server_per_host,
            members: Vec::new(),
            created_at: Timestamp::now(),
        };
        self.transact_room(|view| {
            quotas::check(view, scope, &[(Resource::ServerGroups, 1)])?;
            let mut draft = Draft::default();
            draft.create(&record);
            Ok((draft, ()))
        })
        .await?;
        Ok(record)
    }

    /// Its members stay as they are, bound to nothing from then on.
    pub async fn delete_server_group(&self, scope: ProjectId, id: ServerGroupId) -> Result<(), OpsError> {
        self.transact(|view| {
            let mut draft = Draft::default();
            draft.delete(find(&view.server_groups, scope, id)?);
            Ok((draft, ()))
        })
        .await
    }
}

/// The members that exist.
pub fn members<'a>(view: &'a View, group: &'a ServerGroupRecord) -> impl Iterator<Item = InstanceId> + 'a {
    let live = |id: &InstanceId| view.instances.get(*id).is_some_and(|row| row.intent == Intent::Live);
    group.members.iter().copied().filter(move |id| live(id))
}

/// The group as placement sees it, but for the instance that is placed.
pub fn ask(view: &View, group: &ServerGroupRecord, placed: Option<InstanceId>) -> GroupAsk {
    let mut hosts: BTreeMap<HostId, u32> = BTreeMap::new();
    let others = group.members.iter().filter(|id| Some(**id) != placed);
    for row in others.filter_map(|id| view.instances.get(*id)).filter(|row| row.intent == Intent::Live) {
        if let Some(host) = row.host {
            *hosts.entry(host).or_default() += 1;
        }
    }
    GroupAsk { policy: group.policy, members: hosts, max_per_host: group.max_server_per_host.unwrap_or(1) }
}

/// Takes an instance into a group, in the transaction that places it: whoever places another member at the same time
/// must look again. Refuses a group that is full.
pub fn join(
    view: &View,
    draft: &mut Draft,
    scope: ProjectId,
    id: ServerGroupId,
    member: InstanceId,
) -> Result<GroupAsk, OpsError> {
    let row = find(&view.server_groups, scope, id)?;
    let ask = ask(view, row, Some(member));
    let there = members(view, row).filter(|id| *id != member).count() as u64;
    quotas::check_within(view, scope, Resource::ServerGroupMembers, there, 1)?;
    // Those that are gone leave the list here, should nobody have taken them out.
    let mut record = (*row.record).clone();
    record.members.retain(|id| view.instances.get(*id).is_some());
    draft.update(row, &record.with(member));
    Ok(ask)
}

/// Takes an instance out of a group, in the transaction that buries it.
pub fn leave(view: &View, draft: &mut Draft, id: ServerGroupId, member: InstanceId) {
    if let Some(row) = view.server_groups.get(id).filter(|row| row.members.contains(&member)) {
        draft.update(row, &row.without(member));
    }
}
