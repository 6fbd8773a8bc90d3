//! What a disk's first bytes say, before any of it is believed: formats by their magic, other files that they point at,
//! sizes that cannot be. Pure. Formats: docs/interop/qcow2.txt of QEMU; VMware's Virtual Disk Format 5.0.

/// Largest disk that is taken, in bytes: a volume's 64 TiB.
pub const DISK_MAX: u64 = amphi_api::validate::VOLUME_GIB_MAX << 30;
/// qcow2's incompatible features that are understood: dirty, corrupt is not, external data is not, zstd, subclusters.
const QCOW2_KNOWN: u64 = 0b1_1001;
const SECTOR: u64 = 512;

const QCOW2: &[u8] = b"QFI\xfb";
const VMDK: &[u8] = b"KDMV";
const COWD: &[u8] = b"COWD";

fn u16_le(head: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(head.get(at..at + 2)?.try_into().ok()?))
}

fn u32_be(head: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(head.get(at..at + 4)?.try_into().ok()?))
}

fn u32_le(head: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(head.get(at..at + 4)?.try_into().ok()?))
}

fn u64_be(head: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(head.get(at..at + 8)?.try_into().ok()?))
}

fn u64_le(head: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(head.get(at..at + 8)?.try_into().ok()?))
}

/// The format that the first bytes tell; none: they tell nothing.
pub fn sniff(head: &[u8]) -> Option<&'static str> {
    if head.starts_with(QCOW2) {
        return Some("qcow2");
    }
    if head.starts_with(VMDK) || head.starts_with(COWD) || head.starts_with(b"# Disk DescriptorFile") {
        return Some("vmdk");
    }
    if head.starts_with(b"vhdxfile") {
        return Some("vhdx");
    }
    if head.starts_with(b"conectix") {
        return Some("vhd");
    }
    // VirtualBox: the signature stands behind 64 bytes of text.
    (head.get(64..68) == Some(&[0x7f, 0x10, 0xda, 0xbe])).then_some("vdi")
}

/// Whether bytes that begin so may be taken as a disk of this format. Errors say what is wrong.
pub fn check(format: &str, head: &[u8]) -> Result<(), String> {
    match format {
        "qcow2" => qcow2(head).map(drop),
        "vmdk" => vmdk(head).map(drop),
        // Anything may stand in a raw disk, but what looks like another format would be taken for it by somebody.
        "raw" => match sniff(head) {
            Some(other) if other != "vhd" => Err(format!("is said to be raw, and begins as {other} does")),
            _ => Ok(()),
        },
        _ => Ok(()),
    }
}

/// The size of the disk, in bytes. Refuses what leads out of the file.
pub fn qcow2(head: &[u8]) -> Result<u64, String> {
    if !head.starts_with(QCOW2) {
        return Err("is no qcow2 file".to_owned());
    }
    let short = || "is cut off within its header".to_owned();
    let version = u32_be(head, 4).ok_or_else(short)?;
    if !matches!(version, 2 | 3) {
        return Err(format!("is qcow2 of version {version}; 2 and 3 are known"));
    }
    if u64_be(head, 8).ok_or_else(short)? != 0 {
        return Err(
            "has a backing file: flatten it first, qemu-img convert -f qcow2 -O qcow2 OLD NEW".to_owned()
        );
    }
    if u32_be(head, 32).ok_or_else(short)? != 0 {
        return Err("is encrypted".to_owned());
    }
    if version == 3 {
        let features = u64_be(head, 72).ok_or_else(short)?;
        if features & 0b100 != 0 {
            return Err("keeps its data in another file".to_owned());
        }
        if features & !QCOW2_KNOWN != 0 {
            return Err(format!("has features that are not known or says that it is corrupt: {features:#x}"));
        }
    }
    let size = u64_be(head, 24).ok_or_else(short)?;
    if size > DISK_MAX {
        return Err(format!("says that its disk has {size} bytes; at most {DISK_MAX}"));
    }
    Ok(size)
}

