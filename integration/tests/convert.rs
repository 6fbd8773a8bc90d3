//! A machine's disk, built by debootstrap on logical volumes, becomes a container image, and its page is served by a set that
//! is made of it: with owners, modes, capabilities, attributes, hard links and sparse files as they were, without its kernel,
//! and with a list of what is not as it was. Disks that are none are refused with the reason, and nothing is left of them.

use amphi_api::conversion::{Conversion, ConversionState, ConvertCreate, ConvertTo};
use amphi_api::image::{BlobRole, Image};
use amphi_api::instance::{BodyKind, BodySpec, VmSpec};
use amphi_api::{ImageId, InstanceId};
use amphi_integration::failing::{PATIENCE, Stage, address, request};
use amphi_integration::lab::Layout;
use amphi_integration::wait::{seen, until};
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const H1: &str = "h1";
const PAGE: &str = "the page of a machine";
/// Of a conversion, on a processor that is emulated by a busy one.
const CONVERTED: Duration = Duration::from_secs(300);

fn script(name: &str, arguments: &[&Path]) -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let ran = Command::new(root.join("scripts").join(name)).args(arguments).status()?;
    ensure!(ran.success(), "scripts/{name} failed");
    Ok(())
}

fn disk(stage: &Stage, name: &str, format: &str, file: &Path) -> Result<Image> {
    let order = json!({"name": name, "format": format});
    let image = stage.ask(stage.client.create_image(&serde_json::from_value(order)?))?;
    stage.ask(stage.client.upload_file(image.id, BlobRole::Disk, file, Box::new(|_, _| {})))?;
    Ok(image)
}

fn convert(stage: &Stage, of: ImageId, to: ConvertTo, name: &str) -> Result<Conversion> {
    let began = Instant::now();
    let order = ConvertCreate { to, name: Some(name.to_owned()) };
    let begun = stage.ask(stage.client.convert_image(of, &order))?;
    ensure!(begun.state == ConversionState::Running && begun.of == of, "{begun:?}");
    let ended = stage.ask(stage.client.wait_conversion(begun.image.id, CONVERTED, |now| {
        println!(
            "{:.1} s: {:?}, {:?}, {:?}",
            began.elapsed().as_secs_f32(),
            now.state,
            now.progress,
            now.fault
        );
    }))?;
    println!("to {name}: {:.1} s", began.elapsed().as_secs_f32());
    Ok(ended)
}

/// What a conversion has to keep, as scripts/make-machine-disk.sh has made it.
fn is_kept(stage: &Stage, id: InstanceId) -> Result<()> {
    let said = |script: &str| stage.inside(id, "machine", script);
    for (script, want) in [
        ("stat -c '%u:%g %a %h' /srv/kept/file", "1234:4321 6751 2"),
        ("[ /srv/kept/file -ef /srv/kept/other-name ] && echo same", "same"),
        ("getcap /srv/kept/capable", "/srv/kept/capable cap_net_raw=ep"),
        ("stat -c %s /srv/kept/sparse; tail -c 4 /srv/kept/sparse", "67108864\nend"),
        (
            r#"perl -e '$p="/srv/kept/file"; $k="user.colour"; $b="\0"x9; $n=syscall(191,$p,$k,$b,9); print substr($b,0,$n)'"#,
            "green",
        ),
        ("stat -c '%U %a' /var/www/html /tmp | tr '\\n' ' '", "root 755 root 1777"),
        // Its kernel stayed where it was.
        ("ls -A /boot /lib/modules | tr -d '\\n'; ls /vmlinuz 2>/dev/null || :", "/boot:/lib/modules:"),
        ("grep -vc '^#' /etc/fstab || :", "0"),
    ] {
        let said = said(script)?;
        ensure!(said == want, "{script}: {said:?}, not {want:?}");
    }
    Ok(())
}

