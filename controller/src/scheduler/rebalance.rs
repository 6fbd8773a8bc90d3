//! A plan that levels the hosts' load: (hosts, instances that can move) → moves. Pure, and only a plan.
//!
//! A host's load is what is set aside of its CPUs or of its memory, whichever is the larger share. Each step takes one
//! instance from the fullest host to where placement would put it, if that lowers the fuller of the two; it ends when no
//! such step is left.

use super::filters::{cpu_room, memory_room};
use super::{HostSight, Policy, Request, place};
use amphi_api::HostId;
use amphi_api::host::{Claims, HostState};

/// An instance that can move: where it is and what it asks of another host.
#[derive(Clone, Debug)]
pub struct Movable<I> {
    pub id: I,
    pub host: HostId,
    pub request: Request,
}

/// Moves in order, and the spread of loads before and after.
#[derive(Clone, Debug, PartialEq)]
pub struct Levelled<I> {
    pub moves: Vec<(I, HostId, HostId)>,
    pub before: f64,
    pub after: f64,
}

/// Below this a difference is none: no move is worth it.
const WORTH: f64 = 0.05;

pub fn level<I: Copy + PartialEq>(
    mut hosts: Vec<HostSight>,
    mut movable: Vec<Movable<I>>,
    policy: &Policy,
    most: usize,
) -> Levelled<I> {
    // Who can take or give at all.
    hosts.retain(|h| h.spec.is_some() && h.state == HostState::Up);
    hosts.sort_by_key(|h| h.id);
    let before = spread(&hosts, policy);
    let mut moves = Vec::new();
    while moves.len() < most {
        let Some(step) = next(&hosts, &movable, policy) else { break };
        let (at, to) = step;
        let Movable { id, host, request } = &mut movable[at];
        let claims = Claims::of_instance(request.vcpus, request.memory_mib, request.qos);
        for sight in &mut hosts {
            if sight.id == *host {
                sight.claims = sight.claims.minus(claims);
            } else if sight.id == to {
                sight.claims = sight.claims.plus(claims);
            }
        }
        moves.push((*id, *host, to));
        *host = to;
        // Each moves once: a plan is not a tour.
        movable.remove(at);
    }
    Levelled { moves, before, after: spread(&hosts, policy) }
}

/// The best single move: which one, and to where.
fn next<I: Copy + PartialEq>(
    hosts: &[HostSight],
    movable: &[Movable<I>],
    policy: &Policy,
) -> Option<(usize, HostId)> {
    let mut fullest: Vec<&HostSight> = hosts.iter().collect();
    fullest.sort_by(|a, b| load(b, &b.claims, policy).total_cmp(&load(a, &a.claims, policy)));
    for source in fullest {
        let now = load(source, &source.claims, policy);
        let mut best: Option<(f64, usize, HostId)> = None;
        for (at, one) in movable.iter().enumerate().filter(|(_, m)| m.host == source.id) {
            let request = Request { excluded: vec![source.id], ..one.request.clone() };
            let Ok(placement) = place(hosts, &request, policy) else { continue };
            let claims = Claims::of_instance(request.vcpus, request.memory_mib, request.qos);
            let Some(target) = hosts.iter().find(|h| h.id == placement.host) else { continue };
            let there = load(target, &target.claims.plus(claims), policy);
            let here = load(source, &source.claims.minus(claims), policy);
            let fuller = there.max(here);
            if fuller + WORTH <= now && best.is_none_or(|(least, ..)| fuller < least) {
                best = Some((fuller, at, placement.host));
            }
        }
        if let Some((_, at, to)) = best {
            return Some((at, to));
        }
    }
    None
}

fn load(host: &HostSight, claims: &Claims, policy: &Policy) -> f64 {
    let Some(spec) = host.spec else { return 0.0 };
    let share =
        |(capacity, used): (u64, u64)| if capacity == 0 { 1.0 } else { used as f64 / capacity as f64 };
    share(cpu_room(spec, claims, policy)).max(share(memory_room(spec, claims, policy)))
}

fn spread(hosts: &[HostSight], policy: &Policy) -> f64 {
    let loads = || hosts.iter().filter(|h| h.disabled.is_none()).map(|h| load(h, &h.claims, policy));
    (loads().fold(0.0, f64::max) - loads().fold(f64::MAX, f64::min)).max(0.0)
}

#[cfg(test)]
mod tests {
    use super::super::tests::spec;
    use super::*;
    use amphi_api::instance::BodyKind;
    use uuid::Uuid;

    fn id(number: u128) -> HostId {
        HostId(Uuid::from_u128(number))
    }

    /// Instances of 1 vCPU and so much memory on each host, of 1024 MiB each; most moves; the moves that come out.
    #[test]
    fn loads_are_levelled_and_no_further() {
        let facts = spec(64, 1536, 10);
        type Row = (&'static [&'static [u64]], usize, &'static [(usize, u128, u128)]);
        let table: &[Row] = &[
            (&[&[256, 256], &[]], 9, &[(0, 1, 2)]),
            (&[&[256, 256, 256, 256], &[], &[]], 9, &[(0, 1, 2), (1, 1, 3)]),
            (&[&[256, 256, 256, 256], &[], &[]], 1, &[(0, 1, 2)]),
            (&[&[256], &[]], 9, &[]),
            (&[&[256, 16], &[]], 9, &[]),
            (&[&[512, 256], &[256]], 9, &[(1, 1, 2)]),
            (&[&[512], &[256]], 9, &[]),
            (&[], 9, &[]),
        ];
        for (at, (layout, most, want)) in table.iter().enumerate() {
            let mut movable = Vec::new();
            let mut sights = Vec::new();
            for (number, instances) in (1..).zip(*layout) {
                let mut claims = Claims::default();
                for memory_mib in *instances {
                    claims = claims.plus(Claims::of_instance(1, *memory_mib, Default::default()));
                    let bodies = vec![BodyKind::Set];
                    let request = Request { vcpus: 1, memory_mib: *memory_mib, bodies, ..Request::default() };
                    movable.push(Movable { id: movable.len(), host: id(number), request });
                }
                sights.push(HostSight {
                    id: id(number),
                    name: "h",
                    state: HostState::Up,
                    spec: Some(&facts),
                    claims,
                    disabled: None,
                    best_effort: false,
                    zone: "nova",
                    metadata: &[],
                    images: None,
                    starting: 0,
                });
            }
            let plan = level(sights, movable, &Policy::default(), *most);
            let got: Vec<_> =
                plan.moves.iter().map(|(one, from, to)| (*one, from.0.as_u128(), to.0.as_u128())).collect();
            assert_eq!(got, *want, "row {at}: {plan:?}");
            assert!(plan.after <= plan.before, "row {at}: {plan:?}");
        }
    }
}
