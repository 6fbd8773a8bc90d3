//! What this host may do in volume groups that other hosts see too: the controller's word, kept in `run_dir/shared`.
//!
//! LVM without a lock daemon must never have one group's metadata written by two hosts, and no file system may be mounted
//! by two. So a group has one keeper, which alone runs what changes metadata, and a volume one holder, which alone makes it
//! active. The file is written when a desired state is accepted, before anything acts on it, and read at the moment of
//! every such command, by the agent and by its Docker plug-in alike. It counts only in the boot that it was written in, and
//! only under a lease: a fence ends all of it.
//!
//! Refuses to guess: a group or volume that the file does not name is nobody's here.

use crate::lease::clock;
use crate::lease::memo::{self, Files};
use amphi_api::VolumeGroupId;
use amphi_api::wire::{GroupDesired, HostDesired};
use serde::{Deserialize, Serialize};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use uuid::Uuid;

/// On every shared group, set by whoever made it: a group that has it is never taken for a host's own, nor the other way.
pub const SHARED_TAG: &str = "amphi.shared";

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct Permits {
    boot: Option<Uuid>,
    groups: Vec<GroupDesired>,
}

fn path(run_dir: &Path) -> PathBuf {
    run_dir.join("shared")
}

/// Writes down what the desired state allows. `boot`: the one that it was confirmed in.
pub fn write(run_dir: &Path, boot: Uuid, desired: &HostDesired) -> io::Result<()> {
    let file = path(run_dir);
    if desired.groups.is_empty() && !file.exists() {
        return Ok(());
    }
    let permits = Permits { boot: Some(boot), groups: desired.groups.clone() };
    memo::replace(&file, &serde_json::to_vec(&permits)?)
}

fn read(run_dir: &Path) -> Permits {
    let bytes = std::fs::read(path(run_dir)).unwrap_or_default();
    serde_json::from_slice(&bytes).unwrap_or_default()
}

/// The part of one group's driver.
#[derive(Debug)]
pub struct Part {
    files: Files,
    /// Known from the first look at the group on.
    id: OnceLock<VolumeGroupId>,
}

impl Part {
    pub fn new(run_dir: &Path, state_dir: &Path) -> Self {
        Self { files: Files::new(run_dir, state_dir), id: OnceLock::new() }
    }

    pub fn id(&self) -> Option<VolumeGroupId> {
        self.id.get().copied()
    }

    pub(super) fn learn(&self, vg_uuid: &str) {
        let _ = self.id.set(VolumeGroupId::of(vg_uuid));
    }

    fn permit(&self) -> Result<GroupDesired, String> {
        let id = self.id().ok_or("the group has not been seen yet")?;
        let permits = read(&self.files.run_dir);
        if permits.boot.is_none() || permits.boot != self.files.boot() {
            return Err("the controller has not spoken since this host was started or fenced".into());
        }
        self.files.may_start(clock::now())?;
        let of_it = permits.groups.into_iter().find(|group| group.id == id);
        of_it.ok_or_else(|| "the controller has given this host no part in it".into())
    }

    /// Whether this host may change the group's metadata now, or why not.
    pub fn may_write(&self) -> Result<(), String> {
        match self.permit()?.keeper {
            Some(_) => Ok(()),
            None => Err("another host is the group's keeper".into()),
        }
    }

    /// Whether this host may have the volume active now: the epoch that it has it for, or why not.
    pub fn may_hold(&self, volume: Uuid) -> Result<u64, String> {
        let held = self.permit()?.held;
        let found = held.iter().find(|(id, _)| id.0 == volume).map(|(_, epoch)| *epoch);
        found.ok_or_else(|| "no instance of this host has it".into())
    }
}

/// Cuts this host off from every shared volume that it has mounted, at once and for good: nothing that is still in memory
/// is written any more. For a fence; the mounts stay until the agent takes them away. Answers how many there were.
pub fn cut_off(run_dir: &Path, state_dir: &Path) -> usize {
    let groups = read(run_dir).groups;
    let held = groups.iter().flat_map(|group| group.held.keys());
    held.filter(|id| super::filesystem::shut_down(&state_dir.join("volumes").join(id.to_string()))).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use amphi_api::{HostId, VolumeId};

    fn desired(groups: Vec<GroupDesired>) -> HostDesired {
        HostDesired { groups, ..HostDesired::empty(HostId::new()) }
    }

    #[test]
    fn only_what_the_controller_said_in_this_boot() {
        let (run, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let files = Files::new(run.path(), state.path());
        let boot = files.renew_boot().unwrap();
        let part = Part::new(run.path(), state.path());
        let (mine, other) = (VolumeId::new(), VolumeId::new());
        assert!(part.may_write().unwrap_err().contains("not been seen"));
        part.learn("aBc-1");
        assert!(part.may_write().unwrap_err().contains("has not spoken"));
        let id = VolumeGroupId::of("aBc-1");
        let holder = GroupDesired {
            id,
            keeper: None,
            kept: Default::default(),
            held: [(mine, 4)].into_iter().collect(),
        };
        write(run.path(), boot, &desired(vec![holder.clone()])).unwrap();
        assert_eq!(part.may_hold(mine.0), Ok(4));
        assert!(part.may_hold(other.0).is_err());
        assert!(part.may_write().unwrap_err().contains("another host"));
        let keeper = GroupDesired { keeper: Some(2), held: Default::default(), ..holder };
        write(run.path(), boot, &desired(vec![keeper.clone()])).unwrap();
        assert_eq!(part.may_write(), Ok(()));
        assert!(part.may_hold(mine.0).is_err(), "taken away");
        write(run.path(), boot, &desired(vec![])).unwrap();
        assert!(part.may_write().is_err(), "taken away");
        write(run.path(), boot, &desired(vec![keeper])).unwrap();
        files.renew_boot().unwrap();
        assert!(part.may_write().unwrap_err().contains("has not spoken"), "a fence ends it");
    }
}
