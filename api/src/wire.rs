//! The messages between controller and host, each JSON in one WebSocket text frame. The host connects; down come
//! whole desired states, stamped with a generation, up go statuses. Refuses deltas of desire: a host always knows all
//! that it should hold, and destroys only what a tombstone or a higher epoch orders.

use crate::conversion::{ConversionProgress, ConversionReport, ConvertTo};
use crate::host::{Engine, HostSpec};
use crate::image::{Blob, Image, ImageFormat};
use crate::instance::{BodyKind, Fault, GuestAgent, MemberStatus, Power};
use crate::looking::UseRow;
use crate::resize::{MemberUsage, SizeStatus};
use crate::set::{Probes, SetSpec};
use crate::streams::StreamOpen;
use crate::{
    ExchangeId, HostId, ImageId, InstanceId, NetworkId, PortId, ProjectId, SnapshotId, SubnetId,
    VolumeGroupId, VolumeId,
};
use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

/// Raised when a message changes its meaning. A controller refuses a host of another major version by name.
pub const PROTOCOL: u32 = 1;
/// How much of the words an agent knows; it says so in its facts, and one that says nothing knows 0. Raised with an optional
/// field that an older agent would pass over in silence, or a word that it could not read. 1: a VM's probes. 2: images to fetch
/// beforehand, conversions of images, disks of vmdk, vhd and vhdx.
pub const WIRE: u32 = 2;
/// Agents that know these three.
pub const WIRE_IMAGES: u32 = 2;
/// How often a host says that it is there, in seconds.
pub const HEARTBEAT_SECONDS: u64 = 2;
/// After this long without a word the controller takes the link for gone, in seconds.
pub const SILENCE_SECONDS: u64 = 7;

/// What the controller says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToHost {
    Welcome {
        host: HostId,
        ovn_remote: String,
    },
    Desired(HostDesired),
    Ask {
        id: u64,
        ask: Ask,
    },
    /// Connect once more, for a stream.
    Open(StreamOpen),
}

/// What the host says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum FromHost {
    /// First, and again when the facts change.
    Hello {
        protocol: u32,
        spec: HostSpec,
    },
    Heartbeat {
        engines: Vec<Engine>,
        volume_group_free_bytes: u64,
        /// What instances use, where it was measured anew.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        figures: Vec<crate::group::InstanceFigures>,
        /// What images are here, where that has changed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        images: Option<crate::prepull::HostImages>,
    },
    Status(HostStatus),
    Answer {
        id: u64,
        answer: Result<Answer, Fault>,
    },
}

/// A question that the host answers at once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ask {
    /// The last `lines` of a VM's serial console, or of a member's output (the first member's when none is named).
    ConsoleLog { instance: InstanceId, member: Option<String>, lines: u32 },
    /// What the bodies here use.
    Figures,
    /// What a running body uses now of what it is held to.
    Usage { instance: InstanceId },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    ConsoleLog {
        text: String,
    },
    Figures {
        rows: Vec<UseRow>,
    },
    /// Of a VM, nothing.
    Usage {
        members: Vec<MemberUsage>,
    },
}

/// Everything a host should hold.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HostDesired {
    pub host: HostId,
    /// Grows with every change; a host refuses a lower one than it has seen.
    pub generation: u64,
    pub instances: Vec<InstanceDesired>,
    /// Instances that come here next, as they will be: made ready, never started. Their bodies are elsewhere still.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub expected: Vec<InstanceDesired>,
    pub volumes: Vec<VolumeDesired>,
    pub snapshots: Vec<SnapshotDesired>,
    /// Bytes of this host that are to become an image's blob.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exports: Vec<ExportDesired>,
    pub tombstones: Vec<Tombstone>,
    /// What the host may do in volume groups that other hosts see too: in one that is not here, nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<GroupDesired>,
    /// The host was taken for dead and has not been let in again: it buries, and starts nothing. What it keeps may be
    /// about to start elsewhere. The lease says the same where hosts have leases.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub shut_out: bool,
    /// Instances of which the controller wants to know how much they use: heartbeats tell it.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub measured: BTreeSet<InstanceId>,
    /// Images that the host is to have before anything starts from them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub images: Vec<PrepullDesired>,
}

