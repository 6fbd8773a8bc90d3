//! A set that runs as a VM: the lab's images, its members in order, their volume, network, output and commands.

use crate::host::{Host, Loop, until};
use crate::{BOOT, MIB, SOON, port, setup, start_switch, state};
use amphi_api::image::{Blob, BlobRole, Image, ImageFormat, ImageState};
use amphi_api::instance::{MemberStatus, Power};
use amphi_api::set::SetSpec;
use amphi_api::streams::{ExecSpec, LogsSpec, StreamTarget};
use amphi_api::wire::BodyDesired;
use amphi_api::{ImageId, InstanceId, ProjectId, VolumeId};
use amphi_hostsrv::instance::streams::{BodyStreams, Opened};
use amphi_hostsrv::instance::vm::{Kit, VmDriver};
use amphi_hostsrv::instance::{
    Adjustment, BodyDriver, BodyPlan, CachedImage, ObservedState, Remains, VolumeAttachment,
};
use futures_util::StreamExt;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;
use tokio::io::AsyncWriteExt;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn script(name: &str) {
    let done =
        Command::new(root().join("scripts").join(name)).stdout(std::process::Stdio::null()).status().unwrap();
    assert!(done.success(), "{name}");
}

/// One of the lab's container images.
fn image(name: &str) -> CachedImage {
    let lab = std::env::var_os("AMPHI_LAB_DIR").map_or_else(|| root().join("target/lab"), PathBuf::from);
    let archive = lab.join("images").join(format!("{name}.tar"));
    let sum = Command::new("sha256sum").arg(&archive).output().unwrap();
    let sha256 = String::from_utf8(sum.stdout).unwrap()[..64].to_owned();
    let size = std::fs::metadata(&archive).unwrap().len();
    let image = Image {
        id: ImageId::new(),
        project: ProjectId::DEFAULT,
        name: name.to_owned(),
        format: ImageFormat::DockerArchive,
        cmdline: String::new(),
        state: ImageState::Active,
        layers: Vec::new(),
        blobs: BTreeMap::from([(BlobRole::Archive, Blob { sha256, size })]),
        created_at: "2026-01-01T00:00:00Z".parse().unwrap(),
    };
    CachedImage { image, blobs: BTreeMap::from([(BlobRole::Archive, archive)]) }
}

fn plan(set: serde_json::Value, images: &[&CachedImage]) -> BodyPlan {
    let set: SetSpec = serde_json::from_value(set).unwrap();
    set.check().unwrap();
    BodyPlan {
        instance: InstanceId::new(),
        project: ProjectId::DEFAULT,
        name: "shop".into(),
        epoch: 3,
        vcpus: 1,
        memory_mib: 256,
        power: Power::On,
        body: BodyDesired::SetVm {
            set: set.normalized(),
            images: images.iter().map(|cached| cached.image.clone()).collect(),
        },
        rescue: None,
        root: 1,
        ports: vec![port("fa:16:3e:00:00:05")],
        volume: None,
        root_volume: None,
        attachments: Vec::new(),
        images: images.iter().map(|cached| (cached.image.id, (*cached).clone())).collect(),
        user_data: Some("hello".into()),
        ssh_keys: vec!["ssh-ed25519 AAAA a@b".into()],
        metadata: BTreeMap::new(),
        twin: false,
        members: BTreeMap::new(),
    }
}

async fn members(vms: &VmDriver, what: &str, holds: impl Fn(&[MemberStatus]) -> bool) -> Vec<MemberStatus> {
    until(what, BOOT, || async {
        let found = vms.observe().await.unwrap();
        match found.as_slice() {
            [body] if holds(&body.members) => Ok(body.members.clone()),
            [body] => {
                let console = vms.console_log(body.instance, None, 30).await.unwrap();
                Err(format!("{found:#?}\n{console}"))
            }
            _ => Err(format!("{found:#?}")),
        }
    })
    .await
}

/// All that comes, and the exit code.
async fn all(mut opened: Opened) -> (String, Option<i64>) {
    let read = async {
        let mut text = Vec::new();
        while let Some(piece) = opened.output.next().await {
            text.extend_from_slice(&piece.unwrap().bytes);
        }
        (String::from_utf8_lossy(&text).into_owned(), opened.inside.exit_code().await.unwrap())
    };
    tokio::time::timeout(BOOT, read).await.expect("a stream that does not end")
}

