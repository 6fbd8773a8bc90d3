//! Owns the text of a VM's domain XML: one pure function from a plan, its disks and its files to what libvirt is given.
//! Refuses to look at any file or engine.
//!
//! The machine is `pc`: its one PCI bus takes and gives devices through ACPI, without a port reserved for each, and it
//! starts quicker than `q35`. Of the bus's 32 places some 21 are left for interfaces and volumes that come later.

use super::disks::Disk;
use super::guest::{self, Kit};
use super::markup::Element;
use super::sizing;
use crate::instance::{BodyPlan, DriverError, PortAttachment};
use crate::network::host_device;
use amphi_api::InstanceId;
use amphi_api::host::Acceleration;
use amphi_api::image::{BlobRole, ImageFormat};
use amphi_api::wire::BodyDesired;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// The namespace of Amphi's element in a domain's metadata. The name is an identifier, no address.
pub const NAMESPACE: &str = "urn:amphi:body:1";
/// Begins a port's alias.
pub const PORT_ALIAS: &str = "ua-port-";
/// The serial port at which a guest's qemu-guest-agent listens; libvirt has the other end.
pub const AGENT_PORT: &str = "org.qemu.guest_agent.0";
/// QEMU's default for translated code is a quarter of the guest's memory, up to 1 GiB, for each guest.
const TCG_CACHE_MIB: u32 = 64;
/// How long the BIOS waits before it tries again to boot, in milliseconds (libvirt takes up to 65535).
const BOOT_RETRY_MS: u32 = 30_000;

/// The screen's memory: 1920 by 1080 in 32 bits, and room for a second page. Only what is used of it is taken.
const VIDEO_KIB: u32 = 16 << 10;

/// A guest's own words on the console, the kernel's only where something is wrong. What is measured nowhere is not waited for.
const GUEST_CMDLINE: &str = "console=ttyS0 quiet panic=-1 tsc=reliable no_timer_check";

/// What the renderer has to know beside the plan: files made for this body and facts of the host.
#[derive(Clone, Debug)]
pub struct Surroundings<'a> {
    pub acceleration: Acceleration,
    pub integration_bridge: &'a str,
    pub disks: Vec<Disk>,
    pub console_log: PathBuf,
    pub host_cpus: u32,
    pub host_memory_mib: u64,
    /// What sets start from that run as VMs.
    pub kit: Option<&'a Kit>,
    /// Where the guest's line ends, of such a set.
    pub guest_socket: PathBuf,
}

/// The domain's name.
pub fn domain_name(instance: InstanceId) -> String {
    format!("amphi-{instance}")
}

/// The whole domain. The hash of all but its metadata goes into the metadata.
pub fn domain(plan: &BodyPlan, around: &Surroundings<'_>) -> Result<String, DriverError> {
    let body = domain_without_metadata(plan, around)?;
    let spec = hex::encode(&Sha256::digest(body.clone().render().as_bytes())[..8]);
    let note = Element::new("amphi:body")
        .attr("xmlns:amphi", NAMESPACE)
        .attr("epoch", plan.epoch)
        .attr("spec", spec)
        .attr("project", plan.project)
        .attr("rescued", if plan.rescue.is_some() { "yes" } else { "no" })
        .child(Element::new("amphi:name").text(&plan.name));
    Ok(body.child(Element::new("metadata").child(note)).render())
}

