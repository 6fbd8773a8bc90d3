//! The update of a set in place: which members give way to their next ones, how far that is, and what comes next. Pure.
//!
//! updating → done; updating → rolling back → failed. Members are taken one at a time, in order of index: waiting →
//! preparing → starting → ready → done. Each step is left in one commit with what the host is told, so that a controller's
//! death changes nothing. What a host runs it says by the number of the description that each container was made for: a
//! swap that was made while nobody listened is found made.
//!
//! Refuses to know how a member is swapped, and to decide anything of an instance that is not where the update began.

use super::Record;
use super::exchange::{FAULT_PATIENCE, PREPARE_DEADLINE, SWITCH_DEADLINE};
use super::instance::{BodyRecord, InstanceObserved, InstanceRecord, Intent};
use amphi_api::InstanceId;
use amphi_api::instance::{Fault, MemberStatus, Power};
use amphi_api::rollout::{MemberPhase, MemberRollout, RevisionResult, Rollout, RolloutPhase};
use amphi_api::set::{MemberSpec, SetSpec};
use amphi_api::wire::BodyState;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// What an instance's record knows of the update under way.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rolling {
    /// The description that it leads to.
    pub revision: u64,
    /// Members whose former containers are kept for a way back, with their descriptions' numbers.
    #[serde(default)]
    pub former: BTreeMap<String, u64>,
}

/// `INSTANCE/NUMBER`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RevisionKey {
    pub instance: InstanceId,
    pub number: u64,
}

impl fmt::Display for RevisionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.instance, self.number)
    }
}

#[derive(Debug, thiserror::Error)]
#[error("no INSTANCE/NUMBER")]
pub struct NoRevisionKey;

impl FromStr for RevisionKey {
    type Err = NoRevisionKey;
    fn from_str(text: &str) -> Result<Self, NoRevisionKey> {
        let (instance, number) = text.split_once('/').ok_or(NoRevisionKey)?;
        let instance = instance.parse().map_err(|_| NoRevisionKey)?;
        Ok(Self { instance, number: number.parse().map_err(|_| NoRevisionKey)? })
    }
}

/// One description that an instance had, has, or was to have.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RevisionRecord {
    pub instance: InstanceId,
    pub number: u64,
    pub body: BodyRecord,
    pub by: String,
    pub at: Timestamp,
    pub what: String,
    #[serde(default)]
    pub reason: Option<String>,
    pub result: RevisionResult,
    #[serde(default)]
    pub fault: Option<String>,
}

impl Record for RevisionRecord {
    const PREFIX: &'static str = "/revision/";
    const NOUN: &'static str = "revision";
    type Id = RevisionKey;
    fn id(&self) -> RevisionKey {
        RevisionKey { instance: self.instance, number: self.number }
    }
}

/// The update under way, or the last one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RolloutRecord {
    pub instance: InstanceId,
    pub revision: u64,
    pub from: u64,
    /// The instance's when it was ordered: one that began anew elsewhere ends the update.
    pub epoch: u64,
    pub phase: RolloutPhase,
    pub phase_since: Timestamp,
    #[serde(default)]
    pub paused: bool,
    /// Those that are replaced, in order.
    pub members: Vec<MemberRollout>,
    /// The descriptions' numbers that members' containers had before it.
    #[serde(default)]
    pub generations: BTreeMap<String, u64>,
    #[serde(default)]
    pub fault: Option<Fault>,
    pub started_at: Timestamp,
    #[serde(default)]
    pub ended_at: Option<Timestamp>,
}

impl Record for RolloutRecord {
    const PREFIX: &'static str = "/rollout/";
    const NOUN: &'static str = "rollout";
    type Id = InstanceId;
    fn id(&self) -> InstanceId {
        self.instance
    }
}

impl RolloutRecord {
    pub fn ended(&self) -> bool {
        matches!(self.phase, RolloutPhase::Done | RolloutPhase::Failed)
    }

