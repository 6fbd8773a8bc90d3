//! The life of a volume when nothing goes wrong.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use amphi_hostsrv::storage::lvm::LvmCommand;
use amphi_hostsrv::storage::{
    Activation, Attach, BinOrder, Filesystem, Quiesce, StorageError, VolumeDriver, VolumeKind, VolumeSpec,
    recycle,
};
use uuid::Uuid;

use crate::rig::{Rig, UNIT, filesystem_size, pattern, raw, write, xfs};

pub async fn a_volume_has_a_hard_limit_and_its_neighbour_is_unharmed(rig: &mut Rig) {
    let (_, small) = rig.mounted(32).await;
    let (_, neighbour) = rig.mounted(32).await;
    let bytes = pattern(1, 3 << 20);
    write(&neighbour.join("kept"), &bytes);

    let mut file = File::create(small.join("greedy")).expect("a file");
    let (block, mut written) = (pattern(2, UNIT as usize), 0u64);
    let error = loop {
        match file.write_all(&block).and_then(|()| file.sync_data()) {
            Ok(()) => written += UNIT,
            Err(error) => break error,
        }
        assert!(written <= 32 * UNIT, "wrote {written} bytes into 32 units");
    };
    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull, "{error}");
    assert!(written >= 16 * UNIT, "only {written} bytes fitted");
    write(&neighbour.join("more"), &bytes);
    assert_eq!(std::fs::read(neighbour.join("kept")).expect("read"), bytes);
    assert_eq!(std::fs::read(neighbour.join("more")).expect("read"), bytes);
}

pub async fn a_mounted_volume_grows_online_and_never_shrinks(rig: &mut Rig) {
    let (id, point) = rig.mounted(32).await;
    let bytes = pattern(3, 2 << 20);
    write(&point.join("open"), &bytes);
    let before = filesystem_size(&point);

    rig.extend_mounted(id, 96).await;
    let after = filesystem_size(&point);
    assert!(after > before + 40 * UNIT, "{before} -> {after}");
    let mut open = File::options().append(true).open(point.join("open")).expect("a file");
    open.write_all(&pattern(4, 50 << 20)).expect("the new room is usable");
    open.sync_all().expect("synced");
    assert_eq!(std::fs::read(point.join("open")).expect("read")[..bytes.len()], bytes[..]);
    assert_eq!(rig.observed(id).await.expect("there").size_bytes, 96 * UNIT);

    let error = rig.driver.ensure(&xfs(id, 32)).await.expect_err("no shrinking");
    assert!(
        matches!(error, StorageError::Shrink { has, wanted, .. } if has == 96 * UNIT && wanted == 32 * UNIT),
        "{error}"
    );
    assert_eq!(rig.observed(id).await.expect("there").size_bytes, 96 * UNIT);
    drop(open);
    rig.driver.detach(id).await.expect("detached");
    let point = rig.mount(id).await;
    assert_eq!(std::fs::read(point.join("open")).expect("read")[..bytes.len()], bytes[..]);
}

pub async fn a_file_system_has_a_least_size_and_grows_by_every_extent(rig: &mut Rig) {
    let id = Uuid::new_v4();
    let error = rig.driver.ensure(&xfs(id, 29)).await.expect_err("too small for XFS");
    assert!(
        matches!(error, StorageError::TooSmall { size, least, .. } if (size, least) == (29 * UNIT, 30 * UNIT)),
        "{error}"
    );
    assert_eq!(rig.observed(id).await, None, "nothing was made");
    rig.driver.ensure(&raw(id, 1)).await.expect("small, and no file system");

    let (id, point) = rig.mounted(30).await;
    let before = filesystem_size(&point);
    let extent = 4 << 20;
    rig.driver.ensure(&VolumeSpec { size_bytes: 30 * UNIT + extent, ..xfs(id, 30) }).await.expect("grown");
    assert_eq!(filesystem_size(&point), before + extent);
}

