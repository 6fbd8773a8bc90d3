//! Owns where bodies keep files on the host: `instances/<instance>/<kind>-<epoch>/`, one folder per epoch, so that a next
//! body is made ready beside the running one and an old one's files go without touching the new one's. A VM's root disk
//! lies beside them: it outlives epochs. Refuses to delete what it did not name.

use super::{DriverError, Remains};
use amphi_api::instance::BodyKind;
use amphi_api::{ImageId, InstanceId};
use std::io;
use std::path::{Path, PathBuf};

/// Root disks begin so: `root-<count>-<image>.qcow2`.
const ROOT: &str = "root-";

/// One body's folder. It need not be there.
pub fn of_body(state_dir: &Path, instance: InstanceId, kind: BodyKind, epoch: u64) -> PathBuf {
    of_instance(state_dir, instance).join(format!("{kind}-{epoch}"))
}

pub fn of_instance(state_dir: &Path, instance: InstanceId) -> PathBuf {
    state_dir.join("instances").join(instance.to_string())
}

/// The folders of an instance's bodies of one kind, by epoch.
pub fn epochs(state_dir: &Path, instance: InstanceId, kind: BodyKind) -> io::Result<Vec<(u64, PathBuf)>> {
    let entries = match std::fs::read_dir(of_instance(state_dir, instance)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let prefix = format!("{kind}-");
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        if let Some(epoch) = name.to_str().and_then(|n| n.strip_prefix(&prefix)).and_then(|n| n.parse().ok())
        {
            found.push((epoch, entry.path()));
        }
    }
    found.sort();
    Ok(found)
}

/// Where a VM's root disk lies, whatever its epoch: made of this image under this count.
pub fn root(state_dir: &Path, instance: InstanceId, count: u64, image: ImageId) -> PathBuf {
    of_instance(state_dir, instance).join(format!("{ROOT}{count}-{image}.qcow2"))
}

/// The root disks of an instance: count and path.
pub fn roots(state_dir: &Path, instance: InstanceId) -> io::Result<Vec<(u64, PathBuf)>> {
    let entries = match std::fs::read_dir(of_instance(state_dir, instance)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let count = name.to_str().and_then(|n| n.strip_prefix(ROOT)).and_then(|n| n.split('-').next());
        if let Some(count) = count.and_then(|n| n.parse().ok()) {
            found.push((count, entry.path()));
        }
    }
    Ok(found)
}

/// Removes the folders of all bodies of one kind up to and including `epoch`.
pub async fn remove(
    state_dir: &Path,
    instance: InstanceId,
    kind: BodyKind,
    epoch: u64,
    remains: Remains,
) -> Result<(), DriverError> {
    let state_dir = state_dir.to_owned();
    blocking("remove the body's files", move || {
        if kind == BodyKind::Vm && remains == Remains::Nothing {
            for (_, root) in roots(&state_dir, instance)? {
                std::fs::remove_file(root)?;
            }
        }
        for (found, path) in epochs(&state_dir, instance, kind)? {
            if found <= epoch {
                std::fs::remove_dir_all(path)?;
            }
        }
        // Not empty: a newer body's files, or the other kind's. They stay.
        match std::fs::remove_dir(of_instance(&state_dir, instance)) {
            Err(e) if !matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty) => {
                Err(e)
            }
            _ => Ok(()),
        }
    })
    .await
}

/// Runs file work off the runtime's threads.
pub async fn blocking<T: Send + 'static>(
    doing: &'static str,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, DriverError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|e| Err(io::Error::other(e)))
        .map_err(|source| DriverError::Io { doing: doing.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn folders_go_up_to_their_epoch_and_foreign_ones_stay() {
        let state = tempfile::tempdir().unwrap();
        let instance = InstanceId::new();
        for (kind, epoch) in [(BodyKind::Vm, 3), (BodyKind::Vm, 4), (BodyKind::Vm, 10), (BodyKind::Set, 4)] {
            std::fs::create_dir_all(of_body(state.path(), instance, kind, epoch).join("x")).unwrap();
        }
        let found = |kind| -> Vec<u64> {
            epochs(state.path(), instance, kind).unwrap().into_iter().map(|(epoch, _)| epoch).collect()
        };
        let image = ImageId::new();
        let disk = root(state.path(), instance, 2, image);
        std::fs::write(&disk, "").unwrap();
        remove(state.path(), instance, BodyKind::Vm, 3, Remains::Roots).await.unwrap();
        assert_eq!(roots(state.path(), instance).unwrap(), [(2, disk)]);
        remove(state.path(), instance, BodyKind::Vm, 4, Remains::Nothing).await.unwrap();
        assert_eq!(roots(state.path(), instance).unwrap(), []);
        assert_eq!((found(BodyKind::Vm), found(BodyKind::Set)), (vec![10], vec![4]));
        remove(state.path(), instance, BodyKind::Set, 9, Remains::Nothing).await.unwrap();
        let foreign = of_instance(state.path(), instance).join("foreign");
        std::fs::write(&foreign, "").unwrap();
        remove(state.path(), instance, BodyKind::Vm, 10, Remains::Nothing).await.unwrap();
        assert!(foreign.exists());
        std::fs::remove_file(foreign).unwrap();
        for _ in 0..2 {
            remove(state.path(), instance, BodyKind::Vm, 10, Remains::Nothing).await.unwrap();
            assert!(!of_instance(state.path(), instance).exists());
        }
    }
}
