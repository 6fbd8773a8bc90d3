//! `/limits`: the project's limits and what it uses. Microversions 2.36 and 2.57 leave out what is other services', 2.39
//! leaves out `maxImageMeta`.

use super::super::OpenStack;
use super::super::answers::Refusal;
use super::super::microversion::Microversion;
use super::super::query::Query;
use super::super::routes::{Need, Routes};
use super::quota_sets::hidden;
use super::seen_project;
use crate::model::{QuotaService, Resource};
use crate::ops::identity::Caller;
use crate::ops::quotas;
use axum::Json;
use axum::extract::State;
use serde_json::{Map, Value, json};

pub(super) fn routes(routes: Routes) -> Routes {
    routes.get("/v2.1/limits", Need::Reader, show)
}

/// nova's names of a limit, and of what is used of it.
fn names(resource: Resource) -> (&'static [&'static str], Option<&'static str>) {
    match resource {
        Resource::Ram => (&["maxTotalRAMSize"], Some("totalRAMUsed")),
        Resource::Instances => (&["maxTotalInstances"], Some("totalInstancesUsed")),
        Resource::Cores => (&["maxTotalCores"], Some("totalCoresUsed")),
        Resource::KeyPairs => (&["maxTotalKeypairs"], None),
        Resource::NovaFloatingIps => (&["maxTotalFloatingIps"], Some("totalFloatingIpsUsed")),
        Resource::MetadataItems => (&["maxServerMeta", "maxImageMeta"], None),
        Resource::InjectedFiles => (&["maxPersonality"], None),
        Resource::InjectedFileContentBytes => (&["maxPersonalitySize"], None),
        Resource::NovaSecurityGroups => (&["maxSecurityGroups"], Some("totalSecurityGroupsUsed")),
        Resource::NovaSecurityGroupRules => (&["maxSecurityGroupRules"], None),
        Resource::ServerGroups => (&["maxServerGroups"], Some("totalServerGroupsUsed")),
        Resource::ServerGroupMembers => (&["maxServerGroupMembers"], None),
        _ => (&[], None),
    }
}

async fn show(
    State(state): State<OpenStack>,
    caller: Caller,
    version: Microversion,
    query: Query,
) -> Result<Json<Value>, Refusal> {
    let project = match query.one("tenant_id") {
        Some(text) => seen_project(&caller, text)?,
        None => caller.project()?,
    };
    let view = state.ops.world().read();
    let mut absolute = Map::new();
    for (resource, quota) in quotas::all(&view, QuotaService::Compute, project, None) {
        if hidden(resource, version) {
            continue;
        }
        let (limits, used) = names(resource);
        for name in limits.iter().filter(|name| **name != "maxImageMeta" || !version.from(39)) {
            absolute.insert((*name).into(), json!(quota.limit));
        }
        if let Some(name) = used {
            absolute.insert(name.into(), json!(quota.used));
        }
    }
    Ok(Json(json!({"limits": {"rate": [], "absolute": absolute}})))
}
