use super::*;
use amphi_api::ErrorCode;
use amphi_api::instance::{BodyKind, Exchange, ExchangeCreate, ExchangePhase, Fault, InstanceState};
use jiff::SignedDuration;

fn to(kind: BodyKind) -> ExchangeCreate {
    ExchangeCreate { to: kind, body: None }
}

async fn running(cloud: &Cloud) -> Instance {
    let both = json!([{"set": {"members": [{"index": 0, "image": "busybox"}]}}, {"vm": {"image": "vm"}}]);
    let made = cloud.create(json!({"host": "h1", "bodies": both, "volume": {"size_gib": 1}})).await.unwrap();
    cloud.obey(made.host.unwrap()).await;
    cloud.show(&made)
}

fn phase(cloud: &Cloud, exchange: &Exchange) -> ExchangePhase {
    cloud.ops.exchange(P, exchange.id).unwrap().phase
}

#[tokio::test]
async fn there_and_back_with_the_same_identity() {
    let (mut cloud, h1, _) = Cloud::furnished().await;
    let before = running(&cloud).await;
    for (kind, epoch) in [(BodyKind::Vm, 2), (BodyKind::Set, 3)] {
        let exchange = cloud.ops.create_exchange(P, before.id, &to(kind)).await.unwrap();
        assert_eq!(exchange.phase, ExchangePhase::Preparing);
        assert_eq!(cloud.show(&before).state, InstanceState::Exchanging);
        let told = cloud.ops.desired(h1);
        assert_eq!(told.instances[0].next_body.as_ref().unwrap().kind(), kind);
        for refused in [
            cloud.ops.stop_instance(P, before.id).await.map(drop),
            cloud.ops.restart_instance(P, before.id).await.map(drop),
            cloud.ops.create_exchange(P, before.id, &to(kind)).await.map(drop),
        ] {
            assert_eq!(refused.unwrap_err().code(), ErrorCode::Conflict);
        }
        cloud.ops.step_exchanges().await.unwrap();
        assert_eq!(phase(&cloud, &exchange), ExchangePhase::Preparing, "not before the host is ready");
        // Each phase is found again by a controller that starts in between, and taken once however often it is tried.
        cloud.obey(h1).await;
        cloud = cloud.another().await;
        let other = cloud.another().await;
        let (one, two) = tokio::join!(cloud.ops.step_exchanges(), other.ops.step_exchanges());
        one.and(two).unwrap();
        assert_eq!(phase(&cloud, &exchange), ExchangePhase::Switching);
        let told = cloud.ops.desired(h1);
        assert_eq!((told.instances[0].epoch, told.instances[0].body.kind()), (epoch, kind));
        assert_eq!(told.instances[0].next_body, None);
        cloud = cloud.another().await;
        cloud.obey(h1).await;
        cloud.ops.step_exchanges().await.unwrap();
        let done = cloud.ops.exchange(P, exchange.id).unwrap();
        assert_eq!((done.phase, done.outage_ms, done.fault), (ExchangePhase::Done, Some(42), None));
        let after = cloud.show(&before);
        assert_eq!((after.state, after.body, after.epoch), (InstanceState::Running, kind, epoch));
        assert_eq!((&after.addresses, after.volume), (&before.addresses, before.volume));
        assert_eq!(after.bodies, before.bodies, "the order of bodies is the owner's");
    }
    assert_eq!(cloud.ops.exchanges(P, Some(before.id), &ListQuery::default()).unwrap().len(), 2);
    cloud.ops.delete_instance(P, before.id, VolumeFate::Keep).await.unwrap();
    cloud.obey(h1).await;
    cloud.ops.step_exchanges().await.unwrap();
    assert_eq!(cloud.ops.world().read().exchanges.len(), 0, "the history goes with the instance");
}

