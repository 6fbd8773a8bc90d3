use super::*;
use amphi_api::ErrorCode;
use amphi_api::instance::{
    BodyKind, Exchange, ExchangePhase as Phase, Fault, InstanceState, MoveCause, MoveCreate,
};
use amphi_api::wire::{ExpectedStatus, HostStatus};
use jiff::SignedDuration;

fn to(change: serde_json::Value) -> MoveCreate {
    let mut value = json!({"reason": "new fans"});
    value.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
    serde_json::from_value(value).unwrap()
}

async fn running(cloud: &Cloud) -> Instance {
    let both = json!([{"set": {"members": [{"index": 0, "image": "busybox"}]}}, {"vm": {"image": "vm"}}]);
    let made = cloud.create(json!({"host": "h1", "bodies": both})).await.unwrap();
    cloud.obey(made.host.unwrap()).await;
    cloud.show(&made)
}

fn seen(cloud: &Cloud, one: &Exchange) -> Exchange {
    cloud.ops.exchange(P, one.id).unwrap()
}

fn phase(cloud: &Cloud, one: &Exchange) -> Phase {
    seen(cloud, one).phase
}

fn claims(cloud: &Cloud, hosts: [HostId; 2]) -> [u32; 2] {
    let view = cloud.ops.world().read();
    hosts.map(|host| view.claims_of(host).instances)
}

/// Which of the hosts may have a body of the instance now, by what they are told and have not yet buried.
fn told(cloud: &Cloud, hosts: [HostId; 2]) -> [(bool, bool, bool); 2] {
    hosts.map(|host| {
        let desired = cloud.ops.desired(host);
        (!desired.instances.is_empty(), !desired.expected.is_empty(), !desired.tombstones.is_empty())
    })
}

#[tokio::test]
async fn there_as_the_other_kind_and_back_with_a_new_controller_at_every_step() {
    let (mut cloud, h1, h2) = Cloud::furnished().await;
    let before = running(&cloud).await;
    let hosts = [h1, h2];
    for (round, (from, at, kind)) in [(h1, h2, BodyKind::Vm), (h2, h1, BodyKind::Vm)].into_iter().enumerate()
    {
        let order = to(json!({"kind": kind}));
        let one = cloud.ops.create_move(P, before.id, &order).await.unwrap();
        let journey = one.journey.clone().unwrap();
        assert_eq!((journey.from, journey.to, journey.cause), (from, at, MoveCause::Order));
        assert_eq!((one.phase, journey.reason.as_str()), (Phase::Preparing, "new fans"));
        assert_eq!(claims(&cloud, hosts), [1, 1], "room on both");
        let coming = &cloud.ops.desired(at).expected[0];
        assert_eq!((coming.epoch, coming.body.kind()), (round as u64 + 2, kind));
        assert_eq!(cloud.ops.desired(from).instances[0].next_body, None);
        assert_eq!(cloud.ops.stop_instance(P, before.id).await.unwrap_err().code(), ErrorCode::Conflict);
        assert_eq!(
            cloud.ops.create_move(P, before.id, &order).await.unwrap_err().code(),
            ErrorCode::Conflict
        );
        cloud.ops.step_exchanges().await.unwrap();
        assert_eq!(phase(&cloud, &one), Phase::Preparing, "not before the new host is ready");

        cloud.obey(at).await;
        cloud = cloud.another().await;
        let other = cloud.another().await;
        let (a, b) = tokio::join!(cloud.ops.step_exchanges(), other.ops.step_exchanges());
        a.and(b).unwrap();
        assert_eq!(phase(&cloud, &one), Phase::Leaving);
        let (here, there) = if from == h1 { (0, 1) } else { (1, 0) };
        let now = told(&cloud, hosts);
        assert_eq!(now[here], (false, false, true), "the old host is told to clear it away");
        assert_eq!(now[there], (false, true, false), "the new one may not start it yet");
        cloud.obey(at).await;
        cloud.ops.step_exchanges().await.unwrap();
        assert_eq!(phase(&cloud, &one), Phase::Leaving, "until the old host has said so");

        cloud = cloud.another().await;
        cloud.obey(from).await;
        cloud.ops.step_exchanges().await.unwrap();
        assert_eq!(phase(&cloud, &one), Phase::Switching);
        assert_eq!(told(&cloud, hosts)[there], (true, false, false));
        cloud = cloud.another().await;
        cloud.obey(at).await;
        cloud.ops.step_exchanges().await.unwrap();
        let done = seen(&cloud, &one);
        assert_eq!((done.phase, done.fault.clone()), (Phase::Done, None));
        assert!(done.outage_ms.is_some());
        let after = cloud.show(&before);
        assert_eq!((after.state, after.host, after.body), (InstanceState::Running, Some(at), kind));
        assert_eq!((after.epoch, &after.addresses), (round as u64 + 2, &before.addresses));
        assert_eq!(claims(&cloud, hosts).iter().sum::<u32>(), 1, "the old room is free");
        assert_eq!(claims(&cloud, [at, from]), [1, 0]);
    }
    cloud.ops.delete_instance(P, before.id, VolumeFate::Keep).await.unwrap();
    cloud.obey(h1).await;
    cloud.assert_empty();
}

