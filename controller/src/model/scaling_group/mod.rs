//! Scaling groups: so many instances of one template. The record says which instance stands at which number, so that
//! whoever decides twice makes nothing twice: an instance and its place in the record come and go in one transaction.
//!
//! Intent: live → deleting → gone, once no host has anything of its members. Revisions: `target` is the one that is ordered,
//! `base` the one that the rest keeps until the rollout is over; when nothing is rolled out they are the same.

mod autoscale;
mod in_place;
mod step;

pub use autoscale::{ScaleSight, ScaleVerdict, autoscale};
pub use in_place::in_place;
pub use step::{Carried, GroupSight, GroupStep, Presence, group_steps};

use super::Intent;
use super::Record;
use amphi_api::group::{Affinity, Autoscale, HealthPolicy, OnFailure, UpdatePolicy};
use amphi_api::instance::{Fault, InstanceCreate};
use amphi_api::{InstanceId, ProjectId, ScalingGroupId};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Revisions that are kept beside those in use.
const REVISIONS_KEPT: usize = 10;
/// The longest wait before members are tried to be made again.
const RETRY_MAX: SignedDuration = SignedDuration::from_secs(60);
/// The code of the trouble that locked members are the only ones that could go.
const LOCKED: &str = "locked";

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ScalingGroupRecord {
    pub id: ScalingGroupId,
    pub project: ProjectId,
    pub name: String,
    /// Members to have.
    pub wanted: u32,
    pub affinity: Affinity,
    #[serde(default)]
    pub ports: Vec<u16>,
    #[serde(default)]
    pub update: UpdatePolicy,
    #[serde(default)]
    pub health: HealthPolicy,
    #[serde(default)]
    pub autoscale: Option<Autoscale>,
    /// By number, the oldest first.
    pub revisions: Vec<TemplateRevision>,
    pub target: u32,
    pub base: u32,
    /// The revision that was in force before `target`.
    #[serde(default)]
    pub before: Option<u32>,
    #[serde(default)]
    pub share: Share,
    #[serde(default)]
    pub paused: bool,
    /// Why the rollout was paused or undone by itself.
    #[serde(default)]
    pub reason: Option<String>,
    pub rolled_at: Timestamp,
    /// Members by number.
    #[serde(default)]
    pub slots: BTreeMap<u32, Slot>,
    /// Deleted members of which a host may still have something.
    #[serde(default)]
    pub leaving: BTreeSet<InstanceId>,
    /// How often in a row the member of a number was replaced without ever getting ready.
    #[serde(default)]
    pub failures: BTreeMap<u32, u32>,
    #[serde(default)]
    pub trouble: Option<Trouble>,
    #[serde(default)]
    pub scaled: Option<Scaled>,
    pub intent: Intent,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TemplateRevision {
    pub number: u32,
    pub template: InstanceCreate,
    pub at: Timestamp,
}

/// How much of a group an update is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Share {
    Percent(u8),
    One,
}

impl Default for Share {
    fn default() -> Self {
        Self::Percent(100)
    }
}

impl Share {
    /// Of so many, rounded up.
    pub fn of(self, count: u32) -> u32 {
        match self {
            Self::Percent(percent) => (u64::from(count) * u64::from(percent)).div_ceil(100) as u32,
            Self::One => count.min(1),
        }
    }
}

/// One member.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Slot {
    pub instance: InstanceId,
    pub revision: u32,
    pub made_at: Timestamp,
    /// When it was ready first.
    #[serde(default)]
    pub ready_at: Option<Timestamp>,
    /// Since when it is not ready; none: it is.
    #[serde(default)]
    pub unready_since: Option<Timestamp>,
    /// Since when it is out of the endpoints, to be deleted.
    #[serde(default)]
    pub draining_since: Option<Timestamp>,
    /// It is brought to another revision where it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub updating: Option<SlotUpdate>,
    /// That has failed once: next time another one takes its place.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stubborn: bool,
}

