//! Wiring ports on a real Open vSwitch and the kernel's own veth pairs, without Docker.

mod common;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use amphi_hostsrv::network::ovs::{Datapath, Plug};
use amphi_hostsrv::network::sweep::Sweep;
use amphi_hostsrv::network::{NetworkError, PortSpec, Wiring, host_device, link};
use common::plugin::wiring;
use common::{on_private_host, run};
use tokio::runtime::Runtime;
use uuid::Uuid;

const SETTLE: Option<Duration> = Some(Duration::from_secs(10));

fn spec(number: u8) -> PortSpec {
    PortSpec {
        port: Uuid::new_v4(),
        mac: format!("0a:00:27:00:00:{number:02x}"),
        addresses: Vec::new(),
        gateway: None,
        mtu: 1400,
    }
}

fn plug(port: Uuid, device: &str) -> Plug {
    Plug { port, device: device.to_owned(), mac: "0a:00:27:00:00:77".to_owned(), labels: BTreeMap::new() }
}

async fn devices(wiring: &Wiring) -> Vec<String> {
    wiring.switch.observe().await.expect("observable").into_iter().map(|attached| attached.device).collect()
}

#[test]
fn ports_are_wired_and_unwired() {
    on_private_host("ports_are_wired_and_unwired", |host| {
        host.start_switch();
        Runtime::new().expect("a runtime").block_on(async {
            let wiring = wiring();
            let missing = wiring.switch.plug(&plug(Uuid::new_v4(), "none"), SETTLE).await;
            assert!(matches!(missing, Err(NetworkError::NoBridge { .. })), "{missing:?}");
            wiring.switch.ensure_bridge(Datapath::Userspace).await.expect("a bridge");

            // Twice the same: the second pair replaces the first.
            let one = spec(1);
            for _ in 0..2 {
                let started = Instant::now();
                let guest = wiring.attach(&one, BTreeMap::new()).await.expect("attached");
                println!("attached in {:?}", started.elapsed());
                let shown = run("ip", &["-o", "link", "show", "dev", &guest]);
                assert!(shown.contains(&one.mac) && shown.contains("mtu 1400"), "{shown}");
                let offloads = run("ethtool", &["-k", &guest]);
                assert!(offloads.contains("tx-checksumming: off"), "{offloads}");
            }
            assert_eq!(devices(&wiring).await, [host_device(one.port)]);

            // Many at once do not get in each other's way.
            let many: Vec<PortSpec> = (10..40).map(spec).collect();
            let mut attaching = tokio::task::JoinSet::new();
            let started = Instant::now();
            for spec in many.clone() {
                let wiring = wiring.clone();
                attaching.spawn(async move { wiring.attach(&spec, BTreeMap::new()).await });
            }
            for attached in attaching.join_all().await {
                attached.expect("attached");
            }
            println!("30 attached in {:?}", started.elapsed());
            assert_eq!(devices(&wiring).await.len(), 31);
            assert_eq!(wiring.links.observe().await.expect("observable").len(), 31);

            for port in many.iter().chain([&one]) {
                wiring.detach(port.port).await.expect("detached");
                wiring.detach(port.port).await.expect("detached twice");
            }
            assert_eq!(devices(&wiring).await, Vec::<String>::new());
            assert_eq!(wiring.links.observe().await.expect("observable"), Vec::<String>::new());
        });
    });
}

#[test]
fn dead_rows_are_told_apart_and_swept() {
    on_private_host("dead_rows_are_told_apart_and_swept", |host| {
        host.start_switch();
        Runtime::new().expect("a runtime").block_on(async {
            let wiring = wiring();
            let switch = &wiring.switch;
            switch.ensure_bridge(Datapath::Userspace).await.expect("a bridge");

            // A row without a device, as a power cut leaves it, under a VM's tap name.
            let one = spec(1);
            let dead = switch.plug(&plug(one.port, "vnet7"), SETTLE).await;
            assert!(
                matches!(&dead, Err(NetworkError::Unusable { error, .. }) if error.contains("vnet7")),
                "{dead:?}"
            );
            assert_eq!(devices(&wiring).await, ["vnet7"], "a bare plug leaves its row to the caller");
            switch.forget_dead(one.port).await.expect("forgotten");
            assert_eq!(devices(&wiring).await, Vec::<String>::new());
            switch.plug(&plug(one.port, "vnet7"), SETTLE).await.expect_err("still no device");

            // The port's new body takes over from the dead row, and then nobody from it.
            wiring.attach(&one, BTreeMap::new()).await.expect("attached");
            assert_eq!(devices(&wiring).await, [host_device(one.port)]);
            let second = switch.plug(&plug(one.port, "vnet8"), SETTLE).await;
            assert!(matches!(second, Err(NetworkError::Occupied { .. })), "{second:?}");

            // Halves of ports: a row without a device, a pair without a row.
            let (row, pair) = (spec(2), spec(3));
            wiring.attach(&row, BTreeMap::new()).await.expect("attached");
            wiring.links.remove(&host_device(row.port)).await.expect("removed");
            wiring.links.ensure_pair(&pair).await.expect("a pair");
            let mut sweep = Sweep::default();
            assert!(sweep.run(&wiring).await.expect("swept").is_empty(), "nothing on first sight");
            let removed = sweep.run(&wiring).await.expect("swept");
            assert_eq!(removed.rows, [host_device(row.port)].into());
            assert_eq!(removed.devices, [host_device(pair.port)].into());
            assert_eq!(devices(&wiring).await, [host_device(one.port)]);
            assert!(link::exists(&host_device(one.port)) && !link::exists(&host_device(pair.port)));
        });
    });
}

#[test]
fn a_switch_that_is_away_is_reported_in_time_and_comes_back() {
    on_private_host("a_switch_that_is_away_is_reported_in_time_and_comes_back", |host| {
        host.start_switch();
        let runtime = Runtime::new().expect("a runtime");
        let wiring = runtime.block_on(async { wiring() });
        let one = spec(1);
        runtime.block_on(async {
            wiring.switch.ensure_bridge(Datapath::Userspace).await.expect("a bridge");
        });
        host.kill("ovsdb-server");
        runtime.block_on(async {
            let started = Instant::now();
            let error = wiring.attach(&one, BTreeMap::new()).await.expect_err("no switch");
            assert!(error.is_transient(), "{error}");
            assert!(error.to_string().contains("not connected"), "{error}");
            assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
            assert!(!link::exists(&host_device(one.port)), "the failed attempt's pair is gone");
        });
        std::fs::remove_file("/run/openvswitch/db.sock").expect("the dead server's socket");
        host.start_switch_database();
        runtime.block_on(async {
            wiring.attach(&one, BTreeMap::new()).await.expect("attached");
        });
        // A vswitchd that hangs must not make a port look ready.
        host.kill("ovs-vswitchd");
        runtime.block_on(async {
            let within = Some(Duration::from_secs(1));
            let error =
                wiring.switch.plug(&plug(Uuid::new_v4(), "lo"), within).await.expect_err("nobody home");
            assert!(error.to_string().contains("wait for the switch to take lo"), "{error}");
        });
    });
}
