//! Streams that the controller asks for: a connection beside the link for each, joined with what a driver opens in a body.
//! The connection comes first, so that nothing is started for somebody who has left.

mod pump;

use crate::instance::DriverError;
use crate::instance::streams::Opened;
use crate::link::{self, Papers};
use crate::reconcile::Reconciler;
use amphi_api::InstanceId;
use amphi_api::streams::{MESSAGE_MAX, StreamOpen, StreamTarget};
use std::sync::Arc;

/// From the connection to the last word.
pub async fn serve(papers: Arc<Papers>, reconciler: Arc<Reconciler>, order: StreamOpen) {
    let StreamOpen { id, secret, instance, what } = order;
    let path = format!("/hosts/v1/streams/{id}");
    let socket = match link::connect(&papers, &path, Some(&secret), MESSAGE_MAX).await {
        Ok(socket) => socket,
        Err(error) => {
            tracing::warn!(%instance, "no connection for a stream: {error:#}");
            return;
        }
    };
    let ending = pump::run(socket, open(&reconciler, instance, &what)).await;
    tracing::debug!(%instance, ending, "a stream has ended");
}

async fn open(
    reconciler: &Reconciler,
    instance: InstanceId,
    what: &StreamTarget,
) -> Result<Opened, DriverError> {
    let status = reconciler.status().borrow().clone();
    let kind = status.instances.iter().find(|i| i.id == instance).map(|i| i.kind);
    match kind.and_then(|kind| reconciler.driver(kind)) {
        Some(driver) => match what {
            StreamTarget::Tools(spec) => {
                let image = reconciler.images().ensure(&spec.image).await?;
                driver.open_tools(instance, &spec.exec, &image).await
            }
            what => driver.open(instance, what).await,
        },
        None => Err(DriverError::EngineRefused {
            engine: "the agent",
            doing: format!("look into instance {instance}"),
            message: "it has no body on this host".into(),
        }),
    }
}
