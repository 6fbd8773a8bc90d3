//! Fields of a body: taken out one by one, each of its exact type (keystone takes no text for booleans). What is left
//! are attributes of the client's own.

use super::super::answers::Refusal;
use crate::model::identity::Extra;
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::str::FromStr;

/// Most attributes of the client's own, and longest name of one.
const EXTRA_MAX: usize = 64;
const EXTRA_NAME_MAX: usize = 255;

pub struct Fields(pub Map<String, Value>);

impl Fields {
    /// The object below the body's only key.
    pub fn of(key: &str, body: Value) -> Result<Self, Refusal> {
        super::super::body::envelope(key, body).map(Self)
    }

    /// Text; `null` is refused.
    pub fn text(&mut self, name: &str) -> Result<Option<String>, Refusal> {
        match self.0.remove(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(Refusal::field(name, "must be a string")),
        }
    }

    /// Text, or `null`: `Some(None)`.
    pub fn nullable(&mut self, name: &str) -> Result<Option<Option<String>>, Refusal> {
        match self.0.remove(name) {
            None => Ok(None),
            Some(Value::Null) => Ok(Some(None)),
            Some(Value::String(text)) => Ok(Some(Some(text))),
            Some(_) => Err(Refusal::field(name, "must be a string or null")),
        }
    }

    pub fn flag(&mut self, name: &str) -> Result<Option<bool>, Refusal> {
        match self.0.remove(name) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(value)),
            Some(_) => Err(Refusal::field(name, "must be a boolean")),
        }
    }

    /// An id; `null` is none.
    pub fn id<T: FromStr>(&mut self, name: &str) -> Result<Option<T>, Refusal> {
        let Some(Some(text)) = self.nullable(name)? else { return Ok(None) };
        text.parse().map(Some).map_err(|_| Refusal::field(name, format!("'{text}' is no id")))
    }

    pub fn object(&mut self, name: &str) -> Result<Extra, Refusal> {
        match self.0.remove(name) {
            None | Some(Value::Null) => Ok(Extra::new()),
            Some(Value::Object(map)) => Ok(map.into_iter().collect()),
            Some(_) => Err(Refusal::field(name, "must be an object")),
        }
    }

    pub fn tags(&mut self, name: &str) -> Result<Option<BTreeSet<String>>, Refusal> {
        self.0.remove(name).map(|value| tags(name, &value)).transpose()
    }

    /// What is left.
    pub fn rest(mut self) -> Result<Extra, Refusal> {
        self.0.remove("id");
        self.0.remove("links");
        if self.0.len() > EXTRA_MAX || self.0.keys().any(|name| name.len() > EXTRA_NAME_MAX) {
            return Err(Refusal::bad(format!("Invalid input: more than {EXTRA_MAX} unknown attributes")));
        }
        Ok(self.0.into_iter().collect())
    }
}

pub fn tags(name: &str, value: &Value) -> Result<BTreeSet<String>, Refusal> {
    let texts = value.as_array().map(|all| all.iter().map(|tag| tag.as_str().map(str::to_owned)));
    let texts: Option<Vec<String>> = texts.and_then(Iterator::collect);
    let texts = texts.ok_or_else(|| Refusal::field(name, "must be a list of strings"))?;
    let set: BTreeSet<String> = texts.iter().cloned().collect();
    if set.len() != texts.len() {
        return Err(Refusal::field(name, "has non-unique elements"));
    }
    Ok(set)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn types_are_exact() {
        let fields = |value: Value| Fields::of("user", json!({"user": value})).unwrap();
        assert_eq!(fields(json!({"name": "a"})).text("name"), Ok(Some("a".into())));
        assert_eq!(fields(json!({})).text("name"), Ok(None));
        assert_eq!(fields(json!({"name": null})).nullable("name"), Ok(Some(None)));
        assert!(fields(json!({"name": null})).text("name").is_err());
        assert!(fields(json!({"enabled": "True"})).flag("enabled").is_err());
        assert!(fields(json!({"enabled": 1})).flag("enabled").is_err());
        assert!(fields(json!({"tags": ["a", "a"]})).tags("tags").is_err());
        assert!(fields(json!({"tags": ["a", 1]})).tags("tags").is_err());
        assert!(fields(json!({"options": []})).object("options").is_err());
        let rest = fields(json!({"id": "x", "links": {}, "email": "a@b"})).rest().unwrap();
        assert_eq!(rest, [("email".to_owned(), json!("a@b"))].into());
        for bad in [json!(null), json!([]), json!({}), json!({"user": []}), json!({"user": null})] {
            assert!(Fields::of("user", bad).is_err());
        }
    }
}
