use super::*;
use amphi_api::ErrorCode;
use amphi_api::instance::{BodyKind, InstanceState};
use amphi_api::wire::Tombstone;

#[tokio::test]
async fn what_can_moves_and_what_cannot_says_why() {
    let (cloud, h1, h2) = Cloud::furnished().await;
    let on_h1 = async |change: serde_json::Value| {
        let mut change = change;
        change["host"] = "h1".into();
        cloud.create(change).await.unwrap()
    };
    let free = on_h1(json!({"name": "free"})).await;
    let huge = on_h1(json!({"name": "huge", "memory_mib": 1500})).await;
    let bound = on_h1(json!({"name": "bound", "volume": {"size_gib": 1}})).await;
    on_h1(json!({"name": "never", "failover": "never"})).await;
    let off = on_h1(json!({"name": "off"})).await;
    cloud.ops.stop_instance(P, off.id).await.unwrap();
    let going = on_h1(json!({"name": "going"})).await;
    cloud.create(json!({"host": "h2", "memory_mib": 2500})).await.unwrap();
    cloud.obey(h1).await;
    cloud.ops.delete_instance(P, going.id, VolumeFate::Keep).await.unwrap();

    assert_eq!(cloud.ops.evacuate(h1).await.unwrap_err().code(), ErrorCode::Conflict, "it is alive");
    let before = cloud.obedient(h1);
    cloud.down(h1).await;
    assert_eq!(cloud.show(&free).state, InstanceState::Unknown);
    let waits = cloud.show(&going);
    assert_eq!((waits.state, waits.fault.unwrap().code.as_str()), (InstanceState::Deleting, "host_down"));
    let answer = cloud.ops.evacuate(h1).await.unwrap();
    let mut moved: Vec<_> = answer.moved.iter().map(|m| (m.name.as_str(), m.epoch)).collect();
    moved.sort();
    assert_eq!(moved, [("free", 2), ("off", 2)]);
    assert_eq!(answer.waiting[0].instance, bound.id);
    let mut refused: Vec<_> = answer.refused.iter().map(|r| (r.name.as_str(), r.reason.as_str())).collect();
    refused.sort();
    assert!(refused[0].0 == "huge" && refused[0].1.contains("h2: 2628 of 3584 MiB are taken"), "{refused:?}");
    assert!(refused[1].0 == "never" && refused[1].1.contains("never"), "{refused:?}");
    assert!(cloud.ops.instance(P, going.id).is_err());

    // Same identity, elsewhere.
    let there = cloud.show(&free);
    assert_eq!((there.host, there.epoch, there.addresses.clone()), (Some(h2), 2, free.addresses.clone()));
    let stranded = cloud.show(&bound);
    assert_eq!(stranded.state, InstanceState::Stranded);
    assert_eq!((stranded.lost[0].volume, stranded.lost[0].host_name.as_str()), (bound.volume.unwrap(), "h1"));
    assert_eq!(cloud.ops.host(h2).unwrap().claims.instances, 3);
    assert_eq!(cloud.ops.host(h1).unwrap().claims.instances, 3);
    cloud.obey(h2).await;
    assert_eq!(cloud.show(&free).state, InstanceState::Running);
    assert_eq!(cloud.show(&off).state, InstanceState::Stopped);
    let again = cloud.ops.evacuate(h1).await.unwrap();
    assert_eq!((again.moved.len(), again.waiting.len(), again.refused.len()), (0, 1, 2));

    // The dead host comes back: what moved is tombstoned there, what stayed runs on.
    cloud.up(h1, "h1").await;
    let told = cloud.ops.desired(h1);
    let mut stones: Vec<_> = told.tombstones.clone();
    stones.sort();
    let mut want: Vec<_> =
        [free.id, off.id, going.id].map(|id| Tombstone::Instance { id, epoch: 1 }).to_vec();
    want.sort();
    assert_eq!(stones, want);
    let names: Vec<_> = told.instances.iter().map(|i| i.name.as_str()).collect();
    assert_eq!(names.len(), 3, "{names:?}");
    assert_eq!(cloud.show(&bound).lost, []);
    // An old word of the old epoch changes nothing.
    cloud.ops.status(h1, before).await.unwrap();
    assert_eq!(cloud.show(&free).host, Some(h2));
    cloud.obey(h1).await;
    assert_eq!(cloud.show(&bound).state, InstanceState::Running);
    assert_eq!(cloud.ops.desired(h1).tombstones, []);
    assert_eq!(cloud.show(&free).state, InstanceState::Running, "the burial there is not one here");
    assert_eq!(cloud.show(&huge).state, InstanceState::Running);
}

#[tokio::test]
async fn the_other_kind_of_body_where_the_first_has_no_engine() {
    let (cloud, h1, h2) = Cloud::furnished().await;
    let mut weak = spec("h2");
    weak.engines.retain(|e| e.name != EngineName::Docker);
    cloud.ops.hello(h2, &weak).await.unwrap();
    let both = json!([{"set": {"members": [{"index": 0, "image": "busybox"}]}}, {"vm": {"image": "vm"}}]);
    let any = cloud.create(json!({"name": "any", "bodies": both})).await.unwrap();
    let same = cloud.create(json!({"name": "same", "bodies": both, "failover": "same_kind"})).await.unwrap();
    assert_eq!((any.host, any.body), (Some(h1), BodyKind::Set), "the preferred body decides");
    cloud.down(h1).await;
    let answer = cloud.ops.evacuate(h1).await.unwrap();
    assert_eq!(answer.moved[0].instance, any.id);
    assert!(answer.refused[0].reason.contains("has no docker"), "{:?}", answer.refused);
    assert_eq!(cloud.show(&any).body, BodyKind::Vm);
    assert_eq!(cloud.show(&same).body, BodyKind::Set);
}
