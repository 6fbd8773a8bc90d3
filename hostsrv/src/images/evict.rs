//! Owns what leaves a store of a bounded size: a pure choice among what is there, and the sweep that carries it out for the
//! cache.

use super::shelf::PART;
use super::{facts, is_digest, shelf};
use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

/// A part this old is nobody's beginning any more: whoever wants it comes again within minutes.
const PART_AGE: Duration = Duration::from_secs(3600);

/// A blob that was taken out of the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evicted {
    pub sha256: String,
    /// In bytes.
    pub size: u64,
}

/// Something in a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub name: String,
    /// In bytes.
    pub size: u64,
    pub used: SystemTime,
    /// Goes before all that is not.
    pub spare: bool,
}

/// What is spare first, then the longest unused; never one that is in use, and no more than it takes.
pub fn choose(mut entries: Vec<Entry>, in_use: &BTreeSet<String>, max_bytes: u64) -> Vec<Entry> {
    let mut total: u64 = entries.iter().map(|entry| entry.size).sum();
    entries.retain(|entry| !in_use.contains(&entry.name));
    entries.sort_by(|a, b| (!a.spare, a.used, &a.name).cmp(&(!b.spare, b.used, &b.name)));
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

pub(super) fn sweep(folder: &Path, in_use: &BTreeSet<String>, max_bytes: u64) -> io::Result<Vec<Evicted>> {
    let listing = match std::fs::read_dir(folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        listing => listing?,
    };
    let mut entries = Vec::new();
    for item in listing {
        let item = item?;
        let (Ok(name), Ok(found)) = (item.file_name().into_string(), item.metadata()) else { continue };
        let written = found.modified()?;
        if let Some(blob) = name.strip_suffix(PART) {
            if !in_use.contains(blob) && written.elapsed().is_ok_and(|age| age > PART_AGE) {
                std::fs::remove_file(item.path())?;
            }
        } else if let Some(blob) = name.strip_suffix(facts::SEEN) {
            // A blob comes into its place before this is written: alone, it is of one that somebody removed.
            if !folder.join(blob).exists() {
                std::fs::remove_file(item.path())?;
            }
        } else if is_digest(&name) {
            let used = facts::used(&item.path()).unwrap_or(written);
            let spare = facts::read(&item.path()).is_some_and(|facts| facts.layer);
            entries.push(Entry { name, size: found.len(), used, spare });
        }
    }
    let mut evicted = Vec::new();
    for entry in choose(entries, in_use, max_bytes) {
        shelf::remove(&folder.join(&entry.name))?;
        evicted.push(Evicted { sha256: entry.name, size: entry.size });
    }
    Ok(evicted)
}

/// What is there, layers apart, with the time of its last use.
pub(super) fn here(folder: &Path) -> Vec<(SystemTime, String)> {
    let items = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let blobs = items.filter_map(|item| {
        let name = item.file_name().into_string().ok().filter(|name| is_digest(name))?;
        let is_layer = facts::read(&item.path()).is_some_and(|facts| facts.layer);
        let used = facts::used(&item.path()).or_else(|| item.metadata().ok()?.modified().ok())?;
        (!is_layer).then_some((used, name))
    });
    blobs.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices() {
        let entry = |name: &str, size, age: u64, spare| Entry {
            name: name.into(),
            size,
            used: SystemTime::UNIX_EPOCH + Duration::from_secs(1000 - age),
            spare,
        };
        let plain =
            || vec![entry("new", 10, 1, false), entry("old", 10, 9, false), entry("oldest", 30, 99, false)];
        let layers =
            || vec![entry("disk", 10, 99, false), entry("old", 10, 9, true), entry("new", 30, 1, true)];
        let used = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<BTreeSet<_>>();
        for (entries, in_use, max, expected) in [
            (plain(), used(&[]), 50, vec![]),
            (plain(), used(&[]), 49, vec!["oldest"]),
            (plain(), used(&[]), 19, vec!["oldest", "old"]),
            (plain(), used(&["oldest"]), 49, vec!["old"]),
            (plain(), used(&["oldest", "old", "new"]), 0, vec![]),
            (plain(), used(&[]), 0, vec!["oldest", "old", "new"]),
            (layers(), used(&[]), 49, vec!["old"]),
            (layers(), used(&[]), 39, vec!["old", "new"]),
            (layers(), used(&["old"]), 49, vec!["new"]),
            (layers(), used(&[]), 9, vec!["old", "new", "disk"]),
        ] {
            let chosen = choose(entries, &in_use, max);
            let names: Vec<&str> = chosen.iter().map(|e| e.name.as_str()).collect();
            assert_eq!(names, expected, "in use {in_use:?}, at most {max}");
        }
    }
}