#[tokio::test]
async fn a_body_that_cannot_be_made_ready_changes_nothing() {
    let (cloud, h1, _) = Cloud::furnished().await;
    let before = running(&cloud).await;
    let exchange = cloud.ops.create_exchange(P, before.id, &to(BodyKind::Vm)).await.unwrap();
    let mut status = cloud.obedient(h1);
    status.instances[0].next_ready = false;
    status.instances[0].next_fault = Some(fault(0));
    cloud.ops.status(h1, status).await.unwrap();
    cloud.ops.step_exchanges().await.unwrap();
    assert_eq!(phase(&cloud, &exchange), ExchangePhase::Preparing, "a fault must last to count");
    backdate(&cloud, &exchange).await;
    cloud.ops.step_exchanges().await.unwrap();
    let failed = cloud.ops.exchange(P, exchange.id).unwrap();
    assert_eq!((failed.phase, failed.fault.unwrap().code.as_str()), (ExchangePhase::Failed, "image_broken"));
    let after = cloud.show(&before);
    assert_eq!((after.epoch, after.body, after.state), (before.epoch, before.body, InstanceState::Running));
}

#[tokio::test]
async fn a_body_that_does_not_run_is_rolled_back() {
    let (cloud, h1, _) = Cloud::furnished().await;
    let made = cloud.create(json!({"host": "h1"})).await.unwrap();
    cloud.obey(h1).await;
    let body: ExchangeCreate =
        serde_json::from_value(json!({"to": "vm", "body": {"vm": {"image": "none"}}})).unwrap();
    let error = cloud.ops.create_exchange(P, made.id, &body).await.unwrap_err();
    assert!(matches!(&error, OpsError::Field(e) if e.field == "body.vm.image"), "{error:?}");
    let body: ExchangeCreate =
        serde_json::from_value(json!({"to": "vm", "body": {"vm": {"image": "vm"}}})).unwrap();
    let exchange = cloud.ops.create_exchange(P, made.id, &body).await.unwrap();
    let image =
        cloud.ops.images(P, &ListQuery { name: Some("vm".into()), ..Default::default() }).unwrap()[0].id;
    assert_eq!(cloud.ops.delete_image(P, image).await.unwrap_err().code(), ErrorCode::Conflict);
    cloud.obey(h1).await;
    cloud.ops.step_exchanges().await.unwrap();
    assert_eq!(cloud.show(&made).bodies.len(), 2, "the new body is listed from the switch on");

    let mut status = cloud.obedient(h1);
    status.instances[0].state = BodyState::Absent;
    status.instances[0].fault = Some(fault(0));
    cloud.ops.status(h1, status).await.unwrap();
    backdate(&cloud, &exchange).await;
    cloud.ops.step_exchanges().await.unwrap();
    assert_eq!(phase(&cloud, &exchange), ExchangePhase::RollingBack);
    let back = cloud.show(&made);
    assert_eq!((back.epoch, back.body, back.bodies.len()), (3, BodyKind::Set, 1));
    cloud.obey(h1).await;
    cloud.ops.step_exchanges().await.unwrap();
    let failed = cloud.ops.exchange(P, exchange.id).unwrap();
    assert_eq!((failed.phase, failed.fault.unwrap().code.as_str()), (ExchangePhase::Failed, "image_broken"));
    assert_eq!(cloud.show(&made).state, InstanceState::Running);
}

#[tokio::test]
async fn one_artifact_has_both_bodies() {
    let (cloud, h1, _) = Cloud::furnished().await;
    let made = cloud.create(json!({"host": "h1"})).await.unwrap();
    cloud.obey(h1).await;
    let before = cloud.show(&made);
    let images = cloud.ops.desired(h1).instances[0].body.images().to_vec();
    for (kind, other) in
        [(BodyKind::Vm, BodyKind::Set), (BodyKind::Set, BodyKind::Vm), (BodyKind::Vm, BodyKind::Set)]
    {
        let exchange = cloud.ops.create_exchange(P, made.id, &to(kind)).await.unwrap();
        let next = cloud.ops.desired(h1).instances[0].next_body.clone().unwrap();
        assert_eq!((next.kind(), next.images()), (kind, images.as_slice()));
        for _ in 0..2 {
            cloud.obey(h1).await;
            cloud.ops.step_exchanges().await.unwrap();
        }
        assert_eq!(phase(&cloud, &exchange), ExchangePhase::Done);
        let after = cloud.show(&made);
        assert_eq!((after.body, after.bodies.len()), (kind, 2));
        assert_eq!(after.bodies[0], before.bodies[0]);
        assert_eq!(after.bodies[1].set().unwrap().0, before.bodies[0].set().unwrap().0);
        assert_ne!(kind, other);
    }
    // A VM of an image of its own has no set to become.
    let vm =
        cloud.create(json!({"name": "vm", "host": "h1", "bodies": [{"vm": {"image": "vm"}}]})).await.unwrap();
    let error = cloud.ops.create_exchange(P, vm.id, &to(BodyKind::Set)).await.unwrap_err();
    assert!(matches!(&error, OpsError::Field(e) if e.field == "body"), "{error:?}");
}

