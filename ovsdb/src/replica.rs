//! An in-memory copy of chosen tables and columns, kept current by the server's monitor.
//!
//! Owns the copy and its change signal. While the connection is down it keeps the last picture and
//! says so (`ReplicaState::current`); after a reconnect it catches up by itself. It never guesses:
//! an update that does not fit the picture makes the session start the copy afresh.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use serde_json::{Map, Value as Json};
use tokio::sync::watch;
use uuid::Uuid;

use crate::client::Client;
use crate::row::Row;
use crate::schema::Schema;
use crate::{Error, Result};

/// What to replicate.
#[derive(Clone, Debug, Default)]
pub struct Monitored {
    pub(crate) tables: BTreeMap<String, Vec<String>>,
}

impl Monitored {
    pub fn new() -> Monitored {
        Monitored::default()
    }

    /// No columns means all. Columns that the server's schema lacks are left out with a warning.
    pub fn table(mut self, table: &str, columns: &[&str]) -> Monitored {
        self.tables.insert(table.to_owned(), columns.iter().map(|&column| column.to_owned()).collect());
        self
    }
}

/// The rows by table and `_uuid`. Columns at their default may be absent from a row.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tables {
    tables: BTreeMap<String, BTreeMap<Uuid, Row>>,
}

impl Tables {
    pub fn rows(&self, table: &str) -> impl Iterator<Item = (Uuid, &Row)> {
        self.tables.get(table).into_iter().flatten().map(|(id, row)| (*id, row))
    }

    pub fn row(&self, table: &str, id: Uuid) -> Option<&Row> {
        self.tables.get(table)?.get(&id)
    }

    /// The first row whose string column has this value; meant for unique columns.
    pub fn find(&self, table: &str, column: &str, value: &str) -> Option<(Uuid, &Row)> {
        self.rows(table).find(|(_, row)| row.str(column) == Some(value))
    }

    pub fn len(&self, table: &str) -> usize {
        self.tables.get(table).map_or(0, BTreeMap::len)
    }

    /// `{table: {uuid: {initial|insert|modify|delete: row}}}` of monitor_cond and its successor.
    pub(crate) fn apply_v2(&mut self, schema: &Schema, updates: &Json) -> Result<(), String> {
        for (table, id, change) in each_row(updates)? {
            let rows = self.tables.entry(table.clone()).or_default();
            if let Some(row) = change.get("initial").or_else(|| change.get("insert")) {
                rows.insert(id, read_row(table, row)?);
            } else if change.contains_key("delete") {
                rows.remove(&id);
            } else if let Some(diff) = change.get("modify") {
                let row =
                    rows.get_mut(&id).ok_or_else(|| format!("a change of the unknown row {table} {id}"))?;
                for (column, diff) in read_row(table, diff)?.into_columns() {
                    let value = match row.take(&column) {
                        Some(old) if schema.is_plural(table, &column) => old.apply_diff(diff),
                        // A diff from the default (empty) is the new value itself.
                        _ => diff,
                    };
                    row.set(column, value);
                }
            } else {
                return Err(format!("an unknown kind of change to {table} {id}"));
            }
        }
        Ok(())
    }

    /// `{table: {uuid: {old, new}}}` of RFC 7047's own monitor; `new` is the whole row.
    pub(crate) fn apply_v1(&mut self, updates: &Json) -> Result<(), String> {
        for (table, id, change) in each_row(updates)? {
            let rows = self.tables.entry(table.clone()).or_default();
            match change.get("new") {
                Some(row) => rows.insert(id, read_row(table, row)?),
                None => rows.remove(&id),
            };
        }
        Ok(())
    }
}

type Change<'a> = (&'a String, Uuid, &'a Map<String, Json>);

fn each_row(updates: &Json) -> Result<Vec<Change<'_>>, String> {
    let mut changes = Vec::new();
    for (table, rows) in updates.as_object().ok_or("table updates that are no object")? {
        for (id, change) in
            rows.as_object().ok_or_else(|| format!("row updates of {table} that are no object"))?
        {
            let id = id.parse().map_err(|_| format!("`{id}` in {table} is no uuid"))?;
            let change =
                change.as_object().ok_or_else(|| format!("the update of {table} {id} is no object"))?;
            changes.push((table, id, change));
        }
    }
    Ok(changes)
}

