//! `/servers/{id}/remote-consoles`, from 2.6 on. No body has a screen yet: every type is unavailable, in nova's words.

use super::super::OpenStack;
use super::super::answers::Refusal;
use super::super::body::Body;
use super::super::microversion::Microversion;
use super::super::routes::{Need, Routes};
use super::servers::found;
use super::{only, text};
use crate::ops::identity::Caller;
use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde_json::Value;

pub(super) fn routes(routes: Routes) -> Routes {
    routes.post("/v2.1/servers/{id}/remote-consoles", Need::Member, create)
}

async fn create(
    State(state): State<OpenStack>,
    caller: Caller,
    version: Microversion,
    Path(id): Path<String>,
    Body(asked): Body<Value>,
) -> Result<Json<Value>, Refusal> {
    if !version.from(6) {
        return Err(Refusal::new(StatusCode::NOT_FOUND, "The resource could not be found."));
    }
    let map = only(asked, "remote_console", &["protocol", "type"])?;
    text(&map, "protocol")?;
    let kind = text(&map, "type")?;
    found(&state.ops.world().read(), &caller, &id)?;
    Err(Refusal::bad(format!("Unavailable console type {kind}.")))
}
