//! Roles, which role implies which, and who has which role where.

use super::{DomainId, Extra, GrantId, GroupId, InferenceId, RoleId, UserId};
use crate::model::Record;
use amphi_api::ProjectId;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RoleRecord {
    pub id: RoleId,
    /// Unique in its domain, or among the roles of the whole cloud.
    pub name: String,
    /// A domain's role counts only for what it implies: it never shows in a token.
    #[serde(default)]
    pub domain: Option<DomainId>,
    #[serde(default)]
    pub description: Option<String>,
    #[serde(default)]
    pub options: Extra,
    #[serde(default)]
    pub extra: Extra,
    pub created_at: Timestamp,
}

impl RoleRecord {
    /// Marked so, it can be neither changed nor deleted until the mark is taken off.
    pub fn immutable(&self) -> bool {
        self.options.get("immutable").and_then(serde_json::Value::as_bool).unwrap_or(false)
    }
}

impl Record for RoleRecord {
    const PREFIX: &'static str = "/identity-role/";
    const NOUN: &'static str = "role";
    type Id = RoleId;
    fn id(&self) -> RoleId {
        self.id
    }
}

/// Whoever has `prior` has `implied` too.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InferenceRecord {
    pub prior: RoleId,
    pub implied: RoleId,
}

impl InferenceRecord {
    pub fn id_of(prior: RoleId, implied: RoleId) -> InferenceId {
        InferenceId::of(&format!("{prior} implies {implied}"))
    }
}

impl Record for InferenceRecord {
    const PREFIX: &'static str = "/identity-inference/";
    const NOUN: &'static str = "role inference";
    type Id = InferenceId;
    fn id(&self) -> InferenceId {
        Self::id_of(self.prior, self.implied)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Actor {
    User(UserId),
    Group(GroupId),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    Project(ProjectId),
    Domain(DomainId),
    System,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GrantRecord {
    pub actor: Actor,
    pub target: Target,
    pub role: RoleId,
    /// Holds for what is below the target (a domain's projects, a project's subprojects) and not for itself.
    #[serde(default)]
    pub inherited: bool,
}

impl GrantRecord {
    pub fn id_of(actor: Actor, target: Target, role: RoleId, inherited: bool) -> GrantId {
        GrantId::of(&format!("{actor:?} {target:?} {role} {inherited}"))
    }
}

impl Record for GrantRecord {
    const PREFIX: &'static str = "/identity-grant/";
    const NOUN: &'static str = "role assignment";
    type Id = GrantId;
    fn id(&self) -> GrantId {
        Self::id_of(self.actor, self.target, self.role, self.inherited)
    }
}
