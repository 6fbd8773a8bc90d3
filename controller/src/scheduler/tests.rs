use super::*;
use crate::model::{GroupPolicy, HostRecord};
use amphi_api::host::{Acceleration, Engine, EngineName, VolumeActivation};
use proptest::prelude::*;
use std::sync::Arc;
use uuid::Uuid;

const GIB: u64 = 1 << 30;

pub(super) fn spec(cpus: u32, memory_mib: u64, volume_gib: u64) -> HostSpec {
    let engine = |name| Engine { name, version: "1".into(), trouble: None };
    HostSpec {
        name: "h".into(),
        chassis: "h".into(),
        address: "10.0.0.1".into(),
        cpus,
        memory_mib,
        reserved_cpus: 1,
        reserved_memory_mib: 512,
        volume_group_bytes: volume_gib * GIB,
        volume_group_free_bytes: volume_gib * GIB,
        acceleration: Acceleration::Tcg,
        activation: VolumeActivation::Loop,
        engines: [EngineName::Docker, EngineName::Libvirt, EngineName::Ovs, EngineName::Ovn, EngineName::Lvm]
            .map(engine)
            .to_vec(),
        shared_groups: Vec::new(),
        physical_networks: vec!["lan".into()],
        moves_at: None,
        takes_passes: false,
        guest_kit: true,
        isolation: None,
        wire: amphi_api::wire::WIRE,
        agent_version: "0".into(),
    }
}

fn sight(number: u128, spec: Option<&HostSpec>, claims: Claims) -> HostSight<'_> {
    HostSight {
        id: HostId(Uuid::from_u128(number)),
        name: "h",
        state: HostState::Up,
        spec,
        claims,
        disabled: None,
        best_effort: false,
        zone: "nova",
        metadata: &[],
        images: None,
        starting: 0,
    }
}

fn ask() -> Request {
    Request {
        vcpus: 1,
        memory_mib: 256,
        volume_gib: 1,
        volume: true,
        network: true,
        bodies: vec![BodyKind::Set, BodyKind::Vm],
        ..Request::default()
    }
}

fn id(number: u128) -> HostId {
    HostId(Uuid::from_u128(number))
}

#[test]
fn every_reason_is_told() {
    let good = spec(2, 4096, 10);
    let broken = |name| {
        let mut spec = good.clone();
        for engine in &mut spec.engines {
            if engine.name == name {
                engine.trouble = Some("connection refused".into());
            }
        }
        spec
    };
    let claims = Claims { vcpus: 16, memory_mib: 3500, volume_gib: 10, ..Claims::default() };
    type Row = (HostSpec, Claims, HostState, fn(&mut Request), &'static [&'static str]);
    let table: Vec<Row> = vec![
        (good.clone(), claims, HostState::Up, |_| (), &["vCPUs are taken", "MiB are taken", "GiB are taken"]),
        (good.clone(), Claims::default(), HostState::Down, |_| (), &["is down"]),
        (good.clone(), Claims::default(), HostState::Up, |r| r.vcpus = 3, &["has 2 CPUs"]),
        (good.clone(), Claims::default(), HostState::Up, |r| r.pinned = Some(id(9)), &["not the host asked"]),
        (
            good.clone(),
            Claims::default(),
            HostState::Up,
            |r| r.volume_host = Some(id(9)),
            &["hold the volume"],
        ),
        (good.clone(), Claims::default(), HostState::Up, |r| r.excluded = vec![id(1)], &["excluded"]),
        (broken(EngineName::Ovn), Claims::default(), HostState::Up, |_| (), &["ovn: connection refused"]),
        (broken(EngineName::Lvm), Claims::default(), HostState::Up, |_| (), &["lvm: connection refused"]),
        (
            broken(EngineName::Docker),
            Claims::default(),
            HostState::Up,
            |r| r.bodies = vec![BodyKind::Set],
            &["docker: connection refused"],
        ),
        (
            HostSpec { volume_group_free_bytes: GIB / 2, ..good.clone() },
            Claims::default(),
            HostState::Up,
            |_| (),
            &["0 GiB of the volume group are free"],
        ),
    ];
    for (spec, claims, state, change, want) in table {
        let mut request = ask();
        change(&mut request);
        let host = HostSight { state, ..sight(1, Some(&spec), claims) };
        let refusal = place(&[host], &request, &Policy::default()).unwrap_err();
        let reasons = &refusal.hosts[0].1;
        assert_eq!(reasons.len(), want.len(), "{reasons:?}");
        for (reason, part) in reasons.iter().zip(want) {
            assert!(reason.contains(part), "{reason} has no {part}");
        }
    }
    assert_eq!(place(&[], &ask(), &Policy::default()).unwrap_err().to_string(), "no host has joined yet");
}

