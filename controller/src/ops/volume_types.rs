//! Volume types: create, change, delete, who may use them. The default type is there from the beginning, without a
//! record until somebody changes it, and cannot be deleted.

use super::{Draft, Ops, OpsError, View};
use crate::model::*;
use amphi_api::{ProjectId, VolumeTypeId};
use jiff::Timestamp;
use std::collections::BTreeMap;

/// What is asked of a new type.
#[derive(Clone, Debug)]
pub struct VolumeTypeSpec {
    pub name: String,
    pub description: Option<String>,
    pub public: bool,
    pub extra_specs: BTreeMap<String, String>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum VolumeTypeChange {
    Name(String),
    Description(Option<String>),
    Public(bool),
    /// Adds to what is there.
    ExtraSpecs(BTreeMap<String, String>),
    RemoveExtraSpec(String),
    Admit(ProjectId),
    Dismiss(ProjectId),
}

/// All types, the default one first.
pub fn all(view: &View) -> Vec<VolumeTypeRecord> {
    let changed = view.volume_types.get(VolumeTypeRecord::DEFAULT);
    let default = changed.map_or_else(VolumeTypeRecord::default_type, |row| (*row.record).clone());
    let others = view.volume_types.iter().filter(|row| row.id != VolumeTypeRecord::DEFAULT);
    std::iter::once(default).chain(others.map(|row| (*row.record).clone())).collect()
}

pub fn get(view: &View, id: VolumeTypeId) -> Option<VolumeTypeRecord> {
    match view.volume_types.get(id) {
        Some(row) => Some((*row.record).clone()),
        None => (id == VolumeTypeRecord::DEFAULT).then(VolumeTypeRecord::default_type),
    }
}

/// A type's name; of one that is not there any more, nothing.
pub fn name_of(view: &View, id: Option<VolumeTypeId>) -> Option<String> {
    get(view, id.unwrap_or(VolumeTypeRecord::DEFAULT)).map(|kind| kind.name)
}

/// By id or name, as clients give it.
pub fn named(view: &View, text: &str) -> Option<VolumeTypeRecord> {
    let by_id = uuid::Uuid::try_parse(text).ok().and_then(|id| get(view, VolumeTypeId(id)));
    by_id.or_else(|| all(view).into_iter().find(|kind| kind.name == text))
}

/// The type, if the project may ask for it.
pub(super) fn usable(view: &View, scope: ProjectId, id: VolumeTypeId) -> Result<VolumeTypeRecord, OpsError> {
    get(view, id)
        .filter(|kind| kind.open_to(scope))
        .ok_or_else(|| OpsError::not_found::<VolumeTypeRecord>(id))
}

/// Volumes of a project that are of a type, and their GiB.
pub fn used(view: &View, project: ProjectId, id: VolumeTypeId) -> (u64, u64) {
    let of_type = |row: &&super::Row<VolumeRecord>| {
        row.seen() && row.traits.volume_type.unwrap_or(VolumeTypeRecord::DEFAULT) == id
    };
    view.volumes
        .of_project(project)
        .filter(of_type)
        .fold((0, 0), |(count, gib), row| (count + 1, gib + row.size_gib))
}

impl Ops {
    pub async fn create_volume_type(&self, spec: &VolumeTypeSpec) -> Result<VolumeTypeRecord, OpsError> {
        check_name(&spec.name)?;
        let record = VolumeTypeRecord {
            id: VolumeTypeId::new(),
            name: spec.name.clone(),
            description: spec.description.clone(),
            public: spec.public,
            extra_specs: spec.extra_specs.clone(),
            projects: Default::default(),
            created_at: Timestamp::now(),
        };
        check_items(&record.extra_specs)?;
        self.transact(|view| {
            refuse_taken(view, &record.name, None)?;
            let mut draft = Draft::default();
            draft.create(&record);
            draft.reserve(name_key(&record.name), record.id);
            Ok((draft, ()))
        })
        .await?;
        Ok(record)
    }

