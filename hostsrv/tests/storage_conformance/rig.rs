//! A volume group of the test's own on a loop device that vanishes with the process, and a driver on it.

use std::fs::{File, OpenOptions};
use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use amphi_hostsrv::storage::activation::ioctl;
use amphi_hostsrv::storage::activation::loop_device::{self, Place};
use amphi_hostsrv::storage::lvm::Lvm;
use amphi_hostsrv::storage::{
    Activation, Attach, Filesystem, LvmConfig, LvmDriver, ObservedVolume, VolumeDriver, VolumeSpec,
};
use uuid::Uuid;

use crate::common;

/// What sizes are counted in: XFS wants 300 MiB at least, so the smallest volume here has 32 units.
pub const UNIT: u64 = 10 << 20;
/// The rig's group: the file has a megabyte more, for LVM's metadata.
pub const GROUP_BYTES: u64 = 1280 * UNIT;

/// Set by scripts/uml-lane.sh: a directory to work in, on a kernel of our own with device-mapper.
const DM_LANE: &str = "AMPHI_STORAGE_DM_LANE";

pub struct Rig {
    pub config: LvmConfig,
    pub driver: LvmDriver,
    pub activation: Activation,
    /// The same commands as the driver's, for what only a crash would leave.
    pub lvm: Lvm,
    pub dir: PathBuf,
    guests: Vec<Child>,
    /// Keeps the physical volume's loop device, which clears itself with its last user.
    _pv: File,
}

type Case<'a> = Pin<Box<dyn Future<Output = ()> + 'a>>;

/// Runs a case on a fresh rig: in namespaces of its own, or right here on the lane's own kernel.
pub fn on_rig(test: &str, case: impl for<'a> FnOnce(&'a mut Rig) -> Case<'a>) {
    let body = |dir: PathBuf, activation| {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        runtime.expect("a runtime").block_on(async {
            let started = Instant::now();
            let mut rig = Rig::new(&dir, activation).await;
            case(&mut rig).await;
            eprintln!("{test}: {:?}", started.elapsed());
        });
    };
    match std::env::var_os(DM_LANE) {
        Some(lane) => {
            let dir = Path::new(&lane).join(test);
            body(dir.clone(), Activation::Dm);
            std::fs::remove_dir_all(dir).expect("the case's directory can go");
        }
        None => common::on_private_host(test, |host| body(host.path("rig"), Activation::Loop)),
    }
}

impl Rig {
    async fn new(dir: &Path, activation: Activation) -> Rig {
        for name in ["lvm", "state", "run"] {
            std::fs::create_dir_all(dir.join(name)).expect("a directory");
        }
        let file = OpenOptions::new().create_new(true).read(true).write(true).open(dir.join("pv"));
        file.expect("a file").set_len(GROUP_BYTES + (1 << 20)).expect("sparse");
        let place = Place { pv: dir.join("pv"), offset: 0, size: GROUP_BYTES + (1 << 20), direct: false };
        let pv = loop_device::open(&place).expect("a loop device (root?)");
        let device = pv.device.display().to_string();
        let udev = "udev_sync=0 udev_rules=0 monitoring=0";
        let conf = format!(
            "devices {{ dir=\"/dev\" use_devicesfile=0 filter=[\"a|^{device}$|\",\"r|.*|\"] \
             global_filter=[\"a|^{device}$|\",\"r|.*|\"] hints=\"none\" }}\n\
             activation {{ {udev} }}\nbackup {{ backup=0 archive=0 }}\n\
             global {{ locking_dir=\"{}\" }}\n",
            dir.join("lock").display()
        );
        std::fs::write(dir.join("lvm/lvm.conf"), conf).expect("configuration");
        let group = format!("t{}", &Uuid::new_v4().simple().to_string()[..12]);
        let loaded = if activation == Activation::Dm { "y" } else { "n" };
        for args in [vec!["pvcreate", "-ff", "-y", &device], vec!["vgcreate", &group, &device]] {
            let done = Command::new("lvm")
                .args(args)
                .args(["--driverloaded", loaded])
                .env("LVM_SYSTEM_DIR", dir.join("lvm"))
                .env("LVM_SUPPRESS_FD_WARNINGS", "1")
                .output()
                .expect("lvm2 is installed");
            assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        }
        let mut config = LvmConfig::new(&group, &dir.join("state"), &dir.join("run"));
        config.lvm_dir = dir.join("lvm");
        // On the lane's kernel the driver has to find device-mapper by itself.
        config.activation = (activation == Activation::Loop).then_some(Activation::Loop);
        let driver = LvmDriver::open(config.clone()).await.expect("driver");
        let facts = driver.probe().await.expect("facts");
        assert_eq!(facts.activation, activation);
        assert!(facts.lvm_version.starts_with("2."), "{facts:?}");
        let lvm = Lvm::new(&group, activation, &dir.join("lvm"), &dir.join("run/lvm")).expect("lvm");
        Rig { config, driver, activation, lvm, dir: dir.to_owned(), guests: Vec::new(), _pv: pv.file }
    }

