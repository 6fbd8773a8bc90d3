//! The VM driver against real libvirtd, QEMU and Open vSwitch. Needs root, as the agent does.

mod disk;
mod guest;
mod host;
mod sets;
mod size;
mod verbs;

use amphi_api::host::Acceleration;
use amphi_api::image::BlobRole;
use amphi_api::instance::BodyKind;
use amphi_api::{InstanceId, NetworkId, PortId, VolumeId};
use amphi_hostsrv::instance::vm::VmDriver;
use amphi_hostsrv::instance::{
    Adjustment, Bell, BodyDriver, BodyPlan, ObservedBody, ObservedState, PortAttachment, Remains,
    VolumeAttachment,
};
use guest::GuestFiles;
use host::{Host, Loop, until};
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;
/// Guests share two slow cores with other tests.
const BOOT: Duration = Duration::from_secs(90);
const SOON: Duration = Duration::from_secs(30);

fn driver(host: &Host, bell: &Bell) -> VmDriver {
    VmDriver::new(host.uri(), host.path("state"), "br-int", Acceleration::Tcg, bell.clone())
}

fn setup(host: &Host) -> (VmDriver, Bell) {
    std::fs::create_dir_all(host.path("state")).unwrap();
    let bell = Bell::default();
    (driver(host, &bell), bell)
}

async fn console(driver: &VmDriver, instance: InstanceId, word: &str) -> String {
    until(&format!("{word:?} on the console"), BOOT, || async {
        let text = driver.console_log(instance, None, 1000).await.unwrap();
        if text.contains(word) { Ok(text) } else { Err(text) }
    })
    .await
}

async fn only(driver: &VmDriver) -> ObservedBody {
    let mut found = driver.observe().await.unwrap();
    assert_eq!(found.len(), 1, "{found:#?}");
    found.remove(0)
}

