//! Wiring ports on a real Open vSwitch and the kernel's own veth pairs, without Docker.

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use amphi_hostsrv::network::openflow::{Change, Session};
use amphi_hostsrv::network::ovs::{Datapath, Plug, ways};
use amphi_hostsrv::network::sweep::Sweep;
use amphi_hostsrv::network::{NetworkError, PortSpec, Wiring, host_device, link};
use common::plugin::wiring;
use common::{eventually, on_private_host, run};
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

/// A guest on the integration bridge, something on a physical network behind a patch port as ovn-controller makes it.
#[test]
fn guests_reach_a_physical_network_only_as_long_as_the_switch_is_told_to_let_them() {
    on_private_host(
        "guests_reach_a_physical_network_only_as_long_as_the_switch_is_told_to_let_them",
        |host| {
            host.start_switch();
            run("ip", &["link", "set", "dev", "lo", "up"]);
            for bridge in ["br-int", "br-lan"] {
                run("ovs-vsctl", &["add-br", bridge, "--", "set", "Bridge", bridge, "datapath_type=netdev"]);
            }
            run(
                "ovs-vsctl",
                &["set", "Open_vSwitch", ".", "external_ids:ovn-bridge-mappings=lan:br-lan, gone:br-gone"],
            );
            for (space, bridge, address) in
                [("guest", "br-int", "10.9.0.1/24"), ("lan", "br-lan", "10.9.0.2/24")]
            {
                let end = format!("{space}-end");
                run("ip", &["netns", "add", space]);
                run("ip", &["link", "add", space, "type", "veth", "peer", "name", &end]);
                run("ip", &["link", "set", "dev", &end, "netns", space]);
                run("ip", &["-n", space, "addr", "add", address, "dev", &end]);
                run("ip", &["-n", space, "link", "set", "dev", &end, "up"]);
                run("ip", &["link", "set", "dev", space, "up"]);
                run("ovs-vsctl", &["add-port", bridge, space]);
            }
            for (port, bridge, peer) in [("to-lan", "br-int", "from-int"), ("from-int", "br-lan", "to-lan")] {
                let of = format!("options:peer={peer}");
                #[rustfmt::skip]
            run("ovs-vsctl", &["add-port", bridge, port, "--", "set", "Interface", port, "type=patch", &of,
                "--", "set", "Port", port, "external_ids:ovn-localnet-port=lan"]);
            }
            let reaches = || {
                let ping = ["netns", "exec", "guest", "ping", "-c1", "-W1", "10.9.0.2"];
                let output = std::process::Command::new("ip").args(ping).output().expect("ip runs");
                output.status.success()
            };
            let flows = || run("ovs-ofctl", &["-O", "OpenFlow13", "--no-stats", "dump-flows", "br-lan"]);
            // What the datapath has cached goes with the switch's next look at it.
            let becomes = |wanted: bool| {
                eventually("the switch goes by its flows", || {
                    if reaches() == wanted { Ok(()) } else { Err(flows()) }
                })
            };
            Runtime::new().expect("a runtime").block_on(async {
                let replica = wiring().switch.watch_physical().await.expect("watched");
                let found = replica.until(Duration::from_secs(10), |tables| {
                    Some(ways(tables)).filter(|found| found.values().any(|ports| !ports.is_empty()))
                });
                let found = found.await.expect("the patch port has a number");
                assert_eq!(found.keys().collect::<Vec<_>>(), ["br-lan"], "what has no bridge is left out");
                let ports: Vec<u32> = found["br-lan"].iter().copied().collect();
                let &[port] = &ports[..] else { panic!("one port leads there: {found:?}") };
                assert!(reaches(), "nobody has said anything yet");

                let mut session =
                    Session::open(Path::new("/run/openvswitch/br-lan.mgmt")).await.expect("a session");
                session.carry_out(&[Change::Clear, Change::Stop { port }]).await.expect("stopped");
                becomes(false);
                session.carry_out(&[Change::Pass { port, seconds: 2 }]).await.expect("opened");
                becomes(true);
                let told = flows();
                assert!(told.contains("hard_timeout=2") && told.contains("resubmit(,0)"), "{told}");

                // Nobody renews it, as if this process were frozen: a flow of two seconds is gone after three at most.
                let told = Instant::now();
                while reaches() {
                    assert!(told.elapsed() < Duration::from_secs(5), "{}", flows());
                }
                println!(
                    "silent {:?} later, of which the ping that nobody answered waits 1 s",
                    told.elapsed()
                );
                session.carry_out(&[Change::Pass { port, seconds: 60 }]).await.expect("opened");
                becomes(true);
                session.carry_out(&[Change::Close]).await.expect("closed");
                becomes(false);
                session.carry_out(&[Change::Clear]).await.expect("cleared");
                becomes(true);
                assert!(!flows().contains("cookie=0x61"), "{}", flows());
            });
        },
    );
}
