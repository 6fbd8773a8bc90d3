//! What a device's first bytes are: file systems by their magic numbers, with the names that an fstab may call them by, and
//! things that are no file system. Pure; whether it is whole, the kernel of this machine finds out.

/// So much of a device is looked at, in bytes.
pub const HEAD: usize = 128 << 10;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    Files {
        kind: &'static str,
        uuid: String,
        label: String,
    },
    /// A physical volume of LVM.
    Lvm,
    Swap,
    /// It cannot be read here; why.
    Closed(&'static str),
}

fn at(head: &[u8], from: usize, len: usize) -> &[u8] {
    head.get(from..from.saturating_add(len)).unwrap_or_default()
}

fn uuid(bytes: &[u8]) -> String {
    let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    match hex.len() {
        32 => [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-"),
        _ => String::new(),
    }
}

fn label(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.split(|b| *b == 0).next().unwrap_or_default()).trim_end().to_owned()
}

/// None: nothing that is known.
pub fn content(head: &[u8]) -> Option<Content> {
    let files = |kind, id: &[u8], name: &[u8]| Content::Files { kind, uuid: uuid(id), label: label(name) };
    if (0..4).any(|sector| at(head, sector * 512, 8) == b"LABELONE") {
        return Some(Content::Lvm);
    }
    if head.starts_with(b"LUKS\xba\xbe") {
        return Some(Content::Closed("it is encrypted"));
    }
    // Linux's software RAID: version 1.1 at the beginning, 1.2 after 4 KiB.
    if [0, 4096].iter().any(|from| at(head, *from, 4) == [0xfc, 0x4e, 0x2b, 0xa9]) {
        return Some(Content::Closed("it is a part of a software RAID"));
    }
    if head.starts_with(b"XFSB") {
        return Some(files("xfs", at(head, 32, 16), at(head, 108, 12)));
    }
    if at(head, 0x10040, 8) == b"_BHRfS_M" {
        return Some(files("btrfs", at(head, 0x10020, 16), at(head, 0x1012b, 256)));
    }
    if at(head, 1024 + 0x38, 2) == [0x53, 0xef] {
        return Some(files("ext4", at(head, 1024 + 0x68, 16), at(head, 1024 + 0x78, 16)));
    }
    if head.starts_with(b"hsqs") {
        return Some(files("squashfs", b"", b""));
    }
    if at(head, 4086, 10) == b"SWAPSPACE2" {
        return Some(Content::Swap);
    }
    let fat = at(head, 510, 2) == [0x55, 0xaa] && (at(head, 82, 5) == b"FAT32" || at(head, 54, 3) == b"FAT");
    if fat {
        let serial = if at(head, 82, 5) == b"FAT32" { at(head, 67, 4) } else { at(head, 39, 4) };
        let uuid = match serial {
            [a, b, c, d] => format!("{d:02X}{c:02X}-{b:02X}{a:02X}"),
            _ => String::new(),
        };
        return Some(Content::Files { kind: "vfat", uuid, label: String::new() });
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(parts: &[(usize, &[u8])]) -> Vec<u8> {
        let mut head = vec![0; HEAD];
        for (from, bytes) in parts {
            head[*from..from + bytes.len()].copy_from_slice(bytes);
        }
        head
    }

    #[test]
    fn contents() {
        let id: Vec<u8> = (0..16).collect();
        let uuid = "00010203-0405-0607-0809-0a0b0c0d0e0f".to_owned();
        let files =
            |kind, label: &str| Some(Content::Files { kind, uuid: uuid.clone(), label: label.to_owned() });
        for (parts, want) in [
            (vec![(1080, &[0x53, 0xef][..]), (1128, &id), (1144, b"root")], files("ext4", "root")),
            (vec![(0, b"XFSB"), (32, &id), (108, b"data")], files("xfs", "data")),
            (vec![(0x10040, b"_BHRfS_M"), (0x10020, &id), (0x1012b, b"b")], files("btrfs", "b")),
            (vec![(512, b"LABELONE")], Some(Content::Lvm)),
            (vec![(4086, b"SWAPSPACE2")], Some(Content::Swap)),
            (vec![(0, b"LUKS\xba\xbe")], Some(Content::Closed("it is encrypted"))),
            (
                vec![(4096, &[0xfc, 0x4e, 0x2b, 0xa9])],
                Some(Content::Closed("it is a part of a software RAID")),
            ),
            (vec![(510, &[0x55, 0xaa])], None),
            (vec![], None),
        ] {
            assert_eq!(content(&head(&parts)), want);
        }
    }

    #[test]
    fn short_ones_are_nothing() {
        let whole = head(&[(1080, &[0x53, 0xef][..])]);
        for length in [0, 1, 511, 1080, 1081] {
            assert_eq!(content(&whole[..length]), None, "{length}");
        }
        assert!(content(&whole[..1082]).is_some(), "its names may be cut off");
    }
}
