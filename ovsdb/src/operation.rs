//! The operations of a transaction (RFC 7047, 5.2) as values. Building one checks nothing: the
//! server knows the schema and answers with the operation's index.

use serde_json::{Map, Value as Json, json};
use uuid::Uuid;

use crate::row::Row;
use crate::wire::Value;

/// One clause of a `where`; the clauses of an operation are joined by "and".
#[derive(Clone, Debug, PartialEq)]
pub struct Condition {
    column: String,
    function: &'static str,
    value: Value,
}

impl Condition {
    fn new(column: impl Into<String>, function: &'static str, value: impl Into<Value>) -> Condition {
        Condition { column: column.into(), function, value: value.into() }
    }

    pub fn eq(column: impl Into<String>, value: impl Into<Value>) -> Condition {
        Condition::new(column, "==", value)
    }

    pub fn ne(column: impl Into<String>, value: impl Into<Value>) -> Condition {
        Condition::new(column, "!=", value)
    }

    /// The column's set or map contains all of `value`.
    pub fn includes(column: impl Into<String>, value: impl Into<Value>) -> Condition {
        Condition::new(column, "includes", value)
    }

    pub fn excludes(column: impl Into<String>, value: impl Into<Value>) -> Condition {
        Condition::new(column, "excludes", value)
    }

    pub fn at_least(column: impl Into<String>, value: impl Into<Value>) -> Condition {
        Condition::new(column, ">=", value)
    }

    pub fn at_most(column: impl Into<String>, value: impl Into<Value>) -> Condition {
        Condition::new(column, "<=", value)
    }

    /// The row with this `_uuid`.
    pub fn id(row: Uuid) -> Condition {
        Condition::new("_uuid", "==", row)
    }

    fn to_json(&self) -> Json {
        json!([self.column, self.function, self.value.to_json()])
    }
}

/// One change of a `mutate`.
#[derive(Clone, Debug, PartialEq)]
pub struct Mutation {
    column: String,
    mutator: &'static str,
    value: Value,
}

impl Mutation {
    /// Adds elements or pairs. A key that a map holds already keeps its old value.
    pub fn insert(column: impl Into<String>, value: impl Into<Value>) -> Mutation {
        Mutation { column: column.into(), mutator: "insert", value: value.into() }
    }

    /// Removes elements, pairs, or (given a set of keys) a map's keys.
    pub fn delete(column: impl Into<String>, value: impl Into<Value>) -> Mutation {
        Mutation { column: column.into(), mutator: "delete", value: value.into() }
    }

    pub fn add(column: impl Into<String>, value: impl Into<Value>) -> Mutation {
        Mutation { column: column.into(), mutator: "+=", value: value.into() }
    }

    /// Sets pairs in a map whatever was at those keys before: a delete by key, then an insert.
    pub fn put<K, V>(column: &str, pairs: impl IntoIterator<Item = (K, V)>) -> [Mutation; 2]
    where
        K: Into<String>,
        V: Into<String>,
    {
        let pairs: Vec<(String, String)> = pairs.into_iter().map(|(k, v)| (k.into(), v.into())).collect();
        // Spelled as a set even for one key: the bare string would not say "key".
        let keys = Value::Set(pairs.iter().map(|(key, _)| key.as_str().into()).collect());
        [Mutation::delete(column, keys), Mutation::insert(column, Value::map(pairs))]
    }

    fn to_json(&self) -> Json {
        json!([self.column, self.mutator, self.value.to_json()])
    }
}

/// One operation; a transaction is a list of them, all or nothing.
#[derive(Clone, Debug, PartialEq)]
pub struct Operation {
    body: Map<String, Json>,
}

impl Operation {
    fn new(op: &'static str) -> Operation {
        Operation { body: Map::from_iter([("op".to_owned(), json!(op))]) }
    }

    fn over(op: &'static str, table: &str, conditions: &[Condition]) -> Operation {
        Operation::new(op)
            .field("table", json!(table))
            .field("where", conditions.iter().map(Condition::to_json).collect())
    }

    fn field(mut self, name: &str, value: Json) -> Operation {
        self.body.insert(name.to_owned(), value);
        self
    }

    pub fn insert(table: &str, row: Row) -> Operation {
        Operation::new("insert").field("table", json!(table)).field("row", row.to_json())
    }

    /// Gives an insert a name that `Value::named` refers to. The name must be an identifier
    /// (letters, digits, underscore).
    pub fn named(self, name: &str) -> Operation {
        self.field("uuid-name", json!(name))
    }

    /// Gives an insert its `_uuid` (servers from OVS 2.17 on).
    pub fn with_id(self, row: Uuid) -> Operation {
        self.field("uuid", json!(row))
    }

    pub fn update(table: &str, conditions: Vec<Condition>, row: Row) -> Operation {
        Operation::over("update", table, &conditions).field("row", row.to_json())
    }