    /// The description that holds, or held before it.
    pub fn present(&self) -> u64 {
        if self.phase == RolloutPhase::Done { self.revision } else { self.from }
    }

    pub fn entering(&self, phase: RolloutPhase, now: Timestamp) -> Self {
        let ended = matches!(phase, RolloutPhase::Done | RolloutPhase::Failed);
        Self { phase, phase_since: now, ended_at: ended.then_some(now), ..self.clone() }
    }

    /// With one member in another phase.
    pub fn with(&self, at: usize, phase: MemberPhase, gap_ms: Option<u64>, now: Timestamp) -> Self {
        let mut record = self.clone();
        if let Some(member) = record.members.get_mut(at) {
            let starts = phase == MemberPhase::Starting || phase == MemberPhase::Ready;
            if starts && member.started_at.is_none() {
                member.started_at = Some(now);
            }
            if phase == MemberPhase::Preparing {
                member.started_at = None;
            }
            (member.phase, member.since) = (phase, now);
            member.gap_ms = gap_ms.or(member.gap_ms);
        }
        record
    }

    pub fn view(&self) -> Rollout {
        Rollout {
            instance: self.instance,
            revision: self.revision,
            from: self.from,
            present: self.present(),
            phase: self.phase,
            paused: self.paused && !self.ended(),
            members: self.members.clone(),
            fault: self.fault.clone(),
            started_at: self.started_at,
            ended_at: self.ended_at,
        }
    }
}

/// What to do with an update next.
#[derive(Clone, Debug, PartialEq)]
pub enum RolloutStep {
    Wait,
    /// Order the member's next container.
    Begin(usize),
    /// Write down how far the member is.
    Enter {
        at: usize,
        phase: MemberPhase,
        gap_ms: Option<u64>,
    },
    Done,
    /// Order the former members back.
    RollBack(Fault),
    /// They are back, or the instance's own fault says why not.
    Fail,
    /// The instance began anew elsewhere: the former description holds there, at once.
    Leave(Fault),
}

/// All that the decision looks at.
#[derive(Clone, Copy, Debug)]
pub struct RolloutSight<'a> {
    pub rollout: &'a RolloutRecord,
    pub instance: &'a InstanceRecord,
    /// The description that it leads to.
    pub target: &'a SetSpec,
    /// Since when the host's link stands; none while it is down: then no deadline runs.
    pub host_up_since: Option<Timestamp>,
    pub now: Timestamp,
}

/// How one member of another description does.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Progress {
    /// Nothing is seen of it yet.
    Absent,
    /// It has been made, or started, and is not ready; why, as far as it says.
    Starting(Option<String>),
    Ready {
        gap_ms: Option<u64>,
    },
    /// It does not run while the body as a whole does not: a host or an engine that starts anew ends every member.
    Down(Option<String>),
    Failed(String),
}

pub fn rollout_step(sight: RolloutSight) -> RolloutStep {
    let RolloutSight { rollout, instance, now, .. } = sight;
    let under_way = instance.rolling.as_ref().is_some_and(|r| r.revision == rollout.revision);
    if rollout.ended() || !under_way || instance.intent == Intent::Deleting {
        return RolloutStep::Wait;
    }
    if instance.epoch != rollout.epoch {
        let why = format!(
            "it began anew, at epoch {}, in the middle of the update: its former description holds there",
            instance.epoch
        );
        return RolloutStep::Leave(fault("host_lost", why, now));
    }
    let Some(up_since) = sight.host_up_since else { return RolloutStep::Wait };
    let current = instance.current();
    match rollout.phase {
        RolloutPhase::Updating => {
            let open = rollout.members.iter().enumerate().find(|(_, m)| m.phase != MemberPhase::Done);
            match open {
                None => RolloutStep::Done,
                Some((at, member)) if member.phase == MemberPhase::Waiting => match rollout.paused {
                    true => RolloutStep::Wait,
                    false => RolloutStep::Begin(at),
                },
                Some((at, member)) => member_step(&sight, at, member, current, up_since),
            }
        }
        RolloutPhase::RollingBack => {
            let began = rollout.phase_since.max(up_since);
            let former = |m: &&MemberRollout| rollout.generations.get(&m.name).copied().unwrap_or(0);
            let back = |m: &MemberRollout| {
                let seen = current.and_then(|o| o.members.iter().find(|s| s.name == m.name));
                seen.is_some_and(|s| s.generation == former(&m) && s.coming.is_none() && s.former.is_none())
            };
            let runs = current.is_some_and(|o| o.state == BodyState::Running || instance.power == Power::Off);
            let trouble = lasting(&sight, current.and_then(|o| o.fault.as_ref()), began).is_some();
            let late = now.duration_since(began) >= SWITCH_DEADLINE;
            if (runs && rollout.members.iter().all(back)) || trouble || late {
                RolloutStep::Fail
            } else {
                RolloutStep::Wait
            }
        }
        RolloutPhase::Done | RolloutPhase::Failed => RolloutStep::Wait,
    }
}

