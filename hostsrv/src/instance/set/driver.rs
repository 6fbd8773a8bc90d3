//! The body driver for sets: takes calls, asks the parts of this module, keeps nothing but what the engine holds.
//! Refuses a plan while the engine still has the instance at another epoch.

use super::engine::{Engine, Limits};
use super::images::Images;
use super::labels::Life;
use super::networks::Networks;
use super::observed::{Part, PartState, Seen, Sightings, assemble};
use super::orphans::{self, Orphans};
use super::parts::Parts;
use super::render::render;
use super::restarts::Restarts;
use super::shared::Shared;
use super::volumes::Places;
use super::{
    ENGINE, carry_out, copy, ending, events, exec, export, logs, ports, roots, sizing, start, stored,
    succession, swap, throttle, tools, twin,
};
use crate::images::prepull::ContainerStore;
use crate::images::registry::Registry;
use crate::instance::moves::BodyMoves;
use crate::instance::sizing::BodySizing;
use crate::instance::streams::{BodyStreams, Opened};
use crate::instance::{
    Adjustment, Bell, BodyDriver, BodyExport, BodyPlan, CachedImage, DriverError, EngineFacts, ExportPlan,
    ObservedBody, PortGate, Remains, folders,
};
use amphi_api::InstanceId;
use amphi_api::instance::{BodyKind, Power};
use amphi_api::resize::MemberUsage;
use amphi_api::set::{MemberSpec, SetSpec};
use amphi_api::streams::{ExecSpec, StreamTarget};
use amphi_api::wire::BodyDesired;
use async_trait::async_trait;
use bollard::query_parameters::LogsOptionsBuilder;
use futures_util::StreamExt;
use futures_util::future::{join_all, try_join};
use jiff::Timestamp;
use std::collections::{BTreeSet, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;

/// Most of a member's output that is handed on, in bytes; the oldest goes first.
const LOG_MAX: usize = 4 << 20;

/// What a host may set differently.
#[derive(Clone, Debug)]
pub struct SetOptions {
    pub limits: Limits,
    /// A static busybox; the anchor's image is made of it. Default: `/bin/busybox`, as busybox-static installs it.
    pub busybox: PathBuf,
    /// Whether anchors run privileged. Default: where this process may hand on every capability that the kernel
    /// knows; elsewhere runc refuses a privileged container. Anchors need no privilege to work: Docker applies their
    /// sysctls.
    pub privileged_anchor: bool,
    /// What the first member's start waits for once the anchor is plugged. Default: nothing, as where no OVN runs.
    pub gate: Option<Arc<dyn PortGate>>,
    /// Docker's data root, where members' root file systems are. Default: `/var/lib/docker`.
    pub docker_root: PathBuf,
    /// Where Docker pulls images from that come by layer. Default: none; only archives can be loaded then.
    pub registry: Option<Arc<Registry>>,
}

impl Default for SetOptions {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            busybox: PathBuf::from("/bin/busybox"),
            privileged_anchor: has_every_capability(),
            gate: None,
            docker_root: PathBuf::from("/var/lib/docker"),
            registry: None,
        }
    }
}

/// Sets on Docker.
pub struct SetDriver {
    shared: Arc<Shared>,
    events: AbortHandle,
    roots: AbortHandle,
}

impl SetDriver {
    /// `docker_socket`: `unix:///run/docker.sock`. Members' config drives lie below `state_dir`, where dockerd must see
    /// them too. Works with the engine down; must be called inside a tokio runtime, where it follows the engine's
    /// events until it is dropped.
    pub fn new(
        docker_socket: &str,
        state_dir: impl Into<PathBuf>,
        bell: Bell,
        options: SetOptions,
    ) -> Result<Self, DriverError> {
        let state_dir = state_dir.into();
        let shared = Arc::new(Shared {
            engine: Engine::new(docker_socket, options.limits),
            images: Images::new(options.busybox, options.registry, options.docker_root.clone()),
            networks: Networks::default(),
            orphans: Orphans::open(&state_dir),
            sightings: Sightings::on(throttle::device_under(&options.docker_root)),
            restarts: Restarts::default(),
            roots: Default::default(),
            bell,
            places: Places::new(&state_dir),
            parts: Parts::new(&state_dir),
            health: Arc::default(),
            still: Mutex::default(),
            state_dir,
            privileged_anchor: options.privileged_anchor,
            gate: options.gate,
            woken: Mutex::default(),
            starts: Semaphore::new(carry_out::abreast()),
            waking: Mutex::default(),
        });
        let events = tokio::spawn(events::follow(shared.clone())).abort_handle();
        let roots = tokio::spawn(roots::watch(shared.clone())).abort_handle();
        tokio::spawn(exec::sweep(Arc::downgrade(&shared)));
        tokio::spawn(tools::sweep(Arc::downgrade(&shared)));
        Ok(Self { shared, events, roots })
    }

