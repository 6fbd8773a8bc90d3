use super::*;
use amphi_api::group::OnFailure;
use amphi_api::instance::InstanceCreate;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_000_000 + seconds).unwrap()
}

fn template(name: &str) -> InstanceCreate {
    InstanceCreate { name: name.into(), ..InstanceCreate::default() }
}

/// Members are `INDEX:REVISION` and a mark: `+` ready, `-` not ready since 0, `~` never ready since 0, `d` draining since 0,
/// `h` held for an update since 0, `u` being updated from revision 1, `s` stubborn.
fn group(wanted: u32, members: &str) -> ScalingGroupRecord {
    let mut slots = BTreeMap::new();
    for word in members.split_whitespace() {
        let (index, rest) = word.split_once(':').unwrap();
        let (revision, mark) = rest.split_at(rest.len() - 1);
        let slot = Slot {
            instance: InstanceId(uuid::Uuid::from_u128(index.parse().unwrap())),
            revision: revision.parse().unwrap(),
            made_at: at(0),
            ready_at: (mark != "~").then_some(at(0)),
            unready_since: matches!(mark, "-" | "~").then_some(at(0)),
            draining_since: (mark == "d").then_some(at(0)),
            updating: matches!(mark, "h" | "u").then_some(SlotUpdate {
                from: 1,
                since: at(0),
                ordered: (mark == "u").then_some(7),
            }),
            stubborn: mark == "s",
        };
        slots.insert(index.parse().unwrap(), slot);
    }
    ScalingGroupRecord {
        id: ScalingGroupId(uuid::Uuid::from_u128(1)),
        project: ProjectId::DEFAULT,
        name: "g".into(),
        wanted,
        affinity: Affinity::None,
        ports: Vec::new(),
        update: UpdatePolicy::default(),
        health: HealthPolicy::default(),
        autoscale: None,
        revisions: (1..=2)
            .map(|number| TemplateRevision { number, template: template(&number.to_string()), at: at(0) })
            .collect(),
        target: 1,
        base: 1,
        before: None,
        share: Share::default(),
        paused: false,
        reason: None,
        rolled_at: at(0),
        slots,
        leaving: BTreeSet::new(),
        failures: BTreeMap::new(),
        trouble: None,
        scaled: None,
        intent: Intent::Live,
        created_at: at(0),
        updated_at: at(0),
    }
}

/// Everything is as the record says.
fn sight(group: &ScalingGroupRecord, now: i64) -> GroupSight<'_> {
    let here = |slot: &Slot| Presence::Here {
        ready: slot.unready_since.is_none(),
        held: false,
        locked: false,
        lost: false,
        carried: Carried::No,
    };
    GroupSight {
        group,
        members: group.slots.iter().map(|(index, slot)| (*index, here(slot))).collect(),
        leaving: group.leaving.clone(),
        now: at(now),
    }
}

fn words(steps: &[GroupStep]) -> String {
    let word = |step: &GroupStep| match step {
        GroupStep::Vacate { index, going } => format!("vacate {index}{}", if *going { " going" } else { "" }),
        GroupStep::Forget { .. } => "forget".into(),
        GroupStep::Seen { index, ready } => format!("{index} {}", if *ready { "ready" } else { "unready" }),
        GroupStep::Drain { index } => format!("drain {index}"),
        GroupStep::Hold { index } => format!("hold {index}"),
        GroupStep::Keep { index } => format!("keep {index}"),
        GroupStep::Update { index, revision } => format!("update {index}:{revision}"),
        GroupStep::Updated { index } => format!("updated {index}"),
        GroupStep::Unchanged { index, .. } => format!("unchanged {index}"),
        GroupStep::Undo { .. } => "undo".into(),
        GroupStep::Pause { .. } => "pause".into(),
        GroupStep::Settle => "settle".into(),
        GroupStep::Calm => "calm".into(),
        GroupStep::Locked { .. } => "locked".into(),
        GroupStep::Delete { index, unhealthy, .. } => {
            format!("delete {index}{}", if *unhealthy { " ill" } else { "" })
        }
        GroupStep::Create { index, revision } => format!("create {index}:{revision}"),
        GroupStep::End => "end".into(),
    };
    steps.iter().map(word).collect::<Vec<_>>().join(", ")
}

type Change = fn(&mut ScalingGroupRecord);

