use super::*;
use crate::model::VmState;
use crate::ops::servers::{Origin, RebuildWish, ServerOrder};
use amphi_api::ErrorCode;
use amphi_api::instance::{BodyKind, ExchangeCreate, InstanceState, MemberStatus};
use amphi_api::rollout::{
    MemberPhase, REVISIONS_KEPT, RevisionResult, Rollout, RolloutPhase, RolloutUndo, SetUpdate,
};
use amphi_api::wire::BodyDesired;
use std::collections::BTreeMap;

fn origin() -> Origin {
    Origin::native(P)
}

fn update(value: serde_json::Value) -> SetUpdate {
    serde_json::from_value(value).unwrap()
}

fn image(member: &str, image: &str) -> SetUpdate {
    update(json!({"members": {member: {"image": image}}}))
}

/// A set of `web` and `db` that runs on the first host, and an image `v2`.
async fn running() -> (Cloud, HostId, Instance) {
    let (cloud, h1, _) = Cloud::furnished().await;
    cloud.image("v2", ImageFormat::DockerArchive).await;
    let member = |index: u32, name: &str| json!({"index": index, "name": name, "image": "busybox", "update": {"min_ready_s": 0}});
    let both = json!([{"set": {"members": [member(1, "web"), member(2, "db")]}}, {"vm": {"image": "vm"}}]);
    let made = cloud.create(json!({"host": "h1", "bodies": both})).await.unwrap();
    says(&cloud, h1, |_| ()).await;
    let made = cloud.show(&made);
    assert_eq!(made.state, InstanceState::Running);
    (cloud, h1, made)
}

/// The host says that members are as ordered, but for what the test changes.
pub(super) async fn says(cloud: &Cloud, host: HostId, change: impl Fn(&mut MemberStatus)) {
    let desired = cloud.ops.desired(host);
    let mut status = cloud.obedient(host);
    for (said, wanted) in status.instances.iter_mut().zip(&desired.instances) {
        let BodyDesired::Set { set, .. } = &wanted.body else { continue };
        let member = |m: &amphi_api::set::MemberSpec| {
            let mut seen =
                MemberStatus { name: m.name.clone(), index: m.index, running: true, ..Default::default() };
            seen.generation = wanted.generation_of(&m.name);
            change(&mut seen);
            seen
        };
        said.members = set.members.iter().map(member).collect();
    }
    cloud.ops.status(host, status).await.unwrap();
}

/// The task looks often enough for all that can follow.
async fn settle(cloud: &Cloud) {
    for _ in 0..8 {
        cloud.ops.step_rollouts().await.unwrap();
    }
}

fn rollout(cloud: &Cloud, instance: &Instance) -> Rollout {
    cloud.ops.rollout(P, instance.id).unwrap()
}

/// The members' generations and images as the host is told them.
fn told(cloud: &Cloud, host: HostId) -> Vec<(String, u64, String)> {
    let desired = cloud.ops.desired(host);
    let wanted = &desired.instances[0];
    let BodyDesired::Set { set, images } = &wanted.body else { panic!("no set") };
    let all = set.members.iter().zip(images);
    all.map(|(m, image)| (m.name.clone(), wanted.generation_of(&m.name), image.name.clone())).collect()
}

fn is(name: &str, generation: u64, image: &str) -> (String, u64, String) {
    (name.into(), generation, image.into())
}

