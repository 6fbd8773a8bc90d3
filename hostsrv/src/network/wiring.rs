//! Joins the kernel's devices and the switch: a port is wired when its veth pair exists and the
//! host's end is on the integration bridge under the port's id.

use std::collections::BTreeMap;
use std::time::Duration;

use uuid::Uuid;

use super::ovs::{Plug, Switch};
use super::{Links, NetworkError, PortSpec, host_device};

/// How long ovs-vswitchd may take to make a port of a row; it takes milliseconds when healthy.
pub(super) const SETTLE: Duration = Duration::from_secs(8);

#[derive(Clone, Debug)]
pub struct Wiring {
    pub links: Links,
    pub switch: Switch,
}

impl Wiring {
    /// Makes the pair and plugs it; answers the guest's device, which waits in this network
    /// namespace to be moved. On failure nothing is left behind.
    pub async fn attach(
        &self,
        spec: &PortSpec,
        labels: BTreeMap<String, String>,
    ) -> Result<String, NetworkError> {
        let guest = self.links.ensure_pair(spec).await?;
        let device = host_device(spec.port);
        let plug = Plug { port: spec.port, device: device.clone(), mac: spec.mac.clone(), labels };
        if let Err(error) = self.switch.plug(&plug, Some(SETTLE)).await {
            self.undo(&device, &error).await;
            return Err(error);
        }
        Ok(guest)
    }

    async fn undo(&self, device: &str, error: &NetworkError) {
        let removed = self.links.remove(device).await.map(drop);
        // What was never sent needs no undoing, and asking would only take the same time again.
        let untouched =
            matches!(error, NetworkError::Switch { source: amphi_ovsdb::Error::Unavailable { .. }, .. });
        let unplugged = if untouched { Ok(()) } else { self.switch.unplug(device).await.map(drop) };
        for error in [removed, unplugged].into_iter().filter_map(Result::err) {
            tracing::warn!(%error, device, "left behind for the next sweep");
        }
    }

    /// Unplugs and deletes; what is gone already is no error. The pair goes even when the switch
    /// does not answer: the port is cut off at once, and its row is left for the next sweep.
    pub async fn detach(&self, port: Uuid) -> Result<(), NetworkError> {
        let device = host_device(port);
        let unplugged = self.switch.unplug(&device).await;
        self.links.remove(&device).await?;
        unplugged.map(drop)
    }
}
