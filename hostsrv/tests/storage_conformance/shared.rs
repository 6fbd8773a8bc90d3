//! A group that two hosts see: each a driver of its own, with its own way to the disk, as on two machines. Loop windows only:
//! both hosts' device-mapper would be the same kernel's.

use std::process::Command;

use amphi_api::wire::{GroupDesired, HostDesired};
use amphi_api::{HostId, VolumeGroupId, VolumeId};
use amphi_hostsrv::lease::memo::Files;
use amphi_hostsrv::storage::{
    Activation, Attach, BinOrder, Filesystem, LvmConfig, LvmDriver, StorageError, VolumeDriver, VolumeSpec,
    shared,
};
use uuid::Uuid;

use crate::rig::{Rig, UNIT, filesystem_size, write, xfs};

struct Host {
    config: LvmConfig,
    driver: LvmDriver,
    files: Files,
    device: String,
}

fn run(program: &str, args: &[&str]) -> String {
    let done = Command::new(program).args(args).env("LVM_SUPPRESS_FD_WARNINGS", "1").output().expect(program);
    assert!(done.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8_lossy(&done.stdout).trim().to_owned()
}

impl Host {
    async fn new(rig: &Rig, name: &str, group: &str, disk: &str) -> Host {
        let device = run("losetup", &["--find", "--show", "--direct-io=on", disk]);
        let dir = rig.dir.join(name);
        for part in ["lvm", "state", "run"] {
            std::fs::create_dir_all(dir.join(part)).expect("a directory");
        }
        let conf = format!(
            "devices {{ dir=\"/dev\" use_devicesfile=0 filter=[\"a|^{device}$|\",\"r|.*|\"] \
             global_filter=[\"a|^{device}$|\",\"r|.*|\"] hints=\"none\" }}\n\
             activation {{ udev_sync=0 udev_rules=0 monitoring=0 }}\nbackup {{ backup=0 archive=0 }}\n\
             global {{ locking_dir=\"{}\" }}\n",
            dir.join("lock").display()
        );
        std::fs::write(dir.join("lvm/lvm.conf"), conf).expect("configuration");
        let mut config = LvmConfig::new(group, &dir.join("state"), &dir.join("run"));
        config.lvm_dir = dir.join("lvm");
        config.activation = Some(Activation::Loop);
        config.shared = true;
        let files = Files::new(&config.run_dir, &config.state_dir);
        let driver = LvmDriver::open(config.clone()).await.expect("driver");
        files.renew_boot().expect("a boot");
        Host { config, driver, files, device }
    }

    /// The controller's word.
    fn may(&self, id: VolumeGroupId, keeper: Option<u64>, held: &[(Uuid, u64)]) {
        let held = held.iter().map(|(id, epoch)| (VolumeId(*id), *epoch)).collect();
        let desired = HostDesired {
            groups: vec![GroupDesired { id, keeper, kept: Default::default(), held }],
            ..HostDesired::empty(HostId::new())
        };
        shared::write(&self.files.run_dir, self.files.boot().expect("a boot"), &desired).expect("written");
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        for mount in amphi_hostsrv::storage::filesystem::mounts().unwrap_or_default().iter().rev() {
            if mount.point.starts_with(&self.config.state_dir) {
                let _ = Command::new("umount").arg(&mount.point).status();
            }
        }
        let _ = Command::new("losetup").args(["--detach", &self.device]).status();
    }
}

fn of(group: VolumeGroupId, spec: VolumeSpec) -> VolumeSpec {
    VolumeSpec { group: Some(group), ..spec }
}

pub async fn two_hosts_share_a_group_and_never_a_volume(rig: &mut Rig) {
    if rig.activation == Activation::Dm {
        println!("one kernel has one device-mapper: two hosts on it are no two hosts");
        return;
    }
    let disk = rig.dir.join("shared");
    std::fs::File::create(&disk).and_then(|file| file.set_len(200 * UNIT)).expect("sparse");
    let disk = disk.display().to_string();
    let name = format!("s{}", &Uuid::new_v4().simple().to_string()[..12]);
    let first = run("losetup", &["--find", "--show", &disk]);
    let config = format!(
        "devices {{ use_devicesfile=0 global_filter=[\"a|^{first}$|\",\"r|.*|\"] hints=\"none\" }} backup {{ backup=0 archive=0 }}"
    );
    run(
        "vgcreate",
        &["--driverloaded", "n", "--config", &config, "--yes", "--addtag", "amphi.shared", &name, &first],
    );
    run("losetup", &["--detach", &first]);
    let (a, b) = (Host::new(rig, "a", &name, &disk).await, Host::new(rig, "b", &name, &disk).await);
    a.driver.probe().await.expect("seen by a");
    b.driver.probe().await.expect("seen by b");
    let group = a.driver.group_id().expect("known");
    assert_eq!(b.driver.group_id(), Some(group), "the same group on both");

    // Nobody was told anything yet.
    let id = Uuid::new_v4();
    let error = a.driver.ensure(&of(group, xfs(id, 32))).await.expect_err("no keeper");
    assert!(matches!(error, StorageError::NotReady { .. }), "{error}");
    // The keeper makes it and does not keep it active.
    a.may(group, Some(1), &[]);
    a.driver.ensure(&of(group, xfs(id, 32))).await.expect("made");
    let seen = |volumes: Vec<amphi_hostsrv::storage::ObservedVolume>| {
        volumes.into_iter().find(|volume| volume.id == id).expect("seen")
    };
    assert_eq!(seen(a.driver.observe().await.expect("observes")).device, None);
    let other = seen(b.driver.observe().await.expect("observes"));
    assert_eq!((other.complete, other.fs, other.shared), (true, Some(Filesystem::Xfs), Some(group)));
    // Having it is the holder's right alone; changing the group the keeper's.
    for host in [&a, &b] {
        let error = host.driver.attach(id, Attach::Mounted).await.expect_err("nobody's yet");
        assert!(matches!(error, StorageError::NotHolder { .. }), "{error}");
    }
    b.may(group, None, &[(id, 3)]);
    let error = b.driver.set_bin(id, BinOrder::Trash { at: 1 }).await.expect_err("not the keeper");
    assert!(matches!(error, StorageError::NotKeeper { .. }), "{error}");
    let point = b.driver.attach(id, Attach::Mounted).await.expect("held").mount.expect("mounted");
    write(&point.join("word"), b"kept");
    // It grows where it is mounted after the keeper has made it larger, and not before.
    let larger = of(group, xfs(id, 48));
    let error = b.driver.ensure(&larger).await.expect_err("not larger yet");
    assert!(matches!(error, StorageError::NotReady { .. }), "{error}");
    a.driver.ensure(&larger).await.expect("larger");
    assert_eq!(seen(a.driver.observe().await.expect("observes")).device, None, "the keeper has no window");
    b.driver.ensure(&larger).await.expect("follows");
    assert!(filesystem_size(&point) > 40 * UNIT, "{}", filesystem_size(&point));

    // A fence cuts the holder off: what it wrote last is not written any more, whatever it does.
    write(&point.join("synced"), b"before");
    std::fs::write(point.join("late"), b"in memory only").expect("into the page cache");
    assert_eq!(shared::cut_off(&b.files.run_dir, &b.files.state_dir), 1);
    b.files.renew_boot().expect("as if switched off");
    assert!(std::fs::write(point.join("later"), b"no").is_err(), "nothing goes through any more");
    a.may(group, Some(1), &[(id, 4)]);
    let taken = a.driver.attach(id, Attach::Mounted).await.expect("taken over").mount.expect("mounted");
    assert_eq!(std::fs::read(taken.join("word")).expect("read"), b"kept");
    assert_eq!(std::fs::read(taken.join("synced")).expect("read"), b"before");
    // The old holder lets go of it and touches nothing; it may not have it again.
    b.driver.detach(id).await.expect("lets go");
    let error = b.driver.attach(id, Attach::Mounted).await.expect_err("of another boot");
    assert!(matches!(error, StorageError::NotHolder { .. }), "{error}");
    write(&taken.join("after"), b"a's");

    // Back again, with the keeper's part too.
    a.driver.detach(id).await.expect("lets go");
    a.may(group, None, &[]);
    b.may(group, Some(2), &[(id, 5)]);
    let point = b.driver.attach(id, Attach::Mounted).await.expect("held again").mount.expect("mounted");
    assert_eq!(std::fs::read(point.join("after")).expect("read"), b"a's");
    b.driver.detach(id).await.expect("lets go");
    b.driver.set_bin(id, BinOrder::Trash { at: 1 }).await.expect("trashed");
    b.driver.set_bin(id, BinOrder::Purge).await.expect("purged");
    assert!(a.driver.observe().await.expect("observes").is_empty());
    // A group is a host's own or shared, never one taken for the other.
    let mistaken = LvmConfig { shared: false, ..a.config.clone() };
    let error = LvmDriver::open(mistaken).await.expect("opens").probe().await.expect_err("marked");
    assert!(error.to_string().contains("marked as shared"), "{error}");
}