    /// As after a restart of the agent.
    pub async fn fresh_driver(&self) -> LvmDriver {
        LvmDriver::open(self.config.clone()).await.expect("driver")
    }

    pub async fn observed(&self, id: Uuid) -> Option<ObservedVolume> {
        let seen = self.driver.observe().await.expect("observes");
        seen.into_iter().find(|volume| volume.id == id)
    }

    pub async fn free(&self) -> u64 {
        self.driver.probe().await.expect("facts").free_bytes
    }

    /// A formatted volume, mounted; returns its id and mount point.
    pub async fn mounted(&self, units: u64) -> (Uuid, PathBuf) {
        let id = Uuid::new_v4();
        self.driver.ensure(&xfs(id, units)).await.expect("made");
        (id, self.mount(id).await)
    }

    /// Extends a mounted volume, online.
    pub async fn extend_mounted(&self, id: Uuid, units: u64) {
        self.driver.ensure(&xfs(id, units)).await.expect("grown online");
    }

    pub async fn mount(&self, id: Uuid) -> PathBuf {
        let attached = self.driver.attach(id, Attach::Mounted).await.expect("attached");
        attached.mount.expect("a mount point")
    }

    /// A process that holds something until `dismiss`; returns once it says so.
    pub fn guest(&mut self, script: &str) -> u32 {
        let ready = self.dir.join(format!("ready-{}", self.guests.len()));
        // One of an earlier guest's may be left.
        let _ = std::fs::remove_file(&ready);
        let script = format!("{script} touch {}; exec sleep 600", ready.display());
        let child = Command::new("sh").args(["-c", &script]).stdin(Stdio::null()).spawn().expect("sh");
        let pid = child.id();
        self.guests.push(child);
        let deadline = Instant::now() + Duration::from_secs(30);
        while !ready.exists() {
            assert!(Instant::now() < deadline, "the guest never got ready: {script}");
            std::thread::sleep(Duration::from_millis(5));
        }
        pid
    }

    pub fn dismiss_guests(&mut self) {
        for mut child in self.guests.drain(..) {
            child.kill().expect("killed");
            child.wait().expect("waited for");
        }
    }
}

/// The lane's kernel outlives the case: leave no mount, LV or loop device behind, also after a failure.
impl Drop for Rig {
    fn drop(&mut self) {
        self.dismiss_guests();
        let volumes = self.config.state_dir.join("volumes");
        for mount in amphi_hostsrv::storage::filesystem::mounts().unwrap_or_default().iter().rev() {
            if mount.point.starts_with(&self.dir) {
                if mount.point != volumes
                    && let Ok(directory) = File::open(&mount.point)
                {
                    // Not frozen is the rule.
                    let _ = ioctl::thaw(&directory);
                }
                let done = Command::new("umount").arg(&mount.point).status();
                eprintln!("unmounting {}: {done:?}", mount.point.display());
            }
        }
        if self.activation == Activation::Dm {
            let group = self.config.volume_group.clone();
            let done = Command::new("lvm")
                .args(["vgchange", "-an", &group])
                .env("LVM_SYSTEM_DIR", self.dir.join("lvm"))
                .env("LVM_SUPPRESS_FD_WARNINGS", "1")
                .output();
            eprintln!("deactivating {group}: {:?}", done.map(|output| output.status));
        }
    }
}

pub fn xfs(id: Uuid, units: u64) -> VolumeSpec {
    VolumeSpec { id, size_bytes: units * UNIT, fs: Some(Filesystem::Xfs), source: None, group: None }
}

pub fn raw(id: Uuid, units: u64) -> VolumeSpec {
    VolumeSpec { id, size_bytes: units * UNIT, fs: None, source: None, group: None }
}

/// Bytes that no other `seed` has.
pub fn pattern(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Writes and syncs.
pub fn write(path: &Path, bytes: &[u8]) {
    let mut file = File::create(path).expect("a file");
    std::io::Write::write_all(&mut file, bytes).expect("written");
    file.sync_all().expect("synced");
}

/// Size of the mounted file system in bytes, as its users see it.
pub fn filesystem_size(point: &Path) -> u64 {
    let stat = nix::sys::statvfs::statvfs(point).expect("statvfs");
    stat.blocks() * stat.fragment_size()
}
