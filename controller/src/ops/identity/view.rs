//! Identity's tables and their indexes: a part of the view.

use crate::model::Record;
use crate::model::identity::*;
use crate::ops::view::{Row, Table, drop_from, remove};
use amphi_api::ProjectId;
use std::collections::{BTreeSet, HashMap};

#[derive(Debug, Default)]
pub struct Identity {
    pub domains: Table<DomainRecord>,
    pub projects: Table<ProjectRecord>,
    pub users: Table<UserRecord>,
    pub groups: Table<GroupRecord>,
    pub memberships: Table<MembershipRecord>,
    pub roles: Table<RoleRecord>,
    pub inferences: Table<InferenceRecord>,
    pub grants: Table<GrantRecord>,
    pub services: Table<ServiceRecord>,
    pub endpoints: Table<EndpointRecord>,
    pub regions: Table<RegionRecord>,
    pub app_credentials: Table<AppCredentialRecord>,
    pub token_keys: Table<TokenKeyRecord>,
    pub revocations: Table<RevocationRecord>,
    grants_of: HashMap<Actor, BTreeSet<GrantId>>,
    grants_on: HashMap<Target, BTreeSet<GrantId>>,
    groups_of: HashMap<UserId, BTreeSet<GroupId>>,
    users_in: HashMap<GroupId, BTreeSet<UserId>>,
}

impl Identity {
    /// Whether keys of this kind (`/kind/`) belong here.
    pub(in crate::ops) fn owns(kind: &str) -> bool {
        kind.starts_with("/identity-")
    }

    pub(in crate::ops) fn put(
        &mut self,
        kind: &str,
        value: serde_json::Value,
        version: u64,
    ) -> Result<(), serde_json::Error> {
        macro_rules! read {
            () => {
                serde_json::from_value(value)?
            };
        }
        match kind {
            DomainRecord::PREFIX => drop(self.domains.put(read!(), version)),
            ProjectRecord::PREFIX => drop(self.projects.put(read!(), version)),
            UserRecord::PREFIX => drop(self.users.put(read!(), version)),
            GroupRecord::PREFIX => drop(self.groups.put(read!(), version)),
            RoleRecord::PREFIX => drop(self.roles.put(read!(), version)),
            InferenceRecord::PREFIX => drop(self.inferences.put(read!(), version)),
            ServiceRecord::PREFIX => drop(self.services.put(read!(), version)),
            EndpointRecord::PREFIX => drop(self.endpoints.put(read!(), version)),
            RegionRecord::PREFIX => drop(self.regions.put(read!(), version)),
            AppCredentialRecord::PREFIX => drop(self.app_credentials.put(read!(), version)),
            TokenKeyRecord::PREFIX => drop(self.token_keys.put(read!(), version)),
            RevocationRecord::PREFIX => drop(self.revocations.put(read!(), version)),
            MembershipRecord::PREFIX => {
                let record: MembershipRecord = read!();
                self.groups_of.entry(record.user).or_default().insert(record.group);
                self.users_in.entry(record.group).or_default().insert(record.user);
                self.memberships.put(record, version);
            }
            GrantRecord::PREFIX => {
                let record: GrantRecord = read!();
                self.grants_of.entry(record.actor).or_default().insert(record.id());
                self.grants_on.entry(record.target).or_default().insert(record.id());
                self.grants.put(record, version);
            }
            _ => {}
        }
        Ok(())
    }

