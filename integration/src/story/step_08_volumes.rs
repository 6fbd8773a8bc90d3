//! Step 8: volumes grow while they are used, in both kinds of body; a snapshot keeps what was; the recycle bin gives
//! back what was deleted, until it is purged.

use amphi_api::VolumeId;
use amphi_api::instance::{InstanceCreate, InstanceVolume};
use amphi_api::volume::{Snapshot, SnapshotState, Volume, VolumeState};
use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::descriptions::plain_set;
use super::engines::Engines;
use super::stage::{HOME, SOON, Stage, same};
use crate::wait::{seen, until};

const TWO_GIB: u64 = 2 << 30;

#[derive(Deserialize)]
struct Volumes {
    volumes: Vec<Volume>,
}

pub fn play(stage: &Stage) -> Result<()> {
    let engines = Engines::of(stage.lab, HOME);
    stage
        .check("`amphi volume extend` under a set: df grows, nothing restarts", || in_set(stage, &engines))?;
    stage
        .check("`amphi volume extend` under a VM: the disk and its file system grow, QEMU goes on", || {
            in_vm(stage, &engines)
        })?;
    let snapshot = stage.check("`amphi volume snapshot`, then the original changes", || {
        let snapshot: Snapshot = stage.amphi.json(&["volume", "snapshot", "web", "--name", "before"])?;
        same("state", &SnapshotState::Available, &snapshot.state)?;
        engines.lv(&format!("snap-{}", snapshot.id))?;
        stage.member("web", "front")?.run("echo later >/data/later; sync")?;
        Ok(snapshot)
    })?;
    let copy = stage.check("a volume from the snapshot has the bytes of then", || {
        let words = ["volume", "create", "copy", "--snapshot", &snapshot.id.to_string()];
        let volume: Volume = stage.amphi.json(&words)?;
        read(stage, volume.id)?;
        Ok(volume)
    })?;
    let lv = format!("vol-{}", copy.id);
    stage.check("`amphi volume delete`: in the recycle bin, its LV tagged as trash", || {
        stage.amphi.run(&["volume", "delete", "copy"])?;
        let bin: Volumes = stage.amphi.json(&["recycle-bin", "list"])?;
        let found = bin.volumes.iter().find(|v| v.id == copy.id).context("it is not in the recycle bin")?;
        ensure!(found.trashed_at.is_some(), "no time of deletion: {found:?}");
        until("the LV has a trash tag", SOON, || {
            let tags = engines.lv(&lv)?.tags;
            Ok(seen(tags.iter().any(|t| t.starts_with("amphi.trash=")), || format!("tags {tags:?}")))
        })
    })?;
    stage.check("`amphi recycle-bin restore`: back with its bytes", || {
        stage.amphi.run(&["recycle-bin", "restore", "copy"])?;
        // The command has waited for the host: nothing is left to wait for.
        let tags = engines.lv(&lv)?.tags;
        ensure!(!tags.iter().any(|t| t.starts_with("amphi.trash=")), "still trash on the host: {tags:?}");
        read(stage, copy.id)
    })?;
    stage.check("`amphi recycle-bin purge`: gone for good", || {
        stage.amphi.run(&["volume", "delete", "copy"])?;
        stage.amphi.run(&["recycle-bin", "purge", "copy"])?;
        until("the LV is gone", SOON, || {
            let names: Vec<_> = engines.lvs()?.into_iter().map(|lv| lv.name).collect();
            Ok(seen(!names.contains(&lv), || names.join(", ")))
        })?;
        let bin: Volumes = stage.amphi.json(&["recycle-bin", "list"])?;
        same("volumes in the bin", &0, &bin.volumes.len())
    })?;
    stage.check("`amphi snapshot delete`", || {
        stage.amphi.run(&["snapshot", "delete", "before"])?;
        until("the snapshot's LV is gone", SOON, || {
            let names: Vec<_> = engines.lvs()?.into_iter().map(|lv| lv.name).collect();
            Ok(seen(!names.contains(&format!("snap-{}", snapshot.id)), || names.join(", ")))
        })
    })
}

