use super::*;
use amphi_api::ErrorCode;
use amphi_api::host::HostState;
use amphi_api::instance::{Fault, InstanceState};
use amphi_api::volume::VolumeState;
use amphi_api::wire::Tombstone;
use jiff::SignedDuration;

#[tokio::test]
async fn from_order_to_grave() {
    let (cloud, h1, _) = Cloud::furnished().await;
    let made = cloud.create(json!({"host": "h1", "volume": {"size_gib": 1}})).await.unwrap();
    cloud.obey(h1).await;
    let seen = cloud.show(&made);
    assert_eq!(seen.state, InstanceState::Running);
    let volume = seen.volume.unwrap();
    assert_eq!(cloud.ops.volume(P, volume).unwrap().state, VolumeState::InUse);

    assert_eq!(cloud.ops.stop_instance(P, made.id).await.unwrap().state, InstanceState::Stopping);
    assert_eq!(cloud.ops.restart_instance(P, made.id).await.unwrap_err().code(), ErrorCode::Conflict);
    cloud.obey(h1).await;
    assert_eq!(cloud.show(&made).state, InstanceState::Stopped);
    assert_eq!(cloud.ops.start_instance(P, made.id).await.unwrap().state, InstanceState::Starting);
    cloud.obey(h1).await;
    assert_eq!(cloud.ops.restart_instance(P, made.id).await.unwrap().state, InstanceState::Starting);
    cloud.obey(h1).await;
    assert_eq!(cloud.show(&made).state, InstanceState::Running);

    cloud.ops.delete_instance(P, made.id, VolumeFate::Keep).await.unwrap();
    cloud.ops.delete_instance(P, made.id, VolumeFate::Keep).await.unwrap();
    assert_eq!(cloud.show(&made).state, InstanceState::Deleting);
    assert_eq!(cloud.ops.start_instance(P, made.id).await.unwrap_err().code(), ErrorCode::Conflict);
    let told = cloud.ops.desired(h1);
    assert_eq!(told.instances, []);
    assert_eq!(told.tombstones, [Tombstone::Instance { id: made.id, epoch: 1 }]);
    // Absent from a status is not carried out: only the word counts.
    cloud.ops.status(h1, HostStatus::default()).await.unwrap();
    assert_eq!(cloud.show(&made).state, InstanceState::Deleting);
    cloud.obey(h1).await;
    assert!(cloud.ops.instance(P, made.id).is_err());
    assert_eq!(cloud.ops.desired(h1).tombstones, []);
    assert_eq!(cloud.ops.volume(P, volume).unwrap().state, VolumeState::Available);

    // The volume that was kept goes into the next instance, and with it to the recycle bin.
    let next = cloud.create(json!({"volume": {"id": volume}})).await.unwrap();
    assert_eq!(next.host, Some(h1), "an instance goes where its volume is");
    let former = made.addresses[0].address;
    assert_ne!(next.addresses[0].address, former, "the address rests");
    let wish = json!({"name": "again", "host": "h1", "networks": [{"network": "net", "address": former}]});
    let again = cloud.create(wish).await.expect("the address is free again");
    assert_eq!(again.addresses[0].address, former);
    cloud.ops.delete_instance(P, again.id, Default::default()).await.unwrap();
    let error = cloud.create(json!({"volume": {"id": volume}})).await.unwrap_err();
    assert!(matches!(&error, OpsError::Conflict { field: Some(f), .. } if f == "volume.id"), "{error:?}");
    cloud.ops.delete_instance(P, next.id, VolumeFate::Trash).await.unwrap();
    assert_eq!(cloud.ops.recycle_bin(P, &ListQuery::default()).unwrap(), [], "not before the body is gone");
    cloud.obey(h1).await;
    assert_eq!(cloud.ops.recycle_bin(P, &ListQuery::default()).unwrap()[0].id, volume);
    cloud.ops.purge_volume(P, volume).await.unwrap();
    cloud.obey(h1).await;
    cloud.assert_empty();
}

