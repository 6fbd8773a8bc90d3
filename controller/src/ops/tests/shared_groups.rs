use super::*;
use amphi_api::failover::FailoverFate;
use amphi_api::host::SharedGroup;
use amphi_api::instance::MoveCreate;
use amphi_api::volume::{SnapshotCreate, Volume, VolumeCreate, VolumeExtend, VolumeState};
use amphi_api::wire::GroupDesired;
use amphi_api::{VolumeGroupId, VolumeId};
use std::collections::BTreeMap;

impl Cloud {
    /// Two hosts that see a group of 10 GiB, and a third that does not.
    async fn sharing() -> (Self, [HostId; 3], VolumeGroupId) {
        let (cloud, h1, h2) = Cloud::furnished().await;
        let h3 = cloud.host("h3").await;
        for (host, name) in [(h1, "h1"), (h2, "h2")] {
            cloud.sees(host, name).await;
        }
        (cloud, [h1, h2, h3], VolumeGroupId::of("lvm-1"))
    }

    async fn sees(&self, host: HostId, name: &str) {
        let group = SharedGroup { id: VolumeGroupId::of("lvm-1"), name: "san".into(), size_bytes: 10 * GIB };
        let seeing = HostSpec { shared_groups: vec![group], ..spec(name) };
        self.ops.hello(host, &seeing).await.unwrap();
        self.links.up.lock().unwrap().insert(host);
    }

    fn part(&self, host: HostId) -> GroupDesired {
        self.ops.desired(host).groups.first().cloned().unwrap()
    }

    fn held(&self, host: HostId) -> BTreeMap<VolumeId, u64> {
        self.part(host).held
    }

    async fn in_group(&self, name: &str, gib: u64) -> Result<Volume, OpsError> {
        let request: VolumeCreate =
            serde_json::from_value(json!({"name": name, "size_gib": gib, "group": "san"})).unwrap();
        self.ops.create_volume(P, &request).await
    }

    fn gib_of(&self, group: VolumeGroupId) -> u64 {
        self.ops.world().read().claims_of(group.place()).volume_gib
    }
}