#[tokio::test]
async fn what_cannot_move_is_refused_by_name() {
    let (cloud, h1, h2) = Cloud::furnished().await;
    let one = running(&cloud).await;
    let refused =
        async |order: serde_json::Value| cloud.ops.create_move(P, one.id, &to(order)).await.unwrap_err();
    let named = |error: &OpsError| match error {
        OpsError::Field(e) => e.field.clone(),
        other => other.to_string(),
    };
    assert_eq!(named(&refused(json!({"to": "h1"})).await), "to");
    assert_eq!(named(&refused(json!({"to": "h9"})).await), "to");
    assert_eq!(named(&refused(json!({"reason": ""})).await), "reason");
    let only = cloud.create(json!({"name": "only", "host": "h1"})).await.unwrap();
    cloud.obey(h1).await;
    let error = cloud.ops.create_move(P, only.id, &to(json!({"kind": "vm"}))).await.unwrap_err();
    assert_eq!(named(&error), "kind");
    let held = cloud.create(json!({"name": "held", "host": "h1", "volume": {"size_gib": 1}})).await.unwrap();
    cloud.obey(h1).await;
    snapped(&cloud, &held).await;
    let error = cloud.ops.create_move(P, held.id, &to(json!({}))).await.unwrap_err();
    assert!(error.to_string().contains("its snapshots do not move"), "{error}");
    cloud.down(h2).await;
    assert!(matches!(refused(json!({})).await, OpsError::NoRoom(_)));
    cloud.down(h1).await;
    assert!(refused(json!({"to": "h2"})).await.to_string().contains("evacuate"));
}

#[tokio::test]
async fn called_off_at_every_phase() {
    for leave in [Phase::Preparing, Phase::Leaving, Phase::Switching] {
        let (cloud, h1, h2) = Cloud::furnished().await;
        let before = running(&cloud).await;
        let one = cloud.ops.create_move(P, before.id, &to(json!({}))).await.unwrap();
        if leave != Phase::Preparing {
            cloud.obey(h2).await;
            cloud.ops.step_exchanges().await.unwrap();
        }
        if leave == Phase::Switching {
            cloud.obey(h1).await;
            cloud.ops.step_exchanges().await.unwrap();
        }
        assert_eq!(phase(&cloud, &one), leave);
        cloud.ops.cancel_exchange(P, one.id).await.unwrap();
        cloud.ops.cancel_exchange(P, one.id).await.unwrap();
        let mut steps = Vec::new();
        // Both hosts obey, the task looks: at no time are both told to have it.
        for _ in 0..8 {
            cloud.ops.step_exchanges().await.unwrap();
            let now = told(&cloud, [h1, h2]);
            assert!(!(now[0].0 && now[1].0), "{leave:?}: both are told to have it");
            assert!(
                !(now[0].0 && now[1].2 && phase(&cloud, &one) == Phase::Returning),
                "{leave:?}: not clear yet"
            );
            steps.push(phase(&cloud, &one));
            cloud.obey(h1).await;
            cloud.obey(h2).await;
        }
        let ended = seen(&cloud, &one);
        assert_eq!(
            (ended.phase, ended.fault.unwrap().code.as_str()),
            (Phase::Failed, "cancelled"),
            "{steps:?}"
        );
        let after = cloud.show(&before);
        assert_eq!((after.state, after.host), (InstanceState::Running, Some(h1)), "{leave:?}");
        assert_eq!(claims(&cloud, [h1, h2]), [1, 0], "{leave:?}");
        assert_eq!(after.epoch, if leave == Phase::Preparing { 1 } else { 3 }, "{leave:?}");
        assert!(cloud.ops.cancel_exchange(P, one.id).await.is_err());
        assert_eq!(told(&cloud, [h1, h2])[1], (false, false, false), "{leave:?}: nothing is left there");
        cloud.ops.delete_instance(P, before.id, VolumeFate::Keep).await.unwrap();
        cloud.obey(h1).await;
        cloud.assert_empty();
    }
}

