//! What a layer is once unpacked: how it is compressed, and the digest of its tar, which the image's configuration must name.
//! Bounded: what expands to much more than it is, is refused.

use super::error::{BlobError, io};
use super::tar;
use crate::digest::{Digest, LayerFacts};
use amphi_api::image::Compression;
use ruzstd::decoding::{FrameDecoder, StreamingDecoder};
use sha2::{Digest as _, Sha256};
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::PathBuf;

/// Most bytes of one layer's tar: 64 GiB.
const UNPACKED_MAX: u64 = 64 << 30;
/// A layer may expand to so many times its size (a tar of zeros gzips to a thousandth; real layers to a third) …
const EXPANSION: u64 = 100;
/// … or to this, if that is more: 1 GiB.
const UNPACKED_FREE: u64 = 1 << 30;
const CHUNK: usize = 128 << 10;

/// Reads the whole file, on a thread of its own. `own`: the digest of its bytes, which is that of the tar where nothing is
/// compressed.
pub async fn measure(path: PathBuf, own: Digest) -> Result<LayerFacts, BlobError> {
    let measured = tokio::task::spawn_blocking(move || {
        let file = File::open(&path).map_err(io("read a layer"))?;
        let size = file.metadata().map_err(io("read a layer"))?.len();
        read(BufReader::with_capacity(CHUNK, file), size, own)
    });
    measured.await.map_err(|e| BlobError::Io { doing: "read a layer", source: std::io::Error::other(e) })?
}

/// What the first bytes say of compression.
pub fn compression(head: &[u8]) -> Result<Compression, BlobError> {
    match head {
        [0x1f, 0x8b, ..] => Ok(Compression::Gzip),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Ok(Compression::Zstd),
        // zstd's skippable frames (RFC 8878, section 3.1.2): what "zstd:chunked" layers begin with.
        [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Ok(Compression::Zstd),
        [b'B', b'Z', b'h', ..] | [0xfd, b'7', b'z', b'X', b'Z', ..] => Err(BlobError::Broken(
            "a layer is compressed by bzip2 or xz; gzip, zstd and none are taken".into(),
        )),
        _ => Ok(Compression::None),
    }
}

/// [`measure`] of bytes in memory.
pub fn measure_bytes(bytes: &[u8], own: Digest) -> Result<LayerFacts, BlobError> {
    read(bytes, bytes.len() as u64, own)
}

fn read(mut layer: impl Read, size: u64, own: Digest) -> Result<LayerFacts, BlobError> {
    let mut head = Vec::new();
    layer.by_ref().take(tar::BLOCK as u64).read_to_end(&mut head).map_err(io("read a layer"))?;
    let compression = compression(&head)?;
    let most = (size.saturating_mul(EXPANSION)).clamp(UNPACKED_FREE, UNPACKED_MAX);
    let (diff_id, unpacked) = match compression {
        Compression::None if tar::may_begin(&head) => (own, size),
        Compression::None => return Err(BlobError::Broken("a layer is no tar archive".into())),
        Compression::Gzip => {
            let layer = std::io::Cursor::new(head).chain(layer);
            digest(flate2::bufread::MultiGzDecoder::new(BufReader::with_capacity(CHUNK, layer)), most)?
        }
        Compression::Zstd => {
            let layer = std::io::Cursor::new(head).chain(layer);
            digest(Frames::of(BufReader::with_capacity(CHUNK, layer)), most)?
        }
    };
    Ok(LayerFacts { compression, diff_id, unpacked })
}

fn digest(mut tar: impl Read, most: u64) -> Result<(Digest, u64), BlobError> {
    let broken = |e: std::io::Error| BlobError::Broken(format!("a layer cannot be decompressed: {e}"));
    let mut hash = Sha256::new();
    let mut head = Vec::new();
    tar.by_ref().take(tar::BLOCK as u64).read_to_end(&mut head).map_err(broken)?;
    if !tar::may_begin(&head) {
        return Err(BlobError::Broken("a layer is no tar archive".into()));
    }
    hash.update(&head);
    let mut size = head.len() as u64;
    let mut chunk = vec![0; CHUNK];
    loop {
        let got = match tar.read(&mut chunk) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            got => got.map_err(broken)?,
        };
        if got == 0 {
            return Ok((Digest(hash.finalize().into()), size));
        }
        size += got as u64;
        if size > most {
            return Err(BlobError::Broken(format!(
                "a layer expands to more than {most} bytes; that is not taken"
            )));
        }
        hash.update(&chunk[..got]);
    }
}

