//! The body driver for sets: takes calls, asks the parts of this module, keeps nothing but what the engine holds.
//! Refuses a plan while the engine still has the instance at another epoch.

use super::engine::{Engine, Limits};
use super::files::SetFiles;
use super::images::Images;
use super::labels::Role;
use super::networks::Networks;
use super::observed::{Part, PartState, Sightings, assemble};
use super::render::Facts;
use super::restarts::Restarts;
use super::{ENGINE, events, start};
use crate::instance::{
    Adjustment, Bell, BodyDriver, BodyPlan, DriverError, EngineFacts, ObservedBody, folders,
};
use amphi_api::InstanceId;
use amphi_api::instance::BodyKind;
use amphi_api::set::{MemberSpec, SetSpec};
use amphi_api::wire::BodyDesired;
use async_trait::async_trait;
use bollard::query_parameters::{LogsOptionsBuilder, StopContainerOptionsBuilder};
use futures_util::StreamExt;
use futures_util::future::{join_all, try_join, try_join_all};
use jiff::Timestamp;
use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
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
}

impl Default for SetOptions {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            busybox: PathBuf::from("/bin/busybox"),
            privileged_anchor: has_every_capability(),
        }
    }
}

/// What the driver's calls and its tasks share.
pub struct Shared {
    pub engine: Engine,
    pub images: Images,
    pub networks: Networks,
    pub sightings: Sightings,
    pub restarts: Restarts,
    pub bell: Bell,
    state_dir: PathBuf,
    privileged_anchor: bool,
    /// Containers for which the bell is already set to ring.
    waking: Mutex<HashSet<String>>,
}

/// Sets on Docker.
pub struct SetDriver {
    shared: Arc<Shared>,
    events: AbortHandle,
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
        let shared = Arc::new(Shared {
            engine: Engine::new(docker_socket, options.limits),
            images: Images::new(options.busybox),
            networks: Networks::default(),
            sightings: Sightings::default(),
            restarts: Restarts::default(),
            bell,
            state_dir: state_dir.into(),
            privileged_anchor: options.privileged_anchor,
            waking: Mutex::default(),
        });
        let events = tokio::spawn(events::follow(shared.clone())).abort_handle();
        Ok(Self { shared, events })
    }

    async fn start(&self, plan: &BodyPlan, set: &SetSpec) -> Result<(), DriverError> {
        let parts = self.shared.sightings.collect(&self.shared.engine, Some(plan.instance)).await?;
        if let Some(other) = parts.iter().find(|part| part.tag.epoch != plan.epoch) {
            return Err(DriverError::EngineRefused {
                engine: ENGINE,
                doing: format!("start instance {} at epoch {}", plan.instance, plan.epoch),
                message: format!("containers of its epoch {} are still there", other.tag.epoch),
            });
        }
        let mut members: Vec<&MemberSpec> = set.members.iter().collect();
        members.sort_by_key(|member| member.index);
        let names: Vec<String> = members.into_iter().map(MemberSpec::effective_name).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let record = |id: &str| self.shared.restarts.get(id);
        let steps = start::decide(&names, &parts, record, Timestamp::now().as_microsecond());
        for (id, until_us) in start::execute(&self.shared, plan, set, &steps).await? {
            self.shared.wake_at(id, until_us);
        }
        Ok(())
    }

    async fn parts(&self, instance: InstanceId) -> Result<Vec<Part>, DriverError> {
        let mut parts = self.shared.sightings.collect(&self.shared.engine, Some(instance)).await?;
        parts.sort_by_key(start_order);
        Ok(parts)
    }
}

impl Drop for SetDriver {
    fn drop(&mut self) {
        self.events.abort();
    }
}

impl Shared {
    /// Images loaded and named as Docker names them.
    pub async fn facts(&self, plan: &BodyPlan, set: &SetSpec) -> Result<Facts, DriverError> {
        let members = plan.body.images().iter().take(set.members.len()).map(async |image| {
            let cached = plan.images.get(&image.id).ok_or_else(|| DriverError::ImageBroken {
                image: image.id,
                message: "it is not in the host's cache".to_owned(),
            })?;
            self.images.ensure(&self.engine, cached).await
        });
        let (anchor_image, member_images) =
            try_join(self.images.ensure_anchor(&self.engine), try_join_all(members)).await?;
        Ok(Facts {
            anchor_image,
            privileged_anchor: self.privileged_anchor,
            member_images,
            config_drive: self.files(plan).config_drive(),
            authorized_keys: self.files(plan).authorized_keys(),
        })
    }

    pub fn files(&self, plan: &BodyPlan) -> SetFiles {
        SetFiles::new(&self.state_dir, plan)
    }

    /// Orderly within `grace`, then by force. Docker counts in whole seconds.
    pub async fn end(&self, id: &str, grace: Duration) -> Result<(), DriverError> {
        let seconds = grace.as_secs() + u64::from(grace.subsec_nanos() > 0);
        let options =
            StopContainerOptionsBuilder::default().t(i32::try_from(seconds).unwrap_or(i32::MAX)).build();
        let limit = self.engine.limits.start + grace;
        let doing = format!("stop container {id}");
        self.engine
            .find(&doing, limit, |docker| async move { docker.stop_container(id, Some(options)).await })
            .await?;
        Ok(())
    }