#[tokio::test]
async fn a_set_runs_as_a_vm_where_there_is_a_kit_alone() {
    let (cloud, h1, _) = Cloud::furnished().await;
    let set = |image: &str| json!([{"vm": {"set": {"members": [{"index": 0, "image": image}]}}}]);
    let refused = cloud.create(json!({"bodies": set("none")})).await.unwrap_err();
    assert!(
        matches!(&refused, OpsError::Field(e) if e.field == "bodies[0].vm.set.members[0].image"),
        "{refused:?}"
    );
    let both = json!([{"vm": {"image": "vm", "set": {"members": [{"index": 0, "image": "busybox"}]}}}]);
    let refused = cloud.create(json!({"bodies": both})).await.unwrap_err();
    assert!(matches!(&refused, OpsError::Field(e) if e.field == "bodies[0].vm.image"), "{refused:?}");
    let made = cloud.create(json!({"bodies": set("busybox"), "host": "h1"})).await.unwrap();
    let told = cloud.ops.desired(h1);
    assert!(matches!(told.instances[0].body, amphi_api::wire::BodyDesired::SetVm { .. }), "{told:?}");
    assert_eq!(made.body, BodyKind::Vm);
    for host in ["h1", "h2"] {
        let id = cloud.ops.world().read().host_named(host).unwrap().id;
        cloud.ops.hello(id, &amphi_api::host::HostSpec { guest_kit: false, ..spec(host) }).await.unwrap();
    }
    let no_room = cloud.create(json!({"name": "b", "bodies": set("busybox")})).await;
    let told = match no_room {
        Err(error) => error.to_string(),
        Ok(made) => format!("{:?}", cloud.show(&made).fault),
    };
    assert!(told.contains("guest kit"), "{told}");
}

/// The host says of the instance's body at its present epoch that it does not run, and why.
async fn broken(cloud: &Cloud, host: HostId, code: &str) {
    let mut status = cloud.obedient(host);
    status.instances[0].state = BodyState::Absent;
    status.instances[0].next_ready = false;
    status.instances[0].fault = Some(Fault { code: code.into(), ..fault(0) });
    cloud.ops.status(host, status).await.unwrap();
}

#[tokio::test]
async fn a_broken_body_is_cured_by_the_other_kind() {
    let (cloud, h1, _) = Cloud::furnished().await;
    let before = running(&cloud).await;
    broken(&cloud, h1, "image_broken").await;
    assert_eq!(cloud.show(&before).state, InstanceState::Error);
    let exchange = cloud.ops.create_exchange(P, before.id, &to(BodyKind::Vm)).await.unwrap();
    cloud.ops.step_exchanges().await.unwrap();
    assert_eq!(phase(&cloud, &exchange), ExchangePhase::Preparing, "it may be mended yet");
    backdate(&cloud, &exchange).await;
    cloud.ops.step_exchanges().await.unwrap();
    assert_eq!(phase(&cloud, &exchange), ExchangePhase::Switching);
    cloud.obey(h1).await;
    cloud.ops.step_exchanges().await.unwrap();
    assert_eq!(phase(&cloud, &exchange), ExchangePhase::Done);
    let after = cloud.show(&before);
    assert_eq!((after.state, after.body), (InstanceState::Running, BodyKind::Vm));
}

