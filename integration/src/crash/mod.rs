//! Death at every step: an order is given again and again, and each time the controller aborts at its next commit, before
//! it is written and after; or an agent is killed at its next call to an engine, before it is carried out and after. What
//! is recorded is all that a successor knows, so the commits and the calls are all the steps that there are, named or not:
//! they are counted until the order needs no more of them. Each time all has to come to be as ordered.

mod all;
mod lab;
mod steps;

pub use all::{Who, all};
pub use lab::{Victim, run, words};
pub use steps::{Kind, SCENARIOS, Scenario, Step};
