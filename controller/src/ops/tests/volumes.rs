use super::*;
use amphi_api::volume::{SnapshotCreate, SnapshotState, Volume, VolumeCreate, VolumeExtend, VolumeState};
use amphi_api::{ErrorCode, VolumeId};

async fn make(cloud: &Cloud, change: serde_json::Value) -> Result<Volume, OpsError> {
    let mut value = json!({"name": "v", "host": "h1"});
    for (key, part) in change.as_object().unwrap() {
        value[key] = part.clone();
    }
    cloud.ops.create_volume(P, &serde_json::from_value::<VolumeCreate>(value).unwrap()).await
}

#[tokio::test]
async fn a_volume_from_order_to_purge() {
    let (cloud, h1, _) = Cloud::furnished().await;
    let volume = make(&cloud, json!({"size_gib": 2})).await.unwrap();
    let state = |id: VolumeId| cloud.ops.volume(P, id).unwrap().state;
    assert_eq!(volume.state, VolumeState::Creating);
    cloud.obey(h1).await;
    assert_eq!(state(volume.id), VolumeState::Available);
    assert!(cloud.ops.desired(h1).volumes[0].made, "never made anew");

    let extend = async |size_gib| cloud.ops.extend_volume(P, volume.id, &VolumeExtend { size_gib }).await;
    for (size, code) in [(2, ErrorCode::InvalidField), (1, ErrorCode::InvalidField), (21, ErrorCode::NoRoom)]
    {
        assert_eq!(extend(size).await.unwrap_err().code(), code, "{size}");
    }
    assert_eq!(extend(5).await.unwrap().state, VolumeState::Extending);
    cloud.obey(h1).await;
    assert_eq!(state(volume.id), VolumeState::Available);
    assert_eq!(cloud.ops.host(h1).unwrap().claims.volume_gib, 5);

    let snapshot =
        cloud.ops.create_snapshot(P, volume.id, &SnapshotCreate { name: "s".into() }).await.unwrap();
    assert_eq!(snapshot.state, SnapshotState::Creating);
    let early = make(&cloud, json!({"snapshot": snapshot.id})).await.unwrap_err();
    assert_eq!(early.code(), ErrorCode::Conflict);
    cloud.obey(h1).await;
    assert_eq!(cloud.ops.snapshot(P, snapshot.id).unwrap().state, SnapshotState::Available);
    let small = make(&cloud, json!({"snapshot": snapshot.id, "size_gib": 4})).await.unwrap_err();
    assert!(matches!(&small, OpsError::Field(e) if e.field == "size_gib"));
    let copy = make(&cloud, json!({"snapshot": snapshot.id})).await.unwrap();
    assert_eq!(copy.size_gib, 5);
    assert_eq!(cloud.ops.delete_snapshot(P, snapshot.id).await.unwrap_err().code(), ErrorCode::Conflict);
    cloud.obey(h1).await;

    cloud.ops.trash_volume(P, volume.id).await.unwrap();
    assert_eq!(state(volume.id), VolumeState::Trashed);
    assert_eq!(cloud.ops.volumes(P, &ListQuery::default()).unwrap().len(), 1, "the copy alone");
    assert_eq!(cloud.ops.trash_volume(P, volume.id).await.unwrap_err().code(), ErrorCode::Conflict);
    assert_eq!(extend(6).await.unwrap_err().code(), ErrorCode::Conflict);
    let used = cloud.create(json!({"volume": {"id": volume.id}})).await.unwrap_err();
    assert_eq!(used.code(), ErrorCode::Conflict);
    assert_eq!(
        cloud.ops.purge_volume(P, volume.id).await.unwrap_err().code(),
        ErrorCode::Conflict,
        "a snapshot"
    );
    cloud.obey(h1).await;
    let in_bin = cloud.obedient(h1);
    let restored = cloud.ops.restore_volume(P, volume.id).await.unwrap();
    assert_eq!(restored.state, VolumeState::Restoring, "the host has not said that it did");
    cloud.ops.status(h1, in_bin).await.unwrap();
    assert_eq!(state(volume.id), VolumeState::Restoring, "it says that it has not");
    cloud.obey(h1).await;
    assert_eq!(state(volume.id), VolumeState::Available);
    assert_eq!(
        cloud.ops.purge_volume(P, volume.id).await.unwrap_err().code(),
        ErrorCode::Conflict,
        "not in bin"
    );

    cloud.ops.delete_snapshot(P, snapshot.id).await.unwrap();
    cloud.obey(h1).await;
    for id in [volume.id, copy.id] {
        cloud.ops.trash_volume(P, id).await.unwrap();
        cloud.ops.purge_volume(P, id).await.unwrap();
        assert_eq!(state(id), VolumeState::Purging);
    }
    cloud.obey(h1).await;
    cloud.assert_empty();
}

#[tokio::test]
async fn a_volume_of_a_dead_host_is_out_of_reach_not_gone() {
    let (cloud, h1, _) = Cloud::furnished().await;
    let volume = make(&cloud, json!({"size_gib": 1})).await.unwrap();
    cloud.obey(h1).await;
    cloud.down(h1).await;
    assert_eq!(cloud.ops.volume(P, volume.id).unwrap().state, VolumeState::Unreachable);
    let error = cloud.create(json!({"volume": {"id": volume.id}})).await.unwrap_err();
    assert!(error.to_string().contains("h1: is down"), "{error}");
    cloud.up(h1, "h1").await;
    assert_eq!(cloud.ops.volume(P, volume.id).unwrap().state, VolumeState::Available);
}

#[tokio::test]
async fn a_silent_lvm_is_no_lost_volume() {
    let (cloud, h1, _) = Cloud::furnished().await;
    let volume = make(&cloud, json!({"size_gib": 1})).await.unwrap();
    cloud.obey(h1).await;
    let mut status = cloud.obedient(h1);
    status.volumes[0].present = false;
    status.volumes[0].size_bytes = 0;
    cloud.ops.status(h1, status.clone()).await.unwrap();
    assert_eq!(cloud.ops.volume(P, volume.id).unwrap().state, VolumeState::Available);
    let since = Timestamp::now();
    status.volumes[0].fault = Some(amphi_api::instance::Fault {
        code: "volume_missing".into(),
        message: "it is not there".into(),
        since,
    });
    cloud.ops.status(h1, status).await.unwrap();
    let seen = cloud.ops.volume(P, volume.id).unwrap();
    assert_eq!((seen.state, seen.size_bytes), (VolumeState::Error, None));
}
