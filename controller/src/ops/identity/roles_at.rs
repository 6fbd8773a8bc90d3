//! Which roles somebody has where: direct grants, those of groups, those inherited from above, and what they imply.

use super::Identity;
use crate::model::identity::{
    Actor, DomainId, GrantRecord, ProjectRecord, RoleId, RoleRecord, Target, UserId,
};
use crate::ops::view::Row;
use amphi_api::ProjectId;
use std::collections::BTreeSet;

impl Identity {
    /// The user and the user's groups.
    pub fn actors_of(&self, user: UserId) -> Vec<Actor> {
        std::iter::once(Actor::User(user))
            .chain(self.groups_of(user).map(|g| Actor::Group(g.record.id)))
            .collect()
    }

    /// Whether a grant holds at a target.
    pub fn holds_at(&self, grant: &GrantRecord, target: Target) -> bool {
        if !grant.inherited {
            return grant.target == target;
        }
        let Target::Project(project) = target else { return false };
        match grant.target {
            Target::Domain(domain) => self.projects.get(project).is_some_and(|p| p.domain == domain),
            Target::Project(above) => self.parents_of(project).iter().any(|p| p.id == above),
            Target::System => false,
        }
    }

    /// Granted roles of a user at a target, without those implied.
    pub fn granted(&self, user: UserId, target: Target) -> BTreeSet<RoleId> {
        self.actors_of(user)
            .into_iter()
            .flat_map(|actor| self.grants_of(actor))
            .filter(|grant| self.holds_at(grant, target))
            .map(|grant| grant.role)
            .collect()
    }

    /// The roles and all that they imply.
    pub fn with_implied(&self, roles: BTreeSet<RoleId>) -> BTreeSet<RoleId> {
        let mut all = roles;
        loop {
            let more: Vec<RoleId> = self
                .inferences
                .iter()
                .filter(|i| all.contains(&i.prior) && !all.contains(&i.implied))
                .map(|i| i.implied)
                .collect();
            if more.is_empty() {
                return all;
            }
            all.extend(more);
        }
    }

    /// What a token shows and a policy asks for: roles of the whole cloud, those implied included. A domain's roles
    /// count only for what they imply.
    pub fn effective(&self, roles: BTreeSet<RoleId>) -> Vec<&Row<RoleRecord>> {
        let all = self.with_implied(roles);
        all.into_iter().filter_map(|id| self.roles.get(id)).filter(|r| r.domain.is_none()).collect()
    }

    /// The enabled projects on which the user has a role.
    pub fn projects_of(&self, user: UserId) -> BTreeSet<ProjectId> {
        let mut found = BTreeSet::new();
        for grant in self.actors_of(user).into_iter().flat_map(|actor| self.grants_of(actor)) {
            match (grant.target, grant.inherited) {
                (Target::Project(project), false) => drop(found.insert(project)),
                (Target::Domain(domain), true) => {
                    found.extend(self.projects.of_project(ProjectId(domain.0)).map(|p| p.id));
                }
                (Target::Project(above), true) => {
                    let below = |p: &&Row<ProjectRecord>| self.parents_of(p.id).iter().any(|q| q.id == above);
                    found.extend(self.projects.iter().filter(below).map(|p| p.id));
                }
                _ => {}
            }
        }
        found
    }

    /// The domains on which the user has a role.
    pub fn domains_of(&self, user: UserId) -> BTreeSet<DomainId> {
        let grants = self.actors_of(user).into_iter().flat_map(|actor| self.grants_of(actor));
        grants
            .filter_map(|grant| match (grant.target, grant.inherited) {
                (Target::Domain(domain), false) => Some(domain),
                _ => None,
            })
            .collect()
    }
}
