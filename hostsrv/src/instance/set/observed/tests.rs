use super::*;
use crate::instance::set::labels::Life;
use crate::instance::set::restarts::STEADY;

const NOW: i64 = 1_000_000_000_000;

fn part(name: &str, state: PartState, started_us: i64) -> Part {
    let role = match name {
        labels::ANCHOR => Role::Anchor { members: vec![(1, "a".to_owned()), (2, "b".to_owned())] },
        "a" => Role::Member { index: 1, name: name.to_owned() },
        _ => Role::Member { index: 2, name: name.to_owned() },
    };
    let ended = state == PartState::Ended;
    let detail = Detail {
        started_us: (state != PartState::Created).then_some(started_us),
        finished_us: ended.then_some(NOW - 500_000),
        exit_code: Some(if ended { 3 } else { 0 }),
        oom_killed: false,
        ..Detail::default()
    };
    let tag = Tag {
        instance: InstanceId(uuid::Uuid::nil()),
        epoch: 4,
        role,
        spec: String::new(),
        generation: 0,
        life: Default::default(),
    };
    Part { id: format!("id-{name}"), tag, state, detail }
}

fn quiet(_: &Part) -> Outlook {
    Outlook::default()
}

fn seen(outlook: &dyn Fn(&Part) -> Outlook) -> Seen<'_> {
    Seen { outlook, held: &|part| part.detail.held, over: &|_| None }
}

#[test]
fn who_was_killed_for_want_of_memory_is_told_with_the_limit() {
    let limited = |state, oom_killed, oom_kills| {
        let mut part = part("a", state, 200);
        part.detail.held.memory_bytes = Some(64 << 20);
        (part.detail.oom_killed, part.detail.oom_kills) = (oom_killed, oom_kills);
        part
    };
    let before = |out_of_memory| Record { out_of_memory, ..Record::default() };
    for (part, record, told) in [
        (limited(PartState::Ended, true, 0), before(false), Some("OOM killed, limit 64 MiB")),
        (limited(PartState::Ended, false, 0), before(true), None),
        (limited(PartState::Running, false, 0), before(true), Some("OOM killed, limit 64 MiB")),
        (
            limited(PartState::Running, false, 3),
            before(false),
            Some("3 of its processes OOM killed, limit 64 MiB"),
        ),
        (limited(PartState::Running, false, 0), before(false), None),
    ] {
        assert_eq!(out_of_memory(&part, record).as_deref(), told);
    }
}

#[test]
fn who_is_over_its_root_s_limit_is_told() {
    let parts = [part(labels::ANCHOR, PartState::Running, 100), part("a", PartState::Ended, 200)];
    let over = |part: &Part| (part.id == "id-a").then(|| "its root file system holds 9 MiB".to_owned());
    let seen = Seen { outlook: &quiet, held: &|part| part.detail.held, over: &over };
    let body = &assemble(&parts, &Restarts::default(), &seen, NOW)[0];
    assert!(
        body.trouble.as_deref().unwrap().starts_with("member a was ended: its root file system holds 9 MiB")
    );
    assert_eq!(body.state, ObservedState::Degraded);
}

#[test]
fn a_clock_that_was_set_back_makes_nobody_stale() {
    let in_space = |name, started, namespace| {
        let mut part = part(name, PartState::Running, started);
        part.detail.namespace = namespace;
        part
    };
    let anchor = in_space(labels::ANCHOR, 5_000, Some(7));
    for (started, namespace, stale) in
        [(100, Some(7), false), (9_000, Some(6), true), (100, None, true), (9_000, None, false)]
    {
        assert_eq!(in_space("a", started, namespace).is_stale(&anchor), stale, "{started} {namespace:?}");
    }
}

