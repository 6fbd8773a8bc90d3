//! Flavors: the sizes that instances are made of.

use super::view::Row;
use super::{Draft, Ops, OpsError, View};
use crate::model::*;
use crate::store::{Compare, Op, Txn};
use amphi_api::ProjectId;
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};

/// Greatest figure: nova's MAX_INT.
pub const FIGURE_MAX: u64 = 0x7fff_ffff;
/// Greatest description: a column of 64 KiB in nova; ours must fit a record.
pub const DESCRIPTION_MAX: usize = 65_535;
/// Most extra specs of one flavor.
const SPECS_MAX: usize = 256;
/// The key that says that the default flavors were made once: what an operator deletes stays deleted.
const MADE_KEY: &str = "/made/default-flavors";

/// What is asked of a new flavor; the rest as in [`FlavorRecord`].
#[derive(Clone, Debug)]
pub struct FlavorSpec {
    /// None: a UUID.
    pub id: Option<String>,
    pub name: String,
    pub vcpus: u32,
    pub ram_mib: u64,
    pub disk_gib: u64,
    pub ephemeral_gib: u64,
    pub swap_mib: u64,
    pub rxtx_factor: f64,
    pub is_public: bool,
    pub description: Option<String>,
}

impl Ops {
    /// Makes the default flavors, once in a cloud's life.
    pub async fn make_default_flavors(&self) -> Result<(), OpsError> {
        if self.store.get(MADE_KEY).await?.is_some() {
            return Ok(());
        }
        let mut txn = Txn::default();
        let now = Timestamp::now();
        let mut put = |key: String, value: serde_json::Value| {
            txn.compares.push(Compare { key: key.clone(), version: 0 });
            txn.ops.push(Op::Put { key, value, lease: None });
        };
        put(MADE_KEY.into(), true.into());
        for (id, name, vcpus, ram_mib, disk_gib) in DEFAULT_FLAVORS {
            let record = FlavorRecord {
                id: (*id).into(),
                name: (*name).into(),
                vcpus: *vcpus,
                ram_mib: *ram_mib,
                disk_gib: *disk_gib,
                ephemeral_gib: 0,
                swap_mib: 0,
                rxtx_factor: 1.0,
                is_public: true,
                disabled: false,
                access: BTreeSet::new(),
                extra_specs: BTreeMap::new(),
                description: None,
                created_at: now,
            };
            // A record is plain data with string keys: serialising it cannot fail.
            put(Record::key(&record), serde_json::to_value(&record).expect("a record is plain data"));
            put(FlavorRecord::name_key(name), record.id.into());
        }
        match self.store.commit(txn).await {
            Ok(revision) => self.reach(revision).await,
            // Another controller made them, or somebody took a name first: the operator's are good enough.
            Err(crate::store::StoreError::Conflict { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    pub async fn create_flavor(&self, spec: &FlavorSpec) -> Result<FlavorRecord, OpsError> {
        let record = record_of(spec, Timestamp::now())?;
        self.transact(|view| {
            if view.flavors.get(record.key()).is_some() {
                return Err(OpsError::taken("id", format!("Flavor with ID {} already exists.", record.id)));
            }
            if view.flavors.iter().any(|row| row.name == record.name) {
                return Err(OpsError::taken(
                    "name",
                    format!("Flavor with name {} already exists.", record.name),
                ));
            }
            let mut draft = Draft::default();
            draft.create(&record);
            draft.reserve(FlavorRecord::name_key(&record.name), &record.id);
            Ok((draft, ()))
        })
        .await?;
        Ok(record)
    }

    /// Instances keep their copy: nothing that runs changes.
    pub async fn delete_flavor(&self, id: &str) -> Result<(), OpsError> {
        self.transact(|view| {
            let row = get(view, id)?;
            let mut draft = Draft::default();
            draft.delete(row);
            draft.release(FlavorRecord::name_key(&row.name));
            Ok((draft, ()))
        })
        .await
    }

    pub async fn describe_flavor(
        &self,
        id: &str,
        description: Option<String>,
    ) -> Result<FlavorRecord, OpsError> {
        check_description(description.as_deref())?;
        self.change_flavor(id, |record| {
            record.description = description.clone();
            Ok(())
        })
        .await
    }

    pub async fn add_flavor_access(&self, id: &str, project: ProjectId) -> Result<FlavorRecord, OpsError> {
        self.change_flavor(id, |record| match record.access.insert(project) {
            true => Ok(()),
            false => Err(OpsError::conflict(format!(
                "Flavor access already exists for flavor {id} and project {} combination.",
                project.0.simple()
            ))),
        })
        .await
    }

    pub async fn remove_flavor_access(&self, id: &str, project: ProjectId) -> Result<FlavorRecord, OpsError> {
        self.change_flavor(id, |record| match record.access.remove(&project) {
            true => Ok(()),
            false => {
                Err(OpsError::NotFound { noun: "access to the flavor", id: project.0.simple().to_string() })
            }
        })
        .await
    }

    /// Adds extra specs, or replaces their values.
    pub async fn set_flavor_specs(
        &self,
        id: &str,
        specs: &BTreeMap<String, String>,
    ) -> Result<FlavorRecord, OpsError> {
        for (key, value) in specs {
            check_spec(key, value)?;
        }
        self.change_flavor(id, |record| {
            record.extra_specs.extend(specs.clone());
            if record.extra_specs.len() > SPECS_MAX {
                return Err(OpsError::field("extra_specs", format!("at most {SPECS_MAX} keys")));
            }
            Ok(())
        })
        .await
    }

    pub async fn unset_flavor_spec(&self, id: &str, key: &str) -> Result<FlavorRecord, OpsError> {
        self.change_flavor(id, |record| match record.extra_specs.remove(key) {
            Some(_) => Ok(()),
            None => Err(OpsError::NotFound { noun: "extra spec", id: key.to_owned() }),
        })
        .await
    }

    async fn change_flavor(
        &self,
        id: &str,
        change: impl Fn(&mut FlavorRecord) -> Result<(), OpsError>,
    ) -> Result<FlavorRecord, OpsError> {
        self.transact(|view| {
            let row = get(view, id)?;
            let mut record = (*row.record).clone();
            change(&mut record)?;
            let mut draft = Draft::default();
            if record != *row.record {
                draft.update(row, &record);
            }
            Ok((draft, record))
        })
        .await
    }
}

/// The flavor of this id.
pub fn get<'a>(view: &'a View, id: &str) -> Result<&'a Row<FlavorRecord>, OpsError> {
    view.flavors.get(FlavorKey::of(id)).ok_or_else(|| OpsError::not_found::<FlavorRecord>(id))
}

/// The flavor of this id that a new instance of the project may have.
pub fn usable<'a>(
    view: &'a View,
    project: ProjectId,
    admin: bool,
    id: &str,
) -> Result<&'a Row<FlavorRecord>, OpsError> {
    let row = get(view, id)?;
    let open = admin || (row.open_to(project) && !row.disabled);
    if open { Ok(row) } else { Err(OpsError::not_found::<FlavorRecord>(id)) }
}

