//! The host agent's parts. `main.rs` composes them; nothing here reads the command line.
//!
//! Only `instance/vm` knows libvirt, only `instance/set` and the Docker drivers in `network` and
//! `storage` know Docker, only `network` knows Open vSwitch, only `storage` knows LVM.
//! `reconcile` joins them and passes plain values between them.

pub mod blobs;
pub mod config;
pub mod convert;
pub mod credentials;
pub mod crossing;
pub mod docker_plugin;
pub mod facts;
pub mod health;
pub mod images;
pub mod instance;
pub mod join;
pub mod lease;
pub mod link;
pub mod metadata;
pub mod monitoring;
pub mod network;
mod peer_wire;
pub mod qemu_img;
pub mod reconcile;
pub mod signals;
pub mod storage;
pub mod streams;
pub mod upkeep;
