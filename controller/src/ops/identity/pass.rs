//! Passes of the registry: what its token endpoint hands out. A pass says who asks (or that nobody does) and which
//! repositories it is for. Roles are not in it, as they are in no token: what somebody may do is looked up at each use,
//! and a pass can only narrow it.

use super::caller::caller_of;
use super::{Caller, Login, ProjectRef, ScopeWish};
use crate::model::RepositoryRecord;
use crate::model::identity::*;
use crate::ops::view::Row;
use crate::ops::{Ops, OpsError, View};
use crate::tokens::{self, Payload};
use amphi_api::repository::RepositoryVisibility;
use amphi_api::{ProjectId, RepositoryId};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// How long a pass is good for. Clients ask for the next by themselves; distribution's own default is five minutes, too
/// short for a large push over a slow line.
pub const PASS_LIFETIME: SignedDuration = SignedDuration::from_mins(15);
/// What passes are sealed for.
const PURPOSE: &[u8] = b"registry";
/// Most repositories of one pass: a push that mounts from a few others.
const ACCESS_MAX: usize = 8;
/// What names of mirrored repositories begin with.
pub const MIRROR: &str = "mirror";

/// What is done to a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Act {
    Pull,
    Push,
    Delete,
}

impl Act {
    pub const ALL: [Self; 3] = [Self::Pull, Self::Push, Self::Delete];

    pub fn word(self) -> &'static str {
        match self {
            Self::Pull => "pull",
            Self::Push => "push",
            Self::Delete => "delete",
        }
    }

    /// The role in the repository's project that it takes.
    fn role(self) -> &'static str {
        match self {
            Self::Pull => "reader",
            Self::Push | Self::Delete => "member",
        }
    }
}

/// What a pass is good for. `name`: of a repository with its project's, as the client writes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Access {
    #[serde(rename = "n")]
    pub name: String,
    #[serde(rename = "a")]
    pub acts: BTreeSet<Act>,
}

#[derive(Serialize, Deserialize)]
struct Pass {
    #[serde(rename = "w", default, skip_serializing_if = "Option::is_none")]
    who: Option<Payload>,
    #[serde(rename = "a")]
    access: Vec<Access>,
    /// Microseconds since the epoch.
    #[serde(rename = "e")]
    expires: i64,
}

/// Who stands before the registry.
#[derive(Clone, Debug)]
pub struct Visitor {
    /// None: nobody that is known.
    pub caller: Option<Caller>,
    /// None: whatever the roles allow.
    access: Option<Vec<Access>>,
}

/// A repository as a request names it: the project's part found, the rest a name in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub project: ProjectId,
    /// In its project.
    pub name: String,
    /// As the client wrote it.
    pub full: String,
    /// The upstream whose mirror is meant, and the repository's name there.
    pub mirror: Option<(String, String)>,
}

impl Place {
    pub fn id(&self) -> RepositoryId {
        RepositoryId::of(self.project, &self.name)
    }
}

impl Visitor {
    /// Somebody with a token of the identity service: what the token's scope allows.
    pub fn of(caller: Caller) -> Self {
        Self { caller: Some(caller), access: None }
    }

    fn domain(&self) -> DomainId {
        self.caller.as_ref().map_or(DomainId::DEFAULT, |caller| caller.user_domain)
    }

    /// Where a name leads: `PROJECT/NAME`, the project by its name in the visitor's domain, or by id. None: nowhere.
    pub fn place(&self, view: &View, full: &str) -> Option<Place> {
        let (first, rest) = full.split_once('/')?;
        if !amphi_api::repository::repository_name(full) {
            return None;
        }
        if first == MIRROR {
            let (upstream, there) = rest.split_once('/')?;
            return Some(Place {
                project: ProjectId::DEFAULT,
                name: full.to_owned(),
                full: full.to_owned(),
                mirror: Some((upstream.to_owned(), there.to_owned())),
            });
        }
        let identity = &view.identity;
        let by_id = first.parse::<ProjectId>().ok().and_then(|id| identity.projects.get(id));
        let row = by_id.or_else(|| identity.project_named(self.domain(), first))?;
        Some(Place { project: row.id, name: rest.to_owned(), full: full.to_owned(), mirror: None })
    }

    /// The roles in a project, those implied included.
    fn roles_in(&self, view: &View, project: ProjectId) -> BTreeSet<String> {
        let Some(caller) = &self.caller else { return BTreeSet::new() };
        let identity = &view.identity;
        let enabled = identity
            .projects
            .get(project)
            .is_some_and(|p| p.enabled && identity.domains.get(p.domain).is_some_and(|d| d.enabled));
        match (caller.project, enabled) {
            (_, false) => BTreeSet::new(),
            (Some(own), true) if own == project => caller.roles.clone(),
            (Some(_), true) => BTreeSet::new(),
            (None, true) => {
                let granted = identity.granted(caller.user, Target::Project(project));
                identity.effective(granted).into_iter().map(|role| role.name.clone()).collect()
            }
        }
    }

    /// Whether the roles allow it, or the repository is open to everybody. Says nothing of what the pass is for.
    pub fn may(&self, view: &View, place: &Place, act: Act) -> bool {
        if place.mirror.is_some() {
            // Whoever is known may have something fetched; nobody writes here.
            return act == Act::Pull && self.caller.is_some();
        }
        if self.roles_in(view, place.project).contains(act.role()) {
            return true;
        }
        let open = |row: &Row<RepositoryRecord>| row.visibility == RepositoryVisibility::Public;
        act == Act::Pull && view.repositories.get(place.id()).is_some_and(open)
    }

