//! Grants: who has which role where.

use crate::model::identity::*;
use crate::ops::{Draft, Ops, OpsError};

impl Ops {
    /// No error when it is granted already.
    pub async fn grant(&self, grant: &GrantRecord) -> Result<(), OpsError> {
        self.transact(|view| {
            let identity = &view.identity;
            let mut draft = Draft::default();
            let role = identity.roles.get(grant.role);
            let role = role.ok_or_else(|| OpsError::not_found::<RoleRecord>(grant.role))?;
            match grant.actor {
                Actor::User(id) => {
                    let row = identity.users.get(id);
                    draft.guard(row.ok_or_else(|| OpsError::not_found::<UserRecord>(id.0.simple()))?);
                }
                Actor::Group(id) => {
                    let row = identity.groups.get(id);
                    draft.guard(row.ok_or_else(|| OpsError::not_found::<GroupRecord>(id))?);
                }
            }
            let domain = match grant.target {
                Target::Project(id) => {
                    let row = identity.projects.get(id);
                    let row = row.ok_or_else(|| OpsError::not_found::<ProjectRecord>(id))?;
                    draft.guard(row);
                    Some(row.domain)
                }
                Target::Domain(id) => {
                    let row = identity.domains.get(id);
                    draft.guard(row.ok_or_else(|| OpsError::not_found::<DomainRecord>(id))?);
                    Some(id)
                }
                Target::System if grant.inherited => {
                    return Err(OpsError::field("inherited", "nothing is below the system"));
                }
                Target::System => None,
            };
            if role.domain.is_some() && role.domain != domain {
                return Err(OpsError::Forbidden("A domain's role is granted only in its domain.".into()));
            }
            draft.guard(role);
            if identity.grants.get(crate::model::Record::id(grant)).is_some() {
                return Ok((Draft::default(), ()));
            }
            draft.create(grant);
            Ok((draft, ()))
        })
        .await
    }

    pub async fn revoke(&self, grant: &GrantRecord) -> Result<(), OpsError> {
        self.transact(|view| {
            let row = view.identity.grants.get(crate::model::Record::id(grant));
            let row = row.ok_or_else(|| OpsError::not_found::<GrantRecord>(grant.role))?;
            let mut draft = Draft::default();
            draft.delete(row);
            Ok((draft, ()))
        })
        .await
    }

    /// 404 of any part that does not exist, else whether it is granted.
    pub fn granted_exactly(&self, grant: &GrantRecord) -> bool {
        self.world().read().identity.grants.get(crate::model::Record::id(grant)).is_some()
    }
}
