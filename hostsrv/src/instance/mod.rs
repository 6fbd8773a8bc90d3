//! What a body is to the agent: plain values in, plain observations out, and one driver trait with two implementations.
//!
//! A body belongs to one instance at one epoch. A driver keeps all its knowledge in the engine (labels, domain
//! metadata), so that a fresh process sees the same world. Drivers refuse to decide: whether a body should exist is
//! `reconcile`'s business.

pub(crate) mod config_drive;
pub mod figures;
pub(crate) mod folders;
pub mod gauge;
pub mod limits;
pub mod moves;
pub mod set;
pub mod sizing;
pub mod streams;
pub(crate) mod tar_gate;
pub mod vm;

use crate::qemu_img::QemuImgError;
use amphi_api::image::{BlobRole, Image, ImageFormat};
use amphi_api::instance::{BodyKind, GuestAgent, MemberStatus, Power};
use amphi_api::set::SetSpec;
use amphi_api::wire::{AddressDesired, BodyDesired, MemberDesired, PortDesired, RouteDesired};
use amphi_api::{ImageId, InstanceId, NetworkId, PortId, ProjectId, SubnetId, VolumeId};
use async_trait::async_trait;
use ipnet::IpNet;
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

/// A port as a driver plugs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortAttachment {
    pub id: PortId,
    pub network: NetworkId,
    pub subnet: IpNet,
    /// Lower case, colon-separated.
    pub mac: String,
    pub address: IpNet,
    pub gateway: Option<IpAddr>,
    pub dns: Vec<IpAddr>,
    pub mtu: u32,
    /// The primary address' subnet; none: the one that the network was made with.
    pub segment: Option<SubnetId>,
    /// Its other addresses.
    pub further: Vec<AddressDesired>,
    /// Beside the default route.
    pub routes: Vec<RouteDesired>,
}

impl From<&PortDesired> for PortAttachment {
    fn from(port: &PortDesired) -> Self {
        Self {
            id: port.id,
            network: port.network,
            subnet: port.subnet,
            mac: port.mac.clone(),
            address: port.address,
            gateway: port.gateway,
            dns: port.dns.clone(),
            mtu: port.mtu,
            segment: port.segment,
            further: port.further.clone(),
            routes: port.routes.clone(),
        }
    }
}

impl PortAttachment {
    /// All its addresses with their gateways, the primary first.
    pub fn addresses(&self) -> impl Iterator<Item = (IpNet, Option<IpAddr>)> + '_ {
        let rest = self.further.iter().map(|a| (a.address, a.gateway));
        std::iter::once((self.address, self.gateway)).chain(rest)
    }

    /// Its IPv6 address where the primary one is IPv4: the one more that a container's endpoint can have.
    pub fn second_family(&self) -> Option<&AddressDesired> {
        self.further.iter().find(|a| a.address.addr().is_ipv6() && self.address.addr().is_ipv4())
    }
}

/// The name servers of the ports' networks, each once.
pub fn name_servers(ports: &[PortAttachment]) -> Vec<IpAddr> {
    let mut servers = Vec::new();
    for server in ports.iter().flat_map(|port| &port.dns) {
        if !servers.contains(server) {
            servers.push(*server);
        }
    }
    servers
}

/// The volume as a driver hands it on: a block device for a VM, a mounted directory for a set. Of the volume that a set's
/// members share only the id is told: Docker has it mounted through the volume driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeAttachment {
    pub id: VolumeId,
    pub device: PathBuf,
    /// Only for sets.
    pub mount: Option<PathBuf>,
}

/// A further volume in an instance's hands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExtraVolume {
    pub volume: VolumeAttachment,
    /// `vdb`: the disk's name in a VM; in a set the volume is mounted at `/volumes/vdb`.
    pub device: String,
    pub read_only: bool,
}

/// An image whose blobs lie in the host's cache, digests checked.
#[derive(Clone, Debug, PartialEq)]
pub struct CachedImage {
    pub image: Image,
    pub blobs: BTreeMap<BlobRole, PathBuf>,
}

/// A body to make, with everything resolved.
#[derive(Clone, Debug, PartialEq)]
pub struct BodyPlan {
    pub instance: InstanceId,
    pub project: ProjectId,
    pub name: String,
    pub epoch: u64,
    pub vcpus: u32,
    pub memory_mib: u64,
    /// Never `Off`: a body that is ensured is there, halted or not.
    pub power: Power,
    pub body: BodyDesired,
    /// Runs in the place of `body`, which stays as it is.
    pub rescue: Option<BodyDesired>,
    /// Counts the root disks; see [`amphi_api::wire::InstanceDesired::root`].
    pub root: u64,
    /// eth0's first.
    pub ports: Vec<PortAttachment>,
    pub volume: Option<VolumeAttachment>,
    /// A VM starts from it in place of a disk made of its image.
    pub root_volume: Option<VolumeAttachment>,
    pub attachments: Vec<ExtraVolume>,
    pub images: BTreeMap<ImageId, CachedImage>,
    pub user_data: Option<String>,
    pub ssh_keys: Vec<String>,
    pub metadata: BTreeMap<String, String>,
    /// To be prepared until only its start is left, as a body of its own: no other one of the instance is here.
    pub twin: bool,
    /// What more is ordered of a set's members, by name.
    pub members: BTreeMap<String, MemberDesired>,
}

