//! A fault storm, short and always of the same seed; `amphi-lab storm` goes further.

use amphi_integration::storm::{Weather, run};
use std::path::Path;
use std::time::Duration;

#[test]
fn nothing_acknowledged_is_lost_in_a_storm() {
    let program = Path::new(env!("CARGO_BIN_EXE_amphi-lab"));
    let weather = Weather { seed: 4, lasts: Duration::from_secs(20), hosts: 4, clients: 8 };
    match run(program, &weather) {
        Ok(words) => println!("{words}"),
        Err(error) => panic!("{error:#}"),
    }
}
