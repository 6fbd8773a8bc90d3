//! Aggregates of hosts and the zones that they make; and what an operator says of a host: disabled, forced down.
//!
//! A host is in one zone at most, and its zone does not change while instances are on it (nova's own rules, in
//! nova/compute/api.py `is_safe_to_update_az` and its neighbours).

use super::view::Row;
use super::{Draft, Ops, OpsError, View};
use crate::model::*;
use amphi_api::HostId;
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use uuid::Uuid;

/// Longest name of an aggregate and of a zone (nova/db/api/models.py).
const NAME_MAX: usize = 255;
/// Longest metadata key and value.
const METADATA_MAX: usize = 255;
/// Most metadata of one aggregate, so that it stays one record.
const METADATA_ITEMS_MAX: usize = 128;

/// A host's zone, and the metadata of all its aggregates.
type Group<'a> = (&'a str, Vec<(&'a str, &'a str)>);

/// The hosts' zones and metadata, looked up once for many hosts.
pub struct Grouped<'a>(HashMap<HostId, Group<'a>>);

impl<'a> Grouped<'a> {
    pub fn of(view: &'a View) -> Self {
        let mut hosts: HashMap<HostId, Group> = HashMap::new();
        for row in view.aggregates.iter() {
            for host in &row.hosts {
                let (zone, metadata) = hosts.entry(*host).or_insert((DEFAULT_ZONE, Vec::new()));
                if let Some(name) = &row.zone {
                    *zone = name;
                }
                metadata.extend(row.metadata.iter().map(|(k, v)| (k.as_str(), v.as_str())));
            }
        }
        Self(hosts)
    }

    pub fn zone(&self, host: HostId) -> &'a str {
        self.0.get(&host).map_or(DEFAULT_ZONE, |(zone, _)| zone)
    }

    pub fn metadata(&self, host: HostId) -> Vec<(&'a str, &'a str)> {
        self.0.get(&host).map(|(_, metadata)| metadata.clone()).unwrap_or_default()
    }
}

/// The availability zone of one host.
pub fn zone_of(view: &View, host: HostId) -> String {
    view.zone_of(host).to_owned()
}

/// All zones that have hosts, with them, in order of name.
pub fn zones(view: &View) -> BTreeMap<String, Vec<&Row<HostRecord>>> {
    let grouped = Grouped::of(view);
    let mut zones: BTreeMap<String, Vec<_>> = BTreeMap::new();
    for host in view.hosts.iter() {
        zones.entry(grouped.zone(host.id).to_owned()).or_default().push(host);
    }
    zones
}

/// What an operator says of a host; what is absent stays as it is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HostMark {
    /// Disabled, with a reason perhaps; enabling forgets the reason.
    pub disabled: Option<(bool, Option<String>)>,
    pub forced_down: Option<bool>,
    /// Whether instances of the class `best_effort` may come here.
    pub best_effort: Option<bool>,
}

impl Ops {
    /// Marks a host: disabled hosts and those that are forced down take no new instances.
    pub async fn mark_host(&self, id: HostId, mark: &HostMark) -> Result<(), OpsError> {
        self.transact_room(|view| {
            let row = view.hosts.get(id).ok_or_else(|| OpsError::not_found::<HostRecord>(id))?;
            let mut record = (*row.record).clone();
            if let Some((disabled, reason)) = &mark.disabled {
                record.disabled = *disabled;
                record.disabled_reason = reason.clone().filter(|_| *disabled);
            }
            record.best_effort = mark.best_effort.unwrap_or(record.best_effort);
            record.forced_down = mark.forced_down.unwrap_or(record.forced_down);
            let mut draft = Draft::default();
            if record != *row.record {
                draft.update(row, &record);
            }
            Ok((draft, ()))
        })
        .await
    }

