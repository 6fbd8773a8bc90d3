//! What a disk's first and last bytes say: pure. A disk that would read other files (a backing file, an external data file,
//! extents of their own, a parent) is refused before anything opens it, and so is one that claims an absurd size.

use amphi_api::image::ImageFormat;

/// So many bytes from the beginning are looked at: a VMDK's descriptor lies within.
pub const HEAD: usize = 64 << 10;

/// Largest disk that a file may describe, in bytes: 64 TiB, the largest of an XFS or qcow2 that anybody runs.
const VIRTUAL_MAX: u64 = 64 << 40;

/// The size of the disk that these bytes describe; none: the format says nothing of it. The message tells what is wrong.
pub fn virtual_size(format: ImageFormat, head: &[u8], size: u64) -> Result<Option<u64>, String> {
    match format {
        ImageFormat::Raw => Ok(Some(size)),
        ImageFormat::Qcow2 => qcow2(head, size).map(Some),
        _ => Ok(None),
    }
}

fn sane(virtual_size: u64) -> Result<u64, String> {
    match virtual_size {
        0 => Err("it describes a disk of 0 bytes".into()),
        n if n > VIRTUAL_MAX => {
            Err(format!("it describes a disk of {n} bytes; at most {VIRTUAL_MAX} are taken"))
        }
        n => Ok(n),
    }
}

/// Numbers at fixed places; a place behind the end is refused.
#[derive(Clone, Copy)]
struct Header<'a>(&'a [u8]);

impl Header<'_> {
    fn bytes<const N: usize>(&self, at: usize) -> Result<[u8; N], String> {
        let field = at.checked_add(N).and_then(|end| self.0.get(at..end)).and_then(|b| b.try_into().ok());
        field.ok_or_else(|| "its header is cut off".to_owned())
    }
    fn be32(&self, at: usize) -> Result<u32, String> {
        self.bytes(at).map(u32::from_be_bytes)
    }
    fn be64(&self, at: usize) -> Result<u64, String> {
        self.bytes(at).map(u64::from_be_bytes)
    }
}

/// docs/interop/qcow2.txt of QEMU.
fn qcow2(head: &[u8], size: u64) -> Result<u64, String> {
    if !head.starts_with(b"QFI\xfb") {
        return Err("it is no qcow2 file: it does not begin with QFI\\xfb".into());
    }
    let header = Header(head);
    let version = header.be32(4)?;
    if !matches!(version, 2 | 3) {
        return Err(format!("qcow2 version {version}; 2 and 3 are taken"));
    }
    if header.be64(8)? != 0 || header.be32(16)? != 0 {
        return Err("it has a backing file: make it stand alone first (qemu-img convert)".into());
    }
    let cluster_bits = header.be32(20)?;
    if !(9..=21).contains(&cluster_bits) {
        return Err(format!("clusters of 2^{cluster_bits} bytes; 2^9 to 2^21 are taken"));
    }
    let virtual_size = sane(header.be64(24)?)?;
    if header.be32(32)? != 0 {
        return Err("it is encrypted: decrypt it first (qemu-img convert)".into());
    }
    if version == 3 {
        let (incompatible, length) = (header.be64(72)?, header.be32(100)?);
        if incompatible & 0b100 != 0 {
            return Err("its data lie in another file: make it stand alone first (qemu-img convert)".into());
        }
        if incompatible & 0b10 != 0 {
            return Err("it is marked as corrupt: repair it first (qemu-img check -r all)".into());
        }
        if incompatible & !0b1_1111 != 0 {
            return Err("it needs features that are not known here: write it anew (qemu-img convert)".into());
        }
        if length < 104 || length % 8 != 0 {
            return Err(format!("a header of {length} bytes"));
        }
        extensions(header, length as usize, cluster_bits)?;
    }
    // The first table maps all of the disk; an entry of it stands for 2^(cluster_bits - 3) clusters.
    let reach = 1u64 << (2 * cluster_bits - 3);
    let (l1_size, l1_at) = (u64::from(header.be32(36)?), header.be64(40)?);
    if l1_size < virtual_size.div_ceil(reach) || l1_size > (32 << 20) / 8 {
        return Err(format!(
            "its first table has {l1_size} entries, which do not fit a disk of {virtual_size} bytes"
        ));
    }
    for (what, at) in [("first table", l1_at), ("reference counts", header.be64(48)?)] {
        if at == 0 || at >= size || at % (1 << cluster_bits) != 0 {
            return Err(format!("its {what} would lie at byte {at} of {size}"));
        }
    }
    Ok(virtual_size)
}

