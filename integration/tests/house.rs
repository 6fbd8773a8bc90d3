//! The house keeps its walls: who may import whom, and which part alone knows an engine. A failure names file and line.

use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_owned()
}

fn sources(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display())) {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    found
}

/// Lines of code below `dir` (comments and documentation left out) that contain any of `words`.
fn mentions(dir: &str, words: &[&str]) -> Vec<String> {
    let root = root();
    let start = root.join(dir);
    let files = if start.is_dir() { sources(&start) } else { vec![start.with_extension("rs")] };
    assert!(!files.is_empty(), "{dir} has no sources: has it moved?");
    let mut found = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        for (number, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            if words.iter().any(|word| code.contains(word)) {
                let place = file.strip_prefix(&root).unwrap_or(&file).display().to_string();
                found.push(format!("{place}:{}: {}", number + 1, line.trim()));
            }
        }
    }
    found
}

fn never(dir: &str, words: &[&str]) {
    let found = mentions(dir, words);
    assert!(found.is_empty(), "{dir} must not know {words:?}:\n{}", found.join("\n"));
}

/// `words` stand in `dir` and nowhere else below `within`.
fn only(within: &str, dirs: &[&str], words: &[&str]) {
    let elsewhere: Vec<_> = mentions(within, words)
        .into_iter()
        .filter(|place| !dirs.iter().any(|d| place.starts_with(d)))
        .collect();
    assert!(elsewhere.is_empty(), "only {dirs:?} may know {words:?}:\n{}", elsewhere.join("\n"));
    assert!(
        !mentions(dirs[0], words).is_empty(),
        "{} knows no {words:?}: is this test still about something?",
        dirs[0]
    );
}

#[test]
fn crates_import_one_way() {
    never("api/src", &["amphi_"]);
    never("ovsdb/src", &["amphi_api", "amphi_controller", "amphi_hostsrv"]);
    never("controller/src", &["amphi_hostsrv", "amphi_cli", "amphi_integration"]);
    never("guest/src", &["amphi_api", "amphi_controller", "amphi_hostsrv", "amphi_cli", "amphi_integration"]);
    never("controller/src", &["amphi_guest"]);
    never("cli/src", &["amphi_guest"]);
    never("hostsrv/src", &["amphi_controller", "amphi_cli", "amphi_integration"]);
    never("cli/src", &["amphi_controller", "amphi_hostsrv", "amphi_ovsdb"]);
}

#[test]
fn the_controller_s_rooms_import_one_way() {
    never(
        "controller/src/model",
        &[
            "crate::ops",
            "crate::store",
            "crate::faces",
            "crate::tasks",
            "crate::network",
            "crate::images",
            "crate::scheduler",
        ],
    );
    never(
        "controller/src/scheduler",
        &["crate::ops", "crate::store", "crate::faces", "crate::tasks", "crate::network", "crate::images"],
    );
    for below in ["store", "network", "images", "pki"] {
        never(
            &format!("controller/src/{below}"),
            &["crate::ops", "crate::faces", "crate::tasks", "crate::model", "crate::scheduler"],
        );
    }
    never("controller/src/ops", &["crate::faces::native", "crate::tasks"]);
    never("controller/src/faces", &["crate::tasks"]);
}

#[test]
fn one_room_knows_each_engine() {
    only("hostsrv/src", &["hostsrv/src/instance/set"], &["bollard"]);
    only("hostsrv/src", &["hostsrv/src/instance/vm"], &["virt::", "virt_sys"]);
    only("hostsrv/src", &["hostsrv/src/network"], &["amphi_ovsdb"]);
    only("hostsrv/src", &["hostsrv/src/storage"], &["lvcreate", "lvextend", "lvremove"]);
    only("controller/src", &["controller/src/network"], &["amphi_ovsdb"]);
    only("controller/src", &["controller/src/store"], &["sled::"]);
    never("hostsrv/src/reconcile", &["docker", "libvirt", "lvm", "ovs-"]);
}
