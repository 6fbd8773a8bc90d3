use super::*;
use crate::model::GroupPolicy;
use crate::ops::EndpointQuery;
use crate::ops::servers::{Origin, ServerOrder};
use amphi_api::group::{
    Group, GroupChange, GroupCreate, GroupScale, GroupState, GroupUpdate, InstanceFigures, MetricPost,
    RolloutOrder, RolloutState, RolloutVerb,
};
use amphi_api::{ErrorCode, InstanceId};
use std::time::Duration;

fn wish(change: serde_json::Value) -> GroupCreate {
    let mut value = json!({
        "name": "shop", "count": 3, "ports": [80],
        "update": {"drain_s": 0},
        "template": {"name": "web-{index}", "vcpus": 1, "memory_mib": 128,
            "bodies": [{"set": {"members": [{"index": 0, "image": "busybox"}]}}],
            "networks": [{"network": "net"}], "metadata": {"tier": "front"}},
    });
    for (key, part) in change.as_object().unwrap() {
        value[key] = part.clone();
    }
    serde_json::from_value(value).unwrap()
}

async fn settle(cloud: &Cloud, hosts: &[HostId]) {
    for _ in 0..12 {
        cloud.ops.step_groups().await.unwrap();
        for host in hosts.iter().filter(|host| cloud.links.is_linked(**host)) {
            cloud.obey(*host).await;
        }
    }
}

async fn grouped(change: serde_json::Value) -> (Cloud, [HostId; 2], Group) {
    let (cloud, h1, h2) = Cloud::furnished().await;
    let made = cloud.ops.create_scaling_group(P, &wish(change)).await.unwrap();
    settle(&cloud, &[h1, h2]).await;
    let made = cloud.ops.scaling_group(P, made.id).unwrap();
    (cloud, [h1, h2], made)
}

fn names(group: &Group) -> Vec<String> {
    group
        .members
        .iter()
        .map(|m| format!("{}:{}{}", m.name, m.revision, if m.ready { "+" } else { "-" }))
        .collect()
}

fn instances(cloud: &Cloud) -> usize {
    cloud.ops.world().read().instances.len()
}

#[tokio::test]
async fn a_group_is_made_scaled_healed_and_deleted() {
    let (cloud, hosts, made) = grouped(json!({})).await;
    assert_eq!((made.state, made.ready), (GroupState::Steady, 3), "{made:?}");
    assert_eq!(names(&made), ["web-0:1+", "web-1:1+", "web-2:1+"]);
    let on: Vec<_> = hosts.iter().map(|h| cloud.ops.host(*h).unwrap().claims.instances).collect();
    assert!(on.iter().all(|n| *n >= 1), "kept apart as far as there are hosts: {on:?}");

    // Another controller, or this one started anew, makes nothing twice.
    let other = cloud.another().await;
    other.ops.step_groups().await.unwrap();
    cloud.ops.step_groups().await.unwrap();
    assert_eq!(instances(&cloud), 3);

    let scale = async |to| cloud.ops.scale_group(P, made.id, &GroupScale { to }).await.unwrap();
    assert_eq!(scale(5).await.state, GroupState::Changing);
    // Both at once: every step is decided in its transaction.
    let (one, two) = tokio::join!(cloud.ops.step_groups(), other.ops.step_groups());
    one.unwrap();
    two.unwrap();
    settle(&cloud, &hosts).await;
    assert_eq!((instances(&cloud), cloud.ops.scaling_group(P, made.id).unwrap().ready), (5, 5));
    scale(2).await;
    cloud.ops.step_groups().await.unwrap();
    assert_eq!(cloud.ops.scaling_group(P, made.id).unwrap().leaving.len(), 3);
    settle(&cloud, &hosts).await;
    let now = cloud.ops.scaling_group(P, made.id).unwrap();
    assert_eq!(
        (names(&now), now.state, now.leaving.len()),
        (vec!["web-0:1+".into(), "web-1:1+".into()], GroupState::Steady, 0)
    );

    // One that somebody deletes comes again; one that somebody stops is left alone.
    cloud.ops.delete_instance(P, now.members[0].instance, Default::default()).await.unwrap();
    cloud.ops.stop_instance(P, now.members[1].instance).await.unwrap();
    settle(&cloud, &hosts).await;
    let healed = cloud.ops.scaling_group(P, made.id).unwrap();
    assert_eq!(names(&healed), ["web-0:1+", "web-1:1-"]);
    assert_ne!(healed.members[0].instance, now.members[0].instance);
    assert_eq!(healed.members[1].reason.as_deref(), Some("it was stopped"));

    cloud.ops.delete_scaling_group(P, made.id).await.unwrap();
    assert_eq!(cloud.ops.scaling_group(P, made.id).unwrap().state, GroupState::Deleting);
    let late = cloud.ops.scale_group(P, made.id, &GroupScale { to: 9 }).await.unwrap_err();
    assert_eq!(late.code(), ErrorCode::Conflict);
    settle(&cloud, &hosts).await;
    assert_eq!(cloud.ops.scaling_group(P, made.id).unwrap_err().code(), ErrorCode::NotFound);
    cloud.assert_empty();
    cloud.ops.create_scaling_group(P, &wish(json!({"count": 0}))).await.expect("the name is free again");
}