    pub async fn create_aggregate(
        &self,
        name: &str,
        zone: Option<&str>,
    ) -> Result<AggregateRecord, OpsError> {
        check_name("name", name)?;
        check_zone(zone)?;
        self.transact(|view| {
            refuse_taken(view, name, None)?;
            let record = AggregateRecord {
                // Revisions only grow: no number comes twice.
                id: AggregateId(view.revision() + 1),
                uuid: Uuid::new_v4(),
                name: name.to_owned(),
                zone: zone.map(str::to_owned),
                metadata: BTreeMap::new(),
                hosts: BTreeSet::new(),
                created_at: Timestamp::now(),
                updated_at: None,
            };
            let mut draft = Draft::default();
            draft.create(&record);
            draft.reserve(name_key(name), record.id);
            Ok((draft, record))
        })
        .await
    }

    /// A new name, a new zone, or both.
    pub async fn update_aggregate(
        &self,
        id: AggregateId,
        name: Option<&str>,
        zone: Option<&str>,
    ) -> Result<AggregateRecord, OpsError> {
        name.map_or(Ok(()), |name| check_name("name", name))?;
        check_zone(zone)?;
        self.change_aggregate(id, |view, draft, record| {
            if let Some(name) = name.filter(|name| *name != record.name) {
                refuse_taken(view, name, Some(id))?;
                draft.release(name_key(&record.name));
                draft.reserve(name_key(name), id);
                record.name = name.to_owned();
            }
            match zone {
                Some(zone) => rezone(view, record, Some(zone.to_owned())),
                None => Ok(()),
            }
        })
        .await
    }

    /// Adds metadata; a key without a value is taken away. The zone is one of them.
    pub async fn set_aggregate_metadata(
        &self,
        id: AggregateId,
        changes: &BTreeMap<String, Option<String>>,
    ) -> Result<AggregateRecord, OpsError> {
        for (key, value) in changes {
            let fits = |text: &str| text.chars().count() <= METADATA_MAX;
            if key.is_empty() || !fits(key) || value.as_deref().is_some_and(|v| !fits(v)) {
                return Err(OpsError::field(
                    "metadata",
                    format!("keys and values have at most {METADATA_MAX} characters"),
                ));
            }
        }
        if let Some(Some(zone)) = changes.get(ZONE_KEY) {
            check_zone(Some(zone))?;
        }
        self.change_aggregate(id, |view, _, record| {
            for (key, value) in changes.iter().filter(|(key, _)| *key != ZONE_KEY) {
                match value {
                    Some(value) => drop(record.metadata.insert(key.clone(), value.clone())),
                    None => drop(record.metadata.remove(key)),
                }
            }
            if record.metadata.len() > METADATA_ITEMS_MAX {
                return Err(OpsError::field("metadata", format!("at most {METADATA_ITEMS_MAX} keys")));
            }
            match changes.get(ZONE_KEY) {
                Some(zone) => rezone(view, record, zone.clone()),
                None => Ok(()),
            }
        })
        .await
    }

    pub async fn add_aggregate_host(&self, id: AggregateId, host: &str) -> Result<AggregateRecord, OpsError> {
        self.change_aggregate(id, |view, draft, record| {
            let row = view.host_named(host).ok_or_else(|| OpsError::not_found::<HostRecord>(host))?;
            draft.guard(row);
            if record.hosts.contains(&row.id) {
                return Err(OpsError::conflict(format!("aggregate {id} has host {host} already")));
            }
            if let Some(zone) = &record.zone {
                refuse_two_zones(view, id, row.id, zone)?;
                if zone_of(view, row.id) != *zone {
                    refuse_instances(view, row.id)?;
                }
            }
            record.hosts.insert(row.id);
            Ok(())
        })
        .await
    }

    pub async fn remove_aggregate_host(
        &self,
        id: AggregateId,
        host: &str,
    ) -> Result<AggregateRecord, OpsError> {
        self.change_aggregate(id, |view, _, record| {
            let known = view.host_named(host).map(|row| row.id).filter(|id| record.hosts.contains(id));
            let host = known
                .ok_or_else(|| OpsError::NotFound { noun: "host in the aggregate", id: host.to_owned() })?;
            record.hosts.remove(&host);
            let others = view.aggregates.iter().filter(|a| a.id != id && a.hosts.contains(&host));
            let stays = others.filter_map(|a| a.zone.as_ref()).any(|zone| Some(zone) == record.zone.as_ref());
            if record.zone.is_some() && !stays { refuse_instances(view, host) } else { Ok(()) }
        })
        .await
    }

