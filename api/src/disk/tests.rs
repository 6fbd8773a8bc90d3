//! Hostile heads, as tables; noise, as a property.

use super::*;

/// As `qemu-img create -f qcow2` writes it, without its tables: clusters of 64 KiB, a header of 112 bytes, the names of
/// features.
fn qcow2() -> Ends {
    let mut head = vec![0; 1024];
    head[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
    head[23] = 16;
    head[24..32].copy_from_slice(&(5u64 << 30).to_be_bytes());
    head[39] = 10;
    head[40..48].copy_from_slice(&(3u64 << 16).to_be_bytes());
    head[48..56].copy_from_slice(&(1u64 << 16).to_be_bytes());
    head[103] = 112;
    head[112..120].copy_from_slice(&[0x68, 0x03, 0xf8, 0x57, 0, 0, 0, 96]);
    Ends::beginning(&head, 1 << 20)
}

const DESCRIBED: &str = "# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType=\"streamOptimized\"\n\n\
    RW 20971520 SPARSE \"disk.vmdk\"\n";

/// As `qemu-img` and VMware's tools write them; the second with its grain directory at the end.
fn vmdk(text: &str, streamed: bool) -> Ends {
    let mut head = vec![0; 512];
    head[..5].copy_from_slice(b"KDMV\x03");
    head[12..20].copy_from_slice(&20_971_520u64.to_le_bytes());
    head[20..28].copy_from_slice(&128u64.to_le_bytes());
    head[28..36].copy_from_slice(&1u64.to_le_bytes());
    head[36..44].copy_from_slice(&20u64.to_le_bytes());
    head[44..48].copy_from_slice(&512u32.to_le_bytes());
    head[56..64].copy_from_slice(&if streamed { AT_END } else { 26 }.to_le_bytes());
    head[77] = 1;
    let mut footer = head.clone();
    footer[56..64].copy_from_slice(&4096u64.to_le_bytes());
    head.extend_from_slice(text.as_bytes());
    head.resize(65_536, 0);
    let tail = [vec![0; 512], footer, vec![0; 512]].concat();
    Ends { head, tail: if streamed { tail } else { vec![0; 1536] }, size: 1 << 20 }
}
const AT_END: u64 = u64::MAX;

fn summed(bytes: &mut [u8], own: usize) {
    bytes[own..own + 4].fill(0);
    let sum = !bytes.iter().fold(0u32, |sum, byte| sum.wrapping_add(u32::from(*byte)));
    bytes[own..own + 4].copy_from_slice(&sum.to_be_bytes());
}

fn footer(kind: u8, change: &dyn Fn(&mut [u8])) -> Vec<u8> {
    let mut footer = vec![0; 512];
    footer[..8].copy_from_slice(b"conectix");
    footer[16..24].copy_from_slice(&512u64.to_be_bytes());
    footer[48..56].copy_from_slice(&(100u64 << 20).to_be_bytes());
    footer[63] = kind;
    change(&mut footer);
    summed(&mut footer, 64);
    footer
}

fn vhd(kind: u8, change: &dyn Fn(&mut [u8])) -> Ends {
    let footer = footer(kind, change);
    let mut header = vec![0; 1024];
    header[..8].copy_from_slice(b"cxsparse");
    header[16..24].copy_from_slice(&1536u64.to_be_bytes());
    header[28..32].copy_from_slice(&50u32.to_be_bytes());
    header[32..36].copy_from_slice(&(2u32 << 20).to_be_bytes());
    summed(&mut header, 36);
    let head = if kind == 2 { vec![7; 4096] } else { [footer.clone(), header].concat() };
    let size = if kind == 2 { (100 << 20) + 512 } else { 1 << 20 };
    Ends { head, tail: [vec![0; 1024], footer].concat(), size }
}

/// As `qemu-img create -f vhdx` writes it, without its checksums.
fn vhdx() -> Ends {
    let mut head = vec![0; 3 << 20];
    head[..8].copy_from_slice(b"vhdxfile");
    for (number, at) in [(1u8, 64 << 10), (2, 128 << 10)] {
        head[at..at + 4].copy_from_slice(b"head");
        head[at + 8] = number;
    }
    let regions = 192 << 10;
    head[regions..regions + 4].copy_from_slice(b"regi");
    head[regions + 8] = 1;
    let region =
        b"\x06\xa2\x7c\x8b\x90\x47\x9a\x4b\xb8\xfe\x57\x5f\x05\x0f\x88\x6e\0\0\x20\0\0\0\0\0\0\0\x10\0";
    head[regions + 16..regions + 16 + region.len()].copy_from_slice(region);
    let metadata = 2 << 20;
    head[metadata..metadata + 8].copy_from_slice(b"metadata");
    head[metadata + 10] = 2;
    for (n, (id, place)) in [
        (b"\x37\x67\xa1\xca\x36\xfa\x43\x4d\xb3\xb6\x33\xf0\xaa\x44\xe7\x6b", 0x1_0000u32),
        (b"\x24\x42\xa5\x2f\x1b\xcd\x76\x48\xb2\x11\x5d\xbe\xd8\x3b\xf4\xb8", 0x1_0008),
    ]
    .into_iter()
    .enumerate()
    {
        let at = metadata + 32 + n * 32;
        head[at..at + 16].copy_from_slice(id);
        head[at + 16..at + 20].copy_from_slice(&place.to_le_bytes());
    }
    let size = metadata + 0x1_0008;
    head[size..size + 8].copy_from_slice(&(100u64 << 20).to_le_bytes());
    Ends::beginning(&head, 8 << 20)
}

type Table<'a> = &'a [(&'a str, &'a dyn Fn(&mut Ends))];

fn refused(format: DiskFormat, good: &Ends, table: Table<'_>) {
    for (n, (why, change)) in table.iter().enumerate() {
        let mut ends = good.clone();
        change(&mut ends);
        let said = look(format, &ends);
        let said = said.expect_err(&format!("{n}: {why}"));
        assert!(said.contains(why), "{n}: wanted {why:?} in {said:?}");
        assert!(said.starts_with("it"), "{said}");
    }
}

#[test]
fn qcow2_files() {
    let taken = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut ends = qcow2();
        change(&mut ends.head);
        look(DiskFormat::Qcow2, &ends)
    };
    assert_eq!(taken(&|_| {}), Ok(5 << 30));
    assert_eq!(taken(&|h| h[79] = 0b1_1001), Ok(5 << 30), "features that QEMU knows");
    assert_eq!(
        taken(&|h| h[216..220].copy_from_slice(&[0xe2, 0x79, 0x2a, 0xca])),
        Ok(5 << 30),
        "no file's format"
    );
    assert_eq!(taken(&|h| h.truncate(216)), Ok(5 << 30), "nothing after it");
    assert_eq!(taken(&|h| (h[7], h[103], h[112]) = (2, 0, 0)), Ok(5 << 30));
    refused(
        DiskFormat::Qcow2,
        &qcow2(),
        &[
            ("no qcow2", &|e| e.head[0] = b'X'),
            ("no qcow2", &|e| e.head.clear()),
            ("version 1", &|e| e.head[7] = 1),
            ("version 9", &|e| e.head[7] = 9),
            ("backing file", &|e| e.head[15] = 112),
            ("backing file", &|e| e.head[19] = 4),
            ("2^8", &|e| e.head[23] = 8),
            ("clusters", &|e| e.head[20] = 255),
            ("0 bytes", &|e| e.head[24..32].fill(0)),
            ("at most", &|e| e.head[24..32].fill(255)),
            ("at most", &|e| e.head[24..32].copy_from_slice(&(SIZE_MAX + 512).to_be_bytes())),
            ("encrypted", &|e| e.head[35] = 2),
            ("another file", &|e| e.head[79] = 4),
            ("another file", &|e| e.head[95] = 2),
            ("corrupt", &|e| e.head[79] = 2),
            ("0x20", &|e| e.head[79] = 32),
            ("features", &|e| e.head[72] = 0x80),
            ("header of 96", &|e| e.head[103] = 96),
            ("header of 105", &|e| e.head[103] = 105),
            ("header of", &|e| e.head[100] = 0xff),
            ("first table", &|e| e.head[39] = 9),
            ("first table", &|e| e.head[36..40].fill(255)),
            ("would lie", &|e| e.head[40..48].fill(255)),
            ("reference counts", &|e| e.head[48..56].fill(0)),
            ("another file", &|e| e.head[112..116].copy_from_slice(b"DATA")),
            ("another file", &|e| e.head[216..220].copy_from_slice(b"DATA")),
            ("encrypted", &|e| e.head[216..220].copy_from_slice(&[0x05, 0x37, 0xbe, 0x77])),
            ("not known here (0x1000000)", &|e| e.head[216] = 1),
            ("extensions are cut off", &|e| e.head[116] = 0xff),
            ("extensions are cut off", &|e| e.head.truncate(214)),
            ("extensions are cut off", &|e| e.head.truncate(218)),
            // In version 2 they follow at once, whatever version 3 has there.
            ("another file", &|e| {
                e.head[7] = 2;
                e.head[72..76].copy_from_slice(b"DATA");
            }),
            ("cut off", &|e| e.head.truncate(90)),
            ("cut off", &|e| e.head.truncate(6)),
        ],
    );
}