/// The size that `df` shows for /data, in bytes.
fn df(text: &str) -> Result<u64> {
    let line =
        text.lines().find(|l| l.trim_end().ends_with("/data")).with_context(|| format!("df says: {text}"))?;
    let kib: u64 =
        line.split_whitespace().rev().nth(4).unwrap_or_default().parse().with_context(|| line.to_owned())?;
    Ok(kib << 10)
}

/// A file system of 2 GiB shows a little less; one of 1 GiB far less than this.
fn grown(bytes: u64) -> bool {
    (TWO_GIB * 9 / 10..=TWO_GIB).contains(&bytes)
}

fn in_set(stage: &Stage, engines: &Engines) -> Result<()> {
    let record = stage.instance("web")?;
    let front = stage.member("web", "front")?;
    let small = df(&front.run("df -k /data")?)?;
    ensure!(small <= 1 << 30, "before, df shows {small} bytes");
    let pids = ["anchor", "front", "back"].map(|m| engines.pid(record.id, m).ok());
    let volume: Volume = stage.amphi.json(&["volume", "extend", "web", "--size-gib", "2"])?;
    same("state", &VolumeState::InUse, &volume.state)?;
    same("bytes of the LV", &TWO_GIB, &engines.lv(&format!("vol-{}", volume.id))?.bytes)?;
    until("df in the set shows 2 GiB", SOON, || {
        let bytes = df(&front.run("df -k /data")?)?;
        Ok(seen(grown(bytes), || format!("{bytes} bytes")))
    })?;
    same("processes", &pids, &["anchor", "front", "back"].map(|m| engines.pid(record.id, m).ok()))?;
    same("checksum", &stage.notes.borrow().random, &front.sha256("/data/random")?)
}

fn in_vm(stage: &Stage, engines: &Engines) -> Result<()> {
    let record = stage.instance("vm")?;
    let vm = stage.vm("vm", stage.member("neighbour", "front")?)?;
    let pid = engines.qemu_pid(record.id)?;
    let id = record.volume.context("the VM has no volume")?;
    let target = engines.data_disk(record.id)?;
    stage.amphi.run(&["volume", "extend", &id.to_string(), "--size-gib", "2"])?;
    until("the domain's disk has 2 GiB", SOON, || {
        let bytes = engines.disk_bytes(record.id, &target)?;
        Ok(seen(bytes == TWO_GIB, || format!("{target} has {bytes} bytes")))
    })?;
    until("df in the VM shows 2 GiB", SOON, || {
        let bytes = df(&vm.sh("df -k /data")?)?;
        Ok(seen(grown(bytes), || format!("{bytes} bytes")))
    })?;
    same("QEMU's process", &pid, &engines.qemu_pid(record.id)?)?;
    same("checksum in the VM", &stage.notes.borrow().vm_random, &vm.sha256("/data/random")?)
}

/// Lets an instance use the volume for a moment and compares the bytes of `random`; what came after the snapshot
/// must not be there.
fn read(stage: &Stage, volume: VolumeId) -> Result<()> {
    let volume = Some(InstanceVolume { size_gib: None, name: None, id: Some(volume) });
    stage.create(&InstanceCreate { volume, ..plain_set("reader", None) })?;
    let reader = stage.member("reader", "front")?;
    same("checksum", &stage.notes.borrow().random, &reader.sha256("/data/random")?)?;
    let later = reader.sh("test -e /data/later")?;
    ensure!(!later.ok(), "what was written after the snapshot is in it");
    stage.amphi.run(&["instance", "delete", "reader"]).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn df_lines() {
        let text = "Filesystem           1K-blocks      Used Available Use% Mounted on\n/dev/vdb               996780     8200    919768   1% /data\n";
        assert_eq!(df(text).unwrap(), 996_780 << 10);
        assert!(df("nothing").is_err());
        assert!(grown(2_040_000_000) && !grown(1 << 30));
    }
}