/// Rows: what it is, wanted, members, what else is so, seconds, the steps.
#[test]
fn steps() {
    fn new(group: &mut ScalingGroupRecord) {
        group.target = 2;
    }
    fn undone(group: &mut ScalingGroupRecord) {
        (group.update.max_surge, group.update.max_unavailable) = (1, 0);
        group.trouble = Some(Trouble::after(None, "no_room", "".into(), at(9)));
    }
    let same: Change = |_| ();
    let table: &[(&str, u32, &str, Change, i64, &str)] = &[
        ("nothing to do", 2, "0:1+ 1:1+", same, 9, ""),
        ("made where numbers are free", 3, "1:1+", same, 9, "create 0:1, create 2:1"),
        (
            "a swarm at once",
            20,
            "",
            same,
            0,
            "create 0:1, create 1:1, create 2:1, create 3:1, create 4:1, create 5:1, create 6:1, create 7:1",
        ),
        ("fewer: the highest goes", 1, "0:1+ 1:1+ 2:1+", same, 9, "drain 2, drain 1"),
        ("fewer: who does not work first", 2, "0:1+ 1:1- 2:1+", same, 9, "delete 1"),
        ("fewer: at once without a drain", 1, "0:1+ 1:1+", |g| g.update.drain_s = 0, 9, "delete 1"),
        ("drained for long enough", 1, "0:1+ 1:1d", same, 5, "delete 1"),
        ("drained, not yet", 1, "0:1+ 1:1d", same, 4, ""),
        ("who drains still has its room", 2, "0:1+ 1:1d", same, 4, ""),
        (
            "no room: later",
            2,
            "0:1+",
            |g| g.trouble = Some(Trouble::after(None, "no_room", "".into(), at(9))),
            9,
            "",
        ),
        (
            "no room: now",
            2,
            "0:1+",
            |g| g.trouble = Some(Trouble::after(None, "no_room", "".into(), at(9))),
            10,
            "create 1:1",
        ),
        ("not ready for a while", 2, "0:1+ 1:1-", same, 299, ""),
        ("not ready for too long", 2, "0:1+ 1:1-", same, 300, "delete 1 ill"),
        ("never ready", 1, "0:1~", |g| g.health.ready_within_s = 9, 9, "delete 0 ill"),
        (
            "never ready, replaced once before",
            1,
            "0:1~",
            |g| {
                g.health.ready_within_s = 9;
                g.failures.insert(0, 1);
            },
            17,
            "",
        ),
        ("never replaced", 1, "0:1-", |g| g.health.replace_after_s = 0, 90_000, ""),
        ("deleted: all go", 2, "0:1+ 1:1~", |g| g.intent = Intent::Deleting, 9, "delete 0, delete 1"),
        ("deleted: the record goes last", 2, "", |g| g.intent = Intent::Deleting, 9, "end"),
        (
            "deleted: hosts still have something",
            2,
            "",
            |g| {
                g.intent = Intent::Deleting;
                g.leaving.insert(InstanceId(uuid::Uuid::from_u128(7)));
            },
            9,
            "",
        ),
        // Exchanges.
        ("one after the other", 3, "0:1+ 1:1+ 2:1+", new, 9, "drain 2"),
        (
            "two after the other two",
            3,
            "0:1+ 1:1+ 2:1+",
            |g| {
                g.target = 2;
                g.update.max_unavailable = 2;
            },
            9,
            "drain 2, drain 1",
        ),
        ("while it drains nothing else", 3, "0:1+ 1:1+ 2:1d", new, 1, ""),
        ("its place is taken by the new one", 3, "0:1+ 1:1+", new, 9, "create 2:2"),
        ("the next waits until it is ready", 3, "0:1+ 1:1+ 2:2~", new, 9, ""),
        ("and comes then", 3, "0:1+ 1:1+ 2:2+", new, 9, "drain 1"),
        ("what is ill counts as missing", 3, "0:1- 1:1+ 2:2+", new, 9, "delete 0"),
        ("a stranger to readiness holds all up", 3, "0:1+ 1:1- 2:2~", new, 9, ""),
        (
            "more first",
            3,
            "0:1+ 1:1+ 2:1+",
            |g| {
                g.target = 2;
                (g.update.max_surge, g.update.max_unavailable) = (1, 0);
            },
            9,
            "create 3:2",
        ),
        (
            "more first: wait for it",
            3,
            "0:1+ 1:1+ 2:1+ 3:2~",
            |g| {
                g.target = 2;
                (g.update.max_surge, g.update.max_unavailable) = (1, 0);
            },
            9,
            "",
        ),
        (
            "more first: then one goes",
            3,
            "0:1+ 1:1+ 2:1+ 3:2+",
            |g| {
                g.target = 2;
                (g.update.max_surge, g.update.max_unavailable) = (1, 0);
            },
            9,
            "drain 2",
        ),
        ("over", 2, "0:2+ 1:2+", new, 9, "settle"),
        ("over, but for who drains", 2, "0:2+ 1:2+ 2:1d", new, 1, ""),
        (
            "paused",
            3,
            "0:1+ 1:1+ 2:2+",
            |g| {
                g.target = 2;
                g.paused = true;
            },
            9,
            "",
        ),
        (
            "paused: who is missing comes as it was",
            3,
            "0:1+ 2:2+",
            |g| {
                g.target = 2;
                g.paused = true;
            },
            9,
            "create 1:1",
        ),
        (
            "one canary",
            3,
            "0:1+ 1:1+ 2:2+",
            |g| {
                g.target = 2;
                g.share = Share::One;
            },
            9,
            "",
        ),
        (
            "a share, rounded up",
            3,
            "0:1+ 1:1+ 2:2+",
            |g| {
                g.target = 2;
                g.share = Share::Percent(34);
            },
            9,
            "drain 1",
        ),
        (
            "a share grows with the group",
            6,
            "0:1+ 1:1+ 2:2+ 3:2+",
            |g| {
                g.target = 2;
                g.share = Share::Percent(50);
            },
            9,
            "create 4:2, create 5:1",
        ),
        ("a new one that does not get ready", 3, "0:1+ 1:1+ 2:2~", new, 300, "undo"),
        ("or is lost again", 3, "0:1+ 1:1+ 2:2-", new, 300, "undo"),
        (
            "and waits, where that is wanted",
            3,
            "0:1+ 1:1+ 2:2~",
            |g| {
                g.target = 2;
                g.update.on_failure = OnFailure::Pause;
            },
            300,
            "pause",
        ),
        ("undone: what was made goes", 3, "0:1+ 1:1+ 2:2~", same, 9, "delete 2"),
        ("undone while more are there", 3, "0:1+ 1:1+ 2:1+ 3:2~", same, 9, "delete 3"),
        ("undone, more first, and no room for it: it is no calm", 3, "0:1+ 1:1+ 2:2+", undone, 9, ""),
        ("undone, more first: tried again", 3, "0:1+ 1:1+ 2:2+", undone, 10, "create 3:1"),
        ("undone, and all are what they were", 3, "0:1+ 1:1+ 2:1+", undone, 9, "calm"),
    ];
    for (what, wanted, members, change, now, want) in table {
        let mut group = group(*wanted, members);
        change(&mut group);
        assert_eq!(words(&group_steps(&sight(&group, *now))), *want, "{what}");
    }
}

