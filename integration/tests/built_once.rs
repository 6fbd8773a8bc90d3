//! `cargo build --workspace` and the tests share every crate: what the tests' own crates ask of a crate that the programs
//! stand on is asked of it in the programs too, so Cargo need not build it, and all that stands on it, a second time.

use std::collections::BTreeSet;
use std::process::Command;

/// Every crate with its features, one a line, for these kinds of dependency.
fn crates(kinds: &str) -> BTreeSet<String> {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--workspace", "--locked", "--offline", "--prefix", "none", "--no-dedupe"])
        .args(["--edges", kinds, "--format", "{p} {f}"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}

#[test]
fn tests_ask_no_more_of_shared_crates_than_programs_do() {
    let (programs, all) = (crates("normal,build"), crates("normal,build,dev"));
    assert!(programs.len() > 100, "no list of crates: {programs:?}");
    let twice: Vec<_> = programs.difference(&all).collect();
    assert!(twice.is_empty(), "built with other features for tests (see integration/Cargo.toml): {twice:#?}");
}