#[tokio::test]
async fn what_a_host_says_twice_is_written_once() {
    let (cloud, h1, _) = Cloud::furnished().await;
    cloud.create(json!({"host": "h1"})).await.unwrap();
    let told = cloud.ops.desired(h1).generation;
    cloud.obey(h1).await;
    let after = cloud.ops.world().read().revision();
    cloud.obey(h1).await;
    cloud.ops.heartbeat(h1, &spec("h1").engines, 20 * GIB).await.unwrap();
    assert_eq!(cloud.ops.world().read().revision(), after, "nothing new is nothing written");
    assert_eq!(cloud.ops.desired(h1).generation, told, "what a host says changes nothing of what it is told");

    let mut engines = spec("h1").engines;
    engines[0].trouble = Some("connection refused".into());
    cloud.ops.heartbeat(h1, &engines, 20 * GIB).await.unwrap();
    assert_eq!(cloud.ops.host(h1).unwrap().spec.unwrap().engines, engines);
    assert_eq!(cloud.ops.desired(h1).generation, told);
    let error = cloud.create(json!({"host": "h1"})).await.unwrap_err();
    assert!(error.to_string().contains("docker: connection refused"), "{error}");
}

#[tokio::test]
async fn an_engine_in_trouble_is_a_fault_until_it_is_over() {
    let (cloud, h1, _) = Cloud::furnished().await;
    let made = cloud.create(json!({"host": "h1"})).await.unwrap();
    let mut status = cloud.obedient(h1);
    status.instances[0].state = BodyState::Absent;
    status.instances[0].fault =
        Some(Fault { code: "image_broken".into(), message: "no such layer".into(), since: Timestamp::now() });
    cloud.ops.status(h1, status).await.unwrap();
    let seen = cloud.show(&made);
    assert_eq!((seen.state, seen.fault.unwrap().code.as_str()), (InstanceState::Error, "image_broken"));
    cloud.obey(h1).await;
    let seen = cloud.show(&made);
    assert_eq!((seen.state, seen.fault), (InstanceState::Running, None));
}

#[tokio::test]
async fn the_console_is_asked_of_the_host() {
    let (cloud, h1, _) = Cloud::furnished().await;
    let made = cloud.create(json!({"host": "h1"})).await.unwrap();
    let log = cloud.ops.console_log(P, made.id, Some("member-0".into()), 5).await.unwrap();
    assert_eq!(log.text, "5 lines of Some(\"member-0\")");
    assert!(matches!(cloud.ops.console_log(P, made.id, None, 0).await, Err(OpsError::Field(_))));
    let wrong = cloud.ops.console_log(P, made.id, Some("member-7".into()), 5).await.unwrap_err();
    assert!(matches!(&wrong, OpsError::Field(e) if e.field == "member"), "{wrong:?}");
    cloud.down(h1).await;
    let error = cloud.ops.console_log(P, made.id, None, 5).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::Unavailable);
}

#[tokio::test]
async fn a_host_is_forgotten_only_when_it_is_gone_and_empty() {
    let (cloud, h1, _) = Cloud::furnished().await;
    assert_eq!(cloud.ops.delete_host(h1).await.unwrap_err().code(), ErrorCode::Conflict);
    let made = cloud.create(json!({"host": "h1"})).await.unwrap();
    cloud.down(h1).await;
    assert_eq!(cloud.ops.host(h1).unwrap().state, HostState::Down);
    assert_eq!(cloud.ops.delete_host(h1).await.unwrap_err().code(), ErrorCode::Conflict);
    cloud.ops.delete_instance(P, made.id, VolumeFate::Keep).await.unwrap();
    assert_eq!(cloud.show(&made).state, InstanceState::Deleting, "a body that may run keeps its address");
    cloud.ops.evacuate(h1).await.unwrap();
    assert!(cloud.ops.instance(P, made.id).is_err(), "evacuated is as good as buried");
    cloud.ops.delete_host(h1).await.unwrap();
    assert!(cloud.ops.hello(h1, &spec("h1")).await.is_err(), "its certificate is worthless now");
    // A new one of the name may join.
    let again = cloud.host("h1").await;
    assert_ne!(again, h1);
}

