//! Snapshots and volumes made from them.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use amphi_hostsrv::qemu_img::DiskFormat;
use amphi_hostsrv::storage::{
    Attach, BinOrder, Filesystem, Pause, Quiesce, Source, StorageError, VolumeDriver, VolumeSpec,
};
use async_trait::async_trait;
use uuid::Uuid;

use crate::rig::{Rig, UNIT, filesystem_size, pattern, raw, write};

fn from(id: Uuid, mib: u64, source: Uuid) -> VolumeSpec {
    VolumeSpec {
        id,
        size_bytes: mib * UNIT,
        fs: Some(Filesystem::Xfs),
        source: Some(Source::copy(source)),
        group: None,
    }
}

pub async fn a_snapshot_is_one_point_in_time(rig: &mut Rig) {
    let (id, point) = rig.mounted(64).await;
    let bytes = pattern(7, 8 << 20);
    // Not synced on purpose: what was written before belongs to the snapshot.
    std::fs::write(point.join("before"), &bytes).expect("written");
    // Two files that a writer keeps equal in order: the second never gets ahead of the first.
    let counter = Arc::new(AtomicU64::new(0));
    let (path, count) = (point.clone(), counter.clone());
    let writer = std::thread::spawn(move || {
        while count.load(Ordering::Relaxed) < u64::MAX / 2 {
            let number = count.fetch_add(1, Ordering::Relaxed).to_string();
            for name in ["first", "second"] {
                let file = std::fs::File::create(path.join(name)).expect("a file");
                file.write_all_at(number.as_bytes(), 0).expect("written");
                file.sync_all().expect("synced");
            }
        }
    });
    while counter.load(Ordering::Relaxed) < 3 {
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    let snapshot = Uuid::new_v4();
    rig.driver.snapshot(id, snapshot, &Quiesce::Filesystem).await.expect("taken");
    counter.store(u64::MAX / 2, Ordering::Relaxed);
    writer.join().expect("the writer goes on after the snapshot");
    write(&point.join("after"), b"later");
    std::fs::remove_file(point.join("before")).expect("removed");

    let copy = Uuid::new_v4();
    rig.driver.ensure(&from(copy, 64, snapshot)).await.expect("made of the snapshot");
    let there = rig.mount(copy).await;
    assert_eq!(std::fs::read(there.join("before")).expect("read"), bytes);
    assert!(!there.join("after").exists());
    let number = |name: &str| {
        let text = std::fs::read_to_string(there.join(name)).expect("read");
        text.parse::<u64>().ok()
    };
    // Either file may be caught empty between its creation and its bytes.
    if let (Some(first), Some(second)) = (number("first"), number("second")) {
        assert!(first == second || first == second + 1, "{first} and {second}");
    }
    write(&there.join("own"), b"independent");
    assert!(!point.join("own").exists());
    rig.driver.set_bin(snapshot, BinOrder::Purge).await.expect("the copies stand alone");
    assert_eq!(std::fs::read(there.join("before")).expect("read"), bytes);
    // With its snapshot gone or not, the origin still grows online.
    rig.extend_mounted(id, 96).await;
    assert!(filesystem_size(&point) > 80 * UNIT);
}

#[derive(Default)]
struct Guest {
    paused: AtomicI64,
    calls: AtomicU64,
    refuses: bool,
}

#[async_trait]
impl Pause for Guest {
    async fn pause(&self) -> Result<(), String> {
        self.paused.fetch_add(1, Ordering::SeqCst);
        self.calls.fetch_add(1, Ordering::SeqCst);
        if self.refuses { Err("the monitor does not answer".to_owned()) } else { Ok(()) }
    }
    async fn resume(&self) -> Result<(), String> {
        self.paused.fetch_sub(1, Ordering::SeqCst);
        Ok(())
    }
}

pub async fn a_guest_is_paused_and_always_resumed(rig: &mut Rig) {
    let (id, snapshot, copy) = (Uuid::new_v4(), Uuid::new_v4(), Uuid::new_v4());
    rig.driver.ensure(&raw(id, 32)).await.expect("made");
    let device = rig.driver.attach(id, Attach::Device).await.expect("attached").device;
    let bytes = pattern(8, 4 << 20);
    let disk = std::fs::OpenOptions::new().write(true).open(&device).expect("device");
    disk.write_all_at(&bytes, 20 * UNIT).expect("written");

    let broken = Arc::new(Guest { refuses: true, ..Guest::default() });
    let error =
        rig.driver.snapshot(id, snapshot, &Quiesce::Guest(broken.clone())).await.expect_err("no pause");
    assert!(error.to_string().contains("the monitor does not answer"), "{error}");
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while broken.paused.load(Ordering::SeqCst) != 0 {
        assert!(std::time::Instant::now() < deadline, "never resumed");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    assert!(!rig.observed(snapshot).await.expect("begun").complete);
    let error = rig.driver.ensure(&VolumeSpec { fs: None, ..from(copy, 32, snapshot) }).await;
    assert!(matches!(error, Err(StorageError::NotReady { .. })), "{error:?}");

    let guest = Arc::new(Guest::default());
    rig.driver.snapshot(id, snapshot, &Quiesce::Guest(guest.clone())).await.expect("taken");
    assert_eq!((guest.paused.load(Ordering::SeqCst), guest.calls.load(Ordering::SeqCst)), (0, 1));
    disk.write_all_at(&[0; 4096], 20 * UNIT).expect("written later");
    disk.sync_all().expect("synced");
    rig.driver.ensure(&VolumeSpec { fs: None, ..from(copy, 32, snapshot) }).await.expect("made");
    let there = rig.driver.attach(copy, Attach::Device).await.expect("attached").device;
    let mut read = vec![0; bytes.len()];
    std::fs::File::open(there).expect("device").read_exact_at(&mut read, 20 * UNIT).expect("read");
    assert!(read == bytes, "the snapshot has what the guest had written");
}

pub async fn a_copy_grows_with_its_volume_s_size(rig: &mut Rig) {
    let (id, point) = rig.mounted(32).await;
    write(&point.join("data"), b"bytes");
    let (copy, small) = (Uuid::new_v4(), Uuid::new_v4());
    // Straight from a volume in use, without a snapshot in between.
    rig.driver.ensure(&from(copy, 96, id)).await.expect("made");
    let there = rig.mount(copy).await;
    assert_eq!(std::fs::read(there.join("data")).expect("read"), b"bytes");
    assert!(filesystem_size(&there) > 80 * UNIT);
    write(&point.join("more"), b"the origin is writable again");
    let error = rig.driver.ensure(&from(small, 31, id)).await.expect_err("too small");
    assert!(error.to_string().contains("more than its"), "{error}");
    let error = rig.driver.ensure(&from(small, 32, Uuid::new_v4())).await.expect_err("no such source");
    assert!(matches!(error, StorageError::Unknown { .. }), "{error}");
    assert_eq!(rig.observed(small).await, None, "nothing was made");
}

fn with_disk(id: Uuid, units: u64, file: &Path, format: DiskFormat) -> VolumeSpec {
    let source = Some(Source::Disk { file: file.to_owned(), format });
    VolumeSpec { id, size_bytes: units * UNIT, fs: Some(Filesystem::Xfs), source, group: None }
}

fn qemu_img(args: &[&str], paths: &[&Path]) {
    let done = Command::new("qemu-img").args(args).args(paths).output().expect("qemu-img runs");
    assert!(done.status.success(), "{args:?}: {}", String::from_utf8_lossy(&done.stderr));
}

pub async fn a_volume_begins_with_a_disk(rig: &mut Rig) {
    let (raw_file, qcow2) = (rig.dir.join("disk.raw"), rig.dir.join("disk.qcow2"));
    let bytes = pattern(9, 3 << 20);
    write(&raw_file, &bytes);
    qemu_img(&["convert", "-f", "raw", "-O", "qcow2"], &[&raw_file, &qcow2]);
    for (file, format) in [(&raw_file, DiskFormat::Raw), (&qcow2, DiskFormat::Qcow2)] {
        let id = Uuid::new_v4();
        for _ in 0..2 {
            rig.driver.ensure(&with_disk(id, 2, file, format)).await.expect("made");
        }
        let seen = rig.observed(id).await.expect("there");
        assert_eq!((seen.complete, seen.fs), (true, None));
        let device = rig.driver.attach(id, Attach::Device).await.expect("attached").device;
        let mut read = vec![0; bytes.len() + 4096];
        std::fs::File::open(&device).expect("device").read_exact_at(&mut read, 0).expect("read");
        assert!(read[..bytes.len()] == bytes, "{format:?}");
        // It grows as any other, and its copy is as raw as itself.
        rig.driver.ensure(&with_disk(id, 4, file, format)).await.expect("grown");
        let copy = Uuid::new_v4();
        rig.driver.ensure(&from(copy, 4, id)).await.expect("copied");
        assert_eq!(rig.observed(copy).await.expect("there").fs, None);
        let error = rig.driver.attach(copy, Attach::Mounted).await.expect_err("no file system");
        assert!(matches!(error, StorageError::NoFilesystem { .. }), "{error}");
        for id in [id, copy] {
            rig.driver.set_bin(id, BinOrder::Purge).await.expect("purged");
        }
    }
    // What does not fit or is no disk is said, and nothing counts as made.
    write(&raw_file, &pattern(9, 13 << 20));
    let id = Uuid::new_v4();
    let error = rig.driver.ensure(&with_disk(id, 1, &raw_file, DiskFormat::Raw)).await.expect_err("large");
    assert!(error.to_string().contains("more than its"), "{error}");
    assert!(!rig.observed(id).await.expect("begun").complete);
    let error = rig.driver.ensure(&with_disk(id, 2, &raw_file, DiskFormat::Qcow2)).await.expect_err("raw");
    assert!(matches!(error, StorageError::Disk { .. }), "{error}");
    rig.driver.ensure(&with_disk(id, 2, &raw_file, DiskFormat::Raw)).await.expect("made after all");
}

pub async fn bytes_go_out_as_a_disk_file(rig: &mut Rig) {
    let (id, point) = rig.mounted(32).await;
    let bytes = pattern(10, 5 << 20);
    // Not synced on purpose.
    std::fs::write(point.join("data"), &bytes).expect("written");
    let (out, snapshot) = (rig.dir.join("out.qcow2"), Uuid::new_v4());
    rig.driver.export(id, &out, DiskFormat::Qcow2, &Quiesce::Filesystem).await.expect("written out");
    write(&point.join("after"), b"it is writable again");
    qemu_img(&["check", "-q", "-f", "qcow2"], &[&out]);
    // What went out comes in again, and holds what had been written.
    let back = Uuid::new_v4();
    rig.driver.ensure(&with_disk(back, 32, &out, DiskFormat::Qcow2)).await.expect("made");
    let device = rig.driver.attach(back, Attach::Device).await.expect("attached").device;
    let there = rig.dir.join("there");
    amphi_hostsrv::storage::filesystem::mount_xfs(&device, &there).expect("mounted");
    assert!(std::fs::read(there.join("data")).expect("read") == bytes && !there.join("after").exists());
    amphi_hostsrv::storage::filesystem::unmount(&there).expect("unmounted");

    // Of a snapshot, and of a guest's volume, which is paused for it.
    rig.driver.snapshot(id, snapshot, &Quiesce::Filesystem).await.expect("taken");
    let raw_file = rig.dir.join("out.raw");
    rig.driver.export(snapshot, &raw_file, DiskFormat::Raw, &Quiesce::Filesystem).await.expect("written out");
    assert_eq!(std::fs::metadata(&raw_file).expect("there").len(), 32 * UNIT);
    assert_eq!(rig.observed(snapshot).await.expect("there").device, None, "it is left as it was");
    let guest = Arc::new(Guest::default());
    let of_guest = rig.dir.join("guest.raw");
    rig.driver
        .export(back, &of_guest, DiskFormat::Raw, &Quiesce::Guest(guest.clone()))
        .await
        .expect("written out");
    assert_eq!((guest.paused.load(Ordering::SeqCst), guest.calls.load(Ordering::SeqCst)), (0, 1));
    let error = rig.driver.export(Uuid::new_v4(), &out, DiskFormat::Raw, &Quiesce::Filesystem).await;
    assert!(matches!(error, Err(StorageError::Unknown { .. })), "{error:?}");
}