/// Templates of sets that differ in an image alone.
fn carried(group: &mut ScalingGroupRecord) {
    group.target = 2;
    for revision in &mut group.revisions {
        let set =
            serde_json::json!({"set": {"members": [{"index": 0, "image": revision.number.to_string()}]}});
        revision.template.name = "web".into();
        revision.template.bodies = vec![serde_json::from_value(set).unwrap()];
    }
}

/// Rows: what it is, wanted, members, who is locked, what else is so, seconds, the steps.
#[test]
fn sets_are_updated_where_they_are() {
    let same: Change = |_| ();
    let table: &[(&str, u32, &str, &[u32], Change, i64, &str)] = &[
        ("one after the other", 3, "0:1+ 1:1+ 2:1+", &[], same, 9, "hold 2"),
        (
            "as many as may be missing",
            3,
            "0:1+ 1:1+ 2:1+",
            &[],
            |g| g.update.max_unavailable = 2,
            9,
            "hold 2, hold 1",
        ),
        (
            "nobody may be missing: exchanged",
            3,
            "0:1+ 1:1+ 2:1+",
            &[],
            |g| {
                (g.update.max_unavailable, g.update.max_surge) = (0, 1);
            },
            9,
            "create 3:2",
        ),
        ("not wanted: exchanged", 3, "0:1+ 1:1+ 2:1+", &[], |g| g.update.in_place = false, 9, "drain 2"),
        ("a surge is not needed", 3, "0:1+ 1:1+ 2:1+", &[], |g| g.update.max_surge = 1, 9, "hold 2"),
        ("out of the endpoints first", 3, "0:1+ 1:1+ 2:1h", &[], same, 4, ""),
        ("then updated", 3, "0:1+ 1:1+ 2:1h", &[], same, 5, "update 2:2"),
        ("the next one waits", 3, "0:1+ 1:1+ 2:2u", &[], same, 9, ""),
        ("and comes then", 3, "0:1+ 1:1+ 2:2+", &[], same, 9, "hold 1"),
        ("what is ill counts as missing", 3, "0:1- 1:1+ 2:2+", &[], same, 9, "hold 0"),
        ("one canary, held", 3, "0:1+ 1:1+ 2:1h", &[], |g| g.share = Share::One, 1, ""),
        ("one canary, done", 3, "0:1+ 1:1+ 2:2+", &[], |g| g.share = Share::One, 9, ""),
        ("a share", 4, "0:1+ 1:1+ 2:1+ 3:2+", &[], |g| g.share = Share::Percent(50), 9, "hold 2"),
        ("paused: into the endpoints again", 2, "0:1+ 1:1h", &[], |g| g.paused = true, 1, "keep 1"),
        ("undone: likewise", 2, "0:1+ 1:1h", &[], |g| g.target = 1, 1, "keep 1"),
        ("undone while it is updated: first to its end", 2, "0:1+ 1:2u", &[], |g| g.target = 1, 9, ""),
        ("undone: back where it is", 2, "0:1+ 1:2+", &[], |g| g.target = 1, 9, "hold 1"),
        ("who is locked is passed over", 3, "0:1+ 1:1+ 2:1+", &[2], same, 9, "hold 1"),
        ("who could not is exchanged", 2, "0:1s 1:2+", &[], same, 9, "drain 0"),
        ("over", 2, "0:2+ 1:2+", &[], same, 9, "settle"),
        ("not over", 2, "0:2+ 1:2u", &[], same, 9, ""),
    ];
    for (what, wanted, members, locked, change, now, want) in table {
        let mut group = group(*wanted, members);
        carried(&mut group);
        change(&mut group);
        assert_eq!(words(&group_steps(&locked_sight(&group, locked, *now))), *want, "{what}");
    }
}

