//! Open-Falcon's push (open-falcon/book, "data-push"): a JSON array of metrics by HTTP. A counter there is shown as its
//! rate by Falcon itself.

use super::super::sample::Round;
use super::super::settings::{SinkSettings, To};
use super::Sink;
use crate::instance::figures::Shape;
use anyhow::{Context, ensure};
use async_trait::async_trait;
use serde_json::{Value, json};

/// Metrics in one request.
const BATCH: usize = 500;

pub struct Falcon(pub reqwest::Client);

#[async_trait]
impl Sink for Falcon {
    async fn deliver(&mut self, settings: &SinkSettings, round: &Round) -> anyhow::Result<()> {
        let To::Falcon { url, endpoint } = &settings.to else { return Ok(()) };
        for batch in metrics(settings, round, endpoint).chunks(BATCH) {
            let answer = self.0.post(url).json(batch).send().await.context("Open-Falcon")?;
            let status = answer.status();
            ensure!(status.is_success(), "{url} answers {status}");
        }
        Ok(())
    }
}

fn metrics(settings: &SinkSettings, round: &Round, endpoint: &str) -> Vec<Value> {
    let metric = |sample: &super::super::sample::Sample| {
        // In tags, ',' and '=' part words.
        let plain = |text: &str| text.replace([',', '=', ' '], "_");
        let tags: Vec<String> = sample
            .labels(&round.host, &settings.common.labels)
            .map(|(label, value)| format!("{label}={}", plain(&value)))
            .collect();
        json!({
            "endpoint": sample.fill(endpoint, &round.host),
            "metric": format!("amphi.{}", sample.figure.name()),
            "timestamp": round.at.as_second(),
            // Falcon wants the period; a round that is late is not its affair.
            "step": settings.step,
            "value": sample.value,
            "counterType": match sample.figure.shape() { Shape::Counter => "COUNTER", Shape::Gauge => "GAUGE" },
            "tags": tags.join(","),
        })
    };
    round.for_sink(settings).map(metric).collect()
}

#[cfg(test)]
mod tests {
    use super::super::super::sample::tests::round;
    use super::super::super::settings::Settings;

    #[test]
    fn the_push() {
        let text = "interval_seconds = 30\n[[sink]]\nkind = 'falcon'\nurl = 'http://127.0.0.1:1988/v1/push'\nfigures = ['cpu_s*', 'memory_w*']";
        let settings = Settings::parse(text).expect("settings");
        let metrics = super::metrics(&settings.sinks[0], &round(), "{name}");
        insta::assert_snapshot!(serde_json::to_string_pretty(&metrics).expect("JSON"));
    }
}
