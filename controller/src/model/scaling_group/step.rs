//! What is to be done about a group next: pure. First what was seen is written down (who is ready, who is gone); then members
//! are deleted, made and exchanged.
//!
//! Never takes a ready member away because of an update when more than `max_unavailable` of those wanted would be missing
//! then; what is missing for other reasons counts as missing too. One that is not ready costs nothing to take away. One that
//! is locked is never taken away, but with the whole group.
//!
//! A set that can take on the new template where it is, is updated rather than exchanged, where one may be missing: its
//! members' containers give way to their next ones.

use super::{ScalingGroupRecord, Slot, in_place};
use crate::model::Intent;
use amphi_api::InstanceId;
use amphi_api::group::OnFailure;
use jiff::{SignedDuration, Timestamp};
use std::collections::{BTreeMap, BTreeSet};

/// Members made or deleted by one decision: the next one follows at once.
const AT_ONCE: usize = 8;
/// How long the host of a member that may not fail over can be away.
const LOST_AFTER: SignedDuration = SignedDuration::from_secs(60);
/// A member's patience is doubled so often at most, each time that the one before it was replaced.
const DOUBLED_MAX: u32 = 5;

/// What is seen of a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Presence {
    /// No record of it is left.
    Gone,
    /// Somebody else has deleted it.
    Going,
    Here {
        ready: bool,
        /// Somebody has stopped it or works on it, or it is on its way to another host or body: it is not replaced meanwhile.
        held: bool,
        /// It is not taken away either.
        locked: bool,
        /// Its host does not answer, and it may not leave it.
        lost: bool,
        /// What became of the update that its slot has ordered.
        carried: Carried,
    },
}

/// How far the update of a member's set is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Carried {
    /// None was ordered, or it is under way.
    #[default]
    No,
    Yes,
    /// It was rolled back, for this reason.
    Back(String),
}

#[derive(Clone, Debug)]
pub struct GroupSight<'a> {
    pub group: &'a ScalingGroupRecord,
    pub members: BTreeMap<u32, Presence>,
    /// Of `leaving`, those that still have a record.
    pub leaving: BTreeSet<InstanceId>,
    pub now: Timestamp,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GroupStep {
    /// The number is free. `going`: a host may still have something of who had it.
    Vacate {
        index: u32,
        going: bool,
    },
    /// Nothing is left of a deleted member.
    Forget {
        instance: InstanceId,
    },
    Seen {
        index: u32,
        ready: bool,
    },
    /// Out of the endpoints; deleted later.
    Drain {
        index: u32,
    },
    /// Out of the endpoints; its set is updated later.
    Hold {
        index: u32,
    },
    /// Its set is not to be updated any more: into the endpoints again.
    Keep {
        index: u32,
    },
    /// Its set is updated to the group's revision.
    Update {
        index: u32,
        revision: u32,
    },
    /// Its set is updated, and it is ready.
    Updated {
        index: u32,
    },
    /// Its set could not be updated, and is what it was.
    Unchanged {
        index: u32,
        why: String,
    },
    /// The rollout has failed, and the revision before comes back.
    Undo {
        why: String,
    },
    /// The rollout has failed, and waits.
    Pause {
        why: String,
    },
    /// The rollout is over.
    Settle,
    /// Nothing is missing any more, and nothing locked in the way: what kept members from being made or deleted is no trouble.
    Calm,
    /// Members have to go, and only locked ones are left to choose from.
    Locked {
        why: String,
    },
    Delete {
        index: u32,
        unhealthy: bool,
        why: String,
    },
    Create {
        index: u32,
        revision: u32,
    },
    /// The group's record goes.
    End,
}

impl GroupStep {
    /// It changes the group's record alone.
    pub fn is_note(&self) -> bool {
        !matches!(self, Self::Delete { .. } | Self::Create { .. } | Self::Update { .. } | Self::End)
    }
}