    /// Keeps Docker's store of images below its bound: of those that came by this agent the longest unused go, never one
    /// that a container is made of or whose configuration's digest is `in_use`. `used` tells when a blob was last asked
    /// for. Answers the names of those that went.
    pub async fn sweep_images(
        &self,
        in_use: &BTreeSet<String>,
        used: impl Fn(&str) -> Option<SystemTime>,
        max_bytes: u64,
    ) -> Result<Vec<String>, DriverError> {
        stored::sweep(&self.shared.images, &self.shared.engine, in_use, used, max_bytes).await
    }

    async fn start(&self, plan: &BodyPlan, set: &SetSpec) -> Result<(), DriverError> {
        let parts = self.shared.collect(Some(plan.instance)).await?;
        orphans::end(&self.shared, plan.instance, &parts).await?;
        if let Some(other) = parts.iter().find(|part| part.tag.epoch != plan.epoch) {
            return Err(DriverError::EngineRefused {
                engine: ENGINE,
                doing: format!("start instance {} at epoch {}", plan.instance, plan.epoch),
                message: format!("containers of its epoch {} are still there", other.tag.epoch),
            });
        }
        let mut members: Vec<&MemberSpec> = set.members.iter().collect();
        members.sort_by_key(|member| member.index);
        let lives: Vec<Life> = members.iter().map(|member| Life::of(member)).collect();
        let swap = |member: &&MemberSpec| {
            let name = member.effective_name();
            let (generation, former) = (plan.generation_of(&name), plan.former_of(&name));
            swap::Wanted { generation, former, update: member.update }
        };
        let swaps: Vec<swap::Wanted> = members.iter().map(swap).collect();
        let names: Vec<String> = members.into_iter().map(MemberSpec::effective_name).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let record = |id: &str| self.shared.restarts.get(id);
        let halted = plan.power != Power::On;
        let whole = self.wakes(plan, set, &parts).await?;
        let wanted = start::Wanted {
            names: &names,
            lives: &lives,
            swaps: &swaps,
            rescue: plan.rescue.is_some(),
            halted,
            whole,
        };
        self.shared.watch(&parts, false);
        let mut steps =
            start::decide(wanted, &parts, &*self.shared, record, Timestamp::now().as_microsecond());
        self.shared.roots.hold(&mut steps);
        for part in parts.iter().filter(|part| part.state == PartState::Ended) {
            self.shared.restarts.note(&part.id, part.detail.exit_code, part.detail.oom_killed);
        }
        let anchor = parts.iter().find(|part| part.is_anchor());
        let replug = anchor.map(|anchor| carry_out::Replug {
            anchor: &anchor.id,
            difference: ports::differ(&anchor.detail.endpoints, &plan.ports),
        });
        // Docker does not tell the networks of what never ran.
        let replug = replug.filter(|replug| !replug.difference.is_empty() && !whole);
        for (id, until_us) in
            carry_out::execute(&self.shared, plan, set, &parts, &steps, replug.as_ref()).await?
        {
            self.shared.wake_at(id, until_us);
        }
        if halted { self.halt(plan).await } else { Ok(()) }
    }

    /// Whether all of the set was made beforehand and waits for this, its first start. One that does not start so is made anew
    /// at the next try.
    async fn wakes(&self, plan: &BodyPlan, set: &SetSpec, parts: &[Part]) -> Result<bool, DriverError> {
        if parts.is_empty() || parts.iter().any(|part| part.state != PartState::Created) {
            return Ok(false);
        }
        let rendered = render(plan, set, &self.shared.facts(plan, set).await?);
        if !twin::is_whole(parts, &rendered) {
            return Ok(false);
        }
        let mut woken = self.shared.woken.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(woken.insert(plan.instance, plan.epoch) != Some(plan.epoch))
    }

