//! Instances: identity first, body second. Owns the request, its rules and the view; refuses engine terms.

use crate::failover::{FailoverTerms, Twin};
use crate::placement::Qos;
use crate::resize::{Bandwidth, Condition};
use crate::set::{Probes, SetSpec};
use crate::{
    ExchangeId, FieldError, HostId, InstanceId, NetworkId, PortId, ProjectId, SecurityGroupId, VolumeId,
    validate,
};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use utoipa::ToSchema;

#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum BodyKind {
    /// A libvirt domain.
    Vm,
    /// An anchor and its members in Docker.
    Set,
}

impl fmt::Display for BodyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Vm => "vm",
            Self::Set => "set",
        })
    }
}

/// What a VM body starts from: an image of its own, or a set's images.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VmSpec {
    /// Name or id of a disk or kernel image in the catalogue. Either this or `set`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schema(max_length = 255)]
    pub image: String,
    /// Size of the root disk, in GiB, for disk images; 1 to 2,048. Default: the image's own size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 2048)]
    pub root_gib: Option<u64>,
    /// What the guest is asked, over `http` or `tcp` at its first IPv4 address. One that fails its startup or liveness probe is
    /// stopped and started again.
    #[serde(default, skip_serializing_if = "Probes::is_default")]
    pub probes: Probes,
    /// A set that runs as a VM: its members, out of their container images, are processes of one guest, with a kernel of
    /// their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub set: Option<SetSpec>,
}

impl VmSpec {
    pub fn new(image: impl Into<String>, root_gib: Option<u64>) -> Self {
        Self { image: image.into(), root_gib, probes: Probes::default(), set: None }
    }
}

/// One acceptable body. `{"set": {…}}` or `{"vm": {…}}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "snake_case")]
#[allow(clippy::large_enum_variant)] // Few of them are held at a time.
pub enum BodySpec {
    Set(SetSpec),
    Vm(VmSpec),
}

impl BodySpec {
    pub fn kind(&self) -> BodyKind {
        match self {
            Self::Set(_) => BodyKind::Set,
            Self::Vm(_) => BodyKind::Vm,
        }
    }

    /// The description of the set that it runs, as containers or as a VM, and its place in the request.
    pub fn set(&self) -> Option<(&SetSpec, &'static str)> {
        match self {
            Self::Set(set) => Some((set, "set")),
            Self::Vm(vm) => vm.set.as_ref().map(|set| (set, "vm.set")),
        }
    }

    /// The same set with the other kind of body; none: it is a VM of its own image.
    pub fn counterpart(&self) -> Option<Self> {
        match self {
            Self::Set(set) => Some(Self::Vm(VmSpec { set: Some(set.clone()), ..VmSpec::default() })),
            Self::Vm(vm) => vm.set.clone().map(Self::Set),
        }
    }

    fn check(&self) -> Result<(), FieldError> {
        match self {
            Self::Set(set) => set.check().map_err(|e| e.under("set")),
            Self::Vm(VmSpec { image, root_gib, probes, set: Some(set) }) => {
                if !image.is_empty() {
                    return Err(FieldError::new("vm.image", "give either an image or a set"));
                }
                if root_gib.is_some() {
                    return Err(FieldError::new(
                        "vm.root_gib",
                        "a set's members say what they may write ('root_mib')",
                    ));
                }
                if !probes.is_default() {
                    return Err(FieldError::new("vm.probes", "a set's members have probes of their own"));
                }
                set.check().map_err(|e| e.under("vm.set"))
            }
            Self::Vm(vm) => {
                validate::name("vm.image", &vm.image)?;
                vm.probes.check_of_vm().map_err(|e| e.under("vm.probes"))?;
                match vm.root_gib {
                    Some(gib) => validate::within("vm.root_gib", gib, 1, 2048, "GiB"),
                    None => Ok(()),
                }
            }
        }
    }
}

