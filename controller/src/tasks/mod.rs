//! Work that nobody waits for: each task takes no input and looks at the world anew each time.

mod blobs;
mod checksums;
pub mod driver;
mod exchanges;
mod failover;
mod journal;
mod leases;
mod maintenance;
mod ovn;
mod recycle_bin;
mod replication;
mod retention;
mod rollouts;
mod scaling_groups;
mod silence;
mod statuses;
mod topology;
mod twins;

pub use blobs::Blobs;
pub use checksums::Checksums;
pub use driver::{Task, drive};
pub use exchanges::Exchanges;
pub use failover::{Failover, Verdicts};
pub use journal::Journal;
pub use leases::Leases;
pub use maintenance::MaintenanceMoves;
pub use ovn::Ovn;
pub use recycle_bin::RecycleBin;
pub use replication::Replication;
pub use retention::Retention;
pub use rollouts::Rollouts;
pub use scaling_groups::ScalingGroups;
pub use silence::Silence;
pub use statuses::Statuses;
pub use topology::topology;
pub use twins::Twins;
