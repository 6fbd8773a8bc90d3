//! OVN's flows as a gate: whoever starts a guest on a port may wait here until its first packet will pass, and has its
//! addresses announced then. Refuses to hold a start up for long: guests have to start while OVN's databases are away.

use super::{Switch, host_device, parse_mac};
use crate::instance::{PortAttachment, PortGate};
use amphi_api::PortId;
use async_trait::async_trait;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a start may wait. A healthy ovn-controller takes 20 to 200 ms, most of it while the guest is made.
const LIMIT: Duration = Duration::from_secs(2);

/// How long an announcement waits for the flows.
const ANNOUNCE: Duration = Duration::from_secs(60);
/// Between the first announcement and the second, for who has missed the first.
const AGAIN: Duration = Duration::from_secs(1);

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

    fn announce(&self, port: &PortAttachment) {
        let (switch, id) = (self.switch.clone(), port.id);
        let Some(mac) = parse_mac(&port.mac) else { return };
        let addresses: Vec<IpAddr> = port.addresses().map(|(address, _)| address.addr()).collect();
        tokio::spawn(async move {
            let told = async {
                switch.announce(id.0, mac, &addresses, ANNOUNCE).await?;
                tokio::time::sleep(AGAIN).await;
                switch.announce(id.0, mac, &addresses, AGAIN).await
            };
            if let Err(error) = told.await {
                tracing::debug!(%error, port = %id, "its neighbours hear nothing of its start");
            }
        });
    }
}
