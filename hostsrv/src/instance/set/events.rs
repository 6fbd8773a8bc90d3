//! Follows Docker's events for containers of ours: what was known of a container is doubted, and the bell rings for
//! what happened by itself. Connects again for as long as the process lives.

use super::labels;
use super::shared::Shared;
use crate::instance::DriverError;
use bollard::models::EventMessage;
use bollard::query_parameters::EventsOptionsBuilder;
use futures_util::StreamExt;
use jiff::Timestamp;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// Pauses between attempts to connect: doubling between these.
const PAUSE_MIN: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(5);

pub async fn follow(shared: Arc<Shared>) {
    let mut pause = PAUSE_MIN;
    loop {
        match listen(&shared, &mut pause).await {
            Ok(()) => tracing::info!("Docker's events ended"),
            Err(error) => tracing::debug!(%error, "Docker's events"),
        }
        shared.sightings.lose();
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

async fn listen(shared: &Arc<Shared>, pause: &mut Duration) -> Result<(), DriverError> {
    let engine = &shared.engine;
    engine.call("ping", engine.limits.ping, |docker| async move { docker.ping().await }).await?;
    *pause = PAUSE_MIN;
    // Docker replays what happened since then, so nothing falls between this moment and the stream's beginning.
    let since = Timestamp::now();
    let since = format!("{}.{:09}", since.as_second(), since.subsec_nanosecond());
    let filters = HashMap::from([("type", vec!["container"]), ("label", vec![labels::INSTANCE])]);
    let options = EventsOptionsBuilder::default().since(&since).filters(&filters).build();
    let client = engine.client("follow its events")?;
    shared.sightings.follow();
    // Whatever happened while nobody listened.
    shared.bell.notify_one();
    // A network that Docker took for used though nobody named it: it counts anew when it starts.
    if let Err(error) = shared.sweep_networks().await {
        tracing::debug!(%error, "networks that nobody names are left");
    }
    let mut events = std::pin::pin!(client.events(Some(options)));
    while let Some(event) = events.next().await {
        let event = event.map_err(|error| super::engine::refusal("follow its events", error))?;
        take(shared, &event);
    }
    Ok(())
}

fn take(shared: &Shared, event: &EventMessage) {
    // Commands and probes come and go without changing their container.
    if event.action.as_deref().is_some_and(|action| action.starts_with("exec_")) {
        return;
    }
    if let Some(id) = event.actor.as_ref().and_then(|actor| actor.id.as_deref()) {
        shared.sightings.doubt(id);
    }
    if event.action.as_deref().is_some_and(rings) {
        shared.bell.notify_one();
    }
}

/// Starts and creations are ours, and an exec changes nothing.
fn rings(action: &str) -> bool {
    matches!(action, "die" | "oom" | "destroy" | "pause" | "unpause" | "restart")
}

#[cfg(test)]
mod tests {
    use super::rings;

    #[test]
    fn the_bell_rings_for_what_ends() {
        assert!(["die", "oom", "destroy", "pause"].into_iter().all(rings));
        assert!(!["create", "start", "exec_start: sh", "attach", "kill"].into_iter().any(rings));
    }
}