#[test]
fn what_became_of_an_update_is_noted() {
    let mut group = group(2, "0:1+ 1:2u");
    carried(&mut group);
    let steps = |group: &ScalingGroupRecord, ready, carried| {
        let mut seen = sight(group, 9);
        let here = Presence::Here { ready, held: false, locked: false, lost: false, carried };
        seen.members.insert(1, here);
        group_steps(&seen)
    };
    assert_eq!(words(&steps(&group, true, Carried::No)), "");
    assert_eq!(words(&steps(&group, false, Carried::Yes)), "1 unready");
    let done = steps(&group, true, Carried::Yes);
    assert_eq!(words(&done), "updated 1");
    let after = group.after(&done[0], at(9));
    assert_eq!((after.slots[&1].revision, after.slots[&1].updating), (2, None));
    let failed = steps(&group, true, Carried::Back("it ended".into()));
    assert_eq!(words(&failed), "unchanged 1");
    let after = group.after(&failed[0], at(9));
    let slot = &after.slots[&1];
    assert_eq!((slot.revision, slot.updating, slot.stubborn, after.target), (1, None, true, 1));
    let reason = after.reason.clone().unwrap();
    assert!(reason.ends_with("revision 2: it ended"), "{reason}");
    assert_eq!(words(&group_steps(&sight(&after, 9))), "", "all are what they were");
    group.update.on_failure = OnFailure::Pause;
    let after = group.after(&failed[0], at(9));
    assert_eq!((after.target, after.paused, after.slots[&1].revision), (2, true, 1));
    group.ordered(0, None);
    assert_eq!((group.slots[&0].revision, group.slots[&0].updating), (2, None), "nothing differs");
}

