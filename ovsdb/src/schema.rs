//! The part of a server's schema that the client needs: which columns there are, and which hold
//! more than one value (their changes come as differences).

use std::collections::BTreeMap;

use serde_json::Value as Json;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Schema {
    pub name: String,
    pub version: String,
    /// Table, column, whether the column may hold more than one value.
    tables: BTreeMap<String, BTreeMap<String, bool>>,
}

impl Schema {
    pub(crate) fn from_json(json: &Json) -> Option<Schema> {
        let text = |key: &str| json.get(key).and_then(Json::as_str).unwrap_or_default().to_owned();
        let tables = json.get("tables")?.as_object()?.iter().map(|(table, body)| {
            let columns = body.get("columns")?.as_object()?;
            let columns = columns.iter().map(|(name, column)| (name.clone(), is_plural(column.get("type"))));
            Some((table.clone(), columns.collect()))
        });
        Some(Schema { name: text("name"), version: text("version"), tables: tables.collect::<Option<_>>()? })
    }

    pub fn has_table(&self, table: &str) -> bool {
        self.tables.contains_key(table)
    }

    pub fn has_column(&self, table: &str, column: &str) -> bool {
        self.tables.get(table).is_some_and(|columns| columns.contains_key(column))
    }

    /// Unknown columns count as single-valued: the server sends them whole.
    pub(crate) fn is_plural(&self, table: &str, column: &str) -> bool {
        self.tables.get(table).and_then(|columns| columns.get(column)).copied().unwrap_or(false)
    }
}

/// RFC 7047, 3.2: `max` is 1 unless given; "unlimited" or a number otherwise.
fn is_plural(column_type: Option<&Json>) -> bool {
    match column_type.and_then(|of| of.get("max")) {
        Some(Json::String(word)) => word == "unlimited",
        Some(number) => number.as_u64().is_some_and(|max| max > 1),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn knows_which_columns_are_plural() {
        let schema =
            Schema::from_json(&json!({"name": "X", "version": "1.0.0", "tables": {"T": {"columns": {
            "plain": {"type": "string"},
            "optional": {"type": {"key": "string", "min": 0, "max": 1}},
            "pair": {"type": {"key": "string", "min": 0, "max": 2}},
            "many": {"type": {"key": "string", "value": "string", "min": 0, "max": "unlimited"}}}}}}))
            .unwrap();
        let plural = |column| schema.is_plural("T", column);
        assert_eq!(
            [plural("plain"), plural("optional"), plural("pair"), plural("many")],
            [false, false, true, true]
        );
        assert!(schema.has_column("T", "many") && !schema.has_column("T", "none") && !schema.has_table("U"));
        assert_eq!(Schema::from_json(&json!({"name": "X"})), None);
    }
}
