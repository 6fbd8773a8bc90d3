//! Directories of a set's volume that single members see (`mounts[].sub_path`): mounted by us below `parts/<instance>/`,
//! because Docker would follow a link that another member has put in the directory's place, out of the volume and over
//! the host. Here the way is walked inside the volume alone, without links, and what was found is mounted by its
//! descriptor. Refuses to remove anything but empty directories.

use super::ENGINE;
use super::mounts::{part, part_of, shared_volume};
use crate::instance::{BodyPlan, DriverError, folders};
use crate::storage::filesystem;
use amphi_api::InstanceId;
use amphi_api::set::SetSpec;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, mkdirat};
use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

#[derive(Clone, Debug)]
pub struct Parts {
    root: PathBuf,
    volumes: PathBuf,
}

/// One directory as a member should have it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Wanted {
    point: PathBuf,
    sub_path: String,
    /// Who gets it where it has to be made: the member's user and group where they are numbers.
    owner: Option<(u32, u32)>,
}

impl Parts {
    pub fn new(state_dir: &Path) -> Self {
        Self { root: state_dir.join("parts"), volumes: state_dir.join("volumes") }
    }

    pub fn of(&self, instance: InstanceId) -> PathBuf {
        self.root.join(instance.to_string())
    }

    /// Mounts what the members want. The volume is mounted already: the anchor runs.
    pub async fn ensure(&self, plan: &BodyPlan, set: &SetSpec) -> Result<(), DriverError> {
        let folder = self.of(plan.instance);
        let wanted = wanted(&folder, plan, set);
        if set.members.iter().all(|member| member.mounts.is_empty()) {
            return Ok(());
        }
        let Some(volume) = shared_volume(plan) else {
            return Err(DriverError::EngineRefused {
                engine: ENGINE,
                doing: format!("mount parts of the volume of instance {}", plan.instance),
                message: "the instance has no volume".to_owned(),
            });
        };
        let volume = self.volumes.join(volume.id.to_string());
        let root = self.root.clone();
        folders::blocking("mount directories of the volume for members", move || {
            // Guests' mount namespaces are copies: only what is shared leaves them too.
            filesystem::share(&root)?;
            wanted.iter().try_for_each(|one| show(&volume, one))
        })
        .await
    }

    /// Takes out those of descriptions that no container of the member is made for. `kept`: members with their descriptions'
    /// numbers.
    pub async fn sweep(
        &self,
        instance: InstanceId,
        kept: BTreeSet<(String, u64)>,
    ) -> Result<(), DriverError> {
        let folder = self.of(instance);
        folders::blocking("unmount what former members had of the volume", move || {
            left_over(&folder, &kept)?.iter().try_for_each(|point| filesystem::unmount(point))
        })
        .await
    }

    /// Takes them out. Whoever has them mounted keeps them until its end.
    pub async fn clear(&self, instance: InstanceId) -> Result<(), DriverError> {
        let folder = self.of(instance);
        folders::blocking("unmount members' directories of the volume", move || {
            let entries = match std::fs::read_dir(&folder) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                entries => entries?,
            };
            for entry in entries {
                filesystem::unmount(&entry?.path())?;
            }
            std::fs::remove_dir(&folder)
        })
        .await
    }
}

/// The places below the folder that are nobody's any more.
fn left_over(folder: &Path, kept: &BTreeSet<(String, u64)>) -> io::Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut points = Vec::new();
    for entry in entries {
        let entry = entry?;
        let place = entry.file_name().to_string_lossy().into_owned();
        let whose = part_of(&place).map(|(name, generation)| (name.to_owned(), generation));
        if whose.is_some_and(|whose| !kept.contains(&whose)) {
            points.push(entry.path());
        }
    }
    Ok(points)
}

fn wanted(folder: &Path, plan: &BodyPlan, set: &SetSpec) -> Vec<Wanted> {
    let of_member = |member: &amphi_api::set::MemberSpec| {
        let (name, owner) = (member.effective_name(), member.user.as_deref().and_then(numbers));
        let parts = member.mounts.iter().enumerate().filter(|(_, mount)| !mount.sub_path.is_empty());
        let parts = parts.map(|(at, mount)| Wanted {
            point: part(folder, &name, at, plan.generation_of(&name)),
            sub_path: mount.sub_path.clone(),
            owner,
        });
        parts.collect::<Vec<_>>()
    };
    set.members.iter().flat_map(of_member).collect()
}

