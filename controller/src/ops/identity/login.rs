//! From proofs to a token. Whoever fails learns nothing of why: an unknown user, a wrong password and a disabled account
//! get the same answer after the same time.

use super::{Caller, Identity, Knock, TOKEN_LIFETIME};
use crate::model::identity::*;
use crate::ops::view::Row;
use crate::ops::{Ops, OpsError};
use crate::tokens::{self, Method, Payload};
use amphi_api::ProjectId;
use jiff::Timestamp;
use std::collections::BTreeSet;
use std::net::IpAddr;

#[derive(Clone, Debug, PartialEq)]
pub enum DomainRef {
    Id(String),
    Name(String),
}

#[derive(Clone, Debug, PartialEq)]
pub enum UserRef {
    Id(String),
    Named { name: String, domain: DomainRef },
}

#[derive(Clone, Debug, PartialEq)]
pub enum ProjectRef {
    Id(String),
    Named { name: String, domain: DomainRef },
}

/// How somebody shows who they are.
#[derive(Clone)]
pub enum Proof {
    Password { user: UserRef, password: String },
    Token(String),
    AppCredential { id: String, secret: String },
    NamedAppCredential { name: String, user: UserRef, secret: String },
}

/// What the token is to be good for.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum ScopeWish {
    /// The user's default project if there is one, else nothing.
    #[default]
    Usual,
    Unscoped,
    Project(ProjectRef),
    Domain(DomainRef),
    System,
}

#[derive(Clone)]
pub struct Login {
    pub proofs: Vec<Proof>,
    pub scope: ScopeWish,
    pub from: Option<IpAddr>,
}

/// What proofs have shown.
struct Shown {
    user: UserId,
    methods: BTreeSet<Method>,
    /// Of an earlier token.
    expires: Option<i64>,
    parent: Option<AuditId>,
    app_credential: Option<AppCredentialId>,
}

fn refused() -> OpsError {
    OpsError::Unauthenticated("The request you have made requires authentication.".into())
}

impl Ops {
    /// Answers the token and who it speaks for.
    pub async fn login(&self, login: &Login) -> Result<(String, Caller), OpsError> {
        if login.proofs.is_empty() || login.proofs.len() > 3 {
            return Err(OpsError::field("auth.identity.methods", "one to three methods are needed"));
        }
        let mut shown: Option<Shown> = None;
        for proof in &login.proofs {
            let next = self.show(proof, login.from).await?;
            shown = Some(match shown {
                None => next,
                // All proofs must be of the same user.
                Some(before) if before.user == next.user => Shown {
                    user: next.user,
                    methods: before.methods.union(&next.methods).copied().collect(),
                    expires: before.expires.or(next.expires),
                    parent: before.parent.or(next.parent),
                    app_credential: before.app_credential.or(next.app_credential),
                },
                Some(_) => return Err(refused()),
            });
        }
        let shown = shown.ok_or_else(refused)?;
        let scope = self.scope_of(&shown, &login.scope)?;
        let now = Timestamp::now().as_microsecond();
        let payload = Payload {
            user: shown.user,
            scope,
            methods: shown.methods,
            issued: now,
            expires: shown.expires.unwrap_or(now + TOKEN_LIFETIME.as_micros() as i64),
            audit: tokens::new_audit_id(),
            parent: shown.parent,
            app_credential: shown.app_credential,
        };
        self.issue(&payload).await
    }

    async fn show(&self, proof: &Proof, from: Option<IpAddr>) -> Result<Shown, OpsError> {
        match proof {
            Proof::Token(token) => {
                let caller = self.authenticate(token)?;
                let mut methods = caller.methods;
                methods.insert(Method::Token);
                Ok(Shown {
                    user: caller.user,
                    methods,
                    expires: Some(caller.expires_at.as_microsecond()),
                    parent: Some(caller.parent_audit_id.unwrap_or(caller.audit_id)),
                    app_credential: caller.app_credential,
                })
            }
            Proof::Password { user, password } => {
                super::users::check_password(password).map_err(|_| refused())?;
                let found = self.world().read().identity.find_user(user).cloned();
                let knock = Knock { who: who(user, found.as_ref()), from };
                let digest = found.as_ref().and_then(|row| row.password.clone());
                let fits = self.door.fits(knock, password.clone(), digest.clone()).await?;
                let row = found.filter(|_| fits).ok_or_else(refused)?;
                // What fitted must still be the password.
                let now = self.world().read().identity.users.get(row.id).and_then(|u| u.password.clone());
                if now != digest {
                    return Err(refused());
                }
                Ok(Shown {
                    user: row.id,
                    methods: [Method::Password].into(),
                    expires: None,
                    parent: None,
                    app_credential: None,
                })
            }
            Proof::AppCredential { id, secret } => {
                let found = {
                    let view = self.world().read();
                    let id = id.parse().ok();
                    id.and_then(|id| view.identity.app_credentials.get(id)).cloned()
                };
                self.show_credential(format!("app {id}"), found, secret, from).await
            }
            Proof::NamedAppCredential { name, user, secret } => {
                let (found, user) = {
                    let view = self.world().read();
                    let row = view.identity.find_user(user);
                    let named = row.map(|row| view.identity.app_credentials.named(ProjectId(row.id.0), name));
                    (named.and_then(|rows| rows.first().map(|r| (*r).clone())), who(user, row))
                };
                let who =
                    found.as_ref().map_or(format!("app {user} {name}"), |row| format!("app {}", row.id));
                self.show_credential(who, found, secret, from).await
            }
        }
    }

