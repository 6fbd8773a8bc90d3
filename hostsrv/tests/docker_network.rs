//! Docker's network and IPAM drivers with a real dockerd and a real Open vSwitch.

mod common;

use amphi_hostsrv::network::ovs::{Attached, Chassis, Datapath};
use amphi_hostsrv::network::sweep::Sweep;
use amphi_hostsrv::network::{Switch, host_device};
use common::engines::BUSYBOX;
use common::plugin::{Plugin, wiring};
use common::{PrivateHost, eventually, on_private_host, run};
use tokio::runtime::Runtime;
use uuid::Uuid;

struct Port {
    id: Uuid,
    mac: &'static str,
    address: &'static str,
}

/// What each container prints first of all, before anything could have been added later.
const FIRST_WORDS: &str = "echo addr $(ip -o -4 addr show eth0 | awk '{print $4}') mac $(cat /sys/class/net/eth0/address) \
     mtu $(cat /sys/class/net/eth0/mtu) via $(ip route | awk '/default/{print $3}'); exec sleep 100000";

fn run_container(name: &str, network: &str, port: &Port, mac_flag: bool) -> Vec<String> {
    let mac = if mac_flag { String::new() } else { format!(",driver-opt=amphi.mac={}", port.mac) };
    let attach = format!("name={network},ip={},driver-opt=amphi.port={}{mac}", port.address, port.id);
    let mut args: Vec<String> = ["run", "-d", "--name", name, "--network", &attach].map(str::to_owned).into();
    if mac_flag {
        args.extend(["--mac-address".to_owned(), port.mac.to_owned()]);
    }
    args.extend([BUSYBOX, "/bin/sh", "-c", FIRST_WORDS].map(str::to_owned));
    args
}

fn docker(host: &PrivateHost, args: &[String]) -> String {
    host.docker(&args.iter().map(String::as_str).collect::<Vec<_>>())
}

/// The container's `starts`-th start printed this port's identity.
fn assert_identity(host: &PrivateHost, name: &str, port: &Port, starts: usize) {
    let expected = format!("addr {}/24 mac {} mtu 1400 via 10.7.0.1", port.address, port.mac);
    eventually(&format!("{name} prints its identity {starts} times"), || {
        let printed = host.docker(&["logs", name]);
        let lines: Vec<&str> = printed.lines().collect();
        assert!(lines.iter().all(|line| *line == expected), "wanted {expected}, got {lines:?}");
        if lines.len() == starts { Ok(()) } else { Err(printed) }
    });
}

fn create_network(host: &PrivateHost, name: &str) {
    let tag = format!("amphi.network={name}");
    host.docker(&[
        "network",
        "create",
        "-d",
        "amphi",
        "--ipam-driver",
        "amphi",
        "--ipam-opt",
        &tag,
        "--subnet",
        "10.7.0.0/24",
        "--gateway",
        "10.7.0.1",
        "-o",
        "amphi.mtu=1400",
        name,
    ]);
}

