//! Snapshots and volumes made from them.

use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use amphi_hostsrv::storage::{
    Attach, BinOrder, Filesystem, Pause, Quiesce, StorageError, VolumeDriver, VolumeSpec,
};
use async_trait::async_trait;
use uuid::Uuid;

use crate::rig::{Rig, UNIT, filesystem_size, pattern, raw, write};

fn from(id: Uuid, mib: u64, source: Uuid) -> VolumeSpec {
    VolumeSpec { id, size_bytes: mib * UNIT, fs: Some(Filesystem::Xfs), source: Some(source) }
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
