//! The loop over engines in memory: what it does when they fail, fall silent or forget. The real engines have suites of
//! their own; here only the loop is on trial.

use amphi_api::host::EngineName;
use amphi_api::image::{Blob, BlobRole, Image, ImageFormat, ImageState};
use amphi_api::instance::{BodyKind, Power};
use amphi_api::streams::StreamTarget;
use amphi_api::wire::{
    AttachmentDesired, BodyDesired, BodyState, ExportDesired, ExportSource, HostDesired, HostStatus,
    InstanceDesired, PrepullDesired, Tombstone, VolumeDesired, VolumeSource,
};
use amphi_api::{HostId, ImageId, InstanceId, ProjectId, VolumeId};
use amphi_hostsrv::convert::Converter;
use amphi_hostsrv::images::{BlobFetcher, ImageCache, Incoming};
use amphi_hostsrv::instance::moves::{BodyMoves, Departure};
use amphi_hostsrv::instance::sizing::BodySizing;
use amphi_hostsrv::instance::streams::{BodyStreams, Opened};
use amphi_hostsrv::instance::*;
use amphi_hostsrv::lease::memo::Files;
use amphi_hostsrv::qemu_img::DiskFormat;
use amphi_hostsrv::reconcile::exports::{BlobSink, Exporter};
use amphi_hostsrv::reconcile::ledger::Ledger;
use amphi_hostsrv::reconcile::{Drivers, Reconciler};
use amphi_hostsrv::storage::{
    Activation, Attach, Attached, BinOrder, ObservedVolume, Quiesce, StorageError, StorageFacts,
    VolumeDriver, VolumeKind, VolumeSpec,
};
use async_trait::async_trait;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
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
    /// While it is held, nothing is made ready.
    slow: tokio::sync::Mutex<()>,
    /// What becomes of a body that is being sent.
    crossing: Mutex<Crossing>,
}

#[derive(Clone, Copy, Default)]
enum Crossing {
    #[default]
    Goes,
    CalledBack,
    Over,
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
        drop(self.engine.slow.lock().await);
        if let Some(message) = self.engine.refuse.lock().unwrap().clone() {
            return Err(DriverError::EngineRefused { engine: "fake", doing: "ensure".into(), message });
        }
        let by_name = plan.volume.as_ref().is_some_and(|v| v.device.as_os_str().is_empty());
        assert_eq!(by_name, self.kind == BodyKind::Set, "Docker has the shared volume mounted by its name");
        let halted = if plan.power == Power::On { String::new() } else { format!(" {:?}", plan.power) };
        self.note(format!("ensure {}{halted}", plan.epoch));
        let body = ObservedBody {
            instance: plan.instance,
            kind: self.kind,
            epoch: plan.epoch,
            state: match plan.power {
                Power::On | Power::Off => ObservedState::Running,
                Power::Suspended if self.kind == BodyKind::Vm => ObservedState::Suspended,
                Power::Paused | Power::Suspended => ObservedState::Paused,
            },
            ports: plan.ports.iter().map(|port| port.id).collect(),
            volumes: plan.attachments.iter().map(|extra| extra.volume.id).collect(),
            rescued: plan.rescue.is_some(),
            members: vec![],
            agent: None,
            held: Default::default(),
            away: false,
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
            body.volumes.clear();
            body.ports.clear();
        }
        Ok(())
    }

    async fn remove(&self, id: InstanceId, epoch: u64, remains: Remains) -> Result<(), DriverError> {
        self.answers("remove")?;
        self.note(format!("remove {epoch} but {remains:?}"));
        self.engine.bodies.lock().unwrap().retain(|i, b| *i != id || b.epoch > epoch);
        Ok(())
    }

    async fn console_log(&self, _: InstanceId, _: Option<&str>, _: u32) -> Result<String, DriverError> {
        Ok(String::new())
    }

    async fn adjust(&self, _: InstanceId, adjustment: Adjustment) -> Result<(), DriverError> {
        let what = match adjustment {
            Adjustment::VolumeGrown { bytes, .. } => format!("grown {bytes}"),
            other => format!("{other:?}"),
        };
        self.note(what);
        Ok(())
    }
}