#[tokio::test]
async fn a_host_that_cannot_take_it_gives_it_back() {
    let (cloud, h1, h2) = Cloud::furnished().await;
    let before = running(&cloud).await;
    let past = Timestamp::now() - SignedDuration::from_secs(60);
    let broken = || Fault { code: "image_broken".into(), message: "no".into(), since: past };
    // Never ready.
    let one = cloud.ops.create_move(P, before.id, &to(json!({}))).await.unwrap();
    backdate(&cloud, &one, past).await;
    let mut status = cloud.obedient(h2);
    status.expected =
        vec![ExpectedStatus { id: before.id, epoch: 2, ready: false, fault: Some(broken()), landed: false }];
    cloud.ops.status(h2, status).await.unwrap();
    cloud.ops.step_exchanges().await.unwrap();
    let failed = seen(&cloud, &one);
    assert_eq!((failed.phase, failed.fault.unwrap().code.as_str()), (Phase::Failed, "image_broken"));
    assert_eq!((cloud.show(&before).epoch, claims(&cloud, [h1, h2])), (1, [1, 0]));
    cloud.obey(h2).await;

    // Ready, and then it does not start.
    let one = cloud.ops.create_move(P, before.id, &to(json!({}))).await.unwrap();
    cloud.obey(h2).await;
    cloud.ops.step_exchanges().await.unwrap();
    cloud.obey(h1).await;
    cloud.ops.step_exchanges().await.unwrap();
    let mut status = cloud.obedient(h2);
    status.instances[0].state = BodyState::Absent;
    status.instances[0].fault = Some(broken());
    cloud.ops.status(h2, status).await.unwrap();
    backdate(&cloud, &one, past).await;
    for want in [Phase::Returning, Phase::RollingBack, Phase::Failed] {
        cloud.ops.step_exchanges().await.unwrap();
        assert_eq!(phase(&cloud, &one), want);
        cloud.obey(h2).await;
        cloud.obey(h1).await;
    }
    let after = cloud.show(&before);
    assert_eq!((after.state, after.host, after.epoch), (InstanceState::Running, Some(h1), 3));

    // Gone before it was ready.
    let one = cloud.ops.create_move(P, before.id, &to(json!({}))).await.unwrap();
    cloud.down(h2).await;
    backdate(&cloud, &one, past).await;
    cloud.ops.step_exchanges().await.unwrap();
    assert_eq!(seen(&cloud, &one).fault.unwrap().code, "host_down");
    assert_eq!(claims(&cloud, [h1, h2]), [1, 0]);
}

#[tokio::test]
async fn deleted_on_the_way_it_goes_when_the_host_with_its_body_says_so() {
    for leave in [Phase::Preparing, Phase::Leaving, Phase::Switching] {
        let (cloud, h1, h2) = Cloud::furnished().await;
        let before = running(&cloud).await;
        let one = cloud.ops.create_move(P, before.id, &to(json!({}))).await.unwrap();
        if leave != Phase::Preparing {
            cloud.obey(h2).await;
            cloud.ops.step_exchanges().await.unwrap();
        }
        if leave == Phase::Switching {
            cloud.obey(h1).await;
            cloud.ops.step_exchanges().await.unwrap();
        }
        cloud.ops.delete_instance(P, before.id, VolumeFate::Keep).await.unwrap();
        assert_eq!(phase(&cloud, &one), Phase::Failed);
        let stones = told(&cloud, [h1, h2]).map(|(_, _, stone)| stone);
        assert_eq!(stones, [leave != Phase::Switching, true], "{leave:?}: what was ready goes too");
        let (holder, other) = if leave == Phase::Switching { (h2, h1) } else { (h1, h2) };
        cloud.obey(other).await;
        assert_eq!(cloud.ops.world().read().instances.len(), 1, "{leave:?}: its body may still be there");
        cloud.obey(holder).await;
        cloud.ops.step_exchanges().await.unwrap();
        cloud.assert_empty();
    }
}

