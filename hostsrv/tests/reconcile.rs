//! The loop over engines in memory: what it does when they fail, fall silent or forget. The real engines have suites of
//! their own; here only the loop is on trial.

use amphi_api::host::EngineName;
use amphi_api::image::{Image, ImageFormat, ImageState};
use amphi_api::instance::{BodyKind, Power};
use amphi_api::wire::{
    BodyDesired, BodyState, HostDesired, HostStatus, InstanceDesired, Tombstone, VolumeDesired,
};
use amphi_api::{HostId, ImageId, InstanceId, ProjectId, VolumeId};
use amphi_hostsrv::images::{BlobFetcher, ImageCache};
use amphi_hostsrv::instance::*;
use amphi_hostsrv::reconcile::ledger::Ledger;
use amphi_hostsrv::reconcile::{Drivers, Reconciler};
use amphi_hostsrv::storage::{
    Activation, Attach, Attached, BinOrder, ObservedVolume, Quiesce, StorageError, StorageFacts,
    VolumeDriver, VolumeKind, VolumeSpec,
};
use async_trait::async_trait;
use futures_util::stream::BoxStream;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use uuid::Uuid;

#[derive(Default)]
struct Engine {
    bodies: Mutex<BTreeMap<InstanceId, ObservedBody>>,
    /// Every call that changed something, in order; shared by all engines of a test.
    calls: Arc<Mutex<Vec<String>>>,
    silent: Mutex<bool>,
    refuse: Mutex<Option<String>>,
}

struct Bodies {
    kind: BodyKind,
    engine: Arc<Engine>,
}

impl Bodies {
    fn note(&self, call: String) {
        self.engine.calls.lock().unwrap().push(format!("{} {call}", self.kind));
    }

    fn answers(&self, doing: &str) -> Result<(), DriverError> {
        if *self.engine.silent.lock().unwrap() {
            let limit = Duration::from_secs(1);
            return Err(DriverError::EngineTimeout { engine: "fake", doing: doing.into(), limit });
        }
        Ok(())
    }
}

#[async_trait]
impl BodyDriver for Bodies {
    async fn probe(&self) -> Result<EngineFacts, DriverError> {
        self.answers("probe").map(|()| EngineFacts { version: "1".into() })
    }

    async fn observe(&self) -> Result<Vec<ObservedBody>, DriverError> {
        self.answers("observe")?;
        Ok(self.engine.bodies.lock().unwrap().values().cloned().collect())
    }

    async fn prepare(&self, _: &BodyPlan) -> Result<(), DriverError> {
        self.answers("prepare")?;
        self.note("prepare".into());
        Ok(())
    }

    async fn ensure(&self, plan: &BodyPlan) -> Result<(), DriverError> {
        self.answers("ensure")?;
        if let Some(message) = self.engine.refuse.lock().unwrap().clone() {
            return Err(DriverError::EngineRefused { engine: "fake", doing: "ensure".into(), message });
        }
        assert_eq!(plan.volume.as_ref().is_some_and(|v| v.mount.is_some()), self.kind == BodyKind::Set);
        self.note(format!("ensure {}", plan.epoch));
        let body = ObservedBody {
            instance: plan.instance,
            kind: self.kind,
            epoch: plan.epoch,
            state: ObservedState::Running,
            members: vec![],
            trouble: None,
        };
        self.engine.bodies.lock().unwrap().insert(plan.instance, body);
        Ok(())
    }

    async fn stop(&self, id: InstanceId, _: Duration) -> Result<(), DriverError> {
        self.answers("stop")?;
        self.note("stop".into());
        if let Some(body) = self.engine.bodies.lock().unwrap().get_mut(&id) {
            body.state = ObservedState::Stopped;
        }
        Ok(())
    }

    async fn remove(&self, id: InstanceId, epoch: u64) -> Result<(), DriverError> {
        self.answers("remove")?;
        self.note(format!("remove {epoch}"));
        self.engine.bodies.lock().unwrap().retain(|i, b| *i != id || b.epoch > epoch);
        Ok(())
    }

    async fn console_log(&self, _: InstanceId, _: Option<&str>, _: u32) -> Result<String, DriverError> {
        Ok(String::new())
    }

    async fn adjust(&self, _: InstanceId, adjustment: Adjustment) -> Result<(), DriverError> {
        self.note(format!("{adjustment:?}"));
        Ok(())
    }
}

#[derive(Default)]
struct Volumes {
    held: Mutex<BTreeMap<Uuid, ObservedVolume>>,
    calls: Arc<Mutex<Vec<String>>>,
}

