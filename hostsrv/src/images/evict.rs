//! Owns what leaves the image cache: a pure choice among the blobs, and the sweep that carries it out. A blob's
//! modification time says when it was last asked for.

use super::{PART, is_digest};
use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

/// A part this old belongs to nobody: streams that stand still are given up long before.
const PART_AGE: Duration = Duration::from_secs(3600);

/// A blob that was taken out of the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evicted {
    pub sha256: String,
    /// In bytes.
    pub size: u64,
}

/// A blob in the cache.
#[derive(Clone, Debug)]
struct Entry {
    sha256: String,
    size: u64,
    used: SystemTime,
}

/// The longest unused first, never one that is in use, and no more than it takes.
fn choose(mut entries: Vec<Entry>, in_use: &BTreeSet<String>, max_bytes: u64) -> Vec<Entry> {
    let mut total: u64 = entries.iter().map(|entry| entry.size).sum();
    entries.retain(|entry| !in_use.contains(&entry.sha256));
    entries.sort_by(|a, b| (a.used, &a.sha256).cmp(&(b.used, &b.sha256)));
    let mut chosen = Vec::new();
    for entry in entries {
        if total <= max_bytes {
            break;
        }
        total -= entry.size;
        chosen.push(entry);
    }
    chosen
}

/// Marks a blob as used now. Where the file system refuses, it is only evicted sooner.
pub(super) fn touch(path: &Path) {
    let touched = std::fs::File::open(path).and_then(|file| file.set_modified(SystemTime::now()));
    if let Err(error) = touched {
        tracing::debug!("{}: {error}", path.display());
    }
}

pub(super) fn sweep(folder: &Path, in_use: &BTreeSet<String>, max_bytes: u64) -> io::Result<Vec<Evicted>> {
    let listing = match std::fs::read_dir(folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        listing => listing?,
    };
    let mut entries = Vec::new();
    for item in listing {
        let item = item?;
        let (Ok(name), Ok(facts)) = (item.file_name().into_string(), item.metadata()) else { continue };
        let used = facts.modified()?;
        if name.ends_with(PART) && used.elapsed().is_ok_and(|age| age > PART_AGE) {
            std::fs::remove_file(item.path())?;
        } else if is_digest(&name) {
            entries.push(Entry { sha256: name, size: facts.len(), used });
        }
    }
    let mut evicted = Vec::new();
    for entry in choose(entries, in_use, max_bytes) {
        std::fs::remove_file(folder.join(&entry.sha256))?;
        evicted.push(Evicted { sha256: entry.sha256, size: entry.size });
    }
    Ok(evicted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices() {
        let entry = |name: &str, size, age: u64| Entry {
            sha256: name.into(),
            size,
            used: SystemTime::UNIX_EPOCH + Duration::from_secs(1000 - age),
        };
        let entries = || vec![entry("new", 10, 1), entry("old", 10, 9), entry("oldest", 30, 99)];
        let used = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<BTreeSet<_>>();
        for (in_use, max, expected) in [
            (used(&[]), 50, vec![]),
            (used(&[]), 49, vec!["oldest"]),
            (used(&[]), 19, vec!["oldest", "old"]),
            (used(&["oldest"]), 49, vec!["old"]),
            (used(&["oldest", "old", "new"]), 0, vec![]),
            (used(&[]), 0, vec!["oldest", "old", "new"]),
        ] {
            let chosen = choose(entries(), &in_use, max);
            let names: Vec<&str> = chosen.iter().map(|e| e.sha256.as_str()).collect();
            assert_eq!(names, expected, "in use {in_use:?}, at most {max}");
        }
    }
}
