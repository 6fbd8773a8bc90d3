//! What the driver's calls and its tasks share: the parts of this module, and which containers are held still or waited for.
//! Refuses to decide which of them should run.

use super::ENGINE;
use super::engine::Engine;
use super::files::SetFiles;
use super::images::Images;
use super::member::ZONES;
use super::networks::Networks;
use super::observed::{Part, PartState, Sightings};
use super::orphans::Orphans;
use super::parts::Parts;
use super::render::Facts;
use super::restarts::Restarts;
use super::roots::Roots;
use super::swap::Sight;
use super::volumes::Places;
use crate::health::Health;
use crate::instance::{Bell, BodyPlan, DriverError, PortAttachment, PortGate};
use amphi_api::InstanceId;
use amphi_api::set::SetSpec;
use bollard::query_parameters::StopContainerOptionsBuilder;
use futures_util::future::{join_all, try_join, try_join_all};
use jiff::Timestamp;
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Semaphore;

/// How often, and how many times more, it is tried to remove a network that Docker takes for used.
const SWEEP_AGAIN: Duration = Duration::from_millis(500);
const SWEEPS: u32 = 20;

/// What the driver's calls and its tasks share.
pub struct Shared {
    pub engine: Engine,
    pub images: Images,
    pub networks: Networks,
    pub orphans: Orphans,
    pub sightings: Sightings,
    pub restarts: Restarts,
    pub roots: Roots,
    pub bell: Bell,
    pub places: Places,
    pub parts: Parts,
    pub health: Arc<Health>,
    pub state_dir: PathBuf,
    pub privileged_anchor: bool,
    pub gate: Option<Arc<dyn PortGate>>,
    /// Containers that are held still for a moment: to be taken for running, and let be.
    pub still: Mutex<HashSet<String>>,
    /// Sets that were made beforehand and have been started as they were, by epoch: what did not start so is made anew.
    pub woken: Mutex<HashMap<InstanceId, u64>>,
    /// Sets that are started side by side; the others wait their turn, in the order in which they came.
    pub starts: Semaphore,
    /// Containers for which the bell is already set to ring.
    pub waking: Mutex<HashSet<String>>,
}

/// A container that is held still, for as long as this lives.
pub struct Still<'a> {
    shared: &'a Shared,
    id: String,
}

impl Drop for Still<'_> {
    fn drop(&mut self) {
        self.shared.still.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}

impl Sight for Shared {
    fn is_ready(&self, part: &Part) -> bool {
        self.outlook(part).ready == Some(true)
    }

    fn is_broken(&self, part: &Part) -> bool {
        part.state == PartState::Created && self.outlook(part).reason.is_some()
    }
}

impl Shared {
    pub fn keep_still(&self, id: &str) -> Still<'_> {
        self.still.lock().unwrap_or_else(PoisonError::into_inner).insert(id.to_owned());
        Still { shared: self, id: id.to_owned() }
    }

    /// All parts of one instance, or of all.
    pub async fn collect(&self, instance: Option<InstanceId>) -> Result<Vec<Part>, DriverError> {
        let mut parts = self.sightings.collect(&self.engine, instance).await?;
        let still = self.still.lock().unwrap_or_else(PoisonError::into_inner);
        for part in parts.iter_mut().filter(|part| still.contains(&part.id)) {
            if part.state == PartState::Paused {
                part.state = PartState::Running;
            }
        }
        Ok(parts)
    }

    /// All that a rendering depends on, images loaded and named as Docker names them.
    pub async fn facts(&self, plan: &BodyPlan, set: &SetSpec) -> Result<Facts, DriverError> {
        let (facts, member_images) =
            try_join(self.anchor_facts(plan, set), self.member_images(plan, set)).await?;
        Ok(Facts { member_images, ..facts })
    }

    /// The members' images, parallel to the set's members, loaded and named as Docker names them.
    pub async fn member_images(&self, plan: &BodyPlan, set: &SetSpec) -> Result<Vec<String>, DriverError> {
        let members = plan.runs().images().iter().take(set.members.len()).map(async |image| {
            let cached = plan.images.get(&image.id).ok_or_else(|| DriverError::ImageBroken {
                image: image.id,
                message: "it is not in the host's cache".to_owned(),
            })?;
            self.images.ensure(&self.engine, cached).await
        });
        try_join_all(members).await
    }

    /// What a rendering of the anchor depends on: no member's image is waited for, and no member can be rendered with it.
    pub async fn anchor_facts(&self, plan: &BodyPlan, set: &SetSpec) -> Result<Facts, DriverError> {
        if let Some(zone) = &set.anchor.timezone
            && !Path::new(ZONES).join(zone).is_file()
        {
            return Err(DriverError::EngineRefused {
                engine: ENGINE,
                doing: format!("make instance {}", plan.instance),
                message: format!("this host's {ZONES} has no time zone '{zone}'"),
            });
        }
        Ok(Facts {
            anchor_image: self.images.ensure_anchor(&self.engine).await?,
            privileged_anchor: self.privileged_anchor,
            member_images: Vec::new(),
            config_drive: self.files(plan).config_drive(),
            authorized_keys: self.files(plan).authorized_keys(),
            resolv_conf: self.files(plan).resolv_conf(),
            volumes: self.places.of(plan.instance),
            files: self.files(plan).members(),
            parts: self.parts.of(plan.instance),
        })
    }

    pub fn files(&self, plan: &BodyPlan) -> SetFiles {
        SetFiles::new(&self.state_dir, plan)
    }

    /// Returns when every port passes traffic, or the gate has waited long enough.
    pub async fn pass(&self, ports: &[PortAttachment]) {
        if let Some(gate) = &self.gate {
            join_all(ports.iter().map(|port| gate.opened(port.id))).await;
            ports.iter().for_each(|port| gate.announce(port));
        }
    }

    /// Removes networks that nobody names; what Docker does not let go of yet goes a little later.
    pub async fn sweep_networks(self: &Arc<Self>) -> Result<(), DriverError> {
        if !self.networks.sweep(&self.engine).await? {
            return Ok(());
        }
        let shared = Arc::downgrade(self);
        tokio::spawn(async move {
            for _ in 0..SWEEPS {
                tokio::time::sleep(SWEEP_AGAIN).await;
                let Some(shared) = shared.upgrade() else { return };
                match shared.networks.sweep(&shared.engine).await {
                    Ok(false) => return,
                    Ok(true) => {}
                    Err(error) => tracing::debug!(%error, "networks that nobody names are left"),
                }
            }
            tracing::warn!(
                "Docker does not let go of a network that nobody names; the next removal tries again"
            );
        });
        Ok(())
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

    pub async fn resume(&self, id: &str) -> Result<(), DriverError> {
        let doing = format!("resume container {id}");
        self.engine
            .call(&doing, self.engine.limits.call, |docker| async move { docker.unpause_container(id).await })
            .await
    }

    pub async fn pause(&self, id: &str) -> Result<(), DriverError> {
        let doing = format!("pause container {id}");
        self.engine
            .call(&doing, self.engine.limits.call, |docker| async move { docker.pause_container(id).await })
            .await
    }

    /// Rings the bell when a member may start again.
    pub fn wake_at(self: &Arc<Self>, id: String, until_us: i64) {
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
