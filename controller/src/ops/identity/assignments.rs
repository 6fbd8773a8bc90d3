//! Lists of role assignments: as they were granted, or what they amount to (groups taken apart, inheritance and
//! implication followed).

use super::Identity;
use crate::model::identity::*;
use amphi_api::ProjectId;

/// One line of a list.
#[derive(Clone, Debug, PartialEq)]
pub struct Assignment {
    pub actor: Actor,
    pub target: Target,
    pub role: RoleId,
    /// Shown as inherited: granted so, and not taken apart.
    pub inherited: bool,
    /// The group through which a user has it.
    pub membership: Option<GroupId>,
    /// The role that implies it.
    pub prior_role: Option<RoleId>,
    /// What was really granted to.
    pub granted_on: Target,
}

/// What a list may be asked.
#[derive(Clone, Debug, Default)]
pub struct AssignmentFilter {
    pub user: Option<UserId>,
    pub group: Option<GroupId>,
    pub role: Option<RoleId>,
    pub project: Option<ProjectId>,
    /// With `project`: what is below it too.
    pub subtree: bool,
    pub domain: Option<DomainId>,
    pub system: bool,
    /// Only those that are inherited.
    pub inherited: bool,
    pub effective: bool,
}

impl Identity {
    pub fn assignments(&self, filter: &AssignmentFilter) -> Vec<Assignment> {
        let whole = self.grants.iter().filter(|grant| self.stands(grant));
        let direct = whole.map(|grant| Assignment {
            actor: grant.actor,
            target: grant.target,
            role: grant.role,
            inherited: grant.inherited,
            membership: None,
            prior_role: None,
            granted_on: grant.target,
        });
        let mut found: Vec<Assignment> = if filter.effective {
            direct
                .filter(|a| !filter.inherited || a.inherited)
                .flat_map(|a| self.users_of(a))
                .flat_map(|a| self.places_of(a))
                .flat_map(|a| self.roles_of(a))
                .collect()
        } else {
            direct.collect()
        };
        found.retain(|a| self.fits(filter, a));
        found
    }

    /// Whether all that a grant names is still there.
    fn stands(&self, grant: &GrantRecord) -> bool {
        let actor = match grant.actor {
            Actor::User(id) => self.users.get(id).is_some(),
            Actor::Group(id) => self.groups.get(id).is_some(),
        };
        let target = match grant.target {
            Target::Project(id) => self.projects.get(id).is_some(),
            Target::Domain(id) => self.domains.get(id).is_some(),
            Target::System => true,
        };
        actor && target && self.roles.get(grant.role).is_some()
    }

    fn users_of(&self, assignment: Assignment) -> Vec<Assignment> {
        match assignment.actor {
            Actor::User(_) => vec![assignment],
            Actor::Group(group) => self
                .users_in(group)
                .map(|user| Assignment {
                    actor: Actor::User(user.id),
                    membership: Some(group),
                    ..assignment.clone()
                })
                .collect(),
        }
    }

    fn places_of(&self, assignment: Assignment) -> Vec<Assignment> {
        if !assignment.inherited {
            return vec![assignment];
        }
        let below: Vec<ProjectId> = match assignment.target {
            Target::Domain(domain) => self.projects.of_project(ProjectId(domain.0)).map(|p| p.id).collect(),
            Target::Project(above) => self.below(above),
            Target::System => Vec::new(),
        };
        let at =
            |project| Assignment { target: Target::Project(project), inherited: false, ..assignment.clone() };
        below.into_iter().map(at).collect()
    }

    fn roles_of(&self, assignment: Assignment) -> Vec<Assignment> {
        let all = self.with_implied([assignment.role].into());
        let prior = assignment.role;
        all.into_iter()
            .map(|role| Assignment {
                role,
                prior_role: (role != prior).then_some(prior),
                ..assignment.clone()
            })
            .collect()
    }

    /// All projects below one.
    pub fn below(&self, above: ProjectId) -> Vec<ProjectId> {
        let Some(row) = self.projects.get(above) else { return Vec::new() };
        self.projects
            .of_project(ProjectId(row.domain.0))
            .filter(|p| self.parents_of(p.id).iter().any(|q| q.id == above))
            .map(|p| p.id)
            .collect()
    }

    fn fits(&self, filter: &AssignmentFilter, a: &Assignment) -> bool {
        let user = filter.user.is_none_or(|id| a.actor == Actor::User(id));
        let group = filter.group.is_none_or(|id| a.actor == Actor::Group(id));
        let role = filter.role.is_none_or(|id| a.role == id);
        let place = match (filter.project, filter.domain, filter.system) {
            (Some(project), _, _) => match a.target {
                Target::Project(id) if id == project => true,
                Target::Project(id) => filter.subtree && self.parents_of(id).iter().any(|p| p.id == project),
                _ => false,
            },
            (None, Some(domain), _) => a.target == Target::Domain(domain),
            (None, None, true) => a.target == Target::System,
            (None, None, false) => true,
        };
        user && group && role && place && (filter.effective || !filter.inherited || a.inherited)
    }
}
