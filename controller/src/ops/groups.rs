//! Security groups and their rules. Deletion goes as a network's does: close, look again, delete. Every project has a
//! group `default`, which is made when it is first needed.

use super::list::find;
use super::{Draft, ListQuery, Ops, OpsError, Reach, View, quotas};
use crate::model::network::{ANY_PROTOCOL, Notes};
use crate::model::{Resource, RuleRecord, SecurityGroupRecord};
use amphi_api::network::{Family, Protocol, RULES_MAX, Rule, RuleSpec, SecurityGroup, SecurityGroupCreate};
use amphi_api::{ProjectId, RuleId, SecurityGroupId};
use ipnet::IpNet;
use jiff::Timestamp;

impl Ops {
    pub async fn create_group(
        &self,
        scope: ProjectId,
        request: &SecurityGroupCreate,
    ) -> Result<SecurityGroup, OpsError> {
        request.check()?;
        let now = Timestamp::now();
        let record = SecurityGroupRecord {
            id: SecurityGroupId::new(),
            project: scope,
            name: request.name.clone(),
            rules: request.rules.iter().map(|spec| rule_record(spec, now)).collect(),
            free_egress: true,
            stateful: true,
            closing: false,
            notes: Notes::default(),
            created_at: now,
        };
        self.put_group(Reach::of(scope), record.clone()).await?;
        Ok(group_view(&record))
    }

    /// A group as it is given.
    pub async fn put_group(&self, reach: Reach, record: SecurityGroupRecord) -> Result<(), OpsError> {
        self.transact(|view| {
            let mut draft = Draft::default();
            let rules = (Resource::SecurityGroupRules, record.rules.len() as u64);
            quotas::check(view, record.project, &[(Resource::SecurityGroups, 1), rules])?;
            for rule in &record.rules {
                check_remote(view, reach, record.id, rule, &mut draft)?;
            }
            draft.create(&record);
            Ok((draft, ()))
        })
        .await
    }

    /// Makes the project's group `default` where it is missing.
    pub async fn ensure_default_group(&self, project: ProjectId) -> Result<SecurityGroupId, OpsError> {
        let id = SecurityGroupRecord::default_id(project);
        if self.world().read().groups.get(id).is_some() {
            return Ok(id);
        }
        self.transact(|view| {
            let mut draft = Draft::default();
            let id = default_of(view, project, &mut draft);
            Ok((draft, id))
        })
        .await
    }

    pub fn group(&self, scope: ProjectId, id: SecurityGroupId) -> Result<SecurityGroup, OpsError> {
        Ok(group_view(find(&self.world().read().groups, scope, id)?))
    }

    pub fn groups(&self, scope: ProjectId, query: &ListQuery) -> Result<Vec<SecurityGroup>, OpsError> {
        let view = self.world().read();
        Ok(query.rows(&view.groups, scope, |_| true)?.into_iter().map(|row| group_view(row)).collect())
    }

    pub async fn update_group(
        &self,
        reach: Reach,
        id: SecurityGroupId,
        edit: impl Fn(&mut SecurityGroupRecord),
    ) -> Result<(), OpsError> {
        let edited = |_: &View, group: &mut SecurityGroupRecord, _: &mut Draft| {
            let before = group.name.clone();
            edit(group);
            if group.name != before && (group.is_default() || group.name == "default") {
                return Err(OpsError::conflict(
                    "the default security group keeps its name, and it alone has it",
                ));
            }
            Ok(())
        };
        self.amend(reach, |view| &view.groups, id, edited).await
    }

    pub async fn add_rule(
        &self,
        scope: ProjectId,
        id: SecurityGroupId,
        request: &RuleSpec,
    ) -> Result<Rule, OpsError> {
        request.check()?;
        let rule = rule_record(request, Timestamp::now());
        self.put_rules(Reach::of(scope), id, std::slice::from_ref(&rule)).await?;
        Ok(rule_view(&rule))
    }

    /// Rules as they are given, all or none.
    pub async fn put_rules(
        &self,
        reach: Reach,
        id: SecurityGroupId,
        rules: &[RuleRecord],
    ) -> Result<(), OpsError> {
        self.amend(
            reach,
            |view| &view.groups,
            id,
            |view, group, draft| {
                let more = (Resource::SecurityGroupRules, rules.len() as u64);
                quotas::check(view, group.project, &[more])?;
                for rule in rules {
                    if group.rules.len() >= RULES_MAX {
                        return Err(OpsError::conflict(format!("the group has {RULES_MAX} rules already")));
                    }
                    if let Some(same) = group.rules.iter().find(|r| r.same(rule)) {
                        return Err(OpsError::conflict(format!(
                            "the group has this rule already: security group rule already exists, rule id is {}",
                            same.id
                        )));
                    }
                    check_remote(view, reach, id, rule, draft)?;
                    group.rules.push(rule.clone());
                }
                Ok(())
            },
        )
        .await
    }

    pub async fn remove_rule(
        &self,
        scope: ProjectId,
        id: SecurityGroupId,
        rule: RuleId,
    ) -> Result<(), OpsError> {
        self.remove_rule_of(Reach::of(scope), id, rule).await
    }

    pub async fn remove_rule_of(
        &self,
        reach: Reach,
        id: SecurityGroupId,
        rule: RuleId,
    ) -> Result<(), OpsError> {
        let without = |_: &View, group: &mut SecurityGroupRecord, _: &mut Draft| {
            let before = group.rules.len();
            group.rules.retain(|r| r.id != rule);
            if group.rules.len() == before {
                return Err(OpsError::NotFound { noun: "rule", id: rule.to_string() });
            }
            Ok(())
        };
        self.amend(reach, |view| &view.groups, id, without).await
    }

