//! One file per noun: its verbs, its columns.

pub mod exchange;
pub mod failover_policy;
pub mod failovers;
pub mod host;
pub mod image;
pub mod instance;
mod instance_view;
pub mod looking_in;
pub mod moving;
pub mod network;
pub mod place;
pub mod port;
pub mod recycle_bin;
pub mod security_group;
pub mod set;
pub mod snapshot;
pub mod vm;
pub mod volume;
