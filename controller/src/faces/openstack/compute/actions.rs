//! `POST /servers/{id}/action`: what is ordered of a server, each action with its own need and its own argument.

use super::super::answers::Refusal;
use super::super::routes::{Call, Need, Routes};
use super::remote_consoles;
use super::server_create as fields;
use super::server_view::Form;
use super::servers::{origin_of, shown};
use super::{figure, optional_text, refuse_unknown, text};
use crate::ops::OpsError;
use crate::ops::servers::{Origin, RebuildWish, ResizeWish, ServerOrder};
use amphi_api::instance::MoveCreate;
use amphi_api::{HostId, ImageId, InstanceId};
use axum::Json;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};

const PATH: &str = "/v2.1/servers/{id}/action";
/// Most lines of a console that are handed out at once.
const LINES_MAX: u32 = crate::ops::LOG_LINES_MAX;

pub(super) fn routes(routes: Routes) -> Routes {
    use Need::{Admin, Member};
    type Plain = (&'static str, Need, fn() -> ServerOrder);
    let plain: [Plain; 12] = [
        ("os-start", Member, || ServerOrder::Start),
        ("os-stop", Member, || ServerOrder::Stop),
        ("pause", Member, || ServerOrder::Pause),
        ("unpause", Member, || ServerOrder::Unpause),
        ("suspend", Member, || ServerOrder::Suspend),
        ("resume", Member, || ServerOrder::Resume),
        ("unlock", Member, || ServerOrder::Unlock),
        ("shelve", Member, || ServerOrder::Shelve),
        ("shelveOffload", Admin, || ServerOrder::ShelveOffload),
        ("unshelve", Member, || ServerOrder::Unshelve),
        ("unrescue", Member, || ServerOrder::Unrescue),
        ("revertResize", Member, || ServerOrder::RevertResize),
    ];
    let routes = plain.into_iter().fold(routes, |routes, (name, need, order)| {
        routes.action(PATH, name, need, move |call| ordered(call, order()))
    });
    routes
        .action(PATH, "reboot", Member, reboot)
        .action(PATH, "lock", Member, lock)
        .action(PATH, "rescue", Member, rescue)
        .action(PATH, "confirmResize", Member, confirm_resize)
        .action(PATH, "resize", Member, resize)
        .action(PATH, "migrate", Admin, migrate)
        .action(PATH, "os-migrateLive", Admin, migrate_live)
        .action(PATH, "evacuate", Admin, evacuate)
        .action(PATH, "rebuild", Member, rebuild)
        .action(PATH, "createImage", Member, create_image)
        .action(PATH, "os-getConsoleOutput", Member, console_output)
        .action(PATH, "os-resetState", Admin, reset_state)
        .action(PATH, "forceDelete", Member, force_delete)
        .action(PATH, "restore", Member, restore)
        .action(PATH, "addSecurityGroup", Member, |call| regroup(call, true))
        .action(PATH, "removeSecurityGroup", Member, |call| regroup(call, false))
        .action(PATH, "changePassword", Member, change_password)
        .action(PATH, "createBackup", Member, create_backup)
        .action(PATH, "trigger_crash_dump", Member, crash_dump)
        .action(PATH, "os-getVNCConsole", Member, |call| remote_consoles::old(call, "vnc"))
        .action(PATH, "os-getSPICEConsole", Member, |call| remote_consoles::old(call, "spice"))
        .action(PATH, "os-getSerialConsole", Member, |call| remote_consoles::old(call, "serial"))
        .action(PATH, "os-getRDPConsole", Member, |call| remote_consoles::old(call, "rdp"))
}

type Answer = Result<Response, Refusal>;

fn accepted() -> Response {
    StatusCode::ACCEPTED.into_response()
}

fn origin(call: &Call) -> Result<(Origin, InstanceId), Refusal> {
    origin_of(&call.state, &call.caller, &call.request, &call.id)
}

fn object(call: &Call, known: &[&str]) -> Result<Map<String, Value>, Refusal> {
    match &call.argument {
        Value::Null => Ok(Map::new()),
        Value::Object(map) => {
            refuse_unknown(map, known)?;
            Ok(map.clone())
        }
        _ => Err(Refusal::bad("Malformed request body: the action's value must be an object")),
    }
}

async fn ordered(call: Call, order: ServerOrder) -> Answer {
    let (origin, id) = origin(&call)?;
    call.state.ops.order_server(&origin, id, order).await.map_err(refused)?;
    Ok(accepted())
}

/// nova answers 400 where no host is found for an order about a server that is there.
pub(super) fn refused(error: OpsError) -> Refusal {
    match error {
        OpsError::NoRoom(no_room) => Refusal::bad(format!("No valid host was found. {no_room}")),
        error => error.into(),
    }
}

async fn reboot(call: Call) -> Answer {
    let map = object(&call, &["type"])?;
    let hard = match text(&map, "type")?.to_ascii_uppercase().as_str() {
        "HARD" => true,
        "SOFT" => false,
        other => return Err(Refusal::field("type", format!("'{other}' is neither HARD nor SOFT"))),
    };
    ordered(call, ServerOrder::Reboot { hard }).await
}

async fn lock(call: Call) -> Answer {
    let known: &[&str] = if call.version.from(73) { &["locked_reason"] } else { &[] };
    let map = object(&call, known)?;
    let reason = optional_text(&map, "locked_reason")?;
    if reason.is_some_and(|reason| reason.is_empty() || reason.chars().count() > 255) {
        return Err(Refusal::field("locked_reason", "1 to 255 characters"));
    }
    let reason = reason.map(str::to_owned);
    ordered(call, ServerOrder::Lock { reason }).await
}

async fn rescue(call: Call) -> Answer {
    let map = object(&call, &["adminPass", "rescue_image_ref"])?;
    let image = fields::image_ref(map.get("rescue_image_ref"))?;
    let password = optional_text(&map, "adminPass")?.map_or_else(fields::password, str::to_owned);
    ordered(call, ServerOrder::Rescue { image }).await?;
    Ok(Json(json!({"adminPass": password})).into_response())
}

async fn confirm_resize(call: Call) -> Answer {
    ordered(call, ServerOrder::ConfirmResize).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn resize(call: Call) -> Answer {
    let map = object(&call, &["flavorRef", "OS-DCF:diskConfig"])?;
    let (origin, id) = origin(&call)?;
    fields::disk_config(&map)?;
    let flavor = {
        let view = call.state.ops.world().read();
        fields::flavor(&view, &call.caller, origin.project, map.get("flavorRef"))?
    };
    let wish = ResizeWish { flavor: Some(flavor), host: None };
    call.state.ops.resize_server(&origin, id, &wish).await.map_err(refused)?;
    Ok(accepted())
}

async fn migrate(call: Call) -> Answer {
    let known: &[&str] = if call.version.from(56) { &["host"] } else { &[] };
    let map = object(&call, known)?;
    let (origin, id) = origin(&call)?;
    let host = optional_text(&map, "host")?.map(str::to_owned);
    let wish = ResizeWish { flavor: None, host };
    call.state.ops.resize_server(&origin, id, &wish).await.map_err(refused)?;
    Ok(accepted())
}

/// `host`, `block_migration` and `disk_over_commit` as nova takes them; local disks always go along.
async fn migrate_live(call: Call) -> Answer {
    let known: &[&str] = &["host", "block_migration", "disk_over_commit", "force"];
    let map = object(&call, known)?;
    let (origin, id) = origin(&call)?;
    let host = optional_text(&map, "host")?.map(str::to_owned);
    let wish = MoveCreate {
        to: host,
        kind: None,
        live: Some(true),
        reason: "ordered by os-migrateLive".into(),
        ..MoveCreate::default()
    };
    call.state.ops.create_move(origin.project, id, &wish).await.map_err(refused)?;
    Ok(accepted())
}

async fn evacuate(call: Call) -> Answer {
    let map = object(&call, &["host", "onSharedStorage", "adminPass", "force", "targetState"])?;
    let (_, id) = origin(&call)?;
    let from: Option<HostId> = {
        let view = call.state.ops.world().read();
        view.instances.get(id).and_then(|row| row.host)
    };
    let from = from.ok_or_else(|| Refusal::conflict("The server has no host"))?;
    call.state.ops.evacuate_instance(from, id).await.map_err(refused)?;
    if call.version.from(14) {
        return Ok(StatusCode::OK.into_response());
    }
    let password = optional_text(&map, "adminPass")?.map_or_else(fields::password, str::to_owned);
    Ok(Json(json!({"adminPass": password})).into_response())
}

async fn rebuild(call: Call) -> Answer {
    let mut known = vec![
        "imageRef",
        "name",
        "adminPass",
        "metadata",
        "OS-DCF:diskConfig",
        "accessIPv4",
        "accessIPv6",
        "preserve_ephemeral",
        "personality",
        "description",
        "key_name",
        "user_data",
        "trusted_image_certificates",
    ];
    known.extend(call.version.from(90).then_some("hostname"));
    let map = object(&call, &known)?;
    let (origin, id) = origin(&call)?;
    let image = fields::image_ref(map.get("imageRef"))?;
    let image = image.ok_or_else(|| Refusal::bad("Invalid input: 'imageRef' is a required property"))?;
    let key = {
        let view = call.state.ops.world().read();
        match map.get("key_name").filter(|_| call.version.from(54)) {
            None => None,
            Some(Value::Null) => Some(None),
            Some(_) => Some(Some(fields::key_named(&view, call.caller.user, text(&map, "key_name")?)?)),
        }
    };
    let wish = RebuildWish {
        image: Some(image),
        name: optional_text(&map, "name")?.map(fields::name).transpose()?,
        description: match map.get("description") {
            None => None,
            Some(Value::Null) => Some(None),
            Some(_) => Some(Some(fields::description(text(&map, "description")?)?)),
        },
        hostname: optional_text(&map, "hostname")?.map(fields::hostname).transpose()?,
        metadata: map.get("metadata").map(|value| fields::metadata(Some(value))).transpose()?,
        key,
        user_data: match map.contains_key("user_data") && call.version.from(57) {
            true => Some(fields::user_data(&map)?),
            false => None,
        },
        manual_disk: fields::disk_config(&map)?,
        access_v4: fields::access(&map, "accessIPv4")?,
        access_v6: fields::access(&map, "accessIPv6")?,
    };
    call.state.ops.rebuild_server(&origin, id, &wish).await.map_err(refused)?;
    let mut server = shown(&call.state, &call.caller, call.version, &call.base, id, Form::Rebuild)?;
    server["adminPass"] =
        optional_text(&map, "adminPass")?.map_or_else(fields::password, str::to_owned).into();
    Ok((StatusCode::ACCEPTED, Json(json!({"server": server}))).into_response())
}

async fn create_image(call: Call) -> Answer {
    let map = object(&call, &["name", "metadata"])?;
    let name = fields::name(text(&map, "name")?)?;
    let metadata = fields::metadata(map.get("metadata"))?;
    let (origin, id) = origin(&call)?;
    let image: ImageId = call.state.ops.create_server_image(&origin, id, &name, &metadata).await?;
    if call.version.from(45) {
        let body = Json(json!({"image_id": image.to_string()}));
        return Ok((StatusCode::ACCEPTED, body).into_response());
    }
    let location = format!("{}/image/v2/images/{image}", call.base.0);
    Ok((StatusCode::ACCEPTED, [(header::LOCATION, location)]).into_response())
}

/// `length`: lines from the end; absent, null or -1: all there are.
async fn console_output(call: Call) -> Answer {
    let map = object(&call, &["length"])?;
    let lines = match map.get("length") {
        None | Some(Value::Null) => LINES_MAX,
        Some(Value::Number(n)) if n.as_i64() == Some(-1) => LINES_MAX,
        Some(Value::String(text)) if text == "-1" => LINES_MAX,
        _ => figure(&map, "length")?.map_or(LINES_MAX, |n| u32::try_from(n).unwrap_or(u32::MAX)),
    };
    let (origin, id) = origin(&call)?;
    let lines = lines.min(LINES_MAX);
    if lines == 0 {
        return Ok(Json(json!({"output": ""})).into_response());
    }
    let log = call.state.ops.console(origin.project, id, lines).await.map_err(|error| match error {
        OpsError::Unavailable(why) | OpsError::Conflict { message: why, .. } => {
            Refusal::conflict(format!("Instance {id} is not ready: {why}"))
        }
        error => error.into(),
    })?;
    // What a terminal does with control characters is nobody's business in JSON.
    let text: String = log.chars().filter(|c| !c.is_control() || matches!(c, '\n' | '\t')).collect();
    // nova's count of lines: what stands between newlines, be it nothing.
    let parts: Vec<&str> = text.split('\n').collect();
    let text = parts[parts.len().saturating_sub(lines as usize)..].join("\n");
    Ok(Json(json!({"output": text})).into_response())
}

async fn reset_state(call: Call) -> Answer {
    let map = object(&call, &["state"])?;
    let error = match text(&map, "state")? {
        "active" => false,
        "error" => true,
        other => return Err(Refusal::field("state", format!("'{other}' is neither active nor error"))),
    };
    ordered(call, ServerOrder::ResetState { error }).await
}

async fn force_delete(call: Call) -> Answer {
    let (origin, id) = origin(&call)?;
    call.state.ops.delete_server(&origin, id, crate::ops::VolumeFate::Keep).await?;
    Ok(accepted())
}

/// What is deleted is gone: there is no soft deletion of servers.
async fn restore(call: Call) -> Answer {
    let (_, id) = origin(&call)?;
    Err(Refusal::conflict(format!("Cannot 'restore' instance {id}: it is not deleted")))
}

async fn regroup(call: Call, on: bool) -> Answer {
    let map = object(&call, &["name"])?;
    let name = text(&map, "name")?;
    let (origin, id) = origin(&call)?;
    call.state.ops.server_security_group(&origin, id, name, on).await?;
    Ok(accepted())
}

async fn change_password(call: Call) -> Answer {
    let (_, id) = origin(&call)?;
    Err(Refusal::conflict(format!(
        "Unable to set admin password on instance {id}: bodies have keys, no passwords"
    )))
}

async fn create_backup(call: Call) -> Answer {
    let map = object(&call, &["name", "backup_type", "rotation"])?;
    let name = fields::name(text(&map, "name")?)?;
    text(&map, "backup_type")?;
    if figure(&map, "rotation")?.is_none() {
        return Err(Refusal::bad("Invalid input: 'rotation' is a required property"));
    }
    let (origin, id) = origin(&call)?;
    let metadata = [("image_type".to_owned(), "backup".to_owned())].into();
    let image = call.state.ops.create_server_image(&origin, id, &name, &metadata).await?;
    if call.version.from(45) {
        let body = Json(json!({"image_id": image.to_string()}));
        return Ok((StatusCode::ACCEPTED, body).into_response());
    }
    let location = format!("{}/image/v2/images/{image}", call.base.0);
    Ok((StatusCode::ACCEPTED, [(header::LOCATION, location)]).into_response())
}

async fn crash_dump(call: Call) -> Answer {
    let (_, id) = origin(&call)?;
    Err(Refusal::bad(format!("Triggering a crash dump is not supported by instance {id}")))
}
