//! Which servers a list shows, in which order: nova's filters and sort keys. Filters that are an operator's are ignored
//! where others send them, as nova does.

use super::super::answers::Refusal;
use super::super::microversion::Microversion;
use super::super::page::Direction;
use super::super::query::Query;
use super::super::words;
use super::server_view::{Sight, hostname};
use crate::model::InstanceRecord;
use crate::ops::aggregates::zone_of;
use jiff::Timestamp;
use regex::Regex;
use std::cmp::Ordering;
use std::collections::BTreeSet;

/// Statuses that exist (nova/api/openstack/common.py, `_STATE_MAP`).
const STATUSES: &[&str] = &[
    "ACTIVE",
    "BUILD",
    "DELETED",
    "ERROR",
    "HARD_REBOOT",
    "MIGRATING",
    "PASSWORD",
    "PAUSED",
    "REBOOT",
    "REBUILD",
    "RESCUE",
    "RESIZE",
    "REVERT_RESIZE",
    "SHELVED",
    "SHELVED_OFFLOADED",
    "SHUTOFF",
    "SOFT_DELETED",
    "SUSPENDED",
    "UNKNOWN",
    "VERIFY_RESIZE",
];

/// nova/api/openstack/compute/schemas/servers.py, `VALID_SORT_KEYS`.
const SORT_KEYS: &[&str] = &[
    "access_ip_v4",
    "access_ip_v6",
    "auto_disk_config",
    "availability_zone",
    "config_drive",
    "created_at",
    "display_description",
    "display_name",
    "host",
    "hostname",
    "image_ref",
    "instance_type_id",
    "kernel_id",
    "key_name",
    "launch_index",
    "launched_at",
    "locked",
    "locked_by",
    "node",
    "power_state",
    "progress",
    "project_id",
    "ramdisk_id",
    "root_device_name",
    "task_state",
    "terminated_at",
    "updated_at",
    "user_id",
    "uuid",
    "vm_state",
];

#[derive(Debug, Default)]
pub(super) struct Filter {
    name: Option<Regex>,
    ip: Option<Regex>,
    ip6: Option<Regex>,
    statuses: Option<BTreeSet<String>>,
    images: BTreeSet<String>,
    flavors: BTreeSet<String>,
    uuids: BTreeSet<String>,
    since: Option<Timestamp>,
    before: Option<Timestamp>,
    tags: Vec<String>,
    tags_any: Vec<String>,
    not_tags: Vec<String>,
    not_tags_any: Vec<String>,
    locked: Option<bool>,
    /// Attributes compared as text: (name, value).
    exact: Vec<(&'static str, String)>,
}

/// Attributes that anyone may filter by, and those that only operators may.
const OPEN: &[&str] = &["reservation_id"];
const OPERATORS: &[&str] = &[
    "host",
    "node",
    "hypervisor_hostname",
    "project_id",
    "tenant_id",
    "user_id",
    "availability_zone",
    "vm_state",
    "task_state",
    "key_name",
    "hostname",
    "launch_index",
    "power_state",
    "config_drive",
    "description",
];
/// Open to all from 2.83 on.
const OPEN_83: &[&str] = &[
    "availability_zone",
    "config_drive",
    "key_name",
    "power_state",
    "task_state",
    "vm_state",
    "user_id",
    "launched_at",
    "created_at",
    "terminated_at",
];

impl Filter {
    pub fn of(query: &Query, version: Microversion, admin: bool) -> Result<Self, Refusal> {
        let set = |name: &'static str| query.all(name).map(str::to_owned).collect::<BTreeSet<_>>();
        let time = |name: &str| match query.one(name) {
            None => Ok(None),
            Some(text) => words::parse_time(text)
                .map(Some)
                .ok_or_else(|| Refusal::bad(format!("Invalid filter {name}: '{text}' is not a date-time"))),
        };
        let list = |name: &'static str| {
            let texts = query.one(name).filter(|_| version.from(26)).into_iter();
            texts.flat_map(|text| text.split(',')).map(str::to_owned).collect::<Vec<_>>()
        };
        let mut exact = Vec::new();
        let open = OPEN_83.iter().filter(|_| version.from(83)).chain(OPEN);
        for name in open.chain(OPERATORS.iter().filter(|_| admin)) {
            if let Some(value) = query.one(name) {
                exact.push((*name, value.to_owned()));
            }
        }
        let filter = Self {
            name: pattern(query, "name")?,
            ip: pattern(query, "ip")?,
            ip6: pattern(query, "ip6")?.filter(|_| admin || version.from(5)),
            statuses: statuses(query, version, admin)?,
            images: query.all("image").map(|text| last_part(text).to_owned()).collect(),
            flavors: query.all("flavor").map(|text| last_part(text).to_owned()).collect(),
            uuids: set("uuid"),
            since: time("changes-since")?,
            before: time("changes-before")?.filter(|_| version.from(66)),
            tags: list("tags"),
            tags_any: list("tags-any"),
            not_tags: list("not-tags"),
            not_tags_any: list("not-tags-any"),
            locked: if version.from(73) { query.flag("locked")? } else { None },
            exact,
        };
        if let (Some(since), Some(before)) = (filter.since, filter.before)
            && before < since
        {
            return Err(Refusal::bad(
                "The value of changes-since must be less than or equal to changes-before.",
            ));
        }
        Ok(filter)
    }

