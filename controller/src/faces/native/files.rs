//! `/v1/instances/{id}/files`: files of a set's member as a tar archive, over a WebSocket.

use super::Native;
use super::answers::{Failure, WriteRefusals};
use super::extract::{Id, Params};
use super::guard::Scope;
use super::streams::Upgrade;
use amphi_api::InstanceId;
use amphi_api::looking::{CopySpec, CopyWay};
use amphi_api::streams::StreamTarget;
use axum::extract::State;
use axum::response::Response;
use serde::Deserialize;
use utoipa::IntoParams;

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct FilesParams {
    /// Absolute, in the member.
    path: String,
    /// `out`: what is there comes as a tar archive. `in`: the input is a tar archive, unpacked in the directory there. `look`:
    /// one line of JSON, `{"directory":true,"size":4096}` or `null`.
    #[param(inline)]
    way: CopyWay,
    /// Default: the set's first.
    member: Option<String>,
}

/// Files of a set's member or a VM, out or in: a WebSocket, spoken as `exec` is.
///
/// A VM's guest agent (qemu-guest-agent) copies them; without one it is refused (409).
/// Names in an archive that is put in must stay below the directory, and devices are refused; modes and owners (by number) and
/// links are kept. An archive counts as whole when its `input_end` was said.
#[utoipa::path(get, path = "/instances/{id}/files", tag = "streams", params(("id" = Uuid, Path), FilesParams),
    responses((status = 101, description = "Open"), WriteRefusals))]
pub async fn files(
    State(native): State<Native>,
    scope: Scope,
    Id(id): Id<InstanceId>,
    Params(params): Params<FilesParams>,
    upgrade: Upgrade,
) -> Result<Response, Failure> {
    let FilesParams { path, way, member } = params;
    let spec = CopySpec { member, path, way };
    spec.check()?;
    upgrade.open(&native, scope, id, StreamTarget::Copy(spec)).await
}
