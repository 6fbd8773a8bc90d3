//! Owns the writing of what is left: one tar, in order, with names of any length and extended attributes.

use super::table::Table;
use super::{FlattenError, Flattened, Kind, Node, XATTR};
use std::collections::BTreeMap;
use std::io::{self, Read, Seek, SeekFrom, Write};
use tar::{EntryType, Header};

/// All that is left, directories before what is in them, files shared by names once.
pub(super) fn all<L: Read + Seek>(
    table: &Table,
    layers: &mut [L],
    out: impl Write,
) -> Result<Flattened, FlattenError> {
    let failed = FlattenError::Write;
    let mut tar = tar::Builder::new(out);
    let mut done = Flattened::default();
    // By node: the name under which it was written.
    let mut written: BTreeMap<usize, &[u8]> = BTreeMap::new();
    let root = Node { kind: Kind::Directory, mode: 0o755, uid: 0, gid: 0, mtime: 0, xattrs: Vec::new() };
    let first = table.node(&[]).unwrap_or(&root);
    entry(&mut tar, b"./", first, &[], io::empty()).map_err(failed)?;
    for (name, place) in table.names.iter().filter(|(name, _)| !name.is_empty()) {
        let node = &table.nodes[place.node];
        done.entries += 1;
        if let Some(other) = written.get(&place.node) {
            let mut header = header_of(node, EntryType::Link, 0);
            long(&mut tar, &mut header, name, other)
                .and_then(|()| tar.append(&header, io::empty()))
                .map_err(failed)?;
            continue;
        }
        if !matches!(node.kind, Kind::Directory) {
            written.insert(place.node, name);
        }
        match &node.kind {
            Kind::File { layer, at, size } => {
                let broken = |error: io::Error| FlattenError::Broken {
                    layer: *layer,
                    message: format!("'{}' cannot be read: {error}", String::from_utf8_lossy(name)),
                };
                let source = &mut layers[*layer];
                source.seek(SeekFrom::Start(*at)).map_err(broken)?;
                done.bytes += size;
                entry(&mut tar, name, node, &[], source.by_ref().take(*size)).map_err(failed)?;
            }
            Kind::Link { target } => entry(&mut tar, name, node, target, io::empty()).map_err(failed)?,
            _ => entry(&mut tar, name, node, &[], io::empty()).map_err(failed)?,
        }
    }
    tar.into_inner().and_then(|mut out| out.flush()).map_err(failed)?;
    Ok(done)
}

fn header_of(node: &Node, kind: EntryType, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(node.mode);
    header.set_uid(node.uid);
    header.set_gid(node.gid);
    header.set_mtime(node.mtime);
    header.set_size(size);
    header
}

fn entry(
    tar: &mut tar::Builder<impl Write>,
    name: &[u8],
    node: &Node,
    target: &[u8],
    data: impl Read,
) -> io::Result<()> {
    let (kind, size) = match &node.kind {
        Kind::Directory => (EntryType::Directory, 0),
        Kind::File { size, .. } => (EntryType::Regular, *size),
        Kind::Link { .. } => (EntryType::Symlink, 0),
        Kind::Device { kind, .. } => (*kind, 0),
        Kind::Fifo => (EntryType::Fifo, 0),
    };
    let mut header = header_of(node, kind, size);
    if let Kind::Device { major, minor, .. } = node.kind {
        header.set_device_major(major)?;
        header.set_device_minor(minor)?;
    }
    if !node.xattrs.is_empty() {
        let keys: Vec<String> = node.xattrs.iter().map(|(key, _)| format!("{XATTR}{key}")).collect();
        let values = node.xattrs.iter().map(|(_, value)| value.as_slice());
        tar.append_pax_extensions(keys.iter().map(String::as_str).zip(values))?;
    }
    long(tar, &mut header, name, target)?;
    tar.append(&header, data)
}

/// Names into the header, or before it where they are too long for it: GNU's way.
fn long(
    tar: &mut tar::Builder<impl Write>,
    header: &mut Header,
    name: &[u8],
    target: &[u8],
) -> io::Result<()> {
    for (kind, text, room) in [(EntryType::GNULongLink, target, 100), (EntryType::GNULongName, name, 100)] {
        if text.len() < room {
            continue;
        }
        let mut before = Header::new_gnu();
        before.set_entry_type(kind);
        before.as_mut_bytes()[..13].copy_from_slice(b"././@LongLink");
        before.set_size(text.len() as u64 + 1);
        before.set_cksum();
        tar.append(&before, [text, b"\0"].concat().as_slice())?;
    }
    let bytes = header.as_mut_bytes();
    let short = |text: &[u8]| text.len().min(99);
    bytes[..short(name)].copy_from_slice(&name[..short(name)]);
    bytes[157..157 + short(target)].copy_from_slice(&target[..short(target)]);
    header.set_cksum();
    Ok(())
}