#[test]
fn vmdk_files() {
    let texts: &[(&str, String)] = &[
        ("parent", DESCRIBED.replace("ffffffff", "12345678")),
        ("parent", DESCRIBED.replace("parentCID=", "ParentCID = ").replace("ffffffff", "12345678")),
        ("parent", format!("{DESCRIBED}parentFileNameHint=\"/etc/passwd\"\n")),
        // Behind what the header calls the descriptor, and within what QEMU reads of it.
        ("parent", format!("{DESCRIBED}{}parentfilenamehint=\"/etc/passwd\"\n", "\0".repeat(20))),
        ("several files", format!("{DESCRIBED}RW 1 SPARSE \"two.vmdk\"\n")),
        ("another file", DESCRIBED.replace("SPARSE", "FLAT")),
        ("another file", DESCRIBED.replace("RW 20971520 SPARSE", "RW 20971520 VMFS")),
        ("kind monolithicFlat", DESCRIBED.replace("streamOptimized", "monolithicFlat")),
        ("kind vmfs", DESCRIBED.replace("streamOptimized", "vmfs")),
        ("no descriptor", String::new()),
    ];
    for streamed in [false, true] {
        let good = vmdk(DESCRIBED, streamed);
        assert_eq!(look(DiskFormat::Vmdk, &good), Ok(10 << 30));
        for (why, text) in texts {
            let said = look(DiskFormat::Vmdk, &vmdk(text, streamed)).unwrap_err();
            assert!(said.contains(why), "{why}: {said}");
        }
        refused(
            DiskFormat::Vmdk,
            &good,
            &[
                ("descriptor, whose disk", &|e| e.head = DESCRIBED.as_bytes().to_vec()),
                ("COWD", &|e| e.head[..4].copy_from_slice(b"COWD")),
                ("no vmdk", &|e| e.head[0] = b'X'),
                ("version 4", &|e| e.head[4] = 4),
                // Without a size QEMU reads the descriptor and follows it; with such ones it is a bomb.
                ("0 bytes", &|e| e.head[12..20].fill(0)),
                ("at most", &|e| e.head[12..20].fill(255)),
                ("at most", &|e| e.head[12..20].copy_from_slice(&(u64::MAX >> 9).to_le_bytes())),
                ("grains of 7", &|e| e.head[20] = 7),
                ("grain tables", &|e| e.head[44..48].fill(0)),
                ("grain tables", &|e| e.head[45] = 3),
                ("compressed", &|e| e.head[77] = 9),
                ("sector 2", &|e| e.head[28] = 2),
                ("sector 0", &|e| e.head[28] = 0),
                ("descriptor is cut off", &|e| e.head[37] = 255),
                ("descriptor is cut off", &|e| e.head[36..44].fill(255)),
                ("cut off", &|e| e.head.truncate(40)),
            ],
        );
    }
    refused(
        DiskFormat::Vmdk,
        &vmdk(DESCRIBED, true),
        &[
            ("last sectors are cut off", &|e| e.tail.truncate(512)),
            ("last sectors are cut off", &|e| e.size += 1),
            ("footer is wrong", &|e| e.tail[512] = 0),
            ("footer is wrong", &|e| e.tail[524..532].fill(0)),
            ("something else", &|e| e.tail[526] ^= 1),
            ("something else", &|e| e.tail[568..576].fill(255)),
        ],
    );
}