/// Driven to its end by a world in which an update takes a while: never too few, and the same instances all the way.
#[test]
fn an_update_in_place_keeps_its_bounds() {
    for (wanted, unavailable, drain) in [(1, 1, 0), (3, 1, 2), (7, 3, 0), (20, 20, 2)] {
        let members: Vec<String> = (0..wanted).map(|n| format!("{n}:1+")).collect();
        let mut group = group(wanted, &members.join(" "));
        carried(&mut group);
        (group.update.max_unavailable, group.update.drain_s) = (unavailable, drain);
        let instances: Vec<InstanceId> = group.slots.values().map(|s| s.instance).collect();
        let mut ends: BTreeMap<u32, i64> = BTreeMap::new();
        let mut over = false;
        for now in 1..2000 {
            let here = |index: &u32| Presence::Here {
                ready: ends.get(index).is_none_or(|end| now >= *end),
                held: ends.get(index).is_some_and(|end| now < *end),
                locked: false,
                lost: false,
                carried: if ends.get(index).is_some_and(|end| now >= *end) {
                    Carried::Yes
                } else {
                    Carried::No
                },
            };
            let members = group.slots.keys().map(|index| (*index, here(index))).collect();
            let seen = GroupSight { group: &group, members, leaving: BTreeSet::new(), now: at(now) };
            for step in group_steps(&seen) {
                if let GroupStep::Update { index, .. } = step {
                    ends.insert(index, now + 3);
                    group.ordered(index, Some(2));
                }
                over |= step == GroupStep::Settle;
                group = group.after(&step, at(now));
            }
            let serving =
                group.slots.values().filter(|s| s.unready_since.is_none() && s.withdrawn().is_none()).count();
            assert!(serving as u32 + unavailable >= wanted, "{wanted} {unavailable}: {serving} at {now}");
        }
        assert!(over, "{wanted} {unavailable} {drain}: no end");
        assert!(group.slots.values().all(|s| s.revision == 2), "{:?}", group.slots);
        assert_eq!(instances, group.slots.values().map(|s| s.instance).collect::<Vec<_>>());
    }
}

#[test]
fn what_is_seen_is_noted_first() {
    let group = group(3, "0:1~ 1:1+ 2:1+ 3:1+");
    let mut seen = sight(&group, 9);
    let here = |ready, held, lost| Presence::Here { ready, held, locked: false, lost, carried: Carried::No };
    seen.members = BTreeMap::from([
        (0, here(true, false, false)),
        (1, here(false, false, false)),
        (2, Presence::Going),
        (3, Presence::Gone),
    ]);
    let steps = group_steps(&seen);
    assert_eq!(words(&steps), "0 ready, 1 unready, vacate 2 going, vacate 3");
    let after = steps.iter().fold(group.clone(), |group, step| group.after(step, at(9)));
    assert_eq!(after.slots.len(), 2);
    assert_eq!((after.slots[&0].ready_at, after.slots[&0].unready_since), (Some(at(9)), None));
    assert_eq!(after.slots[&1].unready_since, Some(at(9)));
    assert_eq!(after.leaving.len(), 1);
    assert_eq!(words(&group_steps(&GroupSight { leaving: BTreeSet::new(), ..sight(&after, 9) })), "forget");
}

#[test]
fn hosts_that_are_lost_and_members_in_somebodys_hands() {
    let group = group(1, "0:1-");
    let mut seen = sight(&group, 60);
    for (held, lost, now, want) in [
        (false, true, 59, ""),
        (false, true, 60, "delete 0 ill"),
        (true, true, 60, ""),
        (false, false, 60, ""),
        (true, false, 999, ""),
    ] {
        seen.members = BTreeMap::from([(
            0,
            Presence::Here { ready: false, held, locked: false, lost, carried: Carried::No },
        )]);
        seen.now = at(now);
        assert_eq!(words(&group_steps(&seen)), want, "{held} {lost} {now}");
    }
}

/// What `locked` says of who is locked; whoever is, is in somebody's hands too.
fn locked_sight<'a>(group: &'a ScalingGroupRecord, locked: &[u32], now: i64) -> GroupSight<'a> {
    let mut seen = sight(group, now);
    for index in locked {
        if let Some(Presence::Here { held, locked, .. }) = seen.members.get_mut(index) {
            (*held, *locked) = (true, true);
        }
    }
    seen
}

