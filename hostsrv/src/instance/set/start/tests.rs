use super::*;
use crate::instance::set::labels::{Role, Tag};
use crate::instance::set::observed::Detail;
use PartState::{Created, Ended, Paused, Running};
use amphi_api::InstanceId;

const NOW: i64 = 1_000_000_000_000;

/// `started`: seconds after the hour's beginning; what ended did so a second later.
fn part(name: &str, state: PartState, started: i64) -> Part {
    let role = match name {
        "anchor" => Role::Anchor { members: Vec::new() },
        name => Role::Member { index: 0, name: name.to_owned() },
    };
    let started_us = NOW - 3_600_000_000 + started * 1_000_000;
    let detail = match state {
        Created => Detail::default(),
        Ended => Detail {
            started_us: Some(started_us),
            finished_us: Some(started_us + 1_000_000),
            ..Detail::default()
        },
        Running | Paused => Detail { started_us: Some(started_us), ..Detail::default() },
    };
    let tag = Tag {
        instance: InstanceId(uuid::Uuid::nil()),
        epoch: 1,
        role,
        spec: String::new(),
        generation: 0,
        life: Default::default(),
    };
    Part { id: name.to_owned(), tag, state, detail }
}

struct Ready<F>(F);

impl<F: Fn(&Part) -> bool> Sight for Ready<F> {
    fn is_ready(&self, part: &Part) -> bool {
        self.0(part)
    }
    fn is_broken(&self, _: &Part) -> bool {
        false
    }
}

fn says(parts: &[Part], failures: u32) -> String {
    let lives = [Life::default(), Life::default()];
    let wanted =
        Wanted { names: &["a", "b"], lives: &lives, swaps: &[], rescue: false, halted: false, whole: false };
    let plan = decide(
        wanted,
        parts,
        &Ready(|_: &Part| false),
        |_| Record { restarts: failures, failures, ..Record::default() },
        NOW,
    );
    let members: Vec<&str> = plan.members.iter().map(word).collect();
    format!(
        "remove [{}] kill [{}] {} {}",
        plan.remove.join(" "),
        plan.kill.join(" "),
        word(&plan.anchor),
        members.join(" ")
    )
}

fn word(step: &Step) -> &'static str {
    match step {
        Step::Keep => "keep",
        Step::Create => "create",
        Step::Start { again: None, .. } => "start",
        Step::Start { again: Some(_), .. } => "again",
        Step::Resume { .. } => "resume",
        Step::Wait { .. } => "wait",
        Step::Hold => "hold",
        Step::Rest => "rest",
        Step::Return { .. } => "return",
        Step::Swap { .. } => "swap",
        Step::Retire { .. } => "retire",
    }
}

#[test]
fn every_leftover_has_its_steps() {
    let anchor = |state| part("anchor", state, 0);
    let (a, b) = (|state| part("a", state, 10), |state| part("b", state, 11));
    let old = |name| part(name, Running, -5);
    let table: Vec<(&str, Vec<Part>, &str)> = vec![
        ("nothing", vec![], "remove [] kill [] create create create"),
        ("all", vec![anchor(Running), a(Running), b(Running)], "remove [] kill [] keep keep keep"),
        (
            "an anchor that never ran",
            vec![anchor(Created), a(Created)],
            "remove [a anchor] kill [] create create create",
        ),
        ("no anchor", vec![a(Running), b(Ended)], "remove [a b] kill [] create create create"),
        ("a member unmade", vec![anchor(Running), a(Running)], "remove [] kill [] keep keep create"),
        (
            "one half made",
            vec![anchor(Running), a(Running), b(Created)],
            "remove [b] kill [] keep keep create",
        ),
        ("a stopped set", vec![anchor(Ended), a(Ended), b(Ended)], "remove [] kill [] start start start"),
        (
            "a dead anchor",
            vec![anchor(Ended), a(Running), b(Running)],
            "remove [] kill [b a] start again again",
        ),
        (
            "a dead anchor and member",
            vec![anchor(Ended), a(Ended), b(Paused)],
            "remove [] kill [b] start start again",
        ),
        (
            "an older anchor's members",
            vec![anchor(Running), old("a"), b(Running)],
            "remove [] kill [a] keep again keep",
        ),
        ("an ended member", vec![anchor(Running), a(Ended), b(Running)], "remove [] kill [] keep again keep"),
        ("a paused set", vec![anchor(Running), a(Paused), b(Paused)], "remove [] kill [] keep resume resume"),
    ];
    for (what, parts, wanted) in table {
        assert_eq!(says(&parts, 0), wanted, "{what}");
    }
}

