use super::*;
use amphi_api::host::{Acceleration, Engine, EngineName, VolumeActivation};
use proptest::prelude::*;
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
        physical_networks: vec!["lan".into()],
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
        zone: "nova",
        metadata: Vec::new(),
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
    let claims = Claims { vcpus: 16, memory_mib: 3500, volume_gib: 10, instances: 1 };
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
    let busy = Claims { vcpus: 8, memory_mib: 2048, volume_gib: 4, instances: 4 };
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

proptest! {
    /// Whatever is asked in whatever order, no host is promised more than it has.
    #[test]
    fn never_overfills(
        hosts in prop::collection::vec((1u32..8, 600u64..8192, 0u64..20), 1..5),
        asks in prop::collection::vec((1u32..4, 16u64..2048, 0u64..6), 1..60),
    ) {
        let specs: Vec<HostSpec> = hosts.iter().map(|(c, m, v)| spec(*c, *m, *v)).collect();
        let mut claims = vec![Claims::default(); specs.len()];
        let policy = Policy { cpu_overcommit: 2, memory_overcommit_percent: 100 };
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
