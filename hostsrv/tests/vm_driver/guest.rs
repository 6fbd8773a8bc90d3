//! Owns the guests of these tests: Debian's cloud kernel with an initramfs around busybox, made here; and a disk whose
//! boot sector hears nothing. Refuses to need anything but the package archive and busybox-static.

use amphi_api::image::{Blob, BlobRole, Image, ImageFormat, ImageState};
use amphi_api::instance::Power;
use amphi_api::wire::BodyDesired;
use amphi_api::{ImageId, InstanceId, ProjectId};
use amphi_hostsrv::instance::{BodyPlan, CachedImage};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

const MODULES: [&str; 12] = [
    "drivers/virtio/virtio_ring",
    "drivers/virtio/virtio",
    "drivers/virtio/virtio_pci_modern_dev",
    "drivers/virtio/virtio_pci_legacy_dev",
    "drivers/virtio/virtio_pci",
    "drivers/block/virtio_blk",
    "net/core/failover",
    "drivers/net/net_failover",
    "drivers/net/virtio_net",
    "drivers/input/evdev",
    "drivers/acpi/button",
    "drivers/virtio/virtio_mem",
];

/// Prints its disks and its memory whenever they change, does what the command line says of the network, and powers off at the
/// button.
const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs dev /dev
for m in MODULES; do insmod /lib/$m.ko || poweroff -f; done
echo "guest: up"
for arg in $(cat /proc/cmdline); do case $arg in
  address=*) ip link set eth0 up; ip addr add ${arg#address=} dev eth0; echo "guest: mtu $(cat /sys/class/net/eth0/mtu) mac $(cat /sys/class/net/eth0/address)";;
  call=*) host=${arg#call=}
    until ping -c 1 -w 1 $host >/dev/null; do :; done; echo "guest: ping"
    dd if=/dev/zero bs=1k count=256 2>/dev/null | nc -w 9 $host 9999 && echo "guest: tcp";;
esac; done
(
  for e in /sys/class/input/event*; do
    if [ "$(cat $e/device/name)" = "Power Button" ]; then
      dd if=/dev/input/$(basename $e) of=/dev/null bs=24 count=1 2>/dev/null
      echo "guest: power button"
      poweroff -f
    fi
  done
) &
seen="" had=""
while :; do
  now=$(for d in /sys/block/vd*; do echo "guest: disk serial=$(cat $d/serial) sectors=$(cat $d/size);"; done)
  if [ "$now" != "$seen" ]; then echo "$now"; seen="$now"; fi
  memory="guest: memory $(awk '/MemTotal/ { print int($2 / 1024) }' /proc/meminfo) MiB"
  if [ "$memory" != "$had" ]; then echo "$memory"; had="$memory"; fi
  sleep 0.2
done
"#;

pub struct GuestFiles {
    kernel: PathBuf,
    initramfs: PathBuf,
}

impl GuestFiles {
    /// From the cache, or from the package archive and busybox into it.
    pub fn get() -> Self {
        let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("vm-guest");
        std::fs::create_dir_all(&cache).unwrap();
        let lock = std::fs::File::create(cache.join("lock")).unwrap();
        lock.lock().unwrap();
        let (kernel, initramfs) = (cache.join("kernel"), cache.join("initramfs"));
        if !kernel.exists() {
            fetch(&cache, &kernel);
        }
        std::fs::write(&initramfs, archive(&cache.join("tree"))).unwrap();
        Self { kernel, initramfs }
    }
}

fn sh(folder: &Path, script: &str) {
    let output = Command::new("sh").args(["-ec", script]).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
}

fn fetch(cache: &Path, kernel: &Path) {
    sh(
        cache,
        "rm -rf tree *.deb
         apt-get download $(apt-cache depends linux-image-cloud-amd64 | awk '/Depends:/ { print $2; exit }')
         dpkg-deb -x linux-image-*.deb tree
         cp tree/boot/vmlinuz-* kernel.part",
    );
    std::fs::rename(cache.join("kernel.part"), kernel).unwrap();
}

/// A cpio archive in the newc format (the kernel's Documentation/driver-api/early-userspace/buffer-format.rst).
fn archive(tree: &Path) -> Vec<u8> {
    let modules = std::fs::read_dir(tree.join("lib/modules")).unwrap().next().unwrap().unwrap().path();
    let mut out = Vec::new();
    for folder in ["bin", "dev", "lib", "proc", "sys"] {
        entry(&mut out, folder, 0o040_755, &[]);
    }
    entry(&mut out, "bin/busybox", 0o100_755, &std::fs::read("/bin/busybox").unwrap());
    let mut names = Vec::new();
    for module in MODULES {
        let name = module.rsplit('/').next().unwrap();
        let bytes = std::fs::read(modules.join(format!("kernel/{module}.ko"))).unwrap();
        entry(&mut out, &format!("lib/{name}.ko"), 0o100_644, &bytes);
        names.push(name);
    }
    entry(&mut out, "init", 0o100_755, INIT.replace("MODULES", &names.join(" ")).as_bytes());
    entry(&mut out, "TRAILER!!!", 0, &[]);
    out
}

fn entry(out: &mut Vec<u8>, name: &str, mode: u32, bytes: &[u8]) {
    let inode = out.len();
    write!(out, "070701{inode:08x}{mode:08x}{0:08x}{0:08x}{1:08x}{0:08x}{2:08x}", 0, 1, bytes.len()).unwrap();
    write!(out, "{0:08x}{0:08x}{0:08x}{0:08x}{1:08x}{0:08x}{name}\0", 0, name.len() + 1).unwrap();
    out.resize(out.len().next_multiple_of(4), 0);
    out.extend_from_slice(bytes);
    out.resize(out.len().next_multiple_of(4), 0);
}

fn plan(format: ImageFormat, cmdline: &str, blobs: BTreeMap<BlobRole, PathBuf>) -> BodyPlan {
    let image = Image {
        id: ImageId::new(),
        project: ProjectId::DEFAULT,
        name: "guest".into(),
        format,
        cmdline: cmdline.into(),
        state: ImageState::Active,
        layers: Vec::new(),
        blobs: blobs.keys().map(|role| (*role, Blob { sha256: "0".repeat(64), size: 1 })).collect(),
        created_at: "2026-01-01T00:00:00Z".parse().unwrap(),
    };
    BodyPlan {
        members: Default::default(),
        instance: InstanceId::new(),
        project: ProjectId::DEFAULT,
        name: "</name><devices>\"&' ]]> größe %s $(reboot)".into(),
        epoch: 3,
        vcpus: 1,
        memory_mib: 128,
        power: Power::On,
        body: BodyDesired::Vm { image: image.clone(), root_gib: None, probes: Default::default() },
        rescue: None,
        root: 1,
        root_volume: None,
        attachments: Vec::new(),
        ports: Vec::new(),
        volume: None,
        images: BTreeMap::from([(image.id, CachedImage { image, blobs })]),
        user_data: Some("hello".into()),
        ssh_keys: Vec::new(),
        metadata: BTreeMap::new(),
        twin: false,
    }
}

/// A Linux guest.
pub fn linux(files: &GuestFiles, cmdline: &str) -> BodyPlan {
    let blobs = [(BlobRole::Kernel, files.kernel.clone()), (BlobRole::Initramfs, files.initramfs.clone())];
    plan(ImageFormat::KernelInitramfs, &format!("quiet {cmdline}"), blobs.into())
}

/// A raw disk of zeros.
pub fn blank(folder: impl AsRef<Path>) -> BodyPlan {
    let disk = folder.as_ref().join("blank.raw");
    std::fs::write(&disk, vec![0; 1 << 20]).unwrap();
    let mut plan = plan(ImageFormat::Raw, "", [(BlobRole::Disk, disk)].into());
    plan.memory_mib = 16;
    plan
}

/// A guest from a raw disk that prints `deaf` and hears no button.
pub fn deaf(folder: &Path) -> BodyPlan {
    // mov dx,0x3f8; then for each letter: mov al,letter; out dx,al; then cli; hlt.
    let mut sector = vec![0xba, 0xf8, 0x03];
    for letter in *b"deaf\n" {
        sector.extend([0xb0, letter, 0xee]);
    }
    sector.extend([0xfa, 0xf4]);
    sector.resize(1 << 20, 0);
    sector[510..512].copy_from_slice(&[0x55, 0xaa]);
    let disk = folder.join("deaf.raw");
    std::fs::write(&disk, sector).unwrap();
    let mut plan = plan(ImageFormat::Raw, "", [(BlobRole::Disk, disk)].into());
    plan.memory_mib = 16;
    plan
}

/// The lab's own guest on a disk, made by the same script as for the lab; a second time that is only a look.
pub fn bootable() -> BodyPlan {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    sh(root, "scripts/make-images.sh >&2");
    let lab = std::env::var_os("AMPHI_LAB_DIR").map_or_else(|| "target/lab".into(), PathBuf::from);
    let disk = root.join(lab).join("images/vm-disk.qcow2");
    let mut plan = plan(ImageFormat::Qcow2, "", [(BlobRole::Disk, disk)].into());
    plan.memory_mib = 192;
    plan
}