impl BodyPlan {
    /// The number of the description that a member's container is made for. A rescue has one description.
    pub fn generation_of(&self, member: &str) -> u64 {
        let ordered = self.members.get(member).filter(|_| self.rescue.is_none());
        ordered.map_or(0, |m| m.generation)
    }

    /// Of the containers that a member had before, the one that is kept.
    pub fn former_of(&self, member: &str) -> Option<u64> {
        self.members.get(member).and_then(|m| m.former)
    }

    /// What describes the anchor: the set's own, a rescue or not. `runs`: what runs.
    pub fn own_set<'a>(&'a self, runs: &'a SetSpec) -> &'a SetSpec {
        match &self.body {
            BodyDesired::Set { set, .. } => set,
            BodyDesired::Vm { .. } | BodyDesired::SetVm { .. } => runs,
        }
    }

    /// Whom members ask for names: the set's own servers, else those of its networks, each once.
    pub fn name_servers(&self, set: &SetSpec) -> Vec<IpAddr> {
        match set.anchor.dns.servers.is_empty() {
            true => name_servers(&self.ports),
            false => set.anchor.dns.servers.clone(),
        }
    }

    /// What runs: the rescue's body while there is one.
    pub fn runs(&self) -> &BodyDesired {
        self.rescue.as_ref().unwrap_or(&self.body)
    }
}

/// A body as the engine holds it, whole or in parts.
#[derive(Clone, Debug, PartialEq)]
pub struct ObservedBody {
    pub instance: InstanceId,
    pub kind: BodyKind,
    pub epoch: u64,
    pub state: ObservedState,
    /// Plugged in now; of a body that is stopped, none.
    pub ports: Vec<PortId>,
    /// In the body's hands now, as far as the engine tells: of a VM all, of a set those below `/volumes`.
    pub volumes: Vec<VolumeId>,
    /// It is the rescue's body.
    pub rescued: bool,
    /// Empty for VMs.
    pub members: Vec<MemberStatus>,
    /// Of a VM that runs: what the agent in its guest says. None: it has no such agent, or does not run.
    pub agent: Option<GuestAgent>,
    /// What its members, by name, or a VM ([`limits::WHOLE`]) are held to now, as far as the engine tells.
    pub held: BTreeMap<String, limits::Held>,
    /// It ended here because it went to another host, whole.
    pub away: bool,
    /// Engine-side trouble of this body: paused on I/O error, guest panic, a member that keeps failing.
    pub trouble: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ObservedState {
    /// Made, never ran, or stopped. A set whose anchor does not run is stopped, whatever its members say.
    Stopped,
    /// Runs, but not everything of it: a member is down.
    Degraded,
    Running,
    /// Halted in memory, all of it.
    Paused,
    /// Halted, its memory on disk.
    Suspended,
}

/// What of a removed body stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remains {
    Nothing,
    /// Root disks, for a body of a later epoch.
    Roots,
}

/// Bytes of a body that become an image.
#[derive(Clone, Debug, PartialEq)]
pub struct ExportPlan {
    pub instance: InstanceId,
    /// The image that they are for; names what is left in an engine while they are read.
    pub image: ImageId,
    pub part: ExportPart,
    pub format: ImageFormat,
    /// The file to make.
    pub to: PathBuf,
}

#[derive(Clone, Debug, PartialEq)]
pub enum ExportPart {
    /// The root disk of this count.
    Root { root: u64 },
    /// None: the member of the lowest index.
    Member(Option<String>),
}

