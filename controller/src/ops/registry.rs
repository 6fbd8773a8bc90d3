//! What the registry does with manifests and tags: take one, find one, forget one. A tag names a manifest's digest; a
//! manifest is in a repository by a link, with or without a tag. Bytes and what they mean are the catalogue's affair
//! (`blobs`, `container_images`). Refuses to know who asks: faces have looked at that.

use super::blobs::{PushRefused, UploadId};
use super::{Draft, Ops, OpsError, Row, View};
use crate::model::*;
use amphi_api::image::Blob;
use amphi_api::repository::{RepositoryVisibility, repository_name, tag_name};
use amphi_api::{ImageId, ProjectId, RepositoryId};
use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use sha2::Digest as _;

/// Largest manifest, in bytes: what the OCI distribution specification 1.1 says that registries should take at least.
pub const MANIFEST_MAX: usize = 4 << 20;
/// A pull is written down once in so long: a record per pull would make readers writers.
const PULLS_EVERY: SignedDuration = SignedDuration::from_hours(1);
/// Names that begin so are mirrors': nobody pushes there.
const MIRROR_PREFIX: &str = "mirror/";

/// How a manifest is named within a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reference {
    Tag(String),
    Digest(Digest),
}

impl Reference {
    /// `sha256:…` or a tag; none: neither.
    pub fn read(text: &str) -> Option<Self> {
        match text.strip_prefix("sha256:") {
            Some(hex) => hex.parse().ok().map(Self::Digest),
            None => tag_name(text).then(|| Self::Tag(text.to_owned())),
        }
    }
}

/// A manifest that was taken.
#[derive(Clone, Debug, PartialEq)]
pub struct Pushed {
    pub digest: Digest,
    pub subject: Option<Digest>,
}

/// A manifest that was found.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    pub digest: Digest,
    pub media_type: String,
    /// In bytes.
    pub size: u64,
}

/// One line of the list of those that speak of a manifest.
#[derive(Clone, Debug, PartialEq)]
pub struct Referrer {
    pub digest: Digest,
    pub media_type: String,
    pub size: u64,
    pub artifact_type: String,
}

fn no_tag(name: &str, reference: &str) -> OpsError {
    OpsError::NotFound { noun: TagRecord::NOUN, id: format!("'{reference}' in '{name}'") }
}

fn immutable(tag: &str) -> OpsError {
    OpsError::conflict(format!("tag '{tag}' never changes and never goes, by its repository's policy"))
}

impl View {
    pub fn repository(&self, project: ProjectId, name: &str) -> Option<&Row<RepositoryRecord>> {
        self.repositories.get(RepositoryId::of(project, name))
    }

    /// Everything that is in a repository.
    pub fn links_in(&self, repository: RepositoryId) -> impl Iterator<Item = &Row<LinkRecord>> {
        self.links.of_project(ProjectId(repository.0))
    }

    pub fn tags_in(&self, repository: RepositoryId) -> impl Iterator<Item = &Row<TagRecord>> {
        self.tags.of_project(ProjectId(repository.0))
    }

    /// The manifest behind a link, as long as the catalogue has it.
    pub fn linked(&self, project: ProjectId, link: &LinkRecord) -> Option<&Row<ManifestRecord>> {
        self.manifests.get(ManifestKey { project, digest: link.digest })
    }

    /// The digest that a reference means, of a manifest that is in the repository.
    pub(super) fn refers(
        &self,
        project: ProjectId,
        name: &str,
        reference: &Reference,
    ) -> Option<&Row<LinkRecord>> {
        let repository = RepositoryId::of(project, name);
        let digest = match reference {
            Reference::Digest(digest) => *digest,
            Reference::Tag(tag) => self.tags.get(TagKey::of(repository, tag))?.digest,
        };
        let link = self.links.get(LinkKey::of(repository, &digest.to_string()))?;
        (link.mirrored.is_some() || self.linked(project, link).is_some()).then_some(link)
    }

    /// What a body starts from when it names a manifest. Of a mirrored index: the one of its images that has come.
    pub(super) fn image_of(&self, project: ProjectId, link: &LinkRecord) -> Option<ImageId> {
        if let Some(image) = self.linked(project, link).and_then(|m| m.image) {
            return Some(image);
        }
        let children = link.mirrored.iter().flat_map(|m| &m.manifests);
        children
            .filter_map(|digest| self.manifests.get(ManifestKey { project, digest: *digest })?.image)
            .next()
    }

