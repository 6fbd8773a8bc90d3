//! Regions, which may nest. Their ids are chosen by clients.

use super::names;
use crate::model::identity::*;
use crate::ops::{Draft, Ops, OpsError, View};

/// What a new region is to be, or what is to change.
#[derive(Clone, Debug, Default)]
pub struct RegionChange {
    pub name: Option<String>,
    pub description: Option<String>,
    /// `Some(None)`: none any more.
    pub parent: Option<Option<String>>,
    pub extra: Extra,
}

pub(super) fn check_name(name: &str) -> Result<(), OpsError> {
    names::check(name, names::LONG_NAME_MAX)
        .map_err(|_| OpsError::field("id", "must have 1 to 255 characters"))
}

fn missing(name: &str) -> OpsError {
    OpsError::not_found::<RegionRecord>(name)
}

impl Ops {
    pub async fn create_region(&self, change: &RegionChange) -> Result<RegionRecord, OpsError> {
        let fresh = || RegionKey::new().to_string();
        let record = RegionRecord {
            name: change.name.clone().filter(|name| !name.is_empty()).unwrap_or_else(fresh),
            description: change.description.clone().unwrap_or_default(),
            parent: change.parent.clone().flatten(),
            extra: change.extra.clone(),
        };
        check_name(&record.name)?;
        self.transact(|view| {
            if view.identity.regions.get(RegionKey::of(&record.name)).is_some() {
                return Err(OpsError::taken("id", format!("Duplicate ID, {}.", record.name)));
            }
            let mut draft = Draft::default();
            check_parent(view, &mut draft, &record)?;
            draft.create(&record);
            Ok((draft, ()))
        })
        .await?;
        Ok(record)
    }

    pub async fn update_region(&self, name: &str, change: &RegionChange) -> Result<RegionRecord, OpsError> {
        self.transact(|view| {
            let row = view.identity.regions.get(RegionKey::of(name)).ok_or_else(|| missing(name))?;
            let mut record = (*row.record).clone();
            if let Some(description) = &change.description {
                record.description = description.clone();
            }
            if let Some(parent) = &change.parent {
                record.parent = parent.clone();
            }
            names::overlay(&mut record.extra, &change.extra);
            let mut draft = Draft::default();
            check_parent(view, &mut draft, &record)?;
            draft.update(row, &record);
            Ok((draft, record))
        })
        .await
    }

    /// Only one without endpoints and without regions in it.
    pub async fn delete_region(&self, name: &str) -> Result<(), OpsError> {
        self.transact(|view| {
            let identity = &view.identity;
            let row = identity.regions.get(RegionKey::of(name)).ok_or_else(|| missing(name))?;
            if identity.regions.iter().any(|r| r.parent.as_deref() == Some(name)) {
                return Err(OpsError::Forbidden(format!("Unable to delete region {name}: it has child regions.")));
            }
            if identity.endpoints.iter().any(|e| e.region.as_deref() == Some(name)) {
                return Err(OpsError::Forbidden(format!(
                    "Unable to delete region {name} because it or its child regions have associated endpoints."
                )));
            }
            let mut draft = Draft::default();
            draft.delete(row);
            Ok((draft, ()))
        })
        .await
    }
}

fn check_parent(view: &View, draft: &mut Draft, region: &RegionRecord) -> Result<(), OpsError> {
    let Some(parent) = &region.parent else { return Ok(()) };
    let row = view.identity.regions.get(RegionKey::of(parent)).ok_or_else(|| missing(parent))?;
    let mut above = Some(row);
    let mut steps = 0;
    while let Some(row) = above {
        steps += 1;
        if row.name == region.name || steps > 32 {
            return Err(OpsError::field("parent_region_id", "the regions would be in each other"));
        }
        above = row.parent.as_ref().and_then(|name| view.identity.regions.get(RegionKey::of(name)));
    }
    draft.guard(row);
    Ok(())
}
