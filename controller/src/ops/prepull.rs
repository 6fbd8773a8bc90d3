//! Images on hosts beforehand: orders and policies go into a record beside the image's own, hosts read it in their desired
//! state, and say what they have. Refuses to wait: whoever ordered looks how far it is.

use super::{Draft, Ops, OpsError, View};
use crate::model::{HostImagesRecord, HostRecord, ImageHostSight, ImageRecord, PrepullRecord, prepull_state};
use amphi_api::host::HostState;
use amphi_api::image::ImageState;
use amphi_api::prepull::{HeldImage, HostImages, ImageOnHosts, Mark, PrepullCreate, PrepullPolicy};
use amphi_api::wire::{PrepullDesired, WIRE_IMAGES};
use amphi_api::{HostId, ImageId};
use jiff::Timestamp;

impl Ops {
    /// Has hosts fetch an image, once. Ordered again, it is fetched where it is not there any more.
    pub async fn prepull_image(&self, id: ImageId, order: &PrepullCreate) -> Result<ImageOnHosts, OpsError> {
        order.check()?;
        self.transact(|view| {
            let image = fetchable(view, id)?;
            if image.state() != ImageState::Active {
                return Err(OpsError::conflict("the image has not been uploaded yet"));
            }
            let hosts = meant(view, order)?;
            let mut record =
                view.prepulls.get(id).map_or(PrepullRecord::new(id), |row| (*row.record).clone());
            let now = Timestamp::now();
            for host in hosts {
                record.orders.entry(host).or_insert(now);
            }
            let mut draft = Draft::default();
            draft.put_record(view.prepulls.get(id), &record);
            Ok((draft, ()))
        })
        .await?;
        self.image_on_hosts(id)
    }

    /// Calls off the orders that are not over. What has come stays, as long as there is room.
    pub async fn cancel_prepull(&self, id: ImageId) -> Result<(), OpsError> {
        self.edit_prepull(id, |record| record.orders.clear()).await
    }

    /// Has hosts keep an image, those that join later too.
    pub async fn set_prepull_policy(
        &self,
        id: ImageId,
        policy: &PrepullPolicy,
    ) -> Result<ImageOnHosts, OpsError> {
        policy.check()?;
        self.edit_prepull(id, |record| record.policy = Some(policy.clone())).await?;
        self.image_on_hosts(id)
    }

    pub async fn end_prepull_policy(&self, id: ImageId) -> Result<(), OpsError> {
        self.edit_prepull(id, |record| record.policy = None).await
    }

    async fn edit_prepull(&self, id: ImageId, edit: impl Fn(&mut PrepullRecord)) -> Result<(), OpsError> {
        self.transact(|view| {
            fetchable(view, id)?;
            let row = view.prepulls.get(id);
            let mut record = row.map_or(PrepullRecord::new(id), |row| (*row.record).clone());
            edit(&mut record);
            let mut draft = Draft::default();
            match row {
                Some(row) if record.is_over() => draft.delete(row),
                None if record.is_over() => {}
                row => draft.put_record(row, &record),
            }
            Ok((draft, ()))
        })
        .await
    }

    /// Which hosts have an image, or are getting it.
    pub fn image_on_hosts(&self, id: ImageId) -> Result<ImageOnHosts, OpsError> {
        let view = self.world().read();
        let image = view.images.get(id).ok_or_else(|| OpsError::not_found::<ImageRecord>(id))?;
        let (mark, record) = (image.mark(), view.prepulls.get(id));
        let record = record.map(|row| &*row.record);
        let hosts = view.hosts.iter().map(|host| {
            let sight = ImageHostSight {
                id: host.id,
                name: &host.name,
                state: host.state,
                zone: view.zone_of(host.id),
                wire: host.spec.as_ref().map_or(0, |spec| spec.wire),
                told: view.host_images.get(host.id).map(|row| &row.told),
            };
            prepull_state(id, mark, record, &sight)
        });
        let policy = record.and_then(|record| record.policy.clone());
        Ok(ImageOnHosts { image: id, policy, hosts: hosts.collect() })
    }

    /// Takes in what a host says of its images. Writes only what is new.
    pub async fn take_images(&self, host: HostId, told: &HostImages) -> Result<(), OpsError> {
        self.transact(|view| {
            let mut draft = Draft::default();
            if view.hosts.get(host).is_none() {
                return Ok((draft, ()));
            }
            let row = view.host_images.get(host);
            if row.is_none_or(|row| row.told != *told) {
                draft.put_record(row, &HostImagesRecord { host, told: told.clone() });
            }
            // Told once, the rest is taken in with the next word: a host says what is new with every order that ends.
            for row in view.prepulls.iter().filter(|row| row.ends(host, told)).take(super::status::CHUNK) {
                let mut record = (*row.record).clone();
                record.orders.remove(&host);
                match record.is_over() {
                    true => draft.delete(row),
                    false => draft.update(row, &record),
                }
            }
            Ok((draft, ()))
        })
        .await
    }
}

/// What a host is to fetch beforehand.
pub(super) fn desired(view: &View, host: HostId) -> Vec<PrepullDesired> {
    let zone = view.zone_of(host);
    let due = view.prepulls.iter().filter(|row| row.asks(host, zone)).filter_map(|row| {
        let image = view.images.get(row.image)?;
        (!image.closing && image.state() == ImageState::Active && image.mark().is_some())
            .then(|| PrepullDesired { image: image.view(), kept: row.keeps(zone) })
    });
    due.collect()
}

/// Images that lie on a host, by name.
pub(super) fn held(view: &View, host: HostId) -> Vec<HeldImage> {
    let Some(row) = view.host_images.get(host) else { return Vec::new() };
    let digests = row.told.blobs.iter().map(|digest| Mark::Blob(digest));
    let marks = digests.chain(row.told.containers.iter().map(|digest| Mark::Container(digest)));
    let mut held: Vec<HeldImage> = marks
        .flat_map(|mark| {
            let images = view.images_marked(mark).into_iter().filter_map(|id| view.images.get(id));
            let (Mark::Blob(digest) | Mark::Container(digest)) = mark;
            images.map(move |image| HeldImage {
                image: image.id,
                name: image.name.clone(),
                digest: digest.to_owned(),
            })
        })
        .collect();
    held.sort_by(|a, b| (&a.name, a.image).cmp(&(&b.name, b.image)));
    held
}

fn fetchable(view: &View, id: ImageId) -> Result<&ImageRecord, OpsError> {
    let image = view.images.get(id).ok_or_else(|| OpsError::not_found::<ImageRecord>(id))?;
    if image.closing {
        return Err(OpsError::conflict("the image is being deleted"));
    }
    Ok(image)
}

/// The hosts that an order means.
fn meant(view: &View, order: &PrepullCreate) -> Result<Vec<HostId>, OpsError> {
    for id in &order.hosts {
        let host = view.hosts.get(*id).ok_or_else(|| OpsError::not_found::<HostRecord>(*id))?;
        let wire = host.spec.as_ref().map_or(0, |spec| spec.wire);
        if host.state == HostState::Up && wire < WIRE_IMAGES {
            let text = format!("the agent of host '{}' is older than pre-pulling: upgrade it", host.name);
            return Err(OpsError::conflict(text));
        }
    }
    let zone = |id| order.zones.contains(view.zone_of(id));
    let of = |id: &HostId| order.all || order.hosts.contains(id) || zone(*id);
    let hosts: Vec<HostId> = view.hosts.iter().map(|host| host.id).filter(of).collect();
    if hosts.is_empty() {
        return Err(OpsError::field("zones", "no host is in any of them"));
    }
    Ok(hosts)
}
