//! Brings the host to its desired state and keeps it there.
//!
//! One loop: observe all engines, plan every item (pure), start the steps of each item in a task of its own, publish
//! what was seen. It never fails as a whole: trouble belongs to an item or to an engine and is reported there. An item
//! whose task runs is left alone until it ends; a task's end, an engine's event, a new desired state and the next
//! retry each ring the same bell.
//!
//! Refuses: to destroy anything without a tombstone or a higher epoch, and to start anything after a reboot before
//! the controller has confirmed what this host should hold, or without a lease where the host keeps one.

mod bytes;
mod converting;
mod copying;
mod crossing;
pub mod execute;
pub mod exports;
mod flip;
mod following;
mod guests;
pub mod ledger;
pub mod memory;
pub mod observe;
pub mod plan;
mod resizing;
pub mod status;
mod taking;
mod turns;
mod unread;

use crate::convert::Converter;
use crate::images::ImageCache;
use crate::instance::{Bell, BodyDriver};
use crate::storage::VolumeDriver;
use amphi_api::ImageId;
use amphi_api::conversion::ConversionProgress;
use amphi_api::instance::BodyKind;
use amphi_api::wire::{ExportSource, HostDesired, HostStatus, VolumeSource};
use copying::Copying;
use exports::Exporter;
use flip::AbortOnDrop;
use ledger::{Ledger, LedgerError};
use memory::Memory;
use observe::{Observer, World};
use plan::{Item, Observed, Remembered};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use turns::Turns;
use uuid::Uuid;

/// The engines, below their traits.
#[derive(Clone)]
pub struct Drivers {
    pub bodies: BTreeMap<BodyKind, Arc<dyn BodyDriver>>,
    pub volumes: Arc<dyn VolumeDriver>,
    pub images: Arc<ImageCache>,
    pub exports: Arc<Exporter>,
    pub converter: Arc<Converter>,
}

/// Without any bell, the world is looked at this often: an engine that hangs tells nobody.
const PERIOD: Duration = Duration::from_secs(10);

/// How often it is tried to write down what could not be.
const AGAIN: Duration = Duration::from_secs(1);

/// With more items than these under way every step of theirs rings, and what is seen is soon old: looks then take no more than a
/// quarter of the time, from each other and from the engines that do the work, but for so long at most nobody looks.
const FEW: usize = 2;
const BLINK: Duration = Duration::from_millis(300);

/// The loop and what it shares with the link to the controller.
pub struct Reconciler {
    drivers: Drivers,
    ledger: Mutex<Ledger>,
    /// The desired state as the ledger has it, for whoever serves instances beside their bodies.
    orders: watch::Sender<Option<Arc<HostDesired>>>,
    memory: Mutex<BTreeMap<Item, Memory>>,
    bell: Bell,
    /// Counts what may have changed a volume.
    touched: AtomicU64,
    status: watch::Sender<Arc<HostStatus>>,
    troubles: watch::Sender<Arc<Troubles>>,
    /// A desired state that could not be written down, with the boot of its link; and why.
    unwritten: Mutex<Option<(Uuid, HostDesired, String)>>,
    copying: Copying,
    /// How far conversions are that are under way.
    converting: Mutex<BTreeMap<ImageId, ConversionProgress>>,
    turns: Arc<Turns>,
    guests: guests::Guests,
    /// What could not be read of the newest desired state.
    unread: Mutex<Vec<amphi_api::unread::Unread>>,
    /// The last look, and when it began; see [`flip`].
    seen: Mutex<Option<(Instant, Arc<World>)>>,
    /// What was begun beside the loop since its look began, with the volumes in its hands. Held while something is begun so
    /// and while a look is acted on: taken before every other lock here.
    flipped: Mutex<BTreeSet<Item>>,
}

fn seen_whole(seen: &Observed<'_>, id: amphi_api::VolumeId) -> bool {
    seen.volumes.and_then(|all| all.get(&id.0)).is_some_and(|volume| volume.complete)
}

/// Engines that did not answer at the last look, with the reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Troubles {
    pub bodies: BTreeMap<BodyKind, String>,
    pub volumes: Option<String>,
    /// What is ordered cannot be written down.
    pub ledger: Option<String>,
}

