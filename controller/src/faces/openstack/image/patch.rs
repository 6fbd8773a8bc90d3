//! What a body of a creation or a JSON patch means, as changes of an image. Pure.

use crate::faces::openstack::answers::Refusal;
use crate::faces::openstack::query::boolean;
use crate::model::{ImageChange, ImageTraits, Visibility};
use serde_json::{Map, Value};

/// glance/common/config.py, `disk_formats` and `container_formats`; `amphi-set` is ours.
const DISK_FORMATS: [&str; 12] =
    ["ami", "ari", "aki", "vhd", "vhdx", "vmdk", "raw", "qcow2", "vdi", "iso", "ploop", "gpt"];
const CONTAINER_FORMATS: [&str; 9] =
    ["ami", "ari", "aki", "bare", "ovf", "ova", "docker", "compressed", "amphi-set"];

/// What only the service says of an image.
const READ_ONLY: [&str; 15] = [
    "status",
    "size",
    "virtual_size",
    "checksum",
    "os_hash_algo",
    "os_hash_value",
    "created_at",
    "updated_at",
    "self",
    "file",
    "schema",
    "owner",
    "direct_url",
    "locations",
    "stores",
];

/// Longest name, tag and property name, in characters.
const NAME_MAX: usize = 255;
/// Longest value of a property, in bytes.
const VALUE_MAX: usize = 65_535;

/// What an attribute's new value means.
fn set(key: &str, value: &Value) -> Result<ImageChange, Refusal> {
    let wrong =
        |what: &str| Refusal::bad(format!("Provided object does not match schema 'image': {key}: {what}"));
    let text = || value.as_str().ok_or_else(|| wrong("not a string"));
    let flag = || match value {
        Value::Bool(flag) => Ok(*flag),
        Value::String(text) => boolean(text).ok_or_else(|| wrong("not a boolean")),
        _ => Err(wrong("not a boolean")),
    };
    let number = || {
        let number = value.as_u64().or_else(|| value.as_str()?.parse().ok());
        let number = number.and_then(|n| i32::try_from(n).ok()).map(i32::unsigned_abs);
        number.ok_or_else(|| wrong("not an integer of 0 to 2147483647"))
    };
    let format = |known: &[&str]| match value {
        Value::Null => Ok(None),
        Value::String(text) if known.contains(&text.as_str()) => Ok(Some(text.clone())),
        _ => Err(wrong(&format!("not one of {}", known.join(", ")))),
    };
    Ok(match key {
        "name" if value.is_null() => ImageChange::Name(String::new()),
        "name" => ImageChange::Name(bounded(key, text()?)?),
        "visibility" => {
            ImageChange::Visibility(Visibility::parse(text()?).ok_or_else(|| wrong("not a visibility"))?)
        }
        "protected" => ImageChange::Protected(flag()?),
        "os_hidden" => ImageChange::Hidden(flag()?),
        "min_disk" => ImageChange::MinDisk(number()?),
        "min_ram" => ImageChange::MinRam(number()?),
        "disk_format" => ImageChange::DiskFormat(format(&DISK_FORMATS)?),
        "container_format" => ImageChange::ContainerFormat(format(&CONTAINER_FORMATS)?),
        "tags" => {
            let tags = value.as_array().ok_or_else(|| wrong("not a list"))?;
            let tag =
                |tag: &Value| tag.as_str().ok_or_else(|| wrong("not a string")).and_then(|t| bounded(key, t));
            ImageChange::Tags(tags.iter().map(tag).collect::<Result<_, _>>()?)
        }
        key if READ_ONLY.contains(&key) => {
            return Err(Refusal::forbidden(format!("Attribute '{key}' is read-only.")));
        }
        key if key.starts_with("os_glance_") => {
            return Err(Refusal::forbidden(format!("Attribute '{key}' is reserved.")));
        }
        "id" => return Err(Refusal::forbidden("Attribute 'id' is read-only.")),
        key => {
            bounded("a property's name", key)?;
            let text = text()?;
            if text.len() > VALUE_MAX {
                return Err(wrong(&format!("longer than {VALUE_MAX} bytes")));
            }
            ImageChange::SetProperty(key.to_owned(), text.to_owned())
        }
    })
}

pub fn bounded(what: &str, text: &str) -> Result<String, Refusal> {
    if text.chars().count() > NAME_MAX || text.chars().any(char::is_control) {
        let rule = format!("at most {NAME_MAX} characters, no control characters");
        return Err(Refusal::bad(format!("Provided object does not match schema 'image': {what}: {rule}")));
    }
    Ok(text.to_owned())
}