#[test]
fn a_failing_member_waits_its_time() {
    // Started 2 s before NOW, ended 1 s before NOW.
    let parts = [part("anchor", Running, 0), part("a", Running, 1), part("b", Ended, 3598)];
    for (failures, wanted) in
        [(0, "keep keep again"), (1, "keep keep again"), (2, "keep keep wait"), (9, "keep keep wait")]
    {
        assert_eq!(says(&parts, failures), format!("remove [] kill [] {wanted}"), "{failures} failures");
    }
    let lives = [Life::default()];
    let only =
        |names| Wanted { names, lives: &lives, swaps: &[], rescue: false, halted: false, whole: false };
    let plan = decide(
        only(&["b"]),
        &parts,
        &Ready(|_: &Part| false),
        |_| Record { restarts: 3, failures: 3, ..Record::default() },
        NOW,
    );
    assert_eq!(plan.members, [Step::Wait { id: "b".to_owned(), until_us: NOW - 1_000_000 + 4_000_000 }]);
    // A clock that was set back does not hold a member for hours.
    let future = [part("anchor", Running, 0), part("a", Ended, 9000)];
    let plan = decide(
        only(&["a"]),
        &future,
        &Ready(|_: &Part| false),
        |_| Record { restarts: 9, failures: 9, ..Record::default() },
        NOW,
    );
    assert!(matches!(plan.members[0], Step::Start { .. }));
}

#[test]
fn a_rescue_runs_in_the_place_of_members_that_stay() {
    let rescuer = |state| {
        let own = part("a", state, 20);
        let role = Role::Rescuer { index: 0, name: "a".to_owned(), members: Vec::new() };
        Part { id: "rescuer".to_owned(), tag: Tag { role, ..own.tag }, ..own }
    };
    let (anchor, a) = (part("anchor", Running, 0), |state| part("a", state, 10));
    let step = |rescue, halted, parts: &[Part]| {
        let lives = [Life::default()];
        let wanted = Wanted { names: &["a"], lives: &lives, swaps: &[], rescue, halted, whole: false };
        decide(wanted, parts, &Ready(|_: &Part| false), |_| Record::default(), NOW)
    };
    let plan = step(true, false, &[anchor.clone(), a(Running)]);
    assert_eq!((plan.kill, plan.remove, plan.members), (vec!["a".to_owned()], vec![], vec![Step::Create]));
    let plan = step(true, false, &[anchor.clone(), a(Ended), rescuer(Running)]);
    assert_eq!((plan.kill, plan.remove, plan.members), (vec![], vec![], vec![Step::Keep]));
    let plan = step(false, false, &[anchor.clone(), a(Ended), rescuer(Running)]);
    assert_eq!((plan.kill, plan.remove), (vec![], vec!["rescuer".to_owned()]));
    assert!(matches!(&plan.members[0], Step::Start { id, .. } if id == "a"), "{:?}", plan.members);
    let plan = step(false, true, &[anchor, a(Paused)]);
    assert_eq!(plan.members, [Step::Keep], "what is halted by order stays so");
}

/// `a` is described so, `b` comes after it; what becomes of both.
fn gated(life: &Life, parts: &[Part], exit_code: i64, ready: bool) -> String {
    let mut parts = parts.to_vec();
    for part in parts.iter_mut().filter(|part| part.id == "a") {
        (part.tag.life, part.detail.exit_code) = (life.clone(), Some(exit_code));
    }
    let lives = [life.clone(), Life::default()];
    let wanted =
        Wanted { names: &["a", "b"], lives: &lives, swaps: &[], rescue: false, halted: false, whole: false };
    let plan =
        decide(wanted, &parts, &Ready(|part: &Part| ready && part.id == "a"), |_| Record::default(), NOW);
    plan.members.iter().map(word).collect::<Vec<_>>().join(" ")
}

