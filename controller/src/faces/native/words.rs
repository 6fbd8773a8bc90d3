//! `/v1/sets/check`, `/v1/whoami`, `/v1/version`: what needs no records.

use super::answers::{Failure, ReadRefusals, WriteRefusals};
use super::extract::Body;
use super::guard::Scope;
use crate::ops::identity::Caller;
use amphi_api::ProjectId;
use amphi_api::set::SetSpec;
use axum::{Extension, Json};
use serde::Serialize;
use utoipa::ToSchema;

/// Check a set description; answers it with nothing left open: names, order, shares.
#[utoipa::path(post, path = "/sets/check", tag = "sets", request_body = SetSpec,
    responses((status = 200, body = SetSpec), WriteRefusals))]
pub async fn check_set(Body(set): Body<SetSpec>) -> Result<Json<SetSpec>, Failure> {
    set.check()?;
    Ok(Json(set.normalized()))
}

#[derive(Serialize, ToSchema)]
pub struct Whoami {
    project: ProjectId,
    role: &'static str,
}

/// Whose token this is.
#[utoipa::path(get, path = "/whoami", tag = "meta",
    responses((status = 200, body = Whoami), ReadRefusals, (status = 401, body = amphi_api::ErrorBody)))]
pub async fn whoami(Scope(scope): Scope, Extension(caller): Extension<Caller>) -> Json<Whoami> {
    let role = ["admin", "member"].into_iter().find(|role| caller.has_role(role));
    Json(Whoami { project: scope, role: role.unwrap_or("reader") })
}

#[derive(Serialize, ToSchema)]
pub struct Version {
    version: &'static str,
    /// Of the wire between controller and hosts.
    protocol: u32,
}

/// What runs here.
#[utoipa::path(get, path = "/version", tag = "meta", responses((status = 200, body = Version), ReadRefusals))]
pub async fn version() -> Json<Version> {
    Json(Version { version: env!("CARGO_PKG_VERSION"), protocol: amphi_api::wire::PROTOCOL })
}