#[tokio::test]
async fn only_the_member_that_differs_is_ordered_anew() {
    let (mut cloud, h1, made) = running().await;
    let at_first = rollout(&cloud, &made);
    assert_eq!((at_first.present, at_first.phase), (1, RolloutPhase::Done));
    let stale = SetUpdate { revision: Some(7), ..image("web", "v2") };
    let refused = cloud.ops.update_set(&origin(), made.id, &stale).await.unwrap_err();
    assert!(matches!(&refused, OpsError::Conflict { field: Some(f), .. } if f == "revision"), "{refused:?}");
    let order = SetUpdate { revision: Some(1), reason: Some("ticket 7".into()), ..image("web", "v2") };
    let begun = cloud.ops.update_set(&origin(), made.id, &order).await.unwrap();
    assert_eq!((begun.revision, begun.from, begun.phase), (2, 1, RolloutPhase::Updating));
    assert_eq!(begun.members.len(), 1);
    assert_eq!(told(&cloud, h1), [is("web", 0, "busybox"), is("db", 0, "busybox")], "not before its turn");
    settle(&cloud).await;
    assert_eq!(told(&cloud, h1), [is("web", 2, "v2"), is("db", 0, "busybox")]);
    let kept = |cloud: &Cloud| cloud.ops.desired(h1).instances[0].members["web"].former;
    assert_eq!(kept(&cloud), Some(0), "the former container is kept for a way back");
    let epoch = cloud.show(&made).epoch;
    // Whoever comes after a controller that died finds the same step.
    cloud = cloud.another().await;
    says(&cloud, h1, |m| m.gap_ms = (m.name == "web").then_some(310)).await;
    settle(&cloud).await;
    let done = rollout(&cloud, &made);
    assert_eq!((done.phase, done.present, done.fault.clone()), (RolloutPhase::Done, 2, None));
    assert_eq!((done.members[0].phase, done.members[0].gap_ms), (MemberPhase::Done, Some(310)));
    assert_eq!((kept(&cloud), cloud.show(&made).epoch), (None, epoch));
    let history = cloud.ops.revisions(P, made.id).unwrap();
    let line = |r: &amphi_api::rollout::Revision| (r.number, r.present, r.what.clone(), r.result);
    let wanted = [
        (2, true, "web: image".to_owned(), RevisionResult::Done),
        (1, false, "as it was before".to_owned(), RevisionResult::Done),
    ];
    assert_eq!(history.iter().map(line).collect::<Vec<_>>(), wanted);
    assert_eq!(history[0].reason.as_deref(), Some("ticket 7"));
    let shown = cloud.ops.revision(P, made.id, 2).unwrap().set.unwrap();
    assert_eq!(shown.members[0].image, "v2");
    // Once more the same: nothing happens.
    let same = cloud.ops.update_set(&origin(), made.id, &image("web", "v2")).await.unwrap();
    assert_eq!((same.revision, same.phase), (2, RolloutPhase::Done));

    let back = cloud.ops.undo_rollout(&origin(), made.id, RolloutUndo::default()).await.unwrap();
    assert_eq!((back.revision, back.from), (3, 2));
    settle(&cloud).await;
    assert_eq!(told(&cloud, h1), [is("web", 3, "busybox"), is("db", 0, "busybox")]);
    says(&cloud, h1, |_| ()).await;
    settle(&cloud).await;
    assert_eq!(rollout(&cloud, &made).present, 3);
    assert_eq!(cloud.ops.revisions(P, made.id).unwrap()[0].what, "back to 1");
    let nowhere = cloud.ops.undo_rollout(&origin(), made.id, RolloutUndo { to: Some(77) }).await.unwrap_err();
    assert!(matches!(&nowhere, OpsError::Field(e) if e.field == "to"), "{nowhere:?}");

    cloud.ops.delete_instance(P, made.id, VolumeFate::Keep).await.unwrap();
    cloud.obey(h1).await;
    settle(&cloud).await;
    let view = cloud.ops.world().read();
    assert_eq!((view.rollouts.len(), view.revisions.len()), (0, 0), "the history goes with the instance");
}

