//! A transaction in the making: records in, compares and puts out. Claims of one host are gathered, since no key may be
//! written twice.

use super::view::{Row, View};
use crate::model::{ClaimRecord, Record};
use crate::store::{Compare, Op, Txn};
use amphi_api::HostId;
use amphi_api::host::Claims;
use std::collections::BTreeMap;

#[derive(Debug, Default)]
pub struct Draft {
    txn: Txn,
    claims: BTreeMap<HostId, Vec<(bool, Claims)>>,
}

impl Draft {
    /// A new record: its key must be absent.
    pub fn create<R: Record>(&mut self, record: &R) {
        self.compare(record.key(), 0);
        self.put(record.key(), value_of(record));
    }

    /// The record in place of the row, which must be unchanged.
    pub fn update<R: Record>(&mut self, row: &Row<R>, record: &R) {
        self.compare(row.key(), row.version);
        self.put(row.key(), value_of(record));
    }

    /// A new record, or one in place of the row.
    pub fn put_record<R: Record>(&mut self, row: Option<&Row<R>>, record: &R) {
        match row {
            Some(row) => self.update(row, record),
            None => self.create(record),
        }
    }

    /// Writes the row again as it is, so that whoever decides on it at the same time must look again.
    pub fn touch<R: Record>(&mut self, row: &Row<R>) {
        self.update(row, &row.record);
    }

    pub fn delete<R: Record>(&mut self, row: &Row<R>) {
        self.compare(row.key(), row.version);
        self.release(row.key());
    }

    /// The row must be unchanged.
    pub fn guard<R: Record>(&mut self, row: &Row<R>) {
        self.compare(row.key(), row.version);
    }

    /// Takes a key that only reserves something.
    pub fn reserve(&mut self, key: String, owner: impl serde::Serialize) {
        self.compare(key.clone(), 0);
        self.put(key, value_of(&owner));
    }

    pub fn release(&mut self, key: String) {
        self.txn.ops.push(Op::Delete { key });
    }

    /// Whether the record is written or deleted already: no key may be twice in one transaction.
    pub fn writes(&self, key: &str) -> bool {
        self.txn.ops.iter().any(|op| match op {
            Op::Put { key: written, .. } | Op::Delete { key: written } => written == key,
        })
    }

    /// Compares and writes so far, those of claims included.
    pub(super) fn size(&self) -> usize {
        self.txn.compares.len() + self.txn.ops.len() + 2 * self.claims.len()
    }

    /// Whether it changes what is promised of any host.
    pub(super) fn claims_room(&self) -> bool {
        !self.claims.is_empty()
    }

    /// Promises more of the host.
    pub fn claim(&mut self, host: HostId, claims: Claims) {
        self.claims.entry(host).or_default().push((true, claims));
    }

    /// Promises less of the host.
    pub fn unclaim(&mut self, host: HostId, claims: Claims) {
        self.claims.entry(host).or_default().push((false, claims));
    }

    fn compare(&mut self, key: String, version: u64) {
        let compare = Compare { key, version };
        if !self.txn.compares.contains(&compare) {
            self.txn.compares.push(compare);
        }
    }

    fn put(&mut self, key: String, value: serde_json::Value) {
        self.txn.ops.push(Op::Put { key, value, lease: None });
    }

    /// The transaction, against the view that it was decided on.
    pub(super) fn into_txn(mut self, view: &View) -> Txn {
        for (host, changes) in std::mem::take(&mut self.claims) {
            let mut claims = view.claims_of(host);
            for (more, change) in changes {
                claims = if more { claims.plus(change) } else { claims.minus(change) };
            }
            self.put_record(view.claim_row(host).as_ref(), &ClaimRecord { host, claims });
        }
        self.txn
    }
}

fn value_of(record: &impl serde::Serialize) -> serde_json::Value {
    // Records are plain data with string keys: serialising them cannot fail.
    serde_json::to_value(record).expect("a record is plain data")
}

/// For a decision that nobody has room: it rests on what is promised, some of which is on its way only. What comes to
/// nothing makes it be decided anew.
pub(super) fn guard_promises(view: &View, draft: &mut Draft) {
    view.hosts.iter().filter_map(|h| view.claim_row(h.id)).for_each(|row| draft.guard(&row));
}
