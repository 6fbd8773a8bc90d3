//! Operations on the real embedded store, with hosts that are played: what a host would say is made of what it is told.

mod catalogue;
mod conversions;
mod create;
mod evacuation;
mod exchange;
mod images;
mod life;
mod live;
mod moves;
mod passes;
mod placement;
mod prepull;
mod replicas;
mod resizing;
mod rollouts;
mod scaling_groups;
mod servers;
mod shared_groups;
mod sums;
mod twins;
mod volume_journeys;
mod volumes;

use super::*;
use crate::images::BlobStore;
use crate::model::{ImageRecord, Record};
use crate::store::{Entry, LeaseId, Op, Revision, SledStore, Watch};
use amphi_api::host::{Acceleration, Engine, EngineName, HostSpec, JoinTokenCreate, VolumeActivation};
use amphi_api::image::{Blob, BlobRole, ImageFormat};
use amphi_api::instance::{Instance, InstanceCreate, Power};
use amphi_api::network::{Network, NetworkCreate};
use amphi_api::resize::MemberUsage;
use amphi_api::wire::{
    BodyState, ExportStatus, HostStatus, InstanceStatus, JoinTicket, SnapshotStatus, VolumeStatus,
};
use amphi_api::{ImageId, ProjectId};
use serde_json::json;
use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};

pub const P: ProjectId = ProjectId::DEFAULT;
const GIB: u64 = 1 << 30;

/// Links that stand as the test says.
#[derive(Default)]
pub struct PlayedLinks {
    up: Mutex<HashSet<HostId>>,
    /// What members use, as any host would say.
    pub used: Mutex<Vec<MemberUsage>>,
}

#[async_trait]
impl HostLinks for PlayedLinks {
    async fn ask(&self, host: HostId, ask: Ask) -> Result<Answer, AskError> {
        if !self.is_linked(host) {
            return Err(AskError::NoLink);
        }
        match ask {
            Ask::ConsoleLog { member, lines, .. } => {
                Ok(Answer::ConsoleLog { text: format!("{lines} lines of {member:?}") })
            }
            Ask::Figures => Ok(Answer::Figures { rows: Vec::new() }),
            Ask::Usage { .. } => Ok(Answer::Usage { members: self.used.lock().unwrap().clone() }),
        }
    }
    async fn stream(&self, host: HostId, _: InstanceId, what: StreamTarget) -> Result<HostStream, AskError> {
        if !self.is_linked(host) {
            return Err(AskError::NoLink);
        }
        let message = format!("told to open {what:?}");
        Err(AskError::Fault(Fault { code: "engine_refused".into(), message, since: jiff::Timestamp::now() }))
    }
    fn is_linked(&self, host: HostId) -> bool {
        self.up.lock().unwrap().contains(&host)
    }
    fn end(&self, host: HostId) {
        self.up.lock().unwrap().remove(&host);
    }
}

/// The real store, which can be told to refuse commits.
pub struct BreakableStore {
    sled: SledStore,
    broken: AtomicBool,
}

#[async_trait]
impl Store for BreakableStore {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.sled.get(key).await
    }
    async fn range(&self, prefix: &str) -> Result<(Vec<Entry>, Revision), StoreError> {
        self.sled.range(prefix).await
    }
    async fn commit(&self, txn: Txn) -> Result<Revision, StoreError> {
        if self.broken.load(Ordering::SeqCst) {
            return Err(StoreError::Unavailable {
                doing: "commit",
                message: "no space left on device".into(),
            });
        }
        self.sled.commit(txn).await
    }
    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StoreError> {
        self.sled.watch(prefix, after).await
    }
    async fn lease_grant(&self, ttl: std::time::Duration) -> Result<LeaseId, StoreError> {
        self.sled.lease_grant(ttl).await
    }
    async fn lease_keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.sled.lease_keep_alive(lease).await
    }
    async fn lease_revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.sled.lease_revoke(lease).await
    }
    async fn failed(&self) -> StoreError {
        self.sled.failed().await
    }
}

pub struct Cloud {
    pub ops: Arc<Ops>,
    pub links: Arc<PlayedLinks>,
    pub store: Arc<BreakableStore>,
    /// Its store is in `store`, its images in `images`.
    pub dir: Arc<tempfile::TempDir>,
}

/// The largest blob that a test's cloud takes, in bytes.
pub const BLOB_LIMIT: u64 = 8 << 20;

