//! Requests and answers as written down, per resource; and what is refused.

use super::super::talk::{Talk, caller};
use crate::ops::identity::Caller;
use crate::ops::tests::P;
use amphi_api::ProjectId;
use amphi_api::image::ImageFormat;
use serde_json::{Value, json};
use uuid::Uuid;

const V: &str = "/volume/v3";
const NONE: Value = Value::Null;

fn admin() -> Caller {
    caller("admin", P, 1)
}

/// A member of another project than the cloud's first.
fn member() -> Caller {
    caller("member", ProjectId(Uuid::from_u128(77)), 2)
}

fn stranger() -> Caller {
    caller("member", ProjectId(Uuid::from_u128(78)), 3)
}

/// The hosts do what they are told.
async fn obey(talk: &Talk) {
    let hosts: Vec<_> = talk.cloud.ops.world().read().hosts.iter().map(|host| host.id).collect();
    for host in hosts {
        talk.cloud.obey(host).await;
    }
}

async fn volume(talk: &Talk, fields: Value) -> String {
    let (status, _, made) =
        talk.ask(&member(), "3.0", &format!("POST {V}/volumes"), &json!({"volume": fields})).await;
    assert_eq!(status, 202, "{made}");
    obey(talk).await;
    made["volume"]["id"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn discovery() {
    let mut talk = Talk::new().await;
    for path in ["/volume", "/volume/", "/volume/v3", "/volume/v3/"] {
        talk.say(&member(), "3.0", &format!("GET {path}"), NONE).await;
    }
    insta::assert_snapshot!(talk.text);
}

#[tokio::test]
async fn volumes() {
    let mut talk = Talk::new().await;
    let (m, volumes) = (member(), format!("{V}/volumes"));
    // As python-openstackclient sends it.
    let plain = json!({"volume": {"volume_type": null, "name": "vol1", "imageRef": null, "description": null,
        "consistencygroup_id": null, "source_volid": null, "metadata": null, "size": 1,
        "availability_zone": null, "backup_id": null, "snapshot_id": null}});
    let made = talk.say(&m, "3.70", &format!("POST {volumes}"), plain.clone()).await;
    let id = made["volume"]["id"].as_str().unwrap().to_owned();
    obey(&talk).await;
    talk.say(&m, "3.0", &format!("GET {volumes}/{id}"), NONE).await;
    talk.say(&admin(), "3.70", &format!("GET {volumes}/{id}"), NONE).await;
    let project = "0000000000000000000000000000004d";
    talk.say(&m, "3.70", &format!("GET {V}/{project}/volumes/detail?limit=1"), NONE).await;
    let full = json!({"volume": {"name": "renamed", "description": "words", "metadata": {"a": "b"}}});
    talk.say(&m, "3.0", &format!("PUT {volumes}/{id}"), full).await;
    let by_metadata = format!("GET {volumes}?metadata=%7B%27a%27:%20%27b%27%7D&with_count=True");
    talk.say(&m, "3.45", &by_metadata, NONE).await;
    talk.say(&m, "3.36", &format!("GET {volumes}/summary"), NONE).await;
    for (version, line, body) in [
        ("3.0", format!("GET {volumes}/vol1"), NONE),
        ("3.0", format!("GET {V}/0000000000000000000000000000004e/volumes"), NONE),
        ("3.31", format!("GET {volumes}?nonsense=1"), NONE),
        ("3.0", format!("GET {volumes}?marker=nonsense"), NONE),
        ("3.0", format!("PUT {volumes}/{id}"), json!({"volume": {}})),
        ("3.0", format!("POST {volumes}"), json!({"volume": {}})),
        ("3.0", format!("POST {volumes}"), json!({"volume": {"size": "many"}})),
        ("3.0", format!("POST {volumes}"), json!({"volume": {"size": 1001}})),
        ("3.0", format!("POST {volumes}"), json!({"volume": {"size": 1, "volume_type": "none"}})),
        ("3.0", format!("POST {volumes}"), json!({"volume": {"size": 1, "availability_zone": "far"}})),
        ("3.0", format!("POST {volumes}"), json!({"volume": {"size": 1, "imageRef": id}})),
        ("3.0", format!("POST {volumes}"), json!({"volume": {"size": 1, "snapshot_id": id}})),
    ] {
        talk.say(&m, version, &line, body).await;
    }
    talk.say(&stranger(), "3.0", &format!("GET {volumes}/{id}"), NONE).await;
    talk.say(&stranger(), "3.0", &format!("DELETE {volumes}/{id}"), NONE).await;
    talk.say(&m, "3.70", &format!("DELETE {volumes}/{id}?cascade=False&force=False"), NONE).await;
    talk.say(&m, "3.70", &format!("GET {volumes}/{id}"), NONE).await;
    talk.say(&m, "3.0", &format!("GET {volumes}"), NONE).await;
    insta::assert_snapshot!(talk.text);
    // Out of sight, not gone.
    assert_eq!(talk.cloud.ops.recycle_bin(m.project.unwrap(), &Default::default()).unwrap().len(), 1);
}

#[tokio::test]
async fn actions() {
    let mut talk = Talk::new().await;
    let m = member();
    let id = volume(&talk, json!({"size": 1, "name": "v"})).await;
    let action = format!("POST {V}/volumes/{id}/action");
    let server = "11111111-2222-4333-8444-555555555555";
    for (version, body) in [
        ("3.0", json!({"os-set_bootable": {"bootable": "True"}})),
        ("3.0", json!({"os-update_readonly_flag": {"readonly": true}})),
        ("3.0", json!({"os-set_image_metadata": {"metadata": {"os_distro": "cirros"}}})),
        ("3.0", json!({"os-show_image_metadata": null})),
        ("3.0", json!({"os-unset_image_metadata": {"key": "os_distro"}})),
        ("3.0", json!({"os-unset_image_metadata": {"key": "os_distro"}})),
        ("3.0", json!({"os-extend": {"new_size": "x"}})),
        ("3.0", json!({"os-extend": {"new_size": 1}})),
        ("3.0", json!({"os-reserve": {}})),
        ("3.0", json!({"os-reserve": {}})),
        ("3.0", json!({"os-unreserve": {}})),
        ("3.0", json!({"os-attach": {"instance_uuid": server, "mountpoint": "/dev/vdb"}})),
        ("3.0", json!({"os-extend": {"new_size": 2}})),
        ("3.0", json!({"os-begin_detaching": {}})),
        ("3.0", json!({"os-roll_detaching": {}})),
        ("3.0", json!({"os-reset_status": {"status": "error"}})),
        ("3.0", json!({"nonsense": {}})),
    ] {
        talk.say(&m, version, &action, body).await;
    }
    talk.say(&m, "3.0", &format!("GET {V}/volumes/{id}"), NONE).await;
    talk.say(&m, "3.0", &format!("DELETE {V}/volumes/{id}"), NONE).await;
    talk.say(&m, "3.0", &action, json!({"os-detach": {}})).await;
    talk.say(&m, "3.0", &action, json!({"os-detach": {}})).await;
    talk.say(&m, "3.0", &action, json!({"os-extend": {"new_size": 2}})).await;
    talk.say(&m, "3.0", &format!("GET {V}/volumes?status=extending"), NONE).await;
    obey(&talk).await;
    talk.say(&admin(), "3.0", &action, json!({"os-reset_status": {"status": "error"}})).await;
    talk.say(&m, "3.0", &format!("GET {V}/volumes/detail?status=error"), NONE).await;
    talk.say(&admin(), "3.0", &action, json!({"os-reset_status": {"status": "available"}})).await;
    let upload = json!({"os-volume_upload_image": {"image_name": "i", "disk_format": "qcow2"}});
    talk.say(&m, "3.1", &action, upload.clone()).await;
    talk.say(&m, "3.1", &action, upload).await;
    obey(&talk).await;
    talk.say(&m, "3.0", &format!("GET {V}/volumes/{id}"), NONE).await;
    insta::assert_snapshot!(talk.text);
}

#[tokio::test]
async fn sources() {
    let talk = Talk::new().await;
    let m = member();
    let origin = volume(&talk, json!({"size": 2, "name": "origin"})).await;
    let snapshots = format!("POST {V}/snapshots");
    let of = json!({"snapshot": {"volume_id": origin, "name": "s"}});
    let (_, _, made) = talk.ask(&m, "3.0", &snapshots, &of).await;
    let snapshot = made["snapshot"]["id"].as_str().unwrap().to_owned();
    let create = format!("POST {V}/volumes");
    // Neither a snapshot that is not there yet, nor one that is larger.
    let from = json!({"volume": {"snapshot_id": snapshot}});
    assert_eq!(talk.ask(&m, "3.0", &create, &from).await.0, 400);
    obey(&talk).await;
    let small = json!({"volume": {"snapshot_id": snapshot, "size": 1}});
    assert_eq!(talk.ask(&m, "3.0", &create, &small).await.0, 400);
    let small = json!({"volume": {"source_volid": origin, "size": 1}});
    assert_eq!(talk.ask(&m, "3.0", &create, &small).await.0, 400);
    let (status, _, made) = talk.ask(&m, "3.0", &create, &from).await;
    assert_eq!((status, &made["volume"]["size"]), (202, &json!(2)), "{made}");
    let both = json!({"volume": {"source_volid": origin, "snapshot_id": snapshot}});
    assert_eq!(talk.ask(&m, "3.0", &create, &both).await.0, 400);

    // An image makes it bootable, and so a copy of it.
    let image = talk.cloud.image("disk", ImageFormat::Qcow2).await;
    let from_image = json!({"volume": {"imageRef": image, "size": 1}});
    assert_eq!(talk.ask(&m, "3.0", &create, &from_image).await.0, 400, "another project's");
    let (status, _, made) = talk.ask(&admin(), "3.0", &create, &from_image).await;
    assert_eq!((status, &made["volume"]["status"]), (202, &json!("downloading")), "{made}");
    obey(&talk).await;
    let copy = json!({"volume": {"source_volid": made["volume"]["id"]}});
    let (_, _, copy) = talk.ask(&admin(), "3.0", &create, &copy).await;
    let copy = &copy["volume"];
    assert_eq!((&copy["bootable"], &copy["source_volid"]), (&json!("true"), &made["volume"]["id"]), "{copy}");
    let kernel = talk.cloud.image("kernel", ImageFormat::KernelInitramfs).await;
    let from_kernel = json!({"volume": {"imageRef": kernel, "size": 1}});
    assert_eq!(talk.ask(&admin(), "3.0", &create, &from_kernel).await.0, 400);
}

#[tokio::test]
async fn snapshots() {
    let mut talk = Talk::new().await;
    let (m, snapshots) = (member(), format!("{V}/snapshots"));
    let id = volume(&talk, json!({"size": 1, "name": "v"})).await;
    let body =
        json!({"snapshot": {"name": "sn1", "description": null, "metadata": {"a": "b"}, "volume_id": id}});
    let made = talk.say(&m, "3.65", &format!("POST {snapshots}"), body).await;
    let snapshot = made["snapshot"]["id"].as_str().unwrap().to_owned();
    obey(&talk).await;
    talk.say(&m, "3.0", &format!("GET {snapshots}/{snapshot}"), NONE).await;
    talk.say(&m, "3.65", &format!("GET {snapshots}/detail?name=sn1"), NONE).await;
    let change = json!({"snapshot": {"name": "sn2", "description": "words"}});
    talk.say(&m, "3.0", &format!("PUT {snapshots}/{snapshot}"), change).await;
    let items = format!("{snapshots}/{snapshot}/metadata");
    talk.say(&m, "3.0", &format!("PUT {items}/a"), json!({"meta": {"a": "c"}})).await;
    talk.say(&m, "3.0", &format!("PUT {items}/a"), json!({"meta": {"b": "c"}})).await;
    talk.say(&m, "3.0", &format!("GET {items}"), NONE).await;
    talk.say(&m, "3.0", &format!("DELETE {items}/b"), NONE).await;
    talk.say(&m, "3.0", &format!("DELETE {V}/volumes/{id}"), NONE).await;
    for body in [
        json!({"snapshot": {"volume_id": null}}),
        json!({"snapshot": {"volume_id": Uuid::from_u128(5)}}),
        json!({"snapshot": {}}),
    ] {
        talk.say(&m, "3.0", &format!("POST {snapshots}"), body).await;
    }
    talk.say(&m, "3.0", &format!("GET {snapshots}?marker={}", Uuid::from_u128(5)), NONE).await;
    talk.say(&m, "3.0", &format!("GET {snapshots}?sort_key=nonsense"), NONE).await;
    talk.say(&stranger(), "3.0", &format!("DELETE {snapshots}/{snapshot}"), NONE).await;
    // With its snapshots at once.
    talk.say(&m, "3.0", &format!("DELETE {V}/volumes/{id}?cascade=True"), NONE).await;
    talk.say(&m, "3.0", &format!("GET {snapshots}"), NONE).await;
    obey(&talk).await;
    talk.say(&m, "3.0", &format!("GET {snapshots}"), NONE).await;
    insta::assert_snapshot!(talk.text);
}

#[tokio::test]
async fn types() {
    let mut talk = Talk::new().await;
    let (a, types) = (admin(), format!("{V}/types"));
    talk.say(&member(), "3.0", &format!("GET {types}"), NONE).await;
    let body = json!({"volume_type": {"name": "fast", "description": "words",
        "extra_specs": {"vendor_name": "x"}, "os-volume-type-access:is_public": false}});
    let made = talk.say(&a, "3.0", &format!("POST {types}"), body.clone()).await;
    let id = made["volume_type"]["id"].as_str().unwrap().to_owned();
    talk.say(&a, "3.0", &format!("POST {types}"), body.clone()).await;
    talk.say(&member(), "3.0", &format!("POST {types}"), body).await;
    talk.say(&a, "3.0", &format!("GET {types}?is_public=none"), NONE).await;
    talk.say(&member(), "3.0", &format!("GET {types}/{id}"), NONE).await;
    let project = json!({"project": "0000000000000000000000000000004d"});
    talk.say(&a, "3.0", &format!("POST {types}/{id}/action"), json!({"addProjectAccess": project})).await;
    talk.say(&a, "3.0", &format!("GET {types}/{id}/os-volume-type-access"), NONE).await;
    talk.say(&member(), "3.0", &format!("GET {types}/{id}"), NONE).await;
    let specs = format!("{types}/{id}/extra_specs");
    talk.say(&a, "3.0", &format!("POST {specs}"), json!({"extra_specs": {"spec2": "val1"}})).await;
    talk.say(&a, "3.0", &format!("PUT {specs}/spec2"), json!({"spec2": "val2"})).await;
    talk.say(&a, "3.0", &format!("GET {specs}/spec2"), NONE).await;
    talk.say(&a, "3.0", &format!("DELETE {specs}/spec2"), NONE).await;
    talk.say(&a, "3.0", &format!("GET {specs}/spec2"), NONE).await;
    let change = json!({"volume_type": {"name": "faster", "is_public": true}});
    talk.say(&a, "3.0", &format!("PUT {types}/{id}"), change).await;
    let of_it = volume(&talk, json!({"size": 1, "volume_type": "faster"})).await;
    talk.say(&a, "3.0", &format!("DELETE {types}/{id}"), NONE).await;
    let retype = json!({"os-retype": {"new_type": "__DEFAULT__", "migration_policy": "never"}});
    talk.say(&member(), "3.0", &format!("POST {V}/volumes/{of_it}/action"), retype).await;
    talk.say(&a, "3.0", &format!("DELETE {types}/{id}"), NONE).await;
    let default = crate::model::VolumeTypeRecord::DEFAULT;
    talk.say(&a, "3.0", &format!("DELETE {types}/{default}"), NONE).await;
    let change = json!({"volume_type": {"name": "usual"}});
    talk.say(&a, "3.0", &format!("PUT {types}/{default}"), change).await;
    talk.say(&a, "3.0", &format!("GET {types}/default"), NONE).await;
    insta::assert_snapshot!(talk.text);
}

#[tokio::test]
async fn quotas() {
    let mut talk = Talk::new().await;
    let (a, m, project) = (admin(), member(), "0000000000000000000000000000004d");
    let sets = format!("{V}/os-quota-sets");
    volume(&talk, json!({"size": 2})).await;
    talk.say(&m, "3.0", &format!("GET {sets}/{project}?usage=True"), NONE).await;
    talk.say(&m, "3.0", &format!("GET {sets}/0000000000000000000000000000004e"), NONE).await;
    talk.say(&m, "3.0", &format!("PUT {sets}/{project}"), json!({"quota_set": {"volumes": 99}})).await;
    let set = json!({"quota_set": {"volumes": "1", "gigabytes___DEFAULT__": 5}});
    talk.say(&a, "3.0", &format!("PUT {sets}/{project}"), set).await;
    talk.say(&a, "3.0", &format!("PUT {sets}/{project}"), json!({"quota_set": {"nonsense": 1}})).await;
    talk.say(&a, "3.0", &format!("PUT {sets}/{project}"), json!({"quota_set": {"volumes": -2}})).await;
    talk.say(&m, "3.0", &format!("POST {V}/volumes"), json!({"volume": {"size": 1}})).await;
    talk.say(&m, "3.0", &format!("GET {V}/limits"), NONE).await;
    talk.say(&a, "3.0", &format!("DELETE {sets}/{project}"), NONE).await;
    talk.say(&m, "3.0", &format!("GET {sets}/{project}/defaults"), NONE).await;
    let class = json!({"quota_class_set": {"snapshots": 3}});
    talk.say(&a, "3.0", &format!("PUT {V}/os-quota-class-sets/default"), class).await;
    talk.say(&a, "3.0", &format!("GET {V}/os-quota-class-sets/default"), NONE).await;
    insta::assert_snapshot!(talk.text);
}

#[tokio::test]
async fn transfers() {
    let mut talk = Talk::new().await;
    let (m, s, transfers) = (member(), stranger(), format!("{V}/os-volume-transfer"));
    let id = volume(&talk, json!({"size": 1})).await;
    let offer = json!({"transfer": {"volume_id": id, "name": "t"}});
    let made = talk.say(&m, "3.57", &format!("POST {transfers}"), offer.clone()).await;
    talk.say(&m, "3.0", &format!("POST {transfers}"), offer).await;
    talk.say(&m, "3.0", &format!("GET {V}/volumes/detail?status=awaiting-transfer&limit=0"), NONE).await;
    talk.say(&m, "3.0", &format!("GET {transfers}/detail"), NONE).await;
    talk.say(&s, "3.0", &format!("GET {transfers}"), NONE).await;
    let transfer = made["transfer"]["id"].as_str().unwrap().to_owned();
    let accept = format!("POST {transfers}/{transfer}/accept");
    talk.say(&s, "3.0", &accept, json!({"accept": {"auth_key": "guess"}})).await;
    talk.say(&s, "3.0", &accept, json!({"accept": {"auth_key": made["transfer"]["auth_key"]}})).await;
    talk.say(&s, "3.0", &accept, json!({"accept": {"auth_key": made["transfer"]["auth_key"]}})).await;
    talk.say(&m, "3.0", &format!("GET {V}/volumes/{id}"), NONE).await;
    insta::assert_snapshot!(talk.text);
    let (status, _, shown) = talk.ask(&s, "3.0", &format!("GET {V}/volumes/{id}"), &NONE).await;
    assert_eq!((status, &shown["volume"]["status"]), (200, &json!("available")));
}

#[tokio::test]
async fn attachments() {
    let mut talk = Talk::new().await;
    let (m, all) = (member(), format!("{V}/attachments"));
    let id = volume(&talk, json!({"size": 1})).await;
    let server = "11111111-2222-4333-8444-555555555555";
    talk.say(&m, "3.0", &format!("GET {all}"), NONE).await;
    let body = json!({"attachment": {"volume_uuid": id, "instance_uuid": server}});
    let made = talk.say(&m, "3.27", &format!("POST {all}"), body.clone()).await;
    talk.say(&m, "3.27", &format!("POST {all}"), body).await;
    let one = format!("{all}/{}", made["attachment"]["id"].as_str().unwrap());
    let connector = json!({"attachment": {"connector": {"host": "h", "mountpoint": "/dev/vdb"}}});
    talk.say(&m, "3.27", &format!("PUT {one}"), connector).await;
    talk.say(&m, "3.44", &format!("POST {one}/action"), json!({"os-complete": {}})).await;
    talk.say(&m, "3.27", &format!("GET {all}/detail"), NONE).await;
    talk.say(&stranger(), "3.27", &format!("DELETE {one}"), NONE).await;
    talk.say(&m, "3.27", &format!("DELETE {one}"), NONE).await;
    talk.say(&m, "3.27", &format!("GET {all}"), NONE).await;
    insta::assert_snapshot!(talk.text);
}

#[tokio::test]
async fn the_cloud_itself() {
    let mut talk = Talk::new().await;
    let a = admin();
    talk.say(&member(), "3.0", &format!("GET {V}/os-availability-zone"), NONE).await;
    for path in [
        "os-services",
        "scheduler-stats/get_pools?detail=True",
        "capabilities/h1@lvm",
        "os-hosts",
        "os-hosts/h1@lvm",
        "messages",
        "groups/detail",
        "groups/none",
        "backups",
    ] {
        talk.say(&a, "3.70", &format!("GET {V}/{path}"), NONE).await;
    }
    insta::assert_snapshot!(talk.text);
}
