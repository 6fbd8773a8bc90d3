//! Who holds a block device or the file system on it: read from /proc, for error messages and interlocks.
//!
//! Blocks for a few milliseconds; callers use `spawn_blocking`.

use std::collections::HashSet;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::libc;

/// Processes other than ours that have `device` open, have a file of its file system open or mapped as root,
/// working directory or program, or mount it in a mount namespace of their own. At most eight are named.
pub fn holders(device: &Path) -> Vec<String> {
    let Some(number) = std::fs::metadata(device).ok().map(|meta| meta.rdev()) else { return Vec::new() };
    let own = std::process::id();
    let mut seen: HashSet<PathBuf> = std::fs::read_link("/proc/self/ns/mnt").into_iter().collect();
    let mut found = Vec::new();
    let Ok(entries) = std::fs::read_dir("/proc") else { return found };
    for entry in entries.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        if pid == own || found.len() >= 8 {
            continue;
        }
        let process = entry.path();
        if let Some(how) = held_by(&process, number) {
            found.push(format!("process {pid} ({}) {how}", name(&process)));
        }
        // One process stands for its whole mount namespace.
        if let Ok(namespace) = std::fs::read_link(process.join("ns/mnt"))
            && seen.insert(namespace)
            && let Some(point) = mounted_in(&process, number)
        {
            found.push(format!(
                "process {pid} ({}) has it mounted at {point} in its own namespace",
                name(&process)
            ));
        }
    }
    found
}

/// The holders as one phrase.
pub fn describe(holders: &[String]) -> String {
    if holders.is_empty() {
        "held by the kernel, by no visible process".to_owned()
    } else {
        holders.join(", ")
    }
}

fn held_by(process: &Path, number: u64) -> Option<String> {
    for link in ["cwd", "root", "exe"] {
        if std::fs::metadata(process.join(link)).is_ok_and(|meta| meta.dev() == number) {
            return Some(format!("uses it as {link}"));
        }
    }
    for entry in std::fs::read_dir(process.join("fd")).ok()?.flatten() {
        let Ok(meta) = std::fs::metadata(entry.path()) else { continue };
        let device = meta.file_type().is_block_device() && meta.rdev() == number;
        if device || meta.dev() == number {
            let target = std::fs::read_link(entry.path()).unwrap_or_default();
            return Some(format!("has {} open", target.display()));
        }
    }
    None
}

fn name(process: &Path) -> String {
    std::fs::read_to_string(process.join("comm")).map(|comm| comm.trim().to_owned()).unwrap_or_default()
}

fn mounted_in(process: &Path, number: u64) -> Option<String> {
    let wanted = format!("{}:{}", libc::major(number), libc::minor(number));
    let text = std::fs::read_to_string(process.join("mountinfo")).ok()?;
    text.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(2);
        (fields.next()? == wanted).then(|| fields.nth(1).unwrap_or_default().to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_phrase_in_every_case() {
        assert_eq!(describe(&[]), "held by the kernel, by no visible process");
        assert_eq!(describe(&["a".into(), "b".into()]), "a, b");
    }
}
