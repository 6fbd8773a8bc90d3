//! OVN's flows as a gate: whoever starts a guest on a port may wait here until its first packet will pass. Refuses to
//! hold a start up for long: guests have to start while OVN's databases are away.

use super::{Switch, host_device};
use crate::instance::PortGate;
use amphi_api::PortId;
use async_trait::async_trait;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a start may wait. A healthy ovn-controller takes 20 to 200 ms, most of it while the guest is made.
const LIMIT: Duration = Duration::from_secs(2);

/// Ports on the host's end of a veth pair, whose flows ovn-controller installs.
#[derive(Clone, Debug)]
pub struct Flows {
    switch: Arc<Switch>,
    limit: Duration,
}

impl Flows {
    pub fn new(switch: Arc<Switch>) -> Flows {
        Flows { switch, limit: LIMIT }
    }

    pub fn with_limit(self, limit: Duration) -> Flows {
        Flows { limit, ..self }
    }
}

#[async_trait]
impl PortGate for Flows {
    async fn opened(&self, port: PortId) -> bool {
        let began = Instant::now();
        let waited = self.switch.wait_installed(&host_device(port.0), self.limit).await;
        let took = began.elapsed();
        match &waited {
            Ok(()) => tracing::debug!(%port, ?took, "its flows are installed"),
            Err(error) => tracing::warn!(%error, %port, ?took, "a guest starts without OVN's flows"),
        }
        waited.is_ok()
    }
}