fn read_row(table: &str, json: &Json) -> Result<Row, String> {
    json.as_object().and_then(Row::from_json).ok_or_else(|| format!("a malformed row of {table}"))
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReplicaState {
    /// Grows with every change of rows.
    pub revision: u64,
    /// Synchronised over the present connection. False before the first sync and while cut off.
    pub current: bool,
    /// The server refuses the monitor (an unknown table, for example); retried on reconnect.
    pub problem: Option<String>,
}

#[derive(Debug, Default)]
pub(crate) struct Shared {
    tables: RwLock<Tables>,
    state: watch::Sender<ReplicaState>,
}

impl Shared {
    /// Changes the rows under the lock, then tells the watchers.
    pub fn update<E>(&self, change: impl FnOnce(&mut Tables) -> Result<(), E>) -> Result<(), E> {
        change(&mut self.tables.write().unwrap_or_else(PoisonError::into_inner))?;
        self.state.send_modify(|state| {
            state.revision += 1;
            state.current = true;
            state.problem = None;
        });
        Ok(())
    }

    pub fn mark_stale(&self, problem: Option<String>) {
        self.state.send_modify(|state| {
            state.current = false;
            state.problem = problem;
        });
    }
}

/// A handle on the copy; clones share it. The monitor ends with the last handle.
#[derive(Clone, Debug)]
pub struct Replica {
    shared: Arc<Shared>,
    client: Client,
}

impl Replica {
    pub(crate) fn new(shared: Arc<Shared>, client: Client) -> Replica {
        Replica { shared, client }
    }

    /// Looks at the rows under a read lock: compute and return, never block in here.
    pub fn read<T>(&self, look: impl FnOnce(&Tables) -> T) -> T {
        look(&self.shared.tables.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn client(&self) -> &Client {
        &self.client
    }

    pub fn state(&self) -> ReplicaState {
        self.shared.state.borrow().clone()
    }

    /// Signals every change; `changed().await` on it wakes once for any number of changes.
    pub fn changes(&self) -> watch::Receiver<ReplicaState> {
        self.shared.state.subscribe()
    }

    /// Waits until `look` finds something in a picture that is current.
    pub async fn until<T>(&self, within: Duration, mut look: impl FnMut(&Tables) -> Option<T>) -> Result<T> {
        let mut changes = self.changes();
        let search = async {
            loop {
                if changes.borrow_and_update().current
                    && let Some(found) = self.read(&mut look)
                {
                    return Some(found);
                }
                changes.changed().await.ok()?;
            }
        };
        match tokio::time::timeout(within, search).await {
            Ok(Some(found)) => Ok(found),
            _ => Err(Error::NotReached { database: self.client.database().to_owned(), after: within }),
        }
    }

    /// Waits until the copy is synchronised over a live connection.
    pub async fn synced(&self, within: Duration) -> Result<()> {
        self.until(within, |_| Some(())).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Value;
    use serde_json::json;

    const ID: &str = "7a1c0f3e-6d2a-4f4e-9d5c-0123456789ab";

    fn schema() -> Schema {
        Schema::from_json(&json!({"tables": {"T": {"columns": {
            "name": {"type": "string"},
            "tag": {"type": {"key": "integer", "min": 0, "max": 1}},
            "ids": {"type": {"key": "string", "value": "string", "min": 0, "max": "unlimited"}},
            "set": {"type": {"key": "string", "min": 0, "max": "unlimited"}}}}}}))
        .unwrap()
    }

    fn v2(tables: &mut Tables, change: Json) -> Result<(), String> {
        tables.apply_v2(&schema(), &json!({"T": {ID: change}}))
    }

    #[test]
    fn second_version_changes_are_differences() {
        let mut tables = Tables::default();
        v2(
            &mut tables,
            json!({"initial": {"name": "a", "tag": 7, "ids": ["map", [["k", "1"], ["l", "2"]]]}}),
        )
        .unwrap();
        v2(
            &mut tables,
            json!({"modify": {"name": "b", "tag": ["set", []], "ids": ["map", [["k", "9"], ["l", "2"]]], "set": "x"}}),
        )
        .unwrap();
        let id = ID.parse().unwrap();
        let expected = Row::new()
            .with("name", "b")
            .with("tag", Value::empty())
            .with("ids", Value::map([("k", "9")]))
            .with("set", "x");
        assert_eq!(tables.row("T", id), Some(&expected));
        assert_eq!(tables.find("T", "name", "b").map(|(id, _)| id), Some(id));
        v2(&mut tables, json!({"delete": null})).unwrap();
        assert_eq!(tables.len("T"), 0);
    }

    #[test]
    fn a_change_of_an_unknown_row_is_refused() {
        assert!(v2(&mut Tables::default(), json!({"modify": {"name": "b"}})).is_err());
        assert!(v2(&mut Tables::default(), json!({"surprise": {}})).is_err());
    }

    #[test]
    fn first_version_changes_are_whole_rows() {
        let mut tables = Tables::default();
        tables.apply_v1(&json!({"T": {ID: {"new": {"name": "a", "tag": 1}}}})).unwrap();
        tables.apply_v1(&json!({"T": {ID: {"old": {"name": "a"}, "new": {"name": "b", "tag": 1}}}})).unwrap();
        assert_eq!(tables.find("T", "name", "b").and_then(|(_, row)| row.integer("tag")), Some(1));
        tables.apply_v1(&json!({"T": {ID: {"old": {"name": "b", "tag": 1}}}})).unwrap();
        assert_eq!(tables.len("T"), 0);
    }
}
