//! What every shelf must do. Run by the tests of each on an empty one; panics name what broke.

use super::{Shelf, named};
use crate::digest::Digest;
use crate::images::BlobError;
use sha2::{Digest as _, Sha256};
use std::path::Path;
use std::time::{Duration, SystemTime};
use tokio::io::AsyncReadExt;

/// More than two parts of an upload in parts, in bytes.
const LARGE: usize = (40 << 20) + 7;

async fn bytes(shelf: &dyn Shelf, digest: Digest, place: &str, from: u64) -> (Vec<u8>, u64) {
    let (mut read, size) = shelf.read(digest, place, from).await.expect("its bytes");
    let mut all = Vec::new();
    read.read_to_end(&mut all).await.expect("all of its bytes");
    (all, size)
}

/// `dir`: for files that are put there.
pub async fn all(shelf: &dyn Shelf, dir: &Path) {
    let file = |content: &[u8]| {
        let path = dir.join(format!("{}.part", uuid::Uuid::new_v4()));
        std::fs::write(&path, content).expect("a file");
        path
    };
    let large: Vec<u8> = (0..LARGE as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let contents: [&[u8]; 3] = [b"", b"hello", &large];
    assert_eq!(shelf.list().await.expect("an empty list"), []);
    for content in contents {
        let digest = Digest(Sha256::digest(content).into());
        let size = content.len() as u64;
        assert_eq!(shelf.size(digest, "one").await.expect("a look"), None);
        let missing = shelf.read(digest, "one", 0).await.map(|_| ());
        assert!(matches!(missing, Err(BlobError::Unknown { .. })), "{missing:?}");
        for place in ["one", "two", ""] {
            shelf.keep(&file(content), size, digest, place).await.expect("to keep it");
        }
        assert_eq!(shelf.size(digest, "one").await.expect("a look"), Some(size));
        assert!(bytes(shelf, digest, "one", 0).await == (content.to_vec(), size), "{size} bytes: others");
        for from in [1, size / 2, size.saturating_sub(1), size] {
            let rest = &content[(from as usize).min(content.len())..];
            if from <= size {
                assert!(
                    bytes(shelf, digest, "two", from).await == (rest.to_vec(), size),
                    "{size} from {from}"
                );
            }
        }
        if let Some(path) = shelf.local(digest, "one") {
            assert_eq!(std::fs::metadata(path).expect("its file").len(), size);
        }
        // Many read at once.
        let reads = (0..4u64).map(|n| bytes(shelf, digest, "one", n.min(size)));
        for (n, (rest, _)) in futures_util::future::join_all(reads).await.into_iter().enumerate() {
            assert!(rest == content[n.min(content.len())..], "reader {n}");
        }
        let mut places: Vec<String> = shelf
            .list()
            .await
            .expect("a list")
            .into_iter()
            .filter(|f| f.digest == digest)
            .map(|f| f.place)
            .collect();
        places.sort();
        assert_eq!(places, ["", "one", "two"]);
        // One of a digest goes, the others stay; again is no error.
        for _ in 0..2 {
            shelf.remove(digest, "two").await.expect("to remove it");
        }
        assert_eq!(shelf.size(digest, "two").await.expect("a look"), None);
        assert_eq!(shelf.size(digest, "").await.expect("a look"), Some(size));
    }
    shelf.tidy(Duration::ZERO).await.expect("to tidy");
    let found = shelf.list().await.expect("a list");
    assert_eq!(found.len(), 6);
    let day = Duration::from_secs(86_400);
    let now = SystemTime::now();
    assert!(found.iter().all(|f| f.modified > now - day && f.modified < now + day), "{found:?}");
    assert!(named("README").is_none() && named("README.md").is_none());
}