pub fn spec(name: &str) -> HostSpec {
    let engine = |name| Engine { name, version: "1".into(), trouble: None };
    HostSpec {
        name: name.into(),
        chassis: name.into(),
        address: "10.99.0.11".into(),
        cpus: 4,
        memory_mib: 4096,
        reserved_cpus: 1,
        reserved_memory_mib: 512,
        volume_group_bytes: 20 * GIB,
        volume_group_free_bytes: 20 * GIB,
        acceleration: Acceleration::Tcg,
        activation: VolumeActivation::Loop,
        engines: [EngineName::Docker, EngineName::Libvirt, EngineName::Ovs, EngineName::Ovn, EngineName::Lvm]
            .map(engine)
            .to_vec(),
        shared_groups: Vec::new(),
        physical_networks: vec!["lan".into()],
        moves_at: None,
        takes_passes: false,
        guest_kit: true,
        isolation: None,
        wire: amphi_api::wire::WIRE,
        agent_version: "0".into(),
    }
}

/// Blobs that nobody names go at the second sweep that finds them so.
const TERMS: BlobTerms = BlobTerms {
    lent: jiff::SignedDuration::from_secs(600),
    brief: jiff::SignedDuration::ZERO,
    grace: std::time::Duration::ZERO,
    upload: std::time::Duration::from_secs(600),
};

impl Cloud {
    /// A controller on an empty store.
    pub async fn new() -> Self {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        let sled = SledStore::open(&dir.path().join("store")).unwrap();
        let store = Arc::new(BreakableStore { sled, broken: AtomicBool::new(false) });
        Self::on(store, dir, Arc::default()).await
    }

    /// Whether the store refuses every commit, as one on a full disk does.
    pub fn break_store(&self, broken: bool) {
        self.store.broken.store(broken, Ordering::SeqCst);
    }

    /// One more controller on the same store: also what a restart looks like.
    pub async fn another(&self) -> Self {
        Self::on(self.store.clone(), self.dir.clone(), self.links.clone()).await
    }

    async fn on(store: Arc<BreakableStore>, dir: Arc<tempfile::TempDir>, links: Arc<PlayedLinks>) -> Self {
        let world = World::open(store.clone()).await.unwrap();
        let blobs =
            Arc::new(BlobStore::open(&dir.path().join("images")).await.unwrap().with_limit(BLOB_LIMIT));
        let settings = Settings {
            hosts_url: "https://127.0.0.1:7443".into(),
            ca_sha256: "00".repeat(32),
            policy: Policy::default(),
            automatic_failover: true,
            blobs: TERMS,
            region: "here".into(),
        };
        let ops = Ops::new(store.clone(), world, links.clone(), blobs, settings);
        Self { ops, links, store, dir }
    }

    /// A cloud with two hosts, a network, a security group and an image of either kind.
    pub async fn furnished() -> (Self, HostId, HostId) {
        let cloud = Self::new().await;
        let h1 = cloud.host("h1").await;
        let h2 = cloud.host("h2").await;
        cloud.network("net", "10.1.0.0/24").await;
        cloud.ops.create_group(P, &serde_json::from_value(json!({"name": "web"})).unwrap()).await.unwrap();
        cloud.image("busybox", ImageFormat::DockerArchive).await;
        cloud.image("vm", ImageFormat::KernelInitramfs).await;
        (cloud, h1, h2)
    }

    pub async fn host(&self, name: &str) -> HostId {
        let token = self.ops.create_join_token(&JoinTokenCreate::default()).await.unwrap().token;
        let ticket = hex::decode(token.strip_prefix("amphi-").unwrap()).unwrap();
        let ticket: JoinTicket = serde_json::from_slice(&ticket).unwrap();
        let host = self.ops.join(&ticket.secret, name).await.unwrap();
        assert_eq!(
            self.ops.join(&ticket.secret, name).await.unwrap_err().code(),
            amphi_api::ErrorCode::Forbidden
        );
        self.up(host, name).await;
        host
    }

    pub async fn up(&self, host: HostId, name: &str) {
        self.ops.hello(host, &spec(name)).await.unwrap();
        self.links.up.lock().unwrap().insert(host);
    }

    pub async fn down(&self, host: HostId) {
        self.links.up.lock().unwrap().remove(&host);
        self.ops.gone(host).await.unwrap();
    }

    pub async fn network(&self, name: &str, cidr: &str) -> Network {
        let request: NetworkCreate =
            serde_json::from_value(json!({"name": name, "subnet": {"cidr": cidr}})).unwrap();
        self.ops.create_network(P, &request).await.unwrap()
    }