/// The data volume of an instance: one made with it, or one that is there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct InstanceVolume {
    /// A new volume of this size, in GiB. Either this or `id`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 65_536)]
    pub size_gib: Option<u64>,
    /// Name of the new volume. Default: the instance's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// An available volume. The instance goes to its host while there is room; else the volume comes to the instance's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<VolumeId>,
}

/// A connection to a network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct InstanceNetwork {
    /// Name or id.
    #[schema(min_length = 1, max_length = 255)]
    pub network: String,
    /// Default: a free one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub address: Option<IpAddr>,
    /// A free port of this network, in place of `address` and `bandwidth`; it stays when the instance goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<PortId>,
    /// Of this connection.
    #[serde(default, skip_serializing_if = "Bandwidth::is_none")]
    pub bandwidth: Bandwidth,
}

/// What happens to the instance when its host fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FailoverPolicy {
    /// Evacuation leaves it where it is.
    Never,
    /// Only as the kind of body that it had.
    SameKind,
    /// As any of its acceptable bodies.
    #[default]
    AnyKind,
    /// A body of either kind waits on a second host, made but not started, and takes over there. Without one, as `any_kind`.
    Twin,
}

/// An instance to make.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct InstanceCreate {
    #[schema(min_length = 1, max_length = 255)]
    pub name: String,
    /// Virtual CPUs, 1 to 256.
    #[schema(minimum = 1, maximum = 256)]
    pub vcpus: u32,
    /// Memory, 16 to 4,194,304 MiB.
    #[schema(minimum = 16, maximum = 4_194_304)]
    pub memory_mib: u64,
    /// Acceptable bodies, the preferred first; each kind at most once.
    #[schema(min_items = 1, max_items = 2)]
    pub bodies: Vec<BodySpec>,
    /// Networks, eth0's first. At most 8.
    #[serde(default)]
    #[schema(max_items = 8)]
    pub networks: Vec<InstanceNetwork>,
    /// Names or ids; they hold for every port. At most 16.
    #[serde(default)]
    #[schema(max_items = 16)]
    pub security_groups: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<InstanceVolume>,
    /// Text handed to the guest; at most 65,535 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_data: Option<String>,
    /// Public keys in authorized_keys form. At most 32.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 32)]
    pub ssh_keys: Vec<String>,
    /// At most 128 pairs of 255 characters, as nova has it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
    #[serde(default)]
    pub failover: FailoverPolicy,
    #[serde(default, skip_serializing_if = "FailoverTerms::is_default")]
    pub failover_terms: FailoverTerms,
    /// Name or id of the host to begin on. Whether it may leave it when it fails is `failover`'s to say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// How much of a host stands behind its vCPUs and memory.
    #[serde(default, skip_serializing_if = "is_standard")]
    pub qos: Qos,
    /// Name of the scheduler that places it. Default: the project's, else the cloud's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheduler: Option<String>,
}

fn is_standard(qos: &Qos) -> bool {
    *qos == Qos::Standard
}