#[tokio::test]
async fn a_lost_host_ends_it() {
    let (cloud, h1, h2) = Cloud::furnished().await;
    let before = running(&cloud).await;
    let one = cloud.ops.create_move(P, before.id, &to(json!({}))).await.unwrap();
    cloud.down(h1).await;
    cloud.obey(h2).await;
    cloud.ops.step_exchanges().await.unwrap();
    assert_eq!(phase(&cloud, &one), Phase::Preparing, "nothing is decided about a body that nobody sees");
    assert_eq!(cloud.ops.evacuate(h1).await.unwrap().moved.len(), 1);
    assert_eq!(seen(&cloud, &one).fault.unwrap().code, "host_lost");
    assert_eq!(claims(&cloud, [h1, h2]), [0, 1]);
    cloud.obey(h2).await;
    let after = cloud.show(&before);
    assert_eq!(
        (after.state, after.host, after.epoch),
        (InstanceState::Running, Some(h2), 3),
        "2 was promised"
    );
}

/// Its body may still run on the host that it leaves: nobody else starts it before that one has said that it does not.
#[tokio::test]
async fn a_host_that_is_lost_on_the_way_to_it_starts_nothing_elsewhere_too_soon() {
    let (cloud, h1, h2) = Cloud::furnished().await;
    let before = running(&cloud).await;
    let one = cloud.ops.create_move(P, before.id, &to(json!({}))).await.unwrap();
    cloud.obey(h2).await;
    cloud.ops.step_exchanges().await.unwrap();
    assert_eq!(phase(&cloud, &one), Phase::Leaving);
    cloud.down(h2).await;
    assert!(cloud.ops.evacuate(h2).await.unwrap().moved.is_empty());
    assert_eq!(told(&cloud, [h1, h2])[0], (false, false, true));
    cloud.obey(h1).await;
    assert_eq!(cloud.ops.evacuate(h2).await.unwrap().moved.len(), 1);
    assert_eq!(seen(&cloud, &one).fault.unwrap().code, "host_lost");
    assert_eq!(claims(&cloud, [h1, h2]), [1, 0]);
    cloud.obey(h1).await;
    let after = cloud.show(&before);
    assert_eq!((after.state, after.host, after.epoch), (InstanceState::Running, Some(h1), 3));
}

#[tokio::test]
async fn maintenance_empties_a_host_so_many_at_a_time() {
    let (cloud, h1, h2) = Cloud::furnished().await;
    for n in 0..5 {
        cloud.create(json!({"name": format!("i{n}"), "host": "h1"})).await.unwrap();
    }
    cloud.create(json!({"name": "held", "host": "h1", "volume": {"size_gib": 1}})).await.unwrap();
    cloud.obey(h1).await;
    let all = cloud.ops.instances(P, &ListQuery::default()).unwrap();
    snapped(&cloud, all.iter().find(|i| i.name == "held").unwrap()).await;
    let order = serde_json::from_value(json!({"reason": "new fans", "at_a_time": 2})).unwrap();
    cloud.ops.begin_maintenance(h1, &order).await.unwrap();
    assert!(matches!(cloud.create(json!({"host": "h1"})).await, Err(OpsError::NoRoom(_))));
    let progress = |cloud: &Cloud| cloud.ops.host(h1).unwrap().maintenance.unwrap();
    let mut most = 0;
    for round in 0.. {
        cloud.ops.step_maintenance().await.unwrap();
        cloud.ops.step_maintenance().await.unwrap();
        let now = progress(&cloud);
        assert!(now.moving <= 2, "{now:?}");
        most = most.max(now.moving);
        if now.left == 1 && now.moving == 0 {
            assert_eq!(now.held.len(), 1);
            assert!(now.held[0].reason.contains("its snapshots do not move"), "{now:?}");
            break;
        }
        assert!(round < 40, "{now:?}");
        cloud.obey(h1).await;
        cloud.obey(h2).await;
        cloud.ops.step_exchanges().await.unwrap();
    }
    assert_eq!(most, 2);
    assert_eq!(claims(&cloud, [h1, h2]), [1, 5]);
    cloud.ops.end_maintenance(h1).await.unwrap();
    assert_eq!(cloud.ops.end_maintenance(h1).await.unwrap_err().code(), ErrorCode::Conflict);
    cloud.create(json!({"host": "h1", "name": "again"})).await.unwrap();
    let plan = cloud.ops.plan_rebalance(10).unwrap();
    assert!(plan.spread_after <= plan.spread_before, "{plan:?}");
}

/// Lets the move's phase be as old as this.
async fn backdate(cloud: &Cloud, one: &Exchange, past: Timestamp) {
    cloud
        .ops
        .transact(|view| {
            let mut draft = Draft::default();
            let row = view.exchanges.get(one.id).unwrap();
            draft.update(row, &crate::model::ExchangeRecord { phase_since: past, ..(*row.record).clone() });
            for host in view.hosts.iter() {
                draft.update(host, &crate::model::HostRecord { state_since: past, ..(*host.record).clone() });
            }
            Ok((draft, ()))
        })
        .await
        .unwrap();
}