/// Why a driver could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// The engine does not answer, or not in time: try again when it is back.
    #[error("{engine} does not answer while trying to {doing}: {source}")]
    EngineDown { engine: &'static str, doing: String, source: anyhow::Error },
    /// The call took longer than its bound.
    #[error("{engine} took longer than {} s to {doing}", limit.as_secs())]
    EngineTimeout { engine: &'static str, doing: String, limit: Duration },
    /// The engine said no to what it was given.
    #[error("{engine} refused to {doing}: {message}")]
    EngineRefused { engine: &'static str, doing: String, message: String },
    /// The image's bytes are not what its format says.
    #[error("image {image} cannot be used: {message}")]
    ImageBroken { image: ImageId, message: String },
    /// The network side failed: switch, tap, veth.
    #[error("the network is not ready while trying to {doing}: {message}")]
    NetworkDown { doing: String, message: String },
    #[error("cannot {doing}: {source}")]
    Io { doing: String, source: std::io::Error },
    /// Something uses more than it would have; nothing was changed.
    #[error("{message}")]
    LimitsRefused { message: String },
}

impl From<QemuImgError> for DriverError {
    fn from(error: QemuImgError) -> Self {
        let engine = "qemu-img";
        match error {
            QemuImgError::Refused { doing, message } => Self::EngineRefused { engine, doing, message },
            QemuImgError::Timeout { doing, limit } => Self::EngineTimeout { engine, doing, limit },
            QemuImgError::Io { doing, source } => Self::Io { doing, source },
        }
    }
}

impl DriverError {
    /// The stable word for machines, as in [`amphi_api::instance::Fault::code`].
    pub fn code(&self) -> &'static str {
        match self {
            Self::EngineDown { .. } => "engine_down",
            Self::EngineTimeout { .. } => "engine_timeout",
            Self::EngineRefused { .. } => "engine_refused",
            Self::ImageBroken { .. } => "image_broken",
            Self::NetworkDown { .. } => "network_down",
            Self::Io { .. } => "internal",
            Self::LimitsRefused { .. } => amphi_api::resize::REFUSED,
        }
    }
}

/// An engine's name, version and whether it can be used now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineFacts {
    pub version: String,
}

/// Reads a body's own bytes.
#[async_trait]
pub trait BodyExport: Send + Sync {
    /// Writes them into a file as they are at one point in time, while the body runs or not. What was begun is left for
    /// the caller to remove; what an earlier call left in the engine goes.
    async fn export(&self, plan: &ExportPlan) -> Result<(), DriverError>;
}

/// Makes, starts, stops and removes bodies of one kind. Every call is idempotent and bounded in time.
#[async_trait]
pub trait BodyDriver: BodyExport + streams::BodyStreams + moves::BodyMoves + sizing::BodySizing {
    /// Asks the engine whether it works.
    async fn probe(&self) -> Result<EngineFacts, DriverError>;

    /// All bodies of ours that the engine holds, whole or half made, in one sweep.
    async fn observe(&self) -> Result<Vec<ObservedBody>, DriverError>;

    /// Makes everything ready for a quick [`ensure`](Self::ensure) without starting anything, without traffic and
    /// without touching a body of another epoch: images loaded, definitions checked. A twin is made as well, and is seen
    /// as stopped from then on; what was made of it in another way is made anew.
    async fn prepare(&self, plan: &BodyPlan) -> Result<(), DriverError>;

    /// Makes the body if it is not there, and starts whatever of it does not run; parts left of an attempt that
    /// failed are completed or replaced. Plugs and unplugs ports and further volumes, halts or resumes as the plan says.
    /// Returns when it is so, but for what the guest has to let go of: that is asked for, and may be asked for again.
    async fn ensure(&self, plan: &BodyPlan) -> Result<(), DriverError>;

    /// Ends the body in an orderly way within `grace`, else by force. The body stays defined. Members of a set stop in
    /// reverse order of index.
    async fn stop(&self, instance: InstanceId, grace: Duration) -> Result<(), DriverError>;

    /// Removes every trace of the instance's body of this kind up to and including `epoch`, running or not, but for
    /// what remains.
    async fn remove(&self, instance: InstanceId, epoch: u64, remains: Remains) -> Result<(), DriverError>;

    /// The last lines of the serial console or of a member's output.
    async fn console_log(
        &self,
        instance: InstanceId,
        member: Option<&str>,
        lines: u32,
    ) -> Result<String, DriverError>;

    /// What only this kind can do while it runs.
    async fn adjust(&self, instance: InstanceId, adjustment: Adjustment) -> Result<(), DriverError>;
}

/// A change to a running body that its engine has to know of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Adjustment {
    /// The volume's device has grown to this many bytes.
    VolumeGrown {
        volume: VolumeId,
        bytes: u64,
    },
    /// Hold still: no write may be under way while a snapshot is taken. One that is halted anyhow stays so after it.
    Pause,
    Resume,
    /// End one member of a set in an orderly way and start it again. One that does not run is let be.
    RestartMember(String),
}

/// The network's side of a body's start: tells when a port that is plugged passes traffic, and tells its neighbours.
#[async_trait]
pub trait PortGate: Send + Sync + fmt::Debug {
    /// Returns once the port's traffic passes, or after a bound of the gate's own: a body has to start while the
    /// network's control plane is away. False: it was not waited to the end.
    async fn opened(&self, port: PortId) -> bool;

    /// Tells whoever knows the port's addresses with another MAC, in the background, once its traffic passes. Must be called
    /// inside a runtime.
    fn announce(&self, port: &PortAttachment);
}

/// What wakes the reconciler: engines ring it when one of our bodies changes by itself. A driver's constructor takes
/// it and keeps the engine's event stream connected for as long as the process lives.
pub type Bell = Arc<Notify>;
