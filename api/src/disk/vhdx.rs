//! vhdx, fixed and dynamic (Microsoft's [MS-VHDX]): no parent, no log that is to be written back first, its metadata within
//! the bytes that are looked at.

use super::{Ends, Fields, sane};

pub const MAGIC: &[u8] = b"vhdxfile";

/// The two headers; the one with the higher number counts.
const HEADERS: [u64; 2] = [64 << 10, 128 << 10];
const REGIONS: u64 = 192 << 10;
/// Entries of a region table, and of the metadata's.
const REGIONS_MAX: u32 = 2047;
const ITEMS_MAX: u16 = 2047;

// GUIDs as they lie in the file.
const METADATA: [u8; 16] = *b"\x06\xa2\x7c\x8b\x90\x47\x9a\x4b\xb8\xfe\x57\x5f\x05\x0f\x88\x6e";
const PARAMETERS: [u8; 16] = *b"\x37\x67\xa1\xca\x36\xfa\x43\x4d\xb3\xb6\x33\xf0\xaa\x44\xe7\x6b";
const SIZE: [u8; 16] = *b"\x24\x42\xa5\x2f\x1b\xcd\x76\x48\xb2\x11\x5d\xbe\xd8\x3b\xf4\xb8";
const PARENT: [u8; 16] = *b"\x2d\x5f\xd3\xa8\x0b\xb3\x4d\x45\xab\xf7\xd3\xd8\x48\x34\xab\x0c";

pub fn look(ends: &Ends) -> Result<u64, String> {
    if !ends.head.starts_with(MAGIC) {
        return Err("it is no vhdx file: it does not begin with vhdxfile".into());
    }
    let file = Fields(&ends.head);
    let part = |at, length| file.part(at, length).ok_or_else(|| "its header is cut off".to_owned());
    let mut newest: Option<(u64, [u8; 16])> = None;
    for at in HEADERS {
        let header = part(at, 4096)?;
        if header.starts_with(b"head") {
            let (sequence, log) = (Fields(header).le64(8)?, Fields(header).bytes(48)?);
            newest = newest.filter(|(other, _)| *other > sequence).or(Some((sequence, log)));
        }
    }
    let (_, log) = newest.ok_or("it has no header")?;
    if log != [0; 16] {
        return Err("its log has not been written back: attach it once where it comes from".into());
    }
    let (at, length) = region(Fields(part(REGIONS, 64 << 10)?))?;
    let metadata = file.part(at, u64::from(length)).filter(|m| m.starts_with(b"metadata"));
    let metadata =
        metadata.ok_or("its metadata do not lie at its beginning: write it anew (qemu-img convert)")?;
    items(Fields(metadata))
}

/// Where the metadata lie.
fn region(table: Fields<'_>) -> Result<(u64, u32), String> {
    if !table.0.starts_with(b"regi") {
        return Err("it has no table of regions".into());
    }
    let count = table.le32(8)?;
    if count > REGIONS_MAX {
        return Err(format!("its table of regions has {count} entries"));
    }
    let mut found = None;
    for at in (0..count as usize).map(|n| 16 + n * 32) {
        if table.bytes(at)? == METADATA
            && found.replace((table.le64(at + 16)?, table.le32(at + 24)?)).is_some()
        {
            return Err("it has its metadata twice".into());
        }
    }
    found.ok_or_else(|| "it has no metadata".into())
}

fn items(metadata: Fields<'_>) -> Result<u64, String> {
    let count = metadata.le16(10)?;
    if count > ITEMS_MAX {
        return Err(format!("its metadata have {count} entries"));
    }
    let (mut size, mut parameters) = (None, None);
    for at in (0..usize::from(count)).map(|n| 32 + n * 32) {
        let (id, place) = (metadata.bytes::<16>(at)?, metadata.le32(at + 16)? as usize);
        let twice = match id {
            PARENT => return Err("it has a parent: merge it first".into()),
            SIZE => size.replace(metadata.le64(place)?).is_some(),
            PARAMETERS => parameters.replace(metadata.le32(place.saturating_add(4))?).is_some(),
            _ => false,
        };
        if twice {
            return Err("its metadata say one thing twice".into());
        }
    }
    if parameters.ok_or("its metadata do not say how it is laid out")? & 0b10 != 0 {
        return Err("it has a parent: merge it first".into());
    }
    sane(size.ok_or("its metadata do not say how large it is")?)
}
