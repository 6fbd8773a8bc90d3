use super::super::exchange::{ExchangeRecord, exchange_step};
use super::super::instance::tests::{fault as a_fault, observed, sample};
use super::super::instance::{BodyRecord, InstanceRecord};
use super::super::journey::JourneyRecord;
use super::*;
use amphi_api::instance::{BodyKind, BodySpec, ExchangePhase, MoveCause, VmSpec};
use amphi_api::wire::{BodyState, LeavingStatus};
use amphi_api::{ExchangeId, HostId, InstanceId, ProjectId};
use jiff::Timestamp;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_000_000 + second).unwrap()
}

/// What both hosts say, and what was ordered.
#[derive(Clone)]
struct Scene {
    state: BodyState,
    /// Under way, recalled, away; none: the old host has not heard of the order.
    told: Option<(bool, bool, bool)>,
    landed: bool,
    recalled: bool,
    cancelled: bool,
    fault: bool,
    from_up: bool,
    to_up: bool,
    second: i64,
    deadline: Option<u32>,
}

const GOES: Scene = Scene {
    state: BodyState::Running,
    told: Some((true, false, false)),
    landed: false,
    recalled: false,
    cancelled: false,
    fault: false,
    from_up: true,
    to_up: true,
    second: 1,
    deadline: None,
};

fn step(scene: &Scene) -> ExchangeStep {
    let id = ExchangeId::new();
    let journey = JourneyRecord {
        from: HostId::new(),
        to: HostId::new(),
        reason: "r".into(),
        cause: MoveCause::Order,
        live: true,
        landed: scene.landed,
        recalled: scene.recalled.then(|| fault("why", "said before", at(0))),
        ready: true,
        fault: None,
        volumes: Vec::new(),
        read: 0,
        left_at: None,
        stopped: false,
        copy: None,
        deadline_s: scene.deadline,
    };
    let spec = BodySpec::Vm(VmSpec { image: "vm".into(), root_gib: None, set: None });
    let exchange = ExchangeRecord {
        id,
        project: ProjectId::DEFAULT,
        instance: InstanceId::new(),
        from: BodyKind::Vm,
        to: BodyKind::Vm,
        body: BodyRecord { spec, images: Vec::new() },
        added: false,
        journey: Some(journey.clone()),
        cancelled: scene.cancelled,
        phase: ExchangePhase::Crossing,
        phase_since: at(0),
        outage_ms: None,
        fault: None,
        started_at: at(0),
        ended_at: None,
    };
    let mut instance = InstanceRecord { updated_at: at(0), ..sample() };
    let mut seen = observed(instance.epoch, scene.state);
    seen.fault = scene.fault.then(|| Fault { since: at(0), ..a_fault() });
    let told = |(under_way, recalled, away)| LeavingStatus { exchange: id, under_way, recalled, away };
    seen.leaving = scene.told.map(told);
    instance.observed = Some(seen);
    exchange_step(ExchangeSight {
        exchange: &exchange,
        instance: &instance,
        host_up_since: scene.from_up.then(|| at(-100)),
        journey: Some(JourneySight {
            journey: &journey,
            from_up_since: scene.from_up.then(|| at(-100)),
            to_up_since: scene.to_up.then(|| at(-100)),
            to_since: at(0),
            from_clear: true,
            to_clear: true,
            read: 0,
            read_fault: None,
        }),
        now: at(scene.second),
    })
}

