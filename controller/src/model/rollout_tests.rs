use super::super::instance::tests::{observed, sample};
use super::*;
use MemberPhase as M;
use RolloutPhase as P;
use amphi_api::instance::ComingMember;
use serde_json::json;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_000_000 + second).unwrap()
}

fn rollout(phase: P, phases: [M; 2]) -> RolloutRecord {
    let member = |(at_index, name, phase): (u32, &str, M)| MemberRollout {
        name: name.into(),
        index: at_index,
        phase,
        since: at(0),
        started_at: matches!(phase, M::Starting | M::Ready).then(|| at(0)),
        gap_ms: None,
    };
    RolloutRecord {
        instance: InstanceId::new(),
        revision: 5,
        from: 4,
        epoch: 2,
        phase,
        phase_since: at(0),
        paused: false,
        members: [(1, "web", phases[0]), (2, "db", phases[1])].map(member).to_vec(),
        generations: BTreeMap::from([("db".into(), 3)]),
        fault: None,
        started_at: at(0),
        ended_at: None,
    }
}

/// `web` has a readiness probe, 30 s and nothing to hold; `db` has none, and 10 s to hold.
fn target() -> SetSpec {
    serde_json::from_value(json!({"members": [
        {"index": 1, "name": "web", "image": "a", "probes": {"readiness": {"tcp": {"port": 80}}}, "update": {"deadline_s": 30}},
        {"index": 2, "name": "db", "image": "b", "update": {"min_ready_s": 10}}]}))
    .unwrap()
}

fn member(name: &str, generation: u64) -> MemberStatus {
    MemberStatus { name: name.into(), generation, running: true, ..MemberStatus::default() }
}

fn coming(generation: u64) -> ComingMember {
    ComingMember { generation, running: true, ..ComingMember::default() }
}

/// What becomes of it after so many seconds, with members seen so.
fn step(
    rollout: &RolloutRecord,
    seconds: i64,
    members: Vec<MemberStatus>,
    change: impl Fn(&mut InstanceRecord),
) -> RolloutStep {
    let mut instance = InstanceRecord { updated_at: at(0), ..sample() };
    instance.rolling = Some(Rolling { revision: 5, former: BTreeMap::new() });
    instance.observed = Some(InstanceObserved { members, ..observed(2, BodyState::Running) });
    change(&mut instance);
    rollout_step(RolloutSight {
        rollout,
        instance: &instance,
        target: &target(),
        host_up_since: Some(at(-100)),
        now: at(seconds),
    })
}

fn says(step: &RolloutStep) -> String {
    match step {
        RolloutStep::Wait => "wait".into(),
        RolloutStep::Begin(at) => format!("begin {at}"),
        RolloutStep::Enter { at, phase, gap_ms } => match gap_ms {
            Some(gap) => format!("{at} is {phase:?}, {gap} ms"),
            None => format!("{at} is {phase:?}"),
        },
        RolloutStep::Done => "done".into(),
        RolloutStep::RollBack(fault) => format!("back, {}: {}", fault.code, fault.message),
        RolloutStep::Fail => "fail".into(),
        RolloutStep::Leave(fault) => format!("leave, {}", fault.code),
    }
}

