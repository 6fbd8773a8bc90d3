//! Carries out the steps of one item, in order, and remembers how it went. The only place where images, volumes, ports
//! and bodies meet: each driver is handed plain values made by the others.

use super::Reconciler;
use super::exports::ExportError;
use super::memory::{Memory, Order};
use super::plan::{self, Item, Step};
use crate::convert::ConvertError;
use crate::crossing::PassError;
use crate::instance::{
    Adjustment, BodyDriver, BodyPlan, DriverError, ExtraVolume, ObservedBody, ObservedState, PortAttachment,
    VolumeAttachment,
};
use crate::qemu_img::DiskFormat;
use crate::storage::{Attach, BinOrder, StorageError};
use amphi_api::image::Image;
use amphi_api::instance::BodyKind;
use amphi_api::wire::{BodyDesired, HostDesired, InstanceDesired};
use amphi_api::{ImageId, InstanceId, VolumeId};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;
use std::sync::Arc;
use tokio::time::Instant;

/// Why an item is not as ordered.
#[derive(Debug, thiserror::Error)]
pub enum WorkError {
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
    #[error(transparent)]
    Export(#[from] ExportError),
    #[error("there is no instance {0} on this host")]
    NoInstance(InstanceId),
    #[error("image {image} cannot be written to a volume: {message}")]
    NoDisk { image: ImageId, message: String },
    #[error("no body may be started here: {0}")]
    NoLease(String),
    #[error(transparent)]
    Pass(#[from] PassError),
    #[error("cannot read {0}")]
    Unreadable(String),
    #[error(transparent)]
    Convert(#[from] ConvertError),
}

impl WorkError {
    /// The stable word for machines.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Driver(error) => error.code(),
            Self::Storage(
                StorageError::Full { .. }
                | StorageError::NoContiguousRoom { .. }
                | StorageError::NoRoomBehind { .. },
            ) => "volume_group_full",
            Self::Storage(StorageError::Busy { .. }) => "volume_busy",
            Self::Storage(_) => "volume_failed",
            Self::Convert(error) => error.code(),
            Self::Missing(_) => "volume_missing",
            Self::Export(ExportError::Refused(_)) => "upload_failed",
            Self::NoInstance(_) => "not_here",
            Self::NoDisk { .. } => "image_broken",
            Self::NoLease(_) => "no_lease",
            Self::Pass(PassError::Differ(_)) => "bytes_differ",
            Self::Pass(PassError::Broken(_)) => "copy_failed",
            Self::Unreadable(_) => "volume_failed",
            Self::Ledger(_) | Self::NoDriver(_) | Self::Export(ExportError::Io { .. }) => "internal",
        }
    }
}

/// Digest of all that is ordered of an item.
pub fn order_of(item: Item, desired: &HostDesired) -> Order {
    let mut text = String::new();
    let volume = |id| desired.volumes.iter().find(|v| v.id == id);
    match item {
        Item::Instance(id) => {
            let instance = desired.instances.iter().chain(&desired.expected).find(|i| i.id == id);
            let volumes: Vec<_> = instance.map(plan::volumes_of).unwrap_or_default();
            let volumes: Vec<_> = volumes.into_iter().filter_map(volume).collect();
            text = format!("{instance:?} {volumes:?}");
        }
        Item::Bytes(id) => {
            let order = desired.instances.iter().find(|i| i.id == id).map(|i| &i.copying);
            text = format!("{order:?}");
        }
        Item::Volume(id) => text.push_str(&format!("{:?}", volume(id))),
        Item::Snapshot(id) => text.push_str(&format!("{:?}", desired.snapshots.iter().find(|s| s.id == id))),
        Item::Export(id) => text.push_str(&format!("{:?}", desired.exports.iter().find(|e| e.image == id))),
    }
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

/// Whether a body here may still use the volume: that of an instance that is being removed, for example.
pub fn volume_in_use(desired: &HostDesired, bodies: &[ObservedBody], id: VolumeId) -> bool {
    let user = user_of(desired, id);
    // Its bytes are coming, or about to.
    let awaits = |i: &InstanceDesired| {
        i.arriving_from.or(i.copied_from).is_some() && plan::volumes_of(i).contains(&id)
    };
    if desired.expected.iter().any(awaits) {
        return true;
    }
    bodies.iter().any(|b| b.volumes.contains(&id) || user.is_some_and(|user| b.instance == user.id))
}

/// The instance that should have the volume in its hands.
pub(super) fn user_of(desired: &HostDesired, id: VolumeId) -> Option<&InstanceDesired> {
    desired.instances.iter().find(|i| plan::volumes_of(i).contains(&id))
}

impl Reconciler {
    /// Runs an item's steps and rings the bell. Never fails: what went wrong is the item's fault.
    pub(super) async fn work(self: Arc<Self>, item: Item, steps: Vec<Step>, desired: &HostDesired) {
        let mut failure = None;
        for step in &steps {
            tracing::debug!(target: "reconcile", ?item, ?step, "begins");
            let began = Instant::now();
            let outcome = self.carry_out(item, step, desired).await;
            if !step.leaves_volumes() {
                self.touched_volumes();
            }
            match outcome {
                Ok(()) => {
                    let ms = began.elapsed().as_millis() as u64;
                    tracing::info!(target: "reconcile", ?item, ?step, ms, "done");
                }
                Err(error) if matches!(step, Step::PrepareNext | Step::PrepareUpdate) => {
                    // The present body is well: only the exchange or the update that asked for this is in trouble.
                    tracing::warn!(target: "reconcile", ?item, %error, "the next body cannot be made ready");
                    let mut memory = self.memory();
                    let held = memory.entry(item).or_default();
                    held.next_fault =
                        Some(Memory::fault_since(held.next_fault.take(), error.code(), error.to_string()));
                    if *step == Step::PrepareUpdate {
                        break;
                    }
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
            (Step::PrepareExpected, Item::Instance(id), _) => {
                let Some(coming) = desired.expected.iter().find(|i| i.id == id) else { return Ok(()) };
                // On disk first: what is made ready and never started is found again by its tombstone.
                self.note_begun(coming)?;
                self.prepare(coming, &coming.body, coming.epoch).await?;
                let order = order_of(item, desired);
                let mut memory = self.memory();
                let held = memory.entry(item).or_default();
                held.prepared = Some((coming.body.kind(), coming.epoch));
                held.prepared_for = Some(order);
                Ok(())
            }
            (Step::PrepareUpdate, Item::Instance(_), Some(instance)) => {
                self.prepare(instance, &instance.body, instance.epoch).await?;
                self.memory().entry(item).or_default().next_fault = None;
                Ok(())
            }
            (Step::RestartMember { member }, Item::Instance(id), _) => {
                let order = Adjustment::RestartMember(member.clone());
                Ok(self.body_driver(BodyKind::Set)?.adjust(id, order).await?)
            }
            (Step::NoteMemberRestarts { members }, Item::Instance(id), _) => {
                let mut ledger = self.ledger();
                let begun = super::ledger::Begun { members: members.clone(), ..ledger.begun(id) };
                Ok(ledger.note(id, begun)?)
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
            (Step::Remove { kind, epoch, remains }, Item::Instance(id), _) => {
                self.body_driver(*kind)?.remove(id, *epoch, *remains).await?;
                if let Some(held) = self.memory().get_mut(&item) {
                    held.prepared = held.prepared.filter(|(made, at)| made != kind || at > epoch);
                }
                let mut ledger = self.ledger();
                let mut begun = ledger.begun(id);
                begun.kinds.retain(|k| k != kind);
                if begun.kinds.is_empty() && instance.is_none() {
                    begun = Default::default();
                }
                Ok(ledger.note(id, begun)?)
            }
            (Step::Ensure, _, Some(instance)) => self.ensure(item, instance, None).await,
            (Step::EnsureWith { volume }, _, Some(instance)) => {
                self.ensure(item, instance, Some((*volume, desired))).await
            }
            (Step::Resize, _, Some(instance)) => self.resize(item, instance, desired).await,
            (Step::Depart, _, Some(instance)) => self.depart(instance).await,
            (Step::NoteRestarts { restarts }, Item::Instance(id), _) => {
                // In the order in which a status takes them.
                let mut ledger = self.ledger();
                let before = ledger.begun(id);
                self.memory().entry(item).or_default().restarts_before.get_or_insert(before.restarts);
                Ok(ledger.note(id, super::ledger::Begun { restarts: *restarts, ..before })?)
            }
            (Step::EnsureVolume { volume }, ..) => {
                // The ledger's sync, due before the body, passes while LVM works.
                let noted = async {
                    let body = instance.filter(|i| i.power.wants_body());
                    body.map_or(Ok(()), |instance| self.note_begun(instance))
                };
                let (made, noted) = tokio::join!(self.ensure_volume(desired, *volume), noted);
                made.and(noted)
            }
            (Step::TellGrown { kind, volume }, Item::Instance(id), _) => {
                let bytes = desired.volumes.iter().find(|v| v.id == *volume).map_or(0, |v| v.size_bytes);
                Ok(self
                    .body_driver(*kind)?
                    .adjust(id, Adjustment::VolumeGrown { volume: *volume, bytes })
                    .await?)
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
            (Step::SendBytes, Item::Bytes(id), _) => self.send_bytes(id, desired).await,
            (Step::Export, Item::Export(image), _) => self.export(desired, image).await,
            (Step::TakeSnapshot, Item::Snapshot(id), _) => self.take_snapshot(desired, id).await,
            // The planner makes no other pairs; one that it did make would have nothing to act on.
            _ => Ok(()),
        }
    }

    pub(super) fn body_driver(&self, kind: BodyKind) -> Result<&Arc<dyn BodyDriver>, WorkError> {
        self.drivers.bodies.get(&kind).ok_or(WorkError::NoDriver(kind))
    }

    async fn prepare(
        &self,
        instance: &InstanceDesired,
        body: &BodyDesired,
        epoch: u64,
    ) -> Result<(), WorkError> {
        let plan = self.resolve(instance, body, epoch).await?;
        // A container names its volume from its making on; what a VM has is said at its start.
        let own = instance.volume.filter(|_| instance.twin && body.kind() == BodyKind::Set);
        let volume = own.map(|id| VolumeAttachment { id, device: PathBuf::new(), mount: None });
        let plan = BodyPlan { twin: instance.twin, volume, ..plan };
        Ok(self.body_driver(body.kind())?.prepare(&plan).await?)
    }

    /// `making`: the volume that is to be made meanwhile, and the order that says how.
    async fn ensure(
        &self,
        item: Item,
        instance: &InstanceDesired,
        making: Option<(VolumeId, &HostDesired)>,
    ) -> Result<(), WorkError> {
        let kind = instance.body.kind();
        let driver = self.body_driver(kind)?.clone();
        // Docker asks for a set's shared volume through the volume driver when a container starts, and waits there for
        // the mount that is under way here: the mount and the making of the first container share their time.
        let late = instance.root_volume.or(instance.volume).filter(|_| kind == BodyKind::Set);
        let (plan, hands) = tokio::try_join!(
            self.resolve(instance, &instance.body, instance.epoch),
            self.attach(instance, kind, late)
        )?;
        let Hands { volume, root_volume, attachments } = hands;
        let plan = BodyPlan { volume, root_volume, attachments, ..plan };
        // Whose image is still to come holds nobody up.
        let _turn = match kind {
            BodyKind::Set => Some(self.turns.set()),
            BodyKind::Vm => {
                if self.is_off(item, instance.id) {
                    self.turns.vm().await;
                }
                None
            }
        };
        // As late as can be: what comes before may have taken longer than the lease.
        self.may_start().map_err(WorkError::NoLease)?;
        if !self.is_ordered(instance) {
            return Ok(());
        }
        self.note_begun(instance)?;
        // Before the engine hears of a container that names it.
        let announced = match making {
            Some((id, _)) => self.drivers.volumes.announce(id.0).await?,
            None => None,
        };
        let attached = async {
            // Whoever waits for it learns at once what has become of it, however long the engine takes.
            let _coming = announced;
            if let Some((id, desired)) = making {
                self.ensure_volume(desired, id).await?;
            }
            match late {
                Some(id) => self.attach_one(id, kind).await.map(drop),
                None => Ok(()),
            }
        };
        let (attached, ensured) = tokio::join!(attached, driver.ensure(&plan));
        // Where both failed, the volume's trouble is the cause.
        attached?;
        ensured?;
        let mut memory = self.memory();
        let held = memory.entry(item).or_default();
        if let Some(since) = held.switching_since.take() {
            held.switched = Some((instance.epoch, since.elapsed().as_millis() as u64));
        }
        Ok(())
    }

    /// Whether nothing of the VM runs, so that it is to be started; one that is being exchanged for a set is waited for.
    fn is_off(&self, item: Item, id: InstanceId) -> bool {
        let exchanged = self.memory().get(&item).is_some_and(|held| held.switching_since.is_some());
        let seen = self.last_look();
        let bodies = seen.iter().flat_map(|(_, world)| &world.bodies);
        let active = |body: &ObservedBody| body.state != ObservedState::Stopped;
        !exchanged && !bodies.into_iter().any(|b| b.instance == id && b.kind == BodyKind::Vm && active(b))
    }

    /// Whether the instance is still ordered as it was when the task began.
    fn is_ordered(&self, instance: &InstanceDesired) -> bool {
        let ledger = self.ledger();
        let now = ledger.desired().and_then(|d| d.instances.iter().find(|i| i.id == instance.id));
        now.is_some_and(|now| now.epoch == instance.epoch)
    }

    /// On disk before the engine hears of a body: should the engine fall silent, the body still counts.
    pub(super) fn note_begun(&self, instance: &InstanceDesired) -> Result<(), WorkError> {
        let kind = instance.body.kind();
        let mut ledger = self.ledger();
        let mut begun = ledger.begun(instance.id);
        if !begun.kinds.contains(&kind) {
            begun.kinds.push(kind);
        }
        Ok(ledger.note(instance.id, begun)?)
    }

    async fn attach_one(&self, id: VolumeId, kind: BodyKind) -> Result<VolumeAttachment, WorkError> {
        let how = match kind {
            BodyKind::Set => Attach::Mounted,
            BodyKind::Vm => Attach::Device,
        };
        let attached = self.drivers.volumes.attach(id.0, how).await;
        // LVM is asked while the engine makes the body, so that the status need not wait for it at the end.
        self.touched_volumes();
        self.bell.notify_one();
        let attached = attached?;
        Ok(VolumeAttachment { id, device: attached.device, mount: attached.mount })
    }

    /// Every volume of the instance, as its kind of body needs it; `late` is named and not attached yet.
    pub(super) async fn attach(
        &self,
        instance: &InstanceDesired,
        kind: BodyKind,
        late: Option<VolumeId>,
    ) -> Result<Hands, WorkError> {
        let one = async |id: VolumeId| match late == Some(id) {
            true => Ok(VolumeAttachment { id, device: PathBuf::new(), mount: None }),
            false => self.attach_one(id, kind).await,
        };
        let mut hands = Hands::default();
        if let Some(id) = instance.volume {
            hands.volume = Some(one(id).await?);
        }
        if let Some(id) = instance.root_volume {
            hands.root_volume = Some(one(id).await?);
        }
        for attachment in &instance.attachments {
            hands.attachments.push(ExtraVolume {
                volume: one(attachment.volume).await?,
                device: attachment.device.clone(),
                read_only: attachment.read_only,
            });
        }
        Ok(hands)
    }

    /// The plan of a body, with its images in the cache and no volumes yet.
    pub(super) async fn resolve(
        &self,
        instance: &InstanceDesired,
        body: &BodyDesired,
        epoch: u64,
    ) -> Result<BodyPlan, WorkError> {
        // What is on the root volume already need not be here as an image too.
        let on_volume =
            |image: &&Image| instance.root_volume.is_some() && DiskFormat::of(image.format).is_some();
        let own = body.images().iter().filter(|image| !on_volume(image));
        let rescue = instance.rescue.iter().flat_map(|rescue| rescue.images());
        // Docker asks for the layers that it lacks; a set that runs as a VM has nobody who does.
        let as_vm = |body: &BodyDesired| matches!(body, BodyDesired::SetVm { .. });
        let whole = as_vm(body) || instance.rescue.as_ref().is_some_and(as_vm);
        let fetches = own.chain(rescue).map(async |image| {
            if whole {
                self.drivers.images.ensure_layers(image).await?;
            }
            self.drivers.images.ensure(image).await
        });
        let images = futures_util::future::try_join_all(fetches).await?;
        Ok(BodyPlan {
            instance: instance.id,
            project: instance.project,
            name: instance.name.clone(),
            epoch,
            vcpus: instance.vcpus,
            memory_mib: instance.memory_mib,
            power: instance.power,
            body: body.clone(),
            // Of the body that is rescued, not of the one that comes next.
            rescue: instance.rescue.clone().filter(|_| epoch == instance.epoch),
            root: instance.root,
            root_volume: None,
            attachments: Vec::new(),
            ports: instance.ports.iter().map(PortAttachment::from).collect(),
            volume: None,
            images: images.into_iter().map(|i| (i.image.id, i)).collect(),
            user_data: instance.user_data.clone(),
            ssh_keys: instance.ssh_keys.clone(),
            metadata: instance.metadata.clone(),
            twin: false,
            members: instance.members.clone(),
        })
    }
}

/// The volumes in a body's hands.
#[derive(Default)]
pub(super) struct Hands {
    pub volume: Option<VolumeAttachment>,
    pub root_volume: Option<VolumeAttachment>,
    pub attachments: Vec<ExtraVolume>,
}