    /// Whether an image is in a repository that everybody may pull from.
    pub(super) fn published(&self, image: &ImageRecord) -> bool {
        let project = image.project;
        let public = |r: &&Row<RepositoryRecord>| r.visibility == RepositoryVisibility::Public;
        self.repositories
            .of_project(project)
            .filter(public)
            .flat_map(|r| self.links_in(r.id()))
            .any(|link| self.linked(project, link).is_some_and(|m| m.image == Some(image.id)))
    }

    /// The image that `[PROJECT/]NAME[:TAG]` or `…@sha256:…` names, for a project that asks.
    pub(crate) fn tagged(&self, scope: ProjectId, text: &str) -> Option<&Row<ImageRecord>> {
        let (path, reference) = split(text)?;
        let own = || Some((scope, path));
        let beside = || {
            let (first, rest) = path.split_once('/')?;
            if first == crate::ops::identity::MIRROR {
                return Some((ProjectId::DEFAULT, path));
            }
            Ops::project_beside(self, scope, first).map(|project| (project, rest))
        };
        [own(), beside()].into_iter().flatten().find_map(|(project, name)| {
            let row = self.repository(project, name)?;
            let open = row.visibility == RepositoryVisibility::Public || row.mirror.is_some();
            let link = self.refers(project, name, &reference)?;
            let image = self.images.get(self.image_of(project, link)?)?;
            (project == scope || open || image.open_to(scope)).then_some(image)
        })
    }
}

/// `NAME`, `NAME:TAG` or `NAME@sha256:…`; without a tag `latest` is meant.
fn split(text: &str) -> Option<(&str, Reference)> {
    let (path, reference) = match text.split_once('@') {
        Some((path, digest)) => {
            (path, Reference::read(digest).filter(|r| matches!(r, Reference::Digest(_)))?)
        }
        None => match text.rsplit_once(':') {
            Some((path, tag)) => (path, Reference::read(tag)?),
            None => (text, Reference::Tag("latest".into())),
        },
    };
    repository_name(path).then_some((path, reference))
}

impl Ops {
    /// Takes a manifest into a repository, which is made if it is not there. By tag: the tag names it from then on.
    pub async fn push_manifest(
        &self,
        project: ProjectId,
        name: &str,
        reference: &Reference,
        media_type: &str,
        bytes: Bytes,
    ) -> Result<Pushed, PushRefused> {
        if !repository_name(name) {
            return Err(OpsError::field("name", "no name of a repository").into());
        }
        if name.starts_with(MIRROR_PREFIX) {
            return Err(OpsError::Forbidden("nobody pushes to a mirror".into()).into());
        }
        if bytes.len() > MANIFEST_MAX {
            return Err(OpsError::TooLarge(MANIFEST_MAX as u64).into());
        }
        let digest = Digest(sha2::Sha256::digest(&bytes).into());
        if let Reference::Digest(said) = reference
            && *said != digest
        {
            let message = format!("the manifest's is sha256:{digest}, not sha256:{said}");
            return Err(OpsError::field("digest", message).into());
        }
        self.refuse_immutable(project, name, reference, digest)?;
        let put = self.put_container(project, name, media_type, bytes).await?;
        let now = Timestamp::now();
        self.transact(|view| {
            let mut draft = Draft::default();
            let key = ManifestKey { project, digest: put.digest };
            let manifest = view.manifests.get(key);
            // Somebody may have deleted it again meanwhile.
            let gone = || OpsError::Unavailable("the manifest was deleted meanwhile; push it again".into());
            draft.guard(manifest.ok_or_else(gone)?);
            place(view, &mut draft, project, name, reference, put.digest, None, now)?;
            Ok((draft, ()))
        })
        .await?;
        Ok(Pushed { digest: put.digest, subject: put.subject })
    }

    /// Before anything is kept: a tag that never changes cannot be pushed to.
    fn refuse_immutable(
        &self,
        project: ProjectId,
        name: &str,
        reference: &Reference,
        digest: Digest,
    ) -> Result<(), OpsError> {
        let Reference::Tag(tag) = reference else { return Ok(()) };
        let view = self.world().read();
        let Some(row) = view.repository(project, name) else { return Ok(()) };
        let present = view.tags.get(TagKey::of(row.id(), tag));
        match present.is_some_and(|present| present.digest != digest && row.keeps(tag)) {
            true => Err(immutable(tag)),
            false => Ok(()),
        }
    }

