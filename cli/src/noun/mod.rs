//! One file per noun: its verbs, its columns.

pub mod copying;
pub mod debug;
pub mod events;
pub mod exchange;
pub mod failovers;
pub mod group;
mod group_view;
pub mod host;
pub mod image;
pub mod instance;
mod instance_view;
pub mod logs;
pub mod looking_in;
pub mod moving;
pub mod network;
pub mod place;
pub mod port;
pub mod recycle_bin;
pub mod resize;
pub mod rollout;
pub mod security_group;
pub mod set;
pub mod snapshot;
pub mod tools;
pub mod top;
pub mod vm;
pub mod volume;
