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

/// Names of the types that are described to clients, each with its place. A type is called as `schema(as = …)` says, or by
/// its own name.
fn described(dir: &str) -> Vec<(String, String)> {
    let root = root();
    let mut found = Vec::new();
    for file in sources(&root.join(dir)) {
        let text = std::fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        let (mut derived, mut alias) = (false, None);
        for (number, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            derived |= code.contains("ToSchema") && !code.trim_start().starts_with("use ");
            if let Some((_, after)) = code.split_once("schema(as = ") {
                alias = after.split([')', ',']).next().map(str::to_owned);
            }
            let words: Vec<&str> = code.split([' ', '<', '(', '{', ';']).collect();
            let Some(at) = words.iter().position(|word| matches!(*word, "struct" | "enum")) else { continue };
            let own = words.get(at + 1).map(|own| (*own).to_owned());
            let name = alias.take().or(own).expect("a type has a name");
            if std::mem::take(&mut derived) {
                let place = file.strip_prefix(&root).unwrap_or(&file).display();
                found.push((name, format!("{place}:{}", number + 1)));
            }
        }
    }
    found
}

/// The generator of the description takes the second of two for the first, and answers then do not fit it.
#[test]
fn no_two_described_types_share_a_name() {
    let mut places = std::collections::BTreeMap::<String, Vec<String>>::new();
    for (name, place) in ["api/src", "controller/src"].into_iter().flat_map(described) {
        places.entry(name).or_default().push(place);
    }
    assert!(
        places.len() > 200,
        "only {} types are described: is this test still about something?",
        places.len()
    );
    for alias in ["ReplicationDirection", "GroupRollout"] {
        assert!(places.contains_key(alias), "{alias} is not seen: other names are missed as well");
    }
    places.retain(|_, places| places.len() > 1);
    assert!(places.is_empty(), "name them apart, with #[schema(as = …)]: {places:#?}");
}