#[tokio::test]
async fn the_second_one_fails_and_both_come_back() {
    let (cloud, h1, made) = running().await;
    let both = update(json!({"members": {"web": {"image": "v2"}, "db": {"env": {"A": "1"}}}}));
    cloud.ops.update_set(&origin(), made.id, &both).await.unwrap();
    settle(&cloud).await;
    assert_eq!(told(&cloud, h1), [is("web", 2, "v2"), is("db", 0, "busybox")], "one after the other");
    says(&cloud, h1, |_| ()).await;
    settle(&cloud).await;
    assert_eq!(told(&cloud, h1), [is("web", 2, "v2"), is("db", 2, "busybox")]);
    says(&cloud, h1, |m| {
        if m.name == "db" {
            (m.running, m.exit_code) = (false, Some(3));
        }
    })
    .await;
    settle(&cloud).await;
    let back = rollout(&cloud, &made);
    assert_eq!((back.phase, back.present), (RolloutPhase::RollingBack, 1));
    assert_eq!(told(&cloud, h1), [is("web", 0, "busybox"), is("db", 0, "busybox")]);
    says(&cloud, h1, |_| ()).await;
    settle(&cloud).await;
    let failed = rollout(&cloud, &made);
    let fault = failed.fault.unwrap();
    assert_eq!(
        (failed.phase, failed.present, fault.code.as_str()),
        (RolloutPhase::Failed, 1, "member_failed")
    );
    assert_eq!(fault.message, "member db ended with exit code 3");
    let last = &cloud.ops.revisions(P, made.id).unwrap()[0];
    assert_eq!((last.number, last.result, last.present), (2, RevisionResult::Failed, false));
    assert_eq!(last.fault.as_deref(), Some("member db ended with exit code 3"));
    assert_eq!(cloud.show(&made).bodies, made.bodies);
    // The number is not given twice.
    let next = cloud.ops.update_set(&origin(), made.id, &image("web", "v2")).await.unwrap();
    assert_eq!((next.revision, next.from), (3, 1));
}

#[tokio::test]
async fn it_pauses_between_members_and_is_called_off() {
    let (cloud, h1, made) = running().await;
    let nothing = cloud.ops.pause_rollout(P, made.id, true).await.unwrap_err();
    assert_eq!(nothing.code(), ErrorCode::Conflict);
    let both = update(json!({"members": {"web": {"image": "v2"}, "db": {"image": "v2"}}}));
    cloud.ops.update_set(&origin(), made.id, &both).await.unwrap();
    settle(&cloud).await;
    assert!(cloud.ops.pause_rollout(P, made.id, true).await.unwrap().paused);
    says(&cloud, h1, |_| ()).await;
    settle(&cloud).await;
    let phases = |r: &Rollout| r.members.iter().map(|m| m.phase).collect::<Vec<_>>();
    assert_eq!(phases(&rollout(&cloud, &made)), [MemberPhase::Done, MemberPhase::Waiting]);
    assert!(!cloud.ops.pause_rollout(P, made.id, false).await.unwrap().paused);
    settle(&cloud).await;
    assert_eq!(phases(&rollout(&cloud, &made)), [MemberPhase::Done, MemberPhase::Preparing]);
    let off = cloud.ops.undo_rollout(&origin(), made.id, RolloutUndo::default()).await.unwrap();
    assert_eq!(off.phase, RolloutPhase::RollingBack);
    says(&cloud, h1, |_| ()).await;
    settle(&cloud).await;
    let ended = rollout(&cloud, &made);
    assert_eq!((ended.phase, ended.fault.unwrap().code.as_str()), (RolloutPhase::Failed, "cancelled"));
    assert_eq!(told(&cloud, h1), [is("web", 0, "busybox"), is("db", 0, "busybox")]);
}

