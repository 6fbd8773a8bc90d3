//! Instances: the identity, where its body belongs, and what the host last said of that body.
//!
//! Intent: live → deleting → gone. Only the host's word that the tombstone is carried out (or the evacuation of a dead
//! host) removes the record. The epoch grows with every placement and every change of body, never otherwise.

use super::Record;
use amphi_api::instance::{
    BodyKind, BodySpec, FailoverPolicy, Fault, InstanceState, Lost, MemberStatus, Power,
};
use amphi_api::wire::{BodyState, InstanceStatus};
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
    pub volume: Option<VolumeId>,
    #[serde(default)]
    pub user_data: Option<String>,
    #[serde(default)]
    pub ssh_keys: Vec<String>,
    #[serde(default)]
    pub metadata: BTreeMap<String, String>,
    pub failover: FailoverPolicy,

    pub epoch: u64,
    /// Where its body belongs; none while no host has room for it.
    pub host: Option<HostId>,
    /// The kind of body that it has at this epoch.
    pub body: BodyKind,
    pub power: Power,
    /// Ordered restarts.
    pub restarts: u64,
    pub intent: Intent,
    /// Its volume goes to the recycle bin with it.
    #[serde(default)]
    pub trash_volume: bool,
    /// The exchange in progress.
    #[serde(default)]
    pub exchange: Option<ExchangeId>,
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

/// What the host last said of the body of `epoch`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InstanceObserved {
    pub epoch: u64,
    pub kind: BodyKind,
    pub state: BodyState,
    #[serde(default)]
    pub members: Vec<MemberStatus>,
    pub restarts: u64,
    #[serde(default)]
    pub next_ready: bool,
    #[serde(default)]
    pub next_fault: Option<Fault>,
    #[serde(default)]
    pub fault: Option<Fault>,
    #[serde(default)]
    pub switch_ms: Option<u64>,
}

impl From<&InstanceStatus> for InstanceObserved {
    fn from(status: &InstanceStatus) -> Self {
        Self {
            epoch: status.epoch,
            kind: status.kind,
            state: status.state,
            members: status.members.clone(),
            restarts: status.restarts,
            next_ready: status.next_ready,
            next_fault: status.next_fault.clone(),
            fault: status.fault.clone(),
            switch_ms: status.switch_ms,
        }
    }
}

impl InstanceObserved {
    /// The same but for the moment at which a lasting fault was last seen.
    pub fn says_the_same(&self, other: &Self) -> bool {
        let same_fault = |a: &Option<Fault>, b: &Option<Fault>| {
            a.as_ref().map(|f| (&f.code, &f.message)) == b.as_ref().map(|f| (&f.code, &f.message))
        };
        same_fault(&self.fault, &other.fault)
            && same_fault(&self.next_fault, &other.next_fault)
            && *self
                == Self { fault: self.fault.clone(), next_fault: self.next_fault.clone(), ..other.clone() }
    }
}

impl InstanceRecord {
    /// What was observed of the present epoch; what came of an older one does not count.
    pub fn current(&self) -> Option<&InstanceObserved> {
        self.observed.as_ref().filter(|o| o.epoch == self.epoch)
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
            updated_at: Timestamp::UNIX_EPOCH,
            ..r.clone()
        };
        blind(self) != blind(before)
    }
}

