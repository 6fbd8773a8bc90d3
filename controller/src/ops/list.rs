//! Lists: filter by name, limit and marker. Order is that of creation.

use super::view::{Row, Table};
use super::{OpsError, View};
use crate::model::Record;
use amphi_api::ProjectId;

/// Most entries of one page.
pub const LIMIT_MAX: u32 = 1000;

/// What a list may be asked.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ListQuery {
    /// Exactly this name.
    pub name: Option<String>,
    /// 1 to 1,000 entries. Default: all.
    pub limit: Option<u32>,
    /// Only what comes after this id.
    pub marker: Option<String>,
}

impl ListQuery {
    /// The rows of a project that are asked for, of those that `keep` keeps.
    pub(super) fn rows<'a, R: Record>(
        &self,
        table: &'a Table<R>,
        scope: ProjectId,
        keep: impl Fn(&R) -> bool + 'a,
    ) -> Result<Vec<&'a Row<R>>, OpsError> {
        if self.limit.is_some_and(|limit| limit == 0 || limit > LIMIT_MAX) {
            return Err(OpsError::field("limit", format!("must be 1 to {LIMIT_MAX}")));
        }
        let marker = match &self.marker {
            None => None,
            Some(text) => {
                let id = text.parse::<R::Id>().ok();
                let known = id.and_then(|id| table.get(id)).filter(|row| owned::<R>(row, scope));
                let row = known.ok_or_else(|| OpsError::field("marker", format!("no {} {text}", R::NOUN)))?;
                Some(row.id())
            }
        };
        let limit = self.limit.map_or(usize::MAX, |limit| limit as usize);
        let keep = move |row: &&'a Row<R>| keep(row);
        Ok(match &self.name {
            Some(name) => table
                .named(scope, name)
                .into_iter()
                .filter(|row| marker.is_none_or(|m| row.id() > m))
                .filter(keep)
                .take(limit)
                .collect(),
            None => table.of_project_after(scope, marker).filter(keep).take(limit).collect(),
        })
    }
}

fn owned<R: Record>(record: &R, scope: ProjectId) -> bool {
    record.owner().is_some_and(|(project, _)| project == scope)
}

/// The row of this id, if the project owns it.
pub(super) fn find<R: Record>(table: &Table<R>, scope: ProjectId, id: R::Id) -> Result<&Row<R>, OpsError> {
    table.get(id).filter(|row| owned::<R>(row, scope)).ok_or_else(|| OpsError::not_found::<R>(id))
}

impl View {
    pub fn host_name(&self, host: amphi_api::HostId) -> Option<String> {
        let group = || self.group_at(host).map(|group| group.name.clone());
        self.hosts.get(host).map(|h| h.name.clone()).or_else(group)
    }

    pub fn host_up(&self, host: amphi_api::HostId) -> bool {
        match self.hosts.get(host) {
            Some(host) => host.is_up(),
            None => self.group_at(host).is_some() && self.hosts_seeing(host).any(|h| h.is_up()),
        }
    }
}