#[tokio::test]
async fn nothing_else_happens_to_it_meanwhile() {
    let (cloud, h1, made) = running().await;
    cloud.ops.update_set(&origin(), made.id, &image("web", "v2")).await.unwrap();
    settle(&cloud).await;
    let exchange = ExchangeCreate { to: BodyKind::Vm, body: None };
    let to_other = serde_json::from_value(json!({"to": "h2", "reason": "x"})).unwrap();
    let larger = serde_json::from_value(json!({"memory_mib": 256})).unwrap();
    let limited = serde_json::from_value(json!({"members": {"db": {"pids": 40}}})).unwrap();
    for refused in [
        cloud.ops.create_exchange(P, made.id, &exchange).await.map(drop),
        cloud.ops.create_move(P, made.id, &to_other).await.map(drop),
        cloud.ops.stop_instance(P, made.id).await.map(drop),
        cloud.ops.restart_instance(P, made.id).await.map(drop),
        cloud.ops.restart_member(P, made.id, "db").await.map(drop),
        cloud.ops.resize_instance(P, made.id, &larger).await.map(drop),
        cloud.ops.resize_instance(P, made.id, &limited).await.map(drop),
        cloud.ops.update_set(&origin(), made.id, &image("db", "v2")).await.map(drop),
        cloud.ops.undo_rollout(&origin(), made.id, RolloutUndo { to: Some(9) }).await.map(drop),
    ] {
        let refused = refused.unwrap_err();
        assert_eq!(refused.code(), ErrorCode::Conflict);
        assert!(refused.to_string().contains("update to revision 2"), "{refused}");
    }
    for name in ["busybox", "v2"] {
        let named = ListQuery { name: Some(name.into()), ..Default::default() };
        let id = cloud.ops.images(P, &named).unwrap()[0].id;
        assert_eq!(cloud.ops.delete_image(P, id).await.unwrap_err().code(), ErrorCode::Conflict, "{name}");
    }
    // Its host is lost: it begins anew elsewhere, as it was.
    cloud.down(h1).await;
    assert_eq!(cloud.ops.evacuate(h1).await.unwrap().moved.len(), 1);
    settle(&cloud).await;
    let ended = rollout(&cloud, &made);
    assert_eq!((ended.phase, ended.fault.unwrap().code.as_str()), (RolloutPhase::Failed, "host_lost"));
    let there = cloud.show(&made).host.unwrap();
    assert_eq!(told(&cloud, there), [is("web", 0, "busybox"), is("db", 0, "busybox")]);
    says(&cloud, there, |_| ()).await;
    assert_eq!(cloud.show(&made).state, InstanceState::Running);
    assert!(cloud.ops.restart_member(P, made.id, "cache").await.is_err());
    cloud.ops.restart_member(P, made.id, "db").await.unwrap();
    assert_eq!(cloud.ops.desired(there).instances[0].members["db"].restarts, 1);
}

#[tokio::test]
async fn an_error_frees_nobody_from_the_update() {
    let (cloud, h1, made) = running().await;
    cloud.ops.update_set(&origin(), made.id, &image("web", "v2")).await.unwrap();
    settle(&cloud).await;
    let mut status = cloud.obedient(h1);
    let since = Timestamp::UNIX_EPOCH;
    status.instances[0].fault = Some(Fault { code: "member_down".into(), message: "no".into(), since });
    cloud.ops.status(h1, status).await.unwrap();
    {
        let view = cloud.ops.world().read();
        let row = view.instances.get(made.id).unwrap();
        let state = crate::ops::servers::state(&view, row, Timestamp::now());
        assert_eq!((state.vm, state.task), (VmState::Error, None), "OpenStack's clients see no task");
    }
    let before = cloud.ops.world().read().revision();
    let by = origin();
    let order = |order| cloud.ops.order_server(&by, made.id, order);
    for refused in [
        cloud.ops.rebuild_server(&by, made.id, &RebuildWish::default()).await,
        order(ServerOrder::Stop).await,
        order(ServerOrder::Reboot { hard: true }).await,
        order(ServerOrder::Rescue { image: None }).await,
    ] {
        let refused = refused.unwrap_err();
        assert_eq!(refused.code(), ErrorCode::Conflict);
        assert!(refused.to_string().contains("update to revision 2"), "{refused}");
    }
    assert_eq!(cloud.ops.world().read().revision(), before, "a refusal changes nothing");
}