pub fn group_steps(sight: &GroupSight) -> Vec<GroupStep> {
    let notes = notes(sight);
    if !notes.is_empty() {
        return notes;
    }
    if sight.group.intent == Intent::Deleting {
        return ending(sight.group);
    }
    let mut plan = Plan::of(sight);
    if let Some(step) = plan.failed() {
        return vec![step];
    }
    plan.drained();
    plan.unhealthy();
    plan.surplus();
    plan.deficit();
    plan.held();
    plan.roll();
    plan.trouble();
    plan.steps
}

fn notes(sight: &GroupSight) -> Vec<GroupStep> {
    let group = sight.group;
    let seen = group.slots.iter().filter_map(|(index, slot)| match sight.members.get(index) {
        None | Some(Presence::Gone) => Some(GroupStep::Vacate { index: *index, going: false }),
        Some(Presence::Going) => Some(GroupStep::Vacate { index: *index, going: true }),
        Some(Presence::Here { ready, .. }) => (*ready != slot.unready_since.is_none())
            .then_some(GroupStep::Seen { index: *index, ready: *ready }),
    });
    let ended = group.slots.iter().filter_map(|(index, slot)| {
        slot.updating?.ordered?;
        let Some(Presence::Here { ready, carried, .. }) = sight.members.get(index) else { return None };
        match carried {
            Carried::No => None,
            Carried::Yes => ready.then_some(GroupStep::Updated { index: *index }),
            Carried::Back(why) => Some(GroupStep::Unchanged { index: *index, why: why.clone() }),
        }
    });
    let seen = seen.chain(ended);
    let gone = group.leaving.difference(&sight.leaving);
    let kept: Vec<&Slot> = group.slots.values().filter(|slot| slot.draining_since.is_none()).collect();
    // After an undone rollout there may still be members of the other revision: those that replace them find no room yet.
    let whole = kept.len() >= group.wanted as usize
        && group.target == group.base
        && kept.iter().all(|slot| slot.revision == group.target);
    // What is locked is in the way of a plan: the plan says when it is no more.
    let calm = group.trouble.as_ref().filter(|t| whole && !t.is_lock()).map(|_| GroupStep::Calm);
    seen.chain(gone.map(|id| GroupStep::Forget { instance: *id })).chain(calm).collect()
}

fn ending(group: &ScalingGroupRecord) -> Vec<GroupStep> {
    if group.slots.is_empty() {
        return if group.leaving.is_empty() { vec![GroupStep::End] } else { Vec::new() };
    }
    let delete = |index: &u32| GroupStep::Delete {
        index: *index,
        unhealthy: false,
        why: "the group is deleted".into(),
    };
    group.slots.keys().take(AT_ONCE).map(delete).collect()
}

struct Plan<'a> {
    sight: &'a GroupSight<'a>,
    group: &'a ScalingGroupRecord,
    /// Neither draining nor about to be deleted.
    kept: BTreeMap<u32, &'a Slot>,
    /// Ready ones of them.
    available: u32,
    /// Places that are taken: those of `kept`, and of those on their way out.
    taken: BTreeSet<u32>,
    /// Members of the target among `kept`, and those that are to be.
    new: u32,
    want_new: u32,
    /// Members of the target that this plan makes, and those that are held to become such.
    made: u32,
    /// Locked members that would have to go, where no other one can.
    stuck: BTreeSet<u32>,
    steps: Vec<GroupStep>,
}

impl<'a> Plan<'a> {
    fn of(sight: &'a GroupSight<'a>) -> Self {
        let group = sight.group;
        let kept: BTreeMap<u32, &Slot> =
            group.slots.iter().filter(|(_, s)| s.draining_since.is_none()).map(|(i, s)| (*i, s)).collect();
        Self {
            sight,
            group,
            available: kept.values().filter(|s| is_ready(s)).count() as u32,
            taken: group.slots.keys().copied().collect(),
            new: kept.values().filter(|s| s.revision == group.target).count() as u32,
            want_new: group.share.of(group.wanted),
            made: kept.values().filter(|s| is_held(s)).count() as u32,
            kept,
            stuck: BTreeSet::new(),
            steps: Vec::new(),
        }
    }

