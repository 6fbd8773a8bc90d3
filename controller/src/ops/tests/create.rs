use super::*;
use amphi_api::ErrorCode;
use amphi_api::instance::{BodyKind, BodySpec, InstanceState};
use std::time::Instant;

#[tokio::test]
async fn a_created_instance_is_whole() {
    let (cloud, h1, _) = Cloud::furnished().await;
    let made = cloud
        .create(json!({"host": "h1", "security_groups": ["web", "web"], "volume": {"size_gib": 2},
            "networks": [{"network": "net", "address": "10.1.0.77"}]}))
        .await
        .unwrap();
    assert_eq!((made.state, made.body, made.epoch), (InstanceState::Building, BodyKind::Set, 1));
    assert_eq!(made.host_name.as_deref(), Some("h1"));
    assert_eq!(made.addresses[0].address.to_string(), "10.1.0.77");
    assert!(made.addresses[0].mac.starts_with("fa:16:3e:"));
    assert_eq!(made.security_groups.len(), 1);
    let BodySpec::Set(set) = &made.bodies[0] else { panic!("{:?}", made.bodies) };
    assert_eq!(set.members[0].name, "member-0", "members are in start order");

    let desired = cloud.ops.desired(h1);
    let told = &desired.instances[0];
    assert_eq!(told.ports[0].address.to_string(), "10.1.0.77/24");
    assert_eq!(told.ports[0].gateway.unwrap().to_string(), "10.1.0.1");
    assert_eq!(told.body.images().len(), 2);
    assert_eq!(desired.volumes[0].size_bytes, 2 << 30);
    assert!(!desired.volumes[0].made);
    assert!(cloud.ops.blob_allowed(h1, &"ab".repeat(32)));
    let claims = cloud.ops.host(h1).unwrap().claims;
    assert_eq!((claims.vcpus, claims.memory_mib, claims.volume_gib, claims.instances), (1, 128, 2, 1));
}

#[tokio::test]
async fn the_world_of_another_controller_tells_the_same() {
    let (cloud, h1, _) = Cloud::furnished().await;
    cloud.create(json!({"host": "h1"})).await.unwrap();
    let other = cloud.another().await;
    let (mine, theirs) = (cloud.ops.desired(h1), other.ops.desired(h1));
    assert!(theirs.generation >= mine.generation, "a generation never falls");
    assert_eq!(mine.instances, theirs.instances);
    assert_eq!(
        other.ops.instances(P, &ListQuery::default()).unwrap(),
        cloud.ops.instances(P, &ListQuery::default()).unwrap()
    );
}

