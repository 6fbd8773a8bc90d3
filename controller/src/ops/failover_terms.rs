//! What an instance says beforehand of the loss of its host, changed after its making. What follows from it (a twin that is
//! made or goes) is the twins' task's; a failover that is under way goes on by what was said when it began to move.

use super::list::find;
use super::{Draft, Ops, OpsError};
use crate::model::*;
use amphi_api::failover::FailoverChange;
use amphi_api::instance::Instance;
use amphi_api::{InstanceId, ProjectId};
use jiff::Timestamp;

impl Ops {
    /// In place of what it said before.
    pub async fn change_failover(
        &self,
        scope: ProjectId,
        id: InstanceId,
        change: &FailoverChange,
    ) -> Result<Instance, OpsError> {
        let terms = change.failover_terms;
        terms.check().map_err(|error| error.under("failover_terms"))?;
        self.transact(|view| {
            let row = find(&view.instances, scope, id)?;
            if let Some(kind) = terms.twin_body.filter(|kind| row.body_of(*kind).is_none()) {
                let why = format!("the instance lists no {kind}");
                return Err(OpsError::field("failover_terms.twin_body", why));
            }
            let mut draft = Draft::default();
            let record =
                InstanceRecord { failover: change.failover, failover_terms: terms, ..(*row.record).clone() };
            if record != *row.record {
                draft.update(row, &InstanceRecord { updated_at: Timestamp::now(), ..record });
            }
            Ok((draft, ()))
        })
        .await?;
        self.instance(scope, id)
    }
}
