//! The controller's parts. `main.rs` composes them; nothing here reads the command line.
//!
//! Imports point one way: `faces → ops → {store, scheduler, network, images, model}`, `tasks` beside `ops`, and `model`
//! imports only the shared words of `amphi_api` and of `digest`.

pub mod activation;
pub mod config;
pub mod digest;
pub mod faces;
pub mod fence;
pub mod images;
pub mod leases;
pub mod mirror;
pub mod model;
pub mod network;
pub mod ops;
pub mod pki;
pub mod regions;
pub mod scheduler;
pub mod store;
pub mod streams;
pub mod tasks;
pub mod tokens;