pub async fn bytes_stay_when_the_body_changes(rig: &mut Rig) {
    let (id, point) = rig.mounted(32).await;
    let bytes = pattern(5, 1 << 20);
    write(&point.join("data"), &bytes);
    let error = rig.driver.attach(id, Attach::Device).await.expect_err("mounted here");
    assert!(matches!(error, StorageError::Busy { .. }), "{error}");
    rig.driver.detach(id).await.expect("detached");
    assert!(!point.exists(), "the mount point goes with the mount");

    let attached = rig.driver.attach(id, Attach::Device).await.expect("as a disk");
    assert_eq!(attached.mount, None);
    let guest = rig.guest(&format!("exec 3<>{};", attached.device.display()));
    let error = rig.driver.attach(id, Attach::Mounted).await.expect_err("a guest writes to it");
    assert!(error.to_string().contains(&format!("process {guest} ")), "{error}");
    // Grown under the guest: its open device sees the new size.
    rig.driver.ensure(&xfs(id, 64)).await.expect("grown");
    let mut device = File::open(&attached.device).expect("device");
    assert_eq!(std::io::Seek::seek(&mut device, std::io::SeekFrom::End(0)).expect("size"), 64 * UNIT);
    drop(device);
    rig.dismiss_guests();
    assert_eq!(
        rig.observed(id).await.expect("there").device,
        Some(attached.device),
        "kept without the guest"
    );

    let point = rig.mount(id).await;
    assert_eq!(std::fs::read(point.join("data")).expect("read"), bytes);
    assert!(filesystem_size(&point) > 50 * UNIT, "grown when it came back");
}

pub async fn the_bin_keeps_restores_and_purges(rig: &mut Rig) {
    let free = rig.free().await;
    let (id, point) = rig.mounted(32).await;
    let bytes = pattern(6, 1 << 20);
    write(&point.join("data"), &bytes);

    rig.driver.set_bin(id, BinOrder::Trash { at: 1000 }).await.expect("trashed");
    let seen = rig.observed(id).await.expect("in the bin");
    assert_eq!((seen.trashed_at, &seen.mounted, &seen.device), (Some(1000), &None, &None));
    assert!(seen.tags.contains(&"amphi.trash=1000".to_owned()), "{seen:?}");
    assert_eq!(recycle::contents(std::slice::from_ref(&seen)).len(), 1);
    rig.driver.set_bin(id, BinOrder::Trash { at: 2000 }).await.expect("twice");
    assert_eq!(rig.observed(id).await.expect("in the bin").trashed_at, Some(1000), "the first time counts");
    for how in [Attach::Device, Attach::Mounted] {
        let error = rig.driver.attach(id, how).await.expect_err("in the bin");
        assert!(matches!(error, StorageError::Trashed { since: 1000, .. }), "{error}");
    }
    let error = rig.driver.ensure(&xfs(id, 32)).await.expect_err("in the bin");
    assert!(matches!(error, StorageError::Trashed { .. }), "{error}");

    rig.driver.set_bin(id, BinOrder::Restore).await.expect("restored");
    let point = rig.mount(id).await;
    assert_eq!(std::fs::read(point.join("data")).expect("read"), bytes);

    rig.driver.set_bin(id, BinOrder::Trash { at: 3000 }).await.expect("trashed");
    assert_eq!(rig.free().await, free - 32 * UNIT, "the bin takes room");
    rig.driver.set_bin(id, BinOrder::Purge).await.expect("purged");
    rig.driver.set_bin(id, BinOrder::Purge).await.expect("twice");
    assert_eq!((rig.free().await, rig.observed(id).await), (free, None));
    let error = rig.driver.set_bin(id, BinOrder::Restore).await.expect_err("gone");
    assert!(matches!(error, StorageError::Unknown { .. }), "{error}");

    // The whole group as one raw volume: nobody's bytes are left where the first volumes were.
    let next = Uuid::new_v4();
    rig.driver.ensure(&raw(next, free / UNIT)).await.expect("made");
    let device = rig.driver.attach(next, Attach::Device).await.expect("attached").device;
    let (file, mut block) = (File::open(device).expect("device"), vec![0; 1 << 20]);
    for offset in (0..256 * UNIT).step_by(1 << 20) {
        file.read_exact_at(&mut block, offset).expect("read");
        assert!(block.iter().all(|byte| *byte == 0), "bytes of a purged volume at {offset}");
    }
}