#[test]
fn a_machines_disk_becomes_a_set_and_a_disk_again() -> Result<()> {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let machine = folder.join("machine.qcow2");
    script("make-guest-kit.sh", &[])?;
    script("make-machine-disk.sh", &[&machine])?;
    let images = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/lab/images");
    let layout = Layout::at(&folder.join("convert-lab"))?;
    let stage = Stage::up(layout, &images, Path::new(env!("CARGO_BIN_EXE_amphi-lab")), 1, |_| {})?;
    let group = json!({"name": "web", "rules": [{"protocol": "tcp", "port_min": 80, "port_max": 80}]});
    stage.ask(stage.client.create_security_group(&serde_json::from_value(group)?))?;
    let peer = stage.create(&request("peer", vec![amphi_integration::failing::set()], Some(H1)))?;

    // What is no machine's is refused, for good and in words, and no machine of ours is left.
    let broken = folder.join("broken.raw");
    std::fs::write(&broken, vec![0x5a; 4 << 20])?;
    let none = disk(&stage, "none", "raw", &broken)?;
    let refused = convert(&stage, none.id, ConvertTo::Container, "nothing")?;
    let fault = refused.fault.context("no fault")?;
    ensure!(refused.state == ConversionState::Failed && fault.code == "not_convertible", "{fault:?}");
    ensure!(fault.message.contains("no root file system"), "{}", fault.message);
    stage.ask(stage.client.delete_image(refused.image.id))?;
    std::fs::remove_file(&broken)?;

    let brought = disk(&stage, "machine", "qcow2", &machine)?;
    let wrong = stage.client.convert_image(brought.id, &ConvertCreate { to: ConvertTo::Disk, name: None });
    ensure!(stage.ask(wrong).is_err(), "a disk became a disk");

    // One that is called off while it is under way ends, and its source can go.
    let order = ConvertCreate { to: ConvertTo::Container, name: None };
    let begun = stage.ask(stage.client.convert_image(brought.id, &order))?;
    ensure!(begun.image.name == "machine-container", "{begun:?}");
    ensure!(stage.ask(stage.client.delete_image(brought.id)).is_err(), "its source went");
    until("a machine converts", PATIENCE, || {
        let machines = stage.lab.run(H1, &["sh", "-c", "pgrep -f '[a]mphi.convert=' || :"])?;
        Ok(seen(!machines.trim().is_empty(), || machines.clone()))
    })?;
    // An agent that dies takes it along, and its successor begins anew.
    stage.lab.kill(H1, "hostsrv", nix::sys::signal::Signal::SIGKILL)?;
    stage.lab.start(H1, "hostsrv")?;
    stage.ask(stage.client.delete_image(begun.image.id))?;
    until("no machine converts", PATIENCE, || {
        let left = stage.lab.run(H1, &["sh", "-c", "pgrep -f '[a]mphi.convert=' || :"])?;
        Ok(seen(left.trim().is_empty(), || left.clone()))
    })?;

    let made = convert(&stage, brought.id, ConvertTo::Container, "machine-image")?;
    ensure!(made.state == ConversionState::Done, "{made:?}");
    let report = made.report.context("no report")?;
    println!("{}", serde_json::to_string_pretty(&report)?);
    ensure!(report.system.contains("Debian") && report.root == "machine/root (ext4)", "{report:?}");
    ensure!(report.mounted == [("/var/www".to_owned(), "machine/www".to_owned())], "{report:?}");
    ensure!(report.init.kind == "systemd" && report.init.argv == ["/etc/amphi-init"], "{report:?}");
    ensure!(report.services.iter().any(|one| one.name == "nginx" && one.started), "{report:?}");
    ensure!(report.hard_links >= 1 && report.sparse_files >= 1 && report.capabilities >= 1, "{report:?}");
    for (kind, what) in [
        ("kernel_module", "nf_conntrack"),
        ("network", "/etc/network/interfaces"),
        ("swap", "/dev/machine/swap"),
        ("mount", "files.example:/export on /mnt (nfs)"),
        ("service", "systemd"),
    ] {
        ensure!(report.notes.iter().any(|note| note.kind == kind && note.what == what), "{what}: {report:?}");
    }
    ensure!(made.image.layers.len() == 1, "{:?}", made.image);

    let set = made.set.context("no set is offered")?;
    let mut order = request("machine", vec![BodySpec::Set(set)], Some(H1));
    order.memory_mib = 256;
    order.security_groups = vec!["web".into()];
    let runs = stage.create(&order)?;
    ensure!(runs.body == BodyKind::Set, "{runs:?}");
    stage.serves(peer.id, &address(&runs)?, PAGE)?;
    is_kept(&stage, runs.id)?;
    stage.delete(runs.id)?;

    // And back: a disk that a BIOS boots, which asks for its address and serves the page.
    let back = convert(&stage, made.image.id, ConvertTo::Disk, "machine-again")?;
    ensure!(back.state == ConversionState::Done, "{back:?}");
    let mut order = request("again", vec![BodySpec::Vm(VmSpec::new("machine-again", None))], Some(H1));
    order.memory_mib = 256;
    order.security_groups = vec!["web".into()];
    let runs = stage.create(&order)?;
    ensure!(runs.body == BodyKind::Vm, "{runs:?}");
    let served = stage.serves(peer.id, &address(&runs)?, PAGE);
    let console = stage.ask(stage.client.console_log(runs.id, Some(60), None))?.text;
    served.context(console)?;
    stage.delete(runs.id)?;
    stage.down()
}
