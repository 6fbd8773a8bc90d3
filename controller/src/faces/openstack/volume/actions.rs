//! What is done to a volume or a snapshot by `POST …/action`.

use super::input::{self, Fields};
use super::view::Sight;
use super::{limited, said, snapshot_id, volume, volume_id};
use crate::faces::openstack::answers::Refusal;
use crate::faces::openstack::routes::{Call, Need, Routes};
use crate::model::{Visibility, VolumeChange};
use crate::ops::{SnapshotChange, UploadWish, volume_types};
use amphi_api::InstanceId;
use amphi_api::volume::VolumeExtend;
use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

const VOLUME: &str = "/v3/volumes/{id}/action";
const SNAPSHOT: &str = "/v3/snapshots/{id}/action";

pub fn routes(routes: Routes) -> Routes {
    routes
        .action(VOLUME, "os-extend", Need::Member, extend)
        .action(VOLUME, "os-reserve", Need::Member, |call| change(call, VolumeChange::Reserve))
        .action(VOLUME, "os-unreserve", Need::Member, |call| change(call, VolumeChange::Unreserve))
        .action(VOLUME, "os-begin_detaching", Need::Member, |call| change(call, VolumeChange::BeginDetaching))
        .action(VOLUME, "os-roll_detaching", Need::Member, |call| change(call, VolumeChange::RollDetaching))
        .action(VOLUME, "os-attach", Need::Member, attach)
        .action(VOLUME, "os-detach", Need::Member, detach)
        .action(VOLUME, "os-force_detach", Need::Admin, |call| change(call, VolumeChange::ForceDetach))
        .action(VOLUME, "os-force_delete", Need::Admin, force_delete)
        .action(VOLUME, "os-reset_status", Need::Admin, reset)
        .action(VOLUME, "os-set_bootable", Need::Member, set_bootable)
        .action(VOLUME, "os-update_readonly_flag", Need::Member, set_read_only)
        .action(VOLUME, "os-retype", Need::Member, retype)
        .action(VOLUME, "os-volume_upload_image", Need::Member, upload)
        .action(VOLUME, "os-set_image_metadata", Need::Member, set_image_metadata)
        .action(VOLUME, "os-unset_image_metadata", Need::Member, unset_image_metadata)
        .action(VOLUME, "os-show_image_metadata", Need::Reader, show_image_metadata)
        .action(SNAPSHOT, "os-reset_status", Need::Admin, reset_snapshot)
        .action(SNAPSHOT, "os-update_snapshot_status", Need::Admin, reset_snapshot)
        .action(SNAPSHOT, "os-force_delete", Need::Admin, delete_snapshot)
}

type Answer = Result<Response, Refusal>;

fn accepted() -> Answer {
    Ok(StatusCode::ACCEPTED.into_response())
}

async fn change(call: Call, change: VolumeChange) -> Answer {
    let (project, id) = volume_id(&call.state, &call.caller, &call.id)?;
    call.state.ops.change_volume(project, id, &[change]).await.map_err(said)?;
    accepted()
}

fn required<T>(name: &str, found: Option<T>) -> Result<T, Refusal> {
    found.ok_or_else(|| Refusal::bad(format!("Invalid input: '{name}' is a required property")))
}

async fn extend(call: Call) -> Answer {
    let (project, id) = volume_id(&call.state, &call.caller, &call.id)?;
    let fields = input::argument("os-extend", call.argument.clone())?;
    let size_gib = required("new_size", input::size(&fields, "new_size")?)?;
    {
        let view = call.state.ops.world().read();
        let word = Sight { view: &view, caller: &call.caller, base: &call.base, version: call.version }
            .volume(volume(&view, &call.caller, &call.id)?)["status"]
            .take();
        // In use from 3.42 on.
        let online = call.version.from(42) && word == "in-use";
        if word != "available" && !online {
            return Err(Refusal::bad(format!(
                "Invalid volume: Volume {id} status must be available to extend, currently {word}."
            )));
        }
    }
    call.state.ops.extend_volume(project, id, &VolumeExtend { size_gib }).await.map_err(said)?;
    accepted()
}