#[test]
fn vhd_files() {
    let plain = |kind| vhd(kind, &|_| {});
    for kind in [2, 3] {
        assert_eq!(look(DiskFormat::Vhd, &plain(kind)), Ok(100 << 20));
        let geometry: &dyn Fn(&mut [u8]) = &|f| f[56..60].copy_from_slice(&[0xff, 0xff, 16, 255]);
        assert_eq!(look(DiskFormat::Vhd, &vhd(kind, geometry)), Ok(100 << 20), "the largest means nothing");
    }
    for (why, kind, change) in [
        ("parent", 4, &(|_: &mut [u8]| {}) as &dyn Fn(&mut [u8])),
        ("kind that is not known here (5)", 5, &|_| {}),
        ("0 bytes", 3, &|f| f[48..56].fill(0)),
        ("at most", 3, &|f| f[48] = 1),
        ("in a file of", 2, &|f| f[52] = 7),
        ("do not fit", 3, &|f| f[52] = 7),
        ("do not fit", 3, &|f| f[56..60].copy_from_slice(&[0xff, 0xff, 15, 255])),
        ("no header at byte", 3, &|f| f[16] = 1),
        ("no header at byte", 3, &|f| f[22] = 0),
    ] {
        let said = look(DiskFormat::Vhd, &vhd(kind, change)).unwrap_err();
        assert!(said.contains(why), "{why}: {said}");
    }
    refused(
        DiskFormat::Vhd,
        &plain(3),
        &[
            ("no vhd", &|e| e.tail[1024] = 0),
            ("no vhd", &|e| e.tail.clear()),
            ("no vhd", &|e| e.size += 1),
            ("checksum", &|e| e.tail[1024 + 50] = 1),
            // QEMU would believe the first, a reader of fixed disks the last.
            ("something else", &|e| e.tail = plain(2).tail),
            ("something else", &|e| e.head[0] = 0),
            ("something else", &|e| {
                let other = footer(3, &|f| f[53] = 1);
                e.head[..512].copy_from_slice(&other);
            }),
            ("header's checksum", &|e| e.head[512 + 30] = 1),
            ("cut off", &|e| e.head.truncate(100)),
            ("no header at byte", &|e| e.head.truncate(1000)),
            ("blocks of", &|e| {
                e.head[512 + 33] = 3;
                summed(&mut e.head[512..1536], 36);
            }),
            ("table would lie", &|e| {
                e.head[512 + 16] = 3;
                summed(&mut e.head[512..1536], 36);
            }),
        ],
    );
    refused(DiskFormat::Vhd, &plain(2), &[("something else", &|e| e.head = plain(3).head)]);
}

