//! Flavors, key pairs, server groups, aggregates, quotas: what is refused, and that nothing is half done.

use super::*;
use crate::model::*;
use crate::ops::aggregates::HostMark;
use crate::ops::flavors::FlavorSpec;
use crate::ops::key_pairs::KeyPairSpec;
use crate::ops::quotas::{check, check_for};
use crate::ops::server_groups::{self, ServerGroupSpec};
use amphi_api::{ErrorCode, InstanceId, UserId};
use std::collections::BTreeMap;

fn flavor(id: Option<&str>, name: &str) -> FlavorSpec {
    FlavorSpec {
        id: id.map(str::to_owned),
        name: name.into(),
        vcpus: 1,
        ram_mib: 64,
        disk_gib: 0,
        ephemeral_gib: 0,
        swap_mib: 0,
        rxtx_factor: 1.0,
        is_public: true,
        description: None,
    }
}

#[tokio::test]
async fn flavors_are_unique_by_id_and_name() {
    let cloud = Cloud::new().await;
    cloud.ops.make_default_flavors().await.unwrap();
    let many = cloud.ops.world().read().flavors.len();
    assert_eq!(many, DEFAULT_FLAVORS.len());
    cloud.ops.delete_flavor("1").await.unwrap();
    let other = cloud.another().await;
    other.ops.make_default_flavors().await.unwrap();
    assert_eq!(other.ops.world().read().flavors.len(), many - 1, "what is deleted stays deleted");

    let made = cloud.ops.create_flavor(&flavor(None, " own ")).await.unwrap();
    assert_eq!(made.name, "own");
    assert_eq!(made.id.len(), 36);
    for (id, name) in [(Some(made.id.as_str()), "x"), (None, "own"), (Some("2"), "y"), (None, "m1.small")] {
        let refusal = cloud.ops.create_flavor(&flavor(id, name)).await.unwrap_err();
        assert_eq!(refusal.code(), ErrorCode::Conflict, "{id:?} {name}");
    }
    type Change = fn(&mut FlavorSpec);
    let wrong: Vec<(&str, Change)> = vec![
        ("name", |f| f.name = " ".into()),
        ("id", |f| f.id = Some(" x".into())),
        ("id", |f| f.id = Some("a/b".into())),
        ("ram", |f| f.ram_mib = 0),
        ("vcpus", |f| f.vcpus = 0),
        ("disk", |f| f.disk_gib = 1 << 31),
        ("rxtx_factor", |f| f.rxtx_factor = 0.0),
        ("rxtx_factor", |f| f.rxtx_factor = f64::NAN),
    ];
    for (field, change) in wrong {
        let mut spec = flavor(None, "wrong");
        change(&mut spec);
        match cloud.ops.create_flavor(&spec).await.unwrap_err() {
            OpsError::Field(error) => assert_eq!(error.field, field),
            error => panic!("{error:?}"),
        }
    }
    // The name is free again.
    cloud.ops.delete_flavor(&made.id).await.unwrap();
    cloud.ops.create_flavor(&flavor(Some("own"), "own")).await.unwrap();
    let project = ProjectId::new();
    cloud.ops.add_flavor_access("own", project).await.unwrap();
    assert_eq!(cloud.ops.add_flavor_access("own", project).await.unwrap_err().code(), ErrorCode::Conflict);
    cloud.ops.remove_flavor_access("own", project).await.unwrap();
    assert_eq!(cloud.ops.remove_flavor_access("own", project).await.unwrap_err().code(), ErrorCode::NotFound);
    let specs = BTreeMap::from([("hw:cpu_policy".to_owned(), "x".to_owned())]);
    assert_eq!(cloud.ops.set_flavor_specs("own", &specs).await.unwrap().extra_specs, specs);
    cloud.ops.unset_flavor_spec("own", "hw:cpu_policy").await.unwrap();
    let again = cloud.ops.unset_flavor_spec("own", "hw:cpu_policy").await;
    assert_eq!(again.unwrap_err().code(), ErrorCode::NotFound);
}

#[tokio::test]
async fn key_pairs_belong_to_users() {
    let cloud = Cloud::new().await;
    let (ada, bob, project) = (UserId::new(), UserId::new(), ProjectId::new());
    let spec = KeyPairSpec { name: "k".into(), kind: KeyKind::Ssh, public_key: None };
    let (made, private) = cloud.ops.create_key_pair(project, ada, &spec).await.unwrap();
    assert!(private.unwrap().contains("OPENSSH PRIVATE KEY"));
    let again = cloud.ops.create_key_pair(project, ada, &spec).await.unwrap_err();
    assert_eq!(again.code(), ErrorCode::Conflict);
    cloud.ops.create_key_pair(project, bob, &spec).await.unwrap();
    assert_eq!(cloud.ops.delete_key_pair(ada, "other").await.unwrap_err().code(), ErrorCode::NotFound);
    cloud.ops.delete_key_pair(ada, "k").await.unwrap();
    let view = cloud.ops.world().read();
    assert!(view.key_pairs.get(made.id()).is_none());
    assert_eq!(view.key_pairs.len(), 1, "bob's is there");
}

