use super::*;
use crate::model::instance::tests::{fault, observed, sample};
use crate::ops::tests::{Cloud, P};
use amphi_api::ErrorCode;
use amphi_api::instance::{GuestAgent, MemberStatus};
use amphi_api::wire::BodyState;
use serde_json::json;

fn member(running: bool, restarts: u32) -> MemberStatus {
    serde_json::from_value(json!({"name": "web", "index": 0, "running": running, "restarts": restarts}))
        .unwrap()
}

/// Rows: what the host said before and now, and what that tells.
#[test]
fn what_a_host_says_of_a_body_becomes_events() {
    use EventKind as K;
    let base = sample();
    let row = |state, members: Vec<MemberStatus>| {
        let seen = InstanceObserved { members, ..observed(base.epoch, state) };
        InstanceRecord { observed: Some(seen), ..base.clone() }
    };
    let with_fault = |mut row: InstanceRecord| {
        row.observed.as_mut().unwrap().fault = Some(fault());
        row
    };
    let ready = |ready| MemberStatus { ready: Some(ready), ..member(true, 0) };
    let guest = |answers: Option<bool>| {
        let mut row = row(BodyState::Running, vec![]);
        row.observed.as_mut().unwrap().agent =
            answers.map(|answers| GuestAgent { answers, ..GuestAgent::default() });
        row
    };
    let killed = MemberStatus { out_of_memory: true, exit_code: Some(137), ..member(true, 1) };
    let (starting, running) = (BodyState::Starting, BodyState::Running);
    for (before, now, kinds) in [
        (row(starting, vec![]), row(running, vec![]), vec![K::State]),
        (row(running, vec![]), row(running, vec![]), vec![]),
        (row(running, vec![]), with_fault(row(running, vec![])), vec![K::Fault]),
        (with_fault(row(running, vec![])), with_fault(row(running, vec![])), vec![]),
        (with_fault(row(running, vec![])), row(running, vec![]), vec![K::FaultOver]),
        (row(running, vec![]), row(running, vec![member(true, 0)]), vec![K::MemberStarted]),
        (row(running, vec![member(true, 0)]), row(running, vec![member(false, 0)]), vec![K::MemberEnded]),
        (row(running, vec![member(true, 0)]), row(running, vec![member(true, 1)]), vec![K::MemberRestarted]),
        (
            row(running, vec![member(true, 0)]),
            row(running, vec![killed.clone()]),
            vec![K::OutOfMemory, K::MemberRestarted],
        ),
        (row(running, vec![killed.clone()]), row(running, vec![killed]), vec![]),
        (row(running, vec![ready(false)]), row(running, vec![ready(true)]), vec![K::Ready]),
        (row(running, vec![ready(true)]), row(running, vec![ready(false)]), vec![K::NotReady]),
        (guest(None), guest(Some(false)), vec![]),
        (guest(Some(false)), guest(Some(true)), vec![K::GuestAgent]),
        (guest(Some(true)), guest(Some(true)), vec![]),
        (guest(Some(true)), guest(Some(false)), vec![K::GuestAgent]),
    ] {
        let told = told::instance(Some(&before), Some(&now), &|id: HostId| id.to_string());
        let found: Vec<_> = told.iter().map(|told| told.kind).collect();
        assert_eq!(found, kinds, "{told:?}");
    }
    let placed = InstanceRecord { host: Some(HostId::new()), ..base.clone() };
    let unplaced = InstanceRecord { host: None, ..base.clone() };
    let told = told::instance(Some(&unplaced), Some(&placed), &|_: HostId| "h7".to_owned());
    assert!(told.iter().any(|t| t.kind == K::Placed && t.message.contains("h7")), "{told:?}");
}

#[test]
fn cursors_have_an_order_and_a_form() {
    let cursor = |text: &str| text.parse::<Cursor>();
    assert_eq!(cursor("12.3").unwrap().to_string(), "12.3");
    assert!(cursor("9.9").unwrap() < cursor("10.1").unwrap());
    for bad in ["", "x", "1", "1.x", "-1.0"] {
        assert_eq!(cursor(bad).unwrap_err().code(), ErrorCode::InvalidField, "{bad}");
    }
}