    /// Pauses the members that run, in reverse order of index.
    async fn halt(&self, plan: &BodyPlan) -> Result<(), DriverError> {
        for part in self.parts(plan.instance).await?.iter().rev() {
            let member = !part.is_anchor() && part.is_rescuer() == plan.rescue.is_some();
            if member && part.state == PartState::Running {
                self.shared.pause(&part.id).await?;
            }
        }
        Ok(())
    }

    /// The container of a member that counts now: the newest, and a rescue's while one runs. None named: the first.
    async fn member(
        &self,
        instance: InstanceId,
        member: Option<&str>,
        doing: &str,
    ) -> Result<Part, DriverError> {
        let mut parts = self.parts(instance).await?;
        let rescued = parts.iter().any(Part::is_rescuer);
        parts.retain(|part| part.is_rescuer() == rescued);
        let newest = parts.last().map(|part| part.tag.epoch);
        let first = parts.iter().find(|part| !part.is_anchor() && Some(part.tag.epoch) == newest);
        let first = first.and_then(|part| part.tag.role.member()).map(|(_, name)| name);
        // A member that has left its newest epoch may still be looked into.
        let mut epochs: Vec<u64> = parts.iter().map(|part| part.tag.epoch).collect();
        epochs.dedup();
        let of = |epoch: &u64| {
            let name = member.or(first)?;
            succession::present(parts.iter().filter(|part| part.tag.epoch == *epoch), name)
        };
        let part = epochs.iter().rev().find_map(of).cloned();
        part.ok_or_else(|| DriverError::EngineRefused {
            engine: ENGINE,
            doing: format!("{doing} of member {} of instance {instance}", member.unwrap_or("(first)")),
            message: "there is no such container".to_owned(),
        })
    }

    async fn parts(&self, instance: InstanceId) -> Result<Vec<Part>, DriverError> {
        let mut parts = self.shared.collect(Some(instance)).await?;
        parts.sort_by_key(start_order);
        Ok(parts)
    }
}

impl Drop for SetDriver {
    fn drop(&mut self) {
        self.events.abort();
        self.roots.abort();
    }
}

#[async_trait]
impl ContainerStore for SetDriver {
    async fn fetch(&self, image: &CachedImage) -> Result<(), DriverError> {
        self.shared.images.ensure(&self.shared.engine, image).await.map(drop)
    }

    async fn held(&self) -> Result<BTreeSet<String>, DriverError> {
        stored::names(&self.shared.engine).await
    }
}

#[async_trait]
impl BodyDriver for SetDriver {
    async fn probe(&self) -> Result<EngineFacts, DriverError> {
        let engine = &self.shared.engine;
        let version = engine
            .call("ask its version", engine.limits.ping, |docker| async move { docker.version().await })
            .await?;
        match self.shared.orphans.trouble() {
            None => Ok(EngineFacts { version: version.version.unwrap_or_default() }),
            Some(message) => Err(DriverError::EngineRefused {
                engine: ENGINE,
                doing: "tell of all its containers".to_owned(),
                message,
            }),
        }
    }

    async fn observe(&self) -> Result<Vec<ObservedBody>, DriverError> {
        let parts = self.shared.collect(None).await?;
        let ids: HashSet<&str> = parts.iter().map(|part| part.id.as_str()).collect();
        self.shared.restarts.keep(|id| ids.contains(id));
        self.shared.roots.keep(|id| ids.contains(id));
        self.shared.watch(&parts, true);
        let lost = orphans::find(&self.shared, None, &parts).await?;
        let now_us = Timestamp::now().as_microsecond();
        let mut bodies = {
            let outlook = |part: &Part| self.shared.outlook(part);
            let held = |part: &Part| self.shared.held(part);
            let over = |part: &Part| roots::trouble(&self.shared, part);
            let seen = Seen { outlook: &outlook, held: &held, over: &over };
            assemble(&parts, &self.shared.restarts, &seen, now_us)
        };
        orphans::show(&mut bodies, &lost);
        let volumes = self.shared.places.observe().await?;
        for body in &mut bodies {
            body.volumes = volumes.get(&body.instance).cloned().unwrap_or_default();
        }
        Ok(bodies)
    }

