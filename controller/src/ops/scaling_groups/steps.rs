//! What the decision says is done, each in one transaction that decides it once more: what was done meanwhile, by this
//! controller before it died or by another, is not done again.

use super::health;
use crate::model::*;
use crate::ops::instances::plan;
use crate::ops::orders::delete;
use crate::ops::servers::Origin;
use crate::ops::updates::order_of_group;
use crate::ops::view::Row;
use crate::ops::{Draft, Ops, OpsError, View, VolumeFate};
use crate::scheduler::Request;
use amphi_api::ScalingGroupId;
use amphi_api::group::member_name;
use amphi_api::instance::InstanceCreate;
use amphi_api::rollout::RolloutPhase;
use jiff::Timestamp;
use std::collections::BTreeMap;

/// Rounds of one group before the others have their turn.
const ROUNDS: u32 = 8;

impl Ops {
    /// Takes the next steps of every group. For the task.
    pub async fn step_groups(&self) -> Result<(), OpsError> {
        let groups: Vec<ScalingGroupId> = self.world().read().scaling_groups.iter().map(|g| g.id).collect();
        for id in groups {
            self.scale_itself(id).await?;
            for _ in 0..ROUNDS {
                let steps = {
                    let view = self.world().read();
                    view.scaling_groups
                        .get(id)
                        .map(|row| decide(&view, row, Timestamp::now()))
                        .unwrap_or_default()
                };
                if steps.is_empty() {
                    break;
                }
                self.take_steps(id, &steps).await?;
            }
        }
        Ok(())
    }

    async fn take_steps(&self, id: ScalingGroupId, steps: &[GroupStep]) -> Result<(), OpsError> {
        if steps.iter().all(GroupStep::is_note) {
            return self
                .transact(|view| {
                    let mut draft = Draft::default();
                    let now = Timestamp::now();
                    if let Some(row) = view.scaling_groups.get(id) {
                        let notes = decide(view, row, now).into_iter().filter(GroupStep::is_note);
                        let next = notes.fold((*row.record).clone(), |group, note| group.after(&note, now));
                        if next != *row.record {
                            draft.update(row, &next);
                        }
                    }
                    Ok((draft, ()))
                })
                .await;
        }
        for step in steps {
            match step {
                GroupStep::Create { .. } | GroupStep::Update { .. } => {
                    if !self.change_member(id, step).await? {
                        return Ok(());
                    }
                }
                step => self.take_step(id, step).await?,
            }
        }
        Ok(())
    }

    async fn take_step(&self, id: ScalingGroupId, step: &GroupStep) -> Result<(), OpsError> {
        self.transact(|view| {
            let mut draft = Draft::default();
            let now = Timestamp::now();
            let Some(row) = still(view, id, step, now) else { return Ok((draft, ())) };
            match step {
                GroupStep::End => {
                    draft.delete(row);
                    draft.release(super::name_key(row.project, &row.name));
                }
                GroupStep::Delete { index, why, .. } => {
                    if let Some(instance) = row.slots.get(index).and_then(|slot| view.instances.get(slot.instance)) {
                        tracing::info!(group = %row.name, member = index, instance = %instance.id, why, "a member goes");
                        delete(view, &mut draft, &Origin::native(row.project), instance, VolumeFate::Trash, now);
                    }
                    draft.update(row, &row.after(step, now));
                }
                note => draft.update(row, &row.after(note, now)),
            }
            Ok((draft, ()))
        })
        .await
    }

    /// One is made, or its set is updated. False: it could not be now; the record says why, and when it is tried again.
    async fn change_member(&self, id: ScalingGroupId, step: &GroupStep) -> Result<bool, OpsError> {
        let made = self
            .transact_room(|view| {
                let now = Timestamp::now();
                match (still(view, id, step, now), step) {
                    (Some(row), GroupStep::Update { index, .. }) => update(view, row, *index, now),
                    (Some(row), step) => launch(view, row, step, self.policy(), now),
                    (None, _) => Ok((Draft::default(), ())),
                }
            })
            .await;
        let refused = match made {
            Ok(()) => return Ok(true),
            Err(error @ (OpsError::Unavailable(_) | OpsError::Internal(_))) => return Err(error),
            Err(refused) => refused,
        };
        let code = match &refused {
            OpsError::NoRoom(_) => "no_room",
            OpsError::Quota(_) => "quota",
            _ => "refused",
        };
        self.transact(|view| {
            let mut draft = Draft::default();
            if let Some(row) = view.scaling_groups.get(id) {
                let now = Timestamp::now();
                let trouble = Trouble::after(row.trouble.as_ref(), code, refused.to_string(), now);
                let next = match step {
                    GroupStep::Update { index, .. } => row.after(&GroupStep::Keep { index: *index }, now),
                    _ => (*row.record).clone(),
                };
                draft.update(row, &ScalingGroupRecord { trouble: Some(trouble), ..next });
            }
            Ok((draft, ()))
        })
        .await?;
        Ok(false)
    }
}

