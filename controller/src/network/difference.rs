//! Rows wanted and rows there → the operations that turn one into the other. Pure.

use super::render::{OWNER, Rows, Table};
use amphi_ovsdb::{Condition, Operation, Row, Value};
use uuid::Uuid;

/// Whether a row is one of ours.
pub fn is_ours(row: &Row) -> bool {
    row.entry("external_ids", OWNER).is_some()
}

/// The operations, empty when nothing differs. `there` holds only our own rows.
pub fn operations(wanted: &Rows, there: &Rows) -> Vec<Operation> {
    let mut operations = Vec::new();
    for ((table, id), row) in wanted {
        match there.get(&(*table, *id)) {
            None => operations.push(Operation::insert(table.name(), row.clone()).with_id(*id)),
            Some(present) => {
                let changed = changed_columns(*table, row, present);
                if changed.columns().next().is_some() {
                    operations.push(Operation::update(table.name(), vec![Condition::id(*id)], changed));
                }
            }
        }
    }
    for (table, id) in there.keys().filter(|key| !wanted.contains_key(*key)) {
        operations.push(delete(*table, *id));
    }
    operations
}

fn delete(table: Table, id: Uuid) -> Operation {
    Operation::delete(table.name(), vec![Condition::id(id)])
}

/// The wanted columns that differ. A column that the server left out is at its default, the empty value.
fn changed_columns(table: Table, wanted: &Row, present: &Row) -> Row {
    let mut changed = Row::new();
    for column in table.columns() {
        let Some(value) = wanted.get(column) else { continue };
        let same = match present.get(column) {
            Some(there) => there == value || there.is_empty() && value.is_empty(),
            None => value.is_empty() || *value == Value::from(""),
        };
        if !same {
            changed.set(*column, Value::clone(value));
        }
    }
    changed
}

#[cfg(test)]
mod tests {
    use super::super::render::{render, tests::sample};
    use super::*;

    #[test]
    fn nothing_differs_from_itself_and_each_change_is_one_operation() {
        let wanted = render(&sample());
        assert_eq!(operations(&wanted, &wanted), []);
        assert_eq!(operations(&wanted, &Rows::new()).len(), wanted.len());
        assert_eq!(operations(&Rows::new(), &wanted).len(), wanted.len());

        let mut moved = sample();
        moved.ports[1].chassis = Some("h2".into());
        let changes = operations(&render(&moved), &wanted);
        assert_eq!(changes.len(), 1);
        let text = changes[0].to_json().to_string();
        assert!(text.contains("h2") && text.contains("update") && !text.contains("port_security"), "{text}");
        assert!(!text.contains("rarp"), "{text}");

        moved.ports[1].chassis = Some("h1,h2".into());
        let text = operations(&render(&moved), &wanted)[0].to_json().to_string();
        assert!(text.contains("h1,h2") && text.contains("rarp"), "the second waits for the guest: {text}");
    }
}