    pub(in crate::ops) fn delete(&mut self, kind: &str, id: &str) {
        match kind {
            DomainRecord::PREFIX => drop(remove(&mut self.domains, id)),
            ProjectRecord::PREFIX => drop(remove(&mut self.projects, id)),
            UserRecord::PREFIX => drop(remove(&mut self.users, id)),
            GroupRecord::PREFIX => drop(remove(&mut self.groups, id)),
            RoleRecord::PREFIX => drop(remove(&mut self.roles, id)),
            InferenceRecord::PREFIX => drop(remove(&mut self.inferences, id)),
            ServiceRecord::PREFIX => drop(remove(&mut self.services, id)),
            EndpointRecord::PREFIX => drop(remove(&mut self.endpoints, id)),
            RegionRecord::PREFIX => drop(remove(&mut self.regions, id)),
            AppCredentialRecord::PREFIX => drop(remove(&mut self.app_credentials, id)),
            TokenKeyRecord::PREFIX => drop(remove(&mut self.token_keys, id)),
            RevocationRecord::PREFIX => drop(remove(&mut self.revocations, id)),
            MembershipRecord::PREFIX => {
                if let Some(old) = remove(&mut self.memberships, id) {
                    drop_from(&mut self.groups_of, &old.user, &old.group);
                    drop_from(&mut self.users_in, &old.group, &old.user);
                }
            }
            GrantRecord::PREFIX => {
                if let Some(old) = remove(&mut self.grants, id) {
                    drop_from(&mut self.grants_of, &old.actor, &old.id());
                    drop_from(&mut self.grants_on, &old.target, &old.id());
                }
            }
            _ => {}
        }
    }

    pub fn grants_of(&self, actor: Actor) -> impl Iterator<Item = &Row<GrantRecord>> {
        self.grants_of.get(&actor).into_iter().flatten().filter_map(|id| self.grants.get(*id))
    }

    pub fn grants_on(&self, target: Target) -> impl Iterator<Item = &Row<GrantRecord>> {
        self.grants_on.get(&target).into_iter().flatten().filter_map(|id| self.grants.get(*id))
    }

    pub fn groups_of(&self, user: UserId) -> impl Iterator<Item = &Row<GroupRecord>> {
        self.groups_of.get(&user).into_iter().flatten().filter_map(|id| self.groups.get(*id))
    }

    pub fn users_in(&self, group: GroupId) -> impl Iterator<Item = &Row<UserRecord>> {
        self.users_in.get(&group).into_iter().flatten().filter_map(|id| self.users.get(*id))
    }

    pub fn domain_named(&self, name: &str) -> Option<&Row<DomainRecord>> {
        self.domains.iter().find(|d| d.name == name)
    }

    pub fn user_named(&self, domain: DomainId, name: &str) -> Option<&Row<UserRecord>> {
        self.users.named(ProjectId(domain.0), name).into_iter().next()
    }

    pub fn project_named(&self, domain: DomainId, name: &str) -> Option<&Row<ProjectRecord>> {
        self.projects.named(ProjectId(domain.0), name).into_iter().next()
    }

    pub fn group_named(&self, domain: DomainId, name: &str) -> Option<&Row<GroupRecord>> {
        self.groups.named(ProjectId(domain.0), name).into_iter().next()
    }

    pub fn memberships_of(&self, user: UserId) -> impl Iterator<Item = &Row<MembershipRecord>> {
        let groups = self.groups_of.get(&user).into_iter().flatten();
        groups.filter_map(move |group| self.memberships.get(MembershipRecord::id_of(user, *group)))
    }

    pub fn app_credentials_of(&self, user: UserId) -> impl Iterator<Item = &Row<AppCredentialRecord>> {
        self.app_credentials.of_project(ProjectId(user.0))
    }

    /// A role of the whole cloud.
    pub fn role_named(&self, name: &str) -> Option<&Row<RoleRecord>> {
        self.roles.iter().find(|r| r.domain.is_none() && r.name == name)
    }

    /// The project's parents, nearest first.
    pub fn parents_of(&self, project: ProjectId) -> Vec<&Row<ProjectRecord>> {
        let mut parents = Vec::new();
        let mut next = self.projects.get(project).and_then(|p| p.parent);
        // Records make no loops; a damaged store must not hang us.
        while let Some(row) = next.and_then(|id| self.projects.get(id)).filter(|_| parents.len() < 64) {
            parents.push(row);
            next = row.parent;
        }
        parents
    }
}
