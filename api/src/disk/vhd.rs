//! vhd, fixed and dynamic (Microsoft's Virtual Hard Disk Image Format Specification 1.0). What it is stands in a footer, of
//! which a dynamic disk has a copy in front: QEMU believes the one in front, other readers the last one, and so they must say
//! the same. In a fixed disk the first sector is the guest's own.

use super::{Ends, Fields, SIZE_MAX, sane};

pub const MAGIC: &[u8] = b"conectix";

const FOOTER: usize = 512;
const FIXED: u32 = 2;
const DYNAMIC: u32 = 3;
const DIFFERENCING: u32 = 4;
/// In bytes.
const GEOMETRY_MAX: u64 = 65_535 * 16 * 255 * 512;

pub fn look(ends: &Ends) -> Result<u64, String> {
    let last = ends.tail.len().checked_sub(FOOTER).map(|at| &ends.tail[at..]);
    let last = last.filter(|last| last.starts_with(MAGIC) && ends.size.is_multiple_of(FOOTER as u64));
    let last = last.ok_or("it is no vhd file: its last sector does not begin with conectix")?;
    let footer = Footer::read(last)?;
    let in_front = ends.head.starts_with(MAGIC);
    match footer.kind {
        DIFFERENCING => return Err("it has a parent: merge it first".into()),
        FIXED if in_front => return Err("its first sector says something else than its last".into()),
        FIXED if footer.size > ends.size - FOOTER as u64 => {
            return Err(format!("it describes a disk of {} bytes in a file of {}", footer.size, ends.size));
        }
        FIXED => {}
        DYNAMIC if !in_front => return Err("its first sector says something else than its last".into()),
        DYNAMIC => {
            let first = Fields(&ends.head).part(0, FOOTER as u64).ok_or("its header is cut off")?;
            if Footer::read(first)? != footer {
                return Err("its first sector says something else than its last".into());
            }
            dynamic(ends, &footer)?;
        }
        other => return Err(format!("it is a vhd of a kind that is not known here ({other})")),
    }
    Ok(footer.size)
}

#[derive(PartialEq)]
struct Footer {
    kind: u32,
    /// Of the disk, in bytes.
    size: u64,
    /// Where a dynamic disk's header lies.
    header: u64,
}

impl Footer {
    fn read(bytes: &[u8]) -> Result<Self, String> {
        let fields = Fields(bytes);
        if fields.be32(64)? != checksum(bytes, 64) {
            return Err("its footer's checksum is wrong".into());
        }
        // Cylinders, heads and sectors are the size where whoever wrote it meant so; the largest mean nothing.
        let [heads, sectors] = fields.bytes::<2>(58)?;
        let geometry = u64::from(fields.be16(56)?) * u64::from(heads) * u64::from(sectors) * 512;
        let geometry = Some(geometry).filter(|bytes| *bytes < GEOMETRY_MAX).unwrap_or_default();
        let size = sane(fields.be64(48)?.max(geometry))?;
        Ok(Self { kind: fields.be32(60)?, size, header: fields.be64(16)? })
    }
}

/// The one's complement of the sum of all bytes but the checksum's own.
fn checksum(bytes: &[u8], own: usize) -> u32 {
    let others = bytes.iter().enumerate().filter(|(at, _)| !(own..own + 4).contains(at));
    !others.fold(0u32, |sum, (_, byte)| sum.wrapping_add(u32::from(*byte)))
}

/// The header of a dynamic disk, and its table, must lie within the file and map all of the disk.
fn dynamic(ends: &Ends, footer: &Footer) -> Result<(), String> {
    let header = Fields(&ends.head).part(footer.header, 1024).filter(|h| h.starts_with(b"cxsparse"));
    let header = header.ok_or_else(|| format!("it has no header at byte {}", footer.header))?;
    let fields = Fields(header);
    if fields.be32(36)? != checksum(header, 36) {
        return Err("its header's checksum is wrong".into());
    }
    let (table, entries, block) =
        (fields.be64(16)?, u64::from(fields.be32(28)?), u64::from(fields.be32(32)?));
    if !block.is_power_of_two() || !(4096..=256 << 20).contains(&block) {
        return Err(format!("it has blocks of {block} bytes"));
    }
    if entries < footer.size.div_ceil(block) || entries > SIZE_MAX / 4096 {
        return Err(format!(
            "its table has {entries} entries, which do not fit a disk of {} bytes",
            footer.size
        ));
    }
    if table.checked_add(entries * 4).is_none_or(|end| end > ends.size) {
        return Err(format!("its table would lie at byte {table} of {}", ends.size));
    }
    Ok(())
}