    pub fn mutate(
        table: &str,
        conditions: Vec<Condition>,
        mutations: impl IntoIterator<Item = Mutation>,
    ) -> Operation {
        Operation::over("mutate", table, &conditions)
            .field("mutations", mutations.into_iter().map(|m| m.to_json()).collect())
    }

    pub fn delete(table: &str, conditions: Vec<Condition>) -> Operation {
        Operation::over("delete", table, &conditions)
    }

    /// No columns means all.
    pub fn select(table: &str, conditions: Vec<Condition>, columns: &[&str]) -> Operation {
        let select = Operation::over("select", table, &conditions);
        if columns.is_empty() { select } else { select.field("columns", json!(columns)) }
    }

    /// A guard: the transaction fails with `Error::is_guard` unless the rows found by `conditions`,
    /// seen through `columns`, are exactly `rows`.
    pub fn wait_equal(
        table: &str,
        conditions: Vec<Condition>,
        columns: &[&str],
        rows: Vec<Row>,
    ) -> Operation {
        Operation::wait(table, conditions, columns, "==", rows)
    }

    /// A guard: fails when the rows are exactly `rows`.
    pub fn wait_differs(
        table: &str,
        conditions: Vec<Condition>,
        columns: &[&str],
        rows: Vec<Row>,
    ) -> Operation {
        Operation::wait(table, conditions, columns, "!=", rows)
    }

    /// A guard: no row matches.
    pub fn wait_absent(table: &str, conditions: Vec<Condition>) -> Operation {
        Operation::wait(table, conditions, &["_uuid"], "==", Vec::new())
    }

    /// A guard: some row matches.
    pub fn wait_present(table: &str, conditions: Vec<Condition>) -> Operation {
        Operation::wait(table, conditions, &["_uuid"], "!=", Vec::new())
    }

    fn wait(
        table: &str,
        conditions: Vec<Condition>,
        columns: &[&str],
        until: &str,
        rows: Vec<Row>,
    ) -> Operation {
        Operation::over("wait", table, &conditions)
            .field("columns", json!(columns))
            .field("until", json!(until))
            .field("rows", rows.iter().map(Row::to_json).collect())
            .field("timeout", json!(0))
    }

    /// Lets a wait stay open at the server for so long before it fails; 0 (now or never) without.
    pub fn within_ms(self, timeout: u32) -> Operation {
        self.field("timeout", json!(timeout))
    }

    /// The reply comes only after the transaction is on disk.
    pub fn commit_durable() -> Operation {
        Operation::new("commit").field("durable", json!(true))
    }

    pub fn comment(text: &str) -> Operation {
        Operation::new("comment").field("comment", json!(text))
    }

    pub fn op(&self) -> &str {
        self.body.get("op").and_then(Json::as_str).unwrap_or_default()
    }

    /// Empty for operations without a table.
    pub fn table(&self) -> &str {
        self.body.get("table").and_then(Json::as_str).unwrap_or_default()
    }

    pub fn to_json(&self) -> Json {
        Json::Object(self.body.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_render_as_the_rfc_spells_them() {
        let where_name = || vec![Condition::eq("name", "br0")];
        let table = [
            (
                Operation::insert("Bridge", Row::new().with("name", "br0").with("ports", Value::named("p")))
                    .named("b"),
                json!({"op": "insert", "table": "Bridge", "uuid-name": "b",
                       "row": {"name": "br0", "ports": ["named-uuid", "p"]}}),
            ),
            (
                Operation::update("Bridge", where_name(), Row::new().with("fail_mode", "secure")),
                json!({"op": "update", "table": "Bridge", "where": [["name", "==", "br0"]], "row": {"fail_mode": "secure"}}),
            ),
            (
                Operation::mutate("Bridge", where_name(), Mutation::put("external_ids", [("k", "v")])),
                json!({"op": "mutate", "table": "Bridge", "where": [["name", "==", "br0"]], "mutations": [
                    ["external_ids", "delete", ["set", ["k"]]], ["external_ids", "insert", ["map", [["k", "v"]]]]]}),
            ),
            (
                Operation::delete("Bridge", Vec::new()),
                json!({"op": "delete", "table": "Bridge", "where": []}),
            ),
            (
                Operation::select("Bridge", where_name(), &["_uuid"]),
                json!({"op": "select", "table": "Bridge", "where": [["name", "==", "br0"]], "columns": ["_uuid"]}),
            ),
            (
                Operation::wait_absent("Bridge", where_name()),
                json!({"op": "wait", "table": "Bridge", "where": [["name", "==", "br0"]], "columns": ["_uuid"],
                       "until": "==", "rows": [], "timeout": 0}),
            ),
            (Operation::commit_durable(), json!({"op": "commit", "durable": true})),
        ];
        for (operation, wire) in table {
            assert_eq!(operation.to_json(), wire);
        }
    }
}