#[test]
fn the_next_index_waits() {
    use amphi_api::set::RestartPolicy;
    let probed = Life {
        probes: serde_json::from_value(serde_json::json!({"readiness": {"tcp": {"port": 1}}})).unwrap(),
        ..Life::default()
    };
    let loose = Life { next_when: NextWhen::Started, ..probed.clone() };
    let job = Life { restart: RestartPolicy::OnFailure, next_when: NextWhen::Finished, ..Life::default() };
    let anchor = |state| part("anchor", state, 0);
    let (a, b) = (|state, at| part("a", state, at), |state, at| part("b", state, at));
    type Line<'a> = (&'a str, &'a Life, Vec<Part>, i64, bool, &'a str);
    let table: Vec<Line> = vec![
        ("nothing is there", &probed, vec![], 0, false, "create hold"),
        ("nothing is there, nobody waits", &loose, vec![], 0, false, "create create"),
        ("not ready", &probed, vec![anchor(Running), a(Running, 10)], 0, false, "keep hold"),
        ("ready", &probed, vec![anchor(Running), a(Running, 10)], 0, true, "keep create"),
        ("b fell", &probed, vec![anchor(Running), a(Running, 10), b(Ended, 20)], 0, false, "keep again"),
        ("b ran before", &probed, vec![anchor(Running), a(Running, 10), b(Ended, -9)], 0, false, "keep hold"),
        (
            "b ran before, ready",
            &probed,
            vec![anchor(Running), a(Running, 10), b(Ended, -9)],
            0,
            true,
            "keep start",
        ),
        ("the anchor ended", &probed, vec![anchor(Ended), a(Ended, 10), b(Ended, 11)], 0, true, "start hold"),
        ("a runs in dead namespaces", &probed, vec![anchor(Running), a(Running, -9)], 0, true, "again hold"),
        (
            "a fell, b runs",
            &probed,
            vec![anchor(Running), a(Ended, 10), b(Running, 20)],
            1,
            false,
            "again keep",
        ),
        ("the job runs", &job, vec![anchor(Running), a(Running, 10)], 0, false, "keep hold"),
        ("the job is done", &job, vec![anchor(Running), a(Ended, 10)], 0, false, "rest create"),
        ("the job failed", &job, vec![anchor(Running), a(Ended, 10)], 2, false, "again hold"),
        ("the job was done last time", &job, vec![anchor(Running), a(Ended, -9)], 0, false, "start hold"),
    ];
    for (what, life, parts, exit_code, ready, expected) in table {
        assert_eq!(gated(life, &parts, exit_code, ready), expected, "{what}");
    }
    for (restart, exit_code, expected) in [
        (RestartPolicy::Always, 0, "again keep"),
        (RestartPolicy::OnFailure, 0, "rest keep"),
        (RestartPolicy::OnFailure, 1, "again keep"),
        (RestartPolicy::Never, 0, "rest keep"),
        (RestartPolicy::Never, 1, "rest keep"),
    ] {
        let life = Life { restart, ..Life::default() };
        let parts = [anchor(Running), a(Ended, 10), b(Running, 20)];
        assert_eq!(gated(&life, &parts, exit_code, false), expected, "{restart:?} {exit_code}");
    }
}

