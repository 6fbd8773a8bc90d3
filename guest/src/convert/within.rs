//! Paths of a mounted tree, whose links are followed as if it were the whole world.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs;
use std::io::Read;
use std::path::{Component, Path, PathBuf};

const LINKS_MAX: usize = 40;
/// Of a file that is looked into, in bytes.
const TEXT_MAX: u64 = 256 << 10;

/// Where a path of the tree lies; none: nowhere.
pub fn resolve(root: &Path, path: &str) -> Option<PathBuf> {
    let parts = |path: &Path| -> Vec<OsString> {
        path.components()
            .filter_map(|c| match c {
                Component::Normal(name) => Some(name.to_owned()),
                Component::ParentDir => Some("..".into()),
                _ => None,
            })
            .collect()
    };
    let mut waiting: VecDeque<OsString> = parts(Path::new(path)).into();
    let mut here = PathBuf::new();
    let mut links = 0;
    while let Some(name) = waiting.pop_front() {
        if name == ".." {
            here.pop();
            continue;
        }
        let next = here.join(&name);
        let about = fs::symlink_metadata(root.join(&next)).ok()?;
        if !about.is_symlink() {
            here = next;
            continue;
        }
        links += 1;
        if links > LINKS_MAX {
            return None;
        }
        let target = fs::read_link(root.join(&next)).ok()?;
        if target.is_absolute() {
            here = PathBuf::new();
        }
        for part in parts(&target).into_iter().rev() {
            waiting.push_front(part);
        }
    }
    Some(root.join(here))
}

/// A small text file of the tree; empty where there is none.
pub fn text(root: &Path, path: &str) -> String {
    let mut bytes = Vec::new();
    if let Some(path) = resolve(root, path).filter(|path| path.is_file())
        && let Ok(file) = fs::File::open(path)
    {
        // What cannot be read is not there.
        let _read = file.take(TEXT_MAX).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The names in a directory of the tree, in order.
pub fn names(root: &Path, path: &str) -> Vec<String> {
    let Some(folder) = resolve(root, path) else { return Vec::new() };
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        entries.map(|e| e.file_name().to_string_lossy().into_owned()).take(10_000).collect();
    names.sort();
    names
}

/// A file's lines, without comments and blanks.
pub fn lines(root: &Path, path: &str) -> Vec<String> {
    let text = text(root, path);
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with(['#', ';']));
    lines.map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_stay_within() {
        let root = std::env::temp_dir().join(format!("amphi-within-{}", std::process::id()));
        let _old = fs::remove_dir_all(&root);
        fs::create_dir_all(root.join("usr/lib/systemd")).unwrap();
        fs::create_dir_all(root.join("usr/sbin")).unwrap();
        fs::write(root.join("usr/lib/systemd/systemd"), "x").unwrap();
        symlink("usr/sbin", root.join("sbin")).unwrap();
        symlink("usr/lib", root.join("lib")).unwrap();
        symlink("/lib/systemd/systemd", root.join("usr/sbin/init")).unwrap();
        symlink("../../../../../../etc/passwd", root.join("out")).unwrap();
        symlink("round", root.join("round")).unwrap();
        symlink("/", root.join("top")).unwrap();
        let found = |path: &str| resolve(&root, path).map(|p| p.strip_prefix(&root).unwrap().to_owned());
        assert_eq!(found("sbin/init"), Some("usr/lib/systemd/systemd".into()));
        assert_eq!(found("/top/../../usr"), Some("usr".into()));
        assert_eq!(found("out"), None);
        assert_eq!(found("round"), None);
        assert_eq!(text(&root, "sbin/init"), "x");
        fs::remove_dir_all(&root).unwrap();
    }
}