fn domain_without_metadata(plan: &BodyPlan, around: &Surroundings<'_>) -> Result<Element, DriverError> {
    let accelerated = around.acceleration == Acceleration::Kvm;
    let mut features = Element::new("features").child(Element::new("acpi")).child(Element::new("apic"));
    if !accelerated {
        let cache = Element::new("tb-cache").attr("unit", "MiB").text(TCG_CACHE_MIB);
        features = features.child(Element::new("tcg").child(cache));
    }
    let cpu = match around.acceleration {
        Acceleration::Kvm => Element::new("cpu").attr("mode", "host-passthrough").attr("migratable", "on"),
        Acceleration::Tcg => Element::new("cpu").attr("mode", "maximum"),
    };
    let memory = sizing::memory(plan, around.host_memory_mib, around.host_cpus);
    let cpu = memory.cpu.into_iter().fold(cpu, Element::child);
    let head = Element::new("domain")
        .attr("type", if accelerated { "kvm" } else { "qemu" })
        .child(Element::new("name").text(domain_name(plan.instance)))
        .child(Element::new("uuid").text(plan.instance));
    Ok(memory
        .domain
        .into_iter()
        .fold(head, Element::child)
        .child(sizing::vcpu(plan.vcpus, around.host_cpus))
        .child(os(plan, around)?)
        .child(features)
        .child(cpu)
        .child(Element::new("clock").attr("offset", "utc"))
        .child(Element::new("on_poweroff").text("destroy"))
        .child(Element::new("on_reboot").text("restart"))
        .child(Element::new("on_crash").text("destroy"))
        .child(memory.device.into_iter().fold(devices(plan, around), Element::child)))
}

fn os(plan: &BodyPlan, around: &Surroundings<'_>) -> Result<Element, DriverError> {
    let kind = Element::new("type").attr("arch", "x86_64").attr("machine", "pc").text("hvm");
    let os = Element::new("os").child(kind);
    if guest::of(plan).is_some() {
        let kit = around
            .kit
            .ok_or_else(|| refused(plan, "this host has no guest kit, with which sets run as VMs"))?;
        return Ok(os
            .child(Element::new("kernel").text(kit.kernel.display()))
            .child(Element::new("initrd").text(kit.initramfs.display()))
            .child(Element::new("cmdline").text(format!("{GUEST_CMDLINE}{}", words(plan, around)))));
    }
    let BodyDesired::Vm { image, .. } = plan.runs() else {
        return Err(refused(plan, "what is to run is no VM"));
    };
    match image.format {
        ImageFormat::KernelInitramfs => {
            // A translated guest that gets no time in its first moments takes its timer for broken, and stops.
            let checks = if around.acceleration == Acceleration::Kvm { "" } else { "no_timer_check " };
            // What the image says comes last, and counts.
            let cmdline = format!("console=ttyS0{} {checks}{}", words(plan, around), image.cmdline);
            Ok(os
                .child(Element::new("kernel").text(blob(plan, plan.runs(), BlobRole::Kernel)?.display()))
                .child(Element::new("initrd").text(blob(plan, plan.runs(), BlobRole::Initramfs)?.display()))
                .child(Element::new("cmdline").text(cmdline.trim_end())))
        }
        // The BIOS speaks on the serial line too: a disk that does not boot says so in the console log. Where nothing
        // boots it tries again: what was attached meanwhile is found, and what was to be unplugged goes with the reset,
        // since QEMU waits for a guest to let go of a device, and here there is none.
        format if format.is_disk() => Ok(os
            .child(Element::new("boot").attr("dev", "hd"))
            .child(Element::new("bios").attr("useserial", "yes").attr("rebootTimeout", BOOT_RETRY_MS))),
        _ => Err(refused(plan, "a VM starts from a disk, or from a kernel with its initramfs")),
    }
}

/// What a kernel is told where memory may come.
fn words(plan: &BodyPlan, around: &Surroundings<'_>) -> String {
    let room = sizing::room(plan, around.host_memory_mib);
    if room > 0 { format!(" {}", sizing::MEMORY_WORDS) } else { String::new() }
}

/// The cached file of one of the blobs that a body starts from.
pub fn blob<'a>(plan: &'a BodyPlan, body: &BodyDesired, role: BlobRole) -> Result<&'a Path, DriverError> {
    body.images()
        .first()
        .and_then(|image| plan.images.get(&image.id))
        .and_then(|cached| cached.blobs.get(&role))
        .map(PathBuf::as_path)
        .ok_or_else(|| refused(plan, format!("the image's {role:?} is not in the plan")))
}