    /// An active image without bytes behind it.
    pub async fn image(&self, name: &str, format: ImageFormat) -> ImageId {
        let blob = Blob { sha256: "ab".repeat(32), size: 1 };
        let record = ImageRecord {
            id: ImageId::new(),
            project: P,
            name: name.into(),
            format,
            cmdline: String::new(),
            blobs: format.roles().iter().map(|role: &BlobRole| (*role, blob.clone())).collect(),
            layers: Vec::new(),
            export: None,
            closing: false,
            traits: Default::default(),
            created_at: Timestamp::now(),
        };
        let value = serde_json::to_value(&record).unwrap();
        let put = Op::Put { key: record.key(), value, lease: None };
        let revision = self.store.commit(Txn { compares: vec![], ops: vec![put] }).await.unwrap();
        assert!(self.ops.world().reached(revision).await);
        record.id
    }

    pub async fn create(&self, change: serde_json::Value) -> Result<Instance, OpsError> {
        self.ops.create_instance(P, &request(change)).await
    }

    /// What a host says that does all it is told, at once.
    pub fn obedient(&self, host: HostId) -> HostStatus {
        let desired = self.ops.desired(host);
        let instances = desired.instances.iter().map(|i| InstanceStatus {
            id: i.id,
            epoch: i.epoch,
            kind: i.body.kind(),
            state: match i.power {
                Power::On => BodyState::Running,
                Power::Off => BodyState::Stopped,
                Power::Paused => BodyState::Paused,
                Power::Suspended => BodyState::Suspended,
            },
            members: Vec::new(),
            agent: None,
            ready: None,
            reason: None,
            restarts: i.restarts,
            plugged_ports: i.ports.iter().map(|p| p.id).collect(),
            plugged_volumes: i.attachments.iter().map(|a| a.volume).collect(),
            rescued: i.rescue.is_some(),
            next_ready: i.next_body.is_some(),
            next_fault: None,
            fault: None,
            switch_ms: Some(42),
            size: amphi_api::resize::SizeStatus { resizes: i.resizes, ..Default::default() },
            leaving: None,
            copying: None,
        });
        let volumes = desired.volumes.iter().map(|v| VolumeStatus {
            id: v.id,
            size_bytes: v.size_bytes,
            present: true,
            trashed: v.trashed_at.is_some(),
            fault: None,
        });
        let snapshots =
            desired.snapshots.iter().map(|s| SnapshotStatus { id: s.id, present: true, fault: None });
        let exports = desired.exports.iter().map(|e| ExportStatus {
            image: e.image,
            blob: Some(Blob { sha256: "cd".repeat(32), size: 2 }),
            fault: None,
            conversion: None,
        });
        let expected = desired.expected.iter().map(|i| amphi_api::wire::ExpectedStatus {
            id: i.id,
            epoch: i.epoch,
            ready: true,
            fault: None,
            landed: false,
        });
        HostStatus {
            expected: expected.collect(),
            exports: exports.collect(),
            generation: desired.generation,
            instances: instances.collect(),
            volumes: volumes.collect(),
            snapshots: snapshots.collect(),
            buried: desired.tombstones.clone(),
            active: Default::default(),
            strangers: Vec::new(),
        }
    }

    /// The host does all it is told and says so.
    pub async fn obey(&self, host: HostId) {
        let status = self.obedient(host);
        self.ops.status(host, status).await.unwrap();
    }

    pub fn show(&self, instance: &Instance) -> Instance {
        self.ops.instance(P, instance.id).unwrap()
    }

    /// Nothing is promised and nothing taken any more.
    pub fn assert_empty(&self) {
        let view = self.ops.world().read();
        assert_eq!(view.instances.len(), 0, "instances");
        assert_eq!(view.ports.len(), 0, "ports");
        assert_eq!(view.volumes.len(), 0, "volumes");
        assert_eq!(view.exchanges.iter().filter(|e| !e.ended()).count(), 0, "exchanges");
        for claim in view.claims.iter() {
            assert_eq!(claim.claims, Default::default(), "claims of {}", claim.host);
        }
    }
}

/// A set of two members, with what the test changes.
pub fn request(change: serde_json::Value) -> InstanceCreate {
    let mut value = json!({
        "name": "web", "vcpus": 1, "memory_mib": 128,
        "bodies": [{"set": {"members": [
            {"index": 1, "image": "busybox"},
            {"index": 0, "image": "busybox"}]}}],
        "networks": [{"network": "net"}],
    });
    for (key, part) in change.as_object().unwrap() {
        value[key] = part.clone();
    }
    serde_json::from_value(value).unwrap()
}