    async fn show_credential(
        &self,
        who: String,
        found: Option<Row<AppCredentialRecord>>,
        secret: &str,
        from: Option<IpAddr>,
    ) -> Result<Shown, OpsError> {
        super::users::check_password(secret).map_err(|_| refused())?;
        let digest = found.as_ref().map(|row| row.secret.clone());
        let fits = self.door.fits(Knock { who, from }, secret.to_owned(), digest).await?;
        let row = found.filter(|_| fits).ok_or_else(refused)?;
        Ok(Shown {
            user: row.user,
            methods: [Method::ApplicationCredential].into(),
            expires: row.expires_at.map(|end| {
                let usual = Timestamp::now() + TOKEN_LIFETIME;
                end.min(usual).as_microsecond()
            }),
            parent: None,
            app_credential: Some(row.id),
        })
    }

    /// The scope that is asked for, if it can be had. That the user has a role there is looked at when the token is made.
    fn scope_of(&self, shown: &Shown, wish: &ScopeWish) -> Result<Scope, OpsError> {
        let view = self.world().read();
        let identity = &view.identity;
        if let Some(id) = shown.app_credential {
            let own = identity.app_credentials.get(id).map(|c| c.project).ok_or_else(refused)?;
            return match wish {
                ScopeWish::Usual => Ok(Scope::Project(own)),
                ScopeWish::Project(project)
                    if identity.find_project(project).is_some_and(|p| p.id == own) =>
                {
                    Ok(Scope::Project(own))
                }
                _ => Err(refused()),
            };
        }
        match wish {
            ScopeWish::Unscoped => Ok(Scope::Unscoped),
            ScopeWish::System => Ok(Scope::System),
            ScopeWish::Project(project) => {
                identity.find_project(project).map(|p| Scope::Project(p.id)).ok_or_else(refused)
            }
            ScopeWish::Domain(domain) => {
                identity.find_domain(domain).map(|d| Scope::Domain(d.id)).ok_or_else(refused)
            }
            ScopeWish::Usual => {
                let user = identity.users.get(shown.user).ok_or_else(refused)?;
                let usable = user.default_project.filter(|id| {
                    let enabled = identity.projects.get(*id).is_some_and(|p| {
                        p.enabled && identity.domains.get(p.domain).is_some_and(|d| d.enabled)
                    });
                    let granted = identity.granted(user.id, Target::Project(*id));
                    enabled && !identity.effective(granted).is_empty()
                });
                Ok(usable.map_or(Scope::Unscoped, Scope::Project))
            }
        }
    }
}

/// Under which name failures are counted: a user's own, however the user was named.
fn who(user: &UserRef, found: Option<&Row<UserRecord>>) -> String {
    match (found, user) {
        (Some(row), _) => row.id.to_string(),
        (None, UserRef::Id(id)) => format!("id {}", short(id)),
        (None, UserRef::Named { name, domain: DomainRef::Id(domain) | DomainRef::Name(domain) }) => {
            format!("name {} {}", short(domain), short(name))
        }
    }
}

/// Strangers do not choose how much is remembered.
fn short(text: &str) -> String {
    text.chars().take(64).collect()
}

impl Identity {
    pub fn find_domain(&self, domain: &DomainRef) -> Option<&Row<DomainRecord>> {
        match domain {
            DomainRef::Id(id) => self.domains.get(id.parse().ok()?),
            DomainRef::Name(name) => self.domain_named(name),
        }
    }

    pub fn find_user(&self, user: &UserRef) -> Option<&Row<UserRecord>> {
        match user {
            UserRef::Id(id) => self.users.get(id.parse().ok()?),
            UserRef::Named { name, domain } => self.user_named(self.find_domain(domain)?.id, name),
        }
    }

    pub fn find_project(&self, project: &ProjectRef) -> Option<&Row<ProjectRecord>> {
        match project {
            ProjectRef::Id(id) => self.projects.get(id.parse().ok()?),
            ProjectRef::Named { name, domain } => self.project_named(self.find_domain(domain)?.id, name),
        }
    }
}