/// Behind the header: a type, a length, so many bytes, padded to 8; the type 0 ends them.
fn extensions(header: Header<'_>, mut at: usize, cluster_bits: u32) -> Result<(), String> {
    let end = header.0.len().min(1 << cluster_bits);
    while at + 8 <= end {
        let (kind, length) = (header.be32(at)?, header.be32(at + 4)? as usize);
        match kind {
            0 => return Ok(()),
            0x4441_5441 => {
                return Err(
                    "its data lie in another file: make it stand alone first (qemu-img convert)".into()
                );
            }
            0xe279_2aca => {
                return Err(
                    "it names a backing file's format: make it stand alone first (qemu-img convert)".into()
                );
            }
            _ => {}
        }
        at = at.saturating_add(8).saturating_add(length.div_ceil(8).saturating_mul(8));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `qemu-img create -f qcow2` writes it, without its tables.
    fn good() -> Vec<u8> {
        let mut head = vec![0; 512];
        head[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
        head[20..24].copy_from_slice(&16u32.to_be_bytes());
        head[24..32].copy_from_slice(&(5u64 << 30).to_be_bytes());
        head[36..40].copy_from_slice(&10u32.to_be_bytes());
        head[40..48].copy_from_slice(&(3u64 << 16).to_be_bytes());
        head[48..56].copy_from_slice(&(1u64 << 16).to_be_bytes());
        head[100..104].copy_from_slice(&112u32.to_be_bytes());
        head
    }

    #[test]
    fn hostile_qcow2() {
        let read = |head: &[u8]| virtual_size(ImageFormat::Qcow2, head, 1 << 20);
        assert_eq!(read(&good()), Ok(Some(5 << 30)));
        let with = |at: usize, bytes: &[u8]| {
            let mut head = good();
            head[at..at + bytes.len()].copy_from_slice(bytes);
            read(&head).unwrap_err()
        };
        for (at, bytes, want) in [
            (0, &b"X"[..], "no qcow2"),
            (7, &[1], "version 1"),
            (7, &[9], "version 9"),
            (15, &[112], "backing file"),
            (19, &[4], "backing file"),
            (23, &[8], "2^8"),
            (20, &[255], "clusters"),
            (24, &[0; 8], "0 bytes"),
            (24, &[0xff; 8], "at most"),
            (35, &[1], "encrypted"),
            (79, &[4], "another file"),
            (79, &[2], "corrupt"),
            (72, &[1], "features"),
            (100, &[0, 0, 0, 0], "header of 0"),
            (36, &[0, 0, 0, 9], "first table"),
            (36, &[255; 4], "first table"),
            (40, &[255; 8], "would lie"),
            (48, &[0; 8], "reference counts"),
            (112, &[0x44, 0x41, 0x54, 0x41, 0, 0, 0, 1], "another file"),
            (112, &[0xe2, 0x79, 0x2a, 0xca, 0, 0, 0, 3], "backing file"),
        ] {
            let told = with(at, bytes);
            assert!(told.contains(want), "{at}: {told} / {want}");
        }
        assert!(read(&good()[..90]).unwrap_err().contains("cut off"));
        assert!(read(b"").is_err());
    }

    proptest::proptest! {
        #[test]
        fn nothing_makes_it_panic(noise in proptest::collection::vec(proptest::num::u8::ANY, 0..600), at in 0usize..512, size: u64) {
            let mut near = good();
            let end = (at + noise.len()).min(near.len());
            near[at..end].copy_from_slice(&noise[..end - at]);
            for format in [ImageFormat::Qcow2, ImageFormat::Raw, ImageFormat::Other] {
                let _ = virtual_size(format, &noise, size);
                let _ = virtual_size(format, &near, size);
            }
        }
    }
}