#[tokio::test]
async fn a_shared_volume_is_made_by_the_keeper_and_taken_over_by_whoever_has_its_instance() {
    let (cloud, [h1, h2, h3], group) = Cloud::sharing().await;
    assert_eq!((cloud.part(h1).keeper, cloud.part(h2).keeper), (Some(1), None), "the first to see it");
    assert!(cloud.ops.desired(h3).groups.is_empty());
    let volume = cloud.in_group("data", 2).await.unwrap();
    assert_eq!((volume.group_name.as_deref(), volume.host), (Some("san"), h1));
    assert!(cloud.ops.desired(h1).volumes.iter().any(|v| v.id == volume.id && !v.made));
    assert!(cloud.part(h1).kept.contains(&volume.id) && cloud.ops.desired(h2).volumes.is_empty());
    assert_eq!((cloud.gib_of(group), cloud.ops.host(h1).unwrap().claims.volume_gib), (2, 0), "one pool");
    let refused = cloud.in_group("too-large", 9).await.unwrap_err().to_string();
    assert!(refused.contains("2 of 10 GiB are taken"), "{refused}");

    let blind =
        cloud.create(json!({"host": "h3", "volume": {"id": volume.id}})).await.unwrap_err().to_string();
    assert!(blind.contains("does not see the shared volume group"), "{blind}");
    let made = cloud.create(json!({"host": "h2", "volume": {"id": volume.id}})).await.unwrap();
    assert!(cloud.ops.desired(h2).instances.is_empty(), "not before the keeper has made it");
    cloud.obey(h1).await;
    assert_eq!(cloud.held(h2), [(volume.id, 1)].into());
    assert!(cloud.held(h1).is_empty() && cloud.ops.desired(h2).volumes[0].made);
    cloud.obey(h2).await;
    let seen = cloud.ops.volume(P, volume.id).unwrap();
    assert_eq!((seen.host, seen.state), (h2, VolumeState::InUse), "in its holder's hands");
    for refused in [
        cloud.ops.create_snapshot(P, volume.id, &SnapshotCreate { name: "s".into() }).await.map(drop),
        cloud.ops.extend_volume(P, volume.id, &VolumeExtend { size_gib: 11 }).await.map(drop),
    ] {
        assert!(refused.unwrap_err().to_string().contains("shared volume group"));
    }
    cloud.ops.extend_volume(P, volume.id, &VolumeExtend { size_gib: 3 }).await.unwrap();
    let told = |host| cloud.ops.desired(host).volumes.iter().find(|v| v.id == volume.id).unwrap().size_bytes;
    assert_eq!((told(h1), told(h2)), (3 * GIB, 2 * GIB), "first the keeper, then the holder");
    cloud.obey(h1).await;
    assert_eq!((told(h2), cloud.gib_of(group)), (3 * GIB, 3));

    // Its host is lost.
    cloud.down(h2).await;
    let alone = cloud.ops.evacuate_instance(h2, made.id).await.unwrap_err().to_string();
    assert!(alone.contains("not shut out"), "{alone}");
    let moved = cloud.ops.evacuate(h2).await.unwrap().moved;
    assert_eq!((moved[0].to, moved[0].epoch), (h1, 2), "the only other host that sees the group");
    let told = cloud.ops.failovers(Some(h2)).remove(0);
    let FailoverFate::Moved { taken_over, fresh_volume: None, .. } = &told.instances[0].fate else {
        panic!("{told:?}")
    };
    assert_eq!(taken_over, &[volume.id]);
    assert_eq!(cloud.held(h1), [(volume.id, 2)].into());
    cloud.obey(h1).await;
    // It returns, and has no part in anything before it is let in.
    cloud.sees(h2, "h2").await;
    assert!(cloud.held(h2).is_empty() && cloud.ops.desired(h2).volumes.is_empty());
    cloud.obey(h2).await;
    assert!(cloud.ops.let_in(h2).await.unwrap());

    // The keeper is lost, with the instance.
    cloud.down(h1).await;
    cloud.ops.keep_groups().await.unwrap();
    assert_eq!(cloud.part(h2).keeper, None, "one that is silent may be at work");
    cloud.ops.evacuate(h1).await.unwrap();
    cloud.ops.keep_groups().await.unwrap();
    assert_eq!((cloud.part(h2).keeper, cloud.held(h2)), (Some(2), [(volume.id, 3)].into()));
    cloud.sees(h1, "h1").await;
    assert_eq!((cloud.part(h1).keeper, cloud.held(h1).len()), (None, 0));
    let late = cloud.obedient(h1);
    cloud.obey(h1).await;
    assert!(cloud.ops.let_in(h1).await.unwrap());
    cloud.obey(h2).await;

    // A planned move copies nothing.
    let to = MoveCreate { to: Some("h1".into()), reason: "a test".into(), ..MoveCreate::default() };
    let order = cloud.ops.create_move(P, made.id, &to).await.unwrap();
    assert!(order.journey.unwrap().volumes.is_none());
    cloud.ops.cancel_exchange(P, order.id).await.unwrap();
    for _ in 0..6 {
        cloud.ops.step_exchanges().await.unwrap();
        cloud.obey(h1).await;
        cloud.obey(h2).await;
    }

    // Whoever is no keeper cannot say that it is gone.
    cloud.ops.delete_instance(P, made.id, VolumeFate::Trash).await.unwrap();
    cloud.obey(h2).await;
    cloud.ops.purge_volume(P, volume.id).await.unwrap();
    cloud
        .ops
        .status(h1, HostStatus { buried: cloud.ops.desired(h2).tombstones.clone(), ..late })
        .await
        .unwrap();
    assert_eq!(cloud.ops.volume(P, volume.id).unwrap().state, VolumeState::Purging);
    cloud.obey(h2).await;
    cloud.assert_empty();
}

