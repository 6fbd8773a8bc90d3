//! What cinder's clients send: optional fields that may be null, and text for numbers.

use crate::faces::openstack::answers::Refusal;
use crate::faces::openstack::query::boolean;
use crate::faces::openstack::words;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use uuid::Uuid;

/// Longest name and description (cinder/db/constants or its columns: VARCHAR(255)).
const TEXT_MAX: usize = 255;

pub type Fields = Map<String, Value>;

/// The object below the body's key.
pub fn fields(key: &str, body: Value) -> Result<Fields, Refusal> {
    crate::faces::openstack::body::envelope(key, body)
}

/// What an action has below its name, which may be null.
pub fn argument(name: &str, argument: Value) -> Result<Fields, Refusal> {
    match argument {
        Value::Object(map) => Ok(map),
        Value::Null => Ok(Fields::new()),
        _ => Err(Refusal::field(name, "must be an object")),
    }
}

/// The first of the names that is there and not null.
pub fn given<'a>(fields: &'a Fields, names: &[&'a str]) -> Option<(&'a str, &'a Value)> {
    names.iter().find_map(|name| fields.get(*name).filter(|v| !v.is_null()).map(|v| (*name, v)))
}

/// Text of at most 255 characters.
pub fn text(fields: &Fields, names: &[&str]) -> Result<Option<String>, Refusal> {
    let Some((name, value)) = given(fields, names) else { return Ok(None) };
    let text = value.as_str().ok_or_else(|| Refusal::field(name, "must be a string"))?;
    if text.chars().count() > TEXT_MAX {
        return Err(Refusal::field(name, format!("has more than {TEXT_MAX} characters")));
    }
    Ok(Some(text.to_owned()))
}

/// [`text`] of a name: white space at its ends does not count.
pub fn name(fields: &Fields) -> Result<Option<String>, Refusal> {
    Ok(text(fields, &["name", "display_name"])?.map(|name| name.trim().to_owned()))
}

pub fn description(fields: &Fields) -> Result<Option<String>, Refusal> {
    text(fields, &["description", "display_description"])
}

pub fn id(fields: &Fields, names: &[&str]) -> Result<Option<Uuid>, Refusal> {
    let Some((name, value)) = given(fields, names) else { return Ok(None) };
    let found = value.as_str().and_then(words::id);
    found.map(Some).ok_or_else(|| Refusal::field(name, format!("{value} is not a 'uuid'")))
}

pub fn flag(fields: &Fields, name: &str) -> Result<Option<bool>, Refusal> {
    let Some((name, value)) = given(fields, &[name]) else { return Ok(None) };
    let found = match value {
        Value::Bool(value) => Some(*value),
        Value::String(text) => boolean(text),
        Value::Number(number) => boolean(&number.to_string()),
        _ => None,
    };
    found.map(Some).ok_or_else(|| Refusal::field(name, format!("{value} is not a boolean")))
}

pub fn integer(name: &str, value: &Value) -> Result<i64, Refusal> {
    let found = match value {
        Value::Number(number) => number.as_i64(),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    };
    found.ok_or_else(|| Refusal::field(name, format!("{value} is not an integer")))
}

/// A size in GiB, at least 1.
pub fn size(fields: &Fields, name: &str) -> Result<Option<u64>, Refusal> {
    let Some((name, value)) = given(fields, &[name]) else { return Ok(None) };
    let size = u64::try_from(integer(name, value)?).ok().filter(|size| *size > 0);
    size.map(Some).ok_or_else(|| Refusal::field(name, format!("{value} is not an integer greater than 0")))
}

/// Pairs of text; null is none.
pub fn items(name: &str, value: Option<&Value>) -> Result<BTreeMap<String, String>, Refusal> {
    let map = match value {
        None | Some(Value::Null) => return Ok(BTreeMap::new()),
        Some(Value::Object(map)) => map,
        Some(_) => return Err(Refusal::field(name, "must be an object")),
    };
    let pair = |(key, value): (&String, &Value)| match value {
        Value::String(text) => Ok((key.clone(), text.clone())),
        Value::Number(_) | Value::Bool(_) => Ok((key.clone(), value.to_string())),
        _ => Err(Refusal::field(format!("{name}.{key}"), "must be a string")),
    };
    map.iter().map(pair).collect()
}

/// [`items`] that must be there.
pub fn required_items(name: &str, body: &Value) -> Result<BTreeMap<String, String>, Refusal> {
    let found = body.get(name);
    if !found.is_some_and(Value::is_object) {
        return Err(Refusal::bad(format!("Invalid input: '{name}' is a required property")));
    }
    items(name, found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn numbers_and_flags_as_text() {
        let fields = fields("v", json!({"v": {"size": "3", "on": "True", "none": null, "id": "x"}})).unwrap();
        assert_eq!(size(&fields, "size"), Ok(Some(3)));
        assert_eq!(size(&fields, "none"), Ok(None));
        assert_eq!(flag(&fields, "on"), Ok(Some(true)));
        assert!(id(&fields, &["id"]).is_err());
        for bad in [json!(0), json!(-1), json!("x"), json!(1.5), json!([]), json!({})] {
            let fields = Fields::from_iter([("size".to_owned(), bad)]);
            assert_eq!(size(&fields, "size").unwrap_err().status, 400);
        }
        assert!(items("m", Some(&json!({"a": {}}))).is_err());
        assert!(items("m", Some(&json!([]))).is_err());
        assert_eq!(items("m", Some(&json!({"a": 1}))).unwrap()["a"], "1");
    }
}