/// Changes that make a new image what the body says, from one that has only its defaults.
pub fn creation(body: &Map<String, Value>) -> Result<Vec<ImageChange>, Refusal> {
    body.iter()
        .filter(|(key, _)| *key != "id" && *key != "owner")
        .map(|(key, value)| set(key, value))
        .collect()
}

/// The changes of a JSON patch, of the draft that names its operation first (`{"replace": "/name", …}`, media type
/// v2.0) or of RFC 6902 (`{"op": "replace", "path": …}`, v2.1).
pub fn patch(body: &Value, before: &ImageTraits) -> Result<Vec<ImageChange>, Refusal> {
    let list = body
        .as_array()
        .ok_or_else(|| Refusal::bad("Request body must be a JSON array of operation objects."))?;
    list.iter().map(|operation| change(operation, before)).collect()
}

fn change(operation: &Value, before: &ImageTraits) -> Result<ImageChange, Refusal> {
    let text = |key: &str| operation.get(key).and_then(Value::as_str);
    let draft = ["add", "replace", "remove"].into_iter().find_map(|verb| Some((verb, text(verb)?)));
    let standard = text("op").and_then(|verb| Some((verb, text("path")?)));
    let (verb, path) = standard.or(draft).ok_or_else(|| {
        Refusal::bad("Operation objects must have 'op' and 'path', or one of add, replace and remove.")
    })?;
    let key = path
        .strip_prefix('/')
        .ok_or_else(|| Refusal::bad(format!("Pointer `{path}` does not start with \"/\".")))?;
    if key.is_empty() || key.contains('/') {
        return Err(Refusal::bad(format!("Pointer `{path}` does not name an attribute.")));
    }
    // RFC 6901, section 4.
    let key = key.replace("~1", "/").replace("~0", "~");
    let value = || {
        operation
            .get("value")
            .ok_or_else(|| Refusal::bad(format!("Operation \"{verb}\" requires a member named \"value\".")))
    };
    match verb {
        "add" => set(&key, value()?),
        "replace" => {
            let change = set(&key, value()?)?;
            match &change {
                ImageChange::SetProperty(key, _) if !before.properties.contains_key(key) => {
                    Err(Refusal::conflict(format!("Property {key} does not exist.")))
                }
                _ => Ok(change),
            }
        }
        "remove" => match key.as_str() {
            "tags" => Ok(ImageChange::Tags(Vec::new())),
            key => match set(key, &Value::String(String::new())) {
                Ok(ImageChange::SetProperty(key, _)) => Ok(ImageChange::RemoveProperty(key)),
                Err(refusal) if refusal.status == 403 => Err(refusal),
                _ => Err(Refusal::forbidden(format!("Property {key} may not be removed."))),
            },
        },
        verb => Err(Refusal::bad(format!("Unable to find '{verb}' among add, replace and remove."))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn both_forms_of_a_patch() {
        let mut before = ImageTraits::default();
        before.properties.insert("k".into(), "v".into());
        let read = |body: Value| patch(&body, &before).map_err(|r| r.status.as_u16());
        let name = || ImageChange::Name("n".into());
        assert_eq!(read(json!([{"op": "replace", "path": "/name", "value": "n"}])), Ok(vec![name()]));
        assert_eq!(read(json!([{"replace": "/name", "value": "n"}])), Ok(vec![name()]));
        assert_eq!(
            read(json!([{"op": "remove", "path": "/k"}])),
            Ok(vec![ImageChange::RemoveProperty("k".into())])
        );
        assert_eq!(
            read(json!([{"op": "add", "path": "/a~1b", "value": "1"}])),
            Ok(vec![ImageChange::SetProperty("a/b".into(), "1".into())])
        );
        for (body, status) in [
            (json!({}), 400),
            (json!([{"op": "move", "path": "/name", "value": "n"}]), 400),
            (json!([{"op": "add", "path": "name", "value": "n"}]), 400),
            (json!([{"op": "add", "path": "/name"}]), 400),
            (json!([{"op": "add", "path": "/min_ram", "value": -1}]), 400),
            (json!([{"op": "replace", "path": "/absent", "value": "n"}]), 409),
            (json!([{"op": "replace", "path": "/status", "value": "active"}]), 403),
            (json!([{"op": "remove", "path": "/name"}]), 403),
            (json!([{"add": "/os_glance_x", "value": "y"}]), 403),
            (json!([{"op": "add", "path": "/p", "value": {"deep": 1}}]), 400),
        ] {
            assert_eq!(read(body.clone()), Err(status), "{body}");
        }
    }
}
