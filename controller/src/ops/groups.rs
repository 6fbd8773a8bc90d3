//! Security groups and their rules. Deletion goes as a network's does: close, look again, delete.

use super::list::find;
use super::{Draft, ListQuery, Ops, OpsError, View};
use crate::model::SecurityGroupRecord;
use amphi_api::network::{RULES_MAX, Rule, RuleSpec, SecurityGroup, SecurityGroupCreate};
use amphi_api::{ProjectId, RuleId, SecurityGroupId};
use jiff::Timestamp;

impl Ops {
    pub async fn create_group(
        &self,
        scope: ProjectId,
        request: &SecurityGroupCreate,
    ) -> Result<SecurityGroup, OpsError> {
        request.check()?;
        let rules = request.rules.iter().map(|spec| Rule { id: RuleId::new(), spec: spec.clone() });
        let record = SecurityGroupRecord {
            id: SecurityGroupId::new(),
            project: scope,
            name: request.name.clone(),
            rules: rules.collect(),
            closing: false,
            created_at: Timestamp::now(),
        };
        self.transact(|_| {
            let mut draft = Draft::default();
            draft.create(&record);
            Ok((draft, ()))
        })
        .await?;
        Ok(group_view(&record))
    }

    pub fn group(&self, scope: ProjectId, id: SecurityGroupId) -> Result<SecurityGroup, OpsError> {
        Ok(group_view(find(&self.world().read().groups, scope, id)?))
    }

    pub fn groups(&self, scope: ProjectId, query: &ListQuery) -> Result<Vec<SecurityGroup>, OpsError> {
        let view = self.world().read();
        Ok(query.rows(&view.groups, scope, |_| true)?.into_iter().map(|row| group_view(row)).collect())
    }

    pub async fn add_rule(
        &self,
        scope: ProjectId,
        id: SecurityGroupId,
        request: &RuleSpec,
    ) -> Result<Rule, OpsError> {
        request.check()?;
        let rule = Rule { id: RuleId::new(), spec: request.clone() };
        self.transact(|view| {
            let row = find(&view.groups, scope, id)?;
            if row.rules.len() >= RULES_MAX {
                return Err(OpsError::conflict(format!("the group has {RULES_MAX} rules already")));
            }
            if row.rules.iter().any(|r| r.spec == *request) {
                return Err(OpsError::conflict("the group has this rule already"));
            }
            let mut record = (*row.record).clone();
            record.rules.push(rule.clone());
            let mut draft = Draft::default();
            draft.update(row, &record);
            Ok((draft, ()))
        })
        .await?;
        Ok(rule)
    }

    pub async fn remove_rule(
        &self,
        scope: ProjectId,
        id: SecurityGroupId,
        rule: RuleId,
    ) -> Result<(), OpsError> {
        self.transact(|view| {
            let row = find(&view.groups, scope, id)?;
            let mut record = (*row.record).clone();
            record.rules.retain(|r| r.id != rule);
            if record.rules.len() == row.rules.len() {
                return Err(OpsError::NotFound { noun: "rule", id: rule.to_string() });
            }
            let mut draft = Draft::default();
            draft.update(row, &record);
            Ok((draft, ()))
        })
        .await
    }

    pub async fn delete_group(&self, scope: ProjectId, id: SecurityGroupId) -> Result<(), OpsError> {
        self.transact(|view| {
            let row = find(&view.groups, scope, id)?;
            refuse_used(view, id)?;
            let mut draft = Draft::default();
            if !row.closing {
                draft.update(row, &SecurityGroupRecord { closing: true, ..(*row.record).clone() });
            }
            Ok((draft, ()))
        })
        .await?;
        self.transact(|view| {
            let row = find(&view.groups, scope, id)?;
            let mut draft = Draft::default();
            let used = refuse_used(view, id);
            match &used {
                Ok(()) => draft.delete(row),
                Err(_) => {
                    draft.update(row, &SecurityGroupRecord { closing: false, ..(*row.record).clone() });
                }
            }
            Ok((draft, used))
        })
        .await?
    }
}

fn refuse_used(view: &View, id: SecurityGroupId) -> Result<(), OpsError> {
    match view.instances.iter().find(|i| i.security_groups.contains(&id)) {
        Some(user) => Err(OpsError::conflict(format!("instance {} ('{}') uses it", user.id, user.name))),
        None => Ok(()),
    }
}

fn group_view(record: &SecurityGroupRecord) -> SecurityGroup {
    SecurityGroup {
        id: record.id,
        project: record.project,
        name: record.name.clone(),
        rules: record.rules.clone(),
        created_at: record.created_at,
    }
}