impl InstanceCreate {
    /// Checks all that can be known without records. The first wrong field is named.
    pub fn check(&self) -> Result<(), FieldError> {
        validate::name("name", &self.name)?;
        validate::within("vcpus", u64::from(self.vcpus), 1, 256, "")?;
        validate::within("memory_mib", self.memory_mib, 16, 4 << 20, "MiB")?;
        validate::within("bodies", self.bodies.len() as u64, 1, 2, "bodies")?;
        for (at, body) in self.bodies.iter().enumerate() {
            let place = format!("bodies[{at}]");
            body.check().map_err(|e| e.under(&place))?;
            if let Some((set, at)) = body.set() {
                let place = format!("{place}.{at}");
                set.check_memory(self.memory_mib).map_err(|e| e.under(&place))?;
                if self.volume.is_none() && set.members.iter().any(|member| !member.mounts.is_empty()) {
                    return Err(FieldError::new(
                        "volume",
                        "members have parts of it ('mounts'), and none is ordered",
                    ));
                }
                let limits_it = |member: &crate::set::MemberSpec| !member.options.io.volume.is_none();
                if let (None, Some(at)) = (&self.volume, set.members.iter().position(limits_it)) {
                    return Err(FieldError::new(
                        format!("{place}.members[{at}].options.io.volume"),
                        "the instance has no volume",
                    ));
                }
            }
            if let BodySpec::Vm(vm) = body
                && !vm.probes.is_default()
                && self.networks.is_empty()
            {
                let why = "a VM is asked over its first network, and none is ordered";
                return Err(FieldError::new(format!("{place}.vm.probes"), why));
            }
            if self.bodies[..at].iter().any(|b| b.kind() == body.kind()) {
                return Err(FieldError::new(place, format!("a second body of kind {}", body.kind())));
            }
        }
        validate::within("networks", self.networks.len() as u64, 0, 8, "networks")?;
        for (at, network) in self.networks.iter().enumerate() {
            validate::name(&format!("networks[{at}].network"), &network.network)?;
            network.bandwidth.check().map_err(|e| e.under(&format!("networks[{at}].bandwidth")))?;
            if network.port.is_some() && (network.address.is_some() || !network.bandwidth.is_none()) {
                let why = "a port has its own addresses and bandwidth: leave `address` and `bandwidth` out";
                return Err(FieldError::new(format!("networks[{at}].port"), why));
            }
        }
        validate::within("security_groups", self.security_groups.len() as u64, 0, 16, "groups")?;
        if let Some(volume) = &self.volume {
            volume.check().map_err(|e| e.under("volume"))?;
        }
        let user_data = self.user_data.as_deref().unwrap_or_default().len();
        validate::within("user_data", user_data as u64, 0, validate::USER_DATA_MAX as u64, "bytes")?;
        self.failover_terms.check().map_err(|e| e.under("failover_terms"))?;
        if let Some(kind) = self.failover_terms.twin_body
            && !self.bodies.iter().any(|body| body.kind() == kind)
        {
            let why = format!("the instance lists no {kind}");
            return Err(FieldError::new("failover_terms.twin_body", why));
        }
        validate::within("ssh_keys", self.ssh_keys.len() as u64, 0, 32, "keys")?;
        for (at, key) in self.ssh_keys.iter().enumerate() {
            if key.trim().is_empty() || key.len() > 16_384 || key.chars().any(char::is_control) {
                return Err(FieldError::new(format!("ssh_keys[{at}]"), "must be one line of at most 16 KiB"));
            }
        }
        validate::within("metadata", self.metadata.len() as u64, 0, 128, "pairs")?;
        for (key, value) in &self.metadata {
            if key.is_empty() || key.chars().count() > 255 || value.chars().count() > 255 {
                return Err(FieldError::new(
                    format!("metadata.{key}"),
                    "keys of 1 to 255 and values of at most 255 characters",
                ));
            }
        }
        Ok(())
    }
}

impl InstanceVolume {
    fn check(&self) -> Result<(), FieldError> {
        match (self.size_gib, self.id) {
            (Some(size), None) => validate::within("size_gib", size, 1, validate::VOLUME_GIB_MAX, "GiB")?,
            (None, Some(_)) => {}
            (None, None) => {
                return Err(FieldError::new("size_gib", "is missing: give size_gib for a new volume, or id"));
            }
            (Some(_), Some(_)) => return Err(FieldError::new("size_gib", "give either size_gib or id")),
        }
        match &self.name {
            Some(_) if self.id.is_some() => Err(FieldError::new("name", "only a new volume takes a name")),
            Some(name) => validate::name("name", name),
            None => Ok(()),
        }
    }
}

