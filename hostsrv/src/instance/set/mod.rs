//! Sets on Docker: an anchor container that holds network, IPC and volume, and the members that join it.
//!
//! All knowledge lies in the engine: containers carry labels ([`labels`]) from which a fresh process sees the same
//! world. Only a member's count of restarts is kept in memory and begins at zero with the process.
//!
//! Life of a set: `nothing → anchor created → anchor runs (images fetched and members created meanwhile) → members run,
//! in order of index`. A member that ends starts again by itself, in the anchor's namespaces; an anchor that ends takes the whole
//! set through the start again, because members keep the dead anchor's empty namespaces.
//!
//! A set is halted by pausing all its members; Docker cannot put their memory on disk, so a suspended set is a paused
//! one. While a rescue's members run in their place, the set's own are stopped and kept, with what they have written.
//!
//! Refused here: to decide whether a set should exist, to let Docker restart anything on its own (a dockerd that
//! comes up after a power cut must not bring back a body that lives elsewhere by now), and to touch what another epoch
//! made.

mod archive;
mod carry_out;
mod cgroup;
mod commands;
mod copy;
mod driver;
mod ending;
mod engine;
mod events;
mod exec;
mod export;
mod files;
mod flush;
mod hijack;
mod images;
pub mod labels;
mod logs;
mod member;
mod meter;
mod mounts;
mod networks;
mod observed;
mod orphans;
mod parts;
mod ports;
mod processes;
mod pull;
pub mod render;
mod restarts;
mod roots;
mod shared;
mod sizing;
mod start;
mod stored;
mod succession;
mod swap;
mod throttle;
mod tools;
mod twin;
mod volumes;
mod watched;

pub use driver::{SetDriver, SetOptions};
pub use engine::Limits as SetLimits;
pub use meter::SetMeter;
pub use restarts::next_restart_delay;
pub use throttle::isolation;

/// What errors call the engine.
const ENGINE: &str = "Docker";
