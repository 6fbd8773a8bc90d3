//! Replicas without a line: what one cloud tells is handed to another one; what is missing, what is refused, what goes when.

use super::images::{archive, layer, whole};
use super::*;
use crate::model::{PeerRecord, Visibility};
use crate::ops::{ByteRange, Errand, Outcome};
use amphi_api::image::{ImageCreate, ImageEdit};
use amphi_api::replica::{Replica, ReplicaState};
use amphi_api::replication::{
    Direction, RegionCreate, ReplicationCreate, ReplicationPolicySpec, ReplicationState,
};
use tokio::io::AsyncReadExt;

async fn cloud() -> Cloud {
    let cloud = Cloud::new().await;
    cloud.ops.bootstrap_identity("a password of some length").await.unwrap();
    cloud
}

async fn upload(cloud: &Cloud, name: &str, format: &str, role: BlobRole, bytes: &[u8]) -> ImageId {
    let request: ImageCreate = serde_json::from_value(json!({"name": name, "format": format})).unwrap();
    let id = cloud.ops.create_image(P, &request).await.unwrap().id;
    cloud.ops.put_blob(P, id, role, whole(bytes), None).await.unwrap();
    id
}

/// What another cloud is told, as if it were from elsewhere: all clouds of tests are one.
fn told(cloud: &Cloud, id: ImageId) -> Replica {
    let mut found = cloud.ops.replicas(&id.to_string(), false).unwrap();
    let mut replica = found.remove(0);
    assert_eq!((replica.origin.cloud.as_str(), replica.origin.region.as_str()), (cloud.ops.cloud(), "here"));
    replica.origin.cloud = "ab".repeat(32);
    replica.origin.region = "there".into();
    replica
}

async fn bytes_of(cloud: &Cloud, sha256: &str) -> Vec<u8> {
    let (mut read, _) = cloud.ops.read_replica_blob(sha256, 0).await.unwrap();
    let mut bytes = Vec::new();
    read.read_to_end(&mut bytes).await.unwrap();
    bytes
}

/// Brings what is missing until nothing is.
async fn bring(from: &Cloud, to: &Cloud, replica: &Replica) -> usize {
    let answer = to.ops.take_replica(replica).await.unwrap();
    for missing in &answer.missing {
        let bytes = bytes_of(from, &missing.blob.sha256).await;
        let range = ByteRange { from: missing.received, total: missing.blob.size };
        let rest = whole(&bytes[missing.received as usize..]);
        to.ops.take_replica_blob(P, &missing.blob.sha256, range, rest).await.unwrap().unwrap();
    }
    assert_eq!(to.ops.take_replica(replica).await.unwrap().state, ReplicaState::Active);
    answer.missing.len()
}

#[tokio::test]
async fn a_replica_is_an_image_when_nothing_is_missing_and_not_before() {
    let (a, b) = (cloud().await, cloud().await);
    let bytes = archive(&[&layer("one"), &layer("two")]);
    let id = upload(&a, "web", "docker-archive", BlobRole::Archive, &bytes).await;
    let replica = told(&a, id);

    let answer = b.ops.take_replica(&replica).await.unwrap();
    assert_eq!((answer.state, answer.project, answer.missing.len()), (ReplicaState::Waiting, Some(P), 3));
    let sizes: Vec<_> = answer.missing.iter().map(|m| m.blob.size).collect();
    assert_eq!(sizes[..2], [replica.layers[0].size, replica.layers[1].size], "layers before the recipe");
    let one = &answer.missing[0].blob;
    let first = bytes_of(&a, &one.sha256).await;
    let range = |from: usize| ByteRange { from: from as u64, total: first.len() as u64 };
    let half = b.ops.take_replica_blob(P, &one.sha256, range(0), whole(&first[..700])).await.unwrap();
    assert_eq!(half, Err(700));
    let answer = b.ops.take_replica(&replica).await.unwrap();
    assert_eq!((answer.missing[0].received, answer.missing[1].received), (700, 0));
    // A bit flips on the way: what has come is gone, and nothing is there.
    let mut flipped = first[700..].to_vec();
    flipped[5] ^= 1;
    let wrong = b.ops.take_replica_blob(P, &one.sha256, range(700), whole(&flipped)).await.unwrap_err();
    assert_eq!(wrong.code(), amphi_api::ErrorCode::InvalidField);
    assert!(wrong.to_string().contains(&one.sha256), "{wrong}");
    assert_eq!(b.ops.take_replica(&replica).await.unwrap().missing[0].received, 0);
    assert!(b.ops.image(P, id).is_err(), "nothing is there of it");

    assert_eq!(bring(&a, &b, &replica).await, 3);
    let (here, there) = (a.ops.image_detail(P, id).unwrap(), b.ops.image_detail(P, id).unwrap());
    assert_eq!((&there.image.blobs, &there.image.layers), (&here.image.blobs, &here.image.layers));
    assert_eq!((there.said.origin.as_deref(), here.said.origin), (Some("there"), None));
    let whole_archive = &there.image.blobs[&BlobRole::Archive].sha256;
    assert_eq!(bytes_of(&b, whole_archive).await, bytes);

    // Told again, nothing changes; told anew, what is said does. A second image brings what is new of it.
    let before = b.ops.world().read().revision();
    b.ops.take_replica(&replica).await.unwrap();
    assert_eq!(b.ops.world().read().revision(), before);
    let mut anew = replica.clone();
    anew.name = "shop".into();
    anew.said.properties.insert("stage".into(), "live".into());
    b.ops.take_replica(&anew).await.unwrap();
    let record = b.ops.world().read().images.get(id).unwrap().record.clone();
    assert_eq!((record.name.as_str(), record.traits.properties["stage"].as_str()), ("shop", "live"));
    let more = archive(&[&layer("one"), &layer("two"), &layer("three")]);
    let next = upload(&a, "web", "docker-archive", BlobRole::Archive, &more).await;
    assert_eq!(bring(&a, &b, &told(&a, next)).await, 2, "a layer and the recipe");
    // It says where it is from, whoever tells of it, and is not taken back.
    let handed_on = b.ops.replicas(&id.to_string(), true).unwrap().remove(0);
    assert_eq!(handed_on.origin, anew.origin);
    let own = a.ops.replicas("web", false).unwrap().remove(0);
    assert_eq!(b.ops.take_replica(&own).await.unwrap().state, ReplicaState::Own, "all tests' clouds are one");
    assert!(b.ops.delete_replica(id, &"cd".repeat(32)).await.is_err(), "another cloud's");
    b.ops.delete_replica(id, &"ab".repeat(32)).await.unwrap();
    assert!(b.ops.image(P, id).is_err());
}