/// What clients poll for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum InstanceState {
    /// Ordered; the body is being made.
    Building,
    Running,
    /// Halted, in memory.
    Paused,
    /// Halted, its memory on disk where its body can do that.
    Suspended,
    Stopping,
    Stopped,
    Starting,
    /// One body is being replaced by the other; see the instance's exchanges.
    Exchanging,
    /// Its host does not answer, and it cannot start elsewhere: `lost` says what is out of reach.
    Stranded,
    /// Its host does not answer; nobody has decided what to do.
    Unknown,
    Deleting,
    /// It could not be brought where it should be; `fault` says why. It is tried again by itself.
    Error,
}

impl fmt::Display for InstanceState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = serde_json::to_value(self).ok();
        f.write_str(text.as_ref().and_then(|v| v.as_str()).unwrap_or("?"))
    }
}

/// Whether a body should run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Power {
    #[default]
    On,
    Off,
    /// Halted, in memory.
    Paused,
    /// Halted, its memory on disk where the body can do that (a VM); else halted in memory.
    Suspended,
}

impl Power {
    /// Whether a body has to be there, halted or not.
    pub fn wants_body(self) -> bool {
        self != Self::Off
    }
}

/// Why something is not as ordered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct Fault {
    /// A stable word for machines: `image_broken`, `volume_group_full`, `host_down`, `engine_down`, `engine_refused`, `engine_timeout`, `network_down`, `internal`.
    pub code: String,
    /// What happened and what to do next.
    pub message: String,
    #[schemars(with = "String")]
    #[schema(value_type = String)]
    pub since: Timestamp,
}

impl Fault {
    /// The same trouble, or none, in both. One that lasts is told with each look: its moment is no news.
    pub fn same(one: &Option<Self>, other: &Option<Self>) -> bool {
        let said = |fault: &Option<Self>| fault.as_ref().map(|f| (f.code.clone(), f.message.clone()));
        said(one) == said(other)
    }
}

/// One container of a running set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct MemberStatus {
    pub name: String,
    pub index: u32,
    pub running: bool,
    /// Starts again after it ended, since the body was made.
    pub restarts: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i64>,
    /// Microseconds since the epoch, as the engine tells it; shows the start order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at_us: Option<i64>,
    /// What its probes say; none: nobody asks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready: Option<bool>,
    /// It has ended and, by its restart policy, stays so.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub finished: bool,
    /// The kernel ended something in it that asked for more memory than there was, when it last ended.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub out_of_memory: bool,
    /// Why the host ended it last, or what its probes told last, where they fail.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The number of the set's description that this container was made for; 0: the first.
    #[serde(default, skip_serializing_if = "is_first")]
    pub generation: u64,
    /// The one that it took the place of is kept, stopped, until the update is over: its description's number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub former: Option<u64>,
    /// From the end of that one to the start of this one, in milliseconds; 0 where they overlapped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gap_ms: Option<u64>,
    /// The one that is to take its place, beside it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub coming: Option<ComingMember>,
}

fn is_first(generation: &u64) -> bool {
    *generation == 0
}

/// A member's next container, while the present one still counts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct ComingMember {
    pub generation: u64,
    pub running: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready: Option<bool>,
    #[serde(default, skip_serializing_if = "is_none_yet")]
    pub restarts: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i64>,
    /// It could not be started at all.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub broken: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

fn is_none_yet(count: &u32) -> bool {
    *count == 0
}

/// What the agent in a VM's guest says, as far as it says it. It comes out of the guest, and is its word alone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct GuestAgent {
    /// Else `exec` and `cp` do not work in it.
    pub answers: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_name: Option<String>,
    /// The operating system's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub os: Option<String>,
    /// At which it can be reached, as it sees it: those that Amphi gave it and others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>)]
    pub addresses: Vec<IpAddr>,
}