#[test]
fn containers_keep_their_ports() {
    on_private_host("containers_keep_their_ports", |host| {
        let runtime = Runtime::new().expect("a runtime");
        host.start_switch();
        let wiring = runtime.block_on(async { wiring() });
        prepare_switch(&runtime, &wiring.switch);
        let mut plugin = Plugin::start(&runtime, &host.dir);
        host.start_docker();
        let observe = || runtime.block_on(wiring.switch.observe()).expect("observable");

        create_network(host, "net-a");
        create_network(host, "net-b");
        let one = Port { id: Uuid::new_v4(), mac: "0a:00:27:00:00:05", address: "10.7.0.5" };
        let two = Port { id: Uuid::new_v4(), mac: "0a:00:27:00:00:06", address: "10.7.0.6" };
        let twin = Port { id: Uuid::new_v4(), mac: "0a:00:27:00:00:15", address: "10.7.0.5" };

        docker(host, &run_container("one", "net-a", &one, true));
        assert_identity(host, "one", &one, 1);
        let attached = observe();
        assert_eq!(attached.len(), 1, "{attached:?}");
        let Attached { device, port, mac, ofport, .. } = &attached[0];
        assert_eq!((device, port, mac.as_deref()), (&host_device(one.id), &one.id, Some(one.mac)));
        assert!(ofport.is_some_and(|number| number > 0));

        plugin.restart();
        host.docker(&["restart", "-t", "0", "one"]);
        assert_identity(host, "one", &one, 2);
        plugin.restart();
        host.docker(&["kill", "one"]);
        host.docker(&["start", "one"]);
        assert_identity(host, "one", &one, 3);

        // The same subnet and address in another network; the MAC as a driver option.
        docker(host, &run_container("twin", "net-b", &twin, false));
        assert_identity(host, "twin", &twin, 1);
        assert_identity(host, "one", &one, 3);

        // Frames of every size pass, checksums included.
        run("ovs-ofctl", &["add-flow", "br-int", "actions=NORMAL"]);
        docker(host, &run_container("two", "net-a", &two, true));
        host.docker(&["stop", "-t", "0", "twin"]);
        host.docker(&["exec", "one", "ping", "-c", "2", "-w", "20", two.address]);
        let offer = "dd if=/dev/zero of=/tmp/big bs=1M count=8 && exec nc -ll -p 80 -e cat /tmp/big";
        host.docker(&["exec", "-d", "two", "/bin/sh", "-c", offer]);
        let fetch = format!("timeout 20 nc -w 5 {} 80 </dev/null | wc -c", two.address);
        eventually("8 MiB arrive over TCP", || {
            match host.docker(&["exec", "one", "/bin/sh", "-c", &fetch]).as_str() {
                "8388608" => Ok(()),
                got => Err(got.to_owned()),
            }
        });
        host.docker(&["start", "twin"]);
        assert_identity(host, "twin", &twin, 2);

        // A restarted dockerd finds its containers on the network, and plugs the next start.
        host.stop("dockerd");
        plugin.restart();
        host.start_dockerd();
        host.docker(&["exec", "one", "ping", "-c", "1", "-w", "20", two.address]);
        assert_identity(host, "one", &one, 3);
        host.docker(&["restart", "-t", "0", "one"]);
        assert_identity(host, "one", &one, 4);

        // Without the records of a running container (a new boot's empty run directory), its end
        // still clears the switch, by what the switch itself knows.
        std::fs::remove_dir_all(host.path("run")).expect("records");
        plugin.restart();
        host.docker(&["rm", "-f", "twin"]);
        assert_eq!(observe().len(), 2);
        host.docker(&["restart", "-t", "0", "one"]);
        assert_identity(host, "one", &one, 5);
        host.docker(&["restart", "-t", "0", "two"]);

        // With the switch's database away a start fails with the reason, and works when it is back.
        host.docker(&["stop", "-t", "0", "one"]);
        host.kill("ovsdb-server");
        let said = host.docker_refused(&["start", "one"]);
        assert!(said.contains("plug") && said.contains("not connected"), "{said}");
        // Meanwhile a container can end; what that leaves is told apart and swept.
        host.docker(&["rm", "-f", "two"]);
        std::fs::remove_file("/run/openvswitch/db.sock").expect("the dead server's socket");
        host.start_switch_database();
        let mut sweep = Sweep::default();
        eventually("the ended container's row is swept", || {
            let removed = runtime.block_on(sweep.run(&wiring)).map_err(|error| error.to_string())?;
            if removed.rows.contains(&host_device(two.id)) { Ok(()) } else { Err(format!("{removed:?}")) }
        });
        host.docker(&["start", "one"]);
        assert_identity(host, "one", &one, 6);

        refusals(host, &one);

        // All the way back to nothing.
        plugin.restart();
        host.docker(&["rm", "-f", "one"]);
        host.docker(&["network", "rm", "net-a", "net-b"]);
        assert_eq!(observe(), []);
        assert_eq!(runtime.block_on(wiring.links.observe()).expect("observable"), Vec::<String>::new());
        for dir in ["state/docker/networks", "run/docker/endpoints"] {
            let left: Vec<_> = std::fs::read_dir(host.path(dir)).expect("a directory").flatten().collect();
            assert!(left.is_empty(), "{left:?}");
        }
    });
}