/// A member on its way to another revision: out of the endpoints first, then its set is updated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotUpdate {
    /// The revision that it was of.
    pub from: u32,
    /// Since when it is out of the endpoints.
    pub since: Timestamp,
    /// The number of the set's description that was ordered; none: not yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ordered: Option<u64>,
}

impl Slot {
    /// Why it is out of the endpoints, whatever it does.
    pub fn withdrawn(&self) -> Option<&'static str> {
        match (self.draining_since, self.updating) {
            (Some(_), _) => Some("it is about to be deleted"),
            (None, Some(_)) => Some("it is being updated"),
            (None, None) => None,
        }
    }
}

/// Why no member could be made or taken away, and when it is tried again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trouble {
    pub fault: Fault,
    pub tries: u32,
    pub retry_at: Timestamp,
}

impl Trouble {
    /// Waits 1, 2, 4 … 60 s.
    pub fn after(before: Option<&Self>, code: &str, message: String, now: Timestamp) -> Self {
        let tries = before.map_or(0, |t| t.tries).saturating_add(1);
        let wait = SignedDuration::from_secs(1 << (tries - 1).min(6)).min(RETRY_MAX);
        let same = before.filter(|t| t.fault.code == code && t.fault.message == message);
        let since = same.map_or(now, |t| t.fault.since);
        Self { fault: Fault { code: code.into(), message, since }, tries, retry_at: now + wait }
    }

    /// Keeps nothing waiting: it ends when somebody unlocks what is in the way.
    fn lock(before: Option<&Self>, why: &str, now: Timestamp) -> Self {
        let since = before.filter(|t| t.is_lock()).map_or(now, |t| t.fault.since);
        let fault = Fault { code: LOCKED.into(), message: why.into(), since };
        Self { fault, tries: 0, retry_at: now }
    }

    fn is_lock(&self) -> bool {
        self.fault.code == LOCKED
    }
}

/// The last change of size.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scaled {
    pub at: Timestamp,
    pub why: String,
}

impl ScalingGroupRecord {
    pub fn template(&self, revision: u32) -> Option<&InstanceCreate> {
        self.revisions.iter().find(|r| r.number == revision).map(|r| &r.template)
    }

    /// Whether it scales by what its members use.
    pub fn measures(&self) -> bool {
        self.autoscale.as_ref().is_some_and(Autoscale::is_measured)
    }

    /// Another template is ordered, for this share.
    pub fn roll_out(&mut self, template: InstanceCreate, share: Share, now: Timestamp) {
        let number = self.revisions.iter().map(|r| r.number).max().unwrap_or(0) + 1;
        self.revisions.push(TemplateRevision { number, template, at: now });
        self.before = Some(self.base);
        self.slots.values_mut().for_each(|slot| slot.stubborn = false);
        self.aim(number, share, now);
        self.forget_revisions();
    }

    /// Back to what was in force before; false where there is nothing.
    pub fn undo(&mut self, reason: Option<String>, now: Timestamp) -> bool {
        let left = self.target;
        let back = if self.target == self.base { self.before } else { Some(self.base) };
        let Some(back) = back.filter(|back| *back != left && self.template(*back).is_some()) else {
            return false;
        };
        self.before = Some(left);
        self.aim(back, Share::default(), now);
        self.reason = reason;
        true
    }

    fn aim(&mut self, target: u32, share: Share, now: Timestamp) {
        self.target = target;
        self.share = share;
        (self.paused, self.reason, self.rolled_at) = (false, None, now);
        self.failures.clear();
    }

    fn forget_revisions(&mut self) {
        let used: BTreeSet<u32> = self.slots.values().map(|s| s.revision).collect();
        let newest: Vec<u32> = self.revisions.iter().rev().take(REVISIONS_KEPT).map(|r| r.number).collect();
        let (target, base, before) = (self.target, self.base, self.before);
        self.revisions.retain(|r| {
            newest.contains(&r.number)
                || used.contains(&r.number)
                || [Some(target), Some(base), before].contains(&Some(r.number))
        });
    }

