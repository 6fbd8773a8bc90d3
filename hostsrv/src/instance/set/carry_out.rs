//! Carries out what brings a set to running, as `start` has decided it: call by call against Docker, the anchor first. Refuses
//! to decide anything, and to leave an anchor behind whose members cannot be made.

use super::ENGINE;
use super::commands::{self, Ran};
use super::labels::{self, Tag};
use super::observed::Part;
use super::ports;
use super::render::{self, Facts, Rendered, RenderedMember};
use super::shared::Shared;
use super::start::{StartPlan, Step};
use super::swap;
use crate::instance::{BodyPlan, DriverError};
use amphi_api::set::{MemberSpec, SetSpec};
use bollard::models::NetworkConnectRequest;
use bollard::query_parameters::{CreateContainerOptionsBuilder, RemoveContainerOptionsBuilder};
use futures_util::future::{join, join_all, try_join4};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

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
    let facts = async {
        match steps.creates() {
            true => shared.anchor_facts(plan, set).await.map(Some),
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
    let (networks, facts, (), ()) = try_join4(networks, facts, files, places).await?;
    // Never closed: it lives as long as the driver.
    let turn = shared.starts.acquire().await.ok();
    let laid = began.elapsed();
    if let (Step::Create, Some(facts)) = (&steps.anchor, &facts) {
        create(shared, &render::anchor(plan, set, facts)).await?;
        connect(shared, &render::connects(plan)).await?;
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
    // What members start from may still have to come: their anchor gets its network meanwhile.
    let here = AtomicBool::new(false);
    let made = async {
        let rendered = match facts {
            Some(facts) => {
                let member_images = shared.member_images(plan, set).await?;
                render::members(plan, set, &Facts { member_images, ..facts })
            }
            None => Vec::new(),
        };
        here.store(true, Ordering::Relaxed);
        let made = if parted { Vec::new() } else { make_members(shared, steps, &rendered).await };
        Ok::<_, DriverError>((rendered, made))
    };
    let anchor_name = labels::anchor_name(plan.instance);
    // Both to their end, whatever the other says: a call cut short would leave its container half made.
    let anchor = async {
        bring_up(shared, &steps.anchor, &anchor_name).await?;
        let up = began.elapsed();
        if steps.plugs() {
            // The anchor sends nothing; the members' first packets shall pass.
            shared.pass(&plan.ports).await;
        }
        // Others start while an image comes.
        let turn = turn.filter(|_| here.load(Ordering::Relaxed));
        Ok::<_, DriverError>((up, began.elapsed(), turn))
    };
    let (anchor, made) = join(anchor, made).await;
    if made.is_err() && steps.anchor == Step::Create {
        // No address answers for a set whose images are not to be had.
        if let Err(error) = remove(shared, &anchor_name).await {
            tracing::warn!(%error, instance = %plan.instance, "an anchor runs without members until the next try");
        }
    }
    let (rendered, made) = made?;
    let (up, anchored, turn) = anchor?;
    let mut turn = match turn {
        Some(turn) => Some(turn),
        None => shared.starts.acquire().await.ok(),
    };
    let mut made: HashMap<usize, String> = made.into_iter().collect::<Result<_, DriverError>>()?;
    if parted {
        shared.parts.ensure(plan, set).await?;
        made =
            make_members(shared, steps, &rendered).await.into_iter().collect::<Result<_, DriverError>>()?;
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

/// Makes the containers that are to be made, and starts none: their ids by the places of their members.
async fn make_members(
    shared: &Shared,
    steps: &StartPlan,
    rendered: &[RenderedMember],
) -> Vec<Result<(usize, String), DriverError>> {
    let wanted = steps.members.iter().zip(rendered).enumerate();
    let wanted = wanted.filter(|(_, (step, _))| step.makes());
    join_all(wanted.map(async |(at, (_, member))| Ok((at, create(shared, &member.container).await?)))).await
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
