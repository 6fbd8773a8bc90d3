//! What goes wrong, and what is left of it.

use std::os::unix::fs::FileExt;
use std::process::Command;

use amphi_hostsrv::storage::lvm::LvmCommand;
use amphi_hostsrv::storage::{
    Activation, Attach, BinOrder, Filesystem, Quiesce, Source, StorageError, VolumeDriver, VolumeSpec,
};
use uuid::Uuid;

use crate::rig::{GROUP_BYTES, Rig, UNIT, raw, write, xfs};

pub async fn a_busy_volume_is_not_detached_and_its_holder_named(rig: &mut Rig) {
    let (id, point) = rig.mounted(32).await;
    let pid = rig.guest(&format!("cd {};", point.display()));
    for _ in 0..2 {
        let error = rig.driver.detach(id).await.expect_err("somebody works in it");
        assert!(matches!(error, StorageError::Busy { .. }), "{error}");
        assert!(error.to_string().contains(&format!("process {pid} (")), "{error}");
    }
    for order in [BinOrder::Trash { at: 1 }, BinOrder::Purge] {
        let error = rig.driver.set_bin(id, order).await.expect_err("somebody works in it");
        assert!(matches!(error, StorageError::Busy { .. }), "{error}");
    }
    let seen = rig.observed(id).await.expect("there");
    assert_eq!((seen.mounted, seen.trashed_at), (Some(point.clone()), None), "nothing changed");
    write(&point.join("data"), b"still usable");
    rig.dismiss_guests();
    rig.driver.detach(id).await.expect("free");

    let device = rig.driver.attach(id, Attach::Device).await.expect("attached").device;
    let pid = rig.guest(&format!("exec 3<>{};", device.display()));
    let error = rig.driver.detach(id).await.expect_err("a guest has it");
    assert!(error.to_string().contains(&format!("process {pid} (")), "{error}");
    rig.dismiss_guests();
    rig.driver.detach(id).await.expect("free");

    // Mounted in a namespace of a guest's own, which no unmount here reaches.
    let point = rig.mount(id).await;
    let elsewhere = rig.dir.join("elsewhere");
    std::fs::create_dir_all(&elsewhere).expect("a directory");
    let ready = rig.dir.join("ready-mount");
    let script = format!(
        "mount --bind {} {} && umount {} && touch {} && exec sleep 600",
        point.display(),
        elsewhere.display(),
        point.display(),
        ready.display()
    );
    let pid = rig.guest(&format!(
        "unshare --mount --propagation private sh -c '{script}' & while ! [ -e {} ]; do sleep 0.02; done;",
        ready.display()
    ));
    let error = rig.driver.detach(id).await.expect_err("a guest mounts it");
    assert!(error.to_string().contains("elsewhere in its own namespace"), "{error}");
    let children = Command::new("pkill").args(["-P", &pid.to_string()]).status().expect("pkill");
    assert!(children.success());
    rig.dismiss_guests();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while let Err(error) = rig.driver.detach(id).await {
        assert!(std::time::Instant::now() < deadline, "{error}");
    }
}

