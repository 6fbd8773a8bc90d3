//! `/v1/events`: what has happened.

use super::Native;
use super::answers::{Failure, ReadRefusals};
use super::extract::Params;
use crate::ops::FeedQuery;
use crate::ops::identity::Caller;
use amphi_api::events::{EventKind, EventPage};
use amphi_api::{ErrorCode, InstanceId};
use axum::extract::State;
use axum::{Extension, Json};
use jiff::Timestamp;
use serde::Deserialize;
use utoipa::IntoParams;

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct EventParams {
    /// Only what comes after this cursor: an event's, or an answer's `next`. `now`: after all that is there.
    after: Option<String>,
    /// Only what came since then, RFC 3339.
    #[param(value_type = Option<String>)]
    since: Option<Timestamp>,
    /// Only of this instance.
    #[param(value_type = Option<uuid::Uuid>)]
    instance: Option<InstanceId>,
    /// Only on this host, by name or id.
    host: Option<String>,
    /// Only of these kinds, with commas between them: `fault,out_of_memory`.
    kind: Option<String>,
    /// 1 to 1,000. Default: 1,000.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<u32>,
    /// Where nothing has come yet, wait for so many seconds, 0 to 25. Default: 0.
    #[serde(default)]
    #[param(minimum = 0, maximum = 25)]
    wait: u64,
}

/// What has happened, in order: of the project's instances, and, for administrators, of hosts.
///
/// Some 10,000 events are kept, in memory. Where some between the cursor and the first event are not, `lost` says so.
#[utoipa::path(get, path = "/events", tag = "events", params(EventParams),
    responses((status = 200, body = EventPage), ReadRefusals))]
pub async fn list(
    State(native): State<Native>,
    Extension(caller): Extension<Caller>,
    Params(params): Params<EventParams>,
) -> Result<Json<EventPage>, Failure> {
    let EventParams { after, since, instance, host, kind, limit, wait } = params;
    let kinds = kind.as_deref().unwrap_or_default().split(',').filter(|word| !word.is_empty());
    let kinds = kinds.map(|word| {
        serde_json::from_value::<EventKind>(word.into()).map_err(|_| {
            Failure::new(ErrorCode::InvalidField, format!("there is no kind '{word}'")).at("kind")
        })
    });
    let kinds = kinds.collect::<Result<_, _>>()?;
    let query = FeedQuery { after, since, instance, host, kinds, limit, wait };
    Ok(Json(native.ops.events(&caller, &query).await?))
}