    pub fn find_manifest(
        &self,
        project: ProjectId,
        name: &str,
        reference: &Reference,
    ) -> Result<Found, OpsError> {
        let view = self.world().read();
        let text = match reference {
            Reference::Tag(tag) => tag.clone(),
            Reference::Digest(digest) => format!("sha256:{digest}"),
        };
        let link = view.refers(project, name, reference).ok_or_else(|| no_tag(name, &text))?;
        let (media_type, size) = match (view.linked(project, link), &link.mirrored) {
            (Some(manifest), _) => (manifest.media_type.clone(), manifest.size),
            (None, Some(mirrored)) => (mirrored.media_type.clone(), mirrored.size),
            (None, None) => return Err(no_tag(name, &text)),
        };
        Ok(Found { digest: link.digest, media_type, size })
    }

    /// The blob, if a manifest of this repository names it: what somebody may see who belongs to no project of its.
    pub fn published_blob(&self, project: ProjectId, name: &str, digest: Digest) -> Option<Blob> {
        let view = self.world().read();
        let text = digest.to_string();
        view.links_in(RepositoryId::of(project, name)).find_map(|link| {
            let named = view.linked(project, link).map(|m| m.blobs.as_slice()).unwrap_or_default();
            let mirrored = link.mirrored.as_ref().map(|m| m.blobs.as_slice()).unwrap_or_default();
            named.iter().chain(mirrored).find(|blob| blob.sha256 == text).cloned()
        })
    }

    /// The tags of a repository, in lexical order.
    pub fn tag_names(&self, project: ProjectId, name: &str) -> Result<Vec<String>, OpsError> {
        let view = self.world().read();
        let row = view.repository(project, name);
        let row = row.ok_or_else(|| OpsError::not_found::<RepositoryRecord>(name))?;
        let mut names: Vec<String> = view.tags_in(row.id()).map(|tag| tag.name.clone()).collect();
        names.sort();
        Ok(names)
    }

    /// What in a repository says something of a manifest, which need not be there itself.
    pub fn referrers_of(&self, project: ProjectId, name: &str, subject: Digest) -> Vec<Referrer> {
        let view = self.world().read();
        let links = view.links_in(RepositoryId::of(project, name));
        let found =
            links.filter_map(|link| view.linked(project, link)).filter(|m| m.subject == Some(subject));
        found
            .map(|m| Referrer {
                digest: m.key.digest,
                media_type: m.media_type.clone(),
                size: m.size,
                artifact_type: m.artifact_type.clone(),
            })
            .collect()
    }

    /// Takes a tag away; its manifest stays, untagged, until it is deleted or retention takes it.
    pub async fn untag(&self, project: ProjectId, name: &str, tag: &str) -> Result<(), OpsError> {
        self.transact(|view| {
            let id = RepositoryId::of(project, name);
            let row = view.tags.get(TagKey::of(id, tag)).ok_or_else(|| no_tag(name, tag))?;
            if view.repositories.get(id).is_some_and(|repository| repository.keeps(tag)) {
                return Err(immutable(tag));
            }
            let mut draft = Draft::default();
            draft.delete(row);
            Ok((draft, ()))
        })
        .await
    }

    /// Takes a manifest and its tags out of a repository; where no other repository of the project has it, the catalogue
    /// forgets it, which is refused while a body uses its image.
    pub async fn delete_manifest(
        &self,
        project: ProjectId,
        name: &str,
        digest: Digest,
    ) -> Result<(), OpsError> {
        let unlink = |view: &View| -> Result<(Draft, bool), OpsError> {
            let id = RepositoryId::of(project, name);
            let link = view.links.get(LinkKey::of(id, &digest.to_string()));
            let link = link.ok_or_else(|| no_tag(name, &format!("sha256:{digest}")))?;
            let repository = view.repositories.get(id);
            let mut draft = Draft::default();
            for tag in view.tags_in(id).filter(|tag| tag.digest == digest) {
                if repository.is_some_and(|r| r.keeps(&tag.name)) {
                    return Err(immutable(&tag.name));
                }
                draft.delete(tag);
            }
            draft.delete(link);
            let elsewhere = view.repositories.of_project(project).filter(|r| r.id() != id);
            let linked = |r: &Row<RepositoryRecord>| {
                view.links.get(LinkKey::of(r.id(), &digest.to_string())).is_some()
            };
            Ok((draft, elsewhere.into_iter().any(linked)))
        };
        let last = {
            let view = self.world().read();
            let (_, elsewhere) = unlink(&view)?;
            !elsewhere && view.manifests.get(ManifestKey { project, digest }).is_some()
        };
        // First, since this is what may be refused; a link without its manifest leads nowhere.
        if last {
            self.delete_container(project, digest).await?;
        }
        self.transact(|view| Ok((unlink(view)?.0, ()))).await
    }

