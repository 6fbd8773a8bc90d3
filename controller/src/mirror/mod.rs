//! The pull-through mirror: what is asked for below `mirror/UPSTREAM/` and not here is fetched from there, checked by its
//! digest, given to whoever asks while it is stored, and kept. A tag is taken to be what it was until its time is over;
//! then the upstream is asked, and while it does not answer the old one is given and told to be stale. One fetch serves all
//! that ask at once. What has come whole is an image of the catalogue like any other, of the administrators' project.

mod flight;
mod upstream;

pub use upstream::{MirrorConfig, Upstream, UpstreamError};

use crate::model::{Digest, LinkKey, ManifestKey, Mirrored, TagKey, TagRecord};
use crate::ops::blobs::PushRefused;
use crate::ops::identity::Place;
use crate::ops::registry::{Found, Reference, mirrored};
use crate::ops::{Ops, OpsError};
use anyhow::Context;
use bytes::Bytes;
use flight::{Flight, Flights};
use futures_util::StreamExt;
use jiff::Timestamp;
use sha2::Digest as _;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use upstream::Bytestream;

/// Whether what is given is what the upstream has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    Fresh,
    /// The upstream does not answer: this is what it had.
    Stale,
}

pub struct Mirror {
    ops: Arc<Ops>,
    upstreams: BTreeMap<String, Arc<Upstream>>,
    flights: Flights,
    /// Who asks for the same manifest waits for the one that asks the upstream.
    turns: Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>,
}

impl Mirror {
    pub fn open(ops: Arc<Ops>, settings: &BTreeMap<String, MirrorConfig>) -> anyhow::Result<Arc<Self>> {
        let open = |(name, config): (&String, &MirrorConfig)| {
            let fits = amphi_api::repository::repository_name(name) && !name.contains('/');
            anyhow::ensure!(fits, "[mirror.{name}]: no part of a repository's name");
            let upstream = Upstream::open(config).with_context(|| format!("in [mirror.{name}]"))?;
            Ok((name.clone(), Arc::new(upstream)))
        };
        let upstreams = settings.iter().map(open).collect::<anyhow::Result<_>>()?;
        Ok(Arc::new(Self { ops, upstreams, flights: Flights::default(), turns: Mutex::default() }))
    }

