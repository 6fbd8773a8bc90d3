//! `/os-availability-zone`: the zones that aggregates make of the hosts, and the controller's own.

use super::super::OpenStack;
use super::super::routes::{Need, Routes};
use super::super::words;
use super::services::{COMPUTE, CONTROLLER, OWN, heard_at, is_up};
use crate::model::INTERNAL_ZONE;
use crate::ops::aggregates::zones;
use axum::Json;
use axum::extract::State;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

pub(super) fn routes(routes: Routes) -> Routes {
    routes.get("/v2.1/os-availability-zone", Need::Reader, list).get(
        "/v2.1/os-availability-zone/detail",
        Need::Admin,
        detail,
    )
}

fn zone(name: &str, available: bool, hosts: Value) -> Value {
    json!({"zoneName": name, "zoneState": {"available": available}, "hosts": hosts})
}

/// A zone is available while one of its hosts is enabled, as nova has it: a host's silence is told by its service.
async fn list(State(state): State<OpenStack>) -> Json<Value> {
    let view = state.ops.world().read();
    let all = zones(&view).into_iter();
    let shown = all.map(|(name, hosts)| zone(&name, hosts.iter().any(|h| !h.disabled), Value::Null));
    Json(json!({"availabilityZoneInfo": shown.collect::<Vec<_>>()}))
}

async fn detail(State(state): State<OpenStack>) -> Json<Value> {
    let view = state.ops.world().read();
    let service = |up: bool, heard: Timestamp| json!({"available": up, "active": true, "updated_at": words::cinder_time(heard)});
    let own: Map<String, Value> =
        OWN.iter().map(|binary| ((*binary).to_owned(), service(true, Timestamp::now()))).collect();
    let mut all = vec![zone(INTERNAL_ZONE, true, json!({ CONTROLLER: own }))];
    for (name, hosts) in zones(&view) {
        let enabled = hosts.iter().filter(|host| !host.disabled);
        let shown: Map<String, Value> = enabled
            .map(|host| {
                (host.name.clone(), json!({COMPUTE: service(is_up(host), heard_at(&state.ops, host))}))
            })
            .collect();
        all.push(match shown.is_empty() {
            true => zone(&name, false, Value::Null),
            false => zone(&name, true, Value::Object(shown)),
        });
    }
    Json(json!({"availabilityZoneInfo": all}))
}
