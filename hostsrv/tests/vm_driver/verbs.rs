//! What a VM is ordered while it lives: to halt, to go to disk and come back, to take and give devices, to start from a
//! rescue's disk, to keep its root disk or to get a new one; and that its root disk can be read while it runs.

use crate::disk::serve_dhcp;
use crate::guest;
use crate::host::{Host, Loop, until};
use crate::{BOOT, MIB, SOON, console, only, port, setup, start_switch, state};
use amphi_api::image::ImageFormat;
use amphi_api::instance::Power;
use amphi_api::wire::BodyDesired;
use amphi_api::{ImageId, VolumeId};
use amphi_hostsrv::instance::vm::VmDriver;
use amphi_hostsrv::instance::{
    Adjustment, BodyDriver, BodyExport, BodyPlan, ExportPart, ExportPlan, ExtraVolume, ObservedState,
    Remains, VolumeAttachment,
};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// The line is on the console this many times.
async fn told(driver: &VmDriver, plan: &BodyPlan, line: &str, times: usize) -> String {
    until(&format!("{line:?} {times} times"), BOOT, || async {
        let text = driver.console_log(plan.instance, None, 5000).await.unwrap();
        if text.matches(line).count() == times { Ok(text) } else { Err(text) }
    })
    .await
}

fn extra(device: &Path, name: &str, read_only: bool) -> ExtraVolume {
    let volume = VolumeAttachment { id: VolumeId::new(), device: device.to_owned(), mount: None };
    ExtraVolume { volume, device: name.into(), read_only }
}

