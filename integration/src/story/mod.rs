//! The story: what Amphi promises, played once on real hosts. Owns the order of the steps and the honest count of them;
//! each step is a file that does and checks what its line says. Refuses: anything that a user could not do (the steps
//! speak to the API and to the `amphi` program; the lab is only used to break things and to look at the engines).
//!
//! A step that fails takes those down that stand on it: they are told as not run, and count as not ok.

mod cli;
mod descriptions;
mod engines;
pub mod guest;
pub mod ping;
mod report;
pub mod residue;
mod stage;
mod step_01_hosts;
mod step_02_network;
mod step_03_set;
mod step_04_vm;
mod step_05_reach;
mod step_06_survive;
mod step_07_exchange;
mod step_08_volumes;
mod step_09_power_cut;
mod step_10_return;
mod step_11_delete;
mod watch;

use std::time::Instant;

use amphi_api::client::Client;
use anyhow::Result;

use crate::lab::Lab;
pub use cli::{Cli, read_env};
pub use report::{Lines, Outcome, Progress};
use stage::Stage;

/// One line of the story.
struct Step {
    title: &'static str,
    /// Numbers of the steps without which this one means nothing.
    needs: &'static [usize],
    play: fn(&Stage) -> Result<()>,
}

/// In order; the first is step 1.
const STEPS: &[Step] = &[
    Step {
        title: "Two hosts join with a token over mutual TLS and show what they are",
        needs: &[],
        play: step_01_hosts::play,
    },
    Step { title: "A network with DHCP, a security group, images", needs: &[1], play: step_02_network::play },
    Step { title: "A set from a JSON description, with a volume", needs: &[2], play: step_03_set::play },
    Step { title: "A VM with a volume of its own", needs: &[2], play: step_04_vm::play },
    Step {
        title: "Set and VM reach each other, on one host and across; the closed port stays closed",
        needs: &[3, 4],
        play: step_05_reach::play,
    },
    Step {
        title: "A member is killed, the set restarts, the agent is killed: the guests go on",
        needs: &[5],
        play: step_06_survive::play,
    },
    Step {
        title: "The set becomes a VM and a set again: same address, same bytes",
        needs: &[5],
        play: step_07_exchange::play,
    },
    Step {
        title: "Volumes grow while used; snapshot, recycle bin, restore, purge",
        needs: &[7],
        play: step_08_volumes::play,
    },
    Step {
        title: "Power cut: the dead host's instances come up on the other",
        needs: &[5],
        play: step_09_power_cut::play,
    },
    Step {
        title: "The dead host returns: its stale bodies never do, its volumes do",
        needs: &[7, 9],
        play: step_10_return::play,
    },
    Step { title: "Everything is deleted; nothing is left", needs: &[1], play: step_11_delete::play },
];

/// Plays the story on a lab of at least two hosts that has just come up. An error means that it could not even begin;
/// a step that fails is told in the outcome.
pub fn run(lab: &Lab, client: &Client, on: &dyn Progress) -> Result<Outcome> {
    let stage = Stage::new(lab, client, on)?;
    let mut outcome = Outcome::new(STEPS.len());
    for (at, step) in STEPS.iter().enumerate() {
        let number = at + 1;
        if let Some(because) = step.needs.iter().find(|n| !outcome.is_ok(**n)) {
            on.not_run(number, step.title, *because);
            continue;
        }
        on.step(number, step.title);
        let began = Instant::now();
        match (step.play)(&stage) {
            Ok(()) => outcome.ok(number, began.elapsed()),
            Err(error) => {
                on.failed(number, &error);
                outcome.failed(number, format!("{error:#}"));
            }
        }
    }
    Ok(outcome)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_stand_on_earlier_ones() {
        for (at, step) in STEPS.iter().enumerate() {
            assert!(step.needs.iter().all(|n| (1..=at).contains(n)), "{}", step.title);
        }
    }
}
