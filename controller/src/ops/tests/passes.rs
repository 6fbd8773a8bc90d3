//! Moves whose bytes go from host to host in passes, with hosts that are played: what is ordered of each, and what an end
//! at each step leaves.

use super::*;
use amphi_api::ErrorCode;
use amphi_api::instance::{Exchange, ExchangePhase as Phase, Fault, MoveCreate};
use amphi_api::wire::{CopyingDesired, CopyingStatus, Tombstone, VolumeSource};

const MIB: u64 = 1 << 20;

fn cold(change: serde_json::Value) -> MoveCreate {
    let mut value = json!({"reason": "r"});
    value.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
    serde_json::from_value(value).unwrap()
}

/// Two hosts that take bytes, and a set with a volume on the first.
async fn stage() -> (Cloud, [HostId; 2], Instance) {
    let (cloud, h1, h2) = Cloud::furnished().await;
    for (host, name) in [(h1, "h1"), (h2, "h2")] {
        let moves_at = Some("10.99.0.11:7445".parse().unwrap());
        let taking = HostSpec { moves_at, takes_passes: true, ..spec(name) };
        cloud.ops.hello(host, &taking).await.unwrap();
    }
    let made = cloud.create(json!({"host": "h1", "volume": {"size_gib": 1}})).await.unwrap();
    cloud.obey(h1).await;
    let made = cloud.show(&made);
    (cloud, [h1, h2], made)
}

fn seen(cloud: &Cloud, one: &Exchange) -> Exchange {
    cloud.ops.exchange(P, one.id).unwrap()
}

fn phase(cloud: &Cloud, one: &Exchange) -> Phase {
    seen(cloud, one).phase
}

fn order(cloud: &Cloud, host: HostId) -> Option<CopyingDesired> {
    cloud.ops.desired(host).instances[0].copying.clone()
}

async fn step(cloud: &Cloud) {
    cloud.ops.step_exchanges().await.unwrap();
}

fn running(cloud: &Cloud, one: &Instance) -> bool {
    let view = cloud.ops.world().read();
    drop(view);
    cloud.ops.desired(one.host.unwrap()).instances.iter().any(|i| i.id == one.id && i.power == Power::On)
}

/// What the old host says of the pass that is ordered of it.
async fn says(cloud: &Cloud, host: HostId, done: bool, sent_mib: u64, fault: Option<Fault>) {
    let mut status = cloud.obedient(host);
    let order = order(cloud, host).unwrap();
    status.instances[0].copying = Some(CopyingStatus {
        exchange: order.exchange,
        pass: order.pass,
        last: order.last,
        all_bytes: 1024 * MIB,
        read_bytes: if done { 1024 * MIB } else { 512 * MIB },
        sent_bytes: sent_mib * MIB,
        took_ms: if done { 20_000 } else { 0 },
        done,
        followed: false,
        fault,
    });
    cloud.ops.status(host, status).await.unwrap();
}

/// A move whose first pass is under way.
async fn copying(cloud: &Cloud, [h1, h2]: [HostId; 2], one: &Instance) -> Exchange {
    let exchange = cloud.ops.create_move(P, one.id, &cold(json!({}))).await.unwrap();
    step(cloud).await;
    assert_eq!(phase(cloud, &exchange), Phase::Preparing, "not before the new host is ready");
    let there = cloud.ops.desired(h2);
    assert_eq!(there.expected[0].copied_from, Some(h1));
    assert_eq!(there.volumes[0].source, Some(VolumeSource::Crossing), "as large, and empty");
    assert_eq!(order(cloud, h1), None);
    cloud.obey(h2).await;
    step(cloud).await;
    assert_eq!(phase(cloud, &exchange), Phase::CopyingAhead);
    exchange
}