/// Rows: what it is, wanted, members, who is locked, what else is so, the steps after 999 s.
#[test]
fn who_is_locked_is_passed_over() {
    fn new(group: &mut ScalingGroupRecord) {
        group.target = 2;
    }
    fn more_first(group: &mut ScalingGroupRecord) {
        group.target = 2;
        (group.update.max_surge, group.update.max_unavailable) = (1, 0);
    }
    let same: Change = |_| ();
    let table: &[(&str, u32, &str, &[u32], Change, &str)] = &[
        ("fewer: another one goes", 2, "0:1+ 1:1+ 2:1+", &[2], same, "drain 1"),
        ("fewer: even one that works", 1, "0:1+ 1:1-", &[1], same, "drain 0"),
        ("fewer: no other one can", 1, "0:1+ 1:1+", &[0, 1], same, "locked"),
        ("fewer: those who can go first", 1, "0:1+ 1:1+ 2:1+", &[1, 2], same, "drain 0"),
        ("ill for long", 2, "0:1+ 1:1-", &[1], same, ""),
        ("locked while it drains", 1, "0:1+ 1:1d", &[1], same, "locked"),
        ("exchanged: the others first", 3, "0:1+ 1:1+ 2:1+", &[2], new, "drain 1"),
        ("exchanged: it is the last", 3, "0:2+ 1:2+ 2:1+", &[2], new, "locked"),
        ("exchanged: it is what is missing", 3, "0:1+ 1:1+ 2:1-", &[2], new, "locked"),
        ("more first: it is the last", 3, "0:1+ 1:2+ 2:2+ 3:2+", &[0], more_first, "locked"),
        ("of the new revision", 3, "0:2+ 1:2+ 2:2+", &[0], new, "settle"),
        ("deleted: it goes with the group", 1, "0:1+", &[0], |g| g.intent = Intent::Deleting, "delete 0"),
    ];
    for (what, wanted, members, locked, change, want) in table {
        let mut group = group(*wanted, members);
        change(&mut group);
        assert_eq!(words(&group_steps(&locked_sight(&group, locked, 999))), *want, "{what}");
    }
}

#[test]
fn a_lock_in_the_way_is_told_once_and_taken_back() {
    let mut group = group(1, "0:1+ 1:1+");
    let locked = |group: &ScalingGroupRecord, locked: &[u32]| group_steps(&locked_sight(group, locked, 9));
    let steps = locked(&group, &[0, 1]);
    assert_eq!(words(&steps), "locked");
    group = group.after(&steps[0], at(9));
    let trouble = group.trouble.clone().unwrap();
    assert_eq!(trouble.fault.code, "locked");
    assert!(trouble.fault.message.ends_with("member 0, 1"), "{}", trouble.fault.message);
    assert_eq!(words(&locked(&group, &[0, 1])), "", "once");
    assert_eq!(words(&locked(&group, &[0])), "drain 1");
    let wanted = ScalingGroupRecord { wanted: 2, ..group.clone() };
    assert_eq!(words(&locked(&wanted, &[0, 1])), "calm", "nobody has to go any more");
    let waiting = Trouble::after(None, "no_room", "full".into(), at(9));
    let short = ScalingGroupRecord {
        target: 2,
        update: UpdatePolicy { max_surge: 3, ..group.update.clone() },
        trouble: Some(waiting),
        ..group
    };
    assert_eq!(words(&locked(&short, &[0, 1])), "", "what is waited for stays said");
}

#[test]
fn revisions_come_and_go_back() {
    let mut group = group(2, "0:1+ 1:1+");
    group.revisions.truncate(1);
    assert!(!group.undo(None, at(1)), "there is nothing before the first");
    group.roll_out(template("2"), Share::One, at(1));
    assert_eq!((group.target, group.base, group.share), (2, 1, Share::One));
    assert!(group.undo(Some("bad".into()), at(2)));
    assert_eq!((group.target, group.base, group.reason.as_deref()), (1, 1, Some("bad")));
    group.roll_out(template("3"), Share::default(), at(3));
    group = group.after(&GroupStep::Settle, at(4));
    assert_eq!((group.target, group.base), (3, 3));
    assert!(group.undo(None, at(5)));
    assert_eq!((group.target, group.base), (1, 3), "what was in force before, not what failed");
    group = group.after(&GroupStep::Settle, at(6));
    assert!(group.undo(None, at(7)));
    assert_eq!(group.target, 3, "there and back");
    for n in 4..40 {
        group.roll_out(template(&n.to_string()), Share::default(), at(8));
    }
    assert!(group.revisions.len() <= REVISIONS_KEPT + 4);
    assert!(group.template(1).is_some(), "members are still of it");
}

