//! Owns what libvirt's states and reasons mean for a body, and what `ensure` and `remove` do about what they find:
//! pure decisions.

use crate::instance::ObservedState;
use virt_sys as sys;

/// A domain's state and reason as libvirt gives them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Condition {
    pub state: sys::virDomainState,
    pub reason: i32,
}

impl Condition {
    /// A QEMU process is there, running or paused.
    pub fn active(self) -> bool {
        !matches!(self.state, sys::VIR_DOMAIN_SHUTOFF | sys::VIR_DOMAIN_NOSTATE)
    }

    pub fn paused(self) -> bool {
        matches!(self.state, sys::VIR_DOMAIN_PAUSED | sys::VIR_DOMAIN_PMSUSPENDED)
    }
}

/// What a domain's condition says of the body: its state, and its trouble in words.
pub fn observed(condition: Condition) -> (ObservedState, Option<String>) {
    let reason = |r: sys::virDomainPausedReason| i32::try_from(r) == Ok(condition.reason);
    match condition.state {
        sys::VIR_DOMAIN_RUNNING | sys::VIR_DOMAIN_BLOCKED | sys::VIR_DOMAIN_SHUTDOWN => {
            (ObservedState::Running, None)
        }
        sys::VIR_DOMAIN_PAUSED if reason(sys::VIR_DOMAIN_PAUSED_IOERROR) => (
            ObservedState::Degraded,
            Some(
                "the guest is paused on an I/O error: the storage under one of its disks is full or broken"
                    .into(),
            ),
        ),
        sys::VIR_DOMAIN_PAUSED if reason(sys::VIR_DOMAIN_PAUSED_USER) => {
            (ObservedState::Degraded, Some("the guest is paused".into()))
        }
        sys::VIR_DOMAIN_PAUSED if reason(sys::VIR_DOMAIN_PAUSED_STARTING_UP) => {
            (ObservedState::Degraded, None)
        }
        sys::VIR_DOMAIN_PAUSED => (
            ObservedState::Degraded,
            Some(format!("libvirt has paused the guest (reason {})", condition.reason)),
        ),
        sys::VIR_DOMAIN_PMSUSPENDED => {
            (ObservedState::Degraded, Some("the guest has put itself to sleep".into()))
        }
        sys::VIR_DOMAIN_CRASHED => (ObservedState::Stopped, Some("the guest crashed".into())),
        sys::VIR_DOMAIN_SHUTOFF if reason(sys::VIR_DOMAIN_SHUTOFF_CRASHED) => {
            (ObservedState::Stopped, Some("the guest crashed".into()))
        }
        sys::VIR_DOMAIN_SHUTOFF if reason(sys::VIR_DOMAIN_SHUTOFF_FAILED) => {
            (ObservedState::Stopped, Some("QEMU failed to start, or died".into()))
        }
        _ => (ObservedState::Stopped, None),
    }
}

/// What `ensure` does about the domain that it finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Define it anew from the plan, and start it.
    Make,
    /// An older epoch's body is in the way: remove it, then make.
    Replace {
        older: u64,
    },
    Resume,
    /// It runs.
    Nothing,
    /// A newer epoch's body is here: the plan is stale.
    Stale {
        newer: u64,
    },
}

/// `held`: this process holds the guest still on purpose, so that it must not be resumed.
pub fn way(found: Option<(u64, Condition)>, wanted: u64, held: bool) -> Way {
    match found {
        Some((epoch, _)) if epoch > wanted => Way::Stale { newer: epoch },
        Some((epoch, _)) if epoch < wanted => Way::Replace { older: epoch },
        Some((_, condition)) if condition.paused() && !held => Way::Resume,
        Some((_, condition)) if condition.active() => Way::Nothing,
        _ => Way::Make,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUNS: Condition = Condition { state: sys::VIR_DOMAIN_RUNNING, reason: 1 };
    const OFF: Condition = Condition { state: sys::VIR_DOMAIN_SHUTOFF, reason: 1 };
    const FULL: Condition =
        Condition { state: sys::VIR_DOMAIN_PAUSED, reason: sys::VIR_DOMAIN_PAUSED_IOERROR as i32 };
    const HELD: Condition =
        Condition { state: sys::VIR_DOMAIN_PAUSED, reason: sys::VIR_DOMAIN_PAUSED_USER as i32 };
    const DEAD: Condition =
        Condition { state: sys::VIR_DOMAIN_SHUTOFF, reason: sys::VIR_DOMAIN_SHUTOFF_CRASHED as i32 };

    #[test]
    fn conditions() {
        for (condition, state, word) in [
            (RUNS, ObservedState::Running, None),
            (OFF, ObservedState::Stopped, None),
            (FULL, ObservedState::Degraded, Some("full")),
            (HELD, ObservedState::Degraded, Some("paused")),
            (DEAD, ObservedState::Stopped, Some("crashed")),
        ] {
            let (found, trouble) = observed(condition);
            assert_eq!(found, state, "{condition:?}");
            assert_eq!(trouble.is_some(), word.is_some(), "{condition:?}: {trouble:?}");
            assert!(trouble.unwrap_or_default().contains(word.unwrap_or_default()), "{condition:?}");
        }
    }

    #[test]
    fn ways() {
        for (found, held, expected) in [
            (None, false, Way::Make),
            (Some((5, OFF)), false, Way::Make),
            (Some((5, RUNS)), false, Way::Nothing),
            (Some((5, HELD)), false, Way::Resume),
            (Some((5, HELD)), true, Way::Nothing),
            (Some((5, FULL)), false, Way::Resume),
            (Some((5, DEAD)), false, Way::Make),
            (Some((4, RUNS)), false, Way::Replace { older: 4 }),
            (Some((0, OFF)), false, Way::Replace { older: 0 }),
            (Some((6, OFF)), false, Way::Stale { newer: 6 }),
            (Some((6, RUNS)), true, Way::Stale { newer: 6 }),
        ] {
            assert_eq!(way(found, 5, held), expected, "{found:?} held={held}");
        }
    }
}
