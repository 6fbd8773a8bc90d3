//! Roles and which implies which.

use super::names::{self, LONG_NAME_MAX, name_key};
use crate::model::Record;
use crate::model::identity::*;
use crate::ops::{Draft, Ops, OpsError};
use jiff::Timestamp;

/// What a new role is to be, or what is to change.
#[derive(Clone, Debug, Default)]
pub struct RoleChange {
    pub name: Option<String>,
    pub domain: Option<DomainId>,
    pub description: Option<Option<String>>,
    pub options: Extra,
    pub extra: Extra,
}

pub(super) fn role_owner(domain: Option<DomainId>) -> String {
    domain.map(|d| d.to_string()).unwrap_or_default()
}

impl Ops {
    pub async fn create_role(&self, change: &RoleChange) -> Result<RoleRecord, OpsError> {
        let name = change.name.clone().ok_or_else(|| OpsError::field("name", "is a required property"))?;
        names::check(&name, LONG_NAME_MAX)?;
        let record = RoleRecord {
            id: RoleId::new(),
            name,
            domain: change.domain,
            description: change.description.clone().flatten(),
            options: change.options.clone(),
            extra: change.extra.clone(),
            created_at: Timestamp::now(),
        };
        self.transact(|view| {
            let identity = &view.identity;
            let mut draft = Draft::default();
            if let Some(domain) = record.domain {
                let row = identity.domains.get(domain);
                draft.guard(row.ok_or_else(|| OpsError::not_found::<DomainRecord>(domain))?);
            }
            if identity.roles.iter().any(|r| r.domain == record.domain && r.name == record.name) {
                return Err(names::taken("role", &record.name, "the same place"));
            }
            draft.create(&record);
            draft.reserve(name_key(RoleRecord::NOUN, role_owner(record.domain), &record.name), record.id);
            Ok((draft, ()))
        })
        .await?;
        Ok(record)
    }

    pub async fn update_role(&self, id: RoleId, change: &RoleChange) -> Result<RoleRecord, OpsError> {
        if let Some(name) = &change.name {
            names::check(name, LONG_NAME_MAX)?;
        }
        self.transact(|view| {
            let identity = &view.identity;
            let row = identity.roles.get(id).ok_or_else(|| OpsError::not_found::<RoleRecord>(id))?;
            // The mark itself may be taken off, by a change of nothing else.
            let other = change.name.is_some() || change.description.is_some() || !change.extra.is_empty();
            if row.immutable() && other {
                return Err(immutable(&row.name));
            }
            if change.domain.is_some() && change.domain != row.domain {
                return Err(OpsError::field("domain_id", "cannot be changed"));
            }
            let mut record = (*row.record).clone();
            let mut draft = Draft::default();
            if let Some(name) = change.name.as_ref().filter(|name| **name != row.name) {
                if identity.roles.iter().any(|r| r.domain == row.domain && r.name == *name) {
                    return Err(names::taken("role", name, "the same place"));
                }
                names::rename(&mut draft, RoleRecord::NOUN, role_owner(row.domain), &row.name, name, id);
                record.name = name.clone();
            }
            if let Some(description) = &change.description {
                record.description = description.clone();
            }
            names::overlay(&mut record.options, &change.options);
            names::overlay(&mut record.extra, &change.extra);
            draft.update(row, &record);
            Ok((draft, record))
        })
        .await
    }

    pub async fn delete_role(&self, id: RoleId) -> Result<(), OpsError> {
        let refuse = |identity: &super::Identity| {
            let row = identity.roles.get(id).ok_or_else(|| OpsError::not_found::<RoleRecord>(id))?;
            if row.immutable() { Err(immutable(&row.name)) } else { Ok(row.clone()) }
        };
        refuse(&self.world().read().identity)?;
        self.clear(|view| view.identity.hanging_on_role(id)).await?;
        self.transact(|view| {
            let row = refuse(&view.identity)?;
            let mut draft = Draft::default();
            draft.delete(&row);
            draft.release(name_key(RoleRecord::NOUN, role_owner(row.domain), &row.name));
            Ok((draft, ()))
        })
        .await
    }

    /// No error when it is so already.
    pub async fn add_inference(&self, prior: RoleId, implied: RoleId) -> Result<(), OpsError> {
        self.transact(|view| {
            let identity = &view.identity;
            let find = |id| identity.roles.get(id).ok_or_else(|| OpsError::not_found::<RoleRecord>(id));
            let (prior_row, implied_row) = (find(prior)?, find(implied)?);
            if implied_row.domain.is_some() && implied_row.domain != prior_row.domain {
                return Err(OpsError::Forbidden(
                    "A domain's role is implied only by roles of its domain.".into(),
                ));
            }
            if implied_row.name == "admin" && implied_row.domain.is_none() {
                return Err(OpsError::Forbidden("The role admin cannot be implied.".into()));
            }
            if identity.with_implied([implied].into()).contains(&prior) {
                return Err(OpsError::field("implied_role_id", "the roles would imply each other"));
            }
            let mut draft = Draft::default();
            if identity.inferences.get(InferenceRecord::id_of(prior, implied)).is_none() {
                draft.guard(prior_row);
                draft.guard(implied_row);
                draft.create(&InferenceRecord { prior, implied });
            }
            Ok((draft, ()))
        })
        .await
    }

    pub async fn remove_inference(&self, prior: RoleId, implied: RoleId) -> Result<(), OpsError> {
        self.transact(|view| {
            let row = view.identity.inferences.get(InferenceRecord::id_of(prior, implied));
            let row = row.ok_or_else(|| OpsError::not_found::<InferenceRecord>(implied))?;
            let mut draft = Draft::default();
            draft.delete(row);
            Ok((draft, ()))
        })
        .await
    }
}

fn immutable(name: &str) -> OpsError {
    OpsError::Forbidden(format!("The role {name} is immutable: it can be neither changed nor deleted."))
}
