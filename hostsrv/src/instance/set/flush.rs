//! Waits until an image that has just come is on the disk. For each container that Docker makes it mounts an overlay and unmounts
//! it, and that unmount waits for all of the file system below (the kernel's `ovl_sync_fs`): after a large image on a slow disk
//! that takes longer than the call that makes a container may, so it is waited for here, within the limit of the pull. Refuses
//! to fail anything: what is left is waited for there. Not begun while Docker unpacks, which would write its downloads to the
//! disk that it removes a moment later.

use std::fs::File;
use std::path::Path;
use std::time::Duration;

/// `root`: Docker's data root.
pub async fn flush(root: &Path, limit: Duration) {
    let of = root.to_owned();
    let flushing = tokio::task::spawn_blocking(move || {
        File::open(&of).and_then(|root| nix::unistd::syncfs(&root).map_err(std::io::Error::from))
    });
    match tokio::time::timeout(limit, flushing).await {
        Ok(Ok(Ok(()))) => {}
        Ok(Ok(Err(error))) => tracing::warn!("{} cannot be flushed: {error}", root.display()),
        Ok(Err(error)) => tracing::warn!("{} was not flushed: {error}", root.display()),
        Err(_) => tracing::warn!("{} is not on the disk after {} s", root.display(), limit.as_secs()),
    }
}