#[tokio::test]
async fn a_keeper_that_is_emptied_hands_over_when_it_has_confirmed_that() {
    let (cloud, [h1, h2, _], _) = Cloud::sharing().await;
    // It does not see the group any more.
    cloud.up(h1, "h1").await;
    cloud.ops.keep_groups().await.unwrap();
    assert_eq!(cloud.part(h2).keeper, None, "not before it has confirmed");
    cloud.obey(h1).await;
    cloud.ops.keep_groups().await.unwrap();
    assert_eq!(cloud.part(h2).keeper, Some(2));
}

#[tokio::test]
async fn what_leaves_a_running_body_is_free_when_its_host_has_it_active_no_more() {
    let (cloud, [h1, h2, _], _) = Cloud::sharing().await;
    let volume = cloud.in_group("more", 1).await.unwrap();
    cloud.obey(h1).await;
    let made = cloud.create(json!({"host": "h2"})).await.unwrap();
    cloud.obey(h2).await;
    let origin = crate::ops::servers::Origin::native(P);
    let wish = crate::ops::servers::AttachWish { volume: Some(volume.id), ..Default::default() };
    cloud.ops.attach_volume(&origin, made.id, &wish).await.unwrap();
    assert_eq!(cloud.held(h2), [(volume.id, 1)].into());
    cloud.obey(h2).await;
    cloud.ops.detach_volume(&origin, made.id, volume.id).await.unwrap();
    let holds = HostStatus { active: [volume.id].into(), ..cloud.obedient(h2) };
    cloud.ops.status(h2, holds).await.unwrap();
    assert_eq!(cloud.ops.volume(P, volume.id).unwrap().instance, Some(made.id), "still mounted there");
    cloud.obey(h2).await;
    assert_eq!(cloud.ops.volume(P, volume.id).unwrap().instance, None);
}

#[tokio::test]
async fn a_twin_waits_where_the_group_is_seen_and_takes_its_volume_over_with_its_start() {
    let (cloud, [h1, h2, h3], _) = Cloud::sharing().await;
    let volume = cloud.in_group("data", 2).await.unwrap();
    cloud.obey(h1).await;
    let wish = json!({"host": "h1", "failover": "twin", "volume": {"id": volume.id}});
    let made = cloud.create(wish).await.unwrap();
    cloud.obey(h1).await;
    cloud.ops.step_twins(true).await.unwrap();
    let twin = || cloud.show(&made).twin.unwrap();
    assert_eq!(twin().host, Some(h2), "the third host does not see the group");
    let expected = cloud.ops.desired(h2).expected.clone();
    assert_eq!((expected.len(), expected[0].twin, expected[0].volume), (1, true, Some(volume.id)));
    assert!(cloud.held(h2).is_empty(), "what is only expected has nothing in its hands");
    assert!(!cloud.ops.desired(h2).volumes.iter().any(|v| v.id == volume.id));
    cloud.obey(h2).await;
    assert!(twin().ready);

    cloud.down(h1).await;
    cloud.ops.evacuate(h1).await.unwrap();
    let fate = cloud.ops.failovers(Some(h1)).remove(0).instances.remove(0).fate;
    let FailoverFate::Moved { to, twin: true, taken_over, fresh_volume: None, .. } = fate else {
        panic!("{fate:?}")
    };
    assert_eq!((to, taken_over), (h2, vec![volume.id]));
    assert_eq!(cloud.held(h2).keys().copied().collect::<Vec<_>>(), [volume.id]);
    cloud.ops.step_twins(true).await.unwrap();
    let none = twin();
    assert!(none.host.is_none() && none.why.is_some(), "{none:?}: no other host that is in sees the group");
    assert!(cloud.ops.desired(h3).expected.is_empty());
}