#[test]
fn vhdx_files() {
    assert_eq!(look(DiskFormat::Vhdx, &vhdx()), Ok(100 << 20));
    let (regions, metadata) = (192 << 10, 2 << 20);
    refused(
        DiskFormat::Vhdx,
        &vhdx(),
        &[
            ("no vhdx", &|e| e.head[0] = 0),
            ("no header", &|e| {
                e.head[64 << 10] = 0;
                e.head[128 << 10] = 0;
            }),
            ("log", &|e| e.head[(128 << 10) + 50] = 1),
            ("table of regions", &|e| e.head[regions] = 0),
            ("entries", &|e| e.head[regions + 11] = 1),
            ("no metadata", &|e| e.head[regions + 16] = 0),
            ("do not lie at its beginning", &|e| e.head[regions + 16 + 20] = 1),
            ("do not lie at its beginning", &|e| e.head[metadata] = 0),
            ("parent", &|e| e.head[metadata + 0x1_0004] = 2),
            ("parent", &|e| {
                let id = b"\x2d\x5f\xd3\xa8\x0b\xb3\x4d\x45\xab\xf7\xd3\xd8\x48\x34\xab\x0c";
                e.head[metadata + 10] = 3;
                e.head[metadata + 96..metadata + 112].copy_from_slice(id);
            }),
            ("0 bytes", &|e| e.head[metadata + 0x1_0008..metadata + 0x1_0010].fill(0)),
            ("at most", &|e| e.head[metadata + 0x1_0008..metadata + 0x1_0010].fill(255)),
            ("how large", &|e| e.head[metadata + 10] = 1),
            ("how it is laid out", &|e| e.head[metadata + 10] = 0),
            ("cut off", &|e| e.head[metadata + 32 + 16..metadata + 32 + 20].fill(255)),
            ("cut off", &|e| e.head.truncate(200 << 10)),
        ],
    );
    // The older header's log does not count.
    let mut older = vhdx();
    older.head[(64 << 10) + 50] = 1;
    assert_eq!(look(DiskFormat::Vhdx, &older), Ok(100 << 20));
}

