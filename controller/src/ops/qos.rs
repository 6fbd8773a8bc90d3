//! QoS policies and their rules. Deletion: close, look again, delete.

use super::{Draft, Ops, OpsError, Reach, View};
use crate::model::QosPolicyRecord;
use crate::model::network::{Notes, QosKind, QosRule};
use amphi_api::{ProjectId, QosPolicyId, QosRuleId};
use jiff::Timestamp;

impl QosPolicyRecord {
    pub fn new(project: ProjectId, name: String, now: Timestamp) -> Self {
        Self {
            id: QosPolicyId::new(),
            project,
            name,
            shared: false,
            is_default: false,
            rules: Vec::new(),
            closing: false,
            notes: Notes::default(),
            created_at: now,
        }
    }
}

impl Ops {
    pub async fn put_qos_policy(&self, record: &QosPolicyRecord) -> Result<(), OpsError> {
        self.transact(|_| {
            let mut draft = Draft::default();
            draft.create(record);
            Ok((draft, ()))
        })
        .await
    }

    pub async fn update_qos_policy(
        &self,
        reach: Reach,
        id: QosPolicyId,
        edit: impl Fn(&mut QosPolicyRecord),
    ) -> Result<(), OpsError> {
        let edited = |_: &View, policy: &mut QosPolicyRecord, _: &mut Draft| {
            edit(policy);
            Ok(())
        };
        self.amend(reach, |view| &view.qos_policies, id, edited).await
    }

    /// One limit of each kind and direction.
    pub async fn put_qos_rule(&self, reach: Reach, id: QosPolicyId, rule: &QosRule) -> Result<(), OpsError> {
        let with = |_: &View, policy: &mut QosPolicyRecord, _: &mut Draft| {
            check(&rule.kind)?;
            policy.rules.retain(|r| r.id != rule.id);
            if policy.rules.iter().any(|r| slot(&r.kind) == slot(&rule.kind)) {
                return Err(OpsError::conflict(format!("policy {id} has such a rule already")));
            }
            policy.rules.push(rule.clone());
            Ok(())
        };
        self.amend(reach, |view| &view.qos_policies, id, with).await
    }

    pub async fn remove_qos_rule(
        &self,
        reach: Reach,
        id: QosPolicyId,
        rule: QosRuleId,
    ) -> Result<(), OpsError> {
        let without = |_: &View, policy: &mut QosPolicyRecord, _: &mut Draft| {
            let before = policy.rules.len();
            policy.rules.retain(|r| r.id != rule);
            if policy.rules.len() == before {
                return Err(OpsError::NotFound { noun: "QoS rule", id: rule.to_string() });
            }
            Ok(())
        };
        self.amend(reach, |view| &view.qos_policies, id, without).await
    }

    pub async fn delete_qos_policy(&self, reach: Reach, id: QosPolicyId) -> Result<(), OpsError> {
        self.transact(|view| {
            let row = reach.find(&view.qos_policies, id)?;
            refuse_used(view, id)?;
            let mut draft = Draft::default();
            if !row.closing {
                draft.update(row, &QosPolicyRecord { closing: true, ..(*row.record).clone() });
            }
            Ok((draft, ()))
        })
        .await?;
        self.transact(|view| {
            let row = reach.find(&view.qos_policies, id)?;
            let used = refuse_used(view, id);
            let mut draft = Draft::default();
            match &used {
                Ok(()) => draft.delete(row),
                Err(_) => draft.update(row, &QosPolicyRecord { closing: false, ..(*row.record).clone() }),
            }
            Ok((draft, used))
        })
        .await?
    }
}

/// OVN's meters take up to 2^32 - 1 kbit/s, its DSCP 0 to 63; neutron allows these marks only.
fn check(kind: &QosKind) -> Result<(), OpsError> {
    match kind {
        QosKind::BandwidthLimit { max_kbps: 0, .. } => Err(OpsError::field("max_kbps", "must be 1 at least")),
        QosKind::DscpMarking { dscp_mark }
            if *dscp_mark > 56 || dscp_mark % 2 == 1 || [2, 4, 6, 42, 44, 50, 52, 54].contains(dscp_mark) =>
        {
            Err(OpsError::field("dscp_mark", format!("{dscp_mark} is no valid mark")))
        }
        QosKind::BandwidthLimit { .. } | QosKind::DscpMarking { .. } => Ok(()),
    }
}

fn slot(kind: &QosKind) -> (u8, Option<amphi_api::network::Direction>) {
    match kind {
        QosKind::BandwidthLimit { direction, .. } => (0, Some(*direction)),
        QosKind::DscpMarking { .. } => (1, None),
    }
}

fn refuse_used(view: &View, id: QosPolicyId) -> Result<(), OpsError> {
    let port = view.ports.iter().find(|p| p.qos == Some(id)).map(|p| format!("port {}", p.id));
    let network = || view.networks.iter().find(|n| n.qos == Some(id)).map(|n| format!("network {}", n.id));
    match port.or_else(network) {
        Some(user) => Err(OpsError::conflict(format!("QoS policy {id} is used by {user}"))),
        None => Ok(()),
    }
}
