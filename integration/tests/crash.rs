//! Nobody's death at any step loses an order or leaves anything behind: the controller dies before and after each commit of
//! an order, an agent before and after each of its calls to an engine. `AMPHI_REPLAYS` says how often each (default: once).

use amphi_integration::crash::{Who, all};
use std::path::Path;

fn die(who: Who) {
    let replays: u32 = std::env::var("AMPHI_REPLAYS").ok().map_or(1, |text| text.parse().unwrap());
    match all(Path::new(env!("CARGO_BIN_EXE_amphi-lab")), who, replays) {
        Ok(words) => println!("{words}"),
        Err(error) => panic!("{error:#}"),
    }
}

#[test]
fn the_controller_may_die_at_any_commit() {
    die(Who::Controller);
}

#[test]
fn an_agent_may_die_at_any_call() {
    die(Who::Agents);
}