impl Reconciler {
    pub fn new(drivers: Drivers, ledger: Ledger, bell: Bell) -> Arc<Self> {
        let orders = watch::Sender::new(ledger.desired().cloned().map(Arc::new));
        Arc::new(Self {
            drivers,
            orders,
            ledger: Mutex::new(ledger),
            memory: Mutex::default(),
            bell,
            touched: AtomicU64::new(0),
            status: watch::Sender::new(Arc::default()),
            troubles: watch::Sender::new(Arc::default()),
            unwritten: Mutex::default(),
            copying: Copying::default(),
            converting: Mutex::default(),
            turns: Arc::default(),
            guests: guests::Guests::default(),
            unread: Mutex::default(),
            seen: Mutex::default(),
            flipped: Mutex::default(),
        })
    }

    /// Takes a desired state from the controller: durable in the ledger when this returns.
    pub fn accept(&self, desired: HostDesired) -> Result<(), LedgerError> {
        let boot = self.boot();
        self.accept_in(boot, desired)
    }

    /// The same for one that came over a link made in this boot; see [`Ledger::accept_in`].
    /// What cannot be written down is not followed, and tried again until it can be or something newer comes.
    pub fn accept_in(&self, boot: Uuid, desired: HostDesired) -> Result<(), LedgerError> {
        let taken = {
            let mut ledger = self.ledger();
            let copy = desired.clone();
            let accepted = ledger.accept_in(boot, desired);
            let mut unwritten = self.unwritten();
            if unwritten.as_ref().is_none_or(|(_, newest, _)| newest.generation <= copy.generation) {
                *unwritten = match &accepted {
                    Err(error @ LedgerError::Io { .. }) => Some((boot, copy, error.to_string())),
                    _ => None,
                };
            }
            drop(unwritten);
            if accepted.is_err() {
                self.bell.notify_one();
            }
            accepted?;
            ledger.desired().cloned().map(Arc::new)
        };
        self.orders.send_replace(taken);
        self.bell.notify_one();
        Ok(())
    }

    /// The mark of this boot; a fence changes it.
    pub fn boot(&self) -> Uuid {
        self.ledger().boot()
    }

    /// Looks again at once: something outside the engines has changed, such as the lease.
    pub fn look_again(&self) {
        self.bell.notify_one();
    }

    pub fn may_start(&self) -> Result<(), String> {
        self.ledger().may_start()
    }

    /// The desired state that the host goes by, the controller's last or what the ledger kept.
    pub fn orders(&self) -> watch::Receiver<Option<Arc<HostDesired>>> {
        self.orders.subscribe()
    }

    /// What was last seen; changes only when something did.
    pub fn status(&self) -> watch::Receiver<Arc<HostStatus>> {
        self.status.subscribe()
    }

    pub fn troubles(&self) -> watch::Receiver<Arc<Troubles>> {
        self.troubles.subscribe()
    }

    pub fn images(&self) -> &Arc<ImageCache> {
        &self.drivers.images
    }

    pub fn driver(&self, kind: BodyKind) -> Option<Arc<dyn BodyDriver>> {
        self.drivers.bodies.get(&kind).cloned()
    }

    /// Digests of every blob that a desired body starts from, now, next or for a rescue, that a volume is yet to be made of,
    /// or that is kept here by policy.
    pub fn blobs_in_use(&self) -> BTreeSet<String> {
        let ledger = self.ledger();
        let instances = ledger.desired().into_iter().flat_map(|d| d.instances.iter().chain(&d.expected));
        let bodies = instances.flat_map(|i| std::iter::once(&i.body).chain(&i.next_body).chain(&i.rescue));
        let volumes = ledger.desired().map(|d| d.volumes.as_slice()).unwrap_or_default();
        let written = volumes.iter().filter(|v| !v.made).filter_map(|v| match &v.source {
            Some(VolumeSource::Image(image) | VolumeSource::Moved { image, .. }) => Some(&**image),
            _ => None,
        });
        let (kept, exports) =
            ledger.desired().map(|d| (d.images.as_slice(), d.exports.as_slice())).unwrap_or_default();
        let kept = kept.iter().filter(|one| one.kept).map(|one| &one.image);
        let converted = exports.iter().filter_map(|export| match &export.source {
            ExportSource::Conversion { of, .. } => Some(&**of),
            _ => None,
        });
        bodies
            .flat_map(|b| b.images())
            .chain(written)
            .chain(kept)
            .chain(converted)
            .flat_map(|i| i.blobs.values())
            .map(|blob| blob.sha256.clone())
            .collect()
    }

