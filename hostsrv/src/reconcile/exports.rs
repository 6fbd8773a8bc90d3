//! Bytes on their way to the controller: a folder of files that live only as long as their export, their digests, and the
//! hand that takes them. Owns `exports/`; refuses to know how the bytes were read.

use amphi_api::ImageId;
use amphi_api::image::Blob;
use async_trait::async_trait;
use sha2::{Digest, Sha256};
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Read at once for the digest, in bytes.
const PIECE: usize = 1 << 20;

/// Where blobs go.
#[async_trait]
pub trait BlobSink: Send + Sync {
    /// Hands over the file's bytes; they are kept for good when this returns. Putting the same twice is no error.
    async fn put(&self, image: ImageId, blob: &Blob, file: &Path) -> anyhow::Result<()>;
}

#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    #[error("cannot {doing}: {source}")]
    Io { doing: &'static str, source: io::Error },
    #[error("the controller has not taken the bytes: {0:#}")]
    Refused(anyhow::Error),
}

fn io_error(doing: &'static str) -> impl FnOnce(io::Error) -> ExportError {
    move |source| ExportError::Io { doing, source }
}

/// The exports of one host.
pub struct Exporter {
    folder: PathBuf,
    sink: Arc<dyn BlobSink>,
}

/// A folder for one export, gone with this value.
pub struct Workplace(PathBuf);

impl Workplace {
    /// The file to write.
    pub fn file(&self) -> PathBuf {
        self.0.join("bytes")
    }
}

impl Drop for Workplace {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(folder = %self.0.display(), %error, "left behind until the agent starts again");
        }
    }
}

impl Exporter {
    /// What an earlier process left in `folder` goes.
    pub fn new(folder: impl Into<PathBuf>, sink: Arc<dyn BlobSink>) -> Self {
        let folder = folder.into();
        if let Err(error) = std::fs::remove_dir_all(&folder)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(folder = %folder.display(), %error, "old exports are not cleared");
        }
        Self { folder, sink }
    }

    /// An empty place for the bytes of one image. QEMU, which writes some, has to pass through.
    pub fn begin(&self, image: ImageId) -> Result<Workplace, ExportError> {
        let folder = self.folder.join(image.to_string());
        match std::fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(io_error("clear an export that was cut short")(error));
            }
            _ => {}
        }
        let make = || {
            std::fs::create_dir_all(&folder)?;
            for folder in [&self.folder, &folder] {
                std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o711))?;
            }
            Ok(())
        };
        make().map_err(io_error("make a place for an export"))?;
        Ok(Workplace(folder))
    }

    /// Hands the bytes to the controller.
    pub async fn finish(&self, image: ImageId, place: &Workplace) -> Result<Blob, ExportError> {
        let file = place.file();
        let read = tokio::task::spawn_blocking(move || digest(&file)).await;
        let blob = read.unwrap_or_else(|e| Err(io::Error::other(e))).map_err(io_error("read an export"))?;
        self.sink.put(image, &blob, &place.file()).await.map_err(ExportError::Refused)?;
        Ok(blob)
    }
}

fn digest(file: &Path) -> io::Result<Blob> {
    let mut file = std::fs::File::open(file)?;
    let (mut hash, mut size, mut piece) = (Sha256::new(), 0, vec![0; PIECE]);
    loop {
        match file.read(&mut piece)? {
            0 => return Ok(Blob { sha256: hex::encode(hash.finalize()), size }),
            read => {
                hash.update(&piece[..read]);
                size += read as u64;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[derive(Default)]
    struct Sink(Mutex<Vec<(ImageId, Blob, Vec<u8>)>>);

    #[async_trait]
    impl BlobSink for Sink {
        async fn put(&self, image: ImageId, blob: &Blob, file: &Path) -> anyhow::Result<()> {
            self.0.lock().unwrap().push((image, blob.clone(), std::fs::read(file)?));
            Ok(())
        }
    }

    #[tokio::test]
    async fn bytes_are_named_handed_over_and_gone() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("exports");
        std::fs::create_dir_all(folder.join("left-by-a-crash")).unwrap();
        let sink = Arc::new(Sink::default());
        let exporter = Exporter::new(&folder, sink.clone());
        assert!(!folder.exists());
        let image = ImageId::new();
        let place = exporter.begin(image).unwrap();
        std::fs::write(place.file(), "hello").unwrap();
        let blob = exporter.finish(image, &place).await.unwrap();
        // SHA-256 of "hello", as sha256sum prints it.
        assert_eq!(blob.sha256, "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824");
        assert_eq!(*sink.0.lock().unwrap(), [(image, blob, b"hello".to_vec())]);
        drop(place);
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0);
    }
}