pub async fn a_full_group_says_so_and_nothing_is_half_made(rig: &mut Rig) {
    let big = Uuid::new_v4();
    rig.driver.ensure(&raw(big, 1200)).await.expect("made");
    let (free, before) = (rig.free().await, rig.driver.observe().await.expect("observes"));
    let error = rig.driver.ensure(&xfs(Uuid::new_v4(), 100)).await.expect_err("full");
    assert!(
        matches!(&error, StorageError::Full { needed, free: f, .. } if *needed == 100 * UNIT && *f == free),
        "{error}"
    );
    let error = rig.driver.ensure(&raw(big, 1400)).await.expect_err("full");
    assert!(matches!(error, StorageError::Full { .. }), "{error}");
    let error = rig.driver.snapshot(big, Uuid::new_v4(), &Quiesce::Filesystem).await.expect_err("full");
    assert!(matches!(error, StorageError::Full { .. }), "{error}");
    let error = rig.driver.ensure(&raw(Uuid::new_v4(), 0)).await.expect_err("no size");
    assert!(matches!(error, StorageError::Invalid { .. }), "{error}");
    assert_eq!((rig.free().await, rig.driver.observe().await.expect("observes")), (free, before));
    rig.driver.set_bin(big, BinOrder::Purge).await.expect("purged");
    assert_eq!(rig.free().await, GROUP_BYTES);

    if rig.activation == Activation::Loop {
        // Two of 400 MiB with room between them: what is left is no single piece.
        let ids: Vec<Uuid> = (0..3).map(|_| Uuid::new_v4()).collect();
        rig.driver.ensure(&raw(ids[0], 400)).await.expect("made");
        rig.driver.ensure(&raw(ids[1], 400)).await.expect("made");
        let error = rig.driver.ensure(&raw(ids[2], 448)).await.expect_err("no piece that large");
        let StorageError::NoContiguousRoom { needed, largest, free, .. } = error else { panic!("{error}") };
        assert_eq!((needed, free), (448 * UNIT, 480 * UNIT));
        assert!(largest < needed);
        let error = rig.driver.ensure(&raw(ids[0], 848)).await.expect_err("no room behind");
        let StorageError::NoRoomBehind { needed, behind, free, .. } = error else { panic!("{error}") };
        assert_eq!((needed, free), (448 * UNIT, 480 * UNIT));
        assert!(behind < needed);
        assert_eq!(rig.observed(ids[2]).await, None);
        assert_eq!(rig.observed(ids[0]).await.expect("there").size_bytes, 400 * UNIT);
    }
}

/// As `ensure` leaves it when the host dies right after lvcreate.
async fn half_made(rig: &Rig, id: Uuid, units: u64) {
    let tags = ["amphi".to_owned(), format!("amphi.volume={id}"), "amphi.making".to_owned()];
    let name = format!("vol-{id}");
    let create =
        LvmCommand::Create { name: &name, extents: units * UNIT / (4 << 20), tags: &tags, range: None };
    rig.lvm.run(create).await.expect("created");
}

pub async fn a_crash_before_the_format_is_healed(rig: &mut Rig) {
    let id = Uuid::new_v4();
    half_made(rig, id, 32).await;
    assert!(!rig.observed(id).await.expect("there").complete);
    let error = rig.driver.attach(id, Attach::Mounted).await.expect_err("not ready");
    assert!(matches!(error, StorageError::NotReady { .. }), "{error}");
    // The order may have become larger meanwhile.
    rig.driver.ensure(&xfs(id, 64)).await.expect("healed");
    let seen = rig.observed(id).await.expect("there");
    assert_eq!((seen.complete, seen.fs, seen.size_bytes), (true, Some(Filesystem::Xfs), 64 * UNIT));
    let point = rig.mount(id).await;
    write(&point.join("data"), b"bytes");
    rig.driver.ensure(&xfs(id, 64)).await.expect("ready");
    rig.driver.detach(id).await.expect("detached");
    rig.driver.ensure(&xfs(id, 64)).await.expect("ready");
    assert_eq!(std::fs::read(rig.mount(id).await.join("data")).expect("read"), b"bytes");
    let error = rig.driver.ensure(&raw(id, 64)).await.expect_err("another file system");
    assert!(matches!(error, StorageError::Invalid { .. }), "{error}");

    // What never gets finished can be purged.
    let other = Uuid::new_v4();
    half_made(rig, other, 32).await;
    rig.driver.set_bin(other, BinOrder::Purge).await.expect("purged");
    assert_eq!(rig.observed(other).await, None);
}

