//! Decides what brings a set from what is there to running, and does it. The decision is pure. Refuses to stop or
//! remove anything that runs in the anchor's present namespaces.

use super::ENGINE;
use super::commands::{self, Ran};
use super::labels::{Life, Tag};
use super::observed::{Part, PartState};
use super::ports;
use super::render::{Rendered, RenderedSet, render};
use super::restarts::Record;
use super::shared::Shared;
use super::succession;
use super::swap::{self, Sight};
use crate::instance::{BodyPlan, DriverError};
use amphi_api::set::{MemberSpec, NextWhen, SetSpec};
use bollard::models::NetworkConnectRequest;
use bollard::query_parameters::{CreateContainerOptionsBuilder, RemoveContainerOptionsBuilder};
use futures_util::future::{join, join_all, try_join4};
use std::collections::HashMap;
use std::sync::Arc;
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
    fn creates(&self) -> bool {
        let makes = |step: &Step| matches!(step, Step::Create | Step::Swap { made: None, .. });
        makes(&self.anchor) || self.members.iter().any(makes)
    }

    /// Something is made or started, and finds the files as they are ordered now.
    fn starts(&self) -> bool {
        let starts = |step: &Step| {
            matches!(step, Step::Create | Step::Start { .. } | Step::Return { .. } | Step::Swap { .. })
        };
        starts(&self.anchor) || self.members.iter().any(starts)
    }

    /// The members whose containers are still there afterwards, with their descriptions' numbers.
    fn left(&self, parts: &[Part]) -> impl Iterator<Item = (String, u64)> {
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
    fn plugs(&self) -> bool {
        matches!(self.anchor, Step::Create | Step::Start { .. })
    }
}

/// An anchor that stays, with the ports that it should have instead of what it has.
pub struct Replug<'a> {
    pub anchor: &'a str,
    pub difference: ports::Difference,
}

/// How many sets are started side by side. Starting a container is work for the CPUs: with more of them at once none is
/// done sooner, and half of a hundred are done in half of the time where they come one after the other.
pub fn abreast() -> usize {
    std::thread::available_parallelism().map_or(4, |cpus| cpus.get() * 2).max(4)
}

/// Carries the plan out. Answers what has to wait: container ids with their times.
pub async fn execute(
    shared: &Arc<Shared>,
    plan: &BodyPlan,
    set: &SetSpec,
    parts: &[Part],
    steps: &StartPlan,
    replug: Option<&Replug<'_>>,
) -> Result<Vec<(String, i64)>, DriverError> {
    let began = std::time::Instant::now();
    for id in &steps.remove {
        remove(shared, id).await?;
    }
    for id in &steps.kill {
        kill(shared, id).await?;
    }
    let replug = replug.filter(|_| steps.anchor != Step::Create);
    let networks = async {
        match steps.plugs() || replug.is_some() {
            true => shared.networks.ensure(&shared.engine, &plan.ports).await.map(Some),
            false => Ok(None),
        }
    };
    let rendered = async {
        match steps.creates() {
            true => shared.facts(plan, set).await.map(|facts| Some(render(plan, set, &facts))),
            false => Ok(None),
        }
    };
    let files = async {
        match steps.starts() {
            true => shared.files(plan).ensure(plan, set).await,
            false => Ok(()),
        }
    };
    let places = shared.places.sync(plan);
    let (networks, rendered, (), ()) = try_join4(networks, rendered, files, places).await?;
    // Never closed: it lives as long as the driver.
    let mut turn = shared.starts.acquire().await.ok();
    let laid = began.elapsed();
    let none = RenderedSet::default();
    let rendered = rendered.as_ref().unwrap_or(&none);
    if steps.anchor == Step::Create {
        create(shared, &rendered.anchor).await?;
        connect(shared, &rendered.connects).await?;
    }
    if let Some(replug) = replug {
        ports::change(shared, plan, replug.anchor, &replug.difference).await?;
        shared.pass(&plan.ports).await;
    }
    drop(networks);
    if replug.is_some_and(|replug| !replug.difference.leave.is_empty()) {
        shared.sweep_networks().await?;
    }
    // Members can be made as soon as their anchor has an id; they cannot start before it runs. One that has a part of the
    // volume cannot be made before the volume is mounted, which is the anchor's doing.
    let parted = set.members.iter().any(|member| !member.mounts.is_empty());
    let members = || {
        let makes = |step: &Step| matches!(step, Step::Create | Step::Swap { made: None, .. });
        let made = steps.members.iter().zip(&rendered.members).enumerate();
        let made = made.filter(move |(_, (step, _))| makes(step));
        join_all(made.map(async |(at, (_, member))| {
            Ok::<_, DriverError>((at, create(shared, &member.container).await?))
        }))
    };
    let made = async { if parted { Vec::new() } else { members().await } };
    let anchor = super::labels::anchor_name(plan.instance);
    // Both to their end, whatever the other says: a call cut short would leave its container half made.
    let anchor = async {
        bring_up(shared, &steps.anchor, &anchor).await?;
        let up = began.elapsed();
        if steps.plugs() {
            // The anchor sends nothing; the members' first packets shall pass.
            shared.pass(&plan.ports).await;
        }
        Ok::<_, DriverError>(up)
    };
    let (anchor, made) = join(anchor, made).await;
    let anchored = began.elapsed();
    let up = anchor?;
    let mut made: HashMap<usize, String> = made.into_iter().collect::<Result<_, DriverError>>()?;
    if parted {
        shared.parts.ensure(plan, set).await?;
        made = members().await.into_iter().collect::<Result<_, DriverError>>()?;
    }
    let mut described: Vec<&MemberSpec> = set.members.iter().collect();
    described.sort_by_key(|member| member.index);
    let mut waiting = Vec::new();
    for (at, step) in steps.members.iter().enumerate() {
        if let Step::Wait { id, until_us } = step {
            waiting.push((id.clone(), *until_us));
            continue;
        }
        let part = |id: &str| parts.iter().find(|part| part.id == id);
        let name = made.get(&at).map(String::as_str).unwrap_or_default();
        match step {
            Step::Swap { made, old, keep, overlap } => {
                let Some(old) = part(old) else { continue };
                let new = made.as_deref().unwrap_or(name);
                swap::take_over(shared, old, new, made.is_some(), *keep, *overlap).await?;
            }
            Step::Retire { old, keep } => {
                let Some(old) = part(old) else { continue };
                swap::retire(shared, old, *keep).await?;
            }
            step => bring_up(shared, step, name).await?,
        }
        if let Some(member) = described.get(at) {
            if member.hooks.post_start.is_some() {
                // It takes as long as it takes.
                turn.take();
            }
            post_start(shared, step, name, member).await?;
        }
    }
    let ordered = set.members.iter().map(|member| {
        let name = member.effective_name();
        let generation = plan.generation_of(&name);
        (name, generation)
    });
    let kept = steps.left(parts).chain(ordered).collect();
    shared.parts.sweep(plan.instance, kept).await?;
    if steps.plugs() {
        let ms = |since: Duration| since.as_millis() as u64;
        let (laid_ms, up_ms, passes_ms, all_ms) = (ms(laid), ms(up), ms(anchored), ms(began.elapsed()));
        tracing::info!(instance = %plan.instance, laid_ms, up_ms, passes_ms, all_ms, "the set was started");
    }
    Ok(waiting)
}