#[async_trait]
impl VolumeDriver for Volumes {
    async fn probe(&self) -> Result<StorageFacts, StorageError> {
        Ok(StorageFacts {
            volume_group: "fake".into(),
            size_bytes: 1 << 40,
            free_bytes: 1 << 40,
            extent_bytes: 1,
            activation: Activation::Loop,
            lvm_version: "1".into(),
        })
    }

    async fn observe(&self) -> Result<Vec<ObservedVolume>, StorageError> {
        Ok(self.held.lock().unwrap().values().cloned().collect())
    }

    async fn ensure(&self, spec: &VolumeSpec) -> Result<(), StorageError> {
        self.calls.lock().unwrap().push(format!("volume {}", spec.size_bytes));
        let mut held = self.held.lock().unwrap();
        let volume = held.entry(spec.id).or_insert_with(|| ObservedVolume {
            id: spec.id,
            kind: VolumeKind::Volume,
            size_bytes: 0,
            fs: spec.fs,
            complete: true,
            trashed_at: None,
            device: None,
            mounted: None,
            tags: vec![],
        });
        volume.size_bytes = spec.size_bytes;
        Ok(())
    }

    async fn attach(&self, id: Uuid, how: Attach) -> Result<Attached, StorageError> {
        let mut held = self.held.lock().unwrap();
        let volume = held.get_mut(&id).ok_or(StorageError::Unknown { id })?;
        if how == Attach::Device && volume.mounted.is_some() {
            return Err(StorageError::Busy { id, holders: "the mount".into() });
        }
        volume.device = Some("/dev/fake".into());
        volume.mounted = (how == Attach::Mounted).then(|| "/mnt/fake".into());
        Ok(Attached { device: "/dev/fake".into(), mount: volume.mounted.clone() })
    }

    async fn detach(&self, id: Uuid) -> Result<(), StorageError> {
        if let Some(volume) = self.held.lock().unwrap().get_mut(&id) {
            (volume.device, volume.mounted) = (None, None);
        }
        Ok(())
    }

    async fn snapshot(&self, _: Uuid, _: Uuid, _: &Quiesce) -> Result<(), StorageError> {
        Ok(())
    }

    async fn set_bin(&self, id: Uuid, order: BinOrder) -> Result<(), StorageError> {
        let mut held = self.held.lock().unwrap();
        match order {
            BinOrder::Purge => drop(held.remove(&id)),
            BinOrder::Trash { at } => held.get_mut(&id).unwrap().trashed_at = Some(at),
            BinOrder::Restore => held.get_mut(&id).unwrap().trashed_at = None,
        }
        Ok(())
    }
}

struct NoBlobs;

#[async_trait]
impl BlobFetcher for NoBlobs {
    async fn fetch(&self, sha256: &str) -> anyhow::Result<BoxStream<'static, anyhow::Result<bytes::Bytes>>> {
        anyhow::bail!("no blob {sha256} here")
    }
}

/// One host with its loop running.
struct Host {
    sets: Arc<Engine>,
    vms: Arc<Engine>,
    volumes: Arc<Volumes>,
    calls: Arc<Mutex<Vec<String>>>,
    reconciler: Arc<Reconciler>,
    dir: tempfile::TempDir,
    task: tokio::task::JoinHandle<()>,
    desired: HostDesired,
}

impl Host {
    fn new() -> Self {
        let calls = Arc::<Mutex<Vec<String>>>::default();
        let engine = || Arc::new(Engine { calls: calls.clone(), ..Engine::default() });
        let (sets, vms) = (engine(), engine());
        let volumes = Arc::new(Volumes { calls: calls.clone(), ..Volumes::default() });
        let dir = tempfile::tempdir().unwrap();
        let desired = HostDesired {
            host: HostId::new(),
            generation: 0,
            instances: vec![],
            volumes: vec![],
            snapshots: vec![],
            exports: Vec::new(),
            tombstones: vec![],
        };
        let (reconciler, task) = start(dir.path(), &dir.path().join("run"), &sets, &vms, &volumes);
        Self { sets, vms, volumes, calls, reconciler, dir, task, desired }
    }

    /// The agent ends and starts again; with another `run`, the host was off in between.
    fn restart(&mut self, run: &str) {
        self.task.abort();
        let run = self.dir.path().join(run);
        (self.reconciler, self.task) = start(self.dir.path(), &run, &self.sets, &self.vms, &self.volumes);
    }