fn numbers(user: &str) -> Option<(u32, u32)> {
    let (user, group) = user.split_once(':').unwrap_or((user, user));
    Some((user.parse().ok()?, group.parse().ok()?))
}

fn show(volume: &Path, wanted: &Wanted) -> io::Result<()> {
    let found = walk(volume, wanted)?;
    let found = PathBuf::from(format!("/proc/self/fd/{}", found.as_raw_fd()));
    std::fs::create_dir_all(&wanted.point)?;
    let (here, there) = (std::fs::metadata(&wanted.point)?, std::fs::metadata(&found)?);
    if (here.dev(), here.ino()) == (there.dev(), there.ino()) {
        return Ok(());
    }
    if filesystem::mounts()?.iter().any(|mount| mount.point == wanted.point) {
        filesystem::unmount(&wanted.point)?;
        std::fs::create_dir_all(&wanted.point)?;
    }
    mount(Some(&found), &wanted.point, None::<&str>, MsFlags::MS_BIND, None::<&str>).map_err(Into::into)
}

/// The directory, made where it is missing. Every step is taken from the one before it and follows no link.
fn walk(volume: &Path, wanted: &Wanted) -> io::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mut at = nix::fcntl::open(volume, flags, Mode::empty())?;
    let how = OpenHow::new().flags(flags).resolve(
        ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_XDEV,
    );
    for step in wanted.sub_path.split('/') {
        at = match openat2(&at, step, how) {
            Err(nix::Error::ENOENT) => {
                mkdirat(&at, step, Mode::from_bits_truncate(0o755))?;
                let made = openat2(&at, step, how)?;
                if let Some((user, group)) = wanted.owner {
                    let path = format!("/proc/self/fd/{}", made.as_raw_fd());
                    std::os::unix::fs::chown(path, Some(user), Some(group))?;
                }
                made
            }
            Err(nix::Error::ELOOP | nix::Error::ENOTDIR) => {
                return Err(io::Error::new(
                    io::ErrorKind::NotADirectory,
                    format!("'{step}' of '{}' in the volume is a link or a file", wanted.sub_path),
                ));
            }
            found => found?,
        };
    }
    Ok(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_stays_inside_the_volume() {
        let dir = tempfile::tempdir().unwrap();
        let way = |sub_path: &str| {
            let wanted = Wanted { point: "/x".into(), sub_path: sub_path.to_owned(), owner: None };
            walk(dir.path(), &wanted)
        };
        way("a/b").unwrap();
        assert!(dir.path().join("a/b").is_dir());
        std::os::unix::fs::symlink("/etc", dir.path().join("out")).unwrap();
        std::os::unix::fs::symlink("a", dir.path().join("inner")).unwrap();
        std::fs::write(dir.path().join("file"), "").unwrap();
        for bad in ["out", "out/ssh", "inner", "inner/b", "file", "file/x"] {
            let refused = way(bad).unwrap_err();
            assert!(refused.to_string().contains("a link or a file"), "{bad}: {refused}");
        }
        assert!(!Path::new("/etc/ssh2").exists() && way("..").is_err());
    }

    #[test]
    fn what_no_container_is_made_for_is_left_over() {
        let dir = tempfile::tempdir().unwrap();
        for place in ["web-0", "web-0-g4", "web-1-g4", "web-0-g5", "db-0", "else"] {
            std::fs::create_dir(dir.path().join(place)).unwrap();
        }
        let left = |kept: &[(&str, u64)]| {
            let kept = kept.iter().map(|(name, n)| ((*name).to_owned(), *n)).collect();
            let mut names: Vec<String> = left_over(dir.path(), &kept)
                .unwrap()
                .iter()
                .map(|point| point.file_name().unwrap().to_string_lossy().into_owned())
                .collect();
            names.sort();
            names
        };
        assert_eq!(left(&[("web", 5), ("web", 4), ("db", 0)]), ["web-0"]);
        assert_eq!(left(&[("web", 5), ("web", 0), ("db", 0)]), ["web-0-g4", "web-1-g4"]);
        assert!(left_over(&dir.path().join("none"), &BTreeSet::new()).unwrap().is_empty());
    }

    #[test]
    fn owners_are_numbers() {
        for (user, owner) in
            [("999", Some((999, 999))), ("1:2", Some((1, 2))), ("app", None), ("1:www", None)]
        {
            assert_eq!(numbers(user), owner, "{user}");
        }
    }
}
