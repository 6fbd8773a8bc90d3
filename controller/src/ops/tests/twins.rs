use super::*;
use amphi_api::failover::{FailoverFate, Twin};
use amphi_api::host::{Claims, MaintenanceCreate};
use amphi_api::instance::{BodyKind, ExchangeCreate, InstanceState, MoveCreate};
use amphi_api::wire::Tombstone;

/// Three hosts, and an instance of both bodies on the first that asks for a twin.
async fn twinned(change: serde_json::Value) -> (Cloud, [HostId; 3], Instance) {
    let (cloud, h1, h2) = Cloud::furnished().await;
    let h3 = cloud.host("h3").await;
    let mut wish = json!({
        "host": "h1", "failover": "twin",
        "bodies": [{"vm": {"image": "vm"}}, {"set": {"members": [{"index": 0, "image": "busybox"}]}}],
    });
    for (key, part) in change.as_object().unwrap() {
        wish[key] = part.clone();
    }
    let made = cloud.create(wish).await.unwrap();
    cloud.ops.step_twins(true).await.unwrap();
    (cloud, [h1, h2, h3], made)
}

fn twin(cloud: &Cloud, instance: &Instance) -> Twin {
    cloud.show(instance).twin.unwrap()
}

async fn settle(cloud: &Cloud, hosts: &[HostId]) {
    for _ in 0..3 {
        cloud.ops.step_twins(true).await.unwrap();
        for host in hosts {
            if cloud.links.is_linked(*host) {
                cloud.obey(*host).await;
            }
        }
    }
}

fn fate(cloud: &Cloud, host: HostId) -> FailoverFate {
    cloud.ops.failovers(Some(host)).remove(0).instances.remove(0).fate
}

#[tokio::test]
async fn a_failover_starts_it_and_another_one_is_made() {
    let (cloud, hosts, made) = twinned(json!({})).await;
    let waits = twin(&cloud, &made);
    assert_eq!((waits.body, waits.ready, waits.why), (Some(BodyKind::Set), false, None), "the quicker start");
    let there = waits.host.unwrap();
    assert_ne!(there, hosts[0]);
    let [expected] = &cloud.ops.desired(there).expected[..] else { panic!("{:?}", cloud.ops.desired(there)) };
    assert_eq!((expected.twin, expected.epoch, expected.body.kind()), (true, made.epoch + 1, BodyKind::Set));
    assert_eq!(cloud.ops.host(there).unwrap().claims.instances, 1, "its room is kept");
    let generation = cloud.ops.desired(there).generation;
    cloud.obey(there).await;
    assert!(twin(&cloud, &made).ready);
    assert_eq!(cloud.ops.desired(there).generation, generation, "what is said of it orders nothing");

    let gone = cloud.ops.desired(hosts[0]);
    cloud.down(hosts[0]).await;
    cloud.ops.evacuate(hosts[0]).await.unwrap();
    let FailoverFate::Moved { to, body, epoch, twin: flipped, .. } = fate(&cloud, hosts[0]) else { panic!() };
    assert_eq!((to, body, epoch, flipped), (there, BodyKind::Set, made.epoch + 1, true));
    let now = cloud.ops.desired(there);
    assert_eq!((now.instances.len(), now.expected.len()), (1, 0));
    assert_eq!(now.instances[0].ports, gone.instances[0].ports);
    assert_eq!(cloud.ops.host(there).unwrap().claims.instances, 1, "the same room");

    settle(&cloud, &hosts).await;
    let third = hosts.into_iter().find(|h| *h != there && *h != hosts[0]).unwrap();
    let next = twin(&cloud, &made);
    assert_eq!((next.host, next.ready), (Some(third), true), "not where the old body is not buried");
    assert_eq!(cloud.show(&made).state, InstanceState::Running);

    // Without one that is ready its host takes over all the same; without its host, any.
    cloud.down(third).await;
    cloud.up(hosts[0], "h1").await;
    cloud.obey(hosts[0]).await;
    assert!(cloud.ops.let_in(hosts[0]).await.unwrap());
    cloud.down(there).await;
    cloud.ops.evacuate(there).await.unwrap();
    let FailoverFate::Moved { to, twin: flipped, .. } = fate(&cloud, there) else { panic!() };
    assert_eq!((to, flipped), (hosts[0], false), "the twin's host was gone too");

    for (host, name) in hosts.iter().zip(["h1", "h2", "h3"]) {
        cloud.up(*host, name).await;
    }
    cloud.ops.delete_instance(P, made.id, VolumeFate::Trash).await.unwrap();
    settle(&cloud, &hosts).await;
    cloud.assert_empty();
    let view = cloud.ops.world().read();
    assert!(view.twins.is_empty() && view.tombstones.is_empty(), "{:?}", view.tombstones);
}

