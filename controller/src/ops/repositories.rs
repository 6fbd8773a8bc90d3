//! Repositories for people: what is in them, their policy, and what retention takes.

use super::list::find;
use super::{Draft, ListQuery, Ops, OpsError, Row, View};
use crate::model::*;
use amphi_api::repository::{Repository, RepositoryChange, Tag};
use amphi_api::{ProjectId, RepositoryId};
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};

impl Ops {
    pub fn repositories(&self, scope: ProjectId, query: &ListQuery) -> Result<Vec<Repository>, OpsError> {
        let view = self.world().read();
        let rows = query.rows(&view.repositories, scope, |_| true)?;
        Ok(rows.into_iter().map(|row| shown(&view, row)).collect())
    }

    pub fn repository(&self, scope: ProjectId, id: RepositoryId) -> Result<Repository, OpsError> {
        let view = self.world().read();
        Ok(shown(&view, find(&view.repositories, scope, id)?))
    }

    /// In lexical order.
    pub fn tags(&self, scope: ProjectId, id: RepositoryId) -> Result<Vec<Tag>, OpsError> {
        let view = self.world().read();
        let repository = find(&view.repositories, scope, id)?;
        let mut tags: Vec<Tag> =
            view.tags_in(id).filter_map(|tag| shown_tag(&view, repository, tag)).collect();
        tags.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(tags)
    }

    /// What is not named stays.
    pub async fn change_repository(
        &self,
        scope: ProjectId,
        id: RepositoryId,
        change: &RepositoryChange,
    ) -> Result<Repository, OpsError> {
        change.check()?;
        self.transact(|view| {
            let row = find(&view.repositories, scope, id)?;
            let mut record = (*row.record).clone();
            if let Some(description) = &change.description {
                record.description.clone_from(description);
            }
            if let Some(visibility) = change.visibility {
                record.visibility = visibility;
            }
            if let Some(immutable) = &change.immutable {
                record.immutable.clone_from(immutable);
            }
            if let Some(retention) = change.retention {
                record.retention = retention;
            }
            let mut draft = Draft::default();
            if record != *row.record {
                draft.update(row, &record);
            }
            Ok((draft, ()))
        })
        .await?;
        self.repository(scope, id)
    }

    /// By id, as the native face has it.
    pub async fn untag_in(&self, scope: ProjectId, id: RepositoryId, tag: &str) -> Result<(), OpsError> {
        let name = find(&self.world().read().repositories, scope, id)?.name.clone();
        self.untag(scope, &name, tag).await
    }

    /// Forgets a repository that nothing is in.
    pub async fn delete_repository(&self, scope: ProjectId, id: RepositoryId) -> Result<(), OpsError> {
        self.transact(|view| {
            let row = find(&view.repositories, scope, id)?;
            let links = view.links_in(id).filter(|link| alive(view, scope, link)).count();
            if links > 0 {
                return Err(OpsError::conflict(format!("{links} manifests are in it; delete them first")));
            }
            let mut draft = Draft::default();
            // Left over from images that were deleted by themselves.
            view.links_in(id).for_each(|link| draft.delete(link));
            view.tags_in(id).for_each(|tag| draft.delete(tag));
            draft.delete(row);
            Ok((draft, ()))
        })
        .await
    }

    /// What retention removes now, repository by repository, and links whose manifest is gone. What cannot go yet (a body
    /// uses it) stays until the next time. The number of things that went.
    pub async fn retain(&self, now: Timestamp) -> Result<usize, OpsError> {
        let due: Vec<Due> = {
            let view = self.world().read();
            view.repositories.iter().map(|row| Due::of(&view, row, now)).collect()
        };
        let mut gone = 0;
        for due in due {
            for tag in &due.tags {
                gone += usize::from(self.went(&due, tag, self.untag(due.project, &due.name, tag).await));
            }
            for digest in &due.manifests {
                let deleted = self.delete_manifest(due.project, &due.name, *digest).await;
                gone += usize::from(self.went(&due, &format!("sha256:{digest}"), deleted));
            }
        }
        Ok(gone)
    }

