//! Bodies that go to another host while they run, as a driver sees it. The old host sends, the new one makes everything
//! ready to receive; what has come over stays halted until it is ensured there. Refuses to decide who has the body.

use super::{BodyPlan, DriverError};
use amphi_api::{HostId, InstanceId};
use async_trait::async_trait;
use std::net::SocketAddr;

/// A running body to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Departure {
    pub instance: InstanceId,
    /// Its epoch there.
    pub epoch: u64,
    pub to: HostId,
    /// Where the other host's agent takes what comes.
    pub address: SocketAddr,
}

/// Sends and receives running bodies. By default a kind does neither.
#[async_trait]
pub trait BodyMoves: Send + Sync {
    /// Sends the body. Returns when it is whole and halted there and has ended here, or else runs on here. A body that has
    /// ended is not sent.
    async fn depart(&self, departure: &Departure) -> Result<(), DriverError> {
        Err(never(departure.instance))
    }

    /// Ends a departure that is under way, if it can be ended still; the departure tells how it went.
    async fn recall(&self, instance: InstanceId) -> Result<(), DriverError> {
        Err(never(instance))
    }

    /// Makes ready what the plan's body needs to come over; its definition here, as the other host's driver understands
    /// it. Nothing of the body's epoch may be here.
    async fn receive(&self, plan: &BodyPlan) -> Result<String, DriverError> {
        Err(never(plan.instance))
    }
}

fn never(instance: InstanceId) -> DriverError {
    DriverError::EngineRefused {
        engine: "the engine",
        doing: format!("move {instance} while it runs"),
        message: "bodies of this kind stop for a move".into(),
    }
}