#[tokio::test]
async fn two_broken_bodies_end_it_early_with_the_new_ones_reason() {
    let (cloud, h1, _) = Cloud::furnished().await;
    let before = running(&cloud).await;
    let exchange = cloud.ops.create_exchange(P, before.id, &to(BodyKind::Vm)).await.unwrap();
    for (code, next) in [
        ("image_broken", ExchangePhase::Switching),
        ("engine_refused", ExchangePhase::RollingBack),
        ("image_broken", ExchangePhase::Failed),
    ] {
        broken(&cloud, h1, code).await;
        backdate(&cloud, &exchange).await;
        cloud.ops.step_exchanges().await.unwrap();
        assert_eq!(phase(&cloud, &exchange), next);
    }
    let failed = cloud.ops.exchange(P, exchange.id).unwrap();
    assert_eq!(failed.fault.unwrap().code, "engine_refused");
    let after = cloud.show(&before);
    assert_eq!((after.state, after.body), (InstanceState::Error, before.body));
}

#[tokio::test]
async fn trouble_that_any_body_would_have_ends_it() {
    let (cloud, h1, _) = Cloud::furnished().await;
    let before = running(&cloud).await;
    let exchange = cloud.ops.create_exchange(P, before.id, &to(BodyKind::Vm)).await.unwrap();
    broken(&cloud, h1, "volume_missing").await;
    backdate(&cloud, &exchange).await;
    cloud.ops.step_exchanges().await.unwrap();
    let failed = cloud.ops.exchange(P, exchange.id).unwrap();
    assert_eq!(
        (failed.phase, failed.fault.unwrap().code.as_str()),
        (ExchangePhase::Failed, "volume_missing")
    );
    assert_eq!(cloud.show(&before).epoch, before.epoch);
}

#[tokio::test]
async fn a_lost_host_or_a_deletion_ends_it() {
    let (cloud, h1, h2) = Cloud::furnished().await;
    let both = json!([{"set": {"members": [{"index": 0, "image": "busybox"}]}}, {"vm": {"image": "vm"}}]);
    let made = cloud.create(json!({"bodies": both})).await.unwrap();
    let home = made.host.unwrap();
    cloud.obey(home).await;
    let exchange = cloud.ops.create_exchange(P, made.id, &to(BodyKind::Vm)).await.unwrap();
    cloud.down(home).await;
    let answer = cloud.ops.evacuate(home).await.unwrap();
    assert_eq!(answer.moved.len(), 1);
    let ended = cloud.ops.exchange(P, exchange.id).unwrap();
    assert_eq!((ended.phase, ended.fault.unwrap().code.as_str()), (ExchangePhase::Failed, "host_lost"));

    let there = if home == h1 { h2 } else { h1 };
    cloud.obey(there).await;
    let exchange = cloud.ops.create_exchange(P, made.id, &to(BodyKind::Vm)).await.unwrap();
    cloud.ops.delete_instance(P, made.id, VolumeFate::Keep).await.unwrap();
    assert_eq!(phase(&cloud, &exchange), ExchangePhase::Failed);
    cloud.obey(there).await;
    cloud.assert_empty();
}

fn fault(age: i64) -> Fault {
    let since = Timestamp::now() - SignedDuration::from_secs(age);
    Fault { code: "image_broken".into(), message: "no".into(), since }
}

/// Lets a minute pass: for the exchange's phase, the host's link and the faults that it has told.
async fn backdate(cloud: &Cloud, exchange: &Exchange) {
    let past = Timestamp::now() - SignedDuration::from_secs(60);
    cloud
        .ops
        .transact(|view| {
            let mut draft = Draft::default();
            let row = view.exchanges.get(exchange.id).unwrap();
            draft.update(row, &crate::model::ExchangeRecord { phase_since: past, ..(*row.record).clone() });
            let instance = view.instances.get(exchange.instance).unwrap();
            let mut record = (*instance.record).clone();
            if let Some(observed) = &mut record.observed {
                for fault in [&mut observed.fault, &mut observed.next_fault].into_iter().flatten() {
                    fault.since = past;
                }
            }
            draft.update(instance, &record);
            let host = view.hosts.get(instance.host.unwrap()).unwrap();
            draft.update(host, &crate::model::HostRecord { state_since: past, ..(*host.record).clone() });
            Ok((draft, ()))
        })
        .await
        .unwrap();
}