/// The address of an instance on one network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct InstanceAddress {
    pub port: PortId,
    pub network: NetworkId,
    pub network_name: String,
    pub mac: String,
    #[schema(value_type = String)]
    pub address: IpAddr,
    /// Of the whole port.
    #[serde(default, skip_serializing_if = "Bandwidth::is_none")]
    pub bandwidth: Bandwidth,
}

/// Something of the instance that is out of reach until a host returns.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct Lost {
    pub volume: VolumeId,
    pub host: HostId,
    pub host_name: String,
    #[schemars(with = "String")]
    #[schema(value_type = String)]
    pub since: Timestamp,
}

/// An instance as clients see it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct Instance {
    pub id: InstanceId,
    pub project: ProjectId,
    pub name: String,
    pub state: InstanceState,
    /// The kind of body that it has, or is getting.
    pub body: BodyKind,
    pub power: Power,
    /// Grows with every placement and every change of body.
    pub epoch: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_name: Option<String>,
    pub vcpus: u32,
    pub memory_mib: u64,
    pub bodies: Vec<BodySpec>,
    pub addresses: Vec<InstanceAddress>,
    pub security_groups: Vec<SecurityGroupId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<VolumeId>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub members: Vec<MemberStatus>,
    /// What the agent in a VM's guest (qemu-guest-agent) says; none: it does not run, or is a set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<GuestAgent>,
    /// What a VM's probes say; none: nobody asks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready: Option<bool>,
    /// Why a VM was ended last for its probes, or what they told last, where they fail.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
    pub failover: FailoverPolicy,
    #[serde(default, skip_serializing_if = "is_standard")]
    pub qos: Qos,
    #[serde(default, skip_serializing_if = "FailoverTerms::is_default")]
    pub failover_terms: FailoverTerms,
    /// With the policy `twin`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub twin: Option<Twin>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<Fault>,
    /// Its body is not held to its present size yet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub resizing: bool,
    /// What is ordered and not so, while the body is well.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lost: Vec<Lost>,
    #[schemars(with = "String")]
    #[schema(value_type = String)]
    pub created_at: Timestamp,
    #[schemars(with = "String")]
    #[schema(value_type = String)]
    pub updated_at: Timestamp,
}

/// The order to give an instance its other body.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExchangeCreate {
    pub to: BodyKind,
    /// The body to take, if the instance does not yet list one of this kind; it is added to the list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<BodySpec>,
}

impl ExchangeCreate {
    pub fn check(&self) -> Result<(), FieldError> {
        let Some(body) = &self.body else { return Ok(()) };
        body.check().map_err(|e| e.under("body"))?;
        if body.kind() != self.to {
            return Err(FieldError::new("body", format!("is a {}, but `to` says {}", body.kind(), self.to)));
        }
        Ok(())
    }
}

/// The order to bring an instance to another host.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MoveCreate {
    /// Name or id of the host to go to. Default: placement chooses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// The kind of body to have there. Default: the present one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<BodyKind>,
    /// While it runs, memory and disks and all: true refuses what cannot go so, false stops it for the move. Default: a VM
    /// that runs goes so where it cannot move otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub live: Option<bool>,
    /// Of one that is stopped for the move: its bytes are copied while it still runs, and then only what has changed. True
    /// refuses where that cannot be; false copies all of them while it is stopped, through the controller. Default: where
    /// both hosts can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ahead: Option<bool>,
    /// The most seconds for bytes to go over while it runs, 1 to 604800; a move that takes longer is called off. Default for
    /// a live one: 600, and two minutes for each GiB of memory and disk; else none, since passes are bounded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 604800)]
    pub deadline_s: Option<u32>,
    /// Why: 1 to 255 characters.
    #[schema(min_length = 1, max_length = 255)]
    pub reason: String,
}

impl MoveCreate {
    pub fn check(&self) -> Result<(), FieldError> {
        if self.deadline_s.is_some_and(|s| !(1..=604_800).contains(&s)) {
            return Err(FieldError::new("deadline_s", "must be 1 to 604800 seconds"));
        }
        if self.ahead == Some(true) && self.live == Some(true) {
            return Err(FieldError::new("ahead", "is of a move that stops the instance; this one is live"));
        }
        validate::name("reason", &self.reason)
    }
}

