//! The sending of a moving instance's bytes, pass by pass: what is open here, how far it is, and the end of it when the
//! order changes. Refuses to choose when the last pass is, and to make that one over anything that is mounted or running.

use super::Reconciler;
use super::execute::WorkError;
use super::memory::Memory;
use super::plan::Item;
use crate::crossing::{Medium, Part, Pass, Passages, Progress, Road};
use crate::instance::folders;
use crate::storage::{Attach, Filesystem, VolumeDriver};
use amphi_api::wire::{CopyingDesired, CopyingStatus, HostDesired, HostStatus, InstanceDesired};
use amphi_api::{ExchangeId, InstanceId, VolumeId};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// How often the controller is told how far a pass is.
const TELL: Duration = Duration::from_secs(2);

/// Held by whoever writes.
type Turn = Arc<tokio::sync::Mutex<()>>;

/// The passes of this process. Lost with it, which costs reading everything once more.
#[derive(Default)]
pub(super) struct Copying {
    roads: OnceLock<(Passages, PathBuf)>,
    passes: Mutex<BTreeMap<InstanceId, UnderWay>>,
    /// Who writes to a part that comes here: one at a time.
    pub(super) taken: Mutex<BTreeMap<(InstanceId, Part), Turn>>,
}

/// A pass that is under way or has ended.
#[derive(Clone)]
struct UnderWay {
    order: (ExchangeId, u32, bool),
    progress: Arc<Progress>,
    began: Instant,
    /// How long it took, when it has ended well.
    done: Option<Duration>,
}

fn key(order: &CopyingDesired) -> (ExchangeId, u32, bool) {
    (order.exchange, order.pass, order.last)
}

impl Copying {
    fn passes(&self) -> MutexGuard<'_, BTreeMap<InstanceId, UnderWay>> {
        self.passes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn state_dir(&self) -> Option<&PathBuf> {
        self.roads.get().map(|(_, state_dir)| state_dir)
    }

    /// Whether the pass that is ordered is over.
    pub(super) fn is_done(&self, instance: &InstanceDesired) -> bool {
        let order = instance.copying.as_ref().map(key);
        self.passes().get(&instance.id).is_some_and(|p| Some(p.order) == order && p.done.is_some())
    }

    /// Adds to the status how far the ordered passes are, and forgets what is ordered no more.
    pub(super) fn tell(
        &self,
        desired: Option<&HostDesired>,
        memory: &BTreeMap<Item, Memory>,
        status: &mut HostStatus,
    ) {
        let instances = desired.map(|d| d.instances.as_slice()).unwrap_or_default();
        let ordered = |id: &InstanceId| instances.iter().any(|i| i.id == *id && i.copying.is_some());
        let mut passes = self.passes();
        passes.retain(|id, _| ordered(id));
        for told in &mut status.instances {
            let order = instances.iter().find(|i| i.id == told.id).and_then(|i| i.copying.as_ref());
            let Some(order) = order else { continue };
            let pass = passes.get(&told.id).filter(|p| p.order == key(order));
            let count = |of: fn(&Progress) -> u64| pass.map_or(0, |p| of(&p.progress));
            let done = pass.and_then(|p| p.done);
            told.copying = Some(CopyingStatus {
                exchange: order.exchange,
                pass: order.pass,
                last: order.last,
                all_bytes: count(|p| p.all.load(Ordering::Relaxed)),
                read_bytes: count(|p| p.read.load(Ordering::Relaxed)),
                sent_bytes: count(|p| p.sent.load(Ordering::Relaxed)),
                took_ms: done.map_or(0, |took| took.as_millis() as u64),
                done: done.is_some(),
                fault: memory.get(&Item::Bytes(told.id)).and_then(|m| m.fault.clone()),
            });
        }
    }
}

/// One part, open.
struct Open {
    pass: Pass,
    medium: Arc<Medium>,
}

impl Reconciler {
    /// Gives it the ways to other hosts. Without, it sends nothing.
    pub fn send_through(&self, passages: Passages, state_dir: &std::path::Path) {
        // Called once, by the composition root.
        let _first = self.copying.roads.set((passages, state_dir.to_owned()));
    }

