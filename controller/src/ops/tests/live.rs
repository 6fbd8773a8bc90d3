//! Live moves, with hosts that are played: who has the body at each step, and what an end at each of them leaves.

use super::*;
use amphi_api::ErrorCode;
use amphi_api::instance::{Exchange, ExchangePhase as Phase, MoveCreate};
use amphi_api::wire::{LeavingStatus, Tombstone};

fn live(value: bool) -> MoveCreate {
    MoveCreate { to: None, kind: None, live: Some(value), reason: "r".into(), ..MoveCreate::default() }
}

/// Two hosts that take running VMs, and a VM with a volume on the first.
async fn stage() -> (Cloud, [HostId; 2], Instance) {
    let (cloud, h1, h2) = Cloud::furnished().await;
    for (host, name) in [(h1, "h1"), (h2, "h2")] {
        let taking = HostSpec { moves_at: Some("10.99.0.11:7445".parse().unwrap()), ..spec(name) };
        cloud.ops.hello(host, &taking).await.unwrap();
    }
    let wish = json!({"host": "h1", "bodies": [{"vm": {"image": "vm"}}], "volume": {"size_gib": 1}});
    let made = cloud.create(wish).await.unwrap();
    cloud.obey(h1).await;
    let made = cloud.show(&made);
    (cloud, [h1, h2], made)
}

/// What the old host says of it.
async fn says(cloud: &Cloud, host: HostId, state: BodyState, under_way: bool, away: bool) {
    let mut status = cloud.obedient(host);
    let order = cloud.ops.desired(host).instances[0].leaving.clone().unwrap();
    status.instances[0].state = state;
    status.instances[0].leaving = Some(LeavingStatus {
        exchange: order.exchange,
        under_way,
        recalled: order.recalled && !under_way,
        away,
    });
    cloud.ops.status(host, status).await.unwrap();
}

/// What the new host says of it.
async fn landed(cloud: &Cloud, host: HostId) {
    let mut status = cloud.obedient(host);
    status.expected[0].landed = true;
    cloud.ops.status(host, status).await.unwrap();
}

async fn crossing(cloud: &Cloud, [h1, h2]: [HostId; 2], vm: &Instance) -> Exchange {
    let one = cloud.ops.create_move(P, vm.id, &live(true)).await.unwrap();
    assert!(one.journey.as_ref().unwrap().live);
    cloud.ops.step_exchanges().await.unwrap();
    assert_eq!(phase(cloud, &one), Phase::Preparing, "not before the new host is ready");
    let there = cloud.ops.desired(h2);
    assert_eq!((there.expected[0].epoch, there.expected[0].arriving_from), (vm.epoch + 1, Some(h1)));
    assert_eq!((there.volumes.len(), there.volumes[0].made), (1, false), "as large, and empty");
    assert_eq!(cloud.ops.desired(h1).instances[0].leaving, None);
    cloud.obey(h2).await;
    cloud.ops.step_exchanges().await.unwrap();
    assert_eq!(phase(cloud, &one), Phase::Crossing);
    let leaving = cloud.ops.desired(h1).instances[0].leaving.clone().unwrap();
    assert_eq!((leaving.to, leaving.epoch, leaving.recalled), (h2, vm.epoch + 1, false));
    one
}

fn phase(cloud: &Cloud, one: &Exchange) -> Phase {
    cloud.ops.exchange(P, one.id).unwrap().phase
}

fn migration(cloud: &Cloud, one: &Exchange) -> String {
    cloud.ops.world().read().migrations.get(one.id.0).unwrap().status.clone()
}

#[tokio::test]
async fn a_vm_goes_over_with_its_volume() {
    let (mut cloud, [h1, h2], vm) = stage().await;
    let one = crossing(&cloud, [h1, h2], &vm).await;
    assert_eq!(migration(&cloud, &one), "running");
    says(&cloud, h1, BodyState::Running, true, false).await;
    landed(&cloud, h2).await;
    cloud = cloud.another().await;
    cloud.ops.step_exchanges().await.unwrap();
    assert_eq!(cloud.show(&vm).host, Some(h1), "the old host has not said that it is gone");
    says(&cloud, h1, BodyState::Stopped, false, true).await;
    cloud.ops.step_exchanges().await.unwrap();
    assert_eq!(phase(&cloud, &one), Phase::Switching);
    let after = cloud.show(&vm);
    assert_eq!((after.host, after.epoch, &after.addresses), (Some(h2), vm.epoch + 1, &vm.addresses));
    let old = cloud.ops.desired(h1);
    assert!(old.instances.is_empty());
    assert_eq!(old.tombstones, [Tombstone::Instance { id: vm.id, epoch: vm.epoch }]);
    let new = cloud.ops.desired(h2);
    assert_eq!((new.instances[0].epoch, new.expected.len(), new.volumes[0].made), (vm.epoch + 1, 0, true));
    let late = cloud.ops.cancel_exchange(P, one.id).await.unwrap_err();
    assert_eq!(late.code(), ErrorCode::Conflict);
    cloud.obey(h2).await;
    cloud.ops.step_exchanges().await.unwrap();
    assert_eq!((phase(&cloud, &one), migration(&cloud, &one).as_str()), (Phase::Done, "completed"));
    let volume = vm.volume.unwrap();
    assert!(cloud.ops.desired(h1).tombstones.contains(&Tombstone::Volume { id: volume }));
    assert_eq!(cloud.ops.desired(h2).volumes[0].id, volume);
    cloud.obey(h1).await;
    cloud.ops.delete_instance(P, vm.id, VolumeFate::Keep).await.unwrap();
    cloud.obey(h2).await;
}

