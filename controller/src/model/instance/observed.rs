//! What a host says of an instance's body, as the record keeps it.

use amphi_api::instance::{BodyKind, Fault, GuestAgent, MemberStatus};
use amphi_api::resize::SizeStatus;
use amphi_api::wire::{BodyState, InstanceStatus, LeavingStatus};
use amphi_api::{PortId, VolumeId};
use serde::{Deserialize, Serialize};

/// What the host last said of the body of `epoch`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InstanceObserved {
    pub epoch: u64,
    pub kind: BodyKind,
    pub state: BodyState,
    #[serde(default)]
    pub members: Vec<MemberStatus>,
    /// What the agent in a VM's guest says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<GuestAgent>,
    /// What a VM's probes say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    pub restarts: u64,
    /// Ports and further volumes that are plugged into the body.
    #[serde(default)]
    pub plugged_ports: Vec<PortId>,
    #[serde(default)]
    pub plugged_volumes: Vec<VolumeId>,
    /// It runs from its rescue body.
    #[serde(default)]
    pub rescued: bool,
    #[serde(default)]
    pub next_ready: bool,
    #[serde(default)]
    pub next_fault: Option<Fault>,
    #[serde(default)]
    pub fault: Option<Fault>,
    #[serde(default)]
    pub switch_ms: Option<u64>,
    #[serde(default)]
    pub size: SizeStatus,
    /// How far it is with leaving for another host while it runs.
    #[serde(default)]
    pub leaving: Option<LeavingStatus>,
}

impl From<&InstanceStatus> for InstanceObserved {
    fn from(status: &InstanceStatus) -> Self {
        Self {
            epoch: status.epoch,
            kind: status.kind,
            state: status.state,
            members: status.members.clone(),
            agent: status.agent.clone(),
            ready: status.ready,
            reason: status.reason.clone(),
            restarts: status.restarts,
            plugged_ports: status.plugged_ports.clone(),
            plugged_volumes: status.plugged_volumes.clone(),
            rescued: status.rescued,
            next_ready: status.next_ready,
            next_fault: status.next_fault.clone(),
            fault: status.fault.clone(),
            switch_ms: status.switch_ms,
            size: status.size.clone(),
            leaving: status.leaving,
        }
    }
}

impl InstanceObserved {
    /// The same but for the moment at which a lasting fault was last seen.
    pub fn says_the_same(&self, other: &Self) -> bool {
        Fault::same(&self.fault, &other.fault)
            && Fault::same(&self.next_fault, &other.next_fault)
            && *self
                == Self { fault: self.fault.clone(), next_fault: self.next_fault.clone(), ..other.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{fault, observed};
    use super::*;
    use jiff::Timestamp;

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