    /// Why the member has to be replaced, where it has to.
    fn due(&self, index: u32, slot: &Slot) -> Option<String> {
        let Some(Presence::Here { held, lost, .. }) = self.sight.members.get(&index) else { return None };
        let since = slot.unready_since?;
        let health = &self.group.health;
        let never = slot.ready_at.is_none();
        let patience = if never { health.ready_within_s } else { health.replace_after_s };
        if *held || health.replace_after_s == 0 {
            return None;
        }
        let doubled = 1 << self.group.failures.get(&index).copied().unwrap_or(0).min(DOUBLED_MAX);
        let mut patience = SignedDuration::from_secs(i64::from(patience) * doubled);
        if *lost {
            patience = patience.min(LOST_AFTER);
        }
        let waited = self.sight.now.duration_since(since);
        (waited >= patience).then(|| match (lost, never) {
            (true, _) => {
                format!("its host has not answered for {} s, and it may not leave it", waited.as_secs())
            }
            (_, true) => format!("it was not ready within {} s", waited.as_secs()),
            (_, false) => format!("it has not been ready for {} s", waited.as_secs()),
        })
    }

    /// A member of a new revision that has to be replaced ends the rollout.
    fn failed(&self) -> Option<GroupStep> {
        let group = self.group;
        if group.target == group.base || group.paused {
            return None;
        }
        let fresh = self.kept.iter().filter(|(_, slot)| slot.revision == group.target);
        let (index, why) =
            fresh.into_iter().find_map(|(index, slot)| Some((*index, self.due(*index, slot)?)))?;
        let why = format!("member {index} of revision {}: {why}", group.target);
        Some(match group.update.on_failure {
            OnFailure::Undo => GroupStep::Undo { why },
            OnFailure::Pause => GroupStep::Pause { why },
        })
    }

    fn drained(&mut self) {
        let wait = SignedDuration::from_secs(self.group.update.drain_s.into());
        for (index, slot) in &self.group.slots {
            let Some(since) = slot.draining_since else { continue };
            if is_ready(slot) && self.sight.now.duration_since(since) < wait {
                continue;
            }
            if self.locked(*index) {
                self.stuck.insert(*index);
            } else {
                self.delete(*index, false, "drained");
            }
        }
    }

    fn unhealthy(&mut self) {
        let due: Vec<(u32, String)> =
            self.kept.iter().filter_map(|(index, slot)| Some((*index, self.due(*index, slot)?))).collect();
        for (index, why) in due {
            if self.steps.len() < AT_ONCE {
                self.delete(index, true, &why);
            }
        }
    }

    fn delete(&mut self, index: u32, unhealthy: bool, why: &str) {
        self.leave(index);
        self.steps.push(GroupStep::Delete { index, unhealthy, why: why.to_owned() });
    }

    /// One that is not ready goes at once; one that works leaves the endpoints first.
    fn take_away(&mut self, index: u32, why: &str) {
        match self.kept.get(&index).is_some_and(|slot| is_ready(slot)) && self.group.update.drain_s > 0 {
            false => self.delete(index, false, why),
            true => {
                self.leave(index);
                self.steps.push(GroupStep::Drain { index });
            }
        }
    }

    fn leave(&mut self, index: u32) {
        if let Some(slot) = self.kept.remove(&index) {
            self.made -= u32::from(is_held(slot));
            self.available -= u32::from(is_ready(slot));
            self.new -= u32::from(slot.revision == self.group.target);
        }
    }

    fn may_lose_one(&self) -> bool {
        self.available > self.group.wanted.saturating_sub(self.group.update.max_unavailable)
    }

    fn old(&self) -> u32 {
        self.kept.len() as u32 - self.new
    }

    fn locked(&self, index: u32) -> bool {
        matches!(self.sight.members.get(&index), Some(Presence::Here { locked: true, .. }))
    }