    /// The upstream of a place, and the repository's name there.
    fn upstream<'a>(&self, place: &'a Place) -> Result<(&'a str, &'a str, Arc<Upstream>), OpsError> {
        let (upstream, name) = place.mirror.as_ref().ok_or_else(|| unknown(place))?;
        let found = self.upstreams.get(upstream).cloned().ok_or_else(|| unknown(place))?;
        Ok((upstream, name, found))
    }

    fn turn(&self, what: String) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.retain(|_, turn| turn.strong_count() > 0);
        if let Some(turn) = turns.get(&what).and_then(Weak::upgrade) {
            return turn;
        }
        let turn = Arc::default();
        turns.insert(what, Arc::downgrade(&turn));
        turn
    }

    /// A manifest that is here and as fresh as it has to be.
    fn known(&self, place: &Place, reference: &Reference, upstream: &Upstream) -> Option<Found> {
        let found = self.ops.find_manifest(place.project, &place.name, reference).ok()?;
        let Reference::Tag(tag) = reference else { return Some(found) };
        let checked = {
            let view = self.ops.world().read();
            view.tags.get(TagKey::of(place.id(), tag)).and_then(|tag| tag.checked_at)
        };
        let age = Timestamp::now().duration_since(checked?);
        // A time that is yet to come was written by another clock.
        (!age.is_negative() && age < upstream.expiry).then_some(found)
    }

    pub async fn manifest(
        &self,
        place: &Place,
        reference: &Reference,
    ) -> Result<(Found, Freshness), OpsError> {
        let (_, name, upstream) = self.upstream(place)?;
        if let Some(found) = self.known(place, reference, &upstream) {
            return Ok((found, Freshness::Fresh));
        }
        let turn = self.turn(format!("{} {reference:?}", place.name));
        let _turn = turn.lock().await;
        if let Some(found) = self.known(place, reference, &upstream) {
            return Ok((found, Freshness::Fresh));
        }
        let old = self.ops.find_manifest(place.project, &place.name, reference).ok();
        match (self.fetch(place, name, &upstream, reference).await, old) {
            (Ok(found), _) => Ok((found, Freshness::Fresh)),
            (Err(Fetch::Upstream(UpstreamError::Absent)), old) => {
                if let (Reference::Tag(tag), Some(_)) = (reference, old) {
                    tracing::info!(repository = place.name, tag, "the upstream has the tag no more");
                    self.ops.untag(place.project, &place.name, tag).await?;
                }
                Err(unknown(place))
            }
            (Err(error), Some(old)) => {
                tracing::warn!(repository = place.name, %error, "the upstream is not asked; what it had is given");
                Ok((old, Freshness::Stale))
            }
            (Err(Fetch::Upstream(UpstreamError::Refused(why))), None) => {
                Err(OpsError::Forbidden(format!("the upstream refuses: {why}")))
            }
            (Err(Fetch::Upstream(error)), None) => Err(OpsError::Unavailable(error.to_string())),
            (Err(Fetch::Kept(PushRefused::Ops(error))), None) => Err(error),
            (Err(Fetch::Kept(error)), None) => Err(OpsError::Unavailable(error.to_string())),
        }
    }

    async fn fetch(
        &self,
        place: &Place,
        name: &str,
        upstream: &Upstream,
        reference: &Reference,
    ) -> Result<Found, Fetch> {
        let text = match reference {
            Reference::Digest(digest) => format!("sha256:{digest}"),
            Reference::Tag(tag) => {
                // A manifest that is here need not come again.
                if let Some(digest) = upstream.tag_digest(name, tag).await?
                    && let Some(found) = self.confirm(place, tag, digest).await?
                {
                    return Ok(found);
                }
                tag.clone()
            }
        };
        let (kind, bytes) = upstream.manifest(name, &text).await?;
        let digest = Digest(sha2::Sha256::digest(&bytes).into());
        if let Reference::Digest(asked) = reference
            && *asked != digest
        {
            let message = format!("it gives sha256:{digest} for sha256:{asked}; nothing was kept");
            return Err(UpstreamError::Refused(message).into());
        }
        let manifest = mirrored(&kind, &bytes).map_err(UpstreamError::Refused)?;
        self.keep_bytes(place, digest, bytes.clone()).await?;
        self.place(place, reference, digest, manifest).await?;
        self.complete(place, digest).await;
        Ok(self.ops.find_manifest(place.project, &place.name, &Reference::Digest(digest))?)
    }

    /// The tag names this digest there: where its manifest is here, that is all that is to be known.
    async fn confirm(&self, place: &Place, tag: &str, digest: Digest) -> Result<Option<Found>, OpsError> {
        let reference = Reference::Digest(digest);
        let Ok(found) = self.ops.find_manifest(place.project, &place.name, &reference) else {
            return Ok(None);
        };
        let manifest = {
            let view = self.ops.world().read();
            view.links
                .get(LinkKey::of(place.id(), &digest.to_string()))
                .and_then(|link| link.mirrored.clone())
        };
        let Some(manifest) = manifest else { return Ok(None) };
        self.place(place, &Reference::Tag(tag.to_owned()), digest, manifest).await?;
        Ok(Some(found))
    }

    async fn place(
        &self,
        place: &Place,
        reference: &Reference,
        digest: Digest,
        manifest: Mirrored,
    ) -> Result<(), OpsError> {
        let upstream = place.mirror.as_ref().map(|(upstream, _)| upstream.as_str()).unwrap_or_default();
        self.ops.place_mirrored(place.project, &place.name, reference, digest, (upstream, manifest)).await
    }

    async fn keep_bytes(&self, place: &Place, digest: Digest, bytes: Bytes) -> Result<(), PushRefused> {
        let id = self.ops.begin_upload(place.project).await?;
        let stream = futures_util::stream::iter([Ok(bytes)]).boxed();
        self.ops.finish_upload(place.project, id, stream, &digest.to_string()).await?;
        Ok(())
    }

    /// A blob's size and its bytes, as they come from the upstream.
    pub async fn blob(
        self: &Arc<Self>,
        place: &Place,
        digest: Digest,
    ) -> Result<(u64, Bytestream), OpsError> {
        let (_, name, upstream) = self.upstream(place)?;
        let (mirror, place, name) = (self.clone(), place.clone(), name.to_owned());
        let flight = self.flights.join((place.name.clone(), digest), |flight| async move {
            mirror.fly(&flight, &place, &name, &upstream, digest).await;
        });
        let file = flight.begun().await?;
        Ok((file.size, flight.read(file)))
    }

    /// Fetches a blob. Goes on when nobody waits any more: the next one asks soon.
    async fn fly(&self, flight: &Flight, place: &Place, name: &str, upstream: &Upstream, digest: Digest) {
        let outcome = async {
            let (size, bytes) = upstream.blob(name, digest).await?;
            let id = self.ops.begin_upload(place.project).await?;
            let kept = async {
                let file = self.ops.open_upload(place.project, id).await?;
                flight.begin(size, file);
                self.ops.append_upload(place.project, id, Some(0), flight.counted(bytes)).await?;
                let nothing = futures_util::stream::empty().boxed();
                self.ops.finish_upload(place.project, id, nothing, &digest.to_string()).await
            };
            let kept = kept.await;
            if kept.is_err() {
                let _ = self.ops.cancel_upload(place.project, id).await;
            }
            kept.map_err(Fetch::from)
        };
        match outcome.await {
            Ok(_) => {
                flight.land();
                let waiting: Vec<Digest> = {
                    let view = self.ops.world().read();
                    let text = digest.to_string();
                    let names =
                        |blobs: &[amphi_api::image::Blob]| blobs.iter().any(|blob| blob.sha256 == text);
                    let links = view.links_in(place.id());
                    links
                        .filter(|l| l.mirrored.as_ref().is_some_and(|m| names(&m.blobs)))
                        .map(|l| l.digest)
                        .collect()
                };
                for manifest in waiting {
                    self.complete(place, manifest).await;
                }
            }
            Err(error) => {
                tracing::warn!(repository = place.name, %digest, %error, "a blob was not fetched");
                flight.crash(match error {
                    Fetch::Upstream(UpstreamError::Absent) => {
                        OpsError::NotFound { noun: "blob", id: digest.to_string() }
                    }
                    Fetch::Upstream(UpstreamError::Refused(why)) => OpsError::Forbidden(why),
                    Fetch::Kept(PushRefused::Ops(error)) => error,
                    error => OpsError::Unavailable(error.to_string()),
                });
            }
        }
    }

    /// Makes an image of the catalogue of a manifest all of whose blobs have come.
    async fn complete(&self, place: &Place, digest: Digest) {
        let made = async {
            let link = {
                let view = self.ops.world().read();
                if view.manifests.get(ManifestKey { project: place.project, digest }).is_some() {
                    return Ok(());
                }
                view.links
                    .get(LinkKey::of(place.id(), &digest.to_string()))
                    .and_then(|link| link.mirrored.clone())
            };
            let Some(manifest) = link.filter(|m| m.manifests.is_empty()) else { return Ok(()) };
            for blob in &manifest.blobs {
                if self.ops.visible_blob(place.project, &blob.sha256).await?.is_none() {
                    return Ok(());
                }
            }
            let (read, _) = self.ops.read_blob(&digest.to_string(), 0).await?;
            let mut parts = std::pin::pin!(read.stream());
            let mut bytes = Vec::new();
            while let Some(part) = parts.next().await {
                bytes.extend_from_slice(&part.map_err(|e| OpsError::Unavailable(e.to_string()))?);
            }
            self.ops.put_container(place.project, &place.name, &manifest.media_type, bytes.into()).await?;
            Ok::<(), PushRefused>(())
        };
        // It can be pulled all the same.
        if let Err(error) = made.await {
            tracing::info!(repository = place.name, %digest, %error, "nothing starts from this mirrored manifest");
        }
    }
}

fn unknown(place: &Place) -> OpsError {
    OpsError::not_found::<TagRecord>(&place.full)
}

/// Why something was not fetched: the other side, or ours.
#[derive(Debug, thiserror::Error)]
enum Fetch {
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    #[error(transparent)]
    Kept(#[from] PushRefused),
}

impl From<OpsError> for Fetch {
    fn from(error: OpsError) -> Self {
        Self::Kept(error.into())
    }
}

/// For tests of what the records say.
#[cfg(test)]
impl Mirror {
    pub fn none(ops: Arc<Ops>) -> Arc<Self> {
        Self::open(ops, &BTreeMap::new()).expect("no settings are good settings")
    }
}
