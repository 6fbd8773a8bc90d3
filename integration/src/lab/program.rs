//! Where the lab's own program and those beside it lie, also after they were built anew under a running lab.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// What the kernel puts behind the path of a program whose file was removed or replaced (proc(5), `/proc/pid/exe`).
const REPLACED: &str = " (deleted)";

/// This program's path. When it was replaced since its start, that is the path of its successor.
pub fn own_program() -> Result<PathBuf> {
    let path = std::env::current_exe().context("find own program")?;
    Ok(successor(&path, Path::exists))
}

fn successor(path: &Path, exists: impl Fn(&Path) -> bool) -> PathBuf {
    let replaced = path.to_str().and_then(|text| text.strip_suffix(REPLACED));
    match replaced {
        Some(before) if !exists(path) => PathBuf::from(before),
        _ => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replaced_program_has_a_successor() {
        for (path, exists, expected) in [
            ("/a/amphi-lab", true, "/a/amphi-lab"),
            ("/a/amphi-lab", false, "/a/amphi-lab"),
            ("/a/amphi-lab (deleted)", false, "/a/amphi-lab"),
            ("/a/odd (deleted)", true, "/a/odd (deleted)"),
        ] {
            assert_eq!(successor(Path::new(path), |_| exists), Path::new(expected), "{path}");
        }
    }

    /// What the kernel says, tried: a program that replaces its own file finds the new one.
    #[test]
    fn the_kernel_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("program");
        std::fs::copy("/bin/sleep", &program).unwrap();
        let mut child = std::process::Command::new(&program).arg("60").spawn().unwrap();
        std::fs::remove_file(&program).unwrap();
        std::fs::copy("/bin/sleep", &program).unwrap();
        let said = std::fs::read_link(format!("/proc/{}/exe", child.id()));
        let _ended = child.kill().and_then(|()| child.wait());
        assert_eq!(successor(&said.unwrap(), Path::exists), program);
    }
}