    /// Of those that match and are not locked: the ones that are not ready first, then the highest number.
    fn victim(&mut self, of: impl Fn(&Slot) -> bool) -> Option<u32> {
        let fit =
            self.kept.iter().filter(|(_, slot)| of(slot)).map(|(index, slot)| (!is_ready(slot), *index));
        let (locked, free): (Vec<_>, Vec<_>) = fit.partition(|(_, index)| self.locked(*index));
        let victim = free.into_iter().max().map(|(_, index)| index);
        if victim.is_none() {
            self.stuck.extend(locked.into_iter().map(|(_, index)| index));
        }
        victim
    }

    /// Says that only locked members are left to go, once, and takes back what is no trouble any more. What is waited for
    /// because of another trouble stays said until it is tried again.
    fn trouble(&mut self) {
        if !self.steps.is_empty() || !self.may_create() {
            return;
        }
        let told = self.group.trouble.as_ref();
        if self.stuck.is_empty() {
            let full = self.kept.len() >= self.group.wanted as usize;
            if told.is_some_and(|t| full || t.is_lock()) {
                self.steps.push(GroupStep::Calm);
            }
            return;
        }
        let stuck: Vec<String> = self.stuck.iter().map(u32::to_string).collect();
        let why = format!("of those that have to go only locked ones are left: member {}", stuck.join(", "));
        if told.is_none_or(|t| !t.is_lock() || t.fault.message != why) {
            self.steps.push(GroupStep::Locked { why });
        }
    }

    fn surplus(&mut self) {
        let group = self.group;
        let rolling = self.old() > 0 && self.new > 0;
        while self.kept.len() as u32 > group.wanted && self.steps.len() < AT_ONCE {
            let extra = self.kept.len() as u32 - group.wanted;
            if group.paused && rolling && extra <= group.update.max_surge {
                return;
            }
            let outdated = self.old() > group.wanted.saturating_sub(self.want_new);
            let outdated = outdated && (self.new > 0 || self.want_new > 0);
            let Some(index) = self.victim(|slot| !outdated || slot.revision != group.target) else { return };
            let ready = self.kept.get(&index).is_some_and(|slot| is_ready(slot));
            // A member too many may always go when nothing is exchanged: those that stay are enough.
            if ready && !self.may_lose_one() && rolling && extra <= group.update.max_surge {
                return;
            }
            self.take_away(
                index,
                if outdated { "another revision takes its place" } else { "fewer are wanted" },
            );
        }
    }

    fn may_create(&self) -> bool {
        self.group.trouble.as_ref().is_none_or(|t| t.retry_at <= self.sight.now)
    }

    fn create(&mut self, revision: u32) {
        let index = (0..).find(|index| !self.taken.contains(index)).unwrap_or(u32::MAX);
        self.taken.insert(index);
        self.made += u32::from(revision == self.group.target);
        self.steps.push(GroupStep::Create { index, revision });
    }

    fn deficit(&mut self) {
        let group = self.group;
        let missing = group.wanted.saturating_sub(self.kept.len() as u32);
        // Who drains has its room still.
        let room = (group.wanted + group.update.max_surge).saturating_sub(self.taken.len() as u32);
        if !self.may_create() {
            return;
        }
        for _ in 0..missing.min(room) {
            if self.steps.len() >= AT_ONCE {
                return;
            }
            let fresh = self.new + self.made < self.want_new && (!group.paused || group.target == group.base);
            self.create(if fresh { group.target } else { group.base });
        }
    }

    /// Whether the member could become one of the target where it is. Nobody may be missing: then it cannot.
    fn carries(&self, index: u32, slot: &Slot) -> bool {
        let group = self.group;
        let free =
            matches!(self.sight.members.get(&index), Some(Presence::Here { held: false, locked: false, .. }));
        let templates = group.template(slot.revision).zip(group.template(group.target));
        free && slot.revision != group.target
            && !slot.stubborn
            && group.update.in_place
            && group.update.max_unavailable > 0
            && templates.is_some_and(|(from, to)| in_place(from, to).is_some())
    }

