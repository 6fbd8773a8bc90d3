//! Decides what brings a set from what is there to running; `carry_out` does it. Pure. Refuses to stop or remove anything
//! that runs in the anchor's present namespaces.

use super::labels::Life;
use super::observed::{Part, PartState};
use super::restarts::Record;
use super::succession;
use super::swap::{self, Sight};
use amphi_api::set::NextWhen;
use std::time::Duration;

/// What to do, in this order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StartPlan {
    /// Containers that cannot be used: members first.
    pub remove: Vec<String>,
    /// Members that run in dead namespaces, in reverse order of index.
    pub kill: Vec<String>,
    pub anchor: Step,
    /// Parallel to the set's members in start order.
    pub members: Vec<Step>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub enum Step {
    /// It runs.
    #[default]
    Keep,
    Create,
    /// `again`: it counts as a restart, after a run this long.
    Start {
        id: String,
        again: Option<Duration>,
    },
    Resume {
        id: String,
    },
    /// It failed too often to start before this time, in microseconds since the epoch.
    Wait {
        id: String,
        until_us: i64,
    },
    /// One before it is not as far as the set's description wants it.
    Hold,
    /// It has ended, and by its restart policy that is that.
    Rest,
    /// It starts by order, whoever is before it: no restart of its own.
    Return {
        id: String,
    },
    /// The one of an earlier description works: this one, made already or yet to be made, takes its place, or starts beside
    /// it. `keep`: the old one stays, stopped.
    Swap {
        made: Option<String>,
        old: String,
        keep: bool,
        overlap: bool,
    },
    /// Both run, and the old one is to go.
    Retire {
        old: String,
        keep: bool,
    },
}

impl Step {
    /// A container is made for it.
    pub fn makes(&self) -> bool {
        matches!(self, Self::Create | Self::Swap { made: None, .. })
    }
}

/// What should run.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// The members' in start order.
    pub names: &'a [&'a str],
    /// Parallel to the names.
    pub lives: &'a [Life],
    /// Parallel to the names: which of a member's containers is meant.
    pub swaps: &'a [swap::Wanted],
    /// They are a rescue's: the set's own stop and stay.
    pub rescue: bool,
    /// Those that are paused stay so.
    pub halted: bool,
    /// What never ran is all of it, as ordered: it is started as it is.
    pub whole: bool,
}

/// What the members after this one wait for, if anything: as in "waits for db to be ready". `ready`: its probes hold.
/// Only those wait that have not been started since the anchor was; who starts again starts.
pub fn gate(part: &Part, anchor: &Part, ready: bool) -> Option<&'static str> {
    let of_run = part.is_of_run(anchor) && !part.is_stale(anchor);
    match part.tag.life.next_when {
        NextWhen::Started => None,
        NextWhen::Finished => {
            (!(of_run && part.rests(anchor) && part.detail.exit_code == Some(0))).then_some("to finish")
        }
        // One that has done its work and stays so was ready once.
        NextWhen::Ready if of_run && part.rests(anchor) => None,
        NextWhen::Ready if part.tag.life.gates_by_probe() && !(of_run && part.is_alive() && ready) => {
            Some("to be ready")
        }
        NextWhen::Ready => None,
    }
}

/// Whether one that is only now to be made holds up those after it.
fn holds_up(life: &Life) -> bool {
    life.next_when == NextWhen::Finished || life.gates_by_probe()
}

/// Holds the members that come after one that is not as far as they want it; who was started in this run is let be.
fn hold(plan: &mut StartPlan, wanted: Wanted<'_>, closed: impl Fn(usize) -> bool) {
    let mut held = false;
    for (at, life) in wanted.lives.iter().enumerate() {
        let Some(step) = plan.members.get_mut(at) else { return };
        if held && matches!(step, Step::Create | Step::Start { again: None, .. }) {
            *step = Step::Hold;
        }
        let begins = matches!(step, Step::Create | Step::Start { .. } | Step::Hold);
        held |= if begins { holds_up(life) } else { closed(at) };
    }
}

