//! How fast bytes may go to a region and from it: all of its transfers share one pace.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// Bytes that may have gone ahead of the pace, as time: what a line needs to be kept full.
const AHEAD: Duration = Duration::from_millis(100);

/// When the next bytes may go.
#[derive(Default)]
pub struct Pace(Mutex<Option<Instant>>);

impl Pace {
    /// Waits until so many bytes may go.
    pub async fn take(&self, bytes: usize, per_second: Option<u64>) {
        let Some(rate) = per_second else { return };
        let wait = {
            let mut next = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let (from, after) = slot(*next, Instant::now(), bytes, rate);
            *next = Some(after);
            from
        };
        tokio::time::sleep_until(wait).await;
    }
}

/// When these bytes may go, and when those after them.
fn slot(next: Option<Instant>, now: Instant, bytes: usize, rate: u64) -> (Instant, Instant) {
    let from = next.unwrap_or(now).max(now.checked_sub(AHEAD).unwrap_or(now));
    (from, from + Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_wait_for_those_before_them_and_no_time_is_saved_up() {
        let now = Instant::now() + Duration::from_secs(3600);
        let at = |milliseconds| now + Duration::from_millis(milliseconds);
        let (from, next) = slot(None, now, 1000, 10_000);
        assert_eq!((from, next), (now, at(100)));
        assert_eq!(slot(Some(next), now, 500, 10_000), (at(100), at(150)));
        // A line that was idle for a minute is not owed a minute's bytes.
        let (from, next) = slot(Some(at(150)), at(60_000), 1000, 10_000);
        assert_eq!((from, next), (at(60_000) - AHEAD, at(60_000)));
    }
}