#[tokio::test]
async fn quotas_count_what_is_there() {
    let (cloud, _, _) = Cloud::furnished().await;
    let one = cloud.create(json!({})).await.unwrap();
    let sums = cloud.ops.world().read().sums_of(P);
    assert_eq!((sums.vcpus, sums.ram_mib), (one.vcpus.into(), one.memory_mib));
    let fits = |project, asked: &[(Resource, u64)]| check(&cloud.ops.world().read(), project, asked);
    // The cloud's first project has no limit until it is given one.
    fits(P, &[(Resource::Instances, 1_000_000), (Resource::Cores, 1_000_000)]).unwrap();
    let limits = |word: &str, limit| BTreeMap::from([(word.to_owned(), limit)]);
    let of = QuotaKey::Project(P);
    let below = cloud.ops.set_quotas(of, &limits("instances", 0), false).await.unwrap_err();
    assert_eq!(below.code(), ErrorCode::InvalidField);
    cloud.ops.set_quotas(of, &limits("instances", 0), true).await.unwrap();
    cloud.ops.set_quotas(of, &limits("instances", 2), false).await.unwrap();
    fits(P, &[(Resource::Instances, 1)]).unwrap();
    let over = OverQuota { resource: "instances".into(), asked: 2, used: 1, limit: 2 };
    assert_eq!(fits(P, &[(Resource::Instances, 2)]), Err(OpsError::Quota(over)));

    let (other, user) = (ProjectId::new(), UserId::new());
    fits(other, &[(Resource::Instances, 10), (Resource::Gigabytes, 1000)]).unwrap();
    assert!(fits(other, &[(Resource::Instances, 11)]).is_err());
    cloud.ops.set_quotas(QuotaKey::Default, &limits("instances", 12), false).await.unwrap();
    let users = QuotaKey::User(other, user);
    let above = cloud.ops.set_quotas(users, &limits("instances", 13), false).await;
    assert_eq!(above.unwrap_err().code(), ErrorCode::InvalidField);
    cloud.ops.set_quotas(users, &limits("instances", 3), false).await.unwrap();
    fits(other, &[(Resource::Instances, 12)]).unwrap();
    let of_user = |n| check_for(&cloud.ops.world().read(), other, Some(user), &[(Resource::Instances, n)]);
    assert!(of_user(4).is_err());
    cloud.ops.reset_quotas(QuotaKey::Project(other), |_| true).await.unwrap();
    of_user(12).unwrap();
    cloud.ops.reset_quotas(of, |word| word == "volumes").await.unwrap();
    let kept = quotas::limit(&cloud.ops.world().read(), P, None, "instances");
    assert_eq!(kept, 2, "another service's reset leaves it");
}

/// Sums and counts return to nothing, whatever came and went; and a restart counts the same.
#[tokio::test]
async fn sums_follow_the_records() {
    let (cloud, h1, h2) = Cloud::furnished().await;
    for at in 0..3 {
        cloud.create(json!({"name": format!("i{at}"), "volume": {"size_gib": 1}})).await.unwrap();
    }
    let counted = |cloud: &Cloud| cloud.ops.world().read().sums_of(P);
    assert_eq!(counted(&cloud).volume_gib, 3);
    assert_eq!(counted(&cloud), counted(&cloud.another().await));
    let ids: Vec<InstanceId> = cloud.ops.world().read().instances.iter().map(|i| i.id).collect();
    for id in ids {
        cloud.ops.delete_instance(P, id, VolumeFate::Trash).await.unwrap();
    }
    for host in [h1, h2] {
        cloud.obey(host).await;
    }
    let sums = counted(&cloud);
    assert_eq!((sums.vcpus, sums.ram_mib, sums.volume_gib), (0, 0, 0), "what is in the bin is out of sight");
    assert_eq!(sums.trashed_volumes, 3);
    assert_eq!(sums, counted(&cloud.another().await));
    assert_eq!(cloud.ops.world().read().past_instances.count_of(P), 3);
}