fn grown(plan: &BodyPlan, gib: u64) -> BodyDesired {
    match &plan.body {
        BodyDesired::Vm { image, .. } => {
            BodyDesired::Vm { image: image.clone(), root_gib: Some(gib), probes: Default::default() }
        }
        BodyDesired::Set { .. } | BodyDesired::SetVm { .. } => unreachable!("a VM's plan"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_halts_plugs_and_is_read() {
    let host = Host::start().await;
    let (vms, _bell) = setup(&host);
    start_switch(&host);
    let mut dhcp = serve_dhcp(&host);
    let mut plan = guest::bootable();
    plan.ports = vec![port("fa:16:3e:00:00:05")];
    vms.ensure(&plan).await.unwrap();
    console(&vms, plan.instance, "amphi-vm: ready 10.1.0.5").await;
    halts(&host, &vms, &mut plan).await;
    plugs(&host, &vms, &mut plan).await;
    is_read(&host, &vms, &plan).await;

    vms.stop(plan.instance, BOOT).await.unwrap();
    assert_eq!((only(&vms).await.ports, only(&vms).await.volumes), (vec![], vec![]));
    vms.remove(plan.instance, 3, Remains::Nothing).await.unwrap();
    let _ended = dhcp.kill().and_then(|()| dhcp.wait());
}

async fn halts(host: &Host, vms: &VmDriver, plan: &mut BodyPlan) {
    let id = plan.instance;
    plan.power = Power::Paused;
    for _ in 0..2 {
        vms.ensure(plan).await.unwrap();
        assert_eq!(only(vms).await.state, ObservedState::Paused);
    }
    // A snapshot's pause ends, and with it not the ordered one.
    vms.adjust(id, Adjustment::Pause).await.unwrap();
    vms.adjust(id, Adjustment::Resume).await.unwrap();
    assert_eq!(only(vms).await.state, ObservedState::Paused);
    plan.power = Power::On;
    vms.ensure(plan).await.unwrap();
    assert_eq!(only(vms).await.state, ObservedState::Running);

    plan.power = Power::Suspended;
    for _ in 0..2 {
        vms.ensure(plan).await.unwrap();
        assert_eq!(only(vms).await.state, ObservedState::Suspended);
        assert_eq!(host.run("pgrep -x qemu-system-x86 || true"), "");
    }
    plan.power = Power::Paused;
    vms.ensure(plan).await.unwrap();
    assert_eq!(only(vms).await.state, ObservedState::Paused);
    plan.power = Power::On;
    vms.ensure(plan).await.unwrap();
    assert_eq!(only(vms).await.state, ObservedState::Running);
    assert_eq!(
        host.run("curl --silent --max-time 30 -o /dev/null -w '%{http_code}' http://10.1.0.5/ || true").len(),
        3
    );
    let text = vms.console_log(id, None, 5000).await.unwrap();
    assert_eq!(text.matches("amphi-vm: init").count(), 1, "its memory came back: {text}");

    // Off is off, also for one whose memory is on disk.
    plan.power = Power::Suspended;
    vms.ensure(plan).await.unwrap();
    vms.stop(id, SOON).await.unwrap();
    assert_eq!(only(vms).await.state, ObservedState::Stopped);
    plan.power = Power::On;
    vms.ensure(plan).await.unwrap();
    told(vms, plan, "amphi-vm: ready 10.1.0.5", 2).await;
}

async fn plugs(host: &Host, vms: &VmDriver, plan: &mut BodyPlan) {
    let id = plan.instance;
    let (first, second) = (Loop::new(host.path("first"), 16 * MIB), Loop::new(host.path("second"), 8 * MIB));
    plan.attachments = vec![extra(&first.device, "vdb", false), extra(&second.device, "vdc", true)];
    plan.ports.push(port("fa:16:3e:00:00:06"));
    let serial = |at: usize| plan.attachments[at].volume.id.0.simple().to_string()[..20].to_owned();
    let (serials, volumes) =
        ([serial(0), serial(1)], plan.attachments.iter().map(|a| a.volume.id).collect::<Vec<_>>());
    for _ in 0..2 {
        vms.ensure(plan).await.unwrap();
        let body = only(vms).await;
        assert_eq!((body.state, body.volumes), (ObservedState::Running, volumes.clone()));
        assert_eq!(body.ports, plan.ports.iter().map(|port| port.id).collect::<Vec<_>>());
    }
    console(vms, id, &format!("serial={} 16 MiB", serials[0])).await;
    console(vms, id, &format!("serial={} 8 MiB", serials[1])).await;
    console(vms, id, "amphi-vm: eth1 has 10.1.0.6").await;
    let xml = host.run(&format!("virsh -c '{}' dumpxml amphi-{id}", host.uri()));
    assert_eq!(xml.matches("<readonly/>").count(), 2, "the config drive and one volume: {xml}");
    first.grow(24 * MIB);
    vms.adjust(id, Adjustment::VolumeGrown { volume: volumes[0], bytes: 24 * MIB }).await.unwrap();

    // With its devices to disk and back; then they go.
    plan.power = Power::Suspended;
    vms.ensure(plan).await.unwrap();
    assert_eq!(only(vms).await.volumes, volumes);
    plan.power = Power::On;
    vms.ensure(plan).await.unwrap();
    plan.attachments.clear();
    plan.ports.truncate(1);
    until("the guest lets go", SOON, || async {
        vms.ensure(plan).await.unwrap();
        let body = only(vms).await;
        if body.volumes.is_empty() && body.ports.len() == 1 { Ok(()) } else { Err(body) }
    })
    .await;
    console(vms, id, "amphi-vm: eth1 is gone").await;
    told(vms, plan, "amphi-vm: vdc is gone", 1).await;
    let named = "ovs-vsctl --timeout=9 --bare --columns=name find interface";
    assert_eq!(host.run(&format!("{named} external_ids:attached-mac='\"fa:16:3e:00:00:06\"'")), "");
}

async fn is_read(host: &Host, vms: &VmDriver, plan: &BodyPlan) {
    let folder = host.path("exports");
    std::fs::create_dir_all(&folder).unwrap();
    host.run(&format!("chmod 711 {}", folder.display()));
    let read = async |format: ImageFormat, name: &str| {
        let to = folder.join(name);
        let part = ExportPart::Root { root: plan.root };
        let export = ExportPlan { instance: plan.instance, image: ImageId::new(), part, format, to };
        vms.export(&export).await.unwrap();
        host.run(&format!("qemu-img info --output=json {}", folder.join(name).display()))
    };
    let running = read(ImageFormat::Qcow2, "running").await;
    assert!(running.contains("\"format\": \"qcow2\"") && !running.contains("backing"), "{running}");
    host.run(&format!("qemu-img check -q {}", folder.join("running").display()));
    assert_eq!(only(vms).await.state, ObservedState::Running);
    let raw = read(ImageFormat::Raw, "raw").await;
    assert!(raw.contains("\"format\": \"raw\""), "{raw}");
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 2, "nothing is left beside the files");
    // Both are the guest's own disk, boot loader and all.
    let sector = |name: &str, skip: &str| {
        host.run(&format!("qemu-img dd -f {skip} -O raw bs=512 count=1 if={0}/{name} of={0}/{name}.0 && md5sum <{0}/{name}.0", folder.display()))
    };
    assert_eq!(sector("running", "qcow2"), sector("raw", "raw"));
    let wrong = ExportPlan {
        instance: plan.instance,
        image: ImageId::new(),
        part: ExportPart::Root { root: 99 },
        format: ImageFormat::Raw,
        to: folder.join("none"),
    };
    assert!(vms.export(&wrong).await.unwrap_err().to_string().contains("count 99"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_disk_outlives_epochs_and_rescues() {
    let host = Host::start().await;
    let (vms, _bell) = setup(&host);
    let mut plan = guest::bootable();
    plan.ports.clear();
    vms.ensure(&plan).await.unwrap();
    told(&vms, &plan, "amphi-vm: boot 1 of /dev/vda1", 1).await;

    // Another epoch, larger: prepared beside the running one, it takes over the same disk.
    let next = BodyPlan { epoch: 4, vcpus: 2, body: grown(&plan, 3), ..plan.clone() };
    vms.prepare(&next).await.unwrap();
    state(&vms, 3, ObservedState::Running).await;
    vms.stop(plan.instance, BOOT).await.unwrap();
    vms.remove(plan.instance, 3, Remains::Roots).await.unwrap();
    vms.ensure(&next).await.unwrap();
    told(&vms, &next, "amphi-vm: boot 2 of /dev/vda1", 1).await;
    let root = host.run(&format!("ls {}/instances/{}/root-*", host.path("state").display(), plan.instance));
    let info = host.run(&format!("qemu-img info -U --output=json {root}"));
    assert!(info.contains(&(3_u64 << 30).to_string()), "{info}");

    // A rescue starts from its own image, with the root beside it.
    let rescue = BodyPlan { rescue: Some(plan.body.clone()), ..next.clone() };
    vms.stop(plan.instance, BOOT).await.unwrap();
    vms.ensure(&rescue).await.unwrap();
    assert!(only(&vms).await.rescued);
    console(&vms, plan.instance, "disk vda serial=rescue").await;
    console(&vms, plan.instance, "disk vdb serial=root 3072 MiB").await;
    // Of two disks of one label, this guest's own loader takes the last.
    told(&vms, &rescue, "amphi-vm: boot 3 of /dev/vdb1", 1).await;
    vms.stop(plan.instance, BOOT).await.unwrap();
    vms.ensure(&next).await.unwrap();
    assert!(!only(&vms).await.rescued);
    told(&vms, &next, "amphi-vm: boot 4 of /dev/vda1", 1).await;

    // Another count: a new disk, and the old one goes.
    let rebuilt = BodyPlan { epoch: 5, root: 2, ..next.clone() };
    vms.ensure(&rebuilt).await.unwrap();
    told(&vms, &rebuilt, "amphi-vm: boot 1 of /dev/vda1", 1).await;
    let roots = host.run(&format!("ls {}/instances/{}", host.path("state").display(), plan.instance));
    assert!(roots.contains("root-2-") && !roots.contains(&format!("root-{}-", plan.root)), "{roots}");
    vms.remove(plan.instance, 5, Remains::Nothing).await.unwrap();
    assert_eq!(std::fs::read_dir(host.path("state/instances")).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_starts_from_a_volume() {
    let host = Host::start().await;
    let (vms, _bell) = setup(&host);
    let mut plan = guest::deaf(&host.path(""));
    let disk = Loop::new(host.path("root-volume"), 4 * MIB);
    let bytes = std::fs::read(host.path("deaf.raw")).unwrap();
    std::fs::File::options().write(true).open(&disk.device).unwrap().write_all_at(&bytes, 0).unwrap();
    // Nothing of the image is needed.
    plan.images.clear();
    plan.root_volume =
        Some(VolumeAttachment { id: VolumeId::new(), device: disk.device.clone(), mount: None });
    vms.ensure(&plan).await.unwrap();
    console(&vms, plan.instance, "deaf").await;
    assert_eq!(only(&vms).await.volumes, [plan.root_volume.as_ref().unwrap().id]);
    vms.remove(plan.instance, 3, Remains::Nothing).await.unwrap();
}

/// A device goes when its guest lets go of it. Where no guest is, the BIOS starts again, and takes it away.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_nothing_boots_from_does_not_keep_what_is_unplugged() {
    let host = Host::start().await;
    let (vms, _bell) = setup(&host);
    let mut plan = guest::blank(host.path("."));
    vms.ensure(&plan).await.unwrap();
    console(&vms, plan.instance, "No bootable device").await;
    let disk = Loop::new(host.path("disk"), 16 * MIB);
    plan.attachments = vec![extra(&disk.device, "vdb", false)];
    vms.ensure(&plan).await.unwrap();
    assert_eq!(only(&vms).await.volumes.len(), 1);
    plan.attachments.clear();
    until("the BIOS lets go", BOOT, || async {
        vms.ensure(&plan).await.unwrap();
        let body = only(&vms).await;
        if body.volumes.is_empty() && body.state == ObservedState::Running { Ok(()) } else { Err(body) }
    })
    .await;
    vms.remove(plan.instance, plan.epoch, Remains::Nothing).await.unwrap();
}