#[tokio::test]
async fn names_are_of_one_group() {
    let (cloud, _, _) = grouped(json!({"count": 0})).await;
    let again = cloud.ops.create_scaling_group(P, &wish(json!({}))).await.unwrap_err();
    assert_eq!(again.code(), ErrorCode::Conflict);
    let spec = crate::ops::server_groups::ServerGroupSpec {
        name: "apart".into(),
        policy: GroupPolicy::AntiAffinity,
        max_server_per_host: None,
    };
    let user = amphi_api::UserId(uuid::Uuid::nil());
    cloud.ops.create_server_group(P, user, &spec).await.unwrap();
    let clash = cloud.ops.create_scaling_group(P, &wish(json!({"name": "apart"}))).await.unwrap_err();
    assert!(clash.to_string().contains("server group 'apart'"), "{clash}");
    let zone = json!({"name": "x", "autoscale": {"metric": "cpu", "target": 1, "min": 1, "max": 1, "time_zone": "Mars/Olympus"}});
    let refused = cloud.ops.create_scaling_group(P, &wish(zone)).await.unwrap_err();
    assert!(matches!(refused, OpsError::Field(ref e) if e.field == "autoscale.time_zone"), "{refused}");
}

#[tokio::test]
async fn what_finds_no_room_is_told_and_tried_again_later() {
    let (cloud, hosts, made) = grouped(json!({"affinity": "anti_affinity", "count": 2})).await;
    assert_eq!(made.state, GroupState::Steady);
    cloud.ops.scale_group(P, made.id, &GroupScale { to: 3 }).await.unwrap();
    cloud.ops.step_groups().await.unwrap();
    let short = cloud.ops.scaling_group(P, made.id).unwrap();
    assert_eq!((short.state, short.trouble.clone().unwrap().code.as_str()), (GroupState::Short, "no_room"));
    let (revision, began) = (cloud.ops.world().read().revision(), std::time::Instant::now());
    for _ in 0..50 {
        cloud.ops.step_groups().await.unwrap();
    }
    let tries = cloud.ops.world().read().revision() - revision;
    assert!(tries <= began.elapsed().as_secs() + 1, "not spun: {tries}");
    let third = cloud.host("h3").await;
    // An order lets it be tried at once.
    cloud.ops.scale_group(P, made.id, &GroupScale { to: 2 }).await.unwrap();
    cloud.ops.step_groups().await.unwrap();
    assert_eq!(cloud.ops.scaling_group(P, made.id).unwrap().trouble, None, "nothing is missing");
    cloud.ops.scale_group(P, made.id, &GroupScale { to: 3 }).await.unwrap();
    settle(&cloud, &[hosts[0], hosts[1], third]).await;
    let full = cloud.ops.scaling_group(P, made.id).unwrap();
    assert_eq!((full.state, full.trouble), (GroupState::Steady, None));
}

