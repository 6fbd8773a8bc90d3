//! What the loop remembers of an item between two looks: whether it is being worked on, what went wrong, and when to
//! try again. Lost when the agent ends, which costs nothing but a retry. Pure.

use amphi_api::VolumeId;
use amphi_api::instance::{BodyKind, Fault};
use std::time::Duration;
use tokio::time::Instant;

/// Digest of what was ordered of an item: a changed order is tried at once, whatever went wrong before.
pub type Order = u64;

#[derive(Clone, Debug, Default)]
pub struct Memory {
    /// A task works on it.
    pub busy: bool,
    /// The volumes that the task may make, attach or give back.
    pub hands: Vec<VolumeId>,
    pub fault: Option<Fault>,
    /// The next body made ready: its kind and the epoch it will follow.
    pub prepared: Option<(BodyKind, u64)>,
    /// As it was ordered then.
    pub prepared_for: Option<Order>,
    /// Why the next body cannot be made ready.
    pub next_fault: Option<Fault>,
    /// The last change of body: the epoch it led to, and how long none ran, in milliseconds.
    pub switched: Option<(u64, u64)>,
    /// When the old body was told to stop, while the new one does not run yet.
    pub switching_since: Option<Instant>,
    /// What runs could not take on its size, of this order.
    pub refused: Option<Refused>,
    /// The ordered restarts that were carried out before this task noted more: what they lead to is still to come.
    pub restarts_before: Option<u64>,
    order: Order,
    failures: u32,
    /// Tasks in a row that went well and yet left something to do: a member that waits for its next restart.
    unfinished: u32,
    retry_at: Option<Instant>,
}

/// A size that what runs could not take on.
#[derive(Clone, Debug)]
pub struct Refused {
    pub order: Order,
    pub code: String,
    pub message: String,
    /// When it is tried again.
    pub until: Instant,
}

/// Wait before the next task of the same order after one that went well: 250 ms, 500 ms … 4 s.
fn pause(unfinished: u32) -> Duration {
    Duration::from_millis(250 << unfinished.saturating_sub(1).min(4))
}

/// Wait before the try after the n-th failure in a row: 1, 2, 4 … 30 s. Short, since a person may be waiting; bounded,
/// since an engine may be down for an hour.
fn delay(failures: u32) -> Duration {
    Duration::from_secs(1 << failures.saturating_sub(1).min(5)).min(Duration::from_secs(30))
}

impl Memory {
    pub fn may_try(&self, order: &Order, now: Instant) -> bool {
        *order != self.order || self.retry_at.is_none_or(|at| at <= now)
    }

    pub fn begin(&mut self, order: Order) {
        if order != self.order {
            self.failures = 0;
            self.unfinished = 0;
            self.next_fault = None;
            // Told again if the new order meets it too; an exchange must not take the old body's trouble for the new one's.
            self.fault = None;
        }
        self.order = order;
        self.restarts_before = None;
        self.busy = true;
        self.retry_at = None;
    }

    pub fn succeeded(&mut self, now: Instant) {
        self.busy = false;
        self.fault = None;
        self.failures = 0;
        self.unfinished += 1;
        self.retry_at = Some(now + pause(self.unfinished));
    }

    /// Nothing is left to do: no fault holds any more.
    pub fn settled(&mut self) {
        self.fault = None;
        self.failures = 0;
        self.unfinished = 0;
        self.retry_at = None;
    }

    pub fn failed(&mut self, code: &str, message: String, now: Instant) {
        self.busy = false;
        self.failures += 1;
        self.retry_at = Some(now + delay(self.failures));
        self.fault = Some(Self::fault_since(self.fault.take(), code, message));
    }

    /// The same trouble keeps its beginning.
    pub fn fault_since(before: Option<Fault>, code: &str, message: String) -> Fault {
        match before {
            Some(mut fault) if fault.code == code => {
                fault.message = message;
                fault
            }
            _ => Fault { code: code.to_owned(), message, since: jiff::Timestamp::now() },
        }
    }

    pub fn retry_at(&self) -> Option<Instant> {
        self.retry_at
    }

    pub fn retry_now(&mut self) {
        self.retry_at = None;
        self.failures = 0;
        self.unfinished = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_longer_after_each_failure_but_never_for_a_new_order() {
        let now = Instant::now();
        let mut memory = Memory::default();
        let mut waits = Vec::new();
        for _ in 0..7 {
            memory.begin(1);
            assert!(memory.busy);
            memory.failed("x", "y".into(), now);
            waits.push(memory.retry_at().unwrap().duration_since(now).as_secs());
            assert!(!memory.may_try(&1, now));
            assert!(memory.may_try(&2, now));
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 30, 30]);
        let since = memory.fault.clone().unwrap().since;
        memory.begin(1);
        memory.failed("x", "z".into(), now);
        assert_eq!(memory.fault.clone().unwrap().since, since, "one trouble has one beginning");
        memory.begin(1);
        memory.succeeded(now);
        assert!(memory.fault.is_none() && !memory.may_try(&1, now), "no spinning on what is never finished");
        assert!(memory.may_try(&1, now + Duration::from_millis(250)) && memory.may_try(&2, now));
        memory.settled();
        assert!(memory.may_try(&1, now));
        memory.failed("x", "y".into(), now);
        memory.begin(2);
        assert!(memory.fault.is_none(), "a new order does not carry the old one's trouble");
    }
}