    async fn resume(&self, id: &str) -> Result<(), DriverError> {
        let doing = format!("resume container {id}");
        self.engine
            .call(&doing, self.engine.limits.call, |docker| async move { docker.unpause_container(id).await })
            .await
    }

    async fn pause(&self, id: &str) -> Result<(), DriverError> {
        let doing = format!("pause container {id}");
        self.engine
            .call(&doing, self.engine.limits.call, |docker| async move { docker.pause_container(id).await })
            .await
    }

    /// Rings the bell when a member may start again.
    fn wake_at(self: &Arc<Self>, id: String, until_us: i64) {
        let mut waking = self.waking.lock().unwrap_or_else(PoisonError::into_inner);
        if !waking.insert(id.clone()) {
            return;
        }
        let wait = until_us.saturating_sub(Timestamp::now().as_microsecond());
        let wait = Duration::from_micros(wait.try_into().unwrap_or(0));
        let shared = Arc::downgrade(self);
        tokio::spawn(async move {
            tokio::time::sleep(wait).await;
            if let Some(shared) = shared.upgrade() {
                shared.waking.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
                shared.bell.notify_one();
            }
        });
    }
}

#[async_trait]
impl BodyDriver for SetDriver {
    async fn probe(&self) -> Result<EngineFacts, DriverError> {
        let engine = &self.shared.engine;
        let version = engine
            .call("ask its version", engine.limits.ping, |docker| async move { docker.version().await })
            .await?;
        Ok(EngineFacts { version: version.version.unwrap_or_default() })
    }

    async fn observe(&self) -> Result<Vec<ObservedBody>, DriverError> {
        let parts = self.shared.sightings.collect(&self.shared.engine, None).await?;
        let ids: HashSet<&str> = parts.iter().map(|part| part.id.as_str()).collect();
        self.shared.restarts.keep(|id| ids.contains(id));
        Ok(assemble(&parts, &self.shared.restarts, Timestamp::now().as_microsecond()))
    }

    async fn prepare(&self, plan: &BodyPlan) -> Result<(), DriverError> {
        let set = set_of(plan)?;
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
        let alive: Vec<&Part> = parts.iter().rev().filter(|part| part.is_alive()).collect();
        for (at, part) in alive.iter().enumerate() {
            if part.state == PartState::Paused {
                self.shared.resume(&part.id).await?;
            }
            // What is left is shared among those that are left, so that one deaf member does not take it all.
            let left = u32::try_from(alive.len() - at).unwrap_or(1);
            self.shared.end(&part.id, end.saturating_duration_since(Instant::now()) / left).await?;
        }
        parts.iter().for_each(|part| self.shared.restarts.forget_failures(&part.id));
        Ok(())
    }

    async fn remove(&self, instance: InstanceId, epoch: u64) -> Result<(), DriverError> {
        let parts = self.parts(instance).await?;
        let (anchors, members): (Vec<&Part>, Vec<&Part>) =
            parts.iter().filter(|part| part.tag.epoch <= epoch).partition(|part| part.is_anchor());
        for parts in [members, anchors] {
            let removed = join_all(parts.iter().map(|part| start::remove(&self.shared, &part.id))).await;
            removed.into_iter().collect::<Result<(), _>>()?;
        }
        folders::remove(&self.shared.state_dir, instance, BodyKind::Set, epoch).await?;
        self.shared.networks.sweep(&self.shared.engine).await
    }

    async fn console_log(
        &self,
        instance: InstanceId,
        member: Option<&str>,
        lines: u32,
    ) -> Result<String, DriverError> {
        let parts = self.parts(instance).await?;
        let wanted = parts.iter().rfind(|part| match (&part.tag.role, member) {
            (Role::Member { name, .. }, Some(member)) => name == member,
            _ => false,
        });
        let newest = parts.last().map(|part| part.tag.epoch);
        let first = parts.iter().find(|part| !part.is_anchor() && Some(part.tag.epoch) == newest);
        let Some(part) = wanted.or(first.filter(|_| member.is_none())) else {
            return Err(DriverError::EngineRefused {
                engine: ENGINE,
                doing: format!(
                    "read the output of member {} of instance {instance}",
                    member.unwrap_or("(first)")
                ),
                message: "there is no such container".to_owned(),
            });
        };
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
            Adjustment::Pause | Adjustment::Resume => self.parts(instance).await?,
        };
        let mut members: Vec<&Part> = parts.iter().filter(|part| !part.is_anchor()).collect();
        if adjustment == Adjustment::Pause {
            members.reverse();
        }
        for part in members {
            match (adjustment, part.state) {
                (Adjustment::Pause, PartState::Running) => self.shared.pause(&part.id).await?,
                (Adjustment::Resume, PartState::Paused) => self.shared.resume(&part.id).await?,
                _ => {}
            }
        }
        Ok(())
    }
}

/// The anchor first, then members by index; older epochs before newer.
fn start_order(part: &Part) -> (u64, Option<u32>) {
    let index = match part.tag.role {
        Role::Anchor { .. } => None,
        Role::Member { index, .. } => Some(index),
    };
    (part.tag.epoch, index)
}

fn set_of(plan: &BodyPlan) -> Result<&SetSpec, DriverError> {
    match &plan.body {
        BodyDesired::Set { set, .. } => Ok(set),
        BodyDesired::Vm { .. } => Err(DriverError::EngineRefused {
            engine: ENGINE,
            doing: format!("make instance {}", plan.instance),
            message: "its body is a VM".to_owned(),
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