fn refused(plan: &BodyPlan, message: impl Into<String>) -> DriverError {
    DriverError::EngineRefused {
        engine: "libvirt",
        doing: format!("render the VM of instance {}", plan.instance),
        message: message.into(),
    }
}

fn devices(plan: &BodyPlan, around: &Surroundings<'_>) -> Element {
    let mut devices = Element::new("devices");
    for disk in &around.disks {
        devices = devices.child(disk.element());
    }
    for port in &plan.ports {
        devices = devices.child(interface(port, around.integration_bridge));
    }
    if guest::of(plan).is_some() {
        devices = devices.child(channel(amphi_guest::PORT, Some(&around.guest_socket)));
    }
    let log = Element::new("log").attr("file", around.console_log.display()).attr("append", "on");
    devices
        .child(Element::new("controller").attr("type", "usb").attr("model", "none"))
        .child(Element::new("serial").attr("type", "pty").child(log))
        // On a socket that libvirt makes for QEMU's user alone; its path is in the running domain's definition. VGA, because
        // every guest has a driver for it.
        .child(
            Element::new("graphics").attr("type", "vnc").child(Element::new("listen").attr("type", "socket")),
        )
        .child(
            Element::new("video")
                .child(Element::new("model").attr("type", "vga").attr("vram", VIDEO_KIB).attr("heads", 1)),
        )
        // Absolute positions: a viewer's pointer and the guest's are the same.
        .child(Element::new("input").attr("type", "tablet").attr("bus", "virtio"))
        .child(channel(AGENT_PORT, None))
        .child(
            Element::new("rng")
                .attr("model", "virtio")
                .child(Element::new("backend").attr("model", "random").text("/dev/urandom")),
        )
        .child(Element::new("memballoon").attr("model", "none"))
        // Tells libvirt of a guest kernel's panic, so that `on_crash` holds for it too.
        .child(Element::new("panic").attr("model", "isa"))
}

/// A serial port of the guest, on a socket that libvirt makes for QEMU's user alone: here, or where libvirt likes.
fn channel(name: &str, socket: Option<&Path>) -> Element {
    let target = Element::new("target").attr("type", "virtio").attr("name", name);
    let channel = Element::new("channel").attr("type", "unix");
    let source = |path: &Path| Element::new("source").attr("mode", "bind").attr("path", path.display());
    socket.map(source).into_iter().fold(channel, Element::child).child(target)
}

pub fn interface(port: &PortAttachment, bridge: &str) -> Element {
    // A tap in Open vSwitch's userspace datapath gets no checksums filled in by a kernel: with offloads on, pings
    // pass and TCP stalls.
    let off = |element: Element, names: &[&'static str]| {
        names.iter().fold(element, |element, name| element.attr(name, "off"))
    };
    let driver = Element::new("driver")
        .child(off(Element::new("host"), &["csum", "gso", "tso4", "tso6", "ecn", "ufo"]))
        .child(off(Element::new("guest"), &["csum", "tso4", "tso6", "ecn", "ufo"]));
    Element::new("interface")
        .attr("type", "bridge")
        .child(Element::new("mac").attr("address", &port.mac))
        .child(Element::new("source").attr("bridge", bridge))
        .child(
            Element::new("virtualport")
                .attr("type", "openvswitch")
                .child(Element::new("parameters").attr("interfaceid", port.id)),
        )
        .child(Element::new("target").attr("dev", host_device(port.id.0)))
        .child(Element::new("model").attr("type", "virtio"))
        .child(driver)
        // No network boot: its option ROM only costs time.
        .child(Element::new("rom").attr("enabled", "no"))
        .child(Element::new("mtu").attr("size", port.mtu))
        .child(Element::new("alias").attr("name", format!("{PORT_ALIAS}{}", port.id)))
}

