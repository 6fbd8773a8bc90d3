//! Instances whose orders this agent could not read, since its controller is newer: each stays as it was ordered before, and
//! its status says why. One that was never ordered before is not made, and nothing of it is touched.

use super::Reconciler;
use super::ledger::LedgerError;
use amphi_api::instance::{BodyKind, Fault};
use amphi_api::resize::SizeStatus;
use amphi_api::unread::{NEEDS_NEWER_AGENT, Unread};
use amphi_api::wire::{BodyState, ExpectedStatus, HostDesired, HostStatus, InstanceStatus};
use jiff::Timestamp;
use std::sync::PoisonError;
use uuid::Uuid;

/// The list of instances that come here next, as its field is called.
const EXPECTED: &str = "expected";

impl Reconciler {
    /// As [`Reconciler::accept_in`], with the former orders in the place of those that could not be read.
    pub fn accept_read(
        &self,
        boot: Uuid,
        desired: HostDesired,
        unread: Vec<Unread>,
    ) -> Result<(), LedgerError> {
        let desired = {
            let ledger = self.ledger();
            with_former(desired, ledger.desired(), &unread)
        };
        for one in &unread {
            tracing::error!(instance = %one.id, "its order needs a newer agent: {}", one.why.message);
        }
        *self.unread.lock().unwrap_or_else(PoisonError::into_inner) = unread;
        self.accept_in(boot, desired)
    }

    /// Says of each that could not be read that it could not.
    pub(super) fn tell_unread(&self, status: &mut HostStatus) {
        for one in self.unread.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            tell(status, one);
        }
    }
}

fn with_former(mut desired: HostDesired, former: Option<&HostDesired>, unread: &[Unread]) -> HostDesired {
    let named = |list: &str, id| unread.iter().any(|one| one.id == id && one.why.field == list);
    if let Some(former) = former {
        let kept = former.instances.iter().filter(|i| named("instances", i.id));
        desired.instances.extend(kept.cloned());
        let kept = former.expected.iter().filter(|i| named(EXPECTED, i.id));
        desired.expected.extend(kept.cloned());
    }
    desired
}

fn tell(status: &mut HostStatus, one: &Unread) {
    let fault = Fault {
        code: NEEDS_NEWER_AGENT.into(),
        message: format!("this host's agent is older than the order: upgrade it ({})", one.why.message),
        since: Timestamp::UNIX_EPOCH,
    };
    if one.why.field == EXPECTED {
        // Under the epoch of the order that it is about: whatever was made ready for a former one is not what is asked.
        status.expected.retain(|told| told.id != one.id);
        let (id, epoch) = (one.id, one.epoch);
        status.expected.push(ExpectedStatus { id, epoch, ready: false, fault: Some(fault), landed: false });
        return;
    }
    if let Some(told) = status.instances.iter_mut().find(|told| told.id == one.id) {
        told.fault = Some(fault);
        return;
    }
    status.instances.push(InstanceStatus {
        id: one.id,
        epoch: one.epoch,
        // Of a body that is not there nobody asks the kind.
        kind: BodyKind::Set,
        state: BodyState::Absent,
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
        fault: Some(fault),
        switch_ms: None,
        size: SizeStatus::default(),
        leaving: None,
        copying: None,
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use amphi_api::unread::to_host;
    use amphi_api::wire::ToHost;
    use serde_json::Value;

    fn read(text: &Value) -> (HostDesired, Vec<Unread>) {
        match to_host(&text.to_string()).unwrap() {
            (ToHost::Desired(desired), unread) => (desired, unread),
            (other, _) => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_cannot_be_read_stays_as_it_was() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../api/testdata/wire/2026-11-desired.json");
        let mut text: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let (before, unread) = read(&text);
        assert_eq!(unread, []);
        text["generation"] = 78.into();
        text["instances"][0]["vcpus"] = 4.into();
        text["instances"][0]["body"]["set"]["set"]["members"][0]["teleport"] = true.into();
        text["instances"][1]["vcpus"] = 2.into();
        let (after, unread) = read(&text);
        let shop = before.instances[0].clone();
        let taken = with_former(after.clone(), Some(&before), &unread);
        let of = |id| taken.instances.iter().find(|i| i.id == id).unwrap();
        assert_eq!((taken.generation, taken.instances.len(), of(shop.id)), (78, 2, &shop));
        assert_eq!(of(before.instances[1].id).vcpus, 2, "the others go on");
        assert_eq!(with_former(after, None, &unread).instances.len(), 1, "never ordered before: not made");
        let mut status = HostStatus::default();
        tell(&mut status, &unread[0]);
        tell(&mut status, &unread[0]);
        let told = &status.instances[0];
        assert_eq!((status.instances.len(), told.epoch, told.state), (1, 3, BodyState::Absent));
        let fault = told.fault.as_ref().unwrap();
        assert!(fault.code == NEEDS_NEWER_AGENT && fault.message.contains("teleport"), "{fault:?}");
    }

    #[test]
    fn what_comes_here_and_cannot_be_read_is_told() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../api/testdata/wire/2026-11-desired.json");
        let mut text: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let mut coming = text["instances"][0].clone();
        let id: amphi_api::InstanceId = amphi_api::InstanceId::new();
        coming["id"] = serde_json::to_value(id).unwrap();
        text["expected"] = Value::Array(vec![coming]);
        let (before, unread) = read(&text);
        assert_eq!((before.expected.len(), unread.len()), (1, 0));
        text["expected"][0]["epoch"] = 9.into();
        text["expected"][0]["body"]["set"]["set"]["teleport"] = true.into();
        let (after, unread) = read(&text);
        assert_eq!((after.expected.len(), unread.len()), (0, 1));
        let taken = with_former(after, Some(&before), &unread);
        assert_eq!((taken.instances.len(), &taken.expected), (2, &before.expected));
        let ready = ExpectedStatus { id, epoch: 3, ready: true, fault: None, landed: false };
        let mut status = HostStatus { expected: vec![ready], ..HostStatus::default() };
        tell(&mut status, &unread[0]);
        let [told] = status.expected.as_slice() else { panic!("{:?}", status.expected) };
        assert_eq!((told.id, told.epoch, told.ready, status.instances.len()), (id, 9, false, 0));
        assert_eq!(told.fault.as_ref().unwrap().code, NEEDS_NEWER_AGENT);
    }
}
