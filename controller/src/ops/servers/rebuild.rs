//! Rebuild: the same identity, ports and volumes, a body made anew from an image.

use super::journal::Started;
use super::{Origin, allowed};
use crate::model::*;
use crate::ops::{Draft, Ops, OpsError, View, resolve};
use amphi_api::set::SetSpec;
use amphi_api::{ImageId, InstanceId};
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

/// What is not named stays.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RebuildWish {
    pub image: Option<ImageId>,
    pub name: Option<String>,
    pub description: Option<Option<String>>,
    pub hostname: Option<String>,
    pub metadata: Option<BTreeMap<String, String>>,
    /// Name and public key; or none any more.
    pub key: Option<Option<(String, String)>>,
    pub user_data: Option<Option<String>>,
    pub manual_disk: Option<bool>,
    pub access_v4: Option<Option<Ipv4Addr>>,
    pub access_v6: Option<Option<Ipv6Addr>>,
}

impl Ops {
    pub async fn rebuild_server(
        &self,
        origin: &Origin,
        id: InstanceId,
        wish: &RebuildWish,
    ) -> Result<(), OpsError> {
        let described = match wish.image {
            Some(image) => self.described_set(image).await?,
            None => None,
        };
        self.transact(|view| Ok((decide(view, origin, id, wish, described.as_ref(), Timestamp::now())?, ())))
            .await
    }
}

fn decide(
    view: &View,
    origin: &Origin,
    id: InstanceId,
    wish: &RebuildWish,
    described: Option<&SetSpec>,
    now: Timestamp,
) -> Result<Draft, OpsError> {
    let states = &[VmState::Active, VmState::Stopped, VmState::Error];
    let row = allowed(view, origin, id, "rebuild", states, now)?;
    if row.host.is_none() {
        return Err(OpsError::conflict("the instance has no host: it was never built; delete it"));
    }
    let mut draft = Draft::default();
    let mut record = (*row.record).clone();
    if let Some(image) = wish.image {
        if row.root_volume.is_some() && row.server.image != Some(image) {
            return Err(OpsError::field(
                "imageRef",
                "Unable to rebuild with a different image for a volume-backed server",
            ));
        }
        if row.root_volume.is_none() {
            let root_gib = row.server.flavor.as_ref().map(|f| f.disk_gib).filter(|gib| *gib > 0);
            let (body, found) = resolve::body_of_image(view, row.project, image, root_gib, described)?;
            for image in &found {
                resolve::enough_for(image, row.memory_mib, root_gib)?;
            }
            found.into_iter().for_each(|image| draft.guard(image));
            let kind = body.kind();
            // An image of the other kind of body makes an instance of the other kind.
            record.bodies.retain(|b| b.kind() != kind);
            record.bodies.insert(0, body);
            record.body = kind;
            record.server.image = Some(image);
        }
    }
    record.rescue = None;
    record.epoch += 1;
    record.root += 1;
    record.observed = None;
    if let Some(name) = &wish.name {
        record.name = name.clone();
    }
    if let Some(metadata) = &wish.metadata {
        record.metadata = metadata.clone();
    }
    if let Some(key) = &wish.key {
        record.ssh_keys = key.iter().map(|(_, public)| public.clone()).collect();
        record.server.key_name = key.as_ref().map(|(name, _)| name.clone());
    }
    if let Some(user_data) = &wish.user_data {
        record.user_data = user_data.clone();
    }
    let server = &mut record.server;
    if let Some(description) = &wish.description {
        server.description = description.clone();
    }
    if let Some(hostname) = &wish.hostname {
        server.hostname = Some(hostname.clone());
    }
    server.manual_disk = wish.manual_disk.unwrap_or(server.manual_disk);
    server.access_v4 = wish.access_v4.unwrap_or(server.access_v4);
    server.access_v6 = wish.access_v6.unwrap_or(server.access_v6);
    Started { view, origin, before: &row.record, now }.task(
        &mut draft,
        &mut record,
        Task::Rebuild,
        "rebuild",
    );
    draft.update(row, &record);
    Ok(draft)
}