async fn attach(call: Call) -> Answer {
    let fields = input::argument("os-attach", call.argument.clone())?;
    let server = input::id(&fields, &["instance_uuid"])?.map(InstanceId);
    let host_name = input::text(&fields, &["host_name"])?;
    if server.is_none() && host_name.is_none() {
        return Err(Refusal::bad("Invalid request to attach volume to an invalid target"));
    }
    let device = required("mountpoint", input::text(&fields, &["mountpoint"])?)?;
    let read_only = match input::text(&fields, &["mode"])?.as_deref() {
        None | Some("rw") => false,
        Some("ro") => true,
        Some(_) => return Err(Refusal::bad("Invalid request to attach volume with an invalid mode")),
    };
    change(call, VolumeChange::Attach { server, host_name, device: Some(device), read_only }).await
}

async fn detach(call: Call) -> Answer {
    let fields = input::argument("os-detach", call.argument.clone())?;
    let id = input::id(&fields, &["attachment_id"])?;
    change(call, VolumeChange::Detach(id)).await
}

async fn force_delete(call: Call) -> Answer {
    let (project, id) = volume_id(&call.state, &call.caller, &call.id)?;
    let free = VolumeChange::Reset { state: Some("available".into()), detached: true };
    call.state.ops.change_volume(project, id, &[VolumeChange::ForceDetach, free]).await.map_err(said)?;
    call.state.ops.delete_volume(project, id, true).await.map_err(said)?;
    accepted()
}

async fn reset(call: Call) -> Answer {
    let fields = input::argument("os-reset_status", call.argument.clone())?;
    let state = input::text(&fields, &["status"])?;
    let attach = input::text(&fields, &["attach_status"])?;
    let migration = fields.contains_key("migration_status");
    if state.is_none() && attach.is_none() && !migration {
        return Err(Refusal::bad("Must specify 'status', 'attach_status' or 'migration_status' for update."));
    }
    if let Some(word) = attach.as_deref().filter(|word| !["attached", "detached"].contains(word)) {
        return Err(Refusal::field("attach_status", format!("'{word}' is neither attached nor detached")));
    }
    if state.is_none() && attach.as_deref() != Some("detached") {
        return accepted();
    }
    change(call, VolumeChange::Reset { state, detached: attach.as_deref() == Some("detached") }).await
}

async fn set_bootable(call: Call) -> Answer {
    let fields = input::argument("os-set_bootable", call.argument.clone())?;
    let bootable = required("bootable", input::flag(&fields, "bootable")?)?;
    change(call, VolumeChange::Bootable(bootable)).await?;
    Ok(StatusCode::OK.into_response())
}

async fn set_read_only(call: Call) -> Answer {
    let fields = input::argument("os-update_readonly_flag", call.argument.clone())?;
    let read_only = required("readonly", input::flag(&fields, "readonly")?)?;
    change(call, VolumeChange::ReadOnly(read_only)).await
}

async fn retype(call: Call) -> Answer {
    let fields = input::argument("os-retype", call.argument.clone())?;
    let text = required("new_type", input::text(&fields, &["new_type"])?)?;
    if let Some(policy) = input::text(&fields, &["migration_policy"])?
        && !["never", "on-demand"].contains(&policy.as_str())
    {
        return Err(Refusal::field("migration_policy", format!("'{policy}' is neither never nor on-demand")));
    }
    let kind = {
        let view = call.state.ops.world().read();
        let row = volume(&view, &call.caller, &call.id)?;
        let kind = volume_types::named(&view, &text).filter(|kind| kind.open_to(row.project));
        kind.ok_or_else(|| Refusal::not_found("volume type", &text))?.id
    };
    change(call, VolumeChange::Type(kind)).await
}