#[tokio::test]
async fn an_undo_after_a_resize_undoes_the_update() {
    let (cloud, h1, made) = running().await;
    cloud.ops.update_set(&origin(), made.id, &image("web", "v2")).await.unwrap();
    settle(&cloud).await;
    says(&cloud, h1, |_| ()).await;
    settle(&cloud).await;
    let limited = serde_json::from_value(json!({"members": {"db": {"pids": 40}}})).unwrap();
    cloud.ops.resize_instance(P, made.id, &limited).await.unwrap();
    says(&cloud, h1, |_| ()).await;
    let now = rollout(&cloud, &made);
    assert_eq!((now.present, now.phase), (2, RolloutPhase::Done), "no description of its own");
    let pids = |number| {
        let set = cloud.ops.revision(P, made.id, number).unwrap().set.unwrap();
        set.members.iter().find(|m| m.name == "db").unwrap().options.pids
    };
    assert_eq!((pids(1), pids(2)), (None, Some(40)), "the present one is what is there");

    let back = cloud.ops.undo_rollout(&origin(), made.id, RolloutUndo::default()).await.unwrap();
    assert_eq!((back.revision, back.from), (3, 2));
    assert_eq!(cloud.ops.revisions(P, made.id).unwrap()[0].what, "back to 1");
    settle(&cloud).await;
    assert_eq!(told(&cloud, h1)[0], is("web", 3, "busybox"));
}

#[tokio::test]
async fn nothing_comes_back_that_does_not_fit() {
    let (cloud, h1, _) = Cloud::furnished().await;
    let set = |options: serde_json::Value| {
        let web = json!({"index": 1, "name": "web", "image": "busybox", "options": options});
        json!({"members": [web]})
    };
    let large = json!([{"set": set(json!({"heap_mib": 200}))}]);
    let made = cloud.create(json!({"host": "h1", "memory_mib": 512, "bodies": large})).await.unwrap();
    cloud.obey(h1).await;
    cloud.ops.stop_instance(P, made.id).await.unwrap();
    cloud.obey(h1).await;
    let lean = update(json!({"set": set(json!({}))}));
    assert_eq!(cloud.ops.update_set(&origin(), made.id, &lean).await.unwrap().present, 2);
    let smaller = serde_json::from_value(json!({"memory_mib": 128})).unwrap();
    cloud.ops.resize_instance(P, made.id, &smaller).await.unwrap();
    for to in [None, Some(1)] {
        let refused = cloud.ops.undo_rollout(&origin(), made.id, RolloutUndo { to }).await.unwrap_err();
        assert_eq!(refused.code(), ErrorCode::Conflict);
        let told = refused.to_string();
        assert!(told.contains("revision 1 does not fit") && told.contains("has 128 MiB"), "{told}");
    }
    let larger = serde_json::from_value(json!({"memory_mib": 512})).unwrap();
    cloud.ops.resize_instance(P, made.id, &larger).await.unwrap();
    let back = cloud.ops.undo_rollout(&origin(), made.id, RolloutUndo::default()).await.unwrap();
    assert_eq!((back.present, back.phase), (3, RolloutPhase::Done));
}

#[tokio::test]
async fn what_does_not_run_is_described_anew_at_once() {
    let (cloud, h1, made) = running().await;
    cloud.ops.stop_instance(P, made.id).await.unwrap();
    cloud.obey(h1).await;
    let done = cloud.ops.update_set(&origin(), made.id, &image("web", "v2")).await.unwrap();
    assert_eq!((done.phase, done.present), (RolloutPhase::Done, 2));
    assert_eq!(told(&cloud, h1), [is("web", 2, "v2"), is("db", 0, "busybox")]);
    let quiet = update(json!({"set": {"members": [
        {"index": 1, "name": "web", "image": "v2", "update": {"overlap": true}}, {"index": 2, "name": "db", "image": "busybox"}]}}));
    let done = cloud.ops.update_set(&origin(), made.id, &quiet).await.unwrap();
    assert_eq!(
        (done.phase, done.members.len()),
        (RolloutPhase::Done, 0),
        "no container shows how it gives way"
    );
    assert_eq!(told(&cloud, h1), [is("web", 2, "v2"), is("db", 0, "busybox")]);
}