    pub fn keeps(&self, sight: &Sight, record: &InstanceRecord) -> bool {
        let server = &record.server;
        let one_of = |set: &BTreeSet<String>, value: Option<String>| {
            set.is_empty() || value.is_some_and(|value| set.contains(&value))
        };
        self.name.as_ref().is_none_or(|name| name.is_match(&record.name))
            && self.statuses.as_ref().is_none_or(|set| set.contains(sight.state(record).status))
            && one_of(&self.images, server.image.map(|id| id.to_string()))
            && one_of(&self.flavors, server.flavor.as_ref().map(|f| f.id.clone()))
            && one_of(&self.uuids, Some(record.id.to_string()))
            && self.since.is_none_or(|since| record.updated_at >= since)
            && self.before.is_none_or(|before| record.updated_at <= before)
            && self.tags.iter().all(|tag| server.tags.contains(tag))
            && (self.tags_any.is_empty() || self.tags_any.iter().any(|tag| server.tags.contains(tag)))
            && (self.not_tags.is_empty() || !self.not_tags.iter().all(|tag| server.tags.contains(tag)))
            && !self.not_tags_any.iter().any(|tag| server.tags.contains(tag))
            && self.locked.is_none_or(|locked| server.locked.is_some() == locked)
            && self.has_address(sight, record)
            && self.exact.iter().all(|(name, value)| attribute(sight, record, name) == *value)
    }

    /// Both patterns given: either will do, as nova has it.
    fn has_address(&self, sight: &Sight, record: &InstanceRecord) -> bool {
        if self.ip.is_none() && self.ip6.is_none() {
            return true;
        }
        let ports = record.ports.iter().filter_map(|id| sight.view.ports.get(*id));
        let mut addresses = ports.flat_map(|port| port.addresses().collect::<Vec<_>>());
        addresses.any(|address| {
            let pattern = if address.is_ipv4() { &self.ip } else { &self.ip6 };
            pattern.as_ref().is_some_and(|pattern| pattern.is_match(&address.to_string()))
        })
    }
}

fn pattern(query: &Query, name: &str) -> Result<Option<Regex>, Refusal> {
    let Some(text) = query.one(name).filter(|text| !text.is_empty()) else { return Ok(None) };
    // Bounded in size: a pattern is a stranger's program.
    let built = regex::RegexBuilder::new(text).size_limit(1 << 18).build();
    built.map(Some).map_err(|_| Refusal::bad(format!("Invalid filter: {name} is not a regular expression")))
}

/// An id, or the last part of a URL that names it.
pub(super) fn last_part(text: &str) -> &str {
    text.trim_end_matches('/').rsplit('/').next().unwrap_or(text)
}

