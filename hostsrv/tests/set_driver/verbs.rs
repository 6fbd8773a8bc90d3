//! What a set is ordered while it lives: to halt, to take and give ports and volumes, to run a rescue's members in the
//! place of its own; and that a member can be read with all that it has written.

use crate::common::{eventually, exists, on_private_host};
use crate::drivers::{port, serve_plugin};
use crate::stage::{Stage, driver};
use amphi_api::image::ImageFormat;
use amphi_api::instance::Power;
use amphi_api::set::SetSpec;
use amphi_api::wire::BodyDesired;
use amphi_api::{ImageId, NetworkId, VolumeId};
use amphi_hostsrv::instance::{
    Bell, BodyDriver, BodyExport, BodyPlan, ExportPart, ExportPlan, ExtraVolume, ObservedState,
    PortAttachment, Remains, VolumeAttachment,
};
use amphi_hostsrv::storage::filesystem;
use nix::mount::{MsFlags, mount};
use serde_json::json;
use std::path::PathBuf;
use std::time::Duration;
use tokio::runtime::Runtime;

const SOON: Duration = Duration::from_secs(10);

#[test]
fn a_set_is_plugged_halted_rescued_and_read() {
    on_private_host("verbs::a_set_is_plugged_halted_rescued_and_read", |host| {
        host.start_switch();
        let dir = host.dir.clone();
        let plugin_runtime = Runtime::new().expect("a runtime");
        serve_plugin(&plugin_runtime, &dir);
        let stage = Stage::new(host);
        let mut plan = stage.usual_plan();
        stage.run(stage.driver.ensure(&plan));
        stage.running();
        ports(&stage, &mut plan);
        halts(&stage, &mut plan);
        volumes(&stage, &mut plan);
        is_read(&stage, &plan);
        rescue(&stage, &mut plan);

        stage.run(stage.driver.remove(plan.instance, 5, Remains::Nothing));
        assert_eq!(stage.host.docker(&["ps", "-aq"]), "");
        assert_eq!(stage.host.docker(&["network", "ls", "-q", "--filter", "driver=amphi"]), "");
        let attached = stage.host.path("agent").join("attached");
        assert_eq!(std::fs::read_dir(attached).expect("the folder of all").count(), 0);
    });
}

fn sees(stage: &Stage, plan: &BodyPlan, command: &str) -> String {
    stage.host.docker(&["exec", &stage.container(plan, "early"), "/bin/sh", "-c", command])
}

fn ports(stage: &Stage, plan: &mut BodyPlan) {
    let second = PortAttachment {
        subnet: "10.8.0.0/24".parse().expect("a subnet"),
        address: "10.8.0.6/24".parse().expect("an address"),
        gateway: Some("10.8.0.1".parse().expect("an address")),
        ..port(NetworkId::new(), 6, true)
    };
    let both = [port(NetworkId::new(), 5, true), second];
    let before = stage.fingerprint();
    // From none to one to two, back to one, each twice.
    for (ports, interfaces) in [
        (&both[..1], "eth0 lo"),
        (&both[..], "eth0 eth1 lo"),
        (&both[..1], "eth0 lo"),
        (&both[..], "eth0 eth2 lo"),
    ] {
        plan.ports = ports.to_vec();
        for _ in 0..2 {
            stage.run(stage.driver.ensure(plan));
            let mut seen = stage.running().ports;
            let mut wanted: Vec<_> = ports.iter().map(|port| port.id).collect();
            seen.sort();
            wanted.sort();
            assert_eq!(seen, wanted);
        }
        assert_eq!(sees(stage, plan, "ls /sys/class/net | sort | xargs"), interfaces);
    }
    assert_eq!(stage.fingerprint(), before, "nothing started anew");
    assert_eq!(sees(stage, plan, "ip route | grep default"), "default via 10.7.0.1 dev eth0");
    assert!(sees(stage, plan, "ip -4 addr show eth2").contains("10.8.0.6/24"));

    // Also while it is stopped.
    stage.run(stage.driver.stop(plan.instance, SOON));
    plan.ports.truncate(1);
    stage.run(stage.driver.ensure(plan));
    assert_eq!(sees(stage, plan, "ls /sys/class/net | sort | xargs"), "eth0 lo");
    assert_eq!(stage.running().ports, [plan.ports[0].id]);
}

