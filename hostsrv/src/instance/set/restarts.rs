//! How often members ended, and when each may start again. The delay is a pure function; the counts live in memory
//! and begin at zero with the process, since relabelling a container would mean making it anew.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// A member that ran this long has recovered: the next delay is the first again.
pub const STEADY: Duration = Duration::from_secs(60);
const DELAY_MAX: Duration = Duration::from_secs(60);

/// How long after its end a member waits that has failed `failures` times in a row: the first time not at all, then
/// 1 s, 2 s, 4 s and so on up to 60 s.
pub fn next_restart_delay(failures: u32) -> Duration {
    match failures {
        0 => Duration::ZERO,
        n => Duration::from_secs(1u64 << (n - 1).min(6)).min(DELAY_MAX),
    }
}

/// What is known of one container's restarts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// Starts after an end that nobody ordered.
    pub restarts: u32,
    /// Of them, those in a row with less than [`STEADY`] between start and end.
    pub failures: u32,
    /// How it ended the last time that it started again after.
    pub exit_code: Option<i64>,
    pub out_of_memory: bool,
    /// Its end was ordered: it starts again whatever its policy says.
    pub ordered: bool,
}

impl Record {
    /// How long a member waits that has now ended after running for `ran`.
    pub fn delay(self, ran: Duration) -> Duration {
        next_restart_delay(if ran >= STEADY { 0 } else { self.failures })
    }
}

/// By container id.
#[derive(Default)]
pub struct Restarts(Mutex<HashMap<String, Record>>);

impl Restarts {
    pub fn get(&self, container: &str) -> Record {
        self.lock().get(container).copied().unwrap_or_default()
    }

    /// The member starts again after it ran for `ran`.
    pub fn count(&self, container: &str, ran: Duration) {
        let mut all = self.lock();
        let record = all.entry(container.to_owned()).or_default();
        record.restarts = record.restarts.saturating_add(1);
        record.failures = if ran >= STEADY { 1 } else { record.failures.saturating_add(1) };
    }

    /// How it ended before it starts again.
    pub fn note(&self, container: &str, exit_code: Option<i64>, out_of_memory: bool) {
        let mut all = self.lock();
        let record = all.entry(container.to_owned()).or_default();
        (record.exit_code, record.out_of_memory) = (exit_code, out_of_memory);
    }

    /// It ends by order, to start again.
    pub fn order(&self, container: &str) {
        let mut all = self.lock();
        let record = all.entry(container.to_owned()).or_default();
        (record.ordered, record.failures) = (true, 0);
    }

    /// What was ordered is done.
    pub fn started(&self, container: &str) {
        if let Some(record) = self.lock().get_mut(container) {
            record.ordered = false;
        }
    }

    /// An ordered stop: what comes next is no restart.
    pub fn forget_failures(&self, container: &str) {
        if let Some(record) = self.lock().get_mut(container) {
            record.failures = 0;
        }
    }

    /// Drops what belongs to containers that are gone.
    pub fn keep(&self, exists: impl Fn(&str) -> bool) {
        self.lock().retain(|container, _| exists(container));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Record>> {
        // Every change is a single insert: a panic elsewhere leaves the map whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_a_minute() {
        let seconds: Vec<u64> = (0..10).map(|n| next_restart_delay(n).as_secs()).collect();
        assert_eq!(seconds, [0, 1, 2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!(next_restart_delay(u32::MAX), DELAY_MAX);
    }

    #[test]
    fn a_steady_run_forgives() {
        let restarts = Restarts::default();
        let short = Duration::from_secs(1);
        for _ in 0..3 {
            restarts.count("a", short);
        }
        assert_eq!(restarts.get("a"), Record { restarts: 3, failures: 3, ..Record::default() });
        assert_eq!(restarts.get("a").delay(short), Duration::from_secs(4));
        assert_eq!(restarts.get("a").delay(STEADY), Duration::ZERO);
        restarts.count("a", STEADY);
        assert_eq!(restarts.get("a"), Record { restarts: 4, failures: 1, ..Record::default() });
        restarts.forget_failures("a");
        assert_eq!(restarts.get("a"), Record { restarts: 4, failures: 0, ..Record::default() });
        restarts.keep(|id| id != "a");
        assert_eq!(restarts.get("a"), Record::default());
    }
}
