//! What is said of images, and who finds them: descriptions, versions, the market of images that everybody may start from,
//! layers as images of their own. Reads and words alone; bytes are elsewhere.

use super::identity::Caller;
use super::list::find;
use super::{Draft, Ops, OpsError, Row, View, image_bytes, quotas};
use crate::model::{ImageChange, ImageRecord, QuotaKey, Record, Resource, Visibility, change_image};
use amphi_api::image::{
    Image, ImageDetail, ImageEdit, ImageFormat, ImageLimit, ImageSaid, ImageState, ImageUsage,
    ImageVisibility, Layer, LayerImage, MarketImage,
};
use amphi_api::repository::RepositoryVisibility;
use amphi_api::{ImageId, ProjectId};
use jiff::Timestamp;
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

/// Glance's properties that say what the native face has words for.
pub const DESCRIPTION: &str = "description";
pub const VERSION: &str = "version";

/// Most entries of one page of the market.
const PAGE_MAX: u32 = 1000;

/// What a visitor of the market asks for.
#[derive(Clone, Debug, Default)]
pub struct MarketQuery {
    /// Exactly this name.
    pub name: Option<String>,
    /// In the name or the description, whatever the case.
    pub search: Option<String>,
    /// The project's name or id.
    pub owner: Option<String>,
    pub format: Option<ImageFormat>,
    /// Those of the community, too.
    pub community: bool,
    /// 1 to 1,000. Default: all.
    pub limit: Option<u32>,
    /// Only what comes after this id.
    pub marker: Option<ImageId>,
}

impl Ops {
    pub fn image_detail(&self, scope: ProjectId, id: ImageId) -> Result<ImageDetail, OpsError> {
        let view = self.world().read();
        let row =
            view.images.get(id).filter(|row| !row.closing && (row.open_to(scope) || view.published(row)));
        row.map(|row| row.detail()).ok_or_else(|| OpsError::not_found::<ImageRecord>(id))
    }

    /// Only an admin makes an image public (glance's policy `publicize_image`).
    pub async fn edit_image(
        &self,
        caller: &Caller,
        scope: ProjectId,
        id: ImageId,
        edit: &ImageEdit,
    ) -> Result<ImageDetail, OpsError> {
        edit.check()?;
        if edit.visibility == Some(ImageVisibility::Public) && !caller.is_admin() {
            return Err(OpsError::Forbidden(
                "only administrators make images public; community ones are yours".into(),
            ));
        }
        self.transact(|view| {
            let row = find(&view.images, scope, id)?;
            let mut record = (*row.record).clone();
            for change in changes(edit, &record) {
                change_image(&mut record, &change, Timestamp::now())?;
            }
            let mut draft = Draft::default();
            draft.update(row, &record);
            Ok((draft, ()))
        })
        .await?;
        self.image_detail(scope, id)
    }

    /// Images that everybody may start from: the oldest first.
    pub fn market(&self, query: &MarketQuery) -> Result<Vec<MarketImage>, OpsError> {
        if query.limit.is_some_and(|limit| limit == 0 || limit > PAGE_MAX) {
            return Err(OpsError::field("limit", format!("must be 1 to {PAGE_MAX}")));
        }
        let view = self.world().read();
        let published = view.all_published();
        let offered = |row: &&Row<ImageRecord>| {
            let open = match row.traits.visibility {
                Visibility::Public => true,
                Visibility::Community => query.community,
                Visibility::Shared | Visibility::Private => published.contains(&row.id),
            };
            let usable = row.state() == ImageState::Active && !row.traits.deactivated;
            open && usable && !row.closing && !row.traits.hidden && query.marker.is_none_or(|m| row.id > m)
        };
        let rows = view.images.iter().filter(offered).filter_map(|row| {
            let owner = view
                .identity
                .projects
                .get(row.project)
                .map_or_else(|| row.project.to_string(), |p| p.name.clone());
            let found = MarketImage { detail: row.detail(), owner, size: row.view().size() };
            query.fits(&found).then_some(found)
        });
        Ok(rows.take(query.limit.map_or(usize::MAX, |limit| limit as usize)).collect())
    }

    /// The layers of an image, the lowest first, and which of the project's own images they are part of.
    pub fn image_layers(&self, scope: ProjectId, id: ImageId) -> Result<Vec<LayerImage>, OpsError> {
        let image = self.image_detail(scope, id)?.image;
        let view = self.world().read();
        let mut all = layer_images(view.images.of_project(scope).map(|row| (row.id, row.layers.as_slice())));
        Ok(chain(&image.layers)
            .map(|(chain_id, parent, layer)| {
                let mut seen =
                    all.remove(&chain_id).unwrap_or_else(|| as_image(&chain_id, parent.as_deref(), layer));
                if !seen.images.contains(&id) {
                    seen.images.push(id);
                }
                seen
            })
            .collect())
    }

    /// Each layer of all of these images, once; what lies below comes first.
    pub fn layers_of(&self, images: &[Image]) -> Vec<LayerImage> {
        let mut all = layer_images(images.iter().map(|image| (image.id, image.layers.as_slice())));
        let mut listed = Vec::new();
        for image in images {
            listed.extend(chain(&image.layers).filter_map(|(chain_id, ..)| all.remove(&chain_id)));
        }
        listed
    }

    pub fn image_usage(&self, scope: ProjectId) -> ImageUsage {
        let view = self.world().read();
        let limit_mib = quotas::limit(&view, scope, None, Resource::ImageSizeTotal.word());
        ImageUsage { limit_mib, used_bytes: image_bytes::used(&view, scope) }
    }

