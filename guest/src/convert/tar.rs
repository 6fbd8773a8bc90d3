//! Writes a tar as container images have it: ustar headers, with PAX records for what does not fit in them (POSIX.1-2001)
//! and for extended attributes (star's keys). Pure.

use std::io::{self, Write};

const BLOCK: usize = 512;
/// What eleven octal digits hold.
const OCTAL_MAX: u64 = 0o777_7777_7777;

/// A name of the tree.
pub struct Entry<'a> {
    /// Relative, without a slash at its end.
    pub path: &'a [u8],
    pub kind: Kind<'a>,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: i64,
    pub xattrs: &'a [(Vec<u8>, Vec<u8>)],
}

#[derive(Clone, Copy)]
pub enum Kind<'a> {
    File(u64),
    Directory,
    Symlink(&'a [u8]),
    HardLink(&'a [u8]),
    Fifo,
}

/// `LENGTH KEY=VALUE\n`, where the length counts itself.
fn record(into: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    into.extend_from_slice(format!("{length} ").as_bytes());
    into.extend_from_slice(key);
    into.push(b'=');
    into.extend_from_slice(value);
    into.push(b'\n');
}

fn octal(field: &mut [u8], number: u64) {
    let digits = field.len() - 1;
    field[..digits].copy_from_slice(format!("{number:0digits$o}").as_bytes());
    field[digits] = 0;
}

fn header(
    name: &[u8],
    kind: u8,
    mode: u32,
    ids: (u32, u32),
    size: u64,
    mtime: u64,
    link: &[u8],
) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    block[..name.len().min(100)].copy_from_slice(&name[..name.len().min(100)]);
    octal(&mut block[100..108], u64::from(mode & 0o7777));
    // What is larger stands in a record.
    octal(&mut block[108..116], u64::from(ids.0).min(0o777_7777));
    octal(&mut block[116..124], u64::from(ids.1).min(0o777_7777));
    octal(&mut block[124..136], size.min(OCTAL_MAX));
    octal(&mut block[136..148], mtime.min(OCTAL_MAX));
    block[156] = kind;
    block[157..157 + link.len().min(100)].copy_from_slice(&link[..link.len().min(100)]);
    block[257..263].copy_from_slice(b"ustar\0");
    block[263..265].copy_from_slice(b"00");
    block[148..156].fill(b' ');
    let sum: u64 = block.iter().map(|b| u64::from(*b)).sum();
    octal(&mut block[148..155], sum);
    block
}

/// An entry's headers; a file's bytes follow, then [`padding`].
pub fn begin(out: &mut impl Write, entry: &Entry) -> io::Result<()> {
    let (kind, size, link): (u8, u64, &[u8]) = match entry.kind {
        Kind::File(size) => (b'0', size, b""),
        Kind::HardLink(to) => (b'1', 0, to),
        Kind::Symlink(to) => (b'2', 0, to),
        Kind::Directory => (b'5', 0, b""),
        Kind::Fifo => (b'6', 0, b""),
    };
    let mut path = entry.path.to_vec();
    if kind == b'5' {
        path.push(b'/');
    }
    let mut records = Vec::new();
    // At most 99, so that a NUL ends it for whoever wants one.
    if path.len() > 99 || !path.is_ascii() {
        record(&mut records, b"path", &path);
    }
    if link.len() > 99 || !link.is_ascii() {
        record(&mut records, b"linkpath", link);
    }
    if size > OCTAL_MAX {
        record(&mut records, b"size", size.to_string().as_bytes());
    }
    for (key, id) in [(&b"uid"[..], entry.uid), (b"gid", entry.gid)] {
        if id > 0o777_7777 {
            record(&mut records, key, id.to_string().as_bytes());
        }
    }
    for (name, value) in entry.xattrs {
        record(&mut records, &[b"SCHILY.xattr.", name.as_slice()].concat(), value);
    }
    if !records.is_empty() {
        let length = records.len() as u64;
        out.write_all(&header(b"././@PaxHeader", b'x', 0o644, (0, 0), length, 0, b""))?;
        out.write_all(&records)?;
        padding(out, length)?;
    }
    // Before 1970: at its beginning.
    let mtime = u64::try_from(entry.mtime).unwrap_or(0);
    out.write_all(&header(&path, kind, entry.mode, (entry.uid, entry.gid), size, mtime, link))
}

/// Fills up the last block of `size` bytes.
pub fn padding(out: &mut impl Write, size: u64) -> io::Result<()> {
    let over = (size % BLOCK as u64) as usize;
    if over == 0 { Ok(()) } else { out.write_all(&[0; BLOCK][over..]) }
}

/// The archive's end.
pub fn end(out: &mut impl Write) -> io::Result<()> {
    out.write_all(&[0; 2 * BLOCK])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry<'a>(path: &'a [u8], kind: Kind<'a>, xattrs: &'a [(Vec<u8>, Vec<u8>)]) -> Entry<'a> {
        Entry { path, kind, mode: 0o104755, uid: 5, gid: 3_000_000_000, mtime: -1, xattrs }
    }

    /// As GNU tar and Python's tarfile read it: offsets of POSIX.1-1988, and records of POSIX.1-2001.
    #[test]
    fn headers_and_records() {
        let mut out = Vec::new();
        let xattrs = [(b"security.capability".to_vec(), vec![1, 0, 0, 2, b'\n', 0])];
        begin(&mut out, &entry(b"bin/ping", Kind::File(3), &xattrs)).unwrap();
        out.extend_from_slice(b"abc");
        padding(&mut out, 3).unwrap();
        end(&mut out).unwrap();
        assert_eq!(out.len(), 512 * 6);
        assert_eq!((&out[..14], out[156]), (&b"././@PaxHeader"[..], b'x'));
        let records = b"18 gid=3000000000\n43 SCHILY.xattr.security.capability=\x01\0\0\x02\n\0\n";
        assert_eq!(&out[512..512 + records.len()], records);
        let file = &out[1024..];
        assert_eq!(&file[..9], b"bin/ping\0");
        assert_eq!(&file[100..108], b"0004755\0");
        assert_eq!(&file[108..116], b"0000005\0");
        assert_eq!(&file[124..136], b"00000000003\0");
        assert_eq!(&file[136..148], b"00000000000\0");
        assert_eq!(&file[257..265], b"ustar\x0000");
        let sum: u32 = file[..148].iter().chain(&file[156..512]).map(|b| u32::from(*b)).sum::<u32>() + 256;
        assert_eq!(&file[148..156], format!("{sum:06o}\0 ").as_bytes());
        assert_eq!(&file[512..515], b"abc");
    }

    #[test]
    fn long_names_and_a_length_that_counts_itself() {
        for name in [1, 80, 81, 90, 99, 100, 985, 986, 987, 990, 4000] {
            let path = vec![b'x'; name];
            let mut out = Vec::new();
            begin(&mut out, &entry(&path, Kind::Symlink(&path), &[])).unwrap();
            let mut rest = &out[512..];
            if out[156] != b'x' {
                panic!("there is always a record of the group");
            }
            let mut keys = Vec::new();
            while rest[0] != 0 {
                let text: String = rest.iter().take_while(|b| **b != b' ').map(|b| char::from(*b)).collect();
                let length: usize = text.parse().unwrap();
                assert_eq!(rest[length - 1], b'\n', "{name}");
                keys.push(String::from_utf8_lossy(&rest[text.len() + 1..text.len() + 4]).into_owned());
                rest = &rest[length..];
            }
            let want: &[&str] = if name > 99 { &["pat", "lin", "gid"] } else { &["gid"] };
            assert_eq!(keys, want, "{name}");
        }
    }
}