    /// Whether the visitor has a role in the project: then all that it may read is to be seen, not one repository alone.
    pub fn belongs_to(&self, view: &View, project: ProjectId) -> bool {
        self.roles_in(view, project).contains(Act::Pull.role())
    }

    /// Whether it may be done now: by the pass and by the roles.
    pub fn is_let(&self, view: &View, place: &Place, act: Act) -> bool {
        let passes = |access: &Vec<Access>| {
            access.iter().any(|entry| entry.name == place.full && entry.acts.contains(&act))
        };
        self.access.as_ref().is_none_or(passes) && self.may(view, place, act)
    }

    /// The projects whose repositories it may list.
    pub fn projects(&self, view: &View) -> BTreeSet<ProjectId> {
        let Some(caller) = &self.caller else { return BTreeSet::new() };
        let all = match caller.project {
            Some(project) => [project].into(),
            None => view.identity.projects_of(caller.user),
        };
        all.into_iter().filter(|project| self.belongs_to(view, *project)).collect()
    }
}

impl Ops {
    /// A pass for whoever proves who they are, or for nobody, with as much of what is wanted as is allowed now.
    pub async fn registry_pass(
        &self,
        login: Option<&Login>,
        wanted: &[Access],
    ) -> Result<(String, Vec<Access>), OpsError> {
        let who = match login {
            None => None,
            Some(login) => {
                let (token, caller) = self.login(login).await?;
                let payload = super::caller::open(&self.world().read(), &token)?;
                Some((payload, caller))
            }
        };
        let visitor = Visitor { caller: who.as_ref().map(|(_, caller)| caller.clone()), access: None };
        let access: Vec<Access> = {
            let view = self.world().read();
            let allowed = |entry: &Access| {
                let place = visitor.place(&view, &entry.name)?;
                let acts: BTreeSet<Act> =
                    entry.acts.iter().copied().filter(|act| visitor.may(&view, &place, *act)).collect();
                (!acts.is_empty()).then(|| Access { name: entry.name.clone(), acts })
            };
            wanted.iter().take(ACCESS_MAX).filter_map(allowed).collect()
        };
        let now = Timestamp::now();
        let own = now + PASS_LIFETIME;
        let expires = who.as_ref().map_or(own, |(_, caller)| caller.expires_at.min(own));
        let pass = Pass {
            who: who.map(|(payload, _)| payload),
            access: access.clone(),
            expires: expires.as_microsecond(),
        };
        let key = self.sealing_key().await?;
        let text = tokens::seal_for(&key, PURPOSE, &pass).map_err(|e| OpsError::Internal(e.to_string()))?;
        Ok((text, access))
    }

    /// Who shows this pass. Reads memory only.
    pub fn open_registry_pass(&self, text: &str) -> Result<Visitor, OpsError> {
        let void = || OpsError::Unauthenticated("the token is not known here, or has ended".into());
        let view = self.world().read();
        let keys = &view.identity.token_keys;
        let opened = tokens::open_for::<Pass>(text, PURPOSE, |id| keys.get(id).map(|row| &*row.record));
        let now = Timestamp::now();
        let pass = opened.map_err(|_| void())?;
        if pass.expires <= now.as_microsecond() {
            return Err(void());
        }
        let caller = match &pass.who {
            None => None,
            Some(payload) => Some(caller_of(&view.identity, payload, now)?),
        };
        Ok(Visitor { caller, access: Some(pass.access) })
    }

    /// How a name and a secret of HTTP's Basic are meant: an application credential's id with its secret, else a user of
    /// the default domain, or `DOMAIN/USER` of another, with the password.
    pub fn registry_login(&self, name: &str, secret: &str, from: Option<std::net::IpAddr>) -> Login {
        use super::{DomainRef, Proof, UserRef};
        let view = self.world().read();
        let identity = &view.identity;
        let credential = name.parse::<AppCredentialId>().ok();
        if credential.is_some_and(|id| identity.app_credentials.get(id).is_some()) {
            let proof = Proof::AppCredential { id: name.to_owned(), secret: secret.to_owned() };
            return Login { proofs: vec![proof], scope: ScopeWish::Usual, from };
        }
        let plain = DomainRef::Id(DomainId::DEFAULT.to_string());
        let known = identity.user_named(DomainId::DEFAULT, name).is_some();
        let (domain, name) = match name.split_once('/') {
            Some((domain, user)) if !known => (DomainRef::Name(domain.to_owned()), user),
            _ => (plain, name),
        };
        let user = UserRef::Named { name: name.to_owned(), domain };
        let proof = Proof::Password { user, password: secret.to_owned() };
        Login { proofs: vec![proof], scope: ScopeWish::Unscoped, from }
    }

    /// How clients write a repository's project: its name where that is allowed in names of repositories, else its id.
    pub fn registry_word(&self, view: &View, project: ProjectId) -> String {
        let name = view.identity.projects.get(project).map(|row| row.name.clone());
        let fits = |name: &String| {
            name != MIRROR && !name.contains('/') && amphi_api::repository::repository_name(name)
        };
        name.filter(fits).unwrap_or_else(|| project.0.simple().to_string())
    }

    /// The project of this name or id, in the domain of the one that asks.
    pub(in crate::ops) fn project_beside(view: &View, own: ProjectId, text: &str) -> Option<ProjectId> {
        let identity = &view.identity;
        if let Some(row) = text.parse::<ProjectId>().ok().and_then(|id| identity.projects.get(id)) {
            return Some(row.id);
        }
        let domain = identity.projects.get(own).map_or(DomainId::DEFAULT, |row| row.domain);
        let named =
            ProjectRef::Named { name: text.to_owned(), domain: super::DomainRef::Id(domain.to_string()) };
        identity.find_project(&named).map(|row| row.id)
    }
}
