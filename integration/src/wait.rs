//! Waiting for a condition until a deadline; what was seen last is in the error. Refuses waits without an end.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Between two looks.
const POLL: Duration = Duration::from_millis(100);

/// What a look at the world found.
pub enum Seen<T> {
    Enough(T),
    /// Not yet: what there was instead.
    Not(String),
}

/// `Enough` when the condition holds, else what was seen.
pub fn seen(holds: bool, saw: impl FnOnce() -> String) -> Seen<()> {
    if holds { Seen::Enough(()) } else { Seen::Not(saw()) }
}

/// Looks until it is enough. A look that fails counts as not yet, and its reason is what was seen.
pub fn until<T>(expected: &str, limit: Duration, mut look: impl FnMut() -> Result<Seen<T>>) -> Result<T> {
    let end = Instant::now() + limit;
    loop {
        let saw = match look() {
            Ok(Seen::Enough(found)) => return Ok(found),
            Ok(Seen::Not(saw)) => saw,
            Err(error) => format!("{error:#}"),
        };
        if Instant::now() >= end {
            bail!("expected within {} s: {expected}; saw: {saw}", limit.as_secs());
        }
        std::thread::sleep(POLL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_sight_is_in_the_error() {
        let mut looks = 0;
        let found = until("two", Duration::from_secs(5), || {
            looks += 1;
            Ok(if looks == 2 { Seen::Enough(looks) } else { Seen::Not(looks.to_string()) })
        });
        assert_eq!(found.unwrap(), 2);
        let error = until::<()>("rain", Duration::ZERO, || Ok(Seen::Not("sun".to_owned()))).unwrap_err();
        assert_eq!(error.to_string(), "expected within 0 s: rain; saw: sun");
    }
}
