//! Domains and projects. A domain holds users, groups and projects; a project holds everything else. Projects nest.

use super::{DomainId, Extra};
use crate::model::Record;
use amphi_api::ProjectId;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DomainRecord {
    pub id: DomainId,
    /// Unique in the cloud.
    pub name: String,
    #[serde(default)]
    pub description: String,
    pub enabled: bool,
    #[serde(default)]
    pub tags: BTreeSet<String>,
    #[serde(default)]
    pub options: Extra,
    #[serde(default)]
    pub extra: Extra,
    /// Tokens of its users and projects that were issued before are void.
    #[serde(default)]
    pub tokens_since: Option<Timestamp>,
    pub created_at: Timestamp,
}

impl Record for DomainRecord {
    const PREFIX: &'static str = "/identity-domain/";
    const NOUN: &'static str = "domain";
    type Id = DomainId;
    fn id(&self) -> DomainId {
        self.id
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProjectRecord {
    pub id: ProjectId,
    pub domain: DomainId,
    /// None: it stands directly in its domain.
    #[serde(default)]
    pub parent: Option<ProjectId>,
    /// Unique in the domain.
    pub name: String,
    #[serde(default)]
    pub description: String,
    pub enabled: bool,
    #[serde(default)]
    pub tags: BTreeSet<String>,
    #[serde(default)]
    pub options: Extra,
    #[serde(default)]
    pub extra: Extra,
    /// Tokens scoped to it that were issued before are void.
    #[serde(default)]
    pub tokens_since: Option<Timestamp>,
    pub created_at: Timestamp,
}

impl Record for ProjectRecord {
    const PREFIX: &'static str = "/identity-project/";
    const NOUN: &'static str = "project";
    type Id = ProjectId;
    fn id(&self) -> ProjectId {
        self.id
    }
    /// By domain: the tables' index by owner serves names within a domain.
    fn owner(&self) -> Option<(ProjectId, &str)> {
        Some((ProjectId(self.domain.0), &self.name))
    }
}
