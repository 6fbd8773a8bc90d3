//! Domains. One that is enabled cannot be deleted, and all that is in it goes with it.

use super::names::{self, NAME_MAX, name_key};
use crate::model::Record;
use crate::model::identity::*;
use crate::ops::{Draft, Ops, OpsError};
use amphi_api::ProjectId;
use jiff::Timestamp;
use std::collections::BTreeSet;

/// What a new domain is to be, or what is to change.
#[derive(Clone, Debug, Default)]
pub struct DomainChange {
    pub name: Option<String>,
    pub description: Option<String>,
    pub enabled: Option<bool>,
    pub tags: Option<BTreeSet<String>>,
    pub options: Extra,
    pub extra: Extra,
    /// Only for a new one: the id it is to have.
    pub id: Option<DomainId>,
}

const WITHIN: &str = "the cloud";

impl Ops {
    pub async fn create_domain(&self, change: &DomainChange) -> Result<DomainRecord, OpsError> {
        let name = change.name.clone().ok_or_else(|| OpsError::field("name", "is a required property"))?;
        names::check(&name, NAME_MAX)?;
        let record = DomainRecord {
            id: change.id.unwrap_or_else(DomainId::new),
            name,
            description: change.description.clone().unwrap_or_default(),
            enabled: change.enabled.unwrap_or(true),
            tags: change.tags.clone().unwrap_or_default(),
            options: change.options.clone(),
            extra: change.extra.clone(),
            tokens_since: None,
            created_at: Timestamp::now(),
        };
        self.transact(|view| {
            let identity = &view.identity;
            if identity.domain_named(&record.name).is_some() || identity.domains.get(record.id).is_some() {
                return Err(names::taken("domain", &record.name, WITHIN));
            }
            let mut draft = Draft::default();
            draft.create(&record);
            draft.reserve(name_key(DomainRecord::NOUN, "", &record.name), record.id);
            Ok((draft, ()))
        })
        .await?;
        Ok(record)
    }

    pub async fn update_domain(&self, id: DomainId, change: &DomainChange) -> Result<DomainRecord, OpsError> {
        if let Some(name) = &change.name {
            names::check(name, NAME_MAX)?;
        }
        self.transact(|view| {
            let row = view.identity.domains.get(id).ok_or_else(|| OpsError::not_found::<DomainRecord>(id))?;
            let mut record = (*row.record).clone();
            let mut draft = Draft::default();
            if let Some(name) = change.name.as_ref().filter(|name| **name != row.name) {
                if view.identity.domain_named(name).is_some() {
                    return Err(names::taken("domain", name, WITHIN));
                }
                names::rename(&mut draft, DomainRecord::NOUN, "", &row.name, name, id);
                record.name = name.clone();
            }
            if let Some(description) = &change.description {
                record.description = description.clone();
            }
            if let Some(enabled) = change.enabled {
                if row.enabled && !enabled {
                    record.tokens_since = Some(Timestamp::now());
                }
                record.enabled = enabled;
            }
            if let Some(tags) = &change.tags {
                record.tags = tags.clone();
            }
            names::overlay(&mut record.options, &change.options);
            names::overlay(&mut record.extra, &change.extra);
            draft.update(row, &record);
            Ok((draft, record))
        })
        .await
    }

    /// Deletes a disabled domain with its users, groups, projects and roles.
    pub async fn delete_domain(&self, id: DomainId) -> Result<(), OpsError> {
        if id == DomainId::DEFAULT {
            return Err(OpsError::Forbidden("The default domain cannot be deleted.".into()));
        }
        let (users, groups, mut projects, roles) = {
            let view = self.world().read();
            let identity = &view.identity;
            let row = identity.domains.get(id).ok_or_else(|| OpsError::not_found::<DomainRecord>(id))?;
            if row.enabled {
                return Err(OpsError::Forbidden(
                    "Cannot delete a domain that is enabled, please disable it first.".into(),
                ));
            }
            let owner = ProjectId(id.0);
            (
                identity.users.of_project(owner).map(|u| u.id).collect::<Vec<_>>(),
                identity.groups.of_project(owner).map(|g| g.id).collect::<Vec<_>>(),
                identity.projects.of_project(owner).map(|p| p.id).collect::<Vec<_>>(),
                identity.roles.iter().filter(|r| r.domain == Some(id)).map(|r| r.id).collect::<Vec<_>>(),
            )
        };
        // Children first.
        projects.sort_by_key(|p| std::cmp::Reverse(self.world().read().identity.parents_of(*p).len()));
        for user in users {
            gone(self.delete_user(user).await)?;
        }
        for group in groups {
            gone(self.delete_identity_group(group).await)?;
        }
        for project in projects {
            gone(self.delete_project(project).await)?;
        }
        for role in roles {
            gone(self.delete_role(role).await)?;
        }
        self.clear(|view| view.identity.hanging_on_target(Target::Domain(id))).await?;
        self.transact(|view| {
            let row = view.identity.domains.get(id).ok_or_else(|| OpsError::not_found::<DomainRecord>(id))?;
            let mut draft = Draft::default();
            draft.delete(row);
            draft.release(name_key(DomainRecord::NOUN, "", &row.name));
            Ok((draft, ()))
        })
        .await
    }
}

/// What somebody else has deleted in the meantime is as good.
fn gone(outcome: Result<(), OpsError>) -> Result<(), OpsError> {
    match outcome {
        Err(OpsError::NotFound { .. }) => Ok(()),
        outcome => outcome,
    }
}