/// An image to fetch beforehand.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PrepullDesired {
    pub image: Image,
    /// It stays in the cache, used or not; else it is fetched, and may be evicted like any other.
    #[serde(default)]
    pub kept: bool,
}

impl HostDesired {
    /// Nothing at all, of generation 1: to begin with.
    pub fn empty(host: HostId) -> Self {
        Self {
            host,
            generation: 1,
            instances: Vec::new(),
            expected: Vec::new(),
            volumes: Vec::new(),
            snapshots: Vec::new(),
            exports: Vec::new(),
            tombstones: Vec::new(),
            groups: Vec::new(),
            shut_out: false,
            measured: BTreeSet::new(),
            images: Vec::new(),
        }
    }
}

/// A host's part in a shared volume group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupDesired {
    pub id: VolumeGroupId,
    /// This host is the group's keeper: it alone changes LVM's metadata there, under this term.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keeper: Option<u64>,
    /// Of `volumes`, those in the group that this host makes, grows and destroys.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub kept: BTreeSet<VolumeId>,
    /// Volumes that this host may have active, by the epoch of the instance that it has them for.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub held: BTreeMap<VolumeId, u64>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InstanceDesired {
    pub id: InstanceId,
    pub project: ProjectId,
    pub name: String,
    pub epoch: u64,
    pub power: Power,
    /// Counts the ordered restarts: a body that started under a lower count stops and starts again.
    pub restarts: u64,
    pub vcpus: u32,
    pub memory_mib: u64,
    /// Counts the ordered changes of its size and of its members' limits, which a running body takes on as it is.
    #[serde(default)]
    pub resizes: u64,
    pub body: BodyDesired,
    /// The body that comes next: made ready beside the running one, without traffic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_body: Option<BodyDesired>,
    /// eth0's first. What joins or leaves a running body is plugged in or out.
    pub ports: Vec<PortDesired>,
    /// The instance's own volume: a set's shared one, a VM's first data disk.
    pub volume: Option<VolumeId>,
    /// The volume that a VM boots from in place of an image's disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root_volume: Option<VolumeId>,
    /// Further volumes. What joins or leaves a running body is plugged in or out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attachments: Vec<AttachmentDesired>,
    /// Counts the root disks: one made under a lower count is discarded and made anew from the image. A new epoch alone
    /// keeps a VM's root disk where it finds one of the same count.
    #[serde(default)]
    pub root: u64,
    /// Start from this instead, with a VM's own root as its second disk; a set's volume stays mounted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rescue: Option<BodyDesired>,
    #[serde(default)]
    pub user_data: Option<String>,
    #[serde(default)]
    pub ssh_keys: Vec<String>,
    #[serde(default)]
    pub metadata: BTreeMap<String, String>,
    /// Its body goes to another host while it runs. As long as this stands nothing of it is started or resumed here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leaving: Option<LeavingDesired>,
    /// Of one that is expected: its body comes from this host while it runs, and waits here halted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arriving_from: Option<HostId>,
    /// Its bytes are copied to another host, for a move.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copying: Option<CopyingDesired>,
    /// Of one that is expected: its bytes come from this host, in passes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copied_from: Option<HostId>,
    /// Of one that is expected: made as far as a start is all that it lacks, and kept so. It may never come.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub twin: bool,
    /// Of a set's members, by name, those of which more is ordered than that they run.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub members: BTreeMap<String, MemberDesired>,
}

/// What more is ordered of a set's member.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberDesired {
    /// The number of the description that its container is made for. A container of another number gives way to one of this.
    #[serde(default)]
    pub generation: u64,
    /// A container of this number is kept, stopped: it may have to come back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub former: Option<u64>,
    /// Counts the ordered restarts of this member alone.
    #[serde(default)]
    pub restarts: u64,
}