    async fn prepare(&self, plan: &BodyPlan) -> Result<(), DriverError> {
        let set = set_of(plan)?;
        if plan.twin {
            return twin::lay_out(&self.shared, plan, set).await;
        }
        let networks = self.shared.networks.ensure(&self.shared.engine, &plan.ports);
        let (_held, _facts) = try_join(networks, self.shared.facts(plan, set)).await?;
        Ok(())
    }

    async fn ensure(&self, plan: &BodyPlan) -> Result<(), DriverError> {
        let set = set_of(plan)?;
        match self.start(plan, set).await {
            // Somebody removed an image since it was last seen.
            Err(DriverError::EngineRefused { message, .. }) if message.contains("No such image") => {
                self.shared.images.forget();
                self.start(plan, set).await
            }
            other => other,
        }
    }

    async fn stop(&self, instance: InstanceId, grace: Duration) -> Result<(), DriverError> {
        let end = Instant::now() + grace;
        let parts = self.parts(instance).await?;
        orphans::end(&self.shared, instance, &parts).await?;
        let alive: Vec<&Part> = parts.iter().rev().filter(|part| part.is_alive()).collect();
        for (at, part) in alive.iter().enumerate() {
            if part.state == PartState::Paused {
                self.shared.resume(&part.id).await?;
            }
            // What is left is shared among those that are left, so that one deaf member does not take it all.
            let left = u32::try_from(alive.len() - at).unwrap_or(1);
            let given = end.saturating_duration_since(Instant::now()) / left;
            if part.is_anchor() {
                // Before the volume goes with the anchor.
                self.shared.parts.clear(instance).await?;
            }
            ending::end(&self.shared, part, given).await?;
        }
        // Of an anchor that had ended before.
        self.shared.parts.clear(instance).await?;
        parts.iter().for_each(|part| self.shared.restarts.forget_failures(&part.id));
        self.shared.places.clear(instance).await
    }

    /// A set has no root disk that could remain.
    async fn remove(&self, instance: InstanceId, epoch: u64, remains: Remains) -> Result<(), DriverError> {
        let parts = self.parts(instance).await?;
        orphans::end(&self.shared, instance, &parts).await?;
        let (anchors, members): (Vec<&Part>, Vec<&Part>) =
            parts.iter().filter(|part| part.tag.epoch <= epoch).partition(|part| part.is_anchor());
        for parts in [members, anchors] {
            let removed = join_all(parts.iter().map(|part| carry_out::remove(&self.shared, &part.id))).await;
            removed.into_iter().collect::<Result<(), _>>()?;
        }
        if parts.iter().all(|part| part.tag.epoch <= epoch) {
            self.shared.woken.lock().unwrap_or_else(PoisonError::into_inner).remove(&instance);
            self.shared.parts.clear(instance).await?;
            self.shared.places.remove(instance).await?;
        }
        folders::remove(&self.shared.state_dir, instance, BodyKind::Set, epoch, remains).await?;
        self.shared.sweep_networks().await
    }

    async fn console_log(
        &self,
        instance: InstanceId,
        member: Option<&str>,
        lines: u32,
    ) -> Result<String, DriverError> {
        let part = &self.member(instance, member, "read the output").await?;
        let options =
            LogsOptionsBuilder::default().stdout(true).stderr(true).tail(&lines.to_string()).build();
        let doing = format!("read the output of container {}", part.id);
        let engine = &self.shared.engine;
        let output = engine
            .call(&doing, engine.limits.call, |docker| async move {
                let mut pieces = std::pin::pin!(docker.logs(&part.id, Some(options)));
                let mut output = Vec::new();
                while let Some(piece) = pieces.next().await {
                    output.extend_from_slice(&piece?.into_bytes());
                    let over = output.len().saturating_sub(LOG_MAX);
                    output.drain(..over);
                }
                Ok(output)
            })
            .await?;
        Ok(String::from_utf8_lossy(&output).into_owned())
    }