/// `parts`: of this instance and epoch. Parts that never ran are replaced: they may be half made.
pub fn decide(
    wanted: Wanted<'_>,
    parts: &[Part],
    sight: &impl Sight,
    record: impl Fn(&str) -> Record,
    now_us: i64,
) -> StartPlan {
    let names = wanted.names;
    let anchor = parts.iter().find(|part| part.is_anchor());
    let of = |name: &str| -> Vec<&Part> {
        let same = |part: &&Part| {
            part.is_rescuer() == wanted.rescue
                && part.tag.role.member().is_some_and(|(_, found)| found == name)
        };
        parts.iter().filter(same).collect()
    };
    let swap_of = |at: usize| wanted.swaps.get(at).copied().unwrap_or_default();
    let Some(anchor) = anchor.filter(|anchor| wanted.whole || anchor.state != PartState::Created) else {
        // Members are tied to their anchor's container by its id.
        let mut all: Vec<&Part> = parts.iter().collect();
        all.sort_by_key(|part| part.is_anchor());
        let mut plan = StartPlan {
            remove: all.into_iter().map(|part| part.id.clone()).collect(),
            kill: Vec::new(),
            anchor: Step::Create,
            members: names.iter().map(|_| Step::Create).collect(),
        };
        hold(&mut plan, wanted, |_| false);
        return plan;
    };
    let mut plan = StartPlan {
        anchor: match anchor.state {
            PartState::Ended | PartState::Created => Step::Start { id: anchor.id.clone(), again: None },
            PartState::Paused => Step::Resume { id: anchor.id.clone() },
            PartState::Running => Step::Keep,
        },
        ..StartPlan::default()
    };
    for other in parts.iter().filter(|part| !part.is_anchor() && part.is_rescuer() != wanted.rescue) {
        match wanted.rescue {
            true if other.is_alive() => plan.kill.insert(0, other.id.clone()),
            true => {}
            false => plan.remove.push(other.id.clone()),
        }
    }
    let anchor_ended = !anchor.is_alive();
    for (at, name) in names.iter().enumerate() {
        let (all, swap) = (of(name), swap_of(at));
        let turn = match wanted.halted {
            // What is halted is not exchanged.
            true => swap::Turn::default(),
            false => swap::turn(swap, &all, anchor, sight, now_us),
        };
        plan.remove.extend(turn.remove);
        if let Some(step) = turn.step {
            plan.members.push(step);
            continue;
        }
        let own = match wanted.halted {
            // Of several the one that counts: its forerunner must not start beside it.
            true => succession::standing(&all).present,
            false => all.iter().copied().find(|part| part.tag.generation == swap.generation),
        };
        let Some(part) = own else {
            plan.members.push(Step::Create);
            continue;
        };
        let id = part.id.clone();
        plan.members.push(match part.state {
            PartState::Created if wanted.whole => Step::Start { id, again: None },
            PartState::Created => {
                plan.remove.push(id);
                Step::Create
            }
            PartState::Running | PartState::Paused if anchor_ended || part.is_stale(anchor) => {
                plan.kill.insert(0, id.clone());
                let ran = now_us.saturating_sub(part.detail.started_us.unwrap_or(now_us));
                Step::Start { id, again: Some(Duration::from_micros(ran.try_into().unwrap_or(0))) }
            }
            PartState::Running => Step::Keep,
            PartState::Paused if wanted.halted => Step::Keep,
            PartState::Paused => Step::Resume { id },
            PartState::Ended if anchor_ended => Step::Start { id, again: None },
            PartState::Ended if record(&part.id).ordered => Step::Return { id },
            PartState::Ended if part.rests(anchor) => Step::Rest,
            // It has not been started since its anchor was.
            PartState::Ended if !part.is_of_run(anchor) && wanted.lives.iter().any(holds_up) => {
                Step::Start { id, again: None }
            }
            PartState::Ended => match part.due_us(record(&part.id), now_us) {
                until_us if until_us > now_us => Step::Wait { id, until_us },
                _ => Step::Start { id, again: Some(part.ran()) },
            },
        });
    }
    let closed = |at: usize| {
        let present = names.get(at).and_then(|name| succession::standing(&of(name)).present);
        present.is_some_and(|part| gate(part, anchor, sight.is_ready(part)).is_some())
    };
    hold(&mut plan, wanted, closed);
    plan
}

impl StartPlan {
    pub fn creates(&self) -> bool {
        self.anchor.makes() || self.members.iter().any(Step::makes)
    }

    /// Something is made or started, and finds the files as they are ordered now.
    pub fn starts(&self) -> bool {
        let starts = |step: &Step| {
            matches!(step, Step::Create | Step::Start { .. } | Step::Return { .. } | Step::Swap { .. })
        };
        starts(&self.anchor) || self.members.iter().any(starts)
    }

    /// The members whose containers are still there afterwards, with their descriptions' numbers.
    pub fn left(&self, parts: &[Part]) -> impl Iterator<Item = (String, u64)> {
        let gives_way = move |id: &str| {
            self.members.iter().any(|step| match step {
                Step::Swap { old, keep: false, overlap: false, .. } | Step::Retire { old, keep: false } => {
                    old == id
                }
                _ => false,
            })
        };
        let left = parts.iter().filter(move |part| !self.remove.contains(&part.id) && !gives_way(&part.id));
        left.filter_map(|part| Some((part.tag.role.member()?.1.to_owned(), part.tag.generation)))
    }

    /// The anchor's networks are asked for: made or started.
    pub fn plugs(&self) -> bool {
        matches!(self.anchor, Step::Create | Step::Start { .. })
    }
}

#[cfg(test)]
mod tests;