impl InstanceDesired {
    /// The number of the description that a member's container is made for.
    pub fn generation_of(&self, member: &str) -> u64 {
        self.members.get(member).map_or(0, |m| m.generation)
    }
}

/// One pass over an instance's bytes: blocks that differ on the other host are sent there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyingDesired {
    /// The move that orders it.
    pub exchange: ExchangeId,
    pub to: HostId,
    /// Where the other host's agent takes what comes.
    pub address: SocketAddr,
    /// The body's epoch there.
    pub epoch: u64,
    /// From 1 on.
    pub pass: u32,
    /// Nothing runs: after it both hosts have the same bytes. Until the order is gone, nothing of the body is touched.
    pub last: bool,
    pub volumes: Vec<VolumeId>,
    /// The root disk too that is made of the body's image.
    #[serde(default)]
    pub root: bool,
    /// It was made, and is not made again; its bytes stay untouched.
    #[serde(default)]
    pub over: bool,
}

/// How far a pass has got.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyingStatus {
    pub exchange: ExchangeId,
    pub pass: u32,
    pub last: bool,
    pub all_bytes: u64,
    pub read_bytes: u64,
    pub sent_bytes: u64,
    pub took_ms: u64,
    /// All is over there; of the last one, and the other host has found the same bytes on its disks.
    pub done: bool,
    /// What is written since is known: the next pass reads no more than that.
    #[serde(default)]
    pub followed: bool,
    pub fault: Option<Fault>,
}

/// Where a running body goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeavingDesired {
    /// The move that orders it.
    pub exchange: ExchangeId,
    pub to: HostId,
    /// Where the other host's agent takes what comes.
    pub address: SocketAddr,
    /// The body's epoch there.
    pub epoch: u64,
    /// Called off: what is under way is ended, and nothing of it begins again.
    #[serde(default)]
    pub recalled: bool,
}

/// A body with its images resolved.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(clippy::large_enum_variant)] // Few of them are held at a time.
pub enum BodyDesired {
    /// `images` is parallel to `set.members`; the description is normalized.
    Set { set: SetSpec, images: Vec<Image> },
    Vm {
        image: Image,
        root_gib: Option<u64>,
        #[serde(default, skip_serializing_if = "Probes::is_default")]
        probes: Probes,
    },
    /// A set that runs as a VM: its members are processes of one guest.
    SetVm { set: SetSpec, images: Vec<Image> },
}

impl BodyDesired {
    pub fn kind(&self) -> BodyKind {
        match self {
            Self::Set { .. } => BodyKind::Set,
            Self::Vm { .. } | Self::SetVm { .. } => BodyKind::Vm,
        }
    }

    /// What a VM is asked; of a set nothing, its members have their own.
    pub fn vm_probes(&self) -> Option<&Probes> {
        match self {
            Self::Vm { probes, .. } => Some(probes).filter(|probes| !probes.is_default()),
            Self::Set { .. } | Self::SetVm { .. } => None,
        }
    }

    /// The least of [`WIRE`] that an agent has to know for it.
    pub fn needs(&self) -> u32 {
        match self.images().iter().any(|image| image.format.is_foreign_disk()) {
            true => WIRE_IMAGES,
            false => u32::from(self.vm_probes().is_some()),
        }
    }

