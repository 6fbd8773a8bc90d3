//! Volumes that instances on other hosts are given: their bytes come first.

use super::servers::{flavor, origin};
use super::*;
use crate::model::{DOWN_PATIENCE, FAULT_PATIENCE, VolumeDoings, VolumeRecord};
use crate::ops::servers::*;
use amphi_api::instance::InstanceState;
use amphi_api::volume::{SnapshotCreate, VolumeCreate, VolumeState};
use amphi_api::wire::{ExportSource, Tombstone, VolumeSource};
use amphi_api::{ErrorCode, InstanceId, VolumeId};

/// A server on h1, and a volume with bytes on h2.
async fn apart() -> (Cloud, [HostId; 2], InstanceId, VolumeId) {
    let (cloud, h1, h2) = Cloud::furnished().await;
    let id = on(&cloud, h1).await;
    let volume = volume_on(&cloud, "h2").await;
    cloud.settle().await;
    (cloud, [h1, h2], id, volume)
}

async fn on(cloud: &Cloud, host: HostId) -> InstanceId {
    let wish = ServerWish {
        name: "web".into(),
        flavor: flavor("1", 1, 128),
        image: Some(cloud.image_named("busybox")),
        host: Some(host.to_string()),
        ..ServerWish::default()
    };
    let operator = Origin { admin: true, ..origin() };
    cloud.ops.create_server(&operator, &wish).await.unwrap().servers[0]
}

async fn volume_on(cloud: &Cloud, host: &str) -> VolumeId {
    let order: VolumeCreate =
        serde_json::from_value(json!({"name": "v", "size_gib": 2, "host": host})).unwrap();
    cloud.ops.create_volume(P, &order).await.unwrap().id
}

async fn attach(cloud: &Cloud, id: InstanceId, volume: VolumeId) -> Result<(), OpsError> {
    let wish = AttachWish { volume: Some(volume), ..AttachWish::default() };
    cloud.ops.attach_volume(&origin(), id, &wish).await.map(drop)
}

fn record(cloud: &Cloud, id: VolumeId) -> VolumeRecord {
    (*cloud.ops.world().read().volumes.get(id).unwrap().record).clone()
}

fn word(cloud: &Cloud, id: VolumeId) -> String {
    record(cloud, id).word(VolumeDoings::default()).to_owned()
}

fn gib(cloud: &Cloud, hosts: [HostId; 2]) -> [u64; 2] {
    hosts.map(|host| cloud.ops.world().read().claims_of(host).volume_gib)
}

fn carriers(cloud: &Cloud) -> usize {
    cloud.ops.world().read().images.iter().filter(|i| i.name.contains("on its way")).count()
}

/// The task looks, as one of a controller that has just started.
async fn look(cloud: &mut Cloud) {
    *cloud = cloud.another().await;
    cloud.ops.step_volume_journeys().await.unwrap();
    cloud.ops.step_exchanges().await.unwrap();
}

/// Until nothing is on its way: hosts obey, a new controller looks.
async fn to_the_end(cloud: &mut Cloud) {
    for _ in 0..8 {
        look(cloud).await;
        cloud.settle().await;
    }
    assert_eq!(cloud.ops.world().read().volumes_travelling().count(), 0);
    assert_eq!(carriers(cloud), 0, "what carried it is forgotten");
}

/// The journey began so long ago.
async fn backdate(cloud: &Cloud, id: VolumeId, by: jiff::SignedDuration) {
    let changed = cloud.ops.transact(|view| {
        let row = view.volumes.get(id).unwrap();
        let mut record = (*row.record).clone();
        let journey = record.journey.as_mut().unwrap();
        journey.since -= by;
        journey.fault.iter_mut().for_each(|fault| fault.since -= by);
        let mut draft = Draft::default();
        draft.update(row, &record);
        Ok((draft, ()))
    });
    changed.await.unwrap();
}

