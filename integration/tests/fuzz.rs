//! The native face under schemathesis, short and always with the same requests; `make fuzz` goes further.

use amphi_integration::fuzz::{Bound, run};
use std::path::Path;

#[test]
fn the_native_face_is_as_it_describes_itself() {
    let programs = Path::new(env!("CARGO_BIN_EXE_amphi-lab")).parent().expect("the programs' directory");
    if let Err(error) = run(programs, 1, &Bound::Examples(10)) {
        panic!("{error:#}");
    }
}