pub async fn everything_twice_is_once(rig: &mut Rig) {
    let (id, copy) = (Uuid::new_v4(), Uuid::new_v4());
    for _ in 0..2 {
        rig.driver.ensure(&xfs(id, 32)).await.expect("made");
    }
    let free = rig.free().await;
    let first = rig.driver.attach(id, Attach::Mounted).await.expect("attached");
    assert_eq!(rig.driver.attach(id, Attach::Mounted).await.expect("attached"), first);
    let point = first.mount.expect("a mount point");
    write(&point.join("data"), b"bytes");
    rig.driver.ensure(&xfs(id, 32)).await.expect("still there");
    assert_eq!(std::fs::read(point.join("data")).expect("read"), b"bytes");
    for _ in 0..2 {
        rig.driver.snapshot(id, copy, &Quiesce::Filesystem).await.expect("taken");
    }
    assert_eq!(rig.free().await, free - 32 * UNIT, "one snapshot");
    for _ in 0..2 {
        rig.driver.detach(id).await.expect("detached");
        assert_eq!(rig.observed(id).await.expect("there").device, None);
    }
    for _ in 0..2 {
        rig.driver.set_bin(id, BinOrder::Trash { at: 1 }).await.expect("trashed");
    }
    for _ in 0..2 {
        rig.driver.set_bin(id, BinOrder::Restore).await.expect("restored");
    }
    for _ in 0..2 {
        rig.driver.set_bin(copy, BinOrder::Purge).await.expect("purged");
        rig.driver.set_bin(id, BinOrder::Purge).await.expect("purged");
        rig.driver.detach(id).await.expect("nothing to detach");
    }
    assert_eq!(rig.driver.observe().await.expect("observes"), []);
}

pub async fn a_fresh_driver_finds_everything_again(rig: &mut Rig) {
    let (id, point) = rig.mounted(32).await;
    write(&point.join("data"), b"bytes");
    let (disk, trash, copy) = (Uuid::new_v4(), Uuid::new_v4(), Uuid::new_v4());
    rig.driver.ensure(&raw(disk, 16)).await.expect("made");
    let device = rig.driver.attach(disk, Attach::Device).await.expect("attached").device;
    rig.driver.ensure(&raw(trash, 16)).await.expect("made");
    rig.driver.set_bin(trash, BinOrder::Trash { at: 7 }).await.expect("trashed");
    rig.driver.snapshot(id, copy, &Quiesce::Filesystem).await.expect("taken");
    let before = rig.driver.observe().await.expect("observes");

    // The agent dies while the guest lives on, and another one starts.
    rig.guest(&format!("exec 3<>{};", device.display()));
    let fresh = rig.fresh_driver().await;
    rig.driver = fresh;
    assert_eq!(rig.driver.observe().await.expect("observes"), before);
    let of = |id| before.iter().find(|volume| volume.id == id).expect("there");
    assert_eq!(of(id).mounted, Some(point.clone()));
    assert_eq!((of(id).fs, of(disk).fs), (Some(Filesystem::Xfs), None));
    assert_eq!(of(disk).device, Some(device.clone()));
    assert_eq!(of(trash).trashed_at, Some(7));
    assert_eq!((of(copy).kind, of(copy).complete), (VolumeKind::Snapshot { of: id }, true));
    rig.dismiss_guests();
    assert_eq!(rig.observed(disk).await.expect("there").device, Some(device), "the new agent keeps it");
    assert_eq!(std::fs::read(point.join("data")).expect("read"), b"bytes");
    rig.driver.detach(disk).await.expect("detached by the new one");
    rig.driver.detach(id).await.expect("detached by the new one");
    assert!(rig.driver.observe().await.expect("observes").iter().all(|volume| volume.device.is_none()));
}