    /// The file of an upload that is under way, for those who read behind the one that writes.
    pub async fn open_upload(&self, scope: ProjectId, id: UploadId) -> Result<tokio::fs::File, PushRefused> {
        self.upload(scope, id).await?;
        Ok(self.blobs.open_upload(id).await?)
    }

    /// Puts what an upstream has given into its mirror. Its bytes are here as a blob; what it names comes when it is asked for.
    pub async fn place_mirrored(
        &self,
        project: ProjectId,
        name: &str,
        reference: &Reference,
        digest: Digest,
        (upstream, manifest): (&str, Mirrored),
    ) -> Result<(), OpsError> {
        self.transact(|view| {
            let mut draft = Draft::default();
            let mirror = Some((upstream, manifest.clone()));
            place(view, &mut draft, project, name, reference, digest, mirror, Timestamp::now())?;
            Ok((draft, ()))
        })
        .await
    }

    /// Writes down that something was pulled, once an hour. Nobody waits for it, and nobody misses it if it fails.
    pub fn note_pull(self: &std::sync::Arc<Self>, project: ProjectId, name: &str, reference: &Reference) {
        let now = Timestamp::now();
        let due = move |at: Option<Timestamp>| at.is_none_or(|at| now.duration_since(at) >= PULLS_EVERY);
        let id = RepositoryId::of(project, name);
        let rows = move |view: &View, reference: &Reference| {
            let tag = match reference {
                Reference::Tag(tag) => view.tags.get(TagKey::of(id, tag)).cloned(),
                Reference::Digest(_) => None,
            };
            let digest = match reference {
                Reference::Digest(digest) => Some(*digest),
                Reference::Tag(_) => tag.as_ref().map(|tag| tag.digest),
            };
            let link = digest.and_then(|d| view.links.get(LinkKey::of(id, &d.to_string())).cloned());
            (tag.filter(|t| due(t.pulled_at)), link.filter(|l| due(l.pulled_at)))
        };
        let (tag, link) = rows(&self.world().read(), reference);
        if tag.is_none() && link.is_none() {
            return;
        }
        let (ops, reference) = (self.clone(), reference.clone());
        tokio::spawn(async move {
            let noted = ops.transact(|view| {
                let mut draft = Draft::default();
                let (tag, link) = rows(view, &reference);
                if let Some(row) = tag {
                    draft.update(&row, &TagRecord { pulled_at: Some(now), ..(*row.record).clone() });
                }
                if let Some(row) = link {
                    draft.update(&row, &LinkRecord { pulled_at: Some(now), ..(*row.record).clone() });
                }
                Ok((draft, ()))
            });
            if let Err(error) = noted.await {
                tracing::debug!(%error, "a pull was not noted");
            }
        });
    }
}

/// An image stays that a tag names which never goes.
pub(super) fn refuse_kept(view: &View, image: &ImageRecord) -> Result<(), OpsError> {
    let project = image.project;
    let names = |tag: &TagRecord| {
        let manifest = view.manifests.get(ManifestKey { project, digest: tag.digest });
        manifest.is_some_and(|manifest| manifest.image == Some(image.id))
    };
    for repository in view.repositories.of_project(project).filter(|r| !r.immutable.is_empty()) {
        let kept = view.tags_in(repository.id()).find(|tag| repository.keeps(&tag.name) && names(tag));
        if let Some(tag) = kept {
            return Err(immutable(&tag.name));
        }
    }
    Ok(())
}

/// Puts a manifest into a repository, and its tag; the repository is made if it is not there.
#[allow(clippy::too_many_arguments)]
pub(super) fn place(
    view: &View,
    draft: &mut Draft,
    project: ProjectId,
    name: &str,
    reference: &Reference,
    digest: Digest,
    mirror: Option<(&str, Mirrored)>,
    now: Timestamp,
) -> Result<(), OpsError> {
    let (upstream, mirrored) = mirror.map_or((None, None), |(upstream, m)| (Some(upstream), Some(m)));
    let repository = match view.repository(project, name) {
        Some(row) => {
            draft.guard(row);
            row.record.clone()
        }
        None => {
            let mirror = upstream.map(str::to_owned);
            let record = RepositoryRecord { mirror, ..RepositoryRecord::new(project, name, now) };
            draft.create(&record);
            record.into()
        }
    };
    let id = repository.id();
    let known = view.links.get(LinkKey::of(id, &digest.to_string()));
    let pulled_at = known.and_then(|link| link.pulled_at);
    let link = LinkRecord { repository: id, digest, mirrored, pushed_at: now, pulled_at };
    draft.put_record(known, &link);
    let Reference::Tag(tag) = reference else { return Ok(()) };
    let known = view.tags.get(TagKey::of(id, tag));
    if known.is_some_and(|known| known.digest != digest && repository.keeps(tag)) {
        return Err(immutable(tag));
    }
    let record = TagRecord {
        repository: id,
        name: tag.clone(),
        digest,
        pushed_at: now,
        pulled_at: known.and_then(|tag| tag.pulled_at),
        checked_at: upstream.map(|_| now),
    };
    draft.put_record(known, &record);
    Ok(())
}

