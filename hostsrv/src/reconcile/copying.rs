//! The sending of a moving instance's bytes, pass by pass: what is open here, how far it is, and the end of it when the
//! order changes. Refuses to choose when the last pass is, and to make that one over anything that is mounted or running.

use super::Reconciler;
use super::execute::WorkError;
use super::following::{self, Following, Known};
use super::memory::Memory;
use super::plan::Item;
use crate::crossing::{BLOCK, Blocks, Medium, Part, Pass, Passages, Progress, Road};
use crate::instance::folders;
use crate::storage::{Attach, Filesystem, mark_of};
use amphi_api::wire::{CopyingDesired, CopyingStatus, HostDesired, HostStatus, InstanceDesired};
use amphi_api::{ExchangeId, InstanceId, VolumeId};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};
use uuid::Uuid;

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
    /// What has come here: the pass after which nothing else was written, and its size.
    marks: Mutex<Marks>,
    following: Mutex<Following>,
}

type Marks = BTreeMap<(InstanceId, Part), (Uuid, u64)>;

/// A pass that is under way or has ended.
#[derive(Clone)]
struct UnderWay {
    order: (ExchangeId, u32, bool),
    progress: Arc<Progress>,
    began: Instant,
    /// How long it took, when it has ended well.
    done: Option<Duration>,
    /// What changes is known: the next one reads no more than that.
    followed: bool,
}

fn key(order: &CopyingDesired) -> (ExchangeId, u32, bool) {
    (order.exchange, order.pass, order.last)
}

impl Copying {
    fn passes(&self) -> MutexGuard<'_, BTreeMap<InstanceId, UnderWay>> {
        self.passes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn marks(&self) -> MutexGuard<'_, Marks> {
        self.marks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn following(&self) -> MutexGuard<'_, Following> {
        self.following.lock().unwrap_or_else(PoisonError::into_inner)
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
        if desired.is_some() {
            self.following().retain(|id| instances.iter().any(|i| i.id == id), ordered);
        }
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
                followed: pass.is_some_and(|p| p.followed),
                fault: memory.get(&Item::Bytes(told.id)).and_then(|m| m.fault.clone()),
            });
        }
    }
}

/// One part, open.
struct Open {
    pass: Pass,
    medium: Arc<Medium>,
    /// All that differs from what the pass before sent, where that is known.
    changed: Option<Blocks>,
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
        let under_way =
            UnderWay { order: key(order), progress: progress.clone(), began, done: None, followed: false };
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
            sent = self.send_parts(instance, order, &progress) => sent.map(Some),
            // The sender lives as long as the reconciler.
            _ = gone => Ok(None),
            () = told => Ok(None),
        };
        if order.last {
            // Whatever came of it: nobody has them in hands any more.
            for volume in &order.volumes {
                self.drivers.volumes.detach(volume.0).await?;
            }
        }
        if let Some(followed) = sent?
            && let Some(pass) = self.copying.passes().get_mut(&id).filter(|p| p.order == key(order))
        {
            pass.done = Some(pass.began.elapsed());
            pass.followed = followed;
        }
        Ok(())
    }

    /// Whether what changes from here on is known of all of it.
    async fn send_parts(
        &self,
        instance: &InstanceDesired,
        order: &CopyingDesired,
        progress: &Progress,
    ) -> Result<bool, WorkError> {
        let (passages, state_dir) = self
            .copying
            .roads
            .get()
            .ok_or_else(|| WorkError::Unreadable(format!("{}: no way to other hosts", instance.id)))?;
        let road = Road { instance: instance.id, epoch: order.epoch, to: order.to, address: order.address };
        let began = Instant::now();
        let mut parts = Vec::new();
        for volume in &order.volumes {
            parts.push(self.open_volume(instance.id, *volume, order, passages.run_dir()).await?);
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
        let open_in = began.elapsed();
        let due = |part: &Open| part.changed.as_ref().map_or(part.pass.size, |c| c.count() * BLOCK as u64);
        progress.all.store(parts.iter().map(due).sum(), Ordering::Relaxed);
        let mut followed = true;
        for Open { pass, medium, changed } in parts {
            passages.send(&road, &pass, medium, changed, progress).await?;
            match (pass.part, pass.mark) {
                (Part::Volume(id), Some(mark)) => self.copying.following().went_well(id, mark),
                _ => followed = false,
            }
        }
        let (open_ms, all_ms) = (open_in.as_millis() as u64, began.elapsed().as_millis() as u64);
        let read = progress.read.load(Ordering::Relaxed);
        tracing::info!(instance = %instance.id, pass = order.pass, last = order.last, followed, open_ms, all_ms, read, "a pass went over");
        Ok(followed)
    }

    async fn open_volume(
        &self,
        instance: InstanceId,
        id: VolumeId,
        order: &CopyingDesired,
        run_dir: &Path,
    ) -> Result<Open, WorkError> {
        let volumes = &self.drivers.volumes;
        let missing = || WorkError::Missing(format!("volume {id}"));
        let last = order.last;
        if last {
            // Unmounted, all that was written is on the device; and it is attached for this alone.
            volumes.detach(id.0).await?;
        }
        // Out of the list until this pass has ended well.
        let before = self.copying.following().take(id, order.exchange);
        let mut known = match before {
            Some((changes, mark)) => following::asked(changes, mark).await,
            None => None,
        };
        let mark = mark_of(run_dir, id.0);
        let anew = known.is_none() && !last;
        if anew {
            // Before the device is looked up: whatever opens the volume as another one takes it away.
            let set = following::set(&mark).await;
            set.map_err(|error| WorkError::Unreadable(format!("{}: {error}", mark.display())))?;
        }
        let seen = volumes.observe().await?.into_iter().find(|v| v.id == id.0).ok_or_else(missing)?;
        // Somebody else may have opened it as another device since, whose writes nobody has followed.
        known = known.filter(|k| seen.device.as_ref().is_none_or(|device| k.changes.is_of(device)));
        if let (true, Some(device)) = (anew, &seen.device) {
            let (run_dir, device) = (run_dir.to_owned(), device.clone());
            known = following::begin(id, run_dir, mark, device, seen.size_bytes).await;
        }
        let device = match seen.device {
            Some(device) if !last => device,
            _ => volumes.attach(id.0, Attach::Device).await?.device,
        };
        let xfs = seen.fs == Some(Filesystem::Xfs);
        let mut open = open(device, Part::Volume(id), Some(seen.size_bytes), last, xfs).await?;
        let Some(Known { changes, since }) = known.filter(|k| k.changes.size() == seen.size_bytes) else {
            return Ok(open);
        };
        (open.changed, open.pass.after) = since.unzip();
        if !last {
            let mark = Uuid::new_v4();
            open.pass.mark = Some(mark);
            self.copying.following().begun(id, (instance, order.exchange), mark, changes);
        }
        Ok(open)
    }
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
    let pass = Pass { part, size, last, xfs, mark: None, after: None };
    Ok(Open { pass, medium: Arc::new(medium), changed: None })
}