/// All frames of a zstd file, skippable ones left out (RFC 8878, sections 3.1.1 and 3.1.2).
enum Frames<R: Read> {
    Between(Peek<R>),
    In(Box<StreamingDecoder<Peek<R>, FrameDecoder>>),
    End,
}

/// A reader whose next bytes were looked at.
struct Peek<R> {
    held: Vec<u8>,
    rest: R,
}

impl<R: Read> Read for Peek<R> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        if self.held.is_empty() {
            return self.rest.read(into);
        }
        let some = self.held.len().min(into.len());
        into[..some].copy_from_slice(&self.held[..some]);
        self.held.drain(..some);
        Ok(some)
    }
}

impl<R: Read> Frames<R> {
    fn of(input: R) -> Self {
        Self::Between(Peek { held: Vec::new(), rest: input })
    }

    /// Goes to the next frame; none: the file has ended.
    fn begin(mut input: Peek<R>) -> std::io::Result<Self> {
        loop {
            let mut magic = Vec::new();
            input.by_ref().take(4).read_to_end(&mut magic)?;
            match magic[..] {
                [] => return Ok(Self::End),
                [0x50..=0x5f, 0x2a, 0x4d, 0x18] => {
                    let mut length = [0; 4];
                    input.read_exact(&mut length)?;
                    let length = u64::from(u32::from_le_bytes(length));
                    if std::io::copy(&mut input.by_ref().take(length), &mut std::io::sink())? != length {
                        return Err(std::io::ErrorKind::UnexpectedEof.into());
                    }
                }
                _ => {
                    input.held = magic;
                    let frame = StreamingDecoder::new(input).map_err(std::io::Error::other)?;
                    return Ok(Self::In(Box::new(frame)));
                }
            }
        }
    }
}

impl<R: Read> Read for Frames<R> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        loop {
            *self = match std::mem::replace(self, Self::End) {
                Self::End => return Ok(0),
                Self::Between(input) => Self::begin(input)?,
                Self::In(mut frame) => {
                    let got = frame.read(into)?;
                    if got > 0 || into.is_empty() {
                        *self = Self::In(frame);
                        return Ok(got);
                    }
                    Self::Between(frame.into_inner())
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tar::make;
    use super::*;
    use std::io::Write;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut to = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        to.write_all(bytes).unwrap();
        to.finish().unwrap()
    }

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
    }

    fn facts(layer: &[u8]) -> Result<LayerFacts, String> {
        measure_bytes(layer, Digest(Sha256::digest(layer).into())).map_err(|e| e.to_string())
    }

    #[test]
    fn the_same_tar_in_each_packing() {
        let tar = [make::file("a", &[7; 100_000]), make::end()].concat();
        let want = Digest(Sha256::digest(&tar).into());
        let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"xyz"].concat();
        let (first, second) = tar.split_at(50_000);
        for (packed, compression) in [
            (tar.clone(), Compression::None),
            (gzip(&tar), Compression::Gzip),
            ([gzip(first), gzip(second)].concat(), Compression::Gzip),
            (zstd(&tar), Compression::Zstd),
            ([skippable.clone(), zstd(first), skippable, zstd(second)].concat(), Compression::Zstd),
        ] {
            let seen = facts(&packed).unwrap();
            assert_eq!(
                (seen.compression, seen.diff_id, seen.unpacked),
                (compression, want, tar.len() as u64)
            );
        }
    }

    #[test]
    fn layers_that_are_none() {
        let tar = [make::file("a", b"hello"), make::end()].concat();
        let gz = gzip(&tar);
        for (bytes, want) in [
            (b"hello".to_vec(), "no tar"),
            (gzip(b"hello"), "no tar"),
            (zstd(b"hello"), "no tar"),
            (gz[..gz.len() - 9].to_vec(), "decompressed"),
            (b"\x28\xb5\x2f\xfdnonsense".to_vec(), "decompressed"),
            (vec![0x50, 0x2a, 0x4d, 0x18, 255, 255, 255, 255], "decompressed"),
            (b"BZh91AY".to_vec(), "bzip2"),
        ] {
            let told = facts(&bytes).unwrap_err();
            assert!(told.contains(want), "{told} / {want}");
        }
    }

    #[test]
    fn what_expands_without_end_is_refused() {
        let told = digest(std::io::repeat(0), 1 << 20).unwrap_err().to_string();
        assert!(told.contains("expands"), "{told}");
    }
}