#[tokio::test]
async fn a_volumes_bytes_come_to_the_server_before_it_gets_it() {
    let (mut cloud, hosts, id, volume) = apart().await;
    let [h1, h2] = hosts;
    assert_eq!(gib(&cloud, hosts), [0, 2]);
    attach(&cloud, id, volume).await.unwrap();
    assert_eq!((word(&cloud, volume).as_str(), gib(&cloud, hosts)), ("attaching", [2, 2]));
    assert_eq!(cloud.record(id).attachments.len(), 1, "its place is taken");
    let again = attach(&cloud, id, volume).await.unwrap_err();
    assert!(again.to_string().contains("current status is attaching"), "{again}");
    let extend = serde_json::from_value(json!({"size_gib": 3})).unwrap();
    assert_eq!(cloud.ops.extend_volume(P, volume, &extend).await.unwrap_err().code(), ErrorCode::Conflict);
    assert_eq!(cloud.ops.trash_volume(P, volume).await.unwrap_err().code(), ErrorCode::Conflict);

    look(&mut cloud).await;
    assert_eq!(cloud.ops.desired(h2).exports.len(), 1);
    assert!(cloud.ops.desired(h2).volumes.iter().any(|v| v.id == volume && v.made), "it is kept");
    let not_yet = cloud.ops.desired(h1);
    assert_eq!((not_yet.volumes.len(), not_yet.instances[0].attachments.len()), (0, 0));
    assert!(!cloud.ops.blob_allowed(h1, &"cd".repeat(32)));
    cloud.obey(h2).await;
    look(&mut cloud).await;
    assert!(cloud.ops.blob_allowed(h1, &"cd".repeat(32)));
    let coming = cloud.ops.desired(h1).volumes.clone();
    assert!(matches!(coming[0].source, Some(VolumeSource::Moved { blank: true, .. })));
    assert!(!coming[0].made && cloud.ops.desired(h1).instances[0].attachments.is_empty());
    assert!(cloud.ops.desired(h2).tombstones.is_empty(), "nothing is destroyed yet");
    cloud.obey(h1).await;
    look(&mut cloud).await;
    assert_eq!((record(&cloud, volume).host, gib(&cloud, hosts)), (h1, [2, 0]));
    assert_eq!(cloud.ops.desired(h1).instances[0].attachments[0].volume, volume);
    assert!(cloud.ops.desired(h1).volumes[0].made, "never made anew");
    assert_eq!(cloud.ops.desired(h2).tombstones, [Tombstone::Volume { id: volume }], "the old bytes go last");
    to_the_end(&mut cloud).await;
    let seen = cloud.ops.volume(P, volume).unwrap();
    assert_eq!((seen.state, seen.host, word(&cloud, volume).as_str()), (VolumeState::InUse, h1, "in-use"));
    assert!(cloud.ops.desired(h2).volumes.is_empty() && cloud.ops.desired(h2).tombstones.is_empty());
}

#[tokio::test]
async fn it_goes_back_and_forth_and_snapshots_stay() {
    let (mut cloud, hosts, id, volume) = apart().await;
    let [h1, h2] = hosts;
    cloud.ops.create_snapshot(P, volume, &SnapshotCreate { name: "s".into() }).await.unwrap();
    attach(&cloud, id, volume).await.unwrap_or_else(|e| panic!("{e}"));
    for _ in 0..3 {
        look(&mut cloud).await;
        let status = cloud.obedient(h2);
        let snapshots = Vec::new();
        cloud.ops.status(h2, amphi_api::wire::HostStatus { snapshots, ..status }).await.unwrap();
        cloud.obey(h1).await;
    }
    look(&mut cloud).await;
    assert_eq!(record(&cloud, volume).host, h2, "not while a snapshot is made of it");
    to_the_end(&mut cloud).await;
    assert_eq!((record(&cloud, volume).host, gib(&cloud, hosts)), (h1, [2, 2]));
    let other = on(&cloud, h2).await;
    cloud.settle().await;
    cloud.ops.detach_volume(&origin(), id, volume).await.unwrap();
    cloud.settle().await;
    // What it left on h2 is destroyed before it is written there again.
    attach(&cloud, other, volume).await.unwrap();
    to_the_end(&mut cloud).await;
    assert_eq!((record(&cloud, volume).host, gib(&cloud, hosts)), (h2, [0, 4]));
    let delete = cloud.ops.delete_server(&origin(), other, VolumeFate::Keep).await;
    delete.unwrap();
    cloud.settle().await;
    assert_eq!(cloud.ops.snapshots(P, Some(volume), &ListQuery::default()).unwrap().len(), 1);
    cloud.ops.delete_volume(P, volume, true).await.unwrap();
    cloud.settle().await;
    assert_eq!(cloud.ops.snapshots(P, None, &ListQuery::default()).unwrap().len(), 0);
}

/// How a journey is cut short.
#[derive(Clone, Copy, Debug)]
enum Cut {
    Detach,
    Delete,
    ToDown,
    FromDown,
    Fault,
}

