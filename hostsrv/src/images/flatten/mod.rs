//! Owns how the layers of a container image become one root file system: layers in as tars, one tar out. Everything
//! happens on names in a table; nothing is ever unpacked, so no name or link of a layer can reach a file of the host.
//!
//! Two passes: the first reads the headers of all layers, the lowest first, and applies what each changes (files that
//! take others' places, whiteouts, opaque directories, hard links) to the table; the second writes what is left, each
//! file's bytes read from where its layer has them. Memory follows the number of names, which is bounded.
//!
//! What layers may hold is the OCI image specification's (layer.md). Refused: names with `..`, what stands below
//! something that is no directory, sparse files, devices that an overlay would take for whiteouts, headers and counts
//! beyond [`Limits`]. Left out: extended attributes that would steer an overlay or a security module of the host's.

mod read;
mod table;
mod write;

use std::io::{self, Read, Seek, Write};
use table::Table;
use tar::EntryType;

/// The keys under which tars carry extended attributes (star's, and libarchive's in plain form).
const XATTR: &str = "SCHILY.xattr.";

/// How much of an image is taken.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Headers of all layers.
    pub entries: usize,
    /// Bytes of all names, link targets and extended attributes together.
    pub names: usize,
    /// Bytes of one extended header or long name.
    pub header: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { entries: 2_000_000, names: 512 << 20, header: 1 << 20 }
    }
}

/// Why layers make no root file system.
#[derive(Debug, thiserror::Error)]
pub enum FlattenError {
    #[error("layer {layer}: {message}")]
    Broken { layer: usize, message: String },
    #[error("the root file system cannot be written: {0}")]
    Write(io::Error),
}

/// What came out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flattened {
    pub entries: usize,
    /// Of files, each counted once.
    pub bytes: u64,
}

/// A file, directory, link or device: what several names can share.
#[derive(Clone, Debug)]
struct Node {
    kind: Kind,
    mode: u32,
    uid: u64,
    gid: u64,
    mtime: u64,
    xattrs: Vec<(String, Vec<u8>)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    Directory,
    /// Where its bytes are.
    File {
        layer: usize,
        at: u64,
        size: u64,
    },
    Link {
        target: Vec<u8>,
    },
    Device {
        kind: EntryType,
        major: u32,
        minor: u32,
    },
    Fifo,
}

/// A name's node, and the layer that it came with.
#[derive(Clone, Copy, Debug)]
struct Place {
    node: usize,
    layer: usize,
}

/// Writes one tar of all layers, the lowest first.
pub fn flatten<L: Read + Seek>(
    layers: &mut [L],
    out: impl Write,
    limits: Limits,
) -> Result<Flattened, FlattenError> {
    let mut table = Table::new(limits);
    for (number, layer) in layers.iter_mut().enumerate() {
        read::layer(&mut table, number, layer)
            .map_err(|message| FlattenError::Broken { layer: number, message })?;
    }
    write::all(&table, layers, out)
}

#[cfg(test)]
mod tests;