    fn order(&mut self, change: impl FnOnce(&mut HostDesired)) {
        change(&mut self.desired);
        self.desired.generation += 1;
        self.reconciler.accept(self.desired.clone()).unwrap();
    }

    /// Waits until the published status is as wanted; panics with the last one.
    async fn until(&self, what: &str, ok: impl Fn(&HostStatus) -> bool) -> HostStatus {
        let mut status = self.reconciler.status();
        let wait = tokio::time::timeout(Duration::from_secs(20), status.wait_for(|s| ok(s)));
        if let Ok(seen) = wait.await {
            return (**seen.unwrap()).clone();
        }
        panic!("{what}: {:#?}\ncalls: {:?}", self.reconciler.status().borrow(), self.calls.lock().unwrap());
    }

    fn calls(&self) -> Vec<String> {
        std::mem::take(&mut self.calls.lock().unwrap())
    }
}

fn start(
    state: &Path,
    run: &Path,
    sets: &Arc<Engine>,
    vms: &Arc<Engine>,
    volumes: &Arc<Volumes>,
) -> (Arc<Reconciler>, tokio::task::JoinHandle<()>) {
    let driver = |kind, engine: &Arc<Engine>| -> (BodyKind, Arc<dyn BodyDriver>) {
        (kind, Arc::new(Bodies { kind, engine: engine.clone() }))
    };
    let drivers = Drivers {
        bodies: BTreeMap::from([driver(BodyKind::Set, sets), driver(BodyKind::Vm, vms)]),
        volumes: volumes.clone(),
        images: Arc::new(ImageCache::new(state.join("images"), Arc::new(NoBlobs))),
    };
    let reconciler = Reconciler::new(drivers, Ledger::open(state, run).unwrap(), Bell::default());
    let task = tokio::spawn(reconciler.clone().run(|| {}));
    (reconciler, task)
}

fn body(kind: BodyKind) -> BodyDesired {
    match kind {
        BodyKind::Set => BodyDesired::Set { set: Default::default(), images: vec![] },
        // A kernel image without blobs cannot be made ready: VMs here carry none.
        BodyKind::Vm => BodyDesired::Vm { image: image(), root_gib: None },
    }
}

fn image() -> Image {
    Image {
        id: ImageId(Uuid::nil()),
        project: ProjectId::DEFAULT,
        name: "none".into(),
        format: ImageFormat::Raw,
        cmdline: String::new(),
        state: ImageState::Active,
        blobs: BTreeMap::new(),
        created_at: jiff::Timestamp::UNIX_EPOCH,
    }
}

fn set(volume: VolumeId) -> InstanceDesired {
    InstanceDesired {
        id: InstanceId::new(),
        project: ProjectId::DEFAULT,
        name: "web".into(),
        epoch: 1,
        power: Power::On,
        restarts: 0,
        vcpus: 1,
        memory_mib: 64,
        body: body(BodyKind::Set),
        next_body: None,
        ports: vec![],
        volume: Some(volume),
        root_volume: None,
        attachments: Vec::new(),
        root: 0,
        rescue: None,
        user_data: None,
        ssh_keys: vec![],
        metadata: BTreeMap::new(),
    }
}

/// A host with one running set on a volume of 10 bytes.
async fn running() -> (Host, InstanceId) {
    let mut host = Host::new();
    let volume =
        VolumeDesired { id: VolumeId::new(), size_bytes: 10, made: false, source: None, trashed_at: None };
    let instance = set(volume.id);
    let id = instance.id;
    host.order(|d| {
        d.instances.push(instance);
        d.volumes.push(volume);
    });
    host.until("it runs", |s| is(s, id, BodyState::Running)).await;
    (host, id)
}

fn is(status: &HostStatus, id: InstanceId, state: BodyState) -> bool {
    status.instances.iter().any(|i| i.id == id && i.state == state && i.fault.is_none())
}

#[tokio::test]
async fn a_set_comes_grows_restarts_and_goes() {
    let (mut host, id) = running().await;
    assert_eq!(host.calls(), ["volume 10", "set ensure 1"]);
    host.order(|d| {
        d.volumes[0].size_bytes = 20;
        d.volumes[0].made = true;
    });
    host.until("the volume has grown", |s| s.volumes.iter().any(|v| v.size_bytes == 20)).await;
    host.order(|d| d.instances[0].restarts = 1);
    host.until("it was restarted", |s| {
        s.instances.iter().any(|i| i.restarts == 1 && i.state == BodyState::Running)
    })
    .await;
    assert_eq!(host.calls(), ["volume 20", "set VolumeGrown { bytes: 20 }", "set stop", "set ensure 1"]);
    host.restart("run");
    host.until("the agent's restart changes nothing", |s| is(s, id, BodyState::Running)).await;
    assert_eq!(host.calls(), Vec::<String>::new());
    let tombstone = Tombstone::Instance { id, epoch: 1 };
    host.order(|d| {
        d.instances.clear();
        d.tombstones.push(tombstone);
    });
    host.until("it is buried", |s| s.buried == [tombstone]).await;
    assert_eq!(host.calls(), ["set stop", "set remove 1"]);
    assert_eq!(host.volumes.held.lock().unwrap().len(), 1, "its volume stays");
}