    fn went(&self, due: &Due, what: &str, outcome: Result<(), OpsError>) -> bool {
        match outcome {
            Ok(()) => {
                tracing::info!(project = %due.project, repository = due.name, what, "removed by retention");
                true
            }
            Err(error) => {
                tracing::debug!(repository = due.name, what, %error, "stays for now");
                false
            }
        }
    }
}

/// What is to go from one repository.
struct Due {
    project: ProjectId,
    name: String,
    tags: Vec<String>,
    manifests: Vec<Digest>,
}

impl Due {
    fn of(view: &View, row: &Row<RepositoryRecord>, now: Timestamp) -> Self {
        let id = row.id();
        let tags: Vec<&TagRecord> = view.tags_in(id).map(|tag| &*tag.record).collect();
        let leaving = tags_due(row, &tags, now);
        // What loses its last tag now is looked at the next time: it was used when it had one.
        let tagged: BTreeSet<Digest> = tags.iter().map(|tag| tag.digest).collect();
        let links: Vec<&Row<LinkRecord>> = view.links_in(id).collect();
        let sights: Vec<LinkSight> = links
            .iter()
            .map(|link| LinkSight::of(link, view.linked(row.project, link).map(|m| &*m.record)))
            .collect();
        let lost = links.iter().filter(|link| !alive(view, row.project, link)).map(|link| link.digest);
        let mut manifests = links_due(row, &sights, &tagged, now);
        manifests.extend(lost.filter(|digest| !manifests.contains(digest)).collect::<Vec<_>>());
        Self {
            project: row.project,
            name: row.name.clone(),
            tags: leaving.into_iter().map(str::to_owned).collect(),
            manifests,
        }
    }
}

fn alive(view: &View, project: ProjectId, link: &LinkRecord) -> bool {
    link.mirrored.is_some() || view.linked(project, link).is_some()
}

fn shown(view: &View, row: &RepositoryRecord) -> Repository {
    let id = row.id();
    let links: Vec<_> = view.links_in(id).filter(|link| alive(view, row.project, link)).collect();
    // An index names manifests that are counted by themselves: by digest nothing is counted twice.
    let mut sizes = BTreeMap::new();
    for link in &links {
        let manifest = view.linked(row.project, link);
        let size = manifest.map(|m| m.size).or(link.mirrored.as_ref().map(|m| m.size)).unwrap_or(0);
        sizes.insert(link.digest.to_string(), size);
        let named = manifest.map(|m| m.blobs.as_slice()).unwrap_or_default();
        let mirrored = link.mirrored.as_ref().map(|m| m.blobs.as_slice()).unwrap_or_default();
        sizes.extend(named.iter().chain(mirrored).map(|blob| (blob.sha256.clone(), blob.size)));
    }
    let tags = view.tags_in(id).filter(|tag| shown_tag(view, row, tag).is_some()).count();
    Repository {
        id,
        project: row.project,
        name: row.name.clone(),
        description: row.description.clone(),
        visibility: row.visibility,
        immutable: row.immutable.clone(),
        retention: row.retention,
        tags: tags as u64,
        manifests: links.len() as u64,
        size: sizes.values().sum(),
        mirror: row.mirror.clone(),
        created_at: row.created_at,
    }
}

/// None: what it named is gone.
fn shown_tag(view: &View, repository: &RepositoryRecord, tag: &TagRecord) -> Option<Tag> {
    let link = view.links.get(LinkKey::of(tag.repository, &tag.digest.to_string()))?;
    let manifest = view.linked(repository.project, link);
    let (media_type, own, blobs) = match (manifest, &link.mirrored) {
        (Some(manifest), _) => (&manifest.media_type, manifest.size, &manifest.blobs),
        (None, Some(mirrored)) => (&mirrored.media_type, mirrored.size, &mirrored.blobs),
        (None, None) => return None,
    };
    Some(Tag {
        name: tag.name.clone(),
        digest: format!("sha256:{}", tag.digest),
        media_type: media_type.clone(),
        image: view.image_of(repository.project, link),
        size: own + blobs.iter().map(|blob| blob.size).sum::<u64>(),
        immutable: repository.keeps(&tag.name),
        pushed_at: tag.pushed_at,
        pulled_at: tag.pulled_at,
    })
}
