//! Instances: the identity, where its body belongs, and what the host last said of that body.
//!
//! Intent: live → deleting → gone. Only the host's word that the tombstone is carried out (or the evacuation of a dead
//! host) removes the record. The epoch grows with every placement and every change of body, never otherwise.

mod observed;
mod server;
mod state;
mod traits;

pub use observed::InstanceObserved;
pub use server::{Pending, ServerState, Task, VmState, server_fault, server_state, vm_state};
pub use state::{fault_of, state_of};
pub use traits::{Attachment, FlavorCopy, Leaving, Lock, Resize, ServerTraits, Shelved};

use super::Record;
use super::rollout::Rolling;
use amphi_api::failover::FailoverTerms;
use amphi_api::instance::{BodyKind, BodySpec, FailoverPolicy, Lost, Power};
use amphi_api::wire::BodyState;
use amphi_api::{ExchangeId, HostId, ImageId, InstanceId, PortId, ProjectId, SecurityGroupId, VolumeId};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What the cloud wants of a thing at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Intent {
    #[default]
    Live,
    /// A tombstone is on its way; the record goes when it is carried out.
    Deleting,
}

/// An acceptable body with its images resolved.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BodyRecord {
    /// As ordered, image names included; a set is normalized.
    pub spec: BodySpec,
    /// A set's images, parallel to its members; a VM's one image.
    pub images: Vec<ImageId>,
}