#[test]
fn parts_make_bodies() {
    use PartState::{Created, Ended, Paused, Running};
    let anchor = |state| part(labels::ANCHOR, state, 100);
    let (a, b) = (|state| part("a", state, 200), |state| part("b", state, 300));
    type Row = (Vec<Part>, ObservedState, [bool; 2], Option<&'static str>);
    let table: Vec<Row> = vec![
        (vec![anchor(Running), b(Running), a(Running)], ObservedState::Running, [true, true], None),
        (vec![anchor(Created)], ObservedState::Stopped, [false, false], None),
        (vec![anchor(Ended), a(Running), b(Running)], ObservedState::Stopped, [false, false], None),
        (vec![a(Running), b(Running)], ObservedState::Stopped, [false, false], None),
        (
            vec![anchor(Running), a(Running)],
            ObservedState::Degraded,
            [true, false],
            Some("member b is missing"),
        ),
        (
            vec![anchor(Running), a(Created), b(Running)],
            ObservedState::Degraded,
            [false, true],
            Some("member a has not started"),
        ),
        (
            vec![anchor(Running), a(Paused), b(Running)],
            ObservedState::Degraded,
            [false, true],
            Some("member a is paused"),
        ),
        (vec![anchor(Running), a(Paused), b(Paused)], ObservedState::Paused, [true, true], None),
        (
            vec![anchor(Running), part("a", Running, 99), b(Running)],
            ObservedState::Degraded,
            [false, true],
            Some("member a runs without the network: its anchor was started anew"),
        ),
        (
            vec![anchor(Running), a(Running), b(Ended)],
            ObservedState::Degraded,
            [true, false],
            Some("member b ended with exit code 3 after 0 restarts; it is to start again now"),
        ),
    ];
    for (parts, state, running, trouble) in table {
        let bodies = assemble(&parts, &Restarts::default(), &seen(&quiet), NOW);
        assert_eq!(bodies.len(), 1);
        let body = &bodies[0];
        assert_eq!((body.epoch, body.state, body.trouble.as_deref()), (4, state, trouble));
        let members: Vec<_> = body.members.iter().map(|m| (m.name.as_str(), m.index, m.running)).collect();
        assert_eq!(members, [("a", 1, running[0]), ("b", 2, running[1])]);
    }
}

#[test]
fn a_failing_member_says_when_it_starts_again() {
    let restarts = Restarts::default();
    let short = Duration::from_secs(1);
    restarts.count("id-b", short);
    restarts.count("id-b", short);
    let started = NOW - 600_000;
    let parts = [part(labels::ANCHOR, PartState::Running, 100), part("b", PartState::Ended, started)];
    let body = &assemble(&parts, &restarts, &seen(&quiet), NOW)[0];
    let trouble = body.trouble.clone().unwrap_or_default();
    // Ended half a second ago after two failures: 2 s after that end, in whole seconds.
    assert!(trouble.contains("after 2 restarts; it is to start again at 1970-01-12T13:46:42Z"), "{trouble}");
    assert_eq!((body.members[1].restarts, body.members[1].exit_code), (2, Some(3)));
    assert_eq!(
        assemble(&parts, &restarts, &seen(&quiet), NOW + 1_000_000)[0].trouble,
        body.trouble,
        "the text stays"
    );
    let steady = part("b", PartState::Ended, NOW - 500_000 - i64::try_from(STEADY.as_micros()).unwrap());
    assert!(steady.due_us(restarts.get("id-b"), NOW) <= NOW);
}

#[test]
fn epochs_are_kept_apart() {
    let mut old = part(labels::ANCHOR, PartState::Running, 100);
    old.tag.epoch = 3;
    let bodies = assemble(
        &[old, part(labels::ANCHOR, PartState::Created, 0)],
        &Restarts::default(),
        &seen(&quiet),
        NOW,
    );
    assert_eq!(bodies.iter().map(|body| body.epoch).collect::<Vec<_>>(), [3, 4]);
}

#[test]
fn what_was_asked_before_a_doubt_is_not_kept() {
    let sightings = Sightings::default();
    let detail = Detail::default();
    let asked = |sightings: &Sightings| sightings.with(|known| known.doubts);
    sightings.keep(asked(&sightings), "a", PartState::Running, &detail);
    assert_eq!(sightings.get("a", PartState::Running), None, "nobody listens");
    sightings.follow();
    let before = asked(&sightings);
    sightings.doubt("b");
    sightings.keep(before, "a", PartState::Running, &detail);
    assert_eq!(sightings.get("a", PartState::Running), None);
    sightings.keep(asked(&sightings), "a", PartState::Running, &detail);
    assert_eq!(sightings.get("a", PartState::Running), Some(detail));
    assert_eq!(sightings.get("a", PartState::Ended), None);
    sightings.lose();
    assert_eq!(sightings.get("a", PartState::Running), None);
}

/// `a` has a readiness probe or is to finish first; `b` comes after it.
#[test]
fn who_waits_says_for_whom() {
    use amphi_api::set::{NextWhen, RestartPolicy};
    let anchor = part(labels::ANCHOR, PartState::Running, 100);
    let probed = Life {
        probes: serde_json::from_value(serde_json::json!({"readiness": {"tcp": {"port": 1}}})).unwrap(),
        ..Life::default()
    };
    let job = Life { restart: RestartPolicy::OnFailure, next_when: NextWhen::Finished, ..Life::default() };
    let a = |state, life: &Life, exit_code| {
        let mut part = part("a", state, 200);
        (part.tag.life, part.detail.exit_code) = (life.clone(), Some(exit_code));
        part
    };
    let early = part("b", PartState::Ended, 50);
    let says = |a: Part, b: Option<Part>, ready: Option<bool>| {
        let outlook = move |part: &Part| Outlook { ready: ready.filter(|_| part.id == "id-a"), reason: None };
        let parts: Vec<Part> = [anchor.clone(), a].into_iter().chain(b).collect();
        let body = assemble(&parts, &Restarts::default(), &seen(&outlook), NOW).remove(0);
        let a = &body.members[0];
        (body.state, a.ready, a.finished, body.trouble.unwrap_or_default())
    };
    use ObservedState::{Degraded, Running};
    let waits = "member b waits for a to be ready".to_owned();
    assert_eq!(
        says(a(PartState::Running, &probed, 0), None, Some(false)),
        (Degraded, Some(false), false, waits.clone())
    );
    let got = says(a(PartState::Running, &probed, 0), Some(early.clone()), Some(false));
    assert_eq!(
        got,
        (Degraded, Some(false), false, waits),
        "what ran before the anchor counts as not started"
    );
    let later = part("b", PartState::Running, 300);
    let got = says(a(PartState::Running, &probed, 0), Some(later.clone()), Some(false));
    assert_eq!(got, (Running, Some(false), false, String::new()), "who runs is let be");
    let got = says(a(PartState::Ended, &job, 0), Some(later.clone()), None);
    assert_eq!(got, (Running, None, true, String::new()), "a job that is done is no trouble");
    assert_eq!(says(a(PartState::Running, &job, 0), None, None).3, "member b waits for a to finish");
    let failed = says(a(PartState::Ended, &job, 3), None, None).3;
    assert!(failed.starts_with("member a ended with exit code 3 after 0 restarts"), "{failed}");
    assert!(failed.ends_with("member b waits for a to finish"), "{failed}");
    let never = Life { restart: RestartPolicy::Never, ..Life::default() };
    let got = says(a(PartState::Ended, &never, 3), Some(later), None);
    assert_eq!(
        (got.0, got.3.as_str()),
        (Degraded, "member a ended with exit code 3 and is not to start again")
    );
}