/// The group, if the step is still to be taken.
fn still<'a>(
    view: &'a View,
    id: ScalingGroupId,
    step: &GroupStep,
    now: Timestamp,
) -> Option<&'a Row<ScalingGroupRecord>> {
    let row = view.scaling_groups.get(id)?;
    // The seconds that it says it has waited for change; what is to be done does not.
    let same = |other: &GroupStep| match (step, other) {
        (GroupStep::Delete { index: a, .. }, GroupStep::Delete { index: b, .. }) => a == b,
        (a, b) => a == b,
    };
    decide(view, row, now).iter().any(same).then_some(row)
}

pub fn decide(view: &View, group: &ScalingGroupRecord, now: Timestamp) -> Vec<GroupStep> {
    let members: BTreeMap<u32, Presence> = group
        .slots
        .iter()
        .map(|(index, slot)| {
            let presence = match view.instances.get(slot.instance) {
                None => Presence::Gone,
                Some(row) if row.intent == Intent::Deleting => Presence::Going,
                Some(row) => {
                    let looks = health::look(view, row);
                    Presence::Here {
                        ready: looks.reason.is_none(),
                        held: health::held(view, row, now),
                        locked: row.server.locked.is_some(),
                        lost: looks.lost,
                        carried: carried(view, row, slot),
                    }
                }
            };
            (*index, presence)
        })
        .collect();
    let leaving = group.leaving.iter().copied().filter(|id| view.instances.get(*id).is_some()).collect();
    group_steps(&GroupSight { group, members, leaving, now })
}

/// What became of the update that the slot has ordered.
fn carried(view: &View, row: &InstanceRecord, slot: &Slot) -> Carried {
    let Some(number) = slot.updating.and_then(|update| update.ordered) else { return Carried::No };
    let Some(rollout) = view.rollouts.get(row.id) else { return Carried::No };
    match (rollout.revision == number, rollout.phase) {
        (false, _) => Carried::Back("somebody has ordered another description of it".into()),
        (true, RolloutPhase::Done) => Carried::Yes,
        (true, RolloutPhase::Failed) => {
            Carried::Back(rollout.fault.as_ref().map(|f| f.message.clone()).unwrap_or_default())
        }
        (true, RolloutPhase::Updating | RolloutPhase::RollingBack) => Carried::No,
    }
}

/// The order to update a member's set, and its note in the group, in one transaction.
fn update(
    view: &View,
    row: &Row<ScalingGroupRecord>,
    index: u32,
    now: Timestamp,
) -> Result<(Draft, ()), OpsError> {
    let mut draft = Draft::default();
    let slot = row.slots.get(&index);
    let templates = slot.and_then(|slot| row.template(slot.revision).zip(row.template(row.target)));
    let instance = slot.and_then(|slot| view.instances.get(slot.instance));
    let set = templates.and_then(|(from, to)| in_place(from, to));
    let (Some(set), Some(instance)) = (set, instance) else { return Ok((draft, ())) };
    let number = order_of_group(view, instance, set, &row.name, &mut draft, now)?;
    let mut next = (*row.record).clone();
    next.ordered(index, number);
    tracing::info!(group = %row.name, member = index, instance = %instance.id, revision = row.target, "a member's set is updated");
    draft.update(row, &next);
    Ok((draft, ()))
}

/// The instance and its place in the group, in one transaction.
fn launch(
    view: &View,
    row: &Row<ScalingGroupRecord>,
    step: &GroupStep,
    policy: &crate::scheduler::Policy,
    now: Timestamp,
) -> Result<(Draft, ()), OpsError> {
    let GroupStep::Create { index, revision } = *step else { return Ok((Draft::default(), ())) };
    let template = row.template(revision).ok_or_else(|| {
        OpsError::Internal(format!("group {} has lost the template of revision {revision}", row.id))
    })?;
    let request = InstanceCreate { name: member_name(&template.name, index), ..template.clone() };
    let place = ScalingPlace { group: row.id, index, revision };
    let asked = Request { group: health::ask(view, row, None), ..Request::default() };
    let mut draft = Draft::default();
    let instance = plan(view, row.project, &request, policy, (asked, Some(place)), now, &mut draft)?;
    let mut next = (*row.record).clone();
    let slot = Slot {
        instance,
        revision,
        made_at: now,
        ready_at: None,
        unready_since: Some(now),
        draining_since: None,
        updating: None,
        stubborn: false,
    };
    next.slots.insert(index, slot);
    next.trouble = None;
    draft.update(row, &next);
    Ok((draft, ()))
}