#[cfg(test)]
mod tests {
    use super::super::disks::{self, VolumeIo};
    use super::super::files::BodyFiles;
    use super::super::sample;
    use super::*;

    fn around(plan: &BodyPlan, io: VolumeIo) -> Surroundings<'static> {
        let files = BodyFiles::new(Path::new("/s"), plan);
        Surroundings {
            acceleration: Acceleration::Tcg,
            integration_bridge: "br-int",
            disks: disks::of(plan, &files, |_| io),
            console_log: files.console_log(),
            host_cpus: 8,
            host_memory_mib: 16 << 10,
            kit: None,
            guest_socket: files.guest_socket(),
        }
    }

    const DIRECT: VolumeIo = VolumeIo { block: true, direct: true };

    #[test]
    fn kernel_boot_with_everything() {
        let plan = sample::plan(ImageFormat::KernelInitramfs);
        insta::assert_snapshot!(domain(&plan, &around(&plan, DIRECT)).unwrap());
    }

    #[test]
    fn a_set_that_runs_as_a_vm() {
        let mut plan = sample::plan(ImageFormat::DockerArchive);
        let set = serde_json::from_str(r#"{"members": [{"index": 0, "image": "x"}]}"#).unwrap();
        plan.body = BodyDesired::SetVm { set, images: plan.body.images().to_vec() };
        let kit = Kit { kernel: "/kit/kernel".into(), initramfs: "/kit/initramfs".into() };
        let mut around = around(&plan, DIRECT);
        let of_guest = |serial: &str, target: &str, read_only| {
            disks::Disk::of_guest(serial, target, Path::new("/s").join(serial), read_only)
        };
        around.disks.push(of_guest("scratch", "vday", false));
        around.disks.push(of_guest("root-1", "vdaa", true));
        assert!(domain(&plan, &around).unwrap_err().to_string().contains("no guest kit"));
        around.kit = Some(&kit);
        insta::assert_snapshot!(domain(&plan, &around).unwrap());
    }

    #[test]
    fn disk_boot_with_kvm_and_no_volume() {
        let mut plan = sample::plan(ImageFormat::Qcow2);
        plan.volume = None;
        plan.ports.clear();
        let around = Surroundings { acceleration: Acceleration::Kvm, ..around(&plan, DIRECT) };
        insta::assert_snapshot!(domain(&plan, &around).unwrap());
    }

    #[test]
    fn a_volume_that_cannot_go_past_the_page_cache() {
        let plan = sample::plan(ImageFormat::KernelInitramfs);
        let around = around(&plan, VolumeIo { block: false, direct: false });
        let text = domain(&plan, &around).unwrap();
        assert!(text.contains(r#"cache="writeback" io="threads""#), "{text}");
        assert!(text.contains(r#"<source file="/dev/loop7"/>"#), "{text}");
    }

    #[test]
    fn the_hash_follows_the_spec_and_not_the_epoch() {
        let plan = sample::plan(ImageFormat::KernelInitramfs);
        let around = around(&plan, DIRECT);
        let hash = |plan: &BodyPlan| {
            let text = domain(plan, &around).unwrap();
            text.split_once("spec=\"").unwrap().1[..16].to_owned()
        };
        assert_eq!(hash(&plan), hash(&BodyPlan { epoch: 99, ..plan.clone() }));
        assert_ne!(hash(&plan), hash(&BodyPlan { vcpus: 7, ..plan.clone() }));
    }

    #[test]
    fn wrong_bodies_are_refused() {
        let plan = sample::plan(ImageFormat::DockerArchive);
        assert_eq!(domain(&plan, &around(&plan, DIRECT)).unwrap_err().code(), "engine_refused");
        let mut plan = sample::plan(ImageFormat::KernelInitramfs);
        plan.images.clear();
        assert_eq!(domain(&plan, &around(&plan, DIRECT)).unwrap_err().code(), "engine_refused");
    }
}