/// Who wanted a move.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum MoveCause {
    #[default]
    Order,
    /// Its host is being emptied.
    Maintenance,
}

/// From host to host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct Journey {
    pub from: HostId,
    pub from_name: String,
    pub to: HostId,
    pub to_name: String,
    pub reason: String,
    pub cause: MoveCause,
    /// The body goes over while it runs.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub live: bool,
    /// Its volumes: how many, how many have been read, how many are on the new host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volumes: Option<VolumesMoved>,
    /// Its bytes go from host to host in passes: all of them while it runs, the last changes when it has stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copy: Option<Copied>,
    /// The most seconds for bytes to go over while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_s: Option<u32>,
}

/// How far the copying of a move's bytes has got.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct Copied {
    /// Those that have ended, in order.
    pub passes: Vec<CopyPass>,
    /// The one under way, as the host last told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub now: Option<CopyNow>,
    /// How long the last pass would take by the ones before, in milliseconds; nothing runs meanwhile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub estimated_stop_ms: Option<u64>,
}

/// A pass over all of a move's bytes. Only blocks that differ are sent. Every byte is read on both hosts, unless the pass before was
/// followed: then what was written since is read, and nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct CopyPass {
    /// The one that was made while nothing ran, after which both hosts had the same bytes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub last: bool,
    pub read_bytes: u64,
    pub sent_bytes: u64,
    pub took_ms: u64,
    /// The old host knew from its beginning on what was written meanwhile.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub followed: bool,
}

/// A pass under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct CopyNow {
    /// From 1 on.
    pub pass: u32,
    pub all_bytes: u64,
    pub read_bytes: u64,
    pub sent_bytes: u64,
}

/// How far a move's volumes have got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct VolumesMoved {
    pub all: u32,
    pub read: u32,
    pub arrived: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ExchangePhase {
    /// The new body's image and definition are made ready; the old body runs.
    Preparing,
    /// Memory and disks go over while the body runs; at the end it is halted, and waits on the new host.
    Crossing,
    /// Its bytes are copied to the new host while the old body runs.
    CopyingAhead,
    /// The old body stops, so that its volumes hold still.
    Stopping,
    /// The bytes are read on the old host and written on the new one: all of them, or what has changed since they were
    /// copied ahead.
    Copying,
    /// The old body ends on the host that it leaves; nothing starts elsewhere before that host says so.
    Leaving,
    /// The old body stops, the new one takes over.
    Switching,
    /// The new body did not come up, or the move was cancelled: what there is of it ends on the host that it went to,
    /// before the old one comes back.
    Returning,
    /// The new body did not come up; the old one is being brought back.
    RollingBack,
    Done,
    /// Nothing has changed for the instance, or it was rolled back; `fault` says why.
    Failed,
}

/// One exchange, as a record of what happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct Exchange {
    pub id: ExchangeId,
    pub instance: InstanceId,
    pub from: BodyKind,
    pub to: BodyKind,
    /// The hosts, where it is a move.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub journey: Option<Journey>,
    pub phase: ExchangePhase,
    /// From the order to stop the old body until the new one ran, in milliseconds: on the host's clock, and on the
    /// controller's where it is a move.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outage_ms: Option<u64>,
    /// Somebody has called it off: it ends with the old body where it was.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cancelled: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<Fault>,
    #[schemars(with = "String")]
    #[schema(value_type = String)]
    pub started_at: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    #[schema(value_type = Option<String>)]
    pub ended_at: Option<Timestamp>,
}

/// A guest's console, or a member's output.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct ConsoleLog {
    /// The last lines. Bytes that are not UTF-8 are replaced.
    pub text: String,
}