    pub async fn delete_group(&self, scope: ProjectId, id: SecurityGroupId) -> Result<(), OpsError> {
        self.delete_group_of(Reach::of(scope), id).await
    }

    pub async fn delete_group_of(&self, reach: Reach, id: SecurityGroupId) -> Result<(), OpsError> {
        self.transact(|view| {
            let row = reach.find(&view.groups, id)?;
            if row.is_default() && !reach.admin {
                return Err(OpsError::conflict("the default security group stays"));
            }
            refuse_used(view, id)?;
            let mut draft = Draft::default();
            if !row.closing {
                draft.update(row, &SecurityGroupRecord { closing: true, ..(*row.record).clone() });
            }
            Ok((draft, ()))
        })
        .await?;
        self.transact(|view| {
            let row = reach.find(&view.groups, id)?;
            let mut draft = Draft::default();
            let used = refuse_used(view, id);
            match &used {
                Ok(()) => {
                    draft.delete(row);
                    // Rules that speak of it go with it.
                    let speaks = |r: &RuleRecord| r.remote_group == Some(id);
                    for other in view.groups.iter().filter(|g| g.id != id && g.rules.iter().any(speaks)) {
                        let mut record = (*other.record).clone();
                        record.rules.retain(|r| !speaks(r));
                        draft.update(other, &record);
                    }
                }
                Err(_) => {
                    draft.update(row, &SecurityGroupRecord { closing: false, ..(*row.record).clone() });
                }
            }
            Ok((draft, used))
        })
        .await?
    }
}

/// The project's group `default`, made in this draft where it is missing: ask once per draft.
pub(super) fn default_of(view: &View, project: ProjectId, draft: &mut Draft) -> SecurityGroupId {
    let id = SecurityGroupRecord::default_id(project);
    if view.groups.get(id).is_none() {
        draft.create(&SecurityGroupRecord::default_of(project, Timestamp::now()));
    }
    id
}

/// Groups that a port may have, each once; they must stay as they are.
pub(super) fn check(
    view: &View,
    reach: Reach,
    groups: &[SecurityGroupId],
    draft: &mut Draft,
) -> Result<Vec<SecurityGroupId>, OpsError> {
    let mut checked = Vec::new();
    for id in groups {
        let row = reach.find(&view.groups, *id)?;
        if row.closing {
            return Err(OpsError::conflict(format!("security group {id} is being deleted")));
        }
        draft.guard(row);
        if !checked.contains(id) {
            checked.push(*id);
        }
    }
    Ok(checked)
}

fn check_remote(
    view: &View,
    reach: Reach,
    own: SecurityGroupId,
    rule: &RuleRecord,
    draft: &mut Draft,
) -> Result<(), OpsError> {
    match rule.remote_group {
        Some(remote) if remote != own => {
            draft.guard(reach.find(&view.groups, remote)?);
            Ok(())
        }
        _ => Ok(()),
    }
}

fn refuse_used(view: &View, id: SecurityGroupId) -> Result<(), OpsError> {
    if let Some(user) = view.instances.iter().find(|i| i.security_groups.contains(&id)) {
        return Err(OpsError::conflict(format!("instance {} ('{}') uses it", user.id, user.name)));
    }
    match view.ports.iter().find(|p| p.security_groups.contains(&id)) {
        Some(user) => Err(OpsError::conflict(format!("port {} uses it", user.id))),
        None => Ok(()),
    }
}

fn group_view(record: &SecurityGroupRecord) -> SecurityGroup {
    SecurityGroup {
        id: record.id,
        project: record.project,
        name: record.name.clone(),
        rules: record.rules.iter().map(rule_view).collect(),
        created_at: record.created_at,
    }
}

fn rule_record(spec: &RuleSpec, now: Timestamp) -> RuleRecord {
    let protocol = match (spec.protocol, spec.number) {
        (Protocol::Any, _) => ANY_PROTOCOL.to_owned(),
        (Protocol::Icmp, _) => "icmp".to_owned(),
        (Protocol::Tcp, _) => "tcp".to_owned(),
        (Protocol::Udp, _) => "udp".to_owned(),
        (Protocol::Other, number) => number.unwrap_or_default().to_string(),
    };
    RuleRecord {
        protocol,
        port_min: spec.port_min,
        port_max: spec.port_max,
        remote: spec.remote,
        remote_group: spec.remote_group,
        ..RuleRecord::new(spec.direction, spec.family, now)
    }
}

fn rule_view(rule: &RuleRecord) -> Rule {
    let (protocol, number) = match rule.number() {
        None => (Protocol::Any, None),
        Some(1) if rule.family == Family::Ipv4 => (Protocol::Icmp, None),
        Some(58) if rule.family == Family::Ipv6 => (Protocol::Icmp, None),
        Some(6) => (Protocol::Tcp, None),
        Some(17) => (Protocol::Udp, None),
        Some(number) => (Protocol::Other, Some(number)),
    };
    let spec = RuleSpec {
        direction: rule.direction,
        family: rule.family,
        protocol,
        number,
        port_min: rule.port_min,
        port_max: rule.port_max,
        remote: rule.remote.filter(|remote| match remote {
            IpNet::V4(_) => rule.family == Family::Ipv4,
            IpNet::V6(_) => rule.family == Family::Ipv6,
        }),
        remote_group: rule.remote_group,
    };
    Rule { id: rule.id, spec }
}
