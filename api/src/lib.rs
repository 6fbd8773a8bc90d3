//! The words that the controller, the host agent and the clients share: ids, requests, views, errors and the
//! messages between controller and host. Each is defined once, here. Refuses: I/O (but for the optional `client`),
//! policy, and any knowledge of an engine or a database. `lean` and `urgency` are of both daemons and no words.

#[cfg(feature = "client")]
pub mod client;
pub mod conversion;
pub mod disk;
pub mod error;
pub mod events;
pub mod failover;
pub mod group;
pub mod host;
pub mod ids;
pub mod image;
pub mod instance;
pub mod lean;
pub mod lease;
pub mod looking;
pub mod network;
pub mod placement;
pub mod prepull;
pub mod recipe;
pub mod replica;
pub mod replication;
pub mod repository;
pub mod resize;
pub mod rollout;
pub mod set;
pub mod streams;
pub mod unread;
pub mod urgency;
pub mod validate;
pub mod volume;
pub mod wire;

pub use error::{ErrorBody, ErrorCode, FieldError};
pub use ids::*;