    /// All changes or none.
    pub async fn change_volume_type(
        &self,
        id: VolumeTypeId,
        changes: &[VolumeTypeChange],
    ) -> Result<VolumeTypeRecord, OpsError> {
        self.transact(|view| {
            let before = get(view, id).ok_or_else(|| OpsError::not_found::<VolumeTypeRecord>(id))?;
            let mut record = before.clone();
            changes.iter().try_for_each(|change| apply(&mut record, change))?;
            check_items(&record.extra_specs)?;
            let mut draft = Draft::default();
            if record.name != before.name {
                check_name(&record.name)?;
                refuse_taken(view, &record.name, Some(id))?;
                if id != VolumeTypeRecord::DEFAULT || view.volume_types.get(id).is_some() {
                    draft.release(name_key(&before.name));
                }
                draft.reserve(name_key(&record.name), id);
            } else if view.volume_types.get(id).is_none() {
                draft.reserve(name_key(&record.name), id);
            }
            draft.put_record(view.volume_types.get(id), &record);
            Ok((draft, record))
        })
        .await
    }

    /// Refused while a volume is of it.
    pub async fn delete_volume_type(&self, id: VolumeTypeId) -> Result<(), OpsError> {
        self.transact(|view| {
            if id == VolumeTypeRecord::DEFAULT {
                return Err(OpsError::field("volume_type", "the default volume type cannot be deleted"));
            }
            let row = view.volume_types.get(id).ok_or_else(|| OpsError::not_found::<VolumeTypeRecord>(id))?;
            if view.volumes.iter().any(|v| v.seen() && v.traits.volume_type == Some(id)) {
                return Err(OpsError::field("volume_type", "volumes of this type exist"));
            }
            let mut draft = Draft::default();
            draft.delete(row);
            draft.release(name_key(&row.name));
            Ok((draft, ()))
        })
        .await
    }
}

fn apply(record: &mut VolumeTypeRecord, change: &VolumeTypeChange) -> Result<(), OpsError> {
    match change {
        VolumeTypeChange::Name(name) => record.name.clone_from(name),
        VolumeTypeChange::Description(text) => record.description.clone_from(text),
        VolumeTypeChange::Public(public) => record.public = *public,
        VolumeTypeChange::ExtraSpecs(specs) => record.extra_specs.extend(specs.clone()),
        VolumeTypeChange::RemoveExtraSpec(key) => {
            let gone = record.extra_specs.remove(key);
            gone.ok_or_else(|| OpsError::NotFound { noun: "extra spec", id: key.clone() })?;
        }
        VolumeTypeChange::Admit(_) if record.public => {
            return Err(OpsError::conflict("the volume type is public: everybody may use it"));
        }
        VolumeTypeChange::Admit(project) => {
            if !record.projects.insert(*project) {
                return Err(OpsError::conflict("the project may use the volume type already"));
            }
        }
        VolumeTypeChange::Dismiss(project) => {
            if !record.projects.remove(project) {
                return Err(OpsError::NotFound { noun: "access of project", id: project.to_string() });
            }
        }
    }
    Ok(())
}

fn check_name(name: &str) -> Result<(), OpsError> {
    let length = name.chars().count();
    if name.trim().is_empty() || length > 255 {
        return Err(OpsError::field("name", "must have 1 to 255 characters"));
    }
    Ok(())
}

fn refuse_taken(view: &View, name: &str, but: Option<VolumeTypeId>) -> Result<(), OpsError> {
    match all(view).iter().any(|kind| kind.name == name && Some(kind.id) != but) {
        true => Err(OpsError::taken("name", format!("Volume Type {name} already exists."))),
        false => Ok(()),
    }
}

fn name_key(name: &str) -> String {
    format!("/volume-type-name/{}", hex::encode(name))
}
