//! vmdk of one file: sparse, or compressed for streaming (VMware's Virtual Disk Format 5.0; QEMU's block/vmdk.c for what is
//! really read). The header may be superseded by a footer, and the descriptor within names parents and extents, which QEMU
//! looks for right behind the header whatever the header says: so all of these are looked at.

use super::{Ends, Fields, SIZE_MAX, sane};

pub const MAGIC: &[u8] = b"KDMV";
/// An ESX host's own kind.
pub const COWD: &[u8] = b"COWD";
/// A descriptor alone: the disk lies in other files.
pub const DESCRIPTOR: &[u8] = b"# Disk DescriptorFile";

const SECTOR: u64 = 512;
/// Where the grain directory stands in a streamed file: behind all grains, and the footer tells where.
const AT_END: u64 = u64::MAX;
/// What QEMU reads as the descriptor, in bytes.
const READ: u64 = 20 * SECTOR;

const AS_ONE: &str = "export it as one file (OVA, streamOptimized)";

pub fn look(ends: &Ends) -> Result<u64, String> {
    if ends.head.starts_with(DESCRIPTOR) {
        return Err(format!("it is a vmdk descriptor, whose disk lies in other files: {AS_ONE}"));
    }
    if ends.head.starts_with(COWD) {
        return Err(format!("it is a vmdk of an ESX host's own kind (COWD): {AS_ONE}"));
    }
    let first = header(Fields(&ends.head))?;
    if first.directory == AT_END {
        // A sector that says what follows, the header anew, and the end of the stream.
        let footer = Fields(&ends.tail).part((ends.tail.len() as u64).saturating_sub(1024), SECTOR);
        let footer =
            footer.filter(|_| ends.size.is_multiple_of(SECTOR) && ends.tail.len() as u64 == 3 * SECTOR);
        let footer = footer.ok_or("its last sectors are cut off, and its grain directory lies there")?;
        let last = header(Fields(footer)).map_err(|why| format!("its footer is wrong: {why}"))?;
        if (last.capacity, last.grain) != (first.capacity, first.grain) || last.directory == AT_END {
            return Err("its footer says something else than its header".into());
        }
    }
    if first.at != 1 {
        return Err(format!("its descriptor is said to lie at sector {}, not behind the header", first.at));
    }
    let cut = || "its descriptor is cut off".to_owned();
    let length = first.length.checked_mul(SECTOR).ok_or_else(cut)?;
    let text = Fields(&ends.head).part(SECTOR, length).ok_or_else(cut)?;
    descriptor(&String::from_utf8_lossy(text))?;
    let read = &ends.head[(SECTOR as usize).min(ends.head.len())..];
    let read = &read[..read.len().min(READ as usize)];
    if read.windows(PARENT.len()).any(|at| at.eq_ignore_ascii_case(PARENT)) {
        return Err("it has a parent: flatten it first".into());
    }
    Ok(first.capacity)
}

const PARENT: &[u8] = b"parentFileNameHint";

struct Header {
    /// In bytes.
    capacity: u64,
    grain: u64,
    /// The descriptor's place and length, in sectors.
    at: u64,
    length: u64,
    directory: u64,
}

fn header(head: Fields<'_>) -> Result<Header, String> {
    if !head.0.starts_with(MAGIC) {
        return Err("it is no vmdk file: it does not begin with KDMV".into());
    }
    let version = head.le32(4)?;
    if !(1..=3).contains(&version) {
        return Err(format!("it is vmdk of version {version}; 1 to 3 are taken"));
    }
    let (capacity, grain) = (head.le64(12)?, head.le64(20)?);
    let (at, length) = (head.le64(28)?, head.le64(36)?);
    let (entries, directory, compression) = (head.le32(44)?, head.le64(56)?, head.le16(77)?);
    // Without a capacity QEMU reads the descriptor within and opens the files that it names.
    let bytes = capacity.checked_mul(SECTOR);
    let capacity = sane(bytes.unwrap_or(SIZE_MAX + 1))?;
    if !grain.is_power_of_two() || !(8..=4096).contains(&grain) {
        return Err(format!("it has grains of {grain} sectors"));
    }
    if entries == 0 || entries > 512 {
        return Err(format!("it has grain tables of {entries} entries"));
    }
    if compression > 1 {
        return Err(format!("it is compressed in a way that is not known here ({compression})"));
    }
    Ok(Header { capacity, grain, at, length, directory })
}

/// A descriptor's lines: of one file, no parent, and no more than one extent.
fn descriptor(text: &str) -> Result<(), String> {
    let text = text.trim_end_matches('\0');
    if !text.contains("# Disk DescriptorFile") {
        return Err("it has no descriptor".into());
    }
    let mut extents = 0;
    for line in text.lines().map(str::trim) {
        let (key, value) = line.split_once('=').unwrap_or((line, ""));
        let (key, value) = (key.trim(), value.trim().trim_matches('"'));
        if key.eq_ignore_ascii_case("parentCID") && !value.eq_ignore_ascii_case("ffffffff") {
            return Err("it has a parent: flatten it first".into());
        }
        if key.eq_ignore_ascii_case("createType")
            && !["monolithicSparse", "streamOptimized"].iter().any(|one| one.eq_ignore_ascii_case(value))
        {
            return Err(format!("it is a vmdk of the kind {value}: {AS_ONE}"));
        }
        if ["RW ", "RDONLY ", "NOACCESS "].iter().any(|word| line.starts_with(word)) {
            extents += 1;
            if extents > 1 {
                return Err(format!("it is split into several files: {AS_ONE}"));
            }
            if line.split_whitespace().nth(2) != Some("SPARSE") {
                return Err(format!("it keeps its data in another file: {AS_ONE}"));
            }
        }
    }
    Ok(())
}