    pub async fn limit_images(&self, project: ProjectId, limit: ImageLimit) -> Result<ImageUsage, OpsError> {
        let limits = BTreeMap::from([(Resource::ImageSizeTotal.word().to_owned(), limit.limit_mib)]);
        self.set_quotas(QuotaKey::Project(project), &limits, true).await?;
        Ok(self.image_usage(project))
    }
}

impl MarketQuery {
    fn fits(&self, found: &MarketImage) -> bool {
        let (image, said) = (&found.detail.image, &found.detail.said);
        let has = |text: &str, part: &str| text.to_lowercase().contains(&part.to_lowercase());
        let search = |part: &String| {
            has(&image.name, part) || said.description.as_ref().is_some_and(|text| has(text, part))
        };
        self.name.as_ref().is_none_or(|name| *name == image.name)
            && self.search.as_ref().is_none_or(search)
            && self
                .owner
                .as_ref()
                .is_none_or(|o| *o == found.owner || o.parse::<ProjectId>().ok() == Some(image.project))
            && self.format.is_none_or(|format| format == image.format)
    }
}

fn changes(edit: &ImageEdit, record: &ImageRecord) -> Vec<ImageChange> {
    let property = |key: &str, text: &Option<String>| match text.as_deref() {
        None => None,
        Some("") => record.traits.properties.get(key).map(|_| ImageChange::RemoveProperty(key.to_owned())),
        Some(text) => Some(ImageChange::SetProperty(key.to_owned(), text.to_owned())),
    };
    [
        edit.name.clone().map(ImageChange::Name),
        edit.visibility.map(|said| ImageChange::Visibility(said.into())),
        property(DESCRIPTION, &edit.description),
        property(VERSION, &edit.version),
    ]
    .into_iter()
    .flatten()
    .collect()
}

impl ImageRecord {
    /// As clients see it who look at it alone.
    pub fn detail(&self) -> ImageDetail {
        let property = |key: &str| self.traits.properties.get(key).cloned();
        ImageDetail {
            image: self.view(),
            said: ImageSaid {
                description: property(DESCRIPTION),
                version: property(VERSION),
                visibility: self.traits.visibility.into(),
                tags: self.traits.tags.iter().cloned().collect(),
                origin: self.traits.origin.as_ref().map(|origin| origin.region.clone()),
            },
        }
    }
}

impl View {
    /// All images in repositories that everybody may pull from.
    fn all_published(&self) -> BTreeSet<ImageId> {
        let public = self.repositories.iter().filter(|r| r.visibility == RepositoryVisibility::Public);
        public.flat_map(|r| self.links_in(r.id()).filter_map(|link| self.image_of(r.project, link))).collect()
    }
}

/// Each layer with its chain id and that of the one below (the OCI image specification, "Layer ChainID").
fn chain(layers: &[Layer]) -> impl Iterator<Item = (String, Option<String>, &Layer)> {
    layers.iter().scan(None::<String>, |below, layer| {
        let parent = below.clone();
        let id = match &parent {
            None => layer.diff_id.clone(),
            Some(parent) => hex::encode(Sha256::digest(format!("sha256:{parent} sha256:{}", layer.diff_id))),
        };
        *below = Some(id.clone());
        Some((id, parent, layer))
    })
}

/// An id of the catalogue that every image with the same layers has for this one.
fn layer_id(chain_id: &str) -> ImageId {
    ImageId(Uuid::new_v5(&Uuid::NAMESPACE_OID, chain_id.as_bytes()))
}

fn as_image(chain_id: &str, parent: Option<&str>, layer: &Layer) -> LayerImage {
    LayerImage {
        id: layer_id(chain_id),
        parent: parent.map(layer_id),
        chain_id: chain_id.to_owned(),
        layer: layer.clone(),
        images: Vec::new(),
    }
}

fn layer_images<'a>(images: impl Iterator<Item = (ImageId, &'a [Layer])>) -> BTreeMap<String, LayerImage> {
    let mut all = BTreeMap::new();
    for (image, layers) in images {
        for (chain_id, parent, layer) in chain(layers) {
            let fresh = || as_image(&chain_id, parent.as_deref(), layer);
            all.entry(chain_id.clone()).or_insert_with(fresh).images.push(image);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use amphi_api::image::Compression;

    fn layer(n: u8) -> Layer {
        let sha256 = format!("{n:02x}").repeat(32);
        Layer { diff_id: sha256.clone(), sha256, size: 1, compression: Compression::None }
    }

    #[test]
    fn layers_are_images_that_images_share() {
        let (a, b, c) = (ImageId::new(), ImageId::new(), ImageId::new());
        let layers = [[layer(1), layer(2)], [layer(1), layer(3)], [layer(2), layer(1)]];
        let all = layer_images([(a, &layers[0][..]), (b, &layers[1][..]), (c, &layers[2][..])].into_iter());
        assert_eq!(all.len(), 5, "another order is another file system");
        let lowest = &all[&layer(1).diff_id];
        assert_eq!((lowest.parent, &lowest.images), (None, &vec![a, b]));
        let above: Vec<_> =
            all.values().filter(|l| l.parent == Some(lowest.id)).map(|l| l.images.clone()).collect();
        assert_eq!(above.len(), 2);
        assert!(above.contains(&vec![a]) && above.contains(&vec![b]));
        // printf 'sha256:0101… sha256:0202…' | sha256sum
        let of_a = all.values().find(|l| l.images == [a]).unwrap();
        let text = format!("sha256:{} sha256:{}", layer(1).diff_id, layer(2).diff_id);
        assert_eq!(of_a.chain_id, hex::encode(Sha256::digest(text)));
    }
}
