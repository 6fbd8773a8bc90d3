//! `amphi instance failover`: what may happen to an instance when its host is lost, changed after its making.

use crate::failure::Failure;
use crate::flags::{Failover, TwinBody};
use crate::noun::instance_view::detail;
use crate::session::Session;
use amphi_api::failover::{FailoverChange, LocalVolume};
use clap::Args;
use jiff::Timestamp;

/// What is not named stays as it is.
#[derive(Args)]
pub struct Arguments {
    /// Name or id.
    instance: String,
    #[arg(long, value_enum)]
    policy: Option<Failover>,
    /// Who goes first when a host is lost: 0 to 1,000, the lower the earlier.
    #[arg(long, value_name = "NUMBER")]
    priority: Option<u32>,
    /// When a host is lost with its data volume: `true`, go on elsewhere with a blank one; `false`, wait for the host.
    #[arg(long, value_name = "BOOL")]
    fresh_volume: Option<bool>,
    /// The kind of body that waits on a second host.
    #[arg(long, value_enum, value_name = "KIND")]
    twin_body: Option<TwinBody>,
}

impl Arguments {
    pub async fn run(self, session: &Session) -> Result<(), Failure> {
        let client = session.client()?;
        let now = client.find_instance(&self.instance).await?;
        let mut change = FailoverChange { failover: now.failover, failover_terms: now.failover_terms };
        if let Some(policy) = self.policy {
            change.failover = policy.policy();
        }
        let terms = &mut change.failover_terms;
        terms.priority = self.priority.unwrap_or(terms.priority);
        if let Some(fresh) = self.fresh_volume {
            terms.local_volume = if fresh { LocalVolume::Fresh } else { LocalVolume::Wait };
        }
        terms.twin_body = self.twin_body.map(TwinBody::kind).or(terms.twin_body);
        let changed = client.change_failover(now.id, &change).await?;
        session.show(&changed, |i| detail(i, Timestamp::now()))
    }
}