#[tokio::test]
async fn server_groups_gather_members() {
    let (cloud, _, _) = Cloud::furnished().await;
    let spec = |policy, max| ServerGroupSpec { name: "g".into(), policy, max_server_per_host: max };
    let user = UserId::new();
    let wrong = cloud.ops.create_server_group(P, user, &spec(GroupPolicy::Affinity, Some(2))).await;
    assert_eq!(wrong.unwrap_err().code(), ErrorCode::InvalidField);
    let group =
        cloud.ops.create_server_group(P, user, &spec(GroupPolicy::AntiAffinity, Some(2))).await.unwrap();
    let member = cloud.create(json!({})).await.unwrap();
    let join = |id| {
        cloud.ops.transact(move |view| {
            let mut draft = Draft::default();
            let ask = server_groups::join(view, &mut draft, P, group.id, id)?;
            Ok((draft, ask))
        })
    };
    let ask = join(member.id).await.unwrap();
    assert!(ask.members.is_empty(), "one does not keep apart from oneself");
    let ask = join(InstanceId::new()).await.unwrap();
    assert_eq!((ask.max_per_host, ask.members), (2, BTreeMap::from([(member.host.unwrap(), 1)])));
    cloud
        .ops
        .transact(|view| {
            let mut draft = Draft::default();
            server_groups::leave(view, &mut draft, group.id, member.id);
            Ok((draft, ()))
        })
        .await
        .unwrap();
    assert!(!cloud.ops.world().read().server_groups.get(group.id).unwrap().members.contains(&member.id));
    let elsewhere = cloud.ops.delete_server_group(ProjectId::new(), group.id).await;
    assert_eq!(elsewhere.unwrap_err().code(), ErrorCode::NotFound);
    cloud.ops.delete_server_group(P, group.id).await.unwrap();
}

#[tokio::test]
async fn a_host_is_in_one_zone_and_keeps_it_while_it_runs_something() {
    let (cloud, h1, h2) = Cloud::furnished().await;
    let east = cloud.ops.create_aggregate("east", Some("east")).await.unwrap();
    let west = cloud.ops.create_aggregate("west", Some("west")).await.unwrap();
    let ssd = cloud.ops.create_aggregate("ssd", None).await.unwrap();
    assert!(east.id < west.id && west.id < ssd.id);
    assert_eq!(cloud.ops.create_aggregate("ssd", None).await.unwrap_err().code(), ErrorCode::Conflict);
    assert_eq!(
        cloud.ops.create_aggregate("x", Some("a:b")).await.unwrap_err().code(),
        ErrorCode::InvalidField
    );
    cloud.ops.add_aggregate_host(east.id, "h1").await.unwrap();
    cloud.ops.add_aggregate_host(ssd.id, "h1").await.unwrap();
    for (aggregate, host, code) in [
        (east.id, "h1", ErrorCode::Conflict),
        (west.id, "h1", ErrorCode::Conflict),
        (west.id, "nobody", ErrorCode::NotFound),
        (AggregateId(9_999_999), "h2", ErrorCode::NotFound),
    ] {
        assert_eq!(cloud.ops.add_aggregate_host(aggregate, host).await.unwrap_err().code(), code, "{host}");
    }
    let kept = BTreeMap::from([("disk".to_owned(), Some("ssd".to_owned()))]);
    cloud.ops.set_aggregate_metadata(ssd.id, &kept).await.unwrap();
    {
        let view = cloud.ops.world().read();
        let seen = sights(&view);
        let of = |id| seen.iter().find(|s| s.id == id).unwrap();
        assert_eq!((of(h1).zone, of(h1).metadata), ("east", &[("disk".to_owned(), "ssd".to_owned())][..]));
        assert_eq!((of(h2).zone, of(h2).metadata.len()), ("nova", 0));
    }

    cloud.create(json!({"host": "h1"})).await.unwrap();
    assert_eq!(cloud.ops.remove_aggregate_host(east.id, "h1").await.unwrap_err().code(), ErrorCode::Conflict);
    assert_eq!(
        cloud.ops.update_aggregate(east.id, None, Some("north")).await.unwrap_err().code(),
        ErrorCode::InvalidField
    );
    cloud.ops.update_aggregate(east.id, Some("eastern"), None).await.unwrap();
    cloud.ops.remove_aggregate_host(ssd.id, "h1").await.unwrap();
    cloud.ops.delete_aggregate(ssd.id).await.unwrap();
    assert_eq!(cloud.ops.delete_aggregate(east.id).await.unwrap_err().code(), ErrorCode::InvalidField);
    cloud.ops.create_aggregate("east", None).await.unwrap();
}

#[tokio::test]
async fn a_disabled_host_takes_nothing_new() {
    let (cloud, h1, h2) = Cloud::furnished().await;
    let disabled = HostMark { disabled: Some((true, Some("new disks".into()))), ..HostMark::default() };
    cloud.ops.mark_host(h1, &disabled).await.unwrap();
    cloud.ops.mark_host(h2, &HostMark { forced_down: Some(true), ..HostMark::default() }).await.unwrap();
    let refusal = cloud.create(json!({})).await.unwrap_err();
    assert!(refusal.to_string().contains("is disabled: new disks"), "{refusal}");
    assert!(refusal.to_string().contains("h2: is down"), "{refusal}");
    let enabled = HostMark { disabled: Some((false, Some("?".into()))), ..HostMark::default() };
    cloud.ops.mark_host(h1, &enabled).await.unwrap();
    assert_eq!(cloud.create(json!({})).await.unwrap().host, Some(h1));
    assert_eq!(cloud.ops.world().read().hosts.get(h1).unwrap().disabled_reason, None);
}
