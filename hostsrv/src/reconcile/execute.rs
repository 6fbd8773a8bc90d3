//! Carries out the steps of one item, in order, and remembers how it went. The only place where images, volumes, ports
//! and bodies meet: each driver is handed plain values made by the others.

use super::Reconciler;
use super::memory::{Memory, Order};
use super::plan::{Item, Step};
use crate::instance::{
    Adjustment, BodyDriver, BodyPlan, DriverError, ObservedBody, PortAttachment, VolumeAttachment,
};
use crate::storage::{Attach, BinOrder, Filesystem, Pause, Quiesce, StorageError, VolumeSpec};
use amphi_api::instance::BodyKind;
use amphi_api::wire::{BodyDesired, HostDesired, InstanceDesired, VolumeSource};
use amphi_api::{InstanceId, VolumeId};
use async_trait::async_trait;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use tokio::time::Instant;

/// Why an item is not as ordered.
#[derive(Debug, thiserror::Error)]
enum WorkError {
    #[error(transparent)]
    Driver(#[from] DriverError),
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error(transparent)]
    Ledger(#[from] super::ledger::LedgerError),
    #[error(
        "the bytes of {0} are not on this host any more. It was made here once, so it is not made anew: restore the volume group or delete the volume"
    )]
    Missing(String),
    #[error("no driver for bodies of kind {0}")]
    NoDriver(BodyKind),
}

impl WorkError {
    fn code(&self) -> &'static str {
        match self {
            Self::Driver(error) => error.code(),
            Self::Storage(
                StorageError::Full { .. }
                | StorageError::NoContiguousRoom { .. }
                | StorageError::NoRoomBehind { .. },
            ) => "volume_group_full",
            Self::Storage(StorageError::Busy { .. }) => "volume_busy",
            Self::Storage(_) => "volume_failed",
            Self::Missing(_) => "volume_missing",
            Self::Ledger(_) | Self::NoDriver(_) => "internal",
        }
    }
}

