//! Scaling groups: create, show, change, scale, roll out, delete. What is made of an order comes step by step, in `steps`.
//!
//! Refuses to make or delete an instance itself: an order changes the group's record alone.

mod endpoints;
mod figures;
mod health;
mod scale;
mod steps;

pub use endpoints::EndpointQuery;
pub use figures::Figures;
pub use health::ask_of;

use super::list::find;
use super::{Draft, ListQuery, Ops, OpsError, View};
use crate::model::*;
use amphi_api::group::{
    Autoscale, Group, GroupChange, GroupCreate, GroupMember, GroupScale, GroupState, GroupUpdate, Rollout,
    RolloutOrder, RolloutState, RolloutVerb,
};
use amphi_api::{ProjectId, ScalingGroupId};
use jiff::Timestamp;
use jiff::tz::TimeZone;

impl Ops {
    pub async fn create_scaling_group(
        &self,
        scope: ProjectId,
        request: &GroupCreate,
    ) -> Result<Group, OpsError> {
        request.check()?;
        check_zone(request.autoscale.as_ref())?;
        let now = Timestamp::now();
        let revision = TemplateRevision { number: 1, template: request.template.clone(), at: now };
        let record = ScalingGroupRecord {
            id: ScalingGroupId::new(),
            project: scope,
            name: request.name.clone(),
            wanted: match &request.autoscale {
                Some(policy) => request.count.clamp(policy.min, policy.max),
                None => request.count,
            },
            affinity: request.affinity,
            ports: request.ports.clone(),
            update: request.update.clone(),
            health: request.health.clone(),
            autoscale: request.autoscale.clone(),
            revisions: vec![revision],
            target: 1,
            base: 1,
            before: None,
            share: Share::default(),
            paused: false,
            reason: None,
            rolled_at: now,
            slots: Default::default(),
            leaving: Default::default(),
            failures: Default::default(),
            trouble: None,
            scaled: None,
            intent: Intent::Live,
            created_at: now,
            updated_at: now,
        };
        self.transact(|view| {
            refuse_taken(view, scope, &record.name)?;
            let mut draft = Draft::default();
            // The name is taken in the same commit: no two of one name.
            draft.reserve(name_key(scope, &record.name), record.id);
            draft.create(&record);
            Ok((draft, ()))
        })
        .await?;
        self.scaling_group(scope, record.id)
    }

    pub fn scaling_group(&self, scope: ProjectId, id: ScalingGroupId) -> Result<Group, OpsError> {
        let view = self.world().read();
        Ok(told(&view, find(&view.scaling_groups, scope, id)?))
    }

    pub fn scaling_groups(&self, scope: ProjectId, query: &ListQuery) -> Result<Vec<Group>, OpsError> {
        let view = self.world().read();
        let rows = query.rows(&view.scaling_groups, scope, |_| true)?;
        Ok(rows.into_iter().map(|row| told(&view, row)).collect())
    }

    /// Its instances go first; their volumes go to the recycle bin with them.
    pub async fn delete_scaling_group(&self, scope: ProjectId, id: ScalingGroupId) -> Result<(), OpsError> {
        self.order_group(scope, id, |group, _| {
            group.intent = Intent::Deleting;
            Ok(())
        })
        .await
        .map(drop)
    }

    pub async fn change_scaling_group(
        &self,
        scope: ProjectId,
        id: ScalingGroupId,
        change: &GroupChange,
    ) -> Result<Group, OpsError> {
        change.check()?;
        check_zone(change.autoscale.as_ref())?;
        self.order_group(scope, id, |group, _| {
            alive(group)?;
            group.ports = change.ports.clone().unwrap_or(std::mem::take(&mut group.ports));
            if let Some(update) = &change.update {
                group.update = update.clone();
            }
            if let Some(health) = &change.health {
                group.health = health.clone();
            }
            if change.no_autoscale || change.autoscale.is_some() {
                group.autoscale = change.autoscale.clone();
            }
            Ok(())
        })
        .await
    }

    pub async fn scale_group(
        &self,
        scope: ProjectId,
        id: ScalingGroupId,
        order: &GroupScale,
    ) -> Result<Group, OpsError> {
        let most = amphi_api::group::COUNT_MAX;
        amphi_api::validate::within("to", order.to.into(), 0, most.into(), "instances")?;
        self.order_group(scope, id, |group, now| {
            alive(group)?;
            if let Some(policy) = group.autoscale.as_ref().filter(|p| order.to < p.min || order.to > p.max) {
                let why = format!("the group scales itself between {} and {}", policy.min, policy.max);
                return Err(OpsError::field("to", why));
            }
            if group.wanted != order.to {
                group.scaled = Some(Scaled {
                    at: now,
                    why: format!("ordered: {} instead of {}", order.to, group.wanted),
                });
                group.wanted = order.to;
                retry(group, now);
            }
            Ok(())
        })
        .await
    }

    pub async fn roll_out_group(
        &self,
        scope: ProjectId,
        id: ScalingGroupId,
        order: &GroupUpdate,
    ) -> Result<Group, OpsError> {
        order.check()?;
        let share = match order.canary {
            true => Share::One,
            false => Share::Percent(order.percent.unwrap_or(100)),
        };
        self.order_group(scope, id, |group, now| {
            alive(group)?;
            if group.template(group.target) == Some(&order.template) && group.share == share {
                return Ok(());
            }
            group.roll_out(order.template.clone(), share, now);
            retry(group, now);
            Ok(())
        })
        .await
    }

