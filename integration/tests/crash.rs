//! Nobody's death at any step loses an order or leaves anything behind: the controller dies before and after each commit of
//! an order, an agent before and after each of its calls to an engine. `AMPHI_REPLAYS` says how often each (default: once).

use amphi_integration::crash::{SCENARIOS, Scenario, Victim, run, words};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// Labs at one time: they wait more than they work.
const AT_ONCE: usize = 8;

/// Every scenario under these deaths. What was died at must hold what `needed` names.
fn all(victims: &[Victim], needed: fn(&Scenario) -> &[&str]) {
    // It fails only if one is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build().unwrap();
    let replays: u32 = std::env::var("AMPHI_REPLAYS").ok().map_or(1, |text| text.parse().unwrap());
    runtime.block_on(async {
        let room = Arc::new(Semaphore::new(AT_ONCE));
        let mut runs = JoinSet::new();
        for (at, scenario) in SCENARIOS.iter().enumerate() {
            for (victim, after, replay) in victims
                .iter()
                .flat_map(|v| [false, true].map(|after| (*v, after)))
                .flat_map(|(v, after)| (1..=replays).map(move |replay| (v, after, replay)))
            {
                let room = room.clone();
                runs.spawn(async move {
                    let _turn = room.acquire_owned().await.unwrap();
                    let program = Path::new(env!("CARGO_BIN_EXE_amphi-lab"));
                    (at, victim, after, replay, run(program, scenario, victim, after, replay).await)
                });
            }
        }
        let mut wrong = Vec::new();
        let mut reached: Vec<BTreeSet<String>> = vec![Default::default(); SCENARIOS.len()];
        while let Some(done) = runs.join_next().await {
            let (at, victim, after, replay, outcome) = done.unwrap();
            match outcome {
                Ok(deaths) => {
                    let name = SCENARIOS[at].name;
                    println!("{name}, {victim:?}, after {after}, {replay}: {} deaths", deaths.len());
                    deaths.iter().for_each(|death| println!("    {death}"));
                    reached[at].extend(deaths.iter().flat_map(|d| words(d)));
                }
                Err(error) => wrong.push(format!("{error:#}")),
            }
        }
        // Before a step and after it: what is recorded is the same as after the one before and before the one after.
        for (scenario, at) in SCENARIOS.iter().zip(&reached) {
            for step in needed(scenario).iter().filter(|step| !at.contains(**step)) {
                wrong.push(format!("{}: nobody died at {step}: {at:?}", scenario.name));
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    });
}

#[test]
fn the_controller_may_die_at_any_commit() {
    all(&[Victim::Controller], |scenario| scenario.commits);
}

#[test]
fn an_agent_may_die_at_any_call() {
    all(&[Victim::Agent(0), Victim::Agent(1)], |scenario| scenario.calls);
}
