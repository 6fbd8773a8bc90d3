//! Application credentials: a user hands a program part of what the user may do in one project.

use super::Caller;
use super::names::{self, LONG_NAME_MAX, name_key};
use crate::model::Record;
use crate::model::identity::*;
use crate::ops::{Draft, Ops, OpsError};
use crate::tokens;
use jiff::Timestamp;
use std::collections::BTreeSet;

/// What is asked for.
#[derive(Clone, Default)]
pub struct AppCredentialWish {
    pub name: String,
    pub description: String,
    /// None: one is made.
    pub secret: Option<String>,
    /// Ids or names; empty: all that the token has.
    pub roles: Vec<String>,
    pub expires_at: Option<Timestamp>,
    pub unrestricted: bool,
}

impl Ops {
    /// Answers the record and the secret, which is told this once.
    pub async fn create_app_credential(
        &self,
        caller: &Caller,
        wish: &AppCredentialWish,
    ) -> Result<(AppCredentialRecord, String), OpsError> {
        self.may_change_credentials(caller)?;
        let project = caller.project()?;
        names::check(&wish.name, LONG_NAME_MAX)?;
        if wish.expires_at.is_some_and(|end| end <= Timestamp::now()) {
            return Err(OpsError::field("expires_at", "is in the past"));
        }
        let roles: BTreeSet<RoleId> = {
            let view = self.world().read();
            let held: Vec<&RoleRecord> = caller
                .roles
                .iter()
                .filter_map(|name| view.identity.role_named(name))
                .map(|row| &*row.record)
                .collect();
            if wish.roles.is_empty() {
                held.iter().map(|role| role.id).collect()
            } else {
                let find = |text: &String| {
                    let id = text.parse::<RoleId>().ok();
                    held.iter().find(|role| Some(role.id) == id || role.name == *text).map(|role| role.id)
                };
                let missing =
                    |text: &String| OpsError::field("roles", format!("you do not have the role {text}"));
                wish.roles
                    .iter()
                    .map(|text| find(text).ok_or_else(|| missing(text)))
                    .collect::<Result<_, _>>()?
            }
        };
        if !self.world().read().identity.app_credentials.named(owner(caller.user), &wish.name).is_empty() {
            return Err(taken(&wish.name));
        }
        let secret = wish.secret.clone().unwrap_or_else(tokens::new_secret);
        let record = AppCredentialRecord {
            id: AppCredentialId::new(),
            user: caller.user,
            project,
            name: wish.name.clone(),
            description: wish.description.clone(),
            secret: self.digest(&secret).await?,
            roles,
            expires_at: wish.expires_at,
            unrestricted: wish.unrestricted,
            created_at: Timestamp::now(),
        };
        self.transact(|view| {
            let identity = &view.identity;
            if !identity.app_credentials.named(owner(caller.user), &wish.name).is_empty() {
                return Err(taken(&wish.name));
            }
            let mut draft = Draft::default();
            let user = identity.users.get(caller.user);
            draft.guard(user.ok_or_else(|| OpsError::not_found::<UserRecord>(caller.user.0.simple()))?);
            draft.create(&record);
            draft.reserve(name_key(AppCredentialRecord::NOUN, record.user, &record.name), record.id);
            Ok((draft, ()))
        })
        .await?;
        Ok((record, secret))
    }

    pub async fn delete_app_credential(
        &self,
        caller: &Caller,
        user: UserId,
        id: AppCredentialId,
    ) -> Result<(), OpsError> {
        self.may_change_credentials(caller)?;
        self.transact(|view| {
            let row = view.identity.app_credentials.get(id).filter(|row| row.user == user);
            let row = row.ok_or_else(|| OpsError::not_found::<AppCredentialRecord>(id))?;
            let mut draft = Draft::default();
            super::clear::Hanging::AppCredential(row.clone()).delete(&mut draft);
            Ok((draft, ()))
        })
        .await
    }

    /// A token that came of a restricted application credential makes and deletes none.
    fn may_change_credentials(&self, caller: &Caller) -> Result<(), OpsError> {
        let Some(id) = caller.app_credential else { return Ok(()) };
        let unrestricted =
            self.world().read().identity.app_credentials.get(id).is_some_and(|c| c.unrestricted);
        if unrestricted {
            return Ok(());
        }
        Err(OpsError::Forbidden("Using method 'application_credential' is not allowed for this.".into()))
    }
}

fn owner(user: UserId) -> amphi_api::ProjectId {
    amphi_api::ProjectId(user.0)
}

fn taken(name: &str) -> OpsError {
    names::taken("application credential", name, "the same user's")
}