/// What runs inside a member right after its start. One that fails there is ended: it has failed.
async fn post_start(
    shared: &Arc<Shared>,
    step: &Step,
    created: &str,
    member: &MemberSpec,
) -> Result<(), DriverError> {
    let id = match step {
        Step::Create => created,
        Step::Start { id, .. } | Step::Return { id } => id,
        Step::Swap { made, .. } => made.as_deref().unwrap_or(created),
        _ => return Ok(()),
    };
    let Some(hook) = &member.hooks.post_start else { return Ok(()) };
    let why = match commands::run_hook(shared, id, hook).await {
        Ok(Ran::Well) => return Ok(()),
        Ok(Ran::Badly(why)) => why,
        Err(error) => error.to_string(),
    };
    shared.health.note_end(id, &format!("its post_start failed: {why}"));
    kill(shared, id).await?;
    Err(DriverError::EngineRefused {
        engine: ENGINE,
        doing: format!("start member {}", member.effective_name()),
        message: format!("its post_start failed: {why}"),
    })
}

/// Starts or resumes one container. `created`: its name or id where it was made just now.
async fn bring_up(shared: &Shared, step: &Step, created: &str) -> Result<(), DriverError> {
    let limit = shared.engine.limits.start;
    let id = match step {
        Step::Keep | Step::Wait { .. } | Step::Hold | Step::Rest => return Ok(()),
        // Not one container's affair.
        Step::Swap { .. } | Step::Retire { .. } => return Ok(()),
        Step::Create => created,
        Step::Start { id, .. } | Step::Return { id } => id,
        Step::Resume { id } => {
            let doing = format!("resume container {id}");
            return shared
                .engine
                .call(&doing, limit, |docker| async move { docker.unpause_container(id).await })
                .await;
        }
    };
    if let Step::Start { id, again: Some(ran) } = step {
        shared.restarts.count(id, *ran);
    }
    run(shared, id).await?;
    shared.restarts.started(id);
    Ok(())
}

/// Starts a container.
pub async fn run(shared: &Shared, id: &str) -> Result<(), DriverError> {
    let (doing, limit) = (format!("start container {id}"), shared.engine.limits.start);
    shared.engine.call(&doing, limit, |docker| async move { docker.start_container(id, None).await }).await
}

/// The anchor joins its further networks, in their order.
pub async fn connect(
    shared: &Shared,
    connects: &[(String, NetworkConnectRequest)],
) -> Result<(), DriverError> {
    for (network, request) in connects {
        let doing = format!("connect {} to {network}", request.container);
        let limit = shared.engine.limits.call;
        let request = request.clone();
        shared
            .engine
            .call(&doing, limit, |docker| async move { docker.connect_network(network, request).await })
            .await?;
    }
    Ok(())
}

/// Answers its id.
pub async fn create(shared: &Shared, container: &Rendered) -> Result<String, DriverError> {
    let options = CreateContainerOptionsBuilder::default().name(&container.name).build();
    let doing = format!("create container {}", container.name);
    let body = container.body.clone();
    let tag = body.labels.as_ref().and_then(Tag::read);
    let made = shared
        .engine
        .call(&doing, shared.engine.limits.start, |docker| async move {
            docker.create_container(Some(options), body).await
        })
        .await?;
    if let Some(tag) = tag {
        shared.orphans.note(&made.id, tag.instance, tag.epoch);
    }
    Ok(made.id)
}

/// SIGKILL, and the container gone with its anonymous volumes.
pub async fn remove(shared: &Shared, id: &str) -> Result<(), DriverError> {
    let doing = format!("remove container {id}");
    let options = RemoveContainerOptionsBuilder::default().force(true).v(true).build();
    shared
        .engine
        .find(&doing, shared.engine.limits.start, |docker| async move {
            docker.remove_container(id, Some(options)).await
        })
        .await?;
    Ok(())
}

async fn kill(shared: &Shared, id: &str) -> Result<(), DriverError> {
    shared.end(id, Duration::ZERO).await
}

#[cfg(test)]
mod tests;
