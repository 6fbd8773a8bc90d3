//! The story on a lab of its own: every step holds, and the lab leaves nothing on the machine.

use std::path::Path;

use amphi_integration::lab::{Lab, Layout, UpOptions, leftovers};
use amphi_integration::{run, story};

#[test]
fn the_story_holds_and_leaves_nothing() {
    let images = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/lab/images");
    assert!(images.join("web.tar").exists(), "no images in {}: run scripts/make-images.sh", images.display());
    let layout =
        Layout::at(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("story-lab")).expect("lab directory");
    if !layout.images().exists() {
        std::os::unix::fs::symlink(images.canonicalize().expect("images"), layout.images())
            .expect("link images");
    }
    // Joining is the story's first step.
    let program = env!("CARGO_BIN_EXE_amphi-lab").into();
    let options = UpOptions { join: false, ..UpOptions::new(layout.clone(), program, 2) };
    let lab = Lab::up(&options, |_| {}).expect("lab up");
    let client = run::client(&layout).expect("client");
    let outcome = story::run(&lab, &client, &story::Lines).expect("the story begins");
    println!("{outcome}");
    assert!(outcome.all_ok(), "{outcome}: {:#?}", outcome.failures());
    lab.down().expect("lab down");
    assert_eq!(leftovers(&layout), Vec::<String>::new());
}