#[tokio::test]
async fn called_off_it_stays_only_when_the_old_host_says_that_nothing_goes_any_more() {
    let (cloud, [h1, h2], vm) = stage().await;
    let one = crossing(&cloud, [h1, h2], &vm).await;
    says(&cloud, h1, BodyState::Running, true, false).await;
    cloud.ops.cancel_exchange(P, one.id).await.unwrap();
    cloud.ops.step_exchanges().await.unwrap();
    assert!(cloud.ops.desired(h1).instances[0].leaving.as_ref().unwrap().recalled);
    says(&cloud, h1, BodyState::Running, true, false).await;
    landed(&cloud, h2).await;
    cloud.ops.step_exchanges().await.unwrap();
    assert_eq!(phase(&cloud, &one), Phase::Crossing, "it may be going over this very moment");
    says(&cloud, h1, BodyState::Running, false, false).await;
    cloud.ops.step_exchanges().await.unwrap();
    let ended = cloud.ops.exchange(P, one.id).unwrap();
    assert_eq!((ended.phase, ended.fault.unwrap().code.as_str()), (Phase::Failed, "cancelled"));
    assert_eq!(migration(&cloud, &one), "cancelled");
    let same = cloud.show(&vm);
    assert_eq!((same.host, same.epoch), (Some(h1), vm.epoch));
    assert_eq!(cloud.ops.desired(h1).instances[0].leaving, None);
    let there = cloud.ops.desired(h2);
    assert!(there.expected.is_empty() && there.volumes.is_empty());
    assert!(there.tombstones.contains(&Tombstone::Instance { id: vm.id, epoch: vm.epoch + 1 }));
    assert!(there.tombstones.contains(&Tombstone::Volume { id: vm.volume.unwrap() }));
    // Recalled too late: it is the new host's.
    cloud.obey(h2).await;
    let one = crossing(&cloud, [h1, h2], &vm).await;
    cloud.ops.cancel_exchange(P, one.id).await.unwrap();
    cloud.ops.step_exchanges().await.unwrap();
    landed(&cloud, h2).await;
    says(&cloud, h1, BodyState::Stopped, false, true).await;
    cloud.ops.step_exchanges().await.unwrap();
    assert_eq!((phase(&cloud, &one), cloud.show(&vm).host), (Phase::Switching, Some(h2)));
}

#[tokio::test]
async fn deleted_on_the_way_it_is_buried_on_both_hosts() {
    let (cloud, [h1, h2], vm) = stage().await;
    crossing(&cloud, [h1, h2], &vm).await;
    cloud.ops.delete_instance(P, vm.id, VolumeFate::Keep).await.unwrap();
    let stones = |host| cloud.ops.desired(host).tombstones.clone();
    assert!(stones(h1).contains(&Tombstone::Instance { id: vm.id, epoch: vm.epoch }));
    assert!(stones(h2).contains(&Tombstone::Instance { id: vm.id, epoch: vm.epoch + 1 }));
    assert!(cloud.ops.desired(h2).expected.is_empty());
}

#[tokio::test]
async fn what_cannot_go_while_it_runs_is_refused_or_stops() {
    let (cloud, [h1, _], vm) = stage().await;
    let refused =
        async |id, wish: MoveCreate| cloud.ops.create_move(P, id, &wish).await.unwrap_err().to_string();
    let set = cloud.create(json!({"name": "s", "host": "h1"})).await.unwrap();
    cloud.obey(h1).await;
    assert!(refused(set.id, live(true)).await.contains("only VMs"));
    let stopped = cloud.ops.stop_instance(P, vm.id).await.unwrap();
    cloud.obey(h1).await;
    assert!(refused(stopped.id, live(true)).await.contains("does not run"));
    let cold = cloud.ops.create_move(P, stopped.id, &MoveCreate { live: None, ..live(true) }).await.unwrap();
    assert!(!cold.journey.unwrap().live);
    // An agent that takes none.
    let old = cloud.host("h3").await;
    cloud.obey(old).await;
    let wish = MoveCreate { kind: None, to: Some("h3".into()), ..live(true) };
    let other =
        cloud.create(json!({"name": "o", "host": "h1", "bodies": [{"vm": {"image": "vm"}}]})).await.unwrap();
    cloud.obey(h1).await;
    assert!(refused(other.id, wish).await.contains("h3"));
    let wish = MoveCreate { live: None, to: Some("h2".into()), ..live(true) };
    let unasked = cloud.ops.create_move(P, other.id, &wish).await.unwrap();
    assert!(!unasked.journey.unwrap().live, "unasked, only what cannot move otherwise");
}
