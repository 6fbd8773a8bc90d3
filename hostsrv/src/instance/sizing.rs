//! Bodies that take on another size while they run, as a driver sees it. Refuses to decide what the size should be.

use super::{BodyPlan, DriverError};
use amphi_api::InstanceId;
use amphi_api::resize::MemberUsage;
use async_trait::async_trait;

/// Measures what bodies use of their limits, and holds them to others. By default a kind does neither.
#[async_trait]
pub trait BodySizing: Send + Sync {
    /// What each member uses now; of what does not run, nothing.
    async fn usage(&self, instance: InstanceId) -> Result<Vec<MemberUsage>, DriverError> {
        let _ = instance;
        Ok(Vec::new())
    }

    /// Holds what is there of the body to the plan's limits: all of it or, where something uses more than it would have,
    /// nothing ([`DriverError::LimitsRefused`]). Nothing is restarted.
    async fn resize(&self, plan: &BodyPlan) -> Result<(), DriverError> {
        let _ = plan;
        Ok(())
    }
}
