//! Owns a set's files on the host: the config drive as a directory, the injected keys and the members' config files, in
//! the body's folder. Members see them by bind mounts, read-only. Refuses to write anything into a container or an image.

use crate::instance::{BodyPlan, DriverError, config_drive, folders};
use amphi_api::instance::BodyKind;
use amphi_api::set::{ConfigFile, SetSpec, permissions};
use amphi_guest::config::resolv_conf;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// As sshd likes them: root's alone.
const KEYS_MODE: u32 = 0o600;

/// Where the files of one body lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetFiles {
    folder: PathBuf,
}

impl SetFiles {
    pub fn new(state_dir: &Path, plan: &BodyPlan) -> Self {
        Self { folder: folders::of_body(state_dir, plan.instance, BodyKind::Set, plan.epoch) }
    }

    /// The directory that members see as `/config-drive`.
    pub fn config_drive(&self) -> PathBuf {
        self.folder.join("config-drive")
    }

    /// The file that members see as root's authorized keys.
    pub fn authorized_keys(&self) -> PathBuf {
        self.folder.join("authorized_keys")
    }

    /// The file that the whole set sees as its resolv.conf.
    pub fn resolv_conf(&self) -> PathBuf {
        self.folder.join("resolv.conf")
    }

    /// The folder of the members' config files; see [`of_member`].
    pub fn members(&self) -> PathBuf {
        self.folder.join("files")
    }

    /// Writes what is missing or differs. Files keep their inodes, so that running members see new contents.
    pub async fn ensure(&self, plan: &BodyPlan, set: &SetSpec) -> Result<(), DriverError> {
        let files = self.clone();
        let drive = config_drive::files(plan);
        let keys = (!plan.ssh_keys.is_empty()).then(|| plan.ssh_keys.join("\n") + "\n");
        let own = plan.own_set(set);
        let names = resolv_conf(&plan.name_servers(own), &own.anchor.dns.search, &own.anchor.dns.options);
        let folder = |name: &str| of_member(&self.members(), name, plan.generation_of(name));
        let own: Vec<(PathBuf, Vec<ConfigFile>)> = set
            .members
            .iter()
            .filter(|member| !member.files.is_empty())
            .map(|member| (folder(&member.effective_name()), member.files.clone()))
            .collect();
        folders::blocking("write the set's config drive and files", move || {
            files.write(&drive, keys.as_deref().map(str::as_bytes))?;
            write_file(&files.resolv_conf(), names.as_bytes(), 0o644)?;
            files.write_members(&own)
        })
        .await
    }

    fn write(&self, drive: &[(String, Vec<u8>)], keys: Option<&[u8]>) -> io::Result<()> {
        // User data may hold secrets: nobody but root passes through the folder on the host. Inside a member the
        // mounts begin below it, and every program of the member may read them, as from a drive in a VM.
        make_folder(&self.folder, 0o700)?;
        let root = self.config_drive();
        make_folder(&root, 0o755)?;
        for (path, bytes) in drive {
            for (at, _) in path.match_indices('/') {
                make_folder(&root.join(&path[..at]), 0o755)?;
            }
            write_file(&root.join(path), bytes, 0o644)?;
        }
        remove_others(&root, "", drive)?;
        match keys {
            Some(keys) => write_file(&self.authorized_keys(), keys, KEYS_MODE),
            None => Ok(()),
        }
    }
}

impl SetFiles {
    /// A member's file is root's on the host but for its owner, and below a folder that only root passes through.
    fn write_members(&self, members: &[(PathBuf, Vec<ConfigFile>)]) -> io::Result<()> {
        for (folder, files) in members {
            // Each on the way too: whatever the process's umask, nobody else passes.
            if let Some(parent) = folder.parent() {
                make_folder(parent, 0o700)?;
            }
            make_folder(folder, 0o700)?;
            for (at, file) in files.iter().enumerate() {
                let path = folder.join(at.to_string());
                // Nobody reads it before its mode says who may.
                if !path.exists() {
                    write_file(&path, b"", 0o600)?;
                }
                write_file(&path, file.content.as_bytes(), permissions(&file.mode))?;
                let there = std::fs::metadata(&path)?;
                if (there.uid(), there.gid()) != (file.uid, file.gid) {
                    std::os::unix::fs::chown(&path, Some(file.uid), Some(file.gid))?;
                    // Changing the owner may take bits away.
                    set_mode(&path, permissions(&file.mode))?;
                }
            }
        }
        Ok(())
    }
}

/// Where a member's config files lie, by their places in the list. A later description's lie in a folder of their own: the
/// container of an earlier one may still run, or have to come back.
pub fn of_member(members: &Path, name: &str, generation: u64) -> PathBuf {
    match generation {
        0 => members.join(name),
        // A place in the list is a number alone.
        _ => members.join(name).join(format!("g{generation}")),
    }
}

/// Takes away what an earlier description left: user data that is no more.
fn remove_others(folder: &Path, prefix: &str, drive: &[(String, Vec<u8>)]) -> io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let path = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if entry.file_type()?.is_dir() {
            remove_others(&entry.path(), &format!("{path}/"), drive)?;
        } else if !drive.iter().any(|(wanted, _)| *wanted == path) {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Modes are set, whatever the process's umask.
fn make_folder(folder: &Path, mode: u32) -> io::Result<()> {
    if !folder.is_dir() {
        std::fs::create_dir_all(folder)?;
    }
    set_mode(folder, mode)
}

fn write_file(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    if !holds(path, bytes).unwrap_or(false) {
        std::fs::write(path, bytes)?;
    }
    set_mode(path, mode)
}

/// Reads no more than it has to: members may have written more into resolv.conf than there is memory.
fn holds(path: &Path, bytes: &[u8]) -> io::Result<bool> {
    let mut there = Vec::new();
    std::fs::File::open(path)?.take(bytes.len() as u64 + 1).read_to_end(&mut there)?;
    Ok(there == bytes)
}

fn set_mode(path: &Path, mode: u32) -> io::Result<()> {
    if std::fs::metadata(path)?.permissions().mode() & 0o7777 != mode {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_written_where_it_differs_and_keeps_its_inode() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("resolv.conf");
        write_file(&path, b"nameserver 10.0.0.53\n", 0o644).unwrap();
        let inode = std::fs::metadata(&path).unwrap().ino();
        // As members may write it: longer, shorter, of the same length.
        for theirs in ["nameserver 10.0.0.53\n# and more", "", "nameserver 10.0.0.54\n"] {
            std::fs::write(&path, theirs).unwrap();
            assert!(!holds(&path, b"nameserver 10.0.0.53\n").unwrap(), "{theirs:?}");
            write_file(&path, b"nameserver 10.0.0.53\n", 0o644).unwrap();
            assert!(holds(&path, b"nameserver 10.0.0.53\n").unwrap());
        }
        assert_eq!(std::fs::metadata(&path).unwrap().ino(), inode, "a running member sees what is written");
    }
}
