//! All deaths of all scenarios, several at a time, and what was died at. A step that the scenarios name and that nobody died
//! at is an error: then the test would have tested nothing.

use super::lab::Spent;
use super::{SCENARIOS, Scenario, Victim, run, words};
use anyhow::{Context, Result, bail};
use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// Labs at one time: they wait more than they work.
const AT_ONCE: usize = 8;

/// Whose deaths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// At each commit.
    Controller,
    /// Of each host, at each call.
    Agents,
}

impl Who {
    fn victims(self) -> &'static [Victim] {
        match self {
            Who::Controller => &[Victim::Controller],
            Who::Agents => &[Victim::Agent(0), Victim::Agent(1)],
        }
    }

    /// What must have been died at.
    fn needed(self, scenario: &Scenario) -> &'static [&'static str] {
        match self {
            Who::Controller => scenario.commits,
            Who::Agents => scenario.calls,
        }
    }
}

/// Every scenario under these deaths, so many times each. The answer tells what was died at, in lines. `program` is
/// `amphi-lab`, beside the other programs.
pub fn all(program: &Path, who: Who, replays: u32) -> Result<String> {
    // It fails only if one is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build()?;
    runtime.block_on(each(program, who, replays))
}

async fn each(program: &Path, who: Who, replays: u32) -> Result<String> {
    let room = Arc::new(Semaphore::new(AT_ONCE));
    let mut runs = JoinSet::new();
    for (at, scenario) in SCENARIOS.iter().enumerate() {
        for victim in who.victims() {
            for (after, replay) in (1..=replays).flat_map(|replay| [(false, replay), (true, replay)]) {
                let (room, program) = (room.clone(), program.to_owned());
                runs.spawn(async move {
                    let _turn = room.acquire_owned().await.context("a turn")?;
                    anyhow::Ok((at, run(&program, scenario, *victim, after, replay).await?))
                });
            }
        }
    }
    let mut wrong = Vec::new();
    let mut reached: Vec<BTreeSet<String>> = vec![BTreeSet::new(); SCENARIOS.len()];
    let mut deaths = vec![0; SCENARIOS.len()];
    let mut times = Spent::new();
    while let Some(done) = runs.join_next().await {
        match done? {
            Ok((at, (died, spent))) => {
                for (on, time) in spent {
                    *times.entry(on).or_default() += time;
                }
                deaths[at] += died.len();
                reached[at].extend(died.iter().flat_map(|death| words(death)));
            }
            Err(error) => wrong.push(format!("{error:#}")),
        }
    }
    let mut text = String::new();
    for ((scenario, at), deaths) in SCENARIOS.iter().zip(&reached).zip(&deaths) {
        writeln!(text, "{}: {deaths} deaths of {who:?} at {}", scenario.name, join(at))?;
        // Before a step and after it: what is recorded is the same as after the one before and before the one after.
        for step in who.needed(scenario).iter().filter(|step| !at.contains(**step)) {
            wrong.push(format!("{}: nobody died at {step}: {at:?}", scenario.name));
        }
    }
    let mut times: Vec<_> = times.into_iter().collect();
    times.sort_by_key(|(_, time)| std::cmp::Reverse(*time));
    let told = times.iter().map(|(on, time)| format!("{on} {:.1} s", time.as_secs_f64()));
    writeln!(text, "of all labs together: {}", told.collect::<Vec<_>>().join(", "))?;
    write!(text, "{} deaths, each step {replays} times", deaths.iter().sum::<usize>())?;
    if !wrong.is_empty() {
        bail!("{text}\n{}", wrong.join("\n\n"));
    }
    Ok(text)
}

fn join(words: &BTreeSet<String>) -> String {
    words.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
}
