//! `/v1/instances/{id}/tools`: a command of another image beside a member, over a WebSocket.

use super::Native;
use super::answers::{Failure, WriteRefusals};
use super::extract::Id;
use super::streams::{Upgrade, exec_spec};
use crate::ops::identity::Caller;
use amphi_api::{ErrorCode, InstanceId};
use axum::Extension;
use axum::extract::{RawQuery, State};
use axum::response::Response;

/// Run a command of another container image beside a set's member: a WebSocket, spoken as `exec` is.
///
/// It sees the member's processes, network and memory, and its files below `/proc/1/root`, and takes from its limits. Its
/// container goes when the command ends or the client does. For administrators, and for the user who ordered the instance.
#[utoipa::path(get, path = "/instances/{id}/tools", tag = "streams", params(
    ("id" = Uuid, Path),
    ("image" = String, Query, description = "A container image by name or id"),
    ("command" = Vec<String>, Query, description = "The program and its arguments, once for each word"),
    ("member" = Option<String>, Query, description = "Default: the set's first"),
    ("env" = Option<Vec<String>>, Query, description = "`NAME=VALUE`, any number of times"),
    ("user" = Option<String>, Query, description = "`user`, `user:group` or ids"),
    ("directory" = Option<String>, Query, description = "Where it runs, absolute"),
    ("tty" = Option<bool>, Query, description = "With a terminal"),
    ("stdin" = Option<bool>, Query, description = "With input"),
    ("columns" = Option<u16>, Query, description = "Of the terminal at its begin, with `rows`"),
    ("rows" = Option<u16>, Query)),
    responses((status = 101, description = "Open"), WriteRefusals))]
pub async fn tools(
    State(native): State<Native>,
    Extension(caller): Extension<Caller>,
    Id(id): Id<InstanceId>,
    RawQuery(query): RawQuery,
    upgrade: Upgrade,
) -> Result<Response, Failure> {
    let query = query.unwrap_or_default();
    let (images, rest): (Vec<_>, Vec<_>) =
        form_urlencoded::parse(query.as_bytes()).partition(|(name, _)| name == "image");
    let [(_, image)] = images.as_slice() else {
        return Err(Failure::new(ErrorCode::InvalidField, "which image are they in? give one").at("image"));
    };
    let rest = form_urlencoded::Serializer::new(String::new()).extend_pairs(rest).finish();
    let spec = exec_spec(&rest)?;
    Ok(upgrade.serve(native.ops.open_tools(&caller, id, spec, image).await?))
}
