//! Owns what libvirt's states and reasons mean for a body, and what `ensure` and `remove` do about what they find:
//! pure decisions.

use crate::instance::ObservedState;
use amphi_api::instance::Power;
use virt_sys as sys;

/// A domain's state and reason as libvirt gives them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Condition {
    pub state: sys::virDomainState,
    pub reason: i32,
    /// It is off and its memory on disk.
    pub saved: bool,
    /// libvirt is at work moving it, to here or from here.
    pub crossing: bool,
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
        // On its way to another host or from one: libvirt holds it until it knows which of the two it is.
        sys::VIR_DOMAIN_PAUSED if condition.crossing => (ObservedState::Degraded, None),
        // By order: at a start, at a restore (which libvirt calls a migration too), or while it runs. What else pauses
        // it is trouble.
        sys::VIR_DOMAIN_PAUSED
            if [
                sys::VIR_DOMAIN_PAUSED_USER,
                sys::VIR_DOMAIN_PAUSED_MIGRATION,
                sys::VIR_DOMAIN_PAUSED_SAVE,
                sys::VIR_DOMAIN_PAUSED_FROM_SNAPSHOT,
            ]
            .into_iter()
            .any(reason) =>
        {
            (ObservedState::Paused, None)
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
        sys::VIR_DOMAIN_SHUTOFF if condition.saved => (ObservedState::Suspended, None),
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

/// Whether it ended here because it is whole on another host.
pub fn went_over(condition: Condition) -> bool {
    let migrated = i32::try_from(sys::VIR_DOMAIN_SHUTOFF_MIGRATED) == Ok(condition.reason);
    condition.state == sys::VIR_DOMAIN_SHUTOFF && migrated
}

/// What `ensure` does about the domain that it finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Define it anew from the plan, and start it.
    Make,
    /// Start it with the memory that is on disk.
    Restore,
    /// An older epoch's body is in the way: remove it, then make.
    Replace { older: u64 },
    /// It is there: plug, unplug, halt, resume.
    Adjust,
    /// It is as it should be, on disk.
    Nothing,
    /// A newer epoch's body is here: the plan is stale.
    Stale { newer: u64 },
}

pub fn way(found: Option<(u64, Condition)>, wanted: u64, power: Power) -> Way {
    match found {
        Some((epoch, _)) if epoch > wanted => Way::Stale { newer: epoch },
        Some((epoch, _)) if epoch < wanted => Way::Replace { older: epoch },
        Some((_, condition)) if condition.active() => Way::Adjust,
        Some((_, condition)) if condition.saved && power == Power::Suspended => Way::Nothing,
        Some((_, condition)) if condition.saved => Way::Restore,
        _ => Way::Make,
    }
}

/// What brings a domain that is there where it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Movement {
    None,
    Resume,
    Pause,
    Save,
}

/// `held`: this process holds the guest still on purpose, so that it must not be resumed.
pub fn movement(condition: Condition, power: Power, held: bool) -> Movement {
    match power {
        _ if !condition.active() => Movement::None,
        Power::On if condition.paused() && !held => Movement::Resume,
        Power::Paused if !condition.paused() => Movement::Pause,
        Power::Suspended => Movement::Save,
        Power::On | Power::Paused | Power::Off => Movement::None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUNS: Condition =
        Condition { state: sys::VIR_DOMAIN_RUNNING, reason: 1, saved: false, crossing: false };
    const OFF: Condition =
        Condition { state: sys::VIR_DOMAIN_SHUTOFF, reason: 1, saved: false, crossing: false };
    const FULL: Condition = Condition {
        state: sys::VIR_DOMAIN_PAUSED,
        reason: sys::VIR_DOMAIN_PAUSED_IOERROR as i32,
        saved: false,
        crossing: false,
    };
    const HELD: Condition = Condition {
        state: sys::VIR_DOMAIN_PAUSED,
        reason: sys::VIR_DOMAIN_PAUSED_USER as i32,
        saved: false,
        crossing: false,
    };
    const DEAD: Condition = Condition {
        state: sys::VIR_DOMAIN_SHUTOFF,
        reason: sys::VIR_DOMAIN_SHUTOFF_CRASHED as i32,
        saved: false,
        crossing: false,
    };

    const CROSSING: Condition = Condition {
        state: sys::VIR_DOMAIN_PAUSED,
        reason: sys::VIR_DOMAIN_PAUSED_MIGRATION as i32,
        saved: false,
        crossing: true,
    };
    const AWAY: Condition = Condition {
        state: sys::VIR_DOMAIN_SHUTOFF,
        reason: sys::VIR_DOMAIN_SHUTOFF_MIGRATED as i32,
        saved: false,
        crossing: false,
    };
    const RESTORED: Condition = Condition { crossing: false, ..CROSSING };
    const SAVED: Condition = Condition { saved: true, ..OFF };

    #[test]
    fn conditions() {
        for (condition, state, word) in [
            (RUNS, ObservedState::Running, None),
            (OFF, ObservedState::Stopped, None),
            (FULL, ObservedState::Degraded, Some("full")),
            (HELD, ObservedState::Paused, None),
            (SAVED, ObservedState::Suspended, None),
            (DEAD, ObservedState::Stopped, Some("crashed")),
            (CROSSING, ObservedState::Degraded, None),
            (RESTORED, ObservedState::Paused, None),
            (AWAY, ObservedState::Stopped, None),
        ] {
            assert_eq!(went_over(condition), condition == AWAY, "{condition:?}");
            let (found, trouble) = observed(condition);
            assert_eq!(found, state, "{condition:?}");
            assert_eq!(trouble.is_some(), word.is_some(), "{condition:?}: {trouble:?}");
            assert!(trouble.unwrap_or_default().contains(word.unwrap_or_default()), "{condition:?}");
        }
    }

    #[test]
    fn ways() {
        for (found, power, expected) in [
            (None, Power::On, Way::Make),
            (Some((5, OFF)), Power::On, Way::Make),
            (Some((5, OFF)), Power::Suspended, Way::Make),
            (Some((5, RUNS)), Power::On, Way::Adjust),
            (Some((5, HELD)), Power::On, Way::Adjust),
            (Some((5, SAVED)), Power::On, Way::Restore),
            (Some((5, SAVED)), Power::Paused, Way::Restore),
            (Some((5, SAVED)), Power::Suspended, Way::Nothing),
            (Some((5, DEAD)), Power::On, Way::Make),
            (Some((4, RUNS)), Power::On, Way::Replace { older: 4 }),
            (Some((0, OFF)), Power::On, Way::Replace { older: 0 }),
            (Some((6, OFF)), Power::On, Way::Stale { newer: 6 }),
            (Some((6, RUNS)), Power::On, Way::Stale { newer: 6 }),
        ] {
            assert_eq!(way(found, 5, power), expected, "{found:?} {power:?}");
        }
    }

    #[test]
    fn movements() {
        for (condition, power, held, expected) in [
            (RUNS, Power::On, false, Movement::None),
            (HELD, Power::On, false, Movement::Resume),
            (HELD, Power::On, true, Movement::None),
            (FULL, Power::On, false, Movement::Resume),
            (RUNS, Power::Paused, false, Movement::Pause),
            (HELD, Power::Paused, true, Movement::None),
            (RUNS, Power::Suspended, false, Movement::Save),
            (HELD, Power::Suspended, false, Movement::Save),
            (SAVED, Power::On, false, Movement::None),
        ] {
            assert_eq!(movement(condition, power, held), expected, "{condition:?} {power:?} held={held}");
        }
    }
}