async fn upload(call: Call) -> Answer {
    let (project, id) = volume_id(&call.state, &call.caller, &call.id)?;
    let fields = input::argument("os-volume_upload_image", call.argument.clone())?;
    let name = required("image_name", input::text(&fields, &["image_name"])?)?;
    let disk_format = input::text(&fields, &["disk_format"])?.unwrap_or_else(|| "raw".into());
    let container = input::text(&fields, &["container_format"])?.unwrap_or_else(|| "bare".into());
    if container != "bare" {
        return Err(Refusal::field("container_format", format!("'{container}' is not bare")));
    }
    let visibility = match input::text(&fields, &["visibility"])? {
        None => Visibility::Private,
        Some(text) => Visibility::parse(&text)
            .ok_or_else(|| Refusal::field("visibility", format!("'{text}' is no visibility")))?,
    };
    if visibility == Visibility::Public && !call.caller.is_admin() {
        return Err(Refusal::forbidden(
            "Policy doesn't allow volume_extension:volume_actions:upload_public.",
        ));
    }
    let wish = UploadWish {
        name: name.clone(),
        disk_format: disk_format.clone(),
        visibility,
        protected: input::flag(&fields, "protected")?.unwrap_or(false),
        force: input::flag(&fields, "force")?.unwrap_or(false),
    };
    let image = call.state.ops.upload_volume(project, id, &wish).await.map_err(said)?;
    let view = call.state.ops.world().read();
    let row = volume(&view, &call.caller, &call.id)?;
    let sight = Sight { view: &view, caller: &call.caller, base: &call.base, version: call.version };
    let shown = sight.volume(row);
    let kind =
        volume_types::get(&view, row.traits.volume_type.unwrap_or(crate::model::VolumeTypeRecord::DEFAULT));
    let mut answer = json!({
        "id": id,
        "updated_at": shown["updated_at"],
        "status": "uploading",
        "display_description": shown["description"],
        "size": row.size_gib,
        "volume_type": kind.map(|kind| json!({
            "id": kind.id, "name": kind.name, "description": kind.description, "is_public": kind.public,
            "extra_specs": kind.extra_specs, "qos_specs_id": null, "deleted": false,
        })),
        "image_id": image,
        "container_format": container,
        "disk_format": disk_format,
        "image_name": name,
    });
    if call.version.from(1) {
        answer["visibility"] = json!(visibility.word());
        answer["protected"] = json!(wish.protected);
    }
    Ok((StatusCode::ACCEPTED, Json(json!({"os-volume_upload_image": answer}))).into_response())
}

fn image_metadata(call: &Call) -> Result<Value, Refusal> {
    let view = call.state.ops.world().read();
    Ok(json!({"metadata": volume(&view, &call.caller, &call.id)?.traits.image}))
}

async fn set_image_metadata(call: Call) -> Answer {
    let (project, id) = volume_id(&call.state, &call.caller, &call.id)?;
    let items = input::required_items("metadata", &call.argument)?;
    let changes = [VolumeChange::ImageMetadata(items)];
    call.state.ops.change_volume(project, id, &changes).await.map_err(said)?;
    Ok(Json(image_metadata(&call)?).into_response())
}

async fn unset_image_metadata(call: Call) -> Answer {
    let fields: Fields = input::argument("os-unset_image_metadata", call.argument.clone())?;
    let key = required("key", input::text(&fields, &["key"])?)?;
    let (project, id) = volume_id(&call.state, &call.caller, &call.id)?;
    let changes = [VolumeChange::RemoveImageMetadata(key)];
    call.state.ops.change_volume(project, id, &changes).await.map_err(said)?;
    Ok(StatusCode::OK.into_response())
}

async fn show_image_metadata(call: Call) -> Answer {
    Ok(Json(image_metadata(&call)?).into_response())
}

async fn reset_snapshot(call: Call) -> Answer {
    let (project, id) = snapshot_id(&call.state, &call.caller, &call.id)?;
    let fields = input::argument("os-reset_status", call.argument.clone())?;
    let state = required("status", input::text(&fields, &["status"])?)?;
    call.state.ops.change_snapshot(project, id, &[SnapshotChange::Reset(state)]).await.map_err(said)?;
    accepted()
}

async fn delete_snapshot(call: Call) -> Answer {
    let (project, id) = snapshot_id(&call.state, &call.caller, &call.id)?;
    call.state.ops.delete_snapshot(project, id).await.map_err(limited)?;
    accepted()
}
