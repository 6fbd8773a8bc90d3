//! What is told of the cloud itself: zones, services, pools, hosts, extensions; and empty lists of what is not there
//! (backups, groups, QoS specs, messages), which clients ask for in passing.

use super::view::pool;
use crate::faces::openstack::OpenStack;
use crate::faces::openstack::answers::Refusal;
use crate::faces::openstack::query::Query;
use crate::faces::openstack::routes::{Need, Routes};
use crate::faces::openstack::words::{cinder_time, hex};
use crate::model::HostRecord;
use crate::ops::{View, aggregates};
use axum::Json;
use axum::extract::{Path, State};
use serde_json::{Value, json};
use std::collections::BTreeMap;

const GIB: u64 = 1 << 30;

pub fn routes(routes: Routes) -> Routes {
    routes
        .get("/v3/os-availability-zone", Need::Reader, zones)
        .get("/v3/os-services", Need::Admin, services)
        .get("/v3/scheduler-stats/get_pools", Need::Admin, pools)
        .get("/v3/capabilities/{id}", Need::Admin, capabilities)
        .get("/v3/os-hosts", Need::Admin, hosts)
        .get("/v3/os-hosts/{id}", Need::Admin, host)
        .get("/v3/extensions", Need::Reader, extensions)
        .get("/v3/messages", Need::Reader, async || empty("messages"))
        .get("/v3/messages/{id}", Need::Reader, async |id| absent("message", id))
        .delete("/v3/messages/{id}", Need::Member, async |id| absent("message", id))
        .get("/v3/groups", Need::Reader, async || empty("groups"))
        .get("/v3/groups/detail", Need::Reader, async || empty("groups"))
        .get("/v3/groups/{id}", Need::Reader, async |id| absent("group", id))
        .get("/v3/group_types", Need::Reader, async || empty("group_types"))
        .get("/v3/group_types/{id}", Need::Reader, async |id| absent("group type", id))
        .get("/v3/group_snapshots", Need::Reader, async || empty("group_snapshots"))
        .get("/v3/group_snapshots/detail", Need::Reader, async || empty("group_snapshots"))
        .get("/v3/consistencygroups", Need::Reader, async || empty("consistencygroups"))
        .get("/v3/consistencygroups/detail", Need::Reader, async || empty("consistencygroups"))
        .get("/v3/backups", Need::Reader, async || empty("backups"))
        .get("/v3/backups/detail", Need::Reader, async || empty("backups"))
        .get("/v3/backups/{id}", Need::Reader, async |id| absent("backup", id))
        .get("/v3/qos-specs", Need::Admin, async || empty("qos_specs"))
        .get("/v3/qos-specs/{id}", Need::Admin, async |id| absent("qos spec", id))
        .get("/v3/resource_filters", Need::Reader, filters)
}

fn empty(noun: &str) -> Json<Value> {
    Json(json!({ noun: [] }))
}

fn absent(noun: &str, Path(id): Path<String>) -> Refusal {
    Refusal::not_found(noun, id)
}

async fn zones(State(state): State<OpenStack>) -> Json<Value> {
    let view = state.ops.world().read();
    let mut zones: BTreeMap<String, bool> = BTreeMap::new();
    for (name, hosts) in aggregates::zones(&view) {
        zones.insert(name, hosts.iter().any(|host| host.is_up() && !host.disabled));
    }
    if zones.is_empty() {
        zones.insert(crate::model::DEFAULT_ZONE.into(), false);
    }
    let shown: Vec<_> =
        zones.iter().map(|(name, up)| json!({"zoneName": name, "zoneState": {"available": up}})).collect();
    Json(json!({"availabilityZoneInfo": shown}))
}

fn fits(query: &Query, host: &str, binary: &str) -> bool {
    query.one("host").is_none_or(|wanted| wanted == host)
        && query.one("binary").is_none_or(|wanted| wanted == binary)
}

async fn services(State(state): State<OpenStack>, query: Query) -> Json<Value> {
    let view = state.ops.world().read();
    let mut shown = Vec::new();
    let now = cinder_time(jiff::Timestamp::now());
    if fits(&query, "controller", "cinder-scheduler") {
        shown.push(json!({
            "binary": "cinder-scheduler", "host": "controller", "zone": crate::model::INTERNAL_ZONE,
            "status": "enabled", "state": "up", "updated_at": now, "disabled_reason": null,
        }));
    }
    for host in view.hosts.iter() {
        let name = format!("{}@lvm", host.name);
        if !fits(&query, &name, "cinder-volume") {
            continue;
        }
        shown.push(json!({
            "binary": "cinder-volume",
            "host": name,
            "zone": aggregates::zone_of(&view, host.id),
            "status": if host.disabled { "disabled" } else { "enabled" },
            "state": if host.is_up() { "up" } else { "down" },
            // While the link stands, it is alive now.
            "updated_at": if host.is_up() { now.clone() } else { cinder_time(host.state_since) },
            "disabled_reason": host.disabled_reason,
            "backend_state": if host.is_up() { "up" } else { "down" },
        }));
    }
    Json(json!({"services": shown}))
}

fn capacity(view: &View, host: &HostRecord) -> (u64, u64) {
    let total = host.spec.as_ref().map_or(0, |spec| spec.volume_group_bytes / GIB);
    (total, total.saturating_sub(view.claims_of(host.id).volume_gib))
}