/// What clients see of an instance whose host is up or not.
pub fn state_of(record: &InstanceRecord, host_up: bool) -> InstanceState {
    if record.intent == Intent::Deleting {
        return InstanceState::Deleting;
    }
    if record.host.is_none() {
        return InstanceState::Error;
    }
    if !host_up {
        return if record.lost.is_empty() { InstanceState::Unknown } else { InstanceState::Stranded };
    }
    if record.exchange.is_some() {
        return InstanceState::Exchanging;
    }
    let current = record.current();
    if current.is_some_and(|o| o.fault.is_some()) {
        return InstanceState::Error;
    }
    let body = current.map_or(BodyState::Absent, |o| o.state);
    match record.power {
        Power::On if body == BodyState::Running && current.is_some_and(|o| o.restarts >= record.restarts) => {
            InstanceState::Running
        }
        Power::On if !record.built => InstanceState::Building,
        Power::On => InstanceState::Starting,
        Power::Off if matches!(body, BodyState::Stopped | BodyState::Absent) => InstanceState::Stopped,
        Power::Off => InstanceState::Stopping,
        Power::Paused | Power::Suspended => InstanceState::Stopping,
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

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use InstanceState as S;

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
            user_data: None,
            ssh_keys: Vec::new(),
            metadata: BTreeMap::new(),
            failover: FailoverPolicy::AnyKind,
            epoch: 2,
            host: Some(HostId::new()),
            body: BodyKind::Set,
            power: Power::On,
            restarts: 0,
            intent: Intent::Live,
            trash_volume: false,
            exchange: None,
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
            restarts: 0,
            next_ready: false,
            next_fault: None,
            fault: None,
            switch_ms: None,
        }
    }

    pub fn fault() -> Fault {
        Fault { code: "image_broken".into(), message: "no".into(), since: Timestamp::UNIX_EPOCH }
    }

    #[test]
    fn states() {
        let lost = Lost {
            volume: VolumeId::new(),
            host: HostId::new(),
            host_name: "h1".into(),
            since: Timestamp::UNIX_EPOCH,
        };
        type Change = Box<dyn Fn(&mut InstanceRecord)>;
        let table: Vec<(&str, Change, bool, S)> = vec![
            ("runs", Box::new(|_| ()), true, S::Running),
            ("host gone", Box::new(|_| ()), false, S::Unknown),
            ("volume lost", Box::new(move |r| r.lost = vec![lost.clone()]), false, S::Stranded),
            (
                "older epoch",
                Box::new(|r| r.observed = Some(observed(1, BodyState::Running))),
                true,
                S::Starting,
            ),
            ("new", Box::new(|r| (r.built, r.observed) = (false, None)), true, S::Building),
            ("restart ordered", Box::new(|r| r.restarts = 1), true, S::Starting),
            ("stop ordered", Box::new(|r| r.power = Power::Off), true, S::Stopping),
            (
                "stopped",
                Box::new(|r| {
                    r.power = Power::Off;
                    r.observed = Some(observed(2, BodyState::Stopped));
                }),
                true,
                S::Stopped,
            ),
            ("exchange", Box::new(|r| r.exchange = Some(ExchangeId::new())), true, S::Exchanging),
            ("deleting", Box::new(|r| r.intent = Intent::Deleting), false, S::Deleting),
            (
                "fault",
                Box::new(|r| {
                    r.observed =
                        Some(InstanceObserved { fault: Some(fault()), ..observed(2, BodyState::Absent) });
                }),
                true,
                S::Error,
            ),
            (
                "fault of an older epoch",
                Box::new(|r| {
                    r.observed =
                        Some(InstanceObserved { fault: Some(fault()), ..observed(1, BodyState::Absent) });
                }),
                true,
                S::Starting,
            ),
        ];
        for (what, change, up, want) in table {
            let mut record = sample();
            change(&mut record);
            assert_eq!(state_of(&record, up), want, "{what}");
        }
    }

    #[test]
    fn what_the_host_said_never_changes_what_it_should_hold() {
        let before = sample();
        let seen = InstanceRecord { observed: None, built: false, ..before.clone() };
        assert!(!seen.matters(&before));
        assert!(InstanceRecord { epoch: 3, ..before.clone() }.matters(&before));
        assert!(InstanceRecord { power: Power::Off, ..before.clone() }.matters(&before));
    }

    #[test]
    fn a_fault_seen_again_says_the_same() {
        let one = InstanceObserved { fault: Some(fault()), ..observed(1, BodyState::Absent) };
        let mut two = one.clone();
        two.fault = Some(Fault { since: Timestamp::MAX, ..fault() });
        assert!(one.says_the_same(&two));
        two.state = BodyState::Running;
        assert!(!one.says_the_same(&two));
    }
}