#[tokio::test]
async fn revisions_are_rolled_out_and_undone() {
    let (cloud, hosts, made) = grouped(json!({})).await;
    let mut template = made.template.clone();
    template.memory_mib = 256;
    let order = |percent, canary| GroupUpdate { template: template.clone(), percent, canary };
    let rolled = cloud.ops.roll_out_group(P, made.id, &order(None, true)).await.unwrap();
    assert_eq!(
        (rolled.rollout.to, rolled.rollout.wanted, rolled.rollout.state),
        (2, 1, RolloutState::Progressing)
    );
    settle(&cloud, &hosts).await;
    let canary = cloud.ops.scaling_group(P, made.id).unwrap();
    assert_eq!(names(&canary), ["web-0:1+", "web-1:1+", "web-2:2+"]);
    assert_eq!((canary.rollout.state, canary.state), (RolloutState::Waiting, GroupState::Steady));
    let go = async |verb, percent| {
        cloud.ops.order_rollout(P, made.id, &RolloutOrder { verb, percent }).await.unwrap();
        settle(&cloud, &hosts).await;
        cloud.ops.scaling_group(P, made.id).unwrap()
    };
    let all = go(RolloutVerb::Promote, None).await;
    assert_eq!(names(&all), ["web-0:2+", "web-1:2+", "web-2:2+"]);
    assert_eq!((all.rollout.state, all.rollout.from), (RolloutState::Done, 2));
    let kept: Vec<InstanceId> = canary.members.iter().chain(&all.members).map(|m| m.instance).collect();
    assert_eq!(kept[2], kept[5], "the canary stays");
    let view_memory = |id| cloud.ops.instance(P, id).unwrap().memory_mib;
    assert!(all.members.iter().all(|m| view_memory(m.instance) == 256));
    let back = go(RolloutVerb::Undo, None).await;
    assert_eq!(names(&back), ["web-0:1+", "web-1:1+", "web-2:1+"]);
    assert_eq!(back.template, made.template);
    cloud
        .ops
        .order_rollout(P, made.id, &RolloutOrder { verb: RolloutVerb::Pause, percent: None })
        .await
        .unwrap();
    cloud.ops.roll_out_group(P, made.id, &order(None, false)).await.unwrap();
    let paused =
        cloud.ops.order_rollout(P, made.id, &RolloutOrder { verb: RolloutVerb::Pause, percent: None });
    assert_eq!(paused.await.unwrap().rollout.state, RolloutState::Paused);
    settle(&cloud, &hosts).await;
    assert_eq!(names(&cloud.ops.scaling_group(P, made.id).unwrap()), names(&back));
    assert_eq!(names(&go(RolloutVerb::Resume, None).await), ["web-0:3+", "web-1:3+", "web-2:3+"]);
}

#[tokio::test]
async fn who_is_rescued_or_locked_is_left_alone() {
    let (cloud, hosts, made) = grouped(json!({"count": 2})).await;
    let by = Origin::native(P);
    let last = made.members[1].instance;
    let order = async |order: ServerOrder| {
        cloud.ops.order_server(&by, last, order).await.unwrap();
        settle(&cloud, &hosts).await;
        cloud.ops.scaling_group(P, made.id).unwrap()
    };
    let rescued = order(ServerOrder::Rescue { image: None }).await;
    assert_eq!(names(&rescued), ["web-0:1+", "web-1:1-"]);
    assert_eq!(rescued.members[1].reason.as_deref(), Some("it is being rescued"));
    let endpoints = cloud.ops.endpoints(P, &EndpointQuery::Group(made.id), &[], None).unwrap();
    assert_eq!(endpoints.ready().count(), 1);
    assert_eq!(names(&order(ServerOrder::Unrescue).await), ["web-0:1+", "web-1:1+"]);

    order(ServerOrder::Lock { reason: None }).await;
    cloud.ops.scale_group(P, made.id, &GroupScale { to: 1 }).await.unwrap();
    settle(&cloud, &hosts).await;
    assert_eq!(names(&cloud.ops.scaling_group(P, made.id).unwrap()), ["web-1:1+"], "the other one went");
    let mut template = made.template.clone();
    template.memory_mib = 256;
    let update = GroupUpdate { template, percent: None, canary: false };
    cloud.ops.roll_out_group(P, made.id, &update).await.unwrap();
    settle(&cloud, &hosts).await;
    let stuck = cloud.ops.scaling_group(P, made.id).unwrap();
    assert_eq!((names(&stuck), stuck.state), (vec!["web-1:1+".into()], GroupState::Short));
    assert_eq!(stuck.trouble.unwrap().code, "locked");
    let revision = cloud.ops.world().read().revision();
    cloud.ops.step_groups().await.unwrap();
    assert_eq!(cloud.ops.world().read().revision(), revision, "told once");
    let over = order(ServerOrder::Unlock).await;
    assert_eq!((names(&over), over.state, over.trouble), (vec!["web-0:2+".into()], GroupState::Steady, None));
}