#[test]
fn the_preferred_body_dominates_and_then_the_emptier_host_wins() {
    let good = spec(2, 4096, 10);
    let mut no_docker = good.clone();
    no_docker.engines.retain(|e| e.name != EngineName::Docker);
    let busy = Claims { vcpus: 8, memory_mib: 2048, volume_gib: 4, ..Claims::default() };
    let hosts = [sight(1, Some(&no_docker), Claims::default()), sight(2, Some(&good), busy)];
    assert_eq!(place(&hosts, &ask(), &Policy::default()), Ok(Placement { host: id(2), body: 0 }));
    let only_vm = Request { bodies: vec![BodyKind::Vm], ..ask() };
    assert_eq!(place(&hosts, &only_vm, &Policy::default()), Ok(Placement { host: id(1), body: 0 }));
    assert_eq!(place(&hosts[..1], &ask(), &Policy::default()), Ok(Placement { host: id(1), body: 1 }));
}

#[test]
fn disabled_hosts_zones_and_neighbours() {
    let good = spec(2, 4096, 10);
    type Row<'a> = (HostSight<'a>, fn(&mut Request), Option<&'static str>);
    let table: Vec<Row> = vec![
        (
            HostSight { disabled: Some(""), ..sight(1, Some(&good), Claims::default()) },
            |_| (),
            Some("is disabled"),
        ),
        (
            HostSight { disabled: Some("disk"), ..sight(1, Some(&good), Claims::default()) },
            |_| (),
            Some("is disabled: disk"),
        ),
        (
            HostSight { disabled: Some("disk"), ..sight(1, Some(&good), Claims::default()) },
            |r| r.bodies.clear(),
            None,
        ),
        (sight(1, Some(&good), Claims::default()), |r| r.zone = Some("nova".into()), None),
        (
            sight(1, Some(&good), Claims::default()),
            |r| r.zone = Some("far".into()),
            Some("is in zone 'nova', not 'far'"),
        ),
        (sight(1, Some(&good), Claims::default()), |r| r.among = Some([id(1)].into()), None),
        (
            sight(1, Some(&good), Claims::default()),
            |r| r.among = Some([id(2)].into()),
            Some("runs none of the instances that it shall be beside"),
        ),
    ];
    for (at, (host, change, want)) in table.into_iter().enumerate() {
        let mut request = ask();
        change(&mut request);
        let found = place(&[host], &request, &Policy::default());
        match want {
            None => assert!(found.is_ok(), "row {at}: {found:?}"),
            Some(reason) => assert_eq!(found.unwrap_err().hosts[0].1, [reason], "row {at}"),
        }
    }
}

fn record(number: u128, spec: &HostSpec) -> HostRecord {
    HostRecord {
        id: id(number),
        name: format!("h{number}"),
        state: HostState::Up,
        spec: Some(spec.clone()),
        state_since: jiff::Timestamp::UNIX_EPOCH,
        hellos: 1,
        strangers: Vec::new(),
        disabled: false,
        disabled_reason: None,
        forced_down: false,
        barred_since: None,
        leased: false,
        best_effort: false,
        maintenance: None,
        joined_at: jiff::Timestamp::UNIX_EPOCH,
    }
}