#[test]
fn members_take_turns_and_have_to_be_ready() {
    let old = || vec![member("web", 0), member("db", 3)];
    let web = |change: fn(&mut MemberStatus)| {
        let mut web = member("web", 5);
        change(&mut web);
        vec![web, member("db", 3)]
    };
    let db = |change: fn(&mut MemberStatus)| {
        let mut db = member("db", 5);
        change(&mut db);
        vec![member("web", 5), db]
    };
    let beside = |change: fn(&mut ComingMember)| {
        let mut next = coming(5);
        change(&mut next);
        vec![MemberStatus { coming: Some(next), ..member("web", 0) }, member("db", 3)]
    };
    let table: Vec<(&str, [M; 2], i64, Vec<MemberStatus>, &str)> = vec![
        ("the first", [M::Waiting, M::Waiting], 0, old(), "begin 0"),
        ("nothing is seen yet", [M::Preparing, M::Waiting], 599, old(), "wait"),
        (
            "it is never made",
            [M::Preparing, M::Waiting],
            600,
            old(),
            "back, engine_timeout: member web was not made within 600 s",
        ),
        (
            "started, not ready",
            [M::Preparing, M::Waiting],
            1,
            web(|m| m.ready = Some(false)),
            "0 is Starting",
        ),
        ("not ready yet", [M::Starting, M::Waiting], 29, web(|m| m.ready = Some(false)), "wait"),
        (
            "never ready",
            [M::Starting, M::Waiting],
            30,
            web(|m| (m.ready, m.reason) = (Some(false), Some("its readiness probe fails: refused".into()))),
            "back, not_ready: member web was not ready within 30 s: its readiness probe fails: refused",
        ),
        (
            "ready",
            [M::Starting, M::Waiting],
            1,
            web(|m| (m.ready, m.gap_ms) = (Some(true), Some(300))),
            "0 is Done, 300 ms",
        ),
        ("ready at first sight", [M::Preparing, M::Waiting], 1, web(|m| m.ready = Some(true)), "0 is Done"),
        ("the next", [M::Done, M::Waiting], 1, web(|_| ()), "begin 1"),
        ("runs, without probes", [M::Done, M::Preparing], 1, db(|_| ()), "1 is Ready"),
        ("not long enough", [M::Done, M::Ready], 9, db(|_| ()), "wait"),
        ("long enough", [M::Done, M::Ready], 10, db(|_| ()), "1 is Done"),
        ("all", [M::Done, M::Done], 1, db(|_| ()), "done"),
        (
            "ends",
            [M::Done, M::Ready],
            3,
            db(|m| (m.running, m.exit_code) = (false, Some(3))),
            "back, member_failed: member db ended with exit code 3",
        ),
        (
            "started again already",
            [M::Done, M::Ready],
            3,
            db(|m| (m.restarts, m.exit_code, m.out_of_memory) = (1, Some(137), true)),
            "back, member_failed: member db ended with exit code 137, out of memory",
        ),
        (
            "a job that is done",
            [M::Done, M::Preparing],
            3,
            db(|m| (m.running, m.finished, m.exit_code) = (false, true, Some(0))),
            "1 is Ready",
        ),
        (
            "a job that failed for good",
            [M::Done, M::Preparing],
            3,
            db(|m| (m.running, m.finished, m.exit_code) = (false, true, Some(2))),
            "back, member_failed: member db ended with exit code 2",
        ),
        ("no longer ready", [M::Done, M::Ready], 3, db(|m| m.ready = Some(false)), "1 is Starting"),
        ("beside the old one", [M::Preparing, M::Waiting], 1, beside(|_| ()), "0 is Starting"),
        (
            "ready, and the old one still there",
            [M::Starting, M::Waiting],
            1,
            beside(|c| c.ready = Some(true)),
            "wait",
        ),
        (
            "beside the old one, too long",
            [M::Starting, M::Waiting],
            30,
            beside(|_| ()),
            "back, not_ready: member web was not ready within 30 s",
        ),
        (
            "ends beside the old one",
            [M::Starting, M::Waiting],
            1,
            beside(|c| (c.running, c.exit_code) = (false, Some(1))),
            "back, member_failed: member web ended with exit code 1",
        ),
        (
            "cannot be started",
            [M::Preparing, M::Waiting],
            1,
            beside(|c| (c.running, c.broken, c.reason) = (false, true, Some("no such file".into()))),
            "back, member_failed: member web cannot be started: no such file",
        ),
        (
            "another one is beside it",
            [M::Preparing, M::Waiting],
            1,
            beside(|c| (c.generation, c.broken) = (4, true)),
            "wait",
        ),
    ];
    for (what, phases, seconds, members, wanted) in table {
        let rollout = rollout(P::Updating, phases);
        assert_eq!(says(&step(&rollout, seconds, members.clone(), |_| ())), wanted, "{what}");
        let mut paused = rollout.clone();
        paused.paused = true;
        let wanted = if wanted.starts_with("begin") { "wait" } else { wanted };
        assert_eq!(says(&step(&paused, seconds, members, |_| ())), wanted, "{what}, paused");
    }
}