#[tokio::test]
async fn what_something_else_has_is_refused_and_so_is_what_does_not_fit() {
    let (a, b) = (cloud().await, cloud().await);
    let id = upload(&a, "disk", "raw", BlobRole::Disk, &[7; 5000]).await;
    let good = told(&a, id);
    let refused = async |change: &dyn Fn(&mut Replica)| {
        let mut replica = good.clone();
        change(&mut replica);
        let refusal = b.ops.take_replica(&replica).await.unwrap_err();
        match refusal {
            OpsError::Field(error) => error.field,
            OpsError::Conflict { field, message } => field.unwrap_or(message),
            other => other.to_string(),
        }
    };
    assert_eq!(refused(&|r| r.project = "nobody".into()).await, "project");
    let own = upload(&b, "taken", "raw", BlobRole::Disk, &[8; 50]).await;
    assert_eq!(refused(&|r| r.name = "taken".into()).await, "name");
    assert_eq!(refused(&|r| r.id = own).await, "id");
    assert_eq!(bring(&a, &b, &good).await, 1);
    assert_eq!(refused(&|r| r.origin.cloud = "cd".repeat(32)).await, "id", "another cloud's");
    let other = Blob { sha256: "12".repeat(32), size: 5000 };
    assert_eq!(refused(&|r| drop(r.blobs.insert(BlobRole::Disk, other.clone()))).await, "blobs");

    // A container image whose layers are not all told of.
    let bytes = archive(&[&layer("one"), &layer("two")]);
    let id = upload(&a, "web", "docker-archive", BlobRole::Archive, &bytes).await;
    let mut short = told(&a, id);
    short.layers.truncate(1);
    for missing in b.ops.take_replica(&short).await.unwrap().missing {
        let bytes = bytes_of(&a, &missing.blob.sha256).await;
        let range = ByteRange { from: 0, total: missing.blob.size };
        b.ops.take_replica_blob(P, &missing.blob.sha256, range, whole(&bytes)).await.unwrap().unwrap();
    }
    let refusal = b.ops.take_replica(&short).await.unwrap_err();
    assert!(refusal.to_string().contains("are not here"), "{refusal}");
    assert!(b.ops.image(P, id).is_err(), "nothing is there of it");
    // Bytes that are no disk of the format are found as at any upload.
    let mut odd = good.clone();
    (odd.id, odd.name, odd.format) = (ImageId::new(), "odd".into(), ImageFormat::Qcow2);
    let refusal = b.ops.take_replica(&odd).await.unwrap_err();
    assert!(refusal.to_string().contains("no qcow2"), "{refusal}");
}

