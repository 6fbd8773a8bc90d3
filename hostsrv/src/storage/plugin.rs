//! Docker's volume driver protocol over any `VolumeDriver`: a volume's name is its uuid.
//!
//! Docker only ever finds, mounts and forgets here. It cannot create a volume (Amphi does), `Unmount` leaves
//! the volume attached (the agent decides when it goes) and `Remove` drops nothing but Docker's own note.
//! Protocol: docs.docker.com/engine/extend/plugins_volume; an error is `{"Err": text}`, "" means success.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::response::Json;
use axum::routing::post;
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{Attach, ObservedVolume, VolumeDriver, VolumeKind};

/// Under the bound of the socket's own frame (25 s), so that the answer says what hangs.
const LIMIT: Duration = Duration::from_secs(20);

type Driver = Arc<dyn VolumeDriver>;

/// The routes `/VolumeDriver.*`, to be merged into the plug-in's router.
pub fn router(driver: Driver) -> Router {
    Router::new()
        .route("/VolumeDriver.Create", post(create))
        .route("/VolumeDriver.Remove", post(remove))
        .route("/VolumeDriver.Mount", post(mount))
        .route("/VolumeDriver.Unmount", post(unmount))
        .route("/VolumeDriver.Path", post(path))
        .route("/VolumeDriver.Get", post(get))
        .route("/VolumeDriver.List", post(list))
        .route("/VolumeDriver.Capabilities", post(capabilities))
        .with_state(driver)
}

#[derive(Deserialize)]
struct Request {
    #[serde(rename = "Name")]
    name: String,
}

/// Docker's content type is not JSON's, so the body is read as bytes.
fn volume(body: &Bytes) -> Result<Uuid, String> {
    let request: Request = serde_json::from_slice(body).map_err(|error| format!("request: {error}"))?;
    request.name.parse().map_err(|_| format!("volume name {:?} is no Amphi volume's uuid", request.name))
}

async fn answer(work: impl Future<Output = Result<Value, String>>) -> Json<Value> {
    let done = tokio::time::timeout(LIMIT, work).await;
    let done = done.unwrap_or_else(|_| Err(format!("no answer from storage within {} s", LIMIT.as_secs())));
    Json(match done {
        Ok(mut value) => {
            value["Err"] = json!("");
            value
        }
        Err(error) => json!({ "Err": error }),
    })
}

async fn volumes(driver: &Driver) -> Result<Vec<ObservedVolume>, String> {
    let observed = driver.observe().await.map_err(|error| error.to_string())?;
    let usable = |volume: &ObservedVolume| {
        volume.kind == VolumeKind::Volume && volume.complete && volume.trashed_at.is_none()
    };
    Ok(observed.into_iter().filter(usable).collect())
}

/// The mount point of a volume that exists. Docker asks several times in each container's start, so LVM, which takes a
/// process of 10 to 20 ms, is asked only where the volume is not mounted.
async fn find(driver: &Driver, id: Uuid) -> Result<Option<PathBuf>, String> {
    if let Some(point) = driver.mounted(id).await.map_err(|error| error.to_string())? {
        return Ok(Some(point));
    }
    // The container is made meanwhile; its start waits for the mount.
    if driver.is_coming(id).map_err(|error| error.to_string())? {
        return Ok(None);
    }
    let found = volumes(driver).await?.into_iter().find(|volume| volume.id == id);
    found.map(|volume| volume.mounted).ok_or_else(|| {
        format!("volume {id} does not exist on this host; Amphi creates volumes, Docker does not")
    })
}

fn entry(id: Uuid, mounted: Option<&Path>) -> Value {
    let point = mounted.map(|point| point.display().to_string()).unwrap_or_default();
    json!({ "Name": id.to_string(), "Mountpoint": point })
}

async fn create(State(driver): State<Driver>, body: Bytes) -> Json<Value> {
    answer(async { find(&driver, volume(&body)?).await.map(|_| json!({})) }).await
}

