//! The taking of a moving instance's bytes: which part may be written here now, by whom, and what is done when the last pass
//! has been found whole. Refuses every host but the one that the instance is expected from.

use super::Reconciler;
use crate::crossing::{Medium, Part, Pass, take_pass};
use crate::images::bases;
use crate::instance::folders;
use crate::qemu_img;
use crate::storage::{Attach, Filesystem};
use amphi_api::image::BlobRole;
use amphi_api::wire::{HostDesired, InstanceDesired, VolumeSource};
use amphi_api::{HostId, InstanceId};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::OwnedMutexGuard;

/// A pass whose sender has died holds its part until its connection ends.
const TURN: Duration = Duration::from_secs(60);

/// A part that is being written, by nobody else.
pub struct Place {
    instance: InstanceDesired,
    from: HostId,
    pass: Pass,
    medium: Arc<Medium>,
    path: PathBuf,
    builds_on: bool,
    _turn: OwnedMutexGuard<()>,
}

impl Reconciler {
    /// Opens the part for one pass, or says why not.
    pub async fn take_bytes(
        &self,
        instance: InstanceId,
        epoch: u64,
        from: HostId,
        pass: &Pass,
    ) -> Result<Place, String> {
        self.comes(instance, epoch, from, pass.part)?;
        let turns = self
            .copying
            .taken
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry((instance, pass.part))
            .or_default()
            .clone();
        let turn = tokio::time::timeout(TURN, turns.lock_owned());
        let turn = turn.await.map_err(|_| "an earlier pass has not ended".to_owned())?;
        // It may have changed while an earlier one came to its end.
        let found = self.comes(instance, epoch, from, pass.part)?;
        let opened = match pass.part {
            Part::Volume(id) => {
                let attached = self.drivers.volumes.attach(id.0, Attach::Device).await;
                let path = attached.map_err(|error| error.to_string())?.device;
                (path.clone(), open(path, false, pass.size).await)
            }
            Part::Root => {
                let path = self.root_of(&found)?;
                (path.clone(), open(part_of(&path), true, pass.size).await)
            }
        };
        let (path, medium) = opened;
        // From here on nothing is known of it, until this pass has ended well.
        let known = self.copying.marks().remove(&(instance, pass.part));
        let builds_on = known.is_some() && known == pass.after.map(|after| (after, pass.size));
        match medium {
            Ok(medium) => {
                let (medium, pass) = (Arc::new(medium), pass.clone());
                Ok(Place { instance: found, from, pass, medium, path, builds_on, _turn: turn })
            }
            Err(error) => {
                self.let_go(pass).await;
                Err(format!("cannot open {}: {error}", path.display()))
            }
        }
    }

    fn comes(
        &self,
        instance: InstanceId,
        epoch: u64,
        from: HostId,
        part: Part,
    ) -> Result<InstanceDesired, String> {
        let desired = self.orders().borrow().clone().filter(|_| self.ledger().confirmed());
        let found = desired.as_deref().and_then(|desired| expected(desired, instance, epoch, from, part));
        found.cloned().ok_or_else(|| format!("{part:?} of instance {instance} is not expected from there"))
    }

    fn root_of(&self, instance: &InstanceDesired) -> Result<PathBuf, String> {
        let state_dir = self.copying.state_dir().ok_or("this agent takes no bytes")?;
        let image = instance.body.images().first().ok_or("its body has no image")?;
        Ok(folders::root(state_dir, instance.id, instance.root, image.id))
    }

    async fn let_go(&self, pass: &Pass) {
        if let Part::Volume(id) = pass.part
            && let Err(error) = self.drivers.volumes.detach(id.0).await
        {
            tracing::warn!(volume = %id, %error, "stays attached after a pass");
        }
        self.touched_volumes();
    }