/// A snapshot of its volume, which keeps it where it is.
async fn snapped(cloud: &Cloud, one: &Instance) {
    let order = serde_json::from_value(json!({"name": "s"})).unwrap();
    cloud.ops.create_snapshot(P, one.volume.unwrap(), &order).await.unwrap();
    cloud.obey(one.host.unwrap()).await;
}

/// Its phases from now on, until it has ended: both hosts obey, a new controller looks, and so on.
async fn to_the_end(cloud: &mut Cloud, one: &Exchange, hosts: [HostId; 2]) -> Vec<Phase> {
    let mut phases = vec![phase(cloud, one)];
    for _ in 0..20 {
        *cloud = cloud.another().await;
        cloud.ops.step_exchanges().await.unwrap();
        let now = told(cloud, hosts);
        assert!(!(now[0].0 && now[1].0), "both are told to have it");
        if phases.last() != Some(&phase(cloud, one)) {
            phases.push(phase(cloud, one));
        }
        if seen(cloud, one).ended_at.is_some() {
            break;
        }
        for host in hosts {
            cloud.obey(host).await;
        }
    }
    phases
}

#[tokio::test]
async fn volumes_go_along_while_the_body_holds_still() {
    let (mut cloud, h1, h2) = Cloud::furnished().await;
    let made = cloud.create(json!({"host": "h1", "volume": {"size_gib": 2}})).await.unwrap();
    cloud.obey(h1).await;
    let volume = made.volume.unwrap();
    let gib = |cloud: &Cloud| [h1, h2].map(|host| cloud.ops.world().read().claims_of(host).volume_gib);
    let one = cloud.ops.create_move(P, made.id, &to(json!({}))).await.unwrap();
    assert_eq!(gib(&cloud), [2, 2], "room on both");
    let extend = serde_json::from_value(json!({"size_gib": 3})).unwrap();
    assert_eq!(cloud.ops.extend_volume(P, volume, &extend).await.unwrap_err().code(), ErrorCode::Conflict);
    cloud.obey(h2).await;
    cloud.ops.step_exchanges().await.unwrap();
    assert_eq!(phase(&cloud, &one), Phase::Stopping);
    assert_eq!(cloud.ops.desired(h1).instances[0].power, Power::Off);
    cloud.ops.step_exchanges().await.unwrap();
    assert_eq!(phase(&cloud, &one), Phase::Stopping, "not while it runs");
    let power_lost = HostStatus { generation: cloud.ops.desired(h1).generation - 1, ..cloud.obedient(h1) };
    cloud.ops.status(h1, power_lost).await.unwrap();
    cloud.ops.step_exchanges().await.unwrap();
    assert_eq!(phase(&cloud, &one), Phase::Stopping, "not by the word of a host that has not heard of it");
    cloud.obey(h1).await;
    cloud.ops.step_exchanges().await.unwrap();
    assert_eq!(phase(&cloud, &one), Phase::Copying);
    assert_eq!((cloud.ops.desired(h1).exports.len(), cloud.ops.desired(h2).volumes.len()), (1, 0));
    assert!(!cloud.ops.blob_allowed(h2, &"cd".repeat(32)));
    cloud.obey(h1).await;
    cloud.ops.step_exchanges().await.unwrap();
    let carried = seen(&cloud, &one).journey.unwrap().volumes.unwrap();
    assert_eq!((carried.all, carried.read, carried.arrived), (1, 1, 0));
    assert!(cloud.ops.blob_allowed(h2, &"cd".repeat(32)));
    let coming = cloud.ops.desired(h2).volumes.clone();
    assert_eq!((coming[0].id, coming[0].made), (volume, false));
    let phases = to_the_end(&mut cloud, &one, [h1, h2]).await;
    assert_eq!(phases, [Phase::Copying, Phase::Leaving, Phase::Switching, Phase::Done]);
    assert_eq!(cloud.show(&made).host, Some(h2));
    assert_eq!(gib(&cloud), [0, 2]);
    let stones = cloud.ops.desired(h1).tombstones.clone();
    assert_eq!(stones, [amphi_api::wire::Tombstone::Volume { id: volume }], "the old bytes go last");
    assert!(cloud.ops.desired(h2).volumes.iter().all(|v| v.made && v.id == volume));
    cloud.obey(h1).await;
    cloud.ops.step_exchanges().await.unwrap();
    let images = cloud.ops.world().read().images.iter().filter(|i| i.name.contains("on its way")).count();
    assert_eq!(images, 0, "what carried them is forgotten");
    assert_eq!(told(&cloud, [h1, h2])[0], (false, false, false));
}