async fn remove(body: Bytes) -> Json<Value> {
    answer(async { volume(&body).map(|_| json!({})) }).await
}

async fn mount(State(driver): State<Driver>, body: Bytes) -> Json<Value> {
    answer(async {
        let id = volume(&body)?;
        driver.arrival(id).await.map_err(|error| error.to_string())?;
        if let Some(point) = driver.mounted(id).await.map_err(|error| error.to_string())? {
            return Ok(json!({ "Mountpoint": point.display().to_string() }));
        }
        let attached = driver.attach(id, Attach::Mounted).await.map_err(|error| error.to_string())?;
        let point =
            attached.mount.ok_or_else(|| format!("volume {id} was attached without a mount point"))?;
        Ok(json!({ "Mountpoint": point.display().to_string() }))
    })
    .await
}

async fn unmount(body: Bytes) -> Json<Value> {
    answer(async { volume(&body).map(|_| json!({})) }).await
}

async fn path(State(driver): State<Driver>, body: Bytes) -> Json<Value> {
    answer(async {
        let id = volume(&body)?;
        let found = find(&driver, id).await?;
        Ok(json!({ "Mountpoint": entry(id, found.as_deref())["Mountpoint"] }))
    })
    .await
}

async fn get(State(driver): State<Driver>, body: Bytes) -> Json<Value> {
    answer(async {
        let id = volume(&body)?;
        let found = find(&driver, id).await?;
        Ok(json!({ "Volume": entry(id, found.as_deref()) }))
    })
    .await
}

async fn list(State(driver): State<Driver>) -> Json<Value> {
    answer(async {
        let all = volumes(&driver).await?;
        let entries = all.iter().map(|volume| entry(volume.id, volume.mounted.as_deref()));
        Ok(json!({ "Volumes": entries.collect::<Vec<_>>() }))
    })
    .await
}