#[tokio::test]
async fn it_is_copied_while_it_runs_and_stops_for_the_rest() {
    let (mut cloud, [h1, h2], one) = stage().await;
    let exchange = copying(&cloud, [h1, h2], &one).await;
    let first = order(&cloud, h1).unwrap();
    assert_eq!((first.to, first.epoch, first.pass, first.last), (h2, one.epoch + 1, 1, false));
    says(&cloud, h1, false, 500, None).await;
    let now = seen(&cloud, &exchange).journey.unwrap().copy.unwrap().now.unwrap();
    assert_eq!((now.pass, now.read_bytes, now.sent_bytes), (1, 512 * MIB, 500 * MIB));
    says(&cloud, h1, true, 1000, None).await;
    cloud = cloud.another().await;
    step(&cloud).await;
    assert_eq!(phase(&cloud, &exchange), Phase::CopyingAhead, "much was sent: once more");
    assert_eq!(order(&cloud, h1).unwrap().pass, 2);
    assert!(running(&cloud, &one));
    says(&cloud, h1, true, 3, None).await;
    assert_eq!(seen(&cloud, &exchange).journey.unwrap().copy.unwrap().estimated_stop_ms, Some(20_000));
    assert_eq!(order(&cloud, h1), None, "little is left");
    step(&cloud).await;
    assert_eq!(phase(&cloud, &exchange), Phase::Stopping);
    assert!(!running(&cloud, &one));
    step(&cloud).await;
    assert_eq!(order(&cloud, h1), None, "not before it has stopped");
    cloud.obey(h1).await;
    step(&cloud).await;
    assert_eq!(phase(&cloud, &exchange), Phase::Copying);
    let last = order(&cloud, h1).unwrap();
    assert_eq!((last.pass, last.last), (3, true));
    cloud = cloud.another().await;
    step(&cloud).await;
    assert_eq!(phase(&cloud, &exchange), Phase::Copying, "not before both have the same bytes");
    says(&cloud, h1, true, 2, None).await;
    step(&cloud).await;
    assert_eq!(phase(&cloud, &exchange), Phase::Leaving);
    cloud.obey(h1).await;
    step(&cloud).await;
    let there = cloud.ops.desired(h2);
    assert_eq!((there.volumes[0].made, there.volumes[0].source.clone()), (true, None), "its own by now");
    cloud.obey(h2).await;
    step(&cloud).await;
    let done = seen(&cloud, &exchange);
    assert_eq!((done.phase, done.fault.clone()), (Phase::Done, None));
    assert!(done.outage_ms.is_some());
    let passes = done.journey.unwrap().copy.unwrap().passes;
    let sent: Vec<_> = passes.iter().map(|p| (p.sent_bytes / MIB, p.last)).collect();
    assert_eq!(sent, [(1000, false), (3, false), (2, true)]);
    assert!(cloud.ops.desired(h1).tombstones.iter().any(|t| matches!(t, Tombstone::Volume { .. })));
    for host in [h1, h2] {
        cloud.obey(host).await;
    }
}

