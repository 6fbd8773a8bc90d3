//! Fence devices at work: who is to be switched off now, and what came of it. A device runs beside the looks, so that a
//! slow one holds up no other host.
//!
//! Nobody is switched off while more than half of the hosts are missing: then the controller is what is cut off.

use super::Verdict;
use crate::fence::Fence;
use crate::ops::Ops;
use amphi_api::HostId;
use amphi_api::failover::FenceReport;
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a host is missed before it is switched off: a word that was lost on the way is no death.
const PATIENCE: Duration = Duration::from_millis(800);
/// Pause after a device that failed.
const AGAIN: Duration = Duration::from_secs(5);

/// A host as fencing sees it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Sight {
    pub name: String,
    pub linked: bool,
    pub barred: bool,
    pub verdict: Option<Verdict>,
}

/// Whether the host is missing, as far as one can tell from here.
fn is_missing(sight: &Sight) -> bool {
    match &sight.verdict {
        Some(Verdict::Late | Verdict::Ended) => true,
        // Held back for whatever reason, or without a lease at all: its link says whether it is there.
        Some(Verdict::HeldBack { .. }) | None => !sight.linked,
        Some(Verdict::Fresh) => false,
    }
}

/// Whom a device may switch off: who is missing, while at least half of all are there. Pure.
pub(super) fn to_fence(hosts: &BTreeMap<HostId, Sight>) -> Vec<HostId> {
    let missing: Vec<_> = hosts.iter().filter(|(_, sight)| is_missing(sight)).collect();
    if 2 * missing.len() > hosts.len() {
        return Vec::new();
    }
    missing.into_iter().filter(|(_, sight)| !sight.barred).map(|(id, _)| *id).collect()
}

#[derive(Default)]
struct Attempt {
    missed_since: Option<Instant>,
    running: bool,
    ended: Option<(Instant, FenceReport)>,
}

pub(super) struct Fencing {
    fences: BTreeMap<String, Fence>,
    attempts: Arc<Mutex<BTreeMap<HostId, Attempt>>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Fencing {
    pub fn new(fences: BTreeMap<String, Fence>) -> Self {
        Self { fences, attempts: Arc::default() }
    }

    /// Starts what is due; answers who was switched off, with the report.
    pub fn look(&self, ops: &Ops, verdicts: &BTreeMap<HostId, Verdict>) -> Vec<(HostId, FenceReport)> {
        if self.fences.is_empty() {
            return Vec::new();
        }
        let sight = |(id, name, linked, barred)| {
            let verdict = verdicts.get(&id).cloned();
            (id, Sight { name, linked, barred, verdict })
        };
        let hosts: BTreeMap<HostId, Sight> = ops.presence().into_iter().map(sight).collect();
        let due = to_fence(&hosts);
        let mut attempts = locked(&self.attempts);
        attempts.retain(|id, attempt| attempt.running || due.contains(id));
        for id in due {
            let name = &hosts[&id].name;
            let Some(fence) = self.fences.get(name) else { continue };
            let attempt = attempts.entry(id).or_default();
            let missed = attempt.missed_since.get_or_insert_with(Instant::now).elapsed();
            let rested = attempt.ended.as_ref().is_none_or(|(at, _)| at.elapsed() >= AGAIN);
            let over = attempt.ended.as_ref().is_some_and(|(_, report)| report.success);
            if attempt.running || over || !rested || missed < PATIENCE {
                continue;
            }
            attempt.running = true;
            tracing::warn!(
                host = name,
                device = fence.driver.name(),
                "the host is missing: it is switched off"
            );
            tokio::spawn(attend(self.attempts.clone(), id, name.clone(), fence.clone()));
        }
        let off = attempts.iter().filter_map(|(id, attempt)| {
            let (_, report) =
                attempt.ended.as_ref().filter(|(_, report)| report.success && !attempt.running)?;
            Some((*id, report.clone()))
        });
        off.collect()
    }

    /// What the device last said of the host.
    pub fn report(&self, host: HostId) -> Option<FenceReport> {
        locked(&self.attempts).get(&host)?.ended.as_ref().map(|(_, report)| report.clone())
    }

    /// What was done is in the records.
    pub fn done(&self, host: HostId) {
        locked(&self.attempts).remove(&host);
    }
}

async fn attend(attempts: Arc<Mutex<BTreeMap<HostId, Attempt>>>, id: HostId, name: String, fence: Fence) {
    let outcome = fence.fence(&name).await;
    if let Err(error) = &outcome {
        tracing::error!(host = name, %error, "the host could not be switched off");
    }
    let report = FenceReport {
        driver: fence.driver.name().to_owned(),
        success: outcome.is_ok(),
        message: outcome.err().map(|e| e.to_string()).unwrap_or_default(),
        at: Timestamp::now(),
    };
    let mut attempts = locked(&attempts);
    let attempt = attempts.entry(id).or_default();
    attempt.running = false;
    attempt.ended = Some((Instant::now(), report));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_switched_off_by_a_controller_that_is_cut_off_itself() {
        let held = || Some(Verdict::HeldBack { why: "two hosts".into() });
        let sight =
            |verdict: Option<Verdict>, linked| Sight { name: "h".into(), linked, barred: false, verdict };
        let (late, fresh) = (|| sight(Some(Verdict::Late), true), || sight(Some(Verdict::Fresh), false));
        let table = [
            ("one of three", vec![late(), fresh(), fresh()], 1),
            ("two of three", vec![late(), late(), fresh()], 0),
            ("one of two", vec![late(), fresh()], 1),
            ("the only one", vec![late()], 0),
            ("no lease, and its link is gone", vec![sight(held(), false), sight(None, true)], 1),
            ("no lease, and its link stands", vec![sight(held(), true), sight(None, true)], 0),
            ("barred already", vec![Sight { barred: true, ..late() }, fresh(), fresh()], 0),
        ];
        for (what, sights, want) in table {
            let hosts = sights.into_iter().map(|s| (HostId::new(), s)).collect();
            assert_eq!(to_fence(&hosts).len(), want, "{what}");
        }
    }
}
