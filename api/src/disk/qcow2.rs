//! qcow2, versions 2 and 3 (docs/interop/qcow2.txt of QEMU): no backing file, no data file, no encryption, nothing unknown.

use super::{Ends, Fields, sane};

pub const MAGIC: &[u8] = b"QFI\xfb";

const ELSEWHERE: &str = "its data lie in another file: make it stand alone first (qemu-img convert)";
const ENCRYPTED: &str = "it is encrypted: decrypt it first (qemu-img convert)";

pub fn look(ends: &Ends) -> Result<u64, String> {
    if !ends.head.starts_with(MAGIC) {
        return Err("it is no qcow2 file: it does not begin with QFI\\xfb".into());
    }
    let header = Fields(&ends.head);
    let version = header.be32(4)?;
    if !matches!(version, 2 | 3) {
        return Err(format!("it is qcow2 of version {version}; 2 and 3 are taken"));
    }
    if header.be64(8)? != 0 || header.be32(16)? != 0 {
        return Err("it has a backing file: make it stand alone first (qemu-img convert)".into());
    }
    let cluster_bits = header.be32(20)?;
    if !(9..=21).contains(&cluster_bits) {
        return Err(format!("it has clusters of 2^{cluster_bits} bytes; 2^9 to 2^21 are taken"));
    }
    let size = sane(header.be64(24)?)?;
    if header.be32(32)? != 0 {
        return Err(ENCRYPTED.into());
    }
    let length = match version {
        2 => 72,
        _ => {
            features(header.be64(72)?, header.be64(88)?)?;
            header.be32(100)?
        }
    };
    if version == 3 && (length < 104 || length % 8 != 0 || length > 1 << cluster_bits) {
        return Err(format!("it has a header of {length} bytes"));
    }
    // Extensions lie in the first cluster.
    let end = ends.head.len().min(1 << cluster_bits);
    extensions(Fields(&ends.head[..end]), length as usize)?;
    // The first table maps all of the disk; an entry of it stands for 2^(cluster_bits - 3) clusters.
    let reach = 1u64 << (2 * cluster_bits - 3);
    let (entries, at) = (u64::from(header.be32(36)?), header.be64(40)?);
    if entries < size.div_ceil(reach) || entries > (32 << 20) / 8 {
        return Err(format!(
            "its first table has {entries} entries, which do not fit a disk of {size} bytes"
        ));
    }
    for (what, at) in [("first table", at), ("reference counts", header.be64(48)?)] {
        if at == 0 || at >= ends.size || at % (1 << cluster_bits) != 0 {
            return Err(format!("its {what} would lie at byte {at} of {}", ends.size));
        }
    }
    Ok(size)
}

/// What one must know to read it, and what a writer clears that does not know it.
fn features(incompatible: u64, autoclear: u64) -> Result<(), String> {
    if incompatible & 0b100 != 0 || autoclear & 0b10 != 0 {
        return Err(ELSEWHERE.into());
    }
    if incompatible & 0b10 != 0 {
        return Err("it is marked as corrupt: repair it first (qemu-img check -r all)".into());
    }
    // Bit 0: not closed in order; 3: another compression; 4: subclusters.
    match incompatible & !0b1_1111 {
        0 => Ok(()),
        unknown => {
            Err(format!("it needs features that are not known here ({unknown:#x}): qemu-img convert it"))
        }
    }
}

/// Behind the header: a type, a length, so many bytes, padded to 8; the type 0 ends them, as does the first cluster's end.
fn extensions(head: Fields<'_>, mut at: usize) -> Result<(), String> {
    const CUT: &str = "its header's extensions are cut off";
    while at < head.0.len() {
        let kind = head.be32(at).map_err(|_| CUT)?;
        let length = head.be32(at.saturating_add(4)).map_err(|_| CUT)?;
        match kind {
            0 => return Ok(()),
            // The names of features; bitmaps; a backing file's format, which without one means nothing.
            0x6803_f857 | 0x2385_2875 | 0xe279_2aca => {}
            0x4441_5441 => return Err(ELSEWHERE.into()),
            0x0537_be77 => return Err(ENCRYPTED.into()),
            other => return Err(format!("its header has an extension that is not known here ({other:#x})")),
        }
        let padded = usize::try_from(length).ok().and_then(|length| length.checked_next_multiple_of(8));
        let next = padded.and_then(|padded| at.checked_add(8)?.checked_add(padded));
        at = next.filter(|next| *next <= head.0.len()).ok_or(CUT)?;
    }
    Ok(())
}
