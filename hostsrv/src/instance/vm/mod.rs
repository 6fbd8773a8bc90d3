//! Owns bodies of kind VM: persistent libvirt domains `amphi-<instance>` that never start by themselves, each with its
//! epoch in its metadata and its files in `instances/<instance>/vm-<epoch>/`.
//!
//! A domain is absent, then defined and shut off, then running, perhaps paused, then shut off again, then absent.
//! libvirt alone remembers which; this module keeps nothing that a fresh process would miss, but for one thing: which
//! guests this process holds still for a snapshot. After a restart such a guest is resumed by the next `ensure`.
//! Refuses to start a body beside one of another epoch, and to touch domains that are not named as ours.

mod domain;
mod drive_image;
mod events;
mod files;
mod image_check;
mod link;
mod markup;
pub mod probe;
#[cfg(test)]
pub(super) mod sample;
mod sight;
mod xml;

use super::{Adjustment, Bell, BodyDriver, BodyPlan, DriverError, EngineFacts, ObservedBody, folders};
use amphi_api::InstanceId;
use amphi_api::host::Acceleration;
use amphi_api::instance::BodyKind;
use amphi_api::wire::BodyDesired;
use async_trait::async_trait;
use domain::{EpochCache, condition, lookup, press, read_epoch, resume, sweep, undefine, unless_gone};
use files::BodyFiles;
use link::{ENGINE, Link};
use sight::{Condition, Way};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;
use virt::connect::Connect;
use virt::domain::Domain;
use virt_sys as sys;

/// For calls that only read.
const LOOK: Duration = Duration::from_secs(10);
/// For calls that change a domain. libvirt itself waits up to 30 s for a domain's job lock (QEMU_JOB_WAIT_TIME).
const CHANGE: Duration = Duration::from_secs(40);
/// For a start: QEMU, its devices, the switch's ports.
const START: Duration = Duration::from_secs(60);
/// A guest that is still booting misses the power button: it is pressed again this often.
const PRESS_AGAIN: Duration = Duration::from_secs(2);

/// VMs through libvirt.
pub struct VmDriver {
    link: Link,
    state_dir: PathBuf,
    integration_bridge: String,
    acceleration: Acceleration,
    /// Epochs by domain. A domain's epoch changes only by definition, which happens here or rings.
    epochs: Arc<Mutex<EpochCache>>,
    held: Mutex<BTreeSet<InstanceId>>,
}

impl VmDriver {
    /// Connects in the background and for as long as the driver lives; a libvirtd that is down fails calls, not this.
    /// `uri` as libvirt takes it (`qemu:///system`). The bell rings when a domain of ours changes by itself and when
    /// libvirtd comes back. Needs a tokio runtime only for its calls.
    pub fn new(
        uri: impl Into<String>,
        state_dir: impl Into<PathBuf>,
        integration_bridge: impl Into<String>,
        acceleration: Acceleration,
        bell: Bell,
    ) -> Self {
        Self {
            link: Link::new(uri.into(), bell),
            state_dir: state_dir.into(),
            integration_bridge: integration_bridge.into(),
            acceleration,
            epochs: Arc::default(),
            held: Mutex::default(),
        }
    }

    async fn find(&self, instance: InstanceId, doing: &str) -> Result<Option<(u64, Condition)>, DriverError> {
        let find = move |c: &Connect| {
            let Some(domain) = lookup(c, instance)? else { return Ok(None) };
            unless_gone((|| Ok((read_epoch(&domain)?, condition(&domain)?)))())
        };
        self.link.call(doing, LOOK, find).await
    }

    /// Files and XML for a plan; everything but the domain.
    async fn make_ready(&self, plan: &BodyPlan) -> Result<String, DriverError> {
        let files = BodyFiles::new(&self.state_dir, plan.instance, plan.epoch);
        files::ensure(&files, plan).await?;
        let own_disk = matches!(&plan.body, BodyDesired::Vm { image, .. }
            if image.format != amphi_api::image::ImageFormat::KernelInitramfs);
        let device = plan.volume.as_ref().map(|volume| volume.device.clone());
        let look = tokio::task::spawn_blocking(move || {
            device.map_or(xml::VolumeIo { block: true, direct: true }, |device| files::volume_io(&device))
        });
        let volume_io = look.await.map_err(|e| DriverError::Io {
            doing: "look at the volume's device".into(),
            source: std::io::Error::other(e),
        })?;
        xml::domain(
            plan,
            &xml::Surroundings {
                acceleration: self.acceleration,
                integration_bridge: &self.integration_bridge,
                root: own_disk.then(|| files.root()),
                config_drive: files.config_drive(),
                console_log: files.console_log(),
                volume_io,
            },
        )
    }

    /// After a definition of ours: its event may come later than the next sweep.
    fn forget_epochs(&self) {
        self.epochs.lock().unwrap_or_else(PoisonError::into_inner).epochs.clear();
    }

    fn holds(&self, instance: InstanceId) -> bool {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).contains(&instance)
    }

    fn hold(&self, instance: InstanceId, still: bool) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if still {
            held.insert(instance)
        } else {
            held.remove(&instance)
        };
    }
}

#[async_trait]
impl BodyDriver for VmDriver {
    async fn probe(&self) -> Result<EngineFacts, DriverError> {
        let versions = |c: &Connect| Ok((c.get_lib_version()?, c.get_hyp_version()?));
        let (libvirt, qemu) = self.link.call("ask for its version", LOOK, versions).await?;
        Ok(EngineFacts { version: format!("{} (QEMU {})", version(libvirt), version(qemu)) })
    }