    /// Only one without hosts.
    pub async fn delete_aggregate(&self, id: AggregateId) -> Result<(), OpsError> {
        self.transact(|view| {
            let row = view.aggregates.get(id).ok_or_else(|| OpsError::not_found::<AggregateRecord>(id))?;
            if !row.hosts.is_empty() {
                return Err(OpsError::field("id", format!("aggregate {id} is not empty: remove its hosts")));
            }
            let mut draft = Draft::default();
            draft.delete(row);
            draft.release(name_key(&row.name));
            Ok((draft, ()))
        })
        .await
    }

    async fn change_aggregate(
        &self,
        id: AggregateId,
        change: impl Fn(&View, &mut Draft, &mut AggregateRecord) -> Result<(), OpsError>,
    ) -> Result<AggregateRecord, OpsError> {
        self.transact(|view| {
            let row = view.aggregates.get(id).ok_or_else(|| OpsError::not_found::<AggregateRecord>(id))?;
            let mut draft = Draft::default();
            let mut record = (*row.record).clone();
            change(view, &mut draft, &mut record)?;
            if record != *row.record {
                record.updated_at = Some(Timestamp::now());
                draft.update(row, &record);
            }
            Ok((draft, record))
        })
        .await
    }
}

fn name_key(name: &str) -> String {
    format!("/aggregate-name/{}", Uuid::new_v5(&Uuid::NAMESPACE_OID, name.as_bytes()))
}

fn check_name(field: &str, name: &str) -> Result<(), OpsError> {
    let length = name.chars().count();
    if length == 0 || length > NAME_MAX || name.trim() != name || name.chars().any(char::is_control) {
        return Err(OpsError::field(
            field,
            format!("1 to {NAME_MAX} printable characters, without space at either end"),
        ));
    }
    Ok(())
}

fn check_zone(zone: Option<&str>) -> Result<(), OpsError> {
    let Some(zone) = zone else { return Ok(()) };
    check_name("availability_zone", zone)?;
    // `ZONE:HOST` is how clients pin a host.
    if zone.contains(':') || zone == INTERNAL_ZONE {
        return Err(OpsError::field(
            "availability_zone",
            format!("must not contain ':' nor be '{INTERNAL_ZONE}'"),
        ));
    }
    Ok(())
}

fn refuse_taken(view: &View, name: &str, but: Option<AggregateId>) -> Result<(), OpsError> {
    if view.aggregates.iter().any(|a| a.name == name && Some(a.id) != but) {
        return Err(OpsError::taken("name", format!("aggregate {name} already exists.")));
    }
    Ok(())
}

fn rezone(view: &View, record: &mut AggregateRecord, zone: Option<String>) -> Result<(), OpsError> {
    if record.zone == zone {
        return Ok(());
    }
    for host in &record.hosts {
        if let Some(zone) = &zone {
            refuse_two_zones(view, record.id, *host, zone).map_err(as_field)?;
        }
        refuse_instances(view, *host).map_err(as_field)?;
    }
    record.zone = zone;
    Ok(())
}

/// Where the zone itself is what is asked, it is the field at fault.
fn as_field(error: OpsError) -> OpsError {
    match error {
        OpsError::Conflict { message, .. } => OpsError::field("availability_zone", message),
        error => error,
    }
}

fn refuse_two_zones(view: &View, but: AggregateId, host: HostId, zone: &str) -> Result<(), OpsError> {
    let others = view.aggregates.iter().filter(|a| a.id != but && a.hosts.contains(&host));
    match others.filter_map(|a| a.zone.as_deref()).find(|other| *other != zone) {
        Some(other) => {
            Err(OpsError::conflict(format!("One or more hosts already in availability zone(s) {other}")))
        }
        None => Ok(()),
    }
}

fn refuse_instances(view: &View, host: HostId) -> Result<(), OpsError> {
    match view.instances_on(host).count() {
        0 => Ok(()),
        many => Err(OpsError::conflict(format!(
            "the zone of host {} would change, and {many} instances are on it",
            view.host_name(host).unwrap_or_default()
        ))),
    }
}
