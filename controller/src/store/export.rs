//! The export: the whole store as JSON lines beside the database, from which a database that is broken is made again.
//! Owns the format; refuses an export that was cut short.

use super::Entry;
use super::disk::{Contents, Kept};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Error, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::Duration;

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Lease {
        id: u64,
        ttl_ms: u64,
    },
    Entry {
        key: String,
        value: serde_json::Value,
        version: u64,
        modified: u64,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        lease: Option<u64>,
    },
    /// The last line: an export without it was cut short.
    Revision(u64),
}

/// Replaces the last export as a whole; durable when this returns.
pub fn write(path: &Path, contents: &Contents) -> std::io::Result<()> {
    let next = path.with_extension("next");
    let mut out = BufWriter::new(File::create(&next)?);
    let mut line = |line: &Line| -> std::io::Result<()> {
        serde_json::to_writer(&mut out, line)?;
        out.write_all(b"\n")
    };
    for (id, ttl) in &contents.leases {
        line(&Line::Lease { id: *id, ttl_ms: ttl.as_millis() as u64 })?;
    }
    for (key, kept) in &contents.entries {
        let Entry { key, value, version, modified } = kept.entry(key);
        let lease = contents.leased.get(&key).copied();
        line(&Line::Entry { key, value, version, modified, lease })?;
    }
    line(&Line::Revision(contents.revision))?;
    out.into_inner().map_err(|e| e.into_error())?.sync_all()?;
    std::fs::rename(&next, path)?;
    path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
}

/// Reads an export that was written whole.
pub fn read(path: &Path) -> std::io::Result<Contents> {
    let mut contents = Contents::default();
    for line in BufReader::new(File::open(path)?).lines() {
        match serde_json::from_str(&line?)? {
            Line::Lease { id, ttl_ms } => {
                contents.leases.insert(id, Duration::from_millis(ttl_ms));
            }
            Line::Entry { key, value, version, modified, lease } => {
                contents.leased.extend(lease.map(|lease| (key.clone(), lease)));
                let kept = Kept::of(&Entry { key: key.clone(), value, version, modified });
                contents.entries.insert(key, kept);
            }
            Line::Revision(revision) => {
                contents.revision = revision;
                return Ok(contents);
            }
        }
    }
    Err(Error::new(ErrorKind::UnexpectedEof, "the export has no end"))
}

/// The revision of an export, from its last line.
pub fn revision(path: &Path) -> std::io::Result<u64> {
    let mut file = File::open(path)?;
    let from = file.metadata()?.len().saturating_sub(64);
    file.seek(SeekFrom::Start(from))?;
    let mut tail = Vec::new();
    file.read_to_end(&mut tail)?;
    let last = tail.trim_ascii_end().rsplit(|byte| *byte == b'\n').next().unwrap_or_default();
    match serde_json::from_slice(last)? {
        Line::Revision(revision) => Ok(revision),
        _ => Err(Error::new(ErrorKind::UnexpectedEof, "the export has no end")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_written_is_read_and_a_cut_one_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("export.jsonl");
        let entry = |key: &str| {
            Kept::of(&Entry { key: key.into(), value: json!({"a": "ü\n"}), version: 3, modified: 7 })
        };
        let contents = Contents {
            entries: ["/a", "/b"].map(|key| (key.to_owned(), entry(key))).into(),
            revision: 9,
            leases: [(5, Duration::from_secs(2))].into(),
            leased: [("/b".to_owned(), 5)].into(),
        };
        write(&path, &contents).unwrap();
        assert_eq!(read(&path).unwrap(), contents);
        assert_eq!(revision(&path).unwrap(), 9);
        let text = std::fs::read_to_string(&path).unwrap();
        let cut = text.rsplit_once("{\"revision").unwrap().0;
        std::fs::write(&path, cut).unwrap();
        assert_eq!(read(&path).unwrap_err().kind(), ErrorKind::UnexpectedEof);
        assert!(revision(&path).is_err());
    }
}