#[tokio::test]
async fn what_cannot_be_is_refused_by_field_and_leaves_nothing() {
    let (cloud, _, _) = Cloud::furnished().await;
    cloud.network("twice", "10.2.0.0/24").await;
    cloud.network("twice", "10.2.0.0/24").await;
    let set = |member: serde_json::Value| json!({"bodies": [{"set": {"members": [{"index": 0, "image": "busybox"}, member]}}]});
    let table = [
        (json!({"name": ""}), ErrorCode::InvalidField, "name"),
        (json!({"name": "a\u{7}"}), ErrorCode::InvalidField, "name"),
        (json!({"vcpus": 0}), ErrorCode::InvalidField, "vcpus"),
        (json!({"vcpus": 257}), ErrorCode::InvalidField, "vcpus"),
        (json!({"memory_mib": 0}), ErrorCode::InvalidField, "memory_mib"),
        (json!({"memory_mib": 1u64 << 40}), ErrorCode::InvalidField, "memory_mib"),
        (json!({"bodies": []}), ErrorCode::InvalidField, "bodies"),
        (
            set(json!({"index": 0, "image": "busybox"})),
            ErrorCode::InvalidField,
            "bodies[0].set.members[1].index",
        ),
        (
            set(json!({"index": 1, "image": "busybox", "options": {"cpu": 101}})),
            ErrorCode::InvalidField,
            "bodies[0].set.members[1].options.cpu",
        ),
        (
            set(json!({"index": 1, "image": "none"})),
            ErrorCode::InvalidField,
            "bodies[0].set.members[1].image",
        ),
        (set(json!({"index": 1, "image": "vm"})), ErrorCode::InvalidField, "bodies[0].set.members[1].image"),
        (json!({"bodies": [{"vm": {"image": "busybox"}}]}), ErrorCode::InvalidField, "bodies[0].vm.image"),
        (json!({"networks": [{"network": "none"}]}), ErrorCode::InvalidField, "networks[0].network"),
        (json!({"networks": [{"network": "twice"}]}), ErrorCode::Conflict, "networks[0].network"),
        (
            json!({"networks": [{"network": "net"}, {"network": "net"}]}),
            ErrorCode::InvalidField,
            "networks[1].network",
        ),
        (
            json!({"networks": [{"network": "net", "address": "10.9.0.1"}]}),
            ErrorCode::InvalidField,
            "networks[0].address",
        ),
        (
            json!({"networks": [{"network": "net", "address": "10.1.0.1"}]}),
            ErrorCode::InvalidField,
            "networks[0].address",
        ),
        (json!({"security_groups": ["web", "none"]}), ErrorCode::InvalidField, "security_groups[1]"),
        (json!({"volume": {"size_gib": 0}}), ErrorCode::InvalidField, "volume.size_gib"),
        (json!({"volume": {"size_gib": 1u64 << 40}}), ErrorCode::InvalidField, "volume.size_gib"),
        (json!({"volume": {}}), ErrorCode::InvalidField, "volume.size_gib"),
        (json!({"volume": {"id": uuid::Uuid::nil()}}), ErrorCode::InvalidField, "volume.id"),
        (json!({"user_data": "x".repeat(65_536)}), ErrorCode::InvalidField, "user_data"),
        (json!({"host": "h9"}), ErrorCode::InvalidField, "host"),
        (json!({"vcpus": 5}), ErrorCode::NoRoom, ""),
        (json!({"memory_mib": 4000}), ErrorCode::NoRoom, ""),
        (json!({"volume": {"size_gib": 21}}), ErrorCode::NoRoom, ""),
    ];
    for (change, code, field) in table {
        let error = cloud.create(change.clone()).await.unwrap_err();
        assert_eq!(error.code(), code, "{change}: {error}");
        let named = match &error {
            OpsError::Field(e) => e.field.clone(),
            OpsError::Conflict { field, .. } => field.clone().unwrap_or_default(),
            _ => String::new(),
        };
        assert_eq!(named, field, "{change}: {error}");
        cloud.assert_empty();
    }
    // What the store holds must be as empty as the view is.
    for prefix in ["/instance/", "/port/", "/address/", "/mac/", "/volume/", "/claim/"] {
        assert_eq!(cloud.store.range(prefix).await.unwrap().0, [], "{prefix}");
    }
}

#[tokio::test]
async fn a_taken_address_is_refused() {
    let (cloud, _, _) = Cloud::furnished().await;
    let ask = json!({"networks": [{"network": "net", "address": "10.1.0.9"}]});
    cloud.create(ask.clone()).await.unwrap();
    let error = cloud.create(ask).await.unwrap_err();
    assert!(
        matches!(&error, OpsError::Conflict { field: Some(f), .. } if f == "networks[0].address"),
        "{error:?}"
    );
    // The same address on another network of the same subnet is another address.
    cloud.network("apart", "10.1.0.0/24").await;
    cloud.create(json!({"networks": [{"network": "apart", "address": "10.1.0.9"}]})).await.unwrap();
}

