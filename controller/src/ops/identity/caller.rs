//! Who asks: what a token turns into when it is used. Everything is looked up in the records as they are now.

use super::Identity;
use crate::model::identity::*;
use crate::ops::{Ops, OpsError, View};
use crate::tokens::{self, Method, Payload};
use amphi_api::ProjectId;
use jiff::Timestamp;
use std::collections::BTreeSet;

/// A known user with a scope, and the roles there.
#[derive(Clone, Debug, PartialEq)]
pub struct Caller {
    pub user: UserId,
    pub user_name: String,
    pub user_domain: DomainId,
    pub project: Option<ProjectId>,
    pub domain: Option<DomainId>,
    pub system: bool,
    /// Names, those implied included.
    pub roles: BTreeSet<String>,
    pub methods: BTreeSet<Method>,
    pub issued_at: Timestamp,
    pub expires_at: Timestamp,
    pub audit_id: AuditId,
    /// The first token of the chain.
    pub parent_audit_id: Option<AuditId>,
    pub app_credential: Option<AppCredentialId>,
}

impl Caller {
    /// The one that bootstrap makes.
    pub const ADMIN: UserId = UserId(uuid::Uuid::from_u128(0x616d_7068_6900_7000_8000_0000_0000_0004));

    /// Whoever holds the controller's own token: administrator of the default project.
    pub fn operator() -> Self {
        Self {
            user: Self::ADMIN,
            user_name: "admin".into(),
            user_domain: DomainId::DEFAULT,
            project: Some(ProjectId::DEFAULT),
            domain: None,
            system: false,
            roles: ["admin", "member", "reader"].map(String::from).into(),
            methods: BTreeSet::new(),
            issued_at: Timestamp::UNIX_EPOCH,
            expires_at: Timestamp::MAX,
            audit_id: AuditId(uuid::Uuid::nil()),
            parent_audit_id: None,
            app_credential: None,
        }
    }

    pub fn is_admin(&self) -> bool {
        self.roles.contains("admin")
    }

    pub fn has_role(&self, name: &str) -> bool {
        self.roles.contains(name)
    }

    /// The project that the token is scoped to.
    pub fn project(&self) -> Result<ProjectId, OpsError> {
        self.project
            .ok_or_else(|| OpsError::Forbidden("a token with a project as its scope is needed".into()))
    }

    pub fn may_see(&self, project: ProjectId) -> bool {
        self.is_admin() || self.project == Some(project)
    }

    pub fn scope(&self) -> Scope {
        match (self.project, self.domain) {
            (Some(project), _) => Scope::Project(project),
            (_, Some(domain)) => Scope::Domain(domain),
            _ if self.system => Scope::System,
            _ => Scope::Unscoped,
        }
    }
}

fn void(why: &str) -> OpsError {
    // Why is for the log: a stranger learns nothing from it.
    tracing::debug!(why, "a token is refused");
    OpsError::Unauthenticated("The request you have made requires authentication.".into())
}

impl Ops {
    /// Who a token speaks for, now. Reads memory only.
    pub fn authenticate(&self, token: &str) -> Result<Caller, OpsError> {
        let view = self.world().read();
        let payload = open(&view, token)?;
        caller_of(&view.identity, &payload, Timestamp::now())
    }
}

pub(super) fn open(view: &View, token: &str) -> Result<Payload, OpsError> {
    let keys = &view.identity.token_keys;
    tokens::open(token, |id| keys.get(id).map(|row| &*row.record)).map_err(|e| void(&e.to_string()))
}

/// Whether what a payload says still holds, and with which roles.
pub(super) fn caller_of(identity: &Identity, payload: &Payload, now: Timestamp) -> Result<Caller, OpsError> {
    let time = |micros: i64| Timestamp::from_microsecond(micros).map_err(|_| void("a time out of range"));
    let (issued_at, expires_at) = (time(payload.issued)?, time(payload.expires)?);
    if expires_at <= now {
        return Err(void("expired"));
    }
    if identity.revocations.get(payload.audit).is_some() {
        return Err(void("revoked"));
    }
    let too_old = |since: Option<Timestamp>| since.is_some_and(|since| issued_at < since);
    let domain = |id: DomainId| {
        let domain = identity.domains.get(id).ok_or_else(|| void("no such domain"))?;
        if !domain.enabled || too_old(domain.tokens_since) {
            return Err(void("the domain is or was disabled"));
        }
        Ok(())
    };
    let user = identity.users.get(payload.user).ok_or_else(|| void("no such user"))?;
    if !user.enabled || too_old(user.tokens_since) {
        return Err(void("the user is or was disabled, or has another password"));
    }
    domain(user.domain)?;
    let target = match payload.scope {
        Scope::Unscoped => None,
        Scope::System => Some(Target::System),
        Scope::Domain(id) => {
            domain(id)?;
            Some(Target::Domain(id))
        }
        Scope::Project(id) => {
            let project = identity.projects.get(id).ok_or_else(|| void("no such project"))?;
            if !project.enabled || too_old(project.tokens_since) {
                return Err(void("the project is or was disabled"));
            }
            domain(project.domain)?;
            Some(Target::Project(id))
        }
    };
    let mut granted = target.map(|target| identity.granted(user.id, target)).unwrap_or_default();
    if let Some(id) = payload.app_credential {
        let credential =
            identity.app_credentials.get(id).ok_or_else(|| void("no such application credential"))?;
        if credential.expires_at.is_some_and(|end| end <= now) {
            return Err(void("the application credential has expired"));
        }
        let held = identity.with_implied(granted);
        if !credential.roles.is_subset(&held) {
            return Err(void("the user has lost a role of the application credential"));
        }
        granted = credential.roles.clone();
    }
    let roles: BTreeSet<String> = identity.effective(granted).into_iter().map(|r| r.name.clone()).collect();
    if target.is_some() && roles.is_empty() {
        return Err(void("no role is left"));
    }
    let (project, in_domain) = match payload.scope {
        Scope::Project(id) => (Some(id), None),
        Scope::Domain(id) => (None, Some(id)),
        Scope::System | Scope::Unscoped => (None, None),
    };
    Ok(Caller {
        user: user.id,
        user_name: user.name.clone(),
        user_domain: user.domain,
        project,
        domain: in_domain,
        system: payload.scope == Scope::System,
        roles,
        methods: payload.methods.clone(),
        issued_at,
        expires_at,
        audit_id: payload.audit,
        parent_audit_id: payload.parent,
        app_credential: payload.app_credential,
    })
}