#[tokio::test]
async fn so_many_revisions_are_kept() {
    let (cloud, h1, made) = running().await;
    for round in 0..REVISIONS_KEPT + 3 {
        let next = update(json!({"members": {"web": {"env": {"ROUND": round.to_string()}}}}));
        cloud.ops.update_set(&origin(), made.id, &next).await.unwrap();
        settle(&cloud).await;
        says(&cloud, h1, |_| ()).await;
        settle(&cloud).await;
    }
    let numbers: BTreeMap<u64, bool> =
        cloud.ops.revisions(P, made.id).unwrap().iter().map(|r| (r.number, r.present)).collect();
    assert_eq!(numbers.len(), REVISIONS_KEPT, "{numbers:?}");
    let newest = REVISIONS_KEPT as u64 + 4;
    assert_eq!(numbers.last_key_value(), Some((&newest, &true)));
}

/// The set as the instance's VM would run it: members' images, of its description and of the body.
fn as_vm(cloud: &Cloud, of: &Instance) -> (Vec<String>, Vec<String>) {
    let view = cloud.ops.world().read();
    let row = view.instances.get(of.id).unwrap();
    let body = row.body_of(BodyKind::Vm).unwrap();
    let (set, _) = body.spec.set().unwrap();
    let name = |id: &ImageId| view.images.get(*id).unwrap().name.clone();
    (set.members.iter().map(|m| m.image.clone()).collect(), body.images.iter().map(name).collect())
}

#[tokio::test]
async fn an_update_reaches_the_set_that_is_listed_as_a_vm_too() {
    let (cloud, h1, h2) = Cloud::furnished().await;
    cloud.image("v2", ImageFormat::DockerArchive).await;
    let member = |index: u32, name: &str| json!({"index": index, "name": name, "image": "busybox", "update": {"min_ready_s": 0}});
    let set = json!({"members": [member(1, "web"), member(2, "db")]});
    let both = json!([{"set": set}, {"vm": {"set": set}}]);
    let made = cloud.create(json!({"host": "h1", "memory_mib": 256, "bodies": both})).await.unwrap();
    says(&cloud, h1, |_| ()).await;
    cloud.ops.update_set(&origin(), made.id, &image("web", "v2")).await.unwrap();
    settle(&cloud).await;
    says(&cloud, h1, |_| ()).await;
    settle(&cloud).await;
    assert_eq!(rollout(&cloud, &made).phase, RolloutPhase::Done);
    let both = |web: &str| {
        let names = vec![web.to_owned(), "busybox".to_owned()];
        (names.clone(), names)
    };
    assert_eq!(as_vm(&cloud, &made), both("v2"));
    // Other limits of a member are in both, too.
    let resize = serde_json::from_value(json!({"members": {"db": {"pids": 64}}})).unwrap();
    cloud.ops.resize_instance(P, made.id, &resize).await.unwrap();
    let pids = |kind| {
        let view = cloud.ops.world().read();
        let (set, _) = view.instances.get(made.id).unwrap().body_of(kind).unwrap().spec.set().unwrap();
        set.members[1].options.pids
    };
    assert_eq!((pids(BodyKind::Set), pids(BodyKind::Vm)), (Some(64), Some(64)));

    // Its host is lost, and the other one runs no containers: the VM is of the newest description.
    let mut only_vms = spec("h2");
    let docker = only_vms.engines.iter_mut().find(|e| e.name == EngineName::Docker).unwrap();
    docker.trouble = Some("no answer".into());
    cloud.ops.hello(h2, &only_vms).await.unwrap();
    cloud.down(h1).await;
    assert_eq!(cloud.ops.evacuate(h1).await.unwrap().moved.len(), 1);
    let desired = cloud.ops.desired(h2);
    let BodyDesired::SetVm { set, images } = &desired.instances[0].body else { panic!("{desired:?}") };
    assert_eq!((set.members[0].image.as_str(), images[0].name.as_str()), ("v2", "v2"));

    // An update while it is the VM is there for both as well; back, too.
    cloud.obey(h2).await;
    cloud.ops.update_set(&origin(), made.id, &image("db", "v2")).await.unwrap();
    let twice = (vec!["v2".to_owned(); 2], vec!["v2".to_owned(); 2]);
    assert_eq!(as_vm(&cloud, &made), twice);
    cloud.ops.undo_rollout(&origin(), made.id, RolloutUndo::default()).await.unwrap();
    assert_eq!(as_vm(&cloud, &made), both("v2"));
}