fn member_step(
    sight: &RolloutSight,
    at: usize,
    member: &MemberRollout,
    current: Option<&InstanceObserved>,
    up_since: Timestamp,
) -> RolloutStep {
    let (now, revision) = (sight.now, sight.rollout.revision);
    let name = &member.name;
    let wanted = sight.target.members.iter().find(|m| m.name == *name);
    let seen = current.and_then(|o| o.members.iter().find(|m| m.name == *name));
    let waited = |since: Timestamp| now.duration_since(since.max(up_since));
    let seconds = |n: u32| SignedDuration::from_secs(n.into());
    let failed = |code: &str, why: String| RolloutStep::RollBack(fault(code, why, now));
    let body = current.map_or(BodyState::Absent, |o| o.state);
    match progress(seen, body, revision) {
        Progress::Absent => {
            let told = |o: &InstanceObserved| o.next_fault.clone().or(o.fault.clone());
            let told = current.and_then(told);
            let began = member.since.max(up_since);
            if let Some(cause) = lasting(sight, told.as_ref(), began) {
                return failed(&cause.code, format!("member {name} cannot be made: {}", cause.message));
            }
            if waited(member.since) >= PREPARE_DEADLINE {
                let limit = PREPARE_DEADLINE.as_secs();
                return failed("engine_timeout", format!("member {name} was not made within {limit} s"));
            }
            RolloutStep::Wait
        }
        Progress::Failed(why) => failed("member_failed", format!("member {name} {why}")),
        Progress::Down(_) if body.is_still() || member.phase == MemberPhase::Ready => {
            if member.phase != MemberPhase::Preparing {
                // What it has had of its time is lost with its processes.
                return RolloutStep::Enter { at, phase: MemberPhase::Preparing, gap_ms: None };
            }
            if waited(member.since) >= PREPARE_DEADLINE {
                let limit = PREPARE_DEADLINE.as_secs();
                return failed("engine_timeout", format!("member {name} was not back within {limit} s"));
            }
            RolloutStep::Wait
        }
        Progress::Starting(why) | Progress::Down(why) => {
            let limit = wanted.map_or(0, |m| m.update.deadline_s());
            let since = member.started_at.unwrap_or(now);
            if waited(since) >= seconds(limit) {
                let why = why.map(|why| format!(": {why}")).unwrap_or_default();
                return failed("not_ready", format!("member {name} was not ready within {limit} s{why}"));
            }
            match member.phase {
                MemberPhase::Starting => RolloutStep::Wait,
                _ => RolloutStep::Enter { at, phase: MemberPhase::Starting, gap_ms: None },
            }
        }
        Progress::Ready { gap_ms } => {
            let least = wanted.map_or(0, least_ready);
            let held = match member.phase {
                MemberPhase::Ready => waited(member.since),
                _ => SignedDuration::ZERO,
            };
            if held >= seconds(least) {
                RolloutStep::Enter { at, phase: MemberPhase::Done, gap_ms }
            } else if member.phase == MemberPhase::Ready {
                RolloutStep::Wait
            } else {
                RolloutStep::Enter { at, phase: MemberPhase::Ready, gap_ms }
            }
        }
    }
}