pub async fn what_is_on_its_way_is_known_to_others(rig: &mut Rig) {
    let (id, other) = (Uuid::new_v4(), Uuid::new_v4());
    // As Docker's plug-in, which is a process of its own.
    let plugin = rig.fresh_driver().await;
    assert!(!plugin.is_coming(id).expect("asks"));
    let announced = rig.driver.announce(id).await.expect("announced");
    assert!(plugin.is_coming(id).expect("asks") && !plugin.is_coming(other).expect("asks"));
    plugin.arrival(other).await.expect("nobody says that it comes");
    let arrival = plugin.arrival(id);
    tokio::pin!(arrival);
    let waits = tokio::time::timeout(Duration::from_millis(50), &mut arrival).await;
    assert!(waits.is_err(), "it waits for what comes");
    rig.driver.ensure(&xfs(id, 32)).await.expect("made meanwhile");
    let point = rig.mount(id).await;
    drop(announced);
    arrival.await.expect("it has come");
    assert!(!plugin.is_coming(id).expect("asks"));
    assert_eq!(plugin.mounted(id).await.expect("asks"), Some(point));
}

pub async fn many_at_once_do_not_meet(rig: &mut Rig) {
    let driver = &rig.driver;
    let ids: Vec<Uuid> = (0..6).map(|_| Uuid::new_v4()).collect();
    let work = ids.iter().enumerate().map(|(index, id)| async move {
        driver.ensure(&xfs(*id, 32)).await.expect("made");
        let (one, two) =
            tokio::join!(driver.attach(*id, Attach::Mounted), driver.attach(*id, Attach::Mounted));
        assert_eq!(one.as_ref().expect("attached"), two.as_ref().expect("attached"));
        let point = one.expect("attached").mount.expect("a mount point");
        write(&point.join("data"), &pattern(index as u64, 4 << 20));
        point
    });
    let points = futures_util::future::join_all(work).await;
    for (index, point) in points.iter().enumerate() {
        assert_eq!(std::fs::read(point.join("data")).expect("read"), pattern(index as u64, 4 << 20));
    }
    let seen = rig.driver.observe().await.expect("observes");
    let mut devices: Vec<_> = seen.iter().filter_map(|volume| volume.device.clone()).collect();
    devices.sort();
    devices.dedup();
    assert_eq!(devices.len(), 6, "{seen:?}");
    if rig.activation == Activation::Loop {
        // Each still has room to double.
        for id in &ids[..3] {
            rig.extend_mounted(*id, 64).await;
        }
    }
}

/// Another process, or a person with LVM's own commands.
pub async fn what_somebody_else_changes_is_seen(rig: &mut Rig) {
    let id = Uuid::new_v4();
    rig.driver.ensure(&raw(id, 4)).await.expect("made");
    for _ in 0..3 {
        rig.lvm.report().await.expect("a report");
        assert!(rig.observed(id).await.is_some());
    }
    let before = rig.lvm.ran();
    rig.lvm.report().await.expect("a report");
    let asked = u64::from(rig.activation == Activation::Dm);
    assert_eq!(rig.lvm.ran() - before, asked, "LVM is asked again only where its metadata are not all");

    let (name, tags) = (format!("vol-{id}"), ["somebody".to_owned()]);
    rig.lvm.run(LvmCommand::Tag { name: &name, add: &tags, remove: &[] }).await.expect("tagged");
    let seen = rig.observed(id).await.expect("there");
    assert!(seen.tags.contains(&tags[0]), "{seen:?}");
    assert!(rig.lvm.report().await.expect("a report").lv(&name).is_some_and(|lv| lv.has(&tags[0])));
    if rig.activation == Activation::Dm {
        rig.lvm.run(LvmCommand::Deactivate { name: &name }).await.expect("closed");
    }
    rig.lvm.run(LvmCommand::Remove { name: &name }).await.expect("removed");
    assert!(rig.observed(id).await.is_none());
    assert!(rig.lvm.report().await.expect("a report").lv(&name).is_none());
}