    /// What a step makes of the record; of one that makes or deletes an instance, what is said of it here.
    pub fn after(&self, step: &GroupStep, now: Timestamp) -> Self {
        let mut next = self.clone();
        match step {
            GroupStep::Vacate { index, going } => {
                if let Some(slot) = next.slots.remove(index)
                    && *going
                {
                    next.leaving.insert(slot.instance);
                }
            }
            GroupStep::Forget { instance } => {
                next.leaving.remove(instance);
                // Room has become free.
                if let Some(trouble) = &mut next.trouble {
                    trouble.retry_at = trouble.retry_at.min(now);
                }
            }
            GroupStep::Seen { index, ready } => {
                if let Some(slot) = next.slots.get_mut(index) {
                    slot.unready_since = (!ready).then_some(now);
                    if *ready {
                        slot.ready_at.get_or_insert(now);
                        next.failures.remove(index);
                    }
                }
            }
            GroupStep::Drain { index } => {
                if let Some(slot) = next.slots.get_mut(index) {
                    slot.draining_since.get_or_insert(now);
                }
            }
            GroupStep::Hold { index } => {
                if let Some(slot) = next.slots.get_mut(index) {
                    let from = slot.revision;
                    slot.updating.get_or_insert(SlotUpdate { from, since: now, ordered: None });
                }
            }
            GroupStep::Keep { index } | GroupStep::Updated { index } => {
                if let Some(slot) = next.slots.get_mut(index) {
                    slot.updating = None;
                }
            }
            GroupStep::Unchanged { index, why } => next.unchanged(*index, why, now),
            GroupStep::Undo { why } => {
                next.undo(Some(why.clone()), now);
            }
            GroupStep::Pause { why } => {
                next.paused = true;
                next.reason = Some(why.clone());
            }
            GroupStep::Settle => next.base = next.target,
            GroupStep::Calm => next.trouble = None,
            GroupStep::Locked { why } => {
                next.trouble = Some(Trouble::lock(self.trouble.as_ref(), why, now));
            }
            GroupStep::Delete { index, unhealthy, .. } => {
                if let Some(slot) = next.slots.remove(index) {
                    next.leaving.insert(slot.instance);
                    if *unhealthy {
                        *next.failures.entry(*index).or_default() += 1;
                    }
                }
            }
            GroupStep::Create { .. } | GroupStep::Update { .. } | GroupStep::End => {}
        }
        next
    }

    /// The member's set could not be updated: it is what it was, and the rollout has failed.
    fn unchanged(&mut self, index: u32, why: &str, now: Timestamp) {
        let Some(slot) = self.slots.get_mut(&index) else { return };
        let Some(update) = slot.updating.take() else { return };
        let of_target = slot.revision == self.target;
        (slot.revision, slot.stubborn) = (update.from, true);
        if !of_target || self.target == self.base || self.paused {
            return;
        }
        let why = format!("member {index} could not be updated to revision {}: {why}", self.target);
        match self.update.on_failure {
            OnFailure::Undo => drop(self.undo(Some(why), now)),
            OnFailure::Pause => (self.paused, self.reason) = (true, Some(why)),
        }
    }

    /// The member's set is ordered to be of the target, as this number of its descriptions; none: it is so already.
    pub fn ordered(&mut self, index: u32, number: Option<u64>) {
        let target = self.target;
        let Some(slot) = self.slots.get_mut(&index) else { return };
        slot.revision = target;
        slot.updating =
            slot.updating.filter(|_| number.is_some()).map(|u| SlotUpdate { ordered: number, ..u });
        self.trouble = None;
    }
}

impl Record for ScalingGroupRecord {
    const PREFIX: &'static str = "/scaling-group/";
    const NOUN: &'static str = "group";
    type Id = ScalingGroupId;
    fn id(&self) -> ScalingGroupId {
        self.id
    }
    fn owner(&self) -> Option<(ProjectId, &str)> {
        Some((self.project, &self.name))
    }
}

/// What an instance's record says of its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScalingPlace {
    pub group: ScalingGroupId,
    pub index: u32,
    pub revision: u32,
}

#[cfg(test)]
mod tests;