pub async fn a_crash_during_a_copy_is_healed(rig: &mut Rig) {
    let (source, point) = rig.mounted(32).await;
    write(&point.join("data"), b"bytes");
    let id = Uuid::new_v4();
    half_made(rig, id, 32).await;
    let spec = VolumeSpec { source: Some(Source::copy(source)), ..xfs(id, 32) };
    if rig.activation == Activation::Dm {
        // The copy's temporary snapshot was left as well.
        let origin = format!("vol-{source}");
        let name = format!("tmp-{source}");
        rig.lvm.run(LvmCommand::Snapshot { name: &name, of: &origin, extents: 4 }).await.expect("left");
    }
    rig.driver.ensure(&spec).await.expect("healed");
    assert_eq!(std::fs::read(rig.mount(id).await.join("data")).expect("read"), b"bytes");
    assert_eq!(rig.driver.observe().await.expect("observes").len(), 2);
    if rig.activation == Activation::Dm {
        let report = rig.lvm.report().await.expect("report");
        assert!(report.lvs.iter().all(|lv| !lv.name.starts_with("tmp-")), "{report:?}");
        // A leftover hinders neither growth nor purge.
        let (origin, name) = (format!("vol-{source}"), format!("tmp-{source}"));
        rig.lvm.run(LvmCommand::Snapshot { name: &name, of: &origin, extents: 4 }).await.expect("left");
        rig.extend_mounted(source, 64).await;
        rig.lvm.run(LvmCommand::Snapshot { name: &name, of: &origin, extents: 4 }).await.expect("left");
        rig.driver.set_bin(source, BinOrder::Purge).await.expect("purged");
    }
}

pub async fn a_file_system_left_frozen_is_thawed(rig: &mut Rig) {
    let (_, point) = rig.mounted(32).await;
    // A process that ends without its guard leaves the file system frozen.
    assert!(Command::new("fsfreeze").arg("--freeze").arg(&point).status().expect("fsfreeze").success());
    rig.driver = rig.fresh_driver().await;
    write(&point.join("data"), b"thawed");
}

pub async fn a_damaged_file_system_is_left_to_a_person(rig: &mut Rig) {
    let (id, point) = rig.mounted(32).await;
    write(&point.join("data"), b"bytes");
    rig.driver.detach(id).await.expect("detached");
    let device = rig.driver.attach(id, Attach::Device).await.expect("attached").device;
    let disk = std::fs::File::options().read(true).write(true).open(&device).expect("the device");
    // The superblock's checksum, 224 bytes in, no longer fits.
    let mut good = [0; 4];
    disk.read_exact_at(&mut good, 224).expect("read");
    disk.write_all_at(&good.map(|byte| !byte), 224).expect("damaged");
    disk.sync_all().expect("synced");
    drop(disk);
    rig.driver.detach(id).await.expect("detached");
    let error = rig.driver.attach(id, Attach::Mounted).await.expect_err("cannot be mounted").to_string();
    assert!(error.contains("xfs_repair"), "{error}");

    let device = rig.driver.attach(id, Attach::Device).await.expect("attached").device;
    let disk = std::fs::File::options().write(true).open(&device).expect("the device");
    disk.write_all_at(&good, 224).expect("mended");
    disk.sync_all().expect("synced");
    drop(disk);
    rig.driver.detach(id).await.expect("detached");
    let point = rig.mount(id).await;
    assert_eq!(std::fs::read(point.join("data")).expect("read"), b"bytes", "nothing was formatted anew");
}

pub async fn what_is_not_ours_is_not_touched(rig: &mut Rig) {
    let id = Uuid::new_v4();
    let name = format!("vol-{id}");
    rig.lvm
        .run(LvmCommand::Create { name: &name, extents: 4, tags: &[], range: None })
        .await
        .expect("created");
    assert_eq!(rig.driver.observe().await.expect("observes"), []);
    assert!(matches!(rig.driver.attach(id, Attach::Device).await, Err(StorageError::Unknown { .. })));
    rig.driver.set_bin(id, BinOrder::Purge).await.expect("nothing of ours");
    rig.driver.detach(id).await.expect("nothing of ours");
    assert!(rig.driver.ensure(&raw(id, 16)).await.is_err(), "the name is taken");
    assert!(rig.lvm.report().await.expect("report").lv(&name).is_some());
    // Others' extents are respected.
    let (_, point) = rig.mounted(32).await;
    write(&point.join("data"), b"beside it");
}
