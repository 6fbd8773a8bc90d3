//! Projects, which may nest.

use super::names::{self, NAME_MAX, name_key};
use crate::model::Record;
use crate::model::identity::*;
use crate::ops::asked::SCHEDULER_KEY;
use crate::ops::{Draft, Ops, OpsError};
use crate::scheduler::SchedulerId;
use amphi_api::ProjectId;
use jiff::Timestamp;
use std::collections::BTreeSet;

/// Deepest nesting, the domain counted (keystone's `max_project_tree_depth`).
const DEPTH_MAX: usize = 5;
/// Most tags, and longest (keystone's).
const TAGS_MAX: usize = 80;
const TAG_MAX: usize = 255;

/// Where a new project stands.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ProjectParent {
    Domain(DomainId),
    Project(ProjectId),
}

/// What a new project is to be, or what is to change.
#[derive(Clone, Debug, Default)]
pub struct ProjectChange {
    pub name: Option<String>,
    pub description: Option<String>,
    pub enabled: Option<bool>,
    pub tags: Option<BTreeSet<String>>,
    pub options: Extra,
    pub extra: Extra,
    /// Only for a new one: the domain that was named; it must be the parent's.
    pub domain: Option<DomainId>,
    /// Only for a new one.
    pub parent: Option<ProjectParent>,
}

const WITHIN: &str = "the same domain";

impl Ops {
    pub async fn create_project(
        &self,
        default_domain: DomainId,
        change: &ProjectChange,
    ) -> Result<ProjectRecord, OpsError> {
        let name = change.name.clone().ok_or_else(|| OpsError::field("name", "is a required property"))?;
        names::check(&name, NAME_MAX)?;
        check_tags(change.tags.as_ref())?;
        check_scheduler(change)?;
        let id = ProjectId::new();
        self.transact(|view| {
            let identity = &view.identity;
            let mut draft = Draft::default();
            let (domain, parent) = match change.parent {
                Some(ProjectParent::Project(parent)) => {
                    let row = identity
                        .projects
                        .get(parent)
                        .ok_or_else(|| OpsError::field("parent_id", "no such project"))?;
                    if identity.parents_of(parent).len() + 2 >= DEPTH_MAX {
                        return Err(OpsError::Forbidden(format!(
                            "Max hierarchy depth reached: {DEPTH_MAX}."
                        )));
                    }
                    if !row.enabled {
                        return Err(OpsError::Forbidden("The parent project is disabled.".into()));
                    }
                    draft.guard(row);
                    (row.domain, Some(parent))
                }
                Some(ProjectParent::Domain(domain)) => (domain, None),
                None => (change.domain.unwrap_or(default_domain), None),
            };
            if change.domain.is_some_and(|named| named != domain) {
                return Err(OpsError::field("domain_id", "the parent is in another domain"));
            }
            let row = identity.domains.get(domain);
            draft.guard(row.ok_or_else(|| OpsError::field("domain_id", "no such domain"))?);
            if identity.project_named(domain, &name).is_some() {
                return Err(names::taken("project", &name, WITHIN));
            }
            let record = ProjectRecord {
                id,
                domain,
                parent,
                name: name.clone(),
                description: change.description.clone().unwrap_or_default(),
                enabled: change.enabled.unwrap_or(true),
                tags: change.tags.clone().unwrap_or_default(),
                options: change.options.clone(),
                extra: change.extra.clone(),
                tokens_since: None,
                created_at: Timestamp::now(),
            };
            draft.create(&record);
            draft.reserve(name_key(ProjectRecord::NOUN, domain, &name), id);
            Ok((draft, record))
        })
        .await
    }

    pub async fn update_project(
        &self,
        id: ProjectId,
        change: &ProjectChange,
    ) -> Result<ProjectRecord, OpsError> {
        if let Some(name) = &change.name {
            names::check(name, NAME_MAX)?;
        }
        check_tags(change.tags.as_ref())?;
        check_scheduler(change)?;
        self.transact(|view| {
            let identity = &view.identity;
            let row = identity.projects.get(id).ok_or_else(|| OpsError::not_found::<ProjectRecord>(id))?;
            if change.domain.is_some_and(|named| named != row.domain) {
                return Err(OpsError::field("domain_id", "cannot be changed"));
            }
            let parent = row.parent.map_or(ProjectParent::Domain(row.domain), ProjectParent::Project);
            if change.parent.is_some_and(|named| named != parent) {
                return Err(OpsError::Forbidden("A project's parent cannot be changed.".into()));
            }
            let mut record = (*row.record).clone();
            let mut draft = Draft::default();
            if let Some(name) = change.name.as_ref().filter(|name| **name != row.name) {
                if identity.project_named(row.domain, name).is_some() {
                    return Err(names::taken("project", name, WITHIN));
                }
                names::rename(&mut draft, ProjectRecord::NOUN, row.domain, &row.name, name, id);
                record.name = name.clone();
            }
            if let Some(description) = &change.description {
                record.description = description.clone();
            }
            if let Some(enabled) = change.enabled {
                if enabled && identity.parents_of(id).iter().any(|p| !p.enabled) {
                    return Err(OpsError::Forbidden("Cannot enable a project below a disabled one.".into()));
                }
                let children = identity.projects.of_project(ProjectId(row.domain.0));
                if !enabled && children.into_iter().any(|p| p.parent == Some(id) && p.enabled) {
                    return Err(OpsError::Forbidden(
                        "Cannot disable a project with enabled children.".into(),
                    ));
                }
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

    /// Deletes a project without children, with its grants. What it owns elsewhere stays for the administrator, as in
    /// OpenStack.
    pub async fn delete_project(&self, id: ProjectId) -> Result<(), OpsError> {
        if id == ProjectId::DEFAULT {
            return Err(OpsError::Forbidden("The first project cannot be deleted.".into()));
        }
        let refuse = |identity: &super::Identity| {
            let row = identity.projects.get(id).ok_or_else(|| OpsError::not_found::<ProjectRecord>(id))?;
            if identity.projects.of_project(ProjectId(row.domain.0)).any(|p| p.parent == Some(id)) {
                return Err(OpsError::Forbidden("Cannot delete a project that has children.".into()));
            }
            Ok(row.clone())
        };
        refuse(&self.world().read().identity)?;
        self.clear(|view| view.identity.hanging_on_target(Target::Project(id))).await?;
        self.transact(|view| {
            let row = refuse(&view.identity)?;
            let mut draft = Draft::default();
            draft.delete(&row);
            draft.release(name_key(ProjectRecord::NOUN, row.domain, &row.name));
            Ok((draft, ()))
        })
        .await
    }
}

/// The property that names the scheduler of the project's instances.
fn check_scheduler(change: &ProjectChange) -> Result<(), OpsError> {
    match change.extra.get(SCHEDULER_KEY) {
        None | Some(serde_json::Value::Null) => Ok(()),
        Some(value) => SchedulerId::named(value.as_str().unwrap_or_default())
            .map(drop)
            .map_err(|why| OpsError::field(SCHEDULER_KEY, why)),
    }
}

fn check_tags(tags: Option<&BTreeSet<String>>) -> Result<(), OpsError> {
    let Some(tags) = tags else { return Ok(()) };
    let good = |tag: &String| (1..=TAG_MAX).contains(&tag.chars().count()) && !tag.contains(['/', ',']);
    if tags.len() > TAGS_MAX || !tags.iter().all(good) {
        return Err(OpsError::field(
            "tags",
            format!("at most {TAGS_MAX}, each of 1 to {TAG_MAX} characters without '/' and ','"),
        ));
    }
    Ok(())
}