#[tokio::test]
async fn a_number_scales_it_and_a_dry_run_says_so_first() {
    let policy = json!({"metric": "queue", "target": 10, "min": 1, "max": 4, "cooldown_up_s": 0, "cooldown_down_s": 300});
    let (cloud, hosts, made) = grouped(json!({"count": 1, "autoscale": policy})).await;
    let explain = || cloud.ops.explain_scaling(P, made.id).unwrap();
    assert!(explain().why.contains("nobody has posted 'queue'"), "{:?}", explain());
    let post =
        |value| cloud.ops.post_metric(P, made.id, &MetricPost { name: "queue".into(), value }).unwrap();
    post(35.0);
    let told = explain();
    assert_eq!((told.count, told.desired, told.value), (1, 4, Some(35.0)), "{told:?}");
    assert_eq!(instances(&cloud), 1, "nothing is done by asking");
    settle(&cloud, &hosts).await;
    let now = cloud.ops.scaling_group(P, made.id).unwrap();
    assert_eq!((now.count, now.ready), (4, 4), "{now:?}");
    assert!(now.scaled.unwrap().contains("4 instead of 1"));
    post(5.0);
    settle(&cloud, &hosts).await;
    assert_eq!(cloud.ops.scaling_group(P, made.id).unwrap().count, 4, "{:?}", explain());
    assert!(explain().why.contains("cool-down"), "{:?}", explain());
    let policy = GroupChange {
        autoscale: Some(
            serde_json::from_value(
                json!({"metric": "cpu", "target": 50, "min": 1, "max": 4, "cooldown_down_s": 0}),
            )
            .unwrap(),
        ),
        ..GroupChange::default()
    };
    cloud.ops.change_scaling_group(P, made.id, &policy).await.unwrap();
    assert_eq!(cloud.ops.desired(hosts[0]).measured.len() + cloud.ops.desired(hosts[1]).measured.len(), 4);
    let view: Vec<(InstanceId, HostId)> =
        cloud.ops.world().read().instances.iter().map(|i| (i.id, i.host.unwrap())).collect();
    for (id, host) in &view {
        cloud.ops.take_figures(*host, &[InstanceFigures { id: *id, cpu: 25, memory: 9 }]);
    }
    let revision = cloud.ops.world().read().revision();
    let told = explain();
    assert_eq!((told.desired, told.figures.len(), told.value), (2, 4, Some(25.0)), "{told:?}");
    assert_eq!(cloud.ops.world().read().revision(), revision, "figures are nobody's record");
    settle(&cloud, &hosts).await;
    assert_eq!(
        cloud.ops.scaling_group(P, made.id).unwrap().ready,
        1,
        "and on, as long as each has so little to do"
    );
    assert!(cloud.ops.scale_group(P, made.id, &GroupScale { to: 9 }).await.is_err(), "out of its bounds");
}

#[tokio::test]
async fn endpoints_are_followed() {
    let (cloud, hosts, made) = grouped(json!({"count": 2})).await;
    let of = EndpointQuery::Group(made.id);
    let seen = cloud.ops.endpoints(P, &of, &[], None).unwrap();
    assert_eq!(seen.ready().count(), 2);
    assert_eq!(seen.lines().lines().count(), 2);
    assert!(seen.lines().contains(":80 web-0"), "{}", seen.lines());
    let same = cloud
        .ops
        .follow_endpoints(P, &of, (&[], None), &seen.version, Duration::from_millis(20))
        .await
        .unwrap();
    assert_eq!(same, seen);
    let follow = cloud.ops.follow_endpoints(P, &of, (&[], None), &seen.version, Duration::from_secs(20));
    let change = async {
        cloud.ops.stop_instance(P, made.members[0].instance).await.unwrap();
    };
    let (after, ()) = tokio::join!(follow, change);
    let after = after.unwrap();
    assert_eq!((after.endpoints.len(), after.ready().count()), (2, 1));
    assert_eq!(after.endpoints[0].reason.as_deref(), Some("it was stopped"));
    let one = EndpointQuery::Instance(made.members[1].instance);
    assert_eq!(cloud.ops.endpoints(P, &one, &[8080], Some("net")).unwrap().endpoints[0].ports, [8080]);
    let label = EndpointQuery::Label("tier".into(), "front".into());
    assert_eq!(cloud.ops.endpoints(P, &label, &[], None).unwrap().endpoints.len(), 2);
    let other = EndpointQuery::Label("tier".into(), "back".into());
    assert!(cloud.ops.endpoints(P, &other, &[], None).unwrap().endpoints.is_empty());
    cloud.down(hosts[0]).await;
    let lost = cloud.ops.endpoints(P, &of, &[], None).unwrap();
    assert!(lost.ready().count() <= 1);
}