impl BodyRecord {
    pub fn kind(&self) -> BodyKind {
        self.spec.kind()
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InstanceRecord {
    pub id: InstanceId,
    pub project: ProjectId,
    pub name: String,
    pub vcpus: u32,
    pub memory_mib: u64,
    /// Acceptable bodies, the preferred first; each kind at most once.
    pub bodies: Vec<BodyRecord>,
    /// eth0's first.
    pub ports: Vec<PortId>,
    pub security_groups: Vec<SecurityGroupId>,
    /// A set's shared volume, a VM's first data disk.
    pub volume: Option<VolumeId>,
    /// The volume that a VM boots from in place of an image's disk.
    #[serde(default)]
    pub root_volume: Option<VolumeId>,
    /// Further volumes, in order of attachment.
    #[serde(default)]
    pub attachments: Vec<Attachment>,
    /// What was detached and may still be plugged into the body: nobody else gets it before the host has let go.
    #[serde(default)]
    pub leaving: Vec<Leaving>,
    #[serde(default)]
    pub user_data: Option<String>,
    #[serde(default)]
    pub ssh_keys: Vec<String>,
    #[serde(default)]
    pub metadata: BTreeMap<String, String>,
    pub failover: FailoverPolicy,
    #[serde(default)]
    pub failover_terms: FailoverTerms,

    pub epoch: u64,
    /// Where its body belongs; none while no host has room for it.
    pub host: Option<HostId>,
    /// The kind of body that it has at this epoch.
    pub body: BodyKind,
    pub power: Power,
    /// Ordered restarts.
    pub restarts: u64,
    /// Ordered changes of its size and its members' limits.
    #[serde(default)]
    pub resizes: u64,
    /// More than its memory, in MiB: what a VM's guest was told to give back, and may still have. Its host's room is
    /// nobody else's until it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_kept_mib: Option<u64>,
    /// Counts the root disks: it grows when the root is to begin anew.
    #[serde(default)]
    pub root: u64,
    /// The body that it runs from while it is rescued.
    #[serde(default)]
    pub rescue: Option<BodyRecord>,
    #[serde(default)]
    pub shelved: Option<Shelved>,
    #[serde(default)]
    pub resize: Option<Resize>,
    /// What was ordered last and is not yet there.
    #[serde(default)]
    pub task: Option<Pending>,
    #[serde(default)]
    pub server: ServerTraits,
    pub intent: Intent,
    /// Its volume goes to the recycle bin with it.
    #[serde(default)]
    pub trash_volume: bool,
    /// The exchange in progress.
    #[serde(default)]
    pub exchange: Option<ExchangeId>,
    /// The numbers of the descriptions that a set's members are made for, by name, where it is not the first.
    #[serde(default)]
    pub generations: BTreeMap<String, u64>,
    /// Ordered restarts of single members, by name.
    #[serde(default)]
    pub member_restarts: BTreeMap<String, u64>,
    /// The update in progress.
    #[serde(default)]
    pub rolling: Option<Rolling>,
    /// What is out of reach until a host returns.
    #[serde(default)]
    pub lost: Vec<Lost>,
    /// It ran once, at some epoch.
    #[serde(default)]
    pub built: bool,
    #[serde(default)]
    pub observed: Option<InstanceObserved>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

impl InstanceRecord {
    /// What was observed of the present epoch; what came of an older one does not count.
    pub fn current(&self) -> Option<&InstanceObserved> {
        self.observed.as_ref().filter(|o| o.epoch == self.epoch)
    }

    /// The host that has its body yet to start; what fails there is not waited for.
    pub fn starting_on(&self) -> Option<HostId> {
        let waits = |o: &InstanceObserved| {
            matches!(o.state, BodyState::Absent | BodyState::Starting) && o.fault.is_none()
        };
        self.host.filter(|_| self.power.wants_body() && self.current().is_none_or(waits))
    }

    pub fn body_of(&self, kind: BodyKind) -> Option<&BodyRecord> {
        self.bodies.iter().find(|b| b.kind() == kind)
    }

    /// Whether the host's desired state differs between the two: all but what was observed.
    pub fn matters(&self, before: &Self) -> bool {
        let blind = |r: &Self| Self {
            observed: None,
            built: false,
            lost: Vec::new(),
            task: None,
            server: ServerTraits::default(),
            updated_at: Timestamp::UNIX_EPOCH,
            ..r.clone()
        };
        blind(self) != blind(before)
    }
}

impl Record for InstanceRecord {
    const PREFIX: &'static str = "/instance/";
    const NOUN: &'static str = "instance";
    type Id = InstanceId;
    fn id(&self) -> InstanceId {
        self.id
    }
    fn owner(&self) -> Option<(ProjectId, &str)> {
        Some((self.project, &self.name))
    }
}

impl InstanceRecord {
    /// Every volume that is in its hands: its own, the root, the further ones, and those on their way out.
    pub fn volumes(&self) -> impl Iterator<Item = VolumeId> + '_ {
        let further = self.attachments.iter().map(|a| a.volume);
        let leaving = self.leaving.iter().filter_map(|l| match l {
            Leaving::Volume(id) => Some(*id),
            Leaving::Port(_) => None,
        });
        self.volume.into_iter().chain(self.root_volume).chain(further).chain(leaving)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use amphi_api::instance::Fault;
    use amphi_api::wire::BodyState;

    pub fn sample() -> InstanceRecord {
        InstanceRecord {
            id: InstanceId::new(),
            project: ProjectId::DEFAULT,
            name: "web".into(),
            vcpus: 1,
            memory_mib: 128,
            bodies: Vec::new(),
            ports: Vec::new(),
            security_groups: Vec::new(),
            volume: None,
            root_volume: None,
            attachments: Vec::new(),
            leaving: Vec::new(),
            user_data: None,
            ssh_keys: Vec::new(),
            metadata: BTreeMap::new(),
            failover: FailoverPolicy::AnyKind,
            failover_terms: FailoverTerms::default(),
            epoch: 2,
            host: Some(HostId::new()),
            body: BodyKind::Set,
            power: Power::On,
            restarts: 0,
            resizes: 0,
            memory_kept_mib: None,
            root: 0,
            rescue: None,
            shelved: None,
            resize: None,
            task: None,
            server: ServerTraits::default(),
            intent: Intent::Live,
            trash_volume: false,
            exchange: None,
            generations: BTreeMap::new(),
            member_restarts: BTreeMap::new(),
            rolling: None,
            lost: Vec::new(),
            built: true,
            observed: Some(observed(2, BodyState::Running)),
            created_at: Timestamp::UNIX_EPOCH,
            updated_at: Timestamp::UNIX_EPOCH,
        }
    }

    pub fn observed(epoch: u64, state: BodyState) -> InstanceObserved {
        InstanceObserved {
            epoch,
            kind: BodyKind::Set,
            state,
            members: Vec::new(),
            agent: None,
            ready: None,
            reason: None,
            restarts: 0,
            plugged_ports: Vec::new(),
            plugged_volumes: Vec::new(),
            rescued: false,
            next_ready: false,
            next_fault: None,
            fault: None,
            switch_ms: None,
            size: Default::default(),
            leaving: None,
        }
    }

    pub fn fault() -> Fault {
        Fault { code: "image_broken".into(), message: "no".into(), since: Timestamp::UNIX_EPOCH }
    }

    #[test]
    fn what_the_host_said_never_changes_what_it_should_hold() {
        let before = sample();
        let seen = InstanceRecord {
            observed: None,
            built: false,
            server: ServerTraits { description: Some("x".into()), ..ServerTraits::default() },
            ..before.clone()
        };
        assert!(!seen.matters(&before));
        assert!(InstanceRecord { epoch: 3, ..before.clone() }.matters(&before));
        assert!(InstanceRecord { power: Power::Off, ..before.clone() }.matters(&before));
    }
}