#[tokio::test]
async fn a_journey_that_is_cut_short_leaves_the_volume_where_it_was() {
    for (cut, looks) in
        [(Cut::Detach, 0), (Cut::Detach, 1), (Cut::Detach, 2), (Cut::Delete, 1), (Cut::Delete, 2)]
            .into_iter()
            .chain([(Cut::ToDown, 2), (Cut::FromDown, 1), (Cut::Fault, 2)])
    {
        let (mut cloud, hosts, id, volume) = apart().await;
        let [h1, h2] = hosts;
        attach(&cloud, id, volume).await.unwrap();
        for _ in 0..looks {
            look(&mut cloud).await;
            if looks == 2 {
                cloud.obey(h2).await;
            }
        }
        match cut {
            Cut::Detach => cloud.ops.detach_volume(&origin(), id, volume).await.unwrap(),
            Cut::Delete => cloud.ops.delete_server(&origin(), id, VolumeFate::Trash).await.unwrap(),
            Cut::ToDown => {
                cloud.down(h1).await;
                look(&mut cloud).await;
                assert_eq!(word(&cloud, volume), "attaching", "not at once");
                backdate(&cloud, volume, DOWN_PATIENCE).await;
                backdate_host(&cloud, h1).await;
            }
            Cut::FromDown => {
                cloud.down(h2).await;
                backdate(&cloud, volume, DOWN_PATIENCE).await;
                backdate_host(&cloud, h2).await;
            }
            Cut::Fault => {
                let mut status = cloud.obedient(h1);
                let at = status.volumes.iter_mut().find(|v| v.id == volume).unwrap();
                let (code, message) = ("volume_group_full".into(), "full".into());
                at.fault = Some(Fault { code, message, since: Timestamp::now() });
                at.present = false;
                cloud.ops.status(h1, status).await.unwrap();
                look(&mut cloud).await;
                assert_eq!(word(&cloud, volume), "attaching", "not at once");
                backdate(&cloud, volume, FAULT_PATIENCE).await;
            }
        }
        look(&mut cloud).await;
        for host in hosts {
            if cloud.links.is_linked(host) {
                cloud.obey(host).await;
            }
        }
        look(&mut cloud).await;
        let seen = record(&cloud, volume);
        assert_eq!((seen.host, seen.made, seen.journey, seen.instance), (h2, true, None, None), "{cut:?}");
        assert_eq!((word(&cloud, volume).as_str(), gib(&cloud, hosts)), ("available", [0, 2]), "{cut:?}");
        assert_eq!(seen.trashed_at, None, "{cut:?}: deleted with a server that never had it");
        cloud.up(h1, "h1").await;
        cloud.up(h2, "h2").await;
        to_the_end(&mut cloud).await;
        assert!(cloud.ops.desired(h1).volumes.is_empty(), "{cut:?}");
        assert!(cloud.ops.desired(h2).volumes[0].made, "{cut:?}");
        if !matches!(cut, Cut::Delete) {
            assert_eq!(cloud.record(id).attachments, [], "{cut:?}");
            assert_eq!(cloud.status(id), "ACTIVE");
            // And it can be tried again.
            attach(&cloud, id, volume).await.unwrap();
            to_the_end(&mut cloud).await;
            assert_eq!(record(&cloud, volume).host, h1, "{cut:?}");
        }
        if matches!(cut, Cut::ToDown | Cut::FromDown | Cut::Fault) {
            let failed = cloud.actions(id).into_iter().filter(|(_, success)| *success == Some(false)).count();
            assert_eq!(failed, 1, "{cut:?}: its actions say so");
        }
    }
}

/// The host's link has been as it is for an hour.
async fn backdate_host(cloud: &Cloud, host: HostId) {
    let changed = cloud.ops.transact(|view| {
        let row = view.hosts.get(host).unwrap();
        let mut record = (*row.record).clone();
        record.state_since -= jiff::SignedDuration::from_hours(1);
        let mut draft = Draft::default();
        draft.update(row, &record);
        Ok((draft, ()))
    });
    changed.await.unwrap();
}