/// Sets whose image alone differs become what is ordered where they are; one that is called back calls the rollout back.
#[tokio::test]
async fn sets_are_updated_where_they_are() {
    let template = |image: &str| {
        json!({"name": "web-{index}", "vcpus": 1, "memory_mib": 128, "networks": [{"network": "net"}],
            "bodies": [{"set": {"members": [{"index": 0, "name": "only", "image": image, "update": {"min_ready_s": 0}}]}}]})
    };
    let (cloud, hosts, made) = grouped(json!({"template": template("busybox")})).await;
    cloud.image("v2", ImageFormat::DockerArchive).await;
    let work = async |rounds: usize| {
        for _ in 0..rounds {
            cloud.ops.step_groups().await.unwrap();
            cloud.ops.step_rollouts().await.unwrap();
            for host in hosts {
                super::rollouts::says(&cloud, host, |_| ()).await;
            }
        }
    };
    let ids = |group: &Group| group.members.iter().map(|m| m.instance).collect::<Vec<_>>();
    let order = |image: &str, canary: bool| GroupUpdate {
        template: serde_json::from_value(template(image)).unwrap(),
        percent: None,
        canary,
    };
    work(1).await;
    cloud.ops.roll_out_group(P, made.id, &order("v2", true)).await.unwrap();
    cloud.ops.step_groups().await.unwrap();
    let now = cloud.ops.scaling_group(P, made.id).unwrap();
    assert_eq!(names(&now), ["web-0:1+", "web-1:1+", "web-2:2-"], "{now:?}");
    assert_eq!(now.members[2].reason.as_deref(), Some("it is being updated"));
    let known = cloud.ops.endpoints(P, &EndpointQuery::Group(made.id), &[], None).unwrap();
    assert_eq!(known.ready().count(), 2, "out of the endpoints meanwhile");
    work(20).await;
    let now = cloud.ops.scaling_group(P, made.id).unwrap();
    assert_eq!((names(&now)[2].as_str(), now.rollout.state), ("web-2:2+", RolloutState::Waiting), "{now:?}");
    let promote = RolloutOrder { verb: RolloutVerb::Promote, percent: None };
    cloud.ops.order_rollout(P, made.id, &promote).await.unwrap();
    work(40).await;
    let now = cloud.ops.scaling_group(P, made.id).unwrap();
    assert_eq!(names(&now), ["web-0:2+", "web-1:2+", "web-2:2+"], "{now:?}");
    assert_eq!(
        (now.rollout.state, now.state, ids(&now)),
        (RolloutState::Done, GroupState::Steady, ids(&made))
    );
    let history = cloud.ops.revisions(P, now.members[0].instance).unwrap();
    assert_eq!((history[0].what.as_str(), history[0].reason.as_deref()), ("only: image", Some("group shop")));

    cloud.ops.roll_out_group(P, made.id, &order("busybox", false)).await.unwrap();
    cloud.ops.step_groups().await.unwrap();
    let held = cloud.ops.scaling_group(P, made.id).unwrap().members[2].instance;
    cloud.ops.undo_rollout(&Origin::native(P), held, Default::default()).await.unwrap();
    work(40).await;
    let now = cloud.ops.scaling_group(P, made.id).unwrap();
    assert_eq!(
        (names(&now), ids(&now)),
        (vec!["web-0:2+".into(), "web-1:2+".into(), "web-2:2+".into()], ids(&made))
    );
    assert!(now.rollout.reason.as_deref().unwrap_or_default().contains("called off"), "{:?}", now.rollout);
}