#[test]
fn first_bytes() {
    for (ends, name) in
        [(qcow2(), "qcow2"), (vmdk(DESCRIBED, true), "vmdk"), (vhd(3, &|_| {}), "vhd"), (vhdx(), "vhdx")]
    {
        assert_eq!(sniff(&ends.head), Some(name));
    }
    assert_eq!(sniff(DESCRIBED.as_bytes()), Some("vmdk"));
    assert_eq!((sniff(b""), sniff(&[0; 4096])), (None, None));
    let bytes: Vec<u8> = (0..=255).cycle().take(5000).collect();
    let ends = Ends::read(DiskFormat::Raw, &mut std::io::Cursor::new(bytes.clone()), 100, 4000).unwrap();
    assert_eq!((ends.head, ends.tail), (bytes[100..4100].to_vec(), bytes[2564..4100].to_vec()));
}

proptest::proptest! {
    /// Whatever stands there, there is an answer, and no size beyond what is taken.
    #[test]
    fn noise(
        of in 0usize..6,
        noise in proptest::collection::vec(proptest::num::u8::ANY, 0..64),
        at in 0usize..2048,
        in_tail: bool,
        cut in 0usize..70_000,
        size: u64,
    ) {
        let (format, mut ends) = match of {
            0 => (DiskFormat::Qcow2, qcow2()),
            1 => (DiskFormat::Vmdk, vmdk(DESCRIBED, false)),
            2 => (DiskFormat::Vmdk, vmdk(DESCRIBED, true)),
            3 => (DiskFormat::Vhd, vhd(3, &|_| {})),
            4 => (DiskFormat::Vhd, vhd(2, &|_| {})),
            _ => (DiskFormat::Vhdx, vhdx()),
        };
        let part = if in_tail { &mut ends.tail } else { &mut ends.head };
        let base = if format == DiskFormat::Vhdx && at % 2 == 0 { 2 << 20 } else { 0 };
        for (n, byte) in noise.iter().enumerate() {
            if let Some(place) = part.get_mut(base + at + n) {
                *place = *byte;
            }
        }
        if cut % 7 == 0 {
            part.truncate(cut);
        }
        if cut % 3 == 0 {
            ends.size = size;
        }
        if let Ok(seen) = look(format, &ends) {
            proptest::prop_assert!((1..=SIZE_MAX).contains(&seen));
        }
        let noise = Ends { head: noise.clone(), tail: noise, size };
        for format in [DiskFormat::Qcow2, DiskFormat::Vmdk, DiskFormat::Vhd, DiskFormat::Vhdx] {
            proptest::prop_assert!(look(format, &noise).is_err());
        }
    }
}
