//! The steps of updates: what each writes, in one commit with what the host is told. All state is in the records: a step
//! decided twice is taken once.

use super::updates::{put_body, set_of};
use super::{Draft, Ops, OpsError, Row, View};
use crate::model::*;
use amphi_api::InstanceId;
use amphi_api::instance::{BodySpec, Fault};
use amphi_api::rollout::{MemberPhase, RevisionResult, RolloutPhase};
use jiff::Timestamp;

impl Ops {
    /// Takes the next step of every update in progress; forgets those of instances that are gone. For the task.
    pub async fn step_rollouts(&self) -> Result<(), OpsError> {
        let open: Vec<InstanceId> = {
            let view = self.world().read();
            let now = Timestamp::now();
            let acts = |r: &&Row<RolloutRecord>| {
                view.instances.get(r.instance).is_none() || next_step(&view, r, now) != RolloutStep::Wait
            };
            view.rollouts.iter().filter(acts).map(|r| r.instance).collect()
        };
        for id in open {
            self.transact(|view| Ok((step(view, id, Timestamp::now()), ()))).await?;
        }
        Ok(())
    }
}

fn revision(view: &View, instance: InstanceId, number: u64) -> Option<&Row<RevisionRecord>> {
    view.revisions.get(RevisionKey { instance, number })
}

fn next_step(view: &View, rollout: &RolloutRecord, now: Timestamp) -> RolloutStep {
    let Some(instance) = view.instances.get(rollout.instance) else { return RolloutStep::Wait };
    let target = revision(view, rollout.instance, rollout.revision);
    let Some(target) = target.and_then(|r| set_of(&r.body)) else { return RolloutStep::Wait };
    let host = instance.host.and_then(|id| view.hosts.get(id)).filter(|h| h.is_up());
    rollout_step(RolloutSight {
        rollout,
        instance: &instance.record,
        target,
        host_up_since: host.map(|h| h.state_since),
        now,
    })
}

/// The transaction of the next step; empty when there is nothing to do.
fn step(view: &View, id: InstanceId, now: Timestamp) -> Draft {
    let mut draft = Draft::default();
    let Some(row) = view.rollouts.get(id) else { return draft };
    let Some(instance) = view.instances.get(id) else {
        view.revisions_of(id).for_each(|r| draft.delete(r));
        draft.delete(row);
        return draft;
    };
    match next_step(view, row, now) {
        RolloutStep::Wait => {}
        RolloutStep::Begin(at) => begin(view, &mut draft, row, instance, at, now),
        RolloutStep::Enter { at, phase, gap_ms } => {
            draft.update(row, &row.with(at, phase, gap_ms, now));
        }
        RolloutStep::Done => {
            draft.update(row, &row.entering(RolloutPhase::Done, now));
            let mut record = over(instance, now);
            if let Some(target) = revision(view, id, row.revision) {
                put_body(&mut record, target.body.clone());
                conclude(&mut draft, target, RevisionResult::Done, None);
            }
            draft.update(instance, &record);
        }
        RolloutStep::RollBack(fault) => roll_back(view, &mut draft, row, instance, fault, now),
        RolloutStep::Fail => {
            draft.update(row, &row.entering(RolloutPhase::Failed, now));
            draft.update(instance, &over(instance, now));
        }
        RolloutStep::Leave(fault) => {
            let left =
                RolloutRecord { fault: Some(fault.clone()), ..row.entering(RolloutPhase::Failed, now) };
            draft.update(row, &left);
            draft.update(instance, &over(&former(view, row, instance, now), now));
            fail(view, &mut draft, row, &fault);
        }
    }
    draft
}

/// The member's next container is ordered. With the first one comes what no container shows.
fn begin(
    view: &View,
    draft: &mut Draft,
    row: &Row<RolloutRecord>,
    instance: &Row<InstanceRecord>,
    at: usize,
    now: Timestamp,
) {
    let next = row.with(at, MemberPhase::Preparing, None, now);
    let (from, to) = (revision(view, row.instance, row.from), revision(view, row.instance, row.revision));
    let (Some(from), Some(to), Some(member)) = (from, to, row.members.get(at)) else { return };
    let Some(body) = mixed(&from.body, &to.body, &next) else { return };
    let mut record = InstanceRecord { updated_at: now, ..(*instance.record).clone() };
    let former = record.generations.insert(member.name.clone(), row.revision).unwrap_or(0);
    if let Some(rolling) = &mut record.rolling {
        rolling.former.insert(member.name.clone(), former);
    }
    put_body(&mut record, body);
    draft.update(row, &next);
    draft.update(instance, &record);
}

/// The new description, but for members whose turn has not come.
fn mixed(from: &BodyRecord, to: &BodyRecord, rollout: &RolloutRecord) -> Option<BodyRecord> {
    let (before, mut set) = (set_of(from)?, set_of(to)?.clone());
    let mut images = to.images.clone();
    for (at, member) in set.members.iter_mut().enumerate() {
        let waits =
            |m: &&amphi_api::rollout::MemberRollout| m.name == member.name && m.phase == MemberPhase::Waiting;
        if !rollout.members.iter().any(|m| waits(&m)) {
            continue;
        }
        let was = before.members.iter().position(|m| m.name == member.name)?;
        *member = before.members[was].clone();
        *images.get_mut(at)? = *from.images.get(was)?;
    }
    Some(BodyRecord { spec: BodySpec::Set(set), images })
}

/// The former members are ordered back, for this reason.
pub(super) fn roll_back(
    view: &View,
    draft: &mut Draft,
    row: &Row<RolloutRecord>,
    instance: &Row<InstanceRecord>,
    fault: Fault,
    now: Timestamp,
) {
    let back = RolloutRecord { fault: Some(fault.clone()), ..row.entering(RolloutPhase::RollingBack, now) };
    draft.update(row, &back);
    draft.update(instance, &former(view, row, instance, now));
    fail(view, draft, row, &fault);
}

/// The instance with the description that it had, and none of whose containers is kept for another.
fn former(view: &View, row: &RolloutRecord, instance: &InstanceRecord, now: Timestamp) -> InstanceRecord {
    let rolling = instance.rolling.as_ref().map(|r| Rolling { former: Default::default(), ..r.clone() });
    let generations = row.generations.clone();
    let mut record = InstanceRecord { generations, rolling, updated_at: now, ..instance.clone() };
    if let Some(from) = revision(view, row.instance, row.from) {
        put_body(&mut record, from.body.clone());
    }
    record
}

fn over(instance: &InstanceRecord, now: Timestamp) -> InstanceRecord {
    InstanceRecord { rolling: None, updated_at: now, ..instance.clone() }
}

fn fail(view: &View, draft: &mut Draft, row: &RolloutRecord, fault: &Fault) {
    if let Some(target) = revision(view, row.instance, row.revision) {
        conclude(draft, target, RevisionResult::Failed, Some(fault.message.clone()));
    }
}

fn conclude(draft: &mut Draft, row: &Row<RevisionRecord>, result: RevisionResult, fault: Option<String>) {
    draft.update(row, &RevisionRecord { result, fault, ..(*row.record).clone() });
}