fn halts(stage: &Stage, plan: &mut BodyPlan) {
    for power in [Power::Paused, Power::Suspended] {
        plan.power = power;
        for _ in 0..2 {
            stage.run(stage.driver.ensure(plan));
            let body = stage.observe().expect("a body");
            assert_eq!((body.state, body.trouble), (ObservedState::Paused, None));
        }
        assert_eq!(stage.inspect(plan, "late", ".State.Status"), "paused");
        assert_eq!(stage.inspect(plan, "anchor", ".State.Status"), "running");
        let fresh = driver(stage.host, &stage.runtime, &Bell::default());
        assert_eq!(stage.run(fresh.observe())[0].state, ObservedState::Paused);
        plan.power = Power::On;
        stage.run(stage.driver.ensure(plan));
        stage.running();
    }
    // One that is stopped is halted as soon as it is there; and it stops halted as it is.
    stage.run(stage.driver.stop(plan.instance, SOON));
    plan.power = Power::Paused;
    stage.run(stage.driver.ensure(plan));
    assert_eq!(stage.observe().map(|body| body.state), Some(ObservedState::Paused));
    stage.run(stage.driver.stop(plan.instance, SOON));
    assert_eq!(stage.observe().map(|body| body.state), Some(ObservedState::Stopped));
    plan.power = Power::On;
    stage.run(stage.driver.ensure(plan));
    stage.running();
}

/// A file system of its own where a volume's is mounted.
fn volume(stage: &Stage, device: &str, read_only: bool) -> ExtraVolume {
    let id = VolumeId::new();
    let volumes = stage.host.path("agent").join("volumes");
    filesystem::share(&volumes).expect("a shared mount");
    let point = volumes.join(id.to_string());
    std::fs::create_dir_all(&point).expect("a directory");
    mount(Some("tmpfs"), &point, Some("tmpfs"), MsFlags::empty(), None::<&str>).expect("mounted");
    std::fs::write(point.join("name"), device).expect("written");
    let volume = VolumeAttachment { id, device: PathBuf::new(), mount: Some(point) };
    ExtraVolume { volume, device: device.to_owned(), read_only }
}

fn volumes(stage: &Stage, plan: &mut BodyPlan) {
    let before = stage.fingerprint();
    plan.attachments = vec![volume(stage, "vdb", false), volume(stage, "vdc", true)];
    let ids: Vec<_> = plan.attachments.iter().map(|extra| extra.volume.id).collect();
    for _ in 0..2 {
        stage.run(stage.driver.ensure(plan));
        let mut seen = stage.running().volumes;
        seen.sort_by_key(|id| ids.iter().position(|other| other == id));
        assert_eq!(seen, ids);
    }
    assert_eq!(stage.fingerprint(), before, "nothing started anew");
    for member in ["early", "late"] {
        let container = stage.container(plan, member);
        let says = |command: &str| stage.host.docker(&["exec", &container, "/bin/sh", "-c", command]);
        assert_eq!(says("cat /volumes/vdb/name /volumes/vdc/name"), "vdbvdc");
        says(&format!("echo {member} > /volumes/vdb/{member}"));
        let refused = stage.host.docker_refused(&["exec", &container, "touch", "/volumes/vdc/x"]);
        assert!(refused.contains("Read-only"), "{refused}");
    }
    let mounted = plan.attachments[0].volume.mount.clone().expect("mounted");
    assert_eq!(std::fs::read_to_string(mounted.join("late")).expect("read"), "late\n");

    // A member that starts anew finds them; one that holds a file keeps its volume there.
    stage.run(stage.driver.stop(plan.instance, SOON));
    assert_eq!(stage.observe().expect("a body").volumes, []);
    stage.run(stage.driver.ensure(plan));
    assert_eq!(sees(stage, plan, "ls /volumes | xargs"), "vdb vdc");
    let (kept, gone) = (plan.attachments[1].clone(), plan.attachments[0].clone());
    stage.host.docker(&[
        "exec",
        "-d",
        &stage.container(plan, "late"),
        "/bin/sh",
        "-c",
        "exec sleep 1000 3>/volumes/vdb/open",
    ]);
    eventually("the file is open", || exists(gone.volume.mount.as_deref().expect("mounted").join("open")));
    plan.attachments = vec![kept];
    let refused = stage.refused(stage.driver.ensure(plan));
    assert!(refused.to_string().contains("files open"), "{refused}");
    stage.host.docker(&["exec", &stage.container(plan, "late"), "/bin/sh", "-c", "for p in /proc/[0-9]*; do [ \"$(readlink $p/fd/3)\" = /volumes/vdb/open ] && kill ${p#/proc/}; done; true"]);
    eventually("the volume leaves", || {
        stage.runtime.block_on(stage.driver.ensure(plan)).map_err(|error| error.to_string())
    });
    assert_eq!(sees(stage, plan, "ls -d /volumes/*/name"), "/volumes/vdc/name");
    let point = gone.volume.mount.expect("mounted");
    filesystem::unmount(&point).expect("nobody has it any more");
    plan.attachments.clear();
    stage.run(stage.driver.ensure(plan));
    assert_eq!(stage.running().volumes, []);
}