#[test]
fn steps() {
    use BodyState::{Paused, Starting, Stopped};
    let idle = |away| Some((false, false, away));
    let back = Some((false, true, false));
    let gone = Scene { state: Stopped, told: idle(true), ..GOES };
    let wait = |s: &ExchangeStep| *s == ExchangeStep::Wait;
    let land = |s: &ExchangeStep| *s == ExchangeStep::Land;
    let recall = |s: &ExchangeStep| matches!(s, ExchangeStep::Recall(_));
    let late = |s: &ExchangeStep| matches!(s, ExchangeStep::Recall(f) if f.code == "timeout");
    let fail = |s: &ExchangeStep| matches!(s, ExchangeStep::Fail(f) if f.code == "why");
    type Want<'a> = &'a dyn Fn(&ExchangeStep) -> bool;
    let table: Vec<(&str, Scene, Want)> = vec![
        ("goes over", GOES, &wait),
        ("goes over for hours", Scene { second: 9_000, ..GOES }, &wait),
        ("within its deadline", Scene { second: 59, deadline: Some(60), ..GOES }, &wait),
        ("past its deadline", Scene { second: 60, deadline: Some(60), ..GOES }, &late),
        (
            "past it, and whole there",
            Scene { landed: true, second: 60, deadline: Some(60), ..gone.clone() },
            &land,
        ),
        (
            "past it, and not seen there yet",
            Scene { second: 60, deadline: Some(90), ..gone.clone() },
            &recall,
        ),
        ("past it, gone just now", Scene { second: 19, deadline: Some(10), ..gone.clone() }, &wait),
        ("is halted at the end of it", Scene { state: Starting, ..GOES }, &wait),
        ("not heard of yet", Scene { told: None, ..GOES }, &wait),
        ("never heard of", Scene { told: None, second: 30, ..GOES }, &recall),
        ("gone, and whole there", Scene { landed: true, ..gone.clone() }, &land),
        ("gone, not seen there yet", gone.clone(), &wait),
        ("gone, and never seen there", Scene { second: 30, ..gone.clone() }, &recall),
        ("gone, its new host is away", Scene { to_up: false, ..gone.clone() }, &wait),
        ("gone, its new host stays away", Scene { to_up: false, second: 30, ..gone.clone() }, &recall),
        ("ended by itself", Scene { told: idle(false), ..gone.clone() }, &recall),
        (
            "ended, why is forgotten, whole there",
            Scene { told: idle(false), landed: true, ..gone.clone() },
            &recall,
        ),
        ("whole there, the old host still at it", Scene { landed: true, ..GOES }, &wait),
        (
            "whole there, halted here, nothing under way",
            Scene { state: Paused, landed: true, told: idle(false), ..GOES },
            &wait,
        ),
        ("gone, but its engine is silent", Scene { landed: true, fault: true, ..gone.clone() }, &wait),
        ("the old host is away", Scene { from_up: false, landed: true, ..gone.clone() }, &wait),
        ("its new host is away for a moment", Scene { to_up: false, ..GOES }, &wait),
        ("its new host stays away", Scene { to_up: false, second: 30, ..GOES }, &recall),
        ("called off", Scene { cancelled: true, ..GOES }, &recall),
        ("called off, told so, still under way", Scene { cancelled: true, recalled: true, ..GOES }, &wait),
        ("called off, and gone before", Scene { cancelled: true, landed: true, ..gone.clone() }, &land),
        ("refused, just now", Scene { told: idle(false), fault: true, ..GOES }, &wait),
        ("refused for long", Scene { told: idle(false), fault: true, second: 30, ..GOES }, &recall),
        ("recalled, not heard of", Scene { recalled: true, told: idle(false), ..GOES }, &wait),
        ("recalled", Scene { recalled: true, told: back, ..GOES }, &fail),
        ("recalled, and halted", Scene { recalled: true, told: back, state: Starting, ..GOES }, &fail),
        (
            "recalled, ended, whole there",
            Scene { recalled: true, told: back, state: Stopped, landed: true, ..GOES },
            &fail,
        ),
        (
            "recalled too late",
            Scene { recalled: true, told: Some((false, true, true)), state: Stopped, landed: true, ..GOES },
            &land,
        ),
    ];
    for (what, scene, want) in table {
        let step = step(&scene);
        assert!(want(&step), "{what}: {step:?}");
    }
}

/// Whatever the hosts say: it lands only when the old host's engine has said that it went, and fails only when the old host
/// has said that nothing more will go.
#[test]
fn no_word_decides_too_early() {
    let states =
        [BodyState::Running, BodyState::Starting, BodyState::Paused, BodyState::Stopped, BodyState::Absent];
    let bits = |n: u32, bit: u32| n & (1 << bit) != 0;
    for state in states {
        for n in 0..(1 << 9) {
            let told = (bits(n, 0), bits(n, 1), bits(n, 2));
            let scene = Scene {
                deadline: None,
                state,
                told: bits(n, 3).then_some(told),
                landed: bits(n, 4),
                recalled: bits(n, 5),
                cancelled: bits(n, 6),
                fault: bits(n, 7),
                from_up: true,
                to_up: bits(n, 8),
                second: 600,
            };
            let heard = scene.told.is_some();
            let (under_way, recalled, away) = told;
            match step(&scene) {
                ExchangeStep::Land => {
                    assert!(heard && away && !under_way && scene.landed && state.is_still())
                }
                ExchangeStep::Fail(_) => assert!(heard && recalled && !under_way),
                ExchangeStep::Recall(_) => assert!(!scene.recalled),
                ExchangeStep::Wait => {}
                other => panic!("{other:?}"),
            }
        }
    }
}