#[test]
fn tries_are_spaced() {
    let mut trouble = Trouble::after(None, "no_room", "full".into(), at(0));
    let mut waits = Vec::new();
    for _ in 0..8 {
        waits.push(trouble.retry_at.duration_since(at(0)).as_secs());
        trouble = Trouble::after(Some(&trouble), "no_room", "full".into(), at(0));
    }
    assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60]);
    let other = Trouble::after(Some(&trouble), "quota", "cores".into(), at(5));
    assert_eq!(other.fault.since, at(5), "another trouble is a new one");
}

/// Groups of all policies, driven to their ends by a world in which members get ready after a while: never too few because
/// of an exchange, never too many, and always an end.
#[test]
fn every_exchange_ends_and_keeps_its_bounds() {
    for wanted in [1, 2, 3, 7, 20] {
        for (unavailable, surge) in [(1, 0), (0, 1), (2, 3), (20, 0), (0, 5)] {
            for drain in [0, 2] {
                for share in [Share::default(), Share::One, Share::Percent(50)] {
                    exchange(wanted, unavailable, surge, drain, share);
                }
            }
        }
    }
}

fn exchange(wanted: u32, unavailable: u32, surge: u32, drain: u32, share: Share) {
    let what = format!("{wanted} {unavailable} {surge} {drain} {share:?}");
    let members: Vec<String> = (0..wanted).map(|n| format!("{n}:1+")).collect();
    let mut group = group(wanted, &members.join(" "));
    group.update =
        UpdatePolicy { max_unavailable: unavailable, max_surge: surge, drain_s: drain, ..group.update };
    (group.target, group.share) = (2, share);
    let mut made = 1000;
    let mut ready_at: BTreeMap<InstanceId, i64> = BTreeMap::new();
    let mut quiet = 0;
    for now in 1..10_000 {
        let members = group.slots.iter().map(|(index, slot)| {
            let ready = ready_at.get(&slot.instance).is_none_or(|at| now >= *at);
            (*index, Presence::Here { ready, held: false, locked: false, lost: false, carried: Carried::No })
        });
        // Hosts bury at once.
        let seen =
            GroupSight { group: &group, members: members.collect(), leaving: BTreeSet::new(), now: at(now) };
        let steps = group_steps(&seen);
        quiet = if steps.is_empty() { quiet + 1 } else { 0 };
        for step in &steps {
            if let GroupStep::Create { index, revision } = step {
                made += 1;
                let instance = InstanceId(uuid::Uuid::from_u128(made));
                ready_at.insert(instance, now + 3);
                let slot = Slot {
                    instance,
                    revision: *revision,
                    made_at: at(now),
                    ready_at: None,
                    unready_since: Some(at(now)),
                    draining_since: None,
                    updating: None,
                    stubborn: false,
                };
                assert!(group.slots.insert(*index, slot).is_none(), "{what}: two at {index}");
            }
            group = group.after(step, at(now));
        }
        let serving =
            group.slots.values().filter(|s| s.unready_since.is_none() && s.draining_since.is_none()).count();
        assert!(serving as u32 + unavailable >= wanted, "{what}: {serving} of {wanted} at {now}");
        assert!(group.slots.len() as u32 <= wanted + surge, "{what}: {} at {now}", group.slots.len());
        if quiet > 10 {
            break;
        }
    }
    assert!(quiet > 10, "{what}: no end");
    let new = group.slots.values().filter(|s| s.revision == 2).count() as u32;
    assert_eq!((group.slots.len() as u32, new), (wanted, share.of(wanted)), "{what}");
    assert_eq!(group.base, if share.of(wanted) == wanted { 2 } else { 1 }, "{what}");
}

fn policy(change: serde_json::Value) -> Autoscale {
    let mut value = serde_json::json!({"metric": "cpu", "target": 50, "min": 1, "max": 10});
    for (key, part) in change.as_object().unwrap() {
        value[key] = part.clone();
    }
    serde_json::from_value(value).unwrap()
}

