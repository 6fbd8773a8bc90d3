//! Bytes of images by their digest, on the controller's file system. Owns `blobs/` and the uploads under way; a blob is
//! there whole and verified, or not at all. Refuses to know what an image is: records name digests.

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use md5::Md5;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::pin::pin;
use tokio::fs::File;
use tokio::io::AsyncWriteExt;

/// Largest blob, in bytes: 1 TiB. An upload without end should not become a full disk without a word.
pub const BLOB_MAX: u64 = 1 << 40;

/// Of the beginning of each blob so many bytes are looked at.
const HEAD: usize = 32;

#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    #[error("there is no blob {sha256}")]
    Unknown { sha256: String },
    #[error("{text:?} is no SHA-256 digest in lower-case hexadecimal")]
    NoDigest { text: String },
    #[error("the bytes are of digest {found}, not {expected}; nothing was kept")]
    WrongDigest { expected: String, found: String },
    #[error("the upload broke off after {received} bytes: {reason}; nothing was kept")]
    Interrupted { received: u64, reason: String },
    #[error("more than {limit} bytes; nothing was kept")]
    TooLarge { limit: u64 },
    #[error("cannot {doing}: no space is left on the image store's disk; nothing was kept")]
    Full { doing: &'static str },
    #[error("cannot {doing}: {source}")]
    Io { doing: &'static str, source: std::io::Error },
}

fn io(doing: &'static str) -> impl FnOnce(std::io::Error) -> BlobError {
    use std::io::ErrorKind::{QuotaExceeded, StorageFull};
    move |source| match source.kind() {
        StorageFull | QuotaExceeded => BlobError::Full { doing },
        _ => BlobError::Io { doing, source },
    }
}

/// A blob that was put.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Put {
    pub sha256: String,
    pub size: u64,
    /// Lower-case hexadecimal MD5: what glance calls an image's checksum.
    pub md5: String,
    /// The size of the disk that a qcow2 file describes, in bytes.
    pub qcow2_size: Option<u64>,
}

/// The virtual size that a qcow2 header tells: bytes 24 to 32 after the magic (docs/interop/qcow2.txt of QEMU).
fn qcow2_size(head: &[u8]) -> Option<u64> {
    if !head.starts_with(b"QFI\xfb") {
        return None;
    }
    head.get(24..32)?.try_into().ok().map(u64::from_be_bytes)
}

/// The store. Cheap to share behind an `Arc`.
pub struct BlobStore {
    blobs: PathBuf,
    uploads: PathBuf,
    limit: u64,
}

impl BlobStore {
    /// Opens `dir`; what a crash left of uploads goes.
    pub async fn open(dir: &Path) -> Result<Self, BlobError> {
        let store = Self { blobs: dir.join("blobs"), uploads: dir.join("uploads"), limit: BLOB_MAX };
        match tokio::fs::remove_dir_all(&store.uploads).await {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(io("clear old uploads")(error));
            }
            _ => {}
        }
        for dir in [&store.blobs, &store.uploads] {
            tokio::fs::create_dir_all(dir).await.map_err(io("make the blob store"))?;
        }
        Ok(store)
    }

    /// Takes no blob of more bytes than these.
    pub fn with_limit(self, limit: u64) -> Self {
        Self { limit, ..self }
    }

    fn path(&self, sha256: &str) -> Result<PathBuf, BlobError> {
        let ok = sha256.len() == 64 && sha256.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if ok {
            Ok(self.blobs.join(&sha256[..2]).join(sha256))
        } else {
            Err(BlobError::NoDigest { text: sha256.into() })
        }
    }

    /// Takes bytes; durable and named by their digest when this returns. With `expected`, other bytes are refused.
    pub async fn put<E: std::fmt::Display>(
        &self,
        bytes: impl Stream<Item = Result<Bytes, E>>,
        expected: Option<&str>,
    ) -> Result<Put, BlobError> {
        let upload = Upload(self.uploads.join(uuid::Uuid::new_v4().to_string()));
        let mut file = File::create(&upload.0).await.map_err(io("begin an upload"))?;
        let mut bytes = pin!(bytes);
        let (mut hash, mut md5, mut head) = (Sha256::new(), Md5::new(), Vec::new());
        let mut size = 0u64;
        while let Some(part) = bytes.next().await {
            let part = part.map_err(|e| BlobError::Interrupted { received: size, reason: e.to_string() })?;
            size += part.len() as u64;
            if size > self.limit {
                return Err(BlobError::TooLarge { limit: self.limit });
            }
            hash.update(&part);
            md5.update(&part);
            head.extend(part.iter().take(HEAD - head.len().min(HEAD)));
            file.write_all(&part).await.map_err(io("write an upload"))?;
        }
        let sha256 = hex::encode(hash.finalize());
        if let Some(expected) = expected.filter(|e| *e != sha256) {
            return Err(BlobError::WrongDigest { expected: expected.to_owned(), found: sha256 });
        }
        file.flush().await.map_err(io("write an upload"))?;
        file.sync_all().await.map_err(io("write an upload to the disk"))?;
        let path = self.path(&sha256)?;
        let dir = path.parent().unwrap_or(&self.blobs).to_owned();
        tokio::fs::create_dir_all(&dir).await.map_err(io("keep a blob"))?;
        // Replacing equal bytes by equal bytes: two uploads of the same content do not disturb each other.
        tokio::fs::rename(&upload.0, &path).await.map_err(io("keep a blob"))?;
        for dir in [&dir, &self.blobs] {
            let dir = File::open(dir).await.map_err(io("keep a blob"))?;
            dir.sync_all().await.map_err(io("keep a blob"))?;
        }
        Ok(Put { sha256, size, md5: hex::encode(md5.finalize()), qcow2_size: qcow2_size(&head) })
    }

    /// A blob's bytes and their number.
    pub async fn read(&self, sha256: &str) -> Result<(File, u64), BlobError> {
        let file = match File::open(self.path(sha256)?).await {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(BlobError::Unknown { sha256: sha256.to_owned() });
            }
            file => file.map_err(io("open a blob"))?,
        };
        let size = file.metadata().await.map_err(io("open a blob"))?.len();
        Ok((file, size))
    }

    /// Removes a blob; one that is not there is no error. The caller knows that no record names it.
    pub async fn remove(&self, sha256: &str) -> Result<(), BlobError> {
        match tokio::fs::remove_file(self.path(sha256)?).await {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(io("remove a blob")(error)),
            _ => Ok(()),
        }
    }

    /// The digests of all blobs.
    pub async fn list(&self) -> Result<Vec<String>, BlobError> {
        let mut found = Vec::new();
        let mut dirs = tokio::fs::read_dir(&self.blobs).await.map_err(io("list blobs"))?;
        while let Some(dir) = dirs.next_entry().await.map_err(io("list blobs"))? {
            let mut files = tokio::fs::read_dir(dir.path()).await.map_err(io("list blobs"))?;
            while let Some(file) = files.next_entry().await.map_err(io("list blobs"))? {
                found.extend(file.file_name().into_string().ok());
            }
        }
        found.sort();
        Ok(found)
    }
}