    // A panic while one of these is held leaves plain data behind, never a half-made invariant.
    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn memory(&self) -> MutexGuard<'_, BTreeMap<Item, Memory>> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn flipped(&self) -> MutexGuard<'_, BTreeSet<Item>> {
        self.flipped.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unwritten(&self) -> MutexGuard<'_, Option<(Uuid, HostDesired, String)>> {
        self.unwritten.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A volume may have changed: the next look asks LVM again.
    fn touched_volumes(&self) {
        self.touched.fetch_add(1, Ordering::AcqRel);
    }

    /// Runs until the process ends. `ready` is told after the first look at every engine.
    pub async fn run(self: Arc<Self>, ready: impl FnOnce()) {
        let mut ready = Some(ready);
        let mut observer = Observer::default();
        let _flips = AbortOnDrop(tokio::spawn(self.clone().flips()).abort_handle());
        loop {
            let unwritten = self.unwritten().take();
            if let Some((boot, desired, _)) = unwritten
                && let Err(error) = self.accept_in(boot, desired)
            {
                tracing::debug!(%error, "still not written down");
            }
            // In this order: what begins in between is in both.
            self.flipped().clear();
            let mut busy_before = self.busy();
            let began = Instant::now();
            let world = Arc::new(observer.look(&self.drivers, self.touched.load(Ordering::Acquire)).await);
            let took = began.elapsed();
            self.saw(began, &world);
            self.remember_troubles(&world);
            self.watch_guests(&world);
            let started = {
                // What was flipped since may have ended by now: this look is older than what it did.
                let flipped = self.flipped();
                busy_before.extend(flipped.iter().copied());
                let started = self.act(&world, &busy_before);
                self.publish(&world, &busy_before);
                started
            };
            if let Some(ready) = ready.take() {
                ready();
            }
            let wake = self
                .next_retry()
                .map_or(PERIOD, |at| at.saturating_duration_since(Instant::now()).min(PERIOD));
            let wake = if self.unwritten().is_some() { wake.min(AGAIN) } else { wake };
            if started {
                tracing::debug!(target: "reconcile", "steps under way");
            }
            let _ = tokio::time::timeout(wake.max(Duration::from_millis(10)), self.bell.notified()).await;
            if self.busy().len() > FEW {
                tokio::time::sleep_until(began + took + (took * 3).min(BLINK)).await;
            }
        }
    }

    /// Items that a task works on, and the volumes in its hands.
    fn busy(&self) -> BTreeSet<Item> {
        let memory = self.memory();
        let busy = memory.iter().filter(|(_, m)| m.busy);
        busy.flat_map(|(item, m)| std::iter::once(*item).chain(m.hands.iter().map(|v| Item::Volume(*v))))
            .collect()
    }

    fn next_retry(&self) -> Option<Instant> {
        self.memory().values().filter(|m| !m.busy).filter_map(Memory::retry_at).min()
    }

    fn remember_troubles(&self, world: &World) {
        let ledger = self.unwritten().as_ref().map(|(_, _, why)| why.clone());
        let now = Arc::new(Troubles { ledger, ..world.troubles() });
        let recovered = {
            let before = self.troubles.borrow();
            before.bodies.keys().any(|k| !now.bodies.contains_key(k))
                || before.volumes.is_some() && now.volumes.is_none()
        };
        if recovered {
            // An engine is back: what failed for want of it is tried at once.
            self.memory().values_mut().for_each(Memory::retry_now);
        }
        self.troubles.send_if_modified(|held| {
            let differs = *held != now;
            *held = now;
            differs
        });
    }

    /// Plans every item and starts a task for each that has steps. Items that were busy when the look began are left:
    /// what was seen of them may be older than what they have done since.
    fn act(self: &Arc<Self>, world: &World, busy_before: &BTreeSet<Item>) -> bool {
        let (desired, confirmed, leased) = {
            let ledger = self.ledger();
            let Some(desired) = ledger.desired() else { return false };
            (Arc::new(desired.clone()), ledger.confirmed(), ledger.may_start().is_ok())
        };
        let seen = world.observed();
        let mut started = false;
        for (item, steps) in self.plan_all(&desired, &seen, confirmed, leased) {
            if steps.is_empty() {
                let mut memory = self.memory();
                let held = memory.entry(item).or_default();
                if !held.busy && !busy_before.contains(&item) {
                    held.settled();
                }
                continue;
            }
            if !busy_before.contains(&item) {
                started |= self.begin(item, steps, &desired);
            }
        }
        self.forget_gone(&desired);
        started
    }

    /// Starts a task for an item that nobody works on and that may be tried now.
    fn begin(self: &Arc<Self>, item: Item, steps: Vec<plan::Step>, desired: &Arc<HostDesired>) -> bool {
        let mut memory = self.memory();
        let held = memory.entry(item).or_default();
        let order = execute::order_of(item, desired);
        if held.busy || !held.may_try(&order, Instant::now()) {
            return false;
        }
        held.begin(order);
        held.hands = match item {
            Item::Instance(id) => {
                let instance = desired.instances.iter().find(|i| i.id == id);
                if instance.is_some() {
                    held.prepared_for = None;
                }
                instance.map(plan::volumes_of).unwrap_or_default()
            }
            // While its instance runs, that one's item has them.
            Item::Bytes(id) => {
                let instance = desired.instances.iter().find(|i| i.id == id);
                let order = instance.and_then(|i| i.copying.as_ref()).filter(|order| order.last);
                order.map(|order| order.volumes.clone()).unwrap_or_default()
            }
            _ => Vec::new(),
        };
        drop(memory);
        let (this, desired) = (self.clone(), desired.clone());
        tokio::spawn(async move { this.work(item, steps, &desired).await });
        true
    }

    fn plan_all(
        &self,
        desired: &HostDesired,
        seen: &Observed<'_>,
        confirmed: bool,
        leased: bool,
    ) -> Vec<(Item, Vec<plan::Step>)> {
        let mut plans = Vec::new();
        let mut of_instances = BTreeSet::new();
        let used = |id| execute::volume_in_use(desired, seen.bodies, id);
        for instance in &desired.instances {
            let own = plan::volumes_of(instance);
            let volumes: Vec<_> = desired.volumes.iter().filter(|v| own.contains(&v.id)).collect();
            of_instances.extend(own);
            let item = Item::Instance(instance.id);
            let begun = self.ledger().begun(instance.id);
            let prepared = self.memory().get(&item).and_then(|m| m.prepared);
            let keeps_size = self.keeps_size(item, desired);
            let memory = Remembered { begun, prepared, keeps_size };
            plans.push((item, plan::instance(instance, &volumes, seen, &memory, confirmed && leased)));
        }
        if !confirmed {
            return plans;
        }
        let mut destroy: BTreeMap<Item, Vec<plan::Step>> = BTreeMap::new();
        for tombstone in &desired.tombstones {
            use amphi_api::wire::Tombstone::{Instance, Snapshot, Volume};
            let (item, steps) = match *tombstone {
                // An instance that is desired here at a higher epoch has its stale bodies removed by its own plan.
                Instance { id, .. } if desired.instances.iter().any(|i| i.id == id) => continue,
                // It comes back before what it left is gone: what is here of it is removed first.
                Instance { id, epoch } if desired.expected.iter().any(|i| i.id == id) => {
                    let bodies = seen.bodies.iter().filter(|b| b.instance == id && b.epoch <= epoch);
                    if bodies.count() == 0 {
                        continue;
                    }
                    (Item::Instance(id), plan::burial(id, epoch, seen, &self.ledger().begun(id)))
                }
                Instance { id, epoch } => {
                    (Item::Instance(id), plan::burial(id, epoch, seen, &self.ledger().begun(id)))
                }
                Volume { id } => (Item::Volume(id), plan::purge(id.0, seen)),
                Snapshot { id } => (Item::Snapshot(id), plan::purge(id.0, seen)),
            };
            destroy.entry(item).or_default().extend(steps);
        }
        for coming in desired.expected.iter().filter(|e| !destroy.contains_key(&Item::Instance(e.id))) {
            let item = Item::Instance(coming.id);
            let begun = self.ledger().begun(coming.id);
            let order = coming.twin.then(|| execute::order_of(item, desired));
            // A twin is made anew when anything of its order changes.
            let fresh = |m: &&Memory| order.is_none() || m.prepared_for == order;
            let prepared = self.memory().get(&item).filter(fresh).and_then(|m| m.prepared);
            let memory = Remembered { begun, prepared, keeps_size: false };
            plans.push((item, plan::expected(coming, seen, &memory, confirmed && leased)));
        }
        plans.extend(destroy);
        for id in seen.volumes.into_iter().flat_map(|all| plan::strays(desired, all)) {
            // One that is being made is active for that.
            let waits = desired.volumes.iter().any(|v| v.id == id) && leased && !seen_whole(seen, id);
            if !used(id) && !waits {
                plans.push((Item::Volume(id), vec![plan::Step::DetachVolume { volume: id }]));
            }
        }
        // Without a lease nothing is begun, as before the controller's first word. What was buried elsewhere is buried here
        // all the same: that is what a host that was shut out has to do before it gets a lease again.
        if !leased {
            return plans;
        }
        for volume in desired.volumes.iter().filter(|v| !of_instances.contains(&v.id)) {
            if let Some(all) = seen.volumes {
                let steps = plan::volume(volume, all.get(&volume.id.0), used(volume.id));
                plans.push((Item::Volume(volume.id), steps));
            }
        }
        for instance in desired.instances.iter().filter(|i| i.copying.is_some()) {
            let done = self.copying.is_done(instance);
            plans.push((Item::Bytes(instance.id), plan::bytes(instance, seen, done)));
        }
        for export in &desired.exports {
            let done = self.ledger().exported(export.image).is_some();
            plans
                .push((Item::Export(export.image), if done { Vec::new() } else { vec![plan::Step::Export] }));
        }
        for snapshot in &desired.snapshots {
            if let Some(all) = seen.volumes {
                plans.push((Item::Snapshot(snapshot.id), plan::snapshot(snapshot, all.get(&snapshot.id.0))));
            }
        }
        plans
    }

    /// Drops the memory of items that are neither desired nor being destroyed.
    fn forget_gone(&self, desired: &HostDesired) {
        use amphi_api::wire::Tombstone;
        self.memory().retain(|item, memory| {
            memory.busy
                || match item {
                    Item::Instance(id) => {
                        desired.instances.iter().chain(&desired.expected).any(|i| i.id == *id)
                            || desired
                                .tombstones
                                .iter()
                                .any(|t| matches!(t, Tombstone::Instance { id: x, .. } if x == id))
                    }
                    Item::Volume(id) => {
                        desired.volumes.iter().any(|v| v.id == *id)
                            || desired.tombstones.contains(&Tombstone::Volume { id: *id })
                    }
                    Item::Snapshot(id) => {
                        desired.snapshots.iter().any(|s| s.id == *id)
                            || desired.tombstones.contains(&Tombstone::Snapshot { id: *id })
                    }
                    Item::Bytes(id) => desired.instances.iter().any(|i| i.id == *id && i.copying.is_some()),
                    Item::Export(image) => desired.exports.iter().any(|e| e.image == *image),
                }
        });
    }

    fn publish(&self, world: &World, busy_before: &BTreeSet<Item>) {
        // What is under way, or was when the look began, may bring about what was not seen.
        let under_way: BTreeSet<Item> = self.busy().union(busy_before).copied().collect();
        let next = {
            let ledger = self.ledger();
            let memory = self.memory();
            let exported = |image| ledger.exported(image).cloned();
            let mut next =
                status::render(ledger.desired(), world, &memory, &under_way, |id| ledger.begun(id), exported);
            self.copying.tell(ledger.desired(), &memory, &mut next);
            self.tell_conversions(|image| ledger.report(image).cloned(), &mut next);
            self.tell_guests(ledger.desired(), |id| ledger.begun(id).restarts, &mut next);
            self.tell_unread(&mut next);
            next
        };
        self.status.send_if_modified(|held| {
            let differs = **held != next;
            if differs {
                *held = Arc::new(next);
            }
            differs
        });
    }
}
