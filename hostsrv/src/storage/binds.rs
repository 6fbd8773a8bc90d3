//! Further places where a mounted volume is seen: directories of an instance that its containers have mounted, so that
//! a volume can join and leave while they run. Owns bind mounts below such a directory; the kernel's table of mounts is
//! all that is remembered. Refuses to unmount lazily and to remove anything but empty directories.

use super::filesystem::{self, Mount};
use nix::mount::{MsFlags, mount};
use std::io;
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// A volume in such a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bound {
    pub point: PathBuf,
    pub volume: Uuid,
    pub read_only: bool,
}

/// Makes the volume mounted at `volume` seen at `point` too. The directory around `point` is shared, so whoever has it
/// as a slave sees the same; a mount's being read-only does not travel later, so it is made so before it gets there.
pub fn bind(volume: &Path, point: &Path, read_only: bool) -> io::Result<()> {
    let none = None::<&str>;
    std::fs::create_dir_all(point)?;
    if !read_only {
        return mount(Some(volume), point, none, MsFlags::MS_BIND, none).map_err(Into::into);
    }
    let around = point.parent().unwrap_or(point);
    let name = format!(
        "{}.{}.read-only",
        around.file_name().unwrap_or_default().display(),
        point.file_name().unwrap_or_default().display()
    );
    let stage = around.with_file_name(name);
    std::fs::create_dir_all(&stage)?;
    mount(Some(volume), &stage, none, MsFlags::MS_BIND, none)?;
    let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | MsFlags::MS_NODEV;
    let bound = mount(none, &stage, none, flags, none)
        .and_then(|()| mount(Some(&stage), point, none, MsFlags::MS_BIND, none));
    filesystem::unmount(&stage)?;
    bound.map_err(Into::into)
}

/// The volumes seen in directories below `root`: a volume is known by its device, which is mounted at `volumes/<id>`.
pub fn bound(root: &Path, volumes: &Path) -> io::Result<Vec<Bound>> {
    Ok(read(&filesystem::mounts()?, root, volumes))
}

fn read(mounts: &[Mount], root: &Path, volumes: &Path) -> Vec<Bound> {
    let volume_on = |device: &str| {
        mounts.iter().find_map(|mount| {
            let name = mount.point.strip_prefix(volumes).ok()?.to_str()?;
            (mount.device == device).then(|| name.parse().ok()).flatten()
        })
    };
    mounts
        .iter()
        .filter(|mount| mount.point.strip_prefix(root).is_ok_and(|below| below.components().count() == 2))
        .filter_map(|mount| {
            Some(Bound {
                point: mount.point.clone(),
                volume: volume_on(&mount.device)?,
                read_only: mount.read_only,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_are_known_by_their_device() {
        let id = Uuid::from_u128(7);
        let mount = |device: &str, point: &str, read_only| Mount {
            device: device.into(),
            point: point.into(),
            shared: true,
            read_only,
        };
        let mounts = [
            mount("8:1", "/s/volumes", false),
            mount("7:3", &format!("/s/volumes/{id}"), false),
            mount("8:1", "/s/attached/i", false),
            mount("7:3", "/s/attached/i/vdb", true),
            mount("7:9", "/s/attached/i/vdc", false),
        ];
        let found = read(&mounts, Path::new("/s/attached"), Path::new("/s/volumes"));
        assert_eq!(found, [Bound { point: "/s/attached/i/vdb".into(), volume: id, read_only: true }]);
    }
}