#[test]
fn an_update_swaps_one_and_holds_nobody() {
    let lives = [Life::default(), Life::default()];
    let swaps =
        [swap::Wanted { generation: 2, former: Some(0), ..swap::Wanted::default() }, swap::Wanted::default()];
    let wanted = Wanted {
        names: &["a", "b"],
        lives: &lives,
        swaps: &swaps,
        rescue: false,
        halted: false,
        whole: false,
    };
    let parts = [part("anchor", Running, 0), part("a", Running, 10), part("b", Running, 11)];
    let plan = decide(wanted, &parts, &Ready(|_: &Part| false), |_| Record::default(), NOW);
    let swap = Step::Swap { made: None, old: "a".to_owned(), keep: true, overlap: false };
    assert_eq!((plan.anchor, plan.members), (Step::Keep, vec![swap, Step::Keep]));
    assert!(plan.remove.is_empty() && plan.kill.is_empty());
    let halted = Wanted { halted: true, ..wanted };
    let plan = decide(halted, &parts, &Ready(|_: &Part| false), |_| Record::default(), NOW);
    assert_eq!(plan.members, [Step::Keep, Step::Keep], "what is halted is not exchanged");
}

#[test]
fn of_a_halted_member_the_present_one_counts() {
    let lives = [Life::default()];
    let swaps = [swap::Wanted { generation: 2, former: Some(0), ..swap::Wanted::default() }];
    let wanted =
        Wanted { names: &["a"], lives: &lives, swaps: &swaps, rescue: false, halted: true, whole: false };
    let next = |state| {
        let own = part("a", state, 20);
        Part { id: "next".to_owned(), tag: Tag { generation: 2, ..own.tag }, ..own }
    };
    let (anchor, a) = (|state| part("anchor", state, 0), |state| part("a", state, 10));
    let start = |id: &str| Step::Start { id: id.to_owned(), again: None };
    let table: Vec<(&str, Vec<Part>, Step)> = vec![
        ("swapped", vec![anchor(Running), a(Ended), next(Paused)], Step::Keep),
        ("swapped, and ended with the set", vec![anchor(Ended), a(Ended), next(Ended)], start("next")),
        ("not swapped yet", vec![anchor(Running), next(Created), a(Paused)], Step::Keep),
    ];
    for (what, parts, step) in table {
        for parts in [parts.clone(), parts.into_iter().rev().collect()] {
            let plan = decide(wanted, &parts, &Ready(|_: &Part| false), |_| Record::default(), NOW);
            assert_eq!((plan.members, plan.remove), (vec![step.clone()], vec![]), "{what}");
        }
    }
}

#[test]
fn a_restart_by_order_heeds_no_policy() {
    let lives = [Life::default()];
    let wanted =
        Wanted { names: &["a"], lives: &lives, swaps: &[], rescue: false, halted: false, whole: false };
    let mut parts = [part("anchor", Running, 0), part("a", Ended, 10)];
    parts[1].tag.life.restart = amphi_api::set::RestartPolicy::Never;
    let ordered = |ordered| Record { ordered, failures: 9, ..Record::default() };
    let step = |record| decide(wanted, &parts, &Ready(|_: &Part| false), |_| record, NOW).members.remove(0);
    assert_eq!(step(ordered(false)), Step::Rest);
    assert_eq!(step(ordered(true)), Step::Return { id: "a".to_owned() });
}

#[test]
fn who_gives_way_leaves_nothing_behind() {
    let of = |id: &str, generation| {
        let own = part("a", Ended, 10);
        Part { id: id.to_owned(), tag: Tag { generation, ..own.tag }, ..own }
    };
    let parts = [part("anchor", Running, 0), of("useless", 1), of("old", 2), of("kept", 3)];
    let left = |step: Step| {
        let plan =
            StartPlan { remove: vec!["useless".to_owned()], members: vec![step], ..StartPlan::default() };
        plan.left(&parts).map(|(_, generation)| generation).collect::<Vec<_>>()
    };
    let old = || "old".to_owned();
    let swap = |keep, overlap| Step::Swap { made: None, old: old(), keep, overlap };
    for (step, wanted) in [
        (Step::Keep, vec![2, 3]),
        (swap(true, false), vec![2, 3]),
        (swap(false, true), vec![2, 3]),
        (swap(false, false), vec![3]),
        (Step::Retire { old: old(), keep: true }, vec![2, 3]),
        (Step::Retire { old: old(), keep: false }, vec![3]),
    ] {
        assert_eq!(left(step.clone()), wanted, "{step:?}");
    }
}
