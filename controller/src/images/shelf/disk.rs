//! Blobs as files below `blobs/`, each renamed into its place.

use super::{Found, Shelf, name, named};
use crate::digest::Digest;
use crate::images::error::{BlobError, io};
use crate::images::read::BlobRead;
use async_trait::async_trait;
use std::io::SeekFrom;
use std::path::{Path, PathBuf};
use std::time::SystemTime;
use tokio::fs::File;
use tokio::io::AsyncSeekExt;

pub struct Disk {
    top: PathBuf,
}

impl Disk {
    pub async fn open(top: PathBuf) -> Result<Self, BlobError> {
        tokio::fs::create_dir_all(&top).await.map_err(io("make the blob store"))?;
        Ok(Self { top })
    }

    fn path(&self, digest: Digest, place: &str) -> PathBuf {
        self.top.join(name(digest, place))
    }
}

#[async_trait]
impl Shelf for Disk {
    async fn keep(&self, from: &Path, _: u64, digest: Digest, place: &str) -> Result<(), BlobError> {
        let path = self.path(digest, place);
        let dir = path.parent().unwrap_or(&self.top).to_owned();
        tokio::fs::create_dir_all(&dir).await.map_err(io("keep a blob"))?;
        tokio::fs::rename(from, &path).await.map_err(io("keep a blob"))?;
        for dir in [&dir, &self.top] {
            let dir = File::open(dir).await.map_err(io("keep a blob"))?;
            dir.sync_all().await.map_err(io("keep a blob"))?;
        }
        Ok(())
    }

    async fn read(&self, digest: Digest, place: &str, from: u64) -> Result<(BlobRead, u64), BlobError> {
        let mut file = match File::open(self.path(digest, place)).await {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(BlobError::Unknown { sha256: digest.to_string() });
            }
            file => file.map_err(io("open a blob"))?,
        };
        let size = file.metadata().await.map_err(io("open a blob"))?.len();
        if from > 0 {
            file.seek(SeekFrom::Start(from)).await.map_err(io("read a blob"))?;
        }
        Ok((BlobRead::file(file.into_std().await), size))
    }

    async fn size(&self, digest: Digest, place: &str) -> Result<Option<u64>, BlobError> {
        match tokio::fs::metadata(self.path(digest, place)).await {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            found => Ok(Some(found.map_err(io("look for a blob"))?.len())),
        }
    }

    async fn remove(&self, digest: Digest, place: &str) -> Result<(), BlobError> {
        match tokio::fs::remove_file(self.path(digest, place)).await {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(io("remove a blob")(error)),
            _ => Ok(()),
        }
    }

    async fn list(&self) -> Result<Vec<Found>, BlobError> {
        let mut found = Vec::new();
        let mut dirs = tokio::fs::read_dir(&self.top).await.map_err(io("list blobs"))?;
        while let Some(dir) = dirs.next_entry().await.map_err(io("list blobs"))? {
            let mut files = tokio::fs::read_dir(dir.path()).await.map_err(io("list blobs"))?;
            while let Some(file) = files.next_entry().await.map_err(io("list blobs"))? {
                // One may go while it is looked at.
                let name = file.file_name().into_string().unwrap_or_default();
                let (Some((digest, place)), Ok(metadata)) = (named(&name), file.metadata().await) else {
                    continue;
                };
                let modified = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                found.push(Found { digest, place, modified });
            }
        }
        Ok(found)
    }

    fn local(&self, digest: Digest, place: &str) -> Option<PathBuf> {
        Some(self.path(digest, place))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_does_what_every_shelf_must() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::open(dir.path().join("blobs")).await.unwrap();
        super::super::conformance::all(&disk, dir.path()).await;
    }
}
