//! The host's own volume group and those that other hosts see too, as one `VolumeDriver`: each call goes to the group that
//! the volume is in.
//!
//! A shared group that does not answer holds up nothing else: what was last seen in it stands, as if all of it were active,
//! so that nobody takes silence for a volume that is gone or let go of. One that has never answered since the start fails
//! the look as a whole.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use amphi_api::VolumeGroupId;
use amphi_api::host::SharedGroup;
use async_trait::async_trait;
use uuid::Uuid;

use super::{
    Attach, Attached, BinOrder, Filesystem, LvmDriver, ObservedVolume, Quiesce, StorageError, StorageFacts,
    VolumeDriver, VolumeLock, VolumeSpec,
};
use crate::qemu_img::DiskFormat;

pub struct Groups {
    own: LvmDriver,
    shared: Vec<LvmDriver>,
    /// What the last good look at each shared group saw.
    seen: Mutex<HashMap<usize, Vec<ObservedVolume>>>,
}

impl Groups {
    pub fn new(own: LvmDriver, shared: Vec<LvmDriver>) -> Self {
        Self { own, shared, seen: Mutex::default() }
    }

    fn seen(&self) -> MutexGuard<'_, HashMap<usize, Vec<ObservedVolume>>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn look(&self, at: usize) -> Result<Vec<ObservedVolume>, StorageError> {
        match self.shared[at].observe().await {
            Ok(volumes) => {
                self.seen().insert(at, volumes.clone());
                Ok(volumes)
            }
            Err(error) => {
                let Some(mut volumes) = self.seen().get(&at).cloned() else { return Err(error) };
                tracing::warn!(%error, "a shared volume group does not answer");
                for volume in &mut volumes {
                    volume.device.get_or_insert_with(|| PathBuf::from("unknown"));
                }
                Ok(volumes)
            }
        }
    }

    /// The driver of the group that the volume or snapshot is in; what nobody knows is the own group's to miss.
    async fn of(&self, id: Uuid) -> Result<&LvmDriver, StorageError> {
        let knows = |volumes: &[ObservedVolume]| volumes.iter().any(|volume| volume.id == id);
        let known = self.seen().iter().find(|(_, volumes)| knows(volumes)).map(|(at, _)| *at);
        if let Some(at) = known {
            return Ok(&self.shared[at]);
        }
        if knows(&self.own.observe().await?) {
            return Ok(&self.own);
        }
        for at in 0..self.shared.len() {
            if knows(&self.look(at).await?) {
                return Ok(&self.shared[at]);
            }
        }
        Ok(&self.own)
    }

    async fn named(&self, id: Uuid, group: VolumeGroupId) -> Result<&LvmDriver, StorageError> {
        for driver in &self.shared {
            // The first look at a group says which it is.
            if driver.group_id().is_none() && driver.probe().await.is_err() {
                continue;
            }
            if driver.group_id() == Some(group) {
                return Ok(driver);
            }
        }
        let reason = format!("it belongs in shared volume group {group}, which this host does not see");
        Err(StorageError::Invalid { id, reason })
    }
}

#[async_trait]
impl VolumeDriver for Groups {
    async fn probe(&self) -> Result<StorageFacts, StorageError> {
        let mut facts = self.own.probe().await?;
        for driver in &self.shared {
            match driver.probe().await {
                Ok(seen) => facts.shared.extend(driver.group_id().map(|id| SharedGroup {
                    id,
                    name: seen.volume_group,
                    size_bytes: seen.size_bytes,
                })),
                Err(error) => tracing::warn!(%error, "a shared volume group does not answer"),
            }
        }
        Ok(facts)
    }

    async fn observe(&self) -> Result<Vec<ObservedVolume>, StorageError> {
        let mut all = self.own.observe().await?;
        for at in 0..self.shared.len() {
            all.extend(self.look(at).await?);
        }
        all.sort_by_key(|volume| volume.id);
        Ok(all)
    }

    async fn ensure(&self, spec: &VolumeSpec) -> Result<(), StorageError> {
        match spec.group {
            Some(group) => self.named(spec.id, group).await?.ensure(spec).await,
            None => self.own.ensure(spec).await,
        }
    }

    async fn attach(&self, id: Uuid, how: Attach) -> Result<Attached, StorageError> {
        self.of(id).await?.attach(id, how).await
    }

    // Of whatever group: they share a directory.
    async fn announce(&self, id: Uuid) -> Result<Option<VolumeLock>, StorageError> {
        self.own.announce(id).await
    }

    fn is_coming(&self, id: Uuid) -> Result<bool, StorageError> {
        self.own.is_coming(id)
    }

    async fn arrival(&self, id: Uuid) -> Result<(), StorageError> {
        self.own.arrival(id).await
    }

    async fn mounted(&self, id: Uuid) -> Result<Option<PathBuf>, StorageError> {
        self.own.mounted(id).await
    }

    async fn detach(&self, id: Uuid) -> Result<(), StorageError> {
        self.of(id).await?.detach(id).await
    }

    async fn snapshot(&self, id: Uuid, snapshot: Uuid, quiesce: &Quiesce) -> Result<(), StorageError> {
        self.of(id).await?.snapshot(id, snapshot, quiesce).await
    }

    async fn export(
        &self,
        id: Uuid,
        to: &Path,
        format: DiskFormat,
        quiesce: &Quiesce,
    ) -> Result<(), StorageError> {
        self.of(id).await?.export(id, to, format, quiesce).await
    }

    async fn set_filesystem(&self, id: Uuid, fs: Option<Filesystem>) -> Result<(), StorageError> {
        self.of(id).await?.set_filesystem(id, fs).await
    }

    async fn set_bin(&self, id: Uuid, order: BinOrder) -> Result<(), StorageError> {
        self.of(id).await?.set_bin(id, order).await
    }
}
