//! One monitor of a session: which request starts it, and what its replies and notifications do to
//! its replica. Three generations of the method exist; each server gets the newest it knows.

use std::sync::{Arc, Weak};

use serde_json::{Map, Value as Json, json};
use uuid::Uuid;

use crate::replica::{Monitored, Shared, Tables};
use crate::schema::Schema;

/// Newest first: ovsdb-server(7), 4.1.15 and 4.1.12, then RFC 7047, 4.1.5.
const METHODS: [&str; 3] = ["monitor_cond_since", "monitor_cond", "monitor"];
const SINCE: usize = 0;
const PLAIN: usize = 2;

pub(crate) struct Monitor {
    id: String,
    monitored: Monitored,
    shared: Weak<Shared>,
    /// Index into METHODS.
    method: usize,
    /// The last transaction seen; all zero means none.
    last_transaction: String,
}

impl Monitor {
    pub fn new(monitored: Monitored, shared: Weak<Shared>) -> Monitor {
        Monitor {
            id: Uuid::new_v4().to_string(),
            monitored,
            shared,
            method: SINCE,
            last_transaction: Uuid::nil().to_string(),
        }
    }

    pub fn id(&self) -> String {
        self.id.clone()
    }

    /// False when nobody holds the replica any more.
    pub fn mark_stale(&self) -> bool {
        self.shared.upgrade().map(|shared| shared.mark_stale(None)).is_some()
    }

    /// The server behind a new connection may know more than the last one.
    pub fn reconnected(&mut self) {
        self.method = SINCE;
    }

    /// Turns to the next older method; false when there is none.
    pub fn fall_back(&mut self) -> bool {
        self.method += 1;
        self.method < METHODS.len()
    }

    pub fn refuse(&mut self, problem: String) {
        tracing::warn!(problem, "OVSDB monitor refused");
        if let Some(shared) = self.shared.upgrade() {
            shared.mark_stale(Some(problem));
        }
    }

    /// Method and parameters, or why the schema does not allow it.
    pub fn request(&self, database: &str, schema: &Schema) -> Result<(&'static str, Json), String> {
        let mut requests = Map::new();
        for (table, columns) in &self.monitored.tables {
            if !schema.has_table(table) {
                return Err(format!("{database} has no table {table}"));
            }
            let (known, unknown): (Vec<_>, Vec<_>) =
                columns.iter().partition(|column| schema.has_column(table, column));
            if !unknown.is_empty() {
                tracing::warn!(database, table, ?unknown, "columns that the server's schema lacks");
            }
            let request = if columns.is_empty() { json!({}) } else { json!({"columns": known}) };
            requests.insert(table.clone(), json!([request]));
        }
        let mut params = vec![json!(database), json!(self.id), Json::Object(requests)];
        if self.method == SINCE {
            params.push(json!(self.last_transaction));
        }
        Ok((METHODS[self.method], Json::Array(params)))
    }

    /// The reply to the request: the whole content, or with `since` what was missed.
    pub fn started(&mut self, schema: &Schema, result: &Json) -> Result<(), String> {
        let Some(shared) = self.shared.upgrade() else { return Ok(()) };
        let (kept, updates) = match (self.method, result.as_array().map(Vec::as_slice)) {
            (SINCE, Some([Json::Bool(found), Json::String(transaction), updates])) => {
                self.last_transaction.clone_from(transaction);
                (*found, updates)
            }
            (SINCE, _) => return Err("a malformed reply to monitor_cond_since".to_owned()),
            _ => (false, result),
        };
        let plain = self.method == PLAIN;
        self.apply(&shared, |tables| {
            if !kept {
                *tables = Tables::default();
            }
            if plain { tables.apply_v1(updates) } else { tables.apply_v2(schema, updates) }
        })
    }

    pub fn is_addressed(&self, params: &Json) -> bool {
        params.get(0).and_then(Json::as_str) == Some(self.id.as_str())
    }

    /// A notification for this monitor; Ok(false) when nobody wants it any more.
    pub fn updated(&mut self, notification: &str, schema: &Schema, params: &Json) -> Result<bool, String> {
        let Some(shared) = self.shared.upgrade() else { return Ok(false) };
        match (notification, params.as_array().map(Vec::as_slice)) {
            ("update", Some([_, updates])) => self.apply(&shared, |tables| tables.apply_v1(updates))?,
            ("update2", Some([_, updates])) => {
                self.apply(&shared, |tables| tables.apply_v2(schema, updates))?
            }
            ("update3", Some([_, Json::String(transaction), updates])) => {
                self.apply(&shared, |tables| tables.apply_v2(schema, updates))?;
                self.last_transaction.clone_from(transaction);
            }
            _ => return Err(format!("a malformed {notification} notification")),
        }
        Ok(true)
    }

    fn apply(
        &mut self,
        shared: &Arc<Shared>,
        change: impl FnOnce(&mut Tables) -> Result<(), String>,
    ) -> Result<(), String> {
        // What does not fit ends the connection; the next one must not build on the same picture.
        shared.update(change).inspect_err(|_| self.last_transaction = Uuid::nil().to_string())
    }
}
