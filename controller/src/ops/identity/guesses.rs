//! Whoever guesses passwords waits longer and longer. Kept in memory, by each controller for itself.
//!
//! Counted for each pair of user and source, so that failures of other users, or from elsewhere, hold up nobody. Two who
//! try one user from one source (behind one proxy) cannot be told apart before the password is looked at, and looking at it
//! while the pair has to wait would make a guess free. So the wait of a source that this user has come in from before stays
//! short enough to be waited out by the request itself: the right password is answered, late, and whoever guesses there
//! still gets one try per wait.

use crate::ops::OpsError;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Failures that cost nothing: people mistype.
const FREE_FAILURES: u32 = 5;
/// After that one second, doubled with each further failure, up to this.
const WAIT_MAX: Duration = Duration::from_secs(900);
/// The same for a source that the user has come in from before: some 20,000 tries a day, which no password of this cloud's
/// own making falls to.
const WAIT_MAX_KNOWN: Duration = Duration::from_secs(4);
/// Most pairs that are remembered for having come in.
const KNOWN_MAX: usize = 20_000;
/// Failures are forgotten after this long without one.
const FORGET: Duration = Duration::from_secs(1800);
/// Most pairs of user and source that are remembered; the oldest go first.
const REMEMBERED: usize = 20_000;

/// Who is tried, from where.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Knock {
    /// The user's id, or domain and name as they were sent: unknown users are counted like known ones.
    pub who: String,
    pub from: Option<IpAddr>,
}

#[derive(Clone, Copy, Debug)]
struct Failures {
    count: u32,
    last: Instant,
}

#[derive(Debug, Default)]
pub struct Guesses {
    failures: Mutex<HashMap<Knock, Failures>>,
    /// Pairs that have come in, and when last.
    known: Mutex<HashMap<Knock, Instant>>,
}

impl Guesses {
    /// Refuses while the pair has to wait.
    pub fn admit(&self, knock: &Knock, now: Instant) -> Result<(), OpsError> {
        let left = self.left(knock, now);
        if left.is_zero() { Ok(()) } else { Err(OpsError::TooMany { seconds: left.as_secs() + 1 }) }
    }

    /// How long a request of this pair should wait before it is admitted: as long as it has to, where it may wait at all.
    pub fn patience(&self, knock: &Knock, now: Instant) -> Duration {
        if self.is_known(knock) { self.left(knock, now) } else { Duration::ZERO }
    }

    fn left(&self, knock: &Knock, now: Instant) -> Duration {
        let most = if self.is_known(knock) { WAIT_MAX_KNOWN } else { WAIT_MAX };
        let failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(failures) = failures.get(knock) else { return Duration::ZERO };
        (failures.last + wait_after(failures.count).min(most)).saturating_duration_since(now)
    }

    fn is_known(&self, knock: &Knock) -> bool {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).contains_key(knock)
    }

    pub fn failed(&self, knock: Knock, now: Instant) {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        if failures.len() >= REMEMBERED && !failures.contains_key(&knock) {
            failures.retain(|_, f| now.saturating_duration_since(f.last) < FORGET);
            if failures.len() >= REMEMBERED
                && let Some(oldest) = failures.iter().min_by_key(|(_, f)| f.last).map(|(k, _)| k.clone())
            {
                failures.remove(&oldest);
            }
        }
        let entry = failures.entry(knock).or_insert(Failures { count: 0, last: now });
        if now.saturating_duration_since(entry.last) >= FORGET {
            entry.count = 0;
        }
        entry.count += 1;
        entry.last = now;
    }

    pub fn opened(&self, knock: &Knock, now: Instant) {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).remove(knock);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= KNOWN_MAX
            && !known.contains_key(knock)
            && let Some(oldest) = known.iter().min_by_key(|(_, at)| **at).map(|(k, _)| k.clone())
        {
            known.remove(&oldest);
        }
        known.insert(knock.clone(), now);
    }
}

fn wait_after(failures: u32) -> Duration {
    let Some(over) = failures.checked_sub(FREE_FAILURES) else { return Duration::ZERO };
    Duration::from_secs(1u64 << over.min(10)).min(WAIT_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guessing_gets_slower_and_is_forgotten() {
        let table = [(0, 0), (4, 0), (5, 1), (6, 2), (7, 4), (14, 512), (15, 900), (u32::MAX, 900)];
        for (failures, seconds) in table {
            assert_eq!(wait_after(failures).as_secs(), seconds, "after {failures}");
        }
        let (guesses, start) = (Guesses::default(), Instant::now());
        let knock = Knock { who: "default/admin".into(), from: Some([10, 0, 0, 1].into()) };
        let elsewhere = Knock { from: Some([10, 0, 0, 2].into()), ..knock.clone() };
        for _ in 0..5 {
            guesses.admit(&knock, start).unwrap();
            guesses.failed(knock.clone(), start);
        }
        assert!(matches!(guesses.admit(&knock, start), Err(OpsError::TooMany { .. })));
        guesses.admit(&elsewhere, start).unwrap();
        guesses.admit(&knock, start + Duration::from_secs(1)).unwrap();
        guesses.failed(knock.clone(), start + Duration::from_secs(1));
        assert!(guesses.admit(&knock, start + Duration::from_secs(2)).is_err());
        guesses.failed(knock.clone(), start + Duration::from_secs(2) + FORGET);
        guesses.admit(&knock, start + Duration::from_secs(2) + FORGET).unwrap();
        guesses.opened(&knock, start);
        assert!(guesses.failures.lock().unwrap().is_empty());
    }

    #[test]
    fn a_known_source_waits_seconds_and_still_waits() {
        let (guesses, start) = (Guesses::default(), Instant::now());
        let known = Knock { who: "default/admin".into(), from: Some([10, 0, 0, 1].into()) };
        let stranger = Knock { from: Some([10, 0, 0, 2].into()), ..known.clone() };
        guesses.opened(&known, start);
        for knock in [&known, &stranger] {
            assert!(guesses.patience(knock, start).is_zero());
            (0..20).for_each(|_| guesses.failed(knock.clone(), start));
            assert!(guesses.admit(knock, start + Duration::from_secs(3)).is_err());
        }
        assert_eq!(guesses.patience(&known, start), WAIT_MAX_KNOWN);
        guesses.admit(&known, start + WAIT_MAX_KNOWN).unwrap();
        // Who has never come in from there is not waited for.
        assert!(guesses.patience(&stranger, start).is_zero());
        assert!(guesses.admit(&stranger, start + WAIT_MAX_KNOWN).is_err());
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let (guesses, now) = (Guesses::default(), Instant::now());
        for n in 0..REMEMBERED + 3 {
            guesses.failed(Knock { who: n.to_string(), from: None }, now + Duration::from_millis(n as u64));
        }
        let failures = guesses.failures.lock().unwrap();
        assert_eq!(failures.len(), REMEMBERED);
        assert!(!failures.contains_key(&Knock { who: "0".into(), from: None }));
    }
}