#[tokio::test]
async fn a_follower_misses_nothing_and_is_told_what_is_lost() {
    let (cloud, h1, _) = Cloud::furnished().await;
    let admin = Caller::operator();
    let cloud = &cloud;
    let ask = async |after: &str, kinds: Vec<EventKind>, limit| {
        let query = FeedQuery { after: Some(after.into()), kinds, limit, ..FeedQuery::default() };
        cloud.ops.events(&admin, &query).await.unwrap()
    };
    let start = ask("now", vec![], None).await;
    assert!(start.events.is_empty() && !start.lost);
    let made = cloud.create(json!({"host": "h1"})).await.unwrap();
    cloud.obey(h1).await;
    let all = ask(&start.next, vec![], None).await;
    let kinds: Vec<_> = all.events.iter().map(|e| e.kind).collect();
    for kind in [EventKind::Ordered, EventKind::Created, EventKind::State, EventKind::Concluded] {
        assert!(kinds.contains(&kind), "{kind:?} in {:?}", all.events);
    }
    assert!(all.events.windows(2).all(|pair| pair[0].at <= pair[1].at));
    // The same, one at a time.
    let (mut cursor, mut single) = (start.next.clone(), Vec::new());
    loop {
        let page = ask(&cursor, vec![], Some(1)).await;
        if page.events.is_empty() {
            break;
        }
        single.extend(page.events);
        cursor = page.next;
    }
    assert_eq!(single, all.events);
    let only = ask(&start.next, vec![EventKind::Created], None).await;
    assert_eq!((only.events.len(), only.events[0].instance), (1, Some(made.id)));
    assert_eq!(only.next, all.next, "what was passed over is not looked at again");
    // Another project sees none of it, and no host.
    let other =
        Caller { project: Some(ProjectId::new()), roles: ["reader".to_owned()].into(), ..admin.clone() };
    let query = FeedQuery { after: Some(start.next.clone()), ..FeedQuery::default() };
    assert!(cloud.ops.events(&other, &query).await.unwrap().events.is_empty());
    assert!(P == admin.project.unwrap());
    // A waiting one is woken.
    let query = FeedQuery { after: Some(all.next.clone()), wait: 20, ..FeedQuery::default() };
    let (woken, ordered) =
        tokio::join!(cloud.ops.events(&admin, &query), cloud.ops.stop_instance(P, made.id));
    ordered.unwrap();
    assert!(woken.unwrap().events.iter().any(|e| e.kind == EventKind::Ordered && e.message == "stop"));
    // A controller that has just started has the orders, and says that the rest is gone.
    let late = cloud.another().await;
    let query = FeedQuery { after: Some(start.next.clone()), ..FeedQuery::default() };
    let page = late.ops.events(&admin, &query).await.unwrap();
    assert!(page.lost, "{page:?}");
    assert!(page.events.iter().any(|e| e.message == "create is done"), "{page:?}");
    let query = FeedQuery { after: Some(page.next), ..FeedQuery::default() };
    let page = late.ops.events(&admin, &query).await.unwrap();
    assert!(page.events.is_empty() && !page.lost, "{page:?}");
}

#[test]
fn what_is_kept_has_a_bound() {
    let view = View::default();
    let mut feed = Feed::default();
    let told = told::instance(None, Some(&sample()), &|_: HostId| String::new()).remove(0);
    for revision in 1..=(KEPT as u64 + 5) {
        let cursor = Cursor { revision, place: 1 };
        feed.kept.push_back(Kept { cursor, at: Timestamp::UNIX_EPOCH, told: told.clone() });
    }
    let nothing = Before::of(&view, &Change { revision: 0, events: Vec::new() });
    feed.take(&nothing, &view, Timestamp::UNIX_EPOCH);
    assert_eq!((feed.kept.len(), feed.floor), (KEPT, 5));
    let wanted = |after| Wanted {
        after: Some(Cursor { revision: after, place: 1 }),
        since: None,
        instance: None,
        host: None,
        kinds: Vec::new(),
        limit: 10,
        project: told.project.unwrap(),
        hosts: true,
    };
    assert!(feed.page(&wanted(4)).lost && !feed.page(&wanted(5)).lost);
}