fn record_of(spec: &FlavorSpec, now: Timestamp) -> Result<FlavorRecord, OpsError> {
    let id = match &spec.id {
        None => uuid::Uuid::new_v4().to_string(),
        Some(id) => {
            let fits = |c: char| c.is_ascii_alphanumeric() || ". _-".contains(c);
            if id.is_empty() || id.len() > 255 || id.trim() != id || !id.chars().all(fits) {
                return Err(OpsError::field("id", "1 to 255 of letters, digits, '.', '_', '-' and spaces"));
            }
            id.clone()
        }
    };
    let name = spec.name.trim();
    if name.is_empty() || name.chars().count() > 255 || name.chars().any(char::is_control) {
        return Err(OpsError::field("name", "1 to 255 printable characters"));
    }
    let figures = [
        ("ram", spec.ram_mib, 1),
        ("vcpus", spec.vcpus.into(), 1),
        ("disk", spec.disk_gib, 0),
        ("ephemeral", spec.ephemeral_gib, 0),
        ("swap", spec.swap_mib, 0),
    ];
    for (field, figure, least) in figures {
        if !(least..=FIGURE_MAX).contains(&figure) {
            return Err(OpsError::field(field, format!("must be {least} to {FIGURE_MAX}")));
        }
    }
    // SQL_SP_FLOAT_MAX of nova/db/constants.py.
    if !(spec.rxtx_factor > 0.0 && spec.rxtx_factor <= 3.402_82e38) {
        return Err(OpsError::field("rxtx_factor", "must be a float between 0 and 3.40282e+38"));
    }
    check_description(spec.description.as_deref())?;
    Ok(FlavorRecord {
        id,
        name: name.to_owned(),
        vcpus: spec.vcpus,
        ram_mib: spec.ram_mib,
        disk_gib: spec.disk_gib,
        ephemeral_gib: spec.ephemeral_gib,
        swap_mib: spec.swap_mib,
        rxtx_factor: spec.rxtx_factor,
        is_public: spec.is_public,
        disabled: false,
        access: BTreeSet::new(),
        extra_specs: BTreeMap::new(),
        description: spec.description.clone(),
        created_at: now,
    })
}

fn check_description(text: Option<&str>) -> Result<(), OpsError> {
    let control = |c: char| c.is_control() && c != '\n' && c != '\t' && c != '\r';
    if text.is_some_and(|text| text.len() > DESCRIPTION_MAX || text.chars().any(control)) {
        return Err(OpsError::field(
            "description",
            format!("at most {DESCRIPTION_MAX} bytes of printable characters"),
        ));
    }
    Ok(())
}

/// Keys as nova's `VALID_EXTRASPEC_NAME_REGEX` has them: letters, digits, `_ . - :` and spaces.
fn check_spec(key: &str, value: &str) -> Result<(), OpsError> {
    let fits = |c: char| c.is_alphanumeric() || "_.- :".contains(c);
    if key.is_empty() || key.chars().count() > 255 || !key.chars().all(fits) {
        return Err(OpsError::field(
            "extra_specs",
            "Key Names can only contain alphanumeric characters, periods, dashes, underscores, colons and \
             spaces.",
        ));
    }
    if value.chars().count() > 255 {
        return Err(OpsError::field("extra_specs", format!("the value of {key} is longer than 255")));
    }
    Ok(())
}
