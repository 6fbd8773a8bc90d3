//! Placement alone, without store or network: decisions a second, each with its claim, by number of hosts. One line
//! `name: value` per figure. `amphi-lab bench-placement` runs it.

use amphi_api::host::{Acceleration, Claims, Engine, EngineName, HostSpec, HostState, VolumeActivation};
use amphi_api::instance::BodyKind;
use amphi_api::placement::Qos;
use amphi_api::{HostId, ImageId};
use amphi_controller::model::HostRecord;
use amphi_controller::scheduler::{Fleet, HostSight, Policy, Request, SCHEDULERS, SchedulerId, place};
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use uuid::Uuid;

const SIZES: [u128; 4] = [10, 100, 1_000, 10_000];
/// How long each figure is measured.
const MEASURE: Duration = Duration::from_secs(2);

fn main() {
    for size in SIZES {
        for scheduler in SCHEDULERS {
            let rate = indexed(size, scheduler.name);
            println!("placement_{}_{size}_hosts_per_second: {rate:.0}", scheduler.name);
        }
        println!("placement_by_looking_at_all_{size}_hosts_per_second: {:.0}", scanned(size));
    }
}

fn host(number: u128) -> HostRecord {
    let engine = |name| Engine { name, version: "1".into(), trouble: None };
    let engines =
        [EngineName::Docker, EngineName::Libvirt, EngineName::Ovs, EngineName::Ovn, EngineName::Lvm];
    let name = format!("h{number}");
    HostRecord {
        id: HostId(Uuid::from_u128(number)),
        name: name.clone(),
        state: HostState::Up,
        spec: Some(HostSpec {
            name: name.clone(),
            chassis: name,
            address: "10.0.0.1".into(),
            cpus: 66,
            memory_mib: 262_144,
            reserved_cpus: 2,
            reserved_memory_mib: 4096,
            volume_group_bytes: 1 << 41,
            volume_group_free_bytes: 1 << 41,
            acceleration: Acceleration::Kvm,
            activation: VolumeActivation::Dm,
            engines: engines.map(engine).to_vec(),
            shared_groups: Vec::new(),
            physical_networks: Vec::new(),
            moves_at: None,
            takes_passes: false,
            guest_kit: true,
            isolation: None,
            wire: amphi_api::wire::WIRE,
            agent_version: "0".into(),
        }),
        state_since: Timestamp::UNIX_EPOCH,
        hellos: 1,
        strangers: Vec::new(),
        disabled: false,
        disabled_reason: None,
        forced_down: false,
        barred_since: None,
        leased: false,
        best_effort: false,
        maintenance: None,
        joined_at: Timestamp::UNIX_EPOCH,
    }
}

/// Orders of mixed sizes and classes, the same in every run.
struct Orders(u64);

impl Orders {
    fn roll(&mut self, below: u64) -> u64 {
        // Knuth's MMIX generator.
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % below
    }

    fn next(&mut self, scheduler: SchedulerId) -> Request {
        let vcpus = [1, 1, 2, 4][self.roll(4) as usize];
        let qos = [Qos::Standard, Qos::Guaranteed, Qos::Burstable5, Qos::Burstable10][self.roll(4) as usize];
        Request {
            vcpus,
            memory_mib: u64::from(vcpus) * 1024,
            qos,
            bodies: vec![BodyKind::Set, BodyKind::Vm],
            network: true,
            images: vec![ImageId(Uuid::from_u128(u128::from(self.roll(20))))],
            zone: Some("nova".into()),
            scheduler: Some(scheduler),
            ..Request::default()
        }
    }
}

/// Hosts that are half full, with one image in twenty each in their caches.
fn half_full(size: u128) -> (Fleet, BTreeMap<HostId, Claims>) {
    let mut fleet = Fleet::new(Policy::default());
    let mut orders = Orders(7);
    let mut all = BTreeMap::new();
    for number in 0..size {
        let record = host(number);
        let id = record.id;
        let cores = 16 + orders.roll(32) as u32;
        let claims = Claims::of_instance(cores, u64::from(cores) * 2048, Qos::Guaranteed);
        fleet.set_host(Arc::new(record), claims, "nova".into(), Vec::new());
        fleet.count_images(id, &[ImageId(Uuid::from_u128(u128::from(orders.roll(20))))], true);
        all.insert(id, claims);
    }
    (fleet, all)
}

fn indexed(size: u128, name: &str) -> f64 {
    let Ok(scheduler) = SchedulerId::named(name) else { return 0.0 };
    let (mut fleet, start) = half_full(size);
    let mut claims = start.clone();
    let mut orders = Orders(1);
    let (began, mut done) = (Instant::now(), 0_u64);
    while began.elapsed() < MEASURE {
        let request = orders.next(scheduler);
        match fleet.place(&request) {
            Ok(placement) => {
                let Some(held) = claims.get_mut(&placement.host) else { continue };
                *held = held.plus(Claims::of_instance(request.vcpus, request.memory_mib, request.qos));
                fleet.set_claims(placement.host, *held);
            }
            // Full: begin anew.
            Err(_) => {
                claims.clone_from(&start);
                claims.iter().for_each(|(host, held)| fleet.set_claims(*host, *held));
            }
        }
        done += 1;
    }
    done as f64 / began.elapsed().as_secs_f64()
}

fn scanned(size: u128) -> f64 {
    let (fleet, _) = half_full(size);
    let sights: Vec<HostSight> = fleet.sights().collect();
    let mut orders = Orders(1);
    let (began, mut done) = (Instant::now(), 0_u64);
    while began.elapsed() < MEASURE {
        let request = orders.next(SchedulerId::default());
        if place(&sights, &request, fleet.policy()).is_err() {
            break;
        }
        done += 1;
    }
    done as f64 / began.elapsed().as_secs_f64()
}