/// Many at once, by two controllers, for a network with five addresses and a host with six places.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_gets_what_another_has() {
    let (cloud, _, _) = Cloud::furnished().await;
    let other = cloud.another().await;
    cloud.network("small", "10.3.0.0/29").await;
    for (what, ask, room, code) in [
        ("addresses", json!({"networks": [{"network": "small"}]}), 5, ErrorCode::Conflict),
        // 20 GiB on h1, 3 each.
        ("GiB", json!({"networks": [], "host": "h1", "volume": {"size_gib": 3}}), 6, ErrorCode::NoRoom),
    ] {
        let tries = (0..24).map(|n| {
            let ops = if n % 2 == 0 { cloud.ops.clone() } else { other.ops.clone() };
            let ask = request(ask.clone());
            tokio::spawn(async move { ops.create_instance(P, &ask).await })
        });
        let mut made = Vec::new();
        for outcome in tries.collect::<Vec<_>>() {
            match outcome.await.unwrap() {
                Ok(instance) => made.push(instance),
                Err(error) => assert_eq!(error.code(), code, "{what}: {error}"),
            }
        }
        assert_eq!(made.len(), room, "{what}");
        let addresses: HashSet<_> = made.iter().flat_map(|i| &i.addresses).map(|a| a.address).collect();
        assert_eq!(addresses.len(), made.iter().map(|i| i.addresses.len()).sum::<usize>());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_that_goes_takes_no_port_with_it() {
    let (cloud, _, _) = Cloud::furnished().await;
    let other = cloud.another().await;
    for round in 0..10 {
        let network = cloud.network(&format!("brief{round}"), "10.4.0.0/24").await;
        let caught_up = cloud.store.commit(Txn::default()).await.unwrap();
        assert!(other.ops.world().reached(caught_up).await);
        let ask = request(json!({"networks": [{"network": network.name}]}));
        let ops = other.ops.clone();
        let create = tokio::spawn(async move { ops.create_instance(P, &ask).await });
        let deleted = cloud.ops.delete_network(P, network.id).await;
        let created = create.await.unwrap();
        assert_ne!(deleted.is_ok(), created.is_ok(), "round {round}: {deleted:?} {created:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_create_costs_the_controller() {
    let (cloud, h1, _) = Cloud::furnished().await;
    let mut wake = cloud.ops.desired_generation(h1);
    let mut took = Vec::new();
    for _ in 0..40 {
        wake.borrow_and_update();
        let began = Instant::now();
        cloud.create(json!({"host": "h1", "memory_mib": 16, "security_groups": ["web"]})).await.unwrap();
        wake.changed().await.unwrap();
        let desired = cloud.ops.desired(h1);
        took.push(began.elapsed());
        assert!(desired.generation > 0);
    }
    took.sort();
    println!("create, durable and ready to be sent: p50 {:?}, worst {:?}", took[took.len() / 2], took.last());
    assert!(took[took.len() / 2].as_millis() < 100, "p50 {:?}", took[took.len() / 2]);
}

#[tokio::test]
async fn pages() {
    let (cloud, _, _) = Cloud::furnished().await;
    for n in 0..5 {
        cloud.create(json!({"name": format!("i{n}"), "memory_mib": 16})).await.unwrap();
    }
    let list = |query: ListQuery| {
        cloud.ops.instances(P, &query).map(|l| l.into_iter().map(|i| i.name).collect::<Vec<_>>())
    };
    assert_eq!(list(ListQuery::default()).unwrap(), ["i0", "i1", "i2", "i3", "i4"]);
    assert_eq!(list(ListQuery { name: Some("i3".into()), ..Default::default() }).unwrap(), ["i3"]);
    let first = cloud.ops.instances(P, &ListQuery { limit: Some(2), ..Default::default() }).unwrap();
    let marker = Some(first[1].id.to_string());
    assert_eq!(list(ListQuery { limit: Some(2), marker, ..Default::default() }).unwrap(), ["i2", "i3"]);
    for (query, field) in [
        (ListQuery { limit: Some(0), ..Default::default() }, "limit"),
        (ListQuery { marker: Some("x".into()), ..Default::default() }, "marker"),
        (ListQuery { marker: Some(uuid::Uuid::nil().to_string()), ..Default::default() }, "marker"),
    ] {
        assert!(matches!(list(query), Err(OpsError::Field(e)) if e.field == field));
    }
    let elsewhere = ProjectId(uuid::Uuid::from_u128(7));
    assert_eq!(cloud.ops.instances(elsewhere, &ListQuery::default()).unwrap(), []);
    assert!(matches!(cloud.ops.instance(elsewhere, first[0].id), Err(OpsError::NotFound { .. })));
}