#[tokio::test]
async fn what_cannot_be_reached_bars_a_twin_and_says_so() {
    let (cloud, _, made) = twinned(json!({"volume": {"size_gib": 1}})).await;
    let none = twin(&cloud, &made);
    assert!(none.host.is_none() && none.why.unwrap().contains("is on host 'h1' and nowhere else"));
    let bound = json!({"volume": {"size_gib": 1}, "failover_terms": {"local_volume": "fresh"}});
    let (cloud, hosts, made) = twinned(bound).await;
    let there = twin(&cloud, &made).host.unwrap();
    let blank = cloud.ops.desired(there).volumes[0].id;
    assert_eq!(cloud.ops.desired(there).expected[0].volume, Some(blank));
    assert_eq!(cloud.ops.host(there).unwrap().claims.volume_gib, 1);
    cloud.obey(hosts[0]).await;
    cloud.obey(there).await;
    assert!(twin(&cloud, &made).ready);
    cloud.down(hosts[0]).await;
    cloud.ops.evacuate(hosts[0]).await.unwrap();
    let FailoverFate::Moved { fresh_volume: Some(fresh), twin: true, .. } = fate(&cloud, hosts[0]) else {
        panic!("{:?}", fate(&cloud, hosts[0]))
    };
    assert_eq!((Some(fresh.old), fresh.new), (made.volume, blank));
    assert_eq!(cloud.show(&made).volume, Some(blank));
    assert_eq!(cloud.ops.host(there).unwrap().claims.volume_gib, 1);
    settle(&cloud, &hosts).await;
    // The policy's next blank volume, and none when the instance is gone.
    assert!(twin(&cloud, &made).ready);
    cloud.ops.delete_instance(P, made.id, VolumeFate::Keep).await.unwrap();
    settle(&cloud, &hosts).await;
    let view = cloud.ops.world().read();
    let left: Vec<_> = view.volumes.iter().map(|v| v.id).collect();
    assert_eq!(left, [fresh.old, blank], "both had been somebody's");
}

#[tokio::test]
async fn made_anew_when_the_instance_changes() {
    let (cloud, hosts, made) = twinned(json!({"failover_terms": {"twin_body": "set"}})).await;
    settle(&cloud, &hosts).await;
    let there = twin(&cloud, &made).host.unwrap();
    let to_set = ExchangeCreate { to: BodyKind::Set, body: None };
    cloud.ops.create_exchange(P, made.id, &to_set).await.unwrap();
    cloud.obey(hosts[0]).await;
    cloud.ops.step_exchanges().await.unwrap();
    assert_eq!(cloud.show(&made).epoch, made.epoch + 1);
    cloud.ops.step_twins(false).await.unwrap();
    let waits = twin(&cloud, &made);
    assert_eq!((waits.host, waits.ready), (Some(there), false));
    assert_eq!(cloud.ops.desired(there).expected[0].epoch, made.epoch + 2);
    settle(&cloud, &hosts).await;
    cloud.ops.step_exchanges().await.unwrap();
    assert!(twin(&cloud, &made).ready);

    // A new address is the twin's too, at once.
    let generation = cloud.ops.desired(there).generation;
    cloud.network("other", "10.2.0.0/24").await;
    let ports = cloud.ops.desired(there).expected[0].ports.clone();
    assert_eq!((ports.len(), cloud.ops.desired(there).generation), (1, generation));

    // Its host is to be emptied: it goes to another one, and what it was is ordered away.
    let order = MaintenanceCreate { reason: "new disks".into(), at_a_time: None };
    cloud.ops.begin_maintenance(there, &order).await.unwrap();
    cloud.ops.step_twins(true).await.unwrap();
    let stone = Tombstone::Instance { id: made.id, epoch: made.epoch + 2 };
    assert_eq!(cloud.ops.desired(there).tombstones, [stone]);
    assert_eq!(cloud.ops.host(there).unwrap().claims, Claims::default());
    settle(&cloud, &hosts).await;
    let third = twin(&cloud, &made);
    assert!(third.ready && third.host != Some(there) && third.host != Some(hosts[0]), "{third:?}");
    cloud.ops.end_maintenance(there).await.unwrap();

    // It stops being asked for.
    let row = cloud.ops.world().read().instances.get(made.id).unwrap().clone();
    let plain = crate::model::InstanceRecord {
        failover: amphi_api::instance::FailoverPolicy::AnyKind,
        ..(*row.record).clone()
    };
    let change = |_: &View| {
        let mut draft = Draft::default();
        draft.update(&row, &plain);
        Ok((draft, ()))
    };
    cloud.ops.transact(change).await.unwrap();
    settle(&cloud, &hosts).await;
    assert!(cloud.show(&made).twin.is_none());
    assert_eq!(cloud.ops.host(third.host.unwrap()).unwrap().claims, Claims::default());
    assert!(cloud.ops.desired(third.host.unwrap()).tombstones.is_empty());
}

