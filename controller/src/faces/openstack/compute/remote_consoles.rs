//! `/servers/{id}/remote-consoles` from 2.6 on, the actions before it, and what an address stands for. A VM has a screen
//! (`novnc`) and a serial line (`serial`); a set has a shell in its first member (`serial`), and no screen.

use super::super::OpenStack;
use super::super::answers::Refusal;
use super::super::body::Body;
use super::super::gate::Base;
use super::super::microversion::Microversion;
use super::super::routes::{Call, Need, Routes};
use super::servers::found;
use super::{only, text};
use crate::faces::console;
use crate::ops::identity::Caller;
use crate::ops::{ConsoleKind, OpsError};
use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

pub(super) fn routes(routes: Routes) -> Routes {
    routes.post("/v2.1/servers/{id}/remote-consoles", Need::Member, create).get(
        "/v2.1/os-console-auth-tokens/{token}",
        Need::Admin,
        show,
    )
}

/// nova/api/openstack/compute/schemas/remote_consoles.py: protocols and types, and since when.
const PROTOCOLS: [(&str, u16); 5] = [("vnc", 6), ("spice", 6), ("rdp", 6), ("serial", 6), ("mks", 8)];
const TYPES: [(&str, u16); 6] =
    [("novnc", 6), ("xvpvnc", 6), ("spice-html5", 6), ("rdp-html5", 6), ("serial", 6), ("webmks", 8)];

fn not_found() -> Refusal {
    Refusal::new(StatusCode::NOT_FOUND, "The resource could not be found.")
}

async fn create(
    State(state): State<OpenStack>,
    caller: Caller,
    version: Microversion,
    base: Base,
    Path(id): Path<String>,
    Body(asked): Body<Value>,
) -> Result<Json<Value>, Refusal> {
    if !version.from(6) {
        return Err(not_found());
    }
    let map = only(asked, "remote_console", &["protocol", "type"])?;
    let known = |name: &'static str, words: &[(&str, u16)]| {
        let word = text(&map, name)?;
        match words.iter().any(|(known, since)| *known == word && version.from(*since)) {
            true => Ok(word),
            false => Err(Refusal::field(name, format!("'{word}' is none of the known"))),
        }
    };
    let (protocol, kind) = (known("protocol", &PROTOCOLS)?, known("type", &TYPES)?);
    let url = address(&state, &caller, &base, &id, protocol, kind).await?;
    Ok(Json(json!({"remote_console": {"protocol": protocol, "type": kind, "url": url}})))
}

async fn address(
    state: &OpenStack,
    caller: &Caller,
    base: &Base,
    id: &str,
    protocol: &str,
    kind: &str,
) -> Result<String, Refusal> {
    let (project, id, vm) = {
        let view = state.ops.world().read();
        let row = found(&view, caller, id)?;
        (row.project, row.id, row.body == amphi_api::instance::BodyKind::Vm)
    };
    let kind = match (protocol, kind) {
        ("vnc", "novnc") if vm => ConsoleKind::Screen,
        ("serial", "serial") => ConsoleKind::Console,
        (_, kind) => return Err(Refusal::bad(format!("Unavailable console type {kind}."))),
    };
    let ticket = state.ops.console_ticket(project, id, kind).await.map_err(|error| match error {
        OpsError::Conflict { message, .. } => {
            Refusal::conflict(format!("Instance {id} is not ready: {message}"))
        }
        error => error.into(),
    })?;
    Ok(match kind {
        ConsoleKind::Screen => console::screen_url(&base.0, &ticket),
        ConsoleKind::Console => console::socket_url(&base.0, &ticket),
    })
}

/// `os-getVNCConsole` and its kin, up to 2.5.
pub(super) async fn old(call: Call, protocol: &'static str) -> Result<Response, Refusal> {
    if call.version.from(6) {
        return Err(not_found());
    }
    let Value::Object(map) = &call.argument else {
        return Err(Refusal::bad("Malformed request body: the action's value must be an object"));
    };
    super::refuse_unknown(map, &["type"])?;
    let kind = text(map, "type")?;
    if !TYPES.iter().any(|(known, _)| *known == kind) {
        return Err(Refusal::field("type", format!("'{kind}' is none of the known")));
    }
    let url = address(&call.state, &call.caller, &call.base, &call.id, protocol, kind).await?;
    Ok(Json(json!({"console": {"type": kind, "url": url}})).into_response())
}

/// What an address stands for. Bodies have no ports for this: the agent on their host opens them.
async fn show(
    State(state): State<OpenStack>,
    version: Microversion,
    Path(token): Path<String>,
) -> Result<Json<Value>, Refusal> {
    let ticket = state.ops.read_ticket(&token);
    let ticket = ticket.map_err(|_| Refusal::new(StatusCode::NOT_FOUND, "Token not found"))?;
    if !version.from(31) {
        let message = "The requested console type details are not accessible";
        return Err(Refusal::new(StatusCode::UNAUTHORIZED, message));
    }
    let view = state.ops.world().read();
    let host = view.instances.get(ticket.instance).and_then(|row| row.host);
    let host = host.and_then(|host| view.hosts.get(host)).map(|row| row.name.clone());
    Ok(Json(json!({"console": {
        "instance_uuid": ticket.instance.to_string(),
        "host": host,
        "port": 0,
        "internal_access_path": null,
    }})))
}