#[tokio::test]
async fn join_tokens() {
    let cloud = Cloud::new().await;
    let secret = |token: &str| {
        let bytes = hex::decode(token.strip_prefix("amphi-").unwrap()).unwrap();
        serde_json::from_slice::<JoinTicket>(&bytes).unwrap().secret
    };
    let only = JoinTokenCreate { host: Some("h1".into()), ttl_seconds: None };
    let token = secret(&cloud.ops.create_join_token(&only).await.unwrap().token);
    assert_eq!(cloud.ops.join(&token, "h2").await.unwrap_err().code(), ErrorCode::Forbidden);
    assert_eq!(cloud.ops.join("guess", "h1").await.unwrap_err().code(), ErrorCode::Forbidden);
    let h1 = cloud.ops.join(&token, "h1").await.unwrap();
    let error = cloud.ops.hello(h1, &spec("h2")).await.unwrap_err();
    assert!(error.to_string().contains("joined as 'h1'"), "{error}");
    // A host that lost its certificate joins again, as itself.
    let token = secret(&cloud.ops.create_join_token(&only).await.unwrap().token);
    assert_eq!(cloud.ops.join(&token, "h1").await.unwrap(), h1);
    // Time passes; what is expired goes when a new one is made.
    let token = secret(&cloud.ops.create_join_token(&only).await.unwrap().token);
    let expire = cloud.ops.transact(|view| {
        let mut draft = Draft::default();
        for row in view.joins.iter() {
            let past = Timestamp::now() - SignedDuration::from_secs(1);
            draft.update(row, &crate::model::JoinRecord { expires_at: past, ..(*row.record).clone() });
        }
        Ok((draft, ()))
    });
    expire.await.unwrap();
    let expired = cloud.ops.join(&token, "h1").await.unwrap_err();
    assert_eq!(
        (expired.code(), expired.to_string()),
        (ErrorCode::Forbidden, "not a valid join token: expired".into())
    );
    assert_eq!(cloud.ops.world().read().joins.len(), 1);
    cloud.ops.create_join_token(&only).await.unwrap();
    assert_eq!(cloud.ops.world().read().joins.len(), 1, "the new one");
    for bad in [
        JoinTokenCreate { host: Some("h 1".into()), ttl_seconds: None },
        JoinTokenCreate { host: None, ttl_seconds: Some(0) },
    ] {
        assert_eq!(cloud.ops.create_join_token(&bad).await.unwrap_err().code(), ErrorCode::InvalidField);
    }
}

#[tokio::test]
async fn used_things_stay() {
    let (cloud, h1, _) = Cloud::furnished().await;
    let made = cloud.create(json!({"host": "h1", "security_groups": ["web"]})).await.unwrap();
    let all = ListQuery::default();
    let network = cloud.ops.networks(P, &all).unwrap()[0].id;
    let group = cloud.ops.groups(P, &all).unwrap()[0].id;
    let image = cloud.ops.images(P, &all).unwrap()[0].id;
    assert_eq!(cloud.ops.delete_network(P, network).await.unwrap_err().code(), ErrorCode::Conflict);
    assert_eq!(cloud.ops.delete_group(P, group).await.unwrap_err().code(), ErrorCode::Conflict);
    assert_eq!(cloud.ops.delete_image(P, image).await.unwrap_err().code(), ErrorCode::Conflict);
    cloud.ops.delete_instance(P, made.id, VolumeFate::Keep).await.unwrap();
    cloud.obey(h1).await;
    cloud.ops.delete_network(P, network).await.unwrap();
    cloud.ops.delete_group(P, group).await.unwrap();
    cloud.ops.delete_image(P, image).await.unwrap();
    assert!(cloud.ops.network(P, network).is_err());
}

#[tokio::test]
async fn what_the_store_cannot_take_is_refused_or_kept_for_later() {
    let (cloud, h1, _) = Cloud::furnished().await;
    let made = cloud.create(json!({"host": "h1"})).await.unwrap();
    let status = cloud.obedient(h1);
    cloud.break_store(true);
    let refused = cloud.create(json!({})).await.unwrap_err();
    assert_eq!(refused.code(), ErrorCode::Unavailable, "{refused}");
    assert_eq!(cloud.ops.instances(P, &ListQuery::default()).unwrap().len(), 1);
    assert!(cloud.ops.status(h1, status).await.is_err());
    assert!(cloud.ops.record_left_over().await.is_err());
    assert_eq!(cloud.show(&made).state, InstanceState::Building);
    cloud.break_store(false);
    cloud.ops.record_left_over().await.unwrap();
    assert_eq!(cloud.show(&made).state, InstanceState::Running);
}
