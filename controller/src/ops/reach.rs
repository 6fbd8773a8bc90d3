//! How far whoever asks can reach: the records of a project, or every project's.

use super::view::{Row, Table};
use super::{Draft, Ops, OpsError, View};
use crate::model::network::Noted;
use crate::model::{NetworkRecord, QosPolicyRecord, Record};
use amphi_api::{NetworkId, ProjectId, QosPolicyId};
use jiff::Timestamp;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reach {
    pub project: ProjectId,
    /// Every project's records.
    pub admin: bool,
}

impl Reach {
    pub fn of(project: ProjectId) -> Self {
        Self { project, admin: false }
    }

    pub fn owns<R: Record>(&self, record: &R) -> bool {
        self.admin || record.owner().is_some_and(|(project, _)| project == self.project)
    }

    /// The row of this id, if it may be changed from here.
    pub fn find<'a, R: Record>(&self, table: &'a Table<R>, id: R::Id) -> Result<&'a Row<R>, OpsError> {
        table.get(id).filter(|row| self.owns(&*row.record)).ok_or_else(|| OpsError::not_found::<R>(id))
    }

    /// A network that ports may be put on.
    pub(super) fn network<'a>(
        &self,
        view: &'a View,
        id: NetworkId,
    ) -> Result<&'a Row<NetworkRecord>, OpsError> {
        let row = view.networks.get(id).filter(|row| self.owns(&*row.record) || row.shared);
        row.ok_or_else(|| OpsError::not_found::<NetworkRecord>(id))
    }

    pub(super) fn policy<'a>(
        &self,
        view: &'a View,
        id: QosPolicyId,
    ) -> Result<&'a Row<QosPolicyRecord>, OpsError> {
        let row = view.qos_policies.get(id).filter(|row| self.owns(&*row.record) || row.shared);
        row.filter(|row| !row.closing).ok_or_else(|| OpsError::not_found::<QosPolicyRecord>(id))
    }
}

impl Ops {
    /// Changes a record of the network service; what is left as it was is not written.
    pub(super) async fn amend<R: Noted>(
        &self,
        reach: Reach,
        pick: impl Fn(&View) -> &Table<R>,
        id: R::Id,
        edit: impl Fn(&View, &mut R, &mut Draft) -> Result<(), OpsError>,
    ) -> Result<(), OpsError> {
        self.transact(|view| {
            let row = reach.find(pick(view), id)?;
            let mut record = (*row.record).clone();
            let mut draft = Draft::default();
            edit(view, &mut record, &mut draft)?;
            if record != *row.record {
                record.notes_mut().updated_at = Some(Timestamp::now());
                draft.update(row, &record);
            }
            Ok((draft, ()))
        })
        .await
    }
}

/// Most tags of a thing: neutron's bound.
const TAGS_MAX: usize = 50;

impl Ops {
    /// Changes the tags of a thing; answers what `edit` answered of the tags it found.
    pub async fn edit_tags<R: Noted>(
        &self,
        reach: Reach,
        pick: impl Fn(&View) -> &Table<R>,
        id: R::Id,
        edit: impl Fn(&mut std::collections::BTreeSet<String>) -> bool,
    ) -> Result<bool, OpsError> {
        self.transact(|view| {
            let row = reach.find(pick(view), id)?;
            let mut record = (*row.record).clone();
            let done = edit(&mut record.notes_mut().tags);
            if record.notes().tags.len() > TAGS_MAX {
                return Err(OpsError::field("tags", format!("at most {TAGS_MAX} tags")));
            }
            let mut draft = Draft::default();
            if record != *row.record {
                record.notes_mut().updated_at = Some(Timestamp::now());
                draft.update(row, &record);
            }
            Ok((draft, done))
        })
        .await
    }
}