/// Rows: the policy's change, wanted, ready, figures, seconds since the last scaling, what is wanted then, a word of why.
#[test]
fn policies() {
    use serde_json::json;
    let queue = || json!({"metric": "queue", "target": 10});
    let table: &[(serde_json::Value, u32, u32, &[f64], Option<i64>, u32, &str)] = &[
        (json!({}), 2, 2, &[50.0, 50.0], None, 2, "within a tenth"),
        (json!({}), 2, 2, &[54.0, 54.0], None, 2, "within a tenth"),
        (json!({}), 2, 2, &[90.0, 90.0], None, 4, "4 instead of 2"),
        (json!({}), 4, 4, &[10.0, 10.0, 10.0, 10.0], None, 1, "1 instead of 4"),
        (json!({}), 4, 4, &[0.0, 0.0, 0.0, 0.0], None, 1, "1 instead of 4"),
        (json!({"min": 2}), 4, 4, &[0.0; 4], None, 2, "2 instead of 4"),
        (json!({}), 8, 8, &[100.0; 8], None, 10, "10 instead of 8"),
        (json!({}), 10, 10, &[100.0; 10], None, 10, "the bounds are 1 to 10"),
        (json!({}), 4, 4, &[90.0], None, 4, "too few"),
        (json!({}), 4, 4, &[90.0, 90.0], None, 8, "8 instead of 4"),
        (json!({}), 4, 4, &[], None, 4, "too few"),
        (json!({}), 4, 2, &[190.0, 190.0], None, 4, "not ready yet"),
        (json!({}), 2, 2, &[90.0, 90.0], Some(59), 2, "in 1 s"),
        (json!({}), 2, 2, &[90.0, 90.0], Some(60), 4, "4 instead"),
        (json!({}), 4, 4, &[10.0; 4], Some(299), 4, "in 1 s"),
        (json!({}), 4, 4, &[10.0; 4], Some(300), 1, "1 instead"),
        (json!({}), 0, 0, &[], Some(1), 1, "out of the bounds"),
        (json!({}), 12, 12, &[50.0; 12], Some(1), 10, "out of the bounds"),
        (queue(), 2, 2, &[20.0], None, 2, "within a tenth"),
        (queue(), 2, 2, &[45.0], None, 5, "5 instead of 2"),
        (queue(), 5, 3, &[45.0], None, 5, "within a tenth"),
        (queue(), 2, 0, &[45.0], None, 5, "5 instead of 2"),
        (queue(), 5, 5, &[0.0], None, 1, "1 instead of 5"),
        (queue(), 5, 5, &[], None, 5, "nobody has posted"),
        (json!({"metric": "queue", "target": 10, "min": 0}), 1, 1, &[0.0], None, 0, "0 instead of 1"),
        (json!({"metric": "queue", "target": 10, "min": 0}), 0, 0, &[3.0], None, 1, "1 instead of 0"),
        (json!({"metric": "load", "target": 10, "of": "instance"}), 2, 2, &[15.0], None, 3, "3 instead of 2"),
        // 12 January 1970, 13:46 UTC, is a Monday.
        (
            json!({"schedule": [{"days": ["mon"], "from": "13:00", "to": "14:00", "min": 6, "max": 8}]}),
            2,
            2,
            &[50.0; 2],
            None,
            6,
            "6 to 8 of 13:00 to 14:00",
        ),
        (
            json!({"schedule": [{"days": ["tue"], "from": "13:00", "to": "14:00", "min": 6, "max": 8}]}),
            2,
            2,
            &[50.0; 2],
            None,
            2,
            "tenth",
        ),
        (
            json!({"time_zone": "Asia/Tokyo", "schedule": [{"from": "22:00", "to": "23:00", "min": 3, "max": 8}]}),
            2,
            2,
            &[50.0; 2],
            None,
            3,
            "3 to 8",
        ),
    ];
    for (change, wanted, ready, figures, since, want, why) in table {
        let policy = policy(change.clone());
        let scaled = since.map(|since| Scaled { at: at(-since), why: String::new() });
        let sight = ScaleSight {
            policy: &policy,
            wanted: *wanted,
            ready: *ready,
            figures,
            scaled: scaled.as_ref(),
            now: at(0),
        };
        let verdict = autoscale(&sight);
        assert_eq!(verdict.desired, *want, "{change} {wanted} {figures:?}: {}", verdict.why);
        assert!(verdict.why.contains(why), "{change} {wanted} {figures:?}: {}", verdict.why);
    }
}
