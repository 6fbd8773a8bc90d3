//! What a transaction must be, and what it does to a set of entries. Pure; every engine that keeps its own memory
//! decides with this.

use super::{Compare, Entry, Event, Op, Revision, StoreError, TXN_OPS_MAX, Txn, VALUE_MAX};
use std::collections::BTreeSet;

/// Longest key, in bytes: an index of long keys would make pages that sled does not keep safe.
const KEY_MAX: usize = 256;

/// Refuses what no engine would take.
pub fn well_formed(txn: &Txn) -> Result<(), StoreError> {
    let invalid = |what: String| Err(StoreError::Invalid(what));
    if txn.ops.len() + txn.compares.len() > TXN_OPS_MAX {
        return invalid(format!(
            "{} operations, more than {TXN_OPS_MAX}",
            txn.ops.len() + txn.compares.len()
        ));
    }
    let mut written = BTreeSet::new();
    for op in &txn.ops {
        let key = match op {
            Op::Put { key, .. } | Op::Delete { key } => key,
        };
        if !key.starts_with('/') || key.len() > KEY_MAX || key.contains(char::is_control) {
            return invalid(format!("{key:?} is no key: `/kind/id`, at most {KEY_MAX} bytes"));
        }
        if !written.insert(key) {
            return invalid(format!("{key} is written twice"));
        }
        if let Op::Put { value, .. } = op {
            let size = value.to_string().len();
            if size > VALUE_MAX {
                return invalid(format!("the value of {key} has {size} bytes, more than {VALUE_MAX}"));
            }
        }
    }
    Ok(())
}

/// The first compare that does not hold, as an error.
pub fn compares_hold(compares: &[Compare], version: impl Fn(&str) -> u64) -> Result<(), StoreError> {
    for compare in compares {
        let found = version(&compare.key);
        if found != compare.version {
            return Err(StoreError::Conflict { key: compare.key.clone(), expected: compare.version, found });
        }
    }
    Ok(())
}

/// What the transaction's operations do at `revision`. Deleting what is absent does nothing.
pub fn events(ops: &[Op], revision: Revision, version: impl Fn(&str) -> u64) -> Vec<Event> {
    ops.iter()
        .filter_map(|op| match op {
            Op::Put { key, value, .. } => Some(Event::Put(Entry {
                key: key.clone(),
                value: value.clone(),
                version: version(key) + 1,
                modified: revision,
            })),
            Op::Delete { key } => (version(key) > 0).then(|| Event::Deleted { key: key.clone() }),
        })
        .collect()
}