#[test]
fn a_body_that_is_down_is_no_members_fault() {
    use BodyState::{Absent, Running, Starting, Stopped};
    let db = |change: fn(&mut MemberStatus)| {
        let mut db = member("db", 5);
        (db.running, db.exit_code) = (false, Some(255));
        change(&mut db);
        vec![member("web", 5), db]
    };
    let beside = |change: fn(&mut ComingMember)| {
        let mut next = coming(5);
        (next.running, next.exit_code) = (false, Some(137));
        change(&mut next);
        vec![member("web", 5), MemberStatus { coming: Some(next), ..member("db", 3) }]
    };
    let (ended, ended_beside) = (|| db(|_| ()), || beside(|_| ()));
    let failed = "back, member_failed: member db ended with exit code 255";
    let failed_beside = "back, member_failed: member db ended with exit code 137";
    let late = "back, engine_timeout: member db was not back within 600 s";
    let table: Vec<(&str, BodyState, M, i64, Vec<MemberStatus>, &str)> = vec![
        ("the host starts", Stopped, M::Ready, 3, ended(), "1 is Preparing"),
        ("nothing is there", Absent, M::Ready, 3, ended(), "1 is Preparing"),
        ("it was not ready yet", Stopped, M::Starting, 3, ended(), "1 is Preparing"),
        ("still down", Stopped, M::Preparing, 599, ended(), "wait"),
        ("down for good", Stopped, M::Preparing, 600, ended(), late),
        ("others start first", Starting, M::Ready, 3, ended(), "1 is Preparing"),
        ("its turn is near", Starting, M::Preparing, 3, ended(), "1 is Starting"),
        ("not there yet", Starting, M::Starting, 1, ended(), "wait"),
        ("it runs again", Starting, M::Preparing, 3, db(|m| m.running = true), "1 is Ready"),
        ("it alone has ended", Running, M::Ready, 3, ended(), failed),
        ("it ends again and again", Starting, M::Ready, 3, db(|m| m.restarts = 1), failed),
        ("it ended for good", Starting, M::Ready, 3, db(|m| m.finished = true), failed),
        ("beside, the host starts", Stopped, M::Starting, 3, ended_beside(), "1 is Preparing"),
        ("beside, others start first", Starting, M::Starting, 1, ended_beside(), "wait"),
        ("beside, it alone has ended", Running, M::Starting, 1, ended_beside(), failed_beside),
        ("beside, again and again", Stopped, M::Starting, 1, beside(|c| c.restarts = 1), failed_beside),
        (
            "beside, it cannot be started",
            Stopped,
            M::Preparing,
            1,
            beside(|c| (c.broken, c.exit_code) = (true, None)),
            "back, member_failed: member db cannot be started",
        ),
    ];
    for (what, body, phase, seconds, members, wanted) in table {
        let rollout = rollout(P::Updating, [M::Done, phase]);
        let down = |i: &mut InstanceRecord| i.observed.as_mut().unwrap().state = body;
        assert_eq!(says(&step(&rollout, seconds, members, down)), wanted, "{what}");
    }
    let anew = rollout(P::Updating, [M::Done, M::Ready]).with(1, M::Preparing, None, at(5));
    assert_eq!(anew.members[1].started_at, None, "its deadline counts from its next start");
}

#[test]
fn what_keeps_a_member_from_being_made_has_to_last() {
    let rollout = rollout(P::Updating, [M::Preparing, M::Waiting]);
    let broken = |since: i64| {
        move |i: &mut InstanceRecord| {
            let fault =
                Fault { code: "image_broken".into(), message: "no manifest".into(), since: at(since) };
            i.observed.as_mut().unwrap().next_fault = Some(fault);
        }
    };
    let members = || vec![member("web", 0), member("db", 3)];
    assert_eq!(says(&step(&rollout, 19, members(), broken(0))), "wait");
    assert_eq!(says(&step(&rollout, 19, members(), broken(-500))), "wait", "what was before does not count");
    let back = "back, image_broken: member web cannot be made: no manifest";
    assert_eq!(says(&step(&rollout, 20, members(), broken(0))), back);
}

#[test]
fn the_way_back_ends_when_the_former_ones_run() {
    let rollout = rollout(P::RollingBack, [M::Starting, M::Waiting]);
    let former = |m: fn(&mut MemberStatus)| {
        let mut web = member("web", 0);
        m(&mut web);
        vec![web, member("db", 3)]
    };
    let table: Vec<(&str, i64, Vec<MemberStatus>, &str)> = vec![
        ("back", 1, former(|_| ()), "fail"),
        ("the new one is still there", 1, vec![member("web", 5), member("db", 3)], "wait"),
        ("it is still beside it", 1, former(|m| m.coming = Some(coming(5))), "wait"),
        ("too long", 180, vec![member("web", 5), member("db", 3)], "fail"),
    ];
    for (what, seconds, members, wanted) in table {
        assert_eq!(says(&step(&rollout, seconds, members, |_| ())), wanted, "{what}");
    }
    let starts = |i: &mut InstanceRecord| i.observed.as_mut().unwrap().state = BodyState::Starting;
    assert_eq!(says(&step(&rollout, 1, former(|_| ()), starts)), "wait");
}

#[test]
fn it_waits_or_ends_when_the_instance_is_elsewhere() {
    let rollout = rollout(P::Updating, [M::Waiting, M::Waiting]);
    let members = || vec![member("web", 0), member("db", 3)];
    let says = |change: fn(&mut InstanceRecord)| says(&step(&rollout, 1, members(), change));
    assert_eq!(says(|i| i.epoch = 3), "leave, host_lost");
    assert_eq!(says(|i| i.intent = Intent::Deleting), "wait");
    assert_eq!(says(|i| i.rolling = None), "wait");
    let mut instance = sample();
    instance.rolling = Some(Rolling { revision: 5, former: BTreeMap::new() });
    let sight = RolloutSight {
        rollout: &rollout,
        instance: &instance,
        target: &target(),
        host_up_since: None,
        now: at(10_000),
    };
    assert_eq!(rollout_step(sight), RolloutStep::Wait, "no deadline runs while the host is down");
}

#[test]
fn keys_are_read_as_they_are_written() {
    let key = RevisionKey { instance: InstanceId::new(), number: 12 };
    assert_eq!(key.to_string().parse::<RevisionKey>().unwrap(), key);
    assert!("x/1".parse::<RevisionKey>().is_err() && "x".parse::<RevisionKey>().is_err());
}