/// The same of a vmdk of one file: sparse, or compressed for streaming.
pub fn vmdk(head: &[u8]) -> Result<u64, String> {
    if head.starts_with(b"# Disk DescriptorFile") {
        return Err("is a vmdk descriptor: the disk lies in other files. Export it as one file (OVA, streamOptimized)".into());
    }
    if head.starts_with(COWD) {
        return Err(
            "is a vmdk of an ESX host's own kind (COWD): export it as one file (OVA, streamOptimized)".into(),
        );
    }
    if !head.starts_with(VMDK) {
        return Err("is no vmdk file".to_owned());
    }
    let short = || "is cut off within its header".to_owned();
    let version = u32_le(head, 4).ok_or_else(short)?;
    if !(1..=3).contains(&version) {
        return Err(format!("is vmdk of version {version}; 1 to 3 are known"));
    }
    let capacity = u64_le(head, 12).ok_or_else(short)?;
    let grain = u64_le(head, 20).ok_or_else(short)?;
    let (at, length) = (u64_le(head, 28).ok_or_else(short)?, u64_le(head, 36).ok_or_else(short)?);
    let per_table = u32_le(head, 44).ok_or_else(short)?;
    let compression = u16_le(head, 77).ok_or_else(short)?;
    // Without a capacity QEMU reads the descriptor within and opens the files that it names.
    if capacity == 0 {
        return Err("says that its disk is empty".to_owned());
    }
    let size = capacity.checked_mul(SECTOR).filter(|size| *size <= DISK_MAX);
    let size = size
        .ok_or_else(|| format!("says that its disk has {capacity} sectors; at most {}", DISK_MAX / SECTOR))?;
    if !grain.is_power_of_two() || !(8..=4096).contains(&grain) {
        return Err(format!("has grains of {grain} sectors"));
    }
    if per_table == 0 || per_table > 4096 {
        return Err(format!("has grain tables of {per_table} entries"));
    }
    if compression > 1 {
        return Err(format!("is compressed in a way that is not known: {compression}"));
    }
    // Where the descriptor is within the bytes at hand, its words are looked at.
    let end = at.checked_add(length).and_then(|end| end.checked_mul(SECTOR));
    let text = at.checked_mul(SECTOR).zip(end).and_then(|(from, to)| {
        head.get(usize::try_from(from).ok()?..usize::try_from(to).ok()?.min(head.len()))
    });
    if at != 0 {
        descriptor(&String::from_utf8_lossy(text.unwrap_or_default()))?;
    }
    Ok(size)
}

