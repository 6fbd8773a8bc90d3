//! What the service says of its own bodies; clients learn from it which attributes are properties of their own.

use super::OpenStack;
use crate::faces::openstack::answers::Refusal;
use axum::Json;
use axum::extract::{Path, State};
use serde_json::{Map, Value, json};

/// Attribute, type, whether only the service sets it, description.
const IMAGE: &[(&str, &str, bool, &str)] = &[
    ("id", "string", false, "An identifier for the image"),
    ("name", "string?", false, "Descriptive name for the image"),
    ("status", "string", true, "Status of the image: queued, uploading, active or deactivated"),
    ("visibility", "string", false, "Scope of image accessibility: community, public, private or shared"),
    ("protected", "boolean", false, "If true, image will not be deletable."),
    ("os_hidden", "boolean", false, "If true, image will not appear in default image list response."),
    ("checksum", "string?", true, "md5 hash of image contents."),
    ("os_hash_algo", "string?", true, "Algorithm to calculate the os_hash_value"),
    (
        "os_hash_value",
        "string?",
        true,
        "Hexdigest of the image contents using the algorithm named by os_hash_algo",
    ),
    ("owner", "string?", false, "Owner of the image"),
    ("size", "integer?", true, "Size of image file in bytes"),
    ("virtual_size", "integer?", true, "Virtual size of image in bytes"),
    ("container_format", "string?", false, "Format of the container"),
    ("disk_format", "string?", false, "Format of the disk"),
    ("created_at", "string", true, "Date and time of image registration"),
    ("updated_at", "string", true, "Date and time of the last image modification"),
    ("tags", "array", false, "List of strings related to the image"),
    ("min_ram", "integer", false, "Amount of ram (in MB) required to boot image."),
    ("min_disk", "integer", false, "Amount of disk space (in GB) required to boot image."),
    ("self", "string", true, "An image self url"),
    ("file", "string", true, "An image file url"),
    ("schema", "string", true, "An image schema url"),
];
const MEMBER: &[(&str, &str, bool, &str)] = &[
    ("member_id", "string", false, "An identifier for the image member (project)"),
    ("image_id", "string", false, "An identifier for the image"),
    ("created_at", "string", true, "Date and time of image member creation"),
    ("updated_at", "string", true, "Date and time of last modification of image member"),
    ("status", "string", false, "The status of this image member: pending, accepted or rejected"),
    ("schema", "string", true, "An image member schema url"),
];

fn properties(table: &[(&str, &str, bool, &str)]) -> Value {
    let property = |(name, kind, read_only, description): &(&str, &str, bool, &str)| {
        let kind = match kind.strip_suffix('?') {
            Some(kind) => json!(["null", kind]),
            None => json!(kind),
        };
        let mut property = json!({"type": kind, "description": description});
        if *read_only {
            property["readOnly"] = json!(true);
        }
        ((*name).to_owned(), property)
    };
    Value::Object(table.iter().map(property).collect::<Map<_, _>>())
}

pub async fn show(State(_): State<OpenStack>, Path(name): Path<String>) -> Result<Json<Value>, Refusal> {
    let image = || {
        json!({"name": "image", "properties": properties(IMAGE), "additionalProperties": {"type": "string"},
        "links": [{"rel": "self", "href": "{self}"}, {"rel": "enclosure", "href": "{file}"},
            {"rel": "describedby", "href": "{schema}"}]})
    };
    let member = || json!({"name": "member", "properties": properties(MEMBER)});
    let list = |name: &str, item: Value| {
        json!({"name": name, "properties": {
            name: {"type": "array", "items": item},
            "first": {"type": "string"}, "next": {"type": "string"}, "schema": {"type": "string"},
        }, "links": [{"rel": "first", "href": "{first}"}, {"rel": "next", "href": "{next}"},
            {"rel": "describedby", "href": "{schema}"}]})
    };
    Ok(Json(match name.as_str() {
        "image" => image(),
        "images" => list("images", image()),
        "member" => member(),
        "members" => list("members", member()),
        other => return Err(Refusal::not_found("schema", other)),
    }))
}