#[tokio::test]
async fn an_instance_is_made_where_its_volume_is_or_waits_for_it() {
    let (mut cloud, h1, h2) = Cloud::furnished().await;
    let near = volume_on(&cloud, "h2").await;
    cloud.settle().await;
    let made = cloud.create(json!({"volume": {"id": near}})).await.unwrap();
    assert_eq!(made.host, Some(h2), "its volume is there");
    let far = volume_on(&cloud, "h2").await;
    cloud.settle().await;
    let made = cloud.create(json!({"name": "far", "host": "h1", "volume": {"id": far}})).await.unwrap();
    assert_eq!(made.host, Some(h1));
    cloud.settle().await;
    assert!(cloud.ops.desired(h1).instances.is_empty(), "not before its volume is there");
    to_the_end(&mut cloud).await;
    assert_eq!(record(&cloud, far).host, h1);
    assert_eq!(cloud.show(&made).state, InstanceState::Running);

    let devices = |first, second| {
        let device = |id, boot_index| DeviceWish {
            source: DeviceSource::Volume(id),
            local: false,
            boot_index,
            size_gib: None,
            delete_on_termination: false,
            device: None,
            tag: None,
        };
        vec![device(first, Some(0)), device(second, None)]
    };
    let (root, data) = (volume_on(&cloud, "h1").await, volume_on(&cloud, "h2").await);
    cloud.settle().await;
    let id = cloud.server(|w| (w.image, w.devices) = (None, devices(root, data))).await;
    assert_eq!(cloud.record(id).host, Some(h1), "the root's host");
    cloud.settle().await;
    assert_eq!(cloud.status(id), "BUILD");
    to_the_end(&mut cloud).await;
    assert_eq!((cloud.status(id), record(&cloud, data).host), ("ACTIVE", h1));
}

#[tokio::test]
async fn a_new_volume_is_made_of_what_is_on_another_host() {
    let (mut cloud, h1, h2) = Cloud::furnished().await;
    let parent = volume_on(&cloud, "h1").await;
    cloud.settle().await;
    let snapshot =
        cloud.ops.create_snapshot(P, parent, &SnapshotCreate { name: "s".into() }).await.unwrap().id;
    cloud.settle().await;
    let order = json!({"name": "copy", "snapshot": snapshot, "host": "h2"});
    let order: VolumeCreate = serde_json::from_value(order).unwrap();
    let copy = cloud.ops.create_volume(P, &order).await.unwrap().id;
    assert_eq!((record(&cloud, copy).host, gib(&cloud, [h1, h2])), (h2, [4, 2]));
    assert_eq!(cloud.ops.delete_snapshot(P, snapshot).await.unwrap_err().code(), ErrorCode::Conflict);
    cloud.settle().await;
    look(&mut cloud).await;
    assert_eq!(cloud.ops.desired(h1).exports[0].source, ExportSource::Snapshot(snapshot));
    assert!(cloud.ops.desired(h2).volumes.is_empty(), "it would be made blank");
    assert_eq!(word(&cloud, copy), "creating");
    let mut status = cloud.obedient(h1);
    let fault = Fault { code: "engine_refused".into(), message: "no".into(), since: Timestamp::now() };
    (status.exports[0].blob, status.exports[0].fault) = (None, Some(fault));
    cloud.ops.status(h1, status).await.unwrap();
    look(&mut cloud).await;
    assert_eq!(word(&cloud, copy), "error", "it is told, and tried again");
    to_the_end(&mut cloud).await;
    assert_eq!((word(&cloud, copy).as_str(), record(&cloud, copy).host), ("available", h2));
    assert_eq!(cloud.ops.snapshots(P, Some(parent), &ListQuery::default()).unwrap().len(), 1);

    let root = DeviceWish {
        source: DeviceSource::Snapshot(snapshot),
        local: false,
        boot_index: Some(0),
        size_gib: None,
        delete_on_termination: true,
        device: None,
        tag: None,
    };
    let wish = ServerWish {
        name: "web".into(),
        flavor: flavor("1", 1, 128),
        devices: vec![root],
        host: Some(h2.to_string()),
        ..ServerWish::default()
    };
    let operator = Origin { admin: true, ..origin() };
    let id = cloud.ops.create_server(&operator, &wish).await.unwrap().servers[0];
    cloud.settle().await;
    assert!(cloud.ops.desired(h2).instances.is_empty(), "not before its root is there");
    to_the_end(&mut cloud).await;
    assert_eq!((cloud.status(id), cloud.record(id).host), ("ACTIVE", Some(h2)));

    // One that never comes to be is deleted like any other.
    let order = json!({"name": "never", "snapshot": snapshot, "host": "h2"});
    let never = cloud.ops.create_volume(P, &serde_json::from_value(order).unwrap()).await.unwrap().id;
    look(&mut cloud).await;
    cloud.ops.trash_volume(P, never).await.unwrap();
    cloud.ops.purge_volume(P, never).await.unwrap();
    to_the_end(&mut cloud).await;
    assert!(cloud.ops.world().read().volumes.get(never).is_none());
    assert_eq!(gib(&cloud, [h1, h2]), [4, 4]);
}