/// A descriptor's lines: no parent, and no more than one extent.
fn descriptor(text: &str) -> Result<(), String> {
    let mut extents = 0;
    for line in text.trim_end_matches('\0').lines().map(str::trim) {
        if let Some(parent) = line.strip_prefix("parentCID=")
            && !parent.eq_ignore_ascii_case("ffffffff")
        {
            return Err("has a parent: flatten it first".to_owned());
        }
        if line.starts_with("parentFileNameHint") {
            return Err("has a parent: flatten it first".to_owned());
        }
        if ["RW ", "RDONLY ", "NOACCESS "].iter().any(|word| line.starts_with(word)) {
            extents += 1;
            if extents > 1 {
                return Err("is split into several files: export it as one".to_owned());
            }
            if line.split_whitespace().nth(2) != Some("SPARSE") {
                return Err("keeps its data in another file".to_owned());
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn qcow2_head(change: impl Fn(&mut [u8])) -> Vec<u8> {
        let mut head = vec![0; 112];
        head[..4].copy_from_slice(QCOW2);
        head[7] = 3;
        head[24..32].copy_from_slice(&(10u64 << 30).to_be_bytes());
        change(&mut head);
        head
    }

    pub fn vmdk_head(capacity: u64, descriptor: &str) -> Vec<u8> {
        let mut head = vec![0; 512];
        head[..4].copy_from_slice(VMDK);
        head[4] = 3;
        head[12..20].copy_from_slice(&capacity.to_le_bytes());
        head[20..28].copy_from_slice(&128u64.to_le_bytes());
        head[28..36].copy_from_slice(&1u64.to_le_bytes());
        head[36..44].copy_from_slice(&4u64.to_le_bytes());
        head[44..48].copy_from_slice(&512u32.to_le_bytes());
        head[77] = 1;
        head.extend_from_slice(descriptor.as_bytes());
        head.resize(4096, 0);
        head
    }

    const GOOD: &str = "# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType=\"streamOptimized\"\n\nRW 20971520 SPARSE \"disk.vmdk\"\n";

    #[test]
    fn qcow2_files() {
        assert_eq!(qcow2(&qcow2_head(|_| ())), Ok(10 << 30));
        let table: [(&str, &dyn Fn(&mut [u8])); 7] = [
            ("backing file", &|h| h[15] = 200),
            ("another file", &|h| h[79] = 4),
            ("corrupt", &|h| h[79] = 2),
            ("encrypted", &|h| h[35] = 1),
            ("version 9", &|h| h[7] = 9),
            ("at most", &|h| h[24] = 0x7f),
            ("no qcow2", &|h| h[0] = b'X'),
        ];
        for (why, change) in table {
            let said = qcow2(&qcow2_head(change)).unwrap_err();
            assert!(said.contains(why), "{why}: {said}");
        }
        assert!(qcow2(&qcow2_head(|_| ())[..30]).unwrap_err().contains("cut off"));
    }

    #[test]
    fn vmdk_files() {
        assert_eq!(vmdk(&vmdk_head(20_971_520, GOOD)), Ok(10 << 30));
        // A bomb: a few kilobytes that say they are eight exabytes.
        assert!(vmdk(&vmdk_head(u64::MAX >> 9, GOOD)).unwrap_err().contains("at most"));
        assert!(vmdk(&vmdk_head(u64::MAX, GOOD)).unwrap_err().contains("at most"));
        assert!(vmdk(&vmdk_head(0, GOOD)).unwrap_err().contains("empty"));
        let table = [
            ("parent", GOOD.replace("ffffffff", "12345678")),
            ("parent", format!("{GOOD}parentFileNameHint=\"/etc/passwd\"\n")),
            ("several files", format!("{GOOD}RW 1 SPARSE \"two.vmdk\"\n")),
            ("another file", GOOD.replace("SPARSE", "FLAT")),
        ];
        for (why, text) in table {
            let said = vmdk(&vmdk_head(20_971_520, &text)).unwrap_err();
            assert!(said.contains(why), "{why}: {said}");
        }
        assert!(vmdk(GOOD.as_bytes()).unwrap_err().contains("descriptor"));
        assert!(vmdk(&vmdk_head(1 << 20, GOOD)[..40]).unwrap_err().contains("cut off"));
    }

    #[test]
    fn whatever_stands_there_is_an_answer() {
        // A generator of one line, so that every run tries the same: Knuth's MMIX.
        let mut seed: u64 = 7;
        let mut next = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            usize::try_from(seed >> 33).unwrap_or_default()
        };
        for round in 0..20_000 {
            let mut head = if round % 2 == 0 { qcow2_head(|_| ()) } else { vmdk_head(1 << 20, GOOD) };
            for _ in 0..next() % 12 {
                let at = next() % head.len();
                head[at] = u8::try_from(next() % 256).unwrap_or_default();
            }
            head.truncate(next() % (head.len() + 1));
            for format in ["qcow2", "vmdk", "raw"] {
                let _ = check(format, &head);
            }
            for size in [qcow2(&head), vmdk(&head)].into_iter().flatten() {
                assert!(size <= DISK_MAX);
            }
        }
    }

    #[test]
    fn raw_is_not_what_looks_otherwise() {
        assert_eq!(check("raw", &[0; 4096]), Ok(()));
        assert!(check("raw", &qcow2_head(|_| ())).unwrap_err().contains("begins as qcow2"));
        assert_eq!(sniff(&vmdk_head(8, GOOD)), Some("vmdk"));
        assert_eq!(sniff(b"vhdxfile...."), Some("vhdx"));
        assert_eq!(sniff(b""), None);
    }
}