    /// Makes the ordered pass, unless the order goes away before.
    pub(super) async fn send_bytes(&self, id: InstanceId, desired: &HostDesired) -> Result<(), WorkError> {
        let Some(instance) = desired.instances.iter().find(|i| i.id == id) else { return Ok(()) };
        let Some(order) = &instance.copying else { return Ok(()) };
        let progress = Arc::new(Progress::default());
        let began = Instant::now();
        let under_way = UnderWay { order: key(order), progress: progress.clone(), began, done: None };
        self.copying.passes().insert(id, under_way);
        let mut orders = self.orders();
        let gone = orders.wait_for(|now| {
            let now = now.as_ref().and_then(|d| d.instances.iter().find(|i| i.id == id)?.copying.as_ref());
            now.map(key) != Some(key(order))
        });
        let told = async {
            let mut every = tokio::time::interval(TELL);
            loop {
                every.tick().await;
                // Bytes go over again: what kept them from it is past.
                if progress.read.load(Ordering::Relaxed) > 0
                    && let Some(memory) = self.memory().get_mut(&Item::Bytes(id))
                {
                    memory.fault = None;
                }
                self.bell.notify_one();
            }
        };
        let sent = tokio::select! {
            sent = self.send_parts(instance, order, &progress) => sent.map(|()| true),
            // The sender lives as long as the reconciler.
            _ = gone => Ok(false),
            () = told => Ok(false),
        };
        if order.last {
            // Whatever came of it: nobody has them in hands any more.
            for volume in &order.volumes {
                self.drivers.volumes.detach(volume.0).await?;
            }
        }
        if sent? && let Some(pass) = self.copying.passes().get_mut(&id).filter(|p| p.order == key(order)) {
            pass.done = Some(pass.began.elapsed());
        }
        Ok(())
    }

    async fn send_parts(
        &self,
        instance: &InstanceDesired,
        order: &CopyingDesired,
        progress: &Progress,
    ) -> Result<(), WorkError> {
        let (passages, state_dir) = self
            .copying
            .roads
            .get()
            .ok_or_else(|| WorkError::Unreadable(format!("{}: no way to other hosts", instance.id)))?;
        let road = Road { instance: instance.id, epoch: order.epoch, to: order.to, address: order.address };
        let mut parts = Vec::new();
        for volume in &order.volumes {
            parts.push(open_volume(&*self.drivers.volumes, *volume, order.last).await?);
        }
        if order.root
            && let Some(image) = instance.body.images().first()
        {
            let path = folders::root(state_dir, instance.id, instance.root, image.id);
            // A guest that has never started has none, and gets a new one there.
            if tokio::fs::try_exists(&path).await.unwrap_or(true) {
                parts.push(open(path, Part::Root, None, order.last, false).await?);
            }
        }
        progress.all.store(parts.iter().map(|part| part.pass.size).sum(), Ordering::Relaxed);
        for part in parts {
            passages.send(&road, &part.pass, part.medium, progress).await?;
        }
        Ok(())
    }
}

async fn open_volume(volumes: &dyn VolumeDriver, id: VolumeId, last: bool) -> Result<Open, WorkError> {
    let missing = || WorkError::Missing(format!("volume {id}"));
    if last {
        // Unmounted, all that was written is on the device; and it is attached for this alone.
        volumes.detach(id.0).await?;
    }
    let seen = volumes.observe().await?.into_iter().find(|v| v.id == id.0).ok_or_else(missing)?;
    let device = match seen.device {
        Some(device) if !last => device,
        _ => volumes.attach(id.0, Attach::Device).await?.device,
    };
    let xfs = seen.fs == Some(Filesystem::Xfs);
    open(device, Part::Volume(id), Some(seen.size_bytes), last, xfs).await
}

async fn open(
    path: PathBuf,
    part: Part,
    size: Option<u64>,
    last: bool,
    xfs: bool,
) -> Result<Open, WorkError> {
    let what = path.display().to_string();
    let opened = tokio::task::spawn_blocking(move || {
        let medium = Medium::open(&path, false)?;
        let size = size.map_or_else(|| medium.size(), Ok)?;
        Ok::<_, std::io::Error>((medium, size))
    });
    let opened = opened.await.map_err(std::io::Error::other).and_then(|opened| opened);
    let (medium, size) = opened.map_err(|error| WorkError::Unreadable(format!("{what}: {error}")))?;
    Ok(Open { pass: Pass { part, size, last, xfs }, medium: Arc::new(medium) })
}
