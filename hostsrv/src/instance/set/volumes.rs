//! Owns `attached/<instance>/`: the host's directory that a set's containers have mounted at `/volumes`, and which of the
//! plan's further volumes are seen below it. The directory is a shared mount and the containers' a slave of it, so that
//! a volume joins and leaves while they run. The kernel alone remembers what is mounted. Refuses to remove bytes: what is
//! not an empty directory stays.

use super::ENGINE;
use super::mounts::further_volumes;
use crate::instance::{BodyPlan, DriverError, folders};
use crate::storage::binds::{self, Bound};
use crate::storage::filesystem;
use amphi_api::{InstanceId, VolumeId};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

#[derive(Clone, Debug)]
pub struct Places {
    root: PathBuf,
    volumes: PathBuf,
}

/// A further volume as it should be seen.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Wanted {
    point: PathBuf,
    volume: VolumeId,
    mount: PathBuf,
    read_only: bool,
}

/// What makes one directory as wanted.
#[derive(Debug, Default, PartialEq, Eq)]
struct Difference {
    unbind: Vec<PathBuf>,
    bind: Vec<Wanted>,
}

impl Places {
    pub fn new(state_dir: &Path) -> Self {
        Self { root: state_dir.join("attached"), volumes: state_dir.join("volumes") }
    }

    pub fn of(&self, instance: InstanceId) -> PathBuf {
        self.root.join(instance.to_string())
    }

    /// The further volumes of all sets.
    pub async fn observe(&self) -> Result<BTreeMap<InstanceId, Vec<VolumeId>>, DriverError> {
        let this = self.clone();
        let found =
            folders::blocking("look for sets' volumes", move || binds::bound(&this.root, &this.volumes))
                .await?;
        let mut all: BTreeMap<InstanceId, Vec<VolumeId>> = BTreeMap::new();
        for bound in found {
            let folder = bound.point.parent().and_then(Path::file_name).and_then(|name| name.to_str());
            if let Some(instance) = folder.and_then(|name| name.parse().ok()) {
                all.entry(instance).or_default().push(VolumeId(bound.volume));
            }
        }
        Ok(all)
    }

    /// Makes the directory, and what is seen in it, as the plan says.
    pub async fn sync(&self, plan: &BodyPlan) -> Result<(), DriverError> {
        let (this, folder) = (self.clone(), self.of(plan.instance));
        let mut wanted = Vec::new();
        for (device, volume, read_only) in further_volumes(plan) {
            let mount = volume.mount.clone().ok_or_else(|| DriverError::EngineRefused {
                engine: ENGINE,
                doing: format!("show volume {} to instance {}", volume.id, plan.instance),
                message: "it is not mounted on the host".to_owned(),
            })?;
            wanted.push(Wanted { point: folder.join(device), volume: volume.id, mount, read_only });
        }
        self.change(plan.instance, move || {
            filesystem::share(&folder)?;
            let difference = differ(&this.seen(&folder)?, &wanted);
            for point in difference.unbind {
                filesystem::unmount(&point)?;
            }
            for wanted in difference.bind {
                binds::bind(&wanted.mount, &wanted.point, wanted.read_only)?;
            }
            Ok(())
        })
        .await
    }

    /// Takes every further volume out; the directory stays for containers that may start again.
    pub async fn clear(&self, instance: InstanceId) -> Result<(), DriverError> {
        let (this, folder) = (self.clone(), self.of(instance));
        self.change(instance, move || {
            this.seen(&folder)?.iter().try_for_each(|bound| filesystem::unmount(&bound.point))
        })
        .await
    }

    /// Leaves nothing of it.
    pub async fn remove(&self, instance: InstanceId) -> Result<(), DriverError> {
        self.clear(instance).await?;
        let folder = self.of(instance);
        self.change(instance, move || filesystem::unmount(&folder)).await
    }

    fn seen(&self, folder: &Path) -> io::Result<Vec<Bound>> {
        let mut all = binds::bound(&self.root, &self.volumes)?;
        all.retain(|bound| bound.point.parent() == Some(folder));
        Ok(all)
    }

    async fn change(
        &self,
        instance: InstanceId,
        work: impl FnOnce() -> io::Result<()> + Send + 'static,
    ) -> Result<(), DriverError> {
        match folders::blocking("change which volumes a set sees", work).await {
            Err(DriverError::Io { doing, source }) if source.kind() == io::ErrorKind::ResourceBusy => {
                Err(DriverError::EngineRefused {
                    engine: ENGINE,
                    doing: format!("{doing}, instance {instance}"),
                    message: "a member has files open on one that is to go".to_owned(),
                })
            }
            other => other,
        }
    }
}

fn differ(seen: &[Bound], wanted: &[Wanted]) -> Difference {
    let same = |bound: &Bound, wanted: &Wanted| {
        bound.point == wanted.point && bound.volume == wanted.volume.0 && bound.read_only == wanted.read_only
    };
    let unbind = seen.iter().filter(|bound| !wanted.iter().any(|wanted| same(bound, wanted)));
    let bind = wanted.iter().filter(|wanted| !seen.iter().any(|bound| same(bound, wanted)));
    Difference { unbind: unbind.map(|bound| bound.point.clone()).collect(), bind: bind.cloned().collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_changes() {
        let volumes = [VolumeId::new(), VolumeId::new()];
        let wanted = |device: &str, at: usize, read_only| Wanted {
            point: Path::new("/s/attached/i").join(device),
            volume: volumes[at],
            mount: "/m".into(),
            read_only,
        };
        let bound = |device: &str, at: usize, read_only| Bound {
            point: Path::new("/s/attached/i").join(device),
            volume: volumes[at].0,
            read_only,
        };
        let says = |seen: &[Bound], wanted: &[Wanted]| {
            let Difference { unbind, bind } = differ(seen, wanted);
            let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
            let unbind: Vec<String> = unbind.iter().map(|path| name(path)).collect();
            let bind: Vec<String> = bind.iter().map(|one| name(&one.point)).collect();
            format!("-{} +{}", unbind.join(","), bind.join(","))
        };
        let both = [wanted("vdb", 0, false), wanted("vdc", 1, true)];
        for (seen, wanted, expected) in [
            (vec![], &both[..], "- +vdb,vdc"),
            (vec![bound("vdb", 0, false), bound("vdc", 1, true)], &both[..], "- +"),
            (vec![bound("vdb", 0, false)], &[][..], "-vdb +"),
            (vec![bound("vdb", 0, true)], &both[..1], "-vdb +vdb"),
            (vec![bound("vdb", 1, false)], &both[..1], "-vdb +vdb"),
            (vec![bound("vdd", 0, false)], &both[..1], "-vdd +vdb"),
        ] {
            assert_eq!(says(&seen, wanted), expected, "{seen:?}");
        }
    }
}