#[tokio::test]
async fn what_goes_by_order_and_by_policy_and_when_it_goes_again() {
    let a = cloud().await;
    let create = |name: &str| RegionCreate {
        name: name.into(),
        url: "http://127.0.0.1:9/".into(),
        token: Some(serde_json::from_value(json!("hush-hush")).unwrap()),
        credential: None,
        ca: None,
        bytes_per_second: None,
    };
    let region = a.ops.create_peer(&create("south")).await.unwrap();
    assert_eq!(region.url, "http://127.0.0.1:9");
    assert!(!serde_json::to_string(&a.ops.peers()).unwrap().contains("hush"));
    assert!(a.ops.create_peer(&create("south")).await.is_err(), "twice");
    let kept = a.ops.world().read().peers.get(region.id).unwrap().record.clone();
    assert_eq!(serde_json::to_value(&*kept).unwrap()["token"], "hush-hush", "for whoever speaks with it");
    let shown: &PeerRecord = &kept;
    assert!(!format!("{shown:?}").contains("hush"));

    let web = upload(&a, "web-1", "raw", BlobRole::Disk, b"web").await;
    let other = upload(&a, "other", "raw", BlobRole::Disk, b"other").await;
    let due = async || {
        let due = a.ops.due_replications().await.unwrap();
        // What was written down first is due at the next look.
        let due = if due.is_empty() { a.ops.due_replications().await.unwrap() } else { due };
        due.into_iter().map(|(_, id)| id).collect::<Vec<_>>()
    };
    let order = |image: ImageId, region: &str| ReplicationCreate {
        image: image.to_string(),
        region: region.into(),
        direction: Direction::Push,
        tags: false,
    };
    assert!(due().await.is_empty());
    let refusal = a.ops.order_replication(&order(other, "west"), None).await.unwrap_err();
    assert!(refusal.to_string().contains("known: south"), "{refusal}");
    assert!(a.ops.order_replication(&order(ImageId::new(), "south"), None).await.is_err());

    let ordered = a.ops.order_replication(&order(other, "south"), None).await.unwrap();
    assert_eq!((ordered.state, due().await), (ReplicationState::Waiting, vec![ordered.id]));
    let end = async |id, make: &dyn Fn(&Errand) -> Outcome| {
        let work = a.ops.begin_replication(id).unwrap().unwrap();
        assert!(a.ops.begin_replication(id).is_none(), "one at a time");
        assert_eq!(a.ops.replication(id).unwrap().state, ReplicationState::Sending);
        a.ops.end_replication(id, make(&work.what)).await.unwrap();
    };
    let well = |errand: &Errand| match errand {
        Errand::Push(_, mark) => Outcome::Brought(mark.clone()),
        Errand::Fetch(_) => Outcome::Brought(String::new()),
        Errand::Delete => Outcome::Deleted,
    };
    let hitch = crate::model::Hitch { refused: true, reason: "no".into() };
    end(ordered.id, &|_| Outcome::Failed(hitch.clone())).await;
    let failed = a.ops.replication(ordered.id).unwrap();
    assert_eq!((failed.state, failed.reason.as_deref()), (ReplicationState::Failed, Some("no")));
    assert!(due().await.is_empty(), "not at once");
    a.ops.order_replication(&order(other, "south"), None).await.unwrap();
    end(due().await[0], &well).await;
    assert_eq!(a.ops.replication(ordered.id).unwrap().state, ReplicationState::Done);
    // Nobody asked for more than that.
    let edit = ImageEdit { description: Some("x".into()), ..ImageEdit::default() };
    let admin = crate::ops::identity::Caller::operator();
    a.ops.edit_image(&admin, P, other, &edit).await.unwrap();
    assert!(due().await.is_empty());

    let policy: ReplicationPolicySpec =
        serde_json::from_value(json!({"name": "p", "region": "south", "image": "web*", "deletes": true}))
            .unwrap();
    a.ops.create_replication_policy(&policy).await.unwrap();
    assert!(a.ops.delete_peer("south").await.is_err(), "a policy sends images there");
    let first = due().await;
    assert_eq!(first.len(), 1);
    let now = a.ops.replication(first[0]).unwrap();
    assert_eq!((now.image, now.policy.as_deref()), (web, Some("p")));
    end(first[0], &well).await;
    assert!(due().await.is_empty(), "nothing is new");
    a.ops.edit_image(&admin, P, web, &edit).await.unwrap();
    assert_eq!(due().await, first, "more is said of it");
    end(first[0], &well).await;
    let public =
        ImageEdit { visibility: Some(amphi_api::image::ImageVisibility::Public), ..ImageEdit::default() };
    a.ops.edit_image(&admin, P, web, &public).await.unwrap();
    assert_eq!(a.ops.world().read().images.get(web).unwrap().traits.visibility, Visibility::Public);
    end(due().await[0], &well).await;

    // Deleted here, it is deleted there by the policy's word; what was only ordered is forgotten.
    a.ops.delete_image(P, web).await.unwrap();
    a.ops.delete_image(P, other).await.unwrap();
    let gone = due().await;
    assert_eq!(gone, first);
    let work = a.ops.begin_replication(gone[0]).unwrap().unwrap();
    assert!(matches!(work.what, Errand::Delete) && work.image == web);
    a.ops.end_replication(gone[0], Outcome::Deleted).await.unwrap();
    assert!(a.ops.replications().is_empty());
    a.ops.delete_replication_policy("p").await.unwrap();
    a.ops.delete_peer("south").await.unwrap();
    assert!(a.ops.peers().is_empty() && a.ops.replication_policies().is_empty());
}