async fn capabilities() -> Json<Value> {
    // A volume belongs to one host.
    Json(json!({ "Capabilities": { "Scope": "local" } }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qemu_img::DiskFormat;
    use crate::storage::{Attached, BinOrder, Filesystem, Quiesce, StorageError, StorageFacts, VolumeSpec};
    use async_trait::async_trait;
    use axum::body::Body;
    use axum::http::Request as HttpRequest;
    use http_body_util::BodyExt;
    use std::path::Path;

    /// What is there, and what is on its way.
    struct Fake(Vec<ObservedVolume>, Option<Uuid>);

    #[async_trait]
    impl VolumeDriver for Fake {
        async fn probe(&self) -> Result<StorageFacts, StorageError> {
            unreachable!("the plug-in never asks")
        }
        async fn observe(&self) -> Result<Vec<ObservedVolume>, StorageError> {
            Ok(self.0.clone())
        }
        async fn ensure(&self, _: &VolumeSpec) -> Result<(), StorageError> {
            unreachable!("the plug-in creates nothing")
        }
        async fn attach(&self, id: Uuid, how: Attach) -> Result<Attached, StorageError> {
            assert_eq!(how, Attach::Mounted);
            let found = self.0.iter().find(|volume| volume.id == id).ok_or(StorageError::Unknown { id })?;
            Ok(Attached { device: "/dev/x".into(), mount: found.mounted.clone() })
        }
        fn is_coming(&self, id: Uuid) -> Result<bool, StorageError> {
            Ok(self.1 == Some(id))
        }
        async fn mounted(&self, id: Uuid) -> Result<Option<PathBuf>, StorageError> {
            Ok(self.0.iter().find(|volume| volume.id == id).and_then(|volume| volume.mounted.clone()))
        }
        async fn detach(&self, _: Uuid) -> Result<(), StorageError> {
            unreachable!("the plug-in detaches nothing")
        }
        async fn snapshot(&self, _: Uuid, _: Uuid, _: &Quiesce) -> Result<(), StorageError> {
            unreachable!("the plug-in takes no snapshots")
        }
        async fn export(&self, _: Uuid, _: &Path, _: DiskFormat, _: &Quiesce) -> Result<(), StorageError> {
            unreachable!("the plug-in exports nothing")
        }
        async fn set_filesystem(&self, _: Uuid, _: Option<Filesystem>) -> Result<(), StorageError> {
            Ok(())
        }

        async fn set_bin(&self, _: Uuid, _: BinOrder) -> Result<(), StorageError> {
            unreachable!("the plug-in deletes nothing")
        }
    }

    fn observed(id: u128, trashed_at: Option<i64>) -> ObservedVolume {
        let id = Uuid::from_u128(id);
        ObservedVolume {
            id,
            kind: VolumeKind::Volume,
            size_bytes: 1,
            fs: Some(Filesystem::Xfs),
            complete: true,
            trashed_at,
            device: None,
            mounted: trashed_at.is_none().then(|| format!("/v/{id}").into()),
            tags: Vec::new(),
            shared: None,
        }
    }

    async fn call(name: &str, body: &str) -> Value {
        let there = vec![observed(1, None), observed(2, Some(5))];
        let router = router(Arc::new(Fake(there, Some(Uuid::from_u128(7)))));
        let request = HttpRequest::post(format!("/VolumeDriver.{name}"))
            .header("content-type", "application/vnd.docker.plugins.v1.1+json")
            .body(Body::from(body.to_owned()))
            .expect("request");
        let response = tower::ServiceExt::oneshot(router, request).await.expect("infallible");
        let bytes = response.into_body().collect().await.expect("body").to_bytes();
        serde_json::from_slice(&bytes).expect("JSON")
    }

    #[tokio::test]
    async fn docker_finds_and_mounts_what_exists() {
        let id = Uuid::from_u128(1);
        let named = format!(r#"{{"Name":"{id}","Opts":{{}}}}"#);
        let point = format!("/v/{id}");
        assert_eq!(call("Create", &named).await, json!({ "Err": "" }));
        assert_eq!(call("Remove", &named).await, json!({ "Err": "" }));
        assert_eq!(call("Mount", &named).await, json!({ "Err": "", "Mountpoint": point }));
        assert_eq!(call("Unmount", &named).await, json!({ "Err": "" }));
        assert_eq!(call("Path", &named).await, json!({ "Err": "", "Mountpoint": point }));
        let volume = json!({ "Name": id.to_string(), "Mountpoint": point });
        assert_eq!(call("Get", &named).await, json!({ "Err": "", "Volume": volume }));
        assert_eq!(call("List", "").await, json!({ "Err": "", "Volumes": [volume] }));
        assert_eq!(call("Capabilities", "").await["Capabilities"]["Scope"], "local");
    }

    #[tokio::test]
    async fn a_container_is_made_while_its_volume_comes_and_not_started_without_it() {
        let id = Uuid::from_u128(7);
        let named = format!(r#"{{"Name":"{id}"}}"#);
        let volume = json!({ "Name": id.to_string(), "Mountpoint": "" });
        assert_eq!(call("Create", &named).await, json!({ "Err": "" }));
        assert_eq!(call("Get", &named).await, json!({ "Err": "", "Volume": volume }));
        // The fake waits for nothing: by then it has not come.
        let error = call("Mount", &named).await["Err"].to_string();
        assert!(error.contains("unknown on this host"), "{error}");
    }

    #[tokio::test]
    async fn docker_creates_nothing_and_sees_no_trash() {
        for id in [2, 3] {
            let named = format!(r#"{{"Name":"{}"}}"#, Uuid::from_u128(id));
            for name in ["Create", "Get", "Path"] {
                let error = call(name, &named).await["Err"].as_str().unwrap_or_default().to_owned();
                assert!(error.contains("does not exist on this host"), "{name}: {error}");
            }
        }
        let error = call("Mount", r#"{"Name":"data"}"#).await["Err"].to_string();
        assert!(error.contains("no Amphi volume"), "{error}");
        assert!(call("Mount", "junk").await["Err"].to_string().contains("request:"));
    }
}