/// Its bytes on the old host are old from the moment at which it may run on the new one, seen or not.
#[tokio::test]
async fn what_may_have_written_elsewhere_does_not_go_back_to_its_old_bytes() {
    let (cloud, h1, h2) = Cloud::furnished().await;
    let made = cloud.create(json!({"host": "h1", "volume": {"size_gib": 2}})).await.unwrap();
    cloud.obey(h1).await;
    let one = cloud.ops.create_move(P, made.id, &to(json!({}))).await.unwrap();
    for _ in 0..12 {
        if phase(&cloud, &one) == Phase::Switching {
            break;
        }
        cloud.obey(h1).await;
        cloud.obey(h2).await;
        cloud.ops.step_exchanges().await.unwrap();
    }
    let refused = cloud.ops.cancel_exchange(P, one.id).await.unwrap_err();
    assert!(refused.to_string().contains("gone over"), "{refused}");
    let past = Timestamp::now() - SignedDuration::from_secs(60);
    let mut status = cloud.obedient(h2);
    status.instances[0].state = BodyState::Absent;
    status.instances[0].fault =
        Some(Fault { code: "image_broken".into(), message: "no".into(), since: past });
    cloud.ops.status(h2, status).await.unwrap();
    backdate(&cloud, &one, past).await;
    cloud.ops.step_exchanges().await.unwrap();
    assert_eq!(phase(&cloud, &one), Phase::Done);
    let after = cloud.show(&made);
    assert_eq!((after.host, after.fault.map(|f| f.code)), (Some(h2), Some("image_broken".to_owned())));
    assert_eq!(cloud.ops.world().read().volumes.get(made.volume.unwrap()).unwrap().host, h2);
}

#[tokio::test]
async fn a_copy_that_is_called_off_or_deleted_leaves_one_volume() {
    for (leave, delete) in
        [(Phase::Stopping, false), (Phase::Copying, false), (Phase::Leaving, true), (Phase::Copying, true)]
    {
        let (mut cloud, h1, h2) = Cloud::furnished().await;
        let made = cloud.create(json!({"host": "h1", "volume": {"size_gib": 2}})).await.unwrap();
        cloud.obey(h1).await;
        let volume = made.volume.unwrap();
        let one = cloud.ops.create_move(P, made.id, &to(json!({}))).await.unwrap();
        for _ in 0..12 {
            if phase(&cloud, &one) == leave {
                break;
            }
            cloud.obey(h1).await;
            cloud.obey(h2).await;
            cloud.ops.step_exchanges().await.unwrap();
        }
        assert_eq!(phase(&cloud, &one), leave);
        if delete {
            cloud.ops.delete_instance(P, made.id, VolumeFate::Keep).await.unwrap();
        } else {
            cloud.ops.cancel_exchange(P, one.id).await.unwrap();
            to_the_end(&mut cloud, &one, [h1, h2]).await;
            assert_eq!(seen(&cloud, &one).fault.unwrap().code, "cancelled", "{leave:?}");
        }
        for _ in 0..3 {
            cloud.obey(h1).await;
            cloud.obey(h2).await;
            cloud.ops.step_exchanges().await.unwrap();
        }
        let at = if leave == Phase::Leaving { h2 } else { h1 };
        let record = cloud.ops.world().read().volumes.get(volume).unwrap().record.clone();
        assert_eq!((record.host, record.made), (at, true), "{leave:?} {delete}");
        assert_eq!(record.instance.is_none(), delete);
        let held = [h1, h2].map(|host| cloud.ops.desired(host).volumes.len());
        assert_eq!(held, if at == h1 { [1, 0] } else { [0, 1] }, "{leave:?} {delete}");
        let claims = [h1, h2].map(|host| cloud.ops.world().read().claims_of(host));
        assert_eq!(claims.iter().map(|c| c.volume_gib).sum::<u64>(), 2, "{leave:?} {delete}");
        assert_eq!(claims.iter().map(|c| c.instances).sum::<u32>(), u32::from(!delete), "{leave:?} {delete}");
        if !delete {
            assert_eq!(cloud.show(&made).state, InstanceState::Running);
        }
    }
}
