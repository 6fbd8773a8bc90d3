//! A row as columns by name. The getters answer "nothing" for a column that is absent, since the
//! server leaves columns at their default out of what it sends to a monitor.

use std::collections::BTreeMap;

use serde_json::{Map, Value as Json};
use uuid::Uuid;

use crate::wire::{Atom, Value};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Row {
    columns: BTreeMap<String, Value>,
}

impl Row {
    pub fn new() -> Row {
        Row::default()
    }

    pub fn with(mut self, column: impl Into<String>, value: impl Into<Value>) -> Row {
        self.set(column, value);
        self
    }

    pub fn set(&mut self, column: impl Into<String>, value: impl Into<Value>) {
        self.columns.insert(column.into(), value.into());
    }

    pub fn get(&self, column: &str) -> Option<&Value> {
        self.columns.get(column)
    }

    pub fn columns(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.columns.iter().map(|(name, value)| (name.as_str(), value))
    }

    /// The first string of the column; None when absent, empty or of another type.
    pub fn str(&self, column: &str) -> Option<&str> {
        self.atoms(column).find_map(|atom| match atom {
            Atom::String(text) => Some(text.as_str()),
            _ => None,
        })
    }

    pub fn integer(&self, column: &str) -> Option<i64> {
        self.atoms(column).find_map(|atom| match atom {
            Atom::Integer(number) => Some(*number),
            _ => None,
        })
    }

    pub fn boolean(&self, column: &str) -> Option<bool> {
        self.atoms(column).find_map(|atom| match atom {
            Atom::Boolean(truth) => Some(*truth),
            _ => None,
        })
    }

    pub fn strings(&self, column: &str) -> Vec<&str> {
        self.atoms(column)
            .filter_map(|atom| match atom {
                Atom::String(text) => Some(text.as_str()),
                _ => None,
            })
            .collect()
    }

    pub fn uuid(&self, column: &str) -> Option<Uuid> {
        self.uuids(column).first().copied()
    }

    pub fn uuids(&self, column: &str) -> Vec<Uuid> {
        self.atoms(column)
            .filter_map(|atom| match atom {
                Atom::Uuid(uuid) => Some(*uuid),
                _ => None,
            })
            .collect()
    }

    /// The value at `key` of a map of strings, such as `external_ids`.
    pub fn entry(&self, column: &str, key: &str) -> Option<&str> {
        match self.columns.get(column)? {
            Value::Map(pairs) => match pairs.get(&Atom::from(key))? {
                Atom::String(text) => Some(text.as_str()),
                _ => None,
            },
            _ => None,
        }
    }

    /// A map of strings; empty when absent.
    pub fn entries(&self, column: &str) -> BTreeMap<String, String> {
        let Some(Value::Map(pairs)) = self.columns.get(column) else { return BTreeMap::new() };
        pairs
            .iter()
            .filter_map(|pair| match pair {
                (Atom::String(key), Atom::String(value)) => Some((key.clone(), value.clone())),
                _ => None,
            })
            .collect()
    }

    /// The row's own `_uuid`, which selects and select results carry.
    pub fn id(&self) -> Option<Uuid> {
        self.uuid("_uuid")
    }

    pub fn to_json(&self) -> Json {
        Json::Object(self.columns.iter().map(|(name, value)| (name.clone(), value.to_json())).collect())
    }

    /// None when a column's value is no value.
    pub fn from_json(columns: &Map<String, Json>) -> Option<Row> {
        let columns = columns
            .iter()
            .map(|(name, json)| Some((name.clone(), Value::from_json(json)?)))
            .collect::<Option<_>>()?;
        Some(Row { columns })
    }

    pub(crate) fn take(&mut self, column: &str) -> Option<Value> {
        self.columns.remove(column)
    }

    pub(crate) fn into_columns(self) -> impl Iterator<Item = (String, Value)> {
        self.columns.into_iter()
    }

    fn atoms(&self, column: &str) -> impl Iterator<Item = &Atom> {
        self.columns.get(column).into_iter().flat_map(Value::atoms)
    }
}

impl<K: Into<String>, V: Into<Value>> FromIterator<(K, V)> for Row {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(columns: I) -> Row {
        Row { columns: columns.into_iter().map(|(name, value)| (name.into(), value.into())).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn getters_read_what_was_set_and_default_otherwise() {
        let id = Uuid::from_u128(7);
        let row = Row::new()
            .with("name", "br-int")
            .with("mtu", 1442i64)
            .with("up", true)
            .with("ports", Value::set([id]))
            .with("tags", Value::set(["a", "b"]))
            .with("external_ids", Value::map([("iface-id", "x")]));
        assert_eq!(row.str("name"), Some("br-int"));
        assert_eq!(row.integer("mtu"), Some(1442));
        assert_eq!(row.boolean("up"), Some(true));
        assert_eq!(row.uuids("ports"), vec![id]);
        assert_eq!(row.strings("tags"), vec!["a", "b"]);
        assert_eq!(row.entry("external_ids", "iface-id"), Some("x"));
        assert_eq!(row.entries("external_ids").len(), 1);
        assert_eq!((row.str("none"), row.integer("name"), row.entry("name", "k")), (None, None, None));
        assert!(row.entries("none").is_empty() && row.uuids("none").is_empty());
        let Json::Object(wire) = row.to_json() else { panic!("a row is an object") };
        assert_eq!(Row::from_json(&wire), Some(row));
    }
}