    pub fn images(&self) -> &[Image] {
        match self {
            Self::Set { images, .. } | Self::SetVm { images, .. } => images,
            Self::Vm { image, .. } => std::slice::from_ref(image),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortDesired {
    pub id: PortId,
    pub network: NetworkId,
    /// The subnet, for the Docker network that stands for it.
    pub subnet: IpNet,
    pub mac: String,
    /// Address with the subnet's prefix length.
    pub address: IpNet,
    pub gateway: Option<IpAddr>,
    pub dns: Vec<IpAddr>,
    pub mtu: u32,
    /// The primary address' subnet; none: the one that the network was made with. A Docker network stands for each.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub segment: Option<SubnetId>,
    /// Its other addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub further: Vec<AddressDesired>,
    /// Beside the default route.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<RouteDesired>,
}

/// One more address of a port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressDesired {
    pub subnet: IpNet,
    /// With the subnet's prefix length.
    pub address: IpNet,
    pub gateway: Option<IpAddr>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteDesired {
    pub to: IpNet,
    pub via: IpAddr,
}

/// A further volume in an instance's hands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachmentDesired {
    pub volume: VolumeId,
    /// `vdb`: a VM's disk by libvirt's target name; in every member of a set the volume is mounted at `/volumes/vdb`.
    pub device: String,
    #[serde(default)]
    pub read_only: bool,
}

/// What a volume's bytes begin with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VolumeSource {
    /// A snapshot on the same host.
    Snapshot(SnapshotId),
    /// A volume on the same host, as it is when the copy begins.
    Volume(VolumeId),
    /// An image's disk, written raw.
    Image(Box<Image>),
    /// The volume's own bytes, as another host has read them into this image. `blank`: it began with a file system of
    /// ours, which is in them; else what is found in them counts.
    Moved { image: Box<Image>, blank: bool },
    /// Nothing, not even a file system: they come with the instance that goes over while it runs.
    Crossing,
}

/// Bytes to read, convert and hand to the controller as an image's blob, once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExportDesired {
    pub image: ImageId,
    pub format: ImageFormat,
    pub source: ExportSource,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExportSource {
    /// A VM's root disk, as `qcow2` or `raw`.
    Root(InstanceId),
    /// A set's member with what it has written, as `docker-archive`. None named: the one of the lowest index.
    Member { instance: InstanceId, member: Option<String> },
    /// A volume, as `qcow2` or `raw`.
    Volume(VolumeId),
    /// A volume's snapshot, as `qcow2` or `raw`.
    Snapshot(SnapshotId),
    /// Another image's bytes, converted: a disk as `docker-archive`, a container image as `qcow2`. For agents that know
    /// [`WIRE_IMAGES`].
    Conversion { of: Box<Image>, to: ConvertTo },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VolumeDesired {
    pub id: VolumeId,
    pub size_bytes: u64,
    /// The controller has seen it made. Then a host on which it is missing says so and never makes it anew: an empty
    /// volume in the place of a lost one would be a lie.
    pub made: bool,
    /// Begin with these bytes; none: an empty file system.
    pub source: Option<VolumeSource>,
    /// In the recycle bin since then.
    pub trashed_at: Option<Timestamp>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotDesired {
    pub id: SnapshotId,
    /// As for volumes: once made, never made anew.
    pub made: bool,
    pub volume: VolumeId,
}

/// An explicit order to destroy. Nothing else destroys anything but a higher epoch of the same instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tombstone {
    /// Bodies of the instance up to and including this epoch.
    Instance {
        id: InstanceId,
        epoch: u64,
    },
    /// The volume's bytes, for good.
    Volume {
        id: VolumeId,
    },
    Snapshot {
        id: SnapshotId,
    },
}

/// Everything the host holds, as observed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HostStatus {
    /// The desired state this was observed against; 0: none yet.
    pub generation: u64,
    pub instances: Vec<InstanceStatus>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub expected: Vec<ExpectedStatus>,
    pub volumes: Vec<VolumeStatus>,
    pub snapshots: Vec<SnapshotStatus>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exports: Vec<ExportStatus>,
    /// Tombstones of the desired state that are carried out: nothing of the thing is left here.
    pub buried: Vec<Tombstone>,
    /// Volumes of shared groups that are active here, whatever is ordered.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub active: BTreeSet<VolumeId>,
    /// What is here and unknown to the desired state, in words.
    pub strangers: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BodyState {
    /// Nothing is there yet.
    Absent,
    Starting,
    Running,
    /// In memory, its processors halted.
    Paused,
    /// Its memory on disk; a set is paused, and its memory stays where it is.
    Suspended,
    Stopping,
    Stopped,
}

impl BodyState {
    /// Nothing of it runs, and nothing of it is in memory.
    pub fn is_still(self) -> bool {
        matches!(self, Self::Stopped | Self::Absent)
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InstanceStatus {
    pub id: InstanceId,
    pub epoch: u64,
    pub kind: BodyKind,
    pub state: BodyState,
    pub members: Vec<MemberStatus>,
    /// What the agent in a VM's guest says; none: it does not run, or is a set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<GuestAgent>,
    /// What a VM's probes say; none: nobody asks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready: Option<bool>,
    /// Why a VM was ended last for its probes, or what they told last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The ordered restarts that this body has seen.
    pub restarts: u64,
    /// Ports and further volumes that are plugged into the body now.
    #[serde(default)]
    pub plugged_ports: Vec<PortId>,
    #[serde(default)]
    pub plugged_volumes: Vec<VolumeId>,
    /// It runs from `rescue`.
    #[serde(default)]
    pub rescued: bool,
    /// The next body is ready to take over.
    pub next_ready: bool,
    /// Why the next body cannot be made ready.
    pub next_fault: Option<Fault>,
    pub fault: Option<Fault>,
    /// Of the last change of body here: from the order to stop the old one until the new one ran, in milliseconds.
    pub switch_ms: Option<u64>,
    #[serde(default)]
    pub size: SizeStatus,
    /// How it stands with the order to leave.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leaving: Option<LeavingStatus>,
    /// How far the pass has got that is ordered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copying: Option<CopyingStatus>,
}

/// What a host says of a body that it was told to send to another host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeavingStatus {
    pub exchange: ExchangeId,
    /// Its bytes are going over, or may be.
    pub under_way: bool,
    /// The host knows that it was called off, nothing is under way, and nothing will be.
    pub recalled: bool,
    /// The engine says that the body has gone over, whole, and ended here for that reason.
    pub away: bool,
}

/// An instance that comes here next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExpectedStatus {
    pub id: InstanceId,
    /// The one that it will have here.
    pub epoch: u64,
    /// All is in place for its start.
    pub ready: bool,
    pub fault: Option<Fault>,
    /// Its body has come over, whole, and is halted.
    #[serde(default)]
    pub landed: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeStatus {
    pub id: VolumeId,
    pub size_bytes: u64,
    pub present: bool,
    pub trashed: bool,
    pub fault: Option<Fault>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotStatus {
    pub id: SnapshotId,
    pub present: bool,
    pub fault: Option<Fault>,
}

/// An export, done when `blob` is there: the controller holds its bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportStatus {
    pub image: ImageId,
    pub blob: Option<Blob>,
    pub fault: Option<Fault>,
    /// Of a conversion.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conversion: Option<ConversionStatus>,
}

/// How far a conversion is, and at its end what was found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConversionStatus {
    pub progress: ConversionProgress,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report: Option<ConversionReport>,
}

/// On a request for a blob: its sender can take it from another host, and hands on what it has. The answer may then be 300
/// with a [`BlobPeer`]; who is not served there asks again.
pub const PEERS_HEADER: &str = "amphi-blob-peers";

/// A host that has a blob, or is getting it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobPeer {
    pub host: HostId,
    /// Where its agent takes connections of other hosts.
    pub address: SocketAddr,
}

/// What a host sends to join, over TLS without a certificate of its own.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct JoinRequest {
    pub secret: String,
    pub name: String,
    /// Certificate signing request, PEM.
    pub csr: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct JoinAnswer {
    pub host: HostId,
    /// The host's certificate, PEM.
    pub certificate: String,
    /// The controller's CA, PEM.
    pub ca: String,
}

/// What a join token says, encoded as `amphi-` + hexadecimal of this as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinTicket {
    /// The hosts' face: `https://10.0.0.1:7443`.
    pub url: String,
    /// Lower-case hexadecimal SHA-256 of the CA certificate (DER).
    pub ca_sha256: String,
    pub secret: String,
}