    /// What makes the part usable here, once all of it is.
    async fn adopt(
        &self,
        instance: &InstanceDesired,
        from: HostId,
        pass: &Pass,
        path: &Path,
    ) -> Result<(), String> {
        match pass.part {
            Part::Volume(id) => {
                let fs = pass.xfs.then_some(Filesystem::Xfs);
                self.drivers.volumes.set_filesystem(id.0, fs).await.map_err(|e| e.to_string())
            }
            Part::Root => {
                let image = instance.body.images().first().ok_or("its body has no image")?;
                let format = bases::lies(image.format).ok_or("its image is no disk")?;
                let cached = self.drivers.images.ensure(image).await.map_err(|e| e.to_string())?;
                let base = cached.blobs.get(&BlobRole::Disk).ok_or("its image has no disk")?;
                let part = part_of(path);
                qemu_img::rebase(&part, format, base).await.map_err(|e| e.to_string())?;
                // A guest may have been started on what is there since.
                self.comes(instance.id, instance.epoch, from, Part::Root)?;
                tokio::fs::rename(&part, path).await.map_err(|e| e.to_string())
            }
        }
    }
}

impl Place {
    /// The pass that this one builds on is the last that has happened here.
    pub fn builds_on(&self) -> bool {
        self.builds_on
    }

    /// Takes the pass. When this returns nothing writes to the part any more.
    pub async fn fill<S: AsyncRead + AsyncWrite + Unpin + Send>(
        self,
        host: &Reconciler,
        stream: &mut S,
    ) -> anyhow::Result<()> {
        let Self { instance, from, pass, medium, path, builds_on, _turn: turn } = self;
        let (id, epoch) = (instance.id, instance.epoch);
        let mut orders = host.orders();
        let gone = orders.wait_for(|now| {
            let now = now.as_deref();
            now.is_none_or(|now| expected(now, id, epoch, from, pass.part).is_none())
        });
        let stays = async {
            // The sender lives as long as the reconciler.
            let _gone = gone.await;
        };
        let mut is_let_go = false;
        let adopt = async || {
            if pass.last {
                host.adopt(&instance, from, &pass, &path).await?;
                // The answer to the last pass may start the instance here: what is let go after it could be the instance's.
                host.let_go(&pass).await;
                is_let_go = true;
            }
            if let Some(mark) = pass.mark {
                host.copying.marks().insert((id, pass.part), (mark, pass.size));
            }
            Ok(())
        };
        let compared = !builds_on;
        // The medium is this pass's alone: closed when its bytes are written.
        let taken = take_pass(stream, medium, &pass, compared, stays, adopt).await;
        tracing::info!(instance = %id, part = ?pass.part, last = pass.last, compared, well = taken.is_ok(), "a pass has ended");
        if !is_let_go {
            host.let_go(&pass).await;
        }
        drop(turn);
        taken
    }
}

/// The part's instance, if it is expected from there.
fn expected(
    desired: &HostDesired,
    instance: InstanceId,
    epoch: u64,
    from: HostId,
    part: Part,
) -> Option<&InstanceDesired> {
    let coming = desired.expected.iter().find(|i| i.id == instance)?;
    let here = match part {
        Part::Volume(id) => {
            let ordered = desired.volumes.iter().find(|v| v.id == id)?;
            super::plan::volumes_of(coming).contains(&id) && ordered.source == Some(VolumeSource::Crossing)
        }
        Part::Root => coming.root_volume.is_none(),
    };
    (here && coming.epoch == epoch && coming.copied_from == Some(from)).then_some(coming)
}

fn part_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".part");
    name.into()
}

/// A device of at least the size, or a file of just it. A finished file beside it stays until this one is whole.
async fn open(path: PathBuf, file: bool, size: u64) -> std::io::Result<Medium> {
    let work = move || {
        if !file {
            let medium = Medium::open(&path, true)?;
            return match medium.size()? {
                has if has < size => Err(std::io::Error::other(format!("it has {has} bytes, not {size}"))),
                _ => Ok(medium),
            };
        };
        if !path.exists() {
            std::fs::create_dir_all(path.parent().unwrap_or(&path))?;
            std::fs::File::create(&path)?;
        }
        let medium = Medium::open(&path, true)?;
        medium.set_size(size)?;
        Ok(medium)
    };
    tokio::task::spawn_blocking(work).await.map_err(std::io::Error::other)?
}
