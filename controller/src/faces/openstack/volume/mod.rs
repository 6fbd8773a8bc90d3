//! The volume service, as cinder's API v3 has it. Deleting a volume puts it into the recycle bin, where this service no
//! longer sees it; the native face brings it back.

mod actions;
mod attachments;
mod cloud;
mod filter;
#[cfg(test)]
mod golden;
mod input;
mod metadata;
mod quotas;
mod snapshots;
mod transfers;
mod types;
mod view;
mod volumes;

use super::OpenStack;
use super::Service;
use super::answers::Refusal;
use super::gate::Base;
use super::microversion::range;
use super::routes::{Need, Routes};
use super::words::{self, hex};
use crate::model::{Intent, SnapshotRecord, VolumeRecord};
use crate::ops::identity::Caller;
use crate::ops::{OpsError, Row, View};
use amphi_api::{ProjectId, SnapshotId, VolumeId};
use axum::Json;
use axum::http::StatusCode;
use serde_json::{Value, json};

pub(super) fn routes() -> Routes {
    let routes = Routes::new(Service::Volume)
        .get("/", Need::Public, versions)
        .get("/v3", Need::Public, version)
        .get("/v3/", Need::Public, version);
    let routes = volumes::routes(routes);
    let routes = metadata::routes(routes);
    let routes = actions::routes(routes);
    let routes = snapshots::routes(routes);
    let routes = types::routes(routes);
    let routes = quotas::routes(routes);
    let routes = transfers::routes(routes);
    let routes = attachments::routes(routes);
    cloud::routes(routes).rewrite(without_project)
}

/// `/v3/PROJECT/volumes` is `/v3/volumes`: clients of both kinds are about.
fn without_project(path: &str) -> Option<String> {
    let rest = path.strip_prefix("/v3/")?;
    let (project, rest) = rest.split_once('/').unwrap_or((rest, ""));
    words::id(project).map(|_| format!("/v3/{rest}"))
}

fn document(base: &Base) -> Value {
    let (oldest, newest) = range(Service::Volume)
        .map_or_else(Default::default, |(oldest, newest)| (oldest.to_string(), newest.to_string()));
    json!({"versions": [{
        "id": "v3.0",
        "status": "CURRENT",
        "version": newest,
        "min_version": oldest,
        "updated": "2023-08-31T00:00:00Z",
        "links": [{"rel": "self", "href": format!("{}{}/v3/", base.0, Service::Volume.root())}],
        "media-types": [{"base": "application/json", "type": "application/vnd.openstack.volume+json;version=3"}],
    }]})
}

async fn versions(base: Base) -> (StatusCode, Json<Value>) {
    (StatusCode::MULTIPLE_CHOICES, Json(document(&base)))
}

async fn version(base: Base) -> Json<Value> {
    Json(document(&base))
}

/// A refusal in cinder's words: what a state does not allow is a bad request there, a quota is 413.
fn said(error: OpsError) -> Refusal {
    match error {
        OpsError::Conflict { message, .. } => Refusal::bad(message),
        error => limited(error),
    }
}

/// A refusal in cinder's words, where a conflict is a conflict.
fn limited(error: OpsError) -> Refusal {
    let OpsError::Quota(over) = error else { return error.into() };
    let message = match over.resource.as_str() {
        "volumes" => format!(
            "VolumeLimitExceeded: Maximum number of volumes allowed ({}) exceeded for quota 'volumes'.",
            over.limit
        ),
        "snapshots" => {
            format!("SnapshotLimitExceeded: Maximum number of snapshots allowed ({}) exceeded", over.limit)
        }
        resource => format!(
            "VolumeSizeExceedsAvailableQuota: Requested volume or snapshot exceeds allowed {resource} quota. \
             Requested {}G, quota is {}G and {}G has been consumed.",
            over.asked, over.limit, over.used
        ),
    };
    Refusal { retry_after: Some(0), ..Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, message) }
}

/// A volume that the caller may see.
fn volume<'a>(view: &'a View, caller: &Caller, id: &str) -> Result<&'a Row<VolumeRecord>, Refusal> {
    let found = words::id(id).and_then(|id| view.volumes.get(VolumeId(id)));
    let sees = |row: &&Row<VolumeRecord>| row.seen() && caller.may_see(row.project);
    found.filter(sees).ok_or_else(|| Refusal::not_found("volume", id))
}

/// The project and id of a volume that the caller may see: what an order needs.
fn volume_id(state: &OpenStack, caller: &Caller, id: &str) -> Result<(ProjectId, VolumeId), Refusal> {
    let view = state.ops.world().read();
    volume(&view, caller, id).map(|row| (row.project, row.id))
}

/// A snapshot that the caller may see.
fn snapshot<'a>(view: &'a View, caller: &Caller, id: &str) -> Result<&'a Row<SnapshotRecord>, Refusal> {
    let found = words::id(id).and_then(|id| view.snapshots.get(SnapshotId(id)));
    found
        .filter(|row| caller.may_see(row.project) && shown(view, row))
        .ok_or_else(|| Refusal::not_found("snapshot", id))
}

/// One that goes with its volume is out of sight as the volume is.
fn shown(view: &View, row: &SnapshotRecord) -> bool {
    row.intent == Intent::Live || view.volumes.get(row.volume).is_some_and(|volume| volume.seen())
}

fn snapshot_id(state: &OpenStack, caller: &Caller, id: &str) -> Result<(ProjectId, SnapshotId), Refusal> {
    let view = state.ops.world().read();
    snapshot(&view, caller, id).map(|row| (row.project, row.id))
}

/// Where a resource is, as links say it: below the caller's project.
fn path(caller: &Caller, rest: &str) -> String {
    match caller.project {
        Some(project) => format!("{}/v3/{}/{rest}", Service::Volume.root(), hex(project)),
        None => format!("{}/v3/{rest}", Service::Volume.root()),
    }
}

fn links(base: &Base, caller: &Caller, rest: &str) -> Value {
    let own = format!("{}{}", base.0, path(caller, rest));
    let bookmark = own.replacen("/v3/", "/", 1);
    json!([{"rel": "self", "href": own}, {"rel": "bookmark", "href": bookmark}])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_with_and_without_a_project() {
        let project = "38d84c95ffc8410680ee21fe5a54688e";
        let of = |path: &str| without_project(&path.replace('P', project));
        assert_eq!(of("/v3/P/volumes/detail"), Some("/v3/volumes/detail".into()));
        assert_eq!(of("/v3/P/os-quota-sets/P"), Some(format!("/v3/os-quota-sets/{project}")));
        assert_eq!(of("/v3/P"), Some("/v3/".into()));
        assert_eq!(of("/v3/P/"), Some("/v3/".into()));
        for usual in ["/v3/volumes", "/v3/os-quota-sets/P", "/v3/", "/v3", "/", "/v3/nonsense/volumes"] {
            assert_eq!(of(usual), None, "{usual}");
        }
    }
}