#[test]
fn classes_set_aside_what_they_say() {
    use Qos::*;
    let good = spec(5, 3512, 10);
    let both = |a: Claims, b: Claims| a.plus(b);
    let of = Claims::of_instance;
    // Four CPUs and 3000 MiB are for instances; the cloud's own ratios are 16 to 1 and 1 to 1.
    let table: &[(Claims, u32, u64, Qos, Option<&str>)] = &[
        (Claims::default(), 4, 3000, Guaranteed, None),
        (
            of(1, 16, Guaranteed),
            4,
            16,
            Guaranteed,
            Some("1.00 of 4 CPUs are set aside, 4 vCPUs of class guaranteed ask 4.00"),
        ),
        (of(8, 16, Burstable2), 1, 16, Burstable10, Some("4.00 of 4 CPUs")),
        (of(7, 16, Burstable2), 5, 16, Burstable10, None),
        (of(35, 16, Burstable10), 2, 16, Burstable5, None),
        (of(48, 16, Standard), 1, 16, Guaranteed, None),
        (of(49, 16, Standard), 1, 16, Guaranteed, Some("3.06 of 4 CPUs")),
        (of(64, 16, Standard), 1, 16, Standard, Some("64 of 64 vCPUs are taken, 1 are asked")),
        (of(3, 16, Guaranteed), 5, 16, Standard, None),
        (of(1, 1500, Guaranteed), 1, 2250, Burstable5, None),
        (
            of(1, 1500, Guaranteed),
            1,
            2253,
            Burstable5,
            Some("1500 of 3000 MiB are set aside, 2253 MiB of class burstable_5 ask 1502"),
        ),
        (of(1, 1500, Burstable5), 1, 2000, Standard, None),
        (
            both(of(1, 1500, Burstable5), of(1, 2000, Standard)),
            1,
            16,
            Standard,
            Some("3000 of 3000 MiB are set aside"),
        ),
        (Claims::default(), 1, 16, BestEffort, Some("takes no best_effort instances")),
    ];
    for (at, (claims, vcpus, memory_mib, qos, want)) in table.iter().enumerate() {
        let request = Request {
            vcpus: *vcpus,
            memory_mib: *memory_mib,
            qos: *qos,
            bodies: vec![BodyKind::Set],
            ..Request::default()
        };
        let found = place(&[sight(1, Some(&good), *claims)], &request, &Policy::default());
        match (found, want) {
            (Ok(_), None) => {}
            (Err(refusal), Some(part)) => assert!(refusal.to_string().contains(part), "row {at}: {refusal}"),
            (found, want) => panic!("row {at}: {found:?}, not {want:?}"),
        }
    }
    let request = Request {
        vcpus: 5,
        memory_mib: 3000,
        qos: BestEffort,
        bodies: vec![BodyKind::Set],
        ..Request::default()
    };
    let full = of(64, 3000, Standard);
    let allowed = HostSight { best_effort: true, ..sight(1, Some(&good), full) };
    assert!(place(&[allowed], &request, &Policy::default()).is_ok(), "nothing is set aside for it");
    let metadata = [(BEST_EFFORT_KEY.to_owned(), "true".to_owned())];
    let allowed = HostSight { metadata: &metadata, ..sight(1, Some(&good), full) };
    assert!(place(&[allowed], &request, &Policy::default()).is_ok());
}

#[test]
fn schedulers_and_what_lies_in_the_cache() {
    let good = spec(9, 4608, 10);
    let image = ImageId::new();
    let cached = BTreeMap::from([(image, 1)]);
    let claims = |vcpus| Claims { vcpus, ..Claims::default() };
    let hosts = [
        sight(1, Some(&good), claims(0)),
        sight(2, Some(&good), claims(64)),
        sight(3, Some(&good), claims(60)),
    ];
    let with = |name: &str| Request { scheduler: Some(SchedulerId::named(name).unwrap()), ..ask() };
    let chosen =
        |hosts: &[HostSight], request: &Request| place(hosts, request, &Policy::default()).unwrap().host;
    assert_eq!(chosen(&hosts, &ask()), id(1));
    assert_eq!(chosen(&hosts, &with("spread")), id(1));
    assert_eq!(chosen(&hosts, &with("pack")), id(2));
    let mut warm = hosts.clone();
    warm[2].images = Some(&cached);
    let asks = |name| Request { images: vec![image], ..with(name) };
    assert_eq!(chosen(&warm, &asks("pack")), id(3), "a little less full, but the image is there");
    assert_eq!(chosen(&warm, &asks("spread")), id(1), "half a host emptier is worth more");
    assert_eq!(SchedulerId::named("gold").unwrap_err(), "'gold' is no scheduler; there are spread, pack");
}

