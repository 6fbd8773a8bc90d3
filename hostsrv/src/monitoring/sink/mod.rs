//! Where figures go. Each kind has a file: what it writes is pure, how it gets there is a few lines beside it. Owns the
//! loop that all but Prometheus share, and that a failure is said once and its end once.

mod falcon;
mod otlp;
mod prometheus;
mod statsd;
mod zabbix;

use super::Rounds;
use super::sample::Round;
use super::settings::{SinkSettings, To};
use async_trait::async_trait;
use std::time::Duration;

/// Longest that a sink may take for a round.
const LIMIT: Duration = Duration::from_secs(10);

/// Takes rounds.
#[async_trait]
trait Sink: Send {
    /// The error says who refused what.
    async fn deliver(&mut self, settings: &SinkSettings, round: &Round) -> anyhow::Result<()>;
}

/// Runs until it is aborted.
pub async fn run(settings: SinkSettings, rounds: Rounds) {
    let sink: Box<dyn Sink> = match &settings.to {
        To::Prometheus { listen } => return prometheus::serve(*listen, &settings, rounds).await,
        To::Zabbix { .. } => Box::new(zabbix::Zabbix::default()),
        To::Falcon { .. } => Box::new(falcon::Falcon(client())),
        To::Otlp { .. } => Box::new(otlp::Otlp(client())),
        To::Statsd { .. } => Box::new(statsd::Statsd::default()),
    };
    deliver_all(sink, &settings, rounds).await;
}

fn client() -> reqwest::Client {
    // What can fail here is reading the system's certificates; a client without them still speaks to plain addresses.
    reqwest::Client::builder().timeout(LIMIT).build().unwrap_or_default()
}

async fn deliver_all(mut sink: Box<dyn Sink>, settings: &SinkSettings, mut rounds: Rounds) {
    let mut missed = 0u64;
    while rounds.changed().await.is_ok() {
        let Some(round) = rounds.borrow_and_update().clone() else { continue };
        let took = tokio::time::timeout(LIMIT, sink.deliver(settings, &round)).await;
        let took = took.unwrap_or_else(|_| Err(anyhow::anyhow!("no answer within {} s", LIMIT.as_secs())));
        match took {
            Ok(()) if missed > 0 => {
                tracing::info!(sink = settings.common.name, missed, "takes figures again");
                missed = 0;
            }
            Ok(()) => {}
            Err(error) => {
                if missed == 0 {
                    tracing::warn!(sink = settings.common.name, "does not take figures: {error:#}");
                }
                missed += 1;
            }
        }
    }
}
