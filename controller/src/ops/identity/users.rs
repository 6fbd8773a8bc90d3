//! Users and their passwords.

use super::door::PASSWORD_MAX;
use super::names::{self, LONG_NAME_MAX, name_key};
use super::{Caller, Knock};
use crate::model::Record;
use crate::model::identity::*;
use crate::ops::{Draft, Ops, OpsError};
use amphi_api::ProjectId;
use jiff::Timestamp;
use std::net::IpAddr;

/// What a new user is to be, or what is to change.
#[derive(Clone, Default)]
pub struct UserChange {
    pub name: Option<String>,
    pub domain: Option<DomainId>,
    /// `Some(None)`: no password fits any more.
    pub password: Option<Option<String>>,
    pub enabled: Option<bool>,
    /// `Some(None)`: none any more.
    pub default_project: Option<Option<ProjectId>>,
    pub options: Extra,
    pub extra: Extra,
}

const WITHIN: &str = "the same domain";

impl Ops {
    pub async fn create_user(
        &self,
        default_domain: DomainId,
        change: &UserChange,
    ) -> Result<UserRecord, OpsError> {
        let name = change.name.clone().ok_or_else(|| OpsError::field("name", "is a required property"))?;
        names::check(&name, LONG_NAME_MAX)?;
        let domain = change.domain.unwrap_or(default_domain);
        let no_domain = || OpsError::not_found::<DomainRecord>(domain);
        {
            // Before the password: a digest is not to be had for a request that fails anyway.
            let view = self.world().read();
            view.identity.domains.get(domain).ok_or_else(no_domain)?;
            if view.identity.user_named(domain, &name).is_some() {
                return Err(names::taken("user", &name, WITHIN));
            }
        }
        let password = match &change.password {
            Some(Some(password)) => Some(self.digest(password).await?),
            _ => None,
        };
        let record = UserRecord {
            id: UserId::new(),
            domain,
            name: name.clone(),
            password,
            password_expires_at: None,
            enabled: change.enabled.unwrap_or(true),
            default_project: change.default_project.flatten(),
            options: change.options.clone(),
            extra: change.extra.clone(),
            tokens_since: None,
            created_at: Timestamp::now(),
        };
        self.transact(|view| {
            let identity = &view.identity;
            if identity.user_named(domain, &name).is_some() {
                return Err(names::taken("user", &name, WITHIN));
            }
            let mut draft = Draft::default();
            draft.guard(identity.domains.get(domain).ok_or_else(no_domain)?);
            draft.create(&record);
            draft.reserve(name_key(UserRecord::NOUN, domain, &name), record.id);
            Ok((draft, ()))
        })
        .await?;
        Ok(record)
    }

    pub async fn update_user(&self, id: UserId, change: &UserChange) -> Result<UserRecord, OpsError> {
        if let Some(name) = &change.name {
            names::check(name, LONG_NAME_MAX)?;
        }
        if self.world().read().identity.users.get(id).is_none() {
            return Err(OpsError::not_found::<UserRecord>(id.0.simple()));
        }
        let password = match &change.password {
            Some(Some(password)) => Some(Some(self.digest(password).await?)),
            Some(None) => Some(None),
            None => None,
        };
        self.transact(|view| {
            let identity = &view.identity;
            let row =
                identity.users.get(id).ok_or_else(|| OpsError::not_found::<UserRecord>(id.0.simple()))?;
            if change.domain.is_some_and(|named| named != row.domain) {
                return Err(OpsError::field("domain_id", "cannot be changed"));
            }
            let mut record = (*row.record).clone();
            let mut draft = Draft::default();
            if let Some(name) = change.name.as_ref().filter(|name| **name != row.name) {
                if identity.user_named(row.domain, name).is_some() {
                    return Err(names::taken("user", name, WITHIN));
                }
                names::rename(&mut draft, UserRecord::NOUN, row.domain, &row.name, name, id);
                record.name = name.clone();
            }
            if let Some(password) = &password {
                record.password = password.clone();
                record.tokens_since = Some(Timestamp::now());
            }
            if let Some(enabled) = change.enabled {
                if row.enabled && !enabled {
                    record.tokens_since = Some(Timestamp::now());
                }
                record.enabled = enabled;
            }
            if let Some(project) = change.default_project {
                record.default_project = project;
            }
            names::overlay(&mut record.options, &change.options);
            names::overlay(&mut record.extra, &change.extra);
            draft.update(row, &record);
            Ok((draft, record))
        })
        .await
    }

    /// A user's own change of password: the old one must fit.
    pub async fn change_password(
        &self,
        id: UserId,
        original: String,
        password: &str,
        from: Option<IpAddr>,
    ) -> Result<(), OpsError> {
        let digest = self.world().read().identity.users.get(id).and_then(|u| u.password.clone());
        check_password(&original)?;
        let knock = Knock { who: id.to_string(), from };
        if !self.door.fits(knock, original, digest.clone()).await? {
            return Err(OpsError::Unauthenticated("The password does not match.".into()));
        }
        let fresh = self.digest(password).await?;
        self.transact(|view| {
            let row = view.identity.users.get(id).filter(|u| u.password == digest && u.enabled);
            let row = row.ok_or_else(|| OpsError::Unauthenticated("The password has changed.".into()))?;
            let mut record = (*row.record).clone();
            record.password = Some(fresh.clone());
            record.tokens_since = Some(Timestamp::now());
            let mut draft = Draft::default();
            draft.update(row, &record);
            Ok((draft, ()))
        })
        .await
    }

    pub async fn delete_user(&self, id: UserId) -> Result<(), OpsError> {
        let missing = || OpsError::not_found::<UserRecord>(id.0.simple());
        if id == Caller::ADMIN {
            return Err(OpsError::Forbidden("The first administrator cannot be deleted; disable it.".into()));
        }
        // First nobody can come in any more, then all that hangs on the user goes.
        self.update_user(id, &UserChange { enabled: Some(false), ..UserChange::default() }).await?;
        self.clear(|view| view.identity.hanging_on_user(id)).await?;
        self.transact(|view| {
            let row = view.identity.users.get(id).ok_or_else(missing)?;
            let mut draft = Draft::default();
            draft.delete(row);
            draft.release(name_key(UserRecord::NOUN, row.domain, &row.name));
            Ok((draft, ()))
        })
        .await
    }

    pub(super) async fn digest(&self, password: &str) -> Result<Digest, OpsError> {
        check_password(password)?;
        if password.is_empty() {
            return Err(OpsError::field("password", "must not be empty"));
        }
        self.door.digest(password.to_owned()).await
    }
}

pub(super) fn check_password(password: &str) -> Result<(), OpsError> {
    if password.len() > PASSWORD_MAX {
        return Err(OpsError::field("password", format!("must have at most {PASSWORD_MAX} bytes")));
    }
    Ok(())
}