fn statuses(query: &Query, version: Microversion, admin: bool) -> Result<Option<BTreeSet<String>>, Refusal> {
    if !query.has("status") {
        return Ok(None);
    }
    let asked: Vec<String> = query.all("status").map(|s| s.to_ascii_uppercase().replace('-', "_")).collect();
    if let Some(unknown) = asked.iter().find(|s| !STATUSES.contains(&s.as_str()))
        && version.from(38)
    {
        return Err(Refusal::bad(format!("Invalid status value: {unknown}")));
    }
    if asked.iter().any(|s| s == "DELETED") && !admin {
        return Err(Refusal::forbidden("Only administrators may list deleted servers"));
    }
    Ok(Some(asked.into_iter().collect()))
}

/// An attribute as text, in the words of the database that nova sorts and filters by.
fn attribute(sight: &Sight, record: &InstanceRecord, name: &str) -> String {
    let server = &record.server;
    let text = |value: Option<String>| value.unwrap_or_default();
    match name {
        "display_name" => record.name.clone(),
        "display_description" | "description" => text(server.description.clone()),
        "uuid" => record.id.to_string(),
        "created_at" => record.created_at.to_string(),
        "updated_at" => record.updated_at.to_string(),
        "launched_at" => text(server.launched_at.map(|t| t.to_string())),
        "host" | "node" | "hypervisor_hostname" => text(record.host.and_then(|h| sight.view.host_name(h))),
        "hostname" => hostname(record),
        "project_id" | "tenant_id" => words::hex(record.project),
        "user_id" => text(server.user.map(words::hex)),
        "availability_zone" => text(record.host.map(|host| zone_of(sight.view, host))),
        "vm_state" => sight.state(record).vm.word().into(),
        "task_state" => text(sight.state(record).task.map(str::to_owned)),
        "power_state" => sight.state(record).power.to_string(),
        "key_name" => text(server.key_name.clone()),
        "reservation_id" => text(server.reservation.clone()),
        "launch_index" => format!("{:09}", server.launch_index),
        "config_drive" => if server.config_drive { "True" } else { "" }.into(),
        "image_ref" => text(server.image.map(|id| id.to_string())),
        "instance_type_id" => text(server.flavor.as_ref().map(|f| f.id.clone())),
        "locked" | "locked_by" => server.locked.is_some().to_string(),
        "auto_disk_config" => (!server.manual_disk).to_string(),
        "access_ip_v4" => text(server.access_v4.map(|ip| ip.to_string())),
        "access_ip_v6" => text(server.access_v6.map(|ip| ip.to_string())),
        _ => String::new(),
    }
}

/// nova sorts by what is asked, then by creation and id; the newest first where nothing is said.
pub(super) fn sort(
    query: &Query,
    sight: &Sight,
    records: &mut [&InstanceRecord],
    admin: bool,
) -> Result<(), Refusal> {
    let mut directions = query.all("sort_dir");
    let mut keys = Vec::new();
    let mut last = Direction::Descending;
    for key in query.all("sort_key") {
        if !SORT_KEYS.contains(&key) || (matches!(key, "host" | "node") && !admin) {
            return Err(Refusal::bad(format!("Invalid sort key: {key}")));
        }
        last = match directions.next() {
            None => last,
            Some("asc") => Direction::Ascending,
            Some("desc") => Direction::Descending,
            Some(other) => return Err(Refusal::bad(format!("Invalid sort direction: {other}"))),
        };
        keys.push((key, last));
    }
    let newest = |a: &InstanceRecord, b: &InstanceRecord| (b.created_at, b.id).cmp(&(a.created_at, a.id));
    if keys.is_empty() {
        records.sort_by(|a, b| newest(a, b));
        return Ok(());
    }
    let mut drawn: Vec<(Vec<String>, &InstanceRecord)> = records
        .iter()
        .map(|record| (keys.iter().map(|(key, _)| attribute(sight, record, key)).collect(), *record))
        .collect();
    drawn.sort_by(|(a, one), (b, other)| {
        let parts = a.iter().zip(b).zip(&keys);
        let order = parts.map(|((a, b), (_, direction))| direction.apply(a.cmp(b)));
        order.fold(Ordering::Equal, Ordering::then).then_with(|| newest(one, other))
    });
    for (place, (_, record)) in records.iter_mut().zip(drawn) {
        *place = record;
    }
    Ok(())
}
