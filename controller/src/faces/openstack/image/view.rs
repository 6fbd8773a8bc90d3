//! An image as glance's clients see it: a flat object, its properties among the rest.

use crate::faces::openstack::words::{hex, time};
use crate::model::ImageRecord;
use amphi_api::image::{ImageState, size_of};
use serde_json::{Map, Value, json};

/// Glance's word for the state.
pub fn status(record: &ImageRecord) -> &'static str {
    match record.state() {
        ImageState::Active if record.traits.deactivated => "deactivated",
        ImageState::Active => "active",
        ImageState::Queued if record.traits.staged.is_some() => "uploading",
        ImageState::Queued => "queued",
    }
}

/// Bytes that were uploaded or pushed; none before they are there.
pub fn size(record: &ImageRecord) -> Option<u64> {
    (record.state() == ImageState::Active).then(|| size_of(record.format, &record.blobs, &record.layers))
}

pub fn image(record: &ImageRecord) -> Value {
    let (container, disk) = record.glance_formats();
    let (id, traits) = (record.id, &record.traits);
    let active = record.state() == ImageState::Active;
    let digest =
        record.format.roles().first().and_then(|role| record.blobs.get(role)).map(|b| b.sha256.as_str());
    let mut map = Map::new();
    // First, so that nothing of the service's own is hidden by a property of the same name.
    for (key, value) in &traits.properties {
        map.insert(key.clone(), json!(value));
    }
    if !record.layers.is_empty() {
        // The lowest first; as text, since that is all that a property can be.
        let layers: Vec<_> = record.layers.iter().map(|layer| format!("sha256:{}", layer.sha256)).collect();
        map.insert("amphi_layers".into(), json!(layers.join(",")));
    }
    let own = json!({
        "id": id,
        "name": if record.name.is_empty() { Value::Null } else { json!(record.name) },
        "status": status(record),
        "visibility": traits.visibility.word(),
        "protected": traits.protected,
        "os_hidden": traits.hidden,
        "owner": hex(record.project),
        "container_format": container,
        "disk_format": disk,
        "min_disk": traits.min_disk,
        "min_ram": traits.min_ram,
        "size": size(record),
        "virtual_size": traits.virtual_size,
        "checksum": traits.md5.as_ref().filter(|_| active),
        "os_hash_algo": digest.filter(|_| active).map(|_| "sha256"),
        "os_hash_value": digest.filter(|_| active),
        "tags": traits.tags,
        "created_at": time(record.created_at),
        "updated_at": time(traits.updated_at.unwrap_or(record.created_at)),
        "self": format!("/v2/images/{id}"),
        "file": format!("/v2/images/{id}/file"),
        "schema": "/v2/schemas/image",
    });
    if let Value::Object(own) = own {
        map.extend(own);
    }
    if active {
        map.insert("stores".into(), json!("amphi"));
    }
    Value::Object(map)
}