#[tokio::test]
async fn without_a_tombstone_nothing_goes() {
    let (mut host, id) = running().await;
    host.calls();
    host.order(|d| {
        d.instances.clear();
        d.volumes.clear();
    });
    let status = host.until("strangers are shown", |s| s.strangers.len() == 2).await;
    assert!(status.strangers[0].contains(&id.to_string()), "{:?}", status.strangers);
    assert_eq!(host.calls(), Vec::<String>::new());
    let older = HostDesired { generation: 0, ..host.desired.clone() };
    assert!(host.reconciler.accept(older).is_err(), "an older order is refused");
}

#[tokio::test]
async fn an_engine_that_refuses_is_a_fault_that_heals() {
    let mut host = Host::new();
    *host.sets.refuse.lock().unwrap() = Some("no space left".into());
    let volume =
        VolumeDesired { id: VolumeId::new(), size_bytes: 10, made: false, source: None, trashed_at: None };
    let instance = set(volume.id);
    let id = instance.id;
    host.order(|d| {
        d.instances.push(instance);
        d.volumes.push(volume);
    });
    let status = host.until("the fault is shown", |s| s.instances.iter().any(|i| i.fault.is_some())).await;
    let fault = status.instances[0].fault.clone().unwrap();
    assert_eq!(fault.code, "engine_refused");
    assert!(fault.message.contains("no space left"));
    *host.sets.refuse.lock().unwrap() = None;
    host.until("it converges by itself", |s| is(s, id, BodyState::Running)).await;
}

#[tokio::test]
async fn a_silent_engine_is_told_apart_and_blocks_only_what_it_may_hold() {
    let (mut host, id) = running().await;
    *host.sets.silent.lock().unwrap() = true;
    host.restart("run");
    host.until("its bodies are unknown", |s| {
        s.instances.iter().any(|i| i.id == id && i.fault.as_ref().is_some_and(|f| f.code == "engine_down"))
    })
    .await;
    // As a VM the instance must not start: its set may still run.
    host.calls();
    host.order(|d| {
        d.instances[0].epoch = 2;
        d.instances[0].body = BodyDesired::Vm { image: image(), root_gib: None };
    });
    host.until("seen", |s| s.generation == host.desired.generation).await;
    assert_eq!(host.calls(), Vec::<String>::new());
    assert!(host.reconciler.troubles().borrow().bodies.contains_key(&BodyKind::Set));
    let _ = EngineName::Docker;
}

#[tokio::test]
async fn a_host_that_was_off_starts_nothing_before_the_controller_speaks() {
    let (mut host, id) = running().await;
    host.sets.bodies.lock().unwrap().get_mut(&id).unwrap().state = ObservedState::Stopped;
    host.calls();
    host.restart("run-after-power-cut");
    host.until("the body is seen, stopped", |s| is(s, id, BodyState::Stopped)).await;
    assert_eq!(host.calls(), Vec::<String>::new());
    // The instance lives elsewhere now: what is left here goes and never runs.
    let tombstone = Tombstone::Instance { id, epoch: 1 };
    host.order(|d| {
        d.instances.clear();
        d.tombstones.push(tombstone);
    });
    host.until("buried", |s| s.buried == [tombstone]).await;
    assert_eq!(host.calls(), ["set remove 1"]);
}

#[tokio::test]
async fn a_volume_that_was_lost_is_never_made_anew() {
    let (mut host, id) = running().await;
    host.order(|d| d.volumes[0].made = true);
    host.sets.bodies.lock().unwrap().clear();
    host.volumes.held.lock().unwrap().clear();
    host.restart("run");
    host.until("the loss is told", |s| {
        s.instances.iter().any(|i| i.id == id && i.fault.as_ref().is_some_and(|f| f.code == "volume_missing"))
    })
    .await;
    assert!(host.volumes.held.lock().unwrap().is_empty());
}