/// What a manifest of an upstream names. The refusal says what is wrong with it.
pub fn mirrored(kind: &str, bytes: &[u8]) -> Result<Mirrored, String> {
    #[derive(serde::Deserialize)]
    struct Descriptor {
        digest: String,
        size: u64,
    }
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Manifest {
        media_type: Option<String>,
        config: Option<Descriptor>,
        #[serde(default)]
        layers: Vec<Descriptor>,
        #[serde(default)]
        manifests: Vec<Descriptor>,
    }
    let read: Manifest =
        serde_json::from_slice(bytes).map_err(|e| format!("its manifest cannot be read: {e}"))?;
    let media_type = read.media_type.unwrap_or_else(|| kind.to_owned());
    if !MANIFEST_KINDS.contains(&media_type.as_str()) {
        return Err(format!("its manifest is of the kind {media_type:?}, which is not known here"));
    }
    let digest = |d: &Descriptor| {
        let read = d.digest.strip_prefix("sha256:").and_then(|hex| hex.parse::<Digest>().ok());
        read.ok_or_else(|| format!("its manifest names {:?}, which is no SHA-256 digest", d.digest))
    };
    let blobs = read.config.iter().chain(&read.layers);
    let blobs = blobs.map(|d| Ok(Blob { sha256: digest(d)?.to_string(), size: d.size }));
    Ok(Mirrored {
        media_type,
        size: bytes.len() as u64,
        blobs: blobs.collect::<Result<_, String>>()?,
        manifests: read.manifests.iter().map(digest).collect::<Result<_, String>>()?,
    })
}

/// What is mirrored: OCI's image and index, Docker's schema 2 and its list.
const MANIFEST_KINDS: [&str; 4] = [
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_upstreams_give() {
        let d = format!("sha256:{}", "ab".repeat(32));
        let kind = MANIFEST_KINDS[2];
        let read = |kind: &str, json: serde_json::Value| mirrored(kind, json.to_string().as_bytes());
        let one = serde_json::json!({"digest": d, "size": 7});
        let image = read(kind, serde_json::json!({"config": one, "layers": [one, one]})).unwrap();
        assert_eq!((image.blobs.len(), image.media_type.as_str()), (3, kind));
        let index =
            read(kind, serde_json::json!({"mediaType": MANIFEST_KINDS[1], "manifests": [one]})).unwrap();
        assert_eq!(
            (index.manifests, index.media_type.as_str()),
            (vec![Digest([0xab; 32])], MANIFEST_KINDS[1])
        );
        assert!(read("text/html", serde_json::json!({})).is_err());
        assert!(read(kind, serde_json::json!({"layers": [{"digest": "md5:x", "size": 1}]})).is_err());
        assert!(mirrored(kind, b"<html>").is_err());
    }

    #[test]
    fn references() {
        let hex = "ab".repeat(32);
        let tag = |name: &str| Reference::Tag(name.into());
        for (text, want) in [
            ("web", Some(("web", tag("latest")))),
            ("web:v1", Some(("web", tag("v1")))),
            ("shop/web:v1", Some(("shop/web", tag("v1")))),
            ("Web:v1", None),
            ("web:", None),
            ("web:v1:v2", None),
            ("web@sha256:x", None),
            ("a b", None),
        ] {
            assert_eq!(split(text), want, "{text}");
        }
        let text = format!("shop/web@sha256:{hex}");
        assert_eq!(split(&text), Some(("shop/web", Reference::Digest(Digest([0xab; 32])))));
        assert_eq!(Reference::read(&format!("sha256:{}", hex.to_uppercase())), None);
        assert_eq!(Reference::read(".no"), None);
    }
}