async fn pools(State(state): State<OpenStack>, query: Query) -> Result<Json<Value>, Refusal> {
    let detail = query.flag("detail")?.unwrap_or(false);
    let view = state.ops.world().read();
    let shown: Vec<_> = view
        .hosts
        .iter()
        .map(|host| {
            let mut shown = json!({"name": pool(&host.name)});
            if detail {
                let (total, free) = capacity(&view, host);
                shown["capabilities"] = json!({
                    "updated": cinder_time(host.state_since),
                    "total_capacity_gb": total,
                    "free_capacity_gb": free,
                    "volume_backend_name": "lvm",
                    "reserved_percentage": 0,
                    "driver_version": "1.0",
                    "storage_protocol": "local",
                    "QoS_support": false,
                });
            }
            shown
        })
        .collect();
    Ok(Json(json!({"pools": shown})))
}

fn named<'a>(view: &'a View, id: &str) -> Result<&'a HostRecord, Refusal> {
    let name = id.split('@').next().unwrap_or(id);
    view.host_named(name).map(|row| &*row.record).ok_or_else(|| Refusal::not_found("host", id))
}

async fn capabilities(
    State(state): State<OpenStack>,
    Path(id): Path<String>,
) -> Result<Json<Value>, Refusal> {
    let view = state.ops.world().read();
    let host = named(&view, &id)?;
    Ok(Json(json!({
        "namespace": format!("OS::Storage::Capabilities::{}@lvm", host.name),
        "vendor_name": "Amphi",
        "volume_backend_name": "lvm",
        "pool_name": "lvm",
        "driver_version": "1.0",
        "storage_protocol": "local",
        "display_name": "Capabilities of a host's volume group",
        "description": "Volumes that are logical volumes of the host's volume group",
        "visibility": "public",
        "replication_targets": [],
        "properties": {},
    })))
}

async fn hosts(State(state): State<OpenStack>) -> Json<Value> {
    let view = state.ops.world().read();
    let shown: Vec<_> = view
        .hosts
        .iter()
        .map(|host| {
            json!({
                "host_name": format!("{}@lvm", host.name),
                "service": "cinder-volume",
                "zone": aggregates::zone_of(&view, host.id),
                "service-status": if host.is_up() { "available" } else { "unavailable" },
                "service-state": if host.disabled { "disabled" } else { "enabled" },
                "last-update": cinder_time(host.state_since),
            })
        })
        .collect();
    Json(json!({"hosts": shown}))
}

async fn host(State(state): State<OpenStack>, Path(id): Path<String>) -> Result<Json<Value>, Refusal> {
    let view = state.ops.world().read();
    let host = named(&view, &id)?;
    // By project: volumes and their GiB, snapshots and theirs.
    let mut sums: BTreeMap<amphi_api::ProjectId, [u64; 4]> = BTreeMap::new();
    for row in view.volumes_on(host.id).filter(|row| row.seen()) {
        let sum = sums.entry(row.project).or_default();
        sum[0] += 1;
        sum[1] += row.size_gib;
    }
    for row in view.snapshots_on(host.id) {
        let sum = sums.entry(row.project).or_default();
        sum[2] += 1;
        sum[3] += row.size_gib;
    }
    let total = sums.values().fold([0; 4], |mut a: [u64; 4], b| {
        a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
        a
    });
    let line = |project: String, [volumes, gib, snapshots, snapshot_gib]: [u64; 4]| {
        json!({"resource": {
            "host": id,
            "project": project,
            "volume_count": volumes.to_string(),
            "total_volume_gb": gib.to_string(),
            "snapshot_count": snapshots.to_string(),
            "total_snapshot_gb": snapshot_gib.to_string(),
        }})
    };
    let mut shown = vec![line("(total)".into(), total)];
    shown.extend(sums.into_iter().map(|(project, sum)| line(hex(project), sum)));
    Ok(Json(json!({"host": shown})))
}

async fn extensions() -> Json<Value> {
    let known = [
        ("os-availability-zone", "AvailabilityZones", "Zones that volumes can be asked into."),
        ("os-hosts", "Hosts", "Hosts that volumes are on."),
        ("os-quota-sets", "Quotas", "Limits of projects."),
        ("os-quota-class-sets", "QuotaClasses", "Limits by default."),
        ("os-services", "Services", "Services and whether they are up."),
        ("os-types-extra-specs", "TypesExtraSpecs", "Extra specs of volume types."),
        ("os-volume-type-access", "VolumeTypeAccess", "Who may use a volume type."),
        ("os-volume-actions", "VolumeActions", "What is done to volumes."),
        ("os-volume-image-metadata", "VolumeImageMetadata", "What a volume keeps of its image."),
        ("os-volume-transfer", "VolumeTransfer", "Offers of volumes to other projects."),
        ("scheduler-stats", "Scheduler_stats", "Pools and their room."),
    ];
    let shown: Vec<_> = known
        .iter()
        .map(|(alias, name, description)| {
            json!({
                "alias": alias, "name": name, "description": description,
                "updated": "2016-02-08T00:00:00+00:00", "links": [],
            })
        })
        .collect();
    Json(json!({"extensions": shown}))
}

async fn filters() -> Json<Value> {
    let kinds = [("volume", &super::filter::VOLUME), ("snapshot", &super::filter::SNAPSHOT)];
    let shown: Vec<_> =
        kinds.iter().map(|(noun, kind)| json!({"resource": noun, "filters": kind.filters})).collect();
    Json(json!({"resource_filters": shown}))
}
