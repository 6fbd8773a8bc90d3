//! What changes about an instance without its body: name and notes, metadata, tags.

use super::{Origin, unlocked};
use crate::model::*;
use crate::ops::{Draft, Ops, OpsError, View, quotas};
use amphi_api::InstanceId;
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};

/// nova/objects/instance.py, `MAX_TAG_COUNT`.
pub const TAGS_MAX: usize = 50;

/// What is not named stays.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ServerUpdate {
    pub name: Option<String>,
    pub description: Option<Option<String>>,
    pub hostname: Option<String>,
    pub manual_disk: Option<bool>,
    pub access_v4: Option<Option<Ipv4Addr>>,
    pub access_v6: Option<Option<Ipv6Addr>>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum MetadataEdit {
    /// These and no others.
    Replace(BTreeMap<String, String>),
    Merge(BTreeMap<String, String>),
    Delete(String),
}

#[derive(Clone, Debug, PartialEq)]
pub enum TagEdit {
    Replace(BTreeSet<String>),
    Add(String),
    Delete(String),
    Clear,
}

impl Ops {
    pub async fn update_server(
        &self,
        origin: &Origin,
        id: InstanceId,
        update: &ServerUpdate,
    ) -> Result<(), OpsError> {
        self.edit(origin, id, |_, record| {
            if let Some(name) = &update.name {
                record.name = name.clone();
            }
            let server = &mut record.server;
            if let Some(description) = &update.description {
                server.description = description.clone();
            }
            if let Some(hostname) = &update.hostname {
                server.hostname = Some(hostname.clone());
            }
            server.manual_disk = update.manual_disk.unwrap_or(server.manual_disk);
            server.access_v4 = update.access_v4.unwrap_or(server.access_v4);
            server.access_v6 = update.access_v6.unwrap_or(server.access_v6);
            Ok(())
        })
        .await
    }

    pub async fn edit_server_metadata(
        &self,
        origin: &Origin,
        id: InstanceId,
        edit: &MetadataEdit,
    ) -> Result<(), OpsError> {
        self.edit(origin, id, |view, record| {
            match edit {
                MetadataEdit::Replace(all) => record.metadata = all.clone(),
                MetadataEdit::Merge(some) => record.metadata.extend(some.clone()),
                MetadataEdit::Delete(key) => {
                    let gone = record.metadata.remove(key);
                    gone.ok_or_else(|| OpsError::NotFound { noun: "metadata item", id: key.clone() })?;
                }
            }
            let count = record.metadata.len() as u64;
            quotas::check_within(view, record.project, Resource::MetadataItems, 0, count)
        })
        .await
    }

    pub async fn edit_server_tags(
        &self,
        origin: &Origin,
        id: InstanceId,
        edit: &TagEdit,
    ) -> Result<(), OpsError> {
        self.edit(origin, id, |_, record| {
            let tags = &mut record.server.tags;
            match edit {
                TagEdit::Replace(all) => *tags = all.clone(),
                TagEdit::Add(tag) => drop(tags.insert(tag.clone())),
                TagEdit::Delete(tag) => {
                    if !tags.remove(tag) {
                        return Err(OpsError::NotFound { noun: "tag", id: tag.clone() });
                    }
                }
                TagEdit::Clear => tags.clear(),
            }
            if tags.len() > TAGS_MAX {
                return Err(OpsError::field(
                    "tags",
                    format!("The number of tags exceeded the limit {TAGS_MAX}"),
                ));
            }
            Ok(())
        })
        .await
    }

    async fn edit(
        &self,
        origin: &Origin,
        id: InstanceId,
        change: impl Fn(&View, &mut InstanceRecord) -> Result<(), OpsError>,
    ) -> Result<(), OpsError> {
        self.transact(|view| {
            let row = unlocked(view, origin, id)?;
            let mut record = (*row.record).clone();
            change(view, &mut record)?;
            let mut draft = Draft::default();
            if record != *row.record {
                record.updated_at = Timestamp::now();
                draft.update(row, &record);
            }
            Ok((draft, ()))
        })
        .await
    }
}
