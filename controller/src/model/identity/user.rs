//! Users, groups, memberships and application credentials. Passwords and secrets are kept as argon2 digests only, and
//! not even those are printed.

use super::{AppCredentialId, DomainId, Extra, GroupId, MembershipId, RoleId, UserId};
use crate::model::Record;
use amphi_api::ProjectId;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;

/// An argon2 digest in PHC form; its text is never shown.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Digest(pub String);

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(digest)")
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UserRecord {
    pub id: UserId,
    pub domain: DomainId,
    /// Unique in the domain.
    pub name: String,
    /// None: no password fits.
    #[serde(default)]
    pub password: Option<Digest>,
    #[serde(default)]
    pub password_expires_at: Option<Timestamp>,
    pub enabled: bool,
    #[serde(default)]
    pub default_project: Option<ProjectId>,
    #[serde(default)]
    pub options: Extra,
    #[serde(default)]
    pub extra: Extra,
    /// Tokens issued before are void: the password was changed, or the user was disabled.
    #[serde(default)]
    pub tokens_since: Option<Timestamp>,
    pub created_at: Timestamp,
}

impl Record for UserRecord {
    const PREFIX: &'static str = "/identity-user/";
    const NOUN: &'static str = "user";
    type Id = UserId;
    fn id(&self) -> UserId {
        self.id
    }
    fn owner(&self) -> Option<(ProjectId, &str)> {
        Some((ProjectId(self.domain.0), &self.name))
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GroupRecord {
    pub id: GroupId,
    pub domain: DomainId,
    /// Unique in the domain.
    pub name: String,
    #[serde(default)]
    pub description: String,
    #[serde(default)]
    pub extra: Extra,
    pub created_at: Timestamp,
}

impl Record for GroupRecord {
    const PREFIX: &'static str = "/identity-group/";
    const NOUN: &'static str = "group";
    type Id = GroupId;
    fn id(&self) -> GroupId {
        self.id
    }
    fn owner(&self) -> Option<(ProjectId, &str)> {
        Some((ProjectId(self.domain.0), &self.name))
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MembershipRecord {
    pub user: UserId,
    pub group: GroupId,
}

impl MembershipRecord {
    pub fn id_of(user: UserId, group: GroupId) -> MembershipId {
        MembershipId::of(&format!("{user} in {group}"))
    }
}

impl Record for MembershipRecord {
    const PREFIX: &'static str = "/identity-membership/";
    const NOUN: &'static str = "membership";
    type Id = MembershipId;
    fn id(&self) -> MembershipId {
        Self::id_of(self.user, self.group)
    }
}

/// Stands for its user in one project, with some of the user's roles there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AppCredentialRecord {
    pub id: AppCredentialId,
    pub user: UserId,
    pub project: ProjectId,
    /// Unique among the user's.
    pub name: String,
    #[serde(default)]
    pub description: String,
    pub secret: Digest,
    pub roles: BTreeSet<RoleId>,
    #[serde(default)]
    pub expires_at: Option<Timestamp>,
    /// Whether its tokens may make and delete application credentials.
    #[serde(default)]
    pub unrestricted: bool,
    pub created_at: Timestamp,
}

impl Record for AppCredentialRecord {
    const PREFIX: &'static str = "/identity-app-credential/";
    const NOUN: &'static str = "application credential";
    type Id = AppCredentialId;
    fn id(&self) -> AppCredentialId {
        self.id
    }
    /// By user: the tables' index by owner serves names among a user's.
    fn owner(&self) -> Option<(ProjectId, &str)> {
        Some((ProjectId(self.user.0), &self.name))
    }
}
