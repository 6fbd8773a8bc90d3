//! A machine's disk as other clouds and hypervisors export it: each format is taken as it is, and a VM boots from it.

use amphi_api::instance::{BodySpec, InstanceState, VmSpec};
use amphi_integration::failing::{PATIENCE, Stage, request};
use amphi_integration::lab::Layout;
use amphi_integration::wait::{seen, until};
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

/// By the format's name here, and how qemu-img writes it.
const FORMATS: [(&str, &str, &[&str]); 5] = [
    ("raw", "raw", &[]),
    ("vmdk", "vmdk", &["-o", "subformat=streamOptimized"]),
    ("vmdk", "vmdk", &["-o", "subformat=monolithicSparse"]),
    ("vhd", "vpc", &[]),
    ("vhdx", "vhdx", &[]),
];

#[test]
fn a_vm_boots_from_every_format_of_disk() -> Result<()> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let images = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/lab/images");
    let layout = Layout::at(&folder.join("formats-lab"))?;
    let stage = Stage::up(layout, &images, Path::new(env!("CARGO_BIN_EXE_amphi-lab")), 1, |_| {})?;
    let began = Instant::now();
    let mut vms = Vec::new();
    for (number, (format, written, options)) in FORMATS.iter().enumerate() {
        let (name, file) = (format!("{format}-{number}"), folder.join(format!("formats-{number}.{format}")));
        let made = Command::new("qemu-img")
            .args(["convert", "-f", "qcow2", "-O", written])
            .args(*options)
            .args([&images.join("vm-disk.qcow2"), &file])
            .output()
            .context("qemu-img")?;
        ensure!(made.status.success(), "qemu-img: {}", String::from_utf8_lossy(&made.stderr));
        stage.image(json!({"name": name, "format": format}), &[("disk", file.clone())])?;
        std::fs::remove_file(&file)?;
        let mut wish = request(&name, vec![BodySpec::Vm(VmSpec::new(&name, None))], Some("h1"));
        wish.memory_mib = 128;
        vms.push((name, stage.order(&wish)?.id));
    }
    for (name, id) in vms {
        // Its own words: the kernel has found its root on the disk, and the network is up.
        until(&format!("{name} boots"), PATIENCE, || {
            let vm = stage.show(id)?;
            ensure!(vm.state != InstanceState::Error, "{name}: {:?}", vm.fault);
            let ready = format!("ready {}", vm.addresses.first().context("no address")?.address);
            let console = match vm.state {
                InstanceState::Running => stage.ask(stage.client.console_log(id, Some(40), None))?.text,
                state => state.to_string(),
            };
            Ok(seen(console.contains(&ready), || console.clone()))
        })?;
        println!("{name}: {:.1} s", began.elapsed().as_secs_f32());
        stage.delete(id)?;
    }
    stage.down()
}
