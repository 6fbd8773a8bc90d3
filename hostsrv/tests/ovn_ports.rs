//! Ports that OVN knows: a container plugged through Docker's drivers is claimed by ovn-controller
//! and reaches its neighbour under port security.

mod common;

use std::time::{Duration, Instant};

use amphi_hostsrv::network::host_device;
use amphi_hostsrv::network::ovs::{Chassis, Datapath};
use amphi_ovsdb::{Client, Operation, Options, Row, Value};
use common::engines::{BUSYBOX, OVN_NORTHBOUND, OVN_SOUTHBOUND};
use common::plugin::{Plugin, wiring};
use common::{PrivateHost, eventually, on_private_host};
use tokio::runtime::Runtime;
use uuid::Uuid;

struct Port {
    id: Uuid,
    mac: &'static str,
    address: &'static str,
}

/// A logical switch with these ports, as the controller would write it.
async fn create_logical(ports: &[&Port]) {
    let client = Client::new(OVN_NORTHBOUND, "OVN_Northbound", Options::default()).expect("an endpoint");
    let mut operations: Vec<Operation> = Vec::new();
    for (index, port) in ports.iter().enumerate() {
        let addresses = format!("{} {}", port.mac, port.address);
        let row = Row::new()
            .with("name", port.id.to_string())
            .with("addresses", addresses.as_str())
            .with("port_security", addresses.as_str());
        operations.push(Operation::insert("Logical_Switch_Port", row).named(&format!("port{index}")));
    }
    let names = (0..ports.len()).map(|index| amphi_ovsdb::Atom::named(format!("port{index}")));
    let switch = Row::new().with("name", "net").with("ports", Value::set(names));
    operations.push(Operation::insert("Logical_Switch", switch));
    client.transact(operations).await.expect("a logical switch");
}

fn run_container(host: &PrivateHost, name: &str, port: &Port, command: &str) {
    let attach = format!("name=net,ip={},driver-opt=amphi.port={}", port.address, port.id);
    let fixed = ["run", "-d", "--name", name, "--network", &attach, "--mac-address", port.mac];
    host.docker(&[&fixed, [BUSYBOX, "/bin/sh", "-c", command].as_slice()].concat());
}

#[test]
fn the_first_instruction_reaches_the_neighbour() {
    on_private_host("the_first_instruction_reaches_the_neighbour", |host| {
        let runtime = Runtime::new().expect("a runtime");
        host.start_switch();
        let wiring = runtime.block_on(async { wiring() });
        let chassis = Chassis {
            name: "h1".to_owned(),
            remote: OVN_SOUTHBOUND.to_owned(),
            encap_ip: "127.0.0.1".parse().expect("an address"),
            datapath: Datapath::Userspace,
        };
        let one = Port { id: Uuid::new_v4(), mac: "0a:00:27:00:00:05", address: "10.7.0.5" };
        let two = Port { id: Uuid::new_v4(), mac: "0a:00:27:00:00:06", address: "10.7.0.6" };
        runtime.block_on(async {
            wiring.switch.ensure_chassis(&chassis).await.expect("a chassis");
            wiring.switch.ensure_bridge(Datapath::Userspace).await.expect("a bridge");
        });
        host.start_ovn();
        runtime.block_on(create_logical(&[&one, &two]));
        let _plugin = Plugin::start(&runtime, &host.dir, Some(Duration::from_secs(20)));
        host.start_docker();
        host.docker(&[
            "network",
            "create",
            "-d",
            "amphi",
            "--ipam-driver",
            "amphi",
            "--subnet",
            "10.7.0.0/24",
            "net",
        ]);

        run_container(host, "two", &two, "exec sleep 100000");
        let device = host_device(two.id);
        let installed = wiring.switch.wait_installed(&device, Duration::from_secs(30));
        if let Err(error) = runtime.block_on(installed) {
            host.assert_alive("ovn-controller");
            panic!("{error}");
        }

        let first = format!(
            "ping -c 1 -w 1 {} >/dev/null && echo reached || echo alone; exec sleep 100000",
            two.address
        );
        run_container(host, "one", &one, &first);
        for start in 1..=5 {
            eventually("the container has tried", || {
                let lines: Vec<String> = host.docker(&["logs", "one"]).lines().map(str::to_owned).collect();
                assert!(lines.iter().all(|line| line == "reached"), "{lines:?}");
                if lines.len() == start { Ok(()) } else { Err(lines) }
            });
            let restarted = Instant::now();
            host.docker(&["restart", "-t", "0", "one"]);
            println!("restarted in {:?}", restarted.elapsed());
        }
        let attached = runtime.block_on(wiring.switch.observe()).expect("observable");
        assert_eq!(attached.len(), 2, "{attached:?}");
    });
}
