//! Owns the reading of one layer: headers and what extended headers say of the entries that follow them. Bounded; the
//! bytes of files are passed over.

use super::XATTR;
use super::table::Table;
use std::io::{self, Read, Seek, SeekFrom};
use tar::{EntryType, Header};

const BLOCK: u64 = 512;

/// What extended headers say of the entry that follows them.
#[derive(Default)]
pub(super) struct Further {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    pub(super) mtime: Option<u64>,
    pub(super) xattrs: Vec<(String, Vec<u8>)>,
}

/// Applies everything that the layer of this number holds.
pub(super) fn layer(table: &mut Table, number: usize, layer: &mut (impl Read + Seek)) -> Result<(), String> {
    let io = |error: io::Error| format!("it cannot be read: {error}");
    let length = layer.seek(SeekFrom::End(0)).map_err(io)?;
    let mut at = 0;
    let mut further = Further::default();
    loop {
        if at == length {
            // Without the two blocks of zeros at the end: some writers leave them out.
            return Ok(());
        }
        if length - at < BLOCK {
            return Err("it ends in the middle of a header".into());
        }
        layer.seek(SeekFrom::Start(at)).map_err(io)?;
        let mut block = [0; BLOCK as usize];
        layer.read_exact(&mut block).map_err(io)?;
        at += BLOCK;
        if block.iter().all(|b| *b == 0) {
            return Ok(());
        }
        let header = Header::from_byte_slice(&block);
        let sum: u32 = block[..148].iter().chain(&block[156..]).map(|b| u32::from(*b)).sum::<u32>() + 8 * 32;
        if header.cksum().ok() != Some(sum) {
            return Err(format!("at byte {}: a header whose checksum is wrong", at - BLOCK));
        }
        table.entries += 1;
        if table.entries > table.limits.entries {
            return Err(format!("more than {} entries", table.limits.entries));
        }
        let kind = header.entry_type();
        if kind.is_gnu_sparse() {
            return Err("a sparse file: layers have none".into());
        }
        let own_size = header.size().map_err(|error| format!("at byte {}: {error}", at - BLOCK))?;
        let extended = matches!(
            kind,
            EntryType::XHeader | EntryType::XGlobalHeader | EntryType::GNULongName | EntryType::GNULongLink
        );
        let size = if extended { own_size } else { further.size.unwrap_or(own_size) };
        // Links and the like carry no bytes, whatever their size says: old writers put a link's target's there.
        let bytes = if extended || kind.is_file() || kind.is_contiguous() { size } else { 0 };
        let padded = bytes.checked_next_multiple_of(BLOCK).filter(|padded| *padded <= length - at);
        // The last one's filling may be missing where the end is.
        let padded = padded.or_else(|| (bytes <= length - at).then_some(length - at));
        let Some(padded) = padded else {
            return Err(format!("an entry of {bytes} bytes, and {} are left: it is cut off", length - at));
        };
        if extended {
            if bytes > table.limits.header {
                return Err(format!(
                    "an extended header of {bytes} bytes, more than {}",
                    table.limits.header
                ));
            }
            let mut text = vec![0; bytes as usize];
            layer.read_exact(&mut text).map_err(io)?;
            match kind {
                EntryType::XHeader => extend(&mut further, &text)?,
                EntryType::GNULongName => further.path = Some(until_nul(&text)),
                EntryType::GNULongLink => further.link = Some(until_nul(&text)),
                // Of the whole archive: comments, as git writes them. Names in there would be every entry's.
                _ => {}
            }
        } else {
            table.apply(number, header, std::mem::take(&mut further), at, size)?;
        }
        at += padded;
    }
}

fn until_nul(text: &[u8]) -> Vec<u8> {
    text.split(|b| *b == 0).next().unwrap_or_default().to_vec()
}

/// `LENGTH KEY=VALUE\n`, one after the other (POSIX.1-2001, pax).
fn extend(further: &mut Further, mut text: &[u8]) -> Result<(), String> {
    while !text.is_empty() {
        let broken = || "an extended header is broken".to_owned();
        let blank = text.iter().take(20).position(|b| *b == b' ').ok_or_else(broken)?;
        let length: usize = std::str::from_utf8(&text[..blank])
            .ok()
            .and_then(|digits| digits.parse().ok())
            .ok_or_else(broken)?;
        if length <= blank + 1 || length > text.len() || text[length - 1] != b'\n' {
            return Err(broken());
        }
        let (record, rest) = (&text[blank + 1..length - 1], &text[length..]);
        text = rest;
        let split = record.iter().position(|b| *b == b'=').ok_or_else(broken)?;
        let (key, value) =
            (std::str::from_utf8(&record[..split]).map_err(|_| broken())?, &record[split + 1..]);
        let number = || {
            let digits = value.split(|b| *b == b'.').next().unwrap_or_default();
            std::str::from_utf8(digits).ok().and_then(|digits| digits.parse::<u64>().ok())
        };
        match key {
            "path" => further.path = Some(value.to_vec()),
            "linkpath" => further.link = Some(value.to_vec()),
            "size" => further.size = Some(number().ok_or_else(broken)?),
            "uid" => further.uid = Some(number().ok_or_else(broken)?),
            "gid" => further.gid = Some(number().ok_or_else(broken)?),
            // Before 1970: at its beginning.
            "mtime" => further.mtime = Some(number().unwrap_or(0)),
            key if key.starts_with("GNU.sparse.") => return Err("a sparse file: layers have none".into()),
            key => {
                if let Some(name) = key.strip_prefix(XATTR).filter(|name| is_kept(name)) {
                    further.xattrs.push((name.to_owned(), value.to_vec()));
                }
            }
        }
    }
    Ok(())
}

/// Attributes that mean the same in a guest. `trusted.` would steer its overlays, others its security modules.
fn is_kept(name: &str) -> bool {
    (name.starts_with("user.") && !name.starts_with("user.overlay.")) || name == "security.capability"
}