/// Whatever phase it is called off in, it goes on where it was and nothing of it stays on the other host.
#[tokio::test]
async fn called_off_in_every_phase() {
    for until in [Phase::Preparing, Phase::CopyingAhead, Phase::Stopping, Phase::Copying, Phase::Leaving] {
        let (mut cloud, [h1, h2], one) = stage().await;
        let volume = one.volume.unwrap();
        let exchange = match until {
            Phase::Preparing => cloud.ops.create_move(P, one.id, &cold(json!({}))).await.unwrap(),
            _ => copying(&cloud, [h1, h2], &one).await,
        };
        if !matches!(until, Phase::Preparing | Phase::CopyingAhead) {
            says(&cloud, h1, true, 1, None).await;
            step(&cloud).await;
        }
        if matches!(until, Phase::Copying | Phase::Leaving) {
            cloud.obey(h1).await;
            step(&cloud).await;
        }
        if until == Phase::Leaving {
            says(&cloud, h1, true, 1, None).await;
            step(&cloud).await;
        }
        assert_eq!(phase(&cloud, &exchange), until);
        cloud.obey(h2).await;
        cloud.ops.cancel_exchange(P, exchange.id).await.unwrap();
        if matches!(until, Phase::Preparing | Phase::CopyingAhead) {
            assert!(running(&cloud, &one), "never stopped");
        }
        for _ in 0..6 {
            cloud = cloud.another().await;
            step(&cloud).await;
            if seen(&cloud, &exchange).ended_at.is_some() {
                break;
            }
            cloud.obey(h1).await;
            cloud.obey(h2).await;
        }
        let ended = seen(&cloud, &exchange);
        assert_eq!(ended.fault.map(|f| f.code).as_deref(), Some("cancelled"), "{until:?}");
        assert!(running(&cloud, &one), "{until:?}");
        let there = cloud.ops.desired(h2);
        assert!(there.volumes.is_empty() && there.expected.is_empty() && there.instances.is_empty());
        assert!(there.tombstones.contains(&Tombstone::Volume { id: volume }), "{until:?}: the copy goes");
        // What was made ready of the body there went before the old one came back, or goes now.
        let buried = there.tombstones.iter().any(|t| matches!(t, Tombstone::Instance { .. }));
        assert_eq!(buried, until != Phase::Leaving, "{until:?}");
        assert_eq!(order(&cloud, h1), None);
        cloud.obey(h1).await;
        cloud.obey(h2).await;
        assert!(cloud.ops.desired(h2).tombstones.is_empty());
        assert_eq!(cloud.ops.world().read().claims_of(h2), Default::default(), "{until:?}");
    }
}

#[tokio::test]
async fn other_bytes_there_end_it_at_once() {
    let (cloud, [h1, h2], one) = stage().await;
    let exchange = copying(&cloud, [h1, h2], &one).await;
    says(&cloud, h1, true, 1, None).await;
    step(&cloud).await;
    cloud.obey(h1).await;
    step(&cloud).await;
    let code = "bytes_differ".to_owned();
    let differ = Fault { code, message: "block 7".into(), since: jiff::Timestamp::now() };
    says(&cloud, h1, false, 1, Some(differ)).await;
    step(&cloud).await;
    let ended = seen(&cloud, &exchange);
    assert_eq!((ended.phase, ended.fault.unwrap().code.as_str()), (Phase::Failed, "bytes_differ"));
    assert!(running(&cloud, &one));
}

#[tokio::test]
async fn one_that_is_stopped_needs_one_pass() {
    let (cloud, [h1, h2], one) = stage().await;
    cloud.ops.stop_instance(P, one.id).await.unwrap();
    cloud.obey(h1).await;
    let exchange = cloud.ops.create_move(P, one.id, &cold(json!({}))).await.unwrap();
    cloud.obey(h2).await;
    step(&cloud).await;
    assert_eq!(phase(&cloud, &exchange), Phase::Stopping);
    cloud.obey(h1).await;
    step(&cloud).await;
    assert!(order(&cloud, h1).unwrap().last);
}

#[tokio::test]
async fn who_cannot_take_passes_gets_the_bytes_through_the_controller() {
    let (cloud, [h1, h2], one) = stage().await;
    let old = HostSpec { moves_at: Some("10.99.0.12:7445".parse().unwrap()), ..spec("h2") };
    cloud.ops.hello(h2, &old).await.unwrap();
    let refused = cloud.ops.create_move(P, one.id, &cold(json!({"ahead": true}))).await.unwrap_err();
    assert_eq!(refused.code(), ErrorCode::Conflict);
    let exchange = cloud.ops.create_move(P, one.id, &cold(json!({}))).await.unwrap();
    cloud.obey(h2).await;
    step(&cloud).await;
    assert_eq!(phase(&cloud, &exchange), Phase::Stopping);
    cloud.obey(h1).await;
    step(&cloud).await;
    assert_eq!(cloud.ops.desired(h1).exports.len(), 1);
}
