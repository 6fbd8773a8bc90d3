//! An OVSDB client (RFC 7047 with Open vSwitch's extensions), for the local switch and for OVN's
//! northbound database alike.
//!
//! Owns the connection (reconnect, keepalive, pipelining), the wire's values and in-memory
//! replicas of chosen tables. It knows no schema of its own and nothing of the rest of the house:
//! what a column means is the caller's business.
//!
//! ```no_run
//! # async fn example() -> Result<(), amphi_ovsdb::Error> {
//! use amphi_ovsdb::{Client, Condition, Operation, Options, Row};
//! let client = Client::new("unix:/run/openvswitch/db.sock", "Open_vSwitch", Options::default())?;
//! client
//!     .transact(vec![
//!         Operation::wait_absent("Bridge", vec![Condition::eq("name", "br-int")]),
//!         Operation::insert("Bridge", Row::new().with("name", "br-int")).named("bridge"),
//!         Operation::comment("first bridge"),
//!     ])
//!     .await?;
//! # Ok(()) }
//! ```

mod client;
mod codec;
mod endpoint;
mod error;
mod jsonrpc;
mod monitor;
mod operation;
mod replica;
mod row;
mod schema;
mod session;
mod transact;
mod wire;

pub use client::{Client, Options, Status};
pub use codec::{DecodeError, Decoder};
pub use endpoint::Endpoint;
pub use error::{Error, OperationFailure};
pub use operation::{Condition, Mutation, Operation};
pub use replica::{Monitored, Replica, ReplicaState, Tables};
pub use row::Row;
pub use schema::Schema;
pub use transact::Outcome;
pub use wire::{Atom, Value};

pub type Result<T, E = Error> = std::result::Result<T, E>;