fn is_read(stage: &Stage, plan: &BodyPlan) {
    sees(stage, plan, "echo kept > /written");
    let image = ImageId::new();
    let export = |member: Option<&str>, name: &str| ExportPlan {
        instance: plan.instance,
        image,
        part: ExportPart::Member(member.map(str::to_owned)),
        format: ImageFormat::DockerArchive,
        to: stage.host.path(name),
    };
    let images = stage.host.docker(&["image", "ls", "-aq"]);
    let first = export(None, "first.tar");
    stage.run(stage.driver.export(&first));
    stage.running();
    assert_eq!(stage.host.docker(&["image", "ls", "-aq"]), images, "nothing is left in Docker");
    let unknown = stage.refused(stage.driver.export(&export(Some("nobody"), "none.tar")));
    assert!(unknown.to_string().contains("no such container"), "{unknown}");

    let loaded = stage.host.docker(&["load", "-i", &first.to.display().to_string()]);
    let id = loaded.split("sha256:").nth(1).expect("an id").trim().to_owned();
    let labels =
        stage.host.docker(&["image", "inspect", "-f", "{{index .Config.Labels \"amphi.instance\"}}", &id]);
    assert_eq!(labels, "");
    let read =
        stage.host.docker(&["run", "--rm", "--network", "none", "--entrypoint", "/bin/cat", &id, "/written"]);
    assert_eq!(read, "kept");
    stage.host.docker(&["rmi", "-f", &id]);
}

fn rescue(stage: &Stage, plan: &mut BodyPlan) {
    let set: SetSpec = serde_json::from_value(json!({"members": [
        {"index": 0, "name": "medic", "image": "x", "command": ["/bin/sleep", "1000"]}]}))
    .expect("a set");
    let images = vec![stage.image.image.clone()];
    plan.rescue = Some(BodyDesired::Set { set: set.normalized(), images });
    stage.run(stage.driver.stop(plan.instance, SOON));
    for _ in 0..2 {
        stage.run(stage.driver.ensure(plan));
        let body = stage.running();
        let members: Vec<_> = body.members.iter().map(|member| member.name.as_str()).collect();
        assert_eq!((body.rescued, members), (true, vec!["medic"]));
    }
    let medic = format!("amphi-rescue-{}-medic", plan.instance);
    let addresses = stage.host.docker(&["exec", &medic, "ip", "-4", "addr", "show", "eth0"]);
    assert!(addresses.contains("10.7.0.5/24"), "{addresses}");
    assert_eq!(stage.inspect(plan, "early", ".State.Running"), "false");
    stage.host.docker(&["kill", &medic]);
    stage.rings_until("a killed rescuer", |body| body.state == ObservedState::Degraded);
    stage.run(stage.driver.ensure(plan));
    stage.running();

    plan.rescue = None;
    stage.run(stage.driver.stop(plan.instance, SOON));
    stage.run(stage.driver.ensure(plan));
    let body = stage.running();
    assert_eq!((body.rescued, body.members.len()), (false, 2));
    assert_eq!(sees(stage, plan, "cat /written"), "kept", "what members wrote outlives a rescue");
    assert!(!stage.host.docker(&["ps", "-a"]).contains("medic"));
}