    async fn observe(&self) -> Result<Vec<ObservedBody>, DriverError> {
        let change = *self.link.changes().borrow();
        let cache = self.epochs.clone();
        let found = self.link.call("list its VMs", LOOK, move |c| sweep(c, &cache, change)).await?;
        Ok(found
            .into_iter()
            .map(|found| {
                let (state, trouble) = sight::observed(found.condition);
                ObservedBody {
                    instance: found.instance,
                    kind: BodyKind::Vm,
                    epoch: found.epoch,
                    state,
                    members: Vec::new(),
                    trouble,
                }
            })
            .collect())
    }

    /// Checks the definition by having libvirt translate it into a QEMU command line: defining it would replace the
    /// persistent definition of a running body of an older epoch, which has the same name and UUID.
    async fn prepare(&self, plan: &BodyPlan) -> Result<(), DriverError> {
        let xml = self.make_ready(plan).await?;
        let doing = format!("check the definition of the VM of {}", plan.instance);
        let check = move |c: &Connect| c.domain_xml_to_native("qemu-argv", &xml, 0).map(drop);
        self.link.call(&doing, CHANGE, check).await
    }

    async fn ensure(&self, plan: &BodyPlan) -> Result<(), DriverError> {
        let instance = plan.instance;
        let doing = format!("start the VM of {instance}");
        let found = self.find(instance, &doing).await?;
        match sight::way(found, plan.epoch, self.holds(instance)) {
            Way::Nothing => return Ok(()),
            Way::Stale { newer } => {
                return Err(DriverError::EngineRefused {
                    engine: ENGINE,
                    doing,
                    message: format!("a body of epoch {newer} is here, epoch {} is over", plan.epoch),
                });
            }
            Way::Resume => {
                let resume = move |c: &Connect| lookup(c, instance)?.map_or(Ok(()), |d| resume(&d));
                return self.link.call(&doing, CHANGE, resume).await;
            }
            Way::Replace { older } => self.remove(instance, older).await?,
            Way::Make => {}
        }
        let xml = self.make_ready(plan).await?;
        let start = move |c: &Connect| {
            // Anew each time: this heals a definition that was left half made or with another host's paths.
            let domain = Domain::define_xml(c, &xml)?;
            domain.set_autostart(false)?;
            match domain.create() {
                Err(_) if domain.is_active()? => Ok(()),
                other => other.map(drop),
            }
        };
        let started = self.link.call(&doing, START, start).await;
        self.forget_epochs();
        started
    }

    async fn stop(&self, instance: InstanceId, grace: Duration) -> Result<(), DriverError> {
        let doing = format!("stop the VM of {instance}");
        let deadline = Instant::now() + grace;
        let mut changes = self.link.changes();
        self.hold(instance, false);
        loop {
            // Marked before looking, so that a change after the look ends the wait below at once.
            changes.mark_unchanged();
            let left = deadline.saturating_duration_since(Instant::now());
            let force = left.is_zero();
            let off = self.link.call(&doing, CHANGE, move |c| press(c, instance, force)).await?;
            if off {
                return Ok(());
            }
            let again = Instant::now() + PRESS_AGAIN.min(left);
            while Instant::now() < again {
                let Ok(Ok(())) = tokio::time::timeout_at(again, changes.changed()).await else { break };
                let now = self.find(instance, &doing).await?;
                if !now.is_some_and(|(_, condition)| condition.active()) {
                    return Ok(());
                }
            }
        }
    }

    async fn remove(&self, instance: InstanceId, epoch: u64) -> Result<(), DriverError> {
        let doing = format!("remove the VM of {instance}");
        let gone = self.link.call(&doing, CHANGE, move |c| undefine(c, instance, epoch)).await;
        self.forget_epochs();
        gone?;
        self.hold(instance, false);
        folders::remove(&self.state_dir, instance, BodyKind::Vm, epoch).await
    }

    async fn console_log(
        &self,
        instance: InstanceId,
        _member: Option<&str>,
        lines: u32,
    ) -> Result<String, DriverError> {
        files::console_tail(&self.state_dir, instance, lines).await
    }

    async fn adjust(&self, instance: InstanceId, adjustment: Adjustment) -> Result<(), DriverError> {
        let doing = match adjustment {
            Adjustment::VolumeGrown { bytes } => format!("grow the volume of {instance} to {bytes} bytes"),
            Adjustment::Pause => format!("hold the VM of {instance} still"),
            Adjustment::Resume => format!("resume the VM of {instance}"),
        };
        if adjustment == Adjustment::Pause {
            self.hold(instance, true);
        }
        let adjust = move |c: &Connect| {
            // A VM that does not run has nothing to be told.
            let Some(domain) = lookup(c, instance)? else { return Ok(()) };
            let condition = condition(&domain)?;
            if !condition.active() {
                return Ok(());
            }
            match adjustment {
                Adjustment::VolumeGrown { bytes } => {
                    domain.block_resize(xml::VOLUME_DISK, bytes, sys::VIR_DOMAIN_BLOCK_RESIZE_BYTES).map(drop)
                }
                Adjustment::Pause if condition.paused() => Ok(()),
                Adjustment::Pause => domain.suspend().map(drop),
                Adjustment::Resume => resume(&domain),
            }
        };
        let done = self.link.call(&doing, CHANGE, adjust).await;
        if adjustment == Adjustment::Resume {
            self.hold(instance, false);
        }
        done
    }
}

/// libvirt's way to pack a version: 1,000,000 major + 1,000 minor + release.
fn version(packed: u32) -> String {
    format!("{}.{}.{}", packed / 1_000_000, packed / 1_000 % 1_000, packed % 1_000)
}