/// A plain Docker user is told what is missing, and nothing is left of the attempt.
fn refusals(host: &PrivateHost, taken: &Port) {
    let refused = |arguments: &[&str], reason: &str| {
        let fixed = ["run", "--rm", "--name", "refused", "--network"];
        let said = host.docker_refused(&[&fixed, arguments, &[BUSYBOX, "true"]].concat());
        assert!(said.contains(reason), "wanted `{reason}`, got {said}");
        eventually("the refused container is gone", || {
            let left = host.docker(&["ps", "-aq", "--filter", "name=refused"]);
            if left.is_empty() { Ok(()) } else { Err(host.docker(&["rm", "-f", "refused"])) }
        });
    };
    let said =
        host.docker_refused(&["network", "create", "-d", "amphi", "--ipam-driver", "amphi", "nowhere"]);
    assert!(said.contains("--subnet"), "{said}");
    let fresh = Uuid::new_v4();
    refused(&["net-a"], "pass the port's own with --ip");
    refused(&["name=net-a,ip=10.7.0.9"], "driver-opt=amphi.port=UUID");
    refused(&[&format!("name=net-a,ip=10.7.0.9,driver-opt=amphi.port={fresh}")], "--mac-address");
    let double = format!(
        "name=net-a,ip=10.7.0.5,driver-opt=amphi.port={},driver-opt=amphi.mac={}",
        taken.id, taken.mac
    );
    refused(&[&double], "in use by another container");
    let outside =
        format!("name=net-a,ip=10.8.0.9,driver-opt=amphi.port={fresh},driver-opt=amphi.mac={}", taken.mac);
    refused(&[&outside], "10.8.0.9");
}

fn prepare_switch(runtime: &Runtime, switch: &Switch) {
    let chassis = Chassis {
        name: "h1".to_owned(),
        remote: "tcp:127.0.0.1:6642".to_owned(),
        encap_ip: "127.0.0.1".parse().expect("an address"),
        datapath: Datapath::Userspace,
    };
    runtime.block_on(async {
        for _ in 0..2 {
            switch.ensure_bridge(Datapath::Userspace).await.expect("a bridge");
            switch.ensure_chassis(&chassis).await.expect("a chassis");
        }
        let facts = switch.facts().await.expect("facts");
        assert_eq!(
            (facts.system_id.as_deref(), facts.bridge_datapath.as_deref()),
            (Some("h1"), Some("netdev"))
        );
    });
}

#[test]
fn a_port_of_both_families_has_both_at_its_first_instruction() {
    on_private_host("a_port_of_both_families_has_both_at_its_first_instruction", |host| {
        let runtime = Runtime::new().expect("a runtime");
        host.start_switch();
        let wiring = runtime.block_on(async { wiring() });
        prepare_switch(&runtime, &wiring.switch);
        let _plugin = Plugin::start(&runtime, &host.dir);
        host.start_docker();
        create_network(host, "net-a");
        let port = Uuid::new_v4();
        let attach = format!(
            "name=net-a,ip=10.7.0.5,driver-opt=amphi.port={port},driver-opt=amphi.address6=fd00:7::5/64,\
             driver-opt=amphi.mac=0a:00:27:00:00:05,driver-opt=\"amphi.gateway=10.7.0.1,fd00:7::1\""
        );
        // A comma would end the option's value on the command line: the quotes are for its CSV reader.
        let attach = attach.replace("driver-opt=\"amphi.gateway", "\"driver-opt=amphi.gateway");
        let words = "ip -o addr show eth0 | awk '{print $4}' | grep -v ^fe80; ip -6 route | awk '/default/{print $3}'; \
             exec sleep 100000";
        host.docker(&["run", "-d", "--name", "both", "--network", &attach, BUSYBOX, "/bin/sh", "-c", words]);
        eventually("both addresses are printed", || {
            let printed = host.docker(&["logs", "both"]);
            let lines: Vec<&str> = printed.lines().collect();
            if lines == ["10.7.0.5/24", "fd00:7::5/64", "fd00:7::1"] { Ok(()) } else { Err(printed) }
        });
    });
}
