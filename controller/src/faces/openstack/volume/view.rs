//! Volumes and snapshots as cinder's clients see them. Which fields there are depends on the microversion and on who asks:
//! clients with strict schemas refuse one too many.

use super::links;
use crate::faces::openstack::gate::Base;
use crate::faces::openstack::microversion::Microversion;
use crate::faces::openstack::words::{cinder_time, hex};
use crate::model::*;
use crate::ops::identity::Caller;
use crate::ops::volume_edit::doings;
use crate::ops::{View, aggregates, volume_types};
use serde_json::{Value, json};
use uuid::Uuid;

/// Who asks, and in which form.
pub struct Sight<'a> {
    pub view: &'a View,
    pub caller: &'a Caller,
    pub base: &'a Base,
    pub version: Microversion,
}

/// Cinder's name of a host's volume group: HOST@BACKEND#POOL.
pub fn pool(host: &str) -> String {
    format!("{host}@lvm#lvm")
}

fn or_null(text: &str) -> Value {
    if text.is_empty() { Value::Null } else { json!(text) }
}

/// One attachment of a volume, whoever holds it.
pub struct Attached {
    pub id: Uuid,
    pub server: Option<Uuid>,
    pub device: Option<String>,
    pub host_name: Option<String>,
    pub read_only: bool,
    pub step: HoldStep,
    pub since: jiff::Timestamp,
}

pub fn attached(view: &View, row: &VolumeRecord) -> Option<Attached> {
    if let Some(hold) = &row.traits.hold {
        return Some(Attached {
            id: hold.id,
            server: hold.server.map(|id| id.0),
            device: hold.device.clone(),
            host_name: hold.host_name.clone(),
            read_only: hold.read_only,
            step: hold.step,
            since: hold.since,
        });
    }
    let instance = view.instances.get(row.instance?)?;
    let attachment = instance.attachments.iter().find(|a| a.volume == row.id);
    let device = match attachment {
        Some(attachment) => attachment.device.clone(),
        None if instance.root_volume == Some(row.id) => "vda".into(),
        None => "vdb".into(),
    };
    Some(Attached {
        // Those that began with the instance have no attachment of their own: the volume's id stands for it.
        id: attachment.map_or(row.id.0, |a| a.id),
        server: Some(instance.id.0),
        device: Some(format!("/dev/{device}")),
        host_name: instance.host.and_then(|host| view.host_name(host)),
        read_only: attachment.is_some_and(|a| a.read_only),
        step: if row.journey.is_some() { HoldStep::Attaching } else { HoldStep::Attached },
        since: attachment.map_or(instance.created_at, |a| a.since),
    })
}

impl Sight<'_> {
    /// As the answer to its making and changing has it.
    pub fn volume(&self, row: &VolumeRecord) -> Value {
        let (traits, version) = (&row.traits, self.version);
        let mut metadata = traits.metadata.clone();
        if let Some(read_only) = traits.read_only {
            // cinder keeps it as administrators' metadata, which is shown among the rest, as Python spells it.
            metadata.insert("readonly".into(), if read_only { "True" } else { "False" }.into());
        }
        let attachments = attached(self.view, row).filter(|a| a.step == HoldStep::Attached).map(|a| {
            json!({
                "id": row.id,
                "volume_id": row.id,
                "attachment_id": a.id,
                "server_id": a.server,
                "device": a.device,
                "host_name": a.host_name.filter(|_| self.caller.is_admin()),
                "attached_at": cinder_time(a.since),
            })
        });
        let zone = traits.zone.clone().unwrap_or_else(|| aggregates::zone_of(self.view, row.host));
        let mut shown = json!({
            "id": row.id,
            "status": row.word(doings(self.view, row)),
            "size": row.size_gib,
            "availability_zone": zone,
            "created_at": cinder_time(row.created_at),
            "updated_at": cinder_time(row.updated_at()),
            "name": or_null(&row.name),
            "description": traits.description,
            "volume_type": volume_types::name_of(self.view, traits.volume_type),
            "snapshot_id": row.source,
            "source_volid": row.source_volume,
            "metadata": metadata,
            "user_id": hex(traits.user.unwrap_or(Caller::ADMIN)),
            "bootable": if traits.bootable { "true" } else { "false" },
            "encrypted": false,
            "replication_status": null,
            "consistencygroup_id": null,
            "multiattach": false,
            "attachments": attachments.into_iter().collect::<Vec<_>>(),
            "links": links(self.base, self.caller, &format!("volumes/{}", row.id)),
        });
        let admin = self.caller.is_admin();
        if admin {
            shown["migration_status"] = Value::Null;
        }
        if version.from(13) {
            shown["group_id"] = Value::Null;
        }
        if version.from(21) && admin {
            shown["provider_id"] = Value::Null;
        }
        if version.from(48) {
            // From 3.69 null: it does not matter how its connections are locked.
            shown["shared_targets"] = if version.from(69) { Value::Null } else { json!(false) };
            shown["service_uuid"] = Value::Null;
        }
        if version.from(61) && admin {
            shown["cluster_name"] = Value::Null;
        }
        if version.from(63) {
            shown["volume_type_id"] = json!(traits.volume_type.unwrap_or(VolumeTypeRecord::DEFAULT));
        }
        if version.from(65) {
            shown["consumes_quota"] = json!(true);
        }
        shown
    }

    /// As it is shown and listed in detail.
    pub fn volume_in_detail(&self, row: &VolumeRecord) -> Value {
        let mut shown = self.volume(row);
        shown["os-vol-tenant-attr:tenant_id"] = json!(hex(row.project));
        if self.caller.is_admin() {
            let host = self.view.host_name(row.host).unwrap_or_default();
            shown["os-vol-host-attr:host"] = json!(pool(&host));
            shown["os-vol-mig-status-attr:migstat"] = Value::Null;
            shown["os-vol-mig-status-attr:name_id"] = Value::Null;
        }
        if !row.traits.image.is_empty() {
            shown["volume_image_metadata"] = json!(row.traits.image);
        }
        shown
    }

    pub fn snapshot(&self, row: &SnapshotRecord) -> Value {
        let traits = &row.traits;
        let mut shown = json!({
            "id": row.id,
            "name": or_null(&row.name),
            "description": traits.description,
            "volume_id": row.volume,
            "status": snapshot_word(row),
            "size": row.size_gib,
            "created_at": cinder_time(row.created_at),
            "updated_at": cinder_time(traits.updated_at.unwrap_or(row.created_at)),
            "metadata": traits.metadata,
        });
        if self.version.from(14) {
            shown["group_snapshot_id"] = Value::Null;
        }
        if self.version.from(41) {
            shown["user_id"] = json!(hex(traits.user.unwrap_or(Caller::ADMIN)));
        }
        if self.version.from(65) {
            shown["consumes_quota"] = json!(true);
        }
        shown
    }

    pub fn snapshot_in_detail(&self, row: &SnapshotRecord) -> Value {
        let mut shown = self.snapshot(row);
        let done = if row.made { "100%" } else { "0%" };
        shown["os-extended-snapshot-attributes:progress"] = json!(done);
        shown["os-extended-snapshot-attributes:project_id"] = json!(hex(row.project));
        shown
    }
}
