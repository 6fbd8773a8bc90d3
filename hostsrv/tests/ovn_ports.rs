//! Ports that OVN knows: a container plugged through Docker's drivers is claimed by ovn-controller
//! and reaches its neighbour under port security.

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use amphi_api::{NetworkId, PortId};
use amphi_hostsrv::instance::{PortAttachment, PortGate};
use amphi_hostsrv::network::Flows;
use amphi_hostsrv::network::ovs::{Chassis, Datapath};
use amphi_ovsdb::{Client, Operation, Options, Row, Value};
use common::engines::{BUSYBOX, OVN_NORTHBOUND, OVN_SOUTHBOUND};
use common::plugin::{Plugin, wiring};
use common::{PrivateHost, eventually, on_private_host, run};
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
        let _plugin = Plugin::start(&runtime, &host.dir);
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

        let gate = Flows::new(Arc::new(wiring.switch.clone())).with_limit(Duration::from_secs(30));
        let opened = |host: &mut PrivateHost, port: &Port| {
            let began = Instant::now();
            if !runtime.block_on(gate.opened(PortId(port.id))) {
                host.assert_alive("ovn-controller");
                panic!("no flows for {}", port.address);
            }
            println!("flows of {} after {:?}", port.address, began.elapsed());
        };
        run_container(host, "two", &two, "exec sleep 100000");
        opened(host, &two);

        // As a set starts: the anchor holds the network, and once its flows are there a member joins it.
        run_container(host, "one", &one, "exec sleep 100000");
        opened(host, &one);
        let first = format!(
            "ping -c 1 -w 1 {} >/dev/null && echo reached || echo alone; exec sleep 100000",
            two.address
        );
        let join = ["run", "-d", "--name", "member", "--network", "container:one", BUSYBOX];
        host.docker(&[join.as_slice(), ["/bin/sh", "-c", &first].as_slice()].concat());
        for start in 1..=5 {
            eventually("the member has tried", || {
                let lines: Vec<String> =
                    host.docker(&["logs", "member"]).lines().map(str::to_owned).collect();
                assert!(lines.iter().all(|line| line == "reached"), "{lines:?}");
                if lines.len() == start { Ok(()) } else { Err(lines) }
            });
            host.docker(&["restart", "-t", "0", "one"]);
            opened(host, &one);
            host.docker(&["restart", "-t", "0", "member"]);
        }
        // A neighbour that knows another MAC hears of the right one, whether it asks or not.
        let pid = host.docker(&["inspect", "--format", "{{.State.Pid}}", "two"]);
        let inside =
            |args: &[&str]| run("nsenter", &[&["-t", pid.trim(), "-n", "ip", "neigh"], args].concat());
        inside(&["replace", one.address, "lladdr", "0a:00:27:00:00:99", "dev", "eth0", "nud", "stale"]);
        let attachment = PortAttachment {
            id: PortId(one.id),
            network: NetworkId(Uuid::nil()),
            subnet: "10.7.0.0/24".parse().expect("a subnet"),
            mac: one.mac.to_owned(),
            address: format!("{}/24", one.address).parse().expect("an address"),
            gateway: None,
            dns: Vec::new(),
            mtu: 1442,
            segment: None,
            further: Vec::new(),
            routes: Vec::new(),
        };
        runtime.block_on(async { gate.announce(&attachment) });
        eventually("the neighbour knows the new MAC", || {
            let seen = inside(&["show", one.address]);
            if seen.contains(one.mac) { Ok(()) } else { Err(seen) }
        });
        // Nobody waits for ever for a port that OVN does not know.
        let stranger = gate.clone().with_limit(Duration::from_millis(100));
        assert!(!runtime.block_on(stranger.opened(PortId(Uuid::new_v4()))));
        let attached = runtime.block_on(wiring.switch.observe()).expect("observable");
        assert_eq!(attached.len(), 2, "{attached:?}");
    });
}