#[test]
fn a_refusal_of_many_hosts_stays_short() {
    let mut fleet = Fleet::default();
    for n in 0..100 {
        fleet.set_host(Arc::new(record(n, &spec(2, 1024, 1))), Claims::default(), "nova".into(), Vec::new());
    }
    let refusal = fleet.place(&Request { vcpus: 5, ..ask() }).unwrap_err();
    assert_eq!((refusal.hosts.len(), refusal.more), (16, 84));
    assert!(refusal.to_string().ends_with("; and 84 hosts more"), "{refusal}");
}

#[test]
fn ten_thousand_hosts_are_weighed_quickly() {
    let good = spec(64, 262_144, 1000);
    let hosts: Vec<_> = (0..10_000)
        .map(|n| sight(n, Some(&good), Claims { vcpus: (n % 500) as u32, ..Claims::default() }))
        .collect();
    let began = std::time::Instant::now();
    let found = place(&hosts, &ask(), &Policy::default()).unwrap();
    println!("place among 10,000 hosts: {:?}", began.elapsed());
    assert_eq!(found.host, id(0));
}

#[test]
fn what_is_about_to_start_spreads_whatever_is_in_the_cache() {
    let good = spec(64, 65_536, 1000);
    let image = ImageId::new();
    let held = BTreeMap::from([(image, 1)]);
    let mut hosts: Vec<_> = (0..4).map(|n| sight(n, Some(&good), Claims::default())).collect();
    hosts[2].images = Some(&held);
    let request = Request { images: vec![image], ..ask() };
    for _ in 0..40 {
        let to = place(&hosts, &request, &Policy::default()).unwrap().host;
        let host = hosts.iter_mut().find(|host| host.id == to).unwrap();
        host.claims.vcpus += 1;
        host.starting += 1;
    }
    let got: Vec<_> = hosts.iter().map(|host| host.starting).collect();
    assert!(got.iter().all(|n| (8..=15).contains(n)), "{got:?}");
}

/// One step of a fleet's life: a host, and what becomes of it.
#[derive(Clone, Debug)]
enum Turn {
    Claims(u128, u32, u64, u64),
    Record(u128, bool, bool, bool),
    Image(u128, usize, bool),
    Starting(u128, bool),
    Gone(u128),
    Ask(u32, u64, u64, usize, usize, usize, bool),
}

fn turn(hosts: u128) -> impl Strategy<Value = Turn> {
    let host = 0..hosts;
    prop_oneof![
        (host.clone(), 0u32..70, 0u64..4000, 0u64..12).prop_map(|(h, v, m, g)| Turn::Claims(h, v, m, g)),
        (host.clone(), any::<bool>(), any::<bool>(), any::<bool>())
            .prop_map(|(h, u, d, e)| Turn::Record(h, u, d, e)),
        (host.clone(), 0usize..3, any::<bool>()).prop_map(|(h, i, c)| Turn::Image(h, i, c)),
        (host.clone(), any::<bool>()).prop_map(|(h, c)| Turn::Starting(h, c)),
        host.prop_map(Turn::Gone),
        (0u32..5, 0u64..2000, 0u64..4, 0usize..3, 0usize..3, 0usize..5, any::<bool>())
            .prop_map(|(v, m, g, b, i, p, s)| Turn::Ask(v, m, g, b, i, p, s)),
        (0u32..5, 0u64..2000, 0u64..4, 0usize..3, 0usize..3, 0usize..5, any::<bool>())
            .prop_map(|(v, m, g, b, i, p, s)| Turn::Ask(v, m, g, b, i, p, s)),
    ]
}

