//! The orderly end of one container: its `pre_stop`, then its signal, then force; all of it within its grace.

use super::commands::{self, Ran};
use super::observed::Part;
use super::shared::Shared;
use crate::instance::DriverError;
use amphi_api::set::Hook;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What a member's own word makes of the time that is its part.
pub fn grace(part: &Part, given: Duration) -> Duration {
    part.tag.life.stop.grace_s.map_or(given, |own| Duration::from_secs(own.into()))
}

/// `given`: what it may take where its description says nothing.
pub async fn end(shared: &Arc<Shared>, part: &Part, given: Duration) -> Result<(), DriverError> {
    let grace = grace(part, given);
    let begun = Instant::now();
    if let Some(hook) = part.tag.life.pre_stop.as_ref().filter(|_| part.is_alive() && !grace.is_zero()) {
        let most = u32::try_from(grace.as_secs().max(1)).unwrap_or(u32::MAX);
        let hook = Hook { timeout_s: hook.timeout_s.min(most), ..hook.clone() };
        match commands::run_hook(shared, &part.id, &hook).await {
            Ok(Ran::Well) => {}
            Ok(Ran::Badly(why)) => tracing::warn!(container = part.id, why, "pre_stop failed"),
            Err(error) => tracing::warn!(container = part.id, %error, "pre_stop was not run"),
        }
    }
    shared.end(&part.id, grace.saturating_sub(begun.elapsed())).await
}