    /// What is held for its update: once it is out of everybody's sight the update is ordered.
    fn held(&mut self) {
        let wait = SignedDuration::from_secs(self.group.update.drain_s.into());
        let (may, now) = (self.may_create(), self.sight.now);
        let held: Vec<(u32, &Slot)> =
            self.kept.iter().filter(|(_, s)| is_held(s)).map(|(i, s)| (*i, *s)).collect();
        for (index, slot) in held {
            let since = slot.updating.map_or(now, |update| update.since);
            if self.group.paused || !self.carries(index, slot) {
                self.steps.push(GroupStep::Keep { index });
            } else if may && (slot.unready_since.is_some() || now.duration_since(since) >= wait) {
                self.steps.push(GroupStep::Update { index, revision: self.group.target });
            }
        }
    }

    /// One that is to be held, if there is one that may be: those that are not ready first, then the highest number.
    fn hold(&mut self) -> Option<Holding> {
        let fit = self.kept.iter().filter(|(index, slot)| {
            let chosen = self.steps.iter().any(|s| matches!(s, GroupStep::Hold { index: i } if i == *index));
            slot.updating.is_none() && !chosen && self.carries(**index, slot)
        });
        let (unready, index) = fit.map(|(index, slot)| (!is_ready(slot), *index)).max()?;
        if !unready && !self.may_lose_one() {
            return Some(Holding::Later);
        }
        self.available -= u32::from(!unready);
        self.made += 1;
        self.steps.push(GroupStep::Hold { index });
        Some(Holding::Now)
    }

    fn roll(&mut self) {
        let group = self.group;
        if group.paused || !self.steps.is_empty() || self.kept.len() < group.wanted as usize {
            return;
        }
        let on_its_way = |s: &Slot| s.updating.is_some() || s.revision == group.target && !is_ready(s);
        let waiting = self.kept.values().filter(|s| on_its_way(s)).count() as u32;
        let mut lanes =
            (group.update.max_unavailable + group.update.max_surge).max(1).saturating_sub(waiting);
        while lanes > 0
            && self.steps.len() < AT_ONCE
            && self.new + self.made < self.want_new
            && self.old() > self.made
        {
            lanes -= 1;
            match self.may_create().then(|| self.hold()).flatten() {
                Some(Holding::Now) => continue,
                Some(Holding::Later) => return,
                None => {}
            }
            if (self.taken.len() as u32) < group.wanted + group.update.max_surge {
                if !self.may_create() {
                    return;
                }
                self.create(group.target);
                continue;
            }
            let fits = |slot: &Slot| slot.revision != group.target && slot.updating.is_none();
            let Some(index) = self.victim(fits) else { return };
            let ready = self.kept.get(&index).is_some_and(|slot| is_ready(slot));
            if ready && !self.may_lose_one() {
                // One that is locked and not ready counts as missing until it is unlocked.
                if waiting == 0 && self.taken.len() == self.kept.len() {
                    let missing =
                        self.kept.iter().filter(|(_, s)| s.revision != group.target && !is_ready(s));
                    let locked: Vec<u32> = missing.map(|(i, _)| *i).filter(|i| self.locked(*i)).collect();
                    self.stuck.extend(locked);
                }
                return;
            }
            self.take_away(index, "another revision takes its place");
        }
        let over = self.old() == 0 && waiting == 0 && self.taken.len() == self.kept.len();
        if self.steps.is_empty() && group.base != group.target && over && self.want_new == group.wanted {
            self.steps.push(GroupStep::Settle);
        }
    }
}

/// Whether somebody else is to be held now.
enum Holding {
    Now,
    /// Too many would be missing.
    Later,
}

fn is_ready(slot: &Slot) -> bool {
    slot.unready_since.is_none() && slot.updating.is_none()
}

/// Out of the endpoints for an update that is not ordered yet.
fn is_held(slot: &Slot) -> bool {
    slot.updating.is_some_and(|update| update.ordered.is_none())
}
