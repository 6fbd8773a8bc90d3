//! An image's bytes on their way: from where they lie to where they are wanted, in pieces, with their digests. Owns limits
//! of time, the check of a disk's head as it passes, and progress. Refuses bytes that are not what was said of them.

use super::cloud::STALL;
use super::disk;
use super::plan::Digest;
use crate::failure::Failure;
use crate::progress::upload;
use amphi_api::disk::Ends;
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use ring::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY, SHA256, SHA512};
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncSeekExt};

/// Bytes of one piece.
pub const PIECE: usize = 256 << 10;
/// What of a disk's beginning is looked at before any of it goes on, in bytes.
const HEAD: usize = 64 << 10;

pub type Pieces = Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>;

/// Bytes to send: how many where it is known.
pub struct Flow {
    pub pieces: Pieces,
    pub length: Option<u64>,
    /// What they must come to, where somebody has said it.
    pub expected: Option<Digest>,
}

/// What has passed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Passed {
    pub length: u64,
    pub sha1: String,
    pub sha256: String,
    pub sha512: String,
}

impl Passed {
    /// Errors say both digests.
    pub fn check(&self, expected: &Digest) -> Result<(), String> {
        let own = match expected.algorithm.as_str() {
            "sha1" => &self.sha1,
            "sha256" => &self.sha256,
            "sha512" => &self.sha512,
            other => return Err(format!("a digest by {other}, which is not known here")),
        };
        if own.eq_ignore_ascii_case(&expected.value) {
            return Ok(());
        }
        Err(format!("the {} of its bytes is {own}, and {} was told", expected.algorithm, expected.value))
    }
}

struct Count {
    passed: u64,
    /// Only where somebody told one: nobody else has it any more.
    sha1: Option<Context>,
    digests: [Context; 2],
}

/// Follows bytes that pass.
#[derive(Clone)]
pub struct Meter(Arc<Mutex<Count>>);

impl Meter {
    /// For bytes of which this was told.
    pub fn new(expected: Option<&Digest>) -> Self {
        let sha1 =
            expected.filter(|d| d.algorithm == "sha1").map(|_| Context::new(&SHA1_FOR_LEGACY_USE_ONLY));
        let digests = [&SHA256, &SHA512].map(Context::new);
        Self(Arc::new(Mutex::new(Count { passed: 0, sha1, digests })))
    }

    fn count(&self) -> std::sync::MutexGuard<'_, Count> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }

    pub fn take(&self, piece: &[u8]) {
        let mut count = self.count();
        count.passed += piece.len() as u64;
        let count = &mut *count;
        count.sha1.iter_mut().chain(&mut count.digests).for_each(|digest| digest.update(piece));
    }

    pub fn so_far(&self) -> u64 {
        self.count().passed
    }

    pub fn passed(&self) -> Passed {
        let count = self.count();
        let end = |digest: Context| hex(digest.finish().as_ref());
        let [sha256, sha512] = count.digests.clone().map(end);
        let sha1 = count.sha1.clone().map(end).unwrap_or_default();
        Passed { length: count.passed, sha1, sha256, sha512 }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// The pieces of a reader, up to `most` bytes.
pub fn pieces(reader: impl AsyncRead + Send + Unpin + 'static, most: u64) -> Pieces {
    let reader = reader.take(most);
    Box::pin(stream::try_unfold(reader, |mut reader| async move {
        let mut piece = vec![0; PIECE];
        let got = reader.read(&mut piece).await?;
        piece.truncate(got);
        Ok::<_, io::Error>((got > 0).then(|| (Bytes::from(piece), reader)))
    }))
}

/// A part of a file.
pub async fn part(path: &Path, offset: u64, size: Option<u64>) -> Result<Flow, Failure> {
    let failed = |e: io::Error| Failure::new(2, format!("{}: cannot be read: {e}", path.display()));
    let mut file = tokio::fs::File::open(path).await.map_err(failed)?;
    let whole = file.metadata().await.map_err(failed)?.len();
    let length = size.unwrap_or(whole.saturating_sub(offset));
    if offset.checked_add(length).is_none_or(|end| end > whole) {
        return Err(Failure::new(4, format!("{}: is shorter than it was: plan anew", path.display())));
    }
    file.seek(io::SeekFrom::Start(offset)).await.map_err(failed)?;
    Ok(Flow { pieces: pieces(file, length), length: Some(length), expected: None })
}

/// The flow as it is sent: its head looked at first, each piece counted, a standstill ended.
pub async fn metered(name: &str, format: &str, flow: Flow, meter: &Meter) -> Result<Pieces, Failure> {
    let refused = |why: String| Failure::new(4, format!("{name}: {why}"));
    let mut inner = flow.pieces;
    let mut first: Vec<Bytes> = Vec::new();
    let mut begin = Vec::new();
    while begin.len() < HEAD {
        match tokio::time::timeout(STALL, inner.next()).await {
            Err(_) => return Err(Failure::new(5, format!("{name}: no bytes within {} s", STALL.as_secs()))),
            Ok(None) => break,
            Ok(Some(Err(e))) => return Err(Failure::new(1, format!("{name}: {e}"))),
            Ok(Some(Ok(piece))) => {
                begin.extend_from_slice(&piece[..piece.len().min(HEAD)]);
                first.push(piece);
            }
        }
    }
    // Of the others, what says the most stands at the end: the catalogue looks at them when they are there.
    if matches!(format, "raw" | "qcow2") {
        let ends = Ends::beginning(&begin, flow.length.unwrap_or(u64::MAX));
        disk::check(format, &ends).map_err(refused)?;
    }
    let rest = stream::unfold(Some(inner), |inner| async {
        let mut inner = inner?;
        match tokio::time::timeout(STALL, inner.next()).await {
            Ok(Some(Ok(piece))) => Some((Ok(piece), Some(inner))),
            Ok(Some(Err(error))) => Some((Err(error), None)),
            Ok(None) => None,
            Err(_) => Some((Err(io::Error::other("the source stands still")), None)),
        }
    });
    let meter = meter.clone();
    let progress = upload(name, flow.length.unwrap_or_default());
    let length = flow.length;
    let all = stream::iter(first.into_iter().map(Ok)).chain(rest).inspect(move |piece| {
        if let Ok(piece) = piece {
            meter.take(piece);
            progress(meter.so_far(), length.unwrap_or(u64::MAX));
        }
    });
    Ok(Box::pin(all))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_of_what_passed() {
        let told = |algorithm: &str, value: &str| Digest { algorithm: algorithm.into(), value: value.into() };
        let meter = Meter::new(Some(&told("sha1", "")));
        meter.take(b"hel");
        meter.take(b"lo");
        let passed = meter.passed();
        // Of "hello", as sha1sum and sha256sum print them.
        assert_eq!(passed.length, 5);
        assert_eq!(passed.sha1, "aaf4c61ddcc5e8a2dabede0f3b482cd9aea9434d");
        assert_eq!(passed.sha256, "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824");
        assert_eq!(passed.check(&told("sha1", "AAF4C61DDCC5E8A2DABEDE0F3B482CD9AEA9434D")), Ok(()));
        assert!(passed.check(&told("sha256", "00")).unwrap_err().contains("was told"));
        assert!(passed.check(&told("md5", "00")).unwrap_err().contains("not known"));
    }
}