/// Goes with its file when the upload ends in any way but the good one (then the file has been renamed away).
struct Upload(PathBuf);

impl Drop for Upload {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt;

    fn parts(parts: &[&'static str]) -> impl Stream<Item = Result<Bytes, String>> + use<> {
        let parts: Vec<_> = parts.iter().map(|p| Ok(Bytes::from_static(p.as_bytes()))).collect();
        futures_util::stream::iter(parts)
    }

    /// SHA-256 of "hello", as sha256sum prints it.
    const HELLO: &str = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";

    #[test]
    fn virtual_sizes() {
        let mut head = b"QFI\xfb\0\0\0\x03".to_vec();
        head.resize(24, 0);
        assert_eq!(qcow2_size(&head), None);
        head.extend((5u64 << 30).to_be_bytes());
        assert_eq!(qcow2_size(&head), Some(5 << 30));
        assert_eq!(qcow2_size(&[0; 32]), None);
    }

    #[tokio::test]
    async fn bytes_are_kept_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let store = BlobStore::open(dir.path()).await.unwrap();
        let put = store.put(parts(&["hel", "lo"]), None).await.unwrap();
        let md5 = "5d41402abc4b2a76b9719d911017c592".to_owned();
        assert_eq!(put, Put { sha256: HELLO.into(), size: 5, md5, qcow2_size: None });
        assert_eq!(store.put(parts(&["hello"]), Some(HELLO)).await.unwrap(), put);
        assert_eq!(store.list().await.unwrap(), [HELLO]);
        let (mut file, size) = store.read(HELLO).await.unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).await.unwrap();
        assert_eq!((text.as_str(), size), ("hello", 5));

        let wrong = store.put(parts(&["other"]), Some(HELLO)).await;
        assert!(matches!(wrong, Err(BlobError::WrongDigest { .. })), "{wrong:?}");
        let broken = futures_util::stream::iter([Ok(Bytes::from_static(b"x")), Err("the line broke")]);
        let broken = store.put(broken, None).await;
        assert!(matches!(broken, Err(BlobError::Interrupted { received: 1, .. })), "{broken:?}");
        let small = BlobStore::open(dir.path()).await.unwrap().with_limit(5);
        let large = small.put(parts(&["hello", "!"]), None).await;
        assert!(matches!(large, Err(BlobError::TooLarge { limit: 5 })), "{large:?}");
        assert_eq!(small.put(parts(&["hello"]), None).await.unwrap(), put, "not a byte too many");
        assert_eq!(
            std::fs::read_dir(dir.path().join("uploads")).unwrap().count(),
            0,
            "nothing is left of them"
        );

        for bad in ["", "../../etc/passwd", &HELLO[1..], &HELLO.to_uppercase()] {
            assert!(matches!(store.read(bad).await, Err(BlobError::NoDigest { .. })), "{bad}");
        }
        store.remove(HELLO).await.unwrap();
        store.remove(HELLO).await.unwrap();
        assert!(matches!(store.read(HELLO).await, Err(BlobError::Unknown { .. })));
    }
}