async fn run(vms: &VmDriver, instance: InstanceId, member: &str, script: &str) -> (String, Option<i64>) {
    let command = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
    let spec = ExecSpec { member: Some(member.to_owned()), command, ..ExecSpec::default() };
    all(vms.open(instance, &StreamTarget::Exec(spec)).await.unwrap()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_set_runs_as_a_vm() {
    script("make-images.sh");
    script("make-guest-kit.sh");
    let host = Host::start().await;
    let (vms, _bell) = setup(&host);
    start_switch(&host);
    let kit = Kit::find(&root().join("target/guest-kit")).unwrap();
    let disk = Loop::new(host.path("volume"), 320 * MIB);
    let made = Command::new("mkfs.xfs").arg("-q").arg(&disk.device).status().unwrap();
    assert!(made.success());
    let (web, busybox) = (image("web"), image("busybox"));
    let set = json!({"anchor": {"sysctls": {"net.core.somaxconn": "777"}, "hosts": {"db": "10.1.0.9"}},
        "volume_mount": "/data",
        "members": [
        {"name": "job", "index": 0, "image": "busybox", "restart": "never", "next_when": "finished",
            "command": ["/bin/sh", "-c", "echo page of $(hostname) >/data/index.html; echo done; exit 0"]},
        {"name": "web", "index": 1, "image": "web", "options": {"mem": 30},
            "probes": {"readiness": {"http": {"port": 80}, "period_s": 1, "timeout_s": 5}}},
        {"name": "side", "index": 2, "image": "busybox", "user": "nobody", "restart": "always",
            "env": {"WORD": "from the description"}, "files": [{"path": "/etc/side.conf", "content": "a secret\n"}],
            "command": ["/bin/sh", "-c", "echo $WORD; echo wrong >&2; while [ ! -e /tmp/end ]; do sleep 0.2; done; rm /tmp/end; exit 7"]}
    ]});
    let mut plan = plan(set, &[&busybox, &web, &busybox]);
    let id = plan.instance;
    let volume = VolumeId::new();
    plan.volume = Some(VolumeAttachment { id: volume, device: disk.device.clone(), mount: None });
    let none = vms.ensure(&plan).await.unwrap_err();
    assert!(none.to_string().contains("no guest kit"), "{none}");
    let vms = vms.with_kit(Some(kit));

    let begun = Instant::now();
    vms.prepare(&plan).await.unwrap();
    println!("made ready in {} ms", begun.elapsed().as_millis());
    let begun = Instant::now();
    vms.ensure(&plan).await.unwrap();
    let found = members(&vms, "all members run", |all| {
        all.len() == 3 && all[0].finished && all[1].ready == Some(true) && all[2].running
    })
    .await;
    println!("ready after {} ms", begun.elapsed().as_millis());
    assert_eq!((found[0].exit_code, found[0].running), (Some(0), false), "{found:#?}");
    let at = |n: usize| found[n].started_at_us.unwrap();
    assert!(at(0) < at(1) && at(1) < at(2), "out of order: {found:#?}");
    assert_eq!(host.run("curl --silent --max-time 20 http://10.1.0.5/"), "page of shop");

    // One network, one volume, one IPC namespace; file systems of their own.
    let (text, code) = run(
        &vms,
        id,
        "side",
        "cat /data/index.html; cat /proc/sys/net/core/somaxconn; id -un; cat /etc/side.conf; exit 3",
    )
    .await;
    assert_eq!((text.as_str(), code), ("page of shop\n777\nnobody\na secret\n", Some(3)));
    let (text, _) = run(
        &vms,
        id,
        "web",
        "grep db /etc/hosts; cat /root/.ssh/authorized_keys; ls /config-drive/openstack",
    )
    .await;
    assert!(
        text.contains("10.1.0.9\tdb\n") && text.contains("ssh-ed25519 AAAA a@b") && text.contains("latest"),
        "{text}"
    );
    let (text, _) =
        run(&vms, id, "web", "cat /sys/fs/cgroup/memory.max; ps | grep -c '[h]ttpd'; ls /bin/web; ls /tmp")
            .await;
    assert_eq!(
        text,
        format!("{}\n1\n/bin/web\n", (256 * MIB) * 30 / 100 / 4096 * 4096),
        "it sees others' processes, or not its own limit"
    );
    let (text, code) =
        run(&vms, id, "side", "ls /bin/web; mknod /tmp/vda b 254 0 && cat /tmp/vda; ls /root").await;
    assert_ne!(code, Some(0), "{text}");
    let (text, code) = run(
        &vms,
        id,
        "web",
        "mknod /vda b 254 0; cat /vda >/dev/null; echo $?; mount -t proc none /mnt; echo $?",
    )
    .await;
    assert!(
        code == Some(0) && !text.contains("0\n0\n") && text.lines().filter(|line| *line == "0").count() == 0,
        "{text}"
    );
    let missing = ExecSpec { command: vec!["/no/such".into()], ..ExecSpec::default() };
    let at_web = ExecSpec { member: Some("web".into()), ..missing.clone() };
    let (_, code) = all(vms.open(id, &StreamTarget::Exec(at_web)).await.unwrap()).await;
    assert_eq!(code, Some(127));
    let ended =
        vms.open(id, &StreamTarget::Exec(missing)).await.err().expect("a command in a member that has ended");
    assert!(ended.to_string().contains("'job' does not run"), "{ended}");

    // Input comes back; more of it than any window holds.
    let command = ["/bin/sh", "-c", "wc -c; echo said"].map(str::to_owned).to_vec();
    let spec = ExecSpec { member: Some("web".into()), command, stdin: true, ..ExecSpec::default() };
    let mut opened = vms.open(id, &StreamTarget::Exec(spec)).await.unwrap();
    let mut input = opened.input.take().unwrap();
    let (_, (text, code)) = tokio::join!(
        async move {
            input.write_all(&vec![b'x'; 400_000]).await.unwrap();
            input.shutdown().await.unwrap();
        },
        all(opened)
    );
    assert_eq!((text.trim(), code), ("400000\nsaid", Some(0)));
    let (text, code) = run(&vms, id, "web", "dd if=/dev/zero bs=1k count=300 2>/dev/null | tr '\\0' y").await;
    assert_eq!((text.len(), code), (300 << 10, Some(0)));

    // Output is kept; a member that ends starts again and is told.
    let logs =
        |tail| StreamTarget::Logs(LogsSpec { member: Some("side".into()), tail, ..LogsSpec::default() });
    let (text, _) = all(vms.open(id, &logs(None)).await.unwrap()).await;
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["from the description", "wrong"]);
    assert_eq!(vms.console_log(id, Some("job"), 5).await.unwrap(), "done\n");
    run(&vms, id, "side", "touch /tmp/end").await;
    let found =
        members(&vms, "a member that starts again", |all| all[2].running && all[2].restarts == 1).await;
    assert_eq!(found[2].exit_code, Some(7));
    vms.adjust(id, Adjustment::RestartMember("web".into())).await.unwrap();
    members(&vms, "a member's ordered restart", |all| all[1].restarts == 1 && all[1].ready == Some(true))
        .await;

    // An agent that is new asks again. The old one is gone: QEMU talks with one at a time.
    drop(vms);
    let vms =
        crate::driver(&host, &Default::default()).with_kit(Kit::find(&root().join("target/guest-kit")).ok());
    members(&vms, "what a new agent sees", |all| all.len() == 3 && all[1].ready == Some(true)).await;
    assert_eq!(run(&vms, id, "web", "echo here").await.0, "here\n");

    // The file system grows with its disk.
    disk.grow(400 * MIB);
    vms.adjust(id, Adjustment::VolumeGrown { volume, bytes: 400 * MIB }).await.unwrap();
    until("the volume's file system grows", SOON, || async {
        let (text, _) = run(&vms, id, "web", "df -m /data | tail -1 | awk '{print $2}'").await;
        if text.trim().parse::<u64>().is_ok_and(|mib| mib > 320) { Ok(()) } else { Err(text) }
    })
    .await;

    let begun = Instant::now();
    vms.stop(id, BOOT).await.unwrap();
    println!("stopped in {} ms", begun.elapsed().as_millis());
    assert!(begun.elapsed() < BOOT, "it was pulled, not asked");
    state(&vms, 3, ObservedState::Stopped).await;
    let mounted = host.path("mounted");
    std::fs::create_dir(&mounted).unwrap();
    let text = host.run(&format!(
        "mount -o ro,norecovery {} {mounted} && cat {mounted}/index.html; umount {mounted}",
        disk.device.display(),
        mounted = mounted.display()
    ));
    assert_eq!(text, "page of shop", "the volume was not left clean");
    vms.remove(id, 3, Remains::Nothing).await.unwrap();
}