    async fn adjust(&self, instance: InstanceId, adjustment: Adjustment) -> Result<(), DriverError> {
        let parts = match adjustment {
            // Members share the mounted file system: they see its size at once.
            Adjustment::VolumeGrown { .. } => return Ok(()),
            Adjustment::RestartMember(member) => {
                let part = self.member(instance, Some(&member), "restart").await?;
                return swap::end(&self.shared, &part).await;
            }
            Adjustment::Pause | Adjustment::Resume => self.parts(instance).await?,
        };
        let mut members: Vec<&Part> = parts.iter().filter(|part| !part.is_anchor()).collect();
        if adjustment == Adjustment::Pause {
            members.reverse();
        }
        for part in members {
            match (&adjustment, part.state) {
                (Adjustment::Pause, PartState::Running) => self.shared.pause(&part.id).await?,
                (Adjustment::Resume, PartState::Paused) => self.shared.resume(&part.id).await?,
                _ => {}
            }
        }
        Ok(())
    }
}

#[async_trait]
impl BodyExport for SetDriver {
    async fn export(&self, plan: &ExportPlan) -> Result<(), DriverError> {
        let parts = self.parts(plan.instance).await?;
        export::export(&self.shared, plan, &parts).await
    }
}

impl BodyMoves for SetDriver {}

#[async_trait]
impl BodySizing for SetDriver {
    async fn usage(&self, instance: InstanceId) -> Result<Vec<MemberUsage>, DriverError> {
        sizing::usage(&self.parts(instance).await?).await
    }

    async fn resize(&self, plan: &BodyPlan) -> Result<(), DriverError> {
        sizing::resize(&self.shared, plan, set_of(plan)?, &self.parts(plan.instance).await?).await
    }
}

#[async_trait]
impl BodyStreams for SetDriver {
    async fn open(&self, instance: InstanceId, what: &StreamTarget) -> Result<Opened, DriverError> {
        let (doing, shared) = ("look into a container", &self.shared);
        match what {
            StreamTarget::Exec(spec) => {
                exec::open(shared, &self.member(instance, spec.member.as_deref(), doing).await?, spec).await
            }
            StreamTarget::Console { member, size } => {
                let shell = exec::shell(member.clone(), *size);
                exec::open(shared, &self.member(instance, member.as_deref(), doing).await?, &shell).await
            }
            StreamTarget::Logs(spec) => {
                let part = self.member(instance, spec.member.as_deref(), "follow the output").await?;
                Ok(logs::open(shared, instance, part, spec))
            }
            StreamTarget::Copy(spec) => {
                let part = self.member(instance, spec.member.as_deref(), "copy files").await?;
                copy::open(shared, &part, spec).await
            }
            StreamTarget::Tools(_) => Err(DriverError::EngineRefused {
                engine: ENGINE,
                doing: format!("bring tools to instance {instance}"),
                message: "their image was not fetched".to_owned(),
            }),
            StreamTarget::Screen => Err(DriverError::EngineRefused {
                engine: ENGINE,
                doing: format!("open the screen of instance {instance}"),
                message: "a set has none".to_owned(),
            }),
        }
    }

    async fn open_tools(
        &self,
        instance: InstanceId,
        exec: &ExecSpec,
        image: &CachedImage,
    ) -> Result<Opened, DriverError> {
        let part = self.member(instance, exec.member.as_deref(), "bring tools").await?;
        tools::open(&self.shared, instance, &part, exec, image).await
    }
}

/// The anchor first, then members by index; older epochs before newer.
fn start_order(part: &Part) -> (u64, Option<u32>) {
    (part.tag.epoch, part.tag.role.member().map(|(index, _)| index))
}

fn set_of(plan: &BodyPlan) -> Result<&SetSpec, DriverError> {
    match plan.runs() {
        BodyDesired::Set { set, .. } => Ok(set),
        BodyDesired::Vm { .. } | BodyDesired::SetVm { .. } => Err(DriverError::EngineRefused {
            engine: ENGINE,
            doing: format!("make instance {}", plan.instance),
            message: "what is to run is a VM".to_owned(),
        }),
    }
}

/// Whether the bounding set of this process, which dockerd's is assumed to equal, holds all that the kernel knows.
fn has_every_capability() -> bool {
    let bounding = || {
        let status = std::fs::read_to_string("/proc/self/status").ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("CapBnd:"))?;
        u64::from_str_radix(line.trim(), 16).ok()
    };
    let last = || std::fs::read_to_string("/proc/sys/kernel/cap_last_cap").ok()?.trim().parse::<u32>().ok();
    match (bounding(), last()) {
        (Some(bounding), Some(last)) => (bounding + 1).checked_shr(last + 1).is_some_and(|rest| rest == 1),
        _ => false,
    }
}