    pub async fn order_rollout(
        &self,
        scope: ProjectId,
        id: ScalingGroupId,
        order: &RolloutOrder,
    ) -> Result<Group, OpsError> {
        order.check()?;
        self.order_group(scope, id, |group, now| {
            alive(group)?;
            match order.verb {
                RolloutVerb::Pause => group.paused = true,
                RolloutVerb::Resume => (group.paused, group.reason) = (false, None),
                RolloutVerb::Promote => group.share = Share::Percent(order.percent.unwrap_or(100)),
                RolloutVerb::Undo => {
                    if !group.undo(None, now) {
                        return Err(OpsError::conflict("there is no revision before this one"));
                    }
                    retry(group, now);
                }
            }
            Ok(())
        })
        .await
    }

    async fn order_group(
        &self,
        scope: ProjectId,
        id: ScalingGroupId,
        change: impl Fn(&mut ScalingGroupRecord, Timestamp) -> Result<(), OpsError>,
    ) -> Result<Group, OpsError> {
        self.transact(|view| {
            let row = find(&view.scaling_groups, scope, id)?;
            let now = Timestamp::now();
            let mut record = (*row.record).clone();
            change(&mut record, now)?;
            let mut draft = Draft::default();
            if record != *row.record {
                record.updated_at = now;
                draft.update(row, &record);
            }
            Ok((draft, told(view, &record)))
        })
        .await
    }
}

/// What was refused before may go now.
fn retry(group: &mut ScalingGroupRecord, now: Timestamp) {
    if let Some(trouble) = &mut group.trouble {
        trouble.retry_at = now;
    }
}

fn alive(group: &ScalingGroupRecord) -> Result<(), OpsError> {
    match group.intent {
        Intent::Live => Ok(()),
        Intent::Deleting => Err(OpsError::conflict("the group is being deleted")),
    }
}

fn check_zone(policy: Option<&Autoscale>) -> Result<(), OpsError> {
    let Some(policy) = policy else { return Ok(()) };
    let why = |e: jiff::Error| OpsError::field("autoscale.time_zone", format!("not known here: {e}"));
    TimeZone::get(&policy.time_zone).map(drop).map_err(why)
}

/// Holds a group's name in its project.
fn name_key(scope: ProjectId, name: &str) -> String {
    let digest = uuid::Uuid::new_v5(&scope.0, name.as_bytes());
    format!("/scaling-group-name/{digest}")
}

/// One name means one group, be it one that scales or one that only keeps apart.
fn refuse_taken(view: &View, scope: ProjectId, name: &str) -> Result<(), OpsError> {
    if !view.scaling_groups.named(scope, name).is_empty() {
        return Err(OpsError::taken("name", format!("a group '{name}' is there already")));
    }
    if !view.server_groups.named(scope, name).is_empty() {
        let why =
            format!("a server group '{name}' (for affinity alone) is there already: choose another name");
        return Err(OpsError::taken("name", why));
    }
    Ok(())
}

/// A group as clients see it.
fn told(view: &View, group: &ScalingGroupRecord) -> Group {
    let members: Vec<GroupMember> = group
        .slots
        .iter()
        .filter_map(|(index, slot)| {
            let row = view.instances.get(slot.instance)?;
            let looks = health::look(view, row);
            let (draining, withdrawn) = (slot.draining_since.is_some(), slot.withdrawn());
            Some(GroupMember {
                index: *index,
                instance: slot.instance,
                name: row.name.clone(),
                revision: slot.revision,
                state: state_of(row, row.host.is_none_or(|host| view.host_up(host))),
                ready: looks.reason.is_none() && withdrawn.is_none(),
                draining,
                addresses: health::addresses(view, row, None),
                host_name: row.host.and_then(|host| view.host_name(host)),
                reason: withdrawn.map(str::to_owned).or(looks.reason),
            })
        })
        .collect();
    let rollout = rollout(group, &members);
    let ready = members.iter().filter(|m| m.ready).count() as u32;
    let full = ready == group.wanted && members.len() as u32 == group.wanted && group.leaving.is_empty();
    let state = match (group.intent, &group.trouble) {
        (Intent::Deleting, _) => GroupState::Deleting,
        (_, Some(_)) => GroupState::Short,
        (_, None) if full && rollout.state != RolloutState::Progressing => GroupState::Steady,
        _ => GroupState::Changing,
    };
    Group {
        id: group.id,
        project: group.project,
        name: group.name.clone(),
        state,
        count: group.wanted,
        ready,
        template: group.template(group.target).cloned().unwrap_or_default(),
        affinity: group.affinity,
        ports: group.ports.clone(),
        update: group.update.clone(),
        health: group.health.clone(),
        autoscale: group.autoscale.clone(),
        rollout,
        members,
        leaving: group.leaving.iter().copied().collect(),
        trouble: group.trouble.as_ref().map(|t| t.fault.clone()),
        scaled: group.scaled.as_ref().map(|s| s.why.clone()),
        created_at: group.created_at,
        updated_at: group.updated_at,
    }
}

fn rollout(group: &ScalingGroupRecord, members: &[GroupMember]) -> Rollout {
    let of = |m: &&GroupMember| m.revision == group.target && !m.draining;
    let updated = members.iter().filter(of).count() as u32;
    let ready = members.iter().filter(of).filter(|m| m.ready).count() as u32;
    let wanted = group.share.of(group.wanted);
    let outdated = members.iter().any(|m| m.revision != group.target);
    let state = match (group.base == group.target && !outdated, group.paused) {
        (true, _) => RolloutState::Done,
        (_, true) => RolloutState::Paused,
        _ if wanted < group.wanted && updated >= wanted && ready >= wanted => RolloutState::Waiting,
        _ => RolloutState::Progressing,
    };
    Rollout {
        state,
        to: group.target,
        from: group.base,
        wanted,
        updated,
        ready,
        reason: group.reason.clone(),
        since: group.rolled_at,
    }
}
