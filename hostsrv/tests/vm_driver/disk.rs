//! A guest that boots from its own disk by its own boot loader: addresses by DHCP, config drive, hot-plug, power button.

use crate::guest;
use crate::host::{Host, Loop};
use crate::{BOOT, MIB, console, port, setup, start_switch, state};
use amphi_hostsrv::instance::{BodyDriver, ObservedState, Remains};
use std::process::Child;
use std::time::Instant;

/// Leases by MAC on `br-int`.
const DHCP: &str = "interface br-int
start 10.1.0.100
end 10.1.0.110
lease_file LEASES
pidfile PID
option subnet 255.255.255.0
option lease 3600
static_lease fa:16:3e:00:00:05 10.1.0.5
static_lease fa:16:3e:00:00:06 10.1.0.6
";

/// An interface that comes later, as the driver renders one.
const INTERFACE: &str = "<interface type='bridge'><mac address='fa:16:3e:00:00:06'/><source bridge='br-int'/>\
    <virtualport type='openvswitch'/><model type='virtio'/>\
    <driver><host csum='off' tso4='off' tso6='off'/><guest csum='off' tso4='off' tso6='off'/></driver></interface>";

pub fn serve_dhcp(host: &Host) -> Child {
    let path = |name: &str| host.path(name).display().to_string();
    let config = DHCP.replace("LEASES", &path("leases")).replace("PID", &path("udhcpd.pid"));
    std::fs::write(host.path("udhcpd.conf"), config).unwrap();
    std::fs::write(host.path("leases"), "").unwrap();
    host.command(&format!("exec busybox udhcpd -f {}", path("udhcpd.conf"))).spawn().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_boots_from_its_disk_and_takes_what_is_plugged() {
    let host = Host::start().await;
    let (vms, _bell) = setup(&host);
    start_switch(&host);
    let mut dhcp = serve_dhcp(&host);
    let mut plan = guest::bootable();
    let id = plan.instance;
    plan.name = "web-1".into();
    plan.ports = vec![port("fa:16:3e:00:00:05")];
    plan.ssh_keys = vec!["ssh-ed25519 AAAA a@b".into()];
    plan.user_data =
        Some("#!/bin/sh\necho \"user data on $(hostname)\"; echo served >/data/index.html\n".into());
    let begun = Instant::now();
    vms.ensure(&plan).await.unwrap();
    console(&vms, id, "amphi-vm: ready 10.1.0.5").await;
    println!("ready from its disk after {} ms", begun.elapsed().as_millis());
    console(&vms, id, "amphi-vm: user data ended with 0").await;
    let text = console(&vms, id, "user data on").await;
    assert!(text.contains("amphi-vm: key ssh-ed25519 AAAA a@b"), "{text}");
    assert!(text.contains("amphi-vm: boot 1 of /dev/vda1"), "{text}");
    assert_eq!(host.run("curl --silent --max-time 20 http://10.1.0.5/"), "served");

    let virsh = |words: &str| host.run(&format!("virsh --quiet -c '{}' {words}", host.uri()));
    let disk = Loop::new(host.path("later"), 16 * MIB);
    virsh(&format!("attach-disk amphi-{id} {} vdd --serial later --targetbus virtio", disk.device.display()));
    console(&vms, id, "serial=later 16 MiB").await;
    let interface = host.path("interface.xml");
    std::fs::write(&interface, INTERFACE).unwrap();
    virsh(&format!("attach-device amphi-{id} {}", interface.display()));
    console(&vms, id, "amphi-vm: eth1 has 10.1.0.6").await;
    virsh(&format!("detach-disk amphi-{id} vdd"));
    console(&vms, id, "amphi-vm: vdc is gone").await;
    virsh(&format!("detach-device amphi-{id} {}", interface.display()));
    console(&vms, id, "amphi-vm: eth1 is gone").await;

    let begun = Instant::now();
    vms.stop(id, BOOT).await.unwrap();
    assert!(begun.elapsed() < BOOT, "it was pulled, not asked");
    console(&vms, id, "amphi-vm: down").await;
    state(&vms, 3, ObservedState::Stopped).await;

    // What it wrote is still there.
    vms.ensure(&plan).await.unwrap();
    console(&vms, id, "amphi-vm: boot 2 of /dev/vda1").await;
    vms.remove(id, 3, Remains::Nothing).await.unwrap();
    let _ended = dhcp.kill().and_then(|()| dhcp.wait());
}