#[async_trait]
impl BodyExport for Bodies {
    async fn export(&self, plan: &ExportPlan) -> Result<(), DriverError> {
        self.answers("export")?;
        self.note(format!("export {:?} as {:?}", plan.part, plan.format));
        std::fs::write(&plan.to, "of a body")
            .map_err(|source| DriverError::Io { doing: "write".into(), source })
    }
}

impl BodySizing for Bodies {}

#[async_trait]
impl BodyMoves for Bodies {
    /// Until the test lets it go over, or it is called back.
    async fn depart(&self, departure: &Departure) -> Result<(), DriverError> {
        self.note(format!("depart {}", departure.epoch));
        loop {
            let crossing = *self.engine.crossing.lock().unwrap();
            match crossing {
                Crossing::Goes => tokio::time::sleep(Duration::from_millis(5)).await,
                Crossing::CalledBack => {
                    return Err(DriverError::EngineRefused {
                        engine: "fake",
                        doing: "depart".into(),
                        message: "called back".into(),
                    });
                }
                Crossing::Over => {
                    if let Some(body) = self.engine.bodies.lock().unwrap().get_mut(&departure.instance) {
                        body.state = ObservedState::Stopped;
                        body.away = true;
                    }
                    return Ok(());
                }
            }
        }
    }

    async fn recall(&self, _: InstanceId) -> Result<(), DriverError> {
        self.note("recall".into());
        *self.engine.crossing.lock().unwrap() = Crossing::CalledBack;
        Ok(())
    }
}

#[async_trait]
impl BodyStreams for Bodies {
    async fn open(&self, _: InstanceId, _: &StreamTarget) -> Result<Opened, DriverError> {
        Err(DriverError::EngineRefused {
            engine: "fake",
            doing: "open".into(),
            message: "nothing here".into(),
        })
    }
}