/// Digest of all that is ordered of an item.
pub fn order_of(item: Item, desired: &HostDesired) -> Order {
    let mut text = String::new();
    let volume = |id| desired.volumes.iter().find(|v| v.id == id);
    match item {
        Item::Instance(id) => {
            let instance = desired.instances.iter().find(|i| i.id == id);
            text = format!("{instance:?} {:?}", instance.and_then(|i| i.volume).and_then(volume));
        }
        Item::Volume(id) => text.push_str(&format!("{:?}", volume(id))),
        Item::Snapshot(id) => text.push_str(&format!("{:?}", desired.snapshots.iter().find(|s| s.id == id))),
    }
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

/// Whether a body here may still use the volume: that of an instance that is being removed, for example.
pub fn volume_in_use(desired: &HostDesired, bodies: &[ObservedBody], id: VolumeId) -> bool {
    let user = desired.instances.iter().find(|i| i.volume == Some(id));
    user.is_some_and(|user| bodies.iter().any(|b| b.instance == user.id))
}

impl Reconciler {
    /// Runs an item's steps and rings the bell. Never fails: what went wrong is the item's fault.
    pub(super) async fn work(self: Arc<Self>, item: Item, steps: Vec<Step>, desired: &HostDesired) {
        let mut failure = None;
        for step in &steps {
            tracing::debug!(target: "reconcile", ?item, ?step, "begins");
            let began = Instant::now();
            match self.carry_out(item, step, desired).await {
                Ok(()) => {
                    let ms = began.elapsed().as_millis() as u64;
                    tracing::info!(target: "reconcile", ?item, ?step, ms, "done");
                }
                Err(error) if *step == Step::PrepareNext => {
                    // The present body is well: only the exchange that asked for this is in trouble.
                    tracing::warn!(target: "reconcile", ?item, %error, "the next body cannot be made ready");
                    let mut memory = self.memory();
                    let held = memory.entry(item).or_default();
                    held.next_fault =
                        Some(Memory::fault_since(held.next_fault.take(), error.code(), error.to_string()));
                }
                Err(error) => {
                    tracing::warn!(target: "reconcile", ?item, ?step, %error, "failed");
                    failure = Some(error);
                    break;
                }
            }
        }
        {
            let mut memory = self.memory();
            let held = memory.entry(item).or_default();
            match failure {
                None if held.next_fault.is_some() => {
                    let fault = held.next_fault.clone();
                    held.failed("next", String::new(), Instant::now());
                    held.fault = None;
                    held.next_fault = fault;
                }
                None => held.succeeded(Instant::now()),
                Some(error) => held.failed(error.code(), error.to_string(), Instant::now()),
            }
        }
        self.ended.fetch_add(1, std::sync::atomic::Ordering::AcqRel);
        self.bell.notify_one();
    }

    async fn carry_out(&self, item: Item, step: &Step, desired: &HostDesired) -> Result<(), WorkError> {
        let instance = match item {
            Item::Instance(id) => desired.instances.iter().find(|i| i.id == id),
            _ => None,
        };
        match (step, item, instance) {
            (Step::PrepareNext, _, Some(instance)) => {
                let Some(next) = &instance.next_body else { return Ok(()) };
                self.prepare(instance, next, instance.epoch + 1).await?;
                let mut memory = self.memory();
                let held = memory.entry(item).or_default();
                held.prepared = Some((next.kind(), instance.epoch));
                held.next_fault = None;
                Ok(())
            }
            (Step::PrepareDesired, _, Some(instance)) => {
                self.prepare(instance, &instance.body, instance.epoch).await
            }
            (Step::Stop { kind, grace }, Item::Instance(id), _) => {
                if instance.is_some_and(|i| i.body.kind() != *kind) {
                    self.memory().entry(item).or_default().switching_since.get_or_insert_with(Instant::now);
                }
                Ok(self.body_driver(*kind)?.stop(id, *grace).await?)
            }
            (Step::Remove { kind, epoch }, Item::Instance(id), _) => {
                self.body_driver(*kind)?.remove(id, *epoch).await?;
                let mut ledger = self.ledger();
                let mut begun = ledger.begun(id);
                begun.kinds.retain(|k| k != kind);
                if begun.kinds.is_empty() && instance.is_none() {
                    begun = Default::default();
                }
                Ok(ledger.note(id, begun)?)
            }
            (Step::Ensure, _, Some(instance)) => self.ensure(item, instance).await,
            (Step::NoteRestarts { restarts }, Item::Instance(id), _) => {
                let mut ledger = self.ledger();
                let begun = super::ledger::Begun { restarts: *restarts, ..ledger.begun(id) };
                Ok(ledger.note(id, begun)?)
            }
            (Step::EnsureVolume { volume }, ..) => self.ensure_volume(desired, *volume).await,
            (Step::TellGrown { kind, volume }, Item::Instance(id), _) => {
                let bytes = desired.volumes.iter().find(|v| v.id == *volume).map_or(0, |v| v.size_bytes);
                Ok(self.body_driver(*kind)?.adjust(id, Adjustment::VolumeGrown { bytes }).await?)
            }
            (Step::DetachVolume { volume }, ..) => Ok(self.drivers.volumes.detach(volume.0).await?),
            (Step::Trash { volume }, ..) => {
                let order = desired.volumes.iter().find(|v| v.id == *volume).and_then(|v| v.trashed_at);
                let Some(at) = order else { return Ok(()) };
                Ok(self.drivers.volumes.set_bin(volume.0, BinOrder::Trash { at: at.as_second() }).await?)
            }
            (Step::Restore { volume }, ..) => {
                Ok(self.drivers.volumes.set_bin(volume.0, BinOrder::Restore).await?)
            }
            (Step::Purge { id }, ..) => Ok(self.drivers.volumes.set_bin(*id, BinOrder::Purge).await?),
            (Step::TakeSnapshot, Item::Snapshot(id), _) => self.take_snapshot(desired, id).await,
            // The planner makes no other pairs; one that it did make would have nothing to act on.
            _ => Ok(()),
        }
    }

    fn body_driver(&self, kind: BodyKind) -> Result<&Arc<dyn BodyDriver>, WorkError> {
        self.drivers.bodies.get(&kind).ok_or(WorkError::NoDriver(kind))
    }

    async fn prepare(
        &self,
        instance: &InstanceDesired,
        body: &BodyDesired,
        epoch: u64,
    ) -> Result<(), WorkError> {
        let mut plan = self.resolve(instance, body, epoch).await?;
        plan.volume = None;
        Ok(self.body_driver(body.kind())?.prepare(&plan).await?)
    }

    async fn ensure(&self, item: Item, instance: &InstanceDesired) -> Result<(), WorkError> {
        let kind = instance.body.kind();
        let driver = self.body_driver(kind)?.clone();
        let (plan, volume) = tokio::try_join!(
            self.resolve(instance, &instance.body, instance.epoch),
            self.attach(instance, kind)
        )?;
        let plan = BodyPlan { volume, ..plan };
        {
            // On disk before the engine hears of it: should the engine fall silent, the body still counts.
            let mut ledger = self.ledger();
            let mut begun = ledger.begun(instance.id);
            if !begun.kinds.contains(&kind) {
                begun.kinds.push(kind);
            }
            ledger.note(instance.id, begun)?;
        }
        driver.ensure(&plan).await?;
        let mut memory = self.memory();
        let held = memory.entry(item).or_default();
        if let Some(since) = held.switching_since.take() {
            held.switched = Some((instance.epoch, since.elapsed().as_millis() as u64));
        }
        Ok(())
    }

    async fn attach(
        &self,
        instance: &InstanceDesired,
        kind: BodyKind,
    ) -> Result<Option<VolumeAttachment>, WorkError> {
        let Some(id) = instance.volume else { return Ok(None) };
        let how = match kind {
            BodyKind::Set => Attach::Mounted,
            BodyKind::Vm => Attach::Device,
        };
        let attached = self.drivers.volumes.attach(id.0, how).await?;
        Ok(Some(VolumeAttachment { id, device: attached.device, mount: attached.mount }))
    }

    /// The plan of a body, with its images in the cache and no volume yet.
    async fn resolve(
        &self,
        instance: &InstanceDesired,
        body: &BodyDesired,
        epoch: u64,
    ) -> Result<BodyPlan, WorkError> {
        let fetches = body.images().iter().map(|image| self.drivers.images.ensure(image));
        let images = futures_util::future::try_join_all(fetches).await?;
        Ok(BodyPlan {
            instance: instance.id,
            project: instance.project,
            name: instance.name.clone(),
            epoch,
            vcpus: instance.vcpus,
            memory_mib: instance.memory_mib,
            body: body.clone(),
            ports: instance
                .ports
                .iter()
                .map(|p| PortAttachment {
                    id: p.id,
                    network: p.network,
                    subnet: p.subnet,
                    mac: p.mac.clone(),
                    address: p.address,
                    gateway: p.gateway,
                    dns: p.dns.clone(),
                    mtu: p.mtu,
                    segment: p.segment,
                    further: p.further.clone(),
                    routes: p.routes.clone(),
                })
                .collect(),
            volume: None,
            images: images.into_iter().map(|i| (i.image.id, i)).collect(),
            user_data: instance.user_data.clone(),
            ssh_keys: instance.ssh_keys.clone(),
            metadata: instance.metadata.clone(),
        })
    }

    async fn ensure_volume(&self, desired: &HostDesired, id: VolumeId) -> Result<(), WorkError> {
        let Some(order) = desired.volumes.iter().find(|v| v.id == id) else { return Ok(()) };
        if order.made && !self.drivers.volumes.observe().await?.iter().any(|v| v.id == id.0) {
            return Err(WorkError::Missing(format!("volume {id}")));
        }
        let spec = VolumeSpec {
            id: id.0,
            size_bytes: order.size_bytes,
            fs: Some(Filesystem::Xfs),
            source: order.source.as_ref().and_then(copied),
        };
        Ok(self.drivers.volumes.ensure(&spec).await?)
    }

    async fn take_snapshot(&self, desired: &HostDesired, id: amphi_api::SnapshotId) -> Result<(), WorkError> {
        let Some(order) = desired.snapshots.iter().find(|s| s.id == id) else { return Ok(()) };
        // A set's volume is mounted here and frozen by the driver; a VM writes through the device and is paused.
        let user = desired.instances.iter().find(|i| i.volume == Some(order.volume));
        let quiesce = match user {
            Some(user) if user.body.kind() == BodyKind::Vm => Quiesce::Guest(Arc::new(PauseGuest {
                driver: self.body_driver(BodyKind::Vm)?.clone(),
                instance: user.id,
            })),
            _ => Quiesce::Filesystem,
        };
        Ok(self.drivers.volumes.snapshot(order.volume.0, id.0, &quiesce).await?)
    }
}

/// The copy that the volume driver makes; an image's bytes come from the cache.
fn copied(source: &VolumeSource) -> Option<uuid::Uuid> {
    match source {
        VolumeSource::Snapshot(id) => Some(id.0),
        VolumeSource::Volume(id) => Some(id.0),
        VolumeSource::Image(_) => None,
    }
}

struct PauseGuest {
    driver: Arc<dyn BodyDriver>,
    instance: InstanceId,
}

#[async_trait]
impl Pause for PauseGuest {
    async fn pause(&self) -> Result<(), String> {
        self.driver.adjust(self.instance, Adjustment::Pause).await.map_err(|e| e.to_string())
    }

    async fn resume(&self) -> Result<(), String> {
        self.driver.adjust(self.instance, Adjustment::Resume).await.map_err(|e| e.to_string())
    }
}