fn least_ready(member: &MemberSpec) -> u32 {
    member.update.min_ready_s(member.probes.tell_ready())
}

/// `body`: the whole of which it is a part.
fn progress(seen: Option<&MemberStatus>, body: BodyState, revision: u64) -> Progress {
    let Some(seen) = seen else { return Progress::Absent };
    let comes_up = body.is_still() || body == BodyState::Starting;
    let told = |why: &Option<String>| why.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
    if let Some(coming) = seen.coming.as_ref().filter(|c| c.generation == revision) {
        let why = told(&coming.reason);
        return match coming.exit_code {
            _ if coming.broken => Progress::Failed(format!("cannot be started{why}")),
            Some(code) if coming.restarts > 0 || !(coming.running || comes_up) => {
                Progress::Failed(format!("ended with exit code {code}{why}"))
            }
            _ if !coming.running && comes_up => Progress::Down(coming.reason.clone()),
            _ => Progress::Starting(coming.reason.clone()),
        };
    }
    if seen.generation != revision {
        return Progress::Absent;
    }
    let why = told(&seen.reason);
    match seen.exit_code {
        Some(0) if seen.finished => Progress::Ready { gap_ms: seen.gap_ms },
        // What has finished did so in this run of the set.
        Some(code) if seen.restarts > 0 || seen.finished || !(seen.running || comes_up) => {
            let memory = if seen.out_of_memory { ", out of memory" } else { "" };
            Progress::Failed(format!("ended with exit code {code}{memory}{why}"))
        }
        _ if seen.restarts > 0 => Progress::Failed(format!("ended{why}")),
        _ if !seen.running && comes_up => Progress::Down(seen.reason.clone()),
        _ if seen.running && seen.ready != Some(false) => Progress::Ready { gap_ms: seen.gap_ms },
        _ => Progress::Starting(seen.reason.clone()),
    }
}

fn fault(code: &str, message: String, now: Timestamp) -> Fault {
    Fault { code: code.into(), message, since: now }
}

/// A fault that has lasted long enough to count: an engine that restarts is back within this.
fn lasting(sight: &RolloutSight, fault: Option<&Fault>, began: Timestamp) -> Option<Fault> {
    // The host's clock may be ahead: then what counts is when its word was recorded here.
    let since = |f: &Fault| f.since.min(sight.instance.updated_at).max(began);
    fault.filter(|f| sight.now.duration_since(since(f)) >= FAULT_PATIENCE).cloned()
}

/// What an update of a set cannot do, since it never touches the anchor: the field and the reason. None: it can.
pub fn needs_new_body(before: &SetSpec, after: &SetSpec) -> Option<(&'static str, &'static str)> {
    let of = |set: &SetSpec| -> Vec<(u32, String)> {
        set.members.iter().map(|m| (m.index, m.effective_name())).collect()
    };
    if of(before) != of(after) {
        return Some((
            "set.members",
            "an update replaces members and neither adds, removes nor renames any, nor changes an index: that needs a new body",
        ));
    }
    let why = "is the anchor's, which holds the network of all members and is not touched by an update: that needs a new body";
    let (a, b) = (&before.anchor, &after.anchor);
    let differ = [
        ("set.anchor.sysctls", a.sysctls != b.sysctls),
        ("set.anchor.dns", a.dns != b.dns),
        ("set.anchor.hosts", a.hosts != b.hosts),
        ("set.anchor.shm_mib", a.shm_mib != b.shm_mib),
    ];
    differ.into_iter().find(|(_, differs)| *differs).map(|(field, _)| (field, why))
}

#[cfg(test)]
#[path = "rollout_tests.rs"]
mod tests;