#[derive(Default)]
struct Volumes {
    held: Mutex<BTreeMap<Uuid, ObservedVolume>>,
    /// How often LVM was asked.
    looks: AtomicU32,
    calls: Arc<Mutex<Vec<String>>>,
    /// While it is held, nothing is made.
    slow: tokio::sync::Mutex<()>,
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
            shared: vec![],
        })
    }

    async fn observe(&self) -> Result<Vec<ObservedVolume>, StorageError> {
        self.looks.fetch_add(1, Ordering::Relaxed);
        Ok(self.held.lock().unwrap().values().cloned().collect())
    }

    async fn ensure(&self, spec: &VolumeSpec) -> Result<(), StorageError> {
        self.calls.lock().unwrap().push(format!("volume {}", spec.size_bytes));
        drop(self.slow.lock().await);
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
            shared: None,
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

    async fn mounted(&self, id: Uuid) -> Result<Option<PathBuf>, StorageError> {
        Ok(self.held.lock().unwrap().get(&id).and_then(|volume| volume.mounted.clone()))
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

    async fn export(&self, _: Uuid, to: &Path, format: DiskFormat, _: &Quiesce) -> Result<(), StorageError> {
        self.calls.lock().unwrap().push(format!("volume out as {format:?}"));
        std::fs::write(to, "of a volume").unwrap();
        Ok(())
    }

    async fn set_filesystem(
        &self,
        _: Uuid,
        _: Option<amphi_hostsrv::storage::Filesystem>,
    ) -> Result<(), StorageError> {
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

/// What the controller was handed, by image; refuses while it is told to.
#[derive(Default)]
struct Sink {
    taken: Mutex<BTreeMap<ImageId, Vec<u8>>>,
    refuses: Mutex<bool>,
}

#[async_trait]
impl BlobSink for Sink {
    async fn put(&self, image: ImageId, _: &Blob, file: &Path) -> anyhow::Result<()> {
        anyhow::ensure!(!*self.refuses.lock().unwrap(), "the disk is full");
        self.taken.lock().unwrap().insert(image, std::fs::read(file)?);
        Ok(())
    }
}

struct NoBlobs;

#[async_trait]
impl BlobFetcher for NoBlobs {
    async fn fetch(&self, blob: &Blob, _: u64) -> anyhow::Result<Incoming> {
        anyhow::bail!("no blob {} here", blob.sha256)
    }
}

/// One host with its loop running.
struct Host {
    sets: Arc<Engine>,
    vms: Arc<Engine>,
    volumes: Arc<Volumes>,
    sink: Arc<Sink>,
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
        let desired = HostDesired { generation: 0, ..HostDesired::empty(HostId::new()) };
        let sink = Arc::new(Sink::default());
        let (reconciler, task) = start(dir.path(), &dir.path().join("run"), &sets, &vms, &volumes, &sink);
        Self { sets, vms, volumes, sink, calls, reconciler, dir, task, desired }
    }

    /// The agent ends and starts again; with another `run`, the host was off in between.
    fn restart(&mut self, run: &str) {
        self.task.abort();
        let run = self.dir.path().join(run);
        (self.reconciler, self.task) =
            start(self.dir.path(), &run, &self.sets, &self.vms, &self.volumes, &self.sink);
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
    sink: &Arc<Sink>,
) -> (Arc<Reconciler>, tokio::task::JoinHandle<()>) {
    let driver = |kind, engine: &Arc<Engine>| -> (BodyKind, Arc<dyn BodyDriver>) {
        (kind, Arc::new(Bodies { kind, engine: engine.clone() }))
    };
    let drivers = Drivers {
        bodies: BTreeMap::from([driver(BodyKind::Set, sets), driver(BodyKind::Vm, vms)]),
        volumes: volumes.clone(),
        images: Arc::new(ImageCache::new(state.join("images"), Arc::new(NoBlobs))),
        exports: Arc::new(Exporter::new(state.join("exports"), sink.clone())),
        converter: Arc::new(Converter::new(None)),
    };
    let reconciler = Reconciler::new(drivers, Ledger::open(state, run).unwrap(), Bell::default());
    let task = tokio::spawn(reconciler.clone().run(|| {}));
    (reconciler, task)
}

fn body(kind: BodyKind) -> BodyDesired {
    match kind {
        BodyKind::Set => BodyDesired::Set { set: Default::default(), images: vec![] },
        // A kernel image without blobs cannot be made ready: VMs here carry none.
        BodyKind::Vm => BodyDesired::Vm { image: image(), root_gib: None, probes: Default::default() },
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
        layers: Vec::new(),
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
        resizes: 0,
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
        leaving: None,
        arriving_from: None,
        copying: None,
        copied_from: None,
        twin: false,
        members: Default::default(),
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
    assert_eq!(host.calls(), ["volume 20", "set grown 20", "set stop", "set ensure 1"]);
    host.restart("run");
    host.until("the agent's restart changes nothing", |s| is(s, id, BodyState::Running)).await;
    assert_eq!(host.calls(), Vec::<String>::new());
    let tombstone = Tombstone::Instance { id, epoch: 1 };
    host.order(|d| {
        d.instances.clear();
        d.tombstones.push(tombstone);
    });
    host.until("it is buried", |s| s.buried == [tombstone]).await;
    assert_eq!(host.calls(), ["set stop", "set remove 1 but Nothing"]);
    assert_eq!(host.volumes.held.lock().unwrap().len(), 1, "its volume stays");
}

/// An order that is called off while it is carried out: whoever hears that it is buried starts the body elsewhere, or
/// forgets it.
#[tokio::test]
async fn what_is_under_way_is_not_buried() {
    for in_the_engine in [false, true] {
        let mut host = Host::new();
        let (sets, volumes) = (host.sets.clone(), host.volumes.clone());
        let held = if in_the_engine { sets.slow.lock().await } else { volumes.slow.lock().await };
        // A copy is there before anything is started; beside a blank one the containers are made.
        let source = (!in_the_engine).then(|| VolumeSource::Volume(VolumeId::new()));
        let volume =
            VolumeDesired { id: VolumeId::new(), size_bytes: 10, made: false, source, trashed_at: None };
        let instance = set(volume.id);
        let tombstones = vec![
            Tombstone::Instance { id: instance.id, epoch: instance.epoch },
            Tombstone::Volume { id: volume.id },
        ];
        host.order(|d| {
            d.instances.push(instance);
            d.volumes.push(volume);
        });
        eventually("it is under way", || !host.calls.lock().unwrap().is_empty()).await;
        host.order(|d| {
            d.instances.clear();
            d.volumes.clear();
            d.tombstones = tombstones.clone();
        });
        let generation = host.desired.generation;
        let status = host.until("the new order is seen", |s| s.generation == generation).await;
        assert_eq!(status.buried, [], "in the engine: {in_the_engine}");
        drop(held);
        host.until("it is buried", |s| s.buried == tombstones).await;
        assert!(host.sets.bodies.lock().unwrap().is_empty(), "in the engine: {in_the_engine}");
        assert!(host.volumes.held.lock().unwrap().is_empty(), "in the engine: {in_the_engine}");
        if !in_the_engine {
            assert!(!host.calls().iter().any(|c| c.starts_with("set ensure")), "it was not started any more");
        }
    }
}

/// Each look at LVM is a process: none is started where nothing can have changed.
#[tokio::test]
async fn lvm_is_asked_when_a_volume_may_have_changed() {
    let (mut host, id) = running().await;
    let looked_at = async |host: &mut Host| {
        host.order(|_| ());
        let generation = host.desired.generation;
        host.until("the order is seen", |s| s.generation == generation).await;
        host.volumes.looks.load(Ordering::Relaxed)
    };
    looked_at(&mut host).await;
    let before = looked_at(&mut host).await;
    // Neither orders nor work on bodies alone.
    assert_eq!(looked_at(&mut host).await, before);
    host.sets.bodies.lock().unwrap().get_mut(&id).unwrap().state = ObservedState::Stopped;
    host.volumes.held.lock().unwrap().values_mut().for_each(|v| v.mounted = None);
    looked_at(&mut host).await;
    host.until("it runs again", |s| is(s, id, BodyState::Running)).await;
    looked_at(&mut host).await;
    assert!(looked_at(&mut host).await > before, "attaching changed the volume");
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
        d.instances[0].body = BodyDesired::Vm { image: image(), root_gib: None, probes: Default::default() };
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
    assert_eq!(host.calls(), ["set remove 1 but Nothing"]);
}

#[tokio::test]
async fn a_host_without_a_lease_buries_and_starts_nothing() {
    let (mut host, id) = running().await;
    // Its lease process has been given leases before, and has none now.
    let files = Files::new(&host.dir.path().join("run"), host.dir.path());
    files.set_mark(true).unwrap();
    host.calls();
    let tombstone = Tombstone::Instance { id, epoch: 1 };
    let coming = set(host.desired.volumes[0].id);
    let new = coming.id;
    host.order(|d| {
        d.instances = vec![coming];
        d.tombstones.push(tombstone);
    });
    host.until("buried", |s| s.buried == [tombstone]).await;
    assert_eq!(host.calls(), ["set stop", "set remove 1 but Nothing"]);
    // With a lease the rest is done: the row above is not about an agent that has stopped working.
    files.set_mark(false).unwrap();
    host.until("the other one runs", |s| is(s, new, BodyState::Running)).await;
}

/// Hosts whose death a fence device vouches for need no lease, and come back while what they had is being placed anew.
#[tokio::test]
async fn a_host_that_is_shut_out_buries_and_starts_nothing() {
    let (mut host, id) = running().await;
    host.sets.bodies.lock().unwrap().get_mut(&id).unwrap().state = ObservedState::Stopped;
    host.calls();
    host.restart("run-after-the-fence");
    let gone = InstanceId::new();
    let tombstone = Tombstone::Instance { id: gone, epoch: 1 };
    host.order(|d| {
        d.shut_out = true;
        d.tombstones.push(tombstone);
    });
    let status = host.until("buried", |s| s.buried == [tombstone]).await;
    assert!(is(&status, id, BodyState::Stopped), "{status:?}");
    assert_eq!(host.calls(), Vec::<String>::new());
    host.order(|d| d.shut_out = false);
    host.until("let in, it starts what is its own", |s| is(s, id, BodyState::Running)).await;
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

#[tokio::test]
async fn it_halts_and_takes_and_gives_volumes() {
    let (mut host, id) = running().await;
    host.calls();
    for (power, state) in [(Power::Paused, BodyState::Paused), (Power::Suspended, BodyState::Suspended)] {
        host.order(|d| d.instances[0].power = power);
        host.until("it is halted", |s| is(s, id, state)).await;
    }
    host.order(|d| d.instances[0].power = Power::On);
    host.until("it runs on", |s| is(s, id, BodyState::Running)).await;
    // A set that is paused is as suspended as it can be.
    assert_eq!(host.calls(), ["set ensure 1 Paused", "set ensure 1"]);

    let extra =
        VolumeDesired { id: VolumeId::new(), size_bytes: 5, made: false, source: None, trashed_at: None };
    let volume = extra.id;
    host.order(|d| {
        d.instances[0].attachments =
            vec![AttachmentDesired { volume, device: "vdb".into(), read_only: false }];
        d.volumes.push(extra);
    });
    let plugged = |s: &HostStatus| s.instances[0].plugged_volumes.clone();
    host.until("the volume is plugged in", |s| plugged(s) == [volume]).await;
    assert_eq!(host.calls(), ["volume 5", "set ensure 1"]);
    host.order(|d| d.instances[0].attachments.clear());
    host.until("it is plugged out", |s| plugged(s).is_empty()).await;
    eventually("it is detached", || {
        let held = host.volumes.held.lock().unwrap();
        held[&volume.0].device.is_none()
    })
    .await;
}

/// What is fetched by order may go when room is needed; what a policy keeps may not. Both outlive the agent.
#[tokio::test]
async fn a_policy_keeps_images_and_an_order_does_not() {
    let mut host = Host::new();
    let one = |digit: &str, kept| {
        let blob = Blob { sha256: digit.repeat(64), size: 1 };
        let image = Image { blobs: BTreeMap::from([(BlobRole::Disk, blob)]), ..image() };
        PrepullDesired { image, kept }
    };
    host.order(|d| d.images = vec![one("a", true), one("b", false)]);
    let kept = BTreeSet::from(["a".repeat(64)]);
    assert_eq!(host.reconciler.blobs_in_use(), kept);
    host.restart("run");
    assert_eq!(host.reconciler.blobs_in_use(), kept);
    host.order(|d| d.images.clear());
    assert!(host.reconciler.blobs_in_use().is_empty());
}

async fn eventually(what: &str, ok: impl Fn() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while !ok() {
        assert!(tokio::time::Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn bytes_are_handed_over_once() {
    let (mut host, id) = running().await;
    host.calls();
    *host.sink.refuses.lock().unwrap() = true;
    let export = |source, format| ExportDesired { image: ImageId(Uuid::new_v4()), format, source };
    let member = export(ExportSource::Member { instance: id, member: None }, ImageFormat::DockerArchive);
    let volume = export(ExportSource::Volume(host.desired.volumes[0].id), ImageFormat::Qcow2);
    let images = [member.image, volume.image];
    host.order(|d| d.exports = vec![member, volume]);
    let faults = |s: &HostStatus| s.exports.iter().filter_map(|e| e.fault.clone()).collect::<Vec<_>>();
    let status = host.until("the controller takes nothing", |s| faults(s).len() == 2).await;
    assert_eq!(faults(&status)[0].code, "upload_failed", "{:?}", faults(&status));
    *host.sink.refuses.lock().unwrap() = false;
    let done = |s: &HostStatus| s.exports.len() == 2 && s.exports.iter().all(|e| e.blob.is_some());
    let status = host.until("both are with the controller", done).await;
    assert_eq!(faults(&status), []);
    let taken = host.sink.taken.lock().unwrap().clone();
    assert_eq!(taken[&images[0]], b"of a body");
    assert_eq!(taken[&images[1]], b"of a volume");
    assert_eq!(std::fs::read_dir(host.dir.path().join("exports")).unwrap().count(), 0);
    let calls = host.calls();
    assert!(calls.contains(&"set export Member(None) as DockerArchive".to_owned()), "{calls:?}");
    assert!(calls.contains(&"volume out as Qcow2".to_owned()), "{calls:?}");

    // The agent's restart does not do it again, and what nobody asks for is forgotten.
    host.restart("run");
    host.until("still done", done).await;
    assert_eq!(host.calls(), Vec::<String>::new());
    host.order(|d| d.exports.clear());
    host.until("forgotten", |s| s.exports.is_empty()).await;
}

fn leaving(status: &HostStatus) -> Option<amphi_api::wire::LeavingStatus> {
    status.instances.first()?.leaving
}

fn of_vms(host: &Host) -> Vec<String> {
    host.calls().into_iter().filter(|call| call.starts_with("vm ")).collect()
}

/// A host with a running VM that it is told to send away.
async fn departing() -> (Host, InstanceId) {
    let mut host = Host::new();
    let volume =
        VolumeDesired { id: VolumeId::new(), size_bytes: 10, made: false, source: None, trashed_at: None };
    let root_volume = Some(volume.id);
    let vm = InstanceDesired { body: body(BodyKind::Vm), volume: None, root_volume, ..set(volume.id) };
    let id = vm.id;
    host.order(|d| {
        d.instances.push(vm);
        d.volumes.push(volume);
    });
    host.until("it runs", |s| is(s, id, BodyState::Running)).await;
    host.order(|d| {
        d.instances[0].leaving = Some(amphi_api::wire::LeavingDesired {
            exchange: amphi_api::ExchangeId::new(),
            to: HostId::new(),
            address: "127.0.0.1:1".parse().unwrap(),
            epoch: 2,
            recalled: false,
        });
    });
    host.until("it is under way", |s| leaving(s).is_some_and(|l| l.under_way && !l.away)).await;
    assert_eq!(of_vms(&host), ["vm ensure 1", "vm depart 2"]);
    (host, id)
}

#[tokio::test]
async fn a_body_that_went_over_is_not_started_again() {
    let (mut host, id) = departing().await;
    *host.vms.crossing.lock().unwrap() = Crossing::Over;
    let gone = |s: &HostStatus| {
        let stopped = s.instances.iter().any(|i| i.id == id && i.state == BodyState::Stopped);
        stopped && leaving(s).is_some_and(|l| l.away && !l.under_way)
    };
    host.until("it is away", gone).await;
    host.restart("run");
    host.order(|_| ());
    host.until("it is away, says a new agent too", gone).await;
    assert_eq!(of_vms(&host), Vec::<String>::new());
    let tombstone = Tombstone::Instance { id, epoch: 1 };
    host.order(|d| {
        d.instances.clear();
        d.tombstones.push(tombstone);
    });
    host.until("it is buried", |s| s.buried == [tombstone]).await;
    assert_eq!(of_vms(&host), ["vm remove 1 but Nothing"]);
}

#[tokio::test]
async fn a_body_that_is_recalled_stays_and_is_not_sent_again() {
    let (mut host, id) = departing().await;
    host.order(|d| d.instances[0].leaving.as_mut().unwrap().recalled = true);
    host.until("it is back", |s| leaving(s).is_some_and(|l| l.recalled && !l.under_way)).await;
    assert_eq!(of_vms(&host), ["vm recall"]);
    *host.vms.crossing.lock().unwrap() = Crossing::Goes;
    host.restart("run");
    host.order(|_| ());
    host.until("the new agent knows too", |s| leaving(s).is_some_and(|l| l.recalled)).await;
    // Whatever the engine has left of it, it runs on here once the move is over.
    host.vms.bodies.lock().unwrap().get_mut(&id).unwrap().state = ObservedState::Degraded;
    host.order(|_| ());
    host.until("it is halted", |s| is(s, id, BodyState::Starting)).await;
    assert_eq!(of_vms(&host), Vec::<String>::new());
    host.order(|d| d.instances[0].leaving = None);
    host.until("it runs", |s| is(s, id, BodyState::Running)).await;
    assert_eq!(of_vms(&host), ["vm ensure 1"]);
}