async fn state(driver: &VmDriver, epoch: u64, state: ObservedState) {
    until(&format!("{state:?} at epoch {epoch}"), SOON, || async {
        let found = driver.observe().await.unwrap();
        match found.as_slice() {
            [body] if body.state == state && body.epoch == epoch && body.kind == BodyKind::Vm => Ok(()),
            _ => Err(found),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_lives_its_life() {
    let (host, files) = (Host::start().await, GuestFiles::get());
    let (vms, bell) = setup(&host);
    let facts = vms.probe().await.unwrap();
    assert!(facts.version.contains("QEMU"), "{facts:?}");
    assert_eq!(vms.observe().await.unwrap(), []);

    let disk = Loop::new(host.path("volume"), 16 * MIB);
    let mut plan = guest::linux(&files, "");
    let id = plan.instance;
    let volume = VolumeAttachment { id: VolumeId::new(), device: disk.device.clone(), mount: None };
    let serial = volume.id.0.simple().to_string()[..20].to_owned();
    let grows = volume.id;
    plan.volume = Some(volume);
    vms.prepare(&plan).await.unwrap();
    assert_eq!(vms.observe().await.unwrap(), [], "prepared means nothing is there yet");

    let begun = Instant::now();
    vms.ensure(&plan).await.unwrap();
    println!("started in {} ms", begun.elapsed().as_millis());
    state(&vms, 3, ObservedState::Running).await;
    console(&vms, id, "guest: up").await;
    println!("guest's init after {} ms", begun.elapsed().as_millis());
    let sees = |bytes: u64| format!("guest: disk serial={serial} sectors={};", bytes / 512);
    console(&vms, id, &sees(16 * MIB)).await;
    console(&vms, id, "guest: disk serial=config-2").await;
    vms.ensure(&plan).await.unwrap();
    size::measured(&vms, &plan).await;
    size::grows(&vms, &plan).await;

    disk.grow(24 * MIB);
    vms.adjust(id, Adjustment::VolumeGrown { volume: grows, bytes: 24 * MIB }).await.unwrap();
    console(&vms, id, &sees(24 * MIB)).await;

    // A fresh process sees the same world.
    let other = driver(&host, &Bell::default());
    assert_eq!(only(&other).await, only(&vms).await);

    // libvirtd restarts: the guest does not notice, the driver finds back and the bell rings.
    let qemu = host.run("pgrep -x qemu-system-x86");
    host.restart_libvirtd().await;
    state(&vms, 3, ObservedState::Running).await;
    assert_eq!(host.run("pgrep -x qemu-system-x86"), qemu);
    tokio::time::timeout(SOON, bell.notified()).await.expect("the bell is silent after libvirtd's restart");

    // The next body is made ready beside the running one; one that is over is refused.
    let next = BodyPlan { epoch: 4, vcpus: 2, ..plan.clone() };
    vms.prepare(&next).await.unwrap();
    state(&vms, 3, ObservedState::Running).await;
    let stale = vms.ensure(&BodyPlan { epoch: 2, ..plan.clone() }).await.unwrap_err();
    assert_eq!(stale.code(), "engine_refused");
    assert!(stale.to_string().contains("epoch 3 is here"), "{stale}");

    // Held still for a moment: nobody else is told, and no order resumes it meanwhile.
    vms.adjust(id, Adjustment::Pause).await.unwrap();
    state(&vms, 3, ObservedState::Running).await;
    assert_eq!(only(&other).await.state, ObservedState::Paused);
    vms.ensure(&plan).await.unwrap();
    assert_eq!(only(&other).await.state, ObservedState::Paused);
    vms.adjust(id, Adjustment::Resume).await.unwrap();
    assert_eq!(only(&other).await.state, ObservedState::Running);
    // Held still by a process that has died since: the next one lets go.
    other.adjust(id, Adjustment::Pause).await.unwrap();
    vms.ensure(&plan).await.unwrap();
    state(&vms, 3, ObservedState::Running).await;

    let begun = Instant::now();
    vms.stop(id, BOOT).await.unwrap();
    println!("stopped in {} ms", begun.elapsed().as_millis());
    assert!(begun.elapsed() < BOOT, "it was pulled, not asked");
    let text = console(&vms, id, "guest: power button").await;
    assert_eq!(text.matches("guest: up").count(), 1, "{text}");
    state(&vms, 3, ObservedState::Stopped).await;
    vms.stop(id, SOON).await.unwrap();

    // A libvirtd that starts after a power cut starts nothing by itself.
    host.restart_libvirtd().await;
    state(&vms, 3, ObservedState::Stopped).await;

    // The same body again; its log goes on. Then the next epoch's in its place.
    let begun = Instant::now();
    vms.ensure(&plan).await.unwrap();
    println!("started again in {} ms", begun.elapsed().as_millis());
    state(&vms, 3, ObservedState::Running).await;
    vms.ensure(&next).await.unwrap();
    state(&vms, 4, ObservedState::Running).await;
    assert_eq!(host.run("pgrep -xc qemu-system-x86"), "1");
    vms.remove(id, 3, Remains::Nothing).await.unwrap();
    state(&vms, 4, ObservedState::Running).await;
    vms.remove(id, 4, Remains::Nothing).await.unwrap();
    vms.remove(id, 4, Remains::Nothing).await.unwrap();
    assert_eq!(vms.observe().await.unwrap(), []);
    assert_eq!(host.run("pgrep -x qemu-system-x86 || true"), "");
    assert_eq!(host.run("find /etc/libvirt/qemu /var/lib/libvirt /run/libvirt -name '*amphi*'"), "");
    assert_eq!(std::fs::read_dir(host.path("state/instances")).unwrap().count(), 0);
    assert_eq!(vms.console_log(id, None, 10).await.unwrap(), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_boots_and_a_deaf_guest_is_ended_at_its_grace() {
    let host = Host::start().await;
    let (vms, bell) = setup(&host);
    let mut plan = guest::deaf(&host.path(""));
    if let amphi_api::wire::BodyDesired::Vm { root_gib, .. } = &mut plan.body {
        *root_gib = Some(2);
    }
    vms.ensure(&plan).await.unwrap();
    console(&vms, plan.instance, "deaf").await;
    let root =
        host.path(&format!("state/instances/{}/root-1-{}.qcow2", plan.instance, plan.body.images()[0].id));
    let info = host.run(&format!("qemu-img info -U --output=json {}", root.display()));
    assert!(info.contains(&(2_u64 << 30).to_string()), "{info}");

    let begun = Instant::now();
    let grace = Duration::from_secs(3);
    vms.stop(plan.instance, grace).await.unwrap();
    assert!(begun.elapsed() >= grace, "ended after {:?}", begun.elapsed());
    assert!(begun.elapsed() < grace + SOON, "ended after {:?}", begun.elapsed());
    state(&vms, 3, ObservedState::Stopped).await;

    // A guest that dies by itself rings.
    vms.ensure(&plan).await.unwrap();
    state(&vms, 3, ObservedState::Running).await;
    while tokio::time::timeout(Duration::from_millis(500), bell.notified()).await.is_ok() {}
    host.run("kill -9 $(pgrep -x qemu-system-x86)");
    tokio::time::timeout(SOON, bell.notified()).await.expect("the bell is silent after QEMU's death");
    until("trouble", SOON, || async {
        let body = only(&vms).await;
        let told = body.trouble.as_deref().is_some_and(|t| t.contains("crashed"));
        if told && body.state == ObservedState::Stopped { Ok(()) } else { Err(body) }
    })
    .await;

    // Made anew over the same root disk.
    vms.ensure(&plan).await.unwrap();
    state(&vms, 3, ObservedState::Running).await;
    vms.remove(plan.instance, 3, Remains::Nothing).await.unwrap();
    assert!(!root.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn trouble_is_told_by_its_kind_and_leaves_nothing() {
    let host = Host::start().await;
    let (vms, _bell) = setup(&host);
    let plan = guest::deaf(&host.path(""));
    vms.ensure(&plan).await.unwrap();

    // libvirtd hangs: each call ends at its bound, and many of them harm nothing.
    host.run("kill -STOP $(cat /run/libvirtd.pid)");
    let begun = Instant::now();
    let calls = futures_util::future::join_all((0..40).map(|_| vms.observe())).await;
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    for result in calls {
        let error = result.unwrap_err();
        assert!(["engine_timeout", "engine_down"].contains(&error.code()), "{error}");
    }
    host.run("kill -CONT $(cat /run/libvirtd.pid)");
    until("an answer after the hang", SOON, || vms.observe()).await;

    // libvirtd is gone, and comes back.
    host.run("kill -9 $(cat /run/libvirtd.pid)");
    let error = until("the outage", SOON, || async {
        match vms.observe().await {
            Err(error) => Ok(error),
            Ok(found) => Err(found),
        }
    })
    .await;
    assert_eq!(error.code(), "engine_down", "{error}");
    host.run("libvirtd -d");
    until("an answer after the death", SOON, || vms.observe()).await;
    state(&vms, 3, ObservedState::Running).await;

    // What cannot be made.
    let mut broken = guest::linux(&GuestFiles::get(), "");
    let kernel = host.path("kernel");
    std::fs::write(&kernel, "no kernel").unwrap();
    for cached in broken.images.values_mut() {
        cached.blobs.insert(BlobRole::Kernel, kernel.clone());
    }
    for error in [vms.prepare(&broken).await.unwrap_err(), vms.ensure(&broken).await.unwrap_err()] {
        assert_eq!(error.code(), "image_broken", "{error}");
    }
    let mut volumeless = guest::deaf(&host.path(""));
    let gone = VolumeAttachment { id: VolumeId::new(), device: "/dev/no-such-device".into(), mount: None };
    volumeless.volume = Some(gone);
    let error = vms.ensure(&volumeless).await.unwrap_err();
    assert_eq!(error.code(), "engine_refused", "{error}");
    assert!(error.to_string().contains("no-such-device"), "{error}");
    let mut netless = guest::deaf(&host.path(""));
    netless.ports = vec![port("fa:16:3e:00:00:09")];
    let error = vms.ensure(&netless).await.unwrap_err();
    assert_eq!(error.code(), "network_down", "{error}");
    for plan in [&broken, &volumeless, &netless, &plan] {
        vms.remove(plan.instance, plan.epoch, Remains::Nothing).await.unwrap();
    }
    assert_eq!(vms.observe().await.unwrap(), []);
    assert_eq!(std::fs::read_dir(host.path("state/instances")).unwrap().count(), 0);
}

/// `br-int`, with 10.1.0.1 on it.
fn start_switch(host: &Host) {
    host.run(
        "/usr/share/openvswitch/scripts/ovs-ctl start --system-id=test >/run/ovs.log 2>&1 &&
         ovs-vsctl --timeout=20 add-br br-int -- set bridge br-int datapath_type=netdev &&
         ip link set br-int up && ip addr add 10.1.0.1/24 dev br-int && ethtool -K br-int tx off >/dev/null 2>&1 || cat /run/ovs.log",
    );
}

fn port(mac: &str) -> PortAttachment {
    PortAttachment {
        id: PortId::new(),
        network: NetworkId::new(),
        subnet: "10.1.0.0/24".parse().unwrap(),
        mac: mac.into(),
        address: "10.1.0.5/24".parse().unwrap(),
        gateway: None,
        dns: Vec::new(),
        mtu: 1400,
        segment: None,
        further: Vec::new(),
        routes: Vec::new(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_is_plugged_into_the_switch_and_carries_tcp() {
    let (host, files) = (Host::start().await, GuestFiles::get());
    let (vms, _bell) = setup(&host);
    start_switch(&host);
    let mut plan = guest::linux(&files, "address=10.1.0.5/24 call=10.1.0.1");
    plan.ports = vec![port("fa:16:3e:00:00:01")];
    let received = host.path("received");
    let mut listener =
        host.command(&format!("sleep 300 | busybox nc -l -p 9999 > {}", received.display())).spawn().unwrap();
    vms.prepare(&plan).await.unwrap();
    vms.ensure(&plan).await.unwrap();
    let named = "ovs-vsctl --timeout=9 --bare --columns=name find interface";
    let port = plan.ports[0].id;
    let device = host.run(&format!(
        "{named} external_ids:iface-id={port} external_ids:attached-mac='\"fa:16:3e:00:00:01\"'"
    ));
    assert_eq!(device, amphi_hostsrv::network::host_device(port.0));
    console(&vms, plan.instance, "guest: mtu 1400 mac fa:16:3e:00:00:01").await;
    console(&vms, plan.instance, "guest: ping").await;
    console(&vms, plan.instance, "guest: tcp").await;
    until("the bytes", SOON, || async {
        let length = std::fs::metadata(&received).map_or(0, |m| m.len());
        if length == 256 << 10 { Ok(()) } else { Err(length) }
    })
    .await;
    let _ended = listener.kill().and_then(|()| listener.wait());
    vms.remove(plan.instance, 3, Remains::Nothing).await.unwrap();
    assert_eq!(host.run(&format!("{named} external_ids:iface-id={port}")), "");
}