#[tokio::test]
async fn a_move_may_go_to_it() {
    let (cloud, hosts, made) =
        twinned(json!({"bodies": [{"set": {"members": [{"index": 0, "image": "busybox"}]}}]})).await;
    settle(&cloud, &hosts).await;
    let there = twin(&cloud, &made).host.unwrap();
    let name = cloud.ops.host(there).unwrap().name;
    let to = MoveCreate { to: Some(name), reason: "why not".into(), ..MoveCreate::default() };
    cloud.ops.create_move(P, made.id, &to).await.unwrap();
    assert_eq!(cloud.ops.host(there).unwrap().claims.instances, 1);
    let expected = &cloud.ops.desired(there).expected;
    assert_eq!((expected.len(), expected[0].twin, expected[0].epoch), (1, false, made.epoch + 1));
    for _ in 0..4 {
        for host in hosts {
            cloud.obey(host).await;
        }
        cloud.ops.step_exchanges().await.unwrap();
    }
    assert_eq!(cloud.show(&made).host, Some(there));
    settle(&cloud, &hosts).await;
    let now = twin(&cloud, &made);
    assert!(now.ready && now.host != Some(there), "{now:?}");
    assert_eq!(cloud.ops.host(there).unwrap().claims.instances, 1);
}

/// The policy of an instance that is there makes a twin, and takes it away again.
#[tokio::test]
async fn the_policy_can_be_changed_both_ways() {
    use amphi_api::failover::{FailoverChange, FailoverTerms};
    use amphi_api::instance::FailoverPolicy;
    let (cloud, hosts, made) = twinned(json!({"failover": "any_kind"})).await;
    assert!(cloud.show(&made).twin.is_none());
    let change = async |failover, twin_body| {
        let failover_terms = FailoverTerms { twin_body, ..FailoverTerms::default() };
        cloud.ops.change_failover(P, made.id, &FailoverChange { failover, failover_terms }).await
    };
    change(FailoverPolicy::Twin, None).await.unwrap();
    settle(&cloud, &hosts).await;
    let first = twin(&cloud, &made);
    assert_eq!((first.body, first.ready), (Some(BodyKind::Set), true));
    change(FailoverPolicy::Twin, Some(BodyKind::Vm)).await.unwrap();
    settle(&cloud, &hosts).await;
    settle(&cloud, &hosts).await;
    let other = twin(&cloud, &made);
    assert_eq!((other.body, other.ready), (Some(BodyKind::Vm), true), "{other:?}");
    let gone = change(FailoverPolicy::Never, None).await.unwrap();
    assert!(gone.twin.is_none() && gone.failover == FailoverPolicy::Never);
    settle(&cloud, &hosts).await;
    settle(&cloud, &hosts).await;
    let there = other.host.unwrap();
    assert_eq!(cloud.ops.host(there).unwrap().claims, Claims::default(), "its room is free");
    {
        let view = cloud.ops.world().read();
        assert!(view.twins.is_empty() && view.tombstones.is_empty(), "{:?}", view.tombstones);
    }
    assert_eq!(cloud.show(&made).state, InstanceState::Running, "nothing of it was touched");
    let (cloud, _, made) = twinned(json!({"bodies": [{"vm": {"image": "vm"}}]})).await;
    let failover_terms = FailoverTerms { twin_body: Some(BodyKind::Set), ..FailoverTerms::default() };
    let change = FailoverChange { failover: FailoverPolicy::Twin, failover_terms };
    cloud.ops.change_failover(P, made.id, &change).await.unwrap_err();
}

/// A host that fails before the twin has followed a resize: the twin's room is that of the old size, and counts for nothing.
#[tokio::test]
async fn a_twin_of_another_size_is_not_started() {
    let wish = json!({"vcpus": 1, "memory_mib": 256,
        "bodies": [{"set": {"members": [{"index": 0, "image": "busybox"}]}}]});
    let (cloud, hosts, made) = twinned(wish).await;
    settle(&cloud, &hosts).await;
    assert!(twin(&cloud, &made).ready);
    let larger = serde_json::from_value(json!({"vcpus": 2, "memory_mib": 512})).unwrap();
    cloud.ops.resize_instance(P, made.id, &larger).await.unwrap();
    cloud.down(hosts[0]).await;
    cloud.ops.evacuate(hosts[0]).await.unwrap();
    let FailoverFate::Moved { to, twin: flipped, .. } = fate(&cloud, hosts[0]) else {
        panic!("{:?}", fate(&cloud, hosts[0]))
    };
    assert!(!flipped, "its room was for half of it");
    settle(&cloud, &hosts).await;
    let claims = cloud.ops.host(to).unwrap().claims;
    assert_eq!((claims.vcpus, claims.memory_mib, claims.instances), (2, 512, 1), "all of it, and once");
}