proptest! {
    /// The fleet decides as looking at every host does, whatever has happened before.
    #[test]
    fn the_order_changes_no_decision(turns in prop::collection::vec(turn(12), 1..80)) {
        let mut fleet = Fleet::new(Policy::default());
        let (good, mut no_docker) = (spec(5, 4096, 10), spec(5, 4096, 10));
        no_docker.engines.retain(|e| e.name != EngineName::Docker);
        let images: Vec<ImageId> = (1..4).map(|n| ImageId(Uuid::from_u128(n))).collect();
        let mut held: BTreeMap<(u128, usize), u32> = BTreeMap::new();
        for turn in turns {
            match turn {
                Turn::Claims(host, vcpus, memory_mib, volume_gib) => {
                    fleet.set_claims(id(host), Claims { vcpus, memory_mib, volume_gib, ..Claims::default() });
                }
                Turn::Record(host, up, disabled, engines) => {
                    let base = record(host, if engines { &good } else { &no_docker });
                    let state = if up { HostState::Up } else { HostState::Down };
                    let record = HostRecord { state, disabled: disabled && up, ..base };
                    fleet.set_host(Arc::new(record), Claims::default(), "nova".into(), Vec::new());
                }
                Turn::Image(host, image, comes) => {
                    let count = held.entry((host, image)).or_default();
                    if comes || *count > 0 {
                        *count = if comes { *count + 1 } else { *count - 1 };
                        fleet.count_images(id(host), &images[image..=image], comes);
                    }
                }
                Turn::Starting(host, comes) => fleet.count_starting(id(host), comes),
                Turn::Gone(host) => fleet.remove(id(host)),
                Turn::Ask(vcpus, memory_mib, volume_gib, bodies, image, policy, pack) => {
                    let bodies = [vec![BodyKind::Set, BodyKind::Vm], vec![BodyKind::Set], vec![]][bodies].clone();
                    let group = GroupPolicy::ALL.get(policy).map(|policy| GroupAsk {
                        policy: *policy,
                        members: [(id(1), 1), (id(3), 2)].into(),
                        max_per_host: 1,
                    });
                    let request = Request {
                        vcpus, memory_mib, volume_gib, volume: volume_gib > 0, bodies, group,
                        images: vec![images[image]],
                        scheduler: Some(SchedulerId::named(if pack { "pack" } else { "spread" }).unwrap()),
                        ..Request::default()
                    };
                    let sights: Vec<_> = fleet.sights().collect();
                    let plain = place(&sights, &request, fleet.policy());
                    prop_assert_eq!(fleet.place(&request).ok(), plain.ok());
                }
            }
        }
    }

    /// Whatever is asked in whatever order, no host is promised more than it has.
    #[test]
    fn never_overfills(
        hosts in prop::collection::vec((1u32..8, 600u64..8192, 0u64..20), 1..5),
        asks in prop::collection::vec((1u32..4, 16u64..2048, 0u64..6), 1..60),
    ) {
        let specs: Vec<HostSpec> = hosts.iter().map(|(c, m, v)| spec(*c, *m, *v)).collect();
        let mut claims = vec![Claims::default(); specs.len()];
        let policy = Policy { cpu_overcommit: 2, memory_overcommit_percent: 100, ..Policy::default() };
        for (vcpus, memory_mib, volume_gib) in asks {
            let sights: Vec<_> = specs.iter().zip(&claims).enumerate()
                .map(|(n, (spec, claims))| sight(n as u128, Some(spec), *claims)).collect();
            let request = Request { vcpus, memory_mib, volume_gib, volume: volume_gib > 0, ..ask() };
            match place(&sights, &request, &policy) {
                Ok(placement) => {
                    let at = placement.host.0.as_u128() as usize;
                    claims[at].vcpus += vcpus;
                    claims[at].memory_mib += memory_mib;
                    claims[at].volume_gib += volume_gib;
                }
                Err(refusal) => {
                    prop_assert_eq!(refusal.hosts.len(), specs.len());
                    prop_assert!(refusal.hosts.iter().all(|(_, reasons)| !reasons.is_empty()));
                }
            }
        }
        for (spec, claims) in specs.iter().zip(&claims) {
            prop_assert!(claims.vcpus <= spec.cpus.saturating_sub(1).max(1) * 2);
            prop_assert!(claims.memory_mib <= spec.memory_mib.saturating_sub(512));
            prop_assert!(claims.volume_gib <= spec.volume_group_bytes / GIB);
        }
    }
}
